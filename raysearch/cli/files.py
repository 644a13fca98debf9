"""Commands on exported files, wherever they are: verify."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from raysearch.cli.command import command
from raysearch.cli.options import JsonOption, app

NUM_SAMPLES = 256


@app.command()
def verify(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="folder with manifest.json")],
    task: Annotated[
        str | None, typer.Option(help="run on this task's validation data, not on generated inputs")
    ] = None,
    factory: Annotated[
        str | None, typer.Option(help="module:function of the float network, to run beside the graph")
    ] = None,
    target: Annotated[list[str], typer.Option("--target", help="run only these; repeat for several")] = [],
    as_json: JsonOption = False,
) -> None:
    """Check every file of a model folder by its hash, and run every target in its runtime."""
    from raysearch.evaluation import materialise
    from raysearch.export import verify_folder
    from raysearch.task import load_task

    with command(as_json) as show:
        batches, forward = None, None
        if task is not None:
            loaded = load_task(task)
            data = loaded.calibration if loaded.validation is None else loaded.validation
            batches, forward = materialise(data, NUM_SAMPLES, 64, "validation"), loaded.run
        found = verify_folder(
            directory, batches=batches, forward=forward, factory=factory, targets=target or None
        )

        def draw(out: Console) -> None:
            out.print(f"{found.num_files} files, {found.size_bytes:,} bytes, as the manifest lists them")
            for check in found.checks:
                out.print(
                    f"{check.target}: {check.runtime}, {check.num_samples} {found.inputs} samples, max "
                    f"difference {check.max_abs_difference:.3g}, mean {check.mean_abs_difference:.3g}, "
                    f"agreement {check.agreement:.4f}"
                )
            for note in found.notes:
                out.print(f"note: {note}")

        show(found.to_dict(), draw)
