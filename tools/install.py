"""Makes the environment: `python tools/install.py .venv` installs the book and its tests at the versions of constraints.txt.

Called by the Makefile with the reader's own Python; needs nothing but the standard library. What goes wrong is said in
one sentence, with the whole story in `_build/install.log`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "_build" / "install.log"
NEEDED_GB = 9  # an environment of 6.5 GB, most of it torch, and the archives that it is unpacked from
SAYS_NO_SPACE = ("no space left on device", "disk quota exceeded", "errno 28")
SAYS_NO_NETWORK = (
    *("dns error", "failed to lookup", "name resolution", "name or service not known", "nodename nor servname"),
    *("connection refused", "connection reset", "network is unreachable", "newconnectionerror", "connecterror"),
    *(
        "could not connect",
        "error sending request",
        "timed out",
        "timeout",
        "proxyerror",
        "tunnel error",
        "failed to fetch",
    ),
    "no matching distribution found for uv",
)


def main(target: str) -> int:
    """0, or 1 after one sentence on stderr."""
    environment = ROOT / target
    LOG.parent.mkdir(exist_ok=True)
    python = environment / "bin" / "python"
    has_torch = any(environment.glob("lib/python*/site-packages/torch"))
    free = shutil.disk_usage(ROOT).free / 1e9
    if not has_torch and free < NEEDED_GB:
        return _sorry(
            f"The environment needs {NEEDED_GB} GB of free disk and {ROOT} has {free:.1f} GB; make room and run it again"
        )
    begun = time.monotonic()
    with open(LOG, "w", encoding="utf-8") as log:
        if not _works(python):
            print(f"Making {target} with Python {sys.version.split()[0]}", flush=True)
            shutil.rmtree(environment, ignore_errors=True)
            if _call([sys.executable, "-m", "venv", target], log):
                shutil.rmtree(environment, ignore_errors=True)
                return _sorry(
                    _reason()
                    or "Python's module venv is not whole here; on Debian and Ubuntu: apt install python3-venv"
                )
        print("Installing (about 3 GB are downloaded the first time, most of it torch)", flush=True)
        if not (environment / "bin" / "uv").exists() and _call(
            [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--retries", "2", "uv"], log
        ):
            return _sorry(_reason() or "pip could not install uv")
        extras = ".[book,test]"
        if _call(
            [
                str(environment / "bin" / "uv"),
                "pip",
                "install",
                "--compile-bytecode",  # once, and not in each process where Python is told to write none
                "--python",
                str(python),
                "-c",
                "constraints.txt",
                "-e",
                extras,
            ],
            log,
        ):
            return _sorry(_reason() or f"The packages could not be installed: {_last_error()}")
    print(f"Installed in {time.monotonic() - begun:.0f} s", flush=True)
    return 0


def _works(python: Path) -> bool:
    """Whether there is an environment whose Python starts and is new enough."""
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    return python.exists() and subprocess.run([str(python), "-c", check], capture_output=True).returncode == 0


def _call(command: list[str], log) -> int:
    """Run it in the root; its words go to the log, and those that tell of progress to the terminal."""
    settings = {**os.environ, "PYTHONUNBUFFERED": "1", "UV_HTTP_TIMEOUT": os.environ.get("UV_HTTP_TIMEOUT", "300")}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        log.write(line)
        log.flush()
        if line.lstrip().startswith(("Resolved", "Download", "Prepared", "Built", "Installed", "Building")):
            print(f"  {line.strip()}", flush=True)
    return process.wait()


def _reason() -> str | None:
    """The sentence for the two troubles that are the reader's own to mend: the disk and the network."""
    told = LOG.read_text(encoding="utf-8", errors="replace").lower()
    if any(words in told for words in SAYS_NO_SPACE):
        return f"The disk is full: {shutil.disk_usage(ROOT).free / 1e9:.1f} GB are free, the environment needs {NEEDED_GB} GB; make room and run it again"
    if any(words in told for words in SAYS_NO_NETWORK):
        return "The packages could not be fetched: no connection to the package index; look at the network or the proxy settings and run it again"
    return None


def _last_error() -> str:
    lines = [line.strip() for line in LOG.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "×", "╰", "because"))]
    return (errors or lines or ["nothing was said"])[0].removeprefix("×").strip()


def _sorry(sentence: str) -> int:
    more = f" (all that was said: {LOG.relative_to(ROOT)})" if LOG.exists() and LOG.stat().st_size else ""
    print(f"{sentence}{more}.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ".venv"))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(_sorry(f"The environment could not be made: {error.strerror} ({error.filename})"))
