"""Parity and disagreements: Bayes' loss by enumeration, steps to convergence by a loop, the paper's runs by their presets, two ways that differ in one thing, rules of claims at their edges, notebooks from nothing to verdicts."""
import itertools
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from iclrepro.baselines import parity_bayes
from iclrepro.claims import CLAIMS, NOT_REPRODUCED, PARTLY, REPRODUCED, UNDECIDED, as_soon_as, choice_matters, converges_everywhere, later_at_the_largest, never_converges, reaches_bayes, sooner_with_size, stays_at_prior, stays_between
from iclrepro.experiments import (COMMITTED, COMPARISONS, EXPERIMENTS, LARGE_POSITIONS, PARITY_GRID, TASK_SIZES, TIERS, bayes_loss, compare_ways, config_of, context_free_loss, convergence_numbers, convergence_runs, convergence_steps, counted_parameters,
                                  disagreement_numbers, experiment_runs, learnt_loss, marks_of_ways, median_steps, project_root, published, task_runs, way_label)
from iclrepro.models import SIZES, TITLES, build_model
from iclrepro.presets import preset
from iclrepro.prompts import Draws
from iclrepro.results import load_dataset, save_dataset
from iclrepro.runs import run
from iclrepro.tasks import Curriculum, LinearRegression, SparseLinearRegression, SparseParity


def products(x, k): return [math.prod(x[i] for i in chosen) for chosen in itertools.combinations(range(len(x)), k)]


@pytest.mark.parametrize("dim, k", [(4, 2), (3, 1), (5, 3), (6, 2), (3, 3)])
def test_the_context_free_loss_is_that_of_all_inputs_and_sets(dim, k):
    costs = []
    for x in itertools.product((-1, 1), repeat=dim):
        share = Counter(products(x, k))
        costs += [-math.log(share[y] / share.total()) for y in products(x, k)]
    assert context_free_loss(SparseParity(dim, 8, k)) == pytest.approx(np.mean(costs), rel=1e-12)


def bayes_by_enumeration(dim, k, n):
    "Mean cross-entropy of the posterior's answers over all prompts and sets, with nothing but counting."
    total = 0.0
    inputs = [products(x, k) for x in itertools.product((-1, 1), repeat=dim)]
    for prompt in itertools.product(inputs, repeat=n):
        for true in range(len(prompt[0])):
            candidates = range(len(prompt[0]))
            for answers in prompt:
                agreeing = [c for c in candidates if answers[c] == answers[true]]
                total -= math.log(len(agreeing) / len(candidates))
                candidates = agreeing
    return total / len(inputs)**n / len(inputs[0]) / n


@pytest.mark.parametrize("dim, k, n", [(3, 2, 1), (3, 2, 4), (4, 2, 3), (3, 1, 4), (4, 3, 2)])
def test_bayes_loss_is_that_of_an_enumeration_up_to_sets_that_look_alike(dim, k, n):
    exact, sets = bayes_by_enumeration(dim, k, n), math.comb(dim, k)
    assert bayes_loss(SparseParity(dim, n, k)) - math.log(1 + (sets - 1) / 2**n) / n <= exact + 1e-12 <= bayes_loss(SparseParity(dim, n, k)) + 2e-12


@pytest.mark.parametrize("task", [SparseParity(4, 20), SparseParity(5, 24), SparseParity(10, 140)], ids=str)
def test_bayes_loss_is_that_of_the_baseline(task):
    prompt = task.sample(Draws(3, 1, "evaluation"), 400)
    right = ((parity_bayes(prompt.x, prompt.y, k=task.k) * prompt.y + 1) / 2).double()
    assert -right.log().mean().item() == pytest.approx(bayes_loss(task), rel=0.03)


def test_learnt_lies_between_the_two_losses():
    task = SparseParity(10, 140)
    assert learnt_loss(task, 0.0) == bayes_loss(task) and learnt_loss(task, 1.0) == pytest.approx(context_free_loss(task))
    assert learnt_loss(task) - bayes_loss(task) == pytest.approx((context_free_loss(task) - bayes_loss(task)) / 10)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"share is {share}: it must be between 0 and 1"): learnt_loss(task, share)
    for other in (SparseLinearRegression(5, 8, 2), LinearRegression(5, 8)):  # the first has a k, too
        for loss in (context_free_loss, bayes_loss, learnt_loss):
            with pytest.raises(ValueError, match=f"the task is {other.name}: when it is learnt is known of sparse_parity only"): loss(other)
    with pytest.raises(ValueError, match="unknown tier 'huge': choose one of smoke, laptop, gpu, paper"): convergence_runs("huge")
    for study in TASK_SIZES:
        if not study.startswith("parity") and study != "sparse_parity": continue
        for size in TASK_SIZES[study].values(): assert size.stop_below is None or bayes_loss(size.task) < size.stop_below < learnt_loss(size.task), study


