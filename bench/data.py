"""What large texts cost: resident memory and seconds of a run, speed a core, and a batch's share of a step.

The text is the paragraphs of `--source` (by default the embedded corpus) in random order, again and again, up
to `--mb` in `--work`, which is left empty at the end. One of:

    train   a tiny model on one file of `--mb`, by the command line with an empty cache, killed with SIGKILL
            once half of the tokens are written, and run again; the second time to its end, after `--steps`.
            With `--packing documents` each paragraph is a document, a row of .jsonl.
            The same on 1 MB first, for what the program takes by itself.
    files   the same on a folder of `--files` files of a paragraph each, without a kill.
    speed   MB of text a second of one processor, and by the clock: reading, and the whole of preparing, by
            tokenizer, with one and with two processes that encode.
    share   the time of drawing a batch of the preset `transformer` from `--mb` over that of its step.

Memory is that of the process that trains and of those that encode for it: `VmHWM`, the kernel's own peak of
all resident pages, those of mapped files and shared libraries included; `anonymous` and `mapped` are its two
parts, looked up every 20 ms, each at its own peak; `all` adds up the resident pages of all processes, shared
ones as often as they are mapped. Pages that the kernel caches without a process that maps them are its own.

    python bench/data.py train|files|speed|share [--mb 2000] [--source FOLDER] [--tokenizer byte]
        [--packing stream] [--files 100000] [--steps 20] [--work /tmp/mixlab-bench-data]
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import medians, parser, take_turns

KINDS = {"VmHWM": "VmHWM", "RssAnon": "anonymous", "RssFile": "mapped"}
TINY = ["model.dim=16", "model.depth=1", "model.temporal.heads=1", "train.eval_every=0"]


def paragraphs(source):
    from mixlab.data.corpus import Corpus

    text = "\n\n".join(Corpus.read([source or "corpus:python"]).documents)
    return [part for part in text.split("\n\n") if len(part) > 200]


def drawn(source, size):
    """Paragraphs until they have `size` bytes, each as often as the others."""
    parts, rng = [part.encode() + b"\n\n" for part in paragraphs(source)], random.Random(0)
    while True:
        rng.shuffle(parts)
        for part in parts:
            yield part[:size]
            size -= len(part)
            if size <= 0:
                return


def make_file(path, source, mb):
    parts = drawn(source, mb * 1_000_000)
    if path.suffix == ".jsonl":
        parts = (json.dumps({"text": part.decode(errors="replace")}).encode() + b"\n" for part in parts)
    with path.open("wb") as file:
        file.writelines(parts)
    return path


def make_folder(path, source, files):
    for n, part in zip(range(files), drawn(source, sys.maxsize), strict=False):
        where = path / f"{n // 1000:03d}"
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{n:06d}.txt").write_bytes(part)
    return path


def family(pid):
    """The process and all it has begun."""
    found = [pid]
    for one in found:
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            pass  # it has just ended
    return found


def status(pid):
    """Name -> bytes, of the lines of a process's status that are in kB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: 1024 * int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines)
            if value.endswith(" kB")}  # fmt: skip


def run(text, a, work, *, kill_at=0):
    """One call of the command line: seconds and peaks in MB. kill_at: bytes of training tokens at which it is
    killed."""
    sets = [*TINY, f"data.tokenizer={a.tokenizer}", f"data.packing={a.packing}"]
    command = [sys.executable, "-m", "mixlab", "train", str(text), "--preset", "transformer"]
    command += ["--out", str(work / "run"), "--steps", str(a.steps), "--json"]
    command += [word for key in sets for word in ("--set", key)]
    begun, peaks, most = time.monotonic(), dict.fromkeys([*KINDS.values(), "all"], 0), 1
    environment = os.environ | {"MIXLAB_CACHE": str(work / "cache")}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while child.poll() is None:
        found = [status(pid) for pid in family(child.pid)]
        most = max(most, len(found))
        for key, name in KINDS.items():
            peaks[name] = max(peaks[name], found[0].get(key, 0))
        peaks["all"] = max(peaks["all"], sum(one.get("VmRSS", 0) for one in found))
        if kill_at and written(work / "cache") >= kill_at:
            child.send_signal(signal.SIGKILL)
        time.sleep(0.02)
    seconds, output = time.monotonic() - begun, child.stdout.read()
    facts = {key: round(value / 1e6) for key, value in peaks.items()}
    facts |= {"processes": most, "seconds": round(seconds, 1), "status": child.returncode}
    if child.returncode == 0:
        end = json.loads(output)
        facts["bits_per_byte"] = round(end["bits_per_byte"], 4)
        facts["training_seconds"] = round(end["seconds"], 1)
    return facts


