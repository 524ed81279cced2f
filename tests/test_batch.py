"""Many runs on many devices: order, failures, and batches that are stopped, killed, and share a folder."""
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from project import ROOT

from iclrepro import batch
from iclrepro.batch import Batch, Worker, device_list, read_configs, save_configs, train_all, training_on, unfinished
from iclrepro.cli import main
from iclrepro.evaluation import Exam
from iclrepro.experiments import EXPERIMENTS, experiment_runs
from iclrepro.models import architecture
from iclrepro.progress import Watch, read_progress, tell_in
from iclrepro.results import load_checkpoint
from iclrepro.runs import Progress, RunConfig, RunLock, Stopped, find_record, is_locked, run
from iclrepro.tasks import TASKS, Curriculum, LinearRegression, register_task
from iclrepro.training import TrainConfig


BATCH = 8


class Known:
    """A task that a worker knows by name from the moment it receives a run."""
    def __setstate__(self, state):
        register_task(type(self).name)(type(self))
        self.__dict__.update(state)


@dataclass(frozen=True)
class Gated(Known, LinearRegression):
    """Linear regression that waits before step `hold` until the file `gate` is there, and notes who trains step 0."""
    gate: str = ""
    hold: int = 12

    def function(self, draws, batch_size, dims):
        step, deadline = int(draws.rng.bit_generator.state["state"]["key"][1]), time.monotonic() + 120
        if step == 0 and batch_size == BATCH:  # an exam has another
            with open(f"{self.gate}.begun", "a") as file: file.write("begun\n")
        if Path(self.gate).name == "impatient": batch.PATIENCE = 0.2
        while step >= self.hold and not Path(self.gate).exists():
            assert time.monotonic() < deadline, "the gate stayed closed"
            time.sleep(0.01)
        return super().function(draws, batch_size, dims)


@dataclass(frozen=True)
class Broken(Known, LinearRegression):
    """Raises what nobody expects."""
    def function(self, draws, batch_size, dims): raise RuntimeError("no such thing")


TASKS_HERE = {"gated": Gated, "broken": Broken}
for name, cls in TASKS_HERE.items(): cls.name = name


@pytest.fixture(autouse=True)
def known(monkeypatch):
    "In this process the tasks of this file are known during its tests only."
    for name, cls in TASKS_HERE.items(): monkeypatch.setitem(TASKS, name, cls)


def config(name="short", task=None, steps=30, **changes):
    task = task or LinearRegression(3, 8)
    model = architecture("transformer", 3, n_layers=1, d_model=16, n_heads=2, n_points=8)
    recipe = TrainConfig(task, model, Curriculum.constant(task), steps, **{"seeds": (3,), "batch_size": BATCH, "lr": 1e-3, "log_every": 5, **changes})
    return RunConfig(name, recipe, (Exam("none", 8, (0, 7), 16, 16),))


def gated(path, name="gated", **changes): return config(name, Gated(3, 8, gate=str(path)), **changes)
def folder_of(config, root): return Path(root) / "runs" / config.folder
def record_of(config, root): return folder_of(config, root) / "record.nc"
def begun(config): return Path(f"{config.train.task.gate}.begun").read_text().count("begun")


def until(condition, what):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"two minutes without {what}"
        time.sleep(0.01)


def held(config, root):
    "Wait until the run is in the window that its gate keeps it from ending."
    def told():
        progress = read_progress(folder_of(config, root) / "progress.json")
        return progress is not None and progress.step >= 10
    until(lambda: told() and is_locked(folder_of(config, root)), "a run at its gate")


def assert_as_if_alone(config, root, tmp_path):
    "The record is, byte for byte, that of the run made in this process without interruption."
    run(config, tmp_path / "alone")
    assert record_of(config, root).read_bytes() == record_of(config, tmp_path / "alone").read_bytes()


processes = multiprocessing.get_context("forkserver")


def call(configs, root, options):
    try: sys.exit(1 if train_all(configs, root, **options) else 0)
    except KeyboardInterrupt: sys.exit(130)


