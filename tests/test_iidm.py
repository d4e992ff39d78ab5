"""IIDM: its Eq. 1 to 8 and Algorithms 1 and 2 by plain Python loops, and its two networks.

    python -m pytest tests/test_iidm.py          (from the repository root; under half a minute on a CPU)

Oracles: the equations and algorithms of the paper; DDPM's posterior by Bayes' rule; the printed Tables 1 and 2; known
CIE Lab values; names and shapes of the public VQ-f4 weights; parameter counts added up by hand. The expected values
take no constant and no function of the modules. Networks are tiny, full size on the meta device only.

Every block starts as its shortcut and the U-Net as 0; `tiny` gives what is 0 random values.
"""
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from baselines.iidm import networks
from baselines.iidm.diffusion import (Inference, add_noise, ancestral_step, average, colour_transfer, denoise,
                                      denoising_loss, generate, lab_to_rgb, noise_schedule, rgb_to_lab)
from baselines.iidm.networks import IIDM, Autoencoder, UNetBlock
from baselines.iidm.sample import parse_options
from baselines.iidm.scores import style_similarity, summarise, total_score
from generator import parameters_by_part
from support.errors import InputError
from test_oasis import assert_is

CLASSES, SCALE = 5, 0.3  # SCALE: latent_scale of the tiny model; below 1, so that noise shows in the pictures
NOTHING = CLASSES        # a label beyond the classes: its one-hot is all zero


def tiny():
    """Pictures in steps of 8 pixels, latents of three channels at a quarter, U-Net at two strides."""
    torch.manual_seed(0)
    model = IIDM(CLASSES, 8, (1, 1, 1), 1, 3, 0, 16, (1, 2), 1, (2,), 8, 8)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    model.latent_scale.fill_(SCALE)
    return model.eval()


def label_maps(count=2, height=16, width=24, seed=1):
    return torch.randint(CLASSES, (count, height, width), generator=torch.Generator().manual_seed(seed))


def pictures(count=2, height=16, width=24, seed=0):
    """Noise around another colour in each picture and channel, in [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    mean = torch.rand(count, 3, 1, 1, generator=draw) - 0.5
    return (mean + 0.5 * torch.rand(count, 3, height, width, generator=draw) - 0.25).clamp(-1, 1)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --------------------------------------------------------------------------------------------- the schedule

def loops_schedule(beta_of):
    """beta_t, alpha_t = 1 - beta_t and alpha_bar_t = prod_s alpha_s for t = 0 ... 1000; nothing happens at t = 0."""
    beta, alpha, bar = [0.0], [1.0], [1.0]
    for t in range(1, 1001):
        beta.append(beta_of(t))
        alpha.append(1 - beta[t])
        product = 1.0
        for s in range(1, t + 1):
            product *= alpha[s]
        bar.append(product)
    return beta, alpha, bar


# DDPM's betas: 1e-4 at t = 1, 0.02 at t = 1000, and a straight line between
beta, alpha, bar = loops_schedule(lambda t: (1e-4 * (1000 - t) + 0.02 * (t - 1)) / 999)


def test_the_schedule_is_linear_from_1e_4_to_2e_2():
    """beta_t and alpha_bar_t by loops, alpha_bar_0 = 1; the model's buffer is the same and is not saved."""
    found_beta, found_bar = noise_schedule()
    assert found_beta == pytest.approx(beta, rel=1e-12) and found_bar == pytest.approx(bar, rel=1e-12)
    assert len(found_bar) == 1001 and found_bar[0] == 1 and found_beta[1] == 1e-4 and found_beta[1000] == 0.02
    model = tiny()
    assert_is(model.alpha_bar, torch.tensor(bar), "the alpha_bar of training")
    assert "alpha_bar" not in model.state_dict()


def test_the_printed_schedule_would_leave_nothing_of_the_reference():
    """The paper prints "beta_t = 0.001 t", T = 320, and that z_T keeps the reference's style: not both are true."""
    printed_beta, _, printed_bar = loops_schedule(lambda t: 0.001 * t)
    assert math.sqrt(printed_bar[320]) < 1e-12 and printed_beta[1000] == 1
    assert math.sqrt(noise_schedule()[1][320]) == pytest.approx(0.59, abs=0.005), "what is left here"


def loops_add_noise(z_0, t_of, noise):
    """(IIDM Eq. 2), one number at a time; t_of[b] is the t of latent b."""
    rows = zip(t_of, z_0.flatten(1).tolist(), noise.flatten(1).tolist())
    z = [[math.sqrt(bar[t]) * x + math.sqrt(1 - bar[t]) * e for x, e in zip(xs, noises)] for t, xs, noises in rows]
    return torch.tensor(z, dtype=z_0.dtype).view_as(z_0)


def test_iidm_eq1_the_start_keeps_sqrt_alpha_bar_of_the_reference():
    """(IIDM Eq. 1) with T = 320 of the paper: one alpha_bar, a number, for all."""
    z_0, noise = normal(2, 3, 2, 4), normal(2, 3, 2, 4, seed=1)
    assert_is(add_noise(z_0, bar[320], noise), loops_add_noise(z_0, (320, 320), noise), "z_T")
    assert torch.equal(add_noise(z_0, bar[0], noise), z_0), "at t = 0 nothing is noisy"


def test_iidm_eq2_every_latent_has_its_own_t():
    """(IIDM Eq. 2) with alpha_bar (B,), as in training."""
    z_0, noise, t_of = normal(3, 2, 3, 3), normal(3, 2, 3, 3, seed=1), (1, 320, 1000)
    found = add_noise(z_0, torch.tensor([bar[t] for t in t_of], dtype=torch.float64), noise)
    assert_is(found, loops_add_noise(z_0, t_of, noise), "z_t")


# -------------------------------------------------------------------------------------------- one step, Eq. 5

def loops_coefficients(t):
    """gamma~_t, beta~_t, sigma~_t of (IIDM Eq. 5) as DDPM has them."""
    ab, before = bar[t], bar[t - 1]
    gamma_t = math.sqrt(before) * beta[t] / (math.sqrt(ab) * (1 - ab)) + math.sqrt(alpha[t]) * (1 - before) / (1 - ab)
    beta_t = math.sqrt(before) * math.sqrt(1 - ab) * beta[t] / (math.sqrt(ab) * (1 - ab))
    return gamma_t, beta_t, math.sqrt((1 - before) / (1 - ab) * beta[t])


def printed_coefficients(t):
    """The same letter by letter as the paper prints them."""
    ab, before = bar[t], bar[t - 1]
    gamma_t = math.sqrt(before) * beta[t] / (math.sqrt(ab) * (1 - ab) + math.sqrt(ab) * (1 - before) / (1 - ab))
    beta_t = math.sqrt(before) * math.sqrt(1 - alpha[t]) * beta[t] / (math.sqrt(ab) * (1 - ab))
    return gamma_t, beta_t, (1 - before) / (1 - ab * beta[t])


