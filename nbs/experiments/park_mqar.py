# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Recall of vectors
# > A list of keys and values, then keys whose values are asked: with many queries and with one, at two widths, with and without positions. Park et al., vector-valued MQAR in Table 1.
#
# **The claims.** Mamba fails, its state being too small for the list, and a wider state helps; Transformer and MambaFormer solve it. Whether a Transformer needs its positions for this is our own question.
#
# The score is the squared error of a value, mean over its coordinates. Values lie on a sphere of radius $\sqrt d$, so answering 0, without any information, costs exactly 1, and another value of the list 2.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("park_mqar", globals())

# %%
import altair as alt
import pandas as pd

from iclrepro.charts import MODEL_COLOURS, publish, use_svg, with_face
from iclrepro.claims import judge_all, ledger, save_verdicts
from iclrepro.experiments import collect, config_of, costs, gather, join_studies, left_out
use_svg()

# %% [markdown]
# ## The runs

# %%
records = collect(settings, partly=True)
trains = {label: config_of(record).train for label, record in records.items()}
pd.DataFrame({label: {"pairs": train.task.n_points, "queries": train.task.n_queries, "width": train.model.d_model, "parameters": records[label].attrs["n_parameters"],
                      "most steps": train.steps, "loss at the end": round(float(records[label]["loss"].isel(step=-1).mean()), 4)} for label, train in trains.items()}).T

# %% [markdown]
# Looking up the nearest key is exact: what the models are asked has an answer.

# %%
groups = {prompt: {label: record for label, record in records.items() if f", {prompt}, " in label} for prompt in ("many queries", "one query")}
numbers = join_studies(settings, records, [gather(settings, group, {f"Nearest key, {prompt}": "nearest_key"}) for prompt, group in groups.items() if group])
scores = numbers[["value", "low", "high"]].sel(shift="none").mean("examples")  # over the queries of a prompt, which are alike
table = pd.DataFrame({"squared error / d": scores["value"].values, "lowest seed": numbers["by_seed"].sel(shift="none").mean("examples").min("seed").values,
                      "highest seed": numbers["by_seed"].sel(shift="none").mean("examples").max("seed").values}, index=pd.Index(numbers.who.values, name="model"))
table.round(4)

# %%
assert (table.filter(like="Nearest key", axis=0)["squared error / d"] == 0).all() and (table["squared error / d"] < 2).all()


# %% [markdown]
# ## The figure

# %%
def parts(label):
    "Model, prompt and width of a label."
    model, prompt, width = label.rsplit(", ", 2)
    return dict(model=model, prompt=prompt, width=width)

points = pd.DataFrame([dict(parts(label), value=scores["value"].sel(who=label).item(), low=scores["low"].sel(who=label).item(), high=scores["high"].sel(who=label).item()) for label in records])
seeds = pd.DataFrame([dict(parts(label), value=value) for label in records for value in numbers["by_seed"].sel(who=label, shift="none").mean("examples").values if value == value])
models = [model for model in MODEL_COLOURS if model in set(points.model)]
widths = sorted(points.width.unique(), key=lambda text: int(text.split()[-1]))
y = alt.Y("value:Q", title="squared error / d", scale=alt.Scale(type="log", domain=[min(0.5 * min(points.low.min(), seeds.value.min()), 0.1), 2], nice=False))
x, offset = alt.X("model:N", sort=models, title=None, axis=alt.Axis(labelAngle=-20)), alt.XOffset("width:N", sort=widths)
colour = alt.Color("model:N", legend=None, scale=alt.Scale(domain=models, range=[MODEL_COLOURS[model] for model in models]))

def panel(prompt):
    "One kind of prompt: a point a model and width."
    here = alt.Chart(points[points.prompt == prompt]).encode(x=x, xOffset=offset, color=colour)
    single = alt.Chart(seeds[seeds.prompt == prompt]).mark_tick(width=12, height=1, thickness=1, orient="horizontal").encode(x=x, xOffset=offset, color=colour, y=y)
    nothing = alt.Chart(pd.DataFrame({"value": [1.0]})).mark_rule(strokeDash=[2, 2], color="#777777").encode(y=y)
    task = next(trains[label].task for label in groups[prompt])
    title = f"{task.n_points} pairs, {task.n_queries} {'query' if task.n_queries == 1 else 'queries'}"
    return alt.layer(nothing, here.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title="squared error / d"), y2="high:Q"), single,
                     here.transform_filter(alt.datum.width == widths[-1]).mark_point(size=70, filled=True, opacity=1).encode(y=y),
                     here.transform_filter(alt.datum.width != widths[-1]).mark_point(size=70, fill="white", opacity=1).encode(y=y)).properties(width=260, height=260, title=alt.TitleParams(title, fontSize=12, anchor="middle"))

panels = [panel(prompt) for prompt, group in groups.items() if group]

# %% [markdown]
# Where exams ask for a pair at a given place, a third panel shows whether early pairs are forgotten.

# %%
placed = [shift for shift in numbers["shift"].values if shift.startswith("query_position_")]
if placed:
    wide = [label for label in groups["one query"] if label.endswith(widths[-1])]
    n_pairs = next(trains[label].task.n_points for label in wide)
    by_place = pd.DataFrame([dict(parts(label), since=n_pairs - 1 - int(shift.rsplit("_", 1)[1]), value=numbers["value"].sel(who=label, shift=shift, examples=0).item()) for label in wide for shift in placed])
    panels.append(alt.Chart(by_place).mark_line(point=True).encode(x=alt.X("since:Q", title="pairs shown since the one that is asked"), y=y, color=colour).properties(
        width=260, height=260, title=alt.TitleParams(f"by place in the list, {widths[-1]}", fontSize=12, anchor="middle")))

# %%
best = points[points.width == widths[-1]].set_index(["prompt", "model"]).value
finding = f"Error at {widths[-1]}, many queries: " + ", ".join(f"{model} {best['many queries', model]:.2g}" for model in models if ("many queries", model) in best.index)
notes = [*([] if settings.tier in ("gpu", "paper") else ["This tier's lists and models are far smaller than the paper's."]), *left_out(settings, records)]
bands = ("Point: mean; bar: 5–95 % bootstrap over seeds and prompts; ticks: single seeds.", "Filled: the width of the title; hollow: half of it. Dashes: answering 0. Looking up the nearest key has error 0.")
chart = with_face(alt.hconcat(*panels).resolve_scale(color="shared"), finding, settings.tier, notes, bands)
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
