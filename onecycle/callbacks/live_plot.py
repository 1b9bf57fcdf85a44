"""Losses and learning rate, drawn while training runs."""

from __future__ import annotations

import base64
import io
import time
from typing import TYPE_CHECKING, Any

from onecycle import checks, display
from onecycle.callback import Callback

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from onecycle.learner import Learner

REFRESH = 0.5  # seconds between two pictures at least
SHARE = 10  # a picture is drawn again after this many times the time that it took


class LivePlot(Callback):
    """Draw losses and learning rate of the running fit, updated in place in a notebook.

    Training loss of every step thin and smoothed, validation loss, and the learning rate on a
    second axis. Drawn at most twice a second and in at most a tenth of the time; no other output of
    the cell is touched. Outside of a notebook, and within `learn.no_logging()`, nothing is shown,
    and `figure` is drawn at the end.

    Args:
        skip_start: steps at the beginning of the fit that are left out.

    Raises:
        ValueError, TypeError: `skip_start` is no integer from 0.

    >>> graph = LivePlot(skip_start=5)
    """

    def __init__(self, skip_start: int = 0) -> None:
        self.skip_start = checks.integer("skip_start", skip_start, low=0)
        self.figure: Figure | None = None
        self._handle: Any = None
        self._first = 0
        self._next = float("inf")

    def on_train_begin(self, learn: Learner) -> None:
        """Begin a new picture, in the cell that runs now."""
        self._handle, self._first = None, len(learn.recorder.lrs)
        shown = learn.display.table and isinstance(display.surface(), display.Notebook)
        self._next = time.monotonic() + REFRESH if shown else float("inf")

    def on_batch_end(self, learn: Learner) -> None:
        """Draw again when it is time."""
        began = time.monotonic()
        if began < self._next:
            return
        self._draw(learn)
        now = time.monotonic()
        self._next = now + max(REFRESH, SHARE * (now - began))

    def on_train_end(self, learn: Learner) -> None:
        """Draw the whole fit."""
        if len(learn.recorder.lrs) > self._first:
            self._draw(learn)
        self._handle, self._next = None, float("inf")

    def _draw(self, learn: Learner) -> None:
        from matplotlib.figure import Figure

        from onecycle import plot

        # Not by pyplot: a figure of its registry would be shown a second time after the cell.
        self.figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        recorder = learn.recorder
        first, rows = self._first + self.skip_start, recorder.fits[-1][1]
        plot.live(
            recorder.epochs[first:],
            recorder.losses[first:],
            recorder.smooth_losses[first:],
            recorder.points("valid_loss", since=rows),
            recorder.lrs[first:],
            self.figure.subplots(),
        )
        if self._next < float("inf"):
            image = io.BytesIO()
            self.figure.savefig(image, format="png", dpi=80)
            encoded = base64.b64encode(image.getvalue()).decode()
            picture = {"image/png": encoded, "text/plain": "losses and learning rate"}
            self._handle = display.show(picture, self._handle)
