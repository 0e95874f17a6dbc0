"""Many pictures on one sheet."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

TILE = (320, 180)  # px
GAP = 8
CAPTION = 22
BACKGROUND, INK = "#101014", "#e8e8ee"


class Tile(NamedTuple):
    picture: Image.Image
    caption: str


def contact_sheet(tiles: Sequence[Tile]) -> Image.Image:
    """RGB; about as many columns as rows, each picture whole in its 320×180 cell, caption below."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    cell_width, cell_height = TILE[0] + GAP, TILE[1] + CAPTION + GAP
    sheet = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for position, tile in enumerate(tiles):
        row, column = divmod(position, columns)
        x, y = GAP + column * cell_width, GAP + row * cell_height
        width, height = tile.picture.size
        sheet.paste(tile.picture, (x + (TILE[0] - width) // 2, y + (TILE[1] - height) // 2))
        draw.text((x, y + TILE[1] + 2), tile.caption, fill=INK, font=font)
    return sheet
