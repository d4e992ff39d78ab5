"""Every row of the papers' tables: it trains, resumes, samples and scores, and what it leaves out is really absent.

    python -m pytest tests/test_rows.py
"""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from PIL import Image

import compare
import evaluate
import train
from baselines import dpgan, oasis
from data import InputError
from discriminator import CONDITIONINGS, MIXING_WIDTHS, Discriminator, condition_features
from generator import CrossAttention, Generator, SelfAttention
from sample import generate, load_generator

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--dataset", "toy", "--image-size", "32", "--batch-size", "2", "--log-every", "1", "--workers", "0",
        "--picture-every", "0", "--backbone-weights", "random"]


class TinyFeatures(nn.Module):
    """Three features of a picture instead of Inception's."""
    width = 3

    def forward(self, pictures):
        return pictures.float().mean(dim=(2, 3))


def options_of(row, *more):
    if "timm:" in str(train.ROWS[row].get("backbone")):
        pytest.importorskip("timm")
    return train.parse_options([*TINY, "--row", row, *map(str, more)])


def networks_of(row, tmp_path):
    """G, D, P of a row as train.py builds them, and its options."""
    args = options_of(row, "--steps", 1, "--output-dir", tmp_path / "run")
    device, rank, world = train.setup_distributed("cpu")
    dataset, _, run, p = train.open_run(args, rank, world)
    G, D, P, _ = train.build_networks(args, dataset, p, run, device, rank, world, lambda *_, **__: None)
    return G, D, P, args


def different_rows():
    """One row for each set of options: some tables have the full model, too."""
    sets = {}
    for row in train.ROWS:
        args = vars(train.parse_options(["--dataset", "toy", "--row", row]))
        sets.setdefault(repr([(name, args[name]) for name in sorted(args) if name not in ("row", "output_dir")]), row)
    return list(sets.values())


@pytest.mark.parametrize("row", different_rows())
def test_every_row_trains_resumes_samples_and_scores(row, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    train.train(options_of(row, "--steps", 1, "--output-dir", run))
    train.train(options_of(row, "--steps", 2, "--output-dir", run))
    assert "resumed at step 1" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(torch.tensor(line[name]).isfinite() for line in lines for name in line)
    G, checkpoint = load_generator(run / "ema_0000002.pt")
    offsets = torch.zeros(1, 2, 32, 32) if checkpoint["generator"]["offset_channels"] else None
    assert generate(G, torch.zeros(1, 32, 32, dtype=torch.int64), offsets, torch.zeros(1, G.z_dim), "cpu").shape == (1, 32, 32, 3)
    monkeypatch.setattr(evaluate, "load_inception", lambda *_: (TinyFeatures(), "tiny distance", "tiny", "tiny"))
    scores = evaluate.evaluate(evaluate.parse_options(["--checkpoint", str(run / "ema_0000002.pt"), "--metrics", "fid",
                                                       "--count", "3", "--device", "cpu"]))
    assert scores["fid"]["value"] > 0


@pytest.mark.parametrize("row", ["dpgan-table4a-dpgan-dpgan", "table5-bn-ccm-csm"])
def test_4_steps_equal_2_plus_2_bit_for_bit(row, tmp_path):
    train.train(options_of(row, "--steps", 4, "--output-dir", tmp_path / "a"))
    train.train(options_of(row, "--steps", 2, "--output-dir", tmp_path / "b"))
    train.train(options_of(row, "--steps", 4, "--output-dir", tmp_path / "b"))
    a, b = (torch.load(tmp_path / run / "latest.pt", weights_only=True) for run in "ab")
    for name in ("G", "D", "ema"):
        assert all(torch.equal(t, b[name][key]) for key, t in a[name].items()), name


# ------------------------------------------------------------------------- what is left out is really absent

def has(net, kind):
    return any(isinstance(m, kind) for m in net.modules())


def test_table_5_conditioning_is_what_its_row_says(tmp_path):
    """In the graph: what the decoder gets, against the row's formula written out."""
    features = None
    for row, sigmoid, norm, mixing in (("table6-dp-sims", True, True, False), ("table5-none", False, False, False),
                                       ("table5-ccm-csm", False, False, True), ("table5-bn-ccm-csm", False, True, True),
                                       ("table5-no-sigmoid", False, True, False), ("table5-no-bn", True, False, False)):
        _, D, _, args = networks_of(row, tmp_path)
        assert has(D.norms, nn.BatchNorm2d) == norm and (D.mixing is not None) == mixing, row
        seen = []
        D.decoder[0].register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        image = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        features = D.backbone(image)
        with torch.no_grad():
            D(image)
            expected = [torch.sigmoid(f) if sigmoid else f for f in features]
            if norm:
                expected = [(f - f.mean((0, 2, 3), keepdim=True)) / (f.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
                            for f in expected]
            if mixing:
                expected = D.mixing(expected)
                assert [f.shape[1] for f in expected] == list(MIXING_WIDTHS)
        lowest = nn.functional.interpolate(expected[3], scale_factor=2)
        torch.testing.assert_close(seen[0], torch.cat([lowest, expected[2]], dim=1), rtol=1e-3, atol=1e-4, msg=row)


def test_projected_gans_mixing_is_random_frozen_and_crosses_channels_and_scales():
    torch.manual_seed(0)
    D = Discriminator(5, "resnet18", "random", (8, 8, 8, 8, 8), 8, conditioning="ccm-csm")
    assert not any(p.requires_grad for p in D.mixing.parameters()) and any(p.abs().sum() > 0 for p in D.mixing.parameters())
    features = [torch.randn(1, c, n, n, requires_grad=True) for c, n in zip((64, 128, 256, 512), (8, 4, 2, 1))]
    mixed = D.mixing(features)
    mixed[0].sum().backward()
    assert all(f.grad.abs().sum() > 0 for f in features), "the finest scale has seen all scales"
    # by hand at the second-lowest scale: ccm(F_3) + csm(ccm(F_4) enlarged); F_4 is one pixel
    lower = D.mixing.across_channels[3](features[3]).expand(-1, -1, 2, 2)
    torch.testing.assert_close(mixed[2], D.mixing.across_channels[2](features[2]) + D.mixing.across_scales[2](lower))


def test_table_6_generator_rows(tmp_path):
    G = networks_of("table6-dp-sims", tmp_path)[0]
    assert has(G, SelfAttention) and has(G, CrossAttention)
    G = networks_of("table6-no-self-attention", tmp_path)[0]
    assert not has(G, SelfAttention) and has(G, CrossAttention)
    G = networks_of("table6-no-cross-attention", tmp_path)[0]
    assert has(G, SelfAttention) and not has(G, CrossAttention) and G.noise_mapping is None
    z = torch.zeros(1, G.z_dim)  # "the usual concatenation": z is at every pixel of what both pyramids read
    seen = []
    for conv in (G.label_pyramid.stem[0], G.first):
        conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -G.z_dim:]))
    G(torch.zeros(1, 32, 32, dtype=torch.int64), z + torch.arange(G.z_dim), torch.zeros(1, 2, 32, 32))
    assert all(torch.equal(x, torch.arange(G.z_dim).view(1, -1, 1, 1).expand_as(x).float()) for x in seen) and len(seen) == 2


