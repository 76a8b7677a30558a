# SPDX-License-Identifier: Apache-2.0
"""Laws of the report page: what it says without a browser, and what one shows of it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools import update_niivue

from progressive_cascade import ConeBeam
from progressive_cascade.cli import main
from progressive_cascade.errors import UserError
from progressive_cascade.io import save_json, save_nifti
from progressive_cascade.report import ReportCase, index_page, read_case, write_page
from progressive_cascade.report.embedding import choose_step, embed, shrink, unpack
from progressive_cascade.report.finished import RADIOGRAPHS_SUFFIX, save_radiographs
from progressive_cascade.report.page import asset, render_page, save_text
from progressive_cascade.report.stills import side_letters

SIZE = 64
BEAM = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))
AFFINE = np.diag([5.6, 5.6, 5.6, 1.0])
RECORD = {"calibrated": True, "agreement": {"pa": {"relative_residual": 0.0123}}, "geometry": BEAM.to_dict()}


def _volume() -> np.ndarray:
    """An ellipsoid of water with a dense rod, off centre along every axis, in air."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 3, indexing="ij")
    hu = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 + (z / 0.9) ** 2 < 1, 40, -1000)
    hu[40:44, 20:24, 10:50] = 900
    return (hu + np.random.default_rng(0).integers(-20, 20, hu.shape)).astype(np.int16)


@pytest.fixture(scope="module")
def case() -> ReportCase:
    """A small case with truth, sigma and radiographs."""
    hu, random = _volume(), np.random.default_rng(1)
    image = random.uniform(0, 6, (2, 128, 128)).astype(np.float32)
    return ReportCase(
        name="<script>alert(1)</script>",
        hu=hu,
        affine=AFFINE,
        beam=BEAM,
        reprojected=image + 0.1,
        radiographs=image,
        record={**RECORD, "warnings": ["<b>turned</b>"], "assumptions": [{"text": "0.2 mm assumed"}], "unheard_of": 7},
        sigma=np.full(hu.shape, 90.0, np.float32),
        truth=(hu - 30).astype(np.int16),
        scores={"native_mae_hu": 41.4},
    )


def test_embedding_is_lossless_at_one_hu() -> None:
    """A volume comes back as it was, and rounded to a step it is off by at most half of it."""
    volume = np.random.default_rng(0).integers(-1024, 3072, (9, 8, 7)).astype(np.int16)
    assert (unpack(embed(volume, np.eye(4))) == volume).all()
    assert np.abs(unpack(embed(volume, np.eye(4), 8)) - volume).max() <= 4


def test_choose_step_keeps_within_the_budget() -> None:
    """Noise, the worst to compress, is rounded until it fits; what is even is not rounded."""
    noise = np.random.default_rng(0).integers(-1024, 3072, (32, 32, 32)).astype(np.int16)
    step = choose_step({"ct": noise}, 60_000)
    assert step > 1
    assert len(embed(noise, np.eye(4), step).text) <= 60_000
    assert choose_step({"ct": np.zeros_like(noise)}, 60_000) == 1


def test_shrink_keeps_the_place_in_the_world() -> None:
    """The centre of a shrunken volume is the centre of the volume."""
    small, affine = shrink(np.zeros((16, 16, 16)), AFFINE, 4)
    assert small.shape == (4, 4, 4)
    np.testing.assert_allclose(affine @ [1.5, 1.5, 1.5, 1], AFFINE @ [7.5, 7.5, 7.5, 1])


def test_side_letters_follow_the_geometry() -> None:
    """PA and left lateral as they are read; a right lateral has the front on the right."""
    beam = ConeBeam(views=("pa", "left_lateral", "right_lateral"))
    assert [side_letters(beam, view)[:2] for view in range(3)] == [("R", "L"), ("A", "P"), ("P", "A")]


def test_page_says_everything_without_a_script(case: ReportCase) -> None:
    """Warnings, assumptions, scores, geometry and pictures are HTML, and unknown keys of the record are kept."""
    html = render_page(case)
    for text in (
        "&lt;b&gt;turned&lt;/b&gt;",
        "0.2 mm assumed",
        "41 HU",
        "1800 mm",
        "1.23%",
        "unheard_of",
        "Research only",
    ):
        assert text in html, text
    assert html.count('src="data:image/jpeg;base64,') == 7
    assert "<script>alert(1)" not in html
    assert "connect-src 'none'" in html


