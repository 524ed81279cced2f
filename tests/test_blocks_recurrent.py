"""RWKV-4 and LSTM blocks against their equations and transformers; their initialisation, memory and cost."""
import math

import numpy as np
import pytest
import torch
import torch.nn as nn
from test_blocks_models import (  # noqa: F401
    DTYPES, assert_constant, assert_equal, assert_uniform, block_of, count, counted, gradients, no_downcast, with_gradients)
from transformers import RwkvConfig, RwkvForCausalLM, RwkvModel
from transformers.models.rwkv.modeling_rwkv import RwkvBlock, RwkvFeedForward, RwkvSelfAttention

from iclrepro.blocks import LSTM, RWKVChannel, RWKVTime, reset_orthogonal
from iclrepro.models import ModelConfig, architecture, build_model
from iclrepro.prompts import Draws
from iclrepro.tasks import Curriculum, LinearRegression
from iclrepro.training import TrainConfig, Training
from iclrepro.wkv import token_shift, token_shift_torch, wkv, wkv_loop, wkv_torch

CLASSES = pytest.mark.parametrize("cls", [RWKVTime, RWKVChannel, LSTM])


def average(k, v, decay, bonus):
    "Peng et al. (2023), equation 16, one token and channel at a time, every exponent less the largest of them."
    batch, length, channels = k.shape
    y = []
    for c in range(channels):
        w, column = torch.exp(decay[c]), []
        for t in range(length):
            exponents = torch.stack([k[:, s, c] - (t - 1 - s) * w for s in range(t)] + [k[:, t, c] + bonus[c]], 1)
            weights = torch.exp(exponents - exponents.detach().amax(1, keepdim=True))
            column.append((weights * v[:, :t + 1, c]).sum(1) / weights.sum(1))
        y.append(torch.stack(column, 1))
    return torch.stack(y, 2)


def tensors(length, channels, scale=1.0, rates=(-5.0, 3.0), batch=2):
    draws = Draws(0, step=length)
    return {"k": scale * draws.normal(batch, length, channels), "v": draws.normal(batch, length, channels),
            "decay": torch.linspace(*rates, channels), "bonus": scale * draws.normal(channels)}


def by_name(function, leaves, dtype):
    leaves = {name: leaf.to(dtype).requires_grad_() for name, leaf in leaves.items()}
    y = function(**leaves)
    return dict(zip(("output", *leaves), (y.detach(), *gradients(y, list(leaves.values())))))


@DTYPES
@pytest.mark.parametrize("length, channels, scale, rates", [(1, 3, 1, (-5, 3)), (2, 3, 1, (-5, 3)), (17, 6, 1, (-5, 3)), (64, 4, 3, (-5, 3)),
                                                           (33, 4, 30, (-20, 3)), (33, 3, 1, (2, 9))])
def test_the_fading_average_is_its_equation(length, channels, scale, rates, dtype):
    "Outputs and every gradient; for keys up to a hundred, and rates from never forgetting to forgetting at once."
    leaves = tensors(length, channels, scale, rates)
    reference = by_name(average, leaves, torch.float64)
    # The past enters from the second token on, and fades from the third; at a rate of e^2 it is gone before it can be seen to fade.
    zero = ["k", "decay", "bonus"] if length == 1 else ["decay"] if length == 2 else []
    for function in (wkv, wkv_torch, wkv_loop): assert_equal(by_name(function, leaves, dtype), reference, dtype, zero)


@pytest.mark.parametrize("function", [wkv, wkv_torch, wkv_loop])
def test_large_exponents_neither_overflow_nor_vanish(function):
    "Float32 holds e^88: keys of ±1000, a rate of e^10, and a key so large that it outlives everything else."
    leaves = tensors(50, 4, 1000.0, (-10.0, 10.0))
    exact = {name: leaf.double() for name, leaf in leaves.items()}
    assert torch.allclose(function(**exact), average(**exact), rtol=0, atol=1e-10)  # float64 holds an exponent of thousands to 1e-12
    got = by_name(function, leaves, torch.float32)
    assert all(value.isfinite().all() for value in got.values())
    assert got["output"].abs().max() <= leaves["v"].abs().max() * (1 + 1e-6)
    k, v, decay, bonus = torch.zeros(1, 9, 1), torch.arange(9.0)[None, :, None], torch.tensor([-1.0]), torch.zeros(1)
    k[0, 3] = 500
    assert torch.allclose(function(k, v, decay, bonus)[0, 4:, 0], torch.tensor(3.0))


