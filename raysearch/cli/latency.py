"""The command that times a task's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from raysearch.cli.choices import PLACE, listing, profile_targets
from raysearch.cli.command import command
from raysearch.cli.console import show_grid
from raysearch.cli.options import ConfigOption, JsonOption, SetOption, TaskArgument, app
from raysearch.errors import ConfigError
from raysearch.records import LatencyProfile
from raysearch.reporting.grids import Grid, Row

BELOW_EIGHT = (
    "Below 8 bits runtimes on CPUs save bytes, not time: they compute in 8 bits what is stored in fewer."
)


@app.command(cls=listing(target=profile_targets))
def profile(
    task: TaskArgument,
    out: Annotated[str, typer.Option("--out", help="file to write")],
    target: Annotated[str, typer.Option("--target", help=f"runtime to time: {PLACE}")] = "onnxruntime",
    batch: Annotated[int, typer.Option("--batch", help="samples in one forward")] = 1,
    threads: Annotated[int, typer.Option("--threads", help="threads of the runtime")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", help="forwards; the least time counts")] = 20,
    config: ConfigOption = None,
    settings: SetOption = [],
    as_json: JsonOption = False,
) -> None:
    """Time every layer in float and at 8 bits; for `run --latency-profile`."""
    from raysearch.config import load_config
    from raysearch.pipeline.latency_profile import measure_latency

    with command(as_json) as show:
        path = Path(out)
        if not path.absolute().parent.is_dir():
            raise ConfigError(
                f"--out is '{out}', and there is no folder '{path.absolute().parent}'; make it."
            )
        times, _ = measure_latency(
            task, load_config(config, settings), target=target, batch=batch, threads=threads, rounds=rounds
        )
        path.write_text(times.to_json() + "\n")
        show({"out": str(path), **times.as_dict()}, lambda console: _draw(console, times, path))


def _draw(console: Console, profile: LatencyProfile, path: Path) -> None:
    show_grid(console, times_grid(profile))
    show_grid(console, checks_grid(profile))
    for name, kernels in profile.kernels.items():
        if "not found" in kernels.values():
            console.print(f"note: no node of '{name}' was found; its time is counted with other layers.")
    machine = profile.machine
    console.print(
        f"{machine['cpu']} ({machine['instructions']}), {machine['threads']} thread(s), "
        f"{profile.runtime} {profile.versions['onnxruntime']}, inputs {machine['inputs']}"
    )
    console.print(BELOW_EIGHT)
    console.print(f"profile: {path}")


def times_grid(profile: LatencyProfile) -> Grid:
    """Times and kernels of every layer."""
    rows: list[Row] = []
    for name, levels in profile.layers.items():
        float_seconds, eight_seconds = levels["float"], levels["8"]
        kernels = profile.kernels.get(name, {})
        change = f"{kernels.get('float', '')} -> {kernels.get('8', '')}"
        ratio = _ratio(eight_seconds, float_seconds)
        cells = (_milliseconds(float_seconds), _milliseconds(eight_seconds), ratio, change)
        rows.append(Row(name, cells))
    # What no layer owns runs the same at any width.
    other = _milliseconds(profile.other_seconds)
    rows.append(Row("other", (other, other, "", "")))
    columns = ("layer", "float", "8 bit", "ratio", "kernels")
    return Grid(columns, tuple(rows), "least milliseconds of a forward")


def checks_grid(profile: LatencyProfile) -> Grid:
    """The profile's sums beside whole models that were timed on their own."""
    rows: list[Row] = []
    for name, values in profile.checks.items():
        predicted, measured = values["predicted"], values["measured"]
        ratio = _ratio(predicted, measured)
        rows.append(Row(name, (_milliseconds(predicted), _milliseconds(measured), ratio)))
    columns = ("model", "predicted", "measured", "ratio")
    return Grid(columns, tuple(rows), "whole model, milliseconds")


def _milliseconds(seconds: float) -> str:
    # All rows in one unit and to the same digit, unlike a cost that stands alone.
    return f"{seconds * 1e3:.3f}"


def _ratio(seconds: float, reference: float) -> str:
    return f"{seconds / reference:.2f}" if reference else ""
