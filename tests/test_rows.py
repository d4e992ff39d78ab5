"""Every row of the papers' tables trains, resumes, is sampled and scored, and what it leaves out is really absent.

    python -m pytest tests/test_rows.py
"""
import functools
import json
import sys

import pytest
import torch
import torch.nn as nn
from PIL import Image

import discriminator
import evaluate
import losses
import train
from baselines import dpgan, oasis
from baselines import train as baselines
from data import open_dataset
from discriminator import MIXING_WIDTHS, Discriminator
from generator import CrossAttention, Generator, SelfAttention
from metrics import fid, segmentation
from sample import GENERATORS, generate, load_generator
from support.errors import InputError
from support.ranks import setup_ranks
from tables import compare
from tables.rows import ROWS
from test_evaluate import tiny_inception
from test_train import call, lines, same_run, small  # noqa: F401

TINY = ("--dataset toy --backbone-weights random --image-size 32 --batch-size 2 --diversity-every 2 --workers 0 "
        "--device cpu --log-every 1 --picture-every 0").split()


@pytest.fixture(scope="module", autouse=True)
def built_once(small):
    """A frozen backbone that two runs have in common is drawn once, and a strip has two rows."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((discriminator, "load_torchvision"), (discriminator, "load_timm"), (losses, "load_vgg19")):
            patch.setattr(module, name, functools.lru_cache(2)(getattr(module, name)))
        patch.setattr(train, "STRIP_ROWS", 2)
        yield


def parse(words):
    """The words of a training command -> what `train` takes."""
    if words[:1] == ["train.py"]:
        return train.parse_options(words[1:]), train.DP_SIMS
    assert words[:2] == ["-m", "baselines.train"]
    args = baselines.parse_options(words[2:])
    return args, baselines.system_of(args)


def command(row, *more):
    if "timm:" in ROWS[row].options:
        pytest.importorskip("timm")
    return parse([*ROWS[row].command().split(), *TINY, *map(str, more)])


def networks_of(row, folder):
    """G, D, P of a row, and its options."""
    args, system = command(row)
    dataset = open_dataset("toy", None, "train", args.image_size, instances=args.offsets == "on")
    return (*system.build_networks(args, dataset, None, folder, setup_ranks("cpu"))[:3], args)


def different_rows():
    """One row for each set of options at this size: some tables repeat the full model."""
    sets = {}
    for row in ROWS:
        args = vars(parse([*ROWS[row].command().split(), *TINY])[0])
        sets.setdefault(repr([(name, args[name]) for name in sorted(args) if name not in ("model", "output_dir")]), row)
    return list(sets.values())


# The losses that each row has, of its paper's.
LOSSES = {"dp-sims": ({"gan", "contrastive", "diversity"}, {"pixels"}),
          "dpgan": ({"gan", "patch", "feature_matching"}, {"pixels", "patch", "label_mix"})}
LEFT_OUT = {"table6-no-contrastive": {"contrastive"}, "no-diversity": {"diversity"}, "dpgan-table4b-none": {"patch"},
            "table9-oasis": {"contrastive", "diversity"}, "dpgan-table4a-dpgan-oasis": {"patch", "feature_matching"},
            "dpgan-table4c-none": {"feature_matching"}, "dpgan-supplement3-no-labelmix": {"label_mix"}}


@pytest.mark.parametrize("row", different_rows())
def test_every_row_trains_resumes_samples_and_scores(row, tmp_path, monkeypatch, capsys):
    for steps in (1, 2):
        train.train(*command(row, "--steps", steps, "--output-dir", tmp_path))
    assert "resumed at step 1" in capsys.readouterr().out
    log, file = lines(tmp_path), tmp_path / "ema_0000002.pt"
    assert [line["step"] for line in log] == [1, 2]
    assert all(torch.tensor(line[name]).isfinite() for line in log for name in line)
    of_G, of_D = LOSSES["dpgan" if row.startswith("dpgan") else "dp-sims"]
    of_D = of_D | ({"label_mix"} if row == "table9-oasis" else set())
    for net, terms in (("G", of_G), ("D", of_D)):  # a loss of weight 0 is not computed, and so not logged
        found = {name[2:] for name in log[0] if name.startswith(f"{net}_")}
        assert found - {"gradient", "accuracy_real", "accuracy_fake"} == terms - LEFT_OUT.get(row, set()), net
    G, checkpoint = load_generator(file, generators={**GENERATORS, **baselines.GENERATORS})
    offsets = torch.zeros(1, 2, 32, 32) if checkpoint["generator"]["offset_channels"] else None
    picture = generate(G, torch.zeros(1, 32, 32, dtype=torch.int64), offsets, torch.zeros(1, G.z_dim), "cpu")
    assert picture.shape == (1, 32, 32, 3)
    monkeypatch.setattr(fid, "load_inception", tiny_inception)
    options = ["--checkpoint", str(file), "--metrics", "fid", "--count", "3", "--device", "cpu"]
    scores = evaluate.evaluate(evaluate.parse_options(options), {**GENERATORS, **baselines.GENERATORS})
    assert scores["fid"]["value"] > 0


@pytest.mark.parametrize("row", ["dpgan-table4a-dpgan-dpgan", "table5-bn-ccm-csm"])
def test_2_steps_of_a_row_equal_1_plus_1_bit_for_bit(row, tmp_path):
    for folder, steps in (("a", 2), ("b", 1), ("b", 2)):
        train.train(*command(row, "--steps", steps, "--output-dir", tmp_path / folder))
    same_run(tmp_path / "a", tmp_path / "b")


# ------------------------------------------------------------------------- what is left out is really absent

def has(net, kind):
    return any(isinstance(m, kind) for m in net.modules())


@pytest.mark.parametrize("row, sigmoid, norm, mixing", [
    ("table6-dp-sims", True, True, False), ("table5-none", False, False, False), ("table5-ccm-csm", False, False, True),
    ("table5-bn-ccm-csm", False, True, True), ("table5-no-sigmoid", False, True, False),
    ("table5-no-bn", True, False, False)])
def test_table_5_conditioning_is_what_its_row_says(row, sigmoid, norm, mixing, tmp_path):
    """In the graph: what the decoder gets, against the row's formula written out."""
    D = networks_of(row, tmp_path)[1]
    assert has(D.norms, nn.BatchNorm2d) == norm and (D.mixing is not None) == mixing
    seen = []
    D.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        D(image)
        expected = [torch.sigmoid(f) if sigmoid else f for f in D.features(image)]
        if norm:
            expected = [f - f.mean((0, 2, 3), keepdim=True) for f in expected]
            expected = [f / (f.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt() for f in expected]
        if mixing:
            expected = D.mixing(expected)
            assert [f.shape[1] for f in expected] == list(MIXING_WIDTHS)
    lowest = nn.functional.interpolate(expected[3], scale_factor=2)
    torch.testing.assert_close(seen[0], torch.cat([lowest, expected[2]], dim=1), rtol=1e-3, atol=1e-4)


def test_projected_gans_mixing_is_random_frozen_and_crosses_channels_and_scales():
    torch.manual_seed(0)
    D = Discriminator(5, "resnet18", "random", (8, 8, 8, 8, 8), 8, conditioning="ccm-csm")
    weights = list(D.mixing.parameters())
    assert not any(p.requires_grad for p in weights) and any(p.abs().sum() > 0 for p in weights)
    features = [torch.randn(1, c, n, n, requires_grad=True) for c, n in zip((64, 128, 256, 512), (8, 4, 2, 1))]
    mixed = D.mixing(features)
    mixed[0].sum().backward()
    assert all(f.grad.abs().sum() > 0 for f in features), "the finest scale has seen all scales"
    # by hand at the second-lowest scale: ccm(F_3) + csm(ccm(F_4) enlarged); F_4 is one pixel
    lower = D.mixing.across_channels[3](features[3]).expand(-1, -1, 2, 2)
    torch.testing.assert_close(mixed[2], D.mixing.across_channels[2](features[2]) + D.mixing.across_scales[2](lower))


@pytest.mark.parametrize("row, G_kind, D_kind, has_P, kinds", [
    ("table6-dp-sims", Generator, Discriminator, True, {SelfAttention, CrossAttention}),
    ("table6-no-self-attention", Generator, Discriminator, True, {CrossAttention}),
    ("table6-no-cross-attention", Generator, Discriminator, True, {SelfAttention}),
    ("table6-no-contrastive", Generator, Discriminator, False, {SelfAttention, CrossAttention}),
    ("table6-oasis-discriminator", Generator, oasis.Discriminator, True, {SelfAttention, CrossAttention}),
    ("table6-oasis-generator", oasis.Generator, Discriminator, True, set()),
    ("table9-oasis", oasis.Generator, oasis.Discriminator, False, set()),
    ("dpgan-table4a-oasis-oasis", oasis.Generator, oasis.Discriminator, False, set()),
    ("dpgan-table4a-oasis-dpgan", oasis.Generator, dpgan.Discriminator, False, set()),
    ("dpgan-table4a-dpgan-oasis", dpgan.Generator, oasis.Discriminator, False, set()),
    ("dpgan-table4a-dpgan-dpgan", dpgan.Generator, dpgan.Discriminator, False, set())])
def test_rows_have_the_networks_they_name(row, G_kind, D_kind, has_P, kinds, tmp_path):
    G, D, P, args = networks_of(row, tmp_path)
    assert type(G) is G_kind and type(D) is D_kind
    assert (P is not None) == has_P, "no VGG where there is no contrastive loss"
    assert {kind for kind in (SelfAttention, CrossAttention) if has(G, kind)} == kinds
    assert (args.offsets, args.sampling) == (("on", "rare-class") if row.startswith("table6") else ("off", "uniform"))


def test_table_6_concatenated_noise_is_at_every_pixel_that_both_pyramids_read(tmp_path):
    G, seen = networks_of("table6-no-cross-attention", tmp_path)[0], []
    assert G.noise_mapping is None
    for conv in (G.label_pyramid.stem[0], G.first):
        conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -G.z_dim:]))
    z = torch.arange(G.z_dim).float()
    G(torch.zeros(1, 32, 32, dtype=torch.int64), z[None], torch.zeros(1, 2, 32, 32))
    assert len(seen) == 2 and all(torch.equal(x, z.view(1, -1, 1, 1).expand_as(x)) for x in seen)


