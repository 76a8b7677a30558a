# SPDX-License-Identifier: Apache-2.0
"""Laws of the report page in a browser: what one sees, turns and clicks, and that nothing leaves."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from progressive_cascade.report import ReportCase, write_page
from tests.support.cases import SIZE


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
        # Without a graphics card the rendering waits until it is asked for.
        started.execute_async_script(
            "const done = arguments[0]; document.getElementById('render').click(); const wait = setInterval(() => {"
            "if (document.querySelector('.corner.turning')) { clearInterval(wait); done(); } }, 50);"
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


def test_browser_shows_each_plane_on_the_screen(browser: Any) -> None:
    """What one sees, not what a canvas holds: all three planes and the rendering beside them."""
    from PIL import Image

    script = "window.scrollTo(0, 0); const b = document.getElementById('planes').getBoundingClientRect();"
    left, top, side = browser.execute_script(f"{script} return [b.left, b.top, b.width]")
    browser.execute_async_script("setTimeout(arguments[0], 1000)")
    screen = np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("L"), dtype=float)
    half, edge = side / 2, 12
    for column in range(2):
        for row in range(2):
            x, y = int(left + column * half) + edge, int(top + row * half) + edge
            tile = screen[y : y + int(half) - 2 * edge, x : x + int(half) - 2 * edge]
            assert tile.std() > 5, ("left", "right")[column] + (" top", " bottom")[row]


def test_browser_shows_a_first_picture_like_the_slices(browser: Any) -> None:
    """It is there before the viewer, and lies as the viewer's slices do: a flipped one would correlate less."""
    import base64

    from PIL import Image

    marks = "return performance.getEntriesByType('mark').map(mark => [mark.name, mark.startTime])"
    reached = dict(browser.execute_script(marks))
    assert reached["picture"] < reached["slices"] <= reached["all"]
    script = """
        const done = arguments[0], canvas = document.createElement("canvas");
        viewer.setWindow(-1350, 150);
        viewer.setCrosshair(false);
        viewer.centre();
        paintFirst(canvas, viewer.values, viewer.size, viewer.step, [-1350, 150]).then(() => done(canvas.toDataURL()));
    """
    text = browser.execute_async_script(script).split(",")[1]
    found = Image.fromarray(_pixels(browser)).resize((128, 128))
    browser.execute_script("viewer.setCrosshair(true)")
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L").resize((128, 128)), dtype=float)
    for tile in (np.s_[8:56, 8:56], np.s_[8:56, 72:120], np.s_[72:120, 8:56]):
        assert np.corrcoef(first[tile].ravel(), np.asarray(found)[tile].ravel())[0, 1] > 0.9


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


_SEEN = (
    "return [...document.querySelectorAll('img, canvas, #scores tr, .warnings li, #viewer')].filter(part => "
    "part.checkVisibility()).map(part => part.tagName === 'IMG' ? (part.naturalWidth > 0 ? 'IMG' : 'broken') : "
    "part.id || part.tagName)"
)


def test_browser_leaves_radiographs_room_on_every_screen(browser: Any, case: ReportCase, tmp_path: Path) -> None:
    """On the upright monitors of reading rooms, too, the films take two fifths of the desk beside the viewer."""
    write_page(replace(case, truth=None), tmp_path / "alone.html")
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    try:
        browser.get((tmp_path / "alone.html").as_uri())
        for width, height in ((1366, 768), (1200, 1920), (1536, 2048), (2560, 1440)):
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            share, overflow = browser.execute_script(
                "const width = name => document.querySelector(name).getBoundingClientRect().width;"
                "return [width('.films') / width('.desk'), document.documentElement.scrollWidth - innerWidth]"
            )
            assert share > 0.4 and overflow <= 0, (width, height, share)
    finally:
        browser.close()
        browser.switch_to.window(first)


def test_browser_prints_pictures_scores_and_warnings_on_white(browser: Any) -> None:
    """Nothing that has to be clicked is printed, and no ground."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        seen = browser.execute_script(_SEEN)
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert seen.count("IMG") >= 5 and {"TR", "LI"} <= set(seen)
    assert not {"viewer", "planes", "broken"} & set(seen)
    assert ground == "rgb(255, 255, 255)"


def test_browser_without_scripts_shows_pictures_scores_and_warnings(browser: Any) -> None:
    """As where a hospital's browser forbids them."""
    page, first = browser.current_url, browser.current_window_handle
    browser.switch_to.new_window("tab")
    try:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        browser.get(page)
        seen = browser.execute_script(_SEEN)
    finally:
        browser.close()
        browser.switch_to.window(first)
    assert seen.count("IMG") >= 5 and {"TR", "LI"} <= set(seen)
    assert not {"viewer", "planes", "broken"} & set(seen)
