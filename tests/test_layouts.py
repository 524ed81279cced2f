"""Layouts of tokens, their read-ins and read-outs, norms, positions and dropout, against loops; exams of chains and of masked points."""
import math

import numpy as np
import pytest
import torch
from torch import nn

from iclrepro.blocks import NORMS, Block, dropout, register_block
from iclrepro.evaluation import Exam, as_baseline_examinee, as_examinee, asked_after, cut, summarise, take, think
from iclrepro.models import SIZES, ModelConfig, SequenceModel, architecture, build_model, model_for, predict, sinusoidal
from iclrepro.prompts import LAYOUTS, Draws, Prompt, chain
from iclrepro.tasks import LinearRegression, Task, VectorMQAR


def ones(*shape): return torch.ones(*shape, dtype=torch.bool)


def thoughts(batch=3, points=4, dim=2, step=5, seed=0):
    draws = Draws(seed)
    return Prompt(draws.normal(batch, points, dim), draws.normal(batch, points, step + 1), ones(batch, points))


@pytest.mark.parametrize("dim, step", [(2, 5), (5, 2), (3, 3), (1, 1)])
@pytest.mark.parametrize("points", [1, 2, 4])
def test_a_chain_is_a_loop(points, dim, step):
    prompt, width = thoughts(3, points, dim, step), max(dim, step)
    tokens = chain(prompt)
    assert tokens.shape == (3, 3 * points - 1, width)
    for b in range(3):
        expected = []
        for p in range(points):
            *s, y = prompt.y[b, p].tolist()
            expected += [part + [0.0] * (width - len(part)) for part in (prompt.x[b, p].tolist(), s, [y])]
        assert tokens[b].tolist() == expected[:-1]


@pytest.mark.parametrize("x, y", [((2, 3), (2, 3, 4)), ((2, 3, 4), (2, 3)), ((2, 3, 4), (2, 2, 4)), ((2, 3, 4), (2, 3, 1))])
def test_a_chain_of_wrong_shapes_is_refused(x, y):
    with pytest.raises(ValueError, match=r"a chain needs \(batch, points, dim\)"): chain(Prompt(torch.zeros(x), torch.zeros(y), ones(2, 3)))


def model_of(layout, d_in, d_out, **options):
    return build_model(ModelConfig("mamba x 2", d_in, d_out, d_model=16, layout=layout, **options), 0).double()


def by_hand(model, h):
    "Blocks and final norm, one after the other."
    for block in model.blocks: h = h + block.mix(block.norm(h))
    return model.norm(h)


