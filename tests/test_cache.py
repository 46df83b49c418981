"""The cache of training sets: as if it were not there, but when a source, a setting or its own files change."""

import errno
import json
import multiprocessing
import os
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    TRAIN_SCRIPT,
    assert_succeeded,
    block_segments,
    call,
    folder_source,
    load_program,
    loaded,
    write_dataset,
)
from PIL import Image

from dataloaders import cache, training_set
from dataloaders.cache import _allocated
from dataloaders.training_set import Sample, TrainingSource, load_training_set
from utils.commands.errors import UserError
from utils.engine.intensity import Intensity
from utils.masks.contours import move_contour
from utils.masks.geometry import squared_boundary_distance

script = load_program(TRAIN_SCRIPT)
CPU = torch.device("cpu")
SIZE = 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path, train=5, test=2, image_size=SIZE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(folder: Path, root: Path, size: int = SIZE, noise_type: str = "clean"):
    return load_training_set(folder_source(folder, noise_type, size), str(root), CPU).data


def assert_same(one, other) -> None:
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


def folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def test_cached_equals_read(folder, root, capsys):
    plain = loaded(folder_source(folder, "clean", SIZE))
    assert_same(load(folder, root), plain)
    assert "new, making it" in capsys.readouterr().out
    assert_same(load(folder, root), plain)
    assert "up to date" in capsys.readouterr().out
    assert {path.name for path in folders(root)[0].iterdir()} == {
        "images.bin", "labels.bin", "squared_distances.bin", "segments.bin", "meta.json",
    }  # fmt: skip


def test_second_use_reads_no_source(folder, root, monkeypatch):
    first = load(folder, root)
    monkeypatch.setattr(training_set, "_make", lambda *args: pytest.fail("read again"))
    assert_same(load(folder, root), first)


def test_arrays_are_compact_and_mapped(folder, root):
    data = load(folder, root)
    assert data.segments.dtype == torch.int16 and data.nbytes == 5 * SIZE * SIZE * (3 + 1 + 1 + 2)
    (cached,) = folders(root)
    assert sum(path.stat().st_size for path in cached.glob("*.bin")) == data.nbytes
    mapped = Path("/proc/self/maps").read_text()
    assert all(f"{cached.name}/{name}.bin" in mapped for name in ("images", "labels", "segments"))


def test_many_superpixels_take_wider_ids(root):
    ids = np.arange(200 * 200, dtype=np.int32).reshape(200, 200)
    sample = Sample(np.zeros((50, 60, 1), np.uint8), np.zeros((50, 60), np.uint8))
    root.mkdir()
    np.save(root / "ids.npy", ids)
    source = TrainingSource(("a", "b"), lambda index: sample, dict.fromkeys("ab", root / "ids.npy"), 200, 2, [], {})
    for place in ("none", str(root)):
        data = load_training_set(source, place, CPU).data
        assert data.segments.dtype == torch.int32 and data.num_segments == 40000
        assert np.array_equal(data.segments[1], ids)


@pytest.mark.parametrize("kind", ["images", "masks", "images_SLIC"])
def test_a_changed_source_makes_it_again(folder, root, kind, capsys):
    before = load(folder, root)
    path = sorted((folder / kind).iterdir())[2]
    if kind == "images_SLIC":
        np.save(path, np.zeros((SIZE, SIZE), np.int32))
    else:
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    capsys.readouterr()
    after = load(folder, root)
    assert "a source file has changed, making it" in capsys.readouterr().out
    assert_same(after, loaded(folder_source(folder, "clean", SIZE)))
    assert any(not torch.equal(a[2], b[2]) for a, b in zip(before.parts, after.parts, strict=True))
    assert len(folders(root)) == 1


def test_an_image_more_or_less_makes_it_again(folder, root):
    assert len(load(folder, root)) == 5
    for kind in ("images", "masks", "images_SLIC"):
        next((folder / kind).glob("case00.*")).unlink()
    data = load(folder, root)
    assert len(data) == 4 and data.names[0] == "case01"


def test_a_changed_setting_has_a_cache_of_its_own(folder, root):
    first = load(folder, root)
    for path in (folder / "images_SLIC").iterdir():
        np.save(path, block_segments(48))
    assert load(folder, root, size=48).images.shape[-1] == 48
    assert len(folders(root)) == 2
    assert first.images.shape[-1] == SIZE
    (folder / "masks_DE").mkdir()
    for path in (folder / "masks").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(folder / "masks_DE" / path.name)
    assert torch.equal(load(folder, root, 48, "DE").labels, 1 - load(folder, root, 48).labels)


