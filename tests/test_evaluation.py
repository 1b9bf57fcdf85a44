"""validate, get_preds and predict: exact, activated, and without a trace."""

import pytest
import torch
from helpers import everything, mlp, plain, same, weights
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from onecycle import (
    Learner,
    accuracy,
)


def test_validate_is_exact_whatever_the_batches(data, digit_tensors):
    learn = Learner(data, mlp(), metrics=[accuracy])
    learn.fit(1)
    x, y = (part[300:400] for part in digit_tensors)
    learn.model.eval()
    whole = functional.cross_entropy(learn.model(x), y).item()
    right = (learn.model(x).argmax(1) == y).sum().item()
    for size in (1, 7, 30, 100):
        parts = list(zip(x.split(size), y.split(size), strict=True))
        scores = learn.validate(parts)
        assert scores["valid_loss"] == pytest.approx(whole, rel=1e-6)
        assert scores["accuracy"] == right / 100


@pytest.mark.parametrize("call", ["validate", "get_preds", "predict"])
def test_evaluation_leaves_no_trace(digit_tensors, call):
    x, y = digit_tensors
    loader = DataLoader(TensorDataset(x[:90], y[:90]), 30, shuffle=True)
    learn = Learner((loader, loader), mlp(), metrics=[accuracy])
    learn.fit(1)
    learn.model[1].eval()
    before = everything(learn)
    getattr(learn, call)(*([x[:5]] if call == "predict" else []))
    assert same(before, everything(learn))


def test_predictions_are_probabilities(learn, digit_tensors):
    preds, targets = learn.get_preds()
    torch.testing.assert_close(preds.sum(1), torch.ones(100))
    raw, _ = learn.get_preds(activate=False)
    torch.testing.assert_close(raw.softmax(1), preds)
    assert torch.equal(learn.predict(digit_tensors[0][300:330]), preds[:30])
    assert targets.shape == (100,)


@pytest.mark.parametrize(
    ("loss_func", "turn"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.1), lambda p: p.softmax(1)),
        (functional.cross_entropy, lambda p: p.softmax(1)),
        (nn.BCEWithLogitsLoss(), torch.sigmoid),
        (nn.NLLLoss(), torch.exp),
        (nn.MSELoss(), lambda p: p),
    ],
)
def test_the_loss_decides_the_activation(data, loss_func, turn):
    learn = Learner(data, plain(), loss_func=loss_func)
    torch.testing.assert_close(learn.get_preds()[0], turn(learn.get_preds(activate=False)[0]))


def test_inputs_alone_can_be_predicted(learn, digit_tensors):
    x = digit_tensors[0][:50]
    for dl in ([x], [(x,)], DataLoader(TensorDataset(x), 50)):
        preds, targets = learn.get_preds(dl)
        assert (preds.shape, targets) == ((50, 10), None)
    assert torch.equal(learn.predict(x.double().numpy()), preds)


def test_a_loss_inferred_by_validate_does_not_bind_training(digit_tensors):
    x = digit_tensors[0][:60]
    learn = Learner(([(x, x[:, :10])], None), plain())
    learn.validate([(x, torch.arange(60) % 10)])
    learn.fit(1)


@pytest.mark.parametrize("call", ["validate", "predict"])
def test_persistent_workers_do_not_notice_a_look(digit_tensors, call):
    x, y = digit_tensors
    runs = []
    for look in (True, False):
        torch.manual_seed(0)
        dataset = TensorDataset(x[:60], y[:60])
        loader = DataLoader(dataset, 30, shuffle=True, num_workers=1, persistent_workers=True)
        learn = Learner((loader, None), mlp())
        if call == "validate":
            learn.fit(1)
        if look:
            learn.validate(loader) if call == "validate" else learn.predict(x[:4])
        learn.fit(1)
        runs.append(weights(learn))
        loader._iterator = None
    assert same(*runs)


def test_what_is_read_once_may_be_a_generator(learn, data):
    preds, _ = learn.get_preds(batch for batch in data.valid)
    assert torch.equal(preds, learn.get_preds()[0])


def test_metrics_get_single_precision(data):
    def of_numpy(pred, target):
        return float((pred.numpy().argmax(1) == target.numpy()).mean())

    learn = Learner(data, plain(), precision="bf16", metrics=[of_numpy, accuracy])
    scores = learn.validate()
    assert scores["of_numpy"] == pytest.approx(scores["accuracy"])
