"""evaluate.py: every score against the package or the plain loops that define it; ranks, restarts, bad input.

Oracles: closed forms, scipy, numpy, the packages pytorch-fid and lpips (requirements-test.txt; their tests are skipped
without them), loops over pixels. Pictures are toy scenes of 32x32 and 64x64, the generator is at its random start.
FULL_FID=1 python -m pytest tests/test_evaluate.py -k pytorch_fid -s   compares all 2048 features, slowly.
"""
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

import evaluate
from data import InputError, open_dataset, toy_scene
from generator import Generator, z_of_seed

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


class TinyFeatures(nn.Module):
    """Sixteen features instead of Inception's, where its weights do not matter."""
    width = 16

    def forward(self, pictures):
        kernel = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return nn.functional.conv2d(pictures.float() / 255, kernel, stride=4).relu().mean(dim=(2, 3))


def tiny_inception(weights, device):
    return TinyFeatures().to(device), "tiny distance", "tiny", "tiny 1"


def write_checkpoint(file, seed):
    """An EMA file of the toy classes at 32x32, gates open so that z matters."""
    torch.manual_seed(seed)
    options = dict(num_classes=11, offset_channels=2, widths=(16, 16, 8), stem_channels=4, label_channels=8, z_dim=4,
                   noise_tokens=2, noise_width=4, noise_hidden=8, attention_stride=2)
    G = Generator(**options)
    with torch.no_grad():
        for name, p in G.named_parameters():
            if name.endswith("eta"):
                p.fill_(1.0)
    toy = open_dataset("toy", None, "val", (32, 32))
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"step": 1, "generator": options, "ema": G.state_dict(), "dataset": "toy", "image_size": [32, 32],
                "classes": list(toy.classes), "palette": toy.palette.tolist(), "unknown": None}, file)
    return file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ema") / "ema_0000001.pt", 0)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A state dict of the 2015 Inception, as pytorch-fid reads it, from a random start that tells pictures apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "CALIBRATION_SCENES", 3)
        state = evaluate.random_inception().net.state_dict()
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, file)
    return file


def scenes(folder, first, count, size=64):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        Image.fromarray(toy_scene(7, i, size, size)[0]).save(folder / f"{i:03d}.png")
    return folder


def score(*arguments):
    """evaluate.py in this process."""
    return evaluate.evaluate(evaluate.parse_options(list(map(str, arguments))))


@pytest.fixture(autouse=True)
def keep_torch_settings():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------- Frechet distance

def gaussian(D, rank, seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(D, rank))
    return torch.from_numpy(rng.normal(size=D)), torch.from_numpy(A @ A.T)


def test_frechet_distance_of_diagonal_gaussians_also_singular_ones():
    """Closed form: |mu_1 - mu_2|^2 + sum (sqrt a - sqrt b)^2."""
    a, b = torch.tensor([4.0, 1.0, 0.0, 9.0]).double(), torch.tensor([1.0, 0.0, 0.0, 16.0]).double()
    mean_a, mean_b = torch.tensor([0.0, 1, 2, 3]).double(), torch.tensor([1.0, 1, 0, 3]).double()
    found = evaluate.frechet_distance(mean_a, a.diag(), mean_b, b.diag())
    assert found == pytest.approx(5 + 1 + 1 + 0 + 1, rel=1e-12)


def test_frechet_distance_of_rank_one_gaussians():
    """Closed form for u u^T and v v^T: |u|^2 + |v|^2 - 2 |u . v|."""
    rng = np.random.default_rng(0)
    u, v = torch.from_numpy(rng.normal(size=(2, 300)))
    zero = torch.zeros(300).double()
    found = evaluate.frechet_distance(zero, torch.outer(u, u), zero, torch.outer(v, v))
    assert found == pytest.approx((u @ u + v @ v - 2 * (u @ v).abs()).item(), rel=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 7, 60])
def test_frechet_distance_to_itself_is_zero(rank):
    mean, S = gaussian(60, rank, 1)
    assert 0 <= evaluate.frechet_distance(mean, S, mean, S) <= 1e-10 * max(S.trace().item(), 1)


def test_frechet_distance_against_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    for rank in (40, 25):
        (m1, S1), (m2, S2) = gaussian(40, rank, 2), gaussian(40, 40, 3)
        root = linalg.sqrtm(S1.numpy() @ S2.numpy()).real
        expected = ((m1 - m2) ** 2).sum() + S1.trace() + S2.trace() - 2 * np.trace(root)
        assert evaluate.frechet_distance(m1, S1, m2, S2) == pytest.approx(expected.item(), rel=1e-6)
        assert evaluate.frechet_distance(m2, S2, m1, S1) == pytest.approx(expected.item(), rel=1e-6)