@pytest.mark.parametrize("t", [1, 2, 3, 320, 999, 1000])
def test_iidm_eq5_is_the_posterior_of_ddpm(t):
    """(IIDM Eq. 5), corrected, one number at a time; and q(z_(t-1) | z_t, z_0) by Bayes: N(z_t; sqrt(alpha_t) z_(t-1),
    beta_t) times N(z_(t-1); sqrt(alpha_bar_(t-1)) z_0, 1 - alpha_bar_(t-1)) is a Gaussian; precisions add up."""
    gamma_t, beta_t, sigma_t = loops_coefficients(t)
    given = [normal(2, 2, 3, seed=seed) for seed in range(3)]
    for noise, sigma in ((given[2], sigma_t), (None, 0)):
        expected = [gamma_t * a - beta_t * b + sigma * c for a, b, c in zip(*(x.flatten().tolist() for x in given))]
        assert_is(ancestral_step(*given[:2], t, noise).flatten(), expected, f"z_(t-1) at t = {t}")
    z_0, noise = 0.7, -1.3
    z_t = math.sqrt(bar[t]) * z_0 + math.sqrt(1 - bar[t]) * noise
    mean, variance = z_0, 0.0  # at t = 1 the second Gaussian is a point
    if t > 1:
        variance = 1 / (alpha[t] / beta[t] + 1 / (1 - bar[t - 1]))
        mean = variance * (math.sqrt(alpha[t]) / beta[t] * z_t + math.sqrt(bar[t - 1]) / (1 - bar[t - 1]) * z_0)
    assert gamma_t * z_t - beta_t * noise == pytest.approx(mean, abs=1e-10), "the mean"
    assert sigma_t ** 2 == pytest.approx(variance, abs=1e-12), "the variance"


def chain(coefficients, T, mean, variance, m, s):
    """{t: (mean, variance) of z_t} from z_T to z_0. Latents are drawn from N(m, s^2), whose perfect denoiser is
    E[epsilon | z_t] = slope (z_t - sqrt(alpha_bar_t) m); with s = 0 it knows z_0 = m."""
    result = {}
    for t in range(T, 0, -1):
        gamma_t, beta_t, sigma_t = coefficients(t)
        slope = math.sqrt(1 - bar[t]) / (bar[t] * s ** 2 + 1 - bar[t])
        of_z = gamma_t - beta_t * slope
        mean = of_z * mean + beta_t * slope * math.sqrt(bar[t]) * m
        variance = of_z ** 2 * variance + sigma_t ** 2
        result[t - 1] = mean, variance
    return result


def test_iidm_eq5_as_printed_leaves_the_path_of_diffusion_and_ends_in_grey():
    """(IIDM Eq. 5) With a denoiser that knows z_0 = 1, z_t must be N(sqrt(alpha_bar_t), 1 - alpha_bar_t) at every t.
    With the printed coefficients less than a hundredth of the reference is left after the first step. (At t = 1 they
    are right, and such a denoiser mends everything there.) Latents from N(0.8, 0.5^2) must come out of noise as they
    are; as printed the chain ends in 0, whatever they were."""
    for T in (320, 1000):
        for t, found in chain(loops_coefficients, T, math.sqrt(bar[T]), 1 - bar[T], 1, 0).items():
            assert found == pytest.approx((math.sqrt(bar[t]), 1 - bar[t]), abs=1e-9), f"share of z_0, variance at {t}"
    printed = chain(printed_coefficients, 320, math.sqrt(bar[320]), 1 - bar[320], 1, 0)
    for t in range(319, 99, -1):
        assert printed[t][0] < 0.01 * math.sqrt(bar[t]) and printed[t][1] < 0.7 * (1 - bar[t])
    assert printed_coefficients(1) == pytest.approx(loops_coefficients(1), rel=1e-9)
    for coefficients, expected in ((loops_coefficients, (0.8, 0.5)), (printed_coefficients, (0, 0))):
        mean, variance = chain(coefficients, 1000, 0, 1, 0.8, 0.5)[0]
        assert (mean, math.sqrt(variance)) == pytest.approx(expected, abs=0.01)


# ------------------------------------------------------------------------------------------- the chain, Eq. 3

def recording(answer, z, T, **options):
    """denoise() with answer(z, t) -> its result, [(t, z_t)] as predict saw them, and the noise drawn."""
    seen, drawn = [], []

    def predict(z, t):
        seen.append((t, z.clone()))
        return answer(z, t)

    def noise():
        drawn.append(normal(*z.shape, seed=100 + len(drawn)))
        return drawn[-1]
    return denoise(predict, z, T, noise, **options), seen, drawn


def loops_chain(answer, z, T, noise, steps=0):
    """[z_T, ..., z_0] by (IIDM Eq. 3): by (IIDM Eq. 5) with noise at every t but 1, or by so many steps of DDIM."""
    z, times = [z], [round(T * i / steps) for i in range(steps, -1, -1)] if steps else range(T, -1, -1)
    for t, s in zip(times, times[1:]):
        predicted = answer(z[-1], t)
        if steps:
            z_0 = (z[-1] - math.sqrt(1 - bar[t]) * predicted) / math.sqrt(bar[t])
            z.append(math.sqrt(bar[s]) * z_0 + math.sqrt(1 - bar[s]) * predicted)
        else:
            gamma_t, beta_t, sigma_t = loops_coefficients(t)
            z.append(gamma_t * z[-1] - beta_t * predicted + (sigma_t * noise() if t > 1 else 0))
    return z


def wave(z, t):
    return torch.sin(z + t)


@pytest.mark.parametrize("T", [1, 2, 6, 40])
def test_iidm_eq3_is_a_chain_over_every_t(T):
    """(IIDM Eq. 3) predict sees t = T, ..., 1, each with the z that the step before made; no noise goes into z_0."""
    z_T = normal(2, 3, 2, 2)
    z_0, seen, drawn = recording(wave, z_T, T)
    expected = loops_chain(wave, z_T, T, iter(drawn).__next__)
    assert [t for t, _ in seen] == list(range(T, 0, -1)) and len(drawn) == T - 1
    for (t, z), e in zip([*seen, (0, z_0)], expected):
        assert_is(z, e, f"z_{t}")


