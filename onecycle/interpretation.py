"""What a model gets wrong: the highest losses, the confusion of classes, figures for each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onecycle import checks, plot_interpretation
from onecycle.batch import as_tensor
from onecycle.evaluation import Evaluator
from onecycle.highest import Highest
from onecycle.labels import Labels, confusion, figures, labels
from onecycle.losses import NoLossError
from onecycle.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.learner import Learner
    from onecycle.smoothing import Array

KEEP = 100  # inputs of the highest losses


class Interpretation:
    """Predictions beside the truth: which samples a model gets wrong, and which classes.

    Args:
        preds: as `get_preds` returns them: probabilities (N, C, ...) of classes, (N,) or (N, 1) of
            the second of two, or values.
        targets: classes (N, ...), or values.
        losses: (N,), of each sample.
        inputs: the inputs of sample i under `inputs[i]`: a tensor (N, ...), or a dict of some.
        classes: a name for each class; None calls them "0", "1", ...

    Targets that are no class, as torch's `ignore_index` marks them, are left out.

    Raises:
        ValueError: lengths that differ.

    >>> import torch
    >>> preds = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    >>> found = Interpretation(preds, torch.tensor([0, 1, 1]), classes=["cat", "dog"])
    >>> found
    Interpretation(3 samples, 2 classes, accuracy 0.6667)
    >>> found.confusion_matrix().tolist()
    [[1, 0], [1, 1]]
    >>> found.most_confused()
    [('dog', 'cat', 1)]
    """

    def __init__(
        self,
        preds: Any,
        targets: Any,
        losses: Any = None,
        inputs: Any = None,
        *,
        classes: Iterable[Any] | None = None,
    ) -> None:
        self.preds, self.targets, self.inputs = preds, targets, inputs
        self.losses = None if losses is None else as_tensor(losses, "losses")
        parts = {"preds": preds, "targets": targets, "losses": self.losses}
        lengths = {name: len(part) for name, part in parts.items() if isinstance(part, Tensor)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"preds, targets and losses must be of one length, got {lengths}")
        self._labels = labels(preds, targets)
        self.classes = self._names(classes)

    @classmethod
    def from_learner(
        cls,
        learn: Learner,
        dl: Iterable[Any] | None = None,
        *,
        classes: Iterable[Any] | None = None,
        keep: int = KEEP,
    ) -> Interpretation:
        """Return what `learn.interpret` does, by the name that fastai has for it."""
        return learn.interpret(dl, classes=classes, keep=keep)

    def top_losses(self, k: int | None = None, *, with_input: bool = False) -> tuple[Any, ...]:
        """Return the highest losses (k,), falling, and the numbers (k,) of their samples.

        Args:
            k: how many; None is all.
            with_input: return a list of the inputs, too, as the last item.

        Raises:
            ValueError: there are not so many, no losses, or no inputs of them.

        >>> import torch
        >>> found = Interpretation(torch.zeros(3), torch.ones(3), [0.5, 2.0, 1.0])
        >>> found.top_losses(2)
        (tensor([2., 1.]), tensor([1, 2]))
        """
        if self.losses is None:
            raise ValueError(
                "there are no losses: make it by learn.interpret(), with a loss that has one for "
                'each sample, such as nn.CrossEntropyLoss or a function with reduction="none"'
            )
        n = len(self.losses)
        k = n if k is None else checks.integer("k", k, high=n)
        # Where a loss is no number it is the first to look at, and so torch sorts it.
        values, indices = self.losses.sort(descending=True, stable=True)
        found = values[:k], indices[:k]
        return (*found, self._inputs(found[1].tolist())) if with_input else found

    def plot_top_losses(self, k: int = 9) -> Any:
        """Draw the samples of the highest losses, with what was predicted; return the axes.

        Inputs that are images, (N, C, H, W) with one or three channels or (N, H, W), are drawn,
        each between its own lowest and highest value, under predicted / actual, the loss and the
        probability of the predicted class. Of others the table of the same is returned.

        Args:
            k: how many; of fewer samples all.

        Raises:
            ValueError: the inputs of so many samples were not kept.
        """
        k = checks.integer("k", k)
        if self.losses is not None:
            k = min(k, len(self.losses))
        rows = self._rows(k)
        first = rows[0]["sample"]
        if not (self._has(first) and plot_interpretation.is_image(self.inputs[first])):
            return Table(rows)
        samples = self._inputs([row["sample"] for row in rows])
        return plot_interpretation.images(samples, [_title(row) for row in rows], _heading(rows[0]))

    def confusion_matrix(self) -> Array:
        """Return how often each class, a row, was taken for each other, a column: (C, C) counts.

        Raises:
            ValueError: the targets are no classes, one for each sample.
        """
        return confusion(self._require_labels("confusion_matrix"))

    def plot_confusion_matrix(
        self,
        normalize: bool = False,
        classes: Iterable[Any] | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw the confusion matrix and return the axes.

        Args:
            normalize: shares of the samples of a class in the place of counts.
            classes: other names.
            ax: axes to draw into.

        Raises:
            ValueError: as `confusion_matrix`.
        """
        checks.flag("normalize", normalize)
        counts = self.confusion_matrix()
        names = self.classes if classes is None else self._names(classes)
        return plot_interpretation.confusion(counts, names, ax, normalize=normalize)

    def most_confused(self, min_val: int = 1) -> list[tuple[str, str, int]]:
        """Return (actual, predicted, count) of the pairs that were confused, the most first.

        Args:
            min_val: leave out what happened less often.

        Raises:
            ValueError: as `confusion_matrix`.
        """
        low = checks.integer("min_val", min_val)
        counts = self.confusion_matrix()
        np.fill_diagonal(counts, 0)
        pairs = [
            (self.classes[i], self.classes[j], int(counts[i, j]))
            for i, j in np.argwhere(counts >= low)
        ]
        return sorted(pairs, key=lambda pair: -pair[2])

    def per_class(self) -> Table:
        """Return precision, recall, F1 and support of each class, and their means.

        With tp the samples of a class that were found: precision = tp / predicted, recall = tp /
        support, f1 = 2 tp / (predicted + support), each 0 where nothing is divided. Then the
        accuracy, "macro avg", the mean over classes, and "weighted avg", weighted by the support.
        They are the figures of scikit-learn's `classification_report` with all classes as labels.

        Raises:
            ValueError: as `confusion_matrix`.
        """
        return Table(figures(self.confusion_matrix(), self.classes))

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with a row for each sample, the highest losses first.

        Raises:
            ImportError: pandas is not installed.
        """
        return Table(self._rows(None)).to_pandas()

    def __repr__(self) -> str:
        """Return what there is in a line."""
        n = len(self.preds if self.losses is None else self.losses)
        text = f"{n} sample{'s' * (n != 1)}"
        if self._labels is not None:
            accuracy = self.per_class()[-3]["f1"]
            text += f", {self._labels.n_classes} classes, accuracy {accuracy:.4g}"
        elif self.losses is not None:
            text += f", mean loss {self.losses.mean():.4g}"
        return f"Interpretation({text})"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows: of the classes or, without, the top losses."""
        if self._labels is not None:
            return self.per_class()._repr_html_()
        rows = [] if self.losses is None else self._rows(min(10, len(self.losses)))
        return Table(rows)._repr_html_()

    # ---- small parts ---------------------------------------------------------------------------

    def _names(self, classes: Iterable[Any] | None) -> list[str]:
        size = 0 if self._labels is None else self._labels.n_classes
        names = [str(i) for i in range(size)]
        if classes is not None:
            names = [str(name) for name in checks.several("classes", classes)]
        if size and len(names) != size:
            raise ValueError(f"classes must hold {size} names, one for each class, got {names}")
        return names

    def _require_labels(self, method: str) -> Labels:
        if self._labels is None:
            raise ValueError(
                f"{method} needs one class for each sample, and predictions (N, C) of classes; "
                f"here are {_described(self.preds)} of targets {_described(self.targets)}, of a "
                "regression or of several labels: top_losses works there, too"
            )
        return self._labels

    def _rows(self, k: int | None) -> list[dict[str, Any]]:
        """Return the samples of the highest losses, with what was predicted."""
        losses, indices = self.top_losses(k)
        columns = self._columns()
        return [
            {"sample": i, **{name: of(i) for name, of in columns.items()}, "loss": loss}
            for i, loss in zip(indices.tolist(), losses.tolist(), strict=True)
        ]

    def _columns(self) -> dict[str, Callable[[int], Any]]:
        """Return what can be said of a sample in a word each."""
        found = self._labels
        if found is not None and found.actual.ndim == 1:
            return {
                "predicted": lambda i: self.classes[int(found.predicted[i])],
                "actual": lambda i: self._name(int(found.actual[i])),
                "probability": lambda i: float(found.probability[i]),
            }
        both = self.preds, self.targets
        if found is None and all(isinstance(v, Tensor) and v[:1].numel() == 1 for v in both):
            return {
                "predicted": lambda i: float(self.preds[i]),
                "actual": lambda i: float(self.targets[i]),
            }
        return {}

    def _name(self, label: int) -> str:
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    def _has(self, index: int) -> bool:
        kept = self.inputs
        return kept is not None and (not isinstance(kept, Mapping) or index in kept)

    def _inputs(self, indices: list[int]) -> list[Any]:
        if not all(map(self._has, indices)):
            kept = 0 if self.inputs is None else len(self.inputs)
            raise ValueError(
                f"k: the inputs of {kept} samples are kept, not of these {len(indices)}; "
                "learn.interpret(keep=) takes how many"
            )
        return [self.inputs[i] for i in indices]


