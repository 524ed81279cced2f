# The batch: runs -> experiment notebooks -> verdicts. `iclrepro reproduce` calls it; call it directly to send the jobs to a cluster:
#   snakemake --directory results --config tier=gpu root=$PWD/results device=cuda --executor slurm --jobs 16
# A file that exists is complete (iclrepro writes whole files only), so --ignore-incomplete and --nolock are safe.
import sys
from pathlib import Path

from iclrepro.experiments import chosen_experiments, experiment_runs, project_root, runs_at
from iclrepro.models import parse_pattern

shell.prefix(f"export PATH='{Path(sys.executable).parent}':$PATH; ")  # the environment need not be activated

tier = config.get("tier", "laptop")
root = Path(config.get("root", project_root() / "results")).resolve()
device = config.get("device", "cpu")

drawn = chosen_experiments(tier, [name for name in (config.get("only") or "").split(",") if name])
runs = runs_at(tier, drawn)


def files_of(experiment):
    return multiext(f"{root}/{experiment}/{tier}", ".nc", ".csv", ".svg", ".vl.json", ".verdicts.json", ".ipynb")


# Every file is asked for by name: a notebook that was killed half way has left some of its files, and they are whole.
rule all:
    input:
        f"{root}/claims-{tier}.json",
        [files_of(experiment) for experiment in drawn],
        [f"{root}/runs/{folder}/record.nc" for folder in runs],


# A rule a run, not a wildcard, so that those with most Mamba blocks, the slowest a step, start first.
for folder, run in runs.items():
    rule:
        name: "train_" + folder.replace("-", "_").replace(".", "_")
        output: f"{root}/runs/{folder}/record.nc"
        priority: run.train.steps * (1 + parse_pattern(run.train.model.pattern).count("mamba"))
        threads: len(run.train.seeds) if device == "cpu" else 1  # on a CPU the seeds train side by side
        resources: gpu=0 if device == "cpu" else 1  # for a cluster; on one host `iclrepro reproduce` has made these runs before
        params: folder=folder  # bound here: the shell command is put together only when the job starts
        shell: "iclrepro train --run {params.folder} --tier {tier} --root {root} --device {device} --quiet"


for experiment in drawn:
    rule:
        name: f"draw_{experiment}"
        input:
            [f"{root}/runs/{run.folder}/record.nc" for run in experiment_runs(experiment, tier).values()],
            notebook=f"{project_root()}/nbs/experiments/{experiment}.ipynb",
        output: files_of(experiment)
        params: target=f"{root}/{experiment}/{tier}.ipynb", root=str(root)
        shell: "python -m iclrepro.drawing {input.notebook:q} {params.target:q} tier={tier} root={params.root:q} device={device}"  # `iclrepro draw` would import the library first


rule claims:
    input: [f"{root}/{experiment}/{tier}.nc" for experiment in drawn]
    output: f"{root}/claims-{tier}.json"
    shell: "iclrepro claims --root {root} --save {root}/claims-{tier}.json"
