"""Samples as they reach the training, rare-class sampling (Sec. 4.1), and `python data.py`.

    python -m pytest tests/test_data.py          (from the repository root; under a minute)

Oracles: plain loops over pixels, positions and classes; counts by numpy; the same numbers again after a restart; one
rank's batches for several ranks'. The last test reads real samples where they are there.
"""
import os
import pickle
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT, call
from data import (Dataset, RareClassBatches, class_presence, offset_maps, open_dataset, sampling_probabilities, survey,
                  training_batches, training_probabilities)
from support.errors import InputError
from support.options import size
from support.ranks import Ranks
from test_readers import (ARCHIVES, COLOURS, NAMES, OPTION, PLACES, VALUES, good, half, labels_with, loops_meaning,
                          loops_numbers, opened, place, random_sample, same_sample, save, toy, write)

REAL = ROOT.parent / "shared" / "data"

# ------------------------------------------------------------------------------------------- instance offsets

def loops_offsets(ids):
    """Sec. 4.1, of ids (H, W), 0 = none: "every foreground pixel w.r.t. its object center of mass", vertical and
    horizontal, in shares of height and width."""
    pixels, offsets = {}, np.zeros((2, *np.shape(ids)))
    for place, one in np.ndenumerate(ids):
        pixels.setdefault(int(one), []).append(place)
    for one, members in pixels.items():
        centre = [sum(p[i] for p in members) / len(members) for i in (0, 1)]
        for y, x in members if one else ():
            offsets[:, y, x] = (centre[0] - y) / len(ids), (centre[1] - x) / len(ids[0])
    return offsets


@pytest.mark.parametrize("seed", range(5))
def test_offset_maps_point_to_the_centre_of_mass(seed):
    """By loops, on scattered instances and background, whose offset is 0; ids as Cityscapes has them, far apart and
    beyond 8 bits. A flip moves dy with its pixel, and dx too, with the other sign."""
    instances = np.array([0, 1, 2, 26001], np.int32)[np.random.default_rng(seed).integers(4, size=(6, 9))]
    dy, dx = offset_maps(instances)
    np.testing.assert_allclose((dy, dx), loops_offsets(instances), atol=1e-6,
                               err_msg="(dy / H, dx / W) to the centre of mass were expected")
    np.testing.assert_allclose(offset_maps(instances[:, ::-1]), (dy[:, ::-1], -dx[:, ::-1]), atol=1e-6)


# -------------------------------------------------------------------------------- resized, cropped, flipped (Sec. 4.1)

def loops_kept(old, new):
    """Nearest neighbour: output i of `new` takes the input under its middle, (i + 1/2) old / new."""
    return [max(j for j in range(old) if 2 * new * j <= (2 * i + 1) * old) for i in range(new)]


def loops_window(height, width, H, W, margin, key, seed):
    """Which row and column of the file each output row and column shows, and the window: (h, w, top, left, flipped)."""
    h, w = (round(H * margin), round(W * margin)) if key else (H, W)
    top, left, flipped = 0, 0, False
    if key:                                  # the documented order: top, left, flip, from (seed, epoch, draw) alone
        rng = np.random.default_rng((seed, key[1], key[2]))
        top, left, flipped = int(rng.integers(h - H + 1)), int(rng.integers(w - W + 1)), rng.random() < 0.5
    rows, columns = loops_kept(height, h), loops_kept(width, w)
    rows, columns = [rows[top + i] for i in range(H)], [columns[left + i] for i in range(W)]
    return rows, columns[::-1] if flipped else columns, (h, w, top, left, flipped)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("layout", PLACES)
