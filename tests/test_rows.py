"""Every row of the papers' tables trains, resumes, is sampled and scored, and what it leaves out is really absent."""
import functools
import json
import re
import sys

import pytest
import torch
import torch.nn as nn
from PIL import Image

import discriminator
import evaluate
import losses
import train
from conftest import call, lines, load, tiny_inception
from baselines import dpgan, oasis, train as baselines
from baselines.iidm import sample as iidm_sample, scores as iidm_scores, train as iidm_train
from data import open_dataset
from discriminator import MIXING_WIDTHS, Discriminator
from generator import CrossAttention, Generator, SelfAttention
from metrics import fid, segmentation
from sample import generate, load_generator
from support.errors import InputError
from support.ranks import setup_ranks
from tables import compare
from tables.rows import ROWS
from test_iidm_runs import TINY as IIDM_TINY
from test_train import SMALL, same_run, small  # noqa: F401

TINY = [*SMALL, "--batch-size", "2", "--diversity-every", "2"]


def built_once(build):
    """As `build`, but once for both runs of a row, and with one block where a backbone has three or more in a row."""
    @functools.lru_cache(2)
    def built(*arguments):
        made = build(*arguments)
        for stage in list((made[0] if isinstance(made, tuple) else made).modules()):
            kinds = {type(block) for block in stage} if isinstance(stage, nn.Sequential) else {nn.Sequential}
            if len(kinds) == 1 and nn.Sequential not in kinds and len(stage) > 2:
                del stage[1:]
        return made
    return built


@pytest.fixture(scope="module", autouse=True)
def quick(small):
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((discriminator, "load_torchvision"), (discriminator, "load_timm"), (losses, "load_vgg19")):
            patch.setattr(module, name, built_once(getattr(module, name)))
        patch.setattr(train, "STRIP_ROWS", 2), patch.setattr(fid, "load_inception", tiny_inception)
        yield


def parse(words):
    """The words of a training command -> what `train` takes."""
    if words[0] == "train.py":
        return train.parse_options(words[1:]), train.DP_SIMS
    args = baselines.parse_options(words[2:])
    return args, baselines.system_of(args)


def of_row(row, *more):
    if "timm:" in ROWS[row].options:
        pytest.importorskip("timm")
    return parse([*ROWS[row].command().split(), *TINY, *map(str, more)])


def networks_of(row, folder):
    """G, D, P of a row, and its options."""
    args, system = of_row(row)
    dataset = open_dataset("toy", None, "train", args.image_size, instances=args.offsets == "on")
    return (*system.build_networks(args, dataset, None, folder, setup_ranks("cpu"))[:3], args)


def different_rows():
    """One row for each set of options at this size: some tables repeat the full model."""
    sets = {}
    for row in ROWS:
        args = vars(parse([*ROWS[row].command().split(), *TINY])[0])
        sets.setdefault(repr([(name, args[name]) for name in sorted(args) if name not in ("model", "output_dir")]), row)
    return list(sets.values())


# The losses of G and of D: of the papers' full models, and those that a row leaves out.
LOSSES = {"DP-SIMS": "G_gan G_contrastive G_diversity D_pixels", "OASIS": "G_gan D_pixels D_label_mix",
          "DP-GAN": "G_gan G_patch G_feature_matching D_pixels D_patch D_label_mix"}
LEFT_OUT = {"table6-no-contrastive": "G_contrastive", "no-diversity": "G_diversity",
            "dpgan-table4b-none": "G_patch D_patch", "dpgan-table4c-none": "G_feature_matching",
            "dpgan-table4a-dpgan-oasis": "G_patch D_patch G_feature_matching",
            "dpgan-supplement3-no-labelmix": "D_label_mix"}


