"""The pieces of a lab: what a student wrote, what it stands for in the project, and how it is put in its place.

    Task        one function to write, what it stands for, and the tests that it must pass
    open_lab    labs/NN_name -> its tasks and what the student wrote, in a Lab
    put_in      the student's functions in the place of the project's, for a while
    remake      the project's own function once more, with one text of its source changed: a plausible mistake

check.py and train.py use these; labs/README.md says which files a lab has.
"""
import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import textwrap
import traceback
from collections import namedtuple
from pathlib import Path

LABS = Path(__file__).resolve().parent
ROOT = LABS.parent
sys.path[:0] = [str(folder) for folder in (ROOT, ROOT / "tests") if str(folder) not in sys.path]

from support.errors import InputError  # noqa: E402, after the line that finds it

# name: of the function in lab.py. target: "module.function", "module.Class.method" or "module.Class" of the project,
# None for a piece that the project does not have. paper: where to look. tests: "test_file.py::test_name" of tests/
# (with "[parameters]" or all), or functions of tasks.py, which get the student's function and assert.
Task = namedtuple("Task", ("name", "target", "paper", "tests"))
# functions: {name: what lab.py holds under it}. written: names of those that no longer end in NotImplementedError.
Lab = namedtuple("Lab", ("folder", "file", "tasks", "functions", "written"))


class Unreadable(Exception):
    """A lab.py that cannot be read. The message is one line: which line of it, and why."""


def lab_folders(labs=LABS):
    """The labs in order: folders labs/NN_name that have a lab.py."""
    return sorted(file.parent for file in labs.glob("[0-9][0-9]_*/lab.py"))


def open_lab(number, labs=LABS):
    """Lab `number`, "04" or "4". Raises InputError where there is none, Unreadable for a broken lab.py."""
    found = [folder for folder in lab_folders(labs) if folder.name[:2] == number.zfill(2)]
    if not found:
        raise InputError(f"there is no lab {number}; there are {', '.join(f.name[:2] for f in lab_folders(labs))}")
    folder, = found
    file = folder / "lab.py"
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        functions = vars(load(file))
    except SyntaxError as error:
        raise Unreadable(f"{name_of(file)} line {error.lineno}: {type(error).__name__}: {error.msg}") from None
    except Exception as error:  # whatever a student's file can raise
        raise Unreadable(f"{where(error, file) or name_of(file)}: {one_line(error)}") from None
    tasks = load(folder / "tasks.py").TASKS
    written = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
               and is_written(node)}
    return Lab(folder, file, tasks, functions, written & {task.name for task in tasks})


def load(file):
    """A Python file as a module. Its folder may begin with digits."""
    name = f"labs_{file.parent.name}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def is_written(function):
    """Whether a function (its tree) no longer raises NotImplementedError. For a class: all of its methods."""
    if isinstance(function, ast.ClassDef):
        return all(is_written(node) for node in function.body if isinstance(node, ast.FunctionDef))
    for statement in function.body:
        if isinstance(statement, ast.Return):
            return True
        if isinstance(statement, ast.Raise) and "NotImplementedError" in ast.unparse(statement):
            return False
    return True


# --------------------------------------------------------------------------------------- put in their places

def find(target):
    """"module.function" or "module.Class.method" -> (what holds it, its name, the function)."""
    *path, name = target.split(".")
    for length in range(len(path), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            holder = importlib.import_module(".".join(path[:length]))
            for part in path[length:]:
                holder = getattr(holder, part)
            return holder, name, getattr(holder, name)
    raise LookupError(target)


@contextlib.contextmanager
def put_in(functions):
    """{target: function}: in the place of the project's, wherever its name was imported, until the block ends."""
    with contextlib.ExitStack() as undo:
        for target, function in functions.items():
            holder, name, original = find(target)
            function = without_options(function, original)
            for place, attribute, value in [(holder, name, function), *copies(original, function)]:
                undo.callback(setattr, place, attribute, getattr(place, attribute))
                setattr(place, attribute, value)
        yield


def without_options(function, original):
    """function, or, where it takes less than the project's own, one that drops what the project gives as None: options
    of the project that the lab leaves out."""
    if isinstance(function, type) or takes_all_of(function, original):
        return function
    names = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args, **options):
        while len(args) > len(names) and args[-1] is None:
            args = args[:-1]
        return function(*args, **{k: v for k, v in options.items() if k in names or v is not None})
    return call


def takes_all_of(function, original):
    own, others = (inspect.signature(f).parameters for f in (function, original))
    return len(own) >= len(others) or any(p.kind == p.VAR_POSITIONAL for p in own.values())


def copies(old, new):
    """(module, name, what it should hold now): every copy that `from module import name` made, also in tuples of
    functions such as train.DP_SIMS."""
    for module in list(sys.modules.values()):
        if str(getattr(module, "__file__", None) or "").startswith(str(ROOT)) and module.__name__[:5] != "labs_":
            for name, value in list(vars(module).items()):
                if value is old:
                    yield module, name, new
                elif hasattr(value, "_fields") and isinstance(value, tuple) and any(part is old for part in value):
                    yield module, name, type(value)(*(new if part is old else part for part in value))


# ------------------------------------------------------------------------------------------------ mistakes

def source_of(task, lab):
    """The text of the project's own function; of SOLUTIONS in the lab's mistakes.py where the project has none."""
    if task.target is None:
        return textwrap.dedent(load(lab.folder / "mistakes.py").SOLUTIONS[task.name]).lstrip()
    holder, _, function = find(task.target)
    source = textwrap.dedent(inspect.getsource(function))
    return source.replace("super()", f"super({holder.__name__}, self)") if inspect.isclass(holder) else source


def remake(task, lab, change=None):
    """That function, made once more from its source; change: (old, new), a text to be replaced, which occurs once."""
    source, made = source_of(task, lab), {}
    if change is not None:
        old, new = change
        assert source.count(old) == 1, f"{task.name} has this {source.count(old)} times: {old}"
        source = source.replace(old, new)
    names = vars(sys.modules[find(task.target)[2].__module__]) if task.target else lab.functions
    exec(compile(source, f"<{task.name}>", "exec"), names, made)  # its globals stay those of its module
    return made[task.target.split(".")[-1] if task.target else task.name]


def mistakes_of(lab, task):
    """[(what comes out, old, new), ...], the teacher's."""
    return load(lab.folder / "mistakes.py").MISTAKES[task.name]


# ------------------------------------------------------------------------------------------------ in one line

def name_of(file):
    return file.relative_to(LABS.parent).as_posix() if LABS.parent in file.parents else str(file)


def where(error, file):
    """"labs/NN/lab.py line 12", the last line of that file on the way to the error, or None."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{name_of(file)} line {lines[-1]}" if lines else None


def one_line(error):
    """"TypeError: what was wrong", cut to one line."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(text, most=240):
    lines = str(text).strip().splitlines() or [""]
    return lines[0][:most]
