"""The selective scan and the causal convolution: every backend against loops, in value, gradient, error and byte."""
import math
import os
import subprocess
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from iclrepro import scan, scan_numba
from iclrepro.prompts import Draws
from iclrepro.scan import BACKENDS, Backend, causal_conv1d, errors_against_loop, find_backend, selective_scan

HERE = [name for name, backend in BACKENDS.items() if not backend.refusal(torch.zeros(1))]
FAST = [name for name in HERE if name != "loop"]
LENGTHS = [1, 2, 3, 17, 82]


def scan_inputs(length, channels=7, states=5, batch=2, dtype=torch.float32, seed=0):
    "Arguments of selective_scan by name, with steps and decays as in a Mamba block."
    draws = Draws(seed, length)
    shapes = {"u": (batch, length, channels), "dt": (batch, length, channels), "A": (channels, states),
              "B": (batch, length, states), "C": (batch, length, states), "D": (channels,),
              "z": (batch, length, channels), "dt_bias": (channels,)}
    tensors = {name: draws.normal(*shape).to(dtype) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp() * torch.arange(1, states + 1)
    tensors["dt_bias"] = tensors["dt_bias"] - 2
    return tensors


def conv_inputs(length, channels=7, width=4, batch=2, dtype=torch.float32, seed=1):
    "Arguments of causal_conv1d by name."
    draws = Draws(seed, length)
    shapes = {"x": (batch, length, channels), "weight": (channels, width), "bias": (channels,)}
    return {name: draws.normal(*shape).to(dtype) for name, shape in shapes.items()}


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def worst(function, tensors, **options):
    return max(errors_against_loop(function, tensors, **options).values())


def output_and_gradients(function, tensors):
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    out = function(**leaves)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), list(leaves.values()))]


class Unheard(torch.autograd.Function):
    "Passes numbers on and, as a loss that does not depend on them would, no gradient back."
    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return x.clone()

    @staticmethod
    def backward(ctx, g): return None


def gradients_of_the_unheard(function, tensors):
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    return torch.autograd.grad(Unheard.apply(function(**leaves)).sum(), list(leaves.values()), allow_unused=True)


def same_bytes(first, second):
    return [a.numpy().tobytes() for a in first] == [b.numpy().tobytes() for b in second]


# The loops themselves, against arithmetic on single numbers

def scan_by_numbers(u, dt, A, B, C, D, z, dt_bias):
    out = np.zeros(u.shape)
    for b, d in np.ndindex(u.shape[0], u.shape[2]):
        memory = [0.0] * A.shape[1]
        for t in range(u.shape[1]):
            step = math.log1p(math.exp(dt[b, t, d] + dt_bias[d]))
            total = D[d] * u[b, t, d]
            for n in range(A.shape[1]):
                memory[n] = math.exp(step * A[d, n]) * memory[n] + step * B[b, t, n] * u[b, t, d]
                total += C[b, t, n] * memory[n]
            out[b, t, d] = total * z[b, t, d] / (1 + math.exp(-z[b, t, d]))
    return out


def conv_by_numbers(x, weight, bias):
    out = np.zeros(x.shape)
    for b, t, d in np.ndindex(x.shape):
        width = weight.shape[1]
        total = bias[d] + sum(weight[d, width - 1 - back] * x[b, t - back, d] for back in range(min(width, t + 1)))
        out[b, t, d] = total / (1 + math.exp(-total))
    return out


@pytest.mark.parametrize("length", LENGTHS)
def test_the_loops_are_the_equations(length):
    tensors = scan_inputs(length, dtype=torch.float64)
    expected = scan_by_numbers(*(tensor.numpy() for tensor in tensors.values()))
    np.testing.assert_allclose(scan.scan_loop(**tensors), expected, rtol=1e-11, atol=1e-13)
    tensors = conv_inputs(length, dtype=torch.float64)
    expected = conv_by_numbers(*(tensor.numpy() for tensor in tensors.values()))
    np.testing.assert_allclose(scan.conv_loop(**tensors), expected, rtol=1e-11, atol=1e-13)


