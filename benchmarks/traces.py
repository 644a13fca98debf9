"""Gradients that a 5 % standard error on every layer's Hessian trace costs, by estimator.

Ours against the joint scheme of NNCF, PyHessian and curvlinops (`pip install --no-deps pyhessian
curvlinops-for-pytorch` and what the latter imports; a package that is not there is left out by name), in one
process, one thread, CPU time. Running the joint scheme to 5 % would take hours, so the number of draws is
extrapolated: variance of a draw over (5 % of the trace)², from the draws that were made. Writes
benchmarks/results/traces.md.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.quantizer import processor
from raysearch.config.sensitivity import TraceLoss
from raysearch.evaluation import DataSet, Divergence, Replica, ShardView, default_forward
from raysearch.sensitivity.estimators import TraceRequest
from raysearch.sensitivity.estimators.hutchinson import Hutchinson
from raysearch.sensitivity.estimators.joint import JointHutchinson
from raysearch.sensitivity.estimators.products import rademacher, weight_blocks
from raysearch.sensitivity.estimators.protocol import TraceEstimator
from raysearch.sensitivity.estimators.xnystrace import XNysTrace
from raysearch.sensitivity.estimators.xtrace import XTrace

RESULT = Path(__file__).parent / "results" / "traces.md"
TARGET, FLOOR, BATCH = 0.05, 1e-3, 32
HEADER = (
    "| estimator | noise of a draw, median / worst | draws, worst layer | gradients a draw | "
    "gradients in all | fewer than joint |"
)


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.short = nn.Conv2d(inputs, width, 1, stride, bias=False) if stride > 1 else nn.Identity()
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        """Of a batch of maps."""
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(y + self.short(x))


class ResNet8(nn.Module):
    """ResNet-8 of three stages on 8x8 digits, ten weights."""

    def __init__(self, activation: Callable[[Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            Block(width, width, 1, activation),
            Block(width, 2 * width, 2, activation),
            Block(2 * width, 4 * width, 2, activation),
        )
        self.head, self.act = nn.Linear(4 * width, 10), activation

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        out: Tensor = self.head(self.stages(self.act(self.norm(self.stem(x)))).mean((2, 3)))
        return out


def trained(activation: Callable[[Tensor], Tensor]) -> Replica:
    """The net after six epochs on scikit-learn's digits, with one shard of 32 of them."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target)
    model = ResNet8(activation)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, nesterov=True, weight_decay=5e-4)
    for _ in range(6):
        for part in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    shard = (images[1200 : 1200 + BATCH], labels[1200 : 1200 + BATCH])
    return Replica(
        model.eval(), default_forward, {DataSet.CALIBRATION: [shard]}, Divergence("kl"),
        lambda outputs, batch: F.cross_entropy(outputs, batch[1]),
    )  # fmt: skip


class Case:
    """One net: its weights, the CPU time of a gradient, and the traces that errors are relative to."""

    def __init__(self, replica: Replica, accurate: int) -> None:
        self.replica = replica
        self.names = tuple(n for n, p in replica.model.named_parameters() if p.ndim > 1)
        self.batch = replica.shard(DataSet.CALIBRATION, 0)
        self.reference = replica.float_outputs(DataSet.CALIBRATION, 0)
        self.gradient = self.seconds(self._one_gradient, 9)
        self.values, self.times, self.truth = {}, {}, {}
        methods: dict[TraceLoss, TraceEstimator] = {"loss": XTrace(16), "divergence": XNysTrace(16)}
        for loss, method in methods.items():
            self.times[loss], values = self.timed(lambda m=method, o=loss: self.draw(m, o, accurate))
            self.values[loss] = values
            totals = {n: float(v.mean()) for n, v in values.items()}
            floor = FLOOR * max(map(abs, totals.values()))
            self.truth[loss] = {n: max(abs(t), floor) for n, t in totals.items()}

    def draw(self, method: TraceEstimator, loss: TraceLoss, count: int) -> dict[str, np.ndarray]:
        """Weight → draws."""
        view = ShardView(self.replica, DataSet.CALIBRATION, 0)
        draws = method.draw(view, TraceRequest(self.names, loss, 0, range(count)))
        return {name: values[:, 0] for name, values in draws.items()}

    def timed(self, function: Callable[[], Any]) -> tuple[float, Any]:
        """CPU seconds of a call, and what it gives."""
        start = time.process_time()
        result = function()
        return time.process_time() - start, result

    def seconds(self, function: Callable[[], object], repeats: int) -> float:
        """Median CPU seconds of a call, after one to warm up."""
        function()
        return statistics.median(self.timed(function)[0] for _ in range(repeats))

    def block_times(self, repeats: int) -> dict[str, float]:
        """CPU time of one Hessian-vector product of each block on the retained graph, with its probe."""
        request = TraceRequest(self.names, "loss", 0, range(1))
        with weight_blocks(self.replica, request, self.batch, self.reference) as blocks:
            return {
                name: self.seconds(lambda b=block: b.product(rademacher(b.weight, 0)), repeats)
                for name, block in blocks.items()
            }

    def _one_gradient(self) -> None:
        self.replica.loss(self.replica.model(self.batch[0]), self.batch).backward()
        self.replica.model.zero_grad(set_to_none=True)


