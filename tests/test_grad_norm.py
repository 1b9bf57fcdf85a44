"""GradNorm: norms of what a step is made with, by name."""

import math

import numpy as np
import pytest
import torch
from helpers import mlp, same, split_in_two, weights

from onecycle import GradNorm, Learner

NAMES = [name for name, _ in mlp().named_parameters()]


def together(norms):
    return np.sqrt(sum(norm**2 for norm in norms.norms.values()))


@pytest.mark.parametrize("of", ["parameters", "groups"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("precision", "clip"), [("fp32", math.inf), ("fp32", 0.1), ("fp16", 0.1)])
def test_together_they_are_the_norm_before_clipping(data, of, accumulate, precision, clip):
    norms = GradNorm(of, every=2)
    options = {"accumulate": accumulate, "precision": precision, "clip": clip, "device": "cpu"}
    learn = Learner(data, mlp(), splitter=split_in_two, callbacks=[norms], **options)
    learn.fit(2, 0.01)
    assert list(norms.norms) == (NAMES if of == "parameters" else ["0", "1"])
    assert norms.steps.tolist() == list(range(0, learn.step, 2))
    expected = learn.recorder.grad_norms[norms.steps]
    assert (expected > 0.1).all()
    np.testing.assert_allclose(together(norms), expected, rtol=1e-5)


def test_training_is_the_same(data):
    runs = []
    for callbacks in ([], [GradNorm(every=1)]):
        learn = Learner(data, mlp(), callbacks=callbacks)
        torch.manual_seed(0)
        learn.fit(1)
        runs.append(weights(learn))
    assert same(*runs)


def test_what_is_frozen_has_none(data):
    norms = GradNorm("groups", every=5)
    learn = Learner(data, mlp(), splitter=split_in_two, train_bn=False, callbacks=[norms])
    learn.freeze()
    learn.fit(1)
    learn.unfreeze()
    learn.fit(1)
    assert norms.steps.tolist() == [0, 5, 10, 15]
    assert np.isnan(norms.norms["0"]).tolist() == [True, True, False, False]
    assert (norms.norms["1"] > 0).all()


def test_other_names_begin_a_new_record(data, learn):
    norms = GradNorm()
    learn.fit(1, callbacks=[norms])
    Learner(data, torch.nn.Linear(64, 10)).fit(1, callbacks=[norms])
    assert list(norms.norms) == ["weight", "bias"]
    assert norms.steps.tolist() == [0]


def test_the_picture_has_a_line_for_each(learn):
    norms = GradNorm(every=2)
    with pytest.raises(ValueError, match="nothing to plot"):
        norms.plot()
    learn.fit(1, callbacks=[norms])
    ax = norms.plot()
    assert [line.get_label() for line in ax.lines] == NAMES
    assert same(ax.lines[0].get_ydata(), norms.norms[NAMES[0]])
    assert ax.get_yscale() == "log"
    assert ax.get_legend() is not None


@pytest.mark.parametrize("arguments", [{"of": "layers"}, {"every": 0}])
def test_a_bad_argument_is_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        GradNorm(**arguments)
