# SPDX-License-Identifier: Apache-2.0
"""What a run is: settings, data and code, as hashes that a checkpoint carries and a resumed run is compared with."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import ignite.distributed as idist

import progressive_cascade
from progressive_cascade.training.settings import calling_parser

# Settings that change neither what is learnt nor from what: places, processes, what is told and kept.
_INCIDENTAL = frozenset(
    {
        "bundle_root",
        "dataset_dir",
        "ckpt_dir",
        "log_dir",
        "cache_dir",
        "predecessor",
        "grow_from",
        "resume",
        "force_resume",
        "device",
    }
    | {"checkpoint_minutes", "keep_checkpoints", "num_workers", "skip_bad", "batch_size", "imports", "network"}
    | {"initialize", "run", "training", "finalize", "train::sampler", "validate::sampler", "tracking"}
    | {"patience", "tracker"}
    | {"train::dataloader", "validate::dataloader", "train::handlers", "validate::handlers"}
)
_INCIDENTAL_HANDLERS = (
    *("checkpoint", "log", "tensorboard", "progress", "best", "summary", "tracking", "pictures"),
    *("patience", "history", "speed"),
)
# Rooms above this one: what they do happens before or after a training.
_OTHER_ROOMS = ("report", "evaluation", "export", "service", "cli", "radiograph")
_PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy")
# Enough of a file to know it by: a gzip ends in the checksum and length of all it holds.
_TAIL_BYTES = 65536
_SHOWN = 8


class RunIdentity:
    """Settings, data, code and versions of a run.

    Args:
        datasets: items by section: phantoms by seed, CTs by file.
        predecessor: the earlier stage's checkpoint, or None.
        batch_size: samples per step of one process.
    """

    def __init__(
        self, datasets: Mapping[str, Sequence[Mapping[str, Any]]], predecessor: str | None = None, batch_size: int = 1
    ) -> None:
        parser = calling_parser()
        settings = {} if parser is None else _leaves(parser.get())
        settings["batch_size x processes"] = str(batch_size * idist.get_world_size())
        self.parts: dict[str, dict[str, str]] = {
            "settings": settings,
            "data": _data(datasets, predecessor),
            "code": code_hashes(),
            "versions": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in _PACKAGES},
            },
        }

    def state_dict(self) -> dict[str, dict[str, str]]:
        """What a checkpoint keeps."""
        return self.parts

    def hashes(self) -> dict[str, str]:
        """One short hash for each part: to be printed, and to compare runs by eye."""
        return {
            name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:12]
            for name, part in self.parts.items()
        }

    def differences(self, saved: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
        """What has changed since a checkpoint was written, by part, one line each; empty where nothing has."""
        found = {}
        for part, now in self.parts.items():
            before = saved.get(part, {})
            changed = [
                _difference(name, before.get(name), now.get(name), show=part in ("settings", "versions"))
                for name in sorted({*before, *now})
                if before.get(name) != now.get(name)
            ]
            more = [f"and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else []
            found[part] = changed[:_SHOWN] + more
        return {part: lines for part, lines in found.items() if lines}


def _difference(name: str, before: str | None, now: str | None, *, show: bool) -> str:
    if before is None or now is None:
        return f"{name} is {'new' if before is None else 'gone'}"
    return f"{name}: {before} -> {now}" if show else f"{name} has changed"


def _leaves(node: Any, path: str = "") -> dict[str, str]:
    """A config's values by id, without the incidental ones, in one spelling of `#`."""
    last = path.rpartition("::")[2]
    if path in _INCIDENTAL or last in ("_desc_", "_meta_"):
        return {}
    if "named_handlers::" in path and last in _INCIDENTAL_HANDLERS:
        return {}
    if isinstance(node, Mapping) and node:
        found: dict[str, str] = {}
        for key, value in node.items():
            found |= _leaves(value, f"{path}::{key}" if path else str(key))
        return found
    return {path: json.dumps(node, default=str, ensure_ascii=False).replace("#", "::")}


def _data(datasets: Mapping[str, Sequence[Mapping[str, Any]]], predecessor: str | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for section, items in datasets.items():
        order = hashlib.sha256()
        for item in items:
            order.update(f"{item.get('case', '')} {item.get('seed', '')} {item.get('mirrored', '')}\n".encode())
            for key in ("label", "valid"):
                name = f"{section}: {key} {Path(item[key]).name}" if key in item else ""
                if name and name not in found:
                    found[name] = _file_digest(Path(item[key]))
        found[f"{section}: list of {len(items)} cases"] = order.hexdigest()[:16]
    if predecessor is not None and Path(predecessor).is_file():
        found["predecessor"] = _file_digest(Path(predecessor), whole=True)
    return found


def _file_digest(path: Path, *, whole: bool = False) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = path.stat().st_size
        if not whole:
            file.seek(max(0, size - _TAIL_BYTES))
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{size} {digest.hexdigest()[:16]}"


def code_hashes() -> dict[str, str]:
    """Checksum of each source file of the rooms that training uses, by its place in the package."""
    root = Path(progressive_cascade.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        below = path.relative_to(root)
        if below.parts[0] not in _OTHER_ROOMS:
            found[below.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found
