import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from raysearch.calibration import calibrate_model
from raysearch.config import PlacementConfig
from raysearch.controller import create_controller, stripped_weights
from raysearch.errors import ConfigError, ExportError, StorageError
from raysearch.export import TARGETS, check_targets
from raysearch.export.load import load_model
from raysearch.export.outputs import tensor_leaves
from raysearch.export.targets.packed import weights_bytes, write_packed
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, CostModel
from tests.contracts.target_contract import GraphTargetContract
from tests.support.export_cases import NETS, WIDTHS, Case, case


class TestPackedTarget(GraphTargetContract):
    target = TARGETS["packed"]


def assert_equal(model, net: Case, counts=(1, 2, 9)):
    for count in counts:
        inputs = net.inputs(count)
        with torch.no_grad():
            ours, theirs = net.stripped(*inputs), model(*inputs)
        pairs = list(zip(tensor_leaves(ours), tensor_leaves(theirs), strict=True))
        assert pairs
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
# Mixed, its layers have the widths in between; "seven" below has a layer of each.
@pytest.mark.parametrize("bits", [2, None, 8])
def test_a_reloaded_model_is_bit_equal_at_every_width(tmp_path, bits):
    net = case("residual", bits)
    assert bits or {3, 4, 5, 6, 7} <= set(net.assignment.bits.values())
    assert write_packed(net.stripped, net.setup, net.example, tmp_path) is None
    assert_equal(load_model(tmp_path), net)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "tied", "waves", "encoder", "seven"])
def test_every_kind_of_layer_is_bit_equal_at_mixed_widths(tmp_path, name):
    net = case(name)
    write_packed(net.stripped, net.setup, net.example, tmp_path)
    assert_equal(load_model(tmp_path), net)


