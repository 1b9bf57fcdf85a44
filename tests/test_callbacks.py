"""One contract for every callback that the package exports."""

import inspect
import io
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import Halt, everything, mlflow_in, mlp, same, weights
from optuna.trial import FixedTrial
from schedulefree import AdamWScheduleFree
from torch.optim.lr_scheduler import StepLR

import onecycle
from onecycle import (
    Callback,
    Checkpoint,
    DataLoaders,
    Learner,
    LRFinder,
    OneCycleScheduler,
    ParamScheduler,
    accuracy,
    checkpoint,
)
from onecycle.callback import EVENTS
from onecycle.schedules import linear


def ray_report():
    """One that nobody listens to."""
    pytest.importorskip("ray.train")
    return onecycle.RayReport(checkpoint=True)


MAKE = {
    "ActivationStats": onecycle.ActivationStats,
    "BnFreeze": lambda: onecycle.BnFreeze("all"),
    "CSVLogger": lambda: onecycle.CSVLogger(Path(tempfile.mkdtemp())),
    "Callback": Callback,
    "Checkpoint": lambda: onecycle.Checkpoint(Path(tempfile.mkdtemp()) / "run.pt"),
    "CutMix": onecycle.CutMix,
    "EarlyStopping": lambda: onecycle.EarlyStopping(restore_best=True),
    "EMA": onecycle.EMA,
    "GradNorm": lambda: onecycle.GradNorm(every=3),
    "LRFinder": LRFinder,
    "LivePlot": onecycle.LivePlot,
    "MixUp": onecycle.MixUp,
    "JSONLLogger": lambda: onecycle.JSONLLogger(Path(tempfile.mkdtemp()) / "log.jsonl"),
    "MLflowLogger": onecycle.MLflowLogger,
    "OneCycleScheduler": lambda: OneCycleScheduler(0.1),
    "OptunaReport": lambda: onecycle.OptunaReport(FixedTrial({})),
    "ParamScheduler": lambda: ParamScheduler({"lr": linear(0.1, 0.01)}),
    "Profiler": lambda: onecycle.Profiler(Path(tempfile.mkdtemp()) / "trace.json", 2, 3),
    "ProgressBar": onecycle.ProgressBar,
    "RayReport": ray_report,
    "Recorder": onecycle.Recorder,
    "ReduceLROnPlateau": lambda: onecycle.ReduceLROnPlateau(patience=1, min_delta=1e9, cooldown=1),
    "SaveBest": lambda: onecycle.SaveBest(Path(tempfile.mkdtemp()) / "best.pt"),
    "SWA": lambda: onecycle.SWA(0.5, at_end=True),
    "ScheduleFree": onecycle.ScheduleFree,
    "TensorBoardLogger": lambda: onecycle.TensorBoardLogger(Path(tempfile.mkdtemp())),
    "TorchScheduler": lambda: onecycle.TorchScheduler(partial(StepLR, step_size=4)),
    "WandbLogger": lambda: onecycle.WandbLogger(mode="offline"),
}
OPTIMIZERS = {"ScheduleFree": AdamWScheduleFree}


def test_every_exported_callback_is_in_the_contract():
    classes = [c for c in vars(onecycle).values() if inspect.isclass(c) and issubclass(c, Callback)]
    assert {c.__name__ for c in classes} == set(MAKE)


def _param(name):
    """Mark what needs an extra; their packages warn of their own parts."""
    extra = getattr(getattr(onecycle, name), "extra", None)
    warns = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    return pytest.param(name, marks=[pytest.mark.extra, warns] if extra else [])


@pytest.fixture(params=map(_param, MAKE))
def callback(request, monkeypatch, tmp_path):
    made = MAKE[request.param]()
    if getattr(made, "extra", None):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("WANDB_SILENT", "true")
        pytest.importorskip(made.extra)
        if made.extra == "mlflow":
            mlflow_in(tmp_path)
    return made


@pytest.fixture
def make(callback, digit_tensors):
    """Learners of images, which a model of flat inputs is given flat."""
    x, y = digit_tensors
    x, opt_func = x.view(-1, 1, 8, 8), OPTIMIZERS.get(type(callback).__name__, torch.optim.AdamW)

    def make(model, **options):
        valid = (x[300:400], y[300:400])
        data = DataLoaders.from_tensors(x[:300], y[:300], valid=valid, batch_size=30)
        flat = torch.nn.Sequential(torch.nn.Flatten(), *model)
        return Learner(data, flat, opt_func=opt_func, **options)

    return make


def test_two_fits_and_a_second_learner(callback, make):
    for learn in (make(mlp()), make(mlp(), metrics=[accuracy])):
        for _ in range(2):
            learn.fit(1, callbacks=[callback])


def test_its_state_is_plain_and_comes_back(callback, make):
    make(mlp()).fit(1, callbacks=[callback])
    state = callback.state_dict()
    file = io.BytesIO()
    torch.save(checkpoint.plain(state, "state"), file)
    file.seek(0)
    callback.load_state_dict(torch.load(file, weights_only=True))
    assert same(callback.state_dict(), state)


def test_hooks_take_the_learner_and_are_documented(callback):
    for event in EVENTS:
        hook = getattr(type(callback), event)
        assert list(inspect.signature(hook).parameters) == ["self", "learn"]
        assert hook.__doc__


def test_the_last_event_is_safe_without_the_first(callback, learn):
    callback.on_train_end(learn)


def test_it_keeps_no_tie_to_the_learner(callback, make):
    learn = make(mlp())
    learn.fit(1, callbacks=[callback])
    assert not any(value is learn for value in vars(callback).values())


def test_an_error_in_the_middle_leaves_it_usable(callback, make):
    learn = make(mlp())

    class Fails(Callback):
        def on_backward_end(self, learn):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        learn.fit(1, callbacks=[callback, Fails])
    learn.fit(1, callbacks=[callback])


def test_a_subclass_with_an_unknown_event_is_refused(callback):
    with pytest.raises(TypeError, match=r"on_fit_begin is no event; did you mean on_\w+\?"):
        type("Typo", (type(callback),), {"on_fit_begin": lambda self, learn: None})


@pytest.mark.parametrize(
    "callback", ["BnFreeze", "CutMix", "GradNorm", "MixUp", "ReduceLROnPlateau"], indirect=True
)
def test_a_run_that_was_killed_ends_as_one_that_was_not(callback, make, tmp_path):
    def run(*more, seed=4, method="fit_one_cycle", of=(3, 0.02)):
        learn, own = make(mlp(), accumulate=2), MAKE[type(callback).__name__]()
        torch.manual_seed(seed)
        getattr(learn, method)(*of, callbacks=[own, *more])
        return weights(learn), own.state_dict(), learn.recorder.lrs, learn.recorder.losses

    whole = run()
    file = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        run(Checkpoint(file, every_steps=1), Halt(12))
    assert same(run(Halt(0), seed=99, method="resume", of=[file]), whole)


def test_schedulers_alone_leave_the_optimizer_as_it_was(learn):
    learn.fit(1)
    groups = everything(learn)["opt"]["param_groups"]
    for name in ("OneCycleScheduler", "ParamScheduler", "LRFinder", "TorchScheduler"):
        learn.fit(1, callbacks=[MAKE[name]()])
    assert same(groups, everything(learn)["opt"]["param_groups"])
