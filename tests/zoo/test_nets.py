"""Small nets of the zoo run to verified files or are refused before compute, as docs/models.md says.

Thirds, since pytest-xdist gives a class to one process.
"""

from __future__ import annotations

import pytest

from tests.zoo.nets import NETS
from tests.zoo.walk import TABLE, chosen, lines_of, walk
from tests.zoo.zoo import ZOO

NAMES = chosen(NETS)


def test_the_table_lists_the_zoo():
    assert list(lines_of(TABLE.read_text())) == list(ZOO)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
class Nets:
    def test_a_net_of_the_zoo(self, name, tmp_path):
        assert walk(name, tmp_path) == lines_of(TABLE.read_text())[name]


@pytest.mark.parametrize("name", NAMES[0::3])
class TestFirstThird(Nets):
    pass


@pytest.mark.parametrize("name", NAMES[1::3])
class TestSecondThird(Nets):
    pass


@pytest.mark.parametrize("name", NAMES[2::3])
class TestLastThird(Nets):
    pass
