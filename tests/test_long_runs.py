"""Long runs on many GPUs: ranks that hang or die, signals, saves by the clock, losses that are not finite, old files.

Training is that of test_faults.py, with networks of one layer. A test waits for the end of a process, never for a time.
"""
import fcntl
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
import torch

import sample
import train
from conftest import call, lines, load, printed_by, start
from generator import z_of_seed
from support import checkpoints, ranks, runs
from support.errors import InputError
from test_faults import TINY, generator_losses, run, small  # noqa: F401
from test_metrics import ALONE
from test_train import options, same_run, shrink, wait_until

HERE, SET_SIGNAL = Path(__file__).resolve().parent, signal.signal
SMALL = ("--lambda-c", 0, "--lambda-d", 0)


def faulty(step, fault, tries=1):
    """TINY, whose loss is fault(loss) at a step of the first tries: after the last rollback there is other noise."""
    seeds = [step + n * 1_000_003 * (10 ** 9 + 1) for n in range(tries)]

    def losses(G, D, P, batch, alpha, rng, args):
        terms, *rest = generator_losses(G, D, P, batch, alpha, rng, args)
        return ({"gan": fault(terms["gan"])} if rng.initial_seed() in seeds else terms), *rest
    return TINY._replace(generator_losses=losses)


def go(system, folder, *more):
    return train.train(train.parse_options(options(folder, *SMALL, *more)), system)


# ------------------------------------------------------------------------------------ ranks that hang or die

def main_of_a_rank(what, folder, *more):
    patch = pytest.MonkeyPatch()
    shrink(patch), patch.setattr(signal, "signal", SET_SIGNAL)
    first, odd = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0", os.environ["RANK"] == "1"

    def ends(loss):
        os.kill(os.getpid(), getattr(signal, what))
        return loss
    at_5, at_7 = faulty(5, ends), faulty(7, lambda loss: loss + torch.inf)  # its gradient is finite: rank 1 alone knows
    train.run_script("train.py", lambda: go((at_5 if first else at_7) if odd else TINY, folder, *more))


def test_a_rank_that_is_stopped_is_named_and_the_job_ends(tmp_path, monkeypatch):
    """Two ranks as Slurm starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    both = []
    for rank in "01":
        for name, value in {**found, "RANK": rank}.items():
            monkeypatch.setenv(name, value)
        both.append(start(__file__, "SIGSTOP", tmp_path, "--steps", 9, "--save-every", 2, "--watchdog", 3))
    try:
        error = both[0].communicate()[1]
        assert both[0].returncode == 1 and "Traceback" not in error and both[1].poll() is None
        assert error.startswith("step 5: no sign of life for 3 s: rank 1, last seen at step ")
        assert error.count("\n") == 1
    finally:
        both[1].kill()
        both[1].communicate()


def test_torchrun_goes_on_after_a_rank_has_died_and_ranks_roll_back_together(tmp_path):
    """Rank 1 is killed in step 5, and in the second attempt its loss alone is infinite in step 7. The check-
    points are those that rank 0's clock asks for, from the third step of a process on: the ranks learn of it late."""
    process = start("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "--max-restarts", 1, __file__,
                    "SIGKILL", tmp_path, "--steps", 9, "--save-minutes", 1e-9, "--on-divergence", "rollback")
    out = printed_by(process)
    assert "resumed at step 4\n" in out
    assert "step 7: loss term G_gan is inf: back to step 4 with other batches and noise (rollback 1 of at most" in out
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 10))
    assert [line.get("rollbacks") for line in lines(tmp_path)] == 4 * [None] + 5 * [1]
    assert load(tmp_path / "latest.pt")["options"]["rollbacks"] == 1 and load(tmp_path / "latest.pt")["step"] == 9


class Looks:
    """In place of the time between two looks: rank 0 tells its next sign, and rank 1 that it lives."""

    def __init__(self, watchdog, signs):
        self.watchdog, self.signs = watchdog, enumerate(signs)

    def wait(self, seconds):
        look, sign = next(self.signs, (0, None))
        if sign:
            self.watchdog.signs = [sign, f"{look}|7|ranks.py:99 (agree)"]
        return sign is None and seconds == 30


READS = "|7|images.py:40 (read_rgb)"


@pytest.mark.parametrize("signs, says", [
    ([f"{n}|{n}|" for n in range(100)], None), (["left||"] * 40, None), (["1" + READS] * 9, None),
    ([f"{n // 9}" + READS for n in range(55)], None),
    (["1" + READS] * 20, "no sign of life for 300 s: rank 0, last seen at step 7, images.py:40 (read_rgb). Run the"),
    ([""] * 20, "no sign of life for 300 s: rank 0, last seen at step ?, . Run the same"),
    ([f"{n}" + READS for n in range(99)], "no step ended for 1800 s: rank 0, last seen at step 7, images.py:40 "
     "(read_rgb); rank 1, last seen at step 7, ranks.py:99 (agree). Run")])