def test_rounding_does_not_add_up_along_the_sequence():
    "Slow channels, long sequence, keys of tens: if what is left of the last maximum were rounded at every token, the errors would add up."
    leaves = tensors(600, 8, 10.0, (-8.0, -4.0))
    for function in (wkv, wkv_torch): assert_equal(by_name(function, leaves, torch.float32), by_name(wkv_loop, leaves, torch.float64), torch.float32)


@pytest.mark.parametrize("function", [wkv, wkv_torch])
def test_memory_for_the_backward_pass_is_linear_in_the_length(function):
    def saved(length):
        storages = {}
        def keep(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor
        leaves = {name: leaf.requires_grad_() for name, leaf in tensors(length, 4).items()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor): function(**leaves)
        return sum(storage.nbytes() for storage in storages.values())

    assert saved(512) < 2.2 * saved(256) and saved(512) < 40 * 4 * 2 * 512 * 4


@pytest.mark.parametrize("shift", [token_shift, token_shift_torch])
def test_token_shift_mixes_with_the_token_before(shift):
    x, mu = Draws(1).normal(2, 5, 3), Draws(2).uniform(2, 3)
    mixed = shift(x, mu)
    assert len(mixed) == 2
    for kind, mixture in enumerate(mixed):
        for t in range(5):
            before = x[:, t - 1] if t else torch.zeros(2, 3)
            assert torch.allclose(mixture[:, t], mu[kind] * x[:, t] + (1 - mu[kind]) * before, atol=1e-6)


def rwkv_weights(time, channel):
    "The weights of our two blocks by transformers' names."
    weights = {}
    for kind, block in (("attention", time), ("feed_forward", channel)):
        weights |= {f"{kind}.{name}.weight": getattr(block, name).weight for name in ("key", "value", "receptance")}
        weights |= {f"{kind}.time_mix_{name}": mu[None, None] for name, mu in zip(("key", "value", "receptance") if block is time else ("key", "receptance"), block.mu)}
    weights |= {"attention.time_decay": time.decay, "attention.time_first": time.bonus, "attention.output.weight": time.out.weight}
    for name, block in (("ln1", time), ("ln2", channel)): weights |= {f"{name}.weight": block.norm.weight, f"{name}.bias": block.norm.bias}
    return weights


@DTYPES
@pytest.mark.parametrize("d_model, length", [(24, 17), (10, 1), (32, 60)])
def test_both_rwkv_blocks_are_transformers(d_model, length, dtype, no_downcast):
    "A layer of theirs is time mixing and channel mixing; the fast path is compared in float32 with their float64."
    blocks = nn.Sequential(block_of(RWKVTime, d_model, seed=1), block_of(RWKVChannel, d_model, seed=2))
    layer = RwkvBlock(RwkvConfig(vocab_size=4, hidden_size=d_model, num_hidden_layers=2), 1)
    x = Draws(1).normal(3, length, d_model)
    weights = rwkv_weights(*blocks.double())
    assert {name: p.shape for name, p in layer.named_parameters()} == {name: p.shape for name, p in weights.items()}
    reference = with_gradients(blocks, lambda x: torch.func.functional_call(layer, rwkv_weights(*blocks), (x,))[0], x.double())
    # A single token is its own average, whatever its key.
    zero = [f"0.{name}" for name in ("decay", "bonus", "key.weight")] if length == 1 else []
    ours = with_gradients(blocks.to(dtype), blocks, x.to(dtype))
    if length == 1: assert all(part["0.mu"][0].abs().max() < 1e-6 for part in (ours, reference))
    assert_equal(ours, reference, dtype, zero)


def lstm_by_equations(block, x):
    "Gates one by one, token by token (torch's order of gates: input, forget, cell, output)."
    d_model = x.shape[2]
    W = [block.weight_ih[i * d_model:(i + 1) * d_model] for i in range(4)]
    U = [block.weight_hh[i * d_model:(i + 1) * d_model] for i in range(4)]
    b = [(block.bias_ih + block.bias_hh)[i * d_model:(i + 1) * d_model] for i in range(4)]
    h, c, said = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        write, keep, candidate, say = (x[:, t] @ W[i].T + h @ U[i].T + b[i] for i in range(4))
        c = c / (1 + torch.exp(-keep)) + torch.tanh(candidate) / (1 + torch.exp(-write))
        h = torch.tanh(c) / (1 + torch.exp(-say))
        said.append(h)
    return torch.stack(said, 1)


@DTYPES
@pytest.mark.parametrize("d_model, length", [(12, 17), (5, 1), (32, 81)])
def test_the_lstm_is_its_equations(d_model, length, dtype):
    block = block_of(LSTM, d_model)
    x = Draws(3).normal(3, length, d_model)
    reference = with_gradients(block.double(), lambda x: x + lstm_by_equations(block, nn.functional.layer_norm(x, (d_model,), block.norm.weight, block.norm.bias)), x.double())
    zero = ["weight_hh"] if length == 1 else []  # there is nothing to remember
    assert_equal(with_gradients(block.to(dtype), block, x.to(dtype)), reference, dtype, zero)


def test_the_lstm_does_not_ask_for_a_training_mode():
    block, x = block_of(LSTM, 8), Draws(3).normal(2, 5, 8)
    assert torch.equal(block(x), block.eval()(x))


@CLASSES
def test_blocks_are_causal_and_see_the_past(cls):
    block = block_of(cls, 6)
    x = Draws(4).normal(2, 12, 6).requires_grad_()
    for token in (0, 3, 11):
        influence = torch.autograd.grad(block(x)[:, token].square().sum(), x)[0].abs().amax((0, 2))
        seen = max(0, token - 1) if cls is RWKVChannel else 0  # channel mixing sees the token before, the others all
        assert (influence[token + 1:] == 0).all() and (influence[:seen] == 0).all() and (influence[seen:token + 1] > 0).all()
        assert torch.allclose(block(x[:, :token + 1])[:, -1], block(x)[:, token], atol=1e-5)


@pytest.mark.parametrize("d", [64, 128, 256, 40])
def test_parameters_of_each_block(d):
    with torch.device("meta"):
        assert (count(RWKVTime(d)), count(RWKVChannel(d)), count(LSTM(d))) == (4 * d**2 + 7 * d, 9 * d**2 + 4 * d, 8 * d**2 + 10 * d)
        assert count(LSTM(d)) == count(nn.LSTM(d, d)) + 2 * d


@DTYPES
@pytest.mark.parametrize("n_layers, length", [(2, 20), (3, 33)])
def test_a_whole_model_is_transformers(n_layers, length, dtype, no_downcast):
    """RwkvForCausalLM with our weights. Its norm behind the embedding does nothing to rows of mean 0 and variance 1, but for its eps, which its weight undoes."""
    d_model, vocabulary = 24, 11
    model = build_model(architecture("rwkv", vocabulary, n_layers, d_model, layout="symbols", d_out=vocabulary), 0).double()
    draws = Draws(2, stream="init")
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.2 * draws.normal(*p.shape))
        rows = draws.normal(vocabulary, d_model).double()
        rows -= rows.mean(1, keepdim=True)
        model.read_in.weight.copy_(rows / rows.square().mean(1, keepdim=True).sqrt())
    theirs = RwkvForCausalLM(RwkvConfig(vocab_size=vocabulary, hidden_size=d_model, num_hidden_layers=n_layers, attention_hidden_size=d_model, context_length=64)).double()
    pairs = list(zip(model.blocks[::2], model.blocks[1::2]))
    weights = {f"rwkv.blocks.{i}.{name}": p for i, pair in enumerate(pairs) for name, p in rwkv_weights(*pair).items()}
    norm = theirs.rwkv.blocks[0].pre_ln
    weights |= {"rwkv.blocks.0.pre_ln.weight": torch.full((d_model,), (1 + norm.eps) ** 0.5, dtype=torch.float64), "rwkv.blocks.0.pre_ln.bias": torch.zeros(d_model)}
    weights |= {"rwkv.embeddings.weight": model.read_in.weight, "head.weight": model.read_in.weight, "rwkv.ln_out.weight": model.norm.weight, "rwkv.ln_out.bias": model.norm.bias}
    assert weights.keys() == dict(theirs.named_parameters()).keys()
    theirs.load_state_dict({name: p.detach() for name, p in weights.items()})
    tokens = (Draws(1).uniform(2, length) * vocabulary).long()
    scores = lambda logits: (logits * torch.cos(torch.arange(logits.numel(), dtype=logits.dtype)).view_as(logits)).sum()
    expected = theirs.train()(tokens, use_cache=False).logits  # its training path: evaluation divides weights of layers from the seventh on
    scores(expected).backward()
    logits = model.to(dtype)(tokens)
    scores(logits).backward()
    ours, reference = {"logits": logits.detach()}, {"logits": expected.detach()}
    theirs = dict(theirs.named_parameters())
    for i, (time, channel) in enumerate(pairs):
        for name, p in rwkv_weights(time, channel).items():
            full = theirs[f"rwkv.blocks.{i}.{name}"].grad
            if "time_mix" not in name: ours[f"{i}.{name}"], reference[f"{i}.{name}"] = p.grad, full
        for kind, block, names in (("attention", time, ("key", "value", "receptance")), ("feed_forward", channel, ("key", "receptance"))):
            ours[f"{i}.{kind}.mu"], reference[f"{i}.{kind}.mu"] = block.mu.grad, torch.stack([theirs[f"rwkv.blocks.{i}.{kind}.time_mix_{name}"].grad.flatten() for name in names])
    ours["norm"], reference["norm"] = model.norm.weight.grad, theirs["rwkv.ln_out.weight"].grad
    assert_equal(ours, reference, dtype)