def row(case: Case, name: str, loss: TraceLoss, draws: dict[str, np.ndarray], costs: dict[str, float],
        together: bool, least: int = 1) -> tuple[str, float, str]:  # fmt: skip
    """Gradients for 5 % on every layer; `costs` are CPU seconds of a draw, per layer unless `together`."""
    noise = {n: float(draws[n].std(ddof=1)) / case.truth[loss][n] for n in case.names}
    needed = {n: max(least, math.ceil((v / TARGET) ** 2)) for n, v in noise.items()}
    worst = max(needed.values())
    seconds = worst * sum(costs.values()) if together else sum(needed[n] * costs[n] for n in case.names)
    per_draw = sum(costs.values()) / case.gradient
    gradients = seconds / case.gradient
    text = f"{statistics.median(noise.values()):.3f} / {max(noise.values()):.3f} | {worst:,} | {per_draw:.1f}"
    return name, gradients, text


def pyhessian_row(case: Case, count: int) -> tuple[str, float, str]:
    """PyHessian's own graph, probes and products, read block by block."""
    hessian = importlib.import_module("pyhessian").hessian
    product = importlib.import_module("pyhessian.utils").hessian_vector_product
    own = hessian(case.replica.model, F.cross_entropy, data=case.batch, cuda=False)
    index = {id(p): n for n, p in case.replica.model.named_parameters()}
    samples: dict[str, list[float]] = {n: [] for n in case.names}
    torch.manual_seed(0)

    def probe() -> None:
        v = [torch.randint_like(p, high=2) * 2 - 1 for p in own.params]
        for p, left, right in zip(own.params, v, product(own.gradsH, own.params, v), strict=True):
            if index[id(p)] in samples:
                samples[index[id(p)]].append(float((left * right).sum()))

    seconds, _ = case.timed(lambda: [probe() for _ in range(count)])
    case.replica.model.zero_grad(set_to_none=True)
    draws = {n: np.array(v) for n, v in samples.items()}
    return row(case, "PyHessian, read per block", "loss", draws, {"": seconds / count}, True)


def curvlinops_row(case: Case, draws: dict[str, np.ndarray]) -> tuple[str, float, str]:
    """The Hessian of curvlinops for each block alone; a probe varies as in block-wise Hutchinson."""
    operator = importlib.import_module("curvlinops").HessianLinearOperator
    costs = {}
    for name in case.names:
        weight = case.replica.model.get_parameter(name)
        matrix = operator(
            case.replica.model, nn.CrossEntropyLoss(), [weight], [case.batch], check_deterministic=False
        )
        costs[name] = case.seconds(lambda m=matrix, w=weight: m @ rademacher(w, 0).reshape(-1), 3)
    return row(case, "curvlinops, one operator a block", "loss", draws, costs, False)


def compare(replica: Replica, options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Table rows of one net, and the packages that were left out."""
    case = Case(replica, options.accurate)
    seconds, joint = case.timed(lambda: case.draw(JointHutchinson(), "loss", options.joint))
    rows = [row(case, "joint, NNCF's scheme", "loss", joint, {"": seconds / options.joint}, True)]
    block = case.draw(Hutchinson(), "loss", options.block)
    missing = []
    for package, make in (
        ("pyhessian", lambda: pyhessian_row(case, options.joint)),
        ("curvlinops", lambda: curvlinops_row(case, block)),
    ):
        try:
            rows.append(make())
        except (ImportError, NotImplementedError) as error:
            missing.append(f"{package} ({str(error).splitlines()[0]})")
    costs = case.block_times(5)
    rows.append(row(case, "**`hutchinson`**", "loss", block, costs, False))
    sketched: dict[str, TraceLoss] = {"xtrace": "loss", "xnystrace": "divergence"}
    for name, loss in sketched.items():
        share = {n: 16 * costs[n] / sum(costs.values()) for n in case.names}
        each = case.times[loss] / options.accurate / 16
        rows.append(
            row(case, f"**`{name}`**, {loss}", loss, case.values[loss],
                {n: each * s for n, s in share.items()}, False, least=2)
        )  # fmt: skip
    base = rows[0][1]
    return [f"| {n} | {text} | {g:,.0f} | {base / g:.1f}x |" for n, g, text in rows], missing


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--joint", type=int, default=64, help="draws of the joint schemes")
    parser.add_argument("--block", type=int, default=32, help="draws of block-wise Hutchinson")
    parser.add_argument("--accurate", type=int, default=4, help="draws of XTrace and XNysTrace")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    lines = [
        "# Hessian traces: gradients for a standard error of 5 % on every layer",
        "",
        f"{options.date}, {processor()}, one thread, torch {torch.__version__}. ResNet-8, width 8,",
        "on 32 digits, ten weights, one shard. A gradient is a forward and backward on the batch, in CPU",
        "time of the same process. Draws are extrapolated from the variance of those that were made:",
        f"{options.joint} joint ones and {options.block} block-wise ones (±20 %), {options.accurate} of",
        "XTrace and XNysTrace (±70 %, but 2 are the least that tells an error). Every layer ends by itself,",
        "in the joint schemes with the worst one. Made by `benchmarks/traces.py`.",
    ]
    left_out: list[str] = []
    for name, activation in (("ReLU", F.relu), ("GELU", F.gelu)):
        rows, missing = compare(trained(activation), options)
        lines += ["", f"## {name}", "", HEADER, "|---|---|---|---|---|---|", *rows]
        left_out += [f"{name}: {text}" for text in missing]
    if left_out:
        lines += ["", f"Left out: {'; '.join(left_out)}."]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
