"""The guard: what is not finite does not reach parameters, buffers or the optimizer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from onecycle import batch as batches
from onecycle import checks, culprit, optimizers, shards
from onecycle.signals import CancelBatch

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

POLICIES = ("raise", "locate", "skip", "ignore")
BLOCK = 512  # steps between two looks at an accelerator
TOLD = 3  # skipped batches of a fit that are told
WHAT = "a loss or gradient that is not finite"


class Guard:
    """Refuses a step whose loss or gradient is not finite, before it is taken.

    The CPU tells at once. An accelerator is not waited for: there, an optimizer that takes
    `found_inf` as torch's fused ones do leaves such a step out by itself, and it is told within
    `BLOCK` steps; any other optimizer has to wait. On cuda Adam, AdamW and SGD are made fused.

    Args:
        opt: the optimizer.
        device: where the model is.
        policy: "raise" FloatingPointError; "locate", to say in it where the trouble begins, for
            which every step is waited for; "skip" the batch with a warning; or "ignore" it.

    Raises:
        ValueError: another policy.
    """

    def __init__(self, opt: torch.optim.Optimizer, device: torch.device, policy: str) -> None:
        self.policy = checks.choice("on_nan", policy, POLICIES)
        self.opt = opt
        self._waits = device.type == "cpu"
        # On an accelerator: whether this step is bad, and how many were since the last look.
        self._bad = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)
        self._count = torch.zeros((), device=device)
        self._steps = self._skipped = 0
        self._kept = Kept([])
        self._keeps = False
        self._sharded = False

    def begin(self, modules: Sequence[nn.Module], *, scaled: bool = False) -> None:
        """Begin a run: what `modules` have in buffers is good.

        Args:
            modules: the model, and the loss where it is a module.
            scaled: the loss is scaled, so that the optimizer's found_inf is the scaler's.
        """
        self._sharded = any(map(shards.is_sharded, modules))
        self._kept = Kept([] if self.policy == "ignore" else modules)
        self._keeps = len(self._kept) > 0
        on_cpu = self._bad.device.type == "cpu"
        self._waits = on_cpu or scaled or self._locates or not _takes_found_inf(self.opt)
        self._bad.zero_()
        self._count.zero_()
        self._steps = self._skipped = 0

    @property
    def _locates(self) -> bool:
        return self.policy == "locate"

    @property
    def _raises(self) -> bool:
        return self._locates or self.policy == "raise"

    def end(self) -> None:
        """Let go of the copies."""
        self._kept = Kept([])

    def forget(self) -> None:
        """The batch of this step was dropped, whatever its loss was."""
        self._bad.zero_()

    def keep(self) -> None:
        """What is in the buffers now is good: a batch was taken in, though no step yet."""
        if self._waits:
            self._kept.keep()

    def settle(self, learn: Trainer) -> None:
        """Wait for an accelerator, before something is saved that it may have spoiled."""
        if not self._waits and self.policy != "ignore":
            self._look(learn)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Ignore everything in the block."""
        policy, self.policy = self.policy, "ignore"
        try:
            yield
        finally:
            self.policy = policy

    def check_loss(self, learn: Trainer, loss: Tensor, where: str = "") -> None:
        """Refuse a loss that is not finite, before its backward pass; `where` it was, in words."""
        if self.policy == "ignore":
            return
        if not self._waits:
            self._bad.logical_or_(~loss.detach().isfinite())
        elif not math.isfinite(loss.item()):
            self._refuse(learn, f"the loss is {loss.item()}{where}")

    def check_gradients(
        self, learn: Trainer, gradients: list[Tensor], norm: Tensor | None = None
    ) -> None:
        """Refuse gradients of which one is not finite, before the optimizer sees them.

        Args:
            learn: what is trained.
            gradients: of all parameters that have one.
            norm: of all together before they were clipped. Where it is infinite, though each of
                them is finite, clipping has made them 0.
        """
        if self.policy == "ignore":
            return
        if self._sharded:
            gradients = [shards.local(gradient) for gradient in gradients]
        if self._waits:
            if not self._finite(gradients):
                self._refuse(learn, "a gradient is not finite")
            if norm is not None and not math.isfinite(norm.item()):
                self._refuse(learn, f"the norm of the gradients is {norm.item()}")
            if self._keeps:
                self._kept.keep()
            return
        if norm is not None:
            self._bad.logical_or_(~norm.isfinite())
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._bad, self._one)
        self._agree()
        vars(self.opt).update(found_inf=self._bad, grad_scale=None)

    def overflowed(self, learn: Trainer, scale: float) -> None:
        """Put the buffers back; refuse to go on if no scale of the loss is small enough."""
        self._kept.put_back()
        if self._raises and scale < 1.0:
            text = f"a gradient is not finite at step {learn.step + 1}, {_place(learn)}"
            text = f"{text}, even with the loss scaled by {scale:g}: nothing was updated"
            raise FloatingPointError(f"{text}. {self._advice(learn)}")

    def stepped(self, learn: Trainer) -> None:
        """Look, once in a block, whether an accelerator has left steps out."""
        if self._waits or self.policy == "ignore":
            return
        for name in ("found_inf", "grad_scale"):
            vars(self.opt).pop(name, None)
        self._count += self._bad
        if self.policy == "skip":
            self._bad.zero_()
        self._steps += 1
        if self._steps % BLOCK == 0 or learn.last_batch:
            self._look(learn)

    def check_validation(self, learn: Trainer) -> None:
        """Refuse to go on after an epoch whose validation loss is not finite."""
        loss = learn.scores.get("valid_loss", 0.0)
        if math.isfinite(loss) or self.policy == "ignore":
            return
        text = (
            f"valid_loss is {loss} after step {learn.step}, {_place(learn)}: the model is as it "
            "was trained; look for values that are not finite in the validation data"
        )
        if self._raises:
            raise FloatingPointError(f'{text}; on_nan="skip" goes on')
        warnings.warn(text, stacklevel=2)

    def _finite(self, gradients: list[Tensor]) -> bool:
        """Tell whether all gradients are finite, by one call where they are alike."""
        try:
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._bad, self._one)
        except RuntimeError:
            good = all(bool(_values(gradient).isfinite().all()) for gradient in gradients)
            self._bad.fill_(not good)
        self._agree()
        good = not self._bad.item()
        if not good:
            self._bad.zero_()
        return good

    def _agree(self) -> None:
        """What is bad in the shard of one process is bad for all."""
        if self._sharded:
            dist.all_reduce(self._bad, dist.ReduceOp.MAX)

    def _look(self, learn: Trainer) -> None:
        """Wait for the device, which has left steps out, all from the first bad one on to raise."""
        count = int(self._count.item())
        if not count:
            self._kept.keep()
            return
        self._bad.zero_()
        self._count.zero_()
        self._kept.put_back()
        if self.policy == "skip":
            warnings.warn(f"{count} steps with {WHAT} were left out", stacklevel=2)
        else:
            text = f"{WHAT} at step {learn.step - count + 1}, by {_place(learn)} nothing more"
            raise FloatingPointError(f"{text} was updated. {_remedy(learn.batch)}")

    def _refuse(self, learn: Trainer, what: str) -> None:
        """Put the buffers back, and raise or skip."""
        self._kept.put_back()
        text = f"{what} at step {learn.step + 1}, {_place(learn)}: nothing was updated"
        text = f"{text}. {self._advice(learn)}"
        if self._raises:
            where = "" if self._locates else ', "locate" says where it begins'
            raise FloatingPointError(f'{text}; on_nan="skip" leaves such batches out{where}')
        self._skipped += 1
        if self._skipped <= TOLD:
            more = "; further ones are left out silently" if self._skipped == TOLD else ""
            warnings.warn(f"batch skipped: {text}{more}", stacklevel=2)
        raise CancelBatch

    def _advice(self, learn: Trainer) -> str:
        """Return what to do and, where that is asked for, where to look."""
        remedy = _remedy(learn.batch)
        return f"{culprit.told(learn)}. {remedy}" if self._locates else remedy


