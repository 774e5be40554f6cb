"""Made-up requests over the service's own OpenAPI document: never a 500, answers as documented."""

from __future__ import annotations

import json

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from running_service import Running, run
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

ANSWERS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]
FEW = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def small_pools(recommender):
    """A service whose pools fit one prompt, so that one is told whenever it is asked for."""
    running = run(recommender, max_candidates=8)
    yield running
    running.stop()


def document_of(running: Running, known: list[str] | None = None):
    """The service's document; with ``known`` item tokens, no others are made up."""
    document = running.client.get("/openapi.json").json()
    if known is not None:
        properties = document["components"]["schemas"]
        for name in ("RecommendRequest", "RankRequest"):
            properties[name]["properties"]["history"]["items"]["enum"] = known
        (token, _) = properties["RankRequest"]["properties"]["candidates"]["items"]["oneOf"]
        assert token["type"] == "string"
        token["enum"] = known
        (_, tokens) = properties["RerankRequest"]["properties"]["query"]["oneOf"]
        tokens["items"]["enum"] = known
        properties["ItemDocument"]["properties"]["item"]["enum"] = known
    loaded = schemathesis.openapi.from_dict(document)
    loaded.config.update(base_url=running.url)
    return loaded


@pytest.fixture
def as_it_is(service):
    return document_of(service)


@pytest.fixture
def of_known_items(small_pools, recommender):
    return document_of(small_pools, recommender.tokens[1:].tolist())


def requests(document, *modes: GenerationMode):
    """Requests to all routes of a document, right or wrong ones."""
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) == 7
    return st.one_of(
        [one.as_strategy(generation_mode=mode) for one in operations for mode in modes]
    )


def test_anything_gets_a_documented_answer(as_it_is):
    @given(case=requests(as_it_is, GenerationMode.POSITIVE, GenerationMode.NEGATIVE))
    @FEW
    def answered(case):
        case.call_and_validate(checks=ANSWERS)

    answered()


def test_what_is_right_is_answered(of_known_items):
    @given(case=requests(of_known_items, GenerationMode.POSITIVE))
    @FEW
    def answered(case):
        case.call_and_validate(checks=[*ANSWERS, checks.positive_data_acceptance])

    answered()


def test_the_document_states_the_limits(service):
    schemas = service.client.get("/openapi.json").json()["components"]["schemas"]
    recommend, rank = schemas["RecommendRequest"], schemas["RankRequest"]
    rerank = schemas["RerankRequest"]
    assert recommend["properties"]["history"]["maxItems"] == 500
    assert recommend["properties"]["k"]["maximum"] == 60  # items of the catalogue
    assert rank["properties"]["candidates"]["maxItems"] == 100
    assert rerank["properties"]["documents"]["maxItems"] == 100
    assert recommend["required"] == ["history"]
    assert rerank["required"] == ["query", "documents"]
    assert "HTTPValidationError" not in json.dumps(schemas)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_name_no_other_host(service, path):
    answer = httpx2.get(service.url + path)
    assert "http://" not in answer.text and "https://" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
