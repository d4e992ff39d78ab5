"""The training loop: resume, ranks, checkpoints, pictures, and what bad input gets.

Oracles: an uninterrupted run, a run on one rank, formulas by hand. Everything at 32x32 with the toy
networks. python -m pytest tests/test_train.py; KILLS=20 in the environment lengthens the kill loop.
"""
import copy
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from data import InputError
from generator import Generator

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--dataset", "toy", "--backbone-weights", "random", "--image-size", "32", "--batch-size", "4", "--workers", "0", "--device", "cpu",
         "--log-every", "5", "--picture-every", "0", "--save-every", "0"]


def options(folder, *more):
    return [*SMALL, "--output-dir", str(folder), *map(str, more)]


def run(folder, *more):
    """Train in this process."""
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    try:
        train.train(train.parse_options(options(folder, *more)))
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers):
            signal.signal(number, handler)


def start(folder, *more, ranks=1, group=False):
    """Train in a process of its own, or in several."""
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks),
                                      "--master_port", str(random.randint(20000, 60000))]
    return subprocess.Popen([sys.executable, *launcher, str(ROOT / "train.py"), *options(folder, *more)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=group)


def latest(folder):
    return torch.load(Path(folder) / "latest.pt", weights_only=True)


def differences(a, b, path=""):
    """{name: largest absolute difference} of two nested structures of tensors."""
    if isinstance(a, torch.Tensor):
        return {path: (a.double() - b.double()).abs().max().item() if a.numel() else 0.0}
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        return {k: v for key in a for k, v in differences(a[key], b[key], f"{path}.{key}").items()}
    if isinstance(a, (list, tuple)):
        return {k: v for i, pair in enumerate(zip(a, b)) for k, v in differences(*pair, f"{path}.{i}").items()}
    return {}


NETWORKS = ("G", "D", "P", "ema", "optimiser_G", "optimiser_D")


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """A run of 20 steps without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "twenty"
    run(folder, "--steps", 20)
    return folder


# ---------------------------------------------------------------------------------------------- resume

def test_20_steps_equal_10_plus_10_bit_for_bit(twenty, tmp_path):
    run(tmp_path, "--steps", 10, "--picture-every", 5, "--save-every", 5)  # looking must not change the run
    run(tmp_path, "--steps", 20)
    for name in NETWORKS:
        unequal = {k: d for k, d in differences(latest(twenty)[name], latest(tmp_path)[name]).items() if d > 0}
        assert not unequal, f"{name} differs after a resume: {unequal}"
    ours, theirs = (torch.load(f / "ema_0000020.pt", weights_only=True)["ema"] for f in (twenty, tmp_path))
    assert max(differences(ours, theirs).values()) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 15, 20]


def test_the_same_command_again_does_nothing(twenty, capsys):
    before = (twenty / "latest.pt").stat().st_mtime_ns
    run(twenty, "--steps", 20)
    assert "step 20 is reached already" in capsys.readouterr().out
    assert (twenty / "latest.pt").stat().st_mtime_ns == before


def test_a_run_of_another_kind_is_not_resumed(twenty):
    with pytest.raises(InputError, match="backbone resnet18.*resnet50"):
        run(twenty, "--steps", 30, "--backbone", "resnet50")
    with pytest.raises(InputError, match="frozen weights"):
        run(twenty, "--steps", 30, "--seed", 7)  # another random backbone


def test_changed_options_are_said(twenty, tmp_path, capsys):
    (tmp_path / "latest.pt").write_bytes((twenty / "latest.pt").read_bytes())
    run(tmp_path, "--steps", 20, "--lr", 0.0005)
    assert "lr 0.001 -> 0.0005" in capsys.readouterr().out


def test_metrics_of_unsaved_steps_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 5}\n{"step": 10}\n{"step": 15}\n{"st')
    train.keep_steps_up_to(10, file)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [5, 10]


# --------------------------------------------------------------------------------------------- two ranks

def test_one_rank_equals_two(tmp_path):
    """Batch norm, class weights, sampling, noise, positions: all of the global batch, whatever the ranks.

    Adam with beta_1 = 0 moves every parameter by about the learning rate times the sign of its gradient, also
    where the gradient is rounding noise, and a GAN amplifies that within a few steps (two runs on one rank that
    start 1e-6 apart do the same). Its eps is therefore 1 in both runs: steps in proportion to the gradients of
    the loop as it is, so that what the ranks compute shows and rounding does not.
    """
    (tmp_path / "wide_eps.py").write_text(
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import functools, torch, train\n"
        "torch.optim.Adam = functools.partial(torch.optim.Adam, eps=1.0)\n"
        "train.train(train.parse_options(sys.argv[1:]))\n")
    runs = []
    for ranks in (2, 1):
        launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", "2",
                                          "--master_port", str(random.randint(20000, 60000))]
        runs.append(subprocess.Popen(
            [sys.executable, *launcher, str(tmp_path / "wide_eps.py"), str(ROOT),
             *options(tmp_path / str(ranks), "--steps", 5, "--batch-size", 4)],  # one pair for Eq. 6: on one of the ranks
            stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}))
    for process in runs:
        error = process.communicate(timeout=55)[1]
        assert process.returncode == 0, error
    one, two = latest(tmp_path / "1"), latest(tmp_path / "2")
    run(tmp_path / "start", "--steps", 1, "--lr", 1e-12)
    begin = latest(tmp_path / "start")
    for name in ("G", "D", "P"):
        trained = [k for k in one[name] if one[name][k].is_floating_point() and not k.endswith(("_u", "_v"))
                   and "running" not in k]
        moved = torch.cat([(one[name][k] - begin[name][k]).flatten() for k in trained])
        apart = torch.cat([(one[name][k] - two[name][k]).flatten() for k in trained])
        print(f"{name}: moved by {moved.norm():.2e}, largest {moved.abs().max():.1e}; the two runs differ by "
              f"{apart.norm():.2e}, largest {apart.abs().max():.1e}")
        assert apart.norm() < 0.03 * moved.norm() and apart.abs().max() < 1e-5, name


def sync_worker(rank, world, port, folder):
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    torch.distributed.init_process_group("gloo")
    state = torch.load(folder / "whole.pt", weights_only=True)
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3).double(), torch.nn.BatchNorm2d(
        3, affine=False, track_running_stats=False).double())
    net[0].load_state_dict(state["start"])
    train.synchronise_batch_norm(net, torch.device("cpu"), world)
    x = state["x"].chunk(world)[rank].clone().requires_grad_()
    (net(x) * state["upstream"].chunk(world)[rank]).sum().backward()
    train.average_gradients(list(net.parameters()), world)
    torch.save({"x": x.grad, "weight": net[0].weight.grad, "mean": net[0].running_mean, "var": net[0].running_var},
               folder / f"rank{rank}.pt")
    train.leave_ranks()


def test_batch_norm_over_two_ranks_is_that_of_the_whole_batch(tmp_path):
    """In float64, to the last digits: statistics, running statistics, and gradients."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3).double(), torch.nn.BatchNorm2d(
        3, affine=False, track_running_stats=False).double())
    torch.nn.init.normal_(net[0].weight)
    x, upstream = torch.randn(6, 3, 4, 5).double() * 3 + 1, torch.randn(6, 3, 4, 5).double()
    torch.save({"x": x, "upstream": upstream, "start": net[0].state_dict()}, tmp_path / "whole.pt")
    torch.multiprocessing.spawn(sync_worker, (2, random.randint(20000, 60000), tmp_path), nprocs=2)
    x.requires_grad_()
    (net(x) * upstream).sum().backward()
    parts = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([p["x"] for p in parts]), x.grad)
    for part in parts:  # average_gradients takes means where this sum over the batch is a sum
        torch.testing.assert_close(2 * part["weight"], net[0].weight.grad)
        torch.testing.assert_close(part["mean"], net[0].running_mean)
        torch.testing.assert_close(part["var"], net[0].running_var)