def slow_convergence(losses, steps, threshold):
    found = []
    for row in losses:
        found.append(math.nan)
        for loss, step in zip(row, steps):
            if loss < threshold:
                found[-1] = step
                break
    return found


def test_convergence_steps_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(50):
        steps = np.cumsum(rng.integers(1, 9, 12)).tolist()
        losses = rng.uniform(0, 1, (4, 12)).round(1)  # round: some lie exactly at the threshold, and are not below it
        record = xr.Dataset({"loss": (("seed", "step"), losses)}, {"seed": [5, 3, 9, 1], "step": steps})
        for threshold in (0.1, 0.5, 2.0):
            np.testing.assert_array_equal(convergence_steps(record, threshold), slow_convergence(losses, steps, threshold))
        converged = convergence_steps(record, 0.1)
        ranked = sorted(math.inf if math.isnan(value) else value for value in converged.values)
        median = (ranked[1] + ranked[2]) / 2
        np.testing.assert_array_equal(median_steps(converged), math.nan if median == math.inf else median)
        assert converged.seed.values.tolist() == [5, 3, 9, 1]


EASY = SparseParity(3, 8, k=1)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    "Records of two small models on a task that is learnt in some windows, and one that is not."
    root, (config,) = tmp_path_factory.mktemp("learnt"), task_runs("parity_1", "smoke", ("mamba",)).values()
    easy = replace(config.train, task=EASY, curriculum=Curriculum.constant(EASY), seeds=(0, 1, 2), steps=120, lr=2e-2, batch_size=32, log_every=5, model=replace(config.train.model, d_model=16, d_in=3), stop_below=learnt_loss(EASY, 0.5))
    return {"Mamba, 1 x 16": run(replace(config, train=easy), root), "Mamba, 1 x 8": run(config, root)}


def test_a_run_ends_when_its_seeds_have_learnt_and_its_record_says_when_each_did(learnt):
    ended, capped = learnt.values()
    limit, last = learnt_loss(EASY, 0.5), ended["step"].values[-1]
    assert last < 120 and (ended["loss"][:, -1] < limit).all() and not (ended["loss"][:, :-1] < limit).all("seed").any()
    converged = convergence_steps(ended, limit)
    assert (converged <= last).all() and converged.min() < last == converged.max() and convergence_steps(capped).isnull().all()
    np.testing.assert_array_equal(converged, slow_convergence(ended["loss"].values, ended["step"].values, limit))
    np.testing.assert_array_equal(convergence_steps(ended), slow_convergence(ended["loss"].values, ended["step"].values, learnt_loss(EASY)))
    numbers = convergence_numbers(learnt)
    assert numbers["label"].values.tolist() == list(learnt) and numbers["size"].values.tolist() == ["1 x 16", "1 x 8"] and set(numbers["model"].values) == {"Mamba"}
    assert numbers["steps_done"].values.tolist() == [last, 20] and numbers["cap"].values.tolist() == [120, 20]
    np.testing.assert_array_equal(numbers["converged"][0], convergence_steps(ended))
    assert np.isnan(numbers["median"][1]) and numbers["median"].dims == ("label",)
    np.testing.assert_array_equal(numbers["lowest_loss"][0], [min(row) for row in ended["loss"].values.tolist()])


def test_a_median_is_that_of_a_runs_own_seeds(learnt):
    "Where others have more seeds, those that a run has not are not seeds that did not learn."
    config, records = config_of(learnt["Mamba, 1 x 16"]), {}
    for label, seeds in (("M, 1 x 8", (0,)), ("M, 1 x 16", (0, 1, 2))):
        configuration = json.dumps(replace(config, train=replace(config.train, seeds=seeds)).to_dict())
        records[label] = xr.Dataset({"loss": (("seed", "step"), [[0.5, 0.0]] * len(seeds))}, {"seed": list(seeds), "step": [5, 10]}, {"configuration": configuration})
    numbers = convergence_numbers(records)
    assert numbers["median"].values.tolist() == [10, 10] and np.isnan(numbers["converged"][0]).values.tolist() == [False, True, True]


def test_numbers_survive_a_file(learnt, tmp_path):
    numbers = convergence_numbers(learnt)
    save_dataset(numbers, tmp_path / "numbers.nc")
    assert sooner_with_size("Mamba")(load_dataset(tmp_path / "numbers.nc")) == sooner_with_size("Mamba")(numbers)


def as_preset(config, size):
    "The paper's run of the same model, with what is ours on purpose: five seeds, an end, a longer window, a table of as many positions as are asked."
    model = {title: name for name, title in TITLES.items()}[config]
    return preset("park2024", "sparse_parity", model, size=size).run.train


