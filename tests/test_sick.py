"""Lab 09's sick runs: each defect still fits the project and does what its name says; key and ready-made files fit.

    python -m pytest tests/test_sick.py

Oracle: the numbers of a first step that follow from the defect alone (0, tau_div), and the hashes of the names.
"""
import hashlib
import json
import re

import pytest
from PIL import Image

from labs import sick
from labs.pieces import load
from support.checkpoints import read_lines
from support.errors import InputError
from test_train import SMALL, shrink

TEACHERS = load(sick.LAB / "defects.py")
NAMES = TEACHERS.in_order()


def test_ten_defects_fit_the_projects_source_and_the_students_list():
    """Each text occurs once in its function and compiles; run 0 changes the strip alone."""
    assert len(NAMES) == 10 and list(TEACHERS.DEFECTS) != NAMES
    assert NAMES == sorted(NAMES, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert sorted(load(sick.LAB / "lab.py").NAMES) == sorted(NAMES)
    assert set(sick.sickness(0)) == {sick.STRIP[0]}
    for n, name in enumerate(NAMES, 1):
        assert set(sick.sickness(n)) == {sick.STRIP[0], TEACHERS.DEFECTS[name].target}


@pytest.mark.parametrize("number", [-1, 11])
def test_a_run_that_is_not_there_is_bad_input(number):
    with pytest.raises(InputError, match="there is no run"):
        sick.sickness(number)


def test_one_number_or_all():
    for words in ([], ["3", "--ready-made"]):
        with pytest.raises(InputError, match="number of one run"):
            sick.main(words)


def trained(name, *options):
    """The run folder after two steps with this defect, "" for none."""
    return sick.train_sick(NAMES.index(name) + 1 if name else 0, [*SMALL, "--steps", "2", *options])


def test_a_sick_run_is_sick_and_a_healthy_one_is_not(tmp_path, monkeypatch):
    """By numbers that only these defects make exact; train_sick leaves the project as it was."""
    shrink(monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder = trained("", "--picture-every", "2")
    healthy, detached, twice = (read_lines(run / "metrics.jsonl")[-1] for run in (
        folder, trained("detached too early"), trained("one z twice")))
    assert healthy["gan_gradient_image"] > 0 == detached["gan_gradient_image"]
    assert twice["G_diversity"] == pytest.approx(0.4, abs=1e-6) and twice["diversity_gradient_features"] == 0
    assert healthy["G_diversity"] < 0.4 - 1e-6 and healthy["diversity_gradient_features"] > 0
    last = sick.ready_made(0, folder, tmp_path)
    assert last == read_lines(tmp_path / "run_00" / "metrics.jsonl")[-1]
    assert last == {key: pytest.approx(healthy[key], rel=1e-3) for key in ("step", *sick.SHOWN)}
    assert Image.open(tmp_path / "run_00" / "strip.png").size == (7 * 128, 16 + 4 * 128)


def test_the_teachers_key_has_every_run_its_name_and_its_sign():
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|", (sick.LAB / "KEY.md").read_text(encoding="utf-8"), re.M)
    assert [(int(n), name, sign) for n, name, sign in rows] == [
        (n, name, TEACHERS.DEFECTS[name].sign) for n, name in enumerate(NAMES, 1)]


def test_the_ready_made_material_is_there_and_names_nothing():
    numbers = (sick.LAB / "numbers.md").read_text(encoding="utf-8")
    last = []
    for n in range(11):
        lines = [json.loads(line) for line in (sick.LAB / f"run_{n:02d}" / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(5, 41, 5)), n
        assert set(lines[-1]) == {"step", *sick.SHOWN}
        assert (sick.LAB / f"run_{n:02d}" / "strip.png").stat().st_size < 60_000
        last.append(lines[-1])
    assert sick.side_by_side(last) in numbers
    assert not any(name in numbers for name in NAMES)
