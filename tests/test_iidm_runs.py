"""IIDM as a user runs it: train, resume, ranks, references, scores, bad input. Its equations: tests/test_iidm.py.

    python -m pytest tests/test_iidm_runs.py
"""
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import train as gan
from baselines.iidm import diffusion, latency, sample, scores, train
from baselines.iidm.diffusion import Inference
from baselines.iidm.networks import IIDM, Autoencoder, UNet
from conftest import lines, load, pixels, printed_by, start, tiny_inception
from data import open_dataset
from generator import Generator
from metrics import fid
from support.errors import InputError
from support.ranks import StopOnSignals

TINY = dict(autoencoder_channels=8, autoencoder_multipliers=(1, 1, 1), autoencoder_blocks=1, latent_channels=3,
            channels=16, multipliers=(1, 2), blocks=1, attention_strides=(2,), head_channels=8, hidden=8)
COMMAND = ["--dataset", "toy", "--image-size", "32", "--batch-size", "4", "--log-every", "1", "--workers", "0",
           "--picture-every", "0", "--device", "cpu"]
EIGHT = ["--steps", 8, "--autoencoder-steps", 4, "--ema-every", 2, "--save-every", 4, "--mask-dropout", 0.2]
FOUR = ["--steps", 4, "--autoencoder-steps", 2]


@pytest.fixture(autouse=True, scope="module")
def tiny_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "TOY_NETWORKS", TINY), patch.setattr(train, "STRIP_DDIM_STEPS", 2)
        yield


def run_training(folder, *more):
    train.train(train.parse_options([*COMMAND, "--output-dir", str(folder), *map(str, more)]))


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_networks):
    """A run of 8 steps, 4 of them the autoencoder's, with averages of steps 6 and 8."""
    folder = tmp_path_factory.mktemp("iidm") / "run"
    run_training(folder, *EIGHT)
    return folder


# -------------------------------------------------------------------------------------------- training

def test_the_autoencoder_is_trained_first_then_left_alone_and_its_latents_scaled(run):
    log = lines(run)
    assert [line["stage"] for line in log] == 4 * ["autoencoder"] + 4 * ["unet"]
    assert all(np.isfinite(line["loss"]) for line in log)
    assert sorted(f.name for f in run.glob("ema_*")) == ["ema_0000006.pt", "ema_0000008.pt"], "none before the U-Net"
    before, after = (load(run / f"ema_000000{step}.pt")["ema"] for step in (6, 8))
    assert {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])} == {"unet"}
    model, _ = sample.load_model(run / "ema_0000008.pt", None, "cpu")
    toy = open_dataset("toy", None, "train", (32, 32), instances=False)
    z = model.encode(torch.stack([toy[i]["image"] for i in range(64)]).float() / 127.5 - 1)
    assert 0.9 < z.std() < 1.1 and abs(1 / model.latent_scale - 1) > 0.02, "measured, and not 1 by itself"
    assert Image.open(run / "strip.png").size == (7 * 128, 16 + 6 * 128 + 16)


@pytest.mark.parametrize("stops", [(2,), (4,), (5, 7)], ids=["in the autoencoder", "between the two", "in the U-Net"])
def test_an_interrupted_run_ends_where_the_uninterrupted_one_does(run, stops, tmp_path, monkeypatch, capsys):
    """Bit for bit on a CPU; 4 is the moment at which the autoencoder is frozen and its latents are measured."""
    done = 0
    for stop in (*stops, 8):
        with monkeypatch.context() as patch:
            answers = iter([False] * (stop - done - 1) + [stop < 8])
            patch.setattr(StopOnSignals, "now", lambda _: next(answers))
            run_training(tmp_path / "run", *EIGHT)
        printed = capsys.readouterr().out
        assert (f"resumed at step {done}" in printed) == (done > 0)
        assert (f"stopped at step {stop}" in printed) == (stop < 8)
        done = stop
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 9)), "no line is taken for a damaged one"
    a, b = (load(folder / "latest.pt") for folder in (run, tmp_path / "run"))
    for name in ("G", "ema"):
        assert all(torch.equal(t, b[name][key]) for key, t in a[name].items()), name
    for of_a, of_b in ((a[name], b[name]) for name in ("optimiser_G", "optimiser_D")):
        assert all(torch.equal(t, of_b["state"][n][key]) for n in of_a["state"] for key, t in of_a["state"][n].items())
    assert [line["loss"] for line in lines(run)] == [line["loss"] for line in lines(tmp_path / "run")]


def test_two_ranks_and_micro_batches_make_the_losses_of_one(tmp_path):
    """The first two steps of each stage, and the latents' deviation, within rounding."""
    run_training(tmp_path / "one", *FOUR)
    run_training(tmp_path / "micro", *FOUR, "--micro-batch-size", 1)
    (tmp_path / "program.py").write_text(f"import sys\nfrom baselines.iidm import train\ntrain.TOY_NETWORKS = {TINY}\n"
                                         f"train.train(train.parse_options(sys.argv[1:]))")
    printed_by(start(tmp_path / "program.py", *COMMAND, *FOUR, "--output-dir", tmp_path / "two", ranks=2))
    one = load(tmp_path / "one/latest.pt")["G"]["latent_scale"]
    for other in ("micro", "two"):
        for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / other)):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3 if a["step"] in (2, 4) else 1e-5), (other, a["step"])
        scale = load(tmp_path / other / "latest.pt")["G"]["latent_scale"]
        torch.testing.assert_close(one, scale, rtol=1e-3, atol=0)


def test_mask_dropout_leaves_whole_label_maps_out(tmp_path, monkeypatch):
    seen, original = [], UNet.modulations
    monkeypatch.setattr(UNet, "modulations", lambda self, label_map, known=None: (
        seen.append(known), original(self, label_map, known))[1])
    run_training(tmp_path, "--steps", 41, "--autoencoder-steps", 1, "--mask-dropout", 0.25)
    known = torch.cat([k for k in seen if k is not None])
    assert len(known) == 160 and 0.65 < known.float().mean() < 0.85


def test_the_frozen_autoencoder_of_another_run(run, tmp_path):
    run_training(tmp_path / "run", "--steps", 2, "--autoencoder", run / "ema_0000008.pt", "--seed", 3)
    assert [line["stage"] for line in lines(tmp_path / "run")] == ["unet", "unet"]
    mine, theirs = (load(file)["ema"] for file in (tmp_path / "run/ema_0000002.pt", run / "ema_0000008.pt"))
    assert all(torch.equal(t, mine[key]) for key, t in theirs.items() if key.startswith("autoencoder."))


def test_the_public_weights_load_from_their_file(tmp_path):
    """A file of VQ-f4's names and shapes, as a Lightning checkpoint has them, its training's losses beside them."""
    def options(file):
        return train.parse_options([*COMMAND, "--steps", "2", "--autoencoder", str(tmp_path / file)])
    torch.manual_seed(0)
    public = {f"first_stage_model.{key}": t for key, t in Autoencoder(codes=8192).state_dict().items()}
    torch.save({"state_dict": {**public, "loss.discriminator.main.0.weight": torch.zeros(1)}}, tmp_path / "vq-f4.pt")
    model, made_of = train.build_model(options("vq-f4.pt"), 11)
    assert made_of["codes"] == 8192 and made_of["channels"] == TINY["channels"]
    assert all(torch.equal(t, public[f"first_stage_model.{key}"]) for key, t in model.autoencoder.state_dict().items())
    del public["first_stage_model.quant_conv.bias"]
    torch.save(public, tmp_path / "half.pt")
    with pytest.raises(InputError, match="half.pt: the weights of another network .it has no quant_conv.bias"):
        train.build_model(options("half.pt"), 11)


