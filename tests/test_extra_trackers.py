"""TensorBoard, Weights & Biases and MLflow: what they have is what the Recorder has."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import Halt, mlflow_in, mlp, same, weights

from onecycle import (
    Callback,
    Checkpoint,
    Learner,
    MLflowLogger,
    TensorBoardLogger,
    WandbLogger,
    accuracy,
)
from onecycle.tracking import records

pytestmark = [
    pytest.mark.extra,
    # Of MLflow's own packages.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def tensorboard_logger(folder, every=1):
    pytest.importorskip("tensorboard")
    return TensorBoardLogger(folder / "runs", every)


def wandb_logger(folder, every=1):
    pytest.importorskip("wandb")
    return WandbLogger("digits", every=every, mode="offline", dir=str(folder))


def mlflow_logger(folder, every=1):
    pytest.importorskip("mlflow")
    mlflow_in(folder)
    return MLflowLogger(every=every)


def read_tensorboard(folder, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs" / run), {"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in tags}


def read_mlflow(folder, run):
    import mlflow

    client, found = mlflow.MlflowClient(), mlflow_runs(run)
    assert len(found) == 1
    names = found[0].data.metrics
    histories = {name: client.get_metric_history(found[0].info.run_id, name) for name in names}
    return {name: sorted((one.step, one.value) for one in of) for name, of in histories.items()}


def mlflow_runs(run=None):
    import mlflow

    wanted = f"tags.onecycle_run = '{run}'" if run else ""
    return mlflow.search_runs(filter_string=wanted, output_format="list")


def read_wandb(folder, run):
    """The history in the last folder, in the same shape; its axes are its own."""
    ends, found = {}, {}
    for values in wandb_history(last_wandb(folder)):
        step = values.get("step", values.get("epoch"))
        if step is None:  # pictures
            continue
        for name, value in values.items():
            if isinstance(value, (int, float)) and name[0] != "_" and name != "step":
                found.setdefault(name, []).append((step, value))
        if "step" in values:
            last = values["step"]
        elif "epoch" in values:
            ends[values["epoch"]] = last
    rows = {name for name in found if not name.startswith("step/")}
    return {
        name: [(ends[step] if name in rows else step, value) for step, value in of]
        for name, of in found.items()
    }


def last_wandb(folder):
    """The newest file, which is complete a moment after the run is."""
    path = next((folder / "wandb" / "latest-run").glob("*.wandb"))
    deadline = time.monotonic() + 20
    while not any(one.HasField("exit") for one in wandb_records(path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return path


def wandb_records(path):
    """The records of a file, which is a log as LevelDB writes it: blocks of 32 KiB, in parts."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def wandb_history(path):
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


MAKE = {
    "tensorboard": (tensorboard_logger, read_tensorboard),
    "wandb": (wandb_logger, read_wandb),
    "mlflow": (mlflow_logger, read_mlflow),
}


# Only this tells an epoch that MLflow has already from the same one that was trained anew.
CLOCK = {"tensorboard": (), "wandb": (), "mlflow": ("seconds",)}


@pytest.fixture(params=MAKE)
def kind(request, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    return request.param


@pytest.fixture
def make(kind, tmp_path):
    return lambda *every: MAKE[kind][0](tmp_path, *every)


@pytest.fixture
def read(kind, tmp_path):
    return lambda log: MAKE[kind][1](tmp_path, log.run)


def held(learn, every=1):
    """What a tracker should have, by name: (steps done, value)."""
    found = {}
    for record in records(learn.recorder, every=every):
        for name, value in record.scalars().items():
            found.setdefault(name, []).append((record.step, value))
    return found


def alike(found, wanted, but=()):
    """Equal in single precision, which is what TensorBoard keeps."""
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - set(but):
        points = wanted[name]
        steps, values = zip(*points, strict=True)
        found_steps, found_values = zip(*found[name], strict=True)
        assert found_steps == steps, name
        assert found_values == pytest.approx(values, rel=1e-6), name
    return True


def new(data, **options):
    return Learner(data, mlp(), metrics=[accuracy], **options)


def test_it_has_what_the_recorder_has(data, make, read):
    learn, log = new(data, clip=1.0), make()
    learn.fit_one_cycle(2, 0.01, callbacks=[log])
    assert alike(read(log), held(learn))


def test_several_fits_are_one_run(data, make, read):
    learn, log = new(data), make()
    learn.fit(1)  # nobody has logged it, and it is there, too
    learn.fit_one_cycle(2, 0.01, callbacks=[log])
    learn.extend(1, "trunk", callbacks=[log])
    learn.lr_find(num_it=10, show_plot=False)
    learn.validate()
    assert alike(read(log), held(learn))


def test_one_step_in_several(data, make, read):
    learn, log = new(data), make(7)
    learn.fit(2, callbacks=[log])
    learn.fit(1, callbacks=[log])
    found = {name: of for name, of in read(log).items() if name.startswith("step/")}
    assert [step for step, _ in found["step/loss"]] == [7, 14, 21, 28]
    assert alike(found, {name: held(learn, every=7)[name] for name in found})


def test_a_fit_that_fails_leaves_all_of_it(data, make, read):
    learn, log = new(data), make()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, callbacks=[Halt(14), log])
    assert alike(read(log), held(learn))
    learn.fit(1, callbacks=[log])
    assert alike(read(log), held(learn))


