# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Simple tasks in words
# > Capitals, plurals, translations, letters: how often a language model goes on with the right word behind five examples. Grazzi et al., Fig. 6 and Table 1.
#
# **The claims.** Mamba outperforms RWKV at comparable size, with 2.8 billion parameters it is close to LLaMA 7B and on par with GPT-J and Pythia, and all models get better with size.
#
# The paper's numbers are drawn anew from what it tabulates; beside them stands what we measure on pretrained models, without the padding that reached the state of recurrent models there. To ask another model, give its name: `-p models state-spaces/mamba-2.8b-hf`, with `-p download True` if its weights may be fetched.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # ask the models that have no record yet
models = []           # names of models to ask instead of the tier's
download = False      # whether weights may be downloaded

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("grazzi_language_accuracy", globals())

# %%
import altair as alt
import numpy as np
import pandas as pd

from iclrepro.charts import MODEL_COLOURS, publish, use_svg, with_face
from iclrepro.claims import judge_all, ledger, save_verdicts
from iclrepro.experiments import architecture_of, collect_evaluations, evaluation_costs, experiment_evaluations, family_of, how_to_get, language_numbers, not_asked, of_like_size, paper_accuracy, published
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
# ## Main numbers
#
# Mean accuracy over the paper's tasks behind five examples and without any, with the interval that the choice of tasks gives it.

# %%
numbers = language_numbers(settings, evaluated, paper_accuracy())
BEHIND = 5
sources = {"paper": "paper", "ours": "ours"} if evaluated.records else {"paper": "paper"}
rows = [(source, who) for source in sources for who in numbers.who.values if numbers["mean"].sel(source=source, kind="as_drawn", who=who, examples=BEHIND).notnull()]
at = numbers.sel(kind="as_drawn")
table = pd.DataFrame([{"tasks": int(at["n_tasks"].sel(source=source, who=who, examples=BEHIND)), **{name: float(at[column].sel(source=source, who=who, examples=k)) for name, column, k in
                      (("5 examples", "mean", BEHIND), ("low", "mean_low", BEHIND), ("high", "mean_high", BEHIND), ("no example", "mean", 0))}} for source, who in rows],
                     index=pd.Index([who if source == "paper" else f"{who}, ours" for source, who in rows], name="model"))
table.round(3)

# %% [markdown]
# A second way to the same means, from the table as it is stored:

# %%
stored = published("grazzi_nlp_accuracy").groupby("model").icl_accuracy.mean()
assert np.allclose(table["5 examples"].filter([who for source, who in rows if source == "paper"]), stored[[who for source, who in rows if source == "paper"]])
assert (table["no example"] < table["5 examples"]).filter(stored.index).all()

# %% [markdown]
# ## Table 1

# %%
named = lambda task: task.replace("_", " ")
table_1 = numbers["accuracy"].sel(source="paper", examples=BEHIND, task=[task for task in PAPER_TASKS if task in numbers.task.values]).dropna("who", how="all")
table_1.transpose("task", "who").to_pandas().rename(index=named)

# %% [markdown]
# ## The figure

# %%
kinds = ["Mamba", "RWKV-4", "Transformer"]
shades = alt.Scale(domain=kinds, range=[MODEL_COLOURS[kind] for kind in kinds])
colour = alt.Color("kind:N", title=None, scale=shades, legend=alt.Legend(orient="right", symbolType="circle", symbolOpacity=1))
points = at["accuracy"].sel(examples=BEHIND, task=[task for task in PAPER_TASKS if task in numbers.task.values]).to_dataframe("value").reset_index().dropna(subset="value")
shown = {(source, who): who if source == "paper" else f"{who}, ours" for source, who in rows}
points = points.assign(model=[shown[source, who] for source, who in zip(points.source, points.who)], kind=points.who.map(architecture_of), task=points.task.map(named))
means = table.reset_index().assign(kind=[architecture_of(who) for _, who in rows])
x, y = alt.X("model:N", title=None, sort=list(shown.values()), axis=alt.Axis(labelAngle=-35, labelLimit=160)), lambda column: alt.Y(f"{column}:Q", title="accuracy", scale=alt.Scale(domain=[0, 1]))
quartiles = points.groupby(["model", "kind"]).value.quantile([0.25, 0.5, 0.75]).unstack().set_axis(["lower", "middle", "upper"], axis=1).reset_index()
base, boxes = alt.Chart(means).encode(x=x, color=colour), alt.Chart(quartiles).encode(x=x)
strip = alt.layer(
    boxes.mark_bar(size=16, opacity=0.25).encode(y=y("lower"), y2="upper", color=colour), boxes.mark_tick(size=16, thickness=2, color="#555555").encode(y=y("middle")),
    alt.Chart(points).mark_circle(size=14, opacity=0.6, xOffset=-11).encode(x=x, y=y("value"), color=colour),
    base.mark_rule(strokeWidth=2, xOffset=11).encode(y=y("low"), y2="high"), base.mark_point(filled=True, shape="diamond", size=70, opacity=1, xOffset=11).encode(y=alt.Y("5 examples:Q")),
    base.mark_point(shape="diamond", size=45, fill="white", opacity=1, xOffset=11).encode(y=alt.Y("no example:Q")),
).properties(width=46 * len(rows), height=260, title=alt.TitleParams("Fig. 6: 18 tasks behind five examples", anchor="start", fontSize=12))

