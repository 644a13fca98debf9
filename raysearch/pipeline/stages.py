"""What the stages take, put together from the inputs of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.artifacts import RunStore, codecs
from raysearch.blockwise import BlockFiles, BlockReplica, Chain, without_weights
from raysearch.calibration import adapt_batch_norm, calibrate
from raysearch.cluster.pool import Pool
from raysearch.controller import create_controller
from raysearch.evaluation import Batch, DataSet, Evaluation, Measures, Replica, evaluate_model
from raysearch.evaluation.half_precision import half_type, widened_data, widened_model
from raysearch.evaluation.model.copies import private_copy, reading_copy
from raysearch.evaluation.sampling import random_shards
from raysearch.export import StrippedModel, export_model
from raysearch.pipeline.inputs import Inputs
from raysearch.records import BitAssignment, Candidate, ExportManifest, RangeTable, Refinement, RoundingTable
from raysearch.records.refinement import PLAIN
from raysearch.records.winner import Winner
from raysearch.refinement import refine
from raysearch.rounding import round_sequentially, round_weights
from raysearch.seeding import derive_seed
from raysearch.simulation import Judgement, MeasuredObjective
from raysearch.training import Recipe, load_checkpoint


def make_replica(inputs: Inputs, search: list[Batch]) -> Replica:
    """What each worker holds: a model that reads the weights of the run's own, which nobody writes into."""
    return Replica(
        reading_copy(inputs.task.model),
        inputs.task.run,
        make_shards(inputs, search),
        inputs.divergence,
        inputs.task.loss,
        inputs.config.cluster.device,
        inputs.source,
    )


def worker_replica(inputs: Inputs, search: list[Batch], files: BlockFiles) -> Replica:
    """What each worker of a run holds: the whole model, or one block at a time.

    Args:
        inputs: the run's.
        search: the shards that trials are measured on.
        files: the run's, where workers hold one block at a time.
    """
    if inputs.chain is None:
        return make_replica(inputs, search)
    return make_block_replica(inputs, search, inputs.chain, files)


BLOCKS = "units/blocks"
"""Where the weights of each part and the hidden states are, below the run's folder, while it runs."""


def block_files(store: RunStore) -> BlockFiles:
    """What travels between workers that hold one block at a time."""
    return BlockFiles(store.storage.child(BLOCKS))


def make_block_replica(inputs: Inputs, search: list[Batch], chain: Chain, files: BlockFiles) -> BlockReplica:
    """What each worker holds where that is one block at a time; writes the weights that it reads.

    Args:
        inputs: the run's.
        search: the shards that trials are measured on.
        chain: the model's blocks.
        files: the run's.
    """
    files.write_weights(inputs.task.model)
    return BlockReplica(
        widened_model(without_weights(inputs.task.model)),
        inputs.task.run,
        make_shards(inputs, search),
        inputs.divergence,
        inputs.task.loss,
        inputs.config.cluster.device,
        chain=chain,
        files=files,
    )


def make_shards(inputs: Inputs, search: list[Batch]) -> dict[DataSet, list[Batch]]:
    """The data that each worker holds.

    Args:
        inputs: the run's.
        search: the shards that trials are measured on.
    """
    shards = {DataSet.CALIBRATION: inputs.samples.calibration, DataSet.SEARCH: search}
    if inputs.samples.traces:
        shards[DataSet.TRACES] = inputs.samples.traces
    if other := inputs.samples.other_than_calibration():
        shards[DataSet.RESPONSES] = other
    # A model in half precision is computed in float32.
    return shards if half_type(inputs.task.model) is None else widened_data(shards)


def search_shards(inputs: Inputs) -> tuple[list[Batch], bool]:
    """A random sample of the validation data for the search; whether its single samples are shuffled."""
    settings = inputs.config.search
    seed = derive_seed(inputs.config.seed, "search-samples")
    size = min(settings.shard_size, inputs.samples.largest_shard or settings.shard_size)
    return random_shards(inputs.samples.validation, settings.num_samples, size, seed)


def calibrate_ranges(inputs: Inputs, pool: Pool) -> RangeTable:
    """The calibration stage; `pool`'s workers hold the replica of `make_replica`."""
    num_shards = len(inputs.samples.calibration)
    return calibrate(inputs.setup, pool, num_shards, inputs.config.calibration)


def round_calibrated(inputs: Inputs, ranges: RangeTable, pool: Pool) -> RoundingTable:
    """The rounding stage.

    Args:
        inputs: the run's; its `rounding` says how.
        ranges: calibrated ranges.
        pool: its workers hold the replica of `make_replica`.
    """
    num_shards = len(inputs.samples.calibration)
    settings = inputs.config.rounding
    return round_weights(
        inputs.setup, ranges, pool, num_shards, settings, inputs.config.seed, chain=inputs.chain
    )


