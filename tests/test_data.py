"""Offset maps, toy scenes, the folder layout, and rare-class sampling (Sec. 4.1), as they reach the training.

    python -m pytest tests/test_data.py          (from the repository root; under half a minute)

Oracles: plain Python loops over pixels and classes; pictures whose colour says what their label must be; the
same numbers again after a restart; one rank's batches for several ranks'. Files are made in tmp_path.
"""
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from data import (BOAT, CAR, HOUSE, PERSON, TOY_CLASSES, TREE, InputError, Pictures, RareClassBatches,
                  ToyScenes, class_presence, default_palette, offset_maps, open_dataset, open_folder, parse_size,
                  sampling_probabilities, toy_layout, toy_scene)

# ---------------------------------------------------------------------------------------------- offset maps

def loops_offsets(instances):
    """Sec. 4.1: of "every foreground pixel w.r.t. its object center of mass", vertical and horizontal."""
    H, W = instances.shape
    offsets = np.zeros((2, H, W))
    for instance in set(instances.flatten().tolist()) - {0}:
        pixels = [(y, x) for y in range(H) for x in range(W) if instances[y, x] == instance]
        centre_y, centre_x = (sum(p[i] for p in pixels) / len(pixels) for i in (0, 1))
        for y, x in pixels:
            offsets[:, y, x] = (centre_y - y) / H, (centre_x - x) / W
    return offsets


@pytest.mark.parametrize("seed", range(5))
def test_offset_maps_point_to_the_centre_of_mass(seed):
    """By loops, on scattered instances; ids as Cityscapes has them, far apart and beyond 8 bits."""
    ids = np.array([0, 1, 2, 26001], np.int32)
    instances = ids[np.random.default_rng(seed).integers(4, size=(6, 9))]
    np.testing.assert_allclose(offset_maps(instances), loops_offsets(instances), atol=1e-6,
                               err_msg="(dy / H, dx / W) to the centre of mass were expected")


def test_offset_maps_by_hand():
    """Two pixels side by side in a 4x8 map: the centre lies half a pixel, 1/16 of the width, from each."""
    instances = np.zeros((4, 8), np.uint8)
    instances[1, 2:4] = 7
    dy, dx = offset_maps(instances)
    assert (dx[1, 2], dx[1, 3]) == (1 / 16, -1 / 16), f"dx points to the centre, got {dx[1, 2:4].tolist()}"
    assert not dy.any(), "all pixels of this instance are on the centre's row, dy must be 0"


def test_offset_maps_are_0_where_there_is_no_instance():
    instances = np.random.default_rng(0).integers(3, size=(6, 9))
    assert not offset_maps(instances)[:, instances == 0].any(), "background pixels have no centre to point to"


def test_a_flip_negates_the_horizontal_offsets_only():
    """offset_maps of the flipped instances: the flipped maps, dx with the other sign."""
    instances = np.random.default_rng(0).integers(4, size=(6, 9))
    (dy, dx), (flipped_dy, flipped_dx) = offset_maps(instances), offset_maps(instances[:, ::-1])
    np.testing.assert_allclose(flipped_dy, dy[:, ::-1], atol=1e-6, err_msg="dy must only move with its pixel")
    np.testing.assert_allclose(flipped_dx, -dx[:, ::-1], atol=1e-6, err_msg="dx must move and change sign")


# ---------------------------------------------------------------------------------------------- toy scenes

