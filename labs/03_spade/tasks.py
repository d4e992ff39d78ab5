"""What python labs/check.py 03 asks of lab.py."""
import math
from types import SimpleNamespace

import numpy as np
import torch

from labs.pieces import Task
from test_generator import label_maps, noise, tiny_generator


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def every_channel_by_loops(normalise):
    x = 2 * random(3, 2, 2, 4) + torch.tensor([5.0, -1.0]).view(1, 2, 1, 1)
    x[:, 1] *= 0.01                                    # so small that eps is seen
    expected = torch.zeros_like(x)
    for c in range(2):
        values = x[:, c].flatten().tolist()
        mu = sum(values) / len(values)
        sigma = math.sqrt(sum((v - mu) ** 2 for v in values) / len(values) + 1e-5)
        for b, y, column in np.ndindex(3, 2, 4):
            expected[b, c, y, column] = (x[b, c, y, column].item() - mu) / sigma
    torch.testing.assert_close(normalise(x), expected, atol=1e-4, rtol=1e-4,
                               msg=lambda text: f"(x - mu) / sigma\n{text}")


def the_blocks_own_norm_is_used(spade):
    block = SimpleNamespace(norm=lambda x: x - 3, modulation=lambda condition: (condition, 2 * condition))
    one = torch.ones(1, 1, 1, 1)
    torch.testing.assert_close(spade(block, 5 * one, 4 * one), 18 * one,
                               msg=lambda text: f"(1 + 4) * block.norm(5) + 8 with block.norm(5) = 2\n{text}")


def attention_is_left_out_where_there_is_none(label_block):
    block = SimpleNamespace(conv=lambda h: 2 * h, norm=lambda h: h - 1, cross_attention=None, self_attention=None,
                            out=lambda h: h + 3)
    found = label_block(block, torch.tensor([[[[1.0]]]]), None)                # GELU(1) = 0.8413
    torch.testing.assert_close(found, torch.tensor([[[[3.8413]]]]), atol=1e-4, rtol=0,
                               msg=lambda text: f"GELU(2 * 1 - 1) + 3\n{text}")


def every_block_reads_the_one_before_it(label_pyramid):
    blocks = [lambda h, w, _=None, i=i: 10 * h + w + i for i in (1, 2, 3)]
    pyramid = SimpleNamespace(stem=lambda x: x + 5, blocks=blocks)
    found = label_pyramid(pyramid, torch.tensor([1.0]), torch.tensor([0.5]))
    assert isinstance(found, (list, tuple)), "a list of the maps h_1 ... h_L was expected"
    assert len(found) == 3, f"a list of 3 maps was expected, {len(found)} came"
    torch.testing.assert_close(torch.cat(tuple(found)), torch.tensor([61.5, 617.5, 6178.5]),
                               msg=lambda text: f"[h_1, h_2, h_3]\n{text}")


def tanh_is_taken_in_float32(generate):
    G = tiny_generator()
    with torch.autocast("cpu", torch.bfloat16):
        image = generate(G, label_maps(), noise())
    assert image.dtype == torch.float32, f"a float32 picture was expected under autocast too, {image.dtype} came"


GENERATOR = "test_generator.py::"
TASKS = [
    Task("normalise", None, "DP-GAN Eq. 1, \"computed over n, x, and y\"", [every_channel_by_loops]),
    Task("spade", "generator.SPADE.forward", "DP-GAN Eq. 1",
         ["test_dpgan.py::test_dpgan_eq1_spade_is_the_papers_normalisation", the_blocks_own_norm_is_used]),
    Task("label_block", "generator.LabelBlock.forward", "Sec. 3.2, \"Each block of the label map encoding pyramid\"",
         [GENERATOR + "test_a_label_block_is_convolution_norm_gelu_attention_pointwise",
          attention_is_left_out_where_there_is_none]),
    Task("label_pyramid", "generator.LabelPyramid.forward", "Sec. 3.2 and Fig. 3",
         [every_block_reads_the_one_before_it, GENERATOR + "test_noise_enters_at_attention_stride_and_below[4]"]),
    Task("generate", "generator.Generator.forward", "Fig. 3; DP-GAN Eq. 2",
         [GENERATOR + "test_the_image_pyramid_grows_from_the_low_resolution_label_map[32-32]",
          GENERATOR + "test_every_spade_block_is_conditioned_on_its_map_and_the_lowest_one",
          GENERATOR + "test_the_image_is_within_minus_1_and_1", tanh_is_taken_in_float32])]
