"""lr_find: it leaves no trace whatever happens, stops in time, and says what the curve says."""

import copy
import math
import pickle
import random
import re
import signal
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from helpers import Log, everything, mlp, plain, same, sgd, weights
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, TensorDataset

from onecycle import Callback, DataLoaders, Learner, LRFind, LRFinder, accuracy, finder, state
from onecycle import suggest as rules

OPTIMIZERS = {"sgd": sgd, "adamw": torch.optim.AdamW}
LOADERS = ["in_memory", "torch", "own_generator"]


class Noisy(Dataset):
    """Augmentation that draws from every global generator."""

    def __init__(self, x, y):
        self.x, self.y, self.calls = x, y, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.calls += 1
        noise = torch.rand(1) + np.random.rand() + random.random()
        return self.x[i] + 0.01 * noise.float(), self.y[i]


class Trouble(nn.Module):
    """Raises or spoils the output at one forward pass; has state that state_dict misses."""

    def __init__(self, at=10**9, what=None):
        super().__init__()
        self.net, self.at, self.what, self.calls = mlp(), at, what, 0
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.last = torch.zeros(1)

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        self.last = self.last + 1
        if self.training and self.calls == self.at:
            if isinstance(self.what, BaseException):
                raise self.what
            return self.net(x) * self.what
        return self.net(x)


def make(digit_tensors, opt="adamw", loader="torch", model=None, **options):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    x, y = digit_tensors
    valid = (x[300:400], y[300:400])
    data = DataLoaders.from_tensors(x[:300], y[:300], valid=valid, batch_size=30)
    if loader != "in_memory":
        generator = torch.Generator().manual_seed(5) if loader == "own_generator" else None
        train = DataLoader(Noisy(x[:300], y[:300]), 30, shuffle=True, generator=generator)
        data = DataLoaders(train, [(x[300:400], y[300:400])])
    return Learner(data, model or Trouble(), opt_func=OPTIMIZERS[opt], **options)


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


def test_the_sweep_is_exponential_and_ends_exactly(learn):
    found = learn.lr_find(1e-6, 1e-2, num_it=41, stop_div=False)
    assert (found.lrs[0], found.lrs[-1], len(found.lrs)) == (1e-6, 1e-2, 41)
    np.testing.assert_allclose(np.diff(np.log10(found.lrs)), 0.1)


def test_losses_are_those_of_the_steps(learn):
    finder, losses = LRFinder(1e-6, 1e-2, num_it=20), []

    class Watch(Callback):
        def on_backward_end(self, learn):
            losses.append(learn.loss.item())

    learn.fit(2, callbacks=[finder, Watch])
    assert finder.losses == losses == learn.recorder.losses.tolist()


def test_it_stops_when_the_loss_diverges(learn):
    found = learn.lr_find(end_lr=1e6, num_it=200)
    assert len(found.losses) < 200
    assert found.losses[-1] > 1.3 * found.losses[0]
    assert len(learn.lr_find(end_lr=1e3, num_it=60, stop_div=False).losses) == 60


@pytest.mark.parametrize(
    ("losses", "diverges"),
    [
        ([2.3] * 9 + [9.0] * 3, False),
        ([2.3] * 20 + [2.5] * 3, False),
        ([2.3] * 20 + [2.6] * 3, True),
        ([2.3] * 20 + [9.0] + [2.3] * 2, False),
        ([0.0] * 10 + [-5.0] * 10 + [2.4] * 3, False),
        ([0.0] * 10 + [-5.0] * 10 + [2.6] * 3, True),
        ([0.02, 0.3] * 10 + [0.5] * 3, False),
        ([0.02, 0.3] * 10 + [0.7] * 3, True),
    ],
)
def test_what_counts_as_divergence(losses, diverges):
    finder = LRFinder()
    finder.losses = losses
    assert finder._diverges() is diverges


