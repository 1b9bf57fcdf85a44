"""Whole runs for the tests of resuming: made by name, killed at will, each in a process of its own.

A child is forked from a server that has imported everything and trained nothing, so a new process
costs milliseconds instead of seconds.
"""

import multiprocessing
import os
import random
import signal
import zlib
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first step of an optimizer would import it, in every child
from helpers import Noisy, mlp, sgd
from schedulefree import AdamWScheduleFree
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from onecycle import (
    EMA,
    SWA,
    Callback,
    CancelTrain,
    Checkpoint,
    DataLoaders,
    EarlyStopping,
    Learner,
    ParamScheduler,
    SaveBest,
    ScheduleFree,
    TorchScheduler,
    accuracy,
)
from onecycle.data import cutout, digits, flip, random_crop
from onecycle.schedules import linear, sgdr

EPOCHS, BATCHES = 2, 8
STEP = partial(lr_scheduler.StepLR, step_size=3, gamma=0.5)
FITS = {
    "one_cycle": lambda learn, **k: learn.fit_one_cycle(EPOCHS, 0.05, **k),
    "three_phase": lambda learn, **k: learn.fit_one_cycle(EPOCHS, 0.05, three_phase=True, **k),
    "constant": lambda learn, **k: learn.fit(EPOCHS, 0.01, **k),
    "wsd": lambda learn, **k: learn.fit_wsd(EPOCHS, 0.02, **k),
    "sgdr": lambda learn, **k: learn.fit(
        EPOCHS, 0.02, schedule=sgdr(cycle_len=1, epochs=EPOCHS), **k
    ),
    "own": lambda learn, **k: learn.fit(EPOCHS, 0.02, schedule=lambda p: 1.0 - p / 2, **k),
    "torch": lambda learn, **k: learn.fit(EPOCHS, 0.02, schedule=TorchScheduler(STEP), **k),
}
OPTIMIZERS = {"sgd": sgd, "adamw": torch.optim.AdamW, "schedule_free": AdamWScheduleFree}
LOADERS = ("in_memory", "augmented", "torch", "own_generator", "list", "stream")


@dataclass(frozen=True)
class Case:
    """A run, by names that a new process can make it from."""

    fit: str = "one_cycle"
    opt: str = "adamw"
    loader: str = "torch"
    accumulate: int = 1
    precision: str = "fp32"
    clip: float | None = None
    early: bool = False
    decay: bool = False
    best: str | None = None
    average: bool = False