@pytest.mark.parametrize("more, message", [
    (["--steps", 4], "--autoencoder-steps 2000: expected 1 or more and less than --steps 4"),
    (["--autoencoder", "x.pt", "--autoencoder-steps", 3], "0 with --autoencoder FILE, which is trained"),
    (["--autoencoder", "x.pt", "--steps", 3], "--autoencoder x.pt: not there; expected self, or a file"),
    (["--autoencoder", __file__, "--steps", 3], "test_iidm_runs.py: cannot be read as weights"),
    (["--autoencoder", "{}/latest.pt", "--steps", 3], "expected an ema_*.pt of IIDM, or the state dict of VQ-f4"),
    (["--mask-dropout", 1], "--mask-dropout: 1: expected a number from 0 to 0.999"),
    (["--image-size", "36", *FOUR], "--image-size 36x36: both sides must be divisible by 8"),
    (["--batch-size", 3, "--micro-batch-size", 2, *FOUR], "choose a multiple of 2")])
def test_bad_options_of_training(run, tmp_path, more, message):
    with pytest.raises(InputError, match=re.escape(message)):
        run_training(tmp_path / "run", *[str(word).format(run) for word in more])


def test_a_run_of_another_kind_is_not_resumed_and_not_lost(run):
    """IIDM without its --mask-dropout, and a GAN's command in IIDM's folder: refused, the checkpoint untouched."""
    before, same = (run / "latest.pt").read_bytes(), [*COMMAND, "--steps", "9", "--output-dir", str(run)]
    with pytest.raises(InputError, match="latest.pt was trained with mask_dropout 0.2"):
        run_training(run, "--steps", 9, "--autoencoder-steps", 4)
    with pytest.raises(InputError, match="latest.pt was trained with"):
        gan.train(gan.parse_options([*same, "--backbone-weights", "random"]), gan.DP_SIMS)
    assert (run / "latest.pt").read_bytes() == before


# -------------------------------------------------------------------------------------------- sampling

