"""Block-wise Hutchinson: the average Hessian trace of every weight, with standard errors.

For one weight W_l with n_l elements and H_ll = ∂²(mean loss)/∂W_l², a probe v with independent ±1 entries
gives E[vᵀ H_ll v] = Tr(H_ll). The estimate is t_l = Tr(H_ll)/n_l. Probing one block at a time leaves out
the cross-layer terms that make up most of the variance of a joint probe.

Source: Hutchinson 1990; Dong et al., HAWQ-V2, NeurIPS 2020, section 3.1. Loss: the label-free divergence
(its Hessian at the float weights is the Gauss-Newton matrix, positive semi-definite), or the task's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.errors import DataError, TaskError
from raysearch.evaluation import Replica, batch_size, output_tensor
from raysearch.evaluation.forward import frozen_eval
from raysearch.records import QuantizerSetup, Trace
from raysearch.seeding import derive_seed

TraceLoss = Literal["divergence", "loss"]


def measure_traces(
    setup: QuantizerSetup,
    pool: Pool,
    num_shards: int,
    *,
    num_probes: int,
    probe_chunk: int,
    loss: TraceLoss,
    seed: int,
) -> dict[str, Trace]:
    """Average Hessian traces of all weights over the calibration shards.

    Work per unit (shard × probe chunk of all weights): one forward, one gradient with its graph, and
    probe_chunk · L Hessian-vector products on that graph. Bytes per unit: 8·L·probe_chunk back.
    """
    chunks = [(lo, min(lo + probe_chunk, num_probes)) for lo in range(0, num_probes, probe_chunk)]
    units: dict[Key, tuple[object, ...]] = {
        (shard, lo): (shard, lo, hi) for shard in range(num_shards) for lo, hi in chunks
    }
    got = dict(pool.run(probe_shard, units, (setup, loss, seed)))
    traces = {}
    for name in setup.of_kind("weight"):
        samples = [np.concatenate([got[shard, lo][name] for lo, _ in chunks]) for shard in range(num_shards)]
        sizes = np.array([float(got[shard, 0]["num_samples"]) for shard in range(num_shards)])
        traces[name] = reduce_trace(name, samples, sizes)
    return traces


def reduce_trace(name: str, samples: list[np.ndarray], sizes: np.ndarray) -> Trace:
    """Weighted mean over shards, and its errors.

    With shard means m_s of P probes and weights w_s = size_s/Σ size: value = Σ w_s m_s. The probe error is
    √(Σ w_s² σ_s²/P), σ_s² the variance over probes within a shard. The total error is
    √(Σ w_s² (m_s − value)² / (1 − Σ w_s²)), which holds data and probe noise together; the divisor (1 − 1/S
    for equal shards) makes its square unbiased where Var m_s ∝ 1/size_s. With one shard only the probe
    error is known.
    """
    num_probes = len(samples[0])
    weights = sizes / sizes.sum()
    means = np.array([shard.mean() for shard in samples])
    value = float((weights * means).sum())
    within = np.array([shard.var(ddof=1) if num_probes > 1 else 0.0 for shard in samples])
    probe = float(np.sqrt((weights**2 * within / num_probes).sum()))
    total = probe
    if len(samples) > 1:
        total = float(np.sqrt((weights**2 * (means - value) ** 2).sum() / (1 - (weights**2).sum())))
    return Trace(name, value, max(total, probe), probe, num_probes, int(sizes.sum()))


def probe_shard(
    replica: Replica, setup: QuantizerSetup, loss: TraceLoss, seed: int, shard: int, lo: int, hi: int
) -> UnitValue:
    """Unit: vᵀHv/n of every weight for probes lo … hi−1 on one shard, and the shard's size."""
    batch = replica.shard("calibration", shard)
    weights = {name: replica.model.get_parameter(name) for name in setup.of_kind("weight")}
    result: dict[str, np.ndarray] = {"num_samples": np.array(float(batch_size(batch)))}
    reference = replica.float_outputs("calibration", shard)
    # The fused attention kernels have no double backward on CPU.
    with frozen_eval(replica.model), sdpa_kernel(SDPBackend.MATH):
        replica.model.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        value = _scalar(replica, loss, batch, reference)
        gradients: tuple[Tensor | None, ...] = (None,) * len(weights)
        if value.requires_grad:
            gradients = torch.autograd.grad(
                value, list(weights.values()), create_graph=True, allow_unused=True
            )
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            found = [
                _probe(gradient, weight, derive_seed(seed, "traces", name, shard, k)) for k in range(lo, hi)
            ]
            result[name] = np.array(found, dtype=np.float64)
            if not np.isfinite(result[name]).all():
                raise DataError(
                    f"the trace of '{name}' is not finite on calibration shard {shard}: the model's output "
                    f"or its second derivative is not. Mend the data, or leave the layer float "
                    f"(placement.ignored_scopes)."
                )
    return result


def _scalar(replica: Replica, loss: TraceLoss, batch: object, reference: Tensor) -> Tensor:
    outputs = replica.forward(replica.model, batch)
    if loss == "divergence":
        return replica.divergence.per_sample(output_tensor(outputs), reference).mean()
    if replica.loss is None:
        raise TaskError("sensitivity.trace_loss is 'loss', but the Task has no loss; set it to 'divergence'.")
    value = replica.loss(outputs, batch)
    if value.numel() != 1:
        raise TaskError(f"the task's loss has shape {tuple(value.shape)}; it must be a scalar.")
    return value


def _probe(gradient: Tensor | None, weight: Tensor, seed: int) -> float:
    if gradient is None or not gradient.requires_grad:
        return 0.0
    # Drawn on the CPU whatever the device, so that every worker draws the same probe.
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(0, 2, weight.shape, generator=generator).to(weight.device, weight.dtype) * 2 - 1
    (product,) = torch.autograd.grad(gradient, weight, draw, retain_graph=True, materialize_grads=True)
    return float((product.double() * draw.double()).sum()) / weight.numel()


def unreached(traces: Mapping[str, Trace]) -> list[str]:
    """Weights whose trace is exactly 0 with no error: the loss has no curvature in them."""
    return [name for name, trace in traces.items() if trace.value == 0.0 and trace.stderr == 0.0]
