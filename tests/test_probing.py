"""Probes against a float64 loop over truncated models and NumPy's least squares; descent written out; runs that carry a probe, halted, resumed, and records from before there were probes."""
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from project import ROOT
from scipy import stats
from test_training_runs import Halt, assert_same_run, halt_at, run_config, train_config

from iclrepro.claims import CLAIMS, UNDECIDED, layer_curve, rank_correlation
from iclrepro.evaluation import Exam
from iclrepro.experiments import TASK_SIZES, descent_numbers, experiment_runs, gather_probes, task_runs
from iclrepro.models import ARCHITECTURES, SequenceModel, architecture, build_model, parse_pattern
from iclrepro.probing import Probe, asked_alone, descent_errors, fit_line, layer_ratios, probed_tasks, read_blocks, sweep_gamma, take_probe
from iclrepro.prompts import Draws, Prompt
from iclrepro.results import load_checkpoint, load_dataset
from iclrepro.runs import RunConfig, Stopped, find_record, run, summarise_tasks
from iclrepro.tasks import DecisionTree, LinearRegression, ManyOutliers, NoisyLinearRegression, OrthogonalOutliers, ReluNetwork, SkewedLinearRegression, VectorMQAR
from iclrepro.training import Training, essence


TASK = SkewedLinearRegression(3, 8)
PROBE = Probe((4, 7), n_tasks=3, n_validation=3, n_test=5, seed=11)


def truncated(model, n_blocks):
    "A model of the first blocks of another, with its weights."
    names = parse_pattern(model.config.pattern)[:n_blocks]
    short = SequenceModel(replace(model.config, pattern=" + ".join(names))).double()
    weights = model.state_dict()
    short.load_state_dict({name: weights[name] for name in short.state_dict()})
    return short


def said_at_the_end(model, x, y, question):
    "What a model says to a question behind examples, from tokens laid out by hand."
    tokens = []
    for inputs, answer in zip(x, y): tokens += [inputs.tolist(), [answer.item()] + [0.0] * (len(inputs) - 1)]
    with torch.no_grad(): return model(torch.tensor([[*tokens, question.tolist()]], dtype=torch.double))[0, -1, 0].item()


def by_hand(probe, task, model, context):
    "Error, scale and shift (tasks, blocks): one prompt, one block, one task at a time."
    readings = []
    for number in range(probe.n_tasks):
        m, n = probe.n_validation, probe.n_test
        x, y, _ = (part[0].double() for part in task.sample(Draws(probe.seed, number, "probing"), 1, probe.contexts[-1] + n + (m if probe.fitted_on == "queries" else 0)))
        rows = []
        for n_blocks in range(1, len(model.blocks) + 1):
            short = truncated(model, n_blocks)
            if probe.fitted_on == "queries":
                pairs = [(said_at_the_end(short, x[:context], y[:context], x[j]), y[j].item()) for j in range(len(x) - n - m, len(x) - n)]
            else: pairs = [(said_at_the_end(short, x[:j], y[:j], x[j]), y[j].item()) for j in range(context - m, context)]
            said, answers = np.array(pairs).T
            (scale, shift), *_ = np.linalg.lstsq(np.stack([said, np.ones(m)], 1), answers, rcond=None)
            errors = [(scale * said_at_the_end(short, x[:context], y[:context], x[j]) + shift - y[j].item())**2 / task.dim for j in range(len(x) - n, len(x))]
            rows.append((np.mean(errors), scale, shift))
        readings.append(rows)
    return np.array(readings).transpose(2, 0, 1)


