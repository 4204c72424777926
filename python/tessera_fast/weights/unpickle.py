"""Pickles read as data. Nothing in them is imported, called or evaluated.

The pickles of torch.save describe containers, numbers and which slice of which storage is which
tensor. This interpreter builds those. Classes and functions stay names; a call is accepted only
where its meaning is known here, and any other is refused by name.
"""

import pickletools
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from ..errors import WeightsError


@dataclass(frozen=True)
class Global:
    """The name of a class or function in a pickle. It stays a name."""

    name: str


@dataclass(eq=False)
class Opaque:
    """A value of a known harmless type that no model needs, e.g. a numpy scalar."""

    name: str
    state: Any = None


@dataclass(frozen=True)
class Storage:
    kind: str  # e.g. "torch.FloatStorage"
    key: str  # names the entry of the archive that has the values


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as the pickle describes it; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# Constructors of plain data that training checkpoints hold beside the parameters. They are not
# called: the result is an Opaque.
_INERT = frozenset(
    f"{module}.{name}"
    for modules, names in (
        ("_codecs", "encode"), ("numpy", "dtype ndarray"), ("argparse", "Namespace"),
        ("numpy.core.multiarray numpy._core.multiarray", "scalar _reconstruct"),
        ("numpy.core.numeric numpy._core.numeric", "_frombuffer"),
        ("pathlib pathlib._local", "PosixPath PurePosixPath WindowsPath PureWindowsPath Path"),
        ("types", "SimpleNamespace"), ("datetime", "datetime date timedelta"),
        ("torch", "device"), ("torch._utils", "_rebuild_tensor_v3"),
    )
    for module in modules.split()
    for name in names.split()
)  # fmt: skip
_LITERALS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def unpickle(data: bytes) -> Any:
    """The plain data in a pickle, with tensors as records.

    WeightsError if it calls anything that is not known here, or is malformed.
    """
    try:
        return _interpret(data)
    except WeightsError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise WeightsError(f"the pickle is malformed: {error}") from error


def _interpret(data: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def items() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    for opcode, arg, _ in pickletools.genops(data):
        op = opcode.name
        if op in ("PROTO", "FRAME"):
            continue
        if op == "STOP":
            return stack.pop()
        if op in _LITERALS:
            stack.append(arg)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op == "MARK":
            marks.append(len(stack))
        elif op in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[cast(int, arg)] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[cast(int, arg)])
        elif op == "GLOBAL":
            stack.append(Global(str(arg).replace(" ", ".")))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(Global(f"{module}.{name}"))
        elif op in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            stack.append({} if op == "EMPTY_DICT" else [])
        elif op == "EMPTY_TUPLE":
            stack.append(())
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(op[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif op in ("TUPLE", "LIST", "FROZENSET"):
            taken = items()
            stack.append(tuple(taken) if op == "TUPLE" else taken)
        elif op == "DICT":
            taken = items()
            stack.append(_fill({}, zip(taken[::2], taken[1::2], strict=True)))
        elif op in ("SETITEM", "SETITEMS"):
            taken = items() if op == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _fill(stack[-1], zip(taken[::2], taken[1::2], strict=True))
        elif op in ("APPEND", "APPENDS", "ADDITEMS"):
            taken = [stack.pop()] if op == "APPEND" else items()
            if isinstance(stack[-1], list):
                stack[-1].extend(taken)
            elif not isinstance(stack[-1], Opaque):
                raise TypeError("items appended to something that is not a list")
        elif op == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif op in ("REDUCE", "NEWOBJ"):
            args, func = stack.pop(), stack.pop()
            stack.append(_construct(func, args))
        elif op == "BUILD":
            state, built = stack.pop(), stack[-1]
            if isinstance(built, Opaque):
                built.state = state
            elif not isinstance(built, (dict, TensorRecord)):  # attributes of those: not needed
                raise _refusal(built)
        elif op in ("INST", "OBJ"):
            taken = items()
            func = Global(str(arg).replace(" ", ".")) if op == "INST" else taken.pop(0)
            stack.append(_construct(func, tuple(taken)))
        else:
            raise WeightsError(f"refuses the pickle instruction {op}, which no checkpoint needs")
    raise ValueError("no end")


def _fill(target: Any, pairs: Iterable[tuple[Any, Any]]) -> Any:
    """Set items. A compound key is replaced: hashing nested tuples can take for ever."""
    if isinstance(target, Opaque):
        return target
    if not isinstance(target, dict):
        raise TypeError("items set on something that is not a dict")
    for key, value in pairs:
        plain = key is None or isinstance(key, (str, int, float, bytes))
        target[key if plain else Opaque("key")] = value
    return target


def _storage(persistent_id: Any) -> Storage:
    kind, storage_type, key, _location, _numel = persistent_id
    if kind != "storage" or not isinstance(storage_type, Global) or not isinstance(key, str):
        raise ValueError(f"unknown persistent id {kind!r}")
    return Storage(storage_type.name, key)


def _construct(func: Any, args: Any) -> Any:
    """What a call in the pickle stands for, from the few that a checkpoint needs."""
    name = func.name if isinstance(func, Global) else None
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, strides = args[:4]
        ints = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or not all(type(i) is int for i in ints):
            raise TypeError("a tensor record is malformed")
        return TensorRecord(storage, offset, tuple(shape), tuple(strides))
    if name == "torch._utils._rebuild_parameter":
        return args[0]
    if name == "torch.Size":
        return tuple(args[0])
    if name == "collections.OrderedDict":
        return _fill({}, args[0] if args else ())
    if name == "collections.defaultdict":
        return {}
    if name in ("builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset"):
        return list(args[0]) if args else []
    if name in _INERT:
        return Opaque(name)
    raise _refusal(func)


def _refusal(func: Any) -> WeightsError:
    name = func.name if isinstance(func, Global) else f"a {type(func).__name__}"
    return WeightsError(
        f"refuses to run code: the pickle calls {name}. If you trust the file, load it with torch "
        f"elsewhere and save only the dict of tensors"
    )
