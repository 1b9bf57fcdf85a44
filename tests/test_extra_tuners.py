"""RayReport in real Ray Tune and Ray Train, and OptunaReport in two processes."""

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from onecycle import Learner, OptunaReport, RayReport, data

pytestmark = [
    pytest.mark.extra,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


def make_learner():
    torch.manual_seed(0)
    digits = data.digits(batch_size=256)
    return Learner(digits, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


@pytest.fixture(scope="module")
def ray():
    """Ray in this machine, with two CPUs and little else."""
    module = pytest.importorskip("ray")
    pytest.importorskip("ray.tune")
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["make_learner"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        module.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield module
        module.shutdown()


def test_a_trial_of_tune_reports_complete_cycles_with_their_checkpoints(ray, tmp_path):
    from ray import tune

    def train(config):
        for epochs in config["rungs"]:
            learn = make_learner()
            learn.fit_one_cycle(epochs, 0.01, callbacks=[RayReport(checkpoint=True)])

    tuner = tune.Tuner(
        train,
        param_space={"rungs": [1, 3]},
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    (result,) = tuner.fit()
    assert result.error is None
    table = result.metrics_dataframe
    assert table["epoch"].tolist() == [1, 3]
    assert {"train_loss", "valid_loss", "lr"} <= set(table)
    with result.checkpoint.as_directory() as folder:
        learn = make_learner().load(Path(folder) / "learner.pt")
    assert learn.validate()["valid_loss"] == pytest.approx(table["valid_loss"].iloc[-1])


def test_all_workers_of_train_report_and_the_first_gives_the_checkpoint(ray, tmp_path):
    from ray import train
    from ray.train.torch import TorchTrainer

    def work():
        learn = make_learner()
        learn.fit(2, 0.01, callbacks=[RayReport(checkpoint=True)])

    result = TorchTrainer(
        work,
        scaling_config=train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=train.RunConfig(storage_path=str(tmp_path)),
    ).fit()
    assert result.error is None
    assert result.metrics["epoch"] == 2
    with result.checkpoint.as_directory() as folder:
        assert [path.name for path in Path(folder).iterdir()] == ["learner.pt"]


def test_where_ray_does_not_run_nothing_is_reported_and_a_line_says_so(capsys, monkeypatch):
    pytest.importorskip("ray.train")
    monkeypatch.delenv("ONECYCLE_PROGRESS")
    make_learner().fit(1, 0.01, callbacks=[RayReport])
    assert "nothing is reported" in capsys.readouterr().out


def prune_in(rank, file):
    import optuna

    distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    trial = None
    if rank == 0:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        trial = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0.0)).ask()
    learn = make_learner()
    with pytest.raises(optuna.TrialPruned):
        learn.fit(3, 0.01, callbacks=[OptunaReport(trial)])
    assert len(learn.recorder.history) == 1
    distributed.destroy_process_group()


def test_where_the_first_of_two_processes_has_the_trial_both_end_by_it(tmp_path):
    multiprocessing.spawn(prune_in, (tmp_path / "meeting",), nprocs=2)
