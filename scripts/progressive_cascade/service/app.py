# SPDX-License-Identifier: Apache-2.0
"""The HTTP service: jobs in, results out, health and numbers beside them; FastAPI around the queue."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, File, Form, Header, HTTPException, Path, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteError
from starlette.middleware import Middleware

from progressive_cascade import __version__
from progressive_cascade.errors import UserError
from progressive_cascade.io import read_json
from progressive_cascade.service.guard import Guard
from progressive_cascade.service.intake import check_json, geometry_arguments, place, unpack_study
from progressive_cascade.service.metrics import CONTENT_TYPE, Metrics
from progressive_cascade.service.options import JobOptions, read_options
from progressive_cascade.service.pages import add_pages
from progressive_cascade.service.pool import Pool
from progressive_cascade.service.settings import Settings
from progressive_cascade.service.store import Job, QueueFull, Store

RESULTS = {
    "ct.nii.gz": ("ct.nii.gz", "application/gzip"),
    "sigma.nii.gz": ("sigma.nii.gz", "application/gzip"),
    "ct.json": ("ct.json", "application/json"),
    "ct.png": ("ct.png", "image/png"),
    "report": ("ct.html", "text/html; charset=utf-8"),
    "dicom.zip": ("dicom.zip", "application/zip"),
}
"""What a job gives, by the name in its URL: file and media type."""
_DESCRIPTION = """
Two chest X-rays in, a CT in Hounsfield units out. POST them to `/jobs`, ask for the job until its state is `done`, take
what it made. For research only, never for diagnosis.
"""
_FAULT_CODES = {"refused": 422}
_Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="of the job, as POST gave it")]
_Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=200, description="a second POST is no new job")]
_File = Annotated[UploadFile | None, File(description="DICOM, NIfTI, MHA, NRRD, PNG, JPEG or TIFF")]
_Json = Annotated[UploadFile | None, File(description="geometry.json as `simulate` writes it")]
_Exposure = Annotated[UploadFile | None, File(description="exposure.json as `simulate` writes it")]
_Zip = Annotated[UploadFile | None, File(description="a zip with one pair, instead of pa and lateral")]
_Options = Annotated[str, Form(max_length=16_384, description="JSON: " + ", ".join(JobOptions.model_fields))]


class Service:
    """The queue, its workers and its numbers, while a service runs.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.store = Store(settings.folder, max_queue=settings.max_queue)
        self.pool = Pool(self.store, settings, self.metrics)
        for state in ("queued", "running"):
            self.metrics.watch(f"jobs_{state}", f"Jobs {state}.", lambda state=state: self.store.count(state))
        self.metrics.watch("workers_ready", "Workers that have loaded.", lambda: self.pool.num_ready)

    @property
    def is_full(self) -> bool:
        """Whether no more jobs are taken."""
        return self.store.num_open() >= self.settings.max_queue

    def accept(self, files: dict[str, UploadFile | None], options: JobOptions, key: str | None) -> Job:
        """Places the files and puts the job into the queue.

        Raises:
            UserError: for what is wrong with them.
            QueueFull: where no more jobs are taken.
        """
        if self.settings.max_upload * 4 > shutil.disk_usage(self.settings.folder).free:
            raise QueueFull
        identifier, folder = self.store.new_folder()
        try:
            job = self.store.add(identifier, [*_place_all(files, folder, self.settings, options)], key=key)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.metrics.accepted.inc()
        return job

    def describe(self, job: Job) -> dict[str, Any]:
        """What a client is told of a job."""
        place = f"/jobs/{job.id}"
        folder = self.store.job_folder(job.id) / "result"
        made = [name for name, (file, _) in RESULTS.items() if (folder / file).is_file()]
        return {
            "id": job.id,
            "state": job.state,
            "error": job.error,
            "created": job.created,
            "started": job.started,
            "finished": job.finished,
            "before": self.store.num_before(job) if job.state == "queued" else 0,
            "mean_seconds": self.store.mean_seconds(),
            **_told(folder / "ct.json"),
            "links": {"self": place, **{name: f"{place}/{name}" for name in made}},
        }


def _told(sidecar: FilePath) -> dict[str, Any]:
    """What a finished job's CT is warned of, and what error it is expected to have, without the signs of it."""
    record: Any = {}
    if sidecar.is_file():
        with contextlib.suppress(UserError):
            record = read_json(sidecar)
    record = record if isinstance(record, dict) else {}
    refinement, expected = record.get("refinement"), record.get("expected_error")
    lists = [part.get("warnings") for part in (record, refinement) if isinstance(part, dict)]
    return {
        "warnings": [line for lines in lists if isinstance(lines, list) for line in lines],
        "expected_error": {name: value for name, value in expected.items() if name != "signs"}
        if isinstance(expected, dict)
        else None,
    }


def _place_all(
    files: dict[str, UploadFile | None], folder: FilePath, settings: Settings, options: JobOptions
) -> list[str]:
    """Files into the job's folder; its arguments."""
    study, given = files["study"], {name: file for name, file in files.items() if file is not None}
    inside = folder / "input"
    if study is not None:
        if len(given) > 1:
            raise UserError("study must come without other files")
        with_geometry = options.preset is None
        pair = unpack_study(study.file, inside, max_bytes=settings.max_upload, with_geometry=with_geometry)
        return [*pair, *options.arguments()]
    if not {"pa", "lateral"} <= set(given):
        raise UserError("pa and lateral must be given, or study with a zip of both")
    arguments = []
    for view in ("pa", "lateral"):
        arguments += [f"--{view}", f"input/{place(_save(given[view], folder / view), inside, view)}"]
    if "geometry" in given and options.preset is not None:
        raise UserError("options preset must come without geometry")
    for name in given.keys() & {"geometry", "exposure"}:
        check_json(_save(given[name], inside / f"{name}.json"))
    return [*arguments, *geometry_arguments(inside), *options.arguments()]


