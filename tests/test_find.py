"""find: every rung a complete cycle, the best found, the learner as it was."""

import sys

import numpy as np
import optuna
import pytest
import torch
from helpers import LOADERS, Halt, Told, Trouble, everything, make, mlp, plain, same, sgd, weights
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from onecycle import Callback, DataLoaders, Learner, Search, accuracy
from onecycle.tuning.halving import is_higher_better, rungs
from onecycle.tuning.space import Interval, draw, parse
from onecycle.tuning.twin import twin

BACKENDS = ["own", "optuna"]


@pytest.fixture
def learn(data):
    return Learner(data, plain(), opt_func=sgd)


@pytest.fixture
def factory(data):
    """A factory of linear learners that also keeps those that it made."""

    def fresh(**options):
        made.append(Learner(data, plain(2), opt_func=sgd, **options))
        return made[-1]

    made = fresh.made = []
    return fresh


def rows(found):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found.table]


# ---- the plan and the space --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "plan"),
    [
        ((9, 8), [(9, 1), (3, 3), (1, 8)]),
        ((27, 27), [(27, 1), (9, 3), (3, 9), (1, 27)]),
        ((30, 9), [(30, 1), (10, 3), (3, 9)]),
        ((4, 27), [(4, 9), (1, 27)]),
        ((9, 8, 3, 3), [(9, 3), (3, 8)]),
        ((9, 8, 3, 8), [(9, 8)]),
        ((8, 8, 2), [(8, 1), (4, 2), (2, 4), (1, 8)]),
        ((1, 5), [(1, 5)]),
        ((9, 1), [(9, 1)]),
    ],
)
def test_how_many_go_how_far(given, plan):
    assert rungs(*given) == plan


@given(st.integers(1, 200), st.integers(1, 200), st.integers(2, 5), st.integers(1, 200))
def test_rungs_grow_as_asynchronous_halving_expects(n, epochs, eta, least):
    plan = rungs(n, epochs, eta, min(least, epochs))
    lengths = [length for _, length in plan]
    assert plan[0][0] == n
    assert lengths[-1] == epochs
    assert lengths == sorted(set(lengths))
    for k, length in enumerate(lengths[:-1]):
        assert lengths[0] * eta**k <= length < lengths[0] * eta ** (k + 1)


def test_an_interval_is_covered_evenly_by_its_logarithm():
    configurations = draw(parse({"lr": (1e-4, 1e-1), "wd": [0, 1, 2]}), 9, seed=0)
    assert sorted(int(3 * np.log10(c["lr"] / 1e-4)) for c in configurations) == list(range(9))
    assert sorted(c["wd"] for c in configurations) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("ends", "log"), [((1e-3, 1e-2), True), ((0.1, 0.9), False), ((0.0, 9.0), False)]
)
def test_a_decade_is_searched_by_its_logarithm(ends, log):
    assert parse({"a": ends})["a"] == Interval(*ends)
    assert parse({"a": ends})["a"].log == log


def test_choices_alone_are_a_grid_of_which_none_comes_twice():
    space = parse({"a": range(3, 0, -1), "b": np.array([0.1, 0.2]), "c": ["x", "y"]})
    grid = draw(space, 12, seed=0)
    assert grid[:2] == [{"a": 1, "b": 0.1, "c": "x"}, {"a": 1, "b": 0.1, "c": "y"}]
    assert len(grid) == 12
    some = draw(space, 7, seed=0)
    assert len({tuple(c.values()) for c in some}) == 7


# ---- the search --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_rung_is_one_complete_cycle(data, factory, backend):
    found = Learner(data, plain()).find(
        {"max_lr": (1e-4, 1e-1)}, epochs=4, n=4, eta=2, make=factory, backend=backend
    )
    assert len(factory.made) == len(found.table)
    for trial, row in zip(factory.made, found.table, strict=True):
        assert trial.recorder.fits == [(0, 0)]
        assert len(trial.recorder.losses) == 10 * row["epochs"]
        assert max(trial.recorder.lrs) == pytest.approx(row["max_lr"])
        assert trial.recorder.lrs[-1] == pytest.approx(row["max_lr"] / 25e4)


