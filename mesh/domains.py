"""What a cluster and its mesh are called where nobody gave them names of their own, as Kubernetes and Istio have it."""

CLUSTER_DOMAIN = "cluster.local"
"""In DNS."""
TRUST_DOMAIN = "cluster.local"
"""In identities, and where the wire says none; in a policy it stands for the mesh's own domain, whatever that is called."""
