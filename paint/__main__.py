"""Paint: draw a label map in the browser, and the picture follows the brush.

    python -m paint --checkpoint runs/toy/ema_0001600.pt
    python -m paint --checkpoint EMA_FILE --dataset ade20k --data-path DIR      with maps of its validation split

    __main__.py   the options, a checkpoint that fits, the address
    server.py     what the page asks for, and who may ask
    scenes.py     the maps to begin with that the code draws
    page.html     the page, all of it
"""
import os
import sys
import webbrowser

from baselines.train import GENERATORS
from data import DATASETS
from paint.server import Model, Server
from sample import load_generator, open_fitting
from support.errors import InputError, run_script
from support.options import new_parser, number
from support.ranks import setup_ranks


def parse_options(argv):
    parser = new_parser("Draw a label map in the browser and watch the picture of it.")
    parser.add_argument("--checkpoint", required=True, help="an ema_*.pt of a run folder: DP-SIMS, OASIS or DP-GAN")
    parser.add_argument("--dataset", choices=DATASETS, help="begin with maps of its validation split, too; toy needs "
                        "no files and is there without being asked for")
    parser.add_argument("--data-path")
    parser.add_argument("--port", type=number(0, 65535), default=8765, help="0 = any that is free")
    parser.add_argument("--host", default="127.0.0.1", help="another address lets other machines in; there is no "
                        "password")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def open_model(args):
    """The generator, and the validation maps where there are any. Raises InputError where something does not fit."""
    device = setup_ranks(args.device).device
    try:
        G, checkpoint = load_generator(args.checkpoint, device, GENERATORS)
    except InputError as error:
        if "a generator of iidm" in str(error):
            raise InputError(f"{args.checkpoint}: IIDM takes hundreds of steps for a picture, which cannot follow a "
                             f"brush; give a checkpoint of DP-SIMS, OASIS or DP-GAN") from None
        raise
    name = args.dataset or ("toy" if checkpoint["dataset"] == "toy" else None)
    maps = name and open_fitting(checkpoint, name, args.data_path, "val", tuple(checkpoint["image_size"]))
    return Model(G, checkpoint, device, maps)


def main(argv):
    args = parse_options(argv)
    print(f"paint: loading {args.checkpoint} ...", flush=True)
    model = open_model(args)
    try:
        server = Server((args.host, args.port), model)
    except OSError as error:
        raise InputError(f"--host {args.host} --port {args.port}: cannot be served ({error.strerror}); another "
                         f"--port, or 0 for any that is free") from None
    if args.host not in ("127.0.0.1", "localhost"):
        print(f"paint: --host {args.host}: whoever reaches this address can draw with your model; there is no password",
              file=sys.stderr)
    address = f"http://{args.host}:{server.server_port}/"
    print(f"paint: {address}   (Ctrl-C ends it)", flush=True)
    if not args.no_browser and (sys.platform in ("darwin", "win32") or
                                os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(address)
    with server:
        server.serve_forever()


if __name__ == "__main__":
    run_script("paint", lambda: main(sys.argv[1:]))
