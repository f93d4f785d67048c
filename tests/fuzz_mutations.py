"""Mutations of files: of bytes, and of the fields that formats are made of.

Every function takes a random generator and the content of a sound file, and returns the content of
one that is probably unsound. Checksums that would hide a mutation from the reader are set right.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

Mutation = Callable[[random.Random, bytes], bytes]

NUMBERS = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000)
NUMBERS += (0xFFFFFFFF, 10**6, 10**12, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**31), -(2**63))
FLOATS = (0.0, -0.0, -1.0, 1e-30, 1e30, 1e308, 5e-324, float("nan"), float("inf"), -float("inf"))
WORDS = (
    "",
    " ",
    "0",
    "-1",
    "1",
    "3",
    "1e12",
    "1000000000000",
    "99999999999999999999",
    "nan",
    "inf",
)
WORDS += ("-0", "1e400", "0x10", "none", "true", "x", "(", "\0", "é", "none none", "1 2 3 4", "./")
WORDS += ("../../etc/hostname", "LIST", "a" * 300)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


# ---------------------------------------------------------------- bytes


def any_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut, repeat, insert or overwrite bytes, more often near the beginning."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not data:
            break
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 400))
        many = rng.choice((1, 2, 4, 16, 300))
        match rng.randrange(8):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2 | 3:
                form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
                size = struct.calcsize(form)
                number = rng.choice(NUMBERS) % (1 << 8 * size)
                data[at : at + size] = struct.pack(form, number)
            case 4:
                form = rng.choice(("<f", ">f", "<d", ">d"))
                data[at : at + struct.calcsize(form)] = _float(form, rng.choice(FLOATS))
            case 5:
                del data[at : at + many]
            case 6:
                data[at:at] = data[at : at + many]
            case _:
                data[at:at] = rng.randbytes(many)
    return bytes(data)


def _float(form: str, value: float) -> bytes:
    try:
        return struct.pack(form, value)
    except OverflowError:
        return struct.pack(form, float("inf"))


def cut(rng: random.Random, content: bytes) -> bytes:
    """Cut the end off, or leave garbage behind it."""
    if rng.random() < 0.8:
        return content[: rng.randrange(len(content) + 1)]
    return content + rng.randbytes(rng.choice((1, 8, 1000)))


def numbers_in_text(rng: random.Random, content: bytes) -> bytes:
    """Other numbers or words where a text has numbers."""
    places = list(_NUMBER.finditer(content[:4096]))
    for match in sorted(rng.sample(places, min(len(places), rng.choice((1, 1, 2)))), key=_end)[
        ::-1
    ]:
        word = (
            rng.choice(WORDS).encode() if rng.random() < 0.8 else str(rng.choice(NUMBERS)).encode()
        )
        content = content[: match.start()] + word + content[match.end() :]
    return content


def _end(match: re.Match[bytes]) -> int:
    return match.end()


def lines(end: bytes) -> Mutation:
    """Mutation of a header of lines, up to the line that is or begins as `end`."""

    def mutate(rng: random.Random, content: bytes) -> bytes:
        at = content.find(end)
        head, tail = (content, b"") if at < 0 else (content[:at], content[at:])
        rows = head.split(b"\n")
        k = rng.randrange(len(rows))
        match rng.randrange(7):
            case 0:
                del rows[k]
            case 1:
                rows.insert(rng.randrange(len(rows)), rows[k])
            case 2:
                rng.shuffle(rows)
            case 3:  # the value of another line
                name, sign, _ = _parts(rows[k])
                rows[k] = name + sign + _parts(rng.choice(rows))[2]
            case 4:
                name, sign, _ = _parts(rows[k])
                rows[k] = name + sign + b" " + rng.choice(WORDS).encode()
            case 5:
                rows[k] = rows[k] * rng.choice((2, 1000))
            case _:
                rows[k] = numbers_in_text(rng, rows[k])
        return b"\n".join(rows) + tail

    return mutate


def _parts(row: bytes) -> tuple[bytes, bytes, bytes]:
    return row.partition(b":") if b":" in row else row.partition(b"=")


# ---------------------------------------------------------------- values


def other_value(rng: random.Random, value: Any) -> Any:
    """Something else in place of a JSON value."""
    simple = (None, True, "", "x", [], {}, [[]], rng.choice(NUMBERS), rng.choice(FLOATS))
    if isinstance(value, bool) or value is None or rng.random() < 0.3:
        return rng.choice((*simple, rng.choice(WORDS)))
    if isinstance(value, (int, float)):
        return rng.choice((-value, value + 1, value * 10**9, rng.choice(NUMBERS), float("nan")))
    if isinstance(value, str):
        return rng.choice((value[:-1], value * 3, value.upper(), rng.choice(WORDS)))
    if isinstance(value, list):
        return rng.choice((value[:-1], value * 2, value[::-1], [value], rng.choice(simple)))
    return rng.choice((list(value), {**value, "x": 1}, rng.choice(simple)))


def mutate_tree(rng: random.Random, value: Any) -> Any:
    """A JSON value in which one place is something else, gone, doubled or deep."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return value | {key: value[rng.choice(list(value))]}
            case 2:
                return value | {rng.choice(WORDS): value[key]}
        return value | {key: mutate_tree(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        k = rng.randrange(len(value))
        return [*value[:k], mutate_tree(rng, value[k]), *value[k + 1 :]]
    if rng.random() < 0.03:
        return _deep(rng.choice((50, 2000)), value)
    return other_value(rng, value)


def _deep(levels: int, value: Any) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def as_json(rng: random.Random, content: bytes) -> bytes:
    """Another place of a JSON file."""
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 2))):
        value = mutate_tree(rng, value)
    return _dump(value)