@pytest.mark.slow
def test_weights_that_stay_float_are_stored_and_counted(tmp_path):
    net = case("residual", left_out=("stem.weight", "head.input"))
    write_packed(net.stripped, net.setup, net.example, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["stem.weight"].dtype == torch.float32
    assert "head.weight.packed" in stored
    assert weights_bytes(net.stripped, net.setup) == CostModel(net.setup).weight_bytes(net.assignment)
    assert_equal(load_model(tmp_path), net)


def test_an_example_of_one_sample_leaves_the_batch_open(tmp_path):
    net = case("text", batch=1)
    assert write_packed(net.stripped, net.setup, net.example, tmp_path) is None
    assert_equal(load_model(tmp_path), net)


def test_a_model_that_fixes_its_batch_is_stored_with_it(tmp_path):
    net = case("fixed", batch=5)
    assert write_packed(net.stripped, net.setup, net.example, tmp_path) == 5
    model = load_model(tmp_path)
    assert model.config.fixed_batch == 5
    assert_equal(model, net, counts=(5,))


def test_the_file_holds_codes_and_scales_once_and_nothing_twice(tmp_path):
    net = case("tied", 3)
    write_packed(net.stripped, net.setup, net.example, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    (name,) = net.setup.of_kind("weight")
    (alias,) = {"head.weight", "table.weight"} - {name}
    assert {key: (t.dtype, tuple(t.shape)) for key, t in stored.items()} == {
        f"{name}.packed": (torch.uint8, ((66 * 3 + 7) // 8,)),
        f"{name}.scale": (torch.float32, (11,)),
        "norm.weight": (torch.float32, (6,)),
        "norm.bias": (torch.float32, (6,)),
        "head.input_quantizer.scale": (torch.float32, (1,)),
    }
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["weights"][name]["aliases"] == [alias]
    assert config["activations"]["head.input"]["bits"] == 4


def test_the_graph_file_holds_no_weight_and_no_path_of_this_machine(exported):
    data = (exported / "architecture.pt2").read_bytes()
    weights = load_file(exported / "model.safetensors")
    assert weights["head.bias"].numpy().tobytes() not in data
    assert b"nets.py" not in data
    assert b"/raysearch/" not in data


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "tied"])
def test_the_stripped_module_is_left_as_it_was(tmp_path, name):
    net = case(name)
    before = {n: (id(b), b.clone()) for n, b in net.stripped.named_buffers(remove_duplicate=False)}
    write_packed(net.stripped, net.setup, net.example, tmp_path)
    after = dict(net.stripped.named_buffers(remove_duplicate=False))
    assert {n: id(b) for n, b in after.items()} == {n: i for n, (i, _) in before.items()}
    assert not any(isinstance(b, FakeTensor) for b in after.values())
    assert all(torch.equal(after[n], b) for n, (_, b) in before.items())


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_bytes_are_the_cost_models(bits):
    net = case("waves", bits)
    assert weights_bytes(net.stripped, net.setup) == CostModel(net.setup).weight_bytes(net.assignment)


def test_a_tensor_that_cannot_be_stored_is_refused(tmp_path):
    net = case("waves")
    net.stripped.register_buffer("phase", torch.zeros(1, dtype=torch.complex128))
    with pytest.raises(ExportError, match=r"'phase' is of type torch\.complex128"):
        write_packed(net.stripped, net.setup, net.example, tmp_path)


class Turned(nn.Module):
    """Rotary positions as complex numbers, which are not saved."""

    def __init__(self, dtype=torch.complex64):
        super().__init__()
        self.first = nn.Linear(4, 4)
        turns = torch.polar(torch.ones(2), torch.tensor([0.3, 2.0])).to(dtype)
        self.register_buffer("turns", turns, persistent=False)

    def forward(self, x):
        pairs = torch.view_as_complex(self.first(x).float().unflatten(-1, (2, 2)))
        return torch.view_as_real(pairs * self.turns).flatten(-2)


def test_complex_buffers_are_stored_and_counted(tmp_path):
    model, example = Turned().eval(), (torch.randn(3, 4),)
    setup = place_quantizers(model, example, PlacementConfig(activation_bit_widths=()))
    table = calibrate_model(model, setup, example, forward=forward_one)
    assignment = BitAssignment.extreme(setup, 0)
    stripped = create_controller(model, setup, table, assignment).strip_model()
    net = Case(stripped, setup, assignment, lambda n: (torch.randn(n, 4),), example)
    net.export(tmp_path, "packed")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size <= CostModel(setup).costs(assignment)["size"] <= size + 16
    assert_equal(load_model(tmp_path), net)


def test_a_type_that_cannot_be_stored_is_refused_before_compute():
    setup = place_quantizers(Turned(torch.complex128).eval(), (torch.randn(3, 4),))
    words = r"'packed' does not hold tensors of type complex128 .*: 'turns'"
    for names in (None, ["packed"]):
        with pytest.raises(ConfigError, match=words):
            check_targets(setup, names)
    check_targets(setup, ["pt2"])


def test_codes_of_other_bits_are_refused(tmp_path):
    net = case("waves", 2)
    weight = next(iter(stripped_weights(net.stripped, net.setup).values()))
    weight.codes.fill_(5)
    with pytest.raises(ExportError, match=rf"'{weight.name}' has codes from 5 to 5; 2 bits hold -2 to 1"):
        write_packed(net.stripped, net.setup, net.example, tmp_path)


SPECS = {
    "asymmetric": {"mode": "asymmetric"},
    "one scale": {"granularity": "per_tensor"},
    "one scale, asymmetric": {"mode": "asymmetric", "granularity": "per_tensor"},
    "unsigned": {"mode": "symmetric", "signed": False},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the quantizer .* is unsigned")
@pytest.mark.parametrize("spec", SPECS)
def test_weights_with_zero_points_or_one_scale_are_bit_equal_and_counted(tmp_path, spec):
    torch.manual_seed(0)
    model = NETS["waves"][0]().eval()
    with torch.no_grad():
        model.down.weight.abs_()  # so that an asymmetric zero point may be 0
        model.up.weight.add_(0.2)
    inputs = NETS["waves"][1]
    names = ("down", "up", "gate")
    setup = place_quantizers(
        model,
        inputs(4),
        PlacementConfig(weight_bit_widths=(2, 3, 5, 8), overrides=dict.fromkeys(names, SPECS[spec])),
    )
    table = calibrate_model(model, setup, inputs(8), forward=forward_one)
    widths = dict(zip(setup.of_kind("weight"), (3, 8, 2), strict=True))
    bits = {g.id: widths.get(g.points[0], 8) for g in setup.groups.values()}
    controller = create_controller(model, setup, table, BitAssignment(bits))
    trained = model(*inputs(3))
    stripped = controller.strip_model(do_copy=True)
    net = Case(stripped, setup, controller.assignment, inputs, inputs(4))
    manifest = net.export(tmp_path, "packed")
    assert manifest.weights_bytes == CostModel(setup).weight_bytes(net.assignment)
    stored = load_file(tmp_path / "model.safetensors")
    kept = {n for n in stored if n.endswith("weight.zero_point")}
    assert kept == ({f"{n}.weight.zero_point" for n in names} if "asymmetric" in spec else set())
    scales = 1 if "one scale" in spec else 5
    assert stored["down.weight.scale"].shape == (scales,)
    assert_equal(load_model(tmp_path), net)
    assert len(trained) == 2


def test_zero_points_that_no_code_has_are_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    example = (torch.randn(2, 4),)
    setup = place_quantizers(
        model, example, PlacementConfig(weight_bit_widths=(4,), overrides={"0": SPECS["asymmetric"]})
    )
    table = calibrate_model(model, setup, example, forward=forward_one)
    controller = create_controller(model, setup, table, BitAssignment.extreme(setup, 0))
    write_packed(controller.strip_model(), setup, example, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["0.weight.zero_point"][1] = 8
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(StorageError, match=r"'0\.weight\.zero_point' holds values that 4 bits"):
        load_model(tmp_path)


def forward_one(model, batch):
    return model(batch)