@pytest.mark.parametrize("fitted_on", ["queries", "examples"])
@pytest.mark.parametrize("name", ["transformer", "mambaformer"])
def test_a_probe_is_a_loop_over_truncated_models(name, fitted_on):
    probe = replace(PROBE, fitted_on=fitted_on)
    model = build_model(architecture(name, 3, n_layers=2, d_model=16, n_heads=2, n_points=12), 5).double()
    tasks = [Prompt(*(part.double() if part.is_floating_point() else part for part in drawn)) for drawn in probed_tasks(probe, TASK)]
    for context in probe.contexts:
        called = []
        got = take_probe(probe, tasks, model, context, on_task=lambda: called.append(1))
        for part, expected in zip(got, by_hand(probe, TASK, model, context)): np.testing.assert_allclose(part.numpy(), expected, rtol=1e-6, atol=1e-9)
        assert len(called) == 3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_pattern_is_read_block_by_block(name):
    config = architecture(name, 3, n_layers=2, d_model=16, n_heads=2, n_points=12)
    model, prompt = build_model(config, 1), asked_alone(probed_tasks(PROBE, TASK)[0], 7, PROBE.n_queries)
    got = read_blocks(model, prompt)
    assert got.shape == (len(parse_pattern(config.pattern)), 8, 1) and len(layer_ratios(config.pattern)) == len(got)
    exact = build_model(config, 1).double()
    for n_blocks in range(1, len(got) + 1):
        expected = [said_at_the_end(truncated(exact, n_blocks), prompt.x[j, :7], prompt.y[j, :7], prompt.x[j, 7]) for j in range(8)]
        np.testing.assert_allclose(got[n_blocks - 1, :, 0], expected, rtol=1e-4, atol=1e-5)
    assert not any(block._forward_hooks for block in model.blocks)


def test_hooks_go_away_when_a_model_fails():
    model = build_model(architecture("transformer", 3, n_layers=1, d_model=16, n_heads=2, n_points=4), 0)
    with pytest.raises(ValueError, match="beyond the positional table"): read_blocks(model, asked_alone(probed_tasks(PROBE, TASK)[0], 7, 8))
    assert not any(block._forward_hooks for block in model.blocks)


def test_no_answer_reaches_its_own_question():
    drawn, model = probed_tasks(PROBE, TASK)[0], build_model(architecture("mambaformer", 3, 1, 16, 2), 0)
    prompt = asked_alone(drawn, 4, 8)
    other = asked_alone(drawn._replace(y=torch.cat([drawn.y[:, :4], drawn.y[:, 4:] + 9], 1)), 4, 8)
    assert torch.equal(read_blocks(model, prompt), read_blocks(model, other)) and not torch.equal(prompt.y, other.y)
    seen = asked_alone(drawn._replace(y=torch.cat([drawn.y[:, :3] + 9, drawn.y[:, 3:]], 1)), 4, 8)
    assert not torch.allclose(read_blocks(model, prompt), read_blocks(model, seen), atol=1e-3)


@pytest.mark.parametrize("task", [TASK, SkewedLinearRegression(3, 8, rotation="batch"), ReluNetwork(3, 8), DecisionTree(3, 8), NoisyLinearRegression(3, 8)], ids=lambda task: task.name)
def test_a_task_is_its_seed_and_number(task):
    more = probed_tasks(replace(PROBE, n_tasks=5), task)
    for number, drawn in enumerate(more):
        for part, expected in zip(drawn, task.sample(Draws(11, number, "probing"), 1, 15)): assert torch.equal(part, expected)
    assert not torch.equal(more[0].x, probed_tasks(replace(PROBE, seed=12), task)[0].x) and not torch.equal(more[0].x, more[1].x)
    assert not torch.equal(more[0].x, task.sample(Draws(11, 0, "evaluation"), 1, 15).x)
    short, long = (asked_alone(more[0], context, 8) for context in (4, 7))
    assert torch.equal(short.x[:, :4], long.x[:, :4]) and torch.equal(short.x[:, 4], long.x[:, 7]) and torch.equal(short.y[:, 4], long.y[:, 7])


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_line_is_numpys(offset):
    said, answers = Draws(0).normal(4, 5, 10).double() + offset, Draws(1).normal(4, 1, 10).double()
    scale, shift = fit_line(said, answers)
    for i in range(4):
        for j in range(5):
            (a, b), *_ = np.linalg.lstsq(np.stack([said[i, j].numpy(), np.ones(10)], 1), answers[i, 0].numpy(), rcond=None)
            assert scale[i, j].item() == pytest.approx(a, rel=1e-7) and shift[i, j].item() == pytest.approx(b, rel=1e-7, abs=1e-9)


