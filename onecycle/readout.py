"""Validation read out sample by sample, so that two models can be compared on each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onecycle import batch as batches
from onecycle.losses import of_samples, rows
from onecycle.metrics import higher_is_better, is_plain_mean

if TYPE_CHECKING:
    from onecycle.smoothing import Array
    from onecycle.trainer import Trainer

CLOSE = 1e-3  # relative: a loss of samples whose mean is another than the loss is not used
LOSS = "loss"
Each = Callable[[Any, Any], Tensor]


class ReadOut:
    """Reads losses and metrics of a learner on its validation data, one value for each sample.

    Where the loss of a sample is not known, or the loss is no plain mean of them, as with weights
    of classes, the values are those of batches, and `weights` their numbers of samples.

    Args:
        learn: the learner.
        by: what is needed, "loss" or a metric by name.

    Attributes:
        higher: whether higher is better, by name: "loss", and those metrics of the learner that
            are means over samples and say so.
        weights: None where values are of samples.

    Raises:
        ValueError: `by` is none of them; when it is first read, it has no value for each sample.
    """

    def __init__(self, learn: Trainer, by: str = LOSS) -> None:
        self.learn, self.by = learn, by
        self.higher = {LOSS: False}
        self.weights: Array | None = None
        self._by_batches: bool | None = None  # what the first read-out shows
        self._metrics: dict[str, Each] = {}
        for name, metric in learn.metrics.items():
            up = higher_is_better(metric)
            if is_plain_mean(metric) and up is not None and name != LOSS:
                self.higher[name], self._metrics[name] = up, _of_samples(metric)
        self._require()

    def __call__(self) -> dict[str, Array]:
        """Return the values (N,) of "loss" and of each metric by name."""
        learn, samples, means = self.learn, [], []
        columns: dict[str, list[Tensor | None]] = {name: [] for name in self.higher}

        def watch(batch: Any, pred: Any, loss: Any) -> None:
            inputs, target = batches.split(batch)
            pred, n = batches.widened(pred), batches.samples(inputs, target)
            samples.append(n)
            means.append(rows(loss))
            columns[LOSS].append(self._losses(pred, target, n))
            for name, metric in self._metrics.items():
                columns[name].append(_of(n, metric(pred, target)))

        valid = learn.data.valid
        with learn.looking(valid):
            learn.evaluate(valid if valid is not None else (), watch, metrics={})
        if self._by_batches is None:
            self._by_batches = not _alike(columns[LOSS], means)
            self._leave_out([n for n in self._metrics if any(v is None for v in columns[n])])
        return self._whole(columns, means, samples)

    def _losses(self, pred: Any, target: Any, n: int) -> Tensor | None:
        """Return the losses of the n samples of a batch; None where they are not known."""
        if self._by_batches:
            return None
        try:
            return of_samples(self.learn.loss_func, pred, target, n)
        except Exception:  # noqa: BLE001 - a loss may take `reduction` and know no "none"
            return None

    def _whole(
        self, columns: dict[str, list[Tensor | None]], means: list[Tensor], samples: list[int]
    ) -> dict[str, Array]:
        """Return what was read in one piece: by samples or, weighted, by batches."""
        known = {n: [v for v in columns[n] if v is not None] for n in self.higher}
        if not self._by_batches:
            return {name: torch.cat(values).numpy() for name, values in known.items()}
        self.weights = np.array(samples, dtype=np.float64)
        known[LOSS] = means
        return {
            name: torch.stack([of_batch.mean() for of_batch in values]).numpy()
            for name, values in known.items()
        }

    def _leave_out(self, names: Sequence[str]) -> None:
        """Go on without metrics that have no value for each sample."""
        for name in names:
            del self._metrics[name], self.higher[name]
        self._require()

    def _require(self) -> None:
        if self.by not in list(self.higher):
            raise ValueError(
                f"metric: {self.by!r} is no metric of this learner that is a mean over samples and "
                f"has higher_is_better; there are {', '.join(self.higher)}"
            )


def _of_samples(metric: Any) -> Each:
    """Return a metric as a function that gives a value for each sample."""
    options = metric.keywords if isinstance(metric, functools.partial) else {}
    own: Any = metric.func if isinstance(metric, functools.partial) else metric
    return lambda pred, target: rows(own.each(pred, target, **options))


def _of(n: int, values: Tensor) -> Tensor | None:
    """Return values if they are those of n samples."""
    return values if values.shape == (n,) else None


def _alike(of_samples: Sequence[Tensor | None], means: Sequence[Tensor]) -> bool:
    """Tell whether the means of what samples have are the losses of their batches."""
    found = [values.mean() for values in of_samples if values is not None]
    return len(found) == len(means) and torch.allclose(
        torch.stack(found), torch.stack(list(means)), rtol=CLOSE, equal_nan=True
    )
