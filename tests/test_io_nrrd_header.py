"""Our NRRD headers against pynrrd's, in both directions, and what no header may do."""

from __future__ import annotations

import bz2
import gzip
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import limner
from limner import Geometry, Image
from limner.errors import FormatError
from limner.io import Labels, write_image
from limner.io.nrrd.field_values import TYPES
from limner.io.nrrd.header import parse_lines, read_header
from rounds import times

SAME_FOLDER = [HealthCheck.function_scoped_fixture]
PACK: dict[str, Callable[[np.ndarray], bytes]] = {
    "raw": lambda a: a.tobytes(),
    "gzip": lambda a: gzip.compress(a.tobytes()),
    "gz": lambda a: gzip.compress(a.tobytes()),
    "bzip2": lambda a: bz2.compress(a.tobytes()),
    "bz2": lambda a: bz2.compress(a.tobytes()),
    "ascii": lambda a: "\n".join(map(repr, a.ravel().tolist())).encode(),
    "text": lambda a: " ".join(map(repr, a.ravel().tolist())).encode(),
    "txt": lambda a: " ".join(map(repr, a.ravel().tolist())).encode(),
}
ALL_TYPES = [(name, code) for code, names in TYPES.items() for name in names]


def values_of(code: str, number: int) -> np.ndarray:
    """Numbers up to the limits of their type."""
    dtype = np.dtype(code)
    if dtype.kind == "f":
        return (np.arange(number) * -1.5e10 + 0.1).astype(dtype)
    info = np.iinfo(dtype)
    few = np.array([info.min, info.max, 0, 1], dtype=dtype)
    return np.resize(few, number)


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("place", ["attached", "detached", "./detached"])
def test_all_types_in_all_encodings(tmp_path: Path, encoding: str, endian: str, place: str) -> None:
    for name, code in ALL_TYPES:
        pixels = values_of(code, 24).reshape(2, 3, 4)
        packed = PACK[encoding](pixels.astype(pixels.dtype.newbyteorder("<>"[endian == "big"])))
        lines = ["NRRD0004", f"type: {name}", "dimension: 3", "sizes: 4 3 2", f"endian: {endian}"]
        lines += [f"encoding: {encoding}", "spacings: 1 2 3"]
        path = tmp_path / ("a.nrrd" if place == "attached" else "a.nhdr")
        if place == "attached":
            path.write_bytes("\n".join([*lines, "", ""]).encode() + packed)
        else:
            (tmp_path / "a.pixels").write_bytes(packed)
            file = "./a.pixels" if place[0] == "." else "a.pixels"
            path.write_text("\n".join([*lines, f"data file: {file}", ""]))

        image = limner.read(path)

        theirs, _ = nrrd.read(str(path), index_order="C")
        assert image.dtype == np.dtype(code), name
        np.testing.assert_array_equal(image.array, theirs.reshape(2, 3, 4))
        np.testing.assert_array_equal(image.array, pixels)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("detached", [False, True])
def test_reads_what_pynrrd_writes(tmp_path: Path, encoding: str, detached: bool) -> None:
    pixels = np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2)
    header = {
        "encoding": encoding,
        "space": "right-anterior-superior",
        "space directions": np.array([[np.nan] * 3, [0.1, 0, 0], [0, 2, 0], [0, 1e-3, 3]]),
        "space origin": np.array([1, -2, 1 / 3]),
        "space units": ["mm", "mm", "mm"],
        "kinds": ["vector", "domain", "domain", "domain"],
        "Segment0_Name": "left kidney: upper pole := cyst",
        "content": "two words",
    }
    path = tmp_path / ("a.nhdr" if detached else "a.nrrd")
    nrrd.write(str(path), pixels, header, detached_header=detached, index_order="C")
    image = limner.read(path)
    np.testing.assert_array_equal(image.array, pixels)
    np.testing.assert_array_equal(image.geometry.origin, (-1, 2, 1 / 3))
    np.testing.assert_array_equal(image.affine[:3, 0], (0, -1e-3, 3))
    assert read_header(path).keys == {"Segment0_Name": "left kidney: upper pole := cyst"}


