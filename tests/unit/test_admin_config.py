"""What an admin client may be given."""

from __future__ import annotations

from typing import Any

import pytest

from logstore import Admin, AsyncAdmin
from logstore.errors import ConfigurationError


@pytest.mark.parametrize("client", [Admin, AsyncAdmin])
@pytest.mark.parametrize(
    ("options", "said", "advice"),
    [
        ({"bootstrap_servers": "localhost:9092"}, "no option 'bootstrap_servers'", "DSN"),
        ({"request_timeout": 100}, "no option 'request_timeout'", "Did you mean 'request_timeout_ms'?"),
        ({"request_timeout_ms": 0}, "request_timeout_ms is an integer from 1", ""),
        ({"schema": ""}, "schema is a string", ""),
    ],
)
def test_options_that_do_not_fit_are_refused(
    client: type[Any], options: dict[str, Any], said: str, advice: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        client("postgresql://nowhere.invalid/", **options)
    assert advice in caught.value.advice
