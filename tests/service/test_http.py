# SPDX-License-Identifier: Apache-2.0
"""Laws of the HTTP service: what is accepted ends in a result or a word, what is refused is told in one line."""

from __future__ import annotations

import io
import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from tests.support.service import (
    BROKEN,
    BUG,
    DEADLY,
    SLOW,
    WRONG,
    deflated_dicom,
    finished,
    pair,
    picture,
    serving,
    wait_for,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the service."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Any]:
    """A client of a running service."""
    with serving(folder, max_upload=4 << 20) as client:
        yield client


def _refusal(response: Any, code: int) -> str:
    assert response.status_code == code, response.text
    line = response.json()["error"]
    assert line and "\n" not in line
    return line


def _zip(**files: bytes) -> dict[str, Any]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return {"study": ("study.zip", stream.getvalue())}


def test_a_job_goes_its_way(client: Any, folder: Path) -> None:
    """202, a place, a result once, and nothing of the radiographs afterwards."""
    answer = client.post("/jobs", files=pair(), data={"options": '{"refine": 3}'})
    assert answer.status_code == 202
    job = finished(client, answer.json()["id"])
    assert (job["state"], job["error"]) == ("done", "")
    assert client.get(f"{answer.headers['location']}/ct.nii.gz").text == "ct of 3"
    assert client.get(job["links"]["report"]).headers["content-type"].startswith("text/html")
    assert job["expected_error"] is None and job["warnings"] == []
    sidecar = folder / "data" / "jobs" / job["id"] / "result" / "ct.json"
    warned = '"warnings": ["the body leaves"], "refinement": {"warnings": ["the residual rose"]}'
    sidecar.write_text(f'{{{warned}, "expected_error": {{"text": "about 90 HU", "signs": {{"noise": 1}}}}}}')
    told = client.get(f"/jobs/{job['id']}").json()
    assert told["expected_error"] == {"text": "about 90 HU"}
    assert told["warnings"] == ["the body leaves", "the residual rose"]
    assert (folder / "ran.txt").read_text().count(job["id"]) == 1
    assert not (folder / "data" / "jobs" / job["id"] / "input").exists()
    _refusal(client.get(f"/jobs/{job['id']}/sigma.nii.gz"), 404)
    assert client.delete(f"/jobs/{job['id']}").status_code == 204
    _refusal(client.get(f"/jobs/{job['id']}"), 404)
    assert not (folder / "data" / "jobs" / job["id"]).exists()


def test_a_zip_is_a_pair(client: Any) -> None:
    """With names that say the view, or in a folder, beside what does not matter."""
    study = _zip(**{"Doe/pa.png": picture(), "Doe/lateral.png": picture(), "Doe/notes.txt": b"-"})
    assert finished(client, client.post("/jobs", files=study).json()["id"])["state"] == "done"


def test_a_key_makes_one_job_of_two_posts(client: Any) -> None:
    """A client that did not see the answer may ask again."""
    posts = [client.post("/jobs", files=pair(), headers={"Idempotency-Key": "k"}).json()["id"] for _ in range(2)]
    assert posts[0] == posts[1]


@pytest.mark.parametrize(
    ("level", "code", "words"),
    [(WRONG, 422, "input/pa.png must show a patient, got nothing"), (BROKEN, 500, "out of memory"), (BUG, 500, "KeyE")],
)
def test_a_job_that_fails_says_why(client: Any, level: int, code: int, words: str) -> None:
    """In one line, by the kind of its fault, without what an exception holds."""
    job = finished(client, client.post("/jobs", files=pair(level)).json()["id"])
    line = _refusal(client.get(f"/jobs/{job['id']}/ct.nii.gz"), code)
    assert line == job["error"] and line.startswith(words) and "Doe" not in line


def test_a_job_that_kills_its_workers_is_given_up(client: Any) -> None:
    """After two of them; the next job is done by a third, and a count tells of it."""
    job = finished(client, client.post("/jobs", files=pair(DEADLY)).json()["id"])
    assert job["state"] == "failed" and "2 times" in job["error"]
    assert finished(client, client.post("/jobs", files=pair()).json()["id"])["state"] == "done"
    restarts = re.search(r"^progressive_cascade_worker_restarts_total (\S+)", client.get("/metrics").text, re.MULTILINE)
    assert restarts and float(restarts[1]) >= 2


def test_a_running_job_can_be_deleted(client: Any, folder: Path) -> None:
    """Its worker is stopped, its files go, the next job does not wait for it."""
    job = client.post("/jobs", files=pair(SLOW)).json()["id"]
    wait_for(lambda: client.get(f"/jobs/{job}").json()["state"] == "running")
    _refusal(client.get(f"/jobs/{job}/ct.nii.gz"), 409)
    assert client.delete(f"/jobs/{job}").status_code == 204
    assert finished(client, client.post("/jobs", files=pair()).json()["id"])["state"] == "done"
    assert not (folder / "data" / "jobs" / job).exists()


BOMB = _zip(**{"pa.png": bytes(9 << 20), "lateral.png": picture()})


def _damaged() -> bytes:
    """A zip whose packed bytes are no deflate stream."""
    content = bytearray(_zip(**{"pa.png": bytes(1000)})["study"][1])
    content[36:40] = b"\xff\xff\xff\xff"
    return bytes(content)


LONG = _zip(**{f"{number:060d}": b"" for number in range(12_000)})
MANY = _zip(**{f"{number}.txt": b"" for number in range(300)})
PNG = picture()
DEFLATED = deflated_dicom(260 << 20)
HUGE = PNG[:16] + b"\x00\x00\xff\xff\x00\x00\xff\xff" + PNG[24:]
DETACHED = b"NRRD0004\ntype: float\ndimension: 2\nsizes: 64 64\nencoding: raw\ndata file: /etc/passwd\n\n"
ELSEWHERE = b"ObjectType = Image\nNDims = 2\nDimSize = 64 64\nElementType = MET_FLOAT\nElementDataFile = /etc/passwd\n"


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({}, "{}", "pa and lateral"),
        ({"pa": ("p", PNG)}, "{}", "pa and lateral"),
        ({"pa": ("p", b"text"), "lateral": ("l", PNG)}, "{}", "pa must be a radiograph"),
        ({"pa": ("p", b""), "lateral": ("l", PNG)}, "{}", "pa must be a radiograph"),
        ({"pa": ("p", HUGE), "lateral": ("l", PNG)}, "{}", "65535 x 65535|header is damaged"),
        ({"pa": ("p.nrrd", DETACHED), "lateral": ("l", PNG)}, "{}", "names another file"),
        ({"pa": ("p.mha", ELSEWHERE), "lateral": ("l", PNG)}, "{}", "names another file"),
        ({**pair(), "geometry": ("g", b"[" * 100_000)}, "{}", "geometry"),
        ({**pair(), "geometry": ("g", b"[]")}, "{}", "geometry must be a JSON object"),
        ({**pair(), "exposure": ("e", b"{")}, "{}", "exposure"),
        ({**pair(), **_zip(a=b"")}, "{}", "study must come without"),
        (BOMB, "{}", "MiB unpacked|packed more than"),
        (MANY, "{}", "at most 256 files"),
        ({"study": ("s.zip", _damaged())}, "{}", "must be a zip"),
        (LONG, "{}", "its list is longer"),
        ({"pa": ("p", DEFLATED), "lateral": ("l", PNG)}, "{}", "pa must inflate to at most"),
        ({"study": ("s.zip", b"PK\x03\x04 no zip")}, "{}", "must be a zip"),
        (_zip(**{"../pa.png": PNG, "lateral.png": PNG}), "{}", "leads elsewhere"),
        (_zip(**{"/pa.png": PNG, "lateral.png": PNG}), "{}", "leads elsewhere"),
        (_zip(**{"C:\\pa.png": PNG, "lateral.png": PNG}), "{}", "leads elsewhere"),
        (_zip(**{"Doe_pa.png": PNG, "Roe_lat.png": PNG}), "{}", "got 0 pairs and 2"),
        (pair(), '{"refine": -1}', "options refine"),
        (pair(), '{"refine": "3"}', "options refine"),
        (pair(), '{"output": "/etc/passwd"}', "options output"),
        (pair(), '{"field_of_view": 1e999}', "options"),
        (pair(), '{"spectrum": "--help"}', "options spectrum"),
        (pair(), "[" * 10_000, "options"),
        (pair(), "no json", "options"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    client: Any, folder: Path, files: dict[str, Any], options: str, words: str
) -> None:
    """At once, naming the field, repeating no name, leaving nothing."""
    before = {path.name for path in (folder / "data" / "jobs").iterdir()}
    line = _refusal(client.post("/jobs", files=files, data={"options": options}), 422)
    assert re.search(words, line) and "Doe" not in line and str(folder) not in line
    assert {path.name for path in (folder / "data" / "jobs").iterdir()} <= before


def test_links_in_a_zip_are_refused(client: Any) -> None:
    """A link could show what its name does not say."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        entry = zipfile.ZipInfo("pa.png")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    assert "link" in _refusal(client.post("/jobs", files={"study": ("s", stream.getvalue())}), 422)


def test_what_is_too_long_is_refused(client: Any) -> None:
    """By its header, or counted where there is none."""
    _refusal(client.post("/jobs", files={"pa": ("p", bytes(5 << 20))}), 413)

    def blocks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="pa"; filename="p"\r\n\r\n'
        for _ in range(80):
            yield bytes(1 << 16)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    _refusal(client.post("/jobs", content=blocks(), headers=headers), 413)


@pytest.mark.parametrize("path", ["/jobs/..%2f..%2fetc%2fpasswd", "/jobs/" + "0" * 32, "/nothing", "/static/../app.py"])
def test_what_is_not_there_is_not_found(client: Any, path: str) -> None:
    """Whatever the path looks like."""
    assert client.get(path).status_code in (404, 422)


def test_other_sites_and_names_are_refused(client: Any) -> None:
    """A page of another site in a browser of this machine, and a name that was bent to this address."""
    _refusal(client.post("/jobs", files=pair(), headers={"Origin": "http://evil.example"}), 403)
    _refusal(client.get("/metrics", headers={"Host": "evil.example"}), 400)
    assert "access-control-allow-origin" not in client.get("/health", headers={"Origin": "http://testserver"}).headers


def test_pages_load_nothing_from_elsewhere(client: Any) -> None:
    """Upload page and OpenAPI page: every address is this service's, and answered."""
    for page in ("/", "/docs"):
        text = client.get(page).text
        places = re.findall(r'(?:src|href)="([^"]*)"', text)
        assert places and not [place for place in places if not place.startswith(("/static/", "data:"))]
        assert all(client.get(place).status_code == 200 for place in places if place.startswith("/"))
    assert set(client.get("/openapi.json").json()["paths"]) >= {"/jobs", "/jobs/{identifier}", "/health", "/metrics"}


def test_numbers_tell_of_jobs(client: Any) -> None:
    """In Prometheus's format, which its own parser reads."""
    from prometheus_client.parser import text_string_to_metric_families

    names = {family.name for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert names >= {f"progressive_cascade_{name}" for name in ("jobs_accepted", "jobs_queued", "workers_ready")}


def test_the_log_leaves_out_what_is_asked_again_and_again(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Jobs that come, end and are fetched have a line, and refusals; a client that waits for one has none."""
    caplog.set_level(logging.INFO)
    identifier = client.post("/jobs", files=pair()).json()["id"]
    finished(client, identifier)
    for name in ("/health", "/ready", "/metrics", f"/jobs/{identifier}/ct.nii.gz", f"/jobs/{'0' * 32}"):
        client.get(name)
    lines = [one.getMessage() for one in caplog.records if one.name.startswith("progressive")]
    asked = [line.partition(" in ")[0] for line in lines if line.startswith(("GET", "POST"))]
    assert asked == ["POST /jobs: 202", f"GET /jobs/{identifier}/…: 200", f"GET /jobs/{'0' * 32}: 404"]
    assert [line for line in lines if line.startswith(f"job {identifier}: done")]


def test_logs_name_nobody(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Neither file names nor what somebody puts into a path or query."""
    caplog.set_level(logging.DEBUG)
    client.post("/jobs?patient=Doe", files=pair())
    client.get("/jobs/Doe^Jane")
    client.get("/Doe^Jane")
    assert "POST /jobs" in caplog.text
    assert not [one for one in caplog.records if one.name.startswith("progressive") and "Doe" in one.getMessage()]


def test_a_token_guards_all_but_the_doors(tmp_path: Path) -> None:
    """And a service that cannot load says why; a full queue answers 429 before anything is read."""
    with serving(tmp_path, token="t" * 16, max_queue=1, runner_settings={"broken": True}) as client:
        right = {"Authorization": f"Bearer {'t' * 16}"}
        for path in ("/metrics", "/jobs/" + "0" * 32):
            _refusal(client.get(path), 401)
            _refusal(client.get(path, headers={"Authorization": "Bearer wrong"}), 401)
        assert client.get("/health").status_code == client.get("/").status_code == 200
        _refusal(client.post("/jobs", files=pair()), 401)
        assert client.post("/jobs", files=pair(), headers=right).status_code == 202
        answer = client.post("/jobs", files=pair(), headers=right)
        _refusal(answer, 429)
        assert int(answer.headers["retry-after"]) > 0
        wait_for(lambda: client.get("/ready").json()["status"] == "checkpoint must be one, got none")
