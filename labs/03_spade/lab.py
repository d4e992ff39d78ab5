"""Lab 03: SPADE and the label pyramid (Sec. 3.2, Fig. 3; DP-GAN Eq. 1, 2). Write the five functions.

    python labs/check.py 03          (as often as you like)

    paper         | here              | shape
    h^i of DP-GAN | x, y              | (B, C, H, W), a scale of the image pyramid
    h_i           | modulation[i - 1] | (B, C_i, H / 2^(i-1), W / 2^(i-1)), a scale of the label pyramid, DP-GAN's alpha
    gamma, beta   | gamma, beta       | (B, C, H, W): a number for each pixel and channel
    mu, sigma     |                   | (C,): a number for each channel
    w             | w                 | (B, n_k, d_w), the noise (lab 04)

DP-GAN counts its scales from the lowest, alpha^0; DP-SIMS from the full resolution, h_1. alpha^0 is h_L.
"""
import torch
import torch.nn.functional as F

import generator


def normalise(x, eps=1e-5):
    """Batch normalisation without its scale and shift: (x - mu) / sigma. x (B, C, H, W) -> the same shape

        mu_c, sigma_c = mean and standard deviation of channel c over all pictures and all pixels of the batch
        sigma_c = sqrt(mean of (x - mu_c)^2 + eps)

    No torch.nn and no F.batch_norm here: means and squares alone.
    """
    raise NotImplementedError("DP-GAN Eq. 1: (h - mu) / sigma, mu and sigma over n, x and y")


def spade(block, x, condition):
    """Normalise, then a scale and a shift of its own for every pixel (DP-GAN Eq. 1). x (B, C, H, W) -> as x

        gamma * (x - mu) / sigma + beta

    block.norm                     x -> (x - mu) / sigma, a torch.nn.BatchNorm2d without parameters
    block.modulation(condition)    (B, K, H, W) -> gamma, beta (B, C, H, W) each, by a 3x3 convolution

    As in the code of SPADE and of DP-GAN, the scale is 1 plus what the convolution gives.
    """
    raise NotImplementedError("DP-GAN Eq. 1: gamma * (x - mu) / sigma + beta")


def label_block(block, h, w):
    """One scale of the label pyramid (Sec. 3.2). h (B, C_in, H, W), w (B, n_k, d_w) -> h_i (B, C_i, H', W')

    "a single convolution layer with downsampling followed by batch norm, GELU activation, attention modules, and a
    pointwise convolution layer". The noise comes in before the pixels look at each other.

    block.conv, block.norm, block.out    modules of one argument; block.out is the pointwise convolution
    block.cross_attention                a module of (h, w), or None at a scale without attention
    block.self_attention                 a module of (h,), or None
    """
    raise NotImplementedError("Sec. 3.2: convolution, batch norm, GELU, attention, pointwise convolution")


def label_pyramid(pyramid, x, w):
    """The label map, scale by scale (Sec. 3.2, Fig. 3 below). x (B, C, H, W), w (B, n_k, d_w) -> [h_1, ..., h_L]

    pyramid.stem      a module, x -> (B, C_0, H, W)
    pyramid.blocks    L modules of (h, w), the first at full resolution, each of the others at half of that before it

    Each block reads what the block before it gave. h_1, at full resolution, is the first of the list.
    """
    raise NotImplementedError("Sec. 3.2: for every scale a modulation map h_i")


def generate(G, label_map, z, offsets=None, return_features=False):
    """The whole generator (Fig. 3), of which the first half is given. label_map (B, H, W), z (B, d_z) -> (B, 3, H, W)

    With return_features a pair: the picture, and G^f (B, C_f, H, W). Write the image pyramid:

    - it begins with G.first, a convolution of x at the size of h_L: every so many pixels of x, by nearest neighbour,
      F.interpolate(..., mode="nearest"), so that labels stay labels;
    - G.blocks are its L blocks of (y, condition), the lowest scale first. Before each, y is brought to the size of that
      scale, by nearest neighbour: twice as large as before, but at the first block, where it has it already;
    - the condition of the block at the size of h_i is h_i (+) Up(h_L) (DP-GAN Eq. 2): along the channels, h_i first,
      then h_L at the size of h_i, bilinear, align_corners=False;
    - G^f is the output of the last block through a LeakyReLU of slope 0.2;
    - the picture is tanh of G.to_image, the last convolution, of G^f. Take tanh in float32: .float() before it.
    """
    x, w = generator.one_hot_labels(G, label_map, z, offsets), None           # (B, C (+ 2), H, W)
    if G.noise_mapping is not None:
        w = G.noise_mapping(z)                                                # (B, n_k, d_w)
    else:                                                                     # Table 6: z at every pixel
        x = torch.cat([x, z[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)
    x = x.contiguous(memory_format=torch.channels_last)
    modulation = G.label_pyramid(x, w)                                        # [h_1, ..., h_L]
    raise NotImplementedError(f"Fig. 3: the image pyramid, from h_L to h_1, {len(modulation)} blocks")
