"""IIDM as a user runs it: train, resume, ranks, references, scores, bad input. Its equations: tests/test_iidm.py.

    python -m pytest tests/test_iidm_runs.py
"""
import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

import compare
import evaluate
import sample
import train
from baselines import iidm
from data import InputError, open_dataset
from sample import generate_iidm, load_generator, open_references

ROOT = Path(__file__).resolve().parent.parent
TINY = dict(autoencoder_channels=8, autoencoder_multipliers=(1, 1, 1), autoencoder_blocks=1, latent_channels=3, channels=16,
            multipliers=(1, 2), blocks=1, attention_strides=(2,), head_channels=8, hidden=8)
COMMAND = ["--model", "iidm", "--dataset", "toy", "--image-size", "32", "--batch-size", "4", "--log-every", "1", "--workers", "0",
           "--picture-every", "0", "--device", "cpu"]


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch):
    monkeypatch.setitem(iidm.PRESETS, "toy", (iidm.TOY, TINY))
    monkeypatch.setattr(iidm, "STRIP_DDIM_STEPS", 2)


def options(run, *more):
    return iidm.parse_options([*COMMAND, "--output-dir", str(run), *map(str, more)])


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 8 steps, 4 of them the autoencoder's, with averages of steps 6 and 8."""
    folder = tmp_path_factory.mktemp("iidm") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(iidm.PRESETS, "toy", (iidm.TOY, TINY))
        patch.setattr(iidm, "STRIP_DDIM_STEPS", 2)
        iidm.train(options(folder, "--steps", 8, "--autoencoder-steps", 4, "--ema-every", 2, "--save-every", 4,
                           "--mask-dropout", 0.2))
    return folder


# -------------------------------------------------------------------------------------------- training

def test_the_autoencoder_is_trained_first_then_left_alone_and_its_latents_scaled(run):
    lines = lines_of(run)
    assert [line["stage"] for line in lines] == 4 * ["autoencoder"] + 4 * ["unet"]
    assert all(np.isfinite(line["loss"]) for line in lines)
    before, after = (torch.load(run / f"ema_000000{step}.pt", weights_only=True)["ema"] for step in (6, 8))
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"unet"}
    assert sorted(f.name for f in run.glob("ema_*")) == ["ema_0000006.pt", "ema_0000008.pt"], "none before the U-Net begins"
    G, _ = load_generator(run / "ema_0000008.pt")
    toy = open_dataset("toy", None, "train", (32, 32), instances=False)
    z = G.encode(torch.stack([toy[i]["image"] for i in range(64)]).float() / 127.5 - 1)
    assert 0.9 < z.std() < 1.1 and abs(1 / G.latent_scale - 1) > 0.02, "measured, and not 1 by itself"
    assert Image.open(run / "strip.png").size == (7 * 128, 6 * 128 + 16)


@pytest.mark.parametrize("stops", [(2,), (4,), (5, 7)], ids=["in the autoencoder", "between the two", "twice in the U-Net"])
def test_an_interrupted_run_ends_where_the_uninterrupted_one_does(run, stops, tmp_path, monkeypatch, capsys):
    """Bit for bit on a CPU; 4 is the moment at which the autoencoder is frozen and its latents are measured."""
    done = 0
    for stop in (*stops, 8):
        with monkeypatch.context() as patch:
            answers = iter([False] * (stop - done - 1) + [stop < 8])
            patch.setattr(train.StopOnSignals, "now", lambda _: next(answers))
            iidm.train(options(tmp_path / "run", "--steps", 8, "--autoencoder-steps", 4, "--ema-every", 2, "--save-every", 4,
                               "--mask-dropout", 0.2))
        printed = capsys.readouterr().out
        assert (f"resumed at step {done}" in printed) == (done > 0) and (f"stopped at step {stop}" in printed) == (stop < 8)
        done = stop
    a, b = (torch.load(folder / "latest.pt", weights_only=True) for folder in (run, tmp_path / "run"))
    for name in ("networks", "ema"):
        assert all(torch.equal(t, b[name][key]) for key, t in a[name].items()), name
    for of_a, of_b in zip(a["optimisers"], b["optimisers"]):
        assert all(torch.equal(t, of_b["state"][n][key]) for n, state in of_a["state"].items() for key, t in state.items())
    assert [line["loss"] for line in lines_of(run)] == [line["loss"] for line in lines_of(tmp_path / "run")]


