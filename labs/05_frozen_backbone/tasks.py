"""What python labs/check.py 05 asks of lab.py."""
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from discriminator import Backbone
from labs.pieces import Task


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found, expected, what):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=lambda text: f"{what}\n{text}")


def a_backbone(last=False, whole=None):
    """Stages that halve the sides and keep three channels; each adds its number."""
    def stage(number):
        return lambda x: (x[:, ::2, ::2] if last and number > 1 else x[:, :, ::2, ::2].permute(0, 2, 3, 1) if last
                          else x[:, :, ::2, ::2]) + number
    return SimpleNamespace(mean=torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), channels_come_last=last, whole=whole,
                           std=torch.tensor([0.5, 0.4, 0.2]).view(1, 3, 1, 1), stages=[stage(i) for i in (1, 2, 3, 4)])


def four_levels_of_the_normalised_picture(backbone_features):
    image, mean, std = random(1, 3, 16, 32).clamp(-1, 1), (0.1, 0.2, 0.3), (0.5, 0.4, 0.2)
    x = torch.stack([((image[:, c] + 1) / 2 - mean[c]) / std[c] for c in range(3)], dim=1)
    expected = [x[:, :, ::step, ::step] + added for step, added in ((2, 1), (4, 3), (8, 6), (16, 10))]
    for last in (False, True):
        found = backbone_features(a_backbone(last), image)
        assert len(found) == 4, f"a list of four features was expected, {len(found)} came"
        for level, (f, e) in enumerate(zip(found, expected), 1):
            close(f, e, f"F_{level}" + " of a network whose channels come last" * last)
    found = backbone_features(a_backbone(whole=lambda x: [x, x + 1, x + 2, x + 3]), image)
    close(torch.stack(list(found)), torch.stack([x, x + 1, x + 2, x + 3]), "the features of backbone.whole")


def the_gradient_reaches_the_picture(backbone_features):
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    features = backbone_features(a_backbone(), image)
    assert all(f.requires_grad for f in features), "a gradient that reaches the picture was expected, none came"
    gradient, = torch.autograd.grad(features[3].sum(), image)
    close(gradient[0, :, 0, 0], 0.5 / torch.tensor([0.5, 0.4, 0.2]), "the gradient of a pixel")


def every_layer_stays_in_evaluation(stay_frozen):
    backbone = Backbone.__new__(Backbone)
    nn.Module.__init__(backbone)
    backbone.stages = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.Dropout()))
    for text, mode in (("train(False)", (False,)), ("train()", ())):
        for module in backbone.modules():
            module.training = True
        found = stay_frozen(backbone, *mode)
        following = [type(m).__name__ for m in backbone.modules() if m.training]
        assert not following, f"{text}: nothing in training mode was expected, these came: {', '.join(following)}"
        assert found is backbone, f"{text}: the backbone was expected, {found} came"


def the_rows_of_table_5(condition_features):
    feature = random(2, 3, 2, 2)
    squashed = 1 / (1 + (-feature).exp())
    close(condition_features(feature, lambda f: 2 * f + 1, sigmoid=False), 2 * feature + 1, "without the sigmoid")
    close(condition_features(feature, nn.Identity()), squashed, "the sigmoid alone")
    found = condition_features(torch.tensor([8.0, 9.0]).bfloat16().view(1, 2, 1, 1), nn.Identity())
    assert found.dtype == torch.float32, f"bfloat16 features: float32 was expected, {found.dtype} came"
    raw = condition_features(torch.ones(1, 1, 1, 1).bfloat16(), nn.Identity(), sigmoid=False)
    assert raw.dtype == torch.float32, f"bfloat16 features, without the sigmoid: float32 was expected, {raw.dtype} came"
    np.testing.assert_allclose(found.flatten(), [0.9996646, 0.9998766], atol=2e-6, err_msg="of bfloat16 features")


