"""A task for another kind of model, written from the README alone: integer inputs, dict batches."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import raysearch
from raysearch.artifacts import codecs, resolve_run
from tests.support.command_line import QUICK

pytestmark = pytest.mark.slow

VOCABULARY, LENGTH, CLASSES = 60, 12, 3


class TextClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.hidden = nn.Linear(16, 24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, tokens):
        return self.head(F.gelu(self.hidden(self.embedding(tokens).mean(1))))


def batches(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count, 16), generator=generator)
    noise = torch.randint(0, VOCABULARY, (count, 16, LENGTH), generator=generator)
    topic = torch.randint(0, 20, (count, 16, LENGTH), generator=generator) + 20 * labels[..., None]
    tokens = torch.where(torch.rand(count, 16, LENGTH, generator=generator) < 0.6, topic, noise)
    return [{"tokens": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]


def make_task():
    torch.manual_seed(0)
    model = TextClassifier()
    train = batches(20, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        for batch in train:
            optimizer.zero_grad()
            F.cross_entropy(model(batch["tokens"]), batch["labels"]).backward()
            optimizer.step()
    return raysearch.Task(
        model=model.eval(),
        example_inputs=(torch.zeros(2, LENGTH, dtype=torch.long),),
        calibration=train,
        validation=batches(8, 1),
        train=train,
        loss=lambda outputs, batch: F.cross_entropy(outputs, batch["labels"]),
        metrics={"accuracy": lambda out, batch: (out.argmax(1) == batch["labels"]).float().mean().item()},
    )


def test_a_text_classifier_walks_through_unchanged(tmp_path):
    task = make_task()
    result = raysearch.run(
        task,
        ["avg_bits<=3.5", "size<=35%"],
        tmp_path,
        config=raysearch.load_config(assignments=QUICK),
        run_id="text",
        workers=0,
    )
    assert "embedding.weight" in result.assignment
    assert result.costs["avg_bits"] <= 3.5
    assert result.quantized_metrics["accuracy"] >= result.float_metrics["accuracy"] - 0.05
    manifest = resolve_run("text", tmp_path).load(codecs.MANIFEST)
    assert {check.target for check in manifest.checks} == {"packed", "onnx"}
    model = raysearch.load_model(result.model_dir)
    tokens = batches(1, 2)[0]["tokens"]
    with torch.no_grad():
        by_name = model(tokens=tokens)
        assert torch.equal(by_name, model(tokens))
        assert (by_name.argmax(1) == task.model(tokens).argmax(1)).float().mean() > 0.8
