"""evaluate.py from its options to eval.json: the same numbers on any number of ranks and after a restart; bad input.

The generator is at its random start, on toy scenes of 32x32.
"""
import io
import json

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

import evaluate
from conftest import ROOT, printed_by, start, tiny_inception
from generator import Generator, z_of_seed
from metrics import diversity, fid, latency, segmentation
from readers import generated
from readers.images import read_rgb
from sample import MOST_SEEDS, SEED_STRIDE, conditions, generate, load_generator, noise
from support.errors import InputError
from support.ranks import Ranks, batches
from tables import others
from test_metrics import ALONE, CPU, inception_weights, save_scenes, toy_of  # noqa: F401

ALL = ("--metrics", "fid,miou,diversity")


def write_checkpoint(file, seed):
    """An EMA file of the toy classes at 32x32, gates open so that z matters."""
    torch.manual_seed(seed)
    options = dict(num_classes=11, offset_channels=2, widths=(16, 16, 8), stem_channels=4, label_channels=8, z_dim=4,
                   noise_tokens=2, noise_width=4, noise_hidden=8, attention_stride=2)
    G, toy = Generator(**options), toy_of(32)
    with torch.no_grad():
        for name, p in G.named_parameters():
            if name.endswith("eta"):
                p.fill_(1.0)
    torch.save({"step": 1, "generator": options, "ema": G.state_dict(), "dataset": "toy", "image_size": [32, 32],
                "classes": list(toy.classes), "palette": toy.palette.tolist(), "unknown": None}, file)
    return file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ema") / "ema_0000001.pt", 0)


@pytest.fixture
def quick(monkeypatch):
    """Tiny features, few training pictures of the segmenter."""
    monkeypatch.setattr(fid, "load_inception", tiny_inception)
    monkeypatch.setattr(segmentation, "SAMPLES", 8)


@pytest.fixture
def narrow(monkeypatch):
    """64 of Inception's 2048 features, whose covariance takes no minute."""
    whole = fid.InceptionFeatures.forward
    monkeypatch.setattr(fid.InceptionFeatures, "forward", lambda net, pictures: whole(net, pictures)[:, :64])
    monkeypatch.setattr(fid.InceptionFeatures, "width", 64)


def score(*arguments):
    """evaluate.py in this process."""
    return evaluate.evaluate(evaluate.parse_options(list(map(str, arguments))))


def options(checkpoint, folder, *more):
    return ["--checkpoint", checkpoint, "--output-dir", folder / "out", "--cache-dir", folder / "cache", "--device",
            "cpu", "--count", "7", "--batch-size", "3", "--samples", "3", "--segmenter-steps", "2", *more]


# ------------------------------------------------------------------------------------ the whole, from a checkpoint

def test_a_run_again_gives_the_same_and_draws_only_what_is_missing(checkpoint, tmp_path, quick, capsys):
    command, out = options(checkpoint, tmp_path, *ALL), tmp_path / "out"
    first, printed, page = score(*command), capsys.readouterr().out, (out / "eval.png").read_bytes()
    assert set(first) == {"fid", "miou", "diversity"}
    content = json.loads((out / "eval.json").read_text())
    assert all("protocol" in s for s in content["scores"].values()), "every number with its protocol"
    assert Image.open(out / "eval.png").size == (6 * (6 * 32 + 4) - 4, 16 + 7 * (6 * 32 + 16) + 16)
    assert "LPIPS diversity                        not run" in printed
    contents = {file: file.read_bytes() for file in sorted((out / "pictures").glob("seed*/*.png"))}
    assert len(contents) == 3 * 7 + 7, "the page wants a fourth seed of its maps"
    kept, lost = {file: file.stat().st_mtime_ns for file in contents}, [list(contents)[n] for n in (1, 9, 20, 25)]
    for file in lost:
        file.unlink()
        kept.pop(file)
    lost[0].with_name(lost[0].name + ".tmp").write_bytes(b"half")
    assert score(*command) == first and printed == capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in kept} == kept, "pictures that were there are not drawn again"
    assert {file: file.read_bytes() for file in contents} == contents and page == (out / "eval.png").read_bytes()
    found = score("--fake", out / "pictures/seed000", "--dataset", "toy", "--count", 7, "--batch-size", 3, "--device",
                  "cpu", "--segmenter-steps", 2, "--output-dir", tmp_path / "fake", "--cache-dir", tmp_path / "cache")
    for metric, number in (("fid", "value"), ("miou", "generated")):
        assert found[metric][number] == first[metric][number], "the folder scores as the checkpoint that drew it"


