"""The CUDA scan and convolution against the float64 loop: emulated on a CPU, and on a GPU where there is one."""
import os
import subprocess
import sys
import types
from functools import partial

import pytest
import torch
from emulator import COMPILER, Emulator
from test_scan import gradients_of_the_unheard

from iclrepro import kernels, scan_cuda
from iclrepro.prompts import Draws
from iclrepro.scan import BACKENDS, causal_conv1d, errors_against_loop, find_backend, scan_loop, selective_scan
from iclrepro.scan_cuda import conv_cuda

BF16, FP32 = torch.bfloat16, torch.float32
PARAMETERS = ("A", "D", "dt_bias", "weight", "bias")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if COMPILER is None:
        message = "the emulator needs Linux and g++ or clang++"
        if sys.platform == "linux" and os.environ.get("CI") == "true": pytest.fail(message)
        pytest.skip(message)
    return tmp_path_factory.mktemp("emulator")


@pytest.fixture
def emulator(folder, monkeypatch):
    "Kernels run on the CPU, in memory that nobody has set to zero for them."
    emulator, new_empty = Emulator(folder), torch.Tensor.new_empty
    monkeypatch.setattr(scan_cuda, "launch", emulator.launch)
    monkeypatch.setattr(scan_cuda, "shared_memory", emulator.shared_memory)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape, **kind: new_empty(self, *shape, **kind).fill_(torch.nan))
    return emulator


def scan_inputs(batch, length, channels, dtype=FP32, members=(), device="cpu", without=()):
    "Arguments of selective_scan by name, as a Mamba block has them: halves and slices of wider tensors, parameters of float32."
    draw = lambda *shape: Draws(0, length, device=device).normal(*members, *shape)
    wide, narrow, drawn = draw(batch, length, 4 * channels).to(dtype), draw(batch, length, 48).to(dtype), draw(channels, 18)
    tensors = {"u": wide[..., :channels], "dt": wide[..., channels : 2 * channels] - 2, "A": -drawn[..., :16].exp(), "B": narrow[..., 16:32],
               "C": narrow[..., 32:], "D": drawn[..., 16], "z": wide[..., 3 * channels :], "dt_bias": drawn[..., 17]}
    return {name: tensor for name, tensor in tensors.items() if name not in without}


def conv_inputs(batch, length, channels, dtype=FP32, members=(), device="cpu"):
    draw = lambda *shape: Draws(1, length, device=device).normal(*members, *shape)
    drawn = draw(channels, 5)
    return {"x": draw(batch, length, 2 * channels).to(dtype)[..., :channels], "weight": drawn[..., :4], "bias": drawn[..., 4]}


def assert_is_the_loop(function, tensors, exact_to=5e-6, **options):
    "Sums and states are float32 whatever goes in and out, so the parameters' gradients are as exact as float32 allows."
    errors = errors_against_loop(function, tensors, **options)
    exact = next(iter(tensors.values())).dtype == FP32
    bounds = {name: exact_to if exact or name in PARAMETERS else 1e-2 for name in errors}
    assert all(error < bounds[name] for name, error in errors.items()), errors


def output_and_gradients(function, tensors):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]
    out = function(*leaves)
    weights = torch.cos(torch.arange(out.numel(), device=out.device)).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights)]


def same_bytes(first, second):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Emulated

@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("batch", "length", "channels"), [(3, 1, 32), (2, 2, 128), (3, 3, 96), (2, 5, 32), (1, 31, 96), (2, 82, 128)])
def test_the_scan_is_the_loop(emulator, batch, length, channels, dtype):
    assert_is_the_loop(scan_cuda.scan_cuda, scan_inputs(batch, length, channels, dtype))


