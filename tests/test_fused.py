"""The fused kernels in Triton's interpreter, in a process of its own: the interpreter is chosen when Triton is imported."""
import os
import sys
from importlib.util import find_spec

import fused_cases
import pytest
from project import interpreted

ABSENT = "needs Triton (pip install triton): its interpreter runs GPU kernels on a CPU"


def test_ci_has_triton():
    if not os.environ.get("CI"): pytest.skip("only continuous integration must have it")
    assert find_spec("triton") or sys.platform != "linux"


@pytest.mark.skipif(not find_spec("triton"), reason=ABSENT)
def test_every_kernel_does_what_it_must():
    assert len(interpreted("import fused_cases; fused_cases.run('cpu')").splitlines()) == len(fused_cases.CASES + fused_cases.ON_A_CPU) > 30
