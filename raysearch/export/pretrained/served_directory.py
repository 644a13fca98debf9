"""A directory of `from_pretrained`, loaded in a fresh process, as a module of this one."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from raysearch.errors import StorageError
from raysearch.export.file_names import CONFIG, WEIGHTS
from raysearch.export.own_process.served_model import ServedModel
from raysearch.records.typed_json import parsed


class ServedDirectory(ServedModel):
    """Runs a directory in transformers, in a process that reaches no network; see `serve`.

    Raises:
        StorageError: a file is missing or damaged, or transformers cannot load the directory.
    """

    def __init__(self, directory: Path) -> None:
        _check_files(directory)
        command = ("raysearch.export.pretrained.serve", str(directory))
        alone = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        super().__init__(directory, "transformers", command, alone)


def _check_files(directory: Path) -> None:
    """Refuse what is damaged before a process is started for it."""
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise StorageError(f"{directory / name} is missing. Export it again.")
    try:
        parsed((directory / CONFIG).read_bytes())
    except ValueError as error:
        raise StorageError(f"{directory / CONFIG} is damaged: {error}. Export it again.") from error
    try:
        with safe_open(directory / WEIGHTS, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{directory / WEIGHTS} is damaged: {error}. Export it again.") from error
