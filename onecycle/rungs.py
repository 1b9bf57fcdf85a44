"""Which epochs of a fit have a result that can be compared with that of another fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onecycle import checks
from onecycle.schedules import progress
from onecycle.schedules.shapes import ends_low

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

WHEN = ("rung", "epoch")


class Rungs:
    """Follows a fit and tells after which epochs its result is one to compare.

    In the middle of a 1cycle, at a high learning rate, no result says how the end of it will be. So
    a rung ends

    * at a flat rate with every epoch;
    * under a schedule that anneals where a cycle is complete: with the fit, and before that with
      each cycle but the last of one that restarts, such as `sgdr`. Nothing is known of torch's
      schedulers, so of theirs the end of the fit alone counts;
    * not with a fit that trains the first part of a cycle, by `tot_epochs`.

    A fit that `CancelTrain` ends early has its result there; one that fails has none.

    Args:
        when: "rung", or "epoch" for every epoch.

    >>> rungs = Rungs()
    """

    def __init__(self, when: str = "rung") -> None:
        self.when = checks.choice("when", when, WHEN)
        self._waits = False  # whether the last epoch has no result yet

    def begin(self) -> None:
        """A fit begins."""
        self._waits = False

    def after_epoch(self, learn: Trainer) -> bool:
        """Tell whether a rung ends with the epoch that is over."""
        self._waits = self.when == "rung" and _moves(learn.scheduler) and not _restarts(learn)
        return not self._waits

    def after_fit(self, learn: Trainer) -> bool:
        """Tell whether a rung ends with the fit, and `after_epoch` did not say so before."""
        waits, self._waits = self._waits, False
        return waits and not learn.loop.failed and learn.n_epochs <= learn.stop_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return whether the last epoch has no result yet."""
        return {"waits": self._waits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take that back."""
        self._waits = state["waits"]


def anneals(scheduler: Any) -> bool:
    """Tell whether the rate of a scheduler ends below half of its highest, as far as that is known.

    >>> from onecycle import ParamScheduler
    >>> anneals(ParamScheduler({"lr": lambda p: 1.0 - p}))
    True
    """
    return _known(scheduler) and ends_low(lambda p: scheduler.values_at(p)["lr"][-1])


def _known(scheduler: Any) -> bool:
    """Tell whether there is a scheduler, and none of torch."""
    return hasattr(scheduler, "values_at")


def _moves(scheduler: Any) -> bool:
    return anneals(scheduler) if _known(scheduler) else scheduler is not None


def _restarts(learn: Trainer) -> bool:
    """Tell whether the rate has fallen up to the step that is over and rises after it.

    Some schedules have their lowest value in the last step of a cycle, some in the first.
    """
    if learn.budget is not None or not _known(learn.scheduler):
        return False
    before, here, after, beyond = (
        learn.scheduler.values_at(progress(step, learn.total_steps))["lr"][-1]
        for step in range(learn.step - 2, learn.step + 2)
    )
    return bool(before > here and (here < after or after < beyond))
