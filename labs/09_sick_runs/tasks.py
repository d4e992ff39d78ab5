"""What python labs/check.py 09 asks of lab.py: the name of what is wrong with each run."""
from pathlib import Path

from labs.pieces import Task, load

TEACHERS = load(Path(__file__).with_name("defects.py"))


def right_name(number):
    def the_signs_fit(answer_of_run):
        answer, names = answer_of_run(), TEACHERS.in_order()
        assert answer in names, f"one of NAMES was expected, {answer!r} came"
        assert answer == names[number - 1], f'it is not "{answer}". There: {TEACHERS.DEFECTS[answer].sign}'
    return the_signs_fit


TASKS = [Task(f"run_{n}", None, f"run_{n:02d}/ beside run_00/, and the handout",
              [right_name(n)]) for n in range(1, 11)]
