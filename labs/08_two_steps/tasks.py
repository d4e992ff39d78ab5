"""What python labs/check.py 08 asks of lab.py."""
import contextlib
import copy
import io
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

from labs.pieces import Task
from support import runs

LR = 0.5


class TinyD(nn.Module):
    """A frozen backbone and a trained head, (B, 3) -> (B, 1)."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.backbone(x).tanh())


def generator_losses(G, D, part):
    image = G(part["z"]).tanh()                                               # (B, 3)
    return {"gan": F.softplus(-D(image)).mean(), "other": 0.3 * image.square().mean()}, image


def discriminator_losses(D, part, image):
    return {"real": F.softplus(-D(part["real"])).mean(), "fake": F.softplus(D(image)).mean()}


def tiny(count=3):
    """-> G, D, `count` parts of a batch"""
    torch.manual_seed(1)
    parts = [{"z": torch.randn(2, 2), "real": 1 + torch.randn(2, 3)} for _ in range(count)]
    return nn.Sequential(nn.Linear(2, 3)), TinyD(), parts


def sgd(net):
    return torch.optim.SGD([p for p in net.parameters() if p.requires_grad], LR)


# ------------------------------------------------------------------------------------------- the two steps

def moved_by_hand(G, D, parts):
    """G and D after one step, from the gradients of both losses at the weights before it."""
    theta, psi = list(G.parameters()), list(D.head.parameters())
    drawn = [generator_losses(G, D, part) for part in parts]
    L_G = sum(sum(terms.values()) for terms, _ in drawn) / len(parts)
    images = [image.detach() for _, image in drawn]
    L_D = sum(sum(discriminator_losses(D, *both).values()) for both in zip(parts, images)) / len(parts)
    both = torch.autograd.grad(L_G, theta), torch.autograd.grad(L_D, psi)
    with torch.no_grad():
        for p, g in zip(theta + psi, both[0] + both[1]):
            p -= LR * g
    return L_G.item(), L_D.item()


def each_network_moves_by_its_own_gradient(two_steps):
    G, D, parts = tiny()
    mine_G, mine_D = copy.deepcopy(G), copy.deepcopy(D)
    optimisers = sgd(mine_G), sgd(mine_D)
    for step in (1, 2):
        expected_losses = moved_by_hand(G, D, parts)
        losses = two_steps(generator_losses, discriminator_losses, mine_G, mine_D, *optimisers, parts)
        for name, mine, net in (("G", mine_G, G), ("D", mine_D.head, D.head)):
            flat, expected = (torch.cat([p.detach().flatten() for p in n.parameters()]) for n in (mine, net))
            torch.testing.assert_close(flat, expected, msg=lambda text: f"the weights of {name} after step {step}\n")
        torch.testing.assert_close(tuple(losses), expected_losses, msg=lambda text: f"both losses of step {step}\n")


def only_the_trained_part_of_d_asks_for_gradients(two_steps):
    G, D, parts = tiny()
    seen, kept = [], []

    def watched(G, D, part):
        seen.append([p.requires_grad for p in D.parameters()])
        return generator_losses(G, D, part)

    def detached(D, part, image):
        kept.append(image.requires_grad)
        return discriminator_losses(D, part, image.detach())
    two_steps(watched, detached, G, D, sgd(G), sgd(D), parts)
    assert not any(kept), "in (2) the picture still leads back into G: .detach() was expected"
    assert len(seen) == len(parts), f"G draws each part once: {len(parts)} calls were expected, {len(seen)} came"
    assert not sum(seen, []).count(True), "in (1) no weight of D needs a gradient: requires_grad False was expected"
    after = [p.requires_grad for p in D.backbone.parameters()], [p.requires_grad for p in D.head.parameters()]
    assert after == ([False] * 2, [True] * 2), f"requires_grad of backbone and head is {after} after the step"


def one_part_in_memory_at_a_time(two_steps):
    """What a part has drawn goes with its backward pass, which comes before the next part."""
    G, D, parts = tiny()
    arrived = {"G": [], "D": []}

    def drawn(G, D, part):
        arrived["G"].append(any(p.grad is not None and p.grad.any() for p in G.parameters()))
        return generator_losses(G, D, part)

    def judged(D, part, image):
        arrived["D"].append(any(p.grad is not None and p.grad.any() for p in D.head.parameters()))
        return discriminator_losses(D, part, image)
    two_steps(drawn, judged, G, D, sgd(G), sgd(D), parts)
    for name, found in arrived.items():
        assert all(found[1:]), f"parts 2 and 3 were expected after the .backward() of {name}'s part before, " \
                               f"{found[1:].count(False)} came before it"


def what_is_frozen_is_left_out(trained_parameters):
    G, D, _ = tiny()
    found = trained_parameters(G, None, D)
    for use in ("first", "second"):
        sizes = [p.numel() for p in found]
        assert sizes == [6, 3, 4, 1], f"parameters of 6, 3, 4 and 1 numbers were expected at {use} use, {sizes} came"


# ------------------------------------------------------------------------------------------- the average

def only_the_averages_parameters_change(update_ema):
    G = nn.BatchNorm1d(2)
    ema = copy.deepcopy(G)
    nn.init.constant_(G.weight, 3.0)
    G.running_mean += 8
    update_ema(ema, G, 1, 0.9)
    torch.testing.assert_close(G.weight.data, torch.full((2,), 3.0), msg=lambda text: "the weights of G\n")
    torch.testing.assert_close(ema.running_mean, torch.zeros(2), msg=lambda text: "a buffer of the average\n")


class TinyG(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 1), n_power_iterations=1)
        self.norm = nn.BatchNorm2d(4, momentum=0.2)

    def forward(self, label_map, z, offsets):
        return self.norm(self.conv(F.one_hot(label_map, 3).permute(0, 3, 1, 2) + z[:, :, None, None]))


def an_average(batch_count):
    """-> G, its average whose buffers have nothing to do with G's, batches"""
    torch.manual_seed(2)
    G = TinyG()
    for _ in range(5):
        G(torch.zeros(2, 4, 4, dtype=torch.long), torch.randn(2, 3), None)
    ema = copy.deepcopy(G).requires_grad_(False).eval()  # as it is from its second use on
    for vector in (ema.conv.parametrizations.weight[0]._u, ema.conv.parametrizations.weight[0]._v):
        vector.copy_(F.normalize(torch.randn(len(vector)), dim=0))
    ema.norm.running_mean += 5
    ema.conv.bias += torch.randn(4)
    return G, ema, [(torch.randint(3, (2, 4, 4)), None, torch.randn(2, 3)) for _ in range(batch_count)]


