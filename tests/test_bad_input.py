"""Bad input: an error that names the argument, and a learner that is as it was."""

import inspect
from functools import partial

import numpy as np
import pytest
import torch
from helpers import everything, mlp, plain, same
from torch import nn
from torch.utils.data import TensorDataset

from onecycle import (
    Callback,
    DataLoaders,
    Learner,
    LRFinder,
    OneCycleScheduler,
    ParamScheduler,
    accuracy,
    models,
    mse,
    schedules,
)
from onecycle.data import InMemoryLoader, digits

NAN, INF = float("nan"), float("inf")

FIT = [
    ("epochs", 0),
    ("epochs", -1),
    ("epochs", 2.5),
    ("epochs", "3"),
    ("epochs", None),
    ("epochs", True),
    ("lr", 0),
    ("lr", -0.1),
    ("lr", NAN),
    ("lr", INF),
    ("lr", "1e-3"),
    ("lr", [1e-3, 1e-2]),
    ("lr", slice(1e-3)),
    ("lr", slice(0, 1)),
    ("lr", slice(1, 2, 3)),
    ("lr", slice(None)),
    ("wd", -0.1),
    ("wd", NAN),
    ("wd", "0"),
    ("schedule", 0.5),
    ("callbacks", [3]),
    ("callbacks", 3),
    ("callbacks", [print]),
    ("callbacks", [nn.Linear]),
]
CYCLE = [
    *((name.replace("lr", "max_lr"), value) for name, value in FIT if name != "schedule"),
    ("max_lr", [1e-2, NAN]),
    ("pct_start", -0.1),
    ("pct_start", 1.1),
    ("pct_start", NAN),
    ("pct_start", "0.3"),
    ("moms", (0.95, 1.0)),
    ("moms", (-0.1, 0.85)),
    ("moms", (0.95, 0.85, 0.95)),
    ("moms", (0.95,)),
    ("moms", 0.9),
    ("moms", "ab"),
    ("moms", (NAN, 0.85)),
    ("div_factor", 0),
    ("div_factor", -25),
    ("div_factor", INF),
    ("div_factor", None),
    ("final_div", 0),
    ("final_div", NAN),
    ("warmup", "exp"),
    ("warmup", None),
    ("tot_epochs", 0),
    ("tot_epochs", 1.5),
    ("start_epoch", -1),
    ("start_epoch", "2"),
]
CYCLE = [(name, value) for name, value in CYCLE if not (name == "max_lr" and value == slice(1e-3))]
FIT = [(name, value) for name, value in FIT if not (name == "lr" and value == slice(1e-3))]
FIND = [
    ("start_lr", 0),
    ("start_lr", -1),
    ("start_lr", NAN),
    ("start_lr", "a"),
    ("end_lr", 0),
    ("end_lr", 1e-8),
    ("end_lr", INF),
    ("num_it", 0),
    ("num_it", 9),
    ("num_it", 50.0),
]


def refused(call, name, learn=None, started=False):
    """Check that `call` raises an error that names `name`, and changes nothing.

    A fit that has `started` leaves its counters: they tell where it stopped.
    """
    before = None if learn is None else everything(learn)
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}"):
        call()
    if learn is not None:
        after = everything(learn)
        after["counters"] = before["counters"] if started else after["counters"]
        assert same(before, after)


@pytest.mark.parametrize(("name", "value"), FIT, ids=str)
def test_fit(learn, name, value):
    refused(lambda: learn.fit(**{"epochs": 1, name: value}), name, learn)


@pytest.mark.parametrize(("name", "value"), CYCLE, ids=str)
def test_fit_one_cycle(learn, name, value):
    refused(lambda: learn.fit_one_cycle(**{"epochs": 1, "max_lr": 0.1, name: value}), name, learn)


def test_more_epochs_than_the_cycle_has_left(learn):
    call = partial(learn.fit_one_cycle, 3, 0.1, tot_epochs=5, start_epoch=3)
    refused(call, "tot_epochs", learn)


