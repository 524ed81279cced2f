# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Architectures of language models on equal terms
# > Models that differ in their blocks, and where several rates were tried in the one that suits them, raised on one corpus of few-shot mappings, asked for tasks and words they have never seen, by number of examples up to four times the training length. The question behind section 4 of Grazzi et al.
#
# **The claims.** Mamba outperforms RWKV at comparable size, is on par with Transformers, and profits from more examples. The paper says so of pretrained models, whose data and sizes differ. Whether a model keeps its accuracy beyond the training length is our own question.
#
# A line of a document is `word -> answer`. Two families of tasks: *forms* write the word's concept in another form, *facts* write the value of one of its attributes as a label. Trained tasks are those that training shows with frequent words only; held-out tasks it never shows. Trained words are the frequent ones; held-out words are the rare ones, which training shows in other tasks.
# So in three of four conditions no line of the prompt has ever been seen in training.

# %% tags=["parameters"]
tier = "laptop"       # smoke, laptop, gpu or paper
root = "results"      # where results go, relative to the project
device = "cpu"        # cpu, cuda, cuda:0, …
train_missing = True  # make the runs that have no record yet

# %%
from iclrepro.experiments import check_parameters
settings = check_parameters("language_architectures", globals())

# %%
import json

import altair as alt
import pandas as pd

from iclrepro.baselines import oracle_on_facts
from iclrepro.charts import publish, score_chart, score_rows, use_svg, with_face
from iclrepro.claims import has_learnt_mappings, judge_all, ledger, save_verdicts
from iclrepro.experiments import CONDITIONS, Yardstick, at_their_best, collect, config_of, costs, drawn_examples, final_loss, gather, left_out, mean_accuracy, standing_on
from iclrepro.tasks import FAMILIES
use_svg()

# %% [markdown]
# ## The runs

# %%
every = collect(settings, partly=True)
records = at_their_best(every)
configs = {label: config_of(record) for label, record in every.items()}
task, exam = next((config.train.task, config.exams[0]) for config in configs.values())
trained_to, longest = task.n_points - 1, exam.n_points - 1
pd.DataFrame({label: {"blocks": config.train.model.pattern, "width": config.train.model.d_model, "parameters": every[label].attrs["n_parameters"], "symbols": task.d_in, "lines a document": task.n_points,
                      "steps": config.train.steps, "batch": config.train.batch_size, "rate": f"{config.train.lr:g}", "seeds": len(config.train.seeds), "loss at the end": round(final_loss(every[label]), 3),
                      "shown below": "yes" if any(every[label] is shown for shown in records.values()) else "no"} for label, config in configs.items()}).T

# %%
parameters = pd.Series({title: record.attrs["n_parameters"] for title, record in records.items()})
assert settings.tier == "smoke" or parameters.max() <= 1.1 * parameters.min(), "equal terms: parameters within a tenth"
assert len({(config.train.task, config.train.steps, config.train.batch_size, config.train.schedule, config.exams) for config in configs.values()}) == 1

# %% [markdown]
# ## Main numbers
#
# The oracle knows the language and not the task; it holds all tasks of a family for equally likely beforehand, held-out ones included. The most common answer is that of the prompt so far. Means over exams: after one example, at the training length and at four times as many; and at the training length in each condition, mean of both families.

# %%
numbers = gather(settings, records, {"Oracle": Yardstick("mapping_oracle", n_prompts=256), "Most common answer": Yardstick("most_common_answer", n_prompts=256)})
numbers = numbers.assign_attrs(standing_on(settings, every, json.loads(numbers.attrs["baselines"])))  # the rates that were not chosen, too
exams = {condition: [f"{family}_{condition}" for family in FAMILIES] for condition in CONDITIONS}
columns = {f"after {k}": (k, None) for k in (1, trained_to, 4 * trained_to)} | {f"{words}, after {trained_to}": (trained_to, exams[condition]) for condition, words in CONDITIONS.items()}
table = pd.DataFrame({title: {who: mean_accuracy(numbers, who, *asked).mean() for who in numbers.who.values} for title, asked in columns.items()}).rename_axis("model")
table.round(3)

# %% [markdown]
# The oracle's curve is known: one example settles a form; what it makes of facts is a sum.

# %%
oracle = numbers["value"].sel(who="Oracle")
n_asked = min(256, exam.n_prompts)
assert (oracle.sel(shift=[f"forms_{condition}" for condition in CONDITIONS]).isel(examples=slice(1, None)) == 1).all()
for k in (1, trained_to):
    expected = oracle_on_facts(k, task.n_attributes, task.n_values)
    measured = oracle.sel(shift=[f"facts_{condition}" for condition in CONDITIONS], examples=k).mean().item()
    assert abs(measured - expected) < 4 * (expected * (1 - expected) / (4 * n_asked)) ** 0.5 + 0.08, (k, measured, expected)  # the last term: one world, few narrow tasks

# %% [markdown]
# ## The figure

# %%
rows = score_rows(numbers.sel(examples=[k for k in drawn_examples(longest + 1, 8) if k]), list(numbers.who.values), list(numbers["shift"].values))

def panel(family, condition):
    "One exam."
    chart = score_chart(rows[rows["shift"] == f"{family}_{condition}"], trained_to, "accuracy" if condition == next(iter(CONDITIONS)) else "", log_x=True, y_domain=(0.0, 1.02), width=190, height=170)
    return chart.properties(title=alt.TitleParams(f"{family}: {CONDITIONS[condition]}", fontSize=11, anchor="middle"))

grid = alt.vconcat(*(alt.hconcat(*(panel(family, condition) for condition in CONDITIONS), spacing=10) for family in FAMILIES)).resolve_scale(color="shared", strokeDash="shared")
best_first = sorted(records, key=lambda who: -table.loc[who, f"after {trained_to}"])
finding = f"Mean accuracy after {trained_to} / {4 * trained_to} examples: " + ", ".join(f"{who} {table.loc[who, f'after {trained_to}']:.2f} / {table.loc[who, f'after {4 * trained_to}']:.2f}" for who in best_first)
unlearnt = [who for who in records if not has_learnt_mappings(numbers, who)]
notes = [*([f"Trained tasks not learnt at this tier: {'all models' if len(unlearnt) == len(records) else '; '.join(unlearnt)}."] if unlearnt else []),
         *([f"Each at the rate with the lowest training loss of those run: {', '.join(f'{who} {config_of(record).train.lr:g}' for who, record in records.items())}."] if len(every) > len(records) else []),
         f"{parameters.min() / 1e6:.2g} to {parameters.max() / 1e6:.2g} million parameters; a label has {task.n_values} values.", *left_out(settings, every)]
chart = with_face(grid, finding, settings.tier, notes)
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
costs(settings, every)
