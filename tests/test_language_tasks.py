"""Language tasks: pairs against functions written anew, prompts and filter against the plain way, facts against what everybody knows, and that they are in the package."""
import dataclasses
import itertools
import re
import shutil
import string
import sys
import tarfile
import unicodedata
import zipfile
from collections import Counter

import pytest
from project import ROOT, name_of, run

from iclrepro.language_tasks import (FAMILIES, LANGUAGE_TASKS, PAPER_TASKS, LanguageTask, Pair, chance, column_pairs, fact_table,
                                     few_shot_questions, is_correct, language_task, majority_share, tokenizer_filter)

TABLES = sorted((ROOT / "iclrepro/facts").glob("*.tsv"))
EVERY = pytest.mark.parametrize("task", LANGUAGE_TASKS.values(), ids=list(LANGUAGE_TASKS))

# Grazzi et al., columns of the table of accuracies, and what the released code has besides.
EVALUATED = """algorithmic_list_first algorithmic_list_last algorithmic_next_letter algorithmic_prev_letter algorithmic_to_lower algorithmic_to_upper
knowledge_country_capital knowledge_location_continent knowledge_location_religion knowledge_person_language linguistic_antonyms linguistic_plural_singular
linguistic_present_simple_gerund linguistic_present_simple_past_simple translation_en_es translation_en_fr translation_es_en translation_fr_en""".split()
OTHERS = """algorithmic_list_min algorithmic_list_max algorithmic_list_length algorithmic_char_to_int algorithmic_int_to_char translation_it_en translation_en_it
linguistic_singular_plural linguistic_present_simple_past_perfect""".split()


def made(*rows, match="exact", family="linguistic", single_token=True, name="made_up"):
    return LanguageTask(name, family, tuple(Pair(x, y[0], tuple(y)) for x, *y in rows), match, "made up", False, single_token)


# The list of tasks ----------------------------------------------------------------------------------------------------

def test_the_tasks_are_those_of_the_released_code():
    assert sorted(LANGUAGE_TASKS) == sorted(EVALUATED + OTHERS) and len(LANGUAGE_TASKS) == 27
    assert sorted(PAPER_TASKS) == sorted(EVALUATED)
    assert all(name == task.name and name.startswith(task.family) for name, task in LANGUAGE_TASKS.items())
    assert Counter(task.family for task in LANGUAGE_TASKS.values()) == {"algorithmic": 11, "translation": 6, "linguistic": 6, "knowledge": 4}


@EVERY
def test_a_task_is_well_formed(task):
    assert task.match == {"algorithmic": "exact", "translation": "accepted", "linguistic": "exact", "knowledge": "prefix"}[task.family]
    assert task.single_token == (task.family in ("translation", "linguistic")) and task.evaluated == (task.name in EVALUATED) and task.source
    for pair in task.pairs:
        assert pair.output == pair.accepted[0] and len(set(pair.accepted)) == len(pair.accepted)
        for text in (pair.input, *pair.accepted): assert text == text.strip() != "" and not re.search(r"[\n\t|]|->", text)
        if task.match == "exact": assert pair.accepted == (pair.output,)
        assert is_correct(task, f" {pair.output}", pair.accepted)
    assert len({pair.input for pair in task.pairs}) == len(task.pairs)
    if task.family != "algorithmic": assert len(task.pairs) >= (100 if task.family == "knowledge" else 150)
    assert majority_share(task) < 0.5


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(ValueError, match="translation_fr_en"): language_task("translate_fr_en")
    with pytest.raises(ValueError, match="algorithmic_next_letter.*knowledge_location_religion"): language_task("xyz")
    assert language_task("linguistic_antonyms") is LANGUAGE_TASKS["linguistic_antonyms"]


def test_a_wrong_task_is_refused():
    for change, message in (dict(family="logic"), "family of made_up is 'logic'"), (dict(match="close"), "match of made_up is 'close'"):
        with pytest.raises(ValueError, match=message): dataclasses.replace(made(("a", "b")), **change)
    with pytest.raises(ValueError, match="'a' come twice"): made(("a", "b"), ("a", "c"))
    with pytest.raises(ValueError, match="'x' in made_up must be among"): LanguageTask("made_up", FAMILIES[0], (Pair("x", "y", ("z",)),), "exact", "", False, False)
    for row in ("a", ""), ("a", "b", " "), ("", "b"), ("a", "b\nc"):
        with pytest.raises(ValueError, match="made_up has the text .*: a prompt needs texts of one line"): made(row, match="prefix")


