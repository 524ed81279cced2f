# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Regression with outliers
# > Linear regression where some points are not of the function, and nothing says which. Park et al., Table 1 and the outlier curves.
#
# **The claims.** When half of the points are replaced by vectors orthogonal to the weights, a Transformer and MambaFormer learn the task and Mamba leaves a gap; when nine of ten points are one and the same outlier, it is the Transformer that leaves a gap. MambaFormer needs less than $10^{17}$ operations to be on par.
#
# The text describes orthogonal outliers one way and the released code draws them another way: its outliers are orthogonal to nothing, all outliers of a prompt are one vector, and their lengths have heavy tails. Both are here.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("park_outliers", globals())

# %%
import math

import altair as alt
import pandas as pd

from iclrepro.charts import publish, score_chart, use_svg, with_face
from iclrepro.claims import SOLVED_FROM, end_errors, judge_all, ledger, save_verdicts, solved_by, table_marks
from iclrepro.experiments import STUDY_TITLES, YARDSTICKS, collect, config_of, costs, gather_studies, not_run, study_numbers
from iclrepro.panels import decades, flops_chart, study_rows
use_svg()

# %% [markdown]
# ## The runs

# %%
records = collect(settings, partly=True)
tasks = {label.partition(", ")[2]: config_of(record).train for label, record in records.items()}
pd.DataFrame({study: {"d": t.task.dim, "points": t.task.n_points, "outliers": f"{t.task.p:.0%}", "steps": t.steps, "learning rate": t.lr, "width": t.model.d_model, "seeds": len(t.seeds)} for study, t in tasks.items()}).T

# %% [markdown]
# ## Three yardsticks
#
# Least squares over all points is what one gets without noticing the outliers. An oracle that knows which points are clean is exact as soon as there are $d$ of those. Robust regression is not told, and has to find out by itself, as the models do.

# %%
numbers = gather_studies(settings, records)
table = pd.concat({study: end_errors(numbers, study) for study in numbers.study.values})
table.insert(0, "without context", [float(numbers["no_context"].sel(study=study)) for study, _ in table.index])
table.index = pd.Index([f"{who}, {STUDY_TITLES[study]}" for study, who in table.index], name="model")
table.round(4)


# %% [markdown]
# With $c$ clean points the oracle misses $m = d - c$ directions of the weights, $1 - c/d$ of the error without context, and nothing from $c = d$ on; among $k$ points $c$ is binomial. Squared, the error is $3m(m+2)/d^2$ on average, so that its spread is known too. (A bootstrap knows nothing of a rare prompt with too few clean points that was not drawn.)

# %%
def expected(k, d, p):
    "Mean and variance of the oracle's error for one prompt."
    chances = {d - c: math.comb(k, c) * (1 - p)**c * p**(k - c) for c in range(min(k + 1, d))}  # by the number of directions missed
    mean = sum(chance * m / d for m, chance in chances.items())
    return mean, sum(chance * 3 * m * (m + 2) / d**2 for m, chance in chances.items()) - mean**2

n_prompts = config_of(next(iter(records.values()))).exams[0].n_prompts
for study in numbers.study.values:
    oracle, task = study_numbers(numbers, study).sel(who="Least squares, clean points", shift="none"), tasks[STUDY_TITLES[study]].task
    for k in {0, task.dim, task.n_points - 1}:
        mean, variance = expected(k, task.dim, task.p)
        assert abs(oracle["value"].sel(examples=k) - mean) < 5 * (variance / (n_prompts * (1 - task.p)))**0.5
table_marks(numbers).round(3)


# %% [markdown]
# ## The figure
#
# Above, the error at clean points by the number of points before them, outliers included. Below, the training loss by the operations that were spent on a seed: three times the forward pass of every prompt so far, the curriculum's short ones counted as such. (The loss is a mean over all clean points of a prompt, the hopeless first ones
# included, and the curriculum makes the beginning of each curve easier than the rest.) The paper's own outlier curves are not at hand to be drawn beside them.

# %%
def panel(study):
    last = int(numbers["trained_to"].sel(study=study))
    errors = score_chart(study_rows(numbers, study), last, "squared error / d", log_y=True, y_domain=decades(numbers, study), width=260, height=210)
    title = alt.TitleParams(STUDY_TITLES[study][0].upper() + STUDY_TITLES[study][1:], subtitle=f"{tasks[STUDY_TITLES[study]].task.p:.0%} outliers, d = {tasks[STUDY_TITLES[study]].task.dim}", fontSize=12, anchor="start")
    return alt.vconcat(errors.properties(title=title), flops_chart(numbers, study))

short = ["A small task and small models: evidence that they can, not of what the paper's would not."] if settings.tier == "laptop" else ["This tier shows that everything runs, and nothing else."] if settings.tier == "smoke" else []
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
