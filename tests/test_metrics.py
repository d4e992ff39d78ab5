"""metrics/: every score against the package or the plain loops that define it.

Oracles: closed forms, scipy, numpy, the packages pytorch-fid and lpips (requirements-test.txt; their tests are skipped
without them), loops over pixels. Pictures are toy scenes of 32x32 and 64x64.
FULL_FID=1 python -m pytest tests/test_metrics.py -k pytorch_fid -s   compares all 2048 features, slowly.
"""
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torchvision
from PIL import Image

from conftest import TinyFeatures
from data import open_dataset
from metrics import Scored, diversity, fid, latency, segmentation, to_tensor
from readers import cityscapes
from readers.images import read_rgb
from readers.toy import toy_scene
from support.checkpoints import sha256_of
from support.errors import InputError
from support.ranks import Ranks

CPU = torch.device("cpu")
ALONE = Ranks(CPU)


def toy_of(size, split="val", count=None):
    toy = open_dataset("toy", None, split, (size, size))
    toy.names = toy.names[:count]
    return toy


def scenes(count, first=0, size=64, seed=3):
    return [toy_scene(seed, i, size, size)[0] for i in range(first, first + count)]


def save_scenes(folder, first, count):
    folder.mkdir(parents=True)
    for i, scene in enumerate(scenes(count, first, seed=7)):
        Image.fromarray(scene).save(folder / f"{first + i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """A state dict of the 2015 Inception, as pytorch-fid reads it, from a random start that tells pictures apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fid, "CALIBRATION_SCENES", 3)
        state = fid.random_inception().net.state_dict()
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, file)
    return file


# ------------------------------------------------------------------------------------------------- fid

def gaussian(D, rank, seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(D, rank))
    return torch.from_numpy(rng.normal(size=D)), torch.from_numpy(A @ A.T)


def test_frechet_distance_in_closed_form_also_of_singular_gaussians():
    """|mu_1 - mu_2|^2 + sum (sqrt a - sqrt b)^2 for diagonal ones; |u|^2 + |v|^2 - 2 |u . v| for u u^T and v v^T."""
    mean_a, a, mean_b, b = torch.tensor([[0, 1, 2, 3], [4, 1, 0, 9], [1, 1, 0, 3], [1, 0, 0, 16]]).double()
    assert fid.frechet_distance(mean_a, a.diag(), mean_b, b.diag()) == pytest.approx(5 + 1 + 1 + 0 + 1, rel=1e-12)
    u, v = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 300)))
    found = fid.frechet_distance(0 * u, torch.outer(u, u), 0 * u, torch.outer(v, v))
    assert found == pytest.approx((u @ u + v @ v - 2 * (u @ v).abs()).item(), rel=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 7, 60])
def test_frechet_distance_to_itself_is_zero(rank):
    mean, S = gaussian(60, rank, 1)
    assert 0 <= fid.frechet_distance(mean, S, mean, S) <= 1e-10 * max(S.trace().item(), 1)


@pytest.mark.parametrize("rank", [40, 25])
def test_frechet_distance_against_scipy(rank):
    linalg = pytest.importorskip("scipy.linalg")
    (m1, S1), (m2, S2) = gaussian(40, rank, 2), gaussian(40, 40, 3)
    root = linalg.sqrtm(S1.numpy() @ S2.numpy()).real
    expected = (((m1 - m2) ** 2).sum() + S1.trace() + S2.trace() - 2 * np.trace(root)).item()
    assert fid.frechet_distance(m1, S1, m2, S2) == pytest.approx(expected, rel=1e-6)
    assert fid.frechet_distance(m2, S2, m1, S1) == pytest.approx(expected, rel=1e-6)


