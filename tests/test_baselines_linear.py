"""Ridge, Lasso, gradient descent and GD++ against scikit-learn, closed forms and plain loops."""
import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, Ridge
from test_baselines import BATCH, DIM, contexts, gaussian

from iclrepro import baselines as bl
from iclrepro.evaluation import Exam, as_baseline_examinee, take
from iclrepro.prompts import Draws
from iclrepro.shifts import sample_shifted
from iclrepro.tasks import LinearRegression, NoisyLinearRegression


def answers(x, noise=0.3):
    return (x * gaussian(4, len(x), 1, x.shape[2])).sum(-1) + noise * gaussian(5, *x.shape[:2])


def weights_of(f, x, y, **options):
    "The weights behind linear predictions, (batch, points, dim): the answers to unit vectors."
    unit = torch.eye(x.shape[2], dtype=x.dtype)
    return torch.stack([f(x, y, e.expand_as(x), **options) for e in unit], -1)


def prefixes(x):
    return itertools.product(range(len(x)), range(1, x.shape[1]))


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("name", contexts())
def test_ridge_is_scikit_learns_and_the_posterior_mean(name, penalty):
    x = contexts()[name]
    y, query = answers(x), gaussian(6, *x.shape)
    prediction = bl.ridge(x, y, query, penalty=penalty)
    assert (prediction[:, 0] == 0).all()
    for b, k in prefixes(x):
        X, Y, q = x[b, :k].numpy(), y[b, :k].numpy(), query[b, k].numpy()
        learner = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(X, Y).predict(q[None])[0]
        gaussian_process = q @ X.T @ np.linalg.solve(X @ X.T + penalty * np.eye(k), Y)  # conditioning on the answers, not the weights
        assert prediction[b, k].item() == pytest.approx(learner, rel=1e-9, abs=1e-10)
        assert prediction[b, k].item() == pytest.approx(gaussian_process, rel=1e-8, abs=1e-9)


