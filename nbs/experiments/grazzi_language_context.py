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
# **The claim.** More examples help. Whether most of the rise beyond 16 examples is due to the tasks that drop out of the mean, because an alphabet has no 33 letters, is our own question.
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

from iclrepro.charts import MODEL_COLOURS, publish, use_svg, with_face
from iclrepro.claims import judge_all, ledger, save_verdicts
from iclrepro.experiments import IN_FIGURE_7, collect_evaluations, evaluation_costs, experiment_evaluations, language_numbers, not_asked, paper_context, published
from iclrepro.language_tasks import PAPER_TASKS
use_svg()
pd.set_option("display.max_colwidth", 200)

# %% [markdown]
# ## Whom we ask, and what

# %%
asked = experiment_evaluations(settings.experiment, settings.tier, settings.models)
evaluated = collect_evaluations(settings)
pd.DataFrame({label: {"model": run.model, "tasks": len(run.tasks), "examples": ", ".join(map(str, run.examples)), "questions a task": run.n_prompts, "record": run.folder if label in evaluated.records else evaluated.missing[label]} for label, run in asked.items()}).T

# %% [markdown]
# ## Main numbers
#
# Mean accuracy over the paper's tasks: *as drawn* over those that had enough inputs, *fixed* over those that everybody of the same source was asked at every number.

# %%
numbers = language_numbers(settings, evaluated.records, paper_context())
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
from iclrepro.experiments import CONTEXT_LABELS
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
def architecture(who):
    "Mamba, RWKV-4 or Transformer, which give a model its colour."
    return "Mamba" if "mamba" in who.lower() else "RWKV-4" if "rwkv" in who.lower() else "Transformer"

drawn = {"paper": list(IN_FIGURE_7), "ours": [who for source, who in curves if source == "ours"]}
rows = numbers[["mean", "mean_low", "mean_high", "n_tasks"]].to_dataframe().dropna(subset="mean").reset_index()
counts = sorted(int(k) for k in numbers.examples.values)
log_scale = alt.Scale(type="log", domain=[counts[0], counts[-1]], nice=False, padding=8)
x = alt.X("examples:Q", title="in-context examples", scale=log_scale, axis=alt.Axis(grid=False, values=counts))
y = lambda column: alt.Y(f"{column}:Q", title="mean accuracy", scale=alt.Scale(domain=[0, 1]))
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 1], [1, 3])

def panel(source, kind, title):
    "Mean by number of examples with its band over tasks; below, how many tasks it is over."
    here = rows[(rows.source == source) & (rows.kind == kind) & rows.who.isin(drawn[source])]
    scale = alt.Scale(domain=drawn[source], range=[MODEL_COLOURS[architecture(who)] for who in drawn[source]])
    legend = alt.Legend(orient="bottom", columns=2, symbolType="stroke", symbolSize=300, symbolStrokeWidth=2.5, labelLimit=150)
    places = {kind: 0 for kind in ("Mamba", "RWKV-4", "Transformer")}
    dashes = []
    for who in drawn[source]:
        dashes.append(DASHES[places[architecture(who)] % len(DASHES)])
        places[architecture(who)] += 1
    base = alt.Chart(here).encode(x=x, color=alt.Color("who:N", title=None, scale=scale, legend=legend))
    dash = alt.StrokeDash("who:N", title=None, scale=alt.Scale(domain=drawn[source], range=dashes), legend=legend)
    over = here.groupby("examples").n_tasks.agg(["min", "max"]).reset_index()
    over = over.assign(words=[f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}" for low, high in zip(over["min"], over["max"])])
    below = alt.Chart(over).mark_text(fontSize=9, color="#555555").encode(x=x, y=alt.value(252), text="words:N")
    return alt.layer(base.mark_area(opacity=0.13).encode(y=y("mean_low"), y2="mean_high"), base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=25)).encode(y=y("mean"), strokeDash=dash), below
                     ).properties(width=290, height=260, title=alt.TitleParams(title, anchor="middle", fontSize=12))

panels = [panel(source, kind, f"{'paper' if source == 'paper' else 'ours'}, {way}") for source in sources for kind, way in WAYS.items()]
grid = alt.vconcat(*(alt.hconcat(*panels[i:i + 2]).resolve_scale(color="shared", strokeDash="shared") for i in range(0, len(panels), 2)))

# %% [markdown]
# Ours, task by task: one small panel a task, with Wilson's interval over questions.

# %%
if evaluated.records:
    ours = numbers.sel(source="ours")
    each = ours[["accuracy", "low", "high", "majority_share", "chance"]].to_dataframe().reset_index().dropna(subset="accuracy")
    colour = alt.Color("who:N", legend=None, scale=alt.Scale(domain=drawn["ours"], range=[MODEL_COLOURS[architecture(who)] for who in drawn["ours"]]))
    def small(task):
        here = alt.Chart(each[each.task == task]).encode(x=alt.X("examples:Q", title=None, scale=log_scale, axis=alt.Axis(grid=False, values=[k for k in counts if k in (1, 4, 16, 64, 256)], labelFontSize=8)), color=colour)
        at = lambda column: alt.Y(f"{column}:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(values=[0, 0.5, 1], labelFontSize=8))
        return alt.layer(here.mark_line(strokeDash=[2, 2], strokeWidth=1).encode(y=at("majority_share"), color=alt.value("#777777")), here.mark_area(opacity=0.15).encode(y=at("low"), y2="high"), here.mark_line(strokeWidth=1.6).encode(y=at("accuracy"))
                         ).properties(width=105, height=62, title=alt.TitleParams(task.replace("_", " ") + ("" if task in PAPER_TASKS else " *"), fontSize=8, fontWeight="normal", anchor="start", limit=125))
    tiles = [small(task) for task in numbers.task.values if task in set(each.task)]
    grid = alt.vconcat(grid, *(alt.hconcat(*tiles[i:i + 5], spacing=10) for i in range(0, len(tiles), 5)), spacing=12)

# %%
total = left.loc[list(IN_FIGURE_7)].sum()
finding = f"Paper: of the rise beyond 16 examples {total['same tasks'] / total['as drawn']:.0%} is left over the same {len(fixed['paper'])} tasks"
if evaluated.records:
    ends = {who: numbers["mean"].sel(source="ours", who=who, kind="fixed").dropna("examples") for who in drawn["ours"]}
    finding += "; ours, same tasks: " + ", ".join(f"{who} {curve[0].item():.2f} to {curve[-1].item():.2f}" for who, curve in ends.items() if len(curve))
notes = [*(["Models of random weights: they know nothing."] if settings.tier == "smoke" and not settings.models else []), *(["*: not among the paper's 18; dashes: always the commonest answer."] if evaluated.records else []), *not_asked(evaluated)]
bands = ("Line: mean over tasks; band: 5–95 % bootstrap over tasks; figures below: number of tasks.", "Paper: 400 questions a task." + (" Task by task, ours: 5–95 % Wilson interval over questions." if evaluated.records else ""))
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
