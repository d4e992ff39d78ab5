"""One process or many: who is here, what they share, how the work is dealt to them, and how a signal ends it."""
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn as nn
from tqdm import tqdm

from support.errors import InputError


class Ranks(NamedTuple):
    """This process among `world` many."""
    device: torch.device
    rank: int = 0
    world: int = 1

    def say(self, text):
        if self.rank == 0:
            print(text, flush=True)

    def wait(self):
        """Until every rank is here."""
        if self.world > 1:
            dist.barrier()

    def device_name(self):
        return (torch.cuda.get_device_name(self.device) if self.device.type == "cuda"
                else f"{torch.get_num_threads()} CPU threads")


def setup_ranks(device):
    """-> Ranks. One process, or as many as torchrun started (RANK, WORLD_SIZE in the environment)."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this torch sees no CUDA device; use --device cpu")
    rank, world, local_rank, local_world = place()
    if device == "cuda":
        device = f"cuda:{local_rank}"  # TRAP: local rank, or two nodes share a device
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(max(1, cores() // local_world))
    if world > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if "cuda" in device else "gloo")
    return Ranks(torch.device(device), rank, world)


def place():
    """-> rank, world, rank and world of this machine, as torchrun says. Raises InputError where they do not fit."""
    said = {name: os.environ.get(name, default) for name, default in
            (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))}
    rank, world, local_rank, local_world = found = [int(n) if n.isdecimal() else -1 for n in said.values()]
    alone = world > 1 and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if min(found) < 0 or rank >= world or not local_world or alone:
        raise InputError(f"{' '.join('='.join(pair) for pair in said.items())} of the environment do not fit together; "
                         f"start with torchrun, which sets them all, or unset them for one process")
    return found


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def leave_ranks(ranks):
    """End the process group. TRAP: torch 2.6 hangs in there if gloo's threads still have to free a tensor. They need
    the interpreter for it, so it is given to them first."""
    if ranks.world > 1:
        ranks.wait()
        time.sleep(0.2)
        dist.destroy_process_group()


def rank_0_first(build, ranks):
    """build() on every rank; rank 0 first, which downloads or trains what the others then find."""
    if ranks.rank > 0:
        ranks.wait()
    built = build()
    if ranks.rank == 0:
        ranks.wait()
    return built


# -------------------------------------------------------------------------------- one batch over many ranks

class SumOverRanks(torch.autograd.Function):
    """A tensor's sum over the ranks. Each rank's loss sees the sum, so gradients are summed on the way back."""

    @staticmethod
    def forward(ctx, t):
        t = t.clone()
        dist.all_reduce(t)
        return t

    @staticmethod
    def backward(ctx, gradient):
        return SumOverRanks.forward(ctx, gradient)


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d whose batch is that of all ranks, on CPU, where nn.SyncBatchNorm refuses to run."""

    def forward(self, x):
        if not self.training and self.track_running_stats:
            return super().forward(x)
        dtype, x = x.dtype, x.float() if x.dtype == torch.bfloat16 else x
        n = SumOverRanks.apply(x.new_tensor(x.numel() / x.shape[1]))  # of all ranks
        mean = SumOverRanks.apply(x.sum(dim=(0, 2, 3))) / n                               # (C,)
        centred = x - mean[:, None, None]
        variance = SumOverRanks.apply(centred.square().sum(dim=(0, 2, 3))) / n            # (C,)
        if self.track_running_stats:
            self.num_batches_tracked += 1
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * n / (n - 1), momentum)
        y = centred * (variance + self.eps).rsqrt()[:, None, None]
        y = y * self.weight[:, None, None] + self.bias[:, None, None] if self.affine else y
        return y.to(dtype)


def synchronise_batch_norm(net, ranks):
    """Batch statistics over all ranks: a batch split over ranks is normalised as one batch.

    Frozen parts, such as D's backbone, stay as they are. TRAP: converted, timm's BatchNormAct2d loses its activation.
    """
    for name, part in net.named_children() if ranks.world > 1 else []:
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            continue
        if ranks.device.type == "cuda":  # it waits for the device once a layer; not measured
            setattr(net, name, nn.SyncBatchNorm.convert_sync_batchnorm(part))
            continue
        for module in part.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = CPUSyncBatchNorm
    return net


