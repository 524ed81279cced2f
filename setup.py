"""Packaging. Every value comes from settings.ini, the one source of name, version, requirements and extras."""
from configparser import ConfigParser

from setuptools import setup

config = ConfigParser()
config.read("settings.ini", encoding="utf-8")
project = config["DEFAULT"]
setup(
    name=project["lib_name"],
    version=project["version"],
    description=project["description"],
    author=project["author"],
    license="Apache-2.0",
    packages=[project["lib_path"]],
    package_data={project["lib_path"]: ["facts/*.tsv"]},
    python_requires=f">={project['min_python']}",
    install_requires=project["requirements"].split(),
    extras_require={extra: project[f"{extra}_requirements"].split() for extra in ("dev", "baselines", "language", "cuda")},
    entry_points={"console_scripts": project["console_scripts"].split()},
)
