# SPDX-License-Identifier: Apache-2.0
"""Attributes of one DICOM file by keyword, with errors that name the file, the keyword, its number and its value."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from progressive_cascade.errors import UserError
from progressive_cascade.io.dicom_layout import read_layout


def tag_name(keyword: str) -> str:
    """Keyword and number of an attribute.

    Example:
        >>> tag_name("DistanceSourceToDetector")
        'DistanceSourceToDetector (0018,1110)'
    """
    _pydicom()
    from pydicom.datadict import tag_for_keyword

    number = tag_for_keyword(keyword)
    if number is None:
        raise KeyError(f"{keyword} must be a keyword of the DICOM dictionary")
    return f"{keyword} ({number >> 16:04X},{number & 0xFFFF:04X})"


class DicomHeader:
    """The header of a DICOM file or dataset.

    Args:
        source: path of a file, or a ``pydicom`` dataset.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if it is no DICOM file.
        ImportError: if pydicom is not installed.
    """

    def __init__(self, source: Any) -> None:
        pydicom = _pydicom()
        if isinstance(source, pydicom.Dataset):
            self._dataset = source
            path = getattr(source, "filename", None)
            self.name = str(path) if isinstance(path, (str, os.PathLike)) else "DICOM dataset"
            return
        path = Path(source)
        self.name = str(path)
        if not path.is_file():
            raise FileNotFoundError(f"radiograph must be an existing DICOM file, got {path}")
        read_layout(path, self.name)
        try:
            self._dataset = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception as error:  # pydicom raises whatever a damaged header leads it to
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise UserError(f"{path} must be a DICOM file, got: {reason}") from error

    def text(self, keyword: str) -> str:
        """The value as upper-case text; empty where the attribute is absent or empty."""
        return "\\".join(self.texts(keyword))

    def texts(self, keyword: str) -> tuple[str, ...]:
        """The values as upper-case texts; none where the attribute is absent or empty."""
        return tuple(text for value in self._values(keyword) if (text := str(value).strip().upper()))

    def number(self, keyword: str) -> float | None:
        """The value as a number, or None where the attribute is absent or empty."""
        numbers = self.numbers(keyword, 1)
        return None if numbers is None else numbers[0]

    def numbers(self, keyword: str, *counts: int) -> tuple[float, ...] | None:
        """The values as numbers, or None where the attribute is absent or empty.

        Args:
            keyword: the attribute's.
            counts: how many values there may be.

        Raises:
            UserError: if there are others, or they are no finite numbers.
        """
        values = self._values(keyword)
        if not values:
            return None
        try:
            numbers = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            numbers = (math.nan,)
        if len(numbers) not in counts or not all(math.isfinite(number) for number in numbers):
            raise self.error(keyword, f"hold {' or '.join(map(str, counts))} finite number(s)")
        return numbers

    def positive(self, keyword: str, *counts: int) -> tuple[float, ...] | None:
        """As :meth:`numbers`, all of which must exceed zero."""
        numbers = self.numbers(keyword, *counts)
        if numbers is not None and min(numbers) <= 0:
            raise self.error(keyword, "be positive")
        return numbers

    def item(self, keyword: str) -> Any:
        """The first item of a sequence, a dataset; None where there is none."""
        values = self._values(keyword)
        return values[0] if values else None

    def error(self, keyword: str, expected: str, way_out: str = "") -> UserError:
        """``<file>: <keyword> (gggg,eeee) must <expected>, got <value>; <way out>``, to be raised."""
        try:
            shown = "\\".join(_shown(value) for value in self._values(keyword)) or "none"
        except UserError:
            shown = "an unreadable value"
        return UserError(
            f"{self.name}: {tag_name(keyword)} must {expected}, got {shown}" + (f"; {way_out}" if way_out else "")
        )

    def _values(self, keyword: str) -> tuple[Any, ...]:
        from pydicom.multival import MultiValue
        from pydicom.sequence import Sequence

        try:
            value = self._dataset.get(keyword)
        except Exception as error:  # pydicom converts values when they are read, and raises whatever that raises
            raise UserError(f"{self.name}: {tag_name(keyword)} must be readable, got: {error}") from error
        if value is None or (isinstance(value, str) and not value.strip()):
            return ()
        return tuple(value) if isinstance(value, (MultiValue, Sequence, list, tuple)) else (value,)


def _shown(value: Any) -> str:
    """A value for an error message; a coded item by its code and meaning."""
    code = getattr(value, "CodeValue", None)
    return str(value) if code is None else f"{code} {getattr(value, 'CodeMeaning', '')}".strip()


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ImportError("reading the geometry of DICOM radiographs needs pydicom: pip install pydicom") from error
    return pydicom
