"""Ask for the right model of one `slmctl serve`: a classify release names it first, then that one
answers.

The labels of the first release are names of the server's other models, and `none` for a text that
is for none of them.

    python choose_model.py --first which "where is my parcel?"
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from typing import Any

SURE = 0.8  # least confidence in a name


def ask(url: str, model: str, text: str) -> tuple[str, float | None]:
    """The answer of a model, and its confidence."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()
    request = urllib.request.Request(
        f"{url}/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer["choices"][0]["message"]["content"], answer["slmctl"].get("confidence")


def choose(url: str, first: str, text: str, *, sure: float = SURE) -> tuple[str, str | None]:
    """The name of the model that a text is for, and its answer;
    `none` and None where no name is sure.
    """
    name, confidence = ask(url, first, text)
    if name == "none" or (confidence is not None and confidence < sure):
        return "none", None
    return name, ask(url, name, text)[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Ask for the right model of one server.")
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1", help="where slmctl serve is")
    parser.add_argument("--first", required=True, help="the model that names the others")
    parser.add_argument("text")
    given = parser.parse_args()
    name, answer = choose(given.url, given.first, given.text)
    sys.stdout.write(f"{name}: {answer}\n")
