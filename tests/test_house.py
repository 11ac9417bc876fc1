"""The laws of the house, as tests that can fail.

Each law is a function from source text to a list of breaches. Each is used twice: on the repository,
where it must find nothing, and on a planted breach, which it must find.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_INSTALLED = {"tests", "benchmarks", "docs", "build", "dist", "out"}
MAX_LINES = 500

# -- the floors ------------------------------------------------------------------------------------
FLOORS = {
    "cli": 6,
    "reports": 5, "systems": 5, "sweep": 5,
    "mapping": 4, "serving": 4, "validation": 4,
    "hw": 3, "workloads": 3,
    "models": 2, "rtl": 2,
    "kernels": 1, "descriptions": 1,
    "ground": 0,
}  # fmt: skip
# Modules whose room is not the folder they lie in. Importing workloads.trace or hw.spec runs the __init__.py
# beside it, so those two files are held to the same floor.
ROOMS = {
    "": "ground", "errors": "ground", "files": "ground", "settings": "ground", "__main__": "cli", "cli_common": "cli",
    "cli_rtl": "cli", "cli_bench": "cli", "cli_place": "cli", "cli_serve": "cli",
    "workloads": "descriptions", "hw": "descriptions",
    "workloads.trace": "descriptions", "workloads.kinds": "descriptions",
    "workloads.expr": "descriptions", "workloads.expr_functions": "descriptions", "workloads.expr_text": "descriptions",
    "hw.spec": "descriptions", "hw.units": "descriptions",
}  # fmt: skip
# Arrows between two rooms of one floor: a cost model reads what a trace compiles to; validation measures what a
# simulation says.
LEVEL_ARROWS = {("hw", "workloads"), ("validation", "serving")}

# -- libraries -------------------------------------------------------------------------------------
NETWORK = {"socket", "ssl", "urllib", "http", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "socketserver",
           "xmlrpc", "huggingface_hub"}  # fmt: skip
UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
# Heavy libraries, and the rooms (or single modules) that may import them when they are imported.
HEAVY: dict[str, set[str]] = {
    "torch": {
        "models",
        "kernels",
        *(f"workloads.{m}" for m in ("calls", "capture", "layers", "operators", "raw", "recorder")),
        *(f"workloads.{m}" for m in ("hf_attention", "hf_capture", "hf_modules")),
    },
    "matplotlib": {"reports"},
    "transformers": set(),
    "pulp": {"mapping"},
    "scipy": {"mapping", "validation"},
    "sympy": set(),
    "pandas": set(),
    "networkx": set(),
    "dask": set(),
    "distributed": set(),
}
# Import names that come with a distribution of another name.
COMES_WITH = {"pydantic_core": "pydantic", "click": "typer", "mpl_toolkits": "matplotlib", "distributed": "dask",
              "cocotb_tools": "cocotb"}  # fmt: skip

# -- machine paths and registries (spelt in pieces: this file is checked too) -----------------------
PLACES = re.compile(
    r"(?<![\w.:/-])/(?:work|root|home/\w+|Users/\w+)/|"
    + "|".join(re.escape(a + b) for a, b in [("py", "pi.org"), ("python", "hosted.org"), ("download.py", "torch.org"),
                                             ("conda.ana", "conda.org"), ("hub.doc", "ker.com"), ("registry.n", "pm")])
)  # fmt: skip


# -- reading the repository ------------------------------------------------------------------------
@cache
def packages() -> tuple[Path, ...]:
    """Folders of the package: the root and every folder below it that has an ``__init__.py``."""
    found = [ROOT]
    for folder in found:
        below = (p for p in sorted(folder.iterdir()) if p.is_dir() and not p.is_symlink())
        found += [
            p for p in below if (p / "__init__.py").is_file() and not (folder == ROOT and p.name in NOT_INSTALLED)
        ]
    return tuple(found)


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name below ``tokenfab`` (the root itself is ``""``)."""
    found = {}
    for folder in packages():
        for file in sorted(folder.glob("*.py")):
            parts = [*folder.relative_to(ROOT).parts, *([] if file.stem == "__init__" else [file.stem])]
            found[".".join(parts)] = file
    return found


