"""EMA: an exponential mean of the weights that forgets in proportion to the run's length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onecycle import checks
from onecycle.averaging import Averaging

if TYPE_CHECKING:
    from onecycle.learner import Learner


LONGEST = 0.5  # more is what a decay looks like


class EMA(Averaging):
    """Average the weights after every step, and validate the average beside the model.

    What lies `half_life` of the steps so far back weighs half as much as the present, so the
    average has forgotten the beginning at every length of a run, where a fixed 0.999 fits one
    length only. Table and history get `ema_valid_loss` and `ema_<metric>`. At a flat learning rate
    the average often is what a decay would have come to; behind one it changes little.

    After step t = 1, 2, ... of a fit, with h the half-life:
    avg <- avg + (1 - 2^(-1 / (h t))) (p - avg), from avg = p at t = 1. Every fit begins anew.

    Args:
        half_life: as a share of the steps taken so far, in (0, 0.5].
        buffers: "copy" uses the running statistics of batch norm as the model has them, which lag
            much as the average does; "recompute" estimates them anew on up to 50 training batches.
        at_end: leave the averaged weights in the model when the fit is over, unless an error or
            Ctrl-C has ended it. Where another callback leaves weights, too, the last in the list
            has its way.

    Raises:
        ValueError, TypeError: an argument out of its range; when the fit begins, two callbacks
        that would write the same columns.

    Source: Karras et al. 2023, power function EMA (arXiv 2312.02696); Ajroldi et al. 2025 (arXiv
    2502.06761) for the window.

    >>> from onecycle import DataLoaders, EMA, Learner
    >>> import torch
    >>> x = torch.linspace(-1, 1, 64).view(-1, 1)
    >>> learn = Learner(DataLoaders.from_tensors(x, 2 * x, valid=0.25), torch.nn.Linear(1, 1))
    >>> ema = EMA()
    >>> with learn.no_logging():
    ...     learn.fit(3, 0.1, callbacks=[ema])
    >>> sorted(learn.recorder.history[-1])
    ['ema_valid_loss', 'epoch', 'lr', 'seconds', 'train_loss', 'valid_loss']
    >>> with ema.applied(learn):
    ...     prediction = learn.predict(x)
    """

    prefix = "ema"

    def __init__(
        self, half_life: float = 0.05, *, buffers: str = "copy", at_end: bool = False
    ) -> None:
        super().__init__(buffers, at_end)
        self.half_life = checks.real("half_life", half_life, low=0.0, open_low=True)
        if self.half_life > LONGEST:
            raise ValueError(
                f"half_life must be a share of the steps so far, such as 0.05, at most {LONGEST}, "
                f"got {half_life!r}; a decay such as 0.999 would fit one length of run only"
            )
        self._rate = -math.log(2.0) / self.half_life

    def on_step_end(self, learn: Learner) -> None:  # noqa: ARG002 - the contract of a hook
        """Take the weights of this step in."""
        self.steps = t = self.steps + 1
        self.average.update(1.0 if t == 1 else -math.expm1(self._rate / t))
