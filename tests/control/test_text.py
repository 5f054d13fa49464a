import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from control.text import manifest_text
from mesh.manifests import Metadata, Namespace, parse

pytestmark = pytest.mark.unit

TRAPS = [
    "1e5",
    "0o17",
    "0x1F",
    "22:22",
    "yes",
    "null",
    "true",
    "~",
    "1_000",
    ".5",
    "-1",
    "012",
    "a: b",
    "#x",
    "- x",
    "",
    " ",
    "é\u2028x",
]


@given(st.sampled_from(TRAPS) | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30))
def test_text_stays_text(value: str) -> None:
    made = Namespace(Metadata("demo", "", {}, {"note": value}))
    text = manifest_text(made)
    found = parse({"x.yaml": text})
    assert not found.problems and found.objects == [made], text
    assert yaml.safe_load(text)["metadata"]["annotations"]["note"] == value, "and so it does for other readers"


def test_equal_parts_are_written_out() -> None:
    labels = {"app": "web"}
    assert "&" not in manifest_text(Namespace(Metadata("demo", "", labels, labels)))
