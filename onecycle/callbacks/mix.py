"""MixUp and CutMix: training on mixtures of two samples, with the loss of both targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Beta

from onecycle import batch as batches
from onecycle import checks
from onecycle.callback import Callback

if TYPE_CHECKING:
    from onecycle.learner import Learner

Mixer = Callable[[Tensor, Tensor], Tensor]  # of values and the order of their partners


class Mixing(Callback):
    """What `MixUp` and `CutMix` have in common: who is mixed with whom, and the loss.

    Each batch is mixed with itself in another order, with one share for all of it.

    Args:
        alpha: of Beta(alpha, alpha), which the share is drawn from.

    Raises:
        ValueError, TypeError: `alpha` is not above 0; when the fit begins, two such callbacks.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = checks.positive("alpha", alpha)
        self._share = 1.0
        self._partners: Any = None  # the targets that are mixed in, where the loss takes them

    def mixer(self, inputs: list[Tensor]) -> tuple[float, Mixer]:
        """Return the share that a sample keeps of itself, and what mixes inputs so."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it mixes: MixUp does")

    def is_image(self, target: Tensor, inputs: Any) -> bool:  # noqa: ARG002
        """Tell whether a target has a value for each pixel of the inputs, and is mixed as they."""
        return False

    def on_train_begin(self, learn: Learner) -> None:
        """Refuse to mix what another callback mixes."""
        mixing = [type(cb).__name__ for cb in learn.loop.callbacks if isinstance(cb, Mixing)]
        if len(mixing) > 1:
            raise ValueError(
                f"callbacks: {' and '.join(mixing)} would mix each batch twice, and the targets "
                "of one would be lost; give one of them"
            )

    def on_batch_begin(self, learn: Learner) -> None:
        """Put a mixed batch in the place of this one, whose tensors are only read."""
        self._partners = None
        inputs, target = batches.split(learn.batch)
        if target is None:  # the step tells
            return
        n = batches.samples(inputs, target)
        self._check(batches.tensors(inputs), batches.tensors(target), n)
        self._share, mix = self.mixer(batches.tensors(inputs))
        # On the CPU, where numbers are the same whatever the device.
        order = torch.randperm(n, device="cpu").to(learn.device, non_blocking=True)
        mixed = batches.each(lambda x: mix(x, order), inputs)
        if isinstance(target, Tensor) and self.is_image(target, inputs):
            target = mix(target, order)
        elif isinstance(target, Tensor) and target.is_floating_point():
            target = _blend(target, order, self._share)
        else:
            self._partners = batches.each(lambda y: y[order], target)
        learn.batch = batches.joined(learn.batch, mixed, target)

    def on_backward_begin(self, learn: Learner) -> None:
        """Mix the losses as the inputs were."""
        if self._partners is None:
            return
        with learn.network.autocast():
            other = learn.compute_loss(learn.pred, self._partners)
        learn.loss = self._share * learn.loss + (1.0 - self._share) * other
        self._partners = None

    def on_train_end(self, learn: Learner) -> None:  # noqa: ARG002 - the contract of a hook
        """Let go of the last batch."""
        self._share, self._partners = 1.0, None

    def _check(self, inputs: list[Tensor], targets: list[Tensor], n: int) -> None:
        """Refuse what cannot be mixed."""
        name = type(self).__name__
        kinds = sorted({str(x.dtype) for x in inputs if not x.is_floating_point()})
        if kinds or not inputs:
            got = ", ".join(kinds) or "no tensor"
            raise TypeError(f"data: {name} mixes inputs of floats, got {got}; make floats of them")
        if any(not x.ndim or len(x) != n for x in [*inputs, *targets]):
            shapes = [tuple(x.shape) for x in [*inputs, *targets]]
            raise ValueError(
                f"data: {name} needs inputs and targets with one row for each sample, got the "
                f"shapes {shapes}"
            )

    def _draw(self) -> float:
        alpha = torch.tensor(self.alpha, device="cpu")
        return Beta(alpha, alpha).sample().item()


class MixUp(Mixing):
    """Train on sums of two samples, lam x + (1 - lam) x', and on both their targets.

    lam is drawn from Beta(alpha, alpha), one for each batch, and x' is the batch in a random order.
    Targets of floats are mixed as the inputs are. For any others, such as classes, the loss is
    lam loss(pred, y) + (1 - lam) loss(pred, y'): for cross entropy that is the loss of mixed
    probabilities, and class weights, an ignored index, label smoothing or a loss of your own work
    as they do without. One lam for each batch, as in the authors' code, makes that exact for every
    loss, also for one that returns nothing but its mean; fastai draws one for each sample.

    The loss of a step is the mixed one; validation, and the tensors of the data, are untouched.
    Other callbacks that change learn.loss belong behind this one in the list; compile="step" cannot
    record such steps.

    Args:
        alpha: above 0; the larger, the nearer lam is to 0.5. The paper has 0.1 to 0.4 for ImageNet
            and 1 for CIFAR.

    Raises:
        ValueError, TypeError: `alpha` is not above 0; when the fit begins, a `CutMix` beside it;
            inputs that are no floats or have not one row for each sample.

    Source: Zhang et al. 2018 (arXiv 1710.09412).

    >>> from onecycle import Learner, MixUp, data, models
    >>> learn = Learner(data.digits(), models.simple_cnn((1, 8, 10)), callbacks=[MixUp()])
    >>> with learn.no_logging():
    ...     learn.fit(1)
    """

    def __init__(self, alpha: float = 0.4) -> None:
        super().__init__(alpha)

    def mixer(self, inputs: list[Tensor]) -> tuple[float, Mixer]:  # noqa: ARG002
        """Return lam and what adds up."""
        share = self._draw()
        return share, partial(_blend, share=share)


class CutMix(Mixing):
    """Train on images (N, ..., H, W) with a box cut out of another, and on both their targets.

    lam is drawn from Beta(alpha, alpha), one for each batch; the box has sides of sqrt(1 - lam) of
    the image's and its centre anywhere, so that a part may lie outside. The share of the own target
    is the share of the image that is left of it; targets are taken as in `MixUp`, one for each
    image. Targets with a value for each pixel, (N, ..., H, W), get the same box as the images.

    Args:
        alpha: above 0; at 1 every share is as likely.

    Raises:
        ValueError, TypeError: `alpha` is not above 0; when the fit begins, a `MixUp` beside it;
            inputs that are no images of floats, all of one size.

    Source: Yun et al. 2019 (arXiv 1905.04899).

    >>> from onecycle import CutMix, Learner, data, models
    >>> learn = Learner(data.digits(), models.simple_cnn((1, 8, 10)), callbacks=[CutMix()])
    >>> with learn.no_logging():
    ...     learn.fit(1)
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def mixer(self, inputs: list[Tensor]) -> tuple[float, Mixer]:
        """Return what is left of an image, and what pastes a box into it."""
        shapes = [tuple(x.shape) for x in inputs]
        if min(map(len, shapes)) < 3 or len({shape[-2:] for shape in shapes}) > 1:
            raise ValueError(
                f"data: CutMix needs images (N, ..., H, W), all of one size, got shapes {shapes}"
            )
        height, width = shapes[0][-2:]
        side = math.sqrt(1.0 - self._draw())
        rows, columns = _cut(height, side), _cut(width, side)
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return 1.0 - area / (height * width), partial(_paste, box=(rows, columns))

    def is_image(self, target: Tensor, inputs: Any) -> bool:
        """Tell whether it has the size of the images, as masks have."""
        return target.ndim > 2 and target.shape[-2:] == batches.tensors(inputs)[0].shape[-2:]


def _blend(values: Tensor, order: Tensor, share: float) -> Tensor:
    """Return share * values + (1 - share) * their partners, new tensors."""
    return values[order].lerp_(values, share)


def _paste(images: Tensor, order: Tensor, box: tuple[slice, slice]) -> Tensor:
    rows, columns = box
    mixed = images.clone()
    mixed[..., rows, columns] = images[..., rows, columns][order]
    return mixed


def _cut(length: int, side: float) -> slice:
    """Return a part of `side` times `length`, less what lies outside, around any point."""
    centre = int(torch.randint(length, (), device="cpu"))
    half = int(length * side) // 2
    return slice(max(0, centre - half), min(length, centre + half))
