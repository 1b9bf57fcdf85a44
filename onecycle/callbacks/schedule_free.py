"""Schedule-free optimizers: which of their points the model has, and when."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from onecycle import checks, optimizers, together
from onecycle.averaging import BUFFERS, estimate_norms
from onecycle.callback import Callback
from onecycle.rungs import anneals

if TYPE_CHECKING:
    from onecycle.learner import Learner


class ScheduleFree(Callback):
    """Train by an optimizer that averages its weights itself, and so needs no schedule.

    It is for optimizers with `train()` and `eval()`, such as those of the package `schedulefree`.
    Gradients are taken at a point y; validation, what is kept of an epoch, prediction after the fit
    and the saved model are of the averaged point x. Such an optimizer wants a flat rate:
    `fit(epochs, lr)`, with a warm-up of its own (`warmup_steps`). A second fit goes on with its
    average.

    Args:
        buffers: "recompute" estimates the running statistics of batch norm for x, on up to 50
            training batches, before each validation and at the end; "copy" leaves them as training
            at y has made them.

    Raises:
        TypeError: when the fit begins, an optimizer without these methods.
        ValueError: another value of `buffers`.

    Source: Defazio et al. 2024, "The Road Less Scheduled" (arXiv 2405.15682).

    >>> from functools import partial
    >>> from onecycle import DataLoaders, Learner, ScheduleFree
    >>> from schedulefree import AdamWScheduleFree
    >>> import torch
    >>> x = torch.linspace(-1, 1, 64).view(-1, 1)
    >>> data = DataLoaders.from_tensors(x, 2 * x, valid=0.25)
    >>> opt_func = partial(AdamWScheduleFree, warmup_steps=5)
    >>> learn = Learner(data, torch.nn.Linear(1, 1), opt_func=opt_func, callbacks=[ScheduleFree])
    >>> with learn.no_logging():
    ...     learn.fit(3, 0.1)
    """

    def __init__(self, *, buffers: str = "recompute") -> None:
        self.buffers = checks.choice("buffers", buffers, BUFFERS)
        # The step of which batch norm's statistics are, None outside of a fit.
        self._estimated: int | None = None

    def on_train_begin(self, learn: Learner) -> None:
        """Train at y, once the optimizer and the schedule are known to be for that."""
        if not optimizers.has_modes(learn.opt):
            raise TypeError(
                f"opt_func: ScheduleFree is for optimizers with train() and eval(), such as "
                f"schedulefree.AdamWScheduleFree, got {together.name(learn.opt)}"
            )
        if anneals(learn.scheduler):
            warnings.warn(
                f"{together.name(learn.opt)} averages instead of annealing and is meant for a flat "
                "rate, fit(epochs, lr) with its own warm-up, but this schedule anneals",
                stacklevel=2,
            )
        self._estimated = learn.step

    def on_epoch_begin(self, learn: Learner) -> None:
        """Go to y, where gradients are taken."""
        optimizers.set_mode(learn.opt, training=True)

    def on_validate_begin(self, learn: Learner) -> None:
        """Go to x, and stay there: whoever keeps the best epoch is to keep what was validated."""
        optimizers.set_mode(learn.opt, training=False)
        self._estimate(learn)

    def on_epoch_end(self, learn: Learner) -> None:
        """Go to x where nothing was validated."""
        optimizers.set_mode(learn.opt, training=False)

    def on_train_end(self, learn: Learner) -> None:
        """Leave the model at x."""
        optimizers.set_mode(learn.opt, training=False)
        if self._estimated not in (None, learn.step) and not learn.loop.failed:
            self._estimate(learn)
        self._estimated = None

    def state_dict(self) -> dict[str, Any]:
        """Return of which step the running statistics of batch norm are."""
        return {"estimated": self._estimated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take that back."""
        self._estimated = state["estimated"]

    def _estimate(self, learn: Learner) -> None:
        if self.buffers == "recompute":
            estimate_norms(learn)
            self._estimated = learn.step
