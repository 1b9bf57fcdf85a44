"""What `epochs.py` measures: a function of (task, seed) for each part, which returns plain figures.

Every contender of a part starts from the same weights, data and order.
"""

import math
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from epochs_tasks import Split, Task

from onecycle import EMA, SWA, EarlyStopping, Learner, SaveBest, budget
from onecycle.budget import Curve
from onecycle.callback import Callback
from onecycle.epochs_finder import doublings
from onecycle.readout import ReadOut

Figures = dict[str, float]
Rows = dict[str, Figures]
Result = dict[str, Any]  # of one task and seed
Fit = Callable[[Learner], Any]
CHANCE = {"loss": math.log(10), "accuracy": 10.0}  # what a run that diverged counts as
HALF_LIVES = (0.02, 0.05, 0.1, 0.2)
DRAWS = 3


def trained(task: Task, seed: int, fit: Fit, **options: Any) -> Learner:
    """Return a learner after `fit`, without a word."""
    learn = task.learner(seed, **options)
    with learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fit(learn)
    return learn


def scores(learn: Learner, split: Split | None = None) -> Figures:
    """Loss and accuracy, in points, on validation data, or on what is held out of `split`."""
    found = learn.validate(split.held_out if split else None)
    return {"loss": found["valid_loss"], "accuracy": 100 * found["accuracy"]}


def epochs_of(learn: Learner) -> float:
    """The epochs that were trained, over all fits."""
    return len(learn.recorder.losses) / learn.steps_per_epoch


# ---- epoch_find against a grid of complete 1cycles ---------------------------------------------


def budgets(task: Task, seed: int) -> Result:
    """What each way chooses, and the grid that judges it."""
    sizes = doublings(8 * task.unit)
    split, seconds = task.data(seed), 0.0
    losses, points, held = [], [], []
    for epochs in sizes:
        start = time.process_time()
        learn = trained(task, seed, lambda one, n=epochs: one.fit_one_cycle(n, task.lr))
        seconds = time.process_time() - start
        read = ReadOut(learn)()
        losses.append(read["loss"])
        points.append(100 * float(read["accuracy"].mean()))
        held.append(scores(learn, split)["loss"])
    grid = Curve(sizes, losses)
    learn, fit = task.learner(seed), (sizes[-1], task.lr)
    with learn.no_logging():
        start = time.process_time()
        found = learn.epoch_find(*fit)
        took = time.process_time() - start
        both = learn.epoch_find(*fit, branches="all", n_seeds=2)
        double = learn.epoch_find(*fit, method="double")
        found.finish()
    annealed = Curve(sizes, both.annealed["loss"].values[0])
    within = budget.smallest_within_one_se
    grid_cost = sum(sizes) / sizes[-1]
    return {
        "sizes": sizes,
        "curves": {
            "complete 1cycles": grid.means.tolist(),
            "averaged": found.averaged["loss"].means.tolist(),
            "annealed": annealed.means.tolist(),
        },
        "held": held,
        "points": points,
        "time": took / seconds,
        "finished": scores(learn)["loss"] - float(grid.means[sizes.index(found.epochs)]),
        "chosen": {
            "epoch_find()": [found.epochs, found.cost],
            "its knee": [found.knee or sizes[-1], found.cost],
            "by annealed weights, all budgets": [within(annealed), both.cost / 2],
            "n_seeds=2": [both.epochs, both.cost],
            'metric="accuracy"': [within(found.averaged["accuracy"]), found.cost],
            'method="double"': [double.epochs, double.cost * max(double.judged.budgets) / fit[0]],
            "grid of one seed, within one SE": [within(grid), grid_cost],
            "grid of one seed, its best": [sizes[grid.best], grid_cost],
        },
    }


# ---- extend against a run that was planned -----------------------------------------------------


def extend(task: Task, seed: int) -> Result:
    """A run, and as much again, by every strategy."""
    n, lr = task.unit, task.lr

    def cycle(learn: Learner, *args: Any, **options: Any) -> None:
        learn.fit_one_cycle(n, lr)
        learn.extend(n, *args, **options)

    def wsd(learn: Learner, **options: Any) -> None:
        learn.fit_wsd(n, lr / 2)
        learn.extend(n, **options)

    ways: dict[str, Fit] = {
        f"planned {2 * n}": lambda one: one.fit_one_cycle(2 * n, lr),
        f"{n} alone": lambda one: one.fit_one_cycle(n, lr),
        "extend (trunk, cooldown 0.65)": cycle,
        **{
            f"trunk, cooldown {share}": partial(cycle, strategy="trunk", cooldown=share)
            for share in (0.2, 0.5, 0.8)
        },
        **{way: partial(cycle, strategy=way) for way in ("decay", "cycle", "constant")},
        f"fit_wsd, planned {2 * n}": lambda one: one.fit_wsd(2 * n, lr / 2),
        "fit_wsd, extend": wsd,
        "fit_wsd, extend, cooldown 0.2": partial(wsd, cooldown=0.2),
    }
    rows = {}
    for name, way in ways.items():
        learn = trained(task, seed, way)
        rows[name] = {**scores(learn), "epochs": epochs_of(learn)}
    return rows


# ---- early stopping, cycles, averages --------------------------------------------------------


