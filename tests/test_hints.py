"""Advice in one line, once."""

import pytest
from helpers import mlp

from onecycle import Learner

HINT = "hint: 3 short fits in a row at 1.00e-02; one cycle of 3 epochs"


@pytest.fixture
def said(data, monkeypatch, capsys):
    """A learner, and a function that returns the hints it has given so far."""
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    lines = []

    def hints():
        lines.extend(line for line in capsys.readouterr().out.splitlines() if "hint" in line)
        return lines

    return Learner(data, mlp()), hints


def test_three_short_cycles_hint_at_a_longer_one_once(said):
    learn, hints = said
    for _ in range(2):
        learn.fit_one_cycle(1, 0.01)
    assert hints() == []
    for _ in range(4):
        learn.fit_one_cycle(1, 0.01)
    assert len(hints()) == 1
    assert hints()[0].startswith(HINT)


@pytest.mark.parametrize(
    "fits",
    [
        lambda learn: [learn.fit_one_cycle(1, lr) for lr in (0.01, 0.003, 0.001)],
        lambda learn: [learn.fit_one_cycle(3, 0.01) for _ in range(3)],
        lambda learn: [learn.fit(1, 0.01) for _ in range(3)],  # which anneals nothing
        lambda learn: [learn.fit_one_cycle(1, 0.01, tot_epochs=3, start_epoch=k) for k in range(3)],
        lambda learn: [
            learn.fit_one_cycle(1, 0.01),
            learn.fit_one_cycle(1, 0.01),
            learn.extend(1),
        ],
        lambda learn: [learn.fit_one_cycle(minutes=1e-4, max_lr=0.01) for _ in range(3)],
    ],
)
def test_there_is_no_hint_where_none_is_due(said, fits):
    learn, hints = said
    fits(learn)
    assert hints() == []


def test_hints_can_be_turned_off(said):
    learn, hints = said
    learn.hints = False
    for _ in range(3):
        learn.fit_one_cycle(1, 0.01)
    assert hints() == []


def test_nothing_is_said_where_nothing_is_shown(said):
    learn, hints = said
    with learn.no_logging():
        for _ in range(3):
            learn.fit_one_cycle(1, 0.01)
    assert hints() == []
