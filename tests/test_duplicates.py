"""Copies among images: exact ones, near ones, and what is none."""

import cv2
import numpy as np
import pytest
from verifying import photograph

from dataloaders.verification import duplicates
from dataloaders.verification.checks import agreement_of


def test_copies_are_found_after_what_happens_to_files_and_nothing_else():
    images = [photograph(seed) for seed in range(6)]
    originals = [duplicates.fingerprint(image) for image in images]
    assert duplicates.near_copies(originals, ["train"] * 6, list("abcdef")) == []
    jpeg = cv2.imdecode(cv2.imencode(".jpg", images[1], [cv2.IMWRITE_JPEG_QUALITY, 20])[1], cv2.IMREAD_COLOR)
    changed = [
        (cv2.resize(images[0], (40, 40), interpolation=cv2.INTER_AREA), 0),
        (jpeg, 1),
        ((images[2] * 0.7 + 40).astype(np.uint8), 2),
        (cv2.cvtColor(images[3], cv2.COLOR_RGB2GRAY)[..., None], 3),
        (np.ascontiguousarray(images[4][:, ::-1]), None),
        (photograph(99), None),
    ]
    for image, original in changed:
        prints = [*originals, duplicates.fingerprint(image)]
        found = duplicates.near_copies(prints, ["train"] * 6 + ["test"], list("abcdefg"))
        assert [(copy.index, copy.of) for copy in found] == ([] if original is None else [(6, original)])
        assert duplicates.exact_copies(prints, ["train"] * 7) == []


def test_equal_pixels_in_another_shape_are_not_equal_images():
    image = photograph(0)
    prints = [duplicates.fingerprint(values) for values in (image, image.reshape(32, 128, 3), image)]
    assert duplicates.exact_copies(prints, ["train"] * 3) == [duplicates.Copy(2, 0, 1.0)]
    assert duplicates.exact_copies(prints, ["train", "train", "test"]) == [duplicates.Copy(2, 0, 1.0)]
    assert duplicates.fingerprint(np.full((9, 9, 1), 7, np.uint8)) is None


def test_two_images_are_enough_to_be_copies():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 1), np.uint8)
    prints = [duplicates.fingerprint(values) for values in (image, image // 2)]
    [copy] = duplicates.near_copies(prints, ["train"] * 2, list("ab"))
    assert (copy.index, copy.of) == (1, 0)
    assert duplicates.near_copies(prints, ["train"] * 2, list("aa")) == []
    assert duplicates.near_copies([], [], []) == []


@pytest.mark.parametrize(("block", "chunk"), [(4_000_000, 4096), (100, 3), (1, 1)])
def test_pairs_are_those_of_a_plain_search(monkeypatch, block, chunk):
    """Noisy versions of few images, some in one group, against all pairs compared one by one."""
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    monkeypatch.setattr(duplicates, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    images = [photograph(int(rng.integers(4))) * 0.7 + rng.normal(0, 2, (64, 64, 3)) for _ in range(24)]
    prints = [duplicates.fingerprint(image.clip(0, 255).astype(np.uint8)) for image in images]
    parts = ["train"] * 14 + ["test"] * 10
    groups = [str(index // 2) for index in range(24)]
    best: dict = {}
    for i in range(24):
        for j in range(i):
            bits = (prints[i].hash ^ prints[j].hash).bit_count()
            correlation = np.corrcoef(prints[i].thumbnail.ravel(), prints[j].thumbnail.ravel())[0, 1]
            if groups[i] != groups[j] and bits <= duplicates.HASH_BITS and correlation >= duplicates.CORRELATION:
                best[i, parts[j]] = max(best.get((i, parts[j]), (0, 0)), (correlation, j))
    copies = duplicates.near_copies(prints, parts, groups)
    found = {(copy.index, parts[copy.of]): (copy.correlation, copy.of) for copy in copies}
    assert len(best) > 20
    assert {key: of for key, (_, of) in found.items()} == {key: of for key, (_, of) in best.items()}
    np.testing.assert_allclose([found[key][0] for key in best], [value for value, _ in best.values()], atol=1e-5)


def test_agreement_of_superpixels():
    rows = np.repeat(np.arange(4), 16).reshape(4, 16).astype(np.int32)
    assert agreement_of(rows, rows * 7) == 1
    assert agreement_of(rows, rows // 2) == 0.5  # finer or coarser alike
    assert agreement_of(rows // 2, rows) == 0.5
    shifted = np.roll(rows, 1, axis=1)
    assert agreement_of(rows, shifted) == 1
    assert agreement_of(rows, np.repeat(np.arange(16)[None], 4, axis=0)) == 0.0625
