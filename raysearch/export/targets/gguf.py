"""The GGUF target: a language model for llama.cpp, with a type for each tensor."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from raysearch.errors import ExportError
from raysearch.evaluation import Forward, batch_size, output_tensor
from raysearch.evaluation.forward import frozen_eval
from raysearch.export.gguf.file import read_model, write_gguf
from raysearch.export.gguf.kernels import RoundedInputs
from raysearch.export.gguf.packages import GGUF
from raysearch.export.gguf.runtime import Part
from raysearch.export.gguf.served_gguf import ServedGguf
from raysearch.export.targets.capability import Capability
from raysearch.export.targets.target import ExportJob, Target, Verdict, Verification, Written
from raysearch.export.verification.verify import Reference, reference_outputs
from raysearch.records import TargetCheck
from raysearch.records.block_types import BLOCK_TYPES

VERIFIED = Part(prompts=4, prefixes=32, tokens=4096)
"""What of the verification samples is compared: llama.cpp tells one token of one prefix at a time."""

ROUNDINGS = 3.0
"""How many times as far from the stripped module llama.cpp may be as its kernels' rounding puts that module.

Measured over four architectures and all types it is .8 to 1.0 times; of tiny models those with every weight
negated are off by 5.8 to 46 times, those with the rows of one weight moved by 31 and more.
"""


class GgufTarget(Target):
    """A GGUF file: weights in blocks of llama.cpp's types, metadata and tokenizer.

    The values that are read from it equal the stripped module's weights bit for bit. llama.cpp's kernels
    round what they multiply with, so log-probabilities may differ by what that rounding alone explains.
    """

    name = "gguf"
    files = ("model.gguf",)
    capability = Capability(
        {block_type.num_bits: block_type.num_bits for block_type in BLOCK_TYPES.values()},
        activations=(),
        weight_modes=("symmetric", "minimum"),
        block_types=tuple(BLOCK_TYPES),
    )
    extra = GGUF

    def why_not(self, model: nn.Module) -> str:
        """Why it does not hold a model: llama.cpp runs some, and reads some tokenizers."""
        try:
            read_model(model)
        except ExportError as error:
            return str(error)
        return ""

    def write(self, job: ExportJob) -> Written:
        """Write the file.

        Raises:
            ExportError: the model is no language model that llama.cpp runs, or a weight's scheme is no type
                of GGUF.
        """
        return Written(None, write_gguf(job.model, job.folder / self.files[0]))

    def load(self, folder: Path) -> ServedGguf:
        """The file in llama.cpp, in a fresh process; its logits are log-probabilities."""
        return ServedGguf(folder / self.files[0])

    def runtime(self, model: nn.Module) -> str:
        """Name and version of llama.cpp's wheel."""
        return f"xllamacpp {version('xllamacpp')}"

    def check(self, folder: Path, verification: Verification) -> Verdict:
        """Compare the next token's log-probabilities after every prefix of a few prompts.

        Raises:
            ExportError: they differ by more than `ROUNDINGS` allows, or cannot be computed.
            StorageError: the file cannot be loaded.
        """
        verification = verification.in_float32()
        model = ServedGguf(folder / self.files[0], VERIFIED)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for reference in verification.references:
            ours = reference.judged.double().log_softmax(-1)
            theirs = _log_probabilities(model, reference, verification.forward)
            if theirs.shape != ours.shape:
                raise ExportError(
                    f"the target 'gguf' gives outputs of shape {list(theirs.shape)}; the stripped module "
                    f"gives {list(ours.shape)}. It can be verified where the forward function returns the "
                    f"logits of all tokens."
                )
            is_computed = theirs.isfinite().any(-1)
            if is_computed.any():
                rounded = _with_rounded_inputs(verification, reference)
                parts.append((ours[is_computed], theirs[is_computed], rounded[is_computed]))
        ours, theirs, rounded = (torch.cat(values) for values in zip(*parts, strict=True))
        is_told = theirs.isfinite()
        difference = (ours - theirs).abs()[is_told]
        same = ours.argmax(-1) == theirs.nan_to_num(nan=-torch.inf).argmax(-1)
        num_samples = sum(batch_size(list(reference.tensors)) for reference in verification.references)
        check = TargetCheck(
            self.name,
            self.runtime(model),
            float(difference.max()),
            float(difference.mean()),
            float(same.double().mean()),
            min(num_samples, int(VERIFIED.prompts)),
        )
        _check_rounding_alone(check, float((ours - rounded).abs()[is_told].mean()))
        return Verdict((check,))


def _with_rounded_inputs(verification: Verification, reference: Reference) -> Tensor:
    """The log-probabilities of the stripped module, computed as llama.cpp's kernels compute them."""
    with RoundedInputs():
        (rounded,) = reference_outputs(verification.module, [reference.batch], verification.forward)
    return rounded.judged.double().log_softmax(-1)


def _check_rounding_alone(check: TargetCheck, rounding: float) -> None:
    """Refuse a file that differs by more than the rounding of its kernels.

    Raises:
        ExportError: states the difference, and what the rounding explains.
    """
    if not check.mean_abs_difference <= ROUNDINGS * rounding:
        raise ExportError(
            f"the target 'gguf' differs from the stripped module in {check.runtime}: log-probabilities by "
            f"{check.mean_abs_difference:.3g} in the mean (max {check.max_abs_difference:.3g}, agreement "
            f"{check.agreement:.4f}); allowed are {ROUNDINGS:g} times the {rounding:.3g} that rounding to 8 "
            f"bits in its kernels explains. Export without 'gguf', or report the model."
        )


def _log_probabilities(model: ServedGguf, reference: Reference, forward: Forward) -> Tensor:
    try:
        with frozen_eval(model), torch.no_grad():
            return output_tensor(forward(model, reference.batch)).double()
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the target 'gguf' cannot run a verification batch in llama.cpp: {error!r:.300}. If your "
            f"forward function needs more of the model than a call, change it."
        ) from error
