"""HTTP as clients meet it: a real server, answers in full, and a reason for every refusal."""

import json
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from feature_store.configuration import ServeSettings
from feature_store.errors import SettingsError, StoreError
from index_refresher.metrics import ServerMetrics
from index_refresher.service import create_app
from index_refresher.serving import Answer, Answers, NotReadyError

SETTINGS = ServeSettings(max_k=20, default_k=3, max_batch_users=4, max_body_bytes=2000)
JSON = {"content-type": "application/json"}


class FakeRecommender:
    """Gives k items to everyone; users named cold… are not known."""

    reason: str | None = None

    def not_ready(self) -> str | None:
        return self.reason

    def recommend(self, user_ids: Sequence[str], k: int) -> Answers:
        if self.reason is not None:
            raise NotReadyError(self.reason)
        if user_ids[0] in ("bug", "lost"):
            raise ZeroDivisionError if user_ids[0] == "bug" else StoreError("the view is lost")
        answers = [
            Answer(user, [(f"i{n}", 1.5 - n) for n in range(k)], "popularity" if "cold" in user else "model")
            for user in user_ids
        ]
        return Answers(answers, "00000007-41", 42, 1_700_000_000_000)


class Shop:
    """A client, and what stands behind the server."""

    def __init__(self, url: str, recommender: FakeRecommender, registry: CollectorRegistry) -> None:
        self.client = httpx.Client(base_url=url, timeout=10)
        self.recommender = recommender
        self.registry = registry

    def count(self, route: str, status: int) -> float:
        labels = {"route": route, "status": str(status)}
        return self.registry.get_sample_value("dualstream_server_requests_total", labels) or 0


@pytest.fixture(scope="module")
def running() -> Iterator[Shop]:
    registry = CollectorRegistry()
    recommender = FakeRecommender()
    app = create_app(recommender, SETTINGS, ServerMetrics(registry), registry)  # type: ignore[arg-type]
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    shop = Shop(f"http://127.0.0.1:{listener.getsockname()[1]}", recommender, registry)
    yield shop
    shop.client.close()
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture
def shop(running: Shop) -> Iterator[Shop]:
    yield running
    running.recommender.reason = None


def _one(user: str, k: int, source: str = "model") -> dict[str, Any]:
    return {
        "user_id": user,
        "items": [{"id": f"i{n}", "score": 1.5 - n} for n in range(k)],
        "source": source,
        "generation": "00000007-41",
        "commit": 42,
        "watermark_ms": 1_700_000_000_000,
    }


@pytest.mark.parametrize(
    ("path", "user", "k"),
    [
        ("u1?k=2", "u1", 2),
        ("u1", "u1", 3),
        ("u1?k=20", "u1", 20),
        ("a%2Fb/c%20d%3F", "a/b/c d?", 3),
        ("%F0%9F%98%80", "😀", 3),
        ("x" * 128, "x" * 128, 3),
    ],
)
def test_get_answers_one_user_whatever_the_id(shop: Shop, path: str, user: str, k: int) -> None:
    answer = shop.client.get(f"/v1/recommendations/{path}")
    assert (answer.status_code, answer.json()) == (200, _one(user, k))


def test_post_answers_several_users_in_order(shop: Shop) -> None:
    answer = shop.client.post("/v1/recommendations", json={"user_ids": ["u2", "cold", "u2"], "k": 1})
    assert answer.status_code == 200
    assert answer.json() == {"recommendations": [_one("u2", 1), _one("cold", 1, "popularity"), _one("u2", 1)]}
    default = shop.client.post("/v1/recommendations", json={"user_ids": ["u2"]}).json()
    assert default == {"recommendations": [_one("u2", 3)]}


