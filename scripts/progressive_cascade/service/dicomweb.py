# SPDX-License-Identifier: Apache-2.0
"""An archive that is polled by DICOMweb: radiographs by QIDO-RS and WADO-RS, the reconstructed series by STOW-RS."""

from __future__ import annotations

import datetime
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from progressive_cascade.errors import RunError
from progressive_cascade.service.dicom_node import keep_object, short_hash

LOG = logging.getLogger("progressive_cascade.service")
MODALITIES = ("DX", "CR")
_STUDY, _SERIES, _INSTANCE, _FAILED = "0020000D", "0020000E", "00080018", "00081198"
_BATCH = 32
_PAUSE, _TIMEOUT = 10.0, 60.0
_FORGOTTEN = 86400.0
"""What an archive has not listed for so long [s] is not remembered."""


class Archive:
    """An archive that speaks DICOMweb, such as Orthanc.

    Args:
        url: of its service, such as ``http://orthanc:8042/dicom-web``.
        login: user and password; None for none.
        days: studies of so many days before today are looked at; None: all.
    """

    def __init__(self, url: str, *, login: tuple[str, str] | None = None, days: int | None = 1) -> None:
        import requests
        from dicomweb_client import DICOMwebClient

        session = requests.Session()
        session.auth = login
        session.request = _in_time(session.request)
        self._client, self._days = DICOMwebClient(url, session=session), days
        self._next = 0.0
        logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)  # what it logs may hold identity

    def look(self, folder: Path, seen: Path, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Takes radiographs that have not been taken before; where the archive does not answer, tries again later.

        Args:
            folder: a watch's input.
            seen: folder that remembers what was taken, until the archive does not list it any more.
            is_wanted: asked before each object; where it is not, the rest is taken another time.
        """
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PAUSE
        seen.mkdir(parents=True, exist_ok=True)
        begun = time.time()
        try:
            for study, series, instance in self._radiographs():
                if not is_wanted():
                    return
                mark = seen / short_hash(instance)
                if mark.exists():
                    mark.touch()
                    continue
                if self._take(study, series, instance, folder):
                    mark.touch()
            for mark in seen.iterdir():
                if mark.stat().st_mtime < begun - _FORGOTTEN:
                    mark.unlink()
        except Exception as error:  # requests, the client and pydicom raise what they like
            LOG.warning("the archive was not read, again in %g s: %s", _PAUSE, type(error).__name__)

    def _take(self, study: str, series: str, instance: str, folder: Path) -> bool:
        """Whether an object was taken; one that is damaged, or that the archive does not give, holds no other up."""
        from requests import HTTPError

        try:
            dataset = self._client.retrieve_instance(study, series, instance)
            with tempfile.TemporaryDirectory() as name:
                path = Path(name) / "object.dcm"
                dataset.save_as(path, enforce_file_format=True)
                keep_object(path, folder)
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, HTTPError):
                raise  # no archive, or no room
            LOG.warning("object %s was not taken: %s", short_hash(instance), type(error).__name__)
            return False
        return True

    def _radiographs(self) -> Iterator[tuple[str, str, str]]:
        """Study, series and instance of every radiograph."""
        for modality in MODALITIES:
            filters = {"ModalitiesInStudy": modality}
            if self._days is not None:
                first = datetime.date.today() - datetime.timedelta(days=self._days)
                filters["StudyDate"] = f"{first:%Y%m%d}-"
            for study in self._client.search_for_studies(search_filters=filters):
                study_uid = _value(study, _STUDY)
                for series in self._client.search_for_series(study_uid, search_filters={"Modality": modality}):
                    series_uid = _value(series, _SERIES)
                    for instance in self._client.search_for_instances(study_uid, series_uid):
                        yield study_uid, series_uid, _value(instance, _INSTANCE)

    def send(self, files: Sequence[Path]) -> None:
        """Sends by STOW-RS."""
        from pydicom import dcmread

        for first in range(0, len(files), _BATCH):
            try:
                answer = self._client.store_instances([dcmread(path) for path in files[first : first + _BATCH]])
            except Exception as error:
                raise RunError(f"the archive must take the series, got {type(error).__name__}") from error
            refused = len(answer[_FAILED].value) if _FAILED in answer else 0  # Orthanc lists none in an empty sequence
            if refused:
                raise RunError(f"the archive must take every slice, it refused {refused}")


def _value(record: dict[str, Any], tag: str) -> str:
    return str(record[tag]["Value"][0])


def _in_time(request: Callable[..., Any]) -> Callable[..., Any]:
    """The same, giving up on an archive that does not answer."""

    def with_timeout(*arguments: Any, **keywords: Any) -> Any:
        return request(*arguments, **{"timeout": _TIMEOUT, **keywords})

    return with_timeout
