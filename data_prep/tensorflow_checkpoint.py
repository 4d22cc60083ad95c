"""Reads TensorFlow's checkpoints (V2: NAME.index and NAME.data-00000-of-00001) without TensorFlow.

The index is a LevelDB table from a variable's name to a BundleEntryProto (tensorflow/core/util/tensor_bundle/
tensor_bundle.h, core/protobuf/tensor_bundle.proto; the table: google/leveldb doc/table_format.md). Every checksum is
verified: those of the blocks read, and those of the variables.
"""

import os
import pathlib
import struct
from collections.abc import Iterator

import numpy as np

from sptad_jax.errors import UserError

MAGIC = 0xDB4775248B80FB57  # last eight bytes of a table
FOOTER_BYTES = 48
POLYNOMIAL = 0x82F63B78  # of CRC-32C, bits reversed
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # tensorflow/core/framework/types.proto; others are passed over
LANES = 1024  # pieces of a variable whose checksums are computed side by side


def read_checkpoint(prefix: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The numeric variables of the checkpoint `prefix`, e.g. rgb_imagenet/model.ckpt, by name.

    Variables of other kinds (strings, half precision) are left out. Raises UserError, naming the file, where one is
    absent, damaged or not a checkpoint.
    """
    index = pathlib.Path(f"{prefix}.index")
    try:
        entries = dict(read_table(index.read_bytes()))
        header = _fields(entries.pop(b""))
        num_shards = _number(header, 1, 0)
        if _number(header, 2, 0) != 0:
            raise ValueError("big-endian")
        variables = {}
        for name, entry in entries.items():
            fields = _fields(entry)
            if _number(fields, 1, 0) in DTYPES and 7 not in fields:  # 7: a variable saved in slices
                variables[name.decode()] = _read_variable(f"{prefix}.data", num_shards, fields)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not there; a TensorFlow checkpoint is NAME.index and NAME.data-00000-of-"
                        "00001 side by side, given as NAME.") from None  # fmt: skip
    except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, struct.error) as error:
        raise UserError(f"{prefix}: damaged, or no TensorFlow V2 checkpoint ({error}); fetch it anew.") from error
    return variables


def _read_variable(stem: str, num_shards: int, fields: dict[int, list[int | bytes]]) -> np.ndarray:
    shape = tuple(_number(_fields(dim), 1, 0) for dim in _fields(_bytes(fields, 2)).get(2, []))  # type: ignore[arg-type]
    dtype = np.dtype(DTYPES[_number(fields, 1, 0)])
    offset, size = _number(fields, 4, 0), _number(fields, 5, 0)
    path = f"{stem}-{_number(fields, 3, 0):05d}-of-{num_shards:05d}"
    if offset + size > os.path.getsize(path):
        raise ValueError(f"{path} ends before byte {offset + size}")
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if _masked(crc32c(data)) != _number(fields, 6, 0):
        raise ValueError(f"{path}: wrong checksum of bytes {offset} to {offset + size}")
    return np.frombuffer(data, dtype).reshape(shape)


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table in order. Raises ValueError or IndexError where it is damaged."""
    if len(data) < FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise ValueError("no LevelDB table")
    footer = data[-FOOTER_BYTES:]
    _, at = _handle(footer, 0)  # of the meta index, which is not needed
    (offset, size), _ = _handle(footer, at)
    for _, handle in _read_block(data, offset, size):
        yield from _read_block(data, *_handle(handle, 0)[0])


def _read_block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """A block's entries; each key states how much of its beginning it shares with the one before."""
    block, trailer = data[offset : offset + size], data[offset + size : offset + size + 5]
    kind, checksum = struct.unpack("<BI", trailer)
    if _masked(crc32c(block + trailer[:1])) != checksum:
        raise ValueError(f"wrong checksum of the index at byte {offset}")
    if kind != 0:
        raise ValueError("a compressed index")
    (num_restarts,) = struct.unpack("<I", block[-4:])
    at, end, key = 0, len(block) - 4 * (num_restarts + 1), b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where the next one begins); seven bits a byte, low ones first."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


def _fields(message: bytes) -> dict[int, list[int | bytes]]:
    """A protocol buffer as {field number: values}: numbers as int, strings and messages as bytes."""
    fields: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value: int | bytes
        if tag & 7 == 0:
            value, at = _varint(message, at)
        elif tag & 7 == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        elif tag & 7 in (1, 5):
            size = 8 if tag & 7 == 1 else 4
            value, at = int.from_bytes(message[at : at + size], "little"), at + size
        else:
            raise ValueError("an unknown kind of field")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: dict[int, list[int | bytes]], field: int, default: int) -> int:
    value = fields.get(field, [default])[-1]
    if not isinstance(value, int):
        raise ValueError("a message where a number belongs")
    return value


def _bytes(fields: dict[int, list[int | bytes]], field: int) -> bytes:
    value = fields.get(field, [b""])[-1]
    if not isinstance(value, bytes):
        raise ValueError("a number where a message belongs")
    return value


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of no bytes or at least four.

    The bytes are cut into lanes that NumPy advances together. A register that starts at 0 is linear in its input, so
    that the lanes' results are joined by what a lane of zero bytes does to each of the 32 bits.
    """
    if not data:
        return 0
    padded = np.zeros(-(-len(data) // LANES) * LANES if len(data) > LANES else len(data), np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)  # zeros in front leave the register at 0
    padded[-len(data) :][:4] ^= 0xFF  # the same as a register that starts with all bits set
    lanes = padded.reshape(LANES if len(data) > LANES else 1, -1)
    state = np.concatenate([np.zeros(len(lanes), np.uint32), np.uint32(1) << np.arange(32, dtype=np.uint32)])
    for column in np.ascontiguousarray(lanes.T):
        state[: len(lanes)] ^= column
        state = (state >> 8) ^ TABLE[state & 0xFF]
    total, bits = 0, np.arange(32)
    for lane in state[: len(lanes)].tolist():
        total = lane ^ int(np.bitwise_xor.reduce(state[-32:][(total >> bits) & 1 == 1], initial=0))
    return total ^ 0xFFFFFFFF


def _masked(checksum: int) -> int:
    """As stored: rotated and shifted, so that a checksum over checksums stays useful (leveldb util/crc32c.h)."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _make_table() -> np.ndarray:
    table: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    return table


TABLE = _make_table()
