"""Options of containers: names and values of the Docker SDK."""

from __future__ import annotations

import pytest

from prebake.errors import ConfigError
from prebake_build.measure.container_options import merged


def test_values_are_json_or_text_and_lists_add_up() -> None:
    assert merged([
        "mem_limit=2g", "read_only=false", "environment=A=1", "environment=B=x=y", "volumes=/data:/data:ro",
        'cap_add=["NET_ADMIN", "SYS_TIME"]',
    ]) == {
        "mem_limit": "2g", "read_only": False, "environment": ["A=1", "B=x=y"], "volumes": ["/data:/data:ro"],
        "cap_add": ["NET_ADMIN", "SYS_TIME"],
    }  # fmt: skip
    assert merged(['environment={"A": "1"}', 'environment={"B": "2"}']) == {"environment": {"A": "1", "B": "2"}}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["mem"], '--docker-option: expected NAME=VALUE, such as mem_limit=2g, found "mem"'),
        (["mem-limit=2g"], '--docker-option: expected NAME=VALUE, such as mem_limit=2g, found "mem-limit=2g"'),
        (["ports={}"], "--docker-option: ports is set by `prebake measure` itself"),
        (['environment={"A": "1"}', "environment=B=2"],
         "--docker-option: environment is given as a table and as a list: give it in one way"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        merged(texts)
    assert str(caught.value) == message
