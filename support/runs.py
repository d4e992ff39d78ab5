"""A run folder: what is due after a step, what is kept there, and how a run goes on from it."""
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn

from support.checkpoints import append_line, keep_steps_up_to, load_checkpoint, read_lines, save_checkpoint, write_json
from support.errors import InputError
from support.pages import draw_columns, strip_columns
from support.ranks import leave_ranks


class Run(NamedTuple):
    """What a training loop works on."""
    folder: Path
    dataset: object                 # data.Dataset, of the training pictures
    validation: object              # data.Dataset, of the validation pictures
    probabilities: np.ndarray       # (N,), p of each training picture (Sec. 4.1)
    G: nn.Module                    # or baselines.iidm.networks.IIDM, which has no D
    D: nn.Module
    P: nn.Module                    # losses.ContrastiveFeatures (Eq. 5), or None
    ema: nn.Module                  # the averaged generator
    optimiser_G: torch.optim.Optimizer
    optimiser_D: torch.optim.Optimizer  # of IIDM: that of its autoencoder
    architecture: str               # of G, as sample.py knows it
    generator_options: dict
    identity: dict                  # what a resumed run cannot change
    scoring: tuple                  # --evaluate-every: features, name of the distance, statistics of the real pictures


def open_folder(path):
    """The run folder, made where it is not there. Raises InputError where nothing can be written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        open(folder / "metrics.jsonl", "a").close()
    except OSError as error:
        raise InputError(f"--output-dir {folder}: cannot be written ({error.strerror}); choose another") from None
    return folder


def what_is_due(step, args):
    """The names of what comes after a step; everything comes after the last one, but scores that nobody asked for."""
    every = {"log": args.log_every, "picture": args.picture_every, "score": args.evaluate_every,
             "average": args.ema_every, "save": args.save_every}
    return {name for name, n in every.items() if n and step % n == 0 or step == args.steps and (n or name != "score")}


# ----------------------------------------------------------------------------------------------- kept

def trained(net):
    """The state dict of net (or None) without its frozen backbone, which any run can load again by itself."""
    return {} if net is None else {k: v for k, v in net.state_dict().items() if not k.startswith("backbone.")}


def save(run, step, args, ranks):
    """latest.pt: everything, to go on from."""
    if ranks.rank == 0:
        save_checkpoint({"step": step, "identity": run.identity, "options": vars(args), "G": run.G.state_dict(),
                         "D": trained(run.D), "P": trained(run.P), "ema": run.ema.state_dict(),
                         "optimiser_G": run.optimiser_G.state_dict(), "optimiser_D": run.optimiser_D.state_dict()},
                        run.folder / "latest.pt")


def save_average(run, name, step, scores, args, ranks):
    """The averaged generator alone, with what sample.py and evaluate.py have to know of it."""
    if ranks.rank == 0:
        save_checkpoint({"step": step, "architecture": run.architecture, "generator": run.generator_options,
                         "ema": run.ema.state_dict(), "dataset": args.dataset, "image_size": list(args.image_size),
                         "classes": list(run.dataset.classes), "palette": run.dataset.palette.tolist(),
                         "unknown": run.dataset.unknown, "scores": scores,
                         "run": {**run.identity, "seed": args.seed}}, run.folder / name)


def keep_best(run, step, scores, args, ranks):
    """scores {name: number} into scores.jsonl; the average as ema_best.pt, where the number is the lowest so far."""
    if ranks.rank > 0:
        return
    (name, value), file = next(iter(scores.items())), run.folder / "scores.jsonl"
    best = min((line[name] for line in read_lines(file) if name in line), default=float("inf"))
    ranks.say(f"step {step}: {name} {value:.3f}" + (", the best so far" if value < best else ""))
    append_line(file, {"step": step, **scores})
    if value < best:
        save_average(run, "ema_best.pt", step, scores, args, ranks)


def draw_strip(run, z, step, ranks):
    """strip_STEP.png and strip.png of len(z) / 2 validation samples, spread: neighbours may be frames of one video."""
    rows = max(2, min(len(z) // 2, len(run.validation)))  # D's batch statistics need two pictures at 32x32
    samples = [run.validation[i * len(run.validation) // rows] for i in range(rows)]
    columns = strip_columns(run.G, run.ema, run.D, samples, z[:2 * rows], run.dataset.palette, ranks.device)
    for name in (f"strip_{step:07d}.png", "strip.png") if ranks.rank == 0 else ():
        draw_columns(columns, run.folder / name)


def finish(folder, ranks):
    """Say where picture and checkpoint are, and leave."""
    newest = sorted(folder.glob("ema_[0-9]*.pt"))
    ranks.say(f"picture:    {folder / 'strip.png'}\ncheckpoint: {newest[-1] if newest else folder / 'latest.pt'}")
    leave_ranks(ranks)


# -------------------------------------------------------------------------------------------- resumed

def fingerprint(net):
    """One number for the frozen weights of net, to notice another backbone on resume; 0 where there are none."""
    frozen = getattr(net, "backbone", None)
    return 0.0 if frozen is None else sum(p.cpu().double().abs().sum().item() for p in frozen.parameters())


def identity_of(args, options, dataset, D=None, P=None):
    """What must be the same after a resume. options: their names."""
    return {**{name: getattr(args, name) for name in options}, "classes": list(dataset.classes),
            "offset_channels": 2 * dataset.has_instances, "frozen": [fingerprint(D), fingerprint(P)]}


def resume(run, args, ranks):
    """Put latest.pt, if there is one, back into networks and optimisers, and cut the logs -> the step it was saved at.

    Raises InputError for a checkpoint of another model or dataset."""
    done, latest = 0, run.folder / "latest.pt"
    if latest.is_file():
        state = load_checkpoint(latest)
        check_identity(state, run.identity, latest, args, ranks)
        for net, name in ((run.G, "G"), (run.D, "D"), (run.P, "P"), (run.ema, "ema")):
            if net is not None:
                missing, unexpected = net.load_state_dict(state[name], strict=False)
                assert not unexpected and all(k.startswith("backbone.") for k in missing), (missing, unexpected)
        run.optimiser_G.load_state_dict(state["optimiser_G"])
        run.optimiser_D.load_state_dict(state["optimiser_D"])
        done = state["step"]
    if ranks.rank == 0:
        write_json(vars(args), run.folder / "options.json")
        for log in ("metrics.jsonl", "scores.jsonl"):
            keep_steps_up_to(done, run.folder / log)
    return done


def check_identity(state, identity, path, args, ranks):
    """Raises InputError for a checkpoint of another model or dataset, and says which options have changed."""
    for key, now in identity.items():
        then = state["identity"].get(key)
        if not (np.allclose(then, now, rtol=1e-6) if key == "frozen" else then == now):
            what, here = ("frozen weights", "others") if key == "frozen" else (f"{key} {then}", now)
            raise InputError(f"{path} was trained with {what}, this command has {here}; choose another --output-dir, "
                             f"or the options that it was started with")
    then = state["options"]
    changed = [f"{k} {then[k]} -> {now}" for k, now in vars(args).items()
               if k in then and then[k] != now and k not in ("steps", "output_dir")]
    if changed:
        ranks.say(f"resuming with other options than before: {', '.join(changed)}")