@cache
def committed() -> tuple[Path, ...]:
    """Files git knows or would add; without git (an unpacked archive), all that lies outside hidden folders."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
        )
        paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [p for p in ROOT.rglob("*") if not set(p.relative_to(ROOT).parts[:-1]) & (NOT_INSTALLED - {"tests"})]
        paths = [p for p in paths if not any(x.startswith(".v") for x in p.relative_to(ROOT).parts)]
    return tuple(sorted(p for p in paths if p.is_file() and not p.is_symlink()))


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def breaches_in_package(law) -> list[str]:
    return [b for name, file in modules().items() for b in law(name, file.read_text(encoding="utf-8"))]


# -- reading a module ------------------------------------------------------------------------------
def imports(name: str, source: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """(line, module below ``tokenfab``) of all imports of our own, at any depth of the source."""
    is_package = not name or any(m.startswith(name + ".") for m in known)
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, below(a.name)) for a in node.names if a.name.split(".")[0] == "tokenfab")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = package.split(".") if package else []
                base = ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))
            elif (node.module or "").split(".")[0] == "tokenfab":
                base = below(node.module or "")
            else:
                continue
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield node.lineno, inner if inner in known or (not base and inner in FLOORS) else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and str(target.value).split(".")[0] == "tokenfab":
                yield node.lineno, below(str(target.value))


def below(absolute: str) -> str:
    return absolute.partition(".")[2]


def room(module: str) -> str:
    return ROOMS.get(module, module.split(".")[0])


def foreign(source: str, *, at_import: bool) -> Iterator[tuple[int, str]]:
    """(line, top-level name) of imports that are not ours: all, or those that run when the module is imported."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name.split(".")[0]) for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, (node.module or "").split(".")[0]
        pending += ast.iter_child_nodes(node)


# -- the laws --------------------------------------------------------------------------------------
def upward_imports(name: str, source: str, known: set[str] | None = None) -> list[str]:
    """A module imports from floors below, or from its own room."""
    here, found = room(name), []
    if here not in FLOORS:
        return [f"{name}: lives in no room of the house; give {here!r} a floor"]
    for line, target in imports(name, source, known or set(modules())):
        there = room(target)
        if there not in FLOORS:
            found.append(f"{name}:{line}: {target} lives in no room of the house")
        elif here != there and FLOORS[there] >= FLOORS[here] and (here, there) not in LEVEL_ARROWS:
            found.append(f"{name}:{line}: {here} ({FLOORS[here]}) imports {target} from {there} ({FLOORS[there]})")
    return found


def unsafe_code(name: str, source: str) -> list[str]:
    """No evaluating of text, no pickles, no network."""
    found = []
    for line, module in foreign(source, at_import=False):
        if module in NETWORK | UNSAFE_MODULES:
            found.append(f"{name}:{line}: imports {module}")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).removeprefix("builtins.")
        arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in UNSAFE_CALLS:
            found.append(f"{name}:{node.lineno}: calls {called}")
        if arguments.get("allow_pickle") == "True" or (
            called == "torch.load" and arguments.get("weights_only") != "True"
        ):
            found.append(f"{name}:{node.lineno}: {called} may unpickle")
        if called == "yaml.load":
            found.append(f"{name}:{node.lineno}: yaml.load; yaml.safe_load is meant")
    return found


def heavy_imports(name: str, source: str) -> list[str]:
    """Heavy libraries are imported where they are used."""
    return [
        f"{name}:{line}: imports {module} when it is imported"
        for line, module in foreign(source, at_import=True)
        if module in HEAVY and not {room(name), name} & HEAVY[module]
    ]


def undeclared_imports(name: str, source: str, declared: set[str]) -> list[str]:
    """What is imported is in the standard library or declared in pyproject.toml."""
    return [
        f"{name}:{line}: imports {module}, which pyproject.toml does not declare"
        for line, module in foreign(source, at_import=False)
        if module not in sys.stdlib_module_names | {"tokenfab", "__future__"}
        and COMES_WITH.get(module, module).lower() not in declared
    ]


