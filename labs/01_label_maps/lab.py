"""Lab 01: label maps (Sec. 4.1). Write the four functions; each ends in NotImplementedError now.

    python labs/check.py 01          (as often as you like)

    paper | here         | shape
    t     | label_map    | (B, H, W) or (H, W) integers 0..C-1, the class of each pixel
          | palette      | (C, 3) uint8, the colour of each class: red, green, blue
          | instances    | (H, W) integers: which thing a pixel belongs to, 1, 2, ... in any order; 0 = none
"""
import numpy as np
import torch


def colour_labels(label_map, palette):
    """A label map as a picture. label_map (..., H, W), palette (C, 3) uint8 -> (..., H, W, 3) uint8, a numpy array.

        picture[..., y, x, :] = palette[label_map[..., y, x]]

    label_map may be a numpy array or a torch tensor on the CPU: np.asarray takes both.
    """
    raise NotImplementedError("Fig. 1: the colour of each pixel's class")


def one_hot(label_map, num_classes, dtype):
    """label_map (B, H, W) int64, a torch tensor -> (B, C, H, W) of 0 and 1 in dtype, on label_map's device.

        t[b, c, y, x] = 1 where label_map[b, y, x] = c, else 0

    No loop over pixels, and nothing that passes through the CPU: what you make, make it with device=label_map.device.
    """
    raise NotImplementedError("Sec. 3, t: one channel a class, 1 where the pixel is of this class")


def nearest(old, new):
    """Nearest-neighbour resizing along one side: which of `old` pixels each of `new` pixels shows.

    -> (new,) integers, a numpy array

    Pixel i of the new picture covers the old side from i old / new to (i + 1) old / new. It shows the old pixel in
    which the middle of that piece lies. A middle on the edge between two pixels belongs to the later one.

    Use whole numbers: a ratio old / new, rounded first, can put the middle on the wrong side of an edge (old 486, new
    937).
    """
    raise NotImplementedError("the handout, 2: the old pixel under the middle of each new one")


def offset_maps(instances):
    """Sec. 4.1, "vertical and horizontal maps of every foreground pixel w.r.t. its object center of mass".

    instances (H, W) integers, a numpy array, 0 = no instance -> (2, H, W) float32: dy / H, then dx / W.

        dy[y, x] = (mean of y over the pixels of this instance - y) / H        0 outside of instances
        dx[y, x] = (mean of x over the pixels of this instance - x) / W

    Ids may be 26001: loop over those that occur, np.unique(instances), not over all up to the largest. 0 is
    among them only where there is background.
    """
    raise NotImplementedError("Sec. 4.1: the offset of each pixel to the centre of mass of its instance")
