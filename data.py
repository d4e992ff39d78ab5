"""What a sample is (Sec. 4.1): resized, cropped, flipped, with instance offsets; and rare-class sampling.

In the order of Sec. 4.1:

    offset_maps             instance ids -> two channels, the offset to each instance's centre of mass
    Dataset                 pictures and label maps of any sizes -> samples of one size
    class_presence          which classes each training image contains: f_c is the mean over images
    sampling_probabilities  p of each image, proportional to f_k^(-1/2)
    RareClassBatches        images drawn with these p, step by step, the batch split over ranks
    training_batches        the batches as the networks take them
    open_dataset            --dataset NAME -> a Dataset; readers/ has one file for each, which reads its files

    disk --readers/--> picture (h, w, 3), labels (h, w), instance ids (h, w)
         --Dataset---> resized, cropped, flipped: (H, W, 3), (H, W), (H, W)
         ------------> a sample: image      (3, H, W) uint8
                                 label_map  (H, W) uint8, 0..C-1; the generator makes it one-hot, on the device
                                 offsets    (2, H, W) float32 in [-1, 1], (dy, dx), where the dataset has instances

    paper | here          | shape
          | presence      | (N, C) bool, N training images, C classes
    f_c   | f             | (C,) share of the images in which class c appears
    f_k   | f_k           | (N,) that of the rarest class of each image
          | probabilities | (N,) p, sums to 1

`python data.py --dataset NAME --data-path DIR` checks every file and draws a page of samples. Run it before you train.
"""
import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import support  # noqa: F401, before torch, which takes seconds
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from readers import ade20k, cityscapes, coco_stuff, folder, toy
from support.checkpoints import digest, read_arrays, write_arrays
from support.errors import InputError, first_line, run_script, with_remedy
from support.options import COUNT, add_data_options, new_parser
from support.pages import colour_labels, draw_columns, legend_of
from support.ranks import own_group

# A dataset of your own: readers/NAME.py, and its line here.
READERS = {"folder": (folder.open_folder, folder.TREE),
           "ade20k": (ade20k.open_ade20k, ade20k.TREE),
           "cityscapes": (cityscapes.open_cityscapes, cityscapes.TREE),
           "coco_stuff": (coco_stuff.open_coco_stuff, coco_stuff.TREE)}
DATASETS = ("toy", *READERS)
MEANINGS = {"cityscapes": cityscapes.MEANING, "coco_stuff": coco_stuff.MEANING}  # of the values in their files
# PAPER: silent on augmentation. / HERE: resize to 286/256 of the size, random crop, flip. The aspect ratio is ignored;
# pictures bicubic with antialiasing, labels nearest. / WHY: OASIS's paper does this; its code, by a bug, does not.
RESIZE = 286 / 256


# ------------------------------------------------------------------------------------------ instance offsets

def offset_maps(instances):
    """The offset from each instance pixel to the centre of mass of its instance (Sec. 4.1, as in [9]).

    instances (H, W) integers, 0 = no instance -> (2, H, W) float32: (dy / H, dx / W), 0 outside of instances.
    Example: two pixels side by side in a map 8 wide have dx = 1/16 and -1/16, for their centre lies between them.
    TRAP: call it after resize, crop and flip. A flip negates dx and a crop can move the centre.
    """
    H, W = instances.shape
    inside = np.flatnonzero(instances)                                        # (n,) pixels of instances
    _, which, count = np.unique(instances.reshape(-1)[inside], return_inverse=True, return_counts=True)
    which = which.reshape(-1)                                                 # (n,) the instance of each, 0, 1, ...
    position = np.stack(np.divmod(inside, W)).astype(np.float64)              # (2, n) y and x of each
    centre = np.stack([np.bincount(which, weights=p) / count for p in position])          # (2, instances)
    offsets = np.zeros((2, H * W), np.float32)
    offsets[:, inside] = (centre[:, which] - position) / [[H], [W]]
    return offsets.reshape(2, H, W)