# ----------------------------------------------------------------------------------- kills and full disks

def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "latest.pt"
    train.save_atomically({"step": 1}, path)

    def fills_up(state, file):
        file.write(b"half a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(train.torch, "save", fills_up)
    with pytest.raises(InputError, match="No space left"):
        train.save_atomically({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path], "the half-written file is removed"


def test_kills_at_random_moments_lose_nothing(tmp_path):
    """SIGKILL while it trains and writes; every time the same command goes on from a whole checkpoint."""
    rng, reached = random.Random(0), 0
    for _ in range(int(os.environ.get("KILLS", 2))):
        process = start(tmp_path, "--steps", 10_000, "--save-every", 1)
        target, limit = reached + rng.randint(1, 4), time.time() + 40
        while time.time() < limit and process.poll() is None:
            file = tmp_path / "latest.pt"
            if file.is_file() and latest(tmp_path)["step"] >= target:
                break
            time.sleep(0.02)
        time.sleep(rng.random() * 0.5)  # at any moment of a step, also during a write
        assert process.poll() is None, process.stderr.read()
        process.kill()
        process.wait()
        step = latest(tmp_path)["step"]
        assert step >= target > reached, f"reached step {step} after {reached}"
        reached = step
    if reached % 5:
        run(tmp_path, "--steps", reached + 5 - reached % 5)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(5, steps[-1] + 1, 5)), "every logged step once, in order"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_cleanly(tmp_path, number):
    """To the whole process group, as a scheduler or a terminal sends it: the loader process gets it too."""
    process = start(tmp_path, "--steps", 10_000, "--save-every", 3, "--workers", 1, group=True)
    limit = time.time() + 40
    while time.time() < limit and not (tmp_path / "latest.pt").is_file():
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, number)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in error, error
    assert f"stopped at step {latest(tmp_path)['step']}" in out


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run(tmp_path, "--steps", 2)
    with pytest.raises(InputError, match=r"step \d: (loss term \w+ is (nan|inf)|a parameter).*last good step"):
        run(tmp_path, "--steps", 8, "--lr", 1e9)
    state = latest(tmp_path)
    assert state["step"] == 2 and all(t.isfinite().all() for t in state["G"].values())


