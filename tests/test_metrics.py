"""Metrics: exact over the whole set, whatever the batches."""

from functools import partial

import pytest
import torch
import torchmetrics
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from onecycle import accuracy, error_rate, mae, mse, rmse, top_k_accuracy
from onecycle.metrics import MeanMetric, Scores, named


def f1(pred, target):
    """Not a mean over samples: the mean of batch values would be wrong."""
    hit = ((pred.argmax(1) == 1) & (target == 1)).sum()
    return 2 * hit / ((pred.argmax(1) == 1).sum() + (target == 1).sum())


torch.manual_seed(0)
SCORES, CLASSES = torch.randn(103, 7), torch.randint(7, (103,))
VALUES, REAL = torch.randn(103, 2), torch.randn(103, 2)
RIGHT = (SCORES.argmax(1) == CLASSES).double().mean().item()
CASES = {
    "accuracy": (accuracy, SCORES, CLASSES, RIGHT),
    "error_rate": (error_rate, SCORES, CLASSES, 1 - RIGHT),
    "top_k_accuracy": (top_k_accuracy, SCORES, CLASSES, None),
    "top 3": (partial(top_k_accuracy, k=3), SCORES, CLASSES, None),
    "mse": (mse, VALUES, REAL, functional.mse_loss(VALUES, REAL).item()),
    "mae": (mae, VALUES, REAL, functional.l1_loss(VALUES, REAL).item()),
    "rmse": (rmse, VALUES, REAL, functional.mse_loss(VALUES, REAL).sqrt().item()),
    "function": (f1, SCORES, CLASSES, f1(SCORES, CLASSES).item()),
    "numpy function": (lambda p, t: float(p.numpy().max()), SCORES, CLASSES, SCORES.max().item()),
}


def over_batches(metric, pred, target, sizes):
    scores = Scores([metric])
    for p, t in zip(pred.split(sizes), target.split(sizes), strict=True):
        scores.add(p, t, torch.tensor(0.0), len(p))
    return list(scores.compute().values())[1]


@pytest.mark.parametrize("name", CASES)
def test_the_value_of_a_set_is_that_of_one_batch(name):
    metric, pred, target, expected = CASES[name]
    whole = float(metric(pred, target)) if expected is None else expected
    for sizes in ([103], [1] * 103, [64, 39], [100, 3]):
        assert over_batches(metric, pred, target, sizes) == pytest.approx(whole, rel=1e-6)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_accuracy_is_the_exact_ratio_for_any_cut(sizes):
    n = sum(sizes)
    pred, target = SCORES.repeat(3, 1)[:n], CLASSES.repeat(3)[:n]
    right = (pred.argmax(1) == target).sum().item()
    assert over_batches(accuracy, pred, target, sizes) == right / n


def test_rmse_is_no_mean_of_roots():
    pred, target = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 3.0])
    assert over_batches(rmse, pred, target, [2, 1]) == pytest.approx(3**0.5)


def test_the_loss_is_weighted_by_samples():
    scores = Scores([])
    scores.add(None, None, torch.tensor(1.0), 30)
    scores.add(None, None, torch.tensor(4.0), 10)
    assert scores.compute() == {"valid_loss": 1.75}


def test_top_k_of_few_classes_is_all_of_them():
    assert top_k_accuracy(torch.randn(5, 3), torch.arange(5) % 3) == 1


def test_segmentation_counts_pixels():
    pred, target = torch.randn(4, 3, 8, 8), torch.randint(3, (4, 8, 8))
    assert accuracy(pred, target) == (pred.argmax(1) == target).float().mean()


def test_torchmetrics_fits_and_starts_anew(learn):
    learn.metrics = [torchmetrics.F1Score("multiclass", num_classes=10, average="macro"), accuracy]
    learn.fit(2)
    first, second = learn.validate(), learn.validate()
    preds, targets = learn.get_preds()
    expected = torchmetrics.functional.f1_score(
        preds, targets, "multiclass", num_classes=10, average="macro"
    )
    assert first == second == learn.scores
    assert list(first) == ["valid_loss", "MulticlassF1Score", "accuracy"]
    assert first["MulticlassF1Score"] == pytest.approx(expected.item())


def test_a_metric_of_ones_own_is_exact(learn):
    @MeanMetric
    def confidence(pred, target):
        """Probability of the target."""
        return pred.softmax(1).gather(1, target[:, None])

    learn.metrics = [confidence]
    preds, targets = learn.get_preds()
    expected = preds.gather(1, targets[:, None]).mean().item()
    assert learn.validate()["confidence"] == pytest.approx(expected, rel=1e-6)
    assert confidence.__doc__ == "Probability of the target."


def test_a_dict_gives_names(learn):
    learn = type(learn)(
        learn.data, learn.model, metrics={"top 3": partial(top_k_accuracy, k=3), "f1": f1}
    )
    assert list(learn.validate()) == ["valid_loss", "top 3", "f1"]


@pytest.mark.parametrize("metric", [accuracy, error_rate, top_k_accuracy])
@pytest.mark.parametrize("shape", [(5, 1), (5,)])
def test_one_column_has_no_largest_score(metric, shape):
    with pytest.raises(ValueError, match="at least two classes"):
        metric(torch.zeros(shape), torch.zeros(5))


@pytest.mark.parametrize("metric", [accuracy, error_rate, top_k_accuracy])
def test_targets_that_would_broadcast_are_refused(metric):
    with pytest.raises(ValueError, match=r"target must have the shape \(5,\)"):
        metric(torch.zeros(5, 3), torch.zeros(5, 1))


@pytest.mark.parametrize("metric", [mse, mae, rmse])
def test_shapes_that_would_broadcast_are_refused(metric):
    with pytest.raises(ValueError, match=r"one shape, got \(5, 1\) and \(5,\)"):
        metric(torch.zeros(5, 1), torch.zeros(5))


def test_a_name_of_another_column_is_refused():
    def lr(pred, target):
        return pred.mean()

    with pytest.raises(ValueError, match="'lr' is taken"):
        Scores([lr])


def test_one_metric_needs_no_list():
    assert list(named(accuracy)) == ["accuracy"]


@pytest.mark.parametrize("name", ["", " ", 3, "time"])
def test_a_metric_has_a_name_of_its_own(name):
    with pytest.raises(ValueError, match="metrics must have names"):
        named({name: accuracy})
