"""Optimizers: parameter groups by layer and by weight decay; reading and writing lr, mom and wd.

A *layer group* is what a user means by a group: a part of the model with a learning rate of its
own. Each becomes up to two groups of the torch optimizer, one with weight decay and one without
(biases, norm layers). The torch groups remember both facts under the keys `layer_group` and
`decay`, which `state_dict` keeps.
"""

import functools
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from textwrap import shorten
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from onecycle import checks, shards
from onecycle.parts import Group, Splitter, layer_groups, torch_groups
from onecycle.together import Together, members

T = TypeVar("T")
OptFunc = Callable[..., torch.optim.Optimizer]
Opt = (
    OptFunc
    | torch.optim.Optimizer
    | Sequence[OptFunc | torch.optim.Optimizer]
    | Callable[[nn.Module], Sequence[torch.optim.Optimizer]]
)
LR = float | slice | Sequence[float]
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
FUSED_ON = ("cpu", "cuda", "mps", "xpu")
HYPER_PARAMETERS = {"lr", "momentum", "betas", "weight_decay"}  # by whatever name they are given
EXCLUDES_FUSED = {"fused", "foreach", "capturable", "differentiable"}


def build(
    model: nn.Module,
    opt_func: Opt,
    wd: float | None = 0.01,
    splitter: Splitter | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer of `model`.

    Args:
        model: its parameters are trained.
        opt_func: a torch optimizer class; a factory that takes parameter groups; a finished
            optimizer, or several as a list, used as they are; a list of factories, one for each
            layer group of `splitter`; or a function whose first argument is called `model`, which
            returns an optimizer or a list of them and gets `wd` where it takes that.
        wd: weight decay of everything but biases and norm layers, which have none. A
            `weight_decay` set by the factory wins, unless a function sets the very default of the
            class, which cannot be told apart; None takes the optimizer's default.
        splitter: the layer groups, first to last: a list of modules, or a function model -> modules
            or lists of parameters; None makes one group.

    Several optimizers are one `Together`, each with a layer group or more of its own: a number as
    learning rate is for the last of them, and the others keep their ratios to it.

    Raises:
        TypeError: `opt_func` makes no optimizer, or one that needs a closure.
        ValueError: `splitter` does not cover each trainable parameter once, or the optimizer holds
            none of them; a parameter is in none of several optimizers, or in two.

    >>> opt = build(nn.Linear(2, 1), torch.optim.SGD, wd=0.1)
    >>> [(group["weight_decay"], len(group["params"])) for group in opt.param_groups]
    [(0.1, 1), (0.0, 1)]
    >>> parts = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> build(parts, [torch.optim.SGD, torch.optim.AdamW], splitter=list).members[1].defaults["lr"]
    0.001
    """
    given: Any = _of_model(opt_func, model, wd) if _takes_model(opt_func) else opt_func
    several = isinstance(given, (list, tuple))
    if several and not given:
        raise ValueError("opt_func must hold at least one optimizer, got an empty list")
    if _finished(given):
        if splitter is not None:
            raise ValueError("splitter cannot regroup a finished optimizer: pass its class instead")
        opt: torch.optim.Optimizer = _together(given) if several else given
        lay_out(opt)
    elif several:
        opt = _by_parts(list(given), model, wd, splitter)
    else:
        return _one(given, torch_groups(layer_groups(model, splitter)), model, wd)
    for member in members(opt):
        _check(member, model)
    if opt is not opt_func:
        _check_whole(opt, model)
    return opt


def _finished(given: Any) -> bool:
    """Tell whether it is an optimizer, or nothing but optimizers."""
    several = given if isinstance(given, (list, tuple)) else [given]
    return all(isinstance(one, torch.optim.Optimizer) for one in several)


def _takes_model(opt_func: Any) -> bool:
    """Tell whether it is a function of the model, and none of parameter groups."""
    if not callable(opt_func):
        return False
    first = next(iter(_arguments(opt_func).values()), None)
    return first is not None and first.name == "model" and first.kind is not first.KEYWORD_ONLY


def _of_model(opt_func: Any, model: nn.Module, wd: float | None) -> Any:
    """Return what a function of the model makes, one optimizer or a list of them."""
    fixed = opt_func.keywords if isinstance(opt_func, functools.partial) else {}
    wanted = "wd" in _arguments(opt_func) and "wd" not in fixed
    made = opt_func(model, wd=wd) if wanted else opt_func(model)
    if not _finished(made):
        raise TypeError(
            "opt_func must return a torch optimizer or a list of them, "
            f"got {shorten(repr(made), 99)}"
        )
    return made


def _arguments(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a builtin nothing is known
        return {}


def _together(opts: Sequence[torch.optim.Optimizer]) -> Together:
    """Return finished optimizers as one, with the layer groups of each after those before it."""
    first = 0
    for opt in opts:
        own = [_layer_group(i, group) for i, group in enumerate(opt.param_groups)]
        order = sorted(set(own))
        for number, group in zip(own, opt.param_groups, strict=True):
            group["layer_group"] = first + order.index(number)
        first += len(order)
    return Together(opts)


def _by_parts(
    opt_funcs: list[Any], model: nn.Module, wd: float | None, splitter: Splitter | None
) -> Together:
    """Return one optimizer for each layer group, as one."""
    if any(isinstance(one, torch.optim.Optimizer) for one in opt_funcs):
        raise TypeError("opt_func must hold optimizers or factories, and not some of each")
    parts = layer_groups(model, splitter)
    if len(parts) != len(opt_funcs):
        raise ValueError(
            f"opt_func holds {len(opt_funcs)} factories for {len(parts)} layer groups: splitter "
            "must give a part of the model for each, such as [model.body, model.head]"
        )
    groups = torch_groups(parts)
    own = [[group for group in groups if group["layer_group"] == i] for i in range(len(parts))]
    pairs = zip(opt_funcs, own, strict=True)
    return Together([_one(one, part, model, wd) for one, part in pairs], by_parts=True)


def _one(
    opt_func: Any, groups: list[Group], model: nn.Module, wd: float | None
) -> torch.optim.Optimizer:
    """Return the optimizer that a class or factory makes of these groups."""
    if not callable(opt_func):
        raise TypeError(f"opt_func must be a torch optimizer class or factory, got {opt_func!r}")
    try:
        opt = made(opt_func, groups, model)
    except (TypeError, ValueError) as error:
        raise ValueError(f"opt_func refuses the parameter groups of model: {error}") from error
    _check(opt, model)
    if has(opt, "wd"):
        chosen = _chosen_decay(opt, opt_func)
        default = opt.defaults["weight_decay"] if wd is None else checks.real("wd", wd, low=0.0)
        write(opt, "wd", [default if chosen is None else chosen])
    for group in opt.param_groups:
        # Groups that share one tensor could not have rates of their own.
        group["lr"] = _copy(group["lr"])
    return opt


def made(opt_func: OptFunc, groups: list[Group], model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer, of torch's fused kind where there is one for these parameters."""
    options = set(opt_func.keywords) if isinstance(opt_func, functools.partial) else set()
    kind = opt_func.func if isinstance(opt_func, functools.partial) else opt_func
    sparse = any(getattr(part, "sparse", False) is True for part in model.modules())
    # Torch itself tells what it cannot fuse at the first step only.
    able = all(
        p.is_floating_point() and p.device.type in FUSED_ON for g in groups for p in g["params"]
    )
    if kind is torch.optim.SGD and any(shards.is_shard(p) for g in groups for p in g["params"]):
        able = False  # torch has no fused SGD for shards
    if kind in FUSED and not options & EXCLUDES_FUSED and able and not sparse:
        with suppress(RuntimeError):  # nor in every version
            # Of copies: an optimizer writes its settings into the groups that it is given.
            opt = opt_func([dict(group) for group in groups], fused=True)
            # Fused, no first step of a part of the parameters can be as torch defines it.
            if not opt.defaults.get("dampening"):
                return opt
    return opt_func(groups)


def missing(opt: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Return the names of trainable parameters that the optimizer does not hold."""
    held = {id(p) for group in opt.param_groups for p in group["params"]}
    return [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in held]


def n_groups(opt: torch.optim.Optimizer) -> int:
    """Return the number of layer groups."""
    return 1 + max(_layer_group(i, group) for i, group in enumerate(opt.param_groups))


def grouped(opt: torch.optim.Optimizer) -> list[list[Tensor]]:
    """Return the parameters of each layer group."""
    groups: list[list[Tensor]] = [[] for _ in range(n_groups(opt))]
    for i, group in enumerate(opt.param_groups):
        groups[_layer_group(i, group)] += group["params"]
    return groups


def ratios(opt: torch.optim.Optimizer) -> list[float]:
    """Return the learning rate of each layer group over that of the last; 1 where that is 0."""
    rates = current(opt, "lr")
    return [rate / rates[-1] if rates[-1] > 0 else 1.0 for rate in rates]


def spread(name: str, lr: LR, n: int, ratios: Sequence[float] | None = None) -> list[float]:
    """Return one learning rate for each of `n` layer groups.

    A number is for the last group, the others keep their `ratios` to it, which are 1 by default;
    `slice(a, b)` is geometric from a to b; `slice(b)` is b for the last group and b / 10 for the
    others; a list is taken as it is.

    Raises:
        ValueError, TypeError: a rate that is not above 0, or a list of another length; it names
        `name`.

    >>> spread("lr", slice(1e-4, 1e-2), 3)
    [0.0001, 0.001, 0.01]
    >>> spread("lr", slice(1e-2), 3)
    [0.001, 0.001, 0.01]
    >>> spread("lr", 0.1, 2, ratios=[0.1, 1.0])
    [0.010000000000000002, 0.1]
    """
    if isinstance(lr, slice):
        return _spread_slice(name, lr, n)
    if getattr(lr, "ndim", 0) == 1:  # an array or a tensor of rates
        lr = [float(value) for value in lr]  # type: ignore[union-attr]
    if not isinstance(lr, (list, tuple)):
        rate = checks.positive(name, lr)
        return [rate * ratio for ratio in ratios or [1.0] * n]
    if len(lr) != n:
        raise ValueError(f"{name} must have one value for each of the {n} layer groups, got {lr!r}")
    return [checks.positive(name, value) for value in lr]


def write(opt: torch.optim.Optimizer, name: str, values: Sequence[float]) -> None:
    """Set a hyper-parameter in place, one value for each layer group or one for all.

    Args:
        opt: the optimizer.
        name: "lr", "mom" (`momentum`, or the first of the `betas`), "wd" (only where decay is
            wanted) or any other key of the groups.
        values: one number, or one for each layer group.
    """
    write_each(opt, name, for_each(opt, values))


def for_each(opt: torch.optim.Optimizer, values: Sequence[T]) -> list[T]:
    """Return for each group of torch its value, of one for each layer group or one for all."""
    groups = opt.param_groups
    if len(values) == 1:
        return [values[0]] * len(groups)
    return [values[_layer_group(i, group)] for i, group in enumerate(groups)]


def write_each(opt: torch.optim.Optimizer, name: str, values: Sequence[float]) -> None:
    """Set a hyper-parameter in place, one value for each group of torch."""
    for group, value in zip(opt.param_groups, values, strict=True):
        if name == "mom" and "betas" in group:
            group["betas"] = (value, *group["betas"][1:])
        elif name == "mom":
            group["momentum"] = value
        elif name == "wd":
            group["weight_decay"] = value if group.get("decay", True) else 0.0
        elif isinstance(group.get(name), Tensor):
            group[name].fill_(value)
        else:
            group[name] = value


def read(opt: torch.optim.Optimizer, name: str) -> float:
    """Return "lr", "mom", "wd" or another key of the last group; nan where there is none."""
    return _value(opt.param_groups[-1], name)


def read_each(opt: torch.optim.Optimizer, name: str) -> list[float]:
    """Return "lr", "mom", "wd" or another key of each group of torch, as `write_each` sets it."""
    return [_value(group, name) for group in opt.param_groups]


def _value(group: Group, name: str) -> float:
    if name == "mom":
        return float(group["betas"][0] if "betas" in group else group.get("momentum", math.nan))
    return float(group.get("weight_decay" if name == "wd" else name, math.nan))


def current(opt: torch.optim.Optimizer, name: str) -> list[float]:
    """Return a hyper-parameter of each layer group, by its key in the optimizer's groups."""
    values = {
        _layer_group(i, group): float(group[name]) for i, group in enumerate(opt.param_groups)
    }
    return [values[i] for i in sorted(values)]


def has(opt: torch.optim.Optimizer, name: str) -> bool:
    """Tell whether every group has the hyper-parameter "lr", "mom", "wd" or another key.

    >>> has(build(nn.Linear(2, 1), torch.optim.Rprop), "wd")
    False
    """
    if name == "mom":
        return all("betas" in group or "momentum" in group for group in opt.param_groups)
    key = "weight_decay" if name == "wd" else name
    return all(key in group for group in opt.param_groups)


def scalars(opt: torch.optim.Optimizer) -> list[str]:
    """Return the names of the hyper-parameters that are one number, by which `write` sets them.

    >>> scalars(build(nn.Linear(2, 1), torch.optim.SGD))[:4]
    ['lr', 'mom', 'wd', 'dampening']
    """
    own = ("layer_group", "decay", "lr", "momentum", "weight_decay")
    short = [name for name in ("lr", "mom", "wd") if has(opt, name)]
    return short + [
        name
        for name, value in opt.param_groups[0].items()
        if name not in own
        and isinstance(value, (float, int))
        and not isinstance(value, bool)
        and has(opt, name)
    ]


def has_momentum(opt: torch.optim.Optimizer) -> bool:
    """Tell whether every group has a momentum in use: betas, or a `momentum` above 0.

    >>> has_momentum(build(nn.Linear(2, 1), torch.optim.SGD))
    False
    """
    return all("betas" in group or group.get("momentum", 0) > 0 for group in opt.param_groups)


def sets_scale(opt: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer finds the scale of its steps, which the rate then only multiplies.

    Those, as Prodigy and D-Adaptation, keep what they have found in their groups, under "d".

    Source: Mishchenko and Defazio 2023 (arXiv 2306.06101); Defazio and Mishchenko 2023 (arXiv
    2301.07733).

    >>> sets_scale(build(nn.Linear(2, 1), torch.optim.AdamW))
    False
    """
    given = any("d" in signature for signature in _signatures(opt))
    found = (group.get("d") for group in opt.param_groups)
    return not given and all(isinstance(d, (float, Tensor)) for d in found)


def counters(opt: torch.optim.Optimizer) -> set[str]:
    """Return the keys of its groups in which an optimizer keeps a state of its own.

    Those are numbers among its defaults that cannot be given to its constructor, such as the steps
    that a schedule-free optimizer counts there.

    >>> from schedulefree import SGDScheduleFree
    >>> sorted(counters(build(nn.Linear(2, 1), SGDScheduleFree)))
    ['k', 'lr_max', 'scheduled_lr', 'train_mode', 'weight_sum']
    >>> counters(build(nn.Linear(2, 1), torch.optim.AdamW))
    set()
    """
    if isinstance(opt, Together):
        return {name for member in opt.members for name in counters(member)}
    given = [parameter for signature in _signatures(opt) for parameter in signature.values()]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in given):
        return set()
    numbers = {name for name, value in opt.defaults.items() if isinstance(value, (int, float))}
    return numbers - {parameter.name for parameter in given} - HYPER_PARAMETERS


def has_modes(opt: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer tells training from evaluation, as schedule-free ones do."""
    return any(map(_has_modes, members(opt)))


def set_mode(opt: torch.optim.Optimizer, *, training: bool) -> None:
    """Put the weights where `opt` trains them, or where they are evaluated; most have one place."""
    for member in filter(_has_modes, members(opt)):
        getattr(member, "train" if training else "eval")()


def _has_modes(opt: torch.optim.Optimizer) -> bool:
    return all(callable(getattr(opt, name, None)) for name in ("train", "eval"))


@contextmanager
def preserved(opt: torch.optim.Optimizer) -> Iterator[None]:
    """Put every hyper-parameter back to what it was before the block, whatever happened in it.

    What the optimizer itself counts in its groups is none, and stays.
    """
    kept = {"params", *counters(opt)}
    before = [{k: _copy(v) for k, v in g.items() if k not in kept} for g in opt.param_groups]
    try:
        yield
    finally:
        # A group that was added in the block has no past to go back to.
        for group, values in zip(opt.param_groups, before, strict=False):
            for key in group.keys() - values.keys() - kept:
                del group[key]
            for key, value in values.items():
                if isinstance(value, Tensor) and isinstance(group[key], Tensor):
                    group[key].copy_(value)
                else:
                    group[key] = value


def load(opt: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Have `opt` take a state, of parameters that may lie otherwise in memory."""
    opt.load_state_dict(state)
    lay_out(opt)


def lay_out(opt: torch.optim.Optimizer) -> None:
    """Lay out what `opt` keeps of a parameter as the parameter is, which fused kernels rely on."""
    dense = ((p, own) for p, own in opt.state.items() if _is_dense(p) and isinstance(own, dict))
    for parameter, own in dense:
        for name, value in own.items():
            like = _is_dense(value) and value.shape == parameter.shape
            if like and shards.is_shard(parameter):
                own[name] = shards.like(value, parameter)
            elif like and value.stride() != parameter.stride():
                own[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _check(opt: Any, model: nn.Module) -> None:
    """Refuse what is no optimizer, needs a closure, or trains another model."""
    if not isinstance(opt, torch.optim.Optimizer):
        raise TypeError(f"opt_func must return a torch optimizer, got {shorten(repr(opt), 99)}")
    closure = inspect.signature(opt.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        name = type(opt).__name__
        raise TypeError(f"opt_func: {name} needs a closure, which the loop does not give it")
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for group in opt.param_groups for p in group["params"]):
        raise ValueError("opt_func holds no parameter of model: build it from model.parameters()")


def _check_whole(opt: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that leaves a trainable parameter of the model out, or has one twice."""
    held = Counter(id(p) for group in opt.param_groups for p in group["params"])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not held[id(parameter)]:
            raise ValueError(
                f"opt_func must have an optimizer for every trainable parameter, none has {name!r}:"
                " give it to one, or freeze it by requires_grad_(False)"
            )
        if held[id(parameter)] > 1:
            raise ValueError(f"opt_func must have each parameter once, {name!r} is in two places")


def _chosen_decay(opt: torch.optim.Optimizer, opt_func: Any) -> float | None:
    """Return the weight decay that the factory chose, None when it is the class's default."""
    if isinstance(opt_func, functools.partial) and "weight_decay" in opt_func.keywords:
        return float(opt_func.keywords["weight_decay"])
    known = next((s["weight_decay"].default for s in _signatures(opt) if "weight_decay" in s), None)
    value = opt.defaults.get("weight_decay")
    return None if value == known else value


def _signatures(opt: torch.optim.Optimizer) -> list[Mapping[str, inspect.Parameter]]:
    """Return the arguments of the constructors of its class and of those above that."""
    kinds = [cls for cls in type(opt).__mro__ if issubclass(cls, torch.optim.Optimizer)]
    return [inspect.signature(cls).parameters for cls in kinds]


def _spread_slice(name: str, lr: slice, n: int) -> list[float]:
    if lr.step is not None or lr.stop is None:
        raise ValueError(f"{name} must be slice(last) or slice(first, last), got {lr!r}")
    last = checks.positive(name, lr.stop)
    if lr.start is None:
        return [last / 10] * (n - 1) + [last]
    first = checks.positive(name, lr.start)
    ratio = last / first
    return [first * ratio ** (i / (n - 1)) for i in range(n - 1)] + [last]


def _layer_group(i: int, group: Group) -> int:
    """Return the layer group of torch group `i`; an optimizer not built here has one for each."""
    return int(group.get("layer_group", i))


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
