"""The HTTP interface: routes, what a request may hold, and how each refusal is worded.

Owns the wire format; OpenAPI describes it at /openapi.json. Never ranks anything: that is `serving.py`.
"""

import logging
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from feature_store.configuration import ServeSettings
from feature_store.errors import SettingsError, StoreError
from feature_store.schema import MAX_ID_CHARS
from index_refresher.limits import BodyLimit, RequestMetrics
from index_refresher.metrics import ServerMetrics
from index_refresher.serving import Answers, NotReadyError, Recommender

log = logging.getLogger(__name__)

_UNDECODABLE = "�"  # what a server puts for bytes of a path that are not UTF-8


class RecommendedItem(BaseModel):
    """One item. Scores compare within one answer: those of `popularity` are decayed counts of positives."""

    id: str
    score: float


class Recommendations(BaseModel):
    """What one user should be shown, best first, and what that is based on."""

    user_id: str
    items: list[RecommendedItem]
    source: Literal["model", "popularity"] = Field(
        description="popularity: nothing is known of this user, or the store is another than the "
        "generation was made of; these are the most popular items"
    )
    generation: str = Field(
        description="folder of the index and towers that were used: its number and commit"
    )
    commit: int = Field(description="the trainer's commit that the user's rows are of")
    watermark_ms: int = Field(description="event time up to which that commit knows everything")


class BatchRecommendations(BaseModel):
    """One answer per user asked for, in the order of the request."""

    recommendations: list[Recommendations]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


def check_user_id(user_id: str) -> str:
    """Return the ID as it is.

    Raises:
        ValueError: it is empty, too long, or holds characters that no ID has.
    """
    if not user_id:
        raise ValueError("the user ID is empty")
    if len(user_id) > MAX_ID_CHARS:
        raise ValueError(f"the user ID has {len(user_id)} characters; at most {MAX_ID_CHARS} are possible")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in user_id) or _UNDECODABLE in user_id:
        raise ValueError("the user ID holds control characters or is not UTF-8")
    return user_id


UserId = Annotated[str, AfterValidator(check_user_id)]


def create_app(
    recommender: Recommender, settings: ServeSettings, metrics: ServerMetrics, registry: CollectorRegistry
) -> FastAPI:
    """Return the application; the caller starts the reloader and the server.

    Raises:
        SettingsError: the default k is larger than the largest.
    """
    if settings.default_k > settings.max_k:
        raise SettingsError(
            f"serve.default_k = {settings.default_k} is larger than serve.max_k = {settings.max_k}"
        )
    # The interactive pages would load scripts from elsewhere; /openapi.json is enough.
    app = FastAPI(title="Dualstream", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestMetrics, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(NotReadyError, _not_ready)
    app.add_exception_handler(StoreError, _unreadable)
    app.add_exception_handler(Exception, _failed)
    _add_recommendations(app, recommender, settings)
    _add_operations(app, recommender, registry)
    return app


def _add_recommendations(app: FastAPI, recommender: Recommender, settings: ServeSettings) -> None:
    default_k, max_k = settings.default_k, settings.max_k
    refusals: dict[int | str, dict[str, Any]] = {
        422: {"model": Problem, "description": "A parameter is wrong"},
        503: {"model": Problem, "description": "No generation is loaded yet, or the store cannot be read"},
    }

    class Asked(BaseModel):
        """What the query of a request may hold."""

        model_config = ConfigDict(extra="forbid")

        k: Annotated[int, Field(ge=1, le=max_k, description="how many items")] = default_k

    class BatchRequest(BaseModel):
        """Users to answer for."""

        model_config = ConfigDict(strict=True, extra="forbid")

        user_ids: Annotated[list[UserId], Field(min_length=1, max_length=settings.max_batch_users)]
        k: Annotated[int, Field(ge=1, le=max_k)] = default_k

    @app.get("/v1/recommendations/{user_id:path}", responses=refusals, operation_id="recommend")
    def recommend(
        user_id: Annotated[UserId, Path(description=f"1 to {MAX_ID_CHARS} characters")],
        asked: Annotated[Asked, Query()],
    ) -> Recommendations:
        """Return what one user should be shown."""
        return _rendered(recommender.recommend([user_id], asked.k))[0]

    @app.post(
        "/v1/recommendations",
        responses={
            **refusals,
            400: {"model": Problem, "description": "The body is not JSON"},
            413: {"model": Problem, "description": "The body is too large"},
        },
        operation_id="recommend_batch",
    )
    def recommend_batch(request: BatchRequest) -> BatchRecommendations:
        """Return what each of several users should be shown."""
        return BatchRecommendations(
            recommendations=_rendered(recommender.recommend(request.user_ids, request.k))
        )


def _add_operations(app: FastAPI, recommender: Recommender, registry: CollectorRegistry) -> None:
    @app.head("/healthz", include_in_schema=False)  # as some load balancers ask
    @app.get("/healthz", operation_id="healthz")
    def healthz() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", responses={503: {"model": Problem}}, operation_id="readyz")
    def readyz() -> dict[str, str]:
        """Say whether recommendations can be answered; 503 with the reason until then."""
        reason = recommender.not_ready()
        if reason is not None:
            raise NotReadyError(reason)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, operation_id="metrics")
    def metrics() -> Response:
        """Return the Prometheus metrics."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _rendered(answers: Answers) -> list[Recommendations]:
    return [
        Recommendations(
            user_id=answer.user_id,
            items=[RecommendedItem(id=item_id, score=score) for item_id, score in answer.items],
            source="model" if answer.source == "model" else "popularity",
            generation=answers.generation,
            commit=answers.commit,
            watermark_ms=answers.watermark_ms,
        )
        for answer in answers.answers
    ]


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems: Sequence[dict[str, Any]] = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return _problem(400, "the body is not JSON")
    if request.method == "POST" and "json" not in request.headers.get("content-type", ""):
        return _problem(422, "the body is not taken for JSON: send the header Content-Type: application/json")
    return _problem(422, "; ".join(map(_described, problems[:3])))


def _described(problem: dict[str, Any]) -> str:
    place = ".".join(map(str, problem["loc"][1:])) or problem["loc"][0]
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    reasons = {
        400: "the body is not JSON",
        404: f"there is no {request.url.path[:200]!a}; /openapi.json lists what there is",
        405: f"{request.method} is not possible here; /openapi.json lists what is",
    }
    return _problem(error.status_code, reasons.get(error.status_code, error.detail), error.headers)


async def _not_ready(request: Request, error: Exception) -> JSONResponse:
    return _problem(503, str(error))


async def _unreadable(request: Request, error: Exception) -> JSONResponse:
    log.warning("answered 503: %s", error)
    return _problem(503, "the feature store cannot be read at the moment; the server's log says why")


async def _failed(request: Request, error: Exception) -> JSONResponse:
    """Answer a bug. The server logs it and closes the connection, which a client must not use again."""
    return _problem(500, "the server failed; its log says why", {"connection": "close"})


def _problem(status: int, detail: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers=headers)
