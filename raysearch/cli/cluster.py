"""Commands that talk to a Ray cluster: submit a run, watch it, stop it."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import Annotated

import typer

from raysearch.artifacts import DEFAULT_STORAGE, readable
from raysearch.cli import console
from raysearch.cli.choices import cost_kinds, listing, task_kinds
from raysearch.cli.command import Show, command
from raysearch.cli.options import (
    DEFAULT_KIND,
    BudgetOption,
    CaOption,
    ConfigOption,
    DataOption,
    DropOption,
    FrontOption,
    HeadOption,
    JsonOption,
    KindOption,
    LatencyOption,
    MaybeHead,
    MaybeTask,
    MinimizeOption,
    ModelOption,
    RunArgument,
    SetOption,
    StorageOption,
    TokenOption,
    WithOption,
    app,
    read_settings,
    task_of,
)
from raysearch.errors import ConfigError
from raysearch.job import Job, check_reach
from raysearch.job import submit as submit_run
from raysearch.records import RunStatus
from raysearch.reporting.live import ProgressLines, progress_text
from raysearch.reporting.printable import printable


@app.command(cls=listing(front=cost_kinds, minimize=cost_kinds, kind=task_kinds))
def submit(
    address: HeadOption,
    storage: StorageOption,
    task: MaybeTask = None,
    model: ModelOption = None,
    data: DataOption = [],
    kind: KindOption = DEFAULT_KIND,
    options: WithOption = [],
    budget: BudgetOption = [],
    front: FrontOption = None,
    minimize: MinimizeOption = None,
    max_drop: DropOption = None,
    latency: LatencyOption = None,
    config: ConfigOption = None,
    settings: SetOption = [],
    run_id: Annotated[str | None, typer.Option("--run-id", help="name of the run")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with --run-id")] = False,
    working_dir: Annotated[
        str | None, typer.Option(help="folder to upload; the task file lies in it")
    ] = None,
    exclude: Annotated[
        list[str], typer.Option(help="pattern of files that are not uploaded, as in a .gitignore")
    ] = [],
    python: Annotated[str, typer.Option(help="interpreter on the head that has raysearch")] = "python",
    pip: Annotated[list[str], typer.Option(help="requirement to install for the job")] = [],
    env: Annotated[
        list[str],
        typer.Option(metavar="NAME=VALUE", help="variable for the job, no secret: all can read it"),
    ] = [],
    shared_fs: Annotated[
        bool, typer.Option("--shared-fs", help="all nodes share the storage folder")
    ] = False,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a run on a Ray cluster; prints the run id."""
    with command(as_json) as show:
        if model is not None:
            check_reach(f"the model directory '{model}'", address, shared_fs)
        job = submit_run(
            task_of(task, model, data, kind, options),
            budget,
            storage,
            address=address,
            config=read_settings(config, settings, latency, front, minimize, max_drop),
            run_id=run_id,
            resume=resume,
            working_dir=working_dir,
            exclude=exclude,
            python=python,
            pip=pip,
            env_vars=dict(map(_variable, env)),
            shared_fs=shared_fs,
            token_file=token_file,
            ca_file=ca_file,
            tell=partial(typer.echo, err=True),
        )
        show(
            {"run_id": job.run_id, "storage": job.storage, "address": job.address},
            lambda out: out.print(job.run_id),
        )


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f"--env {text!r} sets no variable; write NAME=VALUE.")
    return name, value


@app.command()
def status(
    run: RunArgument,
    storage: StorageOption = DEFAULT_STORAGE,
    address: MaybeHead = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="go on showing it until the run ends")] = False,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """State, stage and progress of a run."""
    with command(as_json) as show:
        job = Job(run, storage, address, token_file, ca_file)
        _show_status(_watched(job, None) if watch else job.status(), show)


@app.command()
def wait(
    run: RunArgument,
    storage: StorageOption = DEFAULT_STORAGE,
    address: MaybeHead = None,
    timeout: Annotated[float | None, typer.Option(help="seconds")] = None,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait until a run ends; exit code 0 only when it is done."""
    with command(as_json) as show:
        end = _watched(Job(run, storage, address, token_file, ca_file), timeout)
        _show_status(end, show)
    if end.state != "done":
        raise typer.Exit(1)


def _watched(job: Job, timeout: float | None) -> RunStatus:
    """The end of a run, whose progress is shown on stderr until then."""
    lines = ProgressLines()
    try:
        return job.wait(timeout, lines)
    finally:
        lines.close()


@app.command()
def logs(
    run: RunArgument,
    address: MaybeHead = None,
    storage: StorageOption = DEFAULT_STORAGE,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job ends")] = False,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a run's job printed; without --address what its driver logged in the run's folder."""
    with command(as_json) as show:
        job = Job(run, storage, address, token_file, ca_file)
        if follow and not as_json:
            for piece in job.follow():
                sys.stdout.write(printable(piece, is_log=True))
                sys.stdout.flush()
            return
        text = job.logs()
        show({"run_id": run, "logs": text}, lambda out: _write_log(out, text if address else readable(text)))


def _write_log(out: console.PlainConsole, text: str) -> None:
    out.file.write(printable(text, is_log=True))


@app.command()
def cancel(
    run: RunArgument,
    address: HeadOption,
    storage: StorageOption = DEFAULT_STORAGE,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a run's job; finished work is kept."""
    with command(as_json) as show:
        _show_status(Job(run, storage, address, token_file, ca_file).cancel(), show)


def _show_status(status: RunStatus, show: Show) -> None:
    def draw(out: console.PlainConsole) -> None:
        age = console.age_text(status.updated, time.time())
        sign = f", last sign of life {age}" if age and status.state == "running" else ""
        text = f"{status.run_id}: {status.state}, {progress_text(status)}{sign}"
        out.print(text)
        if status.message:
            out.prose(status.message)

    show(json.loads(status.to_json()), draw)