def test_a_later_call_adds_to_the_scores_of_the_same_pictures_alone(checkpoint, tmp_path, quick, monkeypatch):
    def held(folder):
        return json.loads((folder / "out/eval.json").read_text())["scores"]
    first = score(*options(checkpoint, tmp_path, "--metrics", "miou"))
    second = score(*options(checkpoint, tmp_path, "--metrics", "fid"))
    assert held(tmp_path) == {**first, **second} and set(second) == {"fid"}
    score(*options(checkpoint, tmp_path, "--metrics", "fid", "--count", 6))
    assert set(held(tmp_path)) == {"fid"}, "mIoU was of 7 maps"

    fake = tmp_path / "out/pictures/seed000"
    common = ["--fake", fake, "--dataset", "toy", "--count", 7, "--device", "cpu", "--segmenter-steps", 2,
              "--output-dir", tmp_path / "folder/out", "--cache-dir", tmp_path / "cache"]
    score(*common, "--metrics", "miou")
    file = tmp_path / "folder/out/eval.json"
    file.write_text(file.read_text().replace('"scores": {', '"scores": {"made of mIoU": {},'))
    monkeypatch.chdir(fake)
    score("--fake", ".", *common[2:], "--metrics", "fid")
    assert set(held(tmp_path / "folder")) == {"miou", "made of mIoU", "fid"}, "the same folder by another name"
    score(*common, "--metrics", "fid")
    assert set(held(tmp_path / "folder")) == {"miou", "fid"}, "what was made of scores goes with them"
    Image.new("RGB", (32, 32)).save(fake / "val0003.png")
    score(*common, "--metrics", "fid")
    assert set(held(tmp_path / "folder")) == {"fid"}, "mIoU was of another val0003.png"


def test_pictures_of_another_checkpoint_are_not_reused(checkpoint, tmp_path, quick):
    first, *further = score(*options(checkpoint, tmp_path, "--metrics", "fid", "--fid-seeds", "2"))["fid"]["values"]
    assert len(further) == 1 and len(list((tmp_path / "out/pictures").glob("seed*/*.png"))) == 2 * 7
    other = write_checkpoint(tmp_path / "ema_0000001.pt", 1)
    with pytest.raises(InputError, match="pictures of another checkpoint.*--force"):
        score(*options(other, tmp_path, "--metrics", "fid"))
    with pytest.raises(InputError, match="pictures of another amp"):
        score(*options(checkpoint, tmp_path, "--metrics", "fid", "--amp", "bf16"))
    assert score(*options(other, tmp_path, "--metrics", "fid", "--force"))["fid"]["value"] != first


def test_batches_are_dealt_from_one_list():
    """Seven maps in batches of three: what is in a batch is the same for any number of ranks."""
    whole = [[0, 1, 2], [3, 4, 5], [6]]
    for world, expected in ((1, [whole]), (2, [whole[::2], whole[1::2]]), (5, [[b] for b in whole] + [[], []])):
        assert [batches(7, 3, Ranks(CPU, rank, world)) for rank in range(world)] == expected


