"""The house stays in order: arrows one way, files and functions of one sitting, a README that names every room.

Everything is read from the source, nothing is imported. The last tests put one fault each into a copy of the tree.
"""
import ast
import io
import re
import shutil
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAPER_FILES = ("generator", "discriminator", "losses", "data", "train", "sample", "evaluate")
BASELINE_WORDS = re.compile("oasis|dp-?gan|iidm", re.I)
NO_BASELINE_WORD = ("generator", "discriminator", "losses", "data", "train")
# Who may import whom, by file or folder. Within a folder the circle test alone decides.
ARROWS = {
    "support": set(),
    "readers": {"support"},
    "metrics": {"support", "readers"},
    "generator": set(),
    "discriminator": {"support"},
    "losses": {"support"},
    "data": {"readers", "support"},
    "sample": {"generator", "data", "readers", "support"},
    "train": {"generator", "discriminator", "losses", "data", "sample", "metrics", "support"},
    "evaluate": {"generator", "data", "sample", "readers", "metrics", "support"},
    "baselines": {*PAPER_FILES, "readers", "metrics", "support"},
    "tables": {*PAPER_FILES, "baselines", "readers", "metrics", "support"},
    "paint": {*PAPER_FILES, "baselines", "readers", "metrics", "support"},
    "labs": {*PAPER_FILES, "baselines", "tables", "readers", "metrics", "support"}}
OPTIONAL = {"timm", "transformers", "onnxruntime", "resource"}  # resource: not on Windows
FILE_LINES, README_LINES, COLUMNS, FUNCTION_LINES, LOOP_LINES = 400, 200, 120, 60, 100
LOOPS = {("train", "loop"), ("baselines.iidm.train", "loop")}


def modules(root):
    """{dotted name: its tree} of the source without tests."""
    files = [f for f in root.rglob("*.py") if not {"tests", ".venv"} & set(f.relative_to(root).parts)]
    names = [".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for f in files]
    return {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in zip(names, files)}


def imports_of(name, tree, house):
    """(module of the house or package, line, whether inside a function) of every import."""
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [w if w in house else node.module for w in whole]
        else:
            continue
        yield from ((module, node.lineno, id(node) in inside) for module in set(found))


def faults_of(root):
    """Every fault of the tree under `root`, as texts."""
    house, faults = modules(root), []
    arrows = {name: set() for name in house}
    for name, tree in house.items():
        room = name.split(".")[0]
        for module, line, inside in imports_of(name, tree, house):
            target = module.split(".")[0]
            if inside and target not in OPTIONAL:
                faults.append(f"{name}:{line}: {module} is imported inside a function")
            if module in house:
                arrows[name].add(module)
                if target != room and target not in ARROWS[room]:
                    faults.append(f"{name}:{line}: {room} must not import {target}")
        for f in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            lines, limit = f.end_lineno - f.lineno + 1, LOOP_LINES if (name, f.name) in LOOPS else FUNCTION_LINES
            if lines > limit:
                faults.append(f"{name}: {f.name} has {lines} lines, at most {limit}")
    faults += [f"a circle of imports: {' -> '.join(circle)}" for circle in circles(arrows)]
    for name in PAPER_FILES:
        lines = (root / f"{name}.py").read_text(encoding="utf-8").splitlines()
        if len(lines) > FILE_LINES:
            faults.append(f"{name}.py has {len(lines)} lines, at most {FILE_LINES}")
    for name in NO_BASELINE_WORD:
        found = BASELINE_WORDS.findall(code_of((root / f"{name}.py").read_text(encoding="utf-8")))
        faults += [f"{name}.py: the word {word} outside of comments" for word in found]
    for file in sorted(root.rglob("*.py")):
        if ".venv" not in file.parts:
            faults += [f"{file.name}:{n}: {len(line)} columns" for n, line in
                       enumerate(file.read_text(encoding="utf-8").splitlines(), 1) if len(line) > COLUMNS]
    return faults


def circles(arrows):
    """Each circle of the graph {name: set of names}, once."""
    found, done = [], set()

    def visit(name, path):
        if name in path:
            found.append([*path[path.index(name):], name])
        elif name not in done:
            for target in arrows[name]:
                visit(target, [*path, name])
            done.add(name)
    for name in arrows:
        visit(name, [])
    return found


def code_of(source):
    """The source without comments and docstrings."""
    docstrings = {n.body[0].lineno for n in ast.walk(ast.parse(source))
                  if isinstance(n, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(n)}
    return " ".join(t.string for t in tokenize.generate_tokens(io.StringIO(source).readline)
                    if t.type != tokenize.COMMENT and not (t.type == tokenize.STRING and t.start[0] in docstrings))


def test_the_house_is_in_order():
    assert not faults_of(ROOT)


def test_readme_is_short_and_names_every_file():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= README_LINES
    tracked = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                             capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    files = [Path(f) for f in tracked.stdout.split() if (ROOT / f).is_file() and Path(f).name != "__init__.py"]
    missing = [f.as_posix() for f in files if f.name not in readme and f.stem not in readme.split("## Files")[1]]
    assert not missing


@pytest.mark.parametrize("file, text, fault", [
    ("losses.py", "import baselines.oasis\n", "losses must not import baselines"),
    ("metrics/fid.py", "import sample\n", "metrics must not import sample"),
    ("tables/rows.py", "import labs.check\n", "tables must not import labs"),
    ("support/errors.py", "import support.ranks\n", "a circle of imports"),
    ("generator.py", "def f():\n    import data\n", "imported inside a function"),
    ("generator.py", "def f():\n" + "    pass\n" * 60, "f has 61 lines, at most 60"),
    ("data.py", "\n" * 400, "data.py has"),
    ("train.py", "OASIS = 1\n", "the word OASIS outside of comments"),
    ("sample.py", "x = " + "1" * 120 + "\n", "124 columns")])
def test_a_fault_is_found(tmp_path, file, text, fault):
    shutil.copytree(ROOT, tmp_path / "house", ignore=shutil.ignore_patterns(
        ".git", ".venv", "runs", "docs", "tests", "__pycache__", "*.png"))
    with open(tmp_path / "house" / file, "a", encoding="utf-8") as opened:
        opened.write("\n" + text)
    assert any(fault in found for found in faults_of(tmp_path / "house"))
