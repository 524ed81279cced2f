"""Outliers, chains of thought, recall and formal languages against loops written from their definitions."""
import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from chance import near, uniform
from iclrepro.models import ModelConfig, build_model, predict
from iclrepro.prompts import LAYOUTS, STREAMS, Draws
from iclrepro.tasks import (AssociativeRecall, ChainOfThought, FormalLanguages, ManyOutliers, OrthogonalOutliers, VectorMQAR, draw_languages,
                            make_task, match_error, outlier_positions, scalar_answers, task_from_dict, task_to_dict, total_variation,
                            with_own_step, without_outliers)

SMALL = dict(dim=9, n_points=5, min_strings=2, max_length=6, max_states=6)
WORLDS = {
    "orthogonal": OrthogonalOutliers(5, 8),
    "orthogonal_released": OrthogonalOutliers(5, 8, outliers="as_released", positions="fixed_as_released"),
    "many": ManyOutliers(4, 40, positions="fixed"),
    "chain": ChainOfThought(4, 6, hidden=3),
    "wide_chain": ChainOfThought(2, 6, hidden=5),
    "vectors": VectorMQAR(6, 7, n_queries=3),
    "vectors_released": VectorMQAR(6, 7, self_query=True, query_noise=0.4),
    "symbols": AssociativeRecall(12, 6),
    "symbols_chained": AssociativeRecall(12, 6, chain_depth=3, query="fixed"),
    "languages": FormalLanguages(**SMALL),
    "pool": FormalLanguages(**SMALL, n_languages=4),
}


def dot(a, b): return math.fsum(x * y for x, y in zip(a, b, strict=True))


def minus(a, b, c=1.0): return [x - c * y for x, y in zip(a, b, strict=True)]


def scaled(a, c): return [c * x for x in a]


# What every task keeps ------------------------------------------------------------------------------------------------

def parts(prompt): return [part.numpy().tobytes() for part in prompt]


@pytest.mark.parametrize("task", WORLDS.values(), ids=WORLDS)
def test_a_batch_is_a_function_of_its_draws(task):
    torch.manual_seed(1), np.random.seed(1)
    before = torch.get_rng_state().tolist(), str(np.random.get_state())
    first = task.sample(Draws(3, 7), 9)
    task.sample(Draws(3, 8), 5)
    assert parts(first) == parts(task.sample(Draws(3, 7), 9))
    assert before == (torch.get_rng_state().tolist(), str(np.random.get_state()))
    others = [Draws(4, 7), Draws(3, 6), *(Draws(3, 7, stream) for stream in STREAMS if stream != "train")]
    assert all(not torch.equal(first.x, task.sample(other, 9).x) for other in others)


class ShapesOnly(Draws):
    """Draws without numbers, on torch's device "meta": whatever looks at a value or mixes devices raises, as it would wait or raise on a GPU."""
    def __init__(self): self.device = torch.device("meta")
    def normal(self, *shape): return torch.empty(shape, device="meta")
    def uniform(self, *shape): return torch.empty(shape, device="meta")
    def integers(self, high, *shape): return torch.empty(shape, dtype=torch.int64, device="meta")


@pytest.mark.parametrize("task", WORLDS.values(), ids=WORLDS)
def test_sampling_stays_on_its_device_and_looks_at_no_value(task):
    there, here = task.sample(ShapesOnly(), 6), task.sample(Draws(0), 6)
    for a, b in zip(there, here): assert a.device.type == "meta" and a.shape == b.shape and a.dtype == b.dtype
    prediction = torch.empty(*there.y.shape[:2 if task.d_out == 1 else 3], device="meta")
    assert task.loss(prediction, there).shape == () and task.score(prediction, there.y).shape == there.mask.shape


@pytest.mark.parametrize("task", WORLDS.values(), ids=WORLDS)
def test_a_task_says_how_long_and_wide_its_prompts_are(task):
    for n_points in (task.n_points, task.n_points - 1):
        prompt = task.sample(Draws(0), 6, n_points=n_points)
        tokens = LAYOUTS[task.layout].tokens(prompt)
        assert tokens.shape[:2] == (6, task.n_tokens(n_points))
        assert prompt.mask.dtype == torch.bool and prompt.mask.shape == prompt.y.shape[:2]
        if task.layout == "symbols": assert tokens.dtype == torch.int64 and 0 <= tokens.min() and tokens.max() < task.d_in == task.d_out
        else: assert tokens.shape[2] == max(task.d_in, task.d_out - 1 if task.layout == "chain" else 0) and tokens.dtype == torch.float32
    assert task_from_dict(task_to_dict(task)) == task


@pytest.mark.parametrize("task", WORLDS.values(), ids=WORLDS)
def test_a_small_model_learns_a_batch_by_heart(task):
    config = ModelConfig("mamba + attn", task.d_in, task.d_out, d_model=16, n_heads=2, d_state=4, layout=task.layout)
    model, prompt = build_model(config, seed=0), task.sample(Draws(0), 8)
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(6):
        prediction = predict(model, prompt)
        assert prediction.shape == (prompt.y[..., 0] if isinstance(task, (OrthogonalOutliers, ManyOutliers)) else prompt.y).shape
        loss = task.loss(prediction, prompt)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert all(p.grad.abs().sum() > 0 for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1]) and losses[-1] < losses[0]
    score = task.score(predict(model, prompt), prompt.y)
    assert score.shape == prompt.mask.shape and (score.isfinite() | ~prompt.mask).all()


