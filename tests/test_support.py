"""What the scripts share: whole files, the averaged generator, what is due after a step, options, how a script ends."""
import copy
import errno
from types import SimpleNamespace

import pytest
import torch

from generator import Generator
from support import checkpoints, options
from support.errors import InputError, run_script
from support.optimisation import lr_factor, refresh_ema, update_ema
from support.runs import what_is_due
from support.weights import build_frozen
from test_train import differences


# ---------------------------------------------------------------------------------------------- files

def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "latest.pt"
    checkpoints.save_checkpoint({"step": 1}, path)

    def fills_up(state, file):
        file.write(b"half a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(torch, "save", fills_up)
    with pytest.raises(InputError, match="No space left"):
        checkpoints.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path], "the half-written file is removed"


def test_metrics_of_unsaved_steps_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 5}\n{"step": 10}\n{"step": 15}\n{"st')
    checkpoints.keep_steps_up_to(10, file)
    assert file.read_text() == '{"step": 5}\n{"step": 10}\n'


def test_missing_imagenet_weights_name_the_file_and_the_flag():
    def no_network():
        raise OSError("no network")
    with pytest.raises(InputError, match=r"https://\S+convnext_large\S+\.pth .*--backbone-weights FILE"):
        build_frozen(no_network, "convnext_large", "imagenet", "--backbone-weights")


# -------------------------------------------------------------------------------------- optimisation, runs

def tiny_generator():
    torch.manual_seed(0)
    return Generator(3, widths=(16, 16, 8), stem_channels=4, label_channels=8, z_dim=4, noise_tokens=2,
                     noise_width=4, noise_hidden=8, attention_stride=2)


def test_ema_is_the_running_average_with_warm_up():
    G = tiny_generator()
    ema, by_hand = copy.deepcopy(G), [p.detach().clone() for p in G.parameters()]
    for step in (1, 2, 3):
        with torch.no_grad():
            for p in G.parameters():
                p.add_(torch.randn_like(p))
        update_ema(ema, G, step, 0.3)
        d = min(0.3, (1 + step) / (10 + step))
        by_hand = [d * old + (1 - d) * p.detach() for old, p in zip(by_hand, G.parameters())]
    for mine, expected in zip(ema.parameters(), by_hand):
        torch.testing.assert_close(mine, expected)


def test_ema_statistics_are_measured_anew():
    """Batch-norm statistics of the averaged weights on the given batches; spectral norm near 1; G untouched."""
    G = tiny_generator()
    ema = copy.deepcopy(G)
    with torch.no_grad():
        for p in ema.parameters():
            p.add_(0.1 * torch.randn_like(p))
    batches = [(torch.randint(3, (4, 8, 8)), None, torch.randn(4, 4)) for _ in range(60)]
    seen, hook = [], ema.label_pyramid.stem[1].register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].mean(dim=(0, 2, 3))))
    before = copy.deepcopy(G.state_dict())
    refresh_ema(ema, G, iter(batches))
    hook.remove()
    torch.testing.assert_close(ema.label_pyramid.stem[1].running_mean, torch.stack(seen).mean(dim=0))
    weight = ema.blocks[0].conv_0.weight.flatten(1)
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=0.02)
    assert max(differences(before, G.state_dict()).values()) == 0
    assert not ema.training


def test_learning_rate_decay_depends_on_the_step_alone():
    assert [lr_factor(s, 0, 0) for s in (1, 1000)] == [1, 1]
    assert [round(lr_factor(s, 10, 20), 3) for s in (5, 10, 15, 20, 99)] == [1, 1, 0.55, 0.1, 0.1]


def test_everything_is_due_after_the_last_step_but_scores_that_nobody_asked_for():
    args = SimpleNamespace(steps=10, log_every=5, picture_every=0, evaluate_every=4, ema_every=0, save_every=3)
    assert [what_is_due(step, args) for step in (1, 3, 4, 5)] == [set(), {"save"}, {"score"}, {"log"}]
    assert what_is_due(10, args) == {"log", "picture", "score", "average", "save"}
    args.evaluate_every = 0
    assert what_is_due(10, args) == {"log", "picture", "average", "save"}


# -------------------------------------------------------------------------------------- options and ends

def test_sizes_and_seeds():
    assert options.size("64") == (64, 64) and options.size("256x512") == (256, 512)
    assert options.seeds("0-3,7") == [0, 1, 2, 3, 7]


@pytest.mark.parametrize("error, code, message", [
    (None, None, ""),
    (InputError("no such file"), 2, "train.py: no such file"),
    (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device; what was saved before is whole."),
    (torch.OutOfMemoryError("..."), 2, "train.py: the device is out of memory; lower --micro-batch-size"),
    (KeyboardInterrupt(), 130, ""),
])
def test_a_script_ends_with_an_exit_code_and_one_line(capsys, error, code, message):
    def main():
        if error:
            raise error
    if code is None:
        run_script("train.py", main)
    else:
        with pytest.raises(SystemExit) as end:
            run_script("train.py", main)
        assert end.value.code == code
    found = capsys.readouterr().err
    assert message in found and len(found.splitlines()) == bool(message)
