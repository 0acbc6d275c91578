"""Pages of paper as a scanner, a telephone or a fax leaves them: PDFs of pictures alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import fpdf
import numpy as np
import pypdfium2
from PIL import Image, ImageFilter

Change = Callable[[Image.Image], Image.Image]
POINTS = 72  # an inch


def scan(paper: bytes, *, dpi: int = 300, change: Change = lambda picture: picture) -> bytes:
    """The pages of a PDF as pictures; `change` is what befalls each of them."""
    with pypdfium2.PdfDocument(paper) as pdf:
        pictures = [page.render(scale=dpi / POINTS).to_pil().convert("L") for page in pdf]
    return of_pictures(list(map(change, pictures)), dpi)


def of_pictures(pictures: Sequence[Image.Image], dpi: int) -> bytes:
    """A PDF of pictures, a page each."""
    out = fpdf.FPDF(unit="pt")
    for picture in pictures:
        width, height = (POINTS * side / dpi for side in picture.size)
        out.add_page(format=(width, height))
        stream = io.BytesIO()
        picture.save(stream, "jpeg", quality=80)
        out.image(stream, 0, 0, width, height)
    return bytes(out.output())


def turned(degrees: float) -> Change:
    """Laid on the glass at an angle, counterclockwise."""
    return lambda picture: picture.rotate(degrees, expand=True, fillcolor=255, resample=3)


def photographed(picture: Image.Image) -> Image.Image:
    """From one side, in uneven light, a little out of focus, and with the noise of its chip."""
    width, height = picture.size
    corners = (0.03 * width, 0.05 * height, -0.04 * width, 1.02 * height)
    corners += (1.06 * width, 0.97 * height, 0.95 * width, -0.02 * height)
    leant = picture.transform(picture.size, Image.Transform.QUAD, corners, 3, fillcolor=255)
    blurred = leant.filter(ImageFilter.GaussianBlur(width / 2500))
    light = np.linspace(0.95, 0.6, width)
    noise = np.random.default_rng(0).normal(0, 8, (height, width))
    return Image.fromarray(np.clip(np.asarray(blurred) * light + noise, 0, 255).astype(np.uint8))


def faxed(picture: Image.Image) -> Image.Image:
    """In black and white, with dots that the line has left."""
    dots = np.random.default_rng(0).random((picture.height, picture.width)) < 0.003
    black = np.asarray(picture) < 160
    return Image.fromarray(np.where(black ^ dots, 0, 255).astype(np.uint8))
