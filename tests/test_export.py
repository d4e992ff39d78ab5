"""sample.py --export: the file's picture is sample.py's, for other batches and sizes, too; what it says of itself.

The ONNX half is skipped where onnx, onnxscript and onnxruntime are not installed.
"""
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from baselines.train import GENERATORS
from generator import z_of_seed
from support import export
from support.errors import InputError
from test_dpgan import tiny_generator as tiny_dpgan
from test_evaluate import write_checkpoint
from test_oasis import tiny_generator as tiny_oasis

PAGE = (Path(__file__).resolve().parent.parent / "docs/export.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ema") / "ema_0000001.pt", 0)


def run(checkpoint, *arguments):
    sample.main(["--checkpoint", str(checkpoint), *map(str, arguments)], GENERATORS)


def test_pt2_draws_the_picture_of_sample_at_other_sizes_too(checkpoint, tmp_path, capsys):
    file = tmp_path / "toy.pt2"
    run(checkpoint, "--export", file)
    told, said = {"metadata.json": ""}, capsys.readouterr().out
    assert float(re.search(r"largest difference from sample.py's picture (\S+);", said)[1]) <= export.TOLERANCE
    draw = torch.export.load(file, extra_files=told).module()
    G, kept = sample.load_generator(checkpoint)
    with torch.no_grad():
        for shape in ((1, 4, 4), (2, 6, 10)):                      # the smallest, and one of odd multiples
            inputs = export.random_inputs(G, *shape)
            torch.testing.assert_close(draw(*inputs), G(*inputs), rtol=0, atol=1e-4)
    metadata = {name: json.loads(text) for name, text in json.loads(told["metadata.json"]).items()}
    assert metadata["classes"] == kept["classes"] and metadata["palette"] == kept["palette"]
    assert (metadata["size_multiple"], metadata["z_dim"], metadata["offset_channels"]) == (2, 4, 2)
    with pytest.raises(InputError, match="is there already"):
        run(checkpoint, "--export", file)


@pytest.mark.parametrize("tiny", [tiny_oasis, tiny_dpgan])
def test_the_baselines_export_too(tiny):
    G = tiny(widths=(8, 6, 4)).requires_grad_(False)
    content, draw = export.as_pt2(export.traced(G), {})
    inputs = export.random_inputs(G, 2, 6, 10)
    torch.testing.assert_close(draw(*inputs), G(*inputs), rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.export.load(io.BytesIO(content)).module()(*inputs), draw(*inputs))


def test_the_loader_of_the_page_draws_the_picture_of_sample_from_onnx(checkpoint, tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    run(checkpoint, "--export", "generator.onnx")
    Image.fromarray(np.random.default_rng(0).integers(11, size=(20, 36), dtype=np.uint8)).save("map.png")
    run(checkpoint, "--labels", "map.png", "--image-size", "20x36", "--seeds", 3, "--output-dir", "out")
    np.save("z.npy", z_of_seed(3, 4)[None].numpy())
    script, = re.findall(r"```python\n(import json\nimport numpy.*?)```", PAGE, re.S)
    exec(script, {})
    apart = np.array(Image.open("picture.png")).astype(int) - np.array(Image.open("out/map_seed003.png"))
    assert np.abs(apart).max() <= 1


@pytest.mark.parametrize("arguments, message", [
    (["--export", "a.pth"], "expected a file that ends in .pt2 or .onnx"),
    (["--export", "a.onnx"], "pip install onnx onnxscript onnxruntime"),
    (["--export", "none/a.pt2"], "there is no folder none; make it first"),
    (["--export", "a.pt2"], "differs from sample.py's by 1.0e+00"),
    (["--export", "a.pt2", "--dataset", "toy"], "leave --labels, --dataset,"),
    (["--export", "a.pt2", "--interpolate", "3"], "--interpolate and --region-seeds out")])
def test_bad_input_gets_one_line_and_no_file(checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(export, "traced", lambda G: G)
    monkeypatch.setitem(export.KINDS, ".pt2", lambda G, metadata: (b"", lambda *inputs: G(*inputs) + 1))
    with pytest.raises(InputError) as error:
        run(checkpoint, *arguments)
    assert message in str(error.value) and "\n" not in str(error.value) and not any(tmp_path.iterdir())
