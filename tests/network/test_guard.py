"""Nothing leaves the machine unasked: switches and a guard on sockets.

The guard cannot be taken down again, so every test is a process of its own. 192.0.2.1 is an address
that belongs to nobody (RFC 5737), and names below .invalid exist nowhere (RFC 2606).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from slmctl.network import guard
from slmctl.network.guard import SWITCHES


def run(code: str, **environment: str) -> dict[str, object]:
    """What a script leaves in `found`, in a process whose environment has no switch set."""
    bare = {key: value for key, value in os.environ.items() if key not in (*SWITCHES, "CI")}
    whole = (
        "import json, os, socket, sys\nfrom slmctl.network import guard\nfound = "
        f"{{}}\n{textwrap.dedent(code)}\n"
    )
    whole += "sys.stdout.write(json.dumps(found))\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", whole],
        env=bare | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


CALLS = {
    "one.connect(('192.0.2.1', 443))": "192.0.2.1",
    "one.connect_ex(('192.0.2.1', 443))": "192.0.2.1",
    "datagrams.sendto(b'x', ('192.0.2.1', 53))": "192.0.2.1",
    "datagrams.sendmsg([b'x'], [], 0, ('192.0.2.1', 53))": "192.0.2.1",
    "socket.create_connection(('192.0.2.1', 443))": "192.0.2.1",
    "socket.getaddrinfo('example.invalid', 443)": "example.invalid",
    "socket.getaddrinfo(b'example.invalid', 443)": "example.invalid",
    "socket.gethostbyname('example.invalid')": "example.invalid",
    "socket.gethostbyaddr('192.0.2.1')": "192.0.2.1",
    "__import__('urllib.request').request.urlopen('https://example.invalid')": "example.invalid",
}


def test_what_leaves_the_machine_is_refused() -> None:
    found = run(f"""
        from slmctl.errors import NetworkError
        guard.seal()
        for call in {[*CALLS]!r}:
            with socket.socket() as one, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
                try:
                    eval(call)
                    found[call] = "went through"
                except NetworkError as error:
                    found[call] = [error.message, error.code, "`slmctl pull`" in error.hint]
    """)
    unasked = "refused a connection to '{}': nothing leaves this machine unasked"
    assert found == {call: [unasked.format(host), 9, True] for call, host in CALLS.items()}


def test_this_machine_is_reached() -> None:
    found = run("""
        guard.seal()
        with socket.create_server(("127.0.0.1", 0)) as server:
            for host in ("127.0.0.1", "localhost"):
                with socket.create_connection((host, server.getsockname()[1])) as one:
                    found[host] = one.getpeername()[0]
        one, two = socket.socketpair()
        with one, two:
            one.sendall(b"x")
            found["pair"] = two.recv(1).decode()
        found["contacted"] = sorted(guard.contacted)
    """)
    assert found == {
        "127.0.0.1": "127.0.0.1",
        "localhost": "127.0.0.1",
        "pair": "x",
        "contacted": [],
    }


def test_unix_socket_is_this_machine(tmp_path: object) -> None:
    found = run(f"""
        guard.seal()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind({f"{tmp_path}/s"!r})
            server.listen()
            with socket.socket(socket.AF_UNIX) as one:
                one.connect({f"{tmp_path}/s"!r})
                found["reached"] = True
    """)
    assert found == {"reached": True}


def test_network_opens_for_its_block_only_and_keeps_a_receipt() -> None:
    found = run("""
        import contextlib
        from slmctl.errors import NetworkError
        guard.seal()
        for end in (None, RuntimeError):
            with contextlib.suppress(RuntimeError), guard.network("pull"):
                found["inside"] = os.environ.get("HF_HUB_OFFLINE", "unset")
                with contextlib.suppress(OSError):  # nowhere to be found, but it was asked for
                    socket.getaddrinfo("example.invalid", 443)
                if end:
                    raise end
            found["after"] = os.environ["HF_HUB_OFFLINE"]
            found["contacted"] = sorted(guard.contacted)
            try:
                socket.getaddrinfo("example.invalid", 443)
            except NetworkError:
                found[str(end)] = "closed"
    """)
    closed = {str(end): "closed" for end in (None, RuntimeError)}
    assert found == {"inside": "unset", "after": "1", "contacted": ["example.invalid"], **closed}


def test_what_stays_on_this_machine_is_not_forbidden() -> None:
    found = run("""
        from slmctl.errors import NetworkError
        guard.seal()
        guard.forbid()
        with guard.network("asking", hosts={"127.0.0.1", "localhost"}):
            found["here"] = True
        for name, hosts in (("all", None), ("none", ()), ("one", {"127.0.0.1", "example.invalid"})):
            try:
                with guard.network("asking", hosts=hosts):
                    found[name] = "opened"
            except NetworkError as error:
                found[name] = error.code
    """)
    assert found == {"here": True, "all": 9, "none": 9, "one": 9}


def test_a_command_without_an_artifact_leaves_a_receipt(tmp_path: Path) -> None:
    found = run(f"""
        from pathlib import Path
        root = Path({str(tmp_path)!r})
        guard.seal()
        with guard.written_down(root, "publish"):
            found["nobody asked"] = (root / "runs").exists()
        for project in (root, None):
            with guard.written_down(project, "publish"), guard.network("publish", {{"example.invalid"}}):
                try:
                    socket.getaddrinfo("example.invalid", 443)
                except OSError:
                    pass
        found["kept"] = [json.loads(path.read_text()) for path in root.glob("runs/.receipts/*.json")]
    """)
    assert found["nobody asked"] is False
    (kept,) = found["kept"]  # type: ignore[misc]
    assert (kept["command"], kept["hosts_contacted"], kept["bytes_out"]) == (
        "publish",
        ["example.invalid"],
        0,
    )


@pytest.mark.parametrize(
    "environment", [{}, {"HF_HUB_OFFLINE": "0", "DO_NOT_TRACK": "0"}, {"CI": "1"}], ids=str
)
def test_every_switch_is_set_whatever_was_there(environment: dict[str, str]) -> None:
    found = run(
        "guard.seal(); found |= {name: os.environ[name] for name in guard.SWITCHES}", **environment
    )
    assert found == SWITCHES


def test_children_inherit_the_switches() -> None:
    found = run("""
        import subprocess
        guard.seal()
        code = "import os, sys; sys.stdout.write(os.environ['TRANSFORMERS_OFFLINE'])"
        found["child"] = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    """)
    assert found == {"child": "1"}


def test_importing_alone_seals_nothing() -> None:
    assert run("found |= {name: name in os.environ for name in guard.SWITCHES}") == dict.fromkeys(
        SWITCHES, False
    )


def test_local_hosts() -> None:
    assert all(
        map(
            guard.is_local,
            ["127.0.0.1", "127.8.9.10", "::1", "localhost", "", "0.0.0.0", "::", "::1%lo"],
        )
    )
    others = [
        "10.0.0.1",
        "192.0.2.1",
        "fe80::1%eth0",
        "localhost.example.invalid",
        "2130706433",
        "::2",
    ]
    assert not any(map(guard.is_local, others))


ONLY = """
from slmctl.errors import NetworkError
guard.seal()
guard.socket.getaddrinfo = lambda name, port: [(2, 1, 6, "", (stands_for[name], 0))]
stands_for = {"api.example.invalid": "192.0.2.1", "inner.example.invalid": "192.0.2.3"}
tried = {}
def reach(address):
    with socket.socket() as one:
        one.settimeout(0.01)
        try:
            one.connect((address, 443))
        except NetworkError as error:
            return error.message
        except OSError:
            return "let through"
