"""A twin of a Learner: the same to the last bit, and trained apart from it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from onecycle import together
from onecycle.metrics import MetricObject
from onecycle.notes import noted
from onecycle.trainer import Trainer

if TYPE_CHECKING:
    from onecycle.data.loaders import DataLoaders

T = TypeVar("T", bound=Trainer)


def twin(learn: T, data: DataLoaders | None = None) -> T:
    """Return a learner with a copy of model, optimizer and loss, and an empty history.

    Options, groups and what is frozen are the same, and so is the data, to be read from its
    beginning. Callbacks, and hooks of the optimizer, stay with the learner.

    Args:
        learn: it is left as it is.
        data: other data.

    Raises:
        Exception: whatever copying the model raises, with a note.

    >>> from onecycle import Learner
    >>> learn = Learner([[(torch.zeros(2, 1), torch.zeros(2, 1))], None], nn.Linear(1, 1))
    >>> other = twin(learn)
    >>> other.model is learn.model, torch.equal(other.model.weight, learn.model.weight)
    (False, True)
    """
    memo: dict[int, Any] = {}
    loss_func = learn.loss_func
    with noted("raised when the learner was copied; a factory, make=, makes new ones instead"):
        model = copy.deepcopy(learn.model, memo)
        opt = _optimizer(learn.opt, memo)
        if isinstance(loss_func, nn.Module):
            loss_func = copy.deepcopy(loss_func, memo)
        metrics = {name: _metric(metric) for name, metric in learn.metrics.items()}
    other = copy.copy(learn)  # a subclass may have attributes, and arguments, of its own
    network, step = learn.network, learn.training_step
    Trainer.__init__(
        other,
        learn.data.again() if data is None else data,
        model,
        loss_func,
        opt,
        metrics,
        device=learn.device,
        precision=network.precision,
        channels_last=network.channels_last,
        compile=network.compile,
        accumulate=step.accumulate,
        clip=step.clip,
        on_nan=step.guard.policy,
        train_bn=learn.train_bn,
    )
    other.training_step.scaler.load_state_dict(step.scaler.state_dict())
    return other


def _optimizer(opt: torch.optim.Optimizer, memo: dict[int, Any]) -> torch.optim.Optimizer:
    """Return a copy with the attributes that torch's own way of copying leaves out."""
    other = copy.deepcopy(opt, memo)
    for mine, its in zip(together.members(opt), together.members(other), strict=True):
        for name, value in vars(mine).items():
            if name not in vars(its) and not callable(value):
                setattr(its, name, copy.deepcopy(value, memo))
    return other


def _metric(metric: Any) -> Any:
    """Return a copy of a metric that gathers batches; a function stays what it is."""
    return copy.deepcopy(metric) if isinstance(metric, MetricObject) else metric
