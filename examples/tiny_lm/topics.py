"""Python's help topics as text: parts for training, calibration, validation and test, and their windows.

`python examples/tiny_lm/topics.py FOLDER` writes each part as a text file.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

MODEL = Path(__file__).with_name("model")
WINDOW = 128
"""Tokens that are read at once."""

TEST = ("calls", "execmodel", "import", "strings")
VALIDATION = ("assignment", "comparisons", "identifiers", "typesmapping")
CALIBRATION = ("debugger", "objects", "operator-summary", "raise")
LEAST = 40
"""Characters from which a paragraph counts as the same wherever it stands."""


def paragraphs(names: list[str]) -> list[str]:
    """All paragraphs of some topics, with their layout."""
    return [paragraph for name in names for paragraph in topics[name].split("\n\n")]


def load_texts() -> dict[str, str]:
    """Part → its text.

    Topics quote one another at length ("compound" holds all of "for"), so a paragraph stays only in the first
    part that has it, and there once.
    """
    chosen = {"test": TEST, "validation": VALIDATION, "calibration": CALIBRATION}
    elsewhere = set().union(*chosen.values())
    others = sorted(set(topics) - elsewhere, key=lambda name: (-len(topics[name]), name))
    seen: set[str] = set()
    texts: dict[str, str] = {}
    for part, names in {**chosen, "train": others}.items():
        fresh: list[str] = []
        for paragraph in paragraphs(list(names)):
            words = " ".join(paragraph.split())
            if words in seen:
                continue
            if len(words) >= LEAST:
                seen.add(words)
            fresh.append(paragraph)
        texts[part] = "\n\n".join(fresh)
    return texts


def windows(text: str, tokenizer: Any, length: int = WINDOW) -> Tensor:
    """Token ids [windows, length]; what is left over at the end is dropped."""
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False))
    count = len(ids) // length
    return ids[: count * length].reshape(count, length)


def main() -> None:
    """Write the parts into the folder that is named."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/topics")
    folder.mkdir(parents=True, exist_ok=True)
    for part, text in load_texts().items():
        (folder / f"{part}.txt").write_text(text)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    main()
