"""A process that encodes: `python -m mixlab.data.encoder`, started by `mixlab.data.stretches`.

On stdin a tokenizer's JSON and then stretches of text, on stdout the ids of each; every message is its length
(8 bytes, little-endian) and its bytes. It ends with its input.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import BinaryIO


def send(stream: BinaryIO, message: bytes) -> None:
    """Write one message."""
    stream.write(len(message).to_bytes(8, "little"))
    stream.write(message)
    stream.flush()


def receive(stream: BinaryIO) -> bytes:
    """Read one message; EOFError where the stream ends."""
    head = stream.read(8)
    size = int.from_bytes(head, "little")
    message = stream.read(size)
    if len(head) < 8 or len(message) < size:
        raise EOFError
    return message


def main() -> None:
    """Encode until the input ends."""
    from mixlab.data.tokenizer import from_json
    from mixlab.signals import HANGUP

    for number in filter(None, (signal.SIGINT, HANGUP)):  # what a terminal sends is the parent's to handle
        signal.signal(number, signal.SIG_IGN)
    try:
        tokenizer = from_json(json.loads(receive(sys.stdin.buffer)))
        while True:
            text = receive(sys.stdin.buffer).decode()
            send(sys.stdout.buffer, tokenizer.encode_stretch(text).tobytes())
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
