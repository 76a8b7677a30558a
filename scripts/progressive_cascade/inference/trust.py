# SPDX-License-Identifier: Apache-2.0
"""How far a reconstruction is expected to be from the truth, and between which bounds: calibrated, not felt.

Of each error a line through a few :mod:`signs <.signs>`, standardised on the calibration's cases,

    log e = b + Σ a_k z_k,      z_k = (s_k - c_k) / d_k  or its square,

(of a PSNR, which is a log already, itself) was fitted on reconstructions whose truth is known
(:mod:`progressive_cascade.evaluation.trust`). The interval adds the quantiles of what the fit missed on patients that
it had not seen (split conformal prediction: Lei et al. 2018, doi 10.1080/01621459.2017.1307116). What looks like no
case of the calibration gets no number. What is expected of the error in the body is a sign itself: the PSNR follows
from it, being of the same errors in a cube that the body fills more or less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progressive_cascade.ct.tissues import TISSUES
from progressive_cascade.errors import UserError
from progressive_cascade.inference.signs import SIGNS
from progressive_cascade.io import read_json
from progressive_cascade.paths import bundle_root, check_shipped

TRUST_FILE = "trust.json"
"""File name of the shipped calibration in the bundle's `models`."""
UNITS = {"body_mae_hu": "HU", "psnr_3d_db": "dB", "lungs_surface_mm": "mm", "body_surface_mm": "mm"}
"""Errors that are expected, with their units: in the body, of the scanned volume, and mean distances of borders."""
FIRST = "body_mae_hu"
"""The error that is expected before all others; without it none is."""
EXPECTED = "expected_mae"
"""What is expected of it, as a sign of the others."""
CONFIDENCE = 0.9
"""Share of unseen cases whose error the interval shall hold."""
SQUARE = "²"
"""Ends the name of a term that is the square of a standardised sign."""
SIGMA_PIVOT_HU = 100.0
"""The sigma at which the exponent of a tissue's recalibration changes nothing [HU]."""


@dataclass(frozen=True)
class Term:
    """One sign in an error's line.

    Args:
        name: of the sign, with :data:`SQUARE` behind it where its square counts.
        slope: of the standardised sign.
        center: what stands for 0.
        scale: what stands for 1.
        low: least that the calibration allows.
        high: most.
        optional: whether cases without it were among the calibration's; it then counts as the center.
    """

    name: str
    slope: float
    center: float
    scale: float
    low: float
    high: float
    optional: bool = False

    @property
    def sign(self) -> str:
        """The sign's own name."""
        return self.name.removesuffix(SQUARE)

    def problem(self, value: float) -> str:
        """Why a value cannot be used; empty: it can."""
        said = _SAID[self.sign]
        if not math.isfinite(value):
            return "" if self.optional else f"{said.removeprefix(_LOG)} is not to be had"
        if self.low <= value <= self.high:
            return ""
        numbers = (
            math.exp(min(each, 700.0)) if said.startswith(_LOG) else each for each in (value, self.low, self.high)
        )
        return "{} is {:.3g}, calibrated from {:.3g} to {:.3g}".format(said.removeprefix(_LOG), *numbers)

    def share(self, value: float) -> float:
        """What the sign adds."""
        if not math.isfinite(value):
            return 0.0
        z = (value - self.center) / self.scale
        return self.slope * (z * z if self.name.endswith(SQUARE) else z)


@dataclass(frozen=True)
class Line:
    """The line of one error.

    Args:
        intercept: of the line.
        terms: what is added; those of slope 0 only guard the range.
        below: what is added for the interval's lower end, at most 0.
        above: for its upper end, at least 0.
        logarithmic: whether the line is of the error's logarithm.
    """

    intercept: float
    terms: tuple[Term, ...]
    below: float
    above: float
    logarithmic: bool = True

    def problems(self, signs: Mapping[str, float]) -> list[str]:
        """Everything that keeps these signs from being used."""
        found = (term.problem(float(signs.get(term.sign, math.nan))) for term in self.terms)
        return list(dict.fromkeys(line for line in found if line))

    def expect(self, signs: Mapping[str, float]) -> tuple[float, float, float]:
        """The expected error, and the ends of its interval."""
        middle = self.intercept + sum(term.share(float(signs.get(term.sign, math.nan))) for term in self.terms)
        ends = (middle, middle + self.below, middle + self.above)
        return tuple(math.exp(end) if self.logarithmic else end for end in ends)  # type: ignore[return-value]