@pytest.mark.parametrize("row, heads, weights", [
    ("dpgan-table4b-none", 0, (5, 0, 1)), ("dpgan-table4b-decoder", 2, (5, 1, 1)), ("dpgan-table4b-both", 4, (5, 1, 1)),
    ("dpgan-table4b-encoder", 2, (5, 1, 1)), ("dpgan-table4c-none", 2, (5, 1, 0)),
    ("dpgan-supplement3-no-labelmix", 2, (0, 1, 1)), ("dpgan-supplement3-no-concatenation", 2, (5, 1, 1))])
def test_dpgan_rows_have_the_heads_and_weights_they_name(row, heads, weights, tmp_path):
    G, D, _, args = networks_of(row, tmp_path)
    assert len(D.heads) == heads and (args.lambda_lm, args.lambda_patch, args.lambda_fm) == weights
    assert G.concatenate_last == (row != "dpgan-supplement3-no-concatenation")
    assert G.blocks[0].spade_0.to_gamma_beta.in_channels == (32 if G.concatenate_last else 16)


def test_table_8_weights_and_exponents():
    for row, gamma, weights in (("table8-weighted-ce", 0, "balanced"), ("table8-focal", 2, "none"),
                                ("table8-weighted-focal", 2, "balanced")):
        args = command(row)[0]
        assert (args.gamma, args.class_weights) == (gamma, weights)
    assert losses.equal_weights(torch.tensor([5, 0, 7]), unknown=2).tolist() == [1, 1, 0]


