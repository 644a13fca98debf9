"""A run that quantizes weights and no activation, from placement to files that run."""

import pytest

import raysearch
from tests.support.command_line import QUICK
from tests.support.toy_task import make_untrained_task

CONFIG = raysearch.load_config(
    assignments=[*QUICK, "placement.activation_bit_widths=[]", 'export.targets=["packed", "onnx"]']
)


@pytest.mark.slow
def test_a_run_of_weights_alone_ends_with_files_that_run(tmp_path):
    result = raysearch.run(
        make_untrained_task(), "avg_bits<=3.5", tmp_path, config=CONFIG, run_id="run", workers=0
    )
    assert set(result.assignment) == {"conv.weight", "mix.weight", "head.weight"}
    assert result.costs["act_bits"] == 0
    assert not [note for note in result.notes if "activations" in note]
    checks = raysearch.load_run("run", tmp_path).verify()
    assert {check.target for check in checks.checks} >= {"onnx"}
