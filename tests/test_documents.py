"""Every path, name and command that README.md and CONTRIBUTING.md give a reader exists, and their Python runs."""
import contextlib
import io
import re
import shlex
import shutil
import sys
from functools import cache
from importlib import import_module

import pytest
from iclrepro.cli import main
from project import BIN, MODULES, ROOT, run, settings

DOCUMENTS = [name for name in ("README.md", "CONTRIBUTING.md") if (ROOT / name).exists()]
FENCE = re.compile(r"^```([\w.-]*)[^\n]*\n(.*?)^```", re.M | re.S)
SUFFIXES = "py|ipynb|md|ini|ya?ml|lock|cff|toml|svg|json|nc|txt|png"
PLAIN_NAMES = {"Makefile", "Snakefile", "LICENSE"}
OUTPUTS = "results", ".venv", "out.ipynb", "draft.py"  # what a reader's own commands write
SHELLS = "sh", "bash", "shell", "console"
TREE = "├└│─ "


def text_of(document): return (ROOT / document).read_text(encoding="utf-8")


def fences(document, *languages): return [body for language, body in FENCE.findall(text_of(document)) if language in languages]


def spans(document): return re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(document)))


def commands(document):
    """Each command line in a document's shell blocks and, where it starts like one, in its text."""
    blocks = "\n".join(fences(document, *SHELLS)).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in blocks.splitlines()]
    lines += [span for span in spans(document) if re.match(r"(\w+=\S+ +)*(make|iclrepro|papermill|python3?|pip|conda) ", span)]
    lines += [span for span in spans(document) if re.fullmatch(r"nbdev_\w+|pytest|source \S+", span)]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|\|?|;", re.sub(r"(^|\s)#.*", "", line))]
    return sorted(set(filter(None, parts)))


def exists(path):
    """Whether a path that a document names is there; `<word>` and `{word}` stand for anything."""
    pattern = re.sub(r"<[^>]*>|\{[^}]*\}|…", "*", path).rstrip("/").removeprefix("./")
    return pattern.split("/")[0] in OUTPUTS or any(ROOT.glob(pattern))


def looks_like_a_path(word):
    if not re.fullmatch(r"[\w./*<>{}…-]+", word) or word.startswith("/"): return False
    return (word.endswith("/") or re.search(rf"\.({SUFFIXES})$", word) or word in PLAIN_NAMES
            or "/" in word and (ROOT / word.split("/")[0]).exists())


def named_paths(document):
    """The paths of a document: links, images, code spans, arguments of commands, lines of a file tree."""
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", FENCE.sub("", text_of(document)))
    found = [target.split("#")[0] for pair in links for target in pair if target and not re.match(r"\w+:|#", target)]
    found += [word for span in spans(document) for word in span.split() if looks_like_a_path(word)]
    found += [word for command in commands(document) for word in command.split() if looks_like_a_path(word)]
    for tree in fences(document, "", "text"):
        folders = []
        for line in tree.splitlines() if "settings.ini" in tree else ():
            name = (line.lstrip(TREE).split() or [""])[0]
            if not looks_like_a_path(name): continue
            depth = len(line) - len(line.lstrip(TREE))
            folders = [(at, folder) for at, folder in folders if at < depth]
            found.append("".join(folder for _, folder in folders) + name)
            if name.endswith("/"): folders.append((depth, name))
    return sorted({path for path in found if path})


def test_readme_is_generated_and_whole():
    assert (ROOT / "README.md").exists(), "write nbs/index.ipynb, then make sync"
    assert {"make reproduce", "make test"} <= set(commands("README.md"))
    assert any("settings.ini" in tree for tree in fences("README.md", "", "text")), "the file tree is missing"
    snippets = fences("README.md", "python")
    for decorator in "@register_block(", "@register_task(":
        (example,) = [snippet for snippet in snippets if decorator in snippet]
        body = [line for line in example.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
        assert len(body) <= 12, f"the example with {decorator} is promised in ten lines and has {len(body)}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_in_documents_exist(document):
    paths = named_paths(document)
    assert paths
    assert [path for path in paths if not exists(path)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_names_in_documents_exist(document):
    for span in spans(document):
        if not re.fullmatch(r"iclrepro(\.\w+)+", span): continue
        module, *attributes = span.removeprefix("iclrepro.").split(".")
        value = import_module(f"iclrepro.{module}")
        for attribute in attributes: value = getattr(value, attribute)


def test_the_guide_gives_the_order_of_modules():
    assert f"{', '.join(MODULES)}." in " ".join(text_of("CONTRIBUTING.md").split())


@cache
def help_of(*command):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended: main([*command, "--help"])
    assert ended.value.code == 0
    return said.getvalue()


def make_targets():
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))


def check_make(words):
    allowed = set(re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.M)) | {"PYTHON"}
    for word in words:
        variable, equals, _ = word.partition("=")
        if word.startswith("-"): continue
        if equals: assert variable in allowed, f"the Makefile has no setting {variable}"
        else: assert word in make_targets(), f"the Makefile has no target {word}"


def check_iclrepro(words):
    name = [word for word in words if not word.startswith("-")][:1]
    known = re.findall(r"--[\w-]+", help_of(*name))
    for option in words:
        if option.startswith("--"): assert option.split("=")[0] in known, f"iclrepro {' '.join(name)} has no {option}"


def check_papermill(words):
    papermill = import_module("papermill")
    known = papermill.inspect_notebook(ROOT / words[0])
    given = {words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-p", "--parameters", "-r")}
    assert given <= set(known), f"{words[0]} has parameters {sorted(known)}"


def check_pip(words):
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert all(f"{name}_requirements" in settings for name in extra.split(",")), f"settings.ini has no extra {extra}"


def check_python(words):
    if words[:1] == ["-m"]: assert words[1] == "pip" or import_module(words[1].partition(".")[0])


CHECKS = {"make": check_make, "iclrepro": check_iclrepro, "papermill": check_papermill, "pip": check_pip,
          "python": check_python, "python3": check_python}
ELSEWHERE = {"cd", "source", "git", "conda", "tail", "less", "open"}  # their paths are checked, they are not


@pytest.mark.parametrize("document, command", [(document, command) for document in DOCUMENTS for command in commands(document)])
def test_commands_in_documents_exist(document, command):
    words = [word for word in shlex.split(command, comments=True) if word not in ("…", "...")]
    while "=" in words[0]: words.pop(0)
    program, *words = words
    if program in CHECKS: CHECKS[program](words)
    elif "/" in program: assert exists(program)
    else: assert program in ELSEWHERE or shutil.which(program, path=BIN), f"{program} is not installed by the lock files"


SNIPPETS = fences("README.md", "python") if "README.md" in DOCUMENTS else []  # test_readme_is_generated_and_whole says what is missing


@pytest.mark.skipif("README.md" not in DOCUMENTS, reason="test_readme_is_generated_and_whole says what is missing")
def test_the_readme_has_python_to_copy(): assert SNIPPETS


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_each_python_block_of_the_readme_runs_alone(snippet, tmp_path):
    """A reader copies one block: what it needs it must import, and no other process knows what it registers."""
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    (tmp_path / "readme.py").write_text(snippet, encoding="utf-8")
    run(sys.executable, "readme.py", cwd=tmp_path, OMP_NUM_THREADS="1")


def test_make_explains_every_target():
    phony = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split())
    assert phony <= make_targets()
    assert {f"make {target}" for target in phony - {"help"}} <= set(re.findall(r"make \w+", run("make", "--no-print-directory")))
