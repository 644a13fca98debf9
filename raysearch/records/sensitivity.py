"""What the sensitivity stage measured: traces with standard errors, and the response of every option."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysearch.errors import PlacementError, StorageError
from raysearch.records.low_rank import Gram, LowRank
from raysearch.records.scheme import Scheme
from raysearch.records.typed_tables import checked_table

FACTOR = "factor"

Option = tuple[str, Scheme]
"""A group id and one of its schemes."""


@dataclass(frozen=True)
class Trace:
    """Average Hessian trace of one weight: Tr(H_ll)/n_l of the mean loss.

    Attributes:
        point: the weight's quantizer id.
        value: the estimate; negative values are possible for losses with negative curvature.
        stderr: standard error over data and probes together (what the estimate is off by); its square is
            the sum of the two below, where both are known.
        probe_stderr: the part of it that more draws would remove; 0 for a deterministic estimator.
        data_stderr: the part of it that more samples would remove; NaN where one shard alone was measured
            by an estimator that does not see single samples.
        num_draws: draws per shard, each one estimate of the trace.
        num_samples: samples seen.
        estimator: how it was drawn, as in `sensitivity.estimator`.
        converged: whether the probe error came down to what was wanted.
    """

    point: str
    value: float
    stderr: float
    probe_stderr: float
    data_stderr: float
    num_draws: int
    num_samples: int
    estimator: str
    converged: bool


@dataclass(frozen=True)
class OptionEffect:
    """What one option does alone.

    Attributes:
        group: the group's id.
        scheme: the scheme; a bit-width or a text stands for its scheme.
        kind: "weight" or "activation".
        perturbation: ‖Q(W) − W‖² summed over the group's weights; 0 for activations.
        omega: Σ max(trace, 0)·‖Q(W) − W‖² over the group's weights (HAWQ-V2); 0 for activations, NaN where
            no traces were measured.
        response: ½·K_qq, the second-order increase of the divergence from this option alone.
        divergence: the measured divergence of this option alone, mean per sample.
        second_moment: Σ max(trace, 0)·tr(ΔW H ΔWᵀ)/mean diag(H) over the group's weights with the codes that
            rounding chose; 0 for activations, NaN where rounding took no second moments.
    """

    group: str
    scheme: Scheme
    kind: str
    perturbation: float
    omega: float
    response: float
    divergence: float
    second_moment: float = math.nan

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", Scheme.of(self.scheme))

    @property
    def num_bits(self) -> int:
        """The scheme's bit-width."""
        return self.scheme.num_bits


@dataclass(frozen=True)
class SensitivityTable:
    """All measurements of one float model, independent of any budget.

    Attributes:
        traces: quantizer id → trace, weights only; empty where none were measured.
        effects: option → effect, in the order of the setup's options.
        gram: K, shape [num_options, num_options], float64, symmetric and positive semi-definite;
            K_qr = mean over samples of δ_qᵀ Λ δ_r, in the order of `effects`. Of more than `MOST_DENSE`
            options it is a factor, whose rows are those of K's Gram matrix.
        fingerprint: hash of the model, the data, the setup and the method.
        sketch_error: greatest relative standard error on the diagonal of K from projecting the outputs; 0
            where nothing was projected, NaN where it is not known (tables of earlier versions).
    """

    traces: Mapping[str, Trace]
    effects: Mapping[Option, OptionEffect]
    gram: Gram
    fingerprint: str
    sketch_error: float = math.nan

    def __post_init__(self) -> None:
        if self.gram.shape != (len(self.effects), len(self.effects)):
            raise ValueError(f"gram is {self.gram.shape}, but there are {len(self.effects)} options")

    def traces_table(self) -> pa.Table:
        """One row a weight."""
        return _rows(Trace, self.traces.values(), self.fingerprint)

    def effects_table(self) -> pa.Table:
        """One row an option.

        Second moments stand in it only where there are any, and schemes where one is more than its
        bit-width, as earlier versions wrote it.
        """
        rows = _rows(OptionEffect, self.effects.values(), self.fingerprint)
        rows = _with_schemes(rows, [effect.scheme for effect in self.effects.values()])
        if any(math.isfinite(effect.second_moment) for effect in self.effects.values()):
            return rows
        return rows.drop_columns(["second_moment"])

    def gram_table(self) -> pa.Table:
        """One row an option: its group, width, and row of K as a list; the sketch's error as metadata.

        Of a factor its row stands there in place of that of K, and the metadata says so.
        """
        is_factor = isinstance(self.gram, LowRank)
        rows = _lists(self.gram.factor if isinstance(self.gram, LowRank) else self.gram)
        names = [group for group, _ in self.effects]
        schemes = [effect.scheme for effect in self.effects.values()]
        widths = [scheme.num_bits for scheme in schemes]
        metadata = {"sketch_error": repr(self.sketch_error), **({"form": FACTOR} if is_factor else {})}
        table = pa.table({"group": names, "num_bits": widths, "gram": rows}, metadata=metadata)
        return _with_schemes(table, schemes)

    @classmethod
    def from_tables(cls, traces: pa.Table, effects: pa.Table, gram: pa.Table) -> SensitivityTable:
        """Read what the three tables hold.

        Args:
            traces: as `traces_table` writes it.
            effects: as `effects_table` writes it.
            gram: as `gram_table` writes it; its rows are in the order of `effects`.

        Raises:
            StorageError: a table lacks a column, or the tables belong to different measurements.
        """
        checked_table(traces, _schema(Trace), "traces.parquet")
        added = ("second_moment", "scheme")
        checked_table(effects, _schema(OptionEffect).append(_SCHEME), "sensitivity.parquet", added)
        checked_table(gram, _GRAM, "responses.arrow", ("scheme",))
        try:
            fingerprints = {_fingerprint(table) for table in (traces, effects)}
            named = {row["point"]: Trace(**row) for row in traces.to_pylist()}
            measured = [_effect_from(row) for row in effects.to_pylist()]
            # Tables of earlier versions lack it.
            sketch_error = float((gram.schema.metadata or {}).get(b"sketch_error", b"nan"))
            matrix = _matrix(gram, [(effect.group, effect.scheme) for effect in measured])
        except (ValueError, PlacementError) as error:
            raise StorageError(f"the sensitivity tables are damaged: {str(error).rstrip('.')}.") from error
        if len(fingerprints) != 1:
            raise StorageError(
                f"traces and sensitivity belong to different measurements: {sorted(fingerprints)}."
            )
        if len(named) != traces.num_rows:
            raise StorageError("traces.parquet is damaged: it has several traces of one weight.")
        return cls(
            named,
            {(effect.group, effect.scheme): effect for effect in measured},
            matrix,
            fingerprints.pop(),
            sketch_error,
        )


