"""Everything that a run depends on, as plain values: captured between two batches, restored later.

Beside model and optimizer: buffers that `state_dict` leaves out, the mode of each module, which
parameters are trained, the loss where it is a module; the scale of the loss and gradients that are
still being gathered; the counters and the place in the data; every random number generator; the
history and every callback's own state.
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onecycle import checkpoint, generators, optimizers, shards
from onecycle.notes import noted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onecycle.callback import Callback
    from onecycle.trainer import Trainer

State = dict[str, Any]
# What each of several processes has of its own.
OF_A_PROCESS = ("training_step", "data", "generators")


def capture(learn: Trainer, *, epoch_over: bool = False, finished: bool = False) -> State:
    """Return the state of the run that `learn` is in, for `checkpoint.save`.

    Args:
        learn: between two batches or, when `epoch_over`, between two epochs.
        epoch_over: nothing is left of this epoch.
        finished: nothing is left of the run.
    """
    loop = learn.loop
    held = generators.found(learn.data.train, learn.modules)
    run = {
        "finished": finished,
        "plan": learn.plan,
        "place": {
            "epoch": learn.epoch + epoch_over,
            "batches": 0 if epoch_over else learn.batch_index + 1,
            "number": loop.number + epoch_over,
            "step": learn.step,
        },
        "modules": [_module(module) for module in learn.modules],
        "loss_func": learn.modules[1].state_dict() if len(learn.modules) > 1 else None,
        "training_step": learn.training_step.state_dict(),
        "data": loop.reader.state_dict(epoch_over=epoch_over),
        "generators": generators.states(held),
        "scores": dict(learn.scores),
        "callbacks": loop.before_validation or own_states(loop.callbacks),
    }
    if not learn.world.alone:
        own = {name: run[name] for name in OF_A_PROCESS}
        if learn.network.sharded:  # what has been gathered is the mean of all already
            own["training_step"] = {**own["training_step"], "gradients": None}
        run["ranks"] = learn.world.gather(own)
    return {**checkpoint.states(learn.model, learn.opt), "run": run}


def restore(learn: Trainer, saved: State, *, read: bool = True) -> None:
    """Put `learn`, whose run has begun, where the run of `saved` was.

    Args:
        learn: what is trained.
        saved: the state.
        read: go to the place in the data, too.
    """
    run = {**saved["run"], **_of_rank(saved["run"], learn)}
    shards.load(learn.model, saved["model"])
    if run["loss_func"] is not None:
        learn.modules[1].load_state_dict(run["loss_func"])
    for module, own in zip(learn.modules, run["modules"], strict=True):
        _restore_module(module, own)
    optimizers.load(learn.opt, saved["optimizer"]["state"])
    learn.training_step.load_state_dict(run["training_step"])
    for callback, own in _paired(learn.loop.callbacks, run["callbacks"]):
        with noted(f"raised by the callback {type(callback).__name__} in load_state_dict"):
            callback.load_state_dict(own)
    place = run["place"]
    learn.epoch, learn.step = min(place["epoch"], learn.stop_epoch - 1), place["step"]
    learn.scores = dict(run["scores"])
    learn.batch_index = place["batches"] - 1
    learn.loop.number = place["number"]
    learn.training_step.begin(learn.modules)
    # Last, for all that comes before may draw numbers.
    if read:
        learn.loop.reader.load_state_dict(run["data"])
    held = generators.found(learn.data.train, learn.modules)
    generators.set_states(held, run["generators"])


def weights(modules: Sequence[nn.Module]) -> list[State]:
    """Return a copy of all parameters and buffers of each module, on the CPU."""
    kinds = [
        {"known": module.state_dict(), "buffers": _module(module)["buffers"]} for module in modules
    ]
    return [
        {kind: {name: _copied(value) for name, value in of.items()} for kind, of in own.items()}
        for own in kinds
    ]


def restore_weights(modules: Sequence[nn.Module], saved: Sequence[State]) -> None:
    """Write what `weights` returned back into the same modules."""
    for module, own in zip(modules, saved, strict=True):
        shards.load(module, own["known"])
        for name, value in own["buffers"].items():
            _set_buffer(module, name, value)


def missing_callbacks(callbacks: Sequence[Callback], saved: State) -> list[str]:
    """Return the names of callbacks that a saved run had and that are not here."""
    here = Counter(type(callback).__name__ for callback in callbacks)
    there = Counter(name for name, _ in saved["run"]["callbacks"])
    return [name for name in (there - here).elements() if name != "Checkpoint"]


def own_states(callbacks: Sequence[Callback]) -> list[tuple[str, State]]:
    """Return name and state of each callback."""
    return [_own_state(callback) for callback in callbacks]


def _own_state(callback: Callback) -> tuple[str, State]:
    """Return name and state of a callback, once that is known to fit into a file."""
    name = type(callback).__name__
    with noted(f"raised by the callback {name} in state_dict"):
        own = callback.state_dict()
    plain: State = checkpoint.plain(own, f"callbacks: the state_dict of {name}")
    return name, plain


def _paired(
    callbacks: Sequence[Callback], states: Sequence[tuple[str, State]]
) -> list[tuple[Callback, State]]:
    """Return each callback with its state: the first of a class has the first state of it."""
    left = list(states)
    pairs = []
    for callback in callbacks:
        name = type(callback).__name__
        own = next((item for item in left if item[0] == name), None)
        if own is not None:
            left.remove(own)
            pairs.append((callback, own[1]))
    return pairs


def _of_rank(run: State, learn: Trainer) -> State:
    """Return what this process has of its own; of another number of processes what fits any."""
    ranks = run.get("ranks", [{name: run[name] for name in OF_A_PROCESS}])
    own: State = dict(ranks[min(learn.world.rank, len(ranks) - 1)])
    if own["training_step"]["gradients"] is None:
        gradients = run["training_step"]["gradients"]
        own["training_step"] = {**own["training_step"], "gradients": gradients}
    elif len(ranks) != learn.world.size or learn.network.sharded:
        # Each goes on with the mean of what they had gathered, whose mean it is.
        steps = [one["training_step"] for one in ranks]
        columns = zip(*(step["gradients"] for step in steps), strict=True)
        means = [None if c[0] is None else torch.stack(c).mean(0) for c in columns]
        own["training_step"] = {**steps[0], "gradients": means}
    return own


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else deepcopy(value)


def _module(module: nn.Module) -> State:
    """Return what `state_dict` does not know: some buffers, modes, what is trained."""
    known = module.state_dict(keep_vars=True)
    return {
        "buffers": {name: b for name, b in module.named_buffers() if name not in known},
        "modes": [part.training for part in module.modules()],
        "trained": [parameter.requires_grad for parameter in module.parameters()],
    }


def _restore_module(module: nn.Module, own: State) -> None:
    for name, value in own["buffers"].items():
        _set_buffer(module, name, value)
    for part, training in zip(module.modules(), own["modes"], strict=True):
        part.training = training
    for parameter, trained in zip(module.parameters(), own["trained"], strict=True):
        parameter.requires_grad_(trained)


def _set_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    """Write a buffer in place where it has its shape still, else put a new one there."""
    owner, _, last = name.rpartition(".")
    part = module.get_submodule(owner)
    buffer = getattr(part, last, None)
    if isinstance(buffer, Tensor) and buffer.shape == value.shape:
        buffer.detach().copy_(value)
    else:
        setattr(part, last, value.to(next(module.parameters(), value).device))
