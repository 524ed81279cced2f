"""The fused kernels in Triton's interpreter, in a process of its own: the interpreter is chosen when Triton is imported."""
import os
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import fused_cases
import pytest
import torch
from project import interpreted

from iclrepro.blocks import MLP
from iclrepro.fused import Adam, Collector, Pending, add_norm, column_sums, equip, gated

ABSENT = "needs Triton (pip install triton): its interpreter runs GPU kernels on a CPU"


def test_ci_has_triton():
    if not os.environ.get("CI"): pytest.skip("only continuous integration must have it")
    assert find_spec("triton") or sys.platform != "linux"


@pytest.mark.skipif(not find_spec("triton"), reason=ABSENT)
def test_every_kernel_does_what_it_must():
    assert len(interpreted("import fused_cases; fused_cases.run('cpu')").splitlines()) == len(fused_cases.CASES + fused_cases.ON_A_CPU) > 30


@pytest.mark.parametrize("gradients,message", [
    ([torch.zeros(2, 3)], "1 gradients for 2 places"), ([torch.zeros(2, 3)] * 3, "3 gradients for 2 places"), ([torch.zeros(2, 3), torch.zeros(2, 1)], r"\(2, 1\): it must hold 2 numbers for each of 2 members"),
])
def test_gradients_that_do_not_fit_are_refused(gradients, message):
    matrix = torch.ones(2, 8)
    with pytest.raises(ValueError, match=message): Collector(matrix, [slice(0, 3), slice(4, 6)])(gradients)
    assert (matrix == 1).all()


@pytest.mark.parametrize("change,message", [({"rates": (1e-3,)}, r"rates are \(0.001,\): there must be one for each of 2 members"), ({"grad": torch.zeros(1, 5)}, r"gradients are \(1, 5\): they must be \(2, 5\)"),
                                            ({"rounded": torch.zeros(2, 4).bfloat16()}, r"rounded weights are \(2, 4\)")])
def test_an_optimiser_that_does_not_fit_its_weights_is_refused(change, message):
    with pytest.raises(ValueError, match=message): Adam(**{"flat": torch.zeros(2, 5), "grad": torch.zeros(2, 5), "rates": (1e-3, 1e-3), "factors": [1.0], "clip": None, "decay": 0.0, **change})


@pytest.mark.parametrize("shapes,message", [(((2, 7, 5), (6, 4), (6,)), r"\(6, 4\) and \(6,\): they must be \(2 outputs, 5\)"), (((2, 7, 5), (7, 5), (7,)), r"\(7, 5\)"), (((2, 7, 5), (6, 5), (4,)), r"\(6, 5\) and \(4,\)")])
def test_a_gated_map_of_other_sizes_is_refused(shapes, message):
    with pytest.raises(ValueError, match=message): gated(*map(torch.zeros, shapes))


def test_what_kernels_cannot_read_is_refused():
    with pytest.raises(ValueError, match="in one dtype"): gated(torch.zeros(2, 7, 5), torch.zeros(6, 5).bfloat16(), torch.zeros(6))
    with pytest.raises(ValueError, match=r"\(3, 4\): it must be \(members, rows, columns\)"): column_sums(torch.zeros(3, 4), torch.float32)
    for norm in (torch.nn.LayerNorm(6), torch.nn.LayerNorm(5, bias=False), torch.nn.LayerNorm(5, elementwise_affine=False), torch.nn.RMSNorm(5)):
        with pytest.raises(ValueError, match="it must be a LayerNorm over 5 numbers, with weight and bias"): add_norm(Pending(torch.zeros(2, 7, 5)), norm, torch.float32)


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm(16, bias=False), torch.nn.LayerNorm(16, elementwise_affine=False), torch.nn.RMSNorm(16)], ids=str)
def test_a_norm_that_no_kernel_can_do_is_left_as_it_is(norm):
    blocks = [MLP(16), MLP(16)]
    h = torch.linspace(-1, 1, 96).view(1, 6, 16)
    for block in blocks: block.norm, block.mix = norm, lambda x, draws=None: x.sin()
    expected = norm(blocks[1](blocks[0](h)))
    model = SimpleNamespace(blocks=blocks, norm=norm)
    equip(model)
    assert torch.equal(model.norm(blocks[1](blocks[0](h))), expected)
