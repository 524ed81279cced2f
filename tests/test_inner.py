"""Mamba between its projections as one function: emulated on a CPU against the loops in float64 and against the same in steps; on a GPU where there is one."""
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fused_cases import HERE
from project import interpreted
from test_scan_cuda import BF16, FP32, emulator, folder, gpu, output_and_gradients, same_bytes  # noqa: F401

from iclrepro import fused
from iclrepro.blocks import Mamba
from iclrepro.prompts import Draws
from iclrepro.scan import conv_loop, scan_loop
from iclrepro.scan_cuda import conv_cuda, scan_cuda


def inputs(batch, length, channels, rank, dtype=FP32, members=(), device="cpu"):
    "Arguments of mamba_inner by name; what a Mamba block multiplies with is in the activations' dtype, the rest in float32."
    draw = lambda number, *shape: Draws(2, 10 * length + number, device=device).normal(*members, *shape)
    return {"xz": draw(0, batch, length, 2 * channels).to(dtype), "conv_weight": draw(1, channels, 4) / 2, "conv_bias": draw(2, channels), "x_weight": (draw(3, rank + 32, channels) / channels**0.5).to(dtype),
            "dt_weight": (draw(4, channels, rank) / 2).to(dtype), "dt_bias": draw(5, channels) - 2, "A": -draw(6, channels, 16).exp(), "D": draw(7, channels)}


def in_steps(conv, scan):
    def inner(xz, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D):
        x, z = xz.chunk(2, -1)
        u = conv(x, conv_weight, conv_bias)
        dt, B, C = F.linear(u, x_weight).split([dt_weight.shape[1], 16, 16], -1)
        return scan(u, F.linear(dt, dt_weight), A, B, C, D, z, dt_bias)
    return inner


exactly, separately = in_steps(conv_loop, scan_loop), in_steps(conv_cuda, scan_cuda)


def errors(function, tensors):
    exact = output_and_gradients(exactly, {name: x.double() for name, x in tensors.items()})
    return {name: ((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-6)).item() for name, a, b in zip(["y", *tensors], output_and_gradients(function, tensors), exact, strict=True)}


