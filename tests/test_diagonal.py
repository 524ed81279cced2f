"""The diagonal state space's CUDA kernels, compiled for the CPU, against the loop in float64."""
import os

import emulator
import pytest
import torch
from diagonal_cases import assert_same, found, inputs, loop
from test_scan import gradients_of_the_unheard

from iclrepro import diagonal_cuda as diagonal, kernels

pytestmark = pytest.mark.skipif(not emulator.COMPILER and not os.environ.get("CI"), reason="needs a C++ compiler (g++ or clang++)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("kernels")


@pytest.fixture(params=[(False, 0.0), (True, 0.0)], ids=["forwards", "backwards"])
def emulated(request, folder, monkeypatch):
    "The threads of a block run in either order."
    machine = emulator.Emulator(folder, backwards=request.param[0])
    monkeypatch.setattr(diagonal, "launch", machine.launch)
    return machine


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
    assert_same(ours[2:], exact[2:], 2e-5)


@pytest.mark.parametrize("function", ["diagonal_cuda", "state_space_cuda"])
def test_parameters_of_another_precision_are_read_as_float32(emulated, function):
    u, *parameters = (x.bfloat16() for x in inputs(2, 11, 6, 4))
    ours = found(getattr(diagonal, function), [u, *parameters])
    same = found(getattr(diagonal, function), [u, *(x.float() for x in parameters)])
    assert all(x.dtype == torch.bfloat16 for x in ours) and all(torch.equal(x, y.bfloat16()) for x, y in zip(ours, same))


def test_a_kernel_of_another_precision_is_read_as_float32(emulated):
    draw = torch.Generator().manual_seed(3)
    u, kernel = (torch.randn(*shape, generator=draw).bfloat16() for shape in ((2, 11, 6), (11, 6)))
    ours, same = found(diagonal.convolve_cuda, [u, kernel]), found(diagonal.convolve_cuda, [u, kernel.float()])
    assert all(x.dtype == torch.bfloat16 for x in ours) and all(torch.equal(x, y.bfloat16()) for x, y in zip(ours, same))


def test_tensors_of_a_kernel_are_on_one_device():
    with pytest.raises(ValueError, match="on one device, not on cpu, meta"): kernels.shared_device([torch.empty(1), None, torch.empty(1, device="meta")])
    with pytest.raises(ValueError, match="not on none"): kernels.shared_device([None])


@pytest.mark.parametrize("function, launches", [("diagonal_cuda", 4), ("state_space_cuda", 7)])
def test_members_share_a_launch(emulated, function, launches):
    tensors = inputs(9, 11, 6, 4, members=(3,))
    ours, each = found(torch.vmap(getattr(diagonal, function)), tensors), found(torch.vmap(loop), [x.double() for x in tensors])
    assert_same(ours, each, 2e-5)
    assert len(emulated.launched) == launches


@pytest.mark.parametrize("function", ["diagonal_cuda", "state_space_cuda"])
def test_a_half_of_a_wider_tensor_is_read_in_place(emulated, function):
    u, *rest = inputs(2, 9, 8, 4)
    wide = torch.full((2, 9, 16), torch.nan)
    wide[..., 8:] = u
    assert torch.equal(getattr(diagonal, function)(wide[..., 8:], *rest), getattr(diagonal, function)(u, *rest))
    strided, plain = (diagonal._walked(x) for x in (wide[..., 8:], wide[..., 8:].mT))
    assert strided[0].data_ptr() == wide[..., 8:].data_ptr() and strided[1] == 16 and plain[0].is_contiguous()


@pytest.mark.parametrize("length", [4, 40])
def test_an_output_without_a_gradient_has_none_to_pass_on(emulated, length):
    named = dict(zip(("u", "log_dt", "A_log", "A_imag", "C", "D"), inputs(2, length, 3, 4)))
    assert not any(g is not None and g.any() for g in gradients_of_the_unheard(diagonal.state_space_cuda, named))


@pytest.mark.parametrize("function", ["diagonal_cuda", "state_space_cuda"])
@pytest.mark.parametrize("length", [4, 40])
@pytest.mark.parametrize("changes, message", [
    ({"A_log": torch.zeros(3, 5)}, r"A_imag has shape \(3, 4\): expected \(channels = 3, pairs = 5\)"), ({"C": torch.zeros(3, 4, 3)}, r"C has shape \(3, 4, 3\): expected .* at most 128 pairs"),
    ({"D": torch.zeros(2)}, r"D has shape \(2,\): expected \(channels = 3\)"), ({"u": torch.zeros(2, 0, 3)}, "only batch may be 0"),
    ({"D": torch.zeros(3, device="meta")}, "D is torch.float32 on meta but u is torch.float32 on cpu"), ({"u": torch.zeros(2, 4, 4)}, r"log_dt has shape \(3,\)")])
def test_bad_input_is_refused(emulated, function, length, changes, message):
    named = dict(zip(("u", "log_dt", "A_log", "A_imag", "C", "D"), inputs(2, length, 3, 4)))
    with pytest.raises(ValueError, match=message): getattr(diagonal, function)(**{**named, **changes})


@pytest.mark.parametrize("function", ["diagonal_cuda", "state_space_cuda"])
def test_as_many_pairs_as_a_warp_holds_and_not_one_more(emulated, function):
    tensors = inputs(1, 5, 2, 128)
    assert_same([getattr(diagonal, function)(*tensors)], [loop(*(x.double() for x in tensors))], 2e-5)
    with pytest.raises(ValueError, match=r"C has shape \(2, 129, 2\): expected \(channels, pairs, 2\) with at most 128 pairs"): getattr(diagonal, function)(*inputs(1, 5, 2, 129))


def test_a_kernel_of_other_channels_is_refused(emulated):
    with pytest.raises(ValueError, match=r"kernel has shape \(5, 4\): expected \(lags, channels = 3\)"): diagonal.convolve_cuda(torch.zeros(2, 5, 3), torch.zeros(5, 4))


def test_a_shorter_kernel_has_zeros_behind_it(emulated):
    u, kernel = inputs(2, 11, 3, 4)[0], inputs(1, 6, 3, 4)[0][0]
    assert torch.equal(diagonal.convolve_cuda(u, kernel), diagonal.convolve_cuda(u, torch.cat((kernel, torch.zeros(5, 3)))))


def test_the_definition_is_that_of_the_block():
    u, log_dt, A_log, A_imag, C, D = (x.double() for x in inputs(2, 9, 3, 4))
    A = torch.complex(-A_log.exp(), A_imag)
    w = (log_dt.exp()[:, None] * A).exp()
    c = 2 * torch.view_as_complex(C) * (w - 1) / A
    torch.testing.assert_close(diagonal.diagonal_loop(u, torch.view_as_real(w), torch.view_as_real(c), D), loop(u, log_dt, A_log, A_imag, C, D))


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 5, 35), (3, 8, 64), (9, 17, 6), (2, 70, 33)], ids=str)
def test_the_convolution_is_the_sum(emulated, shape):
    batch, length, channels = shape
    draw = torch.Generator().manual_seed(length)
    u, kernel = torch.randn(batch, length, channels, generator=draw), torch.randn(length, channels, generator=draw)
    plain = lambda u, kernel: torch.stack([sum(kernel[t - s] * u[:, s] for s in range(t + 1)) for t in range(length)], 1)
    assert_same(found(diagonal.convolve_cuda, [u, kernel]), found(plain, [u.double(), kernel.double()]), 1e-5)
    assert [name for name, *_ in emulated.launched] == ["convolve_forward", "convolve_back", "convolve_kernel"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_short_sequences_are_convolved_and_long_ones_walked(emulated, dtype):
    for length, names in ((16, {"convolve_forward", "convolve_back", "convolve_kernel"}), (17, set())):
        emulated.launched.clear()
        tensors = inputs(11, length, 5, 4, dtype)
        ours = found(diagonal.state_space_cuda, tensors)
        assert ours[0].dtype == ours[1].dtype == dtype and all(x.dtype == torch.float32 for x in ours[2:])
        exact = found(loop, [x.double() for x in tensors])
        assert_same(ours[:2], exact[:2], 2e-5 if dtype == torch.float32 else 1e-2)
        assert_same(ours[2:], exact[2:], 2e-5)
        assert {name for name, *_ in emulated.launched if name.startswith("convolve")} == names
