"""Losses: checked, inferred from the target, and what turns a model's output into predictions."""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def check_scalar(loss: Any) -> Tensor:
    """Return `loss` if it is a tensor with one number."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_func must return a tensor, got {type(loss).__name__}: {loss!r}")
    if loss.ndim:
        shape = tuple(loss.shape)
        raise ValueError(f"loss_func must return a scalar, got a shape of {shape}: take its mean")
    return loss


def check_loss(loss: Any) -> None:
    """Refuse a loss that cannot be trained on, before anything is changed."""
    if type(loss) is Tensor and not loss.ndim and loss.requires_grad:
        return
    if not check_scalar(loss).requires_grad:
        raise ValueError(
            "loss_func returned a loss without gradient: compute it from pred by torch operations, "
            "with no detach, item or argmax, and train at least one parameter"
        )


def infer_loss(target: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return cross entropy for a target of integers, the mean squared error for floats."""
    if isinstance(target, Tensor) and target.is_floating_point():
        return mse_loss
    if isinstance(target, Tensor) and not target.is_complex() and target.dtype != torch.bool:
        return cross_entropy
    kind = f"a tensor of {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
    raise ValueError(f"loss_func cannot be inferred from a target that is {kind}: pass loss_func=")


def cross_entropy(pred: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross entropy of scores (N, C, ...) against classes (N, ...) of integers."""
    if not isinstance(pred, Tensor):
        raise _no_tensor(pred)
    if pred.ndim < 2 or pred.shape[1] < 2:
        raise ValueError(
            "loss_func: cross entropy was inferred from integer targets, but pred has the shape "
            f"{tuple(pred.shape)}, not one score for each of at least two classes; "
            "widen the model's output, or pass loss_func="
        )
    # A callback may have made probabilities of classes.
    plain = target.dtype is torch.long or target.is_floating_point()
    target = target if plain else target.long()
    return functional.cross_entropy(pred, target, reduction=reduction)


def mse_loss(pred: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Return the mean squared error; shapes that would only broadcast are refused."""
    if not isinstance(pred, Tensor):
        raise _no_tensor(pred)
    if pred.shape != target.shape:
        raise ValueError(
            "loss_func: the mean squared error was inferred, but pred has the shape "
            f"{tuple(pred.shape)} and the target {tuple(target.shape)}; make them equal, or pass "
            "loss_func="
        )
    return functional.mse_loss(pred, target, reduction=reduction)


def _no_tensor(pred: Any) -> TypeError:
    kind = type(pred).__name__
    return TypeError(f"loss_func cannot be inferred for a model that returns {kind}: pass it")


def per_sample(loss_func: Any) -> Callable[[Any, Any], Tensor] | None:
    """Return the loss of each sample as a function (pred, target) -> (N,); None if unknown.

    It is known where the loss has torch's option `reduction`; whether one that is not torch's own
    heeds it, its values show.

    >>> each = per_sample(functional.mse_loss)
    >>> each(torch.zeros(2, 3), torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]))
    tensor([1., 4.], dtype=torch.float64)
    """
    each: Callable[[Any, Any], Tensor]
    if isinstance(loss_func, nn.Module):
        if getattr(loss_func, "reduction", None) != "mean":
            return None
        each = copy(loss_func)
        vars(each)["reduction"] = "none"
    else:
        if "reduction" not in _parameters(loss_func):
            return None
        each = partial(loss_func, reduction="none")
    return lambda pred, target: rows(each(pred, target))


class NoLossError(ValueError):
    """A loss that has no value for each sample."""


def of_samples(loss_func: Any, pred: Any, target: Any, n: int) -> Tensor:
    """Return the losses (n,) of the n samples of a batch, by an inferred loss where it is None.

    Raises:
        NoLossError: the loss has no value for each sample.

    >>> of_samples(nn.L1Loss(), torch.tensor([1.0, 3.0]), torch.zeros(2), 2)
    tensor([1., 3.], dtype=torch.float64)
    """
    each = per_sample(infer_loss(target) if loss_func is None else loss_func)
    values = None if each is None else each(pred, target)
    if values is None or values.shape != (n,):
        raise NoLossError(
            "loss_func has no loss for each sample: it needs an option reduction, as torch's "
            f'losses have, "mean" by default, and one number for each sample by "none"; got '
            f"{getattr(loss_func, '__name__', loss_func)}"
        )
    return values


def rows(values: Tensor) -> Tensor:
    """Return the mean of each row of (N, ...) values, (N,), in double precision on the CPU.

    >>> rows(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    tensor([2., 2.], dtype=torch.float64)
    """
    values = values.detach().cpu().double()
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def _parameters(function: Any) -> Sequence[str]:
    """Return the names of the parameters; none where Python cannot tell, as of a built-in."""
    try:
        return list(signature(function).parameters)
    except (TypeError, ValueError):
        return []


def activation(loss_func: Any) -> Callable[[Tensor], Tensor] | None:
    """Return what turns the model's output into predictions; None where nothing does.

    Softmax over dimension 1 for cross entropy, sigmoid for binary cross entropy with logits, exp
    for the negative log likelihood; any other loss leaves the output as it is.
    """
    if loss_func in (cross_entropy, functional.cross_entropy) or isinstance(
        loss_func, nn.CrossEntropyLoss
    ):
        return lambda pred: pred.softmax(1)
    if loss_func is functional.binary_cross_entropy_with_logits or isinstance(
        loss_func, nn.BCEWithLogitsLoss
    ):
        return torch.sigmoid
    if loss_func is functional.nll_loss or isinstance(loss_func, nn.NLLLoss):
        return torch.exp
    return None
