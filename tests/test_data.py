"""Data: the in-memory loader, DataLoaders, and the built-in sets."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from onecycle import DataLoaders, models
from onecycle.batch import forward, samples, split, to_device
from onecycle.data import InMemoryLoader, builtin, cifar10, digits, fashion_mnist, mnist


@given(st.integers(1, 50), st.integers(1, 60), st.booleans(), st.integers(0, 5))
def test_an_epoch_holds_every_sample_once(n, batch_size, shuffle, epoch):
    loader = InMemoryLoader(torch.arange(n), batch_size=batch_size, shuffle=shuffle)
    loader.set_epoch(epoch)
    batches = [batch[0] for batch in loader]
    assert len(batches) == len(loader)
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert sorted(torch.cat(batches).tolist()) == list(range(n))


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        loader = InMemoryLoader(torch.arange(100), shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        torch.rand(3)
        return torch.cat([batch[0] for batch in loader]).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_iterating_draws_from_no_global_generator():
    before = torch.get_rng_state()
    list(InMemoryLoader(torch.arange(100), shuffle=True))
    assert torch.equal(before, torch.get_rng_state())


def test_rows_stay_together():
    x = torch.arange(20)
    for a, b in InMemoryLoader(x, 2 * x, batch_size=3, shuffle=True):
        assert torch.equal(2 * a, b)


def test_arrays_become_tensors_that_a_model_takes():
    batch = next(iter(InMemoryLoader(np.zeros((3, 2)), np.arange(3))))
    assert [tensor.dtype for tensor in batch] == [torch.float32, torch.int64]


class Frame:
    """What a pandas DataFrame or Series is to us."""

    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return self.values


def test_frames_and_read_only_arrays_are_taken():
    x, y = np.zeros((4, 2)), np.arange(4.0)
    y.setflags(write=False)
    batch = next(iter(InMemoryLoader(Frame(x), y)))
    assert [tensor.dtype for tensor in batch] == [torch.float32, torch.float32]


def test_batches_may_be_arrays():
    from onecycle import Learner

    learn = Learner(([(np.ones((4, 2)), np.arange(4) % 2)], None), torch.nn.Linear(2, 2))
    learn.fit(1)
    assert learn.predict(Frame(np.ones((3, 2)))).shape == (3, 2)


def test_a_fraction_is_held_out_at_random_and_for_good():
    x = torch.arange(50)
    one, two = (DataLoaders.from_tensors(x, x, valid=0.2, seed=4) for _ in range(2))
    held_out = one.valid.tensors[0]
    assert torch.equal(held_out, two.valid.tensors[0])
    assert (one.valid.n, one.train.n) == (10, 40)
    assert not set(held_out.tolist()) & set(one.train.tensors[0].tolist())
    assert held_out.tolist() != list(range(10))


def test_a_pair_without_validation():
    data = DataLoaders.from_tensors(torch.zeros(4, 2), torch.zeros(4))
    assert (data.valid, data.steps_per_epoch) == (None, 1)


def test_digits_are_the_digits_of_scikit_learn():
    data = digits(valid=0.25)
    x = torch.cat([data.train.tensors[0], data.valid.tensors[0]])
    y = torch.cat([data.train.tensors[1], data.valid.tensors[1]])
    assert x.shape == (1797, 1, 8, 8)
    assert y.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert x.mean().abs() < 1e-3
    assert (x.std() - 1).abs() < 1e-3


@pytest.mark.skipif(not os.environ.get("ONECYCLE_DATA"), reason="ONECYCLE_DATA is not set")
def test_mnist_is_mnist(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = mnist(batch_size=100)
    (x, y), (xv, yv) = data.train.tensors, data.valid.tensors
    assert (x.shape, xv.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert y[:5].tolist() == [5, 0, 4, 1, 9]
    assert (yv == 7).sum() + (yv == 3).sum() == 2038
    assert x.mean().abs() < 1e-3


def idx(array):
    """The IDX format: two zeros, type, dimensions, sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_read_where_they_are(tmp_path, monkeypatch, zipped):
    folder = tmp_path / "given" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images, labels = np.arange(3 * 784).reshape(3, 28, 28), np.arange(3)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name, content = f"{part}-{kind}-ubyte", idx(array)
            path = folder / (name + ".gz" * zipped)
            path.write_bytes(gzip.compress(content) if zipped else content)
    before = sorted(folder.iterdir())
    monkeypatch.setenv("ONECYCLE_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = fashion_mnist()
    assert data.valid.tensors[1].tolist() == [0, 1, 2]
    expected = (torch.from_numpy(images.astype(np.uint8)).float() / 255 - 0.286) / 0.353
    torch.testing.assert_close(data.valid.tensors[0][:, 0], expected)
    assert sorted(folder.iterdir()) == before


def test_cifar_is_read_from_an_archive_of_images(tmp_path, monkeypatch):
    import io
    import tarfile

    from PIL import Image

    with tarfile.open(tmp_path / builtin.CIFAR_JPG, "w:xz") as tar:
        for part in ("train", "test"):
            for label, grey in (("bird", 200), ("airplane", 50)):
                content = io.BytesIO()
                Image.new("RGB", (32, 32), (grey,) * 3).save(content, "JPEG")
                member = tarfile.TarInfo(f"{part}/{label}/0000.jpg")
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)
    monkeypatch.setenv("ONECYCLE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        x, y = cifar10().valid.tensors
        assert (x.shape, y.tolist()) == ((2, 3, 32, 32), [0, 1])
        assert x[0].mean() < 0 < x[1].mean()


def test_data_that_is_nowhere_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    from torchvision import datasets

    def unreachable(*args, **options):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(datasets.FashionMNIST, "download", unreachable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ONECYCLE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"FashionMNIST .*set ONECYCLE_DATA"):
        fashion_mnist()


def test_the_cache_is_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert builtin._cache() == tmp_path / ".cache" / "onecycle"


def test_simple_cnn_is_the_documents_network():
    names = [type(layer).__name__ for layer in models.simple_cnn((3, 16, 16, 2))]
    assert names == ["Conv2d", "ReLU"] * 3 + ["AdaptiveAvgPool2d", "Flatten"]
    assert sum(p.numel() for p in models.simple_cnn((3, 16, 16, 2)).parameters()) == 3058


def test_resnet9_learns_colours():
    x = torch.rand(64, 3, 1, 1).expand(-1, -1, 16, 16)
    y = x[:, :, 0, 0].argmax(1)
    from onecycle import Learner, accuracy

    data = DataLoaders.from_tensors(x, y, valid=(x, y), batch_size=16)
    learn = Learner(data, models.resnet9(classes=3, width=8), metrics=[accuracy])
    learn.fit_one_cycle(12, 1e-2)
    assert learn.validate()["accuracy"] > 0.9


def test_a_model_may_write_into_its_input():
    x = torch.randn(10, 4)
    before = x.clone()
    for (batch,) in InMemoryLoader(x, batch_size=4):
        batch.zero_()
    assert torch.equal(x, before)


X, Y = torch.zeros(3, 2), torch.zeros(3)
PACKED = pack_sequence([torch.zeros(n, 2) for n in (4, 3, 2)])


BOXES = [{"boxes": torch.zeros(n, 4)} for n in (0, 2, 5)]


@pytest.mark.parametrize(
    "batch",
    [
        ([X[0]] * 3, BOXES),
        (X, [torch.zeros(n) for n in (4, 1, 2)]),
        (X, Y),
        [X, X, Y],
        {"scale": torch.tensor(1.0), "x": X, "y": Y},
        (X,),
        X,
        (PACKED,),
    ],
)
def test_samples_are_counted(batch):
    assert samples(*split(batch)) == 3


def test_a_batch_without_lengths_is_one_sample():
    assert samples([object()], torch.tensor(1.0)) == 1


def test_what_is_no_number_stays_in_the_batch():
    names = np.array(["a", "b"])
    moved = to_device({"names": names, "packed": PACKED, "x": X}, torch.device("cpu"))
    assert moved["names"] is names
    assert moved["packed"].data is PACKED.data


def test_a_packed_sequence_is_one_input():
    lstm = torch.nn.LSTM(2, 3)
    assert forward(lstm, PACKED)[0].data.shape == (9, 3)