@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """References: 32x32, of another size, grey, with alpha; a folder with the names of the label maps; bad files."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "again").mkdir(), (folder / "named").mkdir()
    random = np.random.default_rng(0)
    shapes = {"wide.jpg": (40, 56, 3), "grey.png": (32, 32), "alpha.png": (32, 32, 4)}
    for name in ("a.png", "again/a.png", "named/val0000.png", "named/val0001.png", *shapes):
        shape = shapes.get(name, (32, 32, 3))
        Image.fromarray(random.integers(0, 255, shape, np.uint8)).save(folder / name)
    Image.fromarray(random.integers(0, 60000, (32, 32)).astype(np.uint16)).save(folder / "deep.png")
    (folder / "broken.jpg").write_bytes((folder / "wide.jpg").read_bytes()[:200])
    return folder


def call(command, *arguments):
    command.main([*map(str, arguments)])


def as_pixels(style):
    return ((style + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def references(*words):
    """{title: read(name, seed)} of --reference WORDS for the first two maps of toy."""
    args = sample.parse_options(["--checkpoint", "x", "--dataset", "toy", "--reference", *map(str, words)])
    return sample.open_references(args, (32, 32), ["val0000", "val0001"])


def test_each_map_in_each_style_and_seed_with_its_reference_in_the_grid(run, pictures, tmp_path):
    words = ["--checkpoint", run / "ema_0000008.pt", "--dataset", "toy", "--start", 3, "--output-dir", tmp_path]
    call(sample, *words, "--count", 2, "--seeds", "0,1", "--reference", pictures / "a.png", pictures / "wide.jpg",
         pictures / "grey.png", "--batch-size", 4)
    names = {f"val000{i}_{style}_seed00{s}.png" for i in (0, 1) for style in ("a", "wide", "grey") for s in (0, 1)}
    assert {f.name for f in tmp_path.iterdir()} == names | {"grid.png", "val0000_labels.png", "val0001_labels.png"}
    # titles, two rows of a label map, six references and their pictures, and a line of legend
    assert Image.open(tmp_path / "grid.png").size == (13 * 128, 16 + 2 * 128 + 16)
    # by hand, and alone in its batch
    model, _ = sample.load_model(run / "ema_0000008.pt", None, "cpu")
    label_map = open_dataset("toy", None, "val", (32, 32))[1]["label_map"][None]
    style = torch.from_numpy(pixels(pictures / "a.png")).permute(2, 0, 1)[None].float() / 127.5 - 1
    alone, in_bf16 = (sample.draw(model, label_map, style, [1], Inference(start=(3, 3, 3)), "cpu", amp)[0].astype(int)
                      for amp in (False, True))
    assert np.abs(alone - pixels(tmp_path / "val0001_a_seed001.png")).max() <= 1, "more than the rounding of one level"
    assert 0 < np.abs(alone - in_bf16).mean() < 8, "bf16 rounds, and no more"
    with pytest.raises(InputError, match="is there already"):
        call(sample, *words, "--count", 1, "--reference", pictures / "a.png")


def test_references_by_name_from_training_pictures_and_none(run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = references(pictures / "named")[""]
    for name in ("val0000", "val0001"):
        assert np.array_equal(as_pixels(named(name, 0)), pixels(pictures / f"named/{name}.png"))
    random = references("train")[""]
    drawn = [random(f"val{i:04d}", seed) for i in range(3) for seed in (0, 1)]
    assert len({t.numpy().tobytes() for t in drawn}) >= 5 and torch.equal(random("val0002", 1), drawn[-1])
    call(sample, "--checkpoint", run / "ema_0000006.pt", "--ensemble", run / "ema_0000008.pt", "--dataset", "toy",
         "--count", 1, "--from-noise", "--ddim-steps", 2, "--guidance", 2)
    assert Image.open(tmp_path / "samples/grid.png").width == 2 * 128


@pytest.fixture(scope="module")
def strange(run, pictures):
    """Checkpoints beside the references: another run, autoencoder, architecture, mask dropout; a GAN's."""
    checkpoint = load(run / "ema_0000008.pt")
    moved = {key: t + 1 if key.startswith("autoencoder.") else t for key, t in checkpoint["ema"].items()}
    wider = {**checkpoint["generator"], "channels": 32}
    small = dict(num_classes=11, widths=(8, 8, 8), stem_channels=4, label_channels=4, noise_tokens=2, noise_width=4)
    for name, changes in (
            ("without", {"run": {"mask_dropout": 0.0}}), ("strange", {"ema": moved}), ("run2", {"run": {"seed": 1}}),
            ("other", {"generator": wider, "ema": IIDM(**wider).state_dict()}),
            ("gan", {"architecture": "dp-sims", "generator": small, "ema": Generator(**small).state_dict()})):
        torch.save({**checkpoint, **changes}, pictures / f"{name}.pt")
    return pictures


@pytest.mark.parametrize("more, message", [
    ("--reference {0}/broken.jpg", "broken.jpg: cannot be read as a picture"),
    ("--reference {0}/deep.png", "deep.png: a picture of mode I;16; expected 8 bits a channel"),
    ("--reference {0}/nowhere.png", "nowhere.png: not there; expected images, one folder of them, or train"),
    ("--reference {0}/named --count 3", "no picture named val0002, as a label map is (1 of 3 maps have none)"),
    ("--reference {0}/alpha.png", "alpha.png: has transparent pixels"),
    ("--reference {0}/a.png {0}/again/a.png", "two of them have one name, and so would their pictures; rename one"),
    ("--reference {0}/named {0}/a.png", "named: a folder beside others; expected images, one folder of them"),
    ("--reference train --ensemble {0}/run2.pt", "run2.pt are two runs; give two ema_*.pt of one run"),
    ("--reference train --ensemble {0}/other.pt", "other.pt are two architectures; give two ema_*.pt of one run"),
    ("--reference train --ensemble {0}/strange.pt", "strange.pt are two autoencoders, whose latents"),
    ("--reference train --ensemble {0}/a.png", "a.png: not an EMA file of train.py"),
    ("--reference train --guidance 2 --checkpoint {0}/without.pt", "was never shown a picture without its label map"),
    ("--reference train --checkpoint {0}/gan.pt", "gan.pt: "),
    ("--from-noise --reference train", "or --from-noise alone for the plain diffusion model"),
    ("--for-scores --seeds 0,1", "1 images as --reference and 2 --seeds; expected one seed"),
    ("--for-scores --reference {0}/a.png {0}/grey.png", "2 images as --reference and 1 --seeds; expected"),
    ("--for-scores --reference {0}/named", "no picture named val0002, as a label map is")])
