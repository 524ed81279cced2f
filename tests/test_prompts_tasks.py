"""Prompts and the first tasks against loops over single elements, their statistics, and what they refuse."""
import hashlib
import itertools
import math
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from iclrepro.prompts import STREAMS, Draws, Prompt, at_inputs, interleave, lookup, masked_mean
from iclrepro.shifts import fitting_shifts, sample_shifted
from iclrepro.tasks import (PAPER_CURRICULA, TASKS, Curriculum, LinearRegression, Ramp, SparseParity, Task, make_task,
                            register_task, task_from_dict, task_to_dict)

EPS = float(np.finfo(np.float32).eps)
TASKS_HERE = {
    "linear_regression": LinearRegression(4, 7),
    "scaled": LinearRegression(4, 7, scale=2.5),
    "sparse_parity": SparseParity(5, 7, k=2),
    "sparse_parity_batch": SparseParity(5, 7, k=3, index_set="batch"),
}


def same(a, b):
    "Whether two (nested) tuples of tensors hold the same bytes."
    if a is None or b is None: return a is b
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return len(a) == len(b) and all(map(same, a, b))


def assert_near(value, expected, standard_error, what=""):
    "Within five standard errors, everywhere."
    gap = np.max(np.abs(np.asarray(value, dtype=float) - expected) / standard_error)
    assert gap < 5, f"{what}: {gap:.1f} standard errors off"


def assert_uniform(counts, what=""):
    "A chi-square statistic within five of its standard deviations."
    counts = np.asarray(counts, dtype=float)
    assert len(counts) > 1
    statistic = ((counts - counts.mean())**2 / counts.mean()).sum()
    assert_near(statistic, len(counts) - 1, math.sqrt(2 * (len(counts) - 1)), what)


@pytest.mark.parametrize("dims, points, scale", [(6, 9, 1.0), (4, 7, 0.5), (1, 1, -3.0)])
def test_linear_regression_is_a_loop(dims, points, scale):
    batch, dim = 5, 6
    prompt = LinearRegression(dim, 9, scale=scale).sample(Draws(3, 8), batch, n_points=points, dims=dims)
    draws = Draws(3, 8)
    x, w = draws.normal(batch, points, dim).tolist(), draws.normal(batch, dim).tolist()
    assert prompt.x.shape == (batch, points, dim) and prompt.y.shape == prompt.mask.shape == (batch, points)
    assert prompt.mask.all() and prompt.mask.dtype == torch.bool and prompt.x.dtype == prompt.y.dtype == torch.float32
    for b, p in itertools.product(range(batch), range(points)):
        kept = [value if i < dims else 0.0 for i, value in enumerate(x[b][p])]
        assert prompt.x[b, p].tolist() == kept
        terms = [scale * kept[i] * w[b][i] for i in range(dim)]
        allowed = (dim + 1) * EPS * sum(map(abs, terms))
        assert abs(prompt.y[b, p].item() - math.fsum(terms)) <= allowed


@pytest.mark.parametrize("index_set", ["sequence", "batch"])
@pytest.mark.parametrize("dims, k", [(6, 2), (4, 3), (2, 2), (3, 1)])
def test_sparse_parity_is_a_loop(dims, k, index_set):
    batch, points, dim = 8, 12, 6
    prompt = SparseParity(dim, points, k=k, index_set=index_set).sample(Draws(5, 2), batch, dims=dims)
    draws = Draws(5, 2)
    x = draws.signs(batch, points, dim).tolist()
    sets = draws.subsets(dims, k, batch if index_set == "sequence" else 1).tolist()
    for b, p in itertools.product(range(batch), range(points)):
        kept = [value if i < dims else 0.0 for i, value in enumerate(x[b][p])]
        product = 1.0
        for i in sets[b if index_set == "sequence" else 0]: product *= kept[i]
        assert prompt.x[b, p].tolist() == kept
        assert prompt.y[b, p].item() == product and product in (-1.0, 1.0)
    assert prompt.mask.all() and prompt.y.dtype == torch.float32


def test_subsets_are_the_first_of_a_shuffle():
    keys = Draws(1).uniform(40, 7).tolist()
    expected = [sorted(range(7), key=row.__getitem__)[:3] for row in keys]
    assert Draws(1).subsets(7, 3, 40).tolist() == expected