def test_table_6_swaps_and_baselines_have_the_networks_they_name(tmp_path):
    for row, G_kind, D_kind in (("table6-oasis-discriminator", Generator, oasis.Discriminator),
                                ("table6-oasis-generator", oasis.Generator, Discriminator),
                                ("table9-oasis", oasis.Generator, oasis.Discriminator),
                                ("dpgan-table4a-oasis-oasis", oasis.Generator, oasis.Discriminator),
                                ("dpgan-table4a-oasis-dpgan", oasis.Generator, dpgan.Discriminator),
                                ("dpgan-table4a-dpgan-oasis", dpgan.Generator, oasis.Discriminator),
                                ("dpgan-table4a-dpgan-dpgan", dpgan.Generator, dpgan.Discriminator)):
        G, D, P, args = networks_of(row, tmp_path)
        assert type(G) is G_kind and type(D) is D_kind, row
        assert (P is None) == (not row.startswith("table6")), f"{row}: no VGG where there is no contrastive loss"
        assert (args.offsets, args.sampling) == (("on", "rare-class") if row.startswith("table6") else ("off", "uniform"))


def test_table_6_without_contrastive_loss_has_no_vgg(tmp_path):
    assert networks_of("table6-no-contrastive", tmp_path)[2] is None


def test_dpgan_rows_have_the_heads_and_weights_they_name(tmp_path):
    for row, heads, weights in (("dpgan-table4b-none", 0, (5, 0, 1)), ("dpgan-table4b-decoder", 2, (5, 1, 1)),
                                ("dpgan-table4b-both", 4, (5, 1, 1)), ("dpgan-table4b-encoder", 2, (5, 1, 1)),
                                ("dpgan-table4c-none", 2, (5, 1, 0)), ("dpgan-supplement3-no-labelmix", 2, (0, 1, 1))):
        _, D, _, args = networks_of(row, tmp_path)
        assert len(D.heads) == heads and (args.lambda_lm, args.lambda_patch, args.lambda_fm) == weights, row
    G = networks_of("dpgan-supplement3-no-concatenation", tmp_path)[0]
    assert not G.concatenate_last and G.blocks[0].spade_0.to_gamma_beta.in_channels == 16


