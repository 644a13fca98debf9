"""Language models in the bytes of three uniform schemes: which allocation leaves least, alike rounded.

One run measures what every option does; then every method chooses within the same bytes from the same
options, rounded by the same codes, and is judged on text that no method saw. Called again, it goes on. Writes
benchmarks/results/language_models.md. The models of `CASES` need the directory of examples/gemma_270m.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

import raysearch
from benchmarks.problems.driven_run import drive_run, uniform_bytes
from benchmarks.problems.language_cases import CASES, Case, tiny_lm
from benchmarks.problems.language_judge import Cell, Judge, with_error
from benchmarks.problems.peer_scores import copy_to_quantize, first_order, higgs, least
from benchmarks.responses import processor
from raysearch.artifacts import RunStore, UnitLog
from raysearch.cluster.pool import LocalPool
from raysearch.cluster.resuming import ResumingPool
from raysearch.config import load_config
from raysearch.controller import create_controller
from raysearch.hooks import put_floats
from raysearch.pipeline.inputs import Inputs, check_inputs
from raysearch.pipeline.stages import (
    make_objective,
    make_recipe,
    make_replica,
    refine_winner,
    search_shards,
    strip_checkpoint,
)
from raysearch.records import BitAssignment, Option, RangeTable, Refinement, Scheme, parse_budgets
from raysearch.search import Race, search_assignment
from raysearch.training import fine_tune

RESULT = Path(__file__).parent / "results" / "language_models.md"
PAGE = """\
# Language models: which layers take which scheme

{date}, {machine}, torch {torch}, one thread. Made by `python -m benchmarks.language_models`;
with `--model gemma --folder …` it measures Gemma 3 270M (`examples/gemma_270m`), with `--model gemma_gguf` in
types of GGUF.

Only weights are quantized; embedding and head stay float. At each size all methods take from the same options
within the bytes of a uniform scheme (`size<=…B`, scales counted) and are deployed with the same codes (GPTQ
on the same calibration text). Calibration, validation and test text are Python's help topics, apart.
Perplexity, and KL of the next token's probabilities to the float model's: a mean over test windows ± its
standard error.

- uniform, nearest: nearest codes at the scale of least squared weight error; uniform: by GPTQ
  (of the types of GGUF nearest codes throughout; by GPTQ, `--model gemma_gptq`, they were not measured);
- weight error: mean squared weight error times llm-compressor's factor of size, depth and kind (its HIGGS),
  solved exactly; no data;
- first order: Σ |gradient ⊙ ΔW| of the next-token loss, as AutoRound's AutoScheme scores, solved exactly;
- ours: the search of a run, by responses and then trials measured by KL on the validation text;
- refined: `rounding.refine` of a run; trained: distillation after that, on text of its own.

{sections}
"""
SECTION = """## {title}
{counts} windows of {tokens} tokens; {trials} trials; {epochs} epochs of training.

{table}
{missing}
Ours minus the others with the same rounding, KL × 1000 over the same test windows:

{margins}

How many layers take each scheme:

{mixtures}
{exports}"""
EXPORTED = """
Ours as files (`python -m benchmarks.language_export`). Perplexity and KL × 1000: on the same test text, in
a fresh process, as transformers loads it, in bfloat16. Difference: of logits (GGUF: of log-probabilities) to
the stripped module, in the mean, on validation windows; agreement: how often both give the same next token.
llama.cpp's kernels round what they multiply with to 8 bits, and the export refuses more than that explains.

