"""ReduceLROnPlateau: scales the learning rate down when a run does not get better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onecycle import checks, optimizers
from onecycle.callback import Callback
from onecycle.monitor import Monitor

if TYPE_CHECKING:
    from onecycle.learner import Learner
    from onecycle.trainer import Trainer


class ReduceLROnPlateau(Callback):
    """Multiply the learning rate by `factor` after `patience` epochs that were not better.

    A schedule is scaled from then on, and not overwritten: after k reductions a step's rate is what
    the schedule gives times factor^k. All layer groups keep their ratios. A cancelled epoch, which
    has no value, counts for nothing. Every fit begins afresh, and leaves the optimizer as it was.

    Args:
        monitor: the column of the history to go by, as in `EarlyStopping`.
        factor: above 0 and below 1.
        patience: epochs in a row, at least 1; by default fewer than `EarlyStopping` waits.
        min_delta: what a value must be better by.
        mode: "min" or "max" is better; None asks the metric, of losses less is better.
        cooldown: epochs after a reduction that are not counted.
        min_lr: a reduction takes the rate of the last group no lower than this.

    Raises:
        ValueError, TypeError: an argument out of its range; when the fit begins, no such column, a
            scheduler behind this callback in the list, which would overwrite what it does, or one
            of torch, which goes by what the optimizer has.

    >>> from onecycle import Learner, ReduceLROnPlateau, data, models
    >>> learn = Learner(data.digits(), models.simple_cnn((1, 8, 10)))
    >>> with learn.no_logging():
    ...     plateau = ReduceLROnPlateau(factor=0.5, patience=1, min_delta=1e9)
    ...     learn.fit(4, 0.01, callbacks=[plateau])
    >>> [row["lr"] for row in learn.recorder.history]
    [0.01, 0.01, 0.005, 0.0025]
    """

    def __init__(
        self,
        monitor: str = "valid_loss",
        factor: float = 0.1,
        patience: int = 2,
        min_delta: float = 0.0,
        mode: str | None = None,
        *,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        self.factor = checks.real(
            "factor", factor, low=0.0, high=1.0, open_low=True, open_high=True
        )
        self.patience = checks.integer("patience", patience)
        self.cooldown = checks.integer("cooldown", cooldown, low=0)
        self.min_lr = checks.real("min_lr", min_lr, low=0.0)
        self.monitor = Monitor(monitor, mode, min_delta)
        self._begin()

    def _begin(self) -> None:
        self.scale = 1.0  # of what the schedule gives
        self._waited = self._rest = 0
        self._text = ""  # said when the row of the epoch is there

    def on_train_begin(self, learn: Learner) -> None:
        """Begin afresh."""
        self._begin()
        self.monitor.begin(learn)
        self._check(learn)

    def on_epoch_begin(self, learn: Learner) -> None:
        """Say what became of the last epoch."""
        self._say(learn)

    def on_batch_begin(self, learn: Learner) -> None:
        """Scale what the schedule has written for this step."""
        if self.scale != 1.0 and learn.scheduler is not None and not _cooling(learn):
            _multiply(learn, self.scale)

    def on_epoch_end(self, learn: Learner) -> None:
        """Judge the epoch, and reduce the rate of those that follow."""
        improved = self.monitor.look(learn)
        if improved is None:
            return
        self._waited = 0 if improved or self._rest else self._waited + 1
        self._rest = max(0, self._rest - 1)
        going_on = learn.epoch + 1 < learn.stop_epoch and not learn.loop.over
        if self._waited >= self.patience and going_on and not _cooling(learn):
            self._reduce(learn)

    def on_train_end(self, learn: Learner) -> None:
        """Say what is left to say."""
        self._say(learn)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, the epochs waited and the reductions."""
        own = ("scale", "_waited", "_rest", "_text")
        return {"monitor": self.monitor.state_dict(), **{name: getattr(self, name) for name in own}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        for name, value in state.items():
            if name != "monitor":
                setattr(self, name, value)
        self.monitor.load_state_dict(state["monitor"])

    def _reduce(self, learn: Trainer) -> None:
        waited, self._waited = self._waited, 0
        rate = optimizers.read(learn.opt, "lr")
        factor = max(self.factor, self.min_lr / rate if rate else 0.0)
        if factor > 1.0 - 1e-9:
            return
        self.scale *= factor
        self._rest = self.cooldown
        if learn.scheduler is None:  # nobody writes the rate again
            _multiply(learn, factor)
        epochs = "1 epoch" if waited == 1 else f"{waited} epochs"
        since = f", since epoch {self.monitor.epoch}" if self.monitor.epoch else ""
        self._text = (
            f"{self.monitor.monitor} has not improved for {epochs}{since}: "
            f"from now on the learning rate is {self.scale:g} of the planned one"
        )

    def _say(self, learn: Trainer) -> None:
        if self._text:
            learn.say(self._text)
        self._text = ""

    def _check(self, learn: Trainer) -> None:
        """Refuse a schedule that could not be scaled."""
        scheduler, everyone = learn.scheduler, list(learn.loop.callbacks)
        if scheduler is None:
            return
        name = type(scheduler).__name__
        if not hasattr(scheduler, "values_at"):
            raise TypeError(
                f"callbacks: ReduceLROnPlateau scales schedules of progress, and {name} goes by "
                "the rate that it finds; give a schedule of onecycle.schedules"
            )
        if everyone.index(scheduler) > everyone.index(self):
            raise ValueError(
                f"callbacks: {name} must come before ReduceLROnPlateau in the list, or it would "
                "overwrite what was reduced"
            )


def _multiply(learn: Trainer, factor: float) -> None:
    rates = optimizers.read_each(learn.opt, "lr")
    optimizers.write_each(learn.opt, "lr", [rate * factor for rate in rates])


def _cooling(learn: Trainer) -> bool:
    """Tell whether an EarlyStopping anneals by now, from the rate that it has found."""
    return any(getattr(callback, "cooling", False) for callback in learn.loop.callbacks)
