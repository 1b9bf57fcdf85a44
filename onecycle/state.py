"""Snapshot and restore, in memory, of everything that a training run depends on.

What a snapshot holds: parameters, buffers (persistent or not), gradients, training modes and plain
attributes of every module; the optimizer's state and hyper-parameters; the gradient scaler; the
random number generators of torch, cuda, mps, numpy and Python and those a loader, its samplers or
its data set hold; the loaders' own attributes. Restoring writes into the same tensors, so nothing
that points at them notices.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Restore = Callable[[], None]
LOADER_PARTS = ("sampler", "batch_sampler", "dataset", "generator")


@contextmanager
def preserved(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader: Any,
) -> Iterator[None]:
    """Leave everything a run depends on bit for bit as it was before the block."""
    restores = [
        _loader(loader),
        _modules(model),
        _tensors([*model.parameters(), *model.buffers(), *_tensor_attributes(model)]),
        _gradients(model),
        _optimizer(opt),
        _scaler(scaler),
        _generators(loader),
    ]
    try:
        yield
    finally:
        for restore in restores:
            restore()


@contextmanager
def rng_preserved(loader: Any) -> Iterator[None]:
    """Leave every random number generator as it was before the block, the loader's own included."""
    restore = _generators(loader)
    try:
        yield
    finally:
        restore()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode, then each module back in its own mode."""
    with modes_preserved(model):
        model.eval()
        yield


@contextmanager
def modes_preserved(model: nn.Module) -> Iterator[None]:
    """Put each module back in its own mode after the block, training or evaluation."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _tensors(tensors: list[Tensor]) -> Restore:
    # A tensor that was expanded over its own memory cannot be written in place, by nobody.
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors if not _expanded(tensor)]

    def restore() -> None:
        with torch.no_grad():
            for tensor, value in saved:
                tensor.copy_(value)

    return restore


def _expanded(tensor: Tensor) -> bool:
    return any(
        step == 0 and length > 1 for step, length in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _gradients(model: nn.Module) -> Restore:
    """Set the gradients aside; the originals come back, not copies."""
    saved = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in saved:
        parameter.grad = None

    def restore() -> None:
        for parameter, grad in saved:
            parameter.grad = grad

    return restore


def _modules(model: nn.Module) -> Restore:
    """Attributes of every module: modes, counters, and which tensor each buffer is."""
    restores = [_attributes(module) for module in model.modules()]
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]  # noqa: SLF001 - no public way

    def restore() -> None:
        for put_back in restores:
            put_back()
        for current, saved in buffers:
            current.clear()
            current.update(saved)

    return restore


def _tensor_attributes(model: nn.Module) -> list[Tensor]:
    """Tensors that a module keeps as plain attributes, which no state_dict knows."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return [value for value in values if isinstance(value, Tensor)]


def _attributes(owner: Any) -> Restore:
    """Which value each attribute of `owner` names; the values themselves are not copied."""
    current = vars(owner)
    saved = dict(current)

    def restore() -> None:
        current.clear()
        current.update(saved)

    return restore


def _optimizer(opt: torch.optim.Optimizer) -> Restore:
    state = {key: _clone(value) for key, value in opt.state.items()}
    groups = [{k: _clone(v) for k, v in g.items() if k != "params"} for g in opt.param_groups]

    def restore() -> None:
        opt.state.clear()
        opt.state.update(state)
        for group, saved in zip(opt.param_groups, groups, strict=True):
            parameters = group["params"]
            group.clear()
            group.update({"params": parameters, **saved})

    return restore


def _clone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _clone(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clone(item) for item in value]
    return value


def _scaler(scaler: Any) -> Restore:
    saved = scaler.state_dict()
    return lambda: scaler.load_state_dict(saved) if saved else None


def _loader(loader: Any) -> Restore:
    """The loader's place and counters; running workers are kept aside, not used."""
    restores = [_attributes(part) for part in _parts(loader) if hasattr(part, "__dict__")]
    if getattr(loader, "_iterator", None) is not None:
        vars(loader)["_iterator"] = None

    def restore() -> None:
        for put_back in restores:
            put_back()

    return restore


def _parts(loader: Any) -> list[Any]:
    """The loader and what hangs on it: samplers, data set, generator, each once."""
    found: list[Any] = []
    waiting = [loader]
    while waiting:
        part = waiting.pop()
        if part is not None and not any(part is known for known in found):
            found.append(part)
            waiting += [getattr(part, name, None) for name in LOADER_PARTS]
    return found


def _generators(loader: Any) -> Restore:
    """The global generators, and every one that is an attribute of a part of the loader."""
    restores = [_torch_rng(), _numpy_rng(), _python_rng()]
    for part in _parts(loader):
        held = [part, *vars(part).values()] if hasattr(part, "__dict__") else [part]
        restores += [_generator(value) for value in held]

    def restore() -> None:
        for put_back in restores:
            put_back()

    return restore


def _generator(value: Any) -> Restore:
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return partial(_set_generator, value, state)
    if isinstance(value, random.Random):
        python_state = value.getstate()
        return lambda: value.setstate(python_state)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", bits)
    if isinstance(value, np.random.RandomState):
        legacy = value.get_state()
        return lambda: value.set_state(legacy)
    return lambda: None


def _set_generator(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


def _torch_rng() -> Restore:
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore


def _numpy_rng() -> Restore:
    state = np.random.get_state()  # noqa: NPY002 - users' transforms draw from the global generator
    return lambda: np.random.set_state(state)  # noqa: NPY002


def _python_rng() -> Restore:
    state = random.getstate()
    return lambda: random.setstate(state)