def test_samples_are_the_files_resized_cropped_and_flipped(tmp_path, layout, seed):
    """Random maps, sizes and draws. Resized to 286/256 of the size and cropped, Cityscapes only resized; flipped or
    not; offsets those of the ids after all of that. Without a draw only resized."""
    rng = np.random.default_rng((seed, 77))
    (height, width), (H, W) = rng.integers(2, 40, 2).tolist(), rng.integers(4, 26, 2).tolist()
    sample = random_sample(layout, rng, height, width)
    dataset = opened(write(tmp_path, layout, {NAMES[0]: sample}), layout, (H, W), seed=seed)
    classes, keys = loops_meaning(layout, *sample[1:])
    ids = loops_numbers(keys)
    picture = Image.open(place(tmp_path, layout, 0))
    for key in (None, *((0, *rng.integers(1000, size=2).tolist()) for _ in range(6))):
        rows, columns, (h, w, top, left, flipped) = loops_window(
            height, width, H, W, 1 if layout == "cityscapes" else 286 / 256, key, seed)
        found = dataset[key or 0]
        assert found.keys() == {"image", "label_map", *["offsets"] * dataset.has_instances}
        assert found["label_map"].tolist() == [[int(classes[y, x]) for x in columns] for y in rows], f"labels of {key}"
        resized = np.asarray(picture.resize((w, h), Image.BICUBIC))[top:top + H, left:left + W]
        assert np.array_equal(found["image"].permute(1, 2, 0), resized[:, ::-1] if flipped else resized), (
            f"picture of {key}")
        if dataset.has_instances:
            expected = loops_offsets([[int(ids[y, x]) for x in columns] for y in rows])
            np.testing.assert_allclose(found["offsets"], expected, atol=1e-6, err_msg=f"offsets of {key}")


def test_toy_augmentation_is_a_flip_or_nothing():
    """From (seed, epoch, draw) alone; labels and picture flip together, dx changes its sign."""
    dataset, flips = toy("train", 32, 32), 0
    plain = dataset[3]
    mirrored = {name: t.flip(-1) for name, t in plain.items()}
    mirrored["offsets"] *= torch.tensor([1.0, -1.0]).view(2, 1, 1)
    for draw in range(1, 21):
        sample = dataset[3, 0, draw]
        assert same_sample(sample, dataset[3, 0, draw]), f"draw {draw} came out differently the second time"
        expected = plain if torch.equal(sample["image"], plain["image"]) else mirrored
        flips += expected is mirrored
        for name in plain:
            torch.testing.assert_close(sample[name], expected[name], msg=f"draw {draw}: {name} does not fit the image")
    assert 3 < flips < 17, f"{flips} of 20 draws were flipped, about half were expected"


@pytest.mark.parametrize("layout", ["toy", "cityscapes", "coco_stuff", "official", "folder"])
def test_instances_can_be_left_out(tmp_path, layout):
    """For baselines that know none: no offsets, the rest as it was, and instance maps are not even read."""
    root, name = None if layout == "toy" else good(tmp_path, layout)[0], OPTION.get(layout, layout)
    whole = open_dataset(name, root, "train", (16, 16))[0, 1, 2]
    if layout in ("cityscapes", "coco_stuff", "folder"):
        save(place(root, layout, 2), b"")
    dataset = open_dataset(name, root, "train", (16, 16), instances=False)
    assert not dataset.has_instances and whole.pop("offsets") is not None and same_sample(dataset[0, 1, 2], whole)


@pytest.mark.parametrize("layout", ["toy", *PLACES])
def test_a_dataset_travels_to_another_process(tmp_path, layout):
    """As loader processes get it where they are not forked."""
    dataset = toy() if layout == "toy" else opened(good(tmp_path, layout)[0], layout)
    assert same_sample(pickle.loads(pickle.dumps(dataset))[1, 2, 3], dataset[1, 2, 3])


# --------------------------------------------------------------------------------------------- opening a dataset

def test_an_unknown_dataset_is_refused():
    with pytest.raises(InputError, match="--dataset cats.*toy.*folder"):
        open_dataset("cats", None, "train", (64, 64))


def test_image_size_is_height_by_width():
    assert (size("64"), size("256x512")) == ((64, 64), (256, 512))


# ------------------------------------------------------------------------------------------- rare-class sampling

def loops_p(seen):
    """Sec. 4.1: p proportional to f_k^(-1/2), k the rarest class of the image, f its share of the images; f_k = 1 where
    an image has no class. seen: the set of known classes of each image."""
    f_k = [min([sum(c in other for other in seen) / len(seen) for c in one], default=1.0) for one in seen]
    return np.array([f ** -0.5 for f in f_k]) / sum(f ** -0.5 for f in f_k)


