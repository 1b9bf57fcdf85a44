"""R3b: the cost of a checkpoint against torch.save of the same state to a path, in turns."""

import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from shared import child, told
from torch import nn

from onecycle import Callback, Checkpoint, DataLoaders, Learner, checkpoint, state


def measure(options):
    """A small and a large one."""
    return all([child(saving, 5, 1.3) == 0, child(saving, 100, 1.15) == 0])


def saving(megabytes, bar):
    """Compare at a size; AdamW's state is twice that of the model."""
    width = round((megabytes * 1e6 / 12 / 8) ** 0.5)
    x = torch.randn(4, width)
    data = DataLoaders.from_tensors(x, x, batch_size=4)
    learn = Learner(data, nn.Sequential(*(nn.Linear(width, width) for _ in range(8))))
    with TemporaryDirectory() as folder:
        timer = Saves(Path(folder))
        learn.fit(1, 1e-4)  # so that the optimizer has a state
        learn.fit(1, 1e-4, callbacks=[timer])
        size = Path(folder, "run.pt").stat().st_size / 1e6
    columns = zip(*timer.turns, strict=True)
    plain, least, safe = (1e3 * statistics.median(column) for column in columns)
    text = f"{size:.0f} MB: torch.save {plain:.1f} ms, with fsync and rename alone {least:.1f}, "
    text += f"Checkpoint {safe:.1f} ms, {safe / plain:.2f} x (bar {bar})"
    return told("R3b", text, met=safe / plain <= bar)


class Saves(Callback):
    """Times them in turns; none pays for what another has left in the cache of the disk."""

    def __init__(self, folder):
        self.folder, self.turns = folder, []
        self.saver = Checkpoint(folder / "run.pt")

    def on_batch_end(self, learn):
        for _ in range(10):
            content = {"format": checkpoint.FORMAT, **state.capture(learn)}
            plain = seconds(torch.save, content, self.folder / "plain.pt")
            least = seconds(synced, content, self.folder / "least.pt")
            self.turns.append((plain, least, seconds(self.saver.save, learn)))
        del self.turns[0]  # the first has no file to replace


def synced(content, path):
    """The least that a save must do to survive a crash."""
    with path.with_suffix(".new").open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    path.with_suffix(".new").replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def seconds(work, *args):
    """How long it takes, when the disk has nothing else to do."""
    os.sync()
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start