@pytest.mark.parametrize("width", [None, 1, 3, 5])
@pytest.mark.parametrize("points", [1, 2, 6])
def test_interleave_is_a_loop(points, width):
    batch, dim = 3, 5
    draws = Draws(0)
    x = draws.normal(batch, points, dim)
    y = draws.normal(batch, points) if width is None else draws.normal(batch, points, width)
    tokens = interleave(Prompt(x, y, torch.ones(batch, points, dtype=torch.bool)))
    assert tokens.shape == (batch, 2 * points - 1, dim)
    for b in range(batch):
        expected = []
        for p in range(points):
            answer = [y[b, p].item()] if width is None else y[b, p].tolist()
            expected += [x[b, p].tolist(), answer + [0.0] * (dim - len(answer))]
        assert tokens[b].tolist() == expected[:-1]
    assert torch.equal(at_inputs(tokens), x)


def test_interleave_does_not_need_contiguous_input():
    draws = Draws(0)
    x, y = draws.normal(6, 3, 5).transpose(0, 1), draws.normal(6, 3).T
    mask = torch.ones(3, 6, dtype=torch.bool)
    assert same(interleave(Prompt(x, y, mask)), interleave(Prompt(x.contiguous(), y.contiguous(), mask)))


def test_masked_mean_and_losses_are_loops():
    draws = Draws(4)
    mask = draws.signs(3, 6) > 0
    prediction, y, signs = draws.normal(3, 6), draws.normal(3, 6), draws.signs(3, 6)
    pairs = [(b, p) for b, p in itertools.product(range(3), range(6)) if mask[b, p]]
    x = torch.zeros(3, 6, 4)

    def mean(values): return sum(values) / len(values)

    assert masked_mean(prediction, mask).item() == pytest.approx(mean([prediction[at].item() for at in pairs]), rel=1e-6)
    squares = [(prediction[at].item() - y[at].item())**2 for at in pairs]
    assert LinearRegression(4, 6).loss(prediction, Prompt(x, y, mask)).item() == pytest.approx(mean(squares), rel=1e-6)
    entropies = [math.log1p(math.exp(-signs[at].item() * prediction[at].item())) for at in pairs]
    assert SparseParity(4, 6).loss(prediction, Prompt(x, signs, mask)).item() == pytest.approx(mean(entropies), rel=1e-6)


def test_scores_are_loops():
    draws = Draws(6)
    prediction, y, signs = draws.normal(3, 6), draws.normal(3, 6), draws.signs(3, 6)
    prediction[0, 0] = 0
    regression, parity = LinearRegression(4, 6).score(prediction, y), SparseParity(4, 6).score(prediction, signs)
    for at in itertools.product(range(3), range(6)):
        assert regression[at].item() == pytest.approx((prediction[at].item() - y[at].item())**2 / 4, rel=1e-6)
        assert parity[at].item() == (0.5 if prediction[at] == 0 else float((prediction[at] > 0) == (signs[at] > 0)))


def test_parity_loss_is_finite_for_confident_mistakes():
    prompt = Prompt(torch.zeros(1, 2, 4), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool))
    assert SparseParity(4, 2).loss(torch.tensor([[-500.0, 500.0]]), prompt).item() == 500


N = 200_000


def test_normal_draws_are_standard_normal():
    z = Draws(10).normal(N).double().numpy()
    for power, expected in ((1, 0), (2, 1), (3, 0), (4, 3)):
        moment = z**power
        assert_near(moment.mean(), expected, moment.std() / math.sqrt(N), f"moment {power}")
    assert stats.kstest(z, "norm").pvalue > 1e-6


def test_uniform_draws_are_uniform():
    z = Draws(11).uniform(N).double().numpy()
    assert 0 <= z.min() and z.max() < 1
    assert stats.kstest(z, "uniform").pvalue > 1e-6


@pytest.mark.parametrize("high", [2, 3, 10])
def test_integers_are_uniform(high):
    z = Draws(12).integers(high, N)
    assert z.dtype == torch.int64 and z.min() == 0 and z.max() == high - 1
    assert_uniform(torch.bincount(z))


