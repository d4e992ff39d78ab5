"""Lab 02: rare classes (Sec. 4.1, "Implementation details"). Write the four functions.

    python labs/check.py 02          (as often as you like)

    paper | here          | shape
          | presence      | (N, C) bool: which of the C classes each of the N training images contains
    f_c   |               | (C,) the share of the images in which class c appears
    f_k   |               | (N,) f_c of the rarest class k of each image
          | probabilities | (N,) p, with which each image is drawn; they add up to 1
"""
import numpy as np


def presence(dataset, index):
    """Which classes image `index` contains, be it a single pixel. -> (C,) array of bool

    dataset.reader.labels(index)    its label map, (h, w) uint8, at the size of its file
    dataset.classes                 the C names; C is more than the largest label of most images
    """
    raise NotImplementedError("Sec. 4.1: which classes an image contains")


def sampling_probabilities(presence, unknown=None):
    """p of each image, "proportional to f_k^(-1/2)" (Sec. 4.1). presence (N, C) bool -> (N,) float64, adding up to 1

        f_c = (images that contain class c) / N
        f_k = the smallest f_c of the classes that the image contains
        p   ~ f_k^(-1/2)

    unknown: the class of unlabelled pixels, or None. It is no class here, however rare it is. An image in which there
    is nothing else has f_k = 1. Leave the caller's table as it is: others use it, too.
    """
    raise NotImplementedError("Sec. 4.1: p ~ f_k^(-1/2)")


def draw_batches(batches):
    """The images of each training step, drawn with p. A generator: it yields one list for each step of batches.steps.

    All draws of a run are one sequence, n = 0, 1, 2, ..., cut into batches of batches.batch_size: step s has the draws
    s * batch_size and the batch_size - 1 after it. With several GPUs ("ranks") each takes an equal part of them in
    order: rank 0 the first batches.per_rank, rank 1 the next, and so on.

    An epoch is N draws with replacement, N = len(batches.p). Draw n is number i = n % N of epoch e = n // N. All N
    draws of an epoch come from one generator, which knows nothing but the seed and the epoch:

        order = np.random.default_rng((batches.seed, e, N)).choice(N, size=N, p=batches.p)                   (N,)

    What is yielded for draw n: the triple (order[i] as an int, e, i). The dataset's augmentation is seeded with it.
    batches.rank: of this process. batches.steps: a range; that of a resumed run does not begin at 0.
    """
    raise NotImplementedError("Sec. 4.1: images drawn with p, step by step")


def share_drawn(presence, probabilities):
    """The histogram "after": which share of the drawn images contains class c. (N, C) bool, (N,) -> (C,)

    One image is drawn with p. Class c is in it with the probability that one of the images that have c is drawn.
    With equal probabilities, 1 / N each, it is f_c: the histogram "before".
    """
    raise NotImplementedError("Sec. 4.1: the share of drawn images that contain each class")
