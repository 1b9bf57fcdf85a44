"""The tasks on which rules for a learning rate are compared: small networks, real data.

A task is data, a network, an optimizer, a batch size, a number of epochs and where it starts. Every
run has at least 240 steps: more than the search for its learning rate. The constants of
`onecycle.suggest` were chosen on the tasks of the half "choose"; figures are reported for the half
"report".
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from onecycle import DataLoaders, Learner
from onecycle.data import digits, mnist

Split = tuple[Tensor, Tensor, Tensor, Tensor]
SGD = partial(torch.optim.SGD, momentum=0.9)
ADAMW = torch.optim.AdamW
# Third-decades around what each optimizer takes.
GRIDS = {"sgd": (-3.0, 1.0), "adamw": (-4.0, 0.0)}
STEP = 1 / 3


@dataclass(frozen=True)
class Task:
    """One task; `name` is network-optimizer-batch."""

    name: str
    half: str
    data: Callable[[], Split]
    network: Callable[[], nn.Module]
    opt: str
    batch: int
    epochs: int
    first: Callable[[], Split] | None = None
    """What the network learned before, for a task that starts from a pretrained one."""
    seeds: int = 5
    longer: bool = True
    """Whether a grid of longer runs can be afforded."""

    @property
    def kind(self) -> str:
        """From "scratch", "pretrained", or "regression", whose points are of R squared."""
        if self.data is diabetes:
            return "regression"
        return "scratch" if self.first is None else "pretrained"

    @property
    def grid(self) -> list[float]:
        """The learning rates of the grid."""
        low, high = GRIDS[self.opt]
        return [float(10**e) for e in np.arange(low, high + STEP / 2, STEP)]

    def learner(self, seed: int, *, trained: float | None = None) -> Learner:
        """Return a fresh learner; `trained` at that peak for three times the budget."""
        learn = self._made(self.data(), seed)
        if self.first is not None:
            pre = self._made(self.first(), seed + 1000)
            self._train(pre, 0.1 if self.opt == "sgd" else 3e-3, self.epochs)
            learn.model.load_state_dict(pre.model.state_dict())
            for parameter in list(learn.model.parameters())[-2:]:
                torch.nn.init.normal_(parameter, std=0.01)
        if trained is not None:
            self._train(learn, trained, 3 * self.epochs)
        return learn

    def score(self, lr: float, seed: int) -> float:
        """Return the final score of one cycle at `lr`, in points."""
        learn = self.learner(seed)
        self._train(learn, lr, self.epochs)
        pred, target = learn.get_preds()
        if not bool(torch.isfinite(pred).all()):
            pred = torch.zeros_like(pred)
        if target.is_floating_point():
            return 100 * max(0.0, 1 - float(((pred - target) ** 2).mean() / target.var()))
        return 100 * float((pred.argmax(1) == target).float().mean())

    def _made(self, split: Split, seed: int) -> Learner:
        x, y, xv, yv = split
        torch.manual_seed(seed)
        data = DataLoaders.from_tensors(x, y, valid=(xv, yv), batch_size=self.batch, seed=seed)
        assert data.valid is not None
        data.valid.batch_size = 2000  # type: ignore[attr-defined]
        opt = SGD if self.opt == "sgd" else ADAMW
        return Learner(data, self.network(), opt_func=opt)

    def _train(self, learn: Learner, lr: float, epochs: int) -> None:
        with learn.no_logging():
            learn.fit_one_cycle(epochs, lr)


# ---- data ------------------------------------------------------------------------------------


@cache
def _images() -> tuple[Tensor, Tensor]:
    """The first 10,000 images of MNIST at 14 x 14, or all digits at 8 x 8 where it is not there."""
    x, y = mnist().train.tensors  # type: ignore[attr-defined]
    return nn.functional.avg_pool2d(x[:10_000], 2), y[:10_000]


@cache
def images() -> Split:
    """4,000 images to train on, 6,000 to validate."""
    x, y = _images()
    return x[:4000], y[:4000], x[4000:], y[4000:]


def _digits_of(low: int, high: int, n: int) -> Split:
    x, y = _images()
    chosen = (y >= low) & (y < high)
    x, y = x[chosen], y[chosen] - low
    return x[:n], y[:n], x[n:], y[n:]


@cache
def low_digits() -> Split:
    """0 to 4: what is learned first."""
    return _digits_of(0, 5, 2000)


@cache
def high_digits() -> Split:
    """5 to 9: 1,000 images to train on, the others to validate."""
    return _digits_of(5, 10, 1000)


@cache
def small_digits() -> Split:
    """scikit-learn's 1,797 digits, half to validate."""
    data = digits(valid=0.5)
    assert data.valid is not None
    return *data.train.tensors, *data.valid.tensors  # type: ignore[attr-defined]


@cache
def cancer() -> Split:
    """569 patients, 30 measures, two classes; half to validate."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return _tabular(x, torch.from_numpy(y).long())


@cache
def diabetes() -> Split:
    """442 patients, 10 measures, a number to predict; half to validate."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return _tabular(x, torch.from_numpy((y - y.mean()) / y.std()).float()[:, None])


