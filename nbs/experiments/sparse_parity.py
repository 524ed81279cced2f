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
# **The claim.** Transformers do not get beyond what can be had without context; Mamba and MambaFormer reach the Bayes-optimal accuracy, as does S4-Mamba, whose scan does not select; S4 stays between, at 0.82. In the paper this takes tens to hundreds of thousands of steps. The laptop tier asks for two coordinates of four instead of ten, which small models learn in
# a thousand steps; that a Transformer does not learn it in so few says little, so that claim is left to the larger tiers. [How soon parity is learnt](park_parity_convergence.ipynb), by size, is asked elsewhere.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("sparse_parity", globals())

# %%
import altair as alt
import pandas as pd

from iclrepro.baselines import expected_accuracy, parity_bayes
from iclrepro.charts import MODEL_COLOURS, publish, score_chart, score_rows, use_svg, with_face
from iclrepro.claims import AT_BAYES, judge_all, ledger, save_verdicts
from iclrepro.experiments import TIERS, collect, costs, experiment_runs, gather, headline, left_out, no_context, paper_size, published, size_beside_paper, size_of
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
# ## The sizes
#
# The models of tier gpu are smaller than those of the paper's figure of accuracy, whose curves are drawn dashed beside them. Theirs is one of the sizes of its figure of convergence.

# %%
grid = published("park_parity_convergence")[["layers", "width"]].drop_duplicates()
known = {f"paper, convergence, {i}": (row.layers, row.width) for i, row in enumerate(grid.itertuples(), 1)} | {"paper, accuracy": (paper_size("sparse_parity").n_layers, paper_size("sparse_parity").d_model)}
sizes = {at: (size_of("sparse_parity", at).n_layers, size_of("sparse_parity", at).d_model) for at in TIERS}
pd.DataFrame(known | {f"tier {at}": size for at, size in sizes.items()}, ["layers", "width"]).T

# %%
assert sizes["paper"] == known["paper, accuracy"] and sizes["gpu"] in list(known.values())[:-1]
assert {run.train.model.d_model for run in runs.values()} == {sizes[settings.tier][1]}

# %% [markdown]
# ## The runs
#
# The same prompts for all, no curriculum. A run ends when the training loss of all its seeds is close to Bayes', or after the steps of its tier.

# %%
pd.DataFrame({title: {"pattern": run.train.model.pattern, "width": run.train.model.d_model, "steps, at most": run.train.steps, "learning rate": run.train.lr, "seeds": len(run.train.seeds)} for title, run in runs.items()}).T

# %%
records = collect(settings, partly=True)
numbers = gather(settings, records, {"Bayes": "parity_bayes"}).assign_attrs(no_context=no_context(task))
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
#
# Models that have learnt nothing say the same, and a curve would hide the one that is drawn before it: where two of them differ by less than `HIDDEN` on average, the first is broad.

# %%
HIDDEN = 0.005
at_end = numbers["value"].sel(shift="none", examples=last)
reached = [who for who in records if at_end.sel(who=who) >= at_end.sel(who="Bayes") - AT_BAYES]
finding = f"As accurate as Bayes after {last} examples: {', '.join(reached) or 'none'}"
theirs = published("park_parity_accuracy").rename(columns={"model": "who", "accuracy": "value"}).assign(line="paper")
theirs = theirs[theirs.who.isin(list(records)) & (theirs.examples <= last)] if task.dim == 10 else None
note = {"smoke": "This tier's models are far too small and short to learn parity.", "laptop": f"A far easier task than the paper's (d {task.dim} instead of 10): no evidence that a model cannot learn it."}.get(settings.tier, "Dashed, coloured: Park et al.")
smaller = [f"Models: {beside}; ours is one of the {len(grid)} sizes of its figure of convergence."] if task.dim == 10 and (beside := size_beside_paper("sparse_parity", settings.tier)) else []
stop = next(iter(runs.values())).train.stop_below
stopped = [f"Training ends early at a loss of {stop:.3f}, before a model is as good early on as it would become."] if stop else []
rows, mean = score_rows(numbers, [*records, "Bayes"], ["none"]), numbers["value"].sel(shift="none", examples=slice(0, last))
chart = score_chart(rows, last, "accuracy", published=theirs, y_domain=(0.4, 1.02))
stuck = [who for who in records if who not in reached]
under = [who for i, who in enumerate(stuck) if any(abs(mean.sel(who=who) - mean.sel(who=other)).mean() < HIDDEN for other in stuck[i + 1:])]
if under:
    place = dict(x=alt.X("examples:Q", title="in-context examples", scale=alt.Scale(nice=False)), y=alt.Y("value:Q", title="accuracy", scale=alt.Scale(domain=[0.4, 1.02], nice=False)))
    broad = [alt.Chart(rows[(rows.who == who) & (rows.seed == "all")]).mark_line(strokeWidth=4.5, strokeJoin="round", color=MODEL_COLOURS[who]).encode(**place) for who in under]
    chart = alt.layer(*broad, *chart.layer).properties(width=chart.width, height=chart.height)
    note += f" Broad, under another: {', '.join(under)}."
chart = with_face(chart, finding, settings.tier, [note, *smaller, *stopped, *left_out(settings, records)])
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
