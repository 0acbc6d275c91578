"""Rows -> an Excel workbook of one sheet, written block by block.

A text stays a text: one that begins with `=` is not a formula, and `007` stays as it is. Python's
zip module and plain XML are enough: XlsxWriter 3.3 rounds numbers to 16 digits (4/3 is read back as
another number), raises on half a surrogate pair, keeps the rows in temporary files that a killed
run leaves, and takes 2.5 times as long.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any
from xml.sax.saxutils import escape

from slmctl.errors import DataError
from slmctl.sources.rows.cells import Row

# of a sheet, of a cell's characters: Excel's own
MAX_ROWS = 1_048_576
MAX_COLUMNS = 16_384
MAX_TEXT = 32_767
_EXACT = 10**15  # Excel keeps 15 digits of a number
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_LINKS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPES = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_PARTS = {
    "[Content_Types].xml": (
        f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPES}.sheet.main+xml"/>'
        '<Override PartName="/xl/worksheets/sheet1.xml" '
        f'ContentType="{_TYPES}.worksheet+xml"/></Types>'
    ),
    "_rels/.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_LINKS}/officeDocument" '
        'Target="xl/workbook.xml"/></Relationships>'
    ),
    "xl/workbook.xml": (
        f'<workbook xmlns="{_MAIN}" xmlns:r="{_LINKS}">'
        '<sheets><sheet name="answers" sheetId="1" r:id="rId1"/></sheets></workbook>'
    ),
    "xl/_rels/workbook.xml.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_LINKS}/worksheet" '
        'Target="worksheets/sheet1.xml"/></Relationships>'
    ),
}
# Characters that XML forbids, and text that would be read as the escape of one
_ESCAPED = re.compile(
    r"[\x00-\x08\x0b\x0c\x0d\x0e-\x1f\ud800-\udfff\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)"
)


def require_fits(rows: Iterable[Row], columns: int) -> None:
    """Refuse rows that a sheet cannot hold, before any of them is answered.

    Raises:
        DataError: They are too many, or too wide, or a cell is too long.
    """
    if columns > MAX_COLUMNS:
        raise _too_large(f"{columns:,} columns", f"{MAX_COLUMNS:,}")
    for count, row in enumerate(rows, 1):
        if count >= MAX_ROWS:
            raise _too_large(f"more than {MAX_ROWS - 1:,} rows", f"{MAX_ROWS:,}")
        for name, value in row.columns.items():
            if len(_text(value)) > MAX_TEXT:
                what = f"{len(_text(value)):,} characters in '{name[:60]}' of row {row.number}"
                raise _too_large(what, f"{MAX_TEXT:,}")


@contextlib.contextmanager
def writer(
    raw: IO[bytes], columns: Sequence[str]
) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """A function that writes a block of rows to `raw`, below a header. Equal rows give equal bytes.

    Raises:
        DataError: An answer is longer than a cell may be.
    """
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _PARTS.items():
            archive.writestr(_entry(name), _HEAD + content)
        with archive.open(_entry("xl/worksheets/sheet1.xml"), "w", force_zip64=True) as sheet:
            sheet.write(f'{_HEAD}<worksheet xmlns="{_MAIN}"><sheetData>'.encode())
            letters = [_letters(place) for place in range(len(columns))]
            numbers = itertools.count(1)

            def write(block: list[dict[str, Any]]) -> None:
                cells = ([fields.get(name) for name in columns] for fields in block)
                sheet.write(b"".join(_row(next(numbers), row, letters) for row in cells))

            sheet.write(_row(next(numbers), columns, letters))

            yield write
            sheet.write(b"</sheetData></worksheet>")


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # of 1980: the day is no part of the content
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _letters(place: int) -> str:
    """`A` for 0, `AA` for 26."""
    before, last = divmod(place, 26)
    return (_letters(before - 1) if before else "") + chr(65 + last)


def _row(number: int, cells: Sequence[Any], letters: Sequence[str]) -> bytes:
    written = (
        _cell(f"{letter}{number}", value) for letter, value in zip(letters, cells, strict=True)
    )
    return f'<row r="{number}">{"".join(written)}</row>'.encode()


def _cell(place: str, value: Any) -> str:
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return f'<c r="{place}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < _EXACT):
        return f'<c r="{place}"><v>{value!r}</v></c>'
    text = _text(value)
    if len(text) > MAX_TEXT:
        raise _too_large(f"an answer of {len(text):,} characters", f"{MAX_TEXT:,}")
    text = _ESCAPED.sub(lambda match: f"_x{ord(match[0]):04X}_", text)
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{escape(text)}</t></is></c>'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _too_large(what: str, most: str) -> DataError:
    return DataError(
        f"a workbook cannot hold {what}: at most {most}", hint="--output answers.csv, or .parquet"
    )
