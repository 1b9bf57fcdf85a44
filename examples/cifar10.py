"""CIFAR-10: a small ResNet-9 by one cycle; or on a GPU to 94 %, against the same recipe by hand.

    python examples/cifar10.py --images 5000 --epochs 2    # half a minute on one core
    python examples/cifar10.py                             # all images, about ten minutes there
    python examples/cifar10.py --gpu --runs 5              # needs cuda

With `--gpu` three contenders train the same network on the same batches, in turns in one process:
the Learner, the Learner that records its steps (compile="step"), and a loop written by hand.
Network, batches, schedule, optimizer and loss come from the same functions. The clock runs from
before the network is made until its accuracy on the test images is known; data is on the GPU by
then, and one whole run of each comes first that does not count. Nobody validates in between or
shows a bar, which would be the Learner's alone; its guard against nan and its history are on.

The recipe is that of airbench94 (Keller Jordan, arXiv 2404.00498; 3.83 s on one A100), written anew
from its description. Left out: alternating flip (each image is mirrored at random), shifted copies
of the test images beside the mirrored ones, a fraction of an epoch (10 epochs, not 9.9), and
weights in half precision (they stay float32, and autocast computes in bf16). Batches are padded,
cut and mirrored one by one, not the whole set at once. Where the images come from a JPEG archive,
accuracies sit a little lower than on the original.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from onecycle import Callback, Learner, accuracy, data, models
from onecycle.schedules import join, linear, on_steps, sample

Part = tuple[Tensor, Tensor]  # images (N, 3, 32, 32), standardised, and their classes
Result = tuple[list[float], float]  # the loss of every step, and the accuracy at last

MOMENTUM = 0.85
# The recipe states rate and decay for 1024 images and in units of 1 + 1 / (1 - momentum), and sums
# the loss over a batch; here the loss is a mean, so that these are the same steps.
LR = 11.5 / (1 + 1 / (1 - MOMENTUM))
WD = 0.0153 / 11.5
BIAS = 64  # how much larger the rate of batch norm's biases is, at the same decay per step
TRIANGLE = join(linear(0.2, 1.0), linear(1.0, 0.07), at=[0.23])
FREEZE = 3  # epochs that the bias of the whitening learns
loss_func = partial(functional.cross_entropy, label_smoothing=0.2)


# ---- what all contenders share -----------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What every contender does; the images are on the device that they train on."""

    train: Part
    valid: Part
    epochs: int = 10
    seed: int = 0
    batch_size: int = 1024
    widths: tuple[int, int, int] = (64, 256, 256)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.train[0].device

    @property
    def precision(self) -> str:
        """Half on cuda; elsewhere contenders agree to the last digits."""
        return "bf16" if self.device.type == "cuda" else "fp32"


