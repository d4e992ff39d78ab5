"""The discriminator against Sec. 3.1 and Fig. 2: frozen backbone, conditioning, decoder, C + 1 logits.

    python -m pytest tests/test_discriminator.py          (from the repository root; under half a minute)

Oracles: "sigmoid, then batch statistics" by plain Python loops; torchvision's own networks for the backbone's
features; properties that the paper states in words. Weights are random: nothing is downloaded. How weights of
frozen networks are read is tested here for the VGG-19 of Eq. 5, too.
"""
import copy
import math
import re

import numpy as np
import pytest
import torch
import torchvision

from discriminator import BACKBONES, Backbone, Discriminator, ResidualBlock, condition_features
from losses import ContrastiveFeatures
from support.errors import InputError
from support.ranks import BatchNormOverRanks, Ranks, synchronise_batch_norm
from support.weights import build_frozen, load_torchvision, load_vgg19
from test_generator import CLASSES, assert_is, largest_singular_values, without_gradient

SMALL = dict(backbone_weights="random", decoder_widths=(10, 8, 8, 6, 4), full_resolution_width=4)


def pictures(count=2, height=64, width=64, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def small_discriminator(**changes):
    """On resnet18, the cheapest backbone; a narrow decoder."""
    torch.manual_seed(0)
    return Discriminator(CLASSES, backbone="resnet18", **{**SMALL, **changes})


# --------------------------------------------------------------------------------------- every backbone

@pytest.fixture(scope="module", params=BACKBONES)
def any_discriminator(request):
    """One discriminator for each backbone of the table, built once."""
    return Discriminator(CLASSES, backbone=request.param, **SMALL)


def test_synchronised_batch_norm_spares_the_frozen_backbone(any_discriminator):
    """Conversion alone, as with two ranks; the features of every backbone stay what they were, bit for bit."""
    D = copy.deepcopy(any_discriminator)
    with torch.no_grad():
        before = D.features(pictures(1, 64, 96))
        after = synchronise_batch_norm(D, Ranks(torch.device("cpu"), 0, 2)).features(pictures(1, 64, 96))
    assert all(torch.equal(f, g) for f, g in zip(before, after))
    assert all(isinstance(norm, BatchNormOverRanks) for norm in D.norms) and len(D.norms) == 4


EXPECTED_CHANNELS = {  # of the four stages, from the papers of these networks
    "convnext_large": (192, 384, 768, 1536), "convnext_base": (128, 256, 512, 1024),
    "convnext_tiny": (96, 192, 384, 768), "resnet50": (256, 512, 1024, 2048),
    "resnet18": (64, 128, 256, 512), "swin_b": (128, 256, 512, 1024), "efficientnet_lite0": (24, 40, 112, 320),
    "efficientnet_lite1": (24, 40, 112, 320), "efficientnet_lite2": (24, 48, 120, 352)}


def test_features_come_from_strides_4_8_16_32_and_the_backbone_stays_as_it_is(any_discriminator, request):
    """Sec. 3.1: levels l = 1 ... 4, channels first, of a 64x96 picture: 16x24, 8x12, 4x6 and 2x3. Frozen means batch
    norm statistics, dropout and stochastic depth, too: in D.train() nothing there is random and nothing moves."""
    name, D = request.node.callspec.params["any_discriminator"], any_discriminator.train()
    assert D.decoder.training and not any(m.training for m in D.backbone.modules()), "only the rest follows D.train()"
    with torch.no_grad():
        first, second = (D.features(pictures(1, 64, 96)) for _ in range(2))
    found = [tuple(f.shape) for f in first]
    assert found == [(1, c, 64 // s, 96 // s) for c, s in zip(EXPECTED_CHANNELS[name], (4, 8, 16, 32))], name
    for level, (f, g) in enumerate(zip(first, second), 1):
        assert torch.equal(f, g), f"F_{level} differs between two calls with one picture"


def test_logits_for_every_pixel_and_one_output_more_than_classes(any_discriminator):
    """Fig. 2: (B, C + 1, H, W), "fake" being the one more."""
    for height, width in ((64, 64), (32, 96)):
        with torch.no_grad():
            assert any_discriminator(pictures(2, height, width)).shape == (2, CLASSES + 1, height, width)


def test_gradient_flows_through_the_frozen_backbone_to_the_image(any_discriminator):
    """Sec. 3.1: the backbone is frozen, but G learns through it. Here the features alone, no trained path."""
    image = pictures(1).requires_grad_()
    for level, f in enumerate(any_discriminator.features(image), 1):
        gradient, = torch.autograd.grad((f * torch.randn_like(f)).sum(), image, retain_graph=True)
        assert gradient.any(), f"no gradient reaches the image from F_{level}"
    frozen = list(any_discriminator.backbone.parameters())
    assert frozen and not any(p.requires_grad for p in frozen), "a parameter of the backbone wants a gradient"
    assert all(p.grad is None for p in frozen), "a parameter of the backbone received a gradient"


# ------------------------------------------------- frozen networks and their weights: a backbone, and VGG-19 of Eq. 5

def frozen(name, weights, seed=0):
    if name == "resnet18":
        return Backbone(name, weights, seed)
    return ContrastiveFeatures(weights, 1 / 16 if weights == "random" else 1.0, 8, seed).backbone


def test_imagenets_mean_and_standard_deviation_are_applied_inside():
    """A picture of value v in [-1, 1] reaches the first layer as ((v + 1) / 2 - mean) / std."""
    backbone, vgg = Backbone("resnet18", "random"), ContrastiveFeatures("random", 1 / 16, 8)
    for net, first_layer in ((backbone, backbone.stages[0]), (vgg, vgg.backbone[0])):
        seen = []
        first_layer.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, :, 5, 7]))
        for v in (-1.0, 0.0, 0.5):
            net(torch.full((1, 3, 32, 32), v))
            expected = [((v + 1) / 2 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
            assert_is(seen.pop(), expected, f"pixels of {v} in [-1, 1] are not normalised as ImageNet's")


@pytest.mark.parametrize("name", ["resnet18", "vgg19"])
def test_random_weights_depend_on_their_seed_alone(name):
    """"random" must be the same network after a restart, which draws other things before it."""
    torch.manual_seed(1)
    first = frozen(name, "random", seed=3).state_dict()
    torch.manual_seed(2)
    second, other = (frozen(name, "random", seed).state_dict() for seed in (3, 4))
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different, f"the same seed gave other weights: {different[:3]}"
    assert any(not torch.equal(first[key], other[key]) for key in first), "another seed gave the same network"
    before = torch.get_rng_state()
    load_torchvision("resnet18", "random", 3), load_vgg19("random", 1 / 16, 3)
    assert torch.equal(torch.get_rng_state(), before), "a loader drew from the global state, or seeded it"


@pytest.mark.parametrize("outputs", [1000, 7])
def test_backbone_weights_come_from_a_file(tmp_path, outputs):
    """torchvision's resnet18, saved; its last layer is not used and may be of any size. Oracle: its own layers."""
    torch.manual_seed(5)
    model = torchvision.models.resnet18(num_classes=outputs).eval()
    torch.save(model.state_dict(), tmp_path / "resnet18.pt")
    features = Backbone("resnet18", str(tmp_path / "resnet18.pt"))(pictures())
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = model.maxpool(model.relu(model.bn1(model.conv1(((pictures() + 1) / 2 - mean) / std))))
    for level, layer in enumerate((model.layer1, model.layer2, model.layer3, model.layer4), 1):
        x = layer(x)
        assert_is(features[level - 1], x.detach(), f"F_{level} is not torchvision's layer{level}")


def test_vgg_weights_come_from_a_file(tmp_path):
    """A state dict as torchvision saves it for vgg19: "features.0.weight", ...; the classifier is not used.

    Every tensor has one value of its own and, expanded, takes up no room on disk.
    """
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"])
    state = {f"features.{name}": torch.tensor(i / 100).expand(p.shape)
             for i, (name, p) in enumerate(layers.state_dict().items())}
    state["classifier.0.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "vgg19.pt")
    for name, p in frozen("vgg19", str(tmp_path / "vgg19.pt")).state_dict().items():
        assert (p == state[f"features.{name}"]).all(), f"{name} is not what the file holds"


NOT_WEIGHTS = {"another network": lambda: torchvision.models.squeezenet1_1().state_dict(), "a list": lambda: [1, 2],
               "the first layer alone": lambda: {"conv1.weight": torch.zeros(64, 3, 7, 7),
                                                 "features.0.weight": torch.zeros(64, 3, 3, 3)}}


@pytest.mark.parametrize("content", [*NOT_WEIGHTS, "text"])
@pytest.mark.parametrize("name", ["resnet18", "vgg19"])
def test_a_file_that_does_not_fit_raises_value_error_and_gets_one_line(tmp_path, name, content):
    """The line names the file and the network it should hold."""
    file = tmp_path / "weights.pt"
    file.write_text("hello, these are not weights")
    if content != "text":
        torch.save(NOT_WEIGHTS[content](), file)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        frozen(name, str(file))
    with pytest.raises(InputError, match=f"--weights {re.escape(str(file))}: .*torchvision's {name}") as error:
        build_frozen(lambda: frozen(name, str(file)), name, str(file), "--weights", Ranks(torch.device("cpu")))
    assert "\n" not in str(error.value), f"the message has more than one line: {error.value}"


def test_an_unknown_backbone_raises_value_error():
    """The message lists the ones that are known."""
    with pytest.raises(ValueError, match="vgg99.*convnext_large.*swin_b"):
        Backbone("vgg99", "random")


# --------------------------------------------------------------------------------------- feature conditioning

@pytest.mark.parametrize("training", [True, False])
def test_feature_conditioning_is_sigmoid_then_batch_statistics(training):
    """Sec. 3.1 by loops: F' = sigmoid(F); (F' - mu) / sigma with mu, sigma of the channel in this very batch,
    in evaluation, too. sigma is batch norm's: mean of squares, 1e-5 beside it under the root.

    Features around 2, 0 and -2, so that the order matters: sigmoid after the norm is something else.
    """
    feature = 3 * torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    feature += torch.tensor([2.0, 0.0, -2.0]).view(1, 3, 1, 1)
    norm = small_discriminator().norms[0]
    norm = type(norm)(3, affine=norm.affine, track_running_stats=norm.track_running_stats).train(training)
    expected = torch.zeros_like(feature)
    for c in range(3):
        squashed = {(b, y, x): 1 / (1 + math.exp(-feature[b, c, y, x].item())) for b, y, x in np.ndindex(2, 2, 3)}
        mu = sum(squashed.values()) / 12
        sigma = math.sqrt(sum((s - mu) ** 2 for s in squashed.values()) / 12 + 1e-5)
        for (b, y, x), s in squashed.items():
            expected[b, c, y, x] = (s - mu) / sigma
    assert_is(condition_features(feature, norm), expected, "conditioning is not (sigmoid(F) - mu) / sigma")


def test_conditioned_features_have_mean_0_and_deviation_1_inside_the_network():
    """What the decoder gets, at all four levels, in evaluation. Sec. 3.1 writes no scale, no shift and no running
    statistics: the norms have no state. Autocast must not reach them: bfloat16 would throw away what the sigmoid has
    squeezed together."""
    D, seen = small_discriminator().eval(), []
    assert not D.norms.state_dict(), "the conditioning has parameters or buffers"
    for norm in D.norms:
        norm.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        D(pictures())
        with torch.autocast("cpu", torch.bfloat16):
            D(pictures())
    assert len(seen) == 8, f"{len(seen) / 2} of the four features were conditioned"
    assert all(squashed.dtype == torch.float32 for squashed, _ in seen), "the sigmoid ran in less than float32"
    for level, (squashed, output) in enumerate(seen[:4], 1):
        assert 0 <= squashed.min() and squashed.max() <= 1, f"F_{level} was not through a sigmoid before the norm"
        variance, variance_before = (t.var(dim=(0, 2, 3), correction=0) for t in (output, squashed))
        tolerance = dict(atol=1e-4, rtol=0)
        assert_is(output.mean(dim=(0, 2, 3)), torch.zeros_like(variance), f"mean of F_{level}", **tolerance)
        assert_is(variance, variance_before / (variance_before + 1e-5), f"variance of F_{level}", **tolerance)


# --------------------------------------------------------------------------------------- decoder and logits

def test_every_level_of_features_reaches_the_logits():
    """Fig. 2: all four enter the decoder, F_4 at its bottom, the others as skip connections. D(image) is
    D(image, D.features(image)): the training loop does not compute them twice."""
    D = small_discriminator().eval()
    features, logits = D.features(pictures()), D(pictures())
    assert torch.equal(D(pictures(), features), logits), "the logits differ"
    for level, feature in enumerate(features, 1):
        changed = [f.flip(0) if f is feature else f for f in features]  # the other image's
        assert not torch.equal(D(pictures(), changed), logits), f"the decoder ignores F_{level}"


def test_the_full_resolution_path_reaches_the_logits():
    """Sec. 3.1: "a fully trainable path at the full-image resolution", beside the features."""
    D = small_discriminator().eval()
    features, moved = D.features(pictures()), pictures()
    moved[0, :, 20, 30] *= -1
    change = (D(pictures(), features) != D(moved, features)).any(dim=1)
    assert change[0, 20, 30], "a pixel changed and its logits did not"
    rows, columns = change[0].nonzero().unbind(1)
    reach = max((rows - 20).abs().max().item(), (columns - 30).abs().max().item())
    assert not change[1].any(), "the other image of the batch changed"
    assert reach <= 4, f"four 3x3 convolutions reach 4 pixels at full resolution, this path reached {reach}"


def test_the_decoder_climbs_from_1_32_to_full_resolution():
    """Five blocks end at 1/16, 1/8, 1/4, 1/2 and 1/1, with the decoder's widths."""
    D, seen = small_discriminator(), []
    for block in D.decoder:
        block.register_forward_hook(lambda _, args, output: seen.append(tuple(output.shape[1:])))
    D(pictures(1))
    expected = [(10, 4, 4), (8, 8, 8), (8, 16, 16), (6, 32, 32), (4, 64, 64)]
    assert seen == expected, f"(channels, height, width) after the five blocks: {seen}"


@pytest.mark.parametrize("in_channels, out_channels, first", [(4, 4, False), (4, 3, False), (3, 4, True)])
def test_a_residual_block_adds_its_shortcut(in_channels, out_channels, first):
    """x + conv(LeakyReLU(conv(LeakyReLU(x)))), a 1x1 shortcut where the width changes; the raw image, whose
    negative half is as good as the other, is not rectified."""
    torch.manual_seed(0)
    block = ResidualBlock(in_channels, out_channels, spectral=True, first=first).eval()
    x = torch.randn(2, in_channels, 4, 4)
    y = block.conv_0(x if first else torch.where(x > 0, x, 0.2 * x))
    y = block.conv_1(torch.where(y > 0, y, 0.2 * y))
    shortcut = x
    if in_channels != out_channels:
        weight, bias = block.conv_s.weight[:, :, 0, 0], block.conv_s.bias.view(1, -1, 1, 1)
        shortcut = torch.einsum("oc,bchw->bohw", weight, x) + bias
    assert_is(block(x).detach(), (shortcut + y).detach(), "shortcut + residual path was expected")


@pytest.mark.parametrize("spectral", [True, False])
def test_gradient_reaches_every_trained_parameter(spectral):
    """Decoder, full-resolution path and the last convolution learn; the backbone does not."""
    D = small_discriminator(spectral=spectral).train()
    (D(pictures()) * torch.randn(2, CLASSES + 1, 64, 64, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert without_gradient(D) == [f"backbone.{name}" for name, _ in D.backbone.named_parameters()]
    assert all(p.grad is None for p in D.backbone.parameters()), "the frozen backbone received a gradient"


def test_gradient_reaches_the_image_through_the_decoder():
    """With the full-resolution path cut off: what is left comes through decoder, conditioning and backbone."""
    D, image = small_discriminator(), pictures().requires_grad_()
    D.full_resolution.register_forward_hook(lambda _, args, output: output.detach())
    (D(image) * torch.randn(2, CLASSES + 1, 64, 64, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert image.grad is not None and image.grad.any(), "G could not learn from the pre-trained features"


@pytest.mark.parametrize("changes, normed", [({}, True), (dict(spectral=False), False)])
def test_spectral_norm_is_on_by_default_and_can_be_switched_off(changes, normed):
    """On every convolution of the residual blocks, as in OASIS and DP-GAN: the largest singular value is 1."""
    sigmas, count = largest_singular_values(small_discriminator(**changes)), 0
    for name, sigma in sigmas.items():
        inside = name.startswith(("decoder", "full_resolution"))
        assert (sigma is not None) == (inside and normed), f"spectral norm of {name}: {sigma}"
        assert sigma is None or abs(sigma - 1) < 0.1, f"the largest singular value of {name} is {sigma:.3f}, expected 1"
        count += inside
    # five decoder blocks of two 3x3, a 1x1 where the width changes (all five); two and one on the other path
    assert count == 5 * 3 + 3 + 2, f"{count} convolutions were expected to be 20"