# Outliers -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dims", [6, 4, 3])
def test_orthogonal_outliers_are_a_loop(dims):
    task, batch, points = OrthogonalOutliers(6, 9, p=0.4), 5, 9
    prompt = task.sample(Draws(2, 3), batch, dims=dims)
    draws = Draws(2, 3)
    x, w = draws.normal(batch, points, 6).tolist(), draws.normal(batch, 6).tolist()
    spoilt, (g, h) = (draws.uniform(batch, points) < 0.4).tolist(), draws.normal(2, batch, 6).tolist()
    turns = draws.uniform(2, batch, points).tolist()
    for b in range(batch):
        active = [w[b][i] if i < dims else 0.0 for i in range(6)]
        e = scaled(active, 1 / math.sqrt(dot(active, active)))
        basis = [e]
        for raw in (g[b], h[b]):
            vector = [value if i < dims else 0.0 for i, value in enumerate(raw)]
            for other in basis * 3: vector = minus(vector, other, dot(vector, other))
            basis.append(scaled(vector, 1 / math.sqrt(dot(vector, vector))))
        for p in range(points):
            if spoilt[b][p]:
                for part, turn in ((prompt.x, turns[0][b][p]), (prompt.y, turns[1][b][p])):
                    angle = 2 * math.pi * turn
                    expected = [math.sqrt(dims) * (math.cos(angle) * u + math.sin(angle) * v) for _, u, v in zip(*basis)]
                    assert part[b, p].tolist() == pytest.approx(expected, abs=2e-5)
            else:
                kept = [value if i < dims else 0.0 for i, value in enumerate(x[b][p])]
                assert prompt.x[b, p].tolist() == kept
                assert prompt.y[b, p, 0].item() == pytest.approx(dot(kept, w[b]), abs=1e-5) and (prompt.y[b, p, 1:] == 0).all()
    assert prompt.mask.tolist() == [[not s for s in row] for row in spoilt]


def test_outliers_as_described_are_circles_orthogonal_to_the_function():
    task, batch = OrthogonalOutliers(20, 101), 300
    draws = Draws(5)
    x = task.inputs(draws, batch, 101)
    function = task.function(draws, batch, 20)
    prompt = task.ask(function, x, draws)
    lying = ~prompt.mask
    for part in (prompt.x, prompt.y):
        assert np.allclose(part.double().norm(dim=-1)[lying], math.sqrt(20), rtol=1e-5)
        assert function(part)[lying].abs().max() < 2e-4
    for b in range(20):
        both = torch.cat([prompt.x[b][lying[b]], prompt.y[b][lying[b]]]).double()
        values = torch.linalg.svdvals(both)
        assert values[1] > 1 and values[2] < 1e-4  # one plane a prompt, of x and of y
    cosines = torch.nn.functional.cosine_similarity(prompt.x, prompt.y, dim=-1)[lying].double().numpy()
    assert stats.kstest(np.arccos(cosines.clip(-1, 1)) / math.pi, "uniform").pvalue > 1e-4  # x and y turn independently
    first = prompt.x[:, 1:][lying[:, 1:] & lying[:, :-1]].double()
    before = prompt.x[:, :-1][lying[:, 1:] & lying[:, :-1]].double()
    turns = torch.nn.functional.cosine_similarity(first, before, dim=-1).numpy()
    assert stats.kstest(np.arccos(turns.clip(-1, 1)) / math.pi, "uniform").pvalue > 1e-4  # and so does every point


def test_noisy_answers_do_not_turn_the_plane():
    task, draws = OrthogonalOutliers(20, 60), Draws(6)
    x = task.inputs(draws, 30, 60)
    function = task.function(draws, 30, 20)
    noisy = task.ask(lambda x: 1.7 * function(x) + draws.normal(*x.shape[:2]), x, draws)
    assert (function(noisy.x) / 20)[~noisy.mask].abs().max() < 1e-4
    assert (noisy.y[..., 0] - 1.7 * function(noisy.x))[noisy.mask].std() == pytest.approx(1, abs=0.15)


def test_released_outliers_are_a_loop():
    task, batch, points = OrthogonalOutliers(6, 9, outliers="as_released"), 7, 9
    prompt = task.sample(Draws(4, 1), batch, dims=3)
    draws = Draws(4, 1)
    draws.normal(batch, points, 6), draws.normal(batch, 6)
    spoilt = draws.uniform(batch, points) < 0.5
    for part in (prompt.x, prompt.y):
        (w, u, v), (a, b) = draws.normal(3, batch, 6).tolist(), draws.normal(2, batch, 1)[..., 0].tolist()
        for i in range(batch):
            u_i = minus(u[i], w[i], dot(u[i], w[i]) / dot(w[i], w[i]))
            v_i = minus(v[i], w[i], dot(v[i], w[i]) / dot(w[i], w[i]))
            v_i = minus(v_i, u_i, dot(v_i, u_i) / dot(u_i, u_i))
            first = a[i] / (a[i]**2 + b[i]**2)
            second = b[i] / (first**2 + b[i]**2)
            expected = [first * p + second * q for p, q in zip(u_i, v_i)]
            for p in range(points):
                if spoilt[i, p]: assert part[i, p].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert torch.equal(prompt.mask, ~spoilt) and spoilt.any(1).all()


