"""lr_find judged on validation data: the race, and the range test of the paper."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import mlp, plain, sgd, stepped, trained
from torch.utils.data import DataLoader, IterableDataset

from onecycle import Callback, Learner, LRFind, LRFinder, accuracy, finder


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


def test_validation_data_that_are_broken_are_named(data, digit_tensors):
    x, y = digit_tensors
    learn = Learner((data.train, [(x[:50] * float("nan"), y[:50])]), mlp())
    with pytest.raises(ValueError, match="valid_loss is nan before training"):
        learn.lr_find(num_it=20, method="race")


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
