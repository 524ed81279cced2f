# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sparse regression, ReLU networks and decision trees
# > Three families of functions that plain least squares does not fit, by Mamba and by a Transformer without positions, up to several times the training length. Grazzi et al., Fig. 2.
#
# **The claims.** Mamba learns all three about as well as the Transformer, close to the best method made for each. Beyond the training length it goes on better than the Transformer on ReLU networks.
#
# **And one more model.** MambaFormer, Park et al.'s, is not in this paper; it stands beside the two to see what it does beyond the training length.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("grazzi_functions", globals())

# %%
import altair as alt
import pandas as pd

from iclrepro.charts import publish, score_chart, score_rows, use_svg, with_face
from iclrepro.claims import KNOWS, judge_all, ledger, save_verdicts
from iclrepro.experiments import at_hand, collect, config_of, costs, drawn_examples, function_yardsticks, gather_panels, left_out, panel_of, published
use_svg()

# %% [markdown]
# ## The runs

# %%
records = collect(settings, partly=True)
configs = {label.rpartition(", ")[2]: config_of(record) for label, record in records.items()}
pd.DataFrame({label: {"d": run.task.dim, "points": run.task.n_points, "width": run.model.d_model, "steps": run.steps, "rate": run.lr, "seeds": len(run.seeds)}
              for label, run in ((label, config_of(record).train) for label, record in records.items())}).T

# %% [markdown]
# Beside the models stand the methods that the paper draws: least squares, Lasso, a network trained by gradient descent on each prompt, greedy trees and gradient-boosted trees. Those that fit anew for every prompt and number of examples are asked at a few numbers only.

# %%
yardsticks = {panel: at_hand(function_yardsticks(config), config, settings.root) for panel, config in configs.items()}
missing = [title for panel, config in configs.items() for title in function_yardsticks(config) if title not in yardsticks[panel]]
numbers = gather_panels(settings, records, yardsticks)
panels = {panel: panel_of(numbers, panel) for panel in configs}


# %% [markdown]
# ## Main numbers
#
# In $d$-normalised error, as the paper has it, knowing nothing costs $\mathbb E[y^2] / d$: 1 for a ReLU network, $k/d$ for $k$ non-zero weights, $1/d$ for a tree. $K$ is the largest number of in-context examples in training.

# %%
def at(panel, who, factor):
    part = panels[panel]
    return part["value"].sel(who=who, shift="none", examples=factor * part.attrs["trained_to"]).item() if who in part.who.values else float("nan")

table = pd.DataFrame({f"{panel}, {title}": {who: at(panel, who, factor) for who in numbers.who.values} for panel in panels for title, factor in (("0", 0), ("K", 1), ("2K", 2))})
table.index.name = "model"
table.round(4)

# %% [markdown]
# What knowing nothing costs is known beforehand.

# %%
for panel, config in configs.items():
    zero = panels[panel].sel(who=list(yardsticks[panel])[0], shift="none", examples=0)
    standard_error = (zero["high"] - zero["low"]).item() / (2 * 1.645)
    assert abs(zero["value"].item() - config.train.task.normaliser / config.train.task.dim) < 5 * standard_error, panel

# %% [markdown]
# ## The figure

# %%
PAPER = {"sparse linear regression": "a_sparseLR", "relu network": "b_relu2nn", "decision tree": "c_dtree"}
TITLES = {"sparse linear regression": "sparse linear regression", "relu network": "ReLU network", "decision tree": "decision tree"}
paper = published("grazzi_curves").replace({"model": {"Transformer": "Transformer, no positions"}}).rename(columns={"model": "who", "error": "value", "run": "line"})

def panel_chart(panel):
    part = panels[panel]
    task, longest = configs[panel].train.task, configs[panel].exams[0].n_points
    rows = score_rows(part.sel(examples=sorted({*drawn_examples(longest, 2 * task.dim), part.attrs["trained_to"]})), part.who.values, ["none"])
    theirs = paper[(paper.panel == PAPER[panel]) & paper.who.isin(["Mamba", "Transformer, no positions"])] if task.dim == 20 else None
    zero = task.normaliser / task.dim
    lowest = zero / 100 if theirs is None else max(1e-5, 0.7 * min(rows["value"].min(), theirs["value"].min()))  # an exact solution's error is rounding only
    chart = score_chart(rows, part.attrs["trained_to"], "squared error / d", published=theirs, log_x=True, log_y=True, y_domain=(lowest, 2 * zero), width=230, height=220)
    return chart.properties(title=alt.TitleParams(TITLES[panel], anchor="middle", fontSize=12))

both = [panel for panel in panels if all(f"{who}, {panel}" in records for who in ("Mamba", "Transformer, no positions"))]
finding = "Error at the training length, Mamba against the Transformer: " + "; ".join(f"{TITLES[panel]} {at(panel, 'Mamba', 1):.2g} against {at(panel, 'Transformer, no positions', 1):.2g}" for panel in both)
weak = [label for label in records for who, panel in [label.rsplit(", ", 1)] if not at(panel, who, 1) < KNOWS * configs[panel].train.task.normaliser / configs[panel].train.task.dim]
notes = [*([f"Too small or too short to learn at this tier: {'all models' if len(weak) == len(records) else '; '.join(weak)}."] if weak else []),
         "Dashed: the paper's runs." if all(config.train.task.dim == 20 for config in configs.values()) else "The paper's d is 20; its curves are drawn at the larger tiers.",
         *([f"Not installed: {', '.join(missing)}."] if missing else []), *left_out(settings, records)]
chart = with_face(alt.hconcat(*map(panel_chart, panels)).resolve_scale(color="independent", strokeDash="independent"), finding, settings.tier, notes)
paths = publish(settings.stem, numbers, chart, table)
chart

# %% [markdown]
# ## Verdicts

# %%
verdicts = judge_all(settings.root, settings.experiment, (settings.tier,))
save_verdicts(verdicts, f"{settings.stem}.verdicts.json")
ledger(verdicts)

# %% [markdown]
# ## What it cost

# %%
costs(settings, records)
