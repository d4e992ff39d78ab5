"""The labs: an untouched lab fails, the project's own functions pass, every plausible mistake is caught and named.

    python -m pytest tests/test_labs.py

Oracles: the project's own tests, which labs/check.py runs; the project's own functions, remade from their source, with
and without the one changed text of each mistake; train.py's numbers for labs/train.py's. Handouts are held against the
files that they quote.
"""
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import generator
import train
from labs import check
from labs import train as labs_train
from labs.pieces import LABS, find, lab_folders, load, mistakes_of, open_lab, put_in, remake, source_of
from support.errors import InputError
from test_train import SMALL, shrink

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = lab_folders()
NAMES = [folder.name for folder in FOLDERS]
HANDOUTS = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
            for file in sorted(LABS.rglob("README.md"))}


# ------------------------------------------------------------------------------------------- every lab

@pytest.mark.parametrize("name", NAMES)
def test_untouched_fails_the_projects_own_passes_and_every_mistake_is_caught_and_named(name):
    """Named: no other mistake of its task fails the same tests with the same numbers."""
    lab, faults = open_lab(name[:2]), []

    made = [(task, remake(task, lab), {what: remake(task, lab, change) for what, *change in mistakes_of(lab, task)})
            for task in lab.tasks]

    def work(tests):
        return [(task, tests.run(task, lab.functions[task.name]), tests.run(task, own),
                 {what: tests.run(task, wrong) for what, wrong in mistakes.items()}) for task, own, mistakes in made]
    for task, untouched, own, mistakes in check.with_tests(lab.tasks, work):
        if not untouched or not all(isinstance(f.error, NotImplementedError) for f in untouched):
            faults.append(f"{task.name} as given: {untouched}")
        faults += [f"{task.name}: the project's own fails {failure.test}: {failure.text}" for failure in own]
        if len(mistakes) < 3:
            faults.append(f"{task.name} has {len(mistakes)} mistakes, at least 3 were expected")
        for what, failures in mistakes.items():
            alike = [other for other in mistakes if check.same(mistakes[other], failures)]
            if not failures:
                faults.append(f"{task.name} {what}: not caught")
            elif alike != [what]:
                faults.append(f"{task.name}: these look the same to the tests: {alike}")
    assert not faults, "\n".join(faults)


