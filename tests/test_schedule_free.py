"""ScheduleFree: which point the model is at, and that nothing is lost between fits."""

import warnings
from functools import partial

import pytest
import torch
from helpers import Halt, everything, mlp, same, weights
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from torch import nn
from torch.optim.lr_scheduler import StepLR

from onecycle import (
    Callback,
    Checkpoint,
    EarlyStopping,
    Learner,
    ParamScheduler,
    SaveBest,
    ScheduleFree,
    TorchScheduler,
    accuracy,
    checkpoint,
    optimizers,
)
from onecycle.plan import of_fit
from onecycle.schedules import flat_cos, linear, wsd


def mlp_without_norm():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def learner(data, model=None, opt_func=AdamWScheduleFree, **options):
    options = {"callbacks": [ScheduleFree], "metrics": [accuracy], **options}
    return Learner(data, model or mlp_without_norm(), opt_func=opt_func, **options)


OPTIMIZERS = [AdamWScheduleFree, SGDScheduleFree, partial(AdamWScheduleFree, warmup_steps=5)]


def loop_by_hand(data, opt_func, lr, epochs):
    """The loop of the package's own example; returns its validation losses and its model."""
    model, losses = mlp_without_norm(), []
    opt = opt_func(model.parameters(), lr=lr)
    x, y = (torch.cat(part) for part in zip(*data.valid, strict=True))
    for epoch in range(epochs):
        data.train.set_epoch(epoch)
        opt.train()
        for batch, target in data.train:
            nn.functional.cross_entropy(model(batch), target).backward()
            opt.step()
            opt.zero_grad()
        opt.eval()
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(model(x), y).item())
    return losses, model


@pytest.mark.parametrize("opt_func", OPTIMIZERS)
def test_it_is_the_loop_by_hand(data, opt_func):
    losses, model = loop_by_hand(data, opt_func, 0.01, 3)
    learn = learner(data, opt_func=opt_func, wd=None)
    learn.fit(3, 0.01)
    assert learn.recorder.points("valid_loss") == [
        (pytest.approx(i), pytest.approx(loss, abs=1e-6)) for i, loss in enumerate(losses, start=1)
    ]
    pairs = zip(learn.model.parameters(), model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_validation_is_that_of_opt_eval(data):
    class Looks(Callback):
        def on_epoch_end(self, learn):
            learn.opt.eval()
            self.scores = learn.validate()
            learn.opt.train()
            self.at_y = learn.validate()

    looks, learn = Looks(), learner(data)
    learn.fit(1, 0.01, callbacks=[looks])
    assert learn.scores == pytest.approx(looks.scores, abs=1e-5)
    assert looks.at_y["valid_loss"] != pytest.approx(looks.scores["valid_loss"], abs=1e-5)
    assert learn.validate() == pytest.approx(looks.scores, abs=1e-5)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_leaves_the_model_at_x(data, error):
    class Fails(Callback):
        def on_batch_end(self, learn):
            if learn.step == 5:
                raise error

    learn = learner(data)
    with pytest.raises(error):
        learn.fit(1, 0.01, callbacks=[Fails])
    assert not learn.opt.param_groups[0]["train_mode"]
    learn.fit(1, 0.01)


def test_another_optimizer_is_refused(data):
    learn = learner(data, opt_func=torch.optim.AdamW)
    with pytest.raises(TypeError, match=r"opt_func: ScheduleFree .*train\(\) and eval\(\).*AdamW"):
        learn.fit(1, 0.01)


# ---- what it counts in its groups ----------------------------------------------------------------


def test_a_second_fit_goes_on_with_the_average(data):
    once, twice = learner(data), learner(data)
    once.fit(2, 0.01)
    twice.fit(1, 0.01)
    twice.fit(1, 0.01)
    assert twice.opt.param_groups[0]["k"] == 20
    assert twice.opt.param_groups[0]["lr"] == 0.0025  # what a fit sets it gives back
    pairs = zip(once.model.parameters(), twice.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_a_saved_learner_goes_on_the_same(data, tmp_path):
    one = learner(data)
    one.fit(1, 0.01)
    one.save(tmp_path / "x.pt")
    other = learner(data).load(tmp_path / "x.pt")
    assert same(weights(one), weights(other))
    assert other.validate() == one.validate()


def test_counters_are_no_part_of_the_plan(data):
    learn = learner(data)
    plan = partial(of_fit, learn, "fit", range(1), 1, [0.01], None, None)
    before = plan()
    learn.fit(1, 0.01)
    assert plan() == before


def test_an_optimizer_that_takes_any_argument_has_no_counters(data):
    class Anything(torch.optim.SGD):
        def __init__(self, params, **options):
            super().__init__(params, lr=0.1, **options)
            self.defaults["mine"] = 1.0

    assert optimizers.counters(optimizers.build(mlp(), Anything)) == set()


# ---- what is kept of an epoch --------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("keep", ["memory", "file"])
def test_the_best_epoch_is_kept_as_it_was_validated(data, tmp_path, keep, order):
    keeper = (
        EarlyStopping(patience=9, restore_best=True)
        if keep == "memory"
        else SaveBest(tmp_path / "best.pt")
    )
    learn = learner(data, mlp(), callbacks=[])
    learn.fit(3, 0.03, callbacks=[ScheduleFree(), keeper][::order])
    best = min(row["valid_loss"] for row in learn.recorder.history)
    assert learn.validate()["valid_loss"] == best
    if keep == "file":
        other = learner(data, mlp()).load(tmp_path / "best.pt")
        assert other.validate()["valid_loss"] == best


def test_so_it_is_without_validation(data, tmp_path):
    learn = learner((data.train, None), metrics=(), callbacks=[])
    keeper = SaveBest(tmp_path / "best.pt", "train_loss")
    learn.fit(2, 0.03, callbacks=[ScheduleFree(), keeper])
    assert not checkpoint.load(keeper.path)["optimizer"]["state"]["param_groups"][0]["train_mode"]


def test_a_checkpoint_of_an_epoch_has_what_was_validated(data, tmp_path):
    learn = learner(data, mlp())
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, 0.03, callbacks=[Checkpoint(tmp_path / "run.pt"), Halt(15)])
    other = learner(data, mlp()).load(tmp_path / "run.pt")
    row = learn.recorder.history[0]
    assert other.validate() == {name: row[name] for name in ("valid_loss", "accuracy")}
    other.fit(1, 0.03)


def test_one_within_an_epoch_is_loaded_at_x(data, tmp_path):
    learn = learner(data)
    saver = Checkpoint(tmp_path / "run.pt", every_epochs=None, every_steps=4)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, 0.03, callbacks=[saver, Halt(5)])
    by_hand, there = learner(data), checkpoint.load(saver.path)
    by_hand.model.load_state_dict(there["model"])
    by_hand.opt.load_state_dict(there["optimizer"]["state"])
    assert by_hand.opt.param_groups[0]["train_mode"]
    by_hand.opt.eval()
    other = learner(data).load(saver.path)
    assert same(other.model.state_dict(), by_hand.model.state_dict())
    assert not same(other.model.state_dict(), there["model"])


