"""The losses of DP-SIMS (Sec. 3.3): one pure function for each equation. train.py adds them up.

    discriminator_loss   L_D, pixel-wise focal loss with label smoothing   (Eq. 3)
    generator_loss       L_G                                               (Eq. 4)
    class_weights        alpha_c of Eq. 3 and 4; equal_weights leaves them out (Table 8)
    contrastive_loss     L_NCE at the scales 1/4, 1/8, 1/16                (Eq. 5)
      ContrastiveFeatures  VGG-19 and the projections that give Eq. 5 its vectors
      draw_positions       which pixels are compared
      info_nce             the equation
    diversity_loss       L_Div between two z of one label map              (Eq. 6)

    paper            | here        | shape
    p(x), p(g)       | logits      | (B, C + 1, H, W), before the softmax; index C is "fake"
    t                | label_map   | (B, H, W) integers 0..C-1
    alpha_c          | alpha       | (C,)
    H_x, H_g         | h_x, h_g    | (B, 256, H / 4, W / 4), (.., H / 8, ..), (.., H / 16, ..), after the paper's
                     |             | convolution, which runs over the whole map before pixels are picked
    z, z+, z-_n      | picked      | (B, n, 256), features at the picked pixels, before the MLP; not the noise
    v, v+, v-_n      | v, v_pos, v_neg | (B, A, d_v), (B, A, d_v), (B, M, d_v), of length 1; d_v = 256, M = N + 1
    G^f(z_1, t), ... | features_1, features_2 | (P, C_f, H, W), P pairs

Every function computes in float32, also under autocast.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from support.weights import IMAGENET_MEAN, IMAGENET_STD, load_timm, load_vgg19

# PAPER: 1/4, 1/8, 1/16 of VGG, layers not named. / HERE: relu3_1, relu4_1, relu5_1 of VGG-19, up to
# and including these modules of torchvision's `features`. / WHY: their strides are the ones named.
VGG_TAPS = (11, 20, 29)


def class_weights(label_counts, unknown=None):
    """alpha_c of Eq. 3 and 4: B*H*W / (K n_c), (C,).

    PAPER: "the same weighting scheme as in [53]" (OASIS), no formula. / HERE: the above; 0 for the unknown class.
    WHY: OASIS's code.
    label_counts (C,): n_c, the pixels of each class in the whole batch, over all ranks. K is the
    number of known classes present. The unknown class and absent ones get 0. -> (C,) float32
    """
    n = label_counts.float()
    present = n > 0
    if unknown is not None:
        present[unknown] = False
    K = present.sum()
    return torch.where(present, n.sum() / (K * n).clamp_min(1), 0)


def equal_weights(label_counts, unknown=None):
    """alpha_c = 1 for every class but the unknown one: Table 8's unweighted focal loss. Shapes as class_weights."""
    alpha = torch.ones_like(label_counts, dtype=torch.float32)
    if unknown is not None:
        alpha[unknown] = 0
    return alpha


def log_probabilities(logits):
    """logits (B, C + 1, H, W) -> log p of every pixel in float32, (B, H, W, C + 1), as channels-last logits lie in
    memory. So does their gradient, and the last convolution takes it as it is."""
    return F.log_softmax(logits.float().permute(0, 2, 3, 1), dim=3)


def focal_log(log_p, gamma):
    """(1 - p)^gamma * log p, element by element. Value and gradient are finite for every p."""
    # expm1 keeps 1 - p exact near p = 1; the floor keeps its power differentiable at p = 1
    return (-torch.expm1(log_p)).clamp_min(1e-12) ** gamma * log_p


def discriminator_loss(real_logits, fake_logits, label_map, alpha, gamma=2.0, smoothing=0.1):
    """L_D (Eq. 3): real pixels are of their class, generated ones are "fake". A scalar.

    logits (B, C + 1, H, W), label_map (B, H, W), alpha (C,). Summed over pixels, mean over images.
    smoothing: epsilon of the one-sided label smoothing, on the real pixels. gamma 0 and smoothing 0: (DP-GAN Eq. 3).
    """
    log_p_x = log_probabilities(real_logits)                              # (B, H, W, C + 1)
    log_p_g_fake = log_probabilities(fake_logits)[..., -1]                # (B, H, W)
    every_class = focal_log(log_p_x, gamma)                               # (B, H, W, C + 1)
    own_class = every_class.gather(3, label_map[..., None])[..., 0]       # (B, H, W)
    # PAPER: targets of 1 - epsilon.
    # HERE: epsilon 0.1; it is spread evenly over the other C outputs, "fake" included.
    # WHY: scaling the true class alone would only rescale the real term.
    C = real_logits.shape[1] - 1
    smoothed = (1 - smoothing) * own_class + smoothing / C * (every_class.sum(3) - own_class)
    # L_D = - E sum_c alpha_c sum_i t_ic (1 - p(x)_ic)^gamma log p(x)_ic                     (Eq. 3)
    #       - E sum_i (1 - p(g)_i,C+1)^gamma log p(g)_i,C+1
    # sum_c t_ic (...) leaves the pixel's own class, for t is one-hot: `smoothed` is that term of pixel i.
    # The second line has neither alpha nor smoothing.
    real = -(alpha[label_map] * smoothed).sum(dim=(1, 2)).mean()
    fake = -focal_log(log_p_g_fake, gamma).sum(dim=(1, 2)).mean()
    return real + fake


