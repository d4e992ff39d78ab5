"""Lab 09: reading a sick run. Ten runs, each with one thing wrong: return what, one of NAMES, from each function.

    python labs/check.py 09          (as often as you like; it says what a wrong name would have shown)

Run N is strip.png and metrics.jsonl in labs/09_sick_runs/run_NN, or your own: python labs/sick.py N. Run 0 is healthy.
Each name is right for one run. The handout says what each name means, and what the columns and numbers are.
"""

NAMES = ("D hardly learns", "G hardly learns", "alpha upside down", "average not refreshed", "detached too early",
         "labels shifted", "never told fake", "one z twice", "pictures in [0, 1]", "wrong pairs")


def run_1():
    """What is wrong with run 1. -> one of NAMES, a text"""
    raise NotImplementedError("run 1: one of NAMES")


def run_2():
    """What is wrong with run 2. -> one of NAMES, a text"""
    raise NotImplementedError("run 2: one of NAMES")


def run_3():
    """What is wrong with run 3. -> one of NAMES, a text"""
    raise NotImplementedError("run 3: one of NAMES")


def run_4():
    """What is wrong with run 4. -> one of NAMES, a text"""
    raise NotImplementedError("run 4: one of NAMES")


def run_5():
    """What is wrong with run 5. -> one of NAMES, a text"""
    raise NotImplementedError("run 5: one of NAMES")


def run_6():
    """What is wrong with run 6. -> one of NAMES, a text"""
    raise NotImplementedError("run 6: one of NAMES")


def run_7():
    """What is wrong with run 7. -> one of NAMES, a text"""
    raise NotImplementedError("run 7: one of NAMES")


def run_8():
    """What is wrong with run 8. -> one of NAMES, a text"""
    raise NotImplementedError("run 8: one of NAMES")


def run_9():
    """What is wrong with run 9. -> one of NAMES, a text"""
    raise NotImplementedError("run 9: one of NAMES")


def run_10():
    """What is wrong with run 10. -> one of NAMES, a text"""
    raise NotImplementedError("run 10: one of NAMES")
