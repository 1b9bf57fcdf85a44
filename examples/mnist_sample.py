"""The documents' table: 3s against 7s of MNIST, two epochs, constant rates against one cycle.

    python examples/mnist_sample.py                  # 10 seeds, about two minutes on two cores
    python examples/mnist_sample.py --pictures examples/images

fastai's documentation of the 1cycle policy trains simple_cnn((3, 16, 16, 2)) on MNIST_SAMPLE and
reports one run of each kind. This prints mean and standard deviation over seeds beside its figures.
The validation images here are the 3s and 7s of MNIST's test set, 2,038 as in MNIST_SAMPLE; whether
they are the very same ones the documents do not say.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from onecycle import DataLoaders, Learner, accuracy, data, models
from onecycle.schedules import one_cycle, repeat

adamw = partial(torch.optim.AdamW, betas=(0.9, 0.99))
RUNS: dict[str, Callable[[Learner], None]] = {
    "fit(2, 5e-2)": lambda learn: learn.fit(2, 5e-2),
    "fit(2, 5e-3)": lambda learn: learn.fit(2, 5e-3),
    "fit_one_cycle(2, 5e-2)": lambda learn: learn.fit_one_cycle(2, 5e-2),
}
REPORTED = {
    "fit(2, 5e-2)": (0.0363, 98.97),
    "fit(2, 5e-3)": (0.0457, 98.28),
    "fit_one_cycle(2, 5e-2)": (0.0229, 99.07),
}


def threes_and_sevens(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 3s as class 0 and the 7s as class 1, in three equal channels."""
    chosen = (y == 3) | (y == 7)
    return x[chosen].expand(-1, 3, -1, -1).contiguous(), (y[chosen] == 7).long()


def load(name: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    whole = data.DATA_SETS[name]()
    assert isinstance(whole.train, data.InMemoryLoader)
    assert isinstance(whole.valid, data.InMemoryLoader)
    train, valid = (threes_and_sevens(*part.tensors) for part in (whole.train, whole.valid))
    print(f"{name}: {len(train[0]):,} training images, {len(valid[0]):,} for validation")
    return train, valid


def train_one(
    run: Callable[[Learner], None],
    seed: int,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
) -> Learner:
    torch.manual_seed(seed)
    loaders = DataLoaders.from_tensors(*train, valid=valid, batch_size=64, seed=seed)
    model = models.simple_cnn((3, 16, 16, 2))
    learn = Learner(loaders, model, opt_func=adamw, metrics=[accuracy], wd=0.01)
    with learn.no_logging():
        run(learn)
    return learn


def table(results: dict[str, np.ndarray]) -> None:
    """Print mean, deviation and range over the seeds beside the documents' one run."""
    seeds = len(next(iter(results.values())))
    print(f"\nafter two epochs, {seeds} seeds")
    print(f"{'':36}{'mean':>8} +- {'sd':6}{'lowest':>8}{'highest':>9}{'fastai':>8}")
    for column, (name, digits) in enumerate({"valid_loss": 4, "accuracy, %": 2}.items()):
        for run, values in results.items():
            ours, theirs = values[:, column] * (1, 100)[column], REPORTED[run][column]
            spread = ours.std(ddof=1) if seeds > 1 else 0.0
            low, high = ours.min(), ours.max()
            verdict = "within" if low <= theirs <= high else "outside of"
            numbers = f"{ours.mean():9.{digits}f} +- {spread:<6.{digits}f}{low:8.{digits}f}"
            print(f"{name:12}{run:23}{numbers}{high:9.{digits}f}{theirs:8.{digits}f}", end="  ")
            print(f"{verdict} our range")


def pictures(folder: Path, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> None:
    """Draw the sweep and the schedules of the first seed, for the README."""
    folder.mkdir(parents=True, exist_ok=True)
    learn = train_one(lambda learn: print(f"lr_find: {learn.lr_find()!r}"), 0, train, valid)
    learn.recorder.plot()
    plt.savefig(folder / "lr_find.png", dpi=90)
    both = {"one cycle of 20": None, "20 cycles of one": repeat(one_cycle(), 20)}
    learn.plot_schedule(20, 5e-2, both)
    plt.savefig(folder / "one_of_twenty.png", dpi=80)
    with learn.no_logging():
        learn.fit_one_cycle(2, 5e-2)
    learn.recorder.plot_lr(show_moms=True)
    plt.savefig(folder / "schedule.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description="Reproduce the documents' table.")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each kind (default: 10)")
    parser.add_argument("--data", default="mnist", choices=["mnist", "digits"])
    parser.add_argument("--pictures", type=Path, help="folder for lr_find.png and schedule.png")
    options = parser.parse_args()
    train, valid = load(options.data)
    if options.pictures:
        mpl.use("Agg")
        pictures(options.pictures, train, valid)
    results = {}
    for name, run in RUNS.items():
        learners = [train_one(run, seed, train, valid) for seed in range(options.seeds)]
        rows = [learn.recorder.history[-1] for learn in learners]
        results[name] = np.array([[row["valid_loss"], row["accuracy"]] for row in rows])
    table(results)


if __name__ == "__main__":
    main()
