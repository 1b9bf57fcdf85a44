"""Runs for the tests of several processes: by name, the same by one process and by many.

Each process of N has batches of `WHOLE` / N samples, one process by itself has `WHOLE`.
"""

import os
import pickle
import random
import signal
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from helpers import Halt, everything, same, sgd
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics.regression import MeanSquaredError

from onecycle import (
    EMA,
    SWA,
    Callback,
    CancelBatch,
    Checkpoint,
    DataLoaders,
    EarlyStopping,
    Learner,
    SaveBest,
    accuracy,
    distributed,
    launch,
    rmse,
)
from onecycle.data import digits, flip, random_crop

WHOLE = 32  # samples in a batch of all processes
ODD, ONE = 150, 129  # samples: 22 in the last batch of all; 1, so that most have none


def everywhere(fn, nproc, *args):
    """Return what `fn(*args)` returns in each of `nproc` processes, in the order of their ranks."""
    samples()  # once, and not in every process
    return pickle.loads(launch(_gathered, nproc, fn, *args))


def _gathered(fn, *args):
    os.environ.setdefault("ONECYCLE_PROGRESS", "off")
    world = distributed.join()
    return pickle.dumps(world.gather(fn(*args)))


def all_of(calls):
    """Return the results of several calls (name, function, arguments), made in one launch."""
    return {name: fn(*args) for name, fn, *args in calls}


@cache
def samples():
    x, y = digits().train.tensors
    return x.flatten(1), y


@dataclass(frozen=True)
class Case:
    """A fit, by names."""

    data: str = "in_memory"
    n: int = ODD
    net: str = "net"
    opt: str = "sgd"
    epochs: int = 2
    accumulate: int = 1
    clip: float | None = None
    precision: str = "fp32"


CASES = {
    "ragged": Case(),
    "drop_last": Case("drop_last"),
    "augmented, none left": Case("augmented", ONE),
    "torch, none left": Case("torch", ONE),
    "workers": Case("workers"),
    "datasets": Case("datasets"),
    "list": Case("list"),
    "stream": Case("stream", epochs=4),
    "sampler": Case("sampler", n=148),
    "stateful": Case("stateful"),
    "accumulate": Case(accumulate=3, opt="adamw"),
    "accumulate, none left": Case("torch", ONE, accumulate=2, clip=0.1),
    "bf16": Case(precision="bf16"),
    "fp16": Case(precision="fp16", accumulate=2),
}


def loaders(kind="in_memory", n=ODD):
    """Training data of `n` digits, and 37 for validation."""
    x, y = samples()
    batch_size = WHOLE // distributed.size()
    train, valid = (x[:n], y[:n]), (x[500:537], y[500:537])
    if kind in ("in_memory", "stream", "drop_last", "augmented"):
        options = {"drop_last": kind == "drop_last"}
        if kind == "augmented":
            options["augment"] = [random_crop(1), flip(), lambda images: images.flatten(1)]
            train = train[0].view(-1, 1, 8, 8), train[1]
        made = DataLoaders.from_tensors(*train, valid=valid, batch_size=batch_size, **options)
        steps = 3 if kind == "stream" else None
        return DataLoaders(made.train, made.valid, steps_per_epoch=steps)
    if kind == "list":
        cut = [tuple(t[i : i + batch_size] for t in train) for i in range(0, n, batch_size)]
        return DataLoaders(cut, [tuple(t[:20] for t in valid), tuple(t[20:] for t in valid)])
    items, held_out = TensorDataset(*train), TensorDataset(*valid)
    if kind == "datasets":
        return DataLoaders.from_datasets(items, held_out, batch_size, num_workers=0)
    if kind == "sampler":
        place = distributed.size(), distributed.rank()
        own = DistributedSampler(items, *place, seed=4), DistributedSampler(held_out, *place)
        both = zip((items, held_out), own, strict=True)
        return DataLoaders(*(DataLoader(one, batch_size, sampler=by) for one, by in both))
    options = {"shuffle": True}
    if kind == "stateful":
        options["generator"] = torch.Generator().manual_seed(5)
    if kind == "workers":
        options |= {"num_workers": 1, "multiprocessing_context": "fork"}
    loader = StatefulDataLoader if kind == "stateful" else DataLoader
    return DataLoaders(loader(items, batch_size, **options), DataLoader(held_out, batch_size))