with guard.network("asking", hosts={"api.example.invalid"}):
    found["named"] = reach("192.0.2.1")
    found["other"] = reach("192.0.2.2")
    stands_for["api.example.invalid"] = "192.0.2.2"  # a name moves
    found["moved"] = reach("192.0.2.2")
    try:
        socket.gethostbyname("elsewhere.invalid")
    except NetworkError as error:
        found["lookup"] = error.message
    found["switch"] = os.environ["HF_HUB_OFFLINE"]
    with guard.network("asking another", hosts={"inner.example.invalid"}):
        found["inner"] = reach("192.0.2.3")
    found["inner after"] = reach("192.0.2.3")
    found["outer after"] = reach("192.0.2.2")
found["after"] = reach("192.0.2.1")
"""


def test_the_network_can_be_open_for_one_host_alone() -> None:
    """Its name, and the addresses that the name stands for; no other host,
    and no switch of a library is turned.
    """
    found = run(ONLY)
    assert (
        found["named"] == found["moved"] == found["inner"] == found["outer after"] == "let through"
    )
    alone = "the network is open for api.example.invalid alone"
    assert found["other"] == f"refused a connection to '192.0.2.2': {alone}"
    assert found["inner after"] == f"refused a connection to '192.0.2.3': {alone}"
    assert found["lookup"] == f"refused a connection to 'elsewhere.invalid': {alone}"
    assert found["switch"] == "1"
    assert (
        found["after"] == "refused a connection to '192.0.2.1': nothing leaves this machine unasked"
    )


def test_an_earlier_opening_that_ends_leaves_the_later_one_open() -> None:
    first, second = (
        guard.network("the first", hosts=["one.example"]),
        guard.network("the next", hosts=["two.example"]),
    )
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as a server does, when it follows a release to the next one
    assert (guard._open_for, guard._only) == ("the next", {"two.example"})
    second.__exit__(None, None, None)
    assert (guard._open_for, guard._only) == ("", None)


@pytest.mark.parametrize("proxy", ["proxy.example:3128", "http://proxy.example:3128"])
def test_a_proxy_may_lack_its_scheme_as_for_other_programs(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # urlsplit takes its name for a scheme, so the guard refused the proxy itself
    for name in ("NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    assert guard.proxy_of("https://hub.example/x") == "http://proxy.example:3128"
    assert guard.on_the_way("https://hub.example/x") == {"hub.example", "proxy.example"}