| bytes of | target | bytes of weights | perplexity | KL × 1000 | runtime | difference | agreement |
|---|---|---|---|---|---|---|---|"""
EXPORT_TARGETS = ("compressed-tensors", "gguf")
FLOAT, NEAREST, UNIFORM = "float", "uniform, nearest", "uniform"
UNIFORM_REFINED, OURS, REFINED, TRAINED = "uniform, refined", "ours", "ours, refined", "ours, trained"
RIVALS = (UNIFORM, "weight error", "first order")


def share_weights(model: nn.Module, original: nn.Module) -> None:
    """Hold the weights of a model and its copy once; nothing here writes into them."""
    for name, weight in original.named_parameters():
        model.get_parameter(name).data = weight.data


class Study:
    """A model with all that is measured of it, and its choices at one size, the first one at first.

    Args:
        case: the model, its text and settings.
        run: gave ranges, codes and the sensitivity table.
        folder: keeps what is the same for all sizes; the run's is beside it, in "runs".
    """

    def __init__(self, case: Case, run: raysearch.SavedRun, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.setup, self.table, _ = run.load_sensitivity()
        self.ranges: RangeTable = run.ranges()
        self.inputs: Inputs = check_inputs(case.task, load_config(overrides=case.config), ["avg_bits<=8"])
        share_weights(self.inputs.task.model, case.task.model)
        self.shards, self.per_sample = search_shards(self.inputs)
        self.turn_to(case.sizes[0])

    def turn_to(self, size: str) -> None:
        """Take the bytes of a uniform scheme as the budget."""
        self.size = size
        budget = uniform_bytes(self.inputs.setup, size)
        self.inputs = replace(self.inputs, budgets=parse_budgets([budget]))

    def pool(self) -> LocalPool:
        """A pool of its own for whoever needs one, so that nothing of it is held while models are judged."""
        return LocalPool(make_replica(self.inputs, self.shards).place())

    def uniform(self) -> BitAssignment:
        """All weights at the size's own scheme."""
        return BitAssignment.uniform(self.setup, self.size)

    def choose(self, method: str) -> BitAssignment:
        """What a method takes within the budget."""
        budgets, table = self.inputs.budgets, self.table
        if method == "weight error":
            return least(self.setup, budgets, higgs(self.setup, table))
        if method == "first order":
            return least(self.setup, budgets, self.first_order_scores())
        return self.uniform() if method != OURS else self.search()

    def first_order_scores(self) -> dict[Option, float]:
        """Option → score; measured once for all sizes."""
        groups = self.setup.groups
        of_scheme: dict[Scheme, dict[str, float]] = {}
        for scheme in sorted({scheme for group in groups.values() for scheme in group.schemes}):
            of_scheme[scheme] = self.first_order_of(scheme)
        return {
            (group, scheme): sum(of_scheme[scheme][point] for point in groups[group].points)
            for group, scheme in self.setup.options()
        }

    def first_order_of(self, scheme: Scheme) -> dict[str, float]:
        """Quantizer id → score at one scheme."""
        path = self.folder / f"first-order-{scheme}.json"
        if not path.exists():
            batches = self.case.windows["calibration"][: self.case.scored].split(1)
            scores = first_order(self.case.task.model, self.setup, self.ranges, batches, scheme)
            path.write_text(json.dumps(scores))
        return dict(json.loads(path.read_text()))

    def search(self) -> BitAssignment:
        """The search of a run; kept, since it takes longest."""
        path = self.folder / f"{self.size}-search.json"
        if path.exists():
            return BitAssignment(json.loads(path.read_text()))
        log = UnitLog(RunStore(self.folder.parent / "runs", self.case.name))
        pool = ResumingPool(self.pool(), log, f"search-{self.size}", lambda done, total: None)
        objective = make_objective(self.inputs, self.ranges, pool, self.per_sample)
        race = Race(objective, len(self.shards))
        result = search_assignment(self.table, self.setup, self.inputs.budgets, race, self.inputs.search)
        best = result.best
        print(f"{self.size}: {best.source} of {len(result.trials)} trials, {best.value:.4f}", flush=True)
        path.write_text(json.dumps(best.assignment.as_json))
        return best.assignment

    def refine(self, assignment: BitAssignment) -> Refinement:
        """The refinement of a run."""
        pool = self.pool()
        record = refine_winner(self.inputs, self.ranges, assignment, lambda part: pool, len(self.shards))
        print(record.describe(), flush=True)
        return record

    def deployed(self, assignment: BitAssignment, ranges: RangeTable) -> nn.Module:
        """The quantized model, by the codes in these ranges."""
        model = copy_to_quantize(self.case.task.model, self.setup)
        create_controller(model, self.setup, ranges, assignment)
        return model.eval()

    def model_of(self, row: str, assignment: BitAssignment) -> nn.Module | None:
        """What is judged of a row that is not refined; None: the float model."""
        if row == FLOAT:
            return None
        return self.deployed(assignment, self.ranges.calibrated if row == NEAREST else self.ranges)

    def refined(self, assignment: BitAssignment, record: Refinement) -> nn.Module:
        """The quantized model as refinement left it."""
        model = copy.deepcopy(self.case.task.model)
        put_floats(model, record.best.floats)
        create_controller(model, self.setup, record.put_into(self.ranges), assignment)
        return model.eval()

    def trained(self, assignment: BitAssignment, record: Refinement) -> nn.Module:
        """The refined model after the training of a run, stripped."""
        recipe = make_recipe(self.inputs, self.ranges, assignment, record)
        saved: dict[str, bytes] = {}
        result = fine_tune(recipe, saved.__setitem__, on_ray=False)
        print(result, flush=True)
        ranges = record.put_into(self.ranges)
        return strip_checkpoint(self.inputs, ranges, assignment, saved[result.checkpoint])


