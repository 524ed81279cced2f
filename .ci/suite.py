"""The whole suite, in the environment of the Python that runs it: every library notebook, then pytest.

Ends with one line that counts both, and fails if a notebook or pytest did not run.
"""
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
WORKERS = 2


def run(*command, quiet=False, **environment):
    """Run `command` in the repository, echo its output as it comes, or at its end if `quiet`, and return exit status and output."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PATH": path, **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines = []
    for line in process.stdout:
        if not quiet: print(line, end="", flush=True)
        lines.append(line)
    if quiet: print("".join(lines), end="", flush=True)
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
    """Run pytest; return how many tests passed, failed and were skipped.

    Two processes share the files: those that need the whole smoke tier, which is made once, and the others."""
    with_smoke = [name for name in sorted(path.name for path in (ROOT / "tests").glob("test_*.py")) if "smoke)" in (ROOT / "tests" / name).read_text()]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        reports = [Path(folder) / f"{i}.xml" for i in range(2)]
        chosen = [[f"tests/{name}" for name in with_smoke], [f"--ignore=tests/{name}" for name in with_smoke]]
        call = lambda words, report: run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10", f"--junitxml={report}", *words, quiet=True)
        statuses = [status for status, _ in pool.map(call, chosen, reports)]
        counts = [ElementTree.parse(report).find("testsuite").attrib if report.exists() else {} for report in reports]
    total, failures, errors, skipped = (sum(int(count.get(key, 0)) for count in counts) for key in ("tests", "failures", "errors", "skipped"))
    failed = max(failures + errors, sum(status != 0 for status in statuses))
    return total - failures - errors - skipped, failed, skipped


passed_notebooks, failed_notebooks = notebooks()
passed_tests, failed_tests, skipped_tests = tests()
failed = failed_notebooks + failed_tests
print(f"{passed_notebooks} of {passed_notebooks + failed_notebooks} notebooks, "
      f"{passed_tests} of {passed_tests + failed_tests} tests")
print(f"{passed_notebooks + passed_tests} passed, {failed} failed, {skipped_tests} skipped")
sys.exit(failed > 0)