def test_released_outliers_have_the_heavy_tails_of_the_released_code():
    "Quantiles of the length measured on 25,600 outliers of the released code; theirs and ours both have sampling errors."
    lengths = []
    for step in range(20):
        prompt = OrthogonalOutliers(20, 2, p=0.999, outliers="as_released").sample(Draws(0, step), 10_000)
        lengths.append(prompt.x[:, 0].norm(dim=-1)[~prompt.mask[:, 0]])
        assert (prompt.y[:, 0] == prompt.y[:, 1])[~prompt.mask.any(1)].all()
    lengths = torch.cat(lengths).double().numpy()
    for q, released in zip((0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999), (1.55, 2.12, 3.33, 4.11, 4.98, 9.9, 22.5, 66.9)):
        spread = math.sqrt(q * (1 - q) / 25_600)
        low, high = np.quantile(lengths, [max(0, q - 5 * spread), min(1, q + 5 * spread)])
        assert low - 0.005 < released < high + 0.05, q  # the last digits are rounded


def released_positions(n, p):
    "Which points the released evaluation spoils, as a loop."
    rare, spoilt = min(p, 1 - p), [False] * n
    at = int(1 // rare)
    while at < n:
        spoilt[at] = True
        at += n // int(n * p)
    return [one != (p > 0.5) for one in spoilt]


@pytest.mark.parametrize("p, n", [(0.5, 101), (0.5, 26), (0.9, 512), (0.9, 12), (0.25, 40), (0.2, 101), (0.75, 64), (0.1, 300)])
def test_fixed_positions_are_loops(p, n):
    spacing = round(1 / min(p, 1 - p))
    marked = [(i + 1) % spacing == 0 for i in range(n)]
    expected = {"fixed": [one != (p > 0.5) for one in marked], "fixed_as_released": released_positions(n, p)}
    for name, rows in expected.items():
        drawn = outlier_positions(name, p, Draws(0), 3, n)
        assert drawn.tolist() == [rows] * 3, name
    assert abs(sum(expected["fixed"]) / n - p) <= 1 / n


@pytest.mark.parametrize("positions", ["random", "fixed", "fixed_as_released"])
def test_no_outliers_is_linear_regression(positions):
    prompt = ManyOutliers(4, 12, p=0.0, positions=positions).sample(Draws(0), 5)
    draws = Draws(0)
    x, w = draws.normal(5, 12, 4), draws.normal(5, 4)
    assert torch.equal(prompt.x, x) and prompt.mask.all()
    assert torch.allclose(prompt.y[..., 0], (x * w[:, None]).sum(-1), atol=1e-6)


@pytest.mark.parametrize("task", [OrthogonalOutliers(5, 50), ManyOutliers(5, 50)])
def test_random_positions_are_independent_coins(task):
    spoilt = (~task.sample(Draws(1), 4000).mask).double()
    p = task.p
    near(spoilt.mean(0), p, math.sqrt(p * (1 - p) / 4000), "each point")
    near(spoilt.sum(1).var(), 50 * p * (1 - p), 50 * p * (1 - p) * math.sqrt(2 / 4000), "their number")


@pytest.mark.parametrize("dims", [4, 2])
def test_many_outliers_are_a_loop(dims):
    prompt = ManyOutliers(4, 30, p=0.8).sample(Draws(1), 5, dims=dims)
    draws = Draws(1)
    x, w = draws.normal(5, 30, 4).tolist(), draws.normal(5, 4).tolist()
    spoilt = draws.uniform(5, 30) < 0.8
    for b, p in itertools.product(range(5), range(30)):
        if spoilt[b, p]: assert prompt.x[b, p].tolist() == [1.0] * 4 and prompt.y[b, p].tolist() == [1.0, 0, 0, 0]
        else:
            kept = [value if i < dims else 0.0 for i, value in enumerate(x[b][p])]
            assert prompt.x[b, p].tolist() == kept and prompt.y[b, p].tolist() == pytest.approx([dot(kept, w[b]), 0, 0, 0], abs=1e-5)
    assert torch.equal(prompt.mask, ~spoilt)


def test_outlier_losses_count_clean_points_and_first_coordinates():
    task = OrthogonalOutliers(5, 8)
    prompt, prediction = task.sample(Draws(0), 4), Draws(9).normal(4, 8)
    squares = [(prediction[b, p].item() - prompt.y[b, p, 0].item())**2 for b, p in itertools.product(range(4), range(8)) if prompt.mask[b, p]]
    assert 0 < len(squares) < 32
    assert task.loss(prediction, prompt).item() == pytest.approx(sum(squares) / len(squares), rel=1e-6)
    score = task.score(prediction, prompt.y)
    for b, p in itertools.product(range(4), range(8)):
        assert score[b, p].item() == pytest.approx((prediction[b, p].item() - prompt.y[b, p, 0].item())**2 / 5, rel=1e-6)


def test_a_baseline_can_see_clean_points_only():
    task = OrthogonalOutliers(4, 40)
    prompt = task.sample(Draws(2), 6)
    scalar, clean = scalar_answers(prompt), without_outliers(prompt)
    assert torch.equal(scalar.x, prompt.x) and torch.equal(scalar.y, prompt.y[..., 0]) and scalar_answers(scalar) is scalar
    for b in range(6):
        rows = prompt.mask[b].numpy()
        expected = np.linalg.lstsq(prompt.x[b].double().numpy()[rows], prompt.y[b, :, 0].double().numpy()[rows], rcond=None)[0]
        found = np.linalg.lstsq(clean.x[b].double().numpy(), clean.y[b].double().numpy(), rcond=None)[0]
        assert found == pytest.approx(expected, abs=1e-8)
        assert np.abs(clean.x[b].double().numpy()[rows] @ expected - clean.y[b].double().numpy()[rows]).max() < 1e-5
    assert torch.equal(clean.mask, prompt.mask)


# Chain of thought -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dim, hidden, dims", [(4, 3, 4), (4, 3, 2), (2, 5, 2), (10, 8, 10)])
def test_a_chain_of_thought_is_a_loop(dim, hidden, dims):
    batch, points = 3, 6
    prompt = ChainOfThought(dim, points, hidden=hidden).sample(Draws(1, 2), batch, dims=dims)
    draws = Draws(1, 2)
    x, w, v = draws.normal(batch, points, dim).tolist(), draws.normal(batch, dim, hidden).tolist(), draws.normal(batch, hidden).tolist()
    assert prompt.y.shape == (batch, points, hidden + 1) and prompt.mask.all()
    tokens = LAYOUTS["chain"].tokens(prompt).tolist()
    width = max(dim, hidden)
    for b, p in itertools.product(range(batch), range(points)):
        kept = [value if i < dims else 0.0 for i, value in enumerate(x[b][p])]
        s = [math.sqrt(2 / hidden) * max(0.0, math.fsum(kept[i] * w[b][i][j] for i in range(dim))) for j in range(hidden)]
        y = dot(s, v[b])
        assert prompt.x[b, p].tolist() == kept
        assert prompt.y[b, p].tolist() == pytest.approx([*s, y], abs=2e-5)
        padded = [kept, prompt.y[b, p, :-1].tolist(), prompt.y[b, p, -1:].tolist()]
        for i, part in enumerate(padded[:2] if p == points - 1 else padded):
            assert tokens[b][3 * p + i] == part + [0.0] * (width - len(part))


@pytest.mark.parametrize("hidden", [4, 8, 16])
def test_the_error_of_answering_nothing_starts_at_d(hidden):
    task = ChainOfThought(hidden=hidden)
    y = task.sample(Draws(0), 20_000, n_points=1).y
    errors = task.score(torch.zeros_like(y), y)[:, 0].double()
    near(errors.mean(), 10, errors.std() / math.sqrt(len(errors)))
    steps = y[..., :-1].double().square().sum(-1)[:, 0]
    near(steps.mean(), 10, steps.std() / math.sqrt(len(steps)))


def test_chain_losses_are_loops():
    task = ChainOfThought(4, 6, hidden=3)
    prompt, prediction = task.sample(Draws(0), 2), Draws(9).normal(2, 6, 4)
    terms = [math.fsum((prediction[b, p, i].item() - prompt.y[b, p, i].item())**2 for i in range(4)) for b, p in itertools.product(range(2), range(6))]
    assert task.loss(prediction, prompt).item() == pytest.approx(math.fsum(terms) / 12, rel=1e-6)
    answers = (prediction[..., 3] - prompt.y[..., 3]).square()
    assert torch.equal(task.score(prediction, prompt.y), answers)


def test_an_own_step_stands_where_the_true_one_stood():
    task = ChainOfThought(4, 6, hidden=3)
    prompt = task.sample(Draws(0), 2)
    model = build_model(ModelConfig("attn mamba", 4, 4, d_model=16, n_heads=2, layout="chain"), seed=1)
    with torch.no_grad():
        first = predict(model, prompt)
        for point in range(6):
            own = with_own_step(prompt, first, point)
            tokens, true = LAYOUTS["chain"].tokens(own), LAYOUTS["chain"].tokens(prompt)
            assert torch.equal(tokens[:, :-1], true[:, :3 * point + 1]) and torch.equal(tokens[:, -1, :3], first[:, point, :3])
            assert torch.equal(own.y[..., 3], prompt.y[:, :point + 1, 3])
            second = predict(model, own)
            assert torch.allclose(second[:, point, :3], first[:, point, :3], atol=1e-6)    # the step is predicted before it is read
            assert not torch.allclose(second[:, point, 3], first[:, point, 3], atol=1e-6)  # the answer after
            assert torch.allclose(predict(model, with_own_step(prompt, prompt.y, point))[:, point], first[:, point], atol=1e-6)
    assert torch.equal(prompt.y, task.sample(Draws(0), 2).y)


# Recall of vectors ----------------------------------------------------------------------------------------------------

def on_sphere(vector): return scaled(vector, math.sqrt(len(vector) / dot(vector, vector)))


def nearest(vector, candidates): return max(range(len(candidates)), key=lambda i: dot(vector, candidates[i]))


@pytest.mark.parametrize("options", [dict(n_queries=3), dict(), dict(query_position=2), dict(query_noise=1.5), 
                                     dict(query_noise=1.5, noisy_answer="asked", n_queries=4),
                                     dict(self_query=True), dict(self_query=True, query_noise=0.7)], ids=str)
def test_vector_recall_is_a_loop(options):
    task, batch, n, d = VectorMQAR(5, 4, **options), 40, 4, 5
    prompt = task.sample(Draws(3, 4), batch)
    draws, m = Draws(3, 4), task.n_queries
    raw = draws.normal(batch, 2 * n, d).tolist()
    asked = [[options["query_position"]]] * batch if "query_position" in options else draws.subsets(n, m, batch).tolist()
    fresh = draws.normal(batch, 1, d).tolist() if task.self_query else None
    itself = (draws.integers(n + 1, batch) == n).tolist() if task.self_query else [False] * batch
    noise = draws.normal(batch, m, d).tolist() if task.query_noise else None
    assert prompt.x.shape == (batch, 2 * n + m, d) and prompt.y.shape == (batch, m, d) and prompt.mask.shape == (batch, m) and prompt.mask.all()
    moved = 0
    for b in range(batch):
        listed = [on_sphere(vector) for vector in raw[b]]
        keys, values = listed[0::2], listed[1::2]
        for i, vector in enumerate(listed): assert prompt.x[b, i].tolist() == pytest.approx(vector, abs=1e-5)
        for j in range(m):
            query = on_sphere(fresh[b][0]) if itself[b] else keys[asked[b][j]]
            if noise: query = on_sphere([q + task.query_noise * e for q, e in zip(query, noise[b][j])])
            assert prompt.x[b, 2 * n + j].tolist() == pytest.approx(query, abs=1e-5)
            answer = asked[b][j] if task.noisy_answer == "asked" and not itself[b] else nearest(query, keys)
            moved += answer != asked[b][j]
            assert prompt.y[b, j].tolist() == pytest.approx(values[answer], abs=1e-5)
        assert len({tuple(q) for q in prompt.x[b, 2 * n:].tolist()}) == m
    assert (moved > 0) == (task.self_query or task.query_noise > 0 and task.noisy_answer == "nearest")


def test_keys_and_values_are_uniform_on_the_sphere():
    x = VectorMQAR(4, 3).sample(Draws(0), 20_000).x[:, :6].double().numpy()
    assert np.allclose(np.linalg.norm(x, axis=-1), 2, rtol=1e-5)
    products = np.einsum("bti,btj->bij", x, x) / 6
    near(products.mean(0), np.eye(4), np.maximum(products.std(0), 1e-9) / math.sqrt(len(x)), "covariance")
    # A coordinate of a uniform point of the unit sphere in 4 dimensions has (1 + u) / 2 ~ Beta(3/2, 3/2).
    assert stats.kstest((1 + x[:, 0, 0] / 2) / 2, stats.beta(1.5, 1.5).cdf).pvalue > 1e-4
    across = np.einsum("bi,bi->b", x[:, 0], x[:, 1])
    near(across.mean(), 0, across.std() / math.sqrt(len(x)), "keys and values")


def asked_pairs(prompt, n):
    hits = (prompt.x[:, 2 * n:, None] == prompt.x[:, None, :2 * n:2]).all(-1)
    return hits.int().argmax(-1), hits.any(-1)


def test_queries_are_uniform_pairs_of_keys():
    asked, found = asked_pairs(VectorMQAR(6, 5, n_queries=2).sample(Draws(0), 20_000), 5)
    assert found.all()
    counts = Counter(map(tuple, asked.tolist()))
    assert len(counts) == 20
    uniform(list(counts.values()))


def test_the_released_sampler_asks_one_in_n_plus_1_for_itself():
    _, found = asked_pairs(VectorMQAR(6, 4, self_query=True).sample(Draws(0), 20_000), 4)
    near((~found).double().mean(), 1 / 5, math.sqrt(0.16 / 20_000))
    _, found = asked_pairs(VectorMQAR(6, 4).sample(Draws(0), 20_000), 4)
    assert found.all()


@pytest.mark.parametrize("options", [dict(), dict(self_query=True, query_noise=1.0)])
def test_silent_dimensions_of_vectors_stay_silent(options):
    prompt = VectorMQAR(6, 4, **options).sample(Draws(0), 50, dims=3)
    assert (prompt.x[..., 3:] == 0).all() and (prompt.y[..., 3:] == 0).all() and (prompt.x[..., :3] != 0).all()
    assert torch.allclose(prompt.x.norm(dim=-1), torch.tensor(6.0).sqrt())


@pytest.mark.parametrize("among", ["values", "keys"])
def test_match_error_is_a_loop(among):
    task = VectorMQAR(5, 6, n_queries=2)
    prompt = task.sample(Draws(0), 60)
    prediction = prompt.y + Draws(1).normal(*prompt.y.shape)
    error = match_error(prediction, prompt, among)
    assert error.shape == (60, 2) and 0 < error.mean() < 1
    for b, j in itertools.product(range(60), range(2)):
        listed = prompt.x[b, (0 if among == "keys" else 1):12:2].tolist()
        def closest(vector): return min(range(6), key=lambda i: math.dist(vector, listed[i]))
        assert error[b, j].item() == float(closest(prediction[b, j].tolist()) != closest(prompt.y[b, j].tolist()))
    assert (match_error(prompt.y, prompt, among) == 0).all()


def test_vector_losses_are_loops():
    task = VectorMQAR(5, 6, n_queries=2)
    prompt, prediction = task.sample(Draws(0), 3), Draws(1).normal(3, 2, 5)
    squares = [[math.fsum((p - y)**2 for p, y in zip(prediction[b, j].tolist(), prompt.y[b, j].tolist())) for j in range(2)] for b in range(3)]
    assert task.score(prediction, prompt.y).tolist() == [pytest.approx([one / 5 for one in row], rel=1e-5) for row in squares]
    assert task.loss(prediction, prompt).item() == pytest.approx(sum(map(sum, squares)) / 30, rel=1e-5)


# Recall of symbols ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [dict(), dict(query="fixed"), dict(chain_depth=3), dict(chain_depth=6), dict(chain_depth=2, query="fixed"),
                                     dict(chain_depth=3, dead_ends=True), dict(chain_depth=9, dead_ends=True, query="fixed")], ids=str)