def test_what_does_not_vary_has_scale_zero():
    "Also what varies by the rounding of float32 alone."
    said = torch.full((3, 4), 0.1) * torch.tensor([0.0, 1, 1])[:, None]
    said[2, 0] = torch.nextafter(said[2, 0], torch.tensor(1.0))
    scale, shift = fit_line(said.double(), torch.tensor([1.0, 2, 3, 6]).double())
    assert scale.tolist() == [0, 0, 0] and shift.tolist() == [3, 3, 3]
    scale, _ = fit_line(torch.tensor([0.1, 0.1, 0.1, 0.1001]).double(), torch.tensor([1.0, 2, 3, 6]).double())
    assert scale > 1e4


def test_an_answer_that_is_no_number_has_an_infinite_error():
    model = build_model(architecture("mamba", 3, 1, 16, 2), 0)
    with torch.no_grad(): model.blocks[1].norm.weight.fill_(torch.nan)
    reading = take_probe(PROBE, probed_tasks(PROBE, TASK), model, 4)
    assert reading.error[:, 0].isfinite().all() and (reading.error[:, 1] == torch.inf).all()


def test_layers_are_counted_as_the_paper_does():
    nan = math.nan
    for pattern, expected in {"(attn mlp) x 3": [nan, 0, nan, 0.5, nan, 1], "mamba x 3": [0, 0.5, 1], "mamba + (attn mamba) x 2": [0, 0.25, 0.5, 0.75, 1],
                              "mamba + (attn mlp) x 2": [0, nan, 0.5, nan, 1], "(rwkv_time rwkv_channel) x 2": [nan, 0, nan, 1], "attn mlp": [nan, 1], "attn + mamba + attn": [0, 0.5, 1]}.items():
        np.testing.assert_array_equal(layer_ratios(pattern), expected)


def descent_by_hand(x, y, test_x, test_y, n_iterations, gamma):
    "The text of section 3.2 for one task: change the data, step, predict."
    x, y, test_x, test_y = (np.asarray(part, dtype=float) for part in (x, y, test_x, test_y))
    eigenvalues, w, errors = np.linalg.eigvalsh(x.T @ x / len(x)), np.zeros(x.shape[1]), []
    for iteration in range(n_iterations + 1):
        if iteration:
            if gamma:
                change = np.eye(len(w)) - gamma * x.T @ x
                x, test_x = x @ change, test_x @ change
            w = w - 2 / (eigenvalues[-1] + eigenvalues[0]) * x.T @ (x @ w - y) / len(x)
        errors.append(np.mean((test_x @ w - test_y)**2) / len(w))
    return errors


@pytest.mark.parametrize("dim, context", [(3, 7), (3, 4), (5, 2)])
def test_descent_and_the_sweep_are_written_out(dim, context):
    probe, task = replace(PROBE, contexts=(context, 9)), SkewedLinearRegression(dim, 8)
    tasks, gammas = probed_tasks(probe, task), torch.tensor([0.0, 1e-3, 1e-2])
    swept = sweep_gamma(probe, tasks, context, gammas, 6)
    assert swept.shape == (3, 3)
    for g, gamma in enumerate(gammas.double().tolist()):
        curve = descent_errors(probe, tasks, context, 6, gamma)
        for t, drawn in enumerate(tasks):
            x, y = drawn.x[0], drawn.y[0]
            expected = descent_by_hand(x[:context], y[:context], x[-5:], y[-5:], 6, gamma)
            np.testing.assert_allclose(curve[t], expected, rtol=1e-9)
            assert swept[g, t].item() == pytest.approx(expected[-1], rel=1e-6)
    assert not np.allclose(swept[0], swept[2], rtol=1e-2)
    assert sweep_gamma(probe, tasks, context, gammas, 0).numpy() == pytest.approx(np.broadcast_to(descent_errors(probe, tasks, context, 0)[:, 0], (3, 3)))
    assert (sweep_gamma(probe, tasks, context, torch.tensor([10.0]), 23) == torch.inf).all()


def probed_config(name="mambaformer", **changes):
    return replace(run_config(name, **changes), probe=Probe((4, 11), n_tasks=6, n_validation=3, n_test=4))


