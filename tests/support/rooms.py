# SPDX-License-Identifier: Apache-2.0
"""The rooms of the package, read off its files: what each holds, how long it is, which rooms it imports.

``python -m tests.support.rooms`` writes the table of CONTRIBUTING.md anew.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "scripts" / "progressive_cascade"
ORDER = (
    *("doors", "errors", "io", "paths", "precision", "attenuation"),
    *("geometry", "projector", "consistency", "physics", "phantom", "ct", "radiograph"),
    *("networks", "losses", "components", "inference", "training"),
    *("report", "evaluation", "export", "service", "cli"),
)
"""Lower floors first. A room imports rooms that stand before it, and no other."""
GROUND = frozenset({"doors", "errors", "paths", "io", "precision", "attenuation"})
"""Modules that everything may stand on; what they import of each other is theirs."""
BEGIN, END = "<!-- rooms -->", "<!-- end of rooms -->"


@dataclass(frozen=True)
class Import:
    """One name that a module takes from another module of the package."""

    file: str
    line: int
    source: str
    module: str
    name: str

    @property
    def target(self) -> str:
        """The room it comes from; the package itself is ``""``."""
        parts = self.module.split(".")
        return parts[1] if len(parts) > 1 else (self.name if self.name in ORDER else "")

    @property
    def is_private(self) -> bool:
        """Whether a name or a module on the way begins with an underscore."""
        return any(part.startswith("_") and not part.startswith("__") for part in (*self.module.split("."), self.name))

    def __str__(self) -> str:
        """As an editor finds it."""
        return f"{self.file}:{self.line} imports {self.module}.{self.name}"


def rooms() -> list[str]:
    """Rooms that exist, in their order; what :data:`ORDER` does not know comes first."""
    names = {room_of(path) for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    return sorted(names - {"__init__"}, key=lambda name: ORDER.index(name) if name in ORDER else -1)


def room_of(path: Path) -> str:
    """The room of a file or folder of the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files(room: str) -> list[Path]:
    """Python files of a room."""
    path = PACKAGE / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@functools.cache
def imports(room: str) -> tuple[Import, ...]:
    """Every import of a room from elsewhere in the package, inside functions and for type checkers, too."""
    every = (
        Import(str(path.relative_to(ROOT)), node.lineno, room, module, name)  # type: ignore[attr-defined]
        for path in files(room)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for module, name in _names(node)
    )
    return tuple(
        found for found in every if found.module.split(".")[0] == PACKAGE.name and found.target not in (room, "")
    )


def _names(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.ImportFrom):
        yield from ((node.module or "." * node.level, alias.name) for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)


def num_lines(room: str) -> int:
    """Lines of a room's files."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files(room))


def long_files(limit: int) -> set[str]:
    """Python files of more lines than that, but for the kernels of a processor."""
    found = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    return {name for name, lines in found.items() if lines > limit and not is_kernel(name)}


def long_functions(limit: int) -> set[str]:
    """Functions of more lines than that, docstring included, as ``file::name``; kernels are left out."""
    found = set()
    for path in sources():
        name = str(path.relative_to(ROOT))
        for node in [] if is_kernel(name) else ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            if is_function and (node.end_lineno or node.lineno) - node.lineno + 1 > limit:
                found.add(f"{name}::{node.name}")
    return found


def sources() -> list[Path]:
    """Every Python file of the package, its tests, benchmarks and tools."""
    folders = (PACKAGE, *(ROOT / name for name in ("tests", "benchmarks", "tools")))
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def is_kernel(name: str) -> bool:
    """Whether a file holds kernels, which a processor wants in one piece."""
    return name.startswith("scripts/progressive_cascade/projector/") and name.endswith("_kernels.py")


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = PACKAGE / room
    first = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(first.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").removesuffix(".")


def table() -> str:
    """The rooms as Markdown: lower floors first, and for each what it imports."""
    rows = ["| room | lines | what it holds | imports |", "|---|---|---|---|"]
    for room in rooms():
        used = {found.target for found in imports(room)}
        below = " ".join(name for name in ORDER if name in used and (room in GROUND or name not in GROUND))
        name = f"`{room}/`" if (PACKAGE / room).is_dir() else f"`{room}.py`"
        rows.append(f"| {name} | {num_lines(room)} | {purpose(room)} | {below or '–'} |")
    return "\n".join(rows)


def replace_table(text: str) -> str:
    """A document with the table between its marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    document = ROOT / "CONTRIBUTING.md"
    document.write_text(replace_table(document.read_text(encoding="utf-8")), encoding="utf-8")
