import json

import pytest
import torch
from torch import nn

from raysearch.errors import StorageError, TaskError
from raysearch.export import export_model, load_model
from raysearch.export.outputs import tensor_leaves

from .nets import NETS, Residual, case


@pytest.mark.parametrize("net", ["text", "tied", "waves", "encoder"])
def test_the_factorys_module_computes_what_the_stripped_one_does(tmp_path, net):
    made = case(net)
    export_model(made.stripped, made.setup, made.assignment, made.example, tmp_path, targets=["packed"])
    (tmp_path / "architecture.pt2").unlink()
    model = load_model(tmp_path, NETS[net][0])
    inputs = made.inputs(5)
    with torch.no_grad():
        pairs = zip(tensor_leaves(model(*inputs)), tensor_leaves(made.stripped(*inputs)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert type(model).__name__ == type(made.stripped).__name__
    assert not model.training


def test_a_factory_is_found_by_its_name(exported, residual):
    model = load_model(exported, "tests.export.nets:Residual")
    assert torch.equal(model(*residual.example), residual.stripped(*residual.example))


def test_quantizers_that_are_off_stay_off(tmp_path):
    net = case("residual", left_out=("stem.weight", "head.input"))
    export_model(net.stripped, net.setup, net.assignment, net.example, tmp_path, targets=["packed"])
    model = load_model(tmp_path, Residual)
    assert torch.equal(model(*net.example), net.stripped(*net.example))


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
    ("factory", "message"),
    [
        ("nets", "cannot be read"),
        ("no.such.module:Net", "cannot be found: ModuleNotFoundError"),
        ("tests.export.nets:NoNet", "cannot be found: AttributeError"),
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
