"""What the page asks for, and who may ask. Nothing here writes a file, or reads one that a request names.

    GET  /            the page
    GET  /model       what it must know of the checkpoint, and the maps to begin with
    POST /picture     {labels, instances, regions, noise} -> PNG of the picture
    POST /labels      {labels} -> PNG of class numbers, in the palette's colours; sample.py --labels takes it
    POST /instances   {labels, instances} -> PNG of ids; sample.py --instances takes it
    POST /validation  {index} -> a map of the dataset's validation split
    POST /read        a PNG of class numbers or palette colours -> a map

A map travels as {labels, instances}: base64 of H * W little-endian numbers, classes of 8 bits, ids of 16, 0 = none.
regions, 8 bits, says which entry of `noise` belongs to a pixel; an entry is [seed, other seed, t], t from 0 to 1.
Whatever does not fit is answered by a 4xx and one sentence.
"""
import base64
import io
import ipaddress
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from data import nearest, offset_maps
from generator import z_of_seed
from paint.scenes import draw_scenes
from readers import coco_stuff
from readers.images import MAPS, read_labels
from readers.toy import FORMS
from sample import how_to_read, mix
from support.errors import InputError
from support.pages import to_pixels

PAGE = (Path(__file__).parent / "page.html").read_bytes()
MOST_BYTES, MOST_SIDE, MOST_REGIONS = 16 * 2 ** 20, 8192, 32
SECONDS = 10  # to send a body, and of silence before that
# Classes of which each stroke is an instance of its own; in other datasets with instances the page asks.
THINGS = {"toy": {form.label for form in FORMS}, "cityscapes": range(24, 34), "coco_stuff": range(coco_stuff.THINGS)}
SAFE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin",
        "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}