def test_symbol_recall_is_a_dictionary(options):
    task, n = AssociativeRecall(14, 6, **options), 6
    prompt = task.sample(Draws(1), 300)
    assert prompt.x.shape == (300, 13) and prompt.y.shape == (300, 13, 14)
    dead = 0
    for row, y, mask in zip(prompt.x.tolist(), prompt.y, prompt.mask.tolist()):
        keys, values, query = row[0:-1:2], row[1::2], row[-1]
        assert len(set(keys)) == n and query in keys and all(0 <= s < 14 for s in row)
        if task.query == "fixed": assert query == 0
        found, on_the_way = dict(zip(keys, values)), set()
        for _ in range(task.chain_depth):
            if query not in found:
                dead += 1
                query = keys[0]
            on_the_way.add(query)
            query = found[query]
        if not task.dead_ends: assert len(on_the_way) == task.chain_depth
        if not task.dead_ends: assert values.count(0) <= task.chain_depth - 1
        else: assert 0 not in values
        assert y[-1].argmax() == query and y[-1].sum() == 1 and (y[:-1] == 0).all()
        assert mask == [False] * 12 + [True]
    assert (dead > 0) == task.dead_ends


def test_recalled_symbols_are_uniform():
    prompt = AssociativeRecall(7, 4).sample(Draws(0), 30_000)
    keys, values, query = prompt.x[:, 0:-1:2], prompt.x[:, 1::2], prompt.x[:, -1:]
    uniform(torch.bincount((keys == query).int().argmax(-1)), "places")
    uniform(torch.bincount(query[:, 0]), "queries")
    assert values.min() == 1
    uniform(torch.bincount(values.flatten())[1:], "values")
    orders = Counter(tuple(row) for row in keys.tolist())
    assert len(orders) == 7 * 6 * 5 * 4
    uniform(list(orders.values()), "keys")
    fixed = AssociativeRecall(7, 4, query="fixed").sample(Draws(0), 30_000).x[:, 0:-1:2]
    uniform(torch.bincount((fixed == 0).int().argmax(-1)), "places of symbol 0")
    orders = Counter(tuple(row) for row in fixed.tolist())
    assert len(orders) == 4 * 6 * 5 * 4
    uniform(list(orders.values()), "keys with symbol 0")