@pytest.mark.parametrize("code", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 4, 3)])
@pytest.mark.parametrize("has_spacing", [True, False])
def test_pynrrd_reads_what_we_write(
    tmp_path: Path, code: str, shape: tuple, has_spacing: bool
) -> None:
    pixels = values_of(code, int(np.prod(shape))).reshape(shape)
    geometry = Geometry(shape[:3], has_spacing=False)
    if has_spacing:
        geometry = Geometry.from_spacing(shape[:3], np.arange(1, len(shape[:3]) + 1) / 7)
    path = tmp_path / "a.nrrd"
    write_image(path, Image(pixels, geometry))
    theirs, header = nrrd.read(str(path), index_order="C")
    np.testing.assert_array_equal(theirs, pixels)
    assert header["dimension"] == len(shape)
    assert ("space directions" in header) is has_spacing
    assert_same(read_header(path).fields, header)


def test_names_keep_every_letter(tmp_path: Path) -> None:
    """A backslash is escaped, which ITK and we undo, and pynrrd leaves to its caller."""
    labels = Labels(
        Geometry((2, 3, 4)), array=np.ones((2, 3, 4), np.uint8), names={1: r"a\nb := ü"}
    )
    for name in ("a.nrrd", "a.seg.nrrd"):
        limner.write(tmp_path / name, labels)
        assert limner.read_labels(tmp_path / name).names == labels.names
    assert read_header(tmp_path / "a.nrrd").keys["Segment0_Name"] == r"a\nb := ü"
    assert sitk.ReadImage(tmp_path / "a.nrrd").GetMetaData("Segment0_Name").startswith(r"a\nb := ")
    assert nrrd.read_header(str(tmp_path / "a.nrrd"))["Segment0_Name"] == r"a\\nb :="


# ---------------------------------------------------------------- headers


def assert_same(ours: dict, theirs: dict) -> None:
    """Fields by name, with arrays compared by value and NaN equal to NaN."""
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        if isinstance(theirs[name], np.ndarray | float):
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
        else:
            assert value == theirs[name], name