def test_the_table_has_what_the_rungs_say(learn):
    found = learn.find({"lr": (1e-5, 1e-1)}, epochs=8, backend="own")
    counts = [(row["rung"], row["epochs"]) for row in found.table]
    assert counts == [(1, 1)] * 9 + [(2, 3)] * 3 + [(3, 8)]
    for rung, kept in [(1, 3), (2, 1), (3, 1)]:
        scores = {r["trial"]: r["valid_loss"] for r in found.table if r["rung"] == rung}
        going = [r["trial"] for r in found.table if r["rung"] == rung and r["kept"]]
        assert set(going) == set(sorted(scores, key=scores.get)[:kept])
    assert found.rungs == [1, 3, 8]
    columns = "trial rung epochs lr valid_loss seconds kept"
    assert " ".join(found.table[0]) == columns


def test_the_learner_is_of_the_longest_cycles_even_if_a_shorter_one_was_better(data):
    def network():
        told = Told([0.0, 1.0, 2.0, 3.0])
        return Learner(data, plain(), metrics={"told": told}, callbacks=[told])

    options = {"metric": "told", "mode": "min", "make": network, "backend": "own"}
    found = Learner(data, plain()).find({"max_lr": [0.01, 0.1]}, 4, n=2, eta=2, **options)
    assert [found.score, len(found.learner.recorder.history)] == [3.0, 4]


def test_the_seed_is_added_to_that_of_the_data(learn):
    scores = [learn.find({"max_lr": [0.01]}, 1, seed=seed).score for seed in (0, 1)]
    assert scores[0] != scores[1]


