"""lr_find: the sweeps, what stops them, and overlays."""

import math
import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
from helpers import Trouble, make, mlp, plain, stepped, trained
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from onecycle import Callback, DataLoaders, Learner, LRFinder, finder
from onecycle import suggest as rules


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


# ---- what the sweeps are made of -------------------------------------------------------------


@pytest.mark.parametrize("options", [{"refine": False}, {"method": "race"}, {"method": "linear"}])
def test_groups_keep_their_ratio(data, options):
    model = mlp()
    groups = [
        {"params": model[0].parameters(), "lr": 0.001},
        {"params": [p for layer in model[1:] for p in layer.parameters()], "lr": 0.01},
    ]
    learn = Learner(data, model, opt_func=torch.optim.AdamW(groups))
    seen = stepped(learn)
    learn.lr_find(num_it=20, **options)
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


def test_sweeps_of_a_stream_see_other_batches(data):
    learn = Learner(DataLoaders(data.train, data.valid, steps_per_epoch=7), mlp())
    found = learn.lr_find(n_sweeps=3, num_it=12, stop_div=False, refine=False)
    assert len({tuple(losses) for losses in found.sweeps}) == 3


def test_the_closer_look_is_made_as_the_first_sweep(learn):
    found = learn.lr_find(num_it=60, n_sweeps=2, stop_div=False)
    assert len(found.closeup.sweeps) == 2
    assert [len(losses) for losses in found.closeup.sweeps] == [finder.CLOSER * 60] * 2
    seen = stepped(learn, "weight_decay")
    learn.lr_find(num_it=20, wd=0.5)
    assert {group[0] for group in seen} == {0.5}


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


@pytest.mark.parametrize("notebook", [True, False])
@pytest.mark.parametrize("show", [True, False])
def test_only_a_notebook_shows_the_picture_and_only_if_wanted(learn, monkeypatch, notebook, show):
    # What IPython would say in a kernel.
    monkeypatch.setattr("onecycle.plot.in_notebook", lambda: notebook)
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    learn.lr_find(num_it=10, show_plot=show)
    assert len(plt.get_fignums()) == (notebook and show)
