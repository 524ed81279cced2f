"""What an experiment is made of: studies and their runs, yardsticks that are asked once, and what a stored figure rests on."""
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from project import ROOT

from iclrepro import experiments
from iclrepro.baselines import BASELINES, averaging, least_squares
from iclrepro.catalogue import figures, minutes, minutes_asking, shown_evaluations, shown_runs, stored_tiers
from iclrepro.evaluation import Exam
from iclrepro.experiments import (COMMITTED, EXPERIMENTS, TASK_SIZES, TIERS, Yardstick, baseline_scores, check_parameters, collect, experiment_runs, gather, left_out, measure_baseline,
                                  chosen_experiments, experiment_evaluations, runs_at, size_of, task_runs, yardstick_exams)
from iclrepro.language import find_language_record
from iclrepro.results import load_dataset
from iclrepro.runs import RunConfig, find_record, run
from iclrepro.tasks import Curriculum, LinearRegression, make_task

PARAMETERS = {"tier": "smoke", "root": "results", "device": "cpu", "train_missing": True}


@pytest.fixture
def tiny():
    "A run of linear regression with two exams, never trained."
    config = task_runs("linear_regression", "smoke", ["mamba"])["Mamba"]
    return replace(config, exams=(Exam("none", 8, n_prompts=64), Exam("orthants", 8, (0, 3, 7), 64)))


@pytest.mark.parametrize("asked, expected", [
    (Yardstick("averaging"), {"none": (list(range(8)), 64), "orthants": ([0, 3, 7], 64)}),
    (Yardstick("averaging", at=(3, 5, 99)), {"none": ([3, 5], 64), "orthants": ([3], 64)}),
    (Yardstick("averaging", at=(5,)), {"none": ([5], 64)}),
    (Yardstick("averaging", n_prompts=64, shifts=("orthants",)), {"orthants": ([0, 3, 7], 64)}),
    (Yardstick("averaging", n_prompts=6400), {"none": (list(range(8)), 64), "orthants": ([0, 3, 7], 64)})])
def test_a_yardstick_may_be_asked_less(asked, expected, tiny):
    assert {exam.shift: (exam.examples(tiny.train.task), exam.n_prompts) for exam in yardstick_exams(asked, tiny)} == expected


def test_a_yardstick_asked_less_says_the_same_where_it_is_asked(tiny):
    few, all_of_it = (measure_baseline(BASELINES["least_squares"], tiny.train.task, yardstick_exams(Yardstick("least_squares", at=at), tiny)) for at in ((3,), ()))
    np.testing.assert_array_equal(few["pooled"].sel(examples=3), all_of_it["pooled"].sel(examples=3))
    assert few.sizes["examples"] == 1


def test_a_baseline_is_asked_once(tiny, tmp_path, monkeypatch):
    first = baseline_scores(Yardstick("averaging"), tiny, tmp_path)
    assert (tmp_path / first.attrs["file"]).exists() and json.loads(first.attrs["asked"])["baseline"] == "averaging"
    np.testing.assert_array_equal(first["pooled"], measure_baseline(averaging, tiny.train.task, tiny.exams)["pooled"])
    monkeypatch.setitem(BASELINES, "averaging", replace(BASELINES["averaging"], function=least_squares))
    assert baseline_scores(Yardstick("averaging"), tiny, tmp_path).identical(first)
    other = replace(tiny, train=replace(tiny.train, task=LinearRegression(3, 9), curriculum=Curriculum.constant(LinearRegression(3, 9))))
    assert baseline_scores(Yardstick("averaging"), other, tmp_path).attrs["file"] != first.attrs["file"]
    with pytest.raises(ValueError, match="unknown baseline 'averagin'.*mean 'averaging'"): baseline_scores(Yardstick("averagin"), tiny, tmp_path)
    for nowhere in (Yardstick("averaging", at=(99,)), Yardstick("averaging", shifts=("orthant",))):
        with pytest.raises(ValueError, match="is asked in no exam of .*: its shifts are none, orthants, with 0 to 7 examples"): baseline_scores(nowhere, tiny, tmp_path)


def test_a_baseline_of_the_project_is_read_there(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "project_root", lambda: tmp_path)
    stored = baseline_scores(Yardstick("averaging"), tiny, tmp_path / COMMITTED)
    assert baseline_scores(Yardstick("averaging"), tiny, tmp_path / "elsewhere").identical(stored) and not (tmp_path / "elsewhere").exists()


