"""S4D and its blocks against a loop in real arithmetic, SciPy's discretisation and torch's own layers; their dropout, initialisation and cost."""
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from scipy.signal import cont2discrete
from test_blocks_models import (  # noqa: F401
    DTYPES, assert_equal, assert_normal, assert_uniform, block_of, count, perturbed, with_gradients)

from iclrepro import blocks
from iclrepro.blocks import DIRECT_UP_TO, S4D, DiagonalSSM, S4DPost, S4Mamba, convolve_direct, convolve_fft, s4d_loop
from iclrepro.models import ModelConfig, build_model
from iclrepro.prompts import Draws
from iclrepro.tasks import Curriculum, LinearRegression
from iclrepro.training import TrainConfig, Training

BLOCK_NAMES = pytest.mark.parametrize("cls", [S4D, S4DPost, S4Mamba])


def ssm_of(channels, d_state, seed=0):
    "A state space of which nothing is at its initial value, and no step so long that the kernel is a single token."
    ssm = DiagonalSSM(channels, d_state)
    ssm.reset(Draws(seed, stream="init"))
    return perturbed(ssm, seed + 1)


def by_definition(u, log_dt, A_log, A_imag, C, D):
    """Each complex state as two real ones, each pair and its conjugate followed one token at a time: integrate the
    differential equation exactly while the input is held."""
    batch, length, channels = u.shape
    y = []
    for c in range(channels):
        dt, total = torch.exp(log_dt[c]), torch.zeros_like(u[:, :, c])
        for n in range(A_log.shape[1]):
            a, b = -torch.exp(A_log[c, n]), A_imag[c, n]
            kept_re, kept_im = torch.exp(dt * a) * torch.cos(dt * b), torch.exp(dt * a) * torch.sin(dt * b)
            change_re = torch.expm1(dt * a) * torch.cos(dt * b) - 2 * torch.sin(dt * b / 2) ** 2  # kept_re - 1, without cancellation
            written_re = (change_re * a + kept_im * b) / (a * a + b * b)
            written_im = (kept_im * a - change_re * b) / (a * a + b * b)
            h_re = h_im = torch.zeros_like(u[:, 0, c])
            for t in range(length):
                h_re, h_im = kept_re * h_re - kept_im * h_im + written_re * u[:, t, c], kept_re * h_im + kept_im * h_re + written_im * u[:, t, c]
                # C h plus its conjugate
                total = total + F.one_hot(torch.tensor(t), length) * (2 * (C[c, n, 0] * h_re - C[c, n, 1] * h_im))[:, None]
        y.append(total + D[c] * u[:, :, c])
    return torch.stack(y, -1)


def ways(ssm):
    "The library's three forms of one state space, by name."
    def convolved(convolve, u): return convolve(u, ssm.kernel(u.shape[1])) + ssm.D * u
    return {"module": ssm, "direct": partial(convolved, convolve_direct), "fft": partial(convolved, convolve_fft),
            "loop": lambda u: s4d_loop(u, ssm.log_dt, ssm.A_log, ssm.A_imag, ssm.C) + ssm.D * u}


@DTYPES
@pytest.mark.parametrize("channels, d_state, length", [(3, 16, 17), (4, 2, 1), (2, 64, 41), (2, 6, 2)])
def test_s4d_is_its_definition(channels, d_state, length, dtype):
    "Outputs and every gradient, of the loop, the direct convolution, the FFT and what the blocks use."
    ssm = ssm_of(channels, d_state)
    u = Draws(1).normal(2, length, channels)
    reference = with_gradients(ssm.double(), lambda u: by_definition(u, ssm.log_dt, ssm.A_log, ssm.A_imag, ssm.C, ssm.D), u.double())
    ssm.to(dtype)
    for name, function in ways(ssm).items():
        assert_equal(with_gradients(ssm, function, u.to(dtype)), reference, dtype)


@pytest.mark.parametrize("length", [DIRECT_UP_TO, DIRECT_UP_TO + 1, 701])
def test_long_sequences_do_not_wrap_around_or_lose_digits(length):
    "Fresh and fast channels turn through thousands of radians; the module changes from one convolution to the other."
    ssm = DiagonalSSM(6, 64)
    ssm.reset(Draws(3, stream="init"))
    with torch.no_grad(): ssm.log_dt[0] = math.log(0.1)
    u = Draws(1).normal(2, length, 6)
    ours = {name: with_gradients(ssm, function, u) for name, function in ways(ssm).items() if name != "loop"}
    ssm.double()
    reference = with_gradients(ssm, ways(ssm)["loop"], u.double())
    for got in ours.values(): assert_equal(got, reference, torch.float32)


