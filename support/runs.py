"""A run folder: what is due after a step, what is kept there, and how a run goes on from it."""
import argparse
import functools
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn

try:
    import fcntl
except ImportError:  # on Windows two runs in one folder are not noticed
    fcntl = None

from support.checkpoints import (NEWER, VERSIONS, append_line, digest, keep_steps_up_to, load_checkpoint, plain,
                                 read_checkpoint, read_json, read_lines, require_like, save_checkpoint, unlike,
                                 write_atomically, write_json)
from support.errors import Diverged, InputError
from support.logs import check_finite
from support.pages import draw_columns, strip_columns
from support.ranks import STOPPED, StopOnSignals, Watchdog, leave_ranks


ROLLBACKS = 3  # at most
BEFORE = {"growth": "nearest"}  # of runs that were begun before there was such an option
LOCKS = {}  # {run folder: its lock file, open as long as this process lives}


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


def open_folder(args, ranks):
    """--output-dir, made where it is not there, locked by rank 0 until its process ends, however it ends.

    Raises InputError where nothing can be written, another run writes, or one of another model or dataset lies: resume
    would say so, too, but after a pre-training (--backbone-weights self) into that folder."""
    folder = Path(args.output_dir)
    try:
        known = {"model": plain, "dataset": plain}
        there = read_json(folder / "options.json", known) if (folder / "latest.pt").exists() else {}
    except (OSError, ValueError):  # resume has more to go by
        there = {}
    for name in ("model", "dataset"):
        if there.get(name, getattr(args, name)) != getattr(args, name):
            raise InputError(f"{folder / 'latest.pt'} was trained with {name} {there[name]}, this command has "
                             f"{getattr(args, name)}; choose another --output-dir, or the options that it was started "
                             f"with")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        open(folder / "metrics.jsonl", "a").close()
        if fcntl and ranks.rank == 0 and folder not in LOCKS:  # lockf: loader processes do not inherit it, as of flock
            lock = open(folder / "lock", "a")
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            LOCKS[folder] = lock
    except BlockingIOError:
        raise InputError(f"--output-dir {folder}: another run writes there; wait for it, or choose another") from None
    except OSError as error:
        raise InputError(f"--output-dir {folder}: cannot be written ({error.strerror}); choose another") from None
    return folder


def what_is_due(step, args):
    """The names of what comes after a step; everything comes after the last one, but scores that nobody asked for."""
    every = {"log": args.log_every, "picture": args.picture_every, "score": args.evaluate_every,
             "average": args.ema_every, "save": args.save_every}
    due = {name for name, n in every.items() if n and step % n == 0 or step == args.steps and (n or name != "score")}
    return due | ({"save"} if due & {"picture", "score"} else set())  # a picture that cannot be read costs no step


def go_on(loop, done, run, args, ranks):
    """loop(stopping, done) -> the signal that stopped it before --steps, or 0. With --on-divergence rollback it goes on
    from the last checkpoint where something is not finite. Raises InputError."""
    if done >= args.steps:
        ranks.say(f"step {done} is reached already; --steps {2 * done} would go on (see --lr-decay-steps)")
        return 0
    stopping = StopOnSignals(ranks, args.save_minutes)
    watchdog = Watchdog(ranks, args.watchdog, stopping)
    try:
        stop = None
        while stop is None:
            try:
                stop = loop(stopping, done)
            except Diverged as error:
                problem, rollbacks = str(error).split(";")[0], args.rollbacks + 1
                if args.on_divergence == "stop" or not (run.folder / "latest.pt").is_file():
                    raise
                if rollbacks > ROLLBACKS:
                    raise InputError(f"{problem}, after {ROLLBACKS} rollbacks; try a lower --lr") from error
                done = resume(run, args, ranks)
                args.rollbacks = rollbacks
                ranks.say(f"{problem}: back to step {done} with other batches and noise (rollback {rollbacks} of at "
                          f"most {ROLLBACKS})")
            except InputError as error:
                if not stopping.without_batch:
                    raise
                ranks.say(f"{error}")
                stop, stopping.step = stopping.without_batch, stopping.step - 1
    except RuntimeError as error:  # of gloo and NCCL
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        if watchdog.is_first():
            raise InputError(f"step {stopping.step}: another rank has ended, or cannot be reached ("
                             f"{' '.join(str(error).split())}); see what it says, and run the same command again to go "
                             f"on from the last checkpoint") from None
        sys.exit(2)
    finally:
        watchdog.leave()
    if not stop or stopping.step == args.steps:
        return 0
    ranks.say(f"stopped at step {stopping.step} and saved; run the same command again to go on")
    return stop


