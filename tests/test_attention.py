"""Attention: every backend against the float64 loop; the kernels in Triton's interpreter, in a process of its own, because the interpreter is chosen when Triton is imported."""
import os
import sys
from importlib.util import find_spec

import attention_cases as cases
import pytest
import torch
import torch.nn.functional as F
from project import interpreted

from iclrepro import attention, attention_triton
from iclrepro.attention import BACKENDS, attention_loop, attention_torch, causal_attention
from iclrepro.blocks import Attention
from iclrepro.prompts import Draws
from iclrepro.training import inner_precision

ABSENT = "needs Triton (pip install triton): its interpreter runs GPU kernels on a CPU"


def name_of(case): return "-".join(str(getattr(part, "__name__", part)) for part in case)


@pytest.mark.parametrize("case", cases.CASES, ids=name_of)
def test_pytorchs_attention_does_what_it_must(case): case[0]("cpu", "torch", *case[1:])


def test_the_kernels_do_what_they_must():
    if not find_spec("triton"):
        assert not (os.environ.get("CI") and sys.platform == "linux"), ABSENT
        pytest.skip(ABSENT)
    assert len(interpreted("import attention_cases; attention_cases.run_interpreted()").splitlines()) == len(cases.CASES) > 40


@pytest.mark.parametrize(("precision", "told", "tiles"), [("float32", "ieee", [(16, 32)] * 3), ("tf32", "tf32", [(64, 32), (64, 32), (32, 64)])])
def test_precision_and_its_tiles_reach_every_kernel(monkeypatch, precision, told, tiles):
    launched = []
    monkeypatch.setattr(attention_triton, "_launch", lambda *_, **options: launched.append(options))
    with inner_precision(precision): attention_triton.attention_triton(torch.zeros(1, 200, 96, requires_grad=True), 1).sum().backward()
    assert [options["PRECISION"] for options in launched] == [told] * 3 and [(options["QUERIES"], options["KEYS"]) for options in launched] == tiles


@pytest.mark.parametrize("width", [16, 32, 64, 65, 128])
def test_tiles_of_rounded_products_are_large_where_they_fit(width):
    sizes = lambda *exact: [(tile["QUERIES"], tile["KEYS"]) for tile in attention_triton._tiles(200, width, False, *exact).values()]
    assert sizes() == sizes(True) == [(16, 32)] * 3 and sizes(False) == ([(64, 32), (64, 32), (32, 64)] if width <= 64 else [(16, 32)] * 3)


@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_in_float64_pytorch_is_the_loop(shape): cases.agrees("cpu", "torch", *shape, torch.float64)


def as_published(qkv, n_heads):
    "What committed records were made with."
    batch, length, columns = qkv.shape
    q, k, v = qkv.view(batch, length, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, columns // 3)


@pytest.mark.parametrize("batch, length, d_model, heads", [(64, 81, 64, 8), (3, 23, 256, 8), (1, 1, 32, 4), (2, 201, 24, 3)])
def test_on_a_cpu_the_bytes_stay(batch, length, d_model, heads):
    block = Attention(d_model, heads)
    block.reset(Draws(0, stream="init"), "gpt2", 4)
    x = Draws(1).normal(batch, length, d_model)
    results = []
    for mix in (block.mix, lambda x: block.out(as_published(block.qkv(x), heads))):
        block.zero_grad()
        out = mix(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in block.parameters() if p.grad is not None)])
    assert len(results[0]) == 5 and all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_second_derivatives_of_pytorchs_attention_pass_the_fold():
    qkv = Draws(2).normal(2, 3, 4, 24).double().requires_grad_()

    def second(function):
        (first,) = torch.autograd.grad(function(qkv).square().sum(), qkv, create_graph=True)
        return torch.autograd.grad(first.square().sum(), qkv)[0]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH): ours = second(torch.vmap(lambda x: attention_torch(x, 2)))
    torch.testing.assert_close(ours, second(torch.vmap(lambda x: attention_loop(x, 2))))


def test_gradients_inside_of_vmap():
    qkv = Draws(3).normal(3, 2, 5, 24)
    slope = lambda attend: torch.vmap(torch.func.grad(lambda x: attend(x, 2).square().sum()))(qkv)
    torch.testing.assert_close(slope(attention_torch), slope(attention_loop))