def test_the_discretisation_is_scipys_zero_order_hold():
    ssm = ssm_of(2, 6).double().requires_grad_(False)
    kernel, impulse = ssm.kernel(12), np.zeros(12)
    impulse[0] = 1
    for c in range(2):
        blocks = [np.array([[-math.exp(a), -b], [b, -math.exp(a)]]) for a, b in zip(ssm.A_log[c], ssm.A_imag[c].tolist())]
        A = np.zeros((6, 6))
        for n, block in enumerate(blocks): A[2 * n:2 * n + 2, 2 * n:2 * n + 2] = block
        B, C = np.tile([[1.0], [0.0]], (3, 1)), 2 * (ssm.C[c] * torch.tensor([1.0, -1.0])).reshape(1, 6).numpy()
        A, B, C, _, _ = cont2discrete((A, B, C, np.zeros((1, 1))), math.exp(ssm.log_dt[c]), method="zoh")
        h, y = np.zeros((6, 1)), []
        for u in impulse:
            h = A @ h + B * u
            y.append((C @ h).item())
        assert np.allclose(kernel[c].numpy(), y, rtol=1e-11, atol=1e-14)


def layer_norm(x, norm):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def gelu(x): return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def state_space(block, u):
    ssm = block.ssm
    return by_definition(u, ssm.log_dt, ssm.A_log, ssm.A_imag, ssm.C, ssm.D)


def s4d_reference(block, x, masks=(1, 1)):
    "The branch of both S4 blocks: GELU in its erf form, a map to twice the width, half of it gating the other; then the norm where it stands."
    post = isinstance(block, S4DPost)
    mapped = (gelu(state_space(block, x if post else layer_norm(x, block.norm))) * masks[0]) @ block.out.weight.T + block.out.bias
    branch = mapped[..., :x.shape[2]] / (1 + torch.exp(-mapped[..., x.shape[2]:]))
    return layer_norm(x + branch * masks[1], block.norm) if post else x + branch


def s4mamba_reference(block, x, silu=True, mask=1):
    d_inner, d_conv = block.conv_weight.shape
    projected = layer_norm(x, block.norm) @ block.in_proj.weight.T
    u, z = projected[..., :d_inner], projected[..., d_inner:]
    u = F.conv1d(u.mT, block.conv_weight[:, None], block.conv_bias, padding=d_conv - 1, groups=d_inner).mT[:, :x.shape[1]]
    y = state_space(block, u * torch.sigmoid(u)) * mask
    return x + (y * (z * torch.sigmoid(z) if silu else z)) @ block.out_proj.weight.T


REFERENCES = {S4D: s4d_reference, S4DPost: s4d_reference, S4Mamba: s4mamba_reference}


@DTYPES
@BLOCK_NAMES
@pytest.mark.parametrize("d_model, d_state, length", [(6, 8, 11), (4, 2, 1)])
def test_blocks_are_their_equations(cls, d_model, d_state, length, dtype):
    block = block_of(cls, d_model, d_state)
    x = Draws(2).normal(2, length, d_model)
    reference = with_gradients(block.double(), lambda x: REFERENCES[cls](block, x), x.double())
    assert_equal(with_gradients(block.to(dtype), block, x.to(dtype)), reference, dtype)


@DTYPES
@pytest.mark.parametrize("d_conv, expand", [(4, 2), (1, 1), (3, 3)])
def test_the_released_s4mamba_has_a_bare_gate(d_conv, expand, dtype):
    block = block_of(S4Mamba, 4, 6, d_conv, expand, 0.0, "none")
    x = Draws(2).normal(2, 7, 4)
    reference = with_gradients(block.double(), lambda x: s4mamba_reference(block, x, silu=False), x.double())
    assert_equal(with_gradients(block.to(dtype), block, x.to(dtype)), reference, dtype)


def mask(draws, rate, batch, width):
    "What dropout of whole channels multiplies by, a float32."
    return torch.tensor((draws.uniform(batch, 1, width).numpy() >= rate) / np.float32(1 - rate))


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_dropout_stands_where_the_released_code_has_it(rate):
    "Behind the GELU in both S4 blocks, on the branch of Grazzi et al.'s too, on S4D's output with its skip but before the gate in S4-Mamba."
    x = Draws(2).normal(5, 6, 4).double()
    for cls in (S4D, S4DPost):
        block, draws = block_of(cls, 4, 4, rate).double(), Draws(7, step=3)
        masks = mask(draws, rate, 5, 4), mask(draws, rate, 5, 4)
        assert len({m.sum().item() for m in masks}) == 2
        assert_equal({"output": block(x, Draws(7, step=3))}, {"output": s4d_reference(block, x, masks)}, torch.float64)
    for gate in ("silu", "none"):
        block = block_of(S4Mamba, 4, 4, 4, 2, rate, gate).double()
        expected = s4mamba_reference(block, x, gate == "silu", mask(Draws(7, step=3), rate, 5, 8))
        assert_equal({"output": block(x, Draws(7, step=3))}, {"output": expected}, torch.float64)


