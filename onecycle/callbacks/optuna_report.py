"""OptunaReport: tells a trial of Optuna how it goes, and ends it where the pruner says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onecycle.callback import Callback
from onecycle.extras import need
from onecycle.monitor import Monitor
from onecycle.rungs import Rungs
from onecycle.signals import CancelTrain

if TYPE_CHECKING:
    from onecycle.learner import Learner


class OptunaReport(Callback):
    """Report a column of the history to a trial, and raise `optuna.TrialPruned` when it is to end.

    It reports at the ends of rungs: at a flat rate each epoch, under a schedule that anneals where
    a cycle is complete, because before that no result says how the end will be. Pruning is for an
    objective that trains several complete cycles, each longer than the one before:

        def objective(trial):
            lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
            for epochs in (1, 3, 9):
                learn = make_learner()
                learn.fit_one_cycle(epochs, lr, callbacks=[OptunaReport(trial)])
            return learn.recorder.history[-1]["valid_loss"]

    The trial's step is the row's epoch, which counts from 1 over all fits of a learner: 1, 3 and 9
    here. When a trial is pruned all callbacks see the epoch and the fit end, and the learner is
    whole. Which way is better is the study's. A fit that diverges raises FloatingPointError;
    `study.optimize(..., catch=FloatingPointError)` goes on with the next trial.

    Args:
        trial: Optuna's. Where several processes train one model, rank 0 has it and the others have
            None, and all of them end when it is pruned; or each has a `TorchDistributedTrial`.
        monitor: the column, such as "valid_loss", "accuracy" or, of averaged weights,
            "ema_valid_loss".
        when: "rung", or "epoch" to report every epoch whatever the schedule: for averaged weights,
            which say more in the middle of a run.

    Raises:
        TypeError, ValueError: no trial, another value of `when`; when the fit begins, no such
            column.
        ImportError: Optuna is not installed.

    >>> of_another_rank = OptunaReport(None, monitor="accuracy")
    """

    def __init__(self, trial: Any, monitor: str = "valid_loss", *, when: str = "rung") -> None:
        parts = (getattr(trial, name, None) for name in ("report", "should_prune"))
        if trial is not None and not all(map(callable, parts)):
            raise TypeError(f"trial must be an optuna.Trial or None, got {trial!r}")
        self.trial = trial
        self.monitor = Monitor(monitor, "min")  # only to find the column: the study has the mode
        self.rungs = Rungs(when)
        self._pruned = False

    def on_train_begin(self, learn: Learner) -> None:
        """See whether there will be such a column."""
        self.monitor.begin(learn)
        self.rungs.begin()
        self._pruned = False

    def on_epoch_end(self, learn: Learner) -> None:
        """Report where a rung ends; end the fit where the trial is pruned."""
        if self.rungs.after_epoch(learn) and self._report(learn):
            self._pruned = True  # an error raised here would keep others from seeing the event
            raise CancelTrain

    def on_train_end(self, learn: Learner) -> None:
        """Report where a rung ends with the fit, and tell Optuna by its error what was pruned.

        Raises:
            optuna.TrialPruned: the pruner has ended the trial.
        """
        pruned = self._pruned or (self.rungs.after_fit(learn) and self._report(learn))
        self._pruned = False
        if pruned and not learn.loop.failed:
            last = learn.recorder.history[-1]
            value = f"{self.monitor.monitor} {last.get(self.monitor.monitor)}"
            raise need("optuna", "tune").TrialPruned(f"{value} after epoch {last['epoch']}")

    def state_dict(self) -> dict[str, Any]:
        """Return where the fit is on its way to the end of a rung."""
        return self.rungs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take that back."""
        self.rungs.load_state_dict(state)

    def _report(self, learn: Learner) -> bool:
        """Report the last row, if it has the column; tell whether the trial is to end."""
        row = learn.recorder.history[-1]
        prune = False
        if self.trial is not None and self.monitor.monitor in row:
            self.trial.report(row[self.monitor.monitor], row["epoch"])
            prune = self.trial.should_prune()
        return any(learn.world.gather(prune))