def test_page_refuses_volumes_that_differ(case: ReportCase) -> None:
    """A truth of another size is named, not drawn."""
    with pytest.raises(ValueError, match="truth must have the reconstruction's shape"):
        replace(case, truth=np.zeros((4, 4, 4), np.int16))


def test_page_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the old page and no half-written one."""
    page = tmp_path / "page.html"
    page.write_text("old")

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(UserError, match="No space left"):
        save_text("new", page)
    monkeypatch.undo()
    assert page.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_index_links_and_escapes(tmp_path: Path) -> None:
    """Pages are linked relative to the index, errors and warnings shown, names escaped."""
    rows = [
        {"name": "a<b", "page": tmp_path / "sub" / "a b.html", "sigma": 91.25, "warnings": ["turned"]},
        {"name": "c", "error": "no image"},
    ]
    index_page(rows, tmp_path / "index.html")
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    for text in ('<a href="sub/a%20b.html">a&lt;b</a>', "91.25", "turned", "Failed: no image", "2 cases, 1 failed"):
        assert text in html, text


def test_niivue_is_the_reviewed_file() -> None:
    """The viewer in the package is the one whose hash the tool checks."""
    import hashlib

    assert hashlib.sha256(asset("niivue.umd.js").encode()).hexdigest() == update_niivue.SHA256


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The files of a finished case of 64³ voxels."""
    save_nifti(_volume(), AFFINE, tmp_path / "ct.nii.gz")
    save_json({**RECORD, "shape": [SIZE] * 3}, tmp_path / "ct.json")
    save_radiographs(np.ones((2, 128, 128), np.float32), tmp_path / f"ct{RADIOGRAPHS_SUFFIX}")
    return tmp_path


def test_read_case_takes_folder_volume_and_sidecar(finished: Path) -> None:
    """All three ways name the same case, with its radiographs."""
    for result in (finished, finished / "ct.nii.gz", finished / "ct.json"):
        case = read_case(result)
        assert case.name == "ct"
        assert case.radiographs is not None
        assert case.radiographs.shape == case.reprojected.shape