def test_a_large_step_is_not_rounded_to_infinity():
    tensors = scan_inputs(4, dtype=torch.float64)
    tensors["dt"] = tensors["dt"] * 100
    expected = scan_by_numbers(*(tensor.numpy() for tensor in tensors.values()))
    for backend in FAST:
        got = selective_scan(**tensors if backend == "torch" else {k: v.float() for k, v in tensors.items()}, backend=backend)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("function", [scan.scan_loop, scan.scan_torch])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_scan_gradients_are_finite_differences(function, length):
    tensors = [tensor.requires_grad_() for tensor in scan_inputs(length, 3, 2, dtype=torch.float64).values()]
    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("function", [scan.conv_loop, scan.conv_torch])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_conv_gradients_are_finite_differences(function, length):
    tensors = [tensor.requires_grad_() for tensor in conv_inputs(length, 3, dtype=torch.float64).values()]
    assert torch.autograd.gradcheck(function, tensors)


# Every backend against the float64 loop

@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("channels", "states"), [(1, 1), (1, 16), (7, 5), (33, 1), (33, 16)])
def test_scan_is_the_loop(backend, length, channels, states):
    assert worst(partial(selective_scan, backend=backend), scan_inputs(length, channels, states)) < 1e-5


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")], ids=" ".join)
def test_scan_with_and_without_its_extras(backend, softplus, absent):
    tensors = without(scan_inputs(17), *absent)
    if not softplus: tensors["dt"] = tensors["dt"].exp() / 10
    if not softplus and "dt_bias" in tensors: tensors["dt_bias"] = tensors["dt_bias"].exp()
    assert worst(partial(selective_scan, backend=backend), tensors, softplus=softplus) < 1e-5


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("channels", "width"), [(1, 4), (7, 1), (33, 4), (33, 5)])
def test_conv_is_the_loop(backend, length, channels, width):
    assert worst(partial(causal_conv1d, backend=backend), conv_inputs(length, channels, width)) < 1e-5


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("absent", [(), ("bias",)], ids=" ".join)
def test_conv_with_and_without_its_extras(backend, silu, absent):
    assert worst(partial(causal_conv1d, backend=backend), without(conv_inputs(17), *absent), silu=silu) < 1e-5


def every_second(tensor): return tensor.repeat_interleave(2, -1)[..., ::2]
def transposed(tensor): return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor
def part_of_a_row(tensor): return torch.cat((tensor, tensor, tensor), -1).tensor_split(3, -1)[1]
def one_for_all(tensor): return tensor[:1].expand_as(tensor)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("layout", [every_second, transposed, part_of_a_row, one_for_all])
def test_inputs_need_not_be_contiguous(backend, layout):
    tensors = {name: layout(tensor) for name, tensor in scan_inputs(17).items()}
    assert not tensors["u"].is_contiguous() and not tensors["A"].is_contiguous()
    assert worst(partial(selective_scan, backend=backend), tensors) < 1e-5
    tensors = {name: layout(tensor) for name, tensor in conv_inputs(17).items()}
    assert worst(partial(causal_conv1d, backend=backend), tensors) < 1e-5


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("decay", ["strong", "weak"])
def test_scan_is_stable_over_2048_tokens(backend, decay):
    tensors = scan_inputs(2048, channels=3, states=2, batch=1)
    tensors["dt_bias"] += {"strong": 4.0, "weak": -4.0}[decay]
    tensors["A"][0] = {"strong": -60.0, "weak": -1e-4}[decay]
    assert worst(partial(selective_scan, backend=backend), tensors) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("length", LENGTHS)
def test_on_a_gpu_auto_is_the_loop(length):
    assert worst(selective_scan, {name: tensor.cuda() for name, tensor in scan_inputs(length).items()}) < 1e-5
    assert worst(causal_conv1d, {name: tensor.cuda() for name, tensor in conv_inputs(length).items()}) < 1e-5


