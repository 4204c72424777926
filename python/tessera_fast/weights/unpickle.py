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
from ..untrusted.readers import MAX_DIMS, MAX_SIZE, named, shown

# A file can ask for much more work than it has bytes, so both are bounded. A checkpoint with an
# optimizer takes 40 instructions and 200 bytes a tensor.
_MAX_BYTES = 16 << 20
_MAX_STEPS = 1_000_000  # instructions, and items that they copy: 2 s
_MAX_NAME = 200  # characters of the name of a class, function or storage


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function in a pickle. It stays a name."""

    name: str


@dataclass(eq=False, slots=True)
class Opaque:
    """A value of a known harmless type that no model needs, e.g. a numpy scalar."""

    name: str
    state: Any = None


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of values of one type, as the pickle names it."""

    kind: str  # e.g. "torch.FloatStorage"
    key: str  # names the entry of the archive that has the values


@dataclass(frozen=True, slots=True)
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
        ("_codecs", "encode"),
        ("numpy", "dtype ndarray"),
        ("argparse", "Namespace"),
        ("numpy.core.multiarray numpy._core.multiarray", "scalar _reconstruct"),
        ("numpy.core.numeric numpy._core.numeric", "_frombuffer"),
        ("pathlib pathlib._local", "PosixPath PurePosixPath WindowsPath PureWindowsPath Path"),
        ("types", "SimpleNamespace"),
        ("datetime", "datetime date timedelta"),
        ("torch", "device"),
        ("torch._utils", "_rebuild_tensor_v3"),
    )
    for module in modules.split()
    for name in names.split()
)
_LITERALS = frozenset(
    {
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    }
)
# What pickletools and wrong arguments raise; it warns of odd escapes, and warnings may be errors.
_MALFORMED = (ValueError, LookupError, TypeError, OverflowError, struct.error, DeprecationWarning)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def unpickle(data: bytes | memoryview) -> Any:
    """The plain data in a pickle, with tensors as records.

    Only text stays a key of a dict: hashing numbers or nested tuples that were chosen for it can
    take for ever. WeightsError if the pickle calls anything that is not known here, is malformed,
    or asks for more work than any checkpoint.
    """
    if len(data) > _MAX_BYTES:
        raise _too_much(f"{len(data)} bytes, expected at most {_MAX_BYTES}")
    try:
        return _interpret(bytes(data))
    except WeightsError:
        raise
    except _MALFORMED as error:
        raise WeightsError(f"the pickle is malformed: {str(error)[:200]!a}") from error


def _interpret(data: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    steps = 0

    def items() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    for opcode, arg, _ in pickletools.genops(data):
        op = opcode.name
        steps += 1
        if steps > _MAX_STEPS:
            raise _too_much(f"more than {_MAX_STEPS} steps")
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
            if not 0 <= cast(int, arg) <= _MAX_STEPS:
                raise ValueError(f"a memo of {shown(arg)}")
            memo[cast(int, arg)] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[cast(int, arg)])
        elif op == "GLOBAL":
            stack.append(_global(*str(arg).split(" ", 1)))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_global(module, name))
        elif op in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            stack.append({} if op == "EMPTY_DICT" else [])
        elif op == "EMPTY_TUPLE":
            stack.append(())
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(op[-1])
            taken = [stack.pop() for _ in range(n)]
            stack.append(tuple(reversed(taken)))
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
            if type(args) is not tuple:
                raise TypeError(f"arguments that are no tuple: {shown(args)}")
            steps += len(args[0]) if args and isinstance(args[0], list | tuple) else 0
            stack.append(_construct(func, args))
        elif op == "BUILD":
            state, built = stack.pop(), stack[-1]
            if isinstance(built, Opaque):
                built.state = state
            elif not isinstance(built, (dict, TensorRecord)):  # attributes of those: not needed
                raise _refusal(built)
        elif op in ("INST", "OBJ"):
            taken = items()
            func = _global(*str(arg).split(" ", 1)) if op == "INST" else taken.pop(0)
            steps += len(taken[0]) if taken and isinstance(taken[0], list | tuple) else 0
            stack.append(_construct(func, tuple(taken)))
        else:
            raise WeightsError(f"refuses the pickle instruction {op}, which no checkpoint needs")
    raise ValueError("no end")


def _global(module: Any, name: Any) -> Global:
    if type(module) is not str or type(name) is not str:
        raise TypeError(f"a class named {shown(name)} of {shown(module)}, expected text")
    if len(module) + len(name) > _MAX_NAME or not (module + name).isascii():
        raise ValueError(f"a class named {shown(name)} of {shown(module)}")
    return Global(f"{module}.{name}")


def _fill(target: Any, pairs: Iterable[tuple[Any, Any]]) -> Any:
    """Set items; a key that is not text is replaced."""
    if isinstance(target, Opaque):
        return target
    if not isinstance(target, dict):
        raise TypeError("items set on something that is not a dict")
    for key, value in pairs:
        target[key if isinstance(key, str) else Opaque("key")] = value
    return target


def _storage(persistent_id: Any) -> Storage:
    if type(persistent_id) is not tuple or len(persistent_id) != 5:
        raise ValueError(f"unknown persistent id {shown(persistent_id)}")
    kind, storage_type, key, _location, _numel = persistent_id
    if kind != "storage" or not isinstance(storage_type, Global):
        raise ValueError(f"unknown persistent id {shown(persistent_id)}")
    if type(key) is not str or len(key) > _MAX_NAME:
        raise ValueError(f"a storage named {shown(key)}")
    return Storage(storage_type.name, key)


def _construct(func: Any, args: tuple[Any, ...]) -> Any:
    """What a call in the pickle stands for, from the few that a checkpoint needs."""
    name = func.name if isinstance(func, Global) else None
    if name == "torch._utils._rebuild_tensor_v2":
        return _tensor(*args[:4])
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return args[0]
    if name == "torch.Size":
        return tuple(_sequence(args[0]))
    if name == "collections.OrderedDict":
        return _fill({}, _sequence(args[0]) if args else ())
    if name == "collections.defaultdict":
        return {}
    if name in ("builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset"):
        return _sequence(args[0]) if args else []
    if name in _INERT:
        return Opaque(name)
    raise _refusal(func)


def _sequence(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, got {shown(value)}")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRecord:
    """Where a tensor lies; whether its storage is there and large enough is for the reader."""
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    if len(_sequence(shape)) != len(_sequence(strides)) or len(shape) > MAX_DIMS:
        raise ValueError(f"a tensor of shape {shown(shape)} and strides {shown(strides)}")
    for number in (offset, *shape, *strides):
        if type(number) is not int or not 0 <= number <= MAX_SIZE:
            raise ValueError(f"a tensor with an offset, size or stride of {shown(number)}")
    return TensorRecord(storage, offset, tuple(shape), tuple(strides))


def _too_much(what: str) -> WeightsError:
    return WeightsError(
        f"its pickle has {what}; save only the dict of tensors, without a log or an optimizer"
    )


def _refusal(func: Any) -> WeightsError:
    name = named(func.name) if isinstance(func, Global) else f"a {type(func).__name__}"
    return WeightsError(
        f"refuses to run code: the pickle calls {name}. If you trust the file, load it with torch "
        f"elsewhere and save only the dict of tensors"
    )