FLOATS = st.one_of(
    st.floats(allow_nan=False, width=64).map(repr),
    st.integers(-(10**6), 10**6).map(str),
    st.sampled_from(["nan", "NaN", "inf", "-inf", "1e5", ".5", "2.", "+3", "-1E-3"]),
)
FINITE = st.floats(allow_nan=False, allow_infinity=False).map(repr)
PLAIN = st.text("abcXYZ 019.,:;=#()'/_-+[]%", max_size=12)
QUOTABLE = st.text("abc 019.,:=#()'/_-\"\\", max_size=8)
KINDS = st.sampled_from(["domain", "space", "time", "list", "vector", "RGB-color", "none", "???"])
SPACES = ["left-posterior-superior", "RAS", "LPST", "scanner-xyz", "3D-right-handed"]


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def headers(draw: st.DrawFn) -> tuple[list[str], dict[str, str]]:
    """Lines of a valid header, and the keys in it as they should be read."""
    count, width = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    vector = st.lists(FINITE, min_size=width, max_size=width).map(lambda v: f"({','.join(v)})")

    def each(values: st.SearchStrategy[str], gap: str = " ") -> str:
        return gap.join(draw(st.lists(values, min_size=count, max_size=count)))

    gap = draw(st.sampled_from([" ", "  ", "\t"]))
    directions = [draw(vector), *draw(st.lists(st.just("none") | vector, max_size=count - 1))]
    space = [f"space dimension: {width}", f"space: {draw(st.sampled_from(SPACES))}"]
    possible = [
        f"type: {draw(st.sampled_from(ALL_TYPES))[0]}",
        f"dimension: {count}",
        f"sizes: {each(st.integers(1, 10**12).map(str), gap)}",
        f"encoding: {draw(st.sampled_from(sorted(PACK)))}",
        f"endian: {draw(st.sampled_from(['little', 'big']))}",
        draw(st.sampled_from(space)),
        f"space directions: {gap.join(draw(st.permutations(directions)))}",
        f"space origin: {draw(vector)}",
        f"space units: {' '.join(quoted(draw(QUOTABLE)) for _ in range(width))}",
        f"measurement frame: {gap.join(draw(vector) for _ in range(width))}",
        f"spacings: {each(FLOATS, gap)}",
        f"thicknesses: {each(FLOATS)}",
        f"axis mins: {each(FLOATS)}",
        f"axis maxs: {each(FLOATS)}",
        f"kinds: {each(KINDS)}",
        f"centerings: {each(st.sampled_from(['cell', 'node', 'none', '???']))}",
        f"labels: {each(QUOTABLE.map(quoted))}",
        f"units: {each(QUOTABLE.map(quoted))}",
        f"content: {draw(PLAIN)}",
        f"sample units: {draw(PLAIN)}",
        f"min: {draw(FLOATS)}",
        f"old max: {draw(FLOATS)}",
        f"line skip: {draw(st.integers(0, 99))}",
        f"byte skip: {draw(st.integers(-1, 99))}",
        f"data file: {draw(st.sampled_from(['a b.raw', './a.raw', 'a%03d.raw 1 9 1']))}",
    ]
    lines = draw(st.lists(st.sampled_from(possible), unique_by=lambda line: line.split(":")[0]))
    keys = draw(st.dictionaries(st.text("abcABC 09_", min_size=1).map(lambda k: f"k{k}k"), PLAIN))
    pairs = [f"{key}:={value}" for key, value in keys.items()]
    comments = draw(st.lists(PLAIN.map(lambda text: f"#{text}"), max_size=3))
    return draw(st.permutations(lines + pairs + comments)), keys


@pytest.mark.slow
@settings(max_examples=times(150), deadline=None, suppress_health_check=SAME_FOLDER)
@given(header=headers(), end=st.sampled_from(["\n", "\r\n"]), version=st.integers(1, 5))
def test_valid_headers_say_to_us_what_they_say_to_pynrrd(
    tmp_path: Path, header: tuple[list[str], dict[str, str]], end: str, version: int
) -> None:
    lines, keys = header
    path = tmp_path / "a.nrrd"
    text = end.join([f"NRRD000{version}", *lines, "", ""])
    path.write_bytes(text.encode() + b"pixels: \n\nmore")

    ours = read_header(path)

    assert ours.end == len(text)
    assert ours.keys == {key: value.strip() for key, value in keys.items()}
    assert_same({**ours.fields, **ours.keys}, dict(nrrd.read_header(str(path))))


def test_escapes_of_keys() -> None:
    """The format has two escapes, newline and backslash; any other backslash stays."""
    _, keys = parse_lines([r"k\\e\ny:=one\ntwo\\three\tfour\\n", "old: way"])
    assert keys == {"k\\e\ny": "one\ntwo\\three\\tfour\\n", "old": "way"}


