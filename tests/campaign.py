"""The campaign: kills, damaged files and full disks, by the thousand, each followed by the same command once more.

    python tests/campaign.py --kills 1000 --damages 1000 --disks 60
    python tests/campaign.py --repeat "kill 17"                         this trial alone; its folder stays

    kill      a signal to a process that trains, draws or scores, to its loader process, or to one of two ranks: after
              a random share of its processor time, or just before a random touch of the disk; then, in some trials, to
              the same command that goes on, up to five in a row
    damage    of a file that a run left: bits flipped, cut off, a page zeroed, emptied, replaced by text
    disk      full: a limit on the size of a file, or, for root, a small file system

After a kill, and after a full disk where there is room again, the same command must end where an undisturbed run ends,
bit for bit: weights, optimisers, average, pictures, scores, metrics without their times. After a damage it may also
refuse, with one line and exit code 2, all other files left as they were; or leave damaged what it does not read.

A trial is a fork of this process, which has imported everything, with tiny networks and toy scenes of 32x32. What it
does depends on --seed and its name alone. The journal in --output-dir keeps the results: the same command goes on where
it was stopped. Folders of failed trials stay. Linux only. Not here: stopped ranks, see the tests of the watchdog.
"""
import argparse
import functools
import hashlib
import io
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["OMP_NUM_THREADS"] = "1"  # a fork has only the thread that forks

import numpy as np
import torch
import torch.nn as nn
import torchvision
import tqdm

import baselines.iidm.train as iidm
import baselines.train as baselines
import discriminator
import evaluate
import sample
import train
from conftest import tiny_inception
from metrics import fid, segmentation
from readers import toy
from support import checkpoints, ranks
from support.errors import run_script
from test_faults import TINY
from test_iidm_runs import TINY as TINY_IIDM

TIMES = ("seconds_per_step", "images_per_second", "memory_gib", "tflops", "share_of_matmul")  # of metrics.jsonl
TRAINING = ("--dataset toy --image-size 32 --batch-size 4 --device cpu --workers 0 --log-every 1 --save-every 1 "
            "--ema-every 2 --picture-every 2 --output-dir run --steps 4").split()
GAN = [*TRAINING, "--evaluate-every", "2"]
DRAWING = "--checkpoint ema.pt --dataset toy --count 3 --device cpu".split()
LAYER = [*GAN, "--lambda-c", "0", "--lambda-d", "0"]
SCORING = [*DRAWING, *("--metrics fid,miou,diversity --samples 2 --batch-size 2 --segmenter-steps 2 --output-dir run "
                       "--cache-dir cache").split()]


def train_baseline(words):
    args = baselines.parse_options(words)
    return train.train(args, baselines.system_of(args))


def train_layer(words):
    return train.train(train.parse_options(words), TINY)


Program = namedtuple("Program", "script main words kills damages")  # the last two: its share of them
PROGRAMS = {
    "one layer": Program("train.py", train_layer, LAYER, 70, 60),
    "DP-SIMS": Program("train.py", lambda words: train.train(train.parse_options(words), train.DP_SIMS),
                       [*GAN, "--backbone-weights", "self", "--anchors", "4"], 6, 8),
    "OASIS": Program("baselines.train", train_baseline, [*GAN, "--model", "oasis"], 1, 2),
    "DP-GAN": Program("baselines.train", train_baseline, [*GAN, "--model", "dpgan"], 1, 2),
    "IIDM": Program("baselines.iidm.train", lambda words: iidm.train(iidm.parse_options(words)),
                    [*TRAINING, "--autoencoder-steps", "1"], 1, 2),
    "sample.py": Program("sample.py", sample.main, [*DRAWING, *"--seeds 0,1 --interpolate 3 --force".split()], 14, 14),
    "evaluate.py": Program("evaluate.py", evaluate.main, SCORING, 5, 12),
    "a loader process": Program("train.py", train_layer, [*LAYER, "--workers", "1"], 1.5, 0),
    "one of two ranks": Program("train.py", train_layer, LAYER, 0.5, 0)}
UNREAD = re.compile(r"strip|ema_|metrics|scores|ema\.pt")  # by the command that runs again: they may stay damaged
IGNORED = re.compile(r"lock|latest_previous|latest_damaged|\.tmp$")  # differ after a stop, and are no result
DAMAGES = ("bits flipped", "cut off", "a page zeroed", "emptied", "replaced by text")


# ------------------------------------------------------------------------------------------ tiny networks

