import pytest
import torch

from raysearch.errors import ExportError
from raysearch.export import TARGETS
from raysearch.export.targets.pt2 import Pt2Target, load_pt2, write_pt2
from tests.contracts.target_contract import GraphTargetContract
from tests.support.export_cases import case, forward_all


class TestPt2Target(GraphTargetContract):
    target = TARGETS["pt2"]


(FILE,) = Pt2Target.files


def test_the_program_is_the_stripped_module_bit_for_bit(tmp_path):
    net = case("waves")
    manifest = net.export(tmp_path, "pt2", batches=[net.inputs(1), net.inputs(6)], forward=forward_all)
    assert [(check.target, check.max_abs_difference) for check in manifest.checks] == [("pt2", 0.0)]
    assert [file.path for file in manifest.files] == [FILE]
    inputs = net.inputs(9)
    assert all(map(torch.equal, load_pt2(tmp_path / FILE)(*inputs), net.stripped(*inputs)))


def test_a_fixed_batch_is_told(tmp_path):
    net = case("fixed", batch=5)
    assert write_pt2(net.stripped, net.example, tmp_path / FILE) == 5


def test_a_model_that_cannot_be_captured_is_refused(tmp_path):
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="Branch cannot be captured for the target 'pt2'"):
        write_pt2(Branch(), (torch.ones(2, 3),), tmp_path / FILE)
