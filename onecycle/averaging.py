"""Averaged weights: an average of a model's parameters, and what callbacks that keep one share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from onecycle import batch as batches
from onecycle import checks, freezing, shards, snapshot
from onecycle.callback import Callback
from onecycle.data.reading import set_epoch
from onecycle.distributed import synchronize_buffers
from onecycle.metrics import MetricObject, named
from onecycle.notes import batches_of

if TYPE_CHECKING:
    from onecycle.learner import Learner
    from onecycle.trainer import Trainer

BUFFERS = ("copy", "recompute")
BATCHES = 50  # that running statistics are estimated from


class Average:
    """A running average of the parameters of a model, beside it on its device.

    It is kept in single precision, or in a parameter's own where that is higher. Parameters of
    whole numbers and all buffers are the model's own.

    >>> model = nn.Linear(1, 1)
    >>> average = Average(model)
    >>> _ = nn.init.constant_(model.weight, 4.0)
    >>> average.update(1.0)
    >>> _ = nn.init.constant_(model.weight, 8.0)
    >>> average.update(0.5)
    >>> average.values["weight"]
    tensor([[6.]])
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.values: dict[str, Tensor] = {}
        self._own: list[Tensor] = []
        self._followed: list[Tensor] = []
        self._alike, self._sharded = True, False
        if model is not None:
            self.begin(model)

    def begin(self, model: nn.Module) -> None:
        """Follow `model` from its present weights on."""
        followed = _averaged(model)
        self.values = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in followed.items()
        }
        self._own = [shards.local(value) for value in self.values.values()]
        self._followed = list(followed.values())
        self._sharded = any(map(shards.is_shard, self._followed))
        pairs = zip(self._own, self._followed, strict=True)
        self._alike = all(own.dtype == p.dtype for own, p in pairs)

    def update(self, weight: float) -> None:
        """Move by `weight` of the way to the model's weights: avg <- avg + weight * (p - avg)."""
        new = self._followed
        if self._sharded:
            new = [shards.local(p) for p in new]
        with torch.no_grad():
            if not self._alike:
                new = [p.to(own.dtype) for p, own in zip(new, self._own, strict=True)]
            torch._foreach_lerp_(self._own, new, weight)

    def end(self) -> None:
        """Let go of the model; the average stays."""
        self._own, self._followed = [], []

    @contextmanager
    def swapped(self, learn: Trainer, buffers: str = "copy") -> Iterator[None]:
        """Have the learner's model use the averaged weights in the block.

        They are written into its parameters, which lie where they lay. Afterwards the model is as
        it was, bit for bit; what is trained in the block is lost.

        Args:
            learn: its model is the one that was averaged, or one like it.
            buffers: "copy" leaves the running statistics of batch norm as the model has them;
                "recompute" estimates them for the averaged weights, see `estimate_norms`.

        Raises:
            ValueError: the model has other parameters.
        """
        parameters = self._parameters_of(learn.model)
        norms = _statistics(_norms(learn)) if buffers == "recompute" else []
        with _preserved([*parameters, *norms]):
            self.write(learn, buffers)
            yield

    def write(self, learn: Trainer, buffers: str = "copy") -> None:
        """Write the averaged weights into the learner's model, to stay there."""
        parameters = self._parameters_of(learn.model)
        with torch.no_grad():
            own = [shards.local(value) for value in self.values.values()]
            torch._foreach_copy_([shards.local(p) for p in parameters], own)
        if buffers == "recompute":
            estimate_norms(learn)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by the names of the parameters."""
        return dict(self.values)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take averages back, onto the device of the model where one is followed."""
        if not self._followed:
            self.values = {name: value.clone() for name, value in state.items()}
        for name, own in self.values.items():
            own.copy_(shards.like(state[name], own))

    def _parameters_of(self, model: nn.Module) -> list[Tensor]:
        """Return the parameters that the averages are of, in their order."""
        here = _averaged(model)
        for name in [*self.values, *here]:
            mine, its = (
                name in known and tuple(known[name].shape) for known in (self.values, here)
            )
            if mine != its:
                raise ValueError(
                    f"learn: its model is not the one that was averaged, they differ in {name!r}"
                )
        return [here[name] for name in self.values]


