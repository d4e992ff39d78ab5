"""What is damaged, foreign or in the way: one line, exit code 2, nothing executed, nothing overwritten, no step lost.

Training here is train.train with networks of one layer, so that a run takes less than a second.
"""
import argparse
import errno
import functools
import io
import json
import os
import re
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torchvision
import tqdm
from PIL import EpsImagePlugin, Image

import evaluate
import sample
import train
from baselines.iidm import scores as iidm_scores
from baselines.iidm.train import read_autoencoder
from conftest import ROOT, TinyFeatures, call, lines, load, start, tiny_inception
from data import batches_of, class_presence, open_dataset
from metrics import fid, segmentation
from readers import generated, toy
from readers.images import classes_of_values, read_instances, read_labels, read_rgb
from support import checkpoints, ranks, runs, weights
from support.errors import InputError, run_script
from tables import compare
from test_evaluate import write_checkpoint
from test_metrics import ALONE, save_scenes
from test_train import options, same_run, shrink


class Evil:
    """A pickle that makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


# ------------------------------------------------------------------------------------- a run in less than a second

class TinyG(nn.Module):
    z_dim = 4

    def __init__(self):
        super().__init__()
        self.colours, self.norm = nn.Embedding(11, 3), nn.BatchNorm2d(3)

    def forward(self, label_map, z, offsets=None, regions=None):
        return torch.tanh(self.norm(self.colours(label_map).permute(0, 3, 1, 2)) + z.mean(dim=1)[:, None, None, None])


class TinyD(nn.Module):
    backbone = None

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 12, 1)

    def forward(self, image):
        return self.net(image)


def build(args, *_):
    torch.manual_seed(args.seed)
    return TinyG(), TinyD(), None, "dp-sims", dict(num_classes=11)


def generator_losses(G, D, P, batch, *_):
    image = G(batch["label_map"], batch["z_1"])
    return {"gan": D(image).mean()}, image, image, None


def discriminator_losses(D, batch, fake, *_):
    real_logits, fake_logits = D(batch["real"]), D(fake)
    return {"pixels": (real_logits.mean() - fake_logits.mean() - 1).square()}, real_logits, fake_logits


TINY = train.System("tiny", build, train.draw_noise, train.weigh, generator_losses, discriminator_losses, ("dataset",))


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch), patch.setattr(fid, "load_inception", tiny_inception)
        yield


def run(folder, *more):
    train.train(train.parse_options(options(folder, "--lambda-c", 0, "--lambda-d", 0, *more)), TINY)


@pytest.fixture(scope="module")
def four_steps(small, tmp_path_factory):
    run(tmp_path_factory.mktemp("runs") / "run", "--steps", 4, "--save-every", 1, "--ema-every", 2)
    return tmp_path_factory.getbasetemp() / "runs0/run"


@pytest.fixture
def kept(four_steps, tmp_path):
    """Four steps, saved after each."""
    return shutil.copytree(four_steps, tmp_path / "run")


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1:]


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "options.json"}


# ------------------------------------------------------------------------------------------- code from a file

def test_a_segmenters_pickles_are_not_run(tmp_path):
    """The example inputs of a torch.export file, which nobody needs, become a pickle that makes a file."""
    good, bad, made = tmp_path / "good.pt2", tmp_path / "bad.pt2", tmp_path / "made"
    torch.export.save(torch.export.export(nn.Conv2d(3, 2, 1), (torch.rand(1, 3, 8, 8),)), good)
    torch.save(Evil(made), tmp_path / "evil.pt")
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            new.writestr(name, (tmp_path / "evil.pt").read_bytes() if "sample_inputs" in name else old.read(name))
    for file in (good, bad):
        with pytest.raises(InputError, match="can run any code when it is opened.*--trust-segmenter"):
            segmentation.load_program(file)
    assert not made.exists()
    segmentation.load_program(good, trusted=True)(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("kind", ["EPS", "JPEG", "WEBP", "GIF"])
def test_files_are_read_by_their_true_format(tmp_path, monkeypatch, kind):
    """Of any of these named .png, pictures may be JPEG and WebP, label and instance maps neither."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was called"))
    file = tmp_path / "p0.png"
    Image.new("L", (16, 16), 3).save(file, format=kind)
    for read in (read_rgb, lambda file: read_labels(file, classes_of_values(4, False)), read_instances):
        if read is read_rgb and kind in ("JPEG", "WEBP"):
            assert read(file).shape == (16, 16, 3)
        else:
            with pytest.raises(InputError, match="p0.png: cannot be read as a picture: it is none of PNG"):
                read(file)


def test_no_message_recommends_unsafe_loading(tmp_path):
    for file in (f for f in ROOT.rglob("*.py") if "tests" not in f.parts and ".venv" not in f.parts):
        assert "weights_only=False" not in file.read_text(encoding="utf-8"), file
    made = tmp_path / "made"
    torch.save({"state_dict": Evil(made)}, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match="plain tensors alone") as error:
        read_autoencoder(tmp_path / "model.ckpt")
    assert "weights_only" not in str(error.value) and not made.exists()


# --------------------------------------------------------------------------------------- damaged checkpoints

