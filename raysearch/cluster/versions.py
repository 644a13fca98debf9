"""What a process has of the packages that must be the same where one run computes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("raysearch", "torch", "numpy", "ray")
"""Of which a worker must have the driver's: with another version it may fail, or round otherwise."""

CLIENT_VARIABLE = "RAYSEARCH_CLIENT_VERSIONS"
"""Names the variable in which `submit` says what the machine has that it is called on."""


def versions_here() -> dict[str, str]:
    """Python and the packages of the process that is asked; "" for one that is not there."""
    versions = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            # A build for other devices is the same code.
            versions[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            versions[package] = ""
    return versions


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """What another process has otherwise, for messages; "" where it is the same.

    Example:
        >>> differences({"torch": "2.9", "numpy": "2.3"}, {"torch": "2.8", "numpy": ""})
        'torch 2.8 instead of 2.9, numpy none instead of 2.3'
    """
    others = [name for name, own in here.items() if there.get(name, "") != own]
    return ", ".join(f"{name} {there.get(name) or 'none'} instead of {here[name]}" for name in others)


def as_text(versions: Mapping[str, str]) -> str:
    """Versions in one line, as `from_text` reads them.

    Example:
        >>> as_text({"Python": "3.11", "torch": "2.9"})
        'Python 3.11, torch 2.9'
    """
    return ", ".join(f"{name} {number or 'none'}" for name, number in versions.items())


def from_text(text: str) -> dict[str, str]:
    """The versions of a line; what is none is left out.

    Example:
        >>> from_text("Python 3.11, torch none, nonsense")
        {'Python': '3.11'}
    """
    pairs = [part.split(" ") for part in text.split(", ")]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[1] != "none"}
