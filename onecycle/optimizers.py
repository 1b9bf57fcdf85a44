"""Optimizers: parameter groups by layer and by weight decay; reading and writing lr, mom and wd.

A *layer group* is what a user means by a group: a part of the model with a learning rate of its
own. Each becomes up to two groups of the torch optimizer, one with weight decay and one without
(biases, norm layers). The torch groups remember both facts under the keys `layer_group` and
`decay`, which `state_dict` keeps.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from textwrap import shorten
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from onecycle import checks

T = TypeVar("T")
Group = dict[str, Any]
OptFunc = Callable[..., torch.optim.Optimizer]
Part = nn.Module | Iterable[nn.Parameter]
Splitter = Callable[[nn.Module], Iterable[Part]] | Sequence[Part]
LR = float | slice | Sequence[float]
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
FUSED_ON = ("cpu", "cuda", "mps", "xpu")
HYPER_PARAMETERS = {"lr", "momentum", "betas", "weight_decay"}  # by whatever name they are given
EXCLUDES_FUSED = {"fused", "foreach", "capturable", "differentiable"}


def build(
    model: nn.Module,
    opt_func: OptFunc | torch.optim.Optimizer,
    wd: float | None = 0.01,
    splitter: Splitter | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer of `model`.

    Args:
        model: its parameters are trained.
        opt_func: a torch optimizer class, a factory that takes parameter groups, or a finished
            optimizer, which is used as it is.
        wd: weight decay of everything but biases and norm layers, which have none. A
            `weight_decay` set by the factory wins, unless a function sets the very default of the
            class, which cannot be told apart; None takes the optimizer's default.
        splitter: the layer groups, first to last: a list of modules, or a function model -> modules
            or lists of parameters; None makes one group.

    Raises:
        TypeError: `opt_func` makes no optimizer, or one that needs a closure.
        ValueError: `splitter` does not cover each trainable parameter once, or the optimizer holds
            none of them.

    >>> opt = build(nn.Linear(2, 1), torch.optim.SGD, wd=0.1)
    >>> [(group["weight_decay"], len(group["params"])) for group in opt.param_groups]
    [(0.1, 1), (0.0, 1)]
    """
    if isinstance(opt_func, torch.optim.Optimizer):
        if splitter is not None:
            raise ValueError("splitter cannot regroup a finished optimizer: pass its class instead")
        opt = opt_func
        lay_out(opt)
    elif callable(opt_func):
        groups = _torch_groups(layer_groups(model, splitter))
        try:
            opt = _made(opt_func, groups, model)
        except (TypeError, ValueError) as error:
            raise ValueError(f"opt_func refuses the parameter groups of model: {error}") from error
    else:
        raise TypeError(f"opt_func must be a torch optimizer class or factory, got {opt_func!r}")
    _check(opt, model)
    if opt is not opt_func and has(opt, "wd"):
        chosen = _chosen_decay(opt, opt_func)
        default = opt.defaults["weight_decay"] if wd is None else checks.real("wd", wd, low=0.0)
        write(opt, "wd", [default if chosen is None else chosen])
    for group in opt.param_groups if opt is not opt_func else ():
        # Groups that share one tensor could not have rates of their own.
        group["lr"] = _copy(group["lr"])
    return opt


def _made(opt_func: OptFunc, groups: list[Group], model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer, of torch's fused kind where there is one for these parameters."""
    options = set(opt_func.keywords) if isinstance(opt_func, functools.partial) else set()
    kind = opt_func.func if isinstance(opt_func, functools.partial) else opt_func
    sparse = any(getattr(part, "sparse", False) is True for part in model.modules())
    # Torch itself tells what it cannot fuse at the first step only.
    able = all(
        p.is_floating_point() and p.device.type in FUSED_ON for g in groups for p in g["params"]
    )
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


def layer_groups(model: nn.Module, splitter: Splitter | None) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer group; together they hold each trainable one once."""
    if splitter is None:
        return [list(model.parameters())]
    parts: Any = splitter
    if callable(splitter) and not isinstance(splitter, nn.Module):
        parts = splitter(model)
    if isinstance(parts, (nn.Module, str)) or not isinstance(parts, Iterable):
        raise TypeError(f"splitter must give a list, a part for each layer group, got {parts!r}")
    groups = [_parameters(part) for part in parts]
    listed = [id(parameter) for group in groups for parameter in group]
    missing = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in listed]
    if missing:
        raise ValueError(
            f"splitter must return every trainable parameter, {missing[0]!r} is missing"
        )
    twice = [n for n, p in model.named_parameters() if listed.count(id(p)) > 1]
    if twice:
        raise ValueError(f"splitter must return each parameter once, {twice[0]!r} is in two places")
    if not all(groups):
        raise ValueError(
            "splitter must return groups with parameters in them, one is empty: "
            f"number {groups.index([])}"
        )
    if not set(listed) <= {id(parameter) for parameter in model.parameters()}:
        raise ValueError("splitter must return parameters of model, one is of another")
    return groups


def _parameters(part: Any) -> list[nn.Parameter]:
    """Return the parameters of a module, or a list of them or of modules, each once."""
    if isinstance(part, nn.Module):
        return list(part.parameters())
    if not isinstance(part, Iterable) or isinstance(part, (str, torch.Tensor)):
        kind = "one tensor" if isinstance(part, torch.Tensor) else repr(part)
        raise TypeError(f"splitter must give modules or lists of parameters, got {kind}")
    found: list[nn.Parameter] = []
    for item in part:
        if isinstance(item, nn.Module):
            found += item.parameters()
        elif isinstance(item, nn.Parameter):
            found.append(item)
        else:
            raise TypeError(f"splitter must give modules or lists of parameters, got {item!r}")
    return found


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
        if name not in own and isinstance(value, (float, int)) and not isinstance(value, bool)
    ]


def has_momentum(opt: torch.optim.Optimizer) -> bool:
    """Tell whether every group has a momentum in use: betas, or a `momentum` above 0.

    >>> has_momentum(build(nn.Linear(2, 1), torch.optim.SGD))
    False
    """
    return all("betas" in group or group.get("momentum", 0) > 0 for group in opt.param_groups)


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
    given = [parameter for signature in _signatures(opt) for parameter in signature.values()]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in given):
        return set()
    numbers = {name for name, value in opt.defaults.items() if isinstance(value, (int, float))}
    return numbers - {parameter.name for parameter in given} - HYPER_PARAMETERS


def has_modes(opt: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer tells training from evaluation, as schedule-free ones do."""
    return all(callable(getattr(opt, name, None)) for name in ("train", "eval"))


def set_mode(opt: torch.optim.Optimizer, *, training: bool) -> None:
    """Put the weights where `opt` trains them, or where they are evaluated; most have one place."""
    if has_modes(opt):
        getattr(opt, "train" if training else "eval")()


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
            if like and value.stride() != parameter.stride():
                own[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _torch_groups(groups: list[list[nn.Parameter]]) -> list[Group]:
    """Return each layer group as a torch group with decay and one without, empty ones left out."""
    torch_groups: list[Group] = []
    for i, parameters in enumerate(groups):
        # Scales and biases have one dimension; shrinking those only fights the normalisation.
        for decay in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decay]
            if chosen:
                torch_groups.append({"params": chosen, "layer_group": i, "decay": decay})
    return torch_groups


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
