"""How `Learner.find` searches: by complete cycles, of which the better go on to longer ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from onecycle import checks
from onecycle.metrics import higher_is_better
from onecycle.tuning import on_optuna
from onecycle.tuning.field import Field
from onecycle.tuning.search import Row, Search
from onecycle.tuning.space import Params, described, draw, epochs_of, parse

if TYPE_CHECKING:
    from onecycle.learner import Learner

BACKENDS = ("own", "optuna")


def rungs(n: int, epochs: int, eta: int = 3, min_epochs: int = 1) -> list[tuple[int, int]]:
    """Return how many configurations are trained for how many epochs, rung by rung.

    The last rung is of `epochs`, each before it of 1 / `eta` as many epochs, rounded, and of `eta`
    times as many configurations: as many rungs as `n` and `min_epochs` allow. Between the first and
    the last no step is shorter than `eta`, as asynchronous halving expects.

    Source: successive halving, Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943.

    >>> rungs(9, 8), rungs(4, 100, eta=2)
    ([(9, 1), (3, 3), (1, 8)], [(4, 25), (2, 50), (1, 100)])
    """
    lengths = [epochs]
    while n >= eta ** len(lengths):
        shorter = round(epochs / eta ** len(lengths))
        if not min_epochs <= shorter < lengths[0]:
            break
        lengths.insert(0, shorter)
    between = [max(length, lengths[0] * eta**k) for k, length in enumerate(lengths[:-1])]
    return [(n // eta**k, length) for k, length in enumerate([*between, epochs])]


@dataclass(frozen=True)
class Options:
    """The options of `Learner.find`, in their order."""

    n: int
    eta: int
    min_epochs: int
    metric: str | None
    mode: str | None
    make: Callable[..., Learner] | None
    seed: int
    backend: str | None
    study: Any

    def check(self, epochs: int) -> None:
        """Refuse numbers out of their range."""
        checks.integer("epochs", epochs)
        checks.integer("n", self.n)
        checks.integer("eta", self.eta, low=2)
        checks.integer("min_epochs", self.min_epochs, high=epochs)
        checks.integer("seed", self.seed, low=0, high=2**32 - 1)


def search(
    learn: Learner, space: Any, epochs: int, options: Options, rate: Callable[[], Any]
) -> Search:
    """Search as `Learner.find` says, and leave no trace in `learn`.

    Args:
        learn: whose twins are trained.
        space: as the user gave it.
        epochs: of the last rung.
        options: the others.
        rate: returns the peak where the space has none.
    """
    learn.loop.require_rest()
    options.check(epochs)
    n, eta, seed, study = options.n, options.eta, options.seed, options.study
    parts = parse(space)
    metric = options.metric or "valid_loss"
    if options.make is None:
        require_column(metric, learn)
    higher = is_higher_better(metric, options.mode, learn.metrics)
    field = Field(learn, parts, options.make, metric, higher, seed)
    if chosen(options.backend, study) == "own":
        configurations = draw(parts, n, seed)
        plan = rungs(len(configurations), epochs, eta, options.min_epochs)
        run = partial(halve, field, configurations, plan)
    else:
        n = on_optuna.trials(parts, n)
        plan = rungs(n, epochs, eta, options.min_epochs)
        study = on_optuna.study_for(parts, plan, eta, seed, higher, study)
        run = partial(on_optuna.climb, field, study, plan)
    if options.make is None and not {"lr", "max_lr"} & parts.keys():
        field.fixed = {"max_lr": rate()}
        field.say(f"max_lr is {float(field.fixed['max_lr']):.2e}, of lr_find")
    interrupted = False
    try:
        run()
    except KeyboardInterrupt:
        if field.learner is None:
            raise
        interrupted = True
        learn.say("find: interrupted; this is what was found so far")
    if field.learner is None:
        raise ValueError(
            f"space: no configuration ended with a finite {metric}; try lower learning rates, or "
            "see whether fit_one_cycle works at all with this learner"
        )
    lengths = [length for _, length in plan]
    found = Search(field.table, parts, field.learner, lengths, metric, higher, study, interrupted)
    learn.say(f"find: {found!r}")
    return found


def require_column(metric: Any, learn: Learner) -> None:
    """Refuse a metric that the rows of a learner will not have."""
    known = ["valid_loss", "train_loss", *learn.metrics]
    if metric not in known:
        near = difflib.get_close_matches(str(metric), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"metric must be one of {', '.join(known)}, got {metric!r}{hint}")


def halve(field: Field, configurations: Sequence[Params], plan: list[tuple[int, int]]) -> None:
    """Train all configurations by the first rung, and the best of each by the next."""
    field.say(cost_line(plan))
    leaders = list(enumerate(configurations, start=1))
    for rung, (_, length) in enumerate(plan, start=1):
        rows = [field.train(number, params, rung, length) for number, params in leaders]
        good = sorted((row for row in rows if field.is_good(row)), key=field.cost)
        going = good[: 1 if rung == len(plan) else plan[rung][0]]
        if going:
            field.say(rung_line(rows, going, good, field))
        for row in going:
            row["kept"] = True
        # The best comes first, so that a search that is broken off has it.
        params_of = dict(leaders)
        leaders = [(row["trial"], params_of[row["trial"]]) for row in going]


def cost_line(plan: Sequence[tuple[int, int]]) -> str:
    """Return what a search will cost.

    >>> cost_line([(9, 1), (3, 3), (1, 8)])
    'complete cycles: 9 of 1 epoch, 3 of 3 epochs, 1 of 8 epochs; 26 epochs in all'
    """
    cost = sum(count * length for count, length in plan)
    steps = ", ".join(f"{count} of {epochs_of(length)}" for count, length in plan)
    return f"complete cycles: {steps}; {epochs_of(cost)} in all"


def rung_line(rows: list[Row], going: list[Row], good: list[Row], field: Field) -> str:
    """Return what came of a rung."""
    best, seconds = going[0], sum(row["seconds"] for row in rows)
    params = described({name: best[name] for name in field.space})
    bad = f", {len(rows) - len(good)} diverged" if len(good) < len(rows) else ""
    return (
        f"{epochs_of(best['epochs'])}: best {field.metric} {best[field.metric]:.4g} by {params}; "
        f"{len(going)} of {len(rows)} kept{bad}, {seconds:.0f} s"
    )


def is_higher_better(metric: str, mode: str | None, metrics: Mapping[str, Any]) -> bool:
    """Return whether more of a metric is better: as `mode` says, or the metric itself.

    Raises:
        ValueError: neither of them says.

    >>> is_higher_better("valid_loss", None, {})
    False
    """
    if not isinstance(metric, str):
        raise TypeError(f"metric must be the name of a metric, got {metric!r}")
    if mode is not None:
        return checks.choice("mode", mode, ("min", "max")) == "max"
    known = higher_is_better(metrics.get(metric))
    if known is None and not metric.endswith("loss"):
        raise ValueError(f'mode must be "max" or "min": nothing says which {metric!r} is better')
    return bool(known)


def chosen(backend: str | None, study: Any = None) -> str:
    """Return who searches: Optuna where it is installed, unless "own" is asked for.

    Raises:
        ValueError: another name, or a study and no Optuna to use it.
        ImportError: Optuna is asked for and not installed.
    """
    if backend is not None:
        checks.choice("backend", backend, BACKENDS)
    installed = find_spec("optuna") is not None
    if study is not None and backend == "own":
        raise ValueError('study is for Optuna, leave it out with backend="own"')
    if backend == "optuna" and not installed:
        raise ImportError('backend="optuna" needs Optuna: pip install "onecycle[tune]"')
    return backend or ("optuna" if installed else "own")
