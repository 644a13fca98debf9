"""Connected components: what is joined, directly or through others."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def connected_components(
    nodes: Iterable[Node], pairs: Iterable[tuple[Node, Node]]
) -> tuple[tuple[Node, ...], ...]:
    """The components of an undirected graph.

    Union-find with path halving: near-linear in nodes and pairs.

    Returns:
        The members of every component in the order of `nodes`; components in the order of their first member.

    Raises:
        KeyError: a pair names what is no node.

    Example:
        >>> connected_components("abcd", [("d", "b"), ("b", "b")])
        (('a',), ('b', 'd'), ('c',))
    """
    parent = {node: node for node in nodes}

    def root_of(node: Node) -> Node:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in pairs:
        root_a, root_b = root_of(a), root_of(b)
        parent[root_b] = root_a
    members: dict[Node, list[Node]] = {}
    for node in parent:
        members.setdefault(root_of(node), []).append(node)
    return tuple(map(tuple, members.values()))
