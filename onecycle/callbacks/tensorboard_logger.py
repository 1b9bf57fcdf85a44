"""A log for TensorBoard."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from onecycle import files
from onecycle.tracking import Record, Tracker, config, figures, flat

if TYPE_CHECKING:
    from onecycle.learner import Learner

PLAIN = (bool, int, float, str)  # what a hyper-parameter of TensorBoard can be


class TensorBoardLogger(Tracker):
    """Write runs for `tensorboard --logdir runs`; needs `pip install "onecycle[tensorboard]"`.

    Every run has a folder of its own in `log_dir`, named by its date. There are the columns of the
    history and step/loss, step/lr, step/mom and step/grad_norm, all over steps; the settings, as a
    text and in the tab of hyper-parameters; and after each fit losses, learning rate and metrics as
    pictures.

    A resumed run goes on in its folder. What was written there after the checkpoint is marked as
    void (`purge_step`), so that TensorBoard shows every step and epoch once.

    Args:
        log_dir: the folder of the runs; is made.
        every: steps between two that are written.

    Attributes:
        run: name of the run, and of its folder.

    Raises:
        ValueError, TypeError: an argument out of its range.
        ImportError: when a fit begins, and tensorboard is not installed.

    >>> log = TensorBoardLogger("runs", every=50)
    """

    extra = "tensorboard"

    def __init__(self, log_dir: files.PathLike = "runs", every: int = 10) -> None:
        super().__init__(every)
        self.log_dir = files.as_folder(log_dir, "log_dir")
        self._writer: Any = None

    def open(self, learn: Learner) -> None:
        """Open the folder and write the settings."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = self.log_dir / str(self.run)
        # It reads files in the order of their names, and by the second alone that would be chance.
        while list(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(0.05)
        writer: Any = SummaryWriter(str(folder), purge_step=self.steps + 1)
        self._writer = writer
        settings = flat(config(learn))
        lines = [f"| {name} | {value} |" for name, value in settings.items()]
        writer.add_text("config", "\n".join(["| | |", "|-|-|", *lines]), self.steps)
        plain = {k: v if isinstance(v, PLAIN) else str(v) for k, v in settings.items()}
        # The third of them, left out, would say that the run is over.
        for summary in hparams(plain, {})[:2]:  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary)

    def write(self, learn: Learner, records: list[Record]) -> None:  # noqa: ARG002
        """Write the numbers."""
        for record in records:
            for name, value in record.scalars().items():
                self._writer.add_scalar(name, value, record.step)
        self._writer.flush()

    def draw(self, learn: Learner) -> None:
        """Write the pictures."""
        for name, figure in figures(learn.recorder):
            self._writer.add_figure(name, figure, self.steps)

    def close(self, *, failed: bool) -> None:  # noqa: ARG002 - TensorBoard has no status
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
