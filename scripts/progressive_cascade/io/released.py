# SPDX-License-Identifier: Apache-2.0
"""Which weights this package was released with: their SHA-256 stand in the package, in `sha256sum`'s format.

A checksum inside a file finds damage; only one outside of it finds a file that somebody changed. After the training of
shipped weights, ``python -m progressive_cascade.io.released bundle/models`` writes the list anew. A training that
writes into the bundle's `models`, as MONAI's own command does, keeps the hashes of what it wrote beside it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from progressive_cascade.errors import UserError
from progressive_cascade.io.files import atomic_path

MANIFEST = Path(__file__).with_name("weights.sha256")
"""One line for each file of the bundle's `models`: hash, two spaces, name."""
RELEASED = ("*.pt", "trust.json")
"""Files of the bundle's `models` that are released: weights, and the calibration of the expected error."""
OWN = "own.sha256"
"""Beside weights that were trained where shipped ones lie: their hashes, in the same format."""
RETIRED = frozenset(
    {
        "aa9a6a48be38f0ff6943ac6998c4fcbf3f586264009b1e7359ff00cc27e5fdcb",
        "e3bbead2f2bfe87c0915c5affdc42d8a084323c14b8775aae879faf2d95baefe",
    }
)
"""Weights of stages 2 and 3 that were shipped before these normalised their features: the names and shapes of their
entries fit today's network, which would make something else of them."""
_LINE = re.compile(r"([0-9a-f]{64})  ([\w.-]+)")


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def released_hashes() -> dict[str, str]:
    """SHA-256 of every released file, by name.

    Raises:
        UserError: if the list is missing or damaged.
    """
    return _read_list(MANIFEST, "install the package again")


def own_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of what was trained in a folder, by name; none where nothing was.

    Raises:
        UserError: if the list is damaged.
    """
    path = folder / OWN
    return _read_list(path, "train again, or remove it") if path.exists() else {}


def record_own(path: Path) -> None:
    """Keeps the hash of weights that were trained, in their folder's list."""
    hashes = {**own_hashes(path.parent), path.name: file_hash(path)}
    with atomic_path(path.parent / OWN) as temporary:
        temporary.write_text(manifest_text(hashes), encoding="ascii")


def _read_list(path: Path, remedy: str) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list of weights {path} must be readable: {remedy}") from error
    found = [_LINE.fullmatch(line) for line in lines]
    if not found or None in found:
        raise UserError(f"list of weights {path} must hold hashes and names: {remedy}")
    return {match[2]: match[1] for match in found if match is not None}


def manifest_text(hashes: Mapping[str, str]) -> str:
    """The list as it is stored."""
    return "".join(f"{value}  {name}\n" for name, value in sorted(hashes.items()))


def check_released(path: str | Path, *, allow_unverified: bool = False, own: Collection[str] = ()) -> None:
    """Refuses weights that are not among the released ones, wherever they lie.

    Args:
        path: an existing file.
        allow_unverified: take one's own.
        own: hashes that are taken beside the released ones.

    Raises:
        UserError: naming the file and both hashes.
    """
    path = Path(path)
    if allow_unverified or not path.is_file():  # who reads it says that it is missing
        return
    released, found = released_hashes(), file_hash(path)
    if found in released.values() or found in own:
        return
    expected = released.get(path.name)
    wanted = f"SHA-256 {expected}" if expected else f"the SHA-256 of {', '.join(sorted(released))}"
    raise UserError(
        f"weights {path} must be as released, {wanted}, got {found}: copy the file again, or --allow-unverified takes "
        "weights of one's own"
    )


def check_not_retired(path: str | Path) -> None:
    """Refuses weights that were shipped once and that today's network would misread.

    Raises:
        UserError: naming the file.
    """
    if Path(path).is_file() and file_hash(path) in RETIRED:
        raise UserError(
            f"weights {path} must be of today's architecture, got ones that were shipped before stages 2 and 3 "
            "normalised their features: take today's, or train again"
        )


def write_manifest(models: Path) -> None:
    """Writes the list of the files that lie in a bundle's `models` now.

    Raises:
        UserError: where there are none.
    """
    hashes = {path.name: file_hash(path) for pattern in RELEASED for path in sorted(models.glob(pattern))}
    if not hashes:
        raise UserError(f"models must be a folder of weights, got none in {models}")
    with atomic_path(MANIFEST) as temporary:
        temporary.write_text(manifest_text(hashes), encoding="ascii")


if __name__ == "__main__":
    write_manifest(Path(sys.argv[1]))
    print(MANIFEST.read_text(encoding="ascii"), end="")