# ------------------------------------------------------------------------------------------ a sample

class Dataset:
    """Samples of image_size (H, W) from a reader: readers.files.Pictures or readers.toy.ToyScenes.

    dataset[i] is sample i, resized. dataset[i, epoch, draw] is augmented, from (seed, epoch, draw) alone: a resumed run
    and another loader process get the same augmentation. instances=False leaves instance maps unread.

    A dataset passes on what its reader says:
        names       of the samples               unknown        the class of unlabelled pixels, or None
        classes     their C names                score_ids      (C,) a class's id in scores, -1 = not scored
        palette     (C, 3) uint8, for pages      has_instances  whether samples have offsets
        objects     names of classes, for obj-mIoU
    and calls, on its reader:
        load(i, instances)   -> (h, w, 3) uint8, (h, w) uint8 classes, (h, w) ids with 0 = none, or None
        labels(i)            -> (h, w) uint8 classes alone
        cropped              whether training crops: Cityscapes and toy scenes are only flipped
        fingerprint()        -> a text that changes with the files: caches of another one are not used again
    """

    def __init__(self, reader, image_size, seed=0, instances=True):
        self.reader, self.image_size, self.seed = reader, image_size, seed
        self.names, self.classes, self.palette = reader.names, reader.classes, reader.palette
        self.unknown, self.score_ids, self.objects = reader.unknown, reader.score_ids, reader.objects
        self.has_instances, self.fingerprint = instances and reader.has_instances, reader.fingerprint

    def __len__(self):
        return len(self.names)

    def __getitem__(self, key):
        image, labels, instances = self.planes(key)
        sample = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy()),             # (3, H, W)
                  "label_map": torch.from_numpy(labels.copy())}                           # (H, W)
        if instances is not None:
            sample["offsets"] = torch.from_numpy(offset_maps(instances))                  # (2, H, W)
        return sample

    def planes(self, key):
        """key: i or (i, epoch, draw) -> picture (H, W, 3) uint8, classes (H, W) uint8, instance ids (H, W) or None."""
        index, *draw = key if isinstance(key, tuple) else (key,)
        image, labels, instances = self.reader.load(index, self.has_instances)
        H, W = self.image_size
        # file --resize--> (h, w) --crop at (top, left)--> (H, W) --flip, every second time-->
        h, w = (round(H * RESIZE), round(W * RESIZE)) if draw and self.reader.cropped else (H, W)
        image = np.asarray(Image.fromarray(image).resize((w, h), Image.BICUBIC))          # (h, w, 3)
        # We resize, crop and flip the row and column indices, then index labels and instances once.
        rows, columns = nearest(labels.shape[0], h), nearest(labels.shape[1], w)          # (h,), (w,)
        if draw:
            rng = np.random.default_rng((self.seed, *draw))
            top, left = rng.integers(h - H + 1), rng.integers(w - W + 1)
            image, rows, columns = image[top:top + H, left:left + W], rows[top:top + H], columns[left:left + W]
            if rng.random() < 0.5:
                image, columns = image[:, ::-1], columns[::-1]
        window = np.ix_(rows, columns)
        return image, labels[window], None if instances is None else instances[window]

    def presence(self, index):
        """(C,) bool: the classes of sample `index`, at the size of its file."""
        return np.bincount(self.reader.labels(index).ravel(), minlength=len(self.classes)) > 0


def nearest(old, new):
    """(new,) the positions, of `old` many, that nearest-neighbour resizing keeps."""
    return (np.arange(new) * 2 + 1) * old // (2 * new)


# ------------------------------------------------------------------------------------------ rare-class sampling

