"""The speed benchmarks compare like with like: their contenders end at the same losses."""

from importlib.util import find_spec

import pytest
from contenders import BY_HAND, Clocked, Job, tiny_batches, us_per_step
from harness import aligned, chosen, ratios, table
from peers import NEEDS, PEERS

JOB = Job(batches=tiny_batches(30), wd=0.0)
SAME = ["plain fused", "lean", "kernel", "onecycle"]
# fastai records losses that are smoothed, and has the peak where it falls between two steps.
PEERS_SAME = [name for name in PEERS if name != "fastai"]


@pytest.fixture(scope="module")
def losses():
    return BY_HAND["plain"](JOB)


@pytest.mark.parametrize("name", SAME)
def test_contenders_train_alike(name, losses):
    assert BY_HAND[name](JOB) == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("name", PEERS_SAME)
@pytest.mark.filterwarnings("default")
def test_peers_train_alike(name, losses):
    if find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    assert PEERS[name](JOB) == pytest.approx(losses, abs=1e-5)


def test_the_floor_sees_the_same_batches_and_learns_nothing(losses):
    found = BY_HAND["floor"](JOB)
    assert found[0] == losses[0]
    assert len(found) == 30
    assert losses[-1] < found[-1]


@pytest.mark.parametrize("name", [*SAME, "floor"])
def test_a_validation_does_not_change_the_training(name):
    batches = tiny_batches(10)
    validated = BY_HAND[name](Job(batches=batches, valid=batches, epochs=3, wd=0.0))
    assert validated == BY_HAND[name](Job(batches=batches, epochs=3, wd=0.0))


def test_the_clock_starts_within_the_first_epoch_and_once():
    batches = Clocked(tiny_batches(4), skip=2)
    reading = iter(batches)
    next(reading), next(reading)
    assert batches.started == 0.0
    next(reading)
    started = batches.started
    assert started > 0.0
    assert len(list(batches)) == 4
    assert batches.started == started
    assert us_per_step(BY_HAND["lean"], JOB, skip=5) > 0.0


def test_a_ratio_is_that_of_each_round():
    runs = {"plain": [1.0, 2.0, 4.0], "other": [2.0, 2.0, 2.0]}
    assert ratios(runs, "other", "plain") == [2.0, 1.0, 0.5]
    lines = table(runs, "us").splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].split("|")[5].strip() == "1.000"
    assert aligned([["a", "b"], ["x", "1"]]).splitlines()[1] == "| :-- | --: |"


def test_contenders_are_chosen_by_name_and_by_what_is_installed(capsys):
    assert chosen(["a", "b"], "b") == ["b"]
    assert chosen(["a", "b"], "", {"a": "no_such_module"}) == ["b"]
    assert "a is left out: no_such_module is not installed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="there is no 'c', but a, b"):
        chosen(["a", "b"], "c")
