"""Commands on a saved run: retrieve, resolve, report, export."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from raysearch.artifacts import DEFAULT_STORAGE, codecs, resolve_run
from raysearch.cli import console
from raysearch.cli.choices import PLACE, export_targets, listing, surrogates
from raysearch.cli.command import command
from raysearch.cli.options import BudgetOption, JsonOption, RunArgument, StorageOption, app
from raysearch.records import CostModel, SearchTrial, parse_budgets


@app.command()
def retrieve(
    run: RunArgument,
    to: Annotated[str, typer.Option("--to", help="local folder")],
    storage: StorageOption = DEFAULT_STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Copy a finished run here and verify every model file."""
    from raysearch import saved_run as saved_runs

    with command(as_json) as show:
        folder = saved_runs.retrieve(run, storage, to)
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
    from raysearch import saved_run as saved_runs

    with command(as_json) as show:
        measured: tuple[SearchTrial, ...] = ()
        if measure:
            measured = saved_runs.resolve_measured(
                run, budget, storage, count=count, surrogate=surrogate, task=task, address=address,
                workers=workers,
            )  # fmt: skip
        trial = measured[0] if measured else saved_runs.resolve(run, budget, storage, surrogate=surrogate)
        setup = resolve_run(run, storage).load(codecs.SETUP)
        data = {
            "assignment": dict(trial.assignment.bits),
            "costs": dict(trial.costs),
            "predicted": trial.predicted,
            "surrogate": surrogate,
            "measured": [
                {
                    "source": found.source,
                    "value": found.value,
                    "predicted": found.predicted,
                    "costs": dict(found.costs),
                    "assignment": dict(found.assignment.bits),
                }
                for found in measured
            ],
        }

        def draw(out: Console) -> None:
            out.print(console.assignment_table(setup, trial.assignment.bits))
            for line in console.excess_lines(parse_budgets(budget), CostModel(setup), trial.costs):
                out.print(line)
            for found in measured:
                out.print(f"measured {found.value:.6g}  predicted {found.predicted:.6g}  {found.source}")
            if not measured:
                out.print(f"predicted by {surrogate}: {trial.predicted:.6g} (not measured)")

        show(data, draw)


@app.command()
def report(run: RunArgument, storage: StorageOption = DEFAULT_STORAGE, as_json: JsonOption = False) -> None:
    """Render the HTML report again from the saved records."""
    from raysearch import saved_run as saved_runs

    with command(as_json) as show:
        place = saved_runs.report(run, storage)
        show({"report": place}, lambda out: out.print(place))


@app.command(cls=listing(target=export_targets))
def export(
    run: RunArgument,
    target: Annotated[list[str], typer.Option("--target", help=f"{PLACE}; repeat for several")],
    storage: StorageOption = DEFAULT_STORAGE,
    task: Annotated[str | None, typer.Option(help="the run's task, if it moved")] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a trained run again, to other targets."""
    from raysearch import saved_run as saved_runs

    with command(as_json) as show:
        manifest = saved_runs.export_run(run, target, storage, task=task)

        def draw(out: Console) -> None:
            for file in manifest.files:
                out.print(f"{file.size_bytes:>12,}  {file.path}")
            for check in manifest.checks:
                out.print(f"{check.target}: {check.runtime}, max difference {check.max_abs_difference:.3g}")

        show(json.loads(manifest.to_json()), draw)
