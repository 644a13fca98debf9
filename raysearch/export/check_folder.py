"""A model folder against its manifest and against itself: hashes, loading, every target in its runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysearch.artifacts.location import check_name
from raysearch.errors import ConfigError, ExportError, StorageError
from raysearch.evaluation import Batch, Forward, batch_size
from raysearch.export.export import call_positional
from raysearch.export.file_names import MANIFEST
from raysearch.export.load import LoadedModel, difference, load_model, read_manifest
from raysearch.export.targets.packed import PackedTarget
from raysearch.export.targets.registry import TARGETS
from raysearch.export.targets.target import Target, Verification
from raysearch.export.verification.verify import reference_outputs
from raysearch.records import ExportManifest, TargetCheck

NUM_SAMPLES = 64
"""Least number of samples that inputs are generated for."""


@dataclass(frozen=True)
class FolderCheck:
    """What `verify_folder` found; a mismatch raises instead.

    Attributes:
        num_files: files whose size and SHA-256 are those of the manifest.
        size_bytes: of all of them.
        inputs: "generated" or "given".
        checks: each target's file in its runtime against the packed model.
        notes: what a user should know, such as flips of codes, or files that the manifest does not list.
    """

    num_files: int
    size_bytes: int
    inputs: str
    checks: tuple[TargetCheck, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return asdict(self)


def verify_folder(
    directory: str | os.PathLike[str],
    *,
    batches: Iterable[Batch] | None = None,
    forward: Forward | None = None,
    factory: str | Callable[[], nn.Module] | None = None,
    targets: Sequence[str] | None = None,
) -> FolderCheck:
    """Check a model folder: every file's size and hash, then every target's file in its runtime.

    The packed model is the reference: the graph, or with a factory the user's own network, whose outputs the
    graph must equal bit for bit. A pt2 file must equal it too; ONNX files must stay within the tolerance that
    the export holds them to, onnxruntime's with graph optimizations off; its integer kernels are judged by
    the flips of codes of each layer.

    Args:
        directory: the folder.
        batches: what to run on; None generates inputs of the kind that config.json describes, from a fixed
            seed, of at least 64 samples.
        forward: (model, batch) → outputs, for `batches`.
        factory: see `load_model`.
        targets: which of the folder's targets to run; None is all.

    Raises:
        StorageError: there is no manifest, or it cannot be read.
        ConfigError: a target is not in the folder, or the inputs cannot be generated.
        ExportError: a file differs from the manifest or cannot be loaded, a target's packages are missing, or
            its outputs differ from the packed model's; names the file, the tensor or the figures.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    listed = {file.path for file in manifest.files}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    extra = sorted(files - listed - {MANIFEST})
    notes = [f"the manifest does not list {name}, so it was not checked." for name in extra]
    present = [target for target in TARGETS.values() if target.files[0] in listed]
    chosen = _chosen(present, targets)
    if PackedTarget.name not in {target.name for target in present}:
        notes.append("there is no packed model, so nothing was run; export the target 'packed' too.")
        return FolderCheck(len(listed), _size(manifest), "generated", (), tuple(notes))
    checks: list[TargetCheck] = []
    try:
        verification = _verification(folder, batches, forward, factory)
        for target in chosen:
            verdict = target.check(folder, verification)
            checks.extend(verdict.checks)
            notes.extend(verdict.notes)
    except StorageError as error:
        raise ExportError(str(error)) from error
    inputs = "generated" if batches is None else "given"
    return FolderCheck(len(listed), _size(manifest), inputs, tuple(checks), tuple(notes))


def _check_files(folder: Path, manifest: ExportManifest) -> None:
    for file in manifest.files:
        check_name(file.path)
    differences = [difference(folder, file) for file in manifest.files]
    wrong = [words for words in differences if words]
    if wrong:
        raise ExportError(f"{'; '.join(wrong)}. Retrieve or export the model again.")


def _chosen(present: list[Target], names: Sequence[str] | None) -> list[Target]:
    """Those of a folder's targets that are to be run."""
    if names is None:
        return present
    known = [target.name for target in present]
    for name in names:
        if name not in known:
            raise ConfigError(f"the folder has no target '{name}'; it has {', '.join(known) or 'none'}.")
    return [target for target in present if target.name in names]


def _verification(
    folder: Path,
    batches: Iterable[Batch] | None,
    forward: Forward | None,
    factory: str | Callable[[], nn.Module] | None,
) -> Verification:
    """The packed model's outputs: the reference for every target of the folder."""
    loaded = load_model(folder)
    assert isinstance(loaded, LoadedModel)
    run: Forward = forward or call_positional
    data = generated_inputs(loaded) if batches is None else list(batches)
    reference: nn.Module = loaded if factory is None else load_model(folder, factory)
    try:
        return Verification(reference, reference_outputs(reference, data, run), run)
    except (RuntimeError, TypeError, IndexError) as error:
        raise ExportError(
            f"the packed model in {folder} cannot run the inputs: {error!r:.300}. Give inputs of its own "
            f"kind with --task."
        ) from error


def generated_inputs(model: LoadedModel) -> list[tuple[Any, ...]]:
    """Batches of the example's shapes, dtypes and ranges, from a fixed seed: at least 64 samples.

    Raises:
        ConfigError: the folder does not say what its inputs look like.
    """
    specs = model.config.example_inputs
    if specs is None or not specs:
        raise ConfigError(
            "config.json does not say what the model's inputs look like, so none can be generated. Give the "
            "run's task with --task, or batches."
        )
    generator = torch.Generator().manual_seed(0)
    batches = [tuple(spec.draw(generator) for spec in specs)]
    size = max(1, batch_size(list(batches[0])))
    while len(batches) * size < NUM_SAMPLES:
        batches.append(tuple(spec.draw(generator) for spec in specs))
    return batches


def _size(manifest: ExportManifest) -> int:
    return sum(file.size_bytes for file in manifest.files)
