"""Loggers that need no package: the files are what the Recorder holds, whatever happened."""

import csv
import json
import math
import sys

import pytest
import torch
from helpers import Halt, mlp, plain, same, weights
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from onecycle import (
    EMA,
    Callback,
    Checkpoint,
    CSVLogger,
    JSONLLogger,
    Learner,
    Profiler,
    TensorBoardLogger,
    accuracy,
)
from onecycle.signals import CancelTrain
from onecycle.tracking import Tracker, cleaned, figures, flat, records

MAKE = {
    "csv": lambda folder, every=1: CSVLogger(folder / "log", every),
    "jsonl": lambda folder, every=1: JSONLLogger(folder / "log.jsonl", every),
}


@pytest.fixture(params=MAKE)
def kind(request):
    return request.param


@pytest.fixture
def make(kind, tmp_path):
    return lambda *every: MAKE[kind](tmp_path, *every)


@pytest.fixture
def read(kind, tmp_path):
    """Rows and steps that are in the files."""

    def read_csv():
        tables = []
        for name in ("epochs", "steps"):
            with (tmp_path / "log" / f"{name}.csv").open() as file:
                lines = list(csv.DictReader(file))
            tables.append(
                [{k: float(v) for k, v in line.items() if v not in ("", "nan")} for line in lines]
            )
        return tables

    def read_jsonl():
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        kinds = [line.pop("kind") for line in lines]
        assert kinds[0] == "config"
        assert kinds.count("config") == 1
        of = {k: [li for li, own in zip(lines, kinds, strict=True) if own == k] for k in kinds}
        for line in of.get("epoch", []):
            line.pop("step")
        return [of.get("epoch", []), of.get("step", [])]

    return {"csv": read_csv, "jsonl": read_jsonl}[kind]


def held(learn):
    """The same from the Recorder."""
    steps = [{"step": r.step, **r.values} for r in records(learn.recorder) if r.kind == "step"]
    return [learn.recorder.history, steps]


def new(data, **options):
    return Learner(data, mlp(), metrics=[accuracy], **options)


def test_the_files_are_what_the_recorder_holds(data, make, read):
    learn = new(data, clip=1.0)
    learn.fit_one_cycle(2, 0.01, callbacks=[make(), EMA])
    rows, steps = read()
    assert [rows, steps] == held(learn)
    assert [len(rows), len(steps)] == [2, 20]
    assert list(steps[0]) == ["step", "loss", "lr", "mom", "grad_norm"]
    assert [step["step"] for step in steps] == list(range(1, 21))
    assert [step["lr"] for step in steps] == learn.recorder.lrs.tolist()


def test_several_fits_go_on_counting(data, make, read):
    learn, log = new(data), make()
    learn.fit(1)  # nobody has logged it, and it is there, too
    for _ in range(2):
        learn.fit(1, callbacks=[log])
    learn.extend(1, callbacks=[log])
    assert read() == held(learn)
    assert [row["epoch"] for row in read()[0]] == [1, 2, 3, 4]


def test_what_is_extended_from_a_trunk_is_written_once(data, make, read):
    learn, log = new(data), make()
    learn.fit_one_cycle(3, 0.01, callbacks=[log])
    learn.extend(2, "trunk", callbacks=[log])
    assert read() == held(learn)


def test_one_step_in_several(data, make, read):
    learn = new(data)
    learn.fit(2, callbacks=[make(7)])
    assert [step["step"] for step in read()[1]] == [7, 14]
    learn.fit(1, callbacks=[make(7)])
    assert [step["step"] for step in read()[1]] == [7, 14, 21, 28]


def test_a_column_that_comes_later(data, make, read):
    learn, log = new(data), make()
    learn.fit(1, callbacks=[log])
    learn.fit(1, callbacks=[log, EMA])
    assert "ema_valid_loss" in read()[0][1]
    assert read() == held(learn)


def test_a_fit_that_fails_leaves_every_step_of_it(data, make, read):
    learn, log = new(data), make()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, callbacks=[Halt(14), log])
    assert read() == held(learn)
    assert [len(part) for part in read()] == [1, 14]
    learn.fit(1, callbacks=[log])
    assert read() == held(learn)