class Caller:
    """A process that makes a batch. Its end leaves nothing of it behind."""
    def __init__(self, configs, root, **options):
        self.process = processes.Process(target=call, args=(configs, root, options))
        self.process.start()

    def __enter__(self): return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.join()

    def send(self, number): os.kill(self.process.pid, number)

    def ended(self):
        self.process.join(120)
        return self.process.exitcode


def test_the_longest_run_is_begun_first(tmp_path):
    configs = [config("b", steps=20), config("d", steps=10), config("a", steps=40), config("c", steps=15)]
    told = []
    assert train_all([*configs, configs[1]], tmp_path, report=told.append) == {}
    assert [c.name for c in sorted(configs, key=lambda c: record_of(c, tmp_path).stat().st_mtime_ns)] == ["a", "b", "c", "d"]
    assert {progress.name for progress in told if progress.stage == "finished"} == set("abcd")


def test_the_length_of_a_run_counts_points_widths_and_seeds_and_what_is_done(tmp_path):
    short, task = config(), LinearRegression(3, 8)
    wide = replace(short, train=replace(short.train, model=architecture("transformer", 3, 1, 32, 2, n_points=8)), name="wide")
    long = replace(short, train=replace(short.train, curriculum=replace(short.train.curriculum, points=replace(short.train.curriculum.points, start=4, end=8)), steps=20), name="long")
    seeds = replace(short, train=replace(short.train, seeds=(0, 1)), name="seeds")
    assert task.n_points == 8 and [c.name for c in unfinished([short, long, wide, seeds], tmp_path)] == ["wide", "seeds", "short", "long"]
    tell = tell_in(folder_of(wide, tmp_path) / "progress.json")
    tell(Progress("wide", "training", 29, 30, 0.0, 0.0, 0.0))
    assert [c.name for c in unfinished([seeds, wide], tmp_path)] == ["wide", "seeds"], "without a checkpoint it begins anew"
    (folder_of(wide, tmp_path) / "checkpoint.pt").write_text("")
    assert [c.name for c in unfinished([seeds, wide], tmp_path)] == ["seeds", "wide"]


def test_complete_runs_are_skipped_and_the_others_are_what_they_are_alone(tmp_path):
    configs, root = [config("a"), config("b", seeds=(1, 2)), config("c", steps=20)], tmp_path / "root"
    run(configs[0], root)
    before = record_of(configs[0], root).stat().st_mtime_ns
    said = []
    assert train_all(configs, root, workers=2, say=said.append) == {} and said == ["1 of 3 runs are complete"]
    assert record_of(configs[0], root).stat().st_mtime_ns == before
    for each in configs[1:]: assert_as_if_alone(each, root, tmp_path)
    assert train_all(configs, root, say=said.append) == {} and said[-1] == "3 of 3 runs are complete"


def test_a_run_that_fails_is_named_with_its_reason_and_the_others_go_on(tmp_path):
    good, wild, damaged, foreign, odd = config("good"), config("wild", lr=1e30, clip=None), config("damaged"), config("foreign"), config("odd", Broken(3, 8))
    (tmp_path / "runs" / damaged.folder).mkdir(parents=True)
    (tmp_path / "runs" / damaged.folder / "checkpoint.pt").write_text("damage")
    run(good, tmp_path / "other")
    folder_of(foreign, tmp_path).mkdir()
    record_of(foreign, tmp_path).write_bytes(record_of(good, tmp_path / "other").read_bytes())
    failed = train_all([wild, damaged, foreign, odd, good], tmp_path, workers=2)
    assert failed.keys() == {wild.folder, damaged.folder, foreign.folder, odd.folder} and find_record(good, tmp_path) is not None
    assert "the loss of seed 3 became" in failed[wild.folder] and "move it away" in failed[damaged.folder]
    assert "belongs to another configuration" in failed[foreign.folder] and failed[odd.folder].startswith("RuntimeError: no such thing; the traceback is in ")
    assert "in function" in Path(failed[odd.folder].rpartition(" in ")[2]).read_text()


