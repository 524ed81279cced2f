"""What every form of attention must do: test_attention.py calls it on a CPU, for the kernels in Triton's interpreter, and test_cuda.py on a GPU."""
import warnings

import pytest
import torch

from iclrepro.attention import attention_loop, causal_attention
from iclrepro.attention_triton import _tiles
from iclrepro.prompts import Draws
from iclrepro.training import inner_precision

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}


def made(device, *shape, dtype=torch.float32): return Draws(sum(shape)).normal(*shape).to(device, dtype)


def with_gradient(attend, qkv):
    "The output, and the gradient of a weighted sum of it."
    qkv = qkv.detach().requires_grad_()
    out = attend(qkv)
    weights = Draws(99).normal(*out.shape).to(out)
    return out.detach(), *torch.autograd.grad(out, qkv, weights)


def error(ours, theirs):
    "The largest difference, of what is compared, relative to its largest number; infinite for NaN."
    pairs = zip(ours, theirs, strict=True)
    return max(float(((a.double() - b).abs().max() / b.abs().max()).nan_to_num(torch.inf)) for a, b in pairs)


def agrees(device, backend, batch, length, heads, width, dtype=torch.float32, tolerance=None):
    "Output and gradient are the float64 loop's."
    qkv = made(device, batch, length, 3 * heads * width, dtype=dtype)
    ours = with_gradient(lambda x: causal_attention(x, heads, backend), qkv)
    assert all(x.dtype == dtype and x.is_contiguous() for x in ours)
    assert error(ours, with_gradient(lambda x: attention_loop(x, heads), qkv.double())) < (tolerance or TOLERANCE[dtype])


def rounded(device, backend, length, width):
    "Products rounded to TF32, in tiles of their own where a prompt is long."
    queries, keys = (_tiles(length, width, False, False).get(name, {}) for name in ("queries", "keys"))
    assert (queries.get("QUERIES") == keys["KEYS"] == 64) == (length > 128 and width <= 64)
    with inner_precision("tf32"): agrees(device, backend, 1, length, 2, width, tolerance=5e-3)


def every_second(x): return x.repeat_interleave(2, -1)[..., ::2]
def tokens_first(x): return x.transpose(0, 1).contiguous().transpose(0, 1)
def part_of_a_row(x): return torch.cat((x, x, x), -1).tensor_split(3, -1)[1]
def one_for_all(x): return x[:1].expand_as(x)
def later_tokens(x): return torch.cat((x, x), 1)[:, x.shape[1]:]


def any_layout(device, backend, layout):
    qkv = layout(made(device, 2, 21, 3 * 2 * 8))
    assert not qkv.is_contiguous()
    ours = with_gradient(lambda x: causal_attention(x, 2, backend), qkv)
    assert error(ours, with_gradient(lambda x: attention_loop(x, 2), qkv.double())) < 1e-5


