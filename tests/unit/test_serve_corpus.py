"""Answers, errors and log lines are what they were when every request went through FastAPI, byte by byte."""

import json

import pytest

from api import serve
from everloop.settings import SERVE
from tests import api_parts as parts
from tests import serve_corpus as corpus


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = corpus.deployment(tmp_path_factory.mktemp("corpus"))
    with parts.running(serve.create_app(settings), settings.port(SERVE)):
        yield settings


def test_every_recorded_request_is_answered_with_the_same_bytes(server):
    recorded = json.loads(corpus.RECORDED.read_text())

    found = {case.name: corpus.ask(server, case) for case in corpus.cases()}

    assert found.keys() == recorded.keys() - {"openapi"}
    differ = {name: (each, recorded[name]) for name, each in found.items() if each != recorded[name]}
    assert not differ, f"{len(differ)} differ, for instance {next(iter(differ.items()))}"


def test_openapi_says_the_same_of_predictions(server):
    recorded = json.loads(corpus.RECORDED.read_text())["openapi"]
    with parts.client_of(server, server.serve_url) as client:
        found = client.get("/openapi.json").json()

    for path in recorded["paths"]:
        if path.endswith(("/predict", "/status")):
            assert found["paths"][path] == recorded["paths"][path]
    for name in ("PredictAnswer", "ServedView", "StatusView"):
        assert found["components"]["schemas"][name] == recorded["components"]["schemas"][name]