def read(
    evaluator: Evaluator,
    loader: Iterable[Any],
    activation: Callable[[Tensor], Tensor] | None,
    losses: Callable[[Any, Any, int], Tensor],
    classes: Iterable[Any] | None,
    keep: int,
) -> Interpretation:
    """Return the interpretation of one pass over `loader`."""
    highest = Highest(checks.integer("keep", keep, low=0))
    unknown = False

    def known(pred: Any, target: Any, n: int) -> Tensor:
        nonlocal unknown
        try:
            return losses(pred, target, n)
        except NoLossError:  # all but the top losses is there without them
            unknown = True
            return torch.full((n,), math.nan)

    preds, targets, each = evaluator.collect(loader, activation, each=known, seen=highest)
    if classes is None:
        own = getattr(getattr(loader, "dataset", None), "classes", None)
        counted = labels(preds, targets)
        fit = isinstance(own, Sequence) and counted is not None and len(own) == counted.n_classes
        classes = own if fit else None
    known_losses = None if unknown else each
    return Interpretation(preds, targets, known_losses, highest.inputs, classes=classes)


def _title(row: Mapping[str, Any]) -> str:
    """Return what is written over an image."""
    if "predicted" not in row:
        return f"{row['loss']:.3g}"
    both = [v if isinstance(v, str) else f"{v:.3g}" for v in (row["predicted"], row["actual"])]
    numbers = [f"{row[name]:.3g}" for name in ("loss", "probability") if name in row]
    return f"{' / '.join(both)}\n{', '.join(numbers)}"


def _heading(row: Mapping[str, Any]) -> str:
    """Return what the titles say."""
    said = {
        "predicted": "predicted / actual",
        "loss": "loss",
        "probability": "probability of predicted",
    }
    return ", ".join(text for name, text in said.items() if name in row)


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(type(value))