def test_flipped_bits_of_a_checkpoint_are_found_or_harmless(tmp_path):
    """All over the file, and where torch alone would give other numbers: data, its length, the mark of a folder."""
    file, other = tmp_path / "good.pt", tmp_path / "other.pt"
    torch.save({"a": torch.arange(10.), "b": torch.zeros(3, 4)}, file)
    good, whole, found = load(file), file.read_bytes(), 0
    entry = whole.rindex(b"good/data/0") - 46  # of the directory
    with zipfile.ZipFile(file) as archive:
        data = whole.index(torch.arange(10.).numpy().tobytes(), archive.getinfo("good/data/0").header_offset)
    known = [data + 6, entry + 20, entry + 38]
    for place in known + list(range(0, len(whole), 23)):
        other.write_bytes(flipped(whole, place))
        try:
            state = checkpoints.read_torch(other)
            assert place not in known and all(torch.equal(state[k], good[k]) for k in good), place
        except (ValueError, OSError):
            found += 1
    assert found > 20


def test_a_damaged_latest_costs_one_interval_and_is_said(kept, tmp_path, capsys):
    run(tmp_path / "whole", "--steps", 6, "--save-every", 1, "--ema-every", 2)
    latest = kept / "latest.pt"
    damaged = flipped(latest.read_bytes(), latest.read_bytes().index(b"optimiser_G"))
    for at, content in enumerate((damaged, b"half")):
        latest.write_bytes(content)
        capsys.readouterr()
        run(kept, "--steps", 5 + at, "--save-every", 1, "--ema-every", 2)
        assert f"Going on from {kept / 'latest_previous.pt'}, step {3 + at}" in capsys.readouterr().out
        assert (kept / "latest_damaged.pt").read_bytes() == content
    same_run(kept, tmp_path / "whole")
    assert load(kept / "latest_previous.pt")["step"] == 5
    for file in (latest, kept / "latest_previous.pt"):
        file.write_bytes(b"half")
    before = contents(kept)
    with pytest.raises(InputError, match="latest_previous.pt: cannot be read as a checkpoint"):
        run(kept, "--steps", 7)
    assert contents(kept) == before


def test_damaged_weights_are_refused_and_the_runs_own_made_again(tmp_path, monkeypatch, capsys):
    """What is built after them starts the same, whether they were made or found."""
    file, batch = tmp_path / "backbone.pt", {"real": torch.zeros(3, 8, 8), "label_map": torch.zeros(8, 8).long()}
    loader = torch.utils.data.DataLoader([batch, batch], 2)  # draws a random number
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    make = functools.partial(weights.pretrain_backbone, "resnet18", 2, loader, 1, file, 0, ALONE)
    drawn = [(torch.manual_seed(0), make(), torch.rand(1).item())[-1] for _ in range(2)]
    assert drawn[0] == drawn[1]
    whole = file.read_bytes()
    place = whole.index(load(file)["0.weight"].numpy().tobytes()[:8])
    file.write_bytes(flipped(whole, place))
    with pytest.raises(ValueError, match="backbone.pt: cannot be read as a state dict .*is damaged"):
        weights.read_state(file)
    make()
    assert file.read_bytes() == whole and f"{file}: damaged" in capsys.readouterr().err


def change(*keys, value=None):
    """A change to a checkpoint: the entry under these keys becomes `value`, or is removed."""
    def edit(state):
        for key in keys[:-1]:
            state = state[key]
        state.pop(keys[-1]) if value is None else state.__setitem__(keys[-1], value)
    return edit


NAN = torch.full((11, 3), torch.nan)
MOMENT = ("optimiser_G", "state", 0)


@pytest.mark.parametrize("edit, says", [
    (change("ema", "colours.weight", value=NAN), "ema.colours.weight is not finite"),
    (change(*MOMENT, "exp_avg_sq", value=NAN), "optimiser_G.state.0.exp_avg_sq is not finite"),
    (change("G", "colours.weight", value=torch.zeros(12, 3)), r"G.colours.weight is \(12, 3, torch.float32\), exp"),
    (change("G", "colours.weight"), "G.colours.weight is None, expected"),
    (change("G", "other", value=torch.zeros(1)), "G.other is .* expected None"),
    (change("G", "colours.weight", value=1.5), "G.colours.weight is not what"),
    (change("step", value="four"), "step is not what it should be"), (change("identity", value=[]), "identity is not"),
    (change("optimiser_D"), "optimiser_D is not what it should be"),
    (change(*MOMENT, "exp_avg", value=torch.zeros(2)), "optimiser_G.state.0 is not what it should be"),
    (change(*MOMENT, "exp_avg", value=3), "optimiser_G.state.0 is not what it should be"),
    (change("optimiser_G", "param_groups", value=[]), "different number of parameter groups"),
    (change("optimiser_G", "param_groups", 0, "params", value=[0]), "parameter group"),
    (change("identity", "frozen", value="no"), "not of these networks"),
])
def test_a_checkpoint_that_is_readable_but_wrong_is_refused(kept, edit, says):
    state = load(kept / "latest.pt")
    edit(state)
    torch.save(state, kept / "latest.pt")
    (kept / "latest_previous.pt").unlink()
    before = contents(kept)
    with pytest.raises(InputError, match=says) as error:
        run(kept, "--steps", 6)
    assert "\n" not in str(error.value) and contents(kept) == before


@pytest.mark.parametrize("edit, says", [
    (change("palette", value=[[0, 0]]), "palette.0 is not what"),
    (change("classes", value="sky"), "classes is not what"),
    (change("image_size", value=[32]), "image_size is not what"), (change("ema"), "ema is not what it should be"),
    (change("generator", value={"widths": 3}), "not an EMA file"),
    (change("ema", "first.weight", value=NAN), "first.weight is not finite")])
def test_an_average_that_is_wrong_is_not_sampled(tmp_path, monkeypatch, capsys, edit, says):
    state = load(write_checkpoint(tmp_path / "ema.pt", 0))
    edit(state)
    torch.save(state, tmp_path / "ema.pt")
    assert call(monkeypatch, "sample", "--checkpoint", tmp_path / "ema.pt", "--dataset", "toy", "--output-dir",
                tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "out/grid.png").exists()