def _tabular(x: np.ndarray, y: Tensor) -> Split:
    standard = torch.from_numpy((x - x.mean(0)) / x.std(0)).float()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, valid = order[: len(y) // 2], order[len(y) // 2 :]
    return standard[train], y[train], standard[valid], y[valid]


# ---- networks --------------------------------------------------------------------------------


def mlp(
    inputs: int = 196,
    outputs: int = 10,
    *,
    norm: bool = False,
    hidden: tuple[int, ...] = (64, 32),
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Module:
    """Hidden layers, with BatchNorm where there is to be a norm."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((inputs, *hidden)):
        layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if norm else [])]
        layers += [activation()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], outputs))


def cnn(outputs: int = 10, *, norm: bool = False) -> nn.Module:
    """Three convolutions of stride 2."""
    layers: list[nn.Module] = []
    for before, after in ((1, 12), (12, 24), (24, 48)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), *([nn.BatchNorm2d(after)] if norm else [])]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, outputs))


class Rows(nn.Module):
    """A sequence model over the rows of an image, read out at its last row or their mean."""

    def __init__(self, kind: str, side: int = 14, width: int = 32) -> None:
        super().__init__()
        self.kind = kind
        self.out = nn.Linear(width, 10)
        if kind == "transformer":
            self.first = nn.Linear(side, width)
            self.place = nn.Parameter(0.02 * torch.randn(side, width))
            layer = nn.TransformerEncoderLayer(
                width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            self.body: nn.Module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        else:
            kinds = {"lstm": nn.LSTM, "gru": nn.GRU}
            self.body = kinds[kind](side, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, side, side) to (N, 10)."""
        rows = x.squeeze(1)
        if self.kind == "transformer":
            read = self.body(self.first(rows) + self.place).mean(1)
        else:
            read = self.body(rows)[0][:, -1]
        scores: Tensor = self.out(read)
        return scores


# ---- the table -------------------------------------------------------------------------------

SMALL_MLP = partial(mlp, 10, 1, hidden=(16,))
BN_MLP, BN_CNN = partial(mlp, norm=True), partial(cnn, norm=True)
TRANSFORMER, LSTM, GRU = (partial(Rows, kind) for kind in ("transformer", "lstm", "gru"))
TANH_MLP = partial(mlp, 64, hidden=(64, 64, 64), activation=nn.Tanh)
PRETRAINED, BN_PRETRAINED = partial(cnn, 5), partial(cnn, 5, norm=True)
TASKS = [
    Task("mlp-sgd-32", "choose", images, mlp, "sgd", 32, 4),
    Task("mlp_bn-adamw-512", "choose", images, BN_MLP, "adamw", 512, 30),
    Task("cnn_bn-sgd-32", "choose", images, BN_CNN, "sgd", 32, 4),
    Task("cnn-adamw-512", "choose", images, cnn, "adamw", 512, 30, seeds=3),
    Task("transformer-adamw-32", "choose", images, TRANSFORMER, "adamw", 32, 4, seeds=3),
    Task("cancer-adamw-32", "choose", cancer, partial(mlp, 30, 2), "adamw", 32, 40, seeds=10),
    Task("mlp-adamw-32", "choose", images, mlp, "adamw", 32, 4),
    Task("mlp_bn-sgd-512", "choose", images, BN_MLP, "sgd", 512, 30),
    Task("cnn-sgd-512", "choose", images, cnn, "sgd", 512, 30, seeds=3),
    Task("cnn_bn-adamw-32", "choose", images, BN_CNN, "adamw", 32, 4),
    Task("lstm-adamw-32", "choose", images, LSTM, "adamw", 32, 4),
    Task("lstm-sgd-32", "choose", images, LSTM, "sgd", 32, 4),
    Task("diabetes-sgd-32", "choose", diabetes, SMALL_MLP, "sgd", 32, 40, seeds=10),
    Task("pretrained_bn-sgd-32", "choose", high_digits, BN_PRETRAINED, "sgd", 32, 8, low_digits),
    Task("pretrained-adamw-32", "choose", high_digits, PRETRAINED, "adamw", 32, 8, low_digits),
    Task("mlp_bn-adamw-32", "report", images, BN_MLP, "adamw", 32, 4),
    Task("mlp-sgd-512", "report", images, mlp, "sgd", 512, 30),
    Task("mlp_tanh-sgd-32", "report", small_digits, TANH_MLP, "sgd", 32, 10),
    Task("cnn-adamw-32", "report", images, cnn, "adamw", 32, 4),
    Task("cnn-sgd-32", "report", images, cnn, "sgd", 32, 4),
    Task("cnn_bn-sgd-512", "report", images, BN_CNN, "sgd", 512, 30, seeds=3, longer=False),
    Task("cnn_bn-adamw-32-digits", "report", small_digits, BN_CNN, "adamw", 32, 10),
    Task(
        "transformer-adamw-512",
        "report",
        images,
        TRANSFORMER,
        "adamw",
        512,
        30,
        seeds=3,
        longer=False,
    ),
    Task("gru-adamw-32", "report", images, GRU, "adamw", 32, 4),
    Task("cancer-sgd-32", "report", cancer, partial(mlp, 30, 2), "sgd", 32, 40, seeds=10),
    Task("diabetes-adamw-32", "report", diabetes, SMALL_MLP, "adamw", 32, 40, seeds=10),
    Task(
        "pretrained_bn-adamw-32", "report", high_digits, BN_PRETRAINED, "adamw", 32, 8, low_digits
    ),
    Task("pretrained-sgd-32", "report", high_digits, PRETRAINED, "sgd", 32, 8, low_digits),
]
# What the tests can afford.
SMOKE = [
    Task("mlp-sgd-32", "smoke", small_digits, partial(mlp, 64), "sgd", 32, 12, seeds=1),
    Task("cnn_bn-adamw-32", "smoke", small_digits, BN_CNN, "adamw", 32, 12, seeds=1),
    Task("gru-adamw-32", "smoke", small_digits, partial(Rows, "gru", 8), "adamw", 32, 12, seeds=1),
]
