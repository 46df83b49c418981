"""Pickles read without running them: what is admitted comes back as it was, anything else is named and not run."""

import builtins
import copyreg
import gzip
import os
import pickle
import struct
import sys
import tracemalloc
from collections import OrderedDict

import numpy as np
import numpy.testing._private.utils as numpy_testing
import pytest
from PIL import Image

from dataloaders import pickles
from dataloaders.pickles import read_object_array, read_pickle
from utils.cli import UserError

PROTOCOLS = range(6)
SCALARS = (type(None), bool, int, float, str, bytes, np.generic)
DTYPE_U1 = b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1I0\nI1\ntR"
DTYPE_O8 = DTYPE_U1.replace(b"u1", b"O8")
NEW_ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR"


def slices():
    """Two slices as LIDC's public pickle has them."""
    rng = np.random.default_rng(0)
    return {
        f"LIDC-IDRI-000{number}_slice-0": {
            "image": rng.integers(0, 256, (8, 8), np.uint8),
            "masks": [rng.integers(0, 2, (8, 8), np.uint8) for _ in range(4)],
            "series_uid": f"1.3.6.{number}",
        }
        for number in range(2)
    }


def read_bytes(folder, data):
    path = folder / "data.pkl"
    path.write_bytes(data)
    return read_pickle(path)


