"""One model of the zoo through the whole walk, and its line of docs/models.md.

`python -m tests.zoo.walk` writes docs/models.md anew; with names of models after it, their lines alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from raysearch import api, load_model
from raysearch.config.loading import load_config
from raysearch.errors import BadInputError
from raysearch.export.outputs import tensor_leaves
from raysearch.task import Task
from tests.support.model_directories import save_tokenizer, words
from tests.zoo.entry import Entry, Inputs
from tests.zoo.zoo import ZOO

TABLE = Path(__file__).parents[2] / "docs" / "models.md"
HEADER = """# Models that were run

Tiny models with random weights, each through inspection, calibration, rounding, sensitivity, two trials and
export; every file is loaded again and compared. `tests/zoo/` runs them, and `python -m tests.zoo.walk` writes
this table; `make zoo` holds that all of it is current, `make test` that most of its kinds are.

Models of Hugging Face that are made by a function of `raysearch.huggingface` were saved to a directory first,
with a tokenizer of a dozen words (`docs/huggingface.md`).

| model | shows | made by | outcome | weights quantizable | float weights | verified files |
|---|---|---|---|---|---|---|
"""
SETTINGS: dict[str, dict[str, Any]] = {
    "search": {"num_trials": 2},
    "sensitivity": {"max_draws": 2},
    "rounding": {"refine_steps": 2},
    "calibration": {"num_samples": 8, "shard_size": 8},
    "validation": {"num_samples": 8, "shard_size": 8},
    "cluster": {"threads": 1},
}


OF_EVERY_TEST = frozenset({
    "resnet", "mobilenet_v2", "unet", "detector", "gru", "projected_lstm_onnx", "text", "graph", "two_inputs",
    "experts", "counted", "tied", "own_gradient", "own_operator", "checkpointed", "computed", "standardised",
    "llama_cached", "bert", "vit",
})  # fmt: skip
"""Those that `make test` walks, in about a minute; `make zoo` walks all.

What is not here is walked by another test too: bfloat16 in tests/flow/test_half_precision.py, Gemma 3 in
tests/export/targets/test_gguf.py, masked language models in tests/huggingface/.
"""


def chosen(entries: Mapping[str, Entry]) -> list[str]:
    """Names of the models that are walked: all where RAYSEARCH_ZOO is set to "all"."""
    if os.environ.get("RAYSEARCH_ZOO") == "all":
        return list(entries)
    return [name for name in entries if name in OF_EVERY_TEST]


def make_task(entry: Entry) -> Task:
    """The task of a model: eight samples, no labels, no training."""
    torch.manual_seed(0)
    model = entry.build().eval()
    if entry.kind:
        with tempfile.TemporaryDirectory() as folder:
            return _task_of_directory(entry, model, Path(folder))
    inputs = entry.inputs(8)
    by_name = isinstance(inputs, dict)
    data = [inputs] if by_name else TensorDataset(*inputs)
    several = not by_name and len(inputs) > 1
    forward = _run_all if several else None
    return Task(model, entry.inputs(2), calibration=data, validation=data, forward=forward)


def _task_of_directory(entry: Entry, model: Any, folder: Path) -> Task:
    """The task that the kind's function makes of the model and a tokenizer as they are saved."""
    from raysearch.huggingface.kinds import TASK_KINDS

    model.save_pretrained(folder)
    save_tokenizer(folder)
    if entry.kind == "image-classification":
        data: Any = list(entry.inputs(10)["pixel_values"])  # type: ignore[call-overload]
    elif entry.kind == "sequence-classification":
        data = [words(1 + index % 4, index) for index in range(10)]
    else:
        return TASK_KINDS[entry.kind](folder, words(90), window=6)
    return TASK_KINDS[entry.kind](folder, data)


def _call(model: torch.nn.Module, inputs: Inputs) -> object:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def _run_all(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> object:
    return model(*batch)


def walk(name: str, storage: Path) -> str:
    """Run a model and give its line of the table.

    A refusal must come before any compute: no folder of a run is made.
    """
    entry = ZOO[name]
    config = load_config(overrides={**SETTINGS, **entry.settings, "export": {"targets": entry.targets}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            task = make_task(entry)
            setup, _ = api.inspect(task, config)
            result = api.run(task, "avg_bits<=4", str(storage), config=config, run_id=name, workers=0)
        except BadInputError as error:
            if (storage / name).exists():
                raise RuntimeError(f"'{name}' was refused after compute") from error
            return _line(name, entry, f"refused: {_first_sentence(error)}", "", "", "")
        loaded = load_model(result.model_dir)
        batch = entry.inputs(3)
        with torch.no_grad():
            outputs = _call(task.model, batch)
            assert _shapes(_call(loaded, batch)) == _shapes(outputs)
    coverage = setup.coverage
    assert coverage is not None
    share = f"{coverage.num_quantizable / coverage.num_weights:.1%}"
    floating = "; ".join(f"`{weight.name}` ({weight.reason})" for weight in coverage.floating)
    return _line(name, entry, "runs", share, floating, ", ".join(entry.targets))


def _shapes(outputs: object) -> list[torch.Size]:
    return [tensor.shape for tensor in tensor_leaves(outputs)]


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ", 1)[0].replace("\n", " ").replace("|", "/")[:200]


def _line(name: str, entry: Entry, outcome: str, share: str, floating: str, files: str) -> str:
    maker = f"`{entry.kind.replace('-', '_')}_task`" if entry.kind else "`Task`"
    return f"| {name} | {entry.shows} | {maker} | {outcome} | {share} | {floating} | {files} |"


def lines_of(text: str) -> dict[str, str]:
    """Model → its line of the table."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| model ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def main(names: list[str]) -> None:
    """Write the table, or the lines of some models in it, and print the seconds of CPU that each took."""
    lines = lines_of(TABLE.read_text()) if names else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names or ZOO:
            start = time.process_time()
            lines[name] = walk(name, Path(folder))
            print(f"{time.process_time() - start:5.1f} s {lines[name]}", flush=True)
            TABLE.write_text(HEADER + "".join(f"{lines[each]}\n" for each in ZOO if each in lines))


if __name__ == "__main__":
    main(sys.argv[1:])
