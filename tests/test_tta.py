"""Test-time augmentation: the mean that it says, the same by the same seed, and no trace."""

import pytest
import torch
from helpers import everything, mlp, plain, same
from torch.utils.data import DataLoader, TensorDataset

from onecycle import DataLoaders, Learner
from onecycle.data.augment import random_crop


def noise(x, generator):
    return x + torch.randn(x.shape, generator=generator)


def in_memory(digit_tensors, seed=0):
    x, y = digit_tensors
    valid = (x[60:160], y[60:160])
    return DataLoaders.from_tensors(x[:60], y[:60], valid, 30, seed=seed, augment=noise)


@pytest.mark.parametrize(("beta", "weight"), [(0.25, 0.25), (1.0, 1.0), (None, 0.5)])
def test_probabilities_are_averaged(data, digit_tensors, beta, weight):
    learn = Learner(data, plain())
    preds, targets = learn.tta(n=1, augment=lambda x: x.copy_(x.flip(1)), beta=beta)
    x, y = (part[300:400] for part in digit_tensors)
    with torch.no_grad():
        plainly, flipped = learn.model(x).softmax(1), learn.model(x.flip(1)).softmax(1)
    torch.testing.assert_close(preds, weight * plainly + (1 - weight) * flipped)
    assert torch.equal(targets, y)


def test_the_augmentation_of_the_training_data_is_taken_with_its_seed(digit_tensors):
    made = [Learner(in_memory(digit_tensors, seed), plain()).tta()[0] for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    learn = Learner(in_memory(digit_tensors, 1), plain())
    assert torch.equal(learn.tta(seed=0)[0], made[0])
    assert not torch.equal(learn.get_preds()[0], made[0])


def test_views_differ(digit_tensors):
    seen = []
    learn = Learner(in_memory(digit_tensors), plain())
    learn.tta(
        [digit_tensors[0][:9]] * 2,
        n=3,
        augment=lambda x, generator: seen.append(noise(x, generator)) or seen[-1],
    )
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_it_leaves_no_trace_and_reads_once(digit_tensors):
    x, y = (part[:90] for part in digit_tensors)
    loader = DataLoader(TensorDataset(x, y), 30, shuffle=True)
    learn = Learner((loader, loader), mlp())
    learn.fit(1)
    before = everything(learn)
    preds, targets = learn.tta(augment=lambda x: x.add_(0), n=2)
    assert same(before, everything(learn))
    torch.testing.assert_close(preds, learn.get_preds()[0])  # of the same order
    assert torch.equal(targets, learn.get_preds()[1])
    once = (batch for batch in [(x, y)])
    assert len(learn.tta(once, augment=noise)[0]) == 90


def test_several_inputs(digit_tensors):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain()

        def forward(self, a, b):
            return self.net(a) + b[:, None]

    x, y = (part[:60] for part in digit_tensors)
    learn = Learner(([(x, y, y)], [(x, y, y)]), Two())
    torch.testing.assert_close(learn.tta(augment=lambda x: x)[0], learn.get_preds()[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "augment must be given"),
        ({"augment": random_crop}, TypeError, r"write random_crop\(...\)"),
        ({"augment": noise, "n": 0}, ValueError, "n must be at least 1"),
        ({"augment": noise, "beta": 1.5}, ValueError, "beta must lie in"),
        ({"augment": noise, "seed": -1}, ValueError, "seed must be at least 0"),
        ({"augment": noise, "dl": [({"x": torch.zeros(2)}, torch.zeros(2))]}, TypeError, "inputs"),
    ],
)
def test_wrong_arguments(learn, options, error, message):
    with pytest.raises(error, match=message):
        learn.tta(**options)
