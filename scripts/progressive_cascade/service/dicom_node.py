# SPDX-License-Identifier: Apache-2.0
"""A DICOM node: radiographs come by C-STORE, the reconstructed series goes to another node by C-STORE, C-ECHO works."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from progressive_cascade.errors import RunError, UserError
from progressive_cascade.io import atomic_path, sync
from progressive_cascade.io.dicom_layout import read_layout

LOG = logging.getLogger("progressive_cascade.service")
_CT = "1.2.840.10008.5.1.4.1.1.2"
_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.2.2"  # Legacy Converted Enhanced CT
_PARAMETRIC = "1.2.840.10008.5.1.4.1.1.30"
_RADIOGRAPHS = (
    "1.2.840.10008.5.1.4.1.1.1",  # CR
    "1.2.840.10008.5.1.4.1.1.1.1",  # DX for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # DX for processing
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture
)
# Statuses of PS3.4 B.2.3.
_SUCCESS, _OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
_MIN_FREE = 1 << 30
_WAIT_SECONDS = 30


class Destination(Protocol):
    """Where a series goes."""

    def send(self, files: Sequence[Path]) -> None:
        """Sends every file.

        Raises:
            RunError: where one was not taken; all are sent again then.
        """
        ...


@dataclass(frozen=True)
class Node:
    """Another DICOM node, ``AET@HOST:PORT``."""

    title: str
    host: str
    port: int
    own_title: str = "CASCADE"

    @classmethod
    def parse(cls, text: str, own_title: str) -> Node:
        """Reads ``AET@HOST:PORT``.

        Raises:
            UserError: if it is none.
        """
        title, _, place = text.partition("@")
        host, _, port = place.rpartition(":")
        if not (0 < len(title) <= 16 and host and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise UserError(f"--send must be AET@HOST:PORT, got {text!r}")
        return cls(title, host.strip("[]"), int(port), own_title)

    def send(self, files: Sequence[Path]) -> None:
        """Sends by C-STORE, in one association."""
        from pydicom import dcmread
        from pynetdicom import AE

        entity = AE(ae_title=self.own_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _WAIT_SECONDS
        for kind in (_CT, _MULTIFRAME, _PARAMETRIC):
            entity.add_requested_context(kind, ["1.2.840.10008.1.2.1"])
        association = entity.associate(self.host, self.port, ae_title=self.title)
        if not association.is_established:
            raise RunError(f"{self.title}@{self.host}:{self.port} must take an association, it did not")
        try:
            for path in files:
                status = association.send_c_store(dcmread(path))
                if "Status" not in status or status.Status not in (_SUCCESS, 0xB000, 0xB006, 0xB007):
                    code = f"0x{status.Status:04x}" if "Status" in status else "no answer"
                    raise RunError(f"{self.title} must take every slice, got {code}")
        except RunError:
            raise
        except (ValueError, RuntimeError) as error:  # no context for CT; the other side left between two slices
            raise RunError(f"{self.title} must take CT images: {error}") from error
        finally:
            association.release()


def keep_object(path: Path, folder: Path) -> None:
    """Puts a received file where a watch finds it, whole, under a name that names nobody.

    Args:
        path: of the object.
        folder: the watch's input.

    Raises:
        UserError: if it has no study or instance.
    """
    from pydicom import dcmread

    tags = ["StudyInstanceUID", "SOPInstanceUID"]
    read_layout(path, "an object")
    header = dcmread(path, specific_tags=tags, stop_before_pixels=True)
    study, instance = (str(header.get(tag, "")) for tag in tags)
    if not study or not instance:
        raise UserError("an object must have StudyInstanceUID and SOPInstanceUID")
    target = folder / short_hash(study) / f"{short_hash(instance)}.dcm"
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)
    sync(folder)
    LOG.info("object taken: %s/%s", target.parent.name, target.name)


def short_hash(uid: str) -> str:
    """What stands for a UID in names of files."""
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


def start_listener(folder: Path, *, host: str, port: int, title: str, callers: Sequence[str] = ()) -> Any:
    """Starts a storage SCP, whose objects go into a watched folder.

    Args:
        folder: the watch's input.
        host: address to listen at.
        port: to listen at.
        title: of this node.
        callers: titles of nodes that may send; empty: any.

    Returns:
        What is shut down by ``shutdown()``.

    Raises:
        RunError: where the port is taken.
    """
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, _config, evt

    # Objects go to the disk as they come, however large, not into memory.
    _config.STORE_RECV_CHUNKED_DATASET = True
    for name in ("pynetdicom", "pydicom"):  # what they log may hold identity
        logging.getLogger(name).setLevel(logging.CRITICAL)
    entity = AE(ae_title=title)
    entity.maximum_associations = 16
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _WAIT_SECONDS
    entity.require_called_aet = True
    entity.require_calling_aet = list(callers)
    entity.add_supported_context("1.2.840.10008.1.1")
    for kind in _RADIOGRAPHS:
        entity.add_supported_context(kind, ALL_TRANSFER_SYNTAXES)

    def store(event: Any) -> int:
        if shutil.disk_usage(folder).free < _MIN_FREE:
            return _OUT_OF_RESOURCES
        try:
            keep_object(Path(event.dataset_path), folder)
        except OSError:
            return _OUT_OF_RESOURCES
        except Exception as error:  # pydicom raises whatever a damaged header leads it to
            LOG.info("an object was refused: %s", type(error).__name__)
            return _CANNOT_UNDERSTAND
        return _SUCCESS

    try:
        return entity.start_server((host, port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    except OSError as error:
        raise RunError(f"--port {port} must be free at {host}: {error.strerror}") from error
