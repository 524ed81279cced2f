"""Few-shot mappings against loops written from their definition: the language, its documents, what is kept back, the oracle, and what a model reads."""
import itertools
import math
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from chance import near, uniform
from iclrepro.baselines import mapping_oracle, most_common_answer, oracle_on_facts
from iclrepro.evaluation import Exam, as_baseline_examinee, as_examinee, take
from iclrepro.experiments import CONDITIONS, MAPPING_SHAPES, RATES, TASK_SIZES, TIERS, experiment_runs, mean_accuracy, share_gained
from iclrepro.models import TITLES, ModelConfig, SequenceModel, build_model, model_for, predict
from iclrepro.prompts import LAYOUTS, STREAMS, Draws, Prompt, at_arrows
from iclrepro.results import load_dataset
from iclrepro.shifts import SHIFTS, fitting_shifts, sample_shifted
from iclrepro.tasks import FAMILIES, HELD_OUT, NARROW, OPEN, AssociativeRecall, FewShotMappings, make_task, task_from_dict, task_to_dict

SMALL = FewShotMappings(dim=30, n_points=7, n_rare=10, n_forms=5, n_attributes=6, n_values=3, n_label_languages=3, most_tasks=3)
EXAMS = {f"{family}_{tasks}_tasks_{words}_words": replace(SMALL, family=family, tasks=tasks, words=words, most_tasks=1)
         for family in FAMILIES for tasks in ("trained", "held_out") for words in ("trained", "held_out")}
ALL = {"training": SMALL} | EXAMS


# The definition, in plain Python ----------------------------------------------------------------------------------------

def role(task, family, reads, writes):
    "From the table of the chapter."
    if writes == 0 or (family == "forms" and reads == 0): return OPEN
    remainder = (reads + writes) % task.held_every
    return HELD_OUT if remainder == 0 else OPEN if 2 * remainder <= task.held_every else NARROW


def tasks_of(task):
    "Every task of the language: (family, reads, writes)."
    forms = [("forms", i, j) for i, j in itertools.product(range(task.n_forms), repeat=2) if i != j]
    return forms + [("facts", i, j) for i in range(task.n_attributes) for j in range(task.n_label_languages)]


def vocabulary(task):
    "What each symbol stands for, in the order of the symbols."
    words = [("word", c, f) for c in range(task.dim) for f in range(task.n_forms)]
    own = [("label", 0, k, v) for k in range(task.n_attributes) for v in range(task.n_values)]                      # language 0: the attribute's own
    shared = [("label", s, None, v) for s in range(1, task.n_label_languages) for v in range(task.n_values)]
    return words + own + shared + [("arrow",), ("line",), ("blank",)]


def answer_of(attributes, which, concept):
    "What a task makes of a concept."
    family, reads, writes = which
    if family == "forms": return "word", concept, writes
    return "label", writes, reads if writes == 0 else None, attributes[concept][reads]


def segments_of(task, row):
    "A document as segments of (concept, form, answer)."
    said = [vocabulary(task)[symbol] for symbol in row]
    segments = [[]]
    for (kind, concept, form), arrow, answer, end in zip(*(said[place::4] for place in range(4)), strict=True):
        assert kind == "word" and arrow == ("arrow",) and answer[0] in ("word", "label")
        segments[-1].append((concept, form, answer))
        if end == ("blank",): segments.append([])
        else: assert end == ("line",)
    return segments


def possible(task, attributes, segment):
    "The tasks that every line of a segment agrees with."
    return [which for which in tasks_of(task) if all((which[0] == "facts" or which[1] == form) and answer_of(attributes, which, concept) == answer for concept, form, answer in segment)]


def world(task): return task.world("cpu").attributes.tolist()


def test_symbols_are_numbered_as_described():
    assert len(vocabulary(SMALL)) == SMALL.d_in == SMALL.d_out and vocabulary(SMALL)[SMALL.n_words] == ("label", 0, 0, 0)