@pytest.mark.parametrize("study, size", [("parity_1", "parity_1"), ("parity_2", "parity_2"), ("parity_3", "parity_3"), ("parity_4", "parity_4"), ("sparse_parity", None)])
def test_the_paper_tier_is_the_preset(study, size):
    for title, config in task_runs(study, "paper", ("transformer", "mamba", "standard_hybrid", "mambaformer", "transformer_mamba", "s4", "s4_mamba")).items():
        theirs = as_preset(title, size)
        ours = replace(config.train, model=replace(config.train.model, n_positions=theirs.model.n_positions))
        if size: ours = replace(ours, seeds=theirs.seeds, stop_below=None, log_every=theirs.log_every)
        assert ours == theirs and config.train.seeds[:3] == theirs.seeds
        assert config.train.model.n_positions in (0, None, 280), "a row a token, and one"


def test_the_gpu_tier_has_the_papers_sizes_and_the_same_task():
    runs, paper = convergence_runs("gpu"), convergence_runs("paper")
    assert list(runs) == list(paper) and [SIZES[f"parity_{i}"]["d_model"] for i in (1, 2, 3, 4)] == [64, 128, 128, 256]
    for label in runs:
        a, b = runs[label].train, paper[label].train
        assert replace(a, steps=b.steps, seeds=b.seeds, precision=b.precision, stop_below=b.stop_below) == b and a.stop_below <= b.stop_below and b.steps == 500_001
        assert a.steps <= 75_000 or label.startswith(("Mamba, ", "MambaFormer, ", "Transformer, ", LARGE_POSITIONS)), "what is late is waited for as long as a claim needs"
    assert set(published("park_parity_convergence").model.replace("Transformer w/ initial Mamba", "Transformer with initial Mamba")) | {LARGE_POSITIONS} == {label.rsplit(", ", 1)[0] for label in runs}
    sizes = {f"{row.layers} x {row.width}" for row in published("park_parity_convergence").itertuples()}
    assert sizes == {label.rsplit(", ", 1)[1] for label in runs}


def test_what_never_learns_is_waited_for_as_long_as_in_the_paper():
    "In units of what Mamba took: the paper's runs of 500,000 steps by the paper's Mamba, ours by our stored Mamba."
    rows = published("park_parity_convergence")
    theirs = {f"{row.layers} x {row.width}": row.median_steps for row in rows[rows.model == "Mamba"].itertuples()}
    ours = load_dataset(project_root() / COMMITTED / "park_parity_convergence" / "gpu.nc")
    runs = convergence_runs("gpu")
    for size in theirs:
        mamba = np.median(ours["converged"].sel(label=f"Mamba, {size}").values)
        for model in ("Transformer", *([LARGE_POSITIONS] if size != "2 x 256" else [])):
            steps = runs[f"{model}, {size}"].train.steps
            assert steps / mamba >= 500_000 / theirs[size], f"{model}, {size}: {steps} steps, {mamba} of Mamba"


def test_runs_are_shared_and_every_tier_has_them():
    for tier in TIERS:
        accuracy, convergence = experiment_runs("sparse_parity", tier), convergence_runs(tier)
        shared = {run.folder for run in accuracy.values()} & {run.folder for run in convergence.values()}
        assert len(shared) == (0 if tier == "paper" else 3)
        assert len({run.folder for run in convergence.values()}) == len(convergence) == 6 * len(PARITY_GRID[tier])


def test_parameters_are_counted_without_the_ends():
    for label, config in convergence_runs("gpu").items():
        model = build_model(config.train.model, 0)
        ends = sum(p.numel() for reader in (model.read_in, model.read_out) for p in reader.parameters())
        assert counted_parameters(config) == sum(p.numel() for p in model.parameters()) - ends, label
    # The paper's figure, read at its largest size: 1.658 million, with a table of 300 rows.
    assert counted_parameters(convergence_runs("paper")["Transformer, 2 x 256"]) + 20 * 256 == pytest.approx(1.658e6, rel=2e-3)


def accuracies(trained_to=40, tier="gpu", **by_who):
    rows = {"Bayes": (0.55, 0.98, 1.0), **by_who}
    return xr.Dataset({"value": (("who", "shift", "examples"), [[values] for values in rows.values()])}, {"who": list(rows), "shift": ["none"], "examples": [0, 10, trained_to]}, {"trained_to": trained_to, "no_context": 0.55, "tier": tier})