def net(kind="net"):
    """A network whose weights depend on the process."""
    torch.manual_seed(1 + distributed.rank())
    inside = {"norm": [nn.BatchNorm1d(16)], "dropout": [nn.Dropout(0.2)]}.get(kind, [])
    return nn.Sequential(nn.Linear(64, 16), *inside, nn.ReLU(), nn.Linear(16, 10))


def make(case=None, data=None, **options):
    """The learner of a case; each process has generators of its own."""
    case = case or Case()
    made = {
        "opt_func": sgd if case.opt == "sgd" else torch.optim.AdamW,
        "metrics": [accuracy],
        "accumulate": case.accumulate,
        "clip": case.clip,
        "precision": case.precision,
        "device": "cpu",
    }
    model = net(case.net)
    learn = Learner(data or loaders(case.data, case.n), model, **made | options)
    seed(4 + distributed.rank())
    return learn


def seed(number):
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def result(learn):
    """All that two runs are compared by."""
    names = "losses", "lrs", "moms", "grad_norms"
    rows = learn.recorder.history
    return {
        "steps": {name: torch.tensor(getattr(learn.recorder, name)) for name in names},
        "history": [{k: v for k, v in row.items() if k != "seconds"} for row in rows],
        "model": learn.model.state_dict(),
        "opt": learn.opt.state_dict(),
    }


def trained(case, **options):
    learn = make(case, **options)
    learn.fit_one_cycle(case.epochs, 0.05)
    return result(learn)


# ---- one process or many, the same -------------------------------------------------------------


def exact():
    """A fit of which each number is exact in binary, whatever is added up first."""
    x = torch.arange(64, dtype=torch.float64).view(16, 4) % 3 - 1
    y = x.sum(1, keepdim=True)
    data = DataLoaders.from_tensors(x, y, valid=(x, y), batch_size=8 // distributed.size())
    model = nn.Linear(4, 1).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    learn = Learner(data, model, opt_func=torch.optim.SGD, wd=0.0, metrics=[rmse], device="cpu")
    learn.fit(2, 2.0**-4)
    return result(learn)


class Worst:
    """A metric object: the largest difference, of a wrong kind where an update has a duplicate."""

    def reset(self):
        self.seen = []

    def update(self, pred, target):
        self.seen.append((pred - target).abs().flatten())

    def compute(self):
        seen = torch.cat(self.seen)
        return seen.max() + len(seen)


def place_in_order(pred, target):
    """A function of the whole set that knows the order of its samples."""
    return ((pred - target).flatten() * torch.arange(1.0, len(pred) + 1)).sum()


def evaluations(lengths):
    """Scores and predictions of sets of so many samples, all exact in binary."""
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, -1.0]]))
        model.bias.fill_(0.5)
    metrics = {"rmse": rmse, "order": place_in_order, "worst": Worst(), "mse": MeanSquaredError()}
    first = torch.zeros(12, 3), torch.zeros(12, 1)
    learn = Learner(DataLoaders.from_tensors(*first), model, metrics=metrics, device="cpu")
    found = {}
    for n in lengths:
        x = torch.arange(3.0 * n).view(n, 3) % 7
        y = torch.arange(float(n)).view(n, 1) % 5
        dl = DataLoader(TensorDataset(x, y), 12 // distributed.size())
        if n % 2:
            batch_size = 12 // distributed.size()
            dl = DataLoaders.from_tensors(*first, valid=(x, y), batch_size=batch_size).valid
        found[n] = learn.validate(dl), learn.get_preds(dl), learn.predict(x)
    return found


def finders():
    """What lr_find says by each method, and whether it has left a trace."""
    learn = make()
    before = everything(learn)
    sweep = learn.lr_find(num_it=40, refine=False, show_plot=False)
    race = learn.lr_find(1e-3, 1.0, 10, refine=False, method="race", show_plot=False)
    linear = learn.lr_find(num_it=25, refine=False, method="linear", show_plot=False)
    learn.recorder.lr_find = None
    return {
        "sweep": (float(sweep), list(sweep.lrs), list(sweep.losses)),
        "race": [list(entries.items()) for entries in race.rounds],
        "linear": (float(linear), list(linear.lrs), list(linear.losses)),
        "no trace": same(everything(learn), before),
    }


def with_loss_of_its_own():
    """A fit whose loss has a parameter that is trained, too."""
    loss = Scaled()
    model = net()
    opt = sgd([*model.parameters(), *loss.parameters()], lr=0.1)
    learn = Learner(loaders(n=ONE), model, loss, opt_func=opt, device="cpu")
    learn.fit(2, 0.05)
    return result(learn), loss.state_dict()


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0 + distributed.rank()))

    def forward(self, pred, target):
        return functional.cross_entropy(pred * self.scale, target) + self.scale**2


