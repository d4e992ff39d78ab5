"""The training loop: resume, ranks, kills, what a run folder holds, and what bad input gets.

Oracles: an uninterrupted run, a run on one rank, one batch norm over the whole batch. Everything at 32x32 with the toy
networks. Nothing here ends by the clock: a test waits for a file, for a line of a log or for the end of a process.
KILLS=20 in the environment lengthens the kill loop.
"""
import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from baselines import train as baselines_train
from conftest import ROOT, call, lines, load, printed_by, start, tiny_inception
from discriminator import Discriminator
from metrics import fid
from readers import toy
from support import ranks, runs
from support.checkpoints import load_checkpoint
from support.errors import InputError

SMALL = ("--dataset toy --backbone-weights random --image-size 32 --batch-size 4 --workers 0 --device cpu "
         "--amp off --log-every 1 --picture-every 0 --save-every 0").split()
UNTIL_KILLED = ("--sampling", "uniform", "--steps", 10 ** 6, "--save-every", 1)
RANKS = ("--steps", 4, "--diversity-every", 2)  # one pair for Eq. 6 on each of two ranks


def shrink(patch):
    """Few toy scenes, few batches for the average's statistics, one thread: small networks are not faster with two."""
    for module, name, value in ((toy, "TOY_TRAIN", 18), (toy, "TOY_VAL", 8), (train, "EMA_BATCHES", 2),
                                (ranks, "cores", lambda: 1), (ranks.signal, "signal", lambda *_: None)):
        patch.setattr(module, name, value)


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield


def options(folder, *more):
    return [*SMALL, "--output-dir", str(folder), *map(str, more)]


def run(folder, *more):
    """Train in this process."""
    train.train(train.parse_options(options(folder, *more)), train.DP_SIMS)


def wait_until(happens, process):
    """Until happens() is true, however long it takes. The process must not end before."""
    for _ in range(200_000):  # over an hour: against hanging for ever
        if happens():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError("it never happened")


def steps_of(folder):
    return [line["step"] for line in lines(folder)]


def same_run(a, b):
    """Asserts that two run folders hold the same networks, optimisers and average, bit for bit."""
    one, other = load(a / "latest.pt"), load(b / "latest.pt")
    for state, folder in ((one, a), (other, b)):
        state["kept"] = load(sorted(folder.glob("ema_*.pt"))[-1])["ema"]
        state["optimisers"] = [state[name]["state"] for name in ("optimiser_G", "optimiser_D")]
    for name in ("G", "D", "P", "ema", "kept", "optimisers"):
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, msg=lambda text: f"{name}: {text}")


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A run of 6 steps without interruption: more than an epoch of the 18 scenes."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder, "--steps", 6, "--log-every", 2)
    return folder


# ---------------------------------------------------------------------------------------------- resume

def test_6_steps_equal_2_plus_4_bit_for_bit(whole, tmp_path):
    run(tmp_path, "--steps", 2, "--log-every", 2, "--picture-every", 1, "--save-every", 1)  # looking changes nothing
    run(tmp_path, "--steps", 6, "--log-every", 2)
    same_run(whole, tmp_path)
    assert steps_of(tmp_path) == [2, 4, 6]


def test_a_finished_run_is_left_alone_and_so_is_one_of_another_kind(whole, capsys):
    before = (whole / "latest.pt").stat().st_mtime_ns
    run(whole, "--steps", 6, "--log-every", 2, "--lr", 0.0005)
    out = capsys.readouterr().out
    assert "step 6 is reached already" in out and "lr 0.001 -> 0.0005" in out
    for arguments, message in (("--backbone resnet50", "backbone resnet18, this command has resnet50"),
                               ("--growth nearest", "growth bilinear, this command has nearest"),
                               ("--conditioning none", "conditioning sigmoid-bn, this command has none"),
                               ("--seed 7", "seed 0, this command has seed 7")):  # another random backbone
        with pytest.raises(InputError, match=f"was trained with {message}"):
            run(whole, "--steps", 8, *arguments.split())
    assert (whole / "latest.pt").stat().st_mtime_ns == before
    files = sorted(file.name for file in whole.iterdir())
    other = baselines_train.parse_options(["--model", "oasis", "--output-dir", str(whole), "--device", "cpu"])
    with pytest.raises(InputError, match="was trained with model dp-sims, this command has oasis"):
        train.open_run(other, ranks.setup_ranks("cpu"))
    assert sorted(file.name for file in whole.iterdir()) == files