EDGES = {
    "as good as Bayes": (reaches_bayes("M"), dict(M=(0.5, 0.961, 0.981)), REPRODUCED), "a bit worse after 10": (reaches_bayes("M"), dict(M=(0.5, 0.959, 1.0)), PARTLY),
    "a bit worse at the end": (reaches_bayes("M"), dict(M=(0.5, 0.98, 0.979)), PARTLY), "hardly better than nothing": (reaches_bayes("M"), dict(M=(0.5, 0.59, 0.601)), PARTLY),
    "nothing": (reaches_bayes("M"), dict(M=(0.5, 0.99, 0.599), tier="paper"), NOT_REPRODUCED), "nothing yet": (reaches_bayes("M"), dict(M=(0.5, 0.99, 0.599)), UNDECIDED), "not there": (reaches_bayes("M"), {}, UNDECIDED),
    "prior": (stays_at_prior("T", "M"), dict(T=(0.5, 0.9, 0.579), M=(0, 0, 0.951)), REPRODUCED), "above prior": (stays_at_prior("T", "M"), dict(T=(0.5, 0.5, 0.581), M=(0, 0, 0.951)), PARTLY),
    "learnt": (stays_at_prior("T", "M"), dict(T=(0.5, 0.5, 0.951), M=(0, 0, 0.951)), NOT_REPRODUCED), "untaught": (stays_at_prior("T", "M"), dict(T=(0.5, 0.5, 0.5), M=(0, 0, 0.949)), UNDECIDED),
    "no reference": (stays_at_prior("T", "M"), dict(T=(0.5, 0.5, 0.5)), UNDECIDED),
    "low between": (stays_between("S", "M"), dict(S=(0.5, 0.5, 0.601), M=(0, 0, 0.951)), REPRODUCED), "high between": (stays_between("S", "M"), dict(S=(0.5, 0.5, 0.949), M=(0, 0, 0.951)), REPRODUCED),
    "below": (stays_between("S", "M"), dict(S=(0.5, 0.5, 0.599), M=(0, 0, 0.951)), PARTLY), "hardly": (stays_between("S", "M"), dict(S=(0.5, 0.5, 0.581), M=(0, 0, 0.951)), PARTLY), "nothing learnt": (stays_between("S", "M"), dict(S=(0.5, 0.5, 0.579), M=(0, 0, 0.951)), UNDECIDED), "above": (stays_between("S", "M"), dict(S=(0.5, 0.5, 0.951), M=(0, 0, 0.951)), NOT_REPRODUCED),
    "nothing learnt in the paper's training": (stays_between("S", "M"), dict(S=(0.5, 0.5, 0.579), M=(0, 0, 0.951), tier="paper"), NOT_REPRODUCED),
    "unknown reference": (stays_at_prior("T", "M"), dict(T=(0.5, 0.5, 0.5), M=(0, 0, math.nan)), UNDECIDED), "untaught between": (stays_between("S", "M"), dict(S=(0.5, 0.5, 0.8), M=(0, 0, 0.949)), UNDECIDED),
}


@pytest.mark.parametrize("name", EDGES)
def test_rules_of_accuracy_at_their_edges(name):
    judge, rows, verdict = EDGES[name]
    assert judge(accuracies(**rows))[0] == verdict


def medians_of(end=900, **by_model):
    rows = [(model, f"1 x {8 * 2**i}", 100 * 4**i, math.nan if median is None else median) for model, steps in by_model.items() for i, median in enumerate(steps)]
    columns = dict(zip(("model", "size", "parameters", "median"), map(list, zip(*rows))))
    return xr.Dataset({name: ("label", values) for name, values in columns.items()} | {"steps_done": ("label", [end] * len(rows))})


