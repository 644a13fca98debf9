"""Runs whose workers hold one block of the model at a time: what is refused before any compute."""

from __future__ import annotations

from functools import partial

import torch

from raysearch.blockwise import Chain, find_chain
from raysearch.blockwise.running import enter, leave, run_block
from raysearch.config import Config
from raysearch.config.estimators import NO_TRACES
from raysearch.errors import ConfigError, TaskError
from raysearch.evaluation import Batch, Objective
from raysearch.evaluation.batches import take
from raysearch.evaluation.forward import frozen_eval
from raysearch.records import QuantizerSetup
from raysearch.simulation import bits_of, repeated_blocks
from raysearch.task import Task

FEW_SAMPLES = 2
"""Samples that the chain is tried on."""


def check_block_settings(task: Task, setup: QuantizerSetup, config: Config) -> None:
    """Refuse what is not done block by block, all of it at once, where workers hold one block at a time.

    Args:
        task: the user's.
        setup: its quantizers.
        config: the settings.

    Raises:
        ConfigError: names each setting, with the value that goes.
    """
    if config.cluster.replica == "whole":
        return
    refusals = []
    if setup.of_kind("activation"):
        refusals.append("activations are quantized (placement.activation_bit_widths=[])")
    if config.sensitivity.estimator != NO_TRACES:
        refusals.append(f"traces are measured (sensitivity.estimator='{NO_TRACES}')")
    if config.rounding.guided:
        refusals.append("second moments are guided (rounding.guided=false)")
    if config.rounding.method != "nearest" and config.rounding.refine:
        refusals.append("the winner is refined (rounding.refine=[])")
    if task.train is not None and not config.training.is_off:
        refusals.append("the model is trained (training.epochs=0)")
    if refusals:
        raise ConfigError(
            f"cluster.replica is 'block', and what needs the whole model is asked for: "
            f"{'; '.join(refusals)}. Set what stands in brackets, or cluster.replica to 'whole'."
        )


def chain_of(task: Task, config: Config, objective: Objective, batch: Batch) -> Chain | None:
    """The chain where workers hold one block at a time; None where they hold the whole model.

    Args:
        task: with a model of raysearch's own.
        config: the settings.
        objective: says what is compared.
        batch: of the calibration data.
    """
    if config.cluster.replica == "whole":
        return None
    return checked_chain(task, objective, batch)


def checked_chain(task: Task, objective: Objective, batch: Batch) -> Chain:
    """The chain of a model's blocks, whose outputs part by part are those of the whole model.

    Costs three forwards of a few samples.

    Args:
        task: with a model of raysearch's own.
        objective: says what is compared.
        batch: of the calibration data.

    Raises:
        TaskError: the blocks are no chain, or the outputs differ in a bit.
    """
    model, few = task.model, take(batch, 0, FEW_SAMPLES)
    run = partial(task.run, model, few)
    blocks = repeated_blocks(model)
    names = [name for name, module in model.named_modules() if id(module) in blocks]
    with frozen_eval(model), torch.no_grad():
        chain = find_chain(model, names, run)
        expected = objective.judged(run(), few)
        entered = enter(model, chain, run)
        hidden = entered.hidden
        for index, arguments in enumerate(entered.arguments):
            hidden = run_block(model, chain, index, hidden, arguments)
        outputs = objective.judged(leave(model, chain, run, hidden), few)
    if bits_of(expected) != bits_of(outputs):
        raise TaskError(
            "cluster.replica is 'block', but the model gives other outputs when its blocks are run one by "
            "one: something between them depends on the values of the hidden state, or is drawn at random. "
            "Set cluster.replica to 'whole'."
        )
    return chain
