"""A bfloat16 model goes the whole walk, and what does not hold it is told before anything is computed."""

import pytest
import torch

import raysearch
from raysearch.artifacts import codecs, resolve_run
from raysearch.errors import TaskError
from tests.support import toy_task
from tests.support.command_line import QUICK

pytestmark = pytest.mark.slow

SETTINGS = raysearch.load_config(assignments=QUICK)


class Cast(toy_task.ToyNet):
    """Takes its type from its weights, as models in half precision do."""

    def forward(self, x):
        return super().forward(x.to(self.head.bias.dtype))


def make_task():
    task = toy_task.make_task()
    model = Cast()
    model.load_state_dict(task.model.state_dict())
    task.model = model.to(torch.bfloat16).eval()
    return task


def test_a_bfloat16_model_is_trained_and_reaches_every_file(tmp_path):
    result = raysearch.run(make_task(), "avg_bits<=4", tmp_path, config=SETTINGS, run_id="half", workers=0)
    assert any("onnx: the file takes, computes and gives float32" in note for note in result.notes)
    manifest = resolve_run("half", tmp_path).load(codecs.MANIFEST)
    assert {check.target for check in manifest.checks} == {"packed", "onnx"}
    assert manifest.checks[0].max_abs_difference == 0.0
    model = raysearch.load_model(tmp_path / "half" / "model")
    images, _ = toy_task.data(4, 5).tensors
    assert model(images).dtype == torch.bfloat16


def test_a_forward_that_insists_on_bfloat16_is_refused_before_compute(tmp_path):
    task = make_task()
    task.model = toy_task.net().to(torch.bfloat16)
    task.example_inputs = (task.example_inputs[0].to(torch.bfloat16),)
    task.forward = lambda model, batch: model(batch[0].to(torch.bfloat16))
    with pytest.raises(TaskError, match="is measured in float32, in which it does not run"):
        raysearch.run(task, "avg_bits<=4", tmp_path, run_id="half", workers=0)
    assert not (tmp_path / "half").exists()
