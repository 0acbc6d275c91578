"""The client of one OpenAI-compatible endpoint: addresses, and what it reads in a reply."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slmctl.errors import UsageError
from slmctl.network import endpoint_replies, openai_client
from slmctl.network.openai_client import EndpointClient

pytest.importorskip("httpx")


@pytest.mark.parametrize(
    ("logprobs", "confidence"),
    [
        ({"content": [{"logprob": -1.0}, {"logprob": -0.5}]}, pytest.approx(0.22313)),
        ({"content": [{"logprob": 3.0}]}, None),
        ({"content": [{"logprob": float("nan")}]}, None),
        ({"content": "x"}, None),
        ([3], None),
        (None, None),
    ],
)
def test_how_sure_an_endpoint_is(logprobs: Any, confidence: Any) -> None:
    choice = {"message": {"content": "yes"}, "finish_reason": "stop", "logprobs": logprobs}
    reply = endpoint_replies.read_reply(json.dumps({"choices": [choice]}).encode(), 0.1, 9)
    assert reply.confidence == confidence


# The address and the key


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("https://api.example.invalid", "https://api.example.invalid/v1/chat/completions"),
        ("https://api.example.invalid/v1/", "https://api.example.invalid/v1/chat/completions"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1/chat/completions"),
        (
            "https://a.invalid/openai/x/chat/completions",
            "https://a.invalid/openai/x/chat/completions",
        ),
    ],
)
def test_addresses(url: str, whole: str) -> None:
    assert openai_client.address(url) == whole


@pytest.mark.parametrize(
    "url",
    [
        "api.example.invalid/v1",
        "ftp://a.invalid",
        "https://",
        "https://me:pw@a.invalid/v1",
        "https://a.invalid/v1?k=1",
        "http://[::1",
        "http://a.invalid:99999/v1",
    ],
)
def test_an_address_that_cannot_be_used(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        EndpointClient(url, "large")
    assert "pw" not in caught.value.message + caught.value.hint
