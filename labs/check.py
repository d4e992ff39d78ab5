"""Check what you wrote in a lab:   python labs/check.py 04   (or: all)

It puts each of your functions in the place of the project's, runs the project's own tests of that equation (plain loops
from the paper, tests/), and prints one line a task: passed, or what was expected, what came, and where to look.
A task that has used 60 s of the processor's time, which a loop does that never ends, is stopped. The clock has no say.
Exit code 0: all passed; 1: something failed or is not written yet; 2: no such lab, or pytest is missing.
"""
import argparse
import contextlib
import functools
import inspect
import re
import signal
import sys
import warnings
from collections import namedtuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402, after the line that finds the project
import torch  # noqa: E402

from labs.pieces import (LABS, ROOT, Unreadable, find, first_line, lab_folders, mistakes_of, name_of,  # noqa: E402
                         one_line, open_lab, put_in, remake, where)
from support.errors import InputError, run_script  # noqa: E402

try:
    import pytest
except ImportError:
    pytest = None

warnings.filterwarnings("ignore", "Unknown pytest.mark")  # of the plugin that is not needed here
SECONDS = 60  # of the processor's time, for one task; the project's own pieces need less than one
NOT_NEEDED = ("terminal", "cacheprovider", "faulthandler", "warnings", "unraisableexception", "threadexception")
QUIET = (*(word for name in NOT_NEEDED for word in ("-p", f"no:{name}")), "--capture=no", "--rootdir", str(ROOT))

# test: its name. text: what was expected and what came. error: what was raised.
Failure = namedtuple("Failure", ("test", "text", "error"))


# ------------------------------------------------------------------------------------------ running the tests

class Tests:
    """The tests named by some tasks, collected once. run(task, function) as often as you like, within work(tests)."""

    def __init__(self, work):
        self.work, self.failures, self.returned, self.gives, self.result = work, [], [], True, None

    def pytest_runtestloop(self, session):
        self.items = session.items
        self.result = self.work(self)
        return True

    def pytest_runtest_makereport(self, item, call):
        """Keep what was raised. pytest's own report, with the source of every function on the way, takes far longer."""
        failed = call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception)
        if failed:
            self.note(item.name, call.excinfo.value)
        return pytest.TestReport(item.nodeid, item.location, {}, "failed" if failed else "passed", None, call.when)

    def note(self, test, error):
        self.failures.append(Failure(test, text_of(error, self.returned, self.gives), error))

    def run(self, task, function):
        """[Failure, ...] of a task with this function in the place of the project's."""
        self.failures, self.returned = [], []
        self.gives = task.target is not None and returns_something(find(task.target)[2])
        torch.manual_seed(0)
        with put_in({task.target: watched(function, self.returned)} if task.target else {}), in_numbers():
            for test in task.tests:
                if callable(test):
                    try:
                        test(watched(function, self.returned))
                    except Exception as error:  # whatever a student's function can raise
                        self.note(test.__name__, error)
                    continue
                items = [item for item in self.items if re.match(re.escape(f"tests/{test}") + r"(\[|$)", item.nodeid)]
                assert items, f"{test}: no such test"
                for item in items:
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return self.failures


def with_tests(tasks, work):
    """work(tests) with the tests of these tasks collected -> what it returns."""
    names = sorted({str(ROOT / "tests" / test) for task in tasks for test in task.tests if not callable(test)})
    tests = Tests(work)
    if not names:
        return work(tests)
    code = pytest.main([*QUIET, *names], plugins=[tests])
    if code not in (0, 1):
        raise InputError(f"the project's tests cannot be collected (pytest's exit code {int(code)}): run python -m "
                         f"pytest {' '.join(sorted({name_of(Path(n.split('::')[0])) for n in names}))} to see why")
    return tests.result


def watched(function, returned):
    """The same function; what it returned last is described in returned[0]."""
    if isinstance(function, type):
        return function

    @functools.wraps(function)
    def watch(*args, **options):
        returned[:] = ["nothing yet"]
        value = function(*args, **options)
        returned[:] = [description(value)]
        return value
    return watch


def returns_something(function):
    """Whether a function of the project has a `return` with a value, so that None means a forgotten one."""
    return re.search(r"^\s+(return|yield)\b *[^\s#]", inspect.getsource(function), re.M) is not None


def description(value):
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{type(value).__name__} {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(description(v) for v in value)})"
    return repr(value)[:60]


