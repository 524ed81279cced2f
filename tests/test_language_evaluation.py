"""Few-shot evaluation of language models: padding changes nothing unless it is asked to, and a run is stored cell by cell."""
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import xarray as xr
from iclrepro import language
from iclrepro.cli import main
from iclrepro.language import LanguageRun, accuracy_with_interval, batches, check_causal, complete, evaluate_language, find_language_record, language_cost, last_logits
from iclrepro.language_models import LanguageModel, MissingModel, by_itself, load_language_model
from iclrepro.language_tasks import LANGUAGE_TASKS, few_shot_questions, is_correct, language_task, tokenizer_filter
from iclrepro.prompts import Draws
from iclrepro.results import load_dataset
from iclrepro.runs import WrongRun
from project import ROOT
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, GPTJConfig, GPTNeoXConfig

TINY = "tiny-transformer", "tiny-mamba", "tiny-rwkv"


@pytest.fixture(scope="module")
def tiny(): return {name: load_language_model(name) for name in TINY}


class Copying(nn.Module):
    "Expects the token that stood two places before: at the arrow, of two tokens, the last letter of a list."
    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.unused = vocabulary, nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(model_type="copying")

    def forward(self, input_ids, use_cache, logits_to_keep=0, attention_mask=None, position_ids=None):
        before = torch.cat([input_ids[:, :1], input_ids[:, :1], input_ids[:, :-2]], 1)
        logits = nn.functional.one_hot(before, self.vocabulary).float()
        return SimpleNamespace(logits=logits[:, -1:] if isinstance(logits_to_keep, int) and logits_to_keep else logits if isinstance(logits_to_keep, int) else logits[:, logits_to_keep])


@pytest.fixture
def copying(tiny, monkeypatch):
    "What `evaluate_language` loads, whatever is named: a model that is right about the last letter of each list."
    tokenizer = tiny["tiny-mamba"].tokenizer
    model = LanguageModel(Copying(len(tokenizer)), tokenizer, "tiny-mamba", "Copying", "made here", False)
    monkeypatch.setattr(language, "load_language_model", lambda *args: model)
    return model


def prompts(n, seed=5):
    "Of many lengths, from tasks of each family."
    tasks = ["algorithmic_list_last", "knowledge_country_capital", "linguistic_antonyms", "translation_fr_en"]
    asked = [question for task in tasks for k in (0, 1, 2, 3, 7) for question in few_shot_questions(language_task(task), k, n, seed)]
    return [question.prompt for question in asked]


# Reading

@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("max_tokens", [1, 150, 100_000])
def test_prompts_together_are_prompts_alone(tiny, name, max_tokens):
    model, texts = tiny[name], prompts(3)
    alone = torch.stack([model.model(torch.tensor([model.encode(text)]), use_cache=False).logits[0, -1] for text in texts])
    rows, together = [model.encode(text) for text in texts], torch.empty_like(alone)
    for batch in batches(list(map(len, rows)), max_tokens): together[batch] = last_logits(model, [rows[index] for index in batch])
    assert (together - alone).abs().max() < 1e-4 * alone.std()
    answers, read = complete(model, texts, max_tokens=max_tokens)
    assert answers == [model.decode(token).split("\n")[0].strip() for token in alone.argmax(-1).tolist()] and read >= sum(map(len, rows))
    assert len(set(answers)) > 4  # different answers, or nothing would have been compared