# ----------------------------------------------------------------------------------------------- run folders

def test_a_damaged_line_loses_only_itself_and_is_said(kept, capsys):
    file = kept / "metrics.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(whole[0] + b'{"step": \xff\n' + b'["another"]\n' + b"".join(whole[2:]))
    run(kept, "--steps", 5)
    assert [line["step"] for line in lines(kept)] == [1, 3, 4, 5]
    error = capsys.readouterr().err
    assert f"{file}: line 2 is damaged and left out" in error and "line 3 is damaged" in error


@pytest.mark.parametrize("link", [False, True])
def test_a_run_whose_latest_is_gone_is_not_wiped(kept, link):
    for file in kept.glob("latest*"):
        file.unlink()
    if link:
        (kept / "latest.pt").symlink_to(kept / "nowhere.pt")
    before = contents(kept)
    for more in ((), ("--save-every", 2)):
        with pytest.raises(InputError, match="to go on, or choose another --output-dir|to start anew"):
            run(kept, "--steps", 6, *more)
    for file in kept.glob("ema_*"):
        before.pop(file)
        file.unlink()
    with pytest.raises(InputError):  # four steps were logged, two a save
        run(kept, "--steps", 6, "--save-every", 2)
    assert contents(kept) == before


def test_a_run_that_was_killed_before_its_first_save_begins_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    run(tmp_path, "--steps", 3, "--save-every", 5)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_two_runs_in_one_folder(kept, monkeypatch):
    """The other process ends by SIGKILL, and its lock with it."""
    holds = "import sys, time; from support import runs, ranks; import torch, train\n" \
            "args = train.parse_options(['--output-dir', sys.argv[1]])\n" \
            "runs.open_folder(args, ranks.Ranks(torch.device('cpu')))\n" \
            "import os; os.fork() and print('held', flush=True); time.sleep(600)"  # a child that lives on
    monkeypatch.setattr(runs, "LOCKS", {})  # closed before, which gives this process's lock back
    other, before = start("-c", holds, kept, group=True), contents(kept)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="another run writes there"):
        run(kept, "--steps", 6)
    assert contents(kept) == before
    other.kill()
    other.wait()
    run(kept, "--steps", 6)
    os.killpg(other.pid, 9)


def test_a_picture_that_cannot_be_drawn_costs_no_step(tmp_path, monkeypatch, capsys):
    def broken(self, index, instances=True, read=toy.ToyScenes.load):
        if self.first:
            raise InputError("val.png: cannot be read as a picture")
        return read(self, index, instances)
    run(tmp_path / "whole", "--steps", 6)
    with monkeypatch.context() as patch:
        patch.setattr(toy.ToyScenes, "load", broken)
        for steps in (4, 6):  # the second run makes up for the picture of step 4, in vain
            run(tmp_path / "run", "--steps", steps, "--picture-every", 2)
            assert f"step 4: no strip.png: val.png: cannot be read as a picture" in capsys.readouterr().out
    same_run(tmp_path / "run", tmp_path / "whole")
    run(tmp_path / "run", "--steps", 6, "--picture-every", 2)
    assert (tmp_path / "run/strip_0000006.png").is_file()


def test_an_average_a_score_and_a_picture_that_a_signal_cut_off_are_made_up(tmp_path, monkeypatch):
    every = ("--steps", 6, "--ema-every", 2, "--evaluate-every", 2, "--picture-every", 2)
    run(tmp_path / "whole", *every)
    now = runs.StopOnSignals.now
    with monkeypatch.context() as patch:
        seen = iter([False, False, False, True])
        patch.setattr(runs.StopOnSignals, "now", lambda self: next(seen))
        run(tmp_path / "run", *every)
    assert runs.StopOnSignals.now is now and load(tmp_path / "run/latest.pt")["step"] == 4
    assert not (tmp_path / "run/ema_0000004.pt").exists() and not (tmp_path / "run/strip_0000004.png").exists()
    run(tmp_path / "run", *every)
    for name in ("ema_0000004.pt", "ema_0000006.pt", "ema_best.pt"):
        one, other = load(tmp_path / "run" / name), load(tmp_path / "whole" / name)
        torch.testing.assert_close(one["ema"], other["ema"], rtol=0, atol=0)
        assert one["scores"] == other["scores"]
    same_run(tmp_path / "run", tmp_path / "whole")
    assert lines(tmp_path / "run", "scores.jsonl") == lines(tmp_path / "whole", "scores.jsonl")
    assert (tmp_path / "run/strip_0000004.png").read_bytes() == (tmp_path / "whole/strip_0000004.png").read_bytes()


@pytest.mark.parametrize("fault", ["killed before its line", "digit changed"])
def test_the_best_average_is_kept_and_found_again(tmp_path, monkeypatch, fault):
    """A kill between ema_best.pt and its line of scores.jsonl; and a line that says that a worse score was better."""
    every = ("--evaluate-every", 1, "--ema-every", 0, "--save-every", 1)
    scores = iter([5.0, 5.0, 4.0] if fault == "killed before its line" else [5.0, 4.0])
    monkeypatch.setattr(train, "score_generator", lambda *_: {"tiny distance": next(scores)})
    if fault == "digit changed":
        run(tmp_path, "--steps", 1, *every)
        (tmp_path / "scores.jsonl").write_text('{"step": 1, "tiny distance": 1.0}\n')
    else:
        with monkeypatch.context() as patch:
            patch.setattr(runs, "append_line", lambda *_: exec("raise KeyboardInterrupt"))
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, "--steps", 1, *every)
        assert load(tmp_path / "ema_best.pt")["step"] == 1
    run(tmp_path, "--steps", 2, *every)
    assert [line["step"] for line in lines(tmp_path, "scores.jsonl")] == [1, 2]
    assert load(tmp_path / "ema_best.pt")["scores"] == {"tiny distance": 4.0}


