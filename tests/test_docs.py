"""README, docs/ and RESULTS.md say what the code does: commands parse and run, names exist, tables agree.

The two commands under "Start" run as written in .ci/run (the tests) and, with a tiny size, here (training). The page
docs/extending.md is followed in a copy of the code.
"""
import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import evaluate
import sample
import train
from baselines import train as baselines_train
from baselines.iidm import latency, scores
from baselines.iidm import sample as iidm_sample
from baselines.iidm import train as iidm_train
from conftest import ROOT
from discriminator import Discriminator
from generator import Generator, parameters_by_part
from metrics import fid, segmentation
from paint import __main__ as paint
from readers import ade20k
from readers.toy import TOY_CLASSES
from support.errors import InputError
from tables import compare, others
from tables.rows import ROWS
from test_evaluate import narrow  # noqa: F401

PAGES = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
         for file in (ROOT / "README.md", ROOT / "RESULTS.md", *sorted(ROOT.glob("docs/*.md")))}
README, EXTENDING = PAGES["README.md"], PAGES["docs/extending.md"]
SOURCES = [file for folder in (".", "readers", "metrics", "baselines", "baselines/iidm", "tables", "paint",
                               "support") for file in sorted((ROOT / folder).glob("*.py"))]


def commands_of(page):
    """The shell commands of a page: lines of its bash blocks, and indented ones."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.S) for line in block.splitlines()]
    return lines + re.findall(r"^ {4}((?:[A-Z]+=\S+ )?(?:python|torchrun) .*)$", page, re.M)


def split(command):
    """"torchrun --nproc_per_node 8 -m baselines.train --model oasis" -> "baselines.train", ["--model", "oasis"]."""
    words = shlex.split(command.split("&&")[-1])
    at = next(i for i, word in enumerate(words) if word.endswith(".py") or words[i - 1] == "-m")
    return words[at], words[at + 1:]


COMMANDS = [command for name, page in PAGES.items() if name != "docs/extending.md" for command in commands_of(page)
            if not command.startswith("pip ")]
TO_PARSE = sorted({command for command in COMMANDS
                   if split(command)[0] not in ("pytest", "tables.rows", "tables.scale", "baselines.latency",
                                                     "tests/campaign.py")})


def data_main(argv):
    sys.argv[1:] = argv
    data.main()


# What reads the options of each script; and those that go on until a file is missing.
PARSERS = {"train.py": train.parse_options, "baselines.train": baselines_train.parse_options,
           "baselines.iidm.train": iidm_train.parse_options, "baselines.iidm.sample": iidm_sample.parse_options,
           "evaluate.py": evaluate.parse_options, "baselines.evaluate": evaluate.parse_options,
           "tables.compare": compare.parse_options}
MAINS = {"data.py": data_main, "sample.py": sample.main, "baselines.sample": sample.main,
         "baselines.iidm.latency": latency.main, "baselines.iidm.scores": scores.main, "paint": paint.main,
         "readers.ade20k": ade20k.main, "tables.others": others.main}


@pytest.mark.parametrize("command", TO_PARSE)
def test_commands_parse(command, tmp_path, monkeypatch):
    script, argv = split(command)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script])
    if script in PARSERS:
        assert PARSERS[script](argv)
        return
    with pytest.raises(InputError, match="not there|expects|no such folder|no reference for 0 of the 0"):
        MAINS[script](argv)


def test_ci_runs_the_test_command_of_the_readme():
    command = next(c for c in COMMANDS if "pytest" in c)
    steps = [step.strip().replace(".venv/bin/", "") for step in command.split("&&")][1:]
    assert " && ".join(steps) in (ROOT / ".ci" / "run").read_text()


# ------------------------------------------------------------------------------------------- run as written

def run(words, folder):
    """python WORDS in `folder` -> what it printed."""
    result = subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, f"{words}: {result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The toy command of the README, shortened by options only -> {"picture": file, "checkpoint": file}."""
    folder = tmp_path_factory.mktemp("first")
    script, argv = split(next(c for c in COMMANDS if c.endswith("train.py --dataset toy")))
    tiny = ["--image-size", "32", "--batch-size", "4", "--steps", "2", "--backbone-weights", "random"]
    printed = run([ROOT / script, *argv, *tiny], folder)
    return {name: folder / path for name, path in re.findall(r"^(picture|checkpoint): +(\S+)$", printed, re.M)}


