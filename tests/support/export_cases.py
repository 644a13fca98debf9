"""Small nets that cover what can be exported, quantized by hand with ranges from their own weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysearch.config import ExportConfig, PlacementConfig
from raysearch.controller import create_controller
from raysearch.export import StrippedModel, export_model
from raysearch.export.onnx_qdq.capture import capture
from raysearch.export.onnx_qdq.proto import finish, write_model
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, ExportManifest, QuantizerRange, QuantizerSetup, RangeTable

WIDTHS = (2, 3, 4, 5, 6, 7, 8)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.pointwise(F.relu(self.norm(self.depthwise(x)))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(image)))
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


class Text(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.norm(self.table(input_ids) * mask.unsqueeze(-1))
        return {"logits": self.head(hidden), "hidden": hidden}


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(2, 5, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose1d(5, 3, 4, stride=2, padding=1)
        self.gate = nn.ConvTranspose2d(3, 2, 2, stride=2)
        self.register_buffer("gain", torch.tensor([0.5, 2.0]), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.up(torch.tanh(self.down(x)))
        return y, self.gate(y.unsqueeze(2)) * self.gain[:, None, None]


class Twins(nn.Module):
    """Layers of equal weights, which exporters merge."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
        for layer in self.layers:
            layer.load_state_dict(self.layers[0].state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Seven(nn.Module):
    """One linear layer for each width."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(9, 9) for _ in WIDTHS)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.arange(3 * 5, dtype=torch.float32).reshape(5, 3)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Any, ...]]]] = {
    "residual": (Residual, lambda n: (torch.randn(n, 1, 8, 8),)),
    "text": (Text, lambda n: (torch.randint(0, 11, (n, 7)), torch.ones(n, 7))),
    "tied": (lambda: Text(tied=True), lambda n: (torch.randint(0, 11, (n, 7)), torch.ones(n, 7))),
    "waves": (Waves, lambda n: (torch.randn(n, 2, 10),)),
    "twins": (Twins, lambda n: (torch.randn(n, 6),)),
    "encoder": (Encoder, lambda n: (torch.randn(n, 5, 8),)),
    "seven": (Seven, lambda n: (torch.randn(n, 9),)),
    "fixed": (FixedBatch, lambda n: (torch.randn(n, 4),)),
}


@dataclass
class Case:
    stripped: nn.Module
    setup: QuantizerSetup
    assignment: BitAssignment
    inputs: Callable[[int], tuple[Any, ...]]
    example: tuple[Any, ...]

    @property
    def model(self) -> StrippedModel:
        return StrippedModel(self.stripped, self.setup, self.assignment, self.example)

    def export(self, folder: Path, *targets: str, **options: Any) -> ExportManifest:
        """Written as some targets, or as those of the default, and verified on the example or `batches`."""
        return export_model(self.model, folder, ExportConfig(targets=targets or None), **options)


def case(net: str, bits: int | None = None, batch: int = 4, left_out: tuple[str, ...] = ()) -> Case:
    """A stripped net; `bits=None` cycles through all widths, groups in `left_out` stay float."""
    torch.manual_seed(0)
    build, inputs = NETS[net]
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
    example = inputs(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # additions inside nn.TransformerEncoderLayer stay float
        setup = place_quantizers(
            model, example, PlacementConfig(weight_bit_widths=WIDTHS, activation_bit_widths=(4, 8))
        )
    chosen: dict[str, int] = {}
    for group in setup.groups.values():
        if group.id in left_out:
            continue
        if setup.group_kind(group.id) == "activation":
            chosen[group.id] = 8 if bits is None or bits > 4 else 4
        else:
            chosen[group.id] = bits or WIDTHS[len(chosen) % len(WIDTHS)]
    assignment = BitAssignment(chosen)
    controller = create_controller(model, setup, ranges(model, setup), assignment)
    return Case(controller.strip_model(do_copy=True), setup, assignment, inputs, example)


def ranges(model: nn.Module, setup: QuantizerSetup) -> RangeTable:
    values: dict[tuple[str, int], QuantizerRange] = {}
    for point in setup.points.values():
        for bits in WIDTHS:
            if point.kind == "activation":
                scale, zero = np.array([6 / (2**bits - 1)]), np.array([2 ** (bits - 1)])
            else:
                weight = dict(model.named_parameters(remove_duplicate=False))[point.id].detach()
                scale = weight.abs().transpose(0, point.granularity.axis or 0).flatten(1).amax(1).numpy()
                scale, zero = scale / (2 ** (bits - 1) - 1), np.zeros(len(scale))
            values[point.id, bits] = QuantizerRange(
                scale.astype(np.float32), zero.astype(np.int32), point.kind == "weight"
            )
    return RangeTable(values)


def forward_all(model: nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def write_onnx(model: StrippedModel, path: Path) -> int | None:
    """Write a model as an ONNX file for onnxruntime, without the target's checks; its only batch size."""
    graph, fixed_batch = capture(model.module, model.weights, model.example_inputs)
    write_model(finish(graph, model.weights), path)
    return fixed_batch
