# SPDX-License-Identifier: Apache-2.0
"""The errors that are told in one line: what a user has to change, and what broke under him."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A user's mistake, told in one line that names the file or argument and what was expected of it.

    The command line prints the message and exits with code 2; from Python it is an ordinary `ValueError`.
    """


class GeometryError(UserError):
    """Radiographs of a geometry that weights were not trained for; other weights may take them."""


class RunError(RuntimeError):
    """What broke under a run that was asked for rightly: a full disk, a lost folder, a killed process.

    One line that says what broke and how to go on; the command line prints it and exits with code 1.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the words closest to a misspelt one, or the list where there are few."""
    known = sorted(known)
    close = get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(known)}" if 0 < len(known) <= 20 else ""
