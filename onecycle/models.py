"""Two small networks for examples and tests, and how a large one needs less memory."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from torch import Tensor, nn

from onecycle import checks, picking
from onecycle.picking import Modules
from onecycle.recompute import Again

M = TypeVar("M", bound=nn.Module)


def simple_cnn(channels: Sequence[int]) -> nn.Sequential:
    """Return 3 x 3 convolutions of stride 2, each with ReLU, then average pooling and flatten.

    Input (N, channels[0], H, W), output (N, channels[-1]). The ReLU after the last convolution is
    the documents'
    own: an output that falls to 0 for every sample has no gradient any more.

    Raises:
        ValueError, TypeError: fewer than two channels, or one that is no positive integer.

    >>> import torch
    >>> simple_cnn((3, 16, 16, 2))(torch.zeros(5, 3, 28, 28)).shape
    torch.Size([5, 2])
    """
    sizes = [checks.integer("channels", size) for size in checks.several("channels", channels)]
    if len(sizes) < 2:
        raise ValueError(f"channels must hold at least two sizes, got {channels!r}")
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def resnet9(channels: int = 3, classes: int = 10, width: int = 64) -> nn.Sequential:
    """Return a residual network of nine layers for small images.

    Input (N, channels, H, W) with H and W at least 8, output (N, classes). Convolution, three
    convolutions with max pooling, two residual pairs, a linear layer: `width` channels at first,
    eight times as many at last.

    Source: David Page, "How to train your ResNet" (2018), the DAWNBench CIFAR-10 network.

    >>> import torch
    >>> resnet9(width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    channels, classes, width = (
        checks.integer(name, value)
        for name, value in (("channels", channels), ("classes", classes), ("width", width))
    )
    return nn.Sequential(
        _conv(channels, width),
        _conv(width, 2 * width),
        nn.MaxPool2d(2),
        Residual(2 * width),
        _conv(2 * width, 4 * width),
        nn.MaxPool2d(2),
        _conv(4 * width, 8 * width),
        nn.MaxPool2d(2),
        Residual(8 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


def checkpointed(model: M, modules: Modules) -> M:
    """Have modules keep only their inputs for the backward pass, which computes the rest again.

    It takes memory for the activations of one of them at a time, and about a third more time. The
    results are the same, bit for bit: dropout draws the same numbers, and batch norm and other
    modules with buffers count a batch once. Names in `state_dict` stay. Evaluation is as ever.

    Args:
        model: it is changed, and returned.
        modules: a class of modules, such as a block of the network; or a function module -> bool;
            or modules, or names as in `model.named_modules()`. Those of an earlier call that are
            not among them are as they were, so that an empty list undoes it all. Best are parts in
            a row of about the same size, none inside another, and not the last.

    Raises:
        TypeError: `modules` is none of that.
        ValueError: the model does not have one of them, or none that fits.

    Source: Chen et al. 2016 (arXiv 1604.06174), by torch.utils.checkpoint.

    >>> import torch
    >>> model = checkpointed(resnet9(width=8), Residual)
    >>> model(torch.zeros(2, 3, 32, 32)).sum().backward()
    >>> model = checkpointed(model, [])
    """
    nothing = isinstance(modules, (list, tuple)) and not modules
    picked = {} if nothing else picking.selected(model, picking.checked(modules))
    for module in model.modules():
        if isinstance(vars(module).get("forward"), Again):
            del vars(module)["forward"]
    for module in picked.values():
        vars(module)["forward"] = Again(module)
    return model


class Residual(nn.Module):
    """Input plus two convolutions of it, (N, width, H, W) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + body(x)."""
        y: Tensor = self.body(x)
        return x + y


def _conv(before: int, after: int) -> nn.Sequential:
    """3 x 3 convolution, batch norm, ReLU; the norm has the bias."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )
