"""What a Parquet file says about itself, read without a decoder: footer, page headers, statistics, Bloom filters.

`read_layout` walks the footer and every page header of a file before anything is decoded, and refuses what the
archive's writer never makes: so decoding needs no more memory than `Layout.batch_rows` allows for, whatever the file
claims.  `Group.compare` tells where statistics or Bloom filters, by which other readers skip rows, are not those of
the rows.  The format is Apache Parquet's (thrift, compact protocol); field numbers are those of parquet.thrift.

The file is not trusted: an attacker who controls it can at most have it refused.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from io import BufferedReader
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.schemas.errors import TallystickError

# The writer's rows in a row group, measured (docs/audit.md): with Bloom filters it answers a trace fastest.
ROW_GROUP: Final = 122_880
MAX_FOOTER: Final = 4 << 20
MAX_PAGES: Final = 1 << 20
# One page's bytes before compression; the writer's have one megabyte and what it adds at once (`PAGE_VALUES`).
MAX_PAGE: Final = 256 << 20
PAGE_VALUES: Final = 128
# Values of the list column in one row (causes of an event).
MAX_LIST: Final = 64
# What the values of one batch may come to.
BATCH_BYTES: Final = 64 << 20
BATCH_ROWS: Final = 32_768

_MAGIC: Final = b"PAR1"
_PAGE_HEADER: Final = 64 << 10
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_BYTE_ARRAY: Final = 6
_PLAIN, _RLE, _DICTIONARY = 0, 3, (2, 8)
_CHUNK_FIELDS: Final = frozenset((2, 3))
_META_FIELDS: Final = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 15, 16))
_STATISTICS_FIELDS: Final = frozenset((1, 2, 3, 5, 6, 7, 8))


class LayoutError(TallystickError):
    """A file that is no Parquet file of the archive's writer."""


def _refused(text: str) -> LayoutError:
    return LayoutError("FILE_LAYOUT", text)


class _Thrift:
    """Reads structs of thrift's compact protocol as dicts, field number -> value."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def _byte(self) -> int:
        try:
            value = self.data[self.at]
        except IndexError:
            raise _refused("its metadata ends too early") from None
        self.at += 1
        return value

    def _varint(self) -> int:
        byte = self._byte()
        if byte < 0x80:
            return byte
        value, shift = byte & 0x7F, 7
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise _refused("its metadata holds a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The struct at the present position."""
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._zigzag()
            kind = header & 15
            value = kind == 1 if kind in (1, 2) else self._value(kind, depth + 1)
            if number in fields:
                raise _refused("its metadata states a field twice")
            fields[number] = value
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > 16:
            raise _refused("its metadata is nested too deep")
        match kind:
            case 1 | 2:
                return self._byte() == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._zigzag()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._varint())
            case 9 | 10:
                header = self._byte()
                size = header >> 4 if header >> 4 < 15 else self._varint()
                if size > len(self.data) - self.at:
                    raise _refused("its metadata names more elements than there is room for")
                return [self._value(header & 15, depth + 1) for _ in range(size)]
            case 12:
                return self.struct(depth + 1)
        raise _refused(f"its metadata holds a value of unknown kind {kind}")

    def _bytes(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise _refused("its metadata ends too early")
        self.at += size
        return self.data[self.at - size : self.at]


class Chunk(msgspec.Struct, frozen=True):
    """One column of a row group: `values` counts nulls as well, `width` is what one value may come to in bytes."""

    name: str
    values: int
    width: int
    statistics: dict[int, Any]
    bloom: bytes


class Group(msgspec.Struct, frozen=True):
    """One row group."""

    rows: int
    chunks: dict[str, Chunk]

    def compare(self, seen: Seen) -> list[str]:
        """Where statistics or Bloom filters are not those of the rows that were `seen` of this group."""
        return [text for name, chunk in self.chunks.items() for text in seen.differences(name, chunk)]


class Layout(msgspec.Struct, frozen=True):
    """A whole file as its footer and page headers describe it."""

    rows: int
    groups: tuple[Group, ...]

    @property
    def batch_rows(self) -> int:
        """Rows to decode at once: so few that they take about `BATCH_BYTES` however often a value repeats."""
        widest = max((sum(c.width for c in g.chunks.values()) for g in self.groups), default=0)
        return max(1, min(BATCH_ROWS, BATCH_BYTES // max(widest, 1)))


def read_layout(file: BufferedReader, rows: int) -> Layout:
    """The layout of an open file that is said to hold `rows`.  Raises `LayoutError` (`FILE_LAYOUT`), `OSError`."""
    size = os.fstat(file.fileno()).st_size
    end = os.pread(file.fileno(), 8, max(size - 8, 0))
    if size < 12 or end[4:] != _MAGIC or os.pread(file.fileno(), 4, 0) != _MAGIC:
        raise _refused("it does not begin and end as a Parquet file does")
    length = struct.unpack("<I", end[:4])[0]
    if not 0 < length <= min(MAX_FOOTER, size - 12):
        raise _refused(f"its metadata would have {length} bytes")
    footer = _Thrift(os.pread(file.fileno(), length, size - 8 - length))
    return _layout(file.fileno(), footer.struct(), size - 8 - length, rows)


def _layout(descriptor: int, meta: dict[int, Any], end: int, rows: int) -> Layout:
    try:
        if meta.keys() - {1, 2, 3, 4, 5, 6, 7} or any(pair[1] != b"ARROW:schema" for pair in meta.get(5, ())):
            raise _refused("its metadata holds what the archive's writer does not write")
        groups = []
        for raw in meta[4]:
            if raw.keys() - {1, 2, 3, 5, 6, 7} or not 0 < raw[3] <= ROW_GROUP:
                raise _refused(f"a row group of {raw.get(3)} rows; the writer makes at most {ROW_GROUP}")
            chunks = [_chunk(descriptor, column, raw[3], end) for column in raw[1]]
            groups.append(Group(raw[3], {chunk.name: chunk for chunk in chunks}))
        if meta[3] != rows or sum(g.rows for g in groups) != rows:
            raise _refused(f"its row groups hold {sum(g.rows for g in groups)} rows, the manifest names {rows}")
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, ValueError) as exc:
        raise _refused(f"its metadata lacks what every Parquet file has: {exc!r}") from exc
    return Layout(rows, tuple(groups))


def _chunk(descriptor: int, column: dict[int, Any], rows: int, end: int) -> Chunk:
    if column.keys() - _CHUNK_FIELDS or column[3].keys() - _META_FIELDS:
        raise _refused("a column has an index or a place of its own, which the archive's writer does not write")
    meta = column[3]
    name = b".".join(meta[3]).decode()
    at = min(meta[9], meta.get(11, meta[9]))
    stop = at + meta[7]
    if not 4 <= at < stop <= end:
        raise _refused(f"column {name} lies outside of the file")
    values = pages = width = 0
    dictionary = -1
    encodings: Counter[tuple[int, int]] = Counter()
    while at < stop:
        header = _Thrift(os.pread(descriptor, min(_PAGE_HEADER, stop - at), at))
        page = header.struct()
        kind, size = page[1], page[3]
        pages += 1
        if not (0 <= page[2] <= MAX_PAGE and 0 <= size <= stop - at - header.at) or pages > MAX_PAGES:
            raise _refused(f"a page of column {name} would have {page[2]} bytes")
        if kind == _DICTIONARY_PAGE and pages == 1:
            dictionary, encoding = page[2], page[7][2]
            plain = encoding in (_PLAIN, *_DICTIONARY)
        elif kind == _DATA_PAGE:
            values += page[5][1]
            width = max(width, page[2] // max(page[5][1], 1) + 1)
            encoding = page[5][2]
            plain = encoding == _PLAIN or (encoding in _DICTIONARY and dictionary >= 0)
            plain = plain and page[5][1] >= 0 and page[5][3] == page[5][4] == _RLE
        else:
            raise _refused(f"column {name} has a page of kind {kind}")
        if not plain:
            raise _refused(f"column {name} is encoded in a way that the archive's writer does not use")
        encodings[kind, encoding] += 1
        at += header.at + size
    if values != meta[5] or not rows <= values <= rows * (MAX_LIST if ".list." in name else 1):
        raise _refused(f"column {name} holds {values} values in {rows} rows")
    stated = {(e[1], e[2]): e[3] for e in meta.get(13, ())}
    if stated and stated != encodings:
        raise _refused(f"column {name} states other encodings than its pages have")
    statistics = meta.get(12, {})
    if statistics.keys() - _STATISTICS_FIELDS:
        raise _refused(f"column {name} has statistics that the archive's writer does not write")
    if meta[1] == _BYTE_ARRAY:  # any value may be the longest of the dictionary
        width = max(width, dictionary)
    return Chunk(name, values, width, statistics, _bloom(descriptor, meta, name, end))


def _bloom(descriptor: int, meta: dict[int, Any], name: str, end: int) -> bytes:
    """The bit set of a column's split block Bloom filter; empty where it has none."""
    if 14 not in meta:
        return b""
    offset, length = meta[14], meta.get(15, 0)
    if not 4 <= offset < offset + length <= end:
        raise _refused(f"the Bloom filter of column {name} lies outside of the file")
    header = _Thrift(os.pread(descriptor, min(length, 64), offset))
    fields = header.struct()
    size = fields[1]
    if any(not isinstance(fields[i], dict) or list(fields[i]) != [1] for i in (2, 3, 4)):
        raise _refused(f"the Bloom filter of column {name} is of another kind than the writer's")
    if size <= 0 or size % 32 or header.at + size != length:
        raise _refused(f"the Bloom filter of column {name} has {size} bytes")
    return os.pread(descriptor, size, offset + header.at)


class Seen:
    """What the rows of one group really hold, gathered batch by batch."""

    def __init__(self) -> None:
        self._low: dict[str, Any] = {}
        self._high: dict[str, Any] = {}
        self._valid: Counter[str] = Counter()
        self._missed: Counter[str] = Counter()

    def add(self, table: pa.Table, group: Group) -> None:
        """Take in rows of `group`."""
        for field in table.schema:
            column, name = table[field.name], field.name
            if pa.types.is_list(field.type):
                column, name = pc.list_flatten(column), f"{name}.list.element"
            self._valid[name] += len(column) - column.null_count
            if len(column) == column.null_count:
                continue
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.int64())
            found = pc.min_max(column)
            low, high = _plain(found["min"]), _plain(found["max"])
            self._low[name] = min(self._low.get(name, low), low)
            self._high[name] = max(self._high.get(name, high), high)
            chunk = group.chunks.get(name)
            if chunk is not None and chunk.bloom:
                self._missed[name] += _not_in(chunk.bloom, column)

    def differences(self, name: str, chunk: Chunk) -> list[str]:
        """What `chunk` states that is not so."""
        found = []
        stated, valid = chunk.statistics, self._valid[name]
        for numbers, true, what in (((2, 6), self._low, "smallest"), ((1, 5), self._high, "largest")):
            if any(n in stated and not (valid and _states(stated[n], true[name])) for n in numbers):
                found.append(f"column {name} states a {what} value that is not its rows'")
        if not all(stated.get(number, True) for number in (7, 8)):
            found.append(f"column {name} states bounds that are not exact")
        if stated.get(3, chunk.values - valid) != chunk.values - valid:
            found.append(f"column {name} states {stated[3]} nulls, it has {chunk.values - valid}")
        if self._missed[name]:
            found.append(f"the Bloom filter of column {name} denies {self._missed[name]} of its values")
        return found


def _plain(value: pa.Scalar) -> Any:
    found = value.as_py()
    return found.encode() if isinstance(found, str) else found


def _states(stated: Any, value: Any) -> bool:
    """Whether a bound of a statistics is `value`: text and binary as they are, integers little endian in 4 or 8 bytes."""
    if isinstance(value, bytes):
        return bool(stated == value)
    return stated in (struct.pack("<q", value), struct.pack("<q", value)[:4] if -(2**31) <= value < 2**31 else b"")


_PRIMES: Final = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
_SALTS: Final = (
    0x47B6137B,
    0x44974D91,
    0x8824AD5B,
    0xA2B7289D,
    0x705495C7,
    0x2DF1424B,
    0x9EFC4947,
    0x5C6BFB31,
)


def _u64(value: int) -> pa.Scalar:
    return pa.scalar(value, pa.uint64())


def _hashes(values: pa.Array) -> pa.Array:
    """XXH64 (seed 0) of each value of 16 bytes."""
    lanes = pa.Array.from_buffers(
        pa.list_(pa.uint64(), 2),
        len(values),
        [None],
        children=[
            pa.Array.from_buffers(pa.uint64(), 2 * len(values), [None, values.buffers()[1]], offset=2 * values.offset)
        ],
    )
    one, two, three, four = map(_u64, _PRIMES[:4])

    def turned(x: pa.Array, bits: int) -> pa.Array:
        return pc.bit_wise_or(pc.shift_left(x, _u64(bits)), pc.shift_right(x, _u64(64 - bits)))

    h = _u64((_PRIMES[4] + 16) & (1 << 64) - 1)
    for lane in range(2):
        k = pc.multiply(turned(pc.multiply(pc.list_element(lanes, lane), two), 31), one)
        h = pc.add(pc.multiply(turned(pc.bit_wise_xor(h, k), 27), one), four)
    h = pc.multiply(pc.bit_wise_xor(h, pc.shift_right(h, _u64(33))), two)
    h = pc.multiply(pc.bit_wise_xor(h, pc.shift_right(h, _u64(29))), three)
    return pc.bit_wise_xor(h, pc.shift_right(h, _u64(32)))


def _not_in(bits: bytes, column: pa.ChunkedArray) -> int:
    """How many of the column's values (16 bytes each) a split block Bloom filter says are not there."""
    values = pc.unique(column.drop_null())
    values = pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values
    h = _hashes(values)
    words = pa.Array.from_buffers(pa.uint32(), len(bits) // 4, [None, pa.py_buffer(bits)])
    block = pc.shift_right(pc.multiply(pc.shift_right(h, _u64(32)), _u64(len(bits) // 32)), _u64(32))
    key = pc.bit_wise_and(h, _u64(0xFFFFFFFF))
    there = pa.array([True] * len(values))
    for i, salt in enumerate(_SALTS):
        bit = pc.shift_right(pc.bit_wise_and(pc.multiply(key, _u64(salt)), _u64(0xFFFFFFFF)), _u64(27))
        word = words.take(pc.add(pc.multiply(block, _u64(8)), _u64(i))).cast(pa.uint64())
        there = pc.and_(there, pc.equal(pc.bit_wise_and(pc.shift_right(word, bit), _u64(1)), _u64(1)))
    return len(values) - int(pc.sum(there).as_py() or 0)