def test_ctrl_c_in_a_save_is_not_blamed_on_the_disk(tmp_path):
    """torch's writer raises a RuntimeError of its own where its file raises."""
    class Interrupted(io.BytesIO):
        def write(self, content):
            if self.tell() > 300:
                raise KeyboardInterrupt
            return super().write(content)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        torch.save(torch.zeros(100), Interrupted())
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_atomically(tmp_path / "latest.pt", lambda _: torch.save(torch.zeros(100), Interrupted()))
    assert not contents(tmp_path)


def bad_picture(patch, good):
    """The toy scenes after `good` reads of a process cannot be read."""
    seen, read = [], toy.ToyScenes.load

    def some(self, index, instances=True):
        seen.append(index)
        if len(seen) > good:
            raise InputError("2.jpg: cannot be read as a picture")
        return read(self, index, instances)
    patch.setattr(toy.ToyScenes, "load", some)


def main_of_a_rank(folder):
    patch = pytest.MonkeyPatch()
    shrink(patch)
    if os.environ["RANK"] == "1":
        bad_picture(patch, 4)
    try:
        run(folder, "--steps", 9)
    except InputError as error:
        (Path(folder) / f"says{os.environ['RANK']}").write_text(str(error))


def test_a_bad_picture_on_another_rank_is_saved_and_said_on_all(tmp_path):
    process = start(__file__, tmp_path, ranks=2)
    process.communicate()
    assert load(tmp_path / "latest.pt")["step"] == 2
    assert [(tmp_path / f"says{rank}").read_text() for rank in (0, 1)] == 2 * ["2.jpg: cannot be read as a picture"]


class Failing:
    """A DataLoader that gives `good` batches, and an error then."""
    num_workers = 0

    def __init__(self, batches, good, error):
        self.batches, self.good, self.error = batches, good, error

    def __iter__(self):
        yield from (next(self.batches) for _ in range(self.good))
        raise self.error


class FaultyScenes(torch.utils.data.Dataset):
    """Reading ends in one error."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, i):
        raise self.error


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error, says", [
    (InputError("2.jpg: ValueError: of no use"), "^2.jpg: ValueError: of no use$"),
    (OSError(errno.EMFILE, "Too many open files", "2.jpg"), "open files: '2.jpg'; too few file handles; allow")])
def test_an_error_in_a_loader_process_is_one_line_with_its_remedy(workers, error, says):
    with pytest.raises(InputError, match=says) as found:
        list(batches_of(torch.utils.data.DataLoader(FaultyScenes(error), num_workers=workers)))
    assert "\n" not in str(found.value) and "Caught" not in str(found.value)


def test_a_mistake_in_a_reader_keeps_its_trace():
    with pytest.raises(RuntimeError, match="in __getitem__"):
        list(batches_of(torch.utils.data.DataLoader(FaultyScenes(RuntimeError("a view")), num_workers=1)))


def test_a_loader_process_that_is_killed_costs_no_step(tmp_path, monkeypatch):
    def killed(*_, first=train.training_batches):
        yield from batches_of(Failing(first(*_), 2, RuntimeError("DataLoader worker (pid 7) is killed by signal: 9.")))
    with monkeypatch.context() as patch:
        patch.setattr(train, "training_batches", killed)
        with pytest.raises(InputError, match="^DataLoader worker .pid 7. is killed by signal"):
            run(tmp_path, "--steps", 9)
    assert load(tmp_path / "latest.pt")["step"] == 2


def test_a_signal_that_ends_the_loader_processes_too_is_a_stop(tmp_path, monkeypatch, capsys):
    """As scancel sends it to all processes of a job: saved, and 75, to be started again; not 2, as for a bad file."""
    def killed(*_, first=train.training_batches):
        yield from batches_of(Failing(first(*_), 2, RuntimeError("DataLoader worker (pid 7) is killed by signal: 15.")))

    class Terminated(runs.StopOnSignals):
        def begin(self, step, due):
            if step == 3:
                self.handler(signal.SIGTERM, None)
            return super().begin(step, due)
    with monkeypatch.context() as patch:
        patch.setattr(train, "training_batches", killed)
        patch.setattr(runs, "StopOnSignals", Terminated)
        assert train.train(train.parse_options(options(tmp_path, "--steps", 9)), train.DP_SIMS) == 75
    assert load(tmp_path / "latest.pt")["step"] == 2
    assert "killed by signal: 15." in (said := capsys.readouterr().out) and "stopped at step 2 and saved" in said


class DeadlyScenes(torch.utils.data.Dataset):
    """Whoever reads scene 2 is killed."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return i if i < 2 else os.kill(os.getpid(), 9)


