"""Who gives this proxy its certificates, as it is configured, and whether their keys are kept for a successor."""

from collections.abc import Callable, Set
from pathlib import Path

from mesh.identity import Identity
from ztunnel.ca import CertificateClient
from ztunnel.config import Config
from ztunnel.delegated_identity import DelegatedIdentities
from ztunnel.issuer import Fetcher
from ztunnel.workload_api import WorkloadApi


def certificate_source(config: Config, pods: Callable[[Identity], Set[str]]) -> Fetcher:
    """The CA, or who stands in its place; `pods`: the uids of an identity's pods on this node."""
    if config.spire_admin:
        return DelegatedIdentities(config.spire_admin, pods, aliases=config.trust_domain_aliases)
    if config.spiffe_endpoint:
        return WorkloadApi(config.spiffe_endpoint, aliases=config.trust_domain_aliases)
    if config.fake_ca:
        from ztunnel.fake_ca import FakeCA  # only here: nobody else has it in memory

        return FakeCA(config.secret_ttl_s)
    return CertificateClient(config.ca, config.secret_ttl_s, config.impersonates)


def sealing_token(config: Config) -> Path | None:
    """What keys are kept under for a successor; none where an agent on the node has them at once, and as they are by then.

    Made-up ones are nobody's to go on with.
    """
    elsewhere = config.spire_admin or config.spiffe_endpoint or config.fake_ca
    return config.ca.token if isinstance(config.ca.token, Path) and not elsewhere else None
