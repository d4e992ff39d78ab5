"""Pictures on a page: label maps in colours, columns under titles, rows under captions."""
import hashlib
import os

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

FAKE_COLOUR = (255, 0, 255)  # of pixels that D calls "fake"


def to_pixels(image):
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8 array."""
    return image.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def colour_labels(label_map, palette):
    """label_map (..., H, W) integers, palette (C, 3) uint8 -> (..., H, W, 3) uint8."""
    return np.asarray(palette)[np.asarray(label_map)]


def default_palette(count, unknown):
    """(count, 3) uint8 distinct colours (PASCAL VOC's bit pattern), black for the unknown class."""
    index = np.arange(1, count + 1)[:, None]
    bits = (index >> (3 * np.arange(8)[:, None, None] + np.arange(3))) & 1    # (8, count, 3)
    palette = (bits << (7 - np.arange(8)[:, None, None])).sum(axis=0).astype(np.uint8)
    if unknown is not None:
        palette[unknown] = 0
    return palette


def seal(picture, file, text):
    """By which a picture (H, W, 3) uint8 is known again: the sha256 of a text, its name and folder, and its pixels."""
    return hashlib.sha256(f"{text} {file.parent.name}/{file.name} ".encode() + picture.tobytes()).hexdigest()


def save_picture(picture, file, compress_level=6, sealed=None):
    """A PIL image or (H, W, 3) uint8 array: a whole PNG or none, whenever the process is killed.

    sealed: a text for seal, of an array; readers.images.read_rgb asks for the same."""
    info = PngImagePlugin.PngInfo()
    if sealed is not None:
        info.add_text("seal", seal(picture, file, sealed))
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    temporary = file.with_name(file.name + ".tmp")
    try:
        picture.save(temporary, format="PNG", compress_level=compress_level, pnginfo=info)
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def legend_of(label_maps, classes, palette):
    """{class: colour} of the classes in label maps [(..., H, W) integers, ...]."""
    seen = set().union(*(np.unique(label_map).tolist() for label_map in label_maps))
    return {classes[c]: tuple(map(int, palette[c])) for c in sorted(seen)}


def draw_columns(columns, path, legend=()):
    """columns {title: (rows, H, W, 3) uint8} -> one PNG, a title over each column; small pictures enlarged."""
    draw_rows([("", pictures) for pictures in zip(*columns.values())], path, list(columns), legend, height=128, gap=0)


def draw_rows(rows, path, titles=(), legend=(), height=192, gap=4):
    """rows [(caption, [(H, W, 3) uint8, ...]), ...] -> a PNG, each row under its caption, if it has one; small pictures
    enlarged to about `height`. titles: of the columns. legend: of legend_of, below. gap: pixels between columns."""
    H, W = rows[0][1][0].shape[:2]
    zoom, font = max(1, round(height / H)), ImageFont.load_default(size=12)
    head, text = 16 if titles else 0, 16 if rows[0][0] else 0
    width, foot, right, places = len(rows[0][1]) * (W * zoom + gap) - gap, head + len(rows) * (H * zoom + text), 2, {}
    for name in legend:
        if right > 2 and right + 16 + font.getlength(name) > width:
            right, foot = 2, foot + 16
        places[name] = right, foot + 2
        right += 28 + font.getlength(name)
    sheet = Image.new("RGB", (width, foot + 16 * bool(legend)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.font = font
    for name, (x, y) in places.items():
        draw.rectangle((x, y, x + 11, y + 11), fill=legend[name], outline="black")
        draw.text((x + 16, y), name, fill="black")
    for n, title in enumerate(titles[:len(rows[0][1])]):
        draw.text((n * (W * zoom + gap) + 2, 2), title, fill="black")
    for n, (caption, pictures) in enumerate(rows):
        top = head + n * (H * zoom + text)
        draw.text((2, top + 2), caption, fill="black")
        for m, picture in enumerate(pictures):
            picture = Image.fromarray(picture).resize((W * zoom, H * zoom), Image.NEAREST)
            sheet.paste(picture, (m * (W * zoom + gap), top + text))
    save_picture(sheet, path)


@torch.no_grad()
def strip_columns(G, ema, D, samples, z, dataset, device):
    """The anatomy of training, columns and legend for draw_columns: what goes in, what comes out, what D says.

    samples: of the validation set. z: 2 B tensors (d_z,), two for each sample. dataset: has classes and palette.
    """
    real = torch.stack([s["image"] for s in samples]).to(device).float() / 127.5 - 1               # (B, 3, H, W)
    label_map = torch.stack([s["label_map"] for s in samples]).to(device).long()                   # (B, H, W)
    offsets = torch.stack([s["offsets"] for s in samples]).to(device) if "offsets" in samples[0] else None
    z_1, z_2 = torch.stack(z[::2]).to(device), torch.stack(z[1::2]).to(device)                     # (B, d_z) each
    G.eval()
    generated, averaged, second = G(label_map, z_1, offsets), ema(label_map, z_1, offsets), ema(label_map, z_2, offsets)
    G.train()
    palette = np.concatenate([dataset.palette, [FAKE_COLOUR]]).astype(np.uint8)
    D.eval()  # no power iteration of its spectral norm: looking must not change the run
    maps = [label_map.cpu(), *(D(image).argmax(dim=1).cpu() for image in (real, generated))]       # (B, H, W) each
    D.train()
    columns = {"label map": colour_labels(maps[0], palette), "real": to_pixels(real),
               "generated": to_pixels(generated), "EMA": to_pixels(averaged), "EMA, second z": to_pixels(second),
               "D on real": colour_labels(maps[1], palette), "D on generated": colour_labels(maps[2], palette)}
    return columns, legend_of(maps, [*dataset.classes, '"fake"'], palette)
