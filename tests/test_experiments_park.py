"""Park et al.'s nine tasks: what was spent, what is gained, whose runs they are, and a table drawn from what there is."""
import itertools
import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from torch.utils.flop_counter import FlopCounterMode

from iclrepro import experiments
from iclrepro.claims import (FAILED_BELOW, MARK_FAILED, MARK_GAP, MARK_SOLVED, NOT_REPRODUCED, PARTLY, REPRODUCED, SOLVED_FROM, UNDECIDED, comparable_within, end_errors, gained, mark, marks_agree, paper_marks, solves,
                             table_marks)
from iclrepro.cli import draw
from iclrepro.experiments import (EXPERIMENTS, MOST_WINDOWS, OUTLIER_STUDIES, REGRESSION_STUDIES, STUDY_TITLES, TABLE_MODELS, TABLE_STUDIES, TASK_SIZES, TIERS, by_study, collect, experiment_runs,
                                  Settings, learning_curves, no_context, not_run, printed_error, study_at, task_runs)
from iclrepro.models import TITLES, build_model, predict
from iclrepro.presets import preset
from iclrepro.prompts import Draws
from iclrepro.results import load_dataset
from iclrepro.runs import run
from iclrepro.tasks import Curriculum, OrthogonalOutliers, Ramp, SparseParity, make_task
from iclrepro.training import TrainConfig, flops_by_step, training_flops


def training(model="transformer", steps=37, points=Ramp(3, 8, 2, 7), **options):
    config = task_runs("orthogonal_outliers", "smoke", [model])[TITLES[model]].train
    return replace(config, task=OrthogonalOutliers(3, points.end), curriculum=Curriculum(Ramp(3, 3), points), steps=steps, batch_size=4, **options)


@pytest.mark.parametrize("model", ["transformer", "mamba", "mambaformer", "s4"])
@pytest.mark.parametrize("points", [Ramp(3, 8, 2, 7), Ramp(8, 8), Ramp(3, 8, 5, 1), Ramp(7, 8, 1, 37), Ramp(7, 8, 1, 36)], ids=str)
def test_flops_are_a_sum_over_steps(model, points):
    config, total, expected = training(model, points=points), 0, [0]
    built = build_model(config.model, 0)
    for step in range(config.steps):
        total += sum(3 * built.flops(2 * points.at(step) - 1) for _ in range(config.batch_size))
        expected.append(total)
    asked = [0, 36, 1, 7, 7, 37, 6, 8, 14]
    assert flops_by_step(config, asked) == [expected[step] for step in asked] and flops_by_step(config, []) == []
    assert training_flops(config) == len(config.seeds) * expected[-1]


def test_flops_are_those_that_torch_counts():
    """Torch counts the products of matrices, forwards and backwards. Ours adds attention, 4 T^2 d forwards, and the gradient of the tokens, which nobody asks for:
    three times the forward pass, whatever a layer needs."""
    config = training("transformer_nope", steps=3, points=Ramp(3, 7, 2, 1), seeds=(0,))
    model, expected = build_model(config.model, 0), [0]
    for step, points in enumerate((3, 5, 7)):
        prompt = config.task.sample(Draws(0, step), config.batch_size, points)
        with FlopCounterMode(display=False) as counter: config.task.loss(predict(model, prompt), prompt).backward()
        products = sum(n for kind, n in counter.get_flop_counts()["Global"].items() if "mm" in str(kind))
        tokens, width = 2 * points - 1, config.model.d_model
        expected.append(expected[-1] + products + 4 * (3 * 4 * tokens**2 * width + 2 * tokens * config.task.dim * width))
    assert flops_by_step(config, range(4)) == expected


@pytest.mark.parametrize("step", [-1, 38])
def test_steps_that_training_does_not_reach_are_refused(step):
    with pytest.raises(ValueError, match=f"steps has {step}: each must be in 0 … 37"): flops_by_step(training(), [3, step])


