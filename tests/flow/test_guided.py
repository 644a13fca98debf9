"""A run whose rounding is guided by gradients, and the same run after its rounding was lost."""

import pytest

import raysearch
from raysearch.artifacts import resolve_run
from raysearch.cluster.pool import LocalPool
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.stages import load_ranges, make_ranges, make_replica
from tests.support import toy_task
from tests.support.command_line import QUICK

SHORT = [
    *QUICK,
    "training.epochs=0",
    "search.num_trials=1",
    "rounding.refine=[]",
    'export.targets=["packed"]',
]
GUIDED = [*SHORT, "rounding.guided=true"]


def rounded_alone(*changes):
    """The digest of what rounding gives with some settings changed, without a run."""
    config = raysearch.load_config(assignments=[*GUIDED, *changes])
    inputs = check_inputs(toy_task.make_task(), config, ["avg_bits<=3.5"])
    return make_ranges(inputs, LocalPool(make_replica(inputs, []).place())).digest()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_a_lost_rounding_is_drawn_again_to_the_same_bits(tmp_path):
    config = raysearch.load_config(assignments=GUIDED)
    options = {"config": config, "run_id": "run", "workers": 0}
    raysearch.run(toy_task.make_task(), "avg_bits<=3.5", tmp_path, **options)
    codes = tmp_path / "run" / "rounding.safetensors"
    before = codes.read_bytes()
    for name in ("rounding.safetensors", "result.json"):
        (tmp_path / "run" / name).write_bytes(b"")
    raysearch.run(toy_task.make_task(), "avg_bits<=3.5", tmp_path, resume=True, **options)
    assert codes.read_bytes() == before
    digest = load_ranges(resolve_run("run", tmp_path)).digest()
    assert rounded_alone() == digest
    assert rounded_alone("seed=1") != digest
    assert rounded_alone("rounding.guided=false") != digest
