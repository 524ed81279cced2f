"""The fading average's kernels against its loop in float64: on a CPU, and the CUDA kernels compiled for the CPU."""
import os

import emulator
import pytest
import torch
from test_scan import gradients_of_the_unheard

from iclrepro import wkv as module
from iclrepro import wkv_cuda as cuda
from iclrepro import wkv_numba as numba
from iclrepro.prompts import Draws
from iclrepro.wkv import BACKENDS, squared_relu, squared_relu_torch, token_shift, token_shift_torch, wkv, wkv_errors, wkv_loop
from iclrepro.wkv_numba import wkv_numba

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
    assert {name for name, error in errors.items() if not error <= tolerance} <= vanishes(length)  # NaN is not small


@pytest.fixture(params=["numba", "cuda", "cuda backwards"])
def around(request, folder, monkeypatch):
    "Token shift and squared ReLU of a backend."
    if request.param == "numba": return numba.token_shift_numba, numba.squared_relu_numba
    emulate(folder, monkeypatch, request.param == "cuda backwards")
    return cuda.token_shift_cuda, cuda.squared_relu_cuda


def shift_loop(x, mu):
    "Token by token, kind by kind."
    nothing = torch.zeros_like(x[:, 0])
    return tuple(torch.stack([share * x[:, t] + (1 - share) * (x[:, t - 1] if t else nothing) for t in range(x.shape[1])], 1) for share in mu)


def found(function, leaves, dtype):
    "Outputs and gradients of differently weighted sums of them."
    leaves = [x.detach().to(dtype).requires_grad_() for x in leaves]
    outs = function(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    total = sum((out.double() * torch.cos(i + torch.arange(out.numel(), dtype=torch.float64)).view_as(out)).sum() for i, out in enumerate(outs))
    return [out.detach() for out in outs] + list(torch.autograd.grad(total, leaves))


def assert_near(ours, exact, tolerance=2e-6):
    for a, b in zip(ours, exact, strict=True): assert a.shape == b.shape and (a.double() - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("kinds", [1, 2, 3])
@pytest.mark.parametrize("batch, length, channels", [(2, 1, 6), (3, 17, 35), (2, 16, 64), (1, 70, 4), (5, 33, 1)])
def test_token_shift_is_its_loop(around, batch, length, channels, kinds):
    draws = Draws(length)
    leaves = draws.normal(batch, length, channels), draws.normal(kinds, channels)  # not only between 0 and 1: nothing holds a trained mu there
    exact = found(shift_loop, leaves, torch.float64)
    assert_near(found(around[0], leaves, torch.float32), exact)
    assert_near(found(token_shift_torch, leaves, torch.float32), exact)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (2, 2049), (4, 33, 64)])
def test_squared_relu_is_its_definition(around, shape):
    x = Draws(2).normal(*shape)
    exact = found(lambda x: torch.where(x > 0, x * x, 0 * x), [x + 0.5], torch.float64)
    assert_near(found(around[1], [x + 0.5], torch.float32), exact)
    assert_near(found(squared_relu_torch, [x + 0.5], torch.float32), exact)


def test_members_strides_nan_and_nothing(around):
    shift, square = around
    draws = Draws(4)
    x, mu = draws.normal(3, 2, 9, 6), draws.normal(3, 2, 6)
    mapped = found(lambda x, mu: tuple(torch.vmap(shift)(x, mu)), (x, mu), torch.float32)
    assert_near(mapped, found(lambda x, mu: tuple(torch.vmap(shift_loop)(x, mu)), (x, mu), torch.float64))
    for together, alone in zip(mapped[:2], zip(*(shift(*member) for member in zip(x, mu)))): assert torch.equal(together, torch.stack(alone))
    assert torch.equal(torch.vmap(square)(x), torch.stack([square(member) for member in x]))
    wide, turned = torch.full((2, 9, 13), torch.nan), x[0].transpose(0, 1).contiguous().transpose(0, 1)
    wide[..., 7:] = x[0]
    for same in (wide[..., 7:], turned):
        assert torch.equal(square(same), square(x[0])) and all(torch.equal(a, b) for a, b in zip(shift(same, mu[0]), shift(x[0], mu[0])))
    broken = x[0].clone()
    broken[1, 3, 2] = torch.nan
    assert square(broken).isnan().sum() == 1 and shift(broken, mu[0])[0].isnan().nonzero().tolist() == [[1, 3, 2], [1, 4, 2]]
    assert square(x[0][:0]).shape == (0, 9, 6) and shift(x[0][:0], mu[0])[1].shape == (0, 9, 6)
    for call, leaves in ((lambda x, mu: shift(x, mu)[0], (x[0], mu[0])), (square, (x[0],))):
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        with pytest.raises(RuntimeError, match="first derivatives only: use .*the function that ends in _torch"): torch.autograd.grad(call(*leaves).sum(), leaves, create_graph=True)