def refused(folder, data, said):
    """The pickle is refused; the message names the file and says ``said``."""
    with pytest.raises(UserError, match=said) as refusal:
        read_bytes(folder, data)
    assert str(folder / "data.pkl") in str(refusal.value)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def same(one, other):
    """Equal in values, types, dtypes and layout."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        layout = one.dtype == other.dtype and one.shape == other.shape and one.strides == other.strides
        return layout and one.flags.writeable == other.flags.writeable and same(one.tolist(), other.tolist())
    return one == other


def admitted(value, seen=None):
    """Made of admitted types only."""
    seen = set() if seen is None else seen
    if isinstance(value, SCALARS) or id(value) in seen:
        return True
    seen.add(id(value))
    if type(value) is np.ndarray:
        return not value.dtype.hasobject or all(admitted(item, seen) for item in value.ravel().tolist())
    if type(value) is dict:
        return all(admitted(item, seen) for pair in value.items() for item in pair)
    return type(value) in (list, tuple, set, frozenset) and all(admitted(item, seen) for item in value)


# --- What is admitted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        slices(),
        [None, True, -1, 2**70, 0.5, "é\n", b"", b"\x00\xff", (), (1,), (1, 2, 3, 4), {}, {1: {(2, "a"): []}}],
        [set(), {1, "a"}, frozenset(), frozenset({(1, 2)})],
        [np.arange(6, dtype=np.int16).reshape(2, 3), np.asfortranarray(np.eye(3, 2)), np.array(3.0), np.zeros((0, 4))],
        [np.array([1.5], ">f4"), np.array([True, False]), np.array([1 + 2j]), np.zeros(2000, np.uint8)],
        [np.ones((2, 3, 4)).transpose(1, 0, 2), np.arange(10)[::2], np.arange(2000.0)[::2]],
        [np.array(["ab", "", "é"]), np.array([b"ab", b""]), np.array(["a"], ">U1"), np.array([], "U3")],
        [np.array(["a", None, 2, np.ones(2)], object), np.array([["a", "b"]], object, order="F"), np.empty(0, object)],
        [np.float32(1.5), np.int64(-1), np.bool_(True), np.str_("é"), np.str_(""), np.bytes_(b""), np.complex64(1j)],
    ],
    ids=["lidc", "plain", "sets", "shapes", "dtypes", "strided", "text", "objects", "scalars"],
)
def test_every_protocol_comes_back_as_python_reads_it(tmp_path, value, protocol):
    data = pickle.dumps(value, protocol)
    assert same(read_bytes(tmp_path, data), pickle.loads(data))
    if protocol <= 3:  # later protocols count the bytes of names
        assert same(read_bytes(tmp_path, data.replace(b"numpy._core", b"numpy.core")), pickle.loads(data))


def test_sharing_and_cycles_are_kept(tmp_path):
    array = np.zeros(3)
    value = [array, {"again": array}]
    value.append(value)
    read = read_bytes(tmp_path, pickle.dumps(value))
    assert read[1]["again"] is read[0] and read[2] is read


def test_arrays_can_be_written_to(tmp_path):
    for protocol in PROTOCOLS:
        array = read_bytes(tmp_path, pickle.dumps(np.zeros(3), protocol))
        array += 1
        assert array.tolist() == [1, 1, 1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_ordered_dict_becomes_a_dict(tmp_path, protocol):
    read = read_bytes(tmp_path, pickle.dumps(OrderedDict(b=1, a=[2]), protocol))
    assert same(read, {"b": 1, "a": [2]})


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\nRp5\n(I1\n(I2\ntp6\n"
        b"cnumpy\ndtype\np7\n(S'u1'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'|'\np11\nNNNI-1\nI-1\nI0\ntp12\nbI00\n"
        b"S'\\x07\\xff'\np13\ntp14\nb.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85q\x02U\x01bq\x03\x87q\x04R"
        b"q\x05(K\x01K\x02\x85q\x06cnumpy\ndtype\nq\x07U\x02u1q\x08K\x00K\x01\x87q\tRq\n(K\x03U\x01|q\x0bNNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0cb\x89U\x02\x07\xffq\rtq\x0eb.",
    ],
    ids=["protocol 0", "protocol 2"],
)
def test_pickles_of_python_2(tmp_path, data):
    assert same(read_bytes(tmp_path, data), np.array([7, 255], np.uint8))


def test_sets_and_text_of_python_2(tmp_path):
    data = b"\x80\x02(c__builtin__\nset\n]K\x01a\x85Rccollections\nOrderedDict\n](]U\x01\xe9aK\x02aea\x85RU\x02a\xfcl."
    data = data.replace(b"](]U\x01\xe9aK\x02aea\x85R", b"](](U\x01\xe9K\x02ee\x85R")
    assert same(read_bytes(tmp_path, data), [{1}, {"é": 2}, "aü"])


# --- What is refused --------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of ``function``, as a stranger would write it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def wrappings(call):
    nested = np.empty(2, object)
    nested[:] = [{"image": [call]}, 0]
    return {"bare": call, "list": [1, call], "key": {"a": {"b": (call,)}}, "object array": {"masks": nested}}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrapping", list(wrappings(None)))
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (os.system, r"'(posix|nt)\.system' in it: such a pickle can run code when it is read; only .* export the data"),
        (builtins.eval, r"'(builtins|__builtin__)\.eval'"),
        (numpy_testing.runstring, r"'numpy\.testing\._private\.utils\.runstring'"),
        (np.load, r"'numpy\.load'"),
        (getattr, r"'(builtins|__builtin__)\.getattr'"),
    ],
)
def test_a_call_is_refused_by_name_and_not_made(tmp_path, function, said, wrapping, protocol):
    marker = tmp_path / "marker"
    arguments = {
        os.system: (f"touch {marker}",),
        builtins.eval: (f"open({str(marker)!r}, 'w')",),
        numpy_testing.runstring: (f"open({str(marker)!r}, 'w')", {}),
    }
    attack = wrappings(Call(function, *arguments.get(function, ("a", "b"))))[wrapping]
    refused(tmp_path, pickle.dumps(attack, protocol), said)
    np.save(tmp_path / "a.npy", np.array([attack, 1], object), allow_pickle=True)
    with pytest.raises(UserError, match=f"a.npy: .*{said.replace('__builtin__', 'builtins')}"):
        read_object_array(tmp_path / "a.npy")
    assert not marker.exists()


def test_a_refused_name_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for data in (b"cplanted\nname\n.", b"\x80\x04\x8c\x07planted\x8c\x04name\x93.", b"(iplanted\nname\n."):
        refused(tmp_path, data, r"'planted\.name'")
    assert "planted" not in sys.modules and not (tmp_path / "marker").exists()


def test_classic_attacks_by_other_opcodes(tmp_path):
    marker = tmp_path / "marker"
    command = f"S'touch {marker}'\n".encode()
    for data in (
        b"(" + command + b"ios\nsystem\n.",
        b"(cos\nsystem\n" + command + b"o.",
        b"cos\nsystem\n(" + command + b"t\x81.",
        b"cos\nsystem\n(" + command + b"t}\x92.",
    ):
        refused(tmp_path, data, r"'os\.system'")
    refused(tmp_path, b"Pname\n.", "a persistent id")
    refused(tmp_path, b"I1\nQ.", "a persistent id")
    refused(tmp_path, b"cnumpy\x1b[2J\nname\n.", r"'numpy\\x1b\[2J\.name'")
    assert not marker.exists()


def test_registered_extension_codes_are_refused(tmp_path):
    copyreg.add_extension("os", "getpid", 200)
    try:
        pickle.loads(b"\x82\xc8.")  # after which Python keeps it in a cache
        for data in (b"\x82\xc8.", b"\x83\xc8\x00.", b"\x84\xc8\x00\x00\x00."):
            refused(tmp_path, data, "extension code 200")
    finally:
        copyreg.remove_extension("os", "getpid", 200)


@pytest.mark.parametrize("name", sorted(pickles._ADMITTED))
def test_an_admitted_name_is_no_value_and_cannot_be_altered(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    look_up = f"c{module}\n{attribute}\n".encode()
    target = pickles._ADMITTED[name]
    before = dict(getattr(target, "__dict__", {})), getattr(target, "__defaults__", None)
    refused(tmp_path, look_up + b".", "only NumPy arrays, scalars and plain containers")
    for state in (
        b"}(" + text("__defaults__") + b"(I1\nI2\ntub.",
        b"(N}" + text("__kwdefaults__") + b"}stb.",
        b"(N}(" + text("__code__") + b"Nutb.",
    ):
        refused(tmp_path, look_up + state, "a state for")
    refused(tmp_path, f"(i{module}\n{attribute}\n.".encode(), "an instance of a class")
    refused(tmp_path, b"(" + look_up + b"o.", "an instance of a class")
    refused(tmp_path, look_up + b")\x81.", "not a readable pickle")
    assert (dict(getattr(target, "__dict__", {})), getattr(target, "__defaults__", None)) == before


def test_other_kinds_of_values_are_named(tmp_path):
    for value, said in (
        (np.dtype("u1"), "'numpy.dtype'"),
        (bytearray(b"a"), "'(builtins.)?bytearray'"),
        (1j, "'builtins.complex'"),
        (np.ma.zeros(2), "'numpy.ma.*_mareconstruct'"),
        (np.zeros(2, "f4,i4"), "dtype 'V8'; only numbers, text and objects"),
        (np.zeros(1, "M8[s]"), "dtype 'M8'; only numbers, text and objects"),
        (range(3), "'builtins.range'"),
    ):
        refused(tmp_path, pickle.dumps([value], 5), said)


STATE = b"(I1\n(I1\nt%sI00\n%stb."
ADDRESS = b"C\x08AAAAAAAA"


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy._core.numeric\n_frombuffer\n(" + ADDRESS + DTYPE_O8 + b"(I1\nt" + text("C") + b"tR.",
        b"cnumpy._core.multiarray\nscalar\n(" + DTYPE_O8 + ADDRESS + b"tR.",
        b"cnumpy._core.multiarray\nscalar\n(" + DTYPE_O8 + b"]tR.",
        NEW_ARRAY + STATE % (DTYPE_O8, ADDRESS),
        # flags that deny the objects; fields that lie outside the element, or hold objects
        NEW_ARRAY + STATE % (DTYPE_O8 + b"(I3\n" + text("|") + b"NNNI-1\nI-1\nI0\ntb", ADDRESS),
        DTYPE_U1
        + b"(I3\n"
        + text("|")
        + b"N("
        + text("a")
        + b"t}"
        + text("a")
        + b"("
        + DTYPE_O8
        + b"I0\ntsI8\nI1\nI0\ntb.",
        DTYPE_U1 + b"(I3\n" + text("|") + b"(" + DTYPE_O8 + b"(I9\nttNNI8\nI1\nI0\ntb.",
        DTYPE_U1 + b"(I4\n" + text("|") + b"NNNI-1\nI-1\nI0\nNtb.",
        b"cnumpy\ndtype\n(" + text("V8") + b"I0\nI1\ntR.",
        b"cnumpy\ndtype\n(" + text("O,u1") + b"I0\nI1\ntR.",
        NEW_ARRAY + STATE % (DTYPE_U1, b"]I1\na"),  # a list for numbers
        NEW_ARRAY + STATE % (b"N", b"]I1\na"),
        NEW_ARRAY + STATE % (b"]", b"C\x01a"),
        NEW_ARRAY + (STATE % (DTYPE_U1, b"C\x01a"))[:-1] + STATE % (DTYPE_U1, b"C\x01b"),  # filled twice
        b"c_codecs\nencode\n(" + text("YQ==") + text("base64") + b"tR.",
        b"cbuiltins\nbytes\n(I100\ntR.",
        b"cnumpy\nndarray\n(I3\ntR.",
        NEW_ARRAY + b"\x98.",  # a memoryview
        b"I5\n)R.",
        text("a") + b"}b.",
    ],
)
def test_numpy_is_not_misled(tmp_path, data):
    refused(tmp_path, data, "not a readable pickle|refused for")


def test_characters_beyond_unicode_are_refused(tmp_path):
    array = np.array(["a", "b"])
    data = pickle.dumps(array, 4)
    refused(tmp_path, data.replace(b"a\0\0\0", b"aaaa"), "text that is not Unicode")
    np.save(tmp_path / "a.npy", array)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes().replace(b"a\0\0\0", b"aaaa"))
    with pytest.raises(UserError, match="text that is not Unicode"):
        read_object_array(tmp_path / "a.npy")


# --- Memory and depth -------------------------------------------------------------------------------------------------

HUGE = 10**11


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x95" + struct.pack("<Q", HUGE) + b"N.",
        b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"aaaa.",
        b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b"aaaa.",
        b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b"aaaa.",
        b"\x80\x05\x96" + b"\xff" * 8 + b"aaaa.",
        b"B" + struct.pack("<I", 2**32 - 1) + b"aaaa.",
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"aaaa.",
        b"\x80\x02Nr\xff\xff\xff\xff0Nj\xff\xff\xff\x7f.",
        b"cnumpy\nndarray\n(L%dL\ntR." % HUGE,
        b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L%dL\ntC\x01btR(I1\ntb." % HUGE,
        NEW_ARRAY + b"(I1\n(L%dL\nt%sI00\nC\x04aaaatb." % (HUGE, DTYPE_U1),
        NEW_ARRAY + b"(I1\n(L%dL\nt%sI00\n]tb." % (HUGE, DTYPE_O8),
        NEW_ARRAY + b"(I1\n(I0\nL%dL\nL%dL\nt%sI00\n]tb." % (HUGE, HUGE, DTYPE_O8),
        NEW_ARRAY + b"(I1\n(L%dL\nt%sI00\nC\x00tb." % (HUGE, DTYPE_U1.replace(b"u1", b"U0")),
        b"cbuiltins\nbytes\n(L%dL\ntR." % HUGE,
        # A megabyte is spelled out once, to be copied a hundred times.
        b"(" + text("a" * 10**6) + b"q\x00" + (b"c_codecs\nencode\n(h\x00" + text("latin1") + b"tR") * 100 + b"l.",
        b"((" + b"I1\n" * 10**5 + b"lq\x00" + b"cbuiltins\nset\n(h\x00tR" * 100 + b"l.",
    ],
)
def test_no_memory_is_reserved_that_the_file_does_not_fill(tmp_path, data):
    tracemalloc.start()
    try:
        refused(tmp_path, data, "not a readable pickle")
        assert tracemalloc.get_traced_memory()[1] < 1e6 + 8 * len(data)
    finally:
        tracemalloc.stop()


def test_reading_takes_little_more_memory_than_the_data(tmp_path):
    value = {f"{number}": {"image": np.zeros((128, 128), np.uint8), "masks": []} for number in range(200)}
    tracemalloc.start()
    try:
        read_bytes(tmp_path, pickle.dumps(value))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        read = read_pickle(tmp_path / "data.pkl")
        assert tracemalloc.get_traced_memory()[1] - before < 1.5 * 200 * 128**2
    finally:
        tracemalloc.stop()
    assert same(read, value)


def test_depth_is_no_danger(tmp_path):
    depth = 10**5
    value = read_bytes(tmp_path, b"]" * depth + b"a" * (depth - 1) + b".")
    assert len(value) == 1
    del value
    nested = b")" + b"\x85" * depth
    assert len(read_bytes(tmp_path, nested + b".")) == 1
    for hashed in (b"}" + nested + b"Ns.", b"}(" + nested + b"Nu.", b"(" + nested + b"Nd."):
        refused(tmp_path, hashed, "a tuple in a dict key")
    for hashed in (b"\x8f(" + nested + b"\x90.", b"(" + nested + b"\x91.", b"cbuiltins\nset\n(]" + nested + b"atR."):
        refused(tmp_path, hashed, "a tuple in a dict key or set member")
    refused(tmp_path, b"cbuiltins\nfrozenset\n(]" + nested + b"atR.", "a tuple in a dict key or set member")
    refused(tmp_path, b"ccollections\nOrderedDict\n(](]" + nested + b"aNaetR.", "a tuple in a dict key")


def test_object_arrays_do_not_nest(tmp_path):
    for inner in (np.array(["a"], object), np.empty(0, object)):
        outer = np.empty(1, object)
        outer[0] = inner
        refused(tmp_path, pickle.dumps(outer), "an object array inside an object array")
    # Nor afterwards: by a state for the inner one that comes later, or by setting an item.
    later = NEW_ARRAY + b"q\x000" + NEW_ARRAY + STATE[:-1] % (DTYPE_O8, b"]h\x00a") + b"0N."
    refused(tmp_path, later, "an object array inside an object array")
    filled = NEW_ARRAY + STATE[:-1] % (DTYPE_O8, b"]Na")
    for item in (b"I0\n%ss.", b"(I0\n%su."):
        refused(tmp_path, filled + item % filled, "descriptor 'update' for 'dict' objects")


def test_sharing_does_not_multiply_the_work(tmp_path):
    layers = b"]" + b"".join(b"q%c0](h%ch%ce" % (layer, layer, layer) for layer in range(100))
    assert len(read_bytes(tmp_path, layers + b".")) == 2


# --- Broken files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_truncated_pickle_is_refused_wherever_it_ends(tmp_path, protocol):
    data = pickle.dumps(slices(), protocol)
    for end in range(0, len(data), 1 + len(data) // 500):
        # In text, half a name is still a name, though another.
        refused(
            tmp_path,
            data[:end],
            "not a readable pickle .*; fetch or export it again|refused for .* export the data again",
        )
    refused(tmp_path, data + b"N.", "more follows the end of the pickle")


@pytest.mark.filterwarnings("ignore:invalid (octal )?escape sequence:DeprecationWarning")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_changed_bytes_give_admitted_values_or_a_refusal(tmp_path, protocol):
    rng = np.random.default_rng(protocol)
    valid = pickle.dumps([slices(), np.array(["a", b"b", None], object), np.float32(1), {1, 2}], protocol)
    outcomes = set()
    for _ in range(300):
        data = bytearray(valid)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        try:
            value = read_bytes(tmp_path, bytes(data))
        except UserError as error:
            assert str(tmp_path / "data.pkl") in str(error) and "\n" not in str(error)
            outcomes.add("refused")
        else:
            assert admitted(value)
            outcomes.add("read")
    assert outcomes == {"refused", "read"}


def test_other_files_are_refused(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "image.png")
    contents = {
        "image.png": (tmp_path / "image.png").read_bytes(),
        "text.txt": b"name,age\n",
        "zipped.pkl.gz": gzip.compress(pickle.dumps({})),
        "empty.pkl": b"",
        "zeros.pkl": bytes(100),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        for read, kind in ((read_pickle, "pickle"), (read_object_array, ".npy file")):
            # The PNG's second byte is the opcode of a persistent id.
            said = (
                "refused for 'a persistent id'"
                if name == "image.png" and kind == "pickle"
                else f"not a readable {kind}"
            )
            with pytest.raises(UserError, match=f"{name}: {said}"):
                read(tmp_path / name)
    (tmp_path / "folder").mkdir()
    for read in (read_pickle, read_object_array):
        with pytest.raises(UserError, match=r"folder: cannot be read .Is a directory"):
            read(tmp_path / "folder")
        with pytest.raises(UserError, match=r"absent: cannot be read .No such file"):
            read(tmp_path / "absent")


# --- Arrays in .npy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.array(["LIDC-IDRI-0001", "b"]),
        np.array(["LIDC-IDRI-0001", "b"], object),
        np.array([["a", None], [1, b"c"]], object),
        np.array([["a", None], [1, b"c"]], object, order="F"),
        np.array("a", object),
        np.empty(0, object),
        np.arange(6).reshape(2, 3),
        np.eye(3, 2, dtype=">f4").copy(order="F"),
        np.array([], "U3"),
        np.array("é"),
    ],
)
def test_arrays_come_back_as_numpy_reads_them(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    assert same(read_object_array(tmp_path / "a.npy"), np.load(tmp_path / "a.npy", allow_pickle=True))


def write_npy(path, header, contents, version=1):
    header = repr({"descr": "|O", "fortran_order": False, "shape": (2,)} | header).encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + header + contents)


@pytest.mark.parametrize(
    ("header", "contents", "said"),
    [
        ({}, pickle.dumps(np.array(["a"], object)), "promises an object array .2,., it holds another value"),
        ({}, pickle.dumps(np.array(["a", "b"])), "it holds another value"),
        ({}, pickle.dumps(["a", "b"]), "it holds another value"),
        ({}, b"cos\ngetpid\n)R.", r"'os\.getpid'"),
        ({"descr": [("a", "|O"), ("b", "u1")]}, b"", "objects in a structured dtype"),
        ({"descr": "<f8", "shape": (10**12,)}, b"a" * 8, "more than the file holds"),
        ({"descr": "<U0", "shape": (10**12,)}, b"a" * 8, "more than the file holds"),
        ({"descr": "<f8", "shape": (-1,)}, b"a" * 8, "not a readable .npy file"),
        ({"descr": "<f8", "shape": (0, 10**30)}, b"", "not a readable .npy file"),
        ({"shape": "__import__('os').getpid()"}, b"", "shape is not valid"),
    ],
)
def test_a_wrong_npy_is_refused(tmp_path, header, contents, said):
    for version in (1, 2):
        write_npy(tmp_path / "a.npy", header, contents, version)
        with pytest.raises(UserError, match=f"a.npy: .*{said}"):
            read_object_array(tmp_path / "a.npy")
    write_npy(tmp_path / "a.npy", header, contents, 3)
    with pytest.raises(UserError, match=r"a.npy: .*format version"):
        read_object_array(tmp_path / "a.npy")


def test_a_truncated_npy_is_refused_wherever_it_ends(tmp_path):
    for dtype in (object, None):
        np.save(tmp_path / "a.npy", np.array(["LIDC-IDRI-0001", "b"], dtype), allow_pickle=True)
        data = (tmp_path / "a.npy").read_bytes()
        for end in range(len(data)):
            (tmp_path / "a.npy").write_bytes(data[:end])
            with pytest.raises(UserError, match=r"a.npy: not a readable \.npy file"):
                read_object_array(tmp_path / "a.npy")
