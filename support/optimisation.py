"""Around the optimisers (Sec. 4.1): learning rate, clipping, compiling, and the averaged generator."""
import torch
import torch._functorch.config
import torch.nn as nn
from torch.nn.utils.parametrize import is_parametrized

POWER_ITERATIONS = 3


def lr_factor(step, start, end):
    """1 until step `start`, then linearly down to 0.1 at `end`; always 1 if there is no such interval."""
    return 1.0 if end <= start else 1 - 0.9 * min(max((step - start) / (end - start), 0), 1)


def set_lr(optimiser, lr, step, decay_steps):
    """The learning rate of a step: set, and returned."""
    optimiser.param_groups[0]["lr"] = lr * lr_factor(step, *decay_steps)
    return optimiser.param_groups[0]["lr"]


def trained_parameters(*nets):
    return [p for net in nets if net is not None for p in net.parameters() if p.requires_grad]


def compile_networks(G, D, P):
    """--compile. D's backbone by itself, too: D.features calls it. TRAP: a logged step goes backward twice, so no
    buffer may be given away."""
    torch._functorch.config.donated_buffer = False
    for net in filter(None, (G, D, D.backbone, P)):
        net.compile()


@torch.no_grad()
def update_spectral_norms(*nets):
    """Power iterations for every weight W under spectral norm; W / sigma then stays as it is until the next call.

    PAPER: silent. / HERE: three iterations a step, before all of its passes. / WHY: every pass and micro-batch sees one
    weight, and compiled code needs it: an iteration in each forward pass changes what its backward pass has kept.
    Three, for D has three passes a step, and PyTorch iterates in each.
    TRAP: net.train() puts the iterations back into the forward passes, until the next call.
    """
    found = [m.parametrizations.eval() for net in nets for m in net.modules() if is_parametrized(m, "weight")]
    norms = [parts.weight[0] for parts in found]
    W = [norm._reshape_weight_to_matrix(p.weight.original) for norm, p in zip(norms, found)]  # (C_out, C_in k k) each
    u, v = [norm._u for norm in norms], [norm._v for norm in norms]           # (C_out,), (C_in k k,) each
    # u <- W v / |W v|,  v <- W^T u / |W^T u|: as torch does at each reading in training mode, but without the reading,
    # which makes W / sigma, and with all norms at once: a quarter of the time
    for _ in range(POWER_ITERATIONS if norms else 0):
        for matrices, of, to in ((W, v, u), ([M.T for M in W], u, v)):
            for M, vector, product in zip(matrices, of, to):
                torch.mv(M, vector, out=product)
            torch._foreach_div_(to, torch._foreach_clamp_min(torch._foreach_norm(to), 1e-12))


def clip(parameters, limit, wants_norm):
    """Scale the gradients down to norm `limit` (0 = leave them); -> their norm before, or None where nobody asks."""
    if limit:  # TRAP: after the ranks are averaged, or each rank clips something else
        return nn.utils.clip_grad_norm_(parameters, limit)
    if wants_norm:
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


@torch.no_grad()
def update_ema(ema, G, step, decay):
    """theta_ema <- d theta_ema + (1 - d) theta over the parameters, d = min(decay, (1 + step) / (10 + step)).

    PAPER: decay 0.9999, called alpha there. / HERE: d rises to it: 0.999 at step 8,990, 0.9999 at step 89,990; ADE20K's
    63,000 steps end at 0.99986. / WHY: 0.9999 alone keeps 40 % of the initial weights after 9,200 steps.
    Buffers are not averaged: see refresh_ema.
    """
    d = min(decay, (1 + step) / (10 + step))
    # theta_ema + (1 - d) (theta - theta_ema), for all tensors at once
    torch._foreach_lerp_(list(ema.parameters()), list(G.parameters()), 1 - d)


@torch.no_grad()
def refresh_ema(ema, G, batches):
    """Measure the batch-norm statistics of the averaged generator. Call it before each use; it ends in eval mode.

    batches: an iterable of (label_map, offsets or None, z).
    TRAP: the spectral norm's u and v are copied from G and power-iterated here. Their average would be a wrong norm.
    PAPER: silent. / HERE: over the first 16 training batches. / WHY: G's own statistics belong to other weights.
    """
    for mine, theirs in zip(ema.buffers(), G.buffers()):
        mine.copy_(theirs)
    norms = [m for m in ema.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over the batches
    ema.train()
    for label_map, offsets, z in batches:
        ema(label_map, z, offsets)
    ema.eval()
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum
