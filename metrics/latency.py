"""Latency: time, memory and size of a generator (Table 4)."""
import numpy as np
import torch
from tqdm import tqdm

from support.errors import first_line, out_of_memory
from support.logs import peak_memory
from support.profile import flops_of, seconds_of

RUNS, WARM_UP = 50, 5  # Table 4: "averaged over 50 different runs"


def add_options(group):
    group.add_argument("--latency-modes", choices=("both", "eager"), default="both",
                       help="both: eager and torch.compile; eager is sooner done")


def best_throughput(runner, G, precision, device):
    """-> {"precision", "batch_size", "pictures_per_second"}: the best of the batch sizes 1, 2, 4, ..., eager. Ends
    after two doublings without 2 % of gain, where memory ends, or where a batch takes 20 s."""
    best, since, n, times = {"precision": precision, "batch_size": 0, "pictures_per_second": 0.0}, 0, 1, [0.0]
    while since < 2 and n <= 1024 and times[0] <= 20:
        try:
            run = runner(G, n, precision)
            run()
            times = [seconds_of(run, device)]
            while sum(times) < 0.5 and len(times) < 20:
                times.append(seconds_of(run, device))
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError on CUDA alone
            if not out_of_memory(error):
                raise
            break
        rate = n / float(np.median(times))
        since = 0 if rate > 1.02 * best["pictures_per_second"] else since + 1
        if rate > best["pictures_per_second"]:
            best.update(batch_size=n, pictures_per_second=rate)
        n *= 2
    return best


@torch.no_grad()
def score_latency(G, label_map, z, offsets, compiled, ranks):
    """G(label_map (1, H, W), z (1, d_z), offsets (1, 2, H, W) or None), once and for batches of the same.

    compiled: with torch.compile, too. The clock runs from a label map on the device to a picture on the device.
    -> {"one picture": [{"precision", "mode", "seconds", "deviation"} or {..., "not_run"}, ...], "throughput", ...}
    """
    device, where, (H, W) = ranks.device, ranks.device_name(), label_map.shape[1:]

    def runner(net, n, precision):
        inputs = [t if t is None else t.expand(n, *t.shape[1:]).contiguous().to(device)
                  for t in (label_map.long(), z, offsets)]

        def run():
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                net(*inputs)
        return run

    flops = flops_of(runner(G, 1, "fp32"))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found = {"parameters": sum(p.numel() for p in G.parameters()), "flops": flops,
             "one picture": []}
    for mode in ("eager", "compiled") if compiled else ("eager",):
        for precision in ("fp32", "bf16"):
            row = {"precision": precision, "mode": mode}
            try:
                run = runner(torch.compile(G) if mode == "compiled" else G, 1, precision)
                row["first_call_seconds"] = seconds_of(run, device)
                for _ in range(WARM_UP):
                    run()
                runs = tqdm(range(RUNS), f"latency {precision} {mode}", disable=None)
                times = [seconds_of(run, device) for _ in runs]
                row.update(seconds=float(np.mean(times)), deviation=float(np.std(times)))
            except Exception as error:  # compilers fail in many ways, which is no reason to lose the other scores
                if mode == "eager" and not out_of_memory(error):
                    raise
                row["not_run"] = f"{type(error).__name__}: {first_line(error)[:200]}"
            found["one picture"].append(row)
        if mode == "eager":
            found["memory_gib"] = peak_memory(device)
            found["throughput"] = [best_throughput(runner, G, precision, device) for precision in ("fp32", "bf16")]
    torch.compiler.reset()
    memory_of = ("one picture, of the device, with the networks of the other --metrics" if device.type == "cuda"
                 else "of the whole process")
    return {**found, "memory_of": memory_of, "device": where, "protocol":
            f"latency: {where}, torch {torch.__version__}; one picture of {H}x{W} (height x width), mean and standard "
            f"deviation of {RUNS} runs after {WARM_UP} of warm-up, from a label map on the device to a picture on it; "
            "bf16 is autocast, fp32 is without TF32; FLOPs counted by torch in eager mode, a "
            "multiply-add is two; batch sizes 1, 2, 4, ... tried for pictures a second"}


def rows(score):
    for row in score["one picture"]:
        yield (f"one picture, {row['precision']} {row['mode']}",
               "not run" if "not_run" in row else f"{1000 * row['seconds']:.2f} ms",
               row.get("not_run") or f"+- {1000 * row['deviation']:.2f} ms over {RUNS} runs")
    for row in score["throughput"]:
        yield (f"pictures a second, {row['precision']} eager", f"{row['pictures_per_second']:.1f}",
               f"batch size {row['batch_size']}")
    yield "parameters", f"{score['parameters']:,}", ""
    yield "GFLOP a picture", f"{score['flops'] / 1e9:.3f}", "a multiply-add is two"
    yield "peak memory", f"{score['memory_gib']:.2f} GiB", score["memory_of"]