# Algorithmic pairs, by other means ------------------------------------------------------------------------------------

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def of_list(choose): return lambda x: choose(re.findall(r"[^,]+", x))


ANEW = {
    "next_letter": lambda x: dict(itertools.pairwise(ALPHABET))[x],
    "prev_letter": lambda x: {b: a for a, b in itertools.pairwise(ALPHABET)}[x],
    "list_first": lambda x: x[0],
    "list_last": lambda x: x[-1],
    "list_min": lambda x: next(digit for digit in "0123456789" if digit in x),
    "list_max": lambda x: next(digit for digit in "9876543210" if digit in x),
    "list_length": lambda x: str(x.count(",") + 1),
    "to_upper": lambda x: dict(zip(ALPHABET, string.ascii_uppercase))[x],
    "to_lower": lambda x: dict(zip(string.ascii_uppercase, ALPHABET))[x],
    "char_to_int": lambda x: {letter: digit for letter, digit in zip("abcdefghi", "123456789")}[x],
    "int_to_char": lambda x: "?abcdefghi"[int(x)],
}
INPUTS = {
    "next_letter": set(ALPHABET[:25]), "prev_letter": set(ALPHABET[1:]), "to_upper": set(ALPHABET), "to_lower": set(string.ascii_uppercase),
    "char_to_int": set("abcdefghi"), "int_to_char": set("123456789"),
}


@pytest.mark.parametrize("name", ANEW)
def test_algorithmic_pairs(name):
    pairs = LANGUAGE_TASKS[f"algorithmic_{name}"].pairs
    assert {pair.input: pair.output for pair in pairs} == {pair.input: ANEW[name](pair.input) for pair in pairs}
    if name in INPUTS: assert {pair.input for pair in pairs} == INPUTS[name]


@pytest.mark.parametrize("name, symbols, lengths", [("list_first", ALPHABET, (2, 3, 4)), ("list_last", ALPHABET, (2, 3, 4)), ("list_min", "0123456789", (2, 3, 4)),
                                                    ("list_max", "0123456789", (2, 3, 4)), ("list_length", ALPHABET, (1, 2, 3))])
