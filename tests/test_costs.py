"""What runs took and would take, against the files beside the records and against arithmetic done another way."""
import csv
import json
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import xarray as xr
from project import ROOT

from iclrepro.costs import beside_grazzi, predicted, predicted_at, predicted_hours, rates, spent, stored_runs, timed_like
from iclrepro.experiments import EXPERIMENTS, experiment_runs, runs_at
from iclrepro.models import SequenceModel

RUNS = ROOT / "figures" / "runs"


@pytest.mark.parametrize("tier", ["laptop", "gpu"])
def test_spent_is_what_the_files_say(tier):
    folders = {folder for name in EXPERIMENTS if (numbers := ROOT / "figures" / name / f"{tier}.nc").exists() for folder in names_in(numbers)}
    assert set(stored_runs(tier)) == folders
    costs = [json.loads((RUNS / folder / "cost.json").read_text()) for folder in folders]
    records = [xr.load_dataset(RUNS / folder / "record.nc") for folder in folders]
    row = spent().set_index("tier").loc[tier]
    assert row.runs == len(folders) and row.trainings == sum(len(record.seed) for record in records)
    assert row["hours of training"] == pytest.approx(sum(cost["training_seconds"] for cost in costs) / 3600, abs=0.006)
    assert row["hours of exams"] == pytest.approx(sum(cost["exam_seconds"] for cost in costs) / 3600, abs=0.006)
    assert float(row["training operations"]) == pytest.approx(sum(record.attrs["training_flops"] for record in records), rel=0.06)
    assert row["most memory, GiB"] == pytest.approx(max(cost["peak_memory_bytes"] for cost in costs) / 1024**3, abs=0.06)


def names_in(path):
    "Folders of the runs that an experiment's numbers rest on, found by their names and not by a hash."
    with xr.open_dataset(path) as numbers: runs = json.loads(numbers.attrs["runs"]).values()
    for run in runs:
        fitting = [folder.name for folder in RUNS.iterdir() if folder.name.rsplit("-", 1)[0] == run["name"]]
        assert len(fitting) == 1, run["name"]
        yield fitting[0]


def test_hours_are_operations_by_their_rate():
    run = experiment_runs("park_regression", "paper")["Mamba, linear regression"]
    run = replace(run, train=replace(run.train, steps=3, seeds=(0, 1)))
    points = [run.train.curriculum.points.at(step) for step in range(3)]
    with_model = SequenceModel(run.train.model)
    operations = sum(2 * 3 * run.train.batch_size * with_model.flops(run.train.task.n_tokens(n)) for n in points)
    assert predicted_hours(run, {("standard", "mamba", run.train.precision): 2e12}) == pytest.approx(operations / 2e12 / 3600)


def test_rates_are_the_last_that_were_measured():
    with open(ROOT / "figures" / "benchmarks" / "step-h200.csv") as file: rows = list(csv.DictReader(file))
    last = [row for row in rows if row["date"] == rows[-1]["date"] and row["who"] == "iclrepro" and row["seeds"] == "1" and row["ms"]]
    expected = {(row["size"], row["model"], row["precision"]): float(row["gflop"]) / float(row["ms"]) * 1e12 for row in last}
    found = rates()
    assert found.keys() == expected.keys() and len(found) >= 16
    for kind, rate in expected.items(): assert found[kind] == pytest.approx(rate, rel=2e-3)
    with pytest.raises(ValueError, match="no record of a step on 'tpu': choose one of cpu, h200"): rates("tpu")


def test_a_rate_of_an_earlier_record_is_none_of_the_last(monkeypatch):
    rows = [("1 May", "mamba", 1.0), ("1 May", "transformer", 2.0), ("2 May", "mamba", 3.0)]
    record = pd.DataFrame([{"date": date, "size": "small", "model": model, "precision": "tf32", "who": "iclrepro", "seeds": 1, "tflop_per_s": rate} for date, model, rate in rows])
    monkeypatch.setattr("iclrepro.costs.stored_records", lambda name: {"h200": record})
    assert rates() == {("small", "mamba", "tf32"): 3e12}


@pytest.mark.parametrize(("pattern", "like"), [
    ("(attn mlp) x 12", "transformer"), ("mamba x 24", "mamba"), ("mamba + (attn mamba) x 12", "mambaformer"), ("(attn mamba) x 12", "mambaformer"), ("mamba + (attn mlp) x 12", "mambaformer"),
    ("s4d x 24", "s4_mamba"), ("s4d_post x 24", "s4_mamba"), ("s4mamba x 24", "s4_mamba"), ("(rwkv_time rwkv_channel) x 12", "mamba"), ("lstm x 24", "mamba")])
def test_every_model_is_like_one_that_was_timed(pattern, like):
    run = experiment_runs("park_regression", "paper")["Mamba, linear regression"]
    for width, size in ((256, "standard"), (435, "standard"), (128, "small"), (64, "small")):
        assert timed_like(replace(run, train=replace(run.train, model=replace(run.train.model, pattern=pattern, d_model=width)))) == (size, like)


def test_a_run_that_is_asked_for_often_counts_once():
    for tier in ("laptop", "paper"):
        runs, asked = runs_at(tier), [run for name, experiment in EXPERIMENTS.items() if tier in experiment.tiers for run in experiment_runs(name, tier).values()]
        assert len(asked) > len(runs) == len({json.dumps(run.to_dict(), sort_keys=True) for run in asked})
        assert max(Counter(run.folder for run in asked).values()) > 1


def test_tables_add_up():
    rate = dict.fromkeys(rates(), 1e12)
    table = predicted(runs_at("paper").values(), rate)
    assert table.index[-1] == "all" and table.index.is_unique
    for column in ("runs", "trainings", "operations", "hours"): assert table[column].iloc[-1] == pytest.approx(table[column].iloc[:-1].sum())
    assert table.hours.iloc[-1] == pytest.approx(table.operations.iloc[-1] / 1e12 / 3600)
    both = predicted_at(("gpu", "paper"), rate)
    assert list(both.columns) == ["gpu, trainings", "gpu, hours", "paper, trainings", "paper, hours"] and both["paper, hours"].to_dict() == table.hours.to_dict()
    assert both.loc["all", "gpu, trainings"] == sum(len(run.train.seeds) for run in runs_at("gpu").values())
    grazzi = beside_grazzi(rate)
    # Three seeds of three models on skewed inputs, of two on the other functions, one of three on isotropic inputs.
    assert grazzi.trainings.to_dict() == {"skewed_linear_regression": 9, "linear_regression": 3, "sparse_linear_regression": 6, "relu_network": 6, "decision_tree": 6, "all": 30}
    assert grazzi["hours on an RTX 2080, theirs"].to_dict() == {"skewed_linear_regression": 180, "linear_regression": 60, "sparse_linear_regression": 120, "relu_network": 144, "decision_tree": 144, "all": 648}