def test_every_map_and_seed_has_a_z_of_its_own():
    z = torch.stack([noise([0, 1, 199], seed, 4) for seed in (0, 1, 19)])
    assert torch.equal(z[2, 1], z_of_seed(19 * SEED_STRIDE + 1, 4))
    assert len(z.flatten(0, 1).unique(dim=0)) == 9
    assert MOST_SEEDS * SEED_STRIDE < 2 ** 32, "torch keeps 32 bits of a seed"


def test_pictures_are_those_of_map_and_seed_and_the_generator_in_memory_scores_the_same(checkpoint, tmp_path, quick):
    written = score(*options(checkpoint, tmp_path, "--metrics", "fid,diversity", "--batch-size", 16))["fid"]["value"]
    (G, _), toy = load_generator(checkpoint), toy_of(32, count=7)
    expected = generate(G, *conditions([toy[5]]), z_of_seed(2 * SEED_STRIDE + 5, G.z_dim)[None], CPU)[0]
    found = read_rgb(tmp_path / "out/pictures/seed002/val0005.png")
    assert np.abs(found.astype(int) - expected).max() <= 1
    scoring = fid.open_scoring(toy, "random", tmp_path / "other", ALONE)
    found = fid.score_generator(lambda samples, maps: generate(G, *conditions(samples), noise(maps, 0, G.z_dim), CPU),
                                toy, scoring, ALONE)
    assert found == {"tiny distance": pytest.approx(written, rel=1e-12)}


def test_two_folders(tmp_path, inception_weights, narrow):
    """--fake and --real with a FILE of weights: the distance of their features, and 0 to itself."""
    a, b = save_scenes(tmp_path / "a", 0, 3), save_scenes(tmp_path / "b", 10, 4)
    common = ("--inception-weights", inception_weights, "--cache-dir", tmp_path / "cache", "--device", "cpu")
    found = score("--fake", a, "--real", b, "--output-dir", tmp_path / "out", *common)["fid"]
    assert (found["generated"], found["real"]) == (3, 4) and found["value"] > 0
    assert found["name"] == "distance (Inception of inception.pth)"
    assert json.loads((tmp_path / "out/eval.json").read_text())["scores"]["fid"]["value"] == found["value"]
    itself = score("--fake", b, "--real", b, "--output-dir", tmp_path / "itself", *common)["fid"]
    assert itself["value"] < 1e-9 * found["value"], "the cached statistics of the same folder"


