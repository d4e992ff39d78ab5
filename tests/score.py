"""Score generators by a segmenter trained on the dataset's own real pictures. A measuring tool, not a test.

    python tests/score.py --dataset toy --segmenter toy_segmenter.pt runs/*/ema_0001000.pt

mIoU on the real and on the generated validation pictures (mean over the classes that occur, the unknown
one left out), and the pixel diversity: the mean absolute difference between the pictures of two seeds, with
pixels in [0, 1]. The segmenter is trained once and kept in the file.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import open_dataset
from generator import z_of_seed
from sample import generate, load_generator


class UNet(nn.Module):
    """A small segmenter: (B, 3, H, W) in [-1, 1] -> (B, C, H, W)."""

    def __init__(self, num_classes, widths=(24, 48, 96, 128)):
        super().__init__()
        def block(i, o):
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
                                 nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        self.down = nn.ModuleList(block(i, o) for i, o in zip((3,) + widths[:-1], widths))
        self.up = nn.ModuleList(block(widths[i + 1] + widths[i], widths[i]) for i in range(len(widths) - 2, -1, -1))
        self.out = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x):
        skips = []
        for block in self.down:
            x = block(x if not skips else F.max_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1]):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1))
        return self.out(x)


def train_segmenter(dataset, steps, batch_size=16, seed=0):
    torch.manual_seed(seed)
    net = UNet(len(dataset.classes)).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    rng, ignore = np.random.default_rng(seed), -1 if dataset.unknown is None else dataset.unknown
    for step in range(steps):
        batch = [dataset[int(i), 0, int(rng.integers(2 ** 31))] for i in rng.integers(len(dataset), size=batch_size)]
        image = torch.stack([b["image"] for b in batch]).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        labels = torch.stack([b["label_map"] for b in batch]).long()
        count = torch.bincount(labels.flatten(), minlength=len(dataset.classes)).float()
        weight = (count.sum() / (len(count) * count.clamp_min(1))).sqrt().clamp_max(8)  # small classes count too
        loss = F.cross_entropy(net(image), labels, weight, ignore_index=ignore)
        optimiser.zero_grad(); loss.backward(); optimiser.step(); schedule.step()
        if step % 100 == 99:
            print(f"segmenter step {step + 1}/{steps} loss {loss.item():.3f}", flush=True)
    return net.eval()


def mean_iou(confusion, unknown):
    """confusion (C, C), rows the truth. Mean over the classes that occur in the truth or the prediction."""
    if unknown is not None:
        confusion = confusion.clone()
        confusion[unknown] = 0
        confusion[:, unknown] = 0
    hit, union = confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()
    iou = torch.where(union > 0, hit / union.clamp_min(1), torch.nan)
    return iou.nanmean().item(), iou


@torch.no_grad()
def confuse(net, pictures, label_maps, classes):
    confusion = torch.zeros(classes, classes, dtype=torch.float64)
    for picture, labels in zip(pictures, label_maps):
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        index = labels.flatten().long() * classes + net(x)[0].argmax(0).flatten()
        confusion += torch.bincount(index, minlength=classes ** 2).view(classes, classes)
    return confusion


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--dataset", default="toy")
    parser.add_argument("--data-path")
    parser.add_argument("--segmenter", type=Path, required=True, help="file to keep the segmenter in")
    parser.add_argument("--segmenter-steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    _, checkpoint = load_generator(args.checkpoints[0])
    size = tuple(checkpoint["image_size"])
    real = open_dataset(args.dataset, args.data_path, "val", size)
    C = len(real.classes)
    if args.segmenter.is_file():
        net = UNet(C).eval()
        net.load_state_dict(torch.load(args.segmenter, weights_only=True))
    else:
        net = train_segmenter(open_dataset(args.dataset, args.data_path, "train", size), args.segmenter_steps)
        torch.save(net.state_dict(), args.segmenter)
    samples = [real[i] for i in range(len(real))]
    labels = [s["label_map"] for s in samples]
    on_real, per_class = mean_iou(confuse(net, [s["image"].permute(1, 2, 0) for s in samples], labels, C), real.unknown)
    print(f"real pictures: mIoU {on_real:.3f}   " + " ".join(f"{n} {v:.2f}" for n, v in zip(real.classes, per_class)))
    for file in args.checkpoints:
        G, _ = load_generator(file)
        by_seed = []
        for seed in range(args.seeds):
            by_seed.append([generate(G, s["label_map"][None], s["offsets"][None] if "offsets" in s else None,
                                     z_of_seed(1000 * seed + i, G.z_dim)[None], "cpu")[0] for i, s in enumerate(samples)])
        miou, per_class = mean_iou(sum(confuse(net, pictures, labels, C) for pictures in by_seed), real.unknown)
        apart = np.mean([np.abs(a.astype(float) - b).mean() / 255 for a, b in zip(by_seed[0], by_seed[1])])
        print(f"{file}: mIoU {miou:.3f} = {miou / on_real:.1%} of real, pixel diversity {apart:.3f}   "
              + " ".join(f"{n} {v:.2f}" for n, v in zip(real.classes, per_class)), flush=True)


if __name__ == "__main__":
    main()
