"""Train the float net: a few seconds on one core, the same weights every time."""

from pathlib import Path

import torch
from digits import DigitsNet, load_data
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.data import DataLoader

WEIGHTS = Path(__file__).with_name("float.safetensors")
EPOCHS = 25


def train_float() -> DigitsNet:
    """SGD with Nesterov momentum and a one-cycle schedule."""
    torch.manual_seed(0)
    model = DigitsNet()
    train, _ = load_data()
    loader = DataLoader(train, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=EPOCHS * len(loader))
    for _ in range(EPOCHS):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def float_net() -> DigitsNet:
    """The trained net: from `float.safetensors` beside this file, trained and saved if it is not there."""
    if not WEIGHTS.exists():
        trained = train_float()
        save_file(trained.state_dict(), WEIGHTS)
    model = DigitsNet()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    net = float_net()
    images, labels = load_data()[1].tensors
    with torch.no_grad():
        accuracy = (net(images).argmax(1) == labels).float().mean().item()
    print(f"float accuracy on 597 validation digits: {accuracy:.4f}  ({WEIGHTS})")
