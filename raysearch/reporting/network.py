"""The network as a graph: a line a node, with rails at the left for results that are still to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raysearch.records import NetworkNode, QuantizerSetup
from raysearch.reporting.lanes import Lane

COLUMN, LINE = 14, 22
"""Pixels between two rails, and between two nodes."""


@dataclass(frozen=True)
class DrawnNode:
    """One line of the drawing.

    Attributes:
        label: the node's name.
        kind: of the node.
        column: its rail.
        lanes: places of the lanes of its weights.
    """

    label: str
    kind: str
    column: int
    lanes: tuple[int, ...]

    @property
    def x(self) -> float:
        """Of its centre."""
        return _x(self.column)


@dataclass(frozen=True)
class Drawing:
    """A network that was laid out.

    Attributes:
        nodes: from the inputs down.
        path: all rails, as the data of an SVG path.
        num_columns: rails side by side.
    """

    nodes: tuple[DrawnNode, ...]
    path: str
    num_columns: int

    @property
    def width(self) -> int:
        """Pixels that the rails take."""
        return self.num_columns * COLUMN

    @property
    def height(self) -> int:
        """Pixels of all lines."""
        return len(self.nodes) * LINE


def draw_network(setup: QuantizerSetup, lanes: Sequence[Lane]) -> Drawing | None:
    """Lay out the network of a setup; None where it is not known, or nothing reads anything.

    Args:
        setup: the network, and the groups of its weights.
        lanes: of the report, one a group.
    """
    network = _read(setup.network)
    if len(network) < 2:
        return None
    places = {lane.group: place for place, lane in enumerate(lanes)}
    groups = {point: group.id for group in setup.groups.values() for point in group.points}
    columns, path = _lay_out(network)
    nodes = []
    for node, column in zip(network, columns, strict=True):
        own = [groups[weight] for weight in node.weights if weight in groups]
        label = node.name if node.kind == "layer" else f"{node.kind} {node.name}".strip()
        nodes.append(
            DrawnNode(label, node.kind, column, tuple(places[group] for group in dict.fromkeys(own)))
        )
    return Drawing(tuple(nodes), path, 1 + max(columns))


def _read(network: Sequence[NetworkNode]) -> list[NetworkNode]:
    """The nodes without inputs that no layer reads."""
    read = {source for node in network for source in node.sources}
    places: dict[int, int] = {}
    nodes: list[NetworkNode] = []
    for place, node in enumerate(network):
        if node.kind == "input" and place not in read:
            continue
        places[place] = len(nodes)
        sources = tuple(places[source] for source in node.sources)
        nodes.append(NetworkNode(node.name, node.kind, node.weights, sources))
    return nodes


def _lay_out(network: Sequence[NetworkNode]) -> tuple[list[int], str]:
    """The rail of each node, and the path of all rails."""
    readers = [0] * len(network)
    for node in network:
        for source in node.sources:
            readers[source] += 1
    columns: list[int] = []
    live: dict[int, int] = {}
    pieces: list[str] = []
    for place, node in enumerate(network):
        before = dict(live)
        for source in node.sources:
            readers[source] -= 1
            if not readers[source]:
                del live[source]
        column = _free_column(before, live)
        columns.append(column)
        pieces += [_piece(before[source], column, place) for source in node.sources]
        pieces += [_piece(rail, rail, place) for source, rail in before.items() if source in live]
        if readers[place]:
            live[place] = column
    return columns, "".join(pieces)


def _free_column(before: dict[int, int], live: dict[int, int]) -> int:
    """The first rail that a node may take: one that ends in it, else one that nothing is on."""
    taken = set(live.values())
    ended = sorted(set(before.values()) - taken)
    if ended:
        return ended[0]
    return next(column for column in range(len(taken) + 1) if column not in taken)


def _piece(start: int, end: int, place: int) -> str:
    """A rail from the line before a node to the node's own."""
    top, bottom = _y(place - 1), _y(place)
    if start == end:
        return f"M{_x(start):g} {top:g}V{bottom:g}"
    middle = (top + bottom) / 2
    return f"M{_x(start):g} {top:g}C{_x(start):g} {middle:g} {_x(end):g} {middle:g} {_x(end):g} {bottom:g}"


def _x(column: int) -> float:
    return (column + 0.5) * COLUMN


def _y(place: int) -> float:
    return (place + 0.5) * LINE
