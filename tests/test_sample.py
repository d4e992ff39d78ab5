"""sample.py: the picture of a seed, wherever it is made; label maps that do not fit; interpolation; the baselines.

A generator at its random start is enough: it is a function of label map and z like any other.
"""
import numpy as np
import pytest
import torch
from PIL import Image

import sample
from baselines.train import GENERATORS
from conftest import call, load, pixels
from data import open_dataset
from generator import z_of_seed
from readers import toy
from support.errors import InputError
from test_evaluate import write_checkpoint
from test_train import small  # noqa: F401


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ema") / "ema_0000001.pt", 0)


def run(checkpoint, folder, *arguments):
    sample.main(["--checkpoint", str(checkpoint), "--output-dir", str(folder), *map(str, arguments)])


def apart(one, other):
    return np.abs(pixels(one) - pixels(other)).max()


@pytest.fixture(scope="module")
def two_maps(checkpoint):
    """Two validation maps, three seeds."""
    run(checkpoint, checkpoint.parent / "two", "--dataset", "toy", "--count", 2, "--seeds", "0-2")
    return checkpoint.parent / "two"


def test_one_picture_for_each_map_and_seed_and_a_grid(two_maps):
    names = sorted(f.name for f in two_maps.iterdir())
    assert names == ["grid.png"] + [f"val000{i}_{what}.png" for i in (0, 1) for what in
                                    ("labels", "seed000", "seed001", "seed002")]
    grid, legend = np.split(pixels(two_maps / "grid.png"), [16 + 2 * 128])
    assert grid.shape == (16 + 2 * 128, 4 * 128, 3), "titles; 32x32 is shown four times as large"
    labels = grid[16:, :128].reshape(-1, 3)
    assert {tuple(c) for c in labels} - {tuple(c) for c in legend.reshape(-1, 3)} == set(), "each class has its colour"


def test_the_grid_has_so_many_pictures_of_a_map_and_no_more(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "GRID_COLUMNS", 2)
    run(checkpoint, tmp_path, "--dataset", "toy", "--count", 1, "--seeds", "0-4")
    assert pixels(tmp_path / "grid.png").shape[1] == 3 * 128 and len(list(tmp_path.glob("*_seed*.png"))) == 5


def test_a_picture_depends_on_neither_batch_size_nor_order(checkpoint, two_maps, tmp_path):
    run(checkpoint, tmp_path, "--dataset", "toy", "--count", 2, "--seeds", "2,0", "--batch-size", 1)
    for name in ("val0000_seed000.png", "val0001_seed002.png"):
        assert apart(two_maps / name, tmp_path / name) <= 1, "more than the rounding of one level"
    assert apart(tmp_path / "val0000_seed000.png", tmp_path / "val0000_seed002.png") > 1


def test_one_png_gives_the_picture_of_its_dataset_sample(checkpoint, two_maps, tmp_path):
    labels, instances = toy.toy_layout(toy.TOY_SEED, toy.TOY_TRAIN, 32, 32)
    assert (labels == open_dataset("toy", None, "val", (32, 32))[0]["label_map"].numpy()).all()
    Image.fromarray(labels).save(tmp_path / "map.png")
    Image.fromarray(instances).save(tmp_path / "ids.png")
    maps = ("--labels", tmp_path / "map.png", "--instances", tmp_path / "ids.png")
    run(checkpoint, tmp_path / "out", *maps, "--seeds", "1")
    assert apart(tmp_path / "out/map_seed001.png", two_maps / "val0000_seed001.png") <= 1


def test_interpolation_begins_and_ends_at_its_seeds(checkpoint, two_maps, tmp_path):
    run(checkpoint, tmp_path, "--dataset", "toy", "--count", 1, "--seeds", "0,2", "--interpolate", 4)
    for frame, seed in (("000", "000"), ("003", "002")):
        assert apart(tmp_path / f"val0000_mix000-002_{frame}.png", two_maps / f"val0000_seed{seed}.png") <= 1
    assert Image.open(tmp_path / "val0000_mix.gif").n_frames > 2


def test_spherical_interpolation_keeps_the_length():
    a, b = z_of_seed(0, 64), z_of_seed(1, 64)
    torch.testing.assert_close(sample.mix(a, b, 0.0), a)
    torch.testing.assert_close(sample.mix(a, b, 1.0), b)
    assert min(a.norm(), b.norm()) * 0.95 < sample.mix(a, b, 0.5).norm() < max(a.norm(), b.norm()) * 1.05


@pytest.mark.parametrize("name, sizes", [("oasis", dict(hidden=8)), ("dpgan", dict(stem_channels=4, label_channels=8))])
def test_only_the_baselines_command_samples_their_checkpoints(checkpoint, tmp_path, monkeypatch, capsys, name, sizes):
    options, file = dict(num_classes=11, widths=(16, 16, 8), **sizes), tmp_path / "ema.pt"
    torch.save({**load(checkpoint), "architecture": name, "generator": options,
                "ema": GENERATORS[name](**options).state_dict()}, file)
    arguments = ("--checkpoint", file, "--dataset", "toy", "--count", 1, "--output-dir", tmp_path / "out")
    assert call(monkeypatch, "sample", *arguments) == 2
    found = capsys.readouterr().err
    assert f"a generator of {name}; those of dp-sims are for sample.py" in found and found.count("\n") == 1
    assert "baselines.sample" in found
    assert call(monkeypatch, "baselines.sample", *arguments) == 0
    assert pixels(tmp_path / "out/val0000_seed000.png").shape == (32, 32, 3)


@pytest.mark.parametrize("arguments, message", [
    ("--labels HERE/values.png", "label values [99, 200] are no class, expected 0..10"),
    ("--labels HERE/colour.png", "this one has them three times (RGB)"),
    ("--dataset toy --count 1 --output-dir TWO", "is there already"),
    ("--labels nowhere.png", "nowhere.png: not there"),
    ("--checkpoint HERE/zeros.png --dataset toy", "not an EMA file of train.py"),
    ("--dataset toy --image-size 31", "both sides must be divisible by 2"),
    ("--dataset toy --seeds 5,5 --interpolate 4", "two different seeds"),
    ("--dataset toy --seeds 3-1", "expected seeds such as 0-7"),
    (f"--dataset toy --seeds {2 ** 32}", "expected seeds such as 0-7 or 0,3,5, below 4294967296"),
    ("--labels HERE/zeros.png --instances HERE/colour.png", "an instance map must have one channel"),
    ("--dataset toy --instances HERE/zeros.png", "--instances goes with --labels"),
    ("--labels HERE/zeros.png --data-path HERE", "--data-path with --dataset"),
    ("", "give either --labels PNG_OR_FOLDER or --dataset NAME"),
])
def test_bad_input_gets_one_line(checkpoint, two_maps, tmp_path, arguments, message):
    zeros = np.zeros((32, 32), np.uint8)
    labels = zeros.copy()
    labels[0, :2] = 99, 200
    for name, picture in (("values", labels), ("colour", zeros[..., None].repeat(3, 2)), ("zeros", zeros)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    arguments = arguments.replace("HERE", str(tmp_path)).replace("TWO", str(two_maps))
    with pytest.raises(InputError) as error:
        run(checkpoint, tmp_path / "out", *arguments.split())
    assert message in str(error.value) and "\n" not in str(error.value)
