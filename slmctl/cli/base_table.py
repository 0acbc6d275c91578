"""`slmctl bases`: the catalogue of bases, with what training each takes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from slmctl.cli.group import Options, common_options, option, print_result, terminal

if TYPE_CHECKING:
    from slmctl.artifacts.bounded_json import JsonObject
    from slmctl.init.proposal import Machine
    from slmctl.model_files.catalogue import CatalogueEntry

ROWS, TOKENS = 1000, 64  # rows of the time column, and tokens of each
COLUMNS = ("base", "size", "license", "lang", "tools", "ctx", "speed", "GB", "min", "tried")
# left out where the terminal is narrow, in this order
OPTIONAL = ("tried", "ctx", "tools", "lang", "license")
LEGEND = f"""\
lang: a language or their count; tools: trained for tool calls; ctx: tokens of context
speed: fast (slmctl's kernels), packed (no padding), slow (padded batches)
GB, min: estimated memory and minutes to train on {ROWS:,} rows of {TOKENS} tokens, on this machine
tried: with real weights, or by its class alone, with random ones
`slmctl bases NAME` shows the line for slmctl.yaml; `slmctl doctor` measures the processor anew"""


@click.command()
@click.argument("name", required=False)
@click.option(
    "--max-memory",
    type=click.FloatRange(min=0),
    metavar="GB",
    help="Bases that train in so much memory at full speed.",
)
@click.option("--license", metavar="ID", help="Bases under this license, such as apache-2.0.")
@click.option("--language", metavar="CODE", help="Bases that know this language, such as de.")
@click.option("--tools", is_flag=True, help="Bases that were trained for tool calls.")
@option("--json", store="json", is_flag=True, help="Print the list as JSON.")
@common_options
@click.pass_obj
def bases(
    options: Options,
    name: str | None,
    max_memory: float | None,
    license: str | None,
    language: str | None,
    tools: bool,
) -> None:
    """List bases to choose from, the smallest first, or show the one called NAME.

    Nothing is downloaded. Other models of the hub work too, if their architecture does.
    """
    from slmctl import config
    from slmctl.init.proposal import Machine
    from slmctl.model_files import catalogue

    machine = Machine(measured_rates(), config.resolve_matmul_dtype("auto"))
    if name is not None:
        entry = catalogue.find(name)
        print_result(options, _fields(entry, machine), _page(entry, machine))
        return

    def is_listed(entry: CatalogueEntry) -> bool:
        fits = max_memory is None or machine.training_bytes(entry) <= max_memory * 1e9
        is_licensed = license is None or entry.license == license.lower()
        speaks = language is None or entry.speaks(language)
        return fits and is_licensed and speaks and (not tools or bool(entry.tools))

    chosen = [entry for entry in catalogue.entries() if is_listed(entry)]
    console = terminal()
    rows = [_row(entry, machine) for entry in chosen]
    lines = console.table_lines(COLUMNS, rows, wrapped="license", optional=OPTIONAL) if rows else []
    print_result(options, [_fields(entry, machine) for entry in chosen], lines)
    if not options.json:
        console.say(LEGEND if rows else "no base of the catalogue is like that")


def measured_rates() -> Mapping[str, float]:
    """GFLOP/s of products by type, measured at the first call;
    empty where torch is missing or broken.
    """
    from slmctl.cli import matmul_rates
    from slmctl.errors import MissingError
    from slmctl.installation import pip_line

    rates = matmul_rates.stored()
    outdated = matmul_rates.stored_load() and not matmul_rates.load()
    if (rates is None or outdated) and matmul_rates.torch_version():
        terminal().say("measuring this processor's matrix products, once")
        try:
            rates = matmul_rates.measure().best
        except MissingError as error:
            terminal().say(f"note: {error.message}; {error.hint}")
    elif rates is None:
        terminal().say(f"note: without torch no times are known: {pip_line('encoder')}")
    if rates and (remark := matmul_rates.remark()):
        terminal().say(f"note: {remark}")
    return rates or {}


def _row(entry: CatalogueEntry, machine: Machine) -> list[str]:
    from slmctl.model_files.base_model import size_label

    minutes = machine.minutes(entry, ROWS * TOKENS)
    return [
        entry.short_name,
        size_label(entry.parameters),
        entry.license,
        _languages(entry),
        {True: "yes", False: "no", None: "-"}[entry.tools],
        f"{entry.context // 1024}k",
        entry.training,
        f"{machine.training_bytes(entry) / 1e9:.2f}",
        "-" if not minutes else _rounded(minutes),
        "weights" if entry.weights else "class",
    ]


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _languages(entry: CatalogueEntry) -> str:
    return entry.languages[0] if len(entry.languages) == 1 else str(entry.language_count or "-")


def _page(entry: CatalogueEntry, machine: Machine) -> list[str]:
    """The lines about one base, those for slmctl.yaml first."""
    from slmctl.model_files.base_model import size_label

    pin = f"pull: {{sha256: {entry.sha256}}}" if entry.sha256 else ""
    remark = "" if entry.package or entry.commit else "   # slmctl pull says the commit to add"
    minutes = machine.minutes(entry, ROWS * TOKENS)
    most, least = (
        terminal().size(machine.training_bytes(entry, small=small)) for small in (False, True)
    )
    facts = {
        "base": entry.name,
        "size": f"{size_label(entry.parameters)} parameters",
        "license": entry.license,
        "languages": ", ".join(entry.languages) or str(entry.language_count or "not known"),
        "tool calls": {True: "yes", False: "no", None: "not known"}[entry.tools],
        "context": f"{entry.context:,} tokens",
        "class": entry.model_class,
        "training": {
            "fast": "fast: slmctl's own kernels on packed batches",
            "packed": "packed: no padding, layers of transformers",
            "slow": "slow: padded batches, layers of transformers",
        }[entry.training],
        "memory": f"about {most} to train, {least} in small pieces",
        "time": f"about {_rounded(minutes)} minutes for {ROWS:,} rows of {TOKENS} tokens"
        if minutes
        else "",
        "tried": "with its real weights"
        if entry.weights
        else "by its class alone, with random weights",
        "note": entry.note,
    }
    about = [f"{key:<12}{value}" for key, value in facts.items() if value]
    hub = [f"# or, with its original weights: base: {entry.hub_source}"] if entry.package else []
    return [f"base: {entry.source}{remark}", *([pin] if pin else []), *hub, "", *about]


def _fields(entry: CatalogueEntry, machine: Machine) -> JsonObject:
    minutes = machine.minutes(entry, ROWS * TOKENS)
    return {
        "name": entry.name,
        "source": entry.source,
        **{key: value for key, value in vars(entry).items() if value not in ("", None)},
        "training_memory_bytes": machine.training_bytes(entry),
        "training_memory_bytes_least": machine.training_bytes(entry, small=True),
        "training_minutes": round(minutes, 1) if minutes else None,
    }
