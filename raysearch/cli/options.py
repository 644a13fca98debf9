"""The application, and the arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="Mixed-precision quantization search for PyTorch on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help="path/to/file.py:factory or package.module:factory")
]
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
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
HeadOption = Annotated[str, typer.Option("--address", help="the cluster's dashboard, http://HEAD:8265")]
MaybeHead = Annotated[
    str | None, typer.Option("--address", help="the cluster's dashboard, to ask its job too")
]
TokenOption = Annotated[str | None, typer.Option("--token-file", help="file with the cluster's token")]