def test_streamed_statistics_are_numpys_and_count_the_last_batch():
    pictures = scenes(7, size=32)
    mean, covariance = fid.feature_statistics(TinyFeatures(), [pictures[:3], pictures[3:6], pictures[6:]], ALONE)
    f = TinyFeatures()(to_tensor(pictures, CPU)).double().numpy()
    np.testing.assert_allclose(mean, f.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(covariance, np.cov(f, rowvar=False), rtol=1e-8, atol=1e-14)


def test_reference_statistics_are_measured_once(tmp_path):
    count, found = [], []
    for key in "aab-ab":
        if key == "-":
            next(tmp_path.glob("reference_*")).write_bytes(b"damaged")
        else:
            read = lambda i: count.append(i) or scenes(1, i, 32)[0]
            found.append((*fid.reference_statistics(TinyFeatures(), key, read, 5, ALONE, 2, tmp_path), len(count)))
    assert [n for _, _, n in found[:3]] == [5, 5, 10], "another key is measured, the same one is not"
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[-1][2] == 15, "a damaged file is measured again"


def test_fid_and_features_are_those_of_pytorch_fid(tmp_path, inception_weights, monkeypatch):
    """The same weights in both, on two folders of pictures whose batches do not come out even."""
    package = pytest.importorskip("pytorch_fid.fid_score")
    monkeypatch.setattr("pytorch_fid.inception.load_state_dict_from_url",
                        lambda *_, **__: torch.load(inception_weights))
    from pytorch_fid.inception import InceptionV3
    full = "FULL_FID" in os.environ
    count, D = (40, 2048) if full else (7, 300)  # scipy takes twenty seconds for all features
    folders = [save_scenes(tmp_path / "a", 0, count), save_scenes(tmp_path / "b", 100, count)]
    theirs, (ours, name, _, _) = InceptionV3().eval(), fid.load_inception(str(inception_weights), CPU)
    assert "FID" not in name, "only the weights of 2015-12-05 give FID"
    files = [sorted(folder.glob("*")) for folder in folders]
    expected = [torch.from_numpy(package.get_activations(some, theirs, 5, 2048, "cpu", 0)) for some in files]
    found = [torch.cat([ours(to_tensor([read_rgb(file) for file in some[i:i + 5]], CPU)) for i in range(0, count, 5)])
             for some in files]
    apart = max(((a - b).norm() / b.norm()).item() for a, b in zip(found, expected))
    assert expected[0].std(dim=0).max() > 0.01, "features that tell pictures apart"
    expected, found = ([s for f in both for s in (f[:, :D].double().mean(dim=0), torch.cov(f[:, :D].double().T))]
                       for both in (expected, found))
    theirs, ours = package.calculate_frechet_distance(*(s.numpy() for s in expected)), fid.frechet_distance(*found)
    print(f"\nfeatures {apart:.1e} apart; FID {theirs:.6f} and {ours:.6f}")
    assert apart < 1e-4 and ours == pytest.approx(theirs, rel=1e-3)


def test_only_the_weights_of_2015_are_called_fid(inception_weights, monkeypatch):
    monkeypatch.setattr(fid, "INCEPTION_SHA256", sha256_of(inception_weights))
    assert fid.load_inception(str(inception_weights), CPU)[1] == "FID"


def test_random_inception_is_the_same_each_time_and_leaves_the_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(fid, "CALIBRATION_SCENES", 2)
    pictures, features = to_tensor(scenes(3), CPU), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net, name, _, _ = fid.load_inception("random", CPU)
        features.append(net(pictures))
        drawn = torch.rand(())
        torch.manual_seed(seed)
        assert torch.rand(()) == drawn
    assert name == "random-Inception distance"
    torch.testing.assert_close(*features)
    apart = (features[0][0] - features[0][1]).norm() / features[0][0].norm()
    assert apart > 0.1, "calibrated: two pictures have different features"


# ------------------------------------------------------------------------------------------------- segmentation

def test_miou_is_that_of_plain_loops():
    """K = 5 classes: 3 is absent from the truth and from the prediction, 4 only predicted; -1 is ignored, prediction K
    is no scored class."""
    rng = np.random.default_rng(0)
    truth, predicted = rng.choice([-1, 0, 1, 2], size=(2, 6, 7)), rng.choice([0, 1, 2, 4, 5], size=(2, 6, 7))
    confusion = segmentation.confusions(torch.from_numpy(predicted), torch.from_numpy(truth), 5)
    assert confusion.shape == (2, 5, 6)
    pixels = [(t, p) for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist()) if t != -1]
    ious = []
    for c in range(5):
        hits, union = sum(t == p == c for t, p in pixels), sum(t == c or p == c for t, p in pixels)
        ious.append(hits / union if any(t == c for t, _ in pixels) else float("nan"))
    found = segmentation.intersection_over_union(confusion.sum(dim=0))
    np.testing.assert_allclose(found, ious, rtol=1e-12)
    assert np.isnan(ious[3]) and np.isnan(ious[4]), "absent and only predicted: no IoU of their own"
    assert found.nanmean().item() == pytest.approx(np.mean(ious[:3]))
    right = sum(t == p for t, p in pixels) / len(pixels)
    assert segmentation.pixel_accuracy(confusion.sum(dim=0)).item() == pytest.approx(right)


