"""`raysearch.inspect`, as Python sees it."""

import pytest

import raysearch
from raysearch.errors import ConfigError
from tests.support.toy_task import make_untrained_task


def test_inspect_takes_the_settings_as_run_does():
    changes = {"placement": {"weight_bit_widths": [3, 5], "activation_bit_widths": []}}
    setup, costs = raysearch.inspect(make_untrained_task(), changes)
    assert {group.bit_widths for group in setup.groups.values()} == {(3, 5)}
    assert costs.lowest["avg_bits"] == 3
    with pytest.raises(ConfigError, match=r"placement\.weight_bit_widths"):
        raysearch.inspect(make_untrained_task(), {"placement": {"weight_bit_width": [3]}})
