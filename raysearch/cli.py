"""The commands: parse, call, print. Exit code 0 done, 1 failed, 2 wrong use."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from raysearch import api, console, job
from raysearch.artifacts import resolve_run
from raysearch.command import Show, command
from raysearch.config import load_config
from raysearch.errors import ConfigError
from raysearch.records import CostModel, parse_budgets
from raysearch.report import sensitivity_rows

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


@app.command()
def inspect(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="as for `run`")] = None,
    config: ConfigOption = None,
    settings: SetOption = [],
    sensitivity: Annotated[
        str | None, typer.Option("--sensitivity", metavar="RUN", help="show what a run measured instead")
    ] = None,
    storage: StorageOption = api.DEFAULT_STORAGE,
    latency: LatencyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Layers, groups, options, costs and achievable budgets of a task, or the sensitivities of a run."""
    with command(as_json) as show:
        if sensitivity is not None:
            _show_sensitivity(sensitivity, storage, show)
            return
        if task is None:
            raise ConfigError("inspect needs a TASK (path/to/file.py:factory), or --sensitivity RUN.")
        setup, model = api.inspect(task, load_config(config, _with_latency(settings, latency)))

        def draw(out: Console) -> None:
            out.print(console.layers_table(setup))
            out.print(console.widths_table(setup, model))

        show(console.inspection(setup, model), draw)