def test_what_stands_around_the_average_in_bfloat16(emulated):
    draws = Draws(4)
    x, mu = draws.normal(2, 19, 8).bfloat16(), draws.uniform(2, 8)
    leaves = [x.requires_grad_(), mu.requires_grad_()]
    for shift in (cuda.token_shift_cuda, token_shift_torch):
        outs = shift(*leaves)
        gradients = torch.autograd.grad(sum(out.float().square().sum() for out in outs), leaves)
        assert [t.dtype for t in (*outs, *gradients)] == [torch.bfloat16] * 3 + [torch.float32]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        true = shift_loop(*exact)
        assert_near([*outs, *gradients], [*true, *torch.autograd.grad(sum(out.square().sum() for out in true), exact)], 1e-2)
    assert cuda.squared_relu_cuda(x).dtype == torch.bfloat16
    assert_near([cuda.squared_relu_cuda(x)], [squared_relu_torch(x.double())], 1e-2)


def test_the_dispatch_of_what_stands_around_the_average():
    x, mu = Draws(1).normal(2, 5, 3), Draws(2).uniform(3, 3)
    assert torch.equal(squared_relu(x), numba.squared_relu_numba(x)) and squared_relu(x.double()).dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(token_shift(x, mu), numba.token_shift_numba(x, mu))) and token_shift(x.double(), mu.double())[0].dtype == torch.float64
    for given, message in (((x, mu[:, :2]), r"mu has shape \(3, 2\)"), ((x[0], mu), r"x has shape \(5, 3\)"), ((x, torch.ones(4, 3)), "at most 3 kinds"), ((x, mu.double()), "mu is torch.float64")):
        with pytest.raises(ValueError, match=message): token_shift(*given)


def test_squared_relu_of_vectors_and_of_nothing(around):
    for x in (torch.tensor([-1.0, 2.0, 3.0]), torch.zeros(0), torch.zeros(2, 0)):
        leaf = x.clone().requires_grad_()
        y = around[1](leaf)
        assert torch.equal(y, squared_relu_torch(x)) and torch.equal(torch.autograd.grad(y.sum(), leaf)[0], 2 * x.relu())
    x = Draws(3).normal(3, 5)
    assert torch.equal(torch.vmap(around[1])(x), squared_relu_torch(x))
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(ValueError, match=r"x has shape \(\): expected \(batch, ...\)"): squared_relu(torch.tensor(1.0, dtype=dtype))


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


def test_an_output_without_a_gradient_has_none_to_pass_on(kernel):
    assert not any(g is not None for g in gradients_of_the_unheard(kernel, inputs(1, 5, 3)))


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


@pytest.mark.parametrize("backend, dtype, advice", [("numba", torch.float64, "(usable here: torch, loop, or auto)"), ("auto", torch.float16, "(convert the tensors first)"), ("torch", torch.float16, "(convert the tensors first)")])
def test_a_refusal_advises_what_helps(backend, dtype, advice):
    with pytest.raises(ValueError) as refused: wkv(**{name: x.to(dtype) for name, x in inputs(2, 9, 6).items()}, backend=backend)
    assert str(refused.value).endswith(advice)


def test_numba_refuses_what_it_cannot_compute():
    tensors = {name: x.double() for name, x in inputs(2, 9, 6).items()}
    with pytest.raises(ValueError, match="backend 'numba' takes torch.float32"): wkv(**tensors, backend="numba")
