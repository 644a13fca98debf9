"""NNCF 2.18's own quantization-aware training of the Fashion-MNIST net, at uniform widths.

Its nearest configuration: its legacy API (`create_compressed_model`, the only one of its ways that takes 2 or
3 bits), weights symmetric with a scale a channel, activations 8 bits; the same data, batches, number of
epochs, optimizer and schedule as `benchmarks.training` gives raysearch. Each training is a piece there, and
so a row of benchmarks/results/training.md. Needs an environment of its own with `nncf==2.18.0` and torch:

    PYTHONPATH=. FASHION_MNIST=… nncf/bin/python -m benchmarks.nncf_qat --pieces training-pieces
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[1]
BATCH, RATE = 128, 1e-3


def compressed(model: nn.Module, data: Any, bits: int) -> nn.Module:
    """The net with NNCF's quantizers, their ranges read off a thousand images."""
    # NNCF reads it when it is imported; the legacy API refuses without it.
    os.environ["NNCF_TORCH_LEGACY_TRACING"] = "1"
    import nncf
    from nncf.torch import create_compressed_model, register_default_init_args

    config = nncf.NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, 1, 28, 28]},
            "target_device": "TRIAL",
            "compression": {
                "algorithm": "quantization",
                "weights": {"mode": "symmetric", "bits": bits, "per_channel": True},
                "activations": {"mode": "symmetric", "bits": 8},
                "initializer": {
                    "range": {"num_init_samples": 1000},
                    "batchnorm_adaptation": {"num_bn_adaptation_samples": 1000},
                },
            },
        }
    )
    config = register_default_init_args(config, DataLoader(data, BATCH, shuffle=True))
    _, quantized = create_compressed_model(model, config)
    return quantized


def train(model: nn.Module, data: Any) -> None:
    """One epoch of AdamW, its rate falling along a cosine from step to step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    batches = DataLoader(data, BATCH, shuffle=True, drop_last=False)
    model.train()
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * step / len(batches))) / 2
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


@torch.no_grad()
def judged(model: nn.Module, data: Any) -> dict[str, float]:
    """Loss and accuracy on some images."""
    model.eval()
    loss = right = count = 0.0
    for images, labels in DataLoader(data, 250):
        outputs = model(images)
        loss += float(F.cross_entropy(outputs, labels, reduction="sum"))
        right += float((outputs.argmax(1) == labels).sum())
        count += len(labels)
    return {"loss": loss / count, "accuracy": right / count}


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pieces", type=Path, default=Path("training-pieces"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "examples" / "fashion_mnist"))
    from fashion_mnist import load_data
    from train import float_net

    train_data, _, test_data = load_data()
    for seed in range(options.seeds):
        for bits in options.bits:
            path = options.pieces / "fashion" / f"avg_bits_3_NNCF_2.18,_uniform_{bits}_{seed}.json"
            if path.exists():
                continue
            torch.manual_seed(seed)
            start = time.process_time()
            model = compressed(float_net(), train_data, bits)
            untrained = judged(model, test_data)
            train(model, train_data)
            seconds = time.process_time() - start
            piece = {"untrained": untrained, "judged": judged(model, test_data), "seconds": seconds}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**piece, "commit": "NNCF 2.18.0"}))
            print(bits, seed, piece, flush=True)


if __name__ == "__main__":
    main()
