"""A notebook is executed whole or not at all, by a process that needs little."""
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papermill.exceptions import PapermillExecutionError
from project import run

from iclrepro.drawing import execute, main, value_of

HEAVY = "torch", "numpy", "pandas", "xarray", "altair", "papermill"


@pytest.fixture
def notebook(tmp_path):
    "Says its parameter, where it runs, and 12 over the parameter."
    cells = [new_code_cell("width = 1", metadata={"tags": ["parameters"]}), new_code_cell("import os\nprint(type(width).__name__, os.path.basename(os.getcwd()))"), new_code_cell("12 // width")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (tmp_path / "home").mkdir()
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "home" / "twelve.ipynb")
    return tmp_path / "home" / "twelve.ipynb"


def said(path): return ["".join(output.get("text", "") or output["data"]["text/plain"] for output in cell.outputs) for cell in nbformat.read(path, 4).cells[-2:]]


def test_a_notebook_runs_in_its_folder_with_its_parameters(notebook, tmp_path):
    target = tmp_path / "made" / "here" / "sixths.ipynb"
    assert main([str(notebook), str(target), "width=6"]) == 0
    assert said(target) == ["int home\n", "2"] and [path.name for path in target.parent.iterdir()] == ["sixths.ipynb"]


def test_what_was_there_stays_if_a_cell_fails(notebook, tmp_path):
    target = tmp_path / "out.ipynb"
    execute(notebook, target, {"width": 5})
    before = target.read_bytes()
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"): execute(notebook, target, {"width": 0})
    assert target.read_bytes() == before


def test_what_was_executed_up_to_a_failure_is_beside_the_target(notebook, tmp_path):
    with pytest.raises(PapermillExecutionError): execute(notebook, tmp_path / "out" / "none.ipynb", {"width": 0})
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".none.ipynb"] and "ZeroDivisionError" in (tmp_path / "out" / ".none.ipynb").read_text()
    execute(notebook, tmp_path / "out" / "none.ipynb", {"width": 6})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["none.ipynb"]  # what failed before is of no interest now


def test_two_at_once_do_not_meet(tmp_path, monkeypatch):
    "The second begins and ends when the first has written all but has not put it in its place."
    target, seen = tmp_path / "out" / "who.ipynb", []

    def executed(notebook, copy, parameters, **options):
        copy.write_text(parameters["me"])
        if parameters["me"] == "first":
            execute(notebook, target, {"me": "second"})
            seen.append(target.read_text())

    monkeypatch.setattr("papermill.execute_notebook", executed)
    execute(tmp_path / "who.ipynb", target, {"me": "first"})
    assert [*seen, target.read_text()] == ["second", "first"] and [path.name for path in target.parent.iterdir()] == ["who.ipynb"]


@pytest.mark.parametrize("given", ["width", "=3", "a b=3", "tier-x=1"])
def test_what_is_no_parameter_is_refused_before_any_work(given, notebook, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended: main([str(notebook), str(tmp_path / "out.ipynb"), given])
    assert ended.value.code == 2 and f"{given!r} is no parameter: give NAME=VALUE" in capsys.readouterr().err and not (tmp_path / "out.ipynb").exists()


def test_values_are_literals_or_texts():
    assert [value_of(text) for text in ("3", "1e-3", "true", "null", '["a"]', "cuda:0", "a=b", "smoke")] == [3, 1e-3, True, None, ["a"], "cuda:0", "a=b", "smoke"]


def test_who_waits_for_a_kernel_needs_nothing_of_the_library():
    assert run(sys.executable, "-c", f"import sys, iclrepro.drawing; print([name for name in {HEAVY} if name in sys.modules])").strip() == "[]"
