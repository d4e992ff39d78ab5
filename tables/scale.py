"""What training at full size costs: FLOPs, hours, memory, network, loader processes, disk. All of it is computed.

    python -m tables.scale --dataset cityscapes --micro-batch-size 8 --gpus 16      or other options of train.py

It needs no GPU, weights or pictures: train.generator_losses and train.discriminator_losses run on the full-size
networks with fake tensors, which have shapes but no numbers. Only matrix products, convolutions and attention are
counted. Adam and the average, about 20 operations a parameter and step, are negligible: below 0.01 %. What else takes
time (memory traffic, communication, pictures, scores) is why only 30 to 50 % of a GPU's rate are assumed.
"""
import math
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import losses
import train
from support.errors import run_script
from support.optimisation import trained_parameters
from support.options import COUNT, new_parser
from support.ranks import Ranks

# training pictures, classes, instances, samples a second that one core reads (measured: RESULTS.md), GB of archives
SETS = {"ade20k": SimpleNamespace(pictures=20_210, classes=range(151), has_instances=False, read=178, archives=1),
        "cityscapes": SimpleNamespace(pictures=2_975, classes=range(35), has_instances=True, read=11.5, archives=11),
        "coco_stuff": SimpleNamespace(pictures=118_287, classes=range(183), has_instances=True, read=130, archives=20)}
RATES = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16 FLOP a second, of the data sheets (SXM)
SHARES, MICRO_BATCHES = (0.3, 0.4, 0.5), (1, 2, 4, 8, 16)  # of that rate, assumed; pictures at once on a GPU


@contextmanager
def fake_tensors():
    """Two calls look at numbers: an initialisation of weights, left out here, and the positions of Eq. 5, drawn."""
    def draw(*arguments, positions=losses.draw_positions):
        with unset_fake_temporarily():
            return positions(*arguments)
    with (FakeTensorMode(allow_non_fake_inputs=True), patch("losses.draw_positions", draw),
          patch("torch.nn.init.trunc_normal_", lambda t, *_, **__: t)):
        yield


@contextmanager
def fake_cuda():
    """Fake tensors, and CUDA's bf16 autocast and flash attention, also on a torch without CUDA: a forward pass runs."""
    def flash(*query_key_value):
        return torch.ops.aten._scaled_dot_product_flash_attention(*(t[:, None] for t in query_key_value))[0][:, 0]
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        with fake_tensors(), patch("generator.fused_attention", flash):
            yield
    finally:
        torch.autocast_decrement_nesting()
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def build(args, data, B, device="cpu"):
    """-> G, D, P as train.py builds them, and a batch of B pictures without content."""
    with torch.device(device):
        G, D, P, *_ = train.build_networks(args, data, None, None, Ranks(torch.device(device)))
        channels = {"real": 3} | ({"offsets": 2} if G.offset_channels else {})
        maps = {name: torch.rand(B, c, *args.image_size) for name, c in channels.items()}
        noise = {name: torch.randn(B, G.z_dim) for name in ("z_1", "z_2")}
        return G, D, P, {**maps, **noise, "label_map": torch.zeros(B, *args.image_size, dtype=torch.int64)}


def count_flops(G, D, P, batch, args):
    """{part of a step: (FLOPs forward, FLOPs backward)} of a batch. P None: without Eq. 5."""
    def counted(run, *arguments, **options):
        # TRAP: the fused attention of a CPU is counted by some versions of torch only
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            result = run(*arguments, **options)
        return result, counter.get_total_flops(), {m: sum(n.values()) for m, n in counter.get_flop_counts().items()}

    def back(*arguments):
        return counted(torch.autograd.grad, *arguments, retain_graph=True, allow_unused=True)[:2]
    trained, alpha = trained_parameters(D), torch.ones(G.num_classes)
    for p in trained:  # G's step, as in train.loop; its backward pass in parts: losses -> picture, picture -> G
        p.requires_grad_(False)
    (terms, image, _, features), total, by = counted(train.generator_losses, G, D, P, batch, alpha, None, args)
    g, b, d = (by[module] for module in ("Generator", "Backbone", "Discriminator"))
    (to_image,), through_D = back(terms["gan"], [image])
    b_back = back(features, [image], [torch.ones_like(f) for f in features])[1]
    vgg_back = back(terms["contrastive"], [image, *trained_parameters(P)])[1] if P else 0
    ends = (image, terms["diversity"]) if "diversity" in terms else (image,)
    g_back = back(ends, trained_parameters(G), (to_image, None)[:len(ends)])[1]
    for p in trained:  # D's step
        p.requires_grad_(True)
    fake, features = image[:len(batch["real"])].detach(), [f.detach() for f in features]
    (terms, *_), d_step, by = counted(train.discriminator_losses, D, batch, fake, features, alpha, args)
    b_real = by["Discriminator.backbone"]
    return {"G, with the second z of Eq. 6": (g, g_back),
            "backbone on generated pictures, frozen": (b, b_back),
            "D's decoder in G's step, frozen": (d, through_D - b_back),
            "VGG-19 (frozen) and projections of Eq. 5": (total - g - b - d, vgg_back),
            "backbone on real pictures, frozen": (b_real, 0),
            "D's decoder in D's step, real and generated": (d_step - b_real, back(sum(terms.values()), trained)[1])}


