"""Ray Tune over a Learner: trials side by side, ended early by complete cycles only.

    pip install "onecycle[ray]"
    python examples/tune_ray.py                 # 12 trials, two at a time
    python examples/tune_ray.py --smoke         # 2 trials

A trial trains by cycles of 1, 3 and 9 epochs, each from the start; `RayReport` tells Ray what each
of them ends with, and gives it the model. ASHA goes by the epoch of a report, and has a trial end
after the shorter cycles unless it is among the best third there. The model of the best checkpoint
is loaded here, and validated.

Reached: 12 trials in 78 epochs, where 12 cycles of 9 would take 108, in a minute on two cores; the
best had a validation loss of 0.053 and an accuracy of 98.9 %. The first trials of ASHA always go
on, as there is nothing yet to compare them with, so it saves more the more trials there are.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from torch import nn

from onecycle import Learner, RayReport, accuracy, data


def make_learner(width: int) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    return Learner(data.digits(), model, metrics=[accuracy])


def train(config: dict[str, Any]) -> None:
    """Train one configuration, rung by rung, in a process of Ray's."""
    torch.set_num_threads(1)  # a trial has one CPU
    for epochs in config["rungs"]:
        learn = make_learner(config["width"])
        report = RayReport(checkpoint=True)
        with learn.no_logging():
            learn.fit_one_cycle(epochs, config["lr"], wd=config["wd"], callbacks=[report])


def search(trials: int, rungs: Sequence[int], folder: str) -> tune.ResultGrid:
    asha = ASHAScheduler("epoch", grace_period=rungs[0], reduction_factor=3, max_t=rungs[-1])
    space = {
        "lr": tune.loguniform(1e-4, 1.0),
        "wd": tune.loguniform(1e-4, 1.0),
        "width": tune.choice([16, 32, 64, 128, 256]),
        "rungs": list(rungs),
    }
    how = tune.TuneConfig(metric="valid_loss", mode="min", scheduler=asha, num_samples=trials)
    where = tune.RunConfig(storage_path=folder, verbose=0)
    return tune.Tuner(train, param_space=space, tune_config=how, run_config=where).fit()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Search by Ray Tune over complete cycles.")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--cpus", type=int, default=2, help="trials at a time (default: 2)")
    parser.add_argument("--smoke", action="store_true", help="2 trials, 2 short rungs")
    options = parser.parse_args(argv)
    rungs, trials = ((1, 2), 2) if options.smoke else ((1, 3, 9), options.trials)
    ray.init(num_cpus=options.cpus, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        found = search(trials, rungs, folder)
        print(f"\n{'lr':>8}{'wd':>9}{'width':>7}{'epochs':>8}{'valid_loss':>12}{'accuracy':>10}")
        for one in found:
            row, own = one.metrics or {}, one.config or {}
            print(f"{own['lr']:8.1e}{own['wd']:9.1e}{own['width']:7}{row['epoch']:8}", end="")
            print(f"{row['valid_loss']:12.4f}{row['accuracy']:10.2%}")
        trained = sum(sum(rung for rung in rungs if rung <= one.metrics["epoch"]) for one in found)
        print(f"{trained} epochs of training; {trials} cycles of {rungs[-1]} would take", end=" ")
        print(trials * rungs[-1])
        best = found.get_best_result(scope="all")
        learn = make_learner(best.config["width"])
        with best.checkpoint.as_directory() as saved:
            learn.load(Path(saved) / "learner.pt")
        print(f"the best, loaded from its checkpoint: {learn.validate()}")
    ray.shutdown()


if __name__ == "__main__":
    main()
