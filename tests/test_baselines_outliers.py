"""Least squares on clean points and the robust regression, against NumPy and a loop."""
import itertools

import numpy as np
import pytest
import torch
from test_baselines import contexts, gaussian

from iclrepro import baselines as bl
from iclrepro.prompts import Draws


@pytest.mark.parametrize("name", ["isotropic", "skewed", "half subspace", "silent dimensions", "wider than long"])
def test_clean_least_squares_is_lstsq_on_the_clean_rows(name):
    x = contexts()[name]
    y, query, mask = gaussian(5, *x.shape[:2]), gaussian(6, *x.shape), Draws(7).uniform(*x.shape[:2]) < 0.6
    prediction = bl.clean_least_squares(x, y, query, mask)
    for b, k in itertools.product(range(len(x)), range(x.shape[1])):
        kept = mask[b, :k].numpy()
        w = np.linalg.lstsq(x[b, :k].numpy()[kept], y[b, :k].numpy()[kept], rcond=1e-14)[0] if kept.any() else np.zeros(x.shape[2])
        assert prediction[b, k].item() == pytest.approx(w @ query[b, k].numpy(), rel=1e-7, abs=1e-8)


def test_an_outlier_has_no_say_but_can_be_asked():
    x, y = gaussian(0, 1, 12, 3), gaussian(1, 1, 12)
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, 4] = False
    spoiled_x, spoiled_y = x.clone(), y.clone()
    spoiled_x[0, 4], spoiled_y[0, 4] = 1e3, -1e6
    torch.testing.assert_close(bl.clean_least_squares(spoiled_x, spoiled_y, x, mask), bl.clean_least_squares(x, y, mask=mask))
    assert bl.clean_least_squares(x, y, mask=mask)[0, 4] != 0
    assert torch.equal(bl.clean_least_squares(x, y, mask=torch.ones_like(mask)), bl.least_squares(x, y))


X, Y = torch.ones(2, 5, 3), torch.ones(2, 5)


@pytest.mark.parametrize("mask, found", [
    (None, "NoneType"), ([[True] * 5] * 2, "list"), (torch.ones(2, 5), r"torch.float32 \(2, 5\) on cpu"), (torch.ones(2, 4, dtype=torch.bool), r"torch.bool \(2, 4\)"),
])
def test_a_mask_that_is_none_is_named(mask, found):
    with pytest.raises(ValueError, match=f"mask is {found}.*it must be torch.bool of shape"): bl.clean_least_squares(X, Y, mask=mask)


def robust_by_loops(x, y):
    "Iteratively reweighted least squares, Cauchy weights, the scale falling by 4 a step from the mean square answer; repeated examples once."
    rows = list(dict.fromkeys(map(tuple, np.column_stack([x, y]))))
    x, y = np.array(rows)[:, :-1], np.array(rows)[:, -1]
    scale, trust = (y**2).mean(), np.ones(len(y))
    for step in range(15):
        A = sum(t * np.outer(v, v) for t, v in zip(trust, x))
        w = np.linalg.solve(A + 1e-6 * np.trace(A) / len(A) * np.eye(len(A)), sum(t * target * v for t, target, v in zip(trust, y, x)))
        trust = np.array([1 / (1 + (target - v @ w)**2 / (scale / 4**step)) for v, target in zip(x, y)])
    return w


@pytest.mark.parametrize("repeated", [False, True])
def test_robust_regression_is_a_loop(repeated):
    x, y, query = gaussian(0, 3, 20, 4), gaussian(1, 3, 20), gaussian(2, 3, 20, 4)
    if repeated: x, y = x[:, torch.arange(20) % 7], y[:, torch.arange(20) % 7]
    prediction = bl.robust_regression(x, y, query)
    assert (prediction[:, 0] == 0).all()
    for b, k in itertools.product(range(3), range(1, 20)):
        assert prediction[b, k].item() == pytest.approx(robust_by_loops(x[b, :k].numpy(), y[b, :k].numpy()) @ query[b, k].numpy(), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("points, share", [(120, 0.3), (300, 0.9)])
def test_robust_regression_finds_the_line_that_least_squares_misses(points, share):
    "Gross errors in a third of the answers; nine of ten examples replaced by one and the same point (Park et al.)."
    d, batch = 10, 32
    draws = Draws(3)
    x, w = draws.normal(batch, points, d), draws.normal(batch, d)
    y, bad = torch.einsum("bpd,bd->bp", x, w), draws.uniform(batch, points) < share
    if share < 0.5: y = torch.where(bad, 20 * draws.normal(batch, points), y)
    else: x, y = torch.where(bad[..., None], 1.0, x), torch.where(bad, 1.0, y)
    question = draws.normal(batch, points, d)
    truth = torch.einsum("bd,bd->b", question[:, -1], w)
    error = {name: (f(x, y, question)[:, -1] - truth).square().mean() / d for name, f in (("least squares", bl.least_squares), (
        "robust", lambda *prompt: bl.robust_regression(*prompt, at=[points - 1])))}
    assert error["robust"] < 1e-8 and error["least squares"] > 1e-2


def test_robust_regression_without_outliers_is_least_squares():
    x = contexts()["isotropic"]
    y = (x * gaussian(4, len(x), 1, x.shape[2])).sum(-1)
    torch.testing.assert_close(bl.robust_regression(x, y), bl.least_squares(x, y), rtol=1e-3, atol=1e-3)
    assert not bl.robust_regression(x, 0 * y).any()


def test_robust_regression_answers_where_it_is_asked():
    x, y = gaussian(0, 2, 9, 3), gaussian(1, 2, 9)
    some = bl.robust_regression(x, y, at=(8, 0, 5))
    assert torch.equal(some[:, [0, 5, 8]], bl.robust_regression(x, y)[:, [0, 5, 8]])
    assert some[:, [1, 2, 3, 4, 6, 7]].isnan().all()
    with pytest.raises(ValueError, match="at holds 9: a prompt of 9 points"): bl.robust_regression(x, y, at=[9])
