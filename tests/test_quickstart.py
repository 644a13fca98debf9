"""Every task of the quick start is one that can be placed."""

import re
from pathlib import Path

import pytest

import raysearch

PAGE = Path(__file__).parents[1] / "docs" / "quickstart.md"
BLOCKS = re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize(("kind", "code"), BLOCKS, ids=[kind for kind, _ in BLOCKS])
def test_the_task_of_a_kind_of_model(kind, code):
    names: dict[str, object] = {}
    exec(code, names)
    setup, costs = raysearch.inspect(names["make_task"]())
    assert len(setup.of_kind("weight")) >= 2
    assert costs.lowest["avg_bits"] < 4


def test_there_is_one_of_each_kind():
    assert len(BLOCKS) == 4
