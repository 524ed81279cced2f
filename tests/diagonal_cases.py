"""Inputs of the diagonal state space, its definition, and a comparison with float64: test_diagonal.py runs the kernels on a CPU, test_cuda.py on a GPU."""
import torch

from iclrepro.blocks import s4d_loop


def inputs(batch, length, channels, pairs, dtype=torch.float32, members=()):
    "Steps from slow to fast; the states from hardly to strongly turned."
    draw = torch.Generator().manual_seed(length)
    normal = lambda *shape: torch.randn(*members, *shape, generator=draw)
    uniform = lambda *shape: torch.rand(*members, *shape, generator=draw)
    return [normal(batch, length, channels).to(dtype), uniform(channels) * 4.6 - 6.9, uniform(channels, pairs) - 1, uniform(channels, pairs) * 20, normal(channels, pairs, 2), normal(channels)]


def loop(u, log_dt, A_log, A_imag, C, D): return s4d_loop(u, log_dt, A_log, A_imag, C) + D * u


def found(f, tensors):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = f(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).bfloat16().double().to(out.device)  # exact in every dtype
    return [out.detach(), *torch.autograd.grad((out.double() * weights).sum(), leaves)]


def assert_same(ours, exact, tolerance):
    for a, b in zip(ours, exact, strict=True):
        assert torch.isfinite(a).all() and (a.double() - b).abs().max() <= tolerance * b.abs().max()
