"""Gauss-Newton traces: cost in gradients, probe error on the worst layer, peak memory.

Compares the pair of eigen-draws ("ggn"), two exact directions and a draw ("ggn-top") and the exact trace with
the joint Hutchinson scheme of NNCF at its own defaults: a Rademacher probe over all layers, the graph built
anew each time, up to 200 iterations, stopped when no running mean moves by more than 1 %. CPU time, one
thread, one process. Writes benchmarks/results/gauss_newton.md.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.quantizer import processor
from raysearch.evaluation import DataSet, Divergence, Replica, ShardView, default_forward
from raysearch.evaluation.forward import frozen_eval
from raysearch.sensitivity.estimators import TraceRequest
from raysearch.sensitivity.estimators.gauss_newton import ExactGaussNewton, GaussNewton
from raysearch.sensitivity.estimators.sample_gradients import CHUNK_SIZE

RESULT = Path(__file__).parent / "results" / "gauss_newton.md"
CLASSES, SHARD, SAMPLES = 10, 32, 256
REPEATED = 4
JOINT_SEEDS = (3, 4, 5)


class Residual(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Residual block."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.body = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Inverted residual block."""
        return x + self.body(x) if self.is_residual else self.body(x)


class Vision(nn.Module):
    """A small ViT: patches of 4×4, pre-norm blocks with fused attention, mean of the tokens."""

    def __init__(self, width: int = 96, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def resnet(depth: int, widths: tuple[int, ...], stride: int = 1) -> nn.Module:
    stem = nn.Conv2d(3, widths[0], 3, stride, 1, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(widths[0]), nn.ReLU()]
    inputs = widths[0]
    for stage, width in enumerate(widths):
        for block in range(depth):
            layers.append(Residual(inputs, width, 2 if stage and not block else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def mobilenet() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    inputs = 16
    for outputs, stride, expansion in ((16, 1, 1), (24, 1, 6), (24, 1, 6), (32, 2, 6), (32, 1, 6), (64, 2, 6),
                                       (64, 1, 6), (96, 1, 6)):  # fmt: skip
        layers.append(Inverted(inputs, outputs, stride, expansion))
        inputs = outputs
    head = [nn.Conv2d(inputs, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6()]
    return nn.Sequential(*layers, *head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, CLASSES))


NETS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-20": lambda: resnet(3, (16, 32, 64)),
    "ResNet-18, width 32": lambda: resnet(2, (32, 64, 128, 256), stride=2),
    "MobileNetV2-like": mobilenet,
    "ViT": Vision,
}


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten smooth random prototypes, shifted, mixed and noisy, with their labels."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.randn(CLASSES, 3, 8, 8, generator=generator)
    prototypes = F.interpolate(coarse, size=32, mode="bilinear")
    generator.manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    others = torch.randint(0, CLASSES, (count,), generator=generator)
    share = torch.rand(count, 1, 1, 1, generator=generator) * 0.55
    mixed = (1 - share) * prototypes[labels] + share * prototypes[others]
    return mixed + 0.6 * torch.randn(count, 3, 32, 32, generator=generator), labels


def trained(name: str, steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = NETS[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        x, y = images(32, 100 + step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def make_replica(model: nn.Module) -> Replica:
    x, y = images(SAMPLES, 1)
    shards: list[Any] = list(zip(x.split(SHARD), y.split(SHARD), strict=True))
    return Replica(model, default_forward, {DataSet.CALIBRATION: shards}, Divergence("kl"))


def weights_of(model: nn.Module) -> tuple[str, ...]:
    """Weights of convolutions, linear layers and attention projections."""
    names = {id(p): n for n, p in model.named_parameters() if n.endswith("weight") and p.ndim > 1}
    return tuple(names.values())


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def gradient(
    replica: Replica, shard: int, names: tuple[str, ...], data: DataSet = DataSet.CALIBRATION
) -> None:
    """One gradient of the weights: forward and backward of a shard."""
    x, y = replica.shards[data][shard]
    weights = [replica.model.get_parameter(name) for name in names]
    torch.autograd.grad(F.cross_entropy(replica.model(x), y), weights)


def joint_hutchinson(
    replica: Replica, names: tuple[str, ...], limit: int, seed: int
) -> tuple[int, np.ndarray]:
    """NNCF's scheme on the first shard: iterations, and the mean of vᵀHv of each layer.

    The Hessian is that of the divergence, so that both estimate the same numbers.
    """
    x, reference = replica.shards[DataSet.CALIBRATION][0][0], replica.float_outputs(DataSet.CALIBRATION, 0)
    weights = [replica.model.get_parameter(name) for name in names]
    sizes = np.array([weight.numel() for weight in weights])
    generator = torch.Generator().manual_seed(seed)
    totals, before = np.zeros(len(names)), 0.0
    iteration = 0
    with sdpa_kernel(SDPBackend.MATH):
        for iteration in range(1, limit + 1):
            value = replica.divergence.per_sample(replica.model(x), reference).mean()
            slopes = torch.autograd.grad(value, weights, create_graph=True)
            probes = [torch.randint(0, 2, w.shape, generator=generator) * 2.0 - 1 for w in weights]
            products = torch.autograd.grad(slopes, weights, probes)
            totals += [float((p * v).sum()) for p, v in zip(products, probes, strict=True)]
            mean = float((totals / sizes).sum()) / iteration
            if abs(mean - before) / (abs(before) + 1e-6) < 0.01:
                break
            before = mean
    return iteration, totals / iteration


def traces(
    estimator: Any, replica: Replica, names: tuple[str, ...], shard: int, lo: int = 0, hi: int = 1
) -> np.ndarray:
    """[draws, layers, samples]."""
    view = ShardView(replica, DataSet.CALIBRATION, shard)
    draws = estimator.draw(view, TraceRequest(names, "divergence", 0, range(lo, hi)))
    return np.stack([draws[name] for name in names], 1)


def worst(draws: np.ndarray, truth: np.ndarray) -> float:
    """Largest of the layers' root mean square relative errors, from [draws, layers] and [layers]."""
    return float(np.sqrt(np.mean((draws / truth - 1) ** 2, axis=0)).max())


def measure(name: str, steps: int, num_draws: int, limit: int) -> dict[str, Any]:
    """All figures of one network; gradients are timed in turn with the estimators."""
    replica = make_replica(trained(name, steps))
    names = weights_of(replica.model)
    pair, top, exact = GaussNewton(), GaussNewton("ggn-top"), ExactGaussNewton()
    traces(pair, replica, names, 0)
    times: dict[str, list[float]] = {"gradient": []}
    parts: dict[str, list[np.ndarray]] = {}
    for shard in range(SAMPLES // SHARD):
        for estimator, draws in ((pair, 1), (pair, REPEATED), (top, 1), (exact, 1)):
            times["gradient"].append(cpu_seconds(lambda s=shard: gradient(replica, s, names))[0])
            spent, got = cpu_seconds(lambda e=estimator, s=shard, d=draws: traces(e, replica, names, s, 0, d))
            times.setdefault(f"{estimator.name} {draws}", []).append(spent)
            if draws == 1:
                more = [] if estimator is exact else [traces(estimator, replica, names, shard, 1, num_draws)]
                parts.setdefault(estimator.name, []).append(np.concatenate([got, *more]))
    unit = statistics.median(times["gradient"])
    every = {key: np.concatenate(shards, 2) for key, shards in parts.items()}
    truth, few = every["ggn-exact"].mean(2)[0], every["ggn-exact"][0, :, :SHARD].mean(1)
    row: dict[str, Any] = {"layers": len(names), "unit": unit}
    row |= {key: statistics.median(spent) / unit for key, spent in times.items()}
    row["ggn error"], row["top error"] = (
        worst(every["ggn"].mean(2), truth),
        worst(every["ggn-top"].mean(2), truth),
    )
    grouped = every["ggn"].reshape(-1, REPEATED, *every["ggn"].shape[1:]).mean(1)
    row["repeated error"] = worst(grouped.mean(2), truth)
    row["repeated error, few"] = worst(grouped[:, :, :SHARD].mean(2), few)
    with frozen_eval(replica.model):
        runs = [cpu_seconds(lambda s=s: joint_hutchinson(replica, names, limit, s)) for s in JOINT_SEEDS]
    row["joint"] = statistics.median(spent for spent, _ in runs) / unit
    row["iterations"] = statistics.median(iterations for _, (iterations, _) in runs)
    row["joint error"] = worst(np.stack([joint for _, (_, joint) in runs]), few)
    return row


def peak_bytes(name: str, what: str) -> float:
    """Peak of resident memory above the model and data, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gauss_newton", "--peak", what, "--net", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(name: str, what: str) -> None:
    torch.manual_seed(0)
    replica = make_replica(NETS[name]())
    names = weights_of(replica.model)
    # Kernels and thread pools first, on one sample.
    x, y = replica.shards[DataSet.CALIBRATION][0]
    F.cross_entropy(replica.model(x[:1]), y[:1]).backward()
    replica.model.zero_grad()
    seen = [resident_bytes()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.0005):
            seen.append(resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    if what == "step":
        optimizer = torch.optim.SGD(replica.model.parameters(), lr=0.01, momentum=0.9)
        F.cross_entropy(replica.model(x), y).backward()
        optimizer.step()
    else:
        traces(GaussNewton(), replica, names, 0)
    done.set()
    watcher.join()
    print(max(seen) - seen[0])


def resident_bytes() -> int:
    """Resident memory now; sampled, since not every kernel keeps its peak."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def equal_error(row: dict[str, Any]) -> float:
    """Cost of the joint scheme over that of the draws, once its error, which falls as 1/√n, is theirs."""
    cost, error = row["joint"] / row[f"ggn {REPEATED}"], row["joint error"] / row["repeated error, few"]
    return float(cost * error**2)


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Two tables: what the estimators cost and miss by, and the joint scheme beside them."""
    head = ["network", "weights", "ggn", "its error", f"{REPEATED} draws of ggn", "their error"]
    head += ["ggn-top", "its error", "exact", "peak memory of ggn"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['layers']} | {row['ggn 1']:.1f} | {row['ggn error']:.1%} | "
            f"{row[f'ggn {REPEATED}']:.1f} | {row['repeated error']:.1%} | "
            f"{row['ggn-top 1']:.1f} | {row['top error']:.1%} | "
            f"{row['ggn-exact 1']:.1f} | {row['peak']:.2f}x |"
        )
    head = ["network", "iterations", "gradients", "its error", f"error of {REPEATED} draws of ggn"]
    head += ["cost ÷ theirs", "error ÷ theirs", "cost ÷ theirs at equal error"]
    lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['iterations']:.0f} | {row['joint']:.0f} | {row['joint error']:.0%} | "
            f"{row['repeated error, few']:.1%} | {row['joint'] / row[f'ggn {REPEATED}']:.0f}x | "
            f"{row['joint error'] / row['repeated error, few']:.0f}x | {equal_error(row):,.0f}x |"
        )
    return lines


def report(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """The page."""
    estimators, joint = table(rows)[: len(rows) + 2], table(rows)[len(rows) + 3 :]
    text = f"""# Gauss-Newton traces

{options.date}, {processor()}, one thread, torch {torch.__version__}.
CPU time in units of one gradient (forward and backward of the same {SHARD} samples), median of
{SAMPLES // SHARD} shards, in one process. Images of 32×32 pixels, noisy mixtures of ten prototypes; ten
outputs; {options.steps} steps of training. Errors are relative to the exact trace of the same {SAMPLES}
samples, on the worst layer: root mean square of {options.draws} draws, or of their means by
{REPEATED}. Peak memory is resident memory over that of one step of SGD with momentum on {SHARD} samples,
each in a process of its own; ggn takes {CHUNK_SIZE} samples at a time.
Made by `python -m benchmarks.gauss_newton`.

{{estimators}}

ggn: a pair of draws. ggn-top: two exact directions and a draw. exact: nine columns.

The joint scheme that NNCF uses, written anew, at its defaults: one Rademacher probe for all layers, the
graph built each time, at most {options.limit} iterations, stopped when the sum of average traces moves by
less than 1 %. On {SHARD} samples, in gradients of {SHARD} samples: median cost and root mean square error
of {len(JOINT_SEEDS)} seeds on the worst layer, beside {REPEATED} draws of ggn on the same {SHARD} samples.
One draw of ggn costs about half of {REPEATED}. At equal error is computed, not run: the error of
independent probes falls as 1/√iterations.

{{joint}}
"""
    return text.format(estimators="\n".join(estimators), joint="\n".join(joint))


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=list(NETS))
    parser.add_argument("--peak", choices=("step", "ggn"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print_peak(options.net, options.peak)
        return
    rows = {}
    for name in [options.net] if options.net else NETS:
        rows[name] = measure(name, options.steps, options.draws, options.limit)
        rows[name]["peak"] = peak_bytes(name, "ggn") / peak_bytes(name, "step")
        print(name, rows[name], flush=True)
    page = report(rows, options)
    print(page)
    if not options.net:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(page)


if __name__ == "__main__":
    main()
