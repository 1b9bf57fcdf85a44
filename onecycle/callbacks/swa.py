"""SWA: the plain mean of the weights over the last part of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onecycle import checks
from onecycle.averaging import Averaging

if TYPE_CHECKING:
    from onecycle.learner import Learner


class SWA(Averaging):
    """Average the weights after every step of the last part of a run, each with the same weight.

    From there on table and history have `swa_valid_loss` and `swa_<metric>`. Stochastic weight
    averaging wants a rate that stays up, flat or cyclical, so that there is something to average.

    After the k-th of these steps: avg <- avg + (p - avg) / k. Every fit begins anew.

    Args:
        start: progress of the planned run at which averaging begins, in [0, 1].
        buffers: "recompute" estimates the running statistics of batch norm for the averaged
            weights, on up to 50 training batches; "copy" uses them as the model has them.
        at_end: leave the averaged weights in the model when the fit is over, unless an error or
            Ctrl-C has ended it; a fit that ends before `start` leaves the model as trained. Where
            another callback leaves weights, too, the last in the list has its way.

    Raises:
        ValueError, TypeError: an argument out of its range; when the fit begins, two callbacks
        that would write the same columns.

    Source: Izmailov et al. 2018 (arXiv 1803.05407), at every step instead of every epoch.

    >>> from onecycle import DataLoaders, Learner, SWA
    >>> import torch
    >>> x = torch.linspace(-1, 1, 64).view(-1, 1)
    >>> learn = Learner(DataLoaders.from_tensors(x, 2 * x, valid=0.25), torch.nn.Linear(1, 1))
    >>> with learn.no_logging():
    ...     learn.fit(4, 0.1, callbacks=[SWA(start=0.5, at_end=True)])
    >>> ["swa_valid_loss" in row for row in learn.recorder.history]
    [False, False, True, True]
    """

    prefix = "swa"

    def __init__(
        self, start: float = 0.75, *, buffers: str = "recompute", at_end: bool = False
    ) -> None:
        super().__init__(buffers, at_end)
        self.start = checks.real("start", start, low=0.0, high=1.0)

    def on_step_end(self, learn: Learner) -> None:
        """Take the weights of this step in, when its progress is that of `start` or more."""
        past = learn.step - 1 >= self.start * (learn.total_steps - 1)
        if past if learn.budget is None else learn.progress >= self.start:
            self.steps += 1
            self.average.update(1.0 / self.steps)