def test_what_the_watchdog_sees(monkeypatch, capsys, signs, says):
    """Of rank 1, at step 7. Empty signs: no answer from the store, which is rank 0's."""
    class Ended(Exception):
        pass

    def end(code):
        raise Ended(code)
    monkeypatch.setattr(os, "_exit", end)
    stopping = ranks.StopOnSignals(ALONE)
    stopping.begin(7, set())
    watchdog = ranks.Watchdog(ranks.Ranks("cpu", 1, 2), 0, stopping)
    watchdog.seconds, watchdog.ended = 300, Looks(watchdog, signs)
    try:
        watchdog.watch()
        assert says is None
    except Ended as code:
        assert code.args == (1,) and capsys.readouterr().err.startswith(f"step 7: {says}")


def test_where_is_a_line_of_the_project():
    found = []
    thread = threading.Thread(target=lambda: found.append(ranks.where()))
    thread.start()
    thread.join()
    assert found[0].startswith("test_long_runs.py:") and found[0].endswith("(test_where_is_a_line_of_the_project)")


def test_a_blocked_loader_process_ends_with_its_trainer():
    """Its end is seen at the pipe, which it holds open."""
    code = ("import time; from support.ranks import own_group; from torch.utils.data import DataLoader\n"
            "class Blocked:\n    __len__ = lambda self: 9\n"
            "    def __getitem__(self, i): print('reads', flush=True); time.sleep(10 ** 6)\n"
            "next(iter(DataLoader(Blocked(), num_workers=1, worker_init_fn=own_group)))")
    process = start("-c", code)
    assert process.stdout.readline() == "reads\n"
    process.kill()
    assert process.communicate(timeout=50) == ("", "")


# ------------------------------------------------------------------------------------------ signals, and the clock

@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGUSR1, 75),
                                          (signal.SIGINT, 0)])
def test_signals_save_and_say_by_the_exit_code_whether_to_start_again(tmp_path, monkeypatch, number, code):
    monkeypatch.setattr(signal, "signal", SET_SIGNAL)
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, *ranks.ENDING)}
    try:
        at_3 = faulty(3, lambda loss: (signal.raise_signal(number), loss)[1])
        assert go(at_3, tmp_path, "--steps", 9) == code and load(tmp_path / "latest.pt")["step"] == 3
        at_9 = faulty(9, lambda loss: (signal.raise_signal(number), loss)[1])
        assert go(at_9, tmp_path, "--steps", 9) == 0, "nothing is left to do"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        ranks.StopOnSignals(ALONE)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, "nohup"
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_a_lost_terminal_costs_no_step(tmp_path):
    """What is printed to it is an error from then on."""
    here, there = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, __file__, "", str(tmp_path), "--steps", "1000000"], stdin=there, stdout=there, stderr=there,
        env={**os.environ, "RANK": "0", "PYTHONPATH": str(HERE.parent)}, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(there)
    wait_until(lambda: lines(tmp_path), process)  # of the log
    os.close(here)
    assert process.wait() == 75 and load(tmp_path / "latest.pt")["step"] > 0


def test_compare_passes_a_signal_on_and_waits(tmp_path):
    """Its training process saves then, which may take a while."""
    child = ("import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(75)))\n"
             "open(sys.argv[1], 'w').close(); time.sleep(10 ** 6)")
    process = start("-c", f"import sys; from tables.compare import call; call(['-c', {child!r}, sys.argv[1]], "
                    f"sys.argv[2])", tmp_path / "there", tmp_path / "log")
    wait_until((tmp_path / "there").exists, process)
    process.send_signal(signal.SIGTERM)
    assert process.communicate() == ("", "") and process.returncode == 75
    assert (tmp_path / "log").read_text() == "saved\n"


def test_checkpoints_by_the_clock_change_nothing(tmp_path, monkeypatch):
    """A clock that moves by a minute each time it is asked; the clock of ranks other than 0 does not matter."""
    minutes, saved, save = iter(range(0, 10 ** 6, 60)), [], runs.save
    run(tmp_path / "whole", "--steps", 20)
    monkeypatch.setattr(ranks.time, "monotonic", lambda: next(minutes))
    monkeypatch.setattr(runs, "save", lambda run, step, *more: (saved.append(step), save(run, step, *more)))
    run(tmp_path / "run", "--steps", 20, "--save-minutes", 5)
    assert 2 < len(saved) < 6 and saved[-1] == 20 and len({b - a for a, b in zip(saved, saved[1:-1])}) == 1
    same_run(tmp_path / "whole", tmp_path / "run")
    saved.clear()
    run(tmp_path / "never", "--steps", 20, "--save-minutes", 0)
    assert saved == [20]
    other = ranks.StopOnSignals(ranks.Ranks(torch.device("cpu"), 1), 5)
    assert not any(other.now() or other.late for _ in range(9))


