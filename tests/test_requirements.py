"""settings.ini, the lock files, environment.yml, CITATION.cff and the installed package agree."""
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from project import ROOT, settings


def requirements(key): return [Requirement(text) for text in settings[key].split()]


def pins(*files):
    """The pins of lock files, as requirements by canonical name."""
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]
    assert len({canonicalize_name(pin.name) for pin in found}) == len(found), "a package is pinned twice"
    return {canonicalize_name(pin.name): pin for pin in found}


def pinned_version(pin):
    (specifier,) = pin.specifier
    assert specifier.operator == "==" and "*" not in specifier.version, f"{pin} is not an exact pin"
    return specifier.version


def applies(requirement, extras=()):
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def without_marker(requirement): return f"{requirement.name}{requirement.specifier}"


def is_cuda(name): return name.startswith(("nvidia-", "cuda-")) or name == "triton"  # torch pins these itself


def closure(roots):
    """The names of all that `roots` need in this environment, themselves included."""
    seen, queue = {}, list(roots)
    ours = {canonicalize_name(requirement.name) for requirement in queue}
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if is_cuda(name) and name not in ours or name in seen and extras <= seen[name]: continue
        seen[name] = seen.get(name, frozenset()) | extras
        needed = map(Requirement, metadata.requires(name) or ())
        queue += [further for further in needed if applies(further, seen[name])]
    return set(seen)


LOCKS = {
    "requirements": ("requirements.lock",),
    "dev_requirements": ("requirements.lock", "requirements-dev.lock"),
}


@pytest.mark.parametrize("key", LOCKS)
def test_each_requirement_is_pinned_inside_its_range(key):
    pinned = pins(*LOCKS[key])
    for requirement in requirements(key):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{requirement} of settings.ini is not pinned: make locks"
        assert pinned_version(pinned[name]) in requirement.specifier, f"{pinned[name]} is outside {requirement}: make locks"


@pytest.mark.parametrize("keys", [["requirements"], ["requirements", "dev_requirements"]], ids=lambda keys: keys[-1])
def test_pins_are_what_the_requirements_need_and_no_more(keys):
    pinned = {name for name, pin in pins(*LOCKS[keys[-1]]).items() if applies(pin)}
    assert pinned == closure(requirement for key in keys for requirement in requirements(key) if applies(requirement))


def test_development_lock_builds_on_the_other():
    assert (ROOT / "requirements-dev.lock").read_text().startswith("-r requirements.lock\n")


def test_pins_admit_local_builds():
    """A pin such as torch==2.13.0 is satisfied by the CPU build 2.13.0+cpu, a pin on a local version by nothing else."""
    assert [str(pin) for pin in pins(*LOCKS["dev_requirements"]).values() if "+" in pinned_version(pin)] == []
    assert SpecifierSet("==2.13.0").contains("2.13.0+cpu")


@pytest.mark.skipif(Path(sys.prefix).resolve() != ROOT / ".venv", reason="not the environment that make made")
def test_installed_versions_are_the_pinned_ones():
    for name, pin in pins(*LOCKS["dev_requirements"]).items():
        if applies(pin): assert metadata.version(name) in pin.specifier, f"{pin} is locked: make test"


def test_package_metadata_follow_settings():
    package = metadata.metadata(settings["lib_name"])
    assert package["Version"] == settings["version"]
    assert package["Requires-Python"] == f">={settings['min_python']}"
    declared = {}
    for requirement in map(Requirement, metadata.requires(settings["lib_name"])):
        extra = re.search(r'extra == "(\w+)"', str(requirement.marker))
        declared.setdefault(f"{extra[1]}_requirements" if extra else "requirements", set()).add(without_marker(requirement))
    keys = "requirements", "dev_requirements", "baselines_requirements", "language_requirements", "cuda_requirements"
    assert declared == {key: set(map(without_marker, requirements(key))) for key in keys}


def test_environment_file_installs_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == settings["lib_name"]
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    python, *tools = map(Requirement, conda)
    assert (python.name, {tool.name for tool in tools}) == ("python", {"git", "make", "pip"})
    assert {str(part) for part in python.specifier} >= {f">={settings['min_python']}"}


def test_citation_follows_settings():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["title"] == settings["lib_name"]
    assert citation["version"] == settings["version"]
    assert citation["license"] == "Apache-2.0"
    assert citation["authors"] == [{"name": settings["author"]}]
    cited = {identifier["value"] for reference in citation["references"] for identifier in reference["identifiers"]}
    assert cited == {"arXiv:2402.03170", "arXiv:2402.04248"}
