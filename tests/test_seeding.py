import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysearch.seeding import derive_seed


@pytest.mark.process
def test_a_seed_is_the_same_in_every_process():
    code = "from raysearch.seeding import derive_seed; print(derive_seed(0, 'traces', 'conv.weight', 3, 1))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == derive_seed(0, "traces", "conv.weight", 3, 1) == 7915872970285572396


@given(st.integers(0, 2**63), st.text(), st.lists(st.integers() | st.text()))
def test_seeds_are_63_bit_and_depend_on_every_part(seed, stage, key):
    found = derive_seed(seed, stage, *key)
    assert 0 <= found < 2**63
    assert found != derive_seed(seed + 1, stage, *key)
    assert found != derive_seed(seed, stage + "x", *key)
    assert found != derive_seed(seed, stage, *key, 0)
