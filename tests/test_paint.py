"""paint/: what its server answers, whom it refuses, and the page in a real browser where Chromium is installed.

The generators are tiny and at their random start, gates open: z matters, and every picture is a function of map and z.
"""
import base64
import contextlib
import http.client
import io
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from baselines.train import GENERATORS
from data import MEANINGS, offset_maps
from generator import z_of_seed
from paint import __main__ as paint
from paint import server as serving
from paint.scenes import SCENES, draw_scenes
from readers import ade20k, cityscapes, coco_stuff, toy
from readers.images import Meaning, classes_of_values, read_instances, read_labels
from support.errors import InputError
from test_evaluate import write_checkpoint

SIZE = (32, 32)
SIZES = {"oasis": dict(hidden=8), "dpgan": dict(stem_channels=4, label_channels=8)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ema") / "ema_0000001.pt", 0)


@contextlib.contextmanager
def serve(checkpoint):
    """-> a running paint.server.Server."""
    model = paint.open_model(paint.parse_options(["--checkpoint", str(checkpoint)]))
    with serving.Server(("127.0.0.1", 0), model) as s:
        thread = threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield s
        s.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(checkpoint):
    with serve(checkpoint) as started:
        yield started


def ask(server, path, body=None, headers=None, method=None):
    """-> status, bytes of the answer. body: bytes, or what becomes JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    body = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    with contextlib.closing(connection):
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def pixels(png):
    return np.array(Image.open(io.BytesIO(png)))


def as_png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def coded(array, dtype):
    return base64.b64encode(np.asarray(array).astype(dtype).tobytes()).decode()


def a_map(noise=((3, 3, 0),), **others):
    """A valid body of /picture: a validation scene, its instances, the right half region 1."""
    labels, ids = toy.toy_layout(toy.TOY_SEED, toy.TOY_TRAIN, *SIZE)
    regions = np.zeros(SIZE)
    regions[:, 16:] = len(noise) - 1
    return {"labels": coded(labels, "u1"), "instances": coded(ids, "<u2"), "regions": coded(regions, "u1"),
            "noise": noise, **others}


# ------------------------------------------------------------------------------------------ what it answers

@pytest.mark.parametrize("name", ["dp-sims", "oasis", "dpgan"])
def test_the_picture_is_sample_pys(checkpoint, tmp_path, name):
    """Of each generator with a z; on the way between two seeds, too; another seed of a region changes it."""
    file = checkpoint
    if name != "dp-sims":
        options, file = dict(num_classes=11, widths=(16, 16, 8), **SIZES[name]), tmp_path / "ema.pt"
        torch.save({**torch.load(checkpoint, weights_only=True), "architecture": name, "generator": options,
                    "ema": GENERATORS[name](**options).state_dict()}, file)
    G, _ = sample.load_generator(file, "cpu", GENERATORS)
    labels, ids = toy.toy_layout(toy.TOY_SEED, toy.TOY_TRAIN, *SIZE)
    offsets = torch.from_numpy(offset_maps(ids))[None] if G.offset_channels else None
    z = {0: z_of_seed(3, G.z_dim), 0.25: sample.mix(z_of_seed(3, G.z_dim), z_of_seed(4, G.z_dim), 0.25)}
    with serve(file) as server:
        assert json.loads(ask(server, "/model")[1])["model"] == name
        for t in z:
            expected = sample.generate(G, torch.from_numpy(labels)[None], offsets, z[t][None], "cpu")[0]
            status, found = ask(server, "/picture", a_map([[3, 4, t]]))
            assert status == 200 and np.abs(pixels(found).astype(int) - expected).max() <= 1
        whole, half = (pixels(ask(server, "/picture", a_map([[3, 3, 0], [s, s, 0]]))[1]).astype(int) for s in (3, 9))
        assert np.abs(whole - half)[:, 20:].mean() > np.abs(whole - half)[:, :12].mean()


def test_scenes_are_drawn_where_the_classes_have_the_names():
    for reader, count in ((ade20k, 3), (coco_stuff, 3), (cityscapes, 2)):
        assert len(draw_scenes(list(reader.CLASSES), (16, 32))) == count
    scenes = draw_scenes(list(toy.TOY_CLASSES), SIZE)
    assert list(scenes) == list(SCENES)
    labels, ids = scenes["House and tree"]
    assert {toy.SKY, toy.GRASS, toy.HOUSE, toy.TREE} <= set(labels.flat)
    assert len(set(ids[labels == toy.TREE])) == 1
    assert draw_scenes(["wall", "sky"], SIZE) == {}


@pytest.mark.parametrize("dataset, classes, value", [
    ("toy", 11, 10), ("cityscapes", 35, 255), ("coco_stuff", 183, 255)])
def test_saved_maps_are_what_sample_py_reads(tmp_path, dataset, classes, value):
    """The last class, whose value in files may be another, and two instances; then the file dropped on the page."""
    G = torch.nn.Module()
    G.offset_channels, palette = 2, np.random.default_rng(0).permutation(256)[:classes, None].repeat(3, 1)
    model = serving.Model(G, {"dataset": dataset, "classes": ["c"] * classes, "palette": palette.tolist(), "step": 1,
                              "image_size": [8, 8]}, "cpu")
    labels, ids = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint16)
    labels[:4], labels[4:], ids[6:], ids[6:, 4:] = classes - 1, 1, 1, 2
    request = {"labels": coded(labels, "u1"), "instances": coded(ids, "<u2")}
    for answer in (model.labels, model.instances):
        (tmp_path / f"{answer.__name__}.png").write_bytes(answer(request)[1])
    file = tmp_path / "labels.png"
    assert pixels(file.read_bytes())[0, 0] == value
    for colours in (None, palette.astype(np.uint8)):
        assert (read_labels(file, model.class_of, colours) == labels).all()
    found = MEANINGS.get(dataset, Meaning()).ids(read_instances(tmp_path / "instances.png"), labels, file)
    assert [len(set(found[rows, columns].flat)) for rows, columns in
            ((slice(6, 8), slice(0, 4)), (slice(6, 8), slice(4, 8)), (slice(6, 8), slice(0, 8)))] == [1, 1, 2]
    assert json.loads(model.read(file.read_bytes())[1])["labels"] == request["labels"]


def test_a_dropped_png_is_class_numbers_or_palette_colours(server):
    labels, _ = toy.toy_layout(0, 5, 64, 64)
    expected = coded(labels[1::2, 1::2], "u1")  # as sample.py --labels makes it smaller
    for png in (as_png(labels), as_png(np.asarray(toy.TOY_PALETTE)[labels])):
        status, found = ask(server, "/read", png)
        assert status == 200 and json.loads(found)["labels"] == expected
        assert json.loads(found)["resized"] == ", 64x64 (height x width) made 32x32, nearest pixels"


def test_validation_maps(server):
    labels, ids = toy.toy_layout(toy.TOY_SEED, toy.TOY_TRAIN + 7, *SIZE)
    found = json.loads(ask(server, "/validation", {"index": 7})[1])
    assert found["labels"] == coded(labels, "u1") and found["instances"] == coded(ids, "<u2")


# ------------------------------------------------------------------------------------------ whom it refuses

def png_header(width, height):
    """A PNG that claims to be of this size, and holds nothing."""
    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


NUL = float("nan")
BAD = {  # name: path, body, headers, method, status, what the sentence says
    "wrong size": ("/picture", a_map(labels=coded(np.zeros((31, 32)), "u1")), {}, None, 400, "base64 of 32 x 32"),
    "no labels": ("/picture", {"noise": [[0, 0, 0]]}, {}, None, 400, "labels: expected"),
    "labels are a number": ("/picture", a_map(labels=5), {}, None, 400, "labels: expected"),
    "labels are no base64": ("/picture", a_map(labels="../../etc/passwd"), {}, None, 400, "labels: expected"),
    "class out of range": ("/picture", a_map(labels=coded(np.full(SIZE, 11), "u1")), {}, None, 400, "found 11"),
    "region without noise": ("/picture", a_map([[0, 0, 0]] * 2, regions=coded(np.full(SIZE, 2), "u1")), {}, None, 400,
                             "regions: found 2"),
    "NaN seed": ("/picture", a_map([[NUL, 0, 0]]), {}, None, 400, "noise: expected"),
    "NaN between": ("/picture", a_map([[1, 0, NUL]]), {}, None, 400, "noise: expected"),
    "negative seed": ("/picture", a_map([[-1, 0, 0]]), {}, None, 400, "noise: expected"),
    "seed of 33 bits": ("/picture", a_map([[2 ** 32, 0, 0]]), {}, None, 400, "noise: expected"),
    "too many regions": ("/picture", a_map([[0, 0, 0]] * 33), {}, None, 400, "noise: expected 1 to 32"),
    "no JSON": ("/picture", b"{", {}, None, 400, "expected a JSON object"),
    "JSON of another kind": ("/picture", b"[]", {}, None, 400, "expected a JSON object"),
    "deep JSON": ("/picture", b"[" * 100_000, {}, None, 400, "expected a JSON object"),
    "a number of a million digits": ("/picture", b'{"noise": ' + b"9" * 10 ** 6 + b"}", {}, None, 400, "JSON object"),
    "foreign Host": ("/picture", a_map(), {"Host": "evil.example:80"}, None, 403, "Host"),
    "Host of no kind": ("/model", None, {"Host": "[::"}, None, 403, "Host"),
    "foreign Origin": ("/picture", a_map(), {"Origin": "http://evil.example"}, None, 403, "Origin"),
    "Origin null": ("/model", None, {"Origin": "null"}, None, 403, "Origin"),
    "a path upwards": ("/../../../../etc/passwd", None, {}, None, 404, "nothing here"),
    "a coded path upwards": ("/%2e%2e/%2e%2e/etc/passwd", None, {}, None, 404, "nothing here"),
    "a file of the house": ("/server.py", None, {}, None, 404, "nothing here"),
    "another machine's address": ("http://evil.example/model", None, {}, None, 403, "Host"),
    "a method with no meaning": ("/picture", a_map(), {}, "DELETE", 405, "DELETE"),
    "a picture by GET": ("/picture", None, {}, None, 404, "nothing here"),
    "1 GB": ("/picture", b"{}", {"Content-Length": str(10 ** 9)}, None, 413, "at most"),
    "a length that is none": ("/picture", b"{}", {"Content-Length": "-1"}, None, 411, "Content-Length"),
    "a length of a thousand digits": ("/picture", b"{}", {"Content-Length": "9" * 1000}, None, 413, "at most"),
    "chunks": ("/picture", b"{}", {"Transfer-Encoding": "chunked"}, None, 411, "Content-Length"),
    "no picture": ("/read", b"hello", {}, None, 400, "is not a picture"),
    "a PNG with nothing in it": ("/read", png_header(8, 8), {}, None, 400, "the dropped file"),
    "a PNG of 30000 x 30000": ("/read", png_header(30000, 30000), {}, None, 400, "the dropped file"),
    "a PNG of 9000 x 9000": ("/read", png_header(9000, 9000), {}, None, 400, "at most 8192 a side"),
    "a PNG of other values": ("/read", as_png(np.full((4, 4), 77, np.uint8)), {}, None, 400, "77"),
    "a map that is not there": ("/validation", {"index": 200}, {}, None, 400, "from 0 to 199"),
    "a map by its path": ("/validation", {"index": "../0"}, {}, None, 400, "from 0 to 199")}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_one_sentence_and_the_server_lives(server, name):
    path, body, headers, method, status, words = BAD[name]
    found, sentence = ask(server, path, body, headers, method)
    assert found == status and words in sentence.decode() and b"\n" not in sentence and len(sentence) < 300
    assert ask(server, "/picture", a_map())[0] == 200


def send(server, raw):
    """Bytes to the server -> an open socket."""
    connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=30)
    connection.sendall(raw)
    return connection


def test_slow_broken_and_simultaneous_requests(server, monkeypatch, capfd, tmp_path):
    """Several at once, that never end, or end early: the server answers the others meanwhile, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serving, "SECONDS", 0.5)
    head = f"POST /picture HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n"
    slow = send(server, f"{head}Content-Length: 50\r\n\r\n".encode())
    for _ in range(3):  # it says a little now and then, and is cut off all the same
        slow.sendall(b"{")
        time.sleep(0.1)
    broken = send(server, f"{head}Content-Length: 50\r\n\r\n{{".encode())
    broken.shutdown(socket.SHUT_WR)
    assert b"400" in broken.recv(100)
    body = json.dumps(a_map()).encode()
    for _ in range(3):  # gone before the answer
        send(server, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body).close()
    for raw in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET /model\r\n\r\n",
                b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
                f"{head}{head[28:]}\r\n".encode()):
        with send(server, raw) as connection:
            assert connection.recv(100).split()[1][:1] == b"4", raw[:30]
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(server, "/picture", a_map()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({found for status, found in answers if status == 200}) == 1 and len(answers) == 8
    assert b"408" in slow.recv(100)
    assert not list(tmp_path.iterdir()) and "Traceback" not in capfd.readouterr().err


def test_a_fault_of_the_server_is_a_500_and_it_lives(server, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(server.model, "G", None)
        status, sentence = ask(server, "/picture", a_map())
        assert status == 500 and b"the server failed" in sentence
    assert "AttributeError" in capfd.readouterr().err and ask(server, "/picture", a_map())[0] == 200


def test_only_this_machines_names_are_known(server):
    port = server.server_port
    assert all(map(server.knows, (f"127.0.0.1:{port}", f"localhost:{port}", "127.0.0.1", "[::1]:80")))
    assert not any(map(server.knows, ("192.168.0.7", "example.org", "localhost.example.org", "", "a b", "127.0.0.1.x")))


@pytest.mark.parametrize("arguments, message", [
    ("--checkpoint nowhere.pt", "nowhere.pt: not there"),
    ("--checkpoint IIDM", "IIDM takes hundreds of steps"),
    ("--checkpoint OTHER", "not an EMA file of train.py (11 classes, 10 names, 11 colours"),
    ("--checkpoint EMA --port 70000", "a whole number from 0 to 65535"),
    ("--checkpoint EMA --port TAKEN", "cannot be served (Address already in use); another --port"),
    ("--checkpoint EMA --port 0 --host 203.0.113.7", "--host 203.0.113.7")])
def test_what_does_not_fit_gets_one_line(checkpoint, server, tmp_path, arguments, message):
    trained = torch.load(checkpoint, weights_only=True)
    torch.save({**trained, "architecture": "iidm"}, tmp_path / "iidm.pt")
    torch.save({**trained, "classes": trained["classes"][1:]}, tmp_path / "other.pt")
    for name, value in (("EMA", checkpoint), ("IIDM", tmp_path / "iidm.pt"), ("OTHER", tmp_path / "other.pt"),
                        ("TAKEN", server.server_port)):
        arguments = arguments.replace(name, str(value))
    with pytest.raises(InputError) as error:
        paint.main(arguments.split())
    assert message in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------ in a browser

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
         "--force-device-scale-factor=1", "--hide-scrollbars")


class Browser:
    """Chromium, driven through ChromeDriver by WebDriver's JSON."""

    def __init__(self, driver, profile, downloads):
        self.downloads = downloads
        self.process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
        line = next(line for line in self.process.stdout if "started successfully on port" in line)
        self.at = f"http://127.0.0.1:{line.rstrip().rstrip('.').rsplit(' ', 1)[1]}"
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"],
                   "prefs": {"download.default_directory": str(downloads),
                             "profile.default_content_setting_values.automatic_downloads": 1}}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.at += f"/session/{self.call('/session', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"

    def call(self, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.at + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script, *arguments):
        """The function body `script`, with arguments[0] ...; a promise is waited for."""
        return self.call("/execute/sync", {"script": script, "args": arguments})

    def open(self, address, width=1280, height=800):
        self.call("/window/rect", {"width": width, "height": height})
        self.call("/url", {"url": "about:blank"})
        self.call("/url", {"url": address})
        return self.picture()

    def picture(self):
        """Wait until the newest picture is there -> its pixels, as text."""
        return self.run("""
            while (document.querySelector("main").hidden || picture.getAttribute("aria-busy") !== "false")
              await new Promise(done => setTimeout(done, 5));
            return picture.toDataURL();""")

    def drag(self, *places, touch=False):
        """The mouse, or a finger, over places (x, y) of the map, as shares of its sides, pressed."""
        box = self.run("const b = map.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]")
        moves = [{"type": "pointerMove", "duration": 0, "x": round(box[0] + x * box[2]),
                  "y": round(box[1] + y * box[3])} for x, y in places]
        self.call("/actions", {"actions": [{
            "type": "pointer", "id": f"pointer {touch}", "parameters": {"pointerType": "touch" if touch else "mouse"},
            "actions": [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:],
                        {"type": "pointerUp", "button": 0}]}]})
        return self.picture()

    def keys(self, *keys):
        self.call("/actions", {"actions": [{"type": "key", "id": "keys", "actions": [
            {"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]}]})
        return self.picture()

    def screenshot(self, file):
        file.write_bytes(base64.b64decode(self.call("/screenshot")))

    def problems(self):
        return [e["message"] for e in self.call("/se/log", {"type": "browser"}) if e["level"] in ("SEVERE", "WARNING")]

    def close(self):
        try:
            self.call("", method="DELETE")
        finally:
            self.process.terminate()
            self.process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = shutil.which("chromedriver")
    if not driver or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no Chromium; on Debian: apt-get install chromium chromium-driver")
    started = Browser(driver, tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("downloads"))
    yield started
    started.close()


def choose(browser, name):
    browser.run("""[...document.querySelectorAll(".chip")].find(c => c.textContent === arguments[0]).click()""", name)


def click(browser, name):
    browser.run("document.getElementById(arguments[0]).click()", name)
    return browser.picture()


def difference(one, other):
    """(32, 32) mean difference of two pictures of the browser."""
    one, other = (pixels(base64.b64decode(text.split(",")[1]))[..., :3].astype(float) for text in (one, other))
    return np.abs(one - other).mean(axis=2)


def labels_of(browser):
    return np.array(browser.run("return [...drawing.map]"), np.int64).reshape(SIZE)


def wait_for(browser, condition):
    browser.run(f"while (!({condition})) await new Promise(done => setTimeout(done, 10));")


@pytest.fixture
def page(server, browser):
    browser.problems()
    browser.open(f"http://127.0.0.1:{server.server_port}/")
    return browser


CONTROL, SHIFT, ENTER, RIGHT, DOWN = "\ue009", "\ue008", "\ue007", "\ue014", "\ue015"


def test_the_brush_changes_the_picture_and_undo_gives_it_back(page):
    pictures = [page.picture()]
    choose(page, "water")
    for n in range(3):
        pictures.append(page.drag((0.2 + 0.2 * n, 0.2), (0.3 + 0.2 * n, 0.9)))
    assert len(set(pictures)) == 4 and (labels_of(page) & 255 == toy.WATER).sum() > 60
    assert [page.keys("z"), click(page, "undo"), click(page, "undo")] == pictures[2::-1]
    assert [click(page, "redo"), page.keys("y")] == pictures[1:3]
    choose(page, "tree")
    assert page.drag((0.5, 0.1), (0.6, 0.1), touch=True) != pictures[2]
    page.run("for (let seed = 0; seed < 60; seed++) change({seed})")
    page.run("for (let n = 0; n < 62; n++) step(past, future)")
    assert page.picture() == pictures[1], "more than fifty steps back"
    assert not page.problems()


def test_every_tool(page):
    click(page, "own")  # no instances: a pixel is its class
    page.run("document.querySelector('#scenes button:last-child').click()")
    assert (labels_of(page) == 0).all() and page.run("return label") != 0, "the blank map, and a class to be seen on it"
    choose(page, "grass")
    page.keys("r")
    page.drag((0.01, 0.52), (0.99, 0.99))
    assert (labels_of(page)[16:] == toy.GRASS).all() and (labels_of(page)[:16] == 0).all()
    page.keys("l")
    choose(page, "road")
    page.drag((0.1, 0.75), (0.9, 0.75))
    assert (labels_of(page)[24, 4:28] == toy.ROAD).all()
    page.keys("e")
    page.drag((0.1, 0.75), (0.9, 0.75))
    assert (labels_of(page)[16:] == toy.GRASS).all(), "what was under the road"
    page.drag((0.5, 0.75), (0.5, 0.75))
    assert labels_of(page)[24, 16] == 0, "once more: the map that was begun with"
    page.keys("p")
    page.drag((0.1, 0.9), (0.1, 0.9))
    assert page.run("return [model.classes[label], tool]") == ["grass", "eraser"]
    page.keys("f")
    page.drag((0.5, 0.1), (0.5, 0.1))
    assert (labels_of(page)[:16] == toy.GRASS).all()
    choose(page, "house")
    click(page, "own")
    page.keys("b")
    for place, houses in ((0.2, 1), (0.8, 2), (0.2, 2)):  # beside a house begins another, on one it goes on
        page.drag((place, 0.5), (place, 0.8))
        found = labels_of(page)
        assert len(set(found[found & 255 == toy.HOUSE])) == houses and found.max() >> 16 == houses
    choose(page, "sky")
    page.keys("r")
    page.drag((0.2, 0.6), (0.2, 0.6))
    choose(page, "house")
    page.keys("f")
    page.drag((0.2, 0.6), (0.2, 0.6))
    assert (labels_of(page) == found).all(), "a hole that is filled joins the house around it"
    assert not page.problems()


def test_the_keyboard_alone_draws_a_rectangle_of_a_class(page):
    before = page.picture()
    page.keys("/", *"car", ENTER, "r", "m", ENTER, *[RIGHT] * 5, *[DOWN] * 3)
    after = page.keys(ENTER)
    found = labels_of(page)
    car = found & 255 == toy.CAR
    assert car.sum() == 6 * 4 and len(set(found[car])) == 1 and found[car][0] >> 16 > 0, "an instance of its own"
    assert after != before and not page.problems()


def test_seeds_sheet_slider_and_animation(page):
    first = page.picture()
    assert page.keys("n") != first and page.keys("z") == first
    click(page, "eight")
    wait_for(page, "!sheetJobs.length && !drawingNow")
    assert page.run("return new Set([...document.querySelectorAll('#sheet canvas')].map(c => c.toDataURL())).size") == 8
    click(page, "others")
    page.run("document.querySelector('#sheet button').click()")
    assert page.picture() != first and page.run("return drawing.seed") == 9, "eight others"
    page.keys("n")
    of_next = "return document.querySelector('#sheet button').textContent - drawing.seed"
    assert page.run(of_next) == 1, "and around another"
    page.run("change({seed: 1})")
    page.run("t.value = 0.5; t.oninput(); t.onchange()")  # from seed 1 to seed 1
    end = page.picture()
    page.run("seed.value = 0; seed.onchange(); t.value = 1; t.oninput(); t.onchange()")
    assert difference(page.picture(), end).max() <= 1, "the end of the way is the other seed"
    click(page, "play")
    wait_for(page, "drawing.t < 0.8")
    click(page, "play")
    assert page.picture() != end and not page.problems()


def test_a_region_gets_its_own_seed(page):
    before = page.picture()
    page.run("Math.random = () => 0.1")  # seed 1000; of all seeds, one in fourteen changes too little to be told
    page.keys("g")
    after = page.drag((0.1, 0.9), (0.1, 0.9))
    grass = labels_of(page) & 255 == toy.GRASS
    change = difference(before, after)
    assert change[grass].mean() > 0.2 and change[grass].mean() > 2 * change[~grass].mean()
    assert page.keys("z") == before
    click(page, "whole")
    assert page.drag((0.1, 0.9), (0.1, 0.9)) != before
    assert page.run("return Object.keys(drawing.classes)") == [str(toy.GRASS)]
    assert page.run("return document.querySelector('#regions').textContent").startswith("all grass")
    page.run("document.querySelector('#regions button:last-child').click()")
    assert page.picture() == before and not page.problems()


def download(browser, name, file):
    """Click the button `name` -> what came down as `file`."""
    (browser.downloads / file).unlink(missing_ok=True)
    click(browser, name)
    end = time.monotonic() + 20
    while not (browser.downloads / file).is_file():
        assert time.monotonic() < end, f"no {file}"
        time.sleep(0.02)
    return (browser.downloads / file).read_bytes()


def test_saved_and_opened_again_it_is_the_same_picture(page, server, tmp_path):
    choose(page, "tree")
    page.drag((0.3, 0.3), (0.7, 0.3))
    page.keys("g")
    page.drag((0.5, 0.3), (0.5, 0.3))
    page.keys("n")
    picture, found, seed = page.picture(), labels_of(page), page.run("return drawing.seed")
    assert found.max() > 0xffff, "instances and areas"
    for name in ("labels", "instances"):
        (tmp_path / f"{name}.png").write_bytes(download(page, f"save{name.title()}", f"{name}.png"))
    assert (read_labels(tmp_path / "labels.png", classes_of_values(11, False)) == found & 255).all()
    assert (read_instances(tmp_path / "instances.png") == found >> 16).all()
    assert pixels(download(page, "savePicture", f"picture_seed{seed}.png")).shape == (32, 32, 3)
    assert pixels(download(page, "saveBoth", f"side_by_side_seed{seed}.png")).shape[:2] == (32, 64)
    download(page, "saveDrawing", f"drawing_seed{seed}.json")
    click(page, "link")
    wait_for(page, "location.hash.length > 9 && document.getElementById('status').textContent.includes('link')")
    link = page.run("return location.href")
    assert page.open(f"http://127.0.0.1:{server.server_port}/") != picture
    field = page.call("/element", {"using": "css selector", "value": "#file"})
    page.call(f"/element/{list(field.values())[0]}/value", {"text": str(page.downloads / f"drawing_seed{seed}.json")})
    wait_for(page, "past.length === 1")
    assert page.picture() == picture and (labels_of(page) == found).all()
    assert page.open(link) == picture and (labels_of(page) == found).all()
    page.open(link[:-9])
    assert page.run("return document.getElementById('status').className") == "wrong", "a link that was cut"
    assert not page.problems()


def test_a_png_is_dropped_on_the_page(page):
    drop = """
        const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)), transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "map.png", {type: "image/png"}));
        document.body.dispatchEvent(new DragEvent("drop",
            {dataTransfer: transfer, bubbles: true, cancelable: true}));"""
    labels, _ = toy.toy_layout(0, 9, *SIZE)
    page.run(drop, base64.b64encode(as_png(labels)).decode())
    wait_for(page, "past.length === 1")
    assert (labels_of(page) & 255 == labels).all() and not page.problems()
    assert page.run("return document.getElementById('status').textContent").startswith("Opened: map.png")
    page.run(drop, base64.b64encode(as_png(labels + 100)).decode())
    wait_for(page, "document.getElementById('status').className")
    assert "are no class" in page.run("return document.getElementById('status').textContent")
    assert len(page.problems()) == 1, "the browser notes the 400 itself"


@pytest.mark.parametrize("width, height", [(360, 740), (1280, 800), (2560, 1440)])
def test_nothing_is_cut_off(page, width, height):
    """No sideways scrolling, and every control has a name and a size."""
    page.call("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}})
    assert page.run("return document.documentElement.scrollWidth - innerWidth") <= 0
    nameless = """return [...document.querySelectorAll("button, input, canvas:not([aria-hidden])")].filter(e =>
        !(e.textContent.trim() || e.getAttribute("aria-label") || [...e.labels ?? []].some(l => l.textContent.trim())
          || e.closest("button, [hidden]"))).map(e => e.outerHTML)"""
    assert page.run(nameless) == []
    page.call("/goog/cdp/execute", {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}})