def test_tasks_have_the_roles_of_the_table():
    rows = Counter((FAMILIES[family], i, j, r) for family, i, j, r in SMALL.world("cpu").rows.tolist())
    assert rows == Counter((*which, role(SMALL, *which)) for which in tasks_of(SMALL))
    for family in FAMILIES:
        for tasks, roles in (("training", {OPEN, NARROW}), ("trained", {NARROW}), ("held_out", {HELD_OUT})):
            pool = {(FAMILIES[f], i, j) for f, i, j, _ in replace(SMALL, tasks=tasks).pool(family, "cpu").tolist()}
            assert pool == {which for which in tasks_of(SMALL) if which[0] == family and role(SMALL, *which) in roles} != set()


def test_attributes_are_uniform_and_of_the_world():
    big = FewShotMappings(dim=4000, n_values=4, n_attributes=5)
    attributes = big.world("cpu").attributes
    assert attributes.shape == (4000, 5)
    for k in range(5): uniform(torch.bincount(attributes[:, k], minlength=4), f"attribute {k}")
    uniform(torch.bincount(attributes[:, 0] * 4 + attributes[:, 1], minlength=16), "two attributes")
    other = replace(big, world_seed=1).world("cpu")
    assert not torch.equal(attributes, other.attributes) and torch.equal(big.world("cpu").rows, other.rows)
    assert replace(big, words="held_out", family="forms").world("cpu") is big.world("cpu")  # an exam is of the same world


@pytest.mark.parametrize("name", ALL)
def test_a_document_means_what_it_should(name):
    task = ALL[name]
    attributes, rare = world(task), range(task.dim - task.n_rare, task.dim)
    prompt, seen = task.sample(Draws(1), 300), Counter()
    assert prompt.mask.all() and torch.equal(prompt.y, prompt.x[:, 2::4]) and prompt.x.shape == (300, 28) == (300, task.n_tokens(7)) and task.n_asked(7) == 7
    for row in prompt.x.tolist():
        segments = segments_of(task, row)
        concepts = [concept for segment in segments for concept, _, _ in segment]
        assert len(set(concepts)) == len(concepts) == 7 and 1 <= len(segments) <= task.most_tasks and all(segments)
        for segment in segments:
            candidates = possible(task, attributes, segment)
            allowed = [which for which in candidates if which[0] in task.families and
                       role(task, *which) in {"training": (OPEN, NARROW), "trained": (NARROW,), "held_out": (HELD_OUT,)}[task.tasks]]
            assert allowed, segment
            if any(concept in rare for concept, _, _ in segment) and task.words == "training": assert any(role(task, *which) == OPEN for which in allowed)
            seen[allowed[0][0]] += 1
        if task.words != "training": assert all((concept in rare) == (task.words == "held_out") for concept in concepts)
    assert set(seen) == set(task.families)


def test_documents_are_drawn_as_described():
    "Numbers of tasks, places of change, families, tasks, concepts and forms, each uniform."
    documents = [segments_of(SMALL, row) for row in SMALL.sample(Draws(2), 6000).x.tolist()]
    uniform([sum(len(d) == n for d in documents) for n in (1, 2, 3)], "tasks a document")
    uniform(list(Counter(len(d[0]) for d in documents if len(d) == 2).values()), "place of the change")
    uniform(list(Counter((len(d[0]), len(d[1])) for d in documents if len(d) == 3).values()), "places of two changes")
    assert len({(len(d[0]), len(d[1])) for d in documents if len(d) == 3}) == math.comb(6, 2)
    segments = [segment for d in documents for segment in d]
    families = ["forms" if segment[0][2][0] == "word" else "facts" for segment in segments]
    uniform([families.count(family) for family in FAMILIES], "families")
    forms = Counter((segment[0][1], segment[0][2][2]) for segment, family in zip(segments, families) if family == "forms")
    assert set(forms) == {which[1:] for which in tasks_of(SMALL) if which[0] == "forms" and role(SMALL, *which) != HELD_OUT}
    uniform(list(forms.values()), "form tasks")
    languages = Counter(segment[0][2][1] for segment, family in zip(segments, families) if family == "facts")
    count = {s: sum(role(SMALL, "facts", k, s) != HELD_OUT for k in range(SMALL.n_attributes)) for s in range(3)}
    n = sum(languages.values())
    for s in range(3): near(languages[s], n * count[s] / sum(count.values()), math.sqrt(n * 0.25), "languages")
    uniform(list(Counter(line[1] for segment, family in zip(segments, families) if family == "facts" for line in segment[:1]).values()), "forms of the words of facts")
    frequent = Counter(line[0] for segment, family in zip(segments, families) if family == "forms" and role(SMALL, "forms", segment[0][1], segment[0][2][2]) == NARROW for line in segment[:1])
    assert set(frequent) == set(range(20))
    uniform(list(frequent.values()), "concepts of narrow tasks")
    everyone = Counter(line[0] for segment, family in zip(segments, families) if family == "forms" and role(SMALL, "forms", segment[0][1], segment[0][2][2]) == OPEN for line in segment[:1])
    assert set(everyone) == set(range(30))
    uniform(list(everyone.values()), "concepts of open tasks")


