"""How the environment names a control plane: where it is, whom to trust, what to show it, and what to say of this node.

The variables and their meanings are those of Istio's ztunnel; files that are not named are weft's own, else where Istio's
chart mounts them.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wire.followed_file import FollowedFile
from wire.grpc_tls import Endpoint, host_and_port
from wire.places import NodePlaces

if TYPE_CHECKING:
    from mesh.local_mesh import LocalMesh

CONTROL_PORT = 15012
ISTIO_ROOT = Path("/var/run/secrets/istio/root-cert.pem")
ISTIO_TOKEN = Path("/var/run/secrets/tokens/istio-token")
ISTIO_ZDS = Path("/var/run/ztunnel/ztunnel.sock")
_LONGEST_NAME = 255
_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")


def control_endpoint(prefix: str, environment: Mapping[str, str], places: NodePlaces, cluster_id: str) -> Endpoint:
    """Read the variables that begin with `prefix`: XDS or CA.

    Raises: ValueError naming the variable, the reason and the mend.
    """
    default = "https://istiod.istio-system.svc:15012" if "KUBERNETES_SERVICE_HOST" in environment else "https://localhost:15012"
    header = f"{prefix}_HEADER_"
    return Endpoint(
        host_and_port(f"{prefix}_ADDRESS", environment.get(f"{prefix}_ADDRESS") or default, CONTROL_PORT),
        _root(environment.get(f"{prefix}_ROOT_CA", ""), places),
        _token(environment.get("AUTH_TOKEN", ""), places),
        cluster_id,
        environment.get(f"ALT_{prefix}_HOSTNAME", ""),
        dict(_header(name, header, value) for name, value in environment.items() if name.startswith(header)),
        Path(folder) if (folder := environment.get("PROV_CERT")) else None,
    )


def _root(value: str, places: NodePlaces) -> Path | bytes | None:
    """A file, `SYSTEM` (None), or certificates in PEM."""
    if "-----BEGIN" in value:
        return value.encode()
    if value == "SYSTEM" and not Path(value).exists():
        return None
    return Path(value) if value else _first(places.root, ISTIO_ROOT)


def _token(value: str, places: NodePlaces) -> Path | str:
    """A file, or the token itself: tokens hold no slash."""
    if not value:
        return _first(places.token, ISTIO_TOKEN)
    if "/" in value:
        return Path(value)
    # Most tokens are longer than a file's name may be: to look for such a file is an error, and has the token in its words.
    return Path(value) if len(value) <= _LONGEST_NAME and Path(value).exists() else value


def _first(ours: Path, istios: Path) -> Path:
    return istios if istios.exists() and not ours.exists() else ours


def zds_socket(environment: Mapping[str, str], places: NodePlaces) -> Path:
    """The agent's end of ZDS: as told, else weft's own, else that of Istio's agent where its folder is mounted."""
    if told := environment.get("INPOD_UDS"):
        return Path(told)
    return ISTIO_ZDS if ISTIO_ZDS.parent.exists() and not places.run.exists() else places.zds_socket


def _header(variable: str, prefix: str, value: str) -> tuple[str, str]:
    name = variable.removeprefix(prefix).lower()
    if not _HEADER_NAME.fullmatch(name) or name.endswith("-bin") or name.startswith("grpc-"):
        raise ValueError(f"{variable}: {name!r} is no name of a header: use letters, digits, '-', '_' and '.'")
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"{variable}: its value is no text of a header: use printable ASCII")
    return name, value


def local_mesh(environment: Mapping[str, str]) -> "tuple[LocalMesh | None, FollowedFile | None]":
    """What LOCAL_XDS_PATH (a file) or LOCAL_XDS (the text itself) tell of the mesh, and that file; None: not set.

    Raises: ValueError naming the variable or file, the object, the reason and the mend.
    """
    path, text = environment.get("LOCAL_XDS_PATH"), environment.get("LOCAL_XDS")
    if path and text:
        raise ValueError("LOCAL_XDS_PATH and LOCAL_XDS are both set: take one of them away")
    if path:
        file = FollowedFile(Path(path))
        return read_local_file(file.path), file
    return (_read_local_mesh("LOCAL_XDS", text) if text else None), None


def read_local_file(path: Path) -> "LocalMesh":
    """What a file tells of the mesh. Raises: ValueError naming it, the object, the reason and the mend."""
    # Only here: nodes without it need neither the memory nor the time.
    from mesh.local_mesh import MAX_BYTES

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"LOCAL_XDS_PATH={str(path)!r}: {error.strerror}: name a file of YAML") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}: name a file of YAML (LOCAL_XDS_PATH)") from error
    return _read_local_mesh(str(path), text)


def _read_local_mesh(name: str, text: str) -> "LocalMesh":
    from mesh.local_mesh import read_local_mesh

    try:
        return read_local_mesh(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def node_metadata(environment: Mapping[str, str]) -> dict[str, Any]:
    """What ISTIO_META_X (text) and ISTIO_METAJSON_X (JSON) say of this node, as X."""
    metadata: dict[str, Any] = {}
    for name, value in sorted(environment.items(), reverse=True):  # of two for one X the JSON comes later, and counts
        if name.startswith("ISTIO_META_"):
            metadata[name.removeprefix("ISTIO_META_")] = value
        elif name.startswith("ISTIO_METAJSON_"):
            try:
                metadata[name.removeprefix("ISTIO_METAJSON_")] = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name}: not JSON ({error}): write a JSON value or use ISTIO_META_") from error
    return metadata


def socket_address(name: str, value: str) -> str:
    """Read a setting that names an agent's socket: a path, or unix:///PATH. Raises: ValueError naming it."""
    path = value.removeprefix("unix://").removeprefix("unix:")
    if not Path(path).is_absolute():
        raise ValueError(f"{name}={value!r}: not a unix socket: write unix:///PATH")
    return f"unix://{path}"
