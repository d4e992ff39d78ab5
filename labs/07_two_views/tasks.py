"""What python labs/check.py 07 asks of lab.py."""
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from labs.pieces import Task


def what_is_drawn_is_documented(draw_positions):
    for pixels, anchors, negatives in ((20, 8, 5), (4, 256, 128)):
        rng = torch.Generator().manual_seed(3)
        sizes = anchors, min(negatives, pixels - 1) + 1
        anchor, candidate = (torch.randperm(pixels, generator=rng)[:n] for n in sizes)
        found = draw_positions(pixels, anchors, negatives, torch.Generator().manual_seed(3))
        of = f"{anchors} anchors and {negatives} negatives of {pixels} positions: "
        torch.testing.assert_close(found[0], anchor, msg=lambda text: f"{of}the anchors\n{text}")
        torch.testing.assert_close(found[1], candidate, msg=lambda text: f"{of}the candidates\n{text}")
        left_out = torch.zeros(len(anchor), len(candidate))
        for a, position in enumerate(anchor.tolist()):
            left_out[a, candidate.tolist().index(position) if position in candidate else -1] = 1
        torch.testing.assert_close(found[2].float(), left_out, msg=lambda text: f"{of}left_out\n{text}")


def a_small_tau_is_finite(info_nce):
    v, other = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    torch.testing.assert_close(info_nce(v, v, other, torch.zeros(1, 1, dtype=torch.bool), 0.005).item(), 0.0,
                               msg=lambda text: f"e^200 against e^0, tau 0.005\n{text}")


class TwoSides:
    """In place of VGG and the projections: one weight for generated pictures, one for real ones, which are bright."""

    def __init__(self):
        self.of_fake, self.of_real = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)

    def __call__(self, image):
        return [F.avg_pool2d(image, side) for side in (4, 8, 16)]

    def project(self, scale, feature_map, positions):
        weight = self.of_real if feature_map.mean() > 5 else self.of_fake
        return F.normalize(feature_map.flatten(2)[:, :, positions].transpose(1, 2) * weight, dim=2)


def only_the_anchors_carry_a_gradient(contrastive_loss):
    P, random = TwoSides(), torch.Generator().manual_seed(0)
    fake, real = torch.rand(2, 3, 64, 32, generator=random), 10 + torch.rand(2, 3, 64, 32, generator=random)
    loss = contrastive_loss(P, fake, real, random, anchors=4, negatives=3)
    assert loss.requires_grad, "a gradient from the anchors was expected, none came"
    loss.backward()
    assert P.of_fake.grad is not None and P.of_fake.grad.any(), "a gradient from the anchors was expected, none came"
    assert P.of_real.grad is None or not P.of_real.grad.any(), (
        "no gradient of the real picture's vectors was expected, there is one")


def rows_and_columns_of_the_map(project):
    random = torch.Generator().manual_seed(0)
    feature_map, positions = torch.randn(2, 3, 2, 4, generator=random), torch.tensor([6, 1])
    layers = [torch.randn(5, 3, generator=random) for _ in range(2)]
    P = SimpleNamespace(mlps=[lambda x, w=w: x @ w.T for w in layers])
    moving = project(P, 0, feature_map.clone().requires_grad_(), positions)
    assert moving.requires_grad, "a gradient to the feature map was expected, none came"
    for scale in (0, 1):
        expected = torch.stack([torch.stack([layers[scale] @ picture[:, p // 4, p % 4] for p in positions.tolist()])
                                for picture in feature_map])
        expected = expected / expected.square().sum(dim=2, keepdim=True).sqrt()
        torch.testing.assert_close(project(P, scale, feature_map, positions), expected,
                                   msg=lambda text: f"vectors of scale {scale}\n{text}")


def the_picture_stays_and_the_features_move(blind_direction):
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 32, 3, 3, generator=random)
    u, c = blind_direction(weight), torch.randn(1, 1, 6, 6, generator=random)
    torch.testing.assert_close(torch.as_tensor(u).shape, (32,), msg=lambda text: f"the shape of u\n{text}")
    torch.testing.assert_close(u.norm().item(), 1.0, atol=1e-4, rtol=0, msg=lambda text: f"the length of u\n{text}")
    change = F.conv2d(c * u.view(1, 32, 1, 1), weight, padding=1).abs().max().item()
    torch.testing.assert_close(change, 0.0, atol=1e-4, rtol=0, msg=lambda text: f"the change of the picture\n{text}")


LOSSES = "test_losses.py::"
TASKS = [
    Task("draw_positions", "losses.draw_positions", "Sec. 3.3, above Eq. 5, \"we sample N non-matching features\"",
         [what_is_drawn_is_documented, LOSSES + "test_eq5_every_anchor_has_n_negatives_and_never_itself[0]"]),
    Task("info_nce", "losses.info_nce", "Sec. 3.3, Eq. 5",
         [LOSSES + "test_eq5_info_nce_is_the_papers_sum", LOSSES + "test_eq5_by_hand", a_small_tau_is_finite,
          LOSSES + "test_every_loss_is_float32_under_autocast"]),
    Task("project", "losses.ContrastiveFeatures.project", "Sec. 3.3, above Eq. 5, \"a two-layer MLP\"",
         [rows_and_columns_of_the_map]),
    Task("contrastive_loss", "losses.contrastive_loss", "Sec. 3.3, below Eq. 5, \"and take their sum\"",
         [LOSSES + "test_eq5_contrastive_loss_is_the_papers_sum_over_scales",
          LOSSES + "test_contrastive_gradient_reaches_the_fake_image_at_every_scale_and_the_real_one_never",
          only_the_anchors_carry_a_gradient]),
    Task("diversity_loss", "losses.diversity_loss", "Sec. 3.3, Eq. 6",
         [LOSSES + "test_eq6_diversity_loss_is_the_papers_hinge", LOSSES + "test_eq6_by_hand"]),
    Task("blind_direction", None, "Eq. 6 and the handout, \"How a generator cheats it\"",
         [the_picture_stays_and_the_features_move])]
