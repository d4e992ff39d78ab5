"""The generator of DP-SIMS: label map and noise in, picture out (Sec. 3.2, Fig. 3).

Start with Generator.forward, the last class. Its parts stand above it:

    Generator         the whole of Fig. 3: label pyramid below, image pyramid above
      NoiseMapping    z -> w, a three-layer MLP
      LabelPyramid    label map -> modulation maps h_1 (full resolution) ... h_L (lowest)
        LabelBlock    conv, batch norm, GELU, CrossAttention, SelfAttention, pointwise conv
      SPADEBlock      residual block of the image pyramid, conditioned on concat(h_i, h_L resized)
        SPADE         batch norm whose scale and shift are convolutions of that condition

                 z --MLP--> w (n_k tokens) --------+ cross-attention, 64x64 and below
                                                   v
    label map --conv--> h_1 --conv/2--> h_2 ... --conv/2--> h_L
        |                |               |                   |   h_L goes to every scale
        |                v               v                   v
        |   image <-- SPADE <--up 2-- SPADE ... <--up 2-- SPADE <--conv--+
        +----------------------------- low-resolution label map ---------+

    paper | here              | shape
    t     | label_map         | (B, H, W) integers 0..C-1; made one-hot here, on the GPU
          | offsets           | (B, 2, H, W), instance offsets (Sec. 4.1), optional
    z     | z                 | (B, d_z), an argument: nothing in this file draws noise
    w     | w                 | (B, n_k, d_w)
    h_i   | modulation[i - 1] | (B, C_i, H / 2^(i-1), W / 2^(i-1)), what block i returns; in Eq. 1, 2: h inside block i
    G^f   | features          | (B, widths[-1], H, W), what the last convolution sees (Eq. 6)

`python generator.py` prints the parameters of every part at full size.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.parametrizations import spectral_norm

# PAPER: "based on DP-GAN", no widths given. / HERE: DP-GAN supplement, Tables 6 and 8, with the six
# blocks of its released code. / WHY: its parameter count, 69.5 M, follows from these numbers.
WIDTHS = (1024, 1024, 1024, 512, 256, 128, 64)  # first convolution at 8x8, blocks at 8 ... 256
STEM_CHANNELS = 32                              # first convolution of the label pyramid
LABEL_CHANNELS = 64                             # C_i, the same at every scale
# PAPER: d_z, n_k, d_w and the MLP's hidden width are not given. / HERE: 64, 16, 64, 256.
# WHY: d_z is OASIS's; n_k must be at least 2, or the softmax of Eq. 1 is constant.
Z_DIM, NOISE_TOKENS, NOISE_WIDTH, NOISE_HIDDEN = 64, 16, 64, 256
# PAPER: attention "at spatial resolutions 64x64 and lower". / HERE: at strides of 4 and more, which is
# 64x64 at 256x256. / WHY: the parameters then do not depend on the training resolution.
ATTENTION_STRIDE = 4
# PAPER: silent on the border. / HERE: zeros; "reflect" in the toy and laptop presets. / WHY: OASIS and DP-GAN pad with
# zeros; at 64x64 these leave frames in the sky (RESULTS.md).
PADDING = "zeros"


# ------------------------------------------------------------------------------------------ inputs

def one_hot_labels(G, label_map, z, offsets, regions=None):
    """t and the offsets as channels, (B, C (+ 2), H, W) in z's dtype, on the device: what every generator here reads.

    G is asked for num_classes, offset_channels, z_dim and downsampling. Raises ValueError where the shapes do not fit.
    """
    B, H, W = label_map.shape
    if H % G.downsampling or W % G.downsampling:
        raise ValueError(f"label map of {H}x{W}: both sides must be divisible by {G.downsampling}, "
                         f"the downsampling of this generator")
    if regions is None:
        fits = z.shape == (B, G.z_dim)
    else:
        R = z.shape[1] if z.dim() == 3 else 0
        fits = z.shape == (B, R, G.z_dim) and regions.shape == (B, H, W) and 0 <= regions.min() <= regions.max() < R
    if not fits or (offsets is not None) != (G.offset_channels > 0):
        z, offsets, regions = (None if t is None else tuple(t.shape) for t in (z, offsets, regions))
        raise ValueError(f"expected z of shape ({B}, {G.z_dim}), or ({B}, R, {G.z_dim}) and regions of 0..R-1, and "
                         f"{G.offset_channels} offset channels; got z {z}, regions {regions}, offsets {offsets}")
    x = one_hot(label_map, G.num_classes, z.dtype)                        # (B, C, H, W), the one-hot t
    return x if offsets is None else torch.cat([x, offsets.to(x.dtype)], dim=1)  # (B, C + 2, H, W)


def one_hot(label_map, num_classes, dtype):
    """label_map (B, H, W) integers -> (B, C, H, W) of 0 and 1, on its device."""
    classes = torch.arange(num_classes, device=label_map.device)
    # channels-last, as the first convolution wants it
    return (label_map[..., None] == classes).to(dtype).permute(0, 3, 1, 2)  # (B, C, H, W)


def z_at_pixels(z, regions, size):
    """z (B, d_z), or (B, R, d_z) with regions (B, H, W) of 0..R-1 -> (B, d_z, H, W), z at every pixel."""
    if regions is None:
        return z[:, :, None, None].expand(-1, -1, *size)
    return torch.stack([z_b[r] for z_b, r in zip(z, regions)]).permute(0, 3, 1, 2)


def z_of_seed(seed, z_dim):
    """(d_z,), the noise of one picture: from its seed alone, the same on every machine."""
    return torch.randn(z_dim, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------ attention

def attention(query, key, value, allowed=None):
    """Scaled dot-product attention, one head (Eq. 1). query (B, T, d_q), key and value (B, n, d_q) -> (B, T, d_q).

    The T = H_i W_i pixels of a scale are the queries, the n = n_k noise tokens are keys and values (CrossAttention).
    allowed (B, T, n) bool: the tokens that a pixel sees; None: all.
    """
    d_q = query.shape[-1]
    scores = query @ key.transpose(1, 2) / d_q ** 0.5        # (B, T, n)
    scores = scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)
    # A = SoftMax(Q K^T / sqrt(d_q)) V                                                      (Eq. 1)
    return torch.softmax(scores, dim=2) @ value              # (B, T, d_q)


def fused_attention(query, key, value):
    """The same result as attention(), but the (B, T, n) scores are never stored: for self-attention, where n = T."""
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]  # (B, T, d_q)


class NoiseMapping(nn.Module):
    """w = MLP(z): (B, ..., d_z) -> (B, ..., n_k, d_w), three layers (Sec. 3.2; LeakyReLU: legend of Fig. 3)."""

    def __init__(self, z_dim, hidden, tokens, width):
        super().__init__()
        self.tokens = tokens
        self.mlp = nn.Sequential(
            nn.Linear(z_dim, hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, tokens * width))

    def forward(self, z):
        return self.mlp(z).unflatten(-1, (self.tokens, -1))  # (B, n_k, d_w)


class CrossAttention(nn.Module):
    """Noise injection: every pixel of h attends to the noise tokens w (Eq. 1, 2). h keeps its shape."""

    def __init__(self, channels, noise_width):
        super().__init__()
        # PAPER: d_q is not given. / HERE: d_q = C_i. / WHY: Eq. 2 then adds up without a projection.
        self.to_query = nn.Linear(channels, channels, bias=False)
        self.to_key = nn.Linear(noise_width, channels, bias=False)
        self.to_value = nn.Linear(noise_width, channels, bias=False)
        self.eta = nn.Parameter(torch.zeros(()))  # the gate is "initialized at 0"

    def forward(self, h, w, regions=None):
        query = self.to_query(h.flatten(2).transpose(1, 2))       # (B, HW, d_q)
        own = None                                                # a pixel sees all tokens
        if regions is not None:                                   # ours: those of its own region alone
            region = F.interpolate(regions[:, None].float(), size=h.shape[2:], mode="nearest")[:, 0]  # (B, H, W)
            own = one_hot(region, w.shape[1], torch.bool).flatten(2).transpose(1, 2)      # (B, HW, R)
            w, own = w.flatten(1, 2), own.repeat_interleave(w.shape[2], dim=2)  # (B, R n_k, d_w), (B, HW, R n_k)
        A = attention(query, self.to_key(w), self.to_value(w), own)     # (B, HW, d_q)
        A = A.transpose(1, 2).unflatten(2, h.shape[2:])           # (B, d_q, H, W)
        # PAPER: h_i is also what the block takes and returns. / HERE: h behind convolution, norm and GELU. / WHY: the
        # convolution halves the map, so what goes into it has not the shape of A.
        # a(h_i, w) = h_i + eta_i * A(h_i, w)                                               (Eq. 2)
        return h + self.eta * A


class SelfAttention(nn.Module):
    """Residual self-attention over the pixels of h (Sec. 3.2). h keeps its shape.

    PAPER: "residual self-attention block", no formula. / HERE: h + eta' SA(h), eta' starting at 0.
    WHY: it mirrors Eq. 2, and training starts from the convolutional pyramid.
    """

    def __init__(self, channels):
        super().__init__()
        self.to_query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.eta = nn.Parameter(torch.zeros(()))

    def forward(self, h):
        pixels = h.flatten(2).transpose(1, 2)                            # (B, HW, C)
        A = fused_attention(*self.to_query_key_value(pixels).chunk(3, dim=2))  # (B, HW, C)
        return h + self.eta * A.transpose(1, 2).unflatten(2, h.shape[2:])


class LabelBlock(nn.Module):
    """One scale of the label pyramid: (B, C_in, H, W), w -> h_i (B, C_out, H/stride, W/stride).

    noise_width: d_w, or 0 for a scale without cross-attention.
    """

    def __init__(self, in_channels, out_channels, stride, padding, noise_width=0, self_attention=False):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, padding_mode=padding)
        self.norm = nn.BatchNorm2d(out_channels)
        self.cross_attention = CrossAttention(out_channels, noise_width) if noise_width else None
        self.self_attention = SelfAttention(out_channels) if self_attention else None
        self.out = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, h, w, regions=None):
        h = F.gelu(self.norm(self.conv(h)))  # the text says GELU, Fig. 3 says ReLU: the text wins
        if self.cross_attention is not None:
            h = self.cross_attention(h, w, regions)
        if self.self_attention is not None:
            h = self.self_attention(h)
        return self.out(h)


class LabelPyramid(nn.Module):
    """The label map encoding network: x (B, C_in, H, W), w -> [h_1, ..., h_L], h_1 at full resolution."""

    def __init__(self, in_channels, stem_channels, channels, scales, noise_width, attention_stride, padding,
                 self_attention):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem_channels, 3, padding=1, padding_mode=padding),
            nn.BatchNorm2d(stem_channels), nn.GELU())
        self.blocks = nn.ModuleList(
            LabelBlock(stem_channels if i == 0 else channels, channels, 1 if i == 0 else 2, padding,
                       noise_width if 2 ** i >= attention_stride else 0, self_attention and 2 ** i >= attention_stride)
            for i in range(scales))

    def forward(self, x, w, regions=None):
        h, modulation = self.stem(x), []
        for block in self.blocks:
            # PAPER: what the next scale reads is not said. / HERE: h_i itself, after its pointwise
            # convolution. / WHY: Sec. 3.2 lists that convolution as part of "each block".
            h = block(h, w, regions)
            modulation.append(h)
        return modulation


class SPADE(nn.Module):
    """Batch norm, then a scale and a shift for every pixel from the condition (DP-GAN Eq. 1, 2).

    x (B, C, H, W), condition (B, K, H, W) -> (B, C, H, W)
    hidden: 0 as in DP-GAN and here. In SPADE and OASIS the condition is a bare label map; it first goes through a
    convolution of its own with `hidden` channels.
    """

    def __init__(self, channels, condition_channels, padding=PADDING, hidden=0):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.shared = nn.Sequential(
            nn.Conv2d(condition_channels, hidden, 3, padding=1, padding_mode=padding), nn.ReLU()) if hidden else None
        # gamma and beta are one 3x3 convolution each; the two run as one, which is faster
        self.to_gamma_beta = nn.Conv2d(hidden or condition_channels, 2 * channels, 3, padding=1, padding_mode=padding)

    def modulation(self, condition):
        """-> gamma, beta (B, C, H, W) each"""
        if self.shared is not None:
            condition = self.shared(condition)                       # (B, hidden, H, W)
        return self.to_gamma_beta(condition).chunk(2, dim=1)

    def forward(self, x, condition):
        gamma, beta = self.modulation(condition)
        # PAPER: gamma * (x - mu) / sigma + beta (DP-GAN Eq. 1). / HERE: (1 + gamma). / WHY: its code, and SPADE's.
        return torch.addcmul(beta, self.norm(x), 1 + gamma)


class SPADEBlock(nn.Module):
    """Residual block of the image pyramid: x (B, C_in, H, W), condition (B, K, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels, out_channels, condition_channels, padding, hidden=0):
        super().__init__()
        middle = min(in_channels, out_channels)
        self.spade_0 = SPADE(in_channels, condition_channels, padding, hidden)
        self.conv_0 = spectral_norm(nn.Conv2d(in_channels, middle, 3, padding=1, padding_mode=padding))
        self.spade_1 = SPADE(middle, condition_channels, padding, hidden)
        self.conv_1 = spectral_norm(nn.Conv2d(middle, out_channels, 3, padding=1, padding_mode=padding))
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.spade_s = SPADE(in_channels, condition_channels, padding, hidden)
            self.conv_s = spectral_norm(nn.Conv2d(in_channels, out_channels, 1, bias=False))

    def forward(self, x, condition):
        shortcut = self.conv_s(self.spade_s(x, condition)) if self.learned_shortcut else x
        y = self.conv_0(F.leaky_relu(self.spade_0(x, condition), 0.2))
        y = self.conv_1(F.leaky_relu(self.spade_1(y, condition), 0.2))
        return shortcut + y


