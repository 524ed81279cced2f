"""The fading average's kernels against its loop in float64: on a CPU, and the CUDA kernels compiled for the CPU."""
import os

import emulator
import pytest
import torch

from iclrepro import wkv as module
from iclrepro import wkv_cuda as cuda
from iclrepro.prompts import Draws
from iclrepro.wkv import BACKENDS, wkv, wkv_errors, wkv_loop
from iclrepro.wkv_numba import wkv_numba

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = pytest.mark.parametrize("batch, length, channels", [(2, 1, 6), (1, 2, 3), (2, 5, 3), (3, 17, 35), (2, 8, 64), (2, 16, 33), (1, 70, 4), (5, 33, 1)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("kernels")


def emulate(folder, monkeypatch, backwards):
    if not emulator.COMPILER and not os.environ.get("CI"): pytest.skip("needs a C++ compiler (g++ or clang++)")
    machine = emulator.Emulator(folder, backwards=backwards)
    monkeypatch.setattr(cuda, "launch", machine.launch)
    return machine


@pytest.fixture
def emulated(folder, monkeypatch): return emulate(folder, monkeypatch, False)


@pytest.fixture(params=["numba", "cuda", "cuda backwards"])
def kernel(request, folder, monkeypatch):
    "The threads of a block run in either order."
    if request.param == "numba": return wkv_numba
    emulate(folder, monkeypatch, request.param == "cuda backwards")
    return cuda.wkv_cuda


def inputs(batch, length, channels, scale=1.0, rates=(-5.0, 3.0), members=()):
    draws = Draws(3, step=length)
    normal = lambda *shape: draws.normal(*members, *shape)
    decay = torch.linspace(*rates, channels) + 0.1 * normal(channels)
    return {"k": scale * normal(batch, length, channels), "v": normal(batch, length, channels), "decay": decay, "bonus": scale * normal(channels)}


def vanishes(length):
    "A single token is its own mean; the past enters from the second token on, and has faded from the third."
    return {1: {"k", "decay", "bonus"}, 2: {"decay"}}.get(length, set())


def assert_small(errors, tolerance, length=9):
    assert {name for name, error in errors.items() if error > tolerance} <= vanishes(length)


@SHAPES
def test_a_kernel_is_the_loop(kernel, batch, length, channels):
    tensors = inputs(batch, length, channels)
    assert_small(wkv_errors(kernel, tensors), 1e-5, length)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    gradients = dict(zip(leaves, torch.autograd.grad(kernel(**leaves).sum(), list(leaves.values()))))
    assert all(gradients[name].abs().max() < 1e-5 for name in vanishes(length))


@pytest.mark.parametrize("scale, rates, length", [(30, (-20, 3), 90), (300, (-5, 3), 90), (10, (-8, -4), 600), (1, (2, 9), 40), (1, (-20, -15), 600)])
def test_large_keys_and_all_rates_of_forgetting(kernel, scale, rates, length):
    "Keys up to a thousand, rates from never forgetting to forgetting at once; along a long sequence errors do not add up."
    tensors = inputs(2, length, 8, scale, rates)
    assert_small(wkv_errors(kernel, tensors), 1e-5 if scale < 100 else 2e-5)


def test_keys_beyond_the_range_of_exponentials(kernel):
    "Float32 holds e^88: keys of thousands, a rate of e^10, and a key so large that it outlives everything else."
    tensors = inputs(2, 50, 4, 3000.0, (-10.0, 10.0))
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    y = kernel(**leaves)
    assert y.isfinite().all() and all(g.isfinite().all() for g in torch.autograd.grad(y.square().sum(), list(leaves.values())))
    assert y.abs().max() <= tensors["v"].abs().max() * (1 + 1e-5)
    k, v = torch.zeros(1, 9, 1), torch.arange(9.0)[None, :, None]
    k[0, 3] = 500
    y = kernel(k, v, torch.tensor([-1.0]), torch.zeros(1))
    assert torch.allclose(y[0, 4:, 0], torch.tensor(3.0)) and torch.allclose(y[0, :3], wkv_loop(k, v, torch.tensor([-1.0]), torch.zeros(1))[0, :3])


def test_no_token_sees_the_future_and_a_nan_stays_in_its_channel(kernel):
    tensors = inputs(2, 21, 5)
    whole = kernel(**tensors)
    for length in (1, 7, 8, 20): assert torch.equal(kernel(**{name: x[:, :length] if x.ndim == 3 else x for name, x in tensors.items()}), whole[:, :length])
    for name in ("k", "v"):
        broken = {key: x.clone() for key, x in tensors.items()}
        broken[name][1, 9, 3] = torch.nan
        expected = torch.zeros(2, 21, 5, dtype=torch.bool)
        expected[1, 9:, 3] = True
        assert torch.equal(kernel(**broken).isnan(), expected)


def test_members_by_vmap_are_members_alone(kernel):
    tensors = inputs(2, 11, 6, members=(3,))
    for name in ("decay", "bonus"): assert tensors[name].shape == (3, 6)
    assert_small(members_errors(kernel, tensors), 1e-5)
    together = torch.vmap(kernel)(*tensors.values())
    for m in range(3): assert torch.equal(together[m], kernel(*(x[m] for x in tensors.values())))
    # parameters that all members share
    shared = torch.vmap(kernel, (0, 0, None, None))(tensors["k"], tensors["v"], tensors["decay"][0], tensors["bonus"][0])
    assert torch.equal(shared[1], kernel(tensors["k"][1], tensors["v"][1], tensors["decay"][0], tensors["bonus"][0]))


def members_errors(kernel, tensors):
    mapped = lambda function: lambda k, v, decay, bonus: torch.vmap(function)(k, v, decay, bonus)
    got, true = module.scan._values(mapped(kernel), tensors, None), module.scan._values(mapped(wkv_loop), tensors, torch.float64)
    return {name: float((got[name].double() - true[name]).abs().max() / true[name].abs().max()) for name in true}


def test_halves_of_a_wider_tensor_and_turned_tensors(kernel):
    tensors = inputs(2, 9, 6)
    wide = torch.full((2, 9, 15), torch.nan)
    wide[..., 1:7], wide[..., 9:] = tensors["k"], tensors["v"]
    expected = kernel(**tensors)
    assert torch.equal(kernel(wide[..., 1:7], wide[..., 9:], tensors["decay"], tensors["bonus"]), expected)
    turned = tensors["k"].transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(kernel(turned, tensors["v"].mT.contiguous().mT, tensors["decay"], tensors["bonus"]), expected)


def test_nothing_is_kept_without_gradients_and_an_empty_batch_is_one(kernel):
    tensors = inputs(2, 9, 6)
    with torch.no_grad(): assert torch.equal(kernel(**tensors), kernel(**{name: x.requires_grad_() for name, x in tensors.items()}).detach())
    assert kernel(tensors["k"][:0], tensors["v"][:0], tensors["decay"], tensors["bonus"]).shape == (0, 9, 6)


def test_second_derivatives_are_refused(kernel):
    leaves = [x.requires_grad_() for x in inputs(1, 5, 3).values()]
    with pytest.raises(RuntimeError, match="first derivatives only"): torch.autograd.grad(kernel(*leaves).sum(), leaves, create_graph=True)


def test_the_cuda_kernels_in_bfloat16(emulated):
    tensors = inputs(2, 19, 8) | {name: inputs(2, 19, 8)[name].bfloat16() for name in ("k", "v")}
    got = module.scan._values(cuda.wkv_cuda, tensors, None)
    assert got["output"].dtype == got["k"].dtype == torch.bfloat16 and got["decay"].dtype == torch.float32
    assert max(wkv_errors(cuda.wkv_cuda, tensors).values()) < 2e-2


def test_one_launch_each_way_whatever_the_members(emulated):
    torch.vmap(cuda.wkv_cuda)(*(x.requires_grad_() for x in inputs(2, 11, 6, members=(3,)).values())).sum().backward()
    assert [(name, blocks) for name, blocks, *_ in emulated.launched] == [("average_forward", 1), ("average_backward", 1)]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_byte(threads, monkeypatch):
    monkeypatch.setattr("iclrepro.scan_numba._WORTH_A_THREAD", 1)
    leaves = [x.requires_grad_() for x in inputs(5, 20, 16).values()]
    one = torch.autograd.grad(wkv_numba(*leaves).square().sum(), leaves)
    torch.set_num_threads(threads)
    try: several = torch.autograd.grad(wkv_numba(*leaves).square().sum(), leaves)
    finally: torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, several))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_auto_serves_every_dtype(dtype):
    tensors = {name: x.to(dtype) for name, x in inputs(2, 9, 6).items()}
    y = wkv(**tensors)
    assert y.dtype == dtype and torch.allclose(y.double(), wkv_loop(**{name: x.double() for name, x in tensors.items()}), atol=3e-2 if dtype == torch.bfloat16 else 1e-5)
    mixed = tensors | {name: tensors[name].float() for name in ("decay", "bonus")} if dtype == torch.bfloat16 else tensors
    for backend in ("torch", "loop"): assert torch.allclose(wkv(**mixed, backend=backend).double(), y.double(), atol=3e-2 if dtype == torch.bfloat16 else 1e-5)


