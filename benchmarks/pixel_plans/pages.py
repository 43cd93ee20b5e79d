"""Twenty pages and screens, drawn by code: text, tables, charts, screenshots. The same at every run with one Pillow."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

A4, SCREEN, SLIDE, PHONE = (840, 1188), (1280, 800), (1280, 720), (420, 910)
WHITE, BLACK, GREY, PALE, DARK = (255, 255, 255), (20, 20, 20), (150, 150, 150), (242, 244, 247), (30, 32, 38)
COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189))
TEXT = """
the and in that it was be on he but are have or an which you all she would we been when will more out up what
about into can other new could two first do like now such man even made also many before well through much your
down because report figure value water result sample order account
"""
WORDS = TEXT.split()


@dataclass(frozen=True)
class Page:
    """One picture, [H, W, 3] uint8."""

    name: str
    pixels: np.ndarray


class _Canvas:
    """A page that is being drawn, with words and numbers of its own."""

    def __init__(self, size: tuple[int, int], background: tuple[int, int, int], seed: int) -> None:
        self.image = Image.new("RGB", size, background)
        self.draw = ImageDraw.Draw(self.image)
        self.random = random.Random(seed)
        self.width, self.height = size

    def words(self, count: int) -> str:
        return " ".join(self.random.choice(WORDS) for _ in range(count))

    def text(self, x: float, y: float, text: str, size: int = 15, fill: tuple[int, int, int] = BLACK) -> None:
        self.draw.text((x, y), text, fill=fill, font=ImageFont.load_default(size))

    def box(self, x: float, y: float, w: float, h: float, fill: tuple[int, int, int] | None = None) -> None:
        self.draw.rectangle((x, y, x + w - 1, y + h - 1), fill=fill, outline=None if fill else GREY)

    def paragraph(
        self, x: int, y: int, width: int, lines: int, size: int = 15, fill: tuple[int, int, int] = BLACK
    ) -> int:
        """Lines of text; where the next one would be."""
        font = ImageFont.load_default(size)
        for line in range(lines):
            limit = width * (self.random.uniform(0.3, 0.9) if line == lines - 1 else 1)
            words = self.random.choice(WORDS)
            while self.draw.textlength(f"{words} {(more := self.random.choice(WORDS))}", font=font) < limit:
                words = f"{words} {more}"
            self.draw.text((x, y), words, fill=fill, font=font)
            y += round(size * 1.45)
        return y + size

    def table(self, x: int, y: int, columns: int, rows: int, cell: tuple[int, int], lines: bool = True) -> int:
        """Numbers below headings; where it ends."""
        w, h = cell
        self.box(x, y, w * columns, h, PALE)
        for row in range(rows):
            for column in range(columns):
                said = self.words(1) if row == 0 or column == 0 else f"{self.random.uniform(0, 900):.1f}"
                self.text(x + w * column + 8, y + h * row + h // 4, said, h // 2)
        for row in range(rows + 1) if lines else ():
            self.draw.line((x, y + h * row, x + w * columns, y + h * row), fill=GREY)
        return y + h * rows

    def axes(self, x: int, y: int, w: int, h: int) -> None:
        self.draw.line((x, y, x, y + h, x + w, y + h), fill=BLACK, width=2)
        for tick in range(5):
            self.text(x - 44, y + h * tick // 4 - 8, f"{100 - 25 * tick}", 14)
            self.draw.line((x, y + h * tick // 4, x + w, y + h * tick // 4), fill=(225, 225, 225))

    def bars(self, x: int, y: int, w: int, h: int, count: int) -> None:
        self.axes(x, y, w, h)
        for bar in range(count):
            height = self.random.randint(h // 8, h)
            self.box(x + w * bar // count + 12, y + h - height, w // count - 24, height, COLOURS[bar % 5])
            self.text(x + w * bar // count + 14, y + h + 8, self.words(1), 14)

    def curves(self, x: int, y: int, w: int, h: int, count: int) -> None:
        self.axes(x, y, w, h)
        for curve in range(count):
            heights = [self.random.randint(0, h) for _ in range(12)]
            points = [(x + w * i // 11, y + height) for i, height in enumerate(heights)]
            self.draw.line(points, fill=COLOURS[curve], width=3)

    def photo(self, x: int, y: int, w: int, h: int) -> None:
        """Something that is flat nowhere."""
        grain = np.random.default_rng(self.random.randint(0, 2**31)).uniform(0, 255, (h // 12 + 1, w // 12 + 1, 3))
        picture = Image.fromarray(grain.astype(np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
        self.image.paste(picture, (x, y))


def _letter(page: _Canvas) -> None:
    page.text(80, 70, "Northern Water Company", 22)
    y = 160
    for _ in range(4):
        y = page.paragraph(80, y, 680, 5)
    page.text(80, y + 40, "Yours sincerely", 15)


def _paper(page: _Canvas) -> None:
    page.text(180, 60, page.words(7).title(), 24)
    for x in (60, 435):
        y = 150
        for _ in range(4):
            y = page.paragraph(x, y, 345, 11, 12)
    page.curves(110, 1000, 270, 120, 2)


def _book(page: _Canvas) -> None:
    y = 80
    while y < 1000:
        y = page.paragraph(90, y, 660, 8, 17)


def _big_table(page: _Canvas) -> None:
    page.text(60, 50, "Table 3: " + page.words(6), 18)
    page.table(60, 110, 6, 30, (120, 33))


def _invoice(page: _Canvas) -> None:
    page.box(60, 60, 160, 60, COLOURS[0])
    page.text(520, 70, "INVOICE 20491", 26)
    page.paragraph(60, 160, 300, 4)
    end = page.table(60, 320, 4, 9, (180, 40))
    page.text(560, end + 30, "Total 4,209.50", 20)
    page.paragraph(60, 1080, 700, 2, 11, GREY)


def _form(page: _Canvas) -> None:
    page.text(60, 50, "Application for a permit", 26)
    for row in range(12):
        page.text(60, 140 + 78 * row, page.words(3), 14)
        page.box(60, 162 + 78 * row, 340 if row % 3 else 720, 40)


def _bar_chart(page: _Canvas) -> None:
    page.text(420, 30, page.words(5), 24)
    page.bars(120, 100, 1050, 520, 7)


def _line_chart(page: _Canvas) -> None:
    page.text(420, 30, page.words(5), 24)
    page.curves(120, 100, 1050, 520, 4)


def _pie_chart(page: _Canvas) -> None:
    page.text(420, 30, page.words(5), 24)
    start = 0
    for part, share in enumerate((90, 120, 45, 75, 30)):
        page.draw.pieslice((380, 110, 900, 630), start, start + share, fill=COLOURS[part])
        page.box(980, 160 + 60 * part, 24, 24, COLOURS[part])
        page.text(1020, 160 + 60 * part, page.words(2), 18)
        start += share


def _slide(page: _Canvas) -> None:
    page.box(0, 0, page.width, 100, COLOURS[0])
    page.text(60, 28, page.words(4).title(), 38, WHITE)
    for row in range(5):
        page.text(90, 170 + 90 * row, "- " + page.words(6), 28)


def _dashboard(page: _Canvas) -> None:
    page.box(0, 0, 200, page.height, DARK)
    for row in range(9):
        page.text(24, 80 + 48 * row, page.words(2), 16, GREY)
    for column in range(3):
        page.box(230 + 345 * column, 30, 320, 110, WHITE)
        page.text(250 + 345 * column, 60, f"{page.random.randint(100, 9999)}", 38)
    page.box(230, 170, 1010, 600, WHITE)
    page.bars(310, 210, 400, 480, 5)
    page.curves(800, 210, 400, 480, 2)


def _editor(page: _Canvas) -> None:
    page.box(0, 0, 220, page.height, (24, 25, 30))
    for row in range(20):
        page.text(20, 20 + 26 * row, page.words(1) + ".py", 14, GREY)
    for row in range(34):
        indent = 24 * page.random.randint(0, 3)
        page.text(240, 14 + 22 * row, f"{row + 1}", 13, (90, 95, 105))
        if page.random.random() < 0.85:
            page.text(290 + indent, 14 + 22 * row, page.words(page.random.randint(1, 8)), 15, COLOURS[row % 3])


def _terminal(page: _Canvas) -> None:
    for row in range(28):
        page.text(10, 8 + 24 * row, "$ " + page.words(page.random.randint(1, 12)), 15, (120, 220, 120))


def _web_page(page: _Canvas) -> None:
    page.box(0, 0, page.width, 64, PALE)
    for item in range(6):
        page.text(60 + 160 * item, 22, page.words(1).title(), 16)
    page.photo(60, 100, 560, 320)
    page.paragraph(660, 110, 540, 13, 16)
    for column in range(3):
        page.box(60 + 400 * column, 460, 360, 300)
        page.paragraph(80 + 400 * column, 490, 320, 9, 14)


def _sheet(page: _Canvas) -> None:
    for column in range(16):
        page.draw.line((80 * column, 0, 80 * column, page.height), fill=(225, 225, 225))
    for row in range(33):
        page.draw.line((0, 24 * row, page.width, 24 * row), fill=(225, 225, 225))
        for column in range(16):
            if column < 6 and row < 18:
                page.text(80 * column + 6, 24 * row + 5, f"{page.random.randint(1, 9999)}", 13)


def _dialog(page: _Canvas) -> None:
    page.box(390, 250, 500, 300, PALE)
    page.text(410, 268, "Save changes?", 20)
    page.paragraph(410, 320, 460, 3)
    for column, name in enumerate(("Cancel", "Save")):
        page.box(630 + 125 * column, 490, 110, 38, (COLOURS[0], GREY)[column == 0])
        page.text(655 + 125 * column, 500, name, 16, WHITE)


def _chat(page: _Canvas) -> None:
    y = 90
    while y < 820:
        lines = page.random.randint(1, 3)
        left = page.random.random() < 0.5
        page.box(20 if left else 110, y, 290, 22 * lines + 22, WHITE if left else (210, 235, 255))
        page.paragraph(32 if left else 122, y + 10, 250, lines, 14)
        y += 22 * lines + 44


def _magazine(page: _Canvas) -> None:
    page.photo(0, 0, page.width, 640)
    page.text(60, 680, page.words(4).title(), 36)
    for x in (60, 435):
        page.paragraph(x, 760, 345, 18, 13)


_KINDS: tuple[tuple[Callable[[_Canvas], None], tuple[int, int], tuple[int, int, int]], ...] = (
    (_letter, A4, WHITE),
    (_paper, A4, WHITE),
    (_book, A4, (250, 246, 236)),
    (_big_table, A4, WHITE),
    (_invoice, A4, WHITE),
    (_form, A4, WHITE),
    (_bar_chart, SLIDE, WHITE),
    (_line_chart, SLIDE, WHITE),
    (_pie_chart, SLIDE, WHITE),
    (_slide, SLIDE, WHITE),
    (_dashboard, SCREEN, PALE),
    (_editor, SCREEN, DARK),
    (_terminal, SCREEN, (0, 0, 0)),
    (_web_page, SCREEN, WHITE),
    (_sheet, SCREEN, WHITE),
    (_dialog, SCREEN, (60, 110, 150)),
    (_chat, PHONE, (232, 236, 240)),
    (_magazine, A4, WHITE),
)


def draw_pages() -> list[Page]:
    """The twenty pages: eighteen as they are drawn, then the letter through JPEG and as a scanner would see it."""
    pages = []
    for seed, (draw, size, background) in enumerate(_KINDS):
        canvas = _Canvas(size, background, seed)
        draw(canvas)
        pages.append(Page(draw.__name__[1:].replace("_", " "), np.asarray(canvas.image)))
    letter = pages[0].pixels
    return [*pages, Page("letter, JPEG 75", _jpeg(letter)), Page("letter, scanned", _scanned(letter))]


def _jpeg(pixels: np.ndarray) -> np.ndarray:
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "JPEG", quality=75)
    return np.asarray(Image.open(packed))


def _scanned(pixels: np.ndarray) -> np.ndarray:
    """With noise of 1 grey level and light that falls off by 6 over the page."""
    noise = np.random.default_rng(0).normal(0, 1.0, pixels.shape)
    light = np.linspace(0, 6, len(pixels))[:, None, None]
    return np.clip(np.rint(pixels - 8 - light + noise), 0, 255).astype(np.uint8)
