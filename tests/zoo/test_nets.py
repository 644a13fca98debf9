"""Small nets of the zoo run to verified files or are refused before compute, as docs/models.md says."""

from __future__ import annotations

import pytest

from tests.zoo.nets import NETS
from tests.zoo.walk import TABLE, chosen, lines_of, walk
from tests.zoo.zoo import ZOO


def test_the_table_lists_the_zoo():
    assert list(lines_of(TABLE.read_text())) == list(ZOO)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", chosen(NETS))
def test_a_net_of_the_zoo(name, tmp_path):
    assert walk(name, tmp_path) == lines_of(TABLE.read_text())[name]