def members(device, backend, axis, count, batch, length, heads, width, dtype=torch.float32):
    "Under vmap, with ordinary autograd outside, each member gets the bytes that it gets alone, and no operation falls back to a loop."
    qkv = made(device, count, batch, length, 3 * heads * width, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, gradient = with_gradient(torch.vmap(lambda x: causal_attention(x, heads, backend), axis, axis), qkv.movedim(0, axis))
    weights = Draws(99).normal(*out.shape).to(out).movedim(axis, 0)
    for x, w, member, slope in zip(qkv, weights, out.movedim(axis, 0), gradient.movedim(axis, 0), strict=True):
        x = x.detach().requires_grad_()
        alone = causal_attention(x, heads, backend)
        assert torch.equal(member, alone) and torch.equal(slope, torch.autograd.grad(alone, x, w)[0])


def members_of_members(device, backend):
    qkv = made(device, 2, 3, 2, 5, 3 * 16)
    attend = lambda x: causal_attention(x, 1, backend)
    out, gradient = with_gradient(torch.vmap(torch.vmap(attend)), qkv)
    weights = Draws(99).normal(*out.shape).to(out)
    assert error((out, gradient), _each(qkv, weights)) < 1e-5


def _each(qkv, weights):
    flat = qkv.flatten(0, 2).double().requires_grad_()
    out = attention_loop(flat, 1)
    return out.detach().view(weights.shape), torch.autograd.grad(out, flat, weights.flatten(0, 2).double())[0].view(qkv.shape)


def same_bytes(device, backend, *shape, dtype=torch.float32):
    qkv = made(device, *shape, dtype=dtype)
    first, second = (with_gradient(lambda x: causal_attention(x, 8, backend), qkv) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def no_future(device, backend, length):
    "A token changes nothing before it, and no gradient flows from what is before it: to the last bit."
    qkv = made(device, 1, length, 3 * 16)
    changed, at = qkv.clone(), length // 2
    changed[:, at:] = 7
    before, after = (causal_attention(x, 1, backend)[:, :at] for x in (qkv, changed))
    assert torch.equal(before, after)
    qkv.requires_grad_()
    (gradient,) = torch.autograd.grad(causal_attention(qkv, 1, backend)[:, :at].sum(), qkv)
    assert not gradient[:, at:].any() and gradient[:, :at].any()


def large_scores(device, backend):
    """Scores of several hundreds, whose exponentials overflow. A score is a sum of products that are rounded, and each way computes it anew: an exponential is off by as much as both roundings, and what follows
    from it by its share. So each number has a bound of its own, of first order."""
    width, length = 16, 40
    qkv = made(device, 1, length, 3 * width) * torch.tensor([12.0, 12.0, 1.0], device=device).repeat_interleave(width)
    out, gradient = with_gradient(lambda x: causal_attention(x, 1, backend), qkv)
    true, slope = with_gradient(lambda x: attention_loop(x, 1), qkv.double())
    g, scale, (q, k, v) = Draws(99).normal(*out.shape).to(true), width**-0.5, qkv.double().split(width, -1)
    scores = (q @ k.mT * scale).masked_fill(torch.ones(length, length, device=device).triu(1) > 0, -torch.inf)
    assert 300 < scores.max() < 1000
    p, dp = scores.softmax(-1), g @ v.mT
    off = 2 * (width + 2) * 2.0**-24 * (q.abs() @ k.abs().mT * scale).amax(-1, keepdim=True)
    dz = off * p * ((dp - (p * dp).sum(-1, keepdim=True)).abs() + (p * dp.abs()).sum(-1, keepdim=True))
    bound = torch.cat((dz @ k.abs() * scale, dz.mT @ q.abs() * scale, (off * p).mT @ g.abs()), -1)
    for ours, exact, allowed in ((out, true, off * p @ v.abs()), (gradient, slope, bound)):
        assert bool(((ours.double() - exact).abs() <= allowed + 1e-5 * exact.abs().max()).all())  # so is NaN refused


def empty(device, backend):
    out, gradient = with_gradient(lambda x: causal_attention(x, 2, backend), torch.zeros(0, 3, 48, device=device))
    assert out.shape == (0, 3, 16) and gradient.shape == (0, 3, 48)


def first_derivatives_only(device):
    qkv = made(device, 1, 3, 48).requires_grad_()
    with pytest.raises(RuntimeError, match="first derivatives only: use backend='torch'"):
        torch.autograd.grad(causal_attention(qkv, 1, "triton").sum(), qkv, create_graph=True)


def without_a_gradient(device, backend):
    qkv = made(device, 1, 5, 48)
    with torch.no_grad(): quiet = causal_attention(qkv, 1, backend)
    assert not quiet.requires_grad and torch.equal(quiet, causal_attention(qkv.requires_grad_(), 1, backend))


SHAPES = [(1, 1, 2, 8), (2, 2, 1, 16), (2, 5, 3, 4), (1, 31, 2, 32), (2, 81, 2, 8), (1, 81, 1, 32), (1, 128, 1, 64), (1, 129, 1, 16), (1, 200, 1, 32), (1, 40, 1, 128), (1, 70, 1, 128), (1, 33, 2, 12)]
CASES = [
    *((agrees, *shape, dtype) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16)),
    *((rounded, length, width) for length, width in ((40, 32), (129, 16), (200, 32), (150, 64), (140, 128))),
    *((any_layout, layout) for layout in (every_second, tokens_first, part_of_a_row, one_for_all, later_tokens)),
    *((members, axis, 3, 2, length, 2, 8) for axis in (0, 1, 2) for length in (5, 40)),
    (members, 0, 2, 1, 9, 1, 16, torch.bfloat16), (members_of_members,), (same_bytes, 1, 33, 3 * 8 * 4),
    (no_future, 20), (no_future, 140), (large_scores,), (empty,), (without_a_gradient,),
]


def interpret_bfloat16():
    "Triton's interpreter holds bfloat16 as its 16 bits, and multiplies matrices of them as if these were integers."
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def number(x): return TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32) if x.dtype.scalar == tl.bfloat16 else x

    dot = InterpreterBuilder.create_dot
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, number(a), number(b), *rest)


def run_interpreted():
    interpret_bfloat16()
    for case, *rest in CASES:
        case("cpu", "triton", *rest)
        print(case.__name__, *rest)
    first_derivatives_only("cpu")
    for halves in (True, False): assert {"queries" in _tiles(length, width, halves) for _, length, _, width in SHAPES} == {True, False}  # both ways back


def captured(device, batch, length, heads, width, dtype):
    "A recorded forward and backward pass, replayed on other numbers."
    held = made(device, batch, length, 3 * heads * width, dtype=dtype).requires_grad_()
    weights = made(device, batch, length, heads * width, dtype=dtype)

    def both():
        out = causal_attention(held, heads, "triton")
        return out.detach(), torch.autograd.grad(out, held, weights)[0]  # what keeps its graph keeps the stream that recorded it for later gradients

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside): both()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): recorded = both()
    with torch.no_grad(): held.copy_(held.flip(0) * 0.5)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(recorded, both()))