def meanwhile(action):
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def killer(monkeypatch, config, root, times):
    "A thread that kills the worker of that run, so often, when it is held at its gate, and then opens the gate."
    begin, pids = Worker.begin.__func__, []

    def noted(cls, chosen, *args):
        worker = begin(cls, chosen, *args)
        if chosen == config: pids.append(worker.process.pid)
        return worker

    def kill():
        for n in range(times):
            until(lambda: len(pids) > n, "a worker")
            held(config, root)
            (folder_of(config, root) / "progress.json").unlink()
            os.kill(pids[n], signal.SIGKILL)
        Path(config.train.task.gate).touch()

    monkeypatch.setattr(Worker, "begin", classmethod(noted))
    return meanwhile(kill)


def test_a_worker_that_is_killed_is_started_again_and_goes_on(tmp_path, monkeypatch):
    held_up, other = gated(tmp_path / "gate"), config()
    thread = killer(monkeypatch, held_up, tmp_path, 1)
    assert train_all([held_up, other], tmp_path, checkpoint_seconds=0) == {}
    thread.join()
    assert begun(held_up) == 1, "it was begun anew"
    assert find_record(other, tmp_path) is not None
    assert_as_if_alone(held_up, tmp_path, tmp_path)


def test_a_worker_that_is_killed_twice_has_failed(tmp_path, monkeypatch):
    held_up, other = replace(gated(tmp_path / "gate"), name="a"), config()
    thread = killer(monkeypatch, held_up, tmp_path, 2)
    assert train_all([held_up, other], tmp_path) == {held_up.folder: "its process was ended by SIGKILL"}
    thread.join()
    assert find_record(other, tmp_path) is not None and find_record(held_up, tmp_path) is None


@pytest.fixture
def signals():
    "This process survives signals that come too early or too late."
    before = {number: signal.signal(number, lambda *args: None) for number in (signal.SIGINT, signal.SIGTERM)}
    yield lambda number: os.kill(os.getpid(), number)
    for number, handler in before.items(): signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_batch_that_is_asked_to_stop_saves_everything(number, signals, tmp_path, monkeypatch):
    configs = [gated(tmp_path / "gate", name, steps=200) for name in "ab"]
    pass_on = Batch.ask_to_stop

    def ask():
        for each in configs: held(each, tmp_path)
        signals(number)

    def open_then(chosen, *args, **options):
        pass_on(chosen, *args, **options)
        (tmp_path / "gate").touch()

    monkeypatch.setattr(Batch, "ask_to_stop", open_then)
    thread = meanwhile(ask)
    with pytest.raises(KeyboardInterrupt): train_all(configs, tmp_path, workers=2, checkpoint_seconds=3600)
    thread.join()
    for each in configs: assert 15 <= load_checkpoint(folder_of(each, tmp_path) / "checkpoint.pt")["step"] < 200, "the window at the gate is lost"
    assert train_all(configs, tmp_path, workers=2) == {} and begun(configs[0]) == len(configs), "a run was begun anew"
    for each in configs: assert_as_if_alone(each, tmp_path, tmp_path)


def test_a_second_request_to_stop_does_not_wait(signals, tmp_path):
    held_up, ended = gated(tmp_path / "gate"), threading.Event()

    def ask():
        held(held_up, tmp_path)
        while not ended.wait(0.2): signals(signal.SIGTERM)

    thread = meanwhile(ask)
    with pytest.raises(KeyboardInterrupt): train_all([held_up, config()], tmp_path)
    ended.set()
    thread.join()
    assert not (folder_of(held_up, tmp_path) / "error.txt").exists(), "it waited until the worker gave up"
    assert not is_locked(folder_of(held_up, tmp_path)) and not record_of(held_up, tmp_path).exists() and not record_of(config(), tmp_path).exists()


def test_workers_end_when_their_parent_is_killed(tmp_path):
    saves, hangs = gated(tmp_path / "gate", "saves", steps=200), gated(tmp_path / "impatient", "hangs")
    with Caller([saves, hangs], tmp_path, workers=2, checkpoint_seconds=3600) as caller:
        for each in (saves, hangs): held(each, tmp_path)
        caller.send(signal.SIGKILL)
        assert caller.ended() == -signal.SIGKILL
    until(lambda: not is_locked(folder_of(hangs, tmp_path)), "the end of a worker that hangs")
    assert is_locked(folder_of(saves, tmp_path)), "it has more patience"
    (tmp_path / "gate").touch()
    until(lambda: not is_locked(folder_of(saves, tmp_path)), "the end of a worker that saves")
    assert 15 <= load_checkpoint(folder_of(saves, tmp_path) / "checkpoint.pt")["step"] < 200
    (tmp_path / "impatient").touch()
    assert train_all([saves, hangs], tmp_path, workers=2) == {} and begun(saves) == 1
    for each in (saves, hangs): assert_as_if_alone(each, tmp_path, tmp_path)