def test_two_ranks_print_what_one_prints(checkpoint, tmp_path):
    """To the last digit, from nothing: pictures, segmenter and statistics over two processes (gloo)."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys\nsys.path.append({str(ROOT / 'tests')!r})\n"
        "import conftest, evaluate\nfrom metrics import fid, segmentation\n"
        "fid.load_inception, segmentation.SAMPLES = conftest.tiny_inception, 8\n"
        "evaluate.main(sys.argv[1:])\n")
    printed, pictures = [], []
    for ranks in (2, 1):
        folder = tmp_path / str(ranks)
        process = start(script, *options(checkpoint, folder, *ALL), ranks=ranks)
        printed.append(printed_by(process).replace(str(folder), ""))
        pictures.append({f.relative_to(folder): f.read_bytes() for f in sorted(folder.glob("out/pictures/*/*.png"))})
    assert "tiny distance" in printed[0] and "mIoU" in printed[0]
    assert printed[0] == printed[1]
    assert len(pictures[0]) > 21 and pictures[0] == pictures[1]


def test_the_toy_default_needs_no_download(checkpoint, tmp_path, narrow, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    monkeypatch.setattr(segmentation, "SAMPLES", 8)
    monkeypatch.setattr(fid, "CALIBRATION_SCENES", 2)
    monkeypatch.setattr(latency, "RUNS", 3)
    monkeypatch.setattr(latency, "best_throughput", lambda _, G, precision, device: {
        "precision": precision, "batch_size": 1, "pictures_per_second": 1.0})
    found = score(*options(checkpoint, tmp_path, "--latency-modes", "eager"))
    assert list(found) == ["fid", "miou", "diversity", "latency"]
    assert found["fid"]["name"] == {"lite0": "Lite0 distance", "random": "random-Inception distance"}[
        fid.without_download()] and found["diversity"]["LPIPS"] is None
    assert found["latency"]["parameters"] == sum(p.numel() for p in load_generator(checkpoint)[0].parameters())
    assert found["latency"]["flops"] > 1e6 and "32x32" in found["latency"]["protocol"]


# ------------------------------------------------------------------------------------------------- bad input

SQUARE = (32, 32)


def paint(folder, *pictures):
    """0.png, 1.png, ... of these shapes, or with these bytes."""
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        if isinstance(picture, bytes):
            (folder / f"{i}.png").write_bytes(picture)
        else:
            Image.fromarray(np.full((*picture, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def half_a_picture():
    noise, file = np.random.default_rng(0).integers(0, 256, (*SQUARE, 3)).astype(np.uint8), io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()[:1500]


def assert_refused(message, *arguments):
    with pytest.raises(InputError) as error:
        score(*arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["{name}_seed{seed:03d}.png", "seed{seed:03d}/{name}.png"])
def test_diversity_of_anyones_pictures(tmp_path, place):
    """Black, then grey pictures of three maps: one pair of each, half of the range apart."""
    names = toy_of(32).names[:3]
    for seed, grey in ((4, 0), (7, 51)):
        for name in names:
            file = tmp_path / "fake" / place.format(name=name, seed=seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (grey,) * 3).save(file)
    common = "--fake", tmp_path / "fake", "--dataset", "toy", "--count", 3, "--metrics", "diversity", "--device", "cpu"
    found = score(*common, "--output-dir", tmp_path / "out")["diversity"]
    assert found["samples"] == 2 and found["maps"] == 3 and found["pixels"] == pytest.approx(51 / 255)
    assert_refused("expected 3 or more, as NAME_seed000.png", *common, "--samples", 3)


def test_the_folder_that_sample_writes_is_scored_without_its_grid_and_label_maps(tmp_path):
    """And a folder of other pictures is scored whole, whatever they are called."""
    for name in ("a_seed000", "a_seed001", "b_seed000", "b_seed001", "a_labels", "b_labels", "c_labels"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "grid.png")
    (tmp_path / "c_labels.png").rename(tmp_path / "c_seed000.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "a_seed0.png")
    with pytest.raises(InputError, match="a_seed00?0?.png and a_seed00?0?.png are both a under seed 0; leave one out"):
        generated.open_seeds(tmp_path)
    (tmp_path / "a_seed0.png").unlink()
    found, size = generated.open_pictures(tmp_path, "--fake")
    assert list(found) == ["a_seed000", "a_seed001", "b_seed000", "b_seed001", "c_seed000"] and size == (32, 32)
    for file in tmp_path.glob("*_seed*"):
        file.unlink()
    Image.new("RGB", (32, 32)).save(tmp_path / "grid.png")
    assert list(generated.open_pictures(tmp_path, "--fake")[0]) == ["a_labels", "b_labels", "grid"]


def paint_seeds(folder, place, greys):
    """Three toy maps' pictures under each seed: grey ones, each map a little brighter than the one before it."""
    for seed, grey in enumerate(greys):
        for i, name in enumerate(toy_of(32).names[:3]):
            file = folder / place.format(name=name, seed=seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (grey + 9 * i,) * 3).save(file)
    return folder


