"""sample.py: the picture of a seed, wherever it is made; label maps that do not fit; interpolation.

A generator at its random start is enough: it is a function of label map and z like any other.
"""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from data import InputError, open_dataset
from generator import Generator, z_of_seed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An EMA file of the toy classes, gates open so that z matters."""
    torch.manual_seed(0)
    options = dict(num_classes=11, offset_channels=2, widths=(16, 16, 8), stem_channels=4, label_channels=8, z_dim=4,
                   noise_tokens=2, noise_width=4, noise_hidden=8, attention_stride=2)
    G = Generator(**options)
    with torch.no_grad():
        for name, p in G.named_parameters():
            if name.endswith("eta"):
                p.fill_(1.0)
    toy = open_dataset("toy", None, "val", (32, 32))
    file = tmp_path_factory.mktemp("ema") / "ema_0000001.pt"
    torch.save({"step": 1, "generator": options, "ema": G.state_dict(), "dataset": "toy", "image_size": [32, 32],
                "classes": list(toy.classes), "palette": toy.palette.tolist(), "unknown": None}, file)
    return file


def call(*arguments):
    return subprocess.run([sys.executable, str(ROOT / "sample.py"), *map(str, arguments)], capture_output=True, text=True)


def pixels(file):
    return np.array(Image.open(file)).astype(int)


@pytest.fixture(scope="module")
def two_maps(checkpoint):
    """Two validation maps, three seeds."""
    folder = checkpoint.parent / "two"
    result = call("--checkpoint", checkpoint, "--dataset", "toy", "--count", 2, "--seeds", "0-2", "--output-dir", folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_one_picture_for_each_map_and_seed_and_a_grid(two_maps):
    names = sorted(f.name for f in two_maps.iterdir())
    assert names == ["grid.png"] + [f"val000{i}_{what}.png" for i in (0, 1) for what in
                                    ("labels", "seed000", "seed001", "seed002")]
    assert pixels(two_maps / "grid.png").shape == (2 * 128, 4 * 128, 3), "32x32 is shown four times as large"


def test_a_picture_depends_on_neither_batch_size_nor_order(checkpoint, two_maps, tmp_path):
    result = call("--checkpoint", checkpoint, "--dataset", "toy", "--count", 2, "--seeds", "2,0", "--batch-size", 1,
                  "--output-dir", tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("val0000_seed000", "val0001_seed002"):
        apart = np.abs(pixels(two_maps / f"{name}.png") - pixels(tmp_path / f"{name}.png")).max()
        assert apart <= 1, "more than the rounding of one level"
    assert np.abs(pixels(tmp_path / "val0000_seed000.png") - pixels(tmp_path / "val0000_seed002.png")).max() > 1


def test_one_png_gives_the_picture_of_its_dataset_sample(checkpoint, two_maps, tmp_path):
    toy = open_dataset("toy", None, "val", (32, 32))
    from data import TOY_SEED, TOY_TRAIN, toy_layout
    labels, instances = toy_layout(TOY_SEED, TOY_TRAIN, 32, 32)
    assert (labels == toy[0]["label_map"].numpy()).all()
    Image.fromarray(labels).save(tmp_path / "map.png")
    Image.fromarray(instances).save(tmp_path / "ids.png")
    result = call("--checkpoint", checkpoint, "--labels", tmp_path / "map.png", "--instances", tmp_path / "ids.png",
                  "--seeds", "1", "--output-dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    apart = np.abs(pixels(tmp_path / "out/map_seed001.png") - pixels(two_maps / "val0000_seed001.png")).max()
    assert apart <= 1


def test_interpolation_begins_and_ends_at_its_seeds(checkpoint, two_maps, tmp_path):
    result = call("--checkpoint", checkpoint, "--dataset", "toy", "--count", 1, "--seeds", "0,2", "--interpolate", 4,
                  "--output-dir", tmp_path)
    assert result.returncode == 0, result.stderr
    for frame, seed in (("000", "000"), ("003", "002")):
        apart = pixels(tmp_path / f"val0000_mix000-002_{frame}.png") - pixels(two_maps / f"val0000_seed{seed}.png")
        assert np.abs(apart).max() <= 1
    assert Image.open(tmp_path / "val0000_mix.gif").n_frames > 2


def test_spherical_interpolation_keeps_the_length():
    a, b = z_of_seed(0, 64), z_of_seed(1, 64)
    torch.testing.assert_close(sample.mix(a, b, 0.0), a)
    torch.testing.assert_close(sample.mix(a, b, 1.0), b)
    assert min(a.norm(), b.norm()) * 0.95 < sample.mix(a, b, 0.5).norm() < max(a.norm(), b.norm()) * 1.05


@pytest.mark.parametrize("case, message", [
    ("values", "label values [99, 200] are no class, expected 0..10"),
    ("colour", "no class's colour"),
    ("exists", "is there already"),
    ("missing", "nowhere.png: not there"),
    ("damaged", "not an EMA file of train.py"),
    ("dataset", "was trained on toy with 11 classes"),
    ("size", "both sides must be divisible by 2"),
    ("same seeds", "two different seeds"),
    ("seeds", "expected seeds such as 0-7"),
    ("large seeds", "a seed has 32 bits; expected numbers below 4294967296"),
    ("instances", "an instance map must have one channel"),
    ("both", "give either --labels PNG_OR_FOLDER or --dataset NAME"),
])
def test_bad_input_gets_one_line_and_exit_code_2(checkpoint, two_maps, tmp_path, monkeypatch, capsys, case, message):
    labels = np.zeros((32, 32), np.uint8)
    labels[0, :2] = 99, 200
    Image.fromarray(labels).save(tmp_path / "values.png")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "zeros.png")
    (tmp_path / "damaged.pt").write_bytes(b"no")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
            Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "data" / kind / split / "0.png")
    (tmp_path / "data/classes.txt").write_text("one\n")
    out = ["--output-dir", tmp_path / "out"]
    arguments = {
        "values": ["--checkpoint", checkpoint, "--labels", tmp_path / "values.png", *out],
        "colour": ["--checkpoint", checkpoint, "--labels", tmp_path / "colour.png", *out],
        "exists": ["--checkpoint", checkpoint, "--dataset", "toy", "--count", 1, "--output-dir", two_maps],
        "missing": ["--checkpoint", checkpoint, "--labels", "nowhere.png", *out],
        "damaged": ["--checkpoint", tmp_path / "damaged.pt", "--dataset", "toy", *out],
        "dataset": ["--checkpoint", checkpoint, "--dataset", "folder", "--data-path", tmp_path / "data", *out],
        "size": ["--checkpoint", checkpoint, "--dataset", "toy", "--image-size", "31", *out],
        "both": ["--checkpoint", checkpoint, *out],
        "same seeds": ["--checkpoint", checkpoint, "--dataset", "toy", "--seeds", "5,5", "--interpolate", 4, *out],
        "seeds": ["--checkpoint", checkpoint, "--dataset", "toy", "--seeds", "3-1", *out],
        "large seeds": ["--checkpoint", checkpoint, "--dataset", "toy", "--seeds", str(2 ** 32), *out],
        "instances": ["--checkpoint", checkpoint, "--labels", tmp_path / "zeros.png", "--instances",
                      tmp_path / "colour.png", *out],
    }[case]
    if case == "values":  # one as a user calls it; the others in this process, which is sooner
        result = call(*arguments)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr, result.stderr
        return
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
    with pytest.raises((InputError, SystemExit)) as stopped:
        sample.main()
    found = str(stopped.value) if stopped.type is InputError else capsys.readouterr().err
    assert message in found and (stopped.type is InputError or stopped.value.code == 2), found