def test_the_death_of_a_loader_process_is_told_by_the_next_batch_alone(monkeypatch):
    """torch's own handler raises at any moment, such as in a save."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    seen = []
    with pytest.raises(InputError, match="^DataLoader worker .* exited unexpectedly"):
        for batch in batches_of(torch.utils.data.DataLoader(DeadlyScenes(), num_workers=1, prefetch_factor=1)):
            seen.append(batch.item())
            assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    assert seen == [0, 1]


def test_a_changed_dataset_is_said(kept, monkeypatch, capsys):
    monkeypatch.setattr(toy.ToyScenes, "fingerprint", lambda self: "other files")
    run(kept, "--steps", 6)
    assert "the files of --dataset toy (names, sizes or times) have changed since" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------- pictures and scores

def test_a_read_that_fails_once_is_tried_again_and_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    file, opened, fails = tmp_path / "a.png", Image.open, [errno.EIO, errno.ESTALE]
    Image.new("RGB", (4, 4), (1, 2, 3)).save(file)

    def flaky(*arguments, **more):
        if fails:
            raise OSError(fails.pop(), "for a while")
        return opened(*arguments, **more)
    monkeypatch.setattr(Image, "open", flaky), monkeypatch.setattr(time, "sleep", lambda _: None)
    assert read_rgb(file)[0, 0].tolist() == [1, 2, 3] and not fails
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(InputError, match="b.png: cannot be read as a picture .a folder, a pipe"):
        read_rgb(tmp_path / "b.png")
    with pytest.raises(FileNotFoundError):
        checkpoints.read_torch(tmp_path / "b.png")


def test_flipped_bits_of_a_png_are_found_or_harmless(tmp_path):
    """PIL alone gives other pixels for some of them: it does not look at the checksums of the pixels."""
    file, rng = tmp_path / "a.png", np.random.default_rng(0)
    pixels = rng.integers(256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    whole, found = file.read_bytes(), 0
    for place in range(len(whole)):
        file.write_bytes(flipped(whole, place))
        try:
            assert (read_rgb(file) == pixels).all(), place
        except InputError:
            found += 1
    assert found > 0.9 * len(whole)


def test_damaged_exif_is_one_line(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(file, exif=b"Exif\0\0nothing like it")
    with pytest.raises(InputError, match="a.png: cannot be read as a picture"):
        read_rgb(file, upright=True)


@pytest.mark.parametrize("there", ["val0001_labels.png", "val0000_mix.gif", "grid.png"])
def test_sampling_overwrites_nothing_and_starts_nothing(tmp_path, there):
    checkpoint, out = write_checkpoint(tmp_path / "ema.pt", 0), tmp_path / "out"
    out.mkdir()
    (out / there).write_bytes(b"mine")
    words = ["--checkpoint", checkpoint, "--dataset", "toy", "--count", 2, "--seeds", "0,1", "--interpolate", 2,
             "--output-dir", out]
    with pytest.raises(InputError, match=f"{there} is there already"):
        sample.main([str(word) for word in words])
    assert contents(out) == {out / there: b"mine"}


def test_a_full_disk_leaves_no_half_picture(tmp_path, monkeypatch):
    def full(self, file, *_, **__):
        Path(file).write_bytes(b"")
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Image.Image, "save", full)
    checkpoint, out = write_checkpoint(tmp_path / "ema.pt", 0), tmp_path / "out"
    with pytest.raises(OSError, match="No space"):
        sample.main(["--checkpoint", str(checkpoint), "--dataset", "toy", "--count", "1", "--output-dir", str(out)])
    assert not contents(out)


def test_force_removes_only_what_a_manifest_lists(tmp_path):
    folder, manifest = tmp_path / "pictures", {"names": ["a"], "checkpoint": "1"}
    folder.mkdir()
    (folder / "manifest.json.tmp").write_text("half")  # of a run that was killed before its first picture
    evaluate.claim_pictures(folder, manifest, False)
    (folder / "manifest.json").unlink()
    (folder / "seed000").mkdir(parents=True)
    for name in ("seed000/a.png", "seed000/mine.png", "mine.txt"):
        (folder / name).write_text(name)
    before = contents(folder)
    for content in (None, "half", "[]", "{}"):
        content and (folder / "manifest.json").write_text(content)
        with pytest.raises(InputError, match="no manifest.json that says"):
            evaluate.claim_pictures(folder, manifest, True)
        assert {**contents(folder), **before} == contents(folder)
    (folder / "manifest.json").write_text(json.dumps({"names": ["a"], "checkpoint": "0"}))
    with pytest.raises(InputError, match="pictures of another checkpoint"):
        evaluate.claim_pictures(folder, manifest, False)
    evaluate.claim_pictures(folder, manifest, True)
    assert {file.name for file in contents(folder)} == {"mine.png", "mine.txt", "manifest.json"}


def test_scores_of_another_folder_are_kept(tmp_path):
    args, file = argparse.Namespace(output_dir=tmp_path, fake=tmp_path / "a", force=False), tmp_path / "eval.json"
    evaluate.require_own_scores(args)
    for content, says in ((json.dumps({"fake": "b", "checkpoint": "", "scores": {}}), "has the scores of b"),
                          (json.dumps({"fake": "", "checkpoint": "ema.pt", "scores": {}}), "has the scores of ema.pt"),
                          ("half", "not readable as scores")):
        file.write_text(content)
        with pytest.raises(InputError, match=says):
            evaluate.require_own_scores(args)
    file.write_text(json.dumps({"fake": str(args.fake), "checkpoint": "", "scores": {}}))
    evaluate.require_own_scores(args)
    args.fake = None
    with pytest.raises(InputError, match="has the scores of .*a; choose another"):
        evaluate.require_own_scores(args)
    file.write_text(json.dumps({"fake": "", "checkpoint": "ema.pt", "scores": {}}))  # claim_pictures tells two apart
    evaluate.require_own_scores(args)


@pytest.mark.parametrize("damage", [b"half", "nan"])
def test_damaged_statistics_are_measured_again_and_said(tmp_path, capsys, damage):
    pictures = np.random.default_rng(0).integers(256, size=(4, 32, 32, 3), dtype=np.uint8)
    measure = functools.partial(fid.reference_statistics, TinyFeatures(), "key", pictures.__getitem__, 4, ALONE, 2,
                                tmp_path)
    mean, _ = measure()
    file, = tmp_path.glob("reference_*.npz")
    if damage == "nan":
        np.savez(file, key="key", mean=np.full(16, np.nan), covariance=np.eye(16))
    else:
        file.write_bytes(damage)
    assert torch.equal(measure()[0], mean) and f"{file}: damaged, measured again" in capsys.readouterr().err


@pytest.mark.parametrize("text, line", [("sky\ntree\nsky\n", 3), ("unlabelled\ntree\nUnlabeled\n", 3),
                                        ("s\0k\0y\0\n", 1)])
def test_class_names_are_different(tmp_path, text, line):
    (tmp_path / "classes.txt").write_bytes(text.encode())
    with pytest.raises(InputError, match=f"classes.txt, line {line}: .* expected different names"):
        open_dataset("folder", tmp_path, "train", (32, 32))


def test_compare_scores_each_setting_by_itself(tmp_path, monkeypatch):
    made = []

    def call_here(words, log):
        made.append(words)
        folder = Path(words[words.index("--output-dir") + 1])
        folder.mkdir(exist_ok=True)
        (folder / ("eval.json" if "--samples" in words else "ema_0000009.pt")).write_text('{"scores": {}}')
    monkeypatch.setattr(compare, "call", call_here)
    words = ["--rows", "table6-dp-sims", "--steps", "9", "--output-dir", str(tmp_path), "--samples"]
    for more, commands in ((["2"], 2), (["2"], 2), (["3"], 3)):
        compare.run_one(compare.parse_options(words + more), "table6-dp-sims", 0)
        assert len(made) == commands
    with pytest.raises(InputError, match="trained with other settings"):
        compare.run_one(compare.parse_options([*words, "2", "--batch-size", "8"]), "table6-dp-sims", 0)
    with pytest.raises(InputError, match="--seeds: one of them is there twice"):
        compare.parse_options([*words, "2", "--seeds", "0,0"])


def test_names_cannot_steer_the_terminal_and_a_closed_pipe_is_no_error(capsys):
    def main():
        raise InputError("bad\x1b[31m\ud800.png")
    with pytest.raises(SystemExit):
        run_script("data.py", main)
    assert capsys.readouterr().err == "data.py: bad\\x1b[31m\\ud800.png\n"
    code = "from support.errors import run_script; run_script('data.py', lambda: [print(i) for i in range(10 ** 5)])"
    process = start("-c", code)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141


# ------------------------------------------------------------------------------ what is readable, but not what it says

OPTIONS = ("optimiser_G", "param_groups", 0)


@pytest.mark.parametrize("edit, says", [
    (change("palette", 0, value=[300, 0, 0]), "palette.0.0 is not"), (change("palette", value=[]), "11 names, 0 colou"),
    (change("classes", 0, value="sky\x1b[2J"), "classes.0 is not"), (change("unknown", value=11), "unlabelled class 1"),
    (change("step", value=-1), "step is not"), (change("image_size", value=[320_000, 320_000]), "GiB or more"),
    (change("image_size", value=[0, 0]), "must be divisible by")])
def test_an_average_with_impossible_values_is_not_sampled(tmp_path, edit, says):
    state = load(write_checkpoint(tmp_path / "ema.pt", 0))
    edit(state)
    torch.save(state, tmp_path / "ema.pt")
    with pytest.raises(InputError, match=says):
        sample.main(["--checkpoint", str(tmp_path / "ema.pt"), "--dataset", "toy", "--output-dir", str(tmp_path)])


@pytest.mark.parametrize("edit", [
    change(*OPTIONS, "betas", value=("a", "b")), change(*OPTIONS, "amsgrad", value=True),
    change(*OPTIONS, "weight_decay", value="x"), change(*OPTIONS, "maximize", value=True)])
def test_an_optimisers_options_are_this_commands(kept, edit):
    state = load(kept / "latest.pt")
    edit(state)
    torch.save(state, kept / "latest.pt")
    run(kept, "--steps", 5)
    group = load(kept / "latest.pt")["optimiser_G"]["param_groups"][0]
    assert [group[name] for name in ("betas", "amsgrad", "weight_decay", "maximize")] == [(0.0, 0.99), False, 0, False]


@pytest.mark.parametrize("content", [b"half", np.zeros(3), np.ones((18, 2)), np.ones((18, 11))])
def test_a_damaged_table_of_classes_is_made_again_and_said(tmp_path, content, capsys):
    dataset, file = open_dataset("toy", None, "train", (32, 32)), tmp_path / "class_presence.npz"
    whole = class_presence(dataset, file)
    with np.load(file) as saved:
        key = saved["key"]
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with open(file, "wb") as opened:
            np.save(opened, content) if content.ndim == 1 else np.savez(opened, key=key, presence=content)
    assert np.array_equal(class_presence(dataset, file), whole)
    assert f"{file}: damaged, measured again" in capsys.readouterr().err
    assert np.array_equal(class_presence(dataset, file), whole) and not capsys.readouterr().err


def test_a_damaged_segmenter_is_trained_again_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(segmentation, "SAMPLES", 2)
    get = functools.partial(segmentation.trained_segmenter, open_dataset("toy", None, "train", (32, 32)), "toy",
                            "small", 2, 0, ALONE, tmp_path)
    good, (file,) = get()[0].state_dict(), tmp_path.glob("segmenter_*.pt")
    for content in ({"a": torch.ones(2)}, [1]):
        torch.save(content, file)
        assert all(torch.equal(t, good[name]) for name, t in get()[0].state_dict().items())
        assert f"{file}: damaged" in capsys.readouterr().err


def test_a_damaged_self_trained_backbone_is_made_again(tmp_path, capsys):
    (tmp_path / "backbone.pt").write_bytes(b"half")
    with pytest.raises(ZeroDivisionError):  # it begins
        weights.pretrain_backbone("resnet18", 2, (1 / 0 for _ in range(1)), 1, tmp_path / "backbone.pt", 0, ALONE)
    assert "backbone.pt: damaged" in capsys.readouterr().err


def test_scores_and_logs_of_other_kinds_are_said_or_named(kept, tmp_path, capsys):
    (kept / "scores.jsonl").write_text('{"step": 1, "tiny distance": "x"}\n')
    run(kept, "--steps", 5, "--evaluate-every", 5)
    assert "scores.jsonl: line 1 is damaged and left out" in capsys.readouterr().err
    (kept / "scores.jsonl").unlink()
    os.mkfifo(kept / "scores.jsonl")
    with pytest.raises(InputError, match="scores.jsonl: a folder, a pipe or a device is in the way"):
        run(kept, "--steps", 6)
    save_scenes(tmp_path / "fake", 0, 2)
    words = ["--fake", str(tmp_path / "fake"), "--references", str(tmp_path / "fake"), "--eval", str(tmp_path / "e")]
    for content in ("", "[]", "{}", '{"scores": 3}', '{"scores": {"fid": {}, "miou": {}}}', "[" * 10 ** 5):
        (tmp_path / "e").write_text(content)
        with pytest.raises(InputError, match="--eval .*not there, or not the FID and mIoU of these 2"):
            iidm_scores.main(words)


@pytest.mark.parametrize("content", ['{"names": [3]}', "[" * 10 ** 5])
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="no manifest.json that says"):
        evaluate.claim_pictures(tmp_path, {"names": ["a"]}, True)
    (tmp_path / "eval.json").write_text(content)
    with pytest.raises(InputError, match="eval.json: not readable as scores"):
        evaluate.require_own_scores(argparse.Namespace(output_dir=tmp_path, fake=None, force=True))


def test_a_drawn_picture_that_was_replaced_is_not_scored(tmp_path):
    words = ["--checkpoint", write_checkpoint(tmp_path / "ema.pt", 0), "--metrics", "fid", "--count", 3, "--device",
             "cpu", "--output-dir", tmp_path / "out"]
    args = evaluate.parse_options([str(word) for word in words])
    first, file = evaluate.evaluate(args)["fid"], tmp_path / "out/pictures/seed000/val0001.png"
    drawn = file.read_bytes()
    for other in ((file.parent / "val0000.png").read_bytes(), None):  # another map's, and one painted over
        file.write_bytes(other) if other else Image.open(file).convert("L").convert("RGB").save(file)
        with pytest.raises(InputError, match="val0001.png: not the picture that was drawn there; remove it"):
            evaluate.evaluate(args)
    file.unlink()
    assert evaluate.evaluate(args)["fid"] == first and file.read_bytes() == drawn


# ------------------------------------------------------------------------------------------ what does not fit, or leads

@pytest.mark.parametrize("script, words, says", [
    (sample, ("--image-size", 320_000), "48,828 GiB or more, this machine has"),
    (sample, ("--seeds", "0-4000000000"), "4,000,000,001 seeds; expected at most 10,000"),
    (sample, ("--interpolate", 10 ** 9), "expected a whole number from 0 to 10000"),
    (evaluate, ("--segmenter-size", 320_000), "GiB or more"), (evaluate, ("--batch-size", 10 ** 9), "1 to 65536"),
    (train, ("--batch-size", 10 ** 9), "1 to 65536"), (train, ("--workers", 10 ** 9), "0 to 1024"),
    (train, ("--image-size", "99999999999999999999x32"), "expected a side")])
def test_numbers_that_fit_no_machine_are_refused_first(tmp_path, script, words, says):
    words = [str(word) for word in ("--checkpoint", tmp_path / "none.pt", *words)[2 * (script is train):]]
    with pytest.raises(InputError, match=says):
        script.main(words) if script is sample else script.parse_options(words)


@pytest.mark.parametrize("words", [("--batch-size", 1), ("--batch-size", 2, "--micro-batch-size", 1)])
def test_a_batch_norm_of_one_value_is_refused_first(tmp_path, words):
    with pytest.raises(InputError, match="deepest batch norm would see a single value; give 2 pictures, or sides of"):
        train.train(train.parse_options(options(tmp_path, "--steps", 1, "--diversity-every", 1, *words)), train.DP_SIMS)


@pytest.mark.parametrize("environment", [
    {"RANK": "abc"}, {"WORLD_SIZE": "2"}, {"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
    {"WORLD_SIZE": "0"}, {"RANK": "-1"}, {"LOCAL_WORLD_SIZE": "0"}, {"LOCAL_RANK": "first"}, {"WORLD_SIZE": "two"},
    *({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": port} for port in ("x", "", "70000"))])
def test_ranks_that_do_not_fit_are_named(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="of the environment do not fit together; start with torchrun"):
        ranks.setup_ranks("cpu")


@pytest.mark.parametrize("error, says", [
    (lambda: torch.empty(10 ** 15), "out of memory; lower"), (lambda: np.empty(10 ** 16), "out of memory; lower"),
    (lambda: open("/"), "a folder is in the way; move it away"),
    (lambda: exec("raise OSError(24, 'Too many open files')"), "allow more .ulimit -n 4096.")])
def test_what_a_machine_lacks_is_one_line(capsys, error, says):
    with pytest.raises(SystemExit) as end:
        run_script("data.py", error)
    printed = capsys.readouterr().err
    assert end.value.code == 2 and re.search(says, printed) and printed.count("\n") == 1


def test_too_few_file_handles_are_not_the_pictures_fault(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(InputError, match="a.png: .*allow more .ulimit -n 4096., or lower --workers"):
        read_rgb(tmp_path / "a.png")


def test_closed_streams_are_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None), monkeypatch.setattr(sys, "stderr", None)
    run_script("data.py", lambda: list(tqdm.tqdm(range(3))) and print("nobody reads this"))


def test_ctrl_c_while_torch_is_imported_is_no_stack_trace():
    process = start("-c", "import support; raise KeyboardInterrupt")
    assert process.communicate()[1] == ""
    for name in ("data", "sample", "evaluate", "train"):  # before anything that takes long
        source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
        assert source.index("\nimport support ") < source.index("\nimport torch\n"), name


@pytest.mark.parametrize("kind, inside", [("fifo", "--fake"), ("folder", "--fake"), ("fifo", "weights"),
                                          ("folder", "grid.png"), ("fifo", "palette.txt"), ("folder", "palette.txt")])
def test_only_regular_files_are_opened(tmp_path, kind, inside):
    place = tmp_path / ("a.png" if inside in ("--fake", "weights") else inside)
    os.mkfifo(place) if kind == "fifo" else place.mkdir()
    if inside == "--fake":
        Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
        with pytest.raises(InputError, match="a.png: cannot be read as a picture .a folder, a pipe"):
            generated.open_pictures(tmp_path, "--fake")
    elif inside == "weights":
        with pytest.raises(InputError, match="--flag .*a.png: No such file, or not a regular one"):
            weights.load_weights(str(place), "http://x", "x", "--flag", "")
    elif inside == "grid.png":
        with pytest.raises(InputError, match="grid.png is there already; .*move this folder away"):
            sample.main(["--checkpoint", str(write_checkpoint(tmp_path / "e.pt", 0)), "--dataset", "toy", "--force",
                         "--output-dir", str(tmp_path)])
    else:
        (tmp_path / "classes.txt").write_text("a\n")
        with pytest.raises(InputError, match="palette.txt: a folder, a pipe or a device; expected a text file"):
            open_dataset("folder", tmp_path, "train", (32, 32))


# --------------------------------------------------------------------------------------------------- names and maps

def sample_maps(folder, maps, *more):
    """sample.py --labels of a folder of {name: (mode, size, colour)}."""
    checkpoint = write_checkpoint(folder / "ema.pt", 0)
    (folder / "maps").mkdir()
    for name, what in maps.items():
        Image.new(*what).save(folder / "maps" / name)
    (folder / "maps/._a.png").write_bytes(b"macOS")
    sample.main([str(word) for word in ("--checkpoint", checkpoint, "--labels", folder / "maps", "--output-dir",
                                        folder / "out", *more)])


def test_label_maps_of_a_folder_are_found_as_a_datasets(tmp_path, capsys):
    """Endings in capitals, also of instance maps; macOS's files are none; another size is said, once."""
    maps = {"a.PNG": ("L", (32, 32), 3), "b.png": ("L", (48, 40), 3)}
    (tmp_path / "instances").mkdir()
    for name, (mode, size, _) in maps.items():
        Image.new(mode, size).save(tmp_path / "instances" / name.lower())
    sample_maps(tmp_path, maps, "--instances", tmp_path / "instances")
    assert {f"{name}_{what}.png" for name in "ab" for what in ("labels", "seed000")} < {
        file.name for file in (tmp_path / "out").iterdir()}
    assert capsys.readouterr().out.count("b.png: 40x48 (height x width); label maps are resized to 32x32") == 1


