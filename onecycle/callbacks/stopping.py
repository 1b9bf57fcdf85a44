"""EarlyStopping: ends a run that does not get better, at once or by an anneal of its own."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from onecycle import checks, optimizers, state
from onecycle.callback import Callback
from onecycle.monitor import Monitor
from onecycle.rungs import anneals
from onecycle.signals import CancelTrain

if TYPE_CHECKING:
    from onecycle.learner import Learner
    from onecycle.trainer import Trainer

ON_TRIGGER = ("stop", "cooldown")
MOVED = {"lr": "lr", "mom": "mom", "momentum": "mom"}  # what a cooldown takes over
WARNING = (
    "EarlyStopping under a schedule that anneals: validation in the middle of a cycle, at a high "
    'learning rate, says little about the finished model; on_trigger="cooldown" anneals first'
)

Values = dict[str, list[float]]


class EarlyStopping(Callback):
    """Stop after `patience` epochs in a row that were not better than the best before them.

    Under a schedule that ends low, such as 1cycle, a model in the middle is not finished, however
    long one waits: its learning rate is too high. `on_trigger="cooldown"` then leaves the schedule
    and goes on, linearly in every step, to where it would have ended: learning rate and momentum of
    step k of K, k = 1..K, are `v + (end - v) k / K` where v was that of the last step. Without a
    schedule, or with one of torch, the rate goes to 0. K is the steps of max(1, round(`cooldown` x
    epochs trained)) epochs, or of those that are left. Where the schedule itself has no more than
    that left, it is let finish. Weight decay goes on as planned. In a run of `minutes` the cooldown
    ends by the clock, if that is sooner.

    A cancelled epoch, which has no value, counts for nothing. Every fit begins afresh.

    Args:
        monitor: the column of the history to go by, such as "valid_loss", "accuracy" or, of
            averaged weights, "ema_valid_loss".
        patience: epochs, at least 1.
        min_delta: what a value must be better by.
        mode: "min" or "max" is better; None asks the metric, of losses less is better.
        restore_best: when the fit ends, however it does, the model has the weights and buffers of
            the epoch with the best value, and so has the loss where it is a module. Until then they
            are kept in memory, not on the device.
        on_trigger: "stop", or "cooldown" before it.
        cooldown: epochs of the cooldown over those trained before it in this fit.

    Raises:
        ValueError, TypeError: an argument out of its range; when the fit begins, no such column, or
            a scheduler behind this callback in the list, which would overwrite the cooldown.

    >>> stopping = EarlyStopping(patience=5, on_trigger="cooldown")
    """

    def __init__(
        self,
        monitor: str = "valid_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: str | None = None,
        *,
        restore_best: bool = False,
        on_trigger: str = "stop",
        cooldown: float = 0.2,
    ) -> None:
        self.patience = checks.integer("patience", patience)
        self.restore_best = checks.flag("restore_best", restore_best)
        self.on_trigger = checks.choice("on_trigger", on_trigger, ON_TRIGGER)
        self.cooldown = checks.positive("cooldown", cooldown)
        self.monitor = Monitor(monitor, mode, min_delta)
        self._best = Monitor(monitor, mode)  # here small steps count, too
        self._warned = False
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        self._first = epoch
        self._waited = 0
        self._triggered = False
        self._ramp: Ramp | None = None
        self._text = ""  # said when the row of the epoch is there
        self._weights: list[state.State] = []
        self._scores: dict[str, float] = {}

    @property
    def cooling(self) -> bool:
        """Whether this callback anneals now, or did at the end of its last fit."""
        return self._ramp is not None

    def on_train_begin(self, learn: Learner) -> None:
        """Begin afresh."""
        self._begin(learn.epoch)
        self.monitor.begin(learn)
        self._best.begin(learn)
        if self.on_trigger == "cooldown":
            self._require_last(learn)

    def on_epoch_begin(self, learn: Learner) -> None:
        """Warn once, now that every schedule is planned, if stopping will not be what is wanted."""
        self._say(learn)
        first = learn.epoch == self._first and not self._warned
        if first and self.on_trigger == "stop" and anneals(learn.scheduler):
            self._warned = True
            warnings.warn(WARNING, stacklevel=2)

    def on_batch_begin(self, learn: Learner) -> None:
        """Write the values of this step, after the scheduler, in a cooldown."""
        if self._ramp is not None:
            self._ramp.write(learn.opt, self._ramp.share(learn))

    def on_epoch_end(self, learn: Learner) -> None:
        """Judge the epoch; stop, or begin the cooldown, or end it."""
        if self._best.look(learn) and self.restore_best:
            learn.training_step.guard.settle(learn)
            with self._best.judged(learn):
                self._weights = state.weights(learn.modules)
            self._scores = dict(learn.scores)
        if self._ramp is not None and learn.epoch == self._ramp.last_epoch:
            raise CancelTrain
        improved = self.monitor.look(learn)
        if improved is not None:
            self._waited = 0 if improved else self._waited + 1
        # In a run of minutes the clock tells how many epochs the plan has.
        left = min(learn.stop_epoch, learn.n_epochs) - learn.epoch - 1
        going_on = left > 0 and not learn.loop.over
        if self._waited >= self.patience and going_on and not self._triggered:
            self._trigger(learn, left)

    def on_train_end(self, learn: Learner) -> None:
        """Give the model the weights of the best epoch."""
        self._say(learn)
        weights, self._weights = self._weights, []
        if weights:
            state.restore_weights(learn.modules, weights)
            learn.scores = self._scores

    def state_dict(self) -> dict[str, Any]:
        """Return the best values, the weights that go with them, and the cooldown."""
        return {
            "monitor": self.monitor.state_dict(),
            "best": self._best.state_dict(),
            "first": self._first,
            "waited": self._waited,
            "triggered": self._triggered,
            "ramp": self._ramp and asdict(self._ramp),
            "text": self._text,
            "weights": self._weights,
            "scores": self._scores,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self.monitor.load_state_dict(state["monitor"])
        self._best.load_state_dict(state["best"])
        self._first, self._waited = state["first"], state["waited"]
        self._triggered, self._text = state["triggered"], state["text"]
        self._ramp = state["ramp"] and Ramp(**state["ramp"])
        self._weights, self._scores = state["weights"], state["scores"]

    def _trigger(self, learn: Trainer, left: int) -> None:
        """Stop, or plan the cooldown within the `left` epochs, and say so."""
        self._triggered = True
        others = (other for other in learn.loop.callbacks if isinstance(other, EarlyStopping))
        if any(other.cooling for other in others):
            return
        trained = learn.epoch + 1 - self._first
        epochs = max(1, round(self.cooldown * trained))
        since = f", since epoch {self.monitor.epoch}" if self.monitor.epoch else ""
        why = f"{self.monitor.monitor} has not improved for {_epochs(self._waited)}{since}"
        if self.on_trigger == "stop":
            self._text = f"{why}: stopping"
            raise CancelTrain
        whole = learn.n_epochs <= learn.stop_epoch  # else the schedule ends in a later call
        if whole and left <= epochs and anneals(learn.scheduler):
            self._text = f"{why}: the schedule ends in {_epochs(left)}, and is let finish"
            return
        epochs = min(epochs, left)
        self._text = f"{why}: annealing over {_epochs(epochs)}, then stopping"
        end = ends(learn)
        self._ramp = Ramp(
            first_step=learn.step,
            steps=epochs * learn.steps_per_epoch,
            last_epoch=learn.epoch + epochs,
            progress=learn.progress,
            start={name: optimizers.read_each(learn.opt, name) for name in end},
            end=end,
        )

    def _say(self, learn: Trainer) -> None:
        if self._text:
            learn.say(self._text)
        self._text = ""

    def _require_last(self, learn: Trainer) -> None:
        """Refuse a scheduler behind this callback: in every step the last one to write wins."""
        everyone = list(learn.loop.callbacks)
        behind = everyone[everyone.index(self) + 1 :]
        for callback in (one for one in behind if hasattr(one, "values_at")):
            # One without a dict of schedules moves the learning rate.
            if MOVED.keys() & getattr(callback, "schedules", {"lr"}):
                raise ValueError(
                    f"callbacks: {type(callback).__name__} must come before EarlyStopping in the "
                    "list, or it would overwrite the cooldown"
                )


@dataclass(frozen=True)
class Ramp:
    """A straight line for hyper-parameters, from those of a step to others some steps later."""

    first_step: int
    steps: int
    last_epoch: int
    progress: float  # of the run, where it begins
    start: Values  # for each group of torch
    end: Values

    def share(self, learn: Trainer) -> float:
        """Return how much of the line is behind the next step; the last one has 1."""
        done = (learn.step + 1 - self.first_step) / self.steps
        if learn.budget is not None:  # the clock may end the run before that
            done = max(done, (learn.progress - self.progress) / (1.0 - self.progress))
        return min(1.0, done)

    def write(self, opt: torch.optim.Optimizer, share: float) -> None:
        """Set the values that `share` of the line is behind; at 1 they are exactly `end`."""
        for name, ends in self.end.items():
            pairs = zip(self.start[name], ends, strict=True)
            values = [(1.0 - share) * start + share * end for start, end in pairs]
            optimizers.write_each(opt, name, values)


def ends(learn: Trainer) -> Values:
    """Return learning rate and momentum at the end of the plan, for each group of torch."""
    values: Values = {"lr": [0.0]}
    for callback in learn.loop.callbacks:
        planned = callback.values_at(1.0) if hasattr(callback, "values_at") else {}
        values |= {MOVED[name]: value for name, value in planned.items() if name in MOVED}
    return {name: optimizers.for_each(learn.opt, value) for name, value in values.items()}


def _epochs(n: int) -> str:
    return f"{n} epoch" if n == 1 else f"{n} epochs"
