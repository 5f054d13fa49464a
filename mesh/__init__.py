"""The vocabulary that every part of weft shares: plain values, and functions of them. No I/O, no time, no randomness.

identity (who a workload is), workload (workloads and services), policy (L4 authorization and its evaluation);
inventory (both, indexed for the data path), delta (both ends of delta xDS), resources (bytes of Istio's messages to and fro);
manifests (Kubernetes YAML into objects), authorization and peer_authentication (objects into policies), dump (JSON for people);
flows and filters of flows (what was seen, as Hubble's clients read it); proto (the messages of every boundary).
"""
