"""Commands that take a task: look at it, run it."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from raysearch.artifacts import DEFAULT_STORAGE, codecs, resolve_run
from raysearch.cli import console
from raysearch.cli.choices import cost_kinds, listing, task_kinds
from raysearch.cli.command import Show, command
from raysearch.cli.options import (
    DEFAULT_KIND,
    BudgetOption,
    ConfigOption,
    DataOption,
    DropOption,
    FrontOption,
    JsonOption,
    KindOption,
    LatencyOption,
    MaybeTask,
    MinimizeOption,
    ModelOption,
    SetOption,
    StorageOption,
    WithOption,
    app,
    read_settings,
    task_of,
)
from raysearch.reporting import sensitivity_rows, verdict


@app.command(cls=listing(kind=task_kinds))
def inspect(
    task: MaybeTask = None,
    model: ModelOption = None,
    data: DataOption = [],
    kind: KindOption = DEFAULT_KIND,
    options: WithOption = [],
    config: ConfigOption = None,
    settings: SetOption = [],
    sensitivity: Annotated[
        str | None, typer.Option("--sensitivity", metavar="RUN", help="show what a run measured instead")
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    latency: LatencyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Layers, groups, options, costs and achievable budgets of a task, or the sensitivities of a run."""
    from raysearch import api
    from raysearch.placement.schemes import stored_as

    with command(as_json) as show:
        if sensitivity is not None:
            _show_sensitivity(sensitivity, storage, show)
            return
        spec = task_of(task, model, data, kind, options)
        configured = read_settings(config, settings, latency)
        setup, costs = api.inspect(spec, configured)
        stored = stored_as(setup, configured.placement)
        fused = console.fused_table(setup)

        def draw(out: Console) -> None:
            out.print(console.layers_table(setup))
            if fused is not None:
                out.print(fused)
            if stored:
                out.print(console.schemes_table(stored))
            out.print(console.widths_table(setup, costs))

        show(console.inspection(setup, costs, stored), draw)


@app.command(cls=listing(front=cost_kinds, minimize=cost_kinds, kind=task_kinds))
def run(
    task: MaybeTask = None,
    model: ModelOption = None,
    data: DataOption = [],
    kind: KindOption = DEFAULT_KIND,
    options: WithOption = [],
    budget: BudgetOption = [],
    front: FrontOption = None,
    minimize: MinimizeOption = None,
    max_drop: DropOption = None,
    config: ConfigOption = None,
    settings: SetOption = [],
    storage: StorageOption = DEFAULT_STORAGE,
    run_id: Annotated[str | None, typer.Option("--run-id", help="name of the run")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with --run-id")] = False,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="RUN", help="take over what fits of an earlier run, task and settings too"
        ),
    ] = None,
    trial: Annotated[
        int | None, typer.Option("--trial", help="train and export this trial of --from; no search")
    ] = None,
    address: Annotated[str, typer.Option(help="local, auto or HOST[:PORT]")] = "local",
    workers: Annotated[
        int | None,
        typer.Option(help="actors; 0: in this process, without Ray; default: 0, or one a core for long work"),
    ] = None,
    latency: LatencyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize a model under a budget, or at the least cost for a drop: the whole walk."""
    started = time.monotonic()
    from raysearch import api

    imports = time.monotonic() - started
    with command(as_json) as show:
        is_named = task is not None or model is not None or start_from is None
        spec = task_of(task, model, data, kind, options) if is_named else None
        lines = console.ProgressLines()
        try:
            result = api.run(
                spec,
                budget,
                storage,
                start_from=start_from,
                trial=trial,
                config=read_settings(config, settings, latency, front, minimize, max_drop),
                run_id=run_id,
                resume=resume,
                address=address,
                workers=workers,
                listener=lines,
            )
        finally:
            lines.close()

        setup = resolve_run(result.run_id, storage).load(codecs.SETUP)

        def draw(out: Console) -> None:
            out.print(console.assignment_table(setup, result.assignment))
            out.print(console.result_table(result))
            out.print(verdict(result), markup=False)
            if result.front:
                out.print(console.front_table(result.front))
            if result.finalists:
                out.print(console.finalists_table(result.finalists))
            for note in result.notes:
                out.print(f"note: {note}")
            out.print(console.times_table({"imports": imports, **result.seconds}))
            out.print(f"model:  {result.model_dir}")
            out.print(f"report: {result.report or 'none'}")

        show(result.to_dict(), draw)


def _show_sensitivity(run: str, storage: str, show: Show) -> None:
    from raysearch.saved_run import load_run

    setup, table, assignment = load_run(run, storage).load_sensitivity()
    show(
        {"fingerprint": table.fingerprint, "groups": sensitivity_rows(setup, table, assignment)},
        lambda out: out.print(console.sensitivity_table(setup, table, assignment)),
    )