def rwkv_start(block, init="gpt2"):
    block.reset(Draws(3, stream="init"), init, 7)
    return {name: p.detach().clone() for name, p in block.named_parameters()}


def test_rwkv_starts_as_transformers_middle_layer():
    "Layer n / 2 of n, for n so large that both of RWKV-4's fractions of depth are 1/2."
    model = RwkvModel(RwkvConfig(vocab_size=4, hidden_size=40, num_hidden_layers=2))
    model.config.num_hidden_layers = 2 * 10**9
    time, channel = RwkvSelfAttention(model.config, 10**9), RwkvFeedForward(model.config, 10**9)
    for module in (time, channel): model._init_weights(module)
    ours = rwkv_start(RWKVTime(40))
    assert torch.allclose(ours["mu"], torch.stack([time.time_mix_key, time.time_mix_value, time.time_mix_receptance]).view(3, 40), atol=1e-6)
    assert torch.allclose(ours["decay"], time.time_decay, atol=1e-5)
    assert torch.allclose(rwkv_start(RWKVChannel(40))["mu"], torch.stack([channel.time_mix_key, channel.time_mix_receptance]).view(2, 40), atol=1e-6)
    # transformers starts the bonus at 1; RWKV-4's own code at ln 0.3, and half of 0, 1, -1 by turns.
    assert torch.allclose(ours["bonus"], torch.tensor([math.log(0.3) + (0, 0.5, -0.5)[c % 3] for c in range(40)]))


