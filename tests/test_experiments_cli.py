"""Intervals, exams, verdicts and the command line; and the smoke tier, reproduced, killed, resumed and redrawn."""
import csv
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from project import BIN, ROOT
from scipy import stats
from smoke_tier import ENVIRONMENT, changed, finished, reproduce, start, states

from iclrepro.baselines import averaging
from iclrepro.claims import (CLAIMS, NOT_REPRODUCED, PARTLY, REPRODUCED, UNDECIDED, Claim, as_good_as_a_transformer, judge_all, judge_claim, keeps_accuracy, keeps_more_accuracy,
                             ledger, save_verdicts, to_markdown)
from iclrepro.cli import examined, keep, main, override, redraw_one
from iclrepro.evaluation import Exam, as_baseline_examinee, as_examinee, spread, summarise, take
from iclrepro.experiments import COMMITTED, EXPERIMENTS, TIERS, Settings, check_parameters, collect, experiment_evaluations, experiment_runs, headline, published
from iclrepro.models import TITLES, SequenceModel, architecture, build_model, predict
from iclrepro.progress import tell_in
from iclrepro.prompts import Draws, Prompt
from iclrepro.results import exam_dataset, load_checkpoint, load_dataset, save_dataset, save_record, write_atomically
from iclrepro.runs import Progress, RunConfig, find_record, load_cost, settle_folder
from iclrepro.shifts import fitting_shifts, sample_shifted
from iclrepro.tasks import LinearRegression

RUNS = {config.folder: config for name in EXPERIMENTS for config in experiment_runs(name, "smoke").values()}


@pytest.mark.parametrize("shape", [(1, 40, 3), (3, 25, 2)])
def test_the_bootstrap_is_a_loop(shape):
    seeds, prompts, examples = shape
    scores = Draws(0).normal(*shape).square()
    draws = Draws(5, stream="bootstrap")
    of_prompts, of_seeds = draws.integers(prompts, 200, prompts).numpy(), draws.integers(seeds, 200, seeds).numpy()
    values, single, pooled = scores.double().numpy(), [], []
    for prompt_choice, seed_choice in zip(of_prompts, of_seeds):
        single.append([[math.fsum(values[s, p, e] for p in prompt_choice) / prompts for e in range(examples)] for s in range(seeds)])
        pooled.append([math.fsum(single[-1][s][e] for s in seed_choice) / seeds for e in range(examples)])
    got = summarise(scores, n_resamples=200, seed=5)
    expected = {"mean": values.mean(1), "low": np.quantile(single, 0.05, axis=0), "high": np.quantile(single, 0.95, axis=0),
                "pooled": values.mean((0, 1)), "pooled_low": np.quantile(pooled, 0.05, axis=0), "pooled_high": np.quantile(pooled, 0.95, axis=0)}
    for name, value in expected.items(): np.testing.assert_allclose(getattr(got, name).numpy(), value, rtol=1e-12, err_msg=name)


def quantile_of(values, share):
    "Of sorted values, between two by a straight line; what lies between a number and infinity is infinite."
    place = share * (len(values) - 1)
    below, part = int(place), place - int(place)
    low, high = sorted(values)[below:below + 2] if part else [sorted(values)[below]] * 2
    return low if low == high else low + part * (high - low)


