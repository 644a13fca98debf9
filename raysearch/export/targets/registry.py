"""The targets there are, in the order they are written; nothing else lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from raysearch.errors import ConfigError
from raysearch.export.targets import auto_round, compressed_tensors, gguf, onnx, openvino, packed, pt2
from raysearch.export.targets.capability import PROJECTION, projections_of
from raysearch.export.targets.target import Target
from raysearch.records import QuantizerSetup

_TARGETS: tuple[Target, ...] = (
    packed.PackedTarget(),
    onnx.OnnxTarget(),
    openvino.OpenVinoTarget(),
    pt2.Pt2Target(),
    compressed_tensors.CompressedTensorsTarget(),
    auto_round.AutoRoundTarget(),
    gguf.GgufTarget(),
)
TARGETS: Mapping[str, Target] = {target.name: target for target in _TARGETS}


def check_model(
    model: nn.Module, names: Sequence[str] | None, targets: Mapping[str, Target] = TARGETS
) -> None:
    """Refuse targets that hold no such model, before anything is said of where its quantizers would be.

    Args:
        model: the float model.
        names: names of targets; None is those that would be written by default, which hold all.
        targets: those there are.

    Raises:
        ConfigError: a target does not know the model.
    """
    for name in names or ():
        if name in targets and not targets[name].extra.missing():
            _check_known(targets[name], model)


def _check_known(target: Target, model: nn.Module) -> None:
    if reason := target.why_not(model):
        raise ConfigError(reason)


def check_targets(
    setup: QuantizerSetup,
    names: Sequence[str] | None,
    targets: Mapping[str, Target] = TARGETS,
    model: nn.Module | None = None,
) -> None:
    """Refuse targets that cannot hold what a search over a setup may find, before compute is spent.

    Args:
        setup: where quantizers are, and the widths they may take.
        names: names of targets; None is those that would be written by default.
        targets: those there are.
        model: the float model; None: what targets ask of it is not checked.

    Raises:
        ConfigError: a target is unknown, its packages are missing, or it does not hold a width, a mode, a
            granularity, a type or the model; names the quantizers or tensors.
    """
    if names is None:
        names = [target.name for target in _installed_defaults(setup)[0]]
    for name in names:
        if name not in targets:
            raise ConfigError(f"export.targets names '{name}'; known targets: {', '.join(targets)}.")
        target = targets[name]
        if missing := target.extra.missing():
            raise ConfigError(
                f"export.targets names '{name}', which needs {', '.join(missing)}; install them with "
                f"`{target.extra.command}`, or leave the target out."
            )
        if model is not None:
            _check_known(target, model)
        for words, quantizers in target.refusals(setup, model).items():
            listed = ", ".join(f"'{quantizer}'" for quantizer in quantizers[:3])
            more = f" and {len(quantizers) - 3} more" if len(quantizers) > 3 else ""
            raise ConfigError(
                f"the export target '{name}' does not hold {words}: {listed}{more}. Leave the target out of "
                f"export.targets, or change placement.profile, the widths of placement, an override, or the "
                f"type of a tensor."
            )


def choose_targets(names: Sequence[str] | None, setup: QuantizerSetup) -> tuple[list[Target], list[str]]:
    """The targets to write, in the order of `TARGETS`, and notes on those that are left out.

    Args:
        names: some of `TARGETS`; None is those written by default that hold the setup and whose packages are
            installed.
        setup: where quantizers are.

    Raises:
        ConfigError: a target is unknown, or none is named.
        ExportError: a named target's packages are missing.
    """
    if names is None:
        return _installed_defaults(setup)
    for name in names:
        if name not in TARGETS:
            raise ConfigError(f"the export target '{name}' is unknown; known: {', '.join(TARGETS)}.")
    if not names:
        raise ConfigError(f"no export target is named; known: {', '.join(TARGETS)}.")
    targets = [target for target in TARGETS.values() if target.name in names]
    for target in targets:
        target.extra.require(target.name)
    return targets, []


def _installed_defaults(setup: QuantizerSetup) -> tuple[list[Target], list[str]]:
    targets, notes = [], []
    for target in TARGETS.values():
        if not target.by_default:
            continue
        if not target.capability.holds_projections and (projections := projections_of(setup)):
            names = ", ".join(projections)
            notes.append(f"{target.name}: left out, since it does not hold {PROJECTION}: {names}.")
        elif missing := target.extra.missing():
            packages = ", ".join(missing)
            notes.append(
                f"{target.name}: left out, since {packages} is not installed ({target.extra.command})."
            )
        else:
            targets.append(target)
    return targets, notes
