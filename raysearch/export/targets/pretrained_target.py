"""What targets have in common that are directories of `from_pretrained`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raysearch.controller import StrippedWeight
from raysearch.errors import ExportError
from raysearch.evaluation.half_precision import HALF
from raysearch.export.pretrained.directory import float_tensors, write_directory
from raysearch.export.pretrained.served_directory import ServedDirectory
from raysearch.export.targets.target import ExportJob, Target, Verdict, Verification, Written
from raysearch.export.verification.verify import compare, outputs_range
from raysearch.hooks.locations import module_of
from raysearch.records import BitAssignment, QuantizationPoint, QuantizerGroup, QuantizerSetup, Scheme


class PretrainedTarget(Target):
    """A directory with config.json and model.safetensors that the model's own class loads.

    Only linear layers of a `PreTrainedModel` are quantized in it, weights alone. It is verified in a process
    of its own that has seen nothing but the directory.

    Attributes:
        tolerance: greatest difference of an output, as a share of the outputs' range.
    """

    tolerance: ClassVar[float]
    fixed_part: ClassVar[str] = "directory"

    @abstractmethod
    def quantization_config(self, weights: Mapping[str, StrippedWeight], model: nn.Module) -> dict[str, Any]:
        """`quantization_config` of config.json.

        Args:
            weights: module name → its integer weight.
            model: the stripped module.
        """

    @abstractmethod
    def tensors_of(self, weight: StrippedWeight) -> dict[str, Tensor]:
        """What stands in the place of a module's `weight`, by the names beside the module's."""

    @abstractmethod
    def own_refusal(self, point: QuantizationPoint, dtype: torch.dtype) -> str:
        """What of `refusal` is this target's own; scales lie along the inputs, in groups that divide them.

        Args:
            point: the weight as a scheme has it.
            dtype: of the float weight.
        """

    def refusal(self, point: QuantizationPoint, dtype: torch.dtype) -> str:
        """What of a linear layer's weight it does not hold besides its capability, as words; "" when all.

        Args:
            point: the weight as a scheme has it.
            dtype: of the float weight.
        """
        granularity = point.granularity.normalized(point.shape)
        if granularity.axis != 0:
            return f"scales {granularity}"
        size = granularity.group_size
        if size is not None and point.shape[1] % size:
            return f"groups of {size} that do not divide {point.shape[1]} inputs"
        if point.grid_spec.mode == "symmetric" and point.grid_spec.signed is not True:
            return "symmetric weights whose codes may have no sign"
        return self.own_refusal(point, dtype)

    def refusals(self, setup: QuantizerSetup, model: nn.Module | None = None) -> dict[str, list[str]]:
        """What of a setup or a model it does not hold: words → what they are said of."""
        refused = super().refusals(setup, model)
        if model is None:
            return refused
        if words := _not_pretrained(model):
            refused.setdefault(words, []).append(type(model).__name__)
        for group in setup.groups.values():
            for name in group.points:
                point = setup.points[name]
                if point.kind == "weight":
                    for words in self._refusals_of(model, point, group.schemes):
                        refused.setdefault(words, []).append(name)
        return refused

    def write(self, job: ExportJob) -> Written:
        """Write the directory.

        Raises:
            ExportError: it does not hold the model, or a weight as it was quantized.
        """
        model = job.model
        chosen = _chosen_alone(model.setup, model.assignment)
        for words, names in self.refusals(chosen, model.module).items():
            raise ExportError(f"the target '{self.name}' does not hold {words}: '{names[0]}'.")
        weights = {name.removesuffix(".weight"): weight for name, weight in model.weights.items()}
        tensors = float_tensors(model.module)
        for module, weight in weights.items():
            tensors |= {f"{module}.{part}": value for part, value in self.tensors_of(weight).items()}
        notes = write_directory(
            model.module,
            job.folder / self.folder,
            tensors,
            self.quantization_config(weights, model.module),
        )
        return Written(None, tuple(f"{self.name}: {note}" for note in notes))

    def load(self, folder: Path) -> nn.Module:
        """The directory in a fresh process."""
        return ServedDirectory(folder / self.folder)

    def runtime(self, model: nn.Module) -> str:
        """transformers, and what reads its weights."""
        return ", ".join(f"{name} {version(name)}" for name in ("transformers", self.extra.name))

    def check(self, folder: Path, verification: Verification) -> Verdict:
        """Run the directory in a fresh process; both sides compute in float, so that they must be close.

        Raises:
            ExportError: an output differs by more than `tolerance`.
            StorageError: the directory cannot be loaded.
        """
        model = self.load(folder)
        references = verification.references
        check = compare(self.name, self.runtime(model), model, references, verification.forward)
        allowed = self._tolerance(verification) * outputs_range(references)
        if not check.max_abs_difference <= allowed:
            raise ExportError(
                f"the target '{self.name}' differs from the stripped module in {check.runtime} by up to "
                f"{check.max_abs_difference:.3g} (mean {check.mean_abs_difference:.3g}); allowed are "
                f"{allowed:.3g}. Export without it, or report the model."
            )
        return Verdict((check,))

    def _tolerance(self, verification: Verification) -> float:
        """In half precision other kernels, and buffers that were cast, may change the last digit."""
        state = verification.module.state_dict().values()
        steps = [torch.finfo(value.dtype).eps for value in state if value.dtype in HALF]
        return max([self.tolerance, *(4 * step for step in steps)])

    def _refusals_of(
        self, model: nn.Module, point: QuantizationPoint, schemes: tuple[Scheme, ...]
    ) -> list[str]:
        module = module_of(model, point.sites[0])
        if len(point.sites) > 1:
            return ["a quantized weight that several modules share, as tied heads do"]
        if not isinstance(module, nn.Linear):
            return [f"quantized weights of {_kind_of(module)} (it holds those of Linear)"]
        dtype = getattr(module, point.sites[0].name).dtype
        effective = [point.at(scheme) for scheme in schemes]
        words = [self.refusal(each, dtype) for each in effective]
        return list(dict.fromkeys(filter(None, words)))


def _kind_of(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")


def _not_pretrained(model: nn.Module) -> str:
    import transformers

    if not isinstance(model, transformers.PreTrainedModel):
        return "models that are no PreTrainedModel of transformers"
    if not hasattr(transformers, type(model).__name__):
        return "models of a class that transformers does not bring"
    return ""


def _chosen_alone(setup: QuantizerSetup, assignment: BitAssignment) -> QuantizerSetup:
    """The setup with no scheme but those of an assignment."""
    groups: dict[str, QuantizerGroup] = {}
    for name, group in setup.groups.items():
        schemes = [assignment.schemes[name]] if name in assignment.schemes else []
        groups[name] = QuantizerGroup(name, group.points, schemes)
    return replace(setup, groups=groups)
