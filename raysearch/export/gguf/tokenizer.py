"""A tokenizer of transformers as GGUF metadata: tokens, their types, merges or scores, special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysearch.errors import ExportError
from raysearch.records.typed_json import parsed

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's types of tokens."""

FILE = "tokenizer.json"

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS: Mapping[str, str] = {
    rf"{_LETTERS}\p{{N}}{{1,3}}{_REST}": "llama-bpe",
    rf"{_LETTERS}\p{{N}}{_REST}": "qwen2",
}
"""The pattern by which text is cut before merges → llama.cpp's name of it."""

GPT2_CUT = "gpt-2"
"""That of a byte-level tokenizer without a pattern of its own."""


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp reads of a tokenizer.

    Attributes:
        kind: "gpt2" where bytes are merged, "llama" where characters are.
        cut: by which text is cut before merges; "" of a kind that is not cut.
        tokens: by id.
        types: of each token.
        scores: of each token where merges follow from them, else empty.
        adds_space: whether text gets a space before it.
    """

    kind: str
    cut: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    adds_space: bool


def numbered_vocabulary(size: int) -> Vocabulary:
    """Tokens named by their ids, for a model without a tokenizer: llama.cpp runs no file without tokens.

    Args:
        size: rows of the embedding.
    """
    tokens = [f"[{index}]" for index in range(size)]
    return Vocabulary("llama", "", tokens, [NORMAL] * size, [0.0] * size, False)


def read_vocabulary(directory: Path, size: int) -> Vocabulary:
    """The vocabulary of a directory.

    Args:
        directory: with tokenizer.json.
        size: rows of the embedding; tokens that the tokenizer lacks are unused ones.

    Raises:
        ExportError: the file is missing, or of a kind that llama.cpp or this writer does not take.
    """
    path = directory / FILE
    if not path.is_file():
        raise ExportError(f"{directory} has no {FILE}; save the tokenizer there with `save_pretrained`.")
    try:
        return _vocabulary(path, size)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{path} is no tokenizer as `save_pretrained` writes it: {error!r:.200}. Save it anew, or leave "
            "'gguf' out of export.targets."
        ) from error


def _vocabulary(path: Path, size: int) -> Vocabulary:
    tokenizer = parsed(path.read_bytes())
    model = tokenizer["model"]
    if model["type"] != "BPE":
        raise ExportError(
            f"{path} is of the type {model['type']}, and the target 'gguf' writes BPE. Leave 'gguf' out of "
            f"export.targets."
        )
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in tokenizer["added_tokens"]}}
    if max(ids.values()) >= size:
        raise ExportError(
            f"{path} has tokens up to {max(ids.values())}, and the embedding has {size} rows; resize it."
        )
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    for token, index in ids.items():
        tokens[index], types[index] = token, NORMAL
    for added in tokenizer["added_tokens"]:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if not model.get("byte_fallback"):
        return Vocabulary("gpt2", _cut(tokenizer, path), tokens, types, [], False)
    for index, token in enumerate(tokens):
        if token.startswith("<0x") and len(token) == 6:
            types[index] = BYTE
        elif token == model.get("unk_token"):
            types[index] = UNKNOWN
    scores = _scores(ids, model["merges"], size)
    return Vocabulary("llama", "", tokens, types, scores, _adds_space(tokenizer))


def _cut(tokenizer: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name of how text is cut."""
    before = tokenizer.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    patterns = [step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"]
    if len(patterns) == 1 and patterns[0] in CUTS:
        return CUTS[patterns[0]]
    if not patterns and any(step.get("type") == "ByteLevel" and step["use_regex"] for step in steps):
        return GPT2_CUT
    raise ExportError(
        f"{path} cuts text in a way that the target 'gguf' has no name for: {patterns or before}. It knows "
        f"those of GPT-2, Llama 3 and Qwen 2. Leave 'gguf' out of export.targets."
    )


def _scores(ids: Mapping[str, int], merges: list[Any], size: int) -> list[float]:
    """The earlier a merge, the higher the score of what it gives: llama.cpp merges by falling scores."""
    scores = [0.0] * size
    for rank, merge in reversed(list(enumerate(merges, 1))):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        scores[ids[first + second]] = -float(rank)
    return scores


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    normalizer = tokenizer.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    before = tokenizer.get("pre_tokenizer") or {}
    prepends = before.get("type") == "Metaspace" and before.get("prepend_scheme", "always") != "never"
    return prepends or any(step.get("type") == "Prepend" for step in steps)
