"""The progress display: a bar within the epoch, a row of an aligned table after it."""

from __future__ import annotations

import os
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from onecycle.callback import Callback
from onecycle.plot import in_notebook

if TYPE_CHECKING:
    from onecycle.learner import Learner

REFRESH = 0.1  # seconds between two updates of the bar


class ProgressBar(Callback):
    """Print one row for every epoch, and show a bar while an epoch runs.

    The bar is tqdm's, for a terminal or a notebook; a log file gets the table only.
    `ONECYCLE_PROGRESS=off` in the environment shows nothing. Every Learner has one;
    `learn.no_bar()` and `learn.no_logging()` silence it.

    Args:
        bar: show the bar.
        table: print the table.

    >>> quiet = ProgressBar(bar=False)
    """

    def __init__(self, bar: bool = True, table: bool = True) -> None:
        self.bar = bar
        self.table = table
        self._columns: list[str] = []
        self._tqdm: Any = None
        self._shown = 0
        self._next = 0.0

    def on_train_begin(self, learn: Learner) -> None:  # noqa: ARG002 - the contract of a hook
        """Begin a new table."""
        self._columns = []

    def on_epoch_begin(self, learn: Learner) -> None:
        """Open the bar of the epoch."""
        self._close()
        if self.bar and not _off() and _watched():
            self._tqdm = _bar(
                total=learn.batches_per_epoch,
                desc=f"epoch {learn.epoch + 1}/{learn.n_epochs}",
                leave=False,
                mininterval=0.0,
                dynamic_ncols=True,
            )
            self._shown, self._next = 0, time.monotonic() + REFRESH

    def on_batch_end(self, learn: Learner) -> None:
        """Move the bar, at most ten times a second."""
        if self._tqdm is None or time.monotonic() < self._next:
            return
        if learn.loss is not None:
            self._tqdm.set_postfix_str(f"loss {learn.loss.item():.4f}", refresh=False)
        self._tqdm.update(learn.batch_index + 1 - self._shown)
        self._shown, self._next = learn.batch_index + 1, time.monotonic() + REFRESH

    def on_epoch_end(self, learn: Learner) -> None:
        """Print the row of the epoch, under a header when the columns are new."""
        self._close()
        if not self.table or _off():
            return
        row = learn.recorder.history[-1]
        if list(row) != self._columns:
            self._columns = list(row)
            print("  ".join(_head(name) for name in row))
        print("  ".join(_cell(name, value) for name, value in row.items()), flush=True)

    def on_train_end(self, learn: Learner) -> None:  # noqa: ARG002
        """Leave no bar behind."""
        self._close()

    def _close(self) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None


def _head(name: str) -> str:
    return ("time" if name == "seconds" else name).rjust(_width(name))


def _cell(name: str, value: Any) -> str:
    """Return one value, right-aligned under its name."""
    if name == "seconds":
        text = f"{int(value) // 60:02d}:{int(value) % 60:02d}"
    elif name == "lr":
        text = f"{value:.2e}"
    else:
        text = f"{value:.6f}" if isinstance(value, float) else str(value)
    return text.rjust(_width(name))


def _width(name: str) -> int:
    return 5 if name in ("epoch", "seconds") else max(len(name), 10)


def _off() -> bool:
    return os.environ.get("ONECYCLE_PROGRESS") == "off"


def _watched() -> bool:
    """Tell whether a bar can move: in a terminal, or in a notebook that has widgets."""
    return sys.stderr.isatty() or (in_notebook() and find_spec("ipywidgets") is not None)


def _bar(**options: Any) -> Any:
    from tqdm.auto import tqdm

    return tqdm(**options)
