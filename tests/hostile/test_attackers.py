"""An attacker's list: values in unusual dress, and their harmless look-alikes; then what comes to
the veto, feedback, review, `trace --forget`, keys and a teacher's labels.

Values are those that issuers keep for examples; keys are put together here, so that no scanner
takes them for real.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from support import here, production, tiny
from support.endpoint import streams
from support.serving import LOCAL, chat

from slmctl import sensitive
from slmctl.config import CollectConfig
from slmctl.errors import UsageError
from slmctl.production.collector import MOST_WORDS
from slmctl.production.forgetting import search
from slmctl.production.review.page import ReviewDesk
from slmctl.production.review.review_rows import ReviewRow
from slmctl.production.review.session import ReviewSession
from slmctl.sensitive import conversation_veto, search_process
from slmctl.server import api_keys
from slmctl.server.api_keys import KeyRing
from slmctl.task import untuned_prompt
from slmctl.task.contract import Task

MAIL, CARD, IBAN, PHONE = (
    "jane.doe@example.org",
    "4111111111111111",
    "DE89370400440532013000",
    "442079460958",
)
WORD = "hunter2" + "x"


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches in this process: what is found is the same, and no process has to start."""
    monkeypatch.setattr(
        search_process, "find", lambda texts, **_: [sensitive.find(text) for text in texts]
    )


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def bold(text: str) -> str:
    """Digits as mathematical ones, as JSON writers escape them: in two halves each."""
    return json.dumps(
        "".join(chr(0x1D7CE + int(char)) if char.isdigit() else char for char in text)
    )