def test_a_record_has_the_readings_of_every_member(tmp_path):
    config, seen = probed_config(), []
    record = run(config, tmp_path, report=seen.append)
    assert {name: record.sizes[name] for name in ("context", "seed", "layer", "shift", "examples")} == {"context": 2, "seed": 2, "layer": 3, "shift": 2, "examples": 3}
    assert record.context.values.tolist() == [4, 11] and record.layer.values.tolist() == [1, 2, 3] and record.layer_ratio.values.tolist() == [0, 0.5, 1]
    assert [p.step for p in seen if p.stage == "examining"] == list(range(1, 8 + 24 + 1)) and {p.steps for p in seen if p.stage == "examining"} == {32}
    training = Training(config.train)
    state = load_checkpoint(tmp_path / "runs" / config.folder / "checkpoint.pt")
    training.load_state_dict(state)
    tasks = probed_tasks(config.probe, config.train.task)
    for context in (4, 11):
        readings = [take_probe(config.probe, tasks, member.model, context) for member in training.members]
        for i, quantity in enumerate(("error", "scale", "shift")):
            values = torch.stack([reading[i] for reading in readings])
            name, summary = f"probe_{quantity}", summarise_tasks(values)
            np.testing.assert_array_equal(record[name].sel(context=context).transpose("seed", "layer"), summary.mean)
            np.testing.assert_allclose(record[name].sel(context=context).transpose("seed", "layer"), values.numpy().mean(1))
            for ending, part in zip(("_low", "_high"), (summary.low, summary.high)): np.testing.assert_array_equal(record[name + ending].sel(context=context).transpose("seed", "layer"), part)
            for ending, part in zip(("", "_low", "_high"), (summary.pooled, summary.pooled_low, summary.pooled_high)):
                np.testing.assert_array_equal(record[f"{name}_pooled{ending}"].sel(context=context), part)
            assert (record[f"{name}_low"] <= record[name]).all() and (record[name] <= record[f"{name}_high"]).all()
    unprobed = run(replace(config, probe=None), tmp_path)
    for name in unprobed.data_vars: np.testing.assert_array_equal(unprobed[name], record[name])


def test_the_interval_is_of_95_percent():
    "Of a mean of many normal numbers: 1.96 standard errors on either side."
    got = summarise_tasks([Draws(3).normal(2000, 1), Draws(4).normal(2000, 1)])
    for half in ((got.high - got.mean) * 2000**0.5, (got.mean - got.low) * 2000**0.5): assert half.squeeze().tolist() == pytest.approx([1.96, 1.96], abs=0.12)


@pytest.mark.parametrize("step", [3, 9, 31])
def test_a_run_halted_in_its_probe_goes_on(step, tmp_path):
    config = probed_config()
    with pytest.raises(Halt): run(config, tmp_path / "halted", report=halt_at(step, "examining"), checkpoint_seconds=0)
    run(config, tmp_path / "halted")
    run(config, tmp_path / "whole")
    assert_same_run(config, tmp_path / "halted", tmp_path / "whole")


def test_a_run_stops_in_its_probe_when_asked(tmp_path):
    config, seen = probed_config(), []
    with pytest.raises(Stopped, match="stopped in its exams"): run(config, tmp_path, report=seen.append, stop=lambda: (seen[-1].stage, seen[-1].step) == ("examining", 20))
    assert find_record(config, tmp_path) is None and seen[-1].step == 20


def test_a_seed_is_probed_the_same_alone(tmp_path):
    together, alone = (run(probed_config(seeds=seeds), tmp_path) for seeds in ((3, 7), (7,)))
    for name in ("probe_error", "probe_scale", "probe_shift"): np.testing.assert_array_equal(together[name].sel(seed=7), alone[name].sel(seed=7))


def test_a_run_without_a_probe_is_what_it_was():
    config = run_config()
    assert "probe" not in essence(config) and "probe" not in config.to_dict()
    probed = probed_config("transformer")
    assert probed.folder != config.folder and RunConfig.from_dict(json.loads(json.dumps(probed.to_dict()))) == probed
    assert replace(probed, probe=replace(probed.probe, n_test=5)).folder != probed.folder
    assert replace(probed, probe=replace(probed.probe, seed=0, fitted_on="queries")).folder == probed.folder


