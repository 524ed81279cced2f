"""Training against a loop with Adam written out; runs that are killed, resumed, raced, spoilt and misled."""
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr

from iclrepro.evaluation import Exam
from iclrepro.experiments import experiment_runs
from iclrepro.models import TITLES, ModelConfig, architecture, build_model, predict
from iclrepro.probing import Probe
from iclrepro.prompts import Draws
from iclrepro.results import BadCheckpoint, load_checkpoint, load_dataset, provenance, save_checkpoint, save_dataset, write_atomically
from iclrepro.runs import RunConfig, RunLock, Stopped, WrongRun, check_device, find_record, load_cost, run
from iclrepro.tasks import TASKS, Curriculum, LinearRegression, Ramp, SparseParity, make_task, register_task
from iclrepro.training import NonFiniteLoss, TrainConfig, Training, content_hash, essence, inner_precision, training_flops


def train_config(name="transformer", task=None, **changes):
    task = task or LinearRegression(3, 8)
    model = architecture(name, task.dim, n_layers=1, d_model=16, n_heads=2, n_points=12)
    curriculum = changes.pop("curriculum", Curriculum(Ramp(2, task.dim, 1, 10), Ramp(4, 8, 2, 10)))
    return TrainConfig(task, model, curriculum, **{"steps": 60, "seeds": (3, 7), "batch_size": 8, "lr": 1e-3, "log_every": 5, **changes})


def run_config(name="transformer", task=None, n_prompts=16, **changes):
    exams = [Exam(shift, 12, (0, 3, 11), n_prompts, 8) for shift in ("none", "orthants")]
    return RunConfig(f"test-{name}", train_config(name, task, **changes), tuple(exams))


def trained(config):
    training = Training(config)
    while not training.finished: training.advance()
    return training


def factor(config, step):
    "What the learning rate is multiplied by, from the definition of the schedule."
    t = step / config.steps
    warm = t / 0.1 if t < 0.1 else (1 + math.cos(math.pi * (t - 0.1) / 0.9)) / 2
    return {"constant": 1, "cosine": (1 + math.cos(math.pi * t)) / 2, "warmup_cosine": warm}[config.schedule]


def naive_losses(config, seed):
    "The loss of each step: gradients by torch, the rest of Adam (Kingma & Ba 2015, algorithm 1) and of clipping in plain sight."
    weights = list(build_model(config.model, seed).parameters())
    model = build_model(config.model, seed)
    for own, weight in zip(list(model.parameters()), weights): own.data = weight.data
    mean, square, losses = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights], []
    for step in range(config.steps):
        prompt = config.task.sample(Draws(seed, step), config.batch_size, config.curriculum.points.at(step), config.curriculum.dims.at(step))
        loss = config.task.loss(predict(model, prompt), prompt)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients))
        for w, g, m, v in zip(weights, gradients, mean, square):
            if config.clip is not None: g = g * min(1, config.clip / (norm + 1e-6))
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            rate = config.lr * factor(config, step)
            w.data *= 1 - rate * config.weight_decay  # Loshchilov & Hutter 2019, algorithm 2
            w.data -= rate * (m / (1 - 0.9**(step + 1))) / ((v / (1 - 0.999**(step + 1))).sqrt() + 1e-8)
    return losses


RECIPES = {"as Park et al.": {"clip": 10.0}, "clipped and falling": {"clip": 0.3, "lr": 1e-2, "schedule": "cosine"},
           "as Grazzi et al.": {"clip": None, "schedule": "cosine", "precision": "tf32"}, "as RegBench": {"weight_decay": 0.1, "schedule": "warmup_cosine", "lr": 1e-2}}


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("task", [LinearRegression(3, 8), SparseParity(4, 8)], ids=lambda task: task.name)
@pytest.mark.parametrize("name", ["transformer", "mamba", "mambaformer"])
def test_the_engine_gives_the_losses_of_a_naive_loop(name, task, changes):
    config = train_config(name, task, **changes)
    losses = trained(config).losses
    for row, seed in zip(losses.tolist(), config.seeds): assert row == pytest.approx(naive_losses(config, seed), rel=3e-6)


def test_a_member_of_an_ensemble_is_the_seed_trained_alone():
    together = trained(train_config("mambaformer", seeds=(3, 7, 4)))
    for seed in (7, 4):
        alone = trained(train_config("mambaformer", seeds=(seed,)))
        member = together.config.seeds.index(seed)
        assert torch.equal(together.losses[member], alone.losses[0])
        assert torch.equal(together.members[member].flat, alone.members[0].flat)
    assert not torch.equal(together.losses[0], together.losses[1])


def test_the_loss_curve_is_the_mean_of_each_window():
    training = Training(train_config(steps=23, log_every=10))
    training.advance()
    steps, curve = training.loss_curve()
    assert steps == [10] and curve[:, 0].tolist() == pytest.approx(training.losses[:, :10].mean(1).tolist(), rel=1e-6)
    while not training.finished: training.advance()
    steps, curve = training.loss_curve()
    assert steps == [10, 20, 23]
    for member, losses in enumerate(training.losses.tolist()):
        assert curve[member].tolist() == pytest.approx([np.mean(losses[:10]), np.mean(losses[10:20]), np.mean(losses[20:])], rel=1e-6)


def stops_at(config):
    "The step at which a run may end, from the losses of one that does not: a limit between the members' losses of different windows."
    losses = trained(replace(config, stop_below=None)).losses
    worst = [max(float(np.mean(row[begin:begin + config.log_every])) for row in losses.tolist()) for begin in range(0, config.steps, config.log_every)]
    return next((min(config.steps, (i + 1) * config.log_every) for i, loss in enumerate(worst) if loss < config.stop_below), config.steps), worst


def learning(**changes):
    "A configuration whose loss falls from window to window, in each member, by a rate that falls along the most steps there may be."
    task = SparseParity(4, 8)
    return replace(train_config("transformer", task, lr=3e-3, batch_size=64, schedule="cosine", curriculum=Curriculum.constant(task)), **changes)


@pytest.mark.parametrize("window", [0, 4, 7, 11])
def test_a_run_stops_with_the_first_window_in_which_every_member_is_below(window):
    "The limit is just above the worst loss of that window, or just below."
    _, worst = stops_at(learning(stop_below=1e-9))
    whole = trained(learning())
    for limit in (1.0001 * worst[window], 0.9999 * worst[window]):
        config = learning(stop_below=limit)
        step, _ = stops_at(config)
        training = trained(config)
        assert training.step == step and training.loss_curve()[0] == list(range(5, step + 1, 5))
        assert torch.equal(training.losses[:, :step], whole.losses[:, :step]) and training.losses[:, step:].isnan().all()
    assert worst[11] < worst[7] < worst[4] < worst[0], "the case says nothing"


