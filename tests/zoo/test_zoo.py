"""Every model of the zoo runs to verified files or is refused before compute, as docs/models.md says."""

from __future__ import annotations

import pytest

from tests.zoo.walk import TABLE, lines_of, walk
from tests.zoo.zoo import ZOO


def test_the_table_lists_the_zoo():
    assert list(lines_of(TABLE.read_text())) == list(ZOO)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ZOO)
def test_a_model_of_the_zoo(name, tmp_path):
    if ZOO[name].needs:
        pytest.importorskip(ZOO[name].needs)
    assert walk(name, tmp_path) == lines_of(TABLE.read_text())[name]
