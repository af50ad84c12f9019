"""The OpenAPI document: valid, complete, and true to what is answered."""

from __future__ import annotations

from typing import get_args

import jsonschema
import pytest
from openapi_spec_validator import validate

from runtime.dicom import KINDS, SEG_TYPES
from runtime.serve.models import DicomKind, JobOptions


@pytest.fixture
def running(serve):
    return serve()


@pytest.fixture
def document(running):
    return running.http.get("/openapi.json").json()


def test_it_is_valid_and_asks_for_the_token_everywhere_but_for_health(document):
    validate(document)
    assert document["security"] == [{"token": []}]
    open_routes = [
        path for path, routes in document["paths"].items() for r in routes.values() if r.get("security") == []
    ]
    assert open_routes == ["/health"]
    for path, methods in document["paths"].items():
        for route in methods.values():
            assert route["description"], path
            for status, answer in route["responses"].items():
                if int(status) >= 400 and path != "/health":
                    assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_every_field_that_is_not_plain_is_described(document):
    for name in ("Job", "JobError", "Limits", "PathRequest", "Progress"):
        fields = document["components"]["schemas"][name]["properties"]
        said = [field for field, schema in fields.items() if schema.get("description") or "$ref" in schema]
        assert len(said) >= len(fields) / 2, name
    form = document["paths"]["/v1/jobs/upload"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    path = document["components"]["schemas"]["PathRequest"]["properties"]
    assert set(form["properties"]) == {*path, "file", "name"} - {"path"}


def test_answers_are_what_it_says(running, document, scans):
    def check(name, value):
        jsonschema.validate(value, {"$ref": f"#/components/schemas/{name}", "components": document["components"]})

    check("Info", running.http.get("/v1/info").json())
    job = running.submitted(scans / "two.nii.gz")
    for _, told in running.events(job):
        check("Job", told)
    findings = running.http.get(f"/v1/jobs/{job}/findings").json()
    check("Findings", findings)
    check("JobList", running.http.get("/v1/jobs").json())
    check("Problem", running.http.get("/v1/jobs/none").json())
    del findings["vertebrae"][0]["centre_ras_mm"]
    with pytest.raises(jsonschema.ValidationError):
        check("Findings", findings)


def test_no_page_loads_anything_from_elsewhere(running):
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect", "/"):
        assert running.http.get(path).status_code == 404


def test_every_kind_and_encoding_that_the_commands_write_can_be_asked_for():
    assert get_args(DicomKind) == KINDS
    assert get_args(JobOptions.model_fields["seg_type"].annotation) == SEG_TYPES