def same_sample(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_toy_scenes_are_the_same_twice():
    """Drawn from (seed, index), not from anybody's random state."""
    np.random.seed(1)
    first = ToyScenes("train", (64, 64))[7]
    np.random.seed(2)
    assert same_sample(first, ToyScenes("train", (64, 64))[7]), "scene 7 came out differently the second time"


def test_toy_scenes_are_the_same_on_every_machine():
    """Scores are compared between machines: these labels never change. If this fails after an edit, every
    published toy number is void; undo the edit or publish new ones, and only then pin the new hash."""
    labels = hashlib.sha256()
    for index in range(20):
        labels.update(toy_layout(0, index, 64, 64)[0].tobytes())
    assert labels.hexdigest() == "23b279f5f43dc4169d3f563eebd6e5bb2855c544a418c6f9c4dbd40049cbbe9b"


def test_toy_scenes_are_2000_for_training_and_200_for_validation():
    assert [len(ToyScenes(split, (64, 64))) for split in ("train", "val")] == [2000, 200]


def test_toy_validation_scenes_are_not_training_scenes():
    """No label map of the validation split among the first training scenes: they are other indices."""
    layouts = [{toy_layout(0, dataset.first + i, 32, 32)[0].tobytes() for i in range(200)}
               for dataset in (ToyScenes("train", (32, 32)), ToyScenes("val", (32, 32)))]
    assert len(layouts[0]) > 190 and len(layouts[1]) > 190, "scenes repeat within a split"
    assert not layouts[0] & layouts[1], "a validation scene is in the training set"
    train, val = ToyScenes("train", (64, 64)), ToyScenes("val", (64, 64))
    assert not same_sample(train[0], val[0]), "the splits start with the same scene"


def test_every_toy_class_occurs_in_the_first_200_scenes():
    presence = np.stack([ToyScenes("train", (64, 64)).presence(i) for i in range(200)])
    missing = [name for name, seen in zip(TOY_CLASSES, presence.any(axis=0)) if not seen]
    assert not missing, f"never seen in 200 scenes: {missing}"


def test_toy_presence_is_what_the_label_map_holds():
    dataset = ToyScenes("val", (64, 64))
    for i in range(5):
        seen = set(dataset[i]["label_map"].flatten().tolist())
        told = set(np.flatnonzero(dataset.presence(i)).tolist())
        assert told == seen, f"scene {i} holds the classes {sorted(seen)}, presence() says {sorted(told)}"


@pytest.mark.parametrize("appearance", [0, 1])
def test_the_labels_of_a_toy_scene_do_not_depend_on_its_appearance(appearance):
    for index in range(5):
        labels, instances = toy_layout(0, index, 64, 64)
        _, scene_labels, scene_instances = toy_scene(0, index, 64, 64, appearance)
        assert (scene_labels == labels).all() and (scene_instances == instances).all(), f"scene {index} moved"


def test_one_toy_layout_has_many_pictures():
    """What the diversity loss is for: two appearances are 0.2 apart and more, a pixel, on [-1, 1]."""
    pairs = [[toy_scene(0, i, appearance=a)[0] / 127.5 - 1 for a in (0, 1)] for i in range(20)]
    apart = [np.abs(first - second).mean() for first, second in pairs]
    assert np.mean(apart) > 0.2, f"two appearances of a layout differ by {np.mean(apart):.3f} on average"


def test_toy_instances_are_the_things():
    """Trees, houses, cars, boats and persons have ids 1, 2, ...; all the rest has 0."""
    for index in range(20):
        labels, instances = toy_layout(0, index, 64, 64)
        is_thing = np.isin(labels, (TREE, HOUSE, CAR, BOAT, PERSON))
        assert ((instances > 0) == is_thing).all(), f"scene {index}: instance ids and things do not coincide"
        for number in np.unique(instances[instances > 0]):
            classes = np.unique(labels[instances == number])
            assert len(classes) == 1, f"scene {index}: instance {number} has the labels {classes.tolist()}"


@pytest.mark.parametrize("height, width", [(32, 32), (32, 64), (128, 64)])
def test_toy_scenes_come_in_any_size(height, width):
    """Shapes and types of a sample, as the module docstring promises them."""
    sample = ToyScenes("val", (height, width))[3]
    found = {name: (tuple(t.shape), t.dtype) for name, t in sample.items()}
    assert found == {"image": ((3, height, width), torch.uint8), "label_map": ((height, width), torch.uint8),
                     "offsets": ((2, height, width), torch.float32)}
    assert sample["offsets"].abs().max() <= 1, "offsets are shares of the picture's sides"


def test_every_size_shows_the_same_toy_scene():
    """Twice as many pixels: the 2x2 pixels that replace one have its label, but for the outlines."""
    for index in range(5):
        coarse, fine = toy_layout(0, index, 64, 64)[0], toy_layout(0, index, 128, 128)[0]
        agreement = (coarse.repeat(2, axis=0).repeat(2, axis=1) == fine).mean()
        assert agreement > 0.9, f"scene {index} at 64 and at 128 agree in only {agreement:.0%} of the pixels"


def test_toy_augmentation_is_a_flip_or_nothing():
    """From (seed, epoch, draw) alone; labels and picture flip together, dx changes its sign."""
    dataset, flips = ToyScenes("train", (32, 32)), 0
    plain = dataset[3]
    mirrored = {"image": plain["image"].flip(-1), "label_map": plain["label_map"].flip(-1),
                "offsets": plain["offsets"].flip(-1) * torch.tensor([1.0, -1.0]).view(2, 1, 1)}
    for draw in range(1, 21):
        sample = dataset[3, 0, draw]
        assert same_sample(sample, dataset[3, 0, draw]), f"draw {draw} came out differently the second time"
        expected = plain if torch.equal(sample["image"], plain["image"]) else mirrored
        flips += expected is mirrored
        for name in plain:
            torch.testing.assert_close(sample[name], expected[name],
                                       msg=f"draw {draw}: {name} does not fit the image")
    assert 3 < flips < 17, f"{flips} of 20 draws were flipped, about half were expected"


# ------------------------------------------------------------------------------------------ your own data

def write_tree(folder, scenes, classes=("sky", "ground", "tree", "house"), split="train"):
    """The generic layout, from {name: {"images": ..., "labels":
    ..., "instances": ...}}, arrays or PIL images."""
    folder.mkdir(exist_ok=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    for name, planes in scenes.items():
        for kind, plane in planes.items():
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
            plane = plane if isinstance(plane, Image.Image) else Image.fromarray(plane)
            plane.save(folder / kind / split / f"{name}.png")
    return folder


def scene(seed=0, height=48, width=64):
    """Blocks of 8x8 pixels with random labels 0..3; the picture's red is 60 times the label."""
    blocks = np.random.default_rng(seed).integers(4, size=(height // 8, width // 8), dtype=np.uint8)
    labels = blocks.repeat(8, axis=0).repeat(8, axis=1)
    picture = np.stack([60 * labels, np.full_like(labels, 50), np.full_like(labels, 50)], axis=2)
    return {"images": Image.fromarray(picture), "labels": labels}


def test_folder_pairs_pictures_and_labels_by_name(tmp_path):
    """Unaugmented and at their own size, samples are the files as they are, in the order of their names."""
    scenes = {"b": scene(1), "a": scene(2)}
    dataset = open_folder(write_tree(tmp_path, scenes), "train", (48, 64))
    assert (len(dataset), dataset.names) == (2, ["a", "b"])
    for i, name in enumerate("ab"):
        sample, picture, labels = dataset[i], scenes[name]["images"], scenes[name]["labels"]
        assert np.array_equal(sample["label_map"], labels), f"sample {i} does not have the labels of {name}"
        assert np.array_equal(sample["image"].permute(1, 2, 0), picture), (
            f"sample {i} is not the picture {name}")
        assert sample.keys() == {"image", "label_map"}, "there are no instances, so no offsets either"


def test_folder_resizes_to_height_by_width(tmp_path):
    """Files of any size; labels by nearest neighbour: no label appears that was not there."""
    labels = 3 * np.random.default_rng(0).integers(2, size=(40, 100), dtype=np.uint8)
    labels[:, :20], labels[:, 80:] = 0, 3
    dataset = open_folder(write_tree(tmp_path, {"a": {"images": Image.new("RGB", (100, 40)), "labels": labels}}),
                     "train", (32, 64))
    image, label_map = dataset[0]["image"], dataset[0]["label_map"]
    assert image.shape == (3, 32, 64) and label_map.shape == (32, 64), "image_size is (height, width)"
    assert label_map.unique().tolist() == [0, 3], "interpolation invented labels between 0 and 3"
    assert (label_map[:, :12] == 0).all() and (label_map[:, 52:] == 3).all(), (
        "the left side was 0, the right 3")


def test_folder_reads_the_class_names(tmp_path):
    """One name a line, line number = label value; no class is unknown unless it says so."""
    dataset = open_folder(write_tree(tmp_path, {"a": scene()}), "train", (48, 64))
    assert (dataset.classes, dataset.unknown) == (("sky", "ground", "tree", "house"), None)


def test_folder_class_unlabelled_is_the_unknown_one(tmp_path):
    write_tree(tmp_path, {"a": scene()}, ("sky", "ground", "unlabelled", "house"))
    dataset = open_folder(tmp_path, "train", (48, 64))
    assert dataset.unknown == 2, "the class named unlabelled is the third, index 2"
    assert not dataset.palette[2].any(), "the unknown class is drawn in black"


@pytest.mark.parametrize("mode, ending", [("L", "png"), ("L", "jpg"), ("CMYK", "jpg"), ("P", "png"),
                                          ("RGBA", "png")])
def test_folder_pictures_of_any_mode_become_rgb(tmp_path, mode, ending):
    """ADE20K has greyscale and CMYK pictures. The colour comes out as it went in (JPEG: nearly)."""
    write_tree(tmp_path, {"a": scene()})
    (tmp_path / "images/train/a.png").unlink()
    colour = (90, 90, 90) if mode == "L" else (200, 100, 50)
    Image.new("RGB", (64, 48), colour).convert(mode).save(tmp_path / f"images/train/a.{ending}")
    image = open_folder(tmp_path, "train", (48, 64))[0]["image"]
    assert image.shape == (3, 48, 64) and image.dtype == torch.uint8
    found = image.float().mean(dim=(1, 2)).tolist()
    assert np.allclose(found, colour, atol=6), f"{mode}: the colour {colour} came out as {found}"


def test_folder_palette_label_maps_are_read_as_indices(tmp_path):
    """The colours of a palette PNG are for the eye; the label is the index."""
    planes = scene()
    labels = planes["labels"]
    planes["labels"] = Image.fromarray(labels)
    planes["labels"].putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9, 200, 200, 200])
    assert planes["labels"].mode == "P"
    sample = open_folder(write_tree(tmp_path, {"a": planes}), "train", (48, 64))[0]
    assert np.array_equal(sample["label_map"], labels), "the label map is not the palette indices"


# ------------------------------------------------------------------------------------------- augmentation

def test_augmentation_is_a_function_of_seed_epoch_and_draw(tmp_path):
    """A resumed run, or another loader process, sees what the first one would have seen."""
    tree = write_tree(tmp_path, {"a": scene()})
    first, second = open_folder(tree, "train", (48, 64), seed=3), open_folder(tree, "train", (48, 64), seed=3)
    np.random.seed(0)
    for draw in range(5):
        once, again = first[0, 2, draw], second[0, 2, draw]
        assert same_sample(once, again), f"draw {draw} of epoch 2 differs the second time"


def test_augmentation_differs_with_draw_epoch_and_seed(tmp_path):
    tree = write_tree(tmp_path, {"a": scene()})
    datasets = [open_folder(tree, "train", (48, 64), seed=seed) for seed in (3, 4)]
    for what, draws in {"draw": [datasets[0][0, 2, n] for n in range(10)],
                        "epoch": [datasets[0][0, n, 2] for n in range(10)]}.items():
        different = len({sample["image"].numpy().tobytes() for sample in draws})
        assert different > 7, f"only {different} different pictures in 10 values of {what}"
    same = [same_sample(datasets[0][0, 2, n], datasets[1][0, 2, n]) for n in range(5)]
    assert not all(same), "the seed has no effect"


def test_picture_and_labels_are_cropped_and_flipped_together(tmp_path):
    """The red of every pixel says what its label must be. Left
    out: pixels within 3 of a border between labels."""
    dataset, flipped = open_folder(write_tree(tmp_path, {"a": scene()}), "train", (48, 64)), 0
    plain = dataset[0]["label_map"].numpy().astype(float)
    for draw in range(20):
        sample = dataset[0, 0, draw]
        red, labels = sample["image"][0].numpy(), sample["label_map"].numpy()
        inside = [(y, x) for y in range(3, 45) for x in range(3, 61)
                  if (labels[y - 3:y + 4, x - 3:x + 4] == labels[y, x]).all()]
        wrong = [(y, x) for y, x in inside if round(red[y, x] / 60) != labels[y, x]]
        assert len(inside) > 100, "this test found too few pixels inside of blocks"
        assert not wrong, f"draw {draw}: picture and labels disagree at {len(wrong)} of {len(inside)} pixels"
        agreement = [(labels == plane).mean() for plane in (plain, plain[:, ::-1])]
        flipped += agreement[1] > agreement[0]
    assert 3 < flipped < 17, f"{flipped} of 20 draws were flipped, about half were expected"


def test_offsets_are_those_of_the_flipped_and_cropped_instances(tmp_path):
    """Instance ids equal to the labels: the offsets must be those of the label map that comes with them."""
    planes = scene()
    planes["instances"] = planes["labels"].astype(np.uint16)
    dataset = open_folder(write_tree(tmp_path, {"a": planes}), "train", (48, 64))
    assert dataset.has_instances
    for draw in range(8):
        sample = dataset[0, 0, draw]
        np.testing.assert_allclose(sample["offsets"], loops_offsets(sample["label_map"].numpy()), atol=1e-6,
                                   err_msg=f"draw {draw}: the offsets belong to another crop or flip")


# ----------------------------------------------------------------------------- what does not fit, in one line

def assert_refused(says, make):
    """make() raises InputError, and its message has every one of the given words."""
    with pytest.raises(InputError) as error:
        make()
    for word in says:
        assert word in str(error.value), f"the message does not say {word!r}: {error.value}"


@pytest.mark.parametrize("missing, left", [("images", "labels"), ("labels", "images")])
def test_a_file_without_its_partner_is_refused(tmp_path, missing, left):
    write_tree(tmp_path, {"a": scene(), "b": scene()})
    (tmp_path / missing / "train" / "b.png").unlink()
    assert_refused([str(tmp_path / left / "train" / "b.png"), str(tmp_path / missing / "train")],
                   lambda: open_folder(tmp_path, "train", (48, 64)))


def test_a_picture_without_its_instance_map_is_refused(tmp_path):
    """Where there is an instances folder, every picture needs a file there."""
    write_tree(tmp_path, {"a": {**scene(), "instances": np.zeros((48, 64), np.uint8)}, "b": scene()})
    assert_refused(["b.png", "instances"], lambda: open_folder(tmp_path, "train", (48, 64)))


@pytest.mark.parametrize("kind", ["labels", "instances"])
def test_sizes_that_differ_are_refused(tmp_path, kind):
    """With both files and both sizes, width x height as image viewers print them."""
    planes = {**scene(), "instances": np.zeros((48, 64), np.uint8)}
    planes[kind] = np.zeros((24, 32), np.uint8)
    dataset = open_folder(write_tree(tmp_path, {"a": planes}), "train", (48, 64))
    first, second = (str(tmp_path / k / "train/a.png") for k in (kind, "images"))
    assert_refused([first, "32x24", second, "64x48"], lambda: dataset[0])


def test_label_values_beyond_the_classes_are_refused(tmp_path):
    """With the values: 4 classes are 0..3, this file has 7 and 9 as well."""
    planes = scene()
    planes["labels"][0, 0], planes["labels"][5, 5] = 9, 7
    dataset = open_folder(write_tree(tmp_path, {"a": planes}), "train", (48, 64))
    assert_refused([str(tmp_path / "labels/train/a.png"), "[7, 9]", "0..3"], lambda: dataset[0])


def test_label_values_beyond_8_bits_are_refused(tmp_path):
    """256 in a 16-bit file must not become a 0."""
    planes = scene()
    planes["labels"] = planes["labels"].astype(np.uint16)
    planes["labels"][0, 0] = 256
    dataset = open_folder(write_tree(tmp_path, {"a": planes}), "train", (48, 64))
    assert_refused([str(tmp_path / "labels/train/a.png"), "[256]"], lambda: dataset[0])


def test_an_rgb_label_map_is_refused(tmp_path):
    planes = scene()
    planes["labels"] = planes["images"]
    dataset = open_folder(write_tree(tmp_path, {"a": planes}), "train", (48, 64))
    assert_refused([str(tmp_path / "labels/train/a.png"), "RGB", "one channel"], lambda: dataset[0])


def test_an_rgb_instance_map_is_refused(tmp_path):
    planes = {**scene(), "instances": scene()["images"]}
    dataset = open_folder(write_tree(tmp_path, {"a": planes}), "train", (48, 64))
    assert_refused([str(tmp_path / "instances/train/a.png")], lambda: dataset[0])


def test_a_truncated_jpeg_is_refused(tmp_path):
    """A broken download: the first half of a file."""
    write_tree(tmp_path, {"a": scene()})
    file = tmp_path / "images/train/a.jpg"
    Image.open(tmp_path / "images/train/a.png").save(file)
    (tmp_path / "images/train/a.png").unlink()
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
    dataset = open_folder(tmp_path, "train", (48, 64))
    assert_refused([str(file), "cannot be read"], lambda: dataset[0])


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    write_tree(tmp_path, {"a": scene()})
    (tmp_path / "labels/train/a.png").write_text("not a picture")
    dataset = open_folder(tmp_path, "train", (48, 64))
    assert_refused([str(tmp_path / "labels/train/a.png"), "cannot be read"], lambda: dataset[0])


def test_a_folder_without_pictures_is_refused(tmp_path):
    """It shows the layout that is expected."""
    write_tree(tmp_path, {"a": scene()})
    assert_refused([str(tmp_path / "images/val"), "no pictures", "classes.txt"],
                   lambda: open_folder(tmp_path, "val", (48, 64)))


def test_a_folder_without_classes_txt_is_refused(tmp_path):
    write_tree(tmp_path, {"a": scene()})
    (tmp_path / "classes.txt").unlink()
    assert_refused([str(tmp_path), "no classes.txt"], lambda: open_folder(tmp_path, "train", (48, 64)))


def test_an_unknown_dataset_is_refused():
    assert_refused(["--dataset cats", "toy", "folder"], lambda: open_dataset("cats", None, "train", (64, 64)))


def test_the_folder_dataset_needs_a_path():
    assert_refused(["--data-path"], lambda: open_dataset("folder", None, "train", (64, 64)))


def test_image_size_is_height_by_width():
    assert (parse_size("64"), parse_size("256x512")) == ((64, 64), (256, 512))


def test_every_class_has_a_colour_of_its_own():
    """Even COCO-Stuff's 183, the unknown one black."""
    palette = default_palette(183, 182)
    assert len({tuple(colour) for colour in palette.tolist()}) == 183, "two classes share a colour"
    assert palette[182].tolist() == [0, 0, 0], "the unknown class is black"


# ------------------------------------------------------------------------------------- rare-class sampling

def test_sampling_probabilities_by_loops():
    """Sec. 4.1: p proportional to f_k^(-1/2), k the rarest class of the image, f its share of the images."""
    presence = np.random.default_rng(0).random((12, 5)) < (0.9, 0.6, 0.4, 0.2, 0.1)
    presence[:, 0] = True
    weights = []
    for image in presence:
        shares = [sum(other[c] for other in presence) / 12 for c in range(5) if image[c]]
        weights.append(min(shares) ** -0.5)
    expected = [w / sum(weights) for w in weights]
    np.testing.assert_allclose(sampling_probabilities(presence), expected,
                               err_msg="p is not f_k^(-1/2), normalised")


def test_sampling_probabilities_by_hand():
    """Class 1 is in one image of four: 1/sqrt(1/4) = 2, twice the others' weight: 1/5, 1/5, 1/5, 2/5."""
    p = sampling_probabilities(np.array([[1, 0], [1, 0], [1, 0], [1, 1]]))
    np.testing.assert_allclose(p, [0.2, 0.2, 0.2, 0.4])


def test_the_unknown_class_is_not_a_rare_class():
    """Unknown pixels in a single image, however rare, do not make it more likely."""
    p = sampling_probabilities(np.array([[1, 0], [1, 0], [1, 0], [1, 1]]), unknown=1)
    np.testing.assert_allclose(p, [0.25] * 4, err_msg="the unknown class changed the probabilities")


def test_an_image_of_unknown_pixels_only_counts_as_common():
    """f_k = 1, the smallest weight; class 0 in two of four: sqrt(2). No infinity and no nan."""
    p = sampling_probabilities(np.array([[1, 0], [1, 0], [0, 1], [0, 1]]), unknown=1)
    weights = np.array([2 ** 0.5, 2 ** 0.5, 1, 1])
    np.testing.assert_allclose(p, weights / weights.sum())


def test_images_are_drawn_as_often_as_their_probability_says():
    """100,000 draws: each of 20 counts within five standard deviations, sqrt(n p (1 - p)), of n p."""
    p = np.random.default_rng(1).random(20) ** 2 + 0.01
    p /= p.sum()
    draws = [index for batch in RareClassBatches(p, 100, 0, 1000) for index, _, _ in batch]
    assert len(draws) == 100_000
    counts = np.bincount(draws, minlength=20)
    deviations = (counts - 100_000 * p) / np.sqrt(100_000 * p * (1 - p))
    assert np.abs(deviations).max() < 5, (
        f"drawn too often or too rarely, in deviations: {deviations.round(1)}")
    assert np.abs(deviations).max() > 0.3, "random draws never fit that well: were they drawn at all?"


P7 = np.array([1, 2, 3, 4, 5, 6, 7]) / 28  # seven images: batches of four cross the epochs' boundaries


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_parts_together_are_one_ranks_batch(world):
    """Behind one another and in order: the number of ranks does not change what a step sees."""
    whole = list(RareClassBatches(P7, 4, 0, 10))
    parts = [list(RareClassBatches(P7, 4, 0, 10, rank=rank, world=world)) for rank in range(world)]
    for step in range(10):
        together = [sample for part in parts for sample in part[step]]
        assert together == whole[step], (
            f"step {step}: {world} ranks see {together}, one rank sees {whole[step]}")


def test_a_resumed_run_goes_on_with_the_draws_of_its_step():
    """Starting at step 7 gives what a run from 0 gives at step 7 and after."""
    assert list(RareClassBatches(P7, 4, 7, 12)) == list(RareClassBatches(P7, 4, 0, 12))[7:]


def test_an_epoch_is_as_many_draws_as_there_are_images():
    """Draw n is draw n % 7 of epoch n // 7: the pair that seeds the augmentation is never used twice."""
    draws = [sample[1:] for batch in RareClassBatches(P7, 4, 0, 7) for sample in batch]
    assert draws == [(n // 7, n % 7) for n in range(28)]


def test_every_epoch_is_drawn_anew():
    epochs = [[index for index, _, _ in batch] for batch in RareClassBatches(P7, 7, 0, 10)]
    assert len(np.unique(epochs, axis=0)) > 8, "the epochs repeat each other"


def test_another_seed_gives_other_draws():
    assert list(RareClassBatches(P7, 4, 0, 10, seed=0)) != list(RareClassBatches(P7, 4, 0, 10, seed=1))


def test_the_number_of_batches_is_the_number_of_steps():
    sampler = RareClassBatches(P7, 4, 7, 12)
    assert len(sampler) == len(list(sampler)) == 5


# ---------------------------------------------------------------------------------- which classes are where

@pytest.fixture
def three_scenes(tmp_path):
    """Images of classes {0}, {1, 3} and {2, 3}."""
    scenes = {}
    for name, (left, right) in {"a": (0, 0), "b": (1, 3), "c": (3, 2)}.items():
        labels = np.full((8, 8), left, np.uint8)
        labels[:, 7] = right
        scenes[name] = {"images": Image.new("RGB", (8, 8)), "labels": labels}
    return write_tree(tmp_path / "tree", scenes)


EXPECTED = [[True, False, False, False], [False, True, False, True], [False, False, True, True]]


def unreadable(*_):
    raise AssertionError("a label map was read, the cache should have been used")


def test_class_presence_reads_every_label_map(three_scenes):
    assert class_presence(open_folder(three_scenes, "train", (8, 8))).tolist() == EXPECTED


def test_class_presence_is_read_from_the_cache_the_second_time(three_scenes, tmp_path, monkeypatch):
    class_presence(open_folder(three_scenes, "train", (8, 8)), tmp_path / "cache.npz")
    monkeypatch.setattr(Pictures, "presence", unreadable)
    cached = class_presence(open_folder(three_scenes, "train", (8, 8)), tmp_path / "cache.npz")
    assert cached.tolist() == EXPECTED


@pytest.mark.parametrize("change", ["a file more", "a file less", "other labels", "another class list"])
def test_the_cache_of_another_dataset_is_not_used(three_scenes, tmp_path, monkeypatch, change):
    """The list of label files, their sizes and times, and the classes must be those of the cache."""
    class_presence(open_folder(three_scenes, "train", (8, 8)), tmp_path / "cache.npz")
    if change == "a file more":
        write_tree(three_scenes, {"d": scene()})
    elif change == "a file less":
        (three_scenes / "images/train/c.png").unlink(), (three_scenes / "labels/train/c.png").unlink()
    elif change == "other labels":
        write_tree(three_scenes, {"a": {"labels": scene()["labels"]}})
    else:
        write_tree(three_scenes, {}, ("sky", "ground", "tree", "house", "car"))
    monkeypatch.setattr(Pictures, "presence", unreadable)
    with pytest.raises(AssertionError, match="a label map was read"):
        class_presence(open_folder(three_scenes, "train", (8, 8)), tmp_path / "cache.npz")


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_half_written_cache_is_replaced(three_scenes, tmp_path, share):
    """The run was killed, or the disk was full, while the cache was written."""
    cache = tmp_path / "cache.npz"
    class_presence(open_folder(three_scenes, "train", (8, 8)), cache)
    whole = cache.read_bytes()
    cache.write_bytes(whole[:int(share * len(whole))])
    assert class_presence(open_folder(three_scenes, "train", (8, 8)), cache).tolist() == EXPECTED
    assert np.load(cache)["presence"].tolist() == EXPECTED, "the broken cache was left as it was"


def test_class_presence_finds_bad_label_maps_before_the_training(three_scenes):
    """One label beyond the classes in one file of many: found now, not after an hour."""
    write_tree(three_scenes, {"c": {"labels": np.full((8, 8), 77, np.uint8)}})
    dataset = open_folder(three_scenes, "train", (8, 8))
    assert_refused([str(three_scenes / "labels/train/c.png"), "[77]"], lambda: class_presence(dataset))
