"""Kubernetes' tokens of service accounts, as credentials of nodes: signed by the cluster, bound to one pod on one node.

The kubelet gives each of weft's pods a token that names the pod's node (Kubernetes 1.30 and later) and expires within the hour,
and a kubelet can have none for another node's pods. So a node holds nothing with which it could call itself another. The
cluster's public keys come from a file, `kubectl get --raw /openid/v1/jwks`; the Kubernetes API is not asked.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt

from wire.followed_file import FollowedFile

AUDIENCE = "weft-control"
ACCOUNT = "weft-system/weft-node"
MAX_TOKEN_CHARACTERS = 8192
_MAX_KEYS_BYTES = 1 << 18
_ALGORITHMS = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512")
_LEEWAY_S = 10
_log = logging.getLogger(__name__)


def usual_issuer(cluster_domain: str) -> str:
    """Who signs the tokens of a cluster that was not told otherwise (kubeadm)."""
    return f"https://kubernetes.default.svc.{cluster_domain}"


class ServiceAccounts:
    """Which node a token of a service account speaks for."""

    def __init__(self, keys: Path, issuer: str, account: str = ACCOUNT) -> None:
        """`account`: NAMESPACE/NAME, whose pods speak for their nodes. Raises: OSError or ValueError for keys that are none."""
        self._file = FollowedFile(keys)
        self._issuer = issuer
        self._account = account
        self._keys = _read(keys)
        self._trouble = ""
        """Why the newest keys could not be read when somebody asked last."""

    def node_of(self, token: str) -> str | None:
        """The node of the pod that a token is bound to; None for a token that is not valid now, or of another account."""
        if len(token) > MAX_TOKEN_CHARACTERS or token.count(".") != 2:
            return None
        self._follow()
        try:
            key = self._keys.get(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key.key,
                algorithms=list(_ALGORITHMS),
                audience=AUDIENCE,
                issuer=self._issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iat", "aud", "iss"]},
            )
        except (jwt.PyJWTError, TypeError, ValueError, RecursionError):  # the rest: odd shapes, a key of another kind
            return None
        return self._node_in(claims.get("kubernetes.io"))

    def _node_in(self, bound: Any) -> str | None:
        if not isinstance(bound, Mapping):
            return None
        account = f"{bound.get('namespace')}/{_name(bound.get('serviceaccount'))}"
        return _name(bound.get("node")) or None if account == self._account and _name(bound.get("pod")) else None

    def _follow(self) -> None:
        """Read keys that were replaced; what cannot be read leaves the old ones in force."""
        trouble = ""
        try:
            self._keys = self._file.news(lambda: _read(self._file.path)) or self._keys
        except (OSError, ValueError) as error:
            trouble = str(error)
            if trouble != self._trouble:
                _log.error("keys of service accounts stay as they were: %s", error)
        self._trouble = trouble


def _name(reference: Any) -> str:
    name = reference.get("name") if isinstance(reference, Mapping) else None
    return name if isinstance(name, str) else ""


def _read(path: Path) -> dict[object, jwt.PyJWK]:
    with path.open("rb") as file:
        text = file.read(_MAX_KEYS_BYTES + 1)
    mend = "write what `kubectl get --raw /openid/v1/jwks` says"
    if len(text) > _MAX_KEYS_BYTES:
        raise ValueError(f"{path}: larger than {_MAX_KEYS_BYTES} bytes: {mend}")
    try:
        keys = jwt.PyJWKSet(json.loads(text)["keys"]).keys
    except (ValueError, KeyError, TypeError, RecursionError, jwt.PyJWTError) as error:
        raise ValueError(f"{path}: no JSON Web Key Set ({error!r}): {mend}") from error
    found: dict[object, jwt.PyJWK] = {one.key_id: one for one in keys if one.key_type in ("RSA", "EC") and one.key_id}
    if not found:
        raise ValueError(f"{path}: holds no RSA or EC key: {mend}")
    return found
