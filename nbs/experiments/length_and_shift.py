# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Longer contexts and other distributions
# > What has a model learnt: an algorithm, or the prompts it saw? The same runs, asked about prompts several times longer than in training, and about smaller, noisy, skewed and one-sided ones. Grazzi et al., section 3.1, Figs. 1 and 9.
#
# **The claims.** Grazzi et al.'s preprint reports that Mamba, trained on isotropic inputs, extrapolates to longer prompts better than their Transformer, which has no positions; the final paper, for skewed inputs, reports the opposite. So the sign may depend on the
# training distribution, and here is the first of the two cases.
#
# The Transformer here has *learned* positions (Park et al.). Its table has rows for the longer prompts too, but rows beyond the training length keep their random initial values. The Transformer without positions joins at the larger tiers.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("length_and_shift", globals())

# %%
import altair as alt
import pandas as pd

from iclrepro.charts import in_rows, publish, score_chart, score_rows, use_svg, with_face
from iclrepro.claims import judge_all, ledger, save_verdicts
from iclrepro.experiments import collect, costs, experiment_runs, gather, headline
from iclrepro.shifts import SHIFTS
use_svg()

# %% [markdown]
# ## The runs and their exams
#
# These are the runs of [linear_regression](linear_regression.ipynb); but for the laptop tier there is one more, the Transformer without positions. Each exam asks as many prompts as the paper's at the tiers gpu and paper, and fewer below.

# %%
runs = experiment_runs(settings.experiment, settings.tier)
task, exams = runs["Mamba"].train.task, runs["Mamba"].exams
pd.DataFrame([{"shift": SHIFTS[exam.shift].title, "prompts": exam.n_prompts, "points": exam.n_points, "numbers of examples asked": len(exam.examples(task))} for exam in exams])

# %%
records = collect(settings)
numbers = gather(settings, records, {"Least squares": "least_squares"})

# %% [markdown]
# ## Main numbers
#
# $K$ is the largest number of in-context examples in training.

# %%
trained_to, longest = task.n_points - 1, exams[0].n_points - 1
asked_anew = max(k for k in next(exam for exam in exams if exam.shift == "orthants").examples(task) if k <= trained_to)
asked = {"as trained, K": ("none", trained_to), "as trained, 2K": ("none", min(2 * trained_to, longest)), f"as trained, {longest}": ("none", longest),
         "noisy, K": ("noisy", trained_to), "skewed, K": ("skewed", trained_to), f"orthants, {asked_anew}": ("orthants", asked_anew)}
table = headline(numbers, asked)
table.round(4)

# %% [markdown]
# With noise of variance 1, rescaled, even the true weights err: by $\frac{d}{d+1} \cdot \frac1d = \frac{1}{d+1}$ of $d$-normalised error. Least squares must end above that by the share $d / (k - d - 1)$, the cost of estimating $d$ weights from $k$ noisy examples.

# %%
floor = 1 / (task.dim + 1)
at_end = numbers.sel(who="Least squares", shift="noisy", examples=longest)
standard_error = (at_end["high"] - at_end["low"]).item() / (2 * 1.645)
excess = at_end["value"].item() / floor - 1
expected = task.dim / (longest - task.dim - 1)  # what estimating d weights from `longest` examples adds, as a share of the floor
assert abs(excess - expected) * floor < 5 * standard_error
excess, expected

# %% [markdown]
# Noise keeps the size of the answers, so that in its panel, too, an error of 1 means knowing nothing.

# %%
no_context = numbers.sel(who="Least squares", shift="noisy", examples=0)
standard_error = (no_context["high"] - no_context["low"]).item() / (2 * 1.645)
assert abs(no_context["value"].item() - 1) < 5 * standard_error
no_context["value"].item()

# %% [markdown]
# ## The figure
#
# The axis of error reaches from 0.005 to 5 and beyond, to the next 1, 2 or 5 of a decade, if a model does. Only yardsticks may leave the panels; the figure then says who does, and where.

# %%
drawn = numbers[["value", "low", "high", "by_seed"]].sel(who=list(records)).to_array()
steps = [float(f"{digit}e{power}") for power in range(-12, 6) for digit in (1, 2, 5)]
lowest, highest = max(step for step in steps if step <= min(0.005, drawn.min())), min(step for step in steps if step >= max(5, drawn.max()))
asked_of = numbers["value"].sel(examples=slice(1, None))  # the axis of examples begins at 1

def leaving(who):
    "Where a curve leaves the panels, in words; empty if nowhere."
    beyond = {way: [SHIFTS[exam.shift].title for exam in exams if out.sel(who=who, shift=exam.shift).any()] for way, out in (("below", asked_of < lowest), ("above", asked_of > highest))}
    return " and ".join(f"{way} ({', '.join(where)})" for way, where in beyond.items() if where)

clipped = {who: leaving(who) for who in numbers.who.values if leaving(who)}
assert not set(clipped) & set(records)
clipped

# %%
k = min(2 * trained_to, longest)
best = numbers["value"].sel(shift="none", examples=k).sel(who=list(records))
finding = f"After {k} examples, twice the training length: " + ", ".join(f"{who} {best.sel(who=who):.2g}" for who in best.who.values)

def panel(exam):
    rows = score_rows(numbers, [*records, "Least squares"], [exam.shift])
    chart = score_chart(rows, trained_to, "squared error / d", log_x=True, log_y=True, y_domain=(lowest, highest), width=300, height=210)
    return chart.properties(title=alt.TitleParams(SHIFTS[exam.shift].title, anchor="middle", fontSize=12))

columns = 2 if len(exams) == 4 else 3
chart = with_face(alt.vconcat(*in_rows(map(panel, exams), columns)), finding, settings.tier, ["Least squares is exact from d examples on where there is no noise."] + ([f"Out of the panels: {'; '.join(f'{who} {where}' for who, where in clipped.items())}."] if clipped else []))
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
