"""What the prediction server is asked, as FastAPI knows it: predict requests come here when they are not as usual."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.bodies import body_schema, json_body
from api.serve import metrics, schema, siblings
from api.serve.answering import answer
from api.serve.door import PREDICT_BYTES
from api.serve.fleet import Fleet, StatusView
from api.serve.requests import PredictAnswer, PredictRequest

router = APIRouter()


def fleet(request: Request) -> Fleet:
    found: Fleet = request.app.state.fleet
    return found


async def everyone(request: Request) -> list[siblings.Told | None]:
    """What each process of this server says of itself."""
    ours: siblings.Siblings = request.app.state.siblings
    return await ours.heard(told(request.app))


def told(app: FastAPI) -> siblings.Told:
    """What this process says of itself."""
    status: StatusView = app.state.fleet.status()
    place = app.state.siblings.place
    samples = app.state.measures.samples(place) | metrics.served(status, place)
    return {"status": status.model_dump(mode="json"), "samples": samples}


Serving = Annotated[Fleet, Depends(fleet)]
Everyone = Annotated[list[siblings.Told | None], Depends(everyone)]
Body = Annotated[PredictRequest, Depends(json_body(PredictRequest, PREDICT_BYTES))]
Project = Annotated[str, Query(max_length=63)]

_BODY = body_schema(
    PredictRequest,
    {"row": {"age": 41, "purpose": "car"}, "key": "a-1", "event_time": "2026-11-24T12:00:00Z"},
    {"rows": [{"age": 41, "purpose": "car"}, {"age": None, "purpose": "house"}]},
)


@router.get("/healthz", include_in_schema=False)
async def healthz() -> dict[str, str]:  # not in a thread: it answers while all threads are taken
    """The process answers."""
    return {"status": "ok"}


@router.get("/status")
async def status(found: Everyone) -> StatusView:
    """What answers for each model, and what was refused."""
    views = [StatusView.model_validate(each["status"]) if each else None for each in found]
    return siblings.together(views)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def measured(found: Everyone) -> Response:
    """Requests, their time and what is served, of every process, in the text format of Prometheus."""
    return Response(metrics.text(each["samples"] for each in found if each), media_type=metrics.MEDIA_TYPE)


@router.get("/models/{model}/schema")
def described(model: str, serving: Serving, project: Project = "default") -> schema.SchemaView:
    """The columns that the released version takes, as JSON Schema with a row that is answered, and what it answers."""
    served = serving.get((project, model))
    return schema.view(model, served.route.version, served.signature)


@router.post("/models/{model}/predict", openapi_extra=_BODY, response_model=PredictAnswer)
async def predict(model: str, serving: Serving, body: Body, project: Project = "default") -> Response:
    """Answer one row or up to 10,000. Errors name the field; an answer that cannot be logged is not given."""
    return await _answered(serving, project, model, body)


@router.post("/projects/{project}/models/{model}/predict", openapi_extra=_BODY, response_model=PredictAnswer)
async def predict_of_project(project: str, model: str, serving: Serving, body: Body) -> Response:
    """The same, with the project in the address."""
    return await _answered(serving, project, model, body)


async def _answered(serving: Fleet, project: str, model: str, body: PredictRequest) -> Response:
    data = await run_in_threadpool(answer, serving, (project, model), body, uuid.uuid4().hex)
    return Response(data, media_type="application/json")
