"""Twenty kills and twenty damaged files; tests/campaign.py has a thousand of each, and RESULTS.md its table."""
import pytest

from conftest import ROOT, start

SABOTAGE = "from support import checkpoints; checkpoints.read_torch = lambda file: torch.load(file, weights_only=True)"


@pytest.mark.parametrize("sabotage, words", [
    ("pass", ["--kills", 20, "--damages", 20, "--programs", "one layer,sample.py,evaluate.py"]),
    (SABOTAGE, ["--damages", 8, "--programs", "sample.py"])], ids=["as it is", "without checksums"])
def test_nothing_is_lost_and_nothing_damaged_is_used(tmp_path, sabotage, words):
    """And the campaign finds what goes wrong where a checkpoint's checksums are not looked at."""
    code = f"import sys; sys.path.insert(0, sys.argv.pop(1)); from campaign import main, torch; {sabotage}; main()"
    process = start("-c", code, ROOT / "tests", *words, "--output-dir", tmp_path)
    printed, error = process.communicate()
    assert process.returncode == (sabotage == SABOTAGE), printed + error
    assert (" 0 failures" in printed) != (sabotage == SABOTAGE)
