"""ReduceLROnPlateau: when it reduces, and what that does to the schedule."""

from functools import partial

import numpy as np
import pytest
from helpers import Cancels, Told, plain
from torch.optim.lr_scheduler import StepLR

from onecycle import EarlyStopping, Learner, ParamScheduler, ReduceLROnPlateau, TorchScheduler
from onecycle.schedules import linear, one_cycle, sample

STEPS = 10


def told(data, values, **options):
    metric = Told(values)
    return Learner(data, plain(), metrics={"told": metric}, callbacks=[metric], **options)


def scales(learn):
    """What each epoch's rate is of the first one's."""
    return [round(row["lr"] / learn.recorder.lrs[0], 6) for row in learn.recorder.history]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([3, 2, 1, 0, -1], {"patience": 1}, [1, 1, 1, 1, 1]),
        ([1, 1, 1, 1, 1, 1], {"patience": 1}, [1, 1, 0.5, 0.25, 0.125, 0.0625]),
        ([1, 1, 1, 1, 1, 1], {"patience": 2}, [1, 1, 1, 0.5, 0.5, 0.25]),
        ([1, 2, 0, 1, 1, 1], {"patience": 2}, [1, 1, 1, 1, 1, 0.5]),
        ([1, 1, 1, 1, 1, 1], {"patience": 1, "cooldown": 2}, [1, 1, 0.5, 0.5, 0.5, 0.25]),
        ([1, 1, 1, 1, 1, 1], {"patience": 1, "min_lr": 0.02}, [1, 1, 0.5, 0.25, 0.25, 0.25]),
        ([1, 1, 1, 1, 1], {"patience": 1, "min_lr": 0.03}, [1, 1, 0.5, 0.375, 0.375]),
        ([9, 8, 7, 6, 5], {"patience": 2, "min_delta": 1.5}, [1, 1, 1, 1, 1]),
        ([9, 8, 8, 7, 5], {"patience": 2, "min_delta": 1.5}, [1, 1, 1, 0.5, 0.5]),
        ([1, 2, 3, 3, 3], {"patience": 1, "mode": "max"}, [1, 1, 1, 1, 0.5]),
    ],
)
def test_when_it_reduces(data, values, options, expected):
    learn = told(data, values)
    plateau = ReduceLROnPlateau("told", 0.5, **options)
    learn.fit(len(values), 0.08, callbacks=[plateau])
    assert scales(learn) == pytest.approx(expected)
    assert plateau.scale == pytest.approx(expected[-1])  # none at the end, where nothing follows
    assert learn.opt.param_groups[0]["lr"] == 1e-3
    learn.callbacks[0].values = [1, 1]
    learn.fit(1, 0.08, callbacks=[plateau])
    assert (learn.recorder.lrs[-1], plateau.scale) == (0.08, 1.0)


def halved(data, fit, **options):
    learn = told(data, [1, 1, 1, 1], **options)
    fit(learn, callbacks=[ReduceLROnPlateau("told", 0.5, patience=2)])
    return learn.recorder.lrs


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}])
def test_a_schedule_is_scaled(data, options):
    lrs = halved(data, lambda learn, **k: learn.fit_one_cycle(4, 0.1, **k), **options)
    planned = np.array(sample(one_cycle(0.1, total_steps=len(lrs)), len(lrs)))
    planned[3 * len(lrs) // 4 :] *= 0.5
    assert lrs == pytest.approx(planned)


def test_one_among_the_callbacks_is_scaled_where_it_comes_before(data):
    schedule, plateau = ParamScheduler({"lr": linear(0.4, 0.01)}), ReduceLROnPlateau()
    lrs = halved(data, lambda learn, callbacks: learn.fit(4, callbacks=[schedule, *callbacks]))
    planned = np.linspace(0.4, 0.01, 40) * np.repeat([1, 1, 1, 0.5], STEPS)
    assert lrs == pytest.approx(planned)
    with pytest.raises(ValueError, match="ParamScheduler must come before ReduceLROnPlateau"):
        told(data, [1]).fit(1, callbacks=[plateau, schedule])


def test_one_of_torch_is_refused(data):
    schedule = TorchScheduler(partial(StepLR, step_size=3))
    with pytest.raises(TypeError, match="ReduceLROnPlateau scales schedules of progress"):
        told(data, [1]).fit(1, schedule=schedule, callbacks=[ReduceLROnPlateau])


def test_groups_keep_their_ratios(data):
    learn = told(data, [1, 1, 1], splitter=lambda model: [[model.weight], [model.bias]])
    seen = []
    learn.opt.register_step_pre_hook(
        lambda opt, *_: seen.append([group["lr"] for group in opt.param_groups])
    )
    plateau = ReduceLROnPlateau("told", 0.5, patience=1)
    learn.fit_one_cycle(3, slice(0.01, 0.1), callbacks=[plateau])
    assert [b / a for a, b in seen] == pytest.approx([10] * 30)


@pytest.mark.parametrize("first", [0, 1])
def test_a_cooldown_goes_on_from_the_reduced_rate(data, first):
    learn = told(data, [1] * 10)
    stopping = EarlyStopping("told", patience=3, on_trigger="cooldown", cooldown=0.5)
    both = [ReduceLROnPlateau("told", 0.5, patience=2), stopping]
    learn.fit_one_cycle(10, 0.1, callbacks=[both[first], both[1 - first]])
    planned = np.array(sample(one_cycle(0.1, total_steps=100), 100))
    start, end = 0.5 * planned[39], planned[-1]
    ramp = start + (end - start) * np.arange(1, 21) / 20
    assert learn.recorder.lrs[30:40] == pytest.approx(0.5 * planned[30:40])
    assert learn.recorder.lrs[40:] == pytest.approx(ramp)


def test_an_epoch_without_a_value_counts_for_nothing(data):
    learn = told(data, [1, 1, 1, 1])
    learn.fit(4, 0.1, callbacks=[ReduceLROnPlateau("told", patience=2), Cancels(1)])
    assert learn.recorder.lrs.tolist() == [0.1] * 30


def test_it_says_so_in_one_line(data, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    plateau = ReduceLROnPlateau("told", 0.2, min_lr=2e-4)
    told(data, [2, *[1] * 6]).fit(7, 1e-3, callbacks=[plateau])
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if "improved" in line]
    assert said == [
        "told has not improved for 2 epochs, since epoch 2: from now on the learning rate is 0.2 "
        "of the planned one"
    ]
    assert lines[lines.index(said[0]) - 1].split()[0] == "4"


@pytest.mark.parametrize(
    "arguments",
    [
        {"factor": 0},
        {"factor": 1},
        {"patience": 0},
        {"cooldown": -1},
        {"min_lr": -1},
        {"min_delta": -1},
        {"mode": "up"},
    ],
)
def test_a_bad_argument_is_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ReduceLROnPlateau(**arguments)