SHAPES = [(3, 1, 32, 2), (2, 2, 64, 8), (1, 31, 96, 6), (2, 82, 128, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_loops(emulator, shape):
    found = errors(fused.mamba_inner, inputs(*shape))
    assert all(error < 2e-5 for error in found.values()), found
    assert [name for name, *_ in emulator.launched] == ["conv_forward", "scan_forward", "scan_backward", "scan_sums", "conv_backward", "conv_sums"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_bfloat16_it_is_as_exact_as_in_steps(emulator, shape):
    tensors = inputs(*shape, BF16)
    ours, theirs = errors(fused.mamba_inner, tensors), errors(separately, tensors)
    assert all(ours[name] < 1.2 * theirs[name] + 2e-3 and ours[name] < 5e-2 for name in ours), (ours, theirs)
    assert [x.dtype for x in output_and_gradients(fused.mamba_inner, tensors)[1:]] == [x.dtype for x in tensors.values()]


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_members_are_the_same_members_alone(emulator, dtype):
    tensors = inputs(2, 9, 32, 8, dtype, members=(3,))
    together = output_and_gradients(torch.vmap(fused.mamba_inner), tensors)
    weights = torch.cos(torch.arange(together[0].numel())).view_as(together[0]).to(dtype)
    for m in range(3):
        leaves = [x[m].clone().requires_grad_() for x in tensors.values()]
        alone = fused.mamba_inner(*leaves)
        for a, b in zip(together, [alone.detach(), *torch.autograd.grad(alone, leaves, weights[m])], strict=True):
            assert (a[m] - b).abs().max() <= (1e-6 if dtype == FP32 else 1e-2) * b.abs().max()


def test_autocast_changes_nothing(emulator):
    "Products inside keep the precision of what goes in, which is how the kernels read them."
    tensors = inputs(2, 9, 64, 8)
    expected = output_and_gradients(fused.mamba_inner, tensors)
    with torch.autocast("cpu", torch.bfloat16): found = output_and_gradients(fused.mamba_inner, tensors)
    assert same_bytes(found, expected)


def test_without_a_way_back_nothing_is_kept(emulator, monkeypatch):
    tensors, kept, forward = inputs(2, 9, 32, 8), [], fused._scan_forward
    monkeypatch.setattr(fused, "_scan_forward", lambda *arguments: kept.append(forward(*arguments)) or kept[-1])
    with torch.no_grad(): y = fused.mamba_inner(*tensors.values())
    assert same_bytes([y], output_and_gradients(fused.mamba_inner, tensors)[:1])
    assert [(ungated.numel(), states.numel()) for _, ungated, states in kept] == [(0, 0), (2 * 9 * 32, 2 * 3 * 32 * 16)]
    with pytest.raises(RuntimeError, match="first derivatives only"): torch.autograd.grad(fused.mamba_inner(*(x.requires_grad_() for x in tensors.values())).sum(), tensors["xz"], create_graph=True)


@pytest.mark.parametrize("names", [("conv_weight", "conv_bias", "dt_bias", "A", "D"), ("x_weight", "dt_weight")], ids=" ".join)
def test_weights_of_another_precision_are_read_in_the_one_they_must_have(emulator, names):
    "What kernels read as vectors, in float32; what is multiplied with activations, in theirs. Gradients come back as the weights came."
    right = inputs(2, 9, 64, 8, BF16)
    right |= {name: right[name].bfloat16().float() for name in names if right[name].dtype == FP32}
    other = right | {name: right[name].to(FP32 if right[name].dtype == BF16 else BF16) for name in names}
    ours, same = (output_and_gradients(fused.mamba_inner, tensors) for tensors in (other, right))
    assert [x.dtype for x in ours[1:]] == [x.dtype for x in other.values()]
    assert all(torch.equal(x, y.to(x.dtype)) for x, y in zip(ours, same, strict=True))


@pytest.mark.parametrize(("d_model", "sizes", "used"), [(16, {}, True), (16, {"d_state": 8}, False), (16, {"d_conv": 3}, False), (12, {}, False)], ids=str)
def test_an_equipped_block_uses_it_where_it_can(emulator, monkeypatch, d_model, sizes, used):
    monkeypatch.setattr(fused, "BACKENDS", HERE)
    block, x = Mamba(d_model, **sizes), Draws(0).normal(2, 7, d_model)
    block.reset(Draws(1), "mamba", 1)
    leaves, expected = [x.requires_grad_(), *(parameter for name, parameter in block.named_parameters() if not name.startswith("norm"))], block.mix(x)
    fused.equip(SimpleNamespace(blocks=[block], norm=torch.nn.Identity()))
    found = block.mix(x)
    assert bool(emulator.launched) == used
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected))): assert (a - b).abs().max() < 1e-5 * b.abs().max()


def test_a_block_with_a_mix_of_its_own_keeps_it():
    class Own(Mamba):
        def mix(self, x, draws=None): return x

    block, x = Own(16), Draws(0).normal(2, 7, 16)
    assert fused.equip(SimpleNamespace(blocks=[block], norm=torch.nn.Identity())) == set() and block.mix(x) is x


@pytest.mark.skipif(not find_spec("triton"), reason="needs Triton, whose interpreter runs GPU kernels on a CPU")
def test_whole_models_say_and_learn_what_they_do_without_it(folder):
    printed = interpreted(f"import pathlib, fused_cases; fused_cases.run_inner(pathlib.Path({str(folder)!r}))")
    assert printed.splitlines() == ["equipped mambaformer", "stacked mamba"]


@gpu
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("shape", [(64, 82, 512, 16), (64, 201, 512, 16), (3, 5, 96, 6)], ids=str)
def test_on_a_gpu_it_is_the_loops(shape, dtype):
    tensors = inputs(*shape, dtype, device="cuda")
    ours, theirs = errors(fused.mamba_inner, tensors), errors(separately, tensors)
    assert all(ours[name] < 1.2 * theirs[name] + (2e-3 if dtype == BF16 else 2e-5) for name in ours), (ours, theirs)
    assert same_bytes(output_and_gradients(fused.mamba_inner, tensors), output_and_gradients(fused.mamba_inner, tensors))
