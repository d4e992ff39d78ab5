"""Lab 11: many ranks (Sec. 4.1). Write the six functions.

    python labs/check.py 11          (as often as you like)

    here         |
    ranks        | this process among many: ranks.rank is 0 ... ranks.world - 1, ranks.world is their number
    world        | that number alone; 1 where there is one process
    B            | the pictures of the global batch; each rank has B / world of them, rank 0 the first ones
    dist.all_reduce(t)   replaces t, in place, on every rank by its sum over the ranks; all ranks must call it
"""
import torch
import torch.distributed as dist
import torch.nn as nn

import support.ranks
import train


def share(noise, ranks):
    """{name: (B, ...)}, the same on every rank -> {name: (B / world, ...)}: this rank's part of each, on ranks.device.

    The parts of all ranks, one behind the other, are the batch.
    """
    raise NotImplementedError("Sec. 4.1: this rank's part of the global batch")


def noise_of_step(seed, step, batch_size, z_dim, ranks):
    """The noise of one step, this rank's part: {"z_1": (B / world, d_z), "z_2": the same}. step counts from 1.

    A function of (seed, step) alone: a CPU torch.Generator with the seed  seed * 1_000_003 + step,  the noise of the
    whole batch from it, train.draw_noise(batch_size, z_dim, 0, generator), and of that this rank's part, by
    support.ranks.share.
    """
    raise NotImplementedError("Sec. 4.1: the noise of the global batch, and this rank's part of it")


def draws(sampler):
    """Yield, step by step, this rank's part of the batch: a list of keys (index, epoch, n % N) for data.Dataset.

        draw n is draw n % N of epoch n // N           an epoch is N draws with replacement, of N pictures
        order = np.random.default_rng((sampler.seed, epoch, N)).choice(N, size=N, p=sampler.p)       (import numpy)
        index = int(order[n % N])

    The batch of step s, counted from 0, is the draws  s B ... s B + B - 1.  Rank r begins with  s B + r B / world.

    sampler.p           (N,) probability of each picture       sampler.batch_size   B, of all ranks together
    sampler.steps       a range, of the steps to go through    sampler.per_rank     B / world
    sampler.rank, .seed
    """
    raise NotImplementedError("Sec. 4.1: the draws of a step, split over ranks")


def count_classes(label_map, num_classes, world):
    """n_c of Eq. 3's alpha: the pixels of each class in the global batch. (B / world, H, W) int64 -> (C,) int64

    Every rank gets the same numbers. With world 1 there is no process group to ask.
    """
    raise NotImplementedError("Sec. 3.3: n_c of the global batch")


def average_gradients(parameters, world):
    """Replace p.grad of each parameter, in place, by its mean over the ranks. -> None

    p.grad may be None, on all ranks alike: nothing to do for it. With world 1 nothing is done. Each rank's loss is a
    mean over its own pictures.
    """
    raise NotImplementedError("Sec. 4.1: the mean of the gradients over ranks")


class SumOverRanks(torch.autograd.Function):
    """Given: a tensor's sum over the ranks. Each rank's loss sees the sum, so gradients are summed on the way back."""

    @staticmethod
    def forward(ctx, t):
        t = t.clone()
        dist.all_reduce(t)
        return t

    @staticmethod
    def backward(ctx, gradient):
        return SumOverRanks.forward(ctx, gradient)


def batch_norm(norm, x):
    """A batch norm whose batch is that of all ranks. x (B / world, C, H, W) float32 -> the same shape

        mean = sum of x / n        variance = sum of (x - mean)^2 / n        n = B H W, a sum over the ranks, too
        y = (x - mean) / sqrt(variance + eps) * weight + bias

    SumOverRanks.apply(t), above, gives the sum over the ranks of a tensor, and lets the gradient through: x has an
    effect on the other ranks' outputs, too, by way of mean and variance. dist.all_reduce would not.

    norm.eps; norm.weight, norm.bias (C,), only where norm.affine
    Where norm.track_running_stats:  norm.num_batches_tracked goes up by 1,
        running_mean <- (1 - m) running_mean + m mean        running_var <- (1 - m) running_var + m variance n / (n - 1)
    in place, without a gradient; m is norm.momentum (never None in this lab).
    """
    if not norm.training and norm.track_running_stats:
        return nn.BatchNorm2d.forward(norm, x)
    raise NotImplementedError("Sec. 4.1: batch norm over all ranks")