@pytest.mark.parametrize("pct_start", [0.51, 1.0])
def test_three_phases_need_room_for_the_way_down(learn, pct_start):
    call = partial(learn.fit_one_cycle, 1, 0.1, three_phase=True, pct_start=pct_start)
    refused(call, "pct_start", learn)


def test_three_phases_are_linear(learn):
    refused(partial(learn.fit_one_cycle, 1, 0.1, three_phase=True, warmup="cos"), "warmup", learn)


@pytest.mark.parametrize(("name", "value"), FIND, ids=str)
def test_lr_find(learn, name, value):
    refused(lambda: learn.lr_find(**{name: value}), name, learn)
    refused(lambda: LRFinder(**{name: value}), name)


BATCH = (torch.zeros(4, 64), torch.zeros(4).long())
LEARNER = [
    ("data", None),
    ("data", [1, 2, 3]),
    ("data", 5),
    ("data", [BATCH]),
    ("train", (TensorDataset(*BATCH), None)),
    ("valid", ([BATCH], BATCH)),
    ("model", None),
    ("model", mlp),
    ("model", "resnet"),
    ("loss_func", 3),
    ("opt_func", None),
    ("opt_func", "sgd"),
    ("opt_func", lambda groups: groups),
    ("opt_func", partial(torch.optim.LBFGS, lr=1)),
    ("opt_func", torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)),
    ("metrics", "accuracy"),
    ("metrics", [3]),
    ("metrics", [accuracy, accuracy]),
    ("metrics", [nn.Linear]),
    ("metrics", None),
    ("metrics", {"lr": accuracy}),
    ("loss_func", nn.CrossEntropyLoss),
    ("callbacks", [3]),
    ("callbacks", "all"),
    ("wd", -1),
    ("wd", "a"),
    ("splitter", lambda _: []),
    ("splitter", lambda model: [list(model.parameters()), []]),
    ("splitter", lambda model: [list(model.parameters())] * 2),
    ("splitter", lambda model: [[model[0].weight]]),
    ("device", "abacus"),
    ("precision", "fp8"),
    ("accumulate", 0),
    ("accumulate", 1.5),
    ("clip", 0),
    ("clip", -1),
    ("clip", "a"),
]


@pytest.mark.parametrize(("name", "value"), LEARNER, ids=str)
def test_learner(data, name, value):
    argument = "data" if name in ("train", "valid") else name
    refused(lambda: Learner(**{"data": data, "model": mlp(), argument: value}), name)


LOADERS = [
    ("train", None),
    ("train", 3),
    ("train", []),
    ("train", iter([BATCH])),
    ("train", (batch for batch in [BATCH])),
    ("train", torch.zeros(3, 2)),
    ("train", np.zeros((3, 2))),
    ("train", (np.zeros((3, 2)), np.zeros(3))),
    ("train", TensorDataset(*BATCH)),
    ("valid", TensorDataset(*BATCH)),
    ("valid", []),
    ("valid", BATCH),
    ("valid", 3),
    ("valid", iter([BATCH])),
    ("steps_per_epoch", 0),
    ("steps_per_epoch", 1.5),
]


@pytest.mark.parametrize(("name", "value"), LOADERS, ids=str)
def test_data_loaders(name, value):
    refused(lambda: DataLoaders(**{"train": [BATCH], name: value}), name)


TENSORS = [
    ("tensors", {"x": torch.zeros(3, 2), "y": torch.zeros(4)}),
    ("tensors", {"x": torch.zeros(0, 2), "y": torch.zeros(0)}),
    ("tensors", {"x": torch.tensor(1.0), "y": torch.tensor(1.0)}),
    ("valid", {"valid": 0.0}),
    ("valid", {"valid": 1.0}),
    ("valid", {"valid": 0.01}),
    ("valid", {"valid": (torch.zeros(3, 2),)}),
    ("valid", {"valid": np.float32(0.0)}),
    ("device", {"device": "abacus"}),
    ("batch_size", {"batch_size": 0}),
    ("batch_size", {"batch_size": 2.0}),
    ("seed", {"seed": -1}),
]


@pytest.mark.parametrize(("name", "options"), TENSORS, ids=str)
def test_from_tensors(name, options):
    x, y = torch.zeros(10, 2), torch.zeros(10)
    refused(lambda: DataLoaders.from_tensors(**{"x": x, "y": y, **options}), name)


OTHERS = [
    ("tensors", lambda: InMemoryLoader()),
    ("batch_size", lambda: digits(batch_size=0)),
    ("valid", lambda: digits(valid=2.0)),
    ("channels", lambda: models.simple_cnn((3,))),
    ("channels", lambda: models.simple_cnn((3, 0))),
    ("width", lambda: models.resnet9(width=1.5)),
    ("start", lambda: schedules.exponential(0.0, 1.0)),
    ("power", lambda: schedules.poly(1.0, 0.0, power=0)),
    ("total_steps", lambda: schedules.one_cycle(1.0, total_steps=0)),
    ("schedules", lambda: ParamScheduler(0.1)),
    ("schedules", lambda: ParamScheduler({"lr": 0.1 + 0j})),
    ("max_lr", lambda: OneCycleScheduler(0)),
    ("max_lr", lambda: OneCycleScheduler([0.1, 0])),
]


@pytest.mark.parametrize(("name", "call"), OTHERS)
def test_other_calls(name, call):
    refused(call, name)


LOSSES = [
    ("scalar", nn.CrossEntropyLoss(reduction="none")),
    ("tensor", lambda pred, y: 0.5),
    ("tensor", lambda pred, y: None),
    ("gradient", lambda pred, y: (pred.argmax(1) != y).float().mean()),
    ("gradient", lambda pred, y: nn.functional.cross_entropy(pred, y).detach()),
]


@pytest.mark.parametrize(("word", "loss_func"), LOSSES)
def test_a_loss_that_cannot_be_trained_on(data, word, loss_func):
    learn = Learner(data, plain(), loss_func=loss_func)
    refused(lambda: learn.fit(1), f"loss_func.*{word}", learn, started=True)


def test_a_model_without_trainable_parameters(data):
    learn = Learner(data, plain().requires_grad_(False))
    refused(lambda: learn.fit(1), "train at least one parameter", learn, started=True)


x, y = torch.zeros(4, 64), torch.arange(4)


@pytest.mark.parametrize(
    "batch", [(x,), [x], x, {"x": x, "z": y}, ()], ids=lambda b: type(b).__name__
)
def test_a_batch_without_target(batch):
    learn = Learner(([batch], None), plain())
    refused(lambda: learn.fit(1), "batch without target", learn, started=True)


@pytest.mark.parametrize("target", [y.bool(), y + 0j, ["a"], 3], ids=str)
def test_a_target_no_loss_can_be_inferred_from(target):
    learn = Learner(([(x, target)], None), plain())
    refused(lambda: learn.fit(1), "loss_func cannot be inferred", learn, started=True)


def test_a_target_that_would_only_broadcast():
    learn = Learner(([(x, torch.zeros(4))], None), nn.Linear(64, 1))
    refused(lambda: learn.fit(1), r"loss_func.*\(4, 1\).*\(4,\)", learn, started=True)


def test_a_loss_for_a_model_that_returns_no_tensor():
    class Answer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain()

        def forward(self, x):
            return {"scores": self.net(x)}

    learn = Learner(([(x, y)], None), Answer())
    refused(
        lambda: learn.fit(1), "loss_func cannot be inferred .*returns dict", learn, started=True
    )


@pytest.mark.parametrize("dl", [(x, y), x, TensorDataset(x, y), DataLoaders([BATCH])], ids=type)
def test_what_is_no_loader_cannot_be_predicted(learn, dl):
    refused(lambda: learn.get_preds(dl), "dl must be an iterable of batches", learn)