@pytest.mark.parametrize("length", [15, 16, 17, 32, 33])
def test_the_numba_backward_at_the_borders_of_its_chunks(length):
    assert scan_numba.CHUNK == 16
    assert worst(scan_numba.scan_numba, scan_inputs(length)) < 1e-5


# The check can fail

def swapped(u, dt, A, B, C, **rest): return scan.scan_torch(u, dt, A, C, B, **rest)
def late(u, dt, A, B, C, **rest): return scan.scan_torch(u, dt, A, B, C.roll(1, 1), **rest)
def ungated(z, **rest): return scan.scan_torch(**rest) * z
def unskipped(D, **rest): return scan.scan_torch(**rest) + 0 * D
def biased_after(dt, dt_bias, **rest): return scan.scan_torch(dt=nn.functional.softplus(dt) + dt_bias, softplus=False, **rest)
def detached(A, **rest): return scan.scan_torch(A=A.detach(), **rest) + 0 * A.sum()


def test_nan_is_an_infinite_error():
    assert worst(lambda **tensors: scan.scan_torch(**tensors) * torch.nan, scan_inputs(3)) == math.inf


@pytest.mark.parametrize("wrong", [swapped, late, ungated, unskipped, biased_after, detached])
def test_a_wrong_scan_is_found(wrong):
    assert worst(wrong, scan_inputs(17)) > 1e-2


def mirrored(x, weight, bias): return scan.conv_torch(x, weight.flip(1), bias)
def acausal(x, weight, bias): return scan.conv_torch(x.flip(1), weight, bias).flip(1)


@pytest.mark.parametrize("wrong", [mirrored, acausal])
def test_a_wrong_convolution_is_found(wrong):
    assert worst(wrong, conv_inputs(17)) > 1e-2


# bfloat16 activations beside float32 parameters

@pytest.mark.parametrize("backend", ["torch", "loop"])
def test_bfloat16_goes_in_and_out_and_float32_computes(backend):
    halved = lambda tensors: {name: tensor if tensor.ndim < 3 else tensor.bfloat16() for name, tensor in tensors.items()}
    for function, tensors in ((selective_scan, halved(scan_inputs(82))), (causal_conv1d, halved(conv_inputs(82)))):
        assert [tensor.dtype for tensor in output_and_gradients(partial(function, backend=backend), tensors)] == [torch.bfloat16, *(t.dtype for t in tensors.values())]
        errors = errors_against_loop(partial(function, backend=backend), tensors)
        assert all(error < (5e-6 if name in tensors and tensors[name].ndim < 3 else 1e-2) for name, error in errors.items()), errors
    assert find_backend("auto", tensors["x"]) == "torch"


def test_parameters_may_be_wider_but_not_narrower():
    with pytest.raises(ValueError, match="A is torch.bfloat16 on cpu but u is torch.float32"):
        selective_scan(**{name: t.bfloat16() if name == "A" else t for name, t in scan_inputs(3).items()})
    with pytest.raises(ValueError, match="C is torch.float32 on cpu but u is torch.bfloat16"):
        selective_scan(**{name: t if name == "C" else t.bfloat16() for name, t in scan_inputs(3).items()})
    with pytest.raises(ValueError, match="weight is torch.float64 on cpu but x is torch.bfloat16"):
        causal_conv1d(torch.zeros(1, 2, 3).bfloat16(), torch.zeros(3, 4).double())


# Members through torch.vmap

def members_of(inputs, names, **options):
    "Three members' tensors, stacked where they are named, and their axes."
    each = [inputs(9, seed=seed, **options) for seed in range(3)]
    tensors = {name: torch.stack([member[name] for member in each]) if name in names else each[0][name] for name in each[0]}
    return tensors, [0 if name in names else None for name in tensors]