def test_symbol_losses_are_loops():
    for task in (WORLDS["symbols"], WORLDS["languages"]):
        prompt = task.sample(Draws(0), 4)
        logits = Draws(1).normal(*prompt.y.shape)
        score, distance, costs = task.score(logits, prompt.y), total_variation(logits, prompt.y), []
        for b, t in itertools.product(range(4), range(prompt.x.shape[1])):
            if not prompt.mask[b, t]:
                assert score[b, t].isnan() and distance[b, t].isnan() and (prompt.y[b, t] == 0).all()
                continue
            row, truth = logits[b, t].tolist(), prompt.y[b, t].tolist()
            total = math.fsum(map(math.exp, row))
            answer = prompt.x[b, t + 1].item() if isinstance(task, FormalLanguages) else truth.index(1)
            costs.append(math.log(total) - row[answer])
            assert score[b, t].item() == float(truth[row.index(max(row))] > 0)
            assert distance[b, t].item() == pytest.approx(math.fsum(abs(math.exp(r) / total - p) for r, p in zip(row, truth)) / 2, rel=1e-5)
        assert len(costs) == prompt.mask.sum()
        assert task.loss(logits, prompt).item() == pytest.approx(math.fsum(costs) / len(costs), rel=1e-5)


# Formal languages -----------------------------------------------------------------------------------------------------

