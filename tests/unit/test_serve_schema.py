"""What a model takes, as JSON Schema: its example fits and is answered, and it says what null means."""

import json
import re

import jsonschema
import pytest

from api import serve
from api.serve import schema as schemas
from everloop.records import Field, Signature
from everloop.settings import SERVE
from tests import api_parts as parts
from tests import serve_corpus as corpus

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    settings = corpus.deployment(tmp_path_factory.mktemp("schema"))
    with (
        parts.running(serve.create_app(settings), settings.port(SERVE)) as url,
        parts.client_of(settings, url) as client,
    ):
        yield client


@pytest.mark.parametrize("model", list(corpus.models()))
def test_the_example_fits_the_schema_and_is_answered(client, model):
    schema = client.get(f"/models/{model}/schema").json()
    checked = jsonschema.Draft202012Validator(schema)
    (example,) = schema["examples"]

    jsonschema.Draft202012Validator.check_schema(schema)
    checked.validate(example)
    checked.validate(dict.fromkeys(schema["required"]))
    for name, described in schema["properties"].items():
        for value in described.get("examples", ()):
            checked.validate(example | {name: value})
    assert client.post(f"/models/{model}/predict", json={"row": example}).status_code == 200


@pytest.mark.parametrize("model", list(corpus.models()))
def test_what_the_schema_refuses_is_refused_and_what_is_answered_fits_it(client, model):
    checked = jsonschema.Draft202012Validator(client.get(f"/models/{model}/schema").json())
    recorded = [case for case in corpus.cases() if case.name.startswith(f"{model} row ")]
    answers = {case.name: client.post(f"/models/{model}/predict", content=case.body, headers=JSON) for case in recorded}

    answered = [case for case in recorded if answers[case.name].status_code == 200]
    assert len(answered) > 2
    for case in answered:
        row = json.loads(case.body)["row"]
        assert checked.is_valid(row), (case, list(checked.iter_errors(row)))
    assert not checked.is_valid({"nobody knows this": 1})


def test_the_words_of_the_signature_are_still_there(client):
    found = client.get("/models/kinds/schema").json()

    assert Signature.model_validate(found) == corpus.models()["kinds"][1]
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert found["additionalProperties"] is False
    assert "since" not in found["required"]  # the event time stands in for it


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (Field(name="a", kind="number"), "null: not known"),
        (Field(name="a", kind="number", nullable=False, usual=41.5), "is answered as 41.5, the median there"),
        (Field(name="a", kind="boolean", nullable=False, usual=1.0), "is answered as true, the median there"),
        (Field(name="a", kind="datetime", nullable=False, usual=0.0), "is answered as 1970-01-01T00:00:00+00:00"),
        (Field(name="a", kind="category", nullable=False), "the model has learned nothing about it"),
    ],
)
def test_null_is_told_also_for_a_column_that_never_had_one(field, said):
    signature = Signature(task="regression", fields=(field,), target="y")

    described = schemas.view("m", 1, signature).properties["a"]["description"]

    assert said in described


def test_openapi_holds_all_that_it_refers_to(client):
    document = client.get("/openapi.json").json()

    known = document["components"]["schemas"]
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert referred <= known.keys()
    assert {"/metrics", "/models/{model}/schema", "/models/{model}/predict"} <= document["paths"].keys()