@pytest.mark.parametrize("row", different_rows())
def test_every_row_trains_resumes_samples_and_scores(row, tmp_path, capsys):
    for steps in (1, 2):
        args, system = of_row(row, "--steps", steps, "--output-dir", tmp_path)
        train.train(args, system)
    assert "resumed at step 1" in capsys.readouterr().out
    log, file = lines(tmp_path), tmp_path / "ema_0000002.pt"
    assert [line["step"] for line in log] == [1, 2]
    assert all(torch.tensor(line[name]).isfinite() for line in log for name in line)
    found = {name for name in log[0] if name[:2] in ("G_", "D_") and not name.endswith(("gradient", "real", "fake"))}
    assert found == set(LOSSES[system.title].split()) - set(LEFT_OUT.get(row, "").split())
    # two z are far apart from the start in these two: Eq. 6 is cut off
    zero = {"G_diversity"} if row in ("table6-oasis-generator", "table6-no-cross-attention") else set()
    assert {name for name in found if log[0][name] == 0} == zero, "losses that reach nobody"
    assert log[0]["D"] == pytest.approx(sum(log[0][name] for name in found if name[0] == "D"), rel=1e-5)

    G, checkpoint = load_generator(file, generators=baselines.GENERATORS)
    offsets = torch.zeros(1, 2, 32, 32) if checkpoint["generator"]["offset_channels"] else None
    picture = generate(G, torch.zeros(1, 32, 32, dtype=torch.int64), offsets, torch.zeros(1, G.z_dim), "cpu")
    assert picture.shape == (1, 32, 32, 3)
    options = ["--checkpoint", str(file), "--metrics", "fid", "--count", "3", "--device", "cpu"]
    assert evaluate.evaluate(evaluate.parse_options(options), baselines.GENERATORS)["fid"]["value"] > 0
    if row in ("dpgan-table4a-dpgan-dpgan", "table5-bn-ccm-csm"):
        train.train(*of_row(row, "--steps", 2, "--output-dir", tmp_path / "whole"))
        same_run(tmp_path, tmp_path / "whole")


# ------------------------------------------------------------------------- what is left out is really absent

def has(net, kind):
    return any(isinstance(m, kind) for m in net.modules())


@pytest.mark.parametrize("row, steps", [
    ("table6-dp-sims", "sigmoid norm"), ("table5-none", ""), ("table5-ccm-csm", "mixing"),
    ("table5-bn-ccm-csm", "norm mixing"), ("table5-no-sigmoid", "norm"), ("table5-no-bn", "sigmoid")])
def test_table_5_conditioning_is_what_its_row_says(row, steps, tmp_path):
    """In the graph: what the decoder gets, against the row's formula written out."""
    D, seen = networks_of(row, tmp_path)[1], []
    assert has(D.norms, nn.BatchNorm2d) == ("norm" in steps) and (D.mixing is not None) == ("mixing" in steps)
    D.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        D(image)
        F = [torch.sigmoid(f) if "sigmoid" in steps else f for f in D.features(image)]
        if "norm" in steps:
            F = [(f - f.mean((0, 2, 3), keepdim=True)) / (f.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
                 for f in F]
        if "mixing" in steps:
            F = D.mixing(F)
            assert [f.shape[1] for f in F] == list(MIXING_WIDTHS)
    lowest = nn.functional.interpolate(F[3], scale_factor=2)
    torch.testing.assert_close(seen[0], torch.cat([lowest, F[2]], dim=1), rtol=1e-3, atol=1e-4)


def test_projected_gans_mixing_is_random_frozen_and_crosses_channels_and_scales():
    torch.manual_seed(0)
    mixing = Discriminator(5, "resnet18", "random", (8, 8, 8, 8, 8), 8, conditioning="ccm-csm").mixing
    assert not any(p.requires_grad for p in mixing.parameters()) and any(p.any() for p in mixing.parameters())
    features = [torch.randn(1, c, n, n, requires_grad=True) for c, n in zip((64, 128, 256, 512), (8, 4, 2, 1))]
    mixed = mixing(features)
    mixed[0].sum().backward()
    assert all(f.grad.abs().sum() > 0 for f in features), "the finest scale has seen all scales"
    # by hand at the second-lowest scale: ccm(F_3) + csm(ccm(F_4) enlarged); F_4 is one pixel
    lower = mixing.across_channels[3](features[3]).expand(-1, -1, 2, 2)
    torch.testing.assert_close(mixed[2], mixing.across_channels[2](features[2]) + mixing.across_scales[2](lower))


BOTH = {SelfAttention, CrossAttention}


@pytest.mark.parametrize("row, G_kind, D_kind, has_P, kinds", [
    ("table6-dp-sims", Generator, Discriminator, True, BOTH),
    ("table6-no-self-attention", Generator, Discriminator, True, {CrossAttention}),
    ("table6-no-cross-attention", Generator, Discriminator, True, {SelfAttention}),
    ("table6-no-contrastive", Generator, Discriminator, False, BOTH),
    ("table6-oasis-discriminator", Generator, oasis.Discriminator, True, BOTH),
    ("table6-oasis-generator", oasis.Generator, Discriminator, True, set()),
    ("table9-oasis", oasis.Generator, oasis.Discriminator, False, set()),
    ("dpgan-table4a-oasis-oasis", oasis.Generator, oasis.Discriminator, False, set()),
    ("dpgan-table4a-oasis-dpgan", oasis.Generator, dpgan.Discriminator, False, set()),
    ("dpgan-table4a-dpgan-oasis", dpgan.Generator, oasis.Discriminator, False, set()),
    ("dpgan-table4a-dpgan-dpgan", dpgan.Generator, dpgan.Discriminator, False, set())])
def test_rows_have_the_networks_they_name(row, G_kind, D_kind, has_P, kinds, tmp_path):
    G, D, P, args = networks_of(row, tmp_path)
    assert type(G) is G_kind and type(D) is D_kind and {kind for kind in BOTH if has(G, kind)} == kinds
    assert (P is not None) == has_P, "no VGG where there is no contrastive loss"
    assert (args.offsets, args.sampling) == (("on", "rare-class") if row.startswith("table6") else ("off", "uniform"))


def test_table_6_concatenated_noise_is_at_every_pixel_that_both_pyramids_read(tmp_path):
    G, seen = networks_of("table6-no-cross-attention", tmp_path)[0], []
    for conv in (G.label_pyramid.stem[0], G.first):
        conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -G.z_dim:]))
    z = torch.arange(G.z_dim).float()
    G(torch.zeros(1, 32, 32, dtype=torch.int64), z[None], torch.zeros(1, 2, 32, 32))
    assert len(seen) == 2 and all(torch.equal(x, z.view(1, -1, 1, 1).expand_as(x)) for x in seen)
    assert G.noise_mapping is None


