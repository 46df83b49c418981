"""audit_labels.py --apply: marks of an audit in, a folder of masks out."""

import csv
import errno
import hashlib
import json
import os

import numpy as np
import pytest
from conftest import assert_refused, call, write_blobs
from PIL import Image

from scripts import audit_labels
from utils.audit.marks import read_audit
from utils.commands.files import claimed

STEMS = ("case00", "case01", "case02", "case03")


def flat(path, value):
    """A mask of one value; two masks are told apart by it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    return path


def tampered(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def audit(tmp_path):
    """The folder of an audit of four masks, as audit_labels.py leaves it: given 0, estimated 255."""
    for stem in STEMS:
        flat(tmp_path / "masks" / f"{stem}.bmp", 0)
        flat(tmp_path / "audit" / "masks_refined" / f"{stem}.png", 255)
    settings = json.dumps({"masks": str(tmp_path / "masks"), "image_size": 32})
    for folder in (tmp_path / "audit", tmp_path / "audit" / "masks_refined"):
        tampered(folder / "settings.json", settings)
    tampered(tmp_path / "audit" / "audit.csv", "image,score\n" + "".join(f"{stem},0.5\n" for stem in STEMS))
    return tmp_path / "audit"


@pytest.fixture
def apply(audit, tmp_path):
    """--apply of a file with this text, in UTF-8: exit code, stdout, stderr."""

    def of_marks(text, *flags):
        path = tampered(tmp_path / "marks.csv", text)
        return call(audit_labels.main, "--apply", path, "--save_root", audit, *flags)

    return of_marks


def masks(audit):
    """What masks_applied holds: file name -> value of the mask."""
    return {path.name: int(np.asarray(Image.open(path)).max()) for path in audit.glob("masks_applied/*.[bp]*")}


def test_each_mark_chooses_its_mask(apply, audit, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, _ = apply("image,mark\ncase00,accept\ncase01,reject\ncase02,look again\n")
    assert code == 0 and "case02" in out and "case03" not in out
    assert masks(audit) == {"case00.png": 255, "case01.bmp": 0, "case03.bmp": 0}
    assert (audit / "masks_applied" / "case01.bmp").read_bytes() == (tmp_path / "masks" / "case01.bmp").read_bytes()
    with open(audit / "applied.csv", newline="") as file:
        table = [tuple(row.values()) for row in csv.DictReader(file)]
    assert table == [
        ("case00", "accept", "estimated"),
        ("case01", "reject", "given"),
        ("case02", "look again", ""),
        ("case03", "", "given"),
    ]
    assert {path: path.read_bytes() for path in before} == before


def test_no_mark_at_all_is_the_given_masks(apply, audit):
    assert apply("image,mark\n")[0] == 0
    assert masks(audit) == {f"{stem}.bmp": 0 for stem in STEMS}


def test_a_table_that_went_through_a_spreadsheet(apply, audit):
    """A byte order mark, Windows' line ends, capitals and blanks, other columns in another order."""
    identity = read_audit(audit).identity
    text = f"\ufeffmark,score,image,audit\r\n Accept ,0.5,case00,{identity}\r\n,,case01,\r\nLOOK AGAIN,,case02,\r\n"
    assert apply(text)[0] == 0
    assert masks(audit) == {"case00.png": 255, "case01.bmp": 0, "case03.bmp": 0}


def test_other_marks_want_overwrite(apply, audit):
    """And then no mask of the former marks stays, under whichever name."""
    assert apply("image,mark\ncase00,accept\ncase01,look again\n")[0] == 0
    first = masks(audit)
    assert (
        apply("image,mark\ncase01,look again\ncase00,accept\ncase03,\n")[0] == 0 and masks(audit) == first
    )  # the same
    other = "image,mark\ncase01,accept\ncase02,look again\n"
    assert_refused(apply(other), audit / "masks_applied", "--overwrite")
    assert masks(audit) == first
    assert apply(other, "--overwrite")[0] == 0
    assert masks(audit) == {"case00.bmp": 0, "case01.png": 255, "case03.bmp": 0}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("image,mark\ncase00,yes\n", ("row 2", "'yes'", "case00", "look again")),
        ("image,mark\ncase00,accept\ncase09,accept\n", ("row 3", "case09")),
        ("image,mark\ncase00,accept\ncase00,\n", ("row 3", "case00")),
        ("image,mark,audit\ncase00,accept,0123\n", ("row 2", "0123", "audit.html")),
        ("image;mark\ncase00;accept\n", ("image;mark", "commas")),
        ("", ("image, mark",)),
        ('image,mark\n"case00,accept\n', ("CSV",)),
    ],
)
def test_marks_that_are_refused(apply, audit, tmp_path, text, parts):
    assert_refused(apply(text), tmp_path / "marks.csv", *parts)
    assert not (audit / "masks_applied").exists() and not (audit / "applied.csv").exists()


