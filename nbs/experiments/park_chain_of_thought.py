# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Chain of thought in context
# > A network of two layers, learnt from examples that show its hidden layer: by size of the model, and by width of the hidden layer. Park et al., the figure of CoT-I/O.
#
# **The claims.** Transformer and Mamba both learn it. At the standard size the Transformer is more accurate, at the tiny size Mamba; and Mamba's accuracy depends far more on the width $k$ of the hidden layer.
#
# A model reads $x$, says the hidden layer $\hat s$, reads its own $\hat s$, and says $\hat y$. Only $\hat y$ is scored, by its squared error, not divided by $d$.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("park_chain_of_thought", globals())

# %%
import altair as alt
import pandas as pd

from iclrepro.charts import MODEL_COLOURS, publish, score_chart, score_rows, use_svg, with_face
from iclrepro.claims import BEGUN, judge_all, ledger, save_verdicts
from iclrepro.experiments import collect, config_of, costs, gather, headline, left_out, published
use_svg()

# %% [markdown]
# ## The runs
#
# The rows of the left panel differ in the model, those of the right panel in the task; the small model at the middle width stands in both.

# %%
records = collect(settings, partly=True)
trains = {label: config_of(record).train for label, record in records.items()}
pd.DataFrame({label: {"k": train.task.hidden, "blocks": train.model.pattern, "width": train.model.d_model, "parameters": records[label].attrs["n_parameters"],
                      "steps": train.steps, "loss at the end": round(float(records[label]["loss"][:, -1].mean()), 3)} for label, train in trains.items()}).T

# %%
numbers = gather(settings, records)
task = next(iter(trains.values())).task
last, d = task.n_points - 1, task.dim
table = headline(numbers, {f"after {k} examples": ("none", k) for k in (last // 4, last // 2, last)})
table.round(3)

# %% [markdown]
# Without examples nothing beats saying 0, whose squared error is $\mathbb E[y^2] = d$. A model that was still wrong by more would not have trained at all.

# %%
assert (numbers["value"].sel(shift="none", examples=last) < 2 * d).all() and all((train.task.dim, train.task.n_points) == (d, last + 1) for train in trains.values())

# %% [markdown]
# ## The figure

# %%
ours = score_rows(numbers, list(records), ["none"])
ours[["who", "size", "k"]] = ours.who.str.rsplit(", ", n=2).tolist()
theirs = published("park_cot").rename(columns={"model": "who", "squared_error": "value"}).assign(line="paper", k=lambda table: "k " + table.hidden.astype(str))
if d != 10: theirs = theirs[:0]
models = pd.DataFrame({"who": ours.who.unique(), "examples": last, "seed": "all"})  # without numbers: every panel knows all colours
seen = pd.concat([ours.value, theirs.value])
y_domain = (max(seen[seen > 0].min() / 1.5, 1e-4), 2 * d)

def panel(size, k):
    "One size of model on one width of the hidden layer, ours and the paper's."
    here, paper = (rows[(rows["size"] == size) & (rows.k == k)] for rows in (ours, theirs))
    here = pd.concat([here, models])
    chart = score_chart(here, last, "squared error of y", published=paper if len(paper) else None, log_y=True, y_domain=y_domain, width=190, height=190)
    marks = [alt.Chart(paper[paper.who == who]).mark_point(shape="diamond", size=30, color=MODEL_COLOURS[who]).encode(x="examples:Q", y="value:Q") for who in paper.who.unique()]
    return alt.layer(chart, *marks).properties(title=alt.TitleParams(f"{size}, {k}", fontSize=12, anchor="middle"))

order = ["tiny", "small", "standard"]
widths = sorted({train.task.hidden for train in trains.values()})
middle = next((train.task.hidden for label, train in trains.items() if config_of(records[label]).name.startswith("chain_of_thought-")), widths[len(widths) // 2])
sizes = [(size, f"k {middle}") for size in order if ((ours["size"] == size) & (ours.k == f"k {middle}")).any()]
steps = [("small", f"k {k}") for k in widths if ((ours["size"] == "small") & (ours.k == f"k {k}")).any()]
rows = [alt.hconcat(*(panel(*which) for which in row)).resolve_scale(color="shared") for row in ((sizes, steps) if set(steps) - set(sizes) else (sizes,)) if row]


# %%
def ratio(size, k):
    "Mamba's error over the Transformer's after the last example, or None."
    errors = {who: numbers["value"].sel(who=f"{who}, {size}, {k}", shift="none", examples=last).item() for who in ("Transformer", "Mamba") if f"{who}, {size}, {k}" in records}
    return errors["Mamba"] / errors["Transformer"] if len(errors) == 2 else None

found = {name: ratio(size, k) for size, k in dict.fromkeys(sizes + steps) for name in [size if k == f"k {middle}" else k]}
compared = ", ".join(f"{name}: {value:.2g}" for name, value in found.items() if value is not None)
finding = f"Mamba's error over the Transformer's: {compared}" if compared else f"Squared error after {last} examples: " + "; ".join(f"{label}: {error:.2g}" for label, error in table.iloc[:, -1].items())
notes = ["Diamonds, dashed: Park et al." if len(theirs) else "Networks, models and training are far smaller than the paper's.", *left_out(settings, records)]
slow = sum(float(error) >= BEGUN * d for error in table.iloc[:, -1])
if slow: notes.append(f"{slow} of {len(table)} curves end above {BEGUN} d: too little was learnt there to compare.")
chart = with_face(alt.vconcat(*rows).resolve_scale(color="shared"), finding, settings.tier, notes)
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
