"""What the tests of the repository share: where it is, its settings, and its tools."""
import os
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

# A module imports only what stands before it.
MODULES = ("prompts tasks shifts scan kernels scan_numba scan_peers scan_cuda diagonal_cuda wkv wkv_numba wkv_cuda attention attention_triton blocks models fused baselines training parallel "
           "evaluation probing language_tasks results runs language_models language progress batch presets charts drawing experiments panels claims catalogue peers benchmarks costs precision disagreements cli").split()

_config = ConfigParser()
_config.read(ROOT / "settings.ini", encoding="utf-8")
settings = _config["DEFAULT"]


def name_of(path):
    """The path as a reader of the repository knows it."""
    return path.relative_to(ROOT).as_posix()


def run(*command, cwd=ROOT, **environment):
    """Run a command with this environment's tools; return what it printed, or fail with it."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **environment}
    done = subprocess.run(command, cwd=cwd, env=environment, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def interpreted(script):
    """What a Python script prints in which Triton's interpreter runs its kernels on the CPU: a process of its own, for the interpreter is chosen when Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
