"""Pickles and object arrays from the internet, read without running them.

A pickle is a program: its names are imported, its calls made. Here its opcodes are checked first, and the few names
that it may use are this module's own stand-ins, never NumPy's functions: a state forged for a dtype or an object array
makes NumPy take bytes for addresses. When the program has ended, the stand-ins are turned into checked arrays.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from dataloaders.unread import unreadable
from utils.commands.errors import UserError

# Opcodes that build instances of classes, call registered extensions or share buffers; data needs none of them.
_REFUSED_OPCODES = {
    *("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"),
    *("PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"),
}
_MEMO_OPCODES = {"PUT", "BINPUT", "LONG_BINPUT"}
_MOST_NESTED = 50
_PLAIN = (bool, int, float, str, bytes, np.ndarray)


def read_pickle(path: Path) -> object:
    """What the pickle at ``path`` holds: dicts, lists, tuples, sets, text, numbers, None, NumPy arrays and scalars.

    Every protocol is read, and those of Python 2 (text as latin-1) and NumPy 1.
    Raises `UserError` if the file is missing, broken or truncated, or uses any other name, which is not looked up.
    """
    return _load(path, _contents(path))


def read_object_array(path: Path) -> np.ndarray:
    """The array of a .npy file; an array of objects is read as `read_pickle` reads them.

    Raises `UserError` if the file is missing or broken, or holds anything that `read_pickle` refuses.
    """
    data = _contents(path)
    file = io.BytesIO(data)
    try:
        shape, dtype = array_header(file, len(data))
        if not dtype.hasobject:
            return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # whatever NumPy's parser runs into on broken bytes
        raise unreadable(path, error, ".npy file", "fetch or export it again") from error
    array = _load(path, data[file.tell() :]) if dtype.kind == "O" else None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "O" or array.shape != shape:
        raise UserError(f"{path}: the objects in it are no array {shape} of {dtype}; fetch or export it again")
    return array


def array_header(file: BinaryIO, length: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype that a .npy file of ``length`` bytes promises; the file is left where the data begin.

    Raises ValueError if it promises more than it holds, for NumPy reserves memory before it reads, and nearly anything
    on broken bytes.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
    if not dtype.hasobject and max(dtype.itemsize, 1) * int(np.prod(shape, dtype=object)) > length:
        raise ValueError(f"its header promises {shape} of {dtype}, more than the file holds")
    return shape, dtype


def _contents(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error, "file") from error


def _load(path: Path, data: bytes) -> object:
    try:
        _check_opcodes(path, data)
        unpickler = _Unpickler(io.BytesIO(data), encoding="latin1")
        unpickler.path = path
        return _checked(unpickler.load(), path)
    except UserError:
        raise
    except Exception as error:  # broken bytes raise nearly any, and all mean the same to the user
        reason = f"{type(error).__name__}: {error}"[:200]
        raise unreadable(path, reason, "pickle", "fetch or export it again") from error


def _check_opcodes(path: Path, data: bytes) -> None:
    """Refuse opcodes that data does not need; lengths beyond the end of the file are found here too."""
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        if opcode.name in _REFUSED_OPCODES:
            raise _refusal(path, f"{opcode.name} at byte {position}")
        # Python reserves its memo up to the highest index that it meets, and a pickler counts them up.
        if opcode.name in _MEMO_OPCODES and argument is not None and argument > count:
            raise ValueError(f"memo index {argument} at byte {position}")


def _refusal(path: Path, what: str) -> UserError:
    # What it holds is a stranger's text: cut short, and without what would steer a terminal.
    return UserError(
        f"{path}: refused, for it holds {what[:100]!a}: such a pickle can run code when it is read. Only NumPy "
        "arrays, scalars and plain containers are admitted; export the data again"
    )


class _Unpickler(pickle.Unpickler):
    path: Path

    def find_class(self, module: str, name: str) -> object:
        modern = module.replace("numpy.core", "numpy._core").replace("__builtin__", "builtins")  # NumPy 1, Python 2
        if (modern, name) not in _ADMITTED:
            raise _refusal(self.path, f"{module}.{name}")
        return _ADMITTED[modern, name]


# --- Stand-ins for what NumPy's pickles call --------------------------------------------------------------------------


class _DType:
    """A dtype: numbers, text or objects; a state may only give the byte order."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch("[biufcSU][0-9]{1,9}|O8?", code):
            raise TypeError(f"dtype {code!r}; only numbers, text and objects are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        _, order, *rest = state
        if any(part is not None for part in rest[:3]):
            raise TypeError("a structured dtype")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array that is still to get its contents."""

    def __init__(self, *_: object) -> None:
        self.array: np.ndarray | None = None
        self.items: list | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, contents = state
        order: Literal["C", "F"] = "F" if fortran else "C"
        if dtype.dtype == object:
            self.items, self.shape, self.order = list(contents), shape, order
        else:
            self.array = _over(_as_bytes(contents), dtype, shape, order)


def _over(raw: bytes, dtype: _DType, shape: tuple, order: Literal["C", "F"], *_: object) -> np.ndarray:
    """numpy._core.numeric._frombuffer, and what it is called for: a copy of ``raw`` as an array."""
    if dtype.dtype.hasobject:
        raise TypeError("objects over bytes")
    return np.frombuffer(bytes(raw), dtype.dtype).reshape(shape, order=order).copy(order="K")


def _scalar(dtype: _DType, raw: bytes) -> np.generic:
    return _over(_as_bytes(raw), dtype, (1,), "C")[0]


def _as_bytes(raw: bytes | str) -> bytes:
    return raw if isinstance(raw, bytes) else raw.encode("latin1")  # Python 2 wrote bytes as text


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


def _stand_in(make: Callable) -> Callable:
    """A function of its own for each name, which forwards: nothing of the real one can be set from a pickle."""
    return lambda *arguments: make(*arguments)


_ARRAY_CLASS = "numpy.ndarray"  # only ever an argument
_ADMITTED = {
    ("numpy._core.multiarray", "_reconstruct"): _stand_in(_Array),
    ("numpy._core.multiarray", "scalar"): _stand_in(_scalar),
    ("numpy._core.numeric", "_frombuffer"): _stand_in(_over),
    ("numpy", "ndarray"): _ARRAY_CLASS,
    ("numpy", "dtype"): _stand_in(_DType),
    ("_codecs", "encode"): _stand_in(_encode),
    ("builtins", "set"): _stand_in(set),
    ("builtins", "frozenset"): _stand_in(frozenset),
    ("builtins", "bytes"): _stand_in(lambda: b""),  # how protocol 2 writes empty bytes
    ("collections", "OrderedDict"): _stand_in(lambda: {}),
}


def _checked(value: Any, path: Path, depth: int = 0, done: dict | None = None) -> object:
    """``value`` with its stand-ins turned into arrays, or `UserError` for anything but data."""
    done = {} if done is None else done  # each object once: a few that hold each other twice would be met 2^depth times
    if id(value) in done:
        return done[id(value)]
    if depth > _MOST_NESTED:
        raise ValueError(f"nested more than {_MOST_NESTED} deep")

    def deeper(item: object) -> object:
        return _checked(item, path, depth + 1, done)

    result: object
    if isinstance(value, _Array):
        result = value.array if value.items is None else _object_array(value.items, value, deeper)
        if result is None:
            raise ValueError("an array without contents")
    elif type(value) is dict:
        result = {deeper(key): deeper(item) for key, item in value.items()}
    elif type(value) in (list, tuple, set, frozenset):
        result = type(value)([deeper(item) for item in value])
    elif value is None or isinstance(value, np.generic) or type(value) in _PLAIN:
        result = value
    else:
        raise _refusal(path, type(value).__name__)
    done[id(value)] = result
    return result


def _object_array(items: list, stand_in: _Array, deeper: Callable) -> np.ndarray:
    flat = np.empty(len(items), np.object_)
    for index, item in enumerate(items):
        flat[index] = deeper(item)
    return flat.reshape(stand_in.shape, order=stand_in.order)
