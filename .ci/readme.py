"""Write README.md from nbs/index.ipynb, without running it."""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]

notebook = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
notebook.metadata["language_info"] = {"name": "python"}  # cleaned away with the interpreter's version; names the fences
tags = {"enabled": True, "remove_input_tags": {"hide-input"}, "remove_cell_tags": {"hide-cell"}}
text, resources = MarkdownExporter(config=Config(TagRemovePreprocessor=tags)).from_notebook_node(notebook)
if resources["outputs"]:
    raise SystemExit("nbs/index.ipynb displays a picture: link to a file in figures/ instead")
text = re.sub(r'(\]\(|src=")\.\./', r"\1", text)  # the README stands one folder above its notebook
(ROOT / "README.md").write_text(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", encoding="utf-8")