def draws_of(args):
    """args with the seed of batches and noise: another one after each rollback."""
    return argparse.Namespace(**{**vars(args), "seed": args.seed + args.rollbacks * (10 ** 9 + 1)})


def missed(run, done, args, ranks):
    """The names of what was due at step `done`, where a run goes on, and was not kept: it was killed after the save."""
    due = what_is_due(done, args) if done else set()
    kept = {"average": (run.folder / f"ema_{done:07d}.pt").is_file(),
            "picture": (run.folder / f"strip_{done:07d}.png").is_file(),
            "score": any(line["step"] == done for line in read_lines(run.folder / "scores.jsonl"))}
    lost = {name for name in due & kept.keys() if not kept[name]}
    if lost & {"average", "score"}:  # the two go together: the average's file has its score
        if ranks.rank == 0:
            keep_steps_up_to(done - 1, run.folder / "scores.jsonl")
        lost |= due & {"average", "score"}
    return lost


def next_batch(loader, stopping):
    """The next batch of a rank's loader. Raises InputError on all ranks where one of them has none: all can save."""
    problem = batch = None
    try:
        batch = next(loader)
    except (InputError, OSError) as error:
        problem = str(error)
    problem = stopping.agree(problem)
    if problem:
        raise InputError(problem)
    return batch


# ----------------------------------------------------------------------------------------------- kept

def trained(net):
    """The state dict of net (or None) without its frozen backbone, which any run can load again by itself."""
    return {} if net is None else {k: v for k, v in net.state_dict().items() if not k.startswith("backbone.")}


@functools.lru_cache(4)
def files_of(dataset):
    """The sha256 of the dataset's list of files, their sizes and times, as they were when it was first asked for."""
    return digest(dataset.fingerprint())


def save(run, step, args, ranks):
    """latest.pt: everything, to go on from. The one before stays as latest_previous.pt."""
    if ranks.rank == 0:
        G = run.G.state_dict()  # with its buffers: refresh_ema gives the average's own, whenever they are needed
        average = {**G, **{name: p.detach() for name, p in run.ema.named_parameters()}}
        save_checkpoint({**VERSIONS, "step": step, "identity": run.identity, "options": vars(args), "G": G,
                         "D": trained(run.D), "P": trained(run.P), "ema": average,
                         "optimiser_G": run.optimiser_G.state_dict(), "optimiser_D": run.optimiser_D.state_dict(),
                         "files": files_of(run.dataset)}, run.folder / "latest.pt", run.folder / "latest_previous.pt")
    ranks.wait()  # where one rank leaves early, torchrun ends the others


def save_learnt(run, step, done, history, nets, args, ranks, stopping):
    """save, before an error ends the run, where something was learnt since step `done`.

    Where a signal ended it, stopping.without_batch has that: a scheduler's goes to loader processes, too."""
    if step > done:
        check_finite(history, step, nets, run.folder / "latest.pt", stopping.agree)
        save(run, step, args, ranks)
    seen = max(stopping.seen, default=0)
    stopping.without_batch = int(stopping.agree(f"{seen}" if seen else None) or 0)


