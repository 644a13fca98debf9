"""Recurrent layers: torch runs an LSTM or a GRU as one function, so their weights stay float, by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torch import nn

from raysearch.errors import PlacementError
from raysearch.placement.scopes import matcher, names_of
from raysearch.records import QuantizationPoint


def recurrent_weights(model: nn.Module) -> dict[str, str]:
    """Qualified name of each matrix of a recurrent layer → that layer's path."""
    return {
        f"{path}.{name}" if path else name: path
        for path, module in model.named_modules()
        if isinstance(module, nn.RNNBase | nn.RNNCellBase)
        for name, value in module.named_parameters(recurse=False)
        if value.ndim > 1
    }


def refuse_recurrent(
    weights: Mapping[str, str],
    points: Iterable[QuantizationPoint],
    requested: Iterable[tuple[str, str]],
    ignored: Iterable[str],
) -> tuple[str, ...]:
    """Say which recurrent weights stay float; an ignored scope that fits only them is done with.

    Args:
        weights: as `recurrent_weights` gives them.
        points: all points of the model.
        requested: (setting, scope) of what is to be quantized.
        ignored: scopes that stay float.

    Returns:
        The ignored scopes that are left.

    Raises:
        PlacementError: a scope asks for recurrent weights and for nothing else.
    """
    others = {name for point in points for name in names_of(point)}
    for option, scope in requested:
        named = _fitting(scope, weights, option)
        if named and not any(matcher(scope, option)(name) for name in others):
            raise PlacementError(
                f"{option} names '{scope}', but recurrent weights cannot be quantized, since torch "
                f"runs the layer as one function: {', '.join(named)}. Take the scope out; they stay float."
            )
    acknowledged: set[str] = set()
    left: list[str] = []
    for scope in ignored:
        named = _fitting(scope, weights, "placement.ignored_scopes")
        acknowledged |= set(named)
        if not named or any(matcher(scope, "placement.ignored_scopes")(name) for name in others):
            left.append(scope)
    unnamed = [name for name in weights if name not in acknowledged]
    if unnamed:
        warnings.warn(
            f"recurrent weights stay float, since torch runs the layer as one function: "
            f"{', '.join(unnamed)}. Name them in placement.ignored_scopes to say that you know.",
            stacklevel=3,
        )
    return tuple(left)


def _fitting(scope: str, weights: Mapping[str, str], option: str) -> list[str]:
    fits = matcher(scope, option)
    return [name for name, layer in weights.items() if fits(name) or fits(layer)]