def test_lists_are_what_they_should_be(name, symbols, lengths):
    inputs = [pair.input for pair in LANGUAGE_TASKS[f"algorithmic_{name}"].pairs]
    assert all(re.fullmatch(rf"[{symbols}](,[{symbols}])*", x) for x in inputs)
    counts = Counter((len(x) + 1) // 2 for x in inputs)
    assert counts == {length: len(symbols) ** lengths[0] for length in lengths}
    assert {x for x in inputs if len(x) == 2 * lengths[0] - 1} == {",".join(word) for word in itertools.product(symbols, repeat=lengths[0])}
    letters = Counter(letter for x in inputs for letter in x if letter != ",")
    expected = letters.total() / len(symbols)
    assert set(letters) == set(symbols) and max(abs(n - expected) for n in letters.values()) < 5 * expected**0.5


# Prompts --------------------------------------------------------------------------------------------------------------

LINE = re.compile(r"example:(.+)->(.*)")


@EVERY
@pytest.mark.parametrize("n_examples", (0, 1, 5))
def test_prompts(task, n_examples):
    truth = {pair.input: pair for pair in task.pairs}
    questions = few_shot_questions(task, n_examples, 40, seed=3)
    assert len(questions) == 40
    for question in questions:
        *examples, asked = [LINE.fullmatch(line).groups() for line in question.prompt.split("\n")]
        assert len(examples) == n_examples and len({x for x, _ in examples}) == n_examples
        assert all(y == truth[x].output for x, y in examples)
        assert asked[1] == "" and asked[0] not in {x for x, _ in examples}
        assert (question.output, question.accepted) == truth[asked[0]][1:]


def test_the_format_is_the_papers():
    (question,) = few_shot_questions(made(("a", "b"), ("c", "d")), 1, 1, seed=0)
    assert question.prompt in ("example:a->b\nexample:c->", "example:c->d\nexample:a->")


@EVERY
def test_numbers_of_examples_share_questions_and_contexts(task):
    most = min(len(task.pairs) - 1, 20)
    longest = few_shot_questions(task, most, 30, seed=1)
    for n_examples in range(0, most, 3):
        for short, long in zip(few_shot_questions(task, n_examples, 12, seed=1), longest):
            assert long.prompt.splitlines()[-n_examples - 1:] == short.prompt.splitlines() and short[1:] == long[1:]


def test_every_input_is_asked_equally_often_with_other_examples():
    task = LANGUAGE_TASKS["algorithmic_to_upper"]
    questions = few_shot_questions(task, 5, 400, seed=0)
    asked = Counter(question.output for question in questions)
    assert set(asked.values()) == {15, 16} and len(asked) == 26  # 400 = 15 * 26 + 10
    assert len({question.prompt for question in questions}) == 400
    used = Counter(line for question in questions for line in question.prompt.splitlines()[:-1])
    assert len(used) == 26 and max(abs(n - 2000 / 26) for n in used.values()) < 5 * (2000 / 26) ** 0.5
    together = Counter(tuple(question.prompt.splitlines()[-2:]) for question in few_shot_questions(task, 1, 26 * 25 * 8, seed=0))
    assert len(together) > 0.99 * 26 * 25  # any other pair may be the example of a question


def test_seeds_and_tasks_differ():
    upper = LANGUAGE_TASKS["algorithmic_to_upper"]
    draw = lambda task, seed: [question.prompt for question in few_shot_questions(task, 3, 26, seed)]
    assert draw(upper, 0) == draw(upper, 0) != draw(upper, 1)
    assert draw(upper, 0) != draw(dataclasses.replace(upper, name="another"), 0)
    assert draw(upper, 2**40) != draw(upper, 0)


def test_all_pairs_but_the_question_can_be_examples():
    task = LANGUAGE_TASKS["algorithmic_char_to_int"]
    for question in few_shot_questions(task, 8, 20, seed=0): assert len(set(question.prompt.splitlines())) == 9


def test_what_cannot_be_asked_is_said():
    task = LANGUAGE_TASKS["algorithmic_char_to_int"]
    with pytest.raises(ValueError, match="algorithmic_char_to_int has 9 distinct inputs: a prompt with 9 examples and a question needs 10. Ask for at most 8"):
        few_shot_questions(task, 9, 1, seed=0)
    with pytest.raises(ValueError, match="has 0 distinct inputs"): few_shot_questions(made(), 0, 1, seed=0)
    for name, arguments in ("n_examples", (-1, 1, 0)), ("n_prompts", (1, 0, 0)), ("seed", (1, 1, -1)):
        with pytest.raises(ValueError, match=f"{name} is"): few_shot_questions(task, *arguments)
    for name, arguments in ("n_examples", (1.0, 1, 0)), ("n_prompts", (1, 1.5, 0)), ("seed", (1, 1, "0")):
        with pytest.raises(ValueError, match=f"{name} is .*: it must be an integer"): few_shot_questions(task, *arguments)


DIGEST = """
import hashlib, json
from iclrepro.language_tasks import LANGUAGE_TASKS, few_shot_questions, tokenizer_filter
tasks = [tokenizer_filter(task, str.split) for task in LANGUAGE_TASKS.values()]
everything = [list(LANGUAGE_TASKS), [task.pairs for task in tasks], [few_shot_questions(task, 4, 60, 7) for task in LANGUAGE_TASKS.values()]]
import sys
print(hashlib.sha256(json.dumps(everything).encode()).hexdigest(), "torch" in sys.modules)
"""


def test_nothing_depends_on_the_order_of_hashes():
    first, second = (run(sys.executable, "-c", DIGEST, PYTHONHASHSEED=seed).split() for seed in ("1", "2"))
    assert first == second and len(first[0]) == 64
    assert first[1] == "False", "the module must not import torch"


# What counts as right -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("match, completion, accepted, right", [
    ("exact", "went", "went", True), ("exact", " went ", "went", True), ("exact", "went", " went", True), ("exact", "we", "went", False), ("exact", "Went", "went", False),
    ("exact", "", "went", False), ("accepted", "auto", "voiture|auto", True), ("accepted", "AUTO", "voiture|auto", True), ("accepted", "voit", "voiture|auto", False),
    ("accepted", "", "voiture", False), ("prefix", "Buen", "Buenos Aires", True), ("prefix", " B", "Buenos Aires", True), ("prefix", "Parisian", "Paris", True),
    ("prefix", "aris", "Paris", False), ("prefix", "paris", "Paris", False), ("prefix", "", "Paris", False), ("prefix", "  ", "Paris", False),
    ("prefix", "La", "Sucre|La Paz", True), ("prefix", "Kiev", "Kyiv|Kiev", True),
])
def test_match_rules(match, completion, accepted, right):
    assert is_correct(made(match=match), completion, accepted.split("|")) is right


