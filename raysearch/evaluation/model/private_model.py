"""A model of raysearch's own, made of the user's: plain, copied, and run once."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from raysearch.determinism import GeneratorStates
from raysearch.errors import CaptureError, TaskError
from raysearch.evaluation.batches import host_copy, tensors_of
from raysearch.evaluation.calls.call_form import exportable
from raysearch.evaluation.model.copies import private_copy
from raysearch.evaluation.model.model_state import CHANGING, find_changing_buffers
from raysearch.evaluation.model.plain_weights import make_plain_weights
from raysearch.evaluation.model.unregistered import warn_of_unregistered

_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel, AveragedModel or what torch.compile made.

    Example:
        >>> unwrapped(nn.DataParallel(nn.Linear(2, 2)))
        Linear(in_features=2, out_features=2, bias=True)
    """
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def refuse_compiled(model: nn.Module) -> None:
    """Refuse what torch.jit compiled, by its name in the model.

    Raises:
        TaskError: the model or a module in it is a ScriptModule.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"Task(model=...).{name}" if name else "Task(model=...)"
            raise TaskError(
                f"{what} is a {type(module).__name__}, compiled by torch.jit, and quantizers cannot be put "
                f"into one. Give the nn.Module that it was made from."
            )


def private_model(model: nn.Module, example_inputs: tuple[Any, ...]) -> nn.Module:
    """The model that raysearch works on: a copy on the CPU, run once, as a first call may make things.

    Wrappers for several devices and compilers are taken off, inside the model too. Gradients of embeddings
    are dense in it, and nothing turns into nested tensors: both change no value, and neither goes with
    fake-quantizers. Weights that are computed are plain ones
    (`make_plain_weights`). Buffers that a forward changes are as before, and known (`changing_buffers`).

    Args:
        model: the user's; it is left as it is.
        example_inputs: positional arguments of one forward.

    Raises:
        TaskError: the model cannot be copied, is compiled by torch.jit, or lies on the meta device.
        CaptureError: it does not run on its example inputs.
    """
    refuse_compiled(model)
    _refuse_meta(model)
    plain = unwrapped(model)
    warn_of_unregistered(plain)
    memo: dict[int, Any] = {}
    # From the inside out, since a wrapper may hold others.
    for module in reversed(list(plain.modules())):
        if _inside(module) is not None:
            memo[id(module)] = private_copy(unwrapped(module), memo)
    return _prepared(private_copy(plain, memo), example_inputs)


def own_model(model: nn.Module, example_inputs: tuple[Any, ...]) -> nn.Module:
    """What `private_model` gives, of a model that nobody else has: it is copied only to take wrappers off.

    Args:
        model: it is changed.
        example_inputs: positional arguments of one forward.

    Raises:
        TaskError: see `private_model`.
        CaptureError: see `private_model`.
    """
    if any(_inside(module) is not None for module in model.modules()):
        return private_model(model, example_inputs)
    refuse_compiled(model)
    _refuse_meta(model)
    return _prepared(model, example_inputs)


def _prepared(model: nn.Module, example_inputs: tuple[Any, ...]) -> nn.Module:
    twin = model.cpu()
    make_plain_weights(twin)
    for module in twin.modules():
        written = getattr(type(module).forward, "_torchdynamo_orig_callable", None)
        if written is not None and "forward" not in vars(module):
            # Decorated with torch.compile, which would compile the quantizers with it.
            module.forward = MethodType(written, module)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False
        if isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = False
            module.use_nested_tensor = False
    note_changing_buffers(twin, host_copy(example_inputs))
    return twin


def note_changing_buffers(model: nn.Module, example_inputs: tuple[Any, ...]) -> None:
    """Run a model once, so that buffers that its forward changes are known and put back from then on.

    Args:
        model: keeps what it makes for itself on a first call.
        example_inputs: positional arguments of one forward, where the model is; a forward may change them.

    Raises:
        CaptureError: it does not run on them.
    """
    changed = find_changing_buffers(model, lambda: _run_example(model, example_inputs))
    if changed:
        vars(model)[CHANGING] = changed


def _run_example(model: nn.Module, example_inputs: tuple[Any, ...]) -> None:
    flags = {module: module.training for module in model.modules()}
    generators = GeneratorStates.now()
    model.eval()
    try:
        with torch.no_grad(), exportable(model):
            model(*example_inputs)
    except Exception as error:
        inputs = ", ".join(f"{tuple(t.shape)} {t.dtype}" for _, t in tensors_of(example_inputs))
        raise CaptureError(
            f"{type(model).__name__} itself does not run on its example inputs ({inputs}): "
            f"{type(error).__name__}: {error}. Give Task(example_inputs=...) as a tuple of the positional "
            f"arguments of one call, or as a dict of them by name, of the shapes and types that the "
            f"model takes."
        ) from error
    finally:
        generators.restore()
        for module, flag in flags.items():
            module.training = flag


def _refuse_meta(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise TaskError(
                f"the model's '{name}' lies on the meta device and has no values; load weights first "
                f"(`model.to_empty(device='cpu')`, then `load_state_dict`)."
            )


def _inside(module: nn.Module) -> nn.Module | None:
    if isinstance(module, _WRAPPERS):
        inner: nn.Module = module.module
        return inner
    # The class of what torch.compile gives is not public; its attribute is how the documentation unwraps it.
    compiled = vars(module).get("_modules", {}).get("_orig_mod")
    return compiled if isinstance(compiled, nn.Module) else None
