# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What every layer would answer
# > A model's own read-out, applied after each of its layers, shows whether it refines its answer step by step. Grazzi et al., Figs 3, 4, 5, 11 and 12.
#
# **The claims.** In a Transformer and in Mamba the error falls from layer to layer, as if each took a step of an optimiser; both end far below gradient descent and GD++ with as many iterations; the fitted scale comes to 1 and the shift to 0; and behind four times the examples of its training Mamba is best in the middle
# while the Transformer is best at the end.
#
# Each of 128 tasks has 40 test questions, asked one at a time behind the same examples; a scale and a shift a layer are fitted on ten further questions ([how](../09_probing.ipynb)).

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("grazzi_probing", globals())

# %%
import textwrap

import altair as alt
import numpy as np
import pandas as pd

from iclrepro.charts import MODEL_COLOURS, publish, use_svg, with_face
from iclrepro.claims import judge_all, layer_curve, ledger, save_verdicts
from iclrepro.experiments import collect, config_of, costs, experiment_runs, gather_probes, left_out, published_probes, standing_on, stored_descent, with_measured
from iclrepro.probing import layer_ratios
use_svg()

# %% [markdown]
# ## The readings
#
# The probes are part of the runs, so their records hold the readings of every block. The paper's axis is the *layer ratio*, 0 at the first layer and 1 at the last; of a Transformer a layer is attention and MLP together, of Mamba a block.

# %%
records = collect(settings, partly=True)
numbers = gather_probes(records)
SKEWED = "skewed linear regression"
models, functions = list(numbers.who.values), list(numbers.function.values)
layers = {who: max(len(layer_curve(numbers, who, function)) for function in functions) for who in models}
ends = pd.DataFrame({function: {who: next(iter(layer_curve(numbers, who, function)[::-1]), np.nan) for who in models} for function in functions})
ends.loc["answering 0"] = {function: float(numbers["zero"].sel(function=function)) for function in functions}
ends.round(4)

# %% [markdown]
# ## Gradient descent and GD++
#
# On the same tasks, scored on the same questions, with one iteration for each layer of Mamba after its first. The paper divides these two curves by $d$ twice; ours are divided once, and its are drawn corrected.

# %%
linear = [label for label in records if label.endswith(SKEWED)]
mamba = experiment_runs(settings.experiment, settings.tier)[f"Mamba: {SKEWED}"].train.model
n_iterations = int(np.isfinite(layer_ratios(mamba.pattern)).sum()) - 1
numbers = numbers.assign_attrs(score="squared error / d", **standing_on(settings, records))
if linear: numbers = with_measured(numbers, stored_descent(config_of(records[linear[0]]), n_iterations, settings.root))
curves = {f"{who}: {function}" + (f", {factor:g} times the examples" if factor > 1 else ""): layer_curve(numbers, who, function, factor=factor) for function in functions for who in models for factor in numbers.factor.values}
if linear: curves |= {f"{name}: {SKEWED}": numbers["descent"].sel(optimiser=name).values for name in numbers.optimiser.values}
table = pd.DataFrame({label: {"first": curve[0], "best": curve.min(), "last": curve[-1]} for label, curve in curves.items() if len(curve)}).T.rename_axis("model")
table.round(4)

# %% [markdown]
# Without an iteration $w$ is 0, and both cost what answering 0 does. The last layer is the model itself: what the decoder says there needs no repair, unless the ten questions that scale and shift are fitted on mislead.

# %%
if linear:
    start = numbers["descent"].isel(iteration=0)
    assert float(start[0]) == float(start[1]) and numbers["descent_low"][0, 0] <= start[0] <= numbers["descent_high"][0, 0]
    assert np.isclose(numbers["swept"].min(), numbers["descent"].sel(optimiser="GD++")[-1], rtol=1e-4)

# %% [markdown]
# ## The figure

# %%
quantities = {"error": "squared error / d", "scale": "scale", "shift": "shift"}
wide = pd.concat([numbers[[name, f"{name}_low", f"{name}_high"]].rename({name: "value", f"{name}_low": "low", f"{name}_high": "high"}).to_dataframe().reset_index().assign(quantity=name) for name in quantities])
ratios = numbers["layer_ratio"].to_dataframe("layer_ratio").reset_index()
rows = wide.merge(ratios, on=["function", "who", "layer"]).dropna(subset=["value", "layer_ratio"])
single = pd.concat([numbers[f"{name}_by_seed"].to_dataframe("value").reset_index().assign(quantity=name) for name in quantities]).merge(ratios, on=["function", "who", "layer"]).dropna(subset=["value", "layer_ratio"])
paper = published_probes()
if linear:
    descent = numbers[["descent", "descent_low", "descent_high"]].rename(descent="value", descent_low="low", descent_high="high").to_dataframe().reset_index().rename(columns={"optimiser": "who"})
    descent = descent.assign(layer_ratio=descent.iteration / n_iterations, function=SKEWED, factor=1.0, quantity="error")[["who", "layer_ratio", "value", "low", "high", "function", "factor", "quantity"]]
else: descent = rows.head(0)
pd.concat([rows, descent]).groupby(["quantity", "function", "who"]).value.agg(["size", "min", "max"]).round(3)

