"""Ask `slmctl serve` from a program: one file, the standard library alone, made to be copied.

    from client import Client
    desk = Client("http://127.0.0.1:8080", key=os.environ.get("DESK_KEY"))
    answer = desk.ask("the parcel was due on friday")
    if answer.confidence is not None and answer.confidence < 0.8:
        ...                                        # let a person decide

As a program it answers one text a line, several at a time, and writes JSON lines in the same order:

    python client.py --url http://127.0.0.1:8080 --key-env DESK_KEY < texts.txt > answers.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any

AGAIN = (429, 502, 503, 504)  # what may pass if it is asked again
ATTEMPTS = 5
LONGEST_WAIT_S = 30.0


class AskError(Exception):
    """The server has no answer to this text; the message is its own."""


@dataclass(frozen=True)
class Answer:
    """An answer and what the server says of it: how sure the
    model is, which one answered and why.
    """

    text: str
    confidence: float | None
    route: str | None
    reason: str | None
    finish: str

    @property
    def fields(self) -> Any:
        """The values in an answer of an `extract` model."""
        return json.loads(self.text)


class Client:
    """A model behind an address.

    Args:
        url: Where `slmctl serve` says it is, such as `http://127.0.0.1:8080`.
        key: The API key, where the server wants one.
        timeout_s: For one attempt.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 60.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"'{url}' is no http address")  # urllib would open file:// too
        self.url, self.timeout_s = url.rstrip("/").removesuffix("/v1"), timeout_s
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )

    def ask(self, text: str, *, sensitive: bool = False, **options: Any) -> Answer:
        """The answer to one text; a sensitive one is never handed on to a general model.

        Raises:
            AskError: The server refuses it, or cannot be reached after several attempts.
        """
        with self._post(text, sensitive, options) as response:
            body = json.load(response)
        choice, extra = body["choices"][0], body.get("slmctl", {})
        return Answer(
            choice["message"]["content"],
            extra.get("confidence"),
            extra.get("route"),
            extra.get("reason"),
            choice["finish_reason"],
        )

    def stream(self, text: str, *, sensitive: bool = False, **options: Any) -> Iterator[str]:
        """The pieces of an answer as they come.

        Raises:
            AskError: As `ask`, or the answer broke off.
        """
        with self._post(text, sensitive, {**options, "stream": True}) as response:
            for line in response:
                data = line.decode().strip().removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if data:
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise AskError(chunk["error"]["message"])
                    yield from (choice["delta"].get("content", "") for choice in chunk["choices"])
        raise AskError("the answer broke off")

    def ask_all(
        self, texts: Iterable[str], *, together: int = 8, **options: Any
    ) -> Iterator[Answer | AskError]:
        """The answers to many texts, in order, `together` at a time;
        one that fails does not end the others.
        """

        def one(text: str) -> Answer | AskError:
            try:
                return self.ask(text, **options)
            except AskError as error:
                return error

        with ThreadPoolExecutor(together) as pool:
            yield from pool.map(one, texts)

    def _post(self, text: str, sensitive: bool, options: dict[str, Any]) -> HTTPResponse:
        body = json.dumps({"messages": [{"role": "user", "content": text}], **options}).encode()
        headers = self._headers | ({"X-Slmctl-Sensitive": "true"} if sensitive else {})
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", body, headers)
        problem = ""
        for attempt in range(ATTEMPTS):
            wait = min(0.5 * 2**attempt, LONGEST_WAIT_S)
            try:
                response: HTTPResponse = urllib.request.urlopen(request, timeout=self.timeout_s)
                return response
            except urllib.error.HTTPError as error:
                with error:
                    problem = _message(error)
                    if error.code not in AGAIN:
                        raise AskError(problem) from None
                    asked = error.headers.get("Retry-After", "")
                    wait = min(float(asked), LONGEST_WAIT_S) if asked.isdigit() else wait
            except (OSError, HTTPException) as error:
                problem = f"{self.url} cannot be reached: {error}"
            if attempt < ATTEMPTS - 1:
                time.sleep(wait)
        raise AskError(problem)


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says, in OpenAI's form, or its status."""
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}"


def main() -> int:
    """Answer the lines of standard input; 1 if any has no answer."""
    parser = argparse.ArgumentParser(
        description="Answer one text a line; JSON lines come out, in the same order."
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where slmctl serve is")
    parser.add_argument(
        "--key-env", metavar="NAME", help="environment variable that holds the API key"
    )
    parser.add_argument(
        "--together", type=int, default=8, help="texts that are asked at the same time"
    )
    parser.add_argument(
        "--sensitive", action="store_true", help="keep all of them from any general model"
    )
    given = parser.parse_args()
    client = Client(given.url, os.environ[given.key_env] if given.key_env else None)
    texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    failed = 0
    for text, found in zip(
        texts,
        client.ask_all(texts, together=given.together, sensitive=given.sensitive),
        strict=True,
    ):
        failed += isinstance(found, AskError)
        said = {"error": str(found)} if isinstance(found, AskError) else dataclasses.asdict(found)
        sys.stdout.write(json.dumps({"input": text, **said}, ensure_ascii=False) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
