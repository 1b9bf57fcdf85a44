"""What `Learner.lr_find` returns: a float that knows its curve, and an overlay of several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onecycle import plot_lr_find, suggest
from onecycle.smoothing import Array
from onecycle.suggest import Suggestion
from onecycle.tables import html_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LRFind(float):
    """The result of a sweep: the suggested learning rate, a float that knows its curve.

    It is nan when there is no descent; `reason` says why, and `Learner.fit_one_cycle` refuses it
    with that sentence.

    Args:
        lrs: the learning rates that were tried, rising.
        sweeps: the raw training loss of each step; the last may be not finite. Of several sweeps
            over the same rates, which may be shorter than the longest, the median is judged.
        closeup: a second sweep over the rates that matter, which is judged instead.

    Attributes:
        lrs: the learning rates.
        losses: the loss at each; of several sweeps the median.
        sweeps: the losses of each sweep.
        closeup: the closer look, itself an `LRFind`, or None.
        suggestion: number, band, confidence and landmarks together.

    >>> LRFind([0.1], [2.3]).confidence
    'none'
    """

    lrs: Array
    losses: Array
    sweeps: tuple[Array, ...]
    closeup: LRFind | None = None
    suggestion: Suggestion
    _width: float

    def __new__(cls, lrs: Any, *sweeps: Any, closeup: LRFind | None = None) -> LRFind:
        """Judge the curve."""
        if not sweeps:
            raise ValueError("sweeps must hold the losses of at least one sweep")
        rows = tuple(np.asarray(row, dtype=np.float64) for row in sweeps)
        losses = rows[0] if len(rows) == 1 else suggest.pooled(rows)
        judged = own = suggest.suggest(lrs, losses)
        if closeup is not None:
            judged = suggest.refined(own, closeup.suggestion, lrs)
        elif len(rows) > 1:
            judged = suggest.agreed(judged, [suggest.suggest(lrs[: len(r)], r) for r in rows])
        self = super().__new__(cls, judged.lr)
        self.lrs = np.asarray(lrs, dtype=np.float64)
        self.losses = losses
        self.sweeps = rows
        self.closeup = closeup
        self.suggestion = judged
        self._width = own.width
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copy and pickle by the curves."""
        return (self.lrs, *self.sweeps), {"closeup": self.closeup}

    @property
    def band(self) -> tuple[float, float]:
        """From half of the suggestion to a third of the divergence: rates that cost little."""
        return self.suggestion.band

    @property
    def confidence(self) -> str:
        """Return "high", "low" or "none"."""
        return self.suggestion.confidence

    @property
    def reason(self) -> str:
        """Why the confidence is not high, or why nothing was swept, in a sentence."""
        return self.suggestion.reason

    @property
    def points(self) -> dict[str, float]:
        """The learning rates of the landmarks, by name; nan where there is none.

        "onset", a tenth of the descent is done; "steepest"; "settled", 95 % are done;
        "minimum"; "divergence", a quarter of the descent is lost again.
        """
        return self.suggestion.points

    @property
    def smoothed(self) -> Array:
        """The losses without their noise and explosion, up to the first that is not finite."""
        lrs, losses = suggest.finite_prefix(self.lrs, self.losses)
        if len(lrs) < 2 or lrs[0] <= 0:
            return losses
        return suggest.smooth(lrs, suggest.capped(losses), self._width)

    @property
    def judged(self) -> LRFind:
        """The sweep that the suggestion is read off: the closer look where there is one."""
        return self if self.closeup is None else self.closeup

    @property
    def curve(self) -> dict[str, Array]:
        """All steps as columns of one length, for a DataFrame: sweep (1, 2), lr, loss, smoothed."""
        sweeps = [self] if self.closeup is None else [self, self.closeup]
        return _stacked("sweep", {k: _columns(one) for k, one in enumerate(sweeps, start=1)})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the curve, the suggestion and its band; return the axes."""
        return plot_lr_find.sweep(self, ax)

    def __repr__(self) -> str:
        """Return the suggestion, its band and how far to trust it."""
        name = type(self).__name__
        if math.isnan(self):
            return f"{name}(nan: {self.reason})"
        low, high = self.band
        text = f"{float(self):.2e}, band {low:.1e} to {high:.1e}, confidence {self.confidence}"
        return f"{name}({text}: {self.reason})" if self.reason else f"{name}({text})"

    def __str__(self) -> str:
        """Return the number alone."""
        return float.__repr__(self)

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        low, high = self.band
        rows = [("suggestion", f"{float(self):.2e}"), ("band", f"{low:.1e} to {high:.1e}")]
        rows = [("suggestion", "none")] if math.isnan(self) else rows
        rows += [("confidence", self.confidence)] + [("because", self.reason)] * bool(self.reason)
        rows += [(name, f"{lr:.1e}") for name, lr in self.points.items() if math.isfinite(lr)]
        return html_table(rows, kind="onecycle-lr-find")


def _columns(found: LRFind) -> dict[str, Array]:
    """The learning rates, losses and smoothed losses of one sweep, of one length."""
    smoothed = np.full(len(found.lrs), math.nan)
    smoothed[: len(found.smoothed)] = found.smoothed
    return {"lr": found.lrs, "loss": found.losses, "smoothed": smoothed}


def _stacked(name: str, parts: Mapping[float, dict[str, Array]]) -> dict[str, Array]:
    """Columns of several parts, one below the other, and the key of each part as a column."""
    keys = [np.full(len(part["lr"]), key) for key, part in parts.items()]
    first = next(iter(parts.values()))
    columns = {
        column: np.concatenate([part[column] for part in parts.values()]) for column in first
    }
    return {name: np.concatenate(keys), **columns}


class LRRace(LRFind):
    """The result of `lr_find(method="race")`: which of a few learning rates trains best.

    Args:
        rounds: for each round, the validation loss by learning rate; the steps of a cycle double
            from one to the next.
        start: the validation loss before any training.
        steps: of a cycle of the first round.

    The float is the winner of the last round. `curve` has the columns lr, steps and valid_loss.

    >>> LRRace([{0.01: 1.2, 0.1: 0.9, 1.0: 2.3}, {0.1: 0.5}], start=2.3, steps=50)
    LRRace(1.00e-01, band 1.0e-01 to 1.0e-01, confidence high)
    """

    rounds: tuple[dict[float, float], ...]
    start: float
    steps: int

    def __new__(cls, rounds: Sequence[Mapping[float, float]], start: float, steps: int) -> LRRace:
        """Judge the rounds."""
        judged = suggest.race(rounds, start)
        self = float.__new__(cls, judged.lr)
        self.rounds = tuple(dict(sorted(entries.items())) for entries in rounds)
        self.start, self.steps, self.suggestion = start, steps, judged
        self.lrs = np.asarray([lr for entries in self.rounds for lr in entries])
        self.losses = np.asarray([loss for entries in self.rounds for loss in entries.values()])
        self.sweeps = (self.losses,)
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copy and pickle by the rounds."""
        return (self.rounds, self.start, self.steps), {}

    @property
    def smoothed(self) -> Array:
        """The losses as they are."""
        return self.losses

    @property
    def curve(self) -> dict[str, Array]:
        """The entries of all rounds as columns of one length: lr, steps and valid_loss."""
        steps = [self.steps * 2**k for k, entries in enumerate(self.rounds) for _ in entries]
        return {"lr": self.lrs, "steps": np.asarray(steps, float), "valid_loss": self.losses}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the validation loss of every cycle against its learning rate; return the axes."""
        return plot_lr_find.race(self, ax)


class LRRangeTest(LRFind):
    """The result of `lr_find(method="linear")`: a score while the learning rate rises linearly.

    Args:
        lrs: the learning rates at which the score was taken, rising.
        scores: the higher, the better.
        name: of the score.

    The float is where 95 % of the rise of the smoothed score are done. `curve` has the columns lr,
    the score by its name, and smoothed.

    >>> lrs = np.linspace(0, 1, 30)
    >>> 0.3 < LRRangeTest(lrs, 1 - (lrs - 0.5) ** 2, "accuracy") < 0.5
    True
    """

    name: str

    def __new__(cls, lrs: Any, scores: Any, name: str) -> LRRangeTest:
        """Judge the scores."""
        judged = suggest.range_test(lrs, scores)
        self = float.__new__(cls, judged.lr)
        self.name, self.suggestion = name, judged
        self.lrs, self.losses = (np.asarray(v, dtype=np.float64) for v in (lrs, scores))
        self.sweeps = (self.losses,)
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copy and pickle by the scores."""
        return (self.lrs, self.losses, self.name), {}

    @property
    def smoothed(self) -> Array:
        """The scores without their noise, up to the first that is not finite."""
        return suggest.smooth_linear(*suggest.finite_prefix(self.lrs, self.losses))

    @property
    def curve(self) -> dict[str, Array]:
        """The scores as columns of one length: lr, the score and smoothed."""
        columns = _columns(self)
        return {"lr": columns["lr"], self.name: columns["loss"], "smoothed": columns["smoothed"]}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the score against the learning rate; return the axes."""
        return plot_lr_find.range_test(self, ax)


class LRStated(LRFind):
    """The result of `lr_find` where a sweep has nothing to say: for Prodigy, D-Adaptation and such.

    These find the scale of their steps while they train, and the rate is a factor of it. Whatever
    the rate of a sweep, they would adapt to it, so none is held: the factor is stated.

    Args:
        lr: the rate to take; nan for none.
        reason: what is stated, in a sentence.

    >>> LRStated(1.0, "Prodigy sets its own scale")
    LRStated(1.00e+00, band 1.0e+00 to 1.0e+00, confidence high: Prodigy sets its own scale)
    """

    def __new__(cls, lr: float, reason: str) -> LRStated:
        """Keep the statement; there is no curve."""
        self = super().__new__(cls, [], [])
        stated = float.__new__(cls, lr)
        vars(stated).update(vars(self))
        confidence = "none" if math.isnan(lr) else "high"
        stated.suggestion = Suggestion(lr, (lr, lr), confidence, reason)
        return stated

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copy and pickle by the statement."""
        return (float(self), self.reason), {}