@BLOCK_NAMES
def test_nothing_is_dropped_without_draws_or_by_default(cls):
    x = Draws(2).normal(3, 5, 8)
    dropping, plain = block_of(cls, 8), block_of(cls, 8)
    dropping.dropout = 0.5
    assert torch.equal(dropping(x), plain(x)) and torch.equal(plain(x, Draws(0)), plain(x))
    assert not torch.equal(dropping(x, Draws(0)), dropping(x)) and torch.equal(dropping(x, Draws(0)), dropping(x, Draws(0)))


@BLOCK_NAMES
@pytest.mark.parametrize("length", [12, DIRECT_UP_TO + 5])
def test_blocks_are_causal_and_use_all_of_the_past(cls, length):
    block = block_of(cls, 6, 4)
    x = Draws(4).normal(2, length, 6).requires_grad_()
    leak = 0 if length <= DIRECT_UP_TO else 1e-6  # the FFT spreads its rounding over all tokens
    for token in (0, 3, length - 2):
        influence = torch.autograd.grad(block(x)[:, token].square().sum(), x)[0].abs().amax((0, 2))
        assert influence[token + 1:].max() <= leak * influence.max() and (influence[:token + 1] > 10 * leak * influence.max()).all()
        assert torch.allclose(block(x[:, :token + 1])[:, -1], block(x)[:, token], atol=1e-5)


@pytest.mark.parametrize("d, N", [(64, 16), (256, 16), (435, 64), (40, 2)])
def test_parameters_of_each_block(d, N):
    with torch.device("meta"):
        assert count(S4D(d, N)) == count(S4DPost(d, N)) == 2 * d**2 + 6 * d + 2 * d * N
        assert count(S4Mamba(d, N)) == 6 * d**2 + 16 * d + 4 * d * N


def test_parameters_are_as_many_as_in_the_released_models():
    with torch.device("meta"):
        assert (count(S4D(256)), count(S4Mamba(256)), count(S4DPost(435))) == (140_800, 413_696, 436_740)
        assert (24 * count(S4D(256)) + 512, 24 * count(S4Mamba(256)) + 512) == (3_379_712, 9_929_216)
        assert 24 * count(S4DPost(435)) + 21 * 435 + 436 == 10_491_331


def test_the_state_space_starts_as_released():
    ssm = DiagonalSSM(2000, 16)
    ssm.reset(Draws(4, stream="init"))
    assert_uniform(ssm.log_dt - math.log(1e-2), math.log(10))
    assert ssm.log_dt.exp().min() < 1.02e-3 and ssm.log_dt.exp().max() > 0.98e-1
    assert torch.allclose(ssm.A_log.exp(), torch.tensor(0.5))
    assert torch.allclose(ssm.A_imag, torch.pi * torch.arange(8.0).expand(2000, 8), rtol=1e-7)
    assert_normal(ssm.C, 0.5**0.5), assert_normal(ssm.D, 1)
    real, imaginary = ssm.C.detach().flatten(0, 1).T.double().numpy()
    assert abs(stats.pearsonr(real, imaginary).statistic) < 5 / math.sqrt(len(real))


@pytest.mark.parametrize("init", ["mamba", "gpt2"])
def test_blocks_start_as_released(init):
    "Whatever `init`; the map of S4 keeps a bias, what S4-Mamba adds to the stream is scaled by 1 / sqrt(depth)."
    for cls in (S4D, S4DPost):
        block = cls(128)
        block.reset(Draws(5, stream="init"), init, 9)
        assert_uniform(torch.cat([block.out.weight.flatten(), block.out.bias]), 128**-0.5)
        assert block.out.bias.abs().min() > 0
    block = S4Mamba(128)
    block.reset(Draws(5, stream="init"), init, 9)
    assert_uniform(block.in_proj.weight, 128**-0.5), assert_uniform(block.out_proj.weight, (256 * 9)**-0.5)
    assert_uniform(block.conv_weight, 0.5), assert_uniform(block.conv_bias, 0.5)


@BLOCK_NAMES
def test_nothing_is_left_unset(cls):
    blocks = cls(12), cls(12)
    for block in blocks:
        with torch.no_grad():
            for p in [p for name, p in block.named_parameters() if not name.startswith("norm.")]: p.fill_(torch.nan)
        block.reset(Draws(3, stream="init"), "mamba", 2)
    assert all(torch.equal(p, q) for p, q in zip(blocks[0].parameters(), blocks[1].parameters()))
    other = cls(12)
    other.reset(Draws(4, stream="init"), "mamba", 2)
    assert not torch.equal(other.ssm.C, blocks[0].ssm.C)