def loaders(name):
    x, y = digits().train.tensors
    x = x.flatten(1)
    n = 20 * BATCHES - 7
    train, valid = (x[:n], y[:n]), [(x[300:330], y[300:330]), (x[330:350], y[330:350])]
    if name == "in_memory":
        return DataLoaders(DataLoaders.from_tensors(*train, batch_size=20).train, valid)
    if name == "augmented":
        augment = [random_crop(1), flip(), cutout(3), lambda x: x.flatten(1)]
        images = train[0].view(-1, 1, 8, 8)
        made = DataLoaders.from_tensors(images, train[1], batch_size=20, augment=augment)
        return DataLoaders(made.train, valid)
    if name == "list":
        return DataLoaders([(x[i : i + 20], y[i : i + 20]) for i in range(0, n, 20)], valid)
    if name == "datasets":
        made = DataLoaders.from_datasets(Noisy(*train), None, 20, num_workers=2)
        made.train.multiprocessing_context = "fork"
        return DataLoaders(made.train, valid)
    generator = torch.Generator().manual_seed(5) if name == "own_generator" else None
    workers = 2 if name == "workers" else 0
    loader = DataLoader(
        Noisy(*train),
        20,
        shuffle=True,
        generator=generator,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    return DataLoaders(loader, valid, steps_per_epoch=5 if name == "stream" else None)


class Batches(Callback):
    """A checksum of every batch that was trained on."""

    def __init__(self):
        self.seen = []

    def on_batch_end(self, learn):
        self.seen.append(zlib.crc32(learn.batch[0].numpy().tobytes()))

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


class Early(Callback):
    """Stop when the validation loss has not fallen for one epoch; here it never falls."""

    def __init__(self):
        self.best, self.bad = -1.0, 0

    def on_epoch_end(self, learn):
        self.bad += learn.scores["valid_loss"] >= self.best
        if self.bad == 1:
            raise CancelTrain

    def state_dict(self):
        return {"best": self.best, "bad": self.bad}

    def load_state_dict(self, state):
        self.best, self.bad = state["best"], state["bad"]


class Kill(Callback):
    """Send this process a signal at the n-th event, a batch of training or of validation."""

    def __init__(self, at=None, number=signal.SIGKILL):
        self.at, self.number, self.count = at, number, 0

    def on_batch_end(self, learn):
        if self.count == self.at:
            os.kill(os.getpid(), self.number)
        self.count += 1

    def on_validate_batch_end(self, learn):
        self.on_batch_end(learn)


def make(case):
    """The learner of a case, always with the same weights."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    learn = Learner(
        loaders(case.loader),
        mlp(),
        opt_func=OPTIMIZERS[case.opt],
        metrics=[accuracy],
        accumulate=case.accumulate,
        precision=case.precision,
        clip=case.clip,
        device="cpu",
    )
    torch.manual_seed(4)
    return learn


def callbacks(case, path, rules=None, kill=None):
    """Those of a case, with a Checkpoint by `rules` where they are given."""
    given = [Batches(), *([Early()] if case.early else []), Kill(*(kill or ()))]
    if case.decay:
        given.append(ParamScheduler({"wd": linear(0.1, 0.01)}))
    if case.best == "in memory":
        given.append(EarlyStopping("accuracy", on_trigger="cooldown", restore_best=True))
    elif case.best == "file":
        given.append(SaveBest(path.with_name("best.pt"), "accuracy"))
    if case.average:
        given += [EMA(), SWA(0.4, at_end=True)]
    if case.opt == "schedule_free":
        given.append(ScheduleFree())
    return given if rules is None else [*given, Checkpoint(path, **rules)]


def result(learn, given):
    """All that two runs are compared by."""
    recorder = learn.recorder
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in recorder.history]
    return {
        "model": learn.model.state_dict(),
        "opt": learn.opt.state_dict(),
        "steps": {n: torch.tensor(getattr(recorder, n)) for n in ("losses", "lrs", "moms")},
        "norms": torch.tensor(recorder.grad_norms),
        "history": rows,
        "fits": [list(fit) for fit in recorder.fits],
        "batches": given[0].seen,
        "averages": [cb.state_dict() for cb in given if isinstance(cb, (EMA, SWA))],
        "rng": torch.get_rng_state(),
    }


def begin(case, folder, rules=None, kill=None):
    """Train, until the end or a signal; the end is saved as `end.pt`."""
    torch.set_num_threads(1)
    learn = make(case)
    given = callbacks(case, folder / "run.pt", rules, kill)
    FITS[case.fit](learn, callbacks=given)
    torch.save(result(learn, given), folder / "end.pt")


def go_on(case, folder, how="resume"):
    """Do the rest, with generators in any other state, by `resume` or by the same call again."""
    torch.set_num_threads(1)
    learn = make(case)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    path = folder / "run.pt"
    if how == "resume":
        given = callbacks(case, path)
        learn.resume(path, callbacks=given)
    else:
        given = callbacks(case, path, {"resume": True})
        FITS[case.fit](learn, callbacks=given)
    torch.save(result(learn, given), folder / "end.pt")


@cache
def _server():
    """A server that has imported what its children need; it finds modules by the environment."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    try:
        forkserver.set_forkserver_preload(["pytest", "runs"])
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return multiprocessing.get_context("forkserver")


def in_child(function, *args, wait=True):
    """Call `function` in a new process; return its exit code, or the process without `wait`."""
    process = _server().Process(target=function, args=args)
    process.start()
    if not wait:
        return process
    process.join(120)
    code = process.exitcode
    process.close()
    return code


def end_of(folder):
    """What `begin` or `go_on` has saved."""
    return torch.load(folder / "end.pt", weights_only=True)
