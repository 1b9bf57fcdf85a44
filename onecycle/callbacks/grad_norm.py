"""GradNorm: how large the gradients of each parameter, or of each layer group, are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from onecycle import checks, optimizers
from onecycle.callback import Callback
from onecycle.smoothing import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.learner import Learner
    from onecycle.trainer import Trainer

OF = ("parameters", "groups")
BLOCK = 512  # records that are read from the device at once


class GradNorm(Callback):
    """Record the Euclidean norm of the gradient of each parameter at every `every`-th step.

    It is that of the gradients a step is made with: of all accumulated batches, without the scale
    of fp16, and before clipping, as in `learn.recorder.grad_norms`, which are the norms of all
    parameters together (nan without `Learner(clip=...)`). A skipped batch leaves no record.
    Training is the same, bit for bit; numbers stay on the device until a block of them is read.

    Several fits go on in one record; one with other names begins a new one.

    Args:
        of: "parameters", by their names in the model, or "groups", the layer groups by number.
        every: steps from record to record.

    Results:

    * `steps`: (records,) the step of each record, from 0 over all fits of this callback.
    * `norms`: by name (records,); nan where there was no gradient, as of what is frozen.

    Raises:
        ValueError, TypeError: an argument out of its range or of the wrong type.

    >>> from onecycle import GradNorm, Learner, data, models
    >>> norms = GradNorm(every=10)
    >>> learn = Learner(data.digits(), models.simple_cnn((1, 8, 10)), callbacks=[norms])
    >>> with learn.no_logging():
    ...     learn.fit(1)
    >>> norms.steps, list(norms.norms)
    (array([ 0, 10, 20]), ['0.weight', '0.bias', '2.weight', '2.bias'])
    """

    def __init__(self, of: str = "parameters", every: int = 10) -> None:
        self.of = checks.choice("of", of, OF)
        self.every = checks.integer("every", every)
        self._begin([])

    def _begin(self, names: list[str]) -> None:
        self._names = names
        self._steps: list[int] = []
        self._seen = 0
        self._row: Tensor | None = None
        self._unread: list[Tensor] = []
        self._rows: Array = np.empty((0, len(names)))

    @property
    def steps(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The step of each record, (records,)."""
        return np.array(self._steps, dtype=np.int64)

    @property
    def norms(self) -> dict[str, Array]:
        """The norms by name, (records,) each."""
        return dict(zip(self._names, self._read().T, strict=True))

    def on_train_begin(self, learn: Learner) -> None:
        """Go on with the record, if it is of the same names."""
        names = list(self._parts(learn))
        if names != self._names:
            self._begin(names)

    def on_backward_end(self, learn: Learner) -> None:
        """Take the norms, if this step is due; of accumulated batches the last one has the sum."""
        if self._seen % self.every == 0:
            norms = [_norm(part, learn.device) for part in self._parts(learn).values()]
            self._row = torch.stack(norms) / _clipped_to(learn)

    def on_step_end(self, learn: Learner) -> None:  # noqa: ARG002 - the contract of a hook
        """Keep them, now that they have made a step."""
        if self._row is not None:
            self._unread.append(self._row)
            self._steps.append(self._seen)
        self._row = None
        self._seen += 1
        if len(self._unread) >= BLOCK:
            self._read()

    def on_train_end(self, learn: Learner) -> None:  # noqa: ARG002
        """Read what is left."""
        self._row = None
        self._read()

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded."""
        rows = torch.from_numpy(self._read())
        own = {"names": list(self._names), "steps": list(self._steps), "seen": self._seen}
        return {**own, "rows": rows.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what was recorded; what is here is replaced."""
        self._begin(list(state["names"]))
        self._steps, self._seen = list(state["steps"]), state["seen"]
        self._rows = state["rows"].numpy().copy()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw every norm over steps on a logarithmic scale, early layers dark; return the axes.

        Raises:
            ValueError: nothing was recorded.
        """
        from onecycle import plot

        if not self._steps:
            raise ValueError("nothing to plot: train with this callback first")
        return plot.norms(self.steps, self.norms, ax)

    def _parts(self, learn: Trainer) -> dict[str, list[Tensor]]:
        if self.of == "groups":
            return {str(i): part for i, part in enumerate(optimizers.grouped(learn.opt))}
        return {name: [parameter] for name, parameter in learn.model.named_parameters()}

    def _read(self) -> Array:
        """Move the unread rows to the host, all at once; return all rows."""
        if self._unread:
            new = torch.stack(self._unread).double().cpu().numpy()
            self._rows = np.concatenate([self._rows, new])
            self._unread.clear()
        return self._rows


def _norm(parameters: list[Tensor], device: torch.device) -> Tensor:
    """Return the norm of their gradients together, nan where there is none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.full((), math.nan, device=device)
    return nn.utils.get_total_norm(gradients).float().to(device)


def _clipped_to(learn: Trainer) -> Tensor | float:
    """Return what clipping has multiplied the gradients of this step by, as torch does it."""
    step = learn.training_step
    if step.clip is None or math.isinf(step.clip):
        return 1.0
    return (step.clip / (step.grad_norm + 1e-6)).clamp(max=1.0)
