"""Throw-away clusters on one machine: nodes, pods and links out of network namespaces and cgroups.

What runs: `python -m lab` is weft-lab, a kubelet, scheduler and kube-proxy in miniature (`daemon`, `api`). It keeps
weft-control and, per node, a prober, an agent and a proxy running (`supervision`, `node`), and gives every pod its life
(`pod`, `container_run`), as weft-control's objects ask for (`control_link`, `desired`, `wish`, `ledger`).
What things are called: `layout`. What addresses they have: `addresses`. How they are joined: `fabric`, `netns`.
What replaces a cluster's own services: `service_rules` (virtual addresses), `hosts` (names), both from `endpoints`;
`readiness` and `prober` (probes); `logs`.
How a program gets where it belongs: `process` starts `launch`, which joins cgroup and namespaces, builds the `rootfs` and
becomes the program.
How people use it: `client` (up, down, status, exec, logs), `world` (in tests and benchmarks); `teardown` and `orphans` for
removal, `claim` and `neighbours` so that it is nobody else's; `walkthrough` is the demo.
"""
