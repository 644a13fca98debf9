"""Commands on saved runs: list, retrieve, resolve, report, export."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from raysearch.artifacts import DEFAULT_STORAGE, ListedRun, list_runs
from raysearch.cli import console
from raysearch.cli.choices import PLACE, export_targets, listing, surrogates
from raysearch.cli.command import command
from raysearch.cli.options import BudgetOption, JsonOption, RunArgument, StorageOption, app
from raysearch.records import CostModel, SearchTrial, parse_budgets


@app.command("list")
def list_command(storage: StorageOption = DEFAULT_STORAGE, as_json: JsonOption = False) -> None:
    """The runs of a storage: budget, state, progress and when each last gave a sign of life."""
    with command(as_json) as show:
        runs = list_runs(storage)

        def draw(out: Console) -> None:
            if not runs:
                out.print(f"no runs in {storage}", markup=False)
                return
            out.print(console.runs_table(runs, time.time()))

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
    as_json: JsonOption = False,
) -> None:
    """The best assignment for another budget, from the saved sensitivity table."""
    from raysearch.saved_run import load_run

    with command(as_json) as show:
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

        def draw(out: Console) -> None:
            out.print(console.assignment_table(setup, best.assignment.as_json))
            for line in console.excess_lines(parse_budgets(budget), CostModel(setup), best.costs):
                out.print(line)
            for trial in measured:
                out.print(f"measured {trial.value:.6g}  predicted {trial.predicted:.6g}  {trial.source}")
            if not measured:
                out.print(f"predicted by {surrogate}: {best.predicted:.6g} (not measured)")

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
def report(run: RunArgument, storage: StorageOption = DEFAULT_STORAGE, as_json: JsonOption = False) -> None:
    """Render the HTML report again from the saved records."""
    from raysearch.saved_run import load_run

    with command(as_json) as show:
        location = load_run(run, storage).report()
        show({"report": location}, lambda out: out.print(location))


@app.command(cls=listing(target=export_targets))
def export(
    run: RunArgument,
    target: Annotated[list[str], typer.Option("--target", help=f"{PLACE}; repeat for several")],
    storage: StorageOption = DEFAULT_STORAGE,
    task: Annotated[str | None, typer.Option(help="the run's task, if it moved")] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a trained run again, to other targets."""
    from raysearch.saved_run import load_run

    with command(as_json) as show:
        manifest = load_run(run, storage).export(target, task=task)

        def draw(out: Console) -> None:
            for file in manifest.files:
                out.print(f"{file.size_bytes:>12,}  {file.path}")
            for check in manifest.checks:
                out.print(f"{check.target}: {check.runtime}, max difference {check.max_abs_difference:.3g}")

        show(json.loads(manifest.to_json()), draw)
