"""What every export target holds: widths, zero points and granularity; checked before compute is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from raysearch.errors import ConfigError
from raysearch.export.onnx_qdq.packages import missing_packages
from raysearch.export.targets import openvino as openvino_target
from raysearch.quantizer import MAX_BITS, MIN_BITS
from raysearch.records import QuantizationPoint, QuantizerSetup

EVERY = tuple(range(MIN_BITS, MAX_BITS + 1))


def _nothing() -> list[str]:
    return []


@dataclass(frozen=True)
class Capability:
    """What a file of one target can hold; that it holds a width does not mean that it computes faster by it.

    Attributes:
        weights: widths of weights, each with the bits that a code takes in the file. Small tensors may take
            more where decoding them would cost more bytes than it saves.
        activations: widths of activations; all targets give their codes 8 bits at run time.
        weight_modes: kinds of weight grids.
        weight_granularity: scales of weights.
        extra: the extra that installs its packages; "" for none.
        missing: packages that are not installed.
    """

    weights: Mapping[int, int]
    activations: tuple[int, ...] = EVERY
    weight_modes: tuple[str, ...] = ("symmetric", "asymmetric")
    weight_granularity: tuple[str, ...] = ("per_channel", "per_tensor")
    extra: str = ""
    missing: Callable[[], list[str]] = field(default=_nothing)

    def refusal(self, point: QuantizationPoint, widths: Sequence[int]) -> str:
        """What of a quantizer it does not hold, as words; "" when it holds all."""
        held = tuple(self.weights) if point.kind == "weight" else self.activations
        if beyond := [str(width) for width in widths if width not in held]:
            return f"{', '.join(beyond)} bits (it holds {', '.join(map(str, held))})"
        if point.kind != "weight":
            return ""
        granularity = point.granularity.kind
        if point.grid_spec.mode not in self.weight_modes:
            return f"{point.grid_spec.mode} weights (it holds {', '.join(self.weight_modes)})"
        if granularity not in self.weight_granularity:
            return f"{granularity} scales (it holds {', '.join(self.weight_granularity)})"
        return ""


CAPABILITIES: Mapping[str, Capability] = {
    "packed": Capability({width: width for width in EVERY}),
    "onnx": Capability({width: width for width in EVERY}, extra="onnx", missing=missing_packages),
    # It reads no INT2 and decodes bit streams at every inference.
    "openvino": Capability(
        {width: 4 if width <= 4 else 8 for width in EVERY},
        extra="openvino",
        missing=openvino_target.missing_openvino,
    ),
    "pt2": Capability(dict.fromkeys(EVERY, 8)),
}


def check_targets(
    setup: QuantizerSetup, targets: Sequence[str], capabilities: Mapping[str, Capability] = CAPABILITIES
) -> None:
    """Refuse targets that cannot hold what a search over a setup may find.

    Args:
        setup: where quantizers are, and the widths they may take.
        targets: names of targets.
        capabilities: what each target holds.

    Raises:
        ConfigError: a target is unknown, its packages are missing, or it does not hold a width, a mode or a
            granularity; names the quantizers.

    Example:
        >>> from raysearch.records import QuantizationPoint, QuantizerGroup, QuantizerSetup
        >>> from raysearch.records import Granularity
        >>> point = QuantizationPoint("fc.weight", "weight", (), (2, 2), Granularity.per_channel(0))
        >>> group = QuantizerGroup("fc.weight", ("fc.weight",), (2, 8))
        >>> setup = QuantizerSetup({"fc.weight": point}, {"fc.weight": group})
        >>> check_targets(setup, ["int8"], {"int8": Capability({8: 8})})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        raysearch.errors.ConfigError: the export target 'int8' does not hold 2 bits (it holds 8): ...
    """
    for target in targets:
        if target not in capabilities:
            raise ConfigError(f"export.targets names '{target}'; known targets: {', '.join(capabilities)}.")
        capability = capabilities[target]
        if missing := capability.missing():
            raise ConfigError(
                f"export.targets names '{target}', which needs {', '.join(missing)}; install them with "
                f'`pip install "raysearch[{capability.extra}]"`, or leave the target out.'
            )
        _check_held(setup, target, capability)


def _check_held(setup: QuantizerSetup, target: str, capability: Capability) -> None:
    refused: dict[str, list[str]] = {}
    for group in setup.groups.values():
        for name in group.points:
            if words := capability.refusal(setup.points[name], group.bit_widths):
                refused.setdefault(words, []).append(name)
    for words, names in refused.items():
        listed = ", ".join(f"'{name}'" for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ConfigError(
            f"the export target '{target}' does not hold {words}: {listed}{more}. Leave the target out of "
            f"export.targets, or change placement.profile, the widths of placement or an override."
        )
