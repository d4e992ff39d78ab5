"""The losses of DP-SIMS (Sec. 3.3): one pure function for each equation, then their sum.

    discriminator_loss   L_D, pixel-wise focal loss with label smoothing   (Eq. 3)
    generator_loss       L_G                                               (Eq. 4)
    info_nce             L_NCE over patch features                         (Eq. 5)
    diversity_loss       L_Div between two z of one label map              (Eq. 6)
    class_weights        alpha_c of Eq. 3 and 4; equal_weights leaves them out (Table 8)
    objective            what G minimises: the weighted sum, and every reduction, in one place
    ContrastiveFeatures  VGG-19 and the projections that give Eq. 5 its vectors
    contrastive_loss     Eq. 5 at the scales 1/4, 1/8, 1/16

    paper            | here        | shape
    p(x), p(g)       | logits      | (B, C + 1, H, W), before the softmax; index C is "fake"
    t                | label_map   | (B, H, W) integers 0..C-1
    alpha_c          | alpha       | (C,)
    v, v+, v-_n      | v, v_pos, v_neg | (B, A, d_v), (B, A, d_v), (B, M, d_v), of length 1
    G^f(z_1, t), ... | features_1, features_2 | (B, C_f, H, W)

Every function computes in float32, also under autocast.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision

# PAPER: 1/4, 1/8, 1/16 of VGG, layers not named. / HERE: relu3_1, relu4_1, relu5_1 of VGG-19, up to
# and including these modules of torchvision's `features`. / WHY: their strides are the ones named.
VGG_TAPS = (11, 20, 29)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def class_weights(label_counts, unknown=None):
    """alpha_c of Eq. 3 and 4: B*H*W / (K n_c), "the same weighting scheme as in [53]" (OASIS).

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
    """alpha_c = 1 for every class but the unknown one: the unweighted focal loss of Table 8. Shapes as class_weights."""
    alpha = torch.ones_like(label_counts, dtype=torch.float32)
    if unknown is not None:
        alpha[unknown] = 0
    return alpha


def focal_log(log_p, gamma):
    """(1 - p)^gamma * log p, element by element, finite for every p, with its gradient."""
    # expm1 keeps 1 - p exact near p = 1; the floor keeps its power differentiable at p = 1
    return (-torch.expm1(log_p)).clamp_min(1e-12) ** gamma * log_p


def discriminator_loss(real_logits, fake_logits, label_map, alpha, gamma=2.0, smoothing=0.1):
    """L_D (Eq. 3): real pixels are of their class, generated ones are "fake". A scalar.

    logits (B, C + 1, H, W), label_map (B, H, W), alpha (C,). Summed over pixels, mean over images.
    smoothing: epsilon of the one-sided label smoothing, on the real pixels. With gamma and smoothing 0 it is
    OASIS's weighted cross-entropy, - E sum_c alpha_c sum_xy l_xyc log D(x)_xyc - E sum_xy log D(G)_xy,N+1 (DP-GAN Eq. 3).
    """
    log_p_x = F.log_softmax(real_logits.float(), dim=1)                   # (B, C + 1, H, W)
    log_p_g_fake = F.log_softmax(fake_logits.float(), dim=1)[:, -1]       # (B, H, W)
    every_class = focal_log(log_p_x, gamma)                               # (B, C + 1, H, W)
    own_class = every_class.gather(1, label_map[:, None])[:, 0]           # (B, H, W)
    # PAPER: targets of 1 - epsilon. / HERE: the rest spread evenly over the other C outputs, epsilon
    # 0.1. / WHY: scaling the true class alone would only rescale the loss.
    C = real_logits.shape[1] - 1
    smoothed = (1 - smoothing) * own_class + smoothing / C * (every_class.sum(1) - own_class)
    # L_D = - E sum_c alpha_c sum_i t_ic (1 - p(x)_ic)^gamma log p(x)_ic                     (Eq. 3)
    #       - E sum_i (1 - p(g)_i,C+1)^gamma log p(g)_i,C+1
    real = -(alpha[label_map] * smoothed).sum(dim=(1, 2)).mean()
    fake = -focal_log(log_p_g_fake, gamma).sum(dim=(1, 2)).mean()
    return real + fake


