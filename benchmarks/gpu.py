"""Does raysearch give on a GPU what it gives on the CPU, the same each time, and how fast is it there?

Each check stands for itself, so one that breaks hides no other. With --page the rows become a page such as
benchmarks/results/gpu.md. With --device cpu all of it runs in small on a CPU, against itself.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import raysearch
from benchmarks.problems.check_rows import Rows
from benchmarks.problems.gpu_cases import Case, large_cases, loss_of, small_cases
from benchmarks.responses import processor
from raysearch.artifacts import Storage
from raysearch.cluster.pool import LocalPool, Pool
from raysearch.cluster.ray_pool import RayPool
from raysearch.cluster.session import ray_session
from raysearch.config import ClusterConfig, SensitivityConfig
from raysearch.config.rounding import RoundingConfig
from raysearch.determinism import reproducible
from raysearch.evaluation import DataSet
from raysearch.evaluation.half_precision import in_float32
from raysearch.quantizer import make_quantizer
from raysearch.records import QuantizationPoint, RangeTable
from raysearch.records.granularity import Granularity
from raysearch.records.rounding import RoundingTable
from raysearch.rounding import round_weights
from raysearch.sensitivity.responses import measure_responses
from raysearch.sensitivity.traces import measure_traces
from raysearch.training import fine_tune
from raysearch.training.objective import Objective
from raysearch.training.optimizer import Optimizer

PAGE = """\
# On a GPU

{date}, {device}, torch {torch}, Python {python}. Made by `python -m benchmarks.gpu --page FILE`.

Float32 without TF32 unless a row says otherwise. Rows with a limit are checks, the others are measured only.

| check | value | limit | |
|---|---|---|---|
{rows}
"""
RUN_SETTINGS = {
    "calibration": {"num_samples": 16, "shard_size": 8},
    "search": {"num_trials": 12, "shard_size": 8},
    "training": {"epochs": 2},
    "export": {"targets": ["packed"]},
}


Check = Callable[[Rows, str, Case], None]


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """‖other − one‖ / ‖one‖."""
    return float(np.linalg.norm(other - one) / np.linalg.norm(one))


def traces_of(case: Case, pool: Pool, estimator: Any, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Traces of all weights and their errors over probes."""
    settings = SensitivityConfig(estimator=estimator, max_draws=draws)
    traces = measure_traces(case.setup, pool, len(case.batches), settings).values()
    values = np.array([trace.value for trace in traces])
    return values, np.array([trace.probe_stderr for trace in traces])


def rounded(case: Case, ranges: RangeTable, pool: Pool) -> RoundingTable:
    return round_weights(case.setup, ranges, pool, len(case.batches), RoundingConfig())


def check_scales(rows: Rows, device: str, case: Case) -> None:
    """Of clips that tie either may win, so 1 % of the scales may jump."""
    cpu, gpu = (case.ranges(case.pool(place)) for place in ("cpu", device))
    each = np.concatenate([np.abs(gpu[key].scale / cpu[key].scale - 1) for key in cpu.ranges])
    rows.at_most(f"{case.name}: scales, 99th percentile of the difference", np.quantile(each, 0.99), 1e-3)
    rows.at_most(f"{case.name}: scales, greatest relative difference", each.max(), 0.2)


def check_traces(rows: Rows, device: str, case: Case) -> None:
    """Exact ones agree by rounding; those of ggn too, whose eigenvectors are LAPACK's for both."""
    pools = [case.pool(place) for place in ("cpu", device)]
    estimators = ["hutchinson", "ggn", "fisher"]
    if "100" not in case.name:
        estimators.append("ggn-exact")
    for estimator in estimators:
        (one, error), (other, _) = (traces_of(case, pool, estimator, 8) for pool in pools)
        rows.at_most(f"{case.name}: traces by {estimator}, relative", relative(one, other), 1e-2)
        apart = np.abs(other - one) / (error + 1e-3 * np.abs(one))
        rows.tell(f"{case.name}: traces by {estimator}, difference in standard errors", float(apart.max()))


