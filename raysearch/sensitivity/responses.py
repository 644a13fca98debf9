"""Responses: what each option alone does to the output, and the Gram matrix of all of them.

For option q (one group at one width, all else float) let δ_q = z(q) − z⁰ on the calibration samples. To
second order the divergence of a set A of options is ½ Σ_{q,r∈A} K_qr, K_qr = mean over samples of
δ_qᵀ Λ δ_r, Λ the Hessian of the divergence in z at z⁰. No labels, no backward; of an option's forward only
the layers after its first quantizer are run. Rows Λ^½ δ longer than `sketch_size` are projected to that many
values (see `Sketch`), alike for all options: K stays a Gram matrix, right in the mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.config.sensitivity import SensitivityConfig
from raysearch.errors import ConfigError
from raysearch.evaluation import DataSet, Replica, batch_size
from raysearch.evaluation.outputs import values_per_sample
from raysearch.records import BitAssignment, Option, QuantizerSetup, RangeTable
from raysearch.records.low_rank import FACTOR_BYTES, MOST_DENSE, MOST_OPTIONS, Gram, LowRank, diagonal
from raysearch.sensitivity.rows import row_judge
from raysearch.sensitivity.sketch import Sketch
from raysearch.simulation import CACHE_BYTES, bits_of, simulated_model

ROWS_LIMIT_BYTES = 2**31
"""Rows of one shard, all options together, that the driver may have to hold."""


@dataclass(frozen=True)
class Responses:
    """The responses of all options.

    Attributes:
        gram: K [num_options, num_options], or its factor.
        divergence: the measured divergence of each option alone [num_options].
        sketch_stderr: standard error of K_qq from the projection [num_options]; 0 where rows are exact. Of
            any K_qr it is at most √((2/k)·Σ_x ‖row_q‖²‖row_r‖²) / samples, k the sketch size.
    """

    gram: Gram
    divergence: npt.NDArray[np.float64]
    sketch_stderr: npt.NDArray[np.float64]

    @property
    def sketch_error(self) -> float:
        """The greatest relative standard error on the diagonal of K; 0 when nothing was projected."""
        own = diagonal(self.gram)
        is_known = (own > 0) & np.isfinite(self.sketch_stderr)
        return float((self.sketch_stderr[is_known] / own[is_known]).max(initial=0.0))


@dataclass(frozen=True)
class Method:
    """What all units share besides setup and ranges.

    Attributes:
        sketch_size: values kept of a sample's row.
        seed: the run's seed.
        cache_bytes: what a worker may keep between forwards.
        data: whose shards they are.
    """

    sketch_size: int
    seed: int
    cache_bytes: int
    data: DataSet = DataSet.CALIBRATION


def measure_responses(
    setup: QuantizerSetup,
    ranges: RangeTable,
    pool: Pool,
    num_shards: int,
    settings: SensitivityConfig,
    *,
    data: DataSet = DataSet.CALIBRATION,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
) -> Responses:
    """Responses of all options over the shards of a data set.

    Codes that rounding fitted to the same samples look better than they are on others: the fewer samples, the
    more (docs/maths.md). Samples of their own say it without that.

    Work per unit (option chunk × shard): the later layers of one forward an option, and one recorded float
    forward a worker and shard (a unit, where `cache_bytes` is too small). On shard 0 the option of each
    unit that runs least is run in full too; if its outputs differ in a bit, handing out outputs does not
    suit the model, and all is measured anew by full forwards, with a warning.

    Bytes per unit: 8 · option_chunk · samples · min(outputs, sketch_size) back. Memory of the driver: the
    rows of the shards that are not complete, each 8 · num_options · samples · min(outputs, sketch_size)
    bytes, at most `ROWS_LIMIT_BYTES`. Memory of a worker: outputs of one forward, `cache_bytes`, its
    unit's rows, and some ten float64 copies of at most 2²² output values or of one sample. Of logits over a
    vocabulary it is instead one float32 copy of the shard's, the roots of the float model's probabilities,
    made once a shard, and three of 2¹⁷ values; see `evaluation.vocabulary.positions`.

    The Gram block of a shard is made on the driver from rows in the order of the options; blocks are summed
    in the order of shards, in float64.

    Args:
        setup: points, groups and their widths.
        ranges: calibrated ranges.
        pool: runs the units.
        num_shards: how many shards there are.
        settings: `option_chunk`, the options in a unit, and `sketch_size`, the values that are kept of a
            sample's row; a row of up to that many outputs is exact.
        data: which data set.
        seed: the run's seed; only sketches depend on it.
        cache_bytes: see `CACHE_BYTES`.

    Raises:
        ConfigError: the rows of a shard would take more than `ROWS_LIMIT_BYTES`; nothing was allocated.
    """
    options = setup.options()
    method = Method(settings.sketch_size, seed, cache_bytes, data)
    fold = _Fold(len(options), num_shards)
    units = units_of(options, num_shards, settings.option_chunk)
    if data is not DataSet.CALIBRATION:
        # By keys of their own: a resumed run must not take what was measured on other samples for these.
        units = {(*key, str(data)): arguments for key, arguments in units.items()}
    for key, value in pool.run(respond, units, (setup, ranges, method)):
        fold.add(int(key[0]), int(key[1]), value)
    if fold.has_differed:
        warnings.warn(
            "the model's outputs change when layers before the quantized one are not run again, so its "
            "forward keeps a state or draws random numbers; the responses were measured by full forwards",
            stacklevel=3,
        )
        fold = _Fold(len(options), num_shards)
        # By keys of their own: a resumed run must not take what was measured the other way for these.
        full_units: dict[Key, tuple[object, ...]] = {
            (*key, "full"): (*arguments[:2], "full") for key, arguments in units.items()
        }
        for key, value in pool.run(respond, full_units, (setup, ranges, method)):
            fold.add(int(key[0]), int(key[1]), value)
    return fold.responses()


def check_room(
    num_options: int, shard_sizes: Sequence[int], values_per_sample: int, settings: SensitivityConfig
) -> None:
    """Refuse responses that will take more memory than they may, before any is measured.

    Args:
        num_options: all of the setup.
        shard_sizes: samples of each shard that there is.
        values_per_sample: of the judged output.
        settings: `sketch_size` and `response_shards`.

    Raises:
        ConfigError: the rows of a shard, or all that is kept of them, would be too large.
    """
    sizes = shard_sizes[: settings.response_shards or len(shard_sizes)]
    size = min(values_per_sample, settings.sketch_size)
    _check_rows(num_options, max(sizes), size)
    _is_dense(num_options, len(sizes) * sizes[0] * size)


def units_of(
    options: tuple[Option, ...], num_shards: int, option_chunk: int
) -> dict[Key, tuple[object, ...]]:
    """(shard, first option) → arguments of `respond`; on shard 0 recorded outputs are checked.

    Args:
        options: all (group, scheme), in the order of the Gram matrix.
        num_shards: how many shards there are.
        option_chunk: options a unit; the last unit of a shard may have fewer.
    """
    return {
        (shard, lo): (shard, options[lo : lo + option_chunk], "later" if shard else "check")
        for shard in range(num_shards)
        for lo in range(0, len(options), option_chunk)
    }


class _Fold:
    """Puts the rows of each shard together, and each complete shard into a Gram block.

    Of more than `MOST_DENSE` options the rows themselves are kept, unless they take more than `FACTOR_BYTES`:
    side by side they are K's factor.
    """

    def __init__(self, num_options: int, num_shards: int) -> None:
        self._num_options = num_options
        self._num_shards = num_shards
        self._rows: dict[int, npt.NDArray[np.float64]] = {}
        self._missing = dict.fromkeys(range(num_shards), num_options)
        self._alone = np.zeros((num_shards, num_options))
        self._variance = np.zeros((num_shards, num_options))
        # None until a unit of the first shard says how long rows are; the last shard may be smaller.
        self._is_dense: bool | None = None
        self._blocks: dict[int, npt.NDArray[np.float64]] = {}
        self._gram = np.zeros((0, 0))
        self._num_summed = 0
        self._sizes = np.zeros(num_shards)
        self.has_differed = False

    def add(self, shard: int, lo: int, value: UnitValue) -> None:
        """Take what a unit answered; a shard is folded as soon as it is complete.

        Args:
            shard: the unit's shard.
            lo: position of its first option.
            value: one row an option of the unit, as `respond` gives it.
        """
        part = value["weighted"]
        self.has_differed |= bool(value["differs"])
        if self._is_dense is None and shard == 0:
            self._is_dense = _is_dense(self._num_options, self._num_shards * part.shape[1] * part.shape[2])
            if self._is_dense:
                self._gram = np.zeros((self._num_options, self._num_options))
        rows = self._rows.setdefault(shard, np.empty((self._num_options, *part.shape[1:])))
        hi = lo + len(part)
        rows[lo:hi] = part
        self._alone[shard, lo:hi] = value["divergence"]
        self._variance[shard, lo:hi] = value["variance"]
        self._missing[shard] -= len(part)
        if not self._missing[shard]:
            self._sizes[shard] = rows.shape[1]
        if self._is_dense is not None:
            self._fold_complete()

    def _fold_complete(self) -> None:
        """Fold the shards that are complete, and add the blocks whose turn it is; others wait for it."""
        for shard in [shard for shard in self._rows if not self._missing[shard]]:
            # By torch, whose threads the run pins, and not by numpy's BLAS, whose threads it does not.
            flat = torch.from_numpy(self._rows.pop(shard).reshape(self._num_options, -1))
            self._blocks[shard] = (flat @ flat.T).numpy() if self._is_dense else flat.numpy()
        while self._is_dense and self._num_summed in self._blocks:
            self._gram += self._blocks.pop(self._num_summed)
            self._num_summed += 1

    def responses(self) -> Responses:
        """The sums over shards, in their order."""
        total = self._sizes.sum()
        divergence = np.zeros(self._num_options)
        variance = np.zeros(self._num_options)
        for shard in range(self._num_shards):
            divergence += self._alone[shard]
            variance += self._variance[shard]
        return Responses(self._sum(float(total)), divergence / total, np.sqrt(variance) / total)

    def _sum(self, total: float) -> Gram:
        if self._is_dense:
            # A matrix product of A with Aᵀ is symmetric only up to rounding.
            return (self._gram + self._gram.T) / (2 * total)
        factor = np.concatenate([self._blocks.pop(shard) for shard in range(self._num_shards)], axis=1)
        factor /= np.sqrt(total)
        return LowRank(factor)


def respond(
    replica: Replica,
    setup: QuantizerSetup,
    ranges: RangeTable,
    method: Method,
    shard: int,
    options: tuple[Option, ...],
    mode: str,
) -> UnitValue:
    """Unit: rows Λ^½ δ of some options on one shard, and Σ divergence of each.

    Args:
        replica: what the worker holds.
        setup: points and groups.
        ranges: calibrated ranges.
        method: sketch and memory.
        shard: index of the shard.
        options: of this unit.
        mode: "full" runs whole forwards, "later" the later layers only, "check" the same and compares one.

    Returns:
        "weighted" [options, samples, k], "divergence" [options], "variance" [options] (Σ over samples of
        the variance of the row's squared norm by the sketch), "differs" (1 where the check failed).
    """
    model = simulated_model(replica, setup, ranges, method.cache_bytes)
    if mode != "full":
        model.record(replica, options, method.data, shard)
    reference = replica.float_outputs(method.data, shard)
    sketch = Sketch(values_per_sample(reference), method.sketch_size, method.seed, shard)
    _check_rows(len(setup.options()), batch_size(reference), sketch.size)
    # The option that runs least is the one whose outputs lean most on what was kept.
    latest = max(options, key=lambda option: (model.depth(option), options.index(option)))
    judge = row_judge(replica, reference, sketch)
    forward = model.outputs if mode == "full" else model.later_outputs
    differs = False

    def judged(option: Option) -> tuple[Tensor, float, float]:
        """Outputs live in here alone, so that no two options' are held at once: they may be large."""
        nonlocal differs
        assignment = BitAssignment(dict([option]))
        outputs = forward(replica, assignment, method.data, shard)
        row = judge.judge(outputs)
        if mode == "check" and option == latest:
            # Whether running all layers gives other outputs than running the later ones alone gave.
            later = bits_of(outputs)
            del outputs
            differs = bits_of(model.outputs(replica, assignment, method.data, shard)) != later
        return row

    rows, variances, sums = zip(*(judged(option) for option in options), strict=True)
    return {
        "weighted": torch.stack(rows).numpy(),
        "divergence": np.array(sums),
        "variance": np.array(variances),
        "differs": np.array(float(differs)),
    }


def _is_dense(num_options: int, num_columns: int) -> bool:
    """Whether K itself is kept, and not its factor.

    Args:
        num_options: rows of either.
        num_columns: of the factor.

    Raises:
        ConfigError: neither can be.
    """
    if num_options <= MOST_DENSE:
        return True
    needed = 8 * num_options * num_columns
    if needed <= FACTOR_BYTES:
        return False
    if num_options <= MOST_OPTIONS:
        return True
    raise ConfigError(
        f"the responses of {num_options:,} options would take {needed / 2**30:.1f} GiB, with "
        f"{num_columns:,} values each; at most {FACTOR_BYTES / 2**30:g} GiB are allowed where there are "
        f"more than {MOST_OPTIONS:,} options. Lower sensitivity.sketch_size, response_shards there, or "
        f"calibration.num_samples to {FACTOR_BYTES / needed:.0%} of what it is."
    )


def _check_rows(num_options: int, num_samples: int, size: int) -> None:
    needed = 8 * num_options * num_samples * size
    if needed > ROWS_LIMIT_BYTES:
        raise ConfigError(
            f"the responses of one shard would take {needed / 2**30:.1f} GiB on the driver: {num_options} "
            f"options x {num_samples} samples x {size} values of 8 bytes; at most "
            f"{ROWS_LIMIT_BYTES / 2**30:g} GiB are allowed. Lower sensitivity.sketch_size, or "
            f"calibration.shard_size (validation.shard_size, where the samples are of the validation data)."
        )