def generator_loss(fake_logits, label_map, alpha, gamma=2.0):
    """L_G (Eq. 4): generated pixels are taken for their class. A scalar; shapes as in Eq. 3. With gamma 0 it is the
    first term, - E sum_c alpha_c sum_xy l_xyc log D(G)_xyc, of (DP-GAN Eq. 7)."""
    log_p_g = F.log_softmax(fake_logits.float(), dim=1)                   # (B, C + 1, H, W)
    own_class = log_p_g.gather(1, label_map[:, None])[:, 0]               # (B, H, W)
    # L_G = - E sum_c alpha_c sum_i t_ic (1 - p(g)_ic)^gamma log p(g)_ic                     (Eq. 4)
    return -(alpha[label_map] * focal_log(own_class, gamma)).sum(dim=(1, 2)).mean()


def info_nce(v, v_pos, v_neg, left_out, tau=0.3):
    """L_NCE (Eq. 5), summed over the A anchors, mean over images. A scalar.

    v, v_pos (B, A, d_v); v_neg (B, M, d_v), shared by the anchors of an image; left_out (A, M) bool,
    True where a vector is not a negative of that anchor (it is its own position).
    """
    with torch.autocast(v.device.type, enabled=False):
        v, v_pos, v_neg = v.float(), v_pos.float(), v_neg.float()
        positive = (v * v_pos).sum(dim=2, keepdim=True) / tau             # (B, A, 1)
        negative = torch.einsum("bad,bmd->bam", v, v_neg) / tau           # (B, A, M)
    negative = negative.masked_fill(left_out, float("-inf"))
    # L_NCE = -log( e^(v.v+ / tau) / (e^(v.v+ / tau) + sum_n e^(v.v-_n / tau)) )             (Eq. 5)
    L_NCE = torch.cat([positive, negative], dim=2).logsumexp(dim=2) - positive[..., 0]  # (B, A)
    return L_NCE.sum(dim=1).mean()


def diversity_loss(features_1, features_2, z_1, z_2, tau_div=1.0):
    """L_Div (Eq. 6): two z of one label map must give different features. Mean over the B pairs.

    features (B, C_f, H, W), z (B, d_z).
    """
    # PAPER: L1 norms, tau_div not given. / HERE: mean absolute differences, tau_div 1. / WHY: the
    # ratio is the paper's times d_z / (C_f H W), so that tau_div does not depend on the image size.
    features_apart = (features_1.float() - features_2.float()).abs().mean(dim=(1, 2, 3))  # (B,)
    z_apart = (z_1 - z_2).float().abs().mean(dim=1)                                       # (B,)
    # L_Div = max[0, tau_div - ||G^f(z_1, t) - G^f(z_2, t)||_1 / ||z_1 - z_2||_1]            (Eq. 6)
    return (tau_div - features_apart / z_apart).clamp_min(0).mean()


def objective(gan, contrastive, diversity, pixels, anchors, lambda_gan=1.0, lambda_c=100.0,
              lambda_d=10.0, reduction="sum"):
    """What the generator minimises, as {term: weighted scalar}; their sum is the loss (Sec. 3.3).

    gan: Eq. 4. contrastive: Eq. 5 for each scale. diversity: Eq. 6. pixels: H*W. anchors: A of each scale.
    """
    # PAPER: "a weighted average of three loss functions"; Eq. 3 and 4 are sums over pixels. / HERE:
    # "sum": as printed, Eq. 5 summed over its anchors, and the whole divided by H*W (Adam does not
    # notice; Eq. 6 is in mean form already, exactly so where C_f = d_z, as at full size). "mean": every sum a
    # mean. / WHY: with means everywhere
    # lambda_C = 100 swamps the GAN term (RESULTS.md). L_D is divided by H*W as well.
    if reduction == "sum":
        contrastive = sum(contrastive, gan.new_zeros(())) / pixels
    else:
        contrastive = sum((scale / A for scale, A in zip(contrastive, anchors)), gan.new_zeros(()))
    return {"gan": lambda_gan * gan / pixels,
            "contrastive": lambda_c * contrastive,
            "diversity": lambda_d * diversity}