class TinyResNet(nn.Module):
    """The parts of torchvision's resnet18, and its fields of view, with a few channels."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 2, 2), nn.BatchNorm2d(4), nn.ReLU()
        self.maxpool = nn.MaxPool2d(2)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Conv2d(i, o, k, k) for i, o, k in ((4, 4, 1), (4, 4, 2), (4, 8, 2), (8, 8, 2)))
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean(dim=(2, 3)))


def shrink():
    """Tiny networks, few scenes, each drawn once before the first fork."""
    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # no thread
    tqdm.tqdm.set_lock(threading.RLock())  # its own is shared by all forks, and stays held by one that is killed
    ranks.cores = lambda: 1
    toy.TOY_TRAIN, toy.TOY_VAL, segmentation.SAMPLES, fid.load_inception = 10, 4, 4, tiny_inception
    train.EMA_BATCHES, train.STRIP_ROWS, train.PRETRAIN_STEPS, train.PRETRAIN_BATCH = 1, 2, 2, 4
    iidm.EMA_BATCHES, iidm.STRIP_ROWS, iidm.STRIP_DDIM_STEPS, iidm.TOY_NETWORKS = 1, 2, 2, TINY_IIDM
    train.SMALL_GENERATOR.update(widths=(8, 8, 8), stem_channels=4, label_channels=4, noise_tokens=2, noise_width=4,
                                 noise_hidden=8, z_dim=4, attention_stride=2)
    train.SMALL_DISCRIMINATOR.update(decoder_widths=(4,) * 5, full_resolution_width=4)
    train.SMALL_CONTRASTIVE.update(vgg_share=1 / 32, width=4)
    baselines.TOY["oasis"].update(widths=(8, 8, 8), hidden=4)
    baselines.TOY["dpgan"].update(widths=(8, 8, 8), stem_channels=4, label_channels=4)
    baselines.TOY_UNET.update(encoder_widths=(4,) * 4, decoder_widths=(4,) * 4)
    baselines.TOY_HEAD_CHANNELS = 4
    torchvision.models.get_model = lambda name, weights=None, num_classes=10: TinyResNet(num_classes)
    discriminator.BACKBONES["resnet18"] = (4, 4, 8, 8)
    toy.toy_layout = functools.lru_cache(None)(toy.toy_layout)
    for scenes in (toy.ToyScenes("train", (32, 32)), toy.ToyScenes("val", (32, 32))):
        for i in range(len(scenes.names)):
            scenes.load(i), scenes.labels(i)


# ----------------------------------------------------------------------------------------- one command

def watch_the_disk(act, at):
    """Calls act() before a touch of the disk: at is (kind, n), the n-th file that is opened to be written, written to,
    flushed, renamed, linked or removed. -> a Counter of these touches, which grows."""
    seen = Counter()

    def touch(kind):
        seen[kind] += 1
        if (kind, seen[kind]) == at:
            act()

    def hook(event, arguments):
        if event in ("os.rename", "os.remove", "os.link", "os.mkdir"):
            touch(event)
        elif event == "open" and not str(arguments[0]).startswith("/") and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            touch(event)

    class Watched(io.BufferedWriter):
        def write(self, content):
            touch("write")
            return super().write(content)

    fsync = os.fsync
    os.fsync = lambda file: (touch("fsync"), fsync(file))
    checkpoints.open = lambda file, mode="r": Watched(io.FileIO(file, "w")) if mode == "wb" else open(file, mode)
    sys.addaudithook(hook)
    return seen


def begin(program, folder, more=(), act=None, at=None, limit=None, environment=()):
    """Forks a process that runs a program in folder/work -> its id. See watch_the_disk; limit: bytes of a file."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code, program, seen = 1, PROGRAMS[program], {}
    try:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
        os.chdir(folder / "work")
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # not ignored, as in a background job
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        seen = watch_the_disk(act, at)
        run_script(program.script, lambda: program.main([*program.words, *more]))
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        (folder / "touches").write_text(json.dumps(seen))
        os._exit(code)


def end_of(pid, event=lambda: True, limit=120):
    """The exit code of a process, negative for a signal. event(): called until it is true. Raises TimeoutError."""
    until, happened = time.time() + limit, False
    while time.time() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        happened = happened or event()
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"still there after {limit} seconds")


def processor_time(pid):
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return 0.0


def run(program, folder, **more):
    """To the end. -> exit code."""
    return end_of(begin(program, folder, **more))


