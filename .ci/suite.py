"""The whole suite, in the environment of the Python that runs it: every library notebook, then pytest.

Ends with one line that counts both, and fails if a notebook or pytest did not run.
"""
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
WORKERS = 2


def run(*command, **environment):
    """Run `command` in the repository, echo its output as it comes, and return exit status and output."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PATH": path, **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait(), "".join(lines)


def notebooks():
    """Run the library notebooks; return how many passed and failed."""
    names = sorted(path.name for path in (ROOT / "nbs").glob("*.ipynb"))
    print(f"running {len(names)} notebooks, {WORKERS} at a time", flush=True)
    # One thread in each worker: two workers with two threads each are slower on two cores.
    status, output = run("nbdev_test", "--n_workers", str(WORKERS), "--do_print", "--timing", OMP_NUM_THREADS="1")
    ran = len(set(re.findall(r"^- Completed .*?([^/\s]+\.ipynb)$", output, re.M)))
    failed = len(re.findall(r"^\t\S+\.ipynb$", output, re.M))
    if ran != len(names): print(f"only {ran} of {len(names)} notebooks ran", flush=True)
    failed += len(names) - ran
    return ran - failed, max(failed, int(status != 0 or not names))


def tests():
    """Run pytest; return how many tests passed, failed and were skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        status, _ = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=20", f"--numprocesses={WORKERS}", f"--junitxml={report}")
        count = ElementTree.parse(report).find("testsuite").attrib if report.exists() else {}
    total, failures, errors, skipped = (int(count.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    failed = max(failures + errors, int(status != 0))
    return total - failures - errors - skipped, failed, skipped


passed_notebooks, failed_notebooks = notebooks()
passed_tests, failed_tests, skipped_tests = tests()
failed = failed_notebooks + failed_tests
print(f"{passed_notebooks} of {passed_notebooks + failed_notebooks} notebooks, "
      f"{passed_tests} of {passed_tests + failed_tests} tests")
print(f"{passed_notebooks + passed_tests} passed, {failed} failed, {skipped_tests} skipped")
sys.exit(failed > 0)
