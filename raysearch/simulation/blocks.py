"""The repeated blocks of a model: what a forward is restarted at where less is kept of it."""

from __future__ import annotations

from collections import Counter

from torch import nn

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def repeated_blocks(model: nn.Module) -> set[int]:
    """Identities of modules that come at least twice in one container, the innermost such ones.

    The layers of a decoder are blocks, and the residual blocks of a convolutional net. A module without
    modules inside is none, nor is one that has blocks inside (a stage).
    """
    blocks: dict[int, nn.Module] = {}
    for container in model.modules():
        if not isinstance(container, _CONTAINERS):
            continue
        children = [child for child in container.children() if any(child.children())]
        counts = Counter(type(child) for child in children)
        for child in children:
            if counts[type(child)] > 1 and not isinstance(child, _CONTAINERS):
                blocks[id(child)] = child
    return {key for key, block in blocks.items() if not _has_inside(block, blocks)}


def _has_inside(block: nn.Module, blocks: dict[int, nn.Module]) -> bool:
    return any(id(module) in blocks for module in block.modules() if module is not block)
