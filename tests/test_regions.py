"""Noise by region: one z for each region of the label map, in the three generators; and spectral norm folded away.

The generators are those of the other tests, tiny and at their random start, with the gates of attention open.
"""
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.utils.parametrize import is_parametrized

import sample
from baselines import dpgan, oasis
from data import offset_maps, open_dataset
from generator import CrossAttention, Generator, z_at_pixels
from sample import find_region, instances_of, load_generator, region_map, region_seeds
from support.errors import InputError
from test_dpgan import TINY as DPGAN_TINY
from test_dpgan import tiny_generator as tiny_dpgan
from test_evaluate import write_checkpoint
from test_generator import CLASSES, TINY, label_maps, noise, tiny_generator
from test_oasis import TINY as OASIS_TINY
from test_oasis import tiny_generator as tiny_oasis

MAKERS = {"dp-sims": lambda **o: tiny_generator(cross=1.0, own=1.0, **o), "oasis": tiny_oasis, "dpgan": tiny_dpgan,
          "concatenation": lambda **o: tiny_generator(own=1.0, noise="concatenation", **o)}


@pytest.fixture(params=MAKERS)
def G(request):
    return MAKERS[request.param]().requires_grad_(False)


def halves(count=2, size=64):
    """Region 0 on the left, region 1 on the right."""
    regions = torch.zeros(count, size, size, dtype=torch.long)
    regions[:, :, size // 2:] = 1
    return regions


def test_with_one_region_the_picture_is_the_same_bit_for_bit(G):
    t, z = label_maps(), noise()
    assert torch.equal(G(t, z[:, None], regions=torch.zeros_like(t)), G(t, z))


def test_the_same_z_in_every_region_is_the_picture_of_that_z(G):
    t, z = label_maps(), noise()
    torch.testing.assert_close(G(t, z[:, None].expand(-1, 2, -1), regions=halves()), G(t, z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_region_follows_its_own_z(maker):
    """Three scales without self-attention: another z from column 128 on changes nothing left of column 64, and what is
    far right follows the new z alone. The numbers of the regions mean nothing, nor does a z that no pixel asks for."""
    G = MAKERS[maker](widths=(8, 8, 6, 4), **({} if maker in ("oasis", "dpgan") else {"self_attention": False}))
    t, z, other, third = label_maps(2, 16, 192), *(noise(seed) for seed in range(3))
    regions = (torch.arange(192) >= 128).long().expand(2, 16, 192)
    found = G(t, torch.stack([z, other], 1), regions=regions)
    torch.testing.assert_close(found[..., :64], G(t, z)[..., :64], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[..., 180:], G(t, other)[..., 180:], rtol=0, atol=1e-6)
    assert (G(t, z) - G(t, other)).abs().mean() > 1e-4, "z does nothing in this test"
    swapped = G(t, torch.stack([other, z, third], 1), regions=1 - regions)
    torch.testing.assert_close(swapped, found, rtol=0, atol=1e-6)


def test_eq2_each_pixel_asks_the_tokens_of_its_own_region():
    """(Eq. 2) pixel by pixel: A of a pixel is that of the whole map under the tokens of its region."""
    torch.manual_seed(0)
    block, h, w = CrossAttention(4, 5), torch.randn(2, 4, 4, 6), torch.randn(2, 3, 2, 5)   # 3 regions of 2 tokens
    torch.nn.init.constant_(block.eta, 0.7)
    regions = torch.randint(3, (2, 8, 12))                                                 # of twice the size of h
    found, each = block(h, w, regions), [block(h, w[:, r]) for r in range(3)]
    for b, y, x in np.ndindex(2, 4, 6):
        torch.testing.assert_close(found[b, :, y, x], each[regions[b, 2 * y, 2 * x]][b, :, y, x])


def test_z_at_pixels_by_loops():
    z, regions = torch.randn(2, 3, 6), torch.randint(3, (2, 4, 5))
    found = z_at_pixels(z, regions, (4, 5))
    for b, y, x in np.ndindex(2, 4, 5):
        assert torch.equal(found[b, :, y, x], z[b, regions[b, y, x]])


@pytest.mark.parametrize("z, regions", [
    ((2, 6), halves()), ((2, 1, 6), halves()), ((2, 2, 6), -halves()), ((2, 2, 6), halves(1)), ((1, 2, 6), halves()),
    ((2, 2, 5), halves()), ((2, 2, 6), None), ((2, 2, 6), halves(size=32)), ((6,), halves())])
def test_what_does_not_fit_is_refused(G, z, regions):
    with pytest.raises(ValueError, match="expected z of shape"):
        G(label_maps(), torch.zeros(z), regions=regions)


# ----------------------------------------------------------------------------------- spectral norm, folded

@pytest.mark.parametrize("name, G, options", [
    ("dp-sims", tiny_generator, TINY), ("oasis", tiny_oasis, OASIS_TINY), ("dpgan", tiny_dpgan, DPGAN_TINY)])
def test_a_loaded_generator_has_plain_weights_and_the_same_pictures(tmp_path, name, G, options):
    torch.save({"architecture": name, "generator": dict(num_classes=CLASSES, **options), "ema": G().state_dict(),
                "step": 1, "dataset": "toy", "image_size": [32, 32], "classes": [f"{c}" for c in range(CLASSES)],
                "palette": [[c, c, c] for c in range(CLASSES)], "unknown": None}, tmp_path / "ema.pt")
    generators = {"dp-sims": Generator, "oasis": oasis.Generator, "dpgan": dpgan.Generator}
    folded, _ = load_generator(tmp_path / "ema.pt", generators=generators)
    assert not any("parametrizations" in key for key in folded.state_dict())
    assert [m for m in G().modules() if is_parametrized(m)], "nothing to fold in this test"
    t, z = label_maps(), noise()
    torch.testing.assert_close(folded(t, z), G()(t, z), rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------- sample.py --region-seeds

@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ema") / "ema_0000001.pt", 0)


def draw(checkpoint, folder, *arguments):
    """-> the picture of seed 0 of the first toy map, (H, W, 3) integers."""
    sample.main(["--checkpoint", str(checkpoint), "--dataset", "toy", "--count", "1", "--output-dir", str(folder),
                 *arguments])
    return np.array(Image.open(folder / "val0000_seed000.png")).astype(int)


def test_the_option_changes_its_region(checkpoint, tmp_path, capsys):
    """sky has another seed: the sky far from its border changes, more than what lies far below; with the picture's own
    seed everywhere nothing does. The class that is not there is named."""
    plain, same, other = (draw(checkpoint, tmp_path / str(i), *seeds) for i, seeds in enumerate(
        ([], ["--region-seeds", "sky=0,tree=0"], ["--region-seeds", "sky=3,boat=3"])))
    sky = open_dataset("toy", None, "val", (32, 32))[0]["label_map"].numpy() == 0
    assert np.abs(plain - same).max() <= 1, "more than the rounding of one level"
    changed = np.abs(plain - other).mean(axis=2)
    assert changed[sky].mean() > 2 * changed[-8:].mean()
    assert "boat=3 changes nothing" in capsys.readouterr().out


def test_instances_are_counted_from_the_left():
    """Two cars, the second one's id first; a pixel at the very centre of a car has offset 0 and still belongs to it."""
    ids = np.zeros((8, 16), np.int64)
    ids[2:5, 9:12], ids[1:4, 1:4] = 1, 2
    labels = torch.from_numpy(np.where(ids > 0, 7, 0))
    offsets = torch.from_numpy(offset_maps(ids))
    left, right = instances_of(labels == 7, offsets)
    assert torch.equal(left, torch.from_numpy(ids == 2)) and torch.equal(right, torch.from_numpy(ids == 1))
    expected = torch.where(torch.from_numpy(ids == 1), 3, torch.where(labels == 7, 1, 0))
    assert torch.equal(region_map(labels, offsets, [(7, 0), (3, 0), (7, 2), (7, 9)]), expected)


@pytest.mark.parametrize("text, message", [
    ("cat=7", "no class of this checkpoint"), ("cat=7", "car"), ("car#0=7", "no class of this checkpoint"),
    ("car", "expected classes and seeds such as"), ("car=x", "expected classes and seeds such as"),
    ("car=1,", "expected classes and seeds such as"), (f"car={2 ** 32}", "below 4294967296")])
def test_bad_names_and_seeds_get_one_line(checkpoint, tmp_path, text, message):
    with pytest.raises(InputError) as error:
        draw(checkpoint, tmp_path, "--region-seeds", text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_names_may_hold_commas_and_models_without_instances_say_so():
    assert region_seeds("door, double=3,a#b=4") == [("door, double", 3), ("a#b", 4)]
    known = {"classes": ["door, double", "a#b", "car"], "generator": {}}
    assert [find_region(name, known) for name, _ in region_seeds("door, double=3,a#b=4")] == [(0, 0), (1, 0)]
    with pytest.raises(InputError, match="this model knows no instances; give the class, car=SEED"):
        find_region("car#1", known)