def test_a_negative_loss_does_not_stop_it(data):
    loss = nn.CrossEntropyLoss()
    learn = Learner(data, mlp(), loss_func=lambda pred, y: loss(pred, y) - 5)
    assert len(learn.lr_find(end_lr=1e-2).losses) == 100


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_it_at_once(digit_tensors, bad):
    learn = make(digit_tensors, model=Trouble(14, bad))
    found = learn.lr_find()
    assert len(found.losses) == 14
    assert not math.isfinite(found.losses[-1])
    found.plot()


def test_a_bad_loss_at_the_first_step_is_an_error_that_names_start_lr(digit_tensors):
    learn = make(digit_tensors, model=Trouble(1, float("nan")))
    with pytest.raises(ValueError, match="nan at the first step, start_lr=1e-07"):
        learn.lr_find()


def test_the_result_is_a_float_that_fits(learn):
    found = learn.lr_find()
    assert 1e-3 < float(found) < 1
    assert found.band[0] <= found <= found.band[1]
    assert found.confidence == "high"
    assert found * 1 == float(found) == pickle.loads(pickle.dumps(found)) == float(str(found))
    learn.fit_one_cycle(1, found)
    assert learn.recorder.lrs.max() == float(found)


def trained(digit_tensors):
    """An MLP after twenty epochs."""
    x, y = digit_tensors
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    learn = Learner(DataLoaders.from_tensors(x, y, valid=(x[:300], y[:300])), model)
    learn.fit_one_cycle(20, 5e-3)
    return learn


def test_a_trained_model_gives_no_signal_and_fit_says_why(digit_tensors):
    learn = trained(digit_tensors)
    found = learn.lr_find()
    assert math.isnan(found)
    with pytest.raises(ValueError, match=r"max_lr: .*no descent: already trained"):
        learn.fit_one_cycle(1, found)


def test_tensor_dataset_is_fine(digit_tensors):
    x, y = digit_tensors
    loader = DataLoader(TensorDataset(x[:120], y[:120]), batch_size=30, shuffle=True)
    assert len(Learner((loader, None), mlp()).lr_find(num_it=25).lrs) <= 25


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


# ---- what the sweeps are made of -------------------------------------------------------------


def stepped(learn, name="lr"):
    """A list that grows by what every group has when the optimizer steps."""
    seen = []
    learn.opt.register_step_pre_hook(
        lambda opt, *_: seen.append([group[name] for group in opt.param_groups])
    )
    return seen


@pytest.mark.parametrize("way", ["unrefined", "race", "linear"])
def test_groups_keep_their_ratio(data, way):
    model = mlp()
    groups = [
        {"params": model[0].parameters(), "lr": 0.001},
        {"params": [p for layer in model[1:] for p in layer.parameters()], "lr": 0.01},
    ]
    learn = Learner(data, model, opt_func=torch.optim.AdamW(groups))
    seen = stepped(learn)
    learn.lr_find(num_it=20, **WAYS[way])
    first, last = np.array(seen).T
    np.testing.assert_allclose(first, last / 10)
    assert len(set(last)) > 10


def test_losses_are_kept_for_every_update_and_the_clip_is_in_use(data):
    still = {"accumulate": 3, "clip": 1e-9, "wd": 0}
    learn = Learner(data, plain(), opt_func=partial(torch.optim.SGD, lr=1), **still)
    forward = []
    learn.model.register_forward_pre_hook(lambda *_: forward.append(1))
    found = learn.lr_find(num_it=12, refine=False)
    assert len(found.losses) == 12
    assert len(forward) == 10 * 3  # 10 batches are 4 updates
    assert math.isnan(found)


def test_the_closer_look_has_more_steps_where_the_curve_falls_and_turns(learn):
    found = learn.lr_find(stop_div=False)
    low, high = rules.bracket(found.lrs, found.losses)
    assert (found.closeup.lrs[0], found.closeup.lrs[-1]) == pytest.approx((low, min(high, 10)))
    assert (len(found.lrs), len(found.closeup.lrs)) == (100, 100 * finder.CLOSER)
    assert float(found) == float(found.closeup)
    assert learn.lr_find(refine=False).closeup is None


