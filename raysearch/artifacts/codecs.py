"""How each record of a run is written to its files and read again; one codec a record.

A codec also carries the record's type, so `store.load(codecs.SETUP)` is a `QuantizerSetup` to a type checker.
A new record is one codec here and its name in `RECORDS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import pyarrow as pa

from raysearch.artifacts.tables import from_arrow, from_parquet, to_arrow, to_parquet
from raysearch.errors import StorageError
from raysearch.records import (
    ExportManifest,
    Finalists,
    FineTuneResult,
    LeastCost,
    QuantizerSetup,
    RangeTable,
    Refinement,
    Reused,
    RoundingTable,
    RunResult,
    RunStatus,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    trials_from_table,
    trials_to_table,
)
from raysearch.records.typed_json import read_json

T = TypeVar("T")

Content = bytes | memoryview

Metrics = Mapping[str, Mapping[str, float]]
"""Model ("float" or "quantized") → metric → value."""


class SavedFile(NamedTuple):
    """A file of a record as it was read.

    Attributes:
        data: its whole content; a view of the disk's cache where a record is read in place.
        shown: its location, as messages give it.
    """

    data: bytes | memoryview
    shown: str

    @property
    def text(self) -> str:
        """The content as text; damaged characters are replaced, and then fail where the text is parsed."""
        return bytes(self.data).decode(errors="replace")


@dataclass(frozen=True)
class Codec(Generic[T]):
    """The files of one record.

    Attributes:
        files: names in the order they are written: when the last one is there, the record is whole.
        write: record → the content of each file.
        read: the files → the record; raises `StorageError` for a damaged one.
        sealed: whether a file that differs from what was written is refused. Not so the status, which is
            written every second, and the report, from which nothing is read.
    """

    files: tuple[str, ...]
    write: Callable[[T], tuple[Content, ...]]
    read: Callable[[Sequence[SavedFile]], T]
    sealed: bool = True


def _text_codec(
    name: str, to_text: Callable[[T], str], from_text: Callable[[str], T], *, sealed: bool = True
) -> Codec[T]:
    """A record that is one file of text.

    Args:
        name: the file.
        to_text: record → text.
        from_text: text → record.
        sealed: see `Codec`.
    """

    def write(record: T) -> tuple[bytes, ...]:
        return (to_text(record).encode(),)

    def read(files: Sequence[SavedFile]) -> T:
        return from_text(files[0].text)

    return Codec((name,), write, read, sealed)


def _dict_codec(
    name: str, form: Any, to_dict: Callable[[T], dict[str, Any]], from_dict: Callable[[dict[str, Any]], T]
) -> Codec[T]:
    """A record that is one file with a JSON object.

    Args:
        name: the file.
        form: what must be in the object, see `read_json`.
        to_dict: record → object.
        from_dict: object → record.
    """

    def write(record: T) -> tuple[bytes, ...]:
        return (json.dumps(to_dict(record), indent=1).encode(),)

    def read(files: Sequence[SavedFile]) -> T:
        data, shown = files[0]
        return from_dict(read_json(form, bytes(data), shown))

    return Codec((name,), write, read)


def object_codec(name: str, record_type: type[T]) -> Codec[T]:
    """A small dataclass of plain values that is one file with a JSON object, and not sealed.

    Args:
        name: the file.
        record_type: the dataclass; a value of another type than its field's is refused.
    """

    def write(record: T) -> tuple[bytes, ...]:
        return (json.dumps(vars(record), indent=1).encode(),)

    def read(files: Sequence[SavedFile]) -> T:
        data, shown = files[0]
        return record_type(**read_json(record_type, bytes(data), shown))

    return Codec((name,), write, read, sealed=False)


def _write_ranges(ranges: RangeTable) -> tuple[bytes, ...]:
    return (ranges.to_bytes(),)


def _read_ranges(files: Sequence[SavedFile]) -> RangeTable:
    return RangeTable.from_bytes(bytes(files[0].data))


def _write_rounding(table: RoundingTable) -> tuple[bytes, ...]:
    return (table.to_bytes(),)


def _read_rounding(files: Sequence[SavedFile]) -> RoundingTable:
    return RoundingTable.from_bytes(bytes(files[0].data))


def _write_refinement(record: Refinement) -> tuple[bytes, ...]:
    return (record.to_bytes(),)


def _read_refinement(files: Sequence[SavedFile]) -> Refinement:
    return Refinement.from_bytes(bytes(files[0].data))


def _write_sensitivity(table: SensitivityTable) -> tuple[Content, ...]:
    # The fingerprint goes into the Gram matrix's table as well, so that no mixture of two runs can be read.
    gram = table.gram_table()
    gram = gram.replace_schema_metadata({**gram.schema.metadata, "fingerprint": table.fingerprint})
    return to_arrow(gram), to_parquet(table.traces_table()), to_parquet(table.effects_table())


def _read_sensitivity(files: Sequence[SavedFile]) -> SensitivityTable:
    gram = from_arrow(*files[0])
    traces = from_parquet(*files[1])
    effects = from_parquet(*files[2])
    gram_fingerprint = _fingerprint(gram)
    effects_fingerprint = _fingerprint(effects)
    if gram_fingerprint != effects_fingerprint or gram.num_rows != effects.num_rows:
        raise StorageError(
            f"{files[0].shown} ({gram.num_rows} options of '{gram_fingerprint}') and sensitivity.parquet "
            f"({effects.num_rows} of '{effects_fingerprint}') belong to different measurements."
        )
    return SensitivityTable.from_tables(traces, effects, gram)


def _fingerprint(table: pa.Table) -> str:
    metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
    return metadata.get(b"fingerprint", b"").decode(errors="replace")


def _write_trials(trials: tuple[SearchTrial, ...]) -> tuple[bytes, ...]:
    return (to_parquet(trials_to_table(trials)),)


def _read_trials(files: Sequence[SavedFile]) -> tuple[SearchTrial, ...]:
    return trials_from_table(from_parquet(*files[0]))


def trials_codec(name: str) -> Codec[tuple[SearchTrial, ...]]:
    """Some trials as one file."""
    return Codec((name,), _write_trials, _read_trials)


def _write_search(result: SearchResult) -> tuple[bytes, ...]:
    front = to_parquet(trials_to_table(result.front))
    return *_write_trials(result.trials), front, result.to_json().encode()


def _read_search(files: Sequence[SavedFile]) -> SearchResult:
    trials = trials_from_table(from_parquet(*files[0]))
    front = trials_from_table(from_parquet(*files[1]), "front.parquet")
    return SearchResult.from_records(files[2].text, trials, front)


def _metrics_to_dict(metrics: Metrics) -> dict[str, Any]:
    return {name: dict(values) for name, values in metrics.items()}


def _metrics_from_dict(values: dict[str, Any]) -> Metrics:
    return values


STATUS = _text_codec("status.json", RunStatus.to_json, RunStatus.from_json, sealed=False)
SETUP = _text_codec("setup.json", QuantizerSetup.to_json, QuantizerSetup.from_json)
RANGES = Codec(("ranges.safetensors",), _write_ranges, _read_ranges)
ROUNDING = Codec(("rounding.safetensors",), _write_rounding, _read_rounding)
"""Of a run whose weights were not rounded to nearest."""
SENSITIVITY = Codec(
    ("responses.arrow", "traces.parquet", "sensitivity.parquet"), _write_sensitivity, _read_sensitivity
)
TRIALS = trials_codec("trials.parquet")
"""The trials of a search, without the rest of `SEARCH`."""
SEARCH = Codec(("trials.parquet", "front.parquet", "best.json"), _write_search, _read_search)
REFINEMENT = Codec(("refinement.safetensors",), _write_refinement, _read_refinement)
"""Of a run whose winner was refined."""
LEAST_COST = _dict_codec("least_cost.json", LeastCost, LeastCost.as_dict, LeastCost.from_dict)
FINALISTS = _dict_codec("finalists.json", Finalists, Finalists.as_dict, Finalists.from_dict)
"""Of a run whose best assignments were trained shortly."""
FINE_TUNE = _text_codec("finetune.json", FineTuneResult.to_json, FineTuneResult.from_json)
REUSED = _dict_codec("reused.json", Reused, asdict, Reused.from_dict)
"""Of a run that started from another."""
METRICS = _dict_codec("metrics.json", Metrics, _metrics_to_dict, _metrics_from_dict)
MANIFEST = _text_codec("model/manifest.json", ExportManifest.to_json, ExportManifest.from_json)
REPORT = _text_codec("report.html", str, str, sealed=False)
RESULT = _dict_codec("result.json", RunResult, RunResult.to_dict, RunResult.from_dict)
"""The last file of a run: its presence says that the run is complete."""

RECORDS: tuple[Codec[Any], ...] = (
    STATUS,
    SETUP,
    RANGES,
    ROUNDING,
    SENSITIVITY,
    SEARCH,
    FINALISTS,
    REFINEMENT,
    LEAST_COST,
    FINE_TUNE,
    REUSED,
    METRICS,
    MANIFEST,
    REPORT,
    RESULT,
)
"""What a finished run may hold, in the order that a copy of it is written."""