@pytest.mark.parametrize("n_layers", [2, 3, 12])
def test_rwkv_starts_as_transformers_by_depth(n_layers):
    model = build_model(architecture("rwkv", 3, n_layers, 40), 0)
    theirs = RwkvModel(RwkvConfig(vocab_size=4, hidden_size=40, num_hidden_layers=n_layers))
    for module in theirs.modules(): theirs._init_weights(module)
    for time, channel, layer in zip(model.blocks[::2], model.blocks[1::2], theirs.blocks):
        attention, feed_forward = layer.attention, layer.feed_forward
        assert torch.allclose(time.mu, torch.stack([attention.time_mix_key, attention.time_mix_value, attention.time_mix_receptance]).view(3, 40), atol=1e-6)
        assert torch.allclose(time.decay, attention.time_decay, atol=1e-5)
        assert torch.allclose(channel.mu, torch.stack([feed_forward.time_mix_key, feed_forward.time_mix_receptance]).view(2, 40), atol=1e-6)
    assert not torch.allclose(model.blocks[0].decay, model.blocks[-2].decay) and not torch.allclose(model.blocks[1].mu, model.blocks[-1].mu)


def test_place_counts_among_blocks_of_a_kind_and_for_rwkv_only():
    hybrid = build_model(ModelConfig("(rwkv_time attn rwkv_channel) x 3 + rwkv_time", 3, d_model=8, n_heads=2, init="rwkv"), 0)
    assert [block.layer for block in hybrid.blocks] == [(0, 4), (0, 3), (0, 3), (1, 4), (1, 3), (1, 3), (2, 4), (2, 3), (2, 3), (3, 4)]
    same = build_model(ModelConfig("(rwkv_time rwkv_channel) x 3", 3, d_model=8), 0)  # as always under the initialisation that a pattern has by default
    for time, channel in zip(same.blocks[::2], same.blocks[1::2]):
        assert torch.equal(time.mu, rwkv_start(RWKVTime(8))["mu"]) and torch.equal(time.decay, rwkv_start(RWKVTime(8))["decay"]) and torch.equal(channel.mu, rwkv_start(RWKVChannel(8))["mu"])
    only = build_model(architecture("rwkv", 3, 1, 8), 0)  # where the released code divides by zero
    assert torch.allclose(only.blocks[0].mu[0], torch.arange(8) / 8) and torch.allclose(only.blocks[0].decay, -5 + 8 * torch.linspace(0, 1, 8) ** 0.7)


