"""Killed at any batch and resumed in a new process, a run ends bit for bit as if it never was."""

import signal
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
from helpers import same, weights
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from runs import FITS, LOADERS, Case, begin, end_of, go_on, in_child, make

from onecycle import EMA, Callback, Checkpoint, ScheduleFree

EVENTS = 20  # batches of a run, of training and of validation


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return lambda: tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def uninterrupted(folders):
    @cache
    def run(case):
        folder = folders()
        assert in_child(begin, case, folder) == 0
        return end_of(folder)

    return run


def differences(one, other):
    return [name for name in one if not same(one[name], other[name])]


cases = st.builds(
    Case,
    fit=st.sampled_from(sorted(FITS)),
    opt=st.sampled_from(["sgd", "adamw"]),
    loader=st.sampled_from(LOADERS),
    accumulate=st.sampled_from([1, 1, 3]),
    precision=st.sampled_from(["fp32", "fp32", "bf16", "fp16"]),
    clip=st.sampled_from([None, 0.5]),
    early=st.booleans(),
    decay=st.booleans(),
    best=st.sampled_from([None, "in memory", "file"]),
    average=st.booleans(),
)


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a failing case is small as it is
)
@given(
    case=cases,
    at=st.integers(0, EVENTS - 1),
    number=st.sampled_from([signal.SIGKILL, signal.SIGTERM]),
    every_steps=st.sampled_from([1, 2, 5, None]),
    how=st.sampled_from(["resume", "again"]),
)
def test_killed_anywhere_it_ends_the_same(
    folders, uninterrupted, case, at, number, every_steps, how
):
    folder: Path = folders()
    code = in_child(begin, case, folder, {"every_steps": every_steps}, (at, number))
    if code == 0:  # the run was over before
        assert case.early or case.loader == "stream"
        assert differences(end_of(folder), uninterrupted(case)) == []
        return
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
    how = "again" if case.fit in ("own", "torch") else how
    assert in_child(go_on, case, folder, how) == 0
    assert differences(end_of(folder), uninterrupted(case)) == []


@pytest.mark.parametrize("at", [0, 3, 7, 8, 9, 12])
@pytest.mark.parametrize("loader", ["workers", "datasets"])
def test_with_workers_that_draw_their_own_numbers(folders, uninterrupted, at, loader):
    case = Case(loader=loader)
    folder = folders()
    assert in_child(begin, case, folder, {"every_steps": 2}, (at, signal.SIGTERM)) == 143
    assert in_child(go_on, case, folder) == 0
    assert differences(end_of(folder), uninterrupted(case)) == []


@pytest.mark.parametrize("at", [0, 4, 7, 11])
def test_with_augmentation(folders, uninterrupted, at):
    case, folder = Case(loader="augmented"), folders()
    assert in_child(begin, case, folder, {"every_steps": 2}, (at, signal.SIGKILL)) == -9
    assert in_child(go_on, case, folder) == 0
    assert differences(end_of(folder), uninterrupted(case)) == []


@pytest.mark.parametrize("at", [0, 4, 7, 8, 9, 15, 19])
@pytest.mark.parametrize(
    "case",
    [
        Case(average=True),
        Case(opt="schedule_free", fit="constant"),
        Case(opt="schedule_free", fit="constant", loader="augmented", accumulate=3),
    ],
    ids=["averages", "schedule_free", "schedule_free_augmented"],
)
def test_with_averaged_weights(folders, uninterrupted, case, at):
    folder = folders()
    assert in_child(begin, case, folder, {"every_steps": 3}, (at, signal.SIGTERM)) == 143
    assert in_child(go_on, case, folder) == 0
    assert differences(end_of(folder), uninterrupted(case)) == []


class Last(Callback):
    """Ctrl-C once the last epoch is over, and so before on_train_end."""

    def __init__(self, stops=True):
        self.stops = stops

    def on_epoch_end(self, learn):
        if self.stops and learn.epoch + 1 == learn.stop_epoch:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("opt", "callback"),
    [
        ("adamw", lambda: EMA(buffers="recompute", at_end=True)),
        ("schedule_free", ScheduleFree),
    ],
)
def test_what_is_left_of_a_run_that_has_seen_all_batches(tmp_path, opt, callback):
    case = Case(opt=opt, loader="in_memory")
    saver = partial(Checkpoint, tmp_path / "run.pt")
    whole = make(case)
    whole.fit(2, 0.01, callbacks=[callback()])
    with pytest.raises(KeyboardInterrupt):
        make(case).fit(2, 0.01, callbacks=[callback(), Last(), saver()])
    rest = make(case)
    rest.fit(2, 0.01, callbacks=[callback(), Last(stops=False), saver(resume=True)])
    assert same(weights(rest), weights(whole))


def test_the_checkpoint_itself_changes_nothing(folders, uninterrupted):
    folder = folders()
    assert in_child(begin, Case(), folder, {"every_steps": 1}) == 0
    assert differences(end_of(folder), uninterrupted(Case())) == []


def test_killed_again_and_again(folders, uninterrupted):
    case, folder = replace(Case(), accumulate=3), folders()
    rules = {"every_steps": 1, "resume": True}
    for at in (2, 3, 4, 5):
        assert in_child(begin, case, folder, rules, (at, signal.SIGKILL)) == -9
    assert in_child(go_on, case, folder) == 0
    assert differences(end_of(folder), uninterrupted(case)) == []
