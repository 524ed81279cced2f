"""Benchmarks: what is timed is what it says, errors and absences are told, records only grow, the README shows the last record; and a fused scan that never holds all states."""
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pytest
import torch
from project import ROOT, run

from iclrepro import benchmarks, peers
from iclrepro.benchmarks import (BENCHMARKS, STEP_MODELS, WORKLOADS, ScanShape, Workload, add_rows, ceilings, class_of, compared, contenders, entries, facts, floors, last_run, measure, race, scan_errors,
                                 scan_tensors, scan_times, shares, speed_history, speed_table, step_config, step_times, stored_records, warmed_up)
from iclrepro.claims import to_markdown
from iclrepro.cli import main
from iclrepro.models import build_model, predict
from iclrepro.prompts import Draws
from iclrepro.scan import BACKENDS, Backend, scan_loop, selective_scan
from iclrepro.scan_numba import CHUNK

TINY = Workload(1, 16, 2, 4, 3, 2)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "laptop", TINY)
    monkeypatch.setattr(benchmarks, "ceilings", lambda device="cpu": {"float32": 1e12, "tf32": 2e12, "bfloat16": 4e12, "bytes": 1e11})


# Memory of the fused scan

def saved_bytes(backend, shape=(4, 64, 32, 16)):
    "Bytes that autograd keeps between forward and backward, each storage once, what was passed in left out."
    batch, length, channels, states = shape
    tensors = {name: t[0].requires_grad_() for name, t in scan_tensors("scan", ScanShape(1, *shape), torch.float32, "cpu").items()}
    given, kept = {t.untyped_storage().data_ptr() for t in tensors.values()}, {}
    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in given: kept[storage.data_ptr()] = storage.nbytes(), t
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): out = selective_scan(**tensors, backend=backend)
    return sum(size for size, _ in kept.values()) / (4 * batch * length * channels * states), out


def test_the_fused_scan_keeps_a_fraction_of_the_states():
    "A state every CHUNK tokens, and the output before the gate; the whole-tensor form keeps all states several times."
    assert saved_bytes("numba")[0] == pytest.approx(1 / CHUNK + 1 / 16) and CHUNK >= 8
    assert saved_bytes("torch")[0] > 3 and saved_bytes("loop")[0] > 1