def test_a_member_below_waits_for_the_others():
    "A loss between the two members' of a window must not stop the run there."
    losses = trained(learning()).loss_curve()[1].tolist()
    between = [(a + b) / 2 for a, b in zip(*losses)]
    window = next(i for i, limit in enumerate(between) if i and all(max(pair) >= limit for pair in zip(*[row[:i + 1] for row in losses])))
    config = learning(stop_below=between[window])
    assert min(row[window] for row in losses) < between[window] and trained(config).step == stops_at(config)[0] > 5 * (window + 1)


def test_a_run_that_never_gets_there_takes_all_steps():
    training = trained(learning(stop_below=1e-6, steps=23))
    assert training.step == 23 and training.loss_curve()[0] == [5, 10, 15, 20, 23] and torch.equal(training.losses, trained(learning(steps=23)).losses)


def test_the_last_window_alone_decides():
    training = Training(learning(steps=8, stop_below=1.0))
    for step, losses, ends in ((5, [[1.1] * 5] * 2, False), (8, [[1.1] * 5 + [9.0] * 3] * 2, True), (5, [[1.0] * 5] * 2, False), (5, [[0.9] * 5] * 2, True), (5, [[0.9] * 5, [1.1] * 5], False)):
        training.step, training.losses = step, torch.tensor(losses)
        assert training.finished == ends
    training = Training(learning(steps=13, log_every=5, stop_below=1.0))
    training.step, training.losses[:, :10] = 10, torch.tensor([5.0] * 5 + [0.9] * 5)
    assert training.finished and not replace_step(training, 5).finished and not replace_step(training, 0).finished


def replace_step(training, step):
    training.step = step
    return training


@pytest.mark.parametrize("value, allowed", [*((value, "a number above 0, or None") for value in (0, 0.0, -0.1)), *((value, "a finite number or None") for value in (math.nan, math.inf))])
def test_a_limit_that_no_loss_can_pass_or_any_does_is_refused(value, allowed):
    with pytest.raises(ValueError, match=f"stop_below is {value}: it must be {allowed}$"): learning(stop_below=value)


