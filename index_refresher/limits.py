"""What surrounds every request: a bound on its body, and the counting of its answer.

Owns the ASGI middleware. Never looks into a body.
"""

import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from index_refresher.metrics import ServerMetrics

_FAR_TOO_LARGE = 8  # times what is accepted
_HUNG_UP = 499  # as nginx counts a client that went before it was answered: no failure of the server's


class BodyLimit:
    """Refuses bodies that are too large: those that are far too large at once, by their declared length or as
    soon as so much has arrived; others when they have come, for a client may only hear what it is told once
    it has sent them.

    The body is read whole before the application runs: it is small by then, and no half-sent answer needs
    undoing.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        size = int(declared) if declared.isdigit() else 0
        body, num_read = b"", 0
        more = size <= _FAR_TOO_LARGE * self._max_bytes
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            piece = message.get("body", b"")
            num_read += len(piece)
            size = max(size, num_read)
            if size <= self._max_bytes:
                body += piece
            more = message.get("more_body", False) and num_read <= _FAR_TOO_LARGE * self._max_bytes
        if size > self._max_bytes:
            detail = f"the body has {size} bytes or more; at most {self._max_bytes} are accepted"
            await JSONResponse({"detail": detail}, 413, {"connection": "close"})(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replay, send)


class RequestMetrics:
    """Counts and times answers by route; `unmatched` for other paths, so that no client invents labels."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note its status and time; an answer that never began counts as 500, or as
        499 where the client went before it had sent its request.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        started_s = time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def listening() -> Message:
            nonlocal status
            message = await receive()
            if message["type"] == "http.disconnect":
                status = status or _HUNG_UP
            return message

        try:
            await self._app(scope, listening, noting)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.requests.labels(route, str(status or 500)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started_s)