def missing_docstrings(name: str, source: str) -> list[str]:
    """Modules, public classes and public functions say what they are."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else [f"{name}: the module has no docstring"]
    for node in tree.body:
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if named and not node.name.startswith("_") and not ast.get_docstring(node):
            found.append(f"{name}:{node.lineno}: {node.name} has no docstring")
    return found


def too_long(name: str, source: str) -> list[str]:
    """A file can be read in one sitting."""
    lines = len(source.splitlines())
    return [f"{name}: {lines} lines; at most {MAX_LINES}"] if lines > MAX_LINES else []


def machine_places(name: str, text: str) -> list[str]:
    """No path of one machine, no host of a package registry."""
    return [
        f"{name}:{number}: {match.group()}"
        for number, line in enumerate(text.splitlines(), 1)
        for match in PLACES.finditer(line)
    ]


def declared_dependencies() -> set[str]:
    """Names of all distributions in ``dependencies`` and in the extras a user may install."""
    table = project()["project"]
    lists = [table["dependencies"], *(v for k, v in table["optional-dependencies"].items() if k != "dev")]
    return {re.match(r"[\w.-]+", text).group().lower() for one in lists for text in one}


# -- the repository keeps them ---------------------------------------------------------------------
def test_there_is_a_house_to_check():
    assert {"", "errors", "files", "workloads.trace", "workloads.expr"} <= set(modules())
    assert ROOT / "pyproject.toml" in committed()


def test_imports_point_down_only():
    assert breaches_in_package(upward_imports) == []


def test_package_code_evaluates_nothing_unpickles_nothing_and_opens_no_connection():
    assert breaches_in_package(unsafe_code) == []


def test_heavy_libraries_are_imported_where_they_are_used():
    assert breaches_in_package(heavy_imports) == []


def test_every_import_is_declared():
    declared = declared_dependencies()
    assert breaches_in_package(lambda name, source: undeclared_imports(name, source, declared)) == []


def test_everything_public_has_a_docstring():
    assert breaches_in_package(missing_docstrings) == []


def test_every_python_file_fits_one_sitting():
    files = [p for p in committed() if p.suffix == ".py"]
    assert [b for p in files for b in too_long(str(p.relative_to(ROOT)), p.read_text(encoding="utf-8"))] == []


def test_no_committed_file_names_a_machine_or_a_registry():
    found = []
    for path in committed():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found += machine_places(str(path.relative_to(ROOT)), data.decode("utf-8", errors="replace"))
    assert found == []


def test_listed_packages_are_the_folders_that_have_an_init():
    listed = project()["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(".".join(["tokenfab", *p.relative_to(ROOT).parts]) for p in packages())
    assert len(set(listed)) == len(listed)


def test_the_changelog_has_an_entry_for_this_version():
    import tokenfab

    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert tokenfab.__version__ in headings


def test_the_architecture_page_gives_every_room_its_floor():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| `([\w/]+)(?:\.py)?", page, re.MULTILINE)
    told = {name[:-1] if name.endswith("/") else room(name.replace("/", ".")): int(floor) for floor, name in rows}
    assert told == FLOORS


@pytest.mark.parametrize("module", ["cli", "models.config", "workloads.trace", "hw.spec"])
def test_importing_pulls_in_no_heavy_library(module):
    if module not in modules():
        pytest.skip(f"there is no tokenfab.{module} yet")
    code = f"import sys, tokenfab.{module}; print(*sorted(set({sorted(HEAVY)}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# -- planted breaches are found --------------------------------------------------------------------
KNOWN = {
    "", "cli", "errors", "files", "hw", "hw.closed", "hw.gpu", "hw.spec", "kernels", "kernels.int4", "mapping",
    "mapping.ilp", "models", "models.llama", "reports", "reports.figures", "rtl", "serving", "serving.engine",
    "sweep", "workloads", "workloads.capture", "workloads.compiled", "workloads.techniques", "workloads.trace",
}  # fmt: skip


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("workloads.capture", "from ..hw.closed import cost"),
        ("workloads.capture", "from .. import cli"),
        ("workloads.capture", "import tokenfab.serving.engine"),
        ("models.llama", "from ..workloads.capture import capture"),
        ("models.llama", "def f():\n    from tokenfab.hw.closed import cost"),
        ("models.llama", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..workloads import capture"),
        ("workloads.trace", "from .techniques import quantise"),
        ("hw.spec", "from .closed import cost"),
        ("hw", "from .closed import cost"),
        ("hw.gpu", "from ..serving import queue"),
        ("hw.gpu", "import importlib\nimportlib.import_module('tokenfab.mapping.ilp')"),
        ("reports.figures", "from ..sweep import run"),
        ("serving.engine", "from ..mapping import ilp"),
        ("errors", "from .workloads.expr import Expr"),
        ("kernels.int4", "from ..workloads.trace import Trace"),
        ("attic.old", "import json"),
    ],
)
def test_an_import_that_points_up_is_found(module, source):
    assert upward_imports(module, source, KNOWN)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli", "from .reports.pdf import write\nfrom .hw.catalog import load"),
        ("reports.figures", "from ..hw.closed import cost\nfrom .style import colours"),
        (
            "hw.gpu",
            "from ..workloads.trace import Trace\nfrom ..workloads.compiled import compile_trace",
        ),
        ("hw.gpu", "from ..rtl.mxu.cycles import cycles"),
        ("workloads.capture", "from ..models.llama import Llama\nfrom ..errors import InputError\nimport torch"),
        ("workloads.trace", "from .expr import Expr\nfrom ..files import write_whole"),
        ("kernels.int4", "from ..errors import InputError"),
    ],
)
def test_an_import_that_points_down_or_stays_in_the_room_is_allowed(module, source):
    assert upward_imports(module, source, KNOWN) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "def f():\n    exec('x = 1')",
        "import builtins\nbuiltins.eval('1')",
        "import pickle",
        "def f():\n    from urllib.request import urlopen",
        "import http.client",
        "import torch\ntorch.load('x.pt')",
        "import numpy as np\nnp.load('x.npy', allow_pickle=True)",
        "import yaml\nyaml.load(text)",
    ],
)
def test_unsafe_code_is_found(source):
    assert unsafe_code("m", source)


def test_putting_a_module_in_evaluation_mode_is_no_breach():
    assert unsafe_code("m", "module.eval()\nre.compile('x')\ntorch.load('x', weights_only=True)") == []


def test_a_heavy_import_is_found_at_module_level_only():
    assert heavy_imports("cli", "import torch.nn as nn")
    assert heavy_imports("hw.gpu", "try:\n    from scipy import optimize\nexcept ImportError:\n    pass")
    assert heavy_imports("cli", "def f():\n    import torch") == []
    assert heavy_imports("cli", "if TYPE_CHECKING:\n    import torch") == []
    assert heavy_imports("models.llama", "import torch") == []


def test_an_undeclared_import_is_found():
    assert undeclared_imports("m", "def f():\n    import leftpad", {"numpy"})
    assert undeclared_imports("m", "import json, numpy.linalg, pydantic_core", {"numpy", "pydantic"}) == []


def test_a_missing_docstring_is_found():
    assert len(missing_docstrings("m", "def f(): ...\nclass A: ...\ndef _g(): ...")) == 3
    assert missing_docstrings("m", '"""M."""\ndef f():\n    """F."""') == []


def test_both_sides_of_the_length_limit():
    assert too_long("m", "x\n" * (MAX_LINES + 1))
    assert too_long("m", "x\n" * MAX_LINES) == []


def test_a_machine_path_or_a_registry_host_is_found():
    slash = "/"
    assert machine_places("f", f"see {slash}work{slash}x")
    assert machine_places("f", f'"{slash}root{slash}.cache"')
    assert machine_places("f", "https://py" + "pi.org/simple")
    assert machine_places("f", "https://example.org/work/1, docs/work/x, home/root") == []