def make_ranges(inputs: Inputs, pool: Pool) -> RangeTable:
    """What `load_ranges` gives of a run with these inputs, without a run: calibrated, then rounded.

    Any assignment that is to be compared with a run's is measured with these, so that both are rounded alike.
    """
    ranges = calibrate_ranges(inputs, pool)
    if inputs.config.rounding.method == "nearest":
        return ranges
    return round_calibrated(inputs, ranges, pool).put_into(ranges)


def load_ranges(store: RunStore) -> RangeTable:
    """The ranges that a run's quantizers have: calibrated, with the codes and scales of rounded weights."""
    ranges = store.load(codecs.RANGES)
    if store.has(codecs.ROUNDING):
        return store.load(codecs.ROUNDING).put_into(ranges)
    return ranges


def load_deployed(store: RunStore) -> RangeTable:
    """The ranges of the model that a run deploys: those of `load_ranges`, refined for its winner."""
    ranges = load_ranges(store)
    if store.has(codecs.REFINEMENT):
        return store.load(codecs.REFINEMENT).put_into(ranges)
    return ranges


SEQUENTIAL = "sequential"
"""The candidate whose weights are rounded layer by layer."""


def refine_winner(
    inputs: Inputs,
    ranges: RangeTable,
    assignment: BitAssignment,
    part_pool: Callable[[str], Pool],
    num_search_shards: int,
) -> Refinement:
    """The refinement stage, with the sequential rounding that gives one of its candidates.

    Args:
        inputs: the run's; its `rounding` says what is tried.
        ranges: calibrated ranges with the codes of the rounding table.
        assignment: the winner of the search.
        part_pool: "sequential" or "candidates" → a pool whose workers hold the replica of `make_replica`.
        num_search_shards: how many shards `search_shards` gave.
    """
    settings = inputs.config.rounding
    num_shards = {DataSet.CALIBRATION: len(inputs.samples.calibration), DataSet.SEARCH: num_search_shards}
    winner = Winner(inputs.setup, ranges, assignment)
    candidates = [_candidate(inputs, Candidate(PLAIN), ranges, assignment)]
    if SEQUENTIAL in settings.refine:
        pool = part_pool(SEQUENTIAL)
        table = round_sequentially(
            winner, pool, num_shards[DataSet.CALIBRATION], settings, inputs.config.seed
        )
        rounded = Candidate(SEQUENTIAL, table.put_into(RangeTable({})).rounded)
        candidates.append(_candidate(inputs, rounded, ranges, assignment))
    return refine(winner, candidates, part_pool("candidates"), num_shards, settings, inputs.config.seed)


def _candidate(
    inputs: Inputs, candidate: Candidate, ranges: RangeTable, assignment: BitAssignment
) -> Candidate:
    """The candidate with the BatchNorm statistics that are adapted to it, where that is asked for."""
    norms = adapted_norms(inputs, candidate.put_into(ranges), assignment)
    return replace(candidate, floats={name: value.numpy() for name, value in norms.items()})


def has_own_responses(inputs: Inputs, store: RunStore) -> bool:
    """Whether responses are of other samples than rounding was fitted to.

    That is so where it is asked for, and where a weight reads fewer calibration vectors than it has inputs:
    whatever its codes are, they are then nearly free on those.
    """
    if inputs.samples.responses:
        return True
    is_rounded = inputs.config.rounding.method != "nearest"
    return is_rounded and bool(store.load(codecs.ROUNDING).fitted_to_few())


def make_objective(inputs: Inputs, ranges: RangeTable, pool: Pool, per_sample: bool) -> MeasuredObjective:
    """The measure of the search's trials.

    Args:
        inputs: the run's.
        ranges: calibrated ranges.
        pool: its workers hold the replica of `make_replica`.
        per_sample: whether single samples of the shards were shuffled, see `search_shards`.
    """
    objective = inputs.config.search.measured
    return MeasuredObjective(
        inputs.setup,
        ranges,
        pool,
        Judgement(objective, inputs.task.metrics.get(objective), per_sample),
        cache_bytes=inputs.cache_bytes,
        on_gpu=inputs.config.cluster.device == "cuda",
    )


def make_recipe(
    inputs: Inputs, ranges: RangeTable, assignment: BitAssignment, refinement: Refinement | None = None
) -> Recipe:
    """What a training worker needs.

    Args:
        inputs: the run's.
        ranges: calibrated ranges with the codes of the rounding table.
        assignment: group id → bit-width.
        refinement: what training starts from instead, where there is one.
    """
    if refinement is None:
        floats = adapted_norms(inputs, ranges, assignment)
    else:
        ranges = refinement.put_into(ranges)
        floats = {name: torch.from_numpy(value.copy()) for name, value in refinement.best.floats.items()}
    return recipe_from(inputs, ranges, assignment, floats)