@pytest.mark.parametrize("row, heads, weights", [
    ("dpgan-table4b-none", 0, (5, 0, 1)), ("dpgan-table4b-decoder", 2, (5, 1, 1)), ("dpgan-table4b-both", 4, (5, 1, 1)),
    ("dpgan-table4b-encoder", 2, (5, 1, 1)), ("dpgan-table4c-none", 2, (5, 1, 0)),
    ("dpgan-supplement3-no-labelmix", 2, (0, 1, 1)), ("dpgan-supplement3-no-concatenation", 2, (5, 1, 1))])
def test_dpgan_rows_have_the_heads_and_weights_they_name(row, heads, weights, tmp_path):
    G, D, _, args = networks_of(row, tmp_path)
    assert len(D.heads) == heads and (args.lambda_lm, args.lambda_patch, args.lambda_fm) == weights
    assert G.concatenate_last == (row != "dpgan-supplement3-no-concatenation")
    assert G.blocks[0].spade_0.to_gamma_beta.in_channels == (32 if G.concatenate_last else 16)


# ------------------------------------------------------------------------------------------------- options

@pytest.mark.parametrize("words, values", [
    (ROWS["table8-weighted-ce"].command(), dict(gamma=0, class_weights="balanced")),
    (ROWS["table8-focal"].command(), dict(gamma=2, class_weights="none")),
    (ROWS["table8-weighted-focal"].command(), dict(gamma=2, class_weights="balanced")),
    (ROWS["dpgan-table4a-oasis-dpgan"].command() + " --lambda-lm 7",
     dict(model="dpgan", generator="oasis", discriminator="dpgan", lambda_lm=7)),
    ("-m baselines.train --dataset cityscapes --data-path x --model oasis",
     dict(batch_size=20, lr=4e-4, lr_d=4e-4, beta2=0.999, lambda_lm=5, image_size=(256, 512))),
    ("-m baselines.train --dataset folder --data-path x --preset laptop --model oasis",
     dict(batch_size=4, lr=1e-3, steps=1500, image_size=(128, 128), lambda_c=0, lambda_lm=10)),
    ("-m baselines.train --dataset ade20k --data-path x --model dpgan",
     dict(batch_size=32, lr=1e-4, lr_d=4e-4, beta2=0.999, steps=126_000, class_weights="inverse"))])
def test_the_command_line_beats_the_dataset_and_the_dataset_the_model(words, values):
    args = vars(parse(words.split())[0])
    assert {name: args[name] for name in values} == values


