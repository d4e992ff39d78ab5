"""Lab 05: a frozen backbone as a discriminator (Sec. 3.1, Fig. 2). Write the five functions.

    python labs/check.py 05          (as often as you like)

    paper      | here               | shape
    x or g     | image              | (B, 3, H, W) in [-1, 1], H and W divisible by 32
    F_l        | features[l - 1]    | (B, C_l, H / 2^(l+1), W / 2^(l+1)), l = 1 ... 4: strides 4, 8, 16, 32
    F'_l       |                    | sigmoid of F_l, the same shape
    F~_l       | conditioned[l - 1] | (F'_l - mu_l) / sigma_l, the same shape
    p          | logits             | (B, C + 1, H, W), before the softmax; index C is "fake"
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import discriminator


def backbone_features(backbone, image):
    """Through the frozen network, up to each of the four strides (Sec. 3.1). image (B, 3, H, W) -> [F_1, ..., F_4]

    backbone.mean, backbone.std      (1, 3, 1, 1), of ImageNet's pictures, whose pixels are in [0, 1]: the network
                                     expects (picture - mean) / std. Ours are in [-1, 1]
    backbone.stages                  four modules, each reads what the one before it gave; their outputs are F_1 ... F_4
    backbone.channels_come_last      True for some networks: these outputs are (B, H_l, W_l, C_l) and must be turned
    backbone.whole                   None; or a network of another library, which gives the four outputs as a list at
                                     once. Then there are no stages

    Nothing learns here; but G learns from what D says of its picture, and the way back to the picture leads through.
    """
    raise NotImplementedError("Sec. 3.1: F_1 ... F_4, at strides 4, 8, 16, 32")


def stay_frozen(backbone, mode=True):
    """What backbone.train() and backbone.eval() do, in place of nn.Module's. -> backbone

    D.train() calls train(True) of every part of D, and eval() is train(False). A frozen network must not follow: its
    batch norms would take the statistics of each batch, and its dropout and stochastic depth would draw numbers.
    nn.Module.train(module, mode) is the ordinary one.
    """
    raise NotImplementedError("Sec. 3.1: \"fixed\" means evaluation mode, whatever D does")


def condition_features(feature, norm, sigmoid=True):
    """Feature conditioning (Sec. 3.1). feature (B, C_l, H_l, W_l) -> F~_l, float32, the same shape

        F'_l = sigmoid(F_l)
        F~_l = (F'_l - mu_l) / sigma_l          mu_l, sigma_l: batch statistics

    norm: a module, the batch normalisation without parameters (lab 03); for a row of Table 5 one that does nothing.
    sigmoid: False for the row "w/o sigmoid": F'_l = F_l.
    Features can come in bfloat16, which keeps 8 bits: too few for what a sigmoid has squeezed together.
    """
    raise NotImplementedError("Sec. 3.1: F~_l = (sigmoid(F_l) - mu_l) / sigma_l")


def strengths(feature):
    """How much each channel moves: its standard deviation over all pictures and pixels. (B, C_l, H_l, W_l) -> (C_l,)

        s_c = sqrt(mean over b, y, x of (F_bcyx - mean_c)^2)

    The strongest channel first.
    """
    raise NotImplementedError("Sec. 3.1: \"some features are much more prominent than others\"")


def discriminate(D, image, features=None):
    """The whole discriminator (Fig. 2). image (B, 3, H, W) in [-1, 1] -> logits (B, C + 1, H, W)

    - features: [F_1, ..., F_4] where the caller has them; otherwise D.features(image);
    - each through discriminator.condition_features, with D.norms[0 ... 3] and D.sigmoid. It is yours as soon as you
      have written it;
    - D.mixing: None; or Projected GAN's mixing (Table 5), a module of the list of conditioned features;
    - the decoder begins at F~_4. D.decoder has five blocks. Before each, y becomes twice as large, by nearest
      neighbour; the first three also read F~_3, F~_2, F~_1, joined along the channels, y first;
    - D.full_resolution, a module of the picture, (B, 3, H, W) -> (B, C', H, W), is joined behind y;
    - LeakyReLU of slope 0.2, and D.to_logits.
    """
    raise NotImplementedError("Fig. 2: features, conditioning, decoder, full-resolution path, C + 1 logits")
