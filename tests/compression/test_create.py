"""create_compressed_model from NNCF's configuration and from ours; init_precision and init_range on data."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch

import raysearch
from raysearch.calibration import adapt_batch_norm, apply_batch_norm
from raysearch.compression.create import export_compressed_model
from raysearch.compression.nncf_config import read_nncf_config, to_scope
from raysearch.config import load_config
from raysearch.controller import PRECISION_KEYS
from raysearch.errors import BudgetError, ConfigError, ExportError, PlacementError, StorageError
from raysearch.evaluation import materialise
from raysearch.records import compression_ratio
from tests.support import model_zoo
from tests.support.quantized_models import run

PAGE = Path(__file__).parents[2] / "docs" / "from-nncf.md"
INFO = {"input_info": {"sample_size": [2, 1, 8, 8]}}
DATA = [model_zoo.inputs("digits", n)[0] for n in (8, 9)]
RANGE = {"range": {"num_init_samples": 16, "type": "min_max"}}


def config(device="TRIAL", **section):
    section = {"algorithm": "quantization", "initializer": RANGE, **section}
    return {**INFO, "target_device": device, "compression": section}


def build(settings, **options):
    return raysearch.create_compressed_model(model_zoo.build("digits"), settings, data=DATA, **options)


def test_the_default_is_eight_bits_and_strips_to_the_same_values(tmp_path):
    path = tmp_path / "nncf.json"
    path.write_text(json.dumps(config("ANY")))
    controller, model = build(path)
    assert set(controller.assignment.bits.values()) == {8}
    assert controller.compression_rate == pytest.approx(1)
    expected = run(model.eval(), model_zoo.inputs("digits"))
    assert torch.equal(run(controller.strip_model(do_copy=True), model_zoo.inputs("digits")), expected)


@pytest.mark.filterwarnings("ignore:the float model's outputs are at chance level")
def test_hawq_keeps_the_ratio_and_leaves_the_controller_alone():
    controller, model = build(config(weights={"bits": 8}, activations={"bits": 8}))
    hawq = {**config(initializer={**RANGE, "precision": {"type": "hawq", "compression_ratio": 1.5}})}
    chosen, _ = build(hawq)
    assert compression_ratio(chosen.setup, chosen.assignment) >= 1.5
    before = run(model.eval(), model_zoo.inputs("digits"))
    strict = {
        "compression_ratio": 2,
        "bitwidth_assignment_mode": "strict",
        "iter_number": 2,
        "relative_error": 1000,
    }
    found = chosen.init_precision("hawq", strict)
    again = chosen.init_precision("hawq", strict)
    assert found == again
    assert compression_ratio(chosen.setup, found) >= 2
    with pytest.raises(BudgetError, match="compression ratio 9"):
        chosen.init_precision("hawq", {"compression_ratio": 9})
    found = chosen.init_precision(
        "search", {"budget": "avg_bits<=4", "num_trials": 4, "relative_error": 1000}
    )
    chosen.apply(found)
    assert chosen.statistics()["costs"]["avg_bits"] <= 4
    assert torch.equal(run(model, model_zoo.inputs("digits")), before)
    assert set(controller.assignment.bits.values()) == {8}


@pytest.mark.filterwarnings("ignore:the float model's outputs are at chance level")
def test_every_documented_key_of_a_precision_request_is_read():
    widths = {"weight_bit_widths": [2, 4, 8], "activation_bit_widths": [4, 8]}
    settings = load_config(overrides={"placement": widths})
    controller, _ = build(settings, example_inputs=model_zoo.inputs("digits"))
    search = {
        "bits": [2, 4, 8], "budget": ["avg_bits<=4"], "num_trials": 3, "batch_size": 2,
        "surrogate": "hawq", "sampler": "random", "num_data_points": 8, "estimator": "hutchinson",
        "relative_error": 1000, "max_draws": 2, "trace_loss": "divergence", "racing_error": 0.2, "seed": 1,
    }  # fmt: skip
    assert set(search) == set(PRECISION_KEYS["search"]) == documented_keys("search")
    controller.apply(controller.init_precision("search", search))
    assert controller.statistics()["costs"]["avg_bits"] <= 4
    with pytest.raises(ConfigError, match=r"the params of search: racing_error is 2: .*less than 1"):
        controller.init_precision("search", {"budget": "avg_bits<=4", "racing_error": 2})
    with pytest.raises(ConfigError, match="needs the key 'budget'"):
        controller.init_precision("search")
    hawq = {
        "bits": [2, 4, 8], "compression_ratio": 2, "bitwidth_assignment_mode": "liberal",
        "num_data_points": 8, "iter_number": 1, "relative_error": 1000, "estimator": "hutchinson",
        "traces": dict.fromkeys(controller.setup.of_kind("weight"), 1), "trace_loss": "divergence", "seed": 1,
    }  # fmt: skip
    assert set(hawq) == set(PRECISION_KEYS["hawq"]) == documented_keys("hawq")
    assert compression_ratio(controller.setup, controller.init_precision("hawq", hawq)) >= 2
    assert set(PRECISION_KEYS["manual"]) == documented_keys("manual")


def documented_keys(kind):
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{kind}` |"))
    keys = row.split("|")[2]
    return set(re.findall(r"`([a-z_]+)`", keys))


def test_init_range_follows_the_weights_and_leaves_flags_alone():
    controller, model = build(config())
    quantizer = controller.all_quantizations["stem.weight"]
    quantizer.scale.requires_grad_(False)
    controller.disable_activation_quantization()
    before = quantizer.scale.detach().clone()
    with torch.no_grad():
        model.stem.parametrizations.weight.original.mul_(2)
    report = controller.init_range()
    assert report.loaded == report.kept == ()
    torch.testing.assert_close(quantizer.scale.detach(), 2 * before)
    assert not quantizer.scale.requires_grad
    assert not controller.all_quantizations["stem.input"].enabled
    controller.load_state(controller.get_compression_state())
    assert controller.init_range().initialised == ()
    assert controller.init_range(force=True).loaded == ()


def test_a_state_builds_the_same_controller_without_data():
    controller, model = build(config(weights={"bits": 4}))
    state, values = controller.get_compression_state(), copy.deepcopy(model.state_dict())
    settings = config(weights={"bits": 4})
    other, fresh = raysearch.create_compressed_model(
        model_zoo.build("digits"), settings, compression_state=state
    )
    fresh.load_state_dict(values)
    example = model_zoo.inputs("digits")
    assert torch.equal(run(fresh.eval(), example), run(model.eval(), example))
    assert other.assignment == controller.assignment
    wave = {**settings, "input_info": {"sample_size": [2, 2, 10]}}
    with pytest.raises(StorageError, match=r"quantizer '"):
        raysearch.create_compressed_model(model_zoo.build("wave"), wave, compression_state=state)


def test_our_own_configuration():
    settings = load_config(overrides={"placement": {"weight_bit_widths": [2, 4], "pins": {"head": 4}}})
    controller, _ = build(settings, example_inputs=model_zoo.inputs("digits"))
    assert controller.setup.groups["head.weight"].bit_widths == (4,)
    assert controller.assignment.bits["stem.weight"] == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"target_devise": "ANY"}, "nearest known one is 'target_device'"),
        (config(ignored_scope=[]), "nearest known one is 'ignored_scopes'"),
        (config(weights={"bit": 4}), "nearest known one is 'bits'"),
        (config(initializer={"presision": {}}), "nearest known one is 'precision'"),
        (config(overflow_fix="enable"), "'enable' is not supported: .*7-bit"),
        (config("NPU", preset="mixed"), "preset is not for target_device 'NPU'"),
        (config("ANY", weights={"bits": 4}), "'ANY' admits 8 bits for a weight"),
        (config(initializer={"range": []}), "a list is not supported"),
        (config(scope_overrides={"weights": {"stem": {"bits": 9}}}), r"compression: overrides\.stem.*is 9: "),
        ({"compression": {"algorithm": "pruning"}}, "raysearch does 'quantization'"),
    ],
)
def test_what_cannot_be_read_is_refused(spoil, message):
    with pytest.raises(ConfigError, match=message):
        read_nncf_config(spoil)


def test_scopes_of_the_reference_are_ours():
    assert to_scope("Digits/Block[block]/Conv2d[depthwise]/conv2d_0", True) == "block.depthwise.input"
    assert to_scope("{re}block.*") == "re:block.*"
    controller, _ = build(config(ignored_scopes=["Digits/Linear[head]/linear_0"]))
    assert not {"head.weight", "head.input"} & set(controller.setup.points)
    with pytest.raises(PlacementError, match="nowhere"):
        build(config(ignored_scopes=["nowhere"]))
    with pytest.raises(ConfigError, match="no example inputs"):
        raysearch.create_compressed_model(model_zoo.build("digits"), {"target_device": "TRIAL"})


def test_d38_a_model_that_guesses_is_warned_of():
    controller, _ = build(config(initializer=RANGE, weights={"bits": 4}))
    with (
        pytest.warns(UserWarning, match="at chance level"),
        pytest.warns(UserWarning, match="one admissible width"),
    ):
        controller.init_precision("hawq", {"compression_ratio": 0.9})


def norms(model):
    return {n: v.clone() for n, v in model.state_dict().items() if "running" in n}


def test_batch_norm_is_adapted_once_the_quantizers_are_in_and_never_by_a_state():
    start = norms(model_zoo.build("digits"))
    samples = {**RANGE, "batchnorm_adaptation": {"num_bn_adaptation_samples": 16}}
    controller, model = build(config(initializer=samples, weights={"bits": 2}))
    quantized = norms(model)
    assert quantized.keys() == start.keys()
    assert all(not torch.equal(quantized[name], start[name]) for name in start)
    _, other = build(config(weights={"bits": 2}))
    assert all(torch.equal(norms(other)[name], start[name]) for name in start)
    batches = materialise(DATA, 16, 32, "test")
    apply_batch_norm(other, adapt_batch_norm(other, batches, num_samples=16))
    assert all(torch.equal(norms(other)[name], quantized[name]) for name in start)
    _, resumed = build(config(initializer=samples, weights={"bits": 2}), compression_state=state(controller))
    assert all(torch.equal(norms(resumed)[name], start[name]) for name in start)


def test_d34_a_staged_start_adapts_batch_norm_once_and_not_while_all_is_float():
    samples = {**RANGE, "batchnorm_adaptation": {"num_bn_adaptation_samples": 16}}
    starts = {"activations_quant_start_epoch": 1, "weights_quant_start_epoch": 1}
    controller, model = build(config(initializer=samples, weights={"bits": 2}, params=starts))
    start = norms(model_zoo.build("digits"))
    controller.scheduler.epoch_step()
    assert all(torch.equal(norms(model)[name], start[name]) for name in start)
    controller.scheduler.epoch_step()
    _, other = build(config(initializer=samples, weights={"bits": 2}))
    assert all(torch.equal(value, norms(other)[name]) for name, value in norms(model).items())
    # What training does to the statistics from here on is kept, by a later epoch and by a resume.
    with torch.no_grad():
        model.get_buffer(next(iter(start))).add_(1)
    trained = norms(model)
    controller.scheduler.epoch_step()
    controller.load_state(state(controller))
    assert all(torch.equal(norms(model)[name], trained[name]) for name in trained)


def test_our_own_configuration_says_how_ranges_are_found():
    settings = load_config(
        overrides={
            "placement": {"weight_bit_widths": [4]},
            "calibration": {"weights": "min_max", "overrides": {"head": "mse"}, "num_samples": 16},
        }
    )
    controller, _ = build(settings, example_inputs=model_zoo.inputs("digits"))
    found = {n: controller.ranges[n, 4].scale for n in controller.setup.of_kind("weight")}
    weights = {n: p for n, p in model_zoo.build("digits").named_parameters() if n in found}
    for name, scale in found.items():
        axis = controller.setup.points[name].granularity.axis
        peak = weights[name].detach().abs().movedim(axis, 0).flatten(1).amax(1).numpy()
        assert (scale * 7 == pytest.approx(peak, rel=1e-6)) == (name != "head.weight"), name
    # Anew for some: a scope that fits none of them is no error, and a given type wins.
    controller.init_range(points=["stem.weight"])
    assert controller.ranges["stem.weight", 4].scale.tolist() == found["stem.weight"].tolist()
    controller.init_range({"type": "min_max", "num_init_samples": 16}, points=["head.weight"])
    peak = weights["head.weight"].detach().abs().amax(1).numpy()
    assert controller.ranges["head.weight", 4].scale * 7 == pytest.approx(peak, rel=1e-6)


@pytest.mark.slow
def test_a_controller_is_exported_in_one_call(tmp_path):
    controller, model = build(config(weights={"bits": 3}))
    example = model_zoo.inputs("digits")
    expected = run(model.eval(), example)
    manifest = export_compressed_model(controller, example, tmp_path, targets=["packed"])
    assert manifest.costs == controller.statistics()["costs"]
    assert torch.equal(run(raysearch.load_model(tmp_path), example), expected)
    assert controller.all_quantizations["stem.weight"].frozen
    with torch.no_grad():
        controller.all_quantizations["stem.weight"].scale.fill_(torch.nan)
    with pytest.raises(ExportError, match=r"'stem\.weight' cannot be exported: its range is not finite"):
        export_compressed_model(controller, example, tmp_path)


def state(controller):
    return json.loads(json.dumps(controller.get_compression_state()))


class Counted(torch.nn.Module):
    """Keeps a running mean in eval mode too, and makes a table when it is first called."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.arange(4.0))
        self.mean.mul_(0.5).add_(x.mean(0))
        return self.fc(x - self.table)


def test_buffers_that_a_forward_changes_are_as_they_were():
    rows = torch.arange(8.0).reshape(2, 4)
    model = Counted()
    controller, _ = raysearch.create_compressed_model(model, load_config(), (rows.clone(),), data=[rows])
    controller.init_range(force=True)
    stripped = controller.strip_model(do_copy=True)
    for one in (model, stripped):
        assert not one.mean.any()
    run(stripped, (rows,))
    assert stripped.mean.any()
