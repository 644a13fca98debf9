"""Commands on saved runs: list, retrieve, resolve, report, export."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from raysearch.artifacts import DEFAULT_STORAGE, ListedRun, list_runs, resolve_run
from raysearch.cli import console
from raysearch.cli.choices import PLACE, export_targets, listing, surrogates
from raysearch.cli.command import command
from raysearch.cli.options import (
    BudgetOption,
    FormatOption,
    JsonOption,
    RunArgument,
    StorageOption,
    WideOption,
    app,
)
from raysearch.cli.tables import Format
from raysearch.records import CostModel, SearchTrial, parse_budgets
from raysearch.records.costs.text import number


@app.command("list")
def list_command(
    storage: StorageOption = DEFAULT_STORAGE,
    form: FormatOption = Format.TABLE,
    wide: WideOption = False,
    as_json: JsonOption = False,
) -> None:
    """The runs of a storage: budget, state, progress and when each last gave a sign of life."""
    with command(as_json or form is Format.JSON) as show:
        runs = list_runs(storage)

        def draw(out: console.PlainConsole) -> None:
            if not runs:
                out.print(f"no runs in {storage}")
                return
            console.show_grid(out, console.runs_grid(runs, time.time()), form, wide=wide)

        show([_run_facts(listed) for listed in runs], draw)


def _run_facts(listed: ListedRun) -> dict[str, Any]:
    result = listed.result
    return {
        "run_id": listed.run_id,
        "task": listed.task,
        "budget": list(listed.budget),
        "status": asdict(listed.status),
        "costs": {} if result is None else dict(result.costs),
        "quantized_metrics": {} if result is None else dict(result.quantized_metrics),
    }


@app.command()
def retrieve(
    run: RunArgument,
    to: Annotated[str, typer.Option("--to", help="local folder")],
    storage: StorageOption = DEFAULT_STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Copy a finished run here and verify every model file."""
    from raysearch.saved_run import load_run

    with command(as_json) as show:
        folder = load_run(run, storage).retrieve(to)
        show({"folder": str(folder), "model_dir": str(folder / "model")}, lambda out: out.print(str(folder)))


@app.command(cls=listing(surrogate=surrogates))
def resolve(
    run: RunArgument,
    budget: BudgetOption,
    storage: StorageOption = DEFAULT_STORAGE,
    surrogate: Annotated[str, typer.Option(help=f"predicts the loss: {PLACE}")] = "response",
    measure: Annotated[bool, typer.Option("--measure", help="measure the best few; needs the task")] = False,
    count: Annotated[int, typer.Option("--count", help="assignments that --measure measures")] = 4,
    task: Annotated[str | None, typer.Option(help="the run's task, if it moved")] = None,
    address: Annotated[str, typer.Option(help="local, auto or HOST[:PORT]")] = "local",
    workers: Annotated[int, typer.Option(help="actors; 0: in this process, without Ray")] = 0,
    form: FormatOption = Format.TABLE,
    wide: WideOption = False,
    as_json: JsonOption = False,
) -> None:
    """The best assignment for another budget, from the saved sensitivity table."""
    from raysearch.saved_run import load_run

    with command(as_json or form is Format.JSON) as show:
        saved = load_run(run, storage)
        measured: tuple[SearchTrial, ...] = ()
        if measure:
            measured = saved.resolve_measured(
                budget, count=count, surrogate=surrogate, task=task, address=address, workers=workers
            )
        best = measured[0] if measured else saved.resolve(budget, surrogate=surrogate)
        setup = saved.setup()
        data = {
            "assignment": best.assignment.as_json,
            "costs": dict(best.costs),
            "predicted": best.predicted,
            "surrogate": surrogate,
            "measured": [_trial_facts(trial) for trial in measured],
        }

        def draw(out: console.PlainConsole) -> None:
            grid = console.assignment_grid(setup, best.assignment.as_json)
            console.show_grid(out, grid, form, wide=wide)
            if form is not Format.TABLE:
                return
            for line in console.excess_lines(parse_budgets(budget), CostModel(setup), best.costs):
                out.print(line)
            for trial in measured:
                out.print(
                    f"measured {number(trial.value)}  predicted {number(trial.predicted)}  {trial.source}"
                )
            if not measured:
                out.print(f"predicted by {surrogate}: {number(best.predicted)} (not measured)")

        show(data, draw)


def _trial_facts(trial: SearchTrial) -> dict[str, Any]:
    return {
        "source": trial.source,
        "value": trial.value,
        "predicted": trial.predicted,
        "costs": dict(trial.costs),
        "assignment": trial.assignment.as_json,
    }


@app.command()
def journal(
    run: RunArgument,
    to: Annotated[str, typer.Option("--to", help="local file")] = "study.journal",
    storage: StorageOption = DEFAULT_STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Write the trials of a search as a journal for `optuna-dashboard`."""
    from raysearch.pipeline.journal import save_journal

    with command(as_json) as show:
        path = save_journal(resolve_run(run, storage), to)
        show({"journal": str(path)}, lambda out: out.print(str(path)))


@app.command()
def report(
    run: RunArgument,
    other: Annotated[str | None, typer.Argument(help="another run, to be shown beside it")] = None,
    out: Annotated[str, typer.Option("--out", help="file of the page with two runs")] = "comparison.html",
    storage: StorageOption = DEFAULT_STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Render the HTML report from the saved records, of an unfinished run too; or two runs side by side."""
    from raysearch.saved_run import load_run

    with command(as_json) as show:
        if other is None:
            location = load_run(run, storage).report()
        else:
            location = str(load_run(run, storage).compare(load_run(other, storage), out))
        show({"report": location}, lambda out: out.print(location))


@app.command(cls=listing(target=export_targets))
def export(
    run: RunArgument,
    target: Annotated[list[str], typer.Option("--target", help=f"{PLACE}; repeat for several")],
    storage: StorageOption = DEFAULT_STORAGE,
    task: Annotated[str | None, typer.Option(help="the run's task, if it moved")] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a trained run to further targets, beside those that it has."""
    from raysearch.saved_run import load_run

    with command(as_json) as show:
        manifest = load_run(run, storage).export(target, task=task)

        def draw(out: console.PlainConsole) -> None:
            for file in manifest.files:
                out.print(f"{file.size_bytes:>12,}  {file.path}")
            for check in manifest.checks:
                out.print(f"{check.target}: {check.runtime}, max difference {check.max_abs_difference:.3g}")

        show(json.loads(manifest.to_json()), draw)
