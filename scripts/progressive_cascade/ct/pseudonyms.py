# SPDX-License-Identifier: Apache-2.0
"""Names that tell patients apart and name nobody: what a dataset calls the patients of DICOM files."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from progressive_cascade.ct.sources import Source, safe_name
from progressive_cascade.ct.split import Split
from progressive_cascade.errors import UserError
from progressive_cascade.io import atomic_path, read_json

_SALT = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """What leads back from a pseudonym to a patient.

    Args:
        salt: 64 hexadecimal digits; who does not have it cannot try out PatientIDs.
        patients: PatientID by pseudonym.
    """

    salt: str
    patients: Mapping[str, str]

    def name(self, identity: str, length: int = 12) -> str:
        """The pseudonym of a PatientID or UID: the first hexadecimal digits of its HMAC-SHA-256."""
        return hmac.new(bytes.fromhex(self.salt), identity.encode(), hashlib.sha256).hexdigest()[:length]


def hide_patients(
    sources: Sequence[Source], split: Split, root: Path, key_file: Path | None = None
) -> tuple[list[Source], Split]:
    """Replaces PatientIDs, UIDs and paths in what a dataset says of its cases.

    The salt is that of the key file where there is one, else it comes from the UIDs of all series, which no dataset
    holds: the same archive gives the same names, and nobody else can find them.

    Args:
        sources: of :func:`.sources.find_sources`.
        split: may name patients by PatientID.
        root: the archive; files are called by their path below it.
        key_file: where to keep the key, mode 0600; None: it is kept nowhere.

    Returns:
        The sources with other names, and the split likewise.

    Raises:
        UserError: if the key file is there and is none, or cannot be written.
    """
    earlier = read_key(key_file) if key_file is not None and key_file.exists() else None
    uids = sorted(item.series.uid for item in sources if item.series is not None)
    key = earlier or Key(hashlib.sha256("\n".join(uids).encode()).hexdigest(), {})
    patients, hidden = dict(key.patients), []
    for item in sources:
        if item.series is None:
            below = os.path.relpath(item.location, root) if root.is_dir() else root.name
            hidden.append(replace(item, listed=below))
            continue
        identity = item.series.patient or item.series.uid
        name = f"p{key.name(identity)}"
        patients[name] = identity
        case = f"{name}_{key.name(item.series.uid, 8)}"
        hidden.append(replace(item, case=case, patient=name, listed=f"DICOM series {case}"))
    if key_file is not None:
        save_key(replace(key, patients=patients), key_file)
    return hidden, split.renamed({safe_name(identity): name for name, identity in patients.items()})


def read_key(path: Path) -> Key:
    """Reads a key.

    Raises:
        UserError: if the file holds none.
    """
    values = read_json(path, "key")
    salt = values.get("salt") if isinstance(values, dict) else None
    patients = values.get("patients") if isinstance(values, dict) else None
    if not isinstance(salt, str) or not _SALT.fullmatch(salt) or not isinstance(patients, dict):
        raise UserError(f"key {path} must hold a salt and patients, as `--key` writes them")
    return Key(salt, {str(name): str(identity) for name, identity in patients.items()})


def save_key(key: Key, path: Path) -> None:
    """Writes a key that its owner alone may read."""
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"salt": key.salt, "patients": dict(key.patients)}, stream, indent=4)
