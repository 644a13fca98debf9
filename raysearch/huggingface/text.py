"""Text as windows of tokens, in parts that never share any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.errors import DataError, TaskError
from raysearch.huggingface.directory import ModelDirectory
from raysearch.huggingface.rows import Rows

Text = str | Path | Sequence[Path]
"""A text itself, or UTF-8 files of it that are read one after the other."""

DEFAULT_WINDOW = 512
"""Tokens in a window, where the model takes so many."""
HELD_OUT = 10
"""Of so many windows of a text one is validation's, and one is the test's."""

_LONGEST_NAME = 256


@dataclass(frozen=True)
class TextParts:
    """Windows of text, apart for what they serve: [windows, tokens] each.

    Attributes:
        calibration: ranges, moments, traces, responses and training are of these.
        validation: trials are judged on these.
        test: nothing is chosen by these.
    """

    calibration: Tensor
    validation: Tensor
    test: Tensor


class TokenWindows(Rows):
    """Windows of tokens, and what belongs to each."""


def read_text(text: Text) -> str:
    """The text, or what stands in its files.

    Raises:
        DataError: a file is missing, or is no UTF-8 text; or the text is the name of a file.
    """
    if isinstance(text, str):
        if "\n" not in text and len(text) < _LONGEST_NAME and Path(text).expanduser().is_file():
            raise DataError(f"the text is '{text}', the name of a file; to read it, give Path('{text}').")
        return text
    if isinstance(text, Path):
        return _read_file(text)
    return "\n".join(_read_file(Path(path)) for path in text)


def _read_file(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"the text file '{path}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"the text file '{path}' is no UTF-8 text (byte {error.start}); convert it, or give another."
        ) from error


def longest_window(model: nn.Module) -> int | None:
    """The most positions that a model takes; None where nothing limits them."""
    for name, module in model.named_modules():
        # RoBERTa's positions begin behind that of padding.
        is_position = name.rsplit(".", 1)[-1] in ("position_embeddings", "embed_positions")
        if is_position and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def window_for(model: nn.Module, window: int | None) -> int:
    """The length of windows that is asked for, or as many tokens as suit.

    Raises:
        TaskError: the model does not take so many, or there would be nothing to predict.
    """
    limit = longest_window(model)
    if window is None:
        return min(DEFAULT_WINDOW, limit or DEFAULT_WINDOW)
    if limit is not None and window > limit:
        raise TaskError(
            f"window is {window} tokens, and {type(model).__name__} takes at most {limit} positions; give a "
            f"window of 2 to {limit}."
        )
    if window < 2:
        raise TaskError(f"window is {window} tokens; it must be at least 2, one to predict the next from.")
    return window


@dataclass(frozen=True)
class WindowMaker:
    """Makes windows of a text: tokens in its order, with what the tokenizer puts around a text.

    Attributes:
        tokenizer: of the model.
        length: tokens in a window, special ones included.
        num_tokens: size of the model's vocabulary.
        with_end: whether a window ends as a text does, too; it begins as a text does in any case.
    """

    tokenizer: Any
    length: int
    num_tokens: int
    with_end: bool = False

    @classmethod
    def of(cls, directory: ModelDirectory, model: nn.Module, window: int | None) -> WindowMaker:
        """For the model in a directory; see `window_for`."""
        tokenizer = directory.load_tokenizer()
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
        return cls(tokenizer, window_for(model, window), int(embeddings.num_embeddings))

    def windows(self, text: str, name: str) -> Tensor:
        """[windows, length]; tokens that fill no whole window are left out.

        Args:
            text: what is cut.
            name: what the text is for, for messages.

        Raises:
            DataError: the text is shorter than a window.
            TaskError: the tokenizer gives tokens that the model does not know.
        """
        start, end = self._around()
        body = self.length - len(start) - len(end)
        if body < 1:
            raise TaskError(
                f"window is {self.length} tokens, of which the tokenizer's special ones take "
                f"{len(start) + len(end)}; give a longer window."
            )
        tokens = torch.tensor(self._plain(text), dtype=torch.long)
        count = len(tokens) // body
        if not count:
            raise DataError(
                f"the {name} text has {len(tokens)} tokens, and a window takes {body}; give a longer text, "
                f"or a shorter window."
            )
        if int(tokens.max()) >= self.num_tokens:
            raise TaskError(
                f"the tokenizer gives the token {int(tokens.max())}, and the model knows {self.num_tokens} "
                f"tokens; the two do not belong together."
            )
        rows = tokens[: count * body].reshape(count, body)
        return torch.cat([_repeated(start, count), rows, _repeated(end, count)], 1)

    def body(self) -> range:
        """The places of a window that hold text, and no special token."""
        start, end = self._around()
        return range(len(start), self.length - len(end))

    def parts(self, text: Text, validation_text: Text | None, test_text: Text | None) -> TextParts:
        """The windows of the three parts.

        Of a text that serves for several, the last tenth of the windows is the test's, the tenth before it
        validation's, and the rest calibration's: contiguous parts, so that no window has its neighbours in
        another part but at two places.

        Args:
            text: of calibration.
            validation_text: None: a part of `text`.
            test_text: None: a part of `text`.

        Raises:
            DataError: a text is too short.
        """
        windows = self.windows(read_text(text), "calibration")
        held_out = max(1, len(windows) // HELD_OUT)
        num_parts = 1 + (validation_text is None) + (test_text is None)
        if len(windows) < num_parts:
            raise DataError(
                f"the text has {len(windows)} windows of {self.length} tokens, and {num_parts} parts are "
                f"made of it (calibration, validation, test), which share no window; give a longer text, a "
                f"shorter window, or texts of their own to validation and test."
            )
        if test_text is None:
            windows, test = windows[:-held_out], windows[-held_out:]
        else:
            test = self.windows(read_text(test_text), "test")
        if validation_text is None:
            windows, validation = windows[:-held_out], windows[-held_out:]
        else:
            validation = self.windows(read_text(validation_text), "validation")
        return TextParts(windows, validation, test)

    def _plain(self, text: str) -> list[int]:
        # Longer than the model takes, which the tokenizer would remark on; it is cut.
        tokens = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [int(token) for token in tokens]

    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens before and behind a text."""
        special = set(self.tokenizer.all_special_ids)
        tokens = [int(token) for token in self.tokenizer("a", verbose=False)["input_ids"]]
        body = self._plain("a")
        first = next((at for at in range(len(tokens)) if tokens[at : at + len(body)] == body), 0)
        start = [token for token in tokens[:first] if token in special]
        end = tokens[first + len(body) :]
        return start, end if self.with_end else []


def _repeated(tokens: list[int], count: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.long).expand(count, len(tokens))