# --------------------------------------------------------------------------------- checkpoints and pictures

def test_checkpoints_hold_plain_types_and_no_backbone(twenty):
    state = latest(twenty)  # weights_only: plain types
    assert not [k for net in ("D", "P") for k in state[net] if "backbone" in k]
    backbone_bytes = 4 * 11_176_512
    assert (twenty / "latest.pt").stat().st_size < backbone_bytes
    assert (twenty / "ema_0000020.pt").stat().st_size < 5e6


def test_the_run_folder_has_what_its_docstring_says(twenty):
    assert json.loads((twenty / "options.json").read_text())["steps"] == 20
    line = json.loads((twenty / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("G_gan", "G_contrastive", "G_diversity", "D", "D_accuracy_real", "D_accuracy_fake", "G_gradient",
                 "D_gradient", "gan_gradient_image", "contrastive_gradient_image", "diversity_gradient_features",
                 "images_per_second", "memory_gib", "eta", "lr"):
        assert np.isfinite(line[name]), name
    width, height = Image.open(twenty / "strip.png").size
    assert (width, height) == (7 * 128, 6 * 128 + 16), "seven columns, six rows, and a line of titles"


def test_frozen_networks_stay_as_they_were(twenty):
    """What is frozen is rebuilt on resume, and its fingerprint must be that of the start."""
    D = train.Discriminator(11, "resnet18", "random", (128, 96, 64, 48, 32), 32, seed=0)
    assert train.fingerprint(D) == pytest.approx(latest(twenty)["identity"]["frozen"][0])


# -------------------------------------------------------------------------------------- averaged generator

def tiny_generator():
    torch.manual_seed(0)
    return Generator(3, widths=(16, 16, 8), stem_channels=4, label_channels=8, z_dim=4, noise_tokens=2,
                     noise_width=4, noise_hidden=8, attention_stride=2)


def test_ema_is_the_running_average_with_warm_up():
    G = tiny_generator()
    ema, by_hand = copy.deepcopy(G), [p.detach().clone() for p in G.parameters()]
    for step in (1, 2, 3):
        with torch.no_grad():
            for p in G.parameters():
                p.add_(torch.randn_like(p))
        train.update_ema(ema, G, step, 0.3)
        d = min(0.3, (1 + step) / (10 + step))
        by_hand = [d * old + (1 - d) * p.detach() for old, p in zip(by_hand, G.parameters())]
    for mine, expected in zip(ema.parameters(), by_hand):
        torch.testing.assert_close(mine, expected)


def test_ema_statistics_are_measured_anew():
    """Batch-norm statistics of the averaged weights on the given batches; spectral norm near 1; G untouched."""
    G = tiny_generator()
    ema = copy.deepcopy(G)
    with torch.no_grad():
        for p in ema.parameters():
            p.add_(0.1 * torch.randn_like(p))
    batches = [(torch.randint(3, (4, 8, 8)), None, torch.randn(4, 4)) for _ in range(60)]
    seen, hook = [], ema.label_pyramid.stem[1].register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].mean(dim=(0, 2, 3))))
    before = copy.deepcopy(G.state_dict())
    train.refresh_ema(ema, G, lambda: iter(batches))
    hook.remove()
    torch.testing.assert_close(ema.label_pyramid.stem[1].running_mean, torch.stack(seen).mean(dim=0))
    weight = ema.blocks[0].conv_0.weight.flatten(1)
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=0.02)
    assert max(differences(before, G.state_dict()).values()) == 0
    assert not ema.training


def test_learning_rate_decay_depends_on_the_step_alone():
    assert [train.lr_factor(s, 0, 0) for s in (1, 1000)] == [1, 1]
    assert [round(train.lr_factor(s, 10, 20), 3) for s in (5, 10, 15, 20, 99)] == [1, 1, 0.55, 0.1, 0.1]