# ------------------------------------------------------------------------------------------------- options

def test_the_command_line_beats_the_dataset_and_both_beat_the_model():
    args = command("dpgan-table4a-oasis-dpgan", "--lambda-lm", "7")[0]
    assert (args.model, args.generator, args.discriminator, args.lambda_lm) == ("dpgan", "oasis", "dpgan", 7)
    args = baselines.parse_options("--dataset cityscapes --data-path x --model oasis".split())
    assert (args.batch_size, args.lr, args.lr_d, args.beta2, args.lambda_lm) == (20, 4e-4, 4e-4, 0.999, 5)
    assert args.image_size == (256, 512)
    args = baselines.parse_options("--dataset ade20k --data-path x --model dpgan".split())
    assert (args.batch_size, args.lr, args.lr_d, args.beta2, args.steps) == (32, 1e-4, 4e-4, 0.999, 126_000)


@pytest.mark.parametrize("arguments, message", [
    ("--model spade", "--model spade: choose from dp-sims, oasis, dpgan"),
    ("--model dp-sims --lambda-patch 1", "--lambda-patch 1.0 needs --discriminator dpgan"),
    ("--model dp-sims --lambda-lm 1", "--lambda-lm 1.0 needs --discriminator oasis or dpgan"),
    ("--model dpgan --matched none", "--lambda-fm 1.0 needs .*--matched other than none"),
    ("--model dpgan --lambda-c 1", "--lambda-c and --lambda-d need --discriminator dp-sims or oasis"),
    ("--model dp-sims --backbone timm:nothing --backbone-weights self", "timm:nothing: .*see timm.list_models"),
])
def test_bad_rows_get_one_line(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        train.train(*parse(["-m", "baselines.train", *TINY, "--steps", "1", "--output-dir", str(tmp_path),
                            *arguments.split()]))


def test_a_run_of_another_row_is_not_resumed(tmp_path):
    train.train(*command("table5-none", "--steps", 1, "--output-dir", tmp_path))
    with pytest.raises(InputError, match="was trained with conditioning none, this command has sigmoid"):
        train.train(*command("table5-no-bn", "--steps", 2, "--output-dir", tmp_path))


# ------------------------------------------------------------------------------------------------- backbones

def test_timm_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm:resnet10t needs another package: pip install timm"):
        train.train(*command("table6-dp-sims", "--backbone", "timm:resnet10t", "--output-dir", tmp_path))


def test_timm_backbones_bring_their_own_mean_and_a_file_of_weights(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("tf_efficientnet_lite1")
    torch.save(model.state_dict(), tmp_path / "lite1.pth")
    D = Discriminator(5, "timm:tf_efficientnet_lite1", str(tmp_path / "lite1.pth"), (8, 8, 8, 8, 8), 8)
    assert D.backbone.channels == (24, 40, 112, 320) and D.backbone.mean.flatten().tolist() == [0.5] * 3
    assert torch.equal(D.backbone.whole.state_dict()["conv_stem.weight"], model.conv_stem.weight)
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    D.train()(image).sum().backward()
    assert image.grad.abs().sum() > 0 and not any(m.training for m in D.backbone.modules())
    with pytest.raises(ValueError, match="does not take pictures of any size"):
        Discriminator(5, "timm:vit_tiny_patch16_224", "random")


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet10t"])
def test_the_backbone_is_pretrained_by_one_command(name, tmp_path, monkeypatch, capsys):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    file, options = tmp_path / "backbone.pt", ("--backbone", name, "--output-dir", tmp_path / "run")
    monkeypatch.setattr(train, "PRETRAIN_BATCH", 4)
    for steps in (2, 10 ** 9):  # the second time it is there already
        monkeypatch.setattr(train, "PRETRAIN_STEPS", steps)
        train.train(*command("table6-dp-sims", *options, "--pretrain-backbone", file))
        assert f"backbone:   {file}" in capsys.readouterr().out and not list((tmp_path / "run").glob("*.pt"))
    train.train(*command("table6-dp-sims", *options, "--backbone-weights", file, "--steps", 1))
    backbone = Discriminator(5, name, str(file)).backbone.state_dict()
    learnt, start = torch.load(file, weights_only=True), Discriminator(5, name, "random").backbone.state_dict()
    first = next(k for k in backbone if k.endswith(("conv1.weight", "conv1.0.weight")) or "stages.0.0.0" in k)
    assert any(torch.equal(backbone[first], t) for t in learnt.values()), "the file's weights"
    assert not torch.equal(backbone[first], start[first]), "and not those of the start"


# ------------------------------------------------------------------------------------------------- compare

def test_compare_writes_a_table_and_a_picture_and_goes_on(tmp_path, monkeypatch):
    """Two rows, one seed, one step; then one seed more, for which only the new runs are made. Commands run in here."""
    made, out = [], tmp_path / "out"

    def call_here(command, log, slot, jobs):
        made.append("evaluate" if "baselines.evaluate" in command else "train")
        if made[-1] == "train":
            train.train(*parse(command))
        else:
            evaluate.main(command[2:], {**GENERATORS, **baselines.GENERATORS})
    for module, name, value in ((compare, "call", call_here), (segmentation, "SAMPLES", 8),
                                (train, "PRETRAIN_STEPS", 2), (fid, "load_inception", tiny_inception)):
        monkeypatch.setattr(module, name, value)
    arguments = ["--rows", "table3-random,table9-oasis", "--steps", "1", "--batch-size", "2", "--options",
                 "--image-size 32 --workers 0 --diversity-every 2", "--evaluate-options",
                 "--count 3 --segmenter-steps 2 --device cpu", "--samples", "2", "--jobs", "1", "--output-dir",
                 str(out)]
    for seeds, commands in (("0", 5), ("0,1", 9), ("0,1", 9)):  # the same command again runs nothing
        compare.main(compare.parse_options([*arguments, "--seeds", seeds]))
        assert len(made) == commands
    assert sorted(made[:5]) == ["evaluate", "evaluate", "train", "train", "train"], "a backbone and two runs"
    found = json.loads((out / "comparison.json").read_text())
    assert {row: len(of_seeds) for row, of_seeds in found["rows"].items()} == {"table3-random": 2, "table9-oasis": 2}
    one, other = (scores["mIoU"] for scores in found["rows"]["table9-oasis"])
    row = f"| table9-oasis | {(one + other) / 2:.3f} +- {abs(one - other) / 2 ** 0.5:.3f} |"
    assert row in (out / "comparison.md").read_text()
    assert Image.open(out / "comparison.png").size == (3 * (4 * 32 + 4) - 4, 4 * (4 * 32 + 16))


@pytest.mark.filterwarnings("ignore:'tables.compare' found in sys.modules")
def test_compare_says_what_failed_and_where(tmp_path, monkeypatch, capsys):
    compare.call(["-c", "print('fine')"], tmp_path / "log", 0, 1)
    assert (tmp_path / "log").read_text() == "fine\n"
    with pytest.raises(InputError, match="ended with exit code 3: a reason .all of it in"):
        compare.call(["-c", "import sys; print('a reason'); sys.exit(3)"], tmp_path / "log", 0, 1)
    assert call(monkeypatch, "tables.compare", "--rows", "table99") == 2
    assert "--rows table99 is unknown" in capsys.readouterr().err
