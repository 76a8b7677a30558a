# SPDX-License-Identifier: Apache-2.0
"""DICOM nodes around a service: one that sends radiographs, one that takes CT series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian


def send_to(paths: Sequence[Path], port: int, title: str = "CASCADE") -> list[int]:
    """Statuses of C-ECHO and of C-STORE of every file; none where the node takes no association."""
    from pynetdicom import AE

    entity = AE(ae_title="MODALITY")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.1.1", ExplicitVRLittleEndian)
    entity.add_requested_context("1.2.840.10008.1.1")
    association = entity.associate("127.0.0.1", port, ae_title=title)
    if not association.is_established:
        return []
    codes = [association.send_c_echo().Status]
    codes += [association.send_c_store(dcmread(path)).Status for path in paths]
    association.release()
    return codes


def pacs_at(port: int, received: list[Any]) -> Any:
    """A node that keeps the CT slices it is sent."""
    from pynetdicom import AE, evt

    entity = AE(ae_title="PACS")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2")

    def store(event: Any) -> int:
        received.append(dcmread(event.dataset_path) if hasattr(event, "dataset_path") else event.dataset)
        return 0

    return entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
