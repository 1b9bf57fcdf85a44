"""What only looks leaves no trace, whatever it does and wherever it is broken off."""

import copy
import random
import signal
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from helpers import (
    LOADERS,
    OPTIMIZERS,
    Log,
    Noisy,
    Trouble,
    everything,
    make,
    mlp,
    plain,
    same,
    weights,
)
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from onecycle import Callback, Learner, snapshot


def sweep(learn, **options):
    """Run lr_find and swallow what the test planted."""
    try:
        learn.lr_find(**options)
    except (KeyboardInterrupt, ZeroDivisionError, ValueError):
        return


CASES = {
    "success": {},
    "divergence": {"end_lr": 1e4},
    "longer_than_an_epoch": {"num_it": 37},
    "shorter_than_an_epoch": {"num_it": 10},
}
FAULTS = {
    "nan_at_first": (1, float("nan")),
    "nan_later": (14, float("nan")),
    "inf_later": (14, float("inf")),
    "exception": (14, ZeroDivisionError()),
    "interrupt": (14, KeyboardInterrupt()),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("loader", LOADERS)
def test_it_leaves_no_trace(digit_tensors, case, opt, loader):
    learn = make(digit_tensors, opt, loader)
    learn.fit_one_cycle(1, 1e-2)
    before, mine = everything(learn), copy.copy(vars(learn.model))
    learn.lr_find(**CASES[case])
    assert same(before, everything(learn))
    assert same(mine["last"], learn.model.last)
    assert learn.model.calls == mine["calls"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_it_leaves_no_trace_of_a_fault(digit_tensors, fault, opt):
    at, what = FAULTS[fault]
    learn = make(digit_tensors, opt, model=Trouble(at, what))
    before = everything(learn)
    sweep(learn)
    assert same(before, everything(learn))


@pytest.mark.parametrize("fault", [*FAULTS, None])
@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("loader", LOADERS)
def test_training_after_it_is_training_without_it(digit_tensors, fault, opt, loader):
    runs = []
    for find in (True, False):
        at, what = FAULTS.get(fault, (10**9, None))
        learn = make(digit_tensors, opt, loader, model=Trouble(at, what))
        learn.model.at = at if find else 10**9
        if find:
            sweep(learn)
            learn.model.at = 10**9
        learn.fit_one_cycle(2, 1e-2)
        rows = [{**row, "seconds": 0} for row in learn.recorder.history]
        runs.append([weights(learn), learn.recorder.losses, learn.recorder.lrs, rows])
    assert same(*runs)


WAYS = {
    "unrefined": {"refine": False},
    "sweeps": {"n_sweeps": 2},
    "race": {"method": "race"},
    "linear": {"method": "linear"},
    "wd": {"wd": [0.0, 0.1]},
    "one wd": {"wd": 0.5},
    "moms": {"moms": [0.5, 0.95]},
    "wd race": {"method": "race", "wd": [0.0, 0.1], "moms": 0.8},
}


class Fault(nn.Module):
    """Raises at one forward pass, in training or in validation."""

    def __init__(self):
        super().__init__()
        self.net, self.passes, self.at, self.error = mlp(), [], None, None

    def forward(self, x):
        self.passes.append(self.training)
        if len(self.passes) == self.at:
            raise self.error
        return self.net(x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loader", LOADERS)
def test_no_way_leaves_a_trace_wherever_it_is_interrupted(
    digit_tensors, tmp_path, monkeypatch, way, loader
):
    monkeypatch.chdir(tmp_path)
    runs = []
    for find in (True, False):
        log = Log()
        learn = make(digit_tensors, "sgd", loader, model=Fault(), callbacks=[log])
        learn.fit_one_cycle(1, 1e-2)
        before, seen = everything(learn), len(log.events)
        if find:
            learn.model.passes = passes = Passes()
            learn.lr_find(num_it=20, **WAYS[way])
            judged = [k for k, training in enumerate(passes, start=1) if not training]
            # In the first sweep, in what comes after it, in a validation pass, at the very end.
            places = {8, len(passes) * 2 // 3, len(passes), *judged[-2:-1]}
            for place in places:
                learn.model.passes, learn.model.at = Passes(), place
                learn.model.error = KeyboardInterrupt() if place % 2 else ZeroDivisionError()
                with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
                    learn.lr_find(num_it=20, **WAYS[way])
            learn.model.passes, learn.model.at = [], None
            assert len(log.events) == seen
            assert same(before, everything(learn))
        learn.fit_one_cycle(1, 1e-2)
        runs.append([weights(learn), learn.recorder.losses, learn.validate()])
    assert same(*runs)
    assert list(tmp_path.iterdir()) == []


class Passes:
    """A record that a snapshot does not put back."""

    def __init__(self):
        self.seen = []

    def append(self, training):
        self.seen.append(training)

    def __iter__(self):
        return iter(self.seen)

    def __len__(self):
        return len(self.seen)


@pytest.mark.parametrize("mode", [True, False])
def test_gradients_and_mode_come_back(learn, mode):
    learn.model.train(mode)
    gradient = torch.ones_like(learn.model[0].weight)
    learn.model[0].weight.grad = gradient
    learn.lr_find(num_it=10)
    assert learn.model[0].weight.grad is gradient
    assert learn.model.training is mode


def test_persistent_workers_do_not_remember_it(digit_tensors):
    x, y = digit_tensors
    runs = []
    for find in (True, False):
        torch.manual_seed(0)
        train = DataLoader(
            Noisy(x[:60], y[:60]), 30, shuffle=True, num_workers=1, persistent_workers=True
        )
        learn = Learner((train, None), mlp())
        learn.fit(1)
        if find:
            learn.lr_find(num_it=10)
        learn.fit(1)
        runs.append(weights(learn))
        train._iterator = None
    assert same(*runs)


def test_it_writes_no_file_and_runs_no_callback(learn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = Log()
    learn.callbacks.append(log)
    learn.lr_find()
    assert log.events == []
    assert list(tmp_path.iterdir()) == []


# ---- state that hides -------------------------------------------------------------------------


class ShuffledInPlace(list):
    def __init__(self, batches):
        super().__init__(batches)
        self.order = list(range(len(batches)))

    def __iter__(self):
        random.shuffle(self.order)
        return (self[i] for i in self.order)


class OwnGenerator(nn.Module):
    """Noise from a generator of its own, a list and a dict that grow, a buffer that is replaced."""

    def __init__(self):
        super().__init__()
        self.net, self.generator = mlp(), torch.Generator().manual_seed(7)
        self.log, self.counts = [], {"calls": 0}
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x):
        self.log.append(len(x))
        self.counts["calls"] += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.net(x - self.mean + 0.1 * torch.randn(x.shape, generator=self.generator))


class Jitter:
    """A transform with a generator of its own, two levels below the loader."""

    def __init__(self):
        self.rngs = [np.random.default_rng(1), random.Random(1)]

    def __call__(self, x):
        return x + 0.1 * (self.rngs[0].standard_normal() + self.rngs[1].random())


class Transformed(Noisy):
    def __init__(self, x, y):
        super().__init__(x, y)
        self.transform = Jitter()

    def __getitem__(self, i):
        return self.transform(self.x[i]).float(), self.y[i]


class ShuffledArray(ShuffledInPlace):
    def __init__(self, batches):
        super().__init__(batches)
        self.order = np.arange(len(batches))

    def __iter__(self):
        np.random.shuffle(self.order)
        return (self[i] for i in self.order)


class Wrapper:
    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        yield from self.loader


class ByName(Transformed):
    def __init__(self, x, y):
        super().__init__(x, y)
        self.transforms = {"train": Jitter()}
        self.transform = self.transforms["train"]
        del self.transform

    def __getitem__(self, i):
        return self.transforms["train"](self.x[i]).float(), self.y[i]


class CentredLoss(nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(10))

    def forward(self, pred, target):
        self.centre += 0.1 * pred.detach().mean(0)
        return super().forward(pred - self.centre, target)


HIDDEN = ["loader", "array", "wrapper", "module", "transform", "by name", "concat", "loss"]


def hiding(digit_tensors, where):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    x, y = (part[:300] for part in digit_tensors)
    train = list(zip(x.split(30), y.split(30), strict=True))
    if where == "loader":
        train = ShuffledInPlace(train)
    if where == "array":
        train = ShuffledArray(train)
    if where == "wrapper":
        train = Wrapper(ShuffledInPlace(train))
    if where == "transform":
        train = DataLoader(Transformed(x, y), 30)
    if where == "by name":
        train = DataLoader(ByName(x, y), 30)
    if where == "concat":
        train = DataLoader(ConcatDataset([Transformed(x[:150], y[:150]), Noisy(x, y)]), 30)
    model = OwnGenerator() if where == "module" else mlp()
    return Learner((train, None), model, loss_func=CentredLoss() if where == "loss" else None)


@pytest.mark.parametrize("where", HIDDEN)
@pytest.mark.parametrize("call", ["lr_find", "validate"])
def test_state_that_hides_is_found(digit_tensors, where, call):
    runs = []
    for run in (True, False):
        learn = hiding(digit_tensors, where)
        if run and call == "lr_find":
            learn.lr_find()
        elif run:
            learn.validate(learn.data.train)
        learn.fit(2, 1e-2)
        runs.append([weights(learn), learn.recorder.losses, getattr(learn.model, "log", None)])
    assert same(*runs)


def test_the_scale_of_the_loss_comes_back(digit_tensors):
    learn = make(digit_tensors, precision="fp16", model=Trouble(20, KeyboardInterrupt()))
    before = learn.training_step.state_dict()
    sweep(learn, start_lr=1, end_lr=1e30)
    assert learn.training_step.state_dict() == before
    learn.fit(1)


def test_a_rate_that_is_a_tensor_stays_the_users(data):
    rate = torch.tensor(0.01)
    model = mlp()
    opt = torch.optim.AdamW(model.parameters(), lr=rate)
    learn = Learner(data, model, opt_func=opt)
    learn.lr_find(num_it=10)
    assert opt.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.01)


def test_gradients_of_what_is_not_trained_stay_as_they_are(data):
    model = mlp()
    head = torch.optim.SGD(model[4].parameters(), lr=0.1)
    learn = Learner(data, model, opt_func=head)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    learn.lr_find(num_it=10)
    assert (model[0].weight.grad == 1).all()


class Odd(nn.Module):
    """Attributes that no snapshot can write to, and containers that change."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.sparse = torch.eye(3).to_sparse_csr()
        self.nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        self.counter, self.stats = Counter(), {"mean": torch.zeros(64)}
        with torch.inference_mode():
            self.cached = torch.ones(2)

    def forward(self, x):
        self.counter["calls"] += 1
        self.stats["mean"] += x.mean(0)
        return self.net(x)


@pytest.mark.parametrize("call", ["lr_find", "validate", "get_preds"])
@pytest.mark.filterwarnings("ignore:.*(Sparse|nested|strided layout)")
def test_odd_attributes_do_no_harm_and_come_back(data, call):
    learn = Learner(data, Odd())
    getattr(learn, call)()
    assert learn.model.counter == Counter()
    assert learn.model.stats["mean"].sum() == 0


@pytest.mark.parametrize("event", ["on_loss_begin", "on_backward_begin"])
def test_a_look_between_forward_and_backward_does_no_harm(data, event):
    runs = []
    for look in (True, False):
        torch.manual_seed(0)
        peek = type("Peek", (Callback,), {event: lambda self, learn: learn.validate()})
        learn = Learner(data, mlp())
        learn.fit(1, callbacks=[peek] if look else [])
        runs.append(weights(learn))
    assert same(*runs)


class Awkward(list):
    """A loader with an iterator of its own and a property that fails."""

    _iterator = None

    @property
    def sampler(self):
        raise RuntimeError("no sampler here")

    def __iter__(self):
        self._iterator = super().__iter__()
        return self

    def __next__(self):
        return next(self._iterator)


def test_an_awkward_loader_is_a_loader(data):
    learn = Learner((Awkward(data.train), None), mlp())
    learn.fit(1)
    learn.lr_find(num_it=12)
    learn.fit(1)
    assert len(learn.recorder.losses) == 20


class Averaging(torch.optim.SGD):
    """An optimizer with a memory of its own."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.calls = 0
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self, closure=None):
        super().step(closure)
        self.calls += 1
        parameters = (p for group in self.param_groups for p in group["params"])
        for slow, fast in zip(self.slow, parameters, strict=True):
            slow.lerp_(fast.detach(), 0.1)


def test_what_an_optimizer_keeps_of_its_own_comes_back(data):
    learn = Learner(data, plain(), opt_func=partial(Averaging, lr=0.1))
    learn.fit(1)
    calls, slow = learn.opt.calls, copy.deepcopy(learn.opt.slow)
    learn.lr_find(num_it=12)
    assert (learn.opt.calls, same(learn.opt.slow, slow)) == (calls, True)


def test_the_last_loss_and_norm_come_back(data):
    learn = Learner(data, mlp(), clip=1.0)
    learn.fit(1)
    before = (learn.training_step.loss, learn.training_step.grad_norm, learn.training_step.samples)
    learn.lr_find(num_it=12)
    after = (learn.training_step.loss, learn.training_step.grad_norm, learn.training_step.samples)
    assert same(before, after)


@pytest.mark.parametrize("event", ["on_batch_begin", "on_backward_begin", "on_epoch_end"])
def test_inside_a_fit_it_is_refused_and_the_fit_goes_on(data, event):
    refused = []

    def look(self, learn):
        with pytest.raises(RuntimeError, match="a fit is running already"):
            learn.lr_find(num_it=10)
        refused.append(event)

    runs = []
    for callbacks in ([type("Look", (Callback,), {event: look})], []):
        learn = Learner(data, plain())
        learn.fit(1, callbacks=callbacks)
        runs.append(weights(learn))
    assert same(*runs)
    assert refused


def test_ctrl_c_waits_until_a_snapshot_is_back():
    done = []

    def restore():
        with snapshot.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("restored")

    with pytest.raises(KeyboardInterrupt):
        restore()
    assert done == ["restored"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