def written(cache):
    """Bytes of the training tokens that are being written."""
    return max((file.stat().st_size for file in cache.glob("tokens/.building-*/train.npy")), default=0)


def train(a, work):
    size = {"byte": 1, "char": 2}.get(a.tokenizer, 0.5)  # bytes on disk for a byte of text, about
    ending = "jsonl" if a.packing == "documents" else "txt"
    text = make_file(work / f"small.{ending}", a.source, 1)
    yield {"mb": 1, **run(text, a, work)}
    shutil.rmtree(work / "run")
    text = make_file(work / f"text.{ending}", a.source, a.mb)
    yield {"mb": a.mb, "killed": True, **run(text, a, work, kill_at=a.mb * 450_000 * size)}
    yield {"mb": a.mb, "left_mb": round(written(work / "cache") / 1e6), **run(text, a, work)}


def files(a, work):
    begun = time.monotonic()
    folder = make_folder(work / "folder", a.source, a.files)
    size = sum(file.stat().st_size for file in folder.rglob("*.txt"))
    made = time.monotonic() - begun
    yield {"files": a.files, "mb": round(size / 1e6, 1), "making": round(made, 1), **run(folder, a, work)}


def speed(a, work):
    from mixlab.data import DataConfig, prepare
    from mixlab.data.corpus import Corpus

    text = make_file(work / "text.txt", a.source, a.mb)
    (work / "warm").write_bytes(text.read_bytes()[:20_000_000])

    def measure(work_of, call):
        wall, before = time.monotonic(), worked()
        call()
        rate = {"wall": a.mb / (time.monotonic() - wall), "core": a.mb / (worked() - before)}
        return {f"{work_of}_mb_per_{key}_second": round(value, 1) for key, value in rate.items()}

    yield measure("reading", lambda: Corpus.read([str(text)]))
    for kind in ("byte", "bpe"):
        learnt = prepare(DataConfig(sources=(str(work / "warm"),), tokenizer=kind), cache_dir=work / "cache")
        for processes in (1, 2):
            shutil.rmtree(work / "cache")
            config = DataConfig(sources=(str(text),), tokenizer=kind)
            options = {"tokenizer": learnt.tokenizer, "cache_dir": work / "cache", "processes": processes}

            def call(config=config, options=options):
                prepare(config, **options)

            yield {"tokenizer": kind, "processes": processes, **measure("preparing", call)}


def worked():
    """Seconds of a processor that this process and those it waited for have had."""
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def share(a, work):
    from mixlab.config import load_run_config
    from mixlab.data import prepare
    from mixlab.train.folder import RunFolder
    from mixlab.train.loop import Trainer

    text = make_file(work / "text.txt", a.source, a.mb)
    sets = [f"data.sources=['{text}']", f"data.tokenizer={a.tokenizer}", f"data.packing={a.packing}"]
    config = load_run_config("transformer", [*sets, "train.watch_every=0"])
    dataset = prepare(config.data, context=config.model.context, cache_dir=work / "cache")
    trainer = Trainer(config, RunFolder(work / "run"), dataset, lambda line: None)
    trainer.model.train()
    found = medians(take_turns({"step": trainer.step, "draw": trainer.batches.next}, 20))
    yield {
        "mb": a.mb,
        "step_ms": round(1e3 * found["step"].work, 2),
        "draw_ms": round(1e3 * found["draw"].work, 3),
        "share_by_processor_time": round(found["draw"].work / found["step"].work, 5),
        "share_by_clock": round(found["draw"].wall / found["step"].wall, 5),
    }


WHAT = {"train": train, "files": files, "speed": speed, "share": share}


def main():
    p = parser(__doc__, mb=2000, files=100_000, steps=20)
    p.add_argument("what", choices=WHAT)
    p.add_argument("--source")
    p.add_argument("--tokenizer", default="byte", choices=("byte", "char", "bpe"))
    p.add_argument("--packing", default="stream", choices=("stream", "documents"))
    p.add_argument("--work", type=Path, default=Path("/tmp/mixlab-bench-data"))
    a = p.parse_args()
    a.work.mkdir(parents=True)  # not one that is there already: it is removed
    try:
        for line in WHAT[a.what](a, a.work):
            print(json.dumps(line), flush=True)
    finally:
        shutil.rmtree(a.work)


if __name__ == "__main__":
    main()