HIDDEN = (  # kind, text
    # other languages
    *(
        ("secret", f"{name} {WORD}")
        for name in (
            "mot de passe :",
            "пароль:",
            "密码：",
            "パスワード:",
            "비밀번호:",
            "كلمة المرور:",
            "סיסמה:",
            "şifre:",
            "lösenord:",
            "salasana:",
            "heslo:",
            "jelszó:",
            "adgangskode:",
            "contraseña es",
            "mot de passe est",
        )
    ),
    ("secret", "Ihr Code lautet: 482913"),
    ("secret", "votre code est 482 913"),
    ("secret", "482913 is your login code"),
    ("secret", "PUK: 12345678"),
    ("secret", "Sicherheitscode 482-913"),
    ("secret", "código de verificación: 482913"),
    ("phone", f"手机：{PHONE}"),
    ("phone", f"телефон {PHONE}"),
    ("phone", f"cellulare: {PHONE}"),
    # code, commands, configurations
    ("secret", f"curl -u jane:{WORD} https://x.test"),
    ("secret", f"docker login -u jane -p {WORD} x.test"),
    ("secret", f"define('DB_PASSWORD', '{WORD}');"),
    ("secret", f'pwd <- "{WORD}"'),
    ("secret", f"dbPassword: {WORD}"),
    ("secret", f'<input type="password" value="{WORD}">'),
    ("secret", f'{{"name": "password", "value": "{WORD}"}}'),
    ("secret", f"password: |\n  {WORD}"),
    ("secret", f"password (new): {WORD}"),
    ("secret", f"password_2={WORD}"),
    ("secret", f"| user | jane |\n| password | {WORD} |"),
    ("secret", f'connect with :password "{WORD}"'),
    ("email", 'send("jane.doe@" "example.org")'),
    ("card", "sum(['4111', '1111', '1111', '1111'])"),
    ("iban", "x = 'DE89' .. '3704 0044 0532 0130 00'"),
    ("email", "&".join(f"CHAR({ord(char)})" for char in MAIL)),
    # JSON, URLs, headers, logs, file names
    ("secret", json.dumps(json.dumps({"password": WORD}))),
    ("secret", f"https:\\/\\/jane:{WORD}@x.test\\/"),
    ("card", bold(CARD)),
    ("email", "jane.doe=40example.org"),
    ("email", '"jane doe"@example.org'),
    ("email", "jane.doe(a)example.org"),
    ("phone", f"https://wa.me/{PHONE}"),
    ("phone", f"msisdn={PHONE}"),
    ("phone", "plus 44 20 7946 0958"),
    ("ip", "ssh ip-10-1-2-3.internal"),
    ("card", f"invoice_{CARD}_2024.pdf"),
    ("card", f"%B{CARD}^DOE/JANE^2612101?"),
    ("card", "4111\\ 1111\\ 1111\\ 1111"),
    ("card", "4,111,111,111,111,111"),
    ("iban", "DE89,3704,0044,0532,0130,00"),
    ("secret", "JSESSIONID=8F2E9A71C0D34B; Path=/"),
    ("secret", "https://x.test/a?sv=2024&sig=" + "8f2e9a71c0d34b77aa%3D"),
    ("secret", f"login: jane / {WORD}"),
    ("secret", "https://discord.com/api/webhooks/123456789012345678/" + "aB3" * 20),
    ("secret", "api key 8f2e9a71c0d34b77aa"),
    ("secret", "=?utf-8?B?" + base64.b64encode(f"pw: {WORD}".encode()).decode()),
    ("iban", "<Id><IBAN>" + IBAN + "</IBAN></Id>"),
    ("iban", f"SEPA_{IBAN}_2024.pdf"),
    ("card", ";" + CARD + "=26121011?"),
    ("email", "vcard;EMAIL;TYPE=INTERNET:" + MAIL),
    ("email", "bounce+jane.doe=example.org@mail.test"),
    ("ip", "3.2.1.10.in-addr.arpa"),
    ("card", "\u2463" + "\u2460" * 15),
    ("card", "| 4111 | 1111 | 1111 | 1111 |"),
)
HARMLESS = (
    "order 4006381333931 of 12.03.2024",
    "ISBN-13: 978-0-306-40615-7",
    "ISBN 0-306-40615-2",
    "ISSN 2049-3630",
    "DOI 10.1000/182",
    "commit 5b996dc5793a06132037b4b361f279b502a44615",
    "sha256:" + "ab12" * 16,
    "md5 d41d8cd98f00b204",
    "uuid 123e4567-e89b-12d3-a456-426614174000",
    "v1.2.3-rc.4+build.5",
    "Python 3.11.0rc1",
    "Chrome/120.0.6099.109",
    "at 52.5200, 13.4050",
    "N 52\u00b031' E 13\u00b024'",
    "2024-11-25T09:30:00.123456Z",
    "25/11/2024 09:30",
    "week 48, 2024",
    "09:30-17:00",
    "card ending 1111",
    "4111 11XX XXXX 1111",
    "**** **** **** 1111",
    "4242 of 5000",
    "1Z999AA10123456784",
    "MSKU1234565",
    "LOT 2024-11-25-0042",
    "SKU 4711-0815-42",
    "GTIN 04006381333931",
    "RAL 7016, #4111ff",
    "rgb(41, 11, 11)",
    "4,111.11 EUR",
    "4.111.111,00 EUR",
    "1,234,567,890",
    "1e16 items",
    "$4,111,111.11",
    "10-12-14 mm",
    "M8x40 DIN 912",
    "IEC 60364-4-41",
    "RFC 2119",
    "EN 13501-1",
    "ISO 8601:2004",
    "DE 89 is a route, FR 76 another",
    "flight LH 1234",
    "seat 12A row 34",
    "room 10-1-2",
    "page 482913",
    "password policy",
    "password: ask your admin",
    "forgot my password, it is 2 days",
    "password = getpass.getpass()",
    "token = get_token()",
    "password=os.environ",
    "password | oauth | saml",
    "the word 'password', 'username'",
    "api key rotation",
    "my code is broken",
    "your code does not compile",
    "the code is 12 lines",
    "tan and blue",
    "pin 7 of the chip",
    "session id missing",
    "login: jane / 2024-11-25",
    "a tell-tale sign",
    "mobile: yes",
    "call 2 of 3",
    "ip-based limits",
    "host-42 is down",
    "10.1 and 2.3",
    "@jane in #ops",
    "npm i @types/node@20.1.2",
    "a@b",
    "x(a)y",
    '["1", "2", "3", "4"]',
    "'a' 'b' 'c'",
    "plus 20 000 more",
    "x=40 y=41",
    "a_b_1234_2024.pdf",
    "&sig=none",
    "C:\\temp\\new",
    "\\d{4}-\\d{2}",
    "CHAR(10)",
    "the best of 4 1 1 1",
    "secret santa",
    "cookie: chocolate",
    "creds please",
    "wa.me",
)


