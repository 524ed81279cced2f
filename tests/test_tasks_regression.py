"""Regression tasks against float64 loops over single points, their statistics, and what they refuse."""
import itertools
import math
import random
import statistics

import numpy as np
import pytest
import torch
from scipy import stats
from test_prompts_tasks import assert_near, assert_uniform, same

from iclrepro.prompts import Draws
from iclrepro.tasks import (PAPER_CURRICULA, Curriculum, DecisionTree, LinearRegression, NoisyLinearRegression, Ramp, ReluNetwork,
                            SkewedLinearRegression, SparseLinearRegression, SparseParity, make_task, paper_curriculum, random_rotations,
                            skew_matrices, task_from_dict, task_to_dict)

EPS = float(np.finfo(np.float32).eps)
BATCH, DIM = 4, 6
SIZES = [(6, 9), (4, 7), (3, 1)]  # active dimensions, points
TASKS_HERE = {
    "noisy": NoisyLinearRegression(DIM, 9, scale=1.5, noise_std=0.5),
    "renormalised": NoisyLinearRegression(DIM, 9, renormalise=True),
    "skewed": SkewedLinearRegression(DIM, 9, scale=0.5),
    "skewed_batch": SkewedLinearRegression(DIM, 9, rotation="batch"),
    "sparse": SparseLinearRegression(DIM, 9, k=2),
    "network": ReluNetwork(DIM, 9, width=5),
    "tree": DecisionTree(DIM, 9, depth=3),
}


def numbers(tensor): return tensor.double().numpy()


def cut(x, dims):
    "Inputs with silent coordinates, as lists."
    return np.where(np.arange(x.shape[-1]) < dims, numbers(x), 0).tolist()


def assert_close(actual, expected, size):
    "Equal within the rounding of float32 sums whose terms have this total size."
    assert actual.dtype == torch.float32
    assert abs(actual.item() - expected) <= 20 * EPS * size


def sampled(task, seed, dims, points):
    prompt = task.sample(Draws(seed, 8), BATCH, n_points=points, dims=dims)
    assert prompt.x.shape == (BATCH, points, DIM) and prompt.y.shape == prompt.mask.shape == (BATCH, points)
    assert prompt.mask.all() and prompt.x.dtype == prompt.y.dtype == torch.float32
    return prompt


@pytest.mark.parametrize("dims, points", SIZES)
@pytest.mark.parametrize("scale, noise_std, renormalise", [(1.5, 0.5, False), (1.0, 0.0, False), (0.5, 2.0, True)])
def test_noisy_linear_regression_is_a_loop(dims, points, scale, noise_std, renormalise):
    prompt = sampled(NoisyLinearRegression(DIM, 9, scale=scale, noise_std=noise_std, renormalise=renormalise), 0, dims, points)
    draws = Draws(0, 8)
    x, w, noise = cut(draws.normal(BATCH, points, DIM), dims), draws.normal(BATCH, DIM).tolist(), draws.normal(BATCH, points).tolist()
    y = {(b, p): scale * math.fsum(x[b][p][i] * w[b][i] for i in range(DIM)) + noise_std * noise[b][p]
         for b, p in itertools.product(range(BATCH), range(points))}
    factor = math.sqrt(DIM) / statistics.stdev(y.values()) if renormalise else 1
    for (b, p), value in y.items():
        assert prompt.x[b, p].tolist() == x[b][p]
        assert_close(prompt.y[b, p], factor * value, factor * 10 * scale)


