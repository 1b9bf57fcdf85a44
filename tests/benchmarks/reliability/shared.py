"""What the bars share: their lines, processes, runs to stop, a loss to spoil, a stopwatch."""

import signal
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from helpers import same
from runs import Case, begin, end_of, go_on, in_child
from torch import nn

from onecycle import Callback
from onecycle.data import digits

KILLED, INTERRUPTED = -signal.SIGKILL, 130
VARIANTS = {
    # First, for when a run is killed its workers live on for seconds, and then miss their folder.
    "DataLoader with 2 workers": Case(loader="workers"),
    "in memory": Case(loader="in_memory"),
    "SGD, clipped": Case(loader="in_memory", opt="sgd", clip=0.5),
    "DataLoader with augmentation": Case(),
    "DataLoader with a generator": Case(loader="own_generator"),
    "accumulate=3": Case(accumulate=3),
    "bf16, wsd": Case(fit="wsd", precision="bf16"),
    "scheduler of torch": Case(fit="torch"),
}


def told(bar, text, failures=(), *, met=True):
    """Print a measurement and its failures; return whether the bar is met."""
    met = bool(met) and not failures
    lines = [f"{bar:4}{text}{'' if met else '   MISSED'}", *(f"       {line}" for line in failures)]
    print("\n".join(lines), flush=True)
    return met


def tried(bar, text, found):
    """Print how many of the cases went well, and what is wrong with the others, by their names."""
    failures = [f"{name}: {', '.join(wrong)}" for name, wrong in found.items() if wrong]
    return told(bar, text.format(len(found) - len(failures), len(found)), failures)


def child(function, *args, wait=True):
    """Call `function` in a new process; return its exit code, or the process without `wait`."""
    process = in_child(_called, function, args, wait=False)
    if not wait:
        return process
    process.join()
    return process.exitcode


def _called(function, args):
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(function(*args) is False)  # a bar that is missed
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)  # without a traceback


@cache
def uninterrupted(case):
    """The end of a run that was never stopped, and never saved."""
    with TemporaryDirectory() as folder:
        if child(begin, case, Path(folder)) != 0:
            raise RuntimeError(f"{case} does not run")
        return end_of(Path(folder))


def finished(case, folder):
    """Go on with a run in a new process; return what of its end is not as if it never stopped."""
    code = child(_resume, case, folder)
    if code != 0:
        return [f"it could not be resumed, exit code {code}"]
    return differences(uninterrupted(case), end_of(folder))


def _resume(case, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that a file was passed over
        go_on(case, folder, "again" if case.fit in ("own", "torch") else "resume")


def differences(one, other):
    """The names of what differs."""
    return [name for name in one if not same(one[name], other[name])]


@cache
def tensors():
    """Real digits, flat, and their labels."""
    x, y = digits().train.tensors
    return x.flatten(1), y


class Spoilt:
    """Cross entropy that is spoilt from the call `first` to `last`, of training or of validation.

    `where` is "loss", "gradient" or "validation"; `what` is an exception or a factor.
    """

    def __init__(self, where="loss", first=float("inf"), last=float("inf"), what=1.0):
        self.where, self.first, self.last, self.what = where, first, last, what
        self.calls = {True: 0, False: 0}

    def __call__(self, pred, target):
        loss = nn.functional.cross_entropy(pred, target)
        training = pred.requires_grad
        self.calls[training] += 1
        hit = self.first <= self.calls[training] <= self.last
        if not hit or training is (self.where == "validation"):
            return loss
        if isinstance(self.what, BaseException):
            raise self.what
        if self.where == "gradient":
            loss.register_hook(lambda grad: grad * self.what)
            return loss
        return loss * self.what


class Soak(Callback):
    """Times every step, and looks at the memory after two of them."""

    def __init__(self, steps, first, look):
        self.took = np.ones(steps)  # written to, so that it occupies its memory from the start
        self.first, self.look, self.seen = first, look, []
        self.done, self.last = 0, time.perf_counter()

    def on_step_end(self, learn):
        now = time.perf_counter()
        self.took[self.done], self.last = now - self.last, now
        self.done += 1
        if self.done in (self.first, len(self.took)):
            self.seen.append(self.look())

    def growth(self):
        """Bytes a step."""
        return (self.seen[1] - self.seen[0]) / (len(self.took) - self.first)
