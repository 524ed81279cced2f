"""Chains of thought, recall of vectors and formal languages: what is trained, what is stored, and the rules that judge it."""
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from iclrepro.charts import MODEL_COLOURS
from iclrepro.claims import (CLAIMS, NOT_REPRODUCED, PARTLY, REPRODUCED, UNDECIDED, fails_to_recall, faster_and_higher, judge_all, label_of, learns_chain, more_accurate_chain,
                             more_sensitive_chain, recalls, settled_accuracy, steps_to_reach, width_helps_to_recall)
from iclrepro.experiments import TASK_SIZES, TIERS, Settings, config_of, experiment_runs, join_studies, published, task_runs
from iclrepro.models import TITLES, SequenceModel
from iclrepro.presets import preset
from iclrepro.prompts import Draws
from iclrepro.results import load_checkpoint, load_dataset
from iclrepro.shifts import sample_shifted
from iclrepro.tasks import FormalLanguages

NAMES = ("park_chain_of_thought", "park_mqar", "park_languages")
MODELS = {title: name for name, title in TITLES.items()}

CHAINS = [(model, size, k) for model in ("Transformer", "Mamba") for size, k in (("tiny", 8), ("small", 8), ("standard", 8), ("small", 4), ("small", 16))] + [("MambaFormer", "small", 8)]


def test_the_chains_of_the_paper_tier_are_the_papers():
    runs = experiment_runs("park_chain_of_thought", "paper")
    assert set(runs) == {f"{model}, {size}, k {k}" for model, size, k in CHAINS}
    for model, size, k in CHAINS:
        ours, theirs = runs[f"{model}, {size}, k {k}"], preset("park2024", "chain_of_thought", MODELS[model], size=size).run
        task = replace(theirs.train.task, hidden=k)
        assert ours.train == replace(theirs.train, task=task, model=replace(theirs.train.model, d_out=k + 1)) and ours.exams == theirs.exams, (model, size, k)


@pytest.mark.parametrize("model", ["Transformer", "Transformer, no positions", "Mamba", "MambaFormer"])
def test_the_lists_of_the_paper_tier_are_the_papers(model):
    runs = experiment_runs("park_mqar", "paper")
    for variant, prompt in (("as_described", "many queries"), ("as_released", "one query")):
        theirs = preset("park2024", "vector_mqar", MODELS[model], variant).run.train
        if prompt == "one query": theirs = replace(theirs, task=replace(theirs.task, self_query=False))  # so that the exam can ask by position
        assert runs[f"{model}, {prompt}, width 128"].train == theirs
        assert runs[f"{model}, {prompt}, width 64"].train == replace(theirs, model=replace(theirs.model, d_model=64))
    assert [exam.shift for exam in runs[f"{model}, one query, width 64"].exams] == ["none", *(f"query_position_{i}" for i in (0, 16, 32, 48, 63))]