SOON = {
    "never": (never_converges("T", "M"), dict(T=(None, None, None), M=(None, None, 300)), REPRODUCED), "not patient": (never_converges("T", "M"), dict(T=(None, None), M=(None, 301)), UNDECIDED),
    "not patient at one": (never_converges("T", "M"), dict(T=(None, None), M=(301, 100)), UNDECIDED), "not at the largest": (never_converges("T", "M", True), dict(T=(None, None, 500), M=(300, 300, 100)), REPRODUCED),
    "only at the largest": (never_converges("T", "M", True), dict(T=(None, 500, None), M=(300, 300, 100)), PARTLY), "not run but at the largest": (never_converges("T", "M", True), dict(T=(None, None), M=(300, 300, 100)), REPRODUCED),
    "at the largest": (never_converges("T", "M"), dict(T=(None, 800), M=(100, 100)), PARTLY), "always": (never_converges("T", "M"), dict(T=(800, 800), M=(100, 100)), NOT_REPRODUCED),
    "no Mamba": (never_converges("T", "M"), dict(T=(None, None)), UNDECIDED), "no Transformer": (never_converges("T", "M"), dict(M=(100, 100)), UNDECIDED),
    "falls": (sooner_with_size("M"), dict(M=(800, 600, 400)), REPRODUCED), "falls little": (sooner_with_size("M"), dict(M=(800, 600, 401)), PARTLY), "falls in the end": (sooner_with_size("M"), dict(M=(800, 900, 400)), PARTLY),
    "stays": (sooner_with_size("M"), dict(M=(400, 400)), NOT_REPRODUCED), "beyond the end, far": (sooner_with_size("M"), dict(M=(None, None, 450)), REPRODUCED),
    "beyond the end, near": (sooner_with_size("M"), dict(M=(None, 451)), PARTLY), "grows": (sooner_with_size("M"), dict(M=(400, None)), NOT_REPRODUCED), "one size": (sooner_with_size("M"), dict(M=(400,)), UNDECIDED),
    "twice": (as_soon_as("F", "M"), dict(F=(400, 600), M=(200, 300)), REPRODUCED), "sooner": (as_soon_as("F", "M"), dict(F=(100, 100), M=(None, 300)), REPRODUCED),
    "at one": (as_soon_as("F", "M"), dict(F=(401, 600), M=(200, 300)), PARTLY), "at none": (as_soon_as("F", "M"), dict(F=(401, None), M=(200, 300)), NOT_REPRODUCED),
    "too early to tell": (as_soon_as("F", "M"), dict(F=(None, None), M=(450, None)), UNDECIDED), "too late to be alike": (as_soon_as("F", "M"), dict(F=(None, None), M=(449, None)), NOT_REPRODUCED),
    "later": (later_at_the_largest("F", "M", 2), dict(F=(1, 400, 400), M=(100, 200, 200)), REPRODUCED), "later at one": (later_at_the_largest("F", "M", 2), dict(F=(400, 399), M=(200, 200)), PARTLY),
    "no later": (later_at_the_largest("F", "M", 2), dict(F=(900, 399, 200), M=(100, 200, 200)), NOT_REPRODUCED), "later than the end": (later_at_the_largest("F", "M", 2), dict(F=(None, None), M=(450, 450)), REPRODUCED),
    "later, perhaps": (later_at_the_largest("F", "M", 2), dict(F=(None, None), M=(451, 450)), UNDECIDED), "later, at one size run": (later_at_the_largest("F", "M", 2), dict(F=(400,), M=(200, 200)), UNDECIDED),
    "everywhere": (converges_everywhere("F", "M"), dict(F=(1, 2)), REPRODUCED), "at a size": (converges_everywhere("F", "M"), dict(F=(None, 2), M=(300, 2)), PARTLY), "nowhere": (converges_everywhere("F", "M"), dict(F=(None, None), M=(300, 2)), NOT_REPRODUCED),
    "not yet at a size": (converges_everywhere("F", "M"), dict(F=(None, 2), M=(301, 2)), UNDECIDED), "not yet at one": (converges_everywhere("F", "M"), dict(F=(None, None), M=(301, 2)), UNDECIDED), "nor another": (converges_everywhere("F", "M"), dict(F=(None, 2), M=(None, 2)), UNDECIDED),
    "at a size, and not yet at another": (converges_everywhere("F", "M"), dict(F=(None, None, 2), M=(301, 300, 2)), PARTLY),
    "not run": (converges_everywhere("F", "M"), dict(M=(1, 2)), UNDECIDED), "run at one size": (converges_everywhere("F", "M"), dict(F=(1,)), UNDECIDED),
    "not at all sizes": (converges_everywhere("F", "M"), dict(F=(1, 2), M=(1, 2, 3)), UNDECIDED), "not at all sizes, and not always": (converges_everywhere("F", "M"), dict(F=(None, 2), M=(1, 2, 3)), PARTLY),
    "not at all sizes, and at none": (converges_everywhere("F", "M"), dict(F=(None, None), M=(1, 2, 3)), UNDECIDED), "never, but not at all sizes": (never_converges("T", "M"), dict(T=(None, None), M=(100, 100, 100)), UNDECIDED),
    "never, with nothing to be patient with at one": (never_converges("T", "M"), dict(T=(None, None, None), M=(100, 100)), UNDECIDED), "never at one size": (never_converges("T", "M"), dict(T=(None,), M=(100,)), UNDECIDED), "never, but for the largest, which Mamba lacks": (never_converges("T", "M", True), dict(T=(None, None, 500), M=(100, 100)), REPRODUCED),
    "falls, but not at all sizes": (sooner_with_size("M"), dict(M=(800, 400), T=(1, 1, 1)), UNDECIDED),
    "as soon at one, too early at one": (as_soon_as("F", "M"), dict(F=(400, None), M=(200, 600)), UNDECIDED), "late at one, too early at one": (as_soon_as("F", "M"), dict(F=(401, None), M=(200, 600)), UNDECIDED),
    "both, and too early at one": (as_soon_as("F", "M"), dict(F=(400, 401, None), M=(200, 200, 600)), PARTLY), "as soon, not run at one": (as_soon_as("F", "M"), dict(F=(400, 400), M=(200, 200, 200)), UNDECIDED),
    "as soon, Mamba not run at one": (as_soon_as("F", "M"), dict(F=(400, 400, 400), M=(200, 200)), UNDECIDED), "as soon at one size": (as_soon_as("F", "M"), dict(F=(100,), M=(100,)), UNDECIDED),
    "later, Mamba not run at the largest": (later_at_the_largest("F", "M", 2), dict(F=(900, 900, 900), M=(100, 100)), UNDECIDED),
    "always, but not at all sizes": (never_converges("T", "M"), dict(T=(800, 800), M=(100, 100, 100)), UNDECIDED), "at one, not at all sizes": (never_converges("T", "M"), dict(T=(None, 800), M=(100, 100, 100)), PARTLY),
}


