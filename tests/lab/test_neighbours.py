"""Labs beside each other: whoever shares a part of their names, and not all, is told so before anything is touched."""

from pathlib import Path

import pytest

from lab.neighbours import clash
from wire.places import Places

pytestmark = pytest.mark.unit

MINE = Places(Path("/run/a"), Path("/var/lib/a"), "a")


@pytest.mark.parametrize(
    ("prefix", "run", "state", "mend"),
    [
        ("a", "/run/b", "/var/lib/b", "for one beside it set WEFT_PREFIX too"),
        ("b", "/run/a", "/var/lib/b", "for one beside it set WEFT_RUN_DIR too"),
        ("b", "/run/a", "/var/lib/a", "for one beside it set WEFT_RUN_DIR and WEFT_STATE_DIR too"),
        ("b", "/run/b", "/var/lib/a", "for one beside it set WEFT_STATE_DIR too"),
    ],
)
def test_a_lab_that_shares_a_part_of_anothers_names_is_told_which(prefix: str, run: str, state: str, mend: str) -> None:
    other = Places(Path(run), Path(state), prefix)
    assert mend in clash(MINE, [Places(Path("/x"), Path("/y"), "z"), other])
    assert f"WEFT_PREFIX={prefix} WEFT_RUN_DIR={run} WEFT_STATE_DIR={state}" in clash(MINE, [other])


def test_a_lab_is_its_own_and_others_may_stand_beside_it() -> None:
    assert clash(MINE, [MINE, Places(Path("/run/b"), Path("/var/lib/b"), "b")]) == "" == clash(MINE, [])