def save_average(run, name, step, scores, args, ranks):
    """The averaged generator alone, with what sample.py and evaluate.py have to know of it."""
    if ranks.rank == 0:
        save_checkpoint({**VERSIONS, "step": step, "architecture": run.architecture,
                         "generator": run.generator_options, "ema": run.ema.state_dict(), "dataset": args.dataset,
                         "image_size": list(args.image_size), "classes": list(run.dataset.classes),
                         "palette": run.dataset.palette.tolist(), "unknown": run.dataset.unknown, "scores": scores,
                         "run": {**run.identity, "seed": args.seed}}, run.folder / name)


def keep_best(run, step, scores, args, ranks):
    """scores {name: number} into scores.jsonl; the average as ema_best.pt, where the number is the lowest so far."""
    if ranks.rank > 0:
        return
    name, value = next(iter(scores.items()))
    best = lowest_score(run.folder, step, name)
    ranks.say(f"step {step}: {name} {value:.3f}" + (", the best so far" if value < best else ""))
    if value < best:  # before the line: where a kill comes between, the score is made up for
        save_average(run, "ema_best.pt", step, scores, args, ranks)
    append_line(run.folder / "scores.jsonl", {"step": step, **scores})


def lowest_score(folder, step, name):
    """The lowest score before a step: that of ema_best.pt, which has checksums; without it, that of scores.jsonl."""
    try:
        best = read_checkpoint(folder / "ema_best.pt", {"step": int, "scores": dict})
        if best["step"] < step and name in best["scores"]:  # a run from latest_previous.pt comes by a second time
            return best["scores"][name]
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        print(f"{folder / 'ema_best.pt'}: damaged ({error}); the next lower score replaces it", file=sys.stderr)
    return min((line[name] for line in read_lines(folder / "scores.jsonl") if name in line), default=float("inf"))


