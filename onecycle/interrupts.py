"""Ctrl-C and SIGTERM, held back until a run is between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

HELD = (signal.SIGINT, signal.SIGTERM)
ELASTIC = "TORCHELASTIC_RUN_ID"  # in the environment of each process that torchrun has started


class Interrupts:
    """Holds the first signal back until `deliver`; a second one acts at once.

    Under torchrun it is the third: what a terminal sends to all, torchrun passes on to all as well.

    Python's own Ctrl-C then raises KeyboardInterrupt, SIGTERM raises SystemExit(143), as a shell
    reports it, and a handler that was there before is called. Signals that are ignored stay so.
    Outside of the main thread, which alone gets signals, nothing is held.

    >>> with Interrupts() as interrupts:
    ...     interrupts.pending
    []
    """

    def __init__(self) -> None:
        self.pending: list[tuple[int, Any]] = []
        self._usual: dict[int, Any] = {}
        self._process = 0
        self._of_children: Any = None

    def __enter__(self) -> Interrupts:
        """Begin to hold signals back."""
        self.pending.clear()
        self._usual.clear()
        self._process = os.getpid()  # a worker that is forked from it has nothing to finish
        if threading.current_thread() is threading.main_thread():
            for number in HELD:
                usual = signal.getsignal(number)
                if _acts(number, usual):
                    self._usual[number] = usual
                    signal.signal(number, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        """Give the handlers back, then let a signal through that came too late for a rest."""
        # Ctrl-C last: from then on it may come at any line of this.
        for number, handler in reversed(self._usual.items()):
            signal.signal(number, handler)
        self.deliver()

    @property
    def number(self) -> int:
        """The signal that is held back, 0 for none."""
        return self.pending[0][0] if self.pending else 0

    def deliver(self, number: int = 0) -> None:
        """Let the signals through that were held back, the last first, until one ends the run.

        With a `number`, one that has come to another process and is meant for all.
        """
        if number and not self.pending:
            self.pending.append((number, None))
            self._usual.setdefault(number, signal.getsignal(number))
        if self.pending and callable(self._of_children):
            signal.signal(signal.SIGCHLD, self._of_children)
        self._of_children = None
        while self.pending:
            number, frame = self.pending.pop()
            try:
                if not callable(self._usual[number]):
                    raise SystemExit(128 + number)
                self._usual[number](number, frame)
            except BaseException:
                self.pending.clear()
                raise

    def _take(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and os.getpid() != self._process:
            return  # Ctrl-C goes to all processes; the batch a worker reads may still be needed
        self.pending.append((number, frame))
        echoes = ELASTIC in os.environ
        if len(self.pending) > 1 + echoes or os.getpid() != self._process:
            self.deliver()
        elif len(self.pending) == 1 and hasattr(signal, "SIGCHLD"):
            # A signal to all processes ends the workers, too; torch's handler would raise for them
            # in the middle of this step.
            self._of_children = signal.getsignal(signal.SIGCHLD)
            if callable(self._of_children):
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _acts(number: int, handler: Callable[..., Any] | int | None) -> bool:
    """Tell whether a signal would do something that Python knows of."""
    return callable(handler) or (handler is signal.SIG_DFL and number == signal.SIGTERM)
