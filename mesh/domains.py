"""What a cluster and its mesh are called where nobody gave them names of their own, as Kubernetes and Istio have it."""

import re

CLUSTER_DOMAIN = "cluster.local"
"""In DNS."""
TRUST_DOMAIN = "cluster.local"
"""In identities, and where the wire says none; in a policy it stands for the mesh's own domain, whatever that is called."""
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def read_cluster_domain(text: str) -> str:
    """In lower case, without dots at its ends. Raises: ValueError, which says how to write one."""
    domain = text.strip(".").lower()
    if not _DOMAIN.fullmatch(domain):
        raise ValueError(f"not a DNS domain: write one like {CLUSTER_DOMAIN}")
    return domain