def test_bad_input_of_sampling(run, strange, tmp_path, more, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call(sample, "--checkpoint", run / "ema_0000008.pt", "--dataset", "toy", "--count", 4, "--ddim-steps", 1,
             "--output-dir", tmp_path, *more.format(strange).split())


# --------------------------------------------------------------------------------------------- scoring

@pytest.fixture
def draw_and_score(run, tmp_path, monkeypatch):
    """A function: the three commands, from a checkpoint to IIDM's scores -> (the folder, "scores" of eval.json)."""
    monkeypatch.setattr(fid, "load_inception", tiny_inception)

    def three_commands(name, inference="--start 3", *more):
        folder, file = tmp_path / name, tmp_path / f"{name}_eval/eval.json"
        call(sample, "--checkpoint", run / "ema_0000008.pt", "--dataset", "toy", "--count", 4, "--batch-size", 3,
             "--for-scores", "--output-dir", folder, *inference.split())
        call(evaluate, "--device", "cpu", "--segmenter-steps", 2, "--fake", folder, "--dataset", "toy", "--cache-dir",
             tmp_path / "cache", "--count", 4, "--output-dir", file.parent)
        call(scores, "--fake", folder, "--eval", file, *more)
        return folder, json.loads(file.read_text())["scores"]
    return three_commands


def test_scores_with_references(run, tmp_path, draw_and_score, monkeypatch, capsys):
    folder, found = draw_and_score("a")
    assert set(found) == {"fid", "miou", "iidm"}
    monkeypatch.chdir(tmp_path)
    style, names = references("train")[""], [f"val000{i}" for i in range(4)]
    assert {f.name for f in folder.iterdir()} == {*(f"{name}.png" for name in names), "references", "manifest.json"}
    # noise of map i from seed i, whatever the batch
    model, _ = sample.load_model(run / "ema_0000008.pt", None, "cpu")
    label_map = open_dataset("toy", None, "val", (32, 32))[2]["label_map"][None]
    alone = sample.draw(model, label_map, style("val0002", 0)[None], [2], Inference(start=(3, 3, 3)), "cpu")[0]
    made, styles = ([pixels(folder / where / f"{name}.png") for name in names] for where in (".", "references"))
    assert np.abs(alone.astype(int) - made[2]).max() <= 1
    assert all(np.array_equal(as_pixels(style(name, 0)), picture) for name, picture in zip(names, styles))
    # S by hand, against its reference and against that of the map two further on
    for shift, key in ((0, "S"), (2, "S_other")):
        pairs = [(made[i][..., c], styles[(i + shift) % 4][..., c]) for i in range(4) for c in range(3)]
        S = [np.corrcoef(*(np.bincount(x.ravel(), minlength=256) for x in pair))[0, 1] for pair in pairs]
        assert found["iidm"][key] == pytest.approx(100 * np.mean(S), abs=1e-6)
    M, S, distance = found["iidm"]["M"], found["iidm"]["S"], found["fid"]["value"]
    assert M == 100 * found["miou"]["generated"]["pixel_accuracy"]
    assert found["iidm"]["T"] == pytest.approx(M / 100 * (0.3 * (0.5 * S + 50) + 0.5 * (100 - distance)))
    printed = capsys.readouterr().out
    assert "style similarity to the reference, %" in printed and "so not IIDM's" in printed


def test_a_killed_drawing_goes_on_and_other_pictures_are_refused(tmp_path, draw_and_score):
    folder, found = draw_and_score("a")
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.glob("*.png")}
    (folder / "val0003.png").unlink()
    assert draw_and_score("a")[1] == found, "again, from the pictures there"
    after = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before}
    assert [file.name for file in before if before[file] != after[file]] == ["val0003.png"]
    assert all(before[file][1] == after[file][1] for file in before)
    with pytest.raises(InputError, match="holds pictures of another inference"):
        draw_and_score("a", "--start 3 --rounds 1")
    assert draw_and_score("a", "--start 3 --rounds 1 --force")[1]["fid"] != found["fid"]
    # the plain DM does not look at its references, but S does; with A nothing of T is left out but FID
    of_noise = draw_and_score("b", "--from-noise --ddim-steps 2", "--aesthetic", 50)[1]["iidm"]
    assert of_noise["A"] == 50 and of_noise["S_other"] != of_noise["S"] and "0.2 A" not in of_noise["note"]
    # one style for all is nobody's "other", and a picture that has changed is not taken for the one before
    one = tmp_path / "one.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(one)
    assert draw_and_score("c", f"--start 3 --reference {one}")[1]["iidm"]["S_other"] is None
    Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(one)
    with pytest.raises(InputError, match="holds pictures of another label maps or references"):
        draw_and_score("c", f"--start 3 --reference {one}")