# %%
colours = {who: MODEL_COLOURS[who] for who in models} | {"GD": "#777777", "GD++": "#333333"}
factors = {1.0: "as in training", 2.0: "2 times", 4.0: "4 times"}
shades = dict(zip(factors.values(), ("#111111", "#CC79A7", "#56B4E9")))


def panel(ours, seeds, theirs, title, quantity, by, palette, log=False, width=190):
    "Curves over the layer ratio: bands of 95 %, thin lines of single seeds, the paper's dashed."
    x = alt.X("layer_ratio:Q", title="layer ratio", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(grid=False, values=[0, 0.5, 1]))
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False)
    colour = alt.Color(f"{by}:N", title=None, scale=alt.Scale(domain=list(palette), range=list(palette.values())), legend=alt.Legend(symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1, labelLimit=220) if quantity == "error" else None)
    axis = alt.Axis(minExtent=34, format="~g" if quantity == "error" else "")
    y = alt.Y("value:Q", title=quantities[quantity], scale=scale, axis=axis)
    base = alt.Chart(ours).encode(x=x, color=colour)
    drawn = [base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title=quantities[quantity], scale=scale, axis=axis), y2="high:Q"),
             alt.Chart(seeds).mark_line(strokeWidth=0.7, opacity=0.6).encode(x=x, y=y, color=colour, detail="seed:N"),
             base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=14)).encode(y=y)]
    if len(theirs): drawn.append(alt.Chart(theirs).mark_line(strokeWidth=1.1, strokeDash=[5, 3], opacity=0.9).encode(x=x, y=y, color=colour, detail=f"{by}:N"))
    if quantity != "error": drawn.insert(0, alt.Chart(pd.DataFrame({"value": [1.0 if quantity == "scale" else 0.0]})).mark_rule(strokeDash=[1, 2], color="#555555").encode(y=y))
    return alt.layer(*drawn).properties(width=width, height=150, title=alt.Title(title, fontSize=11, anchor="middle"))


at_home = lambda frame, quantity, function: frame[(frame.quantity == quantity) & (frame.function == function) & (frame.factor == 1)]
grid = []
for quantity in quantities:
    cells = []
    for function in functions:
        ours = pd.concat([at_home(frame, quantity, function) for frame in (rows, descent)])
        theirs = at_home(paper, quantity, function)
        cells.append(panel(ours, at_home(single, quantity, function), theirs[theirs.who.isin(colours)], f"{function.replace('relu', 'ReLU')}, {int(numbers['trained_to'].sel(function=function))} in-context examples", quantity, "who", colours, log=quantity == "error"))
    grid.append(alt.hconcat(*cells, spacing=12))

# %% [markdown]
# Behind more examples than in training, and GD++ by its $\gamma$:

# %%
if linear:
    cells = []
    for who in models:
        mine = lambda frame: frame[(frame.quantity == "error") & (frame.function == SKEWED) & (frame.who == who)].assign(examples=lambda f: f.factor.map(factors))
        if len(mine(rows)): cells.append(panel(mine(rows), mine(single), mine(paper), f"{who}, by examples", "error", "examples", shades, log=True))
    swept = numbers["swept"].to_dataframe("value").reset_index()
    swept = swept[swept.value <= 2 * float(numbers["descent"][0, 0])]
    best = float(numbers["best_gamma"])
    gamma = alt.X("gamma:Q", title="γ", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(grid=False, format=".0e", tickCount=5))
    sweep = alt.layer(alt.Chart(swept).mark_line(color=colours["GD++"]).encode(x=gamma, y=alt.Y("value:Q", title="squared error / d", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(minExtent=34, format="~g"))),
                      alt.Chart(pd.DataFrame({"gamma": [best]})).mark_rule(strokeDash=[1, 2], color="#555555").encode(x=gamma)).properties(
        width=190, height=150, title=alt.Title(f"GD++, iterations: {n_iterations}", fontSize=11, anchor="middle"))
    grid.insert(1, alt.hconcat(*cells, sweep, spacing=12).resolve_scale(color="shared"))

# %%
order = ", ".join(f"{who} {ends.loc[who, SKEWED]:.2g}" for who in models if SKEWED in ends and pd.notna(ends.loc[who, SKEWED]))
yards = ", ".join(f"{name} {float(numbers['descent'].sel(optimiser=name)[-1]):.2g}" for name in numbers.optimiser.values) if linear else ""
finding = f"Error at the last layer, skewed inputs: {order}; {yards} (iterations: {n_iterations})" if linear else "The last layer answers best"
depth = " and ".join(f"{count} of {who}" for who, count in layers.items())
bands = ("Line: mean over tasks; band: 95 % bootstrap over seeds and tasks; thin: single seeds.", "Dotted: scale 1, shift 0, best γ.")
notes = [f"Layers: {depth}.", "Dashed: the paper (24 and 12 layers), its GD and GD++ divided by d once.", *left_out(settings, records)]
if settings.tier in ("smoke", "laptop"): notes.append("So few layers cannot show how many share the work.")
chart = with_face(alt.vconcat(*grid, spacing=14).resolve_scale(color="independent"), finding, settings.tier, notes, bands)
chart.title.subtitle = [part for line in chart.title.subtitle for part in textwrap.wrap(line, 190)]
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
