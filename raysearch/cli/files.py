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
        # Without a task the inputs are generated.
        batches, forward = None, None
        if task is not None:
            loaded = load_task(task)
            data = loaded.validation
            if data is None:
                data = loaded.calibration
            batches = materialise(data, NUM_SAMPLES, 64, "validation")
            forward = loaded.run
        result = verify_folder(
            directory, batches=batches, forward=forward, factory=factory, targets=target or None
        )

        def draw(out: Console) -> None:
            out.print(f"{result.num_files} files, {result.size_bytes:,} bytes, as the manifest lists them")
            for check in result.checks:
                out.print(
                    f"{check.target}: {check.runtime}, {check.num_samples} {result.inputs} samples, max "
                    f"difference {check.max_abs_difference:.3g}, mean {check.mean_abs_difference:.3g}, "
                    f"agreement {check.agreement:.4f}"
                )
            for note in result.notes:
                out.print(f"note: {note}")

        show(result.to_dict(), draw)
