# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How soon parity is learnt, by size
# > Five models at a few small sizes, several seeds each: the median number of steps until the training loss is close to the best there is. Park et al., the parity figure of convergence.
#
# **The claims.** Transformers never get there, at any size; Mamba and MambaFormer do, the sooner the larger they are; a Transformer with one Mamba block in front does too. The Standard Hybrid, a Transformer whose MLPs are Mamba blocks, does only at the largest size, which its large initial positions may explain: here it starts from small ones, and once more as the released code has it.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("park_parity_convergence", globals())

# %%
import altair as alt
import pandas as pd

from iclrepro.charts import MODEL_COLOURS, publish, use_svg, with_face
from iclrepro.claims import judge_all, ledger, save_verdicts
from iclrepro.experiments import LARGE_POSITIONS, bayes_loss, collect, config_of, context_free_loss, convergence_numbers, costs, learnt_loss, left_out, published, standing_on
use_svg()

# %% [markdown]
# ## The runs
#
# All train on prompts of which every one has its own pair of coordinates, as the text describes the task; the released code draws one for all prompts of a batch, a far noisier lesson ([what the disagreements change](disagreements.ipynb)). A run ends early once the losses of all its seeds are well below the threshold of having learnt.

# %%
records = collect(settings, partly=True)
configs = {label: config_of(record) for label, record in records.items()}
task = next(iter(configs.values())).train.task
pd.DataFrame({label: {"pattern": config.train.model.pattern, "width": config.train.model.d_model, "std of positions": config.train.model.position_std if config.train.model.positions == "learned" else None,
                      "steps, at most": config.train.steps, "seeds": len(config.train.seeds)} for label, config in configs.items()}).T

# %% [markdown]
# ## Learning
#
# The loss stays where a model stays that ignores its context, and then falls. Dashed, from above: no context, what we call learnt, Bayes.

# %%
numbers = convergence_numbers(records).assign_attrs(dim=task.dim, n_points=task.n_points, learnt=learnt_loss(task), **standing_on(settings, records))
losses = pd.concat(record["loss"].to_dataframe().reset_index().assign(model=label.rsplit(", ", 1)[0], size=label.rsplit(", ", 1)[1]) for label, record in records.items())
shown = list(dict.fromkeys(losses.model))
colours = {**MODEL_COLOURS, LARGE_POSITIONS: "#DDCC77"}
colour = alt.Color("model:N", title=None, scale=alt.Scale(domain=shown, range=[colours[model] for model in shown]), legend=alt.Legend(labelLimit=300))
marks = alt.Chart(losses).transform_calculate(no_context=f"{context_free_loss(task)}", learnt=f"{learnt_loss(task)}", bayes=f"{bayes_loss(task)}")
curves = marks.mark_line(strokeWidth=1).encode(x=alt.X("step", title="training step"), y=alt.Y("loss", title="cross-entropy, nats"), color=colour, detail="seed:N")
rules = [marks.mark_rule(strokeDash=[3, 3], strokeWidth=0.7).encode(y=f"min({name}):Q") for name in ("no_context", "learnt", "bayes")]
alt.layer(curves, *rules).properties(width=260, height=180).facet(alt.Facet("size:N", title=None), columns=2)

# %% [markdown]
# Nobody's loss can fall below Bayes' but for the luck of a window.

# %%
assert (numbers["lowest_loss"] > 0.8 * bayes_loss(task)).all()
assert ((numbers["converged"] <= numbers["steps_done"]) | numbers["converged"].isnull()).all()

# %%
table = numbers[["parameters", "median", "steps_done"]].to_dataframe()
table["seeds that learnt"] = numbers["converged"].notnull().sum("seed").to_series().astype(str) + [f" of {len(config.train.seeds)}" for config in configs.values()]
table["lowest loss, median"] = numbers["lowest_loss"].median("seed").to_series().round(3)
table

# %% [markdown]
# ## The figure
#
# Open triangles stand where a run ended with half of its seeds or more not there yet: the median lies somewhere above. The paper's own points are drawn at the number of parameters that our model of the same size has: its figure seems to have exchanged those of Mamba and the Standard Hybrid. Its threshold and, but for their number, its seeds are unknown, and it counts up to 500,000 steps.

# %%
points = numbers[["model", "size", "parameters", "median", "steps_done"]].to_dataframe().reset_index()
points["steps"], points["reached"] = points["median"].fillna(points.steps_done), points["median"].notna()
single = numbers[["model", "parameters", "converged"]].to_dataframe().reset_index().dropna(subset="converged")
x = alt.X("parameters:Q", title="parameters (without the maps at both ends)", scale=alt.Scale(type="log", nice=False, padding=12))
y = alt.Y("steps:Q", title="median steps until learnt", scale=alt.Scale(type="log"))
base = alt.Chart(points).encode(x=x, y=y, color=colour)
layers = [base.mark_line(strokeWidth=1.5), base.transform_filter("datum.reached").mark_point(filled=True, size=70, opacity=1),
          base.transform_filter("!datum.reached").mark_point(shape="triangle-up", size=80, opacity=1),
          alt.Chart(single).mark_tick(orient="horizontal", thickness=1.5, width=10).encode(x=x, y=alt.Y("converged:Q"), color=colour)]
if task.dim == 10:
    theirs = published("park_parity_convergence").replace({"Transformer w/ initial Mamba": "Transformer with initial Mamba"})
    theirs = theirs.assign(size=theirs.layers.astype(str) + " x " + theirs.width.astype(str)).merge(points[["model", "size", "parameters"]], on=["model", "size"]).rename(columns={"median_steps": "steps"})
    layers.append(alt.Chart(theirs).mark_line(strokeDash=[5, 4], strokeWidth=1, point={"filled": False, "size": 40}).encode(x=x, y=y, color=colour))
chart = alt.layer(*layers).properties(width=440, height=300)

reached = points[points.reached].groupby("model").steps.agg(["min", "size"])
finding = "Learnt: " + (", ".join(f"{model} at {reached['size'][model]} of {(points.model == model).sum()} sizes" for model in reached.index) or f"nothing within {points.steps_done.max():,} steps")
ended = sorted(set(points.steps_done[~points.reached]))
at = f" (at {' to '.join(f'{steps:,}' for steps in dict.fromkeys((ended[0], ended[-1])))} steps)" if ended else ""
bands = (f"Learnt: training loss below {learnt_loss(task):.3f} (Bayes {bayes_loss(task):.3f}, no context {context_free_loss(task):.3f}). Point: median over seeds; tick: a seed;",
         f"open triangle: half of the seeds or more not there when the run ended{at}.")
notes = ["Dashed, hollow: Park et al., at our parameters." if task.dim == 10 else f"A far easier task than the paper's (d {task.dim} instead of 10): order and size may differ." if settings.tier == "laptop"
         else "This tier shows only that everything runs.", *left_out(settings, records)]
chart = with_face(chart, finding, settings.tier, notes, bands=bands)
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
