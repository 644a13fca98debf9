"""The language model of transformers inside a module: its configuration, and the directory it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from raysearch.errors import ExportError


@dataclass(frozen=True)
class LanguageModel:
    """What a file says of a model besides its tensors.

    Attributes:
        prefix: of its parameters' names in the module, with the dot; "" where it is the module itself.
        config: its configuration as transformers has it, by name.
        directory: that it was loaded from, with its tokenizer; None where there is none.
    """

    prefix: str
    config: Mapping[str, Any]
    directory: Path | None

    @classmethod
    def of(cls, module: nn.Module) -> LanguageModel:
        """The outermost causal language model of a module.

        Raises:
            ExportError: the module holds none.
        """
        for name, part in module.named_modules():
            config: Any = getattr(part, "config", None)
            has_head = isinstance(getattr(part, "lm_head", None), nn.Module)
            if has_head and hasattr(config, "model_type") and hasattr(config, "to_dict"):
                place = str(getattr(part, "name_or_path", "") or "")
                directory = Path(place) if place and Path(place).is_dir() else None
                return cls(f"{name}." if name else "", config.to_dict(), directory)
        raise ExportError(
            f"the target 'gguf' writes causal language models of transformers, and {type(module).__name__} "
            f"holds none. Leave 'gguf' out of export.targets."
        )
