"""A sheet of paper: text, rectangles and images at pixel positions."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PAPER, RULE = (24, 28, 36), (104, 112, 126), (255, 255, 255), (214, 219, 227)
_FONTS = {
    False: ("DejaVuSans.ttf", "LiberationSans-Regular.ttf"),
    True: ("DejaVuSans-Bold.ttf", "LiberationSans-Bold.ttf"),
}
_NO_LINE = ("Cc", "Zl", "Zp")
"""Categories of control characters, and of the ends of lines and paragraphs."""
Colour = tuple[int, int, int]


@lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The first font there is; Pillow's own otherwise."""
    for name in _FONTS[bold]:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def one_line(text: str) -> str:
    r"""`text`, as a model may have answered it, without ends of lines and control characters, which Pillow refuses.

    >>> one_line("red,\nthen\u2029blue")
    'red, then blue'
    """
    return "".join(" " if unicodedata.category(character) in _NO_LINE else character for character in text)


class Canvas:
    """White paper of `width` x `height` pixels."""

    def __init__(self, width: int, height: int, paper: Colour = PAPER) -> None:
        self.width, self.height = width, height
        self._image = Image.new("RGB", (width, height), paper)
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self, x: float, y: float, text: str, size: int, *, bold: bool = False, colour: Colour = INK, anchor: str = "lm"
    ) -> float:
        """Writes one line and returns where it ends. `anchor` as in Pillow: left and middle by default."""
        self._draw.text((x, y), one_line(text), font=font(size, bold), fill=colour, anchor=anchor)
        return x + self.measure(text, size, bold=bold)

    def measure(self, text: str, size: int, *, bold: bool = False) -> float:
        """Width of one line."""
        return self._draw.textlength(one_line(text), font=font(size, bold))

    def shorten(self, text: str, size: int, width: float, *, bold: bool = False) -> str:
        """`text` cut to fit into `width`."""
        if self.measure(text, size, bold=bold) <= width:
            return text
        while text and self.measure(text + "...", size, bold=bold) > width:
            text = text[:-1]
        return text.rstrip() + "..."

    def box(
        self, x: float, y: float, width: float, height: float, fill: Colour | None = None, line: Colour | None = None
    ) -> None:
        """A rectangle; of a pixel at the least."""
        self._draw.rectangle((x, y, max(x, x + width - 1), max(y, y + height - 1)), fill=fill, outline=line)

    def paste(self, image: np.ndarray, x: float, y: float) -> None:
        """An RGB image."""
        self._image.paste(Image.fromarray(image), (round(x), round(y)))

    def array(self) -> np.ndarray:
        """[height, width, 3] uint8 RGB."""
        return np.asarray(self._image)

    def image(self) -> Image.Image:
        """For saving."""
        return self._image
