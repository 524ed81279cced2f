# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Nine tasks, three architectures
# > Who learns what in context: Park et al.'s Table 1, with a number for each of its marks.
#
# **The claim.** A Transformer fails at sparse parity and leaves a gap where most points are outliers; Mamba fails at recalling vectors and leaves gaps on decision trees and orthogonal outliers; MambaFormer, which replaces the positions of a hybrid by a block of Mamba, solves all nine.
#
# The runs are those of the other notebooks, so this one trains nothing that they have trained.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("park_table1", globals())

# %%
import altair as alt
import pandas as pd

from iclrepro.charts import MODEL_COLOURS, in_rows, publish, use_svg, with_face
from iclrepro.claims import FAILED_BELOW, MARK_SOLVED, SOLVED_FROM, SYMBOLS, end_errors, judge_all, ledger, paper_marks, save_verdicts, table_marks
from iclrepro.experiments import STUDY_TITLES, TABLE_MODELS, TABLE_STUDIES, by_study, collect, config_of, costs, experiment_runs, gather_studies, not_run, size_beside_paper
from iclrepro.models import TITLES
use_svg()

# %% [markdown]
# ## The runs

# %%
records = collect(settings, partly=True)
tasks = {label.partition(", ")[2]: config_of(record).train for label, record in records.items()}
pd.DataFrame({study: {"d": t.task.dim, "points": t.task.n_points, "steps": t.steps, "learning rate": t.lr, "width": t.model.d_model, "seeds": len(t.seeds)} for study, t in tasks.items()}).T

# %% [markdown]
# ## The criterion
#
# The paper's marks are in words. Ours are shares: with the error $e_0$ that is made without context, and the least error $e^\ast$ that one of the models or a yardstick makes after the longest context of training, a model whose error there is $e$ has gained $(e_0 - e) / (e_0 - e^\ast)$. The thresholds and the reasons for them are in
# [the chapter on claims](../13i_claims_park.ipynb), which also tries them on every curve that the papers print.

# %%
pd.Series({SYMBOLS[MARK_SOLVED]: f"share of {SOLVED_FROM} or more", "▲": f"from {FAILED_BELOW} to {SOLVED_FROM}", "✗": f"below {FAILED_BELOW}"}, name="mark")

# %%
numbers = gather_studies(settings, records, curves=False)
marks = table_marks(numbers)
starts = {study: abs(float(numbers["accuracy"].sel(study=study) - numbers["no_context"].sel(study=study))) for study in numbers.study.values}
table = marks.assign(**{"without context": marks.study.map(starts)}, paper=[SYMBOLS[paper_marks(study)[who]] for study, who in zip(marks.study, marks.who)], ours=marks.mark.map(SYMBOLS))
table.index = pd.Index([f"{who}, {STUDY_TITLES[study]}" for study, who in zip(marks.study, marks.who)], name="model")
table[["without context", "error", "share", "low", "high", "ours", "paper", "learnt"]].round(3)

# %% [markdown]
# A share is at most 1, and somebody has it: the best of all, unless a yardstick is better than every model.

# %%
assert (marks.share <= 1 + 1e-9).all() and set(marks.study) <= set(TABLE_STUDIES)
for study in numbers.study.values:
    errors = end_errors(numbers, study).error
    assert marks[marks.study == study].share.max() > 1 - 1e-9 or errors.idxmin() not in TITLES.values()

# %% [markdown]
# ## The figure
#
# Colour is the share; in a cell our mark and the share, and in grey the paper's mark. A task that no model has learnt at this tier (none has halved its error and solved it also by what the papers' own models reach) is pale: its marks compare beginners. Beside it how each error falls, relative to the error without context, up to the longest context of training.

# %%
MODELS = [TITLES[name] for name in TABLE_MODELS]
named = lambda study: STUDY_TITLES[study][0].upper() + STUDY_TITLES[study][1:]
cells = table.assign(task=table.study.map(named), shown=table.share.clip(0, 1), number=table.share.clip(-9.99).map("{:.2f}".format),
                     ink=["white" if share > 0.6 and learnt else "black" for share, learnt in zip(table.share, table.learnt)])
