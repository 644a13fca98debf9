"""What reads what in a network: its layers and the operations where their results meet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from raysearch.records.typed_json import Count


@dataclass(frozen=True)
class NetworkNode:
    """A layer, an input, or an operation that several of them meet in.

    Attributes:
        name: its module, and of what is no layer the operation.
        kind: "input", "layer", or the operation: "add", "cat", "matmul", …
        weights: parameters that a layer multiplies with.
        sources: places, in the network's order, of the nodes whose results it reads; all come before it.
    """

    name: str
    kind: str
    weights: tuple[str, ...] = ()
    sources: tuple[Count, ...] = ()

    @property
    def as_json(self) -> dict[str, Any]:
        """As setup.json has it."""
        entry: dict[str, Any] = {"name": self.name, "kind": self.kind, "sources": list(self.sources)}
        return entry | {"weights": list(self.weights)} if self.weights else entry


def check_network(nodes: Iterable[NetworkNode]) -> None:
    """Refuse a network whose nodes read what comes behind them.

    Raises:
        ValueError: names the node.
    """
    for place, node in enumerate(nodes):
        if any(not 0 <= source < place for source in node.sources):
            raise ValueError(f"the node '{node.name:.100}' of the network reads one that is not before it")