def test_rwkv_matrices_start_orthogonal_or_at_zero():
    time, channel = rwkv_start(RWKVTime(40)), rwkv_start(RWKVChannel(40))
    for weight in (time["key.weight"], time["receptance.weight"], time["out.weight"], channel["value.weight"], channel["receptance.weight"]): assert_constant(weight, 0)
    assert torch.allclose(time["value.weight"] @ time["value.weight"].T, torch.eye(40), atol=1e-5)
    assert torch.allclose(channel["key.weight"].T @ channel["key.weight"], 4 * torch.eye(40), atol=1e-5)
    x = Draws(1).normal(2, 5, 40)
    for cls in (RWKVTime, RWKVChannel):
        block = cls(40)
        block.reset(Draws(3, stream="init"), "mamba", 2)
        assert torch.equal(block(x), x)


def test_orthogonal_matrices_are_uniform():
    "Rotations of the plane by a uniform angle, and reflections as often as not; a wide matrix has orthonormal rows."
    draws, found = Draws(0), []
    for _ in range(400):
        linear = nn.Linear(2, 2, bias=False)
        reset_orthogonal(linear, draws)
        found.append(linear.weight.detach().numpy())
    found = np.array(found)
    assert abs((np.linalg.det(found) > 0).mean() - 0.5) < 5 * math.sqrt(0.25 / 400)
    angle = np.arctan2(found[:, 1, 0], found[:, 0, 0])
    assert abs(np.exp(1j * angle).mean()) < 5 / math.sqrt(400) and abs(np.exp(2j * angle).mean()) < 5 / math.sqrt(400)
    wide = nn.Linear(9, 4, bias=False)
    reset_orthogonal(wide, draws)
    assert torch.allclose(wide.weight @ wide.weight.T, torch.eye(4), atol=1e-6)


def test_the_lstm_starts_as_torchs():
    block = LSTM(100)
    block.reset(Draws(3, stream="init"), "gpt2", 7)
    parts = [p for name, p in block.named_parameters() if not name.startswith("norm.")]
    assert sorted(tuple(p.shape) for p in parts) == sorted(tuple(p.shape) for p in nn.LSTM(100, 100).parameters())
    for p in parts: assert_uniform(p, 100**-0.5)
    for p in nn.LSTM(100, 100).parameters(): assert_uniform(p, 100**-0.5)


@CLASSES
def test_nothing_is_left_unset(cls):
    blocks = cls(12), cls(12)
    for block in blocks:
        with torch.no_grad():
            for p in [p for name, p in block.named_parameters() if not name.startswith("norm.")]: p.fill_(torch.nan)
        block.reset(Draws(3, stream="init"), "mamba", 2)
    assert all(torch.equal(p, q) for p, q in zip(blocks[0].parameters(), blocks[1].parameters()))
    other = cls(12)
    other.reset(Draws(4, stream="init"), "mamba", 2)
    assert any((p != q).any() for p, q in zip(other.parameters(), blocks[0].parameters()))


@pytest.mark.parametrize("length", [1, 7, 30])
def test_flops_are_torchs_count_of_the_matrix_products(length):
    x = torch.zeros(1, length, 32)
    time, channel = block_of(RWKVTime, 32), block_of(RWKVChannel, 32)
    assert time.flops(length) == counted(time, x) + length * 32 * (20 + 9 + 1)
    assert channel.flops(length) == counted(channel, x) + length * 32 * (6 + 1)
    assert LSTM(32).flops(length) == length * (2 * 2 * 4 * 32 * 32 + 4 * 32)
    assert LSTM(32).flops(0) == time.flops(0) == channel.flops(0) == 0


def test_blocks_train():
    "RWKV's zero matrices too, from the second step on: the first moves what is added to the stream, the others wait for it."
    task = LinearRegression(3, 6)
    config = ModelConfig("(rwkv_time rwkv_channel) x 1 + lstm", 3, d_model=7, norm="rms")
    training = Training(TrainConfig(task, config, Curriculum.constant(task), 2, seeds=(2,), lr=1e-2))
    model = training.members[0].model
    assert [type(block) for block in model.blocks] == [RWKVTime, RWKVChannel, LSTM] and isinstance(model.blocks[0].norm, nn.RMSNorm)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    while training.step < 2: training.advance()
    assert training.losses.isfinite().all()
    # With keys and receptances still zero, nothing depends on how they are mixed, nor the average on rate or key until keys differ.
    waiting = {f"blocks.{i}.{name}" for i, name in ((0, "decay"), (0, "bonus"), (0, "mu"), (1, "mu"))}
    assert all((p != before[name]).any() for name, p in model.named_parameters() if name not in waiting)


def test_an_unknown_norm_is_refused():
    for cls in (RWKVTime, RWKVChannel, LSTM):
        with pytest.raises(ValueError, match="unknown norm 'batch'"): cls(8, norm="batch")
