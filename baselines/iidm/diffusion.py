"""IIDM's equations and both algorithms.

    generate              Algorithm 2: K rounds of noising and denoising
      colour_transfer     the reference's Lab means and deviations (IIDM Eq. 6)
      denoise             t = T ... 1 (IIDM Eq. 3)
        ancestral_step    one step (IIDM Eq. 5); ddim_step is the fast alternative
    average               model ensemble (IIDM Eq. 7)
    denoising_loss        Algorithm 1 (IIDM Eq. 4)
      add_noise           (IIDM Eq. 1, 2)

    paper         | here             | shape
    X_R, X_G      | reference, image | (B, 3, H, W) in [-1, 1]
    m             | label_map        | (B, H, W) integers 0..C-1
    z_t           | z                | (B, c, H / 4, W / 4), of about unit variance
    t             | t                | 1 ... 1000; z_0 is clean
    epsilon       | noise            | as z; an argument: only `generate` draws noise
    alpha_bar_t   | alpha_bar[t]     | (1001,), alpha_bar[0] = 1
"""
from typing import NamedTuple

import torch
from tqdm import tqdm

STEPS = 1000                                    # of the whole diffusion
START, ROUNDS = 320, 3                          # T and K of Algorithm 2


def noise_schedule():
    """-> (beta, alpha_bar), lists of floats over t = 0 ... STEPS, with beta_0 = 0 and alpha_bar_0 = 1.

    PAPER: "beta_t = 0.001 t". / HERE: linear from 1e-4 at t = 1 to 0.02 at t = 1000. / WHY: as printed, beta_1000 is 1
    and sqrt(alpha_bar_320) is 3e-13: IIDM Eq. 1 would keep nothing of the reference. The released code has DDPM's
    schedule, which is this one; its sqrt(alpha_bar_320) is 0.59.
    """
    beta = [0.0] + [1e-4 + (0.02 - 1e-4) * (t - 1) / (STEPS - 1) for t in range(1, STEPS + 1)]
    alpha_bar = [1.0]
    for t in range(1, STEPS + 1):
        alpha_bar.append(alpha_bar[-1] * (1 - beta[t]))  # alpha_t = 1 - beta_t, alpha_bar_t = prod_s alpha_s
    return beta, alpha_bar


BETA, ALPHA_BAR = noise_schedule()


def add_noise(z_0, alpha_bar_t, noise):
    """z_t of a clean latent (IIDM Eq. 1, 2). z_0, noise (B, c, h, w); alpha_bar_t a number or (B,)."""
    if isinstance(alpha_bar_t, torch.Tensor):
        alpha_bar_t = alpha_bar_t[:, None, None, None]                                    # (B, 1, 1, 1)
    # z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) epsilon     (IIDM Eq. 2), and with t = T (IIDM Eq. 1)
    return alpha_bar_t ** 0.5 * z_0 + (1 - alpha_bar_t) ** 0.5 * noise


def denoising_loss(model, image, label_map, t, noise, known=None):
    """The loss of Algorithm 1 (IIDM Eq. 4): a scalar, in float32.

    image (B, 3, H, W) in [-1, 1], label_map (B, H, W), t (B,) in 1 ... 1000, noise (B, c, h, w); known as in
    UNet.modulations.
    """
    with torch.no_grad():
        z_0 = model.encode(image)                                                         # z_0 = E(X_R)
    z_t = add_noise(z_0, model.alpha_bar[t], noise)                                       # (IIDM Eq. 2)
    predicted = model.unet(z_t, t, model.unet.modulations(label_map, known)).float()      # eps_theta(z_t, m, t)
    # L_(t-1) = E[gamma_t || epsilon - eps_theta(z_t, m, t) ||^2]                         (IIDM Eq. 4)
    # PAPER: gamma_t "is a constant at t", the norm is a sum. / HERE: 1 / (c h w) for every t, a mean. / WHY: DDPM's
    # simple loss; the released code has it too, beside a bound for its learned variance.
    return (noise - predicted).square().mean()


