"""On a GPU: what the CPU gives, within stated tolerances, and the same bits each time."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

import raysearch
from raysearch.cluster.pool import LocalPool
from raysearch.cluster.ray_pool import RayPool
from raysearch.config import ClusterConfig, SensitivityConfig
from raysearch.config.rounding import RoundingConfig
from raysearch.evaluation.forward import frozen_eval
from raysearch.rounding import round_weights
from raysearch.sensitivity.responses import measure_responses
from raysearch.sensitivity.traces import measure_traces
from raysearch.training import fine_tune
from raysearch.training.context import ProcessContext
from tests.support import model_zoo, toy_task
from tests.support.command_line import QUICK
from tests.support.patience import started_ray
from tests.support.small_replicas import make_ranges, make_replica, make_setup
from tests.support.training_recipes import make_recipe, trained

pytestmark = pytest.mark.gpu

NETS = ("conv", "attention", "embedding", "tied")
SETTINGS = raysearch.load_config(assignments=[*QUICK, 'export.targets=["packed"]'])


def parts(name):
    """A replica on the CPU, the same on the GPU, and their setup."""
    replica = make_replica(name)
    setup = make_setup(name, replica)
    on_gpu = copy.deepcopy(replica)
    on_gpu.device = "cuda"
    return replica, on_gpu.place(), setup


def count_of(replica):
    return len(replica.shards["calibration"])


def traces(setup, replica, estimator="ggn", pool=None):
    settings = SensitivityConfig(estimator=estimator, max_draws=4)
    measured = measure_traces(setup, pool or LocalPool(replica), count_of(replica), settings)
    return np.array([trace.value for trace in measured.values()])


def responses(setup, ranges, replica, pool=None):
    settings = SensitivityConfig(option_chunk=4)
    return measure_responses(setup, ranges, pool or LocalPool(replica), count_of(replica), settings)


def rounding(setup, ranges, replica, pool=None):
    return round_weights(setup, ranges, pool or LocalPool(replica), count_of(replica), RoundingConfig())


@pytest.mark.parametrize("name", NETS)
def test_scales_are_those_of_the_cpu(name):
    cpu, gpu, setup = parts(name)
    expected, actual = make_ranges(setup, cpu), make_ranges(setup, gpu)
    for key, value in expected.ranges.items():
        # Of clips that tie either may win.
        assert actual[key].scale == pytest.approx(value.scale, rel=0.2), key
    differences = [np.abs(actual[key].scale / value.scale - 1) for key, value in expected.ranges.items()]
    assert np.median(np.concatenate(differences)) < 1e-5


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("estimator", ["ggn", "ggn-exact", "hutchinson", "fisher"])
def test_traces_are_those_of_the_cpu(name, estimator):
    cpu, gpu, setup = parts(name)
    expected = traces(setup, cpu, estimator)
    assert traces(setup, gpu, estimator) == pytest.approx(expected, rel=1e-2, abs=1e-3 * expected.max())


@pytest.mark.parametrize("name", NETS)
def test_responses_are_those_of_the_cpu(name):
    cpu, gpu, setup = parts(name)
    ranges = make_ranges(setup, cpu)
    one, other = responses(setup, ranges, cpu), responses(setup, ranges, gpu)
    assert np.linalg.norm(other.gram - one.gram) < 1e-2 * np.linalg.norm(one.gram)
    assert other.divergence == pytest.approx(one.divergence, rel=2e-2, abs=1e-3 * one.divergence.max())


@pytest.mark.parametrize("name", NETS)
def test_rounding_is_that_of_the_cpu(name):
    cpu, gpu, setup = parts(name)
    ranges = make_ranges(setup, cpu)
    one, other = rounding(setup, ranges, cpu), rounding(setup, ranges, gpu)
    equal = sum(int((one[key].codes == other[key].codes).sum()) for key in one)
    assert equal >= 0.99 * sum(one[key].codes.size for key in one)
    for key in one:
        assert other[key].error == pytest.approx(one[key].error, rel=1e-3, abs=1e-9), key


@pytest.mark.parametrize("name", NETS)
def test_the_same_seed_twice_gives_the_same_bits(name):
    _, gpu, setup = parts(name)
    answers = []
    for _ in range(2):
        ranges = make_ranges(setup, gpu)
        measured = responses(setup, ranges, gpu)
        table = rounding(setup, ranges, gpu)
        answers.append(
            (
                ranges.to_bytes(),
                measured.gram.tobytes(),
                traces(setup, gpu).tobytes(),
                traces(setup, gpu, "hutchinson").tobytes(),
                table.to_bytes(),
            )
        )
    assert answers[0] == answers[1]


@pytest.mark.ray
def test_one_and_two_actors_on_one_gpu_give_the_same_bits():
    cpu, _, setup = parts("conv")
    cpu.device = "cuda"
    ranges = make_ranges(setup, copy.deepcopy(cpu).place())
    answers = []
    with started_ray("local", 2):
        for count in (1, 2):
            pool = RayPool(cpu, ClusterConfig(workers=count, device="cuda", gpus_per_worker=0.5))
            measured = responses(setup, ranges, cpu, pool)
            table = rounding(setup, ranges, cpu, pool)
            answers.append(
                (measured.gram.tobytes(), traces(setup, cpu, pool=pool).tobytes(), table.to_bytes())
            )
            pool.close()
    assert answers[0] == answers[1]


def test_a_step_of_training_moves_the_model_on_the_gpu():
    recipe = make_recipe(epochs=1)
    context = ProcessContext(True)
    assert context.device.type == "cuda"
    after = trained(recipe, context).model
    controller = recipe.build()
    start = copy.deepcopy(controller.model.state_dict())
    controller.model.load_state_dict(after.state_dict())
    moved = [
        name for name, value in controller.model.state_dict().items() if not torch.equal(value, start[name])
    ]
    assert {"head.bias", "first.bias"} <= set(moved)


def test_training_twice_gives_the_same_bits():
    saved = []
    for _ in range(2):
        recipe = make_recipe(epochs=2, use_gpu=True)
        fine_tune(recipe, lambda name, data: saved.append(data), on_ray=False)
    assert saved[0] == saved[1]


def test_generators_of_the_gpu_are_put_back():
    model = torch.nn.Linear(2, 2, device="cuda")
    before = torch.cuda.get_rng_state()
    with frozen_eval(model):
        torch.rand(3, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:the float model's outputs are at chance level")
def test_create_compressed_model_works_where_the_model_is():
    model = model_zoo.build("digits").cuda()
    inputs = model_zoo.inputs("digits")
    controller, model = raysearch.create_compressed_model(model, raysearch.Config(), inputs, data=[inputs[0]])
    assert {quantizer.device.type for quantizer in controller.all_quantizations.values()} == {"cuda"}
    outputs = model(inputs[0].cuda())
    assert outputs.device.type == "cuda"
    controller.init_precision("search", {"budget": "avg_bits<=4", "num_trials": 4})
    assert torch.isfinite(model(inputs[0].cuda())).all()


def test_a_task_whose_model_is_on_the_gpu_runs_with_batches_of_the_cpu(tmp_path):
    task = toy_task.make_task()
    task.model.cuda()
    raysearch.run(task, "avg_bits<=4", tmp_path, config=SETTINGS, run_id="gpu", workers=0)
    config = json.loads((tmp_path / "gpu" / "run.json").read_text())["config"]
    assert (config["cluster"]["device"], config["training"]["use_gpu"]) == ("cuda", True)
    assert next(task.model.parameters()).device.type == "cuda", "the user's model stays where it is"
    images, _ = toy_task.data(4, 5).tensors
    assert torch.isfinite(raysearch.load_model(tmp_path / "gpu" / "model")(images)).all()
