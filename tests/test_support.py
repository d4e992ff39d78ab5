"""What the scripts share: files that are whole, the averaged generator, the learning rate, how a script ends."""
import copy
import errno
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from conftest import ROOT, call
from generator import Generator
from metrics import fid
from support import checkpoints, ranks
from support.errors import InputError, run_script
from support.logs import gradient_norms
from support.options import check_sides, new_parser
from support.optimisation import lr_factor, refresh_ema, update_ema
from support.ranks import setup_ranks


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


@pytest.fixture
def G():
    torch.manual_seed(0)
    return Generator(3, widths=(16, 16, 8), stem_channels=4, label_channels=8, z_dim=4, noise_tokens=2,
                     noise_width=4, noise_hidden=8, attention_stride=2)


def test_ema_is_the_running_average_with_warm_up(G):
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


def test_ema_statistics_are_measured_anew(G):
    """Batch-norm statistics of the averaged weights on the given batches; spectral norm near 1; G untouched."""
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
    torch.testing.assert_close(before, G.state_dict(), rtol=0, atol=0)
    assert not ema.training


def test_learning_rate_decay_depends_on_the_step_alone():
    assert [lr_factor(s, 0, 0) for s in (1, 1000)] == [1, 1]
    assert [round(lr_factor(s, 10, 20), 3) for s in (5, 10, 15, 20, 99)] == [1, 1, 0.55, 0.1, 0.1]


@pytest.mark.parametrize("command, message", [
    ("train --preset huge", "train.py: --preset: invalid choice: 'huge'"),
    ("data --dataset cats", "data.py: --dataset: invalid choice: 'cats' (choose from 'toy', "),
    ("sample --checkpoint none.pt --dataset toy", "sample.py: none.pt: "),
    ("evaluate --fake none --real none", "evaluate.py: --fake none: no such folder"),
    ("baselines.train --model spade", "baselines.train: --model spade: choose from dp-sims, oasis, dpgan"),
    ("baselines.sample --checkpoint none.pt --dataset toy", "baselines.sample: none.pt: "),
    ("baselines.evaluate --checkpoint none.pt", "baselines.evaluate: none.pt: "),
    ("baselines.latency --runs 0", "baselines.latency: --runs: 0: expected a whole number from 1"),
    ("baselines.iidm.train --preset huge", "baselines.iidm.train: --preset: invalid choice: 'huge'"),
    ("baselines.iidm.sample --checkpoint none.pt --dataset toy",
     "baselines.iidm.sample: IIDM starts from a style reference: give --reference"),
    ("baselines.iidm.scores --fake none", "baselines.iidm.scores: none/references: no reference for 0"),
    ("baselines.iidm.latency --checkpoint none.pt --against none.pt", "baselines.iidm.latency: none.pt: "),
    ("tables.compare --rows table99", "tables.compare: --rows table99 is unknown")])
@pytest.mark.filterwarnings("ignore:.* found in sys.modules")
def test_bad_input_of_every_script_is_one_line_and_exit_code_2(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and len(error.splitlines()) == 1, error


@pytest.mark.parametrize("error, code, message", [
    (InputError("no such file"), 2, "train.py: no such file"),
    (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device; what was saved before is whole."),
    (torch.OutOfMemoryError("..."), 2, "train.py: the device is out of memory; lower --image-size"),
    (RuntimeError("CUDA error: out of memory"), 2, "train.py: the device is out of memory; lower --image-size"),
    (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), 2, "train.py: the device is out of memory; lower --image-size"),
    (KeyboardInterrupt(), 130, ""),
])
def test_a_script_ends_with_an_exit_code_and_at_most_one_line(capsys, error, code, message):
    def main():
        raise error
    with pytest.raises(SystemExit) as end:
        run_script("train.py", main)
    found = capsys.readouterr().err
    assert end.value.code == code and message in found and len(found.splitlines()) == bool(message)


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, RecursionError, torch.distributed.DistError,
                                  getattr(torch, "AcceleratorError", RuntimeError)])
def test_what_is_a_fault_of_the_code_or_the_device_keeps_its_trace(kind):
    def main():
        raise kind("CUDA error: device-side assert triggered")
    with pytest.raises(kind, match="device-side assert"):
        run_script("train.py", main)