def test_what_is_not_trained_is_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "project_root", lambda: tmp_path)  # whose figures are none
    settings = replace(check_parameters("linear_regression", {**PARAMETERS, "root": str(tmp_path)}), train_missing=False)
    with pytest.raises(FileNotFoundError, match="no record of linear_regression at tier smoke"): collect(settings, partly=True)
    config = experiment_runs("linear_regression", "smoke")["Mamba"]
    record = run(config, tmp_path)
    found = collect(settings, partly=True)
    assert list(found) == ["Mamba"] and found["Mamba"].identical(record)
    assert left_out(settings, found) == ["Not run yet: Transformer, Transformer, no positions, MambaFormer."]
    with pytest.raises(FileNotFoundError, match="no record of linear_regression-transformer-smoke"): collect(settings)
    for records, baselines, message in (({}, {}, "no records of linear_regression"), (found, {"Mamba": "averaging"}, "'Mamba' is a model and a baseline")):
        with pytest.raises(ValueError, match=message): gather(settings, records, baselines)
    told = config.to_dict()
    told["train"]["task"]["scale"] = 0.5
    scaled = found["Mamba"].assign_attrs(configuration=json.dumps(told))
    with pytest.raises(ValueError, match="Scaled was trained on {.*'scale': 0.5.*} and Mamba on {.*'scale': 1.0.*}: gather runs of one task"): gather(settings, {**found, "Scaled": scaled}, {"Averaging": "averaging"})
    assert list(gather(settings, {**found, "Scaled": scaled}).who.values) == ["Mamba", "Scaled"], "without a baseline, to which it would be unfair"
    told["train"]["task"]["n_points"] = told["train"]["curriculum"]["points"]["end"] = 9
    with pytest.raises(ValueError, match="Longer was trained on .*'n_points': 9.* and Mamba on .*'n_points': 8"): gather(settings, {**found, "Longer": found["Mamba"].assign_attrs(configuration=json.dumps(told))})
    numbers = gather(settings, found, {"Averaging": "averaging"})
    assert RunConfig.from_dict(json.loads(numbers.attrs["runs"])["Mamba"]) == config and json.loads(numbers.attrs["baselines"]) == [next((tmp_path / "baselines").iterdir()).relative_to(tmp_path).as_posix()]


@pytest.mark.parametrize("ask, message", {
    "study": (lambda: size_of("linear_regresion", "smoke"), "unknown study 'linear_regresion'.*mean 'linear_regression'"),
    "tier": (lambda: size_of("linear_regression", "huge"), "unknown tier of linear_regression 'huge'"),
    "tier of all experiments": (lambda: chosen_experiments("huge"), "unknown tier 'huge': choose one of smoke, laptop, gpu, paper"),
    "model": (lambda: task_runs("linear_regression", "smoke", ["mambo"]), "unknown model 'mambo'"),
    "option": (lambda: task_runs("linear_regression", "smoke", ["mamba"], widht=3), "unknown option of a model 'widht'")}.values())
def test_unknown_names_are_refused(ask, message):
    with pytest.raises(ValueError, match=message): ask()


@pytest.mark.parametrize("study", TASK_SIZES)
def test_every_size_makes_runs_with_exams_and_fitting_curricula(study):
    for tier in TASK_SIZES[study]:
        size = size_of(study, tier)
        for config in task_runs(study, tier, ["mamba", "mambaformer"]).values():
            assert tier in TIERS and config.name.endswith(f"-{tier}") and [exam.shift for exam in config.exams] == list(size.shifts)
            assert config.train.curriculum.points.end == size.task.n_points and config.train.curriculum.dims.end == size.task.dim
            assert config.train.steps == size.steps and all(exam.n_prompts == size.n_prompts for exam in config.exams)


def test_runs_of_one_name_are_one_run():
    "Names are for people: two different runs must not bear the same."
    for tier in TIERS:
        named = {}
        for name, experiment in EXPERIMENTS.items():
            for config in experiment_runs(name, tier).values() if tier in experiment.tiers else ():
                assert named.setdefault(config.name, config.folder) == config.folder, (name, config.name)


def test_a_record_knows_its_study():
    config = task_runs("linear_regression", "smoke", ["standard_hybrid"], "table", position_std=1.0)["Standard Hybrid"]
    assert config.name == "linear_regression-standard_hybrid-table-smoke" and config.train.model.position_std == 1.0
    assert config.train.task == make_task("linear_regression", dim=3, n_points=8)


STORED = [(name, tier) for name in EXPERIMENTS for tier in stored_tiers(name)]


