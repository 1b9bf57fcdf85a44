"""Several processes train, evaluate, find and resume as one does."""

import math
import re
from functools import cache
from itertools import chain

import pytest
import torch
import worlds
from helpers import same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler
from worlds import CASES, PLAIN, STOPS

from onecycle.data.in_memory import InMemoryLoader
from onecycle.data.sharding import PartSampler, SequencePart, divided

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata
LENGTHS = (*range(1, 26), 37, 41)  # samples, of which a batch of all has 12
OF_FOUR = ("augmented, none left", "torch, none left", "list", "accumulate")
FITS = [(2, name) for name in CASES] + [(4, name) for name in OF_FOUR]
DIVIDED = "in_memory", "torch", "sampler"  # data that are divided, and such as were already
COARSE = {"bf16": 1e-2, "fp16": 1e-3}


@cache
def alone(fn, *args):
    """What one process makes of it."""
    return fn(*args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def two(folder):
    """What each of two processes has; all of it in one launch."""
    return worlds.everywhere(
        worlds.all_of,
        2,
        [
            *((name, worlds.trained, case) for name, case in CASES.items()),
            *((f"stopped {name}", worlds.stopped, name, folder) for name in STOPS),
            *((f"plain {name}", worlds.stopped_plain, name, folder) for name in PLAIN),
            ("watched", worlds.watched, folder),
            ("evaluations", worlds.evaluations, LENGTHS),
            *(
                (fn.__name__, fn)
                for fn in (
                    worlds.exact,
                    worlds.finders,
                    worlds.blown,
                    worlds.with_loss_of_its_own,
                    worlds.with_norm,
                    worlds.by_the_clock,
                    worlds.reductions,
                    worlds.sharded,
                    worlds.left_over,
                    worlds.unlike,
                    worlds.own_validation,
                    worlds.refusals,
                )
            ),
        ],
    )


@pytest.fixture(scope="module")
def three():
    return worlds.everywhere(worlds.all_of, 3, [("evaluations", worlds.evaluations, LENGTHS)])


@pytest.fixture(scope="module")
def four(two, folder):
    """What each of four has; they go on with runs that two have begun."""
    return worlds.everywhere(
        worlds.all_of,
        4,
        [
            *((name, worlds.trained, CASES[name]) for name in OF_FOUR),
            *((f"gone on {name}", worlds.gone_on, name, folder, "four") for name in PLAIN),
            ("evaluations", worlds.evaluations, LENGTHS),
            ("exact", worlds.exact),
        ],
    )


@pytest.fixture
def world(request):
    """The results of as many processes as the test asks for."""
    return lambda n: request.getfixturevalue({2: "two", 3: "three", 4: "four"}[n])


def near(a, b, tolerance=1e-6):
    """Whether two nested values are equal up to a tolerance, relative above 1."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(near(a[k], b[k], tolerance) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(near(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        close = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
        return a.shape == b.shape and torch.allclose(a, b, **close)
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) or a != a != b
    return a == b


# ---- fits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "name"), FITS)
def test_a_fit_is_that_of_one_process(world, n, name):
    assert near(alone(worlds.trained, CASES[name]), world(n)[0][name], COARSE.get(name, 1e-6))


@pytest.mark.parametrize(("n", "name"), FITS)
def test_all_processes_have_the_same_to_the_last_bit(world, n, name):
    first, *others = [result[name] for result in world(n)]
    assert all(same(first, other) for other in others)


@pytest.mark.parametrize("n", [2, 4])
def test_a_fit_is_exact_where_its_numbers_are(world, n):
    assert same(alone(worlds.exact), world(n)[0]["exact"])


def test_gradients_are_exchanged_once_in_a_step(two):
    assert two[0]["reductions"] == two[1]["reductions"] == [0, 0, 1, 0, 1]


def test_a_loss_with_parameters_is_trained_together(two):
    found = [result["with_loss_of_its_own"] for result in two]
    assert same(*found)
    assert near(alone(worlds.with_loss_of_its_own), found[0])


def test_gradients_that_are_left_at_the_end_of_an_epoch_are_joined(two):
    assert near(alone(worlds.left_over), two[0]["left_over"])


@pytest.mark.parametrize("name", ["with_norm", "by_the_clock", "left_over", "sharded", "watched"])
def test_processes_stay_alike(two, name):
    assert same(*(result[name] for result in two))


def test_a_fit_of_minutes_ends_at_the_end_of_its_cycle(two):
    steps = two[0]["by_the_clock"]["steps"]["lrs"]
    assert float(steps.min()) < 1e-5


def test_only_the_first_process_writes(two, folder):
    names = sorted(path.name for path in worlds.Path(folder).iterdir())
    assert [name for name in names if "best" in name or "end" in name] == ["best 0.pt", "end 0.pt"]
    assert not [name for name in names if "1.pt" in name]


def test_one_table_says_how_large_a_step_is(capfd, monkeypatch):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    calls = [(data, worlds.trained, worlds.Case(data, accumulate=2)) for data in DIVIDED]
    worlds.everywhere(worlds.all_of, 2, calls)
    shown = capfd.readouterr().out
    assert shown.count("train_loss") == len(DIVIDED)
    line = "2 processes: 16 samples each x 2 batches, so 64 in a step"
    assert shown.count(line) == len(DIVIDED)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("stream", r"ValueError.*train is a DataLoader.*sharded=True"),
        ("find", r"RuntimeError.*find trains in one process.*run it in one process"),
        ("epoch_find", r"RuntimeError.*epoch_find trains in one process.*run it in one process"),
        ("batch of one", r"ValueError.*130 samples .*batch_size=32 among 2 processes.*drop_last"),
        ("batch of one, read", r"ValueError.*129 samples .*batch_size=32 among 2 processes"),
    ],
)
def test_what_is_refused_is_refused_by_all(two, what, words):
    for result in two:
        assert result["refusals"][what] is not None
        assert re.search(words, " ".join(result["refusals"][what]))


# ---- evaluation --------------------------------------------------------------------------------


def losses_of(evaluations):
    return {n: scores["valid_loss"] for n, (scores, *_) in evaluations.items()}


def without_losses(evaluations):
    """All but what is rounded in each batch: the mean loss of its samples."""
    return {n: (scores | {"valid_loss": 0}, *rest) for n, (scores, *rest) in evaluations.items()}


@pytest.mark.parametrize("n", [2, 3, 4])
def test_scores_and_predictions_are_exact(world, n):
    expected = without_losses(alone(worlds.evaluations, LENGTHS))
    assert all(same(expected, without_losses(result["evaluations"])) for result in world(n))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_validation_loss_is_that_of_one_process(world, n):
    first, *others = [losses_of(result["evaluations"]) for result in world(n)]
    assert near(losses_of(alone(worlds.evaluations, LENGTHS)), first)
    assert all(other == first for other in others)


def test_before_a_fit_all_have_the_weights_of_the_first(two):
    assert near(alone(worlds.unlike), two[0]["unlike"])


def test_validation_data_of_each_process_are_not_divided_again(two):
    in_fit, after = two[0]["own_validation"]
    assert in_fit == after


# ---- lr_find -----------------------------------------------------------------------------------


def test_lr_find_is_the_same_in_all_processes(two):
    assert same(two[0]["finders"], two[1]["finders"])


def test_lr_find_leaves_no_trace_in_any_process(two):
    assert all(result["finders"]["no trace"] for result in two)


@pytest.mark.parametrize("method", ["sweep", "race", "linear"])
def test_lr_find_finds_what_one_process_finds(two, method):
    assert near(alone(worlds.finders)[method], two[0]["finders"][method], 1e-5)


def test_a_loss_that_is_infinite_in_one_process_ends_the_sweep_of_all(two):
    assert same(two[0]["blown"], two[1]["blown"])
    assert len(two[0]["blown"][1]) == 20


# ---- resume ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STOPS)
def test_a_run_that_was_stopped_ends_bit_for_bit_the_same(two, name):
    assert all(result[f"stopped {name}"] for result in two)


@pytest.mark.parametrize("name", PLAIN)
def test_one_process_goes_on_with_the_run_of_two(two, folder, name):
    assert near(alone(worlds.trained, PLAIN[name]), worlds.gone_on(name, folder, "one"))


@pytest.mark.parametrize("name", PLAIN)
def test_four_processes_go_on_with_the_run_of_two(four, name):
    assert near(alone(worlds.trained, PLAIN[name]), four[0][f"gone on {name}"])


# ---- parts, without processes ------------------------------------------------------------------

SOME = settings(deadline=None, max_examples=50)
SIZES = {"n": st.integers(1, 60), "size": st.integers(1, 7), "parts": st.integers(1, 5)}


def counted(parts):
    """The batches of all, from the batches of each part that count."""
    columns = zip(*(list(map(listed, part)) for part in parts), strict=True)
    return [
        list(chain(*(own for r, own in enumerate(column) if not parts[r].fills_in(k))))
        for k, column in enumerate(columns)
    ]


def listed(batch):
    return batch[0].tolist() if isinstance(batch, tuple) else batch


@SOME
@given(items=st.lists(st.integers()), parts=st.integers(1, 9))
def test_what_is_divided_is_whole_and_even(items, parts):
    own = [divided(items, rank, parts) for rank in range(parts)]
    assert list(chain(*own)) == items
    assert max(map(len, own)) - min(map(len, own)) <= 1


@SOME
@given(**SIZES, shuffle=st.booleans(), drop_last=st.booleans(), augmented=st.booleans())
def test_parts_in_memory_are_the_batches_of_all(n, size, parts, shuffle, drop_last, augmented):
    def noisy(x, generator):
        return x + torch.rand(x.shape, generator=generator)

    drop_last = drop_last and n >= size * parts
    options = {"shuffle": shuffle, "drop_last": drop_last, "augment": [noisy] * augmented}
    x = torch.arange(float(n))
    whole = InMemoryLoader(x, batch_size=size * parts, **options)
    own = [InMemoryLoader(x, batch_size=size, **options).part(r, parts) for r in range(parts)]
    for loader in (whole, *own):
        loader.set_epoch(3)
    assert counted(own) == list(map(listed, whole))
    assert {len(part) for part in own} == {len(whole)}


@SOME
@given(**SIZES)
def test_a_part_in_memory_begins_anywhere(n, size, parts):
    part = InMemoryLoader(torch.arange(n), batch_size=size, shuffle=True).part(parts - 1, parts)
    batches = list(map(listed, part))
    for first in range(len(part)):
        assert list(map(listed, part.batches(first))) == batches[first:]


@SOME
@given(**SIZES, drop_last=st.booleans())
def test_parts_of_a_sampler_are_the_batches_of_all(n, size, parts, drop_last):
    def sampler(size):
        order = RandomSampler(range(n), generator=torch.Generator().manual_seed(n))
        return BatchSampler(order, size, drop_last)

    own = [PartSampler(sampler(size), rank, parts, lambda make: make()) for rank in range(parts)]
    assert counted(own) == list(sampler(size * parts))
    assert {len(part) for part in own} == {len(sampler(size * parts))}


@SOME
@given(n=st.integers(1, 30), parts=st.integers(1, 5))
def test_parts_of_a_sequence_are_all_of_it(n, parts):
    own = [SequencePart([[k] for k in range(n)], rank, parts) for rank in range(parts)]
    assert list(chain(*counted(own))) == list(range(n))