@pytest.mark.parametrize("unknown", [None, 4])
def test_sampling_probabilities_by_loops(unknown):
    """The unknown class is the rarest one, and makes no image more likely; one image has nothing else."""
    presence = np.random.default_rng(0).random((12, 5)) < (0.9, 0.6, 0.4, 0.2, 0.1)
    presence[5] = [False] * 4 + [True]
    seen = [set(np.flatnonzero(row).tolist()) - {unknown} for row in presence]
    np.testing.assert_allclose(sampling_probabilities(presence, unknown), loops_p(seen),
                               err_msg="p is not f_k^(-1/2), normalised")


def test_sampling_probabilities_by_hand():
    """Class 1 is in one image of four: 1/sqrt(1/4) = 2, twice the others' weight."""
    presence = np.array([[1, 0], [1, 0], [1, 0], [1, 1]])
    np.testing.assert_allclose(sampling_probabilities(presence), np.array([1, 1, 1, 2]) / 5)


P7 = np.array([1, 2, 3, 4, 5, 6, 7]) / 28  # seven images: batches of four cross the epochs' boundaries


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_parts_together_are_one_ranks_batch(world):
    """Behind one another and in order: the number of ranks does not change what a step sees."""
    parts = [list(RareClassBatches(P7, 4, 0, 10, rank=rank, world=world)) for rank in range(world)]
    assert [sum(of_step, []) for of_step in zip(*parts)] == list(RareClassBatches(P7, 4, 0, 10))


