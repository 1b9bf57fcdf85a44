"""SaveBest: a file of the best epoch, and its weights in the model at the end."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle import checkpoint, checks, files, shards
from onecycle.callback import Callback
from onecycle.monitor import Monitor

if TYPE_CHECKING:
    from onecycle.learner import Learner
    from onecycle.trainer import Trainer


class SaveBest(Callback):
    """Write model and optimizer to a file whenever an epoch is the best of this fit.

    The file is what `learn.save` writes, whole or not at all; `learn.load(path)` reads it. The
    first epoch of a fit is always written, so a file of another run is replaced and never loaded.
    When the fit ends, however it does, the model gets the weights of the best epoch; the optimizer
    stays where it is. Where no epoch was finished, file and model are left alone.

    Args:
        path: the file; its folder is made. `Checkpoint` needs another one.
        monitor: the column of the history to go by, such as "valid_loss" or "accuracy"; for
            "ema_valid_loss" and the like, the weights that are kept are the averaged ones.
        min_delta: what a value must be better by.
        mode: "min" or "max" is better; None asks the metric, of losses less is better.
        load: take the weights of the best epoch at the end.

    Raises:
        ValueError, TypeError: an argument out of its range; when the fit begins, no such column, or
            a path that another callback writes; when it ends, a file that somebody else replaced.
        OSError: the file cannot be written.

    >>> best = SaveBest("runs/best.pt", monitor="accuracy")
    """

    def __init__(
        self,
        path: files.PathLike,
        monitor: str = "valid_loss",
        min_delta: float = 0.0,
        mode: str | None = None,
        *,
        load: bool = True,
    ) -> None:
        self.path = files.as_path(path)
        self.load = checks.flag("load", load)
        self.monitor = Monitor(monitor, mode, min_delta)
        self._run: str | None = None  # marks the files of this fit, once there is one

    def on_train_begin(self, learn: Learner) -> None:
        """Begin afresh: the first epoch will be the best. See whether it can be written."""
        self.monitor.begin(learn)
        self._run = None
        for other in [*learn.loop.callbacks, *learn.loop.savers]:
            if other is not self and self.path.resolve() in _written(other):
                raise ValueError(
                    f"path: {str(self.path)!r} is written by a {type(other).__name__}, too; give "
                    "SaveBest one of its own"
                )
        files.require_writable(self.path)

    def on_epoch_end(self, learn: Learner) -> None:
        """Write the file when this epoch is the best, or the first."""
        improved = self.monitor.look(learn)
        if improved or (improved is not None and self._run is None):
            self._save(learn)

    def on_train_end(self, learn: Learner) -> None:
        """Take the weights of the best epoch.

        Raises:
            ValueError: the file is not the one that this fit wrote.
        """
        run, self._run = self._run, None
        if not (self.load and run and self.monitor.epoch):
            return
        saved = learn.world.first(lambda: checkpoint.load(self.path))
        if saved.get("best", {}).get("run") != run:
            raise ValueError(
                f"path: {str(self.path)!r} was replaced by somebody else while this fit ran, so "
                "the model keeps the weights of the last epoch; give every run a path of its own"
            )
        shards.load(learn.model, saved["model"])
        learn.scores = dict(saved["best"]["scores"])

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and what marks the file."""
        return {"run": self._run, **self.monitor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self._run = state["run"]
        self.monitor.load_state_dict(state)

    def _save(self, learn: Trainer) -> None:
        learn.training_step.guard.settle(learn)
        run = self._run or learn.world.first(lambda: uuid.uuid4().hex)
        own = {"scores": dict(learn.scores), **self.monitor.state_dict()}
        mark = {"run": run, "monitor": self.monitor.monitor, **own}
        with self.monitor.judged(learn):
            states = checkpoint.states(learn.model, learn.opt)
            checkpoint.save(self.path, {**states, "best": mark})
        self._run = run


def _written(other: Any) -> list[Path]:
    """Return the files that another callback or saver writes, older ones beside the newest."""
    path = getattr(other, "path", None)
    if not isinstance(path, Path):
        return []
    older = range(1, getattr(other, "keep", 1))
    return [path.resolve(), *(path.with_name(f"{path.name}.{n}").resolve() for n in older)]
