"""Rules of the repository: generated files in step, one direction of imports, notebooks as the house writes them."""
import ast
import json
import re
import shutil
import subprocess
import sys
from functools import cache

import pytest
from project import MODULES, ROOT, name_of, run

FILES_AND_CHARTS = {"xarray", "altair", "papermill", "nbformat", "nbconvert", "jupytext", "snakemake", "IPython"}
DEVELOPMENT_ONLY = {"nbdev", "fastcore", "execnb", "pytest"}
OPTIONAL = {"numba", "triton", "mamba_ssm", "causal_conv1d", "sklearn", "joblib", "xgboost", "transformers", "tokenizers", "safetensors", "huggingface_hub", "gguf", "accelerate"}

LIBRARY_NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
SOURCES = sorted(path for path in (ROOT / "iclrepro").glob("*.py") if not path.stem.startswith("_"))


@pytest.fixture(scope="module")
def out_of_step(tmp_path_factory):
    """What `make sync` changes in a copy of the repository whose modules were deleted first, so that strays show."""
    copy = tmp_path_factory.mktemp("copy")
    keep = [name for name in ("settings.ini", "README.md", "nbs", "iclrepro", ".ci") if (ROOT / name).exists()]
    for name in keep:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else: shutil.copy2(ROOT / name, copy / name)

    def contents():
        files = [path for name in keep for path in [copy / name, *(copy / name).rglob("*")] if path.is_file()]
        return {path.relative_to(copy).as_posix(): path.read_bytes() for path in files}

    before = contents()
    for path in (copy / "iclrepro").glob("*.py"):
        if path.stem != "__init__": path.unlink()
    run("bash", ".ci/sync", cwd=copy)
    after = contents()
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_exported_modules_are_in_step(out_of_step):
    assert {name for name in out_of_step if name.startswith("iclrepro/")} == set(), "make sync"


def test_notebooks_are_clean_and_twins_in_step(out_of_step):
    assert {name for name in out_of_step if name.startswith("nbs/")} == set(), "make sync"


def test_readme_is_in_step(out_of_step):
    assert "README.md" not in out_of_step, "README.md is generated: edit nbs/index.ipynb, then make sync"


def test_every_experiment_has_a_twin():
    twins = {path.stem for path in (ROOT / "nbs/experiments").glob("*.py")}
    assert twins == {path.stem for path in (ROOT / "nbs/experiments").glob("*.ipynb")}


def tree(path): return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Every module that a source file imports, inside functions too; our own as `iclrepro.name`."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["iclrepro" if node.level else "", node.module]))
            found |= {f"iclrepro.{alias.name}" for alias in node.names} if module == "iclrepro" else {module}
    return found


def test_the_order_lists_every_module():
    assert sorted(path.stem for path in SOURCES) == sorted(MODULES)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_imports_only_what_stands_before_it(path):
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("iclrepro.")}
    assert ours <= set(MODULES[:MODULES.index(path.stem)])


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_knows_only_what_its_place_allows(path):
    external = {name.split(".")[0] for name in imports(path)}
    forbidden = DEVELOPMENT_ONLY | (FILES_AND_CHARTS if MODULES.index(path.stem) < MODULES.index("results") else set())
    assert external & forbidden == set()


def test_the_library_needs_no_optional_package():
    run(sys.executable, "-c", f"""
import sys
for name in {sorted(OPTIONAL | DEVELOPMENT_ONLY)}: sys.modules[name] = None
import importlib
for name in {[path.stem for path in SOURCES]}: importlib.import_module("iclrepro." + name)
""")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_public_definitions_have_docstrings(path):
    body = tree(path).body
    (public,) = [ast.literal_eval(node.value) for node in body
                 if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__"]
    defined = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert [node.name for node in defined if node.name in public and not ast.get_docstring(node)] == []


@cache
def cells(path, kind="code"):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def directive(cell): return next(iter("".join(cell["source"]).splitlines()), "")


def outputs(path): return [output for cell in cells(path) for output in cell["outputs"]]


def test_there_are_notebooks():
    assert len(LIBRARY_NOTEBOOKS) >= len(MODULES)
    assert len(NOTEBOOKS) > len(LIBRARY_NOTEBOOKS)


@pytest.mark.parametrize("path", LIBRARY_NOTEBOOKS, ids=name_of)
def test_a_notebook_holds_one_concept(path):
    exported = [line for cell in cells(path) if re.match(r"#\| *export", directive(cell))
                for line in "".join(cell["source"]).splitlines() if not line.startswith("#|")]
    assert len(exported) <= 260, "two concepts: split it"


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != "index"], ids=name_of)
def test_a_notebook_opens_with_its_concept(path):
    title, sentence, *_ = filter(None, "".join(cells(path, "markdown")[0]["source"]).splitlines())
    assert title.startswith("# ") and sentence.startswith("> ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_holds_no_error(path):
    assert [output["evalue"] for output in outputs(path) if output["output_type"] == "error"] == []


@pytest.mark.parametrize("path", LIBRARY_NOTEBOOKS, ids=name_of)
def test_a_library_notebook_shows_its_results(path):
    assert outputs(path), "no cell shows anything: make notebooks"


def project_files():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_path_of_one_machine():
    somewhere = re.compile(rb"(?<![\w./:-])/(?:home|root|Users|work|tmp|private|mnt|scratch)/[\w.]+")
    found = {name_of(path): somewhere.findall(path.read_bytes()) for path in project_files()}
    assert len(found) > 20
    assert {name: hits for name, hits in found.items() if hits} == {}