@pytest.mark.parametrize("name", TINY)
def test_as_released_is_padding_in_front_to_the_longest_of_all(tiny, name):
    model, texts = tiny[name], prompts(2)
    rows = [model.encode(text) for text in texts]
    width, end = max(map(len, rows)), model.tokenizer.eos_token_id
    padded = torch.tensor([[end] * (width - len(row)) + row for row in rows])
    with torch.inference_mode(): expected = torch.stack([model.model(row[None], use_cache=False).logits[0, -1] for row in padded])  # recurrent: read as text
    alone = torch.cat([last_logits(model, [row]) for row in rows])
    released = last_logits(model, rows, width)
    assert (released - (expected if model.recurrent else alone)).abs().max() < 1e-4 * alone.std()
    away = (released - alone).abs().amax(-1) / alone.std()
    short = torch.tensor([len(row) < width for row in rows])
    assert (away[~short] < 1e-4).all() and ((away[short] > 1e-2).all() if model.recurrent else (away < 1e-4).all())
    answers, read = complete(model, texts, "as_released", max_tokens=300)
    assert answers == [model.decode(token).split("\n")[0].strip() for token in released.argmax(-1).tolist()] and read == width * len(rows)


@pytest.mark.parametrize("limit", [1, 7, 30, 10**6])
def test_batches_hold_each_prompt_once_and_keep_to_the_limit(limit):
    lengths = np.random.default_rng(2).integers(1, 40, 60).tolist()
    found = list(batches(lengths, limit))
    assert sorted(index for batch in found for index in batch) == list(range(60))
    assert all(len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= limit for batch in found)
    assert list(batches([], limit)) == []


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused_before_any_work(tiny, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(language, "load_language_model", lambda *args: pytest.fail("a model was loaded"))
    for refused in (lambda: evaluate_language(RUN, tmp_path, max_tokens=limit), lambda: complete(tiny["tiny-mamba"], ["example:a->"], max_tokens=limit)):
        with pytest.raises(ValueError, match=f"max_tokens is {limit}"): refused()
    assert not list(tmp_path.iterdir())


def test_an_unknown_padding_is_refused_before_any_work(tiny, monkeypatch):
    monkeypatch.setattr(LanguageModel, "encode", lambda *args: pytest.fail("a prompt was encoded"))
    with pytest.raises(ValueError, match="unknown padding 'left'"): complete(tiny["tiny-mamba"], ["example:a->"], "left")


def test_no_prompts_have_no_answers(tiny):
    for padding in language.PADDINGS: assert complete(tiny["tiny-mamba"], [], padding) == ([], 0)


@pytest.mark.parametrize("rows,width,message", [([], 0, "0 prompts"), ([[1], []], 0, "shortest of 0 tokens"), ([[1, 2, 3], [1]], 2, "width is 2: it must be at least 3"), ([[1]], -1, "width is -1")])
def test_rows_that_cannot_be_read_are_refused(tiny, rows, width, message):
    with pytest.raises(ValueError, match=message): last_logits(tiny["tiny-mamba"], rows, width)


def test_without_an_end_of_text_nothing_is_filled_up_in_front(tiny):
    wordless = dataclasses.replace(tiny["tiny-mamba"], tokenizer=SimpleNamespace(eos_token_id=None))
    with pytest.raises(ValueError, match="no end of text"): last_logits(wordless, [[1, 2]], 3)
    assert torch.equal(last_logits(wordless, [[1, 2]]), last_logits(tiny["tiny-mamba"], [[1, 2]]))


def drawn(config):
    "A model of transformers with weights of some size, the same in each run."
    draws, model = Draws(3), AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for weights in model.parameters(): weights.copy_(draws.normal(*weights.shape) / weights[0].numel()**0.5 + (weights.ndim == 1))
    return model


ATTENTION = {"Pythia": lambda size: GPTNeoXConfig(**size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64),
             "GPT-J": lambda size: GPTJConfig(**size, n_embd=32, n_layer=2, n_head=2, rotary_dim=8),
             "GPT-2, with learned positions": lambda size: GPT2Config(**size, n_embd=32, n_layer=2, n_head=2, n_positions=512)}


@pytest.mark.parametrize("name", ATTENTION)
def test_with_attention_no_padding_changes_anything(tiny, name):
    size = {"vocab_size": len(tiny["tiny-transformer"].tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    model = dataclasses.replace(tiny["tiny-transformer"], model=drawn(ATTENTION[name](size)))
    rows = [model.encode(text) for text in prompts(2)]
    alone = torch.stack([model.model(torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows])
    for width in (0, max(map(len, rows)) + 9): assert (last_logits(model, rows, width) - alone).abs().max() < 1e-4 * alone.std()


def test_a_causal_model_passes_and_one_that_looks_ahead_does_not(tiny):
    for model in tiny.values(): check_causal(model)
    bert = drawn(BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64))
    with pytest.raises(ValueError, match="looks ahead"): check_causal(dataclasses.replace(model, model=bert))


def test_a_model_whose_logits_are_no_numbers_is_refused():
    "Of numbers that are none, PyTorch calls one the largest: the model would seem to answer."
    model = load_language_model("tiny-mamba")
    model.model.lm_head.weight[7] = torch.nan
    with pytest.raises(ValueError, match="tiny-mamba .*NaN"): check_causal(model)


@pytest.mark.parametrize("text,answer", [("\n", ""), (" high", "high"), ("high\nlow", "high"), ("\nlow", ""), ("  ", "")])
def test_an_answer_ends_at_a_line_break(copying, monkeypatch, text, answer):
    monkeypatch.setattr(LanguageModel, "decode", lambda model, token: text)
    assert complete(copying, ["example:a->", "example:a,b->"])[0] == [answer] * 2


# What a run is

RUN = LanguageRun("tiny-mamba", ("algorithmic_list_last", "algorithmic_to_upper", "translation_en_fr"), (0, 3, 30), 12)


@pytest.mark.parametrize("change,message", [
    ({"tasks": ("algorithmic_list_lasst",)}, "algorithmic_list_last"), ({"tasks": ()}, "at least one"), ({"tasks": ("algorithmic_list_last",) * 2}, "none twice"),
    ({"examples": ()}, "at least one"), ({"examples": (1, 1)}, "none twice"), ({"examples": (-1, 2)}, "at least 0"), ({"n_prompts": 0}, "at least 1"), ({"seed": -1}, "at least 0"),
    ({"padding": "left"}, "as_released"), ({"precision": "float16"}, "bfloat16"), ({"tasks": list(RUN.tasks)}, "tasks is .* a tuple"), ({"tasks": RUN.tasks[0]}, "tasks is .* a tuple"),
    ({"examples": [0, 3]}, "examples is .* a tuple"), ({"examples": (0.0, 3)}, "an integer"), ({"n_prompts": 12.0}, "n_prompts is 12.0"), ({"seed": True}, "seed is True"), ({"model": 5}, "model is 5"),
])
def test_bad_runs_are_refused(change, message):
    with pytest.raises(ValueError, match=message): dataclasses.replace(RUN, **change)


def test_a_run_is_named_by_all_that_decides_it(monkeypatch):
    others = [dataclasses.replace(RUN, **change) for change in ({"model": "tiny-rwkv"}, {"tasks": RUN.tasks[:2]}, {"examples": (0, 3)}, {"n_prompts": 13}, {"seed": 42}, {"padding": "as_released"}, {"precision": "bfloat16"})]
    assert len({run.folder for run in [RUN, *others]}) == len(others) + 1
    assert LanguageRun.from_dict(json.loads(json.dumps(RUN.to_dict()))) == RUN and LanguageRun.from_dict({key: value for key, value in RUN.to_dict().items() if key != "precision"}).folder == RUN.folder
    assert all("/" not in dataclasses.replace(RUN, model=name).folder and dataclasses.replace(RUN, model=name).folder[0].isalnum() for name in ("../a model", "state-spaces/x@refs/pr/1", "Mamba 2.80B (SP)"))
    before, task = RUN.folder, language_task(RUN.tasks[1])
    monkeypatch.setattr(language, "language_task", lambda name: dataclasses.replace(task, pairs=task.pairs[:-1]) if name == task.name else LANGUAGE_TASKS[name])
    assert RUN.folder != before  # a pair is gone: another run


@pytest.mark.parametrize("path", sorted((ROOT / "figures/language").glob("*/record.nc")), ids=lambda path: path.parent.name)
def test_stored_runs_keep_their_names(path):
    record = load_dataset(path)
    run = LanguageRun.from_dict(json.loads(record.attrs["configuration"]))
    assert run.folder == path.parent.name and find_language_record(run, ROOT / "figures").identical(record)
    assert language_cost(run, ROOT / "figures")["seconds"] > 0


# Records

@pytest.mark.parametrize("seed", [41, 7])
def test_a_record_is_what_one_prompt_at_a_time_gives(copying, tmp_path, seed):
    run = dataclasses.replace(RUN, seed=seed)
    record = evaluate_language(run, tmp_path)
    for name in run.tasks:
        task = tokenizer_filter(language_task(name), copying.pieces)
        outputs = [pair.output for pair in task.pairs]
        commonest = max(outputs, key=outputs.count)  # of equals the first
        assert int(record.n_pairs.sel(task=name)) == len(outputs) and float(record.majority_share.sel(task=name)) == pytest.approx(outputs.count(commonest) / len(outputs))
        for k in run.examples:
            cell = record.sel(task=name, examples=k)
            assert bool(cell.asked) == (len(outputs) > k)
            if not cell.asked: continue
            questions = few_shot_questions(task, k, run.n_prompts, seed)
            answers = [copying.decode(copying.encode(question.prompt)[-3]).strip() for question in questions]
            assert cell.correct.values.tolist() == [is_correct(task, answer, question.accepted) for answer, question in zip(answers, questions)]
            assert float(cell.majority) == sum(is_correct(task, answer, (commonest,)) for answer in answers) / run.n_prompts
    assert record.correct.sel(task="algorithmic_list_last").all() and not record.correct.sel(task="algorithmic_to_upper").any()
    assert record.attrs["source"] == "made here" and json.loads(record.attrs["configuration"]) == run.to_dict()


def test_a_cell_that_cannot_be_asked_is_named_and_has_no_accuracy(copying, tmp_path):
    record = evaluate_language(RUN, tmp_path)
    assert json.loads(record.attrs["not_asked"]) == {"algorithmic_to_upper": {"30": "26 distinct inputs after the tokenizer's filter, 31 needed"}}
    accuracy = accuracy_with_interval(record)
    hole = accuracy.sel(task="algorithmic_to_upper", examples=30)
    assert all(np.isnan(hole[name]) for name in ("accuracy", "low", "high")) and int(accuracy.accuracy.isnull().sum()) == 1


@pytest.mark.parametrize("n", [1, 7, 400])
def test_the_interval_is_wilsons(n):
    right = np.arange(n + 1) if n < 100 else np.arange(0, n + 1, 37)
    record = xr.Dataset({"correct": (("task", "examples", "prompt"), np.arange(n)[None, None] < right[:, None, None]), "asked": (("task", "examples"), np.ones((len(right), 1), bool))})
    found = accuracy_with_interval(record).squeeze("examples")
    for k, low, high, share in zip(right, found.low.values, found.high.values, found.accuracy.values):
        other = binomtest(int(k), n).proportion_ci(0.95, "wilson")
        assert np.allclose([share, low, high], [k / n, other.low, other.high], atol=1e-12)


def test_the_interval_is_near_a_bootstraps():
    rng, right = np.random.default_rng(4), np.arange(400) < 252
    means = right[rng.integers(400, size=(20_000, 400))].mean(1)
    found = accuracy_with_interval(xr.Dataset({"correct": (("task", "examples", "prompt"), right[None, None]), "asked": (("task", "examples"), [[True]])})).squeeze()
    assert np.allclose([float(found.low), float(found.high)], np.quantile(means, (0.025, 0.975)), atol=0.005)


# Stopping, resuming, refusing

KILLED = """
import os, signal, sys
from iclrepro.language import LanguageRun, evaluate_language
lines = []
def report(line):
    lines.append(line)
    if len(lines) == 4: os.kill(os.getpid(), signal.SIGKILL)
evaluate_language(LanguageRun.from_dict({run}), {root!r}, report=report)
"""


def test_a_killed_run_goes_on_behind_its_last_cell_and_ends_the_same(tmp_path, monkeypatch):
    code = KILLED.format(run=RUN.to_dict(), root=str(tmp_path / "killed"))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "killed/language" / RUN.folder
    assert len(list((folder / "cells").glob("*.nc"))) == 4 and find_language_record(RUN, tmp_path / "killed") is None
    measured, real = [], language.measure_cell
    monkeypatch.setattr(language, "measure_cell", lambda run, model, task, n, limit: (measured.append((task, n)), real(run, model, task, n, limit))[1])
    resumed = evaluate_language(RUN, tmp_path / "killed")
    assert measured == [(task, n) for task in RUN.tasks for n in RUN.examples][4:] and not (folder / "cells").exists()
    evaluate_language(RUN, tmp_path / "whole")
    assert (folder / "record.nc").read_bytes() == (tmp_path / "whole/language" / RUN.folder / "record.nc").read_bytes()
    assert language_cost(RUN, tmp_path / "killed")["tokens"] == language_cost(RUN, tmp_path / "whole")["tokens"]
    monkeypatch.setattr(language, "load_language_model", lambda *args: pytest.fail("a finished run loads nothing"))
    assert evaluate_language(RUN, tmp_path / "killed").identical(resumed)


def one_cell(tmp_path, monkeypatch):
    "A run that stopped behind its first cell, and where that is."
    def stop(line): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): evaluate_language(RUN, tmp_path, report=stop)
    (cell,) = (tmp_path / "language" / RUN.folder / "cells").glob("*.nc")
    return cell


def test_cells_of_other_weights_are_refused(copying, tmp_path, monkeypatch):
    one_cell(tmp_path, monkeypatch)
    monkeypatch.setattr(language, "load_language_model", lambda *args: dataclasses.replace(copying, source="made elsewhere"))
    with pytest.raises(WrongRun, match="made here.*made elsewhere"): evaluate_language(RUN, tmp_path)


def test_a_record_of_weights_that_are_others_now_is_refused(tiny, tmp_path, monkeypatch):
    "A folder's name says nothing about what is in it; without the folder the record is what there is."
    folder, run = tmp_path / "mine", dataclasses.replace(RUN, model=str(tmp_path / "mine"), tasks=RUN.tasks[:1], examples=(1,))
    def save(name):
        with by_itself(): tiny[name].model.save_pretrained(folder), tiny[name].tokenizer.save_pretrained(folder)
    save("tiny-mamba")
    record = evaluate_language(run, tmp_path)
    monkeypatch.setattr(language, "load_language_model", lambda *args: pytest.fail("a finished run loads nothing"))
    assert evaluate_language(run, tmp_path).identical(record)
    save("tiny-rwkv")
    with pytest.raises(WrongRun, match="measured with folder mine, sha256 .* is folder mine, sha256 .* now"): evaluate_language(run, tmp_path)
    shutil.rmtree(folder)
    assert evaluate_language(run, tmp_path).identical(record)
    monkeypatch.chdir(tmp_path)
    named = dataclasses.replace(run, model="tiny-mamba")
    language.check_weights(named, record), (tmp_path / "tiny-mamba").mkdir(), language.check_weights(named, record)  # a name of the table is no folder, whatever lies about


def test_a_damaged_cell_is_named(copying, tmp_path, monkeypatch):
    cell = one_cell(tmp_path, monkeypatch)
    cell.write_bytes(cell.read_bytes()[:40])
    with pytest.raises(ValueError, match=cell.name): evaluate_language(RUN, tmp_path)


def test_a_record_in_the_wrong_folder_is_refused(copying, tmp_path):
    evaluate_language(RUN, tmp_path)
    other = dataclasses.replace(RUN, seed=1)
    (tmp_path / "language" / RUN.folder).rename(tmp_path / "language" / other.folder)
    with pytest.raises(WrongRun, match="another run"): evaluate_language(other, tmp_path)


@pytest.mark.parametrize("change,error", [({"model": "nobody/has-this"}, MissingModel), ({"model": "mambo"}, ValueError)])
def test_nothing_is_written_for_a_model_that_is_not_here(tmp_path, change, error, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(error): evaluate_language(dataclasses.replace(RUN, **change), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_an_unknown_device_is_refused_before_anything(tmp_path):
    with pytest.raises(ValueError, match="gpu"): evaluate_language(RUN, tmp_path / "results", device="gpu")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("precision,dtype", [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_that_of_the_weights(tmp_path, monkeypatch, precision, dtype):
    loaded = []
    monkeypatch.setattr(language, "check_causal", loaded.append)
    record = evaluate_language(dataclasses.replace(RUN, precision=precision), tmp_path)
    assert {weights.dtype for weights in loaded[0].model.parameters()} == {dtype} and json.loads(record.attrs["configuration"])["precision"] == precision


def test_padding_reaches_the_model(copying, tmp_path, monkeypatch):
    asked, real = [], language.complete
    monkeypatch.setattr(language, "complete", lambda model, prompts, padding, limit: (asked.append(padding), real(model, prompts, padding, limit))[1])
    for padding in language.PADDINGS: evaluate_language(dataclasses.replace(RUN, tasks=RUN.tasks[:1], examples=(2,), padding=padding), tmp_path)
    assert tuple(asked) == language.PADDINGS


@pytest.mark.parametrize("padding", language.PADDINGS)
@pytest.mark.parametrize("name", TINY)
def test_a_gpu_expects_what_a_cpu_does(tiny, name, padding):
    if not torch.cuda.is_available(): pytest.skip("no GPU")
    on_gpu, asked = load_language_model(name, "cuda"), prompts(3)
    rows = [on_gpu.encode(prompt) for prompt in asked]
    width = max(map(len, rows)) if padding == "as_released" else 0
    here, there = last_logits(tiny[name], rows, width), last_logits(on_gpu, rows, width)
    assert there.is_cuda and (here - there.cpu()).abs().max() < 1e-3 * here.std()
    best = here.topk(2).values
    clear = (best[:, 0] - best[:, 1] > 2e-3 * here.std()).numpy()  # what rounding cannot turn over
    answers = [np.array(complete(model, asked, padding)[0]) for model in (tiny[name], on_gpu)]
    assert clear.mean() > 0.9 and (answers[0] == answers[1])[clear].all()


# The command

def test_the_command_measures_shows_and_does_not_measure_again(tmp_path, capsys):
    words = ["language", "tiny-transformer", "--tasks", "algorithmic_list_first", "algorithmic_to_upper", "--examples", "0", "30", "--prompts", "6", "--root", str(tmp_path), "--threads", "1"]
    assert main(words) == 0
    first = capsys.readouterr()
    assert "algorithmic_list_first" in first.out and "26 distinct inputs" in first.out and "tokens/s" in first.err
    assert main(words) == 0
    second = capsys.readouterr()
    assert second.out == first.out and second.err == ""
    assert len(list(tmp_path.glob("language/*/record.nc"))) == 1


@pytest.mark.parametrize("words,message", [
    (["mambo"], "unknown language model"), (["nobody/has-this"], "hf download nobody/has-this"), (["tiny-mamba", "--tasks", "algorithmic_list_fist"], "algorithmic_list_first"),
    (["tiny-mamba", "--examples", "5", "5"], "none twice"), (["tiny-mamba", "--prompts", "0"], "at least 1"), (["tiny-mamba", "--padding", "left"], "as_released"), (["tiny-mamba", "--threads", "0"], "threads is 0"),
])
def test_the_command_says_what_is_wrong_before_any_work(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main(["language", *words, "--root", str(tmp_path / "results")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "results").exists()