@pytest.mark.parametrize("rules", [{}, {"every_epochs": None, "every_steps": 15}])
@pytest.mark.parametrize("how", ["again", "resume"])
def test_killed_and_resumed_every_line_is_there_once(data, make, read, tmp_path, rules, how):
    path = tmp_path / "run.pt"
    callbacks = [make(), Checkpoint(path, **rules), Halt(28)]
    with pytest.raises(KeyboardInterrupt):
        new(data).fit_one_cycle(3, 0.01, callbacks=callbacks)
    assert [len(part) for part in read()] == [2, 28]  # of which 20, or 15, are in the checkpoint
    learn = new(data)
    if how == "resume":
        learn.resume(path, callbacks=[make(), Halt(0)])
    else:
        callbacks = [make(), Checkpoint(path, **rules, resume=True), Halt(0)]
        learn.fit_one_cycle(3, 0.01, callbacks=callbacks)
    rows, steps = read()
    assert [rows, steps] == held(learn)
    assert [len(rows), len(steps)] == [3, 30]


def test_lines_that_no_checkpoint_knows_and_a_torn_one_are_gone_when_it_is_resumed(data, tmp_path):
    path, log, died = (tmp_path / name for name in ("run.pt", "log.jsonl", "died"))

    class Dies(Callback):
        def on_epoch_begin(self, learn):
            if learn.epoch == 2 and not died.exists():
                died.touch()
                with log.open("a") as file:
                    file.write('{"kind": "epoch", "step": 30, "epoch": 3}\n{"kind": "st')
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new(data).fit(3, callbacks=[JSONLLogger(log), Checkpoint(path), Dies])
    learn = new(data)
    learn.resume(path, callbacks=[JSONLLogger(log), Dies])
    epochs = [
        line["epoch"]
        for line in map(json.loads, log.read_text().splitlines())
        if line["kind"] == "epoch"
    ]
    assert epochs == [1, 2, 3]


def test_a_run_that_is_resumed_keeps_its_name_and_another_gets_its_own(data, tmp_path):
    path, logs = tmp_path / "run.pt", [JSONLLogger(tmp_path / "log.jsonl") for _ in range(3)]
    with pytest.raises(KeyboardInterrupt):
        new(data).fit(3, callbacks=[logs[0], Checkpoint(path, every_epochs=None), Halt(14)])
    new(data).resume(path, callbacks=[logs[1], Halt(0)])
    new(data).fit(1, callbacks=[logs[2]])
    assert logs[0].run == logs[1].run != logs[2].run


@pytest.mark.parametrize("at", [5, 10])
def test_a_second_learner_is_another_run(data, make, read, at):
    log, learn = make(), new(data)
    with pytest.raises(KeyboardInterrupt):
        new(data).fit(1, callbacks=[log, Halt(at)])
    first = log.run
    learn.fit(1, callbacks=[log])
    assert log.run != first
    assert read() == held(learn)


def test_nothing_is_written_before_a_fit_or_by_what_is_no_fit(data, make, tmp_path):
    learn = new(data, callbacks=[make()])
    learn.lr_find(num_it=10, show_plot=False)
    learn.validate()
    learn.get_preds()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, callbacks=[Begins(KeyboardInterrupt)])
    learn.fit(1, callbacks=[Begins(CancelTrain)])
    assert list(tmp_path.iterdir()) == []


def test_looks_ahead_do_not_write_to_it(data, make, read):
    learn = new(data, callbacks=[make()])
    learn.fit(1)
    before = read()
    learn.find({"lr": [0.01]}, epochs=1)
    found = learn.epoch_find(1, 0.01, show_plot=False)
    assert read() == before
    found.finish()
    assert read() == held(learn)


class Begins(Callback):
    """Raises before the first epoch."""

    def __init__(self, error):
        self.error = error

    def on_train_begin(self, learn):
        raise self.error


@pytest.mark.parametrize("of", [MAKE["jsonl"], lambda folder: Profiler(folder / "trace.json")])
def test_only_the_first_process_writes(learn, tmp_path, of):
    learn.fit(1)
    log = of(tmp_path)
    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        for event in ("on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end"):
            getattr(log, event)(learn)
    finally:
        distributed.destroy_process_group()
    assert list(tmp_path.iterdir()) == []


