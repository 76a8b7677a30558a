# SPDX-License-Identifier: Apache-2.0
"""The house: one version, every package in the wheel, and a wheel that works outside the checkout."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import progressive_cascade

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "scripts" / "progressive_cascade"


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    """setup.cfg, parsed."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of this checkout installed into it, without dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy is built, because a build leaves its traces in the source folder.
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "stage*_best.pt", "runs", "output", "eval")
    for name in ("scripts", "bundle"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)], check=True
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def _run_outside(code: str, installed: Path) -> str:
    """Runs Python code against the installed wheel, in a folder that is not the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=installed.parent, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_version_stands_once() -> None:
    """The package, the installed distribution and the bundle's metadata agree, and the changelogs know the version."""
    version = progressive_cascade.__version__
    bundle = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert bundle["version"] == version
    assert version in bundle["changelog"]
    assert metadata.version("progressive-cascade") == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_setup_cfg_names_every_package(setup_cfg: configparser.ConfigParser) -> None:
    """Each folder with Python files below the package is listed, and the bundle with them."""
    folders = {path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders} | {"progressive_cascade.bundle"}
    assert set(setup_cfg["options"]["packages"].split()) == packages


def test_constraints_pin_every_dependency(setup_cfg: configparser.ConfigParser) -> None:
    """What setup.cfg asks for has one tested version per Python in constraints.txt, torch 2.13.0 among them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    asked = setup_cfg["options"]["install_requires"] + "\n".join(setup_cfg["options.extras_require"].values())
    names = {re.split(r"[ ;<>=\[]", line.strip())[0].lower() for line in asked.splitlines() if line.strip()}
    assert names <= pinned
    assert "torch==2.13.0" in lines


def test_license_stands_beside_the_bundle() -> None:
    """The bundle is distributed by itself and carries the same licence."""
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "bundle" / "LICENSE").read_bytes()


def test_wheel_works_outside_the_checkout(installed: Path) -> None:
    """The installed wheel imports from its own folder and finds the bundle it carries."""
    code = """
import json, progressive_cascade
from progressive_cascade.paths import bundle_root
root = bundle_root()
files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
print(json.dumps([progressive_cascade.__file__, str(root), files]))
"""
    file, root, files = json.loads(_run_outside(code, installed))
    assert Path(file).is_relative_to(installed)
    assert Path(root).is_relative_to(installed)
    assert {"LICENSE", "configs/metadata.json", "configs/logging.conf", "docs/data_license.txt"} <= set(files)
    shipped = {str(path.relative_to(ROOT / "bundle")) for path in (ROOT / "bundle" / "configs").rglob("*.json")}
    assert shipped <= set(files)


def test_wheel_carries_every_module(installed: Path) -> None:
    """No Python file of the checkout is missing from the wheel."""
    ours = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    theirs = {path.relative_to(installed / "progressive_cascade") for path in installed.rglob("*.py")}
    assert ours <= theirs


def test_import_pulls_in_no_heavy_package(installed: Path) -> None:
    """`import progressive_cascade` is free of itk, SimpleITK and matplotlib: a training machine may lack them."""
    code = """
import sys, progressive_cascade
print(sorted(name for name in ("itk", "SimpleITK", "matplotlib") if name in sys.modules))
"""
    assert _run_outside(code, installed).strip() == "[]"