def every_channel_by_loops(strengths):
    feature = random(3, 5, 2, 4) * torch.tensor([1.0, 3.0, 0.1, 2.0, 0.5]).view(1, 5, 1, 1)
    feature += torch.arange(5.0).view(1, 5, 1, 1) + 2 * torch.arange(3.0).view(3, 1, 1, 1)
    s = []
    for c in range(5):
        values = feature[:, c].flatten().tolist()
        mean = sum(values) / len(values)
        s.append((sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5)
    close(strengths(feature), torch.tensor(sorted(s, reverse=True)), "the standard deviations, the strongest first")


def doubled(y):
    return y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def a_discriminator(seen, sigmoid, mixing, features):
    def block(number):
        def forward(y):
            seen.append(y)
            return y[:, :2] + number
        return forward
    return SimpleNamespace(features=lambda image: features, norms=[lambda f, i=i: f - i for i in (1, 2, 3, 4)],
                           sigmoid=sigmoid, mixing=mixing, decoder=[block(i) for i in range(5)],
                           full_resolution=lambda image: 3 * image[:, :1], to_logits=lambda y: seen.append(y) or y + 7)


def every_block_sees_what_fig_2_says(discriminate):
    image, other = random(1, 3, 32, 64), [random(1, 2, 8 >> i, 16 >> i, seed=9 + i) for i in range(4)]
    features = [random(1, 2, 8 >> i, 16 >> i, seed=i) for i in range(4)]
    for sigmoid, mixing, given in (
            (True, None, None), (False, None, features), (True, lambda c: [f * 2 for f in c], None)):
        seen, of = [], f"sigmoid {sigmoid}, mixing {'on' if mixing else 'off'}: what "
        D = a_discriminator(seen, sigmoid, mixing, other if given else features)
        logits = discriminate(D, image) if given is None else discriminate(D, image, given)
        c = [(f.sigmoid() if sigmoid else f) - i for i, f in enumerate(features, 1)]
        c = mixing(c) if mixing else c
        assert len(seen) == 6, f"five blocks and to_logits were expected to be used, {len(seen)} modules were"
        y = c[3]
        for number, skip in enumerate((c[2], c[1], c[0], None, None)):
            y = doubled(y) if skip is None else torch.cat([doubled(y), skip], dim=1)
            close(seen[number], y, f"{of}block {number + 1} of the decoder sees")
            y = y[:, :2] + number
        y = torch.cat([y, 3 * image[:, :1]], dim=1)
        y = torch.where(y > 0, y, 0.2 * y)
        close(seen[5], y, f"{of}to_logits sees")
        close(logits, y + 7, "the logits")


def the_gradient_goes_through_the_features(discriminate):
    image = random(1, 3, 32, 32).requires_grad_()
    D = a_discriminator([], True, None, None)
    D.features = lambda image: [nn.functional.avg_pool2d(image, 4 << i) for i in range(4)]
    D.full_resolution = lambda image: image[:, :1].detach()
    logits = discriminate(D, image)
    assert logits.requires_grad, "a gradient through the features to the picture was expected, none came"


TASKS = [
    Task("backbone_features", "discriminator.Backbone.forward", "Sec. 3.1 and Fig. 2, left",
         [four_levels_of_the_normalised_picture, the_gradient_reaches_the_picture]),
    Task("stay_frozen", "discriminator.Backbone.train", "Sec. 3.1, \"a fixed and pre-trained feature backbone\"",
         [every_layer_stays_in_evaluation]),
    Task("condition_features", "discriminator.condition_features", "Sec. 3.1, \"Feature conditioning\"; Table 5",
         ["test_discriminator.py::test_feature_conditioning_is_sigmoid_then_batch_statistics[True]",
          the_rows_of_table_5]),
    Task("strengths", None, "Sec. 3.1, \"ill-conditioned\"", [every_channel_by_loops]),
    Task("discriminate", "discriminator.Discriminator.forward", "Sec. 3.1 and Fig. 2",
         [every_block_sees_what_fig_2_says, the_gradient_goes_through_the_features])]