def test_sweeps_begin_alike_and_see_other_batches(learn):
    found = learn.lr_find(n_sweeps=3, num_it=30, refine=False, stop_div=False)
    assert [len(losses) for losses in found.sweeps] == [30] * 3
    assert len({float(losses[0]) for losses in found.sweeps}) == 3
    alone = learn.lr_find(num_it=30, refine=False, stop_div=False)
    np.testing.assert_array_equal(alone.losses, found.sweeps[0])


# ---- overlays --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "values"), [("wd", [0.0, 0.1, 10.0]), ("moms", [0.0, 0.99])])
def test_an_overlay_is_a_sweep_for_each_value(learn, name, values):
    found = learn.lr_find(num_it=40, **{name: values})
    assert list(found) == values
    for value in values:
        alone = learn.lr_find(num_it=40, **{name: value})
        np.testing.assert_array_equal(found[value].losses, alone.losses)
    firsts = {float(one.losses[0]) for one in found.values()}
    assert len(firsts) == 1
    lasts = {float(one.losses[-1]) for one in found.values()}
    assert len(lasts) > 1
    assert found.plot().get_legend_handles_labels()[1][0] == f"{found.name} 0"


def test_an_overlay_is_no_learning_rate(learn):
    with pytest.raises(ValueError, match=r"max_lr: .*take one, as found\[0.0\]"):
        learn.fit_one_cycle(1, learn.lr_find(num_it=20, wd=[0, 0.1]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"wd": [0.1, 0.2], "moms": [0.8, 0.9]}, "wd, moms: compare one at a time"),
        ({"wd": []}, "wd must hold at least one value"),
        ({"wd": [0.1, -1]}, "wd must lie in"),
        ({"wd": "0.1"}, "wd must be a number"),
        ({"moms": [0.9, 1.0]}, "moms must lie in"),
        ({"moms": None, "method": "grid"}, "method must be one of 'sweep', 'race', 'linear'"),
        ({"n_sweeps": 0}, "n_sweeps must be at least 1"),
        ({"refine": 1}, "refine must be True or False"),
        ({"stop_div": "no"}, "stop_div must be True or False"),
        ({"show_plot": "no"}, "show_plot must be True or False"),
    ],
    ids=str,
)
def test_a_bad_option_is_told_before_anything_runs(learn, options, said):
    seen = stepped(learn)
    with pytest.raises((ValueError, TypeError), match=re.escape(said)):
        learn.lr_find(**options)
    assert seen == []


def test_an_optimizer_without_momentum_has_none_to_compare(data):
    learn = Learner(data, mlp(), opt_func=torch.optim.Adagrad)
    with pytest.raises(ValueError, match="moms: Adagrad has no such"):
        learn.lr_find(moms=[0.8, 0.9])
    assert learn.lr_find(num_it=10, method="race").rounds


# ---- race ------------------------------------------------------------------------------------


@pytest.fixture
def raced(data):
    """A race of 20 steps, two epochs, and the learner it was held on."""
    learn = Learner(data, plain(), opt_func=sgd)
    return learn, learn.lr_find(num_it=20, method="race")


def test_an_entry_of_a_race_is_a_complete_cycle(data, raced):
    found = raced[1]
    for k, entries in enumerate(found.rounds):
        for lr, loss in entries.items():
            alone = Learner(data, plain(), opt_func=sgd)
            alone.fit_one_cycle(2 * 2**k, lr)
            assert alone.validate()["valid_loss"] == loss