@pytest.mark.parametrize("name", SOON)
def test_rules_of_convergence_at_their_edges(name):
    judge, rows, verdict = SOON[name]
    assert judge(medians_of(**rows))[0] == verdict


ENDS = {
    "a small run that ended early": (sooner_with_size("M"), {"M": [(None, 100), (400, 900)]}, UNDECIDED), "a large run that ended early": (sooner_with_size("M"), {"M": [(400, 900), (None, 300)]}, UNDECIDED),
    "a large run that ended late": (sooner_with_size("M"), {"M": [(400, 900), (None, 400)]}, NOT_REPRODUCED),
    "soon after another's end": (as_soon_as("F", "M"), {"F": [(400, 900), (400, 900)], "M": [(None, 200), (200, 900)]}, REPRODUCED), "long after another's end": (as_soon_as("F", "M"), {"F": [(401, 900), (400, 900)], "M": [(None, 200), (200, 900)]}, UNDECIDED),
    "later than what ended early": (later_at_the_largest("F", "M", 2), {"F": [(400, 900), (400, 900)], "M": [(200, 900), (None, 200)]}, UNDECIDED), "sooner than what ended": (later_at_the_largest("F", "M", 2), {"F": [(400, 900), (400, 900)], "M": [(200, 900), (None, 201)]}, PARTLY),
}


@pytest.mark.parametrize("name", ENDS)
def test_rules_of_convergence_where_runs_end_at_different_steps(name):
    judge, rows, verdict = ENDS[name]
    numbers = medians_of(**{model: [median for median, _ in row] for model, row in rows.items()})
    assert judge(numbers.assign(steps_done=("label", [end for row in rows.values() for _, end in row])))[0] == verdict


def test_claims_ask_experiments_that_exist_for_models_that_they_have():
    for name, claim in CLAIMS.items():
        if claim.experiment not in ("sparse_parity", "park_parity_convergence"): continue
        assert claim.lowest_tier in ("laptop", "gpu") and claim.experiment in EXPERIMENTS, name
    labels = {label.rsplit(", ", 1)[0] for label in convergence_runs("gpu")}
    assert {"Transformer", "Mamba", "MambaFormer", "Transformer with initial Mamba", LARGE_POSITIONS} <= labels and {"S4", "S4-Mamba"} < experiment_runs("sparse_parity", "gpu").keys()


@pytest.mark.parametrize("name", ["sparse_parity", "park_parity_convergence"])
def test_a_notebook_draws_from_nothing(name, smoke):
    stem = smoke.root / name / "smoke"
    verdicts = json.loads(stem.with_suffix(".verdicts.json").read_text())
    assert verdicts.keys() == {claim for claim, entry in CLAIMS.items() if entry.experiment == name} and {entry["verdict"] for entry in verdicts.values()} == {UNDECIDED}
    numbers, svg = load_dataset(f"{stem}.nc"), stem.with_suffix(".svg").read_text()
    assert "Tier: smoke" in svg and all(title in svg for title in {label.rsplit(", ", 1)[0] if name != "sparse_parity" else label for label in experiment_runs(name, "smoke")})
    record = load_dataset(smoke.root / "runs" / experiment_runs(name, "smoke")[list(experiment_runs(name, "smoke"))[1]].folder / "record.nc")
    if name == "sparse_parity": np.testing.assert_array_equal(numbers["value"].sel(who="Mamba", shift="none"), record["pooled"].sel(shift="none"))
    else: np.testing.assert_allclose(numbers["lowest_loss"].isel(label=1), record["loss"].min("step"))


@pytest.fixture(scope="module")
def disagreeing(smoke):
    "The smallest tier, runs and all."
    return smoke.root


def test_the_notebook_of_disagreements_draws_from_nothing(disagreeing):
    stem = disagreeing / "disagreements" / "smoke"
    verdicts = json.loads(stem.with_suffix(".verdicts.json").read_text())
    assert verdicts.keys() == {name for name, claim in CLAIMS.items() if claim.experiment == "disagreements"} and len(verdicts) == len(COMPARISONS)
    svg, numbers = stem.with_suffix(".svg").read_text(), load_dataset(f"{stem}.nc")
    assert "Tier: smoke" in svg and all(comparison.title in svg for comparison in COMPARISONS.values())
    assert numbers.sizes["label"] == len(experiment_runs("disagreements", "smoke"))
    runs = experiment_runs("disagreements", "smoke")
    for name, comparison in COMPARISONS.items():
        for model, pair in comparison.runs("smoke").items():
            for way, config in zip(comparison.ways, pair):
                label = f"{model}, {comparison.title}: {way}"
                record = load_dataset(disagreeing / "runs" / config.folder / "record.nc")
                n = config.train.task.n_points - 1
                scores = record["score"].sel(shift="none")
                expected = {"steps": lambda: slow_convergence(record["loss"].values, record["step"].values, learnt_loss(config.train.task)), "error": lambda: scores.sel(examples=n),
                            "growth": lambda: scores.sel(examples=4 * n) / scores.sel(examples=n)}[comparison.measure]()
                np.testing.assert_allclose(numbers["value"].sel(label=label, seed=list(config.train.seeds)), expected)
                assert runs[label] == config


