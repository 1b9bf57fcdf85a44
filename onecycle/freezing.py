"""Frozen layer groups: which parameters train, and what their batch norm does meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from onecycle import checks, optimizers, together
from onecycle.together import Together


def freeze_to(opt: torch.optim.Optimizer, model: nn.Module, n: int, train_bn: bool) -> None:
    """Train the layer groups from `n` on and freeze those before it.

    A frozen parameter has no gradient, so the optimizer neither moves it nor touches its state.
    Every parameter of a group to train is trained, also one that was frozen by other means.

    Args:
        opt: knows the layer groups.
        model: the parameters are its own.
        n: the first group to train; 0 trains all, a negative one counts from the end.
        train_bn: leave scale and shift of batch norm in frozen groups trainable.

    Raises:
        ValueError: there is no such group, or only one, which leaves nothing to train.
    """
    count = optimizers.n_groups(opt)
    first = checks.integer("n", n, low=-count)
    if first >= count or (first and count == 1):
        if count > 1:
            raise ValueError(f"freeze_to({n}): the model has {count} layer groups, counted from 0")
        raise ValueError(
            f"freeze_to({n}): the model has 1 layer group, so freezing would leave nothing to "
            "train; splitter=lambda model: [model.body, model.head] makes one of each part"
        )
    first %= count
    if first and isinstance(opt, Together) and not opt.by_parts:
        raise ValueError(
            f"freeze_to({n}): the groups of {together.name(opt)} are not its layers: freeze "
            "by requires_grad_(False), or have one for each part, by opt_func=[SGD, AdamW] "
            "and splitter=lambda model: [model.body, model.head]"
        )
    always = {id(p) for norm in _norms(model) for p in norm.parameters()} if train_bn else set()
    for i, parameters in enumerate(optimizers.grouped(opt)):
        for parameter in parameters:
            # Whole numbers, as in a quantized model, have no gradient at all.
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(i >= first or id(parameter) in always)


def train(model: nn.Module, train_bn: bool) -> None:
    """Put `model` in training mode; without `train_bn` frozen batch norm stays as in evaluation."""
    model.train()
    if not train_bn:
        hold_norms(model)


def hold_norms(model: nn.Module, *, trained: bool = False) -> None:
    """Put batch norm that is frozen in evaluation mode; with `trained` all of it.

    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).requires_grad_(False))
    >>> hold_norms(model)
    >>> [norm.training for norm in model]
    [True, False]
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, _BatchNorm) and (trained or _is_frozen(name, modules)):
            module.eval()


@contextmanager
def kept_on_error(model: nn.Module) -> Iterator[None]:
    """After an error in the block, have each parameter train or not as before it."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    except BaseException:
        for parameter, trained in before:
            parameter.requires_grad_(trained)
        raise


def _is_frozen(name: str, modules: dict[str, nn.Module]) -> bool:
    """Tell whether a module trains nothing; one without parameters goes with what is around it."""
    parameters = list(modules[name].parameters())
    if parameters or not name:
        return not any(parameter.requires_grad for parameter in parameters)
    return _is_frozen(name.rpartition(".")[0], modules)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