def test_shares_by_counting():
    for name in ("knowledge_location_religion", "translation_fr_en", "algorithmic_list_length", "linguistic_singular_plural"):
        task = LANGUAGE_TASKS[name]
        few = dataclasses.replace(task, pairs=task.pairs[:60])
        right = [is_correct(few, other.output, pair.accepted) for pair, other in itertools.permutations(few.pairs, 2)]
        assert chance(few) == pytest.approx(sum(right) / len(right), abs=1e-12)
        outputs = [pair.output for pair in few.pairs]
        assert majority_share(few) == max(outputs.count(output) for output in outputs) / 60
    assert chance(made(("a", "x"), ("b", "x"))) == 1 and chance(made(("a", "x"), ("b", "y"))) == 0
    assert chance(made(("a", "x"))) != chance(made(("a", "x"))) and majority_share(made()) != majority_share(made())  # nan


# The tokenizer filter -------------------------------------------------------------------------------------------------

def pieces(*known, start=()):
    """Toy tokenizer: the longest known piece, else a character, behind the tokens with which every text starts."""
    pattern = re.compile("|".join([*map(re.escape, sorted(known, key=len, reverse=True)), "."]))
    return lambda text: [*start, *pattern.findall(text)]


PLAIN = [f"word{chr(97 + i)}" for i in range(10)]
TEN = made(*[(f"in{word}", word) for word in PLAIN])


def spaced(n): return [f" {word}" for word in PLAIN[:n]]


@pytest.mark.parametrize("start", [(), ("<s>",)], ids=["no start", "a start token"])
@pytest.mark.parametrize("known, kept, space", [
    (PLAIN, 10, False), (spaced(10), 10, True), (PLAIN + spaced(10), 10, True), (PLAIN + spaced(7), 7, True), (PLAIN + spaced(6), 10, False),
    (spaced(1), 1, True), ([], 0, True), (PLAIN[:9] + spaced(6), 9, False),
])
def test_the_filter_keeps_single_tokens(known, kept, space, start):
    encode = pieces(*known, start=start)
    task = tokenizer_filter(TEN, encode)
    assert len(task.pairs) == kept and task.name == TEN.name
    for pair in task.pairs:
        assert pair.input.startswith(" ") == pair.output.startswith(" ") == space and pair.accepted == (pair.output,)
        assert pair.output in encode(pair.output) and is_correct(task, pair.output, pair.accepted)


def test_the_filter_is_the_released_rule():
    """The rule as the released code has it, two tokens of "!" and output, on all tasks and a tokenizer of frequent pieces."""
    tasks = [task for task in LANGUAGE_TASKS.values() if task.single_token]
    outputs = sorted({pair.output for task in tasks for pair in task.pairs})
    encode = pieces(*outputs[::3], *[f" {word}" for word in outputs[::2]])
    assert len(tasks) == 12
    for task in tasks:
        plain = {pair.input: pair.output for pair in task.pairs}
        variants = plain, {f" {x}": f" {y}" for x, y in plain.items()}
        kept, with_space = ({x: y for x, y in variant.items() if len(encode(f"!{y}")) == 2} for variant in variants)
        expected = with_space if len(with_space) >= 0.7 * len(kept) else kept
        assert {pair.input: pair.output for pair in tokenizer_filter(task, encode).pairs} == expected
        assert 0 < len(expected) < len(plain)