def test_two_batches_share_a_list(tmp_path):
    configs = [gated(tmp_path / "gate", name, seeds=(seed,)) for seed, name in enumerate("abcd")]  # of one training only one would be trained

    def open_when_both_work():
        held(configs[-1], tmp_path)
        (tmp_path / "gate").touch()

    with Caller(configs, tmp_path) as other:
        held(configs[0], tmp_path)
        thread = meanwhile(open_when_both_work)
        assert train_all(configs[::-1], tmp_path) == {} and other.ended() == 0
        thread.join()
    assert begun(configs[0]) == len(configs), "each was begun once"
    for each in configs: assert find_record(each, tmp_path) is not None


def test_a_worker_does_not_wait_for_a_run_that_was_locked_meanwhile(tmp_path):
    folder_of(config(), tmp_path).mkdir(parents=True)
    with RunLock(folder_of(config(), tmp_path)): assert Worker.begin(config(), str(tmp_path), "cpu", None, 1, 20.0).end() is None
    assert Worker.begin(config(), str(tmp_path), "cpu", None, 1, 20.0).end() == "" and record_of(config(), tmp_path).exists()


def test_a_run_of_another_batch_is_left_to_it_and_taken_over_if_that_dies(tmp_path):
    left, orphan, ours, seen = gated(tmp_path / "gate", "left", steps=40), gated(tmp_path / "impatient", "orphan", steps=40), config("ours"), []

    def look_and_kill():
        until(record_of(ours, tmp_path).exists, "the run that nobody works on")
        seen.append([begun(each) for each in (left, orphan)])
        (tmp_path / "gate").touch()
        until(record_of(left, tmp_path).exists, "the run that is left to the other")
        other.send(signal.SIGKILL)
        until(lambda: not is_locked(folder_of(orphan, tmp_path)), "the end of its worker")
        (tmp_path / "impatient").touch()

    with Caller([left, orphan], tmp_path, workers=2, checkpoint_seconds=0) as other:
        for each in (left, orphan): held(each, tmp_path)
        thread = meanwhile(look_and_kill)
        assert train_all([left, orphan, ours], tmp_path) == {}
        thread.join()
    assert seen == [[1, 1]] and [begun(each) for each in (left, orphan)] == [1, 1], "one was begun anew"
    for each in (left, orphan): assert_as_if_alone(each, tmp_path, tmp_path)


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def test_devices_are_all_or_named(three_gpus):
    assert device_list("all") == device_list("cuda") == ["cuda:0", "cuda:1", "cuda:2"] and device_list("cuda:2,cpu,cuda:0") == ["cuda:2", "cpu", "cuda:0"]
    for names, message in {"cuda:3": "sees 3 CUDA devices", "all,cuda:1": "names cuda:1 more than once", "cpu,cpu": "names cpu more than once", "cuda:0,": "unknown device ''"}.items():
        with pytest.raises(ValueError, match=message): device_list(names)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_device_has_so_many_runs_at_a_time(workers, tmp_path, monkeypatch):
    at_work, most = [], []

    def begin(config, root, device, *options):
        at_work.append(device)
        most.append(max(map(at_work.count, at_work)))
        pipe, theirs = processes.Pipe(duplex=False)
        theirs.close()
        return SimpleNamespace(config=config, device=device, pipe=pipe, process=None, end=lambda: at_work.remove(device) or "")

    monkeypatch.setattr(Worker, "begin", begin)
    chosen = Batch([config(f"run{i}") for i in range(7)], str(tmp_path), ["cuda:0", "cuda:1"] * workers, print)
    chosen.begin()
    assert sorted(at_work) == sorted(["cuda:0", "cuda:1"] * workers) and len(chosen.waiting) == 7 - 2 * workers
    while chosen.at_work:
        chosen.end(next(iter(chosen.at_work)))
        chosen.begin()
    assert not chosen.waiting and len(most) == 7 and max(most) == workers


