"""`make demo`: what a user types, from an example data set to an answer over HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

SLMCTL = [str(Path(sys.executable).parent / "slmctl")]
QUESTION = "the parcel was due on friday and there is still no sign of it, where is it??"


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def slmctl(folder: Path, *args: str) -> None:
    """Run a command as a user would, and show it."""
    say(f"\n$ slmctl -C {folder} {' '.join(args)}")
    done = subprocess.run([*SLMCTL, "-C", str(folder), *args], check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def ask(folder: Path) -> None:
    """Serve the release, ask it one question over HTTP, and stop the server."""
    say(f"\n$ slmctl -C {folder} serve --port 0 &")
    server = subprocess.Popen([*SLMCTL, "-C", str(folder), "serve", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        if not address:
            sys.exit(server.wait())
        body = {"messages": [{"role": "user", "content": QUESTION}]}
        say(f"$ curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'")
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
    say(f"  {answer['choices'][0]['message']['content']}   (confidence {answer['slmctl']['confidence']:.2f})\n")


def main() -> None:
    folder = Path(sys.argv[1])
    if not (folder / "slmctl.yaml").exists():
        say(f"$ slmctl init support-triage {folder}")
        subprocess.run([*SLMCTL, "init", "support-triage", str(folder)], check=True, stdout=subprocess.DEVNULL)
    slmctl(folder, "run")
    ask(folder)
    slmctl(folder, "--quiet", "show")
    slmctl(folder, "evaluate")
    say(
        f"""
Try next (with {Path(sys.executable).parent}/slmctl, or after: . {Path(sys.executable).parent}/activate)
  echo "I was charged twice this month" | slmctl -C {folder} chat
  slmctl -C {folder} predict --input {folder}/support_tickets.csv --output answers.csv
  slmctl -C {folder} serve"""
    )


if __name__ == "__main__":
    main()
