"""What the search believes an assignment costs before it is measured.

| name | value of an assignment A |
|---|---|
| `response` | ½ Σ_{q,r∈A} K_qr, the full quadratic form of the measured responses |
| `hawq` | Σ_{q∈A} Ω_q, Ω = Σ trace·‖Q(W) − W‖² (HAWQ-V2, Dong et al. 2020) |
| `fisher` | the same, of traces of the empirical Fisher matrix (`sensitivity.estimator = "fisher"`) |
| `second-moment` | Σ_{q∈A} Σ trace·tr(ΔW H ΔWᵀ)/mean diag(H), H the inputs' second moments |
| `weight-error` | Σ_{q∈A} ‖Q(W) − W‖² |
| `single-loss` | Σ_{q∈A} the measured divergence of each option alone |

`hawq`, `fisher`, `second-moment` and `weight-error` know nothing of activations: there such an option
counts its response, in the unit of the others by the ratio of the two sums over all weight options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from raysearch.config.search import SurrogateName
from raysearch.errors import ConfigError, DataError, StorageError
from raysearch.records import OptionEffect, Scheme, SensitivityTable
from raysearch.records.low_rank import Gram, LowRank, diagonal
from raysearch.search.problem.space import FloatArray, IntArray, OptionSpace

_FIELDS = {
    "response": "response",
    "hawq": "omega",
    "fisher": "omega",
    "second-moment": "second_moment",
    "weight-error": "perturbation",
    "single-loss": "divergence",
}
_WEIGHTS_ONLY = ("hawq", "fisher", "second-moment", "weight-error")
"""Those that know nothing of activations."""

SURROGATES: tuple[str, ...] = get_args(SurrogateName)

_AT_ONCE = 4096
"""Assignments scored by one matrix product: its operands stay in the processor's cache."""


@dataclass(frozen=True)
class Surrogate:
    """A score of assignments, lower is better.

    Attributes:
        name: one of `SURROGATES`.
        space: the options.
        option_costs: [L, B], additive cost of each option; 0 where padded. For `response` the diagonal.
        gram: [P, P], K by flat index or its factor, 0 where padded; None when the score is additive.
    """

    name: str
    space: OptionSpace
    option_costs: FloatArray
    gram: Gram | None = None

    def predict(self, choices: IntArray) -> FloatArray:
        """Scores, shape [...], of choices [..., L].

        Work: L additions an assignment, or for `response` one product with K, P² multiplications.
        """
        if self.gram is None:
            additive: FloatArray = self.space.take(self.option_costs, choices).sum(axis=-1)
            return additive
        flat = self.space.flat(choices).reshape(-1, choices.shape[-1])
        scores = np.empty(len(flat))
        if isinstance(self.gram, LowRank):
            for index, options in enumerate(flat):
                total = self.gram.factor[options].sum(axis=0)
                scores[index] = 0.5 * float(total @ total)
            return scores.reshape(choices.shape[:-1])
        for start in range(0, len(flat), _AT_ONCE):
            piece = slice(start, start + _AT_ONCE)
            scores[piece] = self._quadratic(self.gram, flat[piece])
        return scores.reshape(choices.shape[:-1])

    @staticmethod
    def _quadratic(gram: FloatArray, flat: IntArray) -> FloatArray:
        chosen = np.zeros((len(flat), len(gram)))
        np.put_along_axis(chosen, flat, 1.0, axis=1)
        value: FloatArray = 0.5 * np.einsum("np,np->n", chosen @ gram, chosen)
        return value


