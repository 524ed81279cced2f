# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sparse parity in context
# > The answer is the product of two unknown coordinates; no single one says anything. Park et al., Table 1 and the parity figures.
#
# **The claim.** Transformers do not get beyond the context-free prior, Mamba and MambaFormer reach the Bayes-optimal accuracy. In the paper this takes tens to hundreds of thousands of steps (27,000 at the largest of four small sizes, 277,000 at the smallest, for Mamba), so this notebook has
# no laptop tier: `smoke` shows that everything runs and nothing else, `gpu` and `paper` can tell.

# %% tags=["parameters"]
tier = "smoke"        # smoke, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("sparse_parity", globals())

# %%
import pandas as pd

from iclrepro.baselines import expected_accuracy, parity_bayes
from iclrepro.charts import publish, score_chart, score_rows, use_svg, with_face
from iclrepro.claims import judge_all, ledger, save_verdicts
from iclrepro.experiments import collect, costs, experiment_runs, gather, headline, published
from iclrepro.prompts import Draws
use_svg()

# %% [markdown]
# ## The best there is
#
# With $d$ coordinates there are $\binom{d}{2}$ candidate pairs. After $k$ examples those that contradict none are equally likely, and the Bayes-optimal prediction is their majority. Even without context it beats a coin: the signs of all candidate products are known, and their majority is
# right more often than not.

# %%
runs = experiment_runs(settings.experiment, settings.tier)
task = runs["Mamba"].train.task
prompt = task.sample(Draws(0, 0, "evaluation"), 2000)
bayes = expected_accuracy(parity_bayes(prompt.x, prompt.y, k=task.k)).mean(0)
pd.Series(bayes[:8].numpy(), name="Bayes accuracy").rename_axis("examples").to_frame().T.round(3)

# %%
assert (bayes[1:] >= bayes[:-1] - 0.02).all() and 0.5 < bayes[0] < 1

# %% [markdown]
# ## The runs

# %%
records = collect(settings)
numbers = gather(settings, records, {"Bayes": "parity_bayes"})
last = task.n_points - 1
table = headline(numbers, {f"{k} examples": ("none", k) for k in sorted({0, min(10, last), last})})
table.round(3)

# %% [markdown]
# No model can beat Bayes by more than chance.

# %%
excess = (numbers["value"].sel(who=list(records)) - numbers["high"].sel(who="Bayes")).max().item()
assert excess < 0.05

# %% [markdown]
# ## The figure

# %%
at_end = numbers["value"].sel(shift="none", examples=last)
finding = f"Accuracy after {last} examples: " + ", ".join(f"{who} {at_end.sel(who=who):.2f}" for who in numbers.who.values)
theirs = published("park_parity_accuracy").rename(columns={"model": "who", "accuracy": "value"}).assign(line="paper")
theirs = theirs[theirs.who.isin(list(records)) & (theirs.examples <= last)] if task.dim == 10 else None
note = "Dashed, coloured: Park et al." if theirs is not None else "This tier's models are far too small and short to learn parity."
chart = with_face(score_chart(score_rows(numbers, [*records, "Bayes"], ["none"]), last, "accuracy", published=theirs, y_domain=(0.4, 1.02)), finding, settings.tier, [note])
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