def test_streamed_statistics_are_numpys_and_count_the_last_batch():
    pictures = [toy_scene(3, i, 32, 32)[0] for i in range(7)]
    shares = [pictures[:3], pictures[3:6], pictures[6:]]
    n, mean, covariance = evaluate.feature_statistics(TinyFeatures(), shares, CPU, 1)
    f = TinyFeatures()(evaluate.to_tensor(pictures, CPU)).double().numpy()
    assert n == 7
    np.testing.assert_allclose(mean, f.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(covariance, np.cov(f, rowvar=False), rtol=1e-8, atol=1e-14)


def test_reference_statistics_are_measured_once(tmp_path):
    read = []

    def reader(i):
        read.append(i)
        return toy_scene(3, i, 32, 32)[0]
    for key, expected in (("a", 5), ("a", 5), ("b", 10)):
        found = evaluate.reference_statistics(TinyFeatures(), key, reader, 5, CPU, 2, 0, 1, tmp_path)
        assert found[0] == 5 and len(read) == expected, "another key is measured, the same one is not"
    next(tmp_path.glob("reference_*")).write_bytes(b"damaged")
    evaluate.reference_statistics(TinyFeatures(), "a", reader, 5, CPU, 2, 0, 1, tmp_path)
    evaluate.reference_statistics(TinyFeatures(), "b", reader, 5, CPU, 2, 0, 1, tmp_path)
    assert len(read) == 15, "a damaged file is measured again"


def test_fid_and_features_are_those_of_pytorch_fid(tmp_path, inception_weights, monkeypatch):
    """The same weights in both, on two folders of pictures whose batches do not come out even."""
    package = pytest.importorskip("pytorch_fid.fid_score")
    monkeypatch.setattr("pytorch_fid.inception.load_state_dict_from_url",
                        lambda *_, **__: torch.load(inception_weights))
    from pytorch_fid.inception import InceptionV3
    full = "FULL_FID" in os.environ
    count = 40 if full else 7
    folders = [scenes(tmp_path / "a", 0, count), scenes(tmp_path / "b", 100, count)]
    theirs, (ours, name, _, _) = InceptionV3().eval(), evaluate.load_inception(str(inception_weights), CPU)
    assert "FID" not in name, "only the weights of 2015-12-05 give FID"
    start = time.perf_counter()
    expected = [torch.from_numpy(package.get_activations(sorted(f.glob("*")), theirs, 5, 2048, "cpu", 0))
                for f in folders]
    halfway = time.perf_counter()
    found = []
    for folder in folders:
        files = sorted(folder.glob("*"))
        found.append(torch.cat([ours(evaluate.to_tensor([evaluate.read_picture(f) for f in files[i:i + 5]], CPU))
                                for i in range(0, count, 5)]))
    seconds = halfway - start, time.perf_counter() - halfway
    apart = max(((a - b).norm() / b.norm()).item() for a, b in zip(found, expected))
    assert expected[0].std(dim=0).max() > 0.01, "features that tell pictures apart"
    D = 2048 if full else 300  # scipy takes twenty seconds for all of them
    values = [package.calculate_frechet_distance(*(s for f in expected for s in (
        f[:, :D].double().numpy().mean(axis=0), np.cov(f[:, :D].double().numpy(), rowvar=False))))]
    statistics = [(f[:, :D].double().mean(dim=0), torch.cov(f[:, :D].double().T)) for f in found]
    values.append(evaluate.frechet_distance(*statistics[0], *statistics[1]))
    print(f"\nfeatures {apart:.1e} apart; FID {values[0]:.6f} and {values[1]:.6f}; seconds for {2 * count} pictures: "
          f"pytorch-fid {seconds[0]:.1f}, here {seconds[1]:.1f}, ratio {seconds[1] / seconds[0]:.2f}")
    assert apart < 1e-4
    assert values[1] == pytest.approx(values[0], rel=1e-3)


def test_two_folders_from_the_command_line(tmp_path, inception_weights):
    """--fake and --real with a FILE of weights: the distance of their features, and 0 to itself."""
    a, b = scenes(tmp_path / "a", 0, 3), scenes(tmp_path / "b", 10, 4)
    common = ("--inception-weights", inception_weights, "--cache-dir", tmp_path / "cache", "--device", "cpu")
    found = score("--fake", a, "--real", b, "--output-dir", tmp_path / "out", *common)["fid"]
    assert (found["generated"], found["real"]) == (3, 4) and found["value"] > 0
    assert found["name"] == "distance (Inception of inception.pth)"
    assert json.loads((tmp_path / "out/eval.json").read_text())["scores"]["fid"]["value"] == found["value"]
    itself = score("--fake", b, "--real", b, "--output-dir", tmp_path / "itself", *common)["fid"]
    assert itself["value"] < 1e-9 * found["value"], "the cached statistics of the same folder"


def test_only_the_weights_of_2015_are_called_fid(inception_weights, monkeypatch):
    monkeypatch.setattr(evaluate, "INCEPTION_SHA256", evaluate.sha256_of(inception_weights))
    assert evaluate.load_inception(str(inception_weights), CPU)[1] == "FID"


def test_random_inception_is_the_same_each_time_and_leaves_the_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(evaluate, "CALIBRATION_SCENES", 2)
    pictures = evaluate.to_tensor([toy_scene(3, i, 64, 64)[0] for i in range(3)], CPU)
    features = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net, name, _, _ = evaluate.load_inception("random", CPU)
        features.append(net(pictures))
        drawn = torch.rand(())
        torch.manual_seed(seed)
        assert torch.rand(()) == drawn
    assert name == "random-Inception distance"
    torch.testing.assert_close(*features)
    apart = (features[0][0] - features[0][1]).norm() / features[0][0].norm()
    assert apart > 0.1, "calibrated: two pictures have different features"


# ------------------------------------------------------------------------------------------------- mIoU

def test_miou_is_that_of_plain_loops():
    """K = 5 classes: 3 is absent from the truth and from the prediction, 4 only predicted; -1 is ignored, prediction K
    is no scored class."""
    rng = np.random.default_rng(0)
    truth = rng.choice([-1, 0, 1, 2], size=(2, 6, 7))
    predicted = rng.choice([0, 1, 2, 4, 5], size=(2, 6, 7))
    confusion = evaluate.confusions(torch.from_numpy(predicted), torch.from_numpy(truth), 5)
    assert confusion.shape == (2, 5, 6)
    ious, right, counted = [], 0, 0
    for c in range(5):
        hits = union = present = 0
        for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist()):
            if t == -1:
                continue
            hits += t == p == c
            union += t == c or p == c
            present += t == c
        ious.append(hits / union if present else float("nan"))
    for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist()):
        counted += t != -1
        right += t != -1 and t == p
    found = evaluate.intersection_over_union(confusion.sum(dim=0))
    np.testing.assert_allclose(found, ious, rtol=1e-12)
    assert np.isnan(ious[3]) and np.isnan(ious[4]), "absent and only predicted: no IoU of their own"
    assert found.nanmean().item() == pytest.approx(np.mean(ious[:3]))
    assert evaluate.pixel_accuracy(confusion.sum(dim=0)).item() == pytest.approx(right / counted)


