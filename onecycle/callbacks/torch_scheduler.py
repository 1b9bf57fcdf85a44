"""An adapter for the schedulers of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from onecycle import optimizers
from onecycle.callback import Callback

if TYPE_CHECKING:
    from onecycle.learner import Learner

PATCHED = ("step", "_opt_called")  # what torch's schedulers put on an optimizer


class TorchScheduler(Callback):
    """Let a `torch.optim.lr_scheduler` move the learning rate, once for every optimizer update.

    Every fit begins with a new scheduler; afterwards the optimizer is as it was. Pass it to
    `Learner.fit` as `schedule` or among the callbacks.

    Args:
        make: optimizer -> scheduler, such as `partial(StepLR, step_size=100)`. It counts steps,
            not epochs.

    Raises:
        TypeError: `make` is a finished scheduler, makes none, or is ReduceLROnPlateau, which
            follows a metric and not the steps; see `onecycle.ReduceLROnPlateau`.

    >>> from functools import partial
    >>> from torch.optim.lr_scheduler import StepLR
    >>> every_hundred_steps = TorchScheduler(partial(StepLR, step_size=100))
    """

    def __init__(self, make: Callable[[torch.optim.Optimizer], Any]) -> None:
        if not callable(make):
            raise TypeError(
                "make must be what makes a scheduler, such as partial(StepLR, step_size=100), "
                f"got {make!r}"
            )
        self.make = make
        self._scheduler: LRScheduler | None = None
        self._own: dict[str, Any] = {}
        self._made = False
        self._state: dict[str, Any] | None = None
        self._resumed = False

    def on_train_begin(self, learn: Learner) -> None:
        """Make the scheduler, which sets the rate of the first step."""
        self._own = {name: value for name, value in vars(learn.opt).items() if name in PATCHED}
        self._made = True
        scheduler = self.make(learn.opt)
        if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
            raise TypeError(
                f"make must return a scheduler that counts steps, got {type(scheduler).__name__}"
            )
        if scheduler.optimizer is not learn.opt:
            raise ValueError("make must build the scheduler on the optimizer that it is given")
        self._scheduler = scheduler
        if self._resumed and self._state is not None:
            self._go_on(scheduler, self._state)
        self._resumed = False

    def on_step_end(self, learn: Learner) -> None:  # noqa: ARG002 - the contract of a hook
        """Set the rate of the next step."""
        if self._scheduler is not None:
            self._scheduler.step()

    def on_train_end(self, learn: Learner) -> None:
        """Take what a scheduler leaves on the optimizer away again."""
        if not self._made:
            return
        self._state = self.state_dict()["scheduler"]
        for name in PATCHED:
            vars(learn.opt).pop(name, None)
        vars(learn.opt).update(self._own)
        self._scheduler, self._own, self._made = None, {}, False

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state."""
        current = self._state if self._scheduler is None else self._scheduler.state_dict()
        return {"scheduler": current}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: at once while a fit runs, else in the next one."""
        if self._scheduler is not None and state["scheduler"] is not None:
            self._go_on(self._scheduler, state["scheduler"])
        else:
            self._state, self._resumed = state["scheduler"], True

    @staticmethod
    def _go_on(scheduler: LRScheduler, state: dict[str, Any]) -> None:
        scheduler.load_state_dict(state)
        # Most compute the next rate from the one that the optimizer has.
        rates = list(map(float, scheduler.get_last_lr()))
        optimizers.write_each(scheduler.optimizer, "lr", rates)
