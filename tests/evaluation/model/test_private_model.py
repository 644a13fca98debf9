"""The model that raysearch works on beside the user's."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from raysearch.errors import CaptureError, TaskError
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.model.copies import private_copy
from raysearch.evaluation.model.model_state import changing_buffers
from raysearch.evaluation.model.private_model import private_model, refuse_compiled, unwrapped

ROW = (torch.ones(1, 2),)


class Counting(nn.Module):
    """Changes two buffers in eval mode too, one in place and one by assignment, and grows a third."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("table", torch.zeros(0))

    def forward(self, x):
        self.calls += 1
        self.mean = self.mean * 0.5 + x.mean(0)
        if len(self.table) < len(x):
            self.table = torch.zeros(len(x))
        return self.fc(x)


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        self.kept = {"features": [self.fc(x)]}
        return self.kept["features"][0]


def test_a_copy_of_a_model_that_holds_features_with_a_history():
    model = Remembering()
    model(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    twin = private_copy(model)
    feature = twin.kept["features"][0]
    assert not feature.requires_grad
    assert torch.equal(feature, model.kept["features"][0])
    assert twin.fc.weight.requires_grad
    assert model.kept["features"][0].requires_grad


def test_what_cannot_be_copied_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[1].lock = threading.Lock()
    with pytest.raises(TaskError, match="'1', a ReLU of the model, cannot be copied: TypeError"):
        private_copy(model)


def test_buffers_that_a_forward_changes_are_known_and_never_drift():
    model = Counting()
    twin = private_model(model, (torch.ones(3, 2),))
    assert changing_buffers(twin) == ("calls", "mean")
    for own in (twin, copy.deepcopy(twin)):
        for _ in range(2):
            with frozen_eval(own):
                own(torch.ones(1, 2))
        assert (int(own.calls), own.mean.tolist(), len(own.table)) == (0, [0, 0], 3)
    assert (int(model.calls), len(model.table)) == (0, 0)
    assert changing_buffers(private_model(nn.BatchNorm1d(2), ROW)) == ()


def test_what_the_first_call_makes_is_there_before_a_capture():
    class Lazy(nn.Module):
        def forward(self, x):
            if not hasattr(self, "offset"):
                self.register_buffer("offset", torch.linspace(0, 1, x.shape[-1]))
            return x + self.offset

    model = nn.Sequential(nn.LazyLinear(3), Lazy())
    twin = private_model(model, ROW)
    assert [name for name, _ in twin.named_buffers()] == ["1.offset"]
    assert twin[0].weight.shape == (3, 2)
    assert list(model.buffers()) == []
    torch.export.export(twin, ROW, strict=False)


def test_wrappers_are_taken_off_wherever_they_are():
    inner = nn.Linear(2, 2)
    for wrapped in (
        nn.DataParallel(inner),
        AveragedModel(inner).module,
        torch.compile(inner, backend="eager"),
    ):
        assert type(unwrapped(wrapped)) is nn.Linear
    assert unwrapped(AveragedModel(inner)).weight.equal(inner.weight)
    model = nn.Sequential(
        nn.DataParallel(inner), torch.compile(nn.Linear(2, 2), backend="eager"), nn.DataParallel(inner)
    )
    twin = private_model(torch.compile(nn.DataParallel(model), backend="eager"), ROW)
    assert [type(module) for module in twin] == [nn.Linear] * 3
    assert twin[0] is twin[2], "what was shared is shared"
    assert twin[0] is not inner


def test_a_compiled_model_is_refused_by_its_name():
    # Traced, since scripting needs the source's file.
    with pytest.warns(DeprecationWarning, match="trace"):
        traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(TaskError, match=r"Task\(model=...\) is a TopLevelTracedModule"):
        refuse_compiled(traced)
    with pytest.raises(TaskError, match=r"Task\(model=...\)\.0 is a"):
        refuse_compiled(nn.Sequential(traced))


def test_a_model_without_values_and_inputs_that_do_not_fit():
    with pytest.raises(TaskError, match="'weight' lies on the meta device"):
        private_model(nn.Linear(2, 2, device="meta"), ROW)
    with pytest.raises(CaptureError, match=r"example inputs \(\(1, 2\) torch.float32\): RuntimeError"):
        private_model(nn.Linear(3, 2), ROW)


def test_embeddings_have_dense_gradients_and_encoders_no_nested_tensors():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(5, 4, padding_idx=0, sparse=True)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1)

        def forward(self, ids):
            return self.encoder(self.words(ids), src_key_padding_mask=ids == 0)

    ids = torch.tensor([[1, 2, 0], [3, 4, 0]])
    model = Net()
    twin = private_model(model, (ids,)).eval()
    with torch.no_grad():
        assert twin(ids).shape == (2, 3, 4), "a nested tensor would lose the padding"
    twin(ids).sum().backward()
    assert not twin.words.weight.grad.is_sparse
    assert model.words.sparse


def test_a_model_made_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        model = nn.Linear(2, 2)
        row = torch.ones(1, 2)
    twin = private_model(model, (row,))
    twin(torch.ones(1, 2)).sum().backward()
    assert twin.weight.grad is not None


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    @torch.compile(backend="eager")
    def forward(self, x):
        return self.fc(x)


def test_a_forward_that_is_compiled_runs_as_it_is_written():
    model = Compiled()
    twin = private_copy(private_model(model, ROW))
    assert twin.forward.__self__ is twin
    assert torch.equal(twin(*ROW), model.fc(*ROW))
