"""The smoke tier of everything, made once for all tests by the real commands, in processes of their own."""
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from project import BIN, ROOT

# A shell that has not activated the environment.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != BIN)}


def start(*words, **options):
    return subprocess.Popen([BIN / words[0], *map(str, words[1:])], cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True, **options)


def finished(process, seconds=600):
    "Exit status and output of a process; one that takes too long is killed with all that it started."
    with process:
        try: output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output


def reproduce(root): return start("iclrepro", "reproduce", "--tier", "smoke", "--root", root)


PART = re.compile(r"\.(.+\.)?[0-9a-f]{32}(\..+)?")  # what a process that was killed while it wrote a file leaves beside it


def states(root):
    "When each file below a root was written, but for logs and parts of files."
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in sorted(Path(root).rglob("*"))
            if path.is_file() and not path.is_relative_to(Path(root) / ".snakemake") and path.name not in (".writable", "snakemake.log") and not PART.fullmatch(path.name)}


def leave_parts(root, kill):
    "Beside files of each kind what a kill in the middle of their writing leaves, which a kill seldom hits by itself."
    for name in kill:
        path = Path(root) / name
        if path.parent.name == "baselines" or path.name in ("record.nc", "config.json", "checkpoint.pt", "cost.json"): path.with_name(f".{path.name}.{'0a' * 16}").write_bytes(b"CDF")
        elif path.suffix == ".svg": path.with_name(f".{'0b' * 16}.{path.name}").write_bytes(b"<svg")


def changed(before, after): return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def alive(session):
    "Processes of a session that still run."
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try: fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError: continue
            if int(fields[3]) == session and fields[0] != "Z": found.append(entry.name)
    return found


@dataclass
class Smoke:
    """A reproduction of the smoke tier that was killed twice, while it trained and while it drew, and the third call that completed it."""
    root: Path
    kills: list[dict[str, int]]  # states when all was dead
    survivors: list[str]         # processes that outlived a kill
    status: int
    output: str


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    root, kills, survivors = tmp_path_factory.mktemp("smoke"), [], []
    for pattern, count in (("runs/*/record.nc", 2), ("*/smoke.svg", 1)):
        with reproduce(root) as process:
            deadline = time.monotonic() + 500
            while len(list(root.glob(pattern))) < count:
                assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while alive(process.pid) and time.monotonic() < deadline: time.sleep(0.05)
        survivors += alive(process.pid)
        kills.append(states(root))
        leave_parts(root, kills[-1])
    return Smoke(root, kills, survivors, *finished(reproduce(root)))
