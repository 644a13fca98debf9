"""What our samplers share: they set all groups at once, and never one alone."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from raysearch.search.problem.space import OptionSpace


def make_distributions(space: OptionSpace) -> dict[str, BaseDistribution]:
    """One categorical parameter a group, its choices the schemes as JSON has them."""
    distributions: dict[str, BaseDistribution] = {}
    for group in space.setup.groups.values():
        distributions[group.id] = CategoricalDistribution([scheme.as_json for scheme in group.schemes])
    return distributions


class WholeAssignmentSampler(BaseSampler):
    """A sampler that proposes a scheme for every group at once; `sample_relative` is what a sibling adds.

    Args:
        space: the options.
    """

    def __init__(self, space: OptionSpace) -> None:
        self._space = space

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All groups at once."""
        return make_distributions(self._space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: one group alone cannot be made feasible.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("pass all distributions to ask(): a group's scheme depends on all the others")