DIFFERS = {
    "hybrid_positions": {"model.position_std": (0.02, 1.0)}, "parity_sets": {"task.index_set": ("sequence", "batch")}, "s4_dropout": {"model.dropout": (0.0, 0.1)},
    "s4_norm": {"model.pattern": None, "model.final_norm": (False, True)}, "s4_rate": {"lr": None}, "outliers": {"task.outliers": ("as_described", "as_released")}, "schedule": {"schedule": ("constant", "cosine")},
}


def differences(a, b, path=()):
    "Paths at which two nested dictionaries differ, and both values."
    if not (isinstance(a, dict) and isinstance(b, dict)): return {} if a == b else {".".join(path): (a, b)}
    return {key: value for name in a.keys() | b.keys() for key, value in differences(a.get(name), b.get(name), (*path, name)).items()}


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", COMPARISONS)
def test_two_ways_differ_in_one_thing(name, tier):
    for first, second in COMPARISONS[name].runs(tier).values():
        found = differences(first.train.to_dict(), second.train.to_dict())
        if COMPARISONS[name].measure == "steps" and found.pop("steps", None):  # how long is waited for what is measured, at a constant rate
            assert first.train.schedule == second.train.schedule == "constant" and first.train.steps < second.train.steps and second.train.model.position_std == 1.0
        assert found.keys() == DIFFERS[name].keys()
        for path, values in DIFFERS[name].items(): assert values is None or found[path] == values
        asked = [{exam.shift: (exam.n_points, exam.at) for exam in run.exams}["none"] for run in (first, second)]
        assert asked[0] == asked[1]
        if name == "s4_rate": assert first.train.lr == pytest.approx(10 * second.train.lr)
        if name == "s4_norm": assert (first.train.model.pattern, second.train.model.pattern) == (first.train.model.pattern, first.train.model.pattern.replace("s4d_post", "s4d"))


def test_the_ways_are_those_of_the_presets():
    released = preset("park2024", "sparse_parity", "standard_hybrid", "as_released").run.train
    assert released.model.position_std == 1.0 and released.task == TASK_SIZES["sparse_parity_batch"]["paper"].task
    s4 = {variant: preset("grazzi2024", "skewed_linear_regression", "s4", variant).run.train for variant in ("as_described", "as_released")}
    ours = COMPARISONS["s4_dropout"].runs("paper")["S4"]
    assert (ours[0].train.model, ours[1].train.model) == (s4["as_described"].model, s4["as_released"].model) and ours[0].train.lr == s4["as_described"].lr == 1e-3


def measured(name, *models, at_length=0.1, end=1000):
    rows = [(f"M{i}", way, seeds) for i, ways in enumerate(models) for way, seeds in enumerate(ways)]
    model, way, values = map(list, zip(*rows))
    return xr.Dataset({"value": (("label", "seed"), values), "at_length": (("label", "seed"), [[at_length] * len(values[0])] * len(rows)), "steps_done": ("label", [end] * len(rows)), "n_seeds": ("label", [len(values[0])] * len(rows)),
                       "comparison": ("label", [name] * len(rows)), "model": ("label", model), "way": ("label", way)})


NAN = math.nan
CHOICES = {
    "larger": ("outliers", [([[0.2, 0.2], [0.301, 0.301]])], {}, REPRODUCED), "smaller": ("outliers", [([[0.301, 0.301], [0.2, 0.2]])], {}, REPRODUCED), "hardly larger": ("outliers", [([[0.2, 0.2], [0.299, 0.299]])], {}, NOT_REPRODUCED),
    "overlapping": ("outliers", [([[0.1, 0.4], [0.39, 0.4]])], {}, PARTLY), "in one model": ("outliers", [([[0.2, 0.2], [0.2, 0.2]]), ([[0.2, 0.2], [0.4, 0.4]])], {}, REPRODUCED),
    "not learnt": ("outliers", [([[0.2, 0.2], [0.8, 0.8]])], {"at_length": 0.5}, UNDECIDED), "just learnt": ("outliers", [([[0.2, 0.2], [0.8, 0.8]])], {"at_length": 0.499}, REPRODUCED),
    "later": ("parity_sets", [([[100, 120], [200, 210]])], {}, REPRODUCED), "beyond the end": ("parity_sets", [([[600, 600], [NAN, NAN]])], {}, REPRODUCED), "too near the end": ("parity_sets", [([[700, 700], [NAN, NAN]])], {}, UNDECIDED),
    "one seed beyond": ("parity_sets", [([[600, 610], [900, NAN]])], {}, REPRODUCED), "never": ("parity_sets", [([[NAN, NAN], [NAN, NAN]])], {}, UNDECIDED), "as soon": ("parity_sets", [([[600, 700], [700, 800]])], {}, NOT_REPRODUCED),
}