def test_fid_over_seeds_is_the_mean_of_the_fid_of_each_seed(tmp_path, quick):
    """Against one folder a seed; mean and standard deviation by hand (DP-GAN's Table 3)."""
    paint_seeds(tmp_path / "fake", "seed{seed:03d}/{name}.png", (0, 40, 120))

    def run(folder, *more):
        return score("--fake", folder, "--dataset", "toy", "--count", 3, "--metrics", "fid", "--device", "cpu",
                     "--output-dir", tmp_path / "out", "--cache-dir", tmp_path / "cache", "--force", *more)["fid"]
    alone = [run(tmp_path / f"fake/seed{seed:03d}")["value"] for seed in range(3)]
    found, mean = run(tmp_path / "fake", "--fid-seeds", 3), sum(alone) / 3
    assert len(set(alone)) == 3 and found["values"] == alone and found["value"] == alone[0]
    assert found["mean"] == pytest.approx(mean, rel=1e-12)
    assert found["deviation"] == pytest.approx((sum((v - mean) ** 2 for v in alone) / 2) ** 0.5, rel=1e-12)
    assert "seeds 0 to 2" in found["protocol"] and "mean" not in run(tmp_path / "fake")
    assert [number for _, number, _ in fid.rows(found)] == [f"{alone[0]:.4g}", f"{mean:.4g}"]
    with pytest.raises(InputError, match="3 pictures a map for diversity or --fid-seeds; expected 4 or more"):
        run(tmp_path / "fake", "--fid-seeds", 4)


