"""What `weft lab` says to the lab's daemon."""

import pytest

from lab.client import Lab, LabError
from wire.http_messages import parse_request

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("pod", ["shop/web", "shop/br owser", "shop/web&container=x", "shop/%41", "shop/ü", "shop/a\r\nx: y"])
def test_a_pods_name_reaches_the_daemon_as_it_was_written(monkeypatch: pytest.MonkeyPatch, pod: str) -> None:
    asked = []

    def call(self: Lab, method: str, path: str) -> None:
        asked.append(parse_request(f"{method} {path} HTTP/1.1\r\n\r\n".encode()))
        raise LabError("there is none")

    monkeypatch.setattr(Lab, "_call", call)
    with pytest.raises(LabError, match="there is none"):
        Lab().join(pod, ["true"], "main")
    assert (asked[0].path, asked[0].query) == ("/join", {"pod": pod, "container": "main"})
