"""Dense second derivatives of one weight, by plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysearch.evaluation import Replica


def _outputs(model: nn.Module, name: str, weight: Tensor, x: Tensor) -> Tensor:
    outputs: Tensor = functional_call(model, {name: weight}, (x,))
    return outputs


def hessian(replica: Replica, name: str, shard: int, loss: str) -> Tensor:
    """∂²(mean loss)/∂W² of one shard as a matrix, in the model's own precision."""
    batch = replica.shards["calibration"][shard]
    weight = replica.model.get_parameter(name).detach()
    reference = replica.model(batch[0]).detach()

    def value(flat: Tensor) -> Tensor:
        outputs = _outputs(replica.model, name, flat.reshape(weight.shape), batch[0])
        if loss == "loss":
            return replica.loss(outputs, batch)
        return replica.divergence.per_sample(outputs, reference).mean()

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(value, weight.reshape(-1))


def gauss_newton(replica: Replica, name: str, shard: int) -> Tensor:
    """Mean over samples of Jᵀ Λ J, Λ the divergence's Hessian, float64."""
    batch = replica.shards["calibration"][shard]
    weight = replica.model.get_parameter(name).detach()

    def outputs(flat: Tensor) -> Tensor:
        return _outputs(replica.model, name, flat.reshape(weight.shape), batch[0])

    with sdpa_kernel(SDPBackend.MATH):
        jacobian = torch.autograd.functional.jacobian(outputs, weight.reshape(-1)).double()
        z = outputs(weight.reshape(-1)).double()
    curvature = output_hessian(replica, z)
    return torch.einsum("nci,ncd,ndj->ij", jacobian, curvature, jacobian).detach() / len(z)


def output_hessian(replica: Replica, z: Tensor) -> Tensor:
    """Λ of every sample, [N, C, C], float64."""
    if replica.divergence.kind == "mse":
        return torch.eye(z.shape[1]).double().expand(len(z), -1, -1) / z.shape[1]
    if replica.divergence.kind == "kl":
        p = z.double().softmax(1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    z = z.detach().double()
    blocks = [
        torch.autograd.functional.hessian(
            lambda x, ref=row: replica.divergence.per_sample(x[None], ref[None]).sum(), row
        )
        for row in z
    ]
    return torch.stack(blocks)