def test_other_systems_folders_become_rows_of_one_table(tmp_path, quick, monkeypatch, capsys):
    """A system with two pictures a map and one with a single one: the numbers of eval.json, "-" for what is missing."""
    two = paint_seeds(tmp_path / "two", "{name}_seed{seed:03d}.png", (0, 51))
    one, out = paint_seeds(tmp_path / "pix", "{name}.png", (30,)), tmp_path / "out"
    words = f"--fake {two} b={one} --dataset toy --count 3 --segmenter-steps 2 --device cpu --output-dir {out} "
    others.main((words + "--metrics fid,miou,diversity --fid-seeds 2").split())
    table = (out / "others.md").read_text()
    assert table in capsys.readouterr().out
    head, _, *rows = [line[2:-2].split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert head == ["row", "mIoU", "of real", "obj-mIoU", "pixel accuracy", "diversity", "distance", "mean over seeds",
                    "deviation"]
    for name, row in zip(("two", "b"), rows):
        scores = json.loads((out / name / "eval.json").read_text())["scores"]
        of, distance = scores["miou"]["generated"], scores["fid"]
        assert row[:5] == [name, f"{of['mIoU']:.3f}", f"{scores['miou']['ratio']:.1%}", f"{of['obj_mIoU']:.3f}",
                           f"{of['pixel_accuracy']:.3f}"]
        several = [f"{distance['mean']:.1f}", f"{distance['deviation']:.2f}"] if name == "two" else ["-", "-"]
        assert row[5:] == ["0.200" if name == "two" else "-", f"{distance['value']:.1f}", *several]
    assert set(json.loads((out / "others.json").read_text())["scores"]) == {"two", "b"}
    for bad, message in ((f"b={two}", "is there twice"), (f"x={tmp_path / 'none'}", "no such folder"),
                         (f"{one} --metrics diversity", "1 pictures a map")):
        with pytest.raises(InputError, match=message):
            others.main(words.replace("--dataset", f"{bad} --dataset").split())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        others.main(words.split())


@pytest.mark.parametrize("fake, message", [
    ([SQUARE, (32, 48)], "pictures of 2 sizes (height x width), 0.png 32x32 and 1.png 32x48"),
    ([SQUARE], "1 pictures"), ([], "0 pictures"), (None, "no such folder"),
    ([b"no picture", SQUARE], "0.png: cannot be read as a picture"),
    ([half_a_picture(), SQUARE], "0.png: cannot be read as a picture"),
    ([(64, 64), (64, 64)], "--image-size 64x64 resizes them")])
def test_folders_that_cannot_be_scored(tmp_path, inception_weights, fake, message):
    if fake is not None:
        paint(tmp_path / "fake", *fake)
    assert_refused(message, "--fake", tmp_path / "fake", "--real", paint(tmp_path / "good", SQUARE, SQUARE),
                   "--output-dir", tmp_path / "out", "--inception-weights", inception_weights)


@pytest.mark.parametrize("content, arguments, message", [
    (nn.Conv2d(3, 7, 1), "--metrics miou --segmenter FILE", "tells 7 classes; expected the 11 scored ones or all 11"),
    (nn.Conv2d(3, 2, 1), "--metrics miou --segmenter FILE --segmenter-labels LABELS",
     "2 numbers, among them [99]; expected 2"),
    (nn.Flatten(), "--metrics miou --segmenter FILE", "gives no scores of shape"),
    (b"no", "--metrics miou --segmenter FILE", "not a TorchScript file"),
    (nn.Linear(2, 2).state_dict(), "--metrics fid --inception-weights FILE", "weights of another network"),
    ("torchvision's", "--metrics fid --inception-weights FILE", "(1000"),
    (None, "--metrics fid --inception-weights FILE", "cannot be read as a state dict"),
    (b"no", "--checkpoint FILE", "not an EMA file of train.py")])
def test_files_that_do_not_fit(checkpoint, inception_weights, tmp_path, content, arguments, message):
    (tmp_path / "labels").write_text("0\n99\n")
    if isinstance(content, nn.Module):
        torch.jit.save(torch.jit.trace(content, torch.rand(1, 3, 32, 32)), tmp_path / "file")
    elif isinstance(content, bytes):
        (tmp_path / "file").write_bytes(content)
    elif content is not None:
        other = {**torch.load(inception_weights), "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
        torch.save(other if content == "torchvision's" else content, tmp_path / "file")
    arguments = arguments.replace("FILE", str(tmp_path / "file")).replace("LABELS", str(tmp_path / "labels"))
    assert_refused(message, *options(checkpoint, tmp_path, *arguments.split()))


@pytest.mark.parametrize("arguments, message", [
    ("TOY --metrics fid,lpips", "lpips: no such score; choose from fid,miou,diversity,latency"),
    ("TOY --fake HERE/good", "give either --checkpoint EMA_FILE or --fake DIR"),
    ("TOY --samples 1", "--samples: 1: expected a whole number from 2 to 4000"),
    ("TOY --image-size 33", "both sides must be divisible by 2"),
    ("TOY --dataset folder --data-path HERE/data", "class 0 is a, in the checkpoint it is sky, trained on toy"),
    ("--fake HERE/good --real HERE/good --metrics latency", "--metrics latency: needs --checkpoint"),
    ("--fake HERE/good --real HERE/good --fid-seeds 5", "--real DIR needs --fake DIR, no --fid-seeds"),
    ("--fake HERE/good --dataset toy --count 2", "no picture of 2 of the 2 label maps, such as val")])
def test_options_that_do_not_fit_together(checkpoint, tmp_path, arguments, message):
    for folder in ("good", "data/images/train", "data/images/val", "data/labels/train", "data/labels/val"):
        paint(tmp_path / folder, SQUARE, SQUARE)
    (tmp_path / "data/classes.txt").write_text("a\nb\n")
    toy = " ".join(map(str, options(checkpoint, tmp_path)))
    assert_refused(message, *arguments.replace("TOY", toy).replace("HERE", str(tmp_path)).split())


@pytest.mark.parametrize("arguments, url, flag", [
    ("--metrics fid --inception-weights download", fid.INCEPTION_URL, "--inception-weights FILE"),
    ("--metrics diversity --alexnet-weights download --lpips-weights download", diversity.ALEXNET_URL,
     "--alexnet-weights FILE")])
def test_a_download_that_fails_says_which_file_and_which_flag(checkpoint, tmp_path, monkeypatch, arguments, url, flag):
    def no_network(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for message in (url, flag):
        assert_refused(message, *options(checkpoint, tmp_path, *arguments.split()))
