"""The fused kernels in Triton's interpreter, in a process of its own: the interpreter is chosen when Triton is imported."""
import os
import subprocess
import sys
from importlib.util import find_spec

import fused_cases
import pytest
from project import ROOT

ABSENT = "needs Triton (pip install triton): its interpreter runs GPU kernels on a CPU"


def test_ci_has_triton():
    if not os.environ.get("CI"): pytest.skip("only continuous integration must have it")
    assert find_spec("triton") or sys.platform != "linux"


@pytest.mark.skipif(not find_spec("triton"), reason=ABSENT)
def test_every_kernel_does_what_it_must():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", "import fused_cases; fused_cases.run('cpu')"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(fused_cases.CASES + fused_cases.ON_A_CPU) > 30