def stopping(task: Task, seed: int) -> Result:
    """A long 1cycle that is stopped in every way; the scores are on what is held out."""
    n, split = 8 * task.unit, task.data(seed)

    def scored(fit: Fit) -> Figures:
        learn = trained(task, seed, fit)
        return {**scores(learn, split), "epochs": epochs_of(learn)}

    def with_(*callbacks: Callback) -> Figures:
        return scored(lambda one: one.fit_one_cycle(n, task.lr, callbacks=callbacks))

    with tempfile.TemporaryDirectory() as folder:
        best = with_(SaveBest(Path(folder) / "best.pt"))
    rows = {
        "plain stop": with_(EarlyStopping()),
        "stop, restore_best": with_(EarlyStopping(restore_best=True)),
        "cooldown": with_(EarlyStopping(on_trigger="cooldown")),
        "cooldown, restore_best": with_(EarlyStopping(on_trigger="cooldown", restore_best=True)),
        f"all {n}": with_(),
        f"all {n}, SaveBest": best,
    }
    for name in ("plain stop", "cooldown"):
        epochs = max(1, round(rows[name]["epochs"]))
        rows[f"1cycle as long as {name}"] = scored(
            lambda one, epochs=epochs: one.fit_one_cycle(epochs, task.lr)
        )
    return rows


def cycles(task: Task, seed: int) -> Result:
    """The same number of epochs in one cycle or in several."""
    total, rows = 4 * task.unit, {}
    for count in (1, 2, 4, 16):
        if total % count == 0:
            each = total // count
            fit = partial(_in_turn, count, each, task.lr)
            rows[f"{count} x {each}"] = scores(trained(task, seed, fit))
    return rows


def _in_turn(count: int, epochs: int, lr: float, learn: Learner) -> None:
    for _ in range(count):
        learn.fit_one_cycle(epochs, lr)


def averages(task: Task, seed: int) -> Result:
    """Averages of a flat run, and of 1cycles, of three lengths; a row has all three."""
    rows: Rows = {}
    for times in (1, 2, 4):
        n, flat = times * task.unit, task.lr / 2
        emas = [_named(EMA(share), f"ema{share}") for share in HALF_LIVES]
        run = trained(task, seed, partial(_fit_with, "fit", n, flat, [*emas, SWA()]))
        cycle = trained(task, seed, partial(_fit_with, "fit_one_cycle", n, task.lr, [EMA()]))
        swap = {"flat": (run, "")}
        swap |= {f"flat, EMA({share})": (run, f"ema{share}_") for share in HALF_LIVES}
        swap |= {"flat, SWA()": (run, "swa_"), "1cycle": (cycle, "")}
        swap |= {"1cycle, EMA()": (cycle, "ema_")}
        for name, (learn, prefix) in swap.items():
            last = learn.recorder.history[-1]
            row = rows.setdefault(name, {})
            row[f"loss {n}"] = last[f"{prefix}valid_loss"]
            row[f"accuracy {n}"] = 100 * last[f"{prefix}accuracy"]
    return rows


def _named(ema: EMA, prefix: str) -> EMA:
    """Give an EMA columns of its own, so that several average one run."""
    ema.prefix = prefix
    return ema


def _fit_with(way: str, n: int, lr: float, callbacks: list[Callback], learn: Learner) -> None:
    getattr(learn, way)(n, lr, callbacks=callbacks)


# ---- find --------------------------------------------------------------------------------------


def search(task: Task, seed: int) -> Result:
    """A search, and what its budget is good for otherwise; scores on what is held out."""
    n, split, rows = 2 * task.unit, task.data(seed), {}
    low, high = task.lr / 100, task.lr * 10
    space = {"max_lr": (low, high), "wd": (1e-5, 1e-1)}
    costs = []
    for backend in ("own", *(["optuna"] if find_spec("optuna") else [])):
        learn = task.learner(seed)
        with learn.no_logging():
            found = learn.find(space, n, seed=seed, backend=backend)
        costs.append(sum(row["epochs"] for row in found.table))
        name = f'find(backend="{backend}")'
        rows[name] = {**scores(found.learner, split), "epochs": costs[-1]}
    cost = costs[0]  # Optuna's depends on the seed

    def one(lr: float | None, epochs: int, extra: float = 0.0, **options: Any) -> Figures:
        try:
            learn = trained(task, seed, lambda it: it.fit_one_cycle(epochs, lr), **options)
            return {**scores(learn, split), "epochs": epochs + extra}
        except FloatingPointError:
            return {**CHANCE, "epochs": epochs + extra}

    draw = np.random.default_rng(seed)
    random = [
        (low * (high / low) ** draw.random(), 10 ** draw.uniform(-5, -1)) for _ in range(DRAWS)
    ]
    for epochs in (n, cost):
        runs = [one(lr, epochs, wd=wd) for lr, wd in random]
        rows[f"at random, {epochs} epochs"] = {
            key: float(np.mean([run[key] for run in runs])) for key in runs[0]
        }
    learn = task.learner(seed)
    with learn.no_logging():
        lr = float(learn.lr_find(show_plot=False))
    swept = 300 / learn.steps_per_epoch  # at most
    for epochs in (n, max(1, cost - math.ceil(swept))):
        rows[f"lr_find, {epochs} epochs"] = one(lr, epochs, swept)
    rows[f"by hand, {n} epochs"] = one(task.lr, n)
    return rows