COMMITTED = sorted((ROOT / "figures" / "runs").glob("*/record.nc"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_records_are_found_by_their_configuration(path):
    record = load_dataset(path)
    config = RunConfig.from_dict(json.loads(record.attrs["configuration"]))
    assert config.folder == path.parent.name and find_record(config, ROOT / "figures").identical(record)


def test_there_are_committed_records(): assert COMMITTED


def test_a_study_says_what_is_probed(monkeypatch):
    size = TASK_SIZES["linear_regression"]["smoke"]
    monkeypatch.setitem(TASK_SIZES, "probed", {"smoke": replace(size, probes=(7, 14)), "laptop": replace(size, probes=(7,), n_prompts=1280), "gpu": replace(size, n_prompts=12_800, probes=(7,))})
    probes = {tier: {config.probe for config in task_runs("probed", tier, ("transformer_nope", "mamba")).values()} for tier in ("smoke", "laptop", "gpu")}
    assert probes == {"smoke": {Probe((7, 14), n_tasks=12)}, "laptop": {Probe((7,), n_tasks=128)}, "gpu": {Probe((7,), n_tasks=128)}}
    assert {config.probe for config in task_runs("linear_regression", "smoke", ("mamba",)).values()} == {None}


def layer_numbers(function, **curves):
    "Stored numbers of one function: {who: error of every block}, a Mamba's."
    blocks = max(map(len, curves.values()))
    error = np.full((1, len(curves), 1, blocks), np.nan)
    for row, curve in zip(error[0, :, 0], curves.values()): row[:len(curve)] = curve
    data = {name: (("function", "who", "factor", "layer"), error) for name in ("error", "error_high", "scale", "shift")}
    ratios = [[[*np.linspace(0, 1, len(curve)), *[np.nan] * (blocks - len(curve))] for curve in curves.values()]]
    return xr.Dataset(data | {"layer_ratio": (("function", "who", "layer"), ratios), "zero": ("function", [1.0]), "dim": ("function", [3])},
                      {"function": [function], "who": list(curves), "factor": [1.0], "layer": range(1, blocks + 1)})


def test_rules_about_layers_are_undecided_where_numbers_are_missing():
    "A tier of which some runs are done: another function, another model."
    rules = {name: claim.judge for name, claim in CLAIMS.items() if claim.experiment == "grazzi_probing"}
    assert len(rules) == 10
    for numbers in (layer_numbers("relu network", Mamba=[0.9, 0.2, 0.1]), layer_numbers("decision tree", S4=[0.9, 0.1])):
        for name, judge in rules.items():
            verdict, evidence = judge(numbers)
            assert verdict == UNDECIDED and evidence, name


def test_the_curve_of_a_model_ends_at_its_own_last_layer():
    "Models have different numbers of blocks, and a Transformer's odd ones end no layer."
    numbers = layer_numbers("relu network", **{"Mamba": [0.9, 0.8, 0.7, 0.1], "Transformer, no positions": [0.9, 0.3]})
    assert layer_curve(numbers, "Transformer, no positions", "relu network").tolist() == [0.9, 0.3] and layer_curve(numbers, "Mamba", "relu network").tolist() == [0.9, 0.8, 0.7, 0.1]
    numbers["layer_ratio"].loc[dict(who="Mamba", layer=[1, 3])] = np.nan
    assert layer_curve(numbers, "Mamba", "relu network").tolist() == [0.8, 0.1]
    assert [len(layer_curve(numbers, *where)) for where in (("S4", "relu network"), ("Mamba", "decision tree"))] == [0, 0] and len(layer_curve(numbers, "Mamba", "relu network", factor=4.0)) == 0


@pytest.mark.parametrize("values", [[3.0, 2, 1], [1.0, 2, 3, 4], [0.9, 0.3, 0.5, 0.2, 0.7, 0.1]])
def test_the_rank_correlation_is_scipys(values):
    assert rank_correlation(np.array(values)) == pytest.approx(stats.spearmanr(range(len(values)), values).statistic)


def test_an_experiment_gathers_what_its_records_hold(tmp_path):
    "A second way to every number: straight from the record, at the place that a label and a multiple of the training length name."
    runs = {label: config for label, config in experiment_runs("grazzi_probing", "smoke").items() if label in ("Mamba: skewed linear regression", "Transformer, no positions: decision tree")}
    records = {label: run(config, tmp_path) for label, config in runs.items()}
    numbers = gather_probes(records)
    assert sorted(numbers.function.values) == ["decision tree", "skewed linear regression"] and numbers.factor.values.tolist() == [1, 2, 4]
    for label, record in records.items():
        who, _, function = label.partition(": ")
        task = runs[label].train.task
        assert (float(numbers["zero"].sel(function=function)), int(numbers["trained_to"].sel(function=function))) == (task.normaliser / task.dim, task.n_points - 1)
        for c, context in enumerate(record.context.values.tolist()):
            for layer in record.layer.values.tolist():
                mine = numbers.sel(who=who, function=function, factor=context / (task.n_points - 1), layer=layer)
                for new, old in (("error", "probe_error_pooled"), ("scale_low", "probe_scale_pooled_low"), ("shift_high", "probe_shift_pooled_high")): assert mine[new].item() == record[old].values[c, layer - 1]
                assert mine["error_by_seed"].values.tolist() == record["probe_error"].transpose("context", "layer", "seed").values[c, layer - 1].tolist()
    with pytest.raises(ValueError, match="the record of Mamba: x has no readings"): gather_probes({"Mamba: x": run(run_config(), tmp_path)})
    with pytest.raises(ValueError, match="has no probe: give it one"): descent_numbers(run_config(), 3)
    (label, record), = [(label, record) for label, record in records.items() if "skewed" in label]
    config = json.loads(record.attrs["configuration"])
    config["train"]["task"]["scale"] = 3.0  # then an answer of 0 costs nine times as much
    assert gather_probes({label: record.assign_attrs(configuration=json.dumps(config))})["zero"].item() == 9


MQAR = build_model(architecture("mamba", 4, 1, 16, 2, layout="vectors", d_out=4), 0)
BAD = {
    "no contexts": (lambda: Probe(()), r"contexts is \(\): give one or more numbers of examples, increasing, each at least 1"),
    "no examples": (lambda: Probe((0, 4)), r"contexts is \(0, 4\).*each at least 1"),
    "contexts out of order": (lambda: Probe((4, 3)), r"contexts is \(4, 3\).*increasing"),
    "a context twice": (lambda: Probe((4, 4)), r"contexts is \(4, 4\).*increasing"),
    "fewer examples than the fit needs": (lambda: Probe((9,), fitted_on="examples"), r"contexts is \(9,\).*each at least 10"),
    "unknown fit": (lambda: Probe((9,), fitted_on="query"), "unknown fitted_on 'query': choose one of queries, examples.*mean 'queries'"),
    "no tasks": (lambda: Probe((4,), n_tasks=0), "n_tasks 0 and n_test 40 must be at least 1"),
    "no test questions": (lambda: Probe((4,), n_test=0), "n_tasks 128 and n_test 0 must be at least 1"),
    "one validation question": (lambda: Probe((4,), n_validation=1), "n_validation is 1: a scale and a shift need at least 2 questions"),
    "negative seed": (lambda: Probe((4,), seed=-1), "seed is -1: it must be an integer of 0 or more"),
    "a task of another layout": (lambda: probed_tasks(PROBE, VectorMQAR()), "vector_mqar has the layout 'vectors': a probe reads models of layout 'pairs'"),
    "a task with outliers": (lambda: probed_tasks(PROBE, OrthogonalOutliers()), "orthogonal_outliers has outliers"),
    "a run on a task with outliers": (lambda: PROBE.check(ManyOutliers()), "many_outliers has outliers, which are not asked"),
    "a model of another layout": (lambda: read_blocks(MQAR, LinearRegression(4, 5).sample(Draws(0), 2)), "the model has the layout 'vectors'"),
    "a probe beyond the positions": (lambda: replace(run_config(), probe=Probe((12,))), "13 points are 25 tokens, beyond the model's positional table of 24 rows"),
    "a run's probe on a task with outliers": (lambda: replace(run_config(), train=train_config(task=OrthogonalOutliers(3, 8)), exams=(Exam("none", 8),), probe=Probe((4,))), "orthogonal_outliers has outliers"),
    "negative gamma": (lambda: descent_errors(PROBE, probed_tasks(PROBE, TASK), 4, gamma=-1.0), "gamma is -1.0"),
    "negative gamma in a sweep": (lambda: sweep_gamma(PROBE, probed_tasks(PROBE, TASK), 4, torch.tensor([0.1, -1.0])), "gammas must be a vector of numbers of 0 or more"),
    "negative iterations": (lambda: sweep_gamma(PROBE, probed_tasks(PROBE, TASK), 4, torch.tensor([0.1]), -1), "n_iterations is -1: it must be 0 or more"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message): call()
