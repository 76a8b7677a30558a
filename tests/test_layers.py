# SPDX-License-Identifier: Apache-2.0
"""The house: imports point one way, rooms keep their private names, doors are where the table says."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys

import pytest

import progressive_cascade
from tests.support.rooms import (
    BEGIN,
    END,
    GROUND,
    ORDER,
    PACKAGE,
    ROOT,
    files,
    imports,
    long_files,
    long_functions,
    num_lines,
    rooms,
    table,
)

FOLDERS = [room for room in rooms() if (PACKAGE / room).is_dir()]
# Imports that make a training machine need more than torch, MONAI, ignite, nibabel and numpy.
HEAVY = ("itk", "SimpleITK", "pydicom", "matplotlib")


def test_every_room_has_its_floor() -> None:
    """A new module or folder is given its place in the order, which is the table's."""
    assert set(rooms()) <= set(ORDER)


def test_imports_point_one_way() -> None:
    """A room imports lower rooms alone; the ground floor imports nothing but itself."""
    allowed = {room: GROUND if room in GROUND else set(ORDER[: ORDER.index(room)]) for room in rooms()}
    assert [str(found) for room in rooms() for found in imports(room) if found.target not in allowed[room]] == []


def test_ground_floor_has_no_cycle() -> None:
    """Its modules import each other in their order, too."""
    found = [found for room in GROUND for found in imports(room)]
    assert [str(one) for one in found if ORDER.index(one.target) > ORDER.index(one.source)] == []


def test_no_room_uses_anothers_private_names() -> None:
    """What begins with an underscore is its room's own."""
    assert [str(found) for room in rooms() for found in imports(room) if found.is_private] == []


def test_networks_know_the_projector_through_consistency_alone() -> None:
    """A stage cannot project by itself, so that every program that is exported is told of the views in one place."""
    assert [str(found) for found in imports("networks") if found.target == "projector"] == []


@pytest.mark.parametrize("room", ["attenuation", "geometry", "projector"])
def test_the_core_needs_torch_and_numpy_alone(room: str) -> None:
    """And a kernel compiler: who wants line integrals need not install MONAI."""
    modules = set()
    for path in files(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    allowed = {"torch", "numpy", "numba", "triton", "progressive_cascade"}
    assert modules - set(sys.stdlib_module_names) <= allowed


def test_the_top_of_the_package_can_be_seen_at_a_glance() -> None:
    """At most 24 names, at most nine of them modules."""
    modules = list(PACKAGE.glob("*.py"))
    assert len(modules) <= 9
    assert len(modules) + len(FOLDERS) <= 24


@pytest.mark.parametrize("room", FOLDERS)
def test_a_rooms_door_only_opens(room: str) -> None:
    """`__init__` re-exports names of its own room, all of which exist, and defines nothing."""
    module = importlib.import_module(f"progressive_cascade.{room}")
    assert module.__doc__
    if room == "cli":
        return
    assert module.__all__ and len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name
    own = [found for found in imports(room) if found.file.endswith(f"/{room}/__init__.py")]
    assert [str(found) for found in own if found.target != "doors"] == []
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert defined == []


@pytest.mark.parametrize("name", [*progressive_cascade.__all__, "not_there"])
def test_the_package_gives_what_it_names(name: str) -> None:
    """Names are looked up when they are used, and what is not there is an AttributeError."""
    assert hasattr(progressive_cascade, name) == (name != "not_there")


def test_importing_the_package_is_light() -> None:
    """`import progressive_cascade` loads no room, and its core neither itk, SimpleITK, pydicom nor matplotlib."""
    code = f"""
import sys, progressive_cascade
assert [name for name in sys.modules if name.startswith("progressive_cascade.")] == ["progressive_cascade.doors"]
from progressive_cascade import DRR, ConeBeam, ProgressiveCascade, backproject, line_integrals
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_command_lines_help_is_light() -> None:
    """Parsing any command loads none of the libraries that take seconds: `--help` answers at once."""
    code = """
import sys
from progressive_cascade.cli import build_parser
build_parser()
print([name for name in ("torch", "monai", "scipy", "nibabel") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_readme_imports_from_the_package_alone() -> None:
    """Its Python needs no module's name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    modules = [node.module for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert modules and set(modules) == {"progressive_cascade"}


def test_contributing_lists_the_rooms() -> None:
    """The table is this listing (`python -m tests.support.rooms`); lines may have grown or shrunk by a third since."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    printed = text.partition(BEGIN)[2].partition(END)[0].strip()
    without_lines = re.compile(r"^(\| `[^|]*\|)[^|]*\|", flags=re.MULTILINE)
    assert without_lines.sub(r"\1", printed) == without_lines.sub(r"\1", table())
    lines = [int(number) for number in re.findall(r"^\| `[^|]*\| (\d+) \|", printed, flags=re.MULTILINE)]
    assert lines == [pytest.approx(num_lines(room), rel=1 / 3) for room in rooms()]


def test_no_file_is_too_long_to_read() -> None:
    """At most 320 lines, kernels aside."""
    assert sorted(long_files(320)) == []


def test_no_function_is_too_long_to_read() -> None:
    """At most 50 lines with its docstring, kernels aside."""
    assert sorted(long_functions(50)) == []
