"""How the model is run: precision, memory format, torch.compile."""

import copy
import shutil
import warnings

import pytest
import torch
from helpers import Halt, everything, make, mlp, plain, same, sgd, weights
from torch import nn

from onecycle import (
    ActivationStats,
    Callback,
    CancelBatch,
    Checkpoint,
    DataLoaders,
    Learner,
    accuracy,
)
from onecycle.data import digits
from onecycle.metrics import MeanMetric
from onecycle.network import Network, resolved

CPU = torch.device("cpu")
HALF = ["bf16", "fp16"]


@pytest.mark.parametrize("options", [{}, {"compile": {"backend": "eager"}}])
def test_another_model_in_its_place_is_the_one_that_is_evaluated(data, options):
    learn = Learner(data, plain(1), **options)
    other = Learner(data, plain(2), **options)
    learn.validate()
    learn.model = other.model
    assert learn.validate() == other.validate()
    assert torch.equal(learn.get_preds()[0], other.get_preds()[0])


def test_a_hook_may_have_another_model_validated(data):
    class Mean(Callback):
        def on_validate_begin(self, learn):
            self.kept, learn.model = learn.model, plain(2)

        def on_validate_end(self, learn):
            learn.model = self.kept

    learn = Learner(data, plain(1), callbacks=[Mean()])
    learn.fit(1, 0.01)
    other = Learner(data, plain(2)).validate()
    assert learn.recorder.history[-1]["valid_loss"] == other["valid_loss"]


# ---- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "auto"])
def test_a_precision_trains_on_the_cpu(data, precision):
    learn = Learner(data, mlp(), precision=precision, metrics=[accuracy])
    learn.fit_one_cycle(8, 0.03)
    assert learn.recorder.history[-1]["accuracy"] > 0.75


@pytest.mark.parametrize("precision", ["half", "FP16", "bfloat16", "", torch.float16, True])
def test_any_other_is_refused_by_name(data, precision):
    with pytest.raises((ValueError, TypeError), match="precision must be one of"):
        Learner(data, plain(), precision=precision)


@pytest.mark.parametrize("precision", ["fp32", "tf32", *HALF])
def test_a_named_precision_is_what_it_is(precision):
    assert resolved(precision, CPU) == precision


def test_auto_is_what_the_device_is_made_for(data):
    multiplies = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    wanted = "bf16" if multiplies else "fp32"
    assert resolved("auto", CPU) == wanted
    assert Learner(data, plain(), precision="auto", device="cpu").network.precision == wanted
    assert resolved("auto", torch.device("mps")) == "fp32"


def losses(data, model=None, **options):
    learn = Learner(data, model or mlp(), **options)
    learn.fit_one_cycle(3, 0.01)
    return learn.recorder.losses


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("tf32", 0.0), ("bf16", 0.02), ("fp16", 0.02)]
)
def test_losses_are_near_those_in_single_precision(data, precision, tolerance):
    torch.manual_seed(0)
    single = losses(data)
    torch.manual_seed(0)
    other = losses(data, precision=precision)
    if len(other) == len(single):  # a step left out in fp16 is followed by others
        assert abs(other - single).max() <= tolerance


@pytest.mark.parametrize("precision", HALF)
def test_predictions_are_in_single_precision(data, precision):
    learn = Learner(data, mlp(), precision=precision)
    learn.fit(1)
    assert learn.get_preds(activate=False)[0].dtype is torch.float32
    assert learn.predict(data.valid.tensors[0]).dtype is torch.float32


@pytest.mark.parametrize("precision", HALF)
def test_metrics_are_computed_in_single_precision(data, precision):
    seen = []

    def product(pred, target):
        seen.append((pred.dtype, (pred @ pred.T).dtype))
        return target

    metrics = {"whole": lambda *both: product(*both).sum(), "batch": MeanMetric(product)}
    Learner(data, plain(), precision=precision, metrics=metrics).validate()
    assert len(seen) > 2
    assert set(seen) == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_products_are_rounded_by_tf32_on_cuda_only_and_for_a_while(precision, device):
    before = torch.get_float32_matmul_precision()
    with Network(plain(), torch.device(device), precision).running():
        rounded = torch.get_float32_matmul_precision() == "high"
    assert rounded == ((precision, device) == ("tf32", "cuda"))
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("precision", HALF)
def test_lr_find_leaves_no_trace(digit_tensors, precision):
    learn = make(digit_tensors, precision=precision)
    learn.fit_one_cycle(1, 1e-2)
    before = [everything(learn), learn.training_step.state_dict()]
    learn.lr_find(num_it=40, end_lr=1e4)
    assert same(before, [everything(learn), learn.training_step.state_dict()])


