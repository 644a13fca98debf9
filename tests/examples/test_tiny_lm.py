"""The small language model that lies in examples/tiny_lm."""

import sys
from pathlib import Path

import pytest
import torch

from raysearch.task import load_task
from tests.support.model_directories import save_llama

FOLDER = Path(__file__).parents[2] / "examples" / "tiny_lm"
PARTS = ["calibration", "test", "train", "validation"]


@pytest.fixture
def topics(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield pytest.importorskip("topics")
    sys.modules.pop("topics", None)


def test_parts_of_the_text_share_no_paragraph(topics):
    texts = topics.load_texts()
    assert sorted(texts) == PARTS
    paragraphs = [" ".join(part.split()) for text in texts.values() for part in text.split("\n\n")]
    long = [paragraph for paragraph in paragraphs if len(paragraph) >= topics.LEAST]
    assert len(long) == len(set(long))
    # Topics that quote others are not in the training text twice.
    assert len(texts["train"]) < sum(map(len, topics.topics.values())) * 0.7


def test_the_model_reads_text_that_it_has_not_seen(topics):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(topics.MODEL, dtype=torch.float32)
    assert (topics.MODEL / "model.safetensors").stat().st_size < 4e6
    tokenizer = AutoTokenizer.from_pretrained(topics.MODEL)
    text = topics.load_texts()["test"]
    ids = topics.windows(text, tokenizer)
    assert tokenizer.decode(ids.flatten()[:200]) == text[: len(tokenizer.decode(ids.flatten()[:200]))]
    with torch.no_grad():
        logits = model(ids[:8]).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:8, 1:].flatten())
    assert loss.exp() < 80


def test_its_task_may_be_of_another_directory(topics, tmp_path):
    directory = save_llama(tmp_path, max_position_embeddings=topics.WINDOW)
    task = load_task(f"{FOLDER}/task.py:make_task?model={directory}")
    assert task.model.config.vocab_size == 20
    for part in (task.calibration, task.validation, task.test, task.train):
        assert part.columns["input_ids"].shape[1] == topics.WINDOW
