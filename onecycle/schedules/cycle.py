"""The 1cycle policy: learning rate up and down once, momentum down and up."""

from onecycle import checks
from onecycle.schedules.shapes import cosine, joined, linear, progress, stepped
from onecycle.schedules.spec import Schedule


@stepped
def one_cycle(
    max_lr: float = 1.0,
    *,
    div_factor: float = 25.0,
    pct_start: float = 0.3,
    final_div: float | None = None,
    warmup: str = "linear",
    three_phase: bool = False,
    total_steps: int | None = None,
) -> Schedule:
    """Return the learning rate of the 1cycle policy: up to `max_lr`, then down far below the start.

    Two phases (the default), for T steps t = 0 .. T-1 with the peak at a = round(pct_start T):

    * t <= a: from max_lr / div_factor to max_lr, linear or, with `warmup="cos"`, half a cosine;
    * t >= a: half a cosine from max_lr to max_lr / final_div.

    Three phases: up to the peak, down as long to max_lr / div_factor, on to max_lr / final_div, all
    linear.

    Args:
        max_lr: the peak, above 0.
        div_factor: max_lr over the first value, above 0.
        pct_start: share of the steps before the peak, in [0, 1]; at most 0.5 with three phases.
        final_div: max_lr over the last value; `float("inf")` ends at 0. None means div_factor 1e4,
            or div_factor 100 with three phases.
        warmup: "linear" or "cos".
        three_phase: Smith's original shape instead of the two phases.
        total_steps: T, at least 1. The peak falls on step a exactly; a is kept within 1 .. T-2 so
            that the first step has the first value, one step the peak and the last step the last
            value. Two steps are the first value and the peak, one step is the first value. Three
            phases need four steps for all of that; in three they end where they began. None puts
            the peak at pct_start of a continuous progress.

    Raises:
        ValueError, TypeError: an argument outside of its range or of the wrong type.

    Source: Smith and Topin 2018 (arXiv 1708.07120), Smith 2018 (arXiv 1803.09820) for three phases;
    the two phases are fastai's. Equal to `OneCycleLR(pct_start=(a + 1) / T)` of torch where that is
    defined.

    >>> from onecycle.schedules import sample
    >>> [round(lr, 4) for lr in sample(one_cycle(1.0, total_steps=10), 10)]
    [0.04, 0.36, 0.68, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067, 0.0]
    """
    max_lr = checks.positive("max_lr", max_lr)
    start = max_lr / checks.positive("div_factor", div_factor)
    if final_div is None:
        final_div = div_factor * (100.0 if three_phase else 1e4)
    end = max_lr / checks.positive("final_div", final_div, allow_inf=True)
    return _cycle(start, max_lr, end, pct_start, warmup, three_phase, total_steps)


@stepped
def one_cycle_momentum(
    moms: tuple[float, float] = (0.95, 0.85),
    *,
    pct_start: float = 0.3,
    warmup: str = "linear",
    three_phase: bool = False,
    total_steps: int | None = None,
) -> Schedule:
    """Return the momentum of the 1cycle policy, the mirror image of the learning rate.

    From moms[0] down to moms[1] while the learning rate rises, back to moms[0] while it falls, by
    the same shapes and at the same steps as `one_cycle`; in the third of three phases it stays at
    moms[0].

    Args:
        moms: the outer and the inner momentum, each in [0, 1).
        pct_start: as in `one_cycle`.
        warmup: as in `one_cycle`.
        three_phase: as in `one_cycle`.
        total_steps: as in `one_cycle`.

    Raises:
        ValueError, TypeError: an argument outside of its range or of the wrong type.

    Source: Smith 2018 (arXiv 1803.09820), section 4.3.

    >>> from onecycle.schedules import sample
    >>> sample(one_cycle_momentum(total_steps=3), 3)
    [0.95, 0.85, 0.95]
    """
    outer, inner = (
        checks.real("moms", mom, low=0.0, high=1.0, open_high=True)
        for mom in checks.pair("moms", moms, "(0.95, 0.85)")
    )
    return _cycle(outer, inner, outer, pct_start, warmup, three_phase, total_steps)


def _cycle(
    start: float,
    peak: float,
    end: float,
    pct_start: float,
    warmup: str,
    three_phase: bool,
    total_steps: int | None,
) -> Schedule:
    """Return start -> peak -> end, or with three phases start -> peak -> start -> end."""
    checks.choice("warmup", warmup, ("linear", "cos"))
    checks.flag("three_phase", three_phase)
    at = _peak(pct_start, three_phase, total_steps)
    if not three_phase:
        rise = linear if warmup == "linear" else cosine
        return joined([rise(start, peak), cosine(peak, end)], [0.0, at, 1.0])
    if warmup != "linear":
        raise ValueError(
            "warmup must be 'linear' with three_phase=True, which is linear throughout"
        )
    parts = linear(start, peak), linear(peak, start), linear(start, end)
    return joined(parts, [0.0, at, min(1.0, 2.0 * at), 1.0])


def _peak(pct_start: float, three_phase: bool, total_steps: int | None) -> float:
    """Return the progress of the peak, on a step of the grid when there is one."""
    highest = 0.5 if three_phase else 1.0
    pct_start = checks.real("pct_start", pct_start, low=0.0, high=highest)
    if total_steps is None:
        return pct_start
    most = (total_steps - 2) // (2 if three_phase else 1)
    step = max(1, min(round(pct_start * total_steps), most))
    return progress(step, total_steps)
