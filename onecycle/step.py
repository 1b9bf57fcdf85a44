"""One training step, in its one order: forward, loss, backward, unscale, clip, update, zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from onecycle import batch as batches
from onecycle import checks
from onecycle.callback import Cancel, CancelBatch

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingStep:
    """What happens to one training batch.

    Args:
        opt: the optimizer.
        device: where the model is.
        precision: "fp32", or "bf16" or "fp16" for autocast around forward and loss; fp16 scales the
            loss.
        accumulate: batches for each optimizer step. The step's gradient is that of the mean loss of
            all their samples, however ragged; the last batch of an epoch always steps.
        clip: largest norm of all gradients together; infinite it only measures, None does neither.

    After an update, `loss` is the mean loss of its samples and `grad_norm` the norm of the
    gradients before clipping (nan without `clip`), both on the device; `samples` is the number of
    samples.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    def __init__(
        self,
        opt: torch.optim.Optimizer,
        device: torch.device,
        precision: str = "fp32",
        accumulate: int = 1,
        clip: float | None = None,
    ) -> None:
        self.opt = opt
        self.device = device
        self.dtype = DTYPES[checks.choice("precision", precision, tuple(DTYPES))]
        self.scaler = self._new_scaler()
        self.accumulate = checks.integer("accumulate", accumulate)
        self.clip = None if clip is None else checks.positive("clip", clip, allow_inf=True)
        self.loss: Tensor = torch.tensor(float("nan"))
        self._unmeasured = torch.tensor(float("nan"), device=device)
        self.grad_norm = self._unmeasured
        self.samples = 0
        self._micro: list[tuple[Tensor, int]] = []

    def __call__(self, learn: Trainer) -> None:
        """Train on learn.batch, firing the events between."""
        gathered = len(self._micro)
        try:
            self._train(learn)
        except Cancel:
            # What this batch added to the gradients cannot be taken out of their sum again.
            if len(self._micro) != gathered:
                self.drop()
            raise

    def _train(self, learn: Trainer) -> None:
        with self.autocast():
            inputs, target = batches.split(learn.batch)
            batches.require_target(learn.batch, target)
            learn.pred = batches.forward(learn.model, inputs)
            learn.fire("on_loss_begin")
            learn.loss = learn.compute_loss(learn.pred, target)
        learn.fire("on_backward_begin")
        check_loss(learn.loss)
        self._backward(learn.loss, batches.samples(learn.batch))

        if len(self._micro) < self.accumulate and not learn.last_batch:
            learn.fire("on_backward_end")
            return
        self._finish_gradients(learn.model)
        learn.fire("on_backward_end")
        self._update(learn)

    def flush(self, learn: Trainer) -> None:
        """Step on gradients that are left when an epoch ended before its last batch could step."""
        if not self._micro:
            return
        try:
            self._finish_gradients(learn.model)
            learn.fire("on_backward_end")
            self._update(learn)
        except CancelBatch:
            self.drop()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the scale of the loss under fp16."""
        return {"scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state."""
        self.scaler = self._new_scaler()
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of forward and loss, for training and evaluation alike."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def drop(self) -> None:
        """Forget the gradients gathered since the last update, and where the scaler stood."""
        self._micro.clear()
        self.opt.zero_grad()
        if self.scaler.is_enabled():
            self.load_state_dict(self.state_dict())

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def _update(self, learn: Trainer) -> None:
        self.scaler.step(self.opt)
        self.scaler.update()
        self.opt.zero_grad()
        self._sum_up()
        learn.step += 1
        learn.fire("on_step_end")

    def _backward(self, loss: Tensor, n: int) -> None:
        # Gradients add up as sums of n * mean; in units of the first batch equal batches weigh 1.
        weight = n / self._micro[0][1] if self._micro else 1.0
        torch.autograd.backward(self.scaler.scale(loss if weight == 1.0 else loss * weight))
        self._micro.append((loss.detach(), n))

    def _finish_gradients(self, model: nn.Module) -> None:
        """Turn the gathered gradients into those of the mean loss, then clip."""
        self.scaler.unscale_(self.opt)
        weight = sum(n for _, n in self._micro) / self._micro[0][1]
        if self.clip is None:
            self.grad_norm = self._unmeasured
            if weight == 1.0:
                return
        parameters = self._trained(model)
        if weight != 1.0:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], weight)
        if self.clip is not None:
            self.grad_norm = nn.utils.get_total_norm(
                [p.grad for p in parameters if p.grad is not None]
            )
            if self.clip < math.inf:
                nn.utils.clip_grads_with_norm_(parameters, self.clip, self.grad_norm)

    def _trained(self, model: nn.Module) -> list[Tensor]:
        """The optimizer's parameters, those of the model in its order: sums depend on it."""
        own = {id(p): p for group in self.opt.param_groups for p in group["params"]}
        return [own.pop(id(p)) for p in model.parameters() if id(p) in own] + list(own.values())

    def _sum_up(self) -> None:
        self.samples = sum(n for _, n in self._micro)
        if len(self._micro) == 1:
            self.loss = self._micro[0][0]
        else:
            self.loss = torch.stack([loss * (n / self.samples) for loss, n in self._micro]).sum()
        self._micro.clear()


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


def cross_entropy(pred: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of scores (N, C, ...) against classes (N, ...) of integers."""
    _require_tensor(pred)
    if pred.ndim < 2 or pred.shape[1] < 2:
        raise ValueError(
            "loss_func: cross entropy was inferred from integer targets, but pred has the shape "
            f"{tuple(pred.shape)}, not one score for each of at least two classes; "
            "widen the model's output, or pass loss_func="
        )
    return functional.cross_entropy(pred, target.long())


def mse_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error; shapes that would only broadcast are refused."""
    _require_tensor(pred)
    if pred.shape != target.shape:
        raise ValueError(
            "loss_func: the mean squared error was inferred, but pred has the shape "
            f"{tuple(pred.shape)} and the target {tuple(target.shape)}; make them equal, or pass "
            "loss_func="
        )
    return functional.mse_loss(pred, target)


def _require_tensor(pred: Any) -> None:
    if not isinstance(pred, Tensor):
        kind = type(pred).__name__
        raise TypeError(f"loss_func cannot be inferred for a model that returns {kind}: pass it")


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