rows, columns = [named(study) for study in numbers.study.values], [who for who in MODELS if who in set(cells.who)]
at = dict(x=alt.X("who:N", title=None, sort=columns, axis=alt.Axis(orient="top", labelAngle=0, labelFontSize=12, domain=False, ticks=False)), y=alt.Y("task:N", title=None, sort=rows, axis=alt.Axis(labelFontSize=12, labelLimit=200, domain=False, ticks=False)))
base = alt.Chart(cells, width=320, height=44 * len(rows)).encode(**at)
heat = alt.layer(
    base.mark_rect(stroke="white", strokeWidth=2).encode(
        color=alt.Color("shown:Q", title="share gained", scale=alt.Scale(scheme="viridis", domain=[0, 1], reverse=True), legend=alt.Legend(orient="bottom", gradientLength=200, format=".0%")),
        opacity=alt.Opacity("learnt:N", scale=alt.Scale(domain=[True, False], range=[1, 0.25]), legend=None)),
    # Symbols are set apart from words: a font that has them would otherwise take over the whole line.
    *[base.mark_text(fontSize=size, dx=dx, dy=dy).encode(text=text, color=alt.Color("ink:N", scale=None)) for size, dx, dy, text in
      ((16, -20, -6, "ours:N"), (14, 12, -6, "number:N"), (10, 14, 12, "paper:N"))],
    base.mark_text(fontSize=10, dx=-8, dy=12, text="paper").encode(color=alt.Color("ink:N", scale=None))).resolve_scale(color="independent")


# %%
def relative(study):
    one = numbers.sel(study=study)
    start = float(one["no_context"])
    rows = one["value"].sel(who=[who for who in columns if who in one.who.values]).to_dataframe("value").reset_index().dropna(subset="value")
    error, whole = (1 - rows.value, 1 - start) if one["accuracy"] else (rows.value, start)
    return rows.assign(relative=(error / whole).clip(1e-4, 3), task=named(study))

def ticks(study):
    "The axis of one panel. Left to itself, one that does not reach down to 0.3 has no number below 1."
    return alt.Axis(format="~g", **({"values": [0.5, 0.7, 1, 2, 3]} if relative(study).relative.min() > 0.3 else {"tickCount": 3}))

colour = alt.Color("who:N", title=None, scale=alt.Scale(domain=columns, range=[MODEL_COLOURS[who] for who in columns]), legend=alt.Legend(orient="bottom", symbolType="stroke", symbolStrokeWidth=3))
small = [alt.Chart(relative(study), width=150, height=88, title=alt.TitleParams(named(study), fontSize=11, anchor="start")).mark_line(strokeWidth=1.8).encode(
    x=alt.X("examples:Q", title="query" if tasks[STUDY_TITLES[study]].task.layout == "vectors" else "in-context examples", axis=alt.Axis(grid=False, tickCount=4, tickMinStep=1, format="d"), scale=alt.Scale(nice=False)),
    y=alt.Y("relative:Q", title="error / no context", scale=alt.Scale(type="log", nice=False, domainMax=3), axis=ticks(study)), color=colour) for study in numbers.study.values]
curves = alt.vconcat(*in_rows(small, 3))

# %% [markdown]
# A task is named if our models on it are smaller than the paper's.

# %%
smaller = {STUDY_TITLES[study]: beside for study in numbers.study.values if (beside := size_beside_paper(study, settings.tier))}
smaller

# %%
solved = {who: int(((marks.who == who) & (marks.mark == MARK_SOLVED) & marks.learnt).sum()) for who in columns}
learnt, same = int(table.learnt.sum()), int((table.ours == table.paper)[table.learnt].sum())
finding = f"Of {len(numbers.study)} tasks " + ", ".join(f"{who} solves {n}" for who, n in solved.items()) + (f"; {same} of {learnt} marks are the paper's" if learnt else "")
absent = [STUDY_TITLES[study] for study in TABLE_STUDIES if study not in by_study(experiment_runs(settings.experiment, settings.tier))]
notes = ([f"Not at this tier: {', '.join(absent)}."] if absent else []) + ["Pale: learnt by no model at this tier."] + (["Small tasks and small models."] if settings.tier in ("smoke", "laptop") else [f"Smaller than the paper's: {'; '.join(f'{task} ({beside})' for task, beside in smaller.items())}."] if smaller else []) + not_run(settings, records)
chart = with_face(alt.hconcat(heat, curves).resolve_scale(color="independent"), finding, settings.tier, notes,
                  (f"Of what the longest context in training offers, a model has gained {SOLVED_FROM:.0%} or more: solved; less than {FAILED_BELOW:.0%}: failed; between: a gap.", "Mean over seeds and prompts."))
paths = publish(settings.stem, numbers, chart, table[["without context", "error", "share", "low", "high"]])
chart

# %% [markdown]
# ## Verdicts

# %%
verdicts = judge_all(settings.root, settings.experiment, (settings.tier,))
save_verdicts(verdicts, f"{settings.stem}.verdicts.json")
ledger(verdicts)

# %% [markdown]
# ## What it cost
#
# Each run once, whichever notebook asked for it first.

# %%
costs(settings, records)