def split_batch(args, ranks):
    """-> (images per rank, images per rank at once, how often to accumulate). Raises InputError."""
    per_rank = args.batch_size // ranks.world
    micro = args.micro_batch_size or per_rank
    if args.batch_size % ranks.world or per_rank % micro:
        raise InputError(f"--batch-size {args.batch_size} must split evenly over {ranks.world} ranks and into micro-"
                         f"batches of {micro}; choose a multiple of {ranks.world * micro}")
    return per_rank, micro, per_rank // micro


def share(noise, ranks):
    """{name: (global batch, ...)}, the same on every rank -> this rank's part of each, on its device."""
    return {name: t.chunk(ranks.world)[ranks.rank].to(ranks.device, non_blocking=True) for name, t in noise.items()}


def parts_of(batch, micro):
    """{name: (B, ...)} -> the same in parts of `micro` pictures, as many as fit into memory at once."""
    return [{name: t[i:i + micro] for name, t in batch.items()} for i in range(0, len(batch["label_map"]), micro)]


def with_noise(batches, z_dim, micro, args, ranks):
    """(label_map, offsets or None, z) of batches, in parts: for the batch-norm statistics of the averaged generator."""
    generator = torch.Generator().manual_seed(args.seed)
    for batch in batches:
        batch.update(share({"z": torch.randn(args.batch_size, z_dim, generator=generator)}, ranks))
        for part in parts_of(batch, micro):
            yield part["label_map"], part.get("offsets"), part["z"]


def count_classes(label_map, num_classes, world):
    """n_c, the pixels of each class in the global batch: (C,) int64."""
    labels = label_map.flatten()
    counts = labels.new_zeros(num_classes).scatter_add_(0, labels, torch.ones_like(labels))
    if world > 1:
        dist.all_reduce(counts)
    return counts


def average_gradients(parameters, world):
    """Replace every gradient by its mean over the ranks, in one all-reduce."""
    if world > 1:
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for g, mean in zip(gradients, flat.div_(world).split([g.numel() for g in gradients])):
            g.copy_(mean.view_as(g))


def sum_over_ranks(t, world):
    """A tensor's sum over the ranks, on the CPU."""
    t = t.cpu()
    if world > 1:
        dist.all_reduce(t)
    return t


# -------------------------------------------------------------------------------- work dealt to the ranks

def batches(count, batch_size, ranks):
    """This rank's share of the batches of range(count): lists of indices. What is in a batch depends on no rank."""
    return [list(range(first, min(first + batch_size, count)))
            for first in range(ranks.rank * batch_size, count, ranks.world * batch_size)]


def read_ahead(read, shares, description, show):
    """(batch, [read(i) for i in batch]) for each batch; the next one is read while this one is used."""
    with ThreadPoolExecutor(min(8, os.cpu_count())) as pool:
        ahead = [pool.submit(read, i) for batch in shares[:1] for i in batch]
        for n, batch in enumerate(tqdm(shares, desc=description, disable=None if show else True, dynamic_ncols=True)):
            items = [future.result() for future in ahead]
            ahead = [pool.submit(read, i) for later in shares[n + 1:n + 2] for i in later]
            yield batch, items


def on_all_cores(build):
    """build() with as many threads as there are cores, whatever the number of ranks: fewer would round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        return build()
    finally:
        torch.set_num_threads(threads)


# -------------------------------------------------------------------------------- signals

def own_group(worker):
    """For loader processes: out of the process group, whose SIGTERM or Ctrl-C is for the training process alone."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


class StopOnSignals:
    """SIGTERM and Ctrl-C end the loop after its step, on all ranks after the same one; a second Ctrl-C interrupts. A
    scheduler may send SIGTERM to a rank twice, by itself and through torchrun."""

    def __init__(self, world):
        self.seen, self.agreed = [], None
        self.control = dist.new_group(backend="gloo") if world > 1 else None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handler)

    def handler(self, number, frame):
        if signal.SIGINT in self.seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen.append(number)

    def now(self):
        """Whether to stop, asked once a step. Many ranks learn of a signal one step later, without waiting."""
        if self.control is None:
            return bool(self.seen)
        if self.agreed is not None:
            self.agreed[1].wait()
        stop = self.agreed is not None and self.agreed[0].item() > 0
        flag = torch.tensor([len(self.seen)])
        self.agreed = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control, async_op=True)
        return stop

    def agree(self, problem):
        """The first of all ranks' problems, texts or None; asked once a step. All ranks wait for each other."""
        if self.control is None:
            return problem
        flag = torch.tensor([problem is not None]).int()
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)
        texts = [problem] * dist.get_world_size()
        if flag.item():
            dist.all_gather_object(texts, problem, group=self.control)
        return next((text for text in texts if text), None)
