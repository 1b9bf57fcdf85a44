"""Augmentation of whole batches, and what the in-memory loader makes of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onecycle import DataLoaders, Learner
from onecycle.data import InMemoryLoader, cutout, digits, flip, random_crop
from onecycle.data.order import batch_seeds, permutation

X = torch.arange(6 * 2 * 5 * 7.0).view(6, 2, 5, 7) + 1


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def all_crops(x, padding, mode):
    """Every crop of each image, one by one."""
    padded = torch.nn.functional.pad(x, (padding,) * 4, mode=mode)
    h, w = x.shape[2:]
    span = range(2 * padding + 1)
    return torch.stack([padded[:, :, i : i + h, j : j + w] for i in span for j in span])


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_crop_is_one_of_the_padded_image(mode, form):
    crops, x = all_crops(X, 2, mode), X.to(memory_format=form)
    seen = set()
    for seed in range(40):
        out = random_crop(2, mode)(x, draw(seed))
        found = (crops == out).flatten(2).all(2)
        assert found.any(0).all()
        seen |= set(found.int().argmax(0).tolist())
    assert seen == set(range(25))


def test_a_crop_of_bytes_is_of_bytes():
    x = X[:, :1].to(torch.uint8)
    assert torch.equal(random_crop(1)(x, draw()), random_crop(1)(x.float(), draw()).to(torch.uint8))


def test_a_flip_mirrors_some_images_whole():
    out = flip()(X.repeat(50, 1, 1, 1), draw())
    mirrored = (out == X.flip(3).repeat(50, 1, 1, 1)).flatten(1).all(1)
    kept = (out == X.repeat(50, 1, 1, 1)).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 100 < mirrored.sum() < 200


@pytest.mark.parametrize(("p", "expected"), [(0.0, X), (1.0, X.flip(3))])
def test_the_probability_of_a_flip(p, expected):
    assert torch.equal(flip(p)(X, draw()), expected)


def test_cutout_sets_a_square_to_zero():
    out = cutout(3)(torch.ones(500, 2, 5, 7), draw())
    holes = out == 0
    rows, columns = holes.any(3).sum(2), holes.any(2).sum(2)
    assert torch.equal(holes.sum((2, 3)), rows * columns)
    assert set(rows.flatten().tolist()) == set(columns.flatten().tolist()) == {2, 3}
    assert torch.equal(holes[:, 0], holes[:, 1])
    assert holes[:, 0].any(0).all()


@pytest.mark.parametrize("augment", [random_crop(2), flip(1.0), cutout(3)])
def test_a_batch_is_not_written_to(augment):
    before = X.clone()
    augment(X, draw())
    assert torch.equal(X, before)


@pytest.mark.parametrize("augment", [random_crop(2), flip(), cutout(3)])
def test_it_depends_on_its_generator_alone(augment):
    before = torch.get_rng_state()
    assert torch.equal(augment(X, draw(3)), augment(X, draw(3)))
    assert torch.equal(before, torch.get_rng_state())


# ---- in the loader ------------------------------------------------------------------------------


def loader(n=20, **options):
    x = torch.rand(n, 1, 4, 4, generator=draw())
    options = {"batch_size": 3, "shuffle": True, **options}
    return InMemoryLoader(x, torch.arange(n), **options)


def equal(ones, others):
    return len(ones) == len(others) and all(
        torch.equal(a, b)
        for one, other in zip(ones, others, strict=True)
        for a, b in zip(one, other, strict=True)
    )


AUGMENTATIONS = [(), flip(), [random_crop(1), flip(), cutout(2)], lambda x: x * 2]


@given(
    st.integers(1, 60),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
    st.sampled_from(AUGMENTATIONS),
    st.integers(0, 60),
)
def test_a_place_in_an_epoch_is_reached_bit_for_bit(n, size, shuffle, drop_last, augment, first):
    drop_last = drop_last and n >= size
    options = {"batch_size": size, "shuffle": shuffle, "drop_last": drop_last, "augment": augment}
    batches = loader(n, **options)
    batches.set_epoch(3)
    whole = list(batches)
    assert len(whole) == len(batches) == (n // size if drop_last else -(-n // size))
    assert equal(whole[first:], list(batches.batches(first=first)))


def test_every_epoch_and_every_seed_augments_anew():
    def batch(seed, epoch):
        ones = InMemoryLoader(torch.rand(1, 1, 8, 8, generator=draw()), seed=seed, augment=noise)
        ones.set_epoch(epoch)
        return next(iter(ones))[0]

    assert torch.equal(batch(1, 2), batch(1, 2))
    assert len({batch(seed, epoch).sum().item() for seed in range(3) for epoch in range(3)}) == 9


def noise(x, generator):
    return x + torch.rand(x.shape, generator=generator)


def test_a_function_is_given_a_generator_if_it_takes_one():
    (plain, _), (noisy, _) = (
        next(iter(loader(augment=augment))) for augment in (lambda x: x, [lambda x: x, noise])
    )
    assert 0 < (noisy - plain).amin() < (noisy - plain).amax() < 1


def test_only_the_inputs_are_augmented():
    for (x, y), (_, expected) in zip(loader(augment=torch.zeros_like), loader(), strict=True):
        assert not x.any()
        assert torch.equal(y, expected)


def test_augmentation_touches_no_global_generator():
    before = torch.get_rng_state()
    list(loader(augment=[flip(), cutout(2), noise]))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shuffle", [True, False])
def test_bytes_become_the_floats_they_would_have_been_beforehand(shuffle):
    images = torch.randint(256, (70, 3, 4, 4), dtype=torch.uint8, generator=draw())
    stats = ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in stats)
    floats = images.float() / 255
    options = {"batch_size": 16, "shuffle": shuffle, "augment": [random_crop(1), cutout(2)]}
    expected = list(InMemoryLoader((floats - mean) / std, **options))
    for kept in (images, floats):
        before = kept.clone()
        assert equal(list(InMemoryLoader(kept, normalize=stats, **options)), expected)
        assert torch.equal(kept, before)


def test_one_mean_serves_all_channels_and_columns():
    batches = InMemoryLoader(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), normalize=(1, [2, 4]))
    assert next(iter(batches))[0].tolist() == [[0.0, 0.5], [2.0, 1.5]]


def test_batches_stay_as_they_were_and_are_independent():
    ones = InMemoryLoader(torch.rand(64, 16), batch_size=4, shuffle=True)
    batches, again = list(ones), list(ones)
    weight = torch.ones(16, requires_grad=True)
    loss = (batches[0][0] * weight).sum()
    batches[1][0].zero_()  # autograd would refuse this if they were views of one tensor
    loss.backward()
    assert equal(batches[:1] + batches[2:], again[:1] + again[2:])


def test_gradients_reach_inputs_that_want_them():
    x = torch.rand(64, 16, requires_grad=True)
    for (batch,) in InMemoryLoader(x, batch_size=16, shuffle=True):
        batch.sum().backward()
    assert torch.equal(x.grad, torch.ones(64, 16))


@pytest.mark.parametrize("columns", [1, 3, 16])
def test_a_batch_begins_where_a_tensor_of_its_own_would(columns):
    for (batch,) in InMemoryLoader(torch.rand(64, columns), batch_size=4, shuffle=True):
        assert batch.data_ptr() % 64 == 0


def test_the_seeds_of_batches_are_not_that_of_an_order():
    orders = [permutation(50, 7, epoch).tolist() for epoch in range(4)]
    seeds = batch_seeds(4, 7, 0) + batch_seeds(4, 7, 1)
    assert not any(torch.randperm(50, generator=draw(seed)).tolist() in orders for seed in seeds)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_place_is_reached_bit_for_bit():
    batches = loader(device="cuda", augment=[random_crop(1), flip(), cutout(2)])
    whole = list(batches)
    assert whole[0][0].is_cuda
    assert equal(whole[3:], list(batches.batches(first=3)))


def test_from_tensors_augments_training_and_normalizes_both():
    x = torch.full((8, 1, 2, 2), 3.0)
    data = DataLoaders.from_tensors(
        x, x, valid=(x, x), augment=lambda x: x + 1, normalize=(1.0, 2.0)
    )
    assert [next(iter(part))[0].unique().item() for part in (data.train, data.valid)] == [2.0, 1.0]


def test_built_in_sets_are_augmented_for_training_alone():
    data = digits(augment=torch.zeros_like)
    assert [bool(next(iter(part))[0].any()) for part in (data.train, data.valid)] == [False, True]


def test_lr_find_is_pure_with_augmentation():
    runs = []
    for find in (True, False):
        torch.manual_seed(0)
        data = digits(augment=[random_crop(1), cutout(3), noise])
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        learn = Learner(data, model)
        if find:
            learn.lr_find(num_it=20)
        learn.fit(1, 1e-2)
        runs.append([*model.parameters()])
    assert all(map(torch.equal, *runs))


def test_factories_leave_it_out_in_training_alone():
    x, y = torch.randn(20, 4), torch.arange(20) % 2
    items = torch.utils.data.TensorDataset(x, y)
    for data in (
        DataLoaders.from_tensors(x, y, valid=(x, y), batch_size=8, drop_last=True),
        DataLoaders.from_datasets(items, items, batch_size=8, drop_last=True),
        DataLoaders.from_datasets(items, items, batch_size=8, drop_last=True, in_memory=True),
    ):
        assert [len(data.train), len(data.valid)] == [2, 3]


def test_a_smaller_last_batch_is_left_out():
    data = InMemoryLoader(torch.randn(9, 4), torch.arange(9) % 2, batch_size=4, drop_last=True)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    learn = Learner((data, None), net)
    learn.fit(1)  # the last batch of one would be refused
    assert learn.step == 2


BYTES = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (ValueError, "padding must be at least 1", lambda: random_crop(0)),
        (ValueError, "mode must be one of 'reflect', 'constant'", lambda: random_crop(2, "zeros")),
        (ValueError, r"p must lie in \[0, 1\]", lambda: flip(1.5)),
        (TypeError, "size must be an integer", lambda: cutout(2.5)),
        (
            ValueError,
            r"padding=4 must be below the size 2 x 2",
            lambda: random_crop()(X[..., :2, :2], draw()),
        ),
        (
            ValueError,
            r"flip needs a batch of images \(N, C, H, W\), got \(6, 2\)",
            lambda: flip()(X[..., 0, 0], draw()),
        ),
        (TypeError, "augment must be a function", lambda: loader(augment=[1])),
        (TypeError, "augment must be a function", lambda: loader(augment=torch.nn.ReLU)),
        (TypeError, "augment must be a list", lambda: loader(augment=None)),
        (
            TypeError,
            r"flip makes a function of a batch, write flip\(",
            lambda: loader(augment=flip),
        ),
        (
            ValueError,
            "must return a tensor of 3 samples",
            lambda: list(loader(augment=lambda x: x[:1])),
        ),
        (
            ValueError,
            "must return a tensor of 3 samples.*NoneType",
            lambda: list(loader(augment=lambda x: None)),
        ),
        (ValueError, "normalize must be a pair", lambda: loader(normalize=0.5)),
        (
            ValueError,
            "mean must be a number, or one for each of the 3 channels",
            lambda: InMemoryLoader(BYTES, normalize=((1, 2), 1)),
        ),
        (ValueError, "every std must be above 0", lambda: InMemoryLoader(BYTES, normalize=(0, 0))),
        (
            TypeError,
            "must be uint8 or floats, got torch.int64",
            lambda: InMemoryLoader(torch.arange(3), normalize=(0, 1)),
        ),
        (
            ValueError,
            "drop_last=True leaves no batch of 20 samples",
            lambda: loader(batch_size=21, drop_last=True),
        ),
        (TypeError, "drop_last must be True or False", lambda: loader(drop_last=1)),
    ],
)
def test_errors_say_what_would_fit(kind, message, call):
    with pytest.raises(kind, match=message):
        call()