@dataclass(frozen=True)
class Trust:
    """The calibration, as its file holds it.

    Args:
        checkpoints: names of the weights it belongs to, by SHA-256.
        uncertainty: SHA-256 of the network of sigma.
        refine_steps: in which stage 1 was refined.
        refine_revision: in which way (:data:`.refine.REVISION`).
        lines: by error.
        sigma: factor and exponent by tissue; empty: sigma is left as it is.
        calibrated_on: in words.
    """

    checkpoints: Mapping[str, str]
    uncertainty: str
    refine_steps: int
    refine_revision: int
    lines: Mapping[str, Line]
    sigma: Mapping[str, tuple[float, float]]
    calibrated_on: str

    def needs(self, *signs: str) -> bool:
        """Whether any of these signs counts."""
        return any(term.sign in signs for line in self.lines.values() for term in line.terms)

    def expect(self, signs: Mapping[str, float]) -> dict[str, Any]:
        """The expected errors of a reconstruction with these signs, as a sidecar keeps them.

        Args:
            signs: of :func:`.signs.measure_signs`.

        Returns:
            ``text``, what to print; by error ``value``, ``interval`` and ``unit``; ``confidence``, ``calibrated_on``.
            For a case unlike the calibration's no error but ``reason``.
        """
        first = self.lines[FIRST]
        if problems := first.problems(signs):
            return unknown(f"unlike the cases of the calibration: {'; '.join(problems)}")
        known = {**signs, EXPECTED: math.log(first.expect(signs)[0])}
        errors: dict[str, Any] = {}
        for name, unit in UNITS.items():
            line = self.lines.get(name)
            if line is not None and not line.problems(known):
                value, low, high = line.expect(known)
                errors[name] = {"value": value, "interval": [low, high], "unit": unit}
        about = {"confidence": CONFIDENCE, "calibrated_on": self.calibrated_on}
        return {"text": in_words(errors), **errors, **about, "signs": dict(signs)}

    def recalibrate(self, sigma: np.ndarray, hu: np.ndarray) -> np.ndarray:
        """Sigma after the recalibration of every voxel's tissue.

        Args:
            sigma: standard deviation of the error (x, y, z) [HU].
            hu: the reconstruction, same shape [HU]; its HU tell the tissue.

        Returns:
            float32, same shape [HU].
        """
        if not self.sigma:
            return sigma
        borders = [low for low, _ in list(TISSUES.values())[1:]]
        tissue = np.searchsorted(borders, hu, side="right")
        factor, power = (np.array([self.sigma[name][index] for name in TISSUES], np.float32) for index in (0, 1))
        return factor[tissue] * SIGMA_PIVOT_HU * (sigma / SIGMA_PIVOT_HU) ** power[tissue]


def unknown(reason: str) -> dict[str, Any]:
    """What a sidecar keeps where no error can be expected."""
    return {"text": f"expected error: not known, {reason}", "reason": reason}


def in_words(errors: Mapping[str, Mapping[str, Any]]) -> str:
    """Expected errors as a sentence.

    Example:
        >>> in_words({"body_mae_hu": {"value": 91.0, "interval": [70.0, 120.0]}})
        'expect errors of about 91 HU inside the body (70 to 120 in 9 cases of 10)'
    """
    error = errors[FIRST]
    low, high = error["interval"]
    said = f"expect errors of about {error['value']:.0f} HU inside the body ({low:.0f} to {high:.0f} in 9 cases of 10)"
    borders = [f"{what} to about {_with_ends(errors[key])}" for key, what in _BORDERS.items() if key in errors]
    return f"{said}; borders of {' and of '.join(borders)}" if borders else said


def _with_ends(error: Mapping[str, Any]) -> str:
    low, high = error["interval"]
    return f"{error['value']:.0f} mm ({low:.0f} to {high:.0f})"


_LOG = "log of "
_SAID = {**SIGNS, EXPECTED: "log of the error expected in the body [HU]"}
_BORDERS = {"lungs_surface_mm": "the lungs", "body_surface_mm": "the body"}


def default_trust() -> Path:
    """The shipped calibration, ``models/trust.json`` of the bundle."""
    return bundle_root() / "models" / TRUST_FILE


def load_trust(path: str | Path | None = None) -> Trust:
    """Reads a calibration.

    Args:
        path: its file; default: the shipped one.

    Raises:
        UserError: naming the file, if it is missing, was changed, or holds anything else.
    """
    path = default_trust() if path is None else Path(path)
    if not path.is_file():
        raise UserError(f"calibration of the expected error {path} must exist; progressive-cascade calibrate writes it")
    check_shipped(path)
    content = read_json(path, "calibration of the expected error")
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} must hold a calibration of the expected error, got {error!r}") from error


def _parse(content: Mapping[str, Any]) -> Trust:
    if unknown_errors := set(content["errors"]) - set(UNITS):
        raise ValueError(f"unknown errors {sorted(unknown_errors)}")
    lines = {name: parse_line(values) for name, values in content["errors"].items()}
    if FIRST not in lines:
        raise ValueError(f"no line of {FIRST}")
    sigma = {name: _pair(content["sigma"][name]) for name in TISSUES} if content["sigma"] else {}
    checkpoints = {str(key): str(value) for key, value in content["checkpoints"].items()}
    said = str(content["calibrated_on"])
    # A file that does not say it is older than the number.
    way = {key: int(content.get(key, 0)) for key in ("refine_steps", "refine_revision")}
    return Trust(checkpoints, str(content["uncertainty"]), lines=lines, sigma=sigma, calibrated_on=said, **way)


def parse_line(values: Mapping[str, Any]) -> Line:
    """A line from what a file holds of it.

    Raises:
        KeyError, TypeError, ValueError: if it is none.
    """
    terms = tuple(Term(**term) for term in values["terms"])
    intercept, below, above = (float(values[key]) for key in ("intercept", "below", "above"))
    numbers = [intercept, below, above]
    for term in terms:
        numbers += [term.slope, term.center, term.scale, term.low, term.high]
        if term.sign not in _SAID or not term.scale > 0 or not term.low <= term.high:
            raise ValueError(f"impossible term {term.name}")
    if not all(math.isfinite(number) for number in numbers) or not below <= 0 <= above:
        raise ValueError("impossible numbers of a line")
    return Line(intercept, terms, below, above, bool(values["logarithmic"]))


def _pair(values: Sequence[float]) -> tuple[float, float]:
    factor, power = (float(value) for value in values)
    if not (0 < factor < math.inf and 0 <= power <= 2):
        raise ValueError(f"impossible recalibration {[factor, power]}")
    return factor, power
