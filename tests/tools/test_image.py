# SPDX-License-Identifier: Apache-2.0
"""Laws of the image: not root, nothing written, a lock that is complete, hashed and what the constraints say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tools.dockerfile import copied, defaults, read_instructions

from progressive_cascade.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
INSTRUCTIONS = read_instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
# What the lock leaves to TORCH_INDEX, and what belongs to torch's builds.
TORCH = {"torch", "triton"}


def _last(name: str) -> str:
    return [one.rest for one in INSTRUCTIONS if one.name == name][-1]


def _constraints() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, equals, version = line.partition(";")[0].strip().partition("==")
        if equals:
            found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def _locked() -> dict[str, str]:
    pairs = re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pairs}


def test_the_image_runs_without_privileges() -> None:
    """As a user of its own, with a health check, writing nowhere but to /data and /tmp, with a command that parses."""
    assert int(_last("USER")) > 0 and "/health" in _last("HEALTHCHECK")
    assert _last("VOLUME") == "/data" and "NUMBA_CACHE_DIR=/tmp/" in _last("ENV") and "HOME=/tmp" in _last("ENV")
    assert json.loads(_last("ENTRYPOINT")) == ["progressive-cascade"]
    options = build_parser().parse_args(json.loads(_last("CMD")))
    assert options.host == "0.0.0.0" and str(options.data).startswith("/data/")
    known = {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "LABEL"}
    assert {one.name for one in INSTRUCTIONS} <= known | {"ENTRYPOINT", "CMD"}


def test_the_image_is_built_from_what_is_there() -> None:
    """Every file that is copied exists and is let through, and torch is the version that was tested."""
    let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert [name for name in copied(INSTRUCTIONS) if not (ROOT / name).exists()] == []
    assert [name for name in copied(INSTRUCTIONS) if f"!{name.removeprefix('./')}" not in let_through] == []
    assert {defaults(INSTRUCTIONS)["TORCH"]} == _constraints()["torch"]


def test_the_lock_is_hashed_and_as_constrained() -> None:
    """Every package has a hash, and the version of constraints.txt where that names it."""
    entries = re.split(r"\n(?=[\w.-]+==)", LOCK[LOCK.index("==") - 20 :])
    assert len(_locked()) > 50 and all("--hash=sha256:" in one for one in entries if "==" in one.split("\n")[0])
    constraints = _constraints()
    assert {
        name: version for name, version in _locked().items() if version not in constraints.get(name, {version})
    } == {}


def _needs(name: str, extras: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    for text in metadata.requires(name) or []:
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(one.name), tuple(one.extras)


def test_the_lock_is_complete() -> None:
    """What the package and its extras `service` and `cluster` need, and what that needs, stands in it."""
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [
        setup["options"]["install_requires"],
        *(setup["options.extras_require"][name] for name in ("service", "cluster")),
    ]
    asked = [Requirement(line) for text in texts for line in text.splitlines() if line.strip()]
    left: list[tuple[str, tuple[str, ...]]] = [(canonicalize_name(one.name), tuple(one.extras)) for one in asked]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while left:
        one = left.pop()
        if one in seen or one[0] in TORCH:
            continue
        seen.add(one)
        try:
            left.extend(_needs(*one))
        except metadata.PackageNotFoundError:
            pytest.skip(f"{one[0]} is not installed")
    assert {name for name, _ in seen} - set(_locked()) == set()