def test_iidm_eq3_ddim_takes_n_times_evenly_spread():
    """N of T times from T to 0, falling, at most T; each step by DDIM's formula with eta 0."""
    for T in (1, 2, 7, 20, 320, 1000):
        for N in {1, 2, 3, 7, 19, 25, 50, 999, 1000} | {T - 1, T, T + 1} - {0}:
            _, seen, drawn = recording(lambda z, t: z, normal(1, 1, 1, 1), T, ddim_steps=N)
            times, steps = [t for t, _ in seen] + [0], min(N, T)
            assert len(seen) == steps and times[0] == T and not drawn, f"{N} of {T}: {times}"
            assert all(t > s for t, s in zip(times, times[1:])), f"{N} of {T} is not falling: {times}"
            assert all(abs(t - (T - i * T / steps)) <= 0.5 for i, t in enumerate(times)), f"{N} of {T}: {times}"
    z = normal(1, 2, 3, 3)
    found, seen, _ = recording(wave, z, 12, ddim_steps=3)
    assert [t for t, _ in seen] == [12, 8, 4]
    assert_is(found, loops_chain(wave, z, 12, None, 3)[-1], "three steps of DDIM")


@pytest.mark.parametrize("T, ddim_steps", [(320, 0), (1000, 0), (320, 7), (320, 25), (320, 50), (1000, 50)])
def test_a_denoiser_that_knows_z_0_finds_it(T, ddim_steps):
    """Noise added by Eq. 1 and taken out again in float64; on the way z_t is distributed as Eq. 2 says, in its share of
    z_0 and in its variance. (z_0 alone would prove only the last step: it is exact from any z_1.)"""
    z_0, noise = normal(1, 3, 64, 64), normal(1, 3, 64, 64, seed=1)
    found, seen, _ = recording(lambda z, t: (z - math.sqrt(bar[t]) * z_0) / math.sqrt(1 - bar[t]),
                               add_noise(z_0, bar[T], noise), T, ddim_steps=ddim_steps)
    assert_is(found, z_0, "z_0", rtol=0, atol=1e-9)
    for t, z in seen:
        share = (z * z_0).mean() / (z_0 * z_0).mean()
        variance = (z - share * z_0).square().mean()
        assert abs(share - math.sqrt(bar[t])) < 0.04, f"t = {t}: {share:.3f} of z_0 is left"
        assert abs(variance / (1 - bar[t]) - 1) < 0.06, f"t = {t}: variance {variance:.5f} in place of {1 - bar[t]:.5f}"


# ------------------------------------------------------------------------------------------- training, Eq. 4

def prediction(model, z, label_map, t, b):
    """eps_theta for latent b alone."""
    modulations = model.unet.modulations(label_map[b:b + 1])
    return model.unet(z[b:b + 1], torch.tensor([t]), modulations)[0]


@pytest.mark.parametrize("known", [None, (True, True), (True, False)])
def test_iidm_eq4_is_the_mean_squared_error_of_the_noise(known):
    """(IIDM Eq. 4) with gamma_t = 1 / (c h w), and Algorithm 1: z_0 = E(X_R) at its scale, z_t by Eq. 2 with the t of
    each picture; a label map that is not known has no class anywhere."""
    model, image, label_map, t_of = tiny(), pictures(2, 16, 16), label_maps(2, 16, 16), (3, 800)
    noise = normal(2, 3, 4, 4, dtype=torch.float32)
    seen = label_map.clone()
    if known is not None:
        seen[[not k for k in known]], known = NOTHING, torch.tensor(known)
    with torch.no_grad():
        z_t = loops_add_noise(SCALE * model.autoencoder.encode(image), t_of, noise)
        predicted = torch.stack([prediction(model, z_t, seen, t, b) for b, t in enumerate(t_of)])
        squares = [(e - p) ** 2 for e, p in zip(noise.flatten().tolist(), predicted.flatten().tolist())]
    found = denoising_loss(model, image, label_map, torch.tensor(t_of), noise, known)
    assert_is(found.detach(), sum(squares) / (2 * 3 * 4 * 4), "L_(t-1)", rtol=1e-4, atol=0)