def automaton(languages, which):
    "One automaton as a dictionary of dictionaries: state, symbol, next state."
    degree, symbols, targets = (part[which].tolist() for part in languages[1:])
    return {s: dict(zip(symbols[s][:degree[s]], targets[s][:degree[s]], strict=True)) for s in range(languages.n_states[which])}


def test_automata_are_as_regbench_draws_them():
    languages = draw_languages(Draws(0), 6000)
    alphabets = Counter()
    for which in range(6000):
        step = automaton(languages, which)
        assert 4 <= len(step) <= 12
        for state, edges in step.items():
            assert 1 <= len(edges) <= 3 == languages.symbols.shape[-1]
            targets = list(edges.values())
            assert len(set(targets)) == len(targets) and state not in targets and all(t in step for t in targets)
            assert all(0 <= a < 18 for a in edges)
        alphabets[len({a for edges in step.values() for a in edges})] += 1
    assert len([part for part in languages.symbols.reshape(-1, 3).tolist() if len(set(part)) < 3]) == 0
    uniform(torch.bincount(languages.n_states)[4:], "states")
    uniform(torch.bincount(languages.degree.flatten())[1:], "edges")
    uniform(torch.bincount(languages.symbols[:, 0, 0], minlength=18), "symbols")  # the rest of a language shares its alphabet
    assert max(alphabets) <= 18 and alphabets[4] > 0
    three = draw_languages(Draws(1), 20_000, max_states=4)
    orders = Counter(tuple(row) for row in three.targets[:, 1].tolist())
    assert set(orders) == set(itertools.permutations((0, 2, 3)))
    uniform(list(orders.values()), "targets")