def recipe_from(
    inputs: Inputs, ranges: RangeTable, assignment: BitAssignment, floats: Mapping[str, Tensor]
) -> Recipe:
    """A recipe of what is known already.

    Args:
        inputs: the run's.
        ranges: what quantizers start from.
        assignment: group id → bit-width.
        floats: parameter or buffer → what it starts from instead of the float model's.
    """
    return Recipe(
        model=private_copy(inputs.task.model),
        setup=inputs.setup,
        ranges=ranges,
        assignment=assignment,
        train=inputs.task.train,
        validation=inputs.samples.validation,
        forward=inputs.task.run,
        divergence=inputs.divergence,
        loss=inputs.task.loss,
        metrics=inputs.task.metrics,
        settings=inputs.config.training,
        seed=inputs.config.seed,
        deterministic=inputs.config.cluster.deterministic,
        floats=floats,
    )


def adapted_norms(inputs: Inputs, ranges: RangeTable, assignment: BitAssignment) -> dict[str, Tensor]:
    """BatchNorm statistics of the model quantized as assigned, before any training; {} where not asked for.

    A function of the run's inputs alone, so a run that goes on gets the same; statistics that training has
    moved since are in its checkpoints, which win.

    Args:
        inputs: the run's; its `calibration.batch_norm_samples` says how many samples are averaged.
        ranges: calibrated ranges.
        assignment: group id → bit-width.
    """
    count = inputs.config.calibration.batch_norm_samples
    if not count:
        return {}
    model = private_copy(inputs.task.model)
    create_controller(model, inputs.setup, ranges, assignment)
    return adapt_batch_norm(model, inputs.samples.calibration, inputs.task.run, count)


def strip_checkpoint(
    inputs: Inputs, ranges: RangeTable, assignment: BitAssignment, checkpoint: bytes
) -> nn.Module:
    """The stripped module of a saved training state.

    Args:
        inputs: the run's.
        ranges: calibrated ranges.
        assignment: what the model was trained with.
        checkpoint: the state as `save_checkpoint` was given it.

    Raises:
        StorageError: the state is damaged or belongs to another setup.
    """
    controller = create_controller(private_copy(inputs.task.model), inputs.setup, ranges, assignment)
    load_checkpoint(controller, checkpoint)
    return controller.strip_model()


TEST, STDERR = "test_", "_stderr"
"""Before the name of a model that was judged on test data; behind that of a table of standard errors."""


def validate(inputs: Inputs, model: nn.Module) -> dict[str, float]:
    """Metrics of a model on the validation shards, compared with the float model."""
    return judge(inputs, model, inputs.samples.validation).values


def evaluate_both(inputs: Inputs, stripped: nn.Module) -> dict[str, dict[str, float]]:
    """Metrics of the float and of the stripped model, with their standard errors, and those on test data.

    Returns:
        "float" and "quantized", and "test_float" and "test_quantized" where there are test data: metric →
        value; and each with "_stderr" behind it.
    """
    metrics: dict[str, dict[str, float]] = {}
    for prefix, batches in (("", inputs.samples.validation), (TEST, inputs.samples.test)):
        if not batches:
            continue
        for name, model in (("float", inputs.task.model), ("quantized", stripped)):
            evaluation = judge(inputs, model, batches)
            metrics[f"{prefix}{name}"] = evaluation.values
            metrics[f"{prefix}{name}{STDERR}"] = evaluation.errors
    return metrics


def judge(inputs: Inputs, model: nn.Module, batches: list[Batch]) -> Evaluation:
    """Metrics of a model on some batches, compared with the float model."""
    task = inputs.task
    measures = Measures(task.run, inputs.divergence, task.model, task.loss, task.metrics)
    return evaluate_model(model, batches, measures)


def export(
    inputs: Inputs,
    stripped: nn.Module,
    assignment: BitAssignment,
    folder: Path,
    run_id: str = "",
    graphs: dict[str, Any] | None = None,
) -> ExportManifest:
    """The export stage on a local folder, verified on validation shards.

    Args:
        inputs: the run's.
        stripped: the model to export.
        assignment: its widths.
        folder: where the files go.
        run_id: named in the model's configuration with the budget; "" for neither.
        graphs: what the preflight captured; see `ExportJob`.

    Raises:
        ExportError: a target could not be written or verified.
    """
    source = None
    if run_id:
        source = {"run_id": run_id, "budget": [budget.text for budget in inputs.budgets]}
    model = StrippedModel(stripped, inputs.setup, assignment, inputs.task.example_inputs, inputs.open_dims)
    return export_model(
        model,
        folder,
        inputs.config.export,
        batches=inputs.samples.validation,
        forward=inputs.task.run,
        source=source,
        graphs=graphs,
    )
