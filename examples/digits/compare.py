"""The found assignment beside uniform widths: the same walk, with one width allowed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from task import make_task

import raysearch
from raysearch.artifacts import codecs, resolve_run
from raysearch.records import FineTuneResult
from raysearch.records.refinement import PLAIN

WIDTHS = (8, 4, 3, 2)
COLUMNS = (
    "", "bytes on disk", "avg bits", "BOPs", "divergence, rounded", "refined", "loss, untrained", "trained",
    "accuracy",
)  # fmt: skip


def rounding_of(run_id: str, storage: str) -> dict[str, Any]:
    """How a run rounds its weights; what stands beside it must be rounded alike."""
    settings = resolve_run(run_id, storage).open()["config"]
    # A run with nearest rounding records none, as before there was another.
    rounding: dict[str, Any] = settings.get("rounding", {"method": "nearest"})
    return rounding


def uniform_run(bits: int, storage: str, rounding: dict[str, Any]) -> raysearch.RunResult:
    """Walk with a single weight width; nothing is left to search, so the sensitivity is kept short."""
    run_id = f"uniform-w{bits}"
    resume = (Path(storage) / run_id).exists()
    return raysearch.run(
        make_task(),
        f"avg_bits<={bits}",
        storage,
        config={
            "placement": {"weight_bit_widths": [bits]},
            "rounding": rounding,
            "sensitivity": {"relative_error": 1000, "draw_chunk": 2},
            "search": {"num_trials": 1},
            "export": {"targets": ["packed"]},
        },
        run_id=run_id,
        resume=resume,
        workers=0,
    )


def size_on_disk(result: raysearch.RunResult) -> int:
    """Bytes of the packed file."""
    return (Path(result.model_dir) / "model.safetensors").stat().st_size


def before_training(result: raysearch.RunResult) -> Mapping[str, float]:
    """Metrics of the quantized model that no training step has changed."""
    training: FineTuneResult = resolve_run(Path(result.storage)).load(codecs.FINE_TUNE)
    return training.history[0].metrics


def plain_divergence(result: raysearch.RunResult) -> str:
    """What the codes of the rounding table measured, before they were refined; "" where nothing was."""
    store = resolve_run(Path(result.storage))
    if not store.has(codecs.REFINEMENT):
        return ""
    return f"{store.load(codecs.REFINEMENT).divergences[PLAIN]:.4f}"


def main() -> None:
    """Print the table and where the found model is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--run-id", default="digits")
    arguments = parser.parse_args()
    found = resolve_run(arguments.run_id, arguments.storage).load(codecs.RESULT)
    rounding = rounding_of(arguments.run_id, arguments.storage)
    rows = {f"uniform {bits} bits": uniform_run(bits, arguments.storage, rounding) for bits in WIDTHS}
    rows[f"found, {found.budget[0]}"] = found

    table = Table(title="scikit-learn digits, 597 validation images")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    weights = Path(__file__).with_name("float.safetensors").stat().st_size
    metrics = found.float_metrics
    table.add_row(
        "float", f"{weights:,}", "32", "", "", "", f"{metrics['loss']:.4f}", "", f"{metrics['accuracy']:.4f}"
    )
    for name, result in rows.items():
        untrained = before_training(result)
        table.add_row(
            name,
            f"{size_on_disk(result):,}",
            f"{result.costs['avg_bits']:.3f}",
            f"{result.costs['bops'] / 1e6:.3f} M",
            plain_divergence(result),
            f"{untrained['divergence']:.4f}",
            f"{untrained['loss']:.4f}",
            f"{result.quantized_metrics['loss']:.4f}",
            f"{result.quantized_metrics['accuracy']:.4f}",
        )
    console = Console() if Console().is_terminal else Console(width=120)
    console.print(table)
    console.print(
        "Divergence from the float model: of rounded weights (on the search's samples), and of refined ones. "
        "Trained: the best epoch by the loss on these images, or the state before training.",
        soft_wrap=True,
    )
    console.print(f"model:  {found.model_dir}", soft_wrap=True)
    console.print(f"report: {found.report}", soft_wrap=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