@app.command()
def run(
    task: TaskArgument,
    budget: BudgetOption,
    config: ConfigOption = None,
    settings: SetOption = [],
    storage: StorageOption = api.DEFAULT_STORAGE,
    run_id: Annotated[str | None, typer.Option("--run-id", help="name of the run")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with --run-id")] = False,
    address: Annotated[str, typer.Option(help="local, auto or HOST[:PORT]")] = "local",
    workers: Annotated[int | None, typer.Option(help="actors; 0: in this process, without Ray")] = None,
    latency: LatencyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize a model under a budget: the whole walk."""
    with command(as_json) as show:
        lines = console.ProgressLines()
        try:
            result = api.run(
                task,
                budget,
                storage,
                config=load_config(config, _with_latency(settings, latency)),
                run_id=run_id,
                resume=resume,
                address=address,
                workers=workers,
                listener=lines,
            )
        finally:
            lines.close()

        setup = resolve_run(result.run_id, storage).load_setup()

        def draw(out: Console) -> None:
            out.print(console.assignment_table(setup, result.assignment))
            out.print(console.result_table(result))
            for note in result.notes:
                out.print(f"note: {note}")
            out.print(f"model:  {result.model_dir}")
            out.print(f"report: {result.report or 'none'}")

        show(result.to_dict(), draw)


@app.command()
def submit(
    task: TaskArgument,
    budget: BudgetOption,
    address: HeadOption,
    storage: StorageOption,
    config: ConfigOption = None,
    settings: SetOption = [],
    run_id: Annotated[str | None, typer.Option("--run-id", help="name of the run")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with --run-id")] = False,
    working_dir: Annotated[
        str | None, typer.Option(help="folder to upload; the task file lies in it")
    ] = None,
    python: Annotated[str, typer.Option(help="interpreter on the head that has raysearch")] = "python",
    pip: Annotated[list[str], typer.Option(help="requirement to install for the job")] = [],
    shared_fs: Annotated[
        bool, typer.Option("--shared-fs", help="all nodes share the storage folder")
    ] = False,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a run on a Ray cluster; prints the run id."""
    with command(as_json) as show:
        submitted = job.submit(
            task,
            budget,
            storage,
            address=address,
            config=load_config(config, settings),
            run_id=run_id,
            resume=resume,
            working_dir=working_dir,
            python=python,
            pip=pip,
            shared_fs=shared_fs,
            token_file=token_file,
        )
        show(
            {"run_id": submitted.run_id, "storage": submitted.storage, "address": submitted.address},
            lambda out: out.print(submitted.run_id),
        )


@app.command()
def status(
    run: RunArgument,
    storage: StorageOption = api.DEFAULT_STORAGE,
    address: MaybeHead = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """State, stage and progress of a run."""
    with command(as_json) as show:
        found = job.job_run_status(run, storage, address, token_file=token_file)
        _show_status(found, show)


@app.command()
def wait(
    run: RunArgument,
    storage: StorageOption = api.DEFAULT_STORAGE,
    address: MaybeHead = None,
    timeout: Annotated[float | None, typer.Option(help="seconds")] = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait until a run ends; exit code 0 only when it is done."""
    with command(as_json) as show:
        found = job.wait_for(run, storage, address, timeout=timeout, token_file=token_file)
        _show_status(found, show)
    if found.state != "done":
        raise typer.Exit(1)


@app.command()
def logs(
    run: RunArgument,
    address: HeadOption,
    storage: StorageOption = api.DEFAULT_STORAGE,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job ends")] = False,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a run's job printed."""
    with command(as_json) as show:
        handle = job.Job(run, storage, address, token_file)
        if follow and not as_json:
            for piece in handle.follow():
                sys.stdout.write(piece)
                sys.stdout.flush()
            return
        text = handle.logs()
        show({"run_id": run, "logs": text}, lambda out: out.out(text))


@app.command()
def cancel(
    run: RunArgument,
    address: HeadOption,
    storage: StorageOption = api.DEFAULT_STORAGE,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a run's job; finished work is kept."""
    with command(as_json) as show:
        _show_status(job.cancel(run, storage, address, token_file=token_file), show)


@app.command()
def retrieve(
    run: RunArgument,
    to: Annotated[str, typer.Option("--to", help="local folder")],
    storage: StorageOption = api.DEFAULT_STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Copy a finished run here and verify every model file."""
    with command(as_json) as show:
        folder = api.retrieve(run, storage, to)
        show({"folder": str(folder), "model_dir": str(folder / "model")}, lambda out: out.print(str(folder)))


@app.command()
def resolve(
    run: RunArgument,
    budget: BudgetOption,
    storage: StorageOption = api.DEFAULT_STORAGE,
    surrogate: Annotated[str, typer.Option(help="response, hawq, weight-error or single-loss")] = "response",
    as_json: JsonOption = False,
) -> None:
    """The best assignment for another budget, from the saved sensitivity table."""
    with command(as_json) as show:
        trial = api.resolve(run, budget, storage, surrogate=surrogate)
        setup = resolve_run(run, storage).load_setup()
        data = {
            "assignment": dict(trial.assignment.bits),
            "costs": dict(trial.costs),
            "predicted": trial.predicted,
            "surrogate": surrogate,
        }

        def draw(out: Console) -> None:
            out.print(console.assignment_table(setup, trial.assignment.bits))
            for line in console.excess_lines(parse_budgets(budget), CostModel(setup), trial.costs):
                out.print(line)
            out.print(f"predicted by {surrogate}: {trial.predicted:.6g} (not measured)")

        show(data, draw)


@app.command()
def report(
    run: RunArgument, storage: StorageOption = api.DEFAULT_STORAGE, as_json: JsonOption = False
) -> None:
    """Render the HTML report again from the saved records."""
    with command(as_json) as show:
        place = api.report(run, storage)
        show({"report": place}, lambda out: out.print(place))


@app.command()
def export(
    run: RunArgument,
    target: Annotated[list[str], typer.Option("--target", help="packed or onnx; repeat for several")],
    storage: StorageOption = api.DEFAULT_STORAGE,
    task: Annotated[str | None, typer.Option(help="the run's task, if it moved")] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a trained run again, to other targets."""
    with command(as_json) as show:
        manifest = api.export_run(run, target, storage, task=task)

        def draw(out: Console) -> None:
            for file in manifest.files:
                out.print(f"{file.size_bytes:>12,}  {file.path}")
            for check in manifest.checks:
                out.print(f"{check.target}: {check.runtime}, max difference {check.max_abs_difference:.3g}")

        show(json.loads(manifest.to_json()), draw)


def main() -> None:
    """Entry point."""
    app()


def _show_sensitivity(run: str, storage: str, show: Show) -> None:
    setup, table, chosen = api.load_sensitivity(run, storage)
    bits = dict(chosen.bits) if chosen else None
    show(
        {"fingerprint": table.fingerprint, "groups": sensitivity_rows(setup, table, bits)},
        lambda out: out.print(console.sensitivity_table(setup, table, bits)),
    )


def _show_status(found: Any, show: Show) -> None:
    def draw(out: Console) -> None:
        out.print(f"{found.run_id}: {found.state}, {console.progress_text(found)}")
        if found.message:
            out.print(found.message)

    show(json.loads(found.to_json()), draw)


def _with_latency(settings: list[str], path: str | None) -> list[str]:
    return settings if path is None else [*settings, f"search.latency_profile={path}"]
