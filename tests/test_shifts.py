"""Shifts against float64 loops over single points, their statistics, what fits what, and what is refused."""
import itertools
import math
import statistics
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats
from test_prompts_tasks import assert_near, assert_uniform, same

from iclrepro.prompts import STREAMS, Draws, Prompt
from iclrepro.shifts import SHIFTS, Shift, check_fit, fitting_shifts, sample_shifted
from iclrepro.tasks import (TASKS, DecisionTree, LinearRegression, NoisyLinearRegression, ReluNetwork, SkewedLinearRegression, SparseLinearRegression,
                            SparseParity, Task, make_task, random_rotations)

REGRESSION = LinearRegression(4, 30, scale=1.5)
SKEWED = SkewedLinearRegression(4, 30)
EPS = float(np.finfo(np.float32).eps)


def numbers(tensor): return tensor.double().numpy()


def own(seed, batch, points=30):
    "The inputs that the task itself draws first, and its function."
    draws = Draws(seed, 0, "evaluation")
    return REGRESSION.inputs(draws, batch, points), REGRESSION.function(draws, batch, REGRESSION.dim)


def shifted(shift, seed, batch, points=30, task=REGRESSION, **options):
    return sample_shifted(task, shift, Draws(seed, 0, "evaluation"), batch, points, **options)


def orthogonal_complement(x, k):
    "The part of x_k orthogonal to the points before it, at its own norm: by the singular vectors of those points, as Garg's code."
    if k == 0: return x[0]
    _, _, v = np.linalg.svd(x[:k], full_matrices=False)
    rest = x[k] - x[k] @ v.T @ v
    return rest * np.linalg.norm(x[k]) / np.linalg.norm(rest)


BATCH, POINTS, DIM, SEED = 5, 4, 4, 11
EVALUATION = 23


