"""IIDM, the image-to-image diffusion model: a picture from a label map and a style reference, by denoising.

Liu and Chang, "IIDM: Image-to-Image Diffusion Model for Semantic Image Synthesis". The paper prints equations and two
algorithms, but no sizes; those are of its released code (docs/departures.md).

    diffusion.py   IIDM Eq. 1 to 7, both algorithms: read this one beside the paper
    networks.py    the autoencoder E, D and the denoising U-Net eps_theta
    train.py       the loop: autoencoder first, then Algorithm 1                   python -m baselines.iidm.train
    sample.py      label maps and references in, pictures out; IIDM's Table 2      python -m baselines.iidm.sample
    scores.py      M, S and the total T (IIDM Eq. 8), beside evaluate.py's         python -m baselines.iidm.scores
    latency.py     one picture, in turn with a GAN's                               python -m baselines.iidm.latency
"""