def generator_loss(fake_logits, label_map, alpha, gamma=2.0):
    """L_G (Eq. 4): G wants D to assign each generated pixel to its label's class. A scalar; shapes as in Eq. 3.

    gamma 0: the first term of (DP-GAN Eq. 7).
    """
    log_p_g = log_probabilities(fake_logits)                              # (B, H, W, C + 1)
    own_class = log_p_g.gather(3, label_map[..., None])[..., 0]           # (B, H, W)
    # L_G = - E sum_c alpha_c sum_i t_ic (1 - p(g)_ic)^gamma log p(g)_ic                     (Eq. 4)
    return -(alpha[label_map] * focal_log(own_class, gamma)).sum(dim=(1, 2)).mean()


# ------------------------------------------------------------------------- Eq. 5, from top to bottom

def contrastive_loss(P, fake, real, rng, anchors=256, negatives=128, tau=0.3, reduction="sum"):
    """L_NCE (Eq. 5), summed over the scales 1/4, 1/8, 1/16. A scalar.

    Anchors: A random positions of the generated picture. Positive: the same position of the real picture. Negatives: N
    other positions of that real picture (draw_positions). Each scale of each micro-batch gets new positions. All its
    pictures, and all ranks, share them.
    Only the anchors carry a gradient, to G and to the projections. info_nce is the equation.

    P: ContrastiveFeatures, as in train.py. fake, real (B, 3, H, W) in [-1, 1]. rng: a CPU torch.Generator, for the
    positions. reduction: "sum" over the anchors, which train.py divides by H*W of the picture as it does Eq. 3 and 4;
    "mean" over the anchors.

    PAPER: one anchor, its positive and N negatives.
    HERE: 256 anchors a scale, at positions shared by the batch; one set of N + 1 candidates; real side detached.
    WHY: CUT's habit; shared positions do not depend on how the batch is split over ranks.
    """
    # TRAP: fake first. Autocast keeps the bf16 weights of the first pass. If that pass is under no_grad, the
    # projections get no gradient (seen with torch 2.6).
    H_g, total = P(fake), 0
    with torch.no_grad():
        H_x = P(real)
    for scale, (h_g, h_x) in enumerate(zip(H_g, H_x)):                    # (B, width, H_l, W_l) each
        positions = draw_positions(h_g[0, 0].numel(), anchors, negatives, rng)
        anchor, candidate, left_out = (p.to(fake.device, non_blocking=True) for p in positions)  # (A,), (M,), (A, M)
        v = P.project(scale, h_g, anchor)                                 # (B, A, d_v), of the generated picture
        with torch.no_grad():
            v_pos = P.project(scale, h_x, anchor)                         # (B, A, d_v), the same places of the real one
            v_neg = P.project(scale, h_x, candidate)                      # (B, M, d_v), other places of it
        L_NCE = info_nce(v, v_pos, v_neg, left_out, tau)
        total = total + (L_NCE if reduction == "sum" else L_NCE / len(anchor))
    return total


def draw_positions(pixels, anchors, negatives, rng):
    """Which of the `pixels` positions of a feature map are anchors, and which are their negatives (Eq. 5).

    -> anchor (A,), candidate (N + 1,), left_out (A, N + 1) bool. N + 1 candidates are drawn once, and all anchors share
    them. An anchor's own position must not be its negative. So each anchor uses N of them: it leaves out its own
    position or, if that was not drawn, the last one.
    Example with N = 2 and the candidates 5, 2, 9: anchor 2 uses 5 and 9, anchor 7 uses 5 and 2.
    A map that is too small has fewer anchors and negatives.
    """
    N = min(negatives, pixels - 1)
    anchor = torch.randperm(pixels, generator=rng)[:anchors]
    candidate = torch.randperm(pixels, generator=rng)[:N + 1]
    left_out = anchor[:, None] == candidate[None]                         # (A, N + 1), the anchor's own position
    left_out[~left_out.any(dim=1), -1] = True                             # which was not drawn: the last candidate
    return anchor, candidate, left_out