@pytest.mark.parametrize("channels", [64, 160, 256])
def test_any_multiple_of_32_channels(emulator, channels):
    assert_is_the_loop(scan_cuda.scan_cuda, scan_inputs(2, 6, channels))


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("without", [("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")], ids=" ".join)
def test_the_scan_with_and_without_its_extras(emulator, without, softplus):
    tensors = scan_inputs(2, 9, 32, without=without)
    if not softplus: tensors |= {name: tensors[name].exp() / 10 for name in ("dt", "dt_bias") if name in tensors}
    assert_is_the_loop(scan_cuda.scan_cuda, tensors, softplus=softplus)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_more_tokens_than_shared_memory_holds(emulator, dtype):
    emulator.shared = 0
    tensors = scan_inputs(2, 200, 128, dtype)
    assert_is_the_loop(scan_cuda.scan_cuda, tensors)
    several = output_and_gradients(scan_cuda.scan_cuda, tensors)
    emulator.shared = 100_000
    assert same_bytes(several, output_and_gradients(scan_cuda.scan_cuda, tensors))
    bytes = [shared for name, _, _, shared in emulator.launched if name == "scan_backward"]
    assert [bytes[2] - before for before in bytes] == [(208 - 64) * 128, (208 - 64) * 128, 0]


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("batch", "length", "channels"), [(2, 1, 32), (2, 2, 96), (3, 5, 32), (2, 31, 96), (1, 210, 32)])
@pytest.mark.parametrize("silu", [True, False])
def test_the_convolution_is_the_loop(emulator, batch, length, channels, dtype, silu):
    tensors = conv_inputs(batch, length, channels, dtype)
    if length == 5: del tensors["bias"]
    assert_is_the_loop(conv_cuda, tensors, silu=silu)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_an_outputs_gradient_is_read_where_it_lies(emulator, dtype):
    for function, tensors in ((scan_cuda.scan_cuda, scan_inputs(2, 9, 32, dtype)), (conv_cuda, conv_inputs(2, 9, 32, dtype))):
        leaves = [x.detach().clone().requires_grad_() for x in tensors.values()]
        g = Draws(5).normal(2, 9, 96).to(dtype)[..., 32:64]
        assert scan_cuda._rows(g) == (g, 96)
        assert same_bytes(*(torch.autograd.grad(function(*leaves), leaves, x) for x in (g, g.contiguous())))


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_neither_the_order_of_threads_nor_the_time_of_copies_matters(emulator, dtype):
    emulator.shared, results = 0, []
    for emulator.backwards, emulator.late in ((False, True), (True, True), (False, False), (True, False)):
        results.append(output_and_gradients(scan_cuda.scan_cuda, scan_inputs(2, 82, 128, dtype)))
        results[-1] += output_and_gradients(conv_cuda, conv_inputs(2, 31, 96, dtype))
    assert all(same_bytes(results[0], other) for other in results[1:])


def every_second(tensor): return tensor.repeat_interleave(2, -1)[..., ::2]
def transposed(tensor): return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor
def shifted(tensor): return torch.cat((tensor[..., :1], tensor), -1)[..., 1:]
def one_for_all(tensor): return tensor[:1].expand_as(tensor)
def every_other_row(tensor): return torch.stack((tensor, tensor), 1)[:, 0]


@pytest.mark.parametrize("layout", [every_second, transposed, shifted, one_for_all, every_other_row])
def test_any_layout(emulator, layout):
    tensors = {name: layout(tensor) for name, tensor in scan_inputs(2, 5, 32).items()}
    assert_is_the_loop(scan_cuda.scan_cuda, tensors)
    assert_is_the_loop(conv_cuda, {name: layout(tensor) for name, tensor in conv_inputs(2, 5, 32).items()})


def test_a_blocks_tensors_are_read_where_they_lie(emulator):
    tensors = scan_inputs(2, 5, 32, BF16)
    assert not tensors["u"].is_contiguous() and not tensors["B"].is_contiguous()
    assert all(scan_cuda._rows(tensors[name])[0] is tensors[name] for name in ("u", "dt", "B", "C", "z"))
    for length in (1, 5):
        row = torch.zeros(3, length, 128)[..., 64:]
        assert scan_cuda._rows(row) == (row, 128)
    assert scan_cuda._rows(torch.zeros(3, 5, 128)[..., 1:65])[1] == 64


def test_a_sum_has_one_gradient_for_all(emulator):
    tensors = scan_inputs(2, 5, 32)
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    scan_cuda.scan_cuda(**leaves).sum().backward()
    doubles = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    scan_loop(**doubles).sum().backward()
    for name in leaves: torch.testing.assert_close(leaves[name].grad.double(), doubles[name].grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_members_are_the_same_members_alone(emulator, dtype):
    for function, tensors in ((scan_cuda.scan_cuda, scan_inputs(2, 9, 32, dtype, members=(3,))), (conv_cuda, conv_inputs(2, 9, 32, dtype, members=(3,)))):
        del emulator.launched[:]
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]
        torch.vmap(function)(*leaves).square().sum().backward()
        launches = [name for name, *_ in emulator.launched]
        for m in range(3):
            alone = [tensor[m].detach().clone().requires_grad_() for tensor in tensors.values()]
            function(*alone).square().sum().backward()
            assert all(torch.equal(a.grad, b.grad[m]) for a, b in zip(alone, leaves))
        assert len(launches) == 3 and emulator.launched[3:6] == emulator.launched[6:9]


