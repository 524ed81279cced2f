"""A run that several processes share equals the run of one: gradients, losses, checkpoints, failures, and under torchrun."""
import contextlib
import copy
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from project import BIN, ROOT

from iclrepro.batch import main, save_configs
from iclrepro.cli import main as command
from iclrepro.evaluation import Exam
from iclrepro.models import build_model, model_for
from iclrepro.parallel import Group, RanksDisagree, RowsOf, SharedTraining, Shares, follow, joined, leading, share, under_torchrun
from iclrepro.progress import read_progress
from iclrepro.prompts import Draws, Prompt
from iclrepro.results import load_checkpoint
from iclrepro.runs import RunConfig, Stopped, run
from iclrepro.tasks import TASKS, Curriculum, LinearRegression, ManyOutliers, Ramp, make_task
from iclrepro.training import NonFiniteLoss, Stack, TrainConfig, Training

CPU = torch.device("cpu")


def config_of(model="transformer", task=None, steps=15, seeds=(3, 7), curriculum=None, n_layers=1, **changes):
    task = task or ManyOutliers(3, 8, p=0.7)
    net = model_for(task, model, "tiny", n_layers=n_layers, d_model=16, n_heads=2, **{"dropout": 0.3} if model.startswith("s4") else {})
    return TrainConfig(task, net, curriculum or Curriculum.constant(task), steps, seeds, **{"batch_size": 5, "lr": 1e-3, "log_every": 5, **changes})


def run_config(name="shared", n_prompts=8, **changes):
    return RunConfig(name, config_of(**changes), (Exam("none", 8, (0, 7), n_prompts, 8),))


@pytest.mark.parametrize("n, size", [(64, 2), (5, 2), (7, 3), (3, 3), (512, 7)])
def test_shares_hold_every_prompt_once_and_are_of_one_size_but_for_one(n, size):
    rows = [list(range(n)[share(n, rank, size)]) for rank in range(size)]
    assert sum(rows, []) == list(range(n)) and max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize("draw", [lambda d, n: d.uniform(n, 2, 3), lambda d, n: d.normal(n), lambda d, n: d.integers(9, n, 4), lambda d, n: d.signs(n, 2), lambda d, n: d.subsets(5, 2, n)])
def test_rows_are_drawn_as_part_of_the_whole(draw):
    rows = share(7, 1, 2)
    for stream in ("train", "dropout"): assert torch.equal(draw(RowsOf(Draws(4, 2, stream), 7, rows), 4), draw(Draws(4, 2, stream), 7)[rows])


def small(name):
    cls = TASKS[name]
    if cls is ManyOutliers: return cls(3, 6, p=0.6)
    return make_task(name, n_points=6) if cls.layout == "pairs" else make_task(name)


CASES = [("transformer", name) for name in TASKS] + [(model, "many_outliers") for model in ("mambaformer", "s4_post", "s4_mamba", "lstm")]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("model, task", CASES)
def test_gradients_of_shares_sum_to_that_of_the_batch(model, task, size):
    "In float64, where rounding cannot hide a mistake. Shares are of 2 and 3, or 1, 2 and 2 prompts; those of many outliers have different numbers of points that count."
    config = config_of(model, small(task), batch_size=5)

    def differentiated(engine):
        engine.flat, engine.grad = engine.flat.double(), engine.grad.double()
        engine.collectors = {}
        engine.reseed(4)
        prompts = [Prompt(*(part.double() if part.is_floating_point() else part for part in prompt)) for prompt in engine.draw(engine.stage(4))]
        return engine.differentiate(prompts), engine.grad, prompts

    losses, gradient, prompts = differentiated(Stack(config, CPU))
    parts = [differentiated(Shares(config, Group(rank, size, CPU))) for rank in range(size)]
    torch.testing.assert_close(sum(part[0] for part in parts), losses, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sum(part[1] for part in parts), gradient, rtol=1e-8, atol=1e-12)
    assert (gradient != 0).any() and not torch.allclose(parts[0][1], parts[1][1])
    if task == "many_outliers": assert len({prompt.mask[share(5, rank, size)].sum().item() for prompt in prompts for rank in range(size)}) > 2


