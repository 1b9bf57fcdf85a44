"""Ctrl-C and SIGTERM, held back until a run is between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

HELD = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Holds the first signal back until `deliver`; a second one acts at once.

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

    def __enter__(self) -> Interrupts:
        """Begin to hold signals back."""
        self.pending.clear()
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
        usual, self._usual = self._usual, {}
        for number, handler in usual.items():
            signal.signal(number, handler)
        self._let_through(usual)

    def deliver(self) -> None:
        """Let a signal through that was held back."""
        self._let_through(self._usual)

    def _take(self, number: int, frame: Any) -> None:
        self.pending.append((number, frame))
        if len(self.pending) > 1 or os.getpid() != self._process:
            self.deliver()

    def _let_through(self, usual: dict[int, Any]) -> None:
        if not self.pending:
            return
        number, frame = self.pending[-1]
        self.pending.clear()
        if callable(usual[number]):
            usual[number](number, frame)
        else:
            raise SystemExit(128 + number)


def _acts(number: int, handler: Callable[..., Any] | int | None) -> bool:
    """Tell whether a signal would do something that Python knows of."""
    return callable(handler) or (handler is signal.SIG_DFL and number == signal.SIGTERM)
