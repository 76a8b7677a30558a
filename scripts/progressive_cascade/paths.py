# SPDX-License-Identifier: Apache-2.0
"""Where the bundle (configs, weights, docs) lies: in a checkout, in an installed wheel, or around an exported copy."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def bundle_root() -> Path:
    """Folder that holds ``configs/`` and ``models/``.

    Looked for in this order: inside the package (an installed wheel), directly above (an exported bundle carries the
    package at its root, and may lie in a checkout), and two levels up (a checkout: ``scripts/`` beside ``bundle/``).

    Returns:
        The bundle's folder.

    Raises:
        FileNotFoundError: if none of the three places holds ``configs/metadata.json``.
    """
    candidates = (_PACKAGE / "bundle", _PACKAGE.parent, _PACKAGE.parents[1] / "bundle")
    for candidate in candidates:
        if (candidate / "configs" / "metadata.json").is_file():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"the bundle's configs/metadata.json must lie in one of {looked}, found in none")
