"""The task that raysearch runs: the trained language model and windows of text that it reads."""

from dataclasses import replace
from pathlib import Path

from topics import MODEL, WINDOW, load_texts

from raysearch import Task
from raysearch.huggingface import ModelDirectory, causal_lm_task
from raysearch.huggingface.text import TokenWindows, WindowMaker


def make_task(model: str | Path = MODEL) -> Task:
    """A directory with a causal language model, by default this one's, with Python's help topics.

    Calibration, validation, training and test text are apart; nothing is chosen by the test text.

    There is no loss: training follows the float model's probabilities of the next token.
    """
    texts = load_texts()
    task = causal_lm_task(
        model,
        texts["calibration"],
        validation_text=texts["validation"],
        test_text=texts["test"],
        window=WINDOW,
    )
    maker = WindowMaker.of(ModelDirectory(model), task.model, WINDOW)
    return replace(task, train=TokenWindows(input_ids=maker.windows(texts["train"], "training")))