def test_a_share_without_a_point_that_counts_adds_nothing():
    class Lonely(Shares):
        def draw(self, stage, batch_size=None):
            prompts = super().draw(stage, batch_size)
            return [prompt._replace(mask=torch.arange(len(prompt.mask))[:, None].expand_as(prompt.mask) < 2) for prompt in prompts]

    config = config_of(task=LinearRegression(3, 8), batch_size=6)
    first, last = (Lonely(config, Group(rank, 3, CPU)) for rank in (0, 2))
    for engine in (first, last): engine.losses = engine.differentiate(engine.draw(engine.stage(0)))
    assert (last.losses == 0).all() and (last.grad == 0).all() and (first.losses > 0).all() and first.grad.isfinite().all()


@dataclass(frozen=True)
class Total(LinearRegression):
    """Its loss is a sum."""
    def loss(self, prediction, prompt): return (prediction - prompt.y).square().sum() / 100


def test_what_cannot_be_shared_is_refused_before_any_work(monkeypatch):
    with pytest.raises(ValueError, match="batch_size is 3: 4 processes need at least one prompt each"): Shares(config_of(batch_size=3), Group(0, 4, CPU))
    Total.name = "total"
    monkeypatch.setitem(TASKS, "total", Total)
    with pytest.raises(ValueError, match="the loss of task 'total' is .* on a batch but .* from its shares: only a mean over the points"): Shares(config_of(task=Total(3, 8)), Group(0, 2, CPU))


processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["iclrepro.cli", "iclrepro.scan_numba", "torch._dynamo", "pytest"])


def as_rank(rank, size, port, pipe, function, args):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True", GIT_DIR="/nonexistent")
    if sys.platform == "linux": os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    assert under_torchrun()
    pipe.send_bytes(pickle.dumps(function(*args)))  # a tensor sent as such lies in memory that ends with its sender


class Ranks:
    """Processes as torchrun starts them, each calling the function; none outlives the test."""
    def __init__(self, size, function, *args, processes=processes):
        self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # here, so that nobody else can take its port
        self.pipes, self.processes = [], []
        for rank in range(size):
            pipe, theirs = processes.Pipe(duplex=False)
            self.processes.append(processes.Process(target=as_rank, args=(rank, size, self.store.port, theirs, function, args), daemon=True))
            self.processes[-1].start()
            self.pipes.append(pipe)
            theirs.close()

    def __enter__(self): return self

    def __exit__(self, *exception):
        for process in self.processes: process.kill()
        for process in self.processes: process.join()

    def results(self):
        "What each returned; fails if one does not within two minutes."
        for rank, pipe in enumerate(self.pipes): assert pipe.poll(120), f"rank {rank} is silent"
        return [pickle.loads(pipe.recv_bytes()) for pipe in self.pipes]


def called_by(size, function, *args, **options):
    with Ranks(size, function, *args, **options) as ranks: return ranks.results()


def trained(training, state=None, windows=99):
    if state is not None: training.load_state_dict(copy.deepcopy(state))  # the optimiser goes on in what it is given
    while not training.finished and windows:
        training.advance()
        windows -= 1
    buffer = io.BytesIO()
    torch.save(training.state_dict(), buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), map_location="cpu", weights_only=True)


def whole_and_half(config, *place):
    with joined(*place) as group:
        whole, half = trained(SharedTraining(config, group)), trained(SharedTraining(config, group), windows=2)
        return whole, half, trained(SharedTraining(config, group), half)


def resumed(config, state):
    with joined() as group: return trained(SharedTraining(config, group), state)


def assert_close(a, b, config, tolerance=1e-4):
    "Losses agree; the weights went the same way, by far less apart than either went."
    torch.testing.assert_close(a["losses"], b["losses"], rtol=tolerance, atol=1e-6)
    for ours, theirs, seed in zip(a["members"], b["members"], config.seeds):
        start = torch.nn.utils.parameters_to_vector(build_model(config.model, seed).parameters())
        assert (ours["weights"] - theirs["weights"]).norm() <= 0.03 * (theirs["weights"] - start).norm() and not torch.equal(theirs["weights"], start)