def test_a_race_halves_its_field_and_the_last_round_decides(raced):
    learn, found = raced
    sizes = [len(entries) for entries in found.rounds]
    assert sizes[0] >= 5
    assert sizes[1:] in ([sizes[0] // 2], [3, 2], [4, 2])
    assert float(found) == min(found.rounds[-1], key=found.rounds[-1].get)
    assert set(found.rounds[1]) == set(sorted(found.rounds[0], key=found.rounds[0].get)[: sizes[1]])
    assert found.start == learn.validate()["valid_loss"]
    learn.fit_one_cycle(1, found)


def test_a_race_goes_on_beyond_a_winner_at_its_edge(data):
    learn = Learner(data, plain(), opt_func=sgd)
    inside = learn.lr_find(1e-7, 1e-3, num_it=20, method="race")
    assert max(inside.rounds[0]) <= 1e-3
    assert "edge" in inside.reason


def test_without_a_signal_a_race_is_held_around_the_last_peak(digit_tensors):
    learn = trained(digit_tensors)
    found = learn.lr_find(method="race", refine=False)
    assert sorted(found.rounds[0])[2] == 5e-3


@pytest.mark.parametrize("method", ["race", "linear"])
def test_without_validation_data_nothing_is_judged_on_it(data, method):
    learn = Learner((data.train, None), mlp())
    seen = stepped(learn)
    with pytest.raises(ValueError, match=f"method='{method}' judges on validation data"):
        learn.lr_find(method=method)
    assert seen == []


def test_validation_is_judged_on_batches_from_all_over_the_set():
    batches = [(torch.zeros(100, 1), torch.full((100,), k)) for k in range(100)]
    seen = [int(batch[1][0]) for batch in finder.Sample(batches)]
    assert seen == list(range(0, 100, 5))
    assert len(list(finder.Sample(batches[:7]))) == 7
    assert len(list(finder.Sample(iter(batches)))) == 100


# ---- range test ------------------------------------------------------------------------------


def test_the_range_test_rises_linearly_to_the_divergence(data):
    learn = Learner(data, mlp(), metrics=[accuracy])
    diverged = learn.lr_find().points["divergence"]
    seen = stepped(learn)
    found = learn.lr_find(method="linear")
    rates = np.array([lrs[-1] for lrs in seen[-100:]])
    np.testing.assert_allclose(np.diff(rates), np.diff(rates)[0])
    assert (rates[0], rates[-1]) == pytest.approx((1e-7, 2 * diverged))
    assert len(found.lrs) == 26
    np.testing.assert_array_equal(found.lrs, [1e-7, *rates[3::4]])
    assert found.losses[0] == learn.validate()["accuracy"]
    assert set(found.curve) == {"lr", "accuracy", "smoothed"}
    assert found.losses.max() > 0.5


def test_the_scores_of_the_range_test_are_those_of_the_model_at_that_step(data):
    found = Learner(data, plain(), opt_func=sgd).lr_find(method="linear", num_it=20)
    scores = []

    class ByHand(Callback):
        def on_batch_begin(self, learn):
            for group in learn.opt.param_groups:
                group["lr"] = found.lrs[learn.step + 1]

        def on_step_end(self, learn):
            scores.append(-learn.validate()["valid_loss"])

    Learner(data, plain(), opt_func=sgd).fit(2, callbacks=[ByHand])
    assert found.name == "-valid_loss"
    np.testing.assert_allclose(found.losses[1:], scores[: len(found.losses) - 1], rtol=1e-5)


# ---- what a review found ---------------------------------------------------------------------


@pytest.mark.parametrize("way", ["race", "linear"])
def test_no_metric_but_accuracy_is_called(data, way):
    def picky(pred, target):
        raise ValueError("Input contains NaN")

    learn = Learner(data, mlp(), metrics={"picky": picky, "right": accuracy})
    found = learn.lr_find(num_it=20, method=way)
    assert way == "race" or found.name == "right"


class Endless(IterableDataset):
    """Four batches, of a length nobody knows."""

    def __init__(self, x, y):
        self.pairs = list(zip(x.split(25), y.split(25), strict=True))

    def __iter__(self):
        return iter(self.pairs)


def test_validation_data_may_have_no_length(data, digit_tensors):
    x, y = digit_tensors
    valid = DataLoader(Endless(x[:100], y[:100]), batch_size=None)
    learn = Learner((data.train, valid), plain())
    assert learn.lr_find(num_it=20, method="race").rounds


@pytest.mark.parametrize(("n", "size", "read"), [(5, 2000, 5), (10, 1000, 5), (2, 5000, 2)])
def test_large_batches_are_judged_on_from_all_over_the_set_too(n, size, read):
    batches = [(torch.zeros(size, 1), torch.full((size,), k)) for k in range(n)]
    seen = [int(batch[1][0]) for batch in finder.Sample(batches)]
    assert len(seen) == read
    assert seen[-1] >= n / 2


def test_sweeps_of_a_stream_see_other_batches(data):
    learn = Learner(DataLoaders(data.train, data.valid, steps_per_epoch=7), mlp())
    found = learn.lr_find(n_sweeps=3, num_it=12, stop_div=False, refine=False)
    assert len({tuple(losses) for losses in found.sweeps}) == 3


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


def test_validation_data_that_are_broken_are_named(data, digit_tensors):
    x, y = digit_tensors
    learn = Learner((data.train, [(x[:50] * float("nan"), y[:50])]), mlp())
    with pytest.raises(ValueError, match="valid_loss is nan before training"):
        learn.lr_find(num_it=20, method="race")


def test_ctrl_c_waits_until_a_snapshot_is_back():
    done = []

    def restore():
        with state.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("restored")

    with pytest.raises(KeyboardInterrupt):
        restore()
    assert done == ["restored"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (torch.tensor([0.25, 0.5]), [0.25, 0.5]),
        (np.array([0.1, 0.2]), [0.1, 0.2]),
        ((v for v in (0.0, 0.1)), [0.0, 0.1]),
        ([0.1], [0.1]),
        ((1e-7, 0.1234567), [1e-7, 0.1234567]),
    ],
    ids=["tensor", "array", "generator", "one", "long"],
)
def test_values_to_compare_come_in_any_list(learn, values, keys):
    found = learn.lr_find(num_it=10, refine=False, wd=values)
    assert list(found) == keys
    assert found.reason.endswith(f"found[{keys[0]!r}]")


def test_values_to_compare_must_differ(learn):
    with pytest.raises(ValueError, match="wd must hold different values"):
        learn.lr_find(wd=[0.1, 0.1])


def test_the_closer_look_is_made_as_the_first_sweep(learn):
    found = learn.lr_find(num_it=60, n_sweeps=2, stop_div=False)
    assert len(found.closeup.sweeps) == 2
    assert [len(losses) for losses in found.closeup.sweeps] == [finder.CLOSER * 60] * 2
    seen = stepped(learn, "weight_decay")
    learn.lr_find(num_it=20, wd=0.5)
    assert {group[0] for group in seen} == {0.5}


@pytest.mark.parametrize("way", ["race", "linear"])
def test_the_values_hold_to_the_end(learn, way):
    decays, betas = stepped(learn, "weight_decay"), stepped(learn, "betas")
    learn.lr_find(num_it=20, method=way, wd=0.5, moms=0.7)
    assert {groups[0] for groups in decays} == {0.5}
    assert {groups[0][0] for groups in betas} == {0.7}


def test_a_race_cycles_momentum_where_none_is_given(learn):
    betas = stepped(learn, "betas")
    learn.lr_find(num_it=20, method="race", refine=False)
    assert {0.95, 0.85} <= {groups[0][0] for groups in betas}


def test_a_race_goes_on_until_its_winner_lies_between_two_losers(data):
    learn = Learner(data, plain(), opt_func=partial(torch.optim.SGD, momentum=0.9, lr=1e-4))
    unknown = LRFind([0.1], [2.3])
    found = finder._race(learn, unknown, LRFinder(1e-7, 1.0, num_it=20), {})
    expected = [1e-4 * 10 ** (k / 2) for k in range(-2, 3 + finder.FURTHER)]
    assert sorted(found.rounds[0]) == pytest.approx(expected)
    assert "edge" in found.reason


@pytest.mark.parametrize("notebook", [True, False])
@pytest.mark.parametrize("show", [True, False])
def test_only_a_notebook_shows_the_picture_and_only_if_wanted(learn, monkeypatch, notebook, show):
    # What IPython would say in a kernel.
    monkeypatch.setattr("onecycle.plot.in_notebook", lambda: notebook)
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    learn.lr_find(num_it=10, show_plot=show)
    assert len(plt.get_fignums()) == (notebook and show)