def info_nce(v, v_pos, v_neg, left_out, tau=0.3):
    """L_NCE (Eq. 5), summed over the A anchors, mean over images. A scalar.

    v, v_pos (B, A, d_v); v_neg (B, M, d_v), shared by the anchors of an image; left_out (A, M) bool, True where
    this anchor does not use this vector.
    """
    with torch.autocast(v.device.type, enabled=False):
        v, v_pos, v_neg = v.float(), v_pos.float(), v_neg.float()
        positive = (v * v_pos).sum(dim=2, keepdim=True) / tau             # (B, A, 1)
        negative = torch.einsum("bad,bmd->bam", v, v_neg) / tau           # (B, A, M)
    negative = negative.masked_fill(left_out, float("-inf"))
    # L_NCE = -log( e^(v.v+ / tau) / (e^(v.v+ / tau) + sum_n e^(v.v-_n / tau)) )             (Eq. 5)
    # with -log( e^a / (e^a + sum e^b) ) = logsumexp(a, b, ...) - a
    L_NCE = torch.cat([positive, negative], dim=2).logsumexp(dim=2) - positive[..., 0]  # (B, A)
    return L_NCE.sum(dim=1).mean()


class ContrastiveFeatures(nn.Module):
    """H_x and H_g, and their projection into vectors of length 1 (Sec. 3.3, "Contrastive loss").

    VGG-19 is frozen; a 3x3 convolution and a two-layer MLP for each scale are trained with G.
    weights: "imagenet", "random" (drawn from seed) or the path of a state dict of torchvision's vgg19.
    vgg_share: share of VGG-19's channels, below 1 only with random weights (for small presets).
    network: "vgg19", or one of weights.LITE, which comes as a pip package: ours, for want of VGG-19's weights.
    """

    def __init__(self, weights="imagenet", vgg_share=1.0, width=256, seed=0, network="vgg19"):
        super().__init__()
        self.is_vgg, mean, std = network == "vgg19", IMAGENET_MEAN, IMAGENET_STD
        if self.is_vgg:
            self.backbone = load_vgg19(weights, vgg_share, seed)[:VGG_TAPS[-1] + 1]
            tapped = [self.backbone[tap - 1].out_channels for tap in VGG_TAPS]
        else:
            self.backbone, mean, std = load_timm(network, weights, seed, levels=(1, 2, 3))    # of strides 4, 8, 16
            tapped = self.backbone.feature_info.channels()
        self.backbone.requires_grad_(False).eval()
        # PAPER: "a convolution followed by a two-layer MLP". / HERE: width 256, ReLU between, length 1.
        # WHY: CUT's habit; tau between 0.07 and 2 presumes bounded products.
        self.convs = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1) for c in tapped)
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in tapped)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, image):
        """image (B, 3, H, W) in [-1, 1] -> [(B, width, H/4, W/4), (.., H/8, ..), (.., H/16, ..)]."""
        h = ((image + 1) / 2 - self.mean) / self.std
        if self.is_vgg:
            levels = []
            for i, layer in enumerate(self.backbone):
                h = layer(h)
                if i in VGG_TAPS:
                    levels.append(h)
        else:
            levels = self.backbone(h)  # timm gives all three at once
        return [F.relu(conv(level)) for conv, level in zip(self.convs, levels)]

    def project(self, scale, feature_map, positions):
        """Vectors at the given positions (n,) of a map (B, width, H_l, W_l): (B, n, d_v), of length 1."""
        picked = feature_map.flatten(2)[:, :, positions].transpose(1, 2)  # (B, n, width)
        return F.normalize(self.mlps[scale](picked).float(), dim=2)       # (B, n, d_v)


# --------------------------------------------------------------------------------------------- Eq. 6

def diversity_loss(features_1, features_2, z_1, z_2, tau_div=1.0):
    """L_Div (Eq. 6): two z of one label map must give different features. Mean over the pairs.

    features (P, C_f, H, W), z (P, d_z): entry p of _1 and of _2 is one label map drawn with z_1 and with z_2.
    train.generator_losses draws every fourth picture of a batch so.
    """
    # PAPER: L1 norms, tau_div not given. / HERE: mean absolute differences, tau_div 1. / WHY: the
    # ratio is the paper's times d_z / (C_f H W), so that tau_div does not depend on the image size.
    features_apart = (features_1.float() - features_2.float()).abs().mean(dim=(1, 2, 3))  # (P,)
    z_apart = (z_1 - z_2).float().abs().mean(dim=1)                                       # (P,)
    # L_Div = max[0, tau_div - ||G^f(z_1, t) - G^f(z_2, t)||_1 / ||z_1 - z_2||_1]            (Eq. 6)
    return (tau_div - features_apart / z_apart).clamp_min(0).mean()