def test_the_laptop_preset_gives_baselines_their_small_networks(tmp_path):
    words = f"--preset laptop --dataset toy --image-size 32 --output-dir {tmp_path}".split()
    args = baselines.parse_options(["--model", "oasis", *words])
    data = open_dataset("toy", None, "train", (32, 32), instances=False)
    G, D, *_ = baselines.build_networks(args, data, None, tmp_path, setup_ranks("cpu"))
    assert [sum(p.numel() for p in net.parameters()) < 2e6 for net in (G, D)] == [True, True]


@pytest.mark.parametrize("arguments, message", [
    ("dp-sims --lambda-patch 1", "--lambda-patch 1.0 needs --discriminator dpgan"),
    ("dp-sims --lambda-lm 1", "--lambda-lm 1.0 needs --discriminator oasis or dpgan"),
    ("dpgan --matched none", "--lambda-fm 1.0 needs .*--matched other than none"),
    ("dp-sims --generator oasis --batch-size 1 --diversity-every 1 --image-size 32", "batch norm would see a single"),
    ("dpgan --batch-size 1 --image-size 32", "the deepest batch norm would see a single value"),
    ("dpgan --lambda-c 1", "--lambda-c 1.0 needs --discriminator dp-sims or oasis"),
    ("dp-sims --backbone timm:nothing --backbone-weights self", "timm:nothing: .*see timm.list_models"),
])
def test_bad_rows_get_one_line(tmp_path, arguments, message):
    words = ["-m", "baselines.train", *TINY, "--output-dir", str(tmp_path), "--model", *arguments.split()]
    with pytest.raises(InputError, match=message):
        train.train(*parse(words))


# ------------------------------------------------------------------------------------------------- backbones

def test_timm_backbones_bring_their_own_mean_and_a_file_of_weights(tmp_path):
    model, file = pytest.importorskip("timm").create_model("tf_efficientnet_lite1"), tmp_path / "lite1.pth"
    torch.save(model.state_dict(), file)
    D = Discriminator(5, "timm:tf_efficientnet_lite1", str(file), (8, 8, 8, 8, 8), 8)
    assert D.backbone.channels == (24, 40, 112, 320) and D.backbone.mean.flatten().tolist() == [0.5] * 3
    assert torch.equal(D.backbone.whole.state_dict()["conv_stem.weight"], model.conv_stem.weight)
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    D.train()(image).sum().backward()
    assert image.grad.abs().sum() > 0 and not any(m.training for m in D.backbone.modules())
    with pytest.raises(ValueError, match="does not take pictures of any size"):
        Discriminator(5, "timm:vit_tiny_patch16_224", "random")


def test_timm_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm:resnet10t needs another package: pip install timm"):
        train.train(*of_row("table6-dp-sims", "--backbone", "timm:resnet10t", "--output-dir", tmp_path))


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet10t", "timm:swin_tiny_patch4_window7_224"])
def test_the_backbone_is_pretrained_once_and_its_file_serves_another_run(name, tmp_path, monkeypatch):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    monkeypatch.setattr(train, "PRETRAIN_BATCH", 4)
    for steps in (2, 10 ** 9):  # the second time it is there already
        monkeypatch.setattr(train, "PRETRAIN_STEPS", steps)
        train.train(*of_row("table6-dp-sims", "--backbone", name, "--backbone-weights", "self", "--steps", 1,
                            "--output-dir", tmp_path / "run"))
    file, = (tmp_path / "run").glob("backbone_*.pt")
    train.train(*of_row("table6-dp-sims", "--backbone", name, "--backbone-weights", file, "--steps", 1,
                        "--output-dir", tmp_path / "other"))
    learnt = load(file)
    backbone, start = (Discriminator(5, name, weights).backbone.state_dict() for weights in (str(file), "random"))
    first = next(k for k in backbone if k.endswith(("conv1.weight", "conv1.0.weight", "embed.proj.weight"))
                 or "stages.0.0.0" in k)
    assert any(torch.equal(backbone[first], t) for t in learnt.values()), "the file's weights"
    assert not torch.equal(backbone[first], start[first]), "and not those of the start"


# ------------------------------------------------------------------------------------------------- compare

