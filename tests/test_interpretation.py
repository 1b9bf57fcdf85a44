"""get_preds with inputs and losses, and what is wrong: top losses, confusion, figures by class."""

import math

import numpy as np
import pytest
import torch
from helpers import everything, mlp, plain, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from onecycle import DataLoaders, Interpretation, Learner
from onecycle.highest import Highest
from onecycle.models import simple_cnn

HARD = nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, 10), label_smoothing=0.1)


@pytest.mark.parametrize("loss_func", [None, functional.cross_entropy, HARD])
def test_the_loss_of_each_sample(data, digit_tensors, loss_func):
    learn = Learner(data, plain(), loss_func=loss_func)
    inputs, preds, targets, losses = learn.get_preds(with_input=True, with_loss=True)
    x, y = (part[300:400] for part in digit_tensors)
    assert torch.equal(inputs, x)
    assert torch.equal(targets, y)
    each = nn.CrossEntropyLoss(reduction="none")
    if loss_func is HARD:
        each = nn.CrossEntropyLoss(HARD.weight, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(losses, each(learn.model(x), y).detach())
    assert torch.equal(preds, learn.get_preds()[0])
    assert len(learn.get_preds(with_loss=True)) == 3


def test_looks_leave_no_trace(data):
    learn = Learner(data, mlp())
    learn.fit(1)
    before = everything(learn)
    learn.get_preds(with_input=True, with_loss=True)
    learn.interpret()
    assert same(before, everything(learn))


def test_inputs_are_as_they_were_given(data, digit_tensors):
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain()

        def forward(self, x):
            return self.net(x.mul_(0))

    batches = [(part.clone(), None) for part in digit_tensors[0][:60].split(30)]
    given, _, targets = Learner(data, Writes()).get_preds(batches, with_input=True)
    assert torch.equal(given, digit_tensors[0][:60])
    assert targets is None


def test_a_loss_without_one_for_each_sample_is_refused(data, digit_tensors):
    learn = Learner(data, plain(), loss_func=lambda p, t: functional.cross_entropy(p, t))
    with pytest.raises(ValueError, match="loss_func has no loss for each sample"):
        learn.get_preds(with_loss=True)
    with pytest.raises(ValueError, match="without target"):
        Learner(data, plain()).get_preds([digit_tensors[0][:9]], with_loss=True)


def found(counts, **options):
    """An interpretation of so many samples (actual, predicted)."""
    pairs = [(i, j) for i, j in np.ndindex(*np.shape(counts)) for _ in range(counts[i][j])]
    actual, predicted = torch.tensor(pairs).T
    preds = functional.one_hot(predicted, len(counts)).float()
    return Interpretation(preds, actual, torch.rand(len(actual)), **options)


COUNTS = [[5, 1, 0], [2, 3, 1], [0, 0, 0]]


def test_confusion():
    one = found(COUNTS, classes=list("abc"))
    assert one.confusion_matrix().tolist() == COUNTS
    assert one.most_confused() == [("b", "a", 2), ("a", "b", 1), ("b", "c", 1)]
    assert one.most_confused(2) == [("b", "a", 2)]
    assert repr(one) == "Interpretation(12 samples, 3 classes, accuracy 0.6667)"


def test_figures_of_each_class_by_hand():
    rows = {row["class"]: list(row.values())[1:] for row in found(COUNTS).per_class()}
    wanted = {
        "0": [5 / 7, 5 / 6, 10 / 13, 6],
        "1": [3 / 4, 3 / 6, 6 / 10, 6],
        "2": [0, 0, 0, 0],
        "accuracy": [math.nan, math.nan, 8 / 12, 12],
        "macro avg": [(5 / 7 + 3 / 4) / 3, (5 / 6 + 1 / 2) / 3, (10 / 13 + 0.6) / 3, 12],
        "weighted avg": [(5 / 7 + 3 / 4) / 2, (5 / 6 + 1 / 2) / 2, (10 / 13 + 0.6) / 2, 12],
    }
    assert rows.keys() == wanted.keys()
    for name, row in wanted.items():
        assert rows[name] == pytest.approx(row, nan_ok=True), name


def test_tables_are_shown():
    table = found(COUNTS, classes=["<a>", "b", "c"]).per_class()
    assert table.to_pandas()["support"].tolist() == [6, 6, 0, 12, 12, 12]
    assert "&lt;a&gt;" in table._repr_html_()
    assert repr(table).splitlines()[4].split() == ["accuracy", "0.6667", "12"]
    assert len(table[:2]) == 2
    assert found(COUNTS)._repr_html_().startswith('<table class="onecycle">')


def test_top_losses_are_those_of_the_samples(learn, digit_tensors):
    one = Interpretation.from_learner(learn, keep=7)
    losses = learn.get_preds(with_loss=True)[-1]
    values, indices, inputs = one.top_losses(7, with_input=True)
    assert torch.equal(values, losses.sort(descending=True).values[:7])
    assert torch.equal(losses[indices], values)
    assert torch.equal(torch.stack(inputs), digit_tensors[0][300:400][indices])
    assert len(one.top_losses()[0]) == 100
    with pytest.raises(ValueError, match="the inputs of 7 samples are kept"):
        one.top_losses(8, with_input=True)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf]), min_size=1), st.integers(0, 9)
)
def test_the_highest_are_kept_whatever_the_batches(values, size):
    losses = torch.tensor(values)
    highest = Highest(size)
    for numbers in torch.arange(len(values)).split(3):
        highest({"i": numbers}, losses[numbers])
    ranked = losses.sort(descending=True, stable=True).indices
    assert sorted(highest.inputs) == sorted(ranked[:size].tolist())
    assert all(kept["i"] == number for number, kept in highest.inputs.items())
    assert all(kept["i"].untyped_storage().nbytes() == 8 for kept in highest.inputs.values())


