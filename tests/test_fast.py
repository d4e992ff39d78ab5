"""What makes a step fast changes nothing: spectral norm once a step, --compile, no waiting, channels-last, --profile.

Oracles: the power iteration by plain loops, the same run uncompiled, a step into which what is forbidden was put. All
at 32x32, with a backbone of four convolutions.
"""
import copy
import functools
import math
import re
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import discriminator
import generator
import losses
import test_train
import train
from baselines import train as baselines_train
from conftest import lines
from generator import Generator
from support import profile, ranks, runs
from support.optimisation import update_spectral_norms
from tables import scale
from test_train import options, run, small, wide_steps  # noqa: F401

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def tiny(monkeypatch, small):  # noqa: F811
    """Networks whose steps take milliseconds; all their parts are there, attention too."""
    def stages(*_):
        return nn.ModuleList(nn.Conv2d(c, 8, k, stride=k) for c, k in ((3, 4), (8, 2), (8, 2), (8, 2)))
    monkeypatch.setattr(discriminator, "load_torchvision", lambda *_: torch.manual_seed(0))
    monkeypatch.setattr(discriminator, "four_stages", stages)
    monkeypatch.setitem(discriminator.BACKBONES, "resnet18", (8, 8, 8, 8))
    monkeypatch.setitem(train.SMALL_GENERATOR, "widths", (16, 16, 16, 16))
    monkeypatch.setitem(train.SMALL_DISCRIMINATOR, "decoder_widths", (16, 16, 16, 8, 8))
    monkeypatch.setitem(train.SMALL_CONTRASTIVE, "vgg_share", 0.125)
    monkeypatch.setattr(runs, "draw_strip", lambda *_: None)


