"""What python labs/check.py 11 asks of lab.py. The ranks are threads of one process; together.py says how."""
import copy
from pathlib import Path
from types import SimpleNamespace

import torch

import train
from labs.pieces import Task, load, put_in
from test_train import through_batch_norms

together = load(Path(__file__).with_name("together.py")).together
ALONE = SimpleNamespace(device=torch.device("cpu"), rank=0, world=1)


def same(found, expected, what):
    torch.testing.assert_close(found, expected, msg=lambda text: f"{what}\n")


# ------------------------------------------------------------------------------------------- split over ranks

def the_parts_behind_one_another_are_the_batch(share):
    noise = {"z_1": torch.arange(24.0).view(8, 3), "z_3d": torch.arange(16.0).view(8, 2)}
    for world in (1, 2, 4):
        parts = together(lambda ranks: share(dict(noise), ranks), world)
        for name, whole in noise.items():
            for rank, part in enumerate(parts):
                same(part[name], whole[rank * 8 // world:(rank + 1) * 8 // world], f"{name} of rank {rank} of {world}")


def the_parts_are_the_noise_of_one_process(noise_of_step):
    for seed, step in ((0, 1), (3, 2)):
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        expected = train.draw_noise(4, 3, 0, rng)
        parts = together(lambda ranks: noise_of_step(seed, step, 4, 3, ranks))
        for name in ("z_1", "z_2"):
            for rank, part in enumerate(parts):
                same(part[name], expected[name][2 * rank:2 * rank + 2], f"{name} of rank {rank} in step {step}")


# ------------------------------------------------------------------------------------------- summed over ranks

LABELS = torch.tensor([[[0, 0, 1, 3]], [[0, 3, 3, 3]], [[1, 1, 0, 0]], [[3, 0, 0, 0]]])               # (4, 1, 4)


def every_rank_gets_the_counts_of_the_whole_batch(count_classes):
    expected = torch.tensor([sum(label == c for label in LABELS.flatten()) for c in range(5)])
    same(count_classes(LABELS, 5, 1), expected, "the counts of one process")
    parts = together(lambda ranks: count_classes(LABELS.chunk(2)[ranks.rank], 5, 2))
    for rank, counts in enumerate(parts):
        same(counts, expected, f"the counts on rank {rank} of 2")


def every_rank_gets_the_mean_in_place(average_gradients):
    def on(ranks):
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (1,), (4,))]
        held = []
        for n, p in enumerate(parameters):
            p.grad = None if n == 1 else torch.arange(float(p.numel())).view_as(p) * (1 + 2 * ranks.rank) + n + 1
            held.append(p.grad)
        average_gradients(parameters, ranks.world)
        assert parameters[1].grad is None, "a gradient of None was expected to stay None"
        assert all(p.grad is old for p, old in zip(parameters, held)), "the old tensors were expected as p.grad"
        return [parameters[n].grad for n in (0, 2)]
    for rank, (first, last) in enumerate(together(on)):
        same(first, torch.arange(6.0).view(2, 3) * 2 + 1, f"the first gradient on rank {rank} of 2")
        same(last, torch.arange(4.0) * 2 + 3, f"the last gradient on rank {rank} of 2")
    alone = torch.nn.Parameter(torch.zeros(2))
    alone.grad = torch.ones(2)
    average_gradients([alone], 1)
    same(alone.grad, torch.ones(2), "the gradient of one process")


# ------------------------------------------------------------------------------------------- batch norm

def it_is_one_batch_norm_over_the_whole_batch(batch_norm):
    """Two batch norms on two ranks against nn.BatchNorm2d on one: outputs by their gradients, statistics."""
    expected = through_batch_norms(ALONE)
    with put_in({"support.ranks.BatchNormOverRanks.forward": batch_norm}):
        parts = together(through_batch_norms)
    for rank, part in enumerate(parts):
        for key in ("mean", "var"):
            same(part[key], expected[key], f"the running {key} on rank {rank}")
    same(torch.cat([part["x"] for part in parts]), expected["x"], "the gradient of x, of both ranks together")
    for rank, part in enumerate(parts):
        same(2 * part["weight"], expected["weight"], f"the gradient of weight on rank {rank}")


def its_output_is_that_of_the_whole_batch(batch_norm):
    x = 2 + 3 * torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    norm = torch.nn.BatchNorm2d(3, eps=0.1)
    norm.weight.data, norm.bias.data = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 0.2, 0.3])
    own = [copy.deepcopy(norm) for _ in range(2)]
    expected = norm(x)
    parts = together(lambda ranks: batch_norm(own[ranks.rank], x.chunk(2)[ranks.rank]))
    same(torch.cat(parts), expected, "y")
    for rank in range(2):
        same(own[rank].num_batches_tracked, norm.num_batches_tracked, f"num_batches_tracked on rank {rank}")


FORMULA = load(Path(__file__).parents[1] / "02_rare_classes" / "tasks.py").draws_are_the_documented_sequence
DRAWS = "test_data.py::test_the_ranks_parts_together_are_one_ranks_batch"
TASKS = [
    Task("share", "support.ranks.share", "the handout, \"Split\"", [the_parts_behind_one_another_are_the_batch]),
    Task("noise_of_step", None, "the handout, \"Split\", and train.py:loop", [the_parts_are_the_noise_of_one_process]),
    Task("draws", "data.RareClassBatches.__iter__", "Sec. 4.1, sampling, and the handout, \"Split\"",
         [FORMULA, DRAWS, "test_data.py::test_draws_are_a_function_of_seed_and_step"]),
    Task("count_classes", "support.ranks.count_classes", "Sec. 3.3, alpha_c, over the whole batch",
         [every_rank_gets_the_counts_of_the_whole_batch]),
    Task("average_gradients", "support.ranks.average_gradients", "the handout, \"Sum\"",
         [every_rank_gets_the_mean_in_place]),
    Task("batch_norm", None, "the handout, \"Batch norm\"",
         [its_output_is_that_of_the_whole_batch, it_is_one_batch_norm_over_the_whole_batch])]