# What every task keeps ------------------------------------------------------------------------------------------------

def parts(prompt): return [part.numpy().tobytes() for part in prompt]


@pytest.mark.parametrize("name", ALL)
def test_a_batch_is_a_function_of_its_draws(name):
    task = ALL[name]
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()
    first = task.sample(Draws(3, 7), 9)
    task.sample(Draws(3, 8), 5)
    assert parts(first) == parts(task.sample(Draws(3, 7), 9))
    assert before == (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate())
    others = [Draws(4, 7), Draws(3, 6), *(Draws(3, 7, stream) for stream in STREAMS if stream != "train")]
    assert all(not torch.equal(first.x, task.sample(other, 9).x) for other in others)
    assert task_from_dict(task_to_dict(task)) == task


class ShapesOnly(Draws):
    """Draws without numbers, on torch's device "meta": whatever looks at a value or mixes devices raises, as it would wait or raise on a GPU."""
    def __init__(self): self.device = torch.device("meta")
    def normal(self, *shape): return torch.empty(shape, device="meta")
    def uniform(self, *shape): return torch.empty(shape, device="meta")
    def integers(self, high, *shape): return torch.empty(shape, dtype=torch.int64, device="meta")


@pytest.mark.parametrize("name", ALL)
def test_sampling_stays_on_its_device_and_looks_at_no_value(name):
    task = ALL[name]
    there, here = task.sample(ShapesOnly(), 6), task.sample(Draws(0), 6)
    for a, b in zip(there, here): assert a.device.type == "meta" and a.shape == b.shape and a.dtype == b.dtype
    logits = torch.empty(6, 7, task.d_out, device="meta")
    assert task.loss(logits, there).shape == () and task.score(logits, there.y).shape == there.mask.shape == (6, 7)


def test_lengths_down_to_one_line():
    for n_points in (1, 2, 5): assert SMALL.sample(Draws(0), 3, n_points).x.shape == (3, 4 * n_points)


def test_loss_and_score_by_hand():
    prompt = SMALL.sample(Draws(5), 4)
    logits = Draws(6).normal(4, 7, SMALL.d_out)
    chance, right = [], []
    for b, p in itertools.product(range(4), range(7)):
        row, answer = logits[b, p].double().tolist(), prompt.y[b, p].item()
        chance.append(math.log(math.fsum(map(math.exp, row))) - row[answer])
        right.append(float(max(range(len(row)), key=row.__getitem__) == answer))
    assert SMALL.loss(logits, prompt).item() == pytest.approx(math.fsum(chance) / 28, rel=1e-5)
    assert SMALL.score(logits, prompt.y).flatten().tolist() == right
    perfect = torch.nn.functional.one_hot(prompt.y, SMALL.d_out).float()
    assert SMALL.score(perfect, prompt.y).all()


# The oracle -----------------------------------------------------------------------------------------------------------

def votes(task, attributes, segment):
    "Probabilities of answers to the last line's word, from the lines before it, as fractions."
    (concept, form, _), *_ = segment[-1:]
    tasks, weights = tasks_of(task), Counter()
    n_forms = sum(family == "forms" for family, _, _ in tasks)
    fitting = set(possible(task, attributes, segment[:-1]))
    for which in tasks:
        family, reads, _ = which
        if which not in fitting or (family == "forms" and reads != form): continue
        prior = Fraction(1, 2 * n_forms) if family == "forms" else Fraction(1, 2 * (len(tasks) - n_forms))
        inputs = Fraction(1, task.dim) if family == "forms" else Fraction(1, task.dim * task.n_forms)
        weights[answer_of(attributes, which, concept)] += prior * inputs
    total = sum(weights.values())
    return {answer: weight / total for answer, weight in weights.items()}


