"""What every command shares."""

import pytest

from utils.cli import UserError, keep_settings


def test_a_broken_record_of_settings_is_named(tmp_path):
    (tmp_path / "settings.json").write_text('{"seed": ')
    with pytest.raises(UserError, match=r"settings\.json: not readable as JSON .*; add --overwrite"):
        keep_settings(tmp_path, {"seed": 0}, overwrite=False)
    keep_settings(tmp_path, {"seed": 0}, overwrite=True)
    keep_settings(tmp_path, {"seed": 0}, overwrite=False)


def test_what_cannot_be_replaced_is_named(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"a\.png: cannot be replaced"):
        keep_settings(tmp_path, {"seed": 0}, overwrite=True, outputs=[tmp_path / "a.png"])
    assert not (tmp_path / "settings.json").exists()
