"""The house rules: one way through the wings, short files and functions, one public face."""

import ast
import importlib
import io
import re
import sys
import tokenize
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import regdist as rd

ROOT = Path(__file__).parent.parent
WINGS = (
    "numerics",
    "scale",
    "policies",
    "problems",
    "regularizers",
    "metrics",
    "targets",
    "methods",
    "runs",
    "testing",
    "plots",
    "rollouts",
    "claims",
    "trainers",
    "reports",
    "cli",
)
TO_COME = {"rollouts", "claims"}
PARTS = (  # of `regdist.methods`, up to the method itself
    "batch",
    "advantage",
    "matching",
    "signal",
    "surrogate",
    "penalty",
    "weight",
    "averaging",
    "controller",
    "geometry",
    "method",
)


def name_of(path):
    """The dotted name of a file of the package; a package's is that of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted((ROOT / "regdist").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py"]


def imports(name):
    """What a module of the package imports from it, anywhere in it: (module, name or None)."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((x.name, None) for x in node.names if x.name.split(".")[0] == "regdist")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            if node.module.split(".")[0] == "regdist":
                inside = [f"{node.module}.{x.name}" for x in node.names]
                for x, full in zip(node.names, inside, strict=True):
                    yield (full, None) if full in MODULES else (node.module, x.name)


def wing(name):
    """The place of a module's wing; what runs the command comes last."""
    first = name.split(".")[1]
    return len(WINGS) if first == "__main__" else WINGS.index(first)


def test_every_wing_has_its_place():
    found = {name.split(".")[1] for name in MODULES if name != "regdist"} - {"__main__"}
    assert found == set(WINGS) - (TO_COME - found)


@pytest.mark.parametrize("name", [n for n in MODULES if n != "regdist"])
def test_a_module_imports_only_from_wings_above_it(name):
    """And never from the public face, which is made of everything."""
    used = {module for module, _ in imports(name)}
    assert "regdist" not in used
    assert [x for x in used if wing(x) > wing(name)] == []


def test_there_is_no_circle():
    graph = {name: {module for module, _ in imports(name)} for name in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_contributing_gives_the_same_order():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (line,) = re.findall(r"^- \*\*Data flows one way\.\*\* .*$", text, re.MULTILINE)
    assert tuple(re.findall(r"`(\w+)`", line)) == WINGS


@pytest.mark.parametrize(
    ("folder", "most"), [("regdist", 450), ("tests", 600), ("benchmarks", 600)]
)
def test_files_are_short(folder, most):
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {path: n for path, n in lengths.items() if n > most} == {}


def code_lines(name):
    """The numbers of the lines that hold code: no docstrings, comments or blank lines."""
    beside = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    text = MODULES[name].read_text()
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in beside:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(TREES[name]):
        if isinstance(node, FUNCTIONS | ast.ClassDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            lines.difference_update(range(first.lineno, first.end_lineno + 1))
    return lines


FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def test_functions_are_short():
    long = {}
    for name, tree in TREES.items():
        lines = code_lines(name)
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                count = len(lines & set(range(node.lineno, node.end_lineno + 1)))
                if count > 60:
                    long[f"{name}.{node.name}"] = count
    assert long == {}


def test_the_face_shows_what_it_says():
    assert sorted(dir(rd)) == sorted([*rd.__all__, "__version__"])
    for name in rd.__all__:
        assert getattr(rd, name) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_exports_no_name_that_one_of_its_modules_has(package):
    """Or `regdist.wing.name` is a function where `import regdist.wing.name` is a module."""
    face = importlib.import_module(package)
    inside = [n for n in MODULES if n.rpartition(".")[0] == package and n != "regdist.__main__"]
    for name in inside:
        module = importlib.import_module(name)
        last = name.rpartition(".")[2]
        assert getattr(face, last) is module is sys.modules[name], last


@pytest.mark.parametrize("name", MODULES)
def test_private_names_stay_in_their_module(name):
    def private(x):
        return x.startswith("_") and not x.startswith("__")

    taken = [f"{module}.{x}" for module, x in imports(name) if x and private(x)]
    taken += [module for module, _ in imports(name) if any(map(private, module.split(".")))]
    aliases = {
        x.asname or x.name.split(".")[-1]
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "regdist"
        for x in node.names
        if f"{node.module}.{x.name}" in MODULES
    }
    taken += [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Attribute) and private(node.attr)
        if isinstance(node.value, ast.Name) and node.value.id in aliases
    ]
    assert taken == []


def test_a_method_knows_no_enumeration():
    """What a method is made of asks neither how its expectation is taken nor what groups are."""
    reached, left = set(), {f"regdist.methods.{part}" for part in PARTS}
    while left:
        name = left.pop()
        reached.add(name)
        left |= {module for module, _ in imports(name) if ".methods." in module} - reached
    assert reached & {"regdist.methods.expectation", "regdist.methods.groups"} == set()


def test_the_gate_tries_the_lowest_versions_that_are_promised():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = (ROOT / "tests" / "floors.txt").read_text().splitlines()
    assert floors == [x.replace(">=", "==") for x in project["dependencies"]]
    assert project["requires-python"] == ">=3.11"  # the gate's second environment is of 3.11


def test_the_citation_is_of_this_version():
    (version,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version == rd.__version__