class Averaging(Callback):
    """Base of the callbacks that average weights while a fit runs; a subclass updates `average`.

    After each validation the averaged weights are validated, too, and their scores are there under
    the same names with `prefix` before them.

    Args:
        buffers: "copy" or "recompute", see `Average.swapped`.
        at_end: whether the model keeps the averaged weights when the fit is over, unless that is by
            an error or Ctrl-C.
    """

    prefix = ""

    def __init__(self, buffers: str, at_end: bool) -> None:
        self.buffers = checks.choice("buffers", buffers, BUFFERS)
        self.at_end = checks.flag("at_end", at_end)
        self.steps = 0  # that the average is of
        self.average = Average()

    @contextmanager
    def applied(self, learn: Trainer) -> Iterator[None]:
        """Have the learner's model use the averaged weights in the block, to validate or predict.

        Afterwards the model is as it was, bit for bit; what is trained in the block is lost.

        Raises:
            ValueError: nothing was averaged yet, or `learn` has a model with other parameters.
        """
        if not self.steps:
            raise ValueError(
                f"{type(self).__name__} has averaged no weights yet: train with it first"
            )
        with self.average.swapped(learn, self.buffers):
            yield

    def on_train_begin(self, learn: Learner) -> None:
        """Begin anew with this fit."""
        others = [cb for cb in learn.loop.callbacks if isinstance(cb, Averaging)]
        alike = [cb for cb in others if cb.prefix == self.prefix]
        if len(alike) > 1:
            raise ValueError(
                f"callbacks: {len(alike)} would write the columns {self.prefix}_...; give each "
                "another attribute prefix"
            )
        self.steps = 0
        self.average.begin(learn.model)

    def on_validate_end(self, learn: Learner) -> None:
        """Validate the averaged weights as well."""
        valid = learn.data.valid
        if valid is None or not (self.steps and learn.scores):
            return
        # Whoever asks a metric object itself is to hear of the model, not of its average.
        metrics = {
            name: copy.deepcopy(metric) if isinstance(metric, MetricObject) else metric
            for name, metric in named(learn.metrics).items()
        }
        with self.applied(learn):
            scores = learn.evaluate(valid, metrics=metrics)
        learn.scores.update({f"{self.prefix}_{name}": value for name, value in scores.items()})

    def on_train_end(self, learn: Learner) -> None:
        """Leave the averaged weights in the model, where that is asked for."""
        if self.at_end and self.steps and not learn.loop.failed:
            self.average.write(learn, self.buffers)
        self.average.end()

    def state_dict(self) -> dict[str, Any]:
        """Return the average, and of how many steps it is."""
        return {"steps": self.steps, "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take both back."""
        self.steps = state["steps"]
        self.average.load_state_dict(state["average"])


def estimate_norms(learn: Trainer) -> None:
    """Estimate the running statistics of batch norm for the weights that the model has now.

    They become plain means over the first `BATCHES` batches of the training data, in the order of
    its first epoch where it has one; of several processes by what the first has of them. The rest
    of the model is in evaluation mode, so dropout is off. Batch norm that `train_bn=False` has
    frozen stays as it is, and so does one that these batches do not reach. There is no other trace
    on model, generators or data.

    Source: Izmailov et al. 2018 (arXiv 1803.05407), section 3.2.
    """
    train = learn.data.train
    norms = _norms(learn)
    if not norms:
        return
    with learn.looking(train):
        learn.model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        set_epoch(train, 0)
        _forward(learn, train)
        reached = [norm for norm in norms if int(norm.num_batches_tracked or 0)]
        found = [statistic.clone() for statistic in _statistics(reached)]
    for statistic, value in zip(_statistics(reached), found, strict=True):
        statistic.copy_(value)
    if not learn.world.alone:
        synchronize_buffers(learn.model)


def _forward(learn: Trainer, train: Any) -> None:
    # A compiled model would be compiled once more, for modes that it is never trained in.
    eager = torch.compiler.set_stance("force_eager") if learn.network.compiled else nullcontext()
    with learn.network.running(), torch.no_grad(), eager:
        for batch in islice(batches_of(train, "training"), BATCHES):
            inputs, _ = batches.split(batches.to_device(batch, learn.device))
            with learn.network.autocast():
                learn.network(inputs)


def _norms(learn: Trainer) -> list[_BatchNorm]:
    """Return the batch norm layers whose running statistics training moves."""
    with snapshot.modes_preserved(learn.model):
        freezing.train(learn.model, learn.train_bn)
        found = [part for part in learn.model.modules() if isinstance(part, _BatchNorm)]
        return [norm for norm in found if norm.training and norm.running_mean is not None]


def _statistics(norms: list[_BatchNorm]) -> list[Tensor]:
    both = [(norm.running_mean, norm.running_var) for norm in norms]
    return [statistic for pair in both for statistic in pair if statistic is not None]


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that have a mean, by name."""
    named = model.named_parameters()
    return {name: p for name, p in named if p.is_floating_point() or p.is_complex()}


@contextmanager
def _preserved(tensors: list[Tensor]) -> Iterator[None]:
    """Give `tensors` their values back after the block, bit for bit."""
    tensors = [shards.local(tensor) for tensor in tensors]
    values = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with snapshot.uninterrupted(), torch.no_grad():
            torch._foreach_copy_(tensors, values)