@pytest.mark.parametrize("resamples", [200, 201])  # a quantile lies between two resamples, or on one
@pytest.mark.parametrize("missing", [False, True])
def test_the_bootstrap_of_infinite_scores_is_a_loop(resamples, missing):
    seeds, prompts, examples = 3, 12, 6
    scores = Draws(0).normal(seeds, prompts, examples).square()
    scores[0, 4, 0] = scores[1, :, 1] = scores[0, :2, 2] = scores[2, 3, 2] = scores[:, :, 3] = math.inf
    scores[0, 0, 5], scores[1, 7, 4] = -math.inf, math.inf
    if missing: scores[1, :5, 0] = scores[2, 2, 2] = scores[0, 3, 5] = math.nan
    draws = Draws(5, stream="bootstrap")
    of_prompts, of_seeds = draws.integers(prompts, resamples, prompts).tolist(), draws.integers(seeds, resamples, seeds).tolist()
    values = scores.double().tolist()
    mean = lambda numbers: math.fsum(n for n in numbers if not math.isnan(n)) / sum(not math.isnan(n) for n in numbers)
    single = [[[mean([values[s][p][e] for p in choice]) for e in range(examples)] for s in range(seeds)] for choice in of_prompts]
    pooled = [[mean([row[s][e] for s in choice]) for e in range(examples)] for row, choice in zip(single, of_seeds)]
    got = summarise(scores, n_resamples=resamples, seed=5)
    for name, share in (("low", 0.05), ("high", 0.95)):
        expected = [[quantile_of([row[s][e] for row in single], share) for e in range(examples)] for s in range(seeds)]
        np.testing.assert_allclose(getattr(got, name).numpy(), expected, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(getattr(got, f"pooled_{name}").numpy(), [quantile_of([row[e] for row in pooled], share) for e in range(examples)], rtol=1e-12, err_msg=name)
    assert math.isfinite(got.low[0, 0]) and math.isinf(got.high[0, 0]) and not got.low.isnan().any()


def test_the_interval_is_scipys():
    "Each 5 % quantile of 1000 resampled means is known to 0.07 of their spread."
    scores = Draws(1).normal(1, 300, 2).exp()
    got = summarise(scores)
    for e in range(2):
        values = scores[0, :, e].double().numpy()
        theirs = stats.bootstrap((values,), np.mean, n_resamples=9999, confidence_level=0.9, method="percentile", rng=np.random.default_rng(0))
        for ours, bound in zip((got.low[0, e], got.high[0, e]), theirs.confidence_interval): assert abs(ours - bound) < 5 * 0.075 * theirs.standard_error
    assert torch.equal(got.mean[0], got.pooled)


def test_the_pooled_interval_resamples_seeds():
    "Two seeds that always score 0 and 1: a resampled pair has mean 0 or 1 in a quarter of cases each."
    got = summarise(torch.tensor([0.0, 1.0])[:, None, None].expand(2, 30, 1))
    assert (got.pooled_low.item(), got.pooled.item(), got.pooled_high.item()) == pytest.approx((0, 0.5, 1))
    for bound in (got.low, got.high): torch.testing.assert_close(bound, got.mean)


TASK = LinearRegression(3, 6)


def by_hand(exam, answer):
    "Scores of an exam: answer(x, y) is what is said to the last x of a prompt, one prompt at a time."
    scores = []
    for batch in range(exam.n_prompts // exam.batch_size):
        context, query = sample_shifted(TASK, exam.shift, Draws(exam.seed, batch, "evaluation"), exam.batch_size, exam.n_points, exam.seed)
        asked = context if query is None else query
        for b in range(exam.batch_size):
            row = []
            for k in exam.examples(TASK):
                x, y = torch.cat([context.x[b:b + 1, :k], asked.x[b:b + 1, k:k + 1]], 1), context.y[b:b + 1, :k]
                row.append((answer(x, y) - asked.y[b, k].item())**2 / 3)
            scores.append(row)
    return scores


@pytest.mark.parametrize("shift", fitting_shifts(TASK))
def test_an_exam_is_a_loop_over_prompts_and_questions(shift):
    exam = Exam(shift, 3, (2, 0), 6, 3, seed=4) if shift == "orthogonal" else Exam(shift, 6, (5, 0, 2), 6, 3, seed=4)
    assert exam.examples(TASK) == ([0, 2] if shift == "orthogonal" else [0, 2, 5])
    model = build_model(architecture("mambaformer", 3, 1, 16, 2), 0)

    def model_says(x, y):
        y = torch.cat([y, torch.full((1, 1), 77.0)], 1)  # the answer itself is not seen
        with torch.no_grad(): return predict(model, Prompt(x, y, torch.ones_like(y, dtype=torch.bool)))[0, -1].item()

    def averaging_says(x, y):
        return 0.0 if y.shape[1] == 0 else (y[0, :, None] * x[0, :-1]).mean(0).dot(x[0, -1]).item()

    batches = []
    np.testing.assert_allclose(take(exam, TASK, as_examinee(model), on_batch=lambda: batches.append(1)), by_hand(exam, model_says), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(take(exam, TASK, as_baseline_examinee(averaging)), by_hand(exam, averaging_says), rtol=1e-4, atol=1e-6)
    assert len(batches) == 2


def test_an_exam_dataset_joins_exams_that_ask_differently():
    exams = [Exam("none", 6, (), 4, 2), Exam("orthants", 6, (1, 4), 4, 2)]
    summaries = [summarise(Draws(i).normal(2, 4, len(exam.examples(TASK))).square(), 50) for i, exam in enumerate(exams)]
    dataset = exam_dataset(exams, summaries, (7, 9))
    assert dataset.examples.values.tolist() == list(range(6)) and dataset.seed.values.tolist() == [7, 9]
    for exam, summary in zip(exams, summaries):
        for name, field in (("score", "mean"), ("score_low", "low"), ("score_high", "high"), ("pooled", "pooled"), ("pooled_low", "pooled_low"), ("pooled_high", "pooled_high")):
            part = dataset[name].sel(shift=exam.shift)
            assert (part.sel(examples=exam.examples(TASK)).values == getattr(summary, field).numpy()).all()
            assert part.sel(examples=[k for k in range(6) if k not in exam.examples(TASK)]).isnull().all()


def numbers(scores, dim=3, trained_to=7):
    "Stored numbers: {who: {examples: value, or (value, low, high)}}."
    examples = sorted({k for row in scores.values() for k in row})
    data = {name: (("who", "shift", "examples"), np.array([[[np.broadcast_to(row.get(k, np.nan), 3)[i] for k in examples]] for row in scores.values()], dtype=float))
            for i, name in enumerate(("value", "low", "high"))}
    return xr.Dataset(data, {"who": list(scores), "shift": ["none"], "examples": examples}, {"dim": dim, "trained_to": trained_to})


@pytest.mark.parametrize("ours, transformer, verdict", [
    (0.1, 0.1, REPRODUCED), (0.001, 0.1, REPRODUCED), (0.15, 0.1, REPRODUCED), (0.0151, 0.01, PARTLY), (0.149, 0.09, PARTLY), (0.151, 0.09, NOT_REPRODUCED), (0.9, 0.01, NOT_REPRODUCED), (0.21, 0.149, REPRODUCED),
    (0.01, 0.15, UNDECIDED), (0.01, 0.9, UNDECIDED), (0.01, np.nan, UNDECIDED)])
def test_as_good_as_a_transformer(ours, transformer, verdict):
    got, evidence = as_good_as_a_transformer("Mamba")(numbers({"Mamba": {5: 9.0, 6: ours, 7: 9.0}, "Transformer": {5: 9.0, 6: transformer, 7: 9.0}}))
    assert got == verdict
    assert f"{ours:.3g}" in evidence and f"{transformer:.3g}" in evidence and "6 examples" in evidence


@pytest.mark.parametrize("before, after, verdict", [
    (0.1, 0.05, REPRODUCED), (0.1, 0.15, REPRODUCED), (0.1, 0.16, PARTLY), (0.1, 0.29, PARTLY), (0.1, 0.31, NOT_REPRODUCED), (0.15, 0.1, UNDECIDED), (0.9, 0.1, UNDECIDED), (np.nan, 0.1, UNDECIDED)])
def test_keeps_accuracy(before, after, verdict):
    got, evidence = keeps_accuracy("Mamba")(numbers({"Mamba": {6: 9.0, 7: before, 14: after, 15: 9.0}}))
    assert got == verdict
    assert f"{before:.3g}" in evidence and f"{after:.3g}" in evidence


@pytest.mark.parametrize("ours, theirs, verdict", [
    ((0.1, 0.08, 0.12), (0.2, 0.13, 0.3), REPRODUCED), ((0.1, 0.08, 0.14), (0.2, 0.13, 0.3), PARTLY), ((0.3, 0.2, 0.4), (0.2, 0.1, 0.35), NOT_REPRODUCED), ((0.3, 0.2, 0.4), (0.1, 0.05, 0.15), NOT_REPRODUCED)])
def test_keeps_more_accuracy(ours, theirs, verdict):
    judge = keeps_more_accuracy("Mamba", "Other")
    assert judge(numbers({"Mamba": {7: 0.1, 14: ours}, "Other": {7: 0.1, 14: theirs}}))[0] == verdict
    for bad in ({"Mamba": {7: 0.2, 14: ours}, "Other": {7: 0.1, 14: theirs}}, {"Mamba": {7: 0.1, 14: ours}, "Other": {7: 0.2, 14: theirs}}, {"Mamba": {7: 0.1, 14: ours}}):
        assert judge(numbers(bad))[0] == UNDECIDED


@pytest.mark.parametrize("judge", [as_good_as_a_transformer("Mamba"), keeps_accuracy("Mamba"), keeps_more_accuracy("Mamba", "Transformer")])
def test_a_model_that_was_not_run_is_named_and_not_judged(judge):
    assert judge(numbers({"Transformer": {6: 0.1, 7: 0.1, 14: 0.1}})) == (UNDECIDED, "not run at this tier: Mamba")


def claim(lowest_tier="laptop", judge=keeps_accuracy("Mamba")): return Claim("words", "where", "length_and_shift", "rule", lowest_tier, judge)


def test_the_highest_stored_tier_decides(tmp_path):
    assert judge_claim(claim(), tmp_path).verdict == UNDECIDED and judge_claim(claim(), tmp_path).tier == ""
    verdicts = {"smoke": UNDECIDED, "laptop": REPRODUCED, "gpu": NOT_REPRODUCED, "paper": PARTLY}
    for tier, after in zip(TIERS, (0.1, 0.1, 0.9, 0.2)):
        save_dataset(numbers({"Mamba": {7: 0.1, 14: after}}), tmp_path / "length_and_shift" / f"{tier}.nc")
        verdict = judge_claim(claim(), tmp_path)
        assert (verdict.verdict, verdict.tier) == (verdicts[tier], tier)
    assert judge_claim(claim(), tmp_path, ("smoke", "laptop")).verdict == REPRODUCED
    assert judge_claim(claim("paper"), tmp_path, ("gpu",)).verdict == UNDECIDED
    assert judge_claim(claim("gpu"), tmp_path, ("gpu",)).verdict == NOT_REPRODUCED


def test_tiers_in_any_order_and_no_others(tmp_path):
    for tier, after in (("laptop", 0.1), ("gpu", 0.9)): save_dataset(numbers({"Mamba": {7: 0.1, 14: after}}), tmp_path / "length_and_shift" / f"{tier}.nc")
    assert judge_claim(claim(), tmp_path, ("gpu", "laptop")) == judge_claim(claim(), tmp_path, ("laptop", "gpu")) and judge_claim(claim(), tmp_path, ("gpu", "laptop")).tier == "gpu"
    for ask, message in ((lambda: judge_claim(claim(), tmp_path, ("gup",)), "unknown tier 'gup'.*mean 'gpu'"), (lambda: judge_all(tmp_path, None, ("gpu", "all")), "unknown tier 'all'"),
                         (lambda: judge_all(tmp_path, "sparse_party"), "unknown experiment 'sparse_party'.*mean 'sparse_parity'")):
        with pytest.raises(ValueError, match=message): ask()


def test_verdicts_are_saved_and_told(tmp_path):
    verdicts = judge_all(tmp_path)
    assert verdicts.keys() == CLAIMS.keys() and {v.verdict for v in verdicts.values()} == {UNDECIDED}
    assert judge_all(tmp_path, "sparse_parity").keys() == {name for name, c in CLAIMS.items() if c.experiment == "sparse_parity"}
    save_verdicts(verdicts, tmp_path / "v.json")
    assert json.loads((tmp_path / "v.json").read_text()).keys() == CLAIMS.keys()
    table = ledger(verdicts)
    assert table.claim.tolist() == [c.words for c in CLAIMS.values()]
    lines = to_markdown(table.assign(claim="a | b")).splitlines()
    assert len(lines) == 2 + len(CLAIMS) and all("| a \\| b |" in line for line in lines[2:])


def test_every_claim_can_be_decided():
    for c in CLAIMS.values(): assert c.lowest_tier in EXPERIMENTS[c.experiment].tiers and c.words and c.where and c.rule


def test_every_experiment_has_valid_runs_at_each_of_its_tiers():
    for name, experiment in EXPERIMENTS.items():
        assert (ROOT / "nbs" / "experiments" / f"{name}.ipynb").exists() and set(experiment.tiers) <= set(TIERS) and "smoke" in experiment.tiers
        for tier in experiment.tiers:
            for config in experiment_runs(name, tier).values():
                assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config and config.name.endswith(tier)


def test_the_papers_models_are_what_gpu_and_paper_run():
    for tier in ("gpu", "paper"):
        runs = experiment_runs("linear_regression", tier)
        assert {(c.train.task.dim, c.train.task.n_points, c.train.batch_size, c.train.lr, c.train.clip, c.train.schedule) for c in runs.values()} == {(20, 41, 64, 1e-4, 10.0, "constant")}
        with torch.device("meta"): core = {title: sum(p.numel() for p in SequenceModel(c.train.model).blocks.parameters()) for title, c in runs.items()}
        assert (core["Transformer"], core["Mamba"], core["MambaFormer"]) == (9_477_120, 10_518_528, 8_861_696)
    assert {c.train.steps for c in experiment_runs("linear_regression", "paper").values()} == {500_001}


@pytest.mark.parametrize("n", [1, 2, 16, 161, 1000])
def test_spread_covers_all_sizes_of_context(n):
    asked = spread(n)
    assert asked[0] == 0 and asked[-1] == n - 1 and list(asked) == sorted(set(asked)) and len(asked) <= 12


@pytest.mark.parametrize("n, count", [(0, 12), (-3, 12), (9, 1)])
def test_nothing_is_not_spread(n, count):
    with pytest.raises(ValueError, match=f"{count} of {n} numbers of examples: there must be at least 2 of at least 1"): spread(n, count)


@pytest.mark.parametrize("name", ["grazzi_fig8", "park_parity_accuracy"])
def test_the_papers_numbers_are_there(name):
    table = published(name)
    assert {"model", "examples"} < set(table.columns) and len(table) > 3 and table.drop(columns="model").select_dtypes("number").notna().all(axis=None)


def test_what_a_paper_has_no_table_of_is_refused():
    with pytest.raises(ValueError, match=r"unknown table of a paper 'grazzi_fig9': choose one of .*park_cot, .*Did you mean 'grazzi_fig8'\?"): published("grazzi_fig9")


def test_a_headline_asks_for_what_there_is():
    numbers = xr.Dataset({"value": (("who", "shift", "examples"), [[[0.5, 0.25], [2.0, 1.0]]])}, {"who": ["Mamba"], "shift": ["none", "skewed"], "examples": [0, 4]})
    assert headline(numbers, {"before": ("none", 0), "after": ("skewed", 4)}).to_dict("list") == {"before": [0.5], "after": [1.0]}
    with pytest.raises(ValueError, match="unknown shift 'skewd': choose one of none, skewed. Did you mean 'skewed'"): headline(numbers, {"after": ("skewd", 4)})
    with pytest.raises(ValueError, match="'after' asks for 5 examples: choose one of 0, 4"): headline(numbers, {"after": ("none", 5)})


GOOD = {"tier": "smoke", "root": "results", "device": "cpu", "train_missing": True}


def test_parameters_become_settings():
    settings = check_parameters("sparse_parity", {**GOOD, "_private": 1, "In": [], "Out": {}, "check_parameters": check_parameters, "os": os})
    assert settings == Settings("sparse_parity", "smoke", ROOT / "results", "cpu", True) and settings.stem == ROOT / "results/sparse_parity/smoke"
    for root in ("/elsewhere", Path("/elsewhere")): assert check_parameters("sparse_parity", {**GOOD, "root": root}).root == Path("/elsewhere")
    assert check_parameters("sparse_parity", {**GOOD, "root": 2024}).root == ROOT / "2024"  # what papermill's `-p root 2024` gives


BAD_PARAMETERS = {
    "unknown": ({"teir": "smoke"}, "unknown parameter 'teir': sparse_parity takes tier, root, device, train_missing.*mean 'tier'"),
    "unlike any": ({"zzz": 3}, "unknown parameter 'zzz': sparse_parity takes tier, root, device, train_missing"),
    "a list": ({"steps": [1]}, "unknown parameter 'steps'"),
    "unknown tier": ({"tier": "smok"}, "unknown tier 'smok': choose one of smoke, laptop, gpu, paper.*mean 'smoke'"),
    "tier of another type": ({"tier": 3}, "unknown tier 3"),
    "unknown device": ({"device": "gpu"}, "unknown device 'gpu'"),
    "word for false": ({"train_missing": "false"}, "train_missing is 'false'"),
    "no device": ({"device": None}, "device is None: it must be a text, such as 'cpu'"),
    "no root": ({"root": None}, "root is None: it must be a text, such as 'results'"),
    "the project itself as root": ({"root": ""}, "root is ''"),
}


@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_bad_parameters_are_refused(name):
    changes, message = BAD_PARAMETERS[name]
    with pytest.raises(ValueError, match=message): check_parameters("sparse_parity", {**GOOD, **changes})


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_parameter_is_named(name):
    with pytest.raises(ValueError, match=f"the parameter {name} is missing: sparse_parity takes tier, root, device, train_missing"): check_parameters("sparse_parity", {key: value for key, value in GOOD.items() if key != name})


@pytest.fixture
def without_laptop(monkeypatch):
    "An experiment that lacks a tier."
    monkeypatch.setitem(EXPERIMENTS, "sparse_parity", replace(EXPERIMENTS["sparse_parity"], tiers=("smoke", "gpu", "paper")))


def test_a_tier_that_an_experiment_lacks_is_refused(without_laptop, command_line):
    with pytest.raises(ValueError, match="sparse_parity has no laptop tier: choose one of smoke, gpu, paper"): check_parameters("sparse_parity", {**GOOD, "tier": "laptop"})
    for command in ("train", "draw"):
        status, said = command_line(command, "sparse_parity", "--tier", "laptop")
        assert status == 2 and "sparse_parity has no laptop tier: choose one of smoke, gpu, paper" in said


def test_a_missing_record_is_not_trained_against_the_will_of_the_reader(tmp_path):
    settings = check_parameters("sparse_parity", {**GOOD, "root": str(tmp_path), "train_missing": False})
    with pytest.raises(FileNotFoundError, match="no record of sparse_parity-transformer-smoke.*iclrepro train sparse_parity --tier smoke"): collect(settings)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="unknown run of sparse_parity at tier smoke 'Mamber'.*mean 'Mamba'"): collect(settings, ["Mamba", "Mamber"], partly=True)


@pytest.mark.parametrize("partly", [False, True])
def test_advice_to_train_names_a_root_that_is_not_the_default(partly, tmp_path, monkeypatch):
    monkeypatch.setattr("iclrepro.experiments.project_root", lambda: tmp_path)
    for root, command in (("elsewhere", f"iclrepro train sparse_parity --tier smoke --root {tmp_path / 'elsewhere'}"), ("results", "iclrepro train sparse_parity --tier smoke")):
        with pytest.raises(FileNotFoundError, match=f"`{command}`"): collect(check_parameters("sparse_parity", {**GOOD, "root": root, "train_missing": False}), partly=partly)


@pytest.fixture
def command_line(capsys):
    "The command line, in this process: words -> exit status and everything said."
    def call(*words):
        status = main([str(word) for word in words])
        said = capsys.readouterr()
        return status, said.out + said.err

    return call


def contents_and_times(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_train_lists_and_trains_what_was_asked(command_line, tmp_path):
    ask = ("train", "linear_regression", "--tier", "smoke", "--model", "mamba", "--root", tmp_path)
    assert "complete  " not in command_line("list", "--tier", "smoke", "--root", tmp_path)[1]
    status, said = command_line(*ask, "--set", "train.steps=20", "--set", "train.seeds=[5]")
    assert status == 0 and "linear_regression-mamba-smoke: finished 20/20" in said
    path, = tmp_path.glob("runs/*/record.nc")
    config = json.loads(load_dataset(path).attrs["configuration"])
    assert config["train"]["steps"] == 20 and config["train"]["seeds"] == [5] and config["train"]["model"]["pattern"] == "mamba x 2"
    assert json.loads((path.parent / "progress.json").read_text())["stage"] == "finished"
    before = contents_and_times(tmp_path)
    status, said = command_line("train", "--config", path.parent / "config.json", "--root", tmp_path)
    assert status == 0 and "complete already" in said and contents_and_times(tmp_path) == before
    assert command_line(*ask, "--quiet") == (0, "")
    status, said = command_line("list", "--tier", "smoke", "--root", tmp_path)
    run = experiment_runs("linear_regression", "smoke")["Mamba"]
    assert status == 0 and said.partition("\nother runs in ")[0].count("complete  ") == sum(run in experiment_runs(name, "smoke").values() for name in EXPERIMENTS) > 1  # the run stands under each of its experiments


def stored(config, root):
    "A record that says that the run is complete, without training; its folder."
    folder = root / "runs" / config.folder
    save_record(xr.Dataset({"score": 1.0}, attrs={"configuration": json.dumps(config.to_dict())}), {"training_seconds": 1.0}, folder)
    return folder


def test_a_damaged_record_is_listed_among_the_others(command_line, tmp_path):
    runs = experiment_runs("sparse_parity", "smoke")
    folder = stored(runs["Transformer"], tmp_path)
    stored(runs["Mamba"], tmp_path)
    whole = command_line("list", "--tier", "smoke", "--root", tmp_path)
    assert whole[0] == 0 and "damaged" not in whole[1]
    path = folder / "record.nc"
    path.write_bytes(path.read_bytes()[:40])
    language = experiment_evaluations("grazzi_language_accuracy", "smoke").popitem()[1]
    (tmp_path / "language" / language.folder).mkdir(parents=True)
    (tmp_path / "language" / language.folder / "record.nc").write_bytes(b"damage")
    status, said = command_line("list", "--tier", "smoke", "--root", tmp_path)
    assert status == 1 and f"  damaged   {folder.name}\n" in said and f"  complete  {runs['Mamba'].folder}\n" in said and f"  damaged   language/{language.folder}\n" in said
    assert said.count(f"{path} is not a NetCDF file") == 1, "the reason, once"
    named = re.compile("^  (?:complete|to do   |damaged )  (.*)$", re.M)
    assert named.findall(said) == named.findall(whole[1]) and "language_architectures: " in said


def test_own_runs_are_listed_with_what_sets_them_apart(command_line, tmp_path):
    listed = lambda: command_line("list", "--tier", "smoke", "--root", tmp_path)
    others = lambda: [re.split(" {2,}", line.strip()) for line in listed()[1].partition(f"\nother runs in {tmp_path}/runs:\n")[2].splitlines()]
    mamba, parity = experiment_runs("linear_regression", "smoke")["Mamba"], experiment_runs("sparse_parity", "smoke")["Transformer"]
    stored(mamba, tmp_path)
    (tmp_path / "runs" / "notes").mkdir()
    assert "other runs" not in listed()[1]
    stored(experiment_runs("linear_regression", "laptop")["Mamba"], tmp_path)
    assert others() == [["1 of tier laptop"]]
    apart = {override(mamba, ["train.steps=20", "train.seeds=[5]"]): ["train.steps=20 'train.seeds=[5]'"], replace(mamba, name="mine"): [],
             examined(mamba, ["x_scale_2", "none=40"]): ["--exam none=40 --exam x_scale_2"], replace(mamba, exams=mamba.exams[1:]): ["exams=…"],
             override(experiment_runs("linear_regression", "gpu")["Mamba"], ["train.model.pattern=mamba x 3"]): ["'train.model.pattern=mamba x 3'"]}
    rows = {stored(config, tmp_path).name: ["complete", *words] for config, words in apart.items()}
    begun = override(parity, ["train.lr=0.002"])
    folder = tmp_path / "runs" / begun.folder
    settle_folder(begun, folder)
    settle_folder(parity, tmp_path / "runs" / parity.folder)
    for stage, saved, state in (("training", True, "step 12/40"), ("training", False, "to do"), ("examining", True, "examining"), ("finished", True, "to do")):
        for at in (folder, tmp_path / "runs" / parity.folder):
            tell_in(at / "progress.json")(Progress(begun.name, stage, 12, 40, 1.0, 1.0, 1.0))
            (at / "checkpoint.pt").write_bytes(b"") if saved else (at / "checkpoint.pt").unlink()
        found = others()
        assert {name: [what, *words] for what, name, *words in found[:-1]} == rows | {folder.name: [state, "train.lr=0.002"]} and found[-1] == ["1 of tier laptop"], stage
        assert re.search(f"^  {state} +{parity.folder}$", listed()[1], re.M), stage
    assert listed()[0] == 0


def test_a_damaged_own_run_is_listed_as_such(command_line, tmp_path):
    mamba = experiment_runs("linear_regression", "smoke")["Mamba"]
    folders = [stored(override(mamba, [f"train.steps={steps}"]), tmp_path) for steps in (20, 21, 22, 23)]
    (folders[0] / "record.nc").write_bytes(b"damage")
    (folders[1] / "config.json").write_text("{")
    folders[2].rename(moved := folders[2].with_name("moved"))
    status, said = command_line("list", "--tier", "smoke", "--root", tmp_path)
    assert status == 1 and all(f"  damaged   {folder.name}" in said for folder in (*folders[:2], moved)) and f"  complete  {folders[3].name}  train.steps=23\n" in said
    for reason in (f"{folders[0] / 'record.nc'} is not a NetCDF file", f"{folders[1] / 'config.json'} is not the configuration of a run", f"{moved} holds the run {folders[2].name}"): assert said.count(reason) == 1


def test_a_run_is_found_again_by_its_folder(command_line, tmp_path, monkeypatch):
    ask = ("train", "sparse_parity", "--tier", "smoke", "--model", "transformer", "--set", "train.steps=3", "--root", tmp_path)
    status, said = command_line(*ask)
    folder, = (tmp_path / "runs").iterdir()
    assert status == 0 and said.startswith(f"{folder}\n") and "finished 3/3" in said
    assert command_line(*ask) == (0, f"{folder}\nsparse_parity-transformer-smoke: complete already\n") and command_line(*ask, "--quiet") == (0, "")
    assert command_line("train", "--run", folder.name, "--root", tmp_path) == (0, f"{folder}\nsparse_parity-transformer-smoke: complete already\n")
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        assert command_line(*ask) == (0, "sparse_parity-transformer-smoke: complete already\n"), "of processes that torchrun started the first says it"
    status, said = command_line("train", "--run", folder.name[:-1], "--root", tmp_path)
    assert status == 2 and f"or in {tmp_path / 'runs'} '{folder.name[:-1]}'" in said and f"mean '{folder.name}'" in said
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"steps": 3', '"steps": 4'))
    status, said = command_line("train", "--run", folder.name, "--root", tmp_path)
    assert status == 2 and f"{folder} holds the run sparse_parity-transformer-smoke-" in said and f"--config {path}" in said


def test_a_trained_model_is_asked_more_from_the_command_line(command_line, tmp_path):
    ask = ("train", "linear_regression", "--tier", "smoke", "--model", "mamba", "--set", "train.steps=20", "--root", tmp_path)
    assert command_line(*ask)[0] == 0
    status, said = command_line(*ask, "--exam", "x_scale_2", "--exam", "none=40")
    assert status == 0 and "examining" in said and "training" not in said
    before, after = sorted((load_dataset(path) for path in tmp_path.glob("runs/*/record.nc")), key=lambda record: record.sizes["shift"])
    assert set(after["shift"].values) == {*before["shift"].values, "x_scale_2"} and after["score"].sel(shift="none").notnull().sum() == 40 * after.sizes["seed"]
    assert after["score"].sel(shift="noisy").dropna("examples").equals(before["score"].sel(shift="noisy")) and after["loss"].equals(before["loss"])
    assert len({(exam["n_prompts"], exam["batch_size"], exam["seed"]) for exam in json.loads(after.attrs["configuration"])["exams"]}) == 1


def test_more_exams_are_like_the_first():
    config = experiment_runs("linear_regression", "smoke")["Mamba"]
    config = replace(config, exams=(replace(config.exams[0], n_prompts=24, batch_size=12, seed=5), *config.exams[1:]))
    *others, last = examined(config, ["x_scale_2=9"]).exams
    assert (last.shift, last.n_points, last.n_prompts, last.batch_size, last.seed) == ("x_scale_2", 9, 24, 12, 5) and tuple(others) == config.exams
    asked_anew = {exam.shift: exam for exam in examined(config, ["orthants=30"]).exams}["orthants"]
    assert asked_anew.n_points == 30 and asked_anew.examples(config.train.task) == sorted(asked_anew.at) and 2 < len(asked_anew.at) <= 12


CHANGES = {
    "train.steps=7": lambda c: c.train.steps == 7, "train.stop_below=1": lambda c: c.train.stop_below == 1.0 and isinstance(c.train.stop_below, float), "train.lr=1": lambda c: c.train.lr == 1.0 and isinstance(c.train.lr, float), "name=other": lambda c: c.name == "other",
    "train.model.pattern=mamba + attn": lambda c: c.train.model.pattern == "mamba + attn", "train.seeds=[4, 5]": lambda c: c.train.seeds == (4, 5), "train.curriculum.dims.start=1": lambda c: c.train.curriculum.dims.start == 1,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_configuration_is_changed_by_path(change):
    config = experiment_runs("linear_regression", "smoke")["Mamba"]
    changed = override(config, [change])
    assert CHANGES[change](changed) and changed != config and override(config, []) == config


REFUSED = {
    "train linear_regresion": "unknown experiment 'linear_regresion'.*mean 'linear_regression'",
    "train linear_regression --tier lptop": "unknown tier 'lptop'.*mean 'laptop'",
    "train sparse_parity --tier smoke --model mambo": "unknown model 'mambo'.*mean 'mamba'",
    "train sparse_parity --tier smoke --model transformer_nope": "sparse_parity has no model transformer_nope at tier smoke: its runs are sparse_parity-transformer-smoke",
    "train": "name an experiment",
    "train linear_regression --run x": "one of the four",
    "train --run linear_regression-mamba-smoke --tier smoke": "unknown run of tier smoke or in .*runs 'linear_regression-mamba-smoke'.*mean 'linear_regression-mamba-smoke-",
    "reproduce linear_regresion --tier smoke": "unknown experiment 'linear_regresion'",
    "train linear_regression --tier smoke --threads 0": "threads is 0",
    "train linear_regression --tier smoke --exam orthant": "unknown shift 'orthant'.*mean 'orthants'",
    "train linear_regression --tier smoke --exam none=many": "--exam none=many: write SHIFT or SHIFT=POINTS",
    "train linear_regression --tier smoke --exam none=": "--exam none=: write SHIFT or SHIFT=POINTS",
    "train linear_regression --tier smoke --exam none=0": "n_points 0.*at least 1",
    "train linear_regression --tier smoke --model transformer --exam none=99": "99.*beyond the model's positional table",
    "train linear_regression --tier smoke --exam skewed=12 --exam skewed=16": "--exam skewed=12 --exam skewed=16: .*each shift once",
    "train linear_regression --tier smoke --exam x_scale_2 --exam orthants --exam x_scale_2": "--exam x_scale_2 --exam x_scale_2: .*each shift once",
    "train linear_regression --tier smoke --exam clean": "shift 'clean' does not fit LinearRegression",
    "train linear_regression --tier smoke --set train.stepz=3": "unknown configuration path.*'stepz'.*mean 'steps'",
    "train linear_regression --tier smoke --set trian.steps=3": "unknown configuration path 'trian'.*mean 'train'",
    "train linear_regression --tier smoke --set train.steps=many": "train.steps must be of type int",
    "train linear_regression --tier smoke --set train.steps=1.5": "train.steps must be of type int",
    "train linear_regression --tier smoke --set train.steps=true": "train.steps must be of type int",
    "train linear_regression --tier smoke --set train.lr=false": "train.lr must be of type float",
    "train linear_regression --tier smoke --set train.stop_below=soon": "train.stop_below must be of type float, as in train.stop_below=0.5",
    "train linear_regression --tier smoke --set train.stop_below=0": "stop_below is 0.0: it must be a number above 0",
    "train linear_regression --tier smoke --set train=3": "is not a single value",
    "train linear_regression --tier smoke --set train.seeds=[0.5]": r"seeds is \(0.5,\): it must be a tuple of which each is an integer",
    'train linear_regression --tier smoke --set train.seeds=["a"]': r"seeds is \('a',\): it must be a tuple of which each is an integer",
    "train linear_regression --tier smoke --set train.lr=Infinity": "lr is inf: it must be a finite number",
    "train linear_regression --tier smoke --set exams=[1]": r"--set exams=\[1\] makes no configuration \(exams\[0\]: ",
    "train linear_regression --tier smoke --set exams=[{}]": r"--set exams=\[{}\] makes no configuration \(exams\[0\].at is missing\)",
    "train linear_regression --tier smoke --set train.steps.more=3": "train.steps.more is not a single value",
    "train linear_regression --tier smoke --set train.steps": "write path=value",
    "train linear_regression --tier smoke --set train.steps=0": "steps is 0: it must be above 0",
    "train linear_regression --tier smoke --set train.task.dim=4": "the task has d_in 4 but the model 3",
    "train linear_regression --tier smoke --set train.curriculum.points.end=99": "the curriculum ends at 99 points and the task has 8: they must be equal",
    "train linear_regression --tier smoke --set train.task.n_points=20": "the curriculum ends at 8 points and the task has 20: they must be equal",
    "train linear_regression --tier smoke --set train.task.n_points=99 --set train.curriculum.points.end=99": "beyond the model's positional table",
    "train linear_regression --tier smoke --set train.model.pattern=gru": "unknown block 'gru': choose one of attn, mlp, mamba",
    "train linear_regression --tier smoke --set train.task.name=quadratic": "unknown task 'quadratic'",
    "train linear_regression --tier smoke --device gpu": "unknown device 'gpu'",
    "train --config /nonexistent.json": "/nonexistent.json",
    "draw linear_regresion --tier smoke": "unknown experiment 'linear_regresion'",
    "reproduce --tier huge": "unknown tier 'huge'",
    "reproduce --tier smoke --device gpu": "unknown device 'gpu'",
    "reproduce --tier smoke --cores 0": "--cores is 0: it must be at least 1",
    "figures --cores 0": "--cores is 0: it must be at least 1",
    "figures": "nothing is drawn below",
    "claims": "nothing is drawn below",
    "list --tier smok": "unknown tier 'smok'.*mean 'smoke'",
    "keep --tier smok": "unknown tier 'smok'.*mean 'smoke'",
}


@pytest.mark.parametrize("words, reason", REFUSED.items())
def test_bad_input_ends_with_status_2_and_its_reason(words, reason, command_line, tmp_path):
    words, changes = words.split(" --set ")[0].split(), words.split(" --set ")[1:]
    status, said = command_line(*words, *(part for change in changes for part in ("--set", change)), "--root", tmp_path)
    assert status == 2 and "Traceback" not in said
    assert re.search(reason, said), said
    assert not list(tmp_path.rglob("record.nc")) and not list(tmp_path.rglob("*.svg"))


def test_a_run_that_explodes_ends_with_status_1(command_line, tmp_path):
    status, said = command_line("train", "linear_regression", "--tier", "smoke", "--model", "transformer", "--set", "train.lr=1e30", "--root", tmp_path)
    assert status == 1 and re.search("the loss of seed .* became (inf|nan|-inf) at step .*there is no checkpoint yet", said), said


@pytest.mark.parametrize("content", ["{}", "not JSON", "[]", '{"name": "x", "train": {"surprise": 1}, "exams": []}'])
def test_a_file_that_is_no_configuration_is_refused(content, command_line, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    status, said = command_line("train", "--config", path, "--root", tmp_path)
    assert status == 2 and str(path) in said


LACKING = {"name": "name is missing", "train": "train is missing", "exams": "exams is missing", "train.curriculum": "train.curriculum is missing", "train.seeds": "train.seeds is missing",
           "train.steps": "train: .*'steps'", "train.task.name": "train: .*'name'", "train.model.d_in": "train: .*'d_in'", "exams.1.at": r"exams\[1\].at is missing"}


@pytest.mark.parametrize("path", LACKING)
@pytest.mark.parametrize("in_a_list", [False, True])
def test_what_a_configuration_lacks_is_named_with_its_place(path, in_a_list, command_line, tmp_path):
    whole = experiment_runs("linear_regression", "smoke")["Mamba"].to_dict()
    data = target = json.loads(json.dumps(whole))
    *parents, key = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents: target = target[part]
    del target[key]
    (tmp_path / "config.json").write_text(json.dumps([whole, data] if in_a_list else data))
    status, said = command_line("train", "--config", tmp_path / "config.json", "--root", tmp_path)
    assert status == 2 and re.search(rf"config.json is not the .* \({'number 2 of its list: ' if in_a_list else ''}{LACKING[path]}.*\)", said), said


@pytest.mark.parametrize("words", ["train linear_regression --tier smoke", "reproduce --tier smoke"])
def test_a_root_that_cannot_be_written_is_refused(words, command_line, tmp_path):
    (tmp_path / "file").write_text("")
    status, said = command_line(*words.split(), "--root", tmp_path / "file" / "sub")
    assert status == 2 and "cannot write" in said and str(tmp_path / "file" / "sub") in said


@pytest.mark.parametrize("words, message", [("reproduce nonsense", "unknown experiment 'nonsense'"), ("figures", "there is no folder"), ("claims", "there is no folder")])
def test_what_cannot_be_done_makes_no_folder(words, message, command_line, tmp_path):
    status, said = command_line(*words.split(), "--root", tmp_path / "new")
    assert status == 2 and message in said and not (tmp_path / "new").exists()


def test_a_redrawn_figure_leaves_the_executed_notebook_of_a_reproduction(tmp_path, monkeypatch):
    drawn = tmp_path / "sparse_parity" / "smoke.ipynb"
    drawn.parent.mkdir()
    drawn.write_text("executed before")
    copies = []
    monkeypatch.setattr("iclrepro.cli.execute", lambda notebook, target, parameters: copies.append((Path(target), parameters["train_missing"])) or Path(target).write_text("executed now"))
    assert redraw_one(str(tmp_path), "sparse_parity", "smoke").startswith(f"sparse_parity, smoke: {drawn.with_suffix('.svg')}, ")
    (copy, train_missing), = copies
    assert drawn.read_text() == "executed before" and not copy.exists() and not train_missing


def test_draw_names_the_figure_and_leaves_no_trial_behind(tmp_path, monkeypatch, command_line):
    executed = []
    monkeypatch.setattr("iclrepro.cli.execute", lambda notebook, target, parameters: executed.append(target))
    assert command_line("draw", "sparse_parity", "--tier", "smoke", "--root", tmp_path) == (0, f"figure: {tmp_path / 'sparse_parity' / 'smoke.svg'}\n")
    assert executed == [tmp_path / "sparse_parity" / "smoke.ipynb"] and [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_draw_begins_nothing_where_it_cannot_write(tmp_path, monkeypatch, command_line):
    "Of the root the folder of the experiment is what is written to: it may be closed by itself."
    monkeypatch.setattr("iclrepro.cli.execute", lambda *_: pytest.fail("work was begun"))
    (tmp_path / "sparse_parity").write_text("")
    status, said = command_line("draw", "sparse_parity", "--tier", "smoke", "--root", tmp_path)
    assert status == 2 and "cannot write" in said and str(tmp_path / "sparse_parity") in said
    status, said = command_line("draw", "sparse_parity", "--tier", "smoke", "--device", "gpu", "--root", tmp_path / "new")
    assert status == 2 and "unknown device 'gpu'" in said and not (tmp_path / "new").exists()


def test_debug_shows_the_error_itself():
    with pytest.raises(ValueError, match="unknown experiment"): main(["--debug", "train", "x"])


@pytest.mark.parametrize("words", ["", "trian", "train --teir smoke", "reproduce --cores many"])
def test_words_that_are_no_command_are_refused(words, capsys):
    with pytest.raises(SystemExit) as ended: main(words.split())
    assert ended.value.code == 2 and "usage: iclrepro" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["list --tier smoke", "catalogue", "catalogue sizes", "list --tier nonsense"])
def test_a_reader_that_goes_away_ends_the_command_quietly(words, tmp_path):
    "Before the first line, so that a short text is lost when it is flushed and a long one when it is printed. What fails otherwise still says so."
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([BIN / "iclrepro", *words.split(), "--root", tmp_path], cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "") if "nonsense" not in words else done.returncode == 2 and "unknown tier 'nonsense'" in done.stderr


# What follows runs the real thing in processes of its own.
FILES = {f"{name}/smoke{ending}" for name in EXPERIMENTS for ending in (".nc", ".csv", ".svg", ".vl.json", ".verdicts.json", ".ipynb")} | {"claims-smoke.json"}


def test_reproduce_goes_on_after_being_killed_and_ends_with_everything(smoke):
    assert smoke.survivors == []
    while_training, while_drawing = ({name for name in kill if name.endswith("record.nc")} for kill in smoke.kills)
    assert 2 <= len(while_training) < len(RUNS) and len(while_drawing) >= 3 and not FILES <= smoke.kills[1].keys(), "it was not killed in the middle"
    assert smoke.status == 0, smoke.output
    trained = {name for name in while_drawing if name.startswith("runs/")}  # notebooks that evaluate language models leave records, too, and may be the first to
    assert f"{len(trained)} of {len(RUNS)} runs are complete" in smoke.output
    after = states(smoke.root)
    for kill, complete in zip(smoke.kills, (while_training, while_drawing)):
        assert {name: after[name] for name in complete} == {name: kill[name] for name in complete}, "complete runs were made again"
    assert {f"runs/{folder}/record.nc" for folder in RUNS} | FILES <= after.keys()


def test_reproduce_ends_with_tables_verdicts_and_figures(smoke):
    for name, experiment in EXPERIMENTS.items():
        assert f"{experiment.title} ({name}, tier smoke)" in smoke.output and f"figure: {smoke.root / name / 'smoke.svg'}" in smoke.output
        header, *rows = csv.reader((smoke.root / name / "smoke.csv").read_text().splitlines())
        assert len(header) >= 2 and len(rows) >= 2
        if name not in ALONE: continue  # whose tables have words and gaps too
        assert header[0] == "model" and len(rows) >= 4
        for row in rows:
            line, = (line for line in smoke.output.partition(f"({name}, tier smoke)")[2].splitlines()[:len(rows) + 4] if line.startswith(f"{row[0]}  "))
            assert [float(cell) for cell in line.removeprefix(row[0]).split()] == pytest.approx([float(cell) for cell in row[1:]], rel=1e-2)
    for c in CLAIMS.values(): assert c.words in smoke.output
    assert smoke.output.count(UNDECIDED.upper()) == len(CLAIMS)
    assert json.loads((smoke.root / "claims-smoke.json").read_text()).keys() == CLAIMS.keys()


def test_a_second_call_says_there_is_nothing_to_do_and_does_nothing(smoke):
    before, started = states(smoke.root), time.monotonic()
    status, output = finished(reproduce(smoke.root))
    assert status == 0 and "nothing to do" in output and f"{len(RUNS)} of {len(RUNS)} runs are complete" in output
    assert changed(before, states(smoke.root)) == set()
    assert time.monotonic() - started < 30, "seconds were promised"


OTHER_AXES = ("grazzi_language_accuracy", "grazzi_probing", "park_table1", "park_parity_convergence", "park_mqar", "park_languages", "disagreements")  # layers, cells, parameters, widths, tokens, bars


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_figures_are_pictures_that_name_their_tier(smoke, name):
    svg = ElementTree.parse(smoke.root / name / "smoke.svg").getroot()
    text = " ".join(svg.itertext())
    assert svg.tag == "{http://www.w3.org/2000/svg}svg" and "Tier: smoke" in text and ("in-context examples" in text or name in OTHER_AXES)
    trained = {part for config in experiment_runs(name, "smoke").values() for part in config.name.split("-") if part in TITLES}
    assert all(TITLES[model].split(",")[0] in text for model in trained if name != "linear_regression" or model != "transformer_nope")
    assert "Tier: smoke" in json.dumps(json.loads((smoke.root / name / "smoke.vl.json").read_text()))


def test_stored_numbers_are_those_of_the_records_and_of_baselines_computed_by_hand(smoke):
    stored = load_dataset(smoke.root / "length_and_shift" / "smoke.nc")
    runs = experiment_runs("length_and_shift", "smoke")
    for title, config in runs.items():
        record = load_dataset(smoke.root / "runs" / config.folder / "record.nc")
        for theirs, ours in (("pooled", "value"), ("pooled_low", "low"), ("pooled_high", "high"), ("score", "by_seed")):
            np.testing.assert_array_equal(stored[ours].sel(who=title).transpose(*record[theirs].dims), record[theirs])
    for exam in runs["Mamba"].exams:
        errors = {k: [] for k in exam.examples(runs["Mamba"].train.task)[1:4]}
        for batch in range(exam.n_prompts // exam.batch_size):
            context, query = sample_shifted(runs["Mamba"].train.task, exam.shift, Draws(exam.seed, batch, "evaluation"), exam.batch_size, exam.n_points)
            asked = context if query is None else query
            for b, k in itertools.product(range(exam.batch_size), errors):
                w = np.linalg.lstsq(context.x[b, :k].double().numpy(), context.y[b, :k].double().numpy(), rcond=None)[0]
                errors[k].append((asked.x[b, k].double().numpy() @ w - asked.y[b, k].item())**2 / 3)
        for k, values in errors.items():
            assert stored["value"].sel(who="Least squares", shift=exam.shift, examples=k).item() == pytest.approx(np.mean(values), rel=1e-4, abs=1e-9), (exam.shift, k)


def test_records_hold_what_the_saved_weights_score(smoke):
    for folder, config in RUNS.items():
        record, state = load_dataset(smoke.root / "runs" / folder / "record.nc"), load_checkpoint(smoke.root / "runs" / folder / "checkpoint.pt")
        assert state["step"] == config.train.steps and np.isfinite(record["loss"]).all()
        for seed, member in zip(config.train.seeds, state["members"]):
            model = SequenceModel(config.train.model)
            torch.nn.utils.vector_to_parameters(member["weights"], model.parameters())
            exam = config.exams[0]
            scores = take(exam, config.train.task, as_examinee(model)).double().nanmean(0)
            np.testing.assert_allclose(record["score"].sel(shift=exam.shift, seed=seed, examples=exam.examples(config.train.task)), scores, rtol=1e-5)


ALONE = ("linear_regression", "length_and_shift", "sparse_parity")  # the others differ from these in what they draw, not in how they run


@pytest.fixture(scope="session")
def alone(smoke, tmp_path_factory):
    "Some notebooks by papermill, without Snakemake, in a folder of their own: statuses and outputs by name."
    root = tmp_path_factory.mktemp("alone")
    # One after the other: papermill's own command gives kernels TCP ports some time before they are bound, and two at once can be given the same.
    return root, {name: finished(start("papermill", f"nbs/experiments/{name}.ipynb", root / f"{name}.ipynb", "-p", "tier", "smoke", "-p", "root", root)) for name in ALONE}


def test_papermill_alone_makes_the_same_records_and_figures(smoke, alone):
    root, ended = alone
    for name, (status, output) in ended.items(): assert status == 0, output
    compared = [f"runs/{config.folder}/record.nc" for name in ALONE for config in experiment_runs(name, "smoke").values()]
    compared += sorted(name for name in FILES if name.startswith(ALONE) and not name.endswith(".ipynb"))
    assert {name for name in compared if (root / name).read_bytes() != (smoke.root / name).read_bytes()} == set()


def test_bad_parameters_end_a_notebook_before_any_work(tmp_path):
    asked = {"unknown parameter 'teir'": ("linear_regression", "-p", "teir", "smoke"), "unknown tier 'huge'": ("length_and_shift", "-p", "tier", "huge"),
             "unknown device 'gpu'": ("sparse_parity", "-p", "device", "gpu")}
    for message, (name, *words) in asked.items():
        status, output = finished(start("papermill", f"nbs/experiments/{name}.ipynb", tmp_path / f"{name}.ipynb", "-p", "root", tmp_path / "root", *words), 90)
        assert status != 0 and message in output
    assert not (tmp_path / "root").exists()


def test_a_deleted_figure_is_redrawn_alone_and_is_the_same(smoke):
    path = smoke.root / "sparse_parity" / "smoke.svg"
    before, content = states(smoke.root), path.read_bytes()
    path.unlink()
    status, output = finished(reproduce(smoke.root))
    assert status == 0, output
    assert path.read_bytes() == content
    touched = changed(before, states(smoke.root))
    assert touched <= {name for name in FILES if name.startswith("sparse_parity/")} | {"claims-smoke.json"} and "sparse_parity/smoke.svg" in touched


def copied(smoke, target, folders):
    for folder in folders: shutil.copytree(smoke.root / folder, target / folder)
    return target


def kept_files():
    runs = {f"runs/{folder}/{name}" for folder in RUNS for name in ("record.nc", "cost.json")}
    runs |= {f"language/{run.folder}/{name}" for experiment in EXPERIMENTS for run in experiment_evaluations(experiment, "smoke").values() for name in ("record.nc", "cost.json")}
    return runs | {name for name in FILES if name.startswith(tuple(EXPERIMENTS)) and not name.endswith(".ipynb")}


def baseline_files(root): return {name for name in states(root) if name.startswith("baselines/")}


STORED = {name for name in states(ROOT / COMMITTED) if name.startswith("baselines/")}  # what all tiers share is taken from there


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "A project in another place, which has the baselines of this one and no results."
    shutil.copytree(ROOT / COMMITTED / "baselines", tmp_path / COMMITTED / "baselines")
    monkeypatch.setattr("iclrepro.cli.project_root", lambda: tmp_path)
    return tmp_path / COMMITTED


def test_kept_results_are_redrawn_without_training(smoke, command_line, elsewhere):
    root = elsewhere
    assert command_line("keep", "--tier", "smoke", "--root", smoke.root)[0] == 0
    assert baseline_files(smoke.root) and states(root).keys() == kept_files() | baseline_files(smoke.root) | STORED
    assert {name for name in states(root).keys() - STORED if (root / name).read_bytes() != (smoke.root / name).read_bytes()} == set()
    for name in EXPERIMENTS:
        if name != "sparse_parity": shutil.rmtree(root / name)  # one is enough
    for ending in (".svg", ".vl.json"): (root / f"sparse_parity/smoke{ending}").unlink()
    before = states(root)
    status, output = finished(start("iclrepro", "figures", "--root", root))
    assert status == 0 and "sparse_parity, smoke" in output, output
    for ending in (".svg", ".vl.json", ".nc", ".csv", ".verdicts.json"):
        assert (root / f"sparse_parity/smoke{ending}").read_bytes() == (smoke.root / f"sparse_parity/smoke{ending}").read_bytes(), ending
    after = states(root)
    assert after.keys() == {name for name in kept_files() if name.startswith(("runs/", "language/", "sparse_parity/"))} | baseline_files(smoke.root) | STORED
    assert not any(name.startswith("runs/") for name in changed(before, after))


PLAIN = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"}  # of torch, its products, NumPy's, NumPy


def test_figures_are_the_same_to_the_last_byte_on_a_plain_processor(tmp_path):
    "Vector instructions sum in another order. These are the figures that do more than read: descents, a law, means over tasks, geometric means."
    names, home = ("grazzi_probing", "grazzi_shifts", "grazzi_language_context", "disagreements"), ROOT / COMMITTED
    shutil.copytree(home / "runs", tmp_path / "runs")
    shutil.copytree(home / "language", tmp_path / "language")
    for name in names:
        (tmp_path / name).mkdir()
        shutil.copy(home / name / "laptop.nc", tmp_path / name)  # says that there is something to redraw
    done = subprocess.run([BIN / "iclrepro", "figures", "--root", tmp_path], cwd=ROOT, env=ENVIRONMENT | PLAIN, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("laptop.svg") == len(names), done.stdout
    files = [f"{name}/laptop{ending}" for name in names for ending in (".nc", ".csv", ".svg", ".vl.json", ".verdicts.json")]
    assert [file for file in files if (tmp_path / file).read_bytes() != (home / file).read_bytes()] == []
    assert not (tmp_path / "baselines").exists(), "what is stored in the project is not measured again"


def test_incomplete_results_are_not_kept_at_all(smoke, command_line, elsewhere, tmp_path):
    before = states(elsewhere)
    root = copied(smoke, tmp_path / "root", [*EXPERIMENTS, "runs", "language", "baselines"])
    (root / "sparse_parity" / "smoke.svg").unlink()
    status, said = command_line("keep", "--tier", "smoke", "--root", root)
    assert status == 2 and str(root / "sparse_parity" / "smoke.svg") in said
    assert states(elsewhere) == before


def test_what_was_never_drawn_is_not_kept_and_says_how_to_draw_it(command_line, elsewhere, tmp_path):
    status, said = command_line("keep", "linear_regression", "--tier", "smoke", "--root", tmp_path / "root")
    assert status == 2 and f"linear_regression is not drawn at tier smoke below {tmp_path / 'root'}" in said and f"`iclrepro reproduce linear_regression --tier smoke --root {tmp_path / 'root'}`" in said


def test_a_record_that_is_kept_in_the_place_of_another_is_readable_at_any_moment(elsewhere, tmp_path, monkeypatch):
    config = experiment_runs("sparse_parity", "smoke")["Transformer"]
    for value, root in ((1.0, elsewhere), (2.0, tmp_path / "root")):
        save_record(xr.Dataset({"score": value}, attrs={"configuration": json.dumps(config.to_dict())}), {"training_seconds": value}, root / "runs" / config.folder)
    drawn = tmp_path / "root" / "sparse_parity"
    save_dataset(xr.Dataset(attrs={"runs": json.dumps({"Transformer": config.to_dict()}), "baselines": "[]"}), drawn / "smoke.nc")
    for ending in (".csv", ".svg", ".vl.json", ".verdicts.json"): (drawn / f"smoke{ending}").write_text("")
    seen = []

    def watched(path, content):
        seen.append(float(find_record(config, elsewhere)["score"]))
        write_atomically(path, content)
        seen.append(float(find_record(config, elsewhere)["score"]))

    monkeypatch.setattr("iclrepro.cli.write_atomically", watched)
    keep("smoke", tmp_path / "root", ["sparse_parity"])
    assert sorted(set(seen)) == [1.0, 2.0] and seen == sorted(seen) and load_cost(config, elsewhere)["training_seconds"] == 2.0
    (tmp_path / "root" / "runs" / config.folder / "cost.json").unlink()
    with pytest.raises(FileNotFoundError, match="cost.json"): keep("smoke", tmp_path / "root", ["sparse_parity"])


def test_a_run_that_fails_is_named_with_its_reason(smoke, tmp_path):
    root = copied(smoke, tmp_path / "root", [*EXPERIMENTS, "runs", "language", "baselines"])
    folder = root / "runs" / experiment_runs("sparse_parity", "smoke")["Transformer"].folder
    (folder / "record.nc").unlink()
    (folder / "checkpoint.pt").write_bytes(b"damage")
    before = states(root)
    status, output = finished(reproduce(root))
    assert status == 1 and str(folder / "checkpoint.pt") in output and "move it away" in output and "failed" in output
    assert not {name for name in changed(before, states(root)) if name.endswith(("record.nc", ".svg"))}
