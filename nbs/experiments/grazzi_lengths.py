# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Longer contexts in training
# > Skewed regression again, trained on one, two and four times as many in-context examples: how far does each length carry? Grazzi et al., Fig. 10.
#
# **The claim.** Training on longer contexts improves the accuracy at long contexts, for Mamba and for the Transformer; beyond the length of its own training each still degrades.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("grazzi_lengths", globals())

# %%
import altair as alt
import pandas as pd

from iclrepro.charts import publish, score_chart, score_rows, use_svg, with_face
from iclrepro.claims import LEARNT, judge_all, ledger, save_verdicts
from iclrepro.experiments import Yardstick, collect, config_of, costs, drawn_examples, gather_panels, left_out, panel_of
use_svg()

# %% [markdown]
# ## The runs
#
# Those of the shortest length are the runs of [the shifts](grazzi_shifts.ipynb). All take the same exams, on skewed inputs and, as the paper's figure, on isotropic ones.

# %%
records = collect(settings, partly=True)
configs = {label.rpartition(", ")[2]: config_of(record) for label, record in records.items()}
pd.DataFrame({label: {"points": run.task.n_points, "d": run.task.dim, "prompts a step": run.batch_size, "steps": run.steps, "seeds": len(run.seeds)}
              for label, run in ((label, config_of(record).train) for label, record in records.items())}).T

# %%
numbers = gather_panels(settings, records, {panel: {"Least squares": Yardstick("least_squares", n_prompts=256, shifts=("isotropic",))} for panel in configs})
panels = {panel: panel_of(numbers, panel) for panel in configs}
models = list(dict.fromkeys(label.rpartition(", ")[0] for label in records))

# %% [markdown]
# ## Main numbers

# %%
longest = min(config.exams[0].n_points for config in configs.values()) - 1
asked = sorted({panels[panel].attrs["trained_to"] for panel in panels} | {longest})
table = pd.DataFrame({f"{k} examples": {label: panels[label.rpartition(", ")[2]]["value"].sel(who=label.rpartition(", ")[0], shift="isotropic", examples=k).item() for label in records} for k in asked})
table.index.name = "model"
table.round(4)

# %% [markdown]
# The panels can be compared because all runs took the same exams, prompt for prompt, and least squares therefore scores the same in each.

# %%
both = [panels[panel]["value"].sel(who="Least squares", shift="isotropic").values for panel in panels]
assert all((scores == both[0]).all() for scores in both)


# %% [markdown]
# ## The figure

# %%
def panel_chart(panel):
    part = panels[panel]
    rows = score_rows(part.sel(examples=drawn_examples(longest + 1, 2 * int(part.attrs["dim"])), shift=["isotropic"]), part.who.values, ["isotropic"])
    chart = score_chart(rows, part.attrs["trained_to"], "squared error / d", log_x=True, log_y=True, y_domain=(1e-4 if part.attrs["dim"] == 20 else 1e-3, 10), width=250, height=210)
    return chart.properties(title=alt.TitleParams(f"trained with {panel}", anchor="middle", fontSize=12))

k = asked[-2] if longest > max(part.attrs["trained_to"] for part in panels.values()) else longest
lengths = ", ".join(panel.removesuffix(" examples") for panel in panels)
finding = f"Error after {k} examples, trained with {lengths}: " + "; ".join(f"{model} " + ", ".join(f"{table.loc[label, f'{k} examples']:.2g}" for label in records if label.startswith(f"{model}, ")) for model in models)
own = {label: panels[panel]["value"].sel(who=who, shift="isotropic", examples=panels[panel].attrs["trained_to"]).item() for label in records for who, panel in [label.rsplit(", ", 1)]}
weak = [label for label, error in own.items() if not error < LEARNT]
notes = ["Isotropic inputs, as in the paper's figure.", *([f"Too small or too short to learn at this tier: {'all models' if len(weak) == len(records) else '; '.join(weak)}."] if weak else []), *left_out(settings, records)]
chart = with_face(alt.hconcat(*map(panel_chart, panels)), finding, settings.tier, notes)
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