def test_auto_takes_the_kernel():
    tensors = inputs(2, 9, 6)
    assert torch.equal(wkv(**tensors), wkv(**tensors, backend="numba")) and list(BACKENDS) == ["cuda", "numba", "torch", "loop"]


@pytest.mark.parametrize("changes, message", [
    ({"v": torch.zeros(2, 9, 5)}, r"v has shape \(2, 9, 5\)"), ({"decay": torch.zeros(5)}, r"decay has shape \(5,\)"), ({"k": torch.zeros(2, 9)}, r"k has shape \(2, 9\)"),
    ({"k": torch.zeros(2, 0, 6), "v": torch.zeros(2, 0, 6)}, "only batch may be 0"), ({"bonus": torch.zeros(6).double()}, "bonus is torch.float64"),
    ({"v": torch.zeros(2, 9, 6).bfloat16()}, "v is torch.bfloat16"), ({"backend": "cuda"}, "'cuda' runs on cuda, not on cpu"), ({"backend": "triton"}, "unknown backend 'triton'")])
def test_bad_input_is_refused(changes, message):
    with pytest.raises(ValueError, match=message): wkv(**{**inputs(2, 9, 6), **changes})


def test_numba_refuses_what_it_cannot_compute():
    tensors = {name: x.double() for name, x in inputs(2, 9, 6).items()}
    with pytest.raises(ValueError, match="backend 'numba' takes torch.float32"): wkv(**tensors, backend="numba")
