"""Pages that are pictures of text -> their text, by rapidocr.

PP-OCRv6 finds the lines of a page and recognises each. Its models are in the wheel of rapidocr, so
nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from rapidocr import RapidOCR

from slmctl.hardware import usable_cores

if TYPE_CHECKING:
    import pypdfium2

Array = npt.NDArray[Any]

SIDE = 2000  # pixels of the longer side, in which rapidocr finds lines
THREADS = 4  # at most; each one takes address space, which is bounded
KEPT = 0.5  # least certainty of a line of the text
SURE = 0.8  # of a page that need not be turned, and of one that is accepted
TALL = 1.5  # times as high as wide: a line of a page that lies on its side


@dataclass(frozen=True)
class PageText:
    """The text of a page as it was recognised.

    Attributes:
        certainty: Mean certainty of its lines by their lengths, 0 to 1; 1 for a page without any.
        is_sideways: Most of its lines run up or down.
    """

    text: str
    certainty: float = 1.0
    is_sideways: bool = False

    @property
    def is_sure(self) -> bool:
        """True if the text can be used, and the page lies upright."""
        return self.certainty >= SURE and not self.is_sideways


class PageReader:
    """Recognises pages, upright ones and turned ones."""

    def __init__(self) -> None:
        threads = min(usable_cores(), THREADS)
        cv2.setNumThreads(threads)
        settings = {
            "Global.log_level": "critical",
            "Global.text_score": 0.0,
            "Global.use_cls": False,  # it turns lines that are upright
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        }
        self._reader = RapidOCR(params=settings)

    def __call__(self, page: pypdfium2.PdfPage) -> PageText:
        """The text of a page, in the direction in which it is read most surely."""
        picture = page.render(scale=SIDE / max(page.get_size())).to_numpy()
        upright = self._read(picture)
        if upright.is_sure:
            return upright
        turns = (1, 3) if upright.is_sideways else (2,)
        turned = [self._read(np.rot90(picture, turn)) for turn in turns]
        return max(upright, *turned, key=lambda read: (not read.is_sideways, read.certainty))

    def _read(self, picture: Array) -> PageText:
        """The text of a picture (height, width, 3)."""
        read = self._reader(np.ascontiguousarray(picture))
        if not any(sign.isalnum() for text in read.txts or () for sign in text):
            return PageText("")  # a drawing, a stamp, a spot
        boxes, scores = np.asarray(read.boxes), np.asarray(read.scores)
        certainty = np.average(scores, weights=[len(text) for text in read.txts])
        lengths = _lengths(boxes)
        tall = np.mean(lengths[1] > TALL * lengths[0])
        kept = np.flatnonzero(scores >= KEPT)
        text = in_lines(boxes[kept], [read.txts[k] for k in kept])
        return PageText(text, float(certainty), bool(tall > 0.5))


def _lengths(boxes: Array) -> tuple[Array, Array]:
    """Widths and heights (n,) of boxes."""
    across, down = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 0]
    return np.linalg.norm(across, axis=1), np.linalg.norm(down, axis=1)


def in_lines(boxes: Array, texts: Sequence[str]) -> str:
    """Texts in the order in which a page is read: a line of it is a line of the result.

    Args:
        boxes: Corners of each text (n, 4, 2), from the upper left one on, in pixels. The page may
            lie at an angle.
    """
    if not texts:
        return ""
    widths, heights = _lengths(boxes)
    across = (boxes[:, 1] - boxes[:, 0])[widths >= np.median(widths)]
    angle = np.median(np.arctan2(across[:, 1], across[:, 0]))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centres = boxes.mean(axis=1) @ turn
    lines: list[list[int]] = []
    for k in np.argsort(centres[:, 1]):
        if lines and centres[k, 1] - centres[lines[-1][0], 1] < heights[k] / 2:
            lines[-1].append(int(k))
        else:
            lines.append([int(k)])
    ordered = [sorted(line, key=lambda k: float(centres[k, 0])) for line in lines]
    return "\n".join(" ".join(texts[k] for k in line) for line in ordered)
