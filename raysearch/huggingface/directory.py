"""A directory as `save_pretrained` writes it: looked at, then loaded by `transformers`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from raysearch.errors import TaskError
from raysearch.records.typed_json import parsed

EXTRA = 'pip install "raysearch[huggingface]"'
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
"""A file that holds the vocabulary of a tokenizer."""
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_PACKAGES = ("transformers", "tokenizers", "safetensors")


@dataclass(frozen=True)
class ModelDirectory:
    """A local Hugging Face directory, found to hold a model that may be loaded.

    Attributes:
        path: holds config.json and the weights.
        trust_remote_code: whether Python files in it may be run.
        allow_pickle: whether weights may be read from pickle files; loading takes plain tensors alone.

    Raises:
        TaskError: there is no such directory, its configuration or its weights are missing, they cannot be
            read without what was not allowed, or a package is missing.
    """

    path: Path
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(os.path.expanduser(self.path)))
        _check_packages()
        if not self.path.is_dir():
            raise TaskError(
                f"the model directory '{self.path}' does not exist; nothing is downloaded, so give a "
                f"directory as `save_pretrained` writes it, with config.json and model.safetensors."
            )
        self._check_config()
        self._check_weights()

    @property
    def config(self) -> dict[str, Any]:
        """What stands in config.json."""
        return dict(parsed((self.path / "config.json").read_bytes()))

    def load_model(self, auto_class: str) -> nn.Module:
        """The model in eval mode, without its cache of keys and values.

        Args:
            auto_class: of `transformers`, such as "AutoModelForCausalLM".

        Raises:
            TaskError: `transformers` does not know the architecture, or not for this task, or the weights do
                not fit it.
        """
        import transformers

        self._check_direction(auto_class)
        loader = getattr(transformers, auto_class)
        with _quiet():
            try:
                model, report = loader.from_pretrained(
                    self.path,
                    local_files_only=True,
                    trust_remote_code=self.trust_remote_code,
                    use_safetensors=None if self.allow_pickle else True,
                    output_loading_info=True,
                )
            except Exception as error:
                raise TaskError(self._refusal(auto_class, error)) from error
        self._check_complete(auto_class, report)
        _switch_cache_off(model)
        loaded: nn.Module = model.eval()
        return loaded

    def load_tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            TaskError: there is none, or it cannot be read.
        """
        return self._load_beside("AutoTokenizer", "tokenizer", _TOKENIZERS)

    def load_image_processor(self) -> Any:
        """What makes pixels of images.

        Raises:
            TaskError: there is none, or it cannot be read.
        """
        instead = ", or give pixels as the model takes them"
        return self._load_beside("AutoImageProcessor", "image processor", _PROCESSORS, instead)

    def _load_beside(self, auto_class: str, what: str, files: tuple[str, ...], instead: str = "") -> Any:
        """What lies beside the model in one of some files.

        Args:
            auto_class: of `transformers`.
            what: its name, for messages.
            files: any of them holds it.
            instead: what else a user may do where there is none, behind what to write.
        """
        if not any((self.path / name).is_file() for name in files):
            raise TaskError(
                f"the model directory '{self.path}' holds no {what} (looked for {', '.join(files)}); write "
                f"it there with its `save_pretrained('{self.path}')`{instead}."
            )
        import transformers

        loader = getattr(transformers, auto_class)
        with _quiet():
            try:
                return loader.from_pretrained(
                    self.path, local_files_only=True, trust_remote_code=self.trust_remote_code
                )
            except Exception as error:
                raise TaskError(
                    f"the {what} in '{self.path}' cannot be loaded: {type(error).__name__}: "
                    f"{_first_line(error)}. Write it anew with `save_pretrained`."
                ) from error

    def _check_config(self) -> None:
        file = self.path / "config.json"
        if not file.is_file():
            raise TaskError(
                f"the model directory '{self.path}' holds no config.json; give a directory as "
                f"`model.save_pretrained` writes it."
            )
        try:
            config = parsed(file.read_bytes())
        except (ValueError, OSError) as error:
            raise TaskError(f"'{file}' cannot be read: {error}.") from error
        if not isinstance(config, dict):
            raise TaskError(f"'{file}' holds a {type(config).__name__}; it must hold a mapping.")
        if config.get("auto_map") and not self.trust_remote_code:
            raise TaskError(
                f"the model in '{self.path}' brings Python code of its own ('auto_map' in config.json), "
                f"which loading would run. Read it, then allow it by trust_remote_code=True "
                f"(--with trust_remote_code=true)."
            )
        if config.get("quantization_config"):
            method = config["quantization_config"].get("quant_method", "unknown")
            raise TaskError(
                f"the model in '{self.path}' is quantized already ('quant_method': '{method}' in "
                f"config.json); give the float model that it was made of."
            )

    def _check_direction(self, auto_class: str) -> None:
        """Refuse a masked model as a causal one, which `transformers` would load."""
        names = self.config.get("architectures") or []
        masked = [name for name in names if str(name).endswith("ForMaskedLM")]
        if masked and auto_class == "AutoModelForCausalLM":
            raise TaskError(
                f"the model in '{self.path}' is a {masked[0]}, which reads the tokens that a causal language "
                f"model predicts; choose masked_lm_task (--task masked-lm)."
            )

    def _check_weights(self) -> None:
        if any(self.path.glob("*.safetensors")):
            return
        pickled = sorted({file.name for pattern in _PICKLED for file in self.path.glob(pattern)})
        if not pickled:
            raise TaskError(
                f"the model directory '{self.path}' holds no weights (looked for *.safetensors); write them "
                f"there with `model.save_pretrained('{self.path}')`."
            )
        if not self.allow_pickle:
            raise TaskError(
                f"the weights in '{self.path}' are pickle files ({', '.join(pickled)}), which can hold more "
                f"than tensors. Write them anew as safetensors with `model.save_pretrained`, or allow them "
                f"by allow_pickle=True (--with allow_pickle=true)."
            )

    def _refusal(self, auto_class: str, error: Exception) -> str:
        kind = self.config.get("model_type", "none")
        if isinstance(error, ValueError | KeyError) and (
            "Unrecognized" in str(error) or "does not recognize" in str(error)
        ):
            return (
                f"the model in '{self.path}' has the model_type '{kind}', which transformers "
                f"{_version()} does not know as {auto_class}. Choose another task, or update transformers."
            )
        return (
            f"the model in '{self.path}' (model_type '{kind}') cannot be loaded as {auto_class}: "
            f"{type(error).__name__}: {_first_line(error)}."
        )

    def _check_complete(self, auto_class: str, report: dict[str, Any]) -> None:
        """Refuse what would be random, as the head is of a model that was saved without it."""
        lacking = sorted(report["missing_keys"])
        misfits = sorted(str(entry) for entry in report["mismatched_keys"])
        if lacking or misfits:
            raise TaskError(
                f"the weights in '{self.path}' do not make a whole {auto_class}: "
                f"{', '.join([*lacking, *misfits][:5])} would be random. Give the directory of a model that "
                f"was saved with them, or choose the task that it was trained for."
            )


def _check_packages() -> None:
    lacking = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise TaskError(f"models of Hugging Face need {', '.join(lacking)}; install them with `{EXTRA}`.")


def _switch_cache_off(model: Any) -> None:
    """On the loaded model's own configuration: a cache is there for the next call, and none follows."""
    model.config.use_cache = False
    text_config = model.config.get_text_config()
    if text_config is not model.config:
        text_config.use_cache = False


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars and remarks of `transformers`, whose settings are put back."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")[:300]


def _version() -> str:
    from importlib.metadata import version

    return version("transformers")
