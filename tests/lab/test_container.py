import pytest

from lab.container import Facts, catches_sigterm, command
from mesh.manifests import Container, Metadata, Pod, PodSpec, VolumeMount

pytestmark = pytest.mark.unit
FACTS = Facts("node-a", ("10.1.0.5", "fd00::5"))


def run(container: Container, **spec: int) -> dict[str, object]:
    pod = Pod(Metadata("web", "shop"), PodSpec((container,), **spec))
    made = command(pod, container, FACTS)
    return {name: getattr(made, name) for name in made.__slots__}


def test_arguments_and_variables_refer_to_the_pod() -> None:
    made = run(
        Container(
            "c",
            ("serve", "$(POD_IP)"),
            args=("$(WHERE)", "$$(POD_IP)", "$(UNKNOWN)"),
            env={"WHERE": "on $(NODE)"},
            env_fields={"NODE": "spec.nodeName", "IPS": "status.podIPs"},
        )
    )
    assert made["argv"] == ("serve", "10.1.0.5", "on node-a", "$(POD_IP)", "$(UNKNOWN)")
    env = made["env"]
    assert isinstance(env, dict)
    assert env["HOSTNAME"] == "web" and env["IPS"] == "10.1.0.5,fd00::5" and "/usr/sbin" in env["PATH"].split(":")


def test_the_containers_user_wins_over_the_pods() -> None:
    assert (run(Container("c", ("x",)))["uid"], run(Container("c", ("x",)))["gid"]) == (0, 0)
    own = run(Container("c", ("x",), run_as_user=7), run_as_user=5, run_as_group=6)
    assert (own["uid"], own["gid"]) == (7, 6)
    assert run(Container("c", ("x",), run_as_user=7))["gid"] == 7
    assert run(Container("c", ("x",), run_as_user=0), run_as_user=5)["uid"] == 0


def test_mounts_name_volumes_and_places() -> None:
    made = run(Container("c", ("x",), mounts=(VolumeMount("v", "/data", True),)))
    assert made["volumes"] == (("v", "/data", True),)


@pytest.mark.parametrize(
    ("mask", "caught"), [("0000000000004000", True), ("0000000000004002", True), ("00000001", False), ("0", False)]
)
def test_a_handler_is_seen_in_the_mask_of_caught_signals(mask: str, caught: bool) -> None:
    assert catches_sigterm(f"Name:\tx\nSigIgn:\t0000000000004000\nSigCgt:\t{mask}\n") is caught
