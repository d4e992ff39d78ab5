"""Check what you wrote in a lab:   python labs/check.py 04   (or: all)

It puts each of your functions in the place of the project's, runs the project's own tests of that equation (plain loops
from the paper, tests/), and prints one line a task: passed, or what was expected, what came, and where to look.
Exit code 0: all passed; 1: something failed or is not written yet; 2: no such lab, or pytest is missing.
"""
import argparse
import contextlib
import functools
import re
import signal
import sys
from collections import namedtuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402, after the line that finds the project
import torch  # noqa: E402

from labs.pieces import (LABS, ROOT, Unreadable, first_line, lab_folders, mistakes_of, name_of, one_line,  # noqa: E402
                         open_lab, put_in, remake, where)
from support.errors import InputError, run_script  # noqa: E402

try:
    import pytest
except ImportError:
    pytest = None

SECONDS = 60  # for a lab; a loop that never ends is stopped
NOT_NEEDED = ("terminal", "cacheprovider", "faulthandler", "warnings", "unraisableexception", "threadexception")
QUIET = (*(word for name in NOT_NEEDED for word in ("-p", f"no:{name}")), "--capture=no", "--rootdir", str(ROOT))

# test: its name. text: what was expected and what came. error: what was raised.
Failure = namedtuple("Failure", ("test", "text", "error"))


# ------------------------------------------------------------------------------------------ running the tests

class Tests:
    """The tests named by some tasks, collected once. run(task, function) as often as you like, within work(tests)."""

    def __init__(self, work):
        self.work, self.failures, self.result = work, [], None

    def pytest_runtestloop(self, session):
        self.items = session.items
        self.result = self.work(self)
        return True

    def pytest_runtest_makereport(self, item, call):
        """Keep what was raised. pytest's own report, with the source of every function on the way, takes far longer."""
        failed = call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception)
        if failed:
            self.failures.append((item.name, call.excinfo.value))
        return pytest.TestReport(item.nodeid, item.location, {}, "failed" if failed else "passed", None, call.when)

    def run(self, task, function):
        """[Failure, ...] of a task with this function in the place of the project's."""
        self.failures, returned = [], []
        torch.manual_seed(0)
        with put_in({task.target: watched(function, returned)} if task.target else {}), in_numbers():
            for test in task.tests:
                if callable(test):
                    try:
                        test(watched(function, returned))
                    except Exception as error:  # whatever a student's function can raise
                        self.failures.append((test.__name__, error))
                    continue
                items = [item for item in self.items if re.match(re.escape(f"tests/{test}") + r"(\[|$)", item.nodeid)]
                assert items, f"{test}: no such test"
                for item in items:
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return [Failure(name, text_of(error, returned), error) for name, error in self.failures]


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
            a, e = (np.asarray(t.detach() if isinstance(t, torch.Tensor) else t, dtype=np.float64)
                    for t in (actual, expected))
            if a.shape != e.shape:
                raise AssertionError(f"{what}: shape {e.shape} was expected, {a.shape} came") from None
            apart = np.nan_to_num(np.abs(a - e), nan=np.inf)
            at = np.unravel_index(apart.argmax(), apart.shape)
            place = f" at [{', '.join(map(str, map(int, at)))}]" if at else ""
            raise AssertionError(f"{what}: {e[at]:.4g} was expected{place}, {a[at]:.4g} came") from None
    return compared


def text_of(error, returned):
    if isinstance(error, AssertionError):
        return first_line(error)
    after = f"; the function had returned {returned[0]}" if returned and returned[0] != "nothing yet" else ""
    return f"{one_line(error)}{after}"


# ------------------------------------------------------------------------------------------ a student's work

def check_lab(number, labs=LABS):
    """Print a line a task -> whether all passed. Raises InputError for no such lab, Unreadable for a broken lab.py."""
    lab = open_lab(number, labs)
    print(f"{name_of(lab.file)}")
    with at_most(SECONDS):
        lines = with_tests(lab.tasks, lambda tests: [(task.name, verdict(lab, task, tests)) for task in lab.tasks])
    for name, line in lines:
        print(f"  {name:<{max(len(n) for n, _ in lines)}}  {line}")
    return all(line == "passed" for _, line in lines)


def verdict(lab, task, tests):
    """"passed", or one line."""
    if task.name not in lab.functions:
        return f"FAILED: lab.py no longer has {task.name}"
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
    return f"FAILED: {text}.{named} {look}"


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
def at_most(seconds):
    """TooSlow is raised in what runs after so many seconds, where the system has an alarm."""
    def ring(*_):
        raise TooSlow(f"this takes longer than {seconds} s")
    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


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
    run_script("check.py", lambda: sys.exit(main(sys.argv[1:])))
