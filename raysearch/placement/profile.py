"""Hardware profiles: which widths, modes and places a target's integer kernels take; read from TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from raysearch.errors import PlacementError
from raysearch.placement.fusion import STRUCTURES
from raysearch.quantizer import MAX_BITS, MIN_BITS
from raysearch.records import QuantizationPoint, Scheme
from raysearch.records.scale_format import SCALE_DTYPES
from raysearch.unknown_keys import nearest_hint, nearest_names

WEIGHT_KINDS = ("conv", "depthwise", "conv_transpose", "linear", "recurrent", "embedding")
OPERATIONS = (*WEIGHT_KINDS, "add", "matmul", "attention", "pool")
MODES = ("symmetric", "asymmetric")
WEIGHT_MODES = (*MODES, "minimum")
GRANULARITIES = ("per_channel", "per_tensor", "per_group")
EVERY = tuple(range(MIN_BITS, MAX_BITS + 1))

Pairs = frozenset[tuple[int, int]]
"""Allowed (weight, activation) widths."""


@dataclass(frozen=True)
class OperationRule:
    """What one kind of operation takes.

    Attributes:
        weights: widths of weights; none: its weights stay float.
        asymmetric_weights: those of them that may have zero points.
        activations: widths of the tensors it reads; none: these stay float.
        pairs: (weight, activation) widths that go together; empty means all combinations.
        weight_granularity: allowed granularities.
        group_sizes: inputs that may share a scale, where that is per group; empty means any number.
        weight_modes: allowed modes of weights, the preferred one first.
        activation_modes: allowed modes of activations, the preferred one first.
        input: whether the tensor it reads must be quantized.
        output: whether its result must be quantized too.
        modules: classes of modules whose weights it takes; none: of all. Other weights stay float.
        input_multiple: what the inputs of a weight's row must be a multiple of; others stay float.
        output_multiple: the same of its output channels.
    """

    weights: tuple[int, ...] = EVERY
    asymmetric_weights: tuple[int, ...] = EVERY
    activations: tuple[int, ...] = EVERY
    pairs: tuple[tuple[int, int], ...] = ()
    weight_granularity: tuple[str, ...] = GRANULARITIES
    group_sizes: tuple[int, ...] = ()
    weight_modes: tuple[str, ...] = MODES
    activation_modes: tuple[str, ...] = ("asymmetric", "symmetric")
    input: bool = False
    output: bool = False
    modules: tuple[str, ...] = ()
    input_multiple: int = 1
    output_multiple: int = 1

    def allowed(self) -> Pairs:
        """All (weight, activation) widths that it takes."""
        listed = self.pairs or tuple((w, a) for w in EVERY for a in EVERY)
        return frozenset((w, a) for w, a in listed if w in self.weights and a in self.activations)


@dataclass(frozen=True)
class Profile:
    """A target: its name, and a rule for every kind of operation.

    Attributes:
        name: as settings have it.
        description: one sentence.
        rules: kind of operation → what it takes.
        scale_dtype: form in which it stores the scales of weights, where the settings do not say.
        fusion: structures whose weights are one to the target, see `find_fusions`.
    """

    name: str
    description: str
    rules: Mapping[str, OperationRule]
    scale_dtype: str = "float32"
    fusion: tuple[str, ...] = ()

    @property
    def is_weight_only(self) -> bool:
        """Whether every activation stays float."""
        return not any(rule.activations for rule in self.rules.values())

    def weights(self, kinds: Iterable[str]) -> tuple[int, ...]:
        """Weight widths that every one of the kinds takes, at some width of its input where that has one."""
        rules = [self.rules[kind] for kind in kinds]
        widths = set(EVERY).intersection(*(rule.weights for rule in rules))
        if all(rule.activations for rule in rules):
            widths &= {w for w, _ in self.pairs(kinds)}
        return tuple(sorted(widths))

    def why_float(self, kinds: Iterable[str], point: QuantizationPoint, classes: Collection[str]) -> str:
        """Why a weight stays float whatever its scheme, for people; "" where it need not.

        Args:
            kinds: of the operations that read it.
            point: the weight.
            classes: names of the classes of a module that holds it, its bases included.
        """
        for kind in sorted(kinds):
            reason = _why_float(self.rules[kind], kind, point, classes)
            if reason:
                return f"the profile '{self.name}' takes {reason}"
        return ""

    def pairs(self, kinds: Iterable[str]) -> Pairs:
        """Pairs that every one of the kinds takes."""
        pairs = frozenset((w, a) for w in EVERY for a in EVERY)
        for kind in kinds:
            pairs &= self.rules[kind].allowed()
        return pairs

    def activations(self, kinds: Iterable[str]) -> tuple[int, ...]:
        """Activation widths that every one of the kinds can read."""
        widths = set(EVERY)
        for kind in kinds:
            widths &= {a for _, a in self.rules[kind].allowed()}
        return tuple(sorted(widths))

    def takes(self, kinds: Iterable[str], point: QuantizationPoint, scheme: Scheme) -> bool:
        """Whether the kinds take the mode, the granularity and the size of groups of a weight at a scheme.

        Args:
            kinds: of the operations that read it.
            point: the weight.
            scheme: one of its schemes.
        """
        return all(_takes(self.rules[kind], point.at(scheme), scheme.num_bits) for kind in kinds)

    def describe(self, kinds: Iterable[str]) -> str:
        """What weights of the kinds may be, for people."""
        kinds = tuple(kinds)
        symmetric = ", ".join(map(str, self.weights(kinds))) or "no"
        granularities = ", ".join(self.modes(kinds, "weight_granularity")) or "no"
        modes = ", ".join(self.modes(kinds, "weight_modes")) or "no"
        limits = [f"{symmetric} bits, the granularities {granularities} and the modes {modes}"]
        for rule in (self.rules[kind] for kind in kinds):
            if rule.group_sizes:
                limits.append(f"groups of {', '.join(map(str, rule.group_sizes))} inputs")
            if rule.asymmetric_weights != EVERY:
                limits.append(f"asymmetric {', '.join(map(str, rule.asymmetric_weights))} bits alone")
        return ", ".join(dict.fromkeys(limits))

    def modes(self, kinds: Iterable[str], field: str) -> tuple[str, ...]:
        """Modes (or granularities) that every one of the kinds takes, the preferred one first."""
        common: tuple[str, ...] | None = None
        for kind in kinds:
            listed: tuple[str, ...] = getattr(self.rules[kind], field)
            common = listed if common is None else tuple(mode for mode in common if mode in listed)
        return common or ()


def _takes(rule: OperationRule, point: QuantizationPoint, num_bits: int) -> bool:
    mode = point.grid_spec.mode
    if mode not in rule.weight_modes or (mode == "asymmetric" and num_bits not in rule.asymmetric_weights):
        return False
    row, channels = point.row, point.granularity.group_size
    kind = point.granularity.kind
    if row is None or (kind == "per_channel" and kind in rule.weight_granularity):
        return kind in rule.weight_granularity
    # A scale a channel is one of a group that is the whole row.
    size = row.num_inputs if channels is None else channels * row.num_positions
    return "per_group" in rule.weight_granularity and (not rule.group_sizes or size in rule.group_sizes)


def _why_float(rule: OperationRule, kind: str, point: QuantizationPoint, classes: Collection[str]) -> str:
    if not rule.weights:
        return f"{kind} weights in float alone"
    if rule.modules and not set(rule.modules) & set(classes):
        return f"weights of {' and '.join(rule.modules)} modules alone"
    if point.row is None:
        return ""
    num_outputs, num_inputs = point.shape[point.row.axis], point.row.num_inputs
    if num_inputs % rule.input_multiple:
        return f"rows of a multiple of {rule.input_multiple} inputs, and these have {num_inputs}"
    if num_outputs % rule.output_multiple:
        return f"weights of a multiple of {rule.output_multiple} outputs, and this has {num_outputs}"
    return ""


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with raysearch."""
    folder = files("raysearch.placement") / "profiles"
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if ".toml" in entry.name)
    )


