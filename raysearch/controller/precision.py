"""What `init_precision` is asked for: types, their keys, and the widths that constraints leave."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raysearch.config.precision import REQUESTS, PrecisionRequest
from raysearch.errors import ConfigError, PlacementError
from raysearch.placement.scopes import match
from raysearch.records import QuantizerSetup

PRECISION_KEYS: Mapping[str, tuple[str, ...]] = {kind: request.keys() for kind, request in REQUESTS.items()}
"""Type → the keys it reads."""

REFUSED_KEYS: Mapping[str, str] = {
    "tolerance": "it stops the reference's joint estimate by the movement of a sum and says nothing about "
    "the error; raysearch ends a layer's draws at a standard error of relative_error, or at iter_number",
    "traces_per_layer_path": "the file is a bare tensor without names that needs unpickling; give 'traces', "
    "a mapping of quantizer id to trace, or a JSON file of it",
    "dump_init_precision_data": "raysearch run writes traces.parquet, sensitivity.parquet and front.parquet",
    "dump_hawq_data": "raysearch run writes traces.parquet, sensitivity.parquet and front.parquet",
}  # fmt: skip


def read_request(kind: str, params: Mapping[str, Any]) -> PrecisionRequest:
    """The parameters of a type, read and checked.

    Raises:
        ConfigError: the type is unknown (lists the valid ones), a key is (names the nearest) or is not
            supported (says why), or a value does not fit.
    """
    if kind not in REQUESTS:
        hint = " What 'autoq' did is 'search' here." if kind == "autoq" else ""
        raise ConfigError(f"precision_init_type '{kind}' is unknown; valid: {', '.join(REQUESTS)}.{hint}")
    for key in params:
        if key in REFUSED_KEYS:
            raise ConfigError(f"the key '{key}' of {kind} is not supported: {REFUSED_KEYS[key]}.")
    return REQUESTS[kind].read(params, f"the params of {kind}")


def narrow(
    setup: QuantizerSetup, bits: Sequence[int] | None, constraints: Mapping[str, Iterable[int]]
) -> QuantizerSetup:
    """The setup with the widths that are left. Warns where no group has a choice left.

    Args:
        setup: groups and the widths they admit.
        bits: widths of the weights, and of the activations that admit several; None: all.
        constraints: quantizer id, layer or glob → widths of whatever it fits.

    Raises:
        PlacementError: nothing is left for a group; names it and what it admits.
    """
    constrained: dict[str, set[int]] = {}
    for scope, widths in constraints.items():
        for point in match(scope, setup.points.values(), "precision_constraints"):
            group = setup.group_of(point.id)
            constrained[group.id] = constrained.get(group.id, set(group.bit_widths)) & set(widths)
    groups = {}
    for name, group in setup.groups.items():
        left = set(group.bit_widths)
        # An activation's single width is the device's, not a choice that the user's bits could take away.
        if bits is not None and (setup.group_kind(name) == "weight" or len(left) > 1):
            left &= set(bits)
        left &= constrained.get(name, left)
        if not left:
            raise PlacementError(
                f"no width is left for '{name}': it admits {', '.join(map(str, group.bit_widths))}, "
                f"and bits={list(bits or [])} and the constraints admit none of them."
            )
        schemes = tuple(scheme for scheme in group.schemes if scheme.num_bits in left)
        groups[name] = replace(group, schemes=schemes)
    if all(len(group.schemes) < 2 for group in groups.values()):
        warnings.warn(
            "every quantizer has one admissible width, so there is nothing to choose; admit more widths "
            "('bits', or another target_device: NPU or TRIAL)",
            stacklevel=3,
        )
    return replace(setup, groups=groups)
