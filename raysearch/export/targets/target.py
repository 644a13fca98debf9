"""What a target is: a kind of file that a stripped model is written as, and how that file is checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from raysearch.evaluation import Forward
from raysearch.evaluation.half_precision import widened_batch
from raysearch.export.extras import NO_EXTRA, Extra
from raysearch.export.stripped_model import StrippedModel, module_in_float32
from raysearch.export.targets.capability import Capability
from raysearch.export.verification.verify import (
    Reference,
    check_close,
    check_equal,
    compare,
    reference_outputs,
    references_of_size,
)
from raysearch.records import QuantizerSetup, TargetCheck

Product = TypeVar("Product")


@dataclass(frozen=True)
class ExportJob:
    """What every target of one export is written from.

    Attributes:
        model: the stripped model.
        folder: the model folder.
        source: "run_id" and "budget" of the run that the model is from, for config.json.
        products: what targets made that others may need; see `once`.
        graphs: what an earlier job captured of the same model, by target, and a place for what this one
            captures; None: nothing is handed on.
    """

    model: StrippedModel
    folder: Path
    source: Mapping[str, Any] = field(default_factory=dict)
    products: dict[str, Any] = field(default_factory=dict)
    graphs: dict[str, Any] | None = None

    def once(self, key: str, make: Callable[[], Product]) -> Product:
        """What several targets are made of, made for the first of them: to capture takes longest of all.

        Args:
            key: names it among the job's products.
            make: makes it.
        """
        if key not in self.products:
            self.products[key] = make()
        product: Product = self.products[key]
        return product


@dataclass(frozen=True)
class Written:
    """What a target says of the files it wrote.

    Attributes:
        fixed_batch: the only batch size that they take, or None when any will do.
        notes: statements for the manifest.
    """

    fixed_batch: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """What a target's file is compared with.

    Attributes:
        module: what gave the references: the stripped module, or a packed model of the same folder.
        references: its outputs on every batch.
        forward: (model, batch) → outputs.
    """

    module: nn.Module
    references: list[Reference]
    forward: Forward

    def in_float32(self) -> Verification:
        """The same with a module that computes in float32, for files that do; itself where it does."""
        module = module_in_float32(self.module)
        if module is self.module:
            return self
        batches = [widened_batch(reference.batch) for reference in self.references]
        return replace(self, module=module, references=reference_outputs(module, batches, self.forward))

    def of_size(self, batch_size: int) -> Verification:
        """The part that a file of a fixed batch size can be run on.

        Raises:
            ExportError: no batch has that size.
        """
        return replace(self, references=references_of_size(self.references, batch_size))


@dataclass(frozen=True)
class Verdict:
    """What a check found; a file that is wrong raises instead.

    Attributes:
        checks: the figures, one entry a runtime or mode that the file was run in.
        notes: what a user should know.
    """

    checks: tuple[TargetCheck, ...]
    notes: tuple[str, ...] = ()


class Target(ABC):
    """A kind of file. A new one is a subclass in a file of its own, listed in `registry.TARGETS`.

    A target says what it can hold, writes its files, and loads them back as a module in its own runtime,
    where they are compared with the stripped module.

    Attributes:
        name: what users call it.
        files: its files in a model folder, which has the target if it has the first; where it has a folder of
            its own those that are always there.
        capability: what it can hold.
        folder: a folder in the model folder that is the target's own; "": its files are the listed ones.
        extra: the packages that it needs.
        by_default: whether it is written where no target is named and its packages are installed.
        exact: whether a loaded file must equal the stripped module bit for bit. If not, it must stay within
            the tolerance of `verification.verify`.
        fixed_part: what of it may be bound to one batch size, as a word for notes.
    """

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    capability: ClassVar[Capability]
    folder: ClassVar[str] = ""
    extra: ClassVar[Extra] = NO_EXTRA
    by_default: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    fixed_part: ClassVar[str] = "file"

    def why_not(self, model: nn.Module) -> str:
        """Why it does not hold a model, whatever of it is quantized; "" where it may."""
        return ""

    def refusals(self, setup: QuantizerSetup, model: nn.Module | None = None) -> dict[str, list[str]]:
        """What of a setup or a model it does not hold: words → the quantizers or tensors they are said of.

        Args:
            setup: where quantizers are, and the schemes they may take.
            model: the model; None: what is asked of it is not known.
        """
        return self.capability.refusals(setup)

    def written_files(self, folder: Path) -> tuple[str, ...]:
        """The names of its files that a model folder has, relative to that."""
        if not self.folder:
            return self.files
        paths = sorted(path for path in (folder / self.folder).rglob("*") if path.is_file())
        return tuple(path.relative_to(folder).as_posix() for path in paths)

    @abstractmethod
    def write(self, job: ExportJob) -> Written:
        """Write the files into the job's folder.

        Raises:
            ExportError: the model cannot be written as this target.
        """

    @abstractmethod
    def load(self, folder: Path) -> nn.Module:
        """The files of a folder as a module that takes the arguments of the original and gives its outputs.

        Raises:
            StorageError: the files are damaged, or of another version.
        """

    def runtime(self, model: nn.Module) -> str:
        """Name and version of what runs a module of `load`."""
        return f"torch {torch.__version__}"

    def check(self, folder: Path, verification: Verification) -> Verdict:
        """Run the files and compare their outputs with the references.

        Raises:
            ExportError: they differ by more than the target may, or cannot run.
            StorageError: they cannot be loaded.
        """
        model = self.load(folder)
        references = verification.references
        check = compare(self.name, self.runtime(model), model, references, verification.forward)
        if self.exact:
            check_equal(check)
        else:
            check_close(check, references)
        return Verdict((check,))

    def latency(self, job: ExportJob) -> dict[str, float]:
        """Seconds of a forward of the written files and of what they are compared with; {} if it has none."""
        return {}