POST_BATCH = "POST /v1/recommendations"
REFUSED: list[tuple[str, bytes | None, int, str]] = [
    ("GET /v1/recommendations/", None, 422, "user ID is empty"),
    ("GET /v1/recommendations/" + "x" * 129, None, 422, "has 129 characters; at most 128"),
    ("GET /v1/recommendations/a%00b", None, 422, "control characters"),
    ("GET /v1/recommendations/a%0Ab", None, 404, "there is no"),  # no route spans lines
    ("GET /v1/recommendations/a%1Bb", None, 422, "control characters"),
    ("GET /v1/recommendations/a%C2%85b", None, 422, "control characters"),
    ("GET /v1/recommendations/%FF", None, 422, "not UTF-8"),
    ("GET /v1/recommendations/u?k=0", None, 422, "k: Input should be greater than or equal to 1"),
    ("GET /v1/recommendations/u?k=-1", None, 422, "k: Input should be greater than or equal to 1"),
    ("GET /v1/recommendations/u?k=21", None, 422, "k: Input should be less than or equal to 20"),
    ("GET /v1/recommendations/u?k=" + "9" * 5000, None, 422, "k: Unable to parse"),
    ("GET /v1/recommendations/u?k=ten", None, 422, "k: Input should be a valid integer"),
    ("GET /v1/recommendations/u?k=", None, 422, "k: Input should be a valid integer"),
    ("GET /v1/recommendations/u?k=nan", None, 422, "k: Input should be a valid integer"),
    ("GET /v1/recommendations/u?K=3", None, 422, "K: Extra inputs are not permitted"),
    ("GET /v1/recommendations", None, 405, "GET is not possible here"),
    ("DELETE /v1/recommendations/u", None, 405, "DELETE is not possible here"),
    ("PUT /healthz", None, 405, "PUT is not possible here"),
    ("GET /", None, 404, "there is no '/'"),
    ("GET /v2/recommendations/u", None, 404, "there is no '/v2/recommendations/u'"),
    ("GET /docs", None, 404, "there is no '/docs'"),
    (POST_BATCH, b"", 422, "Field required"),
    (POST_BATCH, b"{", 400, "not JSON"),
    (POST_BATCH, b"\xff\xfe", 400, "not JSON"),
    (POST_BATCH, b'{"user_ids": ["u"], "k": ' + b"9" * 1900 + b"}", 422, "k: "),
    (POST_BATCH, b"[" * 1900, 400, "not JSON"),
    (POST_BATCH, b"null", 422, ""),
    (POST_BATCH, b"[]", 422, ""),
    (POST_BATCH, b'"u"', 422, ""),
    (POST_BATCH, b"{}", 422, "user_ids: Field required"),
    (POST_BATCH, b'{"user_ids": []}', 422, "user_ids: List should have at least 1 item"),
    (POST_BATCH, b'{"user_ids": ["a","b","c","d","e"]}', 422, "user_ids: List should have at most 4 items"),
    (POST_BATCH, b'{"user_ids": "u"}', 422, "user_ids: Input should be a valid list"),
    (POST_BATCH, b'{"user_ids": {"u": 1}}', 422, "user_ids: Input should be a valid list"),
    (POST_BATCH, b'{"user_ids": ["u", 5]}', 422, "user_ids.1: Input should be a valid string"),
    (POST_BATCH, b'{"user_ids": [null]}', 422, "user_ids.0: Input should be a valid string"),
    (POST_BATCH, b'{"user_ids": ["u", ""]}', 422, "user_ids.1: the user ID is empty"),
    (POST_BATCH, b'{"user_ids": ["' + b"x" * 129 + b'"]}', 422, "user_ids.0: the user ID has 129"),
    (POST_BATCH, b'{"user_ids": ["a\\u0007"]}', 422, "user_ids.0: the user ID holds control"),
    (POST_BATCH, b'{"user_ids": ["\\ud800"]}', 422, "user_ids.0: "),
    (POST_BATCH, b'{"user_ids": ["u"], "k": 0}', 422, "k: Input should be greater than or equal to 1"),
    (POST_BATCH, b'{"user_ids": ["u"], "k": 21}', 422, "k: Input should be less than or equal to 20"),
    (POST_BATCH, b'{"user_ids": ["u"], "k": "3"}', 422, "k: Input should be a valid integer"),
    (POST_BATCH, b'{"user_ids": ["u"], "k": true}', 422, "k: Input should be a valid integer"),
    (POST_BATCH, b'{"user_ids": ["u"], "k": 2.5}', 422, "k: Input should be a valid integer"),
    (POST_BATCH, b'{"user_ids": ["u"], "k": null}', 422, "k: Input should be a valid integer"),
    (POST_BATCH, b'{"user_ids": ["u"], "k": NaN}', 422, "k: "),
    (POST_BATCH, b'{"user_ids": ["u"], "n": 1}', 422, "n: Extra inputs are not permitted"),
    (POST_BATCH, b'{"user_ids": ["' + b"x" * 2000 + b'"]}', 413, "at most 2000 are accepted"),
]


@pytest.mark.parametrize(
    ("request_line", "body", "status", "reason"), REFUSED, ids=[f"{c[2]}-{n}" for n, c in enumerate(REFUSED)]
)
def test_bad_requests_are_refused_with_a_reason(
    shop: Shop, request_line: str, body: bytes | None, status: int, reason: str
) -> None:
    method, path = request_line.split(" ")
    answer = shop.client.request(method, path, content=body, headers=JSON if body is not None else None)
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert detail
    assert reason in detail
    assert len(detail) < 1000


def test_a_body_that_does_not_say_it_is_json_is_refused(shop: Shop) -> None:
    answer = shop.client.post("/v1/recommendations", content=b'{"user_ids": ["u"]}')
    assert (answer.status_code, "Content-Type: application/json" in answer.json()["detail"]) == (422, True)


