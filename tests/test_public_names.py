import json
from pathlib import Path

import pytest

import raysearch
from raysearch.config import Config, Section

NAMES = [
    "BadInputError", "BitAssignment", "Config", "Job", "QuantizationController", "QuantizerSetup",
    "RaysearchError", "RunError", "RunResult", "RunStatus", "Task", "__version__", "create_compressed_model",
    "create_controller", "export_run", "inspect", "load_config", "load_model", "load_sensitivity",
    "load_task", "report", "resolve", "resolve_measured", "retrieve", "run", "status", "submit",
    "verify",
]  # fmt: skip


def test_the_public_names():
    assert raysearch.__all__ == NAMES
    assert dir(raysearch) == sorted(NAMES)
    for name in NAMES:
        assert getattr(raysearch, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = raysearch.nothing


def test_public_things_have_docstrings():
    assert not [n for n in NAMES if n != "__version__" and not getattr(raysearch, n).__doc__]


def flatten(section: Section, prefix: str = ""):
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from flatten(value, f"{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_setting_is_documented_with_its_default():
    rows = {}
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    table = page.split("| key | default | meaning |")[1].split("\n\n")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            rows[cells[0].strip("`")] = json.loads(cells[1].strip("`"))
    defaults = {key: json.loads(json.dumps(value)) for key, value in flatten(Config())}
    assert rows == defaults