class Refused(InputError):
    """An InputError that is not a 400."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


class Dropped(io.BytesIO):
    """A file that messages call by this name."""

    def __str__(self):
        return "the dropped file"


# ------------------------------------------------------------------------------------------ maps and noise

def packed(labels, instances):
    return {"labels": base64.b64encode(labels.astype("u1").tobytes()).decode(),
            "instances": base64.b64encode(instances.astype("<u2").tobytes()).decode()}


def plane(request, name, size, dtype, limit):
    """request[name] -> (H, W) array of numbers below `limit`. Raises InputError."""
    try:
        values = np.frombuffer(base64.b64decode(request[name], validate=True), dtype)
    except (KeyError, TypeError, ValueError):
        values = np.empty(0)
    if values.size != size[0] * size[1]:
        raise InputError(f"{name}: expected base64 of {size[0]} x {size[1]} numbers of {np.dtype(dtype).itemsize * 8} "
                         f"bits")
    if values.max() >= limit:
        raise InputError(f"{name}: found {values.max()}, expected numbers below {limit}")
    return values.reshape(size)


def noise_of(entries, z_dim):
    """[[seed, other seed, t], ...] -> (R, d_z), on the way that sample.py --interpolate takes. Raises InputError."""
    def fits(entry):
        return (isinstance(entry, list) and len(entry) == 3 and all(type(seed) is int for seed in entry[:2])
                and all(0 <= seed < 2 ** 32 for seed in entry[:2]) and type(entry[2]) in (int, float)
                and 0 <= entry[2] <= 1)
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_REGIONS or not all(map(fits, entries)):
        raise InputError(f"noise: expected 1 to {MOST_REGIONS} entries [seed, other seed, t], seeds whole numbers from "
                         f"0 to {2 ** 32 - 1} and t from 0 to 1")
    return torch.stack([z_of_seed(a, z_dim) if a == b or t == 0 else mix(z_of_seed(a, z_dim), z_of_seed(b, z_dim), t)
                        for a, b, t in entries])


def png(array):
    """(H, W, 3) uint8, or (H, W) uint16, or a PIL image -> the bytes of a PNG."""
    file = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(file, "PNG", compress_level=1)
    return "image/png", file.getvalue()


# ------------------------------------------------------------------------------------------ the answers

class Model:
    """A generator, and the answers to what is asked of it: (content type, bytes). They raise InputError.

    checkpoint: of load_generator. maps: a data.Dataset whose maps the page offers, or None.
    """

    def __init__(self, G, checkpoint, device, maps=None):
        self.G, self.device, self.maps = G, device, maps
        self.dataset, self.classes, self.size = checkpoint["dataset"], checkpoint["classes"], checkpoint["image_size"]
        self.palette = np.array(checkpoint["palette"], np.uint8)                       # (C, 3)
        _, self.class_of, self.colours = how_to_read(checkpoint)
        self.about = {
            "model": checkpoint.get("architecture", "dp-sims"), "step": checkpoint["step"], "dataset": self.dataset,
            "size": list(self.size), "classes": self.classes, "palette": self.palette.tolist(),
            "instances": G.offset_channels > 0, "things": sorted(THINGS.get(self.dataset, ())),
            "blank": checkpoint.get("unknown") or 0, "validation": 0 if maps is None else len(maps),
            "most_regions": MOST_REGIONS, "most_bytes": MOST_BYTES,
            "scenes": {name: packed(*scene) for name, scene in draw_scenes(self.classes, self.size).items()}}
        # TRAP: torch keeps its threads and its compiled convolutions for each thread that calls it; a new one for
        # every request would start anew. So one thread draws, one picture at a time.
        self.artist = ThreadPoolExecutor(1)

    def picture(self, request):
        z = noise_of(request.get("noise"), self.G.z_dim)[None]                         # (1, R, d_z)
        label_map = self.plane(request, "labels").astype(np.int64)[None]               # (1, H, W)
        regions = offsets = None
        if z.shape[1] > 1:
            regions = plane(request, "regions", self.size, "u1", z.shape[1]).astype(np.int64)[None]
        if self.G.offset_channels:
            offsets = offset_maps(self.plane(request, "instances"))[None]              # (1, 2, H, W)
        return png(self.artist.submit(self.draw, label_map, z, offsets, regions).result()[0])

    @torch.no_grad()
    def draw(self, label_map, z, offsets, regions):
        label_map, offsets, regions = (t if t is None else torch.from_numpy(t).to(self.device)
                                       for t in (label_map, offsets, regions))
        z = z.to(self.device)
        return to_pixels(self.G(label_map, z[:, 0], offsets) if regions is None
                         else self.G(label_map, z, offsets, regions=regions))

    def plane(self, request, name):
        return (plane(request, name, self.size, "u1", len(self.classes)) if name == "labels"
                else plane(request, name, self.size, "<u2", 2 ** 16))

    def labels(self, request):
        values = np.zeros(len(self.classes), np.uint8)                                 # what the files write of a class
        values[self.class_of[self.class_of >= 0]] = np.flatnonzero(self.class_of >= 0)
        image = Image.fromarray(values[self.plane(request, "labels")])
        colours = np.zeros((256, 3), np.uint8)
        colours[values] = self.palette
        image.putpalette(colours.tobytes())
        return png(image)

    def instances(self, request):
        labels, ids = self.plane(request, "labels"), self.plane(request, "instances").astype(np.int32)
        ids = {"cityscapes": np.where(ids > 0, 1000 + ids, 0),                         # as their readers read them
               "coco_stuff": np.where(ids > 0, ids - 1, labels)}.get(self.dataset, ids)
        return png(ids.astype(np.uint16))

    def validation(self, request):
        index, count = request.get("index"), self.about["validation"]
        if type(index) is not int or not 0 <= index < count:
            raise InputError(f"index: expected a whole number from 0 to {count - 1}" if count else
                             "there is no validation split here; start with --dataset and --data-path")
        _, labels, ids = self.maps.planes(index)
        ids = np.zeros_like(labels) if ids is None else ids
        _, number = np.unique(np.append(0, ids), return_inverse=True)                  # 0 stays 0
        return as_json(packed(labels, number[1:]))

    def read(self, body):
        file = Dropped(body)
        try:
            with Image.open(file, formats=MAPS) as image:
                if max(image.size) > MOST_SIDE:
                    raise InputError(f"{file} has {image.size[0]} x {image.size[1]} pixels, at most {MOST_SIDE} a side")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise InputError(f"{file} is not a picture; drop a PNG of class numbers or palette colours, or a saved "
                             f"drawing") from None
        labels = read_labels(file, self.class_of, self.colours)                        # (h, w)
        (h, w), (H, W) = labels.shape, self.size
        resized = "" if (h, w) == (H, W) else f", {h}x{w} (height x width) made {H}x{W}, nearest pixels"
        labels = labels[np.ix_(nearest(h, H), nearest(w, W))]                          # (H, W)
        return as_json({**packed(labels, np.zeros(self.size)), "resized": resized})


def as_json(content):
    return "application/json", json.dumps(content).encode()


# ------------------------------------------------------------------------------------------ who may ask

class Server(ThreadingHTTPServer):
    """Serves a Model at (host, port)."""
    daemon_threads = True

    def __init__(self, address, model):
        self.model, self.host, self.only_here = model, address[0], address[0] in ("127.0.0.1", "localhost")
        super().__init__(address, Handler)

    def knows(self, host):
        """Whether a Host header names this machine. A foreign name is a page elsewhere whose name leads here."""
        try:
            name = urlsplit("//" + host).hostname or ""
            return name in ("localhost", self.host) or (
                ipaddress.ip_address(name).is_loopback or not self.only_here)
        except ValueError:
            return False

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # who went away is told nothing, and nor are we
            print(f"paint: {sys.exc_info()[1]!r}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    timeout, server_version, sys_version = SECONDS, "paint", ""

    def do_GET(self):
        self.respond({"/": lambda: ("text/html; charset=utf-8", PAGE),
                      "/model": lambda: as_json(self.server.model.about)})

    def do_POST(self):
        model = self.server.model
        self.respond({"/read": lambda: model.read(self.body()), **{
            f"/{answer.__name__}": lambda answer=answer: answer(self.fields()) for answer in
            (model.picture, model.labels, model.instances, model.validation)}})

    def respond(self, answers):
        try:
            self.check_sender()
            if self.path not in answers:
                raise Refused(404, "there is nothing here by this method and name")
            self.reply(200, *answers[self.path]())
        except InputError as error:
            self.refuse(getattr(error, "status", 400), str(error))
        except ConnectionError:
            pass  # who asked went away
        except Exception as error:  # whatever it was, the next request is answered
            print(f"paint: {self.path}: {error!r}", file=sys.stderr)
            self.refuse(500, "the server failed; what it says stands where it was started")

    def check_sender(self):
        """Another page of this browser must not reach us, by its own name (Origin) or by one that leads here (Host)."""
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if len(hosts) != 1 or not self.server.knows(hosts[0]):
            raise Refused(403, "the Host header names another machine; use the address that paint printed")
        if origins not in ([], [f"http://{hosts[0]}"]):
            raise Refused(403, "the Origin header names another page; only the page of this server may ask")

    def body(self):
        """The bytes that were sent, within SECONDS. Raises Refused."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            raise Refused(411, "Content-Length is missing or is no number")
        if len(length) > 12 or int(length) > MOST_BYTES:
            raise Refused(413, f"a request has at most {MOST_BYTES} bytes")
        parts, missing, end = [], int(length), time.monotonic() + SECONDS
        while missing:
            self.connection.settimeout(max(0.001, end - time.monotonic()))
            try:
                parts.append(self.rfile.read1(missing))
            except TimeoutError:
                raise Refused(408, f"the body took more than {SECONDS} seconds") from None
            if not parts[-1]:
                raise Refused(400, f"the body ended {missing} bytes early")
            missing -= len(parts[-1])
        return b"".join(parts)

    def fields(self):
        """The JSON object that was sent."""
        try:
            request = json.loads(self.body())
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            raise InputError("expected a JSON object")
        return request

    def reply(self, status, kind, content):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(content), **SAFE}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status, sentence):
        self.connection.settimeout(SECONDS)
        self.request_version = "HTTP/1.0"  # a request line of HTTP/0.9 gets a status, too
        try:
            self.reply(status, "text/plain; charset=utf-8", sentence.encode())
        except ConnectionError:
            pass

    def send_error(self, code, message=None, explain=None):
        """What http.server refuses itself: another method, a request line or headers that are none."""
        self.refuse(405 if code == 501 else code if code < 500 else 400, message or "the request cannot be read")

    def log_message(self, *_):
        """Quiet: a brush asks twenty times a second."""