def test_members_of_members_and_what_they_share(emulator):
    tensors = scan_inputs(2, 5, 32, members=(2, 3))
    shared = {**tensors, "u": tensors["u"][:, 0], "A": tensors["A"][0, 0], "B": tensors["B"][0]}
    axes = {**dict.fromkeys(tensors, 0), "A": None, "B": None}, {**dict.fromkeys(tensors, 0), "u": None, "A": None}
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in shared.items()}
    for function in (scan_cuda.scan_cuda, scan_loop):
        mapped = torch.vmap(torch.vmap(function, in_dims=tuple(axes[1].values())), in_dims=tuple(axes[0].values()))
        out = mapped(*leaves.values())
        got = [out.detach(), *torch.autograd.grad(out.square().sum(), list(leaves.values()))]
        if function is scan_cuda.scan_cuda: first = got
    for a, b in zip(first, got): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


EDGES = """
import ctypes, mmap, sys, torch
sys.path.insert(0, {tests!r})
from emulator import Emulator
from iclrepro import scan_cuda
from test_scan_cuda import conv_inputs, output_and_gradients, scan_inputs
emulator, page, kept = Emulator({folder!r}), mmap.PAGESIZE, []
scan_cuda.launch, scan_cuda.shared_memory = emulator.launch, emulator.shared_memory
protect = ctypes.CDLL(None).mprotect
def edged(shape, dtype, at_end):
    "A tensor that begins right after, or ends right before, memory that nobody may touch."
    size = torch.Size(shape).numel() * dtype.itemsize
    body = -(-max(size, 1) // page) * page
    kept.append(mmap.mmap(-1, body + 2 * page))
    begin = ctypes.addressof(ctypes.c_char.from_buffer(kept[-1]))
    for at in (begin, begin + page + body): assert protect(ctypes.c_void_p(at), page, 0) == 0
    if size == 0: return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(kept[-1], dtype=dtype, count=size // dtype.itemsize, offset=page + (body - size if at_end else 0)).view(shape)
for at_end in (True, False):
    torch.Tensor.new_empty = lambda self, *shape, dtype=None: edged(*(shape if not isinstance(shape[0], int) else (shape,)), dtype or self.dtype, at_end)
    for dtype in (torch.float32, torch.bfloat16):
        for function, inputs in ((scan_cuda.scan_cuda, scan_inputs), (scan_cuda.conv_cuda, conv_inputs)):
            for shape in ((1, 1, 32), (2, 2, 32), (1, 31, 32)):
                tensors = {{name: edged(t.shape, t.dtype, at_end).copy_(t) for name, t in inputs(*shape, dtype).items()}}
                clone = torch.Tensor.clone
                torch.Tensor.clone = lambda self, **_: self
                output_and_gradients(function, tensors)
                torch.Tensor.clone = clone
if {touch}: ctypes.string_at(edged((4,), torch.float32, True).data_ptr(), 20)
"""


@pytest.mark.parametrize("touch", [False, True])
def test_no_kernel_touches_memory_beyond_its_tensors(emulator, touch):
    code = EDGES.format(tests=os.path.dirname(__file__), folder=str(emulator.folder), touch=touch)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode < 0) == touch and not done.stderr, done.stderr


def test_nothing_is_kept_without_autograd(emulator):
    tensors, kept = scan_inputs(2, 9, 32), []
    forward = scan_cuda._scan_forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_cuda, "_scan_forward", lambda *arguments: kept.append(forward(*arguments)) or kept[-1])
        with torch.no_grad(): quiet = scan_cuda.scan_cuda(**tensors)
        loud = scan_cuda.scan_cuda(**tensors)
    assert torch.equal(quiet, loud)
    assert [out[2].numel() for out in kept] == [0, 2 * 3 * 32 * 16] and [out[1].numel() for out in kept] == [0, 2 * 9 * 32]


def test_an_empty_batch(emulator):
    out, *gradients = output_and_gradients(scan_cuda.scan_cuda, scan_inputs(0, 3, 32))
    assert out.shape == (0, 3, 32) and all(g.abs().sum() == 0 for g in gradients)
    out, *gradients = output_and_gradients(conv_cuda, conv_inputs(0, 3, 32))
    assert out.shape == (0, 3, 32) and all(g.abs().sum() == 0 for g in gradients)


def test_an_output_without_a_gradient_has_none_to_pass_on(emulator):
    assert not any(g is not None for g in gradients_of_the_unheard(scan_cuda.scan_cuda, scan_inputs(1, 2, 32)))
    assert not any(g.any() for g in gradients_of_the_unheard(conv_cuda, conv_inputs(1, 2, 32)))


