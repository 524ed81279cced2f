"""On a GPU: every task samples there and from the same distribution, every model and baseline says what it says on a CPU."""
import pytest
import torch

from iclrepro.baselines import BASELINES, baseline
from iclrepro.evaluation import Exam, as_baseline_examinee, as_examinee, take
from iclrepro.models import ARCHITECTURES, build_model, model_for, predict
from iclrepro.prompts import Draws, Prompt, Replay
from iclrepro.scan import causal_conv1d, errors_against_loop
from iclrepro.scan_peers import scan_mamba_ssm
from iclrepro.shifts import SHIFTS, fitting_shifts, sample_shifted
from iclrepro.tasks import TASKS, Curriculum, Ramp, make_task
from iclrepro.training import TrainConfig, Training, inner_precision

@pytest.fixture(autouse=True)
def full_float32():
    with inner_precision("float32"): yield


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def small(name):
    cls = TASKS[name]
    return make_task(name, n_points=8 if cls.layout == "pairs" else 4)


def to(prompt, device): return Prompt(*(part.to(device) for part in prompt))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_samples_on_the_gpu(name):
    task = make_task(name)
    here, there = task.sample(Draws(1), 64), task.sample(Draws(1, device="cuda"), 64)
    for a, b in zip(here, there): assert a.shape == b.shape and a.dtype == b.dtype and b.is_cuda
    again = task.sample(Draws(1, device="cuda"), 64)
    assert all(torch.equal(a, b) for a, b in zip(there, again))
    assert there.mask.float().mean().item() == pytest.approx(here.mask.float().mean().item(), abs=0.05)
    # A mean over prompts, of numbers that may be heavy-tailed: their logarithm is not.
    a, b = (torch.log1p(part.y.double().flatten(1).square().mean(1).cpu()) for part in (here, there))
    assert abs(a.mean() - b.mean()) <= 5 * ((a.var() + b.var()) / 64).sqrt() + 1e-6


@pytest.mark.parametrize("name", TASKS)
def test_a_recorded_sampler_draws_what_the_sampler_draws(name):
    task = small(name)
    replay = Replay(lambda draws: task.sample(draws, 16), "cuda")
    for seed, step in ((0, 1), (5, 2), (0, 1)):
        for recorded, direct in zip(replay(seed, step), task.sample(Draws(seed, step, device="cuda"), 16)): assert torch.equal(recorded, direct)


def test_training_on_the_gpu_is_that_of_a_loop_with_a_curriculum():
    task = make_task("skewed_linear_regression", dim=4, n_points=8)
    config = TrainConfig(task, model_for(task, "s4_mamba", "tiny", n_layers=1, d_model=32, dropout=0.1), Curriculum(Ramp(2, 4, 1, 5), Ramp(4, 8, 2, 5)), 20, (0, 1), 16, 1e-3, log_every=10)
    training = Training(config, "cuda")
    while not training.finished: training.advance()
    for row, seed in enumerate(config.seeds):
        model = build_model(config.model, seed).to("cuda")
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(20):
            prompt = task.sample(Draws(seed, step, device="cuda"), 16, config.curriculum.points.at(step), config.curriculum.dims.at(step))
            loss = task.loss(predict(model, prompt, Draws(seed, step, "dropout", "cuda")), prompt)
            assert loss.item() == pytest.approx(training.losses[row, step].item(), rel=1e-3)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimiser.step()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_a_model_says_on_the_gpu_what_it_says_on_the_cpu(task, model):
    "Predictions and gradients, with full float32 in matrix products."
    made = small(task)
    net = build_model(model_for(made, model, "tiny", n_layers=1, d_model=32), 0)
    prompt = made.sample(Draws(2), 3)
    results = []
    for device in ("cpu", "cuda"):
        net = net.to(device)
        net.zero_grad()
        prediction = predict(net, to(prompt, device))
        made.loss(prediction, to(prompt, device)).backward()
        results.append([prediction.detach().cpu()] + [torch.zeros(1) if p.grad is None else p.grad.clone().cpu() for p in net.parameters()])
    for a, b in zip(*results): assert (a - b).abs().max() <= 2e-4 * max(1e-2, a.abs().max())


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_says_on_the_gpu_what_it_says_on_the_cpu(name):
    if name.startswith("xgboost"): pytest.importorskip("xgboost")
    if name.startswith("network"): pytest.skip("its first weights are drawn on the device")
    task = small(BASELINES[name].tasks[0])
    prompt, f = task.sample(Draws(3), 4), baseline(name)
    said = []
    for device in ("cpu", "cuda"):
        said.append(as_baseline_examinee(f, task)(to(prompt, device), None, [task.n_asked(task.n_points) - 1]).cpu())
    assert (said[0] - said[1]).abs().max() <= 1e-3 * max(1, said[0].abs().max())


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_is_examined_on_the_gpu(shift):
    task = next(task for task in (*map(small, TASKS), make_task("vector_mqar")) if shift in fitting_shifts(task))
    context, query = sample_shifted(task, shift, Draws(4, device="cuda"), 4)
    assert context.x.is_cuda and (query is None or query.x.is_cuda)
    net = build_model(model_for(task, "mambaformer", "tiny", n_layers=1, d_model=32), 0).to("cuda")
    scores = take(Exam(shift, task.n_points, n_prompts=8, batch_size=4), task, as_examinee(net), "cuda")
    assert scores.shape[0] == 8 and not scores.isinf().any()


def scan_example(length, channels, states, dtype):
    draw = lambda *shape: Draws(5, length, device="cuda").normal(*shape).to(dtype)
    return {"u": draw(2, length, channels), "dt": draw(2, length, channels), "A": -draw(channels, states).exp(), "B": draw(2, length, states), "C": draw(2, length, states),
            "D": draw(channels), "z": draw(2, length, channels), "dt_bias": draw(channels) - 2}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("length", "channels"), [(1, 32), (82, 128), (202, 40)])
def test_mamba_ssm_is_the_loop(length, channels, dtype, bound):
    pytest.importorskip("mamba_ssm")
    tensors = scan_example(length, channels, 16, dtype)
    assert max(errors_against_loop(scan_mamba_ssm, tensors).values()) < bound
    few = {name: tensor for name, tensor in tensors.items() if name not in ("D", "z", "dt_bias")}
    assert max(errors_against_loop(scan_mamba_ssm, few).values()) < bound
    taps = {"x": tensors["u"], "weight": tensors["A"][:, :4].contiguous(), "bias": tensors["D"]}
    for silu in (True, False): assert max(errors_against_loop(lambda **t: causal_conv1d(**t, silu=silu, backend="mamba_ssm"), taps, silu=silu).values()) < bound
