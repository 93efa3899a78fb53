"""One-token decoding at batch 1 against transformers' `generate`: the model of bench/train_step.py, greedy.

All continue the same prompt of 64 tokens by the same number of tokens, in turns: mixlab with weights as they
are and packed in float16, the peer in float32, bfloat16 and float16. Milliseconds a token by the clock and by
processor time ("work"), the medians and the least of the turns; packing, once a text, is told apart.

    python bench/decode.py [--tokens 128] [--turns 5] [--threads 1]
"""

import argparse
import json
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mixlab
from mixlab.decode import decoder, generate


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    a = parser.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    attention = {"kind": "attention", "heads": 6}
    shape = {"vocab_size": 256, "dim": 384, "depth": 6, "context": 256}
    ours = mixlab.build_model({**shape, "temporal": attention, "feature": "swiglu", "position": "rope"})
    ours.eval()
    config = LlamaConfig(
        vocab_size=256, hidden_size=384, intermediate_size=ours.blocks[0].feature.hidden, num_hidden_layers=6,
        num_attention_heads=6, max_position_embeddings=256, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    theirs = {
        f"transformers {name}": LlamaForCausalLM(config).eval().to(getattr(torch, name))
        for name in ("float32", "bfloat16", "float16")
    }
    prompt = torch.randint(1, 256, (1, 64))
    mask = torch.ones_like(prompt)

    def own(dtype):
        """Each reader of a text makes its own packed copy, so that the copy is kept here and timed apart."""
        start = time.perf_counter()
        scorer = decoder(ours, dtype)
        packing[f"mixlab {dtype}"] = round(time.perf_counter() - start, 3)
        return lambda n: list(generate(scorer, prompt[0].tolist(), max_tokens=n, temperature=0))

    def peer(model):
        return lambda n: model.generate(
            prompt, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False
        )

    packing = {}
    runs = {f"mixlab {dtype}": own(dtype) for dtype in ("float32", "float16")}
    runs |= {name: peer(model) for name, model in theirs.items()}
    times = {name: [] for name in runs}
    for turn in range(a.turns + 1):
        for name, run in runs.items():
            spent = []
            for n in (1, a.tokens + 1):  # the difference leaves the prefill out
                start = time.perf_counter(), time.process_time()
                run(n)
                spent.append((time.perf_counter() - start[0], time.process_time() - start[1]))
            if turn:
                times[name].append(
                    [1e3 * (long - short) / a.tokens for short, long in zip(*spent, strict=True)]
                )
    table = {}
    for name, rows in times.items():
        wall, work = zip(*rows, strict=True)
        table[name] = {"median": statistics.median(wall), "least": min(wall)}
        table[name] |= {"work median": statistics.median(work), "work least": min(work)}
    base = table["transformers float32"]
    result = {
        "threads": torch.get_num_threads(),
        "ms_per_token": {n: {k: round(v, 2) for k, v in row.items()} for n, row in table.items()},
        "over_transformers_float32": {
            n: {k: round(v / base[k], 3) for k, v in row.items()} for n, row in table.items()
        },
        "seconds_of_packing": packing,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
