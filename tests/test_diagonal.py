"""The diagonal state space's CUDA kernels, compiled for the CPU, against the loop in float64."""
import os

import emulator
import pytest
import torch

from iclrepro import diagonal_cuda as diagonal
from iclrepro.blocks import s4d_loop

pytestmark = pytest.mark.skipif(not emulator.COMPILER and not os.environ.get("CI"), reason="needs a C++ compiler (g++ or clang++)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("kernels")


@pytest.fixture(params=[(False, 0.0), (True, 0.0)], ids=["forwards", "backwards"])
def emulated(request, folder, monkeypatch):
    "The threads of a block run in either order."
    machine = emulator.Emulator(folder, backwards=request.param[0])
    monkeypatch.setattr(diagonal, "launch", machine.launch)
    return machine


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
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(tensors[0].dtype).double()
    return [out.detach(), *torch.autograd.grad((out.double() * weights).sum(), leaves)]


def assert_same(ours, exact, tolerance):
    for a, b in zip(ours, exact, strict=True):
        assert torch.isfinite(a).all() and (a.double() - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("shape", [(2, 1, 6, 4), (2, 5, 3, 4), (3, 17, 35, 8), (2, 8, 64, 8), (2, 9, 5, 32), (2, 12, 3, 3), (1, 70, 4, 16)], ids=str)
def test_the_kernels_are_the_loop(emulated, shape):
    tensors = inputs(*shape)
    assert_same(found(diagonal.diagonal_cuda, tensors), found(loop, [x.double() for x in tensors]), 2e-5)
    assert {name for name, *_ in emulated.launched} == {"diagonal_prepare", "diagonal_forward", "diagonal_backward", "diagonal_prepare_backward"}


def test_bfloat16_in_and_out(emulated):
    tensors = inputs(2, 19, 8, 8, torch.bfloat16)
    ours = found(diagonal.diagonal_cuda, tensors)
    assert ours[0].dtype == ours[1].dtype == torch.bfloat16 and all(x.dtype == torch.float32 for x in ours[2:])
    exact = found(loop, [x.double() for x in tensors])
    assert_same(ours[:2], exact[:2], 1e-2)
    assert_same(ours[2:], exact[2:], 1e-2)


def test_members_share_a_launch(emulated):
    tensors = inputs(2, 11, 6, 4, members=(3,))
    ours, each = found(torch.vmap(diagonal.diagonal_cuda), tensors), found(torch.vmap(loop), [x.double() for x in tensors])
    assert_same(ours, each, 2e-5)
    assert len(emulated.launched) == 4


def test_a_half_of_a_wider_tensor_is_read_in_place(emulated):
    u, *rest = inputs(2, 9, 8, 4)
    wide = torch.full((2, 9, 16), torch.nan)
    wide[..., 8:] = u
    assert torch.equal(diagonal.diagonal_cuda(wide[..., 8:], *rest), diagonal.diagonal_cuda(u, *rest))


def test_the_definition_is_that_of_the_block():
    u, log_dt, A_log, A_imag, C, D = (x.double() for x in inputs(2, 9, 3, 4))
    A = torch.complex(-A_log.exp(), A_imag)
    w = (log_dt.exp()[:, None] * A).exp()
    c = 2 * torch.view_as_complex(C) * (w - 1) / A
    torch.testing.assert_close(diagonal.diagonal_loop(u, torch.view_as_real(w), torch.view_as_real(c), D), loop(u, log_dt, A_log, A_imag, C, D))