def ancestral_step(z, predicted, t, noise):
    """z_(t-1) from z_t and the predicted noise (IIDM Eq. 5). noise as z, or None for 0 (t = 1 needs none)."""
    # z_(t-1) = gamma~_t z_t - beta~_t eps_theta(z_t, m, t) + sigma~_t epsilon           (IIDM Eq. 5)
    # PAPER: gamma~_t = sqrt(ab_(t-1)) beta_t / (sqrt(ab_t) (1 - ab_t) + sqrt(ab_t) (1 - ab_(t-1)) / (1 - ab_t)), a
    # sqrt(1 - alpha_t) in beta~_t and sigma~_t = (1 - ab_(t-1)) / (1 - ab_t beta_t). / HERE: the second summand of
    # gamma~_t stands outside of its fraction, with sqrt(alpha_t); beta~_t has sqrt(1 - ab_t); sigma~_t^2 =
    # (1 - ab_(t-1)) / (1 - ab_t) beta_t. / WHY: this is DDPM's posterior q(z_(t-1) | z_t, z_0). With the printed
    # coefficients one step leaves less than a hundredth of the reference, and every chain ends in grey (test_iidm.py).
    ab, ab_before, beta = ALPHA_BAR[t], ALPHA_BAR[t - 1], BETA[t]
    gamma_tilde = ab_before ** 0.5 * beta / (ab ** 0.5 * (1 - ab)) + (1 - beta) ** 0.5 * (1 - ab_before) / (1 - ab)
    beta_tilde = ab_before ** 0.5 * (1 - ab) ** 0.5 * beta / (ab ** 0.5 * (1 - ab))
    sigma_tilde = ((1 - ab_before) / (1 - ab) * beta) ** 0.5
    z = gamma_tilde * z - beta_tilde * predicted
    return z if noise is None else z + sigma_tilde * noise


def ddim_step(z, predicted, t, s):
    """z_s from z_t, s < t, without noise (DDIM with eta 0). The released code takes such steps."""
    z_0 = (z - (1 - ALPHA_BAR[t]) ** 0.5 * predicted) / ALPHA_BAR[t] ** 0.5
    return ALPHA_BAR[s] ** 0.5 * z_0 + (1 - ALPHA_BAR[s]) ** 0.5 * predicted


def denoise(predict, z, T, noise, ddim_steps=0, show=False):
    """z_T -> z_0 (IIDM Eq. 3). predict(z, t): the noise in z; noise(): a draw from N(0, I) of z's shape.

    ddim_steps: 0 takes every t from T to 1 by IIDM Eq. 5; N takes N steps of DDIM, evenly spread.
    """
    # p(z_(0:T) | m) = p(z_T) prod_(t=1)^T p(z_(t-1) | z_t, m)                             (IIDM Eq. 3)
    steps = min(ddim_steps or T, T)
    times = [round(T * (steps - i) / steps) for i in range(steps + 1)]                    # T, ..., 0
    for t, s in tqdm(list(zip(times, times[1:])), desc="denoising", leave=False, disable=None if show else True):
        predicted = predict(z, t)
        z = ddim_step(z, predicted, t, s) if ddim_steps else ancestral_step(z, predicted, t, noise() if t > 1 else None)
    return z


def average(a, b):
    """Model ensemble of two state dicts (IIDM Eq. 7). Raises ValueError where they cannot be of one run."""
    if a.keys() != b.keys() or any(a[key].shape != b[key].shape for key in a):
        raise ValueError("two architectures")
    if any(not torch.equal(a[key], b[key]) for key in a if key.startswith("autoencoder.") or key == "latent_scale"):
        raise ValueError("two autoencoders, whose latents do not mean the same")
    return {key: (a[key] + b[key]) / 2 for key in a}  # theta* = (theta^a + theta^b) / 2  (IIDM Eq. 7)


# -------------------------------------------------------------------------------------- colour transfer

RGB_TO_XYZ = torch.tensor([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                           [0.0193339, 0.1191920, 0.9503041]], dtype=torch.float64)  # of linear sRGB
WHITE = RGB_TO_XYZ.sum(dim=1)                                                       # D65
XYZ_TO_RGB = torch.linalg.inv(RGB_TO_XYZ)
LAB_EDGE, LAB_SLOPE = (6 / 29) ** 3, (29 / 6) ** 2 / 3


def rgb_to_lab(image):
    """(B, 3, H, W) sRGB in [-1, 1] -> (B, 3, H, W) CIE L*a*b*, float64. Beyond the gamut odd, so invertible."""
    rgb = (image.double() + 1) / 2
    linear = torch.where(rgb.abs() <= 0.04045, rgb / 12.92, rgb.sign() * ((rgb.abs() + 0.055) / 1.055) ** 2.4)
    x = torch.einsum("ij,bjhw->bihw", (RGB_TO_XYZ / WHITE[:, None]).to(image.device), linear)
    f = torch.where(x > LAB_EDGE, x.clamp_min(LAB_EDGE) ** (1 / 3), LAB_SLOPE * x + 4 / 29)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], dim=1)


def lab_to_rgb(lab):
    """The inverse of rgb_to_lab."""
    y = (lab[:, 0] + 16) / 116
    f = torch.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], dim=1)
    x = torch.where(f > 6 / 29, f ** 3, (f - 4 / 29) / LAB_SLOPE)
    linear = torch.einsum("ij,bjhw->bihw", (XYZ_TO_RGB * WHITE).to(lab.device), x)
    rgb = torch.where(linear.abs() <= 0.04045 / 12.92, linear * 12.92,
                      linear.sign() * (1.055 * linear.abs() ** (1 / 2.4) - 0.055))
    return 2 * rgb - 1


