"""What the layers put out during training, in numbers and in a coloured picture."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from onecycle import checks, picking
from onecycle.callback import Callback
from onecycle.picking import Modules
from onecycle.smoothing import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.utils.hooks import RemovableHandle

    from onecycle.learner import Learner

NEAR_ZERO = 0.05
BLOCK = 4096  # figures of as many outputs are read from the device at once


class ActivationStats(Callback):
    """Record mean, standard deviation, share near zero and histogram of what modules put out.

    One record at every `every`-th optimizer step, from the training batch that makes the step
    (the last one, where gradients accumulate); a cancelled batch leaves none. Several fits go on
    in one record. Of a tuple or dict the first tensor counts; what is no float tensor is left out.
    When a module runs several times in a forward pass, its last output counts. Training is the
    same, bit for bit; numbers stay on the device until the fit ends or somebody looks at them, in a
    very long fit until there are 4096 of them.

    Args:
        modules: None takes the modules with parameters of their own, as convolutions, linear and
            norm layers have; or a class of modules, such as `nn.ReLU`; or a function
            module -> bool; or modules, or names as in `model.named_modules()`.
        every: optimizer steps from record to record.
        bins: of the histogram, all of the same width.
        top: the histogram is of absolute values from 0 to `top`; all beyond is in the last bin,
            nan in none.

    Results, all in the units of the activations; records are rows, layers columns:

    * `layers`: names, in the order in which they first put something out.
    * `steps`: (records,) the step of each record, from 0 over all fits of this callback.
    * `means`, `stds`: (records, layers); the deviation is that of a population.
    * `near_zero`: (records, layers) the share of activations with |x| <= 0.05.
    * `histograms`: (layers, records, bins) counts, exact up to 2^24.

    A layer that put out nothing at a step has nan there.

    Raises:
        ValueError, TypeError: an argument out of its range or of the wrong type; when the fit
            begins, a name or module that the model does not have, no module at all, or a Learner
            with `compile`.

    Source: Stefano Giomo, "The colorful dimension"; fastai's `ActivationStats`, which sees
        negative activations as near zero and drops what is beyond its histogram.

    >>> from onecycle import Learner
    >>> from onecycle.data import digits
    >>> from onecycle.models import simple_cnn
    >>> stats = ActivationStats()
    >>> learn = Learner(digits(), simple_cnn((1, 8, 10)), callbacks=[stats])
    >>> with learn.no_logging():
    ...     learn.fit(1)
    >>> stats.layers, stats.means.shape, stats.histograms.shape
    (['0', '2'], (6, 2), (2, 6, 40))
    """

    def __init__(
        self, modules: Modules | None = None, every: int = 4, bins: int = 40, top: float = 10.0
    ) -> None:
        self.modules = picking.checked(modules)
        self.every = checks.integer("every", every)
        self.bins = checks.integer("bins", bins)
        self.top = checks.positive("top", top)
        self.layers: list[str] = []
        self._steps: list[int] = []
        self._seen = 0
        # The figures of one output are a row; its key is the place in (records, layers).
        self._keys: list[tuple[int, int]] = []
        self._rows: Array = np.empty((0, 3 + self.bins))
        self._unread: list[Tensor] = []
        self._batch: dict[str, Tensor] = {}
        self._watched: dict[str, nn.Module] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def steps(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The step of each record, (records,)."""
        return np.array(self._steps, dtype=np.int64)

    @property
    def means(self) -> Array:
        """Mean of the activations, (records, layers)."""
        return self._table[..., 0]

    @property
    def stds(self) -> Array:
        """Standard deviation of the activations, (records, layers)."""
        return self._table[..., 1]

    @property
    def near_zero(self) -> Array:
        """Share of the activations with |x| <= 0.05, (records, layers)."""
        return self._table[..., 2]

    @property
    def histograms(self) -> Array:
        """Counts of absolute values, (layers, records, bins)."""
        return np.moveaxis(self._table[..., 3:], 1, 0)

    def on_train_begin(self, learn: Learner) -> None:
        """Find the modules."""
        if learn.network.compiled:
            raise ValueError(
                "callbacks: ActivationStats sees nothing inside a model that is run by "
                "torch.compile: give Learner(compile=False)"
            )
        self._watched = picking.selected(learn.model, self.modules)

    def on_batch_begin(self, learn: Learner) -> None:  # noqa: ARG002 - the contract of a hook
        """Hook the modules for the forward pass of this batch, if its step is due."""
        self._batch.clear()
        self._unhook()
        if self._seen % self.every == 0:
            for name, module in self._watched.items():
                self._handles.append(module.register_forward_hook(partial(self._look, name)))

    def on_loss_begin(self, learn: Learner) -> None:  # noqa: ARG002
        """Unhook: a model that runs in backward again, or in a metric, is not to be seen twice."""
        self._unhook()

    def on_step_end(self, learn: Learner) -> None:  # noqa: ARG002
        """Keep what the batch left, now that it has made a step."""
        for name, row in self._batch.items():
            if name not in self.layers:
                self.layers.append(name)
            self._keys.append((len(self._steps), self.layers.index(name)))
            self._unread.append(row)
        if self._batch:
            self._steps.append(self._seen)
        self._batch.clear()
        self._seen += 1
        if len(self._unread) >= BLOCK:
            self._read()

    def on_batch_end(self, learn: Learner) -> None:  # noqa: ARG002
        """Unhook after a batch that was cancelled before its forward pass."""
        self._unhook()

    def on_train_end(self, learn: Learner) -> None:  # noqa: ARG002
        """Unhook, let go of the modules and read the numbers."""
        self._unhook()
        self._watched = {}
        self._batch.clear()
        self._read()

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded, as plain lists."""
        return {
            "bins": [self.bins, self.top],
            "layers": list(self.layers),
            "steps": list(self._steps),
            "seen": self._seen,
            "keys": [list(key) for key in self._keys],
            "rows": self._read().tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what was recorded; what is here is replaced.

        Raises:
            ValueError: it was recorded with other bins.
        """
        bins, top = state["bins"]
        if (bins, top) != (self.bins, self.top):
            raise ValueError(
                f"the record has bins={bins}, top={top:g}, this one bins={self.bins}, "
                f"top={self.top:g}"
            )
        self.layers = list(state["layers"])
        self._steps = list(state["steps"])
        self._seen = state["seen"]
        self._keys = [(record, layer) for record, layer in state["keys"]]
        self._rows = np.reshape(np.array(state["rows"], dtype=np.float64), (-1, 3 + self.bins))
        self._unread.clear()

    def plot_layer_stats(self, layer: int | str, ax: Any = None) -> Any:
        """Draw mean, deviation and share near zero of one layer over steps; return three axes.

        Args:
            layer: a name or an index of `layers`; -1 is the last.
            ax: a row of three axes.

        Raises:
            ValueError: no such layer, or nothing was recorded.
            TypeError: `ax` is no row of three axes.
        """
        from onecycle import plot_activations

        i = self._index(layer)
        curves = {
            "mean": self.means[:, i],
            "standard deviation": self.stds[:, i],
            "share near zero": self.near_zero[:, i],
        }
        return plot_activations.layer_stats(self.steps, curves, f"layer {self.layers[i]}", ax)

    def color_dim(self, layer: int | str, ax: Axes | None = None) -> Axes:
        """Draw the histograms of one layer over steps, coloured by log(1 + count); return the axes.

        A healthy layer keeps a broad band; one that has died is a bright floor, one that explodes
        a bright ceiling. A darker column is a smaller batch.

        Raises:
            ValueError: no such layer, or nothing was recorded.
        """
        from onecycle import plot_activations

        i = self._index(layer)
        return plot_activations.color_dim(
            self.steps, self.histograms[i], self.top, f"layer {self.layers[i]}", ax
        )

    def _look(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002
        """Take the figures of one output; a forward hook that returns None changes nothing."""
        x = _first_tensor(output)
        if x is not None and x.is_floating_point():
            self._batch[name] = _figures(x.detach().float(), self.bins, self.top)

    def _unhook(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _read(self) -> Array:
        """Move the unread rows to the host, all at once; return all rows."""
        if self._unread:
            device = self._unread[0].device
            rows = torch.stack([row.to(device) for row in self._unread])
            self._rows = np.concatenate([self._rows, rows.cpu().numpy()])
            self._unread.clear()
        return self._rows

    @property
    def _table(self) -> Array:
        """All figures, (records, layers, 3 + bins), nan where there are none."""
        table = np.full((len(self._steps), len(self.layers), 3 + self.bins), np.nan)
        record, layer = np.array(self._keys, dtype=np.int64).reshape(-1, 2).T
        table[record, layer] = self._read()
        return table

    def _index(self, layer: int | str) -> int:
        """Return the place of a layer among `layers`."""
        n = len(self.layers)
        if not n:
            raise ValueError("nothing was recorded: train with this callback first")
        if isinstance(layer, str) and layer in self.layers:
            return self.layers.index(layer)
        whole = isinstance(layer, (int, np.integer)) and not isinstance(layer, bool)
        if whole and -n <= int(layer) < n:
            return int(layer) % n
        names = ", ".join(map(repr, self.layers))
        raise ValueError(f"layer must be one of {names}, or below {n} as an index, got {layer!r}")


def _figures(x: Tensor, bins: int, top: float) -> Tensor:
    """Return mean, deviation, share near zero and histogram in one tensor, (3 + bins,)."""
    # Not torch.std_mean: on a CPU it takes ten times as long as two passes.
    mean = x.mean()
    size = x.abs()
    near = (size <= NEAR_ZERO).count_nonzero() / x.numel()
    moments = torch.stack([mean, (x - mean).square_().mean().sqrt(), near])
    return torch.cat([moments, _histogram(size.clamp_(max=top), bins, top)])


def _histogram(size: Tensor, bins: int, top: float) -> Tensor:
    """Return counts; they are sums of ones, so exact in any order, which torch does not know."""
    mode = torch.get_deterministic_debug_mode()
    if mode:
        torch.set_deterministic_debug_mode("default")
    try:
        return size.histc(bins, 0.0, top)
    finally:
        if mode:
            torch.set_deterministic_debug_mode(mode)


def _first_tensor(output: Any) -> Tensor | None:
    """Return the first tensor of nested tuples, lists and dicts."""
    if isinstance(output, Tensor):
        return output
    items = output.values() if isinstance(output, Mapping) else output
    found = map(_first_tensor, items if isinstance(output, (Mapping, tuple, list)) else ())
    return next((tensor for tensor in found if tensor is not None), None)
