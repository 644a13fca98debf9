"""The ONNX target: a QDQ model for onnxruntime, whose weights are stored as integer codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raysearch.export.onnx_qdq.file_module import Arrays
from raysearch.export.onnx_qdq.floats import float_again
from raysearch.export.onnx_qdq.packages import ONNX
from raysearch.export.onnx_qdq.proto import finish, write_model
from raysearch.export.onnx_qdq.session import OnnxModel
from raysearch.export.targets.capability import EVERY_WIDTH, Capability
from raysearch.export.targets.qdq_target import QdqTarget, captured
from raysearch.export.targets.target import ExportJob, Verdict, Verification
from raysearch.export.timing.paired import paired_seconds
from raysearch.export.verification.code_flips import count_flips
from raysearch.export.verification.verify import check_close, check_flips, compare, describe, within_tolerance
from raysearch.export.verification.worst_layer import compare_layers, tell_worst
from raysearch.temporary import scratch_folder


class OnnxTarget(QdqTarget):
    """An ONNX file of opset 21, or 25 where it holds INT2.

    Weights are initializers of codes with DequantizeLinear: INT2, INT4, INT8, or a bit stream at 3, 5, 6
    and 7 bits, decoded by functions that onnxruntime folds at load. Activations are QuantizeLinear and
    DequantizeLinear in a uint8 container at every width. BatchNorm goes into scales and biases. The batch
    dimension is open where the model allows it. Quantizers keep their ids as names of QuantizeLinear nodes.
    """

    name = "onnx"
    files = ("model.onnx",)
    capability = Capability({width: width for width in EVERY_WIDTH}, holds_projections=False)
    extra = ONNX
    by_default = True
    for_onnxruntime = True

    def load(self, folder: Path) -> OnnxModel:
        """The file in onnxruntime, as it runs it by default."""
        return OnnxModel(folder / self.files[0])

    def check(self, folder: Path, verification: Verification) -> Verdict:
        """The file as it says (optimizations off) must be close; as onnxruntime runs it, flips are judged.

        Integer kernels round differently, and a network amplifies a flip: outputs that are beyond the
        tolerance in that second check are noted, not refused. Where the first is not close, the file's layers
        are compared with those of the module that gave the references.

        Work: four forwards a batch.

        Raises:
            ExportError: the file is not close, kernels are wrong, or the extra is missing.
            StorageError: onnxruntime cannot load it.
        """
        verification = verification.in_float32()
        path, forward = folder / self.files[0], verification.forward
        references = verification.references
        model = OnnxModel(path, optimized=False)
        feeds: list[Arrays] = []
        model.record = feeds.append
        plain = compare(self.name, model.runtime, model, references, forward)

        def where() -> str:
            batches = [reference.batch for reference in references]
            return tell_worst(compare_layers(path, verification.module, batches, feeds, forward))

        check_close(plain, references, where)
        fused_model = self.load(folder)
        fused = compare(self.name, fused_model.runtime, fused_model, references, forward)
        fused = replace(fused, layers=count_flips(path, feeds))
        notes = []
        if note := check_flips(fused):
            notes.append(f"{self.name}: {note}")
        if not within_tolerance(fused, references):
            notes.append(f"{self.name}: {describe(fused, references)}.")
        return Verdict((plain, fused), tuple(notes))

    def latency(self, job: ExportJob) -> dict[str, float]:
        """CPU seconds of the file, and of the same network in float, one thread each."""
        path = job.folder / self.files[0]
        model = OnnxModel(path)
        feeds: list[Arrays] = []
        model.record = feeds.append
        stripped = job.model.in_float32
        model(*stripped.example_inputs)
        in_float = captured(job)[0].clone()
        float_again(in_float, stripped.weights.values(), stripped.quantizers)
        with scratch_folder() as scratch:
            float_path = scratch / self.files[0]
            write_model(finish(in_float, {}), float_path)
            return paired_seconds({"onnx": path, "float": float_path}, feeds[0])
