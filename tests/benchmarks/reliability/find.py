"""R1: lr_find leaves everything as it was, answers rightly, and training after it is the same."""

import copy

import numpy as np
from helpers import Trouble, everything, make, same
from runs import Batches, result
from shared import Spoilt, differences, tensors, tried

NAN, INF = float("nan"), float("inf")
KINDS = ("fresh", "own generator", "after a fit")
# Options of lr_find, what has the fault, at which step, which.
SITUATIONS = {
    "normal": ({}, "loss", INF, 1.0),
    "diverging early": ({"start_lr": 1.0, "end_lr": 1e4}, "loss", INF, 1.0),
    "nan at the first step": ({}, "loss", 1, NAN),
    "nan later": ({}, "loss", 14, NAN),
    "inf at the first step": ({}, "loss", 1, INF),
    "inf later": ({}, "loss", 14, INF),
    "exception in the model": ({}, "model", 14, ZeroDivisionError()),
    "Ctrl-C in the model": ({}, "model", 14, KeyboardInterrupt()),
    "the loss raises": ({}, "loss", 14, ZeroDivisionError()),
}


def measure(options):
    """Every situation for every kind of learner."""
    found = {f"{kind}, {name}": searched(kind, name) for kind in KINDS for name in SITUATIONS}
    return tried("R1", "lr_find: {} of {} cases leave no trace and answer rightly", found)


def searched(kind, name):
    """Train with and without a search before it; return what went wrong."""
    failures, ends = [], []
    for find in (True, False):
        loader = "own_generator" if kind == "own generator" else "torch"
        learn = make(tensors(), loader=loader, model=Trouble(), loss_func=Spoilt())
        batches = Batches()
        if kind == "after a fit":
            learn.fit_one_cycle(1, 1e-2)
        failures += search(learn, name) if find else []
        learn.fit_one_cycle(2, 1e-2, callbacks=[batches])
        ends.append(result(learn, [batches]))
    return failures + [f"training after it: {what} differs" for what in differences(*ends)]


def search(learn, name):
    """Run lr_find with a fault in it; return what it left changed or answered wrongly."""
    options, place, step, what = SITUATIONS[name]
    model, loss_func = learn.model, learn.loss_func
    if place == "model":
        model.at, model.what = model.calls + step, what
    else:
        loss_func.first = loss_func.last = loss_func.calls[True] + step
        loss_func.what = what
    before, own = everything(learn), copy.copy(vars(model))
    try:
        answer = learn.lr_find(**options)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - that is what is looked at
        answer = error
    after = everything(learn)
    changed = differences(before, after)
    changed += [key for key in ("last", "calls") if not same(own[key], vars(model)[key])]
    loss_func.first = model.at = INF
    wrong = [] if right(name, what, answer) else [f"answered {answer!r}"]
    return [f"{key} changed" for key in changed] + wrong


def right(name, what, answer):
    """Whether an answer fits the situation."""
    if isinstance(what, BaseException):
        return type(answer) is type(what)
    if name.endswith("first step"):
        return isinstance(answer, ValueError) and "start_lr" in str(answer)
    if name.endswith("later"):
        return not isinstance(answer, BaseException) and np.isfinite(answer.losses).sum() == 13
    return isinstance(answer, float) and (name != "normal" or 0.0 < answer < INF)
