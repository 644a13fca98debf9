"""Files of models whose sizes vary: any length is taken by every target, or the model is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysearch import load_model
from raysearch.config import ExportConfig
from raysearch.controller import create_controller
from raysearch.errors import ExportError
from raysearch.export import StrippedModel, export_model
from raysearch.export.export import first_samples
from raysearch.export.targets.registry import TARGETS
from raysearch.placement import place_quantizers
from tests.support.quantized_models import assign, make_ranges


class Signal(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(4, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, *, x):
        return self.head(F.relu(self.conv(x)).mean(2))


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        return self.head(x)


class Halved(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        # Even lengths only.
        return self.head((x[..., ::2] + x[..., 1::2]).mean(2))


def stripped(model, example, open_dims):
    torch.manual_seed(0)
    setup = place_quantizers(model.eval(), example)
    assignment = assign(setup, 8)
    controller = create_controller(model, setup, make_ranges(model, setup), assignment)
    return StrippedModel(controller.strip_model(form="integer"), setup, assignment, example, open_dims)


def signals(*lengths):
    return [torch.randn(3, 4, length) for length in lengths]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["packed", "pt2", "onnx", "openvino"])
def test_a_file_takes_any_length(target, tmp_path):
    if TARGETS[target].extra.missing():
        pytest.skip("the extra is not installed")
    model = stripped(Signal(), (torch.randn(2, 4, 20),), {0: {2: "size1"}})
    manifest = export_model(
        model, tmp_path, ExportConfig(targets=(target,), num_samples=3),
        batches=signals(20, 20, 31), forward=lambda module, batch: module(x=batch),
    )  # fmt: skip
    assert manifest.checks[0].num_samples == 6, "a batch of another length is among those verified"
    loaded = TARGETS[target].load(tmp_path)
    for batch in signals(9, 45):
        expected = model.module(x=batch)
        assert torch.allclose(loaded(x=batch), expected, atol=0.02 * float(expected.abs().max()) + 1e-3)


@pytest.mark.slow
def test_sizes_that_hang_together_by_more_than_equality_stay_open(tmp_path):
    model = stripped(Halved(), (torch.randn(2, 4, 20),), {0: {2: "size1"}})
    export_model(model, tmp_path, ExportConfig(targets=("packed",)), batches=signals(20, 30))
    batch = torch.randn(5, 4, 12)
    assert torch.equal(load_model(tmp_path)(batch), model.module(batch))


def test_a_size_that_the_graph_fixes_is_named(tmp_path):
    model = stripped(Fixed(), (torch.randn(2, 20),), {0: {1: "size1"}})
    with pytest.raises(
        ExportError, match=r"differ in dimension 1 of input 0 \(shape \(2, 20\)\).*pad or crop"
    ):
        export_model(model, tmp_path, ExportConfig(targets=("packed",)), batches=[torch.randn(3, 20)])


def test_batches_of_two_shapes_are_verified_where_there_are_two():
    batches = signals(20, 20, 20, 31, 12)
    lengths = [batch.shape[2] for batch in first_samples(batches, 6)]
    assert lengths == [20, 20, 31]
    assert len(first_samples(batches[:3], 6)) == 2
    assert [batch.shape[2] for batch in first_samples(batches[2:], 4)] == [20, 31]
