"""A loop in plain PyTorch, alone or by `torchrun --nproc-per-node 2 examples/own_loop/plain.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from start import accuracy, quantized_net
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

BATCH = 32


def train(checkpoint: Path, epochs: int) -> tuple[nn.Module, float]:
    """Train to an epoch, from the checkpoint where there is one.

    Args:
        checkpoint: written after every epoch.
        epochs: where to stop.

    Returns:
        The stripped model and its accuracy.
    """
    saved = torch.load(checkpoint) if checkpoint.exists() else None
    controller, model, data, validation = quantized_net(saved and saved["controller"])
    rank, world = 0, 1
    wrapped = model
    if distributed.is_initialized():
        rank, world = distributed.get_rank(), distributed.get_world_size()
        # Before DDP is made: all ranks then have the widths and ranges of rank 0.
        controller.distributed()
        wrapped = DistributedDataParallel(model)
    sampler: DistributedSampler[TensorDataset] = DistributedSampler(data, world, rank, seed=0)
    loader = DataLoader(data, BATCH // world, sampler=sampler, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4 * len(loader))
    first = 0
    if saved:
        # Learned scales are parameters of the model, the rest is the controller's.
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        rates.load_state_dict(saved["rates"])
        first = saved["epoch"]
    for epoch in range(first, epochs):
        controller.scheduler.epoch_step(epoch)
        sampler.set_epoch(epoch)
        wrapped.train()
        for images, labels in loader:
            controller.scheduler.step()
            optimizer.zero_grad()
            loss = F.cross_entropy(wrapped(images), labels) + controller.loss()
            loss.backward()
            optimizer.step()
            rates.step()
        state = {"epoch": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"rates": rates.state_dict(), "controller": controller.get_compression_state()}
        if rank == 0:
            # Whole or not at all: a process may be killed while it writes.
            unfinished = checkpoint.with_suffix(".unfinished")
            torch.save(state, unfinished)
            unfinished.replace(checkpoint)
    stripped = controller.strip_model()
    return stripped, accuracy(stripped, validation)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
    _, reached = train(Path("own_loop.pt"), epochs=4)
    # Ranks differ in BatchNorm's statistics; the model is that of rank 0.
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        print(f"accuracy of the integer model: {reached:.4f}")
