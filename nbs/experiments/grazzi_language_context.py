# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Simple tasks in words, by number of examples
# > From one example to 256: what more of them do for a language model, and what the tasks do that cannot be asked any more. Grazzi et al., Fig. 7.
#
# **The claim.** More examples help. Whether most of the rise beyond 16 examples is due to the tasks that drop out of the mean, because an alphabet has no 33 letters or a run was not completed, is our own question.
#
# The paper's numbers are drawn both ways, over whichever tasks were asked and over those that were asked everywhere; beside them stands what we measure on pretrained models. To ask another model, give its name: `-p models state-spaces/mamba-2.8b-hf`, with `-p download True` if its weights may be fetched.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # ask the models that have no record yet
models = []           # names of models to ask instead of the tier's
download = False      # whether weights may be downloaded

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("grazzi_language_context", globals())

# %%
import json

import altair as alt
import numpy as np
import pandas as pd

from iclrepro.charts import MODEL_COLOURS, in_rows, publish, use_svg, with_face
from iclrepro.claims import judge_all, ledger, save_verdicts
from iclrepro.experiments import CONTEXT_LABELS, IN_FIGURE_7, architecture_of, collect_evaluations, evaluation_costs, experiment_evaluations, how_to_get, language_numbers, not_asked, of_like_size, paper_context, published
from iclrepro.language_tasks import PAPER_TASKS
use_svg()
pd.set_option("display.max_colwidth", 200)

# %% [markdown]
# ## Whom we ask, and what

# %%
asked = experiment_evaluations(settings.experiment, settings.tier, settings.models)
evaluated = collect_evaluations(settings, print)
pd.DataFrame({label: {"model": run.model, "tasks": len(run.tasks), "examples": ", ".join(map(str, run.examples)), "questions a task": run.n_prompts, "record": run.folder if label in evaluated.records else "missing", "source": evaluated.records[label].attrs["source"] if label in evaluated.records else how_to_get(run.model)}
              for label, run in asked.items()}).T

# %%
evaluated.missing

# %% [markdown]
# A task that has too few different inputs is not asked, and says so:

# %%
pd.DataFrame([{"model": label, "task": task, "examples": ", ".join(reasons), "why not": list(reasons.values())[-1]} for label, record in evaluated.records.items() for task, reasons in json.loads(record.attrs["not_asked"]).items()])

# %% [markdown]
# ## Main numbers
#
# Mean accuracy over the paper's tasks: *as drawn* over those that had enough inputs, *fixed* over those that everybody of the same source was asked at every number.

# %%
numbers = language_numbers(settings, evaluated, paper_context())
WAYS = {"as_drawn": "as drawn", "fixed": "same tasks"}
sources = ["paper", "ours"] if evaluated.records else ["paper"]
curves = [(source, who) for source in sources for who in numbers.who.values if numbers["mean"].sel(source=source, who=who, kind="as_drawn").notnull().any()]
label = lambda source, who: who if source == "paper" else f"{who}, ours"
table = pd.DataFrame({f"{label(source, who)}, {way}": numbers["mean"].sel(source=source, who=who, kind=kind).to_series() for source, who in curves for kind, way in WAYS.items()}).T
table.index.name = "model"
table.round(3)

# %%
fixed = json.loads(numbers.attrs["fixed_tasks"])
pd.DataFrame({f"{source}, tasks as drawn": numbers["n_tasks"].sel(source=source, kind="as_drawn").max("who").to_series() for source in sources}).T.assign(fixed=[len(fixed[source]) for source in sources])

# %% [markdown]
# A second way to the same means, from the table as it is stored:

# %%
stored = published("grazzi_nlp_context").assign(who=lambda rows: rows.model.map(CONTEXT_LABELS)).pivot_table(index="task", columns=["who", "examples"], values="icl_accuracy")
for kind, rows in {"as_drawn": stored, "fixed": stored.dropna()}.items():
    for who, means in rows.mean().groupby("who"):
        np.testing.assert_allclose(numbers["mean"].sel(source="paper", kind=kind, who=who, examples=means.index.get_level_values("examples")), means)
assert sorted(stored.dropna().index) == sorted(fixed["paper"])


# %% [markdown]
# What is left of the rise beyond 16 examples over the same tasks:

# %%
def rise(source, who, kind):
    "Mean behind the most examples less that behind 16, nan if there is neither."
    curve = numbers["mean"].sel(source=source, who=who, kind=kind).dropna("examples")
    return (curve.isel(examples=-1) - curve.sel(examples=16)).item() if 16 in curve.examples.values else np.nan

left = pd.DataFrame({label(source, who): {way: rise(source, who, kind) for kind, way in WAYS.items()} for source, who in curves}).T
left.round(3)

# %% [markdown]
# ## The figure

# %%
drawn = {source: [who for of, who in curves if of == source and (source == "ours" or who in IN_FIGURE_7)] for source in sources}
lines = [(source, who) for source in sources for who in drawn[source]]
rows = numbers[["mean", "mean_low", "mean_high", "n_tasks"]].to_dataframe().dropna(subset="mean").reset_index()
rows = rows.assign(line=[label(source, who) for source, who in zip(rows.source, rows.who)])
counts = sorted(int(k) for k in numbers.examples.values)
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 1], [1, 3])  # of models of one architecture, which share a colour
before = [[architecture_of(who) for other, who in lines[:i] if other == source].count(architecture_of(lines[i][1])) for i, (source, _) in enumerate(lines)]
domain = [label(source, who) for source, who in lines]
legend = alt.Legend(orient="right", symbolType="stroke", symbolSize=300, symbolStrokeWidth=2.5, symbolOpacity=1, labelLimit=180)
shades = alt.Scale(domain=domain, range=[MODEL_COLOURS[architecture_of(who)] for _, who in lines])
colour = alt.Color("line:N", title=None, legend=legend, scale=shades)
dash = alt.StrokeDash("line:N", title=None, legend=legend, scale=alt.Scale(domain=domain, range=[DASHES[n % len(DASHES)] for n in before]))
x = alt.X("examples:Q", title="in-context examples", scale=alt.Scale(type="log", domain=[counts[0], counts[-1]], nice=False, padding=8), axis=alt.Axis(grid=False, values=counts))
y = lambda column: alt.Y(f"{column}:Q", title="mean accuracy", scale=alt.Scale(domain=[0, 1]))

