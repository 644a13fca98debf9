import subprocess
import sys

import pytest

from raysearch.cluster.pool import LocalPool
from tests.contracts.pool_contract import MakePool, PoolContract


class TestLocalPool(PoolContract):
    @pytest.fixture
    def make_pool(self) -> MakePool:
        return LocalPool


@pytest.mark.process
def test_the_protocol_needs_no_ray():
    code = "import sys, raysearch.cluster.pool, raysearch.cluster.resuming; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
