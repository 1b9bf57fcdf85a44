"""How `Learner.epoch_find` measures what runs of 1, 2, 4, ... epochs would reach.

The "trunk" is one run at a flat rate. At every budget a mean of its latest weights is read out,
which comes close to what an anneal would give; at some budgets a short anneal shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from onecycle import budget, generators, schedules, state
from onecycle import plan as plans
from onecycle.callback import Callback
from onecycle.callbacks.ema import EMA
from onecycle.callbacks.progress import SweepBar
from onecycle.callbacks.scheduler import OneCycleScheduler, ParamScheduler
from onecycle.data.reading import positioned_by
from onecycle.epochs_found import EpochFind, Measured
from onecycle.optimizers import has_momentum
from onecycle.readout import ReadOut
from onecycle.trunk import Trunk, copied

if TYPE_CHECKING:
    from onecycle.learner import Learner
    from onecycle.smoothing import Array
    from onecycle.trainer import Trainer

METHODS = ("trunk", "double")
BRANCHES = ("auto", "all", "none")
FLAT = 0.5  # of a 1cycle's peak, the rate at which a flat run is best (arXiv 2405.18392)
COOLDOWN = 0.125  # share of a budget that is annealed: all budgets together cost a quarter
SHORTEST = 3  # steps of an anneal: at the flat rate, at half of it, at 0
WARMUP = 0.05, 0.3  # share of the longest budget, but epochs at most
START = 25.0  # flat rate over the first
Values = dict[str, "Array"]
State = dict[str, Any]
Run = Callable[..., None]
Finish = Callable[[range, int, list[float], Callback, Trunk], None]


@dataclass(frozen=True)
class Options:
    """The options of `Learner.epoch_find`, checked.

    Attributes:
        budgets: epochs, the last is the largest.
        peaks: of a 1cycle, one for each layer group.
        branches: "auto", "all" or "none".
        target: value to reach of what decides.
        n_seeds: trunks.
    """

    budgets: list[int]
    peaks: list[float]
    branches: str
    target: float | None
    n_seeds: int

    @property
    def flat(self) -> list[float]:
        """Rates of the trunk."""
        return [FLAT * peak for peak in self.peaks]


def doublings(max_epochs: int) -> list[int]:
    """Return `max_epochs`, rising to it by doublings: a half of it, a quarter, ... down to 1.

    They are rounded down, so that together they are less than twice the last one.

    >>> doublings(8), doublings(12)
    ([1, 2, 4, 8], [1, 3, 6, 12])
    """
    return [max_epochs >> k for k in reversed(range(max_epochs.bit_length()))]


def reading(learn: Trainer, metric: str | None) -> ReadOut:
    """Return what reads out validation data by `metric`, None for the loss.

    Raises:
        ValueError: no validation data; a metric that is no mean over samples.
    """
    if learn.data.valid is None:
        raise ValueError("epoch_find reads out validation data, and this learner has none")
    return ReadOut(learn) if metric in (None, "loss", "valid_loss") else ReadOut(learn, metric)


def search(
    learn: Trainer, options: Options, read: ReadOut, method: str, finish: Finish
) -> EpochFind:
    """Measure as `Learner.epoch_find` says, and leave no trace in `learn`.

    Args:
        learn: whose model, data and optimizer are used.
        options: checked.
        read: reads out.
        method: "trunk" or "double".
        finish: trains on from a state that was kept, under a schedule, and stays.
    """
    measure = _by_doubling if method == "double" else _by_trunk
    return measure(learn, options, read, finish)


class Trunks(Callback):
    """Follows one trunk: reads it out at every budget, and keeps states to branch off from.

    As a callback it reads, as a saver (see `Loop`) it keeps.
    """

    in_validation = False
    first_step = 0

    def __init__(self, read: ReadOut, budgets: Sequence[int], ema: EMA, *, keep: bool) -> None:
        self.read, self.budgets, self.ema, self.keep = read, budgets, ema, keep
        last = budgets[-1]
        self.plan = plans.of_fit(read.learn, "epoch_find", range(last), last, [], None, None)
        self.values: dict[int, Values] = {}
        self.kept: dict[int, Trunk] = {}
        self.seconds = 0.0
        self._started = 0.0

    def on_epoch_begin(self, learn: Learner) -> None:  # noqa: ARG002
        """Start the clock."""
        self._started = time.perf_counter()

    def on_epoch_end(self, learn: Learner) -> None:
        """Read the averaged weights out."""
        self.seconds += time.perf_counter() - self._started
        if learn.epoch + 1 in self.budgets:
            with self.ema.applied(learn):
                self.values[learn.epoch + 1] = self.read()

    def begin(self, learn: Trainer, *, resumed: bool) -> None:
        """Nothing is to be kept yet."""

    def rest(self, learn: Trainer, *, epoch_over: bool, stopping: bool) -> None:  # noqa: ARG002
        """Keep the state where the anneal of a budget begins, if that is a place to go back to."""
        if not self.keep or (not epoch_over and positioned_by(learn.data.train) is None):
            return
        if not epoch_over and learn.last_batch:
            return  # the end of the epoch is the same place
        # Not `learn.step`, which stays behind where a batch was skipped.
        done = (learn.batch_index + 1) // learn.training_step.accumulate
        done = learn.steps_per_epoch if epoch_over else done
        done += learn.epoch * learn.steps_per_epoch
        for epochs in self.budgets:
            total = epochs * learn.steps_per_epoch
            # The last step trains at 0, so of one step nothing would come.
            if epochs not in self.kept and _anneal_begins(total) <= done <= total - 2:
                self.kept[epochs] = self._taken(learn, done / total, epoch_over)

    def _taken(self, learn: Trainer, progress: float, epoch_over: bool) -> Trunk:
        """Return the state, which is `progress` of a run from its beginning."""
        learn.training_step.guard.settle(learn)
        taken = state.capture(learn, epoch_over=epoch_over)
        # It is a run of this plan, and the callbacks of the trunk do not go on.
        taken["run"] |= {"plan": self.plan, "callbacks": []}
        inside = 1.0 if epoch_over else (learn.batch_index + 1) / learn.batches_per_epoch
        return Trunk(copied(taken), self.plan, learn.epoch + inside, progress, {}, {})

    def end(self, learn: Trainer) -> None:
        """Nothing is left to do."""


def _anneal_begins(total: int) -> int:
    """Return the step with which the anneal of a run of `total` steps begins.

    >>> _anneal_begins(80), _anneal_begins(10)
    (70, 7)
    """
    return max(1, min(round((1.0 - COOLDOWN) * total), total - SHORTEST))


def _by_trunk(learn: Trainer, options: Options, read: ReadOut, finish: Finish) -> EpochFind:
    budgets, last = options.budgets, options.budgets[-1]
    seeds = [_trunk(learn, options, read, seed) for seed in range(options.n_seeds)]
    chosen = _branched(budgets, [one.values for one in seeds], options, read)
    annealed = [_anneal(learn, options, read, one, chosen) for one in seeds]
    first = seeds[0]

    def go(epochs: int) -> None:
        if epochs not in first.kept:
            raise ValueError(
                f"epochs: of {epochs} nothing was kept to anneal from, because they are few steps "
                "or the data cannot be brought to a place within an epoch; call "
                f"fit_one_cycle({epochs}, {options.peaks[-1]!r})"
            )
        one = first.kept[epochs]
        scheduler = _cooldown(options.flat, one.progress)
        finish(range(int(one.epoch), epochs), epochs, options.flat, scheduler, one)

    trained = last + sum(b - first.kept[b].epoch for b in chosen if b in first.kept)
    return EpochFind(
        budgets,
        {
            name: Measured(
                np.stack([[one.values[b][name] for b in budgets] for one in seeds]),
                {b: np.stack([one[b][name] for one in annealed]) for b in annealed[0]},
                higher_is_better=higher,
            )
            for name, higher in read.higher.items()
        },
        lr=options.peaks[-1],
        by=read.by,
        weights=read.weights,
        target=options.target,
        seconds=first.seconds / last,
        cost=options.n_seeds * trained / last,
        finish=go,
    )


def _trunk(learn: Trainer, options: Options, read: ReadOut, seed: int) -> Trunks:
    """Train at a flat rate for the largest budget, aside."""
    last = options.budgets[-1]
    ema = EMA(buffers="copy")
    keep = options.branches != "none" or seed == 0
    trunk = Trunks(read, options.budgets, ema, keep=keep)
    rise = min(WARMUP[0], WARMUP[1] / last)
    flat = [
        schedules.join(schedules.linear(rate / START, rate), schedules.constant(rate), at=[rise])
        for rate in options.flat
    ]
    bar = _bar(learn, "epoch_find", last * learn.steps_per_epoch)
    callbacks = [ParamScheduler({"lr": flat}), ema, trunk, *bar]
    with learn.aside() as run:
        _reseed(learn, seed)
        run(range(last), last, callbacks, savers=[trunk], number=_number(learn, last, seed))
    return trunk


def _anneal(
    learn: Trainer, options: Options, read: ReadOut, trunk: Trunks, chosen: Sequence[int]
) -> dict[int, Values]:
    """Anneal a trunk to each of the `chosen` budgets, aside, and read out what comes of it."""
    found: dict[int, Values] = {}
    for epochs in chosen:
        if epochs not in trunk.kept:
            continue
        one = trunk.kept[epochs]
        scheduler = _cooldown(options.flat, one.progress)
        left = round((1.0 - one.progress) * epochs * learn.steps_per_epoch)
        callbacks = [scheduler, *_bar(learn, f"anneal to {epochs}", left)]
        with learn.aside() as run:
            run(range(int(one.epoch), epochs), epochs, callbacks, saved=one.load())
            found[epochs] = read()
    return found


def _by_doubling(learn: Trainer, options: Options, read: ReadOut, finish: Finish) -> EpochFind:
    """Train complete 1cycles of 1, 2, 4, ... epochs, until a doubling gains nothing."""
    del finish
    values: list[list[Values]] = []
    seconds, budgets = 0.0, []
    for epochs in options.budgets:
        began = time.perf_counter()
        values.append([_cycle(learn, options, read, epochs, k) for k in range(options.n_seeds)])
        seconds = (time.perf_counter() - began) / epochs / options.n_seeds
        budgets.append(epochs)
        higher = read.higher[read.by]
        stacked = _stacked(values, read.by)
        curve = budget.Curve(budgets, stacked, read.weights, higher_is_better=higher)
        if len(budgets) > 1 and curve.best != len(budgets) - 1:
            break
    measures = {
        name: Measured(_stacked(values, name), higher_is_better=higher)
        for name, higher in read.higher.items()
    }
    return EpochFind(
        budgets,
        measures,
        lr=options.peaks[-1],
        by=read.by,
        weights=read.weights,
        target=options.target,
        seconds=seconds,
        cost=options.n_seeds * sum(budgets) / budgets[-1],
        kind="cycle",
    )


def _cycle(learn: Trainer, options: Options, read: ReadOut, epochs: int, seed: int) -> Values:
    """Train one complete 1cycle, aside, and read it out."""
    moms = (0.95, 0.85) if has_momentum(learn.opt) else None
    bar = _bar(learn, f"1cycle of {epochs}", epochs * learn.steps_per_epoch)
    callbacks = [OneCycleScheduler(options.peaks, moms), *bar]
    with learn.aside() as run:
        _reseed(learn, seed)
        run(range(epochs), epochs, callbacks, number=_number(learn, options.budgets[-1], seed))
        return read()


def _branched(
    budgets: list[int], trunks: list[dict[int, Values]], options: Options, read: ReadOut
) -> list[int]:
    """Return the budgets to anneal: around the knee of the averaged weights, else the last two."""
    if options.branches != "auto":
        return budgets if options.branches == "all" else []
    stacked = np.stack([[one[b][read.by] for b in budgets] for one in trunks])
    higher = read.higher[read.by]
    knee = budget.knee(budget.Curve(budgets, stacked, read.weights, higher_is_better=higher))
    place = len(budgets) - 1 if knee is None else budgets.index(knee)
    return budgets[max(0, place - 1) : place + 2]


def _cooldown(rates: Sequence[float], border: float) -> ParamScheduler:
    """Return the rates, flat to `border`, a progress, and from there in a line down to 0."""
    return ParamScheduler(
        {
            "lr": [
                schedules.join(
                    schedules.constant(rate), schedules.linear(rate, 0.0), at=[min(border, 1.0)]
                )
                for rate in rates
            ]
        }
    )


def _stacked(values: list[list[Values]], name: str) -> Array:
    """Return (seeds, budgets, samples) of lists by budget and seed."""
    return np.stack([[of_seed[name] for of_seed in of_budget] for of_budget in values], axis=1)


def _number(learn: Trainer, last: int, seed: int) -> int:
    """Return the number of a trunk's first epoch: every seed has orders of its own."""
    return len(learn.recorder.history) + seed * last


def _reseed(learn: Trainer, seed: int) -> None:
    """Have a further seed draw other numbers: for orders, dropout, augmentation."""
    if seed:
        held = generators.found(learn.data.train, learn.modules)
        generators.reseed(held, int(torch.randint(1 << 31, (seed,))[-1]))


def _bar(learn: Trainer, label: str, steps: int) -> list[Callback]:
    return [SweepBar(label, steps)] if learn.display.bar else []
