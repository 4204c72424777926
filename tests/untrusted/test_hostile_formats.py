"""Damaged zip archives and headers of safetensors, and names that no file has: see hostile.py."""

import json
import os
import struct

import pytest

from hostile import refused
from official_checkpoints import MINI
from tessera_fast.errors import InputError, WeightsError
from tessera_fast.weights import load_weights, save_safetensors, spec_of, untrained_weights

SPEC = MINI["v2"]
FIRST, QUERY = "s2_backbone.embedding.0.weight", "s1_backbone.attn_pool.query.weight"
OTHER_QUERY = QUERY.replace("s1", "s2")
MIB = 1 << 20

# ---- zip archives


def zipped(change=lambda data: data, *, names=("m/data.pkl",), comment=b""):
    """A small archive of ``names``; ``change`` gets its bytes."""
    file = bytearray()
    directory = b""
    for name in names:
        name = name if isinstance(name, bytes) else name.encode()
        head = struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, 2, 2, len(name), 0)
        directory += b"PK\1\2" + struct.pack("<H", 20) + head
        directory += struct.pack("<3H2L", 0, 0, 0, 0, len(file)) + name
        file += b"PK\3\4" + head + name + b"}."
    end = struct.pack("<4H2LH", 0, 0, len(names), len(names), len(directory), len(file), 0)
    return change(bytes(file + directory) + b"PK\5\6" + end)


def end_record(**fields):
    """Sets numbers of the end record: they stand 12, 10 and 6 bytes before the end."""

    def change(data):
        data = bytearray(data)
        for name, value in fields.items():
            at, code = {"count": (12, "<H"), "size": (10, "<L"), "offset": (6, "<L")}[name]
            struct.pack_into(code, data, len(data) - at, value)
        return bytes(data)

    return change


