"""Records of made-up runs of any size; nothing in them is measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from raysearch.records import (
    BitAssignment,
    CostModel,
    EpochMetrics,
    ExportedFile,
    ExportManifest,
    FineTuneResult,
    Granularity,
    NetworkNode,
    OptionEffect,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    RunResult,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    Site,
    TargetCheck,
    Trace,
    TrialState,
)
from raysearch.reporting import ReportRecords

BUDGETS = ("avg_bits<=4", "size<=13%")


def make_setup(num_layers: int, name: str = "blocks.{}.linear") -> QuantizerSetup:
    points: dict[str, QuantizationPoint] = {}
    groups: dict[str, QuantizerGroup] = {}
    for index in range(num_layers):
        layer = name.replace("{}", str(index))
        source = QuantizationPoint(f"{layer}.input", "activation", (Site(layer, "input"),), (16,))
        site = Site(layer, "parameter", "weight")
        weight = QuantizationPoint(
            f"{layer}.weight",
            "weight",
            (site,),
            (8 + index % 5, 16),
            Granularity(0),
            16 * (8 + index % 5),
            source.id,
        )
        points |= {source.id: source, weight.id: weight}
        first_or_last = index in (0, num_layers - 1)
        groups[source.id] = QuantizerGroup(source.id, (source.id,), (8,) if first_or_last else (4, 8))
        groups[weight.id] = QuantizerGroup(weight.id, (weight.id,), (8,) if first_or_last else (2, 3, 4, 8))
    return QuantizerSetup(points, groups, network=make_network(num_layers, name))


def make_network(num_layers: int, name: str) -> tuple[NetworkNode, ...]:
    """A chain of layers whose last one also reads what the first one gives."""
    nodes = [NetworkNode("mask", "input"), NetworkNode("x", "input")]
    for index in range(num_layers):
        layer = name.replace("{}", str(index))
        if index == num_layers - 1 and index > 1:
            nodes.append(NetworkNode(layer, "add", (), (2, len(nodes) - 1)))
        nodes.append(NetworkNode(layer, "layer", (f"{layer}.weight",), (len(nodes) - 1,)))
    return tuple(nodes)


def make_sensitivity(setup: QuantizerSetup, negative: bool = False) -> SensitivityTable:
    random = np.random.default_rng(0)
    traces = {}
    for point in setup.of_kind("weight"):
        value = float(np.exp(random.normal(0, 2)))
        if negative and random.random() < 0.3:
            value = -value / 10
        traces[point] = Trace(
            point, value, abs(value) * 0.2, abs(value) * 0.1, abs(value) * 0.17, 32, 256, "ggn", True
        )
    effects = {}
    for group, bits in setup.options():
        response = float(np.exp(random.normal(0, 1)) * 4.0 ** (2 - bits.num_bits))
        kind = setup.group_kind(group)
        effects[group, bits] = OptionEffect(group, bits, kind, response, response, response, response * 1.1)
    factor = random.normal(size=(len(effects), 3))
    return SensitivityTable(traces, effects, factor @ factor.T, "feedc0de")


def make_search(setup: QuantizerSetup, num_trials: int = 40) -> SearchResult:
    random = np.random.default_rng(1)
    model = CostModel(setup)
    trials = []
    for number in range(num_trials):
        bits = {g.id: int(random.choice(g.bit_widths)) for g in setup.groups.values()}
        assignment = BitAssignment(bits)
        costs = model.costs(assignment)
        failed = number == 7
        value = float("nan") if failed else float(3 / costs["avg_bits"] ** 2 * np.exp(random.normal(0, 0.3)))
        source = "exact optimum" if number < 2 else "uniform 4" if number < 4 else "thompson"
        excess = dict.fromkeys(BUDGETS, -0.01 * (number + 1) / num_trials)
        state = TrialState.FAIL if failed else TrialState.COMPLETE
        trials.append(SearchTrial(number, assignment, costs, excess, value, 0.9, source, state))
    done = sorted((t for t in trials if t.state == "COMPLETE"), key=lambda t: t.costs["size"])
    front = [t for i, t in enumerate(done) if all(t.value < other.value for other in done[:i])]
    best = min(done, key=lambda t: t.value)
    reasons: dict[str, float] = {}
    for trial in done:
        reasons[trial.source] = min(trial.value, reasons.get(trial.source, np.inf))
    return SearchResult(best, tuple(trials), tuple(front), 0.01234, reasons)


def make_fine_tune() -> FineTuneResult:
    history = tuple(
        EpochMetrics(epoch, {"loss": 1 / (epoch + 3), "accuracy": 0.9 + 0.01 * min(epoch, 4)})
        for epoch in range(-1, 8)
    )
    return FineTuneResult("best.safetensors", 4, "loss", history)


def make_manifest(size: float = 1234.0) -> ExportManifest:
    files = (
        ExportedFile("model.safetensors", "ab" * 32, 123_456),
        ExportedFile("config.json", "01" * 32, 789),
        ExportedFile("onnx/model.onnx", "f9" * 32, 234_567),
    )
    checks = (
        TargetCheck("packed", "torch 2.13.0", 0.0, 0.0, 1.0, 256),
        TargetCheck("onnx", "onnxruntime 1.30.1", 3.1e-6, 2.0e-7, 0.998, 256),
    )
    notes = ("3-bit codes are stored in a 4-bit container in ONNX.",)
    return ExportManifest(files, checks, int(size), {"size": size}, notes)


def make_result(setup: QuantizerSetup, search: SearchResult, **changes: object) -> RunResult:
    values: dict[str, object] = {
        "run_id": "20261101-101500-ab12",
        "storage": "/data/runs/20261101-101500-ab12",
        "budget": BUDGETS,
        "assignment": search.best.assignment.bits,
        "costs": CostModel(setup).costs(search.best.assignment),
        "float_metrics": {"accuracy": 0.9512, "loss": 0.1534},
        "quantized_metrics": {"accuracy": 0.9498, "loss": 0.1601},
        "model_dir": "/data/runs/20261101-101500-ab12/model",
        "report": "",
        "seconds": {"calibration": 3.2, "sensitivity": 245.0, "search": 31.0, "training": 9000.0},
        "notes": ("QAT ran on one worker.",),
    }
    return RunResult(**{**values, **changes})  # type: ignore[arg-type]


def make_report_records(
    num_layers: int = 4, name: str = "blocks.{}.linear", num_trials: int = 12, **changes: Any
) -> ReportRecords:
    setup = make_setup(num_layers, name)
    search = make_search(setup, num_trials)
    result = make_result(setup, search)
    started = {
        "config": {"task": "my_task.py:make_task", "budget": list(BUDGETS), "seed": 3},
        "versions": {"torch": "2.13.0"},
        "fingerprints": {"model": "ab" * 16},
    }
    values: dict[str, Any] = {
        "run_id": result.run_id,
        "setup": setup,
        "result": result,
        "search": search,
        "sensitivity": make_sensitivity(setup),
        "fine_tune": make_fine_tune(),
        "manifest": make_manifest(),
        "metrics": {"float": result.float_metrics, "quantized": result.quantized_metrics},
        "started": started,
    }
    return ReportRecords(**{**values, **changes})
