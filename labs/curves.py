"""Curves between axes, for the pictures of handouts; Pillow alone."""
import numpy as np
from PIL import Image, ImageDraw

from support.pages import save_picture

COLOURS = ((31, 90, 180), (210, 80, 30), (40, 140, 60), (140, 60, 160), (90, 90, 90))
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 400, 270, 44, 34, 24  # of a panel, and what surrounds its axes


def draw_curves(panels, path):
    """panels [{"title", "x", "curves": {name: (n,) values}, "ends", "top", "x_name", "marks": [(x, y, text), ...]},
    ...], side by side in one PNG. x (n,) is shared by the curves; ends: of the x axis; top: of the y axis, which begins
    at 0; x_name: what stands above the left end of the x axis."""
    sheet = Image.new("RGB", (WIDTH * len(panels), HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for n, panel in enumerate(panels):
        (first, last), high = panel["ends"], panel["top"]
        left, right, top, bottom = n * WIDTH + LEFT, (n + 1) * WIDTH - 12, TOP, HEIGHT - BOTTOM

        def place(x_of, y_of):
            return left + (x_of - first) / (last - first) * (right - left), bottom - y_of / high * (bottom - top)
        draw.text((left, 6), panel["title"], fill="black")
        for share in np.linspace(0, 1, 5):
            px, py = place(first + share * (last - first), share * high)
            draw.line((left, py, right, py), fill=(225, 225, 225))
            draw.text((n * WIDTH + 4, py - 6), f"{share * high:.3g}", fill="black")
            draw.text((px - 8, bottom + 6), f"{first + share * (last - first):.3g}", fill="black")
        draw.rectangle((left, top, right, bottom), outline="black")
        draw.text((left + 4, bottom - 16), panel.get("x_name", ""), fill="black")
        for (name, values), colour, line in zip(panel["curves"].items(), COLOURS, range(len(COLOURS))):
            points = [place(a, b) for a, b in zip(panel["x"], np.asarray(values, float)) if 0 <= b <= high]
            draw.line(points, fill=colour, width=2)
            draw.text((left + 110, top + 6 + 14 * line), name, fill=colour)
        for a, b, text in panel.get("marks", ()):
            px, py = place(a, b)
            draw.ellipse((px - 4, py - 4, px + 4, py + 4), fill="black")
            draw.text((px - 3 * len(text), py - 18), text, fill="black")
    save_picture(sheet.quantize(64), path)