def test_a_run_of_before_an_option_has_what_was_the_only_way_then():
    old = {"identity": {"model": "dp-sims"}, "options": {}}
    runs.check_identity(old, {"model": "dp-sims", "growth": "nearest"}, "latest.pt", train.parse_options([]), None)
    with pytest.raises(InputError, match="latest.pt was trained with growth nearest, this command has bilinear"):
        runs.check_identity(old, {"growth": "bilinear"}, "latest.pt", train.parse_options([]), None)


# --------------------------------------------------------------------------------------------- two ranks

def through_batch_norms(here):
    """Gradients and statistics of two batch norms over all ranks, of this rank's part of a batch."""
    x, upstream = torch.randn(2, 6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3, affine=False, track_running_stats=False))
    net[0].load_state_dict({**net[0].state_dict(), "weight": torch.tensor([0.5, -1, 2])})
    ranks.synchronise_batch_norm(net.double(), here)
    mine = ranks.share({"x": 3 * x.double() + 1, "upstream": upstream.double()}, here)
    x = mine["x"].clone().requires_grad_()
    (net(x) * mine["upstream"]).sum().backward()
    ranks.average_gradients(list(net.parameters()), here.world)
    return {"x": x.grad, "weight": net[0].weight.grad, "mean": net[0].running_mean, "var": net[0].running_var}


def wide_steps(patch):
    """Adam with eps = 1. With beta_1 = 0 it moves every parameter by about the learning rate times the sign of its
    gradient, also where the gradient is rounding noise, and a GAN amplifies that within a few steps (two runs on one
    rank that start 1e-6 apart do the same). With eps = 1 steps are in proportion to the gradients: what the ranks
    compute shows, rounding does not."""
    patch.setattr(torch.optim, "Adam", functools.partial(torch.optim.Adam, eps=1.0))


def main_of_a_rank(folder, *options):
    """Of torchrun below: trains, and then saves what its batch norms gave."""
    patch = pytest.MonkeyPatch()
    shrink(patch), wide_steps(patch)

    def leave(here, leave_ranks=runs.leave_ranks):
        torch.save(through_batch_norms(here), Path(folder) / f"rank{here.rank}.pt")
        leave_ranks(here)
    patch.setattr(runs, "leave_ranks", leave)
    train.train(train.parse_options(options), train.DP_SIMS)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    printed_by(start(__file__, folder, *options(folder / "two", *RANKS), ranks=2))
    return folder


