"""Training throughput against transformers' Llama of the same shape, and against the machine's matmul peak.

10.8M parameters: 6 layers, width 384, 6 heads, SwiGLU, RoPE, bytes; T = 256, B = 16, fused AdamW on both
sides, gradient norm clipped; in bf16 autocast where `mixlab doctor` finds it worth it, else in float32, or as
told. The two take turns, step by step, in one process that keeps freed memory as `mixlab train` does, which
serves both; medians over the turns.

    python bench/train_step.py [--steps 9] [--dim 384 --depth 6 --heads 6] [--dtype bfloat16]
"""

import argparse
import json
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mixlab
from common import peer_loss, stepper
from mixlab.train import precision
from mixlab.train.allocator import keep_freed_memory


def matmul_peak(dtype, n=2048, repeats=9):
    """Best FLOP/s of an n x n product."""
    a, b = torch.randn(2, n, n, dtype=dtype)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("steps", 9), ("dim", 384), ("depth", 6), ("heads", 6), ("T", 256), ("B", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    a = parser.parse_args()
    bf16 = precision.resolve(a.dtype, torch.device("cpu"))
    dtype = torch.bfloat16 if bf16 else torch.float32
    torch.manual_seed(0)
    keep_freed_memory()
    attention = {"kind": "attention", "heads": a.heads}
    shape = {"vocab_size": 256, "dim": a.dim, "depth": a.depth, "context": a.T}
    ours = mixlab.build_model({**shape, "temporal": attention, "feature": "swiglu", "position": "rope"})
    hidden = ours.blocks[0].feature.hidden
    config = LlamaConfig(
        vocab_size=256, hidden_size=a.dim, intermediate_size=hidden, num_hidden_layers=a.depth,
        num_attention_heads=a.heads, max_position_embeddings=a.T, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config)
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters())
    steps = {
        "mixlab": stepper(ours, bf16=bf16),
        "transformers": stepper(theirs, peer_loss, bf16=bf16),
    }
    times = {name: [] for name in steps}
    peaks = []
    for turn in range(a.steps + 2):
        inputs, targets = torch.randint(256, (2, a.B, a.T))
        for name, step in steps.items():
            start = time.perf_counter()
            step(inputs, targets)
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
        peaks.append(matmul_peak(dtype))
    seconds = {name: statistics.median(t) for name, t in times.items()}
    peak = statistics.median(peaks)
    token_flops = 3 * ours.flops(a.T) / a.T
    formula = 6 * count + 12 * a.depth * a.dim * a.T
    result = {
        "parameters": count,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens_per_second": {n: round(a.B * a.T / s) for n, s in seconds.items()},
        "ratio": round(seconds["transformers"] / seconds["mixlab"], 3),
        "model_gflops_6N_plus_attention": round(formula * a.B * a.T / seconds["mixlab"] / 1e9, 1),
        "counted_gflops": round(token_flops * a.B * a.T / seconds["mixlab"] / 1e9, 1),
        "peak_gflops": round(peak / 1e9, 1),
        "fraction_of_peak": round(formula * a.B * a.T / seconds["mixlab"] / peak, 3),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
