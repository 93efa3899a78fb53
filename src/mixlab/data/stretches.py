"""From a corpus to token streams: stretches of text a side, encoded in order, here or in other processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import numpy as np

from mixlab.data import encoder
from mixlab.data.formats import Piece
from mixlab.data.tokenizer import END, Tokenizer
from mixlab.errors import RunFailed

if TYPE_CHECKING:
    from mixlab.data.building import Sink

STRETCH = 1 << 20
"""Characters that are encoded at a time: enough that handing them to another process costs nothing, few
enough that some in flight are no matter."""

MOST_PROCESSES = 4
"""By default; each takes 100 MB, and four of them encode BPE at 20 MB/s."""

ENOUGH = 8 * STRETCH
"""Characters for each process: with fewer, starting it takes longer than its work."""


class Stretch(NamedTuple):
    """Some of a side's stream: text in which NUL ends a document; of source number `part` alone."""

    side: int
    part: int
    text: str


class OtherText(Exception):
    """What a sink has already is of another text than the one that comes now."""


def stretches(
    pieces: Iterable[Piece], cuts: np.ndarray, counts: Sequence[int], cut: Callable[[str], int]
) -> Iterator[Stretch]:
    """The streams of both sides in stretches of about `STRETCH` characters, each of one part alone.

    cuts: as in `Split`. counts: documents of each part. cut: as in `Tokenizer`.
    """
    ends: list[int] = np.cumsum(counts).tolist()
    buffers: tuple[list[str], list[str]] = ([], [])
    sizes, part = [0, 0], 0

    def rest() -> Iterator[Stretch]:
        for side, buffer in enumerate(buffers):
            if buffer:
                yield Stretch(side, part, "".join(buffer))
                buffer.clear()
                sizes[side] = 0

    for document, side, text, ended in sides(pieces, cuts):
        while document >= ends[part]:
            yield from rest()
            part += 1
        buffer = buffers[side]
        for start in range(0, len(text), STRETCH):
            piece = text[start : start + STRETCH]
            whole = ended and start + STRETCH >= len(text)
            buffer += (piece, END) if whole else (piece,)
            sizes[side] += len(piece)
            if sizes[side] >= STRETCH:
                joined = "".join(buffer)
                begun = joined.rfind(END) + 1  # where the document that goes on begins
                at = begun + cut(joined[begun:]) if begun < len(joined) else begun
                if at:
                    yield Stretch(side, part, joined[:at])
                buffer[:] = [joined[at:]] if at < len(joined) else []
                sizes[side] = len(joined) - at
    yield from rest()


def sides(pieces: Iterable[Piece], cuts: np.ndarray) -> Iterator[tuple[int, int, str, bool]]:
    """(number of the document, side, text, whether the side's share of the document ends with it).

    The first `cuts[document]` characters of each document are for side 0, the others for side 1.
    """
    document = position = 0
    for text, _, last in pieces:
        first = max(0, int(cuts[document]) - position)
        position += len(text)
        if first:
            yield document, 0, text[:first], position >= cuts[document]
        if first < len(text):
            yield document, 1, text[first:], last
        if last:
            document, position = document + 1, 0


def fill(
    sink: Sink,
    stream: Iterable[Stretch],
    tokenizer: Tokenizer,
    *,
    processes: int,
    behind: Callable[[int], None],
) -> None:
    """Encode the stream into `sink`, from where the sink already is.

    behind: told how many characters are done. Raises OtherText if what the sink holds is not of this stream.
    """
    done = 0

    def tell(stretch: Stretch) -> None:
        nonlocal done
        done += len(stretch.text) - stretch.text.count(END)
        behind(done)

    def todo() -> Iterator[tuple[Stretch, int, str]]:
        chain, number = "", 0
        for number, stretch in enumerate(stream, 1):
            data = stretch.text.encode()
            chain = chained(chain, stretch, data)
            if number > sink.done:
                yield stretch, len(data), chain
                continue
            if number == sink.done and chain != sink.chain:
                raise OtherText
            tell(stretch)
        if number < sink.done:
            raise OtherText

    with Encoders(tokenizer, processes) as encoders:
        for (stretch, size, chain), ids in encoders.map(todo()):
            sink.append(stretch, ids, size, chain)
            tell(stretch)


def chained(chain: str, stretch: Stretch, data: bytes) -> str:
    """sha256 in hex of the stretches up to this one, whose text is `data`, from that of those before it."""
    hashed = hashlib.sha256(f"{chain} {stretch.side} {stretch.part} ".encode())
    hashed.update(data)
    return hashed.hexdigest()


def processes_for(tokenizer: Tokenizer, characters: int) -> int:
    """How many processes are worth it for so much text: 1 is this one alone."""
    if not tokenizer.slow:
        return 1
    with contextlib.suppress(AttributeError):  # not on every system
        return max(1, min(len(os.sched_getaffinity(0)), MOST_PROCESSES, characters // ENOUGH))
    return max(1, min(os.cpu_count() or 1, MOST_PROCESSES, characters // ENOUGH))


class Encoders:
    """Some processes that encode with one tokenizer; with 1, this process does it itself.

    They are plain programs with pipes, so that they neither import the caller's main module nor share a lock
    with it, and they end when their input does, however this process ends.
    """

    def __init__(self, tokenizer: Tokenizer, processes: int) -> None:
        self._tokenizer, self._processes = tokenizer, processes
        self._dtype = tokenizer.encode_stretch("").dtype
        self._children: list[subprocess.Popen[bytes]] = []
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def __enter__(self) -> Encoders:
        for _ in range(self._processes if self._processes > 1 else 0):
            child = subprocess.Popen(
                [sys.executable, "-m", encoder.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"RAYON_NUM_THREADS": "1"},
            )
            self._children.append(child)
            self._free.put(child)
        content = json.dumps(self._tokenizer.to_json()).encode()
        for child in self._children:
            _send(child, content)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.kill()  # all that was asked for has come back, or is no longer wanted
        for child in self._children:
            with contextlib.suppress(BrokenPipeError), child:  # closes the pipes and waits
                pass

    def map(
        self, items: Iterable[tuple[Stretch, int, str]]
    ) -> Iterator[tuple[tuple[Stretch, int, str], np.ndarray]]:
        """Each item with its stretch's ids, in order; a few are under way at a time."""
        if not self._children:
            for item in items:
                yield item, self._tokenizer.encode_stretch(item[0].text)
            return
        with ThreadPoolExecutor(len(self._children)) as threads:
            waiting: deque[tuple[tuple[Stretch, int, str], Future[np.ndarray]]] = deque()
            for item in items:
                waiting.append((item, threads.submit(self._encode, item[0].text)))
                if len(waiting) > 2 * len(self._children):
                    first, ids = waiting.popleft()
                    yield first, ids.result()
            for item, ids in waiting:
                yield item, ids.result()

    def _encode(self, text: str) -> np.ndarray:
        child = self._free.get()
        try:
            _send(child, text.encode())
            return np.frombuffer(encoder.receive(cast(BinaryIO, child.stdout)), self._dtype)
        except (OSError, EOFError):
            raise RunFailed(
                f"a process that encodes text ended by itself (status {child.wait()}), most likely for want "
                "of memory: run the command again, and it goes on from what is done"
            ) from None
        finally:
            self._free.put(child)


def _send(child: subprocess.Popen[bytes], data: bytes) -> None:
    encoder.send(cast(BinaryIO, child.stdin), data)