def test_a_class_that_is_only_predicted_costs_the_class_it_lies_on():
    truth, predicted = torch.zeros(1, 1, 4, dtype=torch.int64), torch.tensor([[[0, 0, 1, 1]]])
    iou = evaluate.intersection_over_union(evaluate.confusions(predicted, truth, 2))[0]
    assert iou[0] == 0.5 and iou[1].isnan() and iou.nanmean() == 0.5


def test_nothing_scored_is_nan_not_an_error():
    iou = evaluate.intersection_over_union(evaluate.confusions(
        torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), -1), 3))
    assert iou.isnan().all()


def labels_of(*score_ids, classes=None):
    return SimpleNamespace(score_ids=np.array(score_ids), classes=classes or [f"c{i}" for i in range(len(score_ids))])


def test_scored_classes_and_the_mapping_of_a_segmenter(tmp_path):
    """Label values 0 and 3 are not scored, 1, 2, 4 are classes 1, 0, 2 (as Cityscapes's train ids)."""
    data = labels_of(-1, 1, 0, -1, 2)
    names, places = evaluate.scored_classes(data)
    assert names == ["c2", "c1", "c4"] and places.tolist() == [-1, 1, 0, -1, 2]
    assert evaluate.class_mapping(3, data, "s", None)[0].tolist() == [0, 1, 2]
    assert evaluate.class_mapping(5, data, "s", None)[0].tolist() == [3, 1, 0, 3, 2], "3 = none of the scored"
    ade = labels_of(-1, 1, 2, 3)  # 0 = unlabelled
    assert evaluate.class_mapping(3, ade, "s", None)[0].tolist() == [0, 1, 2], "UperNet's 0 is label 1"
    (tmp_path / "map.json").write_text("[2, -1, 0, 1]")
    (tmp_path / "map.txt").write_text("2\n-1\n0\n1\n")
    for file in ("map.json", "map.txt"):
        assert evaluate.class_mapping(4, data, "s", tmp_path / file)[0].tolist() == [2, 3, 0, 1]
    with pytest.raises(InputError, match="tells 4 classes; expected the 3 scored ones or all 5"):
        evaluate.class_mapping(4, data, "s", None)