def test_a_second_derivative_is_refused_not_wrong(emulator):
    for function, tensors in ((scan_cuda.scan_cuda, scan_inputs(1, 2, 32)), (conv_cuda, conv_inputs(1, 2, 32))):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]
        with pytest.raises(RuntimeError, match="CUDA kernels have first derivatives only: use backend='torch'"):
            torch.autograd.grad(function(*leaves).sum(), leaves, create_graph=True)


def test_nan_stays_with_its_channel_and_its_prompt(emulator):
    tensors = scan_inputs(2, 9, 32)
    tensors["u"] = tensors["u"].clone()
    tensors["u"][0, 4, 7] = torch.nan
    out = scan_cuda.scan_cuda(**tensors).isnan()
    assert out[0, 4:, 7].all() and out.sum() == out[0, 4:, 7].numel()


@pytest.mark.parametrize("rate", [1e4, -1e4])
def test_tokens_after_the_last_change_nothing_whatever_the_rate(emulator, rate):
    "A chunk is four tokens; here one is left in the last."
    tensors = scan_inputs(1, 5, 32)
    tensors["A"] = tensors["A"].clone()
    tensors["A"][3, 2] = rate
    tensors["dt"] = torch.full_like(tensors["dt"], -100.0)
    tensors["dt_bias"] = torch.full_like(tensors["dt_bias"], 90.0)
    assert all(g.isfinite().all() for g in output_and_gradients(scan_cuda.scan_cuda, tensors))


# Compiling and choosing, without a GPU

@pytest.fixture
def compiler(monkeypatch, tmp_path):
    "A stand-in for NVRTC that counts."
    class Status(int):
        name = "NVRTC_ERROR_COMPILATION"
    calls, nvrtc = [], types.ModuleType("cuda.bindings.nvrtc")
    def compile(program, count, options):
        calls.append((program, options))
        return (Status(b"wrong" in program),)
    def write(text): return lambda program, buffer: (ctypes_write(buffer, text), (Status(0),))[1]
    nvrtc.nvrtcVersion = lambda: (Status(0), 13, 0)
    nvrtc.nvrtcCreateProgram = lambda source, *_: (Status(0), source)
    nvrtc.nvrtcCompileProgram = compile
    nvrtc.nvrtcGetProgramLogSize = nvrtc.nvrtcGetCUBINSize = lambda program: (Status(0), 4)
    nvrtc.nvrtcGetProgramLog, nvrtc.nvrtcGetCUBIN = write(b"line"), write(b"code")
    nvrtc.nvrtcDestroyProgram = lambda program: (Status(0),)
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    bindings.nvrtc = nvrtc
    for module in (package, bindings): monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return calls


def ctypes_write(buffer, text):
    import ctypes
    ctypes.memmove(buffer, text, len(text))


def test_a_source_is_compiled_once_for_an_architecture(compiler, tmp_path):
    for architecture in ("sm_90", "sm_90", "sm_80", "sm_90"): assert kernels.compiled("int x;", architecture) == b"code"
    assert len(compiler) == 2 and compiler[0][1][0] == b"--gpu-architecture=sm_90"
    assert len(list((tmp_path / "iclrepro").iterdir())) == 2
    kernels.compiled("int y;", "sm_90")
    assert len(compiler) == 3


def test_the_compilers_words_are_passed_on_and_nothing_is_kept(compiler, tmp_path):
    with pytest.raises(RuntimeError, match="NVRTC 13.0 cannot compile for sm_90: NVRTC_ERROR_COMPILATION\nline"): kernels.compiled("wrong", "sm_90")
    assert not (tmp_path / "iclrepro").exists()


def test_a_cache_that_cannot_be_written_stops_nobody(compiler, tmp_path):
    (tmp_path / "iclrepro").write_text("a file where the folder would be")
    assert kernels.compiled("int x;", "sm_90") == b"code" == kernels.compiled("int x;", "sm_90")
    assert len(compiler) == 2


def test_code_that_could_not_be_written_whole_leaves_nothing_behind(compiler, tmp_path, monkeypatch):
    def full(*_): raise OSError("no space left on device")
    monkeypatch.setattr(os, "replace", full)
    assert kernels.compiled("int x;", "sm_90") == b"code" and list((tmp_path / "iclrepro").iterdir()) == []


