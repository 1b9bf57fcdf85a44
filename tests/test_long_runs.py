"""Long and many runs: memory as the numbers need it, nothing left behind."""

import contextlib
import gc
import multiprocessing
import os
import sys
import threading
import time
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from helpers import Log, mlp, plain
from torch.utils.data import DataLoader, TensorDataset

from onecycle import Checkpoint, DataLoaders, Learner
from onecycle.series import BLOCK, Series


@pytest.mark.parametrize(("kind", "size"), [("f", 4), ("d", 8)])
def test_a_series_needs_the_bytes_of_its_numbers(kind, size):
    tracemalloc.start()
    series = Series(kind)
    for number in range(16 * BLOCK):
        series.extend([number])
    needed = tracemalloc.get_traced_memory()[0] / len(series)
    tracemalloc.stop()
    assert size <= needed < size * 1.01
    assert series.values()[[0, BLOCK, -1]].tolist() == [0, BLOCK, 16 * BLOCK - 1]


def test_a_recorded_step_needs_sixteen_bytes():
    batch = (torch.ones(1, 1), torch.ones(1, 1))
    learn = Learner(([batch] * 3000, None), torch.nn.Linear(1, 1))
    own = [tracemalloc.Filter(True, "*/series.py"), tracemalloc.Filter(True, "*/recorder.py")]
    sizes = []
    tracemalloc.start()
    for _ in range(2):
        learn.fit(1, 1e-3)
        traces = tracemalloc.take_snapshot().filter_traces(own).traces
        sizes.append(sum(trace.size for trace in traces))
    tracemalloc.stop()
    # A growing array leaves room for a sixteenth, and there is a row for the epoch.
    assert (sizes[1] - sizes[0]) / 3000 < 16 * 17 / 16 + 2


@pytest.mark.parametrize("every", [2, 3, 100])
def test_one_step_in_so_many_can_be_kept(data, every):
    whole, thin = Learner(data, mlp(), clip=1.0), Learner(data, mlp(), clip=1.0)
    thin.recorder.every = every
    for learn in (whole, thin):
        torch.manual_seed(2)
        learn.fit_one_cycle(2, 0.01)
    for name in ("losses", "lrs", "moms", "grad_norms"):
        kept = getattr(whole.recorder, name)[::every]
        np.testing.assert_array_equal(getattr(thin.recorder, name), kept)
    for one, other in zip(whole.recorder.history, thin.recorder.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    thin.recorder.plot_losses()
    assert len(thin.recorder.epochs) == len(thin.recorder.losses)


def left_behind():
    gc.collect()
    files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0  # noqa: PTH208
    return files, threading.active_count(), multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_a_fit_leaves_no_worker_file_or_thread(digit_tensors, tmp_path, workers, error):
    x, y = digit_tensors
    train = DataLoader(TensorDataset(x[:300], y[:300]), 30, num_workers=workers)
    learn = Learner((train, None), plain())
    learn.fit(1)
    before = left_behind()
    learn.callbacks = [Log({("on_step_end", 4): error()} if error else None)]
    try:
        learn.fit(2, callbacks=Checkpoint(tmp_path / "run.pt", every_steps=1))
    except (ZeroDivisionError, KeyboardInterrupt):
        # While the traceback still holds the frames of the loop.
        assert multiprocessing.active_children() == []
    learn.callbacks = []  # with the error that one of them holds, and the batch in its traceback
    # The thread that feeds a worker's queue is told to end, and ends when it is next run.
    waited = 0
    while left_behind() != before and (waited := waited + 1) < 100:
        time.sleep(0.1)
    assert left_behind() == before


def test_a_learner_that_saved_is_collected_once_dropped(data, tmp_path):
    learn = Learner(data, mlp(), callbacks=[Checkpoint(tmp_path / "run.pt")])
    learn.fit_one_cycle(1, 0.01)
    reference = weakref.ref(learn)
    del learn
    gc.collect()
    assert reference() is None


def test_a_thinned_run_is_resumed_exactly(data, tmp_path):
    def run(at, saver=()):
        learn = Learner(data, mlp(), callbacks=[Log({("on_step_end", at): KeyboardInterrupt()})])
        learn.recorder.every = 3
        with contextlib.suppress(KeyboardInterrupt):
            learn.fit_one_cycle(2, 0.01, callbacks=saver)
        return learn

    whole = run(99)
    run(15, Checkpoint(tmp_path / "run.pt", every_steps=1))
    learn = Learner(DataLoaders(data.train, data.valid), mlp(), callbacks=[Log()])
    learn.recorder.every = 3
    learn.resume(tmp_path / "run.pt")
    assert learn.recorder.losses.tolist() == whole.recorder.losses.tolist()
    assert learn.recorder.lrs.tolist() == whole.recorder.lrs.tolist()