def rotation_by_reflections(z):
    "Stewart's product of reflections, one matrix at a time: H_j swaps the j-th column of the lower triangle with an axis."
    dim = len(z)
    product = np.eye(dim)
    for j in range(dim - 1):
        v = np.where(np.arange(dim) >= j, z[:, j], 0)
        v[j] += math.copysign(np.linalg.norm(v), v[j])
        product = product @ (np.eye(dim) - 2 * np.outer(v, v) / (v @ v))
    return -product * np.copysign(1, np.diag(z))


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 20])
def test_random_rotations_are_products_of_reflections(dim):
    u, z = random_rotations(Draws(1), 5, dim), numbers(Draws(1).normal(5, dim, dim))
    assert u.shape == (5, dim, dim) and u.dtype == torch.float64
    for got, drawn in zip(u.numpy(), z): np.testing.assert_allclose(got, rotation_by_reflections(drawn), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dim", [1, 2, 5, 20])
def test_random_rotations_are_orthogonal(dim):
    u = random_rotations(Draws(2), 3000, dim)
    assert (u.mT @ u - torch.eye(dim)).abs().max() < 1e-13


class Given:
    "Draws that return what they are given."
    device = torch.device("cpu")

    def __init__(self, values): self.values = values

    def normal(self, *shape): return self.values.clone().view(shape)


def test_random_rotations_bear_any_draw():
    "Zeros and tiny or huge numbers on and below the diagonal, as float32 normals can yield one by one."
    z = Draws(3).normal(7, 4, 4)
    z[0, 3, 3], z[1, 3, 3], z[2, 0, 0], z[3, 1:, 0], z[4, 0, 0] = 0.0, -0.0, 0.0, 0.0, 1e-30
    z[5, 1:, 0], z[6] = 1e-30, z[6] * 1e-20
    u = random_rotations(Given(z), 7, 4)
    assert (u.mT @ u - torch.eye(4)).abs().max() < 1e-13


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_random_rotations_are_uniform(dim):
    n = 20_000
    u = random_rotations(Draws(4), n, dim).numpy()
    assert_near((np.linalg.det(u) > 0).mean(), 0.5, 0.5 / math.sqrt(n), "reflections")
    for i, j in itertools.product(range(dim), repeat=2):
        assert stats.kstest(u[:, i, j]**2, stats.beta(0.5, (dim - 1) / 2).cdf).pvalue > 1e-6, (i, j)
        assert_near((u[:, i, j] > 0).mean(), 0.5, 0.5 / math.sqrt(n), f"sign of {i, j}")
    # Joint law: of tr(A U) for fixed orthogonal A, which is that of tr(U), whose square has mean 1; and against SciPy's sampler.
    reference = stats.ortho_group(dim, seed=0)
    traces = np.trace(reference.rvs(4000), axis1=1, axis2=2).round(9)  # reflections of the plane have trace 0
    for a in (np.eye(dim), reference.rvs(), np.eye(dim)[::-1]):
        ours = np.einsum("ij,nji->n", a, u).round(9)
        assert_near((ours**2).mean(), 1, (ours**2).std() / math.sqrt(n), "trace")
        assert stats.ks_2samp(ours, traces).pvalue > 1e-6


@pytest.mark.parametrize("rotation", ["prompt", "batch"])
@pytest.mark.parametrize("dims, points", SIZES)
def test_skewed_linear_regression_is_a_loop(dims, points, rotation):
    prompt = sampled(SkewedLinearRegression(DIM, 9, scale=0.5, rotation=rotation), 1, dims, points)
    draws = Draws(1, 8)
    x = numbers(draws.normal(BATCH, points, DIM))
    z = numbers(draws.normal(BATCH if rotation == "prompt" else 1, DIM, DIM))
    w = draws.normal(BATCH, DIM).tolist()
    e = np.array([1 / i for i in range(1, DIM + 1)])
    e *= math.sqrt(DIM / (e**2).sum())
    for b in range(BATCH):
        u = rotation_by_reflections(z[b if rotation == "prompt" else 0])
        transform = u @ np.diag(e) @ u.T
        for p in range(points):
            expected = transform @ x[b, p]
            expected[dims:] = 0
            np.testing.assert_allclose(numbers(prompt.x[b, p]), expected, rtol=0, atol=20 * EPS * np.abs(x[b, p]).sum())
            assert (prompt.x[b, p, dims:] == 0).all()
            assert_close(prompt.y[b, p], 0.5 * math.fsum(prompt.x[b, p, i].item() * w[b][i] for i in range(DIM)), 20)


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_skew_matrices_have_the_eigenvalues_of_the_paper(dim):
    t = numbers(skew_matrices(Draws(5), 50, dim))
    eigenvalues = np.linalg.eigvalsh(t)[:, ::-1]**2
    np.testing.assert_allclose(eigenvalues / eigenvalues[:, :1], np.broadcast_to(1 / np.arange(1, dim + 1)**2.0, eigenvalues.shape), rtol=2e-4)
    np.testing.assert_allclose(eigenvalues.sum(1), dim, rtol=1e-5)
    np.testing.assert_allclose(t, np.swapaxes(t, 1, 2), atol=1e-6)


def test_skewed_inputs_have_the_promised_covariance_and_no_preferred_direction():
    e = 4 / np.arange(1, 5)**2 / (1 / np.arange(1, 5)**2).sum()
    n = 40_000
    x = numbers(SkewedLinearRegression(4, n).sample(Draws(6), 3).x)
    eigenvalues = np.linalg.eigvalsh(np.einsum("bpi,bpj->bij", x, x) / n)[:, ::-1]
    assert_near(eigenvalues / e, 1, math.sqrt(2 / n), "eigenvalues")
    x = numbers(SkewedLinearRegression(4, 1).sample(Draws(7), n).x[:, 0])
    products = np.einsum("bi,bj->bij", x, x)
    assert_near(products.mean(0), np.eye(4), products.std(0) / math.sqrt(n), "pooled covariance")
    fourth = x**4  # a row u of a uniform rotation has E u_j^4 = 3/24 and E u_j^2 u_k^2 = 1/24
    assert_near(fourth.mean(0), 3 * (e.sum()**2 + 2 * (e**2).sum()) / 24, fourth.std(0) / math.sqrt(n), "fourth moment")


def leading(rotation, seed):
    x = SkewedLinearRegression(4, 3000, rotation=rotation).sample(Draws(seed), 6).x
    return torch.linalg.eigh(x.mT @ x).eigenvectors[..., -1]


def test_a_rotation_is_drawn_for_each_prompt_or_batch():
    own, shared, other = leading("prompt", 0), leading("batch", 0), leading("batch", 1)
    assert ((own @ own.T).abs() - torch.eye(6)).max() < 0.98
    assert (shared @ shared.T).abs().min() > 0.99 > (shared @ other.T).abs().max()


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("dims, points", SIZES)
def test_sparse_linear_regression_is_a_loop(dims, points, k):
    prompt = sampled(SparseLinearRegression(DIM, 9, k=k), 2, dims, points)
    draws = Draws(2, 8)
    x = cut(draws.normal(BATCH, points, DIM), dims)
    support, weights = draws.subsets(dims, k, BATCH).tolist(), draws.normal(BATCH, k).tolist()
    for b, p in itertools.product(range(BATCH), range(points)):
        assert prompt.x[b, p].tolist() == x[b][p]
        assert_close(prompt.y[b, p], math.fsum(weights[b][j] * x[b][p][i] for j, i in enumerate(support[b])), 10)


def test_sparse_weights_are_standard_normal_on_a_uniform_active_support():
    n = 12_000
    x, y, _ = SparseLinearRegression(7, 6, k=2).sample(Draws(8), n, dims=5)
    w = np.linalg.solve(numbers(x)[:, :5, :5], numbers(y)[:, :5, None])[..., 0]
    exact = np.sort(np.abs(w))[:, -2] < 50  # leave out systems too close to singular for float32 answers
    used = np.abs(w[exact]) > 1e-3
    clear = used.sum(1) == 2
    assert clear.mean() > 0.98 and exact.mean() > 0.98
    assert_uniform(np.bincount((used[clear] * 2**np.arange(5)).sum(1), minlength=32)[[sum(2**i for i in pair) for pair in itertools.combinations(range(5), 2)]])
    weights = w[exact][clear][used[clear]]
    assert_near((weights**2).mean(), 1, math.sqrt(2 / len(weights)), "variance")
    assert stats.kstest(weights[np.abs(weights) > 0.05], lambda v: (stats.norm.cdf(v) - (v > 0) * (stats.norm.cdf(0.05) - stats.norm.cdf(-0.05)))
                        / (2 * stats.norm.cdf(-0.05))).pvalue > 1e-6


@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("dims, points", SIZES)
def test_a_network_is_a_loop(dims, points, width):
    prompt = sampled(ReluNetwork(DIM, 9, width=width), 3, dims, points)
    draws = Draws(3, 8)
    x = cut(draws.normal(BATCH, points, DIM), dims)
    w1, w2 = draws.normal(BATCH, DIM, width).tolist(), draws.normal(BATCH, width, 1).tolist()
    for b, p in itertools.product(range(BATCH), range(points)):
        hidden = [max(0.0, math.fsum(x[b][p][i] * w1[b][i][h] for i in range(DIM))) for h in range(width)]
        assert prompt.x[b, p].tolist() == x[b][p]
        assert_close(prompt.y[b, p], math.sqrt(2 / width) * math.fsum(hidden[h] * w2[b][h][0] for h in range(width)), 20)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("dims, points", SIZES)
def test_a_tree_is_a_walk_down_the_heap(dims, points, depth):
    prompt = sampled(DecisionTree(DIM, 9, depth=depth), 4, dims, points)
    draws = Draws(4, 8)
    x = cut(draws.normal(BATCH, points, DIM), dims)
    nodes, first_leaf = draws.integers(DIM, BATCH, 1, 2**depth - 1).tolist(), 2**depth - 1
    leaves = draws.normal(BATCH, 1, 2**depth).tolist()
    for b, p in itertools.product(range(BATCH), range(points)):
        node = 0
        while node < first_leaf: node = 2 * node + 2 if x[b][p][nodes[b][0][node]] > 0 else 2 * node + 1
        assert prompt.x[b, p].tolist() == x[b][p]
        assert prompt.y[b, p].item() == leaves[b][0][node - first_leaf]


def test_a_node_may_look_at_any_coordinate_and_a_silent_one_goes_left():
    "With depth 1 the coordinate is read off the answers; with one active dimension of five, four trees in five are constant."
    n = 5000
    x, y, _ = DecisionTree(5, 40, depth=1).sample(Draws(9), n)
    splits = (x > 0) == (y == y[:, :1]).unsqueeze(-1)
    fits = (splits.all(1) | (~splits).all(1))
    assert (fits.sum(1) == 1).all()
    assert_uniform(torch.bincount(fits.int().argmax(1), minlength=5), "coordinates")
    _, y, _ = DecisionTree(5, 40, depth=1).sample(Draws(10), n, dims=1)
    assert_near((y == y[:, :1]).all(1).double().mean(), 0.8, math.sqrt(0.16 / n), "constant trees")


def test_leaves_are_standard_normal_and_reached_alike():
    x, y, _ = DecisionTree(20, 1).sample(Draws(11), 20_000)
    assert stats.kstest(numbers(y).ravel(), "norm").pvalue > 1e-6
    values = [row.unique().numel() for row in DecisionTree(200, 400, depth=3).sample(Draws(12), 30).y]
    assert values == [8] * 30  # 200 coordinates: hardly any repeats on a path, so all leaves are reached


@pytest.mark.parametrize("task", [LinearRegression(8, 1), NoisyLinearRegression(8, 1, noise_std=2.0), SkewedLinearRegression(8, 1), SparseLinearRegression(8, 1),
                                  ReluNetwork(8, 1, width=30), DecisionTree(8, 1)], ids=lambda task: task.name)
def test_answers_have_the_size_of_the_normaliser(task):
    y = numbers(task.sample(Draws(13), 40_000).y[:, 0])
    expected = task.normaliser + getattr(task, "noise_std", 0)**2
    assert_near(y.mean(), 0, y.std() / math.sqrt(len(y)), "mean")
    assert_near((y**2).mean(), expected, (y**2).std() / math.sqrt(len(y)), "mean square")


def test_normalisers_are_those_of_the_released_plots():
    names = ["linear_regression", "noisy_linear_regression", "skewed_linear_regression", "sparse_linear_regression", "relu_network", "decision_tree"]
    assert [make_task(name).normaliser for name in names] == [20, 20, 20, 3, 20, 1]
    y, prediction = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    assert [make_task(name).score(prediction, y).item() for name in names] == [pytest.approx(4 / 20)] * 6


def test_noise_is_fresh_wherever_the_function_is_asked():
    draws, n = Draws(14), 20_000
    function = NoisyLinearRegression(3, noise_std=0.5).function(draws, n, 3)
    x = draws.normal(n, 2, 3)
    gap = numbers(function(x) - function(x)).ravel()
    assert_near(gap.var(), 0.5, 0.5 * math.sqrt(2 / gap.size), "two draws of noise")
    assert stats.kstest(gap / math.sqrt(0.5), "norm").pvalue > 1e-6


@pytest.mark.parametrize("name", [name for name in TASKS_HERE if name not in ("noisy", "renormalised")])
def test_a_function_is_a_function(name):
    "The same answers when asked again or point by point, and the points left as they were."
    draws = Draws(15)
    function, x = TASKS_HERE[name].function(draws, BATCH, DIM), draws.normal(BATCH, 9, DIM)
    before, y = x.clone(), function(x)
    assert torch.equal(function(x), y) and torch.equal(x, before)
    torch.testing.assert_close(torch.cat([function(x[:, p:p + 1]) for p in range(9)], 1), y)


@pytest.mark.parametrize("name", TASKS_HERE)
def test_dimensions_are_cut_after_all_else(name):
    task = TASKS_HERE[name]
    full, few = task.sample(Draws(16), BATCH), task.sample(Draws(16), BATCH, dims=3)
    assert torch.equal(few.x[..., :3], full.x[..., :3]) and (few.x[..., 3:] == 0).all() and (full.x != 0).all()


@pytest.mark.parametrize("name", TASKS_HERE)
def test_a_batch_is_a_function_of_seed_step_and_stream(name):
    task, keys = TASKS_HERE[name], [(0, 0), (0, 1), (1, 0), (0, 0, "evaluation")]
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    states = torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()
    first = [task.sample(Draws(*key), BATCH) for key in keys]
    assert (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()) == states
    torch.manual_seed(4), np.random.seed(5), random.seed(6)
    assert same(first, [task.sample(Draws(*key), BATCH) for key in keys])
    assert not any(same(a.x, b.x) or same(a.y, b.y) for a, b in itertools.combinations(first, 2))
    assert task_from_dict(task_to_dict(task)) == task


def test_tasks_may_be_as_small_as_can_be():
    for task in (NoisyLinearRegression(1, 1), SkewedLinearRegression(1, 1), SparseLinearRegression(1, 1, k=1), ReluNetwork(1, 1, width=1), DecisionTree(1, 1, depth=1)):
        prompt = task.sample(Draws(0), 1)
        assert prompt.x.shape == (1, 1, 1) and prompt.y.shape == (1, 1) and prompt.y.isfinite().all()
    assert same(SkewedLinearRegression(1, 5).sample(Draws(0), 3).x, LinearRegression(1, 5).sample(Draws(0), 3).x)


def test_the_papers_sizes_are_the_defaults():
    assert {name: (make_task(name).dim, make_task(name).n_points) for name in ("skewed_linear_regression", "sparse_linear_regression", "relu_network", "decision_tree")} == {
        "skewed_linear_regression": (20, 41), "sparse_linear_regression": (20, 41), "relu_network": (20, 101), "decision_tree": (20, 101)}
    assert (SparseLinearRegression().k, ReluNetwork().width, DecisionTree().depth, NoisyLinearRegression().noise_std) == (3, 100, 4, 1)


CURRICULA = {  # dims and points: start, end, increment, interval (specification, section 1)
    "linear_regression": ((5, 20, 1, 2000), (11, 41, 2, 2000)),
    "noisy_linear_regression": ((5, 20, 1, 2000), (11, 41, 2, 2000)),
    "skewed_linear_regression": ((5, 20, 1, 2000), (11, 41, 2, 2000)),
    "sparse_linear_regression": ((5, 20, 1, 2000), (11, 41, 2, 2000)),
    "relu_network": ((5, 20, 1, 2000), (26, 101, 5, 2000)),
    "decision_tree": ((5, 20, 1, 2000), (26, 101, 5, 2000)),
    "orthogonal_outliers": ((5, 20, 1, 2000), (26, 101, 5, 2000)),
    "many_outliers": ((4, 20, 1, 2000), (12, 512, 2, 200)),
    "chain_of_thought": ((10, 10, 1, 2000), (26, 101, 5, 2000)),
}


def test_every_curriculum_is_the_papers():
    assert {name: PAPER_CURRICULA[name] for name in CURRICULA} == {name: Curriculum(Ramp(*dims), Ramp(*points)) for name, (dims, points) in CURRICULA.items()}
    many = PAPER_CURRICULA["many_outliers"]
    assert [many.points.at(step) for step in (0, 199, 200, 49_999, 50_000)] == [12, 12, 14, 510, 512] and many.dims.at(32_000) == 20 > many.dims.at(31_999)


def test_a_curriculum_ends_at_the_size_of_its_task():
    for name, curriculum in PAPER_CURRICULA.items():
        task = make_task(name)
        assert paper_curriculum(task) == curriculum and (curriculum.dims.end, curriculum.points.end) == (task.dim, task.n_points)
    for size in ((7, 9), (20, 40), (19, 41)):
        with pytest.raises(ValueError, match=f"ends at 20 dimensions and 41 points, but linear_regression has {size[0]} and {size[1]}"): paper_curriculum(LinearRegression(*size))


def test_a_task_without_a_curriculum_keeps_its_size():
    assert paper_curriculum(LinearRegression()) == PAPER_CURRICULA["linear_regression"]
    parity = SparseParity()
    assert paper_curriculum(parity) == PAPER_CURRICULA["sparse_parity"] == Curriculum.constant(parity)

    class Unlisted(LinearRegression): name = "unlisted"

    assert paper_curriculum(Unlisted(7, 9)) == Curriculum(Ramp(7, 7), Ramp(9, 9))


BAD = {
    "negative noise": (lambda: NoisyLinearRegression(3, noise_std=-1.0), "noise_std is -1.0: it must be 0 or more"),
    "noise that is no number": (lambda: NoisyLinearRegression(3, noise_std=math.nan), "noise_std is nan"),
    "unknown rotation": (lambda: SkewedLinearRegression(3, rotation="sequence"), "unknown rotation 'sequence'.*prompt, batch"),
    "no weights": (lambda: SparseLinearRegression(3, k=0), "k is 0.*between 1 and dim, 3"),
    "more weights than dimensions": (lambda: SparseLinearRegression(3, k=4), "k is 4.*between 1 and dim, 3"),
    "more weights than active dimensions": (lambda: SparseLinearRegression(5, k=3).sample(Draws(0), 2, dims=2), "dims is 2: 3 non-zero weights"),
    "no hidden unit": (lambda: ReluNetwork(3, width=0), "width is 0.*at least 1"),
    "no decision": (lambda: DecisionTree(3, depth=0), "depth is 0.*at least 1"),
    "no dimension": (lambda: DecisionTree(0), "dim is 0.*at least 1"),
    "more dimensions than the task": (lambda: ReluNetwork(3).sample(Draws(0), 2, dims=4), "dims is 4.*between 1 and the task's dim, 3"),
    "misspelt": (lambda: make_task("desicion_tree"), "unknown task 'desicion_tree'.*Did you mean 'decision_tree'"),
    "unknown option": (lambda: make_task("decision_tree", dept=3), "unknown option of decision_tree 'dept'.*mean 'depth'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message): call()
