"""Runs whose workers hold one block at a time: the same results, to the last bit."""

from dataclasses import replace
from itertools import count

import pytest
import torch

from raysearch.artifacts import RunStore, Storage, codecs
from raysearch.blockwise import BlockFiles, StoredRanges, pass_blocks
from raysearch.cluster.pool import LocalPool
from raysearch.cluster.shipping import dumps, loads
from raysearch.config import load_config
from raysearch.determinism import pinned_threads
from raysearch.errors import ConfigError, StorageError
from raysearch.evaluation import DataSet, WorkerCache
from raysearch.huggingface import causal_lm_task
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.pipeline import Pipeline
from raysearch.pipeline.progress import Progress
from raysearch.pipeline.stages import (
    calibrate_ranges,
    make_block_replica,
    make_objective,
    make_replica,
    round_calibrated,
    search_shards,
)
from raysearch.pipeline.workers import worker_bytes
from raysearch.records import BitAssignment
from raysearch.sensitivity import measure_sensitivity
from tests.support.model_directories import LITTLE, save_llama, words

pytest.importorskip("transformers")

BUDGET = "avg_bits<=6"
SETTINGS = {
    **LITTLE,
    "search": {"num_trials": 2, "num_samples": 4, "shard_size": 2},
    "calibration": {"num_samples": 6, "shard_size": 2},
    "rounding": {"refine": (), "unit_shards": 2},
    "sensitivity": {"estimator": "none", "option_chunk": 5},
    "placement": {"weight_bit_widths": (4, 8)},
    "cluster": {"replica": "block"},
}
PLACED = {**SETTINGS, "placement": {**SETTINGS["placement"], "activation_bit_widths": ()}}


class TwoWorkers:
    """Hands units to two workers in turns, each with a replica of its own, as shipped."""

    def __init__(self, replica):
        self._pools = [LocalPool(loads(dumps(replica))) for _ in range(2)]
        self.num_units = 0

    def run(self, function, units, shared=()):
        shared = loads(dumps(shared))
        for turn, (key, arguments) in zip(count(), units.items(), strict=False):
            self.num_units += 1
            yield from self._pools[turn % 2].run(function, {key: arguments}, shared)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Tied, so that the embedding acts before the blocks and behind them."""
    folder = tmp_path_factory.mktemp("blocks")
    return save_llama(folder, num_hidden_layers=2, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def inputs(directory):
    task = causal_lm_task(directory, words(300), window=11)
    return check_inputs(task, load_config(overrides=PLACED), [BUDGET])


def measured(inputs, pool, files=None):
    """Everything that the stages give, as bytes; with files, block by block."""
    num_shards = {DataSet.CALIBRATION: len(inputs.samples.calibration)}
    shards, per_sample = search_shards(inputs)
    settings = inputs.config.sensitivity
    with pinned_threads(1):
        ranges = calibrate_ranges(inputs, pool)
        if files is not None:
            pass_blocks(pool, inputs.chain, files, DataSet.CALIBRATION, num_shards[DataSet.CALIBRATION])
            pass_blocks(pool, inputs.chain, files, DataSet.SEARCH, len(shards))
        rounding = round_calibrated(inputs, ranges, pool)
        ranges = rounding.put_into(ranges)
        if files is not None:
            ranges = StoredRanges.store(ranges, inputs.chain, files)
        table = measure_sensitivity(inputs.setup, ranges, lambda part: pool, num_shards, settings)
        objective = make_objective(inputs, ranges, pool, per_sample)
        values = objective({0: BitAssignment.uniform(inputs.setup, 4)}, range(len(shards)))
    return (
        ranges.digest(),
        rounding.to_bytes(),
        table.gram.tobytes(),
        list(table.effects.values()),
        [values[0][shard][0].tolist() for shard in range(len(shards))],
    )


@pytest.fixture(scope="module")
def expected(inputs):
    """What whole replicas give, in this process."""
    shards, _ = search_shards(inputs)
    inputs = replace(inputs, chain=None)
    return measured(inputs, LocalPool(make_replica(inputs, shards).place()))


def block_pool(inputs, files, make_pool):
    shards, _ = search_shards(inputs)
    return make_pool(make_block_replica(inputs, shards, inputs.chain, files).place())


@pytest.mark.slow
def test_block_by_block_every_record_has_the_same_bits(inputs, expected, tmp_path):
    files = BlockFiles(Storage(tmp_path))
    assert repr(measured(inputs, block_pool(inputs, files, TwoWorkers), files)) == repr(expected)


def test_a_worker_holds_one_part_and_hidden_states_that_are_there_stay(inputs, tmp_path):
    files = BlockFiles(Storage(tmp_path))
    pool = block_pool(inputs, files, TwoWorkers)
    pass_blocks(pool, inputs.chain, files, DataSet.CALIBRATION, 2)
    assert pool.num_units == 2 * 3
    (tmp_path / "states" / "calibration" / "1" / "2.safetensors").unlink()
    pass_blocks(pool, inputs.chain, files, DataSet.CALIBRATION, 3)
    assert pool.num_units == 2 * 3 + 1 + 3
    replica = make_block_replica(inputs, [], inputs.chain, files)
    replica.place()
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        part = replica.chain.part_of(name)
        replica.use(part)
        assert torch.equal(replica.weight(name), inputs.task.model.get_parameter(name))
        with_values = {key for key, weight in replica.model.named_parameters() if not weight.is_meta}
        assert {replica.chain.part_of(key) for key in with_values} == {part}
    assert worker_bytes(inputs) < worker_bytes(replace(inputs, chain=None))
    files = BlockFiles(Storage(tmp_path / "elsewhere"))
    with pytest.raises(StorageError, match=r"does not exist.*a folder that all of them share"):
        replace(replica, files=files, cache=WorkerCache()).weight(name)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_what_is_there(inputs, expected, tmp_path):
    store = RunStore(tmp_path, "run")

    def run_until(stage, num_units=0):
        def stop(status):
            if status.stage == stage and status.done >= num_units:
                raise KeyboardInterrupt

        progress = Progress(store, stop)
        with pytest.raises(KeyboardInterrupt):
            Pipeline(inputs, store, progress, lambda r, _: LocalPool(r.place()), on_ray=False).run()

    blocks = tmp_path / "run" / "units" / "blocks"
    run_until("sensitivity-responses", 3)
    state = blocks / "states" / "calibration" / "0" / "1.safetensors"
    written = state.stat().st_mtime_ns
    run_until("search", 1)
    assert state.stat().st_mtime_ns == written
    run_until("training")
    assert not blocks.exists()
    assert store.load(codecs.ROUNDING).to_bytes() == expected[1]
    assert store.load(codecs.SENSITIVITY).gram.tobytes() == expected[2]
    assert store.has(codecs.SEARCH)


def test_what_needs_the_whole_model_is_refused_at_once(inputs):
    settings = {"cluster": {"replica": "block"}, "rounding": {"guided": True}}
    task = replace(inputs.task, train=inputs.task.calibration)
    with pytest.raises(ConfigError) as caught:
        check_inputs(task, load_config(overrides=settings), [BUDGET])
    for setting in (
        "placement.activation_bit_widths=[]", "sensitivity.estimator='none'", "rounding.guided=false",
        "rounding.refine=[]", "training.epochs=0",
    ):  # fmt: skip
        assert setting in str(caught.value)
