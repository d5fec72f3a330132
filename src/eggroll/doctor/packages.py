"""Packages: versions of those that are needed, and every extra with what it lacks. Nothing is imported."""

from __future__ import annotations

import functools
import importlib.util
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

NAME = "eggroll-es"
TOLD = ("jaxlib",)
"""Versions that are worth telling beside those of the packages that are required."""

_MODULES = {
    "dm-haiku": "haiku",
    "import-linter": "importlinter",
    "mkdocs-material": "material",
    "orbax-checkpoint": "orbax",
    "pytest-xdist": "xdist",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
"""Distribution → module, where this is not the same name."""

_LINES = {"vllm": "pip install {} (on a machine with CUDA; for the CPU scripts/install-vllm.sh)"}


class Requirement(NamedTuple):
    """One line of pyproject.toml, such as "jax[cuda12]>=0.10; extra == 'cuda'"."""

    name: str
    extras: tuple[str, ...]
    limits: str
    extra: str


class Package(NamedTuple):
    """A package as it is found."""

    name: str
    version: str  # empty: absent
    problem: str  # empty: none

    @property
    def is_well(self) -> bool:
        """Whether it is there, can be found and is new enough."""
        return bool(self.version) and not self.problem


def package(requirement: Requirement) -> Package:
    """What there is of a requirement."""
    name, module = requirement.name, module_of(requirement.name)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Package(name, "", "absent")
    except Exception as error:
        return Package(name, "", f"its metadata cannot be read: {type(error).__name__}")
    if not any(map(_is_found, [module, *_brought_by(name)])):
        return Package(name, version, f"its module {module} cannot be found")
    if not _within(version, requirement.limits):
        return Package(name, version, f"expected {requirement.limits}")
    return Package(name, version, "")


def core_packages() -> list[Package]:
    """What every command needs, and jaxlib."""
    wanted = [own for own in requirements() if not own.extra]
    return [package(own) for own in [*wanted, *(Requirement(name, (), "", "") for name in TOLD)]]


def extras() -> dict[str, list[Package]]:
    """Extra → its packages."""
    found: dict[str, list[Package]] = {}
    for own in requirements():
        if own.extra:
            beneath = [each for extra in own.extras for each in _requirements_of(own.name) if each.extra == extra]
            found.setdefault(own.extra, []).extend(package(each) for each in [own, *beneath])
    return found


def install_line(extra: str) -> str:
    """How one gets an extra."""
    return _LINES.get(extra, "pip install {}").format(f'"{NAME}[{extra}]"')


def mend_for(module: str) -> str:
    """How one gets a module that cannot be imported."""
    having = [own.extra for own in requirements() if module_of(own.name) == module]
    wanted = [extra for extra in having if extra not in ("test", "docs")]
    if "" in wanted:
        return f"pip install {NAME}"
    return install_line(wanted[0]) if wanted else f"pip install {module}"


def module_of(name: str) -> str:
    """The module that a distribution brings."""
    return _MODULES.get(name, name.replace("-", "_"))


@functools.cache
def requirements() -> tuple[Requirement, ...]:
    """Ours: of the checkout that this file lies in, else of the installed distribution."""
    project = Path(__file__).resolve().parents[3] / "pyproject.toml"
    if project.is_file():
        own = tomllib.loads(project.read_text()).get("project", {})
        if own.get("name") == NAME:
            return tuple(_of_project(own.get("dependencies", ()), own.get("optional-dependencies", {})))
    return _requirements_of(NAME)


def _of_project(core: Iterable[str], optional: Mapping[str, Iterable[str]]) -> Iterable[Requirement]:
    yield from (_requirement(line, "") for line in core)
    for extra, lines in optional.items():
        yield from (_requirement(line, extra) for line in lines)


def _requirements_of(name: str) -> tuple[Requirement, ...]:
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return ()
    found = []
    for line in lines:
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", line)
        found.append(_requirement(line, extra[1] if extra else ""))
    return tuple(found)


def _requirement(line: str, extra: str) -> Requirement:
    parts = re.match(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?\s*\(?([^;)]*)", line)
    name, inner, limits = parts.groups() if parts else (line, "", "")
    return Requirement(name, tuple(filter(None, re.split(r"[\s,]+", inner or ""))), limits.strip(), extra)


def _brought_by(name: str) -> set[str]:
    """The top-level modules among a distribution's files."""
    files = [file.parts[0] for file in metadata.files(name) or () if file.suffix == ".py"]
    return {part.removesuffix(".py") for part in files} - {".."}


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:  # whatever a broken package, or a finder, does
        return False


def _within(version: str, limits: str) -> bool:
    """Whether a version is within limits such as ">=0.10"; where nothing can compare them, it is taken to be."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(limits).contains(version, prereleases=True)