def test_prefix_and_algorithmic_tasks_are_not_filtered():
    for task in LANGUAGE_TASKS.values():
        if not task.single_token: assert tokenizer_filter(task, list) is task


def test_filtered_prompts_carry_the_space():
    question = few_shot_questions(tokenizer_filter(TEN, pieces(*spaced(10))), 2, 1, seed=0)[0]
    assert len(re.findall(r"example: inword\w-> word\w\n", question.prompt)) == 2 and re.search(r"example: inword\w->$", question.prompt)


# Facts ----------------------------------------------------------------------------------------------------------------

def test_there_are_tables(): assert len(TABLES) == 8


@pytest.mark.parametrize("path", TABLES, ids=name_of)
def test_a_table_is_clean(path):
    content = path.read_bytes()
    text = content.decode("utf-8")
    assert "\r" not in text and "\ufeff" not in text and text.endswith("\n") and not text.endswith("\n\n") and "\xa0" not in text
    lines = text.splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert lines[:len(comments)] == comments and len(comments) >= 2 and all(re.match("# [A-Z].*[.]$", line) for line in comments), "what it holds and its source"
    header, *rows = [line.split("\t") for line in lines[len(comments):]]
    assert all(len(row) == len(header) for row in rows) and len({row[0] for row in rows}) == len(rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    entries = [entry for row in rows for cell in row for entry in cell.split("|")]
    assert all(entry and entry == " ".join(entry.split()) for entry in entries)
    assert text == unicodedata.normalize("NFC", text)
    for row in rows:
        for cell in row: assert len(set(cell.split("|"))) == len(cell.split("|")), f"twice the same: {cell}"


def test_tables_are_read_as_they_stand():
    rows = fact_table("capitals").rows
    assert rows[0] == {"country": ("Afghanistan",), "capital": ("Kabul",)} and {"country": ("Bolivia",), "capital": ("Sucre", "La Paz")} in rows
    assert fact_table("antonyms").source.startswith("English words and an opposite.") and "#" not in fact_table("antonyms").source


def test_a_row_with_a_cell_too_few_is_refused(tmp_path, monkeypatch):
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts/broken.tsv").write_text("# A table.\na\tb\nx\ty\nz\n", encoding="utf-8")
    monkeypatch.setattr("iclrepro.language_tasks.resources.files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="broken has 1 cells and must have 2"): fact_table("broken")


def test_an_unknown_table_or_column_names_those_there_are():
    with pytest.raises(ValueError, match=f"unknown table 'wordz': choose one of {', '.join(path.stem for path in TABLES)}"): fact_table("wordz")
    for columns in ("fr", "de"), ("de", "fr"):
        with pytest.raises(ValueError, match="unknown column 'de': choose one of en, fr, es, it"): column_pairs(fact_table("words").rows, *columns)


def test_an_input_that_comes_again():
    rows = [dict(a=("x",), b=("1", "one")), dict(a=("y", "x"), b=("2",)), dict(a=("x",), b=("3",))]
    assert column_pairs(rows, "a", "b") == (Pair("x", "1", ("1", "one", "2", "3")), Pair("y", "2", ("2",)))
    assert column_pairs(rows, "b", "a") == (Pair("1", "x", ("x",)), Pair("2", "y", ("y", "x")), Pair("3", "x", ("x",)))


# Spelling, written as rules. What a rule gets wrong, the table would have to have wrong in the same way.
VOWELS = "aeiou"
IRREGULAR_PLURALS = set("""man woman child person foot tooth goose mouse louse ox knife wife life leaf loaf wolf half shelf thief calf elf self criterion phenomenon analysis crisis thesis
hypothesis oasis basis axis diagnosis parenthesis synthesis nucleus stimulus alumnus fungus bacterium datum medium curriculum larva vertebra alga sheep deer series species aircraft salmon
stomach monarch quiz photo piano radio video studio""".split())


def regular_plural(noun):
    if re.search("(s|x|z|ch|sh)$", noun): return noun + "es"
    if re.search(f"[^{VOWELS}]y$", noun): return noun[:-1] + "ies"
    return noun + "es" if noun.endswith("o") else noun + "s"


def test_plurals():
    pairs = {pair.input: pair.output for pair in LANGUAGE_TASKS["linguistic_singular_plural"].pairs}
    assert {noun: plural for noun, plural in pairs.items() if noun not in IRREGULAR_PLURALS} == {noun: regular_plural(noun) for noun in pairs if noun not in IRREGULAR_PLURALS}
    assert IRREGULAR_PLURALS <= set(pairs) and all(pairs[noun] != regular_plural(noun) for noun in IRREGULAR_PLURALS)
    assert 40 <= len(IRREGULAR_PLURALS) <= len(pairs) - 100
    known = dict(child="children", ox="oxen", mouse="mice", wolf="wolves", thief="thieves", criterion="criteria", analysis="analyses", nucleus="nuclei", sheep="sheep", quiz="quizzes",
                 monarch="monarchs", potato="potatoes", piano="pianos", city="cities", monkey="monkeys", church="churches", larva="larvae")
    assert {noun: pairs[noun] for noun in known} == known
    assert {pair.input: pair.output for pair in LANGUAGE_TASKS["linguistic_plural_singular"].pairs} == {plural: noun for noun, plural in pairs.items()}


def ends_in_stressed_syllable(verb):
    """Whether a single consonant at the end is doubled: one vowel in front of it, and the last syllable stressed."""
    if not re.search(f"(^|[^{VOWELS}]|qu)[{VOWELS}][^{VOWELS}wxy]$", verb): return False
    syllables = len(re.findall(f"[{VOWELS}y]+", verb))
    return syllables == 1 or verb in {"admit", "begin", "forbid", "forget", "occur", "permit", "prefer", "regret"}


def stem(verb): return verb + verb[-1] if ends_in_stressed_syllable(verb) else verb


def regular_gerund(verb):
    if verb.endswith("ie"): return verb[:-2] + "ying"
    if re.search("[^eoy]e$", verb): return verb[:-1] + "ing"
    return stem(verb) + "ing"


def regular_past(verb):
    if verb.endswith("e"): return verb + "d"
    if re.search(f"[^{VOWELS}]y$", verb): return verb[:-1] + "ied"
    return stem(verb) + "ed"


def test_verbs():
    gerund, past, participle = ({pair.input: pair.output for pair in LANGUAGE_TASKS[f"linguistic_present_simple_{form}"].pairs} for form in ("gerund", "past_simple", "past_perfect"))
    assert gerund == {verb: regular_gerund(verb) for verb in gerund}  # gerunds have no exceptions but of spelling
    regular = {verb for verb in past if past[verb] == regular_past(verb)}
    irregular = set(past) - regular
    assert {verb for verb in past if past[verb].endswith("ed") and verb not in regular} <= {"bleed", "breed", "feed", "flee", "lead"}
    assert all(participle[verb] == past[verb] for verb in regular) and len(regular) >= 100 and len(irregular) >= 100
    assert {verb for verb in irregular if participle[verb] == regular_past(verb)} == set()
    known = dict(go=("went", "gone"), write=("wrote", "written"), catch=("caught", "caught"), put=("put", "put"), begin=("began", "begun"), run=("ran", "run"), see=("saw", "seen"),
                 think=("thought", "thought"), stop=("stopped", "stopped"), carry=("carried", "carried"), die=("died", "died"), play=("played", "played"), visit=("visited", "visited"))
    assert {verb: (past[verb], participle[verb]) for verb in known} == known
    assert [gerund[verb] for verb in ("run", "die", "see", "make", "visit", "begin", "agree")] == ["running", "dying", "seeing", "making", "visiting", "beginning", "agreeing"]


def test_antonyms_give_no_answer_away():
    pairs = {pair.input: pair.output for pair in LANGUAGE_TASKS["linguistic_antonyms"].pairs}
    assert all(pairs.get(output) != word for word, output in pairs.items())
    known = dict(hot="cold", big="small", buy="sell", always="never", above="below")
    assert {word: pairs[word] for word in known} == known


@pytest.mark.parametrize("name, known", {
    "translation_en_fr": dict(house="maison", dog="chien", water="eau", write="écrire", Monday="lundi"),
    "translation_fr_en": dict(maison="house", chien="dog", livre="book", rouge="red", décembre="December"),
    "translation_en_es": dict(house="casa", dog="perro", year="año", tree="árbol", yesterday="ayer"),
    "translation_es_en": dict(casa="house", perro="dog", leche="milk", rojo="red", jueves="Thursday"),
    "translation_en_it": dict(house="casa", dog="cane", city="città", tree="albero", today="oggi"),
    "translation_it_en": dict(casa="house", cane="dog", latte="milk", rosso="red", luglio="July"),
    "knowledge_country_capital": {"France": "Paris", "Japan": "Tokyo", "Australia": "Canberra", "Canada": "Ottawa", "Brazil": "Brasília", "Turkey": "Ankara", "Morocco": "Rabat", "Vietnam": "Hanoi"},
    "knowledge_location_continent": {"Paris": "Europe", "Nile": "Africa", "Andes": "South America", "K2": "Asia", "Denali": "North America", "Sydney": "Oceania", "Mount Erebus": "Antarctica"},
    "knowledge_location_religion": {"Italy": "Christian", "Iran": "Muslim", "India": "Hindu", "Thailand": "Buddhist", "Israel": "Jewish"},
    "knowledge_person_language": {"Voltaire": "French", "Leo Tolstoy": "Russian", "Cicero": "Latin", "Pablo Neruda": "Spanish", "Franz Kafka": "German", "Plato": "Greek"},
}.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_facts_that_everybody_knows(name, known):
    pairs = {pair.input: pair.output for pair in LANGUAGE_TASKS[name].pairs}
    assert {x: pairs[x] for x in known} == known


def test_other_answers_are_accepted():
    def accepted(name, asked, answer):
        (pair,) = [pair for pair in LANGUAGE_TASKS[name].pairs if pair.input == asked]
        return is_correct(LANGUAGE_TASKS[name], answer, pair.accepted)
    assert accepted("knowledge_country_capital", "Ukraine", "Kiev") and accepted("knowledge_country_capital", "South Africa", "Cape") and accepted("knowledge_country_capital", "Brazil", "Brasilia")
    assert accepted("translation_fr_en", "argent", "silver") and accepted("translation_fr_en", "femme", "wife") and accepted("translation_en_fr", "car", "auto")
    assert accepted("knowledge_location_continent", "Sydney", "Australia") and not accepted("knowledge_location_continent", "Fiji", "Australia")
    assert accepted("knowledge_location_religion", "Iran", "Islam") and not accepted("translation_en_fr", "dog", "chat")


def test_few_answers_are_balanced():
    def shares(name): return Counter(pair.output for pair in LANGUAGE_TASKS[f"knowledge_{name}"].pairs)
    assert len(set(shares("location_continent").values())) == 1 and len(shares("location_continent")) == 7
    assert min(shares("person_language").values()) >= 8 and len(shares("person_language")) >= 12
    assert min(shares("location_religion").values()) >= 10 and len(shares("location_religion")) == 5


# Packaging ------------------------------------------------------------------------------------------------------------

def test_the_package_carries_the_tables(tmp_path):
    """A wheel built from a source distribution has them, so both have."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("setup.py", "settings.ini", "MANIFEST.in"): shutil.copy2(ROOT / name, copy / name)
    shutil.copytree(ROOT / "iclrepro", copy / "iclrepro", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "out"), cwd=copy, PYTHONPATH="")
    expected = {f"iclrepro/facts/{path.name}": path.read_bytes() for path in TABLES}
    (source,) = (tmp_path / "out").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        found = {name.split("/", 1)[1]: archive.extractfile(name).read() for name in archive.getnames() if name.endswith(".tsv")}
    assert found == expected
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive: assert {name: archive.read(name) for name in archive.namelist() if name.endswith(".tsv")} == expected