# ---- processes alike ---------------------------------------------------------------------------


def with_norm():
    """A fit of a network with batch norm, and averages whose statistics are made anew."""
    learn = make(Case(net="norm", n=148))
    average = EMA(buffers="recompute", at_end=True)
    learn.fit(2, 0.05, callbacks=[average])
    return result(learn)


def blown():
    """A sweep in which the loss of the last process alone is infinite, at its 20th batch."""
    calls = []

    def loss(pred, target):
        calls.append(pred)
        last = distributed.rank() == distributed.size() - 1
        factor = torch.inf if last and len(calls) == 20 else 1.0
        return functional.cross_entropy(pred, target) * factor

    learn = make(loss_func=loss)
    found = learn.lr_find(num_it=50, refine=False, show_plot=False)
    return float(found), list(found.lrs), list(found.losses)


def by_the_clock():
    """A fit of seconds, and an extension of it."""
    learn = make()
    learn.fit_one_cycle(minutes=0.005, max_lr=0.05)
    learn.extend(1)
    return result(learn)


def watched(folder):
    """A fit with averages, the best epoch in a file, and a stop; each process has its own path."""
    path = Path(folder) / f"best {distributed.rank()}.pt"
    learn = make()
    ema, swa = EMA(), SWA(0.2, at_end=True)
    stopping = EarlyStopping("train_loss", patience=1, min_delta=0.5, restore_best=True)
    learn.fit(6, 0.05, callbacks=[ema, swa, SaveBest(path), stopping])
    learn.save(path.with_name(f"end {distributed.rank()}.pt"))
    return result(learn), learn.scores, ema.state_dict(), swa.state_dict()


class Reductions(Callback):
    """Counts how often gradients are exchanged, batch by batch."""

    def __init__(self):
        self.count, self.counts = 0, []

    def on_train_begin(self, learn):
        learn.network.parallel.register_comm_hook(None, self._exchange)

    def _exchange(self, state, bucket):
        self.count += bucket.is_last()
        return allreduce_hook(state, bucket)

    def on_batch_end(self, learn):
        self.counts.append(self.count)
        self.count = 0


def reductions():
    counted = Reductions()
    make(Case(accumulate=3)).fit(1, 0.05, callbacks=[counted])
    return counted.counts


class Stream(IterableDataset):
    """Digits of which each process has others."""

    def __iter__(self):
        x, y = samples()
        n, k = distributed.size(), distributed.rank()
        return zip(x[k:ODD:n], y[k:ODD:n], strict=True)


def sharded():
    stream = DataLoaders(DataLoader(Stream(), 8), steps_per_epoch=4, sharded=True)
    learn = make(data=stream)
    learn.fit(2, 0.05)
    return result(learn)


class LeaveOut(Callback):
    """Cancels the last batch of each epoch, when others have been gathered."""

    def on_backward_begin(self, learn):
        if learn.last_batch:
            raise CancelBatch


