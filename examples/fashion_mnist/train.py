"""Train the float net: some four minutes on one core, the same weights every time."""

from pathlib import Path

import torch
from fashion_mnist import ResNet20, load_data
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.data import DataLoader

WEIGHTS = Path(__file__).with_name("float.safetensors")
EPOCHS = 6


def train_float() -> ResNet20:
    """SGD with Nesterov momentum, a one-cycle schedule and smoothed labels."""
    torch.manual_seed(0)
    model = ResNet20()
    train = load_data()[0]
    loader = DataLoader(train, batch_size=128, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=EPOCHS * len(loader))
    for epoch in range(EPOCHS):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss of the last batch {loss.item():.3f}", flush=True)
    return model.eval()


def float_net() -> ResNet20:
    """The trained net: from `float.safetensors` beside this file, trained and saved if it is not there."""
    if not WEIGHTS.exists():
        save_file(train_float().state_dict(), WEIGHTS)
    model = ResNet20()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    net = float_net()
    for name, part in zip(("validation", "test"), load_data()[1:], strict=True):
        images, labels = part.tensors
        with torch.no_grad():
            accuracy = (net(images).argmax(1) == labels).float().mean().item()
        print(f"float accuracy on {len(labels):,} {name} images: {accuracy:.4f}  ({WEIGHTS})")
