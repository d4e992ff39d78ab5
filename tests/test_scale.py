"""tables/scale.py counts what a real step does, docs/scale.md says what it prints, and two machines train as one.

Oracles: the same step on real tensors; the FLOPs that the paper's Table 2 prints; a run in one process.
"""
import re
import socket
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import test_train
import train
from support.errors import InputError
from tables import scale
from test_train import ROOT, load, options, small, start  # noqa: F401

PAGE, README = ((ROOT / file).read_text(encoding="utf-8") for file in ("docs/scale.md", "README.md"))
TOY = "--dataset toy --backbone-weights random --vgg-weights random --image-size 64 --batch-size 4"
DATA = SimpleNamespace(classes=range(11), has_instances=True)


def test_the_pictures_that_are_drawn_twice_are_counted(capsys):
    """G draws 1 + 1/4 times the batch with --diversity-every 4, and 1 + 1/24 times with 24."""
    costs = []
    for every in (4, 24):
        scale.report(*scale.parse_options("--dataset ade20k --preset toy --image-size 256 --batch-size 192 "
                                          f"--diversity-every {every}".split()))
        row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| G, "))
        costs.append(float(row.split("|")[2]))
    assert costs[0] / costs[1] == pytest.approx((1 + 1 / 4) / (1 + 1 / 24), abs=0.01)


@pytest.mark.parametrize("more", ["", "--lambda-c 0 --lambda-d 0"])
def test_fake_tensors_are_counted_like_a_real_step(more):
    args = train.parse_options(f"{TOY} {more}".split())
    with scale.fake_tensors():
        parts = scale.count_flops(*scale.build(args, DATA, 4), args)
        saved = scale.count_saved(*scale.build(args, DATA, 4), args)
    G, D, P, batch = scale.build(args, DATA, 4)
    assert scale.count_saved(G, D, P, batch, args) == saved > 0

    D.requires_grad_(True)
    D.backbone.requires_grad_(False)
    trained, alpha, rng = train.trained_parameters(D), torch.ones(11), torch.Generator()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # as train.loop has it, in one piece
        for p in trained:
            p.requires_grad_(False)
        terms, image, _, features = train.generator_losses(G, D, P, batch, alpha, rng, args)
        sum(terms.values()).backward()
        for p in trained:
            p.requires_grad_(True)
        features = [f.detach() for f in features]
        terms, *_ = train.discriminator_losses(D, batch, image[:4].detach(), features, alpha, args)
        sum(terms.values()).backward()
    assert sum(map(sum, parts.values())) == counter.get_total_flops()
    assert all(forward >= 0 and backward >= 0 for forward, backward in parts.values())


def test_the_page_says_what_the_command_prints_and_the_backbone_is_the_papers(capsys):
    """At full size. Table 2: 34.4 G multiply-adds of ConvNeXt-L at 224x224."""
    scale.report(*scale.parse_options("--dataset ade20k --micro-batch-size 8".split()))
    printed = capsys.readouterr().out.splitlines()
    memory = next(line for line in printed if line.startswith("| GiB")).split("|")[2].strip()
    row = next(line for line in README.splitlines() if line.startswith("| ADE20K, 256x256 | "))
    assert f"{memory} GiB" in row
    for line in printed:
        assert line in PAGE or line.startswith(("| GiB", "| pictures at once")), line
    forward = float(next(line for line in printed if line.startswith("| backbone on real")).split("|")[2])
    assert forward == pytest.approx(2 * 34.4 * (256 / 224) ** 2, rel=0.01)


def test_cudas_autocast_leaves_no_feature_map_in_float32():
    """It resizes in float32. All that a convolution of G and of D's decoder reads from another one is bf16 again."""
    args, found = train.parse_options(["--dataset", "toy", "--backbone-weights", "random"]), {}
    with scale.fake_cuda():
        G, D, _, batch = scale.build(args, DATA, 2, "cuda")
        for name, net in {"G": G.blocks, "D": D.decoder}.items():
            for i, block in enumerate(net):
                block.register_forward_pre_hook(
                    lambda _, inputs, key=(name, i): found.__setitem__(key, [x.dtype for x in inputs]))
        D(G(batch["label_map"], batch["z_1"], batch.get("offsets")))
    assert len(found) == 4 + 5 and set(sum((found["G", i] for i in range(4)), [])) == {torch.bfloat16}
    assert found["D", 3] == found["D", 4] == [torch.bfloat16]  # the others also read conditioned features, in float32


def test_the_pages_commands_and_bad_options():
    commands = re.findall(r"`python -m tables\.scale( [^`]*)?`", PAGE)
    assert commands and all(scale.parse_options(command.split()) for command in commands)
    for wrong in ("--dataset toy", "--gpus 0", "--hours 3"):
        with pytest.raises(InputError):
            scale.parse_options(wrong.split())


def test_two_agents_train_as_one_process(tmp_path, monkeypatch):
    """torchrun --nnodes 2 with a rendezvous, both agents on this machine: the test of two ranks, over 20 steps."""
    steps = ("--steps", 20, "--diversity-every", 2, "--lr", 2e-4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [start("-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 1, "--rdzv-backend", "c10d",
                    "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1", test_train.__file__, tmp_path,
                    *options(tmp_path / "two", *steps)) for _ in range(2)]
    try:
        for agent in agents:
            error = agent.communicate()[1]
            assert agent.returncode == 0, error
    finally:
        for agent in agents:
            agent.terminate()
    assert load(tmp_path / "two" / "latest.pt")["step"] == 20 and (tmp_path / "rank1.pt").is_file()
    test_train.test_one_rank_equals_two(tmp_path, tmp_path, monkeypatch, steps)