def check_responses(rows: Rows, device: str, case: Case) -> None:
    pools = [case.pool(place) for place in ("cpu", device)]
    ranges = case.ranges(pools[0])
    one, other = (
        measure_responses(case.setup, ranges, pool, len(case.batches), SensitivityConfig()) for pool in pools
    )
    assert isinstance(one.gram, np.ndarray)
    assert isinstance(other.gram, np.ndarray)
    rows.at_most(f"{case.name}: Gram matrix of responses, relative", relative(one.gram, other.gram), 1e-2)
    rows.at_most(f"{case.name}: divergences, relative", relative(one.divergence, other.divergence), 1e-2)


def check_rounding(rows: Rows, device: str, case: Case) -> None:
    ranges = case.ranges(case.pool("cpu"))
    cpu, gpu, again = (rounded(case, ranges, case.pool(place)) for place in ("cpu", device, device))
    num_codes = sum(cpu[key].codes.size for key in cpu)
    num_equal = sum(int((cpu[key].codes == gpu[key].codes).sum()) for key in cpu)
    rows.at_least(f"{case.name}: share of equal codes by GPTQ", num_equal / num_codes, 0.999)
    errors = [np.array([table[key].error for key in cpu]) for table in (cpu, gpu)]
    apart = np.abs(errors[1] - errors[0]) / np.maximum(errors[0], 1e-12)
    rows.at_most(f"{case.name}: error by second moments, greatest relative difference", apart.max(), 1e-3)
    rows.true(f"{case.name}: rounded twice, the same bits", gpu.digest() == again.digest())


def everything(case: Case, pool: Pool) -> dict[str, bytes]:
    """All that is measured, as bytes."""
    ranges = case.ranges(pool)
    responses = measure_responses(
        case.setup, ranges, pool, len(case.batches), SensitivityConfig(option_chunk=4)
    )
    assert isinstance(responses.gram, np.ndarray)
    results = {"ranges": ranges.to_bytes(), "responses": responses.gram.tobytes()}
    results["divergences"] = responses.divergence.tobytes()
    for estimator in ("ggn", "hutchinson"):
        results[estimator] = traces_of(case, pool, estimator, 8)[0].tobytes()
    results["rounding"] = rounded(case, ranges, pool).to_bytes()
    return results


def check_repeat(rows: Rows, device: str, case: Case) -> None:
    one, other = (everything(case, case.pool(device)) for _ in range(2))
    for name, data in one.items():
        rows.true(f"{case.name}: {name} twice, the same bits", data == other[name])


def check_training(rows: Rows, device: str, case: Case) -> None:
    ranges = case.ranges(case.pool("cpu"))
    saved: list[bytes] = []
    for _ in range(2):
        recipe = case.recipe(ranges, device)
        fine_tune(recipe, lambda name, data: saved.append(data), on_ray=False)
    rows.true(f"{case.name}: trained twice, the same bits", saved[0] == saved[1])


def check_run(rows: Rows, device: str, case: Case) -> None:
    """The whole walk, and that its device is kept."""
    with tempfile.TemporaryDirectory() as storage:
        config = {**RUN_SETTINGS, "cluster": {"device": device}}
        start = time.perf_counter()
        result = raysearch.run(case.task(), "avg_bits<=4", storage, config=config, run_id="gpu", workers=0)
        rows.tell(f"{case.name}: a whole run in this process, s", time.perf_counter() - start)
        record = json.loads((Path(storage) / "gpu" / "run.json").read_text())
        rows.true(f"{case.name}: the run's device is kept", record["config"]["cluster"]["device"] == device)
        with_loaded = raysearch.load_model(Path(result.model_dir))(case.example_inputs[0])
        rows.true(f"{case.name}: the exported model runs", bool(torch.isfinite(with_loaded).all()))


def check_actors(rows: Rows, device: str, case: Case) -> None:
    answers = []
    with ray_session("local", 2):
        for count in (1, 2):
            start = time.perf_counter()
            share = 0.5 if device == "cuda" else None
            settings = ClusterConfig(workers=count, device=device, gpus_per_worker=share)
            pool = RayPool(case.replica(device), settings)
            answers.append(everything(case, pool))
            pool.close()
            rows.tell(f"{case.name}: all of it with {count} actors, s", time.perf_counter() - start)
    for name, data in answers[0].items():
        rows.true(f"{case.name}: {name} by 1 and 2 actors, the same bits", data == answers[1][name])