def test_a_folder_is_no_file(learn, tmp_path):
    with pytest.raises(IsADirectoryError, match=r"path: .*is a folder"):
        learn.save(tmp_path)


def test_classes_for_a_model_with_one_output():
    learn = Learner(([(x, y)], None), nn.Linear(64, 1))
    refused(lambda: learn.fit(1), r"loss_func.*\(4, 1\)", learn, started=True)


class Liar(list):
    """Has a length and yields nothing."""

    def __iter__(self):
        return iter(())


def test_a_loader_that_yields_nothing(data):
    learn = Learner((Liar([BATCH]), None), plain())
    refused(lambda: learn.fit(1), "train yielded no batch", learn, started=True)
    learn = Learner((data.train, Liar([BATCH])), plain())
    refused(learn.validate, "valid_loss")
    refused(learn.get_preds, "dl")


def broken(pred, target):
    raise ZeroDivisionError("by design")


class BrokenObject:
    def reset(self): ...

    def update(self, pred, target):
        raise RuntimeError("by design")

    def compute(self): ...


METRICS = [
    ("broken' raised ZeroDivisionError: by design", broken),
    ("BrokenObject' raised RuntimeError: by design", BrokenObject()),
    ("partial_shape' must return one number", lambda p, t: p),
    ("word' must return one number", lambda p, t: "word"),
    ("mse' raised ValueError: pred and target must have one shape", mse),
]


@pytest.mark.parametrize(("message", "metric"), METRICS)
def test_a_metric_that_fails_is_named(data, message, metric):
    if inspect.isfunction(metric) and metric is not broken:
        metric.__name__ = message.split("'")[0]
    learn = Learner(data, plain(), metrics=[metric])
    with pytest.raises((ValueError, TypeError), match=message):
        learn.validate()


def test_no_validation_data(data):
    learn = Learner((data.train, None), plain())
    for call in (learn.validate, learn.get_preds):
        refused(call, "dl", learn)


def test_nothing_to_plot(learn):
    with pytest.raises(ValueError, match="lr_find"):
        learn.recorder.plot()
    with pytest.raises(ValueError, match="metrics"):
        learn.recorder.plot_metrics()


def test_schedules_of_another_number_of_groups(learn):
    scheduler = ParamScheduler({"lr": [schedules.constant(0.1)] * 3})
    refused(lambda: learn.fit(1, callbacks=[scheduler]), "schedules", learn, started=True)


def test_an_error_leaves_a_learner_that_trains(learn):
    class Once(Callback):
        def on_step_end(self, learn):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        learn.fit(1, callbacks=[Once])
    learn.fit_one_cycle(1, 1e-2)
    assert len(learn.recorder.losses) == 11
    assert len(learn.recorder.history) == 1


def test_a_hyper_parameter_that_does_not_exist(learn):
    scheduler = ParamScheduler({"learning_rate": schedules.linear(1, 0)})
    refused(
        lambda: learn.fit(1, callbacks=[scheduler]),
        r"schedules\['learning_rate'\]: AdamW has no such hyper-parameter, it has lr, mom, wd",
        learn,
        started=True,
    )


def test_weight_decay_for_an_optimizer_without(data):
    learn = Learner(data, mlp(), opt_func=torch.optim.Rprop)
    refused(lambda: learn.fit(1, wd=0.1), "wd: Rprop has no weight decay", learn)


def test_a_batch_without_samples():
    learn = Learner(([(x[:0], y[:0])], None), plain())
    refused(lambda: learn.fit(1), "data: a batch without samples", learn, started=True)


def test_one_axes_for_two_pictures(learn):
    from matplotlib import pyplot as plt

    learn.fit(1)
    refused(lambda: learn.recorder.plot_lr(show_moms=True, ax=plt.gca()), "ax must be a pair")


def test_a_lazy_model(data):
    refused(lambda: Learner(data, nn.LazyLinear(10)), "model has lazy parameters")