def change(path: Path, old: bytes, new: bytes) -> None:
    """Change the first place where a file has ``old``."""
    before = path.read_bytes()
    path.write_bytes(before.replace(old, new, 1))
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    "damage",
    [
        lambda cached: os.truncate(cached / "images.bin", 100),
        lambda cached: (cached / "labels.bin").unlink(),
        lambda cached: (cached / "meta.json").unlink(),
        lambda cached: (cached / "meta.json").write_text("{"),
        lambda cached: (cached / "meta.json").write_text("[]"),
        lambda cached: (cached / "meta.json").write_bytes(b"\xff\x00"),
        lambda cached: change(cached / "labels.bin", b"\x01", b"\x00"),
        lambda cached: change(cached / "meta.json", b'"share_moved": 0', b'"share_moved": 1'),
    ],
    ids=["truncated", "missing array", "no meta", "half a meta", "other meta", "binary meta", "a pixel", "a fact"],
)
def test_a_damaged_cache_is_made_again(folder, root, damage, capsys):
    before = load(folder, root)
    damage(folders(root)[0])
    after = load(folder, root)
    assert "damaged, making it" in capsys.readouterr().out
    assert_same(after, loaded(folder_source(folder, "clean", SIZE)))
    del before


def test_another_version_is_made_again(folder, root, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(cache, "VERSION", 0)
        load(folder, root)
    load(folder, root)
    assert capsys.readouterr().out.count("making it") == 2
    assert json.loads((folders(root)[0] / "meta.json").read_text())["version"] == cache.VERSION


def test_a_failed_build_leaves_nothing_behind_and_the_old_in_place(folder, root):
    load(folder, root)
    Image.new("RGB", (48, 40)).save(folder / "images" / "case01.png")
    (folder / "images" / "case03.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"case03\.png"):
        load(folder, root)
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []
    assert len(folders(root)) == 1


def test_a_full_disk_is_an_error(folder, root, monkeypatch):
    real = cache._allocated

    def full(path, shape, dtype):
        if path.name == "labels.bin":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, shape, dtype)

    monkeypatch.setattr(cache, "_allocated", full)
    with pytest.raises(UserError, match=r"No space left on device.*--cache none"):
        load(folder, root)
    assert folders(root) == []


def test_a_root_that_cannot_be_written_is_an_error(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*--cache"):
        load(folder, tmp_path / "file" / "cache")


def _load_and_report(folder: Path, root: Path, start, results) -> None:
    start.wait()
    data = load(folder, root)
    results.put(int(data.images.long().sum() + data.squared_distances.long().sum()))


def test_two_processes_at_once(folder, root):
    """Both get the set; one makes it, and nothing is left over. Several rounds, each from nothing."""
    context = multiprocessing.get_context("spawn")
    plain = loaded(folder_source(folder, "clean", SIZE))
    expected = int(plain.images.long().sum() + plain.squared_distances.long().sum())
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=_load_and_report, args=(folder, root, start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    assert [results.get(timeout=60) for _ in processes] == [expected] * 2
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert len(folders(root)) == 1 and not [p for p in root.iterdir() if p.name.startswith(".")]


def test_left_overs_of_a_killed_build_are_removed(folder, root):
    load(folder, root)
    (cached,) = folders(root)
    left_over = root / f".{cached.name}.tmp"
    left_over.mkdir()
    (left_over / "images.bin").write_bytes(b"1")
    (cached / "meta.json").unlink()
    load(folder, root)
    assert not left_over.exists()


def test_room_for_an_array_is_taken_to_the_byte(tmp_path):
    array = _allocated(tmp_path / "array.bin", (3, 2**20 + 5), np.dtype(np.int16))
    assert array.shape == (3, 2**20 + 5) and not array.any()
    assert (tmp_path / "array.bin").stat().st_size == array.nbytes == 2 * 3 * (2**20 + 5)


def test_intensity_is_that_of_the_whole_set():
    images = torch.randint(256, (150, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = images.double().movedim(1, 0).flatten(1) / 255
    intensity = Intensity.of(images)
    assert intensity.mean == pytest.approx(values.mean(dim=1).tolist())
    assert intensity.std == pytest.approx(values.std(dim=1, unbiased=False).tolist())


@pytest.mark.usefixtures("without_pictures")
def test_training_is_the_same_with_and_without(tmp_path):
    write_dataset(tmp_path / "data", train=8, test=2, image_size=SIZE)
    logs = []
    for mode in ("none", "c"):
        flags = ("--datasets", "kvasir", "--noise_type", "given", "--tau", 0.1, "--image_size", 32, "--batch_size", 4)
        flags += ("--device", "cpu", "--max_epochs", 3)
        places = ("--data_root", tmp_path / "data", "--output_root", tmp_path / mode)
        cache = "none" if mode == "none" else tmp_path / "c"
        assert_succeeded(call(script.main, *flags, *places, "--cache", cache))
        assert (tmp_path / "c").exists() == (mode != "none")
        rows = (tmp_path / mode / "kvasir+gsd+given" / "log.csv").read_text().splitlines()
        logs.append([row.rsplit(",", 2)[0] for row in rows])  # without the times
    assert logs[0] == logs[1] and len(logs[0]) == 4


def displaced(folder):
    """Every mask of a dataset too tight or too wide, by another number of pixels each."""
    for number, path in enumerate(sorted((folder / "masks").iterdir())):
        mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
        offset = (-1 if number % 2 else 1) * (2 + number / 10)
        Image.fromarray(move_contour(mask, offset) * 255).save(path)


def test_contours_are_corrected_once_and_kept(tmp_path, capsys):
    folder = write_dataset(tmp_path, train=12, image_size=48)
    before = loaded(folder_source(folder, "given", 48))
    displaced(folder)
    source, place = folder_source(folder, "given", 48), str(tmp_path / "cache")
    given = load_training_set(source, place, CPU)
    assert given.findings is None and "contours:" not in capsys.readouterr().out
    corrected = load_training_set(source, place, CPU, "corrected")
    words = [line for line in capsys.readouterr().out.splitlines() if line.startswith("contours:")]
    again = load_training_set(source, place, CPU, "corrected")
    out = capsys.readouterr().out
    assert "up to date" in out and again.findings == corrected.findings
    assert words == [line for line in out.splitlines() if line.startswith("contours:")]
    changed = (given.data.labels != corrected.data.labels).float().mean()
    assert "12 of 12" in words[0] and f"{changed:.1%}" in words[0]
    in_memory = load_training_set(source, "none", CPU, "corrected")
    for one in (again, in_memory):
        assert_same(one.data, corrected.data)
    wrong, left = ((one.labels != before.labels).float().mean() for one in (given.data, corrected.data))
    assert left < 0.3 * wrong
    for label, squared in zip(corrected.data.labels.numpy(), corrected.data.squared_distances.numpy(), strict=True):
        np.testing.assert_array_equal(squared_boundary_distance(label), squared)
    assert torch.equal(load_training_set(source, place, CPU).data.labels, given.data.labels)


def test_tau_is_found_in_the_same_pass_and_kept(tmp_path):
    folder = write_dataset(tmp_path, train=12, image_size=48)
    displaced(folder)
    source = folder_source(folder, "given", 48)
    for place in ("none", str(tmp_path / "cache"), str(tmp_path / "cache")):
        found = load_training_set(source, place, CPU, wants_tau=True)
        assert not any(found.findings.shifts) and "as given" in found.findings.tau_from
        assert 0.02 < found.findings.tau < 0.2
        assert torch.equal(found.data.labels, loaded(source).labels)  # nothing is moved


def test_contours_stay_where_images_show_no_edges(tmp_path, capsys):
    """And it is said, also when the cache is there already."""
    folder = write_dataset(tmp_path, train=12, image_size=48)
    rng = np.random.default_rng(0)
    for path in (folder / "images").iterdir():
        shape = np.asarray(Image.open(path)).shape
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    source, place = folder_source(folder, "given", 48), str(tmp_path / "cache")
    given = load_training_set(source, place, CPU).data
    for why in ("new", "up to date"):
        corrected = load_training_set(source, place, CPU, "corrected").data
        out = capsys.readouterr().out
        assert why in out and "contours: 0 of 12 moved" in out and "edge" in out
        assert torch.equal(corrected.labels, given.labels)


def test_classes_that_vanish_at_the_training_size_are_named(tmp_path, capsys):
    """A dot of two pixels of 48x40 is nowhere at 16x16; also when the cache is there already."""
    folder = write_dataset(tmp_path, train=3, image_size=16)
    mask = np.zeros((40, 48), np.uint8)
    mask[0, 1:3] = 255
    Image.fromarray(mask).save(folder / "masks" / "case01.png")
    source = folder_source(folder, "given", 16)
    for _ in range(2):
        found = load_training_set(source, str(tmp_path / "cache"), CPU)
        assert found.vanished == {1}
        told = capsys.readouterr().err
        assert "--image_size 16" in told and "case01" in told and "case00" not in told
    Image.fromarray(np.roll(mask, (9, 9), axis=(0, 1)).repeat(5, axis=0)[:40]).save(folder / "masks" / "case01.png")
    assert load_training_set(source, "none", CPU).vanished == set()
