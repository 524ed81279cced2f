"""Members trained as one equal members trained alone: every architecture, every task, dropout, rates, precision; and the graph on a GPU."""
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from iclrepro import scan
from iclrepro.models import ARCHITECTURES, build_model, model_for, predict
from iclrepro.prompts import Draws, Prompt
from iclrepro.tasks import TASKS, Curriculum, LinearRegression, Ramp, make_task
from iclrepro.training import NonFiniteLoss, SideBySide, Stack, TrainConfig, Training, exact_ends, flatten, in_order, inner_precision, places

CPU = torch.device("cpu")


def small(name):
    cls = TASKS[name]
    return make_task(name, n_points=6) if cls.layout == "pairs" else make_task(name)


def run_of(model="transformer", task=None, seeds=(3, 7, 4), steps=3, size=(1, 16), **options):
    task = task or LinearRegression(3, 8)
    train = {name: options.pop(name) for name in ("lr", "clip", "precision", "schedule", "weight_decay", "curriculum", "batch_size", "log_every") if name in options}
    n_layers, d_model = size
    net = model_for(task, model, "tiny", n_layers=n_layers, d_model=d_model, n_heads=2, **options)
    return TrainConfig(task, net, train.pop("curriculum", Curriculum.constant(task)), steps, seeds, **{"batch_size": 4, "lr": 1e-3, "log_every": steps} | train)


def trained(config, engine, device=CPU):
    training = Training(config)
    training.engine = engine(config, device)
    while not training.finished: training.advance()
    return training


def assert_same(a, b, tolerance=1e-4):
    "Adam divides by the size of the gradient: a weight whose gradient is almost 0 goes where rounding says. So weights are compared by how far they all went."
    assert torch.isfinite(a.losses).all()
    torch.testing.assert_close(a.losses, b.losses, rtol=tolerance, atol=1e-6)
    for ours, theirs, seed in zip(a.members, b.members, a.config.seeds):
        ours, theirs = (member.state_dict()["weights"].cpu() for member in (ours, theirs))
        start = torch.nn.utils.parameters_to_vector(build_model(a.config.model, seed).parameters())
        assert (ours - theirs).norm() <= 0.03 * (theirs - start).norm() and not torch.equal(theirs, start)


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_gradients_of_a_stack_are_those_of_each_member(model):
    "In float64, where rounding cannot hide a mistake: dropout included, because every member draws its own."
    options = {"dropout": 0.3} if model.startswith("s4") else {}
    config = run_of(model, **options)
    stack = Stack(config, CPU)
    stack.flat, stack.grad = stack.flat.double(), stack.grad.double()
    stack.collectors = {}
    stack.reseed(5)
    exact = lambda prompt: Prompt(*(part.double() if part.is_floating_point() else part for part in prompt))
    losses = stack.differentiate([exact(prompt) for prompt in stack.draw(stack.stage(5))])
    for e, seed in enumerate(config.seeds):
        net = build_model(config.model, seed).double()
        prompt = exact(config.task.sample(Draws(seed, 5), config.batch_size))
        loss = config.task.loss(predict(net, prompt, Draws(seed, 5, "dropout")), prompt)
        loss.backward()
        assert losses[e].item() == pytest.approx(loss.item(), rel=1e-12)
        for p, place in zip(net.parameters(), stack.where):
            expected = torch.zeros(p.numel(), dtype=torch.float64) if p.grad is None else p.grad.flatten()
            torch.testing.assert_close(stack.grad[e, place], expected, rtol=1e-9, atol=1e-12)
    assert len(stack.groups) == (3 if model == "lstm" else 1)


@pytest.mark.parametrize("task", TASKS)
def test_a_stack_learns_every_task_as_members_alone_do(task):
    config = run_of("transformer", small(task), seeds=(3, 7), steps=2, batch_size=16 if task == "many_outliers" else 2)
    assert_same(trained(config, Stack), trained(config, SideBySide))


@pytest.mark.parametrize("changes", [{"clip": 0.05}, {"clip": None, "weight_decay": 0.1, "schedule": "warmup_cosine", "lr": (1e-2, 1e-3, 1e-2)},
                                     {"seeds": (5,)}, {"model": "lstm"}, {"curriculum": Curriculum(Ramp(1, 3, 1, 4), Ramp(2, 8, 2, 3))}], ids=str)
def test_a_stack_trains_as_members_alone_do(changes):
    config = run_of(**{"steps": 12, **changes})
    assert_same(trained(config, Stack), trained(config, SideBySide))


def test_rates_belong_to_members():
    both = trained(run_of(seeds=(3, 3), lr=(1e-2, 1e-3), steps=6), Stack)
    for member, rate in enumerate((1e-2, 1e-3)):
        alone = trained(run_of(seeds=(3,), lr=rate, steps=6), SideBySide)
        torch.testing.assert_close(both.losses[member], alone.losses[0], rtol=1e-4, atol=1e-6)
    assert both.losses[0, 0] == both.losses[1, 0] and both.losses[0, -1] != both.losses[1, -1]


@pytest.mark.parametrize("changes, message", [
    ({"lr": (1e-3, 1e-3)}, "lr has 2 rates for 3 seeds: give one rate, or one a seed"), ({"lr": (1e-3, 0.0, 1e-3)}, "lr is .*: it must be above 0"),
    ({"seeds": (3, 3), "lr": 1e-3}, "different ones where the rate is the same"), ({"seeds": (3, 3), "lr": (1e-3, 1e-3)}, "different ones where the rate is the same")])
