"""`make demo`: what a user types, from an example data set to an
answer over HTTP, and what that showed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from slmctl.console import percent

SLMCTL = [str(Path(sys.executable).parent / "slmctl")]
QUESTION = (
    "you already sent me a new kettle, thanks for that. but it leaks too, now I just want "
    "my money back"
)
VAGUE = "please call me back about the thing I wrote last week"


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def slmctl(folder: Path, *args: str) -> None:
    """Run a command as a user would, and show it."""
    say(f"\n$ slmctl -C {folder} {' '.join(args)}")
    done = subprocess.run([*SLMCTL, "-C", str(folder), *args], check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def figures(folder: Path, stage: str) -> dict[str, Any]:
    """The metrics of a stage that is current, from the manifest that `--json` prints."""
    command = [*SLMCTL, "-C", str(folder), "--quiet", stage, "--json"]
    return dict(
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["metrics"]
    )


def ask(folder: Path) -> None:
    """Serve the release, ask it one question over HTTP, and stop the server."""
    say(f"\n$ slmctl -C {folder} serve --port 0 &")
    server = subprocess.Popen(
        [*SLMCTL, "-C", str(folder), "serve", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        if not address:
            sys.exit(server.wait())
        body = {"messages": [{"role": "user", "content": QUESTION}]}
        say(
            f"$ curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d "
            f"'{json.dumps(body)}'"
        )
        request = urllib.request.Request(
            f"{address}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
    text, extra = answer["choices"][0]["message"]["content"], answer["slmctl"]
    say(
        f"  {text}   (confidence {extra['confidence']:.2f}, p_correct {extra['p_correct']:.2f}: "
        f"{extra['reason']})"
    )


def chat(folder: Path) -> None:
    """Ask two questions through a pipe: the policy keeps one answer, and
    says that a person should see the other.
    """
    say(f"\n$ printf '%s\\n' '{QUESTION}' '{VAGUE}' | slmctl -C {folder} chat")
    subprocess.run(
        [*SLMCTL, "-C", str(folder), "chat"], input=f"{QUESTION}\n{VAGUE}\n", text=True, check=True
    )


def shown(report: dict[str, Any], policy: dict[str, Any], sent: int, made: int) -> list[str]:
    """What the demo showed, in four sentences, as it was measured.

    Args:
        report: Metrics of the evaluation.
        policy: Metrics of the calibration.
        sent: Bytes that the stages after `pull` sent over the network.
        made: Number of artifacts whose manifests say so.
    """
    entries = report["models"] | report["baselines"]
    focus, linear = entries[report["focus"]], entries["tfidf_logistic"]
    # with examples, or without
    base = next(entry for name, entry in entries.items() if name.startswith("base"))

    def right(entry: dict[str, Any]) -> str:
        low, high = entry["intervals"]["accuracy"]
        return f"{percent(entry['metrics']['accuracy'])} ({percent(low)} to {percent(high)})"

    beaten = min(focus["intervals"]["accuracy"]) > max(
        linear["intervals"]["accuracy"][1], base["intervals"]["accuracy"][1]
    )
    speed = base["latency_ms"]["median"] / focus["latency_ms"]["median"]
    return [
        f"{'More precise' if beaten else 'Measured'}: of {report['n']} held-out tickets "
        f"{report['focus']} sorts "
        f"{right(focus)} correctly, the linear baseline {right(linear)}, and the untuned base with "
        f"{base.get('shots') or 0} examples in its prompt {right(base)}.",
        f"{'Smaller and faster' if speed > 1 else 'Smaller'}: {focus['size'] / 1e6:.0f} MB in "
        "place of the base's "
        f"{base['size'] / 1e6:.0f} MB, and {focus['latency_ms']['median']:.0f} ms for an answer on "
        "this processor, "
        f"where the base with its examples takes {base['latency_ms']['median']:.0f} ms.",
        "Private: all after the download of the base ran with --offline, and the manifests of its "
        f"{made} artifacts "
        f"add up to {sent} bytes sent.",
        f"Sure of itself: it keeps {percent(policy['kept'], 0)} of the answers, at least "
        f"{percent(1 - policy['max_error'], 0)} of them right (with "
        f"{percent(policy['confidence'], 0)} confidence), "
        f"and serve and chat say which of the others a person should see.",
    ]


def network(folder: Path) -> tuple[int, int]:
    """Bytes that the stages after `pull` sent, and the number of
    artifacts whose manifests were read.
    """
    paths = [path for path in folder.glob("runs/[!.]*/*/manifest.json") if path.parts[-3] != "base"]
    return sum(json.loads(path.read_bytes())["environment"]["bytes_out"] for path in paths), len(
        paths
    )


def main() -> None:
    folder, begun = Path(sys.argv[1]), time.monotonic()
    if not (folder / "slmctl.yaml").exists():
        say(f"$ slmctl init support-triage {folder}")
        subprocess.run(
            [*SLMCTL, "init", "support-triage", str(folder)], check=True, stdout=subprocess.DEVNULL
        )
    slmctl(folder, "pull")
    slmctl(folder, "run", "--offline")
    ask(folder)
    slmctl(folder, "--quiet", "show")
    slmctl(folder, "evaluate", "--offline")
    chat(folder)
    report, policy = figures(folder, "evaluate"), figures(folder, "calibrate")
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    say(f"\nWhat this showed, in {minutes} min {seconds:02d} s:\n")
    for sentence in shown(report, policy, *network(folder)):
        say(f"  {sentence}")
    programs = Path(sys.executable).parent
    say(
        f"""
Try next (with {programs}/slmctl, or after: . {programs}/activate)
  echo "where is my parcel? not the refund, just the parcel" | slmctl -C {folder} chat
  slmctl -C {folder} predict --input {folder}/support_tickets.csv --output answers.csv
  slmctl -C {folder} serve
  slmctl init field-extraction orders && slmctl -C orders run  # e-mails to JSON"""
    )


if __name__ == "__main__":
    main()
