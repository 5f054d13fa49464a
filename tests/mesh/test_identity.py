"""Identities: one shape of SPIFFE id, and nothing else."""

import pytest

from mesh.identity import Identity, first_identity

pytestmark = pytest.mark.unit


def test_identity_from_string() -> None:
    one = Identity.parse("spiffe://td/ns/shop/sa/web")
    assert one == ("td", "shop", "web") and str(one) == "spiffe://td/ns/shop/sa/web" and one.principal == "td/ns/shop/sa/web"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "td/ns/shop/sa/web",
        "http://td/ns/shop/sa/web",
        "spiffe://td/ns/shop/sa",
        "spiffe://td/ns/shop/sa/",
        "spiffe:///ns/shop/sa/web",
        "spiffe://td/ns//sa/web",
        "spiffe://td/ns/shop/sa/web/more",
        "spiffe://td/sa/web/ns/shop",
        "spiffe://td/ns/shop/pod/web",
        "spiffe://td/node/shop/sa/web",
        "spiffe://td/ns/shop/sa/web?x",
        "spiffe://td/ns/sh op/sa/web",
        "SPIFFE://td/ns/shop/sa/web",
    ],
)
def test_what_is_no_identity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a workload identity: .*: expected spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/NAME"):
        Identity.parse(text)


def test_the_first_of_several_names_counts() -> None:
    names = ["https://x", "spiffe://td/other", "spiffe://td/ns/a/sa/b", "spiffe://td/ns/c/sa/d"]
    assert first_identity(names) == Identity("td", "a", "b")
    assert first_identity(names[:2]) is None and first_identity([]) is None
