import gc

from raysearch.evaluation.quiet import ALLOCATIONS, quiet


def test_garbage_is_looked_for_seldom_and_then_as_before():
    before = gc.get_threshold()
    with quiet():
        assert gc.get_threshold()[0] == ALLOCATIONS
    assert gc.get_threshold() == before


def test_switched_off_stays_off():
    before = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with quiet():
            assert gc.get_threshold()[0] == 0
        assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)