@pytest.mark.parametrize("devices, shares", [
    (["cpu"] * 4, [[2, 1, 1], [2, 2], [4]]),           # of three runs, then two, then the last
    (["cpu"] * 2, [[1, 1], [1, 1], [2]]),              # two at a time: nobody gets more until one is left
    (["cpu"], [[None]] * 3), (["cuda:0"] * 2, [[None, None], [None, None], [None]]), (["cuda:0", "cpu"], [[None, None], [None, None], [None]]),
])
def test_cores_that_no_run_needs_go_to_those_at_work(devices, shares, tmp_path, monkeypatch):
    def begin(config, root, device, cores, *options):
        pipe, theirs = processes.Pipe(duplex=False)
        theirs.close()
        return SimpleNamespace(config=config, device=device, pipe=pipe, process=None, cores=cores and SimpleNamespace(value=cores), end=lambda: "")

    monkeypatch.setattr(Worker, "begin", begin)
    chosen, seen = Batch([config(f"run{i}") for i in range(3)], str(tmp_path), devices, print), []
    for _ in range(3):
        chosen.begin()
        seen.append([worker.cores and worker.cores.value for worker in chosen.at_work.values()])
        chosen.end(next(iter(chosen.at_work)))
    assert seen == shares and not chosen.waiting


def test_a_training_asks_how_many_cores_it_has():
    recipe, cores = config(seeds=(3, 5, 7)).train, SimpleNamespace(value=2)
    training = training_on(cores)(recipe, torch.device("cpu"))
    assert training.engine.cores() == 2
    cores.value = 1
    assert training.engine.cores() == 1 and training_on(None)(recipe, torch.device("cpu")).engine.cores() == 3


def test_seeds_that_take_turns_end_as_they_do_alone(tmp_path):
    configs = [config(f"run{i}", seeds=(3, 5), steps=30 + i) for i in range(3)]
    assert train_all(configs, tmp_path / "shared", workers=2) == {}
    for each in configs: assert_as_if_alone(each, tmp_path / "shared", tmp_path)


REFUSED = {
    "--devices gpu": "unknown device 'gpu'", "--devices all": "devices 'all': torch .* sees no GPU: use devices cpu", "--devices cpu,cpu": "more than once", "--devices cuda:0": "sees 0 CUDA devices",
    "--devices cpu --workers 0": "workers is 0", "--devices cpu --threads 0": "threads is 0", "--devices cpu --device cuda": "give one of the two", "--workers 0": "workers is 0", "--workers 2 --device gpu": "unknown device 'gpu'",
}