def test_iidm_eq4_trains_the_unet_alone():
    """(IIDM Eq. 4) theta are the parameters of eps_theta: every one of them has a gradient, E and D have none."""
    model, noise = tiny(), normal(2, 3, 4, 6, dtype=torch.float32)
    denoising_loss(model, pictures(), label_maps(), torch.tensor([3, 800]), noise).backward()
    assert all(p.grad is None for p in model.autoencoder.parameters()), "the autoencoder is learning"
    unreached = [name for name, p in model.unet.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached, f"no gradient reaches {unreached}"


# ----------------------------------------------------------------------------------------- colour transfer, Eq. 6

TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
TO_WHITE = [sum(row) for row in TO_XYZ]  # of R = G = B = 1: (0.95047, 1, 1.08883), D65


def loops_lab(rgb):
    """One pixel, R, G and B in [-1, 1] -> L, a, b: sRGB's curve, XYZ, CIE's cube root. Odd where R, G or B < -1."""
    linear = []
    for v in rgb:
        v = (v + 1) / 2
        linear.append(v / 12.92 if abs(v) <= 0.04045 else math.copysign(((abs(v) + 0.055) / 1.055) ** 2.4, v))
    f = []
    for row, white in zip(TO_XYZ, TO_WHITE):
        x = sum(a * v for a, v in zip(row, linear)) / white
        f.append(x ** (1 / 3) if x > 216 / 24389 else (24389 / 27 * x + 16) / 116)
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def loops_rgb(lab):
    """The inverse."""
    f_y = (lab[0] + 16) / 116
    xyz = [white * (f ** 3 if f > 6 / 29 else (116 * f - 16) * 27 / 24389)
           for f, white in zip((f_y + lab[1] / 500, f_y, f_y - lab[2] / 200), TO_WHITE)]
    linear = np.linalg.solve(TO_XYZ, xyz).tolist()
    return [2 * (12.92 * v if abs(v) <= 0.0031308 else math.copysign(1.055 * abs(v) ** (1 / 2.4) - 0.055, v)) - 1
            for v in linear]


def loops_statistics(image):
    """(3, H, W) -> [(mean, deviation) of L, of a, of b] over all of its pixels, and the Lab pixels."""
    lab = [loops_lab(pixel) for pixel in image.double().flatten(1).T.tolist()]
    means = [sum(channel) / len(lab) for channel in zip(*lab)]
    return [(mean, math.sqrt(sum((v - mean) ** 2 for v in channel) / len(lab)))
            for mean, channel in zip(means, zip(*lab))], lab


def loops_transfer(image, reference):
    """Reinhard's formula for one picture (3, H, W), a pixel at a time."""
    (of_image, lab), (of_reference, _) = loops_statistics(image), loops_statistics(reference)
    pixels = [loops_rgb([(v - mean) * std_R / std + mean_R for v, (mean, std), (mean_R, std_R)
                         in zip(pixel, of_image, of_reference)]) for pixel in lab]
    return torch.tensor(pixels, dtype=torch.float64).T.reshape(3, *image.shape[1:])


def spread(low, high, height=5, width=7, seed=0):
    """(2, 3, height, width) float64, uniform in low ... high."""
    draw = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(2, 3, height, width, generator=draw, dtype=torch.float64)


TRANSFERS = {  # picture, reference
    "two of one kind": (pictures(2, 5, 7).double(), pictures(2, 5, 7, seed=1).double()),
    "a larger reference": (pictures(2, 5, 7).double(), pictures(2, 8, 9, seed=1).double()),
    "nearly black": (spread(-1, -0.97), spread(-0.5, 0.5, seed=1)),
    "nearly white": (spread(0.97, 1), spread(-0.5, 0.5, seed=1)),
    "nearly flat": (spread(0.2, 0.2001), spread(-0.5, 0.5, seed=1)),
    "to nearly black": (spread(-1, 1), spread(-1, -0.97, seed=1)),
    "out of gamut": (spread(-0.2, 0.2), spread(-1, 1, seed=1).sign())}


@pytest.mark.parametrize("case", TRANSFERS)
def test_iidm_eq6_gives_the_means_and_deviations_of_the_reference(case):
    """(IIDM Eq. 6) Reinhard's formula in Lab, by loops; afterwards each of the six numbers is the reference's."""
    image, reference = TRANSFERS[case]
    found = colour_transfer(image, reference)
    assert found.shape == image.shape and found.dtype == torch.float64
    for b in range(2):
        assert_is(found[b], loops_transfer(image[b], reference[b]), f"picture {b}", rtol=0, atol=1e-6)
        for channel, now, wanted in zip("Lab", loops_statistics(found[b])[0], loops_statistics(reference[b])[0]):
            assert now == pytest.approx(wanted, rel=0, abs=1e-9), f"picture {b}: mean and deviation of {channel}"
    if case == "out of gamut":
        assert found.abs().max() > 1.2, "this case is meant to leave [-1, 1]"


def test_iidm_eq6_a_picture_on_itself_and_a_flat_one():
    """(IIDM Eq. 6) CT(X, X) = X; a picture without deviation gets the mean, and one without colour is not divided by
    0; a flat reference makes a flat picture."""
    image, reference = pictures(), pictures(seed=1)
    assert_is(colour_transfer(image, image), image.double(), "CT(X, X)", rtol=0, atol=1e-9)
    for value in (-1.0, 0.3, 1.0):
        found = colour_transfer(torch.full_like(image, value), reference)
        mean = [m for m, _ in loops_statistics(reference[1])[0]]
        expected = torch.tensor(loops_rgb(mean), dtype=torch.float64)[:, None, None].expand(3, 16, 24)
        assert_is(found[1], expected, f"flat {value}", rtol=0, atol=1e-6)
    grey = image[:, :1].expand(2, 3, 16, 24)
    now = loops_statistics(colour_transfer(grey, reference)[0])[0]
    wanted = loops_statistics(reference[0])[0]
    assert now[0] == pytest.approx(wanted[0], abs=1e-9), "L of a grey picture has a deviation"
    assert [m for m, _ in now] == pytest.approx([m for m, _ in wanted], abs=1e-9)
    assert colour_transfer(image, torch.full_like(image, 0.3)).sub(0.3).abs().max() < 1e-6, "a flat reference"


@pytest.mark.parametrize("rgb, lab", [
    ((255, 255, 255), (100, 0, 0)), ((0, 0, 0), (0, 0, 0)), ((255, 0, 0), (53.24, 80.09, 67.20)),
    ((0, 255, 0), (87.73, -86.18, 83.18)), ((0, 0, 255), (32.30, 79.19, -107.86)), ((119, 119, 119), (50.03, 0, 0)),
    ((8, 8, 8), (2.19, 0, 0))])
def test_iidm_eq6_lab_of_known_colours(rgb, lab):
    """(IIDM Eq. 6) in CIE L*a*b* of sRGB under D65; (8, 8, 8) lies on both straight pieces: 903.3 * 8 / 255 / 12.92."""
    pixel = torch.tensor(rgb, dtype=torch.float64).div(127.5).sub(1)[None, :, None, None]
    assert rgb_to_lab(pixel).flatten().tolist() == pytest.approx(lab, abs=0.011)


def test_iidm_eq6_lab_has_an_inverse_beyond_the_gamut():
    """(IIDM Eq. 6) A transferred picture may leave [-1, 1]; there and back is the same picture, and is not cut."""
    image = torch.cat([spread(-1, 1, 20, 20), spread(-3, 3, 20, 20), spread(-1.01, -0.9, 20, 20)])
    assert_is(lab_to_rgb(rgb_to_lab(image)), image, "there and back", rtol=0, atol=1e-9)
    expected = torch.tensor([loops_lab(pixel) for pixel in image[2].flatten(1).T.tolist()], dtype=torch.float64).T
    assert_is(rgb_to_lab(image)[2].flatten(1), expected, "Lab beyond the gamut", rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------------- ensemble, Eq. 7

def test_iidm_eq7_averages_two_of_one_run():
    """(IIDM Eq. 7) one number at a time; a model with itself is itself, bit for bit."""
    a, b = tiny().state_dict(), tiny().state_dict()
    for key in b:
        if key.startswith("unet."):
            b[key] = b[key] + normal(*b[key].shape, seed=3, dtype=torch.float32)
    found = average(a, b)
    assert found.keys() == a.keys()
    for key in ("unet.first.weight", "unet.middle.0.conv_1.bias", "autoencoder.quant_conv.weight", "latent_scale"):
        expected = [(x + y) / 2 for x, y in zip(a[key].flatten().tolist(), b[key].flatten().tolist())]
        assert found[key].flatten().tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7), key
    assert all(torch.equal(t, a[key]) for key, t in average(a, a).items())


def test_iidm_eq7_refuses_two_runs():
    """(IIDM Eq. 7) has a meaning only within one architecture and for latents of one autoencoder."""
    a, name = tiny().state_dict(), "unet.first.weight"
    fewer = {key: t for key, t in a.items() if key != name}
    for other in (fewer, {**a, name: a[name][:, :2]}, {**a, "more": a[name]}):
        with pytest.raises(ValueError, match="two architectures"):
            average(a, other)
    for name in ("autoencoder.quant_conv.bias", "autoencoder.encoder.conv_in.weight", "latent_scale"):
        with pytest.raises(ValueError, match="two autoencoders"):
            average(a, {**a, name: a[name] + 1})


# --------------------------------------------------------------------------------------------- the score, Eq. 8

TABLES = [  # M, A, FID, S, T of Tables 1 and 2 (DM and the whole IIDM are in both)
    ("SEAN", 76.03, 47.72, 75.36, 68.38, 35.82), ("SCGAN", 87.74, 49.14, 56.13, 30.66, 45.06),
    ("GauGAN", 89.54, 49.59, 43.39, 54.42, 54.96), ("CLADE", 92.09, 50.98, 40.63, 48.14, 57.18),
    ("DM", 91.01, 49.12, 35.41, 27.90, 55.79), ("I2I", 93.76, 49.61, 32.98, 62.68, 63.60),
    ("I2I + RF", 94.57, 50.43, 30.63, 49.24, 63.51), ("I2I + RF + CT", 94.11, 49.78, 31.38, 66.03, 65.09),
    # printed: T = 65.27, which no numbers that round to these four give
    ("IIDM", 94.15, 50.43, 30.75, 63.76, 65.22)]


@pytest.mark.parametrize("row, M, A, FID, S, T", TABLES)
def test_iidm_eq8_gives_the_tables(row, M, A, FID, S, T):
    """(IIDM Eq. 8) T = M / 100 [0.2 A + 0.3 (0.5 S + 50) + 0.5 (100 - FID)] gives every printed T but IIDM's own."""
    quality, style, fidelity = 20 * A / 100, 30 * (S / 2 + 50) / 100, 50 * (100 - FID) / 100
    found = total_score(M, A, S, FID)
    assert found == pytest.approx((quality + style + fidelity) * M / 100, rel=1e-12)
    assert found == pytest.approx(T, abs=0.02), row


def test_iidm_eq8_does_not_give_the_papers_last_row():
    """(IIDM Eq. 8) T of IIDM is printed as 65.27; the largest that M, A, FID and S allow after rounding is 65.23."""
    assert total_score(94.155, 50.435, 63.765, 30.745) < 65.23 < 65.265


def test_the_total_says_what_it_lacks():
    scores = {"miou": {"generated": {"pixel_accuracy": 0.9415}}, "fid": {"name": "FID", "value": 30.75}}
    full = summarise(scores, 63.76, None, 50.43)
    assert full["M"] == pytest.approx(94.15) and full["T"] == pytest.approx(65.27, abs=0.06) and not full["note"]
    without = summarise(scores, 63.76, 27.9, None)
    assert without["T"] == pytest.approx(full["T"] - 0.9415 * 0.2 * 50.43)
    assert "WITHOUT its term 0.2 A, so not IIDM's" in without["note"]
    scores["fid"]["name"] = "another distance"
    assert "WITHOUT FID (another distance in its place), so" in summarise(scores, 63.76, None, 50.43)["note"]


def test_style_similarity_is_the_correlation_of_histograms():
    """Pearson's, over the 256 levels of each channel, mean over the channels; a picture with itself has 100 %."""
    fake, real = (torch.tensor(np.random.default_rng(seed).integers(0, 40 + 30 * seed, (2, 3, 8, 10), np.uint8))
                  for seed in (1, 2))
    for a, b, S in zip(fake.numpy(), real.numpy(), style_similarity(fake, real)):
        r = [np.corrcoef(*(np.bincount(x[c].ravel(), minlength=256) for x in (a, b)))[0, 1] for c in range(3)]
        assert S == pytest.approx(100 * np.mean(r), rel=1e-9)
    assert style_similarity(fake, fake).tolist() == pytest.approx([100, 100])


# ------------------------------------------------------------------------------------------------- Algorithm 2

def loops_algorithm_2(model, label_map, reference, seeds, starts=(), transfer=True, ddim_steps=0, guidance=1.0):
    """Algorithm 2 line by line, a picture and a step at a time; without starts the plain DM, from N(0, I) at t = 1000.

    Noise of a picture: its own generator; in each round the first draw is for z_T, then one for each t > 1.
    """
    result = []
    for b, seed in enumerate(seeds):
        draw = torch.Generator().manual_seed(seed)

        def epsilon():
            return torch.randn(3, label_map.shape[1] // 4, label_map.shape[2] // 4, generator=draw)[None]

        def eps_theta(z, t):
            given = prediction(model, z, label_map[b:b + 1], t, 0)[None]
            if guidance == 1:
                return given
            nothing = prediction(model, z, torch.full_like(label_map[b:b + 1], NOTHING), t, 0)[None]
            return nothing + guidance * (given - nothing)
        for k, T in enumerate(starts or (1000,), start=1):
            if not starts:
                z = epsilon()
            else:
                X = reference[b] if k == 1 else X_G[0]
                if k > 1 and transfer:
                    X = loops_transfer(X, reference[b]).clamp(-1, 1).float()
                z = math.sqrt(bar[T]) * SCALE * model.autoencoder.encode(X[None]) + math.sqrt(1 - bar[T]) * epsilon()
            z_0 = loops_chain(eps_theta, z, T, epsilon, ddim_steps)[-1]
            X_G = model.autoencoder.decode(z_0 / SCALE).clamp(-1, 1)
        result.append(X_G[0])
    return torch.stack(result)


ALGORITHM_2 = {  # how generate is asked, how the loops are
    "three rounds": (dict(start=(40, 9, 5)), dict(starts=(40, 9, 5))),
    "one round": (dict(start=(30,)), dict(starts=(30,))),
    "without colour transfer": (dict(start=(9, 5, 7), colour_transfer=False), dict(starts=(9, 5, 7), transfer=False)),
    "from noise, DDIM": (dict(from_noise=True, ddim_steps=8), dict(ddim_steps=8)),
    "DDIM": (dict(start=(400, 60), ddim_steps=5), dict(starts=(400, 60), ddim_steps=5)),
    "guidance": (dict(start=(30, 12), guidance=3.5), dict(starts=(30, 12), guidance=3.5)),
    "guidance 0": (dict(start=(30,), guidance=0.0), dict(starts=(30,), guidance=0.0))}


@pytest.mark.parametrize("case", ALGORITHM_2)
@torch.no_grad()
def test_algorithm_2_by_loops(case):
    """K rounds from the reference, then from the colour-transferred picture of the round before; the modulations that
    generate computes once are here computed in every step."""
    options, of_loops = ALGORITHM_2[case]
    model, given = tiny(), (label_maps(), pictures(), (3, 4))
    found = generate(model, *given, Inference(**options))
    expected = loops_algorithm_2(model, *given, **of_loops)
    assert expected.abs().lt(1).float().mean() > 0.2, "a picture that is cut everywhere would prove nothing"
    assert_is(found, expected, case, rtol=0, atol=2e-5)


@torch.no_grad()
def test_algorithm_2_without_a_reference_takes_a_thousand_steps():
    """DM of Table 2: z_1000 ~ N(0, I), every t; the reference is not looked at and need not be there."""
    model, label_map = tiny(), label_maps(1, 8, 8)
    found = generate(model, label_map, None, [3], Inference(from_noise=True))
    assert_is(found, loops_algorithm_2(model, label_map, None, [3]), "DM", rtol=0, atol=1e-4)
    few = Inference(from_noise=True, ddim_steps=3)
    without, beside = (generate(model, label_map, reference, [3], few) for reference in (None, pictures(1, 8, 8)))
    assert torch.equal(without, beside)


def test_the_defaults_of_inference_are_the_papers():
    """T = 320, and X_G, X_G^1 and X_G^2: three rounds; Eq. 5 at every t, no guidance."""
    assert Inference() == Inference((320, 320, 320), False, True, 0, 1.0)


def test_a_picture_depends_on_what_is_given_and_not_on_its_batch():
    """The same alone and beside another; another seed, reference or label map makes another one, beside it none."""
    model, label_map, reference, inference = tiny(), label_maps(), pictures(), Inference(start=(60, 6))
    both = generate(model, label_map, reference, (3, 4), inference)
    assert torch.equal(generate(model, label_map, reference, (3, 4), inference), both), "two calls differ"
    for b, seed in enumerate((3, 4)):
        alone = generate(model, label_map[b:b + 1], reference[b:b + 1], (seed,), inference)
        assert_is(alone[0], both[b], f"picture {b} alone", rtol=0, atol=1e-5)
    other_map, other_reference = label_map.clone(), reference.clone()
    other_map[1], other_reference[1] = (label_map[1] + 1) % CLASSES, pictures(seed=5)[1]
    for what, given in (("seed", (label_map, reference, (3, 5))), ("reference", (label_map, other_reference, (3, 4))),
                        ("label map", (other_map, reference, (3, 4)))):
        difference = (generate(model, *given, inference) - both).abs().amax(dim=(1, 2, 3))
        assert difference[1] > 1e-2 and difference[0] < 1e-5, f"another {what} changes the two by {difference.tolist()}"


def test_a_generated_picture_has_no_gradient_and_stays_in_range():
    image = generate(tiny(), label_maps(), 1.5 * pictures(), (3, 4), Inference(start=(900,), ddim_steps=2))
    assert image.shape == (2, 3, 16, 24) and image.dtype == torch.float32 and not image.requires_grad
    assert image.abs().max() == 1, "this start is meant to leave [-1, 1], which is cut"


def test_generate_refuses_what_does_not_fit():
    model, one = tiny(), Inference(start=(2,))
    for height, width in ((12, 16), (16, 12)):
        with pytest.raises(ValueError, match=f"{height}x{width}.*divisible by 8"):
            generate(model, label_maps(2, height, width), pictures(2, height, width), (3, 4), one)
    with pytest.raises(ValueError, match="got None"):
        generate(model, label_maps(), None, (3, 4), one)
    for reference in (pictures(1), pictures(2, 16, 16), pictures()[:, :1]):
        with pytest.raises(ValueError, match=r"expected references \(2, 3, 16, 24\)"):
            generate(model, label_maps(), reference, (3, 4), one)
    with pytest.raises(ValueError, match="expected 2 seeds, one for each label map; got 1"):
        generate(model, label_maps(), pictures(), [0], Inference(start=(1,)))


# ------------------------------------------------------------------------------------------------- autoencoder

def by_names(state, side, x):
    """encoder or decoder from its weights' names alone, as latent-diffusion's layers of these names compute."""
    def conv(name, x, **options):
        return F.conv2d(x, state[f"{side}.{name}.weight"], state[f"{side}.{name}.bias"], **options)

    def norm(name, x):
        groups = max(1, x.shape[1] // 16)  # of a narrow network
        return F.group_norm(x, groups, state[f"{side}.{name}.weight"], state[f"{side}.{name}.bias"], eps=1e-6)

    def swish(x):
        return x * torch.sigmoid(x)

    def block(name, x):
        y = conv(f"{name}.conv1", swish(norm(f"{name}.norm1", x)), padding=1)
        y = conv(f"{name}.conv2", swish(norm(f"{name}.norm2", y)), padding=1)
        return y + (conv(f"{name}.nin_shortcut", x) if f"{side}.{name}.nin_shortcut.weight" in state else x)

    def middle(x):
        x = block("mid.block_1", x)
        q, k, v = (conv(f"mid.attn_1.{part}", norm("mid.attn_1.norm", x)).flatten(2) for part in "qkv")  # (B, C, hw)
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(q.shape[1]), dim=2)
        x = x + conv("mid.attn_1.proj_out", torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))
        return block("mid.block_2", x)
    x = conv("conv_in", x, padding=1)
    if side == "decoder":
        x = middle(x)
    for n in ((0, 1, 2) if side == "encoder" else (2, 1, 0)):
        level, k = {"encoder": "down", "decoder": "up"}[side] + f".{n}", 0
        while f"{side}.{level}.block.{k}.norm1.weight" in state:
            x, k = block(f"{level}.block.{k}", x), k + 1
        if f"{side}.{level}.downsample.conv.weight" in state:  # zeros at the right and the bottom alone
            x = conv(f"{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        if f"{side}.{level}.upsample.conv.weight" in state:
            x = conv(f"{level}.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
    if side == "encoder":
        x = middle(x)
    return conv("conv_out", swish(norm("norm_out", x)), padding=1)


@pytest.mark.parametrize("codes, total", [(8192, 55_322_782), (0, 55_322_782 - 8192 * 3)])
def test_the_autoencoder_takes_the_public_vq_f4_weights(codes, total):
    """latent-diffusion's VQ-f4 (ch 128, mult 1-2-4, two blocks, z and embedding of 3 channels): its layers find every
    weight under its name, they fit together, the levels have the published widths, and nothing is left over: the total
    is the published one. 32 groups in every norm; without codes all but the codebook."""
    with torch.device("meta"):
        net, image, z = Autoencoder(codes=codes), torch.empty(1, 3, 32, 32), torch.empty(1, 3, 8, 8)
    state = net.state_dict()
    assert by_names(state, "encoder", image).shape == z.shape and by_names(state, "decoder", z).shape == image.shape
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    for side, up, blocks in (("encoder", "down", 2), ("decoder", "up", 3)):
        last = {name: shape for name, shape in shapes.items() if re.match(rf"{side}\.{up}\S+conv2.weight", name)}
        assert last == {f"{side}.{up}.{n}.block.{k}.conv2.weight": (c, c, 3, 3)
                        for n, c in enumerate((128, 256, 512)) for k in range(blocks)}
        assert {shapes[f"{side}.mid.attn_1.{part}.weight"] for part in "qkv"} == {(512, 512, 1, 1)}
    assert {shapes[f"{post}quant_conv.{kind}"] for post in ("", "post_") for kind in ("weight", "bias")} == {
        (3, 3, 1, 1), (3,)}
    assert shapes.get("quantize.embedding.weight") == ((codes, 3) if codes else None)
    assert sum(t.numel() for t in state.values()) == total
    norms = [m for m in net.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {(m.num_groups, m.eps) for m in norms} == {(32, 1e-6)}


@torch.no_grad()
def test_the_autoencoder_computes_as_latent_diffusion():
    """Written once more from the names: block, attention, where it is padded, what is resized and when."""
    torch.manual_seed(0)
    net = Autoencoder(16, (1, 2, 3), 2, 4)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))  # gains and biases that are not 1 and 0
    state, image, z = net.state_dict(), pictures(2, 16, 24), normal(2, 4, 4, 6, dtype=torch.float32)
    quantised = F.conv2d(by_names(state, "encoder", image), state["quant_conv.weight"], state["quant_conv.bias"])
    assert_is(net.encode(image), quantised, "E", rtol=1e-4, atol=1e-5)
    back = F.conv2d(z, state["post_quant_conv.weight"], state["post_quant_conv.bias"])
    assert_is(net.decode(z), by_names(state, "decoder", back), "D", rtol=1e-4, atol=1e-5)
    assert quantised.shape == (2, 4, 4, 6) and net.decode(z).shape == (2, 3, 16, 24)


@torch.no_grad()
def test_a_codebook_is_in_the_decoder_alone():
    """D puts every latent pixel on its nearest code, by loops over pixels and codes; E leaves its latents between."""
    torch.manual_seed(0)
    net, z = Autoencoder(8, (1, 1, 1), 1, 3, codes=40), normal(2, 3, 4, 6, dtype=torch.float32)
    codes = net.state_dict()["quantize.embedding.weight"].tolist()
    nearest = [min(codes, key=lambda code: sum((p - c) ** 2 for p, c in zip(pixel, code)))
               for pixel in z.permute(0, 2, 3, 1).reshape(-1, 3).tolist()]
    on_codes = torch.tensor(nearest).view(2, 4, 6, 3).permute(0, 3, 1, 2)
    without = Autoencoder(8, (1, 1, 1), 1, 3)
    without.load_state_dict({name: t for name, t in net.state_dict().items() if not name.startswith("quantize")})
    assert (on_codes - z).abs().max() > 0.1
    assert_is(net.decode(z), without.decode(on_codes), "D of the nearest codes", rtol=0, atol=1e-5)
    assert torch.equal(net.encode(pictures()), without.encode(pictures())), "E must not know the codebook"


# ------------------------------------------------------------------------------------------------------- U-Net

def unet_by_hand(classes, width=256, multipliers=(1, 1, 2, 3, 4), hidden=128, attends=(False, False, True, True, True)):
    """Parameters of each part: a convolution k x k has k*k*i*o weights and o biases, a norm 2 c, SPADE no norm."""
    time = 4 * width

    def norm(c, conditioned):
        return (3*3*classes*hidden + hidden) + 2 * (3*3*hidden*c + c) if conditioned else 2 * c

    def block(i, o, conditioned):
        main = norm(i, conditioned) + 3*3*i*o + o + norm(o, conditioned) + 3*3*o*o + o
        return main + time*2*o + 2*o + (i*o + o if i != o else 0)

    def attention(c):
        return 2*c + c*3*c + 3*c + c*c + c
    parts = {"time": width*time + time + time*time + time, "first": 3*3*3*width + width, "down": 0, "up": 0}
    c, skips = width, [width]
    for level, (multiplier, attending) in enumerate(zip(multipliers, attends)):
        for _ in range(2):
            parts["down"] += block(c, width * multiplier, False) + attending * attention(width * multiplier)
            c = width * multiplier
            skips.append(c)
        if level < 4:
            parts["down"] += block(c, c, False)
            skips.append(c)
    middle = 2 * block(c, c, True) + attention(c)
    for level, (multiplier, attending) in reversed(list(enumerate(zip(multipliers, attends)))):
        for _ in range(3):
            parts["up"] += block(c + skips.pop(), width * multiplier, True) + attending * attention(width * multiplier)
            c = width * multiplier
        if level:
            parts["up"] += block(c, c, True)
    return {**parts, "middle": middle, "norm": 2 * c, "out": 3*3*c*3 + 3}


def test_parameters_of_the_unet_at_full_size():
    """SDM's U-Net, as in the released code: 256 channels x 1, 1, 2, 3, 4, attention at strides 4, 8, 16."""
    with torch.device("meta"):
        model = IIDM(151)
        modulations = model.unet.modulations(torch.empty(1, 256, 256, dtype=torch.int64))
        assert model.unet(torch.empty(1, 3, 64, 64), torch.empty(1), modulations).shape == (1, 3, 64, 64)
    assert parameters_by_part(model.unet) == unet_by_hand(151)
    assert sum(unet_by_hand(151).values()) == 507_436_291
    assert (model.shrinks, model.downsampling) == (4, 64)
    heads = {m.norm.num_channels // m.heads for m in model.modules() if isinstance(m, networks.UNetAttention)}
    assert heads == {64}


def test_the_unet_starts_with_the_prediction_0():
    """Its last convolution is 0 at first, and every block its shortcut."""
    torch.manual_seed(0)
    net = IIDM(CLASSES, 8, (1, 1, 1), 1, 3, 0, 16, (1, 2), 1, (2,), 8, 8).unet
    last = []
    net.out.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    found = net(normal(2, 3, 4, 6, dtype=torch.float32), torch.tensor([3, 800]), net.modulations(label_maps()))
    assert found.shape == (2, 3, 4, 6) and not found.any() and last[0].any()
    same = UNetBlock(16, 16, 8, (1, 1))
    x = normal(2, 16, 4, 6, dtype=torch.float32)
    assert torch.equal(same(x, torch.randn(2, 8)), x)


def unet_by_names(state, z, t, label_map):
    """eps_theta of `tiny` from its weights' names alone. Two scales: the encoder's second block halves the size."""
    def conv(name, x):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[2] // 2)

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def silu(x):
        return x / (1 + torch.exp(-x))

    def norm(name, x):
        """Over groups of 16 channels; then weight and bias, or gamma and beta of the shares of the classes (SPADE)."""
        groups = x.unflatten(1, (x.shape[1] // 16, 16))
        mean, var = groups.mean(dim=(2, 3, 4), keepdim=True), groups.var(dim=(2, 3, 4), correction=0, keepdim=True)
        y, s = ((groups - mean) / (var + 1e-6).sqrt()).flatten(1, 2), label_map.shape[1] // x.shape[2]
        if f"{name}.weight" in state:
            return y * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]
        squares = label_map.unflatten(2, (-1, s)).unflatten(1, (-1, s))                     # (B, h, s, w, s)
        shares = torch.stack([(squares == c).float().mean(dim=(2, 4)) for c in range(CLASSES)], dim=1)  # (B, C, h, w)
        gamma, beta = conv(f"{name}.to_gamma_beta", conv(f"{name}.shared.0", shares).clamp_min(0)).chunk(2, dim=1)
        return y * (1 + gamma) + beta

    def same(x):
        return x

    def halved(x):
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    def doubled(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def block(name, x, resized=same):
        y = norm(f"{name}.norm_1", conv(f"{name}.conv_0", resized(silu(norm(f"{name}.norm_0", x)))))
        scale, shift = linear(f"{name}.to_scale_shift", silu(time))[:, :, None, None].chunk(2, dim=1)
        x = conv(f"{name}.shortcut", resized(x)) if f"{name}.shortcut.weight" in state else resized(x)
        return x + conv(f"{name}.conv_1", silu(y * (1 + scale) + shift))

    def attention(name, x):
        """In heads of 8 channels, where there is any."""
        if f"{name}.out.weight" not in state:
            return x
        qkv = conv(f"{name}.to_query_key_value", norm(f"{name}.norm", x)).flatten(2)       # (B, 3 C, hw)
        q, k, v = qkv.unflatten(1, (3, -1, 8)).unbind(dim=1)                               # (B, heads, 8, hw) each
        weights = torch.softmax(torch.einsum("bhdi,bhdj->bhij", q, k) / math.sqrt(8), dim=3)
        return x + conv(f"{name}.out", torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(x.shape))
    wavelengths = [[t_b / 10_000 ** (2 * i / 16) for i in range(8)] for t_b in t.tolist()]
    features = torch.tensor([[*map(math.cos, angles), *map(math.sin, angles)] for angles in wavelengths])
    time = linear("time.2", silu(linear("time.0", features)))
    skips = [conv("first", z)]
    for i, resized in enumerate((same, halved, same)):
        skips.append(attention(f"down.{i}.1", block(f"down.{i}.0", skips[-1], resized)))
    y = block("middle.2", attention("middle.1", block("middle.0", skips[-1])))
    for i in range(4):
        y = attention(f"up.{i}.1", block(f"up.{i}.0", torch.cat([y, skips.pop()], dim=1)))
        if f"up.{i}.2.conv_0.weight" in state:
            y = block(f"up.{i}.2", y, doubled)
    assert not skips
    return conv("out", silu(norm("norm", y)))


@torch.no_grad()
def test_the_unet_computes_as_its_names_say():
    """Written once more: blocks, time, attention, skips; the label map as shares of the classes, in the middle and the
    decoder alone. A map that is not known has no class. One set of modulations serves every t."""
    net, z, label_map = tiny().unet, normal(2, 3, 4, 6, dtype=torch.float32), label_maps()
    empty, state, found = label_map.clone(), net.state_dict(), []
    empty[1] = NOTHING
    for seen, known in ((label_map, None), (label_maps(seed=2), None), (empty, torch.tensor([True, False]))):
        modulations = net.modulations(label_map if known is not None else seen, known)
        for t in (torch.tensor([3, 800]), torch.tensor([1000, 20])):
            found.append(net(z, t, modulations))
            assert_is(found[-1], unet_by_names(state, z, t, seen), f"t = {t.tolist()}", rtol=1e-4, atol=1e-4)
    for a, b in ((0, 1), (0, 2)):
        assert (found[a] - found[b]).abs().amax(dim=(1, 2, 3)).min() > 1e-2, "t or the label map does not matter"
    assert (found[0] - found[4]).abs().amax(dim=(1, 2, 3))[1] > 1e-2, "leaving a label map out does not matter"


# ----------------------------------------------------------------------------------------------------- options

def asked(words, folder):
    reference = [] if "--from-noise" in words else ["--reference", "train"]
    command = ["--checkpoint", "x.pt", "--dataset", "toy", "--output-dir", str(folder), *reference]
    return parse_options([*command, *words.split()]).inference


@pytest.mark.parametrize("words, changed", [
    ("", {}), ("--start 600,640,400", dict(start=(600, 640, 400))), ("--start 600,640", dict(start=(600, 640))),
    ("--start 600,640,400 --rounds 3", dict(start=(600, 640, 400))), ("--rounds 1", dict(start=(320,))),
    ("--start 1000 --rounds 2", dict(start=(1000, 1000))), ("--start 1", dict(start=(1, 1, 1))),
    ("--colour-transfer off", dict(colour_transfer=False)), ("--guidance 0", dict(guidance=0.0)),
    ("--colour-transfer on --ddim-steps 50", dict(ddim_steps=50)),
    ("--from-noise --ddim-steps 1000", dict(from_noise=True, ddim_steps=1000)),
    ("--guidance 3.5 --from-noise", dict(from_noise=True, guidance=3.5))])
def test_options_of_inference(words, changed, tmp_path):
    assert asked(words, tmp_path) == Inference(**changed)


@pytest.mark.parametrize("words, message", [
    ("--start 0", "--start: 0: .*1 to 1000"), ("--start 1001", "--start: 1001: .*1 to 1000"),
    ("--start 600,0,400", "--start: 0: .*1 to 1000"), ("--start x", "--start: x: expected a whole number"),
    ("--start 600,", "--start: : expected a whole number"), ("--rounds 0", "--rounds: 0"), ("--rounds -1", "--rounds"),
    ("--rounds 2 --start 600,640,400", "--rounds 2, but --start has 3 numbers"),
    ("--from-noise --start 320", "--from-noise has one"), ("--from-noise --rounds 2", "--from-noise has one"),
    ("--from-noise --colour-transfer off", "--from-noise has one"), ("--ddim-steps -1", "--ddim-steps"),
    ("--ddim-steps 321", "--ddim-steps 321: expected 0 to 320"),
    ("--start 9,5 --ddim-steps 6", "--ddim-steps 6: expected 0 to 5"),
    ("--from-noise --ddim-steps 1001", "--ddim-steps 1001: expected 0 to 1000"), ("--guidance -1", "--guidance"),
    ("--guidance nan", "--guidance: nan: .*0 to 100"), ("--guidance 101", "--guidance: 101: .*0 to 100")])
def test_options_of_inference_out_of_range(words, message, tmp_path):
    with pytest.raises(InputError, match=message):
        asked(words, tmp_path)
