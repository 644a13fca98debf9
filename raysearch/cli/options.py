"""The application, and the arguments and options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from raysearch.cli.choices import PLACE
from raysearch.cli.tables import Format
from raysearch.errors import ConfigError
from raysearch.version import __version__

if TYPE_CHECKING:
    from raysearch.config import Config

COMMANDS = {
    "A model": ("inspect", "run", "profile", "verify", "config"),
    "Saved runs": ("list", "resolve", "report", "export", "retrieve", "journal"),
    "A run under way": ("submit", "status", "wait", "logs", "cancel"),
}
"""Heading of the help → its commands, in their order there."""


class CommandGroup(TyperGroup):
    """Lists the commands by what they are for."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The names in the order of the help."""
        for heading, names in COMMANDS.items():
            for name in names:
                self.commands[name].rich_help_panel = heading  # type: ignore[attr-defined]
        return [name for names in COMMANDS.values() for name in names]


app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked_for: bool) -> None:
    if asked_for:
        typer.echo(f"raysearch {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Mixed-precision quantization search for PyTorch on Ray."""


TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help="path/to/file.py:factory or package.module:factory")
]
MaybeTask = Annotated[
    str | None,
    typer.Argument(metavar="[TASK]", help="path/to/file.py:factory or package.module:factory; or --model"),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="DIR", help="a Hugging Face directory in place of TASK")
]
DataOption = Annotated[
    list[str], typer.Option("--data", metavar="FILE", help="text or samples for --model; repeat for several")
]
KindOption = Annotated[
    str, typer.Option("--task", metavar="KIND", help=f"what the model of --model is for: {PLACE}")
]
WithOption = Annotated[
    list[str],
    typer.Option("--with", metavar="NAME=VALUE", help="an option of that kind, such as window=256; repeat"),
]
DEFAULT_KIND = "causal-lm"
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="run id, or the path or URI of a run's folder")
]
BudgetOption = Annotated[list[str], typer.Option("--budget", help="KIND<=NUMBER[UNIT]; repeat for several")]
StorageOption = Annotated[str, typer.Option("--storage", help="folder or URI that holds runs")]
ConfigOption = Annotated[str | None, typer.Option("-c", "--config", help="TOML file with settings")]
SetOption = Annotated[list[str], typer.Option("--set", help="section.key=value; repeat for several")]
LatencyOption = Annotated[
    str | None, typer.Option("--latency-profile", help="JSON file with every layer's measured times")
]
FrontOption = Annotated[
    str | None,
    typer.Option("--front", metavar="KIND", help=f"minimise this cost too, and list the front: {PLACE}"),
]
MinimizeOption = Annotated[
    str | None,
    typer.Option("--minimize", metavar="KIND", help=f"the least of this cost, with --max-drop: {PLACE}"),
]
DropOption = Annotated[
    str | None,
    typer.Option("--max-drop", metavar="METRIC=AMOUNT[%]", help="the most a metric may get worse"),
]
FormatOption = Annotated[Format, typer.Option("--format", help="how tables are printed")]
WideOption = Annotated[
    bool, typer.Option("--wide", help="every row and column whole, however long the lines are")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
HeadOption = Annotated[str, typer.Option("--address", help="the cluster's dashboard, http://HEAD:8265")]
MaybeHead = Annotated[
    str | None, typer.Option("--address", help="the cluster's dashboard, to ask its job too")
]
CaOption = Annotated[
    str | None, typer.Option("--ca-file", help="authority to check an https address by (PEM)")
]
TokenOption = Annotated[str | None, typer.Option("--token-file", help="file with the cluster's token")]


def task_of(task: str | None, model: str | None, data: list[str], kind: str, options: list[str]) -> str:
    """The text that names the task: as it is, or made of a model directory.

    Args:
        task: the argument TASK.
        model: the directory in its place.
        data: for the model.
        kind: what the model is for.
        options: texts NAME=VALUE of that kind.

    Raises:
        ConfigError: there is neither a task nor a model, or both, or an option that does not fit.
    """
    if model is None:
        if task is None:
            raise ConfigError(
                "there is no task: give TASK (path/to/file.py:factory), or --model DIR --data FILE."
            )
        if data or options or kind != DEFAULT_KIND:
            raise ConfigError("--data, --task and --with belong to --model DIR; a TASK brings its own data.")
        return task
    if task is not None:
        raise ConfigError(f"both the TASK '{task}' and --model '{model}' are given; give one of them.")
    from raysearch.huggingface.by_name import spec_of

    return spec_of(model, data, kind, options)


def read_settings(
    path: str | None,
    assignments: list[str],
    latency_profile: str | None = None,
    front: str | None = None,
    minimize: str | None = None,
    max_drop: str | None = None,
) -> Config:
    """The configuration of a file and `--set`, with what has options of its own.

    Args:
        path: of a TOML file.
        assignments: texts "section.key=value"; they win over the file.
        latency_profile: of the section `search`, as the next ones; None leaves each as it is.
        front: see `latency_profile`.
        minimize: see `latency_profile`.
        max_drop: see `latency_profile`.

    Raises:
        ConfigError: a setting is unknown, or its value is not allowed.
    """
    from raysearch.config import load_config

    options = {
        "latency_profile": latency_profile,
        "front": front,
        "minimize": minimize,
        "max_drop": max_drop,
    }
    search = {name: value for name, value in options.items() if value is not None}
    return load_config(path, assignments, {"search": search})