@pytest.mark.parametrize("parts", [(1, 1, 1, 99), (4, 99, 3, 1, 99), (5, 2, 2, 2, 99)])
def test_a_window_in_parts_is_the_window(parts):
    "No part goes beyond the window's end, and none ends a run whose loss is low enough so far: only whole windows do."
    config, training = learning(steps=23, stop_below=100.0), Training(learning(steps=23))
    whole = trained(learning(steps=23))
    for most in itertools.cycle(parts):
        begin = training.step
        training.advance(most)
        assert training.step == min(begin + most, (begin // 5 + 1) * 5, 23)
        if training.finished: break
    assert_same_state(training.state_dict(), whole.state_dict())
    early = Training(config)
    for step in range(1, 6):
        assert not early.finished
        early.advance(1)
        assert early.step == step
    assert early.finished
    early.losses[:] = 1.0
    assert [step for step in range(24) if replace_step(early, step).finished] == [5, 10, 15, 20, 23]


class Clock:
    "All but stands still unless told to go on."
    def __init__(self): self.now = 0.0

    def monotonic(self):
        self.now += 1e-7
        return self.now


def timed_by(clock, seconds):
    "A training whose steps take so many seconds of the clock each."
    class Timed(Training):
        def advance(self, most=None):
            begin = self.step
            super().advance(most)
            clock.now += (self.step - begin) * seconds
    return Timed


@pytest.mark.parametrize("stopped_at", [1, 7, 26, 50])
def test_a_run_with_long_windows_reports_and_stops_within_them(stopped_at, tmp_path, monkeypatch):
    "Where two seconds are over after every step. The first step is no pace to go by: nothing is told of it."
    config = run_config(steps=60, log_every=50, stop_below=1e-6)
    whole, told = run(config, tmp_path / "whole"), []
    monkeypatch.setattr("iclrepro.runs.LOOK", 0.0)
    with pytest.raises(Stopped, match=f"saved at step {max(2, stopped_at)}$"): run(config, tmp_path / "parts", report=told.append, stop=lambda: told[-1].step >= stopped_at)
    assert [progress.step for progress in told] == list(range(2, max(2, stopped_at) + 1))
    losses = load_checkpoint(tmp_path / "parts" / "runs" / config.folder / "checkpoint.pt")["losses"]
    assert [progress.loss for progress in told] == pytest.approx([float(losses[:, :progress.step].mean()) for progress in told])
    assert run(config, tmp_path / "parts").identical(whole)


def test_a_slow_run_reports_about_every_two_seconds(tmp_path, monkeypatch):
    "Six steps of 0.3 seconds are as many as fit into two seconds: every second part is told, and the window's end."
    clock, told = Clock(), []
    monkeypatch.setattr("iclrepro.runs.time", clock)
    run(run_config(steps=60, log_every=30), tmp_path, report=told.append, start=timed_by(clock, 0.3))
    assert [progress.step for progress in told if progress.stage == "training"] == [13, 25, 30, 42, 54, 60]


def test_a_quick_run_reports_whole_windows(tmp_path):
    told = []
    run(run_config(steps=23), tmp_path, report=told.append)
    assert [progress.step for progress in told if progress.stage == "training"] == [5, 10, 15, 20, 23]


def test_a_saved_state_can_be_loaded_twice():
    config = train_config("transformer", steps=23)
    whole, begun = trained(config), Training(config)
    begun.advance()
    state = begun.state_dict()
    for _ in range(2):
        resumed = Training(config)
        resumed.load_state_dict(state)
        while not resumed.finished: resumed.advance()
        assert_same_state(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("name", ["transformer", "mambaformer"])
def test_a_saved_state_goes_on_exactly(name):
    config = train_config(name, steps=23)
    whole, training = trained(config), Training(config)
    states = []
    while not training.finished:
        states.append(training.state_dict())
        training.advance()
    for step, state in zip((0, 5, 10, 15, 20), states):
        assert state["step"] == step
        resumed = Training(config)
        resumed.load_state_dict(state)
        while not resumed.finished: resumed.advance()
        assert_same_state(resumed.state_dict(), whole.state_dict())


def assert_same_state(a, b):
    "Weights, Adam's averages, losses and step, bit for bit."
    assert (a["config"], a["step"]) == (b["config"], b["step"])
    assert torch.equal(a["losses"], b["losses"]) and len(a["members"]) == len(b["members"])
    for ours, theirs in zip(a["members"], b["members"]):
        assert torch.equal(ours["weights"], theirs["weights"])
        assert ours["optimiser"][0].keys() == theirs["optimiser"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in ours["optimiser"][0].items(): assert torch.equal(value, theirs["optimiser"][0][key])


def checkpoint_of(config, root): return Path(root) / "runs" / config.folder / "checkpoint.pt"
def record_of(config, root): return Path(root) / "runs" / config.folder / "record.nc"


def assert_same_run(config, root, other):
    "Weights and record are the same bytes."
    assert_same_state(load_checkpoint(checkpoint_of(config, root)), load_checkpoint(checkpoint_of(config, other)))
    assert record_of(config, root).read_bytes() == record_of(config, other).read_bytes()


processes = multiprocessing.get_context("forkserver")  # one process imports, and forks a fresh one for each run
processes.set_forkserver_preload(["iclrepro.experiments", "iclrepro.scan_numba", "pytest"])


def make_run(pipe, config, root, delay, trap):
    "The work of a child. A trap kills it in front of its n-th call of `os.<call>` for a temporary file of that name."
    # Threads and commit enter results: both processes of a comparison get the same.
    torch.set_num_threads(1)
    os.environ["GIT_DIR"] = "/nonexistent"
    calls = itertools.count(1)

    def trapped(function, path_of):
        def call(*args):
            if f".{trap['file']}." in path_of(*args) and next(calls) == trap["n"]: os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)
        return call

    if trap.get("call") == "replace": os.replace = trapped(os.replace, lambda source, target: str(source))
    if trap.get("call") == "fsync": os.fsync = trapped(os.fsync, lambda file: os.readlink(f"/proc/self/fd/{file}"))

    def report(progress):
        pipe.send(progress)
        time.sleep(delay)

    pipe.send("ready")
    pipe.recv()
    run(config, root, report=report, checkpoint_seconds=0)


class Child:
    """A process that makes a run, saving after each window; `told` are its reports. It starts when `go` is called."""
    def __init__(self, config, root, delay=0.0, **trap):
        self.pipe, theirs = processes.Pipe()
        self.process = processes.Process(target=make_run, args=(theirs, config, root, delay, trap), daemon=True)
        self.process.start()
        theirs.close()
        self.told = []

    def __enter__(self): return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.join()

    def next(self):
        assert self.pipe.poll(120), f"nothing heard for two minutes since {self.told[-1:]}"
        return self.pipe.recv()

    def go(self):
        assert self.next() == "ready"
        self.pipe.send("go")
        return self

    def wait_for(self, stage, step=0):
        "Read reports until this one or a later one of its stage; returns the step."
        while True:
            self.told.append(self.next())
            if self.told[-1].stage.startswith(stage) and self.told[-1].step >= step: return self.told[-1].step

    def rest(self):
        "Read what it still tells; returns its exit code, negative if a signal ended it."
        try: self.wait_for("nothing of the kind")
        except (EOFError, ConnectionResetError): pass
        self.process.join()
        return self.process.exitcode

    def stages(self): return {progress.stage for progress in self.told}


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    "Folder with the run of each architecture, made without interruption; the architectures made on demand."
    root = tmp_path_factory.mktemp("never_stopped")

    def make(name):
        config = run_config(name)
        if not record_of(config, root).exists():
            with Child(config, root) as child: assert child.go().rest() == 0
        return config, root

    return make


def test_a_run_killed_at_random_moments_ends_as_one_never_stopped(never_stopped, tmp_path):
    config, whole = never_stopped("mambaformer")
    moments, saved = random.Random(2024), 0
    for stage, target in [("training", moments.randint(5, 18)), ("training", moments.randint(22, 35)), ("training", moments.randint(40, 55)), ("examining", moments.randint(1, 6))]:
        with Child(config, tmp_path) as child:
            reached = child.go().wait_for(stage, target)
            time.sleep(moments.random() * 0.03)
            child.process.kill()
            assert child.rest() == -signal.SIGKILL
        assert not record_of(config, tmp_path).exists()
        begun = [progress.resumed_at for progress in child.told if progress.stage == "training"]
        assert all(step == saved for step in begun), "work was lost"
        # The report of a window comes before its checkpoint.
        least = reached - config.train.log_every if stage == "training" else config.train.steps
        saved = load_checkpoint(checkpoint_of(config, tmp_path))["step"] if checkpoint_of(config, tmp_path).exists() else 0
        assert saved >= least
    with Child(config, tmp_path) as child: assert child.go().rest() == 0
    assert "training" not in child.stages()
    assert_same_run(config, tmp_path, whole)


def test_a_run_that_stops_early_ends_alike_if_it_is_killed_on_the_way(tmp_path):
    "In training, just after the window that ends it, and in its exams; record and cost are of the steps done."
    _, worst = stops_at(learning(stop_below=1e-9))
    config = replace(run_config(), train=learning(stop_below=1.0001 * worst[7]), exams=(Exam("none", 8, n_prompts=32, batch_size=8),))
    end, _ = stops_at(config.train)
    assert 10 < end < 60
    with Child(config, tmp_path / "whole") as child: assert child.go().rest() == 0
    for stage, target in (("training", 10), ("training", end), ("examining", 2)):
        with Child(config, tmp_path / "killed", delay=0.02) as child:
            child.go().wait_for(stage, target)
            child.process.kill()
            child.rest()
        assert not record_of(config, tmp_path / "killed").exists()
    with Child(config, tmp_path / "killed") as child: assert child.go().rest() == 0
    assert_same_run(config, tmp_path / "killed", tmp_path / "whole")
    state, record = load_checkpoint(checkpoint_of(config, tmp_path / "killed")), find_record(config, tmp_path / "killed")
    assert state["step"] == end == record.step.values[-1] and state["losses"].shape == (2, end) and record["loss"].shape == (2, end // 5)
    assert record.attrs["training_flops"] == training_flops(replace(config.train, steps=end)) < training_flops(config.train)
    last = [progress for progress in child.told if progress.stage == "finished"][-1]
    assert (last.step, last.steps) == (end, end)


def test_the_end_of_a_run_is_told_as_its_end(tmp_path):
    "Before it, the steps that are told are the most there may be."
    _, worst = stops_at(learning(stop_below=1e-9))
    config, told = replace(run_config(), train=learning(stop_below=1.0001 * worst[7]), exams=(Exam("none", 8, n_prompts=32, batch_size=8),)), []
    run(config, tmp_path, report=told.append)
    end, _ = stops_at(config.train)
    training = [(p.step, p.steps, p.seconds_left > 0) for p in told if p.stage == "training"]
    assert training == [(step, 60, True) for step in range(5, end, 5)] + [(end, end, False)]
    cost = load_cost(config, tmp_path)
    assert cost["steps_per_second"] == pytest.approx(end / cost["training_seconds"])


def test_a_run_killed_while_it_writes_ends_as_one_never_stopped(never_stopped, tmp_path):
    "Killed between writing a temporary file and renaming it, and while writing it, for each file of the folder."
    config, whole = never_stopped("transformer")
    checkpoint = checkpoint_of(config, tmp_path)
    for call, file, n, step in [("replace", "config.json", 1, None), ("fsync", "checkpoint.pt", 1, None), ("replace", "checkpoint.pt", 3, 10), ("fsync", "checkpoint.pt", 2, 15),
                                ("replace", "cost.json", 1, 60), ("replace", "record.nc", 1, 60)]:
        with Child(config, tmp_path, call=call, file=file, n=n) as child: assert child.go().rest() == -signal.SIGKILL, f"{call} of {file} was not reached"
        assert checkpoint.exists() == (step is not None)
        if step is not None: assert load_checkpoint(checkpoint)["step"] == step
        assert not record_of(config, tmp_path).exists()
    with Child(config, tmp_path) as child: assert child.go().rest() == 0
    assert_same_run(config, tmp_path, whole)


def test_two_processes_at_once_make_one_record(never_stopped, tmp_path):
    config, whole = never_stopped("transformer")
    with Child(config, tmp_path, delay=0.02) as a, Child(config, tmp_path, delay=0.02) as b:
        for child in (a, b): child.go()
        assert [child.rest() for child in (a, b)] == [0, 0]
    assert sorted((child.stages() for child in (a, b)), key=len) == [{"waiting for another process"}, {"training", "examining", "finished"}]
    assert_same_run(config, tmp_path, whole)


def test_a_lock_ignores_a_file_that_another_process_finishes_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([folder / f".config.json.{'0' * 32}"]))
    with RunLock(tmp_path): assert (tmp_path / "lock").exists()


def test_a_waiting_process_takes_over_from_a_killed_one(never_stopped, tmp_path):
    config, whole = never_stopped("transformer")
    with Child(config, tmp_path, delay=0.1) as first, Child(config, tmp_path) as second:
        first.go().wait_for("training", 15)
        second.go().wait_for("waiting")
        first.process.kill()
        assert second.rest() == 0
    assert second.told[1].stage == "training" and second.told[1].resumed_at >= 10, "the second began anew"
    assert_same_run(config, tmp_path, whole)


class Halt(Exception):
    """Raised by a report, to stop a run in this process."""


def halt_at(step, stage="training"):
    def report(progress):
        if progress.stage == stage and progress.step >= step: raise Halt
    return report


def never(progress): raise AssertionError(f"something was done: {progress}")


def halted(config, root, step=15):
    "The folder of a run that has stopped after saving the step before."
    with pytest.raises(Halt): run(config, root, report=halt_at(step), checkpoint_seconds=0)
    return Path(root) / "runs" / config.folder


def contents(folder):
    return {path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(Path(folder).rglob("*")) if path.is_file()}


@pytest.mark.parametrize("stage, step", [("training", 5), ("training", 40), ("examining", 1), ("examining", 7)])
def test_a_run_halted_in_this_process_goes_on(stage, step, tmp_path):
    config = run_config("mambaformer")
    with pytest.raises(Halt): run(config, tmp_path / "halted", report=halt_at(step, stage), checkpoint_seconds=0)
    run(config, tmp_path / "halted")
    run(config, tmp_path / "whole")
    assert_same_run(config, tmp_path / "halted", tmp_path / "whole")


def test_checkpoints_wait_for_their_time(tmp_path):
    config = run_config()
    with pytest.raises(Halt): run(config, tmp_path, report=halt_at(30), checkpoint_seconds=3600)
    assert not checkpoint_of(config, tmp_path).exists()


@pytest.mark.parametrize("took, waits", [(0.0, 2), (0.03, 2), (0.055, 3), (0.29, 15), (0.9, 20)])
def test_a_run_whose_checkpoints_take_long_writes_fewer(took, waits, tmp_path, monkeypatch):
    "By a clock on which a window takes a second: two hundredths of the time, and ten times the usual wait at most."
    clock, saved, config = Clock(), [], run_config(steps=250, seeds=(3,), batch_size=2)

    def save(state, path):
        saved.append(clock.now)
        clock.now += took
        save_checkpoint(state, path)

    monkeypatch.setattr("iclrepro.runs.time", clock)
    monkeypatch.setattr("iclrepro.runs.save_checkpoint", save)
    run(config, tmp_path, checkpoint_seconds=2, start=timed_by(clock, 0.2))
    waited = [after - before - took for before, after in zip(saved, saved[1:])]
    assert saved[0] == pytest.approx(2, abs=1e-3) and waited[:-1] == pytest.approx([waits] * (len(waited) - 1), abs=1e-3) and len(waited) == math.ceil(48 / waits) and waited[-1] < waits + 1e-3


def test_a_complete_run_is_not_run_again(tmp_path):
    config = run_config()
    record = run(config, tmp_path)
    before = contents(tmp_path)
    assert run(config, tmp_path, report=never).identical(record) and find_record(config, tmp_path).identical(record)
    assert contents(tmp_path) == before
    checkpoint_of(config, tmp_path).unlink()
    assert run(config, tmp_path, report=never).identical(record)


def asked_more(config): return replace(config, name="more", exams=(*config.exams, Exam("noisy", n_points=8, n_prompts=12, batch_size=12)))


def test_a_run_that_takes_over_a_finished_training_keeps_its_weights(tmp_path):
    first = run_config(steps=10)
    second = replace(first, exams=first.exams[:1])
    for config in (first, second): run(config, tmp_path)
    states = [load_checkpoint(checkpoint_of(config, tmp_path)) for config in (first, second)]
    assert first.folder != second.folder and [state["step"] for state in states] == [10, 10]
    fresh = [Training(config.train) for config in (first, second)]
    for training, state in zip(fresh, states): training.load_state_dict(state)
    assert all(torch.equal(a.flat, b.flat) for a, b in zip(*(training.members for training in fresh)))


def test_a_trained_model_asked_something_else_is_not_trained_again(tmp_path):
    config, told = run_config(), []
    run(config, tmp_path / "a")
    run(asked_more(config), tmp_path / "a", report=told.append)
    run(asked_more(config), tmp_path / "b")
    assert {progress.stage for progress in told} == {"examining", "finished"} and checkpoint_of(asked_more(config), tmp_path / "a").exists()
    assert record_of(asked_more(config), tmp_path / "a").read_bytes() == record_of(asked_more(config), tmp_path / "b").read_bytes()
    assert load_cost(asked_more(config), tmp_path / "a")["training_seconds"] >= load_checkpoint(checkpoint_of(config, tmp_path / "a"))["seconds"] > 0, "the seconds of training are those of the run that trained"


@pytest.mark.parametrize("steps", [(30,), (30, 45), (45, 30)])
def test_a_longer_training_at_a_constant_rate_goes_on_from_the_longest_that_is_complete(steps, tmp_path):
    config, told = run_config(steps=60), []
    for shorter in steps: run(replace(config, train=replace(config.train, steps=shorter)), tmp_path / "a")
    run(config, tmp_path / "a", report=told.append)
    run(config, tmp_path / "b")
    assert [told[0].resumed_at, told[0].stage] == [max(steps), "training"]
    assert_same_run(config, tmp_path / "a", tmp_path / "b")


BEGINNINGS = {  # what the longer training has, what the shorter -> whether it is its beginning
    "all of it": ({}, {}, True), "fewer steps": ({}, {"steps": 59}, True), "more steps": ({}, {"steps": 61}, False),
    "a cosine": ({"schedule": "cosine"}, {"steps": 59}, False), "all of a cosine": ({"schedule": "cosine"}, {}, True), "another seed": ({}, {"steps": 59, "seeds": (3, 8)}, False),
    "a loss that ends it": ({"stop_below": 0.1}, {"steps": 59}, False), "a loss that ends only one": ({}, {"steps": 59, "stop_below": 0.1}, False), "another schedule": ({"schedule": "cosine"}, {"steps": 59, "schedule": "constant"}, False),
}


@pytest.mark.parametrize("what", BEGINNINGS)
def test_a_training_begins_another_only_if_every_step_is_the_same(what):
    changes, others, expected = BEGINNINGS[what]
    longer = train_config(**changes)
    shorter = replace(longer, **others)
    assert shorter.begins(longer) == expected
    state, training = Training(shorter).state_dict(), Training(longer)
    if expected: training.load_state_dict(state)
    else:
        with pytest.raises(ValueError, match="another configuration"): training.load_state_dict(state)


@pytest.mark.parametrize("what", ["another training", "fewer steps along a cosine", "not complete", "no checkpoint", "not a run", "its own"])
def test_only_a_complete_run_with_the_same_training_spares_it(what, tmp_path):
    config, told = run_config(schedule="cosine" if what == "fewer steps along a cosine" else "constant"), []
    changes = {"another training": {"lr": 2e-3}, "fewer steps along a cosine": {"steps": 30}}.get(what, {})
    if what == "not complete": halted(config, tmp_path)
    else: run(replace(config, train=replace(config.train, **changes)), tmp_path)
    folder = checkpoint_of(config, tmp_path).parent
    if what == "no checkpoint": (folder / "checkpoint.pt").unlink()
    if what == "not a run": (folder / "config.json").write_text("[]")
    if what == "its own":
        halted(asked_more(config), tmp_path / "half")
        shutil.copytree(tmp_path / "half" / "runs", tmp_path / "runs", dirs_exist_ok=True)
    run(asked_more(config), tmp_path, report=told.append)
    trained = [progress for progress in told if progress.stage == "training"]
    assert trained and (trained[0].resumed_at > 0) == (what == "its own") and checkpoint_of(asked_more(config), tmp_path).exists()


def test_a_damaged_checkpoint_of_the_same_training_is_named(tmp_path):
    config = run_config()
    run(config, tmp_path)
    checkpoint_of(config, tmp_path).write_bytes(b"")
    with pytest.raises(BadCheckpoint) as caught: run(asked_more(config), tmp_path, report=never)
    assert str(checkpoint_of(config, tmp_path)) in str(caught.value)


def test_runs_of_other_configurations_have_other_folders(tmp_path):
    configs = [run_config(), run_config("mamba"), run_config(lr=2e-3), run_config(seeds=(3,)), run_config(n_prompts=24), run_config(task=LinearRegression(3, 8, scale=2.0)),
               replace(run_config(), name="other")]
    assert len({config.folder for config in configs}) == len(configs)
    for config in configs:
        assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config and find_record(config, tmp_path) is None
    data = run_config().to_dict()
    assert content_hash(data) == content_hash(dict(reversed(data.items())))


def test_an_option_at_its_default_does_not_rename_a_run():
    "So an option that is added later leaves the names of earlier runs alone."
    config = run_config()
    names = {f.name for f in fields(config.train)}
    assert set(essence(config.train)) == names - {f.name for f in fields(config.train) if f.default is not MISSING and getattr(config.train, f.name) == f.default}
    assert essence(config.train)["task"] == {"task": "linear_regression", "dim": 3, "n_points": 8} and "clip" not in essence(config.train)
    assert replace(config, train=replace(config.train, clip=10.0, schedule="constant")).folder == config.folder
    changed = [replace(config, train=replace(config.train, **change)) for change in
               ({"clip": None}, {"weight_decay": 0.1}, {"precision": "tf32"}, {"stop_below": 0.1}, {"model": replace(config.train.model, norm="rms")}, {"task": LinearRegression(3, 8, 2.0)})]
    assert len({c.folder for c in (config, *changed)}) == 7
    assert replace(config, exams=(replace(config.exams[0], seed=1), config.exams[1])).folder != config.folder


KNOWN = {"Mamba": "125b464478", "Transformer": "5bdb73371a"}


def test_the_names_of_known_runs_stay():
    "If this fails, a default has changed its value or its meaning, and every stored run has lost its name."
    for title, known in KNOWN.items():
        run = experiment_runs("linear_regression", "laptop")[title]
        first = replace(run, train=replace(run.train, steps=3000, batch_size=64), exams=tuple(replace(exam, n_prompts=1280) for exam in run.exams if exam.shift != "x_scale_0.333"))  # as this tier began
        assert first.folder == f"{run.name}-{known}"


def test_a_configuration_from_before_an_option_is_the_same_run():
    data = json.loads(json.dumps(run_config().to_dict()))
    for option in ("weight_decay", "precision", "stop_below"): del data["train"][option]
    for option in ("norm", "dropout", "layout"): del data["train"]["model"][option]
    assert RunConfig.from_dict(data) == run_config()


def test_a_record_says_where_it_comes_from_and_what_was_measured(tmp_path):
    config = run_config("mambaformer")
    seen = []
    record = run(config, tmp_path, report=seen.append)
    assert dict(record.sizes) == {"shift": 2, "seed": 2, "examples": 3, "step": 12}
    assert record.seed.values.tolist() == [3, 7] and record.examples.values.tolist() == [0, 3, 11] and record.step.values.tolist() == list(range(5, 61, 5))
    assert json.loads(record.attrs["configuration"]) == config.to_dict()
    assert {"commit", "versions", "device", "python", "training_flops", "n_parameters", "score"} <= record.attrs.keys()
    assert record.attrs["n_parameters"] == sum(p.numel() for p in build_model(config.train.model, 0).parameters())
    for name in ("score", "score_low", "score_high", "pooled", "pooled_low", "pooled_high", "loss"): assert np.isfinite(record[name]).all()
    assert (record.score_low <= record.score).all() and (record.score <= record.score_high).all()
    assert {"training_seconds", "exam_seconds", "steps_per_second", "peak_memory_bytes", "threads"} <= load_cost(config, tmp_path).keys()
    assert [p.step for p in seen if p.stage == "training"] == list(range(5, 61, 5))
    assert [p.step for p in seen if p.stage == "examining"] == list(range(1, 9)) and seen[-1].stage == "finished"


@pytest.fixture
def at_another_place(monkeypatch):
    "Within it, what runs says that it runs elsewhere."
    @contextmanager
    def elsewhere(**place):
        with monkeypatch.context() as there:
            there.setattr("iclrepro.runs.provenance", lambda device: {**provenance(device), **place})
            yield

    return elsewhere


def test_a_record_says_where_it_was_trained_if_that_was_elsewhere(tmp_path, at_another_place):
    config, told = run_config(steps=30), []
    with at_another_place(device="a GPU", commit="abc"): trained_there = run(config, tmp_path)
    examined_here = run(asked_more(config), tmp_path, report=told.append)
    here = provenance("cpu")
    assert {"trained_on", "trained_commit"}.isdisjoint(trained_there.attrs) and {progress.stage for progress in told} == {"examining", "finished"}
    assert {name: examined_here.attrs[name] for name in ("device", "commit", "trained_on", "trained_commit")} == {"device": here["device"], "commit": here["commit"], "trained_on": "a GPU", "trained_commit": "abc"}
    assert load_cost(asked_more(config), tmp_path)["device"] == "a GPU"
    third = replace(asked_more(config), name="third")
    (checkpoint_of(config, tmp_path)).unlink()  # it is told on by who took it over
    assert run(third, tmp_path).attrs["trained_on"] == "a GPU"


def test_a_record_says_where_it_was_resumed(tmp_path, at_another_place):
    config, here = run_config(), provenance("cpu")
    with at_another_place(device="a GPU"): halted(config, tmp_path)
    record = run(config, tmp_path)
    assert record.attrs["trained_on"] == load_cost(config, tmp_path)["device"] == f"a GPU, {here['device']}" and "trained_commit" not in record.attrs


def test_a_checkpoint_that_does_not_say_where_it_was_made_resumes(tmp_path):
    config, whole = run_config(), tmp_path / "whole"
    run(config, whole)
    halted(config, tmp_path)
    state = load_checkpoint(checkpoint_of(config, tmp_path))
    del state["trained"]
    save_checkpoint(state, checkpoint_of(config, tmp_path))
    run(config, tmp_path)
    assert_same_run(config, tmp_path, whole)


def test_a_record_that_was_changed_is_refused(tmp_path):
    config = run_config(steps=10)
    record = run(config, tmp_path)
    path, cost = record_of(config, tmp_path), record_of(config, tmp_path).with_name("cost.json")
    assert load_cost(config, tmp_path)["record_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    good = path.read_bytes()
    changed = good.replace(record["score"].values.astype(">f8").tobytes()[:8], b"\x3f" + bytes(7))
    assert changed != good
    path.write_bytes(changed)
    for ask in (find_record, run):
        with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged.*delete it to have it made again"): ask(config, tmp_path)
    data = json.loads(cost.read_text())
    del data["record_sha256"]
    for content in (json.dumps(data), None):  # as runs of before left it, or not at all
        cost.unlink() if content is None else cost.write_text(content)
        assert find_record(config, tmp_path) is not None
    path.unlink()
    assert run(config, tmp_path).identical(record) and path.read_bytes() == good


def test_a_seed_has_the_same_record_alone(tmp_path):
    together, alone = (run(run_config("mambaformer", seeds=seeds), tmp_path) for seeds in ((3, 7), (7,)))
    for name in ("score", "loss"): assert (together[name].sel(seed=7) == alone[name].sel(seed=7)).all()


@pytest.mark.parametrize("cores, at_once", [(1, 1), (2, 2), (5, 3)])
def test_so_many_seeds_train_at_a_time_as_there_are_cores(cores, at_once):
    config, busy, most, lock = train_config("transformer", seeds=(3, 5, 7)), set(), [], threading.Lock()
    expected, training = trained(config), Training(config)
    training.engine.cores = lambda: cores
    for member in training.members:
        def step(config, number, own=member.step):
            with lock:
                busy.add(threading.get_ident())
                most.append(len(busy))
            time.sleep(0.002)
            try: return own(config, number)
            finally:
                with lock: busy.remove(threading.get_ident())
        member.step = step
    while not training.finished: training.advance()
    assert max(most) == at_once and torch.equal(training.losses, expected.losses)


@pytest.fixture
def spoilt(monkeypatch):
    "Linear regression with a NaN in an answer, or in a gradient, at chosen (seed, step): a dictionary to fill."
    monkeypatch.setitem(TASKS, "spoilt", None)  # so that the name is gone again after the test

    @register_task("spoilt")
    @dataclass(frozen=True)
    class Spoilt(LinearRegression):
        """Spoils as told."""
        at: ClassVar[dict] = {}
        now: ClassVar[threading.local] = threading.local()  # members train side by side

        def function(self, draws, batch_size, dims):
            right = super().function(draws, batch_size, dims)
            self.now.what = self.at.get(tuple(draws.rng.bit_generator.state["state"]["key"].tolist()))
            return (lambda x: right(x) * torch.nan) if self.now.what == "answer" else right

        def loss(self, prediction, prompt):
            loss = super().loss(prediction, prompt)
            return loss + (prediction.sum() * 0).sqrt() if self.now.what == "gradient" else loss  # infinitely steep at 0

    return Spoilt


def last_good_checkpoint(error):
    "The path and step that the message names."
    _, _, tail = str(error).partition("the last good checkpoint is ")
    path, _, step = tail.rpartition(" at step ")
    return Path(path), int(step)


def assert_finite(state):
    assert state["losses"][:, :state["step"]].isfinite().all()
    for member in state["members"]:
        assert member["weights"].isfinite().all()
        assert all(value.isfinite().all() for value in member["optimiser"][0].values())


def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_is_lost(spoilt, tmp_path):
    config = run_config(task=spoilt(3, 8))
    spoilt.at |= {(7, 23): "answer", (3, 24): "answer"}
    with pytest.raises(NonFiniteLoss, match=r"test-transformer: the loss of seed 7 became nan at step 23: lower the learning rate") as caught:
        run(config, tmp_path / "spoilt", checkpoint_seconds=0)
    error = caught.value
    assert (error.seed, error.step) == (7, 23) and math.isnan(error.loss)
    path, step = last_good_checkpoint(error)
    assert path == checkpoint_of(config, tmp_path / "spoilt") and step == 20
    state = load_checkpoint(path)
    assert state["step"] == 20
    assert_finite(state)
    assert find_record(config, tmp_path / "spoilt") is None
    with pytest.raises(NonFiniteLoss, match=f"at step 23.*{path} at step 20"): run(config, tmp_path / "spoilt", checkpoint_seconds=0)
    spoilt.at.clear()
    for name in ("spoilt", "whole"): run(config, tmp_path / name)
    assert_same_run(config, tmp_path / "spoilt", tmp_path / "whole")


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_says_so(spoilt, tmp_path):
    config = run_config(task=spoilt(3, 8))
    spoilt.at[3, 0] = "answer"
    with pytest.raises(NonFiniteLoss, match="seed 3 became nan at step 0.*there is no checkpoint yet"): run(config, tmp_path, checkpoint_seconds=0)
    assert not checkpoint_of(config, tmp_path).exists()


@pytest.mark.parametrize("step", [22, 24, 59])
def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint_or_a_record(step, spoilt, tmp_path):
    "At the end of a window, and of the run, no later loss of it betrays the spoilt weights."
    config = run_config(task=spoilt(3, 8))
    spoilt.at[7, step] = "gradient"
    with pytest.raises(NonFiniteLoss) as caught: run(config, tmp_path, checkpoint_seconds=0)
    assert caught.value.seed == 7 and caught.value.step in (step, step + 1)
    path, saved = last_good_checkpoint(caught.value)
    state = load_checkpoint(path)
    assert state["step"] == saved == step // 5 * 5
    assert_finite(state)
    assert find_record(config, tmp_path) is None


def test_an_absurd_learning_rate_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"the loss of seed \d became (inf|nan) at step \d"): run(run_config(lr=1e30), tmp_path, checkpoint_seconds=0)
    assert not list(tmp_path.rglob("record.nc"))


def damaged(content):
    flips = random.Random(7)
    for place in (0, 30, *(flips.randrange(len(content)) for _ in range(8)), len(content) - 1):
        yield f"byte {place} changed", content[:place] + bytes([content[place] ^ 16]) + content[place + 1:]
    for length in (0, 1, 30, 100, len(content) // 2, len(content) - 1): yield f"cut to {length} bytes", content[:length]
    yield "longer", content + b"\0"
    yield "text", b"These are not the weights that you are looking for.\n"
    yield "another program's", content.partition(b"\n")[2]  # what torch.save wrote


def test_a_damaged_or_foreign_checkpoint_is_refused_and_left_as_it_is(tmp_path):
    config = run_config()
    path = halted(config, tmp_path) / "checkpoint.pt"
    for what, content in damaged(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(BadCheckpoint, match="(is damaged|was not written by).*move it away") as caught: run(config, tmp_path, report=never)
        assert str(path) in str(caught.value), what
        assert path.read_bytes() == content, what


def test_a_refused_checkpoint_that_is_moved_away_lets_the_run_begin_anew(tmp_path):
    config = run_config()
    path = halted(config, tmp_path / "a") / "checkpoint.pt"
    path.write_bytes(b"")
    with pytest.raises(BadCheckpoint): run(config, tmp_path / "a")
    path.rename(path.with_name("bad.pt"))
    for name in "ab": run(config, tmp_path / name)
    assert_same_run(config, tmp_path / "a", tmp_path / "b")


def test_the_checkpoint_of_another_configuration_is_refused(tmp_path):
    config, other = run_config(), run_config(lr=2e-3, seeds=(3, 8))
    path = halted(config, tmp_path) / "checkpoint.pt"
    path.write_bytes((halted(other, tmp_path) / "checkpoint.pt").read_bytes())
    with pytest.raises(ValueError, match="belongs to another configuration.*seeds, lr") as caught: run(config, tmp_path, report=never)
    assert str(path) in str(caught.value), "the message does not say which file to move away"


def test_a_state_of_another_configuration_is_refused():
    training = Training(train_config())
    with pytest.raises(ValueError, match="another configuration: task, lr differ"):
        training.load_state_dict(Training(train_config(lr=1e-2, task=LinearRegression(3, 8, scale=2.0))).state_dict())


@pytest.mark.parametrize("content", ["{}", "", "not JSON"])
def test_a_folder_of_another_configuration_is_refused(content, tmp_path):
    config = run_config()
    path = halted(config, tmp_path) / "config.json"
    path.write_text(content)
    with pytest.raises(WrongRun, match="another configuration.*move the folder") as caught: run(config, tmp_path, report=never)
    assert str(path) in str(caught.value) and path.read_text() == content


def test_the_record_of_another_configuration_is_refused(tmp_path):
    config, other = run_config(), run_config(lr=2e-3)
    for each in (config, other): run(each, tmp_path)
    record_of(config, tmp_path).write_bytes(record_of(other, tmp_path).read_bytes())
    with pytest.raises(WrongRun, match="belongs to another configuration.*move the folder away"): run(config, tmp_path, report=never)
    save_dataset(xr.Dataset({"a": 1.0}), record_of(config, tmp_path))
    with pytest.raises(WrongRun, match="belongs to another configuration"): find_record(config, tmp_path)


def test_a_damaged_record_is_refused(tmp_path):
    config = run_config()
    record = run(config, tmp_path)
    path = record_of(config, tmp_path)
    content = path.read_bytes()
    cuts = [content[:length] for length in range(0, len(content) - 8, len(content) // 25)]
    for bad in (*cuts, b"not NetCDF", b"CDF\x01" + b"\xff" * 100):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="is not a NetCDF file.*delete it to have it made again") as caught: run(config, tmp_path, report=never)
        assert str(path) in str(caught.value)
    path.unlink()
    assert run(config, tmp_path).identical(record)
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "sub", Path("/proc/iclrepro")):
        with pytest.raises(OSError, match="cannot write .*choose a folder that exists or can be made") as caught: run(run_config(), root, report=never)
        assert str(root) in str(caught.value)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*args): raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match=f"cannot write {path}: No space left on device"): write_atomically(path, b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_datasets_and_checkpoints_are_read_as_written(tmp_path):
    dataset = xr.Dataset({"a": (("x", "y"), np.arange(6.0).reshape(2, 3) / 7)}, {"x": [1, 2], "y": ["p", "q", "r"]}, {"text": "µ ≤ 1", "number": 3})
    for name in ("a.nc", "b.nc"): save_dataset(dataset, tmp_path / name)
    assert load_dataset(tmp_path / "a.nc").identical(dataset) and (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()
    state = {"x": torch.arange(3.0), "deep": [{"n": 1, "s": "text"}]}
    save_checkpoint(state, tmp_path / "c.pt")
    back = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(back["x"], state["x"]) and back["deep"] == state["deep"]
    with pytest.raises(FileNotFoundError): load_dataset(tmp_path / "none.nc")


DEVICES = {"cuda": "device 'cuda' was asked for but torch .* sees 0 CUDA devices: use device cpu", "cuda:3": "device 'cuda:3' was asked for", "mps": "'mps' is not supported: use cpu or cuda",
           "gpu": "unknown device 'gpu': use cpu, cuda", "": "unknown device ''", "cuda:x": "unknown device 'cuda:x'"}


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_is_not_here_is_refused_before_any_work(device, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=DEVICES[device]): run(run_config(), tmp_path, device, report=never)
    assert list(tmp_path.iterdir()) == []
    assert check_device("cpu") == torch.device("cpu")


def without(data, *path):
    data = json.loads(json.dumps(data))
    target = data
    for key in path[:-1]: target = target[key]
    target[path[-1]] = "nonsense"
    return data


BAD = {
    "unknown task": (lambda: make_task("quadratic"), "unknown task 'quadratic': choose one of linear_regression, sparse_parity"),
    "unknown task in a file": (lambda: RunConfig.from_dict(without(run_config().to_dict(), "train", "task", "name")), "unknown task 'nonsense'"),
    "unknown block in a file": (lambda: RunConfig.from_dict(without(run_config().to_dict(), "train", "model", "pattern")), "unknown block 'nonsense': choose one of attn, mlp, mamba"),
    "unknown schedule": (lambda: train_config(schedule="linear"), "unknown schedule 'linear': choose one of constant, cosine"),
    "unknown model": (lambda: architecture("rnn", 3), "unknown model 'rnn': choose one of transformer, transformer_nope, .*lstm"),
    "unknown shift": (lambda: Exam("noise"), "unknown shift 'noise': choose one of none, noisy.*mean 'noisy'"),
    "unknown experiment": (lambda: experiment_runs("linear", "smoke"), "unknown experiment 'linear': choose one of linear_regression, length_and_shift"),
    "unknown tier": (lambda: experiment_runs("linear_regression", "lap"), "unknown tier 'lap': choose one of smoke, laptop, gpu, paper.*mean 'laptop'"),
    "task wider than the model": (lambda: replace(train_config(), task=LinearRegression(4, 8)), "the task has d_in 4 but the model 3"),
    "curriculum wider than the model": (lambda: replace(train_config(), curriculum=Curriculum(Ramp(2, 4), Ramp(4, 8))), "the curriculum ends at 4 dims and the task has 3: they must be equal"),
    "curriculum narrower than the task": (lambda: replace(train_config(), curriculum=Curriculum(Ramp(2, 2), Ramp(4, 8))), "the curriculum ends at 2 dims and the task has 3: they must be equal"),
    "curriculum shorter than the task": (lambda: replace(train_config(), curriculum=Curriculum(Ramp(2, 3), Ramp(4, 7))), "the curriculum ends at 7 points and the task has 8: they must be equal"),
    "training beyond the positions": (lambda: train_config(task=LinearRegression(3, 13), curriculum=Curriculum(Ramp(2, 3), Ramp(4, 13))), "13 points are 25 tokens, beyond the model's positional table of 24 rows"),
    "exam beyond the positions": (lambda: replace(run_config(), exams=(Exam("none", 13),)), "13 points are 25 tokens, beyond the model's positional table of 24 rows"),
    "no steps": (lambda: train_config(steps=0), "steps is 0: it must be above 0"),
    "negative decay": (lambda: train_config(weight_decay=-0.1), "weight_decay is -0.1: it must be 0 or more"),
    "unknown precision": (lambda: train_config(precision="bf16"), "unknown precision 'bf16': choose one of float32, tf32"),
    "another layout": (lambda: replace(train_config(), model=replace(train_config().model, layout="vectors")), "the task has layout 'pairs' but the model 'vectors'"),
    "another answer": (lambda: replace(train_config(), model=replace(train_config().model, d_out=3)), "the task has d_out 1 but the model 3"),
    "no batch": (lambda: train_config(batch_size=0), "batch_size is 0"),
    "negative rate": (lambda: train_config(lr=-1.0), "lr is -1.0"),
    "rate that is no number": (lambda: train_config(lr=math.nan), "lr is nan"),
    "no clipping norm": (lambda: train_config(clip=0.0), "clip is 0.0"),
    "no window": (lambda: train_config(log_every=0), "log_every is 0"),
    "no seeds": (lambda: train_config(seeds=()), r"seeds is \(\): it needs one or more"),
    "a seed twice": (lambda: train_config(seeds=(1, 1)), r"seeds is \(1, 1\).*different"),
    "negative seed": (lambda: train_config(seeds=(0, -1)), r"seeds is \(0, -1\)"),
    "no exams": (lambda: replace(run_config(), exams=()), "at least one exam"),
    "a shift twice": (lambda: replace(run_config(), exams=(Exam("none", 8), Exam("none", 9))), "one for each shift"),
    "name with a slash": (lambda: replace(run_config(), name="../up"), "name is '../up': use letters, digits"),
    "no name": (lambda: replace(run_config(), name=""), "name is ''"),
    "exam of no prompts": (lambda: Exam(n_prompts=0), "n_prompts is 0: it must be a positive multiple"),
    "exam of broken batches": (lambda: Exam(n_prompts=100), "n_prompts is 100: it must be a positive multiple of batch_size, 64"),
    "exam beyond its points": (lambda: replace(run_config(), exams=(Exam(n_points=5, at=(0, 5)),)), r"at is \(0, 5\).*0 … 4"),
    "exam of no points": (lambda: Exam(n_points=0), "n_points 0.*at least 1"),
    "exam that asks twice": (lambda: Exam(at=(2, 2, 5)), r"at is \(2, 2, 5\): each number of examples once"),
    "half a seed": (lambda: train_config(seeds=(0.5,)), r"seeds is \(0.5,\): it must be a tuple of which each is an integer$"),
    "a list of seeds": (lambda: train_config(seeds=[1]), r"seeds is \[1\]: it must be a tuple of which each is an integer$"),
    "steps that are no integer": (lambda: train_config(steps=20.0), "steps is 20.0: it must be an integer$"),
    "steps that are true": (lambda: train_config(steps=True), "steps is True: it must be an integer$"),
    "infinite rate": (lambda: train_config(lr=math.inf), "lr is inf: it must be a finite number or a tuple of which each is a finite number$"),
    "a rate that is a word": (lambda: train_config(lr="fast"), "lr is 'fast': it must be a finite number"),
    "infinite decay": (lambda: train_config(weight_decay=math.inf), "weight_decay is inf: it must be a finite number$"),
    "a schedule without a name": (lambda: train_config(schedule=["constant"]), r"schedule is \['constant'\]: it must be text$"),
    "clipping at true": (lambda: train_config(clip=True), "clip is True: it must be a finite number or None$"),
    "width that is no integer": (lambda: replace(train_config().model, d_model=16.0), "d_model is 16.0: it must be an integer$"),
    "a norm that is a number": (lambda: replace(train_config().model, final_norm=1), "final_norm is 1: it must be True or False$"),
    "a ramp of halves": (lambda: Ramp(1, 4, 0.5), "increment is 0.5: it must be an integer$"),
    "a task of half a dimension": (lambda: LinearRegression(2.5, 8), "dim is 2.5: it must be an integer$"),
    "exam of broken prompts": (lambda: Exam(n_prompts=128.0), "n_prompts is 128.0: it must be an integer$"),
    "exam that asks between points": (lambda: Exam(at=(0, 1.5)), r"at is \(0, 1.5\): it must be a tuple of which each is an integer$"),
    "a probe of broken tasks": (lambda: Probe((4,), n_tasks=8.0), "n_tasks is 8.0: it must be an integer$"),
    "a name that is a number": (lambda: replace(run_config(), name=3), "name is 3: it must be text$"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message): call()


@pytest.mark.parametrize("name", TITLES)
def test_a_run_without_positions_has_no_limit_of_points(name):
    model = architecture(name, 3, 1, 16, 2, n_points=12)
    assert (model.positions == "learned") == (name in ("transformer", "standard_hybrid"))
    if model.positions != "learned": replace(run_config(), train=replace(train_config(), model=model), exams=(Exam("none", 500),))
    assert isinstance(model, ModelConfig)


def test_a_whole_number_does_for_a_rate():
    assert train_config(lr=1, clip=None, seeds=(0, 1)).rates == (1, 1) and train_config(lr=(1, 0.5), seeds=(0, 1)).rates == (1, 0.5)


def test_the_inner_precision_is_restored():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for name, expected in (("tf32", ("high", True)), ("float32", ("highest", False))):
        with pytest.raises(KeyboardInterrupt), inner_precision(name):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == expected
            raise KeyboardInterrupt
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