class Kept:
    """A copy of all buffers, such as the running statistics of batch norm, as they last were good.

    Args:
        modules: those whose buffers to keep.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        inside = [part for module in modules for part in module.modules()]
        # Batch norm changes its statistics without counting it in the version of the tensor.
        normed = [part for part in inside if isinstance(part, nn.modules.batchnorm._NormBase)]  # noqa: SLF001
        self._normed = [b for part in normed for b in part.buffers(recurse=False) if _counts(b)]
        self._copies = [buffer.detach().clone() for buffer in self._normed]
        others = [part._buffers for part in inside if part not in normed]  # noqa: SLF001
        self._others = [(owner, name) for owner in others for name in owner if _counts(owner[name])]
        self._good = [_Copy(owner[name]) for owner, name in self._others]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._normed) + len(self._others)

    def keep(self) -> None:
        """Copy those that may have changed."""
        if self._normed:
            torch._foreach_copy_(self._copies, self._normed)
        for (owner, name), good in zip(self._others, self._good, strict=True):
            good.follow(owner[name])

    @torch.no_grad()
    def put_back(self) -> None:
        """Give all of them their last good values."""
        for buffer, copy in zip(self._normed, self._copies, strict=True):
            buffer.copy_(copy)
        for (owner, name), good in zip(self._others, self._good, strict=True):
            owner[name] = good.put_back()


class _Copy:
    """A tensor and its value; the tensor's count of changes tells when to copy it again."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.value, self.version = tensor, tensor.detach().clone(), tensor._version  # noqa: SLF001

    def follow(self, tensor: Any) -> None:
        if tensor is not self.tensor:
            self.tensor, self.value = tensor, tensor.detach().clone()
        elif tensor._version != self.version:  # noqa: SLF001
            self.value.copy_(tensor.detach())
        self.version = tensor._version  # noqa: SLF001

    def put_back(self) -> Any:
        if self.tensor._version != self.version:  # noqa: SLF001
            self.tensor.copy_(self.value)
            self.version = self.tensor._version  # noqa: SLF001
        return self.tensor


def _counts(buffer: Tensor | None) -> bool:
    """Tell whether there is a buffer that can be changed; torch counts no changes of others."""
    return buffer is not None and not buffer.is_inference()


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _takes_found_inf(opt: torch.optim.Optimizer) -> bool:
    return bool(getattr(opt, "_step_supports_amp_scaling", False))


def _place(learn: Trainer) -> str:
    lr = optimizers.read(learn.opt, "lr")
    return f"epoch {learn.epoch + 1}, batch {learn.batch_index + 1}, learning rate {lr:.3g}"


def _remedy(batch: Any) -> str:
    if not batches.finite(batch):
        return "The batch itself holds values that are not finite: clean the data"
    return "Use a lower learning rate (see lr_find), clip=1.0, or look at what the loss divides by"
