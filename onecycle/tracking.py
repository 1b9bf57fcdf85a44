"""What a tracker is told of a training, and when: the base of the loggers in `callbacks`."""

from __future__ import annotations

import platform
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from onecycle import checks, together
from onecycle.callback import Callback
from onecycle.distributed import rank
from onecycle.extras import need
from onecycle.metrics import named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from onecycle.callbacks.recorder import Recorder
    from onecycle.learner import Learner

STEP = ("loss", "lr", "mom", "grad_norm")  # the columns of a step
Config = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """A step or an epoch, as the Recorder has it.

    Attributes:
        kind: "step" or "epoch".
        step: steps done by then, over all fits, so that the first step is 1.
        values: of a step those of `STEP` that were measured, of an epoch its row of the history.
    """

    kind: str
    step: int
    values: dict[str, Any]

    def scalars(self) -> dict[str, float]:
        """Return the numbers by the names that trackers show: a row's as they are, "step/loss".

        >>> Record("step", 1, {"loss": 0.5}).scalars()
        {'step/loss': 0.5}
        """
        prefix = "step/" if self.kind == "step" else ""
        return {f"{prefix}{k}": float(v) for k, v in self.values.items() if _is_number(v)}


class Tracker(Callback):
    """Base of the loggers: follows `learn.recorder`, and writes what is new at the end of an epoch.

    Nothing of it is read from the device for that, as the Recorder has it by then. All fits of a
    learner make one run, in which steps and epochs are counted on. A learner that has recorded less
    than was written is another one, or a new history: a new run begins.

    A subclass says in `open`, `write`, `draw` and `close` what is done with it. Only rank 0 writes.

    Args:
        every: steps between two that are written, as the Recorder keeps them.

    Attributes:
        run: name of the run, once a fit has begun.
        rows, steps: how many rows of the history and recorded steps are written.

    Raises:
        ValueError, TypeError: `every` is no integer from 1.
        ImportError: when a fit begins, and the extra is not installed.

    >>> class Print(Tracker):
    ...     def write(self, learn, records):
    ...         for record in records:
    ...             print(record.kind, record.step)
    >>> from onecycle import DataLoaders, Learner
    >>> x = torch.ones(4, 1)
    >>> learn = Learner(DataLoaders.from_tensors(x, x, batch_size=2), torch.nn.Linear(1, 1))
    >>> with learn.no_logging():
    ...     learn.fit(1, callbacks=[Print(every=2)])
    step 2
    epoch 2
    """

    extra: ClassVar[str | None] = None  # the package that is needed, and the extra of its name

    def __init__(self, every: int = 1) -> None:
        self.every = checks.integer("every", every)
        self.run: str | None = None
        self.rows = self.steps = 0
        self._begun = self._is_open = False

    def open(self, learn: Learner) -> None:
        """Open the run; set `rows` and `steps` where it has others than were written from here."""

    def write(self, learn: Learner, records: list[Record]) -> None:
        """Write what is new, in the order in which it came to be."""

    def draw(self, learn: Learner) -> None:
        """Write the pictures of a fit that is over, see `figures`."""

    def close(self, *, failed: bool) -> None:
        """Close what `open` has opened, or begun to; `failed` after an error or Ctrl-C."""

    def on_train_begin(self, learn: Learner) -> None:
        """See that the package is there; write nothing, for a run may be about to be resumed."""
        if rank():
            return
        if self.extra is not None:
            need(self.extra, self.extra)
        recorder = learn.recorder
        if self.rows > len(recorder.history) or self.steps > len(recorder.lrs):
            self.run, self.rows, self.steps = None, 0, 0
        # Here, and not when it is opened: the first checkpoint must know it.
        self.run = self.run or f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self._begun = True

    def on_epoch_begin(self, learn: Learner) -> None:
        """Open the run with the first epoch: what was resumed is restored by then."""
        if self._begun and not self._is_open:
            self._enter(learn)

    def on_epoch_end(self, learn: Learner) -> None:
        """Write the steps and the row of the epoch."""
        if self._is_open:
            self.write(learn, self.pending(learn))

    def on_train_end(self, learn: Learner) -> None:
        """Write the steps of an epoch that was broken off, and the pictures; close the run."""
        begun, self._begun = self._begun, False
        failed = True
        try:
            # A run that is resumed at its end has no epoch left.
            if begun and not self._is_open and not learn.loop.failed and learn.recorder.history:
                self._enter(learn)
            if self._is_open:
                self.write(learn, self.pending(learn))
                self.draw(learn)
            failed = learn.loop.failed
        finally:
            if self._is_open:
                self._is_open = False
                self.close(failed=failed)

    def pending(self, learn: Learner) -> list[Record]:
        """Return what is not written yet, and count it as written."""
        recorder = learn.recorder
        found = records(recorder, self.rows, self.steps, self.every)
        # The run of one that was killed may have more than is restored.
        self.rows = max(self.rows, len(recorder.history))
        self.steps = max(self.steps, len(recorder.lrs))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return which run it is, and how much of it is written."""
        return {"run": self.run, "rows": self.rows, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with that run."""
        # Within an epoch a run is restored a second time, when it is open already.
        if not self._is_open:
            self.run, self.rows, self.steps = state["run"], state["rows"], state["steps"]

    def _enter(self, learn: Learner) -> None:
        try:
            self.open(learn)
        except BaseException:
            self.close(failed=True)
            raise
        self._is_open = True


