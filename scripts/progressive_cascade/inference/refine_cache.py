# SPDX-License-Identifier: Apache-2.0
"""What refining found, kept in files: the same radiographs are refined once, however often a later stage sees them.

A file's name is the SHA-256 of everything that the result depends on: stage 1's weights, the radiographs, their
matrices and mask, what is known of them, and the settings. One folder therefore serves any number of runs, later stages
and processes, and none of them takes what was made with other weights.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progressive_cascade.errors import UserError
from progressive_cascade.inference.refine import (
    REVISION,
    Refinement,
    RefinementReport,
    RefineSettings,
    join,
    per_sample,
    refine,
)
from progressive_cascade.io import atomic_path
from progressive_cascade.networks import ProgressiveCascade

_TENSORS = ("volume", "image", "matrices", "calibrated")


def refine_cached(
    network: ProgressiveCascade,
    image: Tensor,
    matrices: Tensor,
    *,
    known: str | Sequence[str],
    settings: RefineSettings,
    mask: Tensor | None,
    folder: str | Path | None,
) -> Refinement:
    """What :func:`.refine.refine` finds, from a folder where it was found before.

    A damaged file is made anew, and where the folder cannot be written the work goes on without it, both with a
    warning.

    Args:
        network: the cascade, in eval mode.
        image: see :func:`.refine.refine`.
        matrices: see there.
        known: see there.
        settings: how to refine.
        mask: see there.
        folder: what was found lies there, a file a sample [about 3 MB]; None: nothing is kept.

    Returns:
        As :func:`.refine.refine`.
    """
    if folder is None:
        return refine(network, image, matrices, known=known, settings=settings, mask=mask)
    weights, places = _hash_weights(network), matrices.expand(len(image), -1, -1, -1)
    found = []
    for b, level in enumerate(per_sample(known, len(image))):
        sample = (image[b : b + 1], places[b : b + 1], None if mask is None else mask[b : b + 1])
        path = Path(folder) / f"{_hash(weights, level, settings, sample)}.pt"
        one = _read(path, image.device)
        if one is None:
            one = refine(network, *sample[:2], known=level, settings=settings, mask=sample[2])
            _write(one, path)
        found.append(one)
    return join(found)


def _hash_weights(network: ProgressiveCascade) -> str:
    """Of stage 1, and of the radiographs' encoder where it has one."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        if not name.startswith("stages.") or name.startswith("stages.0."):
            _add(digest, name, value)
    return digest.hexdigest()


def _hash(weights: str, known: str, settings: RefineSettings, sample: Sequence[Tensor | None]) -> str:
    digest = hashlib.sha256(f"{REVISION} {weights} {known} {sorted(asdict(settings).items())}".encode())
    for index, value in enumerate(sample):
        _add(digest, str(index), value)
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Tensor | None) -> None:
    digest.update(name.encode())
    if value is not None:
        digest.update(f"{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().double().contiguous().numpy().tobytes())


def _read(path: Path, device: torch.device) -> Refinement | None:
    if not path.is_file():
        return None
    try:
        kept = torch.load(path, map_location=device, weights_only=True)
        report = RefinementReport(**kept["report"])
        return Refinement(*(kept[name] for name in _TENSORS), reports=[report])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        warnings.warn(f"{path} is damaged ({type(error).__name__}) and made anew", stacklevel=2)
        return None


def _write(found: Refinement, path: Path) -> None:
    content = io.BytesIO()
    tensors = {name: getattr(found, name).detach().cpu() for name in _TENSORS}
    try:
        with atomic_path(path) as temporary:
            torch.save({**tensors, "report": found.reports[0].to_dict()}, content)
            temporary.write_bytes(content.getbuffer())
    except (OSError, UserError) as error:
        warnings.warn(f"cache {path.parent} cannot be written, going on without it: {error}", stacklevel=2)
