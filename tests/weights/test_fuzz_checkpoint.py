"""Damaged checkpoints give an error of the package, quickly and in little memory; see fuzz.py.

Most damage is to what has meaning: opcodes of the pickle and their arguments, the JSON of a header
and of the spec in it. TESSERA_FUZZ=20000 asks for more mutations.
"""

import argparse
import datetime
import json
import pickle
import pickletools
import random
import struct

import pytest

import fuzz
import torch_archives as by_hand
from official_checkpoints import arrays
from tessera_fast.spec import variant
from tessera_fast.weights import load_weights, save_safetensors, untrained_weights

SPEC = variant(
    "v2-nano",
    name="v2-custom",
    d_model=4,
    num_layers=1,
    num_heads=2,
    ff_dim=4,
    out_dim=4,
    saved_dim=4,
    matryoshka=(2, 4),
)
ARGS = {
    "repr_dim": 4,
    "latent_dim": 1,
    "num_layers": 1,
    "nhead": 2,
    "dim_feedforward": 4,
    "max_seq_len": 256,
    "matryoshka_dims": "2,4",
    "enable_qk_norm": False,
}
TENSORS = arrays(SPEC)
STATE = {name: by_hand.tensor(str(i), t.shape) for i, (name, t) in enumerate(TENSORS.items())}
STORAGES = {str(i): t.tobytes() for i, t in enumerate(TENSORS.values())}
WHOLE = by_hand.START + by_hand.pickled({"model": STATE, "args": ARGS, "epoch": 3}) + by_hand.STOP


def reader(path):
    def read(mutant):
        path.write_bytes(mutant)
        load_weights(path)

    return read


def opcodes(code):
    """A pickle cut into its instructions."""
    starts = [position for _, _, position in pickletools.genops(code)]
    return [code[a:b] for a, b in zip(starts, [*starts[1:], len(code)], strict=True)]


OFFICIAL = opcodes(WHOLE)
# instructions of every kind: what other pickles have, and every opcode with an argument of zeros
_OTHERS = {
    "set": {1, 2},
    "frozen": frozenset([3]),
    "bytes": b"ab",
    "array": bytearray(3),
    "big": 1 << 300,
    "small": [-1, 1.5, None, True],
    "space": argparse.Namespace(a=1),
    "day": datetime.date.min,
    "nested": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[]], {"": {}}),
}
CORPUS = sorted(
    {piece for protocol in range(6) for piece in opcodes(pickle.dumps(_OTHERS, protocol))}
    | {op.code.encode("latin-1") + bytes(8) for op in pickletools.opcodes}
    | {op.code.encode("latin-1") for op in pickletools.opcodes}
    | {by_hand.pickled(text) for text in ("\ud800", "../x", "x" * 5000, "storage", "state_dict")}
    | {by_hand.pickled(n) for n in (0, 1, -1, 2**31 - 1, 2**63 - 1, 2**63, 10**400)}
    | {b"X\xff\xff\xff\x7f", b"B\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f"}
    | {
        b"ctorch\nSize\n",
        b"cbuiltins\nset\n",
        b"ccollections\nOrderedDict\n",
        b"cos\nsystem\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"cargparse\nNamespace\n",
        b"(" * 2000,
        b"]" * 2000,
        b"q\x00h\x00h\x00\x86" * 60,
        b"h\x00h\x00\x93R",
    }
)


def damaged_pickle(rng):
    pieces = list(OFFICIAL)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        kind = rng.random()
        if kind < 0.3:
            pieces[at] = rng.choice(CORPUS)
        elif kind < 0.5:
            pieces.insert(at, rng.choice(CORPUS))
        elif kind < 0.6:
            del pieces[at : at + rng.choice((1, 1, 2, 10))]
        elif kind < 0.75:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif kind < 0.85:
            pieces[at:at] = pieces[other : other + rng.randint(1, 30)] * rng.choice((1, 2, 50))
        else:
            pieces[at] = fuzz.mutate_bytes(rng, pieces[at], steps=1)
        pieces = pieces or [by_hand.STOP]
    return b"".join(pieces)


def damaged_arguments(rng):
    """Other numbers and names in a configuration, a shape or a state, all well formed."""
    document = {
        "model": {
            name: [str(i), list(t.shape), [t.size // len(t), 1][: t.ndim], 0, "FloatStorage"]
            for i, (name, t) in enumerate(TENSORS.items())
        },
        "args": ARGS,
    }
    try:
        document = json.loads(fuzz.mutate_json(rng, json.dumps(document).encode()))
    except (ValueError, RecursionError):
        return damaged_pickle(rng)
    if not isinstance(document, dict):
        return by_hand.START + by_hand.pickled(document) + by_hand.STOP
    state = document.get("model")
    if isinstance(state, dict):
        document["model"] = {name: _tensor(fields) for name, fields in state.items()}
    return by_hand.START + by_hand.pickled(document) + by_hand.STOP


def _tensor(fields):
    """A tensor of damaged fields, or what else is there."""
    try:
        key, shape, strides, offset, kind = fields
        return by_hand.tensor(
            key,
            shape,
            strides,
            offset,
            str(kind).replace("\n", "").encode("ascii", "replace").decode(),
        )
    except (ValueError, TypeError):
        return fields


def torch_archive(rng):
    kind = rng.random()
    if kind < 0.5:
        return by_hand.archive(damaged_pickle(rng), STORAGES)
    if kind < 0.75:
        return by_hand.archive(damaged_arguments(rng), STORAGES)
    whole = by_hand.archive(WHOLE, STORAGES)
    if kind < 0.9:  # the directory and its end
        start = struct.unpack_from("<L", whole, len(whole) - 6)[0]
        return whole[:start] + fuzz.mutate_bytes(rng, whole[start:])
    return fuzz.mutate_bytes(rng, whole)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Header and values of a file of our own."""
    path = tmp_path_factory.mktemp("saved") / "x.safetensors"
    save_safetensors(path, untrained_weights(SPEC))
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    return whole[8 : 8 + length], whole[8 + length :]


def test_torch_archives(tmp_path):
    outcome = fuzz.run(11, fuzz.count(900), torch_archive, reader(tmp_path / "x.pt"))
    print(outcome)
    assert outcome.accepted and outcome.refused["WeightsError"]


def test_safetensors(tmp_path, saved):
    header, values = saved

    def mutant(rng: random.Random) -> bytes:
        text, kind = header, rng.random()
        if kind < 0.4:  # the spec, which is text in the header
            document = json.loads(text)
            metadata = document["__metadata__"]
            spec = fuzz.mutate_json(rng, metadata["tessera_fast.spec"].encode())
            metadata["tessera_fast.spec"] = spec.decode("utf-8", "replace")
            text = json.dumps(document).encode()
        elif kind < 0.9:
            text = fuzz.mutate_json(rng, text)
        whole = len(text).to_bytes(8, "little") + text + values
        return whole if kind < 0.9 else fuzz.mutate_bytes(rng, whole, head=8 + len(text))

    outcome = fuzz.run(12, fuzz.count(900), mutant, reader(tmp_path / "x.safetensors"))
    print(outcome)
    assert outcome.accepted and outcome.refused["WeightsError"]
