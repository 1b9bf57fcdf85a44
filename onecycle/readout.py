"""Validation read out sample by sample, so that two models can be compared on each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onecycle import batch as batches
from onecycle.losses import infer_loss, per_sample
from onecycle.metrics import is_plain_mean

if TYPE_CHECKING:
    from onecycle.smoothing import Array
    from onecycle.trainer import Trainer

CLOSE = 1e-3  # relative: a loss of samples whose mean is another than the loss is not used
Each = Callable[[Any, Any], Tensor]


class ReadOut:
    """Reads losses and metrics of a learner on its validation data, one value for each sample.

    Where the loss of a sample is not known, or the loss is no plain mean of them, as with weights
    of classes, the values are those of batches, and `weights` their numbers of samples.

    Attributes:
        metrics: the learner's metrics that are means over samples, by name.
        weights: None where values are of samples.
    """

    def __init__(self, learn: Trainer) -> None:
        self.learn = learn
        self.metrics = {
            name: _of_samples(metric)
            for name, metric in learn.metrics.items()
            if is_plain_mean(metric)
        }
        self.weights: Array | None = None
        self._by_batches: bool | None = None  # what the first read-out shows

    def __call__(self) -> dict[str, Array]:
        """Return the values (N,) of "loss" and of each metric by name."""
        learn, losses, samples = self.learn, [], []
        columns: dict[str, list[Tensor]] = {name: [] for name in ("loss", *self.metrics)}

        def watch(batch: Any, pred: Any, loss: Any) -> None:
            inputs, target = batches.split(batch)
            samples.append(batches.samples(inputs, target))
            losses.append(loss.detach().cpu().double())
            pred = batches.widened(pred)
            each = per_sample(learn.loss_func or infer_loss(target))
            if each is not None:
                columns["loss"].append(each(pred, target).cpu().double())
            for name, metric in self.metrics.items():
                columns[name].append(metric(pred, target).cpu())

        valid = learn.data.valid
        with learn.looking(valid):
            learn.evaluate(valid if valid is not None else (), watch, metrics={})
        means = torch.stack(losses)
        if self._by_batches is None:
            found = [values.mean() for values in columns["loss"]]
            alike = found and torch.allclose(torch.stack(found), means, rtol=CLOSE, equal_nan=True)
            self._by_batches = not alike
        if not self._by_batches:
            return {name: torch.cat(values).numpy() for name, values in columns.items()}
        self.weights = np.array(samples, dtype=np.float64)
        of_batches = {name: torch.stack([v.mean() for v in columns[name]]) for name in self.metrics}
        return {"loss": means.numpy(), **{name: v.numpy() for name, v in of_batches.items()}}


def _of_samples(metric: Any) -> Each:
    """Return a metric as a function that gives a value for each sample."""
    options = metric.keywords if isinstance(metric, functools.partial) else {}
    own: Any = metric.func if isinstance(metric, functools.partial) else metric

    def each(pred: Any, target: Any) -> Tensor:
        values: Tensor = own.each(pred, target, **options)
        return values.reshape(len(target), -1).cpu().double().mean(1)

    return each
