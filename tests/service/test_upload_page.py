# SPDX-License-Identifier: Apache-2.0
"""Laws of the page onto which two files are dragged, in a browser."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
import uvicorn

from progressive_cascade.service import build_app
from tests.support.service import WRONG, picture, settings, wait_for


@pytest.fixture
def page(tmp_path: Path, free_port: int) -> Iterator[tuple[Any, Any]]:
    """A headless Chromium before the page of a service whose workers need no network, and the service."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    app = build_app(settings(tmp_path))
    server = uvicorn.Server(uvicorn.Config(app, port=free_port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = "headless=new no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update"
    for flag in f"{flags} disable-dev-shm-usage window-size=1366,768 user-data-dir={tmp_path / 'profile'}".split():
        options.add_argument(f"--{flag}")
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        wait_for(lambda: server.started and app.state.service.pool.num_ready)
        started.get(f"http://127.0.0.1:{free_port}/")
        yield started, app.state.service
    finally:
        started.quit()
        server.should_exit = True
        thread.join()


def _send(browser: Any, folder: Path, level: int = 100) -> str:
    """Chooses two files, sends them, and waits for the end: what the page then says."""
    for name, content in (("a_lat.png", picture()), ("b.png", picture(level))):
        (folder / name).write_bytes(content)
    files = "\n".join(str(folder / name) for name in ("a_lat.png", "b.png"))
    browser.find_element("id", "files").send_keys(files)
    browser.find_element("id", "send").click()
    state = browser.find_element("id", "state")
    wait_for(lambda: state.text == "Done." or "error" in state.get_attribute("class"))
    return state.text


def test_the_page_shows_the_report_where_one_looks(page: tuple[Any, Any], tmp_path: Path) -> None:
    """As wide as the window and in view when the job is done; it may be printed, and kept as a file."""
    browser, _ = page
    downloads = {"behavior": "allow", "downloadPath": str(tmp_path / "kept")}
    browser.execute_cdp_cmd("Page.setDownloadBehavior", downloads)
    assert not browser.find_element("id", "remove").is_displayed()
    assert _send(browser, tmp_path) == "Done."
    frame = browser.find_element("id", "report")
    wait_for(frame.is_displayed)
    script = "const box = arguments[0].getBoundingClientRect(); return [box.width, innerWidth, innerHeight - box.top]"
    seen = wait_for(lambda: (found := browser.execute_script(script, frame))[2] > 200 and found)
    assert seen[0] > 0.9 * seen[1]
    assert browser.execute_script("const page = document.documentElement; return page.scrollWidth <= page.clientWidth")
    assert "allow-modals" in frame.get_attribute("sandbox")
    (keep,) = [one for one in browser.find_elements("css selector", "#results button") if "Report" in one.text]
    keep.click()
    wait_for((tmp_path / "kept" / "ct.html").is_file)
    browser.find_element("id", "remove").click()
    wait_for(lambda: browser.find_element("id", "state").text == "Removed.")


def test_the_page_says_what_contradictions_mean_and_why_a_pair_fails(page: tuple[Any, Any], tmp_path: Path) -> None:
    """What is chosen reaches the command; of the files the lateral is told by its name; a reason is shown in red."""
    browser, service = page
    browser.execute_script("document.getElementById('trust').value = 'picture'")
    assert "must show a patient" in _send(browser, tmp_path, WRONG)
    identifier = browser.execute_script("return job")
    assert "--trust-picture" in service.store.get(identifier).arguments
    assert not browser.find_element("id", "report").is_displayed()