def test_alphabets_are_uniform_in_size_and_in_symbols():
    "With many states and edges a language uses all of its alphabet, so its size can be read off."
    languages = draw_languages(Draws(3), 4000, n_symbols=6, min_states=60, max_states=60, max_edges=2, min_alphabet=3)
    used = [frozenset(a for edges in automaton(languages, which).values() for a in edges) for which in range(4000)]
    sizes = Counter(map(len, used))
    assert set(sizes) == {3, 4, 5, 6}
    uniform(list(sizes.values()), "sizes")
    threes = Counter(alphabet for alphabet in used if len(alphabet) == 3)
    assert len(threes) == 20
    uniform(list(threes.values()), "alphabets of three")


def strings_of(row, task):
    "The strings of a prompt, from its tokens."
    row = row[:row.index(task.padding)] if task.padding in row else row
    found = [[]]
    for s in row:
        if s == task.separator: found.append([])
        else: found[-1].append(s)
    return found


@pytest.mark.parametrize("options", [dict(), dict(n_languages=3), dict(max_edges=1, min_alphabet=1), dict(min_strings=5, max_length=1),
                                     dict(max_states=9, max_edges=2)], ids=str)
def test_prompts_are_walks(options):
    task = FormalLanguages(**{**SMALL, **options})
    prompt = task.sample(Draws(2, 1), 60)
    languages = task.languages(Draws(2, 1), 60)
    for b, row in enumerate(prompt.x.tolist()):
        step, strings = automaton(languages, b), strings_of(row, task)
        assert min(task.min_strings, 5) <= len(strings) <= 5 and all(1 <= len(string) <= task.max_length for string in strings)
        written = sum(map(len, strings)) + len(strings) - 1
        assert row[written:] == [task.padding] * (len(row) - written) and task.padding not in row[:written]
        state = 0
        for t, s in enumerate(row):
            if s == task.separator: state = 0
            elif s != task.padding:
                assert s in step[state]
                state = step[state][s]
            asked = t + 1 < written and row[t + 1] != task.separator
            assert prompt.mask[b, t].item() == asked
            expected = [1 / len(step[state]) if asked and a in step[state] else 0 for a in range(task.dim)]
            assert prompt.y[b, t].tolist() == pytest.approx(expected, rel=1e-6)


def test_strings_are_uniform_in_number_in_length_and_over_edges():
    task = FormalLanguages(dim=12, n_points=6, min_strings=3, max_length=7, max_states=5)
    prompt = task.sample(Draws(0), 6000)
    languages = task.languages(Draws(0), 6000)
    numbers, lengths, taken = Counter(), Counter(), {2: Counter(), 3: Counter()}
    for b, row in enumerate(prompt.x.tolist()):
        strings, step = strings_of(row, task), automaton(languages, b)
        numbers[len(strings)] += 1
        for string in strings:
            lengths[len(string)] += 1
            state = 0
            for s in string:
                edges = list(step[state])
                if len(edges) > 1: taken[len(edges)][edges.index(s)] += 1
                state = step[state][s]
    for counts, size in ((numbers, 4), (lengths, 7), (taken[2], 2), (taken[3], 3)):
        assert len(counts) == size
        uniform(list(counts.values()), size)
    assert task.sample(Draws(0), 50, n_points=2).x.shape == (50, 15)
    assert {len(strings_of(row, task)) for row in task.sample(Draws(0), 50, n_points=2).x.tolist()} == {2}


def test_the_next_symbol_does_not_depend_on_how_an_automaton_is_written():
    """Two states that can write the same strings predict the same symbols for ever, so neither minimising nor trimming changes what is sampled.
    Equivalence is found by brute force: all strings of up to 2 * states symbols."""
    languages, merged = draw_languages(Draws(5), 2000, n_symbols=4, max_states=5, max_edges=2, min_alphabet=2), 0
    for which in range(2000):
        step = automaton(languages, which)

        def strings(state, length):
            if length == 0: return frozenset([()])
            return frozenset((a, *rest) for a, t in step[state].items() for rest in strings(t, length - 1))

        classes = {state: strings(state, len(step)) for state in step}
        for s, t in itertools.combinations(step, 2):
            if classes[s] != classes[t]: continue
            merged += 1
            assert step[s].keys() == step[t].keys()                                   # the same symbols, equally likely
            assert all(classes[step[s][a]] == classes[step[t][a]] for a in step[s])  # and the same for what comes after
    assert merged > 20