def by_definition(shift):
    """Context x, y and query x, y of a shift of REGRESSION, one point at a time in float64, from the same draws.

    After inputs and weights come a shift's draws for the inputs, then noise, then draws for the question.
    """
    draws, fixed = Draws(SEED, 0, "evaluation"), Draws(EVALUATION, 0, "evaluation-fixed")
    x, w = numbers(draws.normal(BATCH, POINTS, DIM)), 1.5 * numbers(draws.normal(BATCH, DIM))
    each = list(itertools.product(range(BATCH), range(POINTS)))
    context = x.copy()
    query = None
    name, _, value = shift.rpartition("_")
    spectrum = np.array([1 / i for i in range(1, DIM + 1)])
    spectrum *= math.sqrt(DIM / (spectrum**2).sum())
    if shift == "skewed":
        for b, g in enumerate(numbers(torch.linalg.qr(draws.normal(BATCH, DIM, DIM)).Q)):
            for p in range(POINTS): context[b, p] = (g @ np.diag(spectrum) @ g.T) @ x[b, p]
    if shift == "skewed_fixed":
        u = random_rotations(fixed, 1, DIM)[0].numpy()
        for b, p in each: context[b, p] = (u @ np.diag(spectrum) @ u.T) @ x[b, p]
    if shift == "half_subspace":
        u = random_rotations(fixed, 1, DIM)[0].numpy()
        for b, p in each: context[b, p] = math.sqrt(2) * sum((u[:, i] @ x[b, p]) * u[:, i] for i in range(DIM // 2))
    if shift == "half_subspace_coordinates":
        for b, p in each: context[b, p] = [x[b, p, i] if i < DIM / 2 else 0 for i in range(DIM)]
    if name == "x_scale": context *= float(value)
    if shift == "orthants":
        signs = numbers(draws.signs(BATCH, 1, DIM))
        for b, p in each: context[b, p] = [abs(x[b, p, i]) * signs[b, 0, i] for i in range(DIM)]
        query = x
    if shift == "orthogonal": query = np.array([[orthogonal_complement(x[b], k) for k in range(POINTS)] for b in range(BATCH)])

    def answers(inputs):
        y = np.array([[math.fsum(w[b] * inputs[b, p]) for p in range(POINTS)] for b in range(BATCH)])
        if shift.startswith("noisy"): y += numbers(draws.normal(BATCH, POINTS))
        if shift == "noisy": y *= 1.5 * math.sqrt(DIM) / statistics.stdev(y.ravel().tolist())
        if name == "y_scale": y *= float(value)
        return y

    y = answers(context)
    if shift == "overlapping":
        u = numbers(draws.uniform(BATCH, POINTS))
        query = np.array([[x[b, int(u[b, k] * k)] for k in range(POINTS)] for b in range(BATCH)])
    return context, y, query, None if query is None else answers(query)


FITTING = fitting_shifts(REGRESSION)


@pytest.mark.parametrize("shift", FITTING)
def test_a_shift_is_a_loop(shift):
    context, query = sample_shifted(REGRESSION, shift, Draws(SEED, 0, "evaluation"), BATCH, POINTS, evaluation_seed=EVALUATION)
    x, y, query_x, query_y = by_definition(shift)
    np.testing.assert_allclose(numbers(context.x), x, rtol=1e-5, atol=3e-6)
    np.testing.assert_allclose(numbers(context.y), y, rtol=1e-5, atol=1e-5)
    assert (query is None) == (query_x is None)
    if query is not None:
        np.testing.assert_allclose(numbers(query.x), query_x, rtol=2e-5, atol=3e-6)
        np.testing.assert_allclose(numbers(query.y), query_y, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shift", FITTING)
def test_a_shift_keeps_shapes_and_asks_elsewhere_where_it_says(shift):
    points = 4 if SHIFTS[shift].within_dim else 9
    context, query = shifted(shift, 0, 6, points)
    assert (query is not None) == (SHIFTS[shift].query is not None) == (shift in ("orthants", "orthogonal", "overlapping"))
    for prompt in (context, query or context):
        assert prompt.x.shape == (6, points, 4) and prompt.y.shape == prompt.mask.shape == (6, points)
        assert prompt.x.dtype == prompt.y.dtype == torch.float32 and prompt.mask.all() and prompt.x.isfinite().all() and prompt.y.isfinite().all()
    assert sample_shifted(replace(REGRESSION, n_points=points), shift, Draws(0), 2).context.x.shape == (2, points, 4)


@pytest.mark.parametrize("shift", [shift for shift in FITTING if not SHIFTS[shift].answers])
def test_a_shift_of_inputs_or_question_leaves_the_function_the_same(shift):
    points = 4 if SHIFTS[shift].within_dim else 30
    _, function = own(1, 6, points)
    context, query = shifted(shift, 1, 6, points)
    torch.testing.assert_close(context.y, function(context.x))
    if query is not None: torch.testing.assert_close(query.y, function(query.x))


def test_no_shift_is_the_task_itself():
    for task in (REGRESSION, SKEWED, NoisyLinearRegression(4, 30), SparseParity(5, 30), DecisionTree(4, 30), ReluNetwork(4, 30)):
        assert same(shifted("none", 2, 6, task=task).context, task.sample(Draws(2, 0, "evaluation"), 6))


@pytest.mark.parametrize("shift", ["noisy", "noisy_unscaled", "y_scale_2"])
def test_a_shift_of_the_answers_leaves_the_inputs_alone(shift):
    assert same(shifted(shift, 3, 6).context.x, own(3, 6)[0])
    assert same(shifted(shift, 3, 6, task=SKEWED).context.x, SKEWED.inputs(Draws(3, 0, "evaluation"), 6, 30))


def test_noise_is_standard_normal_and_independent_of_the_answers():
    x, function = own(4, 5000)
    clean = numbers(function(x)).ravel()
    noise = numbers(shifted("noisy_unscaled", 4, 5000).context.y).ravel() - clean
    n = noise.size
    assert_near(noise.mean(), 0, 1 / math.sqrt(n), "mean")
    assert_near(noise.var(), 1, math.sqrt(2 / n), "variance")
    assert_near(np.corrcoef(noise, clean)[0, 1], 0, 1 / math.sqrt(n), "correlation")
    assert stats.kstest(noise, "norm").pvalue > 1e-6


@pytest.mark.parametrize("task, size", [(REGRESSION, 1.5**2 * 4), (SparseLinearRegression(4, 30, k=2), 2), (DecisionTree(4, 30), 1), (ReluNetwork(4, 30), 4)])
@pytest.mark.parametrize("batch", [1, 6, 64])
def test_released_noise_is_rescaled_to_the_size_of_the_answers(batch, task, size):
    rescaled, raw = (shifted(shift, 5, batch, task=task).context.y.double() for shift in ("noisy", "noisy_unscaled"))
    assert rescaled.std().item() == pytest.approx(math.sqrt(size), rel=1e-5)
    torch.testing.assert_close(rescaled, raw * (math.sqrt(size) / raw.std()), rtol=1e-5, atol=1e-6)


def test_skewed_inputs_have_the_eigenvalues_of_the_paper():
    "Proportional to 1/i^2, their sum d, in each prompt; the directions differ from prompt to prompt."
    x = numbers(sample_shifted(REGRESSION, "skewed", Draws(6), 3, 100_000).context.x)
    expected = 1 / np.arange(1, 5)**2
    expected *= 4 / expected.sum()
    covariances = np.einsum("bpi,bpj->bij", x, x) / x.shape[1]
    eigenvalues = np.linalg.eigvalsh(covariances)[:, ::-1]
    assert_near(eigenvalues / expected, 1, math.sqrt(2 / x.shape[1]), "eigenvalues")
    assert_near(np.trace(covariances, axis1=1, axis2=2), 4, math.sqrt(2 * (expected**2).sum() / x.shape[1]), "trace")
    first = np.linalg.eigh(covariances).eigenvectors[:, :, -1]
    assert np.abs(first @ first.T - np.eye(3)).max() < 0.999


def test_skewed_inputs_have_no_preferred_direction():
    x = numbers(sample_shifted(REGRESSION, "skewed", Draws(7), 40_000, 1).context.x[:, 0])
    products = np.einsum("bi,bj->bij", x, x)
    assert_near(products.mean(0), np.eye(4), products.std(0) / math.sqrt(len(x)), "pooled covariance")
    # A row u of a uniform rotation in 4 dimensions has E u_j^4 = 3/24 and E u_j^2 u_k^2 = 1/24, and x_i is N(0, sum_j u_j^2 e_j).
    e = 4 / np.arange(1, 5)**2 / (1 / np.arange(1, 5)**2).sum()
    fourth = x**4
    assert_near(fourth.mean(0), 3 * (e.sum()**2 + 2 * (e**2).sum()) / 24, fourth.std(0) / math.sqrt(len(x)), "fourth moment")


def test_the_shift_and_the_task_agree_on_what_skewed_is():
    "Two samplers of one law: eigenvalues of a prompt's covariance and single coordinates."
    shift, task = (numbers(sampled.x) for sampled in (sample_shifted(REGRESSION, "skewed", Draws(8), 3000, 6).context, SKEWED.sample(Draws(9), 3000, 6)))
    top = [np.linalg.eigvalsh(np.einsum("bpi,bpj->bij", x, x))[:, -1] for x in (shift, task)]
    assert stats.ks_2samp(*top).pvalue > 1e-6
    assert stats.ks_2samp(shift[:, 0].ravel(), task[:, 0].ravel()).pvalue > 1e-6


ONCE = [shift for shift, change in SHIFTS.items() if change.once]


def map_of(shift, seed, evaluation_seed, step=0):
    "The matrix that takes each point of a batch to its shifted one, by least squares over all prompts."
    def batch(name): return sample_shifted(REGRESSION, name, Draws(seed, step, "evaluation"), 8, 30, evaluation_seed).context.x.double().flatten(0, 1)
    solved = torch.linalg.lstsq(batch("none"), batch(shift))
    residual = (batch("none") @ solved.solution - batch(shift)).abs().max()
    return solved.solution, residual


def test_transforms_for_a_whole_evaluation_depend_on_its_seed_alone():
    assert ONCE == ["skewed_fixed", "half_subspace"]
    for shift in ONCE:
        (first, gap), (later, _), (elsewhere, _), (other, _) = map_of(shift, 0, 5), map_of(shift, 0, 5, 3), map_of(shift, 9, 5), map_of(shift, 0, 6)
        assert gap < 1e-5, "one linear map for all prompts"
        torch.testing.assert_close(later, first, rtol=0, atol=1e-5)
        torch.testing.assert_close(elsewhere, first, rtol=0, atol=1e-5)
        assert (other - first).abs().max() > 0.1
    assert map_of("skewed", 0, 5)[1] > 0.1


def test_streams_are_only_ever_appended():
    "The place of a stream in the list is part of the key of its draws."
    assert STREAMS[:5] == ("train", "evaluation", "init", "bootstrap", "evaluation-fixed")


@pytest.mark.parametrize("dim", [2, 5, 6])
def test_half_of_the_space(dim):
    task = LinearRegression(dim, 3000)
    plain, random_half, coordinates = (numbers(sample_shifted(task, shift, Draws(10), 2).context.x) for shift in ("none", "half_subspace", "half_subspace_coordinates"))
    x = np.concatenate(random_half)
    covariance = np.linalg.eigvalsh(x.T @ x / len(x))[::-1]
    half = dim // 2
    assert_near(covariance[:half] / (dim / half), 1, 3 * math.sqrt(2 / len(x)), "inside")
    assert (np.abs(covariance[half:]) < 1e-10).all() and len(covariance[half:]) == dim - half
    kept = math.ceil(dim / 2)
    np.testing.assert_array_equal(coordinates, np.where(np.arange(dim) < kept, plain, 0))


def test_half_spaces_point_everywhere():
    "The squared first coordinate of the one direction in the plane, over evaluations."
    task, n = LinearRegression(2, 1), 1500
    x = torch.cat([sample_shifted(task, "half_subspace", Draws(0), 1, 1, seed).context.x[0] for seed in range(n)]).double()
    angle = (torch.atan2(x[:, 1], x[:, 0]) % math.pi).numpy() / math.pi
    assert stats.kstest(angle, "uniform").pvalue > 1e-6


def test_each_prompt_keeps_to_one_orthant_and_orthants_are_uniform():
    context, query = shifted("orthants", 8, 16_000, 5)
    x = own(8, 16_000, 5)[0]
    assert torch.equal(context.x.abs(), x.abs()) and torch.equal(query.x, x)
    signs = context.x.sign()
    assert (signs == signs[:, :1]).all()
    powers = torch.tensor([1, 2, 4, 8])
    code = ((signs[:, 0] > 0) * powers).sum(-1)
    assert_uniform(torch.bincount(code, minlength=16), "orthants")
    asked = ((query.x > 0) * powers).sum(-1)
    for point in range(5): assert_uniform(torch.bincount(code * 16 + asked[:, point], minlength=256), "orthant and question")


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_orthogonal_questions_are_orthogonal_and_as_long_as_the_points(dim):
    task = LinearRegression(dim, dim)
    context, query = sample_shifted(task, "orthogonal", Draws(11), 200)
    x, q = numbers(context.x), numbers(query.x)
    inner = np.einsum("bki,bji->bkj", q, x)
    lengths = np.linalg.norm(x, axis=-1)
    assert np.abs(np.tril(inner, -1)).max() < 10 * EPS * lengths.max()**2
    np.testing.assert_allclose(np.linalg.norm(q, axis=-1), lengths, rtol=1e-6)
    assert (np.einsum("bkk->bk", inner) > 0).all(), "on the side of the point that it replaces"
    assert sample_shifted(task, "orthogonal", Draws(11), 200, 1).query.x.shape == (200, 1, dim)


def test_least_squares_cannot_answer_an_orthogonal_question():
    context, query = sample_shifted(LinearRegression(6, 6), "orthogonal", Draws(12), 4000)
    for k in (1, 3, 5):
        w = np.linalg.pinv(numbers(context.x[:, :k])) @ numbers(context.y[:, :k, None])
        said = np.einsum("bi,bi->b", w[..., 0], numbers(query.x[:, k]))
        assert np.abs(said).max() < 1e-3
        error = numbers(query.y[:, k])**2
        assert_near(error.mean(), 6, error.std() / math.sqrt(len(error)), "error of answering 0")


def test_repeated_questions_are_uniform_points_of_the_context():
    n = 6000
    context, query = shifted("overlapping", 13, n, 6)
    equal = (query.x.unsqueeze(2) == context.x.unsqueeze(1)).all(-1)  # (batch, question, example)
    assert (equal.sum(-1) == 1).all()
    chosen = equal.int().argmax(-1)
    assert (chosen[:, 0] == 0).all() and (chosen[:, 1] == 0).all() and (chosen < torch.arange(6).clamp(min=1)).all()
    for k in range(2, 6): assert_uniform(torch.bincount(chosen[:, k], minlength=k), f"after {k}")
    assert_uniform(torch.bincount(chosen[:, 4] * 5 + chosen[:, 5], minlength=20), "two questions")
    torch.testing.assert_close(query.y, context.y.gather(1, chosen))


def test_a_shift_of_the_inputs_starts_from_isotropic_ones():
    "Also where the task's own are skewed (released evaluation)."
    isotropic = Draws(14, 0, "evaluation").normal(6, 30, 4)
    assert torch.equal(shifted("x_scale_2", 14, 6, task=SKEWED).context.x, 2 * isotropic)
    assert torch.equal(shifted("orthants", 14, 6, task=SKEWED).query.x, isotropic)
    assert torch.equal(shifted("overlapping", 14, 6, task=SKEWED).context.x, SKEWED.inputs(Draws(14, 0, "evaluation"), 6, 30))


def test_a_shift_of_inputs_keeps_the_function_of_those_that_draw_standard_normal_ones():
    "Skewed inputs are drawn with a rotation, which such a shift leaves out: the function comes from other draws. Stored results have it so."
    def weights(shift, task): return torch.linalg.lstsq(*(part.double() for part in (lambda p: (p.x, p.y.unsqueeze(-1)))(shifted(shift, 14, 6, task=task).context))).solution

    plain = weights("none", LinearRegression(4, 30))
    for shift in ("skewed", "x_scale_2", "orthants"):
        torch.testing.assert_close(weights(shift, LinearRegression(4, 30)), plain, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(weights(shift, SKEWED), plain, rtol=1e-5, atol=1e-5)
    assert (weights("none", SKEWED) - plain).abs().amax((1, 2)).min() > 0.1


def test_isotropic_and_linear_are_linear_regression():
    plain = LinearRegression(4, 30)
    assert same(shifted("isotropic", 15, 6, task=SKEWED), shifted("none", 15, 6, task=plain))
    assert same(shifted("isotropic_noisy", 15, 6, task=SKEWED), shifted("noisy", 15, 6, task=plain))
    for s in (0.333, 0.5, 2, 3): assert same(shifted(f"isotropic_y_scale_{s}", 15, 6, task=SKEWED), shifted(f"y_scale_{s}", 15, 6, task=plain))
    for task in (ReluNetwork(4, 30), DecisionTree(4, 30), SparseLinearRegression(4, 30), NoisyLinearRegression(4, 30)):
        assert same(shifted("linear", 15, 6, task=task), shifted("none", 15, 6, task=plain))


def test_linear_regression_keeps_the_scale_of_the_task():
    scaled, skewed, noisy = (cls(4, 30, scale=2.5) for cls in (LinearRegression, SkewedLinearRegression, NoisyLinearRegression))
    assert same(shifted("isotropic", 15, 6, task=skewed), shifted("none", 15, 6, task=scaled))
    assert same(shifted("isotropic_noisy", 15, 6, task=skewed), shifted("noisy", 15, 6, task=scaled))
    assert same(shifted("linear", 15, 6, task=noisy), shifted("none", 15, 6, task=scaled))
    for task, shift in ((scaled, "noisy"), (skewed, "noisy"), (skewed, "isotropic_noisy")):
        assert shifted(shift, 15, 6, task=task).context.y.std().item() == pytest.approx(2.5 * 2, rel=1e-5)


@pytest.mark.parametrize("task", [SparseLinearRegression(4, 30), ReluNetwork(4, 30), DecisionTree(4, 30)], ids=lambda task: task.name)
@pytest.mark.parametrize("shift", ["x_scale_3", "orthants", "half_subspace", "overlapping"])
def test_other_functions_are_asked_at_the_shifted_points(shift, task):
    context, query = shifted(shift, 16, 6, task=task)
    draws = Draws(16, 0, "evaluation")
    draws.normal(6, 30, 4)
    function = task.function(draws, 6, 4)
    for prompt in (context, query or context): torch.testing.assert_close(prompt.y, function(prompt.x))


@pytest.mark.parametrize("shift", [shift for shift in FITTING if not SHIFTS[shift].within_dim])
def test_contexts_may_be_long(shift):
    context, query = shifted(shift, 17, 2, 500)
    assert context.x.shape == (2, 500, 4) and (query or context).y.shape == (2, 500)


@dataclass(frozen=True)
class Spoilt(LinearRegression):
    """Linear regression that spoils some answers."""
    p: float = 0.5
    positions: str = "random"

    def ask(self, function, x, draws):
        prompt = super().ask(function, x, draws)
        n_points = x.shape[1]
        spoilt = (torch.arange(n_points) < self.p * n_points).expand(len(x), -1) if self.positions == "fixed" else draws.uniform(len(x), n_points) < self.p
        return prompt._replace(y=prompt.y.masked_fill(spoilt, 99.0), mask=~spoilt)


@dataclass(frozen=True)
class Recall(Task):
    """Something that samples its prompts in its own way."""
    n_points: int = 20
    query_noise: float = 0.0
    query_position: int | None = None
    layout = "vectors"

    def __post_init__(self):
        if self.query_position is not None and self.query_position >= self.n_points: raise ValueError(f"query_position is {self.query_position}")

    def sample(self, draws, batch_size, n_points=None, dims=None):
        size = torch.full((batch_size, 1), float(self.query_noise))
        return Prompt(draws.normal(batch_size, 3, self.dim), size if self.query_position is None else size + 100 * self.query_position, torch.ones(batch_size, 1, dtype=torch.bool))


@dataclass(frozen=True)
class Chain(LinearRegression):
    """Answers with an intermediate step."""
    layout = "chain"

    def function(self, draws, batch_size, dims):
        answer = super().function(draws, batch_size, dims)
        return lambda x: torch.stack([2 * answer(x), answer(x)], -1)


def test_tasks_that_spoil_points_spoil_them_under_a_shift_too():
    spoilt = Spoilt(4, 8)
    shares = {shift: (sample_shifted(spoilt, shift, Draws(18), 4000).context.y == 99).double().mean(0) for shift in ("none", "x_scale_2", "y_scale_2", "clean", "outliers_fixed", "outliers_random")}
    for shift in ("none", "x_scale_2", "y_scale_2", "outliers_random"): assert_near(shares[shift], 0.5, 0.5 / math.sqrt(4000), shift)
    assert (shares["clean"] == 0).all() and shares["outliers_fixed"].tolist() == [1] * 4 + [0] * 4
    context = sample_shifted(spoilt, "y_scale_2", Draws(19), 5).context
    plain = LinearRegression(4, 8).sample(Draws(19), 5)
    assert torch.equal(context.mask, context.y != 99) and torch.equal(context.y[context.mask], 2 * plain.y[context.mask])
    assert same(sample_shifted(replace(spoilt, positions="fixed"), "outliers_random", Draws(20), 5), sample_shifted(spoilt, "none", Draws(20), 5))


def test_other_layouts_pass_through():
    recall, chain = Recall(3, 20), Chain(3, 7)
    assert fitting_shifts(recall) == ["none", *(f"query_noise_{s}" for s in (0.1, 0.4, 0.7, 1, 2, 3, 5)), "query_position_0", "query_position_8", "query_position_16"]
    assert same(sample_shifted(recall, "none", Draws(21), 4).context, recall.sample(Draws(21), 4))
    for s in (0.1, 0.4, 0.7, 1, 2, 3, 5):
        context, query = sample_shifted(recall, f"query_noise_{s}", Draws(21), 4)
        assert query is None and context.y.unique().tolist() == [pytest.approx(s)]
    assert sample_shifted(recall, "query_position_8", Draws(21), 4).context.y.unique().tolist() == [800]
    full = replace(recall, n_points=64)
    assert [shift for shift in fitting_shifts(full) if "position" in shift] == [f"query_position_{i}" for i in (0, 8, 16, 24, 32, 40, 48, 56, 63)]
    assert same(sample_shifted(chain, "none", Draws(21), 4).context, chain.sample(Draws(21), 4))
    x = sample_shifted(chain, "x_scale_2", Draws(21), 4).context
    assert x.y.shape == (4, 7, 2) and x.mask.shape == (4, 7)
    torch.testing.assert_close(x.y, 2 * chain.sample(Draws(21), 4).y)


INPUTS = ["skewed", "skewed_fixed", "x_scale_0.333", "x_scale_0.5", "x_scale_2", "x_scale_3", "half_subspace", "half_subspace_coordinates"]
ANSWERS = ["y_scale_0.333", "y_scale_0.5", "y_scale_2", "y_scale_3"]
NOISE = ["noisy", "noisy_unscaled"]
QUERIES = ["orthants", "orthogonal", "overlapping"]
ISOTROPIC = ["isotropic", "isotropic_noisy", *(f"isotropic_{shift}" for shift in ANSWERS)]
OUTLIERS = ["clean", "outliers_fixed", "outliers_fixed_as_released", "outliers_random"]
RECALL = [*(f"query_noise_{s}" for s in (0.1, 0.4, 0.7, 1, 2, 3, 5)), *(f"query_position_{i}" for i in (0, 8, 16, 24, 32, 40, 48, 56, 63))]
MAPPINGS = [f"{family}_{tasks}_tasks_{words}_words" for family in ("forms", "facts") for tasks in ("trained", "held_out") for words in ("trained", "held_out")]
REGISTERED = {
    "linear_regression": {"none", *INPUTS, *ANSWERS, *NOISE, *QUERIES},
    "noisy_linear_regression": {"none", *INPUTS, *ANSWERS, *QUERIES, "linear"},
    "skewed_linear_regression": {"none", *INPUTS, *ANSWERS, *NOISE, *QUERIES, *ISOTROPIC},
    "sparse_linear_regression": {"none", *INPUTS, *ANSWERS, *NOISE, *QUERIES, "linear"},
    "relu_network": {"none", *INPUTS, *ANSWERS, *NOISE, *QUERIES, "linear"},
    "decision_tree": {"none", *INPUTS, *ANSWERS, *NOISE, *QUERIES, "linear"},
    "sparse_parity": {"none"},
    "orthogonal_outliers": {"none", *INPUTS, *ANSWERS, *NOISE, *OUTLIERS},
    "many_outliers": {"none", *INPUTS, *ANSWERS, *NOISE, *OUTLIERS},
    "chain_of_thought": {"none", *INPUTS},
    "vector_mqar": {"none", *RECALL},
    "associative_recall": {"none"},
    "formal_languages": {"none", "new_languages"},
    "few_shot_mappings": {"none", *MAPPINGS},
}
FITS = {
    **{make_task(name): shifts for name, shifts in REGISTERED.items()},
    Spoilt(): {"none", *INPUTS, *ANSWERS, *NOISE, *OUTLIERS},
    Chain(): {"none", *INPUTS},
    LinearRegression(1): {"none", *INPUTS, *ANSWERS, *NOISE, *QUERIES} - {"half_subspace", "half_subspace_coordinates"},
}


@pytest.mark.parametrize("task", FITS, ids=lambda task: f"{type(task).__name__}-{task.dim}")
def test_which_shift_fits_which_task(task):
    "A prompt under a shift is as long as one without it."
    assert set(fitting_shifts(task)) == FITS[task]
    for shift in SHIFTS:
        if shift in FITS[task]:
            check_fit(task, shift, 1)
            n_points = task.n_points if task.layout == "vectors" else 1  # a place in the list asked for has to exist
            context = sample_shifted(task, shift, Draws(0), 2, n_points).context
            assert context.x.isfinite().all() and context.x.shape == task.sample(Draws(0), 2, n_points).x.shape
        else:
            for refuse in (lambda: check_fit(task, shift, 1), lambda: sample_shifted(task, shift, Draws(0), 2, 1)):
                with pytest.raises(ValueError, match=f"shift '{shift}' does not fit .*it needs a task "): refuse()


def test_every_task_says_which_shifts_fit():
    assert REGISTERED.keys() == TASKS.keys()


def test_a_new_shift_is_one_definition(monkeypatch):
    monkeypatch.setitem(SHIFTS, "doubled", Shift("doubled inputs", inputs=lambda x, draws, task: 2 * x))
    x, function = own(9, 6)
    assert torch.equal(shifted("doubled", 9, 6).context.x, 2 * x)
    assert torch.equal(shifted("doubled", 9, 6).context.y, function(2 * x))
    assert "doubled" in fitting_shifts(DecisionTree()) and "doubled" not in fitting_shifts(SparseParity())


def test_question_and_context_share_what_a_shift_does_to_answers(monkeypatch):
    monkeypatch.setitem(SHIFTS, "both", replace(SHIFTS["orthants"], answers=SHIFTS["y_scale_3"].answers))
    (context, query), plain = shifted("both", 9, 6), shifted("orthants", 9, 6)
    assert torch.equal(context.y, 3 * plain.context.y) and torch.equal(query.y, 3 * plain.query.y)


def test_every_shift_of_the_papers_has_a_name_and_a_title():
    named = {"none", *INPUTS, *ANSWERS, *NOISE, *QUERIES, *ISOTROPIC, "linear", "clean", "outliers_random", "outliers_fixed", "outliers_fixed_as_released", "new_languages",
             *(shift for shift in RECALL if "noise" in shift), *MAPPINGS}
    assert named == {shift for shift in SHIFTS if not shift.startswith("query_position")}
    titles = [shift.title for shift in SHIFTS.values()]
    assert len(set(titles)) == len(titles)


BAD = {
    "unknown shift": (lambda: sample_shifted(LinearRegression(3), "skew", Draws(0), 2), "unknown shift 'skew'.*skewed"),
    "unknown shift to fit": (lambda: check_fit(LinearRegression(3), "orthant"), "unknown shift 'orthant'.*mean 'orthants'"),
    "signs with noise": (lambda: sample_shifted(SparseParity(), "noisy", Draws(0), 2), "'noisy' does not fit SparseParity.*real answers"),
    "more noise": (lambda: check_fit(NoisyLinearRegression(3), "noisy"), "without noise of its own"),
    "isotropic already": (lambda: check_fit(LinearRegression(3), "isotropic"), "with skewed inputs"),
    "linear already": (lambda: check_fit(SkewedLinearRegression(3), "linear"), "other than noiseless linear regression"),
    "no outliers to place": (lambda: check_fit(LinearRegression(3), "outliers_fixed"), "with the options p and positions"),
    "no query to spoil": (lambda: check_fit(LinearRegression(3), "query_noise_1"), "with the option query_noise"),
    "no such pair": (lambda: check_fit(Recall(3, 20), "query_position_24"), "query_position is 24"),
    "outliers in the question": (lambda: check_fit(Spoilt(), "orthants"), "spoils no points"),
    "a chain asked elsewhere": (lambda: check_fit(Chain(), "overlapping"), "pairs of a point and an answer"),
    "its own sampler": (lambda: check_fit(Recall(3, 20), "skewed"), "one input a point and a function of single points"),
    "two inputs a point": (lambda: check_fit(make_task("vector_mqar"), "x_scale_2"), "one input a point and a function of single points"),
    "half of a line": (lambda: check_fit(LinearRegression(1), "half_subspace"), "at least 2 dimensions"),
    "more examples than dimensions": (lambda: sample_shifted(LinearRegression(3, 9), "orthogonal", Draws(0), 2), "n_points is 9.*at most 3 points"),
    "one example too many": (lambda: check_fit(LinearRegression(3), "orthogonal", 4), "n_points is 4.*at most 3"),
    "empty batch": (lambda: sample_shifted(LinearRegression(3), "orthants", Draws(0), 0), "batch_size 0.*at least 1"),
    "no points": (lambda: sample_shifted(LinearRegression(3), "x_scale_2", Draws(0), 2, 0), "n_points 0.*at least 1"),
    "negative seed of an evaluation": (lambda: sample_shifted(LinearRegression(3), "skewed_fixed", Draws(0), 2, evaluation_seed=-1), "seed is -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message): call()


@pytest.mark.parametrize("name", ["many_outliers", "orthogonal_outliers"])
@pytest.mark.parametrize("positions", ["random", "fixed", "fixed_as_released"])
def test_outliers_are_placed_by_the_shift(name, positions):
    "The real tasks: a shift of positions is the task with that option, drawn with the same draws."
    task = make_task(name, dim=4, n_points=40)
    shifted_mask = sample_shifted(task, f"outliers_{positions}", Draws(3), 5).context
    assert same(shifted_mask, replace(task, positions=positions).sample(Draws(3), 5))
    assert shifted_mask.mask.float().mean().item() == pytest.approx({"many_outliers": {"fixed_as_released": 0.75}.get(positions, 0.1)}.get(name, 0.5), abs=0.1)