def _fingerprint(table: pa.Table) -> str:
    metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
    if b"fingerprint" not in metadata:
        raise ValueError("a table says nothing of its measurement (fingerprint)")
    return metadata[b"fingerprint"].decode()


def _matrix(gram: pa.Table, options: Sequence[Option]) -> Gram:
    """K of a table whose rows are of these options, or its factor, as it lies in the table's memory.

    Raises:
        ValueError: the rows are of other options, or not as many numbers as there are rows.
    """
    size = len(options)
    form = (gram.schema.metadata or {}).get(b"form", b"").decode()
    if form not in ("", FACTOR):
        raise ValueError(f"responses.arrow has the form '{form:.20}', which this version does not know")
    schemes = gram.column("scheme" if "scheme" in gram.column_names else "num_bits").to_pylist()
    rows = list(zip(gram.column("group").to_pylist(), map(Scheme.of, schemes), strict=True))
    if rows != list(options) or len(set(rows)) != size:
        raise ValueError("the rows of responses.arrow are of other options than those of sensitivity.parquet")
    column = gram.column("gram")
    lengths = set(pc.unique(pc.list_value_length(column)).to_pylist())
    chunks = [chunk.flatten() for chunk in column.chunks]
    due = lengths if form and len(lengths) == 1 else {size}
    if lengths - due or None in lengths or any(chunk.null_count for chunk in chunks):
        raise ValueError(f"rows of responses.arrow have {list(lengths)[:3]} numbers where {size} are due")
    # One chunk is a view of the file.
    parts = [chunk.to_numpy() for chunk in chunks] or [np.empty(0)]
    numbers: npt.NDArray[np.float64] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return LowRank(numbers.reshape(size, -1)) if form else numbers.reshape(size, size)


def _lists(matrix: npt.NDArray[np.float64]) -> pa.ListArray:
    """The rows of a matrix as lists, whose numbers are those in memory."""
    num_rows, size = matrix.shape
    offsets = pa.array(np.arange(num_rows + 1) * size, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(matrix).ravel()))


def _effect_from(row: Mapping[str, Any]) -> OptionEffect:
    values = dict(row)
    num_bits = values.pop("num_bits")
    effect = OptionEffect(**{"scheme": num_bits, **values})
    if effect.num_bits != num_bits or effect.kind not in ("weight", "activation"):
        raise ValueError(
            f"'{effect.group:.100}' at {effect.scheme} has {num_bits} bits and the kind '{effect.kind:.20}'"
        )
    return effect


def _with_schemes(table: pa.Table, schemes: Sequence[Scheme]) -> pa.Table:
    """The table with the schemes' texts as one more column, where one is more than a bit-width."""
    if all(scheme.is_plain for scheme in schemes):
        return table
    return table.append_column("scheme", pa.array([str(scheme) for scheme in schemes]))


def _rows(record: type, values: Iterable[Any], fingerprint: str) -> pa.Table:
    entries = [_entry(value) for value in values]
    schema = _schema(record).with_metadata({"fingerprint": fingerprint})
    return pa.Table.from_pylist(entries, schema=schema)


_SCHEME = pa.field("scheme", pa.string())
_GRAM = pa.schema(
    [("group", pa.string()), ("num_bits", pa.int64()), ("gram", pa.list_(pa.float64())), _SCHEME]
)


def _schema(record: type) -> pa.Schema:
    """A column a field; of a scheme its bit-width."""
    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    columns = []
    for field in fields(record):
        if field.type == "Scheme":
            columns.append(("num_bits", pa.int64()))
        else:
            columns.append((field.name, types[str(field.type)]))
    return pa.schema(columns)


def _entry(value: Any) -> dict[str, Any]:
    entry = asdict(value)
    if isinstance(value, OptionEffect):
        del entry["scheme"]
        entry["num_bits"] = value.num_bits
    return entry
