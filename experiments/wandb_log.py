"""W&B's log of a run: whether the file that its service writes is complete, which `finish` does not wait for."""

import struct
from pathlib import Path

# W&B's files: a header, then blocks of chunks (checksum, length, kind); a record is a full chunk, or one of each other kind.
_HEADER = 7
_BLOCK = 32 * 1024
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def is_complete(path: Path) -> bool:
    """Whether the file of a run has its exit: records of `wandb.proto` in chunks like those of a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    content = path.read_bytes()
    place, record, exited = _HEADER, b"", False
    while place < len(content):
        if (left := _BLOCK - place % _BLOCK) < _CHUNK.size:
            place += left  # padding
            continue
        if len(content) - place < _CHUNK.size:
            return False
        _, length, kind = _CHUNK.unpack_from(content, place)
        place += _CHUNK.size + length
        if place > len(content):
            return False
        record = (record if kind in (_MIDDLE, _LAST) else b"") + content[place - length : place]
        exited = exited or (kind in (_FULL, _LAST) and Record.FromString(record).HasField("exit"))
    return exited