class ByColour(nn.Module):
    """A segmenter for pictures that are painted in the toy palette: the nearest colour, at half the size."""

    def __init__(self):
        super().__init__()
        palette = open_dataset("toy", None, "val", (32, 32)).palette
        self.register_buffer("palette", torch.from_numpy(palette).float() / 255)

    def forward(self, x):
        return -(x[:, None, :, ::2, ::2] - self.palette[None, :, :, None, None]).square().sum(dim=2)


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_a_segmenter_from_a_file(tmp_path, kind):
    """Pictures painted as their label maps: an ideal generator at half the resolution."""
    file = tmp_path / "segmenter.pt2"
    if kind == "torchscript":
        torch.jit.save(torch.jit.trace(ByColour(), torch.rand(2, 3, 64, 64)), file)
    else:
        shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        torch.export.save(torch.export.export(ByColour(), (torch.rand(2, 3, 64, 64),), dynamic_shapes=shapes), file)
    toy = open_dataset("toy", None, "val", (64, 64))
    args = SimpleNamespace(segmenter=str(file), segmenter_size=None, segmenter_labels=None, batch_size=2)
    net, mapping, protocol = evaluate.load_segmenter(args, toy, (64, 64), CPU, 0, 1)

    def fake(i):
        return toy.palette[toy[i]["label_map"].numpy()]
    found = evaluate.score_segmentation(net, mapping, toy, fake, 3, CPU, 2, 0, 1)
    assert evaluate.pixel_accuracy(found["generated"]) > 0.9 > evaluate.pixel_accuracy(found["real"])
    assert found["generated"].sum() == 3 * 64 * 64 and found["by_map"].shape == (3,)
    assert "its 11 classes are the 11 scored ones" in protocol and evaluate.sha256_of(file)[:12] in protocol


def test_the_trained_segmenter_is_cached_the_same_each_time_and_blind_to_its_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "SEGMENTER_SAMPLES", 12)
    toy = open_dataset("toy", None, "val", (32, 32))
    options = dict(segmenter="train", segmenter_size=None, segmenter_labels=None, batch_size=2, dataset="toy",
                   data_path=None, segmenter_steps=3)
    states = []
    for folder in ("a", "a", "b"):
        torch.manual_seed(len(states))
        args = SimpleNamespace(**options, cache_dir=tmp_path / folder)
        net, mapping, protocol = evaluate.load_segmenter(args, toy, (32, 32), CPU, 0, 1)
        states.append(net.state_dict())
        drawn = torch.rand(())
        torch.manual_seed(len(states) - 1)
        assert torch.rand(()) == drawn, "training may go on with its own random numbers"
        if len(states) == 1:
            monkeypatch.setattr(evaluate, "train_segmenter", None)  # the second must come from the cache
        elif len(states) == 2:
            monkeypatch.undo()
            monkeypatch.setattr(evaluate, "SEGMENTER_SAMPLES", 12)
    for k in states[0]:
        assert torch.equal(states[0][k], states[1][k]) and torch.equal(states[0][k], states[2][k]), k
    pictures = torch.stack([toy[i]["image"] for i in range(4)])
    torch.testing.assert_close(net.scores(pictures)[:1], net.scores(pictures[:1]), rtol=1e-4, atol=1e-5)
    assert mapping.tolist() == list(range(11)) and "3 steps" in protocol


def test_training_teaches_the_segmenter():
    """Two hundred small steps on eight scenes: better than chance on them by far."""
    toy = open_dataset("toy", None, "train", (32, 32))
    toy.count = 8
    net = evaluate.Segmenter(evaluate.train_segmenter(toy, 120, 8, 8, CPU, False))
    black = np.zeros((32, 32, 3), np.uint8)
    found = evaluate.score_segmentation(net, torch.arange(11), toy, lambda i: black, 8, CPU, 4, 0, 1)
    assert evaluate.pixel_accuracy(found["real"]) > 0.8 > evaluate.pixel_accuracy(found["generated"])


def test_a_transformers_segmenter_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="pip install transformers"):
        evaluate.HuggingFaceSegmenter("some/model")


# --------------------------------------------------------------------------------------------- diversity

