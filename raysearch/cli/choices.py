"""Help texts that list what a registry or a setting allows, read when the help is asked for.

Registries stand beside what they register, and importing them brings torch along. A list written out here
would be quicker, and wrong after the next target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, get_args

from typer.core import TyperCommand

Choices = Callable[[], Iterable[str]]

PLACE = "{choices}"
"""Where in an option's help the list goes."""


def listing(**choices: Choices) -> type[TyperCommand]:
    """A class of commands, some of whose options list their choices.

    Args:
        **choices: parameter of the command → what gives the words it takes; its help holds `PLACE`.
    """

    class ListingCommand(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            for param in self.params:
                text = getattr(param, "help", None)
                if param.name in choices and text:
                    words = ", ".join(choices[param.name]())
                    vars(param)["help"] = text.replace(PLACE, words)
            super().format_help(ctx, formatter)

    return ListingCommand


def export_targets() -> Iterable[str]:
    """What `--target` of `export` takes."""
    from raysearch.export import TARGETS

    return TARGETS


def profile_targets() -> Iterable[str]:
    """What `--target` of `profile` takes."""
    from raysearch.pipeline.latency_profile import PROFILE_TARGETS

    return PROFILE_TARGETS


def task_kinds() -> Iterable[str]:
    """What `--task` takes beside `--model`."""
    from raysearch.huggingface.kinds import TASK_KINDS

    return TASK_KINDS


def surrogates() -> Iterable[str]:
    """What `search.surrogate` takes."""
    return _setting("surrogate")


def cost_kinds() -> Iterable[str]:
    """What `search.minimize` and `search.front` take, but for their absence."""
    from raysearch.config.search import minimizable_kinds

    return minimizable_kinds()


def _setting(name: str) -> tuple[str, ...]:
    from raysearch.config import SearchConfig

    return get_args(SearchConfig.model_fields[name].annotation)
