"""Language models: next tokens from windows of text."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from raysearch.config import CalibrationConfig, SearchConfig, ValidationConfig
from raysearch.evaluation import Batch, Metric
from raysearch.evaluation.forward import output_tensor
from raysearch.huggingface.directory import ModelDirectory
from raysearch.huggingface.text import Text, TokenWindows, WindowMaker
from raysearch.task import Task

PERPLEXITY = "perplexity"
MAX_LOGITS = 2**26
"""Logits of a shard: 256 MiB of them are held at once, in float32."""


def causal_lm_task(
    model_dir: str | os.PathLike[str],
    text: Text,
    *,
    validation_text: Text | None = None,
    test_text: Text | None = None,
    window: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Task:
    """A causal language model in a local Hugging Face directory, with text.

    The text is cut into windows without overlap, each of which begins as the tokenizer begins a text. It is
    judged by the KL divergence of next tokens to the float model, averaged over the positions of a window and
    over windows; perplexity is measured beside it. Its cache is switched off in the model's configuration.
    The task's settings quantize weights alone, and let a shard have at most 2²⁶ logits. There is no training
    data: for distillation, `dataclasses.replace(task, train=task.calibration)`.

    Args:
        model_dir: as `save_pretrained` writes it: config.json, safetensors, the tokenizer's files.
        text: the text itself, or a `Path` of a UTF-8 file, or several.
        validation_text: trials are judged on it. Default: the tenth of `text`'s windows before the last.
        test_text: nothing is chosen by it. Default: the last tenth of `text`'s windows.
        window: tokens in a window. Default: 512, or as many as the model takes.
        trust_remote_code: whether Python files in the directory may be run.
        allow_pickle: whether weights may be read from pickle files.

    Raises:
        TaskError: the directory holds no such model or tokenizer, or something in it is not allowed; or the
            window is longer than the model takes.
        DataError: a text cannot be read, or is too short.
    """
    directory = ModelDirectory(Path(model_dir), trust_remote_code, allow_pickle)
    model = directory.load_model("AutoModelForCausalLM")
    maker = WindowMaker.of(directory, model, window)
    parts = maker.parts(text, validation_text, test_text)
    calibration = TokenWindows(input_ids=parts.calibration)
    return Task(
        model,
        calibration.first(2),
        calibration=calibration,
        validation=TokenWindows(input_ids=parts.validation),
        metrics={PERPLEXITY: Metric(next_token_perplexity, direction="minimize")},
        settings=_settings(maker),
    )


def _settings(maker: WindowMaker) -> dict[str, Any]:
    """Weights alone, and shards whose logits fit into memory."""
    most = max(1, MAX_LOGITS // (maker.length * maker.num_tokens))
    sizes = {
        section: {"shard_size": min(most, config.shard_size)}
        for section, config in (
            ("calibration", CalibrationConfig()),
            ("validation", ValidationConfig()),
            ("search", SearchConfig()),
        )
    }
    return {"placement": {"activation_bit_widths": ()}, **sizes}


def next_token_perplexity(outputs: Any, batch: Batch) -> float:
    """The exponential of the mean negative log-likelihood of a batch's next tokens."""
    return math.exp(float(next_token_nll(outputs, batch).mean()))


def next_token_nll(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean negative log-likelihood of each window's next tokens, [windows]."""
    logits = output_tensor(outputs)
    rows = [
        # One window at a time: with a vocabulary its logits outweigh the rest.
        F.cross_entropy(row[:-1].float(), tokens[1:].to(row.device))
        for row, tokens in zip(logits, batch["input_ids"], strict=True)
    ]
    return torch.stack(rows).double()
