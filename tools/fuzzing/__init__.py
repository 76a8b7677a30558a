# SPDX-License-Identifier: Apache-2.0
"""Damaged inputs for every command: each must end in a valid result or in one line, whatever the damage."""
