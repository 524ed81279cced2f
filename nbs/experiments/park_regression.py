# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Four regression tasks, by examples and by arithmetic
# > Lines, sparse lines, ReLU networks and decision trees, each new in every prompt: which architecture learns them, and what it spends on it. Park et al., Table 1 and the curves behind it.
#
# **The claims.** A Transformer, Mamba and MambaFormer learn all of them, except that Mamba leaves a gap on decision trees. Beside them stand S4 and S4-Mamba, whose recurrences do not depend on what they read.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("park_regression", globals())

# %%
import altair as alt
import pandas as pd

from iclrepro.charts import publish, score_chart, use_svg, with_face
from iclrepro.claims import SOLVED_FROM, end_errors, judge_all, ledger, save_verdicts, solved_by, table_marks
from iclrepro.experiments import STUDY_TITLES, collect, config_of, costs, gather_studies, not_run, published, study_numbers
from iclrepro.panels import decades, flops_chart, study_rows
use_svg()

# %% [markdown]
# ## The runs
#
# In the smaller tiers S4 and S4-Mamba learn one of the tasks.

# %%
records = collect(settings, partly=True)
tasks = {label.partition(", ")[2]: config_of(record).train for label, record in records.items()}
pd.DataFrame({study: {"d": t.task.dim, "points": t.task.n_points, "steps": t.steps, "learning rate": t.lr, "schedule": t.schedule, "width": t.model.d_model, "seeds": len(t.seeds)} for study, t in tasks.items()}).T

# %% [markdown]
# ## Errors after the longest context of training

# %%
numbers = gather_studies(settings, records)
table = pd.concat({study: end_errors(numbers, study) for study in numbers.study.values})
table.insert(0, "without context", [float(numbers["no_context"].sel(study=study)) for study, _ in table.index])
table.index = pd.Index([f"{who}, {STUDY_TITLES[study]}" for study, who in table.index], name="model")
table.round(4)

# %% [markdown]
# Without context nothing better than 0 can be said, and it costs what the chapter on these experiments says: 1, $k/d$ of a sparse line, $1/d$ of a tree. From $d$ examples on least squares knows a line, sparse or not, and neither a network nor a tree.

# %%
for study in numbers.study.values:
    fit, task = study_numbers(numbers, study).sel(who="Least squares", shift="none"), tasks[STUDY_TITLES[study]].task
    first, last = fit.sel(examples=0), fit["value"].isel(examples=-1)
    assert abs(first["value"] - numbers["no_context"].sel(study=study)) < 5 * (first["high"] - first["low"]) / (2 * 1.645)
    assert (last < 1e-6) == study.endswith("linear_regression")
table_marks(numbers).round(3)

# %% [markdown]
# ## The figure
#
# Above, the error by the number of in-context examples; below, the training loss by the operations that were spent on a seed: three times the forward pass of every prompt so far, the curriculum's short ones counted as such. The loss is a mean over all points of a prompt, those without enough context included, so it levels off above zero; and the
# curriculum makes the beginning of each curve easier than the rest. Park et al.'s own curves are not at hand; where $d$ is theirs, those of Grazzi et al. for the same tasks are drawn dashed (their models have no positions and another schedule).

# %%
GRAZZI = {"sparse_linear_regression": "a_sparseLR", "relu_network": "b_relu2nn", "decision_tree": "c_dtree"}

def grazzi(study):
    if tasks[STUDY_TITLES[study]].task.dim != 20: return None
    last = int(numbers["trained_to"].sel(study=study))
    if study == "linear_regression": rows = published("grazzi_fig8").replace({"Mamba?": "Mamba", "Transformer?": "Transformer"}).assign(line="Fig. 8")
    else: rows = published("grazzi_curves").query("panel == @GRAZZI[@study]").assign(line=lambda rows: rows.run.astype(str))
    rows = rows[rows.model.isin(["Mamba", "Transformer"]) & (rows.examples <= last)].rename(columns={"model": "who", "error": "value"})
    return rows.assign(line=rows.line + rows.who)[["who", "examples", "value", "line"]]

def panel(study):
    task, last, theirs, (low, high) = tasks[STUDY_TITLES[study]].task, int(numbers["trained_to"].sel(study=study)), grazzi(study), decades(numbers, study)
    if theirs is not None:  # a longer training goes further down
        low = min(low, max(1e-4, theirs.value.min()))
        theirs = theirs.assign(value=theirs.value.clip(low, high))
    errors = score_chart(study_rows(numbers, study), last, task.score_label, theirs, log_y=True, y_domain=(low, high), width=230, height=210)
    title = alt.TitleParams(STUDY_TITLES[study][0].upper() + STUDY_TITLES[study][1:], subtitle=f"d = {task.dim}", fontSize=12, anchor="start")
    return alt.vconcat(errors.properties(title=title), flops_chart(numbers, study, width=230))

short = ["Small tasks and small models: evidence that they can, not of what the papers' would not."] if settings.tier == "laptop" else ["This tier shows that everything runs, and nothing else."] if settings.tier == "smoke" else ["Dashed, coloured: Grazzi et al."]
chart = with_face(alt.hconcat(*map(panel, numbers.study.values)), solved_by(numbers), settings.tier,
                  [f"Solved: {SOLVED_FROM:.0%} of what the context offers.", *short, *not_run(settings, records)])
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