class ContrastiveFeatures(nn.Module):
    """H_x and H_g, and their projection into vectors of length 1 (Sec. 3.3, "Contrastive loss").

    VGG-19 is frozen; a 3x3 convolution and a two-layer MLP for each scale are trained with G.
    weights: "imagenet", "random" (drawn from seed) or the path of a state dict of torchvision's vgg19.
    vgg_width: share of VGG-19's channels, below 1 only with random weights (for small presets).
    """

    def __init__(self, weights="imagenet", vgg_width=1.0, width=256, seed=0):
        super().__init__()
        channels = [c if c == "M" else int(c * vgg_width) for c in torchvision.models.vgg.cfgs["E"]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vgg = torchvision.models.vgg.make_layers(channels)
            for layer in vgg:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out")  # as torchvision's VGG starts
        if weights != "random":
            try:
                state = (torchvision.models.VGG19_Weights.DEFAULT.get_state_dict() if weights == "imagenet"
                         else torch.load(weights, map_location="cpu", weights_only=True))
                vgg.load_state_dict({name.removeprefix("features."): tensor for name, tensor in state.items()
                                     if name.startswith("features.")})
            except OSError:  # not there, or no network
                raise
            except Exception as error:  # torch raises many kinds for a file that is something else
                raise ValueError(f"{weights}: not a state dict of torchvision's vgg19 ({type(error).__name__}: "
                                 f"{' '.join(str(error).split())[:160]})") from None
        self.backbone = vgg[:VGG_TAPS[-1] + 1].requires_grad_(False).eval()
        tapped = [self.backbone[tap - 1].out_channels for tap in VGG_TAPS]
        # PAPER: "a convolution followed by a two-layer MLP". / HERE: width 256, ReLU between, length 1.
        # WHY: CUT's habit; tau between 0.07 and 2 presumes bounded products.
        self.convs = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1) for c in tapped)
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in tapped)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, image):
        """image (B, 3, H, W) in [-1, 1] -> [(B, width, H/4, W/4), (.., H/8, ..), (.., H/16, ..)]."""
        h, maps = ((image + 1) / 2 - self.mean) / self.std, []
        for i, layer in enumerate(self.backbone):
            h = layer(h)
            if i in VGG_TAPS:
                maps.append(F.relu(self.convs[len(maps)](h)))
        return maps

    def project(self, scale, feature_map, positions):
        """Vectors at the given positions (n,) of a map (B, width, H_l, W_l): (B, n, d_v), of length 1."""
        picked = feature_map.flatten(2)[:, :, positions].transpose(1, 2)  # (B, n, width)
        return F.normalize(self.mlps[scale](picked).float(), dim=2)       # (B, n, d_v)


def draw_positions(pixels, anchors, negatives, generator):
    """Anchor and negative positions of one feature map of `pixels` positions (Eq. 5).

    -> anchors (A,), candidates (N + 1,), left_out (A, N + 1): each anchor has exactly N negatives,
    never its own position. A map that is too small has fewer of both.
    """
    N = min(negatives, pixels - 1)
    anchor = torch.randperm(pixels, generator=generator)[:anchors]
    candidate = torch.randperm(pixels, generator=generator)[:N + 1]
    left_out = anchor[:, None] == candidate[None]                         # (A, N + 1)
    left_out[:, -1] |= ~left_out.any(dim=1)                               # not among them: drop the last
    return anchor, candidate, left_out


def contrastive_loss(features, fake, real, generator, anchors=256, negatives=128, tau=0.3):
    """Eq. 5 at each scale. fake, real (B, 3, H, W) -> [L_NCE per scale], [A per scale].

    generator: a CPU torch.Generator. PAPER: one anchor, its positive and N negatives. / HERE: 256
    anchors a scale, at positions shared by the batch, real side detached. / WHY: CUT's habit; shared
    positions do not depend on how the batch is split over ranks.
    """
    # TRAP: fake first. Under autocast torch 2.6 keeps the bf16 weights of the first pass, and those of a
    # no_grad pass would lead no gradient back to the projections.
    H_g, scales, counts = features(fake), [], []
    with torch.no_grad():
        H_x = features(real)
    for scale, (h_g, h_x) in enumerate(zip(H_g, H_x)):
        anchor, candidate, left_out = (
            index.to(fake.device, non_blocking=True)
            for index in draw_positions(h_g[0, 0].numel(), anchors, negatives, generator))
        v = features.project(scale, h_g, anchor)                          # (B, A, d_v)
        with torch.no_grad():
            v_pos = features.project(scale, h_x, anchor)                  # (B, A, d_v)
            v_neg = features.project(scale, h_x, candidate)               # (B, N + 1, d_v)
        scales.append(info_nce(v, v_pos, v_neg, left_out, tau))
        counts.append(len(anchor))
    return scales, counts
