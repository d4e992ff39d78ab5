"""The teacher's: answers of lab 09, and other names in their place, from defects.py. KEY.md has the reasons."""
from pathlib import Path

from labs.pieces import load

NAMES = load(Path(__file__).with_name("defects.py")).in_order()
SOLUTIONS = {f"run_{n}": f'def run_{n}():\n    return "{name}"\n' for n, name in enumerate(NAMES, 1)}
MISTAKES = {f"run_{n}": [(f'when it is called "{other}"', f'"{name}"', f'"{other}"')
                         for other in (NAMES[n:] + NAMES)[:3]]
            for n, name in enumerate(NAMES, 1)}