ARCHIVES = {
    "an entry twice": (zipped(names=("m/data.pkl", "m/data.pkl")), "two zip entries named m/data"),
    "two pickles": (zipped(names=("m/data.pkl", "n/data.pkl")), "one data.pkl in the archive"),
    "a name that is not UTF-8": (zipped(names=("m/data.pkl", b"\xff\xfe")), "is not UTF-8"),
    "a long name": (zipped(names=("x" * 60_000,)), "expected one data.pkl"),
    "60,000 entries": (zipped(names=[f"m/{i}" for i in range(60_000)]), "expected one data.pkl"),
    "more entries than there are": (zipped(end_record(count=2)), "damaged directory"),
    "fewer": (zipped(end_record(count=0)), "expected one data.pkl in the archive, got 0"),
    "a far directory": (zipped(end_record(offset=2**31)), "truncated directory"),
    "a large directory": (zipped(end_record(size=2**31)), "expected at most"),
    "a directory elsewhere": (zipped(end_record(offset=0)), "damaged directory"),
    "cut": (zipped(lambda data: data[:-1]), "not a whole zip"),
    "longer": (zipped(lambda data: data + b"x"), "bytes follow its end"),
    "two names of an entry": (
        zipped(lambda d: d.replace(b"m/data.pkl", b"n/data.pkl", 1)),
        "has another name where its values are",
    ),
    "a far entry": (
        zipped(lambda d: d.replace(bytes(4) + b"m/", b"\xff" * 3 + b"\x7fm/")),
        "is damaged",
    ),
    "a size in no extra field": (
        zipped(lambda d: d.replace(b"\2\0\0\0", b"\xff" * 4)),
        "damaged extra field",
    ),
    "a large entry": (zipped(lambda d: d.replace(b"\2\0\0\0", b"\2\0\0\x7f")), "is truncated"),
    "deflated": (
        zipped(lambda d: d.replace(struct.pack("<3H", 20, 0, 0), b"\x14\0\0\0\x08\0")),
        "is compressed or encrypted",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(tmp_path, name):
    data, message = ARCHIVES[name]
    refused(tmp_path, data, message)


def test_a_sound_archive_made_so(tmp_path):
    refused(tmp_path, zipped(), "expected a dict of tensors under one of .*got keys None")


def test_millions_of_entries(tmp_path):
    """2,000,000 entries in the directory of 92 MB: what Python's reader turns into 1 GB."""
    entry = b"PK\1\2" + bytes(42)
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, *(2_000_000,) * 2, 46 * 2_000_000, 4
    )
    start = 4 + 46 * 2_000_000
    data = b"PK\3\4" + entry * 2_000_000 + record + struct.pack("<4sLQL", b"PK\6\7", 0, start, 1)
    data += b"PK\5\6" + struct.pack("<4H2LH", 0, 0, *(0xFFFF,) * 2, *(0xFFFFFFFF,) * 2, 0)
    refused(tmp_path, data, "a zip archive of 2000000 entries")


# ---- safetensors


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "x.safetensors"
    save_safetensors(path, untrained_weights(SPEC))
    return path.read_bytes()


def with_header(saved, change):
    """The file with another header: ``change(header)`` gives a dict, or JSON text."""
    length = int.from_bytes(saved[:8], "little")
    header = change(json.loads(saved[8 : 8 + length]))
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + saved[8 + length :]


def entry(**fields):
    return lambda header: header | {FIRST: header[FIRST] | fields}


def metadata(**fields):
    return lambda header: header | {"__metadata__": header["__metadata__"] | fields}


def swapped(header):
    """Two tensors of one size in one place; the place of one is free."""
    return header | {QUERY: header[OTHER_QUERY]}


HEADERS = {
    "many dimensions": (entry(shape=[1] * 40_000), "bad shape"),
    "9 dimensions": (entry(shape=[48, 10] + [1] * 7), "bad shape"),
    "a size of 2**63": (entry(shape=[2**63, 0]), "bad shape"),
    "a size of 4,000 digits": (entry(shape=[10**4000]), "bad shape"),
    "a size that is no number": (entry(shape=[True, 480]), "bad shape"),
    "sizes that multiply to more": (entry(shape=[2**62] * 8), "do not hold"),
    "another shape": (entry(shape=[48, 11]), "do not hold"),
    "three offsets": (entry(data_offsets=[0, 1, 2]), "data_offsets"),
    "offsets backwards": (entry(data_offsets=[1920, 0]), "do not hold"),
    "offsets past the end": (entry(data_offsets=[2**62, 2**62 + 1920]), "leave a gap"),
    "no offsets": (entry(data_offsets=None), "data_offsets: expected a list, got None"),
    "a type that is a list": (entry(dtype=["F32"]), "dtype: expected text"),
    "a long type": (entry(dtype="F" * MIB), "dtype: expected one of"),
    "no object": (lambda h: h | {FIRST: [1]}, "expected an object for a tensor"),
    "two in one place": (swapped, "overlap those of another"),
    "a gap": (lambda h: {k: v for k, v in h.items() if k != FIRST}, "leave a gap"),
    "metadata of numbers": (metadata(a=1), "a: expected text, got 1"),
    "metadata that is a list": (lambda h: h | {"__metadata__": []}, "metadata__: expected an obj"),
    "no metadata of value": (lambda h: h | {"__metadata__": None}, "metadata__: expected an obj"),
    "a seed that is none": (
        metadata(**{"tessera_fast.source": "untrained:" + "x" * MIB}),
        "source: expected untrained:<seed>",
    ),
    "a long name": (lambda h: h | {"x" * MIB: h[FIRST]}, "overlap those of another"),
    "deep": (lambda h: "[" * 200_000, "of something else|malformed"),
    "deep in an object": (lambda h: '{"a":' + "[" * 50_000, "nested too deeply"),
    "a constant": (lambda h: '{"a":NaN}', "malformed"),
    "a name twice": (lambda h: '{"a":{},"a":{}}', "occurs twice"),
    "half a character": (lambda h: '{"\\ud800":{}}', "malformed"),
    "many objects": (lambda h: '{"a":[' + "[]," * 1_000_000 + "[]]}", "more than 20000 tensors"),
    "many numbers": (lambda h: '{"a":[' + "1," * 300_000 + "1]}", "more than 20000 tensors"),
    "a long spec": (metadata(**{"tessera_fast.spec": " " * MIB}), "1048576 bytes of JSON"),
    "not UTF-8": (lambda h: '{"\udcff":1}', "malformed"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(tmp_path, saved, name):
    change, message = HEADERS[name]
    try:
        data = with_header(saved, change)
    except UnicodeEncodeError:
        data = with_header(saved, lambda h: '{"@":1}').replace(b"@", b"\xff", 1)
    refused(tmp_path, data, message, "safetensors")


def test_a_header_of_91_mb(tmp_path, saved):
    data = (91_000_000).to_bytes(8, "little") + b"{" + b" " * 91_000_000
    refused(tmp_path, data, "a header of 91000000 bytes, expected at most 10000000", "safetensors")


# ---- paths and names


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(WeightsError, match="not a regular file"):  # and nobody is waited for
        load_weights(tmp_path / "pipe.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    with pytest.raises(WeightsError, match="cannot be read: Too many levels"):
        load_weights(tmp_path / "loop.pt")


@pytest.mark.parametrize(
    "bad", ["x" * 5000 + ".pt", "a\0b.pt", "~nobody-has-this/x.pt", b"x.pt", 7, "\ud800.pt", None]
)
def test_names_that_no_file_has(bad):
    with pytest.raises((InputError, WeightsError)) as caught:
        load_weights(bad)
    assert len(str(caught.value)) < 500
    str(caught.value).encode()
    if bad is not None:
        with pytest.raises((InputError, WeightsError)):
            load_weights("v2-nano", bad)


def test_seeds(tmp_path):
    for seed in ("9" * 5000, "9" * 19, "0x1", "1_0", " 1"):
        with pytest.raises(WeightsError, match="expected untrained:<seed>") as caught:
            load_weights("v2-nano", f"untrained:{seed}")
        assert len(str(caught.value)) < 300


def test_the_spec_of_a_file_needs_no_values(tmp_path, saved, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "x.safetensors"
    path.write_bytes(saved)
    assert spec_of("~/x.safetensors") == spec_of(path) == SPEC
    path.write_bytes(with_header(saved, swapped))
    with pytest.raises(WeightsError, match="overlap those of another"):
        spec_of(path)
    for bad in ("a\0b.pt", "x" * 300 + ".pt", "v2-nan", 3):
        with pytest.raises(InputError):
            spec_of(bad)
