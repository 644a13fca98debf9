"""The only maker of seeds: one seed for one (run seed, stage, unit key)."""

from hashlib import blake2b


def derive_seed(run_seed: int, stage: str, *key: object) -> int:
    """A 63-bit seed that depends on nothing but its arguments.

    Python's own `hash` is salted per process and numpy's spawning depends on the order of calls, so
    neither gives the same draw after a resume or on another worker.

    Args:
        run_seed: the seed the user set.
        stage: name of the stage that draws.
        *key: the unit's key: strings and numbers, whose `repr` is stable.

    Returns:
        An integer in [0, 2**63).

    Example:
        >>> derive_seed(0, "traces", "conv1.weight", 3) == derive_seed(0, "traces", "conv1.weight", 3)
        True
        >>> derive_seed(0, "traces", "conv1.weight", 3) == derive_seed(1, "traces", "conv1.weight", 3)
        False
    """
    text = repr((int(run_seed), stage, *key)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") & (2**63 - 1)
