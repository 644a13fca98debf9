"""Scales in half precision: storable before codes are chosen, so nothing is rounded on the way to a file."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import raysearch
from raysearch.artifacts import codecs, resolve_run
from raysearch.controller import create_controller, stripped_weights
from raysearch.errors import ExportError
from raysearch.export.export import export_model
from raysearch.export.stripped_model import StrippedModel
from raysearch.export.targets.packed import write_packed
from raysearch.placement import place_quantizers
from raysearch.quantizer import storable
from raysearch.records import QuantizerSetup, packed_bytes
from raysearch.records.refinement import PLAIN, Candidate
from raysearch.records.winner import Winner
from raysearch.refinement.tunable_model import TunableModel
from tests.support.command_line import QUICK
from tests.support.toy_task import make_untrained_task

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SETTINGS = [
    *QUICK,
    'placement.weight_schemes=["3g16", "3g16a", "4", "8"]',
    'rounding.refine=["sequential", "tune"]',
    "rounding.refine_steps=4",
    "training.epochs=0",
    'export.targets=["packed", "onnx"]',
]


# One of them: what is storable in the other is tested in tests/quantizer/test_scale_formats.py.
@pytest.fixture(scope="module", params=["bfloat16"])
def finished(request, tmp_path_factory):
    """The name of the format, and a run whose scales are stored in it."""
    config = raysearch.load_config(assignments=[*SETTINGS, f"placement.scale_dtype={request.param}"])
    storage = tmp_path_factory.mktemp("stored")
    raysearch.run(make_untrained_task(), "bpw<=12", storage, config=config, run_id="run", workers=0)
    return request.param, resolve_run("run", storage)


def is_storable(scale, scale_format):
    values = torch.from_numpy(np.array(scale, np.float32))
    return torch.equal(values, storable(values, scale_format)) and torch.equal(
        values, values.to(DTYPES[scale_format]).float()
    )


def test_every_table_of_a_run_holds_storable_scales_of_weights(finished):
    scale_format, store = finished
    weights = store.load(codecs.SETUP).of_kind("weight")
    ranges = store.load(codecs.RANGES)
    for table in (ranges.ranges, store.load(codecs.ROUNDING).weights):
        scales = [value.scale for (name, _), value in table.items() if name in weights]
        assert scales
        assert all(is_storable(scale, scale_format) for scale in scales)
    activations = [value.scale for (name, _), value in ranges.ranges.items() if name not in weights]
    assert not all(is_storable(scale, scale_format) for scale in activations)


def test_the_file_holds_scales_in_their_format_and_is_of_the_size_that_was_predicted(finished):
    scale_format, store = finished
    folder = store.storage.local_path("model")
    stored = load_file(folder / "model.safetensors")
    loaded = dict(raysearch.load_model(folder).tensors.named_buffers())
    for name in store.load(codecs.SETUP).of_kind("weight"):
        assert stored[f"{name}.scale"].dtype == DTYPES[scale_format]
        assert torch.equal(stored[f"{name}.scale"].float(), loaded[f"{name}.scale"].reshape(-1))
    size = (folder / "model.safetensors").stat().st_size
    assert size <= store.load(codecs.SEARCH).best.costs["size"] <= size + 64


def test_learned_scales_are_stripped_as_they_were_in_force(finished, tmp_path):
    scale_format, store = finished
    setup, ranges = store.load(codecs.SETUP), store.load(codecs.RANGES)
    assignment = store.load(codecs.SEARCH).best.assignment
    task = make_untrained_task()
    controller = create_controller(copy.deepcopy(task.model), setup, ranges, assignment)
    name = next(iter(setup.of_kind("weight")))
    quantizer = controller.weight_quantizers[name].quantizer
    with torch.no_grad():
        quantizer.scale.mul_(1.0123)
    in_force = quantizer.effective_scale()
    assert is_storable(in_force.detach().numpy(), scale_format)
    assert not torch.equal(in_force, quantizer.scale)
    (gradient,) = torch.autograd.grad(in_force.sum(), quantizer.scale)
    assert torch.equal(gradient, torch.ones_like(gradient))
    module = controller.strip_model()
    assert torch.equal(stripped_weights(module, setup)[name].scale, in_force.detach())
    write_packed(module, setup, task.example_inputs, tmp_path)
    restored = raysearch.load_model(tmp_path, factory=lambda: make_untrained_task().model)
    with torch.no_grad():
        inputs = task.example_inputs
        assert torch.equal(restored(*inputs), module(*inputs))
        assert torch.equal(raysearch.load_model(tmp_path)(*inputs), module(*inputs))


def test_a_setup_tells_its_formats_and_one_without_is_written_as_ever(finished):
    scale_format, store = finished
    setup = store.load(codecs.SETUP)
    assert f'"scale_format": "{scale_format}"' in setup.to_json()
    task = make_untrained_task()
    assert QuantizerSetup.from_json(setup.to_json()).points == setup.points
    plain = place_quantizers(task.model, task.example_inputs)
    assert "scale_format" not in plain.to_json()
    point, half = plain.points["head.weight"], setup.points["head.weight"]
    assert packed_bytes(point, 4) - packed_bytes(half, 4) == 2 * point.num_scales


def test_a_setup_of_another_format_is_refused_at_export(finished, tmp_path):
    _, store = finished
    setup, ranges = store.load(codecs.SETUP), store.load(codecs.RANGES)
    assignment = store.load(codecs.SEARCH).best.assignment
    task = make_untrained_task()
    module = create_controller(copy.deepcopy(task.model), setup, ranges, assignment).strip_model()
    points = {name: replace(point, scale_format="float32") for name, point in setup.points.items()}
    model = StrippedModel(module, replace(setup, points=points), assignment, task.example_inputs)
    with pytest.raises(ExportError, match=r"scales of 'conv\.weight'.*float32 in the setup"):
        export_model(model, tmp_path)


def test_scales_that_learn_beside_codes_are_storable_after_every_step(finished):
    """Refinement tunes scales while codes stand still: what it hands on is what will be stored."""
    scale_format, store = finished
    setup = store.load(codecs.SETUP)
    ranges = store.load(codecs.ROUNDING).put_into(store.load(codecs.RANGES))
    winner = Winner(setup, ranges, store.load(codecs.SEARCH).best.assignment)
    model = TunableModel(make_untrained_task().model, winner, Candidate(PLAIN))
    with torch.no_grad():
        for parameter in model.learned:
            parameter.mul_(1.0123)
    weights = setup.of_kind("weight")
    tuned = {name: value for (name, _), value in model.candidate("tuned").ranges.items() if name in weights}
    assert tuned
    assert all(is_storable(value.scale, scale_format) for value in tuned.values())
