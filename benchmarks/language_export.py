"""What ours chose at a size, as a file that others run, and what it is there.

Exports the assignment that `benchmarks.language_models` kept. A compressed-tensors directory is then loaded
by `from_pretrained` in a fresh process, as a user loads it, and judged on the test text; a GGUF file is
compared with the stripped module in llama.cpp by the export's own check. Each export is a piece, a JSON
file, of which `benchmarks.language_models` makes a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import raysearch
from benchmarks.language_models import EXPORT_TARGETS, OURS, Pieces, Study
from benchmarks.problems.language_cases import CASES, EXAMPLES, Case, language_task
from benchmarks.problems.language_judge import Judge
from benchmarks.problems.peer_scores import copy_to_quantize
from raysearch.controller import create_controller
from raysearch.pipeline.stages import export


class Served(nn.Module):
    """A language model that transformers loaded, which gives its logits."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        self.model.config.use_cache = False

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits


def write(case: Case, model_folder: Path, pieces: Pieces, size: str, target: str) -> dict[str, Any]:
    """Export what was chosen at a size; what the export's manifest says of it.

    Args:
        case: the model.
        model_folder: its directory; what is exported has the types of its file.
        pieces: what was chosen, and where the file goes.
        size: the bytes of a uniform scheme.
        target: of an export.
    """
    task, _ = language_task(model_folder, is_widened=False)
    case = replace(case, task=replace(task, train=None))
    run = raysearch.load_run(case.name, pieces.folder.parent / "runs")
    study = Study(case, run, pieces.folder)
    study.turn_to(size)
    assignment = pieces.assignment(size, OURS)
    model = copy_to_quantize(case.task.model, study.setup)
    stripped = create_controller(model, study.setup, study.ranges, assignment).strip_model(do_copy=False)
    config = study.inputs.config
    config = config.model_copy(update={"export": config.export.model_copy(update={"targets": (target,)})})
    samples = replace(study.inputs.samples, validation=study.inputs.samples.validation[:2])
    inputs = replace(study.inputs, config=config, samples=samples)
    folder = export_folder(pieces, size, target)
    manifest = export(inputs, stripped, assignment, folder)
    (check,) = manifest.checks
    weights = [file.size_bytes for file in manifest.files if file.path.endswith((".safetensors", ".gguf"))]
    return {"bytes": sum(weights), "check": asdict(check)}


def export_folder(pieces: Pieces, size: str, target: str) -> Path:
    """Where a file goes."""
    return pieces.folder / f"{size}-{target}"


def judged(case: Case, pieces: Pieces, size: str) -> str:
    """The cell of a compressed-tensors directory in this process."""
    folder = export_folder(pieces, size, "compressed-tensors") / "compressed-tensors"
    return str(Judge(case, pieces.folder)(Served(folder)))


def main() -> None:
    """Export, and judge in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=CASES, default="gemma")
    parser.add_argument("--folder", type=Path, default=EXAMPLES / "gemma_270m" / "model", help="Gemma's")
    parser.add_argument("--pieces", type=Path, default=Path("build/language_models"), help="folder of cells")
    parser.add_argument("--size", required=True)
    parser.add_argument("--target", choices=EXPORT_TARGETS, default=EXPORT_TARGETS[0])
    parser.add_argument("--judge", action="store_true", help="judge what was exported, and print it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES[options.model](options.folder)
    pieces = Pieces(options.pieces / case.name)
    if options.judge:
        print(judged(case, pieces, options.size))
        return
    piece = write(case, options.folder, pieces, options.size, options.target)
    if options.target == EXPORT_TARGETS[0]:
        command = [sys.executable, "-m", "benchmarks.language_export", *sys.argv[1:], "--judge"]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        piece["cell"] = answer.stdout.splitlines()[-1]
    pieces.export_path(options.size, options.target).write_text(json.dumps(piece, indent=1))
    print(piece)


if __name__ == "__main__":
    main()