class LROverlay(LRFind, Mapping[float, LRFind]):
    """Sweeps under several values of one hyper-parameter: a mapping from value to `LRFind`.

    Every sweep begins with the same weights and sees the same batches. As a float it is nan: there
    is one suggestion for each value.

    Args:
        name: of the hyper-parameter.
        found: the result under each value.

    >>> sweeps = LROverlay("wd", {0.1: LRFind([0.1], [2.3])})
    >>> sweeps[0.1].confidence
    'none'
    """

    name: str
    _found: dict[float, LRFind]

    def __new__(cls, name: str, found: Mapping[float, LRFind]) -> LROverlay:
        """Keep the results."""
        one = f"found[{next(iter(found))!r}]"
        said = f"it holds a result for each of {len(found)} values of {name}: take one, as {one}"
        self = float.__new__(cls, math.nan)
        self.name, self._found = name, dict(found)
        self.suggestion = Suggestion(math.nan, (math.nan, math.nan), "none", said)
        self.lrs = max((one.lrs for one in found.values()), key=len)
        self.sweeps = tuple(one.losses for one in found.values())
        self.losses = self.sweeps[0]
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copy and pickle by the results."""
        return (self.name, self._found), {}

    def __getitem__(self, value: float) -> LRFind:
        """Return the result under `value`."""
        return self._found[value]

    def __iter__(self) -> Iterator[float]:
        """Iterate over the values, in the order they were given."""
        return iter(self._found)

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._found)

    @property
    def curve(self) -> dict[str, Array]:
        """All steps as columns of one length: the value by its name, sweep, lr, loss, smoothed."""
        return _stacked(self.name, {value: found.curve for value, found in self.items()})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the smoothed curves with one legend, a mark at each suggestion; return the axes."""
        return plot_lr_find.overlay(self, ax)

    def __repr__(self) -> str:
        """Return a line for each value."""
        return "\n".join(f"{self.name}={value:g}: {found!r}" for value, found in self.items())

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        rows = [
            (
                f"{value:g}",
                "none" if math.isnan(found) else f"{float(found):.2e}",
                "" if math.isnan(found) else f"{found.band[0]:.1e} to {found.band[1]:.1e}",
                found.confidence,
                f"{np.min(found.judged.smoothed, initial=math.inf):.3g}",
                found.reason,
            )
            for value, found in self.items()
        ]
        head = [self.name, "suggestion", "band", "confidence", "lowest loss", "because"]
        return html_table(rows, head, kind="onecycle-lr-find")
