"""Istio's ztunnel alone in a network namespace, with a mesh that is a file: nobody tells it of anything else."""

import os
import shlex
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab.world import eventually
from tests.ztunnel.world import run
from wire.netns import entered, open_home


class Standalone:
    """The proxy of one pod, `shop/client`."""

    def __init__(self, netns: str, log: Path) -> None:
        self._netns = Path("/run/netns", netns)
        self._inside = ("ip", "netns", "exec", netns)
        self.log = log

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The body runs in its pod's namespace."""
        home = open_home()
        try:
            with self._netns.open() as there, entered(there.fileno(), home):
                yield
        finally:
            os.close(home)

    def make_socket(self, kind: int) -> socket.socket:
        """One of its pod's, for IPv4."""
        with self.inside():
            return socket.socket(socket.AF_INET, kind)

    def fetch(self, path: str) -> str:
        """What it answers on its admin port. Raises: AssertionError with its last words when it does not."""
        asking = [*self._inside, "curl", "-sSf", "-m", "5", f"http://127.0.0.1:15000{path}"]
        done = subprocess.run(asking, capture_output=True, text=True, timeout=10)
        assert done.returncode == 0, (done.stderr, self.log.read_text()[-2000:])
        return done.stdout


@contextmanager
def standalone(ztunnel: str, mesh: str, folder: Path, search: Sequence[str] = (), **variables: str) -> Iterator[Standalone]:
    """Run one for the body, once it has read its mesh. `search`: the domains of its resolv.conf, whose server is nobody."""
    resolv_conf = folder / "resolv.conf"
    resolv_conf.write_text(f"nameserver 10.255.255.53\nsearch {' '.join(search)}\n")
    netns, file, log = f"{os.environ.get('WEFT_PREFIX', 'weft')}-test-{os.getpid()}-local", folder / "mesh.yaml", folder / "log"
    file.write_text(mesh)
    told = {
        "PATH": os.defpath, "FAKE_CA": "true", "XDS_ADDRESS": "", "LOCAL_XDS_PATH": str(file), "PROXY_MODE": "dedicated",
        "PROXY_WORKLOAD_INFO": "shop/client/client", "NODE_NAME": "n1", "CLUSTER_ID": "c", "ZTUNNEL_WORKER_THREADS": "1",
        "ENABLE_ORIG_SRC": "false", "UNSTABLE_ENABLE_SOCKS5": "true", "RUST_LOG": "warn", **variables,
    }  # fmt: skip
    run("ip", "netns", "add", netns)
    try:
        run("ip", "-n", netns, "link", "set", "lo", "up")
        for family in ("-4", "-6"):  # at once, whatever it dials
            run("ip", family, "-n", netns, "route", "add", "unreachable", "default")
        with log.open("w") as output:
            begin = f"mount --bind {shlex.quote(str(resolv_conf))} /etc/resolv.conf && exec {ztunnel}"
            command = ["ip", "netns", "exec", netns, "sh", "-c", begin]
            process = subprocess.Popen(command, env=told, stdout=output, stderr=output)
        made = Standalone(netns, log)
        try:
            eventually(lambda: made.fetch("/config_dump"), 15)
            yield made
        finally:
            process.kill()
            process.wait()
    finally:
        run("ip", "netns", "del", netns)
