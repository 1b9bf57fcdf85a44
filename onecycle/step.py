"""One training step, in its one order: forward, loss, backward, unscale, clip, update, zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from onecycle import batch as batches
from onecycle import checks, shards
from onecycle.callback import fire
from onecycle.distributed import require_alike, synchronize_buffers
from onecycle.guard import Guard
from onecycle.losses import check_loss
from onecycle.network import Network
from onecycle.recorded import RecordedStep
from onecycle.shortcuts import Backward, Update
from onecycle.signals import Cancel, CancelBatch

if TYPE_CHECKING:
    from onecycle.trainer import Trainer


class TrainingStep:
    """What happens to one training batch.

    Args:
        opt: the optimizer.
        network: the model, and its precision; the loss is scaled for fp16.
        accumulate: batches for each optimizer step. The step's gradient is that of the mean loss of
            all their samples, however ragged; the last batch of an epoch always steps.
        clip: largest norm of all gradients together; infinite it only measures, None does neither.
        on_nan: what becomes of a loss or gradient that is not finite, see `Guard`.

    After an update, `loss` is the mean loss of its samples and `grad_norm` the norm of the
    gradients before clipping (nan without `clip`), both on the device; `samples` is the number of
    samples.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    def __init__(
        self,
        opt: torch.optim.Optimizer,
        network: Network,
        accumulate: int = 1,
        clip: float | None = None,
        on_nan: str = "raise",
    ) -> None:
        self.network = network
        self.device = network.device
        self.backward = Backward(self.device)
        self.recorded = RecordedStep() if network.compile == "step" else None
        self.scaler = self._new_scaler()
        self._scales = self.scaler.is_enabled()
        self.accumulate = checks.integer("accumulate", accumulate)
        self.clip = None if clip is None else checks.positive("clip", clip, allow_inf=True)
        self.guard = Guard(opt, self.device, on_nan)
        self.use(opt)
        self.loss: Tensor = torch.tensor(float("nan"))
        self.grad_norm = torch.tensor(float("nan"), device=self.device)
        self.samples = 0
        self._has_buffers = False
        self._beside: list[Tensor] = []  # parameters of a loss, which no other process would see
        self._micro: list[tuple[Tensor, int]] = []

    def use(self, opt: torch.optim.Optimizer) -> None:
        """Update by another optimizer from now on."""
        self.opt = self.guard.opt = opt
        self.update = Update(opt)

    def __call__(self, learn: Trainer) -> None:
        """Train on learn.batch, firing the events between."""
        gathered = len(self._micro)
        try:
            self._train(learn)
        except Cancel:
            self.network.reshard()
            # What this batch added to the gradients cannot be taken out of their sum again.
            if len(self._micro) != gathered:
                self.drop()
            raise

    def _train(self, learn: Trainer) -> None:
        if self.network.parallel is not None:
            self.network.synchronize(len(self._micro) + 1 >= self.accumulate or learn.last_batch)
        inputs, target = batches.split(learn.batch)
        if target is None:
            batches.require_target(learn.batch, target)
        samples = batches.samples(inputs, target)
        if self.recorded is not None and self.recorded(learn, inputs, target):
            self._micro.append((learn.loss, samples))
            self.guard.check_loss(learn, learn.loss)
        else:
            try:
                if self.network.half is None:
                    self._forward(learn, inputs, target)
                else:
                    with self.network.autocast():
                        self._forward(learn, inputs, target)
                if learn.loop.hooks["on_backward_begin"]:
                    learn.fire("on_backward_begin")
            except Cancel as raised:
                learn.loop.tell(learn, raised)
            check_loss(learn.loss)
            if learn.world.alone:
                self.guard.check_loss(learn, learn.loss)
                self._backward(learn.loss, learn.loss.detach(), samples)
            else:
                self._backward_together(learn, samples)

        if len(self._micro) < self.accumulate and not learn.last_batch:
            learn.loop.fire_together(learn, "on_backward_end")
            self.guard.keep()
            return
        self._finish(learn)

    def _forward(self, learn: Trainer, inputs: Any, target: Any) -> None:
        learn.pred = self.network.trained(inputs)
        if learn.loop.hooks["on_loss_begin"]:
            learn.fire("on_loss_begin")
        learn.loss = learn.compute_loss(learn.pred, target)

    def begin(self, modules: Sequence[nn.Module]) -> None:
        """Begin a run of `modules`, or go on with it: they are good as they are."""
        self.guard.begin(modules, scaled=self._scales)
        self._has_buffers = any(True for _ in modules[0].buffers())
        self._beside = []
        if self.network.parallel is not None:
            known = {id(p) for p in modules[0].parameters()}
            self._beside = [p for p in self.update.parameters() if id(p) not in known]
        for parameter in self._beside:
            dist.broadcast(parameter.detach(), src=0)
        self.backward.begin()
        if self.recorded is not None:
            self.recorded.begin()

    def synchronize(self, learn: Trainer) -> None:
        """Give all processes the same buffers, which a cancelled batch has moved, too."""
        if self._has_buffers and not learn.world.alone:
            synchronize_buffers(learn.model)

    def end(self) -> None:
        """Let go of what a run has needed."""
        self.network.reshard()
        self.drop()
        self.guard.end()
        if self.recorded is not None:
            self.recorded.begin()

    def flush(self, learn: Trainer) -> None:
        """Step on gradients that are left when an epoch ended before its last batch could step."""
        self.synchronize(learn)
        if not self._micro:
            return
        if self.network.parallel is not None:
            self.network.mean_gradients(self.update.parameters())
        try:
            self._finish(learn)
        except CancelBatch:
            self.drop()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the loss's scale, and gradients still being gathered."""
        gathered = [p.grad for p in self.update.parameters()] if self._micro else []
        return {
            "scaler": self.scaler.state_dict(),
            "micro": list(self._micro),
            "gradients": [None if grad is None else grad.clone() for grad in gathered],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state."""
        self.scaler = self._new_scaler()
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self._micro = [(loss.to(self.device), n) for loss, n in state["micro"]]
        for parameter, grad in zip(self.update.parameters(), state["gradients"], strict=False):
            parameter.grad = (
                None if grad is None else shards.like(grad, parameter).to(parameter.dtype)
            )

    def drop(self) -> None:
        """Forget the gradients gathered since the last update, and where the scaler stood."""
        self._micro.clear()
        self.update.clear()
        self.guard.forget()
        if self._scales:
            scale = self.scaler.state_dict()
            self.scaler = self._new_scaler()
            self.scaler.load_state_dict(scale)

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.network.precision == "fp16")

    def _finish(self, learn: Trainer) -> None:
        self.network.mean_gradients(self._beside)
        if self._scales or self.clip is not None or len(self._micro) > 1:
            self._finish_gradients(learn.model)
        learn.loop.fire_together(learn, "on_backward_end")
        if self._scales:
            self._update_scaled(learn)
        else:
            parameters = self.update.parameters()
            gradients = [grad for p in parameters if (grad := p.grad) is not None]
            norm = None if self.clip is None else self.grad_norm
            self.guard.check_gradients(learn, gradients, norm)
            self.update(parameters, gradients)
        self.update.clear()
        if len(self._micro) == 1:
            self.loss, self.samples = self._micro.pop()
        else:
            self._sum_up()
        learn.step += 1
        self.guard.stepped(learn)
        fire(learn.loop.hooks["on_step_end"], learn)

    def _update_scaled(self, learn: Trainer) -> None:
        """Update, unless a gradient overflows, which halves the scale: such a batch is no step."""
        before = self.scaler.get_scale()
        self.update.begin_momenta()
        self.scaler.step(self.opt)
        self.scaler.update()
        after = self.scaler.get_scale()
        if after < before:
            self.guard.overflowed(learn, after)
            if after < 1.0:
                self.scaler.update(1.0)  # at 0, in the end, nothing could be told any more
            raise CancelBatch
        self.guard.keep()

    def _backward(self, loss: Tensor, mean: Tensor, n: int, share: float = 1.0) -> None:
        """Add to the gradients.

        Args:
            loss: of this process.
            mean: loss of all processes.
            n: samples of all processes.
            share: weight of this process in the mean of all.
        """
        # Gradients add up as sums of n * mean; in units of the first batch equal batches weigh 1.
        weight = share * (n / self._micro[0][1]) if self._micro else share
        weighted = loss if weight == 1.0 else loss * weight
        self.backward(self.scaler.scale(weighted) if self._scales else weighted)
        self._micro.append((mean, n))

    def _backward_together(self, learn: Trainer, samples: int) -> None:
        """Meet the others and do the backward pass with them, each by its share of the samples."""
        own = 0 if learn.loop.reader.fills_in else samples
        loss = learn.loss.detach()
        waits = self.device.type == "cpu"
        known = loss.item() if waits and own else 0.0
        rows = learn.loop.meet(learn, "batch", None, own, known, 0.0)
        require_alike(rows)
        n = int(rows[:, 0].sum())
        share = own * learn.world.size / n
        if waits:
            bad = (~rows[:, 1].isfinite()).nonzero().flatten().tolist()
            mean = (rows[:, 0] * rows[:, 1]).sum().div(n).to(loss)
            where = f" on rank {bad[0]}" if bad else ""
        else:
            mean, where = loss * (own / n) if own else torch.zeros_like(loss), ""
            dist.all_reduce(mean)
        self.guard.check_loss(learn, mean, where)
        self._backward(learn.loss, mean, n, share)
        self.network.backward_done()
        self.synchronize(learn)  # not before, for the backward pass of batch norm reads them

    def _finish_gradients(self, model: nn.Module) -> None:
        """Turn the gathered gradients into those of the mean loss, and clip them."""
        if self._scales:
            self.scaler.unscale_(self.opt)
        weight = sum(n for _, n in self._micro) / self._micro[0][1]
        parameters = self._in_order(model)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if weight != 1.0:
            torch._foreach_div_(gradients, weight)
        if self.clip is not None:
            self.grad_norm = shards.full(nn.utils.get_total_norm(gradients))
            if self.clip < math.inf:
                nn.utils.clip_grads_with_norm_(parameters, self.clip, self.grad_norm)

    def _in_order(self, model: nn.Module) -> list[Tensor]:
        """The optimizer's parameters, those of the model in its order: sums depend on it."""
        own = {id(p): p for p in self.update.parameters()}
        return [own.pop(id(p)) for p in model.parameters() if id(p) in own] + list(own.values())

    def _sum_up(self) -> None:
        self.samples = sum(n for _, n in self._micro)
        self.loss = torch.stack([loss * (n / self.samples) for loss, n in self._micro]).sum()
        self._micro.clear()