class Net(nn.Module):
    """Whitening, three blocks and a linear layer; in evaluation the mean with mirrored images."""

    def __init__(self, whitening: Tensor, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, len(whitening), whitening.shape[-1])
        self.whiten.weight = nn.Parameter(whitening, requires_grad=False)
        inputs = (len(whitening), *widths)
        blocks = [block(before, after) for before, after in zip(inputs, widths, strict=False)]
        self.body = nn.Sequential(nn.GELU(), *blocks, nn.MaxPool2d(3), nn.Flatten())
        self.head = nn.Linear(widths[-1], 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, 10) of images (N, 3, 32, 32)."""
        return self.logits(x) if self.training else (self.logits(x) + self.logits(x.flip(3))) / 2

    def logits(self, x: Tensor) -> Tensor:
        """Return those of the images as they are."""
        scores: Tensor = self.head(self.body(self.whiten(x)))
        return scores / 9


def block(before: int, after: int) -> nn.Sequential:
    """Two convolutions, the first pooled, each with a norm that has a bias and no scale."""
    layers: list[nn.Module] = []
    for channels, pool in ((before, [nn.MaxPool2d(2)]), (after, [])):
        conv = nn.Conv2d(channels, after, 3, padding=1, bias=False)
        nn.init.dirac_(conv.weight.detach()[:channels])  # at first these channels pass unchanged
        norm = nn.BatchNorm2d(after, eps=1e-12, momentum=0.4)
        norm.weight.requires_grad = False
        layers += [conv, *pool, norm, nn.GELU()]
    return nn.Sequential(*layers)


def whitening_filters(images: Tensor, size: int = 2, eps: float = 5e-4) -> Tensor:
    """Return filters (2 C size², C, size, size) of both signs that make patches uncorrelated.

    Each is an eigenvector of the covariance of all patches, over the square root of its eigenvalue.
    """
    patches = functional.unfold(images, size).transpose(0, 1).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(patches))
    filters = (vectors / (values + eps).sqrt()).T.reshape(-1, images.shape[1], size, size)
    return torch.cat([filters, -filters])


def network(job: Job) -> Net:
    torch.manual_seed(job.seed)
    with job.device:
        return Net(whitening_filters(job.train[0][:5000]), job.widths)


def optimizer(net: Net) -> torch.optim.Optimizer:
    """Return fused SGD with two groups: biases of the norms, and everything else that learns."""
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    biases = [norm.bias for norm in norms]
    own = {id(bias) for bias in biases}
    others = [p for p in net.parameters() if p.requires_grad and id(p) not in own]
    groups = [
        {"params": biases, "lr": LR * BIAS, "weight_decay": WD / BIAS},
        {"params": others, "lr": LR, "weight_decay": WD},
    ]
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, fused=True)


def loaders(job: Job, padding: int = 2) -> tuple[data.InMemoryLoader, data.InMemoryLoader]:
    """Return whole batches, shifted by up to `padding` and mirrored, and the test images."""
    train = data.InMemoryLoader(
        *job.train,
        batch_size=min(job.batch_size, len(job.train[0])),
        shuffle=True,
        seed=job.seed,
        augment=[data.random_crop(padding), data.flip()],
        drop_last=True,
    )
    return train, data.InMemoryLoader(*job.valid, batch_size=2000)


class Lookahead(Callback):
    """Slow weights that follow the others, which are set to them every five steps and at last.

    A share 0.95^5 p^3 of the slow weights stays at progress p. Statistics of the norms follow, too.
    """

    def begin(self, net: nn.Module) -> None:
        """Start from what `net` is."""
        tensors = [*net.parameters(), *net.buffers()]
        self.fast = [t.detach() for t in tensors if t.is_floating_point()]
        self.slow = [t.clone() for t in self.fast]

    def follow(self, step: int, total_steps: int) -> None:
        """Look ahead after step `step`, counted from 1."""
        if step % 5 == 0:
            stays = 0.95**5 * (step / total_steps) ** 3
            torch._foreach_lerp_(self.slow, self.fast, 1 - stays)
        if step % 5 == 0 or step == total_steps:
            torch._foreach_copy_(self.fast, self.slow)

    def on_train_begin(self, learn: Learner) -> None:
        """The weights are in place."""
        self.begin(learn.model)

    def on_step_end(self, learn: Learner) -> None:
        """A step is done."""
        self.follow(learn.step, learn.total_steps)


# ---- contenders --------------------------------------------------------------------------------


class FreezeWhitening(Callback):
    """The bias of the whitening learns in the first epochs only."""

    def on_epoch_begin(self, learn: Learner) -> None:
        """Freeze it when they are over."""
        if learn.epoch == FREEZE:
            learn.model.get_parameter("whiten.bias").requires_grad = False


def make_learner(job: Job, train: data.InMemoryLoader, *, recorded: bool = False) -> Learner:
    net, callbacks = network(job), [FreezeWhitening, Lookahead]
    parts = (train, None), net, loss_func, optimizer(net), accuracy, callbacks
    how = partial(Learner, device=job.device, precision=job.precision, channels_last=True)
    return how(*parts, compile="step" if recorded else False)


def run_learner(job: Job, *, recorded: bool = False) -> Result:
    train, valid = loaders(job)
    learn = make_learner(job, train, recorded=recorded)
    with learn.no_logging():
        learn.fit(job.epochs, schedule=TRIANGLE)
    return learn.recorder.losses.tolist(), learn.validate(valid)["accuracy"]


def run_by_hand(job: Job) -> Result:
    net = network(job).to(memory_format=torch.channels_last)
    train, valid = loaders(job)
    opt, lookahead, bias = optimizer(net), Lookahead(), net.get_parameter("whiten.bias")
    lookahead.begin(net)
    peaks = [group["lr"] for group in opt.param_groups]
    total, losses = job.epochs * len(train), list[Tensor]()
    factors = sample(on_steps(TRIANGLE, total), total)
    half = partial(torch.autocast, job.device.type, torch.bfloat16, job.precision == "bf16")
    for epoch in range(job.epochs):
        net.train()
        bias.requires_grad = epoch < FREEZE
        train.set_epoch(epoch)
        for x, y in train:
            for group, peak in zip(opt.param_groups, peaks, strict=True):
                group["lr"] = peak * factors[len(losses)]
            with half():
                pred = net(x.contiguous(memory_format=torch.channels_last))
                loss = loss_func(pred, y)
            torch.autograd.backward(loss)
            opt.step()
            opt.zero_grad()
            losses.append(loss.detach())
            lookahead.follow(len(losses), total)
    net.eval()
    right = torch.zeros((), device=job.device)
    with torch.no_grad(), half():
        for x, y in valid:
            right += (net(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum()
    return torch.stack(losses).tolist(), right.item() / valid.n


CONTENDERS: dict[str, Callable[[Job], Result]] = {
    "Learner": run_learner,
    'Learner, compile="step"': partial(run_learner, recorded=True),
    "by hand": run_by_hand,
}


# ---- commands ----------------------------------------------------------------------------------


def timed(run: Callable[[Job], Result], job: Job) -> tuple[float, float]:
    """Return accuracy and seconds, from and to a moment when the device has nothing left to do."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    _, right = run(job)
    torch.cuda.synchronize()
    return right, time.perf_counter() - start