def load_profile(name: str) -> Profile:
    """A shipped profile by name, or a user's own by the path of a TOML file.

    Raises:
        PlacementError: there is no such profile or file, or a key or value in it is wrong.
    """
    names = shipped_profiles()
    if name in names:
        text = (files("raysearch.placement") / "profiles" / f"{name}.toml").read_text()
    elif name.endswith(".toml"):
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise PlacementError(
                f"placement.profile: the file '{name}' cannot be read: {error!s:.200}."
            ) from error
    else:
        matches = nearest_names(name, names)
        hint = f" Did you mean '{matches[0]}'?" if matches else ""
        raise PlacementError(
            f"placement.profile is '{name}', which is no profile; known: {', '.join(names)}, or the path of "
            f"a .toml file.{hint}"
        )
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlacementError(f"the profile '{name}' is not TOML: {error!s:.200}.") from error
    return _profile(name, data)


def _profile(name: str, data: dict[str, Any]) -> Profile:
    description = str(data.pop("description", ""))
    scale_dtype = data.pop("scale_dtype", "float32")
    if scale_dtype not in (*SCALE_DTYPES, "model"):
        raise PlacementError(
            f"the profile '{name}' has scale_dtype = {scale_dtype!r}; allowed: {', '.join(SCALE_DTYPES)} or "
            f"model, the type of each weight."
        )
    fusion = data.pop("fusion", ())
    _known(name, "", data, ("default", *OPERATIONS, "description", "scale_dtype", "fusion"))
    if not isinstance(fusion, list | tuple) or not all(structure in STRUCTURES for structure in fusion):
        raise PlacementError(
            f"the profile '{name}' has fusion = {fusion!r:.200}; allowed: a list of {', '.join(STRUCTURES)}."
        )
    default = _rule(name, "default", data.get("default", {}), OperationRule())
    rules = {kind: _rule(name, kind, data.get(kind, {}), default) for kind in OPERATIONS}
    return Profile(name, description, rules, scale_dtype, tuple(fusion))