def test_two_ranks_and_micro_batches_make_the_losses_of_one(run, tmp_path):
    """The first two steps of each stage, and the latents' deviation, within rounding."""
    arguments = [*COMMAND, "--preset", "toy", "--steps", "4", "--autoencoder-steps", "2"]
    iidm.train(options(tmp_path / "one", "--steps", 4, "--autoencoder-steps", 2))
    iidm.train(options(tmp_path / "micro", "--steps", 4, "--autoencoder-steps", 2, "--micro-batch-size", 1))
    program = (f"import sys; from baselines import iidm; iidm.PRESETS['toy'] = (iidm.TOY, {TINY!r}); "
               f"iidm.train(iidm.parse_options(sys.argv[1:]))")
    (tmp_path / "program.py").write_text(program)
    result = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517",
                             str(tmp_path / "program.py"), *arguments, "--output-dir", str(tmp_path / "two")], cwd=ROOT,
                            capture_output=True, text=True, env={**train.os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr
    for other in ("micro", "two"):
        for a, b in zip(lines_of(tmp_path / "one"), lines_of(tmp_path / other)):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3 if a["step"] in (2, 4) else 1e-5), (other, a["step"])
        scales = [torch.load(tmp_path / name / "latest.pt", weights_only=True)["networks"]["latent_scale"] for name in ("one", other)]
        torch.testing.assert_close(*scales, rtol=1e-3, atol=0)


def test_mask_dropout_leaves_whole_label_maps_out(tmp_path, monkeypatch):
    seen = []
    original = iidm.UNet.modulations
    monkeypatch.setattr(iidm.UNet, "modulations", lambda self, label_map, known=None: (
        seen.append(known), original(self, label_map, known))[1])
    iidm.train(options(tmp_path, "--steps", 41, "--autoencoder-steps", 1, "--mask-dropout", 0.25, "--picture-every", 0))
    known = torch.cat([k for k in seen if k is not None and len(k) == 4])
    assert len(known) == 160 and 0.65 < known.float().mean() < 0.85


def test_the_frozen_autoencoder_of_another_run(run, tmp_path):
    iidm.train(options(tmp_path / "run", "--steps", 2, "--autoencoder", run / "ema_0000008.pt", "--seed", 3))
    assert [line["stage"] for line in lines_of(tmp_path / "run")] == ["unet", "unet"]
    mine, theirs = (torch.load(file, weights_only=True)["ema"] for file in (tmp_path / "run/ema_0000002.pt", run / "ema_0000008.pt"))
    assert all(torch.equal(t, mine[key]) for key, t in theirs.items() if key.startswith("autoencoder."))


def test_the_public_weights_load_from_their_file(tmp_path):
    """A file of VQ-f4's names and shapes, as a Lightning checkpoint has them, its training's losses beside them."""
    torch.manual_seed(0)
    public = {f"first_stage_model.{key}": t for key, t in iidm.Autoencoder(codes=8192).state_dict().items()}
    torch.save({"state_dict": {**public, "loss.discriminator.main.0.weight": torch.zeros(1)}}, tmp_path / "vq-f4.pt")
    model, made_of = iidm.build_model(options(tmp_path, "--steps", 2, "--autoencoder", tmp_path / "vq-f4.pt"), 11)
    assert made_of["codes"] == 8192 and made_of["channels"] == TINY["channels"]
    assert all(torch.equal(t, public[f"first_stage_model.{key}"]) for key, t in model.autoencoder.state_dict().items())
    del public["first_stage_model.quant_conv.bias"]
    torch.save(public, tmp_path / "half.pt")
    with pytest.raises(InputError, match="half.pt: the weights of another network .it has no quant_conv.bias"):
        iidm.build_model(options(tmp_path, "--steps", 2, "--autoencoder", tmp_path / "half.pt"), 11)