def test_files_that_are_no_marks(apply, audit, tmp_path):
    assert_refused(apply("", "--apply", tmp_path / "missing.csv"), tmp_path / "missing.csv")
    (tmp_path / "latin.csv").write_bytes("image,mark\ncafé,accept\n".encode("latin-1"))
    assert_refused(apply("", "--apply", tmp_path / "latin.csv"), tmp_path / "latin.csv")
    assert_refused(apply("", "--apply", tmp_path), tmp_path)


def test_folders_that_are_no_audits(apply, audit, tmp_path):
    marks = "image,mark\n"
    assert_refused(apply(marks, "--save_root", tmp_path / "none"), tmp_path / "none" / "settings.json", "--save_root")
    assert not (tmp_path / "none").exists()
    tampered(tmp_path / "masks" / "settings.json", "{}")
    tampered(tmp_path / "masks" / "audit.csv", "image\n")
    assert_refused(apply(marks, "--save_root", tmp_path / "masks"), tmp_path / "masks" / "settings.json")


def test_masks_of_another_audit_are_not_taken(apply, audit, tmp_path):
    (tmp_path / "other").mkdir()
    assert_refused(apply("image,mark\n", "--refined_root", tmp_path / "other"), tmp_path / "other", "--refined_root")
    tampered(tmp_path / "other" / "settings.json", '{"masks": "elsewhere"}')
    assert_refused(apply("image,mark\n", "--refined_root", tmp_path / "other"), tmp_path / "other", "--refined_root")
    assert not (audit / "masks_applied").exists()


def test_masks_that_have_gone(apply, audit, tmp_path):
    (tmp_path / "masks" / "case03.bmp").unlink()
    assert_refused(apply("image,mark\n"), tmp_path / "masks", "case03")
    assert apply("image,mark\ncase03,accept\n")[0] == 0  # which needs the estimated one alone
    (audit / "masks_refined" / "case03.png").unlink()
    assert_refused(apply("image,mark\ncase03,accept\n"), audit / "masks_refined", "case03")


def test_masks_that_the_audit_could_not_read_are_named(apply, audit, tmp_path):
    tampered(tmp_path / "masks" / "case07.png", "no image")
    code, out, _ = apply("image,mark\n")
    assert code == 0 and "case07" in out and "case07.png" not in masks(audit)


@pytest.mark.parametrize("flags", [("--images_root", "x"), ("--folds", 3), ("--image_size", 64), ("--device", "cpu")])
def test_flags_of_an_audit_are_of_no_effect(apply, audit, flags):
    assert_refused(apply("image,mark\n", *flags), flags[0])
    assert not (audit / "masks_applied").exists()


def test_one_at_a_time_and_whole_files(apply, audit, monkeypatch):
    with claimed(audit):
        assert_refused(apply("image,mark\n"), audit)
    healthy, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:  # the record of settings and one mask fit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        healthy(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("utils.commands.files.os.fsync", full)
        assert_refused(apply("image,mark\n"), "No space left on device")
    assert masks(audit) == {"case00.bmp": 0} and not list(audit.rglob("*.tmp"))
    assert apply("image,mark\n")[0] == 0 and len(masks(audit)) == 4


def test_identity_is_of_settings_and_scores(audit):
    """What a browser keeps marks under: of this audit and no other."""
    before = read_audit(audit)
    digest = hashlib.sha256((audit / "settings.json").read_bytes() + (audit / "audit.csv").read_bytes()).hexdigest()
    assert before.identity == digest[:16] and before.images == list(STEMS)
    tampered(audit / "audit.csv", (audit / "audit.csv").read_text().replace("case01,0.5", "case01,0.4"))
    assert read_audit(audit).identity != before.identity


def test_an_audit_and_its_marks(tmp_path, capsys):
    """The whole way by the script: audit, the page's identity, apply; the result is audited in turn."""
    write_blobs(tmp_path, 6, 48, 40)
    places = ["--images_root", tmp_path / "images", "--masks_root", tmp_path / "masks", "--save_root", tmp_path / "a"]
    more = ["--image_size", 48, "--workers", 1]
    audit_labels.main(list(map(str, (*places, *more))))
    identity = read_audit(tmp_path / "a").identity
    assert f'data-audit="{identity}"' in (tmp_path / "a" / "audit.html").read_text()
    marks = tampered(tmp_path / "m.csv", f"image,mark,audit\ncase00,accept,{identity}\ncase01,look again,{identity}\n")
    audit_labels.main(list(map(str, ("--apply", marks, "--save_root", tmp_path / "a"))))
    applied = {path.stem: path for path in (tmp_path / "a" / "masks_applied").glob("*.png")}
    assert set(applied) == {f"case{index:02}" for index in range(6)} - {"case01"}
    assert applied["case00"].read_bytes() == (tmp_path / "a" / "masks_refined" / "case00.png").read_bytes()
    assert applied["case02"].read_bytes() == (tmp_path / "masks" / "case02.png").read_bytes()
    # The masks that are read are never written into.
    places[3] = tmp_path / "a" / "masks_applied"
    assert_refused(call(audit_labels.main, *places, *more, "--overwrite"), "--masks_root")
