"""Learners fitted anew for every prompt, against torch.optim, scikit-learn, XGBoost and a brute-force search."""
import itertools
import sys

import numpy as np
import pytest
import torch
import xgboost
from sklearn.tree import DecisionTreeRegressor
from test_baselines import gaussian

from iclrepro import baselines as bl
from iclrepro.prompts import Draws


def single_network(x, y, query, weights, batches, n_steps, learning_rate):
    "One network of torch.nn trained by torch.optim.Adam; `batches` gives the examples of each step."
    A, v = weights
    net = torch.nn.Sequential(torch.nn.Linear(len(A) - 1, len(v) - 1), torch.nn.ReLU(), torch.nn.Linear(len(v) - 1, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(A[:-1].T), net[0].bias.copy_(A[-1]), net[2].weight.copy_(v[:-1].T), net[2].bias.copy_(v[-1])
    optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate)
    for step in range(n_steps):
        chosen = batches[step]
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(net(x[chosen])[:, 0], y[chosen]).backward()
        optimiser.step()
    return net(query[None])[0, 0].item()


@pytest.mark.parametrize("batch_size, n_steps", [(100, 25), (4, 25)])
def test_network_is_one_network_a_prompt_trained_by_torch(batch_size, n_steps):
    batch, points, dim, width = 3, 9, 4, 6
    x, y, query = gaussian(0, batch, points, dim), gaussian(1, batch, points), gaussian(2, batch, points, dim)
    options = dict(n_steps=n_steps, batch_size=batch_size, learning_rate=0.02, width=width, seed=5)
    prediction = bl.two_layer_network(x, y, query, **options)
    assert (prediction[:, 0] == 0).all() and prediction.dtype == torch.float64
    for k in range(1, points):
        draws = Draws(5, k, "init")
        A = (2 * draws.uniform(batch, dim + 1, width) - 1) / dim**0.5
        v = (2 * draws.uniform(batch, width + 1, 1) - 1) / width**0.5
        drawn = [draws.subsets(k, batch_size, batch) if batch_size < k else torch.arange(k).expand(batch, k) for _ in range(n_steps)]
        for b in range(batch):
            weights = A[b].double(), v[b].double()
            if batch_size < k: assert len(set(drawn[0][b].tolist())) == batch_size
            expected = single_network(x[b], y[b], query[b, k], weights, [step[b] for step in drawn], n_steps, 0.02)
            assert prediction[b, k].item() == pytest.approx(expected, rel=1e-10, abs=1e-11)


def test_network_starts_as_pytorch_does():
    A, v = bl._initial_network(Draws(0), 200, 20, 100, torch.float32)
    torch.manual_seed(0)
    for ours, linear in ((A, torch.nn.Linear(20, 100)), (v, torch.nn.Linear(100, 1))):
        bound = linear.weight.shape[1]**-0.5
        assert linear.weight.abs().max() <= bound and linear.bias.abs().max() <= bound  # what PyTorch promises
        assert ours.abs().max() <= bound
        for part in (ours[:, :-1], ours[:, -1]):
            spread = bound**2 * (4 / 45 / part.numel())**0.5  # standard error of the mean square of a uniform variable
            assert part.square().mean().item() == pytest.approx(bound**2 / 3, abs=5 * spread)


def test_network_learns_what_it_can():
    x = gaussian(0, 4, 81, 2).float()
    y = (x[..., 0] - x[..., 1]).relu()
    error = (bl.two_layer_network(x, y, at=[80], n_steps=300) - y)[:, 80].square().mean()
    assert error < 0.02 * y.square().mean()


FITTED = {"network": lambda *prompt, **options: bl.two_layer_network(*prompt, n_steps=3, width=5, batch_size=2, **options),
          "tree": bl.greedy_tree,
          "xgboost": lambda *prompt, **options: bl.xgboost(*prompt, n_estimators=3, **options)}


@pytest.mark.parametrize("name", FITTED)
def test_an_answer_depends_on_nothing_but_the_examples_before_it(name):
    f = FITTED[name]
    x, y, query = gaussian(0, 2, 8, 3).float(), gaussian(1, 2, 8).float(), gaussian(2, 2, 8, 3).float()
    every = f(x, y, query)
    assert every.dtype == torch.float32 and every.isfinite().all() and (every[:, 0] == 0).all()
    some = f(x, y, query, at=(6, 0, 3))
    assert torch.equal(some[:, [0, 3, 6]], every[:, [0, 3, 6]]) and some[:, [1, 2, 4, 5, 7]].isnan().all()
    later_x, later_y = x.clone(), y.clone()
    later_x[:, 4:], later_y[:, 4:] = 9, -9
    assert torch.equal(f(later_x, later_y, query)[:, :5], every[:, :5])
    assert not torch.equal(f(later_x, later_y, query)[:, 5:], every[:, 5:])
    assert torch.equal(f(x, y), f(x, y, x))
    assert torch.equal(f(x, y, query), every)  # drawn from the seed, not from a global state
    assert torch.equal(f(x, y, query, seed=1), every) == (name == "xgboost")  # few examples leave a tree equally good splits


@pytest.mark.parametrize("name", FITTED)
def test_progress_and_bad_input(name):
    f, seen = FITTED[name], []
    x, y = gaussian(0, 3, 4, 2), gaussian(1, 3, 4)
    f(x, y, at=(1, 3), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == ([(1, 2), (2, 2)] if name == "network" else [(1, 3), (2, 3), (3, 3)])
    with pytest.raises(ValueError, match="at holds 4: a prompt of 4 points"): f(x, y, at=[4])
    with pytest.raises(ValueError, match=r"y has shape \(3, 3\)"): f(x, y[:, :3])
    with pytest.raises(ValueError, match="x has 24 values that are not finite"): f(x / 0, y)


@pytest.mark.parametrize("max_depth", [2, 4, None])
@pytest.mark.parametrize("signs", [False, True])
def test_greedy_tree_is_scikit_learns(max_depth, signs):
    x, y, query = gaussian(0, 3, 20, 4), gaussian(1, 3, 20), gaussian(2, 3, 20, 4)
    prediction = bl.greedy_tree(x, y, query, max_depth=max_depth, signs=signs, seed=3)
    see = np.sign if signs else np.asarray
    for b, k in itertools.product(range(3), range(1, 20)):
        oracle = DecisionTreeRegressor(max_depth=max_depth, random_state=3).fit(see(x[b, :k].numpy()), y[b, :k].numpy())
        assert prediction[b, k].item() == oracle.predict(see(query[b, k:k + 1].numpy()))[0]


def test_a_tree_of_depth_one_is_the_best_split():
    x, y, query = gaussian(0, 4, 12, 3), gaussian(1, 4, 12), gaussian(2, 4, 12, 3)
    prediction = bl.greedy_tree(x, y, query, at=[11], max_depth=1)
    for b in range(4):
        X, Y, best = x[b, :11].numpy(), y[b, :11].numpy(), None
        for j, i in itertools.product(range(3), range(10)):
            edge = np.sort(X[:, j])[i:i + 2].mean()
            left = X[:, j] <= edge
            loss = Y[left].var() * left.sum() + Y[~left].var() * (~left).sum()
            if best is None or loss < best[0]: best = loss, Y[left if query[b, 11, j] <= edge else ~left].mean()
        assert prediction[b, 11].item() == pytest.approx(best[1], abs=1e-12)


@pytest.mark.parametrize("ours, theirs", [({}, {}), (dict(n_estimators=50, max_depth=4, learning_rate=0.1),) * 2, (dict(signs=True, n_estimators=5), dict(n_estimators=5))])
def test_xgboost_is_the_library(ours, theirs):
    x, y, query = gaussian(0, 2, 31, 4), gaussian(1, 2, 31), gaussian(2, 2, 31, 4)
    prediction = bl.xgboost(x, y, query, at=(5, 30), **ours)
    see = np.sign if ours.get("signs") else np.asarray
    for b, k in itertools.product(range(2), (5, 30)):
        oracle = xgboost.XGBRegressor(n_jobs=1, **theirs).fit(see(x[b, :k].numpy()), y[b, :k].numpy())
        assert prediction[b, k].item() == oracle.predict(see(query[b, k:k + 1].numpy()))[0]


def test_processes_give_the_same_answers_in_the_same_order():
    x, y = gaussian(0, 5, 12, 3), gaussian(1, 5, 12)
    assert torch.equal(bl.greedy_tree(x, y, n_jobs=2), bl.greedy_tree(x, y))


def test_rows_are_the_settings_of_the_papers():
    x, y = gaussian(0, 1, 31, 3), gaussian(1, 1, 31)
    assert bl.baseline("network_as_described").options == dict(n_steps=5000, batch_size=10) and bl.baseline("network_as_released").options == {}
    for name, expected in (("greedy_tree_2", bl.greedy_tree(x, y, max_depth=2)), ("greedy_tree_4", bl.greedy_tree(x, y, max_depth=4)), ("greedy_tree", bl.greedy_tree(x, y)),
                           ("greedy_tree_signs", bl.greedy_tree(x, y, max_depth=2, signs=True))):
        assert torch.equal(bl.baseline(name)(x, y), expected)
    for name, options in (("xgboost_as_released", {}), ("xgboost_as_described", dict(n_estimators=50, max_depth=4, learning_rate=0.1)),
                          ("xgboost_signs", dict(n_estimators=50, max_depth=4, learning_rate=0.1, signs=True))):
        assert bl.baseline(name)(x, y, at=[30])[0, 30] == bl.xgboost(x, y, at=[30], **options)[0, 30]


X, Y = torch.ones(1, 3, 2), torch.ones(1, 3)


@pytest.mark.parametrize("call, message", [
    (lambda: bl.two_layer_network(X, Y, n_steps=0), "n_steps is 0: it must be positive"),
    (lambda: bl.two_layer_network(X, Y, batch_size=0), "batch_size is 0"),
    (lambda: bl.two_layer_network(X, Y, learning_rate=float("nan")), "learning_rate is nan"),
    (lambda: bl.two_layer_network(X, Y, width=-1), "width is -1"),
    (lambda: bl.greedy_tree(X, Y, max_depth=0), "max_depth is 0: it must be at least 1, or None"),
    (lambda: bl.greedy_tree(X, Y, n_jobs=0), "n_jobs is 0: it must be a number of processes, or -1"),
    (lambda: bl.xgboost(X, Y, n_estimators=0), "n_estimators is 0: it must be positive, or None for XGBoost's default"),
    (lambda: bl.xgboost(X, Y, learning_rate=-0.1), "learning_rate is -0.1"),
])
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message): call()


@pytest.mark.parametrize("call, package", [(bl.greedy_tree, "sklearn"), (bl.xgboost, "xgboost")])
def test_a_missing_package_is_named(call, package, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]: monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf'needs the package {package}: pip install "iclrepro\[baselines\]"'): call(X, Y)
