"""The Profiler: a trace of a window of steps, and nothing else."""

import gzip
import json

import pytest
import torch
from helpers import Halt, mlp, same, weights

from onecycle import Learner, Profiler


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "trace.json"


def steps_in(path):
    """Updates of the optimizer that the trace has."""
    read = gzip.open if path.suffix == ".gz" else open
    with read(path) as file:
        events = json.load(file)["traceEvents"]
    return sum(event["name"].startswith("Optimizer.step#") for event in events)


@pytest.mark.parametrize(
    ("skip", "steps", "found"), [(1, 1, 1), (3, 4, 4), (8, 4, 4), (15, 5, 5), (18, 5, 2)]
)
def test_the_window(data, path, skip, steps, found):
    Learner(data, mlp()).fit(2, callbacks=[Profiler(path, skip, steps)])
    assert steps_in(path) == found


def test_each_fit_writes_anew_compressed_if_asked(data, path):
    trace, learn = Profiler(path.with_suffix(".json.gz"), skip=2, steps=3), Learner(data, mlp())
    for _ in range(2):
        learn.fit(1, callbacks=[trace])
        assert steps_in(trace.path) == 3
        trace.path.unlink()


def test_a_window_that_is_not_reached(data, path):
    with pytest.warns(UserWarning, match="no trace: the fit had 10 steps, and skip=10"):
        Learner(data, mlp()).fit(1, callbacks=[Profiler(path)])
    assert not path.exists()


@pytest.mark.parametrize(("at", "found"), [(1, None), (2, None), (4, 2)])
def test_a_fit_that_fails(data, path, at, found):
    learn, trace = Learner(data, mlp()), Profiler(path, skip=2, steps=3)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, callbacks=[trace, Halt(at)])
    assert (steps_in(path) if path.exists() else None) == found
    learn.fit(1, callbacks=[trace])
    assert steps_in(path) == 3


def test_training_is_the_same_with_it(data, path):
    one, other = Learner(data, mlp()), Learner(data, mlp())
    for learn, callbacks in ((one, []), (other, [Profiler(path, 2, record_shapes=True)])):
        torch.manual_seed(0)
        learn.fit(1, callbacks=callbacks)
    assert same(weights(one), weights(other))


@pytest.mark.parametrize("bad", [{"skip": 0}, {"steps": 0}, {"steps": 1.5}])
def test_bad_arguments(path, bad):
    with pytest.raises((ValueError, TypeError), match=f"{next(iter(bad))} must be"):
        Profiler(path, **bad)
