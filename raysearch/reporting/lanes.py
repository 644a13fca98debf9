"""One lane a group: what was chosen, what it takes and costs, and what another step would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raysearch.records import (
    BitAssignment,
    CostModel,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    Scheme,
    SensitivityTable,
    Trace,
)
from raysearch.records.low_rank import diagonal, entry, row_sums
from raysearch.reporting.sensitivity_view import predicted_shares


@dataclass(frozen=True)
class Step:
    """Another scheme for one group, all others as they are.

    Attributes:
        scheme: the next one, up or down.
        cost: how much more the assignment costs.
        loss: how much more loss is predicted; None without measurements.
    """

    scheme: Scheme
    cost: float
    loss: float | None


@dataclass(frozen=True)
class Lane:
    """One group of quantizers.

    Attributes:
        group: its id.
        kind: "weight" or "activation".
        form: what it is, such as "weight 16×8×3×3".
        schemes: what it may take.
        scheme: what was chosen; None for float, or before anything was.
        input_scheme: of the activation that a weight meets; None where that is float.
        num_elements: weights, or values of one sample.
        shares: kind of cost → share of it.
        loss_share: share of the predicted loss.
        trace: the Hessian's, of a weight; None where none was measured.
        down: the next lower scheme.
        up: the next higher one.
    """

    group: str
    kind: str
    form: str
    schemes: tuple[Scheme, ...]
    scheme: Scheme | None
    input_scheme: Scheme | None
    num_elements: int
    shares: Mapping[str, float]
    loss_share: float | None
    trace: Trace | None
    down: Step | None
    up: Step | None


SHARES = ("size", "bops")
"""Costs of which a lane shows its share."""


def largest_shares(lanes: Sequence[Lane]) -> dict[str, float]:
    """Kind of cost, and "loss" → the largest share of a lane; 1 where there is none."""
    largest = {kind: max((lane.shares.get(kind, 0.0) for lane in lanes), default=0.0) for kind in SHARES}
    largest["loss"] = max((lane.loss_share or 0.0 for lane in lanes), default=0.0)
    return {kind: share or 1.0 for kind, share in largest.items()}


class LaneMaker:
    """Makes the lanes of a run.

    Args:
        setup: points and groups.
        assignment: what was chosen; None before the search has ended.
        table: what was measured; None before.
        cost: the kind of cost that a step is counted in.
    """

    def __init__(
        self,
        setup: QuantizerSetup,
        assignment: BitAssignment | None,
        table: SensitivityTable | None,
        cost: str,
    ) -> None:
        self._setup = setup
        self._table = table
        self._chosen: Mapping[str, Scheme] = {} if assignment is None else assignment.schemes
        self._model = CostModel(setup)
        self._per_point = {} if assignment is None else assignment.per_point(setup)
        self._loss_shares: Mapping[str, float] = {}
        self._shares: dict[str, Mapping[str, float]] = {}
        self._totals: dict[str, float] = {}
        if assignment is None:
            return
        self._formula = self._model.formula(cost)
        self._base = self._formula.of(self._per_point)
        # Of a plain sum only the terms of the group, and of what reads it, change.
        is_whole = len(self._per_point) == len(setup.points)
        self._is_sum = is_whole and len(self._formula.sums) == 1 and self._formula.dividend is None
        self._readers = self._points_by_group() if self._is_sum else {}
        self._shares = {kind: self._model.shares(kind, assignment) for kind in SHARES}
        self._totals = {kind: sum(shares.values()) for kind, shares in self._shares.items()}
        if table is not None:
            self._loss_shares = predicted_shares(table, assignment)
            self._rows = {option: row for row, option in enumerate(table.effects)}
            chosen = [self._rows[option] for option in self._chosen.items()]
            self._pull = row_sums(table.gram, chosen)
            self._own = diagonal(table.gram)

    def lanes(self) -> list[Lane]:
        """One of each group, in graph order."""
        return [self._lane(group) for group in self._setup.groups.values()]

    def _lane(self, group: QuantizerGroup) -> Lane:
        points = [self._setup.points[name] for name in group.points]
        first = points[0]
        traces = self._table.traces if self._table is not None else {}
        return Lane(
            group=group.id,
            kind=first.kind,
            form="×".join(map(str, first.shape)),
            schemes=group.schemes,
            scheme=self._chosen.get(group.id),
            input_scheme=self._per_point.get(first.input_point),
            num_elements=sum(point.num_elements for point in points),
            shares={kind: self._share(kind, group.id) for kind in self._shares},
            loss_share=self._loss_shares.get(group.id),
            trace=traces.get(first.id),
            down=self._step(group, -1),
            up=self._step(group, 1),
        )

    def _points_by_group(self) -> dict[str, list[QuantizationPoint]]:
        """Group → the points of the cost whose term depends on it."""
        group_of = {point: group.id for group in self._setup.groups.values() for point in group.points}
        readers: dict[str, list[QuantizationPoint]] = {name: [] for name in self._setup.groups}
        for point in self._formula.sums[0].points:
            names = dict.fromkeys([group_of[point.id], group_of.get(point.input_point, "")])
            for name in names:
                if name:
                    readers[name].append(point)
        return readers

    def _share(self, kind: str, group: str) -> float:
        total = self._totals[kind]
        return self._shares[kind].get(group, 0.0) / total if total else 0.0

    def _difference(self, group: QuantizerGroup, schemes: Mapping[str, Scheme]) -> float:
        """What an assignment that differs in one group costs more."""
        if not self._is_sum:
            return self._formula.of(schemes) - self._base
        (part,) = self._formula.sums
        changed = replace(part, points=tuple(self._readers[group.id]), constant=0, exact=None)
        difference = changed.use(schemes) - changed.use(self._per_point)
        return difference / self._formula.divisor

    def _step(self, group: QuantizerGroup, direction: int) -> Step | None:
        """What the neighbouring scheme would change; None where there is none.

        ΔL = K_r·a − K_q·a + ½ (K_qq + K_rr − 2 K_qr), a the chosen options, from q to r.
        """
        scheme = self._chosen.get(group.id)
        if scheme is None:
            return None
        place = group.schemes.index(scheme) + direction
        if not 0 <= place < len(group.schemes):
            return None
        other = group.schemes[place]
        schemes = {**self._per_point, **dict.fromkeys(group.points, other)}
        cost = self._difference(group, schemes)
        if self._table is None:
            return Step(other, cost, None)
        q, r = self._rows[group.id, scheme], self._rows[group.id, other]
        squares = self._own[q] + self._own[r] - 2 * entry(self._table.gram, q, r)
        loss = self._pull[r] - self._pull[q] + squares / 2
        return Step(other, cost, float(loss))