@pytest.mark.parametrize(("backend", "dtype"), [(b, d) for b in HERE for d in (torch.float32, torch.float64) if not BACKENDS[b].refusal(torch.zeros(1, dtype=d))])
@pytest.mark.parametrize("shared", [(), ("A", "D", "dt_bias", "weight", "bias"), ("u", "B", "z", "x"), ("dt", "C", "bias")], ids=" ".join)
def test_members_are_the_same_members_alone(backend, dtype, shared):
    for function, inputs in ((selective_scan, scan_inputs), (causal_conv1d, conv_inputs)):
        function = partial(function, backend=backend)
        tensors, axes = members_of(inputs, [name for name in inputs(9) if name not in shared], dtype=dtype)
        mapped, alone = ([tensor.clone().requires_grad_() for tensor in tensors.values()] for _ in range(2))
        outputs = [torch.vmap(function, in_dims=tuple(axes))(*mapped)]
        outputs.append(torch.stack([function(*(t if axis is None else t[m] for t, axis in zip(alone, axes))) for m in range(3)]))
        for out in outputs: (out * torch.cos(torch.arange(out.numel(), dtype=dtype)).view_as(out)).sum().backward()
        for a, b in zip((outputs[0].detach(), *(t.grad for t in mapped)), (outputs[1].detach(), *(t.grad for t in alone))):
            torch.testing.assert_close(a, b, rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=float(b.abs().max()) * (1e-6 if dtype == torch.float32 else 1e-14))


@pytest.mark.parametrize("backend", HERE)
def test_members_without_the_extras(backend):
    tensors, axes = members_of(scan_inputs, list(scan_inputs(9)))
    tensors = without(tensors, "D", "z", "dt_bias")
    out = torch.vmap(partial(selective_scan, backend=backend))(*tensors.values())
    alone = torch.stack([selective_scan(**{name: t[m] for name, t in tensors.items()}, backend=backend) for m in range(3)])
    torch.testing.assert_close(out, alone, rtol=1e-5, atol=1e-6)


# NaN, determinism, threads, autograd

def with_nan(tensors, name):
    tensors[name][(0, 5, 1)[:tensors[name].ndim] if tensors[name].ndim == 3 else 1] = torch.nan
    return tensors


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", scan_inputs(2))
def test_nan_goes_where_the_loop_lets_it_go(backend, name):
    tensors = with_nan(scan_inputs(17), name)
    expected = output_and_gradients(scan.scan_loop, tensors)
    got = output_and_gradients(partial(selective_scan, backend=backend), tensors)
    # The first token does not depend on A: only the loop multiplies its zero state by a decay.
    assert torch.equal(got[0][:, 1:].isnan(), expected[0][:, 1:].isnan())
    assert expected[0][:, 1:].isnan().any() and not expected[0][:, 1:].isnan().all()
    assert [bool(g.isnan().any()) for g in got] == [bool(g.isnan().any()) for g in expected]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", conv_inputs(2))
def test_nan_passes_the_convolution(backend, name):
    tensors = with_nan(conv_inputs(17), name)
    expected = output_and_gradients(scan.conv_loop, tensors)
    got = output_and_gradients(partial(causal_conv1d, backend=backend), tensors)
    # Before the sequence, torch multiplies a tap by a zero where the others skip it.
    assert torch.equal(got[0][:, 3:].isnan(), expected[0][:, 3:].isnan())
    assert expected[0][:, 3:].isnan().any() and not expected[0][:, 3:].isnan().all()
    assert [bool(g.isnan().any()) for g in got] == [bool(g.isnan().any()) for g in expected]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("function", "tensors"), [
    (scan_numba.scan_numba, scan_inputs(33, 33, batch=5)), (scan_numba.conv_numba, conv_inputs(33, 33, batch=5))])