def count_saved(G, D, P, batch, args):
    """Bytes that autograd keeps in G's forward pass for the backward pass, without parameters and buffers."""
    own = {t.untyped_storage()._cdata for net in (G, D, P) if net for t in (*net.parameters(), *net.buffers())}
    alpha, kept = torch.ones(G.num_classes, device=batch["real"].device), {}

    def keep(t):  # returned, and so alive: no other storage gets its address
        kept[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t
    D.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        train.generator_losses(G, D, P, batch, alpha, None, args)
    return sum(kept[storage] for storage in kept.keys() - own)


def count_memory(args, data):
    """-> trained parameters of (G, D, P), frozen ones, {pictures at once on a GPU: GiB} in bf16."""
    gib = {}
    for B in (args.micro_batch_size,) if args.micro_batch_size else MICRO_BATCHES:
        with fake_cuda():
            *nets, batch = build(args, data, B, "cuda")
            trained = [sum(p.numel() for p in trained_parameters(net)) for net in nets]
            frozen = sum(p.numel() for net in nets if net for p in net.parameters()) - sum(trained)
            few = SimpleNamespace(**{**vars(args), "diversity_every": math.gcd(B, args.diversity_every)})  # divides B
            # float32: weight, gradient and Adam's two averages of each; the averaged G; the frozen networks
            gib[B] = (count_saved(*nets, batch, few) + 4 * (4 * sum(trained) + trained[0] + frozen)) / 2 ** 30
    return trained, frozen, gib


def table(*rows):
    """Prints rows of cells as a table of Markdown; the first is its head."""
    head, *rest = ("| " + " | ".join(map(str, row)) + " |" for row in rows)
    print(head, "|---" * len(rows[0]) + "|", *rest, "", sep="\n")


def report(known, args):
    data, n, pictures = SETS[known.dataset], known.gpus, args.steps * args.batch_size
    B = math.lcm(4, args.diversity_every)  # every such picture is drawn a second time for Eq. 6
    with fake_tensors():
        parts = {part: [c / B / 1e9 for c in counts]
                 for part, counts in count_flops(*build(args, data, B), args).items()}
    parts["the whole step"] = [sum(counts) for counts in zip(*parts.values())]
    speed = {(gpu, share): rate * share / 1e9 / sum(parts["the whole step"])  # pictures a second and GPU
             for gpu, rate in RATES.items() for share in SHARES}
    (g, d, p), frozen, gib = count_memory(args, data)
    weights, average = g + d + p, 4e-9 * g                                                          # GB
    sent, step = 8e-6 * weights * (n - 1) / n, 1e3 * args.batch_size / n / speed["H100", 0.4]       # MB, ms
    latest, files = average + 12e-9 * weights, math.ceil(args.steps / (args.ema_every or args.steps))
    print(f"{known.dataset}, {args.image_size[0]}x{args.image_size[1]}, {args.backbone}: {args.steps:,} steps of "
          f"{args.batch_size} are {pictures / data.pictures:,.1f} epochs of {data.pictures:,} pictures.\n")
    table(("GFLOP a picture (computed)", "forward", "backward"),
          *((part, *(f"{count:.1f}" for count in counts)) for part, counts in parts.items()))
    table((f"hours on {n} (computed)", *(f"at {share:.0%}" for share in SHARES), "pictures a second and GPU at 40%",
           "loader processes a GPU at 40%"),
          *((gpu, *(f"{pictures / n / speed[gpu, share] / 3600:.1f}" for share in SHARES),
             f"{speed[gpu, 0.4]:.0f}", math.ceil(speed[gpu, 0.4] / data.read)) for gpu in RATES))
    table(("pictures at once on a GPU", *gib), ("GiB in bf16 (computed)", *(f"{some:.1f}" for some in gib.values())))
    table(("what", "computed"),
          ("parameters in millions", f"G {g / 1e6:.1f}, D {d / 1e6:.1f}, P {p / 1e6:.1f}; frozen {frozen / 1e6:.1f}"),
          ("gradients of a step", f"{4e-6 * weights:.0f} MB; each GPU of {n} sends {sent:.0f} MB: {sent / 450:.1f} "
           f"ms at 450 GB/s (NVLink), {sent / 50:.1f} at 50 GB/s (400 Gbit/s), of {step:.0f} (H100 at 40%)"),
          ("run folder", f"{latest + files * average:.1f} GB: latest.pt {latest:.2f}, {files} ema_*.pt {average:.2f}"),
          ("archives of the dataset", f"{data.archives} GB (said by their owners)"))


def parse_options(argv):
    """argv -> (the options of this script, those of train.py). Raises InputError."""
    parser = new_parser(__doc__.splitlines()[0], "Takes any other option of train.py as well.")
    parser.add_argument("--dataset", choices=SETS, default="ade20k")
    parser.add_argument("--gpus", type=COUNT, default=8, help="over all machines")
    known, others = parser.parse_known_args(argv)
    others += ["--backbone-weights", "random", "--vgg-weights", "random"]  # no numbers, so no files
    return known, train.parse_options(["--dataset", known.dataset, *others])


if __name__ == "__main__":
    run_script("tables.scale", lambda: report(*parse_options(sys.argv[1:])))