@pytest.fixture
def over_ranks(monkeypatch):
    """The batch norms of many ranks, which are one here: what they ask of the others, they ask for."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    synchronise = ranks.synchronise_batch_norm
    monkeypatch.setattr(train, "synchronise_batch_norm", lambda net, here: synchronise(net, here._replace(world=2)))
    asked, forward = [], ranks.BatchNormOverRanks.forward
    monkeypatch.setattr(ranks.BatchNormOverRanks, "forward", lambda norm, x: (asked.append(1), forward(norm, x))[1])
    yield asked
    dist.destroy_process_group()


# ------------------------------------------------------------------------------------------- spectral norm

def networks():
    torch.manual_seed(0)
    return (Generator(3, widths=(6, 4), stem_channels=4, label_channels=4, noise_tokens=2, noise_width=4),
            discriminator.Discriminator(3, "resnet18", "random", (8, 8, 6, 6, 4), 4))


def vectors(*nets):
    """[(u, v, W)] of every weight under spectral norm, as lists of numbers."""
    norms = [m.parametrizations.weight for net in nets for m in net.modules() if is_parametrized(m, "weight")]
    return [(norm[0]._u.tolist(), norm[0]._v.tolist(), norm.original.flatten(1).tolist()) for norm in norms]


def unit(x):
    length = math.sqrt(sum(value ** 2 for value in x))
    return [value / length for value in x]


def test_three_power_iterations_a_step_and_none_in_its_passes():
    """u <- W v / |W v|, v <- W^T u / |W^T u|, three times; then three passes in training mode change no number."""
    G, D = networks()
    with torch.no_grad():
        for net in (G, D):
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
    expected = []
    for u, v, W in vectors(G, D):
        for _ in range(3):
            u = unit([sum(w * x for w, x in zip(row, v)) for row in W])
            v = unit([sum(row[j] * x for row, x in zip(W, u)) for j in range(len(v))])
        expected.append((u, v, W))
    assert len(expected) == 3 + (5 * 2 + 4) + (2 * 2 + 1)  # G's block; D's decoder, and its full-resolution path
    for _ in range(2):
        before = vectors(G.train(), D.train())
        update_spectral_norms(G, D)
        assert before != vectors(G, D) and G.training and D.training
        if expected:
            torch.testing.assert_close(vectors(G, D), expected)
        held, expected = vectors(G, D), None
        for _ in range(3):
            D(G(torch.zeros(2, 64, 64).long(), torch.randn(2, 64))).sum().backward()
        assert vectors(G, D) == held
    (u, v, W), weight = held[0], G.blocks[0].conv_0.weight.flatten(1)
    sigma = sum(x * w * y for x, row in zip(u, W) for w, y in zip(row, v))
    torch.testing.assert_close(weight, torch.tensor(W) / sigma)


def test_the_loop_iterates_before_a_step_whatever_the_micro_batches(tmp_path, monkeypatch):
    """Steps that move nothing: u after three steps is u after three updates, with one part a step and with two."""
    G = {}
    for name, more in (("whole", []), ("parts", ["--micro-batch-size", 2])):
        run(tmp_path / name, "--steps", 3, "--lr", 1e-12, "--diversity-every", 2, *more)
        G[name] = test_train.load(tmp_path / name / "latest.pt")
    assert any(key.endswith("_u") for key in G["whole"]["D"])
    for net in ("G", "D"):
        for key, u in G["whole"][net].items():
            if key.endswith(("_u", "_v")):
                torch.testing.assert_close(u, G["parts"][net][key], rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------ --compile

def test_compiled_networks_train_as_uncompiled_ones_do(tmp_path, monkeypatch):
    """All of G, D and P; a logged step, which goes backward twice, after 14 that do not. The backend traces and
    differentiates, but builds no machine code, which takes minutes."""
    wide_steps(monkeypatch)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        run(tmp_path / name, "--steps", 32, "--log-every", 15, *more)
    torch.compiler.reset()
    pairs = list(zip(lines(tmp_path / "plain"), lines(tmp_path / "compiled"), strict=True))
    assert [one["step"] for one, _ in pairs] == [15, 30, 32]
    for one, other in pairs:
        for term in ("D", "G_gan", "G_contrastive", "G_diversity"):
            assert one[term] == pytest.approx(other[term], rel=1e-4, abs=1e-6), f"step {one['step']}: {term}"


def test_batch_norm_over_ranks_is_compiled_into_its_network(over_ranks):
    """One graph for all of G, in which the ranks are asked, and the numbers of uncompiled code."""
    G, label_map, z = networks()[0], torch.arange(2 * 64 * 64).view(2, 64, 64) % 3, torch.ones(2, 64)
    ranks.synchronise_batch_norm(G, ranks.Ranks(torch.device("cpu"), 0, 2))
    update_spectral_norms(G)
    other, found = copy.deepcopy(G), {}
    torch.compiler.reset()
    other.compile(backend="aot_eager", fullgraph=True)  # raises where the graph breaks
    for name, net in (("plain", G), ("compiled", other)):
        net(label_map, z).square().sum().backward()
        found[name] = [p.grad for p in net.parameters() if p.grad is not None], list(net.buffers())
    assert over_ranks
    torch.testing.assert_close(found["plain"], found["compiled"])


# --------------------------------------------------------------------------------- nothing waits for the device

# What makes the host wait for a GPU: operations whose result or its shape depends on numbers, and methods of a tensor
# that give numbers to Python. On the CPU the methods do not all reach the dispatcher, so both are watched.
WAITING = {aten._local_scalar_dense, aten.item, aten.nonzero, aten.nonzero_static, aten.masked_select, aten.is_nonzero,
           aten.equal, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten._assert_async}
METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__")


class Watch(TorchDispatchMode):
    """Operations between two log lines: those that wait, and convolutions of tensors that are not channels-last."""

    def __init__(self):
        super().__init__()
        self.on, self.waits, self.contiguous, self.convolutions = False, [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.on:
            masks = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and any(
                t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
            repeats = func is aten.repeat_interleave.Tensor
            if func.overloadpacket in WAITING or masks or repeats:
                self.waits.append(str(func))
            if func.overloadpacket in (aten.convolution, aten.convolution_backward):
                self.convolutions += 1
                few, tensors = (1, args[:1]) if func.overloadpacket is aten.convolution else (3, args[:2])  # pictures
                for t in tensors:
                    if t.shape[1] > few and min(t.shape[2:]) > 1 and t.stride(1) > 1:
                        self.contiguous.append(f"{func}: {tuple(t.shape)}, strides {t.stride()}")
        return func(*args, **kwargs or {})


def watched(monkeypatch, folder, *words, system=train.DP_SIMS, parse=train.parse_options):
    """Trains three steps. -> what was seen in the second, of which nothing is logged."""
    watch, next_batch, steps = Watch(), runs.next_batch, []

    def of_the_cpu(function, begins=False):  # the loader, and positions that are drawn before they are sent
        def call(*arguments):
            on, watch.on = watch.on, False
            with _disable_current_modes():
                found = function(*arguments)
            steps.extend([1] * begins)
            watch.on = len(steps) == 2 if begins else on
            return found
        return call

    def reported(name, method):
        def call(self, *arguments, **keywords):
            watch.waits.extend([f"Tensor.{name}"] * watch.on)
            return method(self, *arguments, **keywords)
        return call
    monkeypatch.setattr(runs, "next_batch", of_the_cpu(next_batch, begins=True))
    monkeypatch.setattr(losses, "draw_positions", of_the_cpu(losses.draw_positions))
    monkeypatch.setattr(ranks.StopOnSignals, "now", of_the_cpu(ranks.StopOnSignals.now))
    for name in METHODS:
        monkeypatch.setattr(torch.Tensor, name, reported(name, getattr(torch.Tensor, name)))
    with watch:
        train.train(parse(options(folder, "--steps", 3, "--log-every", 3, *words)), system)
    assert len(steps) == 3 and watch.convolutions > 50, "the step was not seen"
    return watch


@pytest.mark.parametrize("more", ["", "--amp bf16 --clip-grad 1 --micro-batch-size 2 --diversity-every 2"])
def test_no_step_waits_for_the_device_or_changes_the_layout(tmp_path, monkeypatch, more):
    """Between two log lines nothing asks for a number; no convolution of a step is given rows of pixels of one channel,
    forward or backward. At 64x64, where no map has one pixel alone, which has no layout."""
    watch = watched(monkeypatch, tmp_path, "--image-size", 64, *more.split())
    assert not watch.waits, watch.waits[:5]
    assert not watch.contiguous, watch.contiguous[:5]


def test_nor_does_batch_norm_over_many_ranks(tmp_path, monkeypatch, over_ranks):
    watch = watched(monkeypatch, tmp_path, "--image-size", 64)
    assert over_ranks and not watch.waits and not watch.contiguous, (watch.waits[:5], watch.contiguous[:5])


@pytest.mark.parametrize("model", ["oasis", "dpgan"])
def test_nor_do_the_baselines(tmp_path, monkeypatch, model):
    words = ["--model", model]
    watch = watched(monkeypatch, tmp_path, *words, parse=baselines_train.parse_options,
                    system=baselines_train.system_of(baselines_train.parse_options(options(tmp_path, *words))))
    assert not watch.waits and not watch.contiguous, (watch.waits[:5], watch.contiguous[:5])


def test_whatever_waits_is_found(tmp_path, monkeypatch):
    """Each way to wait, put into the step; and a layout that is not channels-last."""
    ways = {"item": lambda t: t.sum().item(), "float": lambda t: float(t.sum()), "if": lambda t: bool(t.sum() > 0),
            "cpu": lambda t: t.cpu(), "tolist": lambda t: t.tolist(), "numpy": lambda t: t.numpy(),
            "nonzero": lambda t: t.nonzero(), "mask": lambda t: t[t > 0], "select": lambda t: t.masked_select(t > 0),
            "unique": lambda t: t.unique(), "rounding": lambda t: int(t[0]), "print": lambda t: f"{t[0]:.3f}"}
    found = {}

    def weigh(counts, unknown, args):
        for name, way in ways.items():
            before = len(watch_of[0].waits)
            way(counts.float())
            found[name] = found.get(name, 0) + len(watch_of[0].waits) - before
        return train.weigh(counts, unknown, args)

    def contiguous(D, batch, fake, *others):
        return train.discriminator_losses(D, {**batch, "real": batch["real"].contiguous()}, fake, *others)
    watch_of, init = [], Watch.__init__
    monkeypatch.setattr(Watch, "__init__", lambda self: (init(self), watch_of.append(self))[0])
    watch = watched(monkeypatch, tmp_path, system=train.DP_SIMS._replace(
        weigh=weigh, discriminator_losses=contiguous))
    assert [name for name in ways if not found[name]] == []
    assert watch.contiguous


# ------------------------------------------------------------------------------------- TFLOP/s, and --profile

def test_the_log_has_the_flops_of_a_step_and_their_share_of_the_devices_rate(tmp_path, monkeypatch):
    """The count is that of tables.scale, which adds up parts. A logged step, which does more, is not counted."""
    kept, speed = [], profile.Speed

    def make(*arguments):
        kept.append((*arguments, speed(*arguments)))
        return kept[0][-1]
    monkeypatch.setattr(profile, "Speed", make)
    monkeypatch.setattr(generator, "fused_attention", generator.attention)  # not every torch counts that
    run(tmp_path, "--steps", 5, "--log-every", 2)
    nets, args, ranks, made = kept[0]
    batch = {"real": torch.zeros(4, 3, 32, 32), "offsets": torch.zeros(4, 2, 32, 32), "z_1": torch.zeros(4, 64),
             "z_2": torch.ones(4, 64), "label_map": torch.zeros(4, 32, 32).long()}
    assert made.flops == sum(map(sum, scale.count_flops(*nets.values(), batch, args).values())) > 0
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 5]
    for line in lines(tmp_path):
        assert line["tflops"] == pytest.approx(made.flops / line["seconds_per_step"] / 1e12)
        assert line["share_of_matmul"] == pytest.approx(1e12 * line["tflops"] / made.rate)
    assert 1e8 < made.rate < 1e14


def test_the_profilers_own_work_is_not_counted_as_training(tmp_path, monkeypatch, capsys):
    """A profiler that is slow to begin and to end, as torch's is: 40 steps of 0.4 s take it 50 s."""
    spent, now = [], time.time

    class Slow(profile.profile):
        def __enter__(self):
            spent.append(20)
            return super().__enter__()

        def __exit__(self, *error):
            super().__exit__(*error)
            spent.append(20)
    monkeypatch.setattr(time, "time", lambda: now() + sum(spent))
    monkeypatch.setattr(profile, "profile", Slow)
    run(tmp_path, "--steps", 3, "--log-every", 3, "--profile", 1)
    total, = re.findall(r"^mean of 1 steps +([\d.]+)", capsys.readouterr().out, re.M)
    assert spent == [20, 20] and float(total) < 10_000 and lines(tmp_path)[-1]["seconds_per_step"] < 5


