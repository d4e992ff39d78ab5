"""Lab 08: the two steps (Sec. 3.3, 4.1). Write the five functions.

    python labs/check.py 08          (as often as you like)

    paper     | here                   |
    G, D      | G, D                   networks; D.backbone is frozen, the rest of D is trained
              | ema                    the averaged generator: a copy of G that no optimiser moves
              | parts                  the batch of one step, cut into as many pictures as fit into memory at once
"""
import torch
import torch.nn as nn

import support.checkpoints
import support.runs


def trained_parameters(*nets):
    """The parameters that an optimiser moves: those of all nets that have requires_grad. -> a list

    A net may be None (Eq. 5 can be switched off, and has no P then). The list is used in every step.
    """
    raise NotImplementedError("Sec. 4.1: which parameters move")


def two_steps(generator_losses, discriminator_losses, G, D, optimiser_G, optimiser_D, parts):
    """One step of training: (1) G minimises its losses (Eq. 4, 5, 6), (2) D minimises its own (Eq. 3).
    -> (loss of G, loss of D) of this step, as floats, for a log

        (1) for each part:   terms, image = generator_losses(G, D, part)      image = G(...), of the G before its update
        (2) for each part:   terms = discriminator_losses(D, part, image)     with the image of (1)

    terms: {name: scalar}. A network's loss is the sum of its terms, and the loss of a step is the mean over its parts:
    parts are a matter of memory, and must not change what is learnt. So each has its own backward pass, before the next
    one is drawn. In (1) the gradient goes through D to the picture, but not to D's own weights: set requires_grad to
    False for those that optimiser_D moves, and back in (2). The frozen backbone stays as it is. Each network is moved
    once.

    optimiser.param_groups[0]["params"]   the list of parameters that an optimiser moves
    optimiser.zero_grad(), .step()        PyTorch adds new gradients to those that are there
    tensor.detach()                       the same numbers, where gradients end
    """
    raise NotImplementedError("Sec. 3.3: G's step, then D's step on the pictures that G drew in its own")


def update_ema(ema, G, step, decay):
    """The average follows the generator, a little each step (Sec. 4.1). step counts from 1. -> None

        theta_ema <- d theta_ema + (1 - d) theta          over the parameters, d = min(decay, (1 + step) / (10 + step))

    In place, and without a gradient: decorate it, or use torch.no_grad() inside. Buffers (batch-norm statistics, the u
    and v of spectral norm) are no weights and are left alone here.
    """
    raise NotImplementedError("Sec. 4.1: theta_ema <- d theta_ema + (1 - d) theta")


def refresh_ema(ema, G, batches):
    """Give the average its own buffers, before it draws; it ends in eval mode. -> None. Without a gradient.

    batches: an iterable of (label_map, offsets or None, z); a network takes them as ema(label_map, z, offsets).
    1. Every buffer of ema gets the value of G's: .buffers() gives both in the same order. So spectral norm goes on
       from the u and v of weights that are close to its own.
    2. The statistics of each nn.BatchNorm2d are measured anew: m.reset_running_stats(), then all batches pass in
       training mode, with m.momentum = None, which is the plain mean over the batches.
    3. m.momentum gets back the value that it had.
    """
    raise NotImplementedError("Sec. 4.1: the batch-norm statistics of the averaged generator")


def save(run, step, args, ranks):
    """Write run.folder / "latest.pt": all that the next step depends on, to go on bit for bit. -> None.
    Rank 0 (ranks.rank == 0) writes alone.

    A dict with
        "step": step, "identity": run.identity, "options": vars(args), "files": support.runs.files_of(run.dataset)
        "G", "optimiser_G", "optimiser_D"      the state_dict() of run.G, run.optimiser_G and run.optimiser_D
        "D", "P"                               support.runs.trained(run.D) and (run.P): without the frozen backbone
        "ema"                                  G's state dict, with run.ema.named_parameters() in place of G's own
    The average needs no buffers of its own here: refresh_ema makes them, whenever they are needed.

    support.checkpoints.save_checkpoint(state, file, previous) leaves a whole file, or the old one; `previous`,
    run.folder / "latest_previous.pt", gets the one before. All ranks call ranks.wait() at the end.
    """
    raise NotImplementedError("resume: everything that the next step depends on")
