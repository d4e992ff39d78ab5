"""README and code say the same: commands parse, named functions exist, equations and departures are all there.

The two commands under "Start" run as written in .ci/run (the tests) and, with a tiny size, here (training).
"""
import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compare
import train
from baselines import iidm

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("baselines/*.py"))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]


def test_ci_runs_the_test_command_of_the_readme():
    command = next(c for c in COMMANDS if "pytest" in c)
    steps = [step.strip().replace(".venv/bin/", "") for step in command.split("&&")][1:]
    assert " && ".join(steps) in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "train.py" in c])
def test_train_commands_parse(command):
    words = shlex.split(command.split("&&")[-1])
    parse = iidm.parse_options if "iidm" in words else train.parse_options
    options = parse(words[words.index(next(w for w in words if w.endswith("train.py"))) + 1:])
    assert options.steps > 0


def test_the_first_command_runs_as_written_at_a_tiny_size(tmp_path):
    """The toy command, shortened by options only; it ends by printing a picture and a checkpoint that exist, and
    the sampling and scoring commands of the README then work on that checkpoint."""
    words = shlex.split(next(c for c in COMMANDS if c.endswith("train.py --dataset toy")).split("&&")[-1])
    tiny = ["--image-size", "32", "--batch-size", "4", "--steps", "2", "--backbone-weights", "random", "--output-dir",
            str(tmp_path / "run")]
    result = subprocess.run([sys.executable, str(ROOT / words[1]), *words[2:], *tiny], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    paths = dict(re.findall(r"^(picture|checkpoint): +(\S+)$", result.stdout, re.M))
    assert set(paths) == {"picture", "checkpoint"} and all(Path(p).is_file() for p in paths.values())

    commands = [c for c in COMMANDS if c.startswith("python sample.py") and "--labels" not in c and "iidm" not in c]
    assert commands
    for i, command in enumerate(commands):
        words = shlex.split(command)[1:]
        words[words.index("--checkpoint") + 1] = paths["checkpoint"]
        result = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:], "--output-dir", str(tmp_path / str(i))],
                                capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / str(i) / "grid.png").is_file()

    words = shlex.split(next(c for c in COMMANDS if c.startswith("python evaluate.py --checkpoint")))[1:]
    words[words.index("--checkpoint") + 1] = paths["checkpoint"]
    tiny = ["--count", "6", "--samples", "2", "--segmenter-steps", "2", "--latency-modes", "eager"]
    result = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:], *tiny], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    scores = json.loads((tmp_path / "run/eval_0000002/eval.json").read_text())["scores"]
    assert set(scores) == {"fid", "miou", "diversity", "latency"} and (tmp_path / "run/eval_0000002/eval.png").is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "compare.py" in c])
def test_compare_commands_parse(command):
    assert compare.parse_options(shlex.split(command)[2:]).rows


def test_every_row_of_train_is_in_the_readme_and_every_row_there_exists():
    assert set(re.findall(r"^\|.*?`--row ([\w.-]+)", README, re.M)) == set(train.ROWS)


def test_the_rows_of_iidms_table_2_are_in_the_readme():
    assert set(re.findall(r"^\|.*?`(iidm-table2-\w+)`", README, re.M)) == set(iidm.TABLE_2)


def test_the_readme_names_the_checkpoints_that_its_commands_write():
    runs = (train.parse_options(["--dataset", "toy"]), iidm.parse_options(["--model", "iidm", "--dataset", "toy"]))
    assert set(re.findall(r"runs/\S+/ema_\d+\.pt", README)) == {f"{run.output_dir}/ema_{run.steps:07d}.pt" for run in runs}


def test_every_function_the_readme_names_exists():
    named = re.findall(r"`((?:baselines/)?\w+\.py):(\w+)`", README)
    assert len(named) > 15
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if hasattr(node, "name")}, f"{file} has no {name}"
    for file in set(re.findall(r"`(tests/\w+\.py)`", README)):
        assert (ROOT / file).is_file(), file


def test_every_equation_is_cited_in_code_readme_and_tests():
    code = "".join((ROOT / f).read_text(encoding="utf-8") for f in ("generator.py", "losses.py"))
    tests = "".join(f.read_text(encoding="utf-8") for f in (ROOT / "tests").glob("test_*.py"))
    for number in range(1, 7):
        assert f"(Eq. {number})" in code, f"Eq. {number} in the code"
        assert f"(Eq. {number})" in tests and f"eq{number}_" in tests, f"a test of Eq. {number}"
        assert re.search(rf"^\| (.*\b)?{number}\b.*\|.*`(generator|losses)\.py", README, re.M), f"Eq. {number} in README"
    code += "".join(f.read_text(encoding="utf-8") for f in SOURCES)
    for number in range(1, 10):
        assert f"(DP-GAN Eq. {number})" in code and f"test_dpgan_eq{number}_" in tests, f"DP-GAN Eq. {number}"
    for number in range(1, 9):
        assert f"(IIDM Eq. {number})" in code and f"test_iidm_eq{number}_" in tests, f"IIDM Eq. {number}"


def test_every_departure_is_in_the_readmes_table():
    """One row for each PAPER comment, file by file."""
    for file in SOURCES:
        comments = file.read_text(encoding="utf-8").count("PAPER: ")
        name = file.relative_to(ROOT).as_posix()
        rows = len(re.findall(rf"^\| {re.escape(name)} \|", README, re.M))
        assert comments == rows, f"{name}: {comments} PAPER comments, {rows} rows in the README's table"


def test_components_import_neither_each_other_nor_the_scripts():
    house = {f.stem for f in SOURCES} | {"baselines"}
    allowed = {"generator": set(), "discriminator": set(), "losses": set(), "data": set(), "oasis": {"generator", "discriminator"},
               "dpgan": {"generator", "baselines"},
               # its training runs by itself, with the run-keeping functions of train.py
               "iidm": {"generator", "data", "train", "evaluate"}, "sample": {"data", "generator", "baselines"},
               "train": {"data", "generator", "discriminator", "losses", "evaluate", "sample", "baselines"},
               "evaluate": {"data", "generator", "sample", "train", "baselines"},
               "compare": {"data", "evaluate", "generator", "sample", "train", "baselines"}}
    for file in SOURCES:
        imported = {name.split(".")[0] for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                    for name in ([node.module] if isinstance(node, ast.ImportFrom) else
                                 [a.name for a in node.names] if isinstance(node, ast.Import) else [])}
        assert imported & house <= allowed[file.stem], file.name


def test_the_toy_default_needs_no_download(monkeypatch, tmp_path):
    """With every way to torchvision's weights cut off, the toy preset builds all its networks."""
    def no_network(*_, **__):
        raise AssertionError("a download was tried")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(train, "PRETRAIN_STEPS", 2)
    train.train(train.parse_options(["--dataset", "toy", "--steps", "1", "--image-size", "32", "--workers", "0",
                                     "--output-dir", str(tmp_path / "run"), "--picture-every", "0"]))
    assert json.loads((tmp_path / "run/options.json").read_text())["backbone_weights"] == "self"
    assert len(list((tmp_path / "run").glob("backbone_resnet18_*.pt"))) == 1