def run_two_ranks(program, folder, killed=None, moment=0.0):
    """-> both exit codes. killed: the rank that gets SIGKILL; the other gets what torchrun sends, SIGTERM, SIGKILL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(
            free.getsockname()[1]))
    pids = [begin(program, folder, environment=dict(common, RANK=rank, LOCAL_RANK=rank)) for rank in "01"]
    if killed is None:
        return [end_of(pid) for pid in pids]
    pid, other = pids[killed], pids[1 - killed]
    code = end_of(pid, lambda: processor_time(pid) > moment and not os.kill(pid, signal.SIGKILL))
    os.kill(other, signal.SIGTERM)
    try:
        return [code, end_of(other, limit=30)]
    except TimeoutError:
        return [code, -signal.SIGKILL]


# ------------------------------------------------------------------------------------------- comparison

KNOWN = {}  # {(ending, sha256 of a file): its content}


def content(file):
    """What of a file must be the same, bit for bit."""
    key = file.suffix, checkpoints.sha256_of(file)
    if key not in KNOWN:
        try:
            KNOWN[key] = read(file) or key
        except Exception as error:  # of damaged files
            KNOWN[key] = f"unreadable: {error}"
    return KNOWN[key]


def read(file):
    """The content of a file whose bytes may differ."""
    if file.suffix == ".pt":
        return plain(checkpoints.read_torch(file))
    if file.suffix == ".jsonl":
        return [{name: value for name, value in json.loads(line).items() if name not in TIMES}
                for line in file.read_text().splitlines()]
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            return {name: (arrays[name].dtype.str, arrays[name].tobytes()) for name in arrays.files}


def plain(value):
    """A checkpoint's tensors as something that can be compared."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, hashlib.sha256(value.contiguous().numpy().tobytes()).digest()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key != "param_groups"}  # of this run's options
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def contents(folder):
    """{name: content} of the results of a program."""
    return {str(file.relative_to(folder / "work")): content(file) for file in (folder / "work").rglob("*")
            if file.is_file() and not IGNORED.search(file.name)}


def different(one, other):
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


# ------------------------------------------------------------------------------------------ undisturbed