def test_lpips_is_that_of_the_package():
    """Random AlexNet, the package's linear weights, in both; also the mean over pairs and maps."""
    package = pytest.importorskip("lpips")
    torch.manual_seed(0)
    theirs = package.LPIPS(pretrained=True, pnet_rand=True, net="alex", verbose=False)
    linear = torch.load(Path(package.__file__).parent / "weights/v0.1/alex.pth", map_location="cpu")
    alexnet = {f"features.{k.split('.', 1)[1]}": t for k, t in theirs.net.state_dict().items()}
    ours = evaluate.LPIPS(alexnet, linear)
    pictures = [[toy_scene(3, i, 64, 64, appearance=s)[0] for s in range(4)] for i in range(2)]
    expected, found, apart = [], [], []
    for of_map in pictures:
        x = evaluate.to_tensor(of_map, CPU)
        f = ours.features(x)
        for a in range(4):
            for b in range(a + 1, 4):
                with torch.no_grad():
                    expected.append(theirs(x[a:a + 1] / 127.5 - 1, x[b:b + 1] / 127.5 - 1).item())
                found.append(ours.distance([t[a:a + 1] for t in f], [t[b:b + 1] for t in f]).item())
                apart.append(np.abs(of_map[a].astype(float) - of_map[b]).mean() / 255)
    most = np.abs(np.subtract(found, expected)).max()
    print(f"\nLPIPS {min(expected):.4f} to {max(expected):.4f}, at most {most:.1e} apart")
    assert max(expected) > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    perceptual, pixels = evaluate.score_diversity(ours, lambda i, s: pictures[i][s], 4, 2, CPU, 0, 1)
    assert perceptual == pytest.approx(np.mean(expected), abs=1e-5)
    assert pixels == pytest.approx(np.mean(apart), rel=1e-9)


def test_lpips_refuses_the_weights_of_another_network():
    alexnet = evaluate.torchvision.models.alexnet().state_dict()
    linear = {f"lin{n}.model.1.weight": torch.ones(1, w, 1, 1) for n, w in enumerate((64, 192, 384, 256, 256))}
    evaluate.LPIPS(alexnet, linear)
    with pytest.raises(InputError, match="--lpips-weights .*another network"):
        evaluate.LPIPS(alexnet, {**linear, "lin0.model.1.weight": torch.ones(1, 128, 1, 1)})
    with pytest.raises(InputError, match="--alexnet-weights .*another network"):
        evaluate.LPIPS({}, linear)


# ------------------------------------------------------------------------------------------------- IIDM

def test_style_similarity_is_that_of_plain_loops():
    rng = np.random.default_rng(0)
    fake, real = rng.integers(0, 9, (2, 2, 5, 6, 3)).astype(np.uint8) * 30
    found = evaluate.style_similarity(evaluate.to_tensor(list(fake), CPU), evaluate.to_tensor(list(real), CPU))
    for a, b, S in zip(fake, real, found.tolist()):
        channels = []
        for c in range(3):
            ha, hb = [0] * 256, [0] * 256
            for y in range(5):
                for x in range(6):
                    ha[a[y, x, c]] += 1
                    hb[b[y, x, c]] += 1
            channels.append(np.corrcoef(ha, hb)[0, 1])
        assert S == pytest.approx(100 * np.mean(channels), rel=1e-9)
    same = evaluate.to_tensor(list(fake), CPU)
    assert evaluate.style_similarity(same, same).tolist() == pytest.approx([100, 100])


def test_iidms_total_says_what_it_lacks():
    scores = {"miou": {"generated": {"pixel_accuracy": 0.9415}}, "fid": {"name": "FID", "value": 30.75}}
    full = evaluate.summarise_iidm(scores, 63.76, None, "the reference", 50.43)
    assert full["M"] == pytest.approx(94.15) and full["T"] == pytest.approx(65.27, abs=0.06) and not full["notes"]
    without = evaluate.summarise_iidm(scores, 63.76, 27.9, "the reference", None)
    assert without["T"] == pytest.approx(full["T"] - 0.9415 * 0.2 * 50.43) and "WITHOUT" in without["notes"]["T"]
    scores["fid"]["name"] = "random-Inception distance"
    other = evaluate.summarise_iidm(scores, 63.76, None, "the reference", 50.43)
    assert "WITHOUT FID (random-Inception distance in its place), so not IIDM's" in other["notes"]["T"]


# ----------------------------------------------------------------------------------------------- latency

def test_latency_has_every_row_and_a_compiler_that_fails_is_reported(checkpoint, monkeypatch):
    def broken(net):
        raise RuntimeError("no compiler here\nand a long trace")
    monkeypatch.setattr(torch, "compile", broken)
    G, _ = evaluate.load_generator(checkpoint)
    sample = open_dataset("toy", None, "val", (32, 32))[0]
    found = evaluate.measure_latency(G, sample, CPU, True, False)
    rows = {(r["precision"], r["mode"]): r for r in found["one picture"]}
    assert set(rows) == {(p, m) for p in ("fp32", "bf16") for m in ("eager", "compiled")}
    assert rows["fp32", "eager"]["seconds"] > 0
    assert rows["fp32", "compiled"]["not_run"] == "RuntimeError: no compiler here"
    assert found["parameters"] == sum(p.numel() for p in G.parameters())
    assert all(t["pictures_per_second"] > 0 and t["batch_size"] >= 1 for t in found["throughput"])
    assert found["flops"] > 1e6


# ------------------------------------------------------------------------------------ the whole, from a checkpoint

