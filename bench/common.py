"""What the benchmarks share: whole training steps, models that take turns, medians, decoding by position."""

import json
import statistics
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from typing import NamedTuple

import torch

from mixlab.train import precision
from mixlab.train.allocator import keep_freed_memory


class Seconds(NamedTuple):
    """By the clock, and by the processors that worked."""

    wall: float
    work: float


def parser(doc, **defaults):
    """Command line whose help is the benchmark's own docstring; the whole numbers among its options."""
    made = ArgumentParser(description=doc, formatter_class=RawTextHelpFormatter)
    for name, default in defaults.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    return made


def parsed(options):
    """The arguments, with --dtype among them: `bf16` is whether autocast is on."""
    options.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    a = options.parse_args()
    a.bf16 = precision.resolve(a.dtype, torch.device("cpu"))
    return a


def count(model):
    return sum(p.numel() for p in model.parameters())


def own_loss(model, inputs, targets):
    return model.loss(inputs, targets)


def peer_loss(model, inputs, targets):
    """Mean cross-entropy through the forward of a model of transformers."""
    logits = model(input_ids=inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def stepper(model, loss=own_loss, *, bf16=True):
    """One whole training step: forward, backward, clip, update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(inputs, targets):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss(model, inputs, targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(run, *args):
    """Seconds that one call takes."""
    wall, work = time.perf_counter(), time.process_time()
    run(*args)
    return Seconds(time.perf_counter() - wall, time.process_time() - work)


def take_turns(runs, turns, fresh=tuple, *, warmup=1):
    """Seconds of each run: name -> list. In every turn all of them go once, so that the machine's mood hits
    all alike, with the same arguments, which `fresh` makes anew; the first `warmup` turns do not count.

    turns: how many count, or name -> how many, where some go less often.
    """
    turns = turns if isinstance(turns, dict) else dict.fromkeys(runs, turns)
    times = {name: [] for name in runs}
    for turn in range(max(turns.values()) + warmup):
        args = fresh()
        for name, run in runs.items():
            if turn < turns[name] + warmup:
                seconds = timed(run, *args)
                if turn >= warmup:
                    times[name].append(seconds)
    return times


def medians(times):
    """Name -> the median seconds, by the clock and by the processors."""
    return {name: Seconds(*map(statistics.median, zip(*t, strict=True))) for name, t in times.items()}


def race(models, turns, T, B, *, losses=None, bf16=True):
    """Name -> median seconds of a training step on B sequences of T random bytes.

    losses: name -> loss(model, inputs, targets), for models other than mixlab's.
    """
    losses = losses or {}
    steps = {n: stepper(model, losses.get(n, own_loss), bf16=bf16) for n, model in models.items()}
    return medians(take_turns(steps, turns, lambda: torch.randint(256, (2, B, T))))


def rates(seconds, tokens):
    """Name -> tokens a second by the clock, rounded."""
    return {name: round(tokens / s.wall) for name, s in seconds.items()}


@torch.no_grad()
def read(model, state, tokens, chunk=4096):
    """The state after so many random bytes more."""
    for start in range(0, tokens, chunk):
        _, state = model.hidden(torch.randint(256, (1, min(chunk, tokens - start))), state)
    return state


@torch.no_grad()
def decode_ms(model, states, turns):
    """Position -> milliseconds a token onwards from each of the states, by turns; `states` moves along."""

    def go(position):
        def run(token):
            states[position] = model(token, states[position]).state

        return run

    runs = {position: go(position) for position in states}
    times = take_turns(runs, turns, lambda: (torch.randint(256, (1, 1)),), warmup=0)
    return {position: round(1e3 * s.wall, 3) for position, s in medians(times).items()}


def late_over_early(ms):
    """How much slower the last position is than the first."""
    return round(ms[max(ms)] / ms[min(ms)], 3)


def over_attention(doc, models, decoding, **defaults):
    """The whole of a benchmark of one part: prints the training speed of models(args, T), a name -> model of
    the part and "attention", at each length, and decoding(args)."""
    options = parser(doc, **{"steps": 5, "dim": 384, "depth": 6, "threads": 2, **defaults})
    options.add_argument("--lengths", nargs="+", default=["256:16", "1024:4", "4096:1"], metavar="T:B")
    options.add_argument("--positions", nargs="+", type=int, default=[100, 100_000])
    options.add_argument("--skip-decode", action="store_true")
    a = parsed(options)
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    keep_freed_memory()
    result = {
        "parameters": {n: count(m) for n, m in models(a, 256).items()},
        "threads": a.threads,
        "bf16": a.bf16,
    }
    for pair in a.lengths:
        T, B = map(int, pair.split(":"))
        seconds = race(models(a, T), a.steps, T, B, bf16=a.bf16)
        (ours,) = seconds.keys() - {"attention"}
        wall, work = (getattr(seconds["attention"], k) / getattr(seconds[ours], k) for k in Seconds._fields)
        result[f"T={T}, B={B}"] = {
            "tokens_per_second": rates(seconds, B * T),
            "ratio": round(wall, 3),
            "ratio_by_processor_time": round(work, 3),
        }
    if not a.skip_decode:
        result["decode"] = decoding(a)
    print(json.dumps(result, indent=1))