def test_a_streamed_body_is_cut_off_where_it_gets_too_large(shop: Shop) -> None:
    """No content-length: it counts what arrives."""
    large = (b'{"user_ids": ["' + b"x" * 700 for _ in range(3))
    answer = shop.client.post("/v1/recommendations", content=large, headers=JSON)
    assert (answer.status_code, "at most 2000" in answer.text) == (413, True)
    pieces = (piece for piece in (b'{"user_ids":', b' ["u"], ', b'"k": 1}'))
    answer = shop.client.post("/v1/recommendations", content=pieces, headers=JSON)
    assert (answer.status_code, answer.json()["recommendations"]) == (200, [_one("u", 1)])


@pytest.mark.parametrize("num_bytes", [2_100, 1_000_000_000])
def test_a_body_far_too_large_is_refused_before_it_comes_others_after(shop: Shop, num_bytes: int) -> None:
    with socket.create_connection((shop.client.base_url.host, shop.client.base_url.port or 0), 10) as raw:
        raw.sendall(b"POST /v1/recommendations HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % num_bytes)
        if num_bytes < 10_000:
            assert not select.select([raw], [], [], 0.3)[0]
            raw.sendall(b"x" * num_bytes)
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_bug_is_a_500_that_is_counted(shop: Shop) -> None:
    before = shop.count("/v1/recommendations/{user_id:path}", 500)
    answer = shop.client.get("/v1/recommendations/bug")
    assert (answer.status_code, answer.headers["connection"]) == (500, "close")
    assert shop.count("/v1/recommendations/{user_id:path}", 500) == before + 1
    assert shop.client.get("/v1/recommendations/lost").status_code == 503


def test_until_ready_everything_but_health_answers_503_with_the_reason(shop: Shop) -> None:
    shop.recommender.reason = "no generation yet"
    for path in ("/readyz", "/v1/recommendations/u"):
        answer = shop.client.get(path)
        assert (answer.status_code, answer.json()) == (503, {"detail": "no generation yet"})
    batch = shop.client.post("/v1/recommendations", json={"user_ids": ["u"]})
    assert (batch.status_code, batch.json()) == (503, {"detail": "no generation yet"})
    assert shop.client.get("/healthz").json() == {"status": "ok"}
    assert [shop.client.head(path).status_code for path in ("/healthz", "/readyz")] == [200, 503]
    shop.recommender.reason = None
    ready = shop.client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


def test_requests_are_counted_by_route_never_by_path(shop: Shop) -> None:
    route = "/v1/recommendations/{user_id:path}"
    before = [shop.count(route, 200), shop.count(route, 422), shop.count("unmatched", 404)]
    for path in (
        "/v1/recommendations/a",
        "/v1/recommendations/b",
        "/v1/recommendations/c?k=0",
        "/x",
        "/y",
        "/z",
    ):
        shop.client.get(path)
    after = [shop.count(route, 200), shop.count(route, 422), shop.count("unmatched", 404)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 1, 3]
    text = shop.client.get("/metrics").text
    assert f'dualstream_server_requests_total{{route="{route}",status="200"}}' in text
    assert "dualstream_server_request_seconds_bucket" in text
    assert "/x" not in text


def test_openapi_describes_both_ways_to_ask_and_their_bounds(shop: Shop) -> None:
    described = shop.client.get("/openapi.json").json()
    get = described["paths"]["/v1/recommendations/{user_id}"]["get"]
    k = next(parameter for parameter in get["parameters"] if parameter["name"] == "k")
    assert (k["schema"]["minimum"], k["schema"]["maximum"], k["schema"]["default"]) == (1, 20, 3)
    batch = described["components"]["schemas"]["BatchRequest"]["properties"]
    assert batch["user_ids"]["maxItems"] == 4
    assert set(described["paths"]["/v1/recommendations"]["post"]["responses"]) == {
        "200",
        "400",
        "413",
        "422",
        "503",
    }
    assert json.dumps(described)


def test_a_default_k_beyond_the_largest_is_refused() -> None:
    registry = CollectorRegistry()
    with pytest.raises(SettingsError, match=r"serve\.default_k = 50 is larger than serve\.max_k = 10"):
        create_app(None, ServeSettings(max_k=10), ServerMetrics(registry), registry)  # type: ignore[arg-type]


def test_answers_come_while_another_is_being_made(shop: Shop) -> None:
    """Endpoints run in threads: a slow one holds nobody up."""
    slow = threading.Event()
    real = FakeRecommender.recommend
    begun = threading.Event()

    def recommend(self: FakeRecommender, user_ids: Sequence[str], k: int) -> Answers:
        if "slow" in user_ids:
            begun.set()
            assert slow.wait(10)
        return real(self, user_ids, k)

    FakeRecommender.recommend = recommend  # type: ignore[method-assign]
    try:
        asking = threading.Thread(target=shop.client.get, args=("/v1/recommendations/slow",))
        asking.start()
        assert begun.wait(10)
        started_s = time.monotonic()
        assert shop.client.get("/v1/recommendations/quick").status_code == 200
        assert time.monotonic() - started_s < 5
        slow.set()
        asking.join()
    finally:
        FakeRecommender.recommend = real  # type: ignore[method-assign]
