"""Families of transformers run to verified files, as docs/models.md says."""

from __future__ import annotations

import pytest

from tests.zoo.families import FAMILIES
from tests.zoo.walk import TABLE, chosen, lines_of, walk


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", chosen(FAMILIES))
def test_a_family_of_the_zoo(name, tmp_path):
    pytest.importorskip(FAMILIES[name].needs)
    assert walk(name, tmp_path) == lines_of(TABLE.read_text())[name]