def test_the_same_bytes_twice_and_with_any_number_of_threads(function, tensors, threads, monkeypatch):
    pools = []
    pool = scan_numba._pool
    monkeypatch.setattr(scan_numba, "_pool", lambda process, number: pools.append(number) or pool(process, number))
    monkeypatch.setattr(scan_numba, "_WORTH_A_THREAD", 1)
    threads(1)
    once = output_and_gradients(function, tensors)
    assert same_bytes(once, output_and_gradients(function, tensors)) and not pools
    for number in (2, 3):
        threads(number)
        assert same_bytes(once, output_and_gradients(function, tensors))
    assert pools == [2, 2, 3, 3]


def test_small_work_stays_on_one_thread(threads, monkeypatch):
    monkeypatch.setattr(scan_numba, "_pool", None)
    threads(2)
    output_and_gradients(scan_numba.scan_numba, scan_inputs(3))


def test_a_forked_process_makes_its_own_threads():
    code = """
import os, sys, torch
from iclrepro import scan_numba
scan_numba._WORTH_A_THREAD = 1
torch.set_num_threads(2)
u, B = torch.ones(2, 3, 4), torch.ones(2, 3, 5)
run = lambda: scan_numba.scan_numba(u, u, -torch.ones(4, 5), B, B).sum()
first = run()
child = os.fork()
if child == 0: os._exit(0 if run() == first else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_vector_lanes_of_kernels_that_came_from_the_cache_on_disk(tmp_path):
    code = """
