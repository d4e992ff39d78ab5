"""Lab 04: noise by attention (Sec. 3.2, Eq. 1, 2). Write the three functions; each ends in NotImplementedError now.

    python labs/check.py 04          (as often as you like)

    paper | here              | shape
    z     | z                 | (B, d_z), the noise of each picture
    w     | w                 | (B, n_k, d_w), the same noise as n_k tokens
    h_i   | h                 | (B, C, H, W), what a scale of the label pyramid knows about the label map
    Q     | query             | (B, T, d_q), one row a pixel: T = H W
    K, V  | key, value        | (B, n_k, d_q), one row a token
"""
import torch

import generator


def tokens_of_noise(mapping, z):
    """w = MLP(z), n_k tokens of d_w numbers (Sec. 3.2). z (B, d_z) -> (B, n_k, d_w).

    mapping.mlp       the three-layer MLP, (B, d_z) -> (B, n_k * d_w); its first d_w outputs are the first token
    mapping.tokens    n_k
    """
    raise NotImplementedError("Sec. 3.2: w = MLP(z), cut into n_k tokens")


def attention(query, key, value):
    """Scaled dot-product attention, one head (Eq. 1). query (B, T, d_q), key and value (B, n, d_q) -> (B, T, d_q).

        A = SoftMax(Q K^T / sqrt(d_q)) V

    The shares of one query, over the n keys, add up to 1. Do not use F.scaled_dot_product_attention.
    """
    raise NotImplementedError("Eq. 1: A = SoftMax(Q K^T / sqrt(d_q)) V")


def inject_noise(block, h, w):
    """Every pixel of h attends to the noise tokens w, through a gate (Eq. 2). h (B, C, H, W), w (B, n_k, d_w) -> as h.

        a(h, w) = h + eta * A(h, w)

    block.to_query    a linear layer, (..., C) -> (..., d_q), for the pixels; here d_q = C
    block.to_key      a linear layer, (..., d_w) -> (..., d_q), for the tokens
    block.to_value    the same
    block.eta         the gate, one trained number that starts at 0, used as it is (no sigmoid)

    Call generator.attention for Eq. 1. The check uses the project's attention here, training uses yours. Pixels go in
    as rows, (B, H W, C), and must come back to their places, (B, C, H, W).
    """
    raise NotImplementedError("Eq. 2: a(h, w) = h + eta * A(h, w)")