def records(recorder: Recorder, rows: int = 0, steps: int = 0, every: int = 1) -> list[Record]:
    """Return what is recorded, without the first `rows` and `steps`, in the order it came to be.

    Of the steps every one is there whose number `every` divides.

    >>> from onecycle import Recorder
    >>> records(Recorder())
    []
    """
    ends, history = recorder.ends[rows:], recorder.history[rows:]
    epochs = [Record("epoch", step, dict(row)) for step, row in zip(ends, history, strict=True)]
    return sorted([*_steps(recorder, steps, every), *epochs], key=lambda record: record.step)


def _steps(recorder: Recorder, done: int, every: int) -> Iterator[Record]:
    first = done + every - 1 - done % every
    columns = (recorder.losses, recorder.lrs, recorder.moms, recorder.grad_norms)
    values = zip(*(column[first::every].tolist() for column in columns), strict=True)
    for i, numbers in enumerate(values):
        step = dict(zip(STEP, numbers, strict=True))
        # Nan is what a loss can be; of the others it says that there is none.
        measured = {k: v for k, v in step.items() if v == v or k in ("loss", "lr")}
        yield Record("step", first + 1 + i * every, measured)


def figures(recorder: Recorder) -> Iterator[tuple[str, Figure]]:
    """Yield losses, learning rate and metrics as figures, by name; there may be no metrics.

    They belong to nobody else: no window shows them, and none has to be closed.
    """
    from matplotlib.figure import Figure

    draw: dict[str, Callable[..., Any]] = {
        "losses": recorder.plot_losses,
        "lr": recorder.plot_lr,
        "metrics": recorder.plot_metrics,
    }
    for name, drawn_by in draw.items():
        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        with suppress(ValueError):  # no metrics
            drawn_by(ax=figure.subplots())
            yield f"plots/{name}", figure


def config(learn: Learner) -> Config:
    """Return the settings of a run: model, optimizer, versions, and the plan of each of its fits.

    >>> from onecycle import DataLoaders, Learner
    >>> x = torch.ones(4, 1)
    >>> learn = Learner(DataLoaders.from_tensors(x, x), torch.nn.Linear(1, 1))
    >>> config(learn)["parameters"]
    2
    """
    sizes = [(p.numel(), p.requires_grad) for p in learn.model.parameters()]
    return {
        "model": type(learn.model).__name__,
        "parameters": sum(n for n, _ in sizes),
        "trainable": sum(n for n, trained in sizes if trained),
        "optimizer": together.name(learn.opt),
        "metrics": list(named(learn.metrics)),
        "device": str(learn.device),
        "versions": versions(),
        **{f"fit_{i}": dict(plan) for i, plan in enumerate(learn.recorder.plans, start=1)},
    }


def flat(nested: Any, name: str = "") -> dict[str, Any]:
    """Return nested settings as one dict, whose names are the way to each value.

    >>> flat({"fit_1": {"max_lr": [0.1], "moms": (0.95, 0.85), "clip": None}})
    {'fit_1.max_lr': 0.1, 'fit_1.moms': '0.95, 0.85', 'fit_1.clip': None}
    """
    if isinstance(nested, (list, tuple)):
        if not any(isinstance(item, (Mapping, list, tuple)) for item in nested):
            return {name: nested[0] if len(nested) == 1 else ", ".join(map(str, nested))}
        nested = dict(enumerate(nested))
    if not isinstance(nested, Mapping):
        return {name: nested}
    parts = (flat(value, f"{name}.{key}" if name else str(key)) for key, value in nested.items())
    return {key: value for part in parts for key, value in part.items()}


def cleaned(name: str) -> str:
    """Return a name in the characters that every store takes.

    >>> cleaned("hits@10 (%)")
    'hits_10 ___'
    """
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)


def versions() -> dict[str, str]:
    """Return what a training depends on beside its own code.

    >>> sorted(versions())
    ['Python', 'numpy', 'onecycle', 'platform', 'torch']
    """
    return {
        "onecycle": _version("onecycle"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0
