# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What the disagreements change
# > Where a paper's text and its released code say different things, both are trained, everything else equal. Ours: neither paper asks it.
#
# **The question.** [Where paper and code disagree](../13c_disagreements.ipynb) lists what each choice changes on paper. Here is what it changes in what models learn, by a factor: of the steps until parity is learnt, of the error with as many examples as in training, or of its growth beyond them.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("disagreements", globals())

# %%
import altair as alt
import numpy as np
import pandas as pd

from iclrepro.charts import MODEL_COLOURS, in_rows, publish, use_svg, with_face
from iclrepro.claims import CHANGE, judge_all, ledger, save_verdicts
from iclrepro.experiments import COMPARISONS, MEASURES, collect, compare_ways, config_of, costs, disagreement_numbers, left_out, marks_of_ways, standing_on
use_svg()

# %% [markdown]
# ## The runs

# %%
records = collect(settings, partly=True)
pd.DataFrame({label: {"task": config.train.task.name, "pattern": config.train.model.pattern, "width": config.train.model.d_model, "rate": config.train.lr, "schedule": config.train.schedule, "steps, at most": config.train.steps, "seeds": len(config.train.seeds)}
              for label, config in ((label, config_of(record)) for label, record in records.items())}).T

# %% [markdown]
# ## Two ways each
#
# The ratio is that of the second way to the first: of geometric means over seeds, or of medians of steps. *Apart* says whether all seeds of one way lie on the same side of all of the other's; *known*, whether there was anything learnt that could differ; *late*, whether a way's run ended before it had learnt, so that the true ratio is further from 1.

# %%
numbers = disagreement_numbers(records).assign_attrs(**standing_on(settings, records))
table = pd.concat({COMPARISONS[name].title: compare_ways(numbers, name) for name in COMPARISONS if name in numbers["comparison"].values}, names=["comparison", "model"])
table

# %%
assert (table["first"] > 0).all() and (table["second"] > 0).all()
assert set(numbers["label"].values) <= set(records)

# %% [markdown]
# ## The figure

# %%
base_model = lambda model: model if model in MODEL_COLOURS else model.split(",")[0]
points = marks_of_ways(numbers, records).assign(colour=lambda rows: rows.model.map(base_model))
shown = list(dict.fromkeys(points.colour))
colour = alt.Color("colour:N", title=None, scale=alt.Scale(domain=shown, range=[MODEL_COLOURS[model] for model in shown]), legend=alt.Legend(labelLimit=260))

def apart(sizes, values, height=134, line=9):
    "Sizes whose labels would be printed over each other, on a logarithmic axis of these values and that height, share one."
    everything = np.log(pd.concat([sizes.value, values]).astype(float))
    place = np.log(sizes.value.astype(float)).sort_values() / max(np.ptp(everything), 1e-9) * height
    shared = (place.diff() >= line).cumsum()
    return sizes.groupby(shared, sort=False).agg({**dict.fromkeys(sizes.columns, "first"), "size": ", ".join})


def panel(name):
    "Both ways of a comparison: a line between the means of each model, a mark a seed."
    comparison, chosen = COMPARISONS[name], points[points.comparison == name].assign(way=lambda rows: rows.way.map(lambda way: COMPARISONS[name].ways[way]))
    rows = compare_ways(numbers, name)
    means = pd.DataFrame([{"model": model, "colour": base_model(model), "way": way, "value": row[column]} for model, row in rows.iterrows() for way, column in zip(comparison.ways, ("first", "second"))])
    x = alt.X("way:N", title=None, sort=list(comparison.ways), axis=alt.Axis(labelAngle=0), scale=alt.Scale(padding=0.4))
    y = alt.Y("value:Q", title=MEASURES[comparison.measure][0], scale=alt.Scale(type="log", nice=False, padding=8), axis=alt.Axis(labelOverlap="greedy", labelSeparation=6))
    marks = alt.Chart(chosen).encode(x=x, y=y, color=colour)
    layers = [alt.Chart(means).mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour, detail="model:N"), marks.transform_filter("datum.reached").mark_point(filled=True, size=40, opacity=0.8),
              marks.transform_filter("!datum.reached").mark_point(shape="triangle-up", size=60)]
    sizes = means[(means.way == list(comparison.ways)[1]) & (means.model != means.colour)].assign(size=lambda rows: rows.model.str.split(", ", n=1).str[-1])
    if len(sizes): layers.append(alt.Chart(apart(sizes, chosen.value)).mark_text(align="left", dx=9, fontSize=9).encode(x=x, y=y, color=colour, text="size:N"))
    factors = ", ".join(dict.fromkeys(f"{'' if row.known else '('}{row.ratio:.2g}{' or further' if row.first_late or row.second_late else ''}{'' if row.known else ')'}" for _, row in rows.iterrows()))
    return alt.layer(*layers).properties(width=150, height=150, title=alt.TitleParams([comparison.title, f"ratio {factors}"], fontSize=12, anchor="start"))


present = [name for name in COMPARISONS if name in set(points.comparison)]
chart = alt.vconcat(*in_rows(map(panel, present), 4, spacing=25))
changed = table[table.known.astype(bool) & table.apart.astype(bool) & (np.log(table.ratio.astype(float)).abs() >= np.log(CHANGE))]
finding = f"Changed by {CHANGE:g} times or more: " + (", ".join(dict.fromkeys(changed.index.get_level_values("comparison"))) or "nothing")
bands = ("Each panel: our default on the left, the other way on the right. Mark: a seed; line: from mean to mean (steps: medians) of a model;", "open triangle: not learnt when the run ended.")
notes = {"smoke": "This tier shows only that everything runs.", "laptop": "Small models on small tasks: no evidence about the papers' own."}.get(settings.tier, "")
chart = with_face(chart, finding, settings.tier, [note for note in (notes, *left_out(settings, records)) if note], bands=bands)
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