@contextlib.contextmanager
def in_numbers():
    """assert_close and assert_allclose say what was expected and what came, at the place where they differ most."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, words in ((torch.testing, "assert_close", "msg"), (np.testing, "assert_allclose", "err_msg")):
            patch.setattr(module, name, saying_both(getattr(module, name), words))
        yield


def saying_both(compare, message):
    def compared(actual, expected, *args, **options):
        try:
            compare(actual, expected, *args, **options)
        except AssertionError as error:
            what = first_line(error) if callable(options.get(message)) else first_line(options.get(message) or "")
            what, both = what or "the result", (actual, expected)
            if all(isinstance(t, torch.Tensor) for t in both) and actual.dtype != expected.dtype:
                raise AssertionError(f"{what}: dtype {expected.dtype} was expected, {actual.dtype} came") from None
            a, e = (np.asarray(t.detach() if isinstance(t, torch.Tensor) else t, dtype=np.float64) for t in both)
            if a.shape != e.shape:
                raise AssertionError(f"{what}: shape {e.shape} was expected, {a.shape} came") from None
            apart = np.nan_to_num(np.abs(a - e), nan=np.inf)
            at = np.unravel_index(apart.argmax(), apart.shape)
            place = f" at [{', '.join(map(str, map(int, at)))}]" if at else ""
            digits = next((n for n in (4, 8, 12) if f"{e[at]:.{n}g}" != f"{a[at]:.{n}g}"), 17)
            mine, right = f"{a[at]:.{digits}g}", f"{e[at]:.{digits}g}"
            raise AssertionError(f"{what}: {right} was expected{place}, {mine} came") from None
    return compared


def text_of(error, returned, gives):
    if gives and returned == ["None"]:
        return "the function returned None: is a `return` missing?"
    if isinstance(error, AssertionError):
        return first_line(error)
    gave = returned and returned[0] not in ("nothing yet", "None")
    after = f"; the function had returned {returned[0]}" if gave else ""
    return f"{one_line(error)}{after}"


# ------------------------------------------------------------------------------------------ a student's work

def check_lab(number, labs=LABS):
    """Print a line a task -> whether all passed. Raises InputError for no such lab, Unreadable for a broken lab.py."""
    lab = open_lab(number, labs)
    print(f"{name_of(lab.file)}")
    lines = with_tests(lab.tasks, lambda tests: [(task.name, verdict(lab, task, tests)) for task in lab.tasks])
    for name, line in lines:
        print(f"  {name:<{max(len(n) for n, _ in lines)}}  {line}")
    return all(line == "passed" for _, line in lines)


def verdict(lab, task, tests):
    """"passed", or one line."""
    if task.name not in lab.functions:
        return f"FAILED: lab.py no longer has {task.name}"
    with at_most(SECONDS, lab.file):
        failures = tests.run(task, lab.functions[task.name])
    if not failures:
        return "passed"
    test, text, error = failures[0]
    if isinstance(error, NotImplementedError):
        return f"not written yet: {text.removeprefix('NotImplementedError: ').split('; the function')[0]}"
    look = f"Look at {task.paper}" + (f", and tests: {test}." if test.startswith("test_") else ".")
    line = where(error, lab.file)
    if line:
        return f"FAILED: {line}: {one_line(error)}. {look}"
    known = [what for what, *change in mistakes_of(lab, task)
             if same(tests.run(task, remake(task, lab, change)), failures)]
    named = f" This is what comes out {known[0]}." if known else ""
    return f"FAILED: {text}{'' if text.endswith('?') else '.'}{named} {look}"


def same(failures, others):
    """Whether the same tests failed with the same numbers, but for rounding."""
    if [f.test for f in failures] != [f.test for f in others]:
        return False
    number = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?|-?\binf\b|\bnan\b")
    for one, other in zip(failures, others):
        if number.sub("#", one.text) != number.sub("#", other.text):
            return False
        a, b = (np.array([float(n) for n in number.findall(f.text)]) for f in (one, other))
        if not np.allclose(a, b, rtol=2e-3, atol=1e-5, equal_nan=True):
            return False
    return True


class TooSlow(Exception):
    """A loop that does not end."""


@contextlib.contextmanager
def at_most(seconds, file):
    """TooSlow is raised in lab.py, a test or the project once so many seconds of the processor's time are used, and
    then every second, for further tests. Where the system has no such timer (Windows), nothing is stopped."""
    def ring(_, frame):
        while frame is not None and frame.f_code.co_filename != ring.__code__.co_filename:  # within this file: pytest
            if frame.f_code.co_filename.startswith((str(file), str(ROOT))):
                raise TooSlow(f"stopped after {seconds} s of the processor's time (a loop that does not end?)")
            frame = frame.f_back
    if not hasattr(signal, "SIGPROF"):
        yield
        return
    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def main(argv):
    """-> exit code 0 or 1. Raises InputError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", help="its number, or all")
    args = parser.parse_args(argv)
    if pytest is None:
        raise InputError("the check needs pytest: pip install pytest")
    torch.set_num_threads(1)
    numbers = [folder.name[:2] for folder in lab_folders()] if args.lab == "all" else [args.lab]
    passed = []
    for number in numbers:
        try:
            passed.append(check_lab(number))
        except Unreadable as error:
            print(f"FAILED: {error}")
            passed.append(False)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    run_script("check.py", lambda: main(sys.argv[1:]))
