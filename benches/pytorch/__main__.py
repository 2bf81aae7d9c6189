"""Times PyTorch on the work of `modejump --device cuda bench`, for a comparison on the same GPU.

    python3 benches/pytorch [--device cuda|cpu] [--seconds S] [--warm] [names...] [--modes MODE...]
    python3 benches/pytorch --check

The networks are those of src/bin/modejump/bench/cases.rs with random weights, and the coupling flow is the shipped one. They are
reimplemented in PyTorch for speed: dense, all samples at once, per-atom quantities computed once per atom, no graph library. Everything is
in single precision, including coordinates and splines, and nothing is copied to or from the GPU; Modejump keeps coordinates, splines and
log-determinants in double precision, and takes configurations from the host and copies them back. Each line is the median of repeated calls:

    eager            plain Python calls
    graph            the whole call in a CUDA graph (`token graph`: one token's step, replayed for every token of a block)
    compile          torch.compile, mode "default"; TarFlows are compiled layer by layer
    compile graph    both
    ..., TF32        with set_float32_matmul_precision("high") instead of "highest"
    vjp, jvp         exact divergence by a backward pass from every coordinate, or by tangents in every direction

The last column is the time in seconds until the first call has finished, including compilation and capture; --warm compiles everything in
parallel beforehand. `--check` compares the networks with tests/golden, and the coupling flow's samples with its densities, on the CPU.
Needs PyTorch 2.6 or later, and nothing else.
"""

import argparse
import gc
import os
import signal
import statistics
import subprocess
import sys
import time

try:
    import torch
except ImportError:
    sys.exit("benches/pytorch needs PyTorch: python3 -m pip install torch numpy")
from cases import CASES, tf32_matters
from check import check


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(call, device):
    if device != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def measure(build, device, seconds):
    """Returns the seconds until the first call has finished, including compilation, and the median milliseconds of later calls."""
    start = time.monotonic()
    call = build()
    call()
    synchronize(device)
    first, times, start = time.monotonic() - start, [], time.monotonic()
    while not times or len(times) < 100 and time.monotonic() - start < seconds:
        times.append(milliseconds(call, device))
    return first, statistics.median(times)


def too_long(*_):
    raise TimeoutError("time limit exceeded")


def line(name, size, batch, mode, build, options):
    """Measures and prints one line, which reports any failure."""
    start = f"{name:29} {size:10} {batch:7} {mode:30}"
    signal.alarm(options.limit)
    try:
        first, median = measure(build, options.device, options.seconds)
        print(f"{start} {median / batch:12.6f} {first:8.1f}", flush=True)
    except Exception as e:  # out of memory, failed compilation or capture: the next line may still work
        message = str(e).strip().split("\n")[0]
        print(f"{start} {type(e).__name__}: {message[:120]}", flush=True)
    finally:
        signal.alarm(0)
    gc.collect()
    if options.device == "cuda":
        torch.cuda.empty_cache()


def selected(options):
    exact = [part for part in options.names if part in CASES]
    return [name for name in CASES if not options.names or name in exact or any(p in name for p in options.names if p not in exact)]


def warm(options):
    """Compiles every case in a separate process; the results stay in torch.compile's cache."""
    modes = ["compile", "compile graph, TF32", "compile token graph, TF32"]
    rest = [f"--device={options.device}", f"--limit={options.limit}", f"--largest={options.largest}", "--seconds=0", "--modes", *modes]
    names, start = selected(options), time.monotonic()
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, 2 * os.cpu_count() // len(names)))}
    # failures here recur in the table and are reported there
    commands = [[sys.executable, os.path.dirname(__file__), name, *rest] for name in names]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for command in commands]
    for process in processes:
        try:
            process.wait(max(0, start + options.total / 2 - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    print(f"{time.monotonic() - start:.0f} s for compiling in parallel")


def lines(options):
    """Yields name, size, batch, mode and builder of every requested call; sets the precision of its matrix products."""
    for name in selected(options):
        for size, batch, ways in CASES[name](options.device):
            runs = [(mode, "", build) for mode, build in ways.items()]
            runs += [(mode, ", TF32", build) for mode, build in ways.items() if tf32_matters(name, batch, mode)]
            for mode, precision, build in runs:
                wanted = not options.modes or mode.removeprefix("vjp, ").removeprefix("jvp, ") + precision in options.modes
                possible = batch <= options.largest and (options.device == "cuda" or "graph" not in mode)
                if wanted and possible:
                    torch.set_float32_matmul_precision("high" if precision else "highest")
                    yield name, size, batch, mode + precision, build


def benchmark(options):
    start = time.monotonic()
    if options.warm:
        warm(options)
    on = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} thread(s)"
    print(f"PyTorch {torch.__version__}, {on}")
    print(f"{'name':29} {'size':10} {'batch':>7} {'mode':30} {'ms/sample':>12} {'first, s':>8}", flush=True)
    for name, size, batch, mode, build in lines(options):
        if time.monotonic() - start > options.total:
            sys.exit(f"{options.total} s have passed: skipped {name}, {size}, {batch}, {mode} and all later lines")
        line(name, size, batch, mode, build, options)
    print(f"{time.monotonic() - start:.0f} s in total")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of benchmark names (default: all)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of repeated calls per line")
    parser.add_argument("--limit", type=int, default=60, help="seconds after which a line is abandoned, including compilation")
    parser.add_argument("--total", type=int, default=600, help="seconds after which no new line is started")
    parser.add_argument("--largest", type=int, default=1 << 30, help="largest batch to measure")
    parser.add_argument("--modes", nargs="*", help="modes as named in the table: eager, graph, compile, 'compile graph, TF32', ...")
    parser.add_argument("--warm", action="store_true", help="compile all cases in parallel before the first line, one process each")
    parser.add_argument("--check", action="store_true", help="compare the networks with tests/golden on the CPU")
    options = parser.parse_args()
    if options.device == "cuda" and not options.check and not torch.cuda.is_available():
        sys.exit("PyTorch found no GPU; use --device cpu to run on the CPU")
    unknown = [part for part in options.names if not any(part in name for name in CASES)]
    if unknown:
        sys.exit(f"unknown benchmark {', '.join(unknown)}; known benchmarks: {', '.join(CASES)}")
    signal.signal(signal.SIGALRM, too_long)
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    torch._dynamo.config.recompile_limit = 64
    check() if options.check else benchmark(options)


if __name__ == "__main__":
    main()