def left_over():
    """A fit of 5 batches an epoch, of which the fourth is a step by itself in the end."""
    learn = make(Case(accumulate=3))
    learn.fit(2, 0.05, callbacks=[LeaveOut])
    return result(learn)


def unlike():
    """The validation loss of weights that are not the same in each process, before any fit."""
    return Learner(loaders(), net(), device="cpu").validate()["valid_loss"]


def own_validation():
    """The validation loss by a fit and by `validate`, of data that each process has divided."""
    x, y = samples()
    n, k = distributed.size(), distributed.rank()
    own = DataLoader(TensorDataset(x[k:ODD:n], y[k:ODD:n]), 8)
    learn = make(data=DataLoaders(own, own, sharded=True))
    learn.fit(1, 0.05)
    return learn.recorder.history[-1]["valid_loss"], learn.validate()["valid_loss"]


def refusals():
    """What is refused, and the words."""
    learn = make()
    of_one = make(Case(net="norm", n=ONE + 1))
    of_one_read = make(Case("torch", net="norm", n=ONE))
    calls = {
        "stream": lambda: make(data=DataLoaders(DataLoader(Stream(), 8), steps_per_epoch=4)),
        "find": lambda: learn.find({"wd": [0, 0.1]}, 1),
        "epoch_find": lambda: learn.epoch_find(2, 0.1),
        "batch of one": lambda: of_one.fit(1),
        "batch of one, read": lambda: of_one_read.fit(1),
    }
    return {name: _raised(call) for name, call in calls.items()}


def _raised(call):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return type(error).__name__, str(error)
    return None


# ---- runs that are stopped ---------------------------------------------------------------------

STOPS = {
    "error": Case("torch", ONE, net="dropout"),
    "signal": Case("augmented", net="dropout", accumulate=3),
    "stateful": Case("stateful", net="dropout"),
    "workers": Case("workers", net="dropout"),
}


class Signal(Callback):
    """Ctrl-C for the last process alone, at its batch of that number."""

    def __init__(self, at):
        self.left = at

    def on_batch_end(self, learn):
        self.left -= 1
        if self.left == 0 and distributed.rank() == distributed.size() - 1:
            os.kill(os.getpid(), signal.SIGINT)


def stop(case, path, by_signal):
    """Begin a run and stop it: after 7 batches by a signal, or by an error."""
    learn = make(case)
    how = Signal(6) if by_signal else Halt(7)
    try:
        learn.fit_one_cycle(2, 0.05, callbacks=[Checkpoint(path, every_steps=3, keep=1), how])
    except (KeyboardInterrupt, SignalException):
        return
    raise AssertionError("the run was not stopped")


def go_on(case, path, by_signal):
    """Finish the run, whatever weights and generators are here."""
    learn = make(case)
    seed(77)
    learn.resume(path, callbacks=[Signal(-1) if by_signal else Halt(10**9)])
    return result(learn), torch.get_rng_state()


def stopped(name, folder):
    """A run that was never stopped, and one that was and went on."""
    case, by_signal = STOPS[name], name == "signal"
    path = Path(folder) / f"{name} {distributed.rank()}.pt"
    learn = make(case)
    learn.fit_one_cycle(2, 0.05)
    never = result(learn), torch.get_rng_state()
    stop(case, path, by_signal)
    return same(never, go_on(case, path, by_signal))


PLAIN = {"in_memory": Case(accumulate=3), "torch": Case("torch", ONE, accumulate=2)}


def stopped_plain(name, folder):
    """Stop a run without dropout by a signal, amid gathered gradients, to go on elsewhere."""
    stop(PLAIN[name], Path(folder) / f"plain {name} {distributed.rank()}.pt", by_signal=True)


def gone_on(name, folder, to):
    """Go on with it, in a file of its own."""
    world = distributed.World()
    source = Path(folder) / f"plain {name} 0.pt"
    path = Path(folder) / f"{to} {name} {world.rank}.pt"
    if world.rank == 0:
        path.write_bytes(source.read_bytes())
    return go_on(PLAIN[name], path, by_signal=True)[0]