@pytest.mark.parametrize("truth, expected, why", [
    ([0, 0, 0, 0], [0.5, np.nan], "a class that is only predicted costs the class it lies on"),
    ([-1, -1, -1, -1], [np.nan, np.nan], "nothing scored is no error")])
def test_iou_of_classes_that_are_not_in_the_truth(truth, expected, why):
    found = segmentation.confusions(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[truth]]), 2)
    np.testing.assert_array_equal(segmentation.intersection_over_union(found)[0], expected, why)


# DP-GAN's Table 2: road, swalk, build, wall, fence, pole, tlight, sign, veg, terrain, sky, person, rider, car, truck,
# bus, train, mbike, bike; obj-mIoU
TABLE_2 = {
    "SPADE": ([97.5, 80.8, 88.5, 54.3, 50.6, 40.4, 39.0, 41.9, 88.7, 69.1, 92.0, 66.2, 41.5, 89.1, 64.6, 73.2, 42.1,
               29.7, 61.5], 53.6),
    "OASIS": ([96.9, 79.2, 85.1, 70.3, 64.2, 41.6, 50.7, 49.9, 85.0, 74.8, 92.0, 64.9, 54.0, 88.4, 65.6, 79.9, 63.4,
               53.9, 63.7], 61.5),
    "DP-GAN": ([97.5, 81.9, 87.2, 71.4, 72.7, 46.9, 55.5, 60.3, 87.3, 72.9, 92.4, 67.4, 55.5, 89.9, 81.5, 83.1, 73.9,
                55.3, 66.9], 66.9)}


@pytest.mark.parametrize("system", TABLE_2)
def test_obj_miou_is_that_of_dpgans_table_2(system):
    """The printed IoU of each class give the printed obj-mIoU, to the digit that is printed."""
    ids = np.full(35, -1)
    ids[list(cityscapes.SCORED)] = np.arange(19)
    data = SimpleNamespace(score_ids=ids, classes=cityscapes.CLASSES, objects=cityscapes.OBJECTS)
    iou, printed = TABLE_2[system]
    assert segmentation.object_miou(torch.tensor(iou), data).item() == pytest.approx(printed, abs=0.0501)


def test_obj_miou_by_loops():
    """Over the objects that occur: NaN is absent, classes of one score id are an object if one of them is."""
    ids = np.array([-1, 0, 1, 2, 3, 3, 4])
    data = SimpleNamespace(score_ids=ids, classes=tuple("-abcdef"), objects=("a", "c", "e"))
    iou = torch.tensor([0.1, 0.2, torch.nan, 0.4, 0.8])         # of a, b, c, d / e, f
    assert segmentation.object_miou(iou, data).item() == pytest.approx((0.1 + 0.4) / 2)
    assert segmentation.object_miou(iou, SimpleNamespace(**{**vars(data), "objects": ("c",)})).isnan()
    assert segmentation.object_miou(iou, SimpleNamespace(**{**vars(data), "objects": ()})).isnan()


def test_scored_classes_and_the_mapping_of_a_segmenter(tmp_path):
    """Label values 0 and 3 are not scored, 1, 2, 4 are classes 1, 0, 2 (as Cityscapes's train ids)."""
    def labels_of(*score_ids):
        return SimpleNamespace(score_ids=np.array(score_ids), classes=[f"c{i}" for i in range(len(score_ids))])

    def mapping(S, data, file=None):
        return segmentation.class_mapping(S, data, "s", file)[0].tolist()
    data = labels_of(-1, 1, 0, -1, 2)
    names, places = segmentation.scored_classes(data)
    assert names == ["c2", "c1", "c4"] and places.tolist() == [-1, 1, 0, -1, 2]
    assert mapping(3, data) == [0, 1, 2]
    assert mapping(5, data) == [3, 1, 0, 3, 2], "3 = none of the scored"
    assert mapping(3, labels_of(-1, 1, 2, 3)) == [0, 1, 2], "ADE20K: 0 = unlabelled, UperNet's 0 is label 1"
    for name, text in (("map.json", "[2, -1, 0, 1]"), ("map.txt", "2\n-1\n0\n1\n")):
        (tmp_path / name).write_text(text)
        assert mapping(4, data, tmp_path / name) == [2, 3, 0, 1]
    with pytest.raises(InputError, match="tells 4 classes; expected the 3 scored ones or all 5"):
        mapping(4, data)