def test_draws_are_a_function_of_seed_and_step():
    """A resumed run goes on with the draws of its step. Every epoch and every seed has its own. Draw n is draw n % 7 of
    epoch n // 7: the pair that seeds the augmentation is never used twice."""
    whole = list(RareClassBatches(P7, 4, 0, 12))
    assert list(RareClassBatches(P7, 4, 7, 12)) == whole[7:] and len(RareClassBatches(P7, 4, 7, 12)) == 5
    assert list(RareClassBatches(P7, 4, 0, 12, seed=1)) != whole
    assert [key[1:] for batch in whole for key in batch] == [(n // 7, n % 7) for n in range(48)]
    epochs = [[index for index, _, _ in batch] for batch in RareClassBatches(P7, 7, 0, 10)]
    assert len(np.unique(epochs, axis=0)) > 8, "the epochs repeat each other"


@pytest.fixture(scope="module")
def ade_maps(tmp_path_factory):
    """Fifteen maps; wall in almost all, flag in one; unlabelled pixels in three, one of them without anything else."""
    rng, maps = np.random.default_rng(3), []
    for i in range(15):
        classes = [c for c, p in ((1, 0.9), (2, 0.6), (13, 0.3), (21, 0.2)) if rng.random() < p]
        classes += {4: [0], 5: [0], 9: [150]}.get(i, [])
        maps.append(rng.permutation(np.resize(classes or [1], 36)).reshape(6, 6).astype(np.uint8))
    maps[11] = np.zeros((6, 6), np.uint8)
    root = tmp_path_factory.mktemp("ade")
    write(root, "ade20k", {f"{i:02d}": (np.zeros((6, 6, 3), np.uint8), m, None) for i, m in enumerate(maps)})
    return opened(root, "ade20k"), maps


@pytest.mark.parametrize("world", [1, 4])
def test_images_are_drawn_as_often_as_their_rarest_class_says(ade_maps, world):
    """100,000 draws, 25,000 on each of four ranks: every count within five standard deviations of n p, p proportional
    to f_k^(-1/2), by loops over the maps; the table read from the files."""
    dataset, maps = ade_maps
    expected = loops_p([set(labels.ravel().tolist()) - {0} for labels in maps])
    assert len(set(expected)) > 4 and max(expected) > 3 * min(expected), "this test wants rare and common classes"
    p = training_probabilities(dataset, "rare-class", None, Ranks(torch.device("cpu")))
    draws = [[key for batch in RareClassBatches(p, 8, 0, 12_500, rank=rank, world=world) for key in batch]
             for rank in range(world)]
    assert len({key[1:] for of_rank in draws for key in of_rank}) == 100_000, "two ranks, or one twice, see one draw"
    counts = np.array([np.bincount([i for i, _, _ in of_rank], minlength=15) for of_rank in draws])
    assert counts.sum(axis=1).tolist() == [100_000 // world] * world
    for drawn, n in (*((c, 100_000 // world) for c in counts), (counts.sum(axis=0), 100_000)):
        deviations = (drawn - n * expected) / np.sqrt(n * expected * (1 - expected))
        assert np.abs(deviations).max() < 5, f"too often or too rarely, in deviations: {deviations.round(1)}"
        assert np.abs(deviations).max() > 0.2, "random draws never fit that well"


# ------------------------------------------------------------------------------------------- the batches of a run

ARGS = SimpleNamespace(batch_size=4, seed=3, workers=1)


def test_training_batches_are_the_drawn_samples_as_the_networks_take_them(tmp_path):
    """real in [-1, 1], channels last; label maps as int64; offsets as they are; read by a loader process."""
    dataset, ranks = opened(good(tmp_path, "folder")[0], "folder"), Ranks(torch.device("cpu"))
    p = training_probabilities(dataset, "uniform", None, ranks)
    assert p.tolist() == [1 / 3] * 3
    keys = list(RareClassBatches(p, 4, 1, 3, seed=3))
    for batch, of_step in zip(training_batches(dataset, p, 1, 3, ARGS, ranks), keys, strict=True):
        samples = [dataset[key] for key in of_step]
        assert torch.equal(batch["real"], torch.stack([s["image"].float() / 127.5 - 1 for s in samples]))
        assert torch.equal(batch["label_map"], torch.stack([s["label_map"].long() for s in samples]))
        assert torch.equal(batch["offsets"], torch.stack([s["offsets"] for s in samples]))
        assert batch["real"].is_contiguous(memory_format=torch.channels_last) and len(batch) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_ends_the_training_with_one_line(tmp_path, workers):
    """The same from a loader process as from this one: no stack trace, no name of the error."""
    root, _ = good(tmp_path, "ade20k")
    for name in NAMES:
        save(place(root, "ade20k", 1, name), b"")
    args = SimpleNamespace(**{**vars(ARGS), "workers": workers})
    with pytest.raises(InputError) as error:
        next(training_batches(opened(root, "ade20k"), np.full(3, 1 / 3), 0, 1, args, Ranks(torch.device("cpu"))))
    assert re.fullmatch(rf"{re.escape(str(root))}\S+\.png: cannot be read as a picture.*", str(error.value))


# ------------------------------------------------------------------------------------------- the presence cache

@pytest.mark.parametrize("layout", PLACES)
def test_class_presence_is_what_the_files_hold(tmp_path, layout):
    root, samples = good(tmp_path, layout)
    samples[NAMES[2]][1][:] = VALUES[layout][1]
    samples[NAMES[2]][1][29, 10] = VALUES[layout][-1]                   # one pixel is enough
    for row, name in zip(class_presence(opened(write(root, layout, samples), layout)), NAMES):
        classes, _ = loops_meaning(layout, *samples[name][1:])
        assert set(np.flatnonzero(row).tolist()) == set(classes.ravel().tolist()), f"classes of {name}"


@pytest.mark.parametrize("layout, change", [
    *((layout, change) for layout in PLACES for change in (
        "nothing", "a newer label file", "a label file of another size", "a new sample", "a sample less")),
    ("coloured", "another palette"), ("folder", "another class list")])
def test_the_presence_cache_is_used_as_long_as_the_dataset_stays(tmp_path, monkeypatch, layout, change):
    root, samples = good(tmp_path / "data", layout)
    cache, label_file = tmp_path / "presence.npz", place(root, layout, 1)
    first = class_presence(opened(root, layout), cache)
    times = label_file.stat()
    other = np.full((12, 20), VALUES[layout][1], np.uint8)
    other = COLOURS[other] if layout == "coloured" else other
    if change == "a newer label file":
        save(label_file, other)
        label_file.write_bytes(label_file.read_bytes().ljust(times.st_size, b"\0"))     # the size stays
        os.utime(label_file, ns=(times.st_atime_ns, times.st_mtime_ns + 10 ** 9))
    elif change == "a label file of another size":
        save(label_file, other)
        os.utime(label_file, ns=(times.st_atime_ns, times.st_mtime_ns))                 # as copied with its time
        assert label_file.stat().st_size != times.st_size
    elif change in ("a new sample", "a sample less"):
        samples = {**samples, "000000000009": samples[NAMES[0]]} if "new" in change else {NAMES[1]: samples[NAMES[1]]}
        shutil.rmtree(root)
        write(root, layout, samples)
    elif change == "another palette":
        save(label_file, COLOURS[np.zeros((12, 20), int)])
        first = class_presence(opened(root, layout), cache)
        save(root / "palette.txt", "".join("{} {} {}\n".format(*colour) for colour in COLOURS[::-1]))
    elif change == "another class list":
        save(root / "classes.txt", "sky\nground\ntree\nhouse\ncar\n")
    dataset = opened(root, layout)
    if change == "nothing":
        monkeypatch.setattr(Dataset, "presence", None)                                  # not a label map is read
        assert np.array_equal(class_presence(dataset, cache), first)
    else:
        again, fresh = class_presence(dataset, cache), class_presence(dataset)
        assert np.array_equal(again, fresh), "the table is that of the dataset as it was before"
        assert not np.array_equal(fresh, first), "this test's change does not change the table"


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_half_written_cache_is_replaced(tmp_path, share):
    """The run was killed, or the disk was full, while the cache was written."""
    cache, dataset = tmp_path / "cache.npz", opened(good(tmp_path, "folder")[0], "folder")
    expected, whole = class_presence(dataset, cache), cache.read_bytes()
    cache.write_bytes(whole[:int(share * len(whole))])
    assert np.array_equal(class_presence(dataset, cache), expected)
    assert np.array_equal(np.load(cache)["presence"], expected), "the broken cache was left as it was"


def test_class_presence_finds_bad_label_maps_before_the_training(tmp_path):
    """One label beyond the classes in one file of many: found now, not after an hour."""
    root, _ = good(tmp_path, "folder")
    save(place(root, "folder", 1, NAMES[2]), labels_with(77))
    with pytest.raises(InputError, match=rf"{re.escape(str(place(root, 'folder', 1, NAMES[2])))}.*\[77\]"):
        class_presence(opened(root, "folder"))


# ------------------------------------------------------------------------------------------- python data.py

@pytest.fixture
def check(monkeypatch, capsys):
    """check(*options) -> exit code, stdout, stderr of `python data.py OPTIONS`, in this process (torch is loaded)."""
    return lambda *options: (call(monkeypatch, "data", *options), *capsys.readouterr())


def table(stdout):
    """{class: (name, share as text, samples)} of the report."""
    rows = re.findall(r"^ *(\d+) (.+?) +([\d.]+%) +([\d,]+)(?: +\d+){3}(?: +unknown)?$", stdout, re.M)
    return {int(c): (name, share, int(count.replace(",", ""))) for c, name, share, count in rows}


@pytest.mark.parametrize("layout", PLACES)
def test_the_check_counts_what_is_there(tmp_path, check, layout):
    """Samples, sizes, instances, and pixels and samples of every class, against numpy's own count of the maps."""
    root, samples = good(tmp_path / "data", layout)
    page = tmp_path / "page.png"
    code, stdout, stderr = check("--dataset", OPTION[layout], "--data-path", root, "--split", "train", "--image-size",
                                 "64x32", "--output", page)
    assert (code, stderr) == (0, "")
    meanings = [loops_meaning(layout, labels, third) for _, labels, third in samples.values()]
    classes = [m[0].ravel() for m in meanings]
    dataset = opened(root, layout, (64, 32))
    expected = {c: (dataset.classes[c], f"{(np.concatenate(classes) == c).mean():.3%}", sum(c in m for m in classes))
                for c in np.unique(np.concatenate(classes)).tolist()}
    assert table(stdout) == expected
    assert f"3 samples, {len(dataset.classes)} classes" in stdout and "2 portrait, 0 square, 1 landscape" in stdout
    assert "3 different, 12x20 to 30x11" in stdout, "sizes are height x width"
    instances = sum(len({key for row in keys for key in row} - {None}) for _, keys in meanings)
    assert (f"{instances} instances" if dataset.has_instances else "no instances") in stdout
    never = re.search(r"^never seen: (.*)$", stdout, re.M)[1]
    absent = [f"{c} {name}" for c, name in enumerate(dataset.classes) if c not in expected]
    assert never == (", ".join(absent) or "none"), "classes that no file has"

    drawn = np.asarray(Image.open(page))
    wide = 4 if dataset.has_instances else 2
    assert drawn.shape[1:] == (wide * 64, 3), "samples twice enlarged"
    assert len(drawn) - (16 + 3 * 128) in (16, 32), "16 rows for the titles, and for each line of the legend"
    for i, (labels, _) in enumerate(meanings):
        rows, columns = loops_kept(labels.shape[0], 64), loops_kept(labels.shape[1], 32)
        colours = [[dataset.palette[labels[y, x]] for x in columns] for y in rows]
        shown = drawn[16 + 128 * i:16 + 128 * (i + 1), 64:128]
        assert np.array_equal(shown[::2, ::2], colours) and np.array_equal(shown[1::2, 1::2], colours), (
            f"row {i}, second column: not the label map in its colours")
    if dataset.has_instances:
        none = np.array([[meanings[0][1][y][x] is None for x in loops_kept(20, 32)] for y in loops_kept(12, 64)])
        assert not drawn[16:144:2, 128:192:2][none].any() and drawn[16:144:2, 128:192:2][~none].all(), (
            "instances are coloured, the rest is black")
        assert (drawn[16:144:2, 192::2][none] == 127).all(), "no offset is grey"


def test_the_check_lists_every_bad_file_and_counts_the_good_ones(tmp_path, check):
    """Three bad samples of five, for three reasons; exit code 2, no page, no traceback."""
    rng = np.random.default_rng(0)
    samples = {str(i): random_sample("ade20k", rng, 12, 20) for i in range(5)}
    root = write(tmp_path / "data", "ade20k", samples)
    save(place(root, "ade20k", 1, "0"), labels_with(151))
    save(place(root, "ade20k", 0, "2"), half(place(root, "ade20k", 0, "2").read_bytes()))
    save(place(root, "ade20k", 1, "4"), np.ones((9, 9), np.uint8))
    code, stdout, stderr = check("--dataset", "ade20k", "--data-path", root, "--split", "train", "--output",
                                 tmp_path / "page.png")
    assert code == 2 and not (tmp_path / "page.png").exists()
    lines = stderr.splitlines()
    assert len(lines) == 4 and "3 of 5 samples" in lines[3], stderr
    for line, which, name, why in zip(lines, (1, 0, 1), "024", ("[151]", "cannot be read", "9x9")):
        assert str(place(root, "ade20k", which, name)) in line and why in line, line
    maps = [samples[i][1].ravel() for i in "13"]
    assert {c: row[2] for c, row in table(stdout).items()} == {
        c: sum(c in m for m in maps) for c in np.unique(maps).tolist()}


def test_the_check_of_a_dataset_without_one_good_file(tmp_path, check):
    root, _ = good(tmp_path / "data", "cityscapes")
    for name in NAMES:
        save(place(root, "cityscapes", 0, name), b"")
    code, stdout, stderr = check("--dataset", "cityscapes", "--data-path", root, "--split", "train", "--output",
                                 tmp_path / "page.png")
    assert code == 2 and "3 of 3 samples" in stderr and all(name in stderr for name in NAMES)
    assert "3 samples, 35 classes, 0 instances" in stdout


def test_the_check_reads_both_splits(tmp_path, check):
    """A value that is no class is found in val, too; and a split that is missing, before anybody trains."""
    root, _ = good(tmp_path / "data", "folder")
    code, _, stderr = check("--dataset", "folder", "--data-path", root, "--output", tmp_path / "page.png")
    assert code == 2 and f"{root / 'images' / 'val'}: no pictures there" in stderr
    for kind in ("images", "labels", "instances"):
        shutil.copytree(root / kind / "train", root / kind / "val")
    code, stdout, _ = check("--dataset", "folder", "--data-path", root, "--output", tmp_path / "page.png")
    assert code == 0 and "folder, train: 3 samples" in stdout and "folder, val: 3 samples" in stdout
    file = root / "labels" / "val" / place(root, "folder", 1).name
    save(file, labels_with(77))
    code, _, stderr = check("--dataset", "folder", "--data-path", root, "--output", tmp_path / "page.png")
    assert code == 2 and str(file) in stderr and "[77]" in stderr and "1 of 6 samples" in stderr


def test_the_check_writes_its_page_alone(tmp_path, check):
    """Where the user asked for it, and says so."""
    root, _ = good(tmp_path / "data", "official")
    code, stdout, stderr = check("--dataset", "coco_stuff", "--data-path", root, "--split", "train", "--output",
                                 tmp_path / "page.png", "--rows", 1)
    assert (code, stderr) == (0, "") and str(tmp_path / "page.png") in stdout
    assert Image.open(tmp_path / "page.png").size == (4 * 256, 16 + 256 + 16), "one row, 256x256 by default, a legend"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["page.png"], "nothing else is left behind"


@pytest.mark.parametrize("options, says", [
    (["--dataset", "folder"], ["--data-path DIR", "classes.txt"]),
    (["--dataset", "cityscapes", "--data-path", "GOOD/nothing"], ARCHIVES["cityscapes"]),
    *((["--image-size", size], ["--image-size", "256x512"]) for size in ("0", "64x", "64x64x64", "big")),
    (["--image-size", "-64"], ["--image-size"]),
    (["--split", "test"], ["--split", "train"]),
    (["--data-path", "GOOD"], ["--data-path", "--dataset toy reads no files", "folder"]),
    (["--image-size", "8"], ["--image-size 8x8", "sides of 16"]),
    (["--rows", "two"], ["--rows"]),
    (["--dataset", "folder", "--data-path", "GOOD", "--output", "GOOD/classes.txt"], ["--output", "PNG"]),
    (["--rows", "0"], ["--rows", "from 1"]),
    (["--dataset", "folder", "--data-path", "GOOD", "--output", "GOOD/none/page.png"], ["--output", "none", "exists"]),
    (["--dataset", "folder", "--data-path", "GOOD", "--output", "GOOD"], ["--output", "PNG"]),
    (["--dataset", "folder", "--data-path", "GOOD", "--output", ""], ["--output", "PNG"])])
def test_options_that_do_not_fit_are_refused(tmp_path, check, options, says):
    """Exit code 2, and what to give instead, on stderr; no stack trace."""
    root, _ = good(tmp_path / "data", "folder")
    before = sorted(tmp_path.rglob("*"))
    code, stdout, stderr = check(*(option.replace("GOOD", str(root)) for option in options))
    assert code == 2 and not stdout and not [word for word in says if word not in stderr], f"exit code {code}: {stderr}"
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"


# ------------------------------------------------------------------------------------------- real samples

@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name, folder, pattern", [
    ("ade20k", "ADEChallengeData2016", "annotations/{long}/*.png"), ("folder", "camvid", "labels/{split}/*.png"),
    ("cityscapes", "cityscapes", "gtFine/{split}/*/*_gtFine_labelIds.png"),
    ("coco_stuff", "coco_stuff", "{split}_label/*.png")])
def test_label_histograms_of_real_samples(name, folder, pattern, split):
    """survey() of the samples at hand against numpy's count of the same PNGs."""
    if not (REAL / folder).is_dir():
        pytest.skip("no real samples at hand")
    long = {"train": "training", "val": "validation"}[split]
    files = sorted((REAL / folder).glob(pattern.format(split=split, long=long)))
    dataset = open_dataset(name, REAL / folder, split, (64, 64))
    expected = np.zeros((len(files), 256), int)
    for i, file in enumerate(files):
        values, counts = np.unique(np.asarray(Image.open(file)), return_counts=True)
        expected[i, values] = counts
    last = len(dataset.classes) - 1
    if name in ("cityscapes", "coco_stuff"):
        expected[:, last] += expected[:, 255]
        expected[:, 255] = 0
    found = survey(dataset)
    assert len(files) == len(dataset) and not found["problems"] and expected.sum() == found["pixels"].sum()
    assert np.array_equal(found["pixels"], expected[:, :last + 1]), "other counts than in the files"
