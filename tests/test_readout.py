"""ReadOut: one value for each validation sample, whose mean is what `validate` says."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import everything, make, mlp, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from onecycle import DataLoaders, Learner, accuracy, mae, rmse, top_k_accuracy
from onecycle.losses import per_sample
from onecycle.metrics import MeanMetric
from onecycle.readout import ReadOut

SIZES = [1, 7, 30, 12]  # of batches


def batches(x, y):
    return list(zip(x.split(SIZES), y.split(SIZES), strict=True))


def learner(model, x, y, loss_func=None, metrics=(), **options):
    valid = batches(x, y)
    return Learner((valid, valid), model, loss_func, metrics=metrics, **options)


def drawn(*shape, classes=None):
    generator = torch.Generator().manual_seed(0)
    if classes is None:
        return torch.randn(sum(SIZES), *shape, generator=generator)
    return torch.randint(classes, (sum(SIZES), *shape), generator=generator)


class Focal(nn.Module):
    """Says that its reduction is "mean" and takes no other."""

    reduction = "mean"

    def forward(self, pred, target):
        losses = functional.cross_entropy(pred, target, reduction="none")
        return (losses * (1 - (-losses).exp()) ** 2).mean()


def own(pred, target):
    return functional.cross_entropy(pred, target)


def picky(pred, target, reduction="mean"):
    return {"mean": own}[reduction](pred, target)


def strict(pred, target, reduction="mean"):
    if reduction != "mean":
        raise ValueError(reduction)
    return own(pred, target)


def deaf(pred, target, reduction="mean"):
    return own(pred, target)


WEIGHTS = torch.arange(1.0, 5.0)
PIXELS = nn.Conv2d(2, 4, 1), (2, 3, 5)
VECTOR = nn.Linear(6, 4), (6,)
# Model, shape of an input, target, loss: a value for each sample is known.
KNOWN = {
    "inferred classes": (*VECTOR, drawn(classes=4), None),
    "functional": (*VECTOR, drawn(classes=4), functional.cross_entropy),
    "module": (*VECTOR, drawn(classes=4), nn.CrossEntropyLoss()),
    "pixels": (*PIXELS, drawn(3, 5, classes=4), nn.CrossEntropyLoss()),
    "inferred pixels": (*PIXELS, drawn(3, 5, classes=4), None),
    "smooth": (*VECTOR, drawn(classes=4), partial(functional.cross_entropy, label_smoothing=0.1)),
    "smooth module": (*VECTOR, drawn(classes=4), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "inferred floats": (*VECTOR, drawn(4), None),
    "squares": (*PIXELS, drawn(4, 3, 5), nn.MSELoss()),
    "one float": (nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), (6,), drawn(), None),
    "logits": (*VECTOR, (drawn(4) > 0).float(), nn.BCEWithLogitsLoss()),
    "logit": (*VECTOR, (drawn(4) > 0).float(), functional.binary_cross_entropy_with_logits),
    "weighted logits": (*VECTOR, (drawn(4) > 0).float(), nn.BCEWithLogitsLoss(pos_weight=WEIGHTS)),
    "huber": (*VECTOR, drawn(4), nn.SmoothL1Loss()),
}
# The same where only the loss of a batch is known.
UNKNOWN = {
    "class weights": (*VECTOR, drawn(classes=4), nn.CrossEntropyLoss(weight=WEIGHTS)),
    "ignored": (*VECTOR, drawn(classes=4), nn.CrossEntropyLoss(ignore_index=2)),
    "sum": (*VECTOR, drawn(4), nn.MSELoss(reduction="sum")),
    "partial sum": (*VECTOR, drawn(4), partial(functional.mse_loss, reduction="sum")),
    "own": (*VECTOR, drawn(classes=4), own),
    "picky": (*VECTOR, drawn(classes=4), picky),
    "strict": (*VECTOR, drawn(classes=4), strict),
    "deaf": (*VECTOR, drawn(classes=4), deaf),
    "focal": (*VECTOR, drawn(classes=4), Focal()),
    "built-in": (*VECTOR, drawn(4), torch.dist),
    "tokens": (
        *VECTOR,
        drawn(2, classes=2),
        lambda pred, y, reduction="mean": functional.cross_entropy(
            pred.view(-1, 2), y.flatten(), reduction=reduction
        ),
    ),
}


def read(case):
    model, shape, y, loss_func = case
    learn = learner(model, drawn(*shape), y, loss_func)
    once = ReadOut(learn)
    values = once()["loss"]
    return learn, once, values


@pytest.mark.parametrize("case", KNOWN)
def test_the_loss_of_each_sample(case):
    learn, once, values = read(KNOWN[case])
    assert once.weights is None
    assert values.shape == (sum(SIZES),)
    assert values.mean() == pytest.approx(learn.validate()["valid_loss"], rel=1e-6)


@pytest.mark.parametrize("case", KNOWN)
def test_it_is_that_of_the_sample_alone(case):
    learn, _, values = read(KNOWN[case])
    x, y = (torch.cat(part) for part in zip(*learn.data.valid, strict=True))
    for i in (0, 5, 49):
        alone = learn.validate([(x[i : i + 1], y[i : i + 1])])["valid_loss"]
        assert values[i] == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("case", UNKNOWN)
def test_batches_where_samples_are_not_known(case):
    learn, once, values = read(UNKNOWN[case])
    assert once.weights.tolist() == SIZES
    mean = np.average(values, weights=once.weights)
    assert mean == pytest.approx(learn.validate()["valid_loss"], rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.sampled_from([functional.cross_entropy, nn.CrossEntropyLoss(weight=WEIGHTS)]),
)
def test_however_it_is_cut(sizes, loss_func):
    n = sum(sizes)
    x, y = torch.randn(n, 6), torch.randint(4, (n,))
    valid = list(zip(x.split(sizes), y.split(sizes), strict=True))
    learn = Learner((valid, valid), nn.Linear(6, 4), loss_func, metrics=[accuracy])
    once = ReadOut(learn)
    values = once()
    for name, score in zip(("loss", "accuracy"), learn.validate().values(), strict=True):
        assert np.average(values[name], weights=once.weights) == pytest.approx(score, rel=1e-5)


def test_an_untrained_head_does_not_hide_weights_of_classes():
    """Of equal losses no weights show; at the first read-out of a search it has learnt."""
    model = nn.Linear(6, 4)
    learn = learner(model, drawn(6), drawn(classes=4), nn.CrossEntropyLoss(weight=WEIGHTS))
    learn.fit(1, 0.1)
    once = ReadOut(learn)
    once()
    assert once.weights is not None


def test_values_stay_of_one_kind():
    """What the first read-out has shown holds for the next, also where it would not show."""
    model = nn.Linear(6, 4)
    learn = learner(model, drawn(6), drawn(classes=4), nn.CrossEntropyLoss(weight=WEIGHTS))
    once = ReadOut(learn)
    first = once()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    assert once()["loss"].shape == first["loss"].shape == (len(SIZES),)


# ---- metrics ---------------------------------------------------------------------------------


@MeanMetric
def undirected(pred, target):
    return pred.argmax(1) == target


@partial(MeanMetric, higher_is_better=True)
def masked(pred, target):
    return (pred.argmax(1) == target)[target != 0]


METRICS = {
    "accuracy": accuracy,
    "top 2": partial(top_k_accuracy, k=2),
    "rmse": rmse,
    "function": lambda pred, target: accuracy(pred, target),
    "undirected": undirected,
    "masked": masked,
    "loss": mae,
}


@pytest.mark.parametrize("loss_func", [None, own])
def test_metrics_that_are_means_and_say_which_way_is_better(loss_func):
    known = {name: metric for name, metric in METRICS.items() if name not in ("rmse", "loss")}
    learn = learner(nn.Linear(6, 4), drawn(6), drawn(classes=4), loss_func, metrics=known)
    once = ReadOut(learn)
    values, scores = once(), learn.validate()
    assert once.higher == {"loss": False, "accuracy": True, "top 2": True}
    assert values.keys() == once.higher.keys()
    for name in ("accuracy", "top 2"):
        mean = np.average(values[name], weights=once.weights)
        assert mean == pytest.approx(scores[name], rel=1e-6)


def test_a_metric_of_pixels_is_a_mean_for_each_sample():
    model, shape = PIXELS
    learn = learner(model, drawn(*shape), drawn(3, 5, classes=4), metrics=[accuracy])
    values = ReadOut(learn)()["accuracy"]
    assert values.shape == (sum(SIZES),)
    assert values.mean() == pytest.approx(learn.validate()["accuracy"], rel=1e-6)


def test_a_metric_named_loss_does_not_get_into_the_loss():
    learn = learner(nn.Linear(6, 4), drawn(6), drawn(4), metrics={"loss": mae})
    assert ReadOut(learn)()["loss"].mean() == pytest.approx(learn.validate()["valid_loss"])


@pytest.mark.parametrize("name", ["rmse", "function", "undirected", "gone", ["loss"], accuracy])
def test_a_metric_that_cannot_decide_is_refused(name):
    learn = learner(nn.Linear(6, 4), drawn(6), drawn(classes=4), metrics=METRICS)
    with pytest.raises(ValueError, match=r"metric: .* there are loss, accuracy, top 2, masked"):
        ReadOut(learn, name)


def test_a_metric_without_a_value_for_each_sample_is_refused_when_that_is_seen():
    metrics = [accuracy, masked]
    once = ReadOut(learner(nn.Linear(6, 4), drawn(6), drawn(classes=4), metrics=metrics), "masked")
    with pytest.raises(ValueError, match=r"metric: 'masked' is no .* there are loss, accuracy$"):
        once()


# ---- how -------------------------------------------------------------------------------------


def test_it_leaves_no_trace(digit_tensors):
    learn = make(digit_tensors, metrics=[accuracy])
    learn.fit(1, 1e-2)
    before = everything(learn)
    ReadOut(learn)()
    assert same(before, everything(learn))


def test_half_precision(digit_tensors):
    learn = make(digit_tensors, loader="in_memory", precision="bf16")
    learn.fit(1, 1e-2)
    values = ReadOut(learn)()["loss"]
    assert values.shape == (100,)
    assert values.mean() == pytest.approx(learn.validate()["valid_loss"], rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_that_diverged(data, bad):
    model = mlp()
    learn = Learner(data, model, metrics=[accuracy])
    once = ReadOut(learn)
    once()
    nn.init.constant_(model[4].bias, bad)
    assert not np.isfinite(once()["loss"]).any()
    again = ReadOut(learn)
    assert again()["loss"].shape == (100,)


def test_a_loss_that_is_empty_of_parts_is_a_loss():
    """A module may have a length, and that may be 0."""

    class Loss(nn.Sequential):
        reduction = "mean"

        def forward(self, pred, target):
            return functional.l1_loss(pred, target, reduction=self.reduction)

    learn = learner(nn.Linear(6, 4), drawn(6), drawn(4), Loss())
    assert ReadOut(learn)()["loss"].mean() == pytest.approx(learn.validate()["valid_loss"])


def test_the_loss_itself_keeps_its_reduction():
    loss_func = nn.CrossEntropyLoss()
    assert per_sample(loss_func)(torch.zeros(3, 2), torch.zeros(3).long()).shape == (3,)
    assert loss_func.reduction == "mean"


def test_several_targets():
    x, y = drawn(6), drawn(4)
    valid = [((a,), (b, b)) for a, b in batches(x, y)]

    def both(pred, target, reduction="mean"):
        first, second = (functional.mse_loss(pred, t, reduction=reduction) for t in target)
        return first + second

    learn = Learner((valid, valid), nn.Linear(6, 4), both)
    once = ReadOut(learn)
    assert once()["loss"].mean() == pytest.approx(learn.validate()["valid_loss"])
    assert once.weights is None


def test_data_loaders_of_tensors(digit_tensors):
    x, y = digit_tensors
    data = DataLoaders.from_tensors(x[:90], y[:90], valid=0.5, batch_size=32)
    learn = Learner(data, nn.Linear(64, 10))
    assert ReadOut(learn)()["loss"].shape == (45,)