def test_a_gpus_kernels_count_once_and_for_the_part_that_started_them():
    """A step of 12 ms: G starts one kernel of 10 ms. torch lists it three times: as the operation's time, by itself,
    and within the copy of G's range on the device; and cudaLaunchKernel's number is that of an operation."""
    def event(number, name, spent, device, parent=None):
        made = FunctionEvent(number, name, 0, 0, 10_000, device_type=device, use_device="cuda")
        made.cpu_parent = parent
        if device == DeviceType.CPU and spent:
            made.append_kernel("gemm", 0, spent)
        return made
    G = event(1, "part: G", 0, DeviceType.CPU)
    product = event(2, "aten::mm", 10_000, DeviceType.CPU, G)
    launch = event(1, "cudaLaunchKernel", 0, DeviceType.CPU, product)
    events = [G, product, launch, event(2, "gemm", 0, DeviceType.CUDA), event(1, "part: G", 0, DeviceType.CUDA)]
    rows = {line[:32].strip(): line[32:].split() for line in profile.table(events, 0.012, 1, True).splitlines()}
    assert rows["G"][:2] == ["10.0", "0.0"] and rows[profile.REST][0] == "0.0" and rows["waiting"][0] == "2.0"


def test_profile_says_where_the_time_of_its_steps_went_and_goes_on(tmp_path, capsys):
    run(tmp_path, "--steps", 4, "--log-every", 4, "--profile", 1)
    printed = capsys.readouterr().out
    rows = {name.strip(): [float(x) for x in numbers] for name, *numbers in re.findall(
        r"^(.{32}) +([\d.]+) +([\d.]+) +(\d+) %$", printed, re.M)}
    for name in ("G", "D", "backbone", "VGG and projections of Eq. 5", profile.REST):
        assert min(rows[name][:2]) > 0, f"{name}: {rows[name]}, forward and backward"
    assert rows["data"][0] > 0 and rows["optimisers"][0] > 0 and rows["average of G"][0] > 0
    total, = re.findall(r"^mean of 1 steps +([\d.]+) +100 %$", printed, re.M)
    assert sum(sum(row[:2]) for row in rows.values()) == pytest.approx(float(total), rel=0.02)
    assert lines(tmp_path)[-1]["step"] == 4 and "tflops" in lines(tmp_path)[-1]
