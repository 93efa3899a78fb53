"""An entry of the token cache in the making: arrays that grow in place, and a journal of what is whole.

    NAME.npy        a header with room for any length, then the tokens so far
    tokenizer.json
    journal.jsonl   what is being built; then, now and then, a line for all that is on the disk by then

Tokens are fsynced before the line that counts them, so that after a crash at any moment the last whole line
is true: the arrays are cut back to it, their hashes are compared with it, and the work goes on from there.
Nothing in the finished entry tells how often that happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mixlab.data.stretches import Stretch
from mixlab.data.tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from mixlab.data.tokens import Count, Counts, complete_entry, fsync
from mixlab.errors import UserError

JOURNAL = "journal.jsonl"
_FORMAT = 1

SECONDS = 1.0
"""Between two lines of the journal: the most work that a kill costs."""

_READ = 1 << 20


class Sink:
    """Takes the ids of one stretch after another; each side's stream begins with token 0.

    names: the sides, in the order of the stretches' numbers. parts: how many sources each side has. `done`
    stretches are in it, from which `chained` makes `chain`, and `counts` is what they brought.
    """

    def __init__(self, names: Sequence[str], parts: int, tokenizer: Tokenizer) -> None:
        self.names, self.parts, self.tokenizer = tuple(names), parts, tokenizer
        self.dtype = tokenizer.encode_stretch("").dtype
        self.restart()

    def restart(self) -> None:
        """Forget all there is."""
        self.done, self.chain = 0, ""
        self.counts: Counts = {name: [Count() for _ in range(self.parts)] for name in self.names}

    def append(self, stretch: Stretch, ids: np.ndarray, size: int, chain: str) -> None:
        """Take the next stretch's ids; it has `size` bytes, and with it the chain is `chain`."""
        self.write(stretch.side, ids.astype(self.dtype, copy=False))
        count = self.counts[self.names[stretch.side]][stretch.part]
        count.tokens += len(ids)
        count.bytes += size
        count.documents += int(np.count_nonzero(ids == 0))
        count.unknown += self.tokenizer.count_unknown(ids)
        self.done, self.chain = self.done + 1, chain

    def write(self, side: int, ids: np.ndarray) -> None:
        """Add ids to a side's stream."""
        raise NotImplementedError


class Memory(Sink):
    """A sink that keeps the streams in memory."""

    def restart(self) -> None:
        """Forget all there is."""
        super().restart()
        self._pieces = [[np.zeros(1, self.dtype)] for _ in self.names]

    def write(self, side: int, ids: np.ndarray) -> None:
        """Add ids to a side's stream."""
        self._pieces[side].append(ids)

    def arrays(self) -> dict[str, np.ndarray]:
        """Side -> its stream."""
        return {name: np.concatenate(pieces) for name, pieces in zip(self.names, self._pieces, strict=True)}


