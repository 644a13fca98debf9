"""What would fail after the search is refused before it, by name."""

import copy
import functools
import sqlite3
from contextlib import closing

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from raysearch.config import load_config
from raysearch.export.targets.packed import PackedTarget
from raysearch.pipeline.inputs import check_inputs
from tests.support.preflight_cases import Net, X, Y, make_task, refuse, try_task


def test_a_task_that_is_fit_goes_through_and_is_left_as_it_was():
    task = make_task(
        metrics={"accuracy": lambda outputs, batch: (outputs.argmax(1) == batch[1]).float().mean()}
    )
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    generator = torch.get_rng_state()
    assert try_task(task, workers=1) == [(done, 4) for done in range(5)]
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert all(parameter.grad is None for parameter in task.model.parameters())


def per_sample(outputs, batch):
    return F.cross_entropy(outputs, batch[1], reduction="none")


@pytest.mark.parametrize(
    ("loss", "part"),
    [
        (per_sample, r"the task's loss has shape (4,); it must be a scalar"),
        (lambda outputs, batch: [1.0], "the task's loss gives a list"),
        (lambda outputs, batch: None, "the task's loss gives a NoneType"),
        (
            lambda outputs, batch: outputs["logits"],
            "the task's loss on shard 0 of the validation data failed at test_",
        ),
        (lambda outputs, batch: outputs.sum() / 0, "the task's loss is"),
        (lambda outputs, batch: outputs.detach().sum(), "no gradient"),
        (lambda outputs, batch: outputs.sum().item(), "no gradient"),
    ],
)
def test_a_loss_that_training_cannot_use(loss, part):
    assert part in refuse(make_task(loss=loss))


def past_the_last_layer(model, batch):
    if batch[1].any():
        return model(batch[0])
    return F.linear(F.relu(model.a(batch[0])), model.b.weight)


def test_training_and_files_are_tried_where_the_first_samples_miss_a_quantizer(monkeypatch):
    calibration = [(X, 0 * Y), (X, Y)]
    fields = {"calibration": calibration, "forward": past_the_last_layer}
    task = make_task(loss=lambda outputs, batch: outputs.detach().sum(), **fields)
    assert "no gradient" in refuse(task)
    monkeypatch.setattr(PackedTarget, "load", None)
    assert "the export target 'packed'" in refuse(make_task(**fields))


def test_a_quantizer_that_no_sample_passes_is_refused_before_the_run():
    task = make_task(calibration=[(X, 0 * Y)], forward=past_the_last_layer)
    assert "no forward of the calibration data reads the activation" in refuse(task)


def test_a_metric_that_gives_no_number_and_one_that_fails():
    assert "the metric 'top' gives a str" in refuse(make_task(metrics={"top": lambda outputs, batch: "high"}))
    text = refuse(make_task(metrics={"top": lambda outputs, batch: batch["labels"].float().mean()}))
    assert "the metric 'top' on shard 0 of the validation data failed" in text
    assert "TypeError" in text


def recall(outputs, batch):
    rare = batch[1] == 1
    return ((outputs.argmax(1) == 1) & rare).sum() / rare.sum()


def test_a_metric_that_is_not_finite_for_the_float_model():
    # The rare class is in the first samples only; the sample of the search is shuffled.
    data = TensorDataset(X, torch.tensor([1] + [0] * 9))
    task = make_task(validation=data, metrics={"recall": recall})
    text = refuse(task, search={"objective": "recall", "shard_size": 2})
    assert "'recall', by which trials are judged, is nan for the float model on shard" in text
    assert "search.shard_size" in text
    with pytest.warns(UserWarning, match="the metric 'recall' is nan for the float model on shard 0"):
        try_task(make_task(validation=TensorDataset(X, 0 * Y), metrics={"recall": recall}))


def in_place(model, batch):
    batch[0].mul_(2)
    return model(batch[0])


def emptying(model, batch):
    return model(batch.pop(0))


class InPlace(Net):
    def forward(self, x):
        return super().forward(x.sub_(1))


@pytest.mark.parametrize("fields", [{"model": InPlace()}, {"forward": in_place}])
def test_a_forward_that_changes_its_batch_is_given_copies(fields):
    batch = (X.clone(), Y)
    task = make_task(calibration=[batch], validation=[batch], train=[batch], **fields)
    inputs = check_inputs(task, load_config(), ["avg_bits<=4"])
    shard = inputs.samples.calibration[0]
    outputs = [inputs.task.run(inputs.task.model, shard) for _ in range(2)]
    assert torch.equal(*outputs)
    assert torch.equal(shard[0], X)
    assert try_task(task)
    assert torch.equal(batch[0], X)


