"""Torch's backward pass, and steps of its fused optimizers, without the Python around the kernels.

A step of a small model spends more time there than in the kernels. Here the same kernels get the
same tensors, so every bit is the same, and an optimizer stays what it was, with the same
`state_dict`. Where anything differs from the step before, or is not known, torch's own way is
taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from itertools import repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable, graph, profiler
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import optimizer as optim

KNOWN = (2, 6), (2, 15)  # the first and the last torch that the tests were run with
State = dict[str, Any]


def known(version: str = torch.__version__) -> bool:
    """Tell whether this torch is one whose insides are known.

    >>> known("2.6.0+cu124"), known("3.0.0")
    (True, False)
    """
    major, minor = version.split(".")[:2]
    return KNOWN[0] <= (int(major), int(minor)) <= KNOWN[1]


class Backward:
    """The backward pass of one scalar, as `torch.autograd.backward` makes it.

    Left out are its looks at types and shapes, and the copy of the context variables, for threads
    that a backward pass on the CPU does not have, but for deeply nested checkpoints.

    Args:
        device: of the loss.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.begin()

    def begin(self) -> None:
        """Begin a run: torch's own way, which can log the graph, is asked for by its logger."""
        logged = graph.log.isEnabledFor(logging.DEBUG)
        self._direct = self._device.type == "cpu" and known() and not logged

    def __call__(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to those there are."""
        if not (self._direct and type(loss) is Tensor):
            torch.autograd.backward(loss)
            return
        retain = create = False
        # Made anew, for hooks may write into it, and a parameter may keep it as its own gradient.
        one = torch.ones_like(loss)
        Variable._execution_engine.run_backward(  # noqa: SLF001
            (loss,), (one,), retain, create, (), allow_unreachable=True, accumulate_grad=True
        )


class Update:
    """Steps of an optimizer.

    Those of Adam, AdamW and SGD, fused, with plain tensors on one device, are taken directly.
    Hooks, a wrapped `step` or a profiler are an end to that; the first step, and one after a change
    (of groups, parameters, states, of which have a gradient), is torch's.

    Args:
        opt: the optimizer.
    """

    def __init__(self, opt: Optimizer) -> None:
        self._opt = opt
        self._kernel, self._key = KERNELS.get(type(opt), NO_KERNEL) if known() else NO_KERNEL
        self._step = type(opt).step
        self._parameters: list[Tensor] = []
        self._states: list[State] = []
        self._run = Run([], [])

    def __reduce__(self) -> tuple[type[Update], tuple[Optimizer]]:
        """Copy and pickle the optimizer alone: the next step looks at it anew."""
        return Update, (self._opt,)

    def parameters(self) -> list[Tensor]:
        """Return all parameters of the optimizer."""
        return [p for group in self._opt.param_groups for p in group["params"]]

    def __call__(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Update the parameters.

        Args:
            parameters: all of them.
            gradients: of those that have one, in this order.
        """
        held: list[Any] = [state.get(self._key) for state in self._run.states]
        if self._kernel is None or self._disturbed():
            self.begin_momenta()
            self._opt.step()
        elif self._changed(parameters, gradients, held):
            self.begin_momenta()
            self._opt.step()
            self._look(parameters)
        else:
            found_inf = vars(self._opt).get("found_inf")
            before, within = torch.is_grad_enabled(), False
            torch._C._set_grad_enabled(within)  # noqa: SLF001
            try:
                self._kernel(self._run, gradients, held, found_inf)
            finally:
                torch._C._set_grad_enabled(before)  # noqa: SLF001

    def begin_momenta(self) -> None:
        """Give new momenta a 0 to begin at, which torch's fused SGD does not.

        Its first step, when found_inf leaves it out, leaves memory that nobody has written to; and
        it fails where some parameters of a group have a momentum and others, just unfrozen, none.
        """
        for group in self._opt.param_groups if type(self._opt) is SGD else ():
            if group["fused"] and group["momentum"] and not group["dampening"]:
                states = [(p, self._opt.state[p]) for p in group["params"] if p.grad is not None]
                for parameter, state in states:
                    if state.get("momentum_buffer") is None:
                        state["momentum_buffer"] = torch.zeros_like(parameter)

    def clear(self) -> None:
        """Forget the gradients, as `zero_grad` does."""
        if type(self._opt).zero_grad is not Optimizer.zero_grad or "zero_grad" in vars(self._opt):
            self._opt.zero_grad()
            return
        for group in self._opt.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _disturbed(self) -> bool:
        """Tell whether a step would do more than update."""
        own = vars(self._opt)
        return bool(
            "step" in own
            or type(self._opt).step is not self._step
            or own["_optimizer_step_pre_hooks"]
            or own["_optimizer_step_post_hooks"]
            or optim._global_optimizer_pre_hooks  # noqa: SLF001
            or optim._global_optimizer_post_hooks  # noqa: SLF001
            or own.get("grad_scale") is not None
            or profiler._is_profiler_enabled  # noqa: SLF001
        )

    def _look(self, parameters: list[Tensor]) -> None:
        """Note what there is after a step of torch's."""
        opt = self._opt
        self._parameters, self._states = parameters, list(opt.state.values())
        parts = [Part(group) for group in opt.param_groups]
        active = [p for part in parts for p in part.active]
        states = [opt.state[p] for p in active if p in opt.state]
        tensors = [t for p in active for t in (p, p.grad)]
        alike = (
            all(type(t) in (Tensor, nn.Parameter) for t in tensors)
            and len({(t.device, t.layout) for t in tensors}) <= 1
            and all(len({p.dtype for p in part.active}) <= 1 for part in parts)
            and len(states) in (0, len(active))
            and not any(group["differentiable"] for group in opt.param_groups)
        )
        self._run = Run(parts, states) if alike else Run([], [])

    def _changed(
        self, parameters: list[Tensor], gradients: list[Tensor], held: list[Tensor]
    ) -> bool:
        """Tell whether a direct step would not be that of torch."""
        groups, run = self._opt.param_groups, self._run
        return (
            not run.size
            or len(gradients) != run.size
            or not _same(parameters, self._parameters)
            or not _same(self._opt.state.values(), self._states)
            or any(map(is_, held, repeat(None)))
            or run.changed(groups)
        )


class Part:
    """A group of an optimizer: which parameters have a gradient, and which have none."""

    def __init__(self, group: dict[str, Any]) -> None:
        self.group = group
        self.active = [p for p in group["params"] if p.grad is not None]
        self.idle = [p for p in group["params"] if p.grad is None]


class Run:
    """What one step after the other has in common.

    Args:
        parts: the groups.
        states: of all parameters with a gradient, or of none.
    """

    def __init__(self, parts: list[Part], states: list[State]) -> None:
        self.parts = parts
        self.states = states
        self.size = sum(len(part.active) for part in parts)
        self._one = torch.ones((), device="cpu")
        self._steps = self._one
        self._counters: list[Tensor] = []
        self._places: list[int] = []

    def changed(self, groups: list[dict[str, Any]]) -> bool:
        """Tell whether a group is another one, or has settings that the kernel does not know."""
        if len(groups) != len(self.parts):
            return True
        for part, group in zip(self.parts, groups, strict=True):
            if (
                group is not part.group
                or group["fused"] is not True
                or type(group["lr"]) is not float
                or (part.idle and any(p.grad is not None for p in part.idle))
                or (not self.states and group.get("momentum"))
            ):
                return True
        return False

    def count(self, now: list[Tensor], found_inf: Tensor | None) -> list[Tensor]:
        """Count a step, unless `found_inf`, and return the counters: the parts of one tensor."""
        if not _same(now, self._counters) or list(map(Tensor.data_ptr, now)) != self._places:
            self._steps = torch.stack(now)
            self._counters = now = list(self._steps.unbind())
            self._places = list(map(Tensor.data_ptr, now))
            for state, counter in zip(self.states, now, strict=True):
                state["step"] = counter
        self._steps.add_(self._one if found_inf is None else 1 - found_inf)
        return now


def _adam(
    kernel: Callable[..., Any],
    run: Run,
    gradients: list[Tensor],
    counters: list[Tensor],
    found_inf: Tensor | None,
) -> None:
    """Step as torch.optim.adam._fused_adam."""
    counters, end = run.count(counters, found_inf), 0
    for part in run.parts:
        begin, end = end, end + len(part.active)
        if begin == end:
            continue
        group, states = part.group, run.states[begin:end]
        decoupled = group.get("decoupled_weight_decay", kernel is torch._fused_adamw_)
        beta1, beta2 = group["betas"]
        (torch._fused_adamw_ if decoupled else torch._fused_adam_)(
            part.active,
            gradients[begin:end],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
            counters[begin:end],
            amsgrad=group["amsgrad"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            grad_scale=None,
            found_inf=found_inf,
        )


def _sgd(
    run: Run, gradients: list[Tensor], momenta: list[Tensor], found_inf: Tensor | None
) -> None:
    """Step as torch.optim.sgd._fused_sgd."""
    end = 0
    for part in run.parts:
        begin, end = end, end + len(part.active)
        if begin == end:
            continue
        group = part.group
        torch._fused_sgd_(
            part.active,
            gradients[begin:end],
            momenta[begin:end] if group["momentum"] else [],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=False,
            grad_scale=None,
            found_inf=found_inf,
        )


Kernel = Callable[[Run, list[Tensor], list[Tensor], Tensor | None], None]
# With the part of a state that a kernel cannot begin without.
KERNELS: dict[type[Optimizer], tuple[Kernel | None, str]] = {
    Adam: (partial(_adam, torch._fused_adam_), "step"),
    AdamW: (partial(_adam, torch._fused_adamw_), "step"),
    SGD: (_sgd, "momentum_buffer"),
}
NO_KERNEL: tuple[Kernel | None, str] = (None, "")


def _same(now: Any, before: list[Any]) -> bool:
    """Tell whether two collections hold the very same objects."""
    return len(now) == len(before) and all(map(is_, now, before))