# The check can fail

def acausal(qkv, n_heads): return attention_loop(qkv.flip(1), n_heads).flip(1)
def unscaled(qkv, n_heads): return attention_loop(torch.cat((qkv[..., :qkv.shape[-1] // 3] * 1.1, qkv[..., qkv.shape[-1] // 3:]), -1), n_heads)
def interleaved(qkv, n_heads): return attention_loop(qkv.unflatten(-1, (n_heads, 3, -1)).transpose(-3, -2).flatten(2), n_heads)
def swapped(qkv, n_heads): return attention_loop(qkv.roll(qkv.shape[-1] // 3, -1), n_heads)
def one_head(qkv, n_heads): return attention_loop(qkv, 1)
def detached(qkv, n_heads): return attention_loop(torch.cat((qkv[..., :16].detach(), qkv[..., 16:]), -1), n_heads)
def undefined(qkv, n_heads): return attention_loop(qkv, n_heads) * torch.nan


@pytest.mark.parametrize("wrong", [acausal, unscaled, interleaved, swapped, one_head, detached, undefined], ids=lambda wrong: wrong.__name__)
def test_a_wrong_attention_is_found(wrong, monkeypatch):
    monkeypatch.setattr(attention, "wrong", wrong, raising=False)
    monkeypatch.setitem(BACKENDS, "wrong", "iclrepro.attention:wrong")
    with pytest.raises(AssertionError): cases.agrees("cpu", "wrong", 2, 9, 2, 8, tolerance=1e-2)


# Which backend, and errors

def test_auto_on_a_cpu_is_pytorch(monkeypatch):
    qkv = Draws(0).normal(2, 5, 48)
    expected = attention_torch(qkv, 2)
    for name in ("loop", "triton"): monkeypatch.setitem(BACKENDS, name, None)
    assert torch.equal(causal_attention(qkv, 2), expected)


@pytest.mark.parametrize("shape, heads, backend, message", [
    ((2, 48), 2, "auto", r"qkv has shape \(2, 48\): expected \(batch, length, 3 d_model\)"),
    ((2, 0, 48), 2, "torch", "only batch may be 0"),
    ((2, 3, 48), 3, "auto", "n_heads is 3: it must be at least 1 and divide a third of the last axis of qkv, 48"),
    ((2, 3, 50), 1, "loop", "n_heads is 1: .*50"),
    ((2, 3, 48), 0, "torch", "n_heads is 0"),
    ((2, 3, 48), 2, "flash", "unknown backend 'flash': choose one of auto, triton, torch, loop"),
])
def test_bad_arguments_are_named(shape, heads, backend, message):
    with pytest.raises(ValueError, match=message): causal_attention(torch.zeros(shape), heads, backend)


@pytest.mark.parametrize("backend", ["auto", "torch", "loop"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_numbers_that_are_not_floating_point_are_refused(backend, dtype):
    with pytest.raises(ValueError, match=f"qkv is {dtype}: it must be floating-point"): causal_attention(torch.ones(1, 2, 48).to(dtype), 2, backend)


@pytest.mark.parametrize("kind, width, message", [
    ({"dtype": torch.float64}, 16, r"'triton' takes torch.float32 or torch.bfloat16, not torch.float64 \(usable here: torch, loop, or auto\)"),
    ({}, 129, "takes heads of width 1 to 128, not 129"),
])
def test_kernels_that_cannot_serve_say_why(kind, width, message):
    with pytest.raises(ValueError, match=message): causal_attention(torch.zeros(1, 2, 3 * width, **kind), 1, "triton")


def test_kernels_that_cannot_run_here_say_why(monkeypatch):
    if find_spec("triton"):
        with pytest.raises(ValueError, match="runs on cuda, or in Triton's interpreter .* not on cpu"): causal_attention(torch.zeros(1, 2, 48), 1, "triton")
    monkeypatch.setattr(attention_triton, "triton", None)
    with pytest.raises(ValueError, match="needs the package triton.*pip install triton"): causal_attention(torch.zeros(1, 2, 48), 1, "triton")
