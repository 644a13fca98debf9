"""Optional packages that a target needs, and the command that installs them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from raysearch.errors import ExportError


@dataclass(frozen=True)
class Extra:
    """An extra of raysearch, and the packages that it installs.

    Attributes:
        name: as in `pip install "raysearch[name]"`.
        packages: names to import.
    """

    name: str
    packages: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that installs it."""
        return f'pip install "raysearch[{self.name}]"'

    def missing(self) -> list[str]:
        """Its packages that are not installed."""
        return [package for package in self.packages if importlib.util.find_spec(package) is None]

    def require(self, target: str) -> None:
        """Refuse to go on where a package is missing.

        Raises:
            ExportError: names the target, the packages and the command.
        """
        if missing := self.missing():
            raise ExportError(
                f"the target '{target}' needs {', '.join(missing)}; install them with `{self.command}`."
            )


NO_EXTRA = Extra("")
"""Of targets that torch alone writes and runs."""