def prepare(program, folder, out):
    """An empty folder for a program, with the checkpoint that it reads."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "work").mkdir(parents=True)
    if "ema.pt" in PROGRAMS[program].words:
        shutil.copy(undisturbed("DP-SIMS", out)[0] / "work/run/ema_0000004.pt", folder / "work/ema.pt")
    return folder


@functools.lru_cache(None)
def undisturbed(program, out, half=False):
    """-> (folder, contents, {touch of the disk: how many}, processor time). half: what is going to be damaged: training
    after 2 of 4 steps, a checkpoint that is sampled, a folder that was scored."""
    folder = prepare(program, out / f"{'half' if half else 'whole'} {program}", out)
    if half and program == "sample.py":
        return folder, contents(folder), {}, 0.0
    more, used = ["--steps", "2"] if half and "--steps" in PROGRAMS[program].words else [], [0.0]
    if program == "one of two ranks":
        code, used = max(run_two_ranks(program, folder)), [0.4]
    else:
        pid = begin(program, folder, more)
        code = end_of(pid, lambda: used.append(processor_time(pid)))
    if code:
        sys.exit(f"{program}, undisturbed: exit code {code}\n{said(folder)}")
    return folder, contents(folder), json.loads((folder / "touches").read_text()), max(used)


# ------------------------------------------------------------------------------------------------ trials

def require(true, problem):
    if not true:
        raise AssertionError(problem)


def said(folder):
    return (folder / "err").read_text(errors="replace").strip()


def require_no_trace(folder):
    require("Traceback" not in said(folder), f"a stack trace: {said(folder)[-1500:]}")


def require_one_line(program, folder, code):
    """Exit code 2 with one line at the end, after what was told on the way."""
    require_no_trace(folder)
    last = re.split(r"[\r\n]|\x1b\[A", said(folder))[-1]
    require(code == 2 and last.startswith(f"{PROGRAMS[program].script}: "), f"exit code {code}: {said(folder)[-1500:]}")


def require_same(program, folder, out):
    """The same command once more ends where an undisturbed run ends."""
    code = max(run_two_ranks(program, folder)) if program == "one of two ranks" else run(program, folder)
    require(code == 0, f"the same command again: exit code {code}: {said(folder)[-1500:]}")
    differ = different(contents(folder), undisturbed(program, out)[1])
    require(not differ, f"not as undisturbed: {', '.join(differ)}")


def draw_program(rng, what):
    return rng.choices(list(PROGRAMS), [getattr(program, what) for program in PROGRAMS.values()])[0]


def kill(rng, folder, out, line):
    """Up to five kills, each of the command that goes on after the one before -> what came of them. line: of the
    journal, gets "what" happened."""
    program = draw_program(rng, "kills")
    _, _, touches, used = undisturbed(program, out)
    prepare(program, folder, out)
    line["what"] = []
    for share in [rng.random()] + [rng.random() * rng.random() for _ in range(rng.randrange(5))]:
        number = rng.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGINT), (8, 1, 1))[0]
        touch, moment, by_touch = rng.choice(sorted(touches)), share * used, rng.random() < 0.5
        what = f"{number.name} to {program}, " + (f"at {touch}" if by_touch else "at any moment")
        if program == "one of two ranks":
            number, what = signal.SIGKILL, f"SIGKILL to {program}"
            code = min(run_two_ranks(program, folder, rng.randint(0, 1), moment))
        elif program == "a loader process":
            number, what = signal.SIGKILL, f"SIGKILL to {program}"
            code = kill_loader(program, folder, moment)
        else:
            at = (touch, 1 + int(share * touches[touch])) if by_touch else None
            pid = begin(program, folder, act=lambda: os.kill(os.getpid(), number), at=at)
            code = end_of(pid, lambda: by_touch or processor_time(pid) > moment and not os.kill(pid, number))
            ends = {signal.SIGKILL: -9, signal.SIGTERM: -15, signal.SIGINT: 130}
            require(code in (0, 75, ends[number]), f"{what}: exit code {code}: {said(folder)[-1500:]}")
            require_no_trace(folder)  # 75: training saved and ended
        if code == 0 and number == signal.SIGKILL:  # too late: it has ended
            break
        line["what"].append(what)
    require_same(program, folder, out)
    return "as undisturbed"


def kill_loader(program, folder, moment):
    def event():
        workers = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
        return processor_time(pid) > moment and workers and not os.kill(int(workers[0]), signal.SIGKILL)
    pid = begin(program, folder)
    code = end_of(pid, event)
    code and require_one_line(program, folder, code)
    return code


def damage_file(file, how, rng):
    """-> whether it is another file now."""
    before = file.read_bytes()
    after, size = bytearray(before), len(before)
    if size and how == "bits flipped":
        for _ in range(rng.choice((1, 1, 3))):
            after[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif size and how == "a page zeroed":
        start = rng.randrange(size) // 512 * 512
        after[start:start + 4096] = bytes(len(after[start:start + 4096]))
    elif how == "cut off":
        after = after[:rng.randrange(size)] if size else after
    else:
        after = b"" if how == "emptied" else b"This is not what was here.\n"
    file.write_bytes(after)
    return after != before


def damage(rng, folder, out, line):
    program = draw_program(rng, "damages")
    half, before, _, _ = undisturbed(program, out, half=True)
    _, whole, _, _ = undisturbed(program, out)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(half, folder)
    kinds = {}
    for file in sorted((folder / "work").rglob("*")):
        if file.is_file() and file.name != "lock":
            kinds.setdefault(re.sub(r"(?<=_)[0-9a-f]{8,}|\d{4,}", "N", file.name), []).append(file)
    kind = rng.choice(sorted(kinds))
    file = rng.choice(kinds[kind])
    name, how = str(file.relative_to(folder / "work")), rng.choice(DAMAGES)
    while not damage_file(file, how, rng):
        how = rng.choice(DAMAGES)
    line["what"] = [f"{how}: {kind} of {program}"]
    code, after = run(program, folder), contents(folder)
    if code:
        require_one_line(program, folder, code)
        differ = [other for other in different(after, before) if other != name]
        require(not differ, f"refused, but changed {', '.join(differ)}")
        return "refused"
    require_no_trace(folder)
    differ = different(after, whole)
    if differ == [name] and UNREAD.match(file.name):
        new = [entry for entry in whole[name] if entry["step"] > 2] if file.suffix == ".jsonl" else []
        require(all(entry in after[name] for entry in new), f"{name} lacks lines of the steps after")
        return "left damaged"
    require(not differ, f"{name} was used: not as undisturbed: {', '.join(differ)}")
    return "as undisturbed"


def disk(rng, folder, out, line):
    program = draw_program(rng, "damages")
    prepare(program, folder, out)
    work, mount = folder / "work", ["mount", "-t", "tmpfs", "campaign", folder / "work", "-o"]
    sizes = [file.stat().st_size for file in (undisturbed(program, out)[0] / "work").rglob("*") if file.is_file()]
    own = rng.random() < 0.5 and os.geteuid() == 0
    line["what"] = [f"a full {'disk' if own else 'quota of a file'}: {program}"]
    limit = rng.randrange(4096, int(0.9 * sum(sizes)) if own else max(sizes))
    if own:
        there = [(file.name, file.read_bytes()) for file in work.iterdir()]
        subprocess.run([*mount, f"size={limit + sum(len(content) for _, content in there)}"], check=True)
        for name, content in there:
            (work / name).write_bytes(content)
    try:
        code = run(program, folder, limit=None if own else limit)
        code and require_one_line(program, folder, code)
        own and subprocess.run([*mount, "remount,size=200m"], check=True)
        require_same(program, folder, out)
    finally:
        own and subprocess.run(["umount", work], check=True)
    line["what"] = line["what"] if code else []
    return "as undisturbed"


# -------------------------------------------------------------------------------------------------- main

TRIALS = {"kill": kill, "damage": damage, "disk": disk}
OUTCOMES = ("as undisturbed", "refused", "left damaged", "FAILED")


def table(journal):
    """The outcomes of each signal, way of damage and full disk; and of each program and file."""
    rows = {}
    for line in journal:
        for what in line["what"]:  # "SIGKILL to sample.py, at write", "cut off: latest.pt of OASIS", "full disk: OASIS"
            first, second = re.fullmatch(r"([^:]+?)(?:: | to )([^,]+?)(?: of (?!two).*|, at .*|)", what).groups()
            second = "any" if line["name"].startswith("disk") else second
            for row in (f"{first}, all", f"{line['name'].split()[0]}: {second}"):
                rows.setdefault(row, Counter())[line["outcome"]] += 1
    return "\n".join([f"| what | {' | '.join(OUTCOMES)} |", "|---|" + "---|" * len(OUTCOMES), *(
        f"| {row} | " + " | ".join(str(counts[outcome] or "") for outcome in OUTCOMES) + " |"
        for row, counts in sorted(rows.items()))])


def try_once(name, seed, out, keep=False):
    """-> a line of the journal."""
    folder, start, line = out / name.replace(" ", "_"), time.time(), {"name": name, "what": [], "problem": None}
    try:
        line["outcome"] = TRIALS[name.split()[0]](random.Random(f"{seed} {name}"), folder, out, line)
        keep or shutil.rmtree(folder)
    except (AssertionError, TimeoutError) as error:
        line.update(outcome="FAILED", problem=str(error))
    return {**line, "seconds": round(time.time() - start, 2)}


def campaign(wanted, seed, out):
    """wanted {kind: number of events} -> the journal, a list of dicts, one for each trial."""
    file = out / "journal.jsonl"
    journal = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    tried = {line["name"] for line in journal}
    happened = Counter(line["name"].split()[0] for line in journal for _ in line["what"])
    progress = tqdm.tqdm(total=sum(wanted.values()), initial=sum(happened.values()), desc="events", disable=None)
    while any(happened[kind] < wanted[kind] for kind in wanted):
        kind = min((kind for kind in wanted if wanted[kind]), key=lambda kind: happened[kind] / wanted[kind])
        name = next(name for name in (f"{kind} {n}" for n in itertools.count()) if name not in tried)
        line = try_once(name, seed, out)
        checkpoints.append_line(file, line)
        journal.append(line)
        tried.add(name)
        happened[kind] += len(line["what"])
        progress.update(len(line["what"]))
        if line["problem"]:
            tqdm.tqdm.write(f"{line['name']}, {line['what']}: {line['problem']}")
    progress.close()
    return journal


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in TRIALS:
        parser.add_argument(f"--{kind}s", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=ROOT / "runs/campaign")
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="these alone; default: %(default)s")
    parser.add_argument("--repeat", metavar="NAME", help='one trial of the journal, such as "kill 17"')
    args = parser.parse_args()
    out = args.output_dir.resolve() / f"seed{args.seed}"
    out.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS.keys() - set(args.programs.split(",")):
        PROGRAMS[name] = PROGRAMS[name]._replace(kills=0, damages=0)
    shrink()
    if args.repeat:
        print(json.dumps(try_once(args.repeat, args.seed, out, keep=True), indent=1))
        return
    journal = campaign({kind: getattr(args, f"{kind}s") for kind in TRIALS}, args.seed, out)
    failures = sum(line["outcome"] == "FAILED" for line in journal)
    events = sum(len(line["what"]) for line in journal)
    print(f"{table(journal)}\n\n{events} events in {len(journal)} trials, {failures} failures")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