@pytest.mark.parametrize("windows", [1, 2, MOST_WINDOWS, MOST_WINDOWS + 1, 1001])
def test_learning_curves_are_thinned_and_keep_their_end(windows):
    config = replace(task_runs("many_outliers", "smoke", ["mamba"])["Mamba"], name="x")
    config = replace(config, train=replace(config.train, steps=10 * windows))
    record = xr.Dataset({"loss": (("seed", "step"), np.arange(2.0 * windows).reshape(2, windows))}, {"seed": [0, 1], "step": 10 * np.arange(1, windows + 1)}, {"configuration": json.dumps(config.to_dict())})
    curves = learning_curves({"Mamba": record})
    assert min(windows, MOST_WINDOWS // 2) <= curves.sizes["step"] <= MOST_WINDOWS and curves.step.values[-1] == 10 * windows
    assert (curves["loss"].sel(model="Mamba") == record["loss"].sel(step=curves.step)).all() and curves["flops"].values[0].tolist() == flops_by_step(config.train, curves.step.values.tolist())


@pytest.mark.parametrize("d, k", [(1, 1), (4, 1), (4, 2), (5, 3), (4, 4), (10, 2)])
def test_a_parity_without_context_is_the_majority_of_all_products(d, k):
    "By enumeration of all inputs and all sets."
    right = 0.0
    for x in itertools.product((-1, 1), repeat=d):
        share = np.mean([math.prod(chosen) == 1 for chosen in itertools.combinations(x, k)])
        right += max(share, 1 - share)
    assert no_context(SparseParity(d, 8, k)) == pytest.approx(right / 2**d, abs=1e-12)
    if (d, k) == (10, 2): assert no_context(SparseParity(d, 8, k)) == 0.5546875


@pytest.mark.parametrize("share, expected", [
    (1.0, MARK_SOLVED), (SOLVED_FROM, MARK_SOLVED), (np.nextafter(SOLVED_FROM, 0), MARK_GAP), (FAILED_BELOW, MARK_GAP), (np.nextafter(FAILED_BELOW, 0), MARK_FAILED), (0.0, MARK_FAILED), (-3.0, MARK_FAILED)])
def test_marks_at_their_edges(share, expected): assert mark(share) == expected


def test_of_words_and_symbols_nothing_is_known_without_context():
    for study in ("associative_recall", "formal_languages", "few_shot_mappings"):
        with pytest.raises(ValueError, match="the layout is '(symbols|mappings)'"): no_context(make_task(study))


def test_nothing_to_gain_gives_no_mark():
    assert np.isnan(gained(0.5, 1.0, 1.0)) and np.isnan(gained(0.5, 1.0, 1.2))
    with pytest.raises(ValueError, match="the share is nan"): mark(np.nan)


def stored(values, no_context, accuracy=0, half_width=0.1, printed=np.nan):
    "Numbers of one study: {who: score at the end}."
    dims, value = ("study", "who", "examples"), np.array([[[np.nan, score, np.nan] for score in values.values()]])
    return xr.Dataset({"value": (dims, value), "low": (dims, value - half_width), "high": (dims, value + half_width), "no_context": ("study", [no_context]), "trained_to": ("study", [1]), "printed": ("study", [printed]),
                       "accuracy": ("study", [accuracy])}, {"study": ["decision_tree"], "who": list(values), "examples": [0, 1, 2]}, {"tier": "gpu"})


@pytest.mark.parametrize("transform, no_context, accuracy", [(lambda e: e, 2.0, 0), (lambda e: 1 - e, -1.0, 1)], ids=["error", "accuracy"])
def test_a_table_by_hand(transform, no_context, accuracy):
    "Error without context 2, yardstick 0.1: shares (2 - e) / 1.9. An accuracy is one minus an error, and its interval turns round."
    errors = {"Transformer": 0.1, "Mamba": 0.195, "MambaFormer": 0.2, "Least squares": 0.1, "S4": 1.525, "S4-Mamba": 1.53, "LSTM": np.nan}
    numbers = stored({who: transform(e) for who, e in errors.items()}, no_context, accuracy)
    table = table_marks(numbers).set_index("who")
    assert table.mark.to_dict() == {"Transformer": MARK_SOLVED, "Mamba": MARK_SOLVED, "MambaFormer": MARK_GAP, "S4": MARK_GAP, "S4-Mamba": MARK_FAILED} and table.learnt.all()
    for who, row in table.iterrows():
        assert (row.error, row.share) == pytest.approx((errors[who], (2 - errors[who]) / 1.9))
        assert (row.low, row.high) == pytest.approx(((1.9 - errors[who]) / 1.9, min(1, (2.1 - errors[who]) / 1.9)))
    ends = end_errors(numbers, "decision_tree")
    assert (ends.low < ends.error).all() and (ends.error < ends.high).all() and "LSTM" not in ends.index


@pytest.mark.parametrize("errors, learnt", [((0.99, 1.5, 0.99), True), ((1.01, 1.5, 1.01), False), ((0.9, 0.9, 0.9), True), ((2.0, 2.0, 2.0), False), ((2.5, 2.2, 2.0), False)])
def test_beginners_are_told_from_the_learned(errors, learnt):
    table = table_marks(stored(dict(zip(("Transformer", "Mamba", "MambaFormer"), errors)), 2.0))
    assert table.learnt.tolist() == [learnt] * 3
    if min(errors) >= 2: assert set(table.mark) == {MARK_FAILED}


@pytest.mark.parametrize("printed, learnt", [(np.nan, True), (0.4, True), (0.316, True), (0.315, False), (0.0, False)])
def test_beginners_are_told_by_what_the_papers_models_reach(printed, learnt):
    "Error without context 2, best 0.4: 1.6 of 1.684 and less is 95 per cent. Shares and marks stay what they are among the three."
    table = table_marks(stored({"Transformer": 1.9, "Mamba": 0.5, "MambaFormer": 0.4}, 2.0, printed=printed))
    assert table.learnt.tolist() == [learnt] * 3
    assert table.share.tolist() == pytest.approx([0.1 / 1.6, 1.5 / 1.6, 1.0]) and table.mark.tolist() == [MARK_FAILED, MARK_GAP, MARK_SOLVED]


@pytest.mark.parametrize("study, expected", [
    ("linear_regression", min(0.000572, 0.000530)), ("relu_network", (0.1622 + 0.1542 + 0.1513) / 3), ("decision_tree", (0.0057 + 0.00104 + 0.001132) / 3), ("chain_of_thought", 0.0067)])
def test_what_the_papers_models_reach(study, expected):
    "Least of the models' means after the longest context, as read in the tables; of no other task, and at no other length."
    task = make_task(study)
    assert printed_error(study, task) == pytest.approx(expected, rel=1e-9)
    assert np.isnan(printed_error(study, replace(task, n_points=task.n_points - 1)))
    assert study == "decision_tree" or np.isnan(printed_error("decision_tree", task))


def test_models_are_named_in_the_papers_order():
    assert table_marks(stored({"Least squares": 0.0, "MambaFormer": 0.1, "Mamba": 0.1, "Transformer": 0.1}, 2.0)).who.tolist() == ["Transformer", "Mamba", "MambaFormer"]


@pytest.mark.parametrize("tier, verdict", [("gpu", UNDECIDED), ("paper", NOT_REPRODUCED)])
def test_the_best_of_beginners_has_solved_nothing(tier, verdict):
    "Three who are alike and far from what the papers' models reach: marks would have them solve it, and after the paper's own training, too, nobody has."
    numbers = stored(dict.fromkeys(("Transformer", "Mamba", "MambaFormer"), 0.9), 2.0, printed=0.1).assign_attrs(tier=tier).assign_coords(study=["relu_network"])
    assert set(table_marks(numbers).mark) == {MARK_SOLVED}
    for judge in (marks_agree("relu_network"), solves("MambaFormer", ["relu_network"])):
        got, evidence = judge(numbers)
        assert got == verdict and "at this tier" in evidence


@pytest.mark.parametrize("spent, loss, verdict", [(9e16, 0.25, REPRODUCED), (9e16, 1.0, PARTLY), (9e16, 1.9, UNDECIDED), (1e17, 1.9, NOT_REPRODUCED), (2e17, 1.9, NOT_REPRODUCED)])
def test_a_run_that_has_arithmetic_left_has_not_failed(spent, loss, verdict):
    "Another has come from 2 to 0.2 by its end. What is reached at the limit or beyond does not count, but that it was reached does."
    numbers = stored({"Transformer": 0.1, "MambaFormer": 0.1}, 2.0).assign(dim=("study", [1]))
    curves = xr.Dataset({"loss": (("study", "model", "seed", "step"), [[[[2.0, 1.0, 0.2]], [[2.0, loss, loss]]]]), "flops": (("study", "model", "step"), [[[1e16, 2e16, 3e16], [1e16, 5e16, spent]]])},
                        {"model": ["Transformer", "MambaFormer"], "step": [1, 2, 3]})
    got, evidence = comparable_within("MambaFormer", "decision_tree")(numbers.merge(curves))
    assert got == verdict, evidence


def test_the_best_yardstick_counts():
    "Two of three are equal and far from what least squares does: a gap, and nobody has learnt."
    table = table_marks(stored({"Transformer": 0.5, "Mamba": 0.5, "MambaFormer": 0.6, "Least squares": 0.0}, 2.0))
    assert set(table.mark) == {MARK_GAP} and not table.learnt.any()


def test_the_papers_table():
    theirs = {study: paper_marks(study) for study in TABLE_STUDIES}
    assert all(set(row) == {"Transformer", "Mamba", "MambaFormer"} for row in theirs.values()) and len(theirs) == 9
    others = {(study, who): given for study, row in theirs.items() for who, given in row.items() if given != MARK_SOLVED}
    assert others == {("decision_tree", "Mamba"): MARK_GAP, ("orthogonal_outliers", "Mamba"): MARK_GAP, ("many_outliers", "Transformer"): MARK_GAP, ("sparse_parity", "Transformer"): MARK_FAILED, ("vector_mqar", "Mamba"): MARK_FAILED}
    with pytest.raises(ValueError, match="unknown row of Table 1 'formal_languages'"): paper_marks("formal_languages")


@pytest.mark.parametrize("model", ["transformer", "mamba", "mambaformer", "standard_hybrid", "s4", "s4_mamba"])
@pytest.mark.parametrize("study", [*OUTLIER_STUDIES, *REGRESSION_STUDIES[1:]])
def test_the_paper_tier_is_the_preset(study, model):
    "Of the released outliers too the models are as described: what differs is the task."
    released = study.endswith("_as_released")
    theirs = preset("park2024", study.removesuffix("_as_released"), model).run
    task = preset("park2024", "orthogonal_outliers", model, "as_released").run.train.task if released else theirs.train.task
    ours, = task_runs(study_at(study, "paper"), "paper", [model]).values()
    assert ours.train == replace(theirs.train, task=task) and ours.exams == theirs.exams


def test_the_gpu_tier_is_the_papers_model_for_fewer_steps():
    for study in OUTLIER_STUDIES:
        for ours, theirs in zip(task_runs(study, "gpu", TABLE_MODELS).values(), task_runs(study, "paper", TABLE_MODELS).values()):
            assert (ours.train.precision, ours.train.steps, ours.train.seeds) == ("bfloat16", *((25_000, (0,)) if study == "many_outliers" else (50_000, (0, 1))))
            changed = {name: getattr(theirs.train, name) for name in ("precision", "steps", "seeds", "curriculum")}
            assert replace(ours.train, **changed) == theirs.train and ours.exams == theirs.exams
            assert ours.train.curriculum.points.at(ours.train.steps // 2) == ours.train.task.n_points


@pytest.mark.parametrize("tier", TIERS)
def test_the_table_has_the_runs_of_other_experiments(tier):
    "Wherever another experiment trains that model on that task, it is the same run."
    table = experiment_runs("park_table1", tier)
    others = {config.folder for name in EXPERIMENTS if name != "park_table1" and tier in EXPERIMENTS[name].tiers for config in experiment_runs(name, tier).values()}
    mine = {config.folder for name in ("park_regression", "park_outliers") for config in experiment_runs(name, tier).values()}
    assert set(by_study(table)) == {study for study in TABLE_STUDIES if tier in TASK_SIZES.get(study_at(study, tier), {})}
    for label, config in table.items():
        who, _, study = label.partition(", ")
        assert config.folder in others, label
        assert (config.folder in mine) == (study in [STUDY_TITLES[s] for s in (*REGRESSION_STUDIES, "orthogonal_outliers", "many_outliers")])
        assert who in [TITLES[name] for name in TABLE_MODELS]


def test_labels_name_model_and_study():
    for name in ("park_regression", "park_outliers", "park_table1"):
        for tier in TIERS:
            runs = experiment_runs(name, tier)
            assert {f"{who}, {STUDY_TITLES[study]}" for study, chosen in by_study(runs).items() for who in chosen} == set(runs)


def test_runs_that_are_missing_are_named_together():
    settings = Settings("park_regression", "gpu", Path(), "cpu", False)
    kept = lambda *missing: {label: None for label in experiment_runs("park_regression", "gpu") if not label.endswith(missing) and not label.startswith(missing)}
    assert not_run(settings, kept("nothing")) == []
    assert not_run(settings, kept("S4", ", decision tree")) == ["Not run yet: decision tree.", "Not run yet of S4, S4-Mamba: linear regression; sparse linear regression; ReLU network."]
    assert not_run(settings, {label: None for label in kept("Mamba, ReLU", "S4") if label != "MambaFormer, linear regression"}) == [
        "Not run yet of MambaFormer, S4, S4-Mamba: linear regression.", "Not run yet of S4, S4-Mamba: sparse linear regression; decision tree.", "Not run yet of Mamba, S4, S4-Mamba: ReLU network."]


def test_a_table_is_drawn_from_what_there_is(tmp_path):
    "Two records of twenty-seven, nothing trained: the face says what is missing, and no verdict is given."
    labels = ["Transformer, many outliers", "Mamba, many outliers"]
    for label in labels: run(experiment_runs("park_table1", "smoke")[label], tmp_path)
    draw("park_table1", "smoke", str(tmp_path), train_missing=False)
    text = " ".join(ElementTree.parse(tmp_path / "park_table1" / "smoke.svg").getroot().itertext())
    assert "Tier: smoke" in text and "Not run yet: linear regression; " in text and "Not run yet of MambaFormer: many outliers." in text
    numbers = load_dataset(tmp_path / "park_table1" / "smoke.nc")
    assert numbers["study"].values.tolist() == ["many_outliers"] and set(numbers.who.values) == {"Transformer", "Mamba", *experiments.YARDSTICKS["many_outliers"]}
    assert set(json.loads(numbers.attrs["runs"])) == set(labels)
    verdicts = json.loads((tmp_path / "park_table1" / "smoke.verdicts.json").read_text())
    assert len(verdicts) == 10 and {v["verdict"] for v in verdicts.values()} == {"not yet run at a tier that can tell"}
