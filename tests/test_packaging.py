"""What an installation contains: the package with its data, and nothing else at the top level."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = {
    ".git",
    ".venv",
    ".build",
    "build",
    "dist",
    "out",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
}
NOT_INSTALLED = ("tests", "benchmarks", "docs")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built in a copy so that nothing is left behind in it."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "checkout", symlinks=True, ignore=lambda _, names: NOT_COPIED & set(names))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder],
        cwd=folder / "checkout", capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    """Paths of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def unpacked(wheel) -> Path:
    """The wheel as it lies in site-packages."""
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def package_folders() -> list[Path]:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    return [ROOT.joinpath(*name.split(".")[1:]) for name in listed]


def version() -> str:
    return re.search(r'^__version__ = "(.+)"$', (ROOT / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[1]


def installed_like(unpacked: Path, *code: str) -> str:
    """Output of ``python -c`` where ``tokenfab`` is the unpacked wheel, not this checkout."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], cwd=unpacked, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(unpacked)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_tokenfab_lands_at_the_top_level(names):
    assert {n.split("/")[0] for n in names} == {"tokenfab", f"tokenfab-{version()}.dist-info"}


def test_every_module_and_every_data_file_is_inside(names):
    """TOML and SystemVerilog below a package are data that the installed package reads."""
    wanted = {ROOT / "py.typed"}
    for folder in package_folders():
        wanted |= set(folder.glob("*.py"))
        if folder != ROOT:
            wanted |= {f for kind in ("toml", "sv", "svh", "json") for f in folder.rglob(f"*.{kind}")}
    assert {"tokenfab/" + f.relative_to(ROOT).as_posix() for f in wanted} - names == set()


def test_the_package_holds_python_data_and_nothing_else(names):
    inside = [n for n in names if n.startswith("tokenfab/")]
    assert {Path(n).suffix or Path(n).name for n in inside} <= {".py", ".typed", ".toml", ".sv", ".svh", ".json"}


def test_tests_benchmarks_and_docs_stay_out(names):
    assert [n for n in names if n.startswith(tuple(f"tokenfab/{folder}/" for folder in NOT_INSTALLED))] == []


def test_metadata_says_what_pyproject_says(names, unpacked):
    info = unpacked / f"tokenfab-{version()}.dist-info"
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    assert f"\nVersion: {version()}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert sorted(needed) == ["highspy", "matplotlib", "numpy", "pulp", "pydantic", "rich", "simpy", "torch", "typer"]
    assert "tokenfab = tokenfab.cli:main" in (info / "entry_points.txt").read_text(encoding="utf-8")
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_the_version_is_read_without_importing_the_package(unpacked):
    out = installed_like(unpacked, "import sys, tokenfab", "print(tokenfab.__file__, 'torch' in sys.modules)")
    assert out.split() == [str(unpacked / "tokenfab" / "__init__.py"), "False"]


@pytest.mark.parametrize("command", ["models", "devices"])
def test_the_installed_command_finds_its_data(unpacked, command):
    if not (unpacked / "tokenfab" / "cli.py").is_file():
        pytest.skip("there is no tokenfab.cli yet")
    out = installed_like(
        unpacked,
        "import sys",
        f"sys.argv = ['tokenfab', '{command}', '--json']",
        "from tokenfab.cli import main",
        "main()",
    )
    folder = {"models": ROOT / "models" / "presets", "devices": ROOT / "hw" / "catalog"}[command]
    listed = {entry["name"] for entry in json.loads(out)}
    assert listed
    assert {f.stem for f in folder.glob("*.toml")} <= listed


def test_an_installed_preset_needs_no_torch(unpacked):
    out = installed_like(
        unpacked,
        "import sys",
        "from tokenfab.workloads.load import load_trace",
        "print(load_trace('llama-2-7b').parameters, 'torch' in sys.modules)",
    )
    assert out.split() == ["6738415616", "False"]
