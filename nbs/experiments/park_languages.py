# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Formal languages in context
# > Strings of a language never seen before, to be continued: how accurate three models become, and how fast. Park et al., second version, on RegBench.
#
# **The claim.** MambaFormer converges faster, and to a higher accuracy, than the Transformer and than Mamba.
#
# A prediction is right if the symbol it holds most likely is possible in the language. The n-grams count what followed the same one or two symbols earlier in the same prompt.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("park_languages", globals())

# %%
import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from iclrepro.charts import MODEL_COLOURS, publish, score_chart, score_rows, use_svg, with_face
from iclrepro.claims import judge_all, ledger, save_verdicts, settled_tokens, steps_to_reach
from iclrepro.experiments import Yardstick, collect, config_of, costs, gather, left_out
from iclrepro.prompts import Draws
use_svg()

# %% [markdown]
# ## The runs

# %%
records = collect(settings, partly=True)
train = config_of(next(iter(records.values()))).train
task = train.task
n_tokens = task.n_tokens(task.n_points)
pd.Series({"states, at most": task.max_states, "symbols": task.dim - 2, "strings, at most": task.n_points, "tokens, at most": n_tokens, "languages trained on": task.n_languages, "steps": train.steps, "batch": train.batch_size}, name="").to_frame()

# %% [markdown]
# The numbers that decide: accuracy by tokens in context, and the training loss, which goes down to the entropy of the next symbol at best.

# %%
numbers = gather(settings, records, {f"{n}-gram": Yardstick(f"n_gram_{n}", n_prompts=256) for n in (2, 3)})
numbers["loss"] = xr.concat([record["loss"] for record in records.values()], pd.Index(list(records), name="who")).reindex(who=numbers.who)

prompt = task.sample(Draws(0, stream="evaluation"), 256)
truth = prompt.y[prompt.mask]
entropy = -(truth * truth.clamp(min=1e-12).log()).sum(-1).mean().item()
late = settled_tokens(numbers)
table = pd.DataFrame({f"accuracy, tokens {late.start} to {late.stop}": numbers["value"].sel(shift="new_languages", examples=late).mean("examples").values,
                      "loss at the end": numbers["loss"].isel(step=-1).mean("seed").values}, index=pd.Index(numbers.who.values, name="model"))
table.round(3)

# %%
assert (numbers["loss"].isel(step=-1).mean("seed").dropna("who") > entropy - 0.1).all(), "no model is better than the truth"
assert numbers["value"].max() <= 1 and (table.iloc[:, 0] > 1 / task.dim).all()

# %% [markdown]
# ## The figure
#
# Few prompts are as long as there is room for, so accuracies of neighbouring tokens are averaged.

# %%
width = max(n_tokens // 25, 1)
tokens = score_rows(numbers, list(numbers.who.values), ["new_languages"])
tokens = tokens.assign(examples=tokens.examples // width * width + (width - 1) / 2).groupby(["who", "shift", "examples", "seed"], sort=False, as_index=False).mean()
tokens = tokens[tokens.examples < late.stop]
left = score_chart(tokens, late.stop, "accuracy", y_domain=(max(0.0, np.floor(20 * tokens.value.min() - 1) / 20), 1.0), width=300, x_label="tokens in context", dash_legend=False)

curves = numbers["loss"].sel(who=list(records)).to_dataframe().reset_index().dropna(subset="loss")
x, y = alt.X("step:Q", title="steps of training", axis=alt.Axis(grid=False)), alt.Y("loss:Q", title="training loss, nats a symbol", scale=alt.Scale(zero=False))
colour = alt.Color("who:N", legend=None, scale=alt.Scale(domain=list(records), range=[MODEL_COLOURS[who] for who in records]))
right = alt.layer(
    alt.Chart(curves).mark_line(strokeWidth=0.7, opacity=0.6).encode(x=x, y=y, color=colour, detail="seed:N"),
    alt.Chart(curves.groupby(["who", "step"], as_index=False).loss.mean()).mark_line(strokeWidth=2).encode(x=x, y=y, color=colour),
    alt.Chart(pd.DataFrame({"loss": [entropy]})).mark_rule(strokeDash=[2, 2], color="#777777").encode(y=y)).properties(width=300, height=280)

# %%
accuracy = table.iloc[:, 0]
reached = {who: steps_to_reach(numbers, who) for who in records}
finding = "Accuracy on new languages: " + ", ".join(f"{who} {accuracy[who]:.3f}" for who in records)
notes = ["Dashes: entropy of the next symbol.", *([] if settings.tier in ("gpu", "paper") else ["Languages, models and training are far smaller than RegBench's."]), *left_out(settings, records)]
bands = ("Line: mean; band: 5–95 % bootstrap over seeds and prompts, models only;", "thin lines: single seeds. Accuracy is shown for half of the tokens there is room for (dotted rule).")
chart = with_face(alt.hconcat(left, right).resolve_scale(color="independent"), finding, settings.tier, notes, bands)
paths = publish(settings.stem, numbers, chart, table)
chart

# %% [markdown]
# Steps until the loss, smoothed over a twentieth of the training, is at the level that the better of Transformer and Mamba ends at:

# %%
pd.Series(reached, name="steps").to_frame()

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
