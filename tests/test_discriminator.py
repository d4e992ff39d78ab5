"""The discriminator against Sec. 3.1 and Fig. 2: frozen backbone, conditioning, decoder, C + 1 logits.

    python -m pytest tests/test_discriminator.py          (from the repository root; under half a minute)

Oracles: "sigmoid, then batch statistics" by plain Python loops; torchvision's own networks for the backbone's
features; properties that the paper states in words (frozen, yet gradients flow through it). Backbones have
random weights here: nothing is downloaded.
"""
import math

import pytest
import torch
import torchvision
from torch import nn

from discriminator import BACKBONES, Backbone, Discriminator, ResidualBlock, condition_features

CLASSES = 5
SMALL = dict(backbone_weights="random", decoder_widths=(10, 8, 8, 6, 4), full_resolution_width=4)


def pictures(count=2, height=64, width=64, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def small_discriminator(**changes):
    """On resnet18, the cheapest backbone; a narrow decoder."""
    torch.manual_seed(0)
    return Discriminator(CLASSES, backbone="resnet18", **{**SMALL, **changes})


def assert_is(actual, expected, what, **tolerance):
    """Like assert_close, with a sentence to start from when it fails."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, **tolerance, msg=lambda text: f"{what}\n{text}")


# --------------------------------------------------------------------------------------- every backbone

@pytest.fixture(scope="module", params=BACKBONES)
def any_discriminator(request):
    """One discriminator for each backbone of the table, built once."""
    return Discriminator(CLASSES, backbone=request.param, **SMALL)


EXPECTED_CHANNELS = {  # of the four stages, from the papers of these networks
    "convnext_large": (192, 384, 768, 1536), "convnext_base": (128, 256, 512, 1024),
    "convnext_tiny": (96, 192, 384, 768), "resnet50": (256, 512, 1024, 2048),
    "resnet18": (64, 128, 256, 512), "swin_b": (128, 256, 512, 1024)}


def test_features_come_from_strides_4_8_16_32(any_discriminator, request):
    """Sec. 3.1: levels l = 1 ... 4, channels first, of a 64x96 picture: 16x24, 8x12, 4x6 and 2x3."""
    name = request.node.callspec.params["any_discriminator"]
    with torch.no_grad():
        found = [tuple(f.shape) for f in any_discriminator.backbone(pictures(1, 64, 96))]
    expected = [(1, c, 64 // s, 96 // s) for c, s in zip(EXPECTED_CHANNELS[name], (4, 8, 16, 32))]
    assert found == expected, f"{name}: features have shapes {found}"


@pytest.mark.parametrize("height, width", [(64, 64), (32, 96)])
def test_logits_for_every_pixel_and_one_output_more_than_classes(any_discriminator, height, width):
    """Fig. 2: (B, C + 1, H, W), "fake" being the one more."""
    with torch.no_grad():
        logits = any_discriminator(pictures(2, height, width))
    assert logits.shape == (2, CLASSES + 1, height, width), f"{height}x{width} gave {tuple(logits.shape)}"


def test_the_backbone_stays_in_eval_mode(any_discriminator):
    """Frozen means its batch norm statistics, its dropout and its stochastic depth, too."""
    any_discriminator.train()
    training = [name for name, m in any_discriminator.backbone.named_modules() if m.training]
    assert not training, f"D.train() switched parts of the frozen backbone to training: {training[:5]}"
    assert any_discriminator.decoder.training, "the decoder is trained and must follow D.train()"


def test_the_backbone_gives_the_same_features_twice(any_discriminator):
    """In D.train(), too: nothing in it is random and nothing in it moves."""
    any_discriminator.train()
    with torch.no_grad():
        first, second = (any_discriminator.backbone(pictures(1)) for _ in range(2))
    for level, (f, g) in enumerate(zip(first, second), 1):
        assert torch.equal(f, g), f"F_{level} differs between two calls with one picture"


def test_gradient_flows_through_the_frozen_backbone_to_the_image(any_discriminator):
    """Sec. 3.1: the backbone is frozen, but G learns through it. Here the features alone, no trained path."""
    image = pictures(1).requires_grad_()
    for level, f in enumerate(any_discriminator.backbone(image), 1):
        gradient, = torch.autograd.grad((f * torch.randn_like(f)).sum(), image, retain_graph=True)
        assert gradient.any(), f"no gradient reaches the image from F_{level}"
    frozen = list(any_discriminator.backbone.parameters())
    assert frozen and not any(p.requires_grad for p in frozen), "a parameter of the backbone wants a gradient"
    assert all(p.grad is None for p in frozen), "a parameter of the backbone received a gradient"


# --------------------------------------------------------------------------------------- the backbone itself

def test_imagenets_mean_and_standard_deviation_are_applied_inside():
    """A picture of value v in [-1, 1] reaches the first stage as ((v + 1) / 2 - mean) / std."""
    backbone, seen = Backbone("resnet18", "random"), []
    backbone.stages[0].register_forward_pre_hook(lambda _, args: seen.append(args[0][0, :, 5, 7]))
    for v in (-1.0, 0.0, 0.5):
        backbone(torch.full((1, 3, 32, 32), v))
        expected = [((v + 1) / 2 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
        assert_is(seen.pop(), expected, f"pixels of {v} in [-1, 1] are not normalised as ImageNet's")


def test_a_random_backbone_depends_on_its_seed_alone():
    """"random" must be the same network after a restart, which draws other things before it."""
    torch.manual_seed(1)
    first = Backbone("resnet18", "random", seed=3).state_dict()
    torch.manual_seed(2)
    second, other = (Backbone("resnet18", "random", seed=s).state_dict() for s in (3, 4))
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"the same seed gave other weights: {different[:3]}"
    assert any(not torch.equal(first[name], other[name]) for name in first), (
        "another seed gave the same network")


def test_building_a_backbone_does_not_disturb_the_global_random_state():
    before = torch.get_rng_state()
    Backbone("resnet18", "random", seed=3)
    assert torch.equal(torch.get_rng_state(), before), "the backbone drew from the global state, or seeded it"


@pytest.mark.parametrize("outputs", [1000, 7])
def test_backbone_weights_come_from_a_file(tmp_path, outputs):
    """torchvision's resnet18, saved; its last layer is not used
    and may be of any size. Oracle: its own layers."""
    torch.manual_seed(5)
    model = torchvision.models.resnet18(num_classes=outputs).eval()
    torch.save(model.state_dict(), tmp_path / "resnet18.pt")
    features = Backbone("resnet18", str(tmp_path / "resnet18.pt"))(pictures())
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = model.maxpool(model.relu(model.bn1(model.conv1(((pictures() + 1) / 2 - mean) / std))))
    for level, layer in enumerate((model.layer1, model.layer2, model.layer3, model.layer4), 1):
        x = layer(x)
        assert_is(features[level - 1], x.detach(), f"F_{level} is not torchvision's layer{level}")


@pytest.mark.parametrize("content", ["another network", "half of the network", "a list", "text"])
def test_a_file_that_is_not_this_backbone_raises_value_error(tmp_path, content):
    """One line that names the file and the network it should hold."""
    file = tmp_path / "weights.pt"
    if content == "text":
        file.write_text("hello, these are not weights")
    elif content == "a list":
        torch.save([1, 2], file)
    elif content == "another network":
        torch.save(torchvision.models.squeezenet1_1().state_dict(), file)
    else:
        state = torchvision.models.resnet18().state_dict()
        torch.save({name: t for name, t in state.items() if not name.startswith("layer4")}, file)
    with pytest.raises(ValueError, match="resnet18") as error:
        Backbone("resnet18", str(file))
    assert str(file) in str(error.value), f"the message does not name the file: {error.value}"
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
    norm = small_discriminator().train(training).norms[0]
    norm = type(norm)(3, affine=norm.affine, track_running_stats=norm.track_running_stats).train(training)
    expected = torch.zeros_like(feature)
    for c in range(3):
        squashed = {(b, y, x): 1 / (1 + math.exp(-feature[b, c, y, x].item()))
                    for b in range(2) for y in range(2) for x in range(3)}
        mu = sum(squashed.values()) / 12
        sigma = math.sqrt(sum((s - mu) ** 2 for s in squashed.values()) / 12 + 1e-5)
        for (b, y, x), s in squashed.items():
            expected[b, c, y, x] = (s - mu) / sigma
    assert_is(condition_features(feature, norm), expected, "conditioning is not (sigmoid(F) - mu) / sigma")


def test_conditioned_features_have_mean_0_and_deviation_1_inside_the_network():
    """What the decoder gets, at all four levels, in evaluation: no running statistics anywhere."""
    D, seen = small_discriminator().eval(), []
    for norm in D.norms:
        norm.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        D(pictures())
    assert len(seen) == 4, f"{len(seen)} of the four features were conditioned"
    for level, (squashed, output) in enumerate(seen, 1):
        assert 0 <= squashed.min() and squashed.max() <= 1, (
            f"F_{level} was not through a sigmoid before the norm")
        variance, variance_before = (t.var(dim=(0, 2, 3), correction=0) for t in (output, squashed))
        assert_is(output.mean(dim=(0, 2, 3)), torch.zeros_like(variance),
                  f"mean of F_{level}", atol=1e-4, rtol=0)
        assert_is(variance, variance_before / (variance_before + 1e-5),
                  f"variance of F_{level}", atol=1e-4, rtol=0)


def test_feature_conditioning_has_nothing_to_learn_and_nothing_to_remember():
    """Sec. 3.1 writes no scale, no shift and no running statistics: the norms have no state at all."""
    state = small_discriminator().norms.state_dict()
    assert not state, f"the conditioning has parameters or buffers: {list(state)}"


def test_feature_conditioning_is_float32_under_autocast():
    """A batch norm in bfloat16 would throw away what the contraction has squeezed together."""
    D, seen = small_discriminator(), []
    D.norms[3].register_forward_hook(lambda _, args, output: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        D(pictures())
    assert seen == [torch.float32], f"the sigmoid ran in {seen[0]}"


# --------------------------------------------------------------------------------------- decoder and logits

def test_features_that_the_caller_has_already_give_the_same_logits():
    """D(image, D.backbone(image)): the training loop does not compute them twice."""
    D = small_discriminator().eval()
    assert torch.equal(D(pictures(), D.backbone(pictures())), D(pictures())), "the logits differ"


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_every_level_of_features_reaches_the_logits(level):
    """Fig. 2: all four enter the decoder, F_4 at its bottom, the others as skip connections."""
    D = small_discriminator().eval()
    features = D.backbone(pictures())
    changed = list(features)
    changed[level - 1] = features[level - 1].flip(0)  # the other image's
    assert not torch.equal(D(pictures(), features), D(pictures(), changed)), f"the decoder ignores F_{level}"


def test_the_full_resolution_path_reaches_the_logits():
    """Sec. 3.1: "a fully trainable path at the full-image resolution", beside the features."""
    D = small_discriminator().eval()
    features, moved = D.backbone(pictures()), pictures()
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
    logits = D(pictures())
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for name, p in D.named_parameters():
        if name.startswith("backbone."):
            assert p.grad is None, f"the frozen {name} received a gradient"
        else:
            assert p.requires_grad and p.grad is not None and p.grad.any(), f"no gradient reaches {name}"


def test_gradient_reaches_the_image_through_the_decoder():
    """With the full-resolution path cut off: what is left comes
    through decoder, conditioning and backbone."""
    D, image = small_discriminator(), pictures().requires_grad_()
    D.full_resolution.register_forward_hook(lambda _, args, output: output.detach())
    logits = D(image)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert image.grad is not None and image.grad.any(), "G could not learn from the pre-trained features"


def test_spectral_norm_is_on_by_default():
    """On every convolution of the residual blocks, as in OASIS
    and DP-GAN: the largest singular value is 1."""
    D, count = small_discriminator(), 0
    for name, module in D.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith(("decoder", "full_resolution")):
            assert nn.utils.parametrize.is_parametrized(module), f"{name} has no spectral norm"
            sigma = torch.linalg.matrix_norm(module.weight.flatten(1), 2).item()
            assert abs(sigma - 1) < 0.1, f"the largest singular value of {name} is {sigma:.3f}, expected 1"
            count += 1
    # five decoder blocks of two 3x3, a 1x1 where the width changes (all five); two and one on the other path
    assert count == 5 * 3 + 3 + 2, f"{count} convolutions were expected to be 20"


def test_spectral_norm_can_be_switched_off():
    normed = [name for name, m in small_discriminator(spectral=False).named_modules()
              if nn.utils.parametrize.is_parametrized(m)]
    assert not normed, f"spectral=False leaves it on {normed}"
