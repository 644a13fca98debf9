"""Language models: next tokens, or masked ones, of windows of text."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysearch.config import CalibrationConfig, SearchConfig, ValidationConfig
from raysearch.errors import TaskError
from raysearch.evaluation import Metric
from raysearch.evaluation.forward import output_tensor
from raysearch.huggingface.directory import ModelDirectory
from raysearch.huggingface.experts import gather_experts
from raysearch.huggingface.text import Text, TokenWindows, WindowMaker
from raysearch.seeding import derive_seed
from raysearch.task import Task

PERPLEXITY = "perplexity"
MASKED_SHARE = 0.15
"""Of a window's tokens so many are masked."""
MAX_LOGITS = 2**26
"""Logits that a forward of a shard makes: 256 MiB in float32. A run cuts shards to `SHARD_VALUES` of those
that are judged, which of a masked model are few."""


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
    over windows; perplexity is measured beside it, and standard errors take windows for independent. The
    model's cache is switched off in its configuration. The task's settings quantize weights alone, and let a
    shard have at most 2²⁶ logits; a run cuts it to 2²⁴. There is no training data: for distillation,
    `dataclasses.replace(task, train=task.calibration)`.

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
    gather_experts(model, maker.length)
    parts = maker.parts(text, validation_text, test_text)
    calibration = TokenWindows(input_ids=parts.calibration)
    return Task(
        model,
        calibration.first(2),
        calibration=calibration,
        validation=TokenWindows(input_ids=parts.validation),
        test=TokenWindows(input_ids=parts.test),
        metrics={PERPLEXITY: _perplexity(next_token_nll)},
        settings={"placement": {"activation_bit_widths": ()}, **_shard_sizes(maker)},
    )


def _perplexity(nll: Callable[[Any, Any], Tensor]) -> Metric:
    """The exponential of a mean over windows; its standard error is that of independent windows."""
    return Metric(nll, direction="minimize", per_sample=True, of_mean=math.exp)


def _shard_sizes(maker: WindowMaker) -> dict[str, Any]:
    """Settings of shards whose logits fit into memory."""
    most = max(1, MAX_LOGITS // (maker.length * maker.num_tokens))
    return {
        section: {"shard_size": min(most, config.shard_size)}
        for section, config in (
            ("calibration", CalibrationConfig()),
            ("validation", ValidationConfig()),
            ("search", SearchConfig()),
        )
    }


def masked_lm_task(
    model_dir: str | os.PathLike[str],
    text: Text,
    *,
    validation_text: Text | None = None,
    test_text: Text | None = None,
    window: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Task:
    """A masked language model in a local Hugging Face directory, with text.

    The text is cut into windows without overlap, each of which begins and ends as the tokenizer begins and
    ends a text. 15 % of a window's tokens are masked, the same in every run. It is judged by the KL
    divergence of what stands there to the float model; the perplexity of the masked tokens is measured beside
    it.

    Args:
        model_dir: as `save_pretrained` writes it.
        text: see `causal_lm_task`, as for what follows.
        validation_text: trials are judged on it.
        test_text: nothing is chosen by it.
        window: tokens in a window, special ones included.
        trust_remote_code: whether Python files in the directory may be run.
        allow_pickle: whether weights may be read from pickle files.

    Raises:
        TaskError: see `causal_lm_task`; or the tokenizer has no token for a mask.
        DataError: a text cannot be read, or is too short.
    """
    directory = ModelDirectory(Path(model_dir), trust_remote_code, allow_pickle)
    model = directory.load_model("AutoModelForMaskedLM")
    maker = replace(WindowMaker.of(directory, model, window), with_end=True)
    token = maker.tokenizer.mask_token_id
    if token is None:
        raise TaskError(f"the tokenizer in '{directory.path}' has no mask token, so nothing can be masked.")
    parts = maker.parts(text, validation_text, test_text)
    body = maker.body()
    calibration = _with_masks(parts.calibration, body, token, "calibration")
    return Task(
        model,
        {"input_ids": calibration.columns["input_ids"][:2]},
        calibration=calibration,
        validation=_with_masks(parts.validation, body, token, "validation"),
        test=_with_masks(parts.test, body, token, "test"),
        forward=logits_at_masks,
        metrics={PERPLEXITY: _perplexity(masked_token_nll)},
        settings=_shard_sizes(maker),
    )


def _with_masks(windows: Tensor, body: range, token: int, name: str) -> TokenWindows:
    """Windows with masked tokens, their places and what stood there.

    Args:
        windows: [windows, tokens].
        body: the places of a window that hold text.
        token: that of a mask.
        name: of the part; the draws are seeded by it.
    """
    count = max(1, round(MASKED_SHARE * len(body)))
    generator = torch.Generator().manual_seed(derive_seed(0, "masked-tokens", name))
    order = torch.rand(len(windows), len(body), generator=generator).argsort(1)
    places = (body.start + order[:, :count]).sort(1).values
    return TokenWindows(
        input_ids=windows.scatter(1, places, token), places=places, labels=windows.gather(1, places)
    )


def logits_at_masks(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits of the masked tokens, [windows, masks, tokens]."""
    logits = output_tensor(model(input_ids=batch["input_ids"]))
    places = batch["places"].to(logits.device)
    return logits.gather(1, places[..., None].expand(*places.shape, logits.shape[-1]))


def masked_token_nll(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean negative log-likelihood of what stood at each window's masks, [windows]."""
    logits = output_tensor(outputs)
    rows = [
        F.cross_entropy(row.float(), tokens.to(row.device))
        for row, tokens in zip(logits, batch["labels"], strict=True)
    ]
    return torch.stack(rows).double()


def next_token_nll(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean negative log-likelihood of each window's next tokens, [windows]."""
    logits = output_tensor(outputs)
    rows = [
        # One window at a time: with a vocabulary its logits outweigh the rest.
        F.cross_entropy(row[:-1].float(), tokens[1:].to(row.device))
        for row, tokens in zip(logits, batch["input_ids"], strict=True)
    ]
    return torch.stack(rows).double()