def test_a_segmenter_that_knows_no_class_of_the_real_pictures_gives_a_row_and_no_ratio():
    toy = toy_of(32)
    wrong = 1 + toy[0]["label_map"].max().item()                                         # a class that no map has
    segmenter = lambda x: torch.full((len(x), 32, 32), wrong), torch.arange(11), "a protocol"
    scored = Scored((32, 32), 1, lambda i: toy[i]["image"].permute(1, 2, 0).numpy(), dataset=toy)
    score, _ = segmentation.score_segmentation(segmenter, scored, ALONE, 1)
    assert score["real"]["mIoU"] == 0 and score["ratio"] is None
    name, value, text = next(segmentation.rows(score))
    assert (name, value) == ("mIoU", "0.0000") and "none right" in text and "--segmenter-labels" in text


def by_colour():
    """A segmenter for pictures that are painted in the toy palette: the nearest colour, at half the size."""
    net, palette = nn.Conv2d(3, 11, 1, stride=2), torch.from_numpy(toy_of(32).palette).float() / 255     # (C, 3)
    net.weight.data, net.bias.data = 2 * palette[:, :, None, None], -palette.square().sum(dim=1)
    return net


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_a_segmenter_from_a_file(tmp_path, kind):
    """Pictures painted as their label maps: an ideal generator at half the resolution."""
    file, toy, example = tmp_path / "segmenter.pt2", toy_of(64), torch.rand(2, 3, 64, 64)
    if kind == "torchscript":
        torch.jit.save(torch.jit.trace(by_colour(), example), file)
    else:
        shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        torch.export.save(torch.export.export(by_colour(), (example,), dynamic_shapes=shapes), file)
    segmenter = segmentation.load_segmenter(str(file), toy, ALONE, 2, trusted=kind == "export")
    scored = Scored((64, 64), 3, lambda i: toy.palette[toy[i]["label_map"].numpy()], dataset=toy)
    generated, real, by_map = segmentation.compare(segmenter, scored, ALONE, 2)
    assert segmentation.pixel_accuracy(generated) > 0.9 > segmentation.pixel_accuracy(real)
    assert generated.sum() == 3 * 64 * 64 and by_map.shape == (3,)
    assert "its 11 classes are the 11 scored ones" in segmenter[2] and sha256_of(file)[:12] in segmenter[2]


def test_the_trained_segmenter_is_cached_the_same_each_time_and_blind_to_its_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation, "SAMPLES", 12)
    toy, train, states = toy_of(32, "train"), segmentation.train_segmenter, []
    for seed, folder in enumerate("aab"):
        monkeypatch.setattr(segmentation, "train_segmenter", None if seed == 1 else train)  # the second: from the cache
        torch.manual_seed(seed)
        net, mapping, protocol = segmentation.trained_segmenter(toy, "toy", "small", 3, 0, ALONE, tmp_path / folder)
        states.append(net.state_dict())
        drawn = torch.rand(())
        torch.manual_seed(seed)
        assert torch.rand(()) == drawn, "training may go on with its own random numbers"
    for k in states[0]:
        assert torch.equal(states[0][k], states[1][k]) and torch.equal(states[0][k], states[2][k]), k
    pictures = to_tensor(scenes(4, size=32), CPU)
    torch.testing.assert_close(net.scores(pictures)[:1], net.scores(pictures[:1]), rtol=1e-4, atol=1e-5)
    assert mapping.tolist() == list(range(11)) and "3 steps" in protocol


def test_training_teaches_the_segmenter():
    """Sixty small steps on eight scenes: better than chance on them by far."""
    toy = toy_of(32, "train", 8)
    net = segmentation.Segmenter(segmentation.train_segmenter(toy, "small", 60, 8, 0, CPU))
    scored = Scored((32, 32), 8, lambda i: np.zeros((32, 32, 3), np.uint8), dataset=toy)
    generated, real, _ = segmentation.compare((net, torch.arange(11), ""), scored, ALONE, 4)
    assert segmentation.pixel_accuracy(real) > 0.8 > segmentation.pixel_accuracy(generated)