@pytest.mark.parametrize("name", ALL)
def test_the_oracle_is_a_count_in_fractions(name):
    task = ALL[name]
    attributes, names = world(task), vocabulary(task)
    prompt = task.sample(Draws(4), 40)
    probabilities = mapping_oracle(prompt.x, SMALL)
    assert probabilities.shape == (40, 7, task.d_in)
    for b, row in enumerate(prompt.x.tolist()):
        p = 0
        for segment in segments_of(task, row):
            for k in range(len(segment)):
                expected = votes(task, attributes, segment[:k + 1])
                got = {names[s]: probabilities[b, p, s].item() for s in probabilities[b, p].nonzero()[:, 0].tolist()}
                assert got.keys() == expected.keys()
                assert all(got[answer] == pytest.approx(float(share), rel=1e-5) for answer, share in expected.items())
                p += 1


def test_the_oracle_knows_nothing_of_what_comes_later():
    prompt = SMALL.sample(Draws(8), 20)
    whole = mapping_oracle(prompt.x, SMALL)
    for p in range(1, 8): torch.testing.assert_close(mapping_oracle(prompt.x[:, :4 * p], SMALL), whole[:, :p])


def test_a_text_that_no_task_fits_gets_no_vote():
    prompt = replace(SMALL, family="forms", most_tasks=1).sample(Draws(8), 5)
    spoilt = prompt.x.clone()
    spoilt[:, 2] = SMALL.d_in - 1
    assert (mapping_oracle(spoilt, SMALL)[:, 1:] == 0).all() and (mapping_oracle(spoilt, SMALL)[:, 0] > 0).any()


@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("K", [1, 2, 7])
def test_the_closed_form_is_a_simulation(K, m):
    "Random tables and a vote by hand, sharing nothing with the oracle or the task."
    rng, n_trials = np.random.default_rng([K, m]), 40_000
    shown = rng.integers(m, size=(n_trials, 6, K))  # examples' attributes; attribute 0 is asked
    query = rng.integers(m, size=(n_trials, K))
    for n in (1, 2, 5):
        alive = (shown[:, :n] == shown[:, :n, :1]).all(1)
        count = np.stack([(alive & (query == value)).sum(1) for value in range(m)], 1)
        best = count == count.max(1, keepdims=True)
        right = best[np.arange(n_trials), query[:, 0]] / best.sum(1)
        near(right.mean(), oracle_on_facts(n, K, m), max(right.std(), 1e-9) / math.sqrt(n_trials) + 1e-12, f"{n} examples, {K} attributes of {m} values")
    assert oracle_on_facts(1, 1, m) == 1 and oracle_on_facts(60, 9, m) == pytest.approx(1)


def test_the_most_common_answer_is_a_counter():
    prompt = EXAMS["facts_trained_tasks_trained_words"].sample(Draws(9), 30, 12)
    counts = most_common_answer(prompt.x, SMALL)
    for b, answers in enumerate(prompt.y.tolist()):
        for p in range(12): assert {s: int(counts[b, p, s]) for s in counts[b, p].nonzero()[:, 0].tolist()} == Counter(answers[:p])