import torch
from iclrepro import scan_numba
scan_numba.conv_numba(torch.ones(2, 9, 32), torch.ones(32, 4), torch.ones(32), True)
kernel = scan_numba._conv_forward
print(sum(kernel.stats.cache_hits.values()), scan_numba.vector_lanes(kernel))
"""
    said = [subprocess.run([sys.executable, "-c", code], env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}, timeout=120, check=True, capture_output=True, text=True).stdout.split() for _ in range(2)]
    assert [hits for hits, _ in said] == ["0", "1"] and said[0][1] == said[1][1] and int(said[0][1]) > 1


def test_vector_lanes_of_a_kernel_that_was_never_called():
    def never(x): return x
    with pytest.raises(ValueError, match="never has not been compiled in this process: call it first"): scan_numba.vector_lanes(scan_numba._jit(never))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        tensors = scan_inputs(2)
        self.A, self.D = nn.Parameter(tensors["A"]), nn.Parameter(tensors["D"])

    def forward(self, u, dt, B, C, backend):
        once = selective_scan(u, dt, self.A, B, C, self.D, backend=backend)
        return selective_scan(once, dt, self.A, B, C, self.D, backend=backend)


def test_used_twice_in_one_graph_and_called_with_other_parameters():
    tensors, layer = scan_inputs(17), Layer()
    inputs = [tensors[name] for name in ("u", "dt", "B", "C")]
    for scale in (1.0, 0.5):
        gradients = {}
        for backend in ("numba", "loop"):
            parameters = {name: (scale * p).detach().requires_grad_() for name, p in layer.named_parameters()}
            out = torch.func.functional_call(layer, parameters, (*inputs, backend))
            gradients[backend] = [out.detach(), *torch.autograd.grad(out.square().sum(), list(parameters.values()))]
        for got, expected in zip(gradients["numba"], gradients["loop"]):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("wanted", [("u",), ("A", "dt_bias"), ("z",), ("B", "C", "D")])
def test_inputs_that_need_no_gradient(wanted):
    full = dict(zip(scan_inputs(17), output_and_gradients(scan_numba.scan_numba, scan_inputs(17))[1:]))
    tensors = {name: tensor.requires_grad_(name in wanted) for name, tensor in scan_inputs(17).items()}
    out = scan_numba.scan_numba(**tensors)
    assert same_bytes(torch.autograd.grad(out.square().sum(), [tensors[n] for n in wanted]), [full[n] for n in wanted])


def test_without_autograd_no_states_are_kept(monkeypatch):
    kept = []
    over_batch = scan_numba._over_batch
    def spy(kernel, batch, work, *arguments):
        kept.append(arguments[-1].size)
        over_batch(kernel, batch, work, *arguments)
    monkeypatch.setattr(scan_numba, "_over_batch", spy)
    tensors = {name: tensor.requires_grad_() for name, tensor in scan_inputs(33).items()}
    with torch.no_grad(): quiet = scan_numba.scan_numba(**tensors)
    out = scan_numba.scan_numba(**tensors)
    batch, channels, states = 2, 7, 5
    assert kept == [0, batch * 3 * states * channels]
    assert torch.equal(quiet, out) and not quiet.requires_grad


@pytest.mark.parametrize(("function", "tensors"), [
    (scan_numba.scan_numba, scan_inputs(3)), (scan_numba.conv_numba, conv_inputs(3))])
def test_a_second_derivative_is_refused_not_wrong(function, tensors):
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    with pytest.raises(RuntimeError, match="first derivatives only: use backend='torch'"):
        torch.autograd.grad(function(**leaves).sum(), list(leaves.values()), create_graph=True)


@pytest.mark.parametrize("backend", HERE)
def test_an_output_without_a_gradient_has_none_to_pass_on(backend):
    for function, tensors in ((selective_scan, scan_inputs(3)), (causal_conv1d, conv_inputs(3))):
        gradients = gradients_of_the_unheard(partial(function, backend=backend), tensors)
        assert all(g is None or not g.any() for g in gradients)


@pytest.mark.parametrize("backend", HERE)
def test_an_empty_batch(backend):
    tensors = scan_inputs(3)
    tensors = {name: tensor[:0] if tensor.ndim == 3 else tensor for name, tensor in tensors.items()}
    assert all(g.abs().sum() == 0 for g in output_and_gradients(partial(selective_scan, backend=backend), tensors))
    assert causal_conv1d(torch.zeros(0, 3, 7), torch.zeros(7, 4), backend=backend).shape == (0, 3, 7)


# Which backend, and errors

def test_auto_takes_the_fastest_that_serves(monkeypatch):
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert (find_backend("auto", single), find_backend("auto", double)) == ("numba", "torch")
    assert find_backend("loop", single) == "loop"
    monkeypatch.setitem(sys.modules, "numba", None)
    assert find_backend("auto", single) == "torch"
    with pytest.raises(ValueError, match="'numba' needs the package numba.*pip install numba.*usable here: torch, loop"):
        find_backend("numba", single)
    assert torch.isfinite(selective_scan(**scan_inputs(3))).all()


def test_auto_runs_what_it_found():
    tensors = scan_inputs(17)
    assert torch.equal(selective_scan(**tensors), scan_numba.scan_numba(**tensors))
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    assert torch.equal(selective_scan(**tensors), scan.scan_torch(**tensors))
    tensors = conv_inputs(17)
    assert torch.equal(causal_conv1d(**tensors), scan_numba.conv_numba(**tensors))


def test_a_new_backend_is_one_row(monkeypatch):
    module = types.ModuleType("someones_kernels")
    module.scan = lambda u, *rest: u + 1
    module.conv = lambda x, *rest: x + 2
    monkeypatch.setitem(sys.modules, module.__name__, module)
    row = Backend("someones_kernels:scan", "someones_kernels:conv", ("cpu",), (torch.float32,))
    monkeypatch.setitem(BACKENDS, "new", row)
    tensors, taps = scan_inputs(3), conv_inputs(3)
    assert torch.equal(selective_scan(**tensors, backend="new"), tensors["u"] + 1)
    assert torch.equal(causal_conv1d(**taps, backend="new"), taps["x"] + 2)


@pytest.mark.parametrize(("change", "message"), [
    ({"dt": torch.zeros(2, 4, 7)}, r"dt has shape \(2, 4, 7\): expected \(batch = 2, length = 3, channels = 7\)"),
    ({"A": torch.zeros(8, 5)}, r"A has shape \(8, 5\): expected \(channels = 7, states\)"),
    ({"B": torch.zeros(2, 3, 4)}, r"B has shape \(2, 3, 4\): expected \(batch = 2, length = 3, states = 5\)"),
    ({"C": torch.zeros(2, 5)}, r"C has shape \(2, 5\)"),
    ({"D": torch.zeros(7, 1)}, r"D has shape \(7, 1\): expected \(channels = 7\)"),
    ({"z": torch.zeros(1, 3, 7)}, r"z has shape \(1, 3, 7\)"),
    ({"dt_bias": torch.zeros(5)}, r"dt_bias has shape \(5,\)"),
    ({"u": torch.zeros(3, 7)}, r"u has shape \(3, 7\): expected \(batch, length, channels\)"),
    ({"u": torch.zeros(2, 0, 7)}, "only batch may be 0"),
    ({"C": torch.zeros(2, 3, 5, dtype=torch.float64)}, "C is torch.float64 on cpu but u is torch.float32 on cpu"),
    ({"D": torch.zeros(7, device="meta")}, "D is torch.float32 on meta but u is torch.float32 on cpu"),
    ({"backend": "mamba"}, "unknown backend 'mamba': choose one of auto, cuda, numba, .*torch, loop"),
])
def test_bad_scan_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**scan_inputs(3), **change})


@pytest.mark.parametrize(("change", "message"), [
    ({"weight": torch.zeros(4, 7)}, r"weight has shape \(4, 7\): expected \(channels = 7, width\)"),
    ({"weight": torch.zeros(7, 0)}, "only batch may be 0"),
    ({"bias": torch.zeros(4)}, r"bias has shape \(4,\): expected \(channels = 7\)"),
    ({"x": torch.zeros(2, 3)}, r"x has shape \(2, 3\)"),
    ({"bias": torch.zeros(7).double()}, "bias is torch.float64 on cpu but x is torch.float32"),
    ({"backend": "nmba"}, "unknown backend 'nmba'.*numba"),
])
def test_bad_conv_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        causal_conv1d(**{**conv_inputs(3), **change})


@pytest.mark.parametrize(("a", "b"), [(3, 1), (5, 4), (1, 4), (2, 5), (0, 0)])
def test_a_recurrence_of_other_lengths_is_refused(a, b):
    with pytest.raises(ValueError, match=f"a has {a} tokens and b has {b}: they must have as many, at least 1"):
        scan.linear_recurrence(torch.ones(2, a, 3), torch.ones(2, b, 3))


@pytest.mark.parametrize(("backend", "kind", "message"), [
    ("numba", {"dtype": torch.float64}, r"'numba' takes torch.float32, not torch.float64 \(usable here: torch, loop, or auto\)"),
    ("numba", {"device": "meta"}, "'numba' runs on cpu, not on meta.*convert the tensors first"),
    ("torch", {"dtype": torch.int64}, "'torch' takes torch.float32 or torch.float64 or torch.bfloat16, not torch.int64"),
    ("auto", {"dtype": torch.float16}, "'numba' takes.*'torch' takes.*'loop' takes.*convert the tensors first"),
])
def test_a_backend_that_cannot_serve_says_why(backend, kind, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**{name: tensor.to(**kind) for name, tensor in scan_inputs(3).items()}, backend=backend)
    with pytest.raises(ValueError, match=message):
        causal_conv1d(**{name: tensor.to(**kind) for name, tensor in conv_inputs(3).items()}, backend=backend)


@pytest.mark.parametrize("kind", [{"dtype": torch.float64}, {"device": "meta"}])
def test_the_numba_functions_check_what_they_are_given(kind):
    with pytest.raises(ValueError, match="numba kernels take float32 on cpu"):
        scan_numba.scan_numba(**{name: tensor.to(**kind) for name, tensor in scan_inputs(3).items()})
    with pytest.raises(ValueError, match="numba kernels take float32 on cpu"):
        scan_numba.conv_numba(**{name: tensor.to(**kind) for name, tensor in conv_inputs(3).items()})