# -------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("arguments, message", [
    (["--micro-batch-size", "3"], "--batch-size 4 must split evenly over 1 ranks and into micro-batches of 3"),
    (["--image-size", "48x60"], "--image-size 48x60: both sides must be divisible by 32"),
    (["--dataset", "folder"], "--dataset folder needs --data-path"),
    (["--dataset", "folder", "--data-path", "nowhere"], "nowhere: no classes.txt there"),
    (["--dataset", "ade20k"], "--dataset ade20k needs --data-path DIR with"),
    (["--backbone-weights", "nowhere.pth"], "--backbone-weights nowhere.pth: .*No such file"),
    (["--vgg-weights", "nowhere.pth"], "--vgg-weights nowhere.pth: .*No such file"),
    (["--preset", "huge"], "--preset huge is unknown"),
    (["--log-every", "0"], "--log-every 0: expected 1 to"),
    (["--lambda-c", "-1"], "--lambda-c -1.0: expected 0 to"),
    (["--micro-batch-size", "-1"], "--micro-batch-size -1: expected 0 to"),
    (["--lr-decay-steps", "9", "5"], "--lr-decay-steps 9 5: expected two rising steps"),
])
def test_bad_options_get_one_line(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", "--steps", 1, *arguments)


def test_a_damaged_checkpoint_is_named_and_kept(tmp_path):
    (tmp_path / "latest.pt").write_bytes(b"not a checkpoint")  # and a foreign one is refused alike
    torch.save({"step": 3}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="foreign.pt: cannot be read as a checkpoint"):
        train.load_checkpoint(tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="latest.pt: cannot be read as a checkpoint"):
        run(tmp_path, "--steps", 1)
    assert (tmp_path / "latest.pt").read_bytes() == b"not a checkpoint"


def test_a_file_as_output_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output-dir .*file: cannot be written"):
        run(tmp_path / "file", "--steps", 1)


def test_missing_imagenet_weights_name_the_file_and_the_flag():
    def no_network():
        raise OSError("no network")
    with pytest.raises(InputError, match=r"https://\S+convnext_large\S+\.pth .*--backbone-weights FILE"):
        train.build_frozen(no_network, "convnext_large", "imagenet", "--backbone-weights")


def test_exit_code_2_and_no_stack_trace_from_a_loader_process(tmp_path):
    """A truncated JPEG met in a worker: one line with its name, exit code 2."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for i in range(4):
            picture = np.random.default_rng(i).integers(255, size=(32, 32, 3)).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "data/images" / split / f"{i}.jpg")
            Image.fromarray(picture[..., 0] % 3).save(tmp_path / "data/labels" / split / f"{i}.png")
    (tmp_path / "data/classes.txt").write_text("a\nb\nunlabelled\n")
    broken = tmp_path / "data/images/train/2.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    process = start(tmp_path / "run", "--dataset", "folder", "--data-path", tmp_path / "data", "--preset", "toy",
                    "--steps", 5, "--workers", 1)
    out, error = process.communicate(timeout=50)
    assert process.returncode == 2
    assert "2.jpg: cannot be read as a picture" in error and "Traceback" not in error, error


# ------------------------------------------------------------------------------------ compiled, and scored

def test_compiled_networks_train_as_they_do_uncompiled(tmp_path, monkeypatch):
    """--compile, with the backend that traces and differentiates but builds no machine code (which takes minutes)."""
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: plain(self, backend="aot_eager"))
    values = []
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        run(tmp_path / name, "--steps", 2, "--log-every", 1, *more)
        values.append([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    for one, other in zip(*values):
        for term in ("D", "G_gan", "G_contrastive", "G_diversity"):
            assert one[term] == pytest.approx(other[term], rel=1e-3), f"step {one['step']}: {term}"


class MeanColour(torch.nn.Module):
    """Stands in for Inception: (B, 3, H, W) uint8 -> (B, 3)."""
    width = 3

    def forward(self, pictures):
        return pictures.float().mean(dim=(2, 3))


def test_evaluate_every_keeps_the_best_average_and_resumes_with_it(tmp_path, monkeypatch):
    """scores.jsonl has a line each time, ema_best.pt is the one of the lowest, and a resumed run knows it."""
    import evaluate
    monkeypatch.setattr(evaluate, "load_inception", lambda *_: (MeanColour(), "colour distance", "", "colour"))
    run(tmp_path, "--steps", 4, "--evaluate-every", 2)
    run(tmp_path, "--steps", 8, "--evaluate-every", 2)
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [s["step"] for s in scores] == [2, 4, 6, 8]
    lowest = min(scores, key=lambda s: s["colour distance"])
    best = torch.load(tmp_path / "ema_best.pt", weights_only=True)
    assert best["step"] == lowest["step"] and best["scores"] == {"colour distance": lowest["colour distance"]}
    last = torch.load(tmp_path / "ema_0000008.pt", weights_only=True)
    assert last["scores"] == {"colour distance": scores[-1]["colour distance"]}