def test_other_spellings() -> None:
    text = """Type:short
BYTESKIP: 3
lineskip: 2
axismins: 1 2
centers: cell node
datafile: a.raw
space units: mm 'm
Space Origin: ( 1, 2 )
SIZES:= 1 2
space directions: NONE (1, 0)( 0,1 )
a: b:=c
#comment: 1"""
    fields, keys = parse_lines(text.split("\n"))
    assert fields.pop("axis mins").tolist() == [1, 2]
    assert fields.pop("space origin").tolist() == [1, 2]
    np.testing.assert_array_equal(fields.pop("space directions"), [[np.nan] * 2, [1, 0], [0, 1]])
    assert fields == {
        "type": "short",
        "byte skip": 3,
        "line skip": 2,
        "centerings": ["cell", "node"],
        "data file": "a.raw",
        "space units": ["mm", "'m"],
    }
    assert keys == {"SIZES": "1 2", "a: b": "c"}


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("sizes: 4 3 2.0", "whole numbers expected"),
        ("sizes: 1_0 3 2", "whole numbers expected"),
        ("sizes: 4 3 ٢", "whole numbers expected"),
        ("spacings: 1 1 1_0", "numbers expected"),
        ("spacings: 1 1 1,0", "numbers expected"),
        ("space directions: 1 0 0", "vectors such as"),
        ("space directions: (1,0) (1,0,0)", "equal length"),
        ("space directions: nonesuch (1,0,0) (0,1,0)", "vectors such as"),
        ("space directions:", "vectors such as"),
        ("space directions: ()", "vectors such as"),
        ("space directions: ((1,0,0) (0,1,0) (0,0,1)", "vectors such as"),
        ("space origin: none", "a vector such as"),
        ("space origin: (0,0,0) (0,0,0)", "a vector such as"),
        ('space units: "mm" "mm" "mm', "quotation marks"),
        ('labels: "' + '\\"' * 50_000, "quotation marks"),
        ("line skip: 1.5", "a whole number expected"),
        ("min: low", "a number expected"),
        ("Dimension: 3", "'dimension' is there twice"),
        ("no separator here", "has no colon"),
        ("line skip: -1", "line skip of -1"),
        ("centerings: cell", "1 centerings are given for 3 axes"),
        ("axis mins: 0 0", "2 axis mins are given for 3 axes"),
        ("byte skip: 99999999999999999999", "a whole number expected"),
        ("byte skip: 999999999999999999", "cut off"),
        ("data file: LIST\nslice 1\nslice 2", "no such file"),
    ],
)
def test_malformed_lines(tmp_path: Path, line: str, match: str) -> None:
    lines = ["NRRD0005", "type: short", "dimension: 3", "endian: little", "encoding: raw", line]
    if not line.startswith("sizes"):
        lines.append("sizes: 4 3 2")
    if line.startswith("data file"):
        lines[-2:] = lines[:-3:-1]
    path = tmp_path / "a.nrrd"
    path.write_bytes("\n".join([*lines, "", ""]).encode() + bytes(48))
    with pytest.raises(FormatError, match=match) as caught:
        limner.read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize("first", ["NRRD0006", "NRRD0000", "NRRD0005x", "NRRD000", "NRRD00055"])
def test_versions_to_come(tmp_path: Path, first: str) -> None:
    path = tmp_path / "a.nrrd"
    path.write_text(f"{first}\ntype: uchar\ndimension: 2\nsizes: 1 1\nencoding: raw\n\n0")
    with pytest.raises(FormatError, match="NRRD0001 to NRRD0005 are read"):
        limner.read(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flood",
    [
        b"#\n",
        b"a:=b\n",
        b"(1,1)",
        b"space directions: " + b"none " * 90_000 + b"(1" + b",1" * 240_000 + b")\n",
        b"space directions: (" + b"1," * 500_000,
        b'labels: "' + b"\\" * 900_000,
    ],
)
def test_headers_without_end_cost_little(tmp_path: Path, flood: bytes) -> None:
    """The vectors of the fourth would take 170 GB."""
    path = tmp_path / "a.nrrd"
    path.write_bytes(b"NRRD0005\n" + (flood * (3_000_000 // len(flood) + 1)))
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"within 1048576 bytes|malformed"):
        limner.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_a_blank_line_within_the_limit_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "a.nhdr"
    flood = "# more\n" * 100_000
    path.write_text(f"NRRD0005\n{flood}type: uchar\ndimension: 2\nsizes: 2 1\nencoding: raw\n\n01")
    assert limner.read(path).array.tolist() == [[48, 49]]


def test_pynrrd_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nrrd", None)
    limner.write(tmp_path / "a.seg.nrrd", np.ones((2, 3, 4), np.uint8), like=Geometry((2, 3, 4)))
    assert limner.read_labels(tmp_path / "a.seg.nrrd").ids == (1,)
