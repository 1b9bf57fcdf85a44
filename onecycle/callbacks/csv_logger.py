"""A log as CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import IO, TYPE_CHECKING

from onecycle import files
from onecycle.tables import finite
from onecycle.tracking import STEP, Record, Tracker, config

if TYPE_CHECKING:
    from onecycle.learner import Learner


class CSVLogger(Tracker):
    """Write a folder with `epochs.csv`, `steps.csv` and, with the settings, `config.json`.

    `epochs.csv` is the history, a line for every epoch. `steps.csv` has the columns step, loss, lr,
    mom and grad_norm, empty where they were not measured.

    The files are what `learn.recorder` holds. When a fit begins they are written anew, whole, so a
    resumed run has every step and epoch once, and the files of another run are replaced; then they
    grow with every epoch.

    Args:
        folder: is made.
        every: steps between two that are written.

    Raises:
        ValueError, TypeError: an argument out of its range; the name of a file.
        OSError: a file cannot be written.

    >>> log = CSVLogger("runs/digits", every=10)
    """

    def __init__(self, folder: files.PathLike, every: int = 1) -> None:
        super().__init__(every)
        self.folder = files.as_folder(folder)
        if self.folder.suffix == ".csv":
            name = str(self.folder.with_suffix(""))
            raise ValueError(f"folder is for several files, got {str(folder)!r}; give {name!r}")
        self._file: IO[str] | None = None

    def open(self, learn: Learner) -> None:
        """Write the settings, and all that is recorded."""
        self.rows = self.steps = 0
        settings = json.dumps(finite({"run": self.run, **config(learn)}), indent=1)
        files.write_text(self.folder / "config.json", settings + "\n")
        path = self.folder / "steps.csv"
        files.write_text(path, ",".join(["step", *STEP]) + "\n" + _lines(self.pending(learn)))
        learn.recorder.write_csv(self.folder / "epochs.csv")
        self._file = path.open("a", encoding="utf-8")

    def write(self, learn: Learner, records: list[Record]) -> None:
        """Append the steps; write the epochs anew, whose columns may be others by now."""
        if self._file is not None:
            self._file.write(_lines(records))
            self._file.flush()
        if any(record.kind == "epoch" for record in records):
            learn.recorder.write_csv(self.folder / "epochs.csv")

    def close(self, *, failed: bool) -> None:  # noqa: ARG002 - no status in a table
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _lines(records: list[Record]) -> str:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, ["step", *STEP], lineterminator="\n")
    steps = (record for record in records if record.kind == "step")
    table.writerows({"step": record.step, **record.values} for record in steps)
    return text.getvalue()