def make_surrogate(name: str, table: SensitivityTable, space: OptionSpace) -> Surrogate:
    """The surrogate of a name, from a sensitivity table that covers the options.

    Args:
        name: one of `SURROGATES`.
        table: what every option does.
        space: the options.

    Raises:
        ConfigError: the name is unknown, or "fisher" is asked of traces that are not of the Fisher matrix.
        StorageError: the table lacks an option of the setup.
        DataError: a measurement that the surrogate needs is not finite.
    """
    if name not in _FIELDS:
        raise ConfigError(f"the surrogate '{name}' is unknown; known: {', '.join(SURROGATES)}.")
    if name == "fisher":
        _check_fisher(table)
    effects = [_effect(table, *option) for option in space.setup.options()]
    costs = np.zeros(space.valid.shape)
    costs[space.valid] = _scores(name, effects)
    gram = None
    if name == "response":
        gram = _by_flat_index(table, space)
        costs = 0.5 * diagonal(gram).reshape(space.valid.shape)
        if not _is_finite(gram):
            raise DataError("the responses hold values that are not finite; measure the sensitivity again.")
    return Surrogate(name, space, costs, gram)


def _by_flat_index(table: SensitivityTable, space: OptionSpace) -> Gram:
    """K by flat index, or its factor, 0 where padded; the table's own memory where it is that already."""
    options = space.setup.options()
    is_in_order = tuple(table.effects) == options
    if is_in_order and space.valid.all():
        return table.gram
    flat = np.flatnonzero(space.valid.ravel())
    order = {option: index for index, option in enumerate(table.effects)}
    rows = np.array([order[option] for option in options])
    if isinstance(table.gram, LowRank):
        factor = np.zeros((space.valid.size, table.gram.factor.shape[1]))
        factor[flat] = table.gram.factor[rows]
        return LowRank(factor)
    gram = np.zeros((space.valid.size, space.valid.size))
    # Row by row: all at once would take the memory of K once more.
    for place, row in zip(flat, rows, strict=True):
        gram[place, flat] = table.gram[row, rows]
    return gram


def _is_finite(gram: Gram) -> bool:
    rows = gram.factor if isinstance(gram, LowRank) else gram
    return all(bool(np.isfinite(row).all()) for row in rows)


def _check_fisher(table: SensitivityTable) -> None:
    estimators = {str(trace.estimator or "unknown") for trace in table.traces.values()}
    if estimators - {"fisher"}:
        raise ConfigError(
            f"the surrogate 'fisher' needs traces of the Fisher matrix, but these were measured by the "
            f"estimator '{', '.join(sorted(estimators))}'. Set sensitivity.estimator to 'fisher', or "
            f"search.surrogate to 'hawq', which takes the traces as they are."
        )


def _effect(table: SensitivityTable, group: str, scheme: Scheme) -> OptionEffect:
    if (group, scheme) not in table.effects:
        raise StorageError(
            f"the sensitivity table has no measurement of '{group}' at {scheme.in_words}: it belongs to "
            "another setup. Start the run anew."
        )
    return table.effects[group, scheme]


def _scores(name: str, effects: list[OptionEffect]) -> FloatArray:
    field = _FIELDS[name]
    scores = np.array([getattr(effect, field) for effect in effects], dtype=np.float64)
    for effect, score in zip(effects, scores, strict=True):
        if np.isnan(score) and name == "second-moment":
            raise DataError(
                f"the surrogate 'second-moment' needs what rounding learns of the layers' inputs; "
                f"nothing is known of '{effect.group}' at {effect.scheme.in_words}: its weights were rounded "
                f"to nearest, or by an earlier version, or no traces were measured. Set rounding.method to "
                f"'gptq' and start a run anew, or choose the surrogate 'hawq'."
            )
        if not np.isfinite(score):
            raise DataError(
                f"the {field} of '{effect.group}' at {effect.scheme.in_words} is {score}, so the surrogate "
                f"'{name}' cannot be used; choose another or measure the sensitivity again."
            )
    if name in _WEIGHTS_ONLY:
        response = np.array([effect.response for effect in effects], dtype=np.float64)
        weights = np.array([effect.kind == "weight" for effect in effects])
        total = float(response[weights].sum())
        unit = abs(float(scores[weights].sum())) / total if total > 0 else 1.0
        scores = np.where(weights, scores, unit * response)
    return scores