def _rule(profile: str, section: str, data: Any, base: OperationRule) -> OperationRule:
    keys = [field.name for field in fields(OperationRule)]
    if not isinstance(data, dict):
        raise PlacementError(f"the profile '{profile}' has a value '{section}' where a section belongs.")
    _known(profile, section, data, keys)
    changes: dict[str, Any] = {}
    for key, value in data.items():
        try:
            changes[key] = _checked(key, value)
        except (TypeError, ValueError) as error:
            raise PlacementError(
                f"the profile '{profile}' has {section}.{key} = {value!r}; {error}."
            ) from error
    if "pairs" not in changes and ({"weights", "activations"} & set(changes)):
        changes["pairs"] = ()  # a section's own widths replace what the default couples
    return replace(base, **changes)


def _checked(key: str, value: Any) -> Any:
    if key in ("input", "output"):
        if not isinstance(value, bool):
            raise ValueError("allowed: true or false")
        return value
    if key == "pairs":
        pairs = tuple((w, a) for w, a in value)
        _widths(width for pair in pairs for width in pair)
        return pairs
    if key == "group_sizes":
        return _group_sizes(value)
    if key in ("weights", "asymmetric_weights", "activations"):
        return _widths(value) if value else ()
    if key in ("input_multiple", "output_multiple"):
        return _group_sizes([value])[0]
    if key == "modules":
        return tuple(map(str, value))
    choices = {"weight_granularity": GRANULARITIES, "weight_modes": WEIGHT_MODES}
    allowed = choices.get(key, MODES)
    names = tuple(value)
    if not names or not set(names) <= set(allowed):
        raise ValueError(f"allowed: a list of {', '.join(allowed)}")
    return names


def _widths(values: Iterable[Any]) -> tuple[int, ...]:
    widths = tuple(values)
    # By type: True is no width, though it is an integer.
    if not widths or not all(type(width) is int and width in EVERY for width in widths):
        raise ValueError(f"allowed: bit-widths of {MIN_BITS} to {MAX_BITS}, at least one")
    return tuple(sorted(set(widths)))


def _group_sizes(values: Iterable[Any]) -> tuple[int, ...]:
    sizes = tuple(values)
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("allowed: numbers of inputs, at least one")
    return tuple(sorted(set(sizes)))


def _known(profile: str, section: str, data: Mapping[str, Any], allowed: Iterable[str]) -> None:
    names = list(allowed)
    for key in data:
        if key not in names:
            where = f"{section}.{key}" if section else key
            raise PlacementError(
                f"the profile '{profile}' has the unknown key '{where}'{nearest_hint(key, names)}."
            )