def test_a_pool_is_a_function_of_its_seed():
    task = FormalLanguages(**SMALL, n_languages=4)

    def drawn(task, n, *key):
        languages = task.languages(Draws(*key), n)
        return [str(automaton(languages, which)) for which in range(n)]

    def seen(task, *key): return set(drawn(task, 300, *key))

    assert seen(task, 0) == seen(task, 8, 3, "evaluation") and len(seen(task, 0)) == 4
    assert seen(task, 0).isdisjoint(seen(replace(task, pool_seed=1), 0))
    assert seen(task, 0).isdisjoint(seen(replace(task, n_languages=0), 0))
    uniform(list(Counter(drawn(task, 4000, 0)).values()))
    with torch.inference_mode(): inside = replace(task, pool_seed=77).sample(Draws(0), 3)
    outside = replace(task, pool_seed=77).sample(Draws(0), 3)
    assert parts(inside) == parts(outside) and not outside.y.is_inference()


# What is refused ------------------------------------------------------------------------------------------------------

BAD = {
    "all outliers": (lambda: ManyOutliers(p=1.0), r"p is 1.0.*\[0, 1\)"),
    "negative p": (lambda: OrthogonalOutliers(p=-0.1), r"p is -0.1.*\[0, 1\)"),
    "unknown positions": (lambda: ManyOutliers(positions="fixd"), "unknown positions 'fixd'.*mean 'fixed'"),
    "unknown outliers": (lambda: OrthogonalOutliers(outliers="as_described_"), "unknown outliers.*mean 'as_described'"),
    "no plane": (lambda: OrthogonalOutliers(2), "dim is 2.*at least 3"),
    "no active plane": (lambda: OrthogonalOutliers(5).sample(Draws(0), 2, dims=2), "dims is 2.*at least 3 active"),
    "no step": (lambda: ChainOfThought(hidden=0), "hidden is 0.*at least 1"),
    "no such point": (lambda: with_own_step(ChainOfThought(4, 3).sample(Draws(0), 2), torch.zeros(2, 3, 9), 3), "point is 3.*0 to 2"),
    "more queries than pairs": (lambda: VectorMQAR(5, 3, n_queries=4), "n_queries is 4.*between 1 and the number of pairs, 3"),
    "no query": (lambda: VectorMQAR(5, 3, n_queries=0), "n_queries is 0"),
    "more queries than a short prompt": (lambda: VectorMQAR(5, 5, n_queries=4).sample(Draws(0), 2, n_points=3), "n_queries is 4.*3"),
    "position beyond the pairs": (lambda: VectorMQAR(5, 3, query_position=3), "query_position is 3.*0 to 2"),
    "position and itself": (lambda: VectorMQAR(5, 3, query_position=1, self_query=True), "query_position is 1 and self_query"),
    "self query of many": (lambda: VectorMQAR(5, 3, n_queries=2, self_query=True), "n_queries is 2.*prompts with 1"),
    "negative noise": (lambda: VectorMQAR(query_noise=-1.0), "query_noise is -1.0.*0 or more"),
    "unknown answer": (lambda: VectorMQAR(noisy_answer="nearst"), "unknown noisy_answer 'nearst'.*mean 'nearest'"),
    "unknown match": (lambda: match_error(torch.zeros(2, 1, 5), VectorMQAR(5, 3).sample(Draws(0), 2), "value"), "unknown among 'value'.*mean 'values'"),
    "more keys than symbols": (lambda: AssociativeRecall(5, 6), "n_points is 6.*no more than symbols, 5"),
    "chain beyond the pairs": (lambda: AssociativeRecall(9, 3, chain_depth=4), "chain_depth is 4.*the pairs, 3"),
    "chain beyond a short prompt": (lambda: AssociativeRecall(9, 4, chain_depth=4).sample(Draws(0), 2, n_points=3), "chain_depth is 4.*the pairs, 3"),
    "no look-up": (lambda: AssociativeRecall(chain_depth=0), "chain_depth is 0.*at least 1"),
    "unknown query": (lambda: AssociativeRecall(query="first"), "unknown query 'first'.*random, fixed"),
    "one symbol": (lambda: AssociativeRecall(1, 1), "dim is 1.*at least 2"),
    "dims of symbols": (lambda: AssociativeRecall(12, 4).sample(Draws(0), 2, dims=5), "dims is 5.*12 symbols has no curriculum"),
    "empty batch of symbols": (lambda: AssociativeRecall(12, 4).sample(Draws(0), 0), "batch_size 0.*at least 1"),
    "no strings": (lambda: FormalLanguages().sample(Draws(0), 2, n_points=0), "n_points 0.*at least 1"),
    "strings of nothing": (lambda: FormalLanguages(max_length=0), "max_length is 0.*at least 1"),
    "few states": (lambda: FormalLanguages(min_states=3), "min_states is 3.*more than max_edges, 3"),
    "states upside down": (lambda: FormalLanguages(min_states=9, max_states=8), "min_states is 9.*at most max_states, 8"),
    "small alphabet": (lambda: FormalLanguages(min_alphabet=2), "min_alphabet is 2.*max_edges, 3"),
    "alphabet beyond the symbols": (lambda: FormalLanguages(dim=5), "min_alphabet is 4.*symbols, 3"),
    "negative pool": (lambda: FormalLanguages(n_languages=-1), "n_languages is -1.*0 or more"),
    "unknown option": (lambda: make_task("vector_mqar", n_query=2), "unknown option of vector_mqar 'n_query'.*mean 'n_queries'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_worlds_are_refused_with_their_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message): call()
