"""On a GPU: every task samples there and from the same distribution, every model and baseline says what it says on a CPU."""
from dataclasses import replace
from functools import partial

import attention_cases
import diagonal_cases
import fused_cases
import pytest
import torch

from iclrepro import diagonal_cuda
from iclrepro.attention import causal_attention
from iclrepro.baselines import BASELINES, baseline
from iclrepro.evaluation import Exam, as_baseline_examinee, as_examinee, take
from iclrepro.models import ARCHITECTURES, build_model, model_for, predict
from iclrepro.prompts import Draws, Prompt, Replay
from iclrepro.scan import causal_conv1d, errors_against_loop
from iclrepro.scan_peers import scan_mamba_ssm
from iclrepro.shifts import SHIFTS, fitting_shifts, sample_shifted
from iclrepro.tasks import TASKS, Curriculum, Ramp, make_task
from iclrepro.training import PRECISIONS, NonFiniteLoss, TrainConfig, Training, inner_precision
from iclrepro.wkv import wkv, wkv_errors

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


def naive_losses(config, seed, steps):
    "The loss of each step, the plain way."
    model = build_model(config.model, seed).to("cuda")
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for step in range(steps):
        prompt = config.task.sample(Draws(seed, step, device="cuda"), config.batch_size, config.curriculum.points.at(step), config.curriculum.dims.at(step))
        loss = config.task.loss(predict(model, prompt, Draws(seed, step, "dropout", "cuda")), prompt)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
    return losses


def trained(config, state=None):
    training = Training(config, "cuda")
    if state is not None: training.load_state_dict(state)
    while not training.finished: training.advance()
    return training


def run_of(task, model, steps, seeds=(0, 1), precision="float32", **options):
    return TrainConfig(task, model_for(task, model, "tiny", n_layers=1, d_model=32, **options), Curriculum.constant(task), steps, seeds, 16, 1e-3, log_every=10, precision=precision)


def test_training_on_the_gpu_is_that_of_a_loop_with_a_curriculum():
    task = make_task("skewed_linear_regression", dim=4, n_points=8)
    config = replace(run_of(task, "s4_mamba", 20, dropout=0.1), curriculum=Curriculum(Ramp(2, 4, 1, 5), Ramp(4, 8, 2, 5)))
    training = trained(config)
    for row, seed in zip(training.losses, config.seeds): assert row.tolist() == pytest.approx(naive_losses(config, seed, 20), rel=1e-3)


@pytest.mark.parametrize("model, task", [(model, "linear_regression") for model in ARCHITECTURES] + [("transformer", task) for task in TASKS])
def test_two_hundred_recorded_steps_are_those_of_a_naive_loop(model, task):
    "Rounding grows as the weights move apart: 1e-3 of the loss in the first 20 steps, 2e-2 in the last."
    config = run_of(small(task), model, 200)
    losses = trained(config).losses[1].tolist()
    naive = naive_losses(config, 1, 200)
    assert losses[:20] == pytest.approx(naive[:20], rel=1e-3)
    assert losses == pytest.approx(naive, rel=2e-2)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", ["transformer", "mambaformer"])
def test_the_same_run_gives_the_same_bytes_and_resumes_exactly(model, precision):
    config = run_of(make_task("linear_regression"), model, 30, precision=precision)
    if precision == "tf32": config = replace(config, steps=60, stop_below=1.001 * trained(config).loss_curve()[1][:, 2].max().item())  # so that it may end early
    first = Training(config, "cuda")
    first.advance()
    state = first.state_dict()
    while not first.finished: first.advance()
    for other in (trained(config), trained(config, state)):
        assert other.step == first.step <= 30 and torch.equal(other.losses[:, :first.step], first.losses[:, :first.step])
        for a, b in zip(other.members, first.members): assert torch.equal(a.flat, b.flat)


@pytest.mark.parametrize("model", ["transformer", "mambaformer", "s4_mamba"])
def test_a_member_on_the_gpu_is_the_seed_trained_alone(model):
    together = trained(run_of(make_task("linear_regression"), model, 20, (3, 7, 4)))
    alone = trained(run_of(make_task("linear_regression"), model, 20, (7,)))
    assert together.losses[1].tolist() == pytest.approx(alone.losses[0].tolist(), rel=1e-3)


