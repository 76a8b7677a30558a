# SPDX-License-Identifier: Apache-2.0
"""Which cases an evaluation is about, and CTs that were not prepared for one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from progressive_cascade.ct.datalist import DATALIST, SECTIONS, read_datalist
from progressive_cascade.errors import UserError
from progressive_cascade.training.cases import Case, load_case
from progressive_cascade.training.data import training_items


def evaluation_items(dataset_dir: Any = None, section: str = "test", *, num_phantoms: int = 0) -> list[dict[str, Any]]:
    """The cases to evaluate: CTs of a dataset's section, then phantoms.

    Args:
        dataset_dir: prepared CTs, or None (or an empty string) for phantoms alone.
        section: `training`, `validation` or `test`.
        num_phantoms: phantoms to add.

    Returns:
        Items for MONAI datasets, each with its `patient`.

    Raises:
        FileNotFoundError: where the dataset's list or a file it names is missing.
        UserError: where there is no case, a patient is in two sections, or the dataset is of a single patient.

    Example:
        >>> evaluation_items(num_phantoms=1)
        [{'seed': 2000000, 'patient': 'phantom_2000000'}]
    """
    items = training_items(dataset_dir, section, num_phantoms=num_phantoms)
    if dataset_dir:
        _check_patients(Path(dataset_dir) / DATALIST)
    return [{**item, "patient": f"phantom_{item['seed']}"} if "seed" in item else item for item in items]


def raw_items(source: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """CTs as they come: a file, a folder of files, or a folder of DICOM series, whose patients go by a hash.

    Returns:
        Items for :class:`RawCases`, each with its `case`, `patient` and `source`.

    Raises:
        FileNotFoundError: where there is no such file or folder.
        UserError: where it holds no CT.
    """
    from progressive_cascade.ct.pseudonyms import hide_patients
    from progressive_cascade.ct.sources import find_sources
    from progressive_cascade.ct.split import Split

    sources, _ = hide_patients(find_sources(source), Split(), Path(source))
    return [{"case": found.case, "patient": found.patient, "source": found} for found in sources]


class RawCases:
    """Loads cases, and prepares in memory those that were not: table removed, on the cube, each CT once.

    Args:
        assume_spacing: see :func:`progressive_cascade.ct.files.read_scan`.
    """

    def __init__(self, assume_spacing: Sequence[float] | None = None) -> None:
        self.assume_spacing = assume_spacing
        self._names: dict[str, str] = {}

    def load(self, item: Mapping[str, Any]) -> tuple[Case, tuple[str, ...]]:
        """One case, and what was mended or assumed on reading.

        Args:
            item: of :func:`raw_items` or :func:`evaluation_items`.

        Raises:
            UserError: where it is no usable CT, or a copy of one that was loaded before.
        """
        if "source" not in item:
            return load_case(item), ()
        from progressive_cascade.ct.placement import prepare_case

        name, source = item["case"], item["source"]
        try:
            made = prepare_case(source.series or source.location, assume_spacing=self.assume_spacing)
        except (UserError, OSError) as error:
            raise UserError(source.said(str(error))) from error
        first = self._names.setdefault(made.fingerprint, name)
        if first != name:
            raise UserError(f"the same voxels as {first}, which stands for both")
        return Case(name, item["patient"], made.hu, made.affine, made.valid), tuple(map(source.said, made.notes))


def _check_patients(path: Path) -> None:
    """Refuses a dataset in which nobody can be held out, or somebody is not."""
    patients = {name: {item["patient"] for item in items} for name, items in read_datalist(path.parent).items()}
    for first, second in combinations(SECTIONS, 2):
        shared = sorted(patients[first] & patients[second])
        if shared:
            raise UserError(f"{path}: {first} and {second} must not share patients, got {shared}")
    everyone = set().union(*patients.values())
    if len(everyone) < 2:
        raise UserError(f"{path} must name at least two patients, so that one can be held out, got {sorted(everyone)}")
