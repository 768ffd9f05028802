"""The tools to compare with, in the newest version that Debian has, unpacked into a directory and not installed.

A program of a newer Debian needs that one's C library: it is unpacked as well, and a wrapper starts the program with it."""
import re, subprocess, sys
from pathlib import Path

SUITES = ["forky", "trixie"]
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def get(package, program, work):
    """The path of a script that runs `program` (a path within the package)."""
    root = work / "peers" / package
    wrapper = root / ("run-" + Path(program).name)
    if wrapper.exists():
        return wrapper
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    uri = re.search(r"^URIs: *(\S+)", sources.read_text(), re.M) if sources.exists() else None
    if not uri:
        sys.exit("%s could not be obtained: no Debian mirror in %s" % (package, sources))
    if any(download(package, suite, uri[1], work / "apt" / suite, root) for suite in SUITES):
        libraries = root / LIBRARIES
        loader = libraries / "ld-linux-x86-64.so.2"
        # A program that starts itself once more does so by its name: that of the wrapper.
        start = '"%s" --argv0 "$0" --library-path "%s" ' % (loader, libraries) if loader.exists() else ""
        wrapper.write_text('#!/bin/sh\nexec %s"%s" "$@"\n' % (start, root / program))
        wrapper.chmod(0o755)
        return wrapper
    sys.exit("%s could not be obtained from Debian (%s)" % (package, ", ".join(SUITES)))


def download(package, suite, uri, apt, root):
    """Gets the package with all that it depends on, as if nothing were installed."""
    for part in "lists/partial", "cache/archives/partial":
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "list").write_text("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n" % (uri, suite))
    settings = {"Dir::Etc::sourcelist": apt / "list", "Dir::Etc::sourceparts": "-", "Dir::State::lists": apt / "lists", "Dir::State::status": "/dev/null",
                "Dir::Cache": apt / "cache", "Dir::Cache::archives": apt / "cache/archives", "APT::Keep-Downloaded-Packages": "true",
                "APT::Install-Recommends": "false", "APT::Sandbox::User": "root", "Debug::NoLocking": "true"}
    options = [word for key, value in settings.items() for word in ("-o", "%s=%s" % (key, value))]
    for stale in (apt / "cache/archives").glob("*.deb"):
        stale.unlink()
    for verb in (["update"], ["install", "--yes", "--download-only", package]):
        done = subprocess.run(["apt-get", "-qq", *options, *verb], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            print("%s of %s: %s" % (package, suite, done.stderr.strip()[-300:]), file=sys.stderr)
            return False
    root.mkdir(parents=True, exist_ok=True)
    for archive in (apt / "cache/archives").glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, root], check=True)
    return True
