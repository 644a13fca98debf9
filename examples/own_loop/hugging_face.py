"""The Trainer of transformers with a callback that steps the schedule and keeps the controller's state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from start import accuracy, quantized_net
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from raysearch.controller import QuantizationController

STATE = "quantization.json"


class QuantizationCallback(TrainerCallback):
    """Tells a controller of epochs and steps, and writes its state beside each checkpoint."""

    def __init__(self, controller: QuantizationController) -> None:
        self.controller = controller

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Give all ranks the widths and ranges of rank 0."""
        if distributed.is_initialized():
            self.controller.distributed()

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Start what is due; the Trainer counts epochs in fractions."""
        self.controller.scheduler.epoch_step(int(state.epoch))

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step."""
        self.controller.scheduler.step(state.global_step)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state into the folder of the checkpoint."""
        path = Path(args.output_dir, f"checkpoint-{state.global_step}", STATE)
        path.write_text(json.dumps(self.controller.get_compression_state()))


def named(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A batch by the names of the model's forward, and of the Trainer's labels."""
    images, labels = zip(*samples, strict=True)
    return {"x": torch.stack(images), "labels": torch.stack(labels)}


def train(folder: Path, epochs: int) -> tuple[nn.Module, float]:
    """Train to an epoch, from the last checkpoint in the folder; the stripped model and its accuracy."""
    last = get_last_checkpoint(str(folder)) if folder.exists() else None
    state = json.loads(Path(last, STATE).read_text()) if last else None
    controller, model, data, validation = quantized_net(state)
    settings = {"num_train_epochs": epochs, "per_device_train_batch_size": 32, "learning_rate": 1e-3}
    kept = {"save_strategy": "epoch", "save_total_limit": 1, "report_to": "none", "logging_strategy": "no"}
    arguments = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **settings, **kept)
    trainer = Trainer(
        model,
        arguments,
        data_collator=named,
        train_dataset=data,
        compute_loss_func=lambda outputs, labels, **_: F.cross_entropy(outputs, labels) + controller.loss(),
        callbacks=[QuantizationCallback(controller)],
    )
    trainer.train(resume_from_checkpoint=last)
    stripped = controller.strip_model()
    return stripped, accuracy(stripped, validation)


if __name__ == "__main__":
    _, reached = train(Path("own_loop_trainer"), epochs=4)
    print(f"accuracy of the integer model: {reached:.4f}")
