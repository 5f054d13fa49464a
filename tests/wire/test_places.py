from pathlib import Path

import pytest

from wire.places import Places, PlacesError

pytestmark = pytest.mark.unit


def test_folders_are_known_by_their_own_names(tmp_path: Path) -> None:
    """/var/run is a link, and mounts and processes with another root file system know what it leads to."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    places = Places.from_environment({"WEFT_RUN_DIR": f"{tmp_path}/link/run/", "WEFT_STATE_DIR": f"{tmp_path}/real/x/../state"})
    assert (places.run, places.state, places.prefix) == (tmp_path / "real/run", tmp_path / "real/state", "weft")


def test_what_depends_on_the_working_folder_is_refused() -> None:
    with pytest.raises(PlacesError, match="WEFT_RUN_DIR='run'"):
        Places.from_environment({"WEFT_RUN_DIR": "run"})