@pytest.mark.parametrize("name", CHOICES)
def test_rules_of_choices_at_their_edges(name):
    comparison, models, options, verdict = CHOICES[name]
    assert choice_matters(comparison)(measured(comparison, *models, **options))[0] == verdict
    assert choice_matters("schedule")(measured(comparison, *models, **options))[0] == UNDECIDED


@pytest.mark.parametrize("ways, ends, ratio, apart", [
    ([[900, 900], [NAN, NAN]], (1000, 500), 1, False), ([[NAN, NAN], [900, 900]], (500, 1000), 1, False),  # ended before the other had learnt
    ([[400, 900], [NAN, NAN]], (1000, 700), 700 / 650, False), ([[NAN, NAN], [100, 200]], (500, 1000), 150 / 500, True),
    ([[100, 100, NAN], [300, 300, 300]], (200, 1000), 3, False)])  # the last seed of the first way may have needed more than 300
def test_what_ended_early_is_not_said_to_have_learnt_early(ways, ends, ratio, apart):
    numbers = measured("parity_sets", ways).assign(steps_done=("label", list(ends)))
    row = compare_ways(numbers, "parity_sets").iloc[0]
    assert (row.ratio, row.apart, row.known) == (pytest.approx(ratio), apart, True)
    if ratio == 1: assert choice_matters("parity_sets")(numbers)[0] == UNDECIDED


def test_seeds_of_other_runs_are_not_seeds_that_did_not_learn():
    runs, records = experiment_runs("disagreements", "smoke"), {}
    for label, steps, n_seeds in (("Mamba, Parity's coordinates: a set a prompt", 10, 2), ("Mamba, Parity's coordinates: a set a batch", 20, 2),
                                  ("Standard Hybrid, 1 x 8, Standard Hybrid's positions: small", 20, 5), ("Standard Hybrid, 1 x 8, Standard Hybrid's positions: as released", 20, 5)):
        data = {"loss": (("seed", "step"), [[0.0 if at >= steps else 0.7 for at in (10, 20, 30)]] * n_seeds)}
        records[label] = xr.Dataset(data, {"seed": range(n_seeds), "step": [10, 20, 30]}, {"configuration": json.dumps(runs[label].to_dict())})
    numbers = disagreement_numbers(records)
    row = compare_ways(numbers, "parity_sets").iloc[0]
    marks = marks_of_ways(numbers, records)
    assert marks.groupby("label").seed.apply(list).to_dict() == {label: list(range(record.sizes["seed"])) for label, record in records.items()} and marks.reached.all()
    late = records["Mamba, Parity's coordinates: a set a batch"]
    late["loss"][1] = 0.7
    marks = marks_of_ways(disagreement_numbers(records), records)
    assert marks[~marks.reached][["model", "comparison", "way", "seed", "value"]].values.tolist() == [["Mamba", "parity_sets", 1, 1, 30]]
    with pytest.raises(ValueError, match="unknown run .*Standard Hybrid, 1 x 8.*: choose one of Mamba"): marks_of_ways(numbers, dict(list(records.items())[:2]))
    assert (row["first"], row.second, row.ratio, row.apart, row.known, row.first_late, row.second_late) == (10, 20, 2, True, True, False, False)
    with pytest.raises(ValueError, match="no comparison has a record of both its ways: there are Mamba, Parity's coordinates: a set a prompt"): disagreement_numbers(dict(list(records.items())[:1]))
    with pytest.raises(ValueError, match="unknown comparison 'parity_set'.*mean 'parity_sets'"): way_label("parity_set", "Mamba", "a set a batch")


def test_one_seed_shows_no_more_than_half():
    judge = choice_matters("s4_norm")
    two = measured("s4_norm", [[0.2, 0.2], [0.8, 0.8]])
    assert judge(two)[0] == REPRODUCED and judge(two.isel(seed=[0]))[0] == PARTLY and "(one seed)" in judge(two.isel(seed=[0]))[1]
    assert judge(measured("s4_norm", [[0.2, 0.2], [0.8, NAN]]))[0] == PARTLY


def test_a_ratio_is_that_of_geometric_means():
    rng = np.random.default_rng(1)
    for _ in range(20):
        first, second = rng.uniform(0.01, 1, (2, 2))
        row = compare_ways(measured("s4_norm", [first, second]), "s4_norm").iloc[0]
        assert row.ratio == pytest.approx(math.sqrt(math.prod(second)) / math.sqrt(math.prod(first)))
        assert row.apart == (all(a < b for a in first for b in second) or all(a > b for a in first for b in second))
