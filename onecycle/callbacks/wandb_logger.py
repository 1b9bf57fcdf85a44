"""A log for Weights & Biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onecycle.tracking import Record, Tracker, config, figures

if TYPE_CHECKING:
    from onecycle.learner import Learner


class WandbLogger(Tracker):
    """Log to Weights & Biases; needs `pip install "onecycle[wandb]"`.

    The columns of the history are shown over "epoch"; step/loss, step/lr, step/mom and
    step/grad_norm over "step". The settings are in `config["onecycle"]`, and after each fit there
    are losses, learning rate and metrics as pictures. A run that is open already (`wandb.init`) is
    used and left open; else one is opened for each fit and closed after it, as failed where the fit
    did, and all fits of a learner go on with the same one.

    A resumed run is the same run there, too. What it has already is not written again, for it would
    be the same up to the seconds, so every step and epoch is there once. With `WANDB_MODE=offline`
    nobody can be asked what a run has, and every fit writes a folder of its own with the whole run
    up to then: sync the last one.

    Args:
        project: where the run belongs.
        name: of the run; None has W&B find one.
        every: steps between two that are written.
        **options: more of `wandb.init`, such as entity, group, tags and mode.

    Attributes:
        run: id of the run, where it is not one that was open.

    Raises:
        ValueError, TypeError: an argument out of its range.
        ImportError: when a fit begins, and wandb is not installed.

    >>> log = WandbLogger("digits", every=50, tags=["baseline"])
    """

    extra = "wandb"

    def __init__(
        self, project: str | None = None, name: str | None = None, every: int = 10, **options: Any
    ) -> None:
        super().__init__(every)
        self.options = {"project": project, "name": name, "resume": "allow", **options}
        self._there: Any = None
        self._own = False
        self._defined: set[str] = set()

    def open(self, learn: Learner) -> None:
        """Open the run, or take the one that is open; write the settings."""
        import wandb

        self._own = wandb.run is None
        self._there = wandb.init(**{"id": self.run, **self.options}) if self._own else wandb.run
        held, has = self._there.config.get("onecycle") or {}, self._there.summary
        if held.get("run") == self.run:
            self.rows = max(self.rows, int(has.get("epoch") or 0))
            self.steps = max(self.steps, int(has.get("step") or 0))
        else:
            self.rows = self.steps = 0
        settings = {"onecycle": {"run": self.run, **config(learn)}}
        self._there.config.update(settings, allow_val_change=True)
        self._defined.clear()

    def write(self, learn: Learner, records: list[Record]) -> None:  # noqa: ARG002
        """Write the numbers."""
        for record in records:
            scalars = record.scalars()
            axis = {"step": record.step} if record.kind == "step" else {}
            for name in scalars:
                if name not in self._defined and name != "epoch":
                    self._there.define_metric(name, step_metric=record.kind)
                    self._defined.add(name)
            self._there.log({**axis, **scalars})

    def draw(self, learn: Learner) -> None:
        """Write the pictures."""
        import wandb

        pictures = figures(learn.recorder)
        self._there.log({name: wandb.Image(figure) for name, figure in pictures})

    def close(self, *, failed: bool) -> None:
        """Close the run, unless it was open before."""
        there, self._there = self._there, None
        if self._own and there is not None:
            there.finish(exit_code=int(failed))
