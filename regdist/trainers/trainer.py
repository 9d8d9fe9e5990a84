"""A trainer: its options, and the composition that they are."""

import ast
import dataclasses
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regdist.methods import Method
from regdist.trainers.settings import Option, Settings

OTHER_LAW = "samples are drawn from another law than the policy: give `sampler` to `rd.field`"
"""Why temperatures and nuclei are no part of a composition."""


@dataclasses.dataclass
class Plan:
    """What a configuration is.

    Attributes:
        method: the composition, of one prompt whose batch is its group.
        group_size: samples a prompt.
        pitfalls: what people would not expect.
        beyond: what it also sets and a table of one step cannot show, or is not composed here.
        other_kl: what to set for the other direction of the KL; "" where there is none to change.
    """

    method: Method
    group_size: int
    pitfalls: list[str] = dataclasses.field(default_factory=list)
    beyond: list[str] = dataclasses.field(default_factory=list)
    other_kl: str = ""


@dataclasses.dataclass(frozen=True)
class Trainer:
    """One trainer, read from its code at a version.

    Attributes:
        name: as `explain` has it.
        title: as people have it.
        version: whose code was read.
        options: that decide what is optimized, by name.
        marks: beginnings of names by which its configurations are known.
        aside: patterns of names that do not touch what is optimized.
        beyond: patterns of names that do, and the reason why they are not in the composition;
            with the value at which they do nothing.
        compose: from settings to a plan.
        package: whose defaults are read where it is installed, and the reader of them.
    """

    name: str
    title: str
    version: str
    options: Mapping[str, Option]
    marks: tuple[str, ...]
    aside: tuple[str, ...]
    beyond: Mapping[str, tuple[str, Any]]
    compose: Callable[[Settings], Plan]
    package: str = ""
    defaults: Callable[[Path], Mapping[str, Any]] | None = None

    def installed(self) -> tuple[str, Mapping[str, Any]]:
        """The version that is installed and its defaults; this one's own where none can be read."""
        found = importlib.util.find_spec(self.package) if self.package else None
        if found is None or not found.submodule_search_locations or self.defaults is None:
            return self.version, {}
        try:
            version = importlib.metadata.version(self.package)
            read = self.defaults(Path(next(iter(found.submodule_search_locations))))
        except (OSError, SyntaxError, importlib.metadata.PackageNotFoundError):
            return self.version, {}  # a release whose files are elsewhere
        return version, {name: read[name] for name in self.options if name in read}

    def sort(self, given: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
        """Names that are not options: those aside, what is beyond in words, and unknown ones."""
        aside, beyond, unknown = [], [], []
        for name, value in given.items():
            if name in self.options:
                continue
            reason = next((v for k, v in self.beyond.items() if re.fullmatch(k, name)), None)
            if reason is not None:
                if value != reason[1]:
                    beyond.append(f"{name}={value}: {reason[0]}")
            elif any(re.fullmatch(pattern, name) for pattern in self.aside):
                aside.append(name)
            else:
                unknown.append(name)
        return aside, beyond, unknown


def dataclass_defaults(file: Path, name: str) -> dict[str, Any]:
    """The defaults of the fields of a dataclass, from the text of its file."""
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == name:
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    value = _default_of(part.value)
                    if value is not None:
                        found[part.target.id] = value.value
    return found


def _default_of(node: ast.expr | None) -> ast.Constant | None:
    if isinstance(node, ast.Call):
        node = next((k.value for k in node.keywords if k.arg == "default"), None)
    return node if isinstance(node, ast.Constant) else None
