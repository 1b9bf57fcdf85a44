"""Snapshot and restore, in memory, of everything that a training run depends on.

What a snapshot holds: parameters, buffers (persistent or not), gradients, training modes and plain
attributes of every module; the optimizer's state and hyper-parameters; the gradient scaler; the
random number generators of torch, cuda, mps, numpy and Python and those a loader, its samplers or
its data set hold; the loaders' own attributes. Restoring writes into the same tensors, so nothing
that points at them notices.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Restore = Callable[[], None]
LOADER_PARTS = ("sampler", "batch_sampler", "dataset", "generator")
DEPTH = 3  # how far below a part a generator is looked for: data set, transform, its generator
GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
CONTAINERS = (list, dict, set, deque)


class Stateful(Protocol):
    """Anything with a state that can be taken and given back."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Take it back."""
        ...


@contextmanager
def preserved(
    modules: Sequence[nn.Module], opt: torch.optim.Optimizer, step: Stateful, loader: Any
) -> Iterator[None]:
    """Leave everything a run depends on bit for bit as it was before the block.

    Args:
        modules: the model, and the loss where it is a module.
        opt: the optimizer.
        step: the training step, for the scale of its loss.
        loader: the training data.
    """
    with ExitStack() as stack:
        stack.callback(_stateful(step))
        stack.callback(_generators(loader, *modules))
        stack.callback(_optimizer(opt))
        for model in modules:
            stack.callback(_gradients(model))
            stack.callback(_tensors([*model.parameters(), *_unlearned(model)]))
            stack.callback(_modules(model))
        stack.callback(_loader(loader))
        yield


@contextmanager
def looked_at(modules: Sequence[nn.Module], loader: Any) -> Iterator[None]:
    """Leave everything that a pass without training can change as it was before the block."""
    with ExitStack() as stack:
        stack.callback(_generators(loader, *modules))
        for model in modules:
            stack.callback(_tensors(_unlearned(model)))
            stack.callback(_modules(model))
        stack.callback(_loader(loader))
        yield


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

    def restore() -> None:
        for put_back in restores:
            put_back()

    return restore


def _unlearned(model: nn.Module) -> list[Tensor]:
    """Buffers, and tensors that a module keeps as plain attributes, which no state_dict knows."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return [*model.buffers(), *(value for value in values if isinstance(value, Tensor))]


def _attributes(owner: Any) -> Restore:
    """Which value each attribute of `owner` names, and what is in its lists, dicts and sets."""
    current = vars(owner)
    saved = dict(current)
    contents = {name: copy(v) for name, v in saved.items() if type(v) in CONTAINERS}

    def restore() -> None:
        current.clear()
        current.update(saved)
        for name, content in contents.items():
            _refill(saved[name], content)

    return restore


def _refill(container: Any, content: Any) -> None:
    """Put `content` back into the very same container."""
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(content)
    else:
        container.extend(content)


def _optimizer(opt: torch.optim.Optimizer) -> Restore:
    state = {key: _clone(value) for key, value in opt.state.items()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in opt.param_groups]
    rates = _tensors([v for group in groups for v in group.values() if isinstance(v, Tensor)])

    def restore() -> None:
        opt.state.clear()
        opt.state.update(state)
        for group, saved in zip(opt.param_groups, groups, strict=True):
            parameters = group["params"]
            group.clear()
            group.update({"params": parameters, **saved})
        rates()

    return restore


def _clone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _clone(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clone(item) for item in value]
    return value


def _stateful(step: Stateful) -> Restore:
    saved = step.state_dict()

    def restore() -> None:
        step.load_state_dict(saved)

    return restore


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


def _generators(loader: Any, *modules: nn.Module) -> Restore:
    """The global generators, and every one held by a part of the loader or by a module."""
    held = [part for model in modules for part in model.modules()]
    found: dict[int, Any] = {}
    for part in [*_parts(loader), *held]:
        _search(part, DEPTH, found)
    restores = [_torch_rng(), _numpy_rng(), _python_rng(), *map(_generator, found.values())]

    def restore() -> None:
        for put_back in restores:
            put_back()

    return restore


def _search(value: Any, depth: int, found: dict[int, Any]) -> None:
    """Gather the generators that `value` is or holds, a few attributes deep."""
    if isinstance(value, GENERATORS):
        found[id(value)] = value
    # Not a subclass, which may be a loader: to iterate it would be to read it.
    elif depth and type(value) in (list, tuple) and len(value) < 100:
        for item in value:
            _search(item, depth - 1, found)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, (Tensor, type)):
        for item in list(vars(value).values()):
            _search(item, depth - 1, found)


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