class Building(Sink):
    """A sink in a folder that is this process's alone, which takes up what an earlier one left there.

    A context manager; `finish` makes of the folder a whole entry.
    """

    def __init__(self, folder: Path, names: Sequence[str], parts: int, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self._arrays: list[BinaryIO] = []
        self._journal: BinaryIO | None = None
        self._head = {"format": _FORMAT, "tokenizer": tokenizer.hash, "sides": list(names), "parts": parts}
        super().__init__(names, parts, tokenizer)
        try:
            self._take_up()
        except (OSError, ValueError, KeyError, TypeError):
            self.restart()

    def __enter__(self) -> Building:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def restart(self) -> None:
        """Forget all there is; the files go when the first tokens come."""
        super().restart()
        self._close()

    def append(self, stretch: Stretch, ids: np.ndarray, size: int, chain: str) -> None:
        """Take the next stretch's ids; they are on the disk a second later."""
        if self._journal is None:
            self._begin()
        super().append(stretch, ids, size, chain)
        if time.monotonic() >= self._due:
            self._note()

    def write(self, side: int, ids: np.ndarray) -> None:
        """Add ids to a side's stream."""
        self._arrays[side].write(ids.data)
        self._hashes[side].update(ids.data)

    def finish(self) -> None:
        """Give the arrays their lengths, and put all on the disk."""
        for name, file in zip(self.names, self._arrays, strict=True):
            file.seek(0)
            file.write(self._header(self._length(name)))
            file.flush()
            os.fsync(file.fileno())
        complete_entry(self.folder, list(self.names), self.counts)
        self._close()

    def _begin(self) -> None:
        (self.folder / JOURNAL).unlink(missing_ok=True)
        self.tokenizer.save(self.folder)
        fsync(self.folder / FILE_NAME)
        self._hashes = [hashlib.sha256() for _ in self.names]
        for side, name in enumerate(self.names):
            self._arrays.append((self.folder / f"{name}.npy").open("wb"))
            self._arrays[side].write(self._header(0))
            self.write(side, np.zeros(1, self.dtype))
        self._journal = (self.folder / JOURNAL).open("wb")
        self._line(self._head)
        self._note()
        fsync(self.folder)

    def _take_up(self) -> None:
        """Go on from the journal's last whole line; an error of any kind if there is none, or if it is of
        another tokenizer, or if the files are not what it says."""
        path = self.folder / JOURNAL
        content = path.read_bytes()
        content = content[: content.rfind(b"\n") + 1]
        head, *_, last = map(json.loads, content.splitlines())
        if head != self._head or "done" not in last:
            raise ValueError(head)
        self.done, self.chain = int(last["done"]), str(last["chain"])
        self.counts = {name: [Count(**count) for count in last["counts"][name]] for name in self.names}
        self._hashes = [hashlib.sha256() for _ in self.names]
        for name, hashed, known in zip(self.names, self._hashes, last["sha256"], strict=True):
            file = (self.folder / f"{name}.npy").open("r+b")
            self._arrays.append(file)
            end = file.seek(len(self._header(0))) + self._length(name) * self.dtype.itemsize
            while left := end - file.tell():
                block = file.read(min(left, _READ))
                if not block:
                    raise ValueError(f"{name} is shorter than it was")
                hashed.update(block)
            if hashed.hexdigest() != known:
                raise ValueError(f"{name} is not what it was")
            file.truncate(end)
            file.seek(end)
        self._journal = path.open("r+b")
        self._journal.truncate(len(content))
        self._journal.seek(len(content))
        self._due = time.monotonic() + SECONDS

    def _note(self) -> None:
        """Put all so far on the disk, and then the line that says so."""
        for file in self._arrays:
            file.flush()
            os.fsync(file.fileno())
        hashes = [hashed.hexdigest() for hashed in self._hashes]
        counts = {side: [asdict(count) for count in parts] for side, parts in self.counts.items()}
        self._line({"done": self.done, "chain": self.chain, "sha256": hashes, "counts": counts})
        self._due = time.monotonic() + SECONDS

    def _line(self, content: dict[str, Any]) -> None:
        assert self._journal is not None
        self._journal.write(json.dumps(content).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _close(self) -> None:
        for file in (*self._arrays, *filter(None, [self._journal])):
            with contextlib.suppress(OSError):  # a full disk, which has been said by then
                file.close()
        self._arrays, self._journal = [], None

    def _length(self, name: str) -> int:
        return 1 + sum(count.tokens for count in self.counts[name])

    def _header(self, length: int) -> bytes:
        """That of a .npy file of so many tokens; numpy leaves room in it for any length."""
        header = io.BytesIO()
        facts = {"descr": self.dtype.str, "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(header, facts)
        return header.getvalue()


def learnt_before(folder: Path) -> Tokenizer | None:
    """The tokenizer that an earlier build in this folder had learnt; None if it had not come so far."""
    try:
        return load_tokenizer(folder) if (folder / JOURNAL).exists() else None
    except UserError:
        return None
