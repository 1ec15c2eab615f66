"""What surrounds a request, driven as a server drives it."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from index_refresher.limits import BodyLimit, RequestMetrics
from index_refresher.metrics import ServerMetrics

BEGUN: Message = {"type": "http.request", "body": b"{", "more_body": True}
REST: Message = {"type": "http.request", "body": b"}", "more_body": False}
GONE: Message = {"type": "http.disconnect"}


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("here it is")(scope, receive, send)
    await receive()


async def _no_answer(scope: Scope, receive: Receive, send: Send) -> None:
    pass


@pytest.mark.parametrize(
    ("messages", "app", "status"),
    [
        ([BEGUN, GONE], _answer, "499"),
        ([BEGUN, REST, GONE], _answer, "200"),
        ([BEGUN, REST], _no_answer, "500"),
    ],
    ids=["goes before it has asked", "goes with its answer", "is never answered"],
)
def test_a_client_that_goes_before_it_has_asked_is_no_failure_of_the_server(
    messages: list[Message], app: object, status: str
) -> None:
    registry, waiting = CollectorRegistry(), iter(messages)
    surrounded = RequestMetrics(BodyLimit(app, max_bytes=100), ServerMetrics(registry))  # type: ignore[arg-type]

    async def receive() -> Message:
        return next(waiting)

    async def send(message: Message) -> None:
        pass

    asyncio.run(surrounded({"type": "http", "headers": []}, receive, send))
    labels = {"route": "unmatched", "status": status}
    assert registry.get_sample_value("dualstream_server_requests_total", labels) == 1
