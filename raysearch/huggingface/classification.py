"""Classifiers of texts and of images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.errors import DataError, TaskError
from raysearch.evaluation import Metric
from raysearch.evaluation.forward import output_tensor
from raysearch.huggingface.directory import ModelDirectory
from raysearch.huggingface.rows import Rows
from raysearch.huggingface.samples import Labelled, label_numbers, parts_of, read_images, read_lines
from raysearch.huggingface.text import window_for
from raysearch.task import Task

ACCURACY = "accuracy"


def sequence_classification_task(
    model_dir: str | os.PathLike[str],
    samples: Any,
    *,
    validation_data: Any = None,
    test_data: Any = None,
    window: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Task:
    """A classifier of texts in a local Hugging Face directory, with texts.

    Texts are padded to the longest, and what they are padded with does not count (see
    `Task.positions`). Labels are needed for the accuracy alone.

    Args:
        model_dir: as `save_pretrained` writes it.
        samples: a `Path` of a UTF-8 file with a text a line, perhaps with its label behind a tab; or several;
            or a list of texts or of pairs (text, label).
        validation_data: trials are judged on it. Default: every tenth of `samples`.
        test_data: nothing is chosen by it. Default: every tenth of `samples`.
        window: most tokens of a text, which is cut there. Default: 512, or as many as the model takes.
        trust_remote_code: whether Python files in the directory may be run.
        allow_pickle: whether weights may be read from pickle files.

    Raises:
        TaskError: the directory holds no such model or tokenizer, or something in it is not allowed.
        DataError: samples cannot be read, are too few, or have labels that the model does not know.
    """
    directory = ModelDirectory(Path(model_dir), trust_remote_code, allow_pickle)
    model = directory.load_model("AutoModelForSequenceClassification")
    tokenizer = directory.load_tokenizer()
    if tokenizer.pad_token_id is None:
        raise TaskError(
            f"the tokenizer in '{directory.path}' has no padding token, and texts of several lengths make a "
            f"batch; set one (`tokenizer.pad_token = tokenizer.eos_token`) and save it."
        )
    length = window_for(model, window)
    parts = parts_of(samples, validation_data, test_data, read_lines)
    return _task(model, _padded(tokenizer, _lists(parts), length), _lists(parts))


def image_classification_task(
    model_dir: str | os.PathLike[str],
    samples: Any,
    *,
    validation_data: Any = None,
    test_data: Any = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Task:
    """A classifier of images in a local Hugging Face directory, with images.

    Labels are needed for the accuracy alone.

    Args:
        model_dir: as `save_pretrained` writes it, with preprocessor_config.json where images are files.
        samples: a `Path` of a folder of images, perhaps with a subfolder for each label; or several; or a
            list of images, or of pairs (image, label). A tensor [3, height, width] is taken as the pixels
            that the model reads.
        validation_data: trials are judged on it. Default: every tenth of `samples`.
        test_data: nothing is chosen by it. Default: every tenth of `samples`.
        trust_remote_code: whether Python files in the directory may be run.
        allow_pickle: whether weights may be read from pickle files.

    Raises:
        TaskError: the directory holds no such model or image processor, or something in it is not allowed.
        DataError: samples cannot be read, are too few, or have labels that the model does not know.
    """
    directory = ModelDirectory(Path(model_dir), trust_remote_code, allow_pickle)
    model = directory.load_model("AutoModelForImageClassification")
    parts = parts_of(samples, validation_data, test_data, read_images)
    columns = [{"pixel_values": _pixels(directory, part)} for part in _lists(parts)]
    return _task(model, columns, _lists(parts))


def hits(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """1 for each sample whose label has the greatest logit, else 0."""
    classes = output_tensor(outputs).argmax(-1)
    return (classes == batch["labels"].to(classes.device)).double()


def attended(batch: Mapping[str, Tensor]) -> Tensor:
    """The positions that are no padding."""
    return batch["attention_mask"].bool()


def _lists(parts: Any) -> list[list[Labelled[Any]]]:
    return [parts.calibration, parts.validation, parts.test]


def _task(
    model: nn.Module, columns: Sequence[Mapping[str, Tensor]], parts: Sequence[Sequence[Labelled[Any]]]
) -> Task:
    config: Any = model.config
    labels = [label_numbers(part, config.label2id) for part in parts]
    has_labels = all(numbers is not None for numbers in labels) and len(config.label2id) > 1
    sets: list[Rows] = []
    for inputs, numbers in zip(columns, labels, strict=True):
        targets = {"labels": torch.tensor(numbers)} if has_labels else {}
        sets.append(Rows(**inputs, **targets))
    calibration, validation, test = sets
    example = {name: value[:2] for name, value in columns[0].items()}
    return Task(
        model,
        example,
        calibration=calibration,
        validation=validation,
        test=test,
        metrics={ACCURACY: Metric(hits, direction="maximize", per_sample=True)} if has_labels else {},
        positions=attended if "attention_mask" in example else None,
    )


def _padded(tokenizer: Any, parts: Sequence[Sequence[Labelled[str]]], length: int) -> list[dict[str, Tensor]]:
    """The tokens and the mask of every part, all of one length."""
    rows = [_tokens(tokenizer, part, length) for part in parts]
    longest = max(len(row) for part in rows for row in part)
    columns: list[dict[str, Tensor]] = []
    for part in rows:
        ids = torch.full((len(part), longest), tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros(len(part), longest, dtype=torch.long)
        for index, row in enumerate(part):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        columns.append({"input_ids": ids, "attention_mask": mask})
    return columns


def _tokens(tokenizer: Any, part: Sequence[Labelled[str]], length: int) -> list[list[int]]:
    texts = [text for text, _ in part]
    rows: list[list[int]] = tokenizer(texts, truncation=True, max_length=length, verbose=False)["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise DataError(f"the text {text!r} has no tokens; leave it out.")
    return rows


def _pixels(directory: ModelDirectory, part: Sequence[Labelled[Any]]) -> Tensor:
    images = [image for image, _ in part]
    if all(isinstance(image, Tensor) for image in images):
        return torch.stack(images)
    processor = directory.load_image_processor()
    rows = [processor(_opened(image), return_tensors="pt")["pixel_values"][0] for image in images]
    return torch.stack(rows)


def _opened(image: Any) -> Any:
    """An image in memory, of a file as three colours."""
    if not isinstance(image, Path):
        return image
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(image) as file:
            return file.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"the image '{image}' cannot be read: {error}.") from error
