"""Presets against the papers' values entered a second time; the catalogue, the list of disagreements, the benchmarks and their commands."""
import json
import time
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch

from iclrepro import catalogue
from iclrepro.baselines import BASELINES, baseline
from iclrepro.benchmarks import BENCHMARKS, sampling_times, stopwatch
from iclrepro.blocks import BLOCKS, Block, register_block
from iclrepro.cli import main
from iclrepro.disagreements import DISAGREEMENTS, table
from iclrepro.evaluation import Exam, as_baseline_examinee, take
from iclrepro.models import ARCHITECTURES, RELEASED, SIZES, TITLES, SequenceModel, architecture, build_model, model_for, parse_pattern, predict
from iclrepro.presets import PAPERS, SOURCES, VARIANTS, preset
from iclrepro.prompts import Draws
from iclrepro.results import device_name
from iclrepro.runs import RunConfig, find_record, run
from iclrepro.shifts import SHIFTS
from iclrepro.tasks import TASKS, Curriculum, Task, make_task, register_task
from iclrepro.training import TrainConfig, Training

# steps, batch, rate, schedule, clip, dims (from, to), points (from, to, increment, interval): typed from the papers and their released configurations, not from the presets.
CLOSED = {
    ("park2024", "linear_regression"): (500_001, 64, 1e-4, "constant", 10, (5, 20), (11, 41, 2, 2000)),
    ("park2024", "sparse_linear_regression"): (500_001, 64, 1e-4, "constant", 10, (5, 20), (11, 41, 2, 2000)),
    ("park2024", "relu_network"): (500_001, 64, 1e-4, "constant", 10, (5, 20), (26, 101, 5, 2000)),
    ("park2024", "decision_tree"): (500_001, 64, 4e-4, "constant", 10, (5, 20), (26, 101, 5, 2000)),
    ("park2024", "orthogonal_outliers"): (500_001, 64, 1e-4, "constant", 10, (5, 20), (26, 101, 5, 2000)),
    ("park2024", "many_outliers"): (1_000_001, 64, 1e-4, "constant", 10, (4, 20), (12, 512, 2, 200)),
    ("park2024", "sparse_parity"): (500_001, 64, 4e-4, "constant", 10, (10, 10), (140, 140, 1, 2000)),
    ("park2024", "chain_of_thought"): (500_001, 64, 1e-4, "constant", None, (10, 10), (26, 101, 5, 2000)),
    ("park2024", "vector_mqar"): (500_001, 64, 2e-4, "constant", 100, (20, 20), (32, 32, 1, 2000)),
    ("park2024", "formal_languages"): (31_250, 32, 5e-4, "warmup_cosine", 10, None, None),
    ("grazzi2024", "skewed_linear_regression"): (500_001, 64, 1e-4, "cosine", None, (5, 20), (11, 41, 2, 2000)),
    ("grazzi2024", "linear_regression"): (500_001, 64, 1e-4, "constant", None, (5, 20), (11, 41, 2, 2000)),
    ("grazzi2024", "sparse_linear_regression"): (500_001, 64, 1e-4, "cosine", None, (5, 20), (11, 41, 2, 2000)),
    ("grazzi2024", "relu_network"): (500_001, 64, 1e-4, "cosine", None, (5, 20), (26, 101, 5, 2000)),
    ("grazzi2024", "decision_tree"): (500_001, 64, 1e-4, "cosine", None, (5, 20), (26, 101, 5, 2000)),
}


def test_the_presets_are_those_of_the_papers():
    assert set(CLOSED) == {(paper, task) for paper, (_, tasks, _) in PAPERS.items() for task in tasks}


@pytest.mark.parametrize("paper, task", CLOSED)
def test_a_preset_has_the_papers_values(paper, task):
    steps, batch, lr, schedule, clip, dims, points = CLOSED[paper, task]
    train = preset(paper, task, "mamba").run.train
    assert (train.steps, train.batch_size, train.lr, train.schedule, train.clip) == (steps, batch, lr, schedule, clip)
    assert train.precision == {"park2024": "float32", "grazzi2024": "tf32"}[paper] and train.weight_decay == (0.1 if task == "formal_languages" else 0)
    if dims is None: return
    ramp = train.curriculum.points
    assert (train.curriculum.dims.start, train.curriculum.dims.end) == dims and (ramp.start, ramp.end) == points[:2]
    if points[0] != points[1]: assert (ramp.increment, ramp.interval) == points[2:]


