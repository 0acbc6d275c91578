"""The error that ends a request without an answer, for every module on a request's way."""

from __future__ import annotations

import math
from typing import Any


class RequestError(Exception):
    """A request that gets no answer, or no whole one.

    Attributes:
        message: The reason, for the client.
        param: The option at fault.
        status: The HTTP status, where no answer has begun yet.
        code: The reason in a word, such as `queue` or `engine_died`.
        retry_after_s: Whole seconds after which it is worth asking again, of a 429 or 503.
    """

    def __init__(
        self,
        message: str,
        param: str = "",
        *,
        status: int = 400,
        code: str = "",
        retry_after_s: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code
        self.retry_after_s = max(1, math.ceil(retry_after_s))


def kind_of(status: int) -> str:
    """OpenAI's word for an error of a status."""
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def error_body(
    message: str, kind: str, param: str = "", code: str = "", request_id: str = ""
) -> dict[str, Any]:
    """An error in OpenAI's form."""
    fields = {"message": message, "type": kind, "param": param or None, "code": code or None}
    return {"error": fields | ({"request_id": request_id} if request_id else {})}