# %% [markdown]
# Table 1, a cell a task and model, darker for a higher accuracy.

# %%
cells = points.assign(number=points.value.map("{:.2f}".format), ink=["white" if value > 0.55 else "black" for value in points.value])
order = [named(task) for task in PAPER_TASKS]
grid = alt.Chart(cells, width=46 * len(rows), height=18 * cells.task.nunique(), title=alt.TitleParams("Table 1: accuracy behind five examples", anchor="start", fontSize=12)).encode(
    x=x, y=alt.Y("task:N", title=None, sort=order, axis=alt.Axis(labelLimit=220, domain=False, ticks=False)))
heat = alt.layer(grid.mark_rect(stroke="white").encode(color=alt.Color("value:Q", title="accuracy", scale=alt.Scale(scheme="viridis", domain=[0, 1], reverse=True), legend=alt.Legend(orient="right", gradientLength=200))),
                 grid.mark_text(fontSize=10).encode(text="number:N", color=alt.Color("ink:N", scale=None))).resolve_scale(color="independent")

# %% [markdown]
# Ours, task by task: with Wilson's interval over questions, without examples, and what a model would get that always says the commonest answer, or guesses among the answers. Crosses are the paper's models of about that size.

# %%
panels = [strip, heat]
if evaluated.records:
    ours = numbers.sel(source="ours", examples=[0, BEHIND])
    each = ours[["accuracy", "low", "high", "majority_share", "chance"]].to_dataframe().reset_index().dropna(subset="accuracy")
    each = each.assign(task=[named(task) + ("" if task in PAPER_TASKS else " *") for task in each.task], kind=each.who.map(architecture_of))
    paper_who = [who for source, who in rows if source == "paper"]
    theirs = numbers["accuracy"].sel(source="paper", examples=BEHIND).to_dataframe("accuracy").reset_index().dropna(subset="accuracy").assign(task=lambda t: t.task.map(named), kind=lambda t: t.who.map(architecture_of))
    sort = [named(task) + ("" if task in PAPER_TASKS else " *") for task in numbers.task.values]
    plain = alt.Color("kind:N", legend=None, scale=shades)
    at_y, share = alt.Y("task:N", title=None, sort=sort, axis=alt.Axis(labelLimit=220, grid=True, gridOpacity=0.4)), lambda column: alt.X(f"{column}:Q", title="accuracy", scale=alt.Scale(domain=[0, 1]))
    def alone(who):
        here = alt.Chart(each[each.who == who]).encode(y=at_y, color=plain)
        beside = alt.Chart(theirs[theirs.who.isin(of_like_size(who, paper_who))]).mark_text(text="×", fontSize=13).encode(y=at_y, x=share("accuracy"), color=plain)
        five, none = here.transform_filter(alt.datum.examples == BEHIND), here.transform_filter(alt.datum.examples == 0)
        return alt.layer(here.mark_tick(color="#777777", thickness=1.5).encode(x=share("majority_share"), color=alt.value("#777777")), here.mark_tick(thickness=1.5).encode(x=share("chance"), color=alt.value("#BBBBBB")),
                         none.mark_point(size=35, fill="white", opacity=1).encode(x=share("accuracy")), five.mark_rule(strokeWidth=2).encode(x=share("low"), x2="high"), five.mark_point(filled=True, size=45, opacity=1).encode(x=share("accuracy")), beside
                         ).properties(width=210 if len(evaluated.records) > 1 else 480, height=17 * each.task.nunique(), title=alt.TitleParams(f"{who}, ours", anchor="start", fontSize=12))
    single = [alone(who) for who in list(evaluated.records)]
    panels += [alt.hconcat(*single[i:i + 3]) for i in range(0, len(single), 3)]

# %%
best = {family: table["5 examples"][[who for source, who in rows if source == "paper" and family_of(who) == family]].idxmax() for family in ("Mamba", "RWKV", "LLaMA")}
finding = "Mean accuracy behind five examples, paper: " + ", ".join(f"{who} {table['5 examples'][who]:.3f}" for who in best.values())
if evaluated.records: finding += "; ours: " + ", ".join(f"{who} {table['5 examples'][f'{who}, ours']:.3f}" for who in list(evaluated.records)[:4])
notes = [*(["Models of random weights: they know nothing."] if settings.tier == "smoke" and not settings.models else []), *(["Ours: the same tasks, word pairs of our own."] if evaluated.records else []), *(["*: not among the paper's 18."] if evaluated.records and any(task not in PAPER_TASKS for task in numbers.task.values) else []), *not_asked(settings, evaluated)]
bands = ("Box: quartiles over tasks; dots: tasks; filled: mean with 5–95 % bootstrap over tasks; hollow: mean without examples.",
         "Paper: 400 questions a task, 50 for LLaMA, Pythia, GPT-J." + (" Task by task, ours: filled with 5–95 % Wilson interval over questions, hollow without examples; dark tick: always the commonest answer, pale tick: guessing; crosses: the paper's models of that size." if evaluated.records else ""))
chart = with_face(alt.vconcat(*panels).resolve_scale(color="independent", x="independent"), finding, settings.tier, notes, bands)
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
