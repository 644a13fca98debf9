"""Whatever a person types or gives: settings, NNCF's configuration, budgets, scopes, names of runs, files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysearch.artifacts import RunStore, resolve_run
from raysearch.compression.nncf_config import read_nncf_config
from raysearch.config import Config, load_config
from raysearch.placement.scopes import match
from raysearch.records import parse_budgets, parse_max_drop
from raysearch.search import check_budgets
from raysearch.task import load_task
from tests.chaos.given_files import GIVEN, GivenFiles
from tests.chaos.mutations import damaged_json, damaged_text, damaged_value
from tests.chaos.tally import Tally

SETTINGS = [
    f"{section}.{key}"
    for section, field in Config.model_fields.items()
    for key in getattr(field.annotation, "model_fields", {})
]
KEYS = (
    *SETTINGS, "seed", "placement.pins.conv", "placement.overrides.conv.bits", "placement.overrides.conv",
    "calibration.overrides.conv", "placement.pins", "search.enqueue", "objective.output_weights.0",
)  # fmt: skip
VALUES = (
    "0", "1", "-1", "1e400", "nan", "inf", "true", '""', '"x"', "[]", "[1]", "[[]]", "{}", "{a=1}",
    "9" * 5000, "99999999999999999999", "1979-05-27", "07:32:00", "[" * 3000, '"\\ud800"', "x.y:z",
    "[2,3,4,8]", "1_000",
    "0x10", "-0.0", "'a'", '{"a.b"=8}', "\0", "1\n[search]\nx=1", "[{}]", "[{a=4}]", "/dev/null", ".", "=",
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-16", "utf-32", "latin-1", "cp1252")

NNCF = {
    "input_info": {"sample_size": [1, 1, 6, 6], "type": "float", "filler": "ones"},
    "target_device": "TRIAL",
    "compression": {
        "algorithm": "quantization",
        "preset": "mixed",
        "overflow_fix": "disable",
        "initializer": {
            "range": {"num_init_samples": 16, "type": "percentile", "params": {"min_percentile": 0.1}},
            "precision": {"type": "hawq", "bits": [4, 8], "compression_ratio": 1.5},
            "batchnorm_adaptation": {"num_bn_adaptation_samples": 16},
        },
        "weights": {"bits": 8, "mode": "symmetric", "per_channel": True, "signed": True},
        "activations": {"bits": 8, "mode": "asymmetric", "logarithm_scale": False},
        "scope_overrides": {
            "weights": {"conv": {"bits": 4, "mode": "symmetric"}},
            "activations": {"{re}mix.*": {"bits": 8}},
        },
        "ignored_scopes": ["ToyNet/Conv2d[mix]/conv2d_0"],
        "target_scopes": ["{re}.*"],
        "params": {"activations_quant_start_epoch": 1},
    },
}

KINDS = ("avg_bits", "act_bits", "size", "bops", "effective", "activation_memory", "latency", "bits", "SIZE")
UNITS = ("", "%", "KiB", "B", "kB", "G", "M", "x", "ms", "s", "us", "µs", "T", "GiB")
NUMBERS = (
    "4", "3.5", ".5", "0", "-1", "1e3", "1e308", "1e309", "1e-320", "0.0000001", "100", "5.", "١٢", "1_000",
    "0x10", "9" * 350,
)  # fmt: skip
SCOPES = (
    "blocks.1.linear", "blocks.*.linear.input", "re:conv|mix", "re:^(mix|head)\\.", "*", "*.input", "[a-z]*",
    "re:(a+)+$", "re:(?P<x>", "re:\\", "", "re:", "re:(?i)CONV", "re:" + "(" * 150, "re:(.*)*x", "re:(a|a)*b",
    "re:(a|aa)+$", "re:.*.*.*.*.*.*.*.*x", "re:(a{1,90}){1,90}b",
    "re:" + "a?" * 30 + "a" * 30,
)  # fmt: skip
NAMES = (
    "run", "../x", "a/b", ".hid", "-x", "a" * 129, "a" * 128, "", "con", "r\n", "é", "a\0b", "s3://x/y",
    "file:///x", "~", "a..b", "%2e", "C:\\x", "file://host/x", "http://x/y?z=1", "s3://", "gs://a", "mem://x",
    "/", "//", "/dev/null", "a\udcff/b", "~nobody/x", "\udcff",
)  # fmt: skip
TASKS = (
    "task.py:make", "a.b:c", "C:\\x\\task.py:make", "x:y:z", "task.py", ":", "os:getcwd", "math:pi", "é.py:f",
    "raysearch.huggingface.by_name:make_task?model=x&data=a:b&kind=causal-lm", "os:getcwd?a=1", "a\0.py:f",
    "/dev/null:f", "/:f", "..:f", ".py:f", "sys:exit",
)  # fmt: skip
DROPS = ("accuracy=0.01", "accuracy=1%", "loss=0.05", "divergence=1%", "=1", "a=b=2%", "x=1e999", "x=-1")


class Texts(GivenFiles):
    """Draws texts and has them read; each method takes one draw and gives what was read how.

    Args:
        scratch: a folder for files.
    """

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        points = [*self._setup.points.values()]
        self._points = [
            *points,
            replace(points[0], id="a" * 120 + "!", sites=()),
            replace(points[0], id="." * 200),
        ]

    def set_option(self, draw: random.Random) -> tuple[str, Callable[[], Any]]:
        """`--set section.key=value`, one or two of them."""
        texts = [self._assignment(draw) for _ in range(draw.choice((1, 1, 2)))]
        return repr(texts), lambda: load_config(assignments=texts)

    def toml_file(self, draw: random.Random) -> tuple[str, Callable[[], Any]]:
        """A file of settings, in one encoding or another."""
        lines = [self._assignment(draw), "[search]", "num_trials = 4", "# größe"]
        data = damaged_text("\n".join(lines), draw).encode(draw.choice(ENCODINGS), "replace")
        path = self._scratch / "settings.toml"
        path.write_bytes(data)
        return repr(data), lambda: load_config(path)

    def nncf_mapping(self, draw: random.Random) -> tuple[str, Callable[[], Any]]:
        """NNCF's configuration as a mapping."""
        value = damaged_value(NNCF, draw)
        return repr(value), lambda: read_nncf_config(value)

    def nncf_file(self, draw: random.Random) -> tuple[str, Callable[[], Any]]:
        """The same as a file."""
        path = self._scratch / "nncf.json"
        data = damaged_json(json.dumps(NNCF).encode(), draw)
        path.write_bytes(data)
        return repr(data[:200]), lambda: read_nncf_config(path)

    def budget(self, draw: random.Random) -> tuple[str, Callable[[], Any]]:
        """Budgets, and whether they can be met."""
        parts = (KINDS, ("<=", ">=", "≤", "=", "<", " <= "), NUMBERS, UNITS)
        texts = []
        for _ in range(draw.choice((1, 1, 2))):
            text = "".join(draw.choice(choices) for choices in parts)
            texts.append(damaged_text(text, draw) if draw.random() < 0.7 else text)
        return repr(texts), lambda: check_budgets(parse_budgets(texts), self._setup)

    def max_drop(self, draw: random.Random) -> tuple[str, Callable[[], Any]]:
        """How much a metric may get worse."""
        text = damaged_text(draw.choice(DROPS), draw)
        return repr(text), lambda: parse_max_drop(text)

    def scope(self, draw: random.Random) -> tuple[str, Callable[[], Any]]:
        """A pattern for the names of layers."""
        text = damaged_text(draw.choice(SCOPES), draw)
        return repr(text), lambda: match(text, self._points, "placement.ignored_scopes")

    def run_name(self, draw: random.Random) -> tuple[str, Callable[[], Any]]:
        """A run and a storage; stores that are elsewhere are not reached."""
        run = damaged_text(draw.choice(NAMES), draw)
        storage = draw.choice((None, str(self._scratch), "", damaged_text(draw.choice(NAMES), draw)))
        is_remote = any(text and "://" in text and not text.startswith("file:") for text in (run, storage))
        if is_remote or draw.random() < 0.5:
            return repr((run, storage)), lambda: RunStore(storage or self._scratch, run)
        return repr((run, storage)), lambda: resolve_run(run, storage)

    def task_name(self, draw: random.Random) -> tuple[str, Callable[[], Any]]:
        """The name of a task's factory."""
        text = draw.choice(TASKS)
        if draw.random() < 0.7:
            text = damaged_text(text, draw)
        return repr(text), lambda: load_task(text)

    def _assignment(self, draw: random.Random) -> str:
        key = draw.choice(KEYS)
        if draw.random() < 0.3:
            key = damaged_text(key, draw)
        value = draw.choice(VALUES)
        return f"{key}={damaged_text(value, draw) if draw.random() < 0.5 else value}"


INPUTS = (
    "set_option", "toml_file", "nncf_mapping", "nncf_file", "budget", "max_drop", "scope", "run_name",
    "task_name", *GIVEN,
)  # fmt: skip
"""The methods of `Texts` that draw an input."""


def fuzz_texts(tally: Tally, count: int, seed: int, scratch: Path, kinds: Sequence[str] = INPUTS) -> None:
    """Have every kind of text read.

    Args:
        tally: counts what came of it.
        count: texts of each kind.
        seed: of the draws.
        scratch: an empty folder.
        kinds: of INPUTS.
    """
    texts = Texts(scratch)
    for kind in kinds:
        make = getattr(texts, kind)
        for number in range(count):
            shown, action = make(random.Random(f"{kind}/{seed}/{number}"))
            tally.take(kind, f"{seed}/{number} {shown}", action)