def test_a_trial_is_what_a_fit_of_this_learner_would_be(learn):
    learn.fit_one_cycle(1, 0.01)
    found = learn.find({"max_lr": [0.02], "wd": [0.1], "moms": [(0.9, 0.8)]}, epochs=2)
    alone = twin(learn)
    alone.fit_one_cycle(2, 0.02, wd=0.1, moms=(0.9, 0.8))
    assert same(weights(found.learner), weights(alone))
    assert found.score == alone.recorder.history[-1]["valid_loss"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_one_sane_rate_among_hopeless_ones_is_found(learn, backend):
    space = {"max_lr": [1e-9, 1e-8, 0.03, 1e-7, 1e-10]}
    found = learn.find(space, epochs=3, backend=backend)
    assert found.best == {"max_lr": 0.03}
    assert found.row["kept"]
    assert found.learner.validate()["valid_loss"] == found.score
    assert max(found.learner.recorder.lrs) == pytest.approx(0.03)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loader", LOADERS)
def test_the_learner_is_bit_for_bit_what_it_was(digit_tensors, loader, backend):
    learn = make(digit_tensors, loader=loader, metrics=Counted())
    learn.fit_one_cycle(1, 1e-2)
    before = everything(learn), learn.metrics["Counted"].seen
    learn.find({"lr": (1e-4, 1e-1)}, epochs=2, n=2, eta=2, backend=backend)
    assert same((everything(learn), learn.metrics["Counted"].seen), before)


@pytest.mark.parametrize("what", [ZeroDivisionError(), KeyboardInterrupt()])
def test_the_learner_is_what_it_was_after_an_error(digit_tensors, what):
    learn = make(digit_tensors, model=Trouble(14, what))
    before = everything(learn)
    with pytest.raises(type(what)):
        learn.find({"lr": [1e-3, 1e-2]}, epochs=2)
    assert same(everything(learn), before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loader", LOADERS)
def test_the_same_seed_gives_the_same_table(digit_tensors, loader, backend):
    learn = make(digit_tensors, loader=loader)

    def table(seed):
        torch.rand(1)
        space = {"lr": (1e-4, 1e-1), "wd": [0, 0.1]}
        return rows(learn.find(space, epochs=1, n=3, seed=seed, backend=backend))

    first = table(0)
    assert same(table(0), first)
    assert not same(table(1), first)


@pytest.mark.parametrize("loader", LOADERS)
def test_trials_are_compared_in_pairs(digit_tensors, loader):
    learn = make(digit_tensors, loader=loader)
    a, b = learn.find({"lr": [1e-3, 1e-3]}, epochs=1, backend="own").table
    assert a["valid_loss"] == b["valid_loss"]


def test_a_factory_takes_its_own_names_and_the_cycle_the_others(data):
    made = []

    def network(width, lr=1.0):
        model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        made.append((width, lr))
        return Learner(data, model, opt_func=sgd)

    space = {"width": [2, 32], "lr": [0.05], "pct_start": [0.4]}
    found = Learner(data, plain()).find(space, epochs=2, make=network)
    assert found.best["width"] == 32
    assert found.learner.model[0].out_features == 32
    assert set(made) == {(2, 0.05), (32, 0.05)}
    assert found.learner.recorder.lrs.argmax() == 8


def test_another_batch_size_cuts_the_same_data(learn):
    found = learn.find({"batch_size": [10, 100], "max_lr": [0.01]}, epochs=1)
    assert found.best["batch_size"] == 10
    assert found.learner.data.steps_per_epoch == 30
    assert found.learner.data.train.tensors[0] is learn.data.train.tensors[0]
    assert learn.data.train.batch_size == 30


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_configuration_that_diverges_is_worst_and_in_the_table(data, backend):
    learn = Learner(
        data, plain(), loss_func=lambda p, y: (p**2).mean() + 1 - y.sum() * 0, opt_func=sgd
    )
    found = learn.find({"max_lr": [1e30, 1e-2]}, epochs=2, eta=2, backend=backend)
    first, *others = found.table
    assert np.isnan(first["valid_loss"])
    assert not first["kept"]
    assert found.best == {"max_lr": 1e-2}
    assert {row["trial"] for row in others} == {2}
    found.plot()
    with pytest.raises(ValueError, match="no configuration ended with a finite valid_loss"):
        learn.find({"max_lr": [1e30]}, epochs=1, backend=backend)


def test_another_metric_says_itself_which_way_is_better(data):
    def right(pred, target):
        return (pred.argmax(1) == target).float().mean()

    learn = Learner(data, plain(), metrics=right, opt_func=sgd)
    with pytest.raises(ValueError, match='mode must be "max" or "min": nothing says'):
        learn.find({"max_lr": [1e-3]}, 1, metric="right")
    found = learn.find({"max_lr": [1e-6, 1e-2]}, 1, metric="right", mode="max")
    assert found.score == max(row["right"] for row in found.table)
    assert found.best == {"max_lr": 1e-2}
    right.higher_is_better = True
    assert is_higher_better("right", None, {"right": right})
    assert is_higher_better("no_loss", None, {"no_loss": right})
    assert not is_higher_better("own_loss", None, {})
    assert not is_higher_better("right", "min", {"right": right})


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_ends_the_search_with_what_was_found(data, backend):
    made = []

    def network():
        made.append(Learner(data, plain(), opt_func=sgd))
        made[-1].callbacks = [Halt(3)] if len(made) == 3 else []
        return made[-1]

    found = Learner(data, plain()).find(
        {"max_lr": [1e-2, 1e-3, 1e-4]}, epochs=2, make=network, backend=backend
    )
    assert found.interrupted
    assert len(found.table) == 2
    assert found.learner in made[:2]


def test_any_other_error_names_the_configuration(learn):
    learn.loss_func = lambda pred, target: pred.nothing
    with pytest.raises(AttributeError) as raised:
        learn.find({"max_lr": [0.01]}, epochs=1)
    if sys.version_info >= (3, 11):
        assert "raised by trial 1 of learn.find: max_lr=0.01" in raised.value.__notes__


def test_it_says_what_it_will_cost_and_a_line_for_each_rung(learn, capsys, monkeypatch):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    learn.find({"max_lr": (1e-4, 1e-1)}, epochs=2, n=4, eta=2, backend="own")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "find: complete cycles: 4 of 1 epoch, 2 of 2 epochs; 8 epochs in all"
    assert lines[1].startswith("find: 1 epoch: best valid_loss ")
    assert "; 2 of 4 kept, " in lines[1]
    assert lines[2].startswith("find: 2 epochs: best valid_loss ")
    assert lines[3].startswith("find: Search(valid_loss ")
    assert len(lines) == 4
    with learn.no_logging():
        learn.find({"max_lr": [0.01]}, epochs=1)
    assert capsys.readouterr().out == ""


# ---- Optuna ------------------------------------------------------------------------------------


class Recording(optuna.pruners.SuccessiveHalvingPruner):
    def __init__(self):
        super().__init__(min_resource=1, reduction_factor=2)
        self.asked = []

    def prune(self, study, trial):
        self.asked.append((trial.number + 1, trial.last_step))
        return super().prune(study, trial)


def test_a_pruner_is_told_at_the_end_of_a_rung_only(learn):
    pruner = Recording()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
    found = learn.find({"max_lr": (1e-6, 1e-1)}, epochs=4, n=4, eta=2, study=study)
    reported = {
        (t.number + 1, step): value
        for t in study.trials
        for step, value in t.intermediate_values.items()
    }
    assert reported == {(r["trial"], r["epochs"]): r["valid_loss"] for r in found.table}
    assert pruner.asked == [key for key in reported if key[1] < 4]
    assert {t.state.name for t in study.trials} == {"COMPLETE", "PRUNED"}
    assert found.study is study
    assert study.best_params == found.best


def test_optuna_stays_quiet(learn, capfd):
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        learn.find({"max_lr": [1e-3, 1e-2], "moms": [(0.9, 0.8), None]}, 1, backend="optuna")
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(level)
    assert capfd.readouterr() == ("", "")


def test_a_study_is_told_of_a_trial_that_failed(learn):
    study = optuna.create_study()
    learn.loss_func = lambda pred, target: pred.nothing
    with pytest.raises(AttributeError):
        learn.find({"max_lr": [0.01], "pct_start": [0.3]}, epochs=1, study=study)
    assert study.trials[0].state.name == "FAIL"


def test_ranges_and_grids_on_optuna(learn):
    space = {"batch_size": range(60, 20, -20), "div_factor": [10.0, 25.0]}
    found = learn.find(space, epochs=1, backend="optuna")
    tried = {(row["batch_size"], row["div_factor"]) for row in found.table}
    assert tried == {(40, 10.0), (40, 25.0), (60, 10.0), (60, 25.0)}


def test_without_optuna_the_own_search_runs(learn, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert learn.find({"max_lr": [0.01]}, epochs=1).study is None
    with pytest.raises(ImportError, match=r"pip install .onecycle.tune"):
        learn.find({"max_lr": [0.01]}, epochs=1, backend="optuna")


# ---- the result --------------------------------------------------------------------------------


def test_the_result_shows_itself(learn):
    found = learn.find({"max_lr": (1e-4, 1e-1), "wd": [0, 0.1]}, epochs=3, n=3, backend="own")
    assert isinstance(found, Search)
    assert repr(found).startswith(f"Search(valid_loss {found.score:.4g} after 3 epochs by max_lr=")
    assert found._repr_html_().count("<tr>") == 1 + len(found.table)
    assert list(found.to_pandas()["valid_loss"]) == [row["valid_loss"] for row in found.table]


def test_the_picture_has_a_line_for_each_configuration_and_a_part_for_each_name(learn):
    found = learn.find({"max_lr": (1e-4, 1e-1), "wd": [0, 0.1]}, epochs=3, n=3, backend="own")
    first, lr, wd = found.plot()
    assert len(first.lines) == 3
    assert first.get_legend().get_texts()[0].get_text().startswith("max_lr=")
    assert (lr.get_xscale(), wd.get_xscale()) == ("log", "linear")
    assert [label.get_text() for label in wd.get_xticklabels()] == ["0", "0.1"]
    assert found.plot(ax=lr) is lr


# ---- the twin ----------------------------------------------------------------------------------


class Counted:
    """A metric object that remembers for ever that it was used."""

    seen = total = 0

    def update(self, pred, target):
        self.seen += 1
        self.total += 1

    def compute(self):
        return float(self.total)

    def reset(self):
        self.total = 0


class Own(Learner):
    def __init__(self, data, note):
        super().__init__(data, mlp(), clip=0.5, accumulate=2, on_nan="skip", train_bn=False)
        self.note = note


def test_a_twin_trains_as_the_learner_itself_would(data):
    learn = Own(data, "mine")
    learn.fit_one_cycle(1, 0.01)
    other = twin(learn)
    torch.manual_seed(5)
    other.recorder.history = [{}]  # epochs are numbered over all fits
    other.fit_one_cycle(1, 0.01)
    torch.manual_seed(5)
    learn.fit_one_cycle(1, 0.01)
    assert same(weights(other), weights(learn))
    assert (type(other), other.note) == (Own, "mine")


def test_a_twin_shares_no_tensor_that_training_changes(learn):
    learn.fit_one_cycle(1, 0.01)
    before, other = weights(learn), twin(learn)
    other.fit(1, 0.1)
    assert same(weights(learn), before)
    owned = {id(p) for group in other.opt.param_groups for p in group["params"]}
    assert owned == {id(p) for p in other.model.parameters()}


def test_callbacks_stay_with_the_learner(data):
    learn = Learner(data, plain(), callbacks=[Callback()])
    assert twin(learn).callbacks == []


# ---- errors ------------------------------------------------------------------------------------

LR = {"max_lr": [0.01]}
BAD = {
    "no_dict": ([1], {}, "space must be a dict"),
    "empty": ({}, {}, "space must hold at least one name"),
    "one_value": ({"wd": 0.1}, {}, r"space\['wd'\] must be \(low, high\) or a list"),
    "string": ({"warmup": "cos"}, {}, r"space\['warmup'\] must be"),
    "no_choice": ({"wd": []}, {}, r"space\['wd'\] must hold at least one"),
    "three": ({"wd": (0, 0.1, 0.2)}, {}, "choices are a list"),
    "whole": ({"wd": (0, 1)}, {}, r"range\(0, 2\)"),
    "falling": ({"wd": (0.2, 0.1)}, {}, "must rise from low to high"),
    "unknown": ({"mx_lr": [0.1]}, {}, "did you mean 'max_lr'"),
    "factory_needed": ({"width": [8]}, {}, "others need a factory"),
    "twice": ({"lr": [0.1], "max_lr": [0.1]}, {}, "are the same"),
    "column": ({"epochs": [1]}, {}, "'epochs' is a column"),
    "bad_rate": ({"max_lr": (-1.0, 1.0)}, {}, "max_lr"),
    "bad_wd": ({"wd": [0, -1]}, {}, "wd must lie in"),
    "bad_choice": ({"pct_start": [0.3, 2]}, {}, "pct_start"),
    "bad_batch": ({"batch_size": [0]}, {}, "batch_size must be at least 1"),
    "float_batch": ({"batch_size": (8.0, 64.0)}, {}, "whole numbers"),
    "epochs": (LR, {"epochs": 0}, "epochs must be at least 1"),
    "n": (LR, {"n": 0}, "n must be at least 1"),
    "eta": (LR, {"eta": 1}, "eta must be at least 2"),
    "min_epochs": (LR, {"min_epochs": 2}, "min_epochs must be at most 1"),
    "metric": (LR, {"metric": "accuracy", "mode": "max"}, "metric must be one of valid_loss"),
    "metric_object": (LR, {"metric": len}, "metric must be one of"),
    "mode": (LR, {"mode": "up"}, "mode must be one of 'min', 'max'"),
    "backend": (LR, {"backend": "ray"}, "backend must be one of"),
    "study": (LR, {"study": "s"}, "study must be an optuna.Study"),
    "direction": (LR, {"study": optuna.create_study(direction="maximize")}, "study must minimize"),
    "both": (LR, {"study": 1, "backend": "own"}, "leave it out"),
    "make": (LR, {"make": 1}, "make must be a function"),
    "made": (LR, {"make": lambda: 1}, "make must return a Learner"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told_before_anything_is_trained(learn, case):
    space, options, message = BAD[case]
    before = everything(learn)
    with pytest.raises((ValueError, TypeError), match=message):
        learn.find(space, **{"epochs": 1, **options})
    assert same(everything(learn), before)


def test_a_factory_must_make_new_learners_with_validation_data(learn, data):
    with pytest.raises(ValueError, match="new Learner every time"):
        learn.find(LR, 1, make=lambda: learn)
    with pytest.raises(ValueError, match="with validation data"):
        learn.find(LR, 1, make=lambda: Learner((data.train, None), plain()))
    with pytest.raises(ValueError, match="metric must be one of valid_loss, got 'right'"):
        learn.find(LR, 1, make=lambda: Learner(data, plain()), metric="right", mode="max")


def test_without_validation_data_nothing_can_be_judged(data):
    with pytest.raises(ValueError, match="this learner has none"):
        Learner((data.train, None), plain()).find(LR, 1)


def test_only_data_in_memory_can_be_cut_again(data):
    other = DataLoaders(list(data.train), data.valid)
    with pytest.raises(ValueError, match="only data in memory"):
        Learner(other, plain()).find({"batch_size": [8]}, 1)


def test_no_search_within_a_fit(learn):
    class Searching(Callback):
        def on_epoch_end(self, learn):
            learn.find(LR, 1)

    with pytest.raises(RuntimeError, match="a fit is running already"):
        learn.fit(1, 0.01, callbacks=Searching)


def test_a_space_without_a_rate_takes_that_of_lr_find(data):
    learn = Learner(data, mlp())
    rate = learn.lr_find()
    found = learn.find({"wd": [0.0, 0.1]}, epochs=1, backend="own")
    assert found.learner.recorder.plans[0]["max_lr"] == [float(rate)]
    assert {row["wd"] for row in found.table} == {0.0, 0.1}


@pytest.mark.parametrize(("metric", "near"), [("val_loss", "valid_loss"), ("acuracy", "accuracy")])
def test_an_unknown_metric_is_told_with_the_nearest(data, metric, near):
    learn = Learner(data, mlp(), metrics=[accuracy])
    with pytest.raises(ValueError, match=f"metric must be one of .*did you mean '{near}'"):
        learn.find({"max_lr": [0.1]}, epochs=1, metric=metric)