@pytest.mark.parametrize("model", ["Transformer", "Mamba", "MambaFormer"])
def test_the_languages_of_the_paper_tier_are_regbenchs(model):
    ours, theirs = experiment_runs("park_languages", "paper")[model], preset("park2024", "formal_languages", MODELS[model]).run
    assert (ours.train, ours.exams) == (theirs.train, theirs.exams) and ours.exams[0].shift == "new_languages"


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_runs_the_papers_architectures_for_fewer_steps(name):
    gpu, paper = (experiment_runs(name, tier) for tier in ("gpu", "paper"))
    assert set(gpu) == set(paper)
    for label, config in gpu.items():
        theirs = paper[label].train
        assert config.train.steps < theirs.steps and config.train.precision == "tf32" and config.exams == paper[label].exams
        assert replace(config.train, steps=theirs.steps, seeds=theirs.seeds, precision=theirs.precision, stop_below=None, curriculum=theirs.curriculum) == theirs
        hurry = 2 if name == "park_chain_of_thought" else 1
        for kind in ("dims", "points"):
            ours, paper_s = getattr(config.train.curriculum, kind), getattr(theirs.curriculum, kind)
            assert replace(ours, interval=hurry * ours.interval) == paper_s and ours.at(config.train.steps // 3) == ours.end


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("study, name", [("chain_of_thought", "park_chain_of_thought"), ("vector_mqar", "park_mqar"), ("formal_languages", "park_languages")])
def test_a_table_of_all_tasks_finds_these_runs_here(study, name, tier):
    table = task_runs(study, tier, ("transformer", "mamba", "mambaformer"))
    assert {config.folder for config in table.values()} <= {config.folder for config in experiment_runs(name, tier).values()}


def test_labels_tell_models_apart_and_every_model_has_a_colour():
    for name in NAMES:
        for tier in TIERS:
            runs = experiment_runs(name, tier)
            assert len({config.folder for config in runs.values()}) == len(runs)
            assert {label if name == "park_languages" else label.rsplit(", ", 2)[0] for label in runs} <= set(MODEL_COLOURS)


def test_the_papers_chains_are_stored_as_they_were_read():
    table = published("park_cot").set_index(["size", "hidden", "model", "examples"]).squared_error
    assert table["standard", 8, "Transformer", 100] == 0.0067 and table["small", 16, "Mamba", 100] == 0.25 and len(table) == 34
    assert (table.groupby(level=["size", "hidden", "model"]).apply(lambda curve: curve.is_monotonic_decreasing)).all()


def test_new_languages_are_none_of_the_pool():
    "The same prompts as of a task without a pool; and no language of a small pool speaks them."
    pool = FormalLanguages(dim=8, n_points=4, max_length=9, max_states=6, n_languages=3)
    context = sample_shifted(pool, "new_languages", Draws(5), 64).context
    fresh = replace(pool, n_languages=0).sample(Draws(5), 64)
    assert torch.equal(context.x, fresh.x) and torch.equal(context.y, fresh.y)

    def begun(prompts): return {(row[0].item(), *(y[0] > 0).tolist()) for row, y, asked in zip(*prompts) if asked[0]}  # the first symbol, and what may follow it

    assert len(begun(pool.sample(Draws(5), 64))) <= 3 * pool.max_edges < len(begun(context))


def invented(errors, half_width=0.0, dim=1.0, trained_to=3, tier="paper"):
    "Stored numbers: {(study, model): error after every number of examples}."
    labels, dims = [f"{model} of {study}" for study, model in errors], ("who", "shift", "examples")
    value = np.array(list(errors.values()), dtype=float)[:, None, None] * np.ones((1, 1, trained_to + 1))
    runs = {label: {"name": f"{study}-{model}-{tier}"} for label, (study, model) in zip(labels, errors)}
    return xr.Dataset({"value": (dims, value), "low": (dims, value - half_width), "high": (dims, value + half_width)}, {"who": labels, "shift": ["none"], "examples": range(trained_to + 1)},
                      {"dim": dim, "trained_to": trained_to, "tier": tier, "runs": json.dumps(runs)})


def chain(transformer, mamba, study="chain_of_thought"): return {(study, "transformer"): transformer, (study, "mamba"): mamba}


@pytest.mark.parametrize("transformer, mamba, verdict", [
    (0.19, 0.05, REPRODUCED), (0.19, 0.0501, PARTLY), (0.01, 0.1999, PARTLY), (0.01, 0.2, NOT_REPRODUCED), (0.2, 0.2, UNDECIDED), (0.2, 0.1999, PARTLY), (0.9, math.nan, UNDECIDED)])
def test_a_chain_is_learnt_below_a_share_of_the_error_without_information(transformer, mamba, verdict):
    numbers = invented({key: 10 * error for key, error in chain(transformer, mamba).items()}, dim=10)
    assert learns_chain("mamba")(numbers)[0] == verdict


@pytest.mark.parametrize("ours, theirs, half_width, verdict", [
    (0.1, 0.15, 0.02, REPRODUCED), (0.1, 0.15, 0.03, PARTLY), (0.15, 0.15, 0.0, NOT_REPRODUCED), (0.16, 0.15, 0.0, NOT_REPRODUCED), (0.2, 0.3, 0.0, UNDECIDED), (0.19, 0.3, 0.0, REPRODUCED), (0.3, 0.19, 0.0, NOT_REPRODUCED)])
def test_one_chain_is_better_than_another_beyond_their_intervals(ours, theirs, half_width, verdict):
    assert more_accurate_chain("mamba", "transformer", "s")(invented(chain(theirs, ours, "s"), half_width))[0] == verdict


@pytest.mark.parametrize("transformer, mamba, verdict", [
    ((0.05, 0.1), (0.05, 0.2), REPRODUCED), ((0.05, 0.1), (0.05, 0.19), PARTLY), ((0.05, 0.1), (0.05, 0.1), NOT_REPRODUCED), ((0.05, 0.1), (0.1, 0.05), NOT_REPRODUCED),
    ((0.05, 0.2), (0.01, 0.9), UNDECIDED), ((0.2, 0.1), (0.01, 0.9), UNDECIDED), ((0.05, 0.1), (0.5, 2.0), REPRODUCED)])
def test_sensitivity_is_a_ratio_of_ratios(transformer, mamba, verdict):
    numbers = invented(chain(transformer[0], mamba[0], "chain_of_thought_narrow") | chain(transformer[1], mamba[1], "chain_of_thought_wide"))
    assert more_sensitive_chain("mamba", "transformer")(numbers)[0] == verdict


@pytest.mark.parametrize("half_width, verdict", [(0.0124, REPRODUCED), (0.0126, PARTLY)])
def test_sensitivity_is_told_beyond_the_intervals(half_width, verdict):
    "At 0.0125 the least that one may have grown is the most that the other may: 0.1875 / 0.0625 and 0.1125 / 0.0375."
    numbers = invented(chain(0.05, 0.05, "chain_of_thought_narrow") | chain(0.1, 0.2, "chain_of_thought_wide"), half_width)
    assert more_sensitive_chain("mamba", "transformer")(numbers)[0] == verdict


def recall(transformer, mamba, narrow=1.0): return chain(transformer, mamba, "vector_mqar") | {("vector_mqar_narrow", "mamba"): narrow}


@pytest.mark.parametrize("transformer, mamba, of_transformer, of_failure", [
    (0.05, 0.5, REPRODUCED, REPRODUCED), (0.0501, 0.5, PARTLY, UNDECIDED), (0.05, 0.4999, REPRODUCED, PARTLY), (0.05, 0.05, REPRODUCED, NOT_REPRODUCED),
    (0.4999, 0.9, PARTLY, UNDECIDED), (0.5, 0.4999, NOT_REPRODUCED, UNDECIDED), (0.5, 0.5, UNDECIDED, UNDECIDED)])
def test_recall_and_its_failure(transformer, mamba, of_transformer, of_failure):
    numbers = invented(recall(transformer, mamba))
    assert recalls("transformer")(numbers)[0] == of_transformer and fails_to_recall("mamba")(numbers)[0] == of_failure


def test_a_failure_is_known_after_as_much_training_as_the_papers():
    for rule, errors, known in ((recalls("transformer"), recall(0.5, 0.4999), NOT_REPRODUCED), (fails_to_recall("mamba"), recall(0.05, 0.5), REPRODUCED), (learns_chain("mamba"), chain(0.01, 0.2), NOT_REPRODUCED)):
        assert [rule(invented(errors, tier=tier))[0] for tier in TIERS] == [UNDECIDED] * 3 + [known]
    for rule, errors, known in ((recalls("transformer"), recall(0.4999, 0.9), PARTLY), (fails_to_recall("mamba"), recall(0.05, 0.4999), PARTLY), (fails_to_recall("mamba"), recall(0.05, 0.05), NOT_REPRODUCED)):
        assert rule(invented(errors, tier="gpu"))[0] == known  # no training takes back what has been learnt


@pytest.mark.parametrize("wide, narrow, half_width, verdict", [
    (0.9, 1.0, 0.0, REPRODUCED), (0.9, 1.0, 0.06, PARTLY), (0.91, 1.0, 0.0, PARTLY), (1.0, 1.0, 0.0, NOT_REPRODUCED), (1.01, 1.0, 0.0, NOT_REPRODUCED)])
def test_width_helps_by_a_tenth(wide, narrow, half_width, verdict):
    assert width_helps_to_recall("mamba")(invented(recall(0.01, wide, narrow), half_width))[0] == verdict
    assert width_helps_to_recall("mamba")(invented(recall(0.06, wide, narrow), half_width))[0] == UNDECIDED


def test_a_score_of_recall_is_the_mean_over_queries():
    numbers = invented(recall(0.05, 0.5))
    numbers["value"][1] = np.array([0.2, 0.8, 0.4, np.nan])  # Mamba's; a prompt with three queries beside one with four
    assert "mamba 0.467" in fails_to_recall("mamba")(numbers)[1]


RULES = [learns_chain("mamba"), more_accurate_chain("mamba", "transformer", "chain_of_thought_tiny"), more_sensitive_chain("mamba", "transformer"), recalls("mamba"), fails_to_recall("mamba"), width_helps_to_recall("mamba")]


@pytest.mark.parametrize("rule", RULES)
def test_what_was_not_run_is_not_judged(rule):
    for errors in ({("other", "mamba"): 0.01}, {("vector_mqar", "transformer"): 0.01, ("chain_of_thought", "transformer"): 0.01, ("chain_of_thought_tiny", "transformer"): 0.01}):
        verdict, evidence = rule(invented(errors))
        assert verdict == UNDECIDED and "not run" in evidence and "mamba" in evidence


def test_a_run_is_found_by_its_study_whatever_its_label():
    numbers = invented(recall(0.1, 0.2))
    assert label_of(numbers, "vector_mqar", "mamba") == "mamba of vector_mqar" and label_of(numbers, "vector_mqar", "transformer_nope") is None
    for name in NAMES:
        runs = {label: config.to_dict() for label, config in experiment_runs(name, "gpu").items()}
        found = {label_of(xr.Dataset(attrs={"tier": "gpu", "runs": json.dumps(runs)}), study, model) for study in TASK_SIZES for model in TITLES}
        assert found - {None} == set(runs)


def spoken(accuracy, curves, n_tokens=40):
    "Numbers of languages: {who: accuracies, one a seed}, {who: (seeds, steps) of loss}."
    who, seeds = list(accuracy), len(next(iter(curves.values())))
    steps = np.arange(1, 1 + len(next(iter(curves.values()))[0])) * 10
    by_seed = np.array([[row[i] if name in curves else np.nan for i in range(seeds)] for name, row in accuracy.items()])
    value = np.array([np.mean(row) for row in accuracy.values()])
    shape = np.where((np.arange(n_tokens) >= n_tokens // 4) & (np.arange(n_tokens) <= n_tokens // 2), 1.0, 0.1)  # elsewhere it is of no account
    loss = np.array([curves.get(name, np.full((seeds, len(steps)), np.nan)) for name in who])
    return xr.Dataset({"value": (("who", "shift", "examples"), value[:, None, None] * shape), "by_seed": (("who", "seed", "shift", "examples"), by_seed[:, :, None, None] * shape),
                       "loss": (("who", "seed", "step"), loss)}, {"who": who, "seed": range(seeds), "shift": ["new_languages"], "examples": range(n_tokens), "step": steps})


def falling(*to_one_at, end=1.0, n=100): return np.array([[3.0] * at + [end] * (n - at) for at in to_one_at])


@pytest.mark.parametrize("ours, theirs, verdict", [
    ((0.91, 0.93), (0.90, 0.80), REPRODUCED), ((0.90, 0.93), (0.90, 0.80), PARTLY), ((0.80, 0.90), (0.90, 0.80), NOT_REPRODUCED), ((0.75, 0.75), (0.90, 0.80), NOT_REPRODUCED), ((0.99, 0.99), (0.60, 0.60), UNDECIDED)])
def test_higher_is_every_seed_higher(ours, theirs, verdict):
    curves = {"MambaFormer": falling(10, 10), "Transformer": falling(90, 90), "Mamba": falling(90, 90)}
    numbers = spoken({"MambaFormer": ours, "Transformer": theirs, "Mamba": (0.5, 0.5), "2-gram": (0.6,)}, curves)
    assert faster_and_higher("higher")(numbers)[0] == verdict
    assert settled_accuracy(numbers, "MambaFormer") == pytest.approx(list(ours)) and settled_accuracy(numbers, "2-gram") == pytest.approx([0.6])


def test_one_seed_is_not_every_seed():
    curves = {who: falling(90) for who in ("MambaFormer", "Transformer", "Mamba")}
    numbers = spoken({"MambaFormer": (0.99,), "Transformer": (0.9,), "Mamba": (0.5,), "2-gram": (0.6,)}, curves)
    assert faster_and_higher("higher")(numbers)[0] == PARTLY


def test_what_longer_counts_reach_is_said():
    numbers = spoken({"MambaFormer": (0.99, 0.99), "Transformer": (0.9, 0.9), "Mamba": (0.5, 0.5), "2-gram": (0.6,), "3-gram": (0.97,)}, {who: falling(90, 90) for who in ("MambaFormer", "Transformer", "Mamba")})
    for what in ("higher", "faster"): assert faster_and_higher(what)(numbers)[1].endswith("MambaFormer 0.990, Transformer 0.900, Mamba 0.500, 2-gram 0.600, 3-gram 0.970")


def test_languages_are_compared_in_two_ways_only():
    with pytest.raises(ValueError, match="unknown comparison 'hihger'.*mean 'higher'"): faster_and_higher("hihger")


def steps_by_hand(numbers, who):
    "Loops over steps and seeds: a mean over the last twentieth, its first value at the level, the latest of all seeds."
    def smooth(name):
        rows = numbers["loss"].sel(who=name).values
        window = rows.shape[1] // 20
        return [[None if t + 1 < window else math.fsum(row[t + 1 - window:t + 1]) / window for t in range(len(row))] for row in rows]

    level = min(sum(row[-1] for row in smooth(name)) / len(smooth(name)) for name in ("Transformer", "Mamba"))
    latest = 0
    for row in smooth(who):
        at = [t for t, value in enumerate(row) if value is not None and value <= level]
        if not at: return math.inf
        latest = max(latest, at[0])
    return float(numbers.step[latest])


@pytest.mark.parametrize("at, end, verdict", [((10, 70), 0.9, REPRODUCED), ((10, 75), 0.9, REPRODUCED), ((10, 76), 0.9, PARTLY), ((10, 94), 0.9, PARTLY), ((10, 97), 0.9, NOT_REPRODUCED), ((10, 20), 1.1, NOT_REPRODUCED), ((10, 99), 0.99, NOT_REPRODUCED)])
def test_faster_is_at_the_others_loss_after_four_fifths(at, end, verdict):
    curves = {"MambaFormer": falling(*at, end=end), "Transformer": falling(90, 94), "Mamba": falling(90, 90, end=1.5)}
    numbers = spoken({"MambaFormer": (0.9, 0.9), "Transformer": (0.8, 0.8), "Mamba": (0.5, 0.5), "2-gram": (0.6,)}, curves)
    assert steps_to_reach(numbers, "MambaFormer") == steps_by_hand(numbers, "MambaFormer")
    assert faster_and_higher("faster")(numbers)[0] == verdict
    assert faster_and_higher("faster")(numbers.drop_sel(who="Mamba"))[0] == UNDECIDED


def test_steps_of_a_noisy_loss_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    curves = {who: 1 + slope / np.arange(1, 201) + 0.05 * rng.standard_normal((3, 200)) for who, slope in (("MambaFormer", 1), ("Transformer", 20), ("Mamba", 10))}
    numbers = spoken({who: (0.8,) * 3 for who in curves}, curves)
    for who in curves: assert steps_to_reach(numbers, who) == steps_by_hand(numbers, who)


def test_joined_studies_keep_every_number(tmp_path):
    rng, settings = np.random.default_rng(1), Settings("park_mqar", "smoke", tmp_path, "cpu", False)

    def part(who, shifts, examples):
        return xr.Dataset({"value": (("who", "shift", "examples"), rng.random((len(who), len(shifts), len(examples))))}, {"who": who, "shift": shifts, "examples": examples},
                          {"baselines": json.dumps([f"{who[-1]}.nc"]), "dim": 4, "trained_to": 3})

    parts = [part(["a", "b"], ["none"], [0, 1, 2]), part(["c"], ["none", "query_position_0"], [0])]
    joined = join_studies(settings, {}, parts)
    for one in parts:
        for who in one.who.values:
            for shift in one["shift"].values:
                for k in one.examples.values: assert joined["value"].sel(who=who, shift=shift, examples=k) == one["value"].sel(who=who, shift=shift, examples=k)
    assert joined["value"].notnull().sum() == 2 * 3 + 2 and json.loads(joined.attrs["baselines"]) == ["b.nc", "c.nc"] and joined.attrs["trained_to"] == 3


@pytest.fixture(scope="module")
def drawn(smoke):
    "The smallest tier, runs and all."
    return smoke.root


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_leaves_figure_numbers_and_verdicts(name, drawn):
    stem, runs = drawn / name / "smoke", experiment_runs(name, "smoke")
    svg, numbers = stem.with_suffix(".svg").read_text(), load_dataset(stem.with_suffix(".nc"))
    assert "Tier: smoke" in svg and all(label.split(", ")[0] in svg for label in runs) and "Not run yet" not in svg
    assert {label: config.to_dict() for label, config in runs.items()} == json.loads(numbers.attrs["runs"]) and json.loads(numbers.attrs["baselines"]) == sorted(json.loads(numbers.attrs["baselines"]))
    for file in json.loads(numbers.attrs["baselines"]): assert (drawn / file).exists()
    verdicts = json.loads((drawn / name / "smoke.verdicts.json").read_text())
    assert verdicts.keys() == {claim for claim in CLAIMS if CLAIMS[claim].experiment == name} == judge_all(drawn, name).keys()
    assert {verdict["verdict"] for verdict in verdicts.values()} == {UNDECIDED}


def test_stored_errors_are_those_of_the_weights(drawn):
    "A chain read after the model's own step, point by point, and every query of a list: models loaded from their checkpoints, prompts drawn again."
    for name, label in (("park_chain_of_thought", "Mamba, small, k 2"), ("park_mqar", "MambaFormer, many queries, width 16")):
        config, numbers = experiment_runs(name, "smoke")[label], load_dataset(drawn / name / "smoke.nc")
        exam, task, means = config.exams[0], config.train.task, []
        for member in load_checkpoint(drawn / "runs" / config.folder / "checkpoint.pt")["members"]:
            model = SequenceModel(config.train.model)
            torch.nn.utils.vector_to_parameters(member["weights"], model.parameters())
            errors = []
            for batch in range(exam.n_prompts // exam.batch_size):
                prompt = task.sample(Draws(exam.seed, batch, "evaluation"), exam.batch_size, exam.n_points)
                errors.append(own_steps(model, prompt) if name == "park_chain_of_thought" else queries(model, prompt))
            means.append(torch.cat(errors).double().mean(0))
        np.testing.assert_allclose(numbers["value"].sel(who=label, shift="none").dropna("examples"), torch.stack(means).mean(0), rtol=1e-4)


@torch.no_grad()
def own_steps(model, prompt):
    "Tokens written out by hand: x, s, y, …, x, and then the model's own s."
    x, y, k = prompt.x, prompt.y, prompt.y.shape[-1] - 1
    width, errors = max(x.shape[-1], k), []
    pad = lambda part: torch.nn.functional.pad(part, (0, width - part.shape[-1]))
    for n in range(x.shape[1]):
        tokens = [part[:, i] for i in range(n) for part in (pad(x), pad(y[..., :-1]), pad(y[..., -1:]))] + [pad(x)[:, n]]
        own = model(torch.stack(tokens + [torch.zeros_like(tokens[0])], 1))[:, -1, :-1]  # the step is read at x: what follows does not count
        answer = model(torch.stack(tokens + [pad(own)], 1))[:, -1, -1]
        errors.append((answer - y[:, n, -1]).square())
    return torch.stack(errors, 1)


@torch.no_grad()
def queries(model, prompt):
    "The mean over coordinates of squared differences, a query at a time."
    said, (_, m, d) = model(prompt.x), prompt.y.shape
    return torch.stack([sum((said[:, said.shape[1] - m + j, i] - prompt.y[:, j, i])**2 for i in range(d)) / d for j in range(m)], 1)


def test_languages_store_losses_and_accuracies_of_their_records(drawn):
    numbers = load_dataset(drawn / "park_languages" / "smoke.nc")
    for label, config in experiment_runs("park_languages", "smoke").items():
        record = load_dataset(drawn / "runs" / config.folder / "record.nc")
        assert config_of(record) == config
        np.testing.assert_array_equal(numbers["loss"].sel(who=label).transpose("seed", "step"), record["loss"])
        np.testing.assert_array_equal(numbers["value"].sel(who=label, shift="new_languages"), record["pooled"].sel(shift="new_languages"))
    assert numbers["loss"].sel(who="2-gram").isnull().all()