def _save(upload: UploadFile, path: FilePath) -> FilePath:
    with open(path, "xb") as sink:
        shutil.copyfileobj(upload.file, sink, 1 << 20)
    return path


def build_app(settings: Settings) -> FastAPI:
    """The application, whose workers start with it and end with it.

    Args:
        settings: of the service.

    Raises:
        UserError: where the folder of the queue is another service's, or cannot be written.
    """
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.pool.start()
        yield
        await run_in_threadpool(service.pool.close)
        service.store.close()

    guard = Middleware(Guard, settings=settings, metrics=service.metrics, is_full=lambda: service.is_full)
    app = FastAPI(
        title="progressive cascade",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=[guard],
    )
    app.state.service = service
    app.include_router(_ROUTER)
    add_pages(app)
    app.add_exception_handler(UserError, lambda _, error: _line(422, str(error)))
    app.add_exception_handler(QueueFull, lambda *_: _line(429, "the queue is full, try again later"))
    app.add_exception_handler(StarletteError, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    return app


def _line(code: int, text: str) -> JSONResponse:
    """An error in one line."""
    headers = {"Retry-After": "10"} if code == 429 else None
    return JSONResponse({"error": " ".join(text.split())}, status_code=code, headers=headers)


async def _http_error(_: Request, error: Any) -> JSONResponse:
    return _line(error.status_code, str(error.detail))


async def _invalid(_: Request, error: Any) -> JSONResponse:
    # What was sent is not repeated: it may name anybody.
    first = error.errors()[0]
    where = " ".join(re.sub(r"\W+", "", str(part))[:40] for part in first["loc"] if part != "body")
    return _line(422, f"{where}: {first['msg'][:160]}")


_ROUTER = APIRouter()


@_ROUTER.post("/jobs", status_code=202, tags=["jobs"], summary="Two X-rays, or a zip with both")
async def post_job(
    request: Request,
    response: Response,
    pa: _File = None,
    lateral: _File = None,
    geometry: _Json = None,
    exposure: _Exposure = None,
    study: _Zip = None,
    options: _Options = "{}",
    key: _Key = None,
) -> dict[str, Any]:
    """Accepts a job; from this answer on it survives whatever happens to the service."""
    service: Service = request.app.state.service
    if service.pool.is_closing:
        raise HTTPException(503, "the service is ending")
    files = {"pa": pa, "lateral": lateral, "geometry": geometry, "exposure": exposure, "study": study}
    # A client's key may be a patient's name.
    key = None if key is None else hashlib.sha256(key.encode()).hexdigest()
    known = None if key is None else service.store.of_key(key)
    job = known or await run_in_threadpool(service.accept, files, read_options(options), key)
    response.headers["Location"] = f"/jobs/{job.id}"
    return service.describe(job)


@_ROUTER.get("/jobs/{identifier}", tags=["jobs"])
def get_job(request: Request, identifier: _Id) -> dict[str, Any]:
    """State of a job: queued, running, done or failed, with one line that says why."""
    service: Service = request.app.state.service
    return service.describe(_find(service, identifier))


@_ROUTER.delete("/jobs/{identifier}", status_code=204, tags=["jobs"])
def delete_job(request: Request, identifier: _Id) -> None:
    """Stops a job and removes everything of it."""
    if not request.app.state.service.store.delete(identifier):
        raise HTTPException(404, "there is no such job, or its time is over")


@_ROUTER.get("/jobs/{identifier}/{name}", tags=["jobs"], response_class=FileResponse)
def get_result(request: Request, identifier: _Id, name: str) -> FileResponse:
    """A result: ct.nii.gz, sigma.nii.gz, ct.json, ct.png, report, dicom.zip."""
    service: Service = request.app.state.service
    job = _find(service, identifier)
    if name not in RESULTS:
        raise HTTPException(404, f"a result must be one of {', '.join(RESULTS)}")
    if job.state in ("queued", "running"):
        raise HTTPException(409, f"the job is {job.state}")
    if job.state == "failed":
        raise HTTPException(_FAULT_CODES.get(job.fault, 500), job.error)
    file, media_type = RESULTS[name]
    path = service.store.job_folder(job.id) / "result" / file
    if not path.is_file():
        raise HTTPException(404, "the job was not asked for this")
    return FileResponse(path, media_type=media_type, filename=None if name == "report" else file)


@_ROUTER.get("/health", tags=["service"])
def health() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@_ROUTER.get("/ready", tags=["service"])
def ready(request: Request) -> JSONResponse:
    """Whether a worker has loaded and jobs are taken; 503 where not, with the reason."""
    service: Service = request.app.state.service
    reason = "ending" if service.pool.is_closing else "" if service.pool.num_ready else "loading"
    body = {"status": "ready" if not reason else service.pool.problem or reason, "workers": service.pool.num_ready}
    return JSONResponse(body, status_code=503 if reason else 200)


@_ROUTER.get("/metrics", tags=["service"], response_class=Response)
def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(request.app.state.service.metrics.text(), media_type=CONTENT_TYPE)


def _find(service: Service, identifier: str) -> Job:
    job = service.store.get(identifier)
    if job is None:
        raise HTTPException(404, "there is no such job, or its time is over")
    return job