def statistics_are_the_mean_over_the_batches(refresh_ema):
    G, ema, batches = an_average(3)
    seen = []
    ema.conv.register_forward_hook(
        lambda module, inputs, output: seen.append(output.detach().transpose(0, 1).flatten(1)))            # (4, B H W)
    before = copy.deepcopy(G.state_dict())
    refresh_ema(ema, G, iter(batches))
    for key, value in before.items():
        torch.testing.assert_close(G.state_dict()[key], value, msg=lambda text: f"G's own {key}\n")
    assert len(seen) == 3, f"each batch passes through the average once: 3 passes were expected, {len(seen)} came"
    for name, found, expected in (("mean", ema.norm.running_mean, torch.stack([x.mean(dim=1) for x in seen])),
                                  ("variance", ema.norm.running_var, torch.stack([x.var(dim=1) for x in seen]))):
        torch.testing.assert_close(found, expected.mean(dim=0), msg=lambda text: f"the running {name}\n")


def spectral_norm_goes_on_from_gs(refresh_ema):
    G, ema, batches = an_average(1)
    by_hand = copy.deepcopy(ema)
    for mine, theirs in zip(by_hand.buffers(), G.buffers()):
        mine.copy_(theirs)
    label_map, offsets, z = batches[0]
    by_hand.train()(label_map, z, offsets)
    refresh_ema(ema, G, iter(batches))
    found, expected = (net.conv.parametrizations.weight[0]._u for net in (ema, by_hand))
    torch.testing.assert_close(found, expected, msg=lambda text: "u of the spectral norm\n")


def it_ends_as_it_will_be_used(refresh_ema):
    G, ema, batches = an_average(1)
    refresh_ema(ema, G, iter(batches))
    assert not ema.training, "the average is in training mode at the end, eval mode was expected"
    assert ema.norm.momentum == 0.2, f"momentum 0.2 was expected, as before, {ema.norm.momentum} came"


# ------------------------------------------------------------------------------------------- resume

ALONE = SimpleNamespace(rank=0, world=1, say=print, wait=lambda: None)


class Files:
    """In place of a dataset."""

    def fingerprint(self):
        return "tiny"


def a_run(folder, seed):
    """A Run of tiny networks, optimised by Adam, whose average is not G."""
    torch.manual_seed(seed)
    G, D, P = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), TinyD(), nn.Linear(3, 1)
    D.backbone.load_state_dict({"weight": torch.arange(12).view(4, 3) / 12, "bias": torch.zeros(4)})
    adam = [torch.optim.Adam([p for p in params if p.requires_grad], 0.01, (0.0, 0.99))
            for params in ([*G.parameters(), *P.parameters()], D.parameters())]
    ema = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    return runs.Run(folder, Files(), None, None, G, D, P, ema, *adam, "", {}, {"model": "tiny"}, None)