def test_the_first_command_ends_with_a_picture_and_a_checkpoint(first_run):
    assert set(first_run) == {"picture", "checkpoint"} and all(file.is_file() for file in first_run.values())


def test_the_readme_explains_every_entry_of_the_log(first_run):
    entries = json.loads((first_run["checkpoint"].parent / "metrics.jsonl").read_text().splitlines()[0])
    table = README.split("## How to read a run")[1]
    assert [name for name in entries if f"`{name}`" not in table] == ["step"]


def test_the_sampling_commands_draw_from_that_checkpoint(first_run, tmp_path, monkeypatch):
    """Also on my_map.png, which the lines in docs/datasets.md draw."""
    monkeypatch.chdir(tmp_path)
    lines, = re.findall(r"```python\n(.*?)```", PAGES["docs/datasets.md"], re.S)
    exec(lines, {})
    assert set(np.unique(Image.open("my_map.png"))) == {0, 3, 4, 5, 10}
    commands = [c for c in commands_of(README) if c.startswith("python sample.py")]
    assert len(commands) == 3
    for argv in (split(command)[1] for command in commands):
        argv[argv.index("--checkpoint") + 1] = str(first_run["checkpoint"])
        sample.main(argv)
        folder = argv[argv.index("--output-dir") + 1] if "--output-dir" in argv else "samples"
        assert Path(folder, "grid.png").is_file()


def test_the_scoring_command_scores_that_checkpoint(first_run, narrow, monkeypatch):
    argv = split(next(c for c in commands_of(README) if c.startswith("python evaluate.py --checkpoint")))[1]
    argv[argv.index("--checkpoint") + 1] = str(first_run["checkpoint"])
    monkeypatch.setattr(segmentation, "SAMPLES", 8)
    monkeypatch.setattr(fid, "CALIBRATION_SCENES", 2)
    tiny = ["--count", "6", "--samples", "2", "--segmenter-steps", "2", "--metrics", "fid,miou,diversity"]
    evaluate.main(argv + tiny)
    folder = first_run["checkpoint"].parent / "eval_0000002"
    assert set(json.loads((folder / "eval.json").read_text())["scores"]) == {"fid", "miou", "diversity"}
    assert (folder / "eval.png").is_file()


def test_the_toy_default_needs_no_download(monkeypatch, tmp_path):
    """With every way to torchvision's weights cut off, the toy preset builds all its networks."""
    def no_network(*_, **__):
        raise AssertionError("a download was tried")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(train, "PRETRAIN_STEPS", 2)
    monkeypatch.setattr(train, "EMA_BATCHES", 1)
    train.train(train.parse_options(["--dataset", "toy", "--steps", "1", "--image-size", "32", "--workers", "0",
                                     "--output-dir", str(tmp_path / "run"), "--picture-every", "0"]), train.DP_SIMS)
    assert json.loads((tmp_path / "run/options.json").read_text())["backbone_weights"] == "self"
    assert len(list((tmp_path / "run").glob("backbone_resnet18_*.pt"))) == 1


# ------------------------------------------------------------------------------------------- names and numbers

def test_what_the_commands_write_is_ignored_by_git():
    ignored = (ROOT / ".gitignore").read_text().split()
    for command in COMMANDS + commands_of(EXTENDING):
        for folder in re.findall(r"--output-dir (\w+)", command) + re.findall(r"--output (\S+)", command):
            assert folder in ignored or f"{folder}/" in ignored, f"{command}: {folder}"