def test_a_forward_that_takes_its_batch_apart_is_given_copies():
    data = [[X.clone(), Y]]
    assert try_task(make_task(calibration=data, validation=data, train=None, loss=None, forward=emptying))


def test_a_forward_that_leaves_its_batch_alone_is_given_it_as_it_is():
    assert check_inputs(make_task(), load_config(), ["avg_bits<=4"]).task.forward is None


@pytest.mark.parametrize(
    "metric",
    [
        lambda outputs, batch: outputs.zero_().sum(),
        lambda outputs, batch: batch[1].add_(1).float().mean(),
    ],
)
def test_a_metric_that_changes_what_others_read(metric):
    text = refuse(make_task(metrics={"rmse": metric}))
    assert "the metric 'rmse' changes the outputs or the batch" in text


def test_a_metric_that_fails_at_its_second_call():
    values = iter([0.5])
    text = refuse(make_task(metrics={"rmse": lambda outputs, batch: next(values)}))
    assert "the metric 'rmse' on shard 0 of the validation data failed" in text


def test_a_metric_that_keeps_something_between_its_calls():
    values = iter(range(100))
    task = make_task(metrics={"rmse": lambda outputs, batch: next(values)})
    with pytest.warns(UserWarning, match="'rmse' gives 0 and then 1 for the same outputs"):
        try_task(task)


def test_batches_of_another_form_later_in_the_data():
    x, y = X[:4], Y[:4]
    text = refuse(make_task(validation=[(x, y), {"x": x, "labels": y}]))
    assert "the task's loss on shard 1 of the validation data failed" in text
    text = refuse(make_task(validation=[(x, y), (X[:4, :3], y), (x, y)]))
    assert "the task's forward on shard 1 of the validation data (4 samples) failed" in text


class Inference(Net):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


def test_a_forward_whose_derivatives_fail_also_where_nothing_is_trained():
    model = Net()
    model.norm = nn.BatchNorm1d(6, track_running_stats=False)
    text = refuse(make_task(model=model, train=None, loss=None))
    assert "taking derivatives of the float model ('ggn') failed at preflight_cases.py:" in text
    assert "running statistics" in text
    assert "torch.inference_mode, whose tensors know no gradient" in refuse(make_task(model=Inference()))


class Noisy(Net):
    def forward(self, x):
        return super().forward(F.dropout(x))


def test_a_model_that_draws_at_random_is_told():
    with pytest.warns(UserWarning, match="the float model draws at random in eval mode"):
        try_task(make_task(model=Noisy()))


class Squeezed(Net):
    def forward(self, x):
        return super().forward(x).squeeze(0)


def test_a_last_batch_of_one_sample_that_loses_its_dimension():
    text = refuse(make_task(model=Squeezed()), validation={"shard_size": 3})
    assert "an output of shape (3,) on shard 3 of the validation data, which has 1 samples" in text
    assert "squeeze" in text


def test_batch_norm_and_training_batches_of_one_sample():
    for train in (
        DataLoader(TensorDataset(X, Y), batch_size=1),
        DataLoader(TensorDataset(X, Y), batch_size=3),
        [(X[:4], Y[:4]), (X[4:5], Y[4:5])],
    ):
        text = refuse(make_task(model=Net(norm=True), train=train))
        assert "(1 samples) failed" in text
        assert "BatchNorm cannot train on a single sample" in text
    assert try_task(make_task(model=Net(norm=True), train=DataLoader(TensorDataset(X, Y), 3, drop_last=True)))
    assert try_task(make_task(train=DataLoader(TensorDataset(X, Y), batch_size=1)))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


@pytest.mark.parametrize("data", [Stream(), [(x, int(y)) for x, y in zip(X, Y, strict=True)]])
def test_samples_where_batches_should_be(data):
    for name in ("calibration", "training"):
        field = {"calibration": "calibration", "training": "train"}[name]
        text = refuse(make_task(**{field: data}))
        assert f"the {name} data's batch[0] has shape (4,), and the example input (2, 4)" in text
        assert "DataLoader" in text
    loader = DataLoader(data, batch_size=5)
    assert try_task(make_task(calibration=loader, train=loader))


@pytest.mark.parametrize(
    ("train", "part"),
    [
        (range(10), "the first training batch"),
        ([], "no batch"),
        ([{"x": X}], "the first training batch"),
        ([(X, Y[:3])], "the first training batch"),
    ],
)
def test_training_data_of_another_form(train, part):
    assert part in refuse(make_task(train=train))


