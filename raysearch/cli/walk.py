"""Commands that take a task: look at it, run it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import typer

from raysearch.artifacts import DEFAULT_STORAGE, resolve_run
from raysearch.cli import console
from raysearch.cli.choices import cost_kinds, listing, task_kinds
from raysearch.cli.command import command
from raysearch.cli.options import (
    DEFAULT_KIND,
    BudgetOption,
    ConfigOption,
    DataOption,
    DropOption,
    FormatOption,
    FrontOption,
    JsonOption,
    KindOption,
    LatencyOption,
    MaybeTask,
    MinimizeOption,
    ModelOption,
    SetOption,
    StorageOption,
    WideOption,
    WithOption,
    app,
    read_settings,
    task_of,
)
from raysearch.cli.tables import Format
from raysearch.reporting import ReportRecords, sensitivity_grid, sensitivity_rows, sketch_note, verdict
from raysearch.reporting.grids import finalists_grid, summary_grid, times_grid
from raysearch.reporting.live import ProgressLines


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
    form: FormatOption = Format.TABLE,
    wide: WideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Layers, groups, options, costs and achievable budgets of a task, or the sensitivities of a run."""
    from raysearch import api
    from raysearch.placement.schemes import stored_as
    from raysearch.saved_run import load_run

    with command(as_json or form is Format.JSON) as show:
        if sensitivity is not None:
            saved = load_run(sensitivity, storage).load_sensitivity()
            facts = {"fingerprint": saved[1].fingerprint, "groups": sensitivity_rows(*saved)}
            grid = replace(sensitivity_grid(*saved), title="sensitivity", caption=sketch_note(saved[1]))
            show(facts, lambda out: console.show_grid(out, grid, form, wide=wide))
            return
        spec = task_of(task, model, data, kind, options)
        configured = read_settings(config, settings, latency)
        setup, costs = api.inspect(spec, configured)
        stored = stored_as(setup, configured.placement)

        def draw(out: console.PlainConsole) -> None:
            console.show_grid(out, console.layers_grid(setup), form, wide=wide)
            if form is Format.CSV:
                # Several tables are no CSV.
                return
            fused = console.fused_grid(setup)
            if fused is not None:
                console.show_grid(out, fused, form, wide=wide)
            if stored:
                console.show_grid(out, console.schemes_grid(stored), form, wide=wide)
            console.show_grid(out, console.widths_grid(setup, costs), form, wide=wide)

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
    callbacks: Annotated[
        list[str],
        typer.Option(
            "--callback", metavar="NAME", help="mlflow, wandb, tensorboard or module:factory; repeat"
        ),
    ] = [],
    latency: LatencyOption = None,
    wide: WideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Quantize a model under a budget, or at the least cost for a drop: the whole walk."""
    started = time.monotonic()
    from raysearch import api

    imports = time.monotonic() - started
    with command(as_json) as show:
        is_named = task is not None or model is not None or start_from is None
        spec = task_of(task, model, data, kind, options) if is_named else None
        lines = ProgressLines()
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
                callbacks=callbacks,
            )
        finally:
            lines.close()

        records = ReportRecords.load(resolve_run(result.run_id, storage))
        setup = records.setup
        assert setup is not None

        def draw(out: console.PlainConsole) -> None:
            console.show_grid(out, console.assignment_grid(setup, result.assignment), wide=wide)
            console.show_grid(out, summary_grid(setup, result), wide=wide)
            if result.front:
                console.show_grid(out, console.front_grid(result.front), wide=wide)
            if result.finalists:
                console.show_grid(out, finalists_grid(result.finalists), wide=wide)
            console.show_grid(out, times_grid({"imports": imports, **result.seconds}))
            for note in result.notes:
                out.prose(f"note: {note}")
            out.prose(verdict(result, setup, records.chosen, records.manifest))
            out.print(f"model:  {result.model_dir}")
            out.print(f"report: {result.report or 'none'}")

        show(result.to_dict(), draw)