@pytest.mark.parametrize("fast", [True, False])
def test_only_training_has_tf32_and_the_fastest_algorithms(fast, monkeypatch):
    """cuDNN has a switch of its own: without it, the convolutions of "float32" pictures are TF32."""
    backends = torch.backends.cudnn
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    before = torch.get_float32_matmul_precision(), backends.allow_tf32, backends.benchmark
    try:
        setup_ranks("cuda", fast)
        found = torch.get_float32_matmul_precision(), backends.allow_tf32, backends.benchmark
    finally:
        torch.set_float32_matmul_precision(before[0])
        backends.allow_tf32, backends.benchmark = before[1:]
    assert found == (("high", True, True) if fast else ("highest", False, False))
    monkeypatch.setattr(ranks, "place", lambda: [1, 2, 1, 2])
    with pytest.raises(InputError, match="2 processes for 1 GPUs; give torchrun --nproc_per_node 1"):
        setup_ranks("cuda", fast)


def test_a_gradient_that_no_graph_has_is_left_out_of_the_log():
    """A compiled G is one node with two results, picture and G^f: nothing leads from the one to the other."""
    weight = torch.ones(3, requires_grad=True)
    features = 2 * weight
    eager, compiled = 3 * features, 6 * weight
    norms = [{name: norm.item() for name, norm in gradient_norms({"gan": term}, image, features).items()}
             for term, image in ((eager.sum(), eager), (compiled.sum(), compiled), (eager.sum().detach(), eager))]
    root = pytest.approx(3 ** 0.5)
    assert norms[0] == {"gan_gradient_image": root, "gan_gradient_features": pytest.approx(27 ** 0.5)}
    assert norms[1] == {"gan_gradient_image": root}
    assert norms[2] == {"gan_gradient_image": 0, "gan_gradient_features": 0}  # as of a term that is detached
    of_features, of_picture = (gradient_norms({"diversity": term.sum()}, eager, features) for term in (features, eager))
    assert set(of_features) == {"diversity_gradient_features"}, "Eq. 6 of G^f does not reach the picture"
    assert set(of_picture) == {"diversity_gradient_image", "diversity_gradient_features"}, "--diversity-of picture does"


def test_help_says_a_default_once():
    parser = new_parser("")
    for name, default, text in (("a", 3, "of one"), ("b", 3, "of two; default: all"), ("c", None, "of three"),
                                ("d", [], "of four")):
        parser.add_argument(f"--{name}", default=default, help=text)
    found = parser.format_help()
    assert found.count("default: 3") == 1 and found.count("default: all") == 1 and found.count("(default") == 1


@pytest.mark.parametrize("script", ["sample", "baselines.train"])
def test_help_needs_no_other_option_and_has_a_name_that_can_be_typed(script):
    command = ["-m", script] if "." in script else [f"{script}.py"]
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True)
    text = " ".join(done.stdout.split())
    typed = f"python -m {script}" if "." in script else f"{script}.py"
    assert done.returncode == 0 and text.startswith(f"usage: {typed} ")
    assert "default: None" not in text and "default: []" not in text and "--device" in text


def test_a_generator_that_reflects_its_borders_needs_two_pixels_at_its_lowest_scale():
    G = Generator(3, widths=(8, 8, 8), stem_channels=4, label_channels=4, z_dim=4, padding="reflect").eval()
    draw = lambda side: G(torch.zeros(1, side, side, dtype=torch.int64), torch.zeros(1, 4))
    with pytest.raises(RuntimeError, match="Padding size"):
        draw(G.downsampling)
    with pytest.raises(InputError, match=f"expected sides of {2 * G.downsampling} or more"):
        check_sides((G.downsampling, 64), G.downsampling, padding=G.first.padding_mode)
    check_sides((2 * G.downsampling, 64), G.downsampling, padding=G.first.padding_mode)
    assert draw(2 * G.downsampling).isfinite().all()


def test_scores_are_without_tf32_also_while_training():
    torch.set_float32_matmul_precision("high")
    try:
        with fid.scoring_precision():
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_ranks_that_restart_meet_each_other_and_not_the_dead(monkeypatch):
    """Two attempts over one store, as torchrun's agents keep it; rank 1 comes first, and died once before rank 0."""
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    join = lambda rank: ranks.store_of_ranks("ranks", rank, 2, seconds=20)
    for attempt in range(2):
        with ThreadPoolExecutor(3) as pool:
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))  # of one agent; the other may count less
            server.set("ranks/says 1", "of one that died")
            late = pool.submit(join, 0)
            time.sleep(0.3)
            stores = [late, pool.submit(join, 1)]
            one, other = (store.result() for store in stores)
        assert not one.check(["address"]), "what an earlier attempt has told"
        one.set("address", f"of attempt {attempt}")
        assert other.get("address").decode() == f"of attempt {attempt}"