def assert_same(a, b):
    torch.testing.assert_close(a["losses"], b["losses"], rtol=0, atol=0, equal_nan=True)
    for ours, theirs in zip(a["members"], b["members"]):
        assert torch.equal(ours["weights"], theirs["weights"])
        for key, value in ours["optimiser"][0].items(): assert torch.equal(value, theirs["optimiser"][0][key])


@pytest.mark.parametrize("changes", [{"clip": 0.1, "schedule": "cosine"}, {"model": "s4_post", "curriculum": Curriculum(Ramp(1, 3, 1, 4), Ramp(4, 8, 2, 3)), "clip": None}], ids=["clipped", "dropout and curriculum"])
def test_two_processes_train_as_one_and_a_checkpoint_serves_any_number(changes):
    config = config_of(**changes)
    (whole, half, again), (_whole, _half, _again) = called_by(2, whole_and_half, config)
    for ours, theirs in ((whole, _whole), (half, _half), (again, _again)): assert_same(ours, theirs)
    alone = trained(Training(config))
    assert_close(whole, alone, config)
    assert_same(again, whole)
    assert half["step"] == 10
    one = trained(Training(config), half)
    assert_close(one, alone, config)
    assert_same(trained(Training(config), half), one)
    three, *_ = called_by(3, resumed, config, half)
    assert_close(three, alone, config)


@pytest.mark.parametrize("place", [("cuda:0", "gloo"), ("cuda",)], ids=["one GPU, gloo", "two GPUs, NCCL"])
@pytest.mark.parametrize("changes", [{"model": "mambaformer", "clip": 0.1}, {"model": "s4_post", "curriculum": Curriculum(Ramp(1, 3, 1, 4), Ramp(4, 8, 2, 3))}], ids=["clipped", "dropout and curriculum"])
def test_gpus_share_a_run(changes, place):
    if torch.cuda.device_count() < (1 if len(place) > 1 else 2): pytest.skip("not enough GPUs")
    config = config_of(**changes)
    (whole, half, again), others = called_by(2, whole_and_half, config, *place, processes=multiprocessing.get_context("spawn"))
    for ours, theirs in zip((whole, half, again), others): assert_same(ours, theirs)
    assert_same(again, whole)
    alone = trained(Training(config, "cuda"))
    assert_close(whole, alone, config, 1e-3)
    assert_close(trained(Training(config, "cuda"), half), alone, config, 1e-3)


def make_runs(configs, root):
    "Rank 0 makes runs as any process does: one explodes, one is stopped, one is stopped and resumed, one is completed. The others know no folder."
    told = []
    with joined() as group:
        if group.rank: return follow(group)
        with leading(group) as start:
            wild, stopped, resumed, whole = configs
            with pytest.raises(NonFiniteLoss, match="the loss of seed 3 became"): run(wild, root, start=start)
            for each in (stopped, resumed):
                with pytest.raises(Stopped, match="saved at step 10"): run(each, root, report=told.append, stop=lambda: told[-1].step == 10, start=start)
            run(resumed, root, start=start)
            return [run(whole, root, start=start)["loss"].values.tolist() for _ in range(2)]


def test_a_shared_run_is_a_run_like_any_other(tmp_path):
    _, stopped, resumed, whole = configs = run_config("wild", lr=1e30, clip=None), run_config("stopped"), run_config("resumed"), run_config("whole", model="mambaformer")
    (losses, again), nothing = called_by(2, make_runs, configs, str(tmp_path / "shared"))
    assert nothing is None and losses == again
    for config in (stopped, resumed, whole):  # the first goes on with one process, the others are complete
        ours, alone = run(config, tmp_path / "shared"), run(config, tmp_path / "alone")
        for name in ("loss", "score"): torch.testing.assert_close(*(torch.from_numpy(record[name].values) for record in (ours, alone)), rtol=1e-3, atol=1e-5)
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {"runs"} and len(list((tmp_path / "shared" / "runs").iterdir())) == 4


def drift_apart(config):
    with joined() as group:
        training = SharedTraining(config, group)
        training.advance()
        if group.rank == 1: training.engine.flat[0, 3] += 1e-6
        try: training.advance()
        except RanksDisagree as error: return str(error)


