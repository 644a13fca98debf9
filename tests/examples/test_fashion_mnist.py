"""The reader of Fashion-MNIST's files, on small files of the same format."""

import gzip
import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

SOURCE = Path(__file__).parents[2] / "examples" / "fashion_mnist" / "fashion_mnist.py"


def example(monkeypatch, folder):
    monkeypatch.setenv("FASHION_MNIST", str(folder))
    spec = importlib.util.spec_from_file_location("fashion_mnist_example", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), 1))


def test_reads_idx_files_and_keeps_the_last_images_apart(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(256, size=(n, 28, 28), dtype=np.uint8)
        for name, n in (("train", 5040), ("t10k", 7))
    }
    for name, array in images.items():
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", array)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", (np.arange(len(array)) % 10).astype(np.uint8))
    module = example(monkeypatch, tmp_path)
    train, validation, test = module.load_data()
    assert [len(part) for part in (train, validation, test)] == [40, 5000, 7]
    pixels, labels = validation.tensors
    assert torch.equal(labels, torch.arange(40, 5040) % 10)
    back = (pixels * 0.353 + 0.286) * 255
    assert torch.equal(back.round().to(torch.uint8)[:, 0], torch.from_numpy(images["train"][40:]))
    net = module.ResNet20().eval()
    assert sum(p.numel() for p in net.parameters()) == 272_186
    with torch.no_grad():
        assert net(pixels[:2]).shape == (2, 10)


def test_missing_files_say_how_to_get_them(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        example(monkeypatch, tmp_path).load_data()
