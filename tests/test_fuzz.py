"""Damaged and hostile files, through every reader: each is read, or refused by an error of ours that names it."""

import pickle
import resource
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from conftest import REPO, TRAIN_SCRIPT, assert_refused, call, run_script, write_dataset
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lidc_files import entries, write_lidc
from mmis_files import MODALITIES, write_h5
from PIL import Image

from benchmarks.mutations import EDITS, KINDS, LARGEST, Edit, outcome, repacked
from dataloaders.files import format_of, list_images, read_image, read_mask, read_segments
from dataloaders.lidc import read_slices
from dataloaders.mmis import list_slices, read_case
from utils.commands.errors import UserError
from utils.engine.checkpoint import read_checkpoint

SLOW = {"JSON, cache", "cache, labels"}  # which are made again, and checkpoints, which are large
EXAMPLES = {kind: 8 if kind in SLOW or "checkpoint" in kind else 60 for kind in KINDS}

edits = st.lists(
    st.builds(
        Edit,
        how=st.sampled_from(sorted(EDITS)),
        where=st.floats(0, 1, exclude_max=True) | st.floats(0, 0.1),
        size=st.integers(1, 64),
        value=st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_read_or_refused(tmp_path, kind):
    """In time and in memory too; a reader that crashes takes the tests with it."""
    reader = KINDS[kind]
    path = reader.make(tmp_path)
    whole = path.read_bytes()
    assert outcome(reader, path) == "read"

    @settings(
        max_examples=EXAMPLES[kind],
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),  # the first failure says enough; to shrink it may take an hour
        suppress_health_check=list(HealthCheck),
    )
    @given(edits)
    def check(changes: list[Edit]) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(reader.change(whole, changes))
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        outcome(reader, path)
        assert time.monotonic() - start < 20
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < LARGEST

    check()


# --- Files that promise, or expand to, more than there is -------------------------------------------------------------


def peak_growth(read) -> int:
    """Bytes that the process's largest size grew by, while ``read`` was refused."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        read()
    assert "\n" not in str(error.value)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


@pytest.mark.parametrize("read", [read_image, format_of, read_mask, lambda path: read_segments(path, (8, 8))])
@pytest.mark.parametrize("shape", ["(10000000, 1000000)", "(99999999999999999999,)", "(1, -1)", "((", "(1e9, 8)"])
def test_arrays_whose_header_promises_too_much(tmp_path, read, shape):
    np.save(tmp_path / "a.npy", np.zeros((8, 8), np.int32))
    data = (tmp_path / "a.npy").read_bytes()
    header = data[10:128].replace(b"(8, 8)", shape.encode())
    (tmp_path / "a.npy").write_bytes(data[:10] + header.rstrip(b" \n").ljust(117) + b"\n" + data[128:])
    assert peak_growth(lambda: read(tmp_path / "a.npy")) < 2**28


def test_a_tiff_whose_header_promises_too_much(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((16, 16), np.uint16))
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[tag].overwrite(2**20)
    assert peak_growth(lambda: read_image(path)) < 2**28


@pytest.mark.filterwarnings("ignore:Image size")  # of Pillow, to whoever reads so large an image
def test_a_tiff_whose_strips_are_not_there(tmp_path):
    """Half a million of them, each of which would be looked for, in an image that is not too large to be true."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((24, 16), np.uint16), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ImageLength"].overwrite(2**23)
        file.pages[0].tags["RowsPerStrip"].overwrite(16)
    start = time.monotonic()
    assert peak_growth(lambda: read_image(path)) < 2**28
    assert time.monotonic() - start < 5


def test_a_tiff_whose_pages_go_in_a_circle(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((150, 8, 8), np.uint16), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as file:
        offsets = [page.offset for page in file.pages]
    data = bytearray(path.read_bytes())
    end = offsets[-1] + 2 + 12 * int.from_bytes(data[offsets[-1] : offsets[-1] + 2], "little")
    data[end : end + 4] = offsets[120].to_bytes(4, "little")
    path.write_bytes(data)
    start = time.monotonic()
    assert peak_growth(lambda: read_image(path)) < 2**28
    assert time.monotonic() - start < 10


def test_a_plain_tiff_of_fewer_pixels_than_it_says(tmp_path):
    path = tmp_path / "a.tif"
    Image.new("L", (16, 16)).save(path)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ImageLength"].overwrite(2**22)
    assert peak_growth(lambda: read_mask(path)) < 2**28


def test_a_tiff_that_expands_beyond_its_header(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2**14, 2**14), np.uint16), compression="zlib", rowsperstrip=2**14)
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            file.pages[0].tags[tag].overwrite(16)
    assert path.stat().st_size < 2**20
    assert peak_growth(lambda: read_image(path)) < 2**28


def test_a_png_bomb(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (20000, 20000)).save(path)
    assert path.stat().st_size < 2**20
    for read in (read_image, read_mask, format_of):
        assert peak_growth(lambda read=read: read(path)) < 2**28