@pytest.mark.parametrize(("kind", "text"), HIDDEN)
def test_a_value_in_unusual_dress_is_found_and_stays(kind: str, text: str) -> None:
    assert kind in {finding.kind for finding in sensitive.find(f"Hello,\n{text}\nbye")}
    assert conversation_veto.clear(said(text)).reason == "sensitive"


@pytest.mark.parametrize("text", HARMLESS)
def test_a_harmless_look_alike_passes(text: str) -> None:
    assert sensitive.find(f"Hello, {text}.") == []
    assert conversation_veto.clear(said(text)).reason == ""


# The veto, over a whole conversation

CONVERSATIONS: tuple[tuple[str, list[Any], dict[str, Any]], ...] = (
    (
        "sensitive",
        [*said("it is 4111 1111"), {"role": "assistant", "content": "Go on."}, *said("1111 1111")],
        {},
    ),
    ("sensitive", [*said("jane.doe@"), *said("example.org")], {}),
    (
        "sensitive",
        [*said("DE89 3704 0044"), {"role": "tool", "name": "note", "content": "0532 0130 00"}],
        {},
    ),
    ("sensitive", said("\n".join(CARD)), {}),
    ("sensitive", said("it is\n>> DE89 3704\n>> 0044 0532\n>> 0130 00"), {}),
    ("sensitive", said(MAIL[::-1]), {}),
    ("sensitive", said("\u202e" + CARD[::-1]), {}),
    ("sensitive", [{"role": "tool", "name": f"mail_{MAIL}", "content": "sent"}], {}),
    ("sensitive", said("send it"), {"also": (MAIL,)}),
    ("sensitive", said("send it"), {"also": ("4111 1111", "1111 1111")}),
    (
        "sensitive",
        said("send it"),
        {"also": tuple(conversation_veto.texts_in({"to": {MAIL: [None]}}))},
    ),
    ("sensitive", said("send it"), {"also": tuple(conversation_veto.texts_in([{"n": int(CARD)}]))}),
    ("sensitive", said(f"[CARD_1] is {CARD}"), {"redact": ("email",)}),
    ("sensitive", said(f"{MAIL} {CARD}"), {"redact": ("email",)}),
    ("doubt", [], {}),
    ("doubt", [{"role": "user", "content": None}], {}),
    ("doubt", [{"role": "user"}], {}),
    ("doubt", [{"role": "root", "content": "hello"}], {}),
    ("doubt", [{"role": ["user"], "content": "hello"}], {}),
    ("doubt", [{"role": "user", "content": ["hello"]}], {}),
    ("doubt", [{**said("a")[0], "images": ["x"]}], {}),
    ("doubt", [{**said("a")[0], "audio": {"id": MAIL}}], {}),
    ("doubt", said("a" * (conversation_veto.LONGEST + 1)), {}),
    ("doubt", said("a"), {"also": ("a" * conversation_veto.LONGEST,)}),
)


@pytest.mark.parametrize(("reason", "messages", "more"), CONVERSATIONS)
def test_a_conversation_that_hides_something_stays(
    reason: str, messages: list[Any], more: dict[str, Any]
) -> None:
    assert conversation_veto.clear(messages, **more).reason == reason


# Feedback

EXTRACT = Task(
    "extract",
    tiny.TEMPLATE,
    "<|im_end|>",
    schema={"type": "object", "additionalProperties": {"type": "string"}},
)


