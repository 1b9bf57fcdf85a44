"""fit and fit_one_cycle: the plain loop, the schedule, groups, accumulation, precision."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from helpers import mlp, plain, same, sgd, split_in_two, weights
from torch import nn
from torch.nn import functional

from onecycle import (
    Callback,
    CancelBatch,
    CancelEpoch,
    DataLoaders,
    Learner,
    ParamScheduler,
    accuracy,
)
from onecycle.schedules import linear, one_cycle, one_cycle_momentum, sample


def plain_loop(model, data, opt, epochs, accumulate=1, clip=None):
    """The loop a user writes by hand: the reference."""
    for epoch in range(epochs):
        data.train.set_epoch(epoch)
        model.train()
        loaded = list(data.train)
        for first in range(0, len(loaded), accumulate):
            group = loaded[first : first + accumulate]
            x, y = (torch.cat(parts) for parts in zip(*group, strict=True))
            functional.cross_entropy(model(x), y).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            opt.zero_grad()


@pytest.mark.parametrize("clip", [None, 0.1])
def test_fit_is_the_plain_loop_bit_for_bit(data, clip):
    by_hand = mlp()
    torch.manual_seed(2)
    plain_loop(by_hand, data, torch.optim.SGD(by_hand.parameters(), 0.1), epochs=2, clip=clip)
    learn = Learner(data, mlp(), opt_func=torch.optim.SGD, wd=None, clip=clip)
    torch.manual_seed(2)
    learn.fit(2, lr=0.1)
    assert same(by_hand.state_dict(), learn.model.state_dict())


@pytest.mark.parametrize("accumulate", [2, 3, 4, 100])
def test_accumulation_is_a_larger_batch_also_when_ragged(digit_tensors, accumulate):
    x, y = digit_tensors
    data = DataLoaders.from_tensors(x[:95], y[:95], batch_size=10)
    by_hand = plain()
    plain_loop(by_hand, data, torch.optim.SGD(by_hand.parameters(), 0.1), 2, accumulate)
    learn = Learner(data, plain(), opt_func=torch.optim.SGD, wd=None, accumulate=accumulate)
    learn.fit(2, lr=0.1)
    torch.testing.assert_close(learn.model.weight, by_hand.weight, rtol=1e-5, atol=1e-6)
    assert learn.step == learn.total_steps == 2 * -(-10 // accumulate)
    assert learn.recorder.epochs[-1] < 2


def test_validation_does_not_change_training(data):
    with_valid, without = (Learner(d, mlp()) for d in (data, (data.train, None)))
    for learn in (with_valid, without):
        torch.manual_seed(2)
        learn.fit_one_cycle(2, 1e-2)
    assert same(weights(with_valid), weights(without))


def test_one_cycle_writes_the_schedule_exactly(learn):
    learn.fit_one_cycle(3, 0.02)
    assert learn.recorder.lrs.tolist() == sample(one_cycle(0.02, total_steps=30), 30)
    momentum = sample(one_cycle_momentum(total_steps=30), 30)
    assert learn.recorder.moms == pytest.approx(momentum, abs=1e-7)  # single precision


def test_one_cycle_counts_updates_under_accumulation(data):
    learn = Learner(data, mlp(), accumulate=3)
    learn.fit_one_cycle(2, 0.02)
    assert learn.recorder.lrs.tolist() == sample(one_cycle(0.02, total_steps=8), 8)


def test_hyper_parameters_are_what_they_were_after_a_fit(data):
    learn = Learner(data, mlp(), opt_func=partial(sgd, lr=0.3))
    learn.fit_one_cycle(1, 0.1, wd=0.5)
    learn.fit(1, 0.2, wd=0.1, schedule=linear(1, 0))
    groups = learn.opt.param_groups
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in groups] == [
        (0.3, 0.9, 0.01),
        (0.3, 0.9, 0.0),
    ]


def test_fit_without_a_rate_takes_the_optimizers(data):
    learn = Learner(data, mlp(), opt_func=partial(sgd, lr=0.07))
    learn.fit(1)
    learn.fit_one_cycle(1)
    assert set(learn.recorder.lrs[:10]) == {0.07}
    assert learn.recorder.lrs[10:].max() == 0.07


def test_schedule_is_a_factor_of_the_rate(learn):
    learn.fit(1, 0.1, schedule=linear(1, 0))
    np.testing.assert_allclose(learn.recorder.lrs, 0.1 * np.linspace(1, 0, 10), atol=1e-17)


def test_param_scheduler_moves_any_hyper_parameter(data):
    seen = []

    class Watch(Callback):
        def on_batch_begin(self, learn):
            seen.append([(g["weight_decay"], g["eps"]) for g in learn.opt.param_groups])

    scheduler = ParamScheduler({"wd": linear(0.2, 0.1), "eps": lambda p: 1e-8 * (1 + p)})
    Learner(data, mlp()).fit(1, callbacks=[scheduler, Watch])
    assert seen[0] == [(0.2, 1e-8), (0.0, 1e-8)]
    assert seen[-1] == [(0.1, 2e-8), (0.0, 2e-8)]


def test_a_cycle_in_two_calls_is_the_cycle_in_one(data):
    whole, parts = Learner(data, mlp()), Learner(data, mlp())
    torch.manual_seed(2)
    whole.fit_one_cycle(5, 0.02)
    torch.manual_seed(2)
    parts.fit_one_cycle(2, 0.02, tot_epochs=5)
    parts.fit_one_cycle(3, 0.02, tot_epochs=5, start_epoch=2)
    assert same(weights(whole), weights(parts))
    assert whole.recorder.lrs.tolist() == parts.recorder.lrs.tolist()
    assert [row["epoch"] for row in parts.recorder.history] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("max_lr", [[1e-3, 1e-2], slice(1e-3, 1e-2), slice(1e-2)])
def test_rates_of_layer_groups(data, max_lr):
    learn = Learner(data, mlp(), splitter=split_in_two)
    peaks = []

    class Watch(Callback):
        def on_batch_end(self, learn):
            peaks.append([g["lr"] for g in learn.opt.param_groups])

    learn.fit_one_cycle(1, max_lr, callbacks=[Watch])
    assert np.max(peaks, axis=0).tolist() == [1e-3, 1e-3, 1e-2, 1e-2]


@pytest.mark.parametrize(
    "opt_func",
    [
        torch.optim.Adam,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        partial(torch.optim.RMSprop, momentum=0.9),
        sgd,
        lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.99)),
    ],
)
def test_any_torch_optimizer_trains_by_one_cycle(data, opt_func):
    learn = Learner(data, mlp(), opt_func=opt_func)
    learn.fit_one_cycle(4, 1e-2)
    assert learn.recorder.moms.min() == 0.85
    assert learn.recorder.history[-1]["train_loss"] < learn.recorder.history[0]["train_loss"]


def test_a_finished_optimizer_is_used_as_it_is(data):
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.3)
    learn = Learner(data, model, opt_func=opt)
    learn.fit_one_cycle(1, 0.1)
    assert learn.opt is opt
    assert (len(opt.param_groups), opt.param_groups[0]["weight_decay"]) == (1, 0.3)


def test_integers_mean_cross_entropy_and_floats_squared_error(data, digit_tensors):
    Learner(data, plain()).fit(1)
    x = digit_tensors[0][:64]
    y = x.mean(1, keepdim=True)
    learn = Learner(DataLoaders.from_tensors(x, y), nn.Linear(64, 1))
    learn.fit(20, 1e-2)
    assert learn.recorder.losses[-1] < 0.1 * learn.recorder.losses[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(data, precision):
    learn = Learner(data, mlp(), precision=precision, metrics=[accuracy])
    learn.lr_find(num_it=10)
    learn.fit_one_cycle(8, 0.02)
    assert learn.recorder.history[-1]["accuracy"] > 0.7
    assert learn.get_preds()[0].dtype == learn.model[0].weight.dtype == torch.float32


def test_frozen_batch_norm_stays_as_a_callback_sets_it(data):
    class Freeze(Callback):
        def on_epoch_begin(self, learn):
            learn.model[1].eval()

    learn = Learner(data, mlp(), callbacks=[Freeze])
    mean = learn.model[1].running_mean.clone()
    learn.fit(2)
    assert torch.equal(learn.model[1].running_mean, mean)


def test_the_table_shows_every_epoch(data, capsys, monkeypatch):
    monkeypatch.delenv("ONECYCLE_PROGRESS")
    learn = Learner(data, mlp(), metrics=[accuracy])
    learn.fit_one_cycle(2, 1e-2)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["epoch", "train_loss", "valid_loss", "accuracy", "lr", "time"]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert {len(line) for line in [head, *rows]} == {len(head)}


def test_no_bar_and_no_logging(data, capsys, monkeypatch):
    monkeypatch.delenv("ONECYCLE_PROGRESS")
    learn = Learner(data, mlp())
    with learn.no_logging():
        learn.fit(1)
    assert capsys.readouterr().out == ""
    with learn.no_bar():
        learn.fit(1)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_half_precision_survives_what_ends_a_step_in_the_middle(data):
    class Cut(Callback):
        def on_backward_end(self, learn):
            raise CancelBatch if learn.batch_index % 2 else KeyboardInterrupt

    learn = Learner(data, mlp(), precision="fp16", clip=1.0)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, callbacks=[Cut])
    learn.fit(1)
    assert learn.step == 10


def test_half_precision_clips_the_true_gradients(digit_tensors):
    x, y = (part[:30] for part in digit_tensors)
    model = plain()
    before = model.weight.detach().clone()
    learn = Learner(
        ([(x, y)], None), model, opt_func=torch.optim.SGD, wd=None, precision="fp16", clip=0.01
    )
    learn.fit(1, 1.0)
    assert 0.005 < (model.weight - before).norm() < 0.0101


def test_only_what_the_optimizer_trains_is_clipped(data):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 10))
    frozen = copy.deepcopy(model)
    frozen[0].requires_grad_(False)
    runs = []
    for net in (model, frozen):
        head = torch.optim.SGD(net[1].parameters(), lr=0.1)
        Learner(data, net, opt_func=head, clip=0.1).fit(1)
        runs.append(net[1].state_dict())
    assert same(*runs)


def test_a_loss_with_parameters_is_trained_also_when_accumulating(data):
    class Scaled(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, pred, target):
            return self.scale * super().forward(pred, target)

    x, y = next(iter(data.train))
    scales = []
    for accumulate in (1, 2):
        loss, model = Scaled(), plain()
        opt = torch.optim.SGD([*model.parameters(), loss.scale], lr=0.1)
        loader = [(x, y)] * accumulate
        learn = Learner((loader, None), model, loss, opt_func=opt, accumulate=accumulate)
        learn.fit(1)
        scales.append(loss.scale.item())
    assert scales[0] == pytest.approx(scales[1])
    assert scales[0] != 1.0


def test_a_copied_learner_trains(learn):
    learn.fit(1)
    other = copy.deepcopy(learn)
    for one in (learn, other):
        torch.manual_seed(0)
        one.fit(1)
    assert same(weights(learn), weights(other))


def test_a_part_of_a_cycle_counts_updates(data):
    whole, part = (Learner(data, mlp(), accumulate=3) for _ in range(2))
    whole.fit_one_cycle(4, 0.02)
    part.fit_one_cycle(1, 0.02, tot_epochs=4, start_epoch=3)
    assert part.recorder.lrs.tolist() == whole.recorder.lrs[-4:].tolist()


def test_a_cycle_goes_on_in_a_new_learner(data, tmp_path):
    whole = Learner(data, plain())
    whole.fit_one_cycle(4, 0.02)
    first = Learner(data, plain())
    first.fit_one_cycle(2, 0.02, tot_epochs=4)
    rest = Learner(data, plain(3)).load(first.save(tmp_path / "half.pt"))
    rest.fit_one_cycle(2, 0.02, tot_epochs=4, start_epoch=2)
    assert same(weights(whole), weights(rest))


@pytest.mark.parametrize("training", [True, False])
def test_fit_leaves_the_mode_of_the_model(learn, training):
    learn.model.train(training)
    learn.fit(1)
    assert all(module.training is training for module in learn.model.modules())


def test_scores_are_those_of_this_epoch(data):
    class Skip(Callback):
        def on_epoch_begin(self, learn):
            if learn.epoch == 1:
                raise CancelEpoch

    learn = Learner(data, plain(), callbacks=[Skip])
    learn.fit(2)
    assert (learn.scores, "valid_loss" in learn.recorder.history[1]) == ({}, False)


def test_schedules_of_layer_groups(data):
    rates = []

    class Watch(Callback):
        def on_batch_end(self, learn):
            rates.append([g["lr"] for g in learn.opt.param_groups])

    scheduler = ParamScheduler({"lr": [linear(1e-3, 1e-3), linear(1e-2, 1e-2)]})
    learn = Learner(data, mlp(), splitter=split_in_two, callbacks=[scheduler, Watch])
    learn.fit(1)
    assert rates[0] == [1e-3, 1e-3, 1e-2, 1e-2]


def test_groups_added_by_a_callback_stay(data):
    model = nn.Sequential(plain(), nn.Linear(10, 10))

    class Unfreeze(Callback):
        def on_epoch_begin(self, learn):
            learn.opt.add_param_group({"params": [*learn.model[1].parameters()]})

    learn = Learner(data, model, opt_func=torch.optim.SGD(model[0].parameters(), lr=0.1))
    learn.fit(1, 0.5, callbacks=[Unfreeze])
    assert [g["lr"] for g in learn.opt.param_groups] == [0.1, 0.1]


def test_no_callbacks_may_be_none(data):
    Learner(data, plain(), callbacks=None).fit(1, callbacks=None)


@pytest.mark.parametrize("opt_func", [torch.optim.Adagrad, torch.optim.SGD])
def test_an_optimizer_without_momentum_is_left_alone_with_one_notice(data, opt_func):
    learn = Learner(data, mlp(), opt_func=opt_func)
    with pytest.warns(UserWarning, match="no momentum in use") as notices:
        learn.fit_one_cycle(1, 0.01)
    assert len(notices) == 1
    assert all(g.get("momentum", 0) == 0 for g in learn.opt.param_groups)
    learn.fit_one_cycle(1, 0.01, moms=None)


class Lengthen(Callback):
    def on_batch_end(self, learn):
        if learn.step == 5:
            learn.total_steps = 20


def test_a_schedule_follows_a_plan_that_changes(data):
    learn = Learner(data, plain(), callbacks=[Lengthen()])
    learn.fit(1, 1.0, schedule=lambda p: p)
    assert learn.recorder.lrs[4:7] == pytest.approx([4 / 9, 5 / 19, 6 / 19])


def test_a_scheduler_serves_one_fit_after_the_other(data):
    decay = ParamScheduler({"wd": linear(0.1, 0.0)})
    learn, seen = Learner(data, plain()), []
    learn.opt.register_step_pre_hook(
        lambda opt, *_: seen.append(opt.param_groups[0]["weight_decay"])
    )
    learn.fit(2, 0.01, callbacks=[decay])
    learn.fit(1, 0.01, callbacks=[decay])
    assert seen == pytest.approx([*np.linspace(0.1, 0, 20), *np.linspace(0.1, 0, 10)])


def test_a_scheduler_may_serve_two_learners_at_once(data):
    falling = ParamScheduler({"lr": linear(1.0, 0.0)})

    class Aside(Callback):
        def on_batch_end(self, learn):
            if learn.step == 3:
                Learner(data, plain()).fit(2, callbacks=[falling])

    learn = Learner(data, plain(), callbacks=[Aside()])
    learn.fit(1, callbacks=[falling])
    assert learn.recorder.lrs == pytest.approx(np.linspace(1, 0, 10))


def test_another_optimizer_in_its_place_trains_from_the_next_fit_on(data):
    one, other = Learner(data, mlp()), Learner(data, mlp(), opt_func=opt_of, wd=0)
    one.opt = opt_of(one.model.parameters())
    for learn in (one, other):
        torch.manual_seed(0)
        learn.lr_find(num_it=20)
        learn.fit_one_cycle(1, 0.1)
    assert one.recorder.losses.tolist() == other.recorder.losses.tolist()


def opt_of(parameters):
    groups = [group if isinstance(group, dict) else {"params": [group]} for group in parameters]
    each = [p for group in groups for p in group["params"]]
    return torch.optim.SGD(each, lr=0.1, momentum=0.9)


def test_what_is_no_optimizer_is_refused(learn):
    learn.opt = torch.optim.SGD
    with pytest.raises(TypeError, match=r"learn\.opt must be a torch optimizer"):
        learn.fit(1)


def test_a_callback_may_make_probabilities_of_classes(data):
    class Mix(Callback):
        def on_batch_begin(self, learn):
            x, y = learn.batch
            hot = functional.one_hot(y, 10).float()
            learn.batch = (x + x.flip(0)) / 2, (hot + hot.flip(0)) / 2

    learn = Learner(data, mlp(), callbacks=[Mix])
    learn.fit_one_cycle(2, 1e-2)
    assert learn.recorder.losses[-1] < learn.recorder.losses[0]