def options(checkpoint, folder, *more):
    return ["--checkpoint", checkpoint, "--output-dir", folder / "out", "--cache-dir", folder / "cache", "--device",
            "cpu", "--count", "7", "--batch-size", "3", "--samples", "3", "--segmenter-steps", "2", *more]


@pytest.fixture
def quick(monkeypatch):
    """Tiny features, few training pictures of the segmenter."""
    monkeypatch.setattr(evaluate, "load_inception", tiny_inception)
    monkeypatch.setattr(evaluate, "SEGMENTER_SAMPLES", 8)


ALL = ("--metrics", "fid,miou,diversity,iidm")


def test_twice_the_same_command_gives_the_same_numbers_and_page(checkpoint, tmp_path, quick, capsys):
    first = score(*options(checkpoint, tmp_path, *ALL))
    page = (tmp_path / "out/eval.png").read_bytes()
    printed = capsys.readouterr().out
    second = score(*options(checkpoint, tmp_path, *ALL))
    assert first == second and printed == capsys.readouterr().out and page == (tmp_path / "out/eval.png").read_bytes()
    assert set(first) == {"fid", "miou", "diversity", "iidm"}
    content = json.loads((tmp_path / "out/eval.json").read_text())
    assert all("protocol" in s for s in content["scores"].values()), "every number with its protocol"
    files = list((tmp_path / "out/pictures").glob("seed*/*.png"))
    assert len(files) == 3 * 7 + 7, "the page wants a fourth seed of its maps"
    assert Image.open(tmp_path / "out/eval.png").size == (6 * (6 * 32 + 4) - 4, 16 + 7 * (6 * 32 + 16))
    assert "LPIPS diversity                        not run" in printed


def test_a_killed_run_goes_on_from_its_pictures(checkpoint, tmp_path, quick):
    first = score(*options(checkpoint, tmp_path, "--metrics", "fid,diversity"))
    files = sorted((tmp_path / "out/pictures").glob("seed*/*.png"))
    lost = [files[1], files[9], files[-1]]
    contents = {f: f.read_bytes() for f in lost}
    for file in lost:
        file.unlink()
    lost[0].with_name(lost[0].name + ".tmp").write_bytes(b"half")
    times = {f: f.stat().st_mtime_ns for f in files if f not in lost}
    assert score(*options(checkpoint, tmp_path, "--metrics", "fid,diversity")) == first
    assert {f: f.stat().st_mtime_ns for f in times} == times, "pictures that were there are not drawn again"
    assert {f: f.read_bytes() for f in lost} == contents


def test_pictures_of_another_checkpoint_are_not_reused(checkpoint, tmp_path, quick):
    first = score(*options(checkpoint, tmp_path, "--metrics", "fid"))["fid"]["value"]
    other = write_checkpoint(tmp_path / "ema_0000001.pt", 1)
    with pytest.raises(InputError, match="pictures of another checkpoint.*--force"):
        score(*options(other, tmp_path, "--metrics", "fid"))
    with pytest.raises(InputError, match="pictures of another amp"):
        score(*options(checkpoint, tmp_path, "--metrics", "fid", "--amp", "bf16"))
    assert score(*options(other, tmp_path, "--metrics", "fid", "--force"))["fid"]["value"] != first


def test_batches_are_dealt_from_one_list():
    """Seven maps in batches of three: what is in a batch is the same for any number of ranks, the short one included."""
    whole = [[0, 1, 2], [3, 4, 5], [6]]
    assert evaluate.batches(7, 3, 0, 1) == whole
    assert [evaluate.batches(7, 3, r, 2) for r in range(2)] == [whole[::2], whole[1::2]]
    assert [evaluate.batches(7, 3, r, 5) for r in range(5)] == [[b] for b in whole] + [[], []]


def test_every_map_and_seed_has_a_z_of_its_own():
    z = torch.stack([evaluate.noise([0, 1, 199], seed, 4) for seed in (0, 1, 19)])
    assert torch.equal(z[2, 1], z_of_seed(19 * evaluate.SEED_STRIDE + 1, 4))
    assert len(z.flatten(0, 1).unique(dim=0)) == 9
    assert evaluate.MOST_SEEDS * evaluate.SEED_STRIDE < 2 ** 32, "torch keeps 32 bits of a seed"


def test_a_picture_is_that_of_its_map_and_seed(checkpoint, tmp_path, quick):
    score(*options(checkpoint, tmp_path, "--metrics", "diversity"))
    G, _ = evaluate.load_generator(checkpoint)
    toy = open_dataset("toy", None, "val", (32, 32))
    z = z_of_seed(2 * evaluate.SEED_STRIDE + 5, G.z_dim)[None]
    expected = evaluate.generate(G, *evaluate.conditions([toy[5]]), z, CPU)[0]
    found = evaluate.read_picture(tmp_path / "out/pictures/seed002/val0005.png")
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_generator_in_memory_scores_as_its_pictures_do(checkpoint, tmp_path, quick):
    written = score(*options(checkpoint, tmp_path, "--metrics", "fid"))["fid"]["value"]
    G, _ = evaluate.load_generator(checkpoint)
    toy = open_dataset("toy", None, "val", (32, 32))
    features, _, _, key = evaluate.load_inception("random", CPU)
    reference = evaluate.dataset_reference(toy, features, key, CPU, count=7, cache=tmp_path / "other")
    value = evaluate.score_generator(G, toy, features, reference, CPU, batch_size=3, count=7)
    assert value == pytest.approx(written, rel=1e-12)