@pytest.mark.parametrize("row, names", [
    ("table6-dp-sims", {"gan", "contrastive", "diversity"}), ("no-diversity", {"gan", "contrastive"}),
    ("table6-no-contrastive", {"gan", "diversity"}), ("table9-oasis", {"gan"}),
    ("dpgan-table4a-dpgan-dpgan", {"gan", "patch", "feature_matching"}), ("dpgan-table4c-none", {"gan", "patch"})])
def test_only_the_losses_of_the_row_reach_the_generator(row, names, tmp_path):
    train.train(options_of(row, "--steps", 1, "--output-dir", tmp_path / "run"))
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert {name[2:] for name in line if name.startswith("G_") and name != "G_gradient" and line[name] != 0} == names


def test_table_8_weights_and_exponents():
    for row, gamma, weights in (("table8-weighted-ce", 0, "balanced"), ("table8-focal", 2, "none"),
                                ("table8-weighted-focal", 2, "balanced")):
        args = train.parse_options(["--row", row])
        assert (args.gamma, args.class_weights) == (gamma, weights)
    assert train.equal_weights(torch.tensor([5, 0, 7]), unknown=2).tolist() == [1, 1, 0]


def test_dpgan_eq9_is_the_sum_that_the_discriminator_minimises(tmp_path, monkeypatch):
    """L_pixel + L_ms + lambda_LM L_LM, recomputed from what each function returned in one step."""
    parts = {}

    def recorded(module, name):
        original = getattr(module, name)

        def call(*args):
            parts[name] = original(*args)
            return parts[name]
        monkeypatch.setattr(module, name, call)
    recorded(train, "discriminator_loss"), recorded(dpgan, "patch_discriminator_loss"), recorded(oasis, "label_mix_loss")
    recorded(train, "generator_loss"), recorded(dpgan, "patch_generator_loss"), recorded(dpgan, "feature_matching_loss")
    train.train(options_of("dpgan-table4a-dpgan-dpgan", "--steps", 1, "--output-dir", tmp_path / "run"))
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    value = {name: part.item() for name, part in parts.items()}
    expected = (value["discriminator_loss"] / (32 * 32) + value["patch_discriminator_loss"] + 5 * value["label_mix_loss"])
    assert line["D"] == pytest.approx(expected, rel=1e-5)
    assert line["G_gan"] + line["G_patch"] + line["G_feature_matching"] == pytest.approx(
        value["generator_loss"] / (32 * 32) + value["patch_generator_loss"] + value["feature_matching_loss"], rel=1e-5)


def test_the_command_line_beats_the_row_and_the_row_the_model():
    args = train.parse_options(["--row", "dpgan-table4a-oasis-dpgan", "--lambda-lm", "7"])
    assert (args.model, args.generator, args.discriminator, args.lambda_lm) == ("dpgan", "oasis", "dpgan", 7)
    args = train.parse_options(["--dataset", "cityscapes", "--data-path", "x", "--model", "oasis"])
    assert (args.batch_size, args.lr, args.lr_d, args.beta2, args.lambda_lm, args.image_size) == (20, 4e-4, 4e-4, 0.999, 5, (256, 512))
    args = train.parse_options(["--dataset", "ade20k", "--data-path", "x", "--model", "dpgan"])
    assert (args.batch_size, args.lr, args.lr_d, args.beta2, args.steps) == (32, 1e-4, 4e-4, 0.999, 126_000)


