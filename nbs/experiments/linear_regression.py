# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Linear regression in context
# > Shown $k$ pairs $(x, w^\top x)$ of an unknown $w$, how wrong is each model about the next? Park et al., Table 1; Grazzi et al., Fig. 8.
#
# **The claim.** A Transformer learns this from prompts alone (Garg et al. 2022). Both papers find that Mamba learns it about as well, and Park et al. that MambaFormer does so too.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("linear_regression", globals())

# %%
import altair as alt
import pandas as pd

from iclrepro.charts import MODEL_COLOURS, publish, score_chart, score_rows, use_svg, with_face
from iclrepro.claims import judge_all, ledger, save_verdicts
from iclrepro.experiments import collect, costs, experiment_runs, gather, headline, published
use_svg()

# %% [markdown]
# ## The runs
#
# The same task, curriculum, optimiser and number of steps for all; only the architecture differs (at the laptop tier also the number of layers, so that the parameters are about as many). One set of weights and of training data a seed.

# %%
MODELS = ["Transformer", "Mamba", "MambaFormer"]
runs = experiment_runs(settings.experiment, settings.tier)
task = runs["Mamba"].train.task
pd.DataFrame({title: {"pattern": run.train.model.pattern, "width": run.train.model.d_model, "d": run.train.task.dim, "points": run.train.task.n_points,
                      "steps": run.train.steps, "learning rate": run.train.lr, "seeds": len(run.train.seeds)} for title, run in runs.items() if title in MODELS}).T

# %%
records = collect(settings, MODELS)

# %% [markdown]
# ## Learning
#
# The training loss is a mean over all points of the prompt, the hopeless first ones included, so it cannot reach zero: with $n$ points and $d$ dimensions least squares itself pays
# $\frac{1}{n} \sum_{k<d} (d - k) = \frac{d(d+1)}{2n}$. The curriculum makes the first part of the curve easier than the rest.

# %%
losses = pd.concat(record["loss"].to_dataframe().reset_index().assign(model=title) for title, record in records.items())
floor = task.dim * (task.dim + 1) / 2 / task.n_points
lines = alt.Chart(losses, width=420, height=200).mark_line().encode(
    x=alt.X("step", title="training step"), y=alt.Y("loss", title="squared error", scale=alt.Scale(zero=False)), detail="seed:N",
    color=alt.Color("model", title=None, scale=alt.Scale(domain=MODELS, range=[MODEL_COLOURS[model] for model in MODELS])))
lines + alt.Chart(pd.DataFrame({"loss": [floor]})).mark_rule(strokeDash=[3, 3]).encode(y="loss")

# %% [markdown]
# ## Error by number of in-context examples
#
# Three baselines see the same prompts as the models. Least squares is exact from $d$ examples on; averaging, $\hat w = \frac1k \sum_i y_i x_i$, and three nearest neighbours are what a model could do without solving equations.

# %%
baselines = {"Least squares": "least_squares", "3 nearest neighbours": "nearest_neighbours", "Averaging": "averaging"}
numbers = gather(settings, records, baselines).sel(shift=["none"])
seen = list(range(task.n_points))
numbers = numbers.sel(examples=seen)
table = headline(numbers, {f"{k} examples": ("none", k) for k in sorted({task.dim, min(2 * task.dim, task.n_points - 1), task.n_points - 1})})
table.round(4)

# %% [markdown]
# Without context all that is left is the mean, 0, and its error is $\mathbb E[y^2] / d = 1$; from $d$ examples on least squares errs by rounding only.

# %%
no_context = numbers.sel(who="Averaging", shift="none", examples=0)
standard_error = (no_context["high"] - no_context["low"]).item() / (2 * 1.645)
assert abs(no_context["value"].item() - 1) < 5 * standard_error
assert (numbers["value"].sel(who="Least squares", examples=seen[task.dim:]) < 1e-6).all()

# %% [markdown]
# ## The figure
#
# The paper's curves (Grazzi et al., Fig. 8) are for $d = 20$. Where our $d$ is smaller they are drawn at the same number of examples *per dimension*.

# %%
k = min(2 * task.dim, task.n_points - 1)
at_k = numbers["value"].sel(shift="none", examples=k)
finding = f"Error after {k} examples: " + ", ".join(f"{who} {at_k.sel(who=who):.2g}" for who in MODELS)

theirs = published("grazzi_fig8").replace({"Mamba?": "Mamba", "Transformer?": "Transformer", "LS": "Least squares", "3NN": "3 nearest neighbours"})
theirs = theirs[theirs.model.isin(["Mamba", "Transformer"])].rename(columns={"model": "who", "error": "value"}).assign(examples=lambda rows: rows.examples * task.dim / 20, line="Grazzi et al., Fig. 8")
theirs = theirs[theirs.examples <= seen[-1]]

chart = with_face(score_chart(score_rows(numbers, [*MODELS, *baselines], ["none"]), trained_to=task.n_points - 1, score_label="squared error / d", published=theirs, y_domain=(0, 1.3)),
                  finding, settings.tier, ["Dashed, coloured: Grazzi et al., Fig. 8" + (" (d = 20, drawn at equal examples per dimension)." if task.dim != 20 else ".")])
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
