"""Samples with their labels, from files or as they are given, in parts that share none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from raysearch.errors import DataError
from raysearch.huggingface.text import HELD_OUT, read_text

T = TypeVar("T")
Labelled = tuple[T, str | int | None]
"""A sample and its label; None where it has none."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class SampleParts(Generic[T]):
    """Samples apart for what they serve, as the windows of a text are.

    Attributes:
        calibration: ranges, moments, traces, responses and training are of these.
        validation: trials are judged on these.
        test: nothing is chosen by these.
    """

    calibration: list[Labelled[T]]
    validation: list[Labelled[T]]
    test: list[Labelled[T]]


def parts_of(
    samples: Any, validation: Any, test: Any, read: Callable[[Any], list[Labelled[T]]]
) -> SampleParts[T]:
    """The samples of the three parts.

    Of samples that serve for several, one in ten is the test's and one in ten validation's, evenly spread
    over their order, since files often come label by label.

    Args:
        samples: of calibration.
        validation: None: a part of `samples`.
        test: None: a part of `samples`.
        read: gives the samples of each.

    Raises:
        DataError: there are too few.
    """
    every = read(samples)
    num_parts = 1 + (validation is None) + (test is None)
    if len(every) < num_parts:
        raise DataError(
            f"there are {len(every)} samples, and {num_parts} parts are made of them (calibration, "
            f"validation, test), which share none; give more, or data of their own to validation and test."
        )
    turn = min(HELD_OUT, max(len(every), 1))
    chosen: dict[str, list[Labelled[T]]] = {"calibration": [], "validation": [], "test": []}
    for index, sample in enumerate(every):
        part = "calibration"
        if test is None and index % turn == turn - 1:
            part = "test"
        elif validation is None and index % turn == (turn - 1) // 2:
            part = "validation"
        chosen[part].append(sample)
    if validation is not None:
        chosen["validation"] = read(validation)
    if test is not None:
        chosen["test"] = read(test)
    return SampleParts(**chosen)


def read_lines(samples: Any) -> list[Labelled[str]]:
    """Texts: the lines of UTF-8 files, each with its label behind a tab; or texts, or pairs, as given.

    The lines of a `.jsonl` file are objects with a "text" and perhaps a "label".

    Raises:
        DataError: a file cannot be read, or there is no sample.
    """
    if isinstance(samples, Path):
        samples = [samples]
    pairs: list[Labelled[str]] = []
    for entry in samples:
        if isinstance(entry, Path):
            lines = [line for line in read_text(entry).splitlines() if line.strip()]
            read = partial(_json_line, entry) if entry.suffix == ".jsonl" else _line
            pairs.extend(map(read, lines))
        else:
            pairs.append((entry, None) if isinstance(entry, str) else tuple(entry))
    if not pairs:
        raise DataError("there are no texts; give a file with one a line, or a list of them.")
    return pairs


def _line(line: str) -> Labelled[str]:
    text, tab, label = line.rpartition("\t")
    return (text, label.strip()) if tab else (line, None)


def _json_line(path: Path, line: str) -> Labelled[str]:
    try:
        entry = json.loads(line)
        text, label = entry["text"], entry.get("label")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f'a line of {path} is no JSON object with a "text" and perhaps a "label": {line:.80}'
        ) from error
    return (str(text), None if label is None else str(label))


def read_images(samples: Any) -> list[Labelled[Any]]:
    """Images: the files of folders, each with the name of its subfolder as label; or as given.

    Raises:
        DataError: a folder is missing, or there is no image.
    """
    if isinstance(samples, Path):
        samples = [samples]
    pairs: list[Labelled[Any]] = []
    for entry in samples:
        if isinstance(entry, Path):
            pairs.extend(_files_of(entry.expanduser()))
        else:
            pairs.append(tuple(entry) if isinstance(entry, tuple) else (entry, None))
    if not pairs:
        raise DataError(
            f"there are no images (looked for {', '.join(IMAGE_SUFFIXES)}); give a folder of them, perhaps "
            f"with a folder for each label, or a list."
        )
    return pairs


def _files_of(folder: Path) -> list[Labelled[Any]]:
    if not folder.is_dir():
        raise DataError(f"the folder of images '{folder}' does not exist.")
    pairs: list[Labelled[Any]] = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            pairs.append((file, None if file.parent == folder else file.parent.name))
    return pairs


def label_numbers(pairs: Sequence[Labelled[Any]], label2id: Mapping[str, int]) -> list[int] | None:
    """The class of each sample; None where none has a label.

    Args:
        pairs: the samples.
        label2id: of the model's configuration; numbers count as they are.

    Raises:
        DataError: some have labels and others not, or the model does not know a label.
    """
    labels = [label for _, label in pairs]
    if all(label is None for label in labels):
        return None
    numbers: list[int] = []
    for index, label in enumerate(labels):
        number = label2id.get(str(label))
        if number is None and str(label).isdigit():
            number = int(str(label))
        if label is None or number is None or number not in label2id.values():
            known = ", ".join(list(label2id)[:8])
            raise DataError(
                f"sample {index} has the label {label!r}, which is none of the model's ({known}, or their "
                f"numbers); mend it, or give no labels at all."
            )
        numbers.append(number)
    return numbers