def measured_run(case: Case, storage: Path) -> raysearch.SavedRun:
    """The run that measures what every option does; what it does after that is not needed."""
    if (storage / case.name / "sensitivity.parquet").exists():
        return raysearch.load_run(case.name, storage)
    return drive_run(case.task, case.measuring, storage, case.name, case.sizes[0])


@dataclass(frozen=True)
class Pieces:
    """The folder of what was measured, a file a cell, so that a benchmark may be made in pieces."""

    folder: Path

    def path(self, size: str, row: str) -> Path:
        return self.folder / f"{size}-{row.replace(', ', '-').replace(' ', '-')}.npz"

    def record_path(self, size: str, row: str) -> Path:
        return self.path(size, row).with_suffix(".safetensors")

    def export_path(self, size: str, target: str) -> Path:
        return self.folder / f"{size}-{target}.json"

    def has(self, size: str, row: str) -> bool:
        return self.path(size, row).exists()

    def save(self, size: str, row: str, cell: Cell, assignment: BitAssignment) -> None:
        chosen = np.array(json.dumps(assignment.as_json))
        np.savez(self.path(size, row), divergences=cell.divergences, losses=cell.losses, assignment=chosen)
        print(f"{size} | {row} | {cell}", flush=True)

    def cell(self, size: str, row: str) -> Cell:
        arrays = np.load(self.path(size, row))
        return Cell(arrays["divergences"], arrays["losses"])

    def assignment(self, size: str, row: str) -> BitAssignment:
        return BitAssignment(json.loads(str(np.load(self.path(size, row))["assignment"])))


def measure_chosen(study: Study, judge: Judge, pieces: Pieces) -> None:
    """Every cell of a size that is not there yet, of what is chosen and rounded."""
    size = study.size
    for row in (FLOAT, NEAREST, *RIVALS, OURS):
        if pieces.has(size, row) or (row == NEAREST and study.case.is_nearest):
            continue
        assignment = study.choose(row)
        # No model is held while the next one is chosen.
        pieces.save(size, row, judge(study.model_of(row, assignment)), assignment)


def measure_tuned(study: Study, judge: Judge, pieces: Pieces) -> None:
    """Every cell of a size that is not there yet, of what is refined and trained after that."""
    if not study.case.refines:
        return
    size = study.size
    measure_refined(study, judge, pieces, OURS, REFINED)
    if study.inputs.task.train is not None and not pieces.has(size, TRAINED):
        assignment = pieces.assignment(size, OURS)
        record = Refinement.from_bytes(pieces.record_path(size, REFINED).read_bytes())
        pieces.save(size, TRAINED, judge(study.trained(assignment, record)), assignment)
    if study.case.refines_uniform:
        measure_refined(study, judge, pieces, UNIFORM, UNIFORM_REFINED)


def measure_refined(study: Study, judge: Judge, pieces: Pieces, plain: str, refined: str) -> None:
    """The cell of a row, refined, and what refinement gave."""
    if pieces.has(study.size, refined):
        return
    assignment = pieces.assignment(study.size, plain)
    record = study.refine(assignment)
    pieces.record_path(study.size, refined).write_bytes(record.to_bytes())
    pieces.save(study.size, refined, judge(study.refined(assignment, record)), assignment)


def table_of(case: Case, pieces: Pieces) -> str:
    """A row a method; perplexity and divergence at each size."""
    names = [f"{size}: perplexity | KL × 1000" for size in case.sizes]
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|---|" * len(names)]
    for row in (FLOAT, NEAREST, *RIVALS, UNIFORM_REFINED, OURS, REFINED, TRAINED):
        cells = [str(pieces.cell(size, row)) if pieces.has(size, row) else "– | –" for size in case.sizes]
        if any(pieces.has(size, row) for size in case.sizes):
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def missing_of(case: Case, pieces: Pieces) -> str:
    """A sentence on the cells that are not measured; "" where none is missing."""
    rows = [FLOAT, *RIVALS, OURS]
    if case.refines:
        rows.append(REFINED)
    if not case.is_nearest:
        rows.append(NEAREST)
    lacking = {size: [row for row in rows if not pieces.has(size, row)] for size in case.sizes}
    texts = [f"{size} ({'; '.join(rows)})" for size, rows in lacking.items() if rows]
    return f"\nNot measured: {', '.join(texts)}.\n" if texts else ""


