"""What python labs/check.py 01 asks of lab.py."""
import math
from fractions import Fraction

import numpy as np
import torch

from labs.pieces import Task

LABELS = torch.tensor([[[0, 1, 1, 2], [3, 2, 0, 0]], [[2, 2, 3, 1], [1, 0, 3, 0]]])                 # (2, 2, 4)
PALETTE = np.array([[10, 20, 30], [0, 255, 7], [90, 80, 70], [200, 100, 50]], np.uint8)


def every_pixel_has_the_colour_of_its_class(colour_labels):
    expected = [[[PALETTE[c].tolist() for c in row] for row in one] for one in LABELS.tolist()]
    for label_map in (LABELS, LABELS.numpy().astype(np.uint8)):
        np.testing.assert_allclose(colour_labels(label_map, PALETTE), expected, err_msg="the colours of the classes")
    picture = colour_labels(LABELS[0], PALETTE)
    assert picture.dtype == np.uint8, f"dtype uint8 was expected, {picture.dtype} came"


def every_pixel_is_1_in_the_channel_of_its_class(one_hot):
    for dtype in (torch.float32, torch.bfloat16):
        t = one_hot(LABELS, 5, dtype)
        expected = [[[[1 if k == c else 0 for k in row] for row in one] for c in range(5)] for one in LABELS.tolist()]
        torch.testing.assert_close(t.float(), torch.tensor(expected, dtype=torch.float32),
                                   msg=lambda text: f"t[b, c, y, x] is 1 where the label is c\n{text}")
        assert t.dtype == dtype, f"dtype {dtype} was expected, {t.dtype} came"


def it_stays_on_its_device(one_hot):
    t = one_hot(LABELS.to("meta"), 5, torch.float32)  # a device without numbers, which every machine has
    assert t.device.type == "meta", f"label_map's device was expected, {t.device} came"


def the_pixel_under_each_middle_is_kept(nearest):
    for old, new in ((64, 28), (4, 2), (6, 4), (5, 7), (3, 3), (286, 256), (1, 4), (486, 937)):
        expected = [math.floor((i + Fraction(1, 2)) * old / new) for i in range(new)]
        np.testing.assert_allclose(np.asarray(nearest(old, new)), expected, err_msg=f"{old} pixels to {new}")


def without_background_every_pixel_is_of_a_thing(offset_maps):
    dy, dx = offset_maps(np.array([[3, 3], [7, 7]]))
    np.testing.assert_allclose(dy, [[0, 0], [0, 0]], atol=1e-6, err_msg="dy of [[3, 3], [7, 7]], a map without any 0")
    np.testing.assert_allclose(dx, [[0.25, -0.25], [0.25, -0.25]], atol=1e-6,
                               err_msg="dx of [[3, 3], [7, 7]], a map without any 0")


TASKS = [
    Task("colour_labels", "support.pages.colour_labels", "Fig. 1, the label maps, and support/pages.py",
         [every_pixel_has_the_colour_of_its_class]),
    Task("one_hot", "generator.one_hot", "Sec. 3, the label map t",
         [every_pixel_is_1_in_the_channel_of_its_class, it_stays_on_its_device,
          "test_generator.py::test_the_image_pyramid_grows_from_the_low_resolution_label_map[32-32]"]),
    Task("nearest", "data.nearest", "the handout, 2",
         [the_pixel_under_each_middle_is_kept,
          "test_data.py::test_samples_are_the_files_resized_cropped_and_flipped[folder-0]"]),
    Task("offset_maps", "data.offset_maps", "Sec. 4.1, \"vertical and horizontal maps\"",
         ["test_data.py::test_offset_maps_point_to_the_centre_of_mass", without_background_every_pixel_is_of_a_thing])]