def test_images_are_drawn(digit_tensors):
    x, y = digit_tensors
    images = x[:60].reshape(-1, 1, 8, 8)
    data = DataLoaders.from_tensors(images, y[:60], valid=(images, y[:60]))
    one = Learner(data, simple_cnn((1, 4, 10))).interpret(classes=[f"n{i}" for i in range(10)])
    axes = one.plot_top_losses(4)
    top, (loss, number) = axes[0].get_title(), (part[0] for part in one.top_losses(1))
    predicted = one.preds[number].argmax()
    probability = one.preds[number].max()
    assert top == f"n{predicted} / n{y[number]}\n{loss:.3g}, {probability:.3g}"
    assert len(axes) == 4
    heading = axes[0].figure.get_suptitle()
    assert heading == "predicted / actual, loss, probability of predicted"
    pixels = Interpretation(one.preds, one.preds, one.losses, images)
    ax = pixels.plot_top_losses(1)[0]
    assert [ax.get_title(), ax.figure.get_suptitle()] == [f"{loss:.3g}", "loss"]


def test_other_inputs_make_a_table(learn):
    table = learn.interpret().plot_top_losses(3)
    assert list(table[0]) == ["sample", "predicted", "actual", "probability", "loss"]
    assert len(table) == 3
    assert len(found(COUNTS).plot_top_losses(99)) == 12


@pytest.mark.parametrize(("normalize", "text"), [(False, "2"), (True, "0.33")])
def test_the_confusion_is_drawn(normalize, text):
    ax = found(COUNTS).plot_confusion_matrix(normalize=normalize, classes=["x", "y", "z"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "y", "z"]
    assert ax.texts[3].get_text() == text  # actual y, predicted x
    assert [ax.texts[i].get_color() for i in (0, 8)] == ["white", "black"]


def test_a_regression_has_top_losses_and_no_classes(digit_tensors):
    x, y = digit_tensors
    data = DataLoaders.from_tensors(x[:60], y[:60, None].float(), valid=0.5)
    one = Learner(data, nn.Linear(64, 1)).interpret()
    assert list(one.plot_top_losses(2)[0]) == ["sample", "predicted", "actual", "loss"]
    assert one.to_pandas()["loss"].is_monotonic_decreasing
    assert "mean loss" in repr(one)
    assert "predicted" in one._repr_html_()
    with pytest.raises(ValueError, match=r"confusion_matrix needs one class for each sample"):
        one.confusion_matrix()


def test_several_labels_are_no_classes(digit_tensors):
    x, y = digit_tensors
    data = DataLoaders.from_tensors(x[:60], functional.one_hot(y[:60], 10).float(), valid=0.5)
    one = Learner(data, plain(), loss_func=nn.BCEWithLogitsLoss()).interpret()
    assert list(one.plot_top_losses(2)[0]) == ["sample", "loss"]
    with pytest.raises(ValueError, match="of several labels"):
        one.per_class()


def test_two_classes_by_one_number(digit_tensors):
    x, y = digit_tensors
    data = DataLoaders.from_tensors(x[:60], (y[:60, None] > 4).float(), valid=0.5)
    learn = Learner(data, nn.Linear(64, 1), loss_func=nn.BCEWithLogitsLoss())
    one = learn.interpret(classes=["low", "high"])
    preds, targets = learn.get_preds()
    right = ((preds > 0.5) == (targets > 0.5)).sum()
    assert np.diag(one.confusion_matrix()).sum() == right
    assert one.to_pandas()["probability"].between(0.5, 1.0).all()


def test_pixels_are_counted_but_for_those_to_ignore():
    preds = functional.one_hot(torch.tensor([[[0, 1], [1, 1]]])).movedim(3, 1).float()
    one = Interpretation(preds, torch.tensor([[[0, 1], [0, -100]]]))
    assert one.confusion_matrix().tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: one.top_losses(0), "k must be at least 1"),
        (lambda one: one.top_losses(13), "k must be at most 12"),
        (lambda one: one.most_confused(0), "min_val must be at least 1"),
        (lambda one: one.plot_confusion_matrix(classes=["a"]), "classes must hold 3 names"),
        (lambda one: Interpretation(one.preds, one.targets[:3]), "must be of one length"),
        (lambda one: Interpretation(one.preds, one.targets).top_losses(), "there are no losses"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(found(COUNTS))


def test_classes_of_the_data_set_are_used(digit_tensors):
    x, y = (part[:60] for part in digit_tensors)
    samples = torch.utils.data.TensorDataset(x, y)
    samples.classes = list("abcdefghij")
    loader = torch.utils.data.DataLoader(samples, 30)
    learn = Learner((loader, loader), plain())
    assert learn.interpret().classes == samples.classes
    samples.classes = ["a", "b"]
    assert learn.interpret().classes == list("0123456789")


def test_a_loss_that_has_none_for_each_sample_leaves_the_rest(data):
    learn = Learner(data, plain(), lambda pred, y: nn.functional.cross_entropy(pred, y))
    found = learn.interpret()
    assert found.confusion_matrix().sum() == 100
    with pytest.raises(ValueError, match="there are no losses"):
        found.top_losses()


def test_an_error_of_the_loss_itself_is_raised(data):
    def faulty(pred, y, reduction="mean"):
        raise ValueError("a fault of its own")

    with pytest.raises(ValueError, match="a fault of its own"):
        Learner(data, plain(), faulty).interpret()