@pytest.mark.parametrize("precision, error", [("tf32", 1e-2), ("bfloat16", 5e-2)])
def test_a_coarser_precision_trains_almost_alike(precision, error):
    task = make_task("linear_regression", dim=5, n_points=16)
    exact, coarse = (trained(run_of(task, "mambaformer", 100, precision=name)).losses for name in ("float32", precision))
    assert 0 < ((coarse - exact).norm() / exact.norm()).item() < error


def test_an_exploding_run_stops_on_the_gpu():
    config = replace(run_of(make_task("linear_regression"), "transformer", 100), lr=(1e-3, 1e25), clip=None)
    with pytest.raises(NonFiniteLoss, match="seed 1 became"): trained(config)


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


@pytest.mark.parametrize("case", fused_cases.CASES, ids=lambda case: "-".join(str(getattr(part, "__name__", part)) for part in case))
def test_a_fused_kernel_does_what_it_must(case): case[0]("cuda", *case[1:])


@pytest.mark.parametrize("case", [(fused_cases.add_norm, 5184, 256, True, True), (fused_cases.add_norm, 5184, 256, True, False), (fused_cases.column_sums, 4, 5184, 1024, torch.bfloat16),
                                  (fused_cases.adam, 4, 1_000_000, 0.5, 0.0, True), (fused_cases.adam, 1, 10_000_000, 0.5, 0.1, False)],
                         ids=lambda case: "-".join(str(getattr(part, "__name__", part)) for part in case))
def test_a_fused_kernel_does_what_it_must_at_full_size(case): case[0]("cuda", *case[1:])


def scan_example(length, channels, states, dtype):
    draw = lambda *shape: Draws(5, length, device="cuda").normal(*shape).to(dtype)
    return {"u": draw(2, length, channels), "dt": draw(2, length, channels), "A": -draw(channels, states).exp(), "B": draw(2, length, states), "C": draw(2, length, states),
            "D": draw(channels), "z": draw(2, length, channels), "dt_bias": draw(channels) - 2}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("length", "channels"), [(1, 32), (82, 128), (202, 40)])
def test_mamba_ssm_is_the_loop(length, channels, dtype, bound):
    pytest.importorskip("mamba_ssm")
    tensors = scan_example(length, channels, 16, dtype)
    few = {name: tensor for name, tensor in tensors.items() if name not in ("D", "z", "dt_bias")}
    for given in (tensors, few):
        errors = errors_against_loop(scan_mamba_ssm, given)
        if length == 1: del errors["A"]  # nothing has decayed, so it is zero; mamba-ssm takes it as the difference of two roundings
        assert max(errors.values()) < bound, errors
    taps = {"x": tensors["u"], "weight": tensors["A"][:, :4].contiguous(), "bias": tensors["D"]}
    weights = torch.cos(torch.arange(taps["x"].numel(), dtype=torch.float64)).view(taps["x"].shape)  # errors_against_loop's
    for silu in (True, False):
        errors = errors_against_loop(partial(causal_conv1d, backend="mamba_ssm"), taps, silu=silu)
        if not silu: errors["bias"] *= float(weights.sum((0, 1)).abs().max() / weights.abs().sum((0, 1)).max())  # their bare sum cancels, and is as exact as its terms are large
        assert max(errors.values()) < bound, errors


@pytest.mark.parametrize("case", attention_cases.CASES, ids=lambda case: "-".join(str(getattr(part, "__name__", part)) for part in case))
def test_attention_does_what_it_must(case): case[0]("cuda", "triton", *case[1:])


