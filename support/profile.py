"""What a step costs: seconds, FLOPs and their share of what the device can do, and where the time goes (--profile)."""
import time
from itertools import islice

import torch
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from support.runs import what_is_due

MATRIX = {"cuda": 8192, "cpu": 768}  # side of the matrices whose product is timed
# Where an operation belongs: by the name of the outermost one that torch's profiler knows; see also name_parts.
KNOWN = {"Optimizer.": "optimisers", "aten::_foreach_lerp_": "average of G", "enumerate(DataLoader)": "data",
         **dict.fromkeys(("c10d::", "_c10d_functional::", "gloo:", "nccl:"), "communication")}
BACKWARD, REST = "autograd::engine::", "losses, log and the rest"


def seconds_of(run, device):
    """How long one call of run() takes, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def flops_of(run):
    """FLOPs of one call of run(): a multiply-add is two."""
    # TRAP: the fused attention of a CPU is counted by some versions of torch only
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def matmul_rate(device, dtype):
    """FLOP a second of the product of two large square matrices: the best of ten."""
    n = MATRIX[device.type]
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)  # TRAP: a GPU multiplies equal numbers faster
    return 2 * n ** 3 / min(seconds_of(lambda: a @ b, device) for _ in range(10))


class Speed:
    """The clock of a training loop. nets {"G": G, "D": D, "P": P}: the parts that --profile tells apart."""

    def __init__(self, nets, args, ranks):
        self.args, self.ranks, self.flops, self.rate, self.since = args, ranks, 0, 0.0, time.time()
        if args.profile:
            name_parts(nets)

    def steps(self, numbers):
        """The numbers of the steps, one by one. --profile's N steps come after one that warms up. Of those after which
        nothing else is due, the first is counted; what --compile has compiled runs uncompiled in that one."""
        numbers = iter(numbers)
        if self.args.profile:
            yield from islice(numbers, 1)
            yield from self.profiled(islice(numbers, self.args.profile))
        for step in numbers:
            if self.flops or what_is_due(step, self.args):
                yield step
                continue
            with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
                yield step
            self.flops = counter.get_total_flops()

    def pause(self):
        self.paused = time.time()

    def go_on(self):
        self.since += time.time() - self.paused

    def entries(self, steps):
        """What the log says of the last `steps` steps. FLOPs are those of this rank, and of its device."""
        seconds = (time.time() - self.since) / steps
        found = {"seconds_per_step": seconds, "images_per_second": self.args.batch_size / seconds}
        if self.flops:
            dtype = torch.bfloat16 if self.args.amp == "bf16" else torch.float32
            self.rate = self.rate or matmul_rate(self.ranks.device, dtype)
            found.update(tflops=self.flops / seconds / 1e12, share_of_matmul=self.flops / seconds / self.rate)
        self.since = time.time()
        return found

    def profiled(self, numbers):
        """The same numbers; then a table of where the time of their steps went."""
        on_gpu, count = self.ranks.device.type == "cuda", 0
        activities = [ProfilerActivity.CPU] + on_gpu * [ProfilerActivity.CUDA]
        self.pause()
        with profile(activities=activities) as profiler:
            self.go_on()
            start = time.time()
            for step in numbers:
                yield step
                count += 1
            if on_gpu:
                torch.cuda.synchronize(self.ranks.device)
            seconds = time.time() - start
            self.pause()  # TRAP: the profiler takes longer to end than the steps took
        if count:
            self.ranks.say(table(profiler.events(), seconds / count, count, on_gpu))
            self.args.profile = 0  # said once: not again after a rollback
        self.go_on()


def name_parts(nets):
    """From now on torch's profiler sees which network is called, compiled or not. D's backbone is a part of its own,
    but where it is compiled into D."""
    nets = {"VGG and projections of Eq. 5" if name == "P" else name: net for name, net in nets.items()}
    for name, net in {**nets, "backbone": getattr(nets.get("D"), "backbone", None)}.items():
        def named(*inputs, call=net and (net._compiled_call_impl or net._call_impl), name=name, **options):
            with record_function(f"part: {name}"):
                return call(*inputs, **options)
        if net is not None:
            net._compiled_call_impl = named  # TRAP: not a hook, which would be compiled, and lost


def parts_of(events):
    """(event, its part, whether of a backward pass) for the operations that torch's profiler saw."""
    # a GPU's own events are left out: each operation has the time of its kernels
    events = [e for e in events if e.device_type == DeviceType.CPU]
    forward = {e.sequence_nr: e for e in events if e.scope == 0 and not e.name.startswith(BACKWARD)}
    known = {}  # the numbers of forward are those of autograd, too: what an operation did, and what its gradient does

    def part_of(event):
        if event is None:
            return REST, False
        if id(event) not in known:  # TRAP: event.id is another counter for CUDA's own calls, and meets those here
            name = next((part for start, part in KNOWN.items() if event.name.startswith(start)), None)
            if event.name.startswith("part: "):
                known[id(event)] = event.name[6:], False
            elif name:
                known[id(event)] = name, False
            elif event.name.startswith(BACKWARD):
                known[id(event)] = part_of(forward.get(event.sequence_nr) if event.sequence_nr >= 0 else None)[0], True
            else:
                known[id(event)] = part_of(event.cpu_parent)
        return known[id(event)]
    return [(event, *part_of(event)) for event in events]


def table(events, seconds, steps, on_gpu):
    """The table as a text: milliseconds a step of every part, forward and backward, of the device where it is a GPU."""
    times = {}
    for event, part, backward in parts_of(events):
        spent = event.self_device_time_total if on_gpu and part != "data" else event.self_cpu_time_total
        times.setdefault(part, [0.0, 0.0])[backward] += spent / 1e3 / steps
    rest = times.pop(REST, [0.0, 0.0])
    idle = max(0.0, 1e3 * seconds - sum(map(sum, times.values())) - sum(rest))
    lines = [("part of a step, ms", "forward", "backward", "share")]
    for part, (there, back) in [*sorted(times.items(), key=lambda item: -sum(item[1])), (REST, rest), (
            "waiting" if on_gpu else "Python", (idle, 0.0))]:
        lines.append((part, f"{there:.1f}", f"{back:.1f}", f"{(there + back) / seconds / 10:.0f} %"))
    lines.append((f"mean of {steps} steps", f"{1e3 * seconds:.1f}", "", "100 %"))
    return "\n".join(f"{name:<32}{there:>10}{back:>10}{share:>8}" for name, there, back, share in lines)
