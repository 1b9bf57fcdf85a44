"""The suggestion is good: a small version of tests/benchmarks/lr_find_regret.py."""

import math

import numpy as np
import pytest
from lr_find_regret import averaged, regret, stopped
from lr_find_tasks import SMOKE, TASKS


@pytest.fixture(scope="module", params=SMOKE, ids=lambda task: task.name)
def graded(request):
    """A task, and its mean score for the rates that may be the best, and for two that may not."""
    task = request.param
    rates = [*task.grid[:4:2], *task.grid[4:10]]
    scores = {lr: [task.score(lr, seed) for seed in range(task.seeds)] for lr in rates}
    return task, {lr: float(np.mean(values)) for lr, values in scores.items()}


def test_a_suggestion_loses_little_against_the_best_of_a_grid(graded):
    task, means = graded
    lost = [regret(means, task.learner(seed).lr_find()) for seed in (10, 11)]
    assert max(lost) < 2.0
    assert np.mean(lost) < 1.0
    assert regret(means, 1e-6) > 2.0


def test_a_trained_model_gets_no_suggestion(graded):
    task, means = graded
    learn = task.learner(20, trained=max(means, key=means.get))
    assert math.isnan(learn.lr_find())


def test_regret_is_read_off_between_the_points_of_the_grid():
    means = {0.01: 90.0, 0.1: 96.0, 1.0: 10.0}
    assert [regret(means, lr) for lr in (0.1, 0.01, 1e-9)] == [0.0, 6.0, 6.0]
    assert regret(means, 10**-1.5) == pytest.approx(3.0)
    assert math.isnan(regret(means, math.nan))


def test_the_smoothing_and_stopping_of_others():
    assert averaged([2.0, 2.0, 2.0], 0.98) == pytest.approx([2.0, 2.0, 2.0])
    assert averaged([2.0, 2.0], 0.98, shift=1)[0] == pytest.approx(2.0 / (1 + 0.98))
    assert stopped([2.0, 1.0, 3.9, 4.1, 9.0], 4) == [2.0, 1.0, 3.9, 4.1]
    nan = stopped([1.0, math.nan, 1.0], 4)
    assert len(nan) == 3


def test_no_task_is_in_both_halves_and_every_run_is_longer_than_its_search():
    assert len({task.name for task in TASKS}) == len(TASKS)
    assert {task.half for task in TASKS} == {"choose", "report"}
    for task in SMOKE:
        assert math.ceil(len(task.data()[0]) / task.batch) * task.epochs >= 240
