"""What the three loops start from: the digits net, quantized; they differ in who owns the loop."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import raysearch
from raysearch.controller import QuantizationController

sys.path.insert(0, str(Path(__file__).parents[1] / "digits"))
from digits import load_data
from train import float_net

SETTINGS: Mapping[str, Any] = {
    "target_device": "TRIAL",
    "compression": {
        "algorithm": "quantization",
        "initializer": {
            "precision": {"type": "hawq", "bits": [2, 4, 8], "compression_ratio": 2.0, "num_data_points": 64},
        },
        # Activations are quantized from the second epoch on.
        "params": {"weights_quant_start_epoch": 0, "activations_quant_start_epoch": 1},
    },
}
"""NNCF's configuration: widths by HAWQ, and a staged start."""


def quantized_net(
    state: Mapping[str, Any] | None = None,
) -> tuple[QuantizationController, nn.Module, TensorDataset, TensorDataset]:
    """The controller, its model, and the training and validation data.

    Args:
        state: of the controller that a checkpoint has; without one, ranges and widths are found on data.
    """
    train, validation = load_data()
    controller, model = raysearch.create_compressed_model(
        float_net(),
        SETTINGS,
        (torch.zeros(2, 1, 8, 8),),
        data=[train[:256]],
        compression_state=state,
    )
    return controller, model, train, validation


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Share of right digits."""
    images, labels = data.tensors
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()