@pytest.mark.parametrize("more, message", [
    (["--steps", 4], "--autoencoder-steps 2000: expected 1 or more, and less than --steps 4"),
    (["--autoencoder", "x.pt", "--autoencoder-steps", 3], "x.pt is trained already; give 0"),
    (["--autoencoder", "x.pt", "--steps", 3], "--autoencoder x.pt: not there; expected self, or a file"),
    (["--autoencoder", __file__, "--steps", 3], "test_iidm_runs.py: cannot be read as weights"),
    (["--autoencoder", "{}/latest.pt", "--steps", 3], "expected an ema_*.pt of --model iidm, or the state dict of VQ-f4"),
    (["--preset", "huge"], "--preset huge is unknown"),
    (["--mask-dropout", 1], "--mask-dropout 1.0: expected 0 to 0.999"),
    (["--image-size", "36", "--steps", 3, "--autoencoder-steps", 1], "--image-size 36x36: both sides must be divisible by 8"),
    (["--batch-size", 3, "--micro-batch-size", 2, "--steps", 3, "--autoencoder-steps", 1], "choose a multiple of 2"),
])
def test_bad_options_of_training(run, tmp_path, more, message):
    with pytest.raises(InputError, match=re.escape(message)):
        iidm.train(options(tmp_path / "run", *[str(word).format(run) for word in more]))


def test_a_run_of_another_kind_is_not_resumed_and_not_lost(run, tmp_path):
    """A GAN's command in IIDM's folder, and IIDM without its --mask-dropout: refused, the checkpoint untouched."""
    before = (run / "latest.pt").read_bytes()
    for command in (["--dataset", "toy", "--image-size", "32", "--steps", "9", "--backbone-weights", "random"],
                    ["--model", "iidm", "--dataset", "toy", "--image-size", "32", "--steps", "9", "--autoencoder-steps", "4"]):
        with pytest.raises(InputError, match="latest.pt was trained with"):
            train.main([*command, "--workers", "0", "--device", "cpu", "--output-dir", str(run)])
        assert (run / "latest.pt").read_bytes() == before


# -------------------------------------------------------------------------------------------- sampling

def call(script, *arguments):
    """main() of sample.py in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        sample.main()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """References: 32x32, of another size, grey; a folder with the names of the label maps; files that cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(random.integers(0, 255, (40, 56, 3), np.uint8)).save(folder / "wide.jpg")
    Image.fromarray(random.integers(0, 255, (32, 32), np.uint8)).save(folder / "grey.png")
    Image.fromarray(random.integers(0, 60000, (32, 32)).astype(np.uint16)).save(folder / "deep.png")
    (folder / "broken.jpg").write_bytes((folder / "wide.jpg").read_bytes()[:200])
    Image.fromarray(random.integers(0, 255, (32, 32, 4), np.uint8)).save(folder / "alpha.png")
    (folder / "again").mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "again/a.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "map.png")
    (folder / "named").mkdir()
    for i in range(2):
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"named/val000{i}.png")
    return folder


def test_each_map_in_each_style_and_seed_with_its_reference_in_the_grid(run, pictures, tmp_path, capsys):
    call("sample", "--checkpoint", run / "ema_0000008.pt", "--dataset", "toy", "--count", 2, "--seeds", "0,1", "--start", 3,
         "--reference", pictures / "a.png", pictures / "wide.jpg", pictures / "grey.png", "--output-dir", tmp_path, "--batch-size", 4)
    printed = capsys.readouterr().out
    assert "wide.jpg is 40x56 (height x width), the pictures here 32x32: resized, bicubic, and squeezed" in printed
    assert "grey.png is greyscale: a style without colours" in printed
    names = {f"val000{i}_{style}_seed00{seed}.png" for i in (0, 1) for style in ("a", "wide", "grey") for seed in (0, 1)}
    assert {f.name for f in tmp_path.iterdir()} == names | {"grid.png", "val0000_labels.png", "val0001_labels.png"}
    assert Image.open(tmp_path / "grid.png").size == (13 * 128, 2 * 128), "the label map, and six references beside their pictures"
    # by hand, and alone in its batch
    G, _ = load_generator(run / "ema_0000008.pt")
    label_map = open_dataset("toy", None, "val", (32, 32))[1]["label_map"][None]
    style = torch.from_numpy(np.array(Image.open(pictures / "a.png"))).permute(2, 0, 1)[None].float() / 127.5 - 1
    alone = generate_iidm(G, label_map, style, [1], iidm.Inference(start=(3, 3, 3)), "cpu")[0]
    apart = np.abs(alone.astype(int) - np.array(Image.open(tmp_path / "val0001_a_seed001.png"))).max()
    assert apart <= 1, "more than the rounding of one level"
    in_bf16 = generate_iidm(G, label_map, style, [1], iidm.Inference(start=(3, 3, 3)), "cpu", amp=True)[0]
    assert 0 < np.abs(alone.astype(int) - in_bf16).mean() < 8, "bf16 rounds, and no more"
    with pytest.raises(InputError, match="is there already"):
        call("sample", "--checkpoint", run / "ema_0000008.pt", "--dataset", "toy", "--count", 1, "--start", 3,
             "--reference", pictures / "a.png", "--output-dir", tmp_path)


