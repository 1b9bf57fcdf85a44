"""The short methods over fit, planning before training, torch's schedulers."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import Log, everything, mlp, plain, same, sgd
from torch.optim import lr_scheduler

from onecycle import CancelTrain, Learner, TorchScheduler
from onecycle.plot import boundary_table
from onecycle.schedules import (
    constant,
    flat_cos,
    linear,
    on_steps,
    one_cycle,
    repeat,
    rex,
    sample,
    scaled,
    sgdr,
    step_decay,
    triangular,
    wsd,
)

RECIPES = {
    "fit_flat_cos": (lambda learn: learn.fit_flat_cos(4, 0.1), flat_cos()),
    "fit_wsd": (
        lambda learn: learn.fit_wsd(4, 0.1, cooldown=0.5, shape="linear"),
        wsd(cooldown=0.5, shape="linear"),
    ),
    "fit_sgdr": (
        lambda learn: learn.fit_sgdr(2, 1, 0.1, cycle_mult=3),
        sgdr(cycle_len=1, cycle_mult=3, epochs=4),
    ),
    "fit_clr": (
        lambda learn: learn.fit_clr(4, 0.1, cycle_len=2, mode="triangular2"),
        triangular(0.25, cycle_len=2, epochs=4, mode="triangular2"),
    ),
    "fit": (lambda learn: learn.fit(4, 0.1, schedule=rex()), rex()),
    "a function": (lambda learn: learn.fit(4, 0.1, schedule=lambda p: 1 - p), linear()),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_fit_with_its_schedule(data, name):
    train, schedule = RECIPES[name]
    learn = Learner(data, mlp())
    train(learn)
    planned = sample(on_steps(scaled(schedule, 0.1), 40), 40)
    np.testing.assert_array_equal(learn.recorder.lrs, planned)
    assert np.all(learn.recorder.moms == 0.9)


def test_restarts_are_at_the_first_batch_of_an_epoch_exactly(learn):
    learn.fit_sgdr(3, 1, 0.1)
    lrs = learn.recorder.lrs
    assert [t for t in range(70) if lrs[t] == 0.1] == [0, 10, 30]
    assert lrs[-1] == 0.0


def test_sgdr_needs_no_multiplier(learn):
    learn.fit_sgdr(2, 1, 0.1, cycle_mult=1)
    assert len(learn.recorder.history) == 2


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda learn: learn.fit_flat_cos(2, 0.1, pct_start=1.5), "pct_start"),
        (lambda learn: learn.fit_wsd(2, 0.1, warmup=0.6, cooldown=0.6), "cooldown"),
        (lambda learn: learn.fit_wsd(2, 0.1, shape="square"), "shape"),
        (lambda learn: learn.fit_wsd(2, -0.1), "max_lr"),
        (lambda learn: learn.fit_sgdr(0, 1), "n_cycles"),
        (lambda learn: learn.fit_sgdr(1, 0), "cycle_len"),
        (lambda learn: learn.fit_clr(2, 0.1, cycle_len=3), "cycle_len"),
        (lambda learn: learn.fit_clr(0, 0.1), "epochs"),
        (lambda learn: learn.fit_clr(4, 0.1, div_factor=1), "div_factor"),
        (lambda learn: learn.fit_clr(4, 0.1, mode="square"), "mode"),
        (lambda learn: learn.lr_at(10, epochs=10, max_lr=0.1), "epoch"),
        (lambda learn: learn.lr_at(0, 10, epochs=10, max_lr=0.1), "batch"),
        (lambda learn: learn.plot_schedule(0, 0.1), "epochs"),
        (lambda learn: learn.plot_schedule(1, -0.1), "max_lr"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_changes(learn, call, name):
    before = everything(learn)
    with pytest.raises(ValueError, match=name):
        call(learn)
    assert same(everything(learn), before)


def test_a_scheduler_of_torch_as_schedule_is_told_what_to_do(learn):
    scheduler = lr_scheduler.StepLR(learn.opt, 5)
    for wrong in (scheduler, lr_scheduler.StepLR):
        with pytest.raises(TypeError, match="TorchScheduler"):
            learn.fit(1, schedule=wrong)


# ---- planning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_lr_at_says_what_training_does(data, accumulate):
    learn = Learner(data, mlp(), accumulate=accumulate)
    options = {"pct_start": 0.4, "div_factor": 10}
    at = partial(learn.lr_at, epochs=3, max_lr=0.1, **options)
    planned = [at(epoch, batch) for epoch in range(3) for batch in range(0, 10, accumulate)]
    before = everything(learn)
    learn.fit_one_cycle(3, 0.1, **options)
    assert planned == learn.recorder.lrs.tolist()
    assert same(before["recorder"], Learner(data, mlp()).recorder.state_dict())


def test_the_answer_to_the_forum_s_question(learn):
    assert learn.lr_at(epoch=3, batch=0, epochs=10, max_lr=0.1) == 0.1
    assert learn.lr_at(epoch=0, epochs=10, max_lr=0.1) == 0.1 / 25
    assert learn.lr_at(epoch=9, batch=9, epochs=10, max_lr=0.1) == 0.1 / 250_000


def test_lr_at_of_another_schedule(learn):
    assert learn.lr_at(1, epochs=2, max_lr=0.1, schedule=step_decay(at=[1], epochs=2)) == (
        pytest.approx(0.01)
    )
    with pytest.raises(TypeError, match="pct_start belongs to one cycle"):
        learn.lr_at(1, epochs=2, max_lr=0.1, schedule=linear(), pct_start=0.5)


def test_plot_schedule_draws_what_training_will_do(data):
    learn = Learner(data, mlp())
    rate, momentum, table = learn.plot_schedule(2, 0.1, pct_start=0.5)
    learn.fit_one_cycle(2, 0.1, pct_start=0.5)
    np.testing.assert_array_equal(rate.get_lines()[0].get_ydata(), learn.recorder.lrs)
    assert momentum.get_lines()[0].get_ydata() == pytest.approx(learn.recorder.moms, abs=1e-7)
    assert rate.get_lines()[0].get_xdata() == pytest.approx(learn.recorder.epochs)
    lines = table.texts[0].get_text().splitlines()
    assert lines[0].split() == ["epoch", "lr"]
    assert [line.split() for line in lines[1:]] == [
        ["0", "4.00e-03"],
        ["1", f"{learn.recorder.lrs[10]:.2e}"],
        ["end", "4.00e-07"],
    ]


def test_plot_schedule_overlays_one_of_twenty_and_twenty_of_one(learn):
    both = {"1 x 20": None, "20 x 1": repeat(one_cycle(), 20)}
    rate, _, table = learn.plot_schedule(20, 0.1, both)
    assert [text.get_text() for text in rate.get_legend().get_texts()] == list(both)
    again = rate.get_lines()[1].get_ydata()
    assert [again[10 * epoch] for epoch in range(20)] == [0.1 / 25] * 20
    assert table.texts[0].get_text().splitlines()[0] == "epoch    1 x 20    20 x 1"


def test_plot_schedule_without_momentum_leaves_it_out(data):
    learn = Learner(data, plain(), opt_func=torch.optim.Adagrad)
    assert len(learn.plot_schedule(1, 0.1)) == 2


def test_plot_schedule_changes_nothing_and_uses_given_axes(learn):
    from matplotlib import pyplot as plt

    before = everything(learn)
    ax = plt.figure().subplots()
    assert learn.plot_schedule(2, 0.1, ax=ax) == (ax,)
    assert same(everything(learn), before)


@pytest.mark.parametrize(
    ("epochs", "listed"),
    [
        (1, [0]),
        (12, range(12)),
        (13, range(0, 13, 2)),
        (60, range(0, 60, 5)),
        (100, range(0, 100, 10)),
    ],
)
def test_of_many_epochs_some_are_listed(epochs, listed):
    lines = boundary_table({"": [0.1] * 2 * epochs}, per_epoch=2).splitlines()[1:]
    assert [line.split()[0] for line in lines] == [*map(str, listed), "end"]


def test_ticks_are_whole_epochs(learn):
    rate, *_ = learn.plot_schedule(20, 0.1)
    assert all(tick == int(tick) for tick in rate.get_xticks())


# ---- torch's schedulers ------------------------------------------------------------------------

T = 20
TORCH = {
    "StepLR": partial(lr_scheduler.StepLR, step_size=6),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=T),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=T),
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=5),
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    "PolynomialLR": partial(lr_scheduler.PolynomialLR, total_iters=T, power=2),
}


@pytest.mark.parametrize("name", TORCH)
def test_a_scheduler_of_torch_steps_once_for_every_update(data, name):
    model = plain()
    opt = sgd(model.parameters(), lr=0.1)
    scheduler, expected = TORCH[name](opt), []
    for _ in range(T):
        expected.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step() if len(expected) < T else None
    learn = Learner(data, plain(), opt_func=sgd)
    learn.fit(2, 0.1, schedule=TorchScheduler(TORCH[name]))
    assert learn.recorder.lrs.tolist() == expected


def test_accumulated_batches_are_one_step_of_it(data):
    learn = Learner(data, plain(), accumulate=4)
    learn.fit(1, 0.1, schedule=TorchScheduler(partial(lr_scheduler.StepLR, step_size=1)))
    assert learn.recorder.lrs == pytest.approx([0.1, 0.01, 0.001])


@pytest.mark.parametrize("cancelled", [False, True])
def test_it_leaves_the_optimizer_as_it_was(data, cancelled):
    learn = Learner(data, plain(), callbacks=[Log({("on_step_end", 3): CancelTrain()})][:cancelled])
    groups, attributes = everything(learn)["opt"]["param_groups"], set(vars(learn.opt))
    for _ in range(2):
        learn.fit(1, 0.1, callbacks=TorchScheduler(TORCH["StepLR"]))
    assert same(everything(learn)["opt"]["param_groups"], groups)
    assert set(vars(learn.opt)) == attributes
    assert learn.recorder.lrs[0] == learn.recorder.lrs[len(learn.recorder.lrs) // 2] == 0.1


def test_it_goes_on_from_its_state(data):
    scheduler = TorchScheduler(TORCH["StepLR"])
    Learner(data, plain()).fit(1, 0.1, schedule=scheduler)
    other = TorchScheduler(TORCH["StepLR"])
    other.load_state_dict(scheduler.state_dict())
    learn = Learner(data, plain())
    learn.fit(1, 0.1, schedule=other)
    assert learn.recorder.lrs[[0, 3, 9]] == pytest.approx([0.01, 0.001, 0.0001])


@pytest.mark.parametrize(
    "make",
    [
        lr_scheduler.ReduceLROnPlateau,
        lambda opt: None,
    ],
)
def test_what_makes_no_scheduler_of_steps_is_refused(data, make):
    learn = Learner(data, plain())
    with pytest.raises(TypeError, match="make must return a scheduler that counts steps"):
        learn.fit(1, schedule=TorchScheduler(make))


def test_a_finished_scheduler_is_refused(learn):
    with pytest.raises(TypeError, match=r"partial\(StepLR, step_size=100\)"):
        TorchScheduler(lr_scheduler.StepLR(learn.opt, 3))


def test_two_that_would_set_the_rate_are_refused(learn):
    both = {"callbacks": TorchScheduler(TORCH["StepLR"])}
    for fit in (
        partial(learn.fit_one_cycle, 1, 0.1),
        partial(learn.fit, 1, 0.1, schedule=constant(1.0)),
    ):
        with pytest.raises(ValueError, match="would both set the learning rate"):
            fit(**both)


def test_it_leaves_the_optimizer_as_it_was_when_it_could_not_be_made(data):
    learn = Learner(data, plain())
    before = set(vars(learn.opt))
    with pytest.raises(TypeError, match="make must return"):
        learn.fit(1, schedule=TorchScheduler(lambda opt: (lr_scheduler.StepLR(opt, 1), None)[1]))
    assert set(vars(learn.opt)) == before


def test_a_step_of_the_user_s_own_is_put_back(data):
    learn = Learner(data, plain())
    lr_scheduler.StepLR(learn.opt, 5)
    patched = learn.opt.step
    learn.fit(1, schedule=TorchScheduler(TORCH["StepLR"]))
    assert learn.opt.step is patched


def test_a_learning_rate_that_is_a_tensor_stays_the_same_tensor(data):
    rate, model = torch.tensor(0.1), plain()
    learn = Learner(data, model, opt_func=torch.optim.Adam(model.parameters(), lr=rate))
    scheduler = TorchScheduler(TORCH["StepLR"])
    learn.fit(1, schedule=scheduler)
    again = TorchScheduler(TORCH["StepLR"])
    again.load_state_dict(scheduler.state_dict())
    learn.fit(1, schedule=again)
    assert learn.opt.param_groups[0]["lr"] is rate


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (one_cycle, r"is it one_cycle\(\)\?"),
        (linear, r"is it linear\(\)\?"),
        (lambda p: -1.0, "must lie in"),
        (lambda p: float("nan"), "must lie in"),
        (lambda: 1.0, "0 positional arguments but 1 was given$"),
        (lambda p: 1 / p, "division by zero"),
        (3, "got 3"),
    ],
)
def test_what_is_no_schedule_is_told_before_training(learn, schedule, message):
    before = everything(learn)
    with pytest.raises((TypeError, ValueError), match=f"schedule must be.*{message}"):
        learn.fit(1, 0.1, schedule=schedule)
    assert same(everything(learn), before)


@pytest.mark.parametrize(
    "call",
    [
        lambda learn: learn.plot_schedule(2, 0.1, linear(), pct_start=0.1),
        lambda learn: learn.plot_schedule(2, 0.1, {"a": linear()}, pct_start=0.1),
        lambda learn: learn.plot_schedule(2, 0.1, pct=0.1),
        lambda learn: learn.lr_at(0, epochs=1, max_lr=0.1, tot_epochs=3),
    ],
)
def test_an_argument_that_says_nothing_about_the_plan_is_refused(learn, call):
    with pytest.raises(TypeError, match="cycle"):
        call(learn)


def test_plans_are_of_the_last_layer_group(data):
    from helpers import split_in_two

    learn = Learner(data, mlp(), splitter=split_in_two)
    assert learn.lr_at(3, epochs=10, max_lr=[0.1, 0.2]) == 0.2
    assert learn.plot_schedule(1, [0.1, 0.2])[0].get_lines()[0].get_ydata().max() == 0.2


def test_a_recipe_passes_weight_decay_callbacks_and_gamma_on(data):
    decays = []

    class Watch(Log):
        def on_step_end(self, learn):
            decays.append(learn.opt.param_groups[0]["weight_decay"])

    learn = Learner(data, mlp())
    for fit in (
        partial(learn.fit_flat_cos, 1),
        partial(learn.fit_wsd, 1),
        partial(learn.fit_sgdr, 1, 1),
        partial(learn.fit_clr, 1, mode="exp_range", gamma=0.5),
    ):
        fit(max_lr=0.1, wd=0.3, callbacks=Watch)
        assert (len(decays), set(decays)) == (10, {0.3})
        decays.clear()
    assert learn.recorder.lrs[-10:].max() == pytest.approx(0.025 + 0.075 * 0.5**0.5, rel=1e-6)


def test_an_optimizer_s_own_rate_of_zero_is_told(data):
    learn = Learner(data, plain(), opt_func=partial(torch.optim.SGD, lr=0.0))
    with pytest.raises(ValueError, match="max_lr: the optimizer's own must be finite and above 0"):
        learn.fit_one_cycle(1)