def test_compare_trains_and_scores_rows_side_by_side_and_goes_on(tmp_path, monkeypatch):
    """A GAN and two rows of IIDM, one seed; then one seed more, for which only the new runs are made."""
    made, out = [], tmp_path / "out"
    evaluate_any = functools.partial(evaluate.main, generators=baselines.GENERATORS)
    mains = {"evaluate.py": evaluate.main, "baselines.evaluate": evaluate_any,
             "baselines.iidm.sample": iidm_sample.main, "baselines.iidm.scores": iidm_scores.main,
             "baselines.iidm.train": lambda argv: iidm_train.train(iidm_train.parse_options(argv))}

    def call_here(words, log):
        made.append(words)
        script, argv = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
        mains[script](argv) if script in mains else train.train(*parse(words))
    for module, name, value in ((train, "PRETRAIN_BATCH", 4), (train, "PRETRAIN_STEPS", 2), (iidm_sample, "START", 2),
                                (iidm_train, "TOY_NETWORKS", IIDM_TINY), (iidm_train, "STRIP_DDIM_STEPS", 2),
                                (segmentation, "SAMPLES", 8), (compare, "call", call_here)):
        monkeypatch.setattr(module, name, value)
    rows = "table9-oasis", "iidm-table2-i2i", "iidm-table2-me"
    words = ["--rows", ",".join(rows), *f"--output-dir {out} --steps 7 --samples 2".split(), "--options",
             "--image-size 32 --workers 0", "--evaluate-options", "--count 3 --segmenter-steps 2", "--seeds"]
    # For each seed two trainings, IIDM's for both of its rows, and 1 + 3 + 3 commands that score.
    for seeds, commands in (("0", 9), ("0,1", 18), ("0,1", 18)):  # the same command again runs nothing
        compare.main(compare.parse_options([*words, seeds]))
        assert len(made) == commands
    other_steps = compare.parse_options([*words, "0", "--steps", "14"])
    assert [compare.scored(other_steps, row, 0) for row in rows] == [None] * 3, "scores of 7 steps are none of 14"
    drawn = [" ".join(words) for words in made if "baselines.iidm.sample" in words]
    assert ["--rounds 1" in words for words in drawn] == ["iidm-table2-i2i/seed" in words for words in drawn]
    assert "iidm-table2-me/seed1" in drawn[-1] and f"--ensemble {out}/iidm/seed1/ema_0000006.pt" in drawn[-1]
    found, (head, _, *of_rows) = (json.loads((out / "comparison.json").read_text())["rows"],
                                  (out / "comparison.md").read_text().splitlines())
    assert {row: len(of_seeds) for row, of_seeds in found.items()} == dict.fromkeys(rows, 2)
    assert head.startswith("| row | mIoU | of real | pixel accuracy | diversity | distance | S | S to others | T | ")
    one, other = (scores["mIoU"] for scores in found["table9-oasis"])
    assert of_rows[0].startswith(f"| table9-oasis | {(one + other) / 2:.3f} +- {abs(one - other) / 2 ** 0.5:.3f} |")
    assert [line.count("| - ") for line in of_rows[:3]] == [3, 1, 1], "no S and T of a GAN, no diversity of IIDM"
    assert of_rows[4] == "T without its term 0.2 A, and with the tiny distance for FID: not the paper's"
    width, height = Image.open(out / "comparison.png").size
    assert width == 3 * (4 * 32 + 4) - 4 and height - 6 * (4 * 32 + 16) in (16, 32, 48), "and lines of a legend"


@pytest.mark.parametrize("steps", [7, 15, 500, 7000])
def test_the_second_checkpoint_of_the_ensemble_is_one_that_the_training_keeps(steps):
    args = compare.parse_options(["--rows", "iidm-table2-me", "--steps", str(steps)])
    training, (drawing, *_) = compare.commands_of(args, "iidm-table2-me", 0)
    every, first = (int(training[training.index(flag) + 1]) for flag in ("--ema-every", "--autoencoder-steps"))
    second = int(re.search(r"ema_(\d+)", drawing[drawing.index("--ensemble") + 1]).group(1))
    assert second % every == 0 and first < second < steps


@pytest.mark.filterwarnings("ignore:'tables.compare' found in sys.modules")
def test_compare_says_what_failed_and_where(tmp_path, monkeypatch, capsys):
    compare.call(["-c", "print('fine')"], tmp_path / "log")
    assert (tmp_path / "log").read_text() == "fine\n"
    with pytest.raises(InputError, match="ended with exit code 3: a reason .all of it in"):
        compare.call(["-c", "import sys; print('a reason'); sys.exit(3)"], tmp_path / "log")
    assert call(monkeypatch, "tables.compare", "--rows", "iidm-table2-me", "--steps", 6) == 2
    assert "--steps 6: IIDM's rows need 7 or more" in capsys.readouterr().err
