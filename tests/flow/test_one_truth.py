"""The codes of the rounding table are what every stage measures, trains from and deploys."""

import copy
from contextlib import closing

import numpy as np
import pytest
import torch

import raysearch
from raysearch.artifacts import codecs, resolve_run
from raysearch.cluster.pool import LocalPool
from raysearch.controller import create_controller, stripped_weights
from raysearch.evaluation import DataSet
from raysearch.hooks import float_weight
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.stages import (
    load_ranges,
    make_objective,
    make_ranges,
    make_recipe,
    make_replica,
    search_shards,
)
from raysearch.simulation import DeployedWeights
from tests.support.command_line import QUICK
from tests.support.toy_task import make_untrained_task

SETTINGS = [*QUICK, 'export.targets=["packed"]']
CONFIG = raysearch.load_config(assignments=[*SETTINGS, "rounding.refine=[]"])
BUDGET = "avg_bits<=3.5"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run without training: its store, its inputs and its assignment."""
    storage = tmp_path_factory.mktemp("truth")
    raysearch.run(make_untrained_task(), BUDGET, storage, config=CONFIG, run_id="run", workers=0)
    store = resolve_run("run", storage)
    inputs = check_inputs(make_untrained_task(), CONFIG, [BUDGET])
    return store, inputs, store.load(codecs.SEARCH).best.assignment


@pytest.fixture(scope="module")
def rounded(finished):
    """Weight → its table entry at the chosen width."""
    store, inputs, assignment = finished
    table = store.load(codecs.ROUNDING)
    widths = assignment.per_point(inputs.setup)
    return {name: table[name, widths[name]] for name in inputs.setup.of_kind("weight")}


def test_the_codes_differ_from_the_nearest_ones(finished, rounded):
    """Else the other tests of this file would hold for nearest rounding as well."""
    store, inputs, assignment = finished
    nearest = create_controller(
        copy.deepcopy(inputs.task.model), inputs.setup, store.load(codecs.RANGES), assignment
    )
    weights = stripped_weights(nearest.strip_model(), inputs.setup)
    assert any(not np.array_equal(weights[name].codes.numpy(), rounded[name].codes) for name in rounded)


def test_the_exported_file_holds_the_codes(finished, rounded):
    store, _, _ = finished
    buffers = dict(raysearch.load_model(store.storage.local_path("model")).tensors.named_buffers())
    for name, weight in rounded.items():
        assert np.array_equal(buffers[f"{name}.codes"].numpy(), weight.codes)


def test_training_starts_from_weights_that_are_rounded_to_the_codes(finished, rounded):
    store, inputs, assignment = finished
    controller = make_recipe(inputs, load_ranges(store), assignment).build()
    floats = {name: inputs.task.model.get_parameter(name).detach() for name in rounded}
    moved = []
    for name, weight in rounded.items():
        part = controller.weight_quantizers[name]
        latent = float_weight(controller.model, part.sites[0]).detach()
        assert np.array_equal(part.quantizer.codes(latent).numpy(), weight.codes)
        assert np.array_equal(part.quantizer(latent).detach().numpy(), weight.values())
        # A weight that lies well within the cell of its code stays as it is.
        scale = part.quantizer.effective_scale().detach()
        steps = floats[name] / scale - torch.from_numpy(weight.codes.copy())
        stays = steps.abs() < 0.48
        assert torch.equal(latent[stays], floats[name][stays])
        moved.append(not torch.equal(latent, floats[name]))
    assert any(moved)


def test_measurements_take_the_codes_and_the_perturbation_of_hawq_the_nearest_ones(finished, rounded):
    store, inputs, assignment = finished
    ranges = load_ranges(store)
    floats = {name: inputs.task.model.get_parameter(name).detach() for name in rounded}
    deployed = DeployedWeights(floats, inputs.setup, ranges)
    effects = store.load(codecs.SENSITIVITY).effects
    widths = assignment.per_point(inputs.setup)
    for name, weight in rounded.items():
        bits = widths[name]
        assert np.array_equal(deployed.make(name, bits).detach().numpy(), weight.values())
        nearest = DeployedWeights(floats, inputs.setup, ranges.calibrated).make(name, bits)
        error = float((nearest - floats[name]).detach().double().square().sum())
        group = inputs.setup.group_of(name)
        if len(group.points) == 1:
            assert effects[group.id, bits].perturbation == error


def test_a_measured_trial_is_the_exported_model_to_the_last_bit(finished):
    store, inputs, assignment = finished
    shards, per_sample = search_shards(inputs)
    replica = make_replica(inputs, shards)
    with closing(LocalPool(replica.place())) as pool:
        objective = make_objective(inputs, load_ranges(store), pool, per_sample)
        measured = objective({0: assignment}, range(len(shards)))[0]
    loaded = raysearch.load_model(store.storage.local_path("model"))
    for index, batch in enumerate(shards):
        with torch.no_grad():
            outputs = loaded(batch[0])
        reference = replica.float_outputs(DataSet.SEARCH, index)
        values = inputs.divergence.per_sample(outputs, reference).numpy()
        assert np.array_equal(measured[index][0], values)


def test_what_is_compared_with_a_run_takes_the_same_codes(finished):
    store, inputs, _ = finished
    saved = raysearch.load_run(store.storage.local_path()).ranges()
    assert saved.rounded
    assert saved.digest() == load_ranges(store).digest()
    with closing(LocalPool(make_replica(inputs, []).place())) as pool:
        assert make_ranges(inputs, pool).digest() == saved.digest()


@pytest.mark.slow
def test_a_refined_run_deploys_what_was_judged_to_the_last_bit(tmp_path):
    config = raysearch.load_config(assignments=[*SETTINGS, "rounding.refine_steps=8"])
    result = raysearch.run(make_untrained_task(), BUDGET, tmp_path, config=config, run_id="run", workers=0)
    store = resolve_run("run", tmp_path)
    refinement = store.load(codecs.REFINEMENT)
    assert list(refinement.divergences)[:2] == ["plain", "sequential"]
    assert len(refinement.divergences) == 3
    assert refinement.best.name != "plain"
    assert refinement.describe() in result.notes
    inputs = check_inputs(make_untrained_task(), config, [BUDGET])
    shards, _ = search_shards(inputs)
    replica = make_replica(inputs, shards).place()
    loaded = raysearch.load_model(store.storage.local_path("model"))
    values = []
    for index, batch in enumerate(shards):
        with torch.no_grad():
            outputs = loaded(batch[0])
        reference = replica.float_outputs(DataSet.SEARCH, index)
        values.append(inputs.divergence.per_sample(outputs, reference).numpy())
    assert float(np.concatenate(values).mean()) == refinement.divergences[refinement.best.name]
    buffers = dict(loaded.tensors.named_buffers())
    for (name, _), value in refinement.best.ranges.items():
        if value.codes is not None:
            assert np.array_equal(buffers[f"{name}.codes"].numpy(), value.codes)