def test_ridge_asks_x_itself_by_default_and_keeps_float32():
    x = contexts()["isotropic"].float()
    y = answers(x.double()).float()
    assert torch.equal(bl.ridge(x, y), bl.ridge(x, y, x)) and bl.ridge(x, y).dtype == torch.float32
    torch.testing.assert_close(bl.ridge(x, y).double(), bl.ridge(x.double(), y.double()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("noise_std, scale", [(3.0, 1.0), (1.0, 2.0), (3.0, 0.5)])
def test_ridge_takes_the_noise_from_the_task(noise_std, scale):
    "Against the mean of an answer given the examples, all of them being jointly Gaussian."
    task = NoisyLinearRegression(4, 9, noise_std=noise_std, scale=scale)
    context, _ = sample_shifted(task, "none", Draws(0, 0, "evaluation"), 8)
    expected = np.zeros((8, 9))
    for b, k in prefixes(context.x):
        X, Y, q = (part.double().numpy() for part in (context.x[b, :k], context.y[b, :k], context.x[b, k]))
        expected[b, k] = scale**2 * q @ X.T @ np.linalg.solve(scale**2 * X @ X.T + noise_std**2 * np.eye(k), Y)
    examinee = as_baseline_examinee(bl.baseline("ridge"), task)
    np.testing.assert_allclose(examinee(context, None, list(range(9))), expected, rtol=1e-5, atol=1e-5)
    scores = take(Exam(n_points=9, n_prompts=8, batch_size=8), task, examinee)
    np.testing.assert_allclose(scores, (expected - context.y.numpy())**2 / 4, rtol=1e-4, atol=1e-4)


def test_without_a_task_that_has_noise_the_penalty_of_ridge_is_1_and_what_is_said_counts():
    x = contexts()["isotropic"]
    y, noisy = answers(x), NoisyLinearRegression(DIM, noise_std=3.0)
    for options in ({}, {"task": None}, {"task": LinearRegression(DIM, scale=2.0)}, {"task": noisy, "penalty": 1.0}):
        assert torch.equal(bl.ridge(x, y, **options), bl.ridge(x, y, penalty=1.0))
    assert torch.equal(bl.ridge(x, y, task=noisy), bl.ridge(x, y, penalty=9.0))
    with pytest.raises(ValueError, match="penalty is 0.0"): bl.ridge(x, y, task=NoisyLinearRegression(DIM, noise_std=0.0))


def test_the_noise_variance_is_the_best_penalty():
    d, prompts, variance = 8, 4000, 4.0
    x, w = gaussian(0, prompts, 17, d), gaussian(1, prompts, d)
    y = torch.einsum("bpd,bd->bp", x, w)
    noisy = y + variance**0.5 * gaussian(2, prompts, 17)
    error = {penalty: (bl.ridge(x, noisy, penalty=penalty) - y).square()[:, 4:] for penalty in (1.0, variance, 16.0)}
    for other in (1.0, 16.0):
        excess = (error[other] - error[variance]).mean(1)
        assert excess.mean() > 5 * excess.std() / prompts**0.5


@pytest.mark.parametrize("alpha", [1.0, 0.1, 0.01, 0.001, 1e-4])
@pytest.mark.parametrize("name", contexts())
def test_lasso_is_the_minimum(name, alpha):
    "Certified by the duality gap, which needs no other solver, for every prompt and prefix."
    x = contexts()[name]
    for y in (answers(x), answers(x, noise=0.0)):
        w = weights_of(bl.lasso, x, y, alpha=alpha).numpy()
        for b, k in prefixes(x):
            X, Y = x[b, :k].numpy(), y[b, :k].numpy()
            residual = Y - X @ w[b, k]
            slope = np.abs(X.T @ residual).max()
            dual = residual * min(1, k * alpha / slope) if slope else residual
            primal = residual @ residual / 2 + k * alpha * np.abs(w[b, k]).sum()
            assert primal - (Y @ Y - (Y - dual) @ (Y - dual)) / 2 <= 1e-11 * (Y @ Y)


@pytest.mark.parametrize("alpha", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("name", ["isotropic", "skewed", "duplicated", "silent dimensions", "a line"])
def test_lasso_is_scikit_learns(name, alpha):
    x = contexts()[name][:2]
    y, query = answers(x), gaussian(6, *x.shape)
    prediction = bl.lasso(x, y, query, alpha=alpha)
    assert (prediction[:, 0] == 0).all()
    for b, k in prefixes(x):
        if k % 3: continue
        X, Y = x[b, :k].numpy(), y[b, :k].numpy()
        learner = Lasso(alpha=alpha, fit_intercept=False, max_iter=1_000_000, tol=1e-13).fit(X, Y)
        assert prediction[b, k].item() == pytest.approx(learner.predict(query[b, k:k + 1].numpy())[0], abs=2e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_lasso_knows_no_units(scale):
    x = contexts()["isotropic"]
    y = answers(x)
    torch.testing.assert_close(bl.lasso(scale * x, scale**2 * y, alpha=0.01 * scale**3), scale**2 * bl.lasso(x, y, alpha=0.01), rtol=1e-7, atol=1e-9 * scale**2)


def test_lasso_is_soft_thresholding_on_orthogonal_inputs():
    x = 2 * torch.eye(4).repeat(1, 2, 1).double()
    w = torch.tensor([3.0, -1.0, 0.2, 0.0]).double()
    found = weights_of(bl.lasso, torch.cat([x, x[:, :1]], 1), torch.cat([x, x[:, :1]], 1) @ w, alpha=0.25)[0, 8]
    torch.testing.assert_close(found, w.sign() * (w.abs() - 8 * 0.25 / 8).clamp(min=0))  # 8 examples, X^T X = 8 I


def test_lasso_of_twins_shares_a_coefficient_and_settles():
    x = gaussian(0, 4, 15, 1).expand(-1, -1, 3).contiguous()
    w = weights_of(bl.lasso, x, 2 * x[..., 0], alpha=1e-3)
    alone = weights_of(bl.lasso, x[..., :1].contiguous(), 2 * x[..., 0], alpha=1e-3)
    torch.testing.assert_close(w.sum(-1), alone[..., 0], rtol=1e-9, atol=1e-9)
    assert (w >= 0).all()


def test_lasso_with_a_great_penalty_is_zero():
    x = contexts()["isotropic"]
    assert not bl.lasso(x, answers(x), alpha=1e3).any()


def test_lasso_warns_of_what_it_could_not_finish():
    x = contexts()["isotropic"]
    with pytest.warns(RuntimeWarning, match=r"Lasso did not settle for \d of 5 prompts in 1 steps"): bl.lasso(x[:, :2], answers(x)[:, :2], max_steps=1)


def descent_by_loops(X, Y, questions, n_iterations, gamma):
    "Predictions (n_iterations + 1, questions), every product written out."
    k, d = X.shape
    eigenvalues = np.linalg.eigvalsh(X.T @ X / k)
    step = 2 / (eigenvalues[-1] + eigenvalues[0]) if X.any() else 0.0
    w, X, questions = np.zeros(d), [v.copy() for v in X], [q.copy() for q in questions]
    predictions = [[q @ w for q in questions]]
    for _ in range(n_iterations):
        covariance = sum(np.outer(v, v) for v in X)
        X, questions = ([v - gamma * covariance @ v for v in vectors] for vectors in (X, questions))
        w = w - step * sum((v @ w - target) * v for v, target in zip(X, Y)) / k
        predictions.append([q @ w for q in questions])
    return np.array(predictions)


@pytest.mark.parametrize("n_iterations, gamma", [(0, 0.0), (1, 0.0), (7, 0.0), (7, 2e-3), (23, 1.939e-4)])
@pytest.mark.parametrize("name", ["isotropic", "skewed", "silent dimensions", "all zero at first", "a line"])
def test_gradient_descent_is_a_loop(name, n_iterations, gamma):
    x = contexts()[name][:2]
    y, query = answers(x), gaussian(6, *x.shape)
    prediction = bl.gradient_descent(x, y, query, n_iterations=n_iterations, gamma=gamma)
    expected = np.zeros(y.shape)
    for b, k in prefixes(x):
        expected[b, k] = descent_by_loops(x[b, :k].numpy(), y[b, :k].numpy(), query[b, k:k + 1].numpy(), n_iterations, gamma)[-1, 0]
    np.testing.assert_allclose(prediction.numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 1.939e-4, 2e-3])
def test_descent_errors_are_those_of_the_loop(gamma):
    x, y = contexts()["skewed"], answers(contexts()["skewed"])
    test_x, test_y = gaussian(8, BATCH, 7, DIM), gaussian(9, BATCH, 7)
    errors = bl.gradient_descent_errors(x, y, test_x, test_y, n_iterations=5, gamma=gamma)
    assert errors.shape == (BATCH, 6) and errors.dtype == torch.float64
    for b in range(BATCH):
        predictions = descent_by_loops(x[b].numpy(), y[b].numpy(), test_x[b].numpy(), 5, gamma)
        np.testing.assert_allclose(errors[b], ((predictions - test_y[b].numpy())**2).mean(1) / DIM, rtol=1e-10)


def test_descent_ends_at_least_squares():
    x = contexts()["isotropic"]
    y = answers(x, noise=0.0)
    torch.testing.assert_close(bl.gradient_descent(x, y, n_iterations=5000)[:, 10:], bl.least_squares(x, y)[:, 10:], rtol=1e-6, atol=1e-6)


X, Y = torch.ones(2, 5, 3), torch.ones(2, 5)


@pytest.mark.parametrize("call, message", [
    (lambda: bl.ridge(X, Y, penalty=0.0), "penalty is 0.0: it must be positive and finite; without one, use least_squares"),
    (lambda: bl.ridge(X, Y, penalty=float("nan")), "penalty is nan"),
    (lambda: bl.lasso(X, Y, alpha=0.0), "alpha is 0.0: it must be positive"),
    (lambda: bl.lasso(X, Y, alpha=float("inf")), "alpha is inf"),
    (lambda: bl.lasso(X, Y, max_steps=0), "max_steps is 0"),
    (lambda: bl.gradient_descent(X, Y, n_iterations=-1), "n_iterations is -1: it must be 0 or more"),
    (lambda: bl.gradient_descent(X, Y, gamma=-0.1), r"gamma is -0.1"),
    (lambda: bl.gradient_descent_errors(X, Y, X, Y, n_iterations=-1), "n_iterations is -1"),
    (lambda: bl.gradient_descent_errors(X, Y, X[..., :2], Y), r"test_x has shape \(2, 5, 2\) but x \(2, 5, 3\): batch and dim must agree"),
    (lambda: bl.gradient_descent_errors(X, Y, X[:1], Y[:1]), r"test_x has shape \(1, 5, 3\)"),
    (lambda: bl.gradient_descent_errors(X, Y[:, :4], X, Y), r"y has shape \(2, 4\)"),
])
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message): call()
