"""What python labs/check.py 02 asks of lab.py."""
from types import SimpleNamespace

import numpy as np

from data import RareClassBatches
from labs.pieces import Task

MAPS = [np.array(labels, np.uint8) for labels in ([[1, 1, 1], [1, 1, 2]], [[0, 0], [3, 0]], [[4, 1, 0]])]
TABLE = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]], bool)               # (5, 4)
P = np.array([1, 2, 3, 4, 5]) / 15


def a_single_pixel_is_enough(presence):
    dataset = SimpleNamespace(reader=SimpleNamespace(labels=lambda index: MAPS[index]), classes=tuple("abcdef"))
    for index, labels in enumerate(MAPS):
        seen = presence(dataset, index)
        expected = [any(c == label for row in labels.tolist() for label in row) for c in range(6)]
        np.testing.assert_allclose(seen, expected, err_msg=f"classes of the label map {labels.tolist()}")
        assert seen.dtype == bool, f"an array of bool was expected, {seen.dtype} came"


def the_callers_table_stays_as_it_is(sampling_probabilities):
    table = TABLE.copy()
    sampling_probabilities(table, 1)
    assert (table == TABLE).all(), "the caller's table was changed"


def the_unknown_class_can_be_class_0(sampling_probabilities):
    expected = np.array([0.4, 0.6, 1, 0.6, 0.4]) ** -0.5
    np.testing.assert_allclose(sampling_probabilities(TABLE[:, [2, 0, 1, 3]], 0), expected / expected.sum(),
                               err_msg="p where the unknown class is class 0")


def draws_are_the_documented_sequence(draw_batches):
    sequence = [(int(image), epoch, i) for epoch in range(6) for i, image in
                enumerate(np.random.default_rng((7, epoch, 5)).choice(5, size=5, p=P))]
    for first, last, rank, world in ((0, 5, 0, 1), (2, 5, 0, 1), (1, 4, 1, 2)):
        batches = RareClassBatches(P, 4, first, last, 7, rank, world)
        each = 4 // world
        expected = [sequence[4 * s + rank * each:4 * s + (rank + 1) * each] for s in range(first, last)]
        of = f"steps {first} to {last - 1}, rank {rank} of {world}"
        found = list(draw_batches(batches))
        assert len(found) == last - first, f"{of}: {last - first} batches were expected, {len(found)} came"
        for name, part in (("images", 0), ("epochs", 1), ("numbers of the draws", 2)):
            expected_part, part_found = ([key[part] for batch in b for key in batch] for b in (expected, found))
            assert part_found == expected_part, f"{of}, {name}: {expected_part} was expected, {part_found} came"


def every_class_by_loops(share_drawn):
    expected = [sum(p for image, p in zip(TABLE.tolist(), P.tolist()) if image[c]) for c in range(4)]
    np.testing.assert_allclose(share_drawn(TABLE, P), expected, err_msg="the share of the drawn images with each class")
    np.testing.assert_allclose(share_drawn(TABLE, np.full(5, 0.2)), [1, 0.6, 0.2, 0.4], err_msg="all p alike: f_c")


TASKS = [
    Task("presence", "data.Dataset.presence", "Sec. 4.1, \"f_c the fraction of training images where class c appears\"",
         [a_single_pixel_is_enough]),
    Task("sampling_probabilities", "data.sampling_probabilities", "Sec. 4.1, \"proportional to f_k^(-1/2)\"",
         ["test_data.py::test_sampling_probabilities_by_loops", "test_data.py::test_sampling_probabilities_by_hand",
          the_callers_table_stays_as_it_is, the_unknown_class_can_be_class_0]),
    Task("draw_batches", "data.RareClassBatches.__iter__", "Sec. 4.1, \"each image is sampled with a probability\"",
         [draws_are_the_documented_sequence, "test_data.py::test_the_ranks_parts_together_are_one_ranks_batch[2]",
          "test_data.py::test_draws_are_a_function_of_seed_and_step"]),
    Task("share_drawn", None, "Sec. 4.1 and the handout, \"Before and after\"", [every_class_by_loops])]