@pytest.mark.parametrize("arguments, message", [
    (["--row", "table5"], "--row table5 is unknown; choose from table2-swin-b"),
    (["--model", "spade"], "--model spade is unknown"),
    (["--lambda-patch", "1"], "--lambda-patch 1.0 needs --discriminator dpgan"),
    (["--model", "dpgan", "--matched", "none"], "--lambda-fm 1.0 needs .*--matched other than none"),
    (["--backbone", "vgg16"], "--backbone vgg16 is unknown"),
    (["--backbone", "timm:nothing"], "timm:nothing: .*see timm.list_models"),
])
def test_bad_rows_get_one_line(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        train.train(train.parse_options(["--dataset", "toy", "--steps", "1", "--workers", "0", "--output-dir",
                                         str(tmp_path / "run"), *arguments]))


def test_a_run_of_another_row_is_not_resumed(tmp_path):
    train.train(options_of("table5-none", "--steps", 1, "--output-dir", tmp_path / "run"))
    with pytest.raises(InputError, match="was trained with conditioning none, this command has sigmoid"):
        train.train(options_of("table5-no-bn", "--steps", 2, "--output-dir", tmp_path / "run"))


def test_timm_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm:resnet10t needs another package: pip install timm"):
        train.train(train.parse_options([*TINY, "--backbone", "timm:resnet10t", "--steps", "1", "--output-dir", str(tmp_path)]))


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


def test_conditioning_alone_needs_no_network():
    f = torch.randn(2, 3, 4, 4)
    assert torch.equal(condition_features(f, nn.Identity(), sigmoid=False), f) and len(CONDITIONINGS) == 6


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet10t"])
def test_the_backbone_is_pretrained_by_one_command(name, tmp_path, monkeypatch, capsys):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    file = tmp_path / "backbone.pt"
    for steps in (2, 10 ** 9):  # the second time it is there already
        monkeypatch.setattr(train, "PRETRAIN_STEPS", steps)
        train.train(train.parse_options(["--dataset", "toy", "--image-size", "32", "--workers", "0", "--backbone", name,
                                         "--output-dir", str(tmp_path / "run"), "--pretrain-backbone", str(file)]))
        assert f"backbone:   {file}" in capsys.readouterr().out and not list((tmp_path / "run").glob("*.pt"))
    args = train.parse_options([*TINY, "--backbone", name, "--backbone-weights", str(file), "--steps", "1", "--output-dir",
                                str(tmp_path / "b")])
    train.train(args)
    backbone = Discriminator(5, name, str(file)).backbone.state_dict()
    learnt, start = torch.load(file, weights_only=True), Discriminator(5, name, "random").backbone.state_dict()
    first = next(key for key in backbone if key.endswith("conv1.weight") or key.endswith("conv1.0.weight") or "stages.0.0.0" in key)
    assert any(torch.equal(backbone[first], t) for t in learnt.values()), "the file's weights"
    assert not torch.equal(backbone[first], start[first]), "and not those of the start"


def test_compare_writes_a_table_and_a_picture_and_goes_on(tmp_path, monkeypatch):
    """Two rows, one seed, one step; then one seed more, for which only the new runs are made. Commands run in here."""
    made = []

    def call(command, log, slot, jobs):
        script, arguments = Path(command[0]).stem, command[1:]
        made.append(script)
        if script == "train":
            train.train(train.parse_options(arguments))
        else:
            evaluate.evaluate(evaluate.parse_options(arguments))
    monkeypatch.setattr(compare, "call", call)
    monkeypatch.setattr(evaluate, "load_inception", lambda *_: (TinyFeatures(), "tiny distance", "tiny", "tiny"))
    arguments = ["--rows", "table3-random,table9-oasis", "--steps", "1", "--batch-size", "2", "--options",
                 "--image-size 32 --workers 0", "--evaluate-options", "--count 3 --segmenter-steps 2 --device cpu",
                 "--samples", "2", "--jobs", "1", "--output-dir", str(tmp_path / "out")]
    monkeypatch.setattr(train, "PRETRAIN_STEPS", 2)
    monkeypatch.setattr(train.signal, "signal", lambda *_: None)  # the runs are threads here
    compare.main(compare.parse_options([*arguments, "--seeds", "0"]))
    assert sorted(made) == ["evaluate", "evaluate", "train", "train", "train"], "a backbone and two runs"
    compare.main(compare.parse_options([*arguments, "--seeds", "0,1"]))
    assert len(made) == 9
    compare.main(compare.parse_options([*arguments, "--seeds", "0,1"]))
    assert len(made) == 9, "the same command again runs nothing"
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert {row: len(of_seeds) for row, of_seeds in found["rows"].items()} == {"table3-random": 2, "table9-oasis": 2}
    table = (tmp_path / "out/comparison.md").read_text()
    of_seeds = [scores["mIoU"] for scores in found["rows"]["table9-oasis"]]
    mean, spread = sum(of_seeds) / 2, abs(of_seeds[0] - of_seeds[1]) / 2 ** 0.5
    assert f"| table9-oasis | {mean:.3f} +- {spread:.3f} |" in table
    assert Image.open(tmp_path / "out/comparison.png").size == (3 * (4 * 32 + 4) - 4, 4 * (4 * 32 + 16))


def test_compare_says_what_failed_and_where(tmp_path):
    compare.call(["-c", "print('fine')"], tmp_path / "log", 0, 1)
    assert (tmp_path / "log").read_text() == "fine\n"
    with pytest.raises(InputError, match="ended with exit code 3: a reason .all of it in"):
        compare.call(["-c", "import sys; print('a reason'); sys.exit(3)"], tmp_path / "log", 0, 1)
    result = subprocess.run([sys.executable, str(ROOT / "compare.py"), "--rows", "table99"], capture_output=True, text=True)
    assert result.returncode == 2 and "--rows table99 is unknown" in result.stderr and "Traceback" not in result.stderr
