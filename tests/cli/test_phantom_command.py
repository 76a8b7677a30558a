# SPDX-License-Identifier: Apache-2.0
"""Laws of `progressive-cascade phantom`: one patient or one page, and a word about what does not fit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from progressive_cascade.cli import main
from progressive_cascade.geometry import volume_affine


@pytest.fixture
def asked(monkeypatch):
    """Boxes in place of patients; what was asked for."""
    calls = []

    def generate(seed, *, shape, spacing, population):
        calls.append((seed, shape[0], population))
        hu = np.full(shape, -1000, dtype=np.int16)
        hu[4:12, 5:11, :] = 40
        return SimpleNamespace(hu=hu, labels=(hu > 0).astype(np.uint8), affine=volume_affine(shape, spacing))

    monkeypatch.setattr("progressive_cascade.phantom.generate_phantom", generate)
    return calls


def test_gallery_shows_24_patients_of_the_population(tmp_path, asked):
    """Seeds follow one another from --seed, and the page is a picture with something on it."""
    page = tmp_path / "page.jpg"
    arguments = ["phantom", "--gallery", str(page), "--seed", "5", "--size", "16", "--population", "clinical"]
    assert main(arguments) == 0
    assert asked == [(seed, 16, "clinical") for seed in range(5, 29)]
    pixels = np.asarray(Image.open(page))
    assert pixels.ndim == 2 and pixels.shape[1] > 1000 and pixels.max() > 150


def test_population_reaches_the_phantom(tmp_path, asked):
    """--population decides, basic is the default."""
    for number, (given, expected) in enumerate((([], "basic"), (["--population", "basic+pose"], "basic+pose"))):
        ct = tmp_path / f"{number}.nii.gz"
        assert main(["phantom", "--seed", "1", "--size", "16", "--output", str(ct), *given]) == 0
        assert asked[-1] == (1, 16, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --output, a CT to write, or --gallery, a page to write"),
        (["--output", "a.nii.gz"], "--output must come with --seed"),
        (["--seed", "1", "--output", "a.nii.gz", "--gallery", "b.png"], "give either --output"),
        (["--gallery", "b.png", "--labels", "c.nii.gz"], "--labels must come with --output"),
        (["--gallery", "b.bmp"], "--gallery"),
        (["--gallery", "b.png", "--population", "v1"], "--population must be one of basic, clinical"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path, monkeypatch, capsys, asked, arguments, message):
    """Exit code 2, the option's name, and nothing is painted or written."""
    monkeypatch.chdir(tmp_path)
    assert main(["phantom", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not asked and not list(tmp_path.iterdir())