def test_pytorchs_attention_does_what_it_must():
    for case, *rest in attention_cases.CASES:
        if case in (attention_cases.agrees, attention_cases.any_layout, attention_cases.members_of_members): case("cuda", "torch", *rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch, length, heads, width", [(64, 81, 8, 32), (64, 11, 8, 32), (16, 201, 8, 32), (8, 279, 8, 32), (2, 1023, 8, 32), (4, 81, 4, 64), (3, 300, 2, 128)])
def test_attention_does_what_it_must_at_full_size(batch, length, heads, width, dtype):
    attention_cases.agrees("cuda", "triton", batch, length, heads, width, dtype)
    attention_cases.same_bytes("cuda", "triton", batch, length, 3 * heads * width, dtype=dtype)
    attention_cases.captured("cuda", batch, length, heads, width, dtype)


def test_attention_may_round_products_to_tf32():
    with inner_precision("tf32"):
        for length in (81, 201): attention_cases.agrees("cuda", "triton", 8, length, 8, 32, tolerance=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_four_members(dtype): attention_cases.members("cuda", "triton", 0, 4, 64, 81, 8, 32, dtype)


def test_attention_on_a_gpu_is_the_kernels():
    attention_cases.first_derivatives_only("cuda")
    qkv = torch.ones(2, 81, 768, device="cuda")
    assert causal_attention(qkv, 8).grad_fn is None and torch.equal(causal_attention(qkv, 8), causal_attention(qkv, 8, "triton"))
    assert type(causal_attention(qkv.requires_grad_(), 8).grad_fn).__name__ == "_AttentionBackward"


def average_example(batch, length, channels, scale, dtype, members=()):
    draws = Draws(5, length, device="cuda")
    normal = lambda *shape: draws.normal(*members, *shape)
    decay = torch.linspace(-5, 3, channels, device="cuda") + 0.1 * normal(channels)
    return {"k": (scale * normal(batch, length, channels)).to(dtype), "v": normal(batch, length, channels).to(dtype), "decay": decay, "bonus": normal(channels)}


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("batch, length, channels, scale", [(3, 17, 35, 1), (64, 81, 256, 1), (64, 256, 384, 1), (8, 81, 256, 30), (2, 1000, 8, 10), (5, 9, 1, 1)])
def test_the_fading_average_is_the_loop(batch, length, channels, scale, dtype, bound):
    tensors = average_example(batch, length, channels, scale, dtype)
    errors = wkv_errors(wkv, tensors)
    assert max(errors.values()) < bound, errors
    out = wkv(**{name: tensor.requires_grad_() for name, tensor in tensors.items()})
    assert out.dtype == dtype and type(out.grad_fn).__name__ == "_AverageBackward"


def members_and_a_recorded_step(function, tensors):
    "Members at once are each alone, byte for byte; a CUDA graph of both ways gives the same bytes as they do without one."
    step = lambda: (lambda y: (y.detach(), *torch.autograd.grad(y.square().sum(), tensors)))(torch.vmap(function)(*tensors))
    direct = step()
    for m in range(len(tensors[0])): assert torch.equal(direct[0][m], function(*(x[m] for x in tensors)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): recorded = step()
    graph.replay()
    for a, b in zip(recorded, direct): assert torch.equal(a, b)


def test_members_of_the_fading_average_and_a_recorded_step():
    members_and_a_recorded_step(wkv, [x.requires_grad_() for x in average_example(8, 33, 40, 1, torch.float32, (4,)).values()])


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("function", ["diagonal_cuda", "state_space_cuda"])
@pytest.mark.parametrize("batch, length, channels, pairs", [(64, 82, 435, 32), (11, 41, 435, 32), (64, 81, 512, 8), (9, 128, 35, 32), (3, 1, 5, 4)])
def test_the_diagonal_state_space_is_the_loop(batch, length, channels, pairs, function, dtype, bound):
    "Walked and, where there are many states to a token, convolved."
    tensors = diagonal_cases.inputs(batch, length, channels, pairs, dtype)
    exact = diagonal_cases.found(diagonal_cases.loop, [x.double().cuda() for x in tensors])
    ours = diagonal_cases.found(getattr(diagonal_cuda, function), [x.cuda() for x in tensors])
    diagonal_cases.assert_same(ours[:2], exact[:2], bound)
    diagonal_cases.assert_same(ours[2:], exact[2:], 2e-4)  # sums over thousands of tokens


def test_members_of_a_convolution_and_a_recorded_step():
    assert diagonal_cuda.shorter_as_convolution(33, 16)
    members_and_a_recorded_step(diagonal_cuda.state_space_cuda, [x.cuda().requires_grad_() for x in diagonal_cases.inputs(9, 33, 40, 16, members=(3,))])


@pytest.mark.parametrize("precision, error", [("tf32", 1e-2), ("bfloat16", 5e-2)])
def test_rwkv_trains_almost_alike_in_a_coarser_precision(precision, error):
    task = make_task("linear_regression", dim=5, n_points=16)
    exact, coarse = (trained(run_of(task, "rwkv", 100, precision=name)).losses for name in ("float32", precision))
    assert 0 < ((coarse - exact).norm() / exact.norm()).item() < error