def test_the_checkpoints_named_are_those_that_the_commands_write():
    runs = (train.parse_options(["--dataset", "toy"]), iidm_train.parse_options(["--dataset", "toy"]),
            baselines_train.parse_options(["--model", "oasis", "--dataset", "toy"]))
    named = {file for name, page in PAGES.items() if name != "RESULTS.md"
             for file in re.findall(r"runs/\S+/ema_\d+\.pt", page)}
    assert named == {f"{options.output_dir}/ema_{options.steps:07d}.pt" for options in runs}


def test_the_readme_has_the_class_numbers_of_the_toy_scenes():
    assert ", ".join(f"{c} {name}" for c, name in enumerate(TOY_CLASSES)) in README.replace("\n", " ")


def test_every_name_exists():
    """`file.py:name`, test files, links and pictures."""
    named = {pair for page in PAGES.values() for pair in re.findall(r"`((?:\w+/)*\w+\.py):(\w+)`", page)}
    assert len(named) > 40
    for file, name in named:
        body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        found = {getattr(node, "name", None) for node in body} | {
            target.id for node in body if isinstance(node, ast.Assign) for target in node.targets
            if isinstance(target, ast.Name)}
        assert name in found, f"{file} has no {name}"
    for page, text in PAGES.items():
        links = re.findall(r"\]\(([^)#:]+)[^):]*\)", text) + re.findall(r'src="(\S+)"', text)
        tests = [ROOT / file for file in re.findall(r"`(tests/test_\w+\.py)`", text)]
        for file in [(ROOT / page).parent / link for link in links] + tests:
            assert file.exists() or page == "docs/extending.md" and file.name == "test_total_variation.py", file


def rows_of(page):
    """{name: (options, paper's score)} of the rows in the tables of a page. A line may have several."""
    rows = {}
    for cells in (re.split(r"\s*\|\s*", line)[1:-1] for line in page.splitlines() if line.startswith("|")):
        names = re.findall(r"`([a-z]+[\w.-]*-[\w.-]+)`", cells[1])
        if names and len(cells) == 6:
            options, paper = (cell.split(", ") for cell in cells[3:5])
            options, paper = (of if len(of) == len(names) else [", ".join(of)] * len(names) for of in (options, paper))
            rows.update(zip(names, zip((text.strip("`") for text in options), paper)))
    return rows


def test_every_row_of_the_papers_tables_stands_on_its_page():
    rows = {**rows_of(PAGES["docs/rows.md"]), **rows_of(PAGES["docs/baselines.md"])}
    assert {name for name, row in ROWS.items() if row.paper} <= set(rows) <= set(ROWS)
    for name, (options, paper) in rows.items():
        assert options == ROWS[name].options and ROWS[name].paper in paper, name


def test_the_rows_of_iidms_table_2_stand_on_its_page():
    assert set(re.findall(r"^\|.*?`(iidm-table2-\w+)`", PAGES["docs/iidm.md"], re.M)) == set(iidm_sample.TABLE_2)


def test_every_equation_is_cited_in_code_docs_and_tests():
    code = "".join((ROOT / file).read_text(encoding="utf-8") for file in ("generator.py", "losses.py"))
    everything = "".join(file.read_text(encoding="utf-8") for file in SOURCES)
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").glob("test_*.py"))
    for number in range(1, 7):
        assert f"(Eq. {number})" in code, f"Eq. {number} in the code"
        assert f"(Eq. {number})" in tests and f"eq{number}_" in tests, f"a test of Eq. {number}"
        row = rf"^\| (.*\b)?{number}\b.*\|.*`(generator|losses)\.py"
        assert re.search(row, README, re.M), f"Eq. {number} in README"
    for paper, page, count in (("DP-GAN", "docs/baselines.md", 9), ("IIDM", "docs/iidm.md", 8)):
        rows = re.findall(rf"^\| {paper} Eq\. ([\d, ]+)", PAGES[page], re.M)
        assert {int(n) for row in rows for n in re.findall(r"\d+", row)} == set(range(1, count + 1)), page
        for number in range(1, count + 1):
            name = f"test_{paper.lower().replace('-', '')}_eq{number}_"
            assert f"({paper} Eq. {number})" in everything and name in tests, f"{paper} Eq. {number}"


