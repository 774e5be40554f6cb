"""What the service says where the language model's server fails: nothing of that server."""

from __future__ import annotations

import pytest

from recbole_llamarec.ranking.served.client import BadAnswerError, RefusedError, ServerError
from recbole_llamarec.ranking.served.server import MissingLabelsError
from recbole_llamarec.serve.errors import as_service_error


@pytest.mark.parametrize("kind", [ServerError, RefusedError, BadAnswerError, MissingLabelsError])
def test_it_is_no_fault_of_the_request(kind):
    told = as_service_error(kind("llm_http_url: http://inside:8000/v1 fails"))
    assert told.status == 500 and "inside" not in str(told)