def train(run, first, last):
    """Steps first ... last: everything random is a function of the step."""
    for step in range(first, last + 1):
        rng = torch.Generator().manual_seed(step)
        part = {"z": torch.randn(4, 2, generator=rng), "real": torch.randn(4, 3, generator=rng)}
        terms, image = generator_losses(run.G, run.D, part)
        run.optimiser_G.zero_grad()
        (sum(terms.values()) + run.P(image).square().mean()).backward()
        run.optimiser_G.step()
        run.optimiser_D.zero_grad()
        sum(discriminator_losses(run.D, part, image.detach()).values()).backward()
        run.optimiser_D.step()
        with torch.no_grad():
            for mine, theirs in zip(run.ema.parameters(), run.G.parameters()):
                mine.lerp_(theirs, 0.1)


def in_a_folder(test):
    """Each test gets a folder of its own; what resuming says is not shown."""
    def checked(save):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            test(save, Path(folder))
    checked.__name__ = test.__name__
    return checked


def numbers(run):
    """{name: all its numbers in a row}"""
    nets = {name: getattr(run, name).state_dict().values() for name in ("G", "D", "P")}
    nets["ema"] = [p.detach() for p in run.ema.parameters()]
    for name in ("optimiser_G", "optimiser_D"):
        nets[name] = [t for state in getattr(run, name).state_dict()["state"].values() for t in state.values()]
    return {name: torch.cat([t.flatten().double() for t in tensors]) for name, tensors in nets.items()}


@in_a_folder
def two_and_three_steps_are_five(save, folder):
    args = SimpleNamespace(lr=0.01)
    whole, begun, resumed = a_run(folder, 0), a_run(folder, 0), a_run(folder, 7)
    train(whole, 1, 5)
    train(begun, 1, 2)
    save(begun, 2, args, ALONE)
    assert (folder / "latest.pt").is_file(), "latest.pt was expected, no such file came"
    done = runs.resume(resumed, args, ALONE)
    assert done == 2, f"step 2 was expected after the resume, {done} came"
    train(resumed, done + 1, 5)
    expected = numbers(whole)
    for name, found in numbers(resumed).items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=0,
                                   msg=lambda text: f"{name} after 2 + 3 steps, against 5\n")


@in_a_folder
def the_file_has_what_a_resume_compares_and_no_backbone(save, folder):
    save(a_run(folder, 0), 2, SimpleNamespace(lr=0.01), ALONE)
    state = torch.load(folder / "latest.pt", weights_only=True)
    assert state["identity"] == {"model": "tiny"} and state["options"] == {"lr": 0.01}, "identity and options"
    backbone = [key for key in state["D"] if key.startswith("backbone.")]
    assert not backbone, f"D without its frozen backbone was expected, {len(backbone)} of its tensors came"


@in_a_folder
def the_file_before_is_kept(save, folder):
    run = a_run(folder, 0)
    for step in (2, 4):
        save(run, step, SimpleNamespace(lr=0.01), ALONE)
    steps = {file.name: torch.load(file, weights_only=True)["step"] for file in folder.glob("*.pt")}
    assert steps == {"latest.pt": 4, "latest_previous.pt": 2}, \
        f"latest.pt of step 4 and latest_previous.pt of step 2 were expected, {steps} came"


@in_a_folder
def other_ranks_write_nothing(save, folder):
    waited = []
    save(a_run(folder, 0), 2, SimpleNamespace(lr=0.01), SimpleNamespace(
        rank=1, world=2, wait=lambda: waited.append(1)))
    assert not list(folder.iterdir()), "rank 1 was expected to write nothing, a file came"
    assert waited, "each rank was expected to call ranks.wait(), it did not"


TASKS = [
    Task("trained_parameters", "support.optimisation.trained_parameters", "Sec. 3.1, \"frozen\", and Sec. 4.1",
         [what_is_frozen_is_left_out]),
    Task("two_steps", None, "Sec. 3.3, and train.py:loop", [only_the_trained_part_of_d_asks_for_gradients,
                                                             each_network_moves_by_its_own_gradient,
                                                             one_part_in_memory_at_a_time]),
    Task("update_ema", "support.optimisation.update_ema", "Sec. 4.1, \"exponential moving average\"",
         ["test_support.py::test_ema_is_the_running_average_with_warm_up", only_the_averages_parameters_change]),
    Task("refresh_ema", "support.optimisation.refresh_ema", "the handout, \"Its batch-norm statistics\"",
         [statistics_are_the_mean_over_the_batches, spectral_norm_goes_on_from_gs, it_ends_as_it_will_be_used]),
    Task("save", "support.runs.save", "the handout, \"Resume\"",
         [two_and_three_steps_are_five, the_file_has_what_a_resume_compares_and_no_backbone,
          the_file_before_is_kept, other_ranks_write_nothing])]
