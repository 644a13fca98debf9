"""Setups whose weights may take schemes of several granularities and modes."""

from __future__ import annotations

from hypothesis import strategies as st

from raysearch.records import (
    Granularity,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    Scheme,
    Site,
    StoredTensor,
)

SCHEMES = ("2", "2g16a", "3", "3a", "3g8", "3g16a", "4", "4g8a", "4g32", "8", "8g4a")


@st.composite
def scheme_setups(draw: st.DrawFn, max_layers: int = 3) -> QuantizerSetup:
    """Layers with weights of one to two members, some fed by an activation; the packed file may be known."""
    points: dict[str, QuantizationPoint] = {}
    groups: dict[str, QuantizerGroup] = {}
    lists = st.lists(st.sampled_from(SCHEMES), min_size=1, max_size=4, unique=True)
    for index in range(draw(st.integers(1, max_layers))):
        source = ""
        if draw(st.booleans()):
            source = f"x{index}"
            points[source] = QuantizationPoint(source, "activation", (Site(source, "input"),), (5,))
            groups[source] = QuantizerGroup(source, (source,), draw(st.sampled_from([(8,), (4, 8)])))
        names = tuple(f"w{index}.{part}" for part in range(draw(st.integers(1, 2))))
        for name in names:
            shape = (draw(st.integers(1, 40)), draw(st.sampled_from([4, 16, 32, 60, 67])))
            site = Site(name, "parameter", "weight")
            rows = Granularity.per_channel()
            points[name] = QuantizationPoint(name, "weight", (site,), shape, rows, 7 * shape[0], source)
        groups[names[0]] = QuantizerGroup(names[0], names, sorted(map(Scheme.of, draw(lists))))
    others = (StoredTensor("norm.bias", "F32", (9,), 36), StoredTensor("steps", "I64", (), 8))
    return QuantizerSetup(points, groups, stored=draw(st.sampled_from([None, others])))


def with_schemes(setup: QuantizerSetup, *schemes: str) -> QuantizerSetup:
    """The setup with these schemes, ascending, for each of its weights."""
    groups = dict(setup.groups)
    for name, group in groups.items():
        if setup.group_kind(name) == "weight":
            groups[name] = QuantizerGroup(name, group.points, map(Scheme.of, schemes))
    return QuantizerSetup(setup.points, groups)
