"""A model folder back as a module: no Ray, no Optuna, no task, and the user's code only on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from raysearch.artifacts import hash_file
from raysearch.errors import StorageError
from raysearch.export.archive import MAX_GRAPH_BYTES
from raysearch.export.file_names import ARCHITECTURE, CONFIG, FILES, MANIFEST, WEIGHTS
from raysearch.export.model_config import ModelConfig, PackedWeight
from raysearch.export.outputs import NamedOutputs
from raysearch.export.packing import packed_length, unpack_codes
from raysearch.export.program import load_program
from raysearch.export.restore import restore_module
from raysearch.export.stored_scales import decode_scales
from raysearch.records import ExportedFile, ExportManifest

_AGAIN = "Retrieve or export the model again."


class LoadedModel(nn.Module):
    """A model read from its folder; gives what the stripped module gave, bit for bit.

    Integer weights are held as int8 codes, float32 scales and int8 zero points, and decoded in the forward.
    The forward takes the arguments of the original, by position or by keyword. Outputs come as tensors in
    tuples, lists and dicts. The model is in eval mode for good: `train()` changes nothing.

    Attributes:
        config: the content of config.json.
        tensors: all tensors as buffers, under their names; codes as `<weight>.codes`.
    """

    def __init__(self, config: ModelConfig, graph: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.tensors = nn.Module()
        for name, value in tensors.items():
            try:
                _register(self.tensors, name, value)
            except (KeyError, AttributeError, TypeError) as error:
                raise StorageError(
                    f"'{name:.100}' is no name of a tensor: {error!r:.200}. {_AGAIN}"
                ) from error
        self.graph = graph
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the exported graph.

        Raises:
            TypeError: an argument is missing or unknown.
        """
        tensors = dict(sorted(self.tensors.named_buffers()))
        outputs = self.graph(tensors, self._arguments(args, kwargs))
        return NamedOutputs(outputs) if isinstance(outputs, dict) else outputs

    def train(self, mode: bool = True) -> LoadedModel:
        """Nothing: the graph is that of the eval mode."""
        return self

    def extra_repr(self) -> str:
        """What was loaded."""
        widths = sorted({weight.bits for weight in self.config.weights.values()})
        return f"{self.config.architecture}, {len(self.config.weights)} integer weights of {widths} bits"

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        names = self.config.inputs[len(args) :]
        kwargs = {**self._constants(names), **kwargs}
        missing = [name for name in names if name not in kwargs]
        unknown = [
            name for name, value in kwargs.items() if name not in names and not is_no_matter(name, value)
        ]
        if missing or unknown:
            raise TypeError(
                f"{self.config.architecture} was exported with the arguments "
                f"({', '.join(self.config.inputs)}); missing: {missing}, unknown or given twice: {unknown}."
            )
        return (*args, *(kwargs[name] for name in names))

    def _constants(self, names: Sequence[str]) -> dict[str, Any]:
        """The arguments among these that were no tensors when the model was exported, such as None."""
        specs = dict(zip(self.config.inputs, self.config.example_inputs or (), strict=False))
        return {name: specs[name].value for name in names if name in specs and specs[name].kind == "value"}


def is_no_matter(name: str, value: Any) -> bool:
    """Whether an argument that an exported model does not take changes nothing.

    None and False switch nothing on, and the exported outputs answer to names and to places alike, whatever
    `return_dict` says.
    """
    return value is None or value is False or name == "return_dict"


def load_model(
    directory: str | os.PathLike[str], factory: str | Callable[[], nn.Module] | None = None
) -> nn.Module:
    """Read a model folder that the target 'packed' wrote.

    Where manifest.json is present, files are checked against its hashes first; of a newer schema they are
    refused. Nothing is unpickled, sizes and shapes are checked before memory is taken for them, and programs
    are read as `checked_archive` has it. Still, architecture.pt2 says what is computed when the model runs,
    and how much memory that takes; with a factory it is not read at all.

    Args:
        directory: the folder.
        factory: a function without arguments that gives the float network, or its name as
            "package.module:function" or "path/to/file.py:function". None takes the stored graph.

    Returns:
        On the CPU, in eval mode: a `LoadedModel`; or the factory's module, stripped as the exported one was,
        with its tensors. Both compute the same, bit for bit.

    Raises:
        StorageError: a file is missing, damaged, changed, or of a newer version; a tensor is missing,
            unexpected, or of the wrong shape.
        TaskError: the factory is not found, fails, or gives another network; names its tensors that are
            missing, unexpected or of another shape.
    """
    folder = Path(directory)
    needed = FILES if factory is None else (WEIGHTS, CONFIG)
    for name in needed:
        if not (folder / name).is_file():
            raise StorageError(
                f"{folder} has no {name}; a model folder holds {', '.join(FILES)}. Export the target "
                f"'packed' with `raysearch export`, or retrieve the run."
            )
    check_hashes(folder, needed)
    config = ModelConfig.from_json(read_text(folder / CONFIG), str(folder / CONFIG))
    tensors = _read_tensors(folder / WEIGHTS, config)
    if factory is not None:
        return restore_module(factory, config, tensors)
    graph = load_program((folder / ARCHITECTURE).read_bytes(), str(folder / ARCHITECTURE))
    return LoadedModel(config, graph, tensors).requires_grad_(False)