BAD = {
    "odd state": (lambda: S4D(8, 5), "d_state is 5: .*even and at least 2"),
    "no state": (lambda: S4Mamba(8, 0), "d_state is 0: .*even and at least 2"),
    "all dropped": (lambda: S4D(8, dropout=1.0), r"dropout is 1.0: it must be in \[0, 1\)"),
    "negative dropout": (lambda: S4Mamba(8, dropout=-0.1), "dropout is -0.1"),
    "no such dropout": (lambda: S4DPost(8, dropout=math.nan), "dropout is nan"),
    "unknown gate": (lambda: S4Mamba(8, gate="slu"), "unknown gate 'slu': choose one of silu, none.*mean 'silu'"),
    "no taps": (lambda: S4Mamba(8, d_conv=0), "d_conv is 0.*at least 1"),
    "no expansion": (lambda: S4Mamba(8, expand=0), "expand is 0.*at least 1"),
    "unknown norm": (lambda: S4D(8, norm="batch"), "unknown norm 'batch'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message): call()


@pytest.mark.parametrize("convolve", [convolve_direct, convolve_fft])
@pytest.mark.parametrize("shape", [(3, 9), (3, 20), (3, 4), (1, 5), (2, 5)])
def test_kernels_of_other_lengths_or_channels_are_refused(convolve, shape):
    u = Draws(1).normal(2, 5, 3)
    with pytest.raises(ValueError, match=rf"kernel has shape \({shape[0]}, {shape[1]}\): it must be \(channels, length\), here \(3, 5\)"): convolve(u, torch.ones(shape))


def test_flops_are_those_of_transforms_and_linear_maps():
    "Counted by hand for 64 tokens: transforms of 128 numbers, of which the logarithm is 7."
    convolution = 2 * 5 * 128 * 7 + 6 * 65 + 2 * 64  # a channel: to the spectrum and back, 65 complex products, skip
    with torch.device("meta"):
        assert DiagonalSSM(3, 4).flops(64) == 3 * convolution
        assert S4D(32).flops(64) == S4DPost(32).flops(64) == 64 * 2 * 32 * 64 + 32 * convolution
        assert S4Mamba(32, 16, 3, 2).flops(64) == 64 * (2 * 32 * 128 + 2 * 64 * 32 + 2 * 3 * 64) + 64 * convolution
        assert all(isinstance(cls(8).flops(81), int) and cls(8).flops(0) == 0 for cls in REFERENCES)


def test_blocks_find_their_hyperparameters_and_train():
    "In training, weights are views of one vector; an odd number of them in front must not matter."
    config = ModelConfig("s4d + s4d_post + s4mamba", 3, d_model=9, d_state=6, d_conv=2, expand=3, dropout=0.2, gate="none", norm="rms", depth=3)
    model = build_model(config, 0)
    s4d, post, s4mamba = model.blocks
    assert [type(block) for block in model.blocks] == [S4D, S4DPost, S4Mamba] and all(isinstance(block.norm, torch.nn.RMSNorm) for block in model.blocks)
    assert all(block.dropout == 0.2 and block.ssm.A_log.shape[1] == 3 for block in model.blocks)
    assert s4mamba.conv_weight.shape == (27, 2) and torch.equal(s4mamba.gate(torch.tensor(-2.0)), torch.tensor(-2.0))
    task = LinearRegression(3, 6)
    training = Training(TrainConfig(task, config, Curriculum.constant(task), 2, seeds=(2,), lr=1e-2))
    before = {name: p.detach().clone() for name, p in training.members[0].model.named_parameters()}
    training.advance()
    assert training.losses.isfinite().all()
    assert all((p != before[name]).any() for name, p in training.members[0].model.named_parameters())


class OnAGPU(torch.Tensor):
    "Says that it is on a GPU."
    is_cuda = True


@pytest.mark.parametrize("d_state, walked", [(256, True), (258, False)])
def test_more_pairs_than_the_kernels_take_go_the_way_of_other_devices(monkeypatch, d_state, walked):
    monkeypatch.setitem(blocks.BACKENDS, "cuda", type("Serves", (), {"refusal": staticmethod(lambda u: "")}))
    monkeypatch.setattr(blocks, "state_space_cuda", lambda u, *parameters: "the kernels")
    ssm, u = ssm_of(3, d_state), Draws(2).normal(2, 5, 3)
    found = ssm(u.as_subclass(OnAGPU))
    if walked: assert found == "the kernels"
    else: torch.testing.assert_close(found.as_subclass(torch.Tensor), ssm(u))
