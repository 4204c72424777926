"""Torch files that ask for much: each is refused quickly, in little memory, in few words."""

import struct

import numpy as np
import pytest

import fuzz
import torch_archives as by_hand
from hostile import refused
from official_checkpoints import MINI, arrays
from tessera_fast.weights import load_weights

SPEC = MINI["v2"]
FIRST, QUERY = "s2_backbone.embedding.0.weight", "s1_backbone.attn_pool.query.weight"
OTHER_QUERY = QUERY.replace("s1", "s2")
MIB = 1 << 20


def nested(depth, leaf=b"]", step=b"q\xffh\xff\x86"):
    """A tuple of the same tuple twice, and so on: its text has 2**depth parts."""
    return leaf + step * depth


# ---- pickles


BOMB = nested(100)
LIST = b"](" + b"N" * 100_000 + b"e"
CALL_SET = b"cbuiltins\nset\n"


PICKLES = {
    "names of classes": (BOMB + BOMB + b"\x93)R", "a class named"),
    "a name of numbers": (b"K\x01K\x02\x93", "expected text"),
    "a persistent id": (BOMB + b"Q", "persistent id"),
    "parts of a persistent id": (b"(" + BOMB * 5 + b"tQ", "persistent id"),
    "the key of a storage": (
        b"(" + by_hand.pickled("storage") + b"ctorch\nFloatStorage\n" + BOMB + b"NNtQ",
        "a storage named",
    ),
    "what is called": (BOMB + b")R", "calls a tuple"),
    "arguments": (b"ctorch\nSize\n" + b"]R", "arguments that are no tuple"),
    "a shape": (b"ctorch\nSize\n" + BOMB + b"\x85R", "expected a dict, got tuple"),
    "a state": (BOMB, "expected a dict, got tuple"),
    "keys": (b"}" + (BOMB + b"Ns") * 3, "got keys None"),
    "long keys": (
        b"}(" + b"".join(by_hand.pickled("k" * 50_000 + str(i)) + b"N" for i in range(9)) + b"u",
        "expected a dict of tensors under",
    ),
    "a long name": (
        by_hand.pickled("m" * MIB) + b"q\x00h\x00\x93" * 1 + b"q\x01" + b"h\x00h\x00\x93" * 2000,
        "a class named",
    ),
    "copies of a list": (LIST + b"q\x00(" + (CALL_SET + b"h\x00\x85R") * 2000 + b"l", "steps"),
    "copies of pairs": (
        b"]("
        + b"NN\x86" * 50_000
        + b"eq\x00("
        + b"ccollections\nOrderedDict\nh\x00\x85R" * 2000
        + b"l",
        "steps",
    ),
    "a set of a set": (LIST + b"\x85q\x00(" + (CALL_SET + b"h\x00R") * 2000 + b"l", "steps"),
    "a memo far away": (b"Np4000000000\n", "a memo of"),
    "a memo of many digits": (b"Np" + b"9" * 5000 + b"\n", "malformed"),
    "a negative memo": (b"Np-1\n", "a memo of"),
    "many digits": (b"L" + b"9" * 100_000 + b"L\n", "malformed"),
    "a large integer": (b"\x8b" + struct.pack("<i", MIB) + b"\x7f" * MIB, "got int"),
    "text that is longer": (b"X\xff\xff\xff\x7fab", "malformed"),
    "text of 2**63": (b"\x8d" + b"\xff" * 7 + b"\x7fab", "malformed"),
    "bytes of 2**63": (b"\x8e" + b"\xff" * 7 + b"\x7fab", "malformed"),
    "deep lists": (b"]" * 300_000 + b"a" * 299_999, "got list"),
    "deep tuples": (b")" + b"\x85" * 400_000, "got tuple"),
    "many containers": (b"(" + b"}" * 1_100_000 + b"l", "steps"),
    "half a character": (
        b"}" + by_hand.pickled("\ud800") + b"Ns",
        "expected a dict of tensors under",
    ),
    "half a class": (by_hand.pickled("\ud800") * 2 + b"\x93)R", "a class named"),
    "an end without a start": (b"\x86", "malformed"),
    "a huge pickle": (b"N" * (17 << 20), "bytes, expected at most"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(tmp_path, name):
    code, message = PICKLES[name]
    refused(tmp_path, by_hand.archive(by_hand.START + code + by_hand.STOP, {}), message)


def test_a_key_is_not_hashed_where_it_is_chosen_for_its_hash(tmp_path):
    """Integers that are equal modulo 2**61 - 1 have one hash: a dict of them takes n**2 steps."""
    keys = b"".join(by_hand.pickled(i * (2**61 - 1)) + b"N" for i in range(1, 60_000))
    refused(tmp_path, by_hand.archive(by_hand.START + b"}(" + keys + b"u.", {}), "got keys None")
    places = b"".join(b"Nr" + struct.pack("<I", i << 21) for i in range(1000))
    refused(tmp_path, by_hand.archive(by_hand.START + b"(" + places + b"l.", {}), "a memo of")


@pytest.mark.parametrize("value", [10**4000, 2**64, -1, "x" * MIB, [[[[1]]]] * 1000, 1e300, {}])
@pytest.mark.parametrize("key", ["nhead", "latent_dim", "matryoshka_dims", "enable_qk_norm"])
def test_configurations(tmp_path, key, value):
    file = by_hand.model_file(arrays(SPEC), args={key: value})
    refused(tmp_path, file, "configuration|nhead|num_heads|d_model")


def test_nested_widths(tmp_path):
    args = by_hand.Raw(b"}" + by_hand.pickled("matryoshka_dims") + b"(" + BOMB + b"ls")
    refused(tmp_path, by_hand.model_file(arrays(SPEC), args=args), "expected widths")


# ---- tensors


def with_tensors(change, storages=None):
    """A file whose state has some tensors as ``change`` says; the others are sound."""
    tensors = arrays(SPEC)
    state = {name: by_hand.tensor(name, t.shape) for name, t in tensors.items()}
    data = {name: t.tobytes() for name, t in tensors.items()} | (storages or {})
    code = by_hand.pickled({"model": state | change, "args": {"matryoshka_dims": "8,24"}})
    return by_hand.archive(by_hand.START + code + by_hand.STOP, data)


ROW = (1, 48)
TENSORS = {
    "many dimensions": (by_hand.tensor("a", (1,) * 9, (1,) * 9), "tensor of shape"),
    "40,000 dimensions": (by_hand.tensor("a", (1,) * 40_000, (1,) * 40_000), "tensor of shape"),
    "another number of strides": (by_hand.tensor("a", ROW, (1,)), "tensor of shape"),
    "a size of 2**63": (by_hand.tensor("a", (2**63, 1), (0, 0)), "size or stride of"),
    "a size of 4,000 digits": (by_hand.tensor("a", (10**4000, 1), (0, 0)), "size or stride of an"),
    "a negative stride": (by_hand.tensor("a", ROW, (48, -1)), "size or stride of -1"),
    "a negative offset": (by_hand.tensor("a", ROW, offset=-1), "an offset, size or stride of -1"),
    "an offset past the end": (by_hand.tensor("a", ROW, offset=1), "needs 196 bytes of a"),
    "a far offset": (by_hand.tensor("a", ROW, offset=2**62), "bytes of a storage of 192"),
    "a far stride": (by_hand.tensor("a", ROW, (1, 2**60)), "bytes of a storage of 192"),
    "one value for all": (by_hand.tensor("one", ROW, (0, 0)), "needs 192 bytes of a storage of 4"),
    "one value of many": (by_hand.tensor("wide", ROW, (0, 0)), "strides .* on each other"),
    "halves expanded": (by_hand.tensor("half", ROW, (0, 0), 0, "HalfStorage"), "96 bytes of a"),
    "a wrong shape": (by_hand.tensor("wide", (2**40, 2**20), (0, 0)), r"expected \(1, 48\)"),
    "another type": (by_hand.tensor("wide", ROW, kind="LongStorage"), "expected float32.*got <i8"),
    "a type nobody knows": (by_hand.tensor("wide", ROW, kind="X" * 99), "expected float32"),
    "no storage": (by_hand.tensor("none", ROW), "storage is not in the file"),
    "an overlap": (by_hand.tensor(OTHER_QUERY, ROW, offset=0, kind="HalfStorage"), "partly those"),
    "not a number": (by_hand.tensor("nan", ROW), r"finite float32 values, got nan at \(0, 7\)"),
    "infinity": (by_hand.tensor("inf", ROW, kind="DoubleStorage"), "got inf at"),
}
ONES = np.ones(48, "f4")
STORAGES = {
    "a": ONES.tobytes(),
    "one": b"\0\0\x80\x3f",
    "half": b"\0\x3c",
    "wide": bytes(4800),
    "nan": np.where(np.arange(48) == 7, np.nan, ONES).astype("f4").tobytes(),
    "inf": (ONES.astype("f8") * 1e300).tobytes(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(tmp_path, name):
    tensor, message = TENSORS[name]
    refused(tmp_path, with_tensors({QUERY: tensor}, STORAGES), message)


def test_tied_and_interleaved_tensors_load(tmp_path):
    """One parameter by two names, and columns of one matrix, are as torch saves them."""
    path = tmp_path / "x.pt"
    path.write_bytes(with_tensors({QUERY: by_hand.tensor(OTHER_QUERY, ROW)}))
    loaded = load_weights(path).tensors
    assert loaded[QUERY] is loaded[OTHER_QUERY]
    np.testing.assert_array_equal(loaded[QUERY], arrays(SPEC)[OTHER_QUERY])

    both = np.stack([arrays(SPEC)[QUERY][0], arrays(SPEC)[OTHER_QUERY][0]], axis=1)
    columns = {
        name: by_hand.tensor("both", ROW, (96, 2), offset)
        for offset, name in enumerate((QUERY, OTHER_QUERY))
    }
    path.write_bytes(with_tensors(columns, {"both": both.tobytes()}))
    for name in columns:
        np.testing.assert_array_equal(load_weights(path).tensors[name], arrays(SPEC)[name])
    columns[QUERY] = by_hand.tensor("both", ROW, (96, 1))
    refused(tmp_path, with_tensors(columns, {"both": both.tobytes()}), "partly those of another")


def test_a_stride_along_one_value_means_nothing(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(with_tensors({QUERY: by_hand.tensor("a", ROW, (2**63 - 1, 1))}, STORAGES))
    np.testing.assert_array_equal(load_weights(path).tensors[QUERY], ONES[None])


@pytest.mark.filterwarnings("error")
def test_where_warnings_are_errors(tmp_path):
    refused(tmp_path, by_hand.archive(b"S'\\u'\n.", {}), "malformed|expected a dict")


def test_one_storage_for_many_layers_is_read_once(tmp_path):
    """1 MB that stands for 700 MB: each of 350 layers names the same two matrices, in halves."""
    layers = 350
    wide = dict(arrays(SPEC))
    one = {k: v for k, v in wide.items() if ".layers.0." in k}
    big = {
        k: (512, 48)
        if "linear1.weight" in k
        else (48, 512)
        if "linear2.weight" in k
        else (512,)
        if "linear1.bias" in k
        else v.shape
        for k, v in one.items()
    }
    state = {k: by_hand.tensor(k, v.shape) for k, v in wide.items() if ".layers." not in k}
    for name, shape in big.items():
        for layer in range(layers):
            other = name.replace(".layers.0.", f".layers.{layer}.")
            state[other] = by_hand.tensor(name, shape, kind="HalfStorage")
    data = {k: v.tobytes() for k, v in wide.items()}
    data |= {k: bytes(2 * int(np.prod(shape))) for k, shape in big.items()}
    code = by_hand.START + by_hand.pickled({"model": state}) + by_hand.STOP
    path = tmp_path / "x.pt"
    outcome = fuzz.Outcome()

    def read(file):
        path.write_bytes(file)
        assert load_weights(path).spec.num_layers == layers

    fuzz.one(0, 0, lambda rng: by_hand.archive(code, data), read, outcome)
    assert not outcome.faults and outcome.accepted == 1, outcome
    assert outcome.largest < 60 * MIB