@dataclass(frozen=True)
class Desk:
    """A server that collects, an answer of it, and the secrets of its keys."""

    url: str
    id: str
    keys: dict[str, str]

    def post(self, raw: bytes, key: str = "crm", **headers: str) -> httpx.Response:
        sent = {
            "content-type": "application/json",
            "authorization": f"Bearer {self.keys[key]}",
        } | headers
        return httpx.post(f"{self.url}/v1/feedback", content=raw, headers=sent, **LOCAL)

    def ask(self) -> str:
        headers = {"authorization": f"Bearer {self.keys['crm']}"}
        body = {"messages": chat("who wrote it")}
        asked = httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, **LOCAL)
        return asked.headers["x-request-id"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("attacked")
    more: dict[str, dict[str, Any]] = {
        "crm": {},
        "erp": {},
        "other": {"models": ["none"]},
        "slow": {"rate": 0.001},
    }
    shown = {
        name: api_keys.add(folder / "keys.json", name, **limits) for name, limits in more.items()
    }
    collect = CollectConfig(to=folder / "collected", kept=1.0)
    answer = streams('{"who": "nobody"}')
    with here.in_front(
        lambda *_: answer, task=EXTRACT, keys=folder / "keys.json", collect=collect
    ) as server:
        asked = Desk(server.url, "", shown)
        yield Desk(server.url, asked.ask(), shown)


def word(**fields: Any) -> str:
    return json.dumps({"request_id": "ID", **fields})


FEEDBACK: tuple[tuple[int, str, dict[str, str]], ...] = (
    *(
        (400, body, {})
        for body in (
            "",
            "[]",
            "null",
            "{}",
            "{'ok': true}",
            "[" * 100_000,
            '{"ok": NaN}',
            '{"request_id": "ID", "ok": "\\ud800"}',
            word(),
            word(ok=1),
            word(ok="true"),
            word(ok=[]),
            word(ok={}),
            word(answer=True),
            word(answer=5),
            word(answer=[]),
            word(answer=""),
            word(answer=" \n"),
            word(answer="no object"),
            word(answer={"who": 5}),
            word(answer="[]"),
            word(ok=True, key="erp"),
            word(ok=True, __proto__={}),
            json.dumps({"request_id": None, "ok": True}),
            json.dumps({"request_id": 5, "ok": True}),
            json.dumps({"request_id": ["ID"], "ok": True}),
            json.dumps({"request_id": "a" * 101, "ok": True}),
            json.dumps({"request_id": "", "ok": True}),
            word(answer={"who": MAIL}),
            word(answer={MAIL: "who"}),
            word(answer=json.dumps({"who": bold(CARD)})),
            word(answer={"who": "pw " + WORD}),
        )
    ),
    *(
        (404, json.dumps({"request_id": id, "ok": True}), {})
        for id in ("ID-2", "id", "../ID", "ID\n", "*", "0")
    ),
    (401, word(ok=True), {"authorization": "Basic crm"}),
    (401, word(ok=True), {"authorization": "Bearer slm-crm-" + "0" * 64}),
    (401, word(ok=True), {"authorization": ""}),
    (415, word(ok=True), {"content-type": "text/plain"}),
    (415, word(ok=True), {"content-type": "application/x-www-form-urlencoded"}),
    (413, word(answer="a" * (1 << 20)), {}),
)


@pytest.mark.parametrize(("status", "body", "headers"), FEEDBACK)
def test_hostile_feedback_is_refused(
    desk: Desk, status: int, body: str, headers: dict[str, str]
) -> None:
    refused = desk.post(body.replace("ID", desk.id).encode(), **headers)
    assert (refused.status_code, set(refused.json())) == (status, {"error"}), refused.text
    assert not [value for value in (MAIL, CARD, WORD) if value in refused.text]


def test_feedback_is_bounded_over_all_keys(desk: Desk) -> None:
    id, words = (
        desk.ask(),
        [json.dumps({"request_id": "", "ok": bool(k % 2)}) for k in range(MOST_WORDS)],
    )
    sent = [text.replace('""', f'"{id}"').encode() for text in words]
    assert [desk.post(raw, ("crm", "erp")[k % 2]).status_code for k, raw in enumerate(sent)] == [
        200
    ] * MOST_WORDS
    # a word of another key counts
    assert [desk.post(sent[0], key).status_code for key in ("crm", "erp")] == [409, 409]
    # a key for other models learns of no answer
    assert desk.post(sent[0], "other").status_code == 404
    assert [desk.post(b"{}", "slow").status_code for _ in range(2)] == [400, 429]
    assert desk.post(b"{}").status_code == 400  # and its rate is its own


# The page of review

REVIEW: tuple[tuple[int, str | bytes, str], ...] = (
    *(
        (422, body, "Bearer TOKEN")
        for body in (
            "",
            "[]",
            "null",
            "{",
            "[" * 100_000,
            b"\xff",
            '{"id": NaN}',
            '{"id": 1}',
            '{"id": null}',
            '{"id": ["a"]}',
            '{"id": "a", "answer": 5}',
            '{"id": "a", "answer": ["billing"]}',
            '{"id": "a", "answer": {}}',
            '{"id": "a", "answer": ""}',
            '{"id": "a", "answer": " "}',
            '{"id": "a", "answer": "weather"}',
            '{"id": "a", "answer": "BILLING"}',
            '{"id": "a", "answer": "billing\\u200b"}',
            '{"id": "a", "answer": "\\ud800"}',
            '{"id": "\\ud800", "answer": null}',
            '{"id": "token", "answer": "billing"}',
            '{"id": "../a", "answer": "billing"}',
            '{"id": "a\\n", "answer": "billing"}',
            '{"answer": "billing"}',
        )
    ),
    *(
        (401, '{"id": "a", "answer": "billing"}', shown)
        for shown in (
            "",
            "Bearer",
            "Bearer x",
            "bearer TOKEN",
            "Basic TOKEN",
            "Bearer TOKENx",
            "Bearer  TOKEN",
            "Bearer tok\u00e9n",
        )
    ),
)


@pytest.mark.parametrize(("status", "body", "shown"), REVIEW)
def test_a_hostile_decision_is_refused_and_none_is_written(
    tmp_path: Path, status: int, body: str | bytes, shown: str
) -> None:
    task, output = Task("classify", "", "", labels=production.LABELS), tmp_path / "reviewed.jsonl"
    queue = [ReviewRow(production.collected("a"), "uniform")]
    with ReviewSession(queue, task=task, output=output, reviewer="ann") as session:
        page = ReviewDesk(session)
        client = TestClient(page.app(), raise_server_exceptions=False)
        headers = {"authorization": shown.replace("TOKEN", page.token).encode("latin-1")}
        refused = client.post("/v1/review/decide", content=body, headers=headers)
    assert (refused.status_code, set(refused.json())) == (status, {"error"}), refused.text
    assert output.read_bytes() == b""


# trace --forget

NAME = 'Jane M\u00fcller of "Bristol"'
LINES: tuple[Any, ...] = (
    NAME.upper(),
    NAME.replace(" ", "\u00a0"),
    NAME.replace(" ", " \n"),
    'Jane Mu\u0308ller of "Bristol"',
    NAME.replace("M", "M\u200b"),
    NAME.replace("J", "\uff2a"),
    NAME.replace('"', "\u201d"),
    NAME.replace("e M", "e\u2003M"),
    f"it was {NAME}, I think",
    [[[NAME]]],
    {NAME: 1},
    {"a": {"b": [{"c": NAME}]}},
    json.dumps({"who": NAME}),
    json.dumps(json.dumps({"who": NAME})),
    json.dumps(NAME),
    "call " + json.dumps({"who": NAME}),
    f"<b>{NAME}</b>",
)


@pytest.mark.parametrize("value", LINES)
@pytest.mark.parametrize("field", ["answer", "note", "labels"])
def test_forgetting_finds_a_text_wherever_and_however_it_stands(
    tmp_path: Path, field: str, value: Any
) -> None:
    path = tmp_path / "day.jsonl"
    path.write_text(
        json.dumps({"id": "a", field: value}) + "\n" + json.dumps({"id": "b", field: "Jane"}) + "\n"
    )
    found = search([path], text=NAME, id=None, similarity=0.6, forget=True)
    assert [(file.lines, file.forgotten) for file in found] == [(1, 1)]
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["b"]


@pytest.mark.parametrize(
    "line", [f'{{"id": "a", "answer": "{IBAN}', f'{{"answer": "{IBAN}"}}', f'["{IBAN}"]', IBAN]
)
def test_forgetting_gives_no_all_clear_over_lines_that_are_no_whole_ones(
    tmp_path: Path, line: str
) -> None:
    path = tmp_path / "day.jsonl"
    path.write_text(json.dumps({"id": "b", "answer": "Jane"}) + "\n" + line)
    (file,) = search([path], text=IBAN, id=None, similarity=0.6, forget=True)
    assert (file.lines, file.forgotten, IBAN in path.read_text()) == (1, 1, False)


def test_forgetting_finds_a_number_by_its_digits(tmp_path: Path) -> None:
    (tmp_path / "day.jsonl").write_text(
        json.dumps({"id": "a", "arguments": {"phone": int(PHONE)}}) + "\n"
    )
    (file,) = search([tmp_path], text=PHONE, id=None, similarity=0.6, forget=False)
    assert file.lines == 1


# Keys


@pytest.mark.parametrize(
    "name",
    [
        "",
        " crm",
        "crm ",
        "a b",
        "a/b",
        "../a",
        "-a",
        ".a",
        "_a",
        "a\n",
        "a\0",
        "\u043a",
        "a" * 65,
        "a\u200b",
        "a;b",
    ],
)
def test_a_name_that_is_no_plain_word_gets_no_key(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no name for a key"):
        api_keys.add(tmp_path / "keys.json", name)
    assert not (tmp_path / "keys.json").exists()


def test_what_is_no_secret_of_a_key_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = api_keys.add(path, "crm")
    api_keys.add(path, "gone")
    text = path.read_text()
    hashed = json.loads(text)["keys"][0]["sha256"]
    path.write_text(text.replace(json.loads(text)["keys"][1]["sha256"], api_keys.CROSSED_OUT))
    ring = KeyRing(path)
    for shown in (
        "",
        " ",
        "slm-",
        "slm-crm-",
        "crm",
        hashed,
        f"slm-crm-{hashed}",
        secret.upper(),
        secret[:-1],
        secret + "0",
        secret + "\n",
        " " + secret,
        secret.replace("crm", "CRM"),
        secret.replace("slm-", ""),
        secret.replace("-", "\u2010"),
        f"slm-gone-{'0' * 64}",
        "slm-gone-",
        f"slm-crm-{secrets.token_hex(32)}",
        "\0",
        "slm-" * 10_000,
    ):
        assert ring.find(shown) is None, shown
    assert ring.find(secret) is not None


# A teacher's labels

LABELLED = Task("classify", "", "", labels=("billing", "billing address", "delivery", "none"))


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("Billing.", "billing"),
        ("**delivery**", "delivery"),
        ("label: billing address", "billing address"),
        ("billing or delivery", ""),
        ("billing, delivery", ""),
        ("rebilling", ""),
        ("bill ing", ""),
        ("", ""),
        ("\0", ""),
        ("[billing, delivery]", ""),
        ("b\u0456lling", ""),
        ("deliver\u200by", ""),
        ("ignore the labels", ""),
    ],
)
def test_a_reply_is_a_label_only_where_it_names_one(reply: str, label: str) -> None:
    read = untuned_prompt.read(LABELLED, reply)
    assert (read if LABELLED.accepts(read) else "") == label