def test_training_is_the_same_with_it(data, make):
    one, other = new(data), new(data)
    torch.manual_seed(0)
    one.fit(1)
    torch.manual_seed(0)
    other.fit(1, callbacks=[make()])
    assert same(weights(one), weights(other))


def test_without_momentum_and_clip_there_are_no_such_columns(data, make, read):
    learn = Learner(data, plain(), opt_func=torch.optim.Adagrad)
    learn.fit(1, callbacks=[make()])
    assert list(read()[1][0]) == ["step", "loss", "lr"]


def test_a_loss_that_is_nan_is_null(data, tmp_path):
    learn, path = Learner(data, plain(), on_nan="ignore"), tmp_path / "log.jsonl"
    learn.model.weight.data.fill_(math.nan)
    learn.fit(1, callbacks=[JSONLLogger(path)])
    line = json.loads(path.read_text().splitlines()[1], parse_constant=pytest.fail)
    assert line["loss"] is None


def test_the_settings_name_the_model_the_versions_and_every_fit(data, tmp_path):
    learn, log = new(data), CSVLogger(tmp_path)
    learn.fit(1, 0.1, callbacks=[log])
    learn.fit_one_cycle(1, 0.2, callbacks=[log])
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["run"] == log.run
    assert found["model"] == "Sequential"
    assert found["parameters"] == sum(p.numel() for p in learn.model.parameters())
    assert found["versions"]["torch"] == torch.__version__
    assert [found["fit_1"]["lr"], found["fit_2"]["max_lr"]] == [[0.1], [0.2]]


class Full(Tracker):
    """Knows how its runs were closed."""

    closed = ()

    def close(self, *, failed):
        self.closed = (*self.closed, failed)


def test_a_run_is_closed_as_the_fit_ended(data):
    learn, log = new(data), Full()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, callbacks=[log, Halt(5)])
    learn.fit(1, callbacks=[log])
    assert log.closed == (True, False)


@pytest.mark.parametrize("where", ["open", "write", "draw"])
def test_an_error_of_its_own_closes_the_run_as_a_failed_one(data, where, monkeypatch):
    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Full, where, fails)

    log = Full()
    with pytest.raises(OSError, match="no space left"):
        new(data).fit(1, callbacks=[log])
    assert log.closed == (True,)


def test_figures_are_nobody_elses(learn):
    from matplotlib import pyplot as plt

    learn.fit(1)
    assert [name for name, _ in figures(learn.recorder)] == ["plots/losses", "plots/lr"]
    learn.metrics = {"accuracy": accuracy}
    learn.fit(1)
    assert len(list(figures(learn.recorder))) == 3
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("nested", "names"),
    [
        ({"a": 1, "b": {"c": None}}, {"a": 1, "b.c": None}),
        ({"a": [], "b": [2], "c": [1, 2]}, {"a": "", "b": 2, "c": "1, 2"}),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a.0.b": 1, "a.1.b": 2}),
    ],
)
def test_flat_settings(nested, names):
    assert flat(nested) == names


def test_names_that_every_store_takes():
    assert cleaned("step/loss") == "step/loss"
    assert cleaned("mAP@50 é") == "mAP_50 _"


def test_a_missing_package_is_named_with_its_extra(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install \"onecycle\[tensorboard\]\""):
        new(data).fit(1, callbacks=[TensorBoardLogger(tmp_path / "runs")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make_bad", "message"),
    [
        (lambda path: CSVLogger(path, every=0), "every must be at least 1"),
        (lambda path: CSVLogger(7), "folder must be the name of a folder"),
        (lambda path: CSVLogger(path / "file"), "folder: .* is a file"),
        (lambda path: CSVLogger(path / "log.csv"), "folder is for several files.* give '.*log'"),
        (lambda path: JSONLLogger(path), "path: .* is a folder"),
        (lambda path: TensorBoardLogger(None), "log_dir must be the name of a folder"),
    ],
)
def test_bad_arguments(tmp_path, make_bad, message):
    (tmp_path / "file").touch()
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        make_bad(tmp_path)