class Generator(nn.Module):
    """G(z, t): a picture in one forward pass (Sec. 3.2, Fig. 3). The defaults are the full-size model.

    num_classes: C, the labels 0..C-1, the unknown one included.
    offset_channels: 2 where instance offsets are given (Sec. 4.1), else 0.
    widths: channels of the image pyramid, lowest scale first; there are len(widths) - 1 scales, and H
        and W must be divisible by 2^(scales - 1).
    padding: of the 3x3 convolutions, "zeros" or "reflect".
    growth: of the picture from scale to scale, "nearest", or "bilinear" as in the toy preset (RESULTS.md).
    noise: "cross-attention" (Eq. 1, 2), or "concatenation" of z to every pixel of the label map (Table 6).
    self_attention: False leaves it out (Table 6).
    PAPER: silent on initialisation. / HERE: PyTorch's defaults, eta 0. / WHY: trained well from the first run.
    """

    def __init__(self, num_classes, offset_channels=0, widths=WIDTHS, stem_channels=STEM_CHANNELS,
                 label_channels=LABEL_CHANNELS, z_dim=Z_DIM, noise_tokens=NOISE_TOKENS,
                 noise_width=NOISE_WIDTH, noise_hidden=NOISE_HIDDEN, attention_stride=ATTENTION_STRIDE,
                 padding=PADDING, noise="cross-attention", self_attention=True, growth="nearest"):
        super().__init__()
        self.num_classes, self.offset_channels, self.z_dim = num_classes, offset_channels, z_dim
        self.growth = dict(mode=growth, align_corners=False if growth == "bilinear" else None)
        scales = len(widths) - 1
        self.downsampling = 2 ** (scales - 1)
        attends = noise == "cross-attention"
        in_channels = num_classes + offset_channels + (0 if attends else z_dim)
        self.noise_mapping = NoiseMapping(z_dim, noise_hidden, noise_tokens, noise_width) if attends else None
        self.label_pyramid = LabelPyramid(in_channels, stem_channels, label_channels, scales,
                                          noise_width if attends else 0, attention_stride, padding, self_attention)
        self.first = nn.Conv2d(in_channels, widths[0], 3, padding=1, padding_mode=padding)
        self.blocks = nn.ModuleList(
            SPADEBlock(widths[i], widths[i + 1], 2 * label_channels, padding) for i in range(scales))
        self.to_image = nn.Conv2d(widths[-1], 3, 3, padding=1, padding_mode=padding)

    def forward(self, label_map, z, offsets=None, return_features=False, regions=None):
        """label_map (B, H, W) int64, z (B, d_z), offsets (B, 2, H, W) or None -> image (B, 3, H, W) in [-1, 1].

        With return_features also G^f (B, widths[-1], H, W). Raises ValueError where the shapes do not fit.
        PAPER: one z. / HERE: so, or one for each region: z (B, R, d_z), regions (B, H, W) int64 of 0..R-1, which is
        ours. / WHY: to draw one tree anew (docs/regions.md); training does not use it.
        """
        x = one_hot_labels(self, label_map, z, offsets, regions)          # (B, C (+ 2), H, W)
        if self.noise_mapping is not None:
            w = self.noise_mapping(z)                                     # (B, n_k, d_w); (B, R, n_k, d_w) by region
        else:                                                             # concatenated noise, Table 6
            w = None
            x = torch.cat([x, z_at_pixels(z, regions, x.shape[2:])], dim=1)  # (B, C (+ 2) + d_z, H, W)
        x = x.contiguous(memory_format=torch.channels_last)
        modulation = self.label_pyramid(x, w, regions)                    # h_1, ..., h_L
        h_L = modulation[-1]                                              # (B, C_L, H/2^(L-1), W/2^(L-1))
        # PAPER: "takes a low-resolution label map as input". / HERE: nearest neighbour. / WHY: labels stay labels.
        y = self.first(F.interpolate(x, size=h_L.shape[2:], mode="nearest"))
        for block, h_i in zip(self.blocks, reversed(modulation)):         # lowest scale first
            # TRAP: CUDA's autocast resizes in float32, and all would stay so up to the next convolution: back again
            y = F.interpolate(y, size=h_i.shape[2:], **self.growth).to(y.dtype)               # (B, widths[i], H', W')
            # "concatenated with a resized version of the ultimate map h_L". PAPER: how it is resized, and how the
            # picture grows, is not said. / HERE: bilinear, and nearest x2. / WHY: as DP-GAN's code; `growth`.
            resized = F.interpolate(h_L, size=h_i.shape[2:], mode="bilinear", align_corners=False).to(h_i.dtype)
            y = block(y, torch.cat([h_i, resized], dim=1))                # (B, widths[i + 1], H', W')
        features = F.leaky_relu(y, 0.2)                                   # G^f (B, widths[-1], H, W)
        image = torch.tanh(self.to_image(features).float())               # g   (B, 3, H, W)
        return (image, features) if return_features else image


def parameters_by_part(net):
    """{part: trainable parameters} for the direct children of net, in the order of construction."""
    return {name: sum(p.numel() for p in part.parameters() if p.requires_grad)
            for name, part in net.named_children()}


if __name__ == "__main__":
    for name, classes, offset_channels in (("ade20k", 151, 0), ("cityscapes", 35, 2), ("coco_stuff", 183, 2)):
        parts = parameters_by_part(Generator(classes, offset_channels))
        print(f"{name:<12}" + "  ".join(f"{part} {count:,}" for part, count in parts.items())
              + f"  total {sum(parts.values()):,}")
