"""What the benchmarks share: measuring a command, medians over runs, a table, and the bars that the project promises."""
import json, os, re, shutil, statistics, subprocess, sys, threading, time
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]


class Watch(threading.Thread):
    """The peak RSS of the largest process of a command, in bytes, from VmHWM, looked at every 20 ms.
    (What wait4 reports has the memory of this process at the fork in it.)"""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak, self.stop = pid, 0, threading.Event()
        self.start()

    def run(self):
        while not self.stop.wait(0.02):
            self.look(self.pid)

    def look(self, pid):
        try:
            if os.readlink("/proc/%d/exe" % pid) != os.path.realpath(sys.executable):
                peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/%d/status" % pid).read_text())
                self.peak = max(self.peak, int(peak[1]) * 1024 if peak else 0)
            for child in Path("/proc/%d/task/%d/children" % (pid, pid)).read_text().split():
                self.look(int(child))
        except OSError:
            pass  # it has ended


def measure(*command, env=None, user=None, output=None):
    """Runs to the end; wall, user and system seconds, and the peak RSS of the largest process of the command, in bytes.
    `user` is a `servers.User`, or None for whoever runs this. What the command prints goes to the file `output`, if any."""
    os.sync()
    stdout = open(output, "wb") if output else subprocess.DEVNULL
    started = time.monotonic()
    child = subprocess.Popen([str(c) for c in command], env={**os.environ, **(env or {})}, stdout=stdout, stderr=subprocess.PIPE,
                             **(user.popen() if user else {}))
    watch = Watch(child.pid)
    errors = child.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - started
    watch.stop.set()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit("%s failed with %d:\n%s" % (" ".join(map(str, command)), child.returncode, errors[-2000:]))
    return {"wall": wall, "user": usage.ru_utime, "system": usage.ru_stime, "rss": watch.peak}


def together(*parts):
    """Several commands one after the other, as one measurement."""
    return {k: (max if k == "rss" else sum)(p[k] for p in parts) for k in parts[0]}


def size(*folders):
    return sum(p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file())


def said(*command, **options):
    """What a command prints; it must succeed."""
    return subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, check=True, text=True, **options).stdout.strip()


def turns(tools, number):
    """Another tool goes first in each run."""
    return tools[number % len(tools):] + tools[:number % len(tools)]


def note(number, phase, tool, result):
    print("run %d  %-12s %-24s %7.2f s wall  %7.2f s user" % (number + 1, phase, tool, result["wall"], result["user"]), file=sys.stderr, flush=True)


class Bar(NamedTuple):
    """At most `at_most` times what the peer needs (of several peers: the least of them); without a peer: at most this value."""
    what: str
    phase: str
    measure: str
    peer: object
    at_most: float
    ours: str = "blackstart"


class Results:
    """Measurements of several runs: each a dictionary from (tool, phase) to what was measured."""

    def __init__(self, runs):
        self.runs = runs

    def median(self, tool, phase, what):
        values = [r[tool, phase][what] for r in self.runs if what in r.get((tool, phase), {})]
        return statistics.median(values) if values else None

    def save(self, path):
        path.write_text(json.dumps([{"%s, %s" % k: v for k, v in r.items()} for r in self.runs], indent=1) + "\n")

    def table(self, phases, names):
        wide = max(map(len, names))
        print("\n%-13s %-*s %9s %9s %9s %9s %12s" % ("phase", wide, "tool", "wall s", "user s", "sys s", "RSS MiB", "stored MiB"))
        for phase in phases:
            for name in names:
                wall, user, system, rss = (self.median(name, phase, w) for w in ("wall", "user", "system", "rss"))
                stored = self.median(name, phase, "stored")
                if wall is None:
                    print("%-13s %-*s   not run" % (phase, wide, name))
                    continue
                print("%-13s %-*s %9.2f %9.2f %9.2f %9.1f %12s" % (phase, wide, name, wall, user, system, rss / MIB, "" if stored is None else "%.1f" % (stored / MIB)))

    def bars(self, bars):
        wide = max(len(b.what) for b in bars)
        print("\n%-*s %8s %8s" % (wide, "bar", "at most", "measured"))
        for bar in bars:
            ours, unit = self.median(bar.ours, bar.phase, bar.measure), 1
            if bar.peer is None:
                theirs, unit = 1, MIB if bar.measure in ("rss", "stored") else 1
            else:
                peers = (bar.peer,) if isinstance(bar.peer, str) else bar.peer
                theirs = min((t for t in (self.median(p, bar.phase, bar.measure) for p in peers) if t), default=None)
            if ours is None or not theirs:
                print("%-*s %8g  not run" % (wide, bar.what, bar.at_most / unit))
            else:
                value = ours / theirs
                print("%-*s %8g %8.2f  %s" % (wide, bar.what, bar.at_most / unit, value / unit, "held" if value <= bar.at_most else "MISSED"))


def blackstart_binary(wanted, work):
    """A copy, which any user may start, of the release build, which is made first where none was named."""
    if not wanted:
        subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
        wanted = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "release/blackstart"
    return Path(shutil.copy2(wanted, work / "blackstart"))


def machine():
    """One line: what this was measured on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return "%s, %d CPUs (%s), Linux %s" % (time.strftime("%Y-%m-%d"), len(os.sched_getaffinity(0)), model[1] if model else "unknown", os.uname().release)
