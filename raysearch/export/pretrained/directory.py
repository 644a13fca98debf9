"""What a directory of `from_pretrained` holds besides the weights that are quantized."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from raysearch.artifacts import Storage
from raysearch.export.file_names import CONFIG, WEIGHTS
from raysearch.quantizer import Quantizer
from raysearch.records.typed_json import parsed

_COPIED = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
    "*.tiktoken", "tekken.json", "chat_template*", "chat_templates", "preprocessor_config.json",
    "processor_config.json", "image_processor_config.json", "video_preprocessor_config.json",
    "generation_config.json",
)  # fmt: skip
"""What tells text and images of a model; no weights, and no code."""


def float_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything that a stripped model saves and that is no integer weight, tied tensors once.

    Args:
        model: the stripped module.
    """
    quantizers = [name for name, module in model.named_modules() if isinstance(module, Quantizer)]
    tensors: dict[str, Tensor] = {}
    places: set[tuple[int, int]] = set()
    for name, value in model.state_dict().items():
        if ".parametrizations." in name or any(name.startswith(f"{owner}.") for owner in quantizers):
            continue
        place = (value.data_ptr(), value.numel())
        # What has no elements has no place either.
        if value.numel() and place in places:
            continue
        places.add(place)
        tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors


def float_linears(model: nn.Module) -> list[str]:
    """Names of the linear layers whose weights stay float."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not hasattr(module, "parametrizations")
    ]


def source_of(model: Any) -> Path | None:
    """The local directory that a model was loaded from; None where there is none."""
    for name in (model.config.name_or_path, getattr(model, "name_or_path", "")):
        if name and (Path(name) / CONFIG).is_file():
            return Path(name)
    return None


def write_directory(
    model: Any, folder: Path, tensors: Mapping[str, Tensor], quantization: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write configuration, tensors, and copies of what stands beside the weights where the model came from.

    Args:
        model: the stripped model of transformers.
        folder: made if it is not there.
        tensors: name → tensor.
        quantization: `quantization_config` of config.json.

    Returns:
        Statements on what could not be copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = source_of(model)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    # The type in which it is read; a model that was cast has another one than its configuration says.
    config.dtype = model.dtype
    config.quantization_config = dict(quantization)
    if source is not None:
        _put_cache_back(config, source)
    storage = Storage(folder)
    storage.write_bytes(WEIGHTS, save(dict(tensors), metadata={"format": "pt"}))
    storage.write_bytes(CONFIG, config.to_json_string().encode())
    copied = [] if source is None else _copy_beside(source, folder)
    if "generation_config.json" not in copied and model.can_generate():
        storage.write_bytes("generation_config.json", model.generation_config.to_json_string().encode())
    if any(name.startswith(("tokenizer", "vocab")) or name.endswith(".model") for name in copied):
        return ()
    where = "the model came from no local directory" if source is None else f"{source} holds none"
    return (f"no tokenizer was copied: {where}.",)


def _copy_beside(source: Path, folder: Path) -> list[str]:
    """Copy files and folders of `_COPIED`; gives their names."""
    paths = sorted({path for pattern in _COPIED for path in source.glob(pattern)})
    for path in paths:
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / path.name)
    return [path.name for path in paths]


def _put_cache_back(config: Any, source: Path) -> None:
    """A model is captured without its cache of keys and values; who generates with it wants the cache."""
    earlier = parsed((source / CONFIG).read_bytes())
    for values, part in ((earlier, config), (earlier.get("text_config"), config.get_text_config())):
        if isinstance(values, dict) and hasattr(part, "use_cache"):
            part.use_cache = bool(values.get("use_cache", getattr(type(part)(), "use_cache", True)))