@pytest.mark.parametrize("words", REFUSED)
def test_wrong_devices_are_refused_before_any_work(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(Worker, "begin", None)
    with pytest.raises(ValueError, match=REFUSED[words]): main(["--debug", "train", "linear_regression", "--tier", "smoke", *words.split(), "--root", str(tmp_path)])
    assert main(["train", "linear_regression", "--tier", "smoke", *words.split(), "--root", str(tmp_path)]) == 2
    if "gpu" in words or words == "--devices all":
        save_configs([config()], tmp_path / "list.json")
        if "--device " not in words: assert batch.main([str(tmp_path / "list.json"), *words.split(), "--root", str(tmp_path)]) == 2
    assert not list(tmp_path.rglob("runs"))


CHOICES = {"": "or ask for --all of a tier", "linear_regression --all": "one of the four", "--all --config x.json": "one of the four", "--all --tier huge": "unknown tier 'huge'",
           "--all --model mambo": "unknown model 'mambo'", "--all --tier smoke --model lstm": "no experiment of tier smoke has the model lstm",
           "--config x.json --model transformer": "--model transformer .*--config x.json", "--run a --run b --model mamba": "--model mamba .*--run a, b",
           "--config x.json --tier smoke": "--tier smoke .*--config x.json", "--config x.json --tier laptop": "--tier laptop .*--config x.json"}


@pytest.mark.parametrize("words", CHOICES)
def test_what_to_train_is_asked_in_one_way(words, tmp_path, capsys):
    with pytest.raises(ValueError, match=CHOICES[words]): main(["--debug", "train", *words.split(), "--root", str(tmp_path)])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_request_to_stop_does_what_it_did_before(number):
    former = []
    before = {each: signal.signal(each, lambda number, frame: former.append(number)) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with batch.requests_to_stop(once=True) as requests:
            for _ in range(2): signal.raise_signal(number)
            assert requests == former == [number]
        with batch.requests_to_stop() as requests:
            for _ in range(2): signal.raise_signal(number)
            assert requests == [number] * 2 and former == [number]
        signal.raise_signal(number)
        assert former == [number] * 2
    finally:
        for each, handler in before.items(): signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_plain_command_that_is_asked_to_stop_saves(number, signals, tmp_path, capsys):
    held_up, other = gated(tmp_path / "gate", steps=200), config()
    save_configs([held_up, other], tmp_path / "list.json")
    ask = ["train", "--config", str(tmp_path / "list.json"), "--root", str(tmp_path)]

    def stop():
        held(held_up, tmp_path)
        signals(number)
        (tmp_path / "gate").touch()

    thread = meanwhile(stop)
    assert main(ask) == 130 and capsys.readouterr().err.splitlines()[-1] == "stopped; the next call goes on from here"
    thread.join()
    # 10 if the signal came between what was told there and the question whether to stop.
    assert 10 <= load_checkpoint(folder_of(held_up, tmp_path) / "checkpoint.pt")["step"] < 200 and not folder_of(other, tmp_path).exists()
    assert main(ask) == 0 and begun(held_up) == 1
    for each in (held_up, other): assert_as_if_alone(each, tmp_path, tmp_path)


def test_the_plain_command_goes_on_after_a_run_that_fails(tmp_path, capsys):
    good, wild, foreign, done = config("good"), config("wild", lr=1e30, clip=None), config("foreign"), config("done", steps=10)
    run(done, tmp_path)
    folder_of(foreign, tmp_path).mkdir()
    record_of(foreign, tmp_path).write_bytes(record_of(done, tmp_path).read_bytes())
    save_configs([wild, foreign, done, good], tmp_path / "list.json")
    assert main(["train", "--config", str(tmp_path / "list.json"), "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "done: complete already" in said and said[-2].startswith(f"failed: {foreign.folder}: ") and said[-1].startswith(f"failed: {wild.folder}: wild: the loss of seed 3 became")
    assert find_record(good, tmp_path) is not None


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", "[1]", '[{"name": "x"}]'])
def test_a_file_that_is_no_list_of_runs_is_refused(content, tmp_path, capsys):
    path = tmp_path / "list.json"
    path.write_text(content)
    assert batch.main([str(path), "--devices", "cpu"]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_list_holds_each_run_of_a_tier_once(tmp_path):
    path = tmp_path / "list.json"
    assert main(["train", "--all", "--tier", "gpu", "--list", str(path), "--root", str(tmp_path)]) == 0
    listed = read_configs(path)
    assert {c.folder for c in listed} == {c.folder for name, e in EXPERIMENTS.items() if "gpu" in e.tiers for c in experiment_runs(name, "gpu").values()}
    assert len({c.folder for c in listed}) == len(listed) and [path.name for path in tmp_path.iterdir()] == ["list.json"]
    assert main(["train", "--all", "--tier", "gpu", "--model", "mamba", "--set", "train.steps=7", "--list", str(path)]) == 0
    of_mamba = {c.name for c in listed if re.fullmatch(r"mamba x \d+", c.train.model.pattern)}
    assert {c.name for c in read_configs(path)} == of_mamba and len(of_mamba) > 2 and {c.train.steps for c in read_configs(path)} == {7}


def test_configuration_files_are_named_behind_one_option_or_several(tmp_path):
    files, path = [tmp_path / f"{name}.json" for name in "abc"], tmp_path / "list.json"
    for file in files: save_configs([config(file.stem)], file)
    for words in (map(str, files), (str(files[0]), "--config", *map(str, files[1:]))):
        assert main(["train", "--config", *words, "--list", str(path)]) == 0
        assert [c.name for c in read_configs(path)] == ["a", "b", "c"]


def test_the_command_trains_a_list_and_names_what_failed(tmp_path, capsys):
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    save_configs([config("a"), config("b")], files[0])
    files[1].write_text(json.dumps(config("wild", lr=1e30, clip=None).to_dict()))
    ask = ["train", "--config", *map(str, files), "--devices", "cpu", "--workers", "2", "--root", str(tmp_path)]
    assert main(ask) == 1
    said = capsys.readouterr().err
    assert all(f"{name}: finished 30/30" in said for name in "ab") and said.splitlines()[-1].startswith(f"failed: {read_configs(files[1])[0].folder}: wild: the loss of seed 3 became")
    assert main(["train", "--config", str(files[0]), "--devices", "cpu", "--root", str(tmp_path), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_batch_needs_neither_charts_nor_notebooks(tmp_path):
    "In a fresh Python where they cannot be imported."
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ("altair", "papermill", "snakemake", "nbformat", "nbconvert", "jupytext", "IPython", "tqdm"): (stubs / f"{name}.py").write_text(f"raise ImportError('no {name} here')")
    save_configs([config("a"), config("b", steps=20)], tmp_path / "list.json")
    done = subprocess.run([sys.executable, "-m", "iclrepro.batch", tmp_path / "list.json", "--devices", "cpu", "--workers", "2", "--root", tmp_path], cwd=ROOT, timeout=120,
                          env={**os.environ, "PYTHONPATH": f"{stubs}{os.pathsep}{ROOT}"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0 and "a: finished 30/30" in done.stdout and "Warning" not in done.stdout and len(list(tmp_path.glob("runs/*/record.nc"))) == 2, done.stdout


@pytest.mark.parametrize("device, expected", [("cuda", ["cuda:0", "cuda:1", "cuda:2"]), ("cuda:1", ["cuda:1"])])
def test_reproduce_spreads_its_runs_over_all_gpus(device, expected, tmp_path, three_gpus, monkeypatch):
    asked = []
    monkeypatch.setattr("iclrepro.cli.train_and_show", lambda configs, root, devices, workers, threads, quiet: asked.append(([c.folder for c in configs], root, devices, workers)) or 1)
    assert main(["reproduce", "--tier", "smoke", "--device", device, "--root", str(tmp_path)]) == 1
    (folders, root, devices, workers), = asked
    assert sorted(folders) == sorted({c.folder for name in EXPERIMENTS for c in experiment_runs(name, "smoke").values()}) and (root, devices, workers) == (str(tmp_path), expected, 1)
    assert not (tmp_path / "snakemake.log").exists()


@pytest.mark.parametrize("cores", [1, 3])
def test_reproduce_makes_a_run_a_core(cores, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("iclrepro.cli.train_and_show", lambda configs, root, devices, workers, threads, quiet: asked.append((devices, workers, threads)) or 1)
    assert main(["reproduce", "--tier", "smoke", "--cores", str(cores), "--root", str(tmp_path)]) == 1
    assert asked == [(["cpu"], cores, 1)]


def test_a_run_that_is_asked_to_stop_saves_first(tmp_path):
    told = []
    for step in (10, 30):
        with pytest.raises(Stopped, match=f"saved at step {step}"): run(config(), tmp_path, report=told.append, checkpoint_seconds=3600, stop=lambda: told[-1].step == step)
        assert load_checkpoint(folder_of(config(), tmp_path) / "checkpoint.pt")["step"] == step
    with pytest.raises(Stopped, match="in its exams"): run(config(), tmp_path, report=told.append, stop=lambda: True)
    assert not record_of(config(), tmp_path).exists()
    assert_as_if_alone(config(), run(config(), tmp_path) is not None and tmp_path, tmp_path)


def test_a_watch_tells_what_is_new(tmp_path):
    tell, watch = tell_in(tmp_path / "a" / "progress.json"), Watch([tmp_path / "a", tmp_path / "b"])
    progress = Progress("a", "training", 1, 2, 0.5, 1.0, 1.0)
    assert list(watch.news()) == []
    for _ in range(2):
        tell(progress)
        assert list(watch.news()) == [progress] and list(watch.news()) == []
    (tmp_path / "a" / "progress.json").write_text('{"surprise": 1}')
    assert list(watch.news()) == []
    assert list(Watch([tmp_path / "a"]).news()) == []
