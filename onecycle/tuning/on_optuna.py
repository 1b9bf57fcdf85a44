"""`Learner.find` on Optuna: its sampler proposes, its pruner is told at the end of a rung only.

A loss in the middle of a cycle, at a high learning rate, says nothing about the end of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from onecycle.tuning.space import Choices, Interval, Params, Space, described, draw, epochs_of

if TYPE_CHECKING:
    from onecycle.tuning.field import Field

PLAIN = (bool, int, float, str)  # what Optuna stores as a choice; None, too
Plan = list[tuple[int, int]]


@contextmanager
def quiet() -> Iterator[None]:
    """Let Optuna show warnings only."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def trials(space: Space, n: int) -> int:
    """Return how many trials there are: `n`, or the size of a grid that is smaller.

    >>> trials({"wd": Choices([0, 0.1])}, 9)
    2
    """
    return min(n, len(draw(space, n, seed=0)))


def study_for(
    space: Space,
    plan: Plan,
    eta: int,
    seed: int,
    higher: bool,
    given: Any = None,
) -> Any:
    """Return a study by TPE and successive halving, or the one given.

    The first trials are spread evenly, a grid that is no larger than the search is all of them.

    Raises:
        TypeError: `given` is no study.
        ValueError: it goes in the other direction.
    """
    import optuna

    direction: Literal["maximize", "minimize"] = "maximize" if higher else "minimize"
    if given is not None:
        if not isinstance(given, optuna.Study):
            raise TypeError(f"study must be an optuna.Study, got {given!r}")
        if [one.name.lower() for one in given.directions] != [direction]:
            raise ValueError(
                f"study must {direction}: optuna.create_study(direction={direction!r})"
            )
        return given
    n = plan[0][0]
    grid = all(isinstance(part, Choices) for part in space.values())
    first = draw(space, n, seed) if grid else draw(space, max(1, n // eta), seed)
    with quiet():
        study = optuna.create_study(
            direction=direction,
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=len(first)),
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=plan[0][1], reduction_factor=eta
            ),
        )
        for params in first:
            study.enqueue_trial({name: _stored(space[name], v) for name, v in params.items()})
    return study


def climb(field: Field, study: Any, plan: Plan) -> None:
    """Take every trial up the rungs, as far as the study's pruner lets it."""
    n, lengths = plan[0][0], [length for _, length in plan]
    steps = ", ".join(map(epochs_of, lengths))
    field.say(
        f"{n} configurations by Optuna, complete cycles of {steps}; at least "
        f"{n * lengths[0]}, at most {epochs_of(n * sum(lengths))} in all, as its pruner decides"
    )
    with quiet():
        for number in range(1, n + 1):
            trial = study.ask()
            params = {name: _proposed(trial, name, part) for name, part in field.space.items()}
            rung, value = _climb(field, study, trial, number, params, lengths)
            field.say(
                f"trial {number} of {n}, {described(params)}: {field.metric} {value:.4g} after "
                f"{epochs_of(lengths[rung - 1])}{', pruned' * (rung < len(lengths))}"
            )
    best = min(field.table, key=lambda row: (-row["rung"], field.cost(row)))
    best["kept"] = field.is_good(best)


def _climb(
    field: Field, study: Any, trial: Any, number: int, params: Params, lengths: list[int]
) -> tuple[int, float]:
    """Return the last rung and the value there; whatever happens, the study is told."""
    from optuna.trial import TrialState

    try:
        for rung, length in enumerate(lengths, start=1):
            row = field.train(number, params, rung, length)
            value = field.sign * field.cost(row)
            trial.report(value, step=length)
            last = rung == len(lengths)
            if not last and (not field.is_good(row) or trial.should_prune()):
                study.tell(trial, state=TrialState.PRUNED)
                break
            row["kept"] = not last
        else:
            study.tell(trial, value)
    except BaseException:
        study.tell(trial, state=TrialState.FAIL)
        raise
    return rung, value


def _proposed(trial: Any, name: str, part: Interval | Choices) -> Any:
    """Return what Optuna proposes for one name."""
    if isinstance(part, Interval):
        return trial.suggest_float(name, part.low, part.high, log=part.log)
    if isinstance(part.values, range):
        low, high = part.values[0], part.values[-1]
        return trial.suggest_int(name, low, high, step=part.values.step)
    labels = {_stored(part, value): value for value in part.values}
    return labels[trial.suggest_categorical(name, list(labels))]


def _stored(part: Interval | Choices, value: Any) -> Any:
    """Return how Optuna is to store a value: a choice that it cannot as its repr."""
    plain = isinstance(part, Interval) or all(type(v) in PLAIN or v is None for v in part.values)
    return value if plain else repr(value)
