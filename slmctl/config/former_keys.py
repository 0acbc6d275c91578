"""Keys by the names that they had in an earlier release: understood, with a notice that tells today's."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from slmctl import console
from slmctl.config.fields import former_name, section_in
from slmctl.config.strict_yaml import StrictYaml

_noticed: set[str] = set()  # a command reads the config more than once


def rename(
    values: Any, model: type[BaseModel], lines: StrictYaml, *, overrides: bool, place: tuple[int | str, ...] = ()
) -> None:
    """Give every renamed key in `values` its name of today, in place.

    Args:
        values: What the file holds for `model`; of another shape, it is left to the validation.
        model: A section, or the whole config.
        lines: Where the keys stand; a key that has both names is added to its faults.
        overrides: `values` has been through this before, so a former name in it comes from `--set` and wins.
        place: Where `values` lies in the file.
    """
    if not isinstance(values, dict):
        return
    for name, field in model.model_fields.items():
        former, today = former_name(field), field.alias or name
        if former is not None and former in values:
            if today in values and not overrides:
                lines.faults.append(lines.fault((*place, former), f"is the former name of '{today}', which is set too"))
            lines.rename((*place, former), (*place, today))
            values[today] = values.pop(former)
            _notice((*place, former), today)
        inner, value = section_in(field.annotation), values.get(today)
        if inner is not None:
            for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
                below = (*place, today) if index is None else (*place, today, index)
                rename(item, inner, lines, overrides=overrides, place=below)


def _notice(place: tuple[int | str, ...], today: str) -> None:
    dotted = ".".join(str(key) for key in place if isinstance(key, str))
    if dotted not in _noticed:
        _noticed.add(dotted)
        console.say(f"note: {dotted} is now called {today}; the former name still works")
