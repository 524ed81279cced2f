# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Skewed regression: longer contexts and six test distributions
# > Trained on linear regression whose inputs vary much in some directions and little in others, three models are asked about longer prompts and other distributions. Grazzi et al., Fig. 1.
#
# **The claims.** At the training length the Transformer and Mamba solve linear regression and S4 does not. Beyond it Mamba degrades substantially, the Transformer less. On the other distributions Mamba is comparable to the Transformer.
#
# Panel (a) of the figure is captioned *skewed linear regression*, but its least-squares curve is that of isotropic inputs. Here it is drawn both ways.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("grazzi_shifts", globals())

# %%
import json

import altair as alt
import pandas as pd

from iclrepro.charts import in_rows, publish, score_chart, score_rows, use_svg, with_face
from iclrepro.claims import LEARNT, judge_all, ledger, save_verdicts
from iclrepro.experiments import Yardstick, captioned, collect, config_of, costs, drawn_examples, gather, headline, left_out, published, with_measured
from iclrepro.shifts import SHIFTS
use_svg()

# %% [markdown]
# ## The runs and their exams
#
# All of the paper's panels start from isotropic inputs; *as trained* is what panel (a) was meant to be.

# %%
records = collect(settings, partly=True)
config = config_of(next(iter(records.values())))
task, exams = config.train.task, config.exams
pd.DataFrame({label: {"pattern": run.model.pattern, "width": run.model.d_model, "d": run.task.dim, "points": run.task.n_points, "steps": run.steps, "rate": run.lr, "seeds": len(run.seeds)}
              for label, run in ((label, config_of(record).train) for label, record in records.items())}).T

# %%
numbers = gather(settings, records, {"Least squares": Yardstick("least_squares", n_prompts=256)})
paper = published("grazzi_curves").replace({"model": {"Transformer": "Transformer, no positions"}}).rename(columns={"model": "who", "error": "value", "run": "line"})
drawn = paper[(paper.figure == 1) & (paper.who != "LS")].groupby("who").line.nunique()
numbers = with_measured(numbers, captioned(published("grazzi_curves"), settings.root)).assign_attrs(curves_drawn=json.dumps({who: int(count) for who, count in drawn.items()}))

# %% [markdown]
# ## Main numbers
#
# $K$ is the largest number of in-context examples in training.

# %%
trained_to, longest = task.n_points - 1, exams[0].n_points - 1
asked_anew = max(k for k in next(exam for exam in exams if exam.shift == "orthants").examples(task) if k <= trained_to)
asked = {f"{SHIFTS[shift].title}, {k}": (shift, k) for shift, k in [*((shift, k) for shift in ("none", "isotropic") for k in (trained_to, 2 * trained_to, 4 * trained_to)), ("orthants", asked_anew)]}
table = headline(numbers, asked)
table.round(4)

# %% [markdown]
# Least squares knows the weights from $d$ examples on, whatever the distribution of the inputs, as long as answers have no noise.

# %%
exact = numbers["value"].sel(who="Least squares", shift=["none", "isotropic", "x_scale_0.333", "half_subspace"], examples=slice(task.dim, trained_to)).max().item()
assert exact < 1e-6
exact

# %% [markdown]
# ## What the caption says
#
# Least squares at $d = 20$ in the paper's panel (a), on isotropic and on skewed inputs, and the number of curves that the figure draws of each model. On skewed inputs least squares errs less, because the directions that it has seen carry more of the variance.

# %%
assert (numbers["captioned"].sel(curve="skewed") < numbers["captioned"].sel(curve="isotropic") / 2).all()
numbers["captioned"].to_pandas().round(3)

# %%
drawn

# %% [markdown]
# ## The figure

# %%
PANELS = {"none": "as trained: skewed (Fig. 1a by its caption)", "isotropic": "isotropic (Fig. 1a as drawn)", "isotropic_noisy": "noisy answers (b)", "orthants": "different orthants (c)",
          "x_scale_0.333": "inputs times 0.333 (d)", "isotropic_y_scale_0.333": "answers times 0.333 (e)", "half_subspace": "half of the space (f)"}
DRAWN = {"isotropic": "isotropic_as_plotted", "isotropic_noisy": "noisy", "orthants": "different_orthants", "x_scale_0.333": "x_scale_0.333", "isotropic_y_scale_0.333": "y_scale_0.333", "half_subspace": "half_subspace"}
like_the_paper = task.dim == 20

def panel(shift):
    rows = score_rows(numbers.sel(examples=drawn_examples(longest + 1, 2 * task.dim)), numbers.who.values, [shift])
    theirs = paper[(paper.panel == DRAWN.get(shift)) & paper.who.isin(list(records))] if like_the_paper else None
    chart = score_chart(rows, trained_to, "squared error / d", published=theirs if theirs is not None and len(theirs) else None, log_x=True, log_y=True, y_domain=(1e-4 if like_the_paper else 1e-3, 10), width=220, height=170)
    return chart.properties(title=alt.TitleParams(PANELS[shift], anchor="middle", fontSize=12))

at_length = numbers["value"].sel(shift="isotropic")
finding = f"Isotropic inputs, after {trained_to} and {4 * trained_to} examples: " + ", ".join(
    f"{who} {at_length.sel(who=who, examples=trained_to):.2g} and {at_length.sel(who=who, examples=4 * trained_to):.2g}" for who in records)
weak = [who for who in records if not at_length.sel(who=who, examples=trained_to) < LEARNT]
notes = [*([f"Too small or too short to learn at this tier: {'all models' if len(weak) == len(records) else '; '.join(weak)}."] if weak else []), "Dashed: the paper's runs." if like_the_paper else "The paper's d is 20; its curves are drawn at the larger tiers.", *left_out(settings, records)]
chart = alt.vconcat(*in_rows(map(panel, PANELS), 4))
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