PEAK = """
import sys, torch
from pathlib import Path
from iclrepro.benchmarks import ScanShape, scan_tensors
from iclrepro.scan import selective_scan
def status(name): return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024
def both(shape):
    tensors = {name: t[0].requires_grad_() for name, t in scan_tensors("scan", shape, torch.float32, "cpu").items()}
    begin = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    out = selective_scan(**tensors, backend=sys.argv[1])
    torch.autograd.grad(out, list(tensors.values()), torch.ones_like(out))
    return status("VmHWM") - begin
both(ScanShape(1, 2, 17, 32))  # compiles
print(both(ScanShape(1, 64, 96, 128)) / (64 * 96 * 128 * 16 * 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_the_peak_of_a_fused_scan_is_below_one_tensor_of_states():
    "Forward and backward, temporaries of kernels included, in a process of its own, in units of (batch, length, channels, states) numbers."
    peak = {backend: float(run(sys.executable, "-c", PEAK, backend, OMP_NUM_THREADS="1")) for backend in ("numba", "torch")}
    assert 0.2 < peak["numba"] < 1 < 4 < peak["torch"]


# The scan

def test_every_backend_is_timed_and_checked():
    times = scan_times(shapes=[ScanShape(1, 2, 9, 16), ScanShape(3, 2, 5, 16, 4)], repeats=2)
    for operation in ("scan", "conv"):
        for members in (1, 3):
            rows = times.query("operation == @operation and members == @members")
            assert list(rows.backend) == ["plain", "numba", "torch", "loop"] and (rows.note == "").all()
    assert times[["error", "gradient_error"]].max(axis=None) < 1e-5 and (times.both > 0).all() and (times.low <= times.both).all() and (times.both <= times.high).all()
    assert (times.forward + times.backward - times.both).abs().max() < 1e-6 * times.both.max()
    assert not times.isna().any(axis=None)


def test_wrong_numbers_and_refusals_show(monkeypatch):
    monkeypatch.setitem(BACKENDS, "halves", Backend("test_benchmarks:halved", "iclrepro.scan:conv_loop", ("cpu",), (torch.float32,)))
    monkeypatch.setitem(BACKENDS, "breaks", Backend("test_benchmarks:broken", "iclrepro.scan:conv_loop", ("cpu",), (torch.float32,)))
    monkeypatch.setitem(BACKENDS, "absent", Backend("test_benchmarks:halved", "iclrepro.scan:conv_loop", ("cpu",), (torch.float32,), "no_such_package"))
    times = scan_times(shapes=[ScanShape(1, 2, 5, 8, 4)], repeats=2).query("operation == 'scan'").set_index("backend")
    assert times.error["halves"] == pytest.approx(0.5, rel=1e-5) and times.gradient_error["halves"] == pytest.approx(0.5, rel=1e-5)
    assert pd.isna(times.both["breaks"]) and "no such kernel" in times.note["breaks"] and times.both["halves"] > 0
    assert pd.isna(times.both["absent"]) and "pip install no_such_package" in times.note["absent"]


def halved(*given, **options): return scan_loop(*given, **options) / 2


def broken(*given, **options): raise RuntimeError("no such kernel")


def test_mamba_ssm_is_timed_in_its_own_order_member_by_member(monkeypatch):
    seen = []
    def watched(u, dt, A, B, C, *rest, **options):
        seen.append(all(t.ndim == 3 and t.mT.is_contiguous() for t in (u, dt, B, C)) and A.is_contiguous())
        return scan_loop(u, dt, A, B, C, *rest, **options)
    monkeypatch.setattr(sys.modules[__name__], "halved", watched)
    monkeypatch.setitem(BACKENDS, "mamba_ssm", Backend("test_benchmarks:halved", "iclrepro.scan:conv_loop", ("cpu",), (torch.float32,)))
    times = scan_times(shapes=[ScanShape(1, 2, 5, 8, 4), ScanShape(3, 2, 5, 8, 4)], repeats=2, backends=["mamba_ssm"]).query("operation == 'scan'")
    assert times.members_by.tolist() == ["alone", "one by one"] and times[["error", "gradient_error"]].max(axis=None) < 1e-5
    assert len(seen) > 20 and all(seen[-20:])


def test_members_are_independent_in_errors_and_inputs():
    tensors = scan_tensors("scan", ScanShape(2, 2, 5, 8, 4), torch.float32, "cpu")
    assert not torch.equal(tensors["u"][0], tensors["u"][1]) and tensors["A"].shape == (2, 8, 4)
    function, way = contenders("scan", tensors)["torch"]
    assert way == "vmap" and max(scan_errors("scan", function, tensors, stacked=True)) < 1e-5
    swapped = {**tensors, "u": tensors["u"].flip(0)}
    assert scan_errors("scan", lambda **t: function(**{**t, "u": t["u"].flip(0)}), swapped, stacked=True)[0] > 0.1


def test_bfloat16_leaves_the_parameters_in_float32():
    kinds = {name: t.dtype for name, t in scan_tensors("scan", ScanShape(1, 2, 5, 8, 4), torch.bfloat16, "cpu").items()}
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {"A", "D", "dt_bias"} and kinds["u"] == kinds["B"] == torch.bfloat16


def test_the_comparison_divides_by_the_plain_way_and_mamba_ssm():
    same = {"date": "d", "dtype": "float32", "members": 1, "batch": 2, "length": 3, "channels": 4, "states": 5, "forward": 1., "backward": 1., "low": 1., "high": 1., "error": 0., "gradient_error": 0., "note": "", "device": "x", "threads": 0}
    rows = [{**same, "operation": operation, "backend": backend, "both": both} for operation, backend, both in (("scan", "plain", 60.), ("scan", "cuda", 2.), ("scan", "mamba_ssm", 20.), ("conv", "plain", 9.), ("conv", "cuda", 3.))]
    table = compared(pd.DataFrame(rows)).set_index(["operation", "backend"])
    assert table.over_plain["scan", "cuda"] == 30 and table.over_mamba_ssm["scan", "cuda"] == 10 and table.over_plain["conv", "cuda"] == 3 and pd.isna(table.over_mamba_ssm["conv", "cuda"])


# A step

def test_a_step_of_ours_is_the_engines_and_of_a_peer_its_loop(tiny, monkeypatch):
    seen = []
    class Watched(benchmarks.Training):
        def advance(self):
            super().advance()
            seen.append((len(self.config.seeds), self.step, torch.get_num_threads()))
    monkeypatch.setattr(benchmarks, "Training", Watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made = [(row, *make()) for row, make in entries("s4_mamba", "laptop", "cpu")]
        assert [(row["who"], row["seeds"]) for row, *_ in made] == [("iclrepro", 1), ("iclrepro", 4), ("iclrepro", 8), ("PyTorch S4-Mamba by FFT", 1)]
        for _, call, _ in made: call()
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(threads)
    assert [steps for *_, steps in made] == [TINY.window] * 3 + [1] and seen == [(1, TINY.window, 2), (4, TINY.window, 1), (8, TINY.window, 1)]
    assert isinstance(made[-1][1].__self__, peers.PlainTraining)


def test_on_a_gpu_every_precision_takes_part_and_several_seeds_in_the_last(tiny, monkeypatch):
    monkeypatch.setitem(benchmarks.PRECISIONS, "bfloat16", "high")
    listed = [row for row, _ in entries("mamba", "laptop", "cuda")]
    assert [(row["precision"], row["seeds"]) for row in listed if row["who"] == "iclrepro"] == [("float32", 1), ("tf32", 1), ("bfloat16", 1), ("bfloat16", 4), ("bfloat16", 8)]
    absent = {row["who"]: row["note"] for row in listed if row["who"] != "iclrepro"}
    assert set(absent) == {"mamba-ssm Mamba", "fla Mamba"} and all("pip install" in note for note in absent.values())


def test_who_is_missing_or_fails_is_told_and_the_others_are_timed(tiny, monkeypatch):
    def fails(config): raise RuntimeError("out of luck")
    monkeypatch.setitem(peers.PEERS, "fails", peers.Peer("s4_mamba", fails))
    monkeypatch.setitem(peers.PEERS, "absent", peers.Peer("s4_mamba", fails, ("no_such_package",), "pip install it"))
    table = step_times(models=["s4_mamba"], rounds=3).set_index(["who", "seeds"])
    assert "out of luck" in table.note["fails", 1] and "pip install it" in table.note["absent", 1] and pd.isna(table.ms["fails", 1])
    timed = table[table.note == ""]
    assert len(timed) == 4 and (timed.rounds == 3).all() and not timed.drop(columns=["scan", "products", "other"]).isna().any(axis=None)
    assert (timed.tflop_per_s * timed.ms).tolist() == pytest.approx(timed.gflop.tolist()) and (timed.steps_per_s * timed.ms).tolist() == pytest.approx([1000] * 4)
    assert timed.times_floor.tolist() == pytest.approx((timed.ms / timed[["floor_by_arithmetic", "floor_by_bandwidth"]].max(axis=1)).tolist())


def test_a_limit_ends_it_and_says_what_was_left_out(tiny):
    began = time.perf_counter()
    table = step_times(models=["s4_mamba"], rounds=10**6, limit=1.5)
    assert time.perf_counter() - began < 15
    assert (table.rounds[table.note == ""] >= 3).all() and table.note.iloc[0] == ""
    none = step_times(models=["s4_mamba"], rounds=10**6, limit=0.0)
    assert none.note.iloc[0] == "" and (none.note.iloc[1:].str.startswith("not measured: the limit of 0 s")).all()


def test_what_the_first_one_compiles_costs_nobody_a_turn(monkeypatch):
    "By a clock that only moves where somebody works: 20 s for whom everything is compiled, 1 s for others, no time for rounds."
    clock, raced = [0.0], []
    monkeypatch.setattr(benchmarks, "time", types.SimpleNamespace(perf_counter=lambda: clock[0], strftime=time.strftime))
    monkeypatch.setattr(benchmarks, "ceilings", lambda device: {"float32": 1e12, "bytes": 1e12})
    def prepared(row, make, device):
        clock[0] += 1.0 if clock[0] else 20.0
        return benchmarks.Contestant(row, lambda: None, 1)
    def race(contestants, device, rounds, until):
        raced.append((len(contestants), clock[0], until))
        for each in contestants: each.seconds.extend([1.0] * 3)
    monkeypatch.setattr(benchmarks, "warmed_up", prepared)
    monkeypatch.setattr(benchmarks, "race", race)
    table = step_times(models=["s4_mamba", "s4_post"], limit=60.0)
    assert (table.note == "").all() and [n for n, *_ in raced] == [4, 3]
    (_, first, end), (_, second, last) = raced
    assert (first, second) == (23.0, 26.0) and end == 23 + (60 - 23 - 23) / 2 and last == 60
    clock[0], raced[:] = 0.0, []
    table = step_times(models=["s4_mamba", "s4_post"], limit=21.5)
    assert [n for n, *_ in raced] == [3, 1] and table.note.tolist() == [""] * 3 + ["not measured: the limit of 21.5 s"] + [""] + ["not measured: the limit of 21.5 s"] * 2


def test_everybody_takes_a_turn_in_every_round():
    order = []
    racers = [benchmarks.Contestant({}, lambda name=name: (order.append(name), time.sleep(0.005 * (name == "b"))), steps) for name, steps in (("a", 1), ("b", 50))]
    race(racers, "cpu", 4, time.perf_counter() + 60)
    assert order == ["a", "b"] * 4 and all(len(racer.seconds) == 4 for racer in racers) and 0.0001 <= min(racers[1].seconds) < 0.004
    race(racers, "cpu", 10, time.perf_counter() - 1)
    assert all(len(racer.seconds) == 4 + 3 for racer in racers)


@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
def test_peak_memory_is_what_somebody_takes():
    def make():
        held = []
        def call():
            held[:] = [torch.ones(2**24)]
            held.append(held[0] + 1)
            held.pop()
        return call, 1
    assert warmed_up({}, make, "cpu").row["memory_mb"] == pytest.approx(2 * 67.1, rel=0.1)


def test_the_floor_counts_arithmetic_and_bytes():
    config = step_config("transformer", "laptop")
    model = build_model(config.model, 0)
    found = floors(config, {"float32": 1e12, "bytes": 1e9})
    parameters = sum(p.numel() for p in model.parameters())
    assert found["gflop"] == pytest.approx(3 * 64 * model.flops(31) / 1e9) and found["floor_by_arithmetic"] == pytest.approx(found["gflop"])
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear): module.register_forward_pre_hook(lambda module, given: seen.append(given[0].numel()))
    predict(model, config.task.sample(Draws(0), 64))
    inputs = sum(seen) + 64 * 15 * config.model.d_model  # the read-out sees the inputs of pairs only
    assert found["weight_mb"] + found["optimiser_mb"] == pytest.approx(40e-6 * parameters) and found["activation_mb"] == pytest.approx(2 * 4e-6 * inputs)
    assert found["floor_by_bandwidth"] == pytest.approx(found["weight_mb"] + found["optimiser_mb"] + found["activation_mb"])


def test_shares_are_of_the_call():
    a = torch.ones(200, 200)
    def call():
        for _ in range(20): a @ a
    call()
    assert shares(call, "cpu")["products"] > 0.8 and shares(lambda: [torch.sin(a) for _ in range(20)], "cpu")["other"] == 1
    with ThreadPoolExecutor(1) as pool: assert shares(lambda: pool.submit(call).result(), "cpu")["products"] > 0.8
    tensors = {name: t[0] for name, t in scan_tensors("scan", ScanShape(1, 8, 32, 64), torch.float32, "cpu").items()}
    selective_scan(**tensors, backend="numba")
    assert shares(lambda: selective_scan(**tensors, backend="numba"), "cpu")["scan"] > 0.5


@pytest.mark.parametrize(("name", "kind"), [
    ("void selective_scan_bwd_kernel<Selective_Scan_bwd_kernel_traits<32, 4>>", "scan"), ("causal_conv1d_channellast_fwd_kernel", "scan"), ("void regular_fft<164u>", "scan"), ("scan_sums", "scan"), ("conv_backward", "scan"), ("diagonal_prepare_backward", "scan"), ("_forward", "products"), ("_backward_keys", "products"), ("_add_norm_forward", "other"),
    ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT", "products"), ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x64_8x5_nn_align1>", "products"), ("void gemmSN_NN_kernel<float>", "products"),
    ("fmha_cutlassB_f32_aligned_64x64_k32_sm80", "products"), ("void pytorch_flash::flash_fwd_kernel<>", "products"), ("void cublasLt::splitKreduce_kernel<32, 16>", "products"), ("aten::mm", "products"),
    ("aten::_addmm_activation", "products"), ("aten::linear", "products"), ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "other"), ("Memcpy DtoD", "other"),
    ("triton_poi_fused__to_copy_convert_element_type_3", "other"), ("multi_tensor_apply_kernel<FusedAdamMathFunctor>", "other"), ("void at::native::layer_norm_grad_input_kernel", "other")])
def test_kernels_fall_into_their_class(name, kind): assert class_of(name) == kind


# Records, tables, commands

def test_a_record_grows_and_refuses_another_kind(tmp_path):
    file = tmp_path / "folder" / "step.csv"
    first, second = (pd.DataFrame([{"date": date, "ms": ms, "change": "a, b"}]) for date, ms in (("2026-01-01 10:00", 1 / 3), ("2026-01-02 10:00", 2.0)))
    add_rows(first, file)
    before = file.read_text()
    assert last_run(add_rows(second, file)).ms.tolist() == [2.0] and file.read_text().startswith(before) and pd.read_csv(file).change.tolist() == ["a, b"] * 2
    with pytest.raises(ValueError, match="has other columns .*name another file"): add_rows(first.assign(extra=1), file)
    assert file.read_text().count("\n") == 3


STEP = [("laptop", "mamba", "iclrepro", "float32", 1, 40.), ("laptop", "mamba", "iclrepro", "tf32", 1, 20.), ("laptop", "mamba", "iclrepro", "tf32", 8, 80.), ("laptop", "mamba", "slow", "float32", 1, 300.),
        ("laptop", "mamba", "quick", "float32", 1, 100.), ("laptop", "s4_mamba", "iclrepro", "float32", 1, 5.), ("laptop", "s4_mamba", "away", "float32", 1, float("nan"))]


def test_the_table_of_speed_and_its_history():
    frame = pd.DataFrame(STEP, columns=["size", "model", "who", "precision", "seeds", "ms"]).assign(change="ours", device="chip", date="2026-01-02 10:00")
    older = frame.assign(ms=frame.ms * 2, date="2026-01-01 10:00", change=None)
    record = pd.concat([older, frame])
    mamba, s4 = speed_table(record).to_dict("records")
    assert mamba == {"model": "Mamba", "size": "laptop", "the plain way": "100 (quick)", "iclrepro, float32": "40", "iclrepro, tf32": "20", "times faster": "5.0", "a seed of 8": "10"}
    assert s4["the plain way"] == "not measured" and s4["times faster"] == s4["iclrepro, tf32"] == ""
    history = speed_history(record)
    assert history.Mamba.tolist() == ["40 (200)", "20 (100)"] and history.day.tolist() == ["2026-01-01", "2026-01-02"] and history["what is new"].tolist() == ["", "ours"]


def test_the_readme_shows_the_last_record():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert stored_records("step") and "cpu" in stored_records("scan")
    for record in stored_records("step").values(): assert to_markdown(speed_table(record)) in readme, "run nbs/index.ipynb again: make notebooks"


def test_stored_records_hold_what_a_time_needs():
    for name in BENCHMARKS:
        for record in stored_records(name).values():
            rows = last_run(record)
            assert set(facts()) <= set(record.columns) and rows[["date", "device", "torch"]].notna().all(axis=None)
    assert set(STEP_MODELS) == set(last_run(stored_records("step")["cpu"]).model)


@pytest.mark.parametrize("what", ["step", "scan", "all"])
def test_a_benchmark_from_the_command_line(what, tiny, tmp_path, capsys, monkeypatch):
    quick = {"step": lambda device, change, limit: step_times(device, models=["s4_mamba"], rounds=3, limit=limit, change=change),
             "scan": lambda device, change, limit: scan_times(device, [ScanShape(1, 2, 5, 8)], 2, change),
             "sampling": lambda device, change, limit: benchmarks.sampling_times(device, 2, 4, repeats=2, change=change)}
    for name, call in quick.items(): monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], run=call))
    threads, target = torch.get_num_threads(), tmp_path / ("all" if what == "all" else "one.csv")
    try: assert [main(["bench", what, "--change", "nothing", "--save", str(target)]) for _ in range(2)] == [0, 0]
    finally: torch.set_num_threads(threads)
    files = sorted(target.glob("*.csv")) if what == "all" else [target]
    assert len(files) == (3 if what == "all" else 1)
    for record in map(pd.read_csv, files):
        asked = record[[column for column in record if record[column].dtype.kind not in "if" or column in ("seeds", "members", "batch", "length", "channels", "tokens", "threads")]].drop(columns="date")
        first, second = asked.iloc[:len(record) // 2].reset_index(drop=True), asked.iloc[len(record) // 2:].reset_index(drop=True)
        assert first.equals(second) and set(record.change) == {"nothing"}
    assert "iclrepro" in capsys.readouterr().out or what == "scan"


def test_bad_input_to_a_benchmark(capsys):
    for words, said in ((["bench", "steps"], "unknown benchmark 'steps'"), (["bench", "--threads", "0"], "threads is 0"), (["bench", "step", "--device", "tpu"], "tpu")):
        assert main(words) == 2 and said in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown size 'huge'"): step_times(sizes=["huge"])
    with pytest.raises(ValueError, match="unknown model"): step_times(models=["mambo"])


def test_ceilings_are_rates():
    found = ceilings("cpu")
    assert set(found) == {"float32", "bytes"} and 1e9 < found["float32"] < 1e14 and 1e8 < found["bytes"] < 1e13
    assert len(measure(lambda: time.sleep(0.001), repeats=3)) == 3


def test_benchmarks_need_no_charts_or_notebooks():
    "A machine that only measures has none of these."
    run(sys.executable, "-c", "import sys\nfor name in ('altair', 'vl_convert', 'papermill', 'nbformat', 'nbconvert', 'jupytext', 'snakemake', 'IPython', 'transformers', 'nbdev', 'fastcore'): sys.modules[name] = None\nimport iclrepro.benchmarks")