@pytest.mark.parametrize("change, message", [
    (dict(fake="elsewhere"), "not the FID and mIoU of these 2 pictures"), (dict(maps=3), "of these 2 pictures"),
    (dict(scores={"fid": {}}), "run evaluate.py --fake"), (None, "eval.json: not there"),
    (dict(references="alone"), "alone: no reference for 2 of the 2 pictures"), (dict(aesthetic=101), "101: expected")])
def test_bad_input_of_scoring(pictures, tmp_path, change, message):
    folder, of = pictures / "named", {"references": pictures / "named", "aesthetic": 50, **(change or {})}
    content = {"fake": str(folder), "maps": 2, "scores": {"fid": {}, "miou": {}}, **(change or {})}
    if change is not None:
        (tmp_path / "eval.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=re.escape(message)):
        call(scores, "--fake", folder, "--eval", tmp_path / "eval.json", "--references", of["references"],
             "--aesthetic", of["aesthetic"])


def test_latency_beside_a_gan_is_counted_in_passes(run, strange, monkeypatch, capsys):
    """With a clock that counts the U-Net's passes, and 3 for whatever makes none, the seconds are these."""
    passes, forward = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, *inputs: (passes.append(1), forward(self, *inputs))[1])

    def seconds_of(generates, device):
        before = len(passes)
        generates()
        return float(len(passes) - before or 3)
    monkeypatch.setattr(latency, "seconds_of", seconds_of)
    monkeypatch.setattr(diffusion, "STEPS", 120), monkeypatch.setattr(diffusion, "START", 80)
    call(latency, "--checkpoint", run / "ema_0000008.pt", "--against", strange / "gan.pt")
    rows = re.findall(r"(\d+) passes +([\d.]+) s \+- 0.0000 s, ([\d.]+) x the GAN", capsys.readouterr().out)
    assert [(int(n), float(seconds)) for n, seconds, _ in rows] == [(120, 120), (80, 80), (50, 50), (25, 25), (1, 3)]
    assert [float(ratio) for _, _, ratio in rows] == [40.0, 26.7, 16.7, 8.3, 1.0]
    with pytest.raises(InputError, match="a generator of iidm"):
        call(latency, "--checkpoint", run / "ema_0000008.pt", "--against", run / "ema_0000006.pt")


def test_the_rows_of_table_2_are_options_of_sampling(tmp_path):
    asked = {row: sample.parse_options(
        ["--checkpoint", "x", "--dataset", "toy", "--for-scores", "--output-dir", str(tmp_path), *words.split(),
         *["second.pt"] * words.endswith("--ensemble")]) for row, words in sample.TABLE_2.items()}
    assert {row.removeprefix("iidm-table2-"): args.inference for row, args in asked.items()} == {
        "dm": Inference(from_noise=True), "i2i": Inference(start=(320,)), "rf": Inference(colour_transfer=False),
        "ct": Inference(), "me": Inference()}
    assert [row for row, args in asked.items() if args.ensemble] == ["iidm-table2-me"]