# ------------------------------------------------------------------------------------------------ divergence

def test_a_rollback_goes_on_with_other_noise_and_resumes_bit_for_bit(tmp_path, capsys):
    words = ("--save-every", 2, "--on-divergence", "rollback")
    at_4 = faulty(4, lambda loss: loss * torch.nan, tries=2)
    go(at_4, tmp_path / "whole", "--steps", 8, "--profile", 1, *words)
    out = capsys.readouterr().out
    for n in (1, 2):
        assert f"step 4: loss term G_gan is nan: back to step 2 with other batches and noise (rollback {n} of" in out
    assert out.count("part of a step, ms") == 1
    assert [line.get("rollbacks") for line in lines(tmp_path / "whole")] == 2 * [None] + 6 * [2]
    run(tmp_path / "good", "--steps", 8, *words)
    assert [line["D"] for line in lines(tmp_path / "good")[:2]] == [line["D"] for line in lines(tmp_path / "whole")[:2]]
    assert lines(tmp_path / "good")[2]["D"] != lines(tmp_path / "whole")[2]["D"], "other noise from step 3 on"
    for steps in (2, 4, 5, 8):  # at the checkpoint, at the end of the rollbacks and behind it
        go(at_4, tmp_path / "run", "--steps", steps, *words)
    same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("tries, words, says", [
    (1, (), "step 4: loss term G_gan is nan; .*latest.pt holds the last good step. Try .* or --on-divergence rollback"),
    (4, ("--on-divergence", "rollback"), "step 4: loss term G_gan is nan, after 3 rollbacks; try a lower --lr"),
    (1, ("--on-divergence", "rollback", "--save-every", 0), "step 4: .*; nothing was saved before it")])
def test_where_a_rollback_is_not_asked_for_or_no_help_the_run_stops(tmp_path, tries, words, says):
    with pytest.raises(InputError, match=says):
        go(faulty(4, lambda loss: loss * torch.nan, tries), tmp_path, "--steps", 8, "--save-every", 2, *words)
    assert not (tmp_path / "latest.pt").exists() or load(tmp_path / "latest.pt")["step"] == 2


# ------------------------------------------------------------------------------------ checkpoints of other versions

@pytest.mark.parametrize("made_by", ["format_0", "format_1"])
def test_old_checkpoints_are_read(tmp_path, made_by):
    """latest.pt: two steps of TINY. toy.pt: an average of a small generator; the numbers are those of the day."""
    kept = shutil.copytree(HERE / made_by, tmp_path / "run")
    (kept / "toy.pt").unlink()
    run(kept, "--steps", 4)
    state = load(kept / "latest.pt")
    assert state["optimiser_G"]["state"][0]["step"] == 4 and [line["step"] for line in lines(kept)] == [3, 4]
    assert state["format"] == checkpoints.FORMAT and state["torch"] == str(torch.__version__)
    G, state = sample.load_generator(HERE / made_by / "toy.pt")
    label_map = (torch.arange(32 * 32) // 100).view(1, 32, 32)
    picture = G(label_map, z_of_seed(0, G.z_dim)[None], torch.zeros(1, 2, 32, 32))
    assert state["step"] == 5 and picture.mean().item() == pytest.approx(-0.32998, abs=1e-4)
    assert picture[0, :, 16, 16].tolist() == pytest.approx([-0.9957, 0.9848, -0.9732], abs=1e-3)


def test_a_checkpoint_of_a_later_format_is_refused_and_left(tmp_path, monkeypatch, capsys):
    """Also where the last one of before is still there."""
    kept = shutil.copytree(HERE / "format_1", tmp_path / "run")
    shutil.copy(kept / "latest.pt", kept / "latest_previous.pt")
    for name in ("latest", "toy"):
        torch.save({**load(kept / f"{name}.pt"), "format": 2, "G": "otherwise"}, kept / f"{name}.pt")
    before = (kept / "latest.pt").read_bytes()
    assert call(monkeypatch, "train", *options(kept, *SMALL)) == 2
    assert call(monkeypatch, "sample", "--checkpoint", kept / "toy.pt", "--dataset", "toy") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 2 and error.count("format 2, made by a later version of this code, which reads") == 2
    assert (kept / "latest.pt").read_bytes() == before


if __name__ == "__main__":
    main_of_a_rank(*sys.argv[1:])