def test_references_by_name_from_training_pictures_and_none(run, pictures, tmp_path):
    named = open_references([str(pictures / "named")], "toy", None, (32, 32), ["val0000", "val0001"])[""]
    for i in (0, 1):
        file = np.array(Image.open(pictures / f"named/val000{i}.png"))
        assert np.array_equal(((named(f"val000{i}", 0) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), file)
    random = open_references(["train"], "toy", None, (32, 32), [])[""]
    drawn = [random(f"val{i:04d}", seed) for i in range(3) for seed in (0, 1)]
    assert len({t.numpy().tobytes() for t in drawn}) >= 5 and torch.equal(random("val0002", 1), drawn[-1])
    call("sample", "--checkpoint", run / "ema_0000006.pt", "--dataset", "toy", "--count", 1, "--from-noise", "--ddim-steps", 2,
         "--ensemble", run / "ema_0000008.pt", "--guidance", 2, "--output-dir", tmp_path)
    assert Image.open(tmp_path / "grid.png").size == (2 * 128, 128)


@pytest.mark.parametrize("more, message", [
    (["--reference", "{}/broken.jpg"], "broken.jpg: cannot be read as a picture"),
    (["--reference", "{}/deep.png"], "deep.png: a picture of mode I;16; expected 8 bits a channel"),
    (["--reference", "{}/nowhere.png"], "nowhere.png: not there; expected an image, a folder of them, or train"),
    (["--reference", "{}/named", "--count", 3], "2 pictures, none of them named val0002, as a label map is (of 3 maps 1 have none)"),
    (["--reference", "{}/alpha.png"], "alpha.png: has transparent pixels"),
    (["--reference", "{}/a.png", "{}/again/a.png"], "two of them are called a, and so would be their pictures; rename one"),
    (["--reference", "{}/named", "{}/a.png"], "named: a folder beside other references; expected one folder alone"),
    (["--reference", "train", "--start", "9,2", "--ddim-steps", 3], "--ddim-steps 3: expected 0 to 2"),
    (["--reference", "train", "--ensemble", "{}/run2.pt"], "run2.pt are two runs; give two ema_*.pt of one run folder"),
    (["--reference", "train", "--start", 1001], "--start 1001: the schedule has t = 1 to 1000; T is 320 in the paper"),
    (["--reference", "train", "--start", "9,x"], "--start 9,x: expected a number from 1 to 1000"),
    (["--reference", "train", "--start", "9,9", "--rounds", 3], "--rounds 3, but --start 9,9 has 2 numbers"),
    (["--reference", "train", "--rounds", 0], "--rounds 0: expected 1 to 100"),
    (["--from-noise", "--rounds", 0], "--from-noise has one round"),
    ([], "IIDM starts from a style reference: give --reference"),
    (["--from-noise", "--reference", "train"], "--from-noise takes no --reference"),
    (["--interpolate", 3, "--seeds", "0,1", "--reference", "train"], "--interpolate goes between two z of a GAN"),
    (["--reference", "train", "--ensemble", "{}/other.pt"], "other.pt are two architectures; give two ema_*.pt of one run folder"),
    (["--reference", "train", "--ensemble", "{}/strange.pt"], "strange.pt are two autoencoders, whose latents"),
    (["--reference", "train", "--ensemble", "{}/a.png"], "a.png: not an EMA file of train.py"),
    (["--reference", "train", "--guidance", 2, "--checkpoint", "{}/without.pt"], "was never shown a picture without its label map"),
    (["--reference", "train", "--checkpoint", "{}/gan.pt"], "--reference is for checkpoints of --model iidm; "),
    (["--rounds", 0, "--checkpoint", "{}/gan.pt"], "--rounds is for checkpoints of --model iidm; "),
])
def test_bad_input_of_sampling(run, pictures, tmp_path, more, message):
    checkpoint = torch.load(run / "ema_0000008.pt", weights_only=True)
    torch.save({**checkpoint, "mask_dropout": 0.0}, pictures / "without.pt")
    strange = {key: t + 1 if key.startswith("autoencoder.") else t for key, t in checkpoint["ema"].items()}
    torch.save({**checkpoint, "ema": strange}, pictures / "strange.pt")
    torch.save({**checkpoint, "run": {**checkpoint["run"], "seed": 1}}, pictures / "run2.pt")
    wider = {**checkpoint["generator"], "channels": 32}
    torch.save({**checkpoint, "generator": wider, "ema": iidm.IIDM(**wider).state_dict()}, pictures / "other.pt")
    torch.save({**checkpoint, "architecture": "oasis", "generator": dict(num_classes=11, widths=(8, 8, 8), z_dim=4, hidden=4),
                "ema": sample.oasis.Generator(11, widths=(8, 8, 8), z_dim=4, hidden=4).state_dict()}, pictures / "gan.pt")
    arguments = ["--checkpoint", run / "ema_0000008.pt", "--dataset", "toy", "--count", 1, "--output-dir", tmp_path / "out",
                 "--ddim-steps", 1]
    if "gan.pt" in str(more):
        arguments = ["--dataset", "toy", "--output-dir", tmp_path / "out"]
    with pytest.raises(InputError, match=re.escape(message)):
        call("sample", *arguments, *[str(word).format(pictures) for word in more])


def test_a_bad_reference_ends_with_one_line_and_exit_code_2(run, pictures, tmp_path):
    result = subprocess.run([sys.executable, str(ROOT / "sample.py"), "--checkpoint", str(run / "ema_0000008.pt"), "--labels",
                             str(pictures / "map.png"), "--reference", str(pictures / "broken.jpg"), "--output-dir",
                             str(tmp_path / "out")], capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) == 1


# --------------------------------------------------------------------------------------------- scoring

class TinyFeatures(nn.Module):
    """Three features of a picture instead of Inception's."""
    width = 3

    def forward(self, pictures):
        return pictures.float().mean(dim=(2, 3))


@pytest.fixture
def tiny_scores(monkeypatch):
    monkeypatch.setattr(evaluate, "load_inception", lambda *_: (TinyFeatures(), "tiny distance", "tiny", "tiny"))


def evaluated(*arguments):
    return evaluate.evaluate(evaluate.parse_options(["--device", "cpu", "--segmenter-steps", "2", *map(str, arguments)]))


def test_scores_of_a_checkpoint_with_its_references(run, tmp_path, tiny_scores, capsys):
    arguments = ("--checkpoint", run / "ema_0000008.pt", "--count", 4, "--start", 3, "--cache-dir", tmp_path / "cache", "--batch-size", 3)
    scores = evaluated(*arguments, "--output-dir", tmp_path / "a")
    assert set(scores) == {"fid", "miou", "iidm"}, "no diversity and latency unless asked for"
    # S by hand, against its reference and against that of the map two further on
    style = open_references(["train"], "toy", None, (32, 32), [])[""]
    made = [np.array(Image.open(tmp_path / f"a/pictures/seed000/val000{i}.png")) for i in range(4)]
    styles = [((style(f"val000{i}", 0) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for i in range(4)]
    for shift, name in ((0, "S"), (2, "S_other")):
        S = np.mean([np.corrcoef(np.bincount(made[i][..., c].ravel(), minlength=256),
                                 np.bincount(styles[(i + shift) % 4][..., c].ravel(), minlength=256))[0, 1]
                     for i in range(4) for c in range(3)])
        assert scores["iidm"][name] == pytest.approx(100 * S, abs=1e-6)
    M, S, distance = scores["iidm"]["M"], scores["iidm"]["S"], scores["fid"]["value"]
    assert scores["iidm"]["T"] == pytest.approx(M / 100 * (0.3 * (0.5 * S + 50) + 0.5 * (100 - distance)))
    printed = capsys.readouterr().out
    assert "style similarity to the reference, %" in printed and "so not IIDM's" in printed
    assert Image.open(tmp_path / "a/eval.png").size[0] == 4 * (6 * 32 + 4) - 4, "label map, real, picture, reference"
    assert evaluated(*arguments, "--output-dir", tmp_path / "a")["iidm"] == scores["iidm"], "again, from the pictures there"
    with pytest.raises(InputError, match="holds pictures of another inference"):
        evaluated(*arguments, "--rounds", 1, "--output-dir", tmp_path / "a")
    assert evaluated(*arguments, "--rounds", 1, "--output-dir", tmp_path / "b")["fid"] != scores["fid"]
    # one style for all is nobody's "other", and a picture that has changed is not taken for the one before
    one = tmp_path / "one.png"
    for content, message in ((0, None), (99, "holds pictures of another reference")):
        Image.fromarray(np.full((32, 32, 3), content, np.uint8)).save(one)
        with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
            assert evaluated(*arguments, "--reference", one, "--output-dir", tmp_path / "d")["iidm"]["S_other"] is None
    # the same pictures, as a folder of anybody's
    fake = evaluated("--fake", tmp_path / "a/pictures/seed000", "--dataset", "toy", "--count", 4, "--reference", "train", "--metrics",
                     "fid,miou,iidm", "--cache-dir", tmp_path / "cache", "--output-dir", tmp_path / "c")
    assert fake["iidm"]["S"] == pytest.approx(scores["iidm"]["S"]) and fake["iidm"]["S_other"] == pytest.approx(scores["iidm"]["S_other"])


def test_latency_beside_a_gan_is_counted_in_passes(run, tmp_path, monkeypatch):
    """With a clock that counts the U-Net's passes, and 3 for whatever makes none, the seconds are these."""
    passes, forward = [], iidm.UNet.forward
    monkeypatch.setattr(iidm.UNet, "forward", lambda self, *inputs: (passes.append(1), forward(self, *inputs))[1])

    def seconds_of(generates, device):
        before = len(passes)
        generates()
        return float(len(passes) - before or 3)
    monkeypatch.setattr(evaluate, "seconds_of", seconds_of)
    monkeypatch.setattr(iidm, "STEPS", 120), monkeypatch.setattr(iidm, "START", 80)
    checkpoint = torch.load(run / "ema_0000008.pt", weights_only=True)
    options = dict(num_classes=11, widths=(8, 8, 8), z_dim=4, hidden=4)
    torch.save({**checkpoint, "architecture": "oasis", "generator": dict(options, offset_channels=0),
                "ema": sample.oasis.Generator(**options).state_dict()}, tmp_path / "gan.pt")
    rows = evaluated("--checkpoint", run / "ema_0000008.pt", "--metrics", "latency", "--latency-against", tmp_path / "gan.pt",
                     "--output-dir", tmp_path / "out")["latency"]["denoising"]
    assert [(row["passes"], row["seconds"]) for row in rows] == [(120, 120), (80, 80), (50, 50), (25, 25), (1, 3)]
    assert all(row["ratio"] == row["seconds"] / 3 and row["deviation"] == 0 for row in rows)


@pytest.mark.parametrize("more, message", [
    (["--reference", "{0}/a.png", "{0}/grey.png"], "2 images; expected one, a folder with one for each label map, or train"),
    (["--reference", "{0}/named"], "2 pictures, none of them named val0002, as a label map is"),
    (["--start", "0"], "--start 0: the schedule has t = 1 to 1000"),
    (["--ensemble", "{0}/nowhere.pt"], "--ensemble {0}/nowhere.pt: not there"),
    (["--metrics", "latency", "--latency-against", "{1}/ema_0000006.pt"], "expected a GAN's ema_*.pt of the same dataset and size"),
    (["--latency-against", "{1}/ema_0000006.pt"], "needs an IIDM --checkpoint, and --metrics latency"),
])
def test_bad_input_of_scoring(run, pictures, tmp_path, tiny_scores, more, message):
    with pytest.raises(InputError, match=re.escape(message.format(pictures))):
        evaluated("--checkpoint", run / "ema_0000008.pt", "--count", 4, "--ddim-steps", 1, "--output-dir", tmp_path,
                  *[word.format(pictures, run) for word in more])


def test_with_a_folder_of_pictures_inference_options_are_refused(pictures, tmp_path):
    with pytest.raises(InputError, match="the pictures are there already"):
        evaluated("--fake", pictures / "named", "--dataset", "toy", "--start", 5, "--output-dir", tmp_path)


def test_table_2_is_five_ways_to_sample_from_one_training(tmp_path, tiny_scores, monkeypatch):
    made = []

    def here(command, log, slot, jobs):
        made.append((Path(command[0]).stem, command[1:]))
        if made[-1][0] == "train":
            train.main(command[1:])
        else:
            evaluate.evaluate(evaluate.parse_options(command[1:]))
    monkeypatch.setattr(compare, "call", here)
    monkeypatch.setattr(train.signal, "signal", lambda *_: None)  # the runs are threads here
    monkeypatch.setattr(iidm, "STEPS", 20), monkeypatch.setattr(iidm, "START", 4)
    compare.main(compare.parse_options([
        "--rows", ",".join(iidm.TABLE_2), "--seeds", "0,1", "--steps", "7", "--batch-size", "2", "--jobs", "1", "--options",
        "--image-size 32 --workers 0", "--evaluate-options", "--count 3 --segmenter-steps 2 --device cpu", "--output-dir",
        str(tmp_path / "out")]))
    assert [script for script, _ in made].count("train") == 2, "one training for each seed"
    of_row = {Path(c[c.index("--output-dir") + 1]).parent.parent.name: c for script, c in made if script == "evaluate"}
    assert {row: " ".join(c[c.index("fid,miou,iidm") + 1:]).replace(str(tmp_path), "") for row, c in of_row.items()} == {
        "iidm-table2-dm": "--from-noise", "iidm-table2-i2i": "--rounds 1", "iidm-table2-rf": "--colour-transfer off",
        "iidm-table2-ct": "", "iidm-table2-me": "--ensemble /out/iidm/seed1/ema_0000006.pt"}
    table = (tmp_path / "out/comparison.md").read_text().splitlines()
    assert table[0] == "| row | mIoU | of real | pixel accuracy | distance | S | S to others | T | seconds a step |"
    assert [line.split(" |")[0] for line in table[2:7]] == [f"| {row}" for row in iidm.TABLE_2]
    assert table[8] == "T without its term 0.2 A, and with the tiny distance for FID: not the paper's"
    assert Image.open(tmp_path / "out/comparison.png").size == (3 * (4 * 32 + 4) - 4, 8 * (4 * 32 + 16))


@pytest.mark.parametrize("steps", [7, 15, 500, 7000])
def test_the_second_checkpoint_of_the_ensemble_is_one_that_the_training_keeps(steps):
    args = compare.parse_options(["--rows", "iidm-table2-me", "--steps", str(steps)])
    _, _, training, evaluation = compare.commands_of(args, "iidm-table2-me", 0)
    options = {flag: int(training[training.index(flag) + 1]) for flag in ("--ema-every", "--autoencoder-steps", "--steps")}
    second = int(re.search(r"ema_(\d+)", evaluation[-1]).group(1))
    assert second % options["--ema-every"] == 0 and options["--autoencoder-steps"] < second < options["--steps"] == steps
    with pytest.raises(InputError, match="--steps 6: IIDM's rows need 7 or more"):
        compare.parse_options(["--rows", "iidm-table2-me", "--steps", "6"])