SIZE_OF = {"vector_mqar": (2, 128), "chain_of_thought": (6, 128), "formal_languages": (2, 128)}
RUNS = [(paper, task, model) for paper, (_, tasks, models) in PAPERS.items() for task in tasks for model in models
        if not (paper == "grazzi2024" and model == "s4" and task not in ("linear_regression", "skewed_linear_regression"))]


@pytest.mark.parametrize("paper, task, model", RUNS)
def test_every_preset_is_a_run_of_the_papers_size(paper, task, model):
    for variant in VARIANTS:
        chosen = preset(paper, task, model, variant)
        config = chosen.run.train.model
        layers, width = SIZE_OF.get(task, (12, 256))
        assert config.d_model == (435 if (paper, model) == ("grazzi2024", "s4") else width)
        assert len(parse_pattern(config.pattern)) == 2 * layers + (model in ("mambaformer", "transformer_mamba"))
        assert RunConfig.from_dict(json.loads(json.dumps(chosen.run.to_dict()))) == chosen.run and chosen.run.name.startswith(f"{paper}-{task}-{model}")
        assert {fact.source for fact in chosen.facts.values()} <= set(SOURCES)
        assert str(chosen).count("\n") == len(chosen.facts) and all(name in chosen._repr_markdown_() for name in chosen.facts)


def test_grazzis_models_are_their_own():
    models = {name: preset("grazzi2024", "skewed_linear_regression", name).run.train for name in ("transformer", "mamba", "s4")}
    counts = {}
    for name, train in models.items():
        with torch.device("meta"): counts[name] = sum(p.numel() for p in SequenceModel(train.model).parameters())
    assert counts == {"transformer": 9_483_265, "mamba": 10_518_273, "s4": 10_491_331}
    assert {name: train.lr for name, train in models.items()} == {"transformer": 1e-4, "mamba": 1e-4, "s4": 1e-3}
    assert models["mamba"].seeds == (1, 2, 3) and models["s4"].model.dropout == 0
    assert preset("grazzi2024", "skewed_linear_regression", "s4", "as_released").run.train.model.dropout == 0.1


def test_the_released_variant_has_the_released_switches():
    def differences(task, model):
        described, released = (preset("park2024", task, model, variant).run.train.to_dict() for variant in VARIANTS)
        found = {(part, key) for part in ("task", "model") for key in described[part] if described[part][key] != released[part][key]}
        return found | {key for key in described if key not in ("task", "model") and described[key] != released[key]}
    assert differences("linear_regression", "mamba") == set()
    assert differences("linear_regression", "standard_hybrid") == {("model", "position_std")}
    assert differences("linear_regression", "s4_mamba") == {("model", "dropout"), ("model", "gate")}
    assert differences("sparse_parity", "mamba") == {("task", "index_set")}
    assert differences("orthogonal_outliers", "mamba") == {("task", "outliers")}
    assert {("task", "n_queries"), ("task", "self_query")} <= differences("vector_mqar", "mamba")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", ["transformer", "mamba", "mambaformer", "rwkv", "lstm", "s4"])
def test_any_model_learns_from_any_task(task, model):
    "A step of training on each task: predictions like the answers, a finite loss, a gradient for every weight that a prompt can reach."
    made = make_task(task)
    small = make_task(task, **{"n_points": 6 if made.layout == "pairs" else min(made.n_points, 4)})
    config = model_for(small, model, "tiny", d_model=16, n_layers=1)
    net = build_model(config, 0)
    prompt = small.sample(Draws(0), 3)
    loss = small.loss(predict(net, prompt), prompt)
    loss.backward()
    assert loss.isfinite() and loss.ndim == 0 and sum((p.grad is not None and (p.grad != 0).any()).item() if p.grad is not None else 0 for p in net.parameters()) > 3


