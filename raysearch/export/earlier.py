"""Targets of an earlier export whose packages are not installed here: their files are taken over."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raysearch.artifacts import Storage
from raysearch.errors import ExportError
from raysearch.export.file_names import MANIFEST
from raysearch.export.targets.registry import TARGETS
from raysearch.records import ExportedFile, ExportManifest


def take_over(names: Sequence[str], earlier: ExportManifest, source: Storage, folder: Path) -> ExportManifest:
    """Add targets of an earlier export of the same model to a new one, with what was checked of them then.

    Args:
        names: the targets.
        earlier: the manifest that has them.
        source: the model folder of that.
        folder: the new export, manifest included.

    Raises:
        ExportError: a file is not as the manifest says.
    """
    target_folder = Storage(folder)
    manifest = ExportManifest.from_json(target_folder.read_bytes(MANIFEST).decode())
    files = list(manifest.files)
    notes = list(manifest.notes)
    for name in names:
        extra = TARGETS[name].extra
        lacking = f"{', '.join(extra.missing())} is not installed here (`{extra.command}`)"
        for file in files_of(name, earlier):
            data = source.read_bytes(file.path)
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise ExportError(
                    f"'{file.path}' of the target '{name}' is damaged, and cannot be written anew: {lacking}."
                )
            target_folder.write_bytes(file.path, data)
            files.append(file)
        notes += [note for note in earlier.notes if note.lower().startswith(f"{name}:") and note not in notes]
        notes.append(f"{name}: as it was exported and checked before, since {lacking}.")
    ratios = {name: earlier.size_ratios[name] for name in names if name in earlier.size_ratios}
    checks = [check for check in earlier.checks if check.target in names]
    merged = replace(
        manifest,
        files=tuple(files),
        checks=(*manifest.checks, *checks),
        notes=tuple(notes),
        size_ratios={**manifest.size_ratios, **ratios},
    )
    target_folder.write_bytes(MANIFEST, merged.to_json().encode())
    return merged


def files_of(name: str, manifest: ExportManifest) -> list[ExportedFile]:
    """A target's files, as a manifest lists them."""
    target = TARGETS[name]
    if target.folder:
        return [file for file in manifest.files if file.path.startswith(f"{target.folder}/")]
    return [file for file in manifest.files if file.path in target.files]