def test_batch_norm_over_two_ranks_is_that_of_the_whole_batch(two_ranks):
    """In float64, to the last digits: statistics, running statistics, and gradients."""
    expected = through_batch_norms(ranks.Ranks(torch.device("cpu")))
    parts = [load(two_ranks / f"rank{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([part.pop("x") for part in parts]), expected.pop("x"))
    for part in parts:  # average_gradients takes means where this sum over the batch is a sum
        torch.testing.assert_close({**part, "weight": 2 * part["weight"]}, expected)


def test_one_rank_equals_two(two_ranks, tmp_path, monkeypatch, more=RANKS):
    """Batch norm, class weights, sampling, noise, positions: all of the global batch, whatever the ranks."""
    wide_steps(monkeypatch)
    run(tmp_path / "begin", "--steps", 1, "--lr", 1e-12)
    run(tmp_path / "one", *more)
    begin, one, two = (load(f / "latest.pt") for f in (tmp_path / "begin", tmp_path / "one", two_ranks / "two"))
    for name in ("G", "D", "P"):
        trained = [k for k in one[name] if one[name][k].is_floating_point() and not k.endswith(("_u", "_v"))
                   and "running" not in k]
        moved = torch.cat([(one[name][k] - begin[name][k]).flatten() for k in trained])
        apart = torch.cat([(one[name][k] - two[name][k]).flatten() for k in trained])
        assert apart.norm() < 0.03 * moved.norm() and apart.abs().max() < 1e-5, (name, moved.norm(), apart.norm())


# --------------------------------------------------------------------------------------- kills and signals

def test_kills_at_random_moments_lose_nothing(tmp_path):
    """SIGKILL during a write, then at any moment of a step, and so on: the same command goes on from a whole file."""
    rng, reached = random.Random(0), 0
    for kill in range(int(os.environ.get("KILLS", 2))):
        process = start(ROOT / "train.py", *options(tmp_path, *UNTIL_KILLED))
        target = reached + rng.randint(1, 3)
        wait_until(lambda: target + 1 in steps_of(tmp_path), process)  # so step `target` is saved
        if kill % 2:
            time.sleep(0.5 * rng.random())
        else:
            wait_until((tmp_path / "latest.pt.tmp").exists, process)
        process.kill()
        process.communicate()
        assert load(tmp_path / "latest.pt")["step"] >= target, f"after {reached}"
        reached = load(tmp_path / "latest.pt")["step"]
    run(tmp_path, "--steps", reached + 1)
    assert steps_of(tmp_path) == list(range(1, reached + 2)), "every logged step once, in order"


def test_signals_save_and_exit_cleanly(tmp_path):
    """To the whole process group, as a scheduler or a terminal sends them: the loader process gets them too."""
    both = {number: tmp_path / number.name for number in (signal.SIGTERM, signal.SIGINT)}
    processes = {number: start(ROOT / "train.py", *options(folder, *UNTIL_KILLED, "--workers", 1), group=True)
                 for number, folder in both.items()}
    for number, folder in both.items():
        wait_until((folder / "latest.pt").is_file, processes[number])
        os.killpg(processes[number].pid, number)
        out, error = processes[number].communicate()
        expected = 75 if number == signal.SIGTERM else 0  # 75: to be started again
        assert processes[number].returncode == expected and "Traceback" not in error, error
        assert f"stopped at step {load(folder / 'latest.pt')['step']}" in out


def test_a_loss_that_is_not_finite_stops_the_run(whole, tmp_path):
    shutil.copy(whole / "latest.pt", tmp_path)
    with pytest.raises(InputError, match=r"step \d+: (loss term \w+ is (nan|inf)|a parameter).*last good step"):
        run(tmp_path, "--steps", 12, "--lr", 1e9)
    state = load(tmp_path / "latest.pt")
    assert state["step"] == 6 and all(t.isfinite().all() for t in state["G"].values())


def test_a_bad_file_in_a_loader_process_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capfd):
    seen, read = [], toy.ToyScenes.load

    def two_good_batches(self, index, instances=True):
        seen.append(index)
        if len(seen) > 8:
            raise InputError("2.jpg: cannot be read as a picture")
        return read(self, index, instances)
    monkeypatch.setattr(toy.ToyScenes, "load", two_good_batches)
    assert call(monkeypatch, "train", *options(tmp_path, "--steps", 9, "--workers", 1)) == 2
    assert capfd.readouterr().err == "train.py: 2.jpg: cannot be read as a picture\n"
    assert load(tmp_path / "latest.pt")["step"] == 2, "what was learnt before is kept"


# -------------------------------------------------------------------------------------------- run folder

def test_the_run_folder_has_what_its_docstring_says(whole):
    assert json.loads((whole / "options.json").read_text())["steps"] == 6
    line = lines(whole)[-1]
    for name in ("G_gan", "G_contrastive", "G_diversity", "D", "D_pixels", "D_accuracy_real", "D_accuracy_fake",
                 "G_gradient", "D_gradient", "gan_gradient_image", "contrastive_gradient_image",
                 "diversity_gradient_features", "images_per_second", "memory_gib", "eta", "lr"):
        assert np.isfinite(line[name]), name
    strip = np.array(Image.open(whole / "strip.png"))
    assert strip.shape[1] == 7 * 128 and strip.shape[0] in (800, 816), "seven columns, six rows, titles, a legend"
    maps, legend = strip[16:784, 6 * 128:], {tuple(c) for c in strip[784:].reshape(-1, 3)}  # what D sees
    assert {tuple(c) for c in maps.reshape(-1, 3)} - legend == set()
    state, frozen_bytes = load(whole / "latest.pt"), 4 * 11_176_512  # weights_only: plain types
    assert not [k for net in ("D", "P") for k in state[net] if "backbone" in k]
    assert (whole / "latest.pt").stat().st_size < frozen_bytes and (whole / "ema_0000006.pt").stat().st_size < 5e6
    # what is frozen is built anew on resume: as it was at the start, and as it is after the run
    D = Discriminator(11, "resnet18", "random", (128, 96, 64, 48, 32), 32, seed=0)
    assert runs.fingerprint(D) == pytest.approx(state["identity"]["frozen"][0])


# -------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("arguments, message", [
    ("--micro-batch-size 3 --lambda-d 0", "--batch-size 4 must split evenly over 1 ranks and into micro-batches of 3"),
    ("--micro-batch-size 2", "--diversity-every 4: the pictures in memory at once, 2, must be a multiple of it"),
    ("--image-size 48x60", "--image-size 48x60: both sides must be divisible by 32"),
    ("--dataset folder", "--data-path DIR is missing"),
    ("--dataset folder --data-path nowhere", "nowhere: no classes.txt there"),
    ("--backbone-weights nowhere.pth", "--backbone-weights nowhere.pth: .*No such file"),
    ("--vgg-weights nowhere.pth", "--vgg-weights nowhere.pth: .*No such file"),
    ("--backbone vgg16", "--backbone vgg16 is unknown; choose from convnext_large"),
    ("--model oasis", "unrecognized arguments: --model oasis"),
    ("--log-every 0", "--log-every: 0: expected a whole number from 1 to"),
    ("--lambda-c -1", "--lambda-c: -1: expected a number from 0 to"),
    ("--micro-batch-size -1", "--micro-batch-size: -1: expected a whole number from 0 to"),
    ("--lr-decay-steps 9 5", "--lr-decay-steps 9 5: expected two rising steps"),
    (f"--output-dir {__file__}", "--output-dir .*test_train.py: cannot be written"),
])
def test_bad_options_get_one_line(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", "--steps", 1, *arguments.split())


def test_a_damaged_checkpoint_is_named_and_kept(tmp_path):
    (tmp_path / "latest.pt").write_bytes(b"not a checkpoint")  # and a foreign one is refused alike
    torch.save({"step": 3}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="foreign.pt: cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="latest.pt: cannot be read as a checkpoint"):
        run(tmp_path, "--steps", 1)
    assert (tmp_path / "latest.pt").read_bytes() == b"not a checkpoint"


def test_missing_imagenet_weights_are_named_all_at_once_before_a_folder_is_made(tmp_path, monkeypatch):
    def no_network(*_):
        raise OSError("no network")
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    words = "--dataset toy --preset paper --batch-size 4 --output-dir".split() + [str(tmp_path / "run")]
    with pytest.raises(InputError, match="weights of convnext_large and vgg19 cannot be downloaded .no network.*"
                       "--backbone-weights FILE and --vgg-weights FILE.*--preset laptop.*self.*last resort is random"):
        train.train(train.parse_options(words), train.DP_SIMS)
    assert not (tmp_path / "run").exists()


def test_bf16_is_the_default_where_the_gpu_has_it(monkeypatch):
    """Older GPUs emulate it: torch says yes for them, too, unless it is asked for the hardware."""
    for gpu, words, expected in (("new", [], "bf16"), ("new", ["--amp", "off"], "off"), ("old", [], "off"),
                                 ("new", ["--device", "cpu"], "off"), ("", [], "off"), ("", ["--amp", "bf16"], "bf16")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpu))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: (
            gpu == "new" or including_emulation))
        assert train.parse_options(words).amp == expected, (gpu, words)


# ------------------------------------------------------------------------------------------- scored on the way

def test_evaluate_every_keeps_the_best_average_and_resumes_with_it(tmp_path, monkeypatch):
    """scores.jsonl has a line each time, ema_best.pt is the one of the lowest, and a resumed run knows it."""
    monkeypatch.setattr(fid, "load_inception", tiny_inception)
    for steps in (2, 4):
        run(tmp_path, "--steps", steps, "--evaluate-every", 1)
    scores = lines(tmp_path, "scores.jsonl")
    assert [s["step"] for s in scores] == [1, 2, 3, 4]
    lowest = min(scores, key=lambda s: s["tiny distance"])
    for file, expected in (("ema_best.pt", lowest), ("ema_0000004.pt", scores[-1])):
        assert {"step": load(tmp_path / file)["step"], **load(tmp_path / file)["scores"]} == expected


if __name__ == "__main__":
    main_of_a_rank(*sys.argv[1:])