def class_presence(dataset, cache=None):
    """(N, C) bool: which classes each sample contains. Every label map is read, and so checked, once.

    cache: a file beside the run. It is used again while the list of label files, their sizes and times stay the same.
    """
    # TRAP: a table of other files, or of another class list, would draw images that are not there.
    key = digest(dataset.fingerprint() + repr(dataset.classes))
    saved = cache and read_arrays(cache, key, {"presence": ((len(dataset), len(dataset.classes)), bool)})
    if saved:
        return saved["presence"]
    presence = np.stack(on_threads(dataset.presence, len(dataset), "reading label maps"))
    if cache:
        write_arrays(cache, key, {"presence": presence})
    return presence


def on_threads(read, count, description):
    """[read(0), ..., read(count - 1)], many at a time, under a progress bar."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(tqdm(pool.map(read, range(count)), total=count, leave=False, desc=description, disable=None))


def sampling_probabilities(presence, unknown=None):
    """p of each image, proportional to f_k^(-1/2) (Sec. 4.1, "favoring rare classes"). (N, C) bool -> (N,) float64.

    Example: a class in one image of a hundred makes this image ten times as likely as one of common classes only.
    PAPER: silent on unknown pixels. / HERE: unknown is not a class; an image with only unknown pixels has f_k = 1.
    """
    presence = np.array(presence, dtype=bool)
    if unknown is not None:
        presence[:, unknown] = False
    f = presence.mean(axis=0)                                                 # (C,) f_c
    f_k = np.where(presence, f, 1.0).min(axis=1)                              # (N,) the smallest f_c of each image
    p = f_k ** -0.5
    return p / p.sum()


class RareClassBatches:
    """Batch sampler: this rank's part of each step's global batch, as keys (index, epoch, draw) of a Dataset.

    The draws are one sequence, a function of the seed alone, whatever the number of ranks: draw n belongs to step
    n // batch_size. An epoch is N draws with replacement. Steps count from 0 here: first_step .. last_step - 1.
    So a resumed run goes on with the draws of its step, and eight ranks together get the batch of one rank alone.
    """

    def __init__(self, probabilities, batch_size, first_step, last_step, seed=0, rank=0, world=1):
        self.p, self.batch_size, self.seed = probabilities, batch_size, seed
        self.steps, self.rank, self.per_rank = range(first_step, last_step), rank, batch_size // world

    def __len__(self):
        return len(self.steps)

    def __iter__(self):
        N, epoch, order = len(self.p), None, None
        for step in self.steps:
            first = step * self.batch_size + self.rank * self.per_rank        # this rank's first draw of the step
            batch = []
            for n in range(first, first + self.per_rank):
                if n // N != epoch:                                           # N draws are made at once
                    epoch = n // N
                    order = np.random.default_rng((self.seed, epoch, N)).choice(N, size=N, p=self.p)
                batch.append((int(order[n % N]), epoch, n % N))
            yield batch


def training_probabilities(dataset, sampling, cache, ranks):
    """p of each training picture, (N,) float64. sampling: "rare-class" or "uniform". cache: of class_presence."""
    p = torch.full((len(dataset),), 1 / len(dataset), dtype=torch.float64)
    if ranks.rank == 0 and sampling == "rare-class":  # one rank reads the label maps, the others wait for the result
        p = torch.from_numpy(sampling_probabilities(class_presence(dataset, cache), dataset.unknown))
    if ranks.world > 1:
        torch.distributed.broadcast(p, 0)  # over gloo, which waits half an hour for a large dataset
    return p.numpy()


def training_batches(dataset, probabilities, first, last, args, ranks, workers=None):
    """This rank's part of the batches of steps first + 1 ... last, on its device.

    Dicts of real (B, 3, H, W) in [-1, 1], label_map (B, H, W) int64 and, with instances, offsets (B, 2, H, W).
    args: --batch-size (global), --workers and --seed. workers: in place of --workers; TRAP: 0 within a run: NCCL may
    hang in a process that forks after its first message. Raises InputError for a bad file.
    """
    workers = args.workers if workers is None else workers
    sampler = RareClassBatches(probabilities, args.batch_size, first, last, args.seed, ranks.rank, ranks.world)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, worker_init_fn=own_group,
                        pin_memory=ranks.device.type == "cuda", persistent_workers=workers > 0)
    for batch in batches_of(loader):
        batch = {name: t.to(ranks.device, non_blocking=True) for name, t in batch.items()}
        real = (batch.pop("image").float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        yield {**batch, "real": real, "label_map": batch["label_map"].long()}


def batches_of(loader):
    """The batches of a DataLoader. A loader process's InputError or OSError is raised here without its stack trace, and
    an InputError where such a process was killed."""
    try:
        batches = iter(loader)
        if loader.num_workers and hasattr(signal, "SIGCHLD"):  # TRAP: torch's handler raises wherever the run is, even
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)      # in a save; the next batch tells, within five seconds
        yield from batches
    except (InputError, OSError) as error:
        *trace, last = str(error).strip().splitlines()
        raise InputError(with_remedy(re.sub(r"^[\w.]+: ", "", last) if trace else last)) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(first_line(error)) from None


# ------------------------------------------------------------------------------------------ opening a dataset

def open_dataset(name, path, split, image_size, seed=0, instances=True):
    """--dataset NAME, --data-path -> a Dataset. image_size: (H, W). split: "train" or "val". Raises InputError.

    path: None looks in the usual places. instances: see Dataset; False for baselines that know none.
    """
    if name not in DATASETS:
        raise InputError(f"--dataset {name} is unknown; choose from {', '.join(DATASETS)}")
    if name == "toy" and path:
        raise InputError(f"--data-path {path}: --dataset toy reads no files; give --dataset NAME, one of "
                         f"{', '.join(READERS)}")
    if name == "toy" and min(image_size) < toy.SMALLEST:
        raise InputError(f"--image-size {image_size[0]}x{image_size[1]}: toy scenes need sides of {toy.SMALLEST}")
    if name == "toy":
        return Dataset(toy.ToyScenes(split, image_size), image_size, seed, instances)
    return Dataset(READERS[name][0](path or usual_path(name), split), image_size, seed, instances)


def usual_path(name):
    """Where dataset `name` lies if --data-path is not given: below data/ or $DP_SIMS_DATA. Raises InputError."""
    if name == "folder":
        raise InputError(f"--data-path DIR is missing. {READERS[name][1]}")
    folder = "ADEChallengeData2016" if name == "ade20k" else name
    places = [Path(parent) / folder for parent in ("data", os.environ.get("DP_SIMS_DATA")) if parent]
    for place in places:
        if place.is_dir():
            return place
    raise InputError(f"--data-path DIR is missing; no {' and no '.join(map(str, places))}, so give it, or unpack "
                     f"there. {READERS[name][1]}")


# ------------------------------------------------------------------------------------------ python data.py

def survey(dataset):
    """Read every file -> a dict: sizes [(h, w), ...], pixels (N, C), instances (N,), problems [text, ...]."""
    def look(index):
        try:
            _, labels, instances = dataset.reader.load(index, dataset.has_instances)
        except InputError as error:
            return str(error)
        count = 0 if instances is None else len(np.unique(instances[instances > 0]))
        return labels.shape, np.bincount(labels.ravel(), minlength=len(dataset.classes)), count
    seen = on_threads(look, len(dataset), "reading")
    good = [s for s in seen if not isinstance(s, str)]
    return {"sizes": [s[0] for s in good], "pixels": np.array([s[1] for s in good]).reshape(-1, len(dataset.classes)),
            "instances": np.array([s[2] for s in good]), "problems": [s for s in seen if isinstance(s, str)]}


def report(dataset, found):
    """What a person wants to know of a dataset before training on it, as text.

    found: see survey. How many samples, classes and instances; the sizes; each class's share of the pixels and the
    number of samples with it; the classes that no sample has.
    """
    sizes, pixels = found["sizes"], found["pixels"]
    lines = [f"{len(dataset)} samples, {len(dataset.classes)} classes, "
             + (f"{int(found['instances'].sum()):,} instances" if dataset.has_instances else "no instances")]
    if sizes:
        area = sorted(sizes, key=lambda s: s[0] * s[1])
        upright, square = sum(h > w for h, w in sizes), sum(h == w for h, w in sizes)
        lines.append(f"sizes (height x width): {len(set(sizes))} different, {area[0][0]}x{area[0][1]} to {area[-1][0]}x"
                     f"{area[-1][1]}; {upright} portrait, {square} square, {len(sizes) - upright - square} landscape")
        share, images = pixels.sum(axis=0) / pixels.sum(), (pixels > 0).sum(axis=0)
        lines.append("class                        of pixels    in samples    colour (R G B)")
        lines += [f"{c:5d} {dataset.classes[c]:<22}{share[c]:9.3%} {images[c]:9,}        "
                  + "".join(f"{value:4d}" for value in dataset.palette[c])
                  + ("    unknown" if c == dataset.unknown else "") for c in np.flatnonzero(images)]
        never = ", ".join(f"{c} {dataset.classes[c]}" for c in np.flatnonzero(images == 0))
        lines.append(f"never seen: {never or 'none'}")
    return "\n".join(lines)


def sample_page(dataset, rows):
    """Columns and legend for draw_columns: samples spread over the dataset, as the networks get them."""
    images, labels, instances = zip(*(dataset.planes(i * len(dataset) // rows) for i in range(rows)))
    columns = {"picture": images, "label map": colour_labels(np.stack(labels), dataset.palette)}
    if dataset.has_instances:
        ids = np.stack(instances).astype(np.int64)[..., None]                            # (rows, H, W, 1)
        mixed = 64 + (ids * 2654435761 >> np.array([8, 14, 20])) % 192                   # any bright colour for an id
        columns["instances"] = np.where(ids > 0, mixed, 0).astype(np.uint8)
        dy, dx = (np.stack([offset_maps(one) for one in instances], axis=1) * 3).clip(-1, 1)
        columns["dy red, dx green"] = np.stack(
            [127.5 + 127 * dy, 127.5 + 127 * dx, np.full_like(dx, 127.5)], axis=3).astype(np.uint8)
    return columns, legend_of(labels, dataset.classes, dataset.palette)


def main():
    parser = new_parser("Check a dataset before training on it: read every file of both splits, count, list what is "
                        "wrong, and draw a page of samples. Exit code 2 if anything is wrong.")
    add_data_options(parser, DATASETS)
    parser.add_argument("--split", choices=("train", "val"), help="this one alone; default: both, the page of train")
    parser.add_argument("--rows", type=COUNT, default=6, help="samples on the page")
    parser.add_argument("--output", type=Path, default="data.png", help="the page, a PNG")
    args = parser.parse_args()
    size = args.image_size or {"toy": (64, 64), "cityscapes": (256, 512)}.get(args.dataset, (256, 256))
    if args.output.suffix != ".png" or args.output.is_dir() or not args.output.parent.is_dir():
        raise InputError(f"--output {args.output}: cannot be written; give a PNG in a folder that exists")
    splits = {split: open_dataset(args.dataset, args.data_path, split, size)
              for split in ([args.split] if args.split else ("train", "val"))}
    problems = []
    for split, dataset in splits.items():
        found = survey(dataset)
        print(f"{args.dataset}, {split}: {report(dataset, found)}")
        problems += found["problems"]
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    if problems:
        raise InputError(f"{len(problems)} of {sum(map(len, splits.values()))} samples cannot be used, for the reasons "
                         f"above")
    first = next(iter(splits.values()))
    columns, legend = sample_page(first, min(args.rows, len(first)))
    draw_columns(columns, args.output, legend)
    print(f"page of samples: {args.output}")


if __name__ == "__main__":
    run_script("data.py", main)
