"""The working directory on its way to a cluster: what of it travels, and what is refused before it does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raysearch.errors import ConfigError

EXCLUDES = (".git", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "/runs")
"""What stays at home when a working directory is uploaded, as patterns of a .gitignore."""

MOST_BYTES = 99 << 20
"""Ray's dashboard takes 100 MiB in one request, and answers HTTP 413 to more."""

_NUM_NAMED = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upload:
    """The files of a working directory that a job gets.

    Attributes:
        folder: the directory.
        sizes: file → bytes.
    """

    folder: Path
    sizes: dict[Path, int]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self.sizes.values())

    def describe(self) -> str:
        """How much travels.

        Example:
            >>> folder = Path("/project")
            >>> Upload(folder, {folder / "task.py": 1 << 20, folder / "net.py": 0}).describe()
            'uploads 2 files of /project, 1 MiB'
        """
        mib = self.num_bytes / 2**20
        return f"uploads {len(self.sizes)} files of {self.folder}, {mib:.3g} MiB"

    def check(self) -> None:
        """Refuse what the cluster would.

        Raises:
            ConfigError: it is too much; names the largest files.
        """
        if self.num_bytes <= MOST_BYTES:
            return
        largest = sorted(self.sizes, key=lambda path: -self.sizes[path])[:_NUM_NAMED]
        named = [f"{path.relative_to(self.folder)} ({self.sizes[path] / 2**20:.3g} MiB)" for path in largest]
        raise ConfigError(
            f"the working directory {self.folder} is too large to upload: {self.num_bytes / 2**20:.0f} MiB "
            f"in {len(self.sizes)} files, and {MOST_BYTES >> 20} MiB travel at most. The largest: "
            f"{', '.join(named)}. Leave files out (--exclude PATTERN, or a .gitignore), name another folder "
            "(--working-dir), or put data where the nodes reach them."
        )


def read_upload(folder: Path, excludes: Sequence[str]) -> Upload:
    """What Ray would upload of a folder: its files without the excluded ones, links followed.

    Args:
        folder: the working directory.
        excludes: patterns as in a .gitignore; such files in the folder count as well.

    Raises:
        ConfigError: a link leads out of the folder, or to a folder that it lies in: what travels would not
            be what is seen.
    """
    root = folder.resolve()
    sizes: dict[Path, int] = {}
    for path in _travelling(root, excludes):
        if path.is_symlink():
            _check_link(path, root)
        if path.is_file():
            sizes[path] = path.stat().st_size
    return Upload(root, sizes)


def _check_link(path: Path, root: Path) -> None:
    target = path.resolve()
    advice = "Leave it out (--exclude PATTERN), or put a copy in its place."
    if not target.is_relative_to(root):
        raise ConfigError(f"{path} is a link that leads out of the working directory, to {target}. {advice}")
    if target in path.parents:
        raise ConfigError(f"{path} is a link to {target}, in which it lies itself. {advice}")


def _travelling(root: Path, excludes: Sequence[str]) -> Iterator[Path]:
    """Every path that Ray visits, each before what lies below it."""
    # Ray's own reading of the patterns: it decides what travels in the end.
    from ray._private.runtime_env import packaging

    if not hasattr(packaging, "_get_excludes"):
        # Another Ray keeps it elsewhere: then it is not known beforehand.
        return
    always = packaging._get_excludes(root, list(excludes))
    pending = [(root, [always])]
    while pending:
        path, inherited = pending.pop()
        ignored = [*inherited, *packaging.get_excludes_from_ignore_files(path, True, _log)]
        if any(is_excluded(path) for is_excluded in ignored):
            continue
        yield path
        if path.is_dir():
            pending += [(below, ignored) for below in path.iterdir()]