def test_a_preset_trains_when_cut_short():
    run = preset("park2024", "decision_tree", "mamba", size="tiny").run
    data = run.train.to_dict()
    data.update(steps=2, batch_size=2, seeds=[0], curriculum={"dims": {"start": 5, "end": 20, "interval": 100}, "points": {"start": 4, "end": 101, "interval": 100}})
    training = Training(type(run.train).from_dict(data))
    training.advance()
    assert training.losses.isfinite().all()


BAD = {
    "paper": (lambda: preset("park", "linear_regression", "mamba"), "unknown paper 'park': choose one of park2024, grazzi2024.*mean 'park2024'"),
    "task": (lambda: preset("park2024", "skewed_linear_regression", "mamba"), "unknown task of park2024 'skewed_linear_regression'"),
    "model": (lambda: preset("grazzi2024", "linear_regression", "mambaformer"), "unknown model of grazzi2024 'mambaformer': choose one of transformer, mamba, s4"),
    "variant": (lambda: preset("park2024", "linear_regression", "mamba", "released"), "unknown variant 'released'.*mean 'as_released'"),
    "size": (lambda: preset("park2024", "linear_regression", "mamba", size="large"), "unknown size 'large': choose one of tiny, small, standard"),
    "s4 on trees": (lambda: preset("grazzi2024", "decision_tree", "s4"), "grazzi2024 trains no s4 on decision_tree"),
    "option of a model": (lambda: architecture("mamba", 5, d_stat=3), "unknown option of a model 'd_stat'.*mean 'd_state'"),
    "table": (lambda: sampling_times("cuda:99"), "cuda:99.* was asked for|not supported"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_not_there_is_refused(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message): call()


def test_the_catalogue_lists_everything():
    listed = {"tasks": TASKS, "shifts": SHIFTS, "models": ARCHITECTURES, "sizes": SIZES, "blocks": BLOCKS, "baselines": BASELINES, "presets": PAPERS}
    assert catalogue.CATALOGUE.keys() == listed.keys()
    for name, table_of in catalogue.CATALOGUE.items():
        frame = table_of()
        names = [stem + number for family in frame.iloc[:, 0] for stem, numbers in [(family.split("{") + [""])[:2]] for number in numbers.rstrip("}").split(", ")]
        assert sorted(names) == sorted(listed[name]) and not frame.isna().any(axis=None)
    assert RELEASED.keys() <= ARCHITECTURES.keys() == TITLES.keys()


def test_every_name_of_the_issue_is_in_the_catalogue():
    assert {"linear_regression", "noisy_linear_regression", "skewed_linear_regression", "sparse_linear_regression", "relu_network", "decision_tree", "orthogonal_outliers", "many_outliers",
            "sparse_parity", "chain_of_thought", "vector_mqar", "formal_languages", "associative_recall", "few_shot_mappings"} == set(TASKS)
    assert {"attn", "mlp", "mamba", "s4d", "s4d_post", "s4mamba", "rwkv_time", "rwkv_channel", "lstm"} == set(BLOCKS)
    assert {"none", "noisy", "orthants", "x_scale_0.333", "x_scale_0.5", "x_scale_2", "x_scale_3", "y_scale_0.333", "y_scale_0.5", "y_scale_2", "y_scale_3", "half_subspace",
            "half_subspace_coordinates", "skewed", "isotropic", "orthogonal", "overlapping", "linear", "clean"} <= set(SHIFTS)


def test_disagreements_say_what_each_changes():
    frame = table()
    assert len(frame) == len(DISAGREEMENTS) >= 15 and (frame.map(len) > 0).all(axis=None) and set(frame.paper) == set(PAPERS)
    for name in ("parity_sets", "skew_rotation", "self_query", "hybrid_positions", "outliers", "half_subspace"):
        first, second, *_ = DISAGREEMENTS[name].effect().values()
        assert first != second, name


def test_the_stopwatch_counts_its_calls():
    seen = []
    times = stopwatch(seen.append, repeats=3, calls=4, warm_up=2)
    assert seen == [0, 1, *range(2, 14)] and len(times) == 3 and all(t >= 0 for t in times)
    assert min(stopwatch(lambda i: time.sleep(0.003), repeats=2, warm_up=0)) >= 0.003 and device_name(torch.device("cpu"))


def test_a_benchmark_measures_every_task():
    times = sampling_times(batch_size=2, n_points=4, repeats=2)
    assert list(times.task) == list(TASKS) and (times.ms > 0).all() and (times.low <= times.high).all() and set(times.batch) == {2}


def command(capsys, *words):
    status = main(list(words))
    return status, capsys.readouterr()


def test_a_preset_from_the_command_line_is_the_preset(tmp_path, capsys):
    file = tmp_path / "folder" / "run.json"
    status, said = command(capsys, "preset", "grazzi2024", "skewed_linear_regression", "s4", "--variant", "as_released", "--save", str(file))
    chosen = preset("grazzi2024", "skewed_linear_regression", "s4", "as_released")
    assert status == 0 and said.out.strip() == str(chosen).strip() and RunConfig.from_dict(json.loads(file.read_text())) == chosen.run
    status, said = command(capsys, "preset", "grazzi2024", "skewed", "s4")
    assert status == 2 and "unknown task of grazzi2024 'skewed'" in said.err and said.out == ""


def test_the_catalogue_from_the_command_line(capsys):
    status, said = command(capsys, "catalogue", "tasks")
    assert status == 0 and all(name in said.out for name in TASKS) and "mambaformer" not in said.out
    assert command(capsys, "catalogue", "taks")[0] == 2


def test_a_benchmark_from_the_command_line_is_saved(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "sampling", replace(BENCHMARKS["sampling"], run=lambda device, change, limit: sampling_times(device, batch_size=2, n_points=4, repeats=2, change=change)))
    threads = torch.get_num_threads()
    try: status, said = command(capsys, "bench", "--save", str(tmp_path / "bench.csv"))
    finally: torch.set_num_threads(threads)
    assert status == 0 and list(pd.read_csv(tmp_path / "bench.csv").task) == list(TASKS) and "many_outliers" in said.out


def test_model_for_a_task_has_rows_for_all_its_tokens():
    for name in TASKS:
        task = make_task(name)
        config = model_for(task, "transformer", "tiny")
        assert (config.layout, config.d_in, config.d_out) == (task.layout, task.d_in, task.d_out) and config.n_positions >= task.n_tokens(task.n_points)
        assert {f.name for f in fields(task)} >= {"dim", "n_points"}


def test_the_librarys_names_stay_the_librarys(monkeypatch):
    "A notebook defines its classes in __main__; a new name there is known, a name of the library keeps its class."
    for registry, register, base in ((TASKS, register_task, Task), (BLOCKS, register_block, Block)):
        name = next(iter(registry))
        library, again, new = registry[name], type(registry[name].__name__, (base,), {"__module__": "__main__"}), type("New", (base,), {"__module__": "__main__"})
        assert register(name)(again) is again and registry[name] is library
        with pytest.raises(ValueError, match=f"the .* '{name}' is the library's {library.__name__}: register New by another name"): register(name)(new)
        assert registry[name] is library
        monkeypatch.setitem(registry, "a_name_of_ones_own", None)
        register("a_name_of_ones_own")(new)
        newer = register("a_name_of_ones_own")(type("Newer", (base,), {"__module__": "__main__"}))
        assert registry["a_name_of_ones_own"] is newer


def test_a_sentence_is_a_docstrings_first():
    def said(text):
        def thing(): pass
        thing.__doc__ = text
        return catalogue.sentence(thing)
    assert said("Does this. And that.") == "Does this" and said("y = w.x (Park section 3)") == "y = w.x"
    assert said("Points are x = (1, …, 1), y = 1. More") == "Points are x = (1, …, 1), y = 1"
    assert said("Mixes over\n    two lines (Peng et al. 2023, section 3). More.") == "Mixes over two lines"


def test_tables_put_together_what_belongs_together():
    regression = list(catalogue.GROUPS["regression"])
    assert catalogue.in_groups(regression) == "regression" and catalogue.in_groups(regression[:1]) == regression[0]
    assert catalogue.in_groups([*regression[1:], "sparse_parity"]) == "regression but linear_regression, sparse_parity"
    assert catalogue.in_groups(["many_outliers"]) == "many_outliers" and catalogue.in_groups(["orthogonal_outliers", "many_outliers"]) == "outliers"
    rows = [{"shift": "times_2", "what": "times 2"}, {"shift": "plain", "what": "none"}, {"shift": "times_0.5", "what": "times 0.5"}, {"shift": "of_3", "what": "of 3"}]
    assert catalogue.in_families(rows, "shift") == [{"shift": "times_{2, 0.5}", "what": "times n"}, rows[1], rows[3]]


@pytest.mark.parametrize("name", TASKS)
def test_any_task_is_run_from_weights_to_record(name, tmp_path):
    "Two steps of training, an exam, a record that is found again; the record of tasks with outliers or silent tokens says nan where nothing is asked."
    task = make_task(name, n_points=6 if TASKS[name].layout in ("pairs", "chain") else 3)
    train = TrainConfig(task, model_for(task, "mambaformer", "tiny", n_layers=1, d_model=16), Curriculum.constant(task), 2, (0, 1), 4, 1e-3, log_every=1)
    config = RunConfig("end-to-end", train, (Exam("none", task.n_points, n_prompts=16, batch_size=8),))
    record = run(config, tmp_path)
    found = find_record(config, tmp_path)
    assert found.identical(record) and record.sizes["examples"] == task.n_asked(task.n_points) and record.sizes["seed"] == 2
    scores = record["pooled"].sel(shift="none").values
    assert np.isfinite(scores).any() and not np.isinf(scores).any() and record.attrs["score"] == task.score_label
    if name in ("linear_regression", "chain_of_thought", "vector_mqar", "sparse_parity"): assert np.isfinite(scores).all()
    if name == "associative_recall": assert np.isnan(scores[:-1]).all()
    assert np.isfinite(record["loss"]).all() and record.attrs["training_flops"] > 0


def test_the_parity_preset_has_the_positions_of_the_papers_figure():
    "Transformer of two layers and width 256 with 300 rows: 1.657 M parameters without read-in and read-out."
    config = preset("park2024", "sparse_parity", "transformer", size="parity_4").run.train.model
    with torch.device("meta"): model = SequenceModel(config)
    counted = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("read"))
    assert config.n_positions == 300 and counted == 2 * (12 * 256**2 + 13 * 256) + 2 * 256 + 300 * 256 == 1_656_832


def test_an_exam_of_several_queries_asks_each():
    task = make_task("vector_mqar", n_points=5, n_queries=3)
    scores = take(Exam(n_points=5, n_prompts=8, batch_size=4), task, as_baseline_examinee(baseline("nearest_key"), task))
    assert scores.shape == (8, 3) and scores.max() < 1e-6


def test_a_positional_table_has_a_row_for_every_token_that_the_released_code_feeds():
    "Of pairs and chains it feeds the last answer too, though nothing reads it."
    rows = {name: model_for(make_task(name), "transformer", "tiny").n_positions for name in ("linear_regression", "chain_of_thought", "vector_mqar", "associative_recall")}
    assert rows == {"linear_regression": 2 * 41, "chain_of_thought": 3 * 101, "vector_mqar": 2 * 64 + 1, "associative_recall": make_task("associative_recall").n_tokens(64)}


def test_a_preset_says_what_its_papers_figures_divide_by():
    "Park's released plots: d, for sparse regression k = 3, for trees 1; Grazzi: d for all."
    expected = {"linear_regression": "squared error / d", "sparse_linear_regression": "squared error / 3", "decision_tree": "squared error / 1", "relu_network": "squared error / d",
                "sparse_parity": "accuracy", "chain_of_thought": "squared error"}
    assert {task: preset("park2024", task, "mamba").facts["normalisation"].value for task in expected} == expected
    assert {preset("grazzi2024", task, "mamba").facts["normalisation"].value for task in PAPERS["grazzi2024"][1]} == {"squared error / d"}