def test_sequences_of_signs_are_uniform():
    z = Draws(13).signs(N // 4, 4)
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert_uniform(torch.bincount(((z > 0) * torch.tensor([1, 2, 4, 8])).sum(1), minlength=16))


@pytest.mark.parametrize("n, k", [(5, 2), (6, 3), (4, 4), (10, 2)])
def test_index_sets_are_uniform_and_distinct(n, k):
    drawn = Draws(14).subsets(n, k, 60_000)
    assert drawn.shape == (60_000, k) and drawn.dtype == torch.int64
    codes = (2**drawn).sum(1)
    counts = {sum(2**i for i in chosen): 0 for chosen in itertools.combinations(range(n), k)}
    for code, count in zip(*torch.unique(codes, return_counts=True)): counts[code.item()] += count.item()  # KeyError: not a set
    if len(counts) > 1: assert_uniform(list(counts.values()))


def test_linear_regression_has_independent_standard_normal_weights_and_inputs():
    task, n = LinearRegression(4, 5, scale=2.0), 60_000
    x, y, _ = task.sample(Draws(15), n)
    w = torch.linalg.solve(x[:, :4].double(), y[:, :4].double()) / 2
    variables = torch.cat([x.flatten(1).double(), w], 1).numpy()  # all of a prompt: 20 inputs and 4 weights
    exact = np.abs(w.numpy()).max(1) < 1e3  # leave out a system that float32 answers cannot determine
    assert exact.mean() > 0.999
    products = np.einsum("ni,nj->nij", variables[exact], variables[exact])
    assert_near(products.mean(0), np.eye(24), products.std(0) / math.sqrt(n), "covariance")
    assert_near(variables[exact].mean(0), 0, variables[exact].std(0) / math.sqrt(n), "mean")


def test_parity_draws_its_index_sets_as_asked():
    "The sets are read off the answers: y is the product of exactly one pair, at every point."
    pairs = list(itertools.combinations(range(5), 2))

    def chosen(index_set, seed):
        x, y, _ = SparseParity(5, 60, k=2, index_set=index_set).sample(Draws(seed), 2000 if index_set == "sequence" else 16)
        fits = torch.stack([(x[..., i] * x[..., j] == y).all(1) for i, j in pairs], 1)
        assert (fits.sum(1) == 1).all()
        return fits.int().argmax(1)

    assert_uniform(torch.bincount(chosen("sequence", 0), minlength=10))
    in_batches = [chosen("batch", seed) for seed in range(400)]
    assert all((sets == sets[0]).all() for sets in in_batches)
    assert_uniform(torch.bincount(torch.stack([sets[0] for sets in in_batches]), minlength=10))


def test_parity_sets_lie_in_the_active_dimensions():
    "Were a silent coordinate chosen, the answer would be 0."
    _, y, _ = SparseParity(8, 4, k=2).sample(Draws(16), 500, dims=3)
    assert (y.abs() == 1).all()


def everything(seed, step):
    "A batch of every task, as taught, early in a curriculum, and under every shift."
    batches = []
    for task in TASKS_HERE.values():
        batches.append(task.sample(Draws(seed, step), 6))
        batches.append(task.sample(Draws(seed, step, "evaluation"), 6, n_points=3, dims=4))
        batches += [sample_shifted(task, shift, Draws(seed, step), 6, 3) for shift in fitting_shifts(task)]
    return batches


def digest(parts):
    "SHA-256 of all tensors."
    sha = hashlib.sha256()

    def add(part):
        if isinstance(part, torch.Tensor): sha.update(part.numpy().tobytes())
        elif part is not None:
            for one in part: add(one)

    add(parts)
    return sha.hexdigest()


def test_batches_do_not_depend_on_what_came_before():
    first = everything(3, 1000)
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    other = Draws(3, 999)
    other.normal(1001), other.integers(7, 13), everything(4, 1000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert same(first, everything(3, 1000))
    finally: torch.set_num_threads(threads)


def test_batches_leave_the_global_generators_alone():
    def states(): return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()
    before = states()
    everything(0, 0)
    assert states() == before


def test_interleaved_draws_do_not_disturb_each_other():
    alone = [Draws(seed, 5).normal(3, 4) for seed in (1, 2)]
    a, b = Draws(1, 5), Draws(2, 5)
    first = a.normal(2, 4), b.normal(1, 4)
    second = a.normal(1, 4), b.normal(2, 4)
    assert same([torch.cat(parts) for parts in zip(first, second)], alone)


def test_a_fresh_process_draws_the_same_bytes():
    code = ("import torch, numpy, random; torch.manual_seed(9); torch.rand(5); numpy.random.seed(9); random.seed(9)\n"
            "from test_prompts_tasks import digest, everything\nprint(digest(everything(7, 12345)))")
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=__file__.rpartition("/")[0], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == digest(everything(7, 12345)), done.stderr


KEYS = [(0, 0, "train"), (0, 1, "train"), (1, 0, "train"), (1, 1, "train"), (2**62, 0, "train"), (0, 2**62, "train"), (2**32, 0, "train"),
        *((0, 0, stream) for stream in STREAMS if stream != "train")]


def test_seeds_steps_and_streams_differ_and_share_nothing():
    drawn = {key: Draws(*key).integers(2**62, 20_000).numpy() for key in KEYS}
    assert len(np.unique(np.concatenate(list(drawn.values())))) == 20_000 * len(KEYS)
    for a, b in itertools.combinations(KEYS, 2):
        correlation = np.corrcoef(drawn[a].astype(float), drawn[b].astype(float))[0, 1]
        assert_near(correlation, 0, 1 / math.sqrt(20_000), f"{a} and {b}")


@pytest.mark.parametrize("name", TASKS_HERE)
def test_batches_of_other_seeds_steps_and_streams_differ(name):
    batches = [TASKS_HERE[name].sample(Draws(*key), 6) for key in KEYS]
    assert not any(same(a.x, b.x) or same(a.y, b.y) for a, b in itertools.combinations(batches, 2))


@pytest.mark.parametrize("ramp", [Ramp(5, 20, 1, 20), Ramp(11, 41, 2, 30), Ramp(3, 10, 4, 7), Ramp(4, 4), Ramp(1, 2, 9, 1)])
def test_a_ramp_is_the_released_update_rule(ramp):
    value = ramp.start
    for step in range(500):
        assert ramp.at(step) == value
        if (step + 1) % ramp.interval == 0: value = min(ramp.end, value + ramp.increment)
    assert value == ramp.end


def test_the_papers_curricula():
    regression, parity = PAPER_CURRICULA["linear_regression"], PAPER_CURRICULA["sparse_parity"]
    at = [0, 1999, 2000, 4000, 28_000, 29_999, 30_000, 500_000]
    assert [regression.dims.at(step) for step in at] == [5, 5, 6, 7, 19, 19, 20, 20]
    assert [regression.points.at(step) for step in at] == [11, 11, 13, 15, 39, 39, 41, 41]
    assert {(parity.dims.at(step), parity.points.at(step)) for step in at} == {(10, 140)}


def test_no_curriculum_is_the_full_size():
    curriculum = Curriculum.constant(LinearRegression(4, 7))
    assert {(curriculum.dims.at(step), curriculum.points.at(step)) for step in (0, 1, 10**6)} == {(4, 7)}


@pytest.mark.parametrize("step, dims, points", [(0, 2, 3), (9, 2, 3), (10, 3, 5), (25, 4, 7), (1000, 4, 7)])
def test_a_batch_follows_its_curriculum(step, dims, points):
    curriculum, task = Curriculum(Ramp(2, 4, 1, 10), Ramp(3, 7, 2, 10)), LinearRegression(4, 7)
    x = task.sample(Draws(0, step), 6, curriculum.points.at(step), curriculum.dims.at(step)).x
    assert x.shape == (6, points, 4)
    assert (x[..., dims:] == 0).all() and (x[..., :dims] != 0).all()


@pytest.mark.parametrize("task", TASKS_HERE.values(), ids=TASKS_HERE)
def test_a_task_survives_its_dictionary(task):
    assert task_from_dict(task_to_dict(task)) == task
    assert make_task(**task_to_dict(task)) == task
    with pytest.raises(FrozenInstanceError): task.dim = 3


def test_a_new_task_is_one_definition(monkeypatch):
    monkeypatch.setitem(TASKS, "largest", None)  # so that the name is gone again after the test

    @register_task("largest")
    @dataclass(frozen=True)
    class Largest(Task):
        """y is the largest coordinate of x."""
        def function(self, draws, batch_size, dims): return lambda x: x[..., :dims].amax(-1)

    prompt = make_task("largest", dim=3, n_points=5).sample(Draws(0), 4, dims=2)
    for b, p in itertools.product(range(4), range(5)): assert prompt.y[b, p] == max(prompt.x[b, p, :2].tolist())
    assert task_from_dict(task_to_dict(Largest(3, 5))) == Largest(3, 5)


def prompt_of(x_shape, y_shape):
    return Prompt(torch.zeros(x_shape), torch.zeros(y_shape), torch.ones(2, 3, dtype=torch.bool))


BAD = {
    "unknown task": (lambda: make_task("linear_regresion"), "unknown task 'linear_regresion'.*linear_regression, sparse_parity.*mean 'linear_regression'"),
    "unknown option": (lambda: make_task("sparse_parity", indexset="batch"), "unknown option of sparse_parity 'indexset'.*mean 'index_set'"),
    "no dimension": (lambda: LinearRegression(0), "dim is 0.*at least 1"),
    "no points": (lambda: LinearRegression(3, 0), "n_points is 0.*at least 1"),
    "k of none": (lambda: SparseParity(k=0), "k is 0.*between 1 and dim, 10"),
    "k beyond dim": (lambda: SparseParity(4, k=5), "k is 5.*between 1 and dim, 4"),
    "unknown index set": (lambda: SparseParity(index_set="epoch"), "unknown index_set 'epoch'.*sequence, batch"),
    "empty batch": (lambda: LinearRegression(3).sample(Draws(0), 0), "batch_size 0.*at least 1"),
    "no points asked": (lambda: LinearRegression(3).sample(Draws(0), 2, n_points=0), "n_points 0.*at least 1"),
    "no active dimension": (lambda: LinearRegression(3).sample(Draws(0), 2, dims=0), "dims is 0.*between 1 and the task's dim, 3"),
    "more dimensions than the task": (lambda: LinearRegression(3).sample(Draws(0), 2, dims=4), "dims is 4.*between 1 and the task's dim, 3"),
    "parity of silent dimensions": (lambda: SparseParity(5, k=3).sample(Draws(0), 2, dims=2), "dims is 2.*parity of 3 coordinates"),
    "negative seed": (lambda: Draws(-1), "seed is -1.*0 or more"),
    "negative step": (lambda: Draws(0, -2), "step is -2.*0 or more"),
    "seed beyond 63 bits": (lambda: Draws(2**63), f"seed is {2**63}.*below 2"),
    "unknown stream": (lambda: Draws(0, 0, "training"), "unknown stream 'training'.*train, evaluation, init, bootstrap.*mean 'train'"),
    "ramp down": (lambda: Ramp(5, 4), "start is 5.*between 1 and end, 4"),
    "ramp from nothing": (lambda: Ramp(0, 4), "start is 0.*between 1"),
    "ramp that stands": (lambda: Ramp(1, 4, 0), "increment 0.*at least 1"),
    "ramp without interval": (lambda: Ramp(1, 4, 1, 0), "interval 0.*at least 1"),
    "x without points": (lambda: interleave(prompt_of((2, 3), (2, 3))), r"x has shape \(2, 3\).*\(batch, points, dim\)"),
    "y of other length": (lambda: interleave(prompt_of((2, 3, 4), (2, 2))), r"y has shape \(2, 2\) but x \(2, 3, 4\)"),
    "y of another batch": (lambda: interleave(prompt_of((2, 3, 4), (1, 3))), r"y has shape \(1, 3\)"),
    "y too deep": (lambda: interleave(prompt_of((2, 3, 4), (2, 3, 1, 1))), r"y has shape \(2, 3, 1, 1\)"),
    "y too wide": (lambda: interleave(prompt_of((2, 3, 4), (2, 3, 5))), "y is 5 wide but x only 4"),
    "unknown name": (lambda: lookup({"a": 1}, "zzz", "thing"), r"^unknown thing 'zzz': choose one of a\.$"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message): call()