def test_a_transformers_segmenter_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="pip install transformers"):
        segmentation.HuggingFaceSegmenter("some/model")


# ------------------------------------------------------------------------------------------------- diversity

def test_lpips_is_that_of_the_package():
    """Random AlexNet, the package's linear weights, in both; also the mean over pairs and maps."""
    package = pytest.importorskip("lpips")
    torch.manual_seed(0)
    theirs = package.LPIPS(pretrained=True, pnet_rand=True, net="alex", verbose=False)
    linear = torch.load(Path(package.__file__).parent / "weights/v0.1/alex.pth", map_location="cpu")
    ours = diversity.LPIPS({f"features.{k.split('.', 1)[1]}": t for k, t in theirs.net.state_dict().items()}, linear)
    pictures = [[toy_scene(3, i, 64, 64, appearance=s)[0] for s in range(4)] for i in range(2)]
    expected, found, apart = [], [], []
    for of_map in pictures:
        x = to_tensor(of_map, CPU)
        f = ours.features(x)
        for a, b in torch.combinations(torch.arange(4)).tolist():
            with torch.no_grad():
                expected.append(theirs(x[a:a + 1] / 127.5 - 1, x[b:b + 1] / 127.5 - 1).item())
            found.append(ours.distance([t[a:a + 1] for t in f], [t[b:b + 1] for t in f]).item())
            apart.append(np.abs(of_map[a].astype(float) - of_map[b]).mean() / 255)
    most = np.abs(np.subtract(found, expected)).max()
    print(f"\nLPIPS {min(expected):.4f} to {max(expected):.4f}, at most {most:.1e} apart")
    assert max(expected) > 0.01 and most < 1e-5
    score = diversity.score_diversity(ours, Scored((64, 64), 2, lambda i, s: pictures[i][s]), 4, ALONE)
    assert score["LPIPS"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert score["pixels"] == pytest.approx(np.mean(apart), rel=1e-9)


def test_lpips_refuses_the_weights_of_another_network():
    alexnet = torchvision.models.alexnet().state_dict()
    linear = {f"lin{n}.model.1.weight": torch.ones(1, w, 1, 1) for n, w in enumerate((64, 192, 384, 256, 256))}
    diversity.LPIPS(alexnet, linear)
    with pytest.raises(InputError, match="--lpips-weights .*another network"):
        diversity.LPIPS(alexnet, {**linear, "lin0.model.1.weight": torch.ones(1, 128, 1, 1)})
    with pytest.raises(InputError, match="--alexnet-weights .*another network"):
        diversity.LPIPS({}, linear)


# ------------------------------------------------------------------------------------------------- latency

def test_latency_has_every_row_and_a_compiler_that_fails_is_reported(monkeypatch):
    def broken(net):
        raise RuntimeError("no compiler here\nand a long trace")
    monkeypatch.setattr(torch, "compile", broken)

    class G(nn.Conv2d):
        def forward(self, label_map, z, offsets):
            return super().forward(torch.cat([label_map[:, None].float(), offsets], dim=1)) + z[:, :1, None, None]
    inputs = torch.zeros(1, 32, 32, dtype=torch.uint8), torch.zeros(1, 4), torch.zeros(1, 2, 32, 32)
    found = latency.score_latency(G(3, 3, 3), *inputs, True, ALONE)
    rows = {(r["precision"], r["mode"]): r for r in found["one picture"]}
    assert set(rows) == {(p, m) for p in ("fp32", "bf16") for m in ("eager", "compiled")}
    assert rows["fp32", "eager"]["seconds"] > 0
    assert rows["fp32", "compiled"]["not_run"] == "RuntimeError: no compiler here"
    assert found["parameters"] == 3 * 3 * 9 + 3 and found["flops"] == 2 * 30 * 30 * 3 * 3 * 9
    assert all(t["pictures_per_second"] > 0 and t["batch_size"] >= 1 for t in found["throughput"])


@pytest.mark.parametrize("error", [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
                                   torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_the_best_batch_size_is_looked_for_up_to_where_memory_ends(error):
    def runner(G, n, precision):
        def run():
            if n == 4:
                raise error
        return run
    assert latency.best_throughput(runner, None, "fp32", torch.device("cpu"))["batch_size"] in (1, 2)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        latency.best_throughput(runner, None, "fp32", torch.device("cpu"))
