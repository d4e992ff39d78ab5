"""The rows of the papers' tables, as data: what each one is, how to train it, and the score that its paper prints.

    python -m tables.rows            lists them, with their commands

The scores are FID / mIoU_MF on ADE20K, of DP-GAN's tables FID / mIoU on Cityscapes. Add --dataset, --data-path and
--output-dir to a command, and `torchrun --nproc_per_node 8` in front of it.
"""
from typing import NamedTuple


class Row(NamedTuple):
    table: str      # of DP-SIMS, unless it names another paper
    what: str
    options: str    # in which it differs from the defaults
    paper: str      # its score there

    def command(self):
        """What python is to run: train.py knows DP-SIMS, baselines.train everything that has a --model."""
        return f"{'-m baselines.train' if '--model' in self.options else 'train.py'} {self.options}".strip()


IN21K = "timm:convnext_large.fb_in22k_ft_in1k"
ROWS = {
    "table2-swin-b": Row("2", "Swin-B, gradients clipped", "--backbone swin_b", "29.5 / 55.4"),
    "table2-resnet50": Row("2", "ResNet-50", "--backbone resnet50", "24.6 / 60.5"),
    "table2-efficientnet-lite1": Row("2", "EfficientNet-Lite1 (pip)", "--backbone efficientnet_lite1", "24.5 / 63.1"),
    "table2-convnext-b": Row("2", "ConvNeXt-B", "--backbone convnext_base", "23.5 / 63.5"),
    "table2-convnext-l": Row("2", "ConvNeXt-L", "--backbone convnext_large", "22.7 / 67.8"),
    "table3-random": Row("3", "random backbone", "--backbone-weights random", "52.9 / 40.7"),
    "table3-in1k-224": Row(
        "3", "ImageNet-1k at 224", "--backbone convnext_large --backbone-weights imagenet", "22.7 / 62.8"),
    "table3-in21k-224": Row("3", "ImageNet-21k at 224 (timm)", f"--backbone {IN21K} --backbone-weights imagenet",
                            "23.6 / 64.1"),
    "table3-in21k-384": Row("3", "ImageNet-21k at 384 (timm)", f"--backbone {IN21K}_384 --backbone-weights imagenet",
                            "22.7 / 67.8"),
    "table5-none": Row("5", "no normalisation", "--conditioning none", "24.4 / 63.6"),
    "table5-ccm-csm": Row("5", "CCM + CSM of Projected GAN", "--conditioning ccm-csm", "25.4 / 66.0"),
    "table5-bn-ccm-csm": Row("5", "batch norm + CCM + CSM", "--conditioning bn-ccm-csm", "24.6 / 66.4"),
    "table5-no-sigmoid": Row("5", "without the sigmoid", "--conditioning bn", "23.3 / 65.7"),
    "table5-no-bn": Row("5", "without the batch norm", "--conditioning sigmoid", "23.6 / 64.0"),
    "table6-dp-sims": Row("6", "DP-SIMS", "", "22.7 / 67.8"),
    "table6-oasis-discriminator": Row(
        "6", "OASIS's discriminator", "--model dp-sims --discriminator oasis", "29.3 / 49.0"),
    "table6-oasis-generator": Row("6", "OASIS's generator", "--model dp-sims --generator oasis", "25.6 / 63.6"),
    "table6-no-self-attention": Row("6", "without self-attention", "--self-attention off", "23.7 / 65.4"),
    "table6-no-cross-attention": Row("6", "concatenated noise", "--noise concatenation", "23.6 / 64.5"),
    "table6-no-label-smoothing": Row("6", "without label smoothing", "--label-smoothing 0", "23.0 / 66.3"),
    "table6-no-contrastive": Row("6", "without contrastive loss", "--lambda-c 0", "25.1 / 66.0"),
    "table7-tau-0.07": Row("7", "tau 0.07", "--tau 0.07", "25.7 / 62.6"),
    "table7-tau-0.3": Row("7", "tau 0.3", "--tau 0.3", "22.7 / 67.8"),
    "table7-tau-0.7": Row("7", "tau 0.7", "--tau 0.7", "24.1 / 66.3"),
    "table7-tau-2.0": Row("7", "tau 2.0", "--tau 2", "26.4 / 61.4"),
    "table8-weighted-ce": Row("8", "weighted cross-entropy", "--gamma 0", "23.2 / 65.5"),
    "table8-focal": Row("8", "focal", "--class-weights none", "22.8 / 64.7"),
    "table8-weighted-focal": Row("8", "weighted focal", "", "22.7 / 67.8"),
    "table9-oasis": Row("9", "OASIS", "--model oasis", "LPIPS 0.35"),
    "table9-dp-sims": Row("9", "DP-SIMS", "", "LPIPS 0.47"),
    "no-diversity": Row("", "without the diversity loss", "--lambda-d 0", ""),
    "dpgan-table4a-oasis-oasis": Row("DP-GAN 4(a)", "OASIS's G and D", "--model oasis", "47.7 / 69.3"),
    "dpgan-table4a-oasis-dpgan": Row(
        "DP-GAN 4(a)", "OASIS's G, DP-GAN's D", "--model dpgan --generator oasis", "47.9 / 74.0"),
    "dpgan-table4a-dpgan-oasis": Row(
        "DP-GAN 4(a)", "DP-GAN's G, OASIS's D", "--model dpgan --discriminator oasis --lambda-patch 0 --lambda-fm 0",
        "45.4 / 69.9"),
    "dpgan-table4a-dpgan-dpgan": Row("DP-GAN 4(a)", "DP-GAN", "--model dpgan", "44.1 / 73.6"),
    "dpgan-table4b-none": Row(
        "DP-GAN 4(b)", "no patch loss", "--model dpgan --patch none --lambda-patch 0", "49.2 / 67.9"),
    "dpgan-table4b-decoder": Row("DP-GAN 4(b)", "on the decoder", "--model dpgan --patch decoder", "44.5 / 72.1"),
    "dpgan-table4b-both": Row("DP-GAN 4(b)", "on both", "--model dpgan --patch both", "44.3 / 72.8"),
    "dpgan-table4b-encoder": Row("DP-GAN 4(b)", "on the encoder", "--model dpgan --patch encoder", "44.1 / 73.6"),
    "dpgan-table4c-none": Row(
        "DP-GAN 4(c)", "no feature matching", "--model dpgan --matched none --lambda-fm 0", "44.1 / 69.9"),
    "dpgan-table4c-encoder": Row("DP-GAN 4(c)", "on the encoder", "--model dpgan --matched encoder", "44.4 / 69.2"),
    "dpgan-table4c-both": Row("DP-GAN 4(c)", "on both", "--model dpgan --matched both", "45.0 / 73.8"),
    "dpgan-table4c-decoder": Row("DP-GAN 4(c)", "on the decoder", "--model dpgan --matched decoder", "44.1 / 73.6"),
    "dpgan-code-weights": Row(
        "", "DP-GAN, alpha with its code's 1/K", "--model dpgan --class-weights balanced", ""),
    "dpgan-supplement3-no-labelmix": Row(
        "DP-GAN suppl. 3", "without LabelMix", "--model dpgan --lambda-lm 0", "46.8 / 70.9"),
    "dpgan-supplement3-no-concatenation": Row(
        "DP-GAN suppl. 3", "without the last map", "--model dpgan --concatenate-last off", "44.8 / 71.2"),
}

if __name__ == "__main__":
    for name, row in ROWS.items():
        print(f"{row.table or '-':<16} {row.what:<27} {row.paper:<12} {name:<35} python {row.command()}")