def draw_strip(run, z, step, ranks):
    """The strip of len(z) / 2 validation samples, spread: neighbours may be frames of one video."""
    rows = max(2, min(len(z) // 2, len(run.validation)))  # D's batch statistics need two pictures at 32x32
    keep_strip(lambda: strip_columns(
        run.G, run.ema, run.D, [run.validation[i * len(run.validation) // rows] for i in range(rows)], z[:2 * rows],
        run.dataset, ranks.device), run, step, ranks)


def keep_strip(draw, run, step, ranks):
    """strip_STEP.png and strip.png; draw() -> columns, legend. What cannot be read is said, and the run goes on."""
    try:
        columns, legend = draw()
    except InputError as error:
        ranks.say(f"step {step}: no strip.png: {error}")
        return
    if ranks.rank == 0:
        draw_columns(columns, run.folder / "strip.png", legend)
        drawn = (run.folder / "strip.png").read_bytes()
        write_atomically(run.folder / f"strip_{step:07d}.png", lambda file: file.write(drawn))


def finish(folder, ranks, stopped=0):
    """Say where picture and checkpoint are, and leave. stopped: of go_on. -> the exit code."""
    newest, strip = sorted(folder.glob("ema_[0-9]*.pt")), folder / "strip.png"
    ranks.say(f"picture:    {strip if strip.is_file() else 'none yet'}\n"  # stopped early
              f"checkpoint: {newest[-1] if newest else folder / 'latest.pt'}")
    leave_ranks(ranks)
    return 0 if stopped in (0, signal.SIGINT) else STOPPED


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

    Raises InputError for a checkpoint of another model or dataset, and where only the rest of a run is there."""
    done, (state, path) = 0, newest(run.folder, args, ranks)
    if state is not None:
        try:
            args.rollbacks = int(state["options"].get("rollbacks", 0))
            check_identity(state, run.identity, path, args, ranks)
            for net, name in ((run.G, "G"), (run.D, "D"), (run.P, "P"), (run.ema, "ema")):
                require_like(state[name], trained(net), name)
                if net is not None:
                    net.load_state_dict(state[name], strict=False)
            for optimiser, name in ((run.optimiser_G, "optimiser_G"), (run.optimiser_D, "optimiser_D")):
                restore_optimiser(optimiser, state[name], name)
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            raise InputError(f"{path}: not of these networks ({error}); choose another --output-dir, or the options "
                             f"that it was started with") from None
        if state.get("files", files_of(run.dataset)) != files_of(run.dataset):
            ranks.say(f"the files of --dataset {args.dataset} (names, sizes or times) have changed since {path}")
        done = state["step"]
    if ranks.rank == 0:
        write_json(vars(args), run.folder / "options.json")
        for log in ("metrics.jsonl", "scores.jsonl"):
            keep_steps_up_to(done, run.folder / log)
    return done


def newest(folder, args, ranks):
    """-> (latest.pt as a dict, its path), or the one before where it is damaged or gone, or (None, its path) where no
    run is there. Raises InputError."""
    latest, previous = folder / "latest.pt", folder / "latest_previous.pt"
    try:
        if os.path.lexists(latest):  # a link to nowhere counts
            return load_checkpoint(latest), latest
        kept = [file.name for file in sorted(folder.glob("ema_*.pt"))]
        kept += [log.name for log in (folder / "metrics.jsonl", folder / "scores.jsonl")
                 if args.save_every and any(line["step"] > args.save_every for line in read_lines(log))]
        if not kept and not previous.is_file():
            return None, latest
        raise InputError(f"{latest}: not there, but {(kept or [previous.name])[0]} of a run that had it; put it back "
                         f"to go on, or choose another --output-dir to start anew")
    except InputError as error:
        if not previous.is_file() or NEWER in str(error):
            raise
        state = load_checkpoint(previous)
        ranks.say(f"{error}. Going on from {previous}, step {state['step']}")
    ranks.wait()  # until all have read it
    if ranks.rank == 0 and os.path.lexists(latest):  # or the next save would put it in the place of the good one
        os.replace(latest, folder / "latest_damaged.pt")
    return state, previous


def restore_optimiser(optimiser, state, name):
    """The moments of a state, with this command's options. Raises ValueError where it is another optimiser's."""
    parameters, (mine,) = optimiser.param_groups[0]["params"], optimiser.state_dict()["param_groups"]
    form = {"state": dict, "param_groups": [{"params": [int]}]}
    wrong = unlike(state, form, name) or next((f"{name}.state.{i}" for i, moments in state["state"].items() if unlike(
        moments, dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), torch.Tensor)) is not None or i not in range(
        len(parameters)) or any(t.shape not in (parameters[i].shape, ()) for t in moments.values())), None)
    if wrong:
        raise ValueError(f"{wrong} is not what it should be")
    groups = [{**mine, "params": group["params"]} for group in state["param_groups"]]
    optimiser.load_state_dict({"state": state["state"], "param_groups": groups})


def check_identity(state, identity, path, args, ranks):
    """Raises InputError for a checkpoint of another model or dataset, and says which options have changed."""
    for key, now in identity.items():
        then = state["identity"].get(key, BEFORE.get(key))
        if not (np.allclose(then, now, rtol=1e-6) if key == "frozen" else then == now):
            what, here = ("frozen weights", "others") if key == "frozen" else (f"{key} {then}", now)
            if key == "frozen" and state["options"].get("seed") != args.seed:  # which drew them
                what, here = f"seed {state['options'].get('seed')}", f"seed {args.seed}"
            raise InputError(f"{path} was trained with {what}, this command has {here}; choose another --output-dir, "
                             f"or the options that it was started with")
    then = state["options"]
    changed = [f"{k} {then[k]} -> {now}" for k, now in vars(args).items()
               if k in then and then[k] != now and k not in ("steps", "output_dir", "rollbacks", "profile")]
    if changed:
        ranks.say(f"resuming with other options than before: {', '.join(changed)}")