def panel(source, kind, title):
    "Mean by number of examples with its band over tasks; below, how many tasks it is over."
    here = rows[(rows.source == source) & (rows.kind == kind) & rows.who.isin(drawn[source])]
    over = here.groupby("examples").n_tasks.agg(["min", "max"]).reset_index()
    over = over.assign(words=[f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}" for low, high in zip(over["min"], over["max"])])
    base = alt.Chart(here).encode(x=x, color=colour)
    return alt.layer(base.mark_line(strokeWidth=2).encode(y=y("mean"), strokeDash=dash), base.mark_circle(size=25, opacity=1).encode(y=y("mean")), base.mark_area(opacity=0.13).encode(y=y("mean_low"), y2="mean_high"),
                     alt.Chart(over).mark_text(fontSize=9, color="#555555").encode(x=x, y=alt.value(212), text="words:N")).properties(width=290, height=220, title=alt.TitleParams(title, anchor="middle", fontSize=12))

panels = [panel(source, kind, f"{'paper, Fig. 7' if source == 'paper' else 'ours'}, {way}") for source in sources for kind, way in WAYS.items()]
grid = alt.vconcat(*in_rows(panels, 2)).resolve_scale(color="shared", strokeDash="shared")

# %% [markdown]
# Ours, task by task, with Wilson's interval over questions; dashed, the paper's models of about that size.

# %%
if evaluated.records:
    each = numbers[["accuracy", "low", "high", "majority_share"]].to_dataframe().reset_index().dropna(subset="accuracy")
    each = each.assign(colour=[MODEL_COLOURS[architecture_of(who)] for who in each.who])
    beside = list(dict.fromkeys(other for who in drawn["ours"] for other in of_like_size(who, list(CONTEXT_LABELS.values()))))
    ours_at = sorted(each[each.source == "ours"].examples.unique().tolist())
    across = alt.X("examples:Q", title=None, scale=alt.Scale(type="log", domain=[ours_at[0], ours_at[-1]], nice=False, padding=5), axis=alt.Axis(grid=False, values=ours_at[::2], labelFontSize=8))
    up = lambda column: alt.Y(f"{column}:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(values=[0, 0.5, 1], labelFontSize=8))
    def tile(task):
        here, shade = each[(each.task == task) & (each.source == "ours")], alt.Color("colour:N", scale=None)
        theirs = each[(each.task == task) & (each.source == "paper") & each.who.isin(beside) & each.examples.isin(ours_at)]
        base = alt.Chart(here).encode(x=across, color=shade, detail="who:N")
        return alt.layer(base.mark_line(strokeWidth=1, strokeDash=[1, 2]).encode(y=up("majority_share"), color=alt.value("#777777")), base.mark_area(opacity=0.15).encode(y=up("low"), y2="high"), base.mark_line(strokeWidth=1.8).encode(y=up("accuracy")),
                         alt.Chart(theirs).mark_line(strokeWidth=1.2, strokeDash=[5, 4]).encode(x=across, y=up("accuracy"), color=shade, detail="who:N")
                         ).properties(width=105, height=62, title=alt.TitleParams(task.replace("_", " ") + ("" if task in PAPER_TASKS else " *"), fontSize=8, fontWeight="normal", anchor="start", limit=125))
    tiles = [tile(task) for task in numbers.task.values if ((each.task == task) & (each.source == "ours")).any()]
    grid = alt.vconcat(grid, *in_rows(tiles, 5, spacing=10), spacing=12).resolve_scale(color="independent", strokeDash="independent")

# %%
total = left.loc[list(IN_FIGURE_7)].sum()
finding = f"Paper: of the rise beyond 16 examples {total['same tasks'] / total['as drawn']:.0%} is left over the same {len(fixed['paper'])} tasks"
if evaluated.records:
    ends = {who: numbers["mean"].sel(source="ours", who=who, kind="fixed").dropna("examples") for who in drawn["ours"]}
    finding += "; ours, same tasks: " + ", ".join(f"{who} {curve[0].item():.2f} to {curve[-1].item():.2f}" for who, curve in ends.items() if len(curve))
notes = [*(["Models of random weights: they know nothing."] if settings.tier == "smoke" and not settings.models else []), *(["Ours: the same tasks, word pairs of our own."] if evaluated.records else []), *([f"Dashed: {', '.join(beside)}, paper."] if evaluated.records and beside else []), *(["*: not among the paper's 18."] if evaluated.records and any(task not in PAPER_TASKS for task in numbers.task.values) else []), *not_asked(settings, evaluated)]
bands = ("Line: mean over tasks; band: 5–95 % bootstrap over tasks; figures below: number of tasks.", "Paper: 400 questions a task." + (" Task by task, ours: 5–95 % Wilson interval over questions; dotted: always the commonest answer." if evaluated.records else ""))
chart = with_face(grid, finding, settings.tier, notes, bands)
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
evaluation_costs(settings, evaluated.records)
