"""Disguises of one value of each kind, written as people and tools do: by chat, as JSON of a decision, over turns."""

from __future__ import annotations

from typing import Any

import pytest

from slmctl.sensitive import conversation_veto
from slmctl.server.forms.decisions import SYSTEM_ONE

TEXTS = {
    "card: separators": [
        "4111==1111==1111==1111", "4111::1111::1111::1111", "4111»1111»1111»1111", "4111§1111§1111§1111",
        "4111^1111^1111^1111", "4111&1111&1111&1111", "4111@1111@1111@1111", "4111!1111!1111!1111",
        "4111?1111?1111?1111", "4111%1111%1111%1111", "4111$1111$1111$1111", "4111 – 1111 – 1111 – 1111",
        "4111 • 1111 • 1111 • 1111", "4111 ♥ 1111 ♥ 1111 ♥ 1111", "4111\u20281111\u20281111\u20281111",
        "4111…1111…1111…1111", "4111―1111―1111―1111", "4111\t\t1111\t\t1111\t\t1111",
        "4111\t\t\t\t1111\t\t\t\t1111\t\t\t\t1111", "4111     \t  1111     \t  1111     \t  1111",
        "4111<>1111<>1111<>1111", "4111[]1111[]1111[]1111", "4111{}1111{}1111{}1111", "4111()1111()1111()1111",
        "4111][1111][1111][1111", "4111')('1111')('1111')('1111", "4111\u30001111\u30001111\u30001111",
        "4111··1111··1111··1111", "4111\u2060 1111\u2060 1111\u2060 1111", "4111~~~1111~~~1111~~~1111",
        "4111___1111___1111___1111", "4111*****1111*****1111*****1111", "4111......1111......1111......1111",
    ],
    "card: words between": [
        "4111 and 1111 and 1111 and 1111", "4111 dann 1111 dann 1111 dann 1111",
        "4111 dash 1111 dash 1111 dash 1111", "4111 then 1111 then 1111 then 1111",
        "4111 minus 1111 minus 1111 minus 1111", "4111 comma 1111 comma 1111 comma 1111",
        "4111 leerzeichen 1111 leerzeichen 1111 leerzeichen 1111", "4111 puis 1111 puis 1111 puis 1111",
        "4111 space 1111 space 1111 space 1111", "4111, then 1111, then 1111, then 1111",
        "4111 (next) 1111 (next) 1111 (next) 1111", "first 4111, second 1111, third 1111, fourth 1111",
        "a) 4111 b) 1111 c) 1111 d) 1111", "1. 4111\n2. 1111\n3. 1111\n4. 1111",
    ],
    "card: numbers as written by tools": [
        "4111111111111111.0", "4111111111111111.00", "4111111111111111,00", "4111111111111111L", "4111111111111111n",
        "4,111,111,111,111,111", "4 111 111 111 111 111", "4'111'111'111'111'111", "4_111_111_111_111_111",
        "£4111111111111111", "=4111111111111111", "'4111111111111111", '"4111111111111111";', '="4111111111111111"',
        "#4111111111111111", "ID4111111111111111", "card_4111111111111111", "x4111111111111111x",
        "<n>4111111111111111</n>", "4111111111111111|12|27|123", "n=4111111111111111&m=1", "int(4111111111111111)",
        "Decimal('4111111111111111')", "np.int64(4111111111111111)", 'BigInteger("4111111111111111")',
    ],
    "card: tables and markup": [
        "| 4111 | 1111 | 1111 | 1111 |", "4111\t1111\t1111\t1111", "4111;1111;1111;1111",
        "4111\r\n1111\r\n1111\r\n1111", "<td>4111</td><td>1111</td><td>1111</td><td>1111</td>",
        "- 4111\n- 1111\n- 1111\n- 1111", "* 4111\n* 1111\n* 1111\n* 1111", "> 4111\n> 1111\n> 1111\n> 1111",
        "`4111` `1111` `1111` `1111`", "$4111\\;1111\\;1111\\;1111$", "4111~1111~1111~1111",
        "(4111, 1111, 1111, 1111)", "4111 1111\n\n\n1111 1111", "4111 11 11 1111 1111",
        "card: 4111, 1111, 1111, 1111", "[12, 26, 4111, 1111, 1111, 1111]", "[4111, 1111, 1111, 1111, 123]",
        "[4111, 1111, 1111, 1111,]", "[4111.0, 1111.0, 1111.0, 1111.0]",
        "card:\n  - 4111\n  - 1111\n  - 1111\n  - 1111",
    ],
    "iban": [
        "DE89    3704    0044    0532    0130    00", "DE 89 3704 0044 0532 0130 00", "IBAN:DE89370400440532013000",
        "DE89\n3704\n0044\n0532\n0130\n00", "de89-3704-0044-0532-0130-00",
        "D E 8 9 3 7 0 4 0 0 4 4 0 5 3 2 0 1 3 0 0 0", "DE89_3704_0044_0532_0130_00",
        "| DE89 | 3704 | 0044 | 0532 | 0130 | 00 |", "DE89→3704→0044→0532→0130→00", "DE89=3704=0044=0532=0130=00",
        "iban://DE89370400440532013000", "DE89 and 3704 and 0044 and 0532 and 0130 and 00",
        "Delta Echo 89 3704 0044 0532 0130 00",
    ],
    "email": [
        "jane.doe {ät} acme-corp {punkt} com", "jane.doe |at| acme-corp |dot| com",
        "jane.doe < at > acme-corp < dot > com", "jane.doe[AT]acme-corp[DOT]com",
        "jane.doe (ÄT) acme-corp (PUNKT) com", "jane.doe at acme-corp [dot] com", "jane.doe(at)acme-corp.com",
        "jane.doe {@} acme-corp.com", "jane.doe AT acme-corp DOT com", "jane.doe(a)acme-corp.com",
        "mailto:jane.doe%40acme-corp.com", "jane.doe@acme-corp,com", "jane.doe @acme-corp .com",
        "jane.doe [arroba] acme-corp [punto] com", "jane.doe @ acme-corp . com", "jane . doe @ acme-corp . com",
        "jane.doe arroba acme-corp.es", "jane.doe arroba acme-corp punto es", "jane.doe arobase acme-corp.fr",
        "jane.doe (arobase) acme-corp.fr", "jane.doe (klammeraffe) acme-corp.de", "jane.doe ät acme-corp.de",
        "jane.doe@[acme-corp.com]", "jane.doe*at*acme.com", "jane.doe/at/acme.com",
        "jane.doe=40acme-corp.com", "jane.doe&commat;acme-corp&period;com", "jane.doe\\u0040acme-corp.com",
        "jane.doe＠acme-corp．com", "moc.proc-emca@eod.enaj",
    ],
    "phone": [
        "plus four four two oh seven nine four six oh nine five eight", "+44 (0) 20 7946 0958", "tel:+442079460958",
        "+44-20-7946-0958", "+44 . 20 . 7946 . 0958", "＋44 20 7946 0958", "0044.20.7946.0958",
        "+4 4 2 0 7 9 4 6 0 9 5 8", "phone=442079460958", "whatsapp 442079460958", "wa.me/442079460958",
        "+44    20    7946    0958", "llámame al 612345678", "mi número es 612345678", "mi móvil es 612345678",
        "mon numéro est 612345678", "appelez-moi au 612345678", "my cell is four one five 555 2671",
        "[+49] 151 12345678", "+49 [151] 12345678",
    ],
    "secret: configuration": [
        "DB_PASS=hunter2!x", "export SMTP_PASS='hunter2!x'", "MAIL_PASS: hunter2!x", 'smtpPass = "hunter2!x"',
        "ftp-pass=hunter2!x", "$env:DB_PASS='hunter2!x'", "set FTP_PASS=hunter2!x", "ENV DB_PASS hunter2!x",
        '<add key="dbPass" value="hunter2!x"/>', "machine a.example login jane password hunter2!x",
        "//registry/:_authToken=abcd1234efgh", "_auth=amFuZTpodW50ZXIyIXg=",
        '{"auths":{"r":{"auth":"amFuZTpodW50ZXIyIXg="}}}', "db:5432:mydb:jane:hunter2!x", "*:*:*:jane:hunter2!x",
        "jdbc:mysql://h/db?user=jane&password=hunter2!x", "Server=h;Uid=jane;Pwd=hunter2!x;",
        "psql postgresql://jane:hunter2!x@h/db", "mysql -u jane -phunter2!x", "Basic amFuZTpodW50ZXIyIXg=",
        "PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\nAAAAIJ0\nPrivate-MAC: 0123",
        "$2y$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy",
        "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b7dWRWJTmaaJObG",
        "root:$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq:18000:0:99999:7:::",
        "{SSHA}DkMTwBl+a/3DQTxCYEApdUtNXGgdUac3", "pbkdf2_sha256$260000$abcdefgh$Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4",
        "MTEyMzQ1Njc4OTAxMjM0NTY3" + ".GabcdE." + "abcdefghijklmnopqrstuvwxyz0123456789AB",
        "admin:$apr1$saltsalt$9Wg1JkW3xF5Gm8bQ2RZr01", "identitytoken: abcdefgh12345678",
    ],
    "secret: languages": [
        "mật khẩu: hunter2!x", "mật khẩu của tôi là hunter2!x", "mat khau: hunter2!x", "kata sandi: hunter2!x",
        "kata sandi saya adalah hunter2!x", "รหัสผ่าน: hunter2!x", "รหัสผ่านคือ hunter2!x", "पासवर्ड: hunter2!x",
        "मेरा पासवर्ड hunter2!x है", "parolă: hunter2!x", "parola mea este hunter2!x", "salasana on hunter2!x",
        "salasanani on hunter2!x", "lozinka je hunter2!x", "slaptažodis: hunter2!x", "رمز عبور: hunter2!x",
        "пароль это hunter2!x", "lösenordet är hunter2!x", "hasło to hunter2!x", "heslo je hunter2!x",
        "la contraseña es hunter2!x", "senha é hunter2!x", "パスワードは hunter2!x",
        "密码是 hunter2!x", "비밀번호는 hunter2!x",
        "adgangskoden er hunter2!x", "wachtwoord is hunter2!x", "şifrem hunter2!x", "jelszavam: hunter2!x",
        "kodeord: hunter2!x", "পাসওয়ার্ড: hunter2!x",
    ],
    "secret: said in everyday words": [
        "mein Passwort ist Hund4711", "Das Passwort ist Hund4711!", "Mein Kennwort ist Xy7!kLm",
        "Passwort ist: Hund4711",
        "Mein PW ist Hund4711!", "WLAN Passwort ist Blau-Meer-77", "moje hasło jest Pies1234!",
        "la mia password è Cane1234", "mdp: Chat1234", "mon mdp est Chat1234", "mi clave es Perro99!",
        "la clave es 4821", "Mein Passwort, Hund4711, wurde abgelehnt", "my password, hunter2, was refused",
        "wifi key: Blau-Meer-77", "the wifi key is Blau-Meer-77", "Netzwerkschlüssel: 83924481",
        "WLAN-Schlüssel: 8392-4481-2210-9932", "Geheimzahl 4821", "Geheimzahl ist 4821",
        "meine Geheimzahl lautet 4821", "Entsperrcode: 8842", "Türcode 8842", "code secret 4821", "cryptogramme : 123",
        "cryptogramme 123", "Prüfnummer: 123", "Kartenprüfnummer 123", "Prüfziffer 123 (Karte)",
        "482913 ist Ihr Code",
    ],
}  # fmt: skip
STATES = [
    ["4111", "1111", "1111", "1111"], [4111, 1111, 1111, 1111], {"a": "4111", "b": "1111", "c": "1111", "d": "1111"},
    {"n": 4111111111111111.0}, {"a": 4111, "b": {"c": 1111, "d": [1111, 1111]}},
    {"order": 77, "a": "4111", "b": "1111", "c": "1111", "d": "1111", "z": 1},
    {"id": 7, "parts": [4111, 1111, 1111, 1111]}, [41, 11, 11, 11, 11, 11, 11, 11],
    [4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [{"d": digit} for digit in "4111111111111111"],
    {"c": "DE", "k": 89, "bban": 370400440532013000}, {"iban": ["DE89", "3704", "0044", "0532", "0130", "00"]},
    {"cc": "+44", "area": 20, "n": 79460958}, {"user": "jane.doe", "at": "@", "host": "acme-corp.com"},
    {"mail": ["jane.doe", "@", "acme-corp", ".", "com"]}, {"pwd": {"value": "hunter2!x"}},
    {"type": "password", "value": "hunter2!x"}, {"password": ["hunter2!x"]},
    {"credentials": {"user": "jane", "secret": "hunter2!x"}}, {"login": "jane", "pw": "hunter2!x"},
    {"card": {"number": "4111111111111111", "cvv": "123"}}, {"d": {"x": ["4111 1111", {"y": "1111 1111"}]}},
    {"card_first": "4111", "card_last": "111111111111"}, {"bin": 411111, "rest": 1111111111},
    {"n": "4111-1111-", "m": "1111-1111"},
    {"text": "my card", "n": [{"v": 4111}, {"v": 1111}, {"v": 1111}, {"v": 1111}]},
    '{"n": "{\\"a\\": \\"4111\\", \\"b\\": \\"1111\\", \\"c\\": \\"1111\\", \\"d\\": \\"1111\\"}"}',
    {"n": "NDExMTExMTExMTExMTExMQ=="}, {"q": "What is your password?", "a": "hunter2!x"},
    {"1": "4111", "2": "1111", "3": "1111", "4": "1111"}, {"DE89": "370400440532013000"}, {"a": 4111111111111111.0},
    {"n": [411111111111, 1111]}, {"n": [[[[["4111"]]]], "1111", ["1111"], "1111"]},
    {"x": "4111", "note": "hi", "y": "1111", "z": "1111", "w": "1111"},
]  # fmt: skip
TURNS = [
    [("assistant", "What is your password?"), ("user", "hunter2!x")],
    [("assistant", "Your password, please?"), ("user", "correct-h0rse")],
    [("assistant", "Wie lautet Ihr Passwort?"), ("user", "hunter2!x")],
    [("assistant", "Quel est votre mot de passe ?"), ("user", "hunter2!x")],
    [("assistant", "¿Cuál es tu contraseña?"), ("user", "hunter2!x")],
    [("assistant", "What is the current password of your account?"), ("user", "hunter2!x")],
    [("assistant", "Please enter your password:"), ("user", "hunter2!x")],
    [("assistant", "What is your password?"), ("user", "It is hunter2!x")],
    [("assistant", "And your PIN?"), ("user", "4321")],
    [("user", "4111"), ("assistant", "go on"), ("user", "1111"), ("assistant", "go on"),
     ("user", "1111"), ("assistant", "go on"), ("user", "1111")],
    [("user", "DE89"), ("user", "370400440532013000")],
    [("user", "[4111,"), ("user", "1111,"), ("user", "1111,"), ("user", "1111]")],
    [("user", "jane.doe"), ("assistant", "at?"), ("user", "@"), ("assistant", "ok"), ("user", "acme-corp.com")],
    [("user", "my card: 4111 1111"), ("assistant", "and the rest?"), ("user", "1111 1111")],
    [("assistant", "What is your password?"), ("user", "hunter2"), ("assistant", "and the sign?"), ("user", "!x")],
    [("tool", '{"a": "4111", "b": "1111", "c": "1111", "d": "1111"}')],
    [("system", "card [4111, 1111, 1111, 1111]"), ("user", "hi")],
    [("assistant", "Password?"), ("user", "hunter2!x")],
    [("assistant", "Which password do you use?"), ("user", "hunter2!x")],
]  # fmt: skip
LEAVE = [
    "4111 1111 and then 1111 1111", "4.111111111111111E15", "04111111111111111",
    "\\texttt{4111}\\,\\texttt{1111}\\,\\texttt{1111}\\,\\texttt{1111}", "{4111, 1111, 1111, 1111}",
    "jane.doe🐒acme-corp.com", 'jane.doe "at" acme-corp "dot" com', "jane.doe 'at' acme-corp.com",
    "jane.doe -at- acme-corp -dot- com", "jane.doe#at#acme-corp.com", "++44 20 7946 0958", "+44→20→7946→0958",
    "+44 and 20 and 7946 and 0958", "net use X: \\\\h\\s hunter2!x /user:jane", "geslo: hunter2!x",
    "nenosiri: hunter2!x",
]  # fmt: skip
HARMLESS = [
    "What is your password? I forgot it.", "Did you reset your password? Thanks!", "Your password? Which one?",
    "Can I change my passcode? please", "The low_pass = 0.5 filter and BUILD_PASS=yes", "TEST_PASS: true, by-pass: 12",
    "basic understanding of Basic English", '{"auth": "basic"} and "auth": "required"', "Preis: 5$ oder 10$ oder 15$",
    "It cost $1, $2 and $3.", "fe80:1234:5678:90ab:cdef:1 is documented", "main.c:1234:foo:bar: undefined",
    "between 1990 and 1995 and 2000 and 2005", "rooms 4111, 4112, 4113 and 4114", "1. one\n2. two\n3. three",
    "5100 = 5100 and 12 = 12", "[2019, 2020, 2021, 2022]", "12.50    13.75    99.10    47.00",
    "le mot de passe est oublié", "ma contraseña no funciona", "salasana on väärin", "kata sandi saya salah",
    "ich habe mein Passwort vergessen? Hilfe!", "a recovery phrase is a list of words", "values of 4.5 or 1111.0",
    '{"channel": "phone", "order": 12345678, "created": "2024-08-12T10:22:33Z"}', '{"monthly": [4120, 3980, 5210, 9]}',
    '{"ratings": [5, 4, 3, 5, 1, 2]}', '{"codes": ["41", "23", "99", "17", "52", "38", "61", "20", "13"]}',
    '{"gps": [52.520008, 13.404954], "token": {"type": "access"}}', "see (a), [b] and {c}: f(x) = [1, 2]", "x [dot] y",
    "Version 10.4.22.1", "v 10.4.22.1", "Softwareversion 10.4.22.1", "Abschnitt 2.3.4.5", "Punkt 1.1.1.1 der Satzung",
    "Kapitel 10.2.3.4", "Ziffer 3.1.2.4 des Vertrags", "Art.-Nr. 1.2.3.4", "1111 2222 3333 4444 5555",
    "the sizes are 4111, 1111, 1111, 1111", "mdp oublié", "clave del éxito", "palabra clave: verano2024",
    "Prüfnummer 20240312", "Schlüssel verloren", "my password, which I forgot, has 8 letters",
    "https://www.acme.com/at/news.info", "le code secret est oublié", "E-Mail:", "to:jane at ten",
]  # fmt: skip


def reason(messages: list[Any]) -> str:
    return conversation_veto.clear(messages, timeout_s=60).reason


@pytest.mark.parametrize(("group", "text"), [(group, text) for group, texts in TEXTS.items() for text in texts])
def test_disguised_value_stays_here(group: str, text: str) -> None:
    assert reason([{"role": "user", "content": f"Hello, it is this: {text}\nthanks"}]) == "sensitive"


@pytest.mark.parametrize("state", STATES, ids=str)
def test_value_in_pieces_of_json_stays_here(state: Any) -> None:
    """JSON of a decision reaches the search as text, where `[4111, 1111, …]` is a list of numbers."""
    assert reason(SYSTEM_ONE.messages({"state": state})) == "sensitive"


def test_card_in_the_arguments_of_a_call_stays_here() -> None:
    """As JSON within an argument it left, since only messages were read value by value."""
    state = '{"note": {"card": [4111, 1111, 1111, 1111]}}'
    messages = [{"role": "user", "content": "hi"}]
    assert conversation_veto.clear(messages, also=[state], timeout_s=60).reason == "sensitive"
    assert conversation_veto.clear(messages, also=['{"size": [4120, 3980, 5210, 9]}'], timeout_s=60).reason == ""


@pytest.mark.parametrize("turns", TURNS, ids=str)
def test_value_over_turns_stays_here(turns: list[tuple[str, str]]) -> None:
    assert reason([{"role": role, "content": content} for role, content in turns]) == "sensitive"


@pytest.mark.parametrize("text", LEAVE)
def test_disguise_that_privacy_md_lists_is_not_found(text: str) -> None:
    """Rows that fail here can go to the tables above."""
    assert reason([{"role": "user", "content": text}]) == ""


@pytest.mark.parametrize("text", HARMLESS)
def test_text_that_looks_like_one_leaves(text: str) -> None:
    assert reason([{"role": "user", "content": text}]) == ""