def contest(job: Job, runs: int) -> None:
    torch.backends.cudnn.benchmark = True  # for all; it looks for its kernels in the unseen run
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuda {torch.version.cuda}")
    print(
        f"{len(job.train[0]):,} images, {job.epochs} epochs, {runs} runs of each after one unseen"
    )
    names, results = list(CONTENDERS), dict[str, list[tuple[float, float]]]()
    for turn in range(runs + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            result = timed(CONTENDERS[name], replace(job, seed=job.seed + turn))
            if turn:
                results.setdefault(name, []).append(result)
    hand = statistics.median(seconds for _, seconds in results["by hand"])
    print(f"\n{'':26}{'accuracy':>10}{'lowest':>8}{'seconds':>9}{'min .. max':>16}{'ratio':>7}")
    for name in names:
        scores, seconds = zip(*results[name], strict=True)
        middle, spread = statistics.median(seconds), f"{min(seconds):.3f} .. {max(seconds):.3f}"
        print(f"{name:26}{statistics.mean(scores):10.2%}{min(scores):8.2%}", end="")
        print(f"{middle:9.3f}{spread:>16}{middle / hand:7.3f}")


def one_cycle(job: Job) -> None:
    torch.manual_seed(job.seed)
    pictures, model = loaders(job, padding=4), models.resnet9(width=16)
    learn = Learner(pictures, model, metrics=accuracy, device=job.device, precision="auto")
    start = time.perf_counter()
    learn.fit_one_cycle(job.epochs, 1e-2)
    seconds = time.perf_counter() - start
    right = learn.recorder.history[-1]["accuracy"]
    print(f"accuracy {right:.2%} after {job.epochs} epochs in {seconds:.1f} s on {job.device}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train CIFAR-10.")
    parser.add_argument("--gpu", action="store_true", help="to 94 %%, against a loop by hand")
    parser.add_argument("--epochs", type=int, help="default: 5, and 10 with --gpu")
    parser.add_argument("--images", type=int, help="the first ones only, of training and test")
    parser.add_argument("--runs", type=int, default=5, help="of each with --gpu (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.gpu and device.type != "cuda":
        parser.error("--gpu needs cuda, and torch finds none here")
    for name in ("epochs", "images", "runs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    whole = data.cifar10(device=device)
    assert isinstance(whole.train, data.InMemoryLoader)
    assert isinstance(whole.valid, data.InMemoryLoader)
    x, y = (tensor[: options.images] for tensor in whole.train.tensors)
    xv, yv = (tensor[: options.images] for tensor in whole.valid.tensors)
    if options.gpu:
        contest(Job((x, y), (xv, yv), options.epochs or 10, options.seed), options.runs)
    else:
        one_cycle(Job((x, y), (xv, yv), options.epochs or 5, options.seed, batch_size=128))


if __name__ == "__main__":
    main()