@pytest.mark.parametrize("file", [file.relative_to(ROOT).as_posix() for file in SOURCES])
def test_every_departure_is_in_the_table(file):
    """One row for each PAPER comment."""
    comments = (ROOT / file).read_text(encoding="utf-8").count("PAPER: ")
    assert comments == len(re.findall(rf"^\| {re.escape(file)} \|", PAGES["docs/departures.md"], re.M))


def test_the_parameters_are_those_of_the_networks():
    sizes = (151, 0), (35, 2), (183, 2)
    with torch.device("meta"):  # shapes without numbers: nothing is drawn
        parts = [parameters_by_part(Generator(*size)) for size in sizes]
        trained = [sum(p.numel() for p in Discriminator(C, backbone_weights="random").parameters() if p.requires_grad)
                   for C, _ in sizes]
    rows = [[of[name] for of in parts] for name in parts[0]] + [[sum(of.values()) for of in parts], trained]
    for row in rows:
        assert f"| {' | '.join(f'{number:,}' for number in row)} |" in PAGES["docs/parameters.md"]


# ------------------------------------------------------------------------------------------- docs/extending.md

def follow(page, root):
    """Do in the tree `root` what the blocks of docs/extending.md say."""
    for how, name, block in re.findall(r"(New file|At the end of|In) `([\w/]+\.py)`:\n\n```\w+\n(.*?)```", page, re.S):
        file = root / name
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if how == "In":
            for hunk in re.split(r"^\.\.\.\n", block, flags=re.M):
                lines = [(line[:1], line[1:]) for line in hunk.splitlines(keepends=True)]
                old, new = ("".join(line for sign, line in lines if sign != gone) for gone in "+-")
                assert text.count(old) == 1, f"{name} has this {text.count(old)} times:\n{old}"
                text = text.replace(old, new)
        else:
            assert bool(text) == (how == "At the end of"), name
            text += ("\n\n" if text else "") + block
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")


def test_the_page_on_extending_can_be_followed(tmp_path):
    """A loss, a dataset, backbones and a row, put into a copy of the code as the page says, and used."""
    copy = tmp_path / "code"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "docs", "tests", "__pycache__"))
    follow(EXTENDING, copy)
    # the loss and the row: the row's own command, with the sizes of a test
    listed = next(line for line in run(["-m", "tables.rows"], copy).splitlines() if " total-variation " in line)
    script, argv = split(listed[listed.index("python "):])
    tiny = ["--dataset", "toy", "--image-size", "32", "--steps", "2", "--backbone-weights", "random", "--workers", "0",
            "--picture-every", "0", "--output-dir", tmp_path / "run"]
    run([script, *argv, *tiny], copy)
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert line["G_total_variation"] > 0 and line["total_variation_gradient_image"] > 0
    assert json.loads((tmp_path / "run/options.json").read_text())["lambda_tv"] == 0.1

    # the dataset, by the page's command; and in one process the loss's own test and both backbones
    for split_name in ("train", "val"):
        for n in range(2):
            (tmp_path / "DIR" / split_name).mkdir(parents=True, exist_ok=True)
            file = tmp_path / "DIR" / split_name / f"{n}.jpg"
            Image.new("RGB", (40, 30), (9, 99, 199)).save(file)
            Image.fromarray(np.full((30, 40), n + 1, np.uint8)).save(file.with_suffix(".png"))
    command = next(c for c in commands_of(EXTENDING) if c.startswith("python data.py"))
    printed = run([copy / "data.py", *split(command)[1]], tmp_path)
    assert "2 samples, 5 classes" in printed and (tmp_path / "data.png").is_file()
    check = "\n".join([
        "import runpy", "from discriminator import Backbone",
        "runpy.run_path('tests/test_total_variation.py')['test_total_variation_by_hand']()",
        "print([Backbone(name, 'random').channels for name in ('resnet34', 'efficientnet_b0')])"])
    assert run(["-c", check], copy).split("\n")[0] == "[(64, 128, 256, 512), (24, 40, 112, 320)]"
