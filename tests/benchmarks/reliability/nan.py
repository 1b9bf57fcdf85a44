"""R4: where loss, gradient or validation is not finite training stops in time; what that costs."""

import copy
import re
import statistics
from functools import partial

import torch
from helpers import make, mlp, same
from shared import Soak, Spoilt, child, tensors, told, tried

from onecycle import Callback, DataLoaders, Learner
from onecycle.data import digits
from onecycle.models import simple_cnn

NAN, INF = float("nan"), float("inf")
PLACES = ("loss", "gradient", "validation")
# The first spoilt call, the last one, the factor.
WHEN = {
    "once": (15, 15, NAN),
    "for good": (15, INF, NAN),
    "inf": (15, 15, INF),
    "at first": (1, 1, NAN),
}
BATCHES, VALIDATION = 10, 4  # of the data that `make` has, in an epoch


def measure(options):
    """Every place and time, then the cost for two models."""
    found = {f"{place}, {when}": spoilt(place, when) for place in PLACES for when in WHEN}
    met = tried("R4", "nan: {} of {} cases stop at once, unharmed, and say where and why", found)
    return all([met, *(child(guard_cost, name) == 0 for name in ("MLP", "CNN"))])


class Watch(Callback):
    """Keeps what was there before every step, and at which rate it was taken."""

    def __init__(self):
        self.before = None
        self.lr = self.steps = self.validations = 0

    def on_batch_begin(self, learn):
        self.before = condition(learn)
        self.lr = learn.opt.param_groups[0]["lr"]

    def on_step_end(self, learn):
        self.steps += 1

    def on_validate_begin(self, learn):
        self.before = condition(learn)
        # Looks before the first step do not count.
        learn.loss_func.calls[False] = VALIDATION * self.validations
        self.validations += 1


def condition(learn):
    """Parameters, buffers and the optimizer's state, copied."""
    return copy.deepcopy([learn.model.state_dict(), learn.opt.state_dict()["state"]])


def spoilt(place, when):
    """Train into a value that is not finite; return what is not as it should be."""
    first, last, what = WHEN[when]
    if place == "validation":  # in the first batch of the second epoch's
        first, last = min(first, VALIDATION + 1), min(last, VALIDATION + 1) if last < INF else INF
    loss_func, watch = Spoilt(place, first, last, what), Watch()
    learn = make(tensors(), loader="in_memory", model=mlp(), loss_func=loss_func)
    try:
        learn.fit_one_cycle(3, 1e-2, callbacks=[watch])
        return ["nothing was raised"]
    except FloatingPointError as error:
        message = str(error)
    expected = BATCHES * (1 + (first > 1)) if place == "validation" else first - 1
    wrong = [] if watch.steps == expected == len(learn.recorder.losses) else ["stopped late"]
    wanted = (
        rf"step {expected + (place != 'validation')}\b",
        rf"learning rate {watch.lr:.3g}\b",
        "lower learning rate|clip=|look (at|for)",
    )
    wrong += [f"no {part} in {message!r}" for part in wanted if not re.search(part, message)]
    wrong += [] if same(watch.before, condition(learn)) else ["the state is not that before it"]
    wrong += [] if finite(learn) else ["the state is not finite"]
    loss_func.first = INF
    learn.fit(1, 1e-3)
    good = finite(learn) and len(learn.recorder.losses) == expected + BATCHES
    return wrong if good else [*wrong, "a second fit does not train"]


def finite(learn):
    """Whether all parameters, buffers and states are finite."""
    states = [learn.model.state_dict(), *learn.opt.state.values()]
    return all(value.isfinite().all() for state in states for value in state.values())


def guard_cost(name):
    """Time epochs with and without the guard, in turns."""
    x, y = digits().train.tensors
    x = x.flatten(1) if name == "MLP" else x
    model = mlp if name == "MLP" else partial(simple_cnn, (1, 16, 32, 10))
    learners = {}
    for policy in ("raise", "ignore"):
        torch.manual_seed(0)
        data = DataLoaders.from_tensors(x[:1280], y[:1280], batch_size=64)
        learners[policy] = Learner(data, model(), on_nan=policy)
    timers = {policy: Soak(60 * 20, 0, int) for policy in learners}
    for _ in range(60):
        for policy, learn in learners.items():
            learn.fit(1, 1e-3, callbacks=[timers[policy]])
    guarded, bare = (1e6 * statistics.median(timers[p].took) for p in ("raise", "ignore"))
    share = 100 * (guarded / bare - 1)
    text = f"guard, {name}: {guarded:.0f} us a step for {bare:.0f}, {share:+.1f} % (bar 1)"
    return told("R4", text, met=share <= 1.0)
