"""A LightningModule around a quantized model; `pip install pytorch-lightning`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from start import accuracy, quantized_net
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from raysearch.controller import QuantizationController


class QuantizedModule(pl.LightningModule):
    """Trains a controller's model; what the controller must be told is in Lightning's own hooks."""

    def __init__(self, controller: QuantizationController, data: TensorDataset) -> None:
        super().__init__()
        self.data = data
        # Lightning leaves modules in the mode that it finds.
        self.net = controller.model.train()
        self.controller = controller

    def on_train_start(self) -> None:
        """Give all ranks the widths and ranges of rank 0."""
        if distributed.is_initialized():
            self.controller.distributed()

    def on_train_epoch_start(self) -> None:
        """Start what is due."""
        self.controller.scheduler.epoch_step(self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The task's loss, and the controller's."""
        self.controller.scheduler.step(self.global_step)
        images, labels = batch
        return F.cross_entropy(self.net(images), labels) + self.controller.loss()

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in an order that follows from the epoch, which Lightning tells the sampler."""
        sampler = DistributedSampler(self.data, self.trainer.world_size, self.global_rank, seed=0)
        return DataLoader(self.data, batch_size=32, sampler=sampler)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW along a cosine."""
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the controller's state in the checkpoint."""
        checkpoint["quantization"] = self.controller.get_compression_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put it back; Lightning loads the model's state dict behind this."""
        self.controller.load_state(checkpoint["quantization"])


def train(folder: Path, epochs: int) -> tuple[nn.Module, float]:
    """Train to an epoch, from the folder's checkpoint if there is one; the stripped model, its accuracy."""
    last = folder / "last.ckpt"
    controller, _, data, validation = quantized_net()
    keep = pl.callbacks.ModelCheckpoint(folder, save_last=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[keep], **quiet)
    module = QuantizedModule(controller, data)
    trainer.fit(module, ckpt_path=last if last.exists() else None)
    stripped = controller.strip_model()
    return stripped, accuracy(stripped, validation)


if __name__ == "__main__":
    _, reached = train(Path("own_loop_lightning"), epochs=4)
    print(f"accuracy of the integer model: {reached:.4f}")