def _dump(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000


def as_yaml(rng: random.Random, content: bytes) -> bytes:
    """Another value in YAML of one level."""
    rows = content.decode().splitlines()
    k = rng.randrange(len(rows))
    key, _, value = rows[k].partition(":")
    text = rng.choice((*WORDS, f"[{value}]", f"{value} {value}", "{a: 1}", "&a [*a]", "!!x 1", "|"))
    rows[k] = f"{key}: {text}"
    return "\n".join(rows).encode()


def as_journal(rng: random.Random, content: bytes) -> bytes:
    """Another place of a record of a journal, with the right checksum, or other lines."""
    rows = content.splitlines()
    k = rng.randrange(len(rows))
    match rng.randrange(6):
        case 0:
            del rows[k]
        case 1:
            rows.insert(rng.randrange(len(rows) + 1), rows[k])
        case 2:
            rng.shuffle(rows)
        case _:
            value = mutate_tree(rng, json.loads(rows[k][9:]))
            text = _dump(value)
            rows[k] = b"%08x %s" % (zlib.crc32(text), text)
    return b"\n".join(rows) + b"\n"


# ---------------------------------------------------------------- binary headers


def nifti_fields(rng: random.Random, content: bytes) -> bytes:
    """Other values in fields of a NIfTI-1 or -2 header."""
    data = bytearray(content)
    if struct.unpack_from("<i", data)[0] == 540:
        fields = {"<q": (*range(16, 80, 8), 168), "<h": (12, 14), "<d": (*range(104, 192, 8),)}
        fields |= {"<i": (0, 344, 348, 500, 504)}
    else:
        fields = {"<h": (*range(40, 56, 2), 68, 70, 72, 252, 254), "<i": (0, 344)}
        fields |= {"<f": (*range(76, 124, 4), *range(256, 328, 4)), "<B": (39, 123, 344, 345, 346)}
    for _ in range(rng.choice((1, 1, 2, 4))):
        form = rng.choice(list(fields))
        at = rng.choice(fields[form])
        if form[1] in "fd":
            value = _float(form, rng.choice((*FLOATS, 1e9, 352.0, 3.7)))
        else:
            size = struct.calcsize(form)
            number = rng.choice(
                (*NUMBERS, 4, 8, 16, 64, 128, 511, 512, 768, 1024, 1280, 2304, 1536)
            )
            value = (number % (1 << 8 * size)).to_bytes(size, "little")
        data[at : at + len(value)] = value
    return bytes(data)


def in_gzip(inner: Mutation) -> Mutation:
    """A mutation of what is in a gzip file, which is packed again."""

    def mutate(rng: random.Random, content: bytes) -> bytes:
        packed = gzip.compress(inner(rng, gzip.decompress(content)), 1)
        return packed if rng.random() < 0.9 else cut(rng, packed)

    return mutate


def in_zip(*inner: Mutation) -> Mutation:
    """A mutation of one member of a zip file, or of which members there are."""

    def mutate(rng: random.Random, content: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(list(members))
        match rng.randrange(10):
            case 0:
                del members[name]
            case 1:
                members[rng.choice(("x", "../x", "/x", name + "\0", name.upper()))] = members[name]
            case 2:
                members[name] = members[rng.choice(list(members))]
            case _:
                members[name] = rng.choice(inner)(rng, members[name])
        file = io.BytesIO()
        packed = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(file, "w", packed) as archive:
            for name, value in members.items():
                archive.writestr(zipfile.ZipInfo(name), value, packed)
        return file.getvalue()

    return mutate


def png_chunks(rng: random.Random, content: bytes) -> bytes:
    """Other chunks of a PNG or APNG, with right checksums."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, at)
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + size]])
        at += 12 + size
    k = rng.randrange(len(chunks))
    match rng.randrange(8):
        case 0:
            del chunks[k]
        case 1:
            chunks.insert(rng.randrange(len(chunks)), list(chunks[k]))
        case 2:
            a, b = rng.randrange(len(chunks)), rng.randrange(len(chunks))
            chunks[a], chunks[b] = chunks[b], chunks[a]
        case 3:
            kinds = (
                b"IHDR",
                b"IDAT",
                b"PLTE",
                b"tRNS",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"iCCP",
                b"eXIf",
            )
            chunks[k][0] = rng.choice((*kinds, b"pHYs", b"gAMA", b"zTXt", rng.randbytes(4)))
        case 4:  # other pixels than the header says
            for chunk in chunks:
                if chunk[0] == b"IDAT":
                    size = rng.choice((0, 1, 100, 10**6))
                    chunk[1] = zlib.compress(bytes(size))
        case 5:
            header = bytearray(chunks[0][1])
            if len(header) >= 13:
                at = rng.choice((0, 4, 8, 9, 10, 11, 12))
                if at < 8:
                    struct.pack_into(">I", header, at, rng.choice(NUMBERS) % 2**32)
                else:
                    header[at] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 32, 255))
                chunks[0][1] = bytes(header)
        case _:
            chunks[k][1] = any_bytes(rng, chunks[k][1])
    out = content[:8]
    for kind, value in chunks:
        out += struct.pack(">I", len(value)) + kind + value
        out += struct.pack(">I", zlib.crc32(kind + value))
    return out


def jpeg_segments(rng: random.Random, content: bytes) -> bytes:
    """Other segments of a JPEG: frame headers, tables, lengths, order."""
    places = [m.start() for m in re.finditer(rb"\xff[\xc0-\xcf\xd8-\xef\xfe]", content)]
    if not places:
        return any_bytes(rng, content)
    at = rng.choice(places)
    data = bytearray(content)
    match rng.randrange(5):
        case 0:
            data[at + 1] = rng.choice((*range(0xC0, 0xD0), 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xEE))
        case 1:
            data[at + 2 : at + 4] = struct.pack(">H", rng.choice(NUMBERS) % 2**16)
        case 2:
            for frame in re.finditer(rb"\xff[\xc0-\xc3]", content):
                where = frame.start() + rng.choice((4, 5, 7, 9, 11))
                data[where : where + 2] = struct.pack(">H", rng.choice(NUMBERS) % 2**16)
        case 3:
            other = rng.choice(places)
            data[at:at] = data[other : other + rng.choice((4, 20, 200))]
        case _:
            del data[at : at + rng.choice((2, 4, 20))]
    return bytes(data)


def tiff_tags(rng: random.Random, content: bytes) -> bytes:
    """Other tags, types, counts and values in the directories of a TIFF or BigTIFF."""
    data = bytearray(content)
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    first, number, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    (at,) = struct.unpack_from(order + first, data, 8 if big else 4)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):  # a later directory
        if at + 8 > len(data):
            break
        (count,) = struct.unpack_from(order + number, data, at)
        end = at + struct.calcsize(order + number) + count * entry
        if end + 4 > len(data):
            break
        (follows,) = struct.unpack_from(order + first, data, end)
        at = follows or at
    try:
        (count,) = struct.unpack_from(order + number, data, at)
        start = at + struct.calcsize(order + number)
        for _ in range(rng.choice((1, 1, 2, 3))):
            place = start + entry * rng.randrange(max(1, count))
            match rng.randrange(6):
                case 0:
                    tags = (
                        256,
                        257,
                        258,
                        259,
                        262,
                        273,
                        277,
                        278,
                        279,
                        317,
                        320,
                        322,
                        323,
                        338,
                        339,
                    )
                    struct.pack_into(order + "H", data, place, rng.choice((*tags, 270, 282, 530)))
                case 1:
                    struct.pack_into(order + "H", data, place + 2, rng.choice((*range(19), 65535)))
                case 2:
                    width = rng.choice(NUMBERS) % (2**64 if big else 2**32)
                    struct.pack_into(order + first, data, place + 4, width)
                case 3:
                    data[place : place + entry] = data[start : start + entry]
                case _:
                    value = rng.choice((*NUMBERS, 5, 8, 16, 32, 32773, 34712, 50000, 50001))
                    value %= 2**64 if big else 2**32
                    struct.pack_into(order + first, data, place + (12 if big else 8), value)
        if rng.random() < 0.1:  # the next directory: this one, or nowhere
            struct.pack_into(order + first, data, start + entry * count, rng.choice((at, 8, 2**31)))
    except struct.error:
        return any_bytes(rng, content)
    return bytes(data)


def boxes(rng: random.Random, content: bytes) -> bytes:
    """Other sizes and names of the boxes of an MP4 file, or blocks swapped."""
    names = [
        m.start()
        for m in re.finditer(rb"moov|trak|mdia|stsd|stts|stsz|stco|stsc|mdat|avc1", content)
    ]
    if not names:
        return any_bytes(rng, content)
    data, at = bytearray(content), rng.choice(names)
    match rng.randrange(4):
        case 0:
            data[at - 4 : at] = struct.pack(">I", rng.choice(NUMBERS) % 2**32)
        case 1:
            data[at : at + 4] = data[(other := rng.choice(names)) : other + 4]
        case 2:
            where = at + rng.choice((8, 12, 16, 20))
            data[where : where + 4] = struct.pack(">I", rng.choice(NUMBERS) % 2**32)
        case _:
            return any_bytes(rng, content[:at]) + any_bytes(rng, content[at:])
    return bytes(data)


def safetensors_header(rng: random.Random, content: bytes) -> bytes:
    """Another place of the index of a safetensors file."""
    (size,) = struct.unpack_from("<Q", content)
    text = as_json(rng, content[8 : 8 + size])
    stated = len(text) if rng.random() < 0.8 else rng.choice(NUMBERS) % 2**64
    return struct.pack("<Q", stated) + text + content[8 + size :]


def dicom_elements(rng: random.Random, content: bytes) -> bytes:
    """Other elements of a DICOM file, at any depth: values, absence, place, number."""
    ds = pydicom.dcmread(io.BytesIO(content), force=True)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _mutate_element(rng, ds)
    out = io.BytesIO()
    try:
        ds.save_as(out, enforce_file_format=False)
    except Exception:  # pydicom refuses to write it: then of bytes
        return any_bytes(rng, content)
    return out.getvalue()


def _mutate_element(rng: random.Random, ds: Dataset) -> None:
    tags = list(ds.keys())
    if not tags:
        return
    if getattr(ds, "file_meta", None) and rng.random() < 0.05:
        syntaxes = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
        syntaxes += ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80")
        syntaxes += ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.1.99", "1.2.3", "")
        ds.file_meta.TransferSyntaxUID = rng.choice(syntaxes)
        return
    tag = rng.choice(tags)
    try:
        element = ds[tag]
    except Exception:
        del ds[tag]
        return
    if isinstance(element.value, Sequence) and element.value and rng.random() < 0.85:
        items = element.value
        match rng.randrange(6):
            case 0:
                del items[rng.randrange(len(items))]
            case 1:
                items.append(items[rng.randrange(len(items))])
            case 2:
                items[0], items[-1] = items[-1], items[0]
            case _:
                _mutate_element(rng, rng.choice(list(items)))
        return
    match rng.randrange(5):
        case 0:
            del ds[tag]
        case 1:
            with_value = ds[rng.choice(tags)].value if rng.random() < 0.5 else None
            _set(element, with_value)
        case _:
            _set(element, _other_element(rng, element.VR, element.value))


def _set(element: Any, value: Any) -> None:
    try:
        element._value = (
            value if not isinstance(value, list) else pydicom.multival.MultiValue(_same, value)
        )
    except Exception:
        element._value = None


def _same(value: Any) -> Any:
    return value


def _other_element(rng: random.Random, vr: str, value: Any) -> Any:
    if vr in ("US", "UL", "SS", "SL", "UV", "SV"):
        bits = {"S": 16, "L": 32, "V": 64}[vr[1]]
        number = rng.choice((*NUMBERS, 4, 8, 12, 16, 24, 32)) % (1 << bits)
        if vr[0] == "S":
            number -= 1 << (bits - 1)
        return rng.choice((number, number, [number, 1], None))
    if vr in ("FD", "FL"):
        number = rng.choice(FLOATS if vr == "FD" else FLOATS[:4])
        several = list(value) if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]
        several[rng.randrange(len(several)) if several else 0 :] = [number]
        return rng.choice((number, several, several[:-1], None))
    if vr in ("OB", "OW", "UN", "OD", "OF") and isinstance(value, bytes):
        return rng.choice(
            (b"", value[: len(value) // 2 * 2 // 2], value + bytes(2), any_bytes(rng, value))
        )
    if vr in ("DS", "IS"):
        several = (
            [str(v) for v in value]
            if isinstance(value, (list, pydicom.multival.MultiValue))
            else [str(value)]
        )
        several[rng.randrange(len(several))] = rng.choice((*WORDS[:14], "1e30", "-5", "1.5"))
        return rng.choice((several, several[:-1], several * 2, None))
    text = str(value)
    return rng.choice((text[:-1], text + ".1", rng.choice(WORDS), f"{text}\\{text}", None))