def margins_of(case: Case, pieces: Pieces) -> str:
    """Ours against the others of the same rounding, ± the standard error of the difference over windows."""
    pairs = [(OURS, rival) for rival in RIVALS]
    lines = [f"| bytes of | {' | '.join(RIVALS)} |", "|---|" + "---|" * len(RIVALS)]
    if case.refines_uniform:
        pairs.append((REFINED, UNIFORM_REFINED))
        lines = [f"| bytes of | {' | '.join(RIVALS)} | both refined: uniform |", lines[1] + "---|"]
    for size in case.sizes:
        cells = [margin(pieces, size, *pair) for pair in pairs]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def margin(pieces: Pieces, size: str, row: str, rival: str) -> str:
    """The difference of two rows' divergences, over the same windows; a dash where one is not measured."""
    if not (pieces.has(size, row) and pieces.has(size, rival)):
        return "–"
    differences = pieces.cell(size, row).divergences - pieces.cell(size, rival).divergences
    return with_error(differences, "+.2f")


def mixtures_of(case: Case, pieces: Pieces) -> str:
    """How many layers take each scheme."""
    schemes = case.config["placement"]["weight_schemes"]
    lines = [f"| bytes of | method | {' | '.join(schemes)} |", "|---|---|" + "---|" * len(schemes)]
    for size in case.sizes:
        for row in [row for row in (*RIVALS[1:], OURS) if pieces.has(size, row)]:
            chosen = [str(scheme) for scheme in pieces.assignment(size, row).schemes.values()]
            lines.append(f"| {size} | {row} | {' | '.join(str(chosen.count(name)) for name in schemes)} |")
    return "\n".join(lines)


def exports_of(case: Case, pieces: Pieces) -> str:
    """What ours is as a file that others run; "" where nothing was exported."""
    lines: list[str] = []
    for size, target in product(case.sizes, EXPORT_TARGETS):
        path = pieces.export_path(size, target)
        if path.exists():
            piece = json.loads(path.read_text())
            check = piece["check"]
            cell = piece.get("cell", "– | –")
            lines.append(
                f"| {size} | {target} | {piece['bytes']:,} | {cell} | {check['runtime']} | "
                f"{check['mean_abs_difference']:.2g} | {check['agreement']:.3f} |"
            )
    return "\n".join([EXPORTED, *lines, ""]) if lines else ""


def section_of(case: Case, pieces: Pieces) -> str:
    """The page's part of one model."""
    counts = ", ".join(f"{len(ids)} {part}" for part, ids in case.windows.items())
    return SECTION.format(
        title=case.title,
        counts=counts,
        tokens=case.windows["test"].shape[1],
        trials=case.config["search"]["num_trials"],
        epochs=case.config.get("training", {}).get("epochs", 0),
        table=table_of(case, pieces),
        missing=missing_of(case, pieces),
        margins=margins_of(case, pieces),
        mixtures=mixtures_of(case, pieces),
        exports=exports_of(case, pieces),
    )


def write_page(case: Case, pieces: Pieces, date: str) -> None:
    """The page of the sections of all models that were measured, this one's made anew."""
    folder = pieces.folder.parent
    (folder / f"{case.name}.md").write_text(section_of(case, pieces))
    sections = [path.read_text() for path in sorted(folder.glob("*.md"), reverse=True)]
    text = "\n".join(sections).rstrip()
    RESULT.write_text(PAGE.format(date=date, machine=processor(), torch=torch.__version__, sections=text))


def main() -> None:
    """Measure what is not there yet; the page is written after each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("tiny_lm", *CASES), default="tiny_lm")
    parser.add_argument("--folder", type=Path, default=Path("examples/gemma_270m/model"), help="Gemma's")
    parser.add_argument("--pieces", type=Path, default=Path("build/language_models"), help="folder of cells")
    parser.add_argument("--minutes", type=float, default=60, help="then no further size is begun")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    case = tiny_lm() if options.model == "tiny_lm" else CASES[options.model](options.folder)
    pieces = Pieces(options.pieces / case.name)
    pieces.folder.mkdir(parents=True, exist_ok=True)
    run = measured_run(case, options.pieces / "runs")
    judge = Judge(case, pieces.folder)
    study = Study(case, run, pieces.folder)
    write_page(case, pieces, options.date)
    for measure, size in product((measure_chosen, measure_tuned), case.sizes):
        if time.monotonic() - start < 60 * options.minutes:
            study.turn_to(size)
            measure(study, judge, pieces)
            write_page(case, pieces, options.date)
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