def test_there_are_mistakes_enough():
    """At least sixty, once all twelve labs are there: five a lab."""
    count = sum(len(mistakes) for folder in FOLDERS for mistakes in load(folder / "mistakes.py").MISTAKES.values())
    assert count >= 5 * len(FOLDERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_lab_has_its_files_and_an_untouched_lab_py_has_only_pieces_to_write(name):
    lab = open_lab(name[:2])
    for file in ("README.md", "lab.py", "tasks.py", "mistakes.py"):
        assert (lab.folder / file).is_file(), file
    for picture in lab.folder.glob("*.png"):
        assert picture.stat().st_size < 60_000, f"{picture.name} is too large"
        assert picture.name in HANDOUTS[f"labs/{name}/README.md"], f"{picture.name} is not shown"
    assert not lab.written, f"already written: {lab.written}"
    for task in lab.tasks:
        assert lab.functions[task.name].__doc__, f"{task.name} has no docstring"
        assert task.target is None or callable(find(task.target)[2])


# ------------------------------------------------------------------------------------------- a student's lab.py

def copy_of(tmp_path, name, **bodies):
    """labs/NAME in a folder of its own, some functions written: bodies {function: lines in place of the raise}."""
    shutil.copytree(LABS / name, tmp_path / name, dirs_exist_ok=True)
    file = tmp_path / name / "lab.py"
    text = file.read_text(encoding="utf-8")
    for function, body in bodies.items():
        head, tail = text.split(f"def {function}(")
        written = "".join(f"    {line}\n" for line in body.splitlines())
        tail = re.sub(r"    raise NotImplementedError\(.*\n", lambda _: written, tail, count=1)
        text = f"{head}def {function}({tail}"
    file.write_text(text, encoding="utf-8")
    return tmp_path


def lines_of(labs, number, capsys):
    """{task: its line} of check_lab."""
    check.check_lab(number, labs)
    return dict(re.findall(r"^  (\w+) +(.+)$", capsys.readouterr().out, re.M))


ATTENTION = "return torch.einsum('btn,bnd->btd', torch.einsum('btd,bnd->btn', query, key){}.softmax(-1), value)"


@pytest.mark.parametrize("body, expected", [
    (ATTENTION.format(".div(query.shape[-1] ** 0.5)"), r"passed"),
    (ATTENTION.format(""), r"FAILED: attention\(\) is not SoftMax.* -?[\d.]+ was expected at \[\d, \d, \d\], -?[\d.]+ "
                           r"came\. This is what comes out without the division by sqrt\(d_q\)\. Look at Sec\. 3\.2, "
                           r"Eq\. 1, and tests: test_eq1_attention_is_the_papers_formula\."),
    ("return 3 * value", r"FAILED: .* shape \(2, 6, 4\) was expected, \(2, 3, 4\) came\. Look at .*"),
    ("pass", r"FAILED: the function returned None: is a `return` missing\? Look at .*"),
    ("x = 1\nreturn x / 0", r"FAILED: \S*lab\.py line \d+: ZeroDivisionError: division by zero\. Look at .*"),
    ("return losses.attention(query, key, value)", r"FAILED: \S*lab\.py line \d+: NameError: .*losses.*")])
def test_what_the_check_says_of_a_students_attention(tmp_path, capsys, body, expected):
    """Written in another way than the project's; one line, whatever happens."""
    labs = copy_of(tmp_path, "04_noise_by_attention", attention=body)
    lines = lines_of(labs, "4", capsys)
    assert re.fullmatch(expected, lines["attention"]), lines["attention"]
    assert lines["inject_noise"].startswith("not written yet: Eq. 2")


def test_a_wrong_dtype_is_said_in_words():
    with check.in_numbers(), pytest.raises(AssertionError, match="^A: dtype torch.float32 was expected, torch.int64"):
        torch.testing.assert_close(torch.zeros(2).long(), torch.zeros(2), msg=lambda text: f"A\n{text}")


@pytest.mark.parametrize("text, expected", [
    ("def f(:\n", r"\S*lab\.py line 1: SyntaxError: .*"),
    ("import torch\n\nx = torch.zeros(2) @ torch.zeros(3)\n", r"\S*lab\.py line 3: RuntimeError: .*")])
def test_a_lab_py_that_cannot_be_read_is_one_line_and_exit_code_1(tmp_path, capsys, monkeypatch, text, expected):
    copy_of(tmp_path, "04_noise_by_attention")
    (tmp_path / "04_noise_by_attention" / "lab.py").write_text(text)
    monkeypatch.setattr(check.check_lab, "__defaults__", (tmp_path,))
    assert check.main(["04"]) == 1
    assert re.fullmatch(f"FAILED: {expected}\n", capsys.readouterr().out)
    with pytest.raises(InputError, match=expected):
        labs_train.main([], tmp_path)


def test_an_endless_loop_is_stopped(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 1)
    labs = copy_of(tmp_path, "04_noise_by_attention", tokens_of_noise="while True:\n    pass")
    assert re.search(r"lab\.py line \d+: TooSlow: ", lines_of(labs, "04", capsys)["tokens_of_noise"])


def test_the_command_ends_with_1_for_an_untouched_lab_and_a_lab_that_is_not_there_is_bad_input():
    """One line a task, no stack trace; from any folder."""
    done = subprocess.run([sys.executable, LABS / "check.py", "4"], capture_output=True, text=True, cwd=LABS)
    assert done.returncode == 1 and not done.stderr and done.stdout.count("\n") == 1 + 3, done
    with pytest.raises(InputError, match="there is no lab 99; there are .*04"):
        check.main(["99"])


def test_without_pytest_there_is_one_line(monkeypatch):
    monkeypatch.setattr(check, "pytest", None)
    with pytest.raises(InputError, match="pip install pytest"):
        check.main(["04"])


# ------------------------------------------------------------------------------------------- put in

def test_functions_are_put_in_wherever_their_name_was_imported_and_taken_out_again():
    def mine(*_):
        raise NotImplementedError
    before = train.generator_loss, train.DP_SIMS, generator.CrossAttention.forward
    with put_in({"losses.generator_loss": mine, "train.weigh": mine, "generator.CrossAttention.forward": mine}):
        assert train.generator_loss is train.weigh is train.DP_SIMS.weigh is generator.CrossAttention.forward is mine
    assert before == (train.generator_loss, train.DP_SIMS, generator.CrossAttention.forward)
    assert train.DP_SIMS.weigh is train.weigh is not mine


def test_options_that_a_lab_leaves_out_are_dropped_where_they_are_none():
    """The project's attention has a fourth argument, that of the lab has three."""
    torch.manual_seed(0)
    block, h, w = generator.CrossAttention(4, 5), torch.randn(2, 4, 2, 3), torch.randn(2, 3, 5)
    torch.nn.init.constant_(block.eta, 0.7)
    expected = block(h, w)

    def mine(query, key, value):
        return generator.fused_attention(query, key, value)
    with put_in({"generator.attention": mine}):
        torch.testing.assert_close(block(h, w), expected)
        with pytest.raises(TypeError, match="positional"):
            generator.attention(h, h, h, h)


def solved(folder):
    """All labs, each lab.py with the project's own functions at its end, as text. -> folder"""
    for lab in (open_lab(name[:2]) for name in NAMES):
        copy_of(folder, lab.folder.name)
        tasks = [task for task in lab.tasks if task.target]
        text = "".join(f"from {module} import *\n" for module in {find(t.target)[2].__module__ for t in tasks})
        for task in tasks:
            text += "\n\n" + re.sub(r"^(def|class) \w+", rf"\1 {task.name}", source_of(task, lab), count=1, flags=re.M)
        with open(folder / lab.folder.name / "lab.py", "a", encoding="utf-8") as file:
            file.write(f"\n\n{text}")
    return folder


def metrics(folder):
    """metrics.jsonl without what a clock or the machine says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k and "memory" not in k} for line in lines]


def test_all_labs_solved_train_as_train_py_does_bit_for_bit(tmp_path, capsys):
    """The numbers of metrics.jsonl over three steps, with every function of the labs in its place, and the words which
    pieces are whose. An untouched lab trains, too: on the project's pieces alone."""
    targets = [task.target for name in NAMES for task in open_lab(name[:2]).tasks if task.target]
    options = [*SMALL, "--steps", "3"]
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        train.train(train.parse_options([*options, "--output-dir", str(tmp_path / "project")]), train.DP_SIMS)
        capsys.readouterr()
        labs_train.main([*options, "--output-dir", str(tmp_path / "student")], solved(tmp_path / "labs"))
        words = capsys.readouterr().out
        labs_train.main([*options, "--steps", "1", "--output-dir", str(tmp_path / "untouched")])
    assert len(metrics(tmp_path / "project")) == 3
    assert metrics(tmp_path / "student") == metrics(tmp_path / "project")
    assert metrics(tmp_path / "untouched") == metrics(tmp_path / "project")[:1]
    for target in targets:
        assert re.search(rf"^  {re.escape(target)} +yours, ", words, re.M), f"{target}: {words}"
    assert "yours" not in capsys.readouterr().out


@pytest.mark.parametrize("body, expected", [
    ("return h + block.eta * nonsense", r"\S*lab\.py line \d+: NameError: .*nonsense.*"),
    ("pass", r"the project cannot go on with .*python labs/check\.py all says which")])
def test_a_mistake_that_stops_the_training_is_one_line(tmp_path, body, expected):
    labs = copy_of(tmp_path / "labs", "04_noise_by_attention", inject_noise=body)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError) as error:
        shrink(patch)
        labs_train.main([*SMALL, "--steps", "1", "--output-dir", str(tmp_path / "run")], labs)
    assert re.fullmatch(expected, str(error.value)), error.value
    assert "eta" in generator.CrossAttention.forward.__code__.co_names, "the project's own is back in its place"


