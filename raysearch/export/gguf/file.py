"""A GGUF file of a stripped language model: metadata, tokenizer, tensors; written, then read back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from raysearch.errors import ExportError
from raysearch.export.gguf.architectures import Architecture, architecture_of, hyperparameters
from raysearch.export.gguf.language_model import LanguageModel
from raysearch.export.gguf.tensors import FileTensor, file_tensors
from raysearch.export.gguf.tokenizer import Vocabulary, numbered_vocabulary, read_vocabulary
from raysearch.export.stripped_model import StrippedModel

if TYPE_CHECKING:
    import gguf


def write_gguf(model: StrippedModel, path: Path) -> tuple[str, ...]:
    """Write the file, and compare what is read from it with the module, bit for bit.

    Args:
        model: the stripped model.
        path: the file.

    Returns:
        notes on what the file lacks.

    Raises:
        ExportError: the model is no language model that llama.cpp runs, or a weight's scheme is no type of
            GGUF.
    """
    import gguf

    language, architecture, vocabulary = read_model(model.module)
    notes: list[str] = []
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        _add_metadata(writer, language, architecture)
        _add_tokenizer(writer, vocabulary, language.directory)
        if language.directory is None:
            notes.append(
                "gguf: the file has no tokenizer, since the model was not loaded from a directory; it takes "
                "token ids only."
            )
        tensors = {tensor.name: tensor for tensor in file_tensors(model, language, architecture)}
        for tensor in tensors.values():
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=gguf.GGMLQuantizationType[tensor.type])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    tensor_bytes = sum(tensor.data.nbytes for tensor in tensors.values())
    others = path.stat().st_size - tensor_bytes
    notes.append(f"gguf: {others} bytes are header, metadata and tokenizer, which `size` does not count.")
    _check_values(path, tensors)
    return tuple(notes)


def read_model(module: nn.Module) -> tuple[LanguageModel, Architecture, Vocabulary]:
    """What a file says of a model besides its tensors.

    Raises:
        ExportError: it is no language model that llama.cpp runs, or its tokenizer is none that it reads.
    """
    language = LanguageModel.of(module)
    architecture = architecture_of(language.config)
    size = language.config["vocab_size"]
    if language.directory is None:
        return language, architecture, numbered_vocabulary(size)
    return language, architecture, read_vocabulary(language.directory, size)


def _add_metadata(writer: gguf.GGUFWriter, language: LanguageModel, architecture: Architecture) -> None:
    import gguf

    directory = language.directory
    writer.add_name(directory.name if directory is not None else language.config["model_type"])
    writer.add_file_type(gguf.LlamaFileType.GUESSED)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in hyperparameters(architecture, language.config).items():
        if isinstance(value, float):
            writer.add_float32(f"{architecture.name}.{key}", value)
        else:
            writer.add_uint32(f"{architecture.name}.{key}", value)
    if "rope.scaling.factor" in hyperparameters(architecture, language.config):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: Vocabulary, directory: Path | None) -> None:
    import gguf

    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.cut or "default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.adds_space)
    if directory is None:
        return
    logger = logging.getLogger("gguf.vocab")
    level = logger.level
    # It tells of every special token that a tokenizer does not have.
    logger.setLevel(logging.ERROR)
    try:
        special = gguf.SpecialVocab(
            directory, load_merges=not vocabulary.scores, n_vocab=len(vocabulary.tokens)
        )
        for name in ("bos", "eos"):
            # llama.cpp adds them to some kinds of text where nothing is said.
            special.add_special_token.setdefault(name, False)
        special.add_to_gguf(writer, quiet=True)
    finally:
        logger.setLevel(level)


def _check_values(path: Path, tensors: dict[str, FileTensor]) -> None:
    """Refuse a file that does not hold the module's values."""
    import gguf

    for stored in gguf.GGUFReader(path).tensors:
        expected = tensors.pop(stored.name).values
        values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        if not np.array_equal(values.reshape(expected.shape), expected):
            raise ExportError(
                f"{path.name} holds other values of '{stored.name}' than the stripped module. Report "
                f"the model, or leave 'gguf' out of export.targets."
            )
    if tensors:
        raise ExportError(f"{path.name} lacks {', '.join(tensors)}; export it again.")