@pytest.mark.parametrize(
    ("batch", "part"),
    [
        (torch.randn(4, 5), "(4, 5) torch.float32) failed"),
        (torch.ones(4, 4, dtype=torch.long), "torch.int64) failed"),
        (torch.ones(4, 4, dtype=torch.complex64), "torch.complex64) failed"),
        (torch.eye(4).to_sparse(), "sparse_coo"),
        (torch.empty(4, 4, device="meta"), "on the meta device"),
    ],
)
def test_calibration_batches_that_the_model_cannot_take(batch, part):
    assert part in refuse(make_task(calibration=[batch]))


def test_workers_without_a_batch_and_a_step_larger_than_the_data():
    task = make_task(train=[(X[:5], Y[:5]), (X[5:], Y[5:])])
    text = refuse(task, workers=1, training={"num_workers": 3})
    assert "fewer batches than training.num_workers, which is 3" in text
    text = refuse(make_task(), workers=1, training={"num_workers": 11})
    assert "fewer samples than training.num_workers, which is 11" in text
    with pytest.warns(UserWarning, match=r"num_workers is 3, and cluster\.workers is 0"):
        try_task(task, training={"num_workers": 3})
    text = refuse(make_task(), training={"global_batch_size": 11})
    assert "training.global_batch_size is 11, and the training data has 10 samples" in text
    # A batch is as small as the data, which is told.
    with pytest.warns(UserWarning, match=r"batch_size is 6 on each of 2 workers, .* 10 samples: every"):
        try_task(make_task(), workers=1, training={"batch_size": 6, "num_workers": 2})


def test_a_forward_and_a_data_set_that_fail_are_told_with_their_place():
    text = refuse(make_task(forward=lambda model, batch: model(batch["image"])))
    assert "the task's forward on the first calibration shard" in text
    assert "failed at test_preflight.py:" in text

    class Broken(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise SystemExit(3)

    assert "reading the validation data failed" in refuse(make_task(validation=Broken()))


class Rows(Dataset):
    def __init__(self):
        self.connection = sqlite3.connect(":memory:")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return X[index], Y[index]


def test_data_that_cannot_travel_is_told_where_it_must():
    rows = Rows()
    task = make_task(train=rows)
    with closing(rows.connection):
        assert "Task(train=...).connection, a Connection, cannot be shipped" in refuse(task, workers=1)
        assert try_task(task)
        assert try_task(task, workers=1, training={"epochs": 0})


def test_a_model_function_that_gives_other_weights_each_time_is_refused_where_workers_call_it():
    assert "gave another model than when" in refuse(make_task(model=Net), workers=1)
    assert try_task(make_task(model=functools.partial(copy.deepcopy, Net())), workers=1)


def test_a_target_that_cannot_be_written_loaded_or_run_is_named(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such operation")

    for method in ("write", "load"):
        with monkeypatch.context() as patch:
            patch.setattr(PackedTarget, method, fail)
            text = refuse(make_task())
        assert "the export target 'packed'" in text
        assert "no such operation" in text


class OfTwo(Net):
    def forward(self, x):
        return super().forward(-x if len(x) == 2 else x)


def test_a_file_of_one_batch_size_needs_a_batch_of_it_to_be_verified_on():
    assert try_task(make_task(model=OfTwo()))
    text = refuse(make_task(model=OfTwo(), validation=TensorDataset(X[:8], Y[:8])))
    assert "the export target 'packed' cannot hold this model: the captured model takes batches of 2" in text


class Flipped(nn.Module):
    """Calls an operation of a library that torch does not bring."""

    def __init__(self, library):
        super().__init__()
        self.library, self.a = library, nn.Linear(4, 3)

    def forward(self, x):
        return getattr(torch.ops, self.library).flip(self.a(x))


@pytest.mark.parametrize("target", ["packed", "pt2"])
def test_an_operation_of_a_library_of_its_own_is_refused_by_name(target):
    library = f"own_{target}"
    flip = torch.library.custom_op(
        f"{library}::flip", lambda x: -x, mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    flip.register_fake(torch.empty_like)
    flip.register_autograd(lambda context, gradient: -gradient)
    text = refuse(make_task(model=Flipped(library)), export={"targets": [target]})
    assert f"calls the operation '{library}::flip'" in text
    assert "operations of torch's own" in text


def test_the_order_of_a_loader_is_what_it_is_without_a_preflight():
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True, generator=generator)
    state = generator.get_state()
    read = functools.partial(try_task, make_task(calibration=loader, train=loader))
    read()
    assert torch.equal(generator.get_state(), state)
