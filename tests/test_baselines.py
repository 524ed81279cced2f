"""Baselines against independent oracles: NumPy, scikit-learn, plain loops and exact fractions."""
import itertools
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsRegressor

from iclrepro import baselines as bl
from iclrepro.evaluation import Exam, as_baseline_examinee, take
from iclrepro.prompts import Draws
from iclrepro.tasks import LinearRegression, SparseParity

# Those that answer every position of a regression prompt without further ado; the others have test files of their own.
POINTWISE = [name for name, row in bl.BASELINES.items() if row.takes("query") and not row.takes("mask") and not row.takes("seed")]

DIM, POINTS, BATCH = 6, 20, 5
EPS = np.finfo(np.float64).eps


def gaussian(seed, *shape):
    return Draws(seed).normal(*shape).double()


def rotation(dim):
    return torch.linalg.qr(gaussian(99, dim, dim)).Q


def contexts():
    "x by name: (batch, points, dim) float64."
    x = gaussian(1, BATCH, POINTS, DIM)
    u = rotation(DIM)
    scale = 1 / torch.arange(1, DIM + 1).double()
    return {
        "isotropic": x,
        "skewed": x @ (u * scale) @ u.T,
        "half subspace": x @ u[:, :DIM // 2] @ u[:, :DIM // 2].T,
        "silent dimensions": torch.cat([x[..., :2], torch.zeros(BATCH, POINTS, DIM - 2)], -1),
        "duplicated": x[:, torch.arange(POINTS) // 3],
        "cycle of four": x[:, torch.arange(POINTS) % 4],
        "all zero at first": torch.cat([torch.zeros(BATCH, 3, DIM), x[:, 3:]], 1),
        "wider than long": gaussian(2, BATCH, 5, 9),
        "a line": gaussian(3, BATCH, POINTS, 1),
    }


def lstsq(x, y, query, eps):
    "Predictions of numpy.linalg.lstsq for each prompt and prefix, and the rounding error that its conditioning allows."
    predictions, allowed = np.zeros(y.shape), np.zeros(y.shape)
    for b, k in itertools.product(range(x.shape[0]), range(1, x.shape[1])):
        w, _, rank, s = np.linalg.lstsq(x[b, :k], y[b, :k], rcond=eps * max(k, x.shape[2]))
        predictions[b, k] = w @ query[b, k]
        condition = s[0] / s[rank - 1] if rank else 1
        allowed[b, k] = 100 * EPS * (condition * np.linalg.norm(w) * np.linalg.norm(query[b, k]) + 1)
    return predictions, allowed


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("name", contexts())
def test_least_squares_is_numpy_lstsq(name, noise):
    x = contexts()[name]
    y = (x * gaussian(4, BATCH, 1, x.shape[2])).sum(-1) + noise * gaussian(5, *x.shape[:2])
    for query in (None, gaussian(6, *x.shape)):
        expected, allowed = lstsq(x.numpy(), y.numpy(), (x if query is None else query).numpy(), EPS)
        assert (np.abs(bl.least_squares(x, y, query).numpy() - expected) <= allowed).all()


@pytest.mark.parametrize("name", contexts())
def test_least_squares_of_float32_drops_what_is_below_float32(name):
    "A float32 point in a subspace is off it by rounding; a question off the subspace shows whether that was taken for data."
    x = contexts()[name].float()
    y, query = Draws(5).normal(*x.shape[:2]), Draws(6).normal(*x.shape)
    expected, allowed = lstsq(*(part.double().numpy() for part in (x, y, query)), np.finfo(np.float32).eps)
    prediction = bl.least_squares(x, y, query)
    assert prediction.dtype == torch.float32
    assert (np.abs(prediction.double().numpy() - expected) <= allowed + np.finfo(np.float32).eps * np.abs(expected)).all()


def test_least_squares_where_conditioning_is_worst():
    "d = 20, eigenvalues 1/i^2, positions around k = d; the worst of many prompts is ill-conditioned indeed."
    d = 20
    u = rotation(d)
    x = gaussian(7, 100, d + 4, d) @ (u / torch.arange(1, d + 1)) @ u.T
    y = (x * gaussian(8, 100, 1, d)).sum(-1)
    assert torch.linalg.cond(x[:, :d]).max() > 1e4
    expected, allowed = lstsq(x.numpy(), y.numpy(), x.numpy(), EPS)
    assert (np.abs(bl.least_squares(x, y).numpy() - expected) <= allowed).all()


def test_least_squares_takes_an_rcond():
    x = torch.diag_embed(torch.tensor([[1.0, 1e-3, 1.0]])).double()
    x[0, 2] = 1
    y = torch.ones(1, 3).double()
    assert bl.least_squares(x, y, rcond=1e-4)[0, 2] == pytest.approx(1 + 1e3)
    assert bl.least_squares(x, y, rcond=1e-2)[0, 2] == pytest.approx(1)
    assert torch.equal(bl.least_squares(x, y, rcond=0.0), bl.least_squares(x, y))
    for rcond in (-1e-3, 1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"rcond is {rcond}.*\[0, 1\)"): bl.least_squares(x, y, rcond=rcond)


def test_least_squares_counts_as_zero_what_rounding_of_k_rows_can_make():
    "The cutoff is eps max(k, dim): a singular value of 4.5 eps is data to 4 examples and nothing to 5."
    small = 4.5 * torch.finfo(torch.float32).eps
    x, y, query = torch.zeros(1, 7, 2), torch.zeros(1, 7), torch.tensor([0.0, 1.0]).expand(1, 7, 2)
    x[0, 0, 0], x[0, 1, 1], y[0, 1] = 1, small, small
    assert bl.least_squares(x, y, query)[0].tolist() == pytest.approx([0, 0, 1, 1, 1, 0, 0])


def test_least_squares_error_follows_theory():
    d, prompts = 8, 2000
    prompt = LinearRegression(dim=d, n_points=d + 4).sample(Draws(0, stream="evaluation"), prompts)
    error = (bl.least_squares(prompt.x, prompt.y) - prompt.y).square() / d
    mean, standard_error = error.mean(0), error.std(0) / prompts**0.5
    assert ((mean[:d] - (d - torch.arange(d)) / d).abs() < 5 * standard_error[:d]).all()
    assert error[:, d:].median(0).values.max() < 1e-9


@pytest.mark.parametrize("n_neighbours", [1, 3, 50])
def test_nearest_neighbours_are_scikit_learns(n_neighbours):
    x, y, query = gaussian(1, 3, POINTS, DIM), gaussian(2, 3, POINTS), gaussian(3, 3, POINTS, DIM)
    prediction = bl.nearest_neighbours(x, y, query, n_neighbours=n_neighbours)
    assert (prediction[:, 0] == 0).all()
    for b, k in itertools.product(range(3), range(1, POINTS)):
        oracle = KNeighborsRegressor(min(n_neighbours, k), algorithm="brute").fit(x[b, :k].numpy(), y[b, :k].numpy())
        assert prediction[b, k].item() == pytest.approx(oracle.predict(query[b, k:k + 1].numpy())[0], abs=1e-12)


def test_nearest_neighbours_default_to_three_and_the_own_inputs():
    x, y = gaussian(1, 2, POINTS, DIM), gaussian(2, 2, POINTS)
    assert torch.equal(bl.nearest_neighbours(x, y), bl.nearest_neighbours(x, y, x, n_neighbours=3))


def test_of_equally_near_neighbours_the_earlier_counts():
    x = Draws(0).signs(4, 40, 3)  # 8 different points, so nearly every distance is shared
    y = Draws(1).normal(4, 40)
    expected = np.zeros((4, 40))
    for b, k in itertools.product(range(4), range(1, 40)):
        order = np.argsort(((x[b, :k] - x[b, k])**2).sum(-1).numpy(), kind="stable")[:3]
        expected[b, k] = y[b, order].double().mean()
    np.testing.assert_allclose(bl.nearest_neighbours(x, y).numpy(), expected, atol=1e-6)


def test_averaging_is_a_loop():
    x, y, query = gaussian(1, BATCH, POINTS, DIM), gaussian(2, BATCH, POINTS), gaussian(3, BATCH, POINTS, DIM)
    expected = np.zeros((BATCH, POINTS))
    for b, k in itertools.product(range(BATCH), range(1, POINTS)):
        w = sum(y[b, i].item() * x[b, i].numpy() for i in range(k)) / k
        expected[b, k] = w @ query[b, k].numpy()
    np.testing.assert_allclose(bl.averaging(x, y, query).numpy(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(bl.averaging(x, y)[:, 1].numpy(), y[:, 0] * (x[:, 0] * x[:, 1]).sum(-1), rtol=1e-12)


def test_zero_is_zero():
    prediction = bl.zero(gaussian(1, 2, 3, 4), gaussian(2, 2, 3))
    assert prediction.shape == (2, 3) and prediction.dtype == torch.float64 and not prediction.any()


def sign_product(x, chosen):
    return int(np.prod([x[i] for i in chosen]))


@pytest.mark.parametrize("dim, k", [(4, 1), (5, 2), (5, 3), (4, 4)])
def test_parity_bayes_is_exact_enumeration(dim, k):
    batch, points = 6, 9
    prompt = SparseParity(dim=dim, k=k, n_points=points).sample(Draws(3), batch)
    query = Draws(4).signs(batch, points, dim)
    for asked in (None, query):
        prediction = bl.parity_bayes(prompt.x, prompt.y, asked, k=k)
        for b in range(batch):
            x, y, q = (part[b].int().tolist() for part in (prompt.x, prompt.y, prompt.x if asked is None else asked))
            survivors = list(itertools.combinations(range(dim), k))
            for t in range(points):
                posterior = Fraction(sum(sign_product(q[t], chosen) for chosen in survivors), len(survivors))
                assert prediction[b, t].item() == pytest.approx(float(posterior), abs=1e-6)
                survivors = [chosen for chosen in survivors if sign_product(x[t], chosen) == y[t]]


def test_parity_bayes_takes_k_from_the_task():
    task = SparseParity(dim=6, n_points=12, k=3)
    prompt = task.sample(Draws(3), 4)
    assert torch.equal(bl.parity_bayes(prompt.x, prompt.y, task=task), bl.parity_bayes(prompt.x, prompt.y, k=3))
    with pytest.raises(ValueError, match="no set of 2 coordinates"): bl.parity_bayes(prompt.x, prompt.y, k=2, task=task)  # what is said counts
    scores = take(Exam(n_points=30, n_prompts=64), task, as_baseline_examinee(bl.baseline("parity_bayes"), task))
    assert (scores[:, 25:] == 1).all() and scores[:, 0].mean() < 0.9


def test_parity_bayes_reaches_the_known_accuracies():
    prompts = 20_000
    task = SparseParity(dim=10, k=2, n_points=11)
    prompt = task.sample(Draws(0, stream="evaluation"), prompts)
    posterior = bl.parity_bayes(prompt.x, prompt.y)
    for accuracy in (bl.expected_accuracy(posterior), task.score(posterior, prompt.y)):
        standard_error = accuracy.std(0) / prompts**0.5
        for examples, known in ((0, 0.5546875), (2, 0.606), (6, 0.872), (10, 0.990)):
            rounding = 0 if examples == 0 else 0.0005
            assert abs(accuracy[:, examples].mean() - known) < rounding + 4 * standard_error[examples]


def test_no_context_accuracy_of_parity_is_exact_over_all_questions():
    questions = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=10)))[:, None]
    posterior = bl.parity_bayes(questions, torch.ones(1024, 1))
    assert bl.expected_accuracy(posterior.double()).mean().item() == pytest.approx(0.5546875, abs=1e-7)


def test_a_tie_is_worth_one_half():
    assert bl.expected_accuracy(torch.tensor([0.0, -1.0, 0.5])).tolist() == [0.5, 1.0, 0.75]
    for wrong in (1.5, float("nan")):
        with pytest.raises(ValueError, match="between -1 and 1"): bl.expected_accuracy(torch.tensor([wrong]))


def parity_pair():
    "Two batches of sign prompts with one function between them."
    prompt = SparseParity(index_set="batch", n_points=12).sample(Draws(0), 16)
    return (prompt.x[:8], prompt.y[:8]), (prompt.x[8:], prompt.y[8:])


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("position", [0, 1, 5, 10, 11])
def test_no_baseline_looks_ahead(name, position):
    (x, y), (other_x, other_y) = parity_pair()
    spliced = torch.cat([x[:, :position], other_x[:, position:]], 1), torch.cat([y[:, :position], other_y[:, position:]], 1)
    kept = slice(position + 1)
    assert torch.equal(bl.baseline(name)(x, y, x)[:, kept], bl.baseline(name)(*spliced, x)[:, kept])


@pytest.mark.parametrize("name", POINTWISE)
def test_a_prompt_does_not_depend_on_its_neighbours_or_chunks(name, monkeypatch):
    (x, y), _ = parity_pair()
    together = bl.baseline(name)(x, y)
    alone = torch.cat([bl.baseline(name)(x[b:b + 1], y[b:b + 1]) for b in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(bl, "_CHUNK", 1)
    torch.testing.assert_close(bl.baseline(name)(x, y), together, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("values_per_prompt, sizes", [(1, [8]), (30, [3, 3, 2]), (100, [1] * 8), (1000, [1] * 8)])
def test_chunks_are_as_large_as_memory_allows(values_per_prompt, sizes, monkeypatch):
    monkeypatch.setattr(bl, "_CHUNK", 100)
    seen = []

    def add(x, y):
        seen.append(len(x))
        return x + y

    x, y = gaussian(1, 8, 2), gaussian(2, 8, 2)
    assert torch.equal(bl._in_chunks(add, values_per_prompt, x, y), x + y)
    assert seen == sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", POINTWISE)
def test_one_prompt_one_point(name, dtype):
    x, y = torch.ones(1, 1, 4, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    prediction = bl.baseline(name)(x, y)
    assert prediction.shape == (1, 1) and prediction.dtype == dtype
    assert prediction.item() == (1 if name == "parity_bayes" else 0)


@pytest.mark.parametrize("name", POINTWISE)
def test_inputs_are_left_alone_and_need_not_be_contiguous(name):
    (x, y), _ = parity_pair()
    before = x.clone(), y.clone()
    strided = bl.baseline(name)(x.mT.contiguous().mT, y.T.contiguous().T)
    torch.testing.assert_close(strided, bl.baseline(name)(x, y), rtol=1e-6, atol=1e-6)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


X, Y = torch.ones(2, 5, 3), torch.ones(2, 5)


def spoiled(part, value):
    part = part.clone()
    part[1, 2] = value
    return part


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("arguments, message", [
    (([[1.0]], Y), r"x is a list: it must be a torch tensor"),
    ((X, Y.numpy()), r"y is a ndarray: it must be a torch tensor"),
    ((X.int(), Y), r"x is torch.int32: it must be float32 or float64; convert it with x.float\(\)"),
    ((X, Y.half()), r"y is torch.float16: it must be float32 or float64"),
    ((X, Y.double()), r"y is torch.float64 on cpu but x torch.float32 on cpu"),
    ((X, Y, X.double()), r"query is torch.float64 on cpu but x torch.float32"),
    ((X[0], Y[0]), r"x has shape \(5, 3\): it must be \(batch, points, dim\)"),
    ((X[:0], Y[:0]), r"x has shape \(0, 5, 3\).*each at least 1"),
    ((X, Y[:, :4]), r"y has shape \(2, 4\): with this x it must be \(batch, points\) = \(2, 5\)"),
    ((X, Y[..., None]), r"y has shape \(2, 5, 1\)"),
    ((X, Y, X[:, :1]), r"query has shape \(2, 1, 3\): it must be that of x, \(2, 5, 3\)"),
    ((spoiled(X, torch.inf), Y), r"x has 3 values that are not finite, the first at index \(1, 2, 0\)"),
    ((X, spoiled(Y, torch.nan)), r"y has 1 values that are not finite, the first at index \(1, 2\)"),
    ((X, Y, spoiled(X, torch.nan)), r"query has 3 values that are not finite"),
])
def test_bad_input_is_named(name, arguments, message):
    with pytest.raises(ValueError, match=message): bl.baseline(name)(*arguments)


@pytest.mark.parametrize("call, message", [
    (lambda: bl.nearest_neighbours(X, Y, n_neighbours=0), "n_neighbours is 0: it must be at least 1"),
    (lambda: bl.parity_bayes(X, Y, k=0), "k is 0: it must be between 1 and dim, 3"),
    (lambda: bl.parity_bayes(X, Y, k=4), "k is 4: it must be between 1 and dim, 3"),
    (lambda: bl.parity_bayes(spoiled(X, 0.0), Y), "x holds 0: parity is defined for -1 and 1 only"),
    (lambda: bl.parity_bayes(X, spoiled(Y, 0.5)), "y holds 0.5: parity"),
    (lambda: bl.parity_bayes(X, Y, spoiled(X, 2.0)), "query holds 2: parity"),
    (lambda: bl.parity_bayes(torch.ones(1, 2, 40), torch.ones(1, 2), k=10), "10 of 40 coordinates can be chosen in 847660528 ways: at most 200000"),
    (lambda: bl.parity_bayes(X, spoiled(Y, -1.0)), "no set of 2 coordinates explains the first 3 examples"),
    (lambda: bl.baseline("splines"), "unknown baseline 'splines'.*least_squares, nearest_neighbours, averaging, zero, parity_bayes"),
    (lambda: bl.baselines_for("sparse_paritY"), "unknown task with baselines 'sparse_paritY'.*Did you mean 'sparse_parity'"),
])
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message): call()


TASKS = ("linear_regression noisy_linear_regression skewed_linear_regression sparse_linear_regression relu_network decision_tree orthogonal_outliers "
         "many_outliers sparse_parity chain_of_thought vector_mqar associative_recall formal_languages few_shot_mappings").split()


def test_every_task_has_yardsticks_with_titles_of_their_own():
    assert {name for row in bl.BASELINES.values() for name in row.tasks} == set(TASKS)
    for task in TASKS:
        rows = bl.baselines_for(task)
        assert rows == {name: row for name, row in bl.BASELINES.items() if task in row.tasks}
        assert len({row.title for row in rows.values()}) == len(rows) > 0
    assert list(bl.baselines_for("sparse_parity")) == ["parity_bayes"]
    assert {"least_squares", "lasso_0.01"} <= set(bl.baselines_for("sparse_linear_regression"))


def test_a_row_passes_its_options_and_lets_the_caller_change_them():
    row = bl.Baseline("Square", lambda x, power=2, factor=1: factor * x**power, ("linear_regression",), "ours", {"power": 3})
    assert (row(2), row(2, factor=10), row(2, power=1)) == (8, 80, 2)
    assert row.takes("factor") and not row.takes("at")


def test_positions_asked_are_checked():
    assert bl._checked_at(None, 3) == [0, 1, 2] and bl._checked_at((2, 0, 2), 3) == [0, 2] and bl._checked_at((), 3) == []
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"at holds {wrong}: a prompt of 3 points can be asked after 0 to 2 examples"): bl._checked_at([1, wrong], 3)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(ValueError, match=r'needs the package xgboost: pip install "iclrepro\[baselines\]"'): bl.xgboost(X, Y)
