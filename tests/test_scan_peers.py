"""mamba-ssm and causal-conv1d behind our signatures, with stand-ins that hold to what those packages document; the plain scan and convolution."""
import sys
from types import ModuleType

import pytest
import torch
from test_scan import conv_inputs, scan_inputs, without, worst
from torch.nn import functional as F

from iclrepro.scan import BACKENDS, causal_conv1d, conv_loop, find_backend, scan_loop
from iclrepro.scan_peers import conv_mamba_ssm, conv_plain, scan_mamba_ssm, scan_plain

SCAN = "mamba_ssm.ops.selective_scan_interface"


def documented_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    "u, delta, z: (batch, channels, length), one dtype; A, D, delta_bias: float32; B, C: (batch, groups, states, length), or without groups. State and sums in float32."
    batch, channels, length = u.shape
    assert not any(torch._C._functorch.is_batchedtensor(t) for t in (u, delta, A, B, C, D, z, delta_bias) if t is not None)  # a kernel reads memory
    for tensor in (A, D, delta_bias): assert tensor is None or tensor.dtype == torch.float32
    for tensor in (delta, z): assert tensor is None or (tensor.shape, tensor.dtype) == (u.shape, u.dtype)
    B, C = (t[:, None] if t.ndim == 3 else t for t in (B, C))
    for tensor in (B, C): assert (tensor.shape, tensor.dtype) == ((batch, B.shape[1], A.shape[1], length), u.dtype) and channels % B.shape[1] == 0
    B, C = (torch.repeat_interleave(t.float(), channels // t.shape[1], 1) for t in (B, C))
    steps = delta.float() if delta_bias is None else delta.float() + delta_bias[None, :, None]
    if delta_softplus: steps = F.softplus(steps)
    state, seen = torch.zeros(batch, channels, A.shape[1]), []
    for t in range(length):
        state = torch.exp(torch.einsum("bd,dn->bdn", steps[..., t], A)) * state + torch.einsum("bd,bdn->bdn", steps[..., t] * u[..., t].float(), B[..., t])
        seen.append(torch.einsum("bdn,bdn->bd", state, C[..., t]))
    out = torch.stack(seen, 2)
    if D is not None: out = out + D[:, None] * u.float()
    return (out if z is None else out * F.silu(z.float())).to(u.dtype)


def documented_conv(x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, final_states_out=None, activation=None):
    "x: (batch, channels, length), time or channels innermost, the latter in eights only; weight: (channels, 2 to 4)."
    assert activation in (None, "silu", "swish") and 2 <= weight.shape[1] <= 4 and weight.ndim == 2
    assert not any(torch._C._functorch.is_batchedtensor(t) for t in (x, weight, bias) if t is not None)  # a kernel reads memory
    assert x.stride(2) == 1 or x.stride(1) == 1 and all(number % 8 == 0 for number in (x.shape[1], x.stride(0), x.stride(2)))
    length = x.shape[2]
    padded = F.pad(x, (weight.shape[1] - 1, 0))
    y = sum(padded[..., k : k + length] * weight[:, k, None] for k in range(weight.shape[1])) + (0 if bias is None else bias[:, None])
    return F.silu(y) if activation else y


@pytest.fixture
def packages(monkeypatch):
    for name, function in (("mamba_ssm", None), ("mamba_ssm.ops", None), (SCAN, documented_scan), ("causal_conv1d", documented_conv)):
        module = ModuleType(name)
        if function: setattr(module, "selective_scan_fn" if name == SCAN else "causal_conv1d_fn", function)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("length", [1, 2, 17])
def test_mamba_ssm_gets_what_it_documents(packages, length):
    tensors = scan_inputs(length)
    assert worst(scan_mamba_ssm, tensors) < 1e-5
    for absent in (("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")): assert worst(scan_mamba_ssm, without(tensors, *absent)) < 1e-5
    steps = {**without(tensors, "dt_bias"), "dt": tensors["dt"].abs()}
    assert worst(scan_mamba_ssm, steps, softplus=False) < 1e-5


def test_mamba_ssm_gets_bfloat16_with_float32_parameters(packages):
    tensors = {name: tensor.bfloat16() for name, tensor in scan_inputs(17).items()}
    assert scan_mamba_ssm(**tensors).dtype == torch.bfloat16
    assert worst(scan_mamba_ssm, tensors) < 3e-2
    mixed = {name: tensor.float() if name in ("A", "D", "dt_bias") else tensor for name, tensor in tensors.items()}
    assert torch.equal(scan_mamba_ssm(**mixed), scan_mamba_ssm(**tensors))


@pytest.mark.parametrize("channels", [7, 16])
@pytest.mark.parametrize("width", [1, 2, 4, 5])
@pytest.mark.parametrize("silu", [True, False])
def test_causal_conv1d_gets_what_it_documents(packages, channels, width, silu):
    tensors = conv_inputs(17, channels, width)
    assert worst(conv_mamba_ssm, tensors, silu=silu) < 1e-5
    assert worst(conv_mamba_ssm, without(tensors, "bias"), silu=silu) < 1e-5


def test_causal_conv1d_gets_a_part_of_a_wider_tensor(packages):
    wide = conv_inputs(5, 12)["x"]
    tensors = {**conv_inputs(5, 8), "x": wide[..., :8]}
    assert torch.equal(conv_mamba_ssm(**tensors), conv_mamba_ssm(**{**tensors, "x": wide[..., :8].contiguous()}))


def test_causal_conv1d_is_asked_if_it_is_there_and_serves(packages, monkeypatch):
    monkeypatch.setattr(sys.modules["causal_conv1d"], "causal_conv1d_fn", lambda x, *rest, activation: x + 3)
    tensors = conv_inputs(5, 8)
    assert torch.equal(conv_mamba_ssm(**tensors), tensors["x"] + 3)
    assert torch.equal(conv_mamba_ssm(**conv_inputs(5, 8, 5)), conv_plain(**conv_inputs(5, 8, 5)))
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    assert torch.equal(conv_mamba_ssm(**tensors), conv_plain(**tensors))


def mapped(function, tensors, shared=(), **options):
    dims = {name: None if name in shared else 0 for name in tensors}
    return torch.vmap(lambda given: function(**given, **options), in_dims=(dims,))({name: t[0] if name in shared else t for name, t in tensors.items()})


@pytest.mark.parametrize(("function", "inputs", "shared"), [
    (scan_mamba_ssm, scan_inputs, ()), (scan_mamba_ssm, scan_inputs, ("u", "B")), (scan_mamba_ssm, scan_inputs, ("A", "D", "dt_bias")), (conv_mamba_ssm, conv_inputs, ()), (conv_mamba_ssm, conv_inputs, ("x",))])
@pytest.mark.parametrize("channels", [7, 8])
def test_members_under_vmap_are_each_alone(packages, function, inputs, shared, channels):
    "Values and gradients, in one call of the kernel."
    stacked = {name: torch.stack([t, *(t * (1 + 0.1 * k) for k in (1, 2))]) for name, t in inputs(9, channels).items()}
    loop = scan_loop if function is scan_mamba_ssm else conv_loop
    one_by_one = lambda **given: torch.stack([loop(**{name: t[0 if name in shared else k] for name, t in given.items()}) for k in range(3)])
    sides = []
    for way in (lambda **given: mapped(function, given, shared), one_by_one):
        leaves = {name: t.clone().requires_grad_() for name, t in stacked.items()}
        out = way(**leaves)
        sides.append([out.detach(), *torch.autograd.grad((out * torch.arange(out.numel()).view_as(out).cos()).sum(), list(leaves.values()))])
    for ours, expected in zip(*sides): assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_members_are_one_call(packages, monkeypatch):
    calls, kernel = [], sys.modules[SCAN].selective_scan_fn
    monkeypatch.setattr(sys.modules[SCAN], "selective_scan_fn", lambda u, *rest: (calls.append(u.shape), kernel(u, *rest))[1])
    mapped(scan_mamba_ssm, {name: torch.stack((t, t)) for name, t in scan_inputs(5).items()})
    assert calls == [(2, 14, 5)]


@pytest.mark.parametrize("length", [1, 3, 32])
def test_the_plain_way_is_the_loop(length):
    tensors, taps = scan_inputs(length), conv_inputs(length)
    for absent in ((), ("D",), ("z",), ("dt_bias",)): assert worst(scan_plain, without(tensors, *absent)) < 1e-5
    assert worst(conv_plain, taps) < 1e-5 and worst(conv_plain, without(taps, "bias"), silu=False) < 1e-5
    double = {name: tensor.double() for name, tensor in tensors.items()}
    assert torch.allclose(scan_plain(**double), scan_loop(**double), rtol=1e-12, atol=1e-12)
    assert torch.allclose(conv_plain(**conv_inputs(length, dtype=torch.float64)), conv_loop(**conv_inputs(length, dtype=torch.float64)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("absent", [(), ("bias",)], ids=" ".join)
def test_the_plain_convolution_takes_float32_parameters_beside_bfloat16(absent):
    taps = without(conv_inputs(17), *absent)
    mixed = {**taps, "x": taps["x"].bfloat16()}
    assert conv_plain(**mixed).dtype == torch.bfloat16 and worst(conv_plain, mixed) < 2e-2


def test_mamba_ssm_is_for_gpus_and_says_how_to_get_it():
    assert BACKENDS["mamba_ssm"].devices == ("cuda",)
    with pytest.raises(ValueError, match="'mamba_ssm' runs on cuda, not on cpu"): find_backend("mamba_ssm", torch.zeros(1))
    with pytest.raises(ValueError, match="runs on cuda"): causal_conv1d(**conv_inputs(3), backend="mamba_ssm")