def colour_transfer(image, reference):
    """CT(X_G, X_R) (IIDM Eq. 6), after Reinhard: image with the Lab means and deviations of reference.

    (B, 3, H, W) and (B, 3, H', W') in [-1, 1] -> (B, 3, H, W) float64, which may leave [-1, 1]. A channel of image
    without any deviation gets the mean alone.
    PAPER: the space is not said; Reinhard's is l alpha beta. / HERE: CIE L*a*b*, means and deviations of the whole
    picture, in float64. / WHY: the released code's space, without its 8 bits.
    """
    lab, lab_R = rgb_to_lab(image), rgb_to_lab(reference)                                 # (B, 3, H, W), (B, 3, H', W')
    mean, mean_R = (x.mean(dim=(2, 3), keepdim=True) for x in (lab, lab_R))               # (B, 3, 1, 1)
    std, std_R = (x.std(dim=(2, 3), correction=0, keepdim=True) for x in (lab, lab_R))    # (B, 3, 1, 1)
    # X~_G = CT(X_G, X_R): (x - mean_G) std_R / std_G + mean_R in each channel            (IIDM Eq. 6)
    ratio = torch.where(std > 1e-9, std_R / std.clamp_min(1e-9), 1.0)
    return lab_to_rgb((lab - mean) * ratio + mean_R)


# -------------------------------------------------------------------------------------------- inference

class Inference(NamedTuple):
    """How Algorithm 2 runs. The defaults are the paper's.

    start: T of each of the K rounds. PAPER: K is not given; "stops at X_G^2" after X_G and X_G^1. / HERE: K = 3, T =
    320 in each. / WHY: three pictures. The released code has three rounds, too, of DDIM from t = 600, 640 and 400.
    """
    start: tuple = (START,) * ROUNDS
    from_noise: bool = False        # the plain DM of Table 2: one round from N(0, I) at t = 1000, no reference
    colour_transfer: bool = True
    ddim_steps: int = 0             # 0: IIDM Eq. 5, every step
    guidance: float = 1.0           # 1: none, as in the paper


@torch.no_grad()
def generate(model, label_map, reference, seeds, inference, show=False):
    """Algorithm 2: label_map (B, H, W) int64, reference (B, 3, H, W) in [-1, 1] or None -> image (B, 3, H, W), too.

    seeds: one for each picture. All of its noise comes from its seed, so a picture does not depend on its batch. Raises
    ValueError where the shapes do not fit.
    """
    B, H, W = label_map.shape
    if H % model.downsampling or W % model.downsampling:
        raise ValueError(f"label map of {H}x{W}: both sides must be divisible by {model.downsampling}")
    found = None if reference is None else tuple(reference.shape)
    if not inference.from_noise and found != (B, 3, H, W):
        raise ValueError(f"expected references ({B}, 3, {H}, {W}), got {found}")
    if len(seeds) != B:
        raise ValueError(f"expected {B} seeds, one for each label map; got {len(seeds)}")
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (model.latent_channels, H // model.shrinks, W // model.shrinks)

    def noise():
        epsilon = torch.stack([torch.randn(shape, generator=draw) for draw in draws])    # (B, c, H / 4, W / 4)
        return epsilon.to(label_map.device, non_blocking=True)
    modulations = model.unet.modulations(label_map)
    if inference.guidance != 1:
        without = model.unet.modulations(label_map, torch.zeros(B, dtype=torch.bool, device=label_map.device))

    def predict(z, t):
        t = torch.full((B,), t, device=z.device)
        predicted = model.unet(z, t, modulations).float()
        if inference.guidance == 1:
            return predicted
        nothing = model.unet(z, t, without).float()
        return nothing + inference.guidance * (predicted - nothing)  # eps(nothing) + s (eps(m) - eps(nothing))

    def denoised(z, T):
        return model.decode(denoise(predict, z, T, noise, inference.ddim_steps, show)).clamp(-1, 1)  # X_G = D(z_0)
    if inference.from_noise:
        return denoised(noise(), STEPS)
    for k, T in enumerate(inference.start, start=1):                                      # K rounds of refinement
        if k == 1:
            z_0 = model.encode(reference)                                                 # z_0 = E(X_R)
        elif inference.colour_transfer:  # what leaves the gamut is cut, as in any picture that is written
            z_0 = model.encode(colour_transfer(image, reference).clamp(-1, 1).float())    # (IIDM Eq. 6)
        else:
            z_0 = model.encode(image)
        z_T = add_noise(z_0, ALPHA_BAR[T], noise())                                       # (IIDM Eq. 1)
        image = denoised(z_T, T)                                                          # (IIDM Eq. 3, 5)
    return image
