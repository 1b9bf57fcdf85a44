"""RayReport: tells Ray Tune or Ray Train how a trial or a worker goes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from onecycle import checks, distributed
from onecycle.callback import Callback
from onecycle.extras import need
from onecycle.rungs import Rungs

if TYPE_CHECKING:
    from onecycle.learner import Learner

FILE = "learner.pt"


class RayReport(Callback):
    """Report rows of the history to Ray: in a function of Ray Tune or in a worker of Ray Train.

    A report is the whole row: epoch, train_loss, valid_loss, the metrics, lr, seconds. It is made
    at the ends of rungs: at a flat rate each epoch, under a schedule that anneals where a cycle is
    complete, because before that no result says how the end will be. A scheduler of Ray Tune that
    ends trials is for a function that trains several complete cycles, each longer than the one
    before, and goes by the epoch:

        def train(config):
            for epochs in (1, 3, 9):
                learn = make_learner(config)
                learn.fit_one_cycle(epochs, config["lr"], callbacks=[RayReport()])

        ASHAScheduler(time_attr="epoch", grace_period=1, reduction_factor=3, max_t=9)

    In Ray Train all workers report, as it asks for, and rank 0 gives the checkpoint. Where neither
    runs this process nothing is reported, and a line says so.

    Args:
        when: "rung", or "epoch" to report every epoch whatever the schedule.
        checkpoint: with each report model and optimizer, in a file "learner.pt" of the checkpoint
            that `learn.load` reads. Weights that a callback leaves when the fit ends are in it if
            that callback comes before this one in the list.

    Raises:
        ValueError, TypeError: an argument out of its range.
        ImportError: when the fit begins, Ray is not installed.

    >>> report = RayReport(checkpoint=True)
    """

    def __init__(self, when: str = "rung", *, checkpoint: bool = False) -> None:
        self.rungs = Rungs(when)
        self.checkpoint = checks.flag("checkpoint", checkpoint)

    def on_train_begin(self, learn: Learner) -> None:
        """See who listens."""
        self.rungs.begin()
        if _listener() is None:
            learn.say("RayReport: neither Ray Tune nor Ray Train runs this, nothing is reported")

    def on_epoch_end(self, learn: Learner) -> None:
        """Report where a rung ends."""
        if self.rungs.after_epoch(learn):
            self._report(learn)

    def on_train_end(self, learn: Learner) -> None:
        """Report where a rung ends with the fit."""
        if self.rungs.after_fit(learn):
            self._report(learn)

    def state_dict(self) -> dict[str, Any]:
        """Return where the fit is on its way to the end of a rung."""
        return self.rungs.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take that back."""
        self.rungs.load_state_dict(state)

    def _report(self, learn: Learner) -> None:
        listener, row = _listener(), dict(learn.recorder.history[-1])
        if listener is None:
            return
        if not (self.checkpoint and distributed.rank() == 0):
            listener.report(row)
            return
        learn.training_step.guard.settle(learn)
        with TemporaryDirectory() as folder:
            learn.save(Path(folder) / FILE)
            listener.report(row, checkpoint=listener.Checkpoint.from_directory(folder))


def _listener() -> Any:
    """Return the module whose `report` this process is to call: ray.tune, ray.train or None."""
    train, tune = need("ray.train", "ray"), need("ray.tune", "ray")
    # Ray Train's own answers to who asks: only in a worker it has a context.
    try:
        train.get_context()
    except DeprecationWarning:
        return tune
    except RuntimeError:
        return None
    return train