@pytest.mark.parametrize("name, tier", STORED)
def test_a_stored_figure_rests_on_stored_records(name, tier):
    "Options that came later have not changed the names of the runs, and every file that the figure needs is there."
    home, asked = ROOT / COMMITTED, experiment_runs(name, tier)
    numbers = load_dataset(home / name / f"{tier}.nc")
    for label, data in json.loads(numbers.attrs["runs"]).items():
        config = RunConfig.from_dict(data)
        record = find_record(config, home)
        assert record is not None and config in asked.values(), label
        assert json.loads(numbers.attrs["commits"])[label] == record.attrs["commit"]
    for file in json.loads(numbers.attrs["baselines"]): assert (home / file).exists()
    evaluations = shown_evaluations(name, tier)
    for run in evaluations: assert run in experiment_evaluations(name, tier).values() and find_language_record(run, home) is not None
    runs = shown_runs(name, tier)
    costs = [json.loads((home / "runs" / run.folder / "cost.json").read_text()) for run in runs]
    assert minutes(runs) == pytest.approx(sum(cost["training_seconds"] + cost["exam_seconds"] for cost in costs) / 120)
    assert minutes(runs) + minutes_asking(evaluations) > 0


WANTED = [f"Grazzi et al., Fig. {number}" for number in range(1, 13)] + ["Grazzi et al., Table 1", "Park et al., Table 1"] + [
    f"Park et al., {what}" for what in ("regression and tree curves", "regression by training FLOPs", "outlier regression", "sparse parity, evaluation", "sparse parity, convergence", "chain-of-thought figure", "formal languages")]


@pytest.mark.parametrize("what", WANTED)
def test_a_figure_of_the_papers_is_found_with_its_notebook_picture_records_and_command(what):
    "Two steps from a figure's number: its row in README's table, and what stands there."
    readme = (ROOT / "README.md").read_text().splitlines()
    rows = [line for line in readme if re.match(rf"\| {re.escape(what)}(?!\d)", line)]
    assert rows, what
    for row in rows:
        name = re.search(r"\(nbs/experiments/(\w+)\.ipynb\)", row)[1]
        assert f"make reproduce ONLY={name}" in row and re.search(r"\| [\d.]+ \|$", row), row
        for path in re.findall(r"\]\(([\w/.]+)\)", row): assert (ROOT / path).exists()
        assert f"(figures/{name}/laptop.svg)" in row and all(find_record(config, ROOT / COMMITTED) is not None for config in experiment_runs(name, "laptop").values())
        assert all(find_language_record(run, ROOT / COMMITTED) is not None for run in experiment_evaluations(name, "laptop").values())


def test_the_table_of_figures_leads_to_notebooks_and_pictures():
    table = figures()
    for row in table.itertuples():
        name = row.notebook.split("]")[0].removeprefix("[")
        assert (ROOT / "nbs" / "experiments" / f"{name}.ipynb").exists() and row.command == f"`make reproduce ONLY={name}`"
        assert row._1 in (EXPERIMENTS[name].where or ("ours",))
        for tier in stored_tiers(name): assert (ROOT / COMMITTED / name / f"{tier}.svg").exists() and f"{tier}.svg" in row._3


def test_runs_of_experiments_that_are_told_one_by_one():
    some = ("sparse_parity", "linear_regression")
    one_by_one = runs_at("smoke", (name for name in some))
    assert one_by_one == {run.folder: run for name in some for run in experiment_runs(name, "smoke").values()} and len(one_by_one) < len(runs_at("smoke"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_reader_sees_the_figure_and_the_verdicts_that_are_stored(name):
    "The outputs of a notebook in the project are of tier laptop. SVG is compared by its texts: the numbers of its clips differ from drawing to drawing."
    texts = lambda svg: [text for text in ElementTree.fromstring(svg).itertext() if text.strip()]
    notebook = json.loads((ROOT / "nbs" / "experiments" / f"{name}.ipynb").read_text())
    shown = [output.get("data", {}) for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert texts((ROOT / COMMITTED / name / "laptop.svg").read_text()) in [texts("".join(data["image/svg+xml"])) for data in shown if "image/svg+xml" in data]
    table, = (html for html in ("".join(data.get("text/html", "")) for data in shown) if "<th>verdict</th>" in html)
    stored = json.loads((ROOT / COMMITTED / name / "laptop.verdicts.json").read_text())
    assert re.findall(r"<th>\d+</th>" + r"\s*<td>[^<]*</td>" * 2 + r"\s*<td>([^<]*)</td>", table) == [verdict["verdict"] for verdict in stored.values()]