def check_ray_train(rows: Rows, device: str, case: Case) -> None:
    ranges = case.ranges(case.pool("cpu"))
    saved: dict[str, bytes] = {}
    start = time.perf_counter()
    with ray_session("local", 1), tempfile.TemporaryDirectory() as folder:
        recipe = case.recipe(ranges, device)
        result = fine_tune(recipe, saved.__setitem__, on_ray=True, storage=Storage(folder))
    backend = "nccl" if device == "cuda" else "gloo"
    rows.tell(f"{case.name}: Ray Train ({backend}), 2 epochs, s", time.perf_counter() - start)
    is_whole = len(result.history) == 3 and bool(saved)
    rows.true(f"{case.name}: Ray Train leaves 3 records and a checkpoint", is_whole)


def seconds(work: Callable[[], object]) -> float:
    """Median time of a call after two warm-ups; of a slow one the second time."""
    times: list[float] = []

    def is_enough() -> bool:
        if times and times[0] > 5:
            return len(times) >= 2
        return len(times) >= 5 and (sum(times) > 0.5 or len(times) >= 60)

    while not is_enough():
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:] or times[1:])


def _there_and_back(function: Callable[[Tensor], Tensor], value: Tensor, gradient: Tensor) -> None:
    function(value).backward(gradient)


def _scaled(value: Tensor) -> Tensor:
    return value * 1.5


