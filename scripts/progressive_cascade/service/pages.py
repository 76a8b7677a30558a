# SPDX-License-Identifier: Apache-2.0
"""The pages for people: two files onto a page, and the OpenAPI page; nothing is loaded from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

_ASSETS = Path(__file__).parent / "assets"


def add_pages(app: FastAPI) -> None:
    """Adds ``/``, ``/docs`` and what they load."""
    app.mount("/static/swagger", StaticFiles(directory=swagger_ui_path), name="swagger")
    app.mount("/static", StaticFiles(directory=_ASSETS), name="static")

    @app.get("/", include_in_schema=False)
    def upload_page() -> FileResponse:
        return FileResponse(_ASSETS / "upload.html", media_type="text/html; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    def docs_page() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/static/swagger/swagger-ui-bundle.js",
            swagger_css_url="/static/swagger/swagger-ui.css",
            swagger_favicon_url="/static/swagger/favicon-32x32.png",
        )