# ------------------------------------------------------------------------------------------- the handouts

@pytest.mark.parametrize("page", HANDOUTS)
def test_what_a_handout_names_exists(page):
    """`file.py:name` and `file.py:Class.method`, files, links, pictures, and the commands' scripts."""
    text = HANDOUTS[page]
    for file, name in re.findall(r"`((?:\w+/)*\w+\.py):([\w.]+)`", text):
        body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        for part in name.split("."):
            found = {getattr(node, "name", None): node for node in body} | {
                target.id: node for node in body if isinstance(node, ast.Assign) for target in node.targets
                if isinstance(target, ast.Name)}
            assert part in found, f"{page}: {file} has no {name}"
            body = getattr(found[part], "body", [])
    for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", text) + re.findall(r'src="(\S+)"', text):
        assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"
    for script in re.findall(r"^ *python ((?:\w+/)*\w+\.py)", text, re.M):
        assert (ROOT / script).is_file(), f"{page}: {script}"


@pytest.mark.parametrize("page", HANDOUTS)
def test_quoted_lines_are_lines_of_the_file(page):
    """A python block that begins with "# FILE.py" quotes lines of that file in their order; ... leaves some out."""
    for block in re.findall(r"```python\n(.*?)```", HANDOUTS[page], re.S):
        first, *quoted = block.splitlines()
        found = re.fullmatch(r"# ((?:\w+/)*\w+\.py)", first)
        assert found, f"{page}: a python block must begin with the name of its file, not with {first}"
        lines = iter(line.strip() for line in (ROOT / found[1]).read_text(encoding="utf-8").splitlines())
        for line in (line.strip() for line in quoted):
            assert line in ("", "...") or line in lines, f"{page}: no line of {found[1]}, or not in this place: {line}"


def test_labs_readme_lists_every_lab():
    table = HANDOUTS["labs/README.md"]
    for name in NAMES:
        assert f"({name}/README.md)" in table, f"{name} is not in the table"
        assert f"labs/{name}/README.md" in HANDOUTS, f"{name} has no handout"
