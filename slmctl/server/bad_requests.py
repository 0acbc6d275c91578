"""The error that refuses a request, for every module that reads a part of one."""

from __future__ import annotations


class BadRequestError(Exception):
    """A request that cannot be served: message, option at fault and status, in OpenAI's form."""

    def __init__(self, message: str, param: str = "", *, status: int = 400, code: str = "") -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code