def test_weights_that_drift_apart_are_noticed():
    assert [message[:57] for message in called_by(2, drift_apart, config_of())] == ["the weights of ranks [1] differ from those of rank 0: the"] * 2


def last_words(config):
    try:
        with joined() as group:
            training = SharedTraining(config, group)
            training.advance()
            if group.rank == 1: os.kill(os.getpid(), signal.SIGKILL)
            trained(training)
    except RuntimeError: return "noticed"


def test_nobody_waits_for_a_process_that_died():
    with Ranks(2, last_words, config_of(steps=500)) as ranks:
        assert ranks.pipes[0].poll(120) and pickle.loads(ranks.pipes[0].recv_bytes()) == "noticed"


def made_together(path, root):
    with contextlib.redirect_stderr(io.StringIO()) as said: return command(["train", "--config", path, "--root", root, "--quiet"]), said.getvalue()  # each process has its own


def test_the_command_makes_a_list_together_and_names_what_failed(tmp_path):
    configs = [run_config("a"), run_config("wild", lr=1e30, clip=None), run_config("b", steps=5), run_config("lonely", batch_size=1, steps=10_000)]  # the longest is begun first
    run(configs[2], tmp_path)
    for chosen, status in ((configs, 1), (configs[:3:2], 0)):
        save_configs(chosen, tmp_path / "list.json")
        (first, said), (second, silence) = called_by(2, made_together, str(tmp_path / "list.json"), str(tmp_path))
        assert (first, second, silence) == (status, 0, "")
        assert (f"failed: {configs[3].folder}: batch_size is 1: 2 processes need at least one prompt each, start fewer" in said) == (status == 1) == (f"failed: {configs[1].folder}: wild" in said), said
    assert {path.parent.name for path in tmp_path.rglob("record.nc")} == {configs[0].folder, configs[2].folder}


def torchrun(*words):
    "A command of this environment, by two processes; its own process group, so that it can be ended as a whole."
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})}
    return subprocess.Popen([BIN / "torchrun", "--standalone", "--nproc-per-node", "2", *map(str, words)], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finished(process):
    with process:
        try: return process.communicate(timeout=150)[0], process.returncode
        finally:
            try: os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError: pass


def test_torchrun_shares_a_run_saves_it_when_asked_to_stop(tmp_path):
    config = run_config("long", steps=100_000)
    save_configs([config], tmp_path / "list.json")
    process = torchrun("-m", "iclrepro.batch", tmp_path / "list.json", "--devices", "cpu", "--root", tmp_path)
    deadline, folder = time.monotonic() + 120, tmp_path / "runs" / config.folder
    while not (folder / "progress.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, finished(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, status = finished(process)
    assert status != 0 and "stopped; the next call goes on from here" in output and (folder / "checkpoint.pt").exists(), output
    told = read_progress(folder / "progress.json").step
    assert told == load_checkpoint(folder / "checkpoint.pt")["step"] % 100_000 > 0


@pytest.mark.parametrize("words", [["--device", "cuda:1"], ["--devices", "cuda:0,cuda:1"], ["--device", "cuda"], ["--threads", "0"]])
def test_devices_that_torchrun_cannot_share_are_refused(words, tmp_path, capsys, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    save_configs([run_config()], tmp_path / "list.json")
    assert command(["train", "--config", str(tmp_path / "list.json"), *words, "--root", str(tmp_path)]) == 2
    message = {"cuda": "process 0 of this host has no GPU", "0": "threads is 0"}.get(words[1], "unknown device of the processes that torchrun starts")
    assert message in capsys.readouterr().err
    if words[0] == "--devices": assert main([str(tmp_path / "list.json"), *words]) == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("size, expected", [("2", True), ("1", False), (None, False)])
def test_torchrun_is_known_by_what_it_says(size, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"): monkeypatch.delenv(name, raising=False)
    if size: [monkeypatch.setenv(name, value) for name, value in {"RANK": "0", "WORLD_SIZE": size, "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items()]
    assert under_torchrun() == expected
