# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Isotropic regression and its shifts
# > Trained on isotropic inputs at a constant rate, then asked about inputs of another size, noisy, skewed and one-sided ones, within the training length. Grazzi et al., Figs. 8 and 9.
#
# **The claims.** As trained, Mamba and the Transformer are alike. On skewed inputs and on different orthants Mamba fails, and the Transformer does not.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("grazzi_isotropic", globals())

# %%
import altair as alt
import pandas as pd

from iclrepro.charts import in_rows, publish, score_chart, score_rows, use_svg, with_face
from iclrepro.claims import LEARNT, judge_all, ledger, save_verdicts
from iclrepro.experiments import collect, config_of, costs, gather, headline, left_out, published
from iclrepro.shifts import SHIFTS
use_svg()

# %% [markdown]
# ## The runs and their exams
#
# They are those of [linear regression](linear_regression.ipynb), so a small tier asks what these runs were asked. Least squares, three nearest neighbours and averaging take the same exams.

# %%
records = collect(settings, partly=True)
config = config_of(next(iter(records.values())))
task, exams = config.train.task, config.exams
numbers = gather(settings, records, {"Least squares": "least_squares", "3 nearest neighbours": "nearest_neighbours", "Averaging": "averaging"})
trained_to = task.n_points - 1
numbers = numbers.sel(examples=slice(0, trained_to))
shifts = [shift for shift in ("none", "x_scale_0.333", "noisy", "skewed", "skewed_fixed", "orthants") if shift in numbers["shift"].values]
unasked = [SHIFTS[shift].title for shift in ("x_scale_0.333", "noisy", "orthants") if shift not in shifts]

# %% [markdown]
# ## Main numbers
#
# $K$ is the largest number of in-context examples in training; different orthants are asked at a dozen numbers only.

# %%
last = {exam.shift: max(k for k in exam.examples(task) if k <= trained_to) for exam in exams}
table = headline(numbers, {f"{SHIFTS[shift].title}, {last[shift]}": (shift, last[shift]) for shift in shifts})
table.round(4)

# %% [markdown]
# Averaging estimates $w$ by $\frac1k \sum_i y_i x_i$, which is right on average for isotropic inputs only: on skewed ones more examples do not save it. Least squares does not care.

# %%
skewed = next(shift for shift in shifts if shift.startswith("skewed"))
by_average, by_least_squares = (numbers["value"].sel(who=who, shift=skewed, examples=trained_to).item() for who in ("Averaging", "Least squares"))
assert by_average > numbers["value"].sel(who="Averaging", shift="none", examples=trained_to).item() and by_least_squares < 1e-3
by_average, by_least_squares

# %% [markdown]
# ## The figure
#
# The paper's curves (its Fig. 8) are for $d = 20$. Where our $d$ is smaller they are drawn at the same number of examples *per dimension*. Of the two learnt curves of that figure it is uncertain which is which.

# %%
first = next(iter(records))
theirs = published("grazzi_fig8").replace({"Mamba?": "Mamba", "Transformer?": first})
theirs = theirs[theirs.model.isin(list(records))].rename(columns={"model": "who", "error": "value"}).assign(examples=lambda rows: rows.examples * task.dim / 20, line="Grazzi et al., Fig. 8")
theirs = theirs[theirs.examples <= trained_to]

def panel(shift):
    rows = score_rows(numbers, numbers.who.values, [shift])
    chart = score_chart(rows, trained_to, "squared error / d", published=theirs if shift == "none" else None, y_domain=(0, 0.25 if shift == "x_scale_0.333" else 2), width=230, height=190)
    return chart.properties(title=alt.TitleParams(SHIFTS[shift].title + (" (Fig. 8)" if shift == "none" else ""), anchor="middle", fontSize=12))

shown = ("none", skewed, "orthants")
finding = f"Error at the training length, {' / '.join(SHIFTS[shift].title for shift in shown)}: " + "; ".join(
    f"{who} " + " / ".join(f"{numbers['value'].sel(who=who, shift=shift, examples=last[shift]).item():.2g}" for shift in shown) for who in records)
weak = [who for who in records if not numbers["value"].sel(who=who, shift="none", examples=trained_to) < LEARNT]
notes = [*([f"Too small or too short to learn at this tier: {'all models' if len(weak) == len(records) else '; '.join(weak)}."] if weak else []),
         "Dashed, coloured: Grazzi et al., Fig. 8" + (" (d = 20, at equal examples per dimension)." if task.dim != 20 else "."), *([f"Not asked at this tier: {', '.join(unasked)}."] if unasked else []), *left_out(settings, records)]
columns = 2 if len(shifts) == 4 else 3
chart = alt.vconcat(*in_rows(map(panel, shifts), columns))
chart = with_face(chart, finding, settings.tier, notes)
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