def test_a_folder_of_pictures_with_label_maps(checkpoint, tmp_path, quick):
    """--fake with --dataset scores as the checkpoint whose pictures they are."""
    own = score(*options(checkpoint, tmp_path, "--metrics", "fid,miou"))
    found = score("--fake", tmp_path / "out/pictures/seed000", "--dataset", "toy", "--count", 7, "--batch-size", 3,
                  "--segmenter-steps", 2, "--device", "cpu", "--output-dir", tmp_path / "fake", "--cache-dir",
                  tmp_path / "cache")
    assert found["fid"]["value"] == own["fid"]["value"] and found["miou"]["generated"] == own["miou"]["generated"]


def test_two_ranks_print_what_one_prints(checkpoint, tmp_path):
    """To the last digit, from nothing: pictures, segmenter and statistics over two processes (gloo)."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "import evaluate, test_evaluate\n"
        "evaluate.load_inception, evaluate.SEGMENTER_SAMPLES = test_evaluate.tiny_inception, 8\n"
        "evaluate.evaluate(evaluate.parse_options(sys.argv[1:]))\n")
    printed, pictures = [], []
    for ranks in (2, 1):
        launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
                                          str(random.randint(20000, 60000))]
        folder = tmp_path / str(ranks)
        result = subprocess.run([sys.executable, *launcher, str(script), *map(str, options(checkpoint, folder, *ALL))],
                                capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
        printed.append(result.stdout.replace(str(folder), ""))
        pictures.append({f.relative_to(folder): f.read_bytes() for f in sorted(folder.glob("out/pictures/*/*.png"))})
    assert "tiny distance" in printed[0] and "mIoU" in printed[0]
    assert printed[0] == printed[1]
    assert len(pictures[0]) > 21 and pictures[0] == pictures[1]


# ----------------------------------------------------------------------------------------------- bad input

def paint(folder, *shapes, ending="png"):
    folder.mkdir(parents=True)
    for i, shape in enumerate(shapes):
        Image.fromarray(np.full((*shape, 3), 40 * i, np.uint8)).save(folder / f"{i}.{ending}")
    return folder


def bad_input(case, tmp_path, checkpoint, inception_weights):
    """(arguments, what the line must say)."""
    good = paint(tmp_path / "good", (32, 32), (32, 32))
    fake = tmp_path / "fake"
    folders = ("--fake", fake, "--real", good, "--output-dir", tmp_path / "out")
    toy = options(checkpoint, tmp_path)
    if case == "mixed sizes":
        paint(fake, (32, 32), (32, 48))
        return folders, "pictures of 2 sizes (height x width), 0.png 32x32 and 1.png 32x48"
    if case == "one picture":
        paint(fake, (32, 32))
        return folders, "1 pictures"
    if case == "empty folder":
        fake.mkdir()
        return folders, "0 pictures"
    if case == "no folder":
        return folders, "no such folder"
    if case == "corrupt header":
        paint(fake, (32, 32), (32, 32))
        (fake / "0.png").write_bytes(b"no picture")
        return folders, "0.png: cannot be read as a picture"
    if case == "truncated":
        paint(fake, (32, 32), (32, 32))
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(noise).save(fake / "0.png")
        (fake / "0.png").write_bytes((fake / "0.png").read_bytes()[:1500])
        return (*folders, "--inception-weights", inception_weights), "0.png: cannot be read as a picture"
    if case == "other size":
        paint(fake, (64, 64), (64, 64))
        return folders, "--image-size 64x64 resizes them"
    if case == "segmenter classes":
        torch.jit.save(torch.jit.trace(nn.Conv2d(3, 7, 1), torch.rand(1, 3, 32, 32)), tmp_path / "seven.pt")
        return (*toy, "--metrics", "miou", "--segmenter", tmp_path / "seven.pt"), (
            "tells 7 classes; expected the 11 scored ones or all 11")
    if case == "segmenter labels":
        torch.jit.save(torch.jit.trace(nn.Conv2d(3, 2, 1), torch.rand(1, 3, 32, 32)), tmp_path / "two.pt")
        (tmp_path / "map.txt").write_text("0\n99\n")
        return (*toy, "--metrics", "miou", "--segmenter", tmp_path / "two.pt", "--segmenter-labels",
                tmp_path / "map.txt"), "2 numbers, among them [99]; expected 2"
    if case == "segmenter output":
        torch.jit.save(torch.jit.trace(nn.Flatten(), torch.rand(1, 3, 32, 32)), tmp_path / "flat.pt")
        return (*toy, "--metrics", "miou", "--segmenter", tmp_path / "flat.pt"), "gives no scores of shape"
    if case == "segmenter file":
        (tmp_path / "x.pt").write_bytes(b"no")
        return (*toy, "--metrics", "miou", "--segmenter", tmp_path / "x.pt"), "neither a TorchScript file"
    if case == "other network":
        torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
        return (*toy, "--metrics", "fid", "--inception-weights", tmp_path / "linear.pth"), "weights of another network"
    if case == "torchvision's inception":
        state = torch.load(inception_weights)
        state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 2048), torch.zeros(1000)
        torch.save(state, tmp_path / "thousand.pth")
        return (*toy, "--metrics", "fid", "--inception-weights", tmp_path / "thousand.pth"), "(1000"
    if case == "no weights":
        return (*toy, "--metrics", "fid", "--inception-weights", tmp_path / "no.pth"), "cannot be read as a state dict"
    if case == "checkpoint":
        (tmp_path / "ema.pt").write_bytes(b"no")
        return ("--checkpoint", tmp_path / "ema.pt"), "not an EMA file of train.py"
    if case == "missing map":
        paint(fake, (32, 32), (32, 32))
        return ("--fake", fake, "--dataset", "toy", "--count", 2), "no picture of 2 of the 2 label maps, such as val"
    if case == "metric":
        return (*toy, "--metrics", "fid,lpips"), "lpips: no such score; choose from fid,miou,diversity,latency,iidm"
    if case == "metric without":
        return (*folders, "--metrics", "latency"), "--metrics latency: needs --checkpoint"
    if case == "both":
        return (*toy, "--fake", good), "give either --checkpoint EMA_FILE or --fake DIR"
    if case == "samples":
        return (*toy, "--samples", 1), "--samples 1: expected 2 to 4000"
    if case == "size":
        return (*toy, "--image-size", "33"), "both sides must be divisible by 2"
    if case == "dataset":
        for split in ("train", "val"):
            for kind in ("images", "labels"):
                paint(tmp_path / "data" / kind / split, (32, 32))
        (tmp_path / "data/classes.txt").write_text("a\nb\n")
        return (*toy, "--dataset", "folder", "--data-path", tmp_path / "data"), "was trained on toy with 11 classes"


@pytest.mark.parametrize("case", [
    "mixed sizes", "one picture", "empty folder", "no folder", "corrupt header", "truncated", "other size",
    "segmenter classes", "segmenter labels", "segmenter output", "segmenter file", "other network",
    "torchvision's inception", "no weights", "checkpoint", "missing map", "metric", "metric without", "both", "samples",
    "size", "dataset"])
def test_bad_input_is_one_clear_line(checkpoint, inception_weights, tmp_path, case):
    arguments, message = bad_input(case, tmp_path, checkpoint, inception_weights)
    with pytest.raises(InputError) as error:
        score(*arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_input_is_exit_code_2_without_a_trace(tmp_path):
    fake = paint(tmp_path / "fake", (32, 32), (16, 32))
    result = subprocess.run([sys.executable, str(ROOT / "evaluate.py"), "--fake", str(fake), "--real", str(fake)],
                            capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip().startswith("evaluate.py: --fake") and len(result.stderr.strip().splitlines()) == 1


def test_a_download_that_fails_says_which_file_and_which_flag(checkpoint, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for flags, url, flag in ((("--metrics", "fid", "--inception-weights", "download"), evaluate.INCEPTION_URL,
                              "--inception-weights FILE"),
                             (("--metrics", "fid", "--inception-weights", "torchvision"), "inception_v3", "random"),
                             (("--metrics", "diversity", "--alexnet-weights", "download", "--lpips-weights",
                               "download"), evaluate.ALEXNET_URL, "--alexnet-weights FILE")):
        with pytest.raises(InputError) as error:
            score(*options(checkpoint, tmp_path, *flags))
        assert url in str(error.value) and flag in str(error.value) and "\n" not in str(error.value)


def test_the_toy_default_needs_no_download(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    monkeypatch.setattr(evaluate, "SEGMENTER_SAMPLES", 8)
    monkeypatch.setattr(evaluate, "CALIBRATION_SCENES", 2)
    found = score(*options(checkpoint, tmp_path, "--latency-modes", "eager"))
    assert set(found) == {"fid", "miou", "diversity", "latency"}
    assert found["fid"]["name"] == "random-Inception distance" and found["diversity"]["LPIPS"] is None
