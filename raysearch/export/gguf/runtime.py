"""A GGUF file in llama.cpp, as a module: from token ids to the log-probabilities of every next token."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.errors import ExportError, StorageError
from raysearch.export.gguf.packages import GGUF
from raysearch.export.gguf.tokenizer import NORMAL
from raysearch.export.outputs import NamedOutputs

FORCED = 1e4
"""Added to the logit of a token that is to be answered; the probabilities are those without it."""

FIRST_CONTEXT = 256
"""Tokens that a server takes at first; more where a prompt is longer."""


@dataclass(frozen=True)
class Part:
    """What is computed of all the log-probabilities; what is not is NaN.

    Attributes:
        prompts: rows of token ids, of all calls together.
        prefixes: of each row, evenly spaced, the longest one among them.
        tokens: the most probable next tokens of each prefix.
    """

    prompts: float = math.inf
    prefixes: float = math.inf
    tokens: float = math.inf


EVERYTHING = Part()


class GgufModel(nn.Module):
    """Runs a file in llama.cpp on the CPU, in float32 but for what its kernels quantize by themselves.

    Kernels of quantized types round the vectors that they multiply with to 8 bits, block by block.
    An assertion of llama.cpp ends the process that this runs in, so others ask `ServedGguf` instead.

    Args:
        path: the file.
        part: what of the log-probabilities is computed.

    Raises:
        ExportError: the extra is missing.
        StorageError: llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, part: Part = EVERYTHING) -> None:
        super().__init__()
        GGUF.require("gguf")
        self._path = path
        self._part = part
        self._vocab_size, self._plain_token = read_vocabulary(path)
        self._prompts_left = part.prompts
        self._context = 0
        self._server: Any = None
        self._serve(FIRST_CONTEXT)

    def forward(self, *args: Any, **kwargs: Any) -> NamedOutputs:
        """Log-probabilities in the place of the logits, [samples, tokens, vocabulary].

        Args:
            args: token ids first, then perhaps which of them count.
            kwargs: the same as `input_ids` and `attention_mask`; other arguments are not read.

        Raises:
            ExportError: there are no token ids.
        """
        tensors = [value for value in args if isinstance(value, Tensor)]
        ids = kwargs.get("input_ids", tensors[0] if tensors else None)
        if ids is None or ids.ndim != 2 or ids.is_floating_point():
            raise ExportError(
                "a GGUF file takes token ids, [samples, tokens], as the first argument or as `input_ids`."
            )
        mask = kwargs.get("attention_mask", tensors[1] if len(tensors) > 1 else None)
        if mask is None or mask.shape != ids.shape:
            mask = torch.ones_like(ids)
        outputs = torch.full((*ids.shape, self._vocab_size), math.nan)
        for row, row_ids in enumerate(ids):
            if self._prompts_left <= 0:
                break
            self._prompts_left -= 1
            places = mask[row].nonzero()[:, 0]
            self._run(row_ids[places].tolist(), places, outputs[row])
        return NamedOutputs(logits=outputs)

    def _run(self, ids: list[int], places: Tensor, outputs: Tensor) -> None:
        """Fill the outputs of one row."""
        # One more for the token that is predicted.
        if len(ids) >= self._context:
            # Doubled, for those before keep their memory.
            self._serve(max(len(ids) + 1, 2 * self._context))
        count = int(min(self._part.prefixes, len(ids)))
        ends = torch.linspace(len(ids), 1, count).round().int().flip(0).tolist()
        for end in ends:
            outputs[places[end - 1]] = self.next_token(ids[:end])

    def complete(self, prompt: str | list[int]) -> dict[str, Any]:
        """llama.cpp's answer to a text or to token ids: one token, with what it might have been.

        Raises:
            ExportError: it has none.
        """
        num_tokens = int(min(self._part.tokens, self._vocab_size))
        answer: dict[str, Any] = self._server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": 1,
                "n_probs": num_tokens,
                "temperature": 0.0,
                # An answer of a token that ends the text, or is a part of a character, has no probabilities.
                "logit_bias": [[self._plain_token, FORCED]],
                "cache_prompt": True,
            }
        )
        if "choices" not in answer:
            raise ExportError(f"llama.cpp cannot run {self._path.name}: {str(answer)[:300]}")
        return answer

    def next_token(self, prompt: str | list[int]) -> Tensor:
        """The log-probabilities of the token that follows, [vocabulary]."""
        (content,) = self.complete(prompt)["choices"][0]["logprobs"]["content"]
        entries = content["top_logprobs"]
        values = torch.full((self._vocab_size,), math.nan)
        values[[entry["id"] for entry in entries]] = torch.tensor([entry["logprob"] for entry in entries])
        return values

    def _serve(self, context: int) -> None:
        """Start a server that takes so many tokens."""
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.n_ctx = context
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.fit_params = False
        params.warmup = False
        params.verbosity = -1
        params.cpuparams.n_threads = torch.get_num_threads()
        params.cpuparams_batch.n_threads = torch.get_num_threads()
        # A window's cache holds no earlier tokens, so that a prefix could not be taken from the one before.
        params.swa_full = True
        # Keys and values as they are computed, not in half precision.
        params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server = _undying(xllamacpp.Server(params))
        except Exception as error:
            raise StorageError(f"llama.cpp cannot load {self._path}: {error}. Export it again.") from error
        self._context = context


def read_vocabulary(path: Path) -> tuple[int, int]:
    """The number of tokens, and one that is an ordinary word; damage of the file is told.

    Raises:
        StorageError: the file is damaged.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
        tokens = reader.fields["tokenizer.ggml.tokens"]
        types = reader.fields["tokenizer.ggml.token_type"].contents()
        words = (bytes(tokens.parts[place]) for place in tokens.data)
        plain = (
            index
            for index, word in enumerate(words)
            if word.isascii() and types[index] == NORMAL and any(map(str.isalnum, word.decode("ascii")))
        )
        return int(shapes["token_embd.weight"][1]), next(plain)
    except (OSError, ValueError, KeyError, IndexError, StopIteration) as error:
        raise StorageError(
            f"{path} is no GGUF file of a language model: {error}. Export it again."
        ) from error


def _undying(server: Any) -> Any:
    """Keep a server until its process ends.

    One that is destroyed before its thread listens waits for that thread without end.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
    return server
