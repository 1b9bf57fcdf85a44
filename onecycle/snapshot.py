"""Snapshot and restore, in memory, of everything that a training run depends on.

What a snapshot holds: parameters, buffers (persistent or not), gradients, training modes and plain
attributes of every module; the optimizer's state and hyper-parameters; the gradient scaler; the
random number generators of torch, cuda, mps, numpy and Python and those a loader, its samplers or
its data set hold; the loaders' own attributes. Tensors of the model are restored in place, so
nothing that points at them notices.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from itertools import chain
from operator import is_
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from onecycle import generators, together
from onecycle.generators import CONTAINERS

Restore = Callable[[], None]
SMALL = 1 << 24  # bytes of an array that is copied


class Stateful(Protocol):
    """Anything with a state that can be taken and given back."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Take it back."""
        ...


@contextmanager
def surroundings_preserved(modules: Sequence[nn.Module], loader: Any) -> Iterator[None]:
    """Leave generators and the training data as they were before the block.

    Args:
        modules: the model, and the loss where it is a module; they may hold generators.
        loader: the training data.
    """
    with _restores() as stack:
        with uninterrupted():
            stack.callback(_generators(loader, *modules))
            stack.callback(_loader(loader))
        yield


@contextmanager
def training_preserved(
    modules: Sequence[nn.Module], opt: torch.optim.Optimizer, step: Stateful
) -> Iterator[None]:
    """Leave everything that training changes bit for bit as it was before the block.

    Args:
        modules: the model, and the loss where it is a module.
        opt: the optimizer.
        step: the training step, for the scale of its loss.
    """
    with _restores() as stack:
        with uninterrupted():
            stack.callback(_stateful(step))
            stack.callback(_attributes(step))
            for member in together.members(opt):
                stack.callback(_optimizer(member))
                stack.callback(_tensors(_tensors_of(member, ("state", "param_groups"))))
                stack.callback(_attributes(member))
            stack.callback(_attributes(opt))
            for model in modules:
                stack.callback(_gradients(model))
                stack.callback(_tensors([*model.parameters(), *_unlearned(model)]))
                stack.callback(_modules(model))
        yield


@contextmanager
def _restores() -> Iterator[ExitStack]:
    """Yield a stack whose callbacks run, last first, when the block is over, Ctrl-C or not."""
    stack = ExitStack()
    try:
        yield stack
    finally:
        with uninterrupted():
            stack.close()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done; only the main thread is ever interrupted."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    held: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda *interrupt: held.append(interrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if held:
            usual(*held[0])


@contextmanager
def looked_at(modules: Sequence[nn.Module], loader: Any) -> Iterator[None]:
    """Leave everything that a pass without training can change as it was before the block."""
    with ExitStack() as stack:
        stack.callback(_generators(loader, *modules))
        for model in modules:
            stack.callback(_tensors(_unlearned(model), compare=True))
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


def _tensors(tensors: list[Tensor], *, compare: bool = False) -> Restore:
    """The values of `tensors`; with `compare` one that has not changed is not written to.

    A write between forward and backward, though of the same bits, would be refused by autograd.
    """
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors if _writable(tensor)]

    def restore() -> None:
        with torch.no_grad():
            for tensor, value in saved:
                if not (compare and torch.equal(tensor, value)):
                    tensor.copy_(value)

    return restore


def _writable(tensor: Tensor) -> bool:
    """Tell whether anything can write into `tensor` in place; else it cannot have changed."""
    if tensor.is_inference() or tensor.is_nested or tensor.layout is not torch.strided:
        return False
    over_itself = zip(tensor.stride(), tensor.shape, strict=True)
    return not any(step == 0 and length > 1 for step, length in over_itself)


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
    """Buffers, and tensors among a module's attributes, which no state_dict knows."""
    inside = (_tensors_of(module, ("_parameters", "_buffers")) for module in model.modules())
    return [*model.buffers(), *chain.from_iterable(inside)]


def _tensors_of(owner: Any, known: Sequence[str]) -> list[Tensor]:
    """Tensors among the attributes of `owner`, or in their items, but for those in the `known`."""
    found: list[Tensor] = []
    for name, value in vars(owner).items():
        inside = generators.items(value) if name not in known else []
        found += [item for item in (value, *inside) if isinstance(item, Tensor)]
    return found


def _attributes(owner: Any) -> Restore:
    """Which value each attribute of `owner` names, and what is in its containers and arrays."""
    current = vars(owner)
    saved = dict(current)
    contents = {name: copy(v) for name, v in saved.items() if type(v) in CONTAINERS}
    arrays = {name: v.copy() for name, v in saved.items() if _small_array(v)}

    def restore() -> None:
        # Never empty in between: an error there would leave an owner without attributes.
        current.update(saved)
        for name in current.keys() - saved.keys():
            del current[name]
        for name, content in contents.items():
            _refill(saved[name], content)
        for name, array in arrays.items():
            saved[name][...] = array

    return restore


def _small_array(value: Any) -> bool:
    return type(value) is np.ndarray and value.flags.writeable and value.nbytes <= SMALL


def _refill(container: Any, content: Any) -> None:
    """Put `content` back into the very same container, if anything in it is another."""
    if len(container) == len(content) and all(map(is_, _flat(container), _flat(content))):
        return
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(content)
    else:
        container.extend(content)


def _flat(container: Any) -> Iterator[Any]:
    if isinstance(container, dict):
        return chain.from_iterable(container.items())
    return iter(container)


def _optimizer(opt: torch.optim.Optimizer) -> Restore:
    state = {key: _clone(value) for key, value in opt.state.items()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in opt.param_groups]
    rates = _tensors([v for group in groups for v in group.values() if isinstance(v, Tensor)])

    def restore() -> None:
        opt.state.clear()
        opt.state.update(state)
        for group, saved in zip(opt.param_groups, groups, strict=True):
            group.update(saved)
            for name in group.keys() - saved.keys() - {"params"}:
                del group[name]
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
    restores = [_attributes(part) for part in generators.parts(loader) if hasattr(part, "__dict__")]
    for part in generators.parts(loader):
        if isinstance(part, DataLoader) and part._iterator is not None:  # noqa: SLF001 - no public way
            vars(part)["_iterator"] = None

    def restore() -> None:
        for put_back in restores:
            put_back()

    return restore


def _generators(loader: Any, *modules: nn.Module) -> Restore:
    """The global generators, and every one held by a part of the loader or by a module."""
    held = generators.found(loader, modules)
    return partial(generators.set_states, held, generators.states(held))
