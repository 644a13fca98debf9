"""An ONNX file as a module, whatever runs it: the arguments and outputs of the network it was made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysearch.evaluation.half_precision import HALF
from raysearch.export.outputs import NamedOutputs, tensor_leaves
from raysearch.records.typed_json import read_json

Arrays = dict[str, npt.NDArray[np.generic]]
"""Arrays by the name of the value in the file that they are for."""

OUTPUT_KEY = "raysearch.outputs"
"""The file's metadata that names the outputs of a network that gives a dict, as a JSON list."""


class OnnxFileModule(nn.Module):
    """Runs an ONNX file; a runtime says how, by `run_arrays`.

    Args:
        runtime: name and version of what runs it.
        input_names: the file's inputs, in order.
        metadata: the file's.
        float_inputs: names of those inputs that are float32.

    Attributes:
        output_names: names of the outputs, where the network gives a dict.
        record: where set, it is called with the arrays of every call. A list on the module would be emptied
            again by `frozen_eval`, as what a forward leaves there.
    """

    def __init__(
        self,
        runtime: str,
        input_names: Sequence[str],
        metadata: Mapping[str, str],
        float_inputs: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.float_inputs = frozenset(float_inputs)
        self.runtime = runtime
        self.input_names = list(input_names)
        output_names = metadata.get(OUTPUT_KEY)
        self.output_names: list[str] | None = None
        if output_names:
            self.output_names = read_json(list[str], output_names, f"'{OUTPUT_KEY}' in the file's metadata")
        self.record: Callable[[Arrays], None] | None = None
        self.training = False

    @abstractmethod
    def run_arrays(self, feed: Arrays) -> list[npt.NDArray[np.generic]]:
        """Run the file: arrays by input name → outputs in the file's order, the caller's to keep."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the file on tensors, by position or by name.

        Returns:
            A tensor, a tuple of tensors, or the named outputs of the original.

        Raises:
            TypeError: an input is missing or unknown.
        """
        feed = self._feed(args, kwargs)
        if self.record is not None:
            self.record(feed)
        outputs = [torch.from_numpy(array) for array in self.run_arrays(feed)]
        if self.output_names is not None:
            return NamedOutputs(zip(self.output_names, outputs, strict=True))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _feed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arrays:
        positional = [leaf for value in args for leaf in tensor_leaves(value)]
        by_keyword = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
        names = self.input_names[: len(positional)]
        tensors = {**dict(zip(names, positional, strict=False)), **by_keyword}
        twice = set(names) & set(by_keyword)
        if len(positional) > len(names) or set(tensors) != set(self.input_names) or twice:
            raise TypeError(
                f"the ONNX file takes the tensors ({', '.join(self.input_names)}); {len(positional)} were "
                f"given by position and {sorted(by_keyword)} by keyword."
            )
        return {name: self._array(name, value) for name, value in tensors.items()}

    def _array(self, name: str, value: Tensor) -> npt.NDArray[np.generic]:
        # The file of a model in half precision takes float32.
        if name in self.float_inputs and value.dtype in HALF:
            value = value.float()
        array: npt.NDArray[np.generic] = value.detach().cpu().contiguous().numpy()
        return array
