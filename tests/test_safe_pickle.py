"""Pickles of strangers: data is read as it was written, code is refused by name and never runs."""

import codecs
import os
import pickle
import re
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from dataloaders.safe_pickle import read_object_array, read_pickle
from utils.commands.errors import UserError


class Runs:
    """An object whose pickle calls ``function`` with ``arguments`` when it is read."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def write(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        same = isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        return same and all(map(equal, a.ravel().tolist(), b.ravel().tolist()))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


DATA = {
    "slice": {
        "image": np.arange(64, dtype=np.uint8).reshape(8, 8),
        "masks": [np.eye(8, dtype=np.uint8)[::-1], np.asfortranarray(np.eye(8, 7)), np.zeros((0, 3), np.int16)],
        "series_uid": "1.2.3",
    },
    "objects": np.array([["a", None], [b"b", 2.5]], dtype=object),
    "others": [np.float32(1.5), np.str_("x"), np.bool_(True), {1, 2}, frozenset({"f"}), (), b"", b"y", 10**30],
    "endian": np.array([1, 2], ">u2"),
    "text": np.array(["one", "three"]),
}


@pytest.mark.parametrize("protocol", range(6))
def test_data_comes_back_as_it_was(tmp_path, protocol):
    assert equal(read_pickle(write(tmp_path / "a.pkl", DATA, protocol)), DATA)


def test_ordered_dicts_and_names_of_numpy_1(tmp_path):
    assert read_pickle(write(tmp_path / "a.pkl", OrderedDict(a=1, b=2))) == {"a": 1, "b": 2}
    old = pickle.dumps(DATA["slice"], 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "b.pkl").write_bytes(old)
    assert equal(read_pickle(tmp_path / "b.pkl"), DATA["slice"])


def test_bytes_as_python_2_wrote_them(tmp_path):
    """There the bytes of an array and its dtype are text, which stands for bytes as latin-1."""
    (tmp_path / "a.pkl").write_bytes(
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x03\x01\x80\xfftb."
    )
    assert equal(read_pickle(tmp_path / "a.pkl"), np.array([1, 128, 255], np.uint8))


@pytest.mark.parametrize(
    ("dtype", "said"),
    [("M8[s]", "only numbers, text and objects"), ("V3", "dtype 'V3'"), ([("x", "u1")], "dtype 'V1'")],
)
def test_arrays_of_other_kinds_are_refused(tmp_path, dtype, said):
    with pytest.raises(UserError, match=said):
        read_pickle(write(tmp_path / "a.pkl", np.zeros(2, dtype)))


def test_fields_in_a_dtype_of_numbers(tmp_path):
    forged = Runs(np.dtype, "u2", False, True)
    forged.call += ((3, "|", None, ("x",), {"x": (np.dtype("u1"), 0)}, 2, 1, 0),)
    with pytest.raises(UserError, match="a structured dtype"):
        read_pickle(write(tmp_path / "a.pkl", forged))


def test_text_of_another_encoding_is_no_bytes(tmp_path):
    with pytest.raises(UserError, match="text encoded as 'utf-16'"):
        read_pickle(write(tmp_path / "a.pkl", Runs(codecs.encode, "b", "utf-16")))


def test_a_shared_array_is_read_once(tmp_path):
    plane = np.ones((4, 4))
    first, second = read_pickle(write(tmp_path / "a.pkl", [plane, plane]))
    assert first is second


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (lambda marker: Runs(os.system, f"touch {marker}"), "posix.system"),
        (lambda marker: Runs(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        (lambda marker: Runs(os.mkdir, str(marker)), "posix.mkdir"),
        (lambda marker: Runs(np.save, marker, 1), "numpy.save"),
        (lambda marker: Runs(getattr, "a", "upper"), "getattr"),
        (lambda marker: Runs(np.fromfile, "/dev/zero"), "fromfile"),
    ],
    ids=["system", "eval", "mkdir", "save", "getattr", "fromfile"],
)
def test_code_is_refused_by_name_and_does_not_run(tmp_path, attack, name, protocol):
    marker = tmp_path / "marker"
    for wrapped in (attack(marker), {"a": [attack(marker)]}, np.array([attack(marker)], object), {attack(marker)}):
        with pytest.raises(UserError) as raised:
            read_pickle(write(tmp_path / "a.pkl", wrapped, protocol))
        assert name in str(raised.value) and "a.pkl" in str(raised.value) and "can run code" in str(raised.value)
    np.save(tmp_path / "a.npy", np.array([attack(marker)], object), allow_pickle=True)
    with pytest.raises(UserError, match="can run code"):
        read_object_array(tmp_path / "a.npy")
    assert not list(tmp_path.glob("marker*"))


class Instance:
    """A class of ours, which a pickle may not make either."""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (pickle.dumps(Instance(), 2), "can run code"),
        (b"\x80\x02P1\n.", "can run code"),  # a persistent id
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"(inumpy\nndarray\n.", "INST"),
        (b"\x80\x02cnumpy\ndtype\n.", "can run code"),  # a name of ours as the value
        (b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n}X\x08\x00\x00\x00__code__K\x01s\x86b.", "not a readable"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.", "not a readable"),  # more bytes than there are
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.", "not a readable"),
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "memo index"),
        (b"(" * 10 + b"l" * 5000 + b".", "not a readable"),
        (b"\x80\x02cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R.", "without contents"),
        (b"]" * 200 + b"a" * 199 + b".", "nested more than"),
        (b"]q\x00h\x00a.", "nested more than"),  # a list that holds itself
        (b"", "not a readable"),
        (b"\x89PNG\r\n\x1a\n", "PERSID"),
        (b"just text\n", "not a readable"),
    ],
)
def test_other_programs_are_refused(tmp_path, data, said):
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(UserError, match=said) as raised:
        read_pickle(tmp_path / "a.pkl")
    assert str(tmp_path / "a.pkl") in str(raised.value)


def test_sharing_does_not_cost_exponential_time(tmp_path):
    value: list = []
    for _ in range(40):
        value = [value, value]
    assert len(read_pickle(write(tmp_path / "a.pkl", value))) == 2


@pytest.mark.parametrize(
    "state", [(1, (1,), np.dtype("O"), False, b"\0" * 8), (1, (10**12,), np.dtype("u1"), False, b"a")]
)
def test_forged_states_of_arrays(tmp_path, state):
    """Objects over bytes, which NumPy would take for addresses, and a shape beyond the contents."""

    class Forged:
        def __reduce__(self):
            return (np.ndarray((0,), np.uint8).__reduce__()[0], (np.ndarray, (0,), b"b"), state)

    with pytest.raises(UserError):
        value = read_pickle(write(tmp_path / "a.pkl", Forged()))
        assert not isinstance(value, np.ndarray), value


def test_forged_flags_of_a_dtype(tmp_path):
    """A dtype of objects whose flags deny it."""

    class Forged:
        def __reduce__(self):
            return (np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))

    class Holder:
        def __reduce__(self):
            make = np.ndarray((0,), np.uint8).__reduce__()[0]
            return (make, (np.ndarray, (0,), b"b"), (1, (1,), Forged(), False, b"\x41" * 8))

    with pytest.raises(UserError):
        raise UserError(str(read_pickle(write(tmp_path / "a.pkl", Holder())).tolist() == [0x41]))


def test_truncated_and_damaged_pickles(tmp_path):
    whole = pickle.dumps(DATA["slice"], 4)
    path = tmp_path / "a.pkl"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"a\.pkl"):
            read_pickle(path)
    rng = np.random.default_rng(0)
    ends = {"refused": 0, "read": 0}
    for _ in range(1500):
        data = bytearray(whole)
        for position in rng.integers(len(data), size=rng.integers(1, 4)):
            data[position] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            read_pickle(path)
            ends["read"] += 1
        except UserError as error:
            assert "a.pkl" in str(error)
            ends["refused"] += 1
    assert min(ends.values()) > 100  # changed pixels are data, changed opcodes are not


def test_arrays_of_names(tmp_path):
    path = tmp_path / "a.npy"
    for array in (
        np.array(["a", "bb"]),
        np.array(["a", "bb"], object),
        np.arange(6).reshape(2, 3),
        np.array([["a"], [None]], object),
        np.array("a", object),
    ):
        np.save(path, array, allow_pickle=True)
        back = read_object_array(path)
        assert equal(back, array)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"a\.npy"):
            read_object_array(path)


def test_headers_that_promise_too_much(tmp_path):
    path = tmp_path / "a.npy"
    for shape in ((2**20,), (10**13,)):
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.write(b"\0" * 10)
        with pytest.raises(UserError, match="more than the file holds"):
            read_object_array(path)
    np.save(path, np.array(["a", "b"], object), allow_pickle=True)
    path.write_bytes(path.read_bytes().replace(b"(2,)", b"(3,)"))
    with pytest.raises(UserError, match="are no array"):
        read_object_array(path)
    np.save(path, np.array([("a", 1)], [("x", object), ("y", int)]), allow_pickle=True)
    with pytest.raises(UserError, match="are no array"):
        read_object_array(path)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.pkl", tmp_path):
        for read in (read_pickle, read_object_array):
            with pytest.raises(UserError, match=re.escape(str(path))):
                read(path)
