import json

import pytest
import torch
from torch import nn

from raysearch.config import PlacementConfig
from raysearch.controller import create_controller
from raysearch.errors import StorageError, TaskError
from raysearch.export import load_model
from raysearch.export.outputs import tensor_leaves
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment
from tests.support.export_cases import NETS, Case, Residual, Seven, case, ranges


@pytest.mark.slow
@pytest.mark.parametrize("net", ["text", "tied", "waves", "encoder"])
def test_the_factorys_module_computes_what_the_stripped_one_does(tmp_path, net):
    made = case(net)
    made.export(tmp_path, "packed")
    (tmp_path / "architecture.pt2").unlink()
    model = load_model(tmp_path, NETS[net][0])
    inputs = made.inputs(5)
    with torch.no_grad():
        pairs = zip(tensor_leaves(model(*inputs)), tensor_leaves(made.stripped(*inputs)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert type(model).__name__ == type(made.stripped).__name__
    assert not model.training


def test_a_factory_is_found_by_its_name(exported, residual):
    model = load_model(exported, "tests.support.export_cases:Residual")
    assert torch.equal(model(*residual.example), residual.stripped(*residual.example))


def test_quantizers_that_are_off_stay_off(tmp_path):
    net = case("residual", left_out=("stem.weight", "head.input"))
    net.export(tmp_path, "packed")
    model = load_model(tmp_path, Residual)
    assert torch.equal(model(*net.example), net.stripped(*net.example))


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    folder, net = tmp_path_factory.mktemp("seven"), case("seven")
    net.export(folder, "packed")
    return folder


class OneHalf(Seven):
    def __init__(self):
        super().__init__()
        self.layers[3].weight.data = self.layers[3].weight.data.half()


class Wider(Residual):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 11)
        self.more = nn.Linear(2, 2, bias=False)
        del self.stem


def test_another_architecture_is_refused_by_its_tensors(exported):
    with pytest.raises(TaskError, match="Wider is not the exported Residual") as error:
        load_model(exported, Wider)
    told = str(error.value)
    assert "missing ['stem.bias', 'stem.weight'] (2 in all)" in told
    assert "unexpected ['more.weight'] (1 in all)" in told
    assert "'head.weight' [11, 8] instead of [10, 8]" in told


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (lambda: Seven().half(), r"of another type: 'layers\.0\.bias' F16 instead of F32; .* \(14 in all\)"),
        (lambda: OneHalf(), r"of another type: 'layers\.3\.weight' F16 instead of F32 \(1 in all\)"),
    ],
)
def test_a_network_in_another_precision_is_refused_by_its_tensors(seven, factory, told):
    with pytest.raises(TaskError, match=told):
        load_model(seven, factory)


def test_a_network_in_half_precision_takes_a_factory_in_half_precision(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 9, bias=False)).half().eval()
    example = (torch.randn(4, 9).half(),)
    setup = place_quantizers(
        model, example, PlacementConfig(weight_bit_widths=(4,), activation_bit_widths=(8,))
    )
    assignment = BitAssignment.extreme(setup, 0)
    stripped = create_controller(model, setup, ranges(model, setup), assignment).strip_model(do_copy=True)
    Case(stripped, setup, assignment, None, example).export(tmp_path, "packed")
    loaded = load_model(tmp_path, lambda: nn.Sequential(nn.Linear(9, 9, bias=False)).half())
    assert torch.equal(loaded(*example), stripped(*example))
    with pytest.raises(TaskError, match=r"of another type: '0\.weight' F32 instead of F16 \(1 in all\)"):
        load_model(tmp_path, lambda: nn.Sequential(nn.Linear(9, 9, bias=False)))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nets", "cannot be read"),
        ("no.such.module:Net", "cannot be found: ModuleNotFoundError"),
        ("tests.support.export_cases:NoNet", "cannot be found: AttributeError"),
        (lambda: 3, "returned a int"),
        (lambda: 1 / 0, "failed: ZeroDivisionError"),
    ],
)
def test_a_factory_that_gives_no_network_is_refused(exported, factory, message):
    with pytest.raises(TaskError, match=message):
        load_model(exported, factory)


def test_a_folder_that_does_not_say_where_quantizers_act_needs_its_graph(folder):
    data = json.loads((folder / "config.json").read_text())
    for entry in data["quantization_config"]["activations"].values():
        del entry["sites"]
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "manifest.json").unlink()
    load_model(folder)
    with pytest.raises(StorageError, match="does not say where its activation quantizers act"):
        load_model(folder, Residual)
