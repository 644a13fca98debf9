"""A run that chooses among schemes, from placement to a file that runs and a run that goes on."""

from __future__ import annotations

import pytest

import raysearch
from raysearch.artifacts import codecs, resolve_run
from raysearch.errors import StorageError
from tests.support.command_line import QUICK
from tests.support.toy_task import make_untrained_task

SETTINGS = [
    *QUICK,
    'placement.weight_schemes=["2g16a", "3g16", "4", "8"]',
    "training.epochs=0",
    'export.targets=["packed"]',
]
CONFIG = raysearch.load_config(assignments=SETTINGS)


def run(storage, budget="bpw<=9", config=CONFIG, **options):
    options = {"workers": 0, **options}
    return raysearch.run(make_untrained_task(), budget, storage, config=config, run_id="run", **options)


@pytest.mark.slow
def test_a_run_of_schemes_ends_with_files_that_run_and_goes_on_from_its_records(tmp_path):
    result = run(tmp_path)
    store = resolve_run("run", tmp_path)
    setup = store.load(codecs.SETUP)
    schemes = {str(scheme) for group in setup.groups.values() for scheme in group.schemes}
    assert schemes >= {"2g16a", "3g16", "4", "8"}
    assert result.costs["bpw"] <= 9
    raysearch.BitAssignment(result.assignment).check(setup)
    assert raysearch.load_model(result.model_dir) is not None
    checks = raysearch.load_run("run", tmp_path).verify()
    assert {check.target for check in checks.checks} >= {"packed"}
    assert (tmp_path / "run" / "report.html").exists()
    tighter = raysearch.load_run("run", tmp_path).resolve("bpw<=7")
    assert tighter.costs["bpw"] <= 7

    for name in ("best.json", "result.json"):
        (tmp_path / "run" / name).unlink()
    again = run(tmp_path, resume=True)
    assert again.assignment == result.assignment
    other = raysearch.load_config(assignments=[*SETTINGS, 'placement.weight_schemes=["2g16a", "8"]'])
    with pytest.raises(StorageError, match=r"placement\.weight_schemes"):
        run(tmp_path, config=other, resume=True)