@pytest.mark.parametrize("rules", [{}, {"every_epochs": None, "every_steps": 15}])
def test_broken_off_and_resumed_every_point_is_there_once(data, kind, make, read, tmp_path, rules):
    path, logs = tmp_path / "run.pt", [make(), make()]
    with pytest.raises(KeyboardInterrupt):
        new(data).fit_one_cycle(3, 0.01, callbacks=[logs[0], Checkpoint(path, **rules), Halt(28)])
    learn = new(data)
    learn.resume(path, callbacks=[logs[1], Halt(0)])
    assert logs[0].run == logs[1].run
    assert alike(read(logs[1]), held(learn), but=CLOCK[kind])


DIES = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import test_extra_trackers as tests
from onecycle import Callback, Checkpoint
from onecycle.data import digits

class Dies(Callback):
    def on_step_end(self, learn):
        if learn.step == 25:
            os._exit(9)

x, y = digits().train.tensors
log = tests.MAKE[sys.argv[3]][0](Path.cwd())
tests.digits_learner(x.flatten(1), y).fit(3, callbacks=[
    log, Checkpoint("run.pt", every_epochs=None, every_steps=15), Dies(),
])
"""


def digits_learner(x, y):
    from onecycle import DataLoaders

    valid = (x[300:400], y[300:400])
    return new(DataLoaders.from_tensors(x[:300], y[:300], valid=valid, batch_size=30))


class Dies(Callback):
    """Stands for the one that died."""


def test_killed_and_resumed_every_point_is_there_once(
    digit_tensors, kind, make, read, tmp_path, monkeypatch
):
    log = make()
    tests = Path(__file__).parent
    command = [sys.executable, "-c", DIES, tests, tests.parent, kind]
    # Or it would be a client of this process's own wandb, which survives it.
    env = {name: value for name, value in os.environ.items() if "SERVICE" not in name}
    done = subprocess.run(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 9, done.stderr
    # Steps 16 to 20 and the second epoch were written after the checkpoint of step 15.
    learn = digits_learner(*digit_tensors)
    learn.resume(tmp_path / "run.pt", callbacks=[log, Dies()])
    assert len(learn.recorder.history) == 3
    assert alike(read(log), held(learn), but=CLOCK[kind])
    assert len(read(log)["seconds"]) == 3


def test_training_is_the_same_with_it(data, make):
    one, other = new(data), new(data)
    for learn, callbacks in ((one, []), (other, [make()])):
        torch.manual_seed(0)
        learn.fit(2, callbacks=callbacks)
    assert same(weights(one), weights(other))


def test_nothing_is_written_before_a_fit(data, make, tmp_path, kind):
    class Fails(Callback):
        def on_train_begin(self, learn):
            raise ZeroDivisionError

    learn = new(data, callbacks=[make()])
    before = {path for path in tmp_path.rglob("*") if path.name != "mlflow.db"}
    learn.lr_find(num_it=10, show_plot=False)
    learn.validate()
    with pytest.raises(ZeroDivisionError):
        learn.fit(1, callbacks=[Fails])
    assert {path for path in tmp_path.rglob("*") if path.name != "mlflow.db"} == before
    assert kind != "mlflow" or mlflow_runs() == []


def test_a_second_learner_is_another_run(data, make, read):
    learn, log = new(data), make()
    new(data).fit(2, callbacks=[log])
    first = log.run
    learn.fit(1, callbacks=[log])
    assert log.run != first
    assert alike(read(log), held(learn))


# ---- each by itself ----------------------------------------------------------------------------


def test_tensorboard_has_settings_and_pictures(data, tmp_path):
    log = tensorboard_logger(tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    new(data).fit_one_cycle(1, 0.01, callbacks=[log])
    events = EventAccumulator(str(tmp_path / "runs" / log.run))
    events.Reload()
    assert events.Tags()["images"] == ["plots/losses", "plots/lr", "plots/metrics"]
    assert (
        b"fit_1.max_lr | 0.01"
        in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    )
    assert "_hparams_/experiment" in events.summary_metadata


def test_wandb_has_settings_pictures_and_axes(data, tmp_path):
    wandb = pytest.importorskip("wandb")
    log = wandb_logger(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        new(data).fit_one_cycle(2, 0.01, callbacks=[log, Halt(14)])
    assert wandb.run is None
    found = {}
    for record in wandb_records(last_wandb(tmp_path)):
        found.setdefault(record.WhichOneof("record_type"), []).append(record)
    assert found["exit"][0].exit.exit_code == 1
    assert "fit_1" in str(found)
    axes = {one.metric.name: one.metric.step_metric for one in found["metric"]}
    assert axes["step/loss"] == "step"
    assert axes["valid_loss"] == "epoch"
    pictures = {path.name.split("_")[0] for path in (tmp_path / "wandb").rglob("*.png")}
    assert pictures == {"losses", "lr", "metrics"}


def test_a_wandb_run_that_is_open_is_used_and_stays_open(data, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    learn, log = new(data), wandb_logger(tmp_path)
    with wandb.init(mode="offline", dir=str(tmp_path), config={"model": "mine"}) as run:
        run.log({"mine": 1})
        for _ in range(2):
            learn.fit(1, callbacks=[log])
            assert wandb.run is run
        assert run.config["model"] == "mine"
        assert run.config["onecycle"]["fit_2"]["method"] == "fit"
    assert {"mine": 1}.items() <= next(wandb_history(last_wandb(tmp_path))).items()
    assert alike(read_wandb(tmp_path, log.run), held(learn))


def test_mlflow_has_settings_pictures_and_status(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log, learn = mlflow_logger(tmp_path), new(data)
    import mlflow

    def run():
        return mlflow_runs(log.run)[0]

    learn.fit_one_cycle(1, 0.01, callbacks=[log])
    assert run().info.status == "FINISHED"
    assert run().data.params["fit_1.max_lr"] == "0.01"
    paths = [f.path for f in mlflow.MlflowClient().list_artifacts(run().info.run_id, "plots")]
    assert paths == ["plots/losses.png", "plots/lr.png", "plots/metrics.png"]
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, callbacks=[log, Halt(14)])
    assert run().info.status == "FAILED"
    assert run().data.params["fit_2.lr"] == "0.001"
    assert mlflow.active_run() is None


def test_an_mlflow_param_that_changes_is_a_tag(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log, learn = mlflow_logger(tmp_path), new(data)
    learn.fit(1, callbacks=[log])
    learn.model[0].requires_grad_(False)
    learn.fit(1, callbacks=[log])
    found = mlflow_runs(log.run)[0].data
    assert int(found.tags["trainable"]) < int(found.params["trainable"])


def test_an_mlflow_run_that_is_active_is_used_and_stays_active(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log, learn = mlflow_logger(tmp_path), new(data)
    import mlflow

    with mlflow.start_run() as run:
        for _ in range(2):
            learn.fit(1, callbacks=[log])
            assert mlflow.active_run().info.run_id == run.info.run_id
    assert alike(read_mlflow(tmp_path, log.run), held(learn))


def test_mlflow_takes_more_than_a_thousand_numbers_and_any_name(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = mlflow_logger(tmp_path)
    learn = Learner(data, mlp(), metrics={"acc@1 (%)": accuracy})
    learn.fit(39)
    learn.fit(1, callbacks=[log])
    found = read_mlflow(tmp_path, log.run)
    assert len(found["step/loss"]) == 400
    assert "acc_1 ___" in found