def test_rates_that_fit_no_members_are_refused(changes, message):
    with pytest.raises(ValueError, match=message): run_of(**changes)


def test_both_engines_stop_at_the_same_step():
    config = run_of("mambaformer", steps=30, log_every=3, lr=1e-2)
    worst = trained(config, SideBySide).loss_curve()[1].amax(0)
    config = replace(config, stop_below=1.001 * worst[1:6].min().item())
    a, b = trained(config, Stack), trained(config, SideBySide)
    assert a.step == b.step < 30
    torch.testing.assert_close(a.losses[:, :a.step], b.losses[:, :b.step], rtol=1e-4, atol=1e-6)


def test_a_checkpoint_serves_both_engines():
    config = run_of("mambaformer", steps=9, log_every=3)
    whole = trained(config, SideBySide)
    for first, then in ((Stack, SideBySide), (SideBySide, Stack)):
        start, rest = Training(config), Training(config)
        start.engine, rest.engine = first(config, CPU), then(config, CPU)
        start.advance()
        state = start.state_dict()
        assert state["members"][0]["weights"].shape == whole.state_dict()["members"][0]["weights"].shape
        rest.load_state_dict(state)
        while not rest.finished: rest.advance()
        assert_same(rest, whole)


def test_parameters_begin_at_aligned_places_and_the_gaps_stay_empty():
    config = run_of("mamba", steps=4)
    stack = trained(config, Stack).engine
    taken = torch.zeros(stack.flat.shape[1], dtype=torch.bool)
    for place in stack.where:
        assert place.start % 64 == 0 and not taken[place].any()
        taken[place] = True
    assert taken.sum() == sum(p.numel() for p in stack.skeleton.parameters()) < len(taken)
    assert not stack.flat[:, ~taken].any() and (stack.flat[:, taken] != 0).float().mean() > 0.5


@pytest.mark.parametrize("model", ["mamba", "s4_post", "transformer"])
def test_what_is_no_products_weight_lies_member_behind_member(model):
    "Every parameter of every member is what the matrix holds, before a step and after it."
    config = run_of(model, steps=1)
    stack = Stack(config, CPU)
    products = {f"{name}.{part}" for name, module in stack.skeleton.named_modules() if isinstance(module, torch.nn.Linear) and name.startswith("blocks") and not name.endswith("dt_proj") for part in ("weight", "bias")}
    assert stack.apart.keys() == {name for name, _ in stack.skeleton.named_parameters()} - products and all(place.start % 64 == 0 for place in stack.apart.values())
    given, leaves = [], stack.leaves

    def watched(*rest):
        found = leaves(*rest)
        given.append({name: values.detach().clone() for name, values in found.items()})
        assert all(found[name].is_contiguous() for name in stack.apart)
        return found

    stack.leaves = watched
    for step in (0, 1):
        matrix = stack.flat.clone()
        stack.step(0)
        for (name, p), place in zip(stack.skeleton.named_parameters(), stack.where): assert torch.equal(given[step][name], matrix[:, place].view(-1, *p.shape))
    assert len(given) == 2 and not torch.equal(given[0]["read_in.weight"], given[1]["read_in.weight"])


def test_one_member_alone_is_not_copied():
    stack = Stack(run_of("mamba", seeds=(3,), steps=1), CPU)
    assert not stack.apart and all(p.untyped_storage().data_ptr() == stack.flat.untyped_storage().data_ptr() for p in stack.leaves([0], None).values())


def test_a_member_of_a_stack_is_a_model_of_its_own():
    config = run_of(steps=2)
    training = trained(config, Stack)
    for member, row in zip(training.members, training.engine.flat):
        for p, place in zip(member.model.parameters(), training.engine.where): assert torch.equal(p.detach().flatten(), row[place])
        assert p.untyped_storage().data_ptr() == training.engine.flat.untyped_storage().data_ptr()


def test_a_stack_stops_at_a_loss_that_is_not_finite():
    with pytest.raises(NonFiniteLoss, match="the loss of seed 7 became .* at step"): trained(run_of(seeds=(3, 7), lr=(1e-3, 1e25), steps=20, clip=None), Stack)


def test_with_bfloat16_products_are_rounded_and_the_ends_are_not():
    "What inner_precision does on a GPU, done on a CPU."
    task = LinearRegression(20, 30)
    net = build_model(model_for(task, "transformer", "tiny"), 0)
    prompt = task.sample(Draws(0), 8)
    seen = {}
    for name, module in (("read_in", net.read_in), ("qkv", net.blocks[0].qkv), ("read_out", net.read_out)):
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output.dtype}))
    plain = predict(net, prompt)
    exact_ends(net)
    assert torch.equal(predict(net, prompt), plain)
    with torch.autocast("cpu", torch.bfloat16): rounded = predict(net, prompt)
    assert seen == {"read_in": torch.float32, "qkv": torch.bfloat16, "read_out": torch.float32}
    assert rounded.dtype == torch.float32 and 1e-4 < (rounded - plain).norm() / plain.norm() < 3e-2


@pytest.mark.parametrize("fill", [True, False])
def test_settings_of_torch_are_left_as_they_were(fill, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", fill)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    for precision in ("tf32", "bfloat16"):
        with pytest.raises(KeyError), inner_precision(precision), in_order():
            assert torch.are_deterministic_algorithms_enabled() and not torch.utils.deterministic.fill_uninitialized_memory
            assert torch.is_autocast_enabled("cuda") == (precision == "bfloat16" and torch.cuda.is_available())
            raise KeyError
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)
    assert not torch.is_autocast_enabled("cuda")
