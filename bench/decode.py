"""One-token decoding at batch 1 against transformers' `generate`: the model of bench/train_step.py, greedy.

Both continue the same prompt of 64 tokens by the same number of tokens, in turns; medians of seconds a token.

    python bench/decode.py [--tokens 128] [--turns 5]
"""

import argparse
import json
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mixlab
from mixlab.decode import generate


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    a = parser.parse_args()
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
    theirs = LlamaForCausalLM(config).eval()
    prompt = torch.randint(1, 256, (1, 64))
    mask = torch.ones_like(prompt)

    def mixlab_run(n):
        return list(generate(ours, prompt[0].tolist(), max_tokens=n, temperature=0))

    def peer_run(n):
        return theirs.generate(
            prompt, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False
        )

    times = {"mixlab": [], "transformers": []}
    for turn in range(a.turns + 1):
        for name, run in (("mixlab", mixlab_run), ("transformers", peer_run)):
            seconds = []
            for n in (1, a.tokens + 1):  # the difference leaves the prefill out
                start = time.perf_counter()
                run(n)
                seconds.append(time.perf_counter() - start)
            if turn:
                times[name].append((seconds[1] - seconds[0]) / a.tokens)
    ms = {name: 1e3 * statistics.median(t) for name, t in times.items()}
    result = {
        "ms_per_token": {name: round(t, 3) for name, t in ms.items()},
        "mixlab_over_transformers": round(ms["mixlab"] / ms["transformers"], 3),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
