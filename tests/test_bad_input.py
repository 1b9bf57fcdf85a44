"""Bad input: an error that names the argument, and a learner that is as it was."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from helpers import everything, mlp, plain, same, sgd, split_in_two
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import TensorDataset

from onecycle import (
    ActivationStats,
    Callback,
    Checkpoint,
    DataLoaders,
    Learner,
    LivePlot,
    LRFinder,
    OneCycleScheduler,
    ParamScheduler,
    ProgressBar,
    TorchScheduler,
    accuracy,
    metrics,
    models,
    mse,
    schedules,
)
from onecycle.data import InMemoryLoader, builtin, cifar10, digits, fashion_mnist, mnist

NAN, INF = float("nan"), float("inf")
UNSAID = object()


def refused(call, name, learn=None, started=False, value=UNSAID):
    """Check that `call` raises an error that names `name` and tells `value`, and changes nothing.

    A fit that has `started` leaves its counters: they tell where it stopped.
    """
    before = None if learn is None else everything(learn)
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}") as caught:
        call()
    if value is not UNSAID:
        assert any(text in str(caught.value) for text in texts(value)), str(caught.value)
    if learn is not None:
        after = everything(learn)
        after["counters"] = before["counters"] if started else after["counters"]
        assert same(before, after)


def texts(value):
    """How a message may tell a value: itself, or what is wrong in it."""
    yield repr(value)
    if isinstance(value, slice):
        value = [value.start, value.stop]
    if isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts(part)


def flat(table):
    """The rows (what, base, name, value) of a table of (what, base, {name: values})."""
    return [
        (what, base, name, value)
        for what, base, values in table
        for name, several in values.items()
        for value in several
    ]


def label(value):
    """The name of a function, or a value as text."""
    name = getattr(getattr(value, "func", value), "__name__", None) or str(value)
    return re.sub(r" at 0x\w+", "", name)  # the same in every process


# ---- what a learner does -------------------------------------------------------------------------

COUNT = [0, 1.5, True]
RATE = [0, "a"]
FRACTION = [1.5, "a"]
FLAG = ["yes"]
ONE_CYCLE = {
    "pct_start": FRACTION,
    "moms": [(0.9, 1.0), (0.9,), 0.9, "ab"],
    "div_factor": [0, None],
    "final_div": [0, "a"],
    "warmup": ["exp", None],
    "three_phase": FLAG,
}
EVERY_FIT = {"epochs": COUNT, "wd": [-1, NAN, "a"], "callbacks": [3, [3]]}
METHODS = [
    (
        "fit",
        {"epochs": 1},
        EVERY_FIT
        | {"lr": [*RATE, NAN, INF, slice(0, 1), slice(None), [0.1, NAN]], "schedule": [0.5, "cos"]},
    ),
    (
        "fit_one_cycle",
        {"epochs": 1, "max_lr": 0.1},
        EVERY_FIT | ONE_CYCLE | {"max_lr": RATE, "tot_epochs": [0, 1.5], "start_epoch": [-1, "2"]},
    ),
    (
        "fit_flat_cos",
        {"epochs": 1},
        {"epochs": [0], "max_lr": [0], "pct_start": [2], "final_div": [0]},
    ),
    ("fit_flat_cos", {"epochs": 1}, {"wd": [-1], "callbacks": [3]}),
    ("fit_wsd", {"epochs": 1}, {"epochs": [0], "max_lr": [0], "wd": [-1], "callbacks": [3]}),
    ("fit_wsd", {"epochs": 1}, {"warmup": [2, 0.9], "cooldown": [-1, 0.99], "shape": ["exp", 3]}),
    (
        "fit_sgdr",
        {"n_cycles": 1, "cycle_len": 1},
        {
            "n_cycles": [0, 1.5],
            "cycle_len": [0, 1.5],
            "cycle_mult": [0, 1.5],
            "max_lr": [0],
            "wd": [-1],
            "callbacks": [3],
        },
    ),
    (
        "fit_clr",
        {"epochs": 2, "max_lr": 0.1},
        {
            "epochs": [0, "3"],
            "max_lr": [0],
            "cycle_len": [0, 3, "1"],
            "div_factor": [1, INF, "a"],
            "mode": ["sine", None],
            "gamma": [0, NAN],
            "wd": [-1],
            "callbacks": [3],
        },
    ),
    (
        "fine_tune",
        {"epochs": 1},
        {
            "epochs": [0, None],
            "base_lr": [0, None, slice(1e-3), [0.1, 0.2]],
            "freeze_epochs": [-1, 0.5, True],
            "lr_mult": [0.5, INF],
            "pct_start": [2],
            "div_factor": [0],
            "wd": [-1],
            "callbacks": [3],
        },
    ),
    (
        "lr_find",
        {"num_it": 10},
        {
            "start_lr": [0, "a"],
            "end_lr": [0, 1e-8, INF],
            "num_it": [9, 50.0],
            "stop_div": [1, None],
            "method": ["fast", None],
            "n_sweeps": [0, 1.5],
            "refine": FLAG,
            "show_plot": ["no", 0],
            "wd": [-1, "a", [0.0, NAN], [0.1, 0.1]],
            "moms": [1.0, [0.9, "a"], [0.9, 0.9]],
        },
    ),
    (
        "lr_at",
        {"epoch": 0, "epochs": 2, "max_lr": 0.1},
        {
            "epoch": [-1, 2, 0.5],
            "batch": [-1, 10, 1.5],
            "epochs": [0],
            "max_lr": [0],
            "schedule": [0.5],
            "moms": [0.9],
        },
    ),
    (
        "plot_schedule",
        {"epochs": 2, "max_lr": 0.1},
        {
            "epochs": [0],
            "max_lr": [0],
            "schedule": [0.5, {"a": 3}, [0.5], {}],
            "warmup": ["exp"],
            "ax": [3],
        },
    ),
    ("freeze_to", {}, {"n": [-3, 1.5, True]}),
    ("get_preds", {}, {"dl": [3], "activate": FLAG}),
    ("validate", {}, {"dl": [3]}),
    ("predict", {}, {"x": [None, 3, "a"]}),
]


@pytest.mark.parametrize(("method", "base", "name", "value"), flat(METHODS), ids=str)
def test_methods(data, method, base, name, value):
    learn = Learner(data, mlp(), splitter=split_in_two)
    refused(partial(getattr(learn, method), **{**base, name: value}), name, learn, value=value)


@pytest.mark.parametrize("method", ["fit", "fit_flat_cos", "fit_one_cycle"])
def test_rates_for_other_layer_groups(data, method):
    learn = Learner(data, mlp(), splitter=split_in_two)
    name = "lr" if method == "fit" else "max_lr"
    rates = [0.1, 0.2, 0.3]
    refused(
        lambda: getattr(learn, method)(1, rates),
        rf"{name} must have one value for each of the 2 layer groups",
        learn,
        value=rates,
    )


SPLIT_CYCLE = {"tot_epochs": 5, "start_epoch": 3}
CALLS = [
    ("epochs=3 .* go beyond tot_epochs=5", lambda learn: learn.fit_one_cycle(3, **SPLIT_CYCLE)),
    ("pct_start", lambda learn: learn.fit_one_cycle(1, three_phase=True, pct_start=0.51)),
    ("warmup", lambda learn: learn.fit_one_cycle(1, three_phase=True, warmup="cos")),
    ("lr says nothing about the cycle: moms, div", lambda learn: learn.lr_at(0, epochs=1, lr=1)),
    ("lr says nothing about the cycle", lambda learn: learn.plot_schedule(1, lr=0.1)),
    (
        "pct_start belongs to one cycle, leave it out",
        lambda learn: learn.plot_schedule(1, schedule=schedules.linear(), pct_start=0.5),
    ),
    (r"freeze_to\(-1\): the model has 1 layer group.*splitter=", lambda learn: learn.freeze()),
    (r"freeze_to\(1\): the model has 1 layer group", lambda learn: learn.freeze_to(1)),
    (r"freeze_to\(-1\): the model has 1 layer group", lambda learn: learn.fine_tune(1)),
    ("dl is empty: it must yield", lambda learn: learn.get_preds([])),
    ("dl is empty: it must yield", lambda learn: learn.validate([])),
    ("dl is empty: it must yield", lambda learn: learn.get_preds(Liar([BATCH]))),
    ("valid_loss: the data is empty", lambda learn: learn.validate(Liar([BATCH]))),
    ("dl must be an iterable.*one str; see DataLoaders", lambda learn: learn.get_preds("valid")),
    ("dl must be an iterable.*a pair of arrays", lambda learn: learn.get_preds(BATCH)),
    ("dl must be an iterable.*one Tensor", lambda learn: learn.validate(torch.zeros(3, 64))),
    ("dl must be an iterable.*the data set", lambda learn: learn.get_preds(TensorDataset(*BATCH))),
    ("dl must be an iterable.*DataLoaders", lambda learn: learn.get_preds(DataLoaders([BATCH]))),
    ("dl must have a target in every", lambda learn: learn.get_preds([BATCH, (BATCH[0], None)])),
    ("nothing to plot: call learn.lr_find", lambda learn: learn.recorder.plot()),
    ("no metrics to plot: give Learner", lambda learn: learn.recorder.plot_metrics()),
    (r"no gradient norms .*clip=", lambda learn: learn.recorder.plot_grad_norm()),
    ("nothing to report: train first", lambda learn: learn.report("report.html")),
]


@pytest.mark.parametrize(("message", "call"), CALLS)
def test_calls(learn, message, call):
    refused(lambda: call(learn), message, learn)


class Liar(list):
    """Has a length and yields nothing."""

    def __iter__(self):
        return iter(())


def test_no_validation_data(data):
    learn = Learner((data.train, None), plain())
    for call in (learn.validate, learn.get_preds):
        refused(call, "dl must be given", learn)


# ---- what a learner is made of -------------------------------------------------------------------

BATCH = (torch.zeros(4, 64), torch.zeros(4).long())
SET = TensorDataset(*BATCH)
LEARNER = {
    "data": [None, [1, 2, 3], 5, [BATCH], (SET, None), ([BATCH], BATCH)],
    "model": [None, mlp, "resnet", [nn.Linear(1, 1)], nn.Linear, nn.LazyLinear(10)],
    "loss_func": [3, "mse", nn.CrossEntropyLoss],
    "opt_func": [
        None,
        "sgd",
        [],
        [torch.optim.SGD, torch.optim.SGD],
        ["sgd"],
        [torch.optim.LBFGS],
        partial(torch.optim.LBFGS, lr=1),
        sgd(nn.Linear(2, 2).parameters(), lr=0.1),
    ],
    "metrics": [
        3,
        None,
        "accuracy",
        [accuracy, "f1"],
        [accuracy, accuracy],
        [nn.Linear],
        {"lr": accuracy},
    ],
    "callbacks": [3, [None], "all", [print], [nn.Linear], [Checkpoint]],
    "wd": [-1, NAN, True, "a", [0.1]],
    "splitter": [3, nn.Linear(1, 1), "body", ["body"]],
    "device": ["abacus", "cuda:99", 3.5, ["cpu"]],
    "precision": ["fp8", 16, None, ["fp32"]],
    "accumulate": [0, 1.5],
    "clip": [0, NAN, True, "1"],
    "on_nan": ["stop", None, ["raise"]],
    "train_bn": FLAG,
    "live_plot": FLAG,
}
SAID_OTHERWISE = {"data", "model", "loss_func", "opt_func", "metrics", "callbacks", "splitter"}


@pytest.mark.parametrize(("_", "base", "name", "value"), flat([(Learner, {}, LEARNER)]), ids=label)
def test_learner(data, _, base, name, value):
    given = {"data": data, "model": mlp(), name: value}
    plainly = isinstance(value, (str, int, float)) and name != "data"
    said = value if plainly or name not in SAID_OTHERWISE else UNSAID
    name = "(train|valid|data)" if name == "data" else name
    refused(partial(Learner, **given), name, value=said)


ANSWERS = [
    ("splitter must .* got None", {"splitter": lambda model: None}),
    ("splitter must .* got 3", {"splitter": lambda model: [3]}),
    ("splitter must .* got one tensor", {"splitter": lambda model: [model[0].weight]}),
    ("splitter must .* '0.weight' is missing", {"splitter": lambda model: []}),
    ("splitter must .* one is empty", {"splitter": lambda model: [model, nn.ReLU()]}),
    ("splitter must .* is in two places", {"splitter": lambda model: [model, model]}),
    ("splitter must .* one is of another", {"splitter": lambda m: [m, nn.Linear(1, 1)]}),
    ("splitter cannot regroup a finished optimizer", {"opt_func": "made", "splitter": [mlp()]}),
    ("opt_func refuses .* Invalid learning rate: -1", {"opt_func": partial(sgd, lr=-1)}),
    ("opt_func refuses .* 'rate'", {"opt_func": partial(sgd, rate=1)}),
    ("opt_func must return a torch optimizer, got None", {"opt_func": lambda groups: None}),
    (r"opt_func must return .{,150}$", {"opt_func": lambda groups: groups}),
]


@pytest.mark.parametrize(("message", "options"), ANSWERS)
def test_what_the_learner_calls_answers_wrongly(data, message, options):
    model = mlp()
    if options.get("opt_func") == "made":
        options = {**options, "opt_func": sgd(model.parameters(), lr=0.1)}
    refused(lambda: Learner(data, model, **options), message)


# ---- every other object --------------------------------------------------------------------------

NINE = torch.zeros(9)
SEED = [-1, 0.5]
DEVICE = ["abacus"]
linear = schedules.linear
OBJECTS = [
    (
        Checkpoint,
        {"path": "run.pt"},
        {
            "path": [None, 3, "", b"run.pt", ["run.pt"]],
            "every_epochs": [0, 1.5, True],
            "every_steps": [0, 2.5],
            "every_minutes": [0, NAN, "5", True],
            "keep": [0, None],
            "resume": FLAG,
            "on_error": ["ignore", None, ["raise"]],
        },
    ),
    (LivePlot, {}, {"skip_start": [-1, 1.5, None]}),
    (ProgressBar, {}, {"bar": FLAG, "table": FLAG}),
    (LRFinder, {}, {"start_lr": [0], "num_it": [9]}),
    (
        ActivationStats,
        {},
        {
            "modules": [[3], []],
            "every": [0, 1.5],
            "bins": [0, 1.5],
            "top": [0, INF],
        },
    ),
    (
        ParamScheduler,
        {},
        {"schedules": [None, linear, {"lr": 3}, {"lr": []}, {"mom": [3]}, {"lr": StepLR}]},
    ),
    (TorchScheduler, {}, {"make": [None, 3]}),
    (OneCycleScheduler, {"max_lr": 0.1}, {"max_lr": [0, None, [0.1, 0]], "three_phase": FLAG}),
    (models.simple_cnn, {}, {"channels": [3, (3,), (3, 0), (3, 1.5)]}),
    (models.resnet9, {}, {"channels": [0], "classes": [1.5], "width": ["3"]}),
    (digits, {}, {"batch_size": [0], "valid": [0, "a"], "device": DEVICE}),
    (digits, {}, {"seed": [-1]}),
    (partial(InMemoryLoader, NINE), {}, {"batch_size": COUNT, "shuffle": FLAG, "seed": SEED}),
    (partial(InMemoryLoader, NINE), {}, {"device": DEVICE}),
    (
        DataLoaders.from_tensors,
        {"x": NINE, "y": NINE},
        {
            "x": [None, "a", ["a", "b"]],
            "y": [None, "a"],
            "valid": ["a", -0.1, 0.01, NAN, (1, 2, 3), (None, NINE)],
            "batch_size": [0, 2.0],
            "seed": SEED,
            "device": DEVICE,
        },
    ),
    (partial(DataLoaders, [BATCH]), {}, {"steps_per_epoch": [0, 1.5], "valid": [3]}),
    (DataLoaders, {}, {"train": [None, 3]}),
    (metrics.MeanMetric, {}, {"each": [3, None]}),
    (
        partial(metrics.top_k_accuracy, torch.zeros(4, 3), torch.zeros(4).long()),
        {},
        {"k": [0, 1.5]},
    ),
    (schedules.constant, {}, {"value": ["a", None, NAN]}),
    *(
        (shape, {}, {"start": ["a"], "end": [INF]})
        for shape in (linear, schedules.cosine, schedules.rex, schedules.one_minus_sqrt)
    ),
    (schedules.poly, {}, {"start": ["a"], "end": [None], "power": [0, "2"]}),
    (schedules.exponential, {"start": 1, "end": 2}, {"start": [0, NAN], "end": [-1, "a"]}),
    (
        schedules.exp_decay,
        {"gamma": 0.5, "epochs": 2},
        {"start": [0, "a"], "gamma": [0], "epochs": [None], "total_steps": [0, "a"]},
    ),
    (
        schedules.one_cycle,
        {},
        {"max_lr": [0], "pct_start": [-1], "three_phase": FLAG, "total_steps": [0, 2.5]},
    ),
    (
        schedules.one_cycle_momentum,
        {},
        {"moms": [(1, 2), 0.9], "three_phase": FLAG, "total_steps": ["a"]},
    ),
    (
        schedules.flat_cos,
        {},
        {"max_lr": [0], "pct_start": [2], "final_div": [0], "total_steps": ["a"]},
    ),
    (
        schedules.wsd,
        {},
        {
            "max_lr": [-1],
            "warmup": [NAN],
            "cooldown": [2],
            "shape": ["x"],
            "div_factor": [0],
            "final_div": [0],
            "total_steps": ["a"],
        },
    ),
    (
        schedules.sgdr,
        {"cycle_len": 1, "epochs": 3},
        {
            "max_lr": [0],
            "cycle_len": [0, "a"],
            "epochs": [0, INF],
            "cycle_mult": [0.5, INF],
            "final_div": [0],
            "total_steps": ["a"],
        },
    ),
    (
        schedules.triangular,
        {"cycle_len": 1, "epochs": 3},
        {
            "base_lr": [0, 2.0],
            "max_lr": [0],
            "cycle_len": [0],
            "epochs": ["3"],
            "mode": ["x"],
            "gamma": [NAN],
            "total_steps": ["a"],
        },
    ),
    (
        schedules.step_decay,
        {"at": [1], "epochs": 3},
        {
            "start": [0],
            "at": [1, None, "ab", [4], [2, 1], ["a"]],
            "epochs": [0],
            "factor": [0],
            "total_steps": [0],
        },
    ),
    (
        schedules.repeat,
        {"schedule": linear(), "times": 2},
        {"schedule": [3], "times": [0, 1.5], "total_steps": [0, "a"]},
    ),
    (
        schedules.scaled,
        {"schedule": linear(), "factor": 2},
        {"schedule": [3], "factor": ["a", None]},
    ),
    (partial(schedules.join, linear(), linear()), {}, {"at": [0.5, None, [], [2], ["a"]]}),
    *(
        (what, {"schedule": linear(), "total_steps": 3}, {"schedule": [3], "total_steps": [0, "a"]})
        for what in (schedules.on_steps, schedules.sample)
    ),
]


@pytest.mark.parametrize(("make", "base", "name", "value"), flat(OBJECTS), ids=label)
def test_objects(make, base, name, value):
    refused(partial(make, **{**base, name: value}), name, value=value)


class Endless:
    """Batches without a length."""

    def __iter__(self):
        while True:
            yield BATCH


TWO = torch.zeros(3, 2)
REMEDIES = [
    ("without validation data give (train, None)", lambda: Learner(5, mlp())),
    ("wrap it in torch.utils.data.DataLoader", lambda: DataLoaders(SET)),
    ("valid must be an iterable of batches", lambda: DataLoaders([BATCH], SET)),
    ("one Tensor; see DataLoaders.from_tensors", lambda: DataLoaders(TWO)),
    ("one ndarray; see DataLoaders.from_tensors", lambda: DataLoaders(np.zeros((3, 2)))),
    ("a pair of arrays; see DataLoaders.from_tensors", lambda: DataLoaders(BATCH)),
    ("give a list, a DataLoader or an object whose", lambda: DataLoaders(iter([BATCH]))),
    ("valid can be read only once", lambda: DataLoaders([BATCH], (b for b in [BATCH]))),
    ("train is empty: it must yield at least one", lambda: DataLoaders([], steps_per_epoch=3)),
    ("valid is empty: it must yield at least one", lambda: DataLoaders([BATCH], [])),
    ("DataLoaders(train, valid, steps_per_epoch=...)", lambda: DataLoaders(Endless())),
    ("tensors must hold at least one tensor", lambda: InMemoryLoader()),
    ("tensors must hold numbers, got None", lambda: InMemoryLoader(None)),
    ("tensors must hold numbers, got ['a']", lambda: InMemoryLoader(["a"])),
    ("one length above 0, got [3, 9]", lambda: DataLoaders.from_tensors(TWO, NINE)),
    ("one length above 0, got [0]", lambda: DataLoaders.from_tensors(TWO[:0], NINE[:0])),
    ("one length above 0, got [0]", lambda: InMemoryLoader(torch.tensor(1.0))),
    ("give a dict by name", lambda: Learner([[BATCH], None], mlp(), metrics=[mse, mse])),
    ("got a class: L1Loss()", lambda: Learner([[BATCH], None], mlp(), nn.L1Loss)),
    ("run one batch through it first", lambda: Learner([[BATCH], None], nn.LazyLinear(1))),
    ("such as partial(StepLR, step_size=100)", lambda: TorchScheduler(3)),
    ("such as (0.95, 0.85)", lambda: OneCycleScheduler(0.1, 0.9)),
    ("must be at most 1 together", lambda: schedules.wsd(warmup=0.6, cooldown=0.6)),
    ("schedules must be a function of progress, got 3", lambda: schedules.join(3, at=[])),
    ("schedules must hold at least one", lambda: schedules.join(at=[])),
    ("at must not fall", lambda: schedules.join(linear(), linear(), linear(), at=[0.5, 0.1])),
    ("schedules must be by names of hyper-parameters", lambda: ParamScheduler({3: linear()})),
]


@pytest.mark.parametrize(("remedy", "call"), REMEDIES)
def test_the_remedy_is_told(remedy, call):
    with pytest.raises((ValueError, TypeError), match=re.escape(remedy)):
        call()


def test_an_interval_does_not_hold_what_is_refused(learn):
    with pytest.raises(ValueError, match=r"wd must lie in \[0, inf\), got inf"):
        learn.fit(1, wd=INF)


@pytest.mark.parametrize("data_set", [mnist, fashion_mnist, cifar10])
@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("seed", -1), ("device", "abacus")])
def test_data_sets_are_not_read_in_vain(monkeypatch, data_set, name, value):
    def read(*_):
        raise AssertionError("was read before the arguments were checked")

    monkeypatch.setattr(builtin, "_vision_set", read)
    monkeypatch.setattr(builtin, "_jpg_set", read)
    refused(lambda: data_set(**{name: value}), name, value=value)


# ---- what is known when a fit begins -------------------------------------------------------------

OF_ANOTHER = sgd(plain().parameters(), lr=0.1)
FACTOR = "schedule must .* returns a factor: "
VALUE = r"schedules\['{}'\] must be a function of progress: its value at progress {} must "


def moves(**given):
    return ParamScheduler(given)


def steps(size):
    return TorchScheduler(partial(StepLR, step_size=size))


STARTED = [
    (r"schedule must .* TorchScheduler\(partial", {"schedule": StepLR}),
    (r"schedule must .* TorchScheduler\(partial", {"schedule": partial(StepLR, step_size=1)}),
    (r"schedule must .* is it linear\(\)\?", {"schedule": linear}),
    (r"schedule must .* is it one_cycle\(\)\?", {"schedule": schedules.one_cycle}),
    (rf"{FACTOR}schedule\(0.5\) must lie in", {"schedule": lambda p: 1 - 3 * p}),
    (rf"{FACTOR}schedule\(1.0\) must lie in", {"schedule": lambda p: NAN if p == 1 else 1}),
    (rf"{FACTOR}schedule\(0.0\) must be a number", {"schedule": lambda p: "a"}),
    (f"{FACTOR}invalid literal", {"schedule": lambda p: int("a")}),
    (f"{FACTOR}.* takes 0 positional arguments", {"schedule": lambda: 1.0}),
    (r"lr must be slice\(last\) or slice\(first, last\)", {"lr": slice(1, 2, 3)}),
    ("callbacks: give an instance, not a class", {"callbacks": [Checkpoint]}),
    ("callbacks: .* set the learning rate; use one", {"callbacks": [steps(1), steps(2)]}),
    ("make must return a scheduler.*NoneType", {"callbacks": TorchScheduler(lambda opt: None)}),
    ("make must return a scheduler.*ReduceLR", {"callbacks": TorchScheduler(ReduceLROnPlateau)}),
    (
        "make must build the scheduler on the optimizer",
        {"callbacks": TorchScheduler(lambda opt: StepLR(OF_ANOTHER, 1))},
    ),
    ("modules: the model has no '9', the nearest names", {"callbacks": ActivationStats("9")}),
    ("modules: the model has no '9'", {"callbacks": ActivationStats(["0", "9"])}),
    ("modules: the model has no such Linear", {"callbacks": ActivationStats(nn.Linear(1, 1))}),
    ("modules picks no module", {"callbacks": ActivationStats(nn.Conv2d)}),
    ("max_lr must have one value", {"callbacks": OneCycleScheduler([0.1, 0.2, 0.3])}),
    (r"schedules\['rate'\]: AdamW has no .* has lr, mom, wd", {"callbacks": moves(rate=linear())}),
    (r"schedules\['betas'\]: AdamW has no", {"callbacks": moves(betas=linear())}),
    (r"schedules\['lr'\] must hold 1 or 1 ", {"callbacks": moves(lr=[abs, abs])}),
    (r"schedules\['lr'\] .* is it linear\(\)\?", {"callbacks": moves(lr=linear)}),
    (r"schedules\['lr'\] .* is it one_cycle\(\)\?", {"callbacks": moves(lr=schedules.one_cycle)}),
    (
        f"{VALUE.format('lr', 0.5)}lie in .*, got -0.5",
        {"callbacks": moves(lr=lambda p: 0.5 - 2 * p)},
    ),
    (f"{VALUE.format('lr', 0.0)}lie in .*, got nan", {"callbacks": moves(lr=lambda p: NAN)}),
    (f"{VALUE.format('lr', 0.0)}be a number, got None", {"callbacks": moves(lr=lambda p: None)}),
    (f"{VALUE.format('mom', 1.0)}lie in .*, got 1", {"callbacks": moves(mom=linear(0.9, 1))}),
    (f"{VALUE.format('wd', 0.0)}lie in .*, got -0.1", {"callbacks": moves(wd=lambda p: -0.1)}),
    (f"{VALUE.format('eps', 0.0)}lie in .*, got inf", {"callbacks": moves(eps=lambda p: INF)}),
]


@pytest.mark.parametrize(("message", "options"), STARTED)
def test_what_does_not_fit_is_told_before_the_first_step(learn, message, options):
    refused(lambda: learn.fit(1, **options), message, learn, started=True)
    assert len(learn.recorder.losses) == 0


@pytest.mark.parametrize("value", COUNT)
def test_the_recorders_every(learn, value):
    learn.recorder.every = value
    refused(lambda: learn.fit(1), "recorder.every", learn, started=True, value=value)


def test_the_progress_variable(learn, monkeypatch):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "loud")
    refused(lambda: learn.fit(1), "ONECYCLE_PROGRESS", learn, started=True, value="loud")


def test_what_the_schedules_maker_raises_is_unchanged(learn):
    def make(opt):
        raise error

    error = ZeroDivisionError("by design")
    with pytest.raises(ZeroDivisionError) as caught:
        learn.fit(1, callbacks=TorchScheduler(make))
    assert caught.value is error


def test_weight_decay_for_an_optimizer_without(data):
    learn = Learner(data, mlp(), opt_func=torch.optim.Rprop)
    refused(lambda: learn.fit(1, wd=0.1), "wd: Rprop has no weight decay", learn)


def test_a_model_without_trainable_parameters(data):
    learn = Learner(data, plain().requires_grad_(False))
    refused(lambda: learn.fit(1), "train at least one parameter", learn, started=True)


LOSSES = [lambda p, y: (p.argmax(1) != y).float().mean(), lambda p, y: p.sum().detach()]


@pytest.mark.parametrize("loss_func", LOSSES)
def test_a_loss_without_gradient(data, loss_func):
    learn = Learner(data, plain(), loss_func=loss_func)
    refused(lambda: learn.fit(1), "loss_func.*gradient", learn, started=True)


x, y = torch.zeros(4, 64), torch.arange(4)
BATCHES = [
    ("loss_func cannot be inferred", (x, y.bool())),
    ("loss_func cannot be inferred", (x, ["a"])),
    ("loss_func cannot be inferred", (x, 3)),
    (r"loss_func.*\(4, 1\).*\(4,\)", (x, torch.zeros(4))),
    (r"loss_func.*\(4, 1\)", (x, y)),
    ("data: a batch without target", {"x": x, "z": y}),
]


@pytest.mark.parametrize(("message", "batch"), BATCHES)
def test_a_batch_that_cannot_be_trained_on(message, batch):
    learn = Learner(([batch], None), nn.Linear(64, 1))
    refused(lambda: learn.fit(1), message, learn, started=True)


def test_a_loader_that_yields_nothing():
    learn = Learner((Liar([BATCH]), None), plain())
    refused(lambda: learn.fit(1), "train yielded no batch", learn, started=True)


def test_an_error_leaves_a_learner_that_trains(learn):
    class Once(Callback):
        def on_step_end(self, learn):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        learn.fit(1, callbacks=[Once])
    learn.fit_one_cycle(1, 1e-2)
    assert len(learn.recorder.losses) == 11
    assert len(learn.recorder.history) == 1


# ---- after a fit ---------------------------------------------------------------------------------

AFTER = [
    ("skip_start", -1, lambda learn: learn.recorder.plot_losses(-1)),
    ("skip_start", "a", lambda learn: learn.recorder.plot_losses("a")),
    ("log", "no", lambda learn: learn.recorder.plot_losses(log="no")),
    ("log", 1, lambda learn: learn.recorder.plot_grad_norm(log=1)),
    ("show_moms", "no", lambda learn: learn.recorder.plot_lr("no")),
    ("since", "a", lambda learn: learn.recorder.points("lr", since="a")),
    ("layer", 99, lambda learn: learn.callbacks[0].plot_layer_stats(99)),
    ("layer", "9", lambda learn: learn.callbacks[0].plot_layer_stats("9")),
    ("layer", 1.5, lambda learn: learn.callbacks[0].color_dim(1.5)),
    ("layer", True, lambda learn: learn.callbacks[0].color_dim(True)),
    ("ax must be matplotlib Axes", 3, lambda learn: learn.recorder.plot_losses(ax=3)),
    ("ax must be matplotlib Axes", 3, lambda learn: learn.recorder.plot_lr(ax=3)),
    ("ax must be matplotlib Axes", 3, lambda learn: learn.callbacks[0].color_dim(0, ax=3)),
    ("ax must be a pair", UNSAID, lambda learn: learn.recorder.plot_lr(True, ax=3)),
    ("ax must be a row of 3 axes", 3, lambda learn: learn.callbacks[0].plot_layer_stats(0, ax=3)),
]


@pytest.fixture(scope="module")
def trained():
    data = DataLoaders.from_tensors(torch.randn(90, 64), torch.arange(90) % 10, 0.3)
    learn = Learner(data, mlp(), callbacks=ActivationStats(every=1))
    with learn.no_logging():
        learn.fit(1)
    return learn


@pytest.mark.parametrize(("name", "value", "call"), AFTER)
def test_after_a_fit(trained, name, value, call):
    refused(lambda: call(trained), name, trained, value=value)


def test_nothing_was_recorded():
    with pytest.raises(ValueError, match="nothing was recorded: train with this callback first"):
        ActivationStats().color_dim(0)


@pytest.mark.parametrize("value", FLAG)
def test_whether_the_optimizer_is_loaded(trained, tmp_path, value):
    path = trained.save(tmp_path / "a")
    refused(lambda: trained.load(path, with_opt=value), "with_opt", trained, value=value)


PATHS = {
    "save": lambda learn, path: learn.save(path),
    "load": lambda learn, path: learn.load(path),
    "resume": lambda learn, path: learn.resume(path),
    "report": lambda learn, path: learn.report(path),
    "write_csv": lambda learn, path: learn.recorder.write_csv(path),
    "write_json": lambda learn, path: learn.recorder.write_json(path),
}


@pytest.mark.parametrize("call", PATHS.values(), ids=PATHS)
def test_a_path_that_is_none(trained, tmp_path, call):
    for path in (None, 3, b"a", ["a"], ""):
        refused(lambda: call(trained, path), "path must be the name of a", trained, value=path)  # noqa: B023
    with pytest.raises(IsADirectoryError, match=re.escape(f"path: {str(tmp_path)!r} is a folder")):
        call(trained, tmp_path)


TWICE = [
    ("fit", {"schedule": linear()}, ParamScheduler({"lr": linear()})),
    ("fit_one_cycle", {}, OneCycleScheduler(0.1)),
    ("fit_one_cycle", {}, ParamScheduler({"lr": linear(0.1, 0)})),
    ("fit_one_cycle", {}, ParamScheduler({"mom": schedules.constant(0.9)})),
]


@pytest.mark.parametrize(("method", "options", "callback"), TWICE)
def test_two_that_set_one_hyper_parameter(learn, method, options, callback):
    call = partial(getattr(learn, method), 1, 0.1, callbacks=callback, **options)
    refused(call, "callbacks: .*both set", learn, started=True)


def test_one_callback_given_twice(learn):
    stats = ActivationStats()
    refused(lambda: learn.fit(1, callbacks=[stats, stats]), "callbacks", learn)
