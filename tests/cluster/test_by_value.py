import sys
from types import ModuleType

import pytest
from ray import cloudpickle

from raysearch.cluster import by_value, shipping


@pytest.fixture
def module(monkeypatch):
    module = ModuleType("only_here")
    exec("def answer():\n    return 42", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    yield module
    cloudpickle.unregister_pickle_by_value(module)


def test_a_module_that_was_registered_before_ray_came_is_shipped_as_code(module, monkeypatch):
    monkeypatch.delitem(sys.modules, "ray.cloudpickle")
    by_value.register_by_value(module)
    assert "only_here" not in cloudpickle.list_registry_pickle_by_value()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "only_here", module)
    shipment = shipping.dumps(module.answer)
    assert b"only_here" in shipment.payload
    assert "only_here" in cloudpickle.list_registry_pickle_by_value()
    monkeypatch.delitem(sys.modules, "only_here")
    assert shipping.loads(shipment)() == 42


def test_ray_is_told_at_once_where_it_is_there(module):
    by_value.register_by_value(module)
    assert "only_here" in cloudpickle.list_registry_pickle_by_value()
