"""The GGUF target: a language model for llama.cpp, with a type for each tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from raysearch.errors import ConfigError, ExportError
from raysearch.evaluation import Forward, batch_size, output_tensor
from raysearch.evaluation.forward import frozen_eval
from raysearch.export.gguf.file import read_model, write_gguf
from raysearch.export.gguf.packages import GGUF
from raysearch.export.gguf.runtime import GgufModel, Part
from raysearch.export.targets.capability import Capability
from raysearch.export.targets.target import ExportJob, Target, Verdict, Verification, Written
from raysearch.export.verification.verify import Reference, check_close
from raysearch.records import QuantizerSetup, TargetCheck
from raysearch.records.block_types import SCHEME_TYPES

VERIFIED = Part(prompts=4, prefixes=32, tokens=4096)
"""What of the verification samples is compared: llama.cpp tells one token of one prefix at a time."""


class GgufTarget(Target):
    """A GGUF file: weights in blocks of llama.cpp's types, metadata and tokenizer.

    The values that are read from it equal the stripped module's weights bit for bit. llama.cpp's kernels
    round what they multiply with, so log-probabilities are compared within the tolerance.
    """

    name = "gguf"
    files = ("model.gguf",)
    capability = Capability(
        {block_type.num_bits: block_type.num_bits for block_type in SCHEME_TYPES.values()},
        activations=(),
        weight_modes=("symmetric",),
        block_types=tuple(SCHEME_TYPES),
    )
    extra = GGUF

    def refusals(self, setup: QuantizerSetup, model: nn.Module | None = None) -> dict[str, list[str]]:
        """What of a setup it does not hold.

        Raises:
            ConfigError: the model is none that llama.cpp runs, or its tokenizer none that it reads.
        """
        if model is not None:
            try:
                read_model(model)
            except ExportError as error:
                raise ConfigError(str(error)) from error
        return super().refusals(setup, model)

    def write(self, job: ExportJob) -> Written:
        """Write the file.

        Raises:
            ExportError: the model is no language model that llama.cpp runs, or a weight's scheme is no type
                of GGUF.
        """
        return Written(None, write_gguf(job.model, job.folder / self.files[0]))

    def load(self, folder: Path) -> GgufModel:
        """The file in llama.cpp; its logits are log-probabilities."""
        return GgufModel(folder / self.files[0])

    def runtime(self, model: nn.Module) -> str:
        """Name and version of llama.cpp's wheel."""
        assert isinstance(model, GgufModel)
        return model.runtime

    def check(self, folder: Path, verification: Verification) -> Verdict:
        """Compare the next token's log-probabilities after every prefix of a few prompts.

        Raises:
            ExportError: they differ by more than another runtime's may, or cannot be computed.
            StorageError: the file cannot be loaded.
        """
        verification = verification.in_float32()
        model = GgufModel(folder / self.files[0], VERIFIED)
        expected: list[Tensor] = []
        computed: list[Tensor] = []
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
            expected.append(ours[is_computed])
            computed.append(theirs[is_computed])
        ours, theirs = torch.cat(expected), torch.cat(computed)
        difference = (ours - theirs).abs()[theirs.isfinite()]
        same = ours.argmax(-1) == theirs.nan_to_num(nan=-torch.inf).argmax(-1)
        num_samples = sum(batch_size(list(reference.tensors)) for reference in verification.references)
        check = TargetCheck(
            self.name,
            model.runtime,
            float(difference.max()),
            float(difference.mean()),
            float(same.double().mean()),
            min(num_samples, int(VERIFIED.prompts)),
        )
        check_close(check, [Reference(None, (ours,), ours)])
        return Verdict((check,))


def _log_probabilities(model: GgufModel, reference: Reference, forward: Forward) -> Tensor:
    try:
        with frozen_eval(model), torch.no_grad():
            return output_tensor(forward(model, reference.batch)).double()
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the target 'gguf' cannot run a verification batch in {model.runtime}: {error!r:.300}. If your "
            f"forward function needs more of the model than a call, change it."
        ) from error
