"""MMIS-2024: files as stored, intensities, the choice of raters, lazily read volumes, and every file to be refused."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from conftest import block_segments, loaded
from mmis_files import LABELS, MODALITIES, draw_volume, write_h5, write_mmis

from dataloaders.mmis import (
    SELECTION,
    MMISCases,
    case_of,
    list_slices,
    read_case,
    read_slice,
    select_raters,
    selection_json,
    shared_cases,
    slic_sources,
    to_bytes,
    training_source,
    validation_cases,
    warn_of_leakage,
)
from dataloaders.slic import find_maps
from utils.commands.errors import UserError
from utils.masks.geometry import resize_image, resize_label, squared_boundary_distance
from utils.masks.superpixels import slic_segments

SIZE = 32
KEYS = (*MODALITIES, *LABELS)
UNITS = (4, 2, SIZE)  # raters, classes, image size


@pytest.fixture
def volume():
    return draw_volume(np.random.default_rng(0), slices=3)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def no_file_open():
    kinds = h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET | h5py.h5f.OBJ_GROUP
    return not h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, kinds)


def refusal(call, *named):
    """The message of the `UserError` that the call must raise; it names all of ``named``, and leaves no file open."""
    with pytest.raises(UserError) as caught:
        call()
    for name in named:
        assert str(name) in str(caught.value)
    assert no_file_open()
    return str(caught.value)


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_volume_comes_back_as_stored(tmp_path, volume):
    image, labels = read_case(write_h5(tmp_path / "a.h5", volume), 4, 2)
    assert (image.shape, image.dtype) == ((3, 37, 53, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((4, 3, 37, 53), np.uint8)
    for channel, key in enumerate(MODALITIES):
        for plane, stored in zip(image, volume[key], strict=True):
            np.testing.assert_array_equal(plane[..., channel], to_bytes(stored))
    for rater, key in enumerate(LABELS):
        np.testing.assert_array_equal(labels[rater], volume[key])
    assert len({labels[rater].tobytes() for rater in range(4)}) == 4


def test_two_dimensions_are_one_slice(tmp_path, volume):
    path = write_h5(tmp_path / "a.h5", {key: values[1] for key, values in volume.items()})
    whole = read_case(write_h5(tmp_path / "b.h5", volume), 4, 2)
    image, labels = read_case(path, 4, 2)
    np.testing.assert_array_equal(image, whole.image[1:2])
    np.testing.assert_array_equal(labels, whole.labels[:, 1:2])
    image, labels = read_slice(path, 4, 2)
    np.testing.assert_array_equal(image, whole.image[1])
    np.testing.assert_array_equal(labels, whole.labels[:, 1])


def test_a_training_file_of_several_slices_is_refused(tmp_path, volume):
    path = write_h5(tmp_path / "a.h5", volume)
    text = refusal(lambda: read_slice(path, 4, 2), path)
    assert "3 slices" in text and "expected one slice" in text


def test_slices_without_tumour_and_empty_raters_are_read(tmp_path, rng):
    volume = draw_volume(rng, slices=2, no_tumour=(0,), empty_rater=3)
    _, labels = read_case(write_h5(tmp_path / "a.h5", volume), 4, 2)
    foreground = labels.any(axis=(2, 3))
    assert foreground.tolist() == [[False, True], [False, True], [False, False], [False, True]]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float16", "float32", "float64", "bool"])
def test_labels_of_every_number_type_are_read(tmp_path, volume, dtype):
    stored = volume | {key: volume[key].astype(dtype) for key in LABELS}
    _, labels = read_case(write_h5(tmp_path / "a.h5", stored), 4, 2)
    np.testing.assert_array_equal(labels, np.stack([volume[key] for key in LABELS]))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float64", ">f4"])
def test_intensities_of_every_number_type_are_read(tmp_path, volume, dtype):
    stored = volume | {"t1": (volume["t1"].clip(0, 1900) / 10).astype(dtype)}
    image, _ = read_case(write_h5(tmp_path / "a.h5", stored), 4, 2)
    np.testing.assert_array_equal(image[0, ..., 0], to_bytes(stored["t1"][0].astype(float)))


def test_labels_of_0_and_255_are_0_and_1(tmp_path, volume):
    stored = volume | {key: volume[key] * 255 for key in LABELS[1:]}
    _, labels = read_case(write_h5(tmp_path / "a.h5", stored), 4, 2)
    np.testing.assert_array_equal(labels, np.stack([volume[key] for key in LABELS]))


def test_more_classes_and_fewer_raters(tmp_path, volume):
    three = {"label_a1": volume["label_a1"] * 2, "label_a2": volume["label_a2"]}
    path = write_h5(tmp_path / "a.h5", {key: volume[key] for key in MODALITIES} | three)
    assert set(np.unique(read_case(path, 2, 3).labels)) == {0, 1, 2}
    refusal(lambda: read_case(path, 2, 2), path, "label_a1", "values 0, 2", "0/1 or 0/255")
    refusal(lambda: read_case(path, 4, 3), path, "no label_a3, label_a4", "--raters 4")
    refusal(lambda: read_case(path, 1, 3), path, "label_a2", "beyond --raters 1")


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named_with_those_there(tmp_path, volume, key):
    path = write_h5(tmp_path / "a.h5", {name: values for name, values in volume.items() if name != key})
    message = refusal(lambda: read_case(path, 4, 2), path, f"no {key} in it")
    assert f"it holds {', '.join(sorted(set(KEYS) - {key}))}" in message
    assert ("--raters" in message) == key.startswith("label")  # which may be a matter of how many there are


def test_a_file_without_any_key_is_refused(tmp_path):
    path = write_h5(tmp_path / "a.h5", {})
    refusal(lambda: read_case(path, 4, 2), path, "it holds nothing")


@pytest.mark.parametrize("key", KEYS[1:])
def test_keys_of_unequal_shape_are_refused(tmp_path, volume, key):
    path = write_h5(tmp_path / "a.h5", volume | {key: volume[key][:, :-1]})
    refusal(lambda: read_case(path, 4, 2), path, key, "(3, 36, 53)", "t1 of (3, 37, 53)")


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((), "expected (H,W) or (slices,H,W)"),
        ((9,), "expected (H,W) or (slices,H,W)"),
        ((2, 3, 8, 9), "expected (H,W) or (slices,H,W)"),
        ((0, 8, 9), "no slice or no pixel"),
        ((2, 0, 9), "no slice or no pixel"),
        ((8, 0), "no slice or no pixel"),
    ],
)
def test_other_shapes_are_refused(tmp_path, shape, found):
    path = write_h5(tmp_path / "a.h5", {key: np.zeros(shape) for key in KEYS})
    refusal(lambda: read_case(path, 4, 2), path, "t1", str(shape), found)


def test_a_key_without_data_is_refused(tmp_path, volume):
    path = write_h5(tmp_path / "a.h5", volume | {"t1": h5py.Empty("f4")})
    refusal(lambda: read_case(path, 4, 2), path, "t1", "expected (H,W)")


@pytest.mark.parametrize("key", KEYS)
def test_a_group_in_place_of_an_array_is_refused(tmp_path, volume, key):
    path = write_h5(tmp_path / "a.h5", {name: values for name, values in volume.items() if name != key})
    with h5py.File(path, "a") as file:
        file.create_group(key)
    refusal(lambda: read_case(path, 4, 2), path, f"{key} is a group")


@pytest.mark.parametrize("key", ["t1c", "label_a2"])
@pytest.mark.parametrize("dtype", ["S3", "complex64", [("a", "f4"), ("b", "f4")]])
def test_what_is_no_number_is_refused(tmp_path, volume, key, dtype):
    path = write_h5(tmp_path / "a.h5", volume | {key: np.zeros((3, 37, 53), dtype)})
    refusal(lambda: read_case(path, 4, 2), path, f"{key} is of type", "expected numbers")


def test_an_image_of_yes_and_no_is_refused(tmp_path, volume):
    path = write_h5(tmp_path / "a.h5", volume | {"t1c": volume["label_a1"].astype(bool)})
    refusal(lambda: read_case(path, 4, 2), path, "t1c is of type bool", "expected numbers")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, volume, value):
    for key in ("t2", "label_a4"):
        broken = volume[key].astype(np.float32)
        broken[1, 20, 30:32] = value
        path = write_h5(tmp_path / "a.h5", volume | {key: broken})
        message = refusal(lambda path=path: read_case(path, 4, 2), path, key)
        assert ("2 of 5883 values are NaN or infinite" if key == "t2" else f"{value:g}") in message


@pytest.mark.parametrize("value", [-1, 2, 0.5, 254])
def test_label_values_out_of_range_are_refused(tmp_path, volume, value):
    broken = volume["label_a3"].astype(float)
    broken[2, 0, 0] = value
    path = write_h5(tmp_path / "a.h5", volume | {"label_a3": broken})
    refusal(lambda: read_case(path, 4, 2), path, "label_a3", f"{value:g}", "0/1 or 0/255")


@pytest.mark.parametrize("content", [b"", b"not HDF5\n", b"\x89HDF\r\n\x1a\n"], ids=["empty", "text", "signature"])
def test_a_file_that_is_no_hdf5_is_refused(tmp_path, content):
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    refusal(lambda: read_case(path, 4, 2), path, "not a readable HDF5 file")


def test_a_missing_file_is_refused(tmp_path):
    refusal(lambda: read_case(tmp_path / "a.h5", 4, 2), tmp_path / "a.h5", "no such file")


def test_a_truncated_file_is_refused_wherever_it_breaks_off(tmp_path, volume):
    path = write_h5(tmp_path / "a.h5", volume)
    content = path.read_bytes()
    for length in (*range(0, len(content), len(content) // 60), len(content) - 1):
        path.write_bytes(content[:length])
        refusal(lambda: read_case(path, 4, 2), path, "not a readable HDF5 file")


def test_a_damaged_chunk_is_refused(tmp_path, volume):
    path = write_h5(tmp_path / "a.h5", {})
    with h5py.File(path, "w") as file:
        for key, values in volume.items():
            file.create_dataset(key, data=values, chunks=True, compression="gzip", fletcher32=True)
        place = file["t2"].id.get_chunk_info(0)
    read_case(path, 4, 2)
    content = bytearray(path.read_bytes())
    content[place.byte_offset + place.size // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    refusal(lambda: read_case(path, 4, 2), path, "not a readable HDF5 file")


def test_no_file_stays_open(tmp_path, volume):
    path = write_h5(tmp_path / "testing" / "a.h5", volume)
    cases = MMISCases(path.parent, *UNITS)
    assert no_file_open()
    cases[0]
    assert no_file_open()
    path.rename(tmp_path / "b.h5").unlink()
    refusal(lambda: cases[0], path)


def test_files_are_listed_by_stem_and_others_named(tmp_path, capsys):
    for name in ("b_2.h5", "a_1.h5", "readme.txt", "c.hdf5", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert list_slices(tmp_path) == {
        "a_1": tmp_path / "a_1.h5",
        "b_2": tmp_path / "b_2.h5",
        "c": tmp_path / "c.hdf5",
    }
    assert "folder, readme.txt" in capsys.readouterr().err


def test_folders_without_files_are_refused(tmp_path):
    refusal(lambda: list_slices(tmp_path / "none"), tmp_path / "none", "no such folder")
    refusal(lambda: list_slices(tmp_path), tmp_path)
    (tmp_path / "a.nii").touch()
    refusal(lambda: MMISCases(tmp_path, *UNITS), tmp_path, "a.nii")


# --- Intensities ------------------------------------------------------------------------------------------------------


def test_percentiles_of_the_tissue_become_0_and_255(rng):
    tissue = rng.normal(700, 90, 2000)
    plane = np.concatenate([np.zeros(2025), tissue]).reshape(35, 115)
    low, high = np.percentile(tissue, (0.5, 99.5))
    expected = np.rint(255 * ((plane - low) / (high - low)).clip(0, 1))
    scaled = to_bytes(plane)
    assert scaled.dtype == np.uint8
    np.testing.assert_array_equal(scaled, expected)
    assert 10 <= (scaled.flat[2025:] == 0).sum() <= 14  # half a per cent of the tissue, and what is rounded to it
    assert 10 <= (scaled == 255).sum() <= 14
    assert (scaled.flat[:2025] == 0).all()


def test_outliers_do_not_set_the_scale(rng):
    plane = rng.normal(700, 90, (40, 50))
    spike = plane.copy()
    spike[3, 4] = 1e6
    change = np.abs(to_bytes(spike).astype(int) - to_bytes(plane))
    assert change[plane == spike].max() <= 2


@pytest.mark.parametrize("factor", [1e-6, 0.1, 1 / 3, 7.3, 4095.0, 1e9])
@pytest.mark.parametrize("whole", [True, False])
def test_a_positive_factor_changes_nothing(rng, factor, whole):
    plane = draw_volume(rng, 1)["t1"][0].astype(float)
    plane = np.rint(plane) if whole else plane
    np.testing.assert_array_equal(to_bytes(plane * factor), to_bytes(plane))
    np.testing.assert_array_equal(to_bytes(-(plane - 400) * factor), to_bytes(-(plane - 400)))


@pytest.mark.parametrize("shift", [-5000, -100, 0.25, 1000, 1e6])
def test_a_shift_changes_nothing_without_a_background_of_zeros(rng, shift):
    plane = rng.integers(1, 90, (37, 53))
    np.testing.assert_array_equal(to_bytes(plane + shift), to_bytes(plane))


def test_a_background_of_zeros_is_left_out_of_the_percentiles(rng):
    tissue = rng.uniform(500, 600, (30, 30))
    for border in (0, 10, 40):
        scaled = to_bytes(np.pad(tissue, border))
        np.testing.assert_array_equal(scaled[border : 30 + border, border : 30 + border], to_bytes(tissue))


@pytest.mark.parametrize("value", [0, 7, -3.5, 65535])
def test_a_constant_plane_is_0(value):
    assert not to_bytes(np.full((5, 7), value)).any()


def test_nearly_constant_planes_span_their_extremes():
    plane = np.full((100, 100), 50.0)
    plane[0, 0], plane[0, 1] = 40, 60
    scaled = to_bytes(plane)
    assert (scaled[0, 0], scaled[0, 1], scaled[50, 50]) == (0, 255, 128)
    two = np.zeros((10, 10))
    two[:5] = 9
    np.testing.assert_array_equal(to_bytes(two), np.where(two, 255, 0))


def test_a_few_pixels_in_the_dark_are_seen():
    plane = np.zeros((50, 50))
    plane[10, 10:14] = (1, 2, 3, 4)
    np.testing.assert_array_equal(to_bytes(plane)[10, 10:14], (64, 128, 191, 255))
    assert np.count_nonzero(to_bytes(plane)) == 4


def test_no_overflow_in_small_types():
    ramp = np.arange(-100, 100, dtype=np.int8).reshape(10, 20)
    np.testing.assert_array_equal(to_bytes(ramp), to_bytes(ramp.astype(float)))
    large = np.linspace(-6e4, 6e4, 200).astype(np.float16).reshape(10, 20)
    np.testing.assert_array_equal(to_bytes(large), to_bytes(large.astype(float)))


def test_slices_and_modalities_are_scaled_by_themselves(tmp_path, volume):
    whole, _ = read_case(write_h5(tmp_path / "a.h5", volume), 4, 2)
    volume["t1c"][1] *= 50
    again, _ = read_case(write_h5(tmp_path / "a.h5", volume), 4, 2)
    np.testing.assert_array_equal(again, whole)
    assert whole.min(axis=(1, 2)).tolist() == [[0] * 3] * 3
    assert whole.max(axis=(1, 2)).tolist() == [[255] * 3] * 3


# --- Cases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "case"), [("a_1", "a"), ("sample_12_003", "sample_12"), ("a", "a"), ("_1", "_1"), ("a_", "a")]
)
def test_the_case_of_a_slice(stem, case):
    assert case_of(stem) == case


def test_volumes_of_training_cases_are_named(tmp_path, capsys):
    slices = ["case_1_0", "case_1_1", "case_2_0", "alone"]
    assert shared_cases(slices, ["case_1", "case_3", "alone", "case_2_0"]) == ["alone", "case_1"]
    root = write_mmis(tmp_path)
    slices, test = list_slices(root / "training_2d"), MMISCases(root / "testing", *UNITS)
    warn_of_leakage(slices, test)
    assert not capsys.readouterr().err
    (root / "testing" / "test01.h5").rename(root / "testing" / "case02.h5")
    warn_of_leakage(slices, MMISCases(root / "testing", *UNITS))
    warning = capsys.readouterr().err
    assert "warning" in warning and "1 of 2 test volumes" in warning and "case02" in warning and "testing" in warning


# --- Raters -----------------------------------------------------------------------------------------------------------

STEMS = ["a_0", "a_1", "b_0", "b_1"]


def write_selection(folder, content):
    path = folder / SELECTION
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "values",
    [["label_a3", "label_a1", "label_a4", "label_a2"], ["a3", "a1", "a4", "a2"], [3, 1, 4, 2], ["3", "a1", "4", 2]],
)
@pytest.mark.parametrize("suffix", ["", ".h5"])
def test_the_file_says_which_rater(tmp_path, values, suffix, capsys):
    write_selection(tmp_path, {f"{stem}{suffix}": value for stem, value in zip(STEMS, values, strict=True)})
    assert select_raters(tmp_path, STEMS, 4, None, seed=0) == {"a_0": 2, "a_1": 0, "b_0": 3, "b_1": 1}
    out, err = capsys.readouterr()
    assert f"raters as in {tmp_path / SELECTION}" in out and not err


@pytest.mark.parametrize(
    "value", [0, "0", "a0", "label_a0", 5, "label_a5", -1, "b1", "", "label_a", 1.0, True, None, [1], {"a": 1}, "1 "]
)
def test_a_rater_out_of_range_is_refused(tmp_path, value):
    path = write_selection(tmp_path, dict.fromkeys(STEMS, 1) | {"b_0": value})
    refusal(lambda: select_raters(tmp_path, STEMS, 4, None, seed=0), path, "b_0", "counted from 1", "label_a4")


def test_even_an_absent_slice_must_not_have_rater_0(tmp_path):
    path = write_selection(tmp_path, dict.fromkeys(STEMS, 1) | {"gone.h5": 0})
    refusal(lambda: select_raters(tmp_path, STEMS, 4, None, seed=0), path, "gone.h5", "rater 0")


def test_a_slice_without_rater_is_refused(tmp_path):
    path = write_selection(tmp_path, {"a_0": 1, "b_0.h5": 1})
    refusal(lambda: select_raters(tmp_path, STEMS, 4, None, seed=0), path, "2 of 4", "a_1, b_1")


def test_entries_for_absent_slices_are_named(tmp_path, capsys):
    write_selection(tmp_path, dict.fromkeys([*STEMS, "c_0.h5"], 2))
    assert select_raters(tmp_path, STEMS, 4, None, seed=0) == dict.fromkeys(STEMS, 1)
    assert "1 entries for absent files: c_0" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '[["a_0", 1]]', "3", "null", '"a"', "\udcff"])
def test_a_file_that_is_no_such_json_is_refused(tmp_path, content):
    path = tmp_path / SELECTION
    path.write_bytes(content.encode(errors="surrogateescape"))
    refusal(lambda: select_raters(tmp_path, STEMS, 4, None, seed=0), path)


@pytest.mark.parametrize("twice", ['"a_0": 1, "a_0": 2', '"a_0": 1, "a_0.h5": 2'])
def test_a_slice_named_twice_is_refused(tmp_path, twice):
    path = write_selection(tmp_path, "{" + twice + ', "a_1": 1, "b_0": 1, "b_1": 1}')
    refusal(lambda: select_raters(tmp_path, STEMS, 4, None, seed=0), path, "named twice")


def test_without_the_file_raters_are_drawn_from_the_seed(tmp_path, capsys):
    stems = [f"a_{i}" for i in range(400)]
    chosen = select_raters(tmp_path, stems, 4, None, seed=3)
    assert list(chosen) == stems
    assert np.bincount(list(chosen.values()), minlength=4).min() > 70  # 100 +- 8.7
    assert chosen == select_raters(tmp_path, stems, 4, None, seed=3) == select_raters(tmp_path, stems, 4, "random", 3)
    assert chosen != select_raters(tmp_path, stems, 4, None, seed=4)
    said = capsys.readouterr().out
    assert "drawn at random with --seed 3" in said
    assert "overrides" not in said


def test_a_policy_overrides_the_file_and_says_so(tmp_path, capsys):
    path = write_selection(tmp_path, dict.fromkeys(STEMS, 1))
    assert select_raters(tmp_path, STEMS, 4, "3", seed=0) == dict.fromkeys(STEMS, 2)
    assert f"--rater_policy 3 overrides {path}" in capsys.readouterr().out
    assert list(select_raters(tmp_path, STEMS, 3, "cycle", seed=0).values()) == [0, 1, 2, 0]
    path.write_text("no JSON")  # an overridden file is not even read
    select_raters(tmp_path, STEMS, 4, "random", seed=0)
    refusal(lambda: select_raters(tmp_path, STEMS, 4, "0", seed=0), "--rater_policy 0")


def test_the_choice_is_written_in_the_format_it_is_read_in(tmp_path):
    chosen = select_raters(tmp_path, STEMS, 4, None, seed=1)
    assert selection_json({"a_0": 2}) == {"a_0.h5": "label_a3"}
    write_selection(tmp_path, selection_json(chosen))
    assert select_raters(tmp_path, STEMS, 4, None, seed=99) == chosen


# --- Training set -----------------------------------------------------------------------------------------------------


def training_set(root, slices, raters, size=SIZE):
    maps = find_maps(slic_sources(slices, 4, 2), root / "training_2d", root / "train_2D_slic", size)
    return loaded(training_source(slices, raters, maps, 4, 2, size))


def test_the_training_set_holds_each_slice_with_its_rater(tmp_path):
    root = write_mmis(tmp_path, SIZE)
    slices = dict(list(list_slices(root / "training_2d").items())[1:9])
    raters = {stem: index % 4 for index, stem in enumerate(slices)}
    np.save(root / "train_2D_slic" / "case01_0.npy", block_segments(SIZE) + 200)
    data = training_set(root, slices, raters)
    assert data.names == tuple(slices) and len(data) == 8
    assert (data.images.shape, data.images.dtype) == ((8, 3, SIZE, SIZE), torch.uint8)
    assert (data.labels.dtype, data.squared_distances.dtype, data.segments.dtype) == (
        torch.uint8,
        torch.uint8,
        torch.int16,
    )
    for index, (stem, path) in enumerate(slices.items()):
        image, labels = read_slice(path, 4, 2)
        label = resize_label(labels[raters[stem]], SIZE)
        np.testing.assert_array_equal(data.images[index], np.moveaxis(resize_image(image, SIZE), -1, 0))
        np.testing.assert_array_equal(data.labels[index], label)
        np.testing.assert_array_equal(data.squared_distances[index], squared_boundary_distance(label))
        np.testing.assert_array_equal(data.segments[index], np.load(root / "train_2D_slic" / f"{stem}.npy"))
    assert data.num_segments == block_segments(SIZE).max() + 201
    assert not data.labels[list(slices).index("case01_0")].any()  # without a tumour
    assert data.labels.any(dim=(1, 2)).sum() >= 5


def test_missing_superpixels_are_made_of_the_three_modalities(tmp_path):
    root = write_mmis(tmp_path, SIZE)
    slices, segments = list_slices(root / "training_2d"), root / "train_2D_slic"
    (segments / "case02_1.npy").unlink()
    training_set(root, slices, dict.fromkeys(slices, 0))
    image = resize_image(read_slice(slices["case02_1"], 4, 2)[0], SIZE)
    expected = slic_segments(image, n_segments=SIZE**2 // 16)
    np.testing.assert_array_equal(np.load(segments / "case02_1.npy"), expected)


def test_superpixels_that_do_not_vote_are_not_read(tmp_path):
    root = write_mmis(tmp_path, SIZE)
    slices = list_slices(root / "training_2d")
    shutil.rmtree(root / "train_2D_slic")
    data = loaded(training_source(slices, dict.fromkeys(slices, 0), None, *UNITS))
    assert not data.segments.any() and data.num_segments == 1 and not (root / "train_2D_slic").exists()


def test_superpixels_of_another_size_are_refused(tmp_path):
    root = write_mmis(tmp_path, SIZE)
    slices, segments = list_slices(root / "training_2d"), root / "train_2D_slic"
    raters = dict.fromkeys(slices, 0)
    refusal(lambda: training_set(root, slices, raters, 48), segments / "case00_0.npy", "(32, 32)")


def test_a_bad_slice_among_good_ones_is_named(tmp_path):
    root = write_mmis(tmp_path, SIZE)
    slices = list_slices(root / "training_2d")
    slices["case01_1"].write_bytes(b"")
    raters = dict.fromkeys(slices, 0)
    refusal(lambda: training_set(root, slices, raters), slices["case01_1"])


# --- Validation and test cases ----------------------------------------------------------------------------------------


def test_held_out_slices_are_stacked_to_their_cases(tmp_path):
    root = write_mmis(tmp_path)
    slices = {stem: path for stem, path in list_slices(root / "training_2d").items() if case_of(stem) != "case02"}
    cases = validation_cases(slices, *UNITS)
    assert [case.name for case in cases] == ["case00", "case01", "case03"]
    assert [case.masks.shape for case in cases] == [(4, 3, 37, 53), (4, 3, 39, 51), (4, 3, 43, 47)]
    for case in cases:
        assert (case.image.shape, case.image.dtype, case.masks.dtype) == ((3, 3, SIZE, SIZE), torch.uint8, torch.uint8)
        for index in range(3):
            image, labels = read_slice(slices[f"{case.name}_{index}"], 4, 2)
            np.testing.assert_array_equal(case.image[index], np.moveaxis(resize_image(image, SIZE), -1, 0))
            np.testing.assert_array_equal(case.masks[:, index], labels)
    assert not cases[0].masks[3].any() and cases[1].masks[3].any()  # rater 4 is empty in the first case


def test_a_case_of_two_sizes_comes_in_two_parts(tmp_path, rng):
    for index, (height, width) in enumerate([(37, 53), (40, 40), (37, 53)]):
        flat = {key: values[0] for key, values in draw_volume(rng, 1, height, width).items()}
        write_h5(tmp_path / f"a_{index}.h5", flat)
    cases = validation_cases(list_slices(tmp_path), *UNITS)
    assert [(case.name, len(case.image)) for case in cases] == [("a 37x53", 2), ("a 40x40", 1)]


def test_nothing_held_out_is_no_case(capsys):
    assert validation_cases({}, *UNITS) == []
    assert not capsys.readouterr().err


def test_volumes_have_their_own_size_and_their_images_the_training_size(tmp_path):
    root = write_mmis(tmp_path)
    cases = MMISCases(root / "testing", *UNITS)
    assert len(cases) == 2
    assert [case.name for case in cases] == ["test00", "test01"]
    for case, shape in zip(cases, [(4, 37, 53), (3, 50, 29)], strict=True):
        assert (case.image.shape, case.image.dtype) == ((shape[0], 3, SIZE, SIZE), torch.uint8)
        assert (case.masks.shape, case.masks.dtype) == ((4, *shape), torch.uint8)
        image, labels = read_case(root / "testing" / f"{case.name}.h5", 4, 2)
        np.testing.assert_array_equal(case.masks, labels)
        for plane, expected in zip(case.image, image, strict=True):
            np.testing.assert_array_equal(plane, np.moveaxis(resize_image(expected, SIZE), -1, 0))
    foreground = cases[0].masks.any(dim=(2, 3))
    assert foreground.tolist() == [[False, True, True, True], [False] * 4, *[[False, True, True, True]] * 2]
    assert cases[-1].name == "test01"
    with pytest.raises(IndexError):
        cases[2]
    with pytest.raises(TypeError):
        cases[0:1]


def test_the_constructor_reads_no_pixel(tmp_path, volume):
    """A file whose values are wrong passes until it is asked for; so does one with a damaged chunk."""
    good, wrong = write_h5(tmp_path / "a.h5", volume), tmp_path / "b.h5"
    write_h5(wrong, volume | {"t2": volume["t2"] * np.nan})
    cases = MMISCases(tmp_path, *UNITS)
    assert cases[0].name == good.stem
    refusal(lambda: cases[1], wrong, "t2", "NaN")
    write_h5(wrong, volume)  # read anew each time, not kept
    assert torch.equal(cases[1].masks, cases[0].masks)


@pytest.mark.parametrize("flaw", ["missing", "shape", "type", "group", "slices", "truncated"])
def test_the_constructor_finds_wrong_files(tmp_path, volume, flaw):
    write_h5(tmp_path / "a.h5", volume)
    broken = {
        "missing": {key: values for key, values in volume.items() if key != "label_a2"},
        "shape": volume | {"label_a2": volume["label_a2"][1:]},
        "type": volume | {"label_a2": np.zeros((3, 37, 53), "S1")},
        "group": {key: values for key, values in volume.items() if key != "label_a2"} | {"label_a2/x": 1},
        "slices": {key: values[:0] for key, values in volume.items()},
        "truncated": volume,
    }[flaw]
    path = write_h5(tmp_path / "b.h5", broken)
    if flaw == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    refusal(lambda: MMISCases(tmp_path, *UNITS), path)
