# SPDX-License-Identifier: Apache-2.0
"""What a request must pass before any of it is kept: host, origin, token, length, time."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException

from progressive_cascade.service.metrics import Metrics
from progressive_cascade.service.settings import Settings

LOG = logging.getLogger("progressive_cascade.service")
PROBES = ("/health", "/ready")
"""What a container's health check asks for."""
OPEN_PATHS = ("/", *PROBES, "/docs", "/openapi.json")
"""What needs no token: they tell nothing of any job."""
OPEN_FOLDERS = ("/static/",)
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
_SMALL = 64 << 10
"""Bytes of a request that sends no files."""
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]


class Refused(HTTPException):
    """A request that is answered with one line; of FastAPI's own kind, which its reading of a body lets pass."""


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: what it guards.
        settings: of the service.
        metrics: counts answers by code.
        is_full: whether the queue takes no more jobs.
    """

    def __init__(self, app: Any, settings: Settings, metrics: Metrics, is_full: Callable[[], bool]) -> None:
        self._app, self._settings, self._metrics, self._is_full = app, settings, metrics, is_full

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Refuses the request, or passes it on with a body that is counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, codes = time.monotonic(), []

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                codes.append(message["status"])
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._counted(scope, receive), answer)
        except Refused as refused:
            if not codes:
                await _refuse(answer, refused)
        finally:
            code = codes[0] if codes else 500
            self._metrics.requests.labels(str(code)).inc()
            # Neither query nor address: both may be anything.
            level = logging.DEBUG if code < 400 and _is_poll(scope) else logging.INFO
            LOG.log(level, "%s %s: %d in %.2f s", scope["method"], _plain(scope), code, time.monotonic() - begun)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        hosts = self._settings.hosts
        is_probe = scope["path"] in PROBES  # whoever asks, under whatever name, whether it lives
        if hosts is not None and _name(host) not in hosts and not is_probe:
            raise Refused(400, "Host must be a name this service goes by; --host names another")
        origin = headers.get(b"origin")
        # Another site's page in the browser of somebody who may use this service.
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc != host:
            raise Refused(403, "Origin must be this service")
        path = scope["path"]
        if path not in OPEN_PATHS and not path.startswith(OPEN_FOLDERS):
            self._check_token(headers.get(b"authorization", b""))
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limit(scope):
            raise Refused(413, f"a request must have at most {self._limit(scope) >> 10} KiB")
        if scope["method"] == "POST" and self._is_full():
            raise Refused(429, "the queue is full, try again later")

    def _check_token(self, given: bytes) -> None:
        token = self._settings.token
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise Refused(401, "Authorization must be the bearer token of this service")

    def _limit(self, scope: Scope) -> int:
        return self._settings.max_upload if scope["method"] == "POST" else _SMALL

    def _counted(self, scope: Scope, receive: Any) -> Any:
        """The body, which ends in a refusal where it is too long or too slow."""
        left = self._limit(scope)
        end = time.monotonic() + self._settings.upload_seconds
        is_whole = False

        async def counted() -> Message:
            nonlocal left, is_whole
            if is_whole:  # what follows is the client's leaving, which may take as long as the answer
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except (asyncio.TimeoutError, TimeoutError):
                seconds = self._settings.upload_seconds
                raise Refused(408, f"a request must arrive within {seconds:g} s") from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise Refused(413, f"a request must have at most {self._limit(scope) >> 10} KiB")
            is_whole = not message.get("more_body", False)
            return message

        return counted


async def _refuse(send: Any, refused: Refused) -> None:
    body = json.dumps({"error": refused.detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    extra = {429: (b"retry-after", b"10"), 401: (b"www-authenticate", b"Bearer")}
    headers += [extra[refused.status_code]] if refused.status_code in extra else []
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": refused.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _name(host: str) -> str:
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host


def _plain(scope: Scope) -> str:
    """The path with nothing in it but what this service itself gave out."""
    parts = scope["path"].split("/")
    known = {"", "jobs", "static", "health", "ready", "metrics", "docs", "openapi.json"}
    named = [part if part in known or _is_id(part) else "…" for part in parts[:4]]
    return "/".join(named)


def _is_poll(scope: Scope) -> bool:
    """Whether clients ask this every second or so: how a job is, how the service is."""
    path = scope["path"]
    return scope["method"] == "GET" and (path in (*PROBES, "/metrics") or _is_id(path.removeprefix("/jobs/")))


def _is_id(part: str) -> bool:
    return len(part) == 32 and set(part) <= set("0123456789abcdef")