# ---- the scaled loss of fp16 --------------------------------------------------------------------


def scaled(learn, scale):
    state = learn.training_step.scaler.state_dict()
    learn.training_step.scaler.load_state_dict({**state, "scale": scale})
    return learn


def scale_of(learn):
    return learn.training_step.scaler.get_scale()


class Steps(Callback):
    """What there is after each batch, and how often a step ended."""

    def __init__(self):
        self.ended, self.steps, self.weights = 0, [], []

    def on_train_begin(self, learn):
        self.weights.append(copy.deepcopy(learn.model.state_dict()))

    def on_step_end(self, learn):
        self.ended += 1

    def on_batch_end(self, learn):
        self.steps.append(learn.step)
        self.weights.append(copy.deepcopy(learn.model.state_dict()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_overflows_is_none(data, accumulate):
    steps = Steps()
    learn = scaled(Learner(data, mlp(), precision="fp16", accumulate=accumulate), 2.0**40)
    learn.fit(1, callbacks=[steps])
    left_out = 10 // accumulate - learn.step
    assert left_out > 0
    assert steps.ended == learn.step == len(learn.recorder.losses)
    assert steps.steps[accumulate - 1] == 0
    assert scale_of(learn) == 2.0 ** (40 - left_out)
    before, after = steps.weights[0], steps.weights[accumulate]
    assert same(before["0.weight"], after["0.weight"])
    # What an accumulated batch before had to tell batch norm is known.
    assert after["1.num_batches_tracked"] == accumulate - 1


def test_the_scheduler_waits_for_a_step_that_overflows(data):
    learn = scaled(Learner(data, plain(), precision="fp16"), 2.0**40)
    learn.fit_one_cycle(6, 0.01)
    reference = Learner(data, plain())
    reference.fit_one_cycle(6, 0.01)
    n = len(learn.recorder.lrs)
    assert 0 < n < 60
    assert same(learn.recorder.lrs, reference.recorder.lrs[:n])


@pytest.mark.parametrize("fused", [True, False])
def test_momentum_begins_with_the_first_step_that_is_taken(data, fused):
    """Torch's fused SGD takes for it what is in memory when a first step is left out."""
    opt = lambda groups: torch.optim.SGD(groups, 0.01, momentum=0.9, fused=fused)  # noqa: E731
    learn = scaled(Learner(data, plain(), opt_func=opt, precision="fp16"), 2.0**40)
    _ = [torch.full((10, 64), float("nan")) for _ in range(99)]
    learn.fit(6)
    buffers = [state["momentum_buffer"] for state in learn.opt.state.values()]
    assert learn.step > 0
    assert all(buffer.isfinite().all() for buffer in buffers)


def test_a_scaled_batch_that_a_callback_drops_is_no_step(data):
    class Drop(Callback):
        def on_backward_end(self, learn):
            if learn.batch_index == 3:
                raise CancelBatch

    learn = Learner(data, plain(), precision="fp16", clip=1.0, callbacks=[Drop()])
    learn.fit(1)
    assert learn.step == 9


@pytest.mark.parametrize("precision", ["fp32", *HALF])
def test_a_loss_is_computed_in_one_precision_in_training_and_validation(data, precision):
    seen = set()

    def loss(pred, target):
        seen.add(torch.is_autocast_enabled("cpu"))
        return nn.functional.cross_entropy(pred, target)

    Learner(data, plain(), loss, precision=precision).fit(1)
    assert seen == {precision != "fp32"}


class Spoil(Callback):
    """Makes the gradient or the loss of every batch, or of one, what it should not be."""

    def __init__(self, what, value=float("nan"), at=None):
        self.what, self.value, self.at = what, value, at

    def on_backward_begin(self, learn):
        if self.at in (None, learn.batch_index):
            if self.what == "loss":
                learn.loss = learn.loss * self.value
            else:
                learn.pred.register_hook(lambda grad: grad * self.value)


def test_gradients_that_no_scale_makes_finite_raise(data):
    learn = Learner(data, plain(), precision="fp16", callbacks=[Spoil("gradient")])
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.raises(FloatingPointError, match=r"even with the loss scaled by 0\.5"):
        learn.fit(3)
    assert same(before, learn.model.state_dict())


@pytest.mark.parametrize("policy", ["skip", "ignore"])
def test_other_policies_leave_them_out_for_ever(data, policy):
    spoil = Spoil("gradient")
    learn = scaled(Learner(data, plain(), precision="fp16", on_nan=policy), 2.0)
    learn.fit(1, callbacks=[spoil])
    assert (learn.step, scale_of(learn)) == (0, 1.0)
    learn.fit(1)
    assert learn.step == 10


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_raises_at_once(data, value):
    learn = Learner(data, plain(), precision="fp16", callbacks=[Spoil("loss", value, at=3)])
    with pytest.raises(FloatingPointError, match=f"the loss is {value} at step"):
        learn.fit(1)
    assert scale_of(learn) == 2.0**16


def test_a_skipped_batch_takes_statistics_back_to_the_batch_before_only(data):
    learn = scaled(Learner(data, mlp(), precision="fp16", on_nan="skip"), 2.0**8)
    with pytest.warns(UserWarning, match="batch skipped"):
        learn.fit(1, callbacks=[Spoil("loss", at=6)])
    assert learn.step == learn.model[1].num_batches_tracked == 9


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradients_that_are_clipped_are_not_scaled(data, accumulate):
    norms = {}
    for precision in ("fp32", "fp16"):
        options = {"clip": 0.1, "accumulate": accumulate, "opt_func": torch.optim.SGD}
        learn = Learner(data, plain(), precision=precision, **options)
        scaled(learn, 2.0**8) if precision == "fp16" else None
        learn.fit(1, 0.1)
        norms[precision] = learn.recorder.grad_norms
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.01)
    assert min(norms["fp32"]) > 0.1


# ---- channels last ------------------------------------------------------------------------------


def conv():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


@pytest.fixture(scope="module")
def images():
    """240 digits in three channels, for training and validation."""
    x, y = digits().train.tensors
    x = torch.cat([x, x.flip(2), x.flip(3)], 1)[:240]
    return lambda: DataLoaders.from_tensors(x, y[:240], valid=(x[:50], y[:50]), batch_size=32)


def is_last(image):
    return image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()


@pytest.fixture
def layouts():
    """A model, and the layout of every batch of images that it is given."""
    seen, model = [], conv()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(is_last(inputs[0])))
    return seen, model


