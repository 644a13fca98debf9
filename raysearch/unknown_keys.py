"""Unknown names are refused, and the nearest known ones are told."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from raysearch.errors import ConfigError

SIMILARITY = 0.3
"""The least ratio of `difflib` by which two names are alike: low, since any hint beats none."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like a name; the first one when none is like it."""
    names = sorted(known)
    matches = nearest_names(name, names)
    return matches[0] if matches else names[0]


def nearest_names(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The known names that are most like a name, the nearest first; empty when none is like it.

    Args:
        name: what was written.
        known: what may be written.
        count: the most names to give.
    """
    return get_close_matches(name, list(known), n=count, cutoff=SIMILARITY)


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """The end of a message that names the known name most like another; empty when none is like it."""
    matches = nearest_names(name, known)
    return f"; the nearest known one is '{matches[0]}'" if matches else ""


def refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse keys that are not known.

    Args:
        names: the keys to check.
        known: the keys that are allowed.
        where: what the message calls the place of the keys.

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
