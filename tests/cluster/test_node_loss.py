import json
import os
import subprocess
import sys

import pytest

from tests.support.patience import HANG_SECONDS


@pytest.mark.ray
@pytest.mark.slow
def test_workers_are_spread_over_nodes_of_which_one_may_be_lost_and_share_gpus() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.lose_a_node"],
        env=environment | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FACTS ")] or [done.stderr]
    facts = json.loads(line.removeprefix("FACTS "))
    assert facts["nodes"] == 2, "SPREAD puts one of two workers on each node"
    assert 0 < facts["removed_after"] < facts["units"], "the node was lost while units were running"
    assert facts["replaced"] >= 1
    assert facts["is_equal"]
    assert (facts["sharing_workers"], facts["their_gpus"]) == (2, ["0"]), "two halves of one GPU"
