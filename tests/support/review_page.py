"""The page of slmctl review in a thread of the test, and a person at its keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slmctl.production.review.page import Desk
from support import here
from support.browser import Browser


@contextmanager
def served(desk: Desk[Any]) -> Iterator[str]:
    """The address of a desk's page, with the token."""
    with here.listening(desk.app()) as url:
        yield f"{url}/#{desk.token}"


def visit(browser: Browser, url: str, **how: Any) -> None:
    """Open the page and wait for the first row."""
    browser.open("about:blank")
    browser.open(url, **how)
    settle(browser)


def settle(browser: Browser) -> None:
    browser.wait(
        "!document.body.hasAttribute('aria-busy') && !document.getElementById('desk').hidden"
    )


def press(browser: Browser, *keys: str) -> None:
    """Press keys one after the other, each when the page has answered the last."""
    for key in keys:
        browser.press(key)
        settle(browser)


def text_of(browser: Browser, selector: str = "main") -> str:
    return str(browser.ask(f"document.querySelector({json.dumps(selector)}).innerText"))