def read_manifest(folder: Path) -> ExportManifest:
    """The manifest of a model folder.

    Raises:
        StorageError: it is missing, damaged, or of a newer schema.
    """
    if not (folder / MANIFEST).is_file():
        raise StorageError(f"{folder} has no {MANIFEST}, so it is no exported model folder. {_AGAIN}")
    return ExportManifest.from_json(read_text(folder / MANIFEST))


def read_text(path: Path) -> str:
    """A JSON file's text.

    Raises:
        StorageError: it is larger than any that raysearch writes, or not UTF-8.
    """
    if path.stat().st_size > MAX_GRAPH_BYTES:
        raise StorageError(f"{path} is larger than {MAX_GRAPH_BYTES} bytes, so it is no such file. {_AGAIN}")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise StorageError(f"{path} is damaged: {error}. {_AGAIN}") from error


def check_hashes(folder: Path, names: Sequence[str] = FILES) -> None:
    """Compare files that the loader reads with manifest.json, where there is one.

    Raises:
        StorageError: a file is not listed, or its size or hash differs.
    """
    if not (folder / MANIFEST).is_file():
        return
    listed = {f.path: f for f in read_manifest(folder).files}
    for name in names:
        if name not in listed:
            raise StorageError(
                f"{folder / name} is not listed in {MANIFEST}, so it is of another export. {_AGAIN}"
            )
        if words := difference(folder, listed[name]):
            raise StorageError(f"{words}. {_AGAIN}")


def difference(folder: Path, file: ExportedFile) -> str:
    """How a file differs from its entry in the manifest; "" when it does not."""
    path = folder / file.path
    if not path.is_file():
        return f"{path} is listed in {MANIFEST} and missing"
    size = path.stat().st_size
    if size != file.size_bytes:
        return (
            f"{path} differs from {MANIFEST}: it was changed or cut off, having {size} bytes instead of "
            f"{file.size_bytes}"
        )
    sha256 = hash_file(path)
    if sha256 != file.sha256:
        return (
            f"{path} differs from {MANIFEST}: it was changed, its SHA-256 being {sha256} instead of "
            f"{file.sha256:.64}"
        )
    return ""


def _read_tensors(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    expected = {name: (spec.shape, spec.dtype) for name, spec in config.tensors.items()}
    for name, weight in config.weights.items():
        expected[f"{name}.packed"] = ((packed_length(weight.num_codes, weight.bits),), "U8")
        expected[f"{name}.scale"] = ((weight.num_stored_scales,), weight.scale_dtype)
        if weight.has_minima:
            expected[f"{name}.minimum"] = ((weight.num_stored_scales,), weight.scale_dtype)
        if weight.zero_point == "stored":
            expected[f"{name}.zero_point"] = ((weight.num_scales,), "I8")
    try:
        with safe_open(path, framework="pt") as file:
            _check_names(path, set(file.keys()), set(expected))
            for name, (shape, dtype) in expected.items():
                entry = file.get_slice(name)
                if tuple(entry.get_shape()) != shape or entry.get_dtype() != dtype:
                    raise StorageError(
                        f"{path}: '{name}' is {entry.get_dtype()} of shape {entry.get_shape()}, but {CONFIG} "
                        f"says {dtype} of shape {list(shape)}. {_AGAIN}"
                    )
            stored: dict[str, Tensor] = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path} is damaged: {error}. {_AGAIN}") from error
    for name, weight in config.weights.items():
        codes = unpack_codes(stored.pop(f"{name}.packed").numpy(), weight.bits, weight.num_codes, name)
        stored[f"{name}.codes"] = torch.from_numpy(codes).reshape(weight.shape)
        scale = decode_scales(stored[f"{name}.scale"], weight.scale_format, weight.num_scales, name)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise StorageError(f"{path}: '{name}.scale' holds values that are not positive. {_AGAIN}")
        stored[f"{name}.scale"] = scale.reshape(weight.scale_shape)
        if weight.has_minima:
            minimum = decode_scales(stored[f"{name}.minimum"], weight.scale_format, weight.num_scales, name)
            if not bool(torch.isfinite(minimum).all()):
                raise StorageError(f"{path}: '{name}.minimum' holds values that are not finite. {_AGAIN}")
            stored[f"{name}.minimum"] = minimum.reshape(weight.scale_shape)
        if weight.zero_point != 0:
            stored[f"{name}.zero_point"] = _zero_points(path, name, weight, stored)
    return stored


def _zero_points(path: Path, name: str, weight: PackedWeight, stored: dict[str, Tensor]) -> Tensor:
    if weight.zero_point != "stored":
        return torch.full(weight.scale_shape, weight.zero_point, dtype=torch.int8)
    zero_points = stored[f"{name}.zero_point"]
    half = 1 << (weight.bits - 1)
    if zero_points.numel() and not (-half <= int(zero_points.min()) and int(zero_points.max()) < half):
        raise StorageError(
            f"{path}: '{name}.zero_point' holds values that {weight.bits} bits have no code for. {_AGAIN}"
        )
    return zero_points.reshape(weight.scale_shape)


def _check_names(path: Path, stored: set[str], expected: set[str]) -> None:
    if stored != expected:
        missing, unexpected = sorted(expected - stored), sorted(stored - expected)
        raise StorageError(
            f"{path} does not fit {CONFIG}: missing {missing[:5]} ({len(missing)} in all), unexpected "
            f"{unexpected[:5]} ({len(unexpected)} in all). {_AGAIN}"
        )


def _register(root: nn.Module, name: str, value: Tensor) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_buffer(leaf, value)