CALLS = {
    "fit": lambda learn: learn.fit(1),
    "lr_find": lambda learn: learn.lr_find(num_it=10),
    "validate": lambda learn: learn.validate(),
    "get_preds": lambda learn: learn.get_preds(),
    "predict": lambda learn: learn.predict(learn.data.valid.tensors[0]),
    "summary": lambda learn: learn.summary(),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_batch_that_the_model_sees_is_channels_last(images, layouts, call):
    seen, model = layouts
    CALLS[call](Learner(images(), model, channels_last=True))
    assert seen
    assert all(seen)
    assert is_last(model[0].weight)
    assert is_last(model[3].weight)


def test_the_data_stay_as_they_are(images):
    x, y = images().train.tensors
    batches = list(zip(x.split(32), y.split(32), strict=True))
    before = [(image.clone(), image.stride()) for image, _ in batches]
    Learner((batches, None), conv(), channels_last=True).fit(1)
    assert same(before, [(image, image.stride()) for image, _ in batches])


@pytest.mark.parametrize("opt", [torch.optim.AdamW, sgd])
def test_it_trains_as_ever(images, opt):
    runs = []
    for last in (False, True):
        learn = Learner(images(), conv(), opt_func=opt, channels_last=last)
        learn.fit_one_cycle(2, 0.01)
        runs.append(learn.recorder.losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


def test_a_model_without_images_is_left_alone(data):
    learn = Learner(data, mlp(), channels_last=True)
    learn.fit(1)
    assert same(losses(data), losses(data, channels_last=True))


def test_filters_of_three_dimensions_stay_as_they_are(data):
    model = nn.Sequential(
        nn.Unflatten(1, (1, 4, 4, 4)), nn.Conv3d(1, 4, 3), nn.Flatten(), nn.Linear(32, 10)
    )
    learn = Learner(data, model, channels_last=True)
    learn.fit(1)
    assert model[1].weight.is_contiguous()


class Two(nn.Module):
    """Of two inputs; writes down how they lie."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = conv(), []

    def forward(self, image, extra):
        self.seen.append((is_last(image), extra.is_contiguous()))
        return self.net(image) + extra.sum(1, keepdim=True)


@pytest.mark.parametrize("kind", [tuple, dict])
def test_images_among_several_inputs_are_found(images, kind):
    x, y = images().train.tensors
    batch = (x, x[:, 0, 0].clone(), y)
    if kind is dict:
        batch = dict(zip(("image", "extra", "target"), batch, strict=True))
    model = Two()
    Learner(([batch], None), model, channels_last=True).fit(1)
    assert set(model.seen) == {(True, True)}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("opt", [torch.optim.AdamW, sgd])
def test_a_file_fits_whatever_the_layout(images, tmp_path, opt, there):
    """A fused optimizer goes through the memory of a parameter and of its state as it lies."""
    first = Learner(images(), conv(), opt_func=opt, channels_last=there)
    first.fit(1, 0.01)
    first.save(tmp_path / "model.pt")
    runs = []
    for last in (False, True):
        learn = Learner(images(), conv(), opt_func=opt, channels_last=last)
        learn.load(tmp_path / "model.pt")
        torch.manual_seed(5)
        learn.fit(1, 0.01)
        runs.append(learn.recorder.losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


def test_an_optimizer_that_has_trained_fits_too(images):
    runs = []
    for last in (False, True):
        model = conv()
        opt = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        Learner(images(), model, opt_func=opt).fit(1)
        learn = Learner(images(), model, opt_func=opt, channels_last=last)
        learn.fit(1)
        runs.append(learn.recorder.losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


def test_filters_of_one_channel_are_laid_out_too(data):
    model = torch.nn.Conv2d(1, 8, 3)
    Learner(data, torch.nn.Sequential(model, torch.nn.Flatten()), channels_last=True)
    made = model(torch.zeros(2, 1, 8, 8))  # in the layout of filters or images, whichever says so
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_channels_last_is_a_flag(data, value):
    with pytest.raises(TypeError, match="channels_last must be True or False"):
        Learner(data, plain(), channels_last=value)


# ---- torch.compile ------------------------------------------------------------------------------


class Backend:
    """Runs graphs as they are, and counts how many it was given, and how often they ran."""

    def __init__(self):
        self.graphs = self.runs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


EAGER = {"backend": "eager"}


@pytest.fixture
def _no_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


compiled = pytest.mark.usefixtures("_no_graphs")


@compiled
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_graphs_of_torch_are_bit_for_bit_the_model(data, precision):
    runs = []
    for mode in (False, EAGER):
        torch.manual_seed(0)
        learn = Learner(data, mlp(), compile=mode, precision=precision, metrics=[accuracy])
        learn.fit_one_cycle(2, 0.01)
        runs.append([weights(learn), learn.recorder.losses, learn.validate()])
    assert same(*runs)


@compiled
def test_the_model_stays_the_users(data):
    model = mlp()
    learn = Learner(data, model, compile=EAGER)
    learn.fit(1)
    assert learn.model is model
    assert list(learn.model.state_dict()) == list(mlp().state_dict())
    assert learn.network.compiled


@compiled
@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"summary"}))
def test_every_call_goes_through_the_graphs(data, call):
    backend = Backend()
    learn = Learner(data, mlp(), compile={"backend": backend})
    CALLS[call](learn)
    assert backend.runs > 0


@compiled
def test_a_summary_does_not_compile(data):
    backend = Backend()
    learn = Learner(data, mlp(), compile={"backend": backend})
    assert same(learn.summary().rows, Learner(data, mlp()).summary().rows)
    assert backend.graphs == 0


@compiled
def test_a_ragged_batch_is_compiled_for_once(digit_tensors):
    x, y = digit_tensors
    backend = Backend()
    ragged = DataLoaders.from_tensors(x[:310], y[:310], valid=(x[:70], y[:70]), batch_size=30)
    learn = Learner(ragged, mlp(), compile={"backend": backend})
    learn.fit(2)
    after_two = backend.graphs
    learn.fit(4)
    learn.lr_find(num_it=12)
    learn.validate()
    assert backend.graphs == after_two
    assert backend.runs >= 6 * 11


@compiled
@pytest.mark.parametrize("saved", [False, EAGER])
def test_a_file_is_of_the_model_compiled_or_not(data, tmp_path, saved):
    first = Learner(data, mlp(), compile=saved)
    first.fit(1)
    first.save(tmp_path / "model.pt")
    other = Learner(data, mlp(), compile=False if saved else EAGER).load(tmp_path / "model.pt")
    assert same(weights(first), weights(other))


def broken_and_resumed(data, path, first, second):
    """Train to step 13 by one learner and on by another."""
    learn = first()
    saver = Checkpoint(path, every_steps=1)
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(2, 0.01, callbacks=[saver, Halt(13)])
    learn = second()
    learn.resume(path, callbacks=[Halt(None)])
    return [weights(learn), learn.recorder.losses]


@compiled
@pytest.mark.parametrize("order", [(False, EAGER), (EAGER, False)])
def test_a_run_goes_on_compiled_or_not(data, tmp_path, order):
    whole = Learner(data, plain())
    whole.fit_one_cycle(2, 0.01)
    makers = [lambda c=c: Learner(data, plain(), compile=c) for c in order]
    resumed = broken_and_resumed(data, tmp_path / "run.pt", *makers)
    assert same(resumed, [weights(whole), whole.recorder.losses])


def test_a_scaled_run_goes_on_bit_for_bit(data, tmp_path):
    def start():
        return scaled(Learner(data, mlp(), precision="fp16", opt_func=sgd), 2.0**20)

    torch.manual_seed(2)
    whole = start()
    whole.fit_one_cycle(2, 0.01)
    torch.manual_seed(2)
    second = lambda: Learner(data, mlp(), precision="fp16", opt_func=sgd)  # noqa: E731
    resumed = broken_and_resumed(data, tmp_path / "run.pt", start, second)
    assert whole.step < 20
    assert same(resumed, [weights(whole), whole.recorder.losses])


@compiled
def test_hooks_of_callbacks_see_gradients_and_outputs(data):
    seen = []

    class Look(Callback):
        def on_loss_begin(self, learn):
            seen.append(learn.pred.shape)

        def on_backward_end(self, learn):
            seen.append(learn.model[0].weight.grad.shape)

    Learner(data, mlp(), compile=EAGER, callbacks=[Look]).fit(1)
    assert seen[:2] == [(30, 10), (16, 64)]


@compiled
def test_activation_stats_says_that_it_would_see_nothing(data):
    learn = Learner(data, mlp(), compile=EAGER, callbacks=[ActivationStats()])
    with pytest.raises(ValueError, match="ActivationStats sees nothing"):
        learn.fit(1)
    assert learn.recorder.fits == []


@compiled
def test_a_last_batch_of_one_is_refused_as_ever(digit_tensors):
    x, y = digit_tensors
    ragged = DataLoaders.from_tensors(x[:61], y[:61], valid=None, batch_size=30)
    with pytest.raises(ValueError, match="leave a last batch of one, on which batch norm"):
        Learner(ragged, mlp(), compile=EAGER).fit(1)


@pytest.mark.parametrize(
    "value",
    [None, 1, 0, "yes", "reduce-overhead", [], {"backend": "none such"}, {"bakend": "eager"}],
)
def test_wrong_values_of_compile_are_refused_by_name(data, value):
    with pytest.raises(ValueError, match=r"^compile"):
        Learner(data, plain(), compile=value)


@compiled
@pytest.mark.parametrize(("value", "compiles"), [(False, False), (True, True), ({}, True)])
def test_what_compiles(data, value, compiles):
    assert Learner(data, plain(), compile=value).network.compiled is compiles


@compiled
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
def test_compiled_to_machine_code_it_learns_the_same(data):
    runs = []
    for mode in (False, True):
        learn = Learner(data, plain(), compile=mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own tools
            learn.fit_one_cycle(2, 0.01)
        runs.append(learn.recorder.losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-4)