REFUSED = {
    "words of three": (lambda: mapping_oracle(torch.zeros(2, 7, dtype=torch.int64), SMALL), r"x is torch.int64 \(2, 7\): it must be an int64 tensor"),
    "no integers": (lambda: most_common_answer(torch.zeros(2, 8), SMALL), "x is torch.float32"),
    "no tensor": (lambda: mapping_oracle([1, 2], SMALL), "x is list"),
    "no example": (lambda: oracle_on_facts(0, 4, 2), "n_examples is 0"),
    "one form": (lambda: FewShotMappings(n_forms=1), "n_forms is 1: it must be at least 2"),
    "no attribute": (lambda: FewShotMappings(n_attributes=0), "n_attributes is 0"),
    "one value": (lambda: FewShotMappings(n_values=1), "n_values is 1"),
    "no task": (lambda: FewShotMappings(most_tasks=0), "most_tasks is 0"),
    "all rare": (lambda: FewShotMappings(dim=8, n_rare=8), "n_rare is 8: it must be less than the number of concepts, 8"),
    "another family": (lambda: FewShotMappings(family="form"), "unknown family 'form': choose one of both, forms, facts.*mean 'forms'"),
    "other tasks": (lambda: FewShotMappings(tasks="heldout"), "unknown tasks 'heldout'.*mean 'held_out'"),
    "other words": (lambda: FewShotMappings(words="rare"), "unknown words 'rare'"),
    "nothing held out": (lambda: FewShotMappings(n_forms=3, family="forms", tasks="held_out", held_every=7), "no task of forms is held_out with held_every 7"),
    "too few rare words": (lambda: replace(SMALL, words="held_out").sample(Draws(0), 2, 11), "n_points is 11: no concept occurs twice, so a document of held_out words has at most 10 lines"),
    "too few words": (lambda: replace(SMALL, words="trained").sample(Draws(0), 2, 21), "document of trained words has at most 20 lines"),
    "too few for training": (lambda: SMALL.sample(Draws(0), 2, 11), "document of training words has at most 10 lines"),
    "dims": (lambda: SMALL.sample(Draws(0), 2, dims=3), "dims is 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message): call()


# Exams and models -----------------------------------------------------------------------------------------------------

def test_exams_are_shifts_of_the_task():
    assert set(EXAMS) < set(fitting_shifts(SMALL)) and "new_languages" not in fitting_shifts(SMALL)
    assert not set(EXAMS) & set(fitting_shifts(AssociativeRecall()))
    for name, task in EXAMS.items():
        context, query = sample_shifted(SMALL, name, Draws(0, 3, "evaluation"), 5, 9)
        assert query is None and parts(context) == parts(task.sample(Draws(0, 3, "evaluation"), 5, 9))
        assert SHIFTS[name].title.startswith(task.family)


def test_baselines_take_the_exam():
    exam = Exam("forms_held_out_tasks_held_out_words", 9, n_prompts=64)
    scores = take(exam, SMALL, as_baseline_examinee(mapping_oracle, SMALL))
    assert scores.shape == (64, 9) and (scores[:, 1:] == 1).all() and scores[:, 0].mean() < 1
    assert (take(exam, SMALL, as_baseline_examinee(most_common_answer, SMALL)) == 0).all()  # no word occurs twice


def test_a_model_is_read_at_the_arrows():
    "The same weights as a model of plain symbols say the same at the arrows."
    prompt = SMALL.sample(Draws(3), 4)
    config = model_for(SMALL, "mambaformer", n_layers=1, d_model=16, n_heads=2)
    model = build_model(config, 0)
    plain = build_model(replace(config, layout="symbols"), 0)
    with torch.no_grad():
        everywhere = plain(prompt.x)
        torch.testing.assert_close(predict(model, prompt), torch.stack([everywhere[:, 4 * p + 1] for p in range(7)], 1))
        assert torch.equal(as_examinee(model)(prompt, None, [0, 3]), predict(model, prompt)[:, [0, 3]])
        changed = prompt.x.clone()
        changed[:, 2::4] = (changed[:, 2::4] + 1) % SMALL.n_words
        torch.testing.assert_close(predict(model, prompt._replace(x=changed))[:, 0], predict(model, prompt)[:, 0])  # an answer does not see itself
    assert {name for name, _ in model.named_parameters() if "read" in name} == {"read_in.weight"}
    assert LAYOUTS["mappings"].tokens(prompt) is prompt.x and torch.equal(at_arrows(prompt.x), torch.full((4, 7), SMALL.d_in - 3))


def test_flops_count_a_product_with_the_embedding_at_each_arrow():
    config = ModelConfig("attn", 50, 50, d_model=16, layout="mappings")
    model = SequenceModel(config)
    assert model.flops(28) - model.blocks[0].flops(28) == 2 * 16 * 7 * 50


@pytest.mark.parametrize("architecture", ["transformer", "mamba", "mambaformer", "rwkv"])
def test_a_small_model_learns_a_batch_by_heart(architecture):
    model, prompt = build_model(model_for(SMALL, architecture, n_layers=1, d_model=16, n_heads=2), seed=0), SMALL.sample(Draws(0), 8)
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(8):
        loss = SMALL.loss(predict(model, prompt), prompt)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_symbols_for_a_model_of_mappings():
    model = build_model(model_for(SMALL, "mamba", n_layers=1, d_model=16), 0)
    with pytest.raises(ValueError, match=r"the layout 'mappings' needs \(batch, length\) of symbols"): model(torch.zeros(2, 8, 3))


# The experiment -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tier", TIERS)
def test_terms_are_equal(tier):
    runs, size = experiment_runs("language_architectures", tier), TASK_SIZES["few_shot_mappings"][tier]
    assert len(runs) == len(MAPPING_SHAPES[tier]) * len(RATES[tier]) and len(MAPPING_SHAPES[tier]) >= 4
    first = next(iter(runs.values()))
    for run in runs.values():
        assert replace(run.train, model=first.train.model, lr=first.train.lr) == first.train and run.exams == first.exams and run.train.task == size.task
    assert {label: run.train.lr for label, run in runs.items()} == {
        title if len(RATES[tier]) == 1 else f"{title}, rate {rate:g}": rate for title in (TITLES[name] for name in MAPPING_SHAPES[tier]) for rate in RATES[tier]}
    counts = []
    for run in runs.values():
        with torch.device("meta"): counts.append(sum(p.numel() for p in SequenceModel(run.train.model).parameters()))
    if tier != "smoke": assert max(counts) <= 1.1 * min(counts), counts
    if tier in ("gpu", "paper"): assert all(10e6 <= count <= 30e6 for count in counts)
    assert [exam.shift for exam in first.exams] == [f"{family}_{condition}" for family in FAMILIES for condition in CONDITIONS]
    for exam in first.exams:
        assert exam.n_points > 4 * (size.task.n_points - 1)
        assert sample_shifted(size.task, exam.shift, Draws(0, 0, "evaluation"), 2, exam.n_points).context.y.shape == (2, exam.n_points)


def test_gpu_and_paper_differ_in_length_and_seeds_only():
    gpu, paper = (experiment_runs("language_architectures", tier) for tier in ("gpu", "paper"))
    assert set(gpu) == set(paper)
    for title, run in gpu.items():
        assert replace(paper[title].train, steps=run.train.steps, seeds=run.train.seeds) == run.train and paper[title].train.steps > run.train.steps


def test_the_numbers_of_the_experiment_are_those_of_its_records(smoke):
    numbers = load_dataset(smoke.root / "language_architectures" / "smoke.nc")
    by_title = {}
    for label, config in experiment_runs("language_architectures", "smoke").items():
        by_title.setdefault(label.split(", rate ")[0], {})[config.train.lr] = load_dataset(smoke.root / "runs" / config.folder / "record.nc")
    assert list(numbers.who.values) == [*by_title, "Oracle", "Most common answer"] and all(len(records) == 2 for records in by_title.values())
    chosen = {title: min(records, key=lambda rate: records[rate]["loss"][:, -max(1, records[rate].sizes["step"] // 10):].mean().item()) for title, records in by_title.items()}
    face = (smoke.root / "language_architectures" / "smoke.svg").read_text()
    assert "of those run" in face
    for title, records in by_title.items():
        record = records[chosen[title]]
        other, = (other for rate, other in records.items() if rate != chosen[title])
        assert not np.array_equal(record["pooled"], other["pooled"])
        for shift in numbers["shift"].values:
            np.testing.assert_array_equal(numbers["value"].sel(who=title, shift=shift), record["pooled"].sel(shift=shift))
        by_hand = np.mean([record["score"].sel(shift=shift, examples=4).values for shift in record["shift"].values], 0)
        np.testing.assert_allclose(mean_accuracy(numbers, title, 4), by_hand)
    exams = ["forms_trained_tasks_trained_words", "facts_trained_tasks_trained_words"]
    means = {who: np.mean([numbers["value"].sel(who=who, shift=shift, examples=4).item() for shift in exams]) for who in ("Mamba", "Oracle", "Most common answer")}
    assert share_gained(numbers, "Mamba", 4, exams) == pytest.approx((means["Mamba"] - means["Most common answer"]) / (means["Oracle"] - means["Most common answer"]))
