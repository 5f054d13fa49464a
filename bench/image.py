"""The node image's root file system, where weft's processes are to run from it."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PYTHON = "/opt/weft/bin/python"
_ASK = "import json, ssl, sys; print(json.dumps([sys.version.split()[0], ssl.OPENSSL_VERSION]))"
_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Image:
    """A root that `daemonset/image.sh` made."""

    root: Path
    python: str
    openssl: str

    @classmethod
    def of(cls, root: Path) -> "Image":
        """Look into a root. Raises: RuntimeError when weft does not run from it."""
        root = root.resolve()
        try:
            said = subprocess.run(
                ["chroot", root, _PYTHON, "-c", _ASK], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
            )
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{root}: no node image's root: {error.stderr.strip()}: run make image") from error
        python, openssl = json.loads(said.stdout)
        return cls(root, python, openssl)

    def command(self, module: str) -> list[str]:
        """Run one of weft's modules from there, as a command."""
        return ["chroot", str(self.root), _PYTHON, "-m", module]
