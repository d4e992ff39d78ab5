"""What a training run says about itself: metrics.jsonl, the terminal, and the step at which something went wrong.

The values of a step are tensors on the device. Only check_finite and write_metrics wait for them.
"""
import math
import sys

import torch

from support.checkpoints import append_line
from support.errors import Diverged
from support.optimisation import trained_parameters
from support.ranks import split_batch, sum_over_ranks


def add(values, new, accumulation):
    for name, value in new.items():
        values[name] = values.get(name, 0) + value.detach().float() / accumulation


def gradient_norms(terms, image, features):
    """L2 norm of each weighted term's gradient by the generated images, and by G^f.

    Of the images that this rank has in memory at once; the log gives the mean over ranks.
    """
    norms = {}
    for name, term in terms.items():
        by = (None, None)
        if term.requires_grad:
            by = torch.autograd.grad(term, (image, features), retain_graph=True, allow_unused=True)
        for where, g in zip(("image", "features"), by):
            # What one term cannot reach is left out: the image from Eq. 6 of G^f; with --compile, G^f from the image.
            if g is not None or (name, where) != ("diversity", "image") and not any(map(torch.is_tensor, by)):
                norms[f"{name}_gradient_{where}"] = image.new_zeros(()) if g is None else g.float().norm()
    return norms


def accuracies(real_logits, fake_logits, label_map, alpha):
    """How often D is right: on real pixels of known classes, and on generated ones, where "fake" is right."""
    known = alpha[label_map] > 0                                          # (B, H, W)
    right = (real_logits.argmax(dim=1) == label_map) & known
    return {"D_accuracy_real": right.sum() / known.sum().clamp_min(1),
            "D_accuracy_fake": (fake_logits.argmax(dim=1) == fake_logits.shape[1] - 1).float().mean()}


def mean_gate(G):
    """{"eta": mean size of the gates of Eq. 2 and of the self-attention}, or {} where G has none."""
    gates = [p.detach().abs() for name, p in G.named_parameters() if name.endswith("eta")]
    return {"eta": torch.stack(gates).mean()} if gates else {}


def check_finite(log, step, nets, latest, agree=lambda problem: problem):
    """Raises Diverged at the first loss term that is not finite: such weights never reach a checkpoint.

    agree(text or None) -> the first of all ranks' texts: one rank alone may have a loss that is not finite."""
    problem = agree(not_finite(log, step, nets))
    if problem:
        last_good = f"{latest} holds the last good step" if latest.is_file() else "nothing was saved before it"
        raise Diverged(f"{problem}; {last_good}. Try a lower --lr, --clip-grad 1 or --on-divergence rollback")


def not_finite(log, step, nets):
    """What is not finite in the values of the steps up to `step`, or in the networks after it: a text, or None."""
    names = [name for name in log[0] if name in ("D", "loss") or name.startswith("G_")] if log else []
    table = [torch.stack([values[name] for name in names]) for values in log]              # (steps, terms)
    for when, values in enumerate(torch.stack(table).tolist() if log else (), step - len(log) + 1):
        for name, value in zip(names, values):
            if not math.isfinite(value):
                return f"step {when}: loss term {name} is {value}"
    for name, net in nets.items():
        if net is not None and not sum(p.detach().double().sum() for p in trained_parameters(net)).isfinite():
            return f"step {step}: a parameter of {name} is not finite"


def peak_memory(device):
    """GiB: of the device on CUDA, of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2 ** 30 if sys.platform == "darwin" else 2 ** 20)


def write_metrics(log, step, known, speed, args, run, progress, ranks):
    """A line of metrics.jsonl and of the terminal.

    log: the values of each step since the last line. known: further numbers of the line, as lr. speed: profile.Speed.
    """
    # the mean of every value over the steps that have it, and over the ranks
    means = torch.stack([torch.stack([v[name] for v in log if name in v]).mean() for name in log[-1]])
    means = sum_over_ranks(means, ranks.world) / ranks.world
    line = {"step": step, **dict(zip(log[-1], means.tolist())), **known, **speed.entries(len(log)),
            "memory_gib": peak_memory(ranks.device)}
    if args.rollbacks:
        line["rollbacks"] = args.rollbacks
    if ranks.rank > 0:
        return
    append_line(run / "metrics.jsonl", line)
    text = " | ".join(f"{title} {line[name]:.3f}" for title, name in (
        ("loss", "loss"), ("D", "D"), ("G gan", "G_gan"), ("nce", "G_contrastive"), ("div", "G_diversity"),
        ("acc real", "D_accuracy_real"), ("fake", "D_accuracy_fake")) if name in line)
    text += f" | {line['images_per_second']:.1f} img/s"
    if "tflops" in line:
        text += f" | {line['tflops']:.2f} TFLOP/s, {line['share_of_matmul']:.0%} of a matmul"
    if progress.disable:
        minutes, rest = divmod(int((args.steps - step) * line["seconds_per_step"]), 60)
        print(f"step {step:6d}/{args.steps} | {text} | eta {minutes}:{rest:02d}", flush=True)
    else:
        progress.set_postfix_str(text)


def describe(G, D, P, args):
    """The networks' lines of the banner: (name, text)."""
    def count(net, trains):
        return sum(p.numel() for p in net.parameters() if p.requires_grad == trains)
    parts = ", ".join(f"{name} {count(part, True):,}" for name, part in G.named_children())
    frozen = f", {count(D, False):,} frozen ({args.backbone}, {args.backbone_weights})" if D.backbone else ""
    yield "generator", f"{count(G, True):,} parameters: {parts}"
    yield "discrimin.", f"{count(D, True):,} trained{frozen}"
    if P:
        yield "contrastive", (f"{count(P, True):,} trained, {count(P, False):,} frozen ({args.contrastive_features}, "
                              f"{args.vgg_weights})")


def banner(title, lines, args, ranks, run, done, images):
    """title, (name, text) lines of the system, and what every system has in common."""
    micro, accumulation = split_batch(args, ranks)
    precision = "bf16 autocast" if args.amp == "bf16" else "TF32" if ranks.device.type == "cuda" else "float32"
    lines = [("device", f"{ranks.device} ({ranks.device_name()}), {ranks.world} ranks, precision {precision}"),
             ("batch", f"{args.batch_size} = {ranks.world} ranks x {micro} images x {accumulation} accumulated"),
             ("steps", f"{args.steps} = {args.steps * args.batch_size / images:.1f} epochs"), *lines,
             ("run folder", f"{run}, {f'resumed at step {done}' if done else 'new'}")]
    ranks.say(f"{title} on {args.dataset}: {images} images, preset {args.preset}, torch {torch.__version__}\n"
              + "\n".join(f"{name:<12}{text}" for name, text in lines))
