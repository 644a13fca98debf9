"""Unknown names are refused, and the nearest known one is told."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from raysearch.errors import ConfigError


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like a name; the first one when none is like it."""
    names = sorted(known)
    found = get_close_matches(name, names, n=1, cutoff=0.3)
    return found[0] if found else names[0]


def refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse keys that are not known.

    Raises:
        ConfigError: names the key, the nearest known one, and all of them.
    """
    every = sorted(known)
    for name in names:
        if name not in every:
            raise ConfigError(
                f"{where} has the unknown key '{name}'; the nearest known one is '{nearest(name, every)}'. "
                f"Known: {', '.join(every)}."
            )