def test_a_volume_that_promises_too_much(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for key in (*MODALITIES, "label_a1"):
            file.create_dataset(key, (10**5, 10**4, 10**4), np.uint8, chunks=(1, 100, 100))
    assert peak_growth(lambda: read_case(path, 1, 2)) < 2**28


@pytest.mark.parametrize("kind", ["external link", "soft link", "external data", "virtual"])
def test_a_volume_that_lies_in_other_files(tmp_path, kind):
    """A stranger's file must not have others read, or wait for a pipe."""
    values = np.zeros((8, 8), np.float32)
    write_h5(tmp_path / "other.h5", {"t1": values})
    path = write_h5(tmp_path / "a.h5", {"t1c": values, "t2": values, "label_a1": values})
    with h5py.File(path, "a") as file:
        if kind == "external link":
            file["t1"] = h5py.ExternalLink("other.h5", "t1")
        elif kind == "soft link":
            file["t1"] = h5py.SoftLink("/t2")
        elif kind == "external data":
            file.create_dataset("t1", (8, 8), np.float32, external=[(str(tmp_path / "other.h5"), 0, 256)])
        else:
            layout = h5py.VirtualLayout((8, 8), np.float32)
            layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "t1", (8, 8))
            file.create_virtual_dataset("t1", layout)
    with pytest.raises(UserError, match=r"a\.h5: t1 (is a link|lies in other files)"):
        read_case(path, 1, 2)


def checkpoint_in(folder: Path) -> Path:
    return KINDS["checkpoint, to predict"].make(folder)


def test_a_flipped_bit_among_the_weights(tmp_path):
    path = checkpoint_in(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"checkpoint\.pt: not a readable checkpoint .*is damaged"):
        read_checkpoint(path)


def test_a_compressed_checkpoint(tmp_path):
    path = checkpoint_in(tmp_path)
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(tmp_path / "b.pt")
    path.write_bytes(repacked(path.read_bytes(), [Edit("insert", 0, 1, b"")]))  # it is not the packing
    read_checkpoint(path)


@pytest.mark.parametrize("part", ["in_channels", "weights", "image_size"])
def test_a_checkpoint_that_claims_huge_networks(tmp_path, part):
    path = checkpoint_in(tmp_path)
    contents = torch.load(path, weights_only=True)
    if part == "image_size":
        contents["args"]["image_size"] = 10**9
    else:
        contents["model"]["in_channels"] = 10**8
    if part == "weights":
        for network in "01":
            contents["networks"][f"{network}.encoders.0.0.weight"] = torch.zeros(1).expand(16, 10**8, 3, 3)
    torch.save(contents, path)
    assert peak_growth(lambda: KINDS["checkpoint, to predict"].read(path)) < 2**28


@pytest.mark.parametrize("part", ["networks", "optimiser", "random", "history", "args"])
@pytest.mark.parametrize("value", [None, [], {}, "text"])
def test_a_checkpoint_that_does_not_fit_the_run(tmp_path, part, value):
    path = checkpoint_in(tmp_path)
    contents = torch.load(path, weights_only=True)
    torch.save(contents | {part: value}, path)
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        KINDS["checkpoint, to resume"].read(path)


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("rows", [None, [], [None], [{"epoch": 1}], [{"epoch": 0}, {"epoch": 0}]], ids=str)
def test_a_history_that_is_not_of_the_epochs_done(tmp_path, epoch, rows):
    path = checkpoint_in(tmp_path)
    contents = torch.load(path, weights_only=True)
    torch.save(contents | {"epoch": epoch, "history": rows}, path)
    with pytest.raises(UserError, match=r"checkpoint\.pt: .*history.*--overwrite"):
        KINDS["checkpoint, to resume"].read(path)


def test_postscript_in_place_of_an_image_is_not_run(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png")


def test_a_single_number_in_place_of_masks(tmp_path):
    contents = entries(1, 1)
    for entry in contents.values():
        entry["masks"] = np.array(1)
    with pytest.raises(UserError, match="masks"):
        read_slices(write_lidc(tmp_path, contents) / "lidc_attributes.pkl", 4)


# --- Names ------------------------------------------------------------------------------------------------------------

NAMES = {"newline": b"a\nb", "escape": b"a\x1b[31mb", "not UTF-8": b"a\xff\xfeb"}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_files_of_unspeakable_names_are_refused(tmp_path, name):
    for suffix in (b".png", b".h5"):
        with open(bytes(tmp_path) + b"/" + name + suffix, "wb"):
            pass
    for listing in (list_images, list_slices):
        with pytest.raises(UserError, match="rename") as error:
            listing(tmp_path)
        assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["../a", "/tmp/a", "a/b", "..", "", "a\0b", "a\nb", "a\udcffb"])
def test_slices_whose_names_are_no_file_names_are_refused(tmp_path, name):
    contents = dict.fromkeys([name], next(iter(entries(1, 1).values())))
    path = write_lidc(tmp_path, {}) / "lidc_attributes.pkl"
    path.write_bytes(pickle.dumps(contents))
    with pytest.raises(UserError, match="name"):
        read_slices(path, 4)


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/b", "a\nb"])
def test_a_run_named_out_of_its_folder_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data", train=4, test=1)
    before = sorted(tmp_path.rglob("*"))
    flags = ("--datasets", "Kvasir", "--noise_type", "given", "--tau", "0", "--exp", name)
    assert_refused(call(TRAIN_SCRIPT, *flags), "--exp")
    assert sorted(tmp_path.rglob("*")) == before


def test_folders_whose_names_the_terminal_cannot_show(tmp_path):
    """A name of bytes that are no text is printed escaped, and the masks are made."""
    folder = tmp_path / "a\udcff\n"
    write_dataset(folder, train=2, test=1)
    noise = REPO / "scripts" / "generate_simulated_noise.py"
    outcome = run_script(
        "--gts_root", folder / "Kvasir" / "masks", "--save_root", folder / "noisy", "--workers", 1, script=noise
    )
    assert outcome.returncode == 0, outcome.stderr
    assert len(list((folder / "noisy").glob("*.png"))) == 2
