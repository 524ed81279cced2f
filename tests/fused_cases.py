"""What the kernels of iclrepro.fused must do, in whatever way they run here: test_fused.py calls it in Triton's interpreter, test_cuda.py on a GPU."""
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from iclrepro import fused, scan_cuda
from iclrepro.blocks import Mamba, S4D, S4DPost
from iclrepro.models import ARCHITECTURES, build_model, model_for, predict
from iclrepro.prompts import Draws
from iclrepro.scan import BACKENDS
from iclrepro.tasks import Curriculum, LinearRegression
from iclrepro.training import SideBySide, Stack, TrainConfig, Training


HERE = {"cuda": replace(BACKENDS["cuda"], devices=("cpu",), needs="")}  # what an emulator runs
UNCALLED = {Mamba: ("x_proj.weight", "dt_proj.weight"), S4D: ("out.weight", "out.bias"), S4DPost: ("out.weight", "out.bias")}  # weights of products that are not seen as calls of a linear layer


def gradients(f, inputs, weights):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = f(*leaves)
    total = sum((y.double() * w).sum() for y, w in zip(outputs, weights))
    return [y.detach() for y in outputs] + list(torch.autograd.grad(total, leaves, materialize_grads=True))


def close(ours, theirs, tolerance): assert all((a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max().clamp(min=1e-3) for a, b in zip(ours, theirs, strict=True))


def add_norm(device, rows, width, with_delta, half, twice=False):
    "Twice: with the norm in float32 and, beside it, in bfloat16."
    draws = Draws(rows + width)
    h, delta = (draws.normal(2, rows, width).to(device) * 3 + 1 for _ in range(2))
    norm = torch.nn.LayerNorm(width, device=device)
    weight, bias = draws.normal(width).to(device), draws.normal(width).to(device)
    weights = [draws.normal(width, 2, rows).to(device).double().movedim(0, -1) for _ in range(2 + twice)]
    dtype, second = torch.bfloat16 if half else torch.float32, torch.bfloat16 if twice else None
    delta = delta.to(dtype)

    def ours(h, delta, weight, bias):
        module = torch.nn.LayerNorm(width, device=device)
        module.requires_grad_(False)
        out = torch.func.functional_call(Call(lambda: fused.add_norm(fused.Pending(h, delta if with_delta else None), module, dtype, second), module), {"module.weight": weight, "module.bias": bias}, ())
        return out

    def theirs(h, delta, weight, bias):
        s = h + delta if with_delta else h * 1
        y = F.layer_norm(s, (width,), weight, bias, norm.eps)
        return (s, y, y) if twice else (s, y)

    inputs = [h, delta, weight, bias]
    exact = gradients(theirs, [x.double() for x in inputs], weights)
    close(gradients(ours, inputs, weights), exact, 3e-2 if half or twice else 2e-5)
    if twice:  # of the second norm alone
        of_z = [gradients(lambda *leaves: f(*leaves)[::2], leaves, weights[::2]) for f, leaves in ((ours, inputs), (theirs, [x.double() for x in inputs]))]
        close(*of_z, 3e-2)
    of_sum = [gradients(lambda *leaves: f(*leaves)[:1], leaves, weights[:1]) for f, leaves in ((ours, inputs), (theirs, [x.double() for x in inputs]))]
    close(*of_sum, 3e-2 if half else 2e-5)


class Call(torch.nn.Module):
    def __init__(self, call, module):
        super().__init__()
        self.call, self.module = call, module

    def forward(self): return self.call()


def column_sums(device, members, rows, columns, dtype):
    x = Draws(rows).normal(members, rows, columns).to(device, dtype)
    ours = fused.column_sums(x, torch.float32)
    assert ours.shape == (members, columns)
    close([ours], [x.double().sum(1)], 1e-5)
    assert torch.equal(ours, fused.column_sums(x, torch.float32))


def adam(device, members, size, clip, decay, half):
    "Against torch's optimiser, member by member."
    draws = Draws(size)
    flat = draws.normal(members, size).to(device)
    grad, rates = torch.zeros_like(flat), tuple(10.0 ** -(2 + i) for i in range(members))
    rounded = flat.bfloat16() if half else None
    weights = [torch.nn.Parameter(row.clone()) for row in flat]
    optimisers = [torch.optim.AdamW([w], lr=rate, weight_decay=decay) for w, rate in zip(weights, rates)]
    factors = [0.5, 1.0, 0.25]
    ours = fused.Adam(flat, grad, rates, factors, clip, decay, rounded)
    for step, factor in enumerate(factors):
        gradient = draws.normal(members, size).to(device) * torch.logspace(-3, 1, size, device=device)
        grad.copy_(gradient)
        ours.at.fill_(step)
        ours.step()
        for w, g, optimiser, rate in zip(weights, gradient, optimisers, rates):
            w.grad = g.clone()
            if clip is not None: torch.nn.utils.clip_grad_norm_([w], clip)
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.step()
        for row, w, rate in zip(flat, weights, rates): assert (row - w).abs().max() <= 1e-3 * rate + 5e-7
        if half: assert ((rounded.float() - flat).abs() <= 2**-7 * flat.abs()).all()  # the interpreter cuts off instead of rounding


def collect(device, members):
    "Long and short parameters, some in bfloat16, one not contiguous; what lies between stays as it was."
    draws, sizes = Draws(members), (3, 1500, 1, 64, 2048)
    parts = [draws.normal(members, size).to(device) for size in sizes]
    parts[1], parts[3] = parts[1].bfloat16(), draws.normal(members, 8, 8).to(device).mT
    places = [slice(4000 * i + 64, 4000 * i + 64 + size) for i, size in enumerate(sizes)]
    matrix = torch.full((members, 20_000), 7.0, device=device)
    fused.Collector(matrix, places)(parts)
    expected = torch.full_like(matrix, 7.0)
    for place, part in zip(places, parts): expected[:, place] = part.reshape(members, -1).float()
    assert torch.equal(matrix, expected)
    with pytest.raises(ValueError, match="torch.float64"): fused.Collector(matrix, places)([part.double() for part in parts])
    assert torch.equal(matrix, expected)


def equipped(device, model):
    "A model that uses the kernels says what it said before, and has its gradients; stacked by vmap, too."
    task = LinearRegression(3, 6)
    prompt = type(task.sample(Draws(1), 2))(*(part.to(device) for part in task.sample(Draws(1), 2)))
    found = []
    for equip in (False, True):
        net = build_model(model_for(task, model, "tiny", n_layers=1, d_model=16, n_heads=2), 0).to(device)
        if equip:
            products = fused.equip(net)
            assert products == {f"blocks.{i}.{name}" for i, block in enumerate(net.blocks) for name in UNCALLED.get(type(block), ())} <= {name for name, _ in net.named_parameters()}
        prediction = predict(net, prompt)
        task.loss(prediction, prompt).backward()
        found.append([prediction.detach()] + [torch.zeros(1, device=device) if p.grad is None else p.grad for p in net.parameters()])
    close(found[1], found[0], 2e-4)


def stacked(device, model):
    "A stack with the kernels trains as members alone do without them."
    task = LinearRegression(3, 6)
    net = model_for(task, model, "tiny", n_layers=1, d_model=16, n_heads=2)
    for seeds in ((3,), (3, 7)):
        config = TrainConfig(task, net, Curriculum.constant(task), 3, seeds, 4, 1e-3, clip=0.5, log_every=3)
        losses = []
        for engine in (SideBySide, Stack):
            training = Training(config, device)
            training.engine = engine(config, training.device)
            training.advance()
            losses.append(training.losses)
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def linear(device, members, outputs, inputs, with_bias, half):
    "Filled up to whole 16 bytes or not; as members of a stack."
    draws, dtype = Draws(inputs), torch.bfloat16 if half else torch.float32
    shapes = [(members, 9, inputs), (members, outputs, inputs), (members, outputs)][: 2 + with_bias]
    tensors = [draws.normal(*shape).to(device, dtype) for shape in shapes]
    weights = [draws.normal(members, 9, outputs).to(device).bfloat16().double()]
    one = lambda x, weight, bias=None: fused._Linear.apply(x[None], weight[None], None if bias is None else bias[None])[0][0]
    ours = lambda *leaves: torch.vmap(one)(*leaves)
    theirs = lambda *leaves: torch.stack([F.linear(*member) for member in zip(*leaves)])
    assert fused._filled_up(tensors[1]) == ((-outputs % (16 // dtype.itemsize), -inputs % (16 // dtype.itemsize)) if min(outputs, inputs) > 5 else (0, 0))
    exact = gradients(lambda *leaves: [theirs(*leaves)], [x.double() for x in tensors], weights)
    found = gradients(lambda *leaves: [ours(*leaves)], tensors, weights)
    assert [x.shape for x in found] == [x.shape for x in exact]
    close(found, exact, 3e-2 if half else 2e-5)


def weight_gradient(device, members, rows, outputs, inputs, pieces):
    "As one sum over all rows, or as several."
    dy, x = (Draws(n).normal(members, rows, n).to(device) for n in (outputs, inputs))
    assert fused._pieces(members, rows, outputs, inputs) == pieces
    ours = fused._weight_gradient(dy, x)
    assert ours.shape == (members, outputs, inputs)
    close([ours], [dy.double().mT @ x.double()], 1e-5)
    assert torch.equal(ours, fused._weight_gradient(dy, x))
    dy, x = dy.bfloat16(), x.bfloat16()
    assert torch.equal(fused._weight_gradient(dy, x), fused._times(dy.mT, x))  # rounded once


def gated(device, members, outputs, inputs, half):
    "GELU, map and gate, filled up or not; as members of a stack."
    draws, dtype = Draws(inputs), torch.bfloat16 if half else torch.float32
    tensors = [draws.normal(*shape).to(device, dtype) for shape in ((members, inputs, 3, 5), (members, 2 * outputs, inputs), (members, 2 * outputs))]
    tensors[0], weights = tensors[0].movedim(1, -1), [draws.normal(members, outputs, 3, 5).to(device).bfloat16().double().movedim(1, -1)]
    multiplied, affine = [], fused._affine
    one = lambda u, weight, bias: F.glu(F.linear(F.gelu(u), weight, bias))
    exact = gradients(lambda *leaves: [torch.stack([one(*member) for member in zip(*leaves)])], [x.double() for x in tensors], weights)
    with patch.object(fused, "_affine", lambda x, weight, bias: multiplied.append(weight) or affine(x, weight, bias)):
        found = gradients(lambda *leaves: [torch.vmap(fused.gated)(*leaves)], tensors, weights)
    assert [fused._filled_up(weight) for weight in multiplied] == [(0, 0)]
    assert [x.shape for x in found] == [x.shape for x in exact] and {x.dtype for x in found} == {dtype}
    close(found, exact, 3e-2 if half else 2e-5)


def post_norm(device, rate, half):
    "Grazzi et al.'s S4, whose norm stands behind the sum, uses the kernels too; with dropout, that of the block. One block hands the next its stream in bfloat16 as well."
    task = LinearRegression(3, 6)
    blocks = build_model(model_for(task, "s4_post", "tiny", n_layers=1, d_model=67, dropout=rate), 0).to(device).blocks
    h, weights = Draws(1).normal(4, 6, 67).to(device), [Draws(2).normal(4, 6, 67).to(device).double()]

    def through(h):
        draws = Draws(5, device=device)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            for block in blocks: h = block(h, draws)
        return [h[...]]

    expected = gradients(through, [h], weights)
    fused.equip(SimpleNamespace(blocks=blocks, norm=torch.nn.Identity()))
    used = []
    for block in blocks:
        block.norm.forward = None  # the kernel does not call it
        block.out.forward = lambda x, forward=block.out.forward: used.append(x.dtype) or forward(x)
    dtype, read = torch.bfloat16 if half else torch.float32, []
    for block in blocks: block.ssm.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.autocast(device, torch.bfloat16, enabled=half):
        first = blocks[0](h)
        blocks[1](first)
        assert blocks[0].mix(h).dtype == dtype
    assert read[0].dtype == dtype and (read[1] is first.rounded and first.rounded.dtype == dtype if half else first.rounded is None) and len(blocks) == 2
    used.clear()
    close(gradients(through, [h], weights), expected, 3e-2 if half else 2e-5)
    assert len(used) == (2 if rate else 0)  # without dropout the map is part of a kernel


def mixed(device):
    "What a pre-norm block leaves to be added reaches a post-norm block behind it, and what that hands on, a pre-norm block."
    blocks = torch.nn.ModuleList([S4D(16), S4DPost(16), S4D(16)])
    for block in blocks: block.reset(Draws(1), "mamba", 2)
    blocks.to(device)
    h = Draws(2).normal(2, 5, 16).to(device)
    expected = h
    for block in blocks: expected = block(expected)
    fused.equip(SimpleNamespace(blocks=blocks, norm=torch.nn.Identity()))
    for block in blocks: h = block(h)
    close([h[...]], [expected], 2e-5)


CASES = (
    [(add_norm, rows, width, with_delta, half) for rows, width in ((1, 16), (7, 48), (33, 64)) for with_delta in (True, False) for half in (False, True)]
    + [(column_sums, members, rows, columns, dtype) for members, rows, columns in ((1, 5, 3), (3, 70, 65)) for dtype in (torch.float32, torch.bfloat16)]
    + [(adam, members, size, clip, decay, half) for members, size in ((1, 1500), (3, 70)) for clip, decay in ((None, 0.1), (0.5, 0.0), (1e9, 0.0)) for half in (False, True)]
    + [(collect, members) for members in (1, 3)]
    + [(linear, members, outputs, inputs, with_bias, half) for outputs, inputs in ((65, 67), (64, 65), (3, 5), (66, 64)) for members in (1, 3) for with_bias in (False, True) for half in (False, True)]
    + [(add_norm, 33, 48, True, False, True), (add_norm, 7, 67, False, False, True)]
    + [(weight_gradient, *shape) for shape in ((2, 1536, 5, 3, 6), (1, 1510, 70, 65, 5), (1, 1514, 70, 65, 2), (3, 509, 5, 3, 1), (20, 1024, 130, 200, 1))]
    + [(gated, members, outputs, inputs, half) for outputs, inputs in ((67, 67), (64, 128), (3, 5), (66, 300)) for members in (1, 3) for half in (False, True)]
    + [(post_norm, rate, half) for rate in (0.0, 0.5) for half in (False, True)]
    + [(mixed,)]
    + [(equipped, model) for model in ARCHITECTURES]
)
ON_A_CPU = [(stacked, model) for model in ("transformer", "s4_post", "rwkv")]  # a GPU's stack has tests of its own


def run(device):
    torch.use_deterministic_algorithms(device == "cpu")  # new memory is then NaN
    for case, *arguments in CASES + ON_A_CPU:
        case(device, *arguments)
        print(case.__name__, *arguments, flush=True)


def run_inner(folder):
    "Models with Mamba blocks, whole: Triton's kernels interpreted, those in C++ compiled for the CPU."
    from emulator import Emulator

    machine = Emulator(folder)
    scan_cuda.launch, scan_cuda.shared_memory = machine.launch, machine.shared_memory
    fused.BACKENDS = HERE
    for case, model in ((equipped, "mambaformer"), (stacked, "mamba")):
        machine.launched.clear()
        case("cpu", model)
        assert {name for name, *_ in machine.launched} == {"conv_forward", "scan_forward", "scan_backward", "scan_sums", "conv_backward", "conv_sums"}
        print(case.__name__, model, flush=True)
