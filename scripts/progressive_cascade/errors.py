# SPDX-License-Identifier: Apache-2.0
"""The error that tells a user what to change."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake, told in one line that names the file or argument and what was expected of it.

    The command line prints the message and exits with code 2; from Python it is an ordinary `ValueError`.
    """