def test_report_command_writes_the_page(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`report RESULT` writes it beside the CT and prints its path."""
    assert main(["report", str(finished)]) == 0
    assert capsys.readouterr().out.strip() == str(finished / "ct.html")
    assert (finished / "ct.html").stat().st_size > 1e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "ct.json").unlink(), "must hold one CT with its sidecar"),
        (lambda folder: save_json({**RECORD, "shape": [4, 4, 4]}, folder / "ct.json"), "as its sidecar says"),
        (lambda folder: save_json({}, folder / "ct.json"), "holds no geometry"),
    ],
)
def test_report_command_refuses_what_is_no_result(
    finished: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], Any], message: str
) -> None:
    """One line on stderr, exit code 2, and no page."""
    change(finished)
    assert main(["report", str(finished)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(finished.glob("*.html"))


@pytest.fixture(scope="module")
def browser(case: ReportCase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium that shows the page of the small case."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    folder = tmp_path_factory.mktemp("browser")
    write_page(case, folder / "page.html")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = "headless=new no-sandbox disable-gpu use-angle=swiftshader enable-unsafe-swiftshader no-first-run"
    quiet = "disable-background-networking disable-component-update disable-sync disable-dev-shm-usage"
    for flag in f"{flags} {quiet} window-size=1366,1000 user-data-dir={folder / 'profile'}".split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        started.set_script_timeout(120)
        started.get("about:blank")
        started.get_log("performance")  # of the browser's own first page
        started.get((folder / "page.html").as_uri())
        started.execute_async_script(
            "const done = arguments[0]; const wait = setInterval(() => { const state = document.documentElement."
            "dataset.ready; if (state === 'all' || state === 'plain') { clearInterval(wait); done(state); } }, 50);"
        )
        yield started
    finally:
        started.quit()


def _pixels(browser: Any, canvas: str = "planes") -> np.ndarray:
    """What NiiVue draws on a canvas (rows, columns), grey."""
    import base64

    from PIL import Image

    name = {"planes": "planes", "truth": "truth", "rendering": "rendering"}[canvas]
    script = f"viewer.{name}.drawScene(); return document.getElementById('{canvas}').toDataURL();"
    picture = browser.execute_script(script).split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("L"), dtype=float)


def _click(browser: Any, selector: str) -> None:
    browser.execute_script(f"document.querySelector('{selector}').click()")


def test_browser_shows_the_volume(browser: Any) -> None:
    """From file://, slices of both CTs and the rendering are no even colour, and the page says that it is ready."""
    assert browser.execute_script("return document.documentElement.dataset.ready") == "all"
    for canvas in ("planes", "truth", "rendering"):
        assert _pixels(browser, canvas).std() > 5, canvas


def test_browser_has_the_volume_voxel_by_voxel(browser: Any, case: ReportCase) -> None:
    """What JavaScript unpacks is what was packed."""
    found = browser.execute_script("return Array.from(viewer.values)")
    assert (case.hu == np.array(found).reshape(SIZE, SIZE, SIZE).T).all()


def test_browser_shows_the_patients_right_on_the_left(browser: Any) -> None:
    """Moving towards the patient's right moves the crosshair to the image's left."""
    script = (
        "viewer.goTo(0, 60); return viewer.planes.frac2canvasPosWithTile(viewer.planes.scene.crosshairPos, 1).pos[0]"
    )
    right = browser.execute_script(script)
    assert right < browser.execute_script(script.replace("60", "3"))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_browser_slider_changes_the_slice(browser: Any, axis: int) -> None:
    """A slider moved to another slice changes pixels of both CTs, the read-out and the dots on the radiographs."""
    script = (
        f"const s = document.querySelector('.slice[data-axis=\"{axis}\"]'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input')); return document.getElementById('readout').textContent"
    )
    texts, pictures, truths = [], [], []
    for index in (12, 41):
        texts.append(browser.execute_script(script, index))
        pictures.append(_pixels(browser))
        truths.append(_pixels(browser, "truth"))
    assert texts[0] != texts[1]
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.5
    assert np.abs(truths[0] - truths[1]).mean() > 0.5


def test_browser_wheel_scrolls(browser: Any) -> None:
    """The wheel over the axial plane goes to another slice."""
    script = """
        const c = document.getElementById("planes"), box = c.getBoundingClientRect();
        const at = { clientX: box.left + box.width / 4, clientY: box.top + 0.75 * box.height, deltaY: 100 };
        c.dispatchEvent(new WheelEvent("wheel", { ...at, bubbles: true, cancelable: true }));
        return viewer.voxel()[2];
    """
    before = browser.execute_script("viewer.goTo(2, 30); return viewer.voxel()[2]")
    assert browser.execute_script(script) != before


def test_browser_keys_move_and_switch(browser: Any) -> None:
    """Arrow keys on the slices move the crosshair, digits choose the window."""
    script = """
        const press = new KeyboardEvent("keydown", { key: arguments[0], bubbles: true });
        document.getElementById("planes").dispatchEvent(press);
        return [viewer.voxel(), document.getElementById("window-state").textContent];
    """
    before = browser.execute_script("viewer.goTo(2, 30); return viewer.voxel()")
    after, _ = browser.execute_script(script, "PageUp")
    assert after == [before[0], before[1], 31]
    assert browser.execute_script(script, "3")[1] == "W 1800  L 400"
    assert browser.execute_script(script, "1")[1] == "W 1500  L -600"


@pytest.mark.parametrize(("box", "canvas"), [("uncertainty", "planes"), ("difference", "truth")])
def test_browser_overlays_change_the_picture(browser: Any, box: str, canvas: str) -> None:
    """Uncertainty and difference appear, and go again."""
    before = _pixels(browser, canvas)
    _click(browser, f"#{box}")
    browser.execute_async_script("setTimeout(arguments[0], 600)")
    shown = _pixels(browser, canvas)
    _click(browser, f"#{box}")
    browser.execute_async_script("setTimeout(arguments[0], 600)")
    assert np.abs(shown - before).mean() > 1
    assert np.abs(_pixels(browser, canvas) - before).mean() < 0.5


def test_browser_film_slider_uncovers_the_reprojection(browser: Any) -> None:
    """The slider under a radiograph moves the edge between both."""
    script = (
        "const s = document.querySelector('.cut'); s.value = arguments[0]; s.dispatchEvent(new Event('input'));"
        "return getComputedStyle(document.querySelector('.plate.again')).clipPath"
    )
    assert browser.execute_script(script, 20) != browser.execute_script(script, 80)


def test_browser_reports_no_error_and_sends_nothing(browser: Any) -> None:
    """The console holds no error, and every request is for the page itself or for data inside it."""
    severe = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert severe == []
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert urls
    inside = ("file:", "data:", "blob:", "chrome:", "about:")  # chrome: is Chromium's own start page, in the program
    assert [url for url in urls if not url.startswith(inside)] == []