def test_what_the_cuda_backend_takes(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.ModuleType("cuda.bindings"))
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    like = types.SimpleNamespace(device=torch.device("cuda", 0), dtype=BF16, is_cuda=True)
    capability = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    refusal = partial(BACKENDS["cuda"].refusal, like)
    assert refusal(channels=96, states=16, length=3) == refusal(channels=32, width=4) == ""
    assert refusal(channels=80, states=16) == "takes channels = a multiple of 32, not 80"
    assert refusal(channels=96, states=8) == "takes states = 16, not 8"
    assert refusal(channels=96, width=3) == "takes width = 4, not 3"
    assert find_backend("auto", like, channels=96, states=16) == "cuda" and find_backend("auto", like, channels=96, states=8) == "torch"
    with pytest.raises(ValueError, match="'cuda' takes states = 16, not 8.*usable here: torch, loop, or auto"): find_backend("cuda", like, channels=96, states=8)
    capability[0] = (7, 5)
    assert refusal(channels=96, states=16) == "needs a GPU of compute capability 8.0 or more, not 7.5"
    capability[0] = (12, 0)
    assert refusal(channels=96, states=16) == ""
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert refusal(channels=96, states=16) == "needs the package cuda.bindings, which cannot be imported: pip install cuda-bindings"
    with pytest.raises(ValueError, match="'cuda' runs on cuda, not on cpu"): selective_scan(**scan_inputs(1, 2, 32), backend="cuda")


# On a GPU

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
on_gpu = partial(selective_scan, backend="cuda")
conv_on_gpu = partial(causal_conv1d, backend="cuda")


@gpu
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("batch", "length", "channels"), [(64, 82, 512), (64, 82, 256), (64, 202, 512), (2, 331, 64), (3, 5, 96), (3, 1, 32), (1, 2048, 128)])
def test_on_a_gpu_the_kernels_are_the_loop(batch, length, channels, dtype):
    # The exponential of a GPU is off by up to 2 ** -22, in every decay that a long memory multiplies up.
    assert_is_the_loop(on_gpu, scan_inputs(batch, length, channels, dtype, device="cuda"), 5e-6 if length < 1000 else 5e-5)
    assert_is_the_loop(conv_on_gpu, conv_inputs(batch, length, channels, dtype, device="cuda"))


@gpu
@pytest.mark.parametrize("without", [("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")], ids=" ".join)
def test_on_a_gpu_with_and_without_extras(without):
    for dtype in (FP32, BF16): assert_is_the_loop(on_gpu, scan_inputs(4, 41, 256, dtype, device="cuda", without=without))
    tensors = scan_inputs(4, 41, 256, device="cuda", without=without)
    tensors |= {name: tensors[name].exp() / 10 for name in ("dt", "dt_bias") if name in tensors}
    assert_is_the_loop(on_gpu, tensors, softplus=False)
    assert_is_the_loop(conv_on_gpu, {n: t for n, t in conv_inputs(4, 41, 256, device="cuda").items() if n != "bias"}, silu=False)


@gpu
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_on_a_gpu_two_runs_and_a_recorded_one_give_the_same_bytes(dtype):
    work = [(on_gpu, scan_inputs(64, 82, 512, dtype, device="cuda")), (conv_on_gpu, conv_inputs(64, 82, 512, dtype, device="cuda"))]
    run = lambda: [tensor for function, tensors in work for tensor in output_and_gradients(function, tensors)]
    once = run()
    assert same_bytes(once, run())
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side): run()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph): recorded = run()
    for tensor in recorded: tensor.fill_(torch.nan)
    graph.replay()
    assert same_bytes(once, recorded)


@gpu
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_on_a_gpu_members_are_the_same_members_alone(dtype):
    for function, tensors in ((on_gpu, scan_inputs(8, 82, 256, dtype, (4,), "cuda")), (conv_on_gpu, conv_inputs(8, 82, 256, dtype, (4,), "cuda"))):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors.values()]
        torch.vmap(function)(*leaves).square().sum().backward()
        for m in range(4):
            alone = [tensor[m].detach().clone().requires_grad_() for tensor in tensors.values()]
            function(*alone).square().sum().backward()
            assert all(torch.equal(a.grad, b.grad[m]) for a, b in zip(alone, leaves))


@gpu
def test_on_a_gpu_auto_takes_these_kernels_also_under_autocast():
    tensors = scan_inputs(2, 5, 96, BF16, device="cuda")
    with torch.autocast("cuda", BF16): assert torch.equal(selective_scan(**tensors), on_gpu(**tensors))
    assert find_backend("auto", tensors["u"], channels=96, states=16) == "cuda"
