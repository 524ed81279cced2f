"""Runs the CUDA kernels of the package on a CPU: the same C++, compiled by the host's compiler with cuda_on_cpu.h."""
import ctypes
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from iclrepro import kernels

COMPILER = (shutil.which("g++") or shutil.which("clang++")) if sys.platform == "linux" else None
KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(const (\w+) p\)')


class Emulator:
    """`launch` and `shared_memory` of iclrepro.kernels for tensors of the CPU."""

    def __init__(self, folder, shared=100_000, backwards=False, late=True):
        self.folder, self.shared, self.backwards, self.late, self.launched = Path(folder), shared, backwards, late, []

    def library(self, source):
        path = self.folder / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.so"
        if not path.exists():
            runs = "".join(
                f'extern "C" int run_{name}(int blocks, int threads, int bytes, int backwards, int late, const {structure}* p) '
                f"{{ return emulator::run(blocks, threads, bytes, backwards, late, [=] {{ {name}(*p); }}); }}\n"
                for name, structure in KERNEL.findall(source))
            text = path.with_suffix(".cpp")
            text.write_text(f'#include "{Path(__file__).with_name("cuda_on_cpu.h")}"\n{source}{runs}', encoding="utf-8")
            command = [COMPILER, "-O1", "-std=c++17", "-shared", "-fPIC", "-w", "-U_FORTIFY_SOURCE", text, "-o", path]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(path))

    def launch(self, source, name, blocks, threads, shared, tensors, numbers):
        assert 0 <= blocks < 2**31 and threads <= 1024 and threads % 32 == 0 and shared <= 232_448
        assert all(-(2**31) <= n < 2**31 for n in numbers)
        assert kernels.shared_device(tensors).type == "cpu"
        bound = re.search(rf"__launch_bounds__\((\d+)[^)]*\) {name}\(", source)
        assert not bound or threads <= int(bound[1]), f"{name} has {threads} threads, but says that it has at most {bound[1]}"
        self.launched.append((name, blocks, threads, shared))
        structure = ctypes.create_string_buffer(kernels.packed(tensors, numbers))
        broken = getattr(self.library(source), f"run_{name}")(blocks, threads, shared, int(self.backwards), int(self.late), structure)
        assert not broken & 1, f"{name} wrote beyond its {shared} bytes of shared memory"
        assert not broken & 2, f"{name} has threads that wait for ever"

    def shared_memory(self, device, least):
        return max(self.shared, least)