@pytest.mark.parametrize("name, mode, colour, says", [
    ("a.png", "RGB", (3, 3, 3), "has them three times .RGB.; save it as an 8-bit greyscale"),
    ("a.png", "RGB", (3, 4, 5), "no class's colour; expected class numbers 0..10 in an 8-bit greyscale PNG"),
    ("a\x1b[2J.png", "L", 3, "its name has control characters, or is no UTF-8; rename it"),
    (os.fsdecode(b"a\xff.png"), "L", 3, "its name has control characters, or is no UTF-8; rename it")])
def test_label_maps_that_mislead_are_refused(tmp_path, name, mode, colour, says):
    with pytest.raises(InputError, match=says):
        sample_maps(tmp_path, {name: (mode, (32, 32), colour)})
    assert not contents(tmp_path / "out")


def test_a_folder_whose_name_is_no_utf_8(tmp_path):
    """Its path is a part of what tells caches apart."""
    root = tmp_path / os.fsdecode(b"q\xff")
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
        Image.new("RGB" if kind == "images" else "L", (8, 8)).save(root / kind / "train/a.png")
    (root / "classes.txt").write_text("sky\n")
    dataset = open_dataset("folder", root, "train", (8, 8))
    for _ in range(2):
        assert class_presence(dataset, tmp_path / "cache.npz").tolist() == [[True]]


def test_one_picture_to_score_with_is_too_few(tmp_path):
    with pytest.raises(InputError, match="1 real picture to score with; expected 2 or more"):
        fid.reference_statistics(TinyFeatures(), "key", None, 1, ALONE, 2, tmp_path)


def test_a_run_that_is_stopped_early_names_no_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs.StopOnSignals, "now", lambda self: True)
    run(tmp_path, "--steps", 5)
    assert "picture:    none yet" in capsys.readouterr().out and not (tmp_path / "strip.png").exists()


if __name__ == "__main__":
    main_of_a_rank(*sys.argv[1:])