def check_quantizer_time(rows: Rows, device: str, _: Case) -> None:
    n, channels = (4, 16) if device == "cpu" else (128, 2048)
    # An activation's point is of one sample.
    shapes = {"activation": (n, 64, 7 * n // 8, 7 * n // 8), "weight": (channels, channels, 3, 3)}
    for kind, shape in shapes.items():
        value = torch.randn(shape, device=device, requires_grad=True)
        gradient = torch.randn(shape, device=device)
        point = QuantizationPoint("q", "activation", (), shape[1:])
        if kind == "weight":
            point = QuantizationPoint("q", "weight", (), shape, Granularity.per_channel(0))
        quantizer = make_quantizer(point).to(device)
        fake = seconds(partial(_there_and_back, quantizer, value, gradient))
        plain = seconds(partial(_there_and_back, _scaled, value, gradient))
        size = value.nbytes / 1e6
        rows.tell(f"fake-quantize {kind}, {size:.0f} MB, forward and backward, ms", 1e3 * fake)
        rows.tell(f"fake-quantize {kind}, over one multiplication", fake / plain)


def check_measuring_time(rows: Rows, device: str, case: Case) -> None:
    """Units of the fleet's work, in forwards and gradients of the same shard."""
    shard_size = 32 if case.name == "images" else 2
    whole = case.batches
    case.batches = [tuple(tensor[:shard_size] for tensor in whole[0])]
    try:
        replica = case.replica(device)
        replica.model, replica.shards = in_float32(replica.model, replica.shards)
        pool = LocalPool(replica.place())
        batch = replica.shard(DataSet.CALIBRATION, 0)
        start = time.perf_counter()
        ranges = case.ranges(pool)
        rows.tell(f"{case.name}: calibrate by mse on {shard_size} samples, s", time.perf_counter() - start)
        with reproducible():
            gradient = seconds(lambda: loss_of(replica.model(batch[0]), batch).backward())
            with torch.no_grad():
                forward = seconds(lambda: replica.model(batch[0]))
        replica.model.requires_grad_(False)
        traces = seconds(lambda: traces_of(case, pool, "ggn", 2))
        responses = seconds(lambda: measure_responses(case.setup, ranges, pool, 1, SensitivityConfig()))
        start = time.perf_counter()
        rounded(case, ranges, pool)
        rounding = time.perf_counter() - start
    finally:
        case.batches = whole
    rows.tell(f"{case.name}: one gradient of the shard, ms", 1e3 * gradient)
    rows.tell(f"{case.name}: ggn, 2 draws of all weights, in gradients", traces / gradient)
    rows.tell(f"{case.name}: one forward of the shard, ms", 1e3 * forward)
    num_options = len(case.setup.options())
    rows.tell(f"{case.name}: responses, in forwards an option", responses / forward / num_options)
    rows.tell(f"{case.name}: rounding of all weights at one width, s", rounding)


def take_steps(objective: Objective, optimizer: Any, batch: tuple[Tensor, Tensor]) -> None:
    """Two training steps."""
    objective.train()
    for _ in range(2):
        optimizer.zero_grad()
        objective(batch).backward()
        optimizer.step()


def check_training_time(rows: Rows, device: str, case: Case) -> None:
    """A step of quantized training over one of float training, with peak memory, in two types."""
    for dtype in (torch.float32, torch.bfloat16):
        name = f"{case.name}, {str(dtype).removeprefix('torch.')}"
        ranges = case.ranges(LocalPool(case.replica(device).place()))
        recipe = case.recipe(ranges, device)
        recipe.model.to(dtype)
        inputs, labels = (tensor.to(device) for tensor in case.batches[0])
        batch = (inputs.to(dtype) if inputs.is_floating_point() else inputs, labels)
        used = {}
        for kind in ("float", "quantized"):
            teacher = case.replica(device).place().model.to(dtype)
            if kind == "quantized":
                controller = recipe.build()
                model = controller.model.to(device)
                optimizer: Any = Optimizer(controller, recipe.settings)
            else:
                model = teacher.requires_grad_()
                optimizer = torch.optim.AdamW(model.parameters())
            objective = Objective(recipe, model, teacher)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            steps = partial(take_steps, objective, optimizer, batch)
            used[kind] = seconds(steps)
            rows.tell(f"{name}: {kind} training step, batch {len(labels)}, ms", 1e3 * used[kind] / 2)
            if device == "cuda":
                peak = torch.cuda.max_memory_allocated() / 2**30
                rows.tell(f"{name}: {kind} training step, peak GiB", peak)
        rows.tell(f"{name}: quantized over float step", used["quantized"] / used["float"])


CHECKS: dict[str, tuple[Check, int]] = {
    "scales": (check_scales, 3),
    "traces": (check_traces, 3),
    "responses": (check_responses, 3),
    "rounding": (check_rounding, 3),
    "repeat": (check_repeat, 3),
    "training": (check_training, 2),
    "run": (check_run, 1),
    "actors": (check_actors, 2),
    "ray_train": (check_ray_train, 1),
}
"""Name → check, and on how many of the small cases."""

TIMES: dict[str, tuple[Check, int]] = {
    "quantizer_time": (check_quantizer_time, 1),
    "measuring_time": (check_measuring_time, 2),
    "training_time": (check_training_time, 2),
}
"""Name → measurement, and on how many of the large cases."""


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else processor()


def page_of(rows: Rows, device: str, date: str) -> str:
    lines = [f"| {' | '.join(row.cells)} |" for row in rows]
    python = sys.version.split()[0]
    return PAGE.format(
        date=date, device=device, torch=torch.__version__, python=python, rows="\n".join(lines)
    )


def write(rows: Rows, device: str, options: argparse.Namespace) -> None:
    """Write what there is; called after every check, so that an end that comes early loses little."""
    if options.json:
        entries = [asdict(row) for row in rows]
        document = {"device": device, "torch": torch.__version__, "date": options.date, "rows": entries}
        options.json.write_text(json.dumps(document, indent=1))
    if options.page:
        options.page.write_text(page_of(rows, device, options.date))


def main() -> None:
    """Check, measure and write."""
    names = (*CHECKS, *TIMES)
    parser = argparse.ArgumentParser(description=__doc__)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--only", default=",".join(names), help=f"by commas, some of {', '.join(names)}")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--page", type=Path, help="file for the rows as a page")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - set(names)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")
    rows, device = Rows(), device_name(options.device)
    print(f"{device}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    for name in options.only.split(","):
        check, count = {**CHECKS, **TIMES}[name]
        cases = small_cases() if name in CHECKS else large_cases(options.device)
        start = time.perf_counter()
        for case in cases[:count]:
            try:
                check(rows, options.device, case)
            except Exception as error:
                traceback.print_exc()
                rows.broken(f"{name}, {case.name}", error)
            write(rows, device, options)
        rows.tell(f"[{name}] took, s", time.perf_counter() - start)
    write(rows, device, options)
    sys.exit(any(row.ok is False for row in rows))


if __name__ == "__main__":
    main()
