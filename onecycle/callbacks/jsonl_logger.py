"""A log as JSON lines."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

from onecycle import files
from onecycle.tables import finite
from onecycle.tracking import Record, Tracker, config

if TYPE_CHECKING:
    from onecycle.learner import Learner


class JSONLLogger(Tracker):
    """Write settings, steps and epochs to a file, as one JSON object a line.

    The first line has the settings: {"kind": "config", "run": ..., "model": ..., "fit_1": ...}. The
    others are {"kind": "step", "step": 1, "loss": ..., "lr": ..., "mom": ..., "grad_norm": ...},
    without what was not measured, and {"kind": "epoch", "step": 10, "epoch": 1, "train_loss": ...}
    with the row of the history, in the order of training. What is not finite is null.

    The file is what `learn.recorder` holds. When a fit begins it is written anew, whole, so a
    resumed run has every step and epoch once, and the file of another run is replaced; then it
    grows with every epoch.

    Args:
        path: the file; its folder is made.
        every: steps between two that are written.

    Raises:
        ValueError, TypeError: an argument out of its range.
        OSError: the file cannot be written.

    >>> log = JSONLLogger("runs/digits.jsonl", every=10)
    """

    def __init__(self, path: files.PathLike, every: int = 1) -> None:
        super().__init__(every)
        self.path = files.as_path(path)
        self._file: IO[str] | None = None

    def open(self, learn: Learner) -> None:
        """Write the settings, and all that is recorded."""
        self.rows = self.steps = 0
        first = _line({"kind": "config", "run": self.run, **config(learn)})
        files.write_text(self.path, first + "".join(map(_of, self.pending(learn))))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, learn: Learner, records: list[Record]) -> None:  # noqa: ARG002
        """Append the lines."""
        if self._file is not None:
            self._file.writelines(map(_of, records))
            self._file.flush()

    def close(self, *, failed: bool) -> None:  # noqa: ARG002 - no status in a file of lines
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _of(record: Record) -> str:
    return _line({"kind": record.kind, "step": record.step, **record.values})


def _line(values: dict[str, Any]) -> str:
    return json.dumps(finite(values)) + "\n"