def test_a_search_by_cycles_is_refused(data):
    with pytest.raises(ValueError, match="AdamWScheduleFree averages instead of annealing"):
        learner(data).find({"max_lr": [0.01]}, 1)


# ---- the schedule --------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [linear(1, 0), flat_cos(), wsd()])
def test_a_schedule_that_anneals_is_warned_of(data, schedule):
    with pytest.warns(UserWarning, match="is meant for a flat rate") as told:
        learner(data).fit(1, 0.01, schedule=schedule)
    assert len(told) == 1


@pytest.mark.parametrize(
    "schedule",
    [None, linear(0.1, 1), linear(1, 0.8), TorchScheduler(partial(StepLR, step_size=100))],
)
def test_one_that_does_not_is_not(data, schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner(data).fit(1, 0.01, schedule=schedule)


def test_a_schedule_of_weight_decay_alone_is_none_of_the_rate(data):
    learner(data).fit(1, 0.01, callbacks=[ParamScheduler({"wd": linear(0.1, 0.0)})])


# ---- batch norm ----------------------------------------------------------------------------------


def test_statistics_are_those_at_x(data):
    learn = learner(data, mlp())
    learn.fit(2, 0.01)
    data.train.set_epoch(0)
    inside = [learn.model[0](x).detach() for x, _ in data.train]
    expected = torch.stack([h.mean(0) for h in inside]).mean(0)
    assert torch.allclose(learn.model[1].running_mean, expected, atol=1e-4)


def test_they_are_so_without_validation_as_well(data):
    learn = learner((data.train, None), mlp())
    learn.fit(1, 0.01)
    data.train.set_epoch(0)
    inside = [learn.model[0](x).detach() for x, _ in data.train]
    expected = torch.stack([h.mean(0) for h in inside]).mean(0)
    assert torch.allclose(learn.model[1].running_mean, expected, atol=1e-4)


def test_copy_leaves_them_to_training(data):
    ends = []
    for buffers in ("copy", "recompute"):
        learn = learner(data, mlp(), callbacks=[ScheduleFree(buffers=buffers)])
        torch.manual_seed(5)
        learn.fit(2, 0.01)
        ends.append(learn)
    weight, mean = (
        [getattr(e.model[i], n) for e in ends] for i, n in ((0, "weight"), (1, "running_mean"))
    )
    assert torch.equal(*weight)
    assert not torch.equal(*mean)


# ---- lr_find -------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [0, 1])
@pytest.mark.parametrize("method", ["sweep", "race"])
def test_lr_find_works_and_leaves_no_trace(data, method, trained):
    learn = learner(data, mlp())
    if trained:
        learn.fit(1, 0.01)
    before = everything(learn)
    found = learn.lr_find(num_it=40, method=method)
    assert float(found) > 0
    assert same(everything(learn), before)


def test_training_after_lr_find_is_as_without_it(data):
    ends = []
    for find in (False, True):
        learn = learner(data, mlp())
        torch.manual_seed(5)
        if find:
            learn.lr_find(num_it=20)
        learn.fit(1, 0.01)
        ends.append(weights(learn))
    assert same(*ends)