def test_a_chain_model_is_separate_maps_for_each_kind_of_token():
    prompt = Prompt(*(part.double() if part.is_floating_point() else part for part in thoughts()))
    model = model_of("chain", 2, 6)
    (x_in, s_in, y_in), out = model.read_in.kinds, model.read_out
    assert [(m.in_features, m.out_features) for m in (x_in, s_in, y_in, out.step, out.answer)] == [(2, 16), (5, 16), (1, 16), (16, 5), (16, 1)]
    with torch.no_grad():
        tokens = []
        for p in range(4):
            s, y = prompt.y[:, p, :5], prompt.y[:, p, 5:]
            tokens += [x_in.weight @ prompt.x[:, p].T + x_in.bias[:, None], s_in.weight @ s.T + s_in.bias[:, None], y_in.weight @ y.T + y_in.bias[:, None]]
        h = by_hand(model, torch.stack(tokens[:-1], 0).permute(2, 0, 1))
        expected = torch.stack([torch.cat([h[:, 3 * p] @ out.step.weight.T + out.step.bias, h[:, 3 * p + 1] @ out.answer.weight.T + out.answer.bias], -1) for p in range(4)], 1)
        torch.testing.assert_close(predict(model, prompt), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n_queries", [1, 3])
def test_vectors_are_answered_at_the_last_tokens(n_queries):
    draws = Draws(1)
    prompt = Prompt(draws.normal(2, 9, 4).double(), draws.normal(2, n_queries, 4).double(), ones(2, n_queries))
    model = model_of("vectors", 4, 4)
    with torch.no_grad():
        h = by_hand(model, prompt.x @ model.read_in.weight.T + model.read_in.bias)
        expected = torch.stack([h[:, 9 - n_queries + q] @ model.read_out.weight.T + model.read_out.bias for q in range(n_queries)], 1)
        torch.testing.assert_close(predict(model, prompt), expected, rtol=1e-10, atol=1e-12)


def test_logits_of_symbols_are_products_with_the_embedding():
    prompt = Prompt(Draws(2).integers(7, 2, 9), torch.zeros(2, 9, 7).double(), ones(2, 9))
    model = model_of("symbols", 7, 7)
    table = model.read_in.weight
    assert {name for name, _ in model.named_parameters() if "read" in name} == {"read_in.weight"}
    with torch.no_grad():
        h = by_hand(model, torch.stack([torch.stack([table[i] for i in row]) for row in prompt.x.tolist()]))
        torch.testing.assert_close(predict(model, prompt), torch.einsum("btd,vd->btv", h, table), rtol=1e-10, atol=1e-12)
    predict(model, prompt).square().sum().backward()
    assert (table.grad != 0).any()


def test_embeddings_start_small_and_positions_at_their_standard_deviation():
    model = build_model(ModelConfig("mamba", 500, 500, d_model=64, layout="symbols", positions="learned", n_positions=500, position_std=1.0), 0)
    assert model.read_in.weight.std().item() == pytest.approx(0.02, rel=0.03) and model.positions.std().item() == pytest.approx(1, rel=0.03)


REFUSED = {
    "symbols for a model of vectors": (lambda: model_of("pairs", 3, 1)(Draws(0).integers(3, 2, 5)), r"tokens have shape \(2, 5\): the layout 'pairs' needs \(batch, length, width\)"),
    "vectors for a model of symbols": (lambda: model_of("symbols", 3, 3)(torch.zeros(2, 5, 3).double()), r"'symbols' needs \(batch, length\) of symbols"),
    "a chain of another width": (lambda: model_of("chain", 2, 6)(torch.zeros(2, 5, 4).double()), "tokens are 4 wide but the model reads 5"),
    "numbers for a model of symbols": (lambda: model_of("symbols", 3, 3)(torch.zeros(2, 5)), "tokens are torch.float32: the layout 'symbols' needs integers"),
    "numbers for a model of mappings": (lambda: model_of("mappings", 3, 3)(torch.zeros(2, 8).double()), "tokens are torch.float64: the layout 'mappings' needs integers"),
    "fewer logits than symbols": (lambda: ModelConfig("mamba", 5, 4, layout="symbols"), "d_out is 4 but d_in 5: .*'symbols' .*a logit for each"),
    "one output for mappings": (lambda: ModelConfig("mamba", 5, layout="mappings"), "d_out is 1 but d_in 5: .*'mappings'"),
    "a table for vectors": (lambda: architecture("transformer", 5, layout="vectors", d_out=5), "'vectors'.*need n_positions.*model_for"),
    "a table for symbols": (lambda: architecture("mamba", 5, layout="symbols", d_out=5, positions="learned", n_points=9), "'symbols'.*need n_positions.*model_for"),
    "a table for an unknown layout": (lambda: architecture("transformer", 5, layout="vector"), "unknown layout 'vector'"),
    "a table for no points": (lambda: model_for(VectorMQAR(4, 6), "transformer", n_points=0), "n_points is 0: it must be at least 1"),
    "no points": (lambda: model_for(VectorMQAR(4, 6), "mamba", n_points=0), "n_points is 0: it must be at least 1"),
    "a chain without a step": (lambda: ModelConfig("mamba", 2, 1, layout="chain"), "d_out is 1: a chain predicts a step"),
    "unknown layout": (lambda: ModelConfig("mamba", 2, layout="pair"), "unknown layout 'pair': choose one of pairs, chain, vectors, symbols.*mean 'pairs'"),
    "unknown norm": (lambda: ModelConfig("mamba", 2, norm="rmsnorm"), "unknown norm 'rmsnorm': choose one of layer, rms"),
    "unknown gate": (lambda: ModelConfig("mamba", 2, gate="gelu"), "unknown gate 'gelu': choose one of silu, none"),
    "unknown positions": (lambda: ModelConfig("mamba", 2, positions="rotary"), "unknown positions 'rotary': choose one of none, learned, sinusoidal"),
    "odd width for sines": (lambda: ModelConfig("mamba", 2, d_model=15, positions="sinusoidal"), "d_model is 15: sinusoidal positions need an even width"),
    "rows for sines": (lambda: ModelConfig("mamba", 2, positions="sinusoidal", n_positions=4), "a learned table needs rows, and only it has them"),
    "everything dropped": (lambda: ModelConfig("mamba", 2, dropout=1.0), r"dropout is 1.0: it must be in \[0, 1\)"),
    "negative deviation": (lambda: ModelConfig("mamba", 2, position_std=-0.1), "position_std is -0.1: it must be 0 or more"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message): call()


def test_only_the_task_knows_how_many_tokens_a_table_serves():
    "A prompt of 6 pairs and 2 queries is 14 vectors; whoever names that number may have it without the task."
    task = VectorMQAR(4, 6, n_queries=2)
    config = model_for(task, "transformer", "tiny")
    assert config.n_positions == task.n_tokens(6) == 14 and model_for(task, "transformer", "tiny", n_points=3).n_positions == 8
    assert architecture("transformer", 4, layout="vectors", d_out=4, n_positions=14, **SIZES["tiny"]) == config == model_for(task, "transformer", "tiny", n_positions=14)
    assert architecture("mamba", 4, layout="vectors", d_out=4).n_positions == 0
    assert architecture("transformer", 4, layout="chain", d_out=3, n_points=5).n_positions == 15


def test_norms_are_their_definitions():
    x = Draws(3).normal(2, 3, 8).double()
    layer, rms = (NORMS[name](8).double() for name in ("layer", "rms"))
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(layer(x), centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("final_norm", [True, False])
def test_a_model_has_the_norm_it_asks_for(norm, final_norm):
    model = SequenceModel(ModelConfig("(attn mamba mlp) x 2", 3, d_model=16, norm=norm, final_norm=final_norm))
    kind = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[norm]
    assert all(type(block.norm) is kind for block in model.blocks) and type(model.norm) is (kind if final_norm else nn.Identity)


@pytest.mark.parametrize("length, width", [(1, 2), (40, 6), (7, 64)])
def test_sinusoidal_positions_are_vaswanis(length, width):
    expected = [[(math.sin, math.cos)[c % 2](t / 10_000 ** (2 * (c // 2) / width)) for c in range(width)] for t in range(length)]
    np.testing.assert_allclose(sinusoidal(length, width), expected, atol=5e-6)


def test_sinusoidal_positions_are_added_to_the_tokens():
    with_, without = (build_model(ModelConfig("attn", 3, d_model=16, positions=positions), 0) for positions in ("sinusoidal", "none"))
    tokens = Draws(0).normal(2, 5, 3)
    table = sinusoidal(5, 16)
    without.read_in.register_forward_hook(lambda module, inputs, output: output + table)
    with torch.no_grad(): assert torch.equal(with_(tokens), without(tokens))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_channels_at_its_rate_and_keeps_the_mean(rate):
    x = Draws(0).normal(400, 5, 50)
    y = dropout(x, rate, Draws(1))
    kept = y != 0
    assert (kept == kept[:, :1]).all()
    torch.testing.assert_close(y, torch.where(kept, x / (1 - rate), 0))
    n = 400 * 50
    assert abs(kept[:, 0].float().mean().item() - (1 - rate)) < 5 * math.sqrt(rate * (1 - rate) / n)
    assert torch.equal(y, dropout(x, rate, Draws(1))) and not torch.equal(y, dropout(x, rate, Draws(2)))
    assert dropout(x, rate, None) is x and dropout(x, 0.0, Draws(1)) is x


def test_blocks_are_handed_the_draws_of_training_only(monkeypatch):
    from iclrepro.blocks import BLOCKS
    from iclrepro.tasks import Curriculum
    from iclrepro.training import TrainConfig, Training
    monkeypatch.setitem(BLOCKS, "listening", None)
    heard = []

    @register_block("listening")
    class Listening(Block):
        """Notes what it is handed."""
        def reset(self, draws, init, depth): pass

        def mix(self, x, draws):
            heard.append(draws)
            return x

    task = LinearRegression(3, 4)
    training = Training(TrainConfig(task, ModelConfig("listening", 3, d_model=8), Curriculum.constant(task), 1))
    training.advance()
    assert len(heard) == 1 and isinstance(heard[0], Draws)
    as_examinee(training.members[0].model)(task.sample(Draws(0), 2), None, [0])
    assert heard[1] is None


def test_a_chain_is_examined_with_the_models_own_step():
    model = model_of("chain", 2, 6)
    prompt = Prompt(*(part.double() if part.is_floating_point() else part for part in thoughts(points=5)))
    said = as_examinee(model)(prompt, None, [0, 2, 4])
    with torch.no_grad():
        for i, k in enumerate((0, 2, 4)):
            first = predict(model, prompt)[:, k, :5]  # the step that is said at x_k
            y = prompt.y.clone()
            y[:, k, :5] = first
            torch.testing.assert_close(said[:, i, :5], first, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(said[:, i, 5], predict(model, prompt._replace(y=y))[:, k, 5], rtol=1e-9, atol=1e-12)
        spoilt = prompt.y.clone()
        spoilt[:, 4] = 100  # neither its true step nor its answer is seen
        torch.testing.assert_close(as_examinee(model)(prompt._replace(y=spoilt), None, [4])[:, 0], said[:, 2])
        assert think(model, cut(prompt, 3), [2])[:, 0].shape == (3, 6)


def test_a_question_is_put_behind_its_examples():
    draws = Draws(5)
    context, query = (Prompt(draws.normal(2, 6, 3), draws.normal(2, 6), ones(2, 6)) for _ in range(2))
    asked = asked_after(context, query, 4)
    assert torch.equal(asked.x[:, :4], context.x[:, :4]) and torch.equal(asked.x[:, 4], query.x[:, 4]) and torch.equal(asked.y, context.y[:, :5])


class Spotted(LinearRegression):
    """Linear regression whose every third point is not asked."""
    def ask(self, function, x, draws):
        mask = (torch.arange(x.shape[1]) % 3 != 0).expand(x.shape[:2])
        return Prompt(x, function(x), mask)


def test_points_outside_the_mask_are_not_scored():
    scores = take(Exam(n_points=7, n_prompts=128), Spotted(3, 7), as_baseline_examinee(lambda x, y, query: torch.zeros_like(y)))
    assert scores[:, [0, 3, 6]].isnan().all() and scores[:, [1, 2, 4, 5]].isfinite().all()


def test_a_prediction_that_is_no_number_is_an_infinite_error():
    scores = take(Exam(n_points=4, n_prompts=64), LinearRegression(3, 4), as_baseline_examinee(lambda x, y, query: torch.full_like(y, torch.nan)))
    assert (scores == torch.inf).all()


def test_baselines_are_told_what_they_ask_for():
    told = {}

    def curious(x, y, query=None, at=None, mask=None):
        told.update(at=at, mask=mask, y=y)
        return torch.zeros_like(y)

    prompt = Spotted(3, 7).sample(Draws(0), 2)
    wide = prompt._replace(y=torch.stack([prompt.y, prompt.y + 1], -1))
    assert as_baseline_examinee(curious)(wide, None, [1, 4]).shape == (2, 2)
    assert told["at"] == [1, 4] and torch.equal(told["mask"], prompt.mask) and torch.equal(told["y"], prompt.y)


def test_means_and_intervals_leave_out_what_was_not_asked():
    draws = Draws(6)
    scores = draws.normal(2, 200, 3).square()
    holes = scores.clone()
    holes[:, :, 1][draws.uniform(2, 200) < 0.5] = torch.nan
    holes[:, :, 2] = torch.nan
    whole, part = summarise(scores), summarise(holes)
    for field in whole._fields:
        a, b = getattr(whole, field)[..., 0], getattr(part, field)[..., 0]
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    kept = [holes[s, :, 1][~holes[s, :, 1].isnan()].double() for s in range(2)]
    for s in range(2):
        assert part.mean[s, 1].item() == pytest.approx(kept[s].mean().item(), rel=1e-12)
        spread = (part.high - part.low)[s, 1].item() / 2
        assert spread == pytest.approx(1.645 * kept[s].std().item() / math.sqrt(len(kept[s])), rel=0.2)
    assert part.pooled[1].item() == pytest.approx(torch.cat(kept).mean().item(), rel=1e-12)
    assert all(getattr(part, field)[..., 2].isnan().all() for field in part._fields)


def test_every_layout_gives_predictions_shaped_like_the_answers():
    draws = Draws(7)
    prompts = {"pairs": (Prompt(draws.normal(2, 5, 4), draws.normal(2, 5), ones(2, 5)), 4, 1), "chain": (thoughts(2, 5, 4, 3), 4, 4),
               "vectors": (Prompt(draws.normal(2, 9, 4), draws.normal(2, 2, 4), ones(2, 2)), 4, 4),
               "symbols": (Prompt(draws.integers(4, 2, 9), draws.normal(2, 9, 4), ones(2, 9)), 4, 4),
               "mappings": (Prompt(draws.integers(4, 2, 12), draws.integers(4, 2, 3), ones(2, 3)), 4, 4)}
    assert prompts.keys() == LAYOUTS.keys()
    for layout, (prompt, d_in, d_out) in prompts.items():
        model = build_model(ModelConfig("attn", d_in, d_out, d_model=16, layout=layout), 0)
        assert predict(model, prompt).shape == (*prompt.y.shape, *((d_out,) if layout == "mappings" else ()))  # there an answer is a symbol, a prediction its logits


def test_flops_of_reading_are_counted_by_hand():
    def reading(layout, d_in, d_out, length):
        model = SequenceModel(ModelConfig("attn", d_in, d_out, d_model=16, layout=layout))
        return model.flops(length) - model.blocks[0].flops(length)

    assert reading("pairs", 5, 1, 9) == 2 * 16 * (9 * 5 + 5 * 1)
    assert reading("vectors", 4, 4, 9) == 2 * 16 * (9 * 4 + 9 * 4)
    assert reading("symbols", 7, 7, 9) == 2 * 16 * 9 * 7
    assert reading("mappings", 7, 7, 12) == 2 * 16 * 3 * 7
    assert reading("chain", 2, 6, 11) == 2 * 16 * (4 * 2 + 4 * 5 + 3 * 1 + 4 * 6)  # the last answer is not fed


def test_a_task_of_its_own_layout_says_its_tokens():
    assert issubclass(Spotted, Task) and LinearRegression(3, 7).n_tokens(7) == 13 and LinearRegression(3, 7).n_asked(7) == 7


def standard_error(values): return values.std(0) / len(values)**0.5


def test_every_kind_of_baseline_takes_the_exam_of_its_task():
    "Of each table row on each of its tasks: a score for each question, and the yardsticks that know the answer are right."
    from iclrepro.baselines import BASELINES, baseline
    from iclrepro.tasks import TASKS, make_task
    tried = set()
    for name, row in BASELINES.items():
        if name.startswith(("xgboost", "network_as_described")): continue  # slow, and taken like their neighbours in the table
        for task_name in row.tasks:
            task = make_task(task_name, n_points=6 if TASKS[task_name].layout in ("pairs", "chain") else 4)
            at = (4,) if task.layout in ("pairs", "chain") else ()
            scores = take(Exam(n_points=task.n_points, at=at, n_prompts=8, batch_size=4), task, as_baseline_examinee(baseline(name), task))
            assert scores.shape == (8, len(at) or task.n_asked(task.n_points)), name
            assert not scores.isinf().any() and (task.layout == "symbols" or name == "least_squares_all" or not scores[:, 0].isnan().all() or task_name == "many_outliers"), name
            if name == "nearest_key": assert scores.abs().max() < 1e-6
            tried.add(task_name)
    assert tried == set(TASKS)


def test_a_chains_baseline_is_scored_on_the_answer():
    from iclrepro.tasks import make_task
    task = make_task("chain_of_thought", n_points=5, dim=3, hidden=2)

    def cheat(x, y, query=None): return y + 2.0

    assert (take(Exam(n_points=5, n_prompts=8, batch_size=4), task, as_baseline_examinee(cheat, task)) - 4).abs().max() < 1e-4


def test_an_outlier_exam_scores_clean_points_only():
    from iclrepro.baselines import baseline
    from iclrepro.tasks import make_task
    task = make_task("orthogonal_outliers", n_points=40, dim=4)
    scores = take(Exam(n_points=40, n_prompts=256), task, as_baseline_examinee(baseline("clean_least_squares"), task))
    assert abs(scores.isnan().float().mean().item() - 0.5) < 0.03
    summary = summarise(scores[None])
    assert summary.mean[0, 30:].max() < 1e-6 < 0.5 < summary.mean[0, 0]
