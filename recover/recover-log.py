#!/usr/bin/env python3
"""Writes the log of a PostgreSQL or Redis source as files that the server replays, without blackstart: for what came after a snapshot.

Needs what recover.py needs, and recover.py itself in the same directory. FORMAT.md §2.8 describes what is read here.

  recover-log.py --root SHA256:… --identity KEYFILE SOURCE DIR           the newest part without a gap, into a new DIR

A stretch of the log whose record, or all of whose objects, do not verify is left out: the log has a gap there. So is a timeline of a stretch of which
nothing verifies, with those after it: there the log ends on the timeline before.
Exit codes: 0 done, 1 refused or damaged (nothing was restored), 3 done, with warnings, 130 interrupted.
"""
import argparse, base64, hashlib, json, os, re, shutil, sys, tempfile

sys.dont_write_bytecode = True  # nothing is added to a repository
from recover import MIB, SOURCE, Refused, age, common_arguments, main, need, read_identity, say, warn, zstd

UNIT_MAX = 16 << 20


def unusable(refused, what):
    """Says that something is left out. What a newer version wrote may be what tells how everything else belongs together."""
    if "newer version" in str(refused):
        raise refused
    warn("%s is not used: %s" % (what, refused))
    return refused


class Log:
    """What is stored of a log, by stretch and timeline."""

    def __init__(self, repo, source, identity, until_damage):
        need(SOURCE.fullmatch(source), "%s cannot be the name of a source" % ascii(source))
        self.repo, self.source, self.identity, self.until_damage, self.base = repo, source, identity, until_damage, "wal/" + source
        self.stretches, refused = [], None
        for n in repo.numbers(self.base + "/stretches"):
            try:
                self.stretches.append(self.stretch(n))
            except Refused as e:
                refused = unusable(e, "stretch %d of the log" % n)
        need(self.stretches, refused or "no log of %s is stored" % source)
        for name in sorted(self.names(self.base + "/histories")):
            m = re.fullmatch(r"([0-9]{10})-([0-9a-f]{8})", name)
            stretch = next((s for s in self.stretches if m and s["n"] == int(m[1])), None)
            try:
                if stretch:
                    line, text = self.body("%s/histories/%s" % (self.base, name), "history", MIB)
                    need(line["timeline"] == int(m[2], 16) and line["stretch"] == int(m[1]), name + " was moved")
                    stretch["histories"][line["timeline"]] = (int(line["start"], 16), text)
            except Refused as e:
                unusable(e, "the history " + name)
        for s in list(self.stretches):
            for timeline in s["spans"]:
                if timeline != s["timeline"] and timeline not in s["histories"]:
                    refused = unusable(Refused("the history of timeline %d is missing" % timeline), "stretch %d of the log" % s["n"])
                    self.stretches = [other for other in self.stretches if other is not s]
        need(self.stretches, refused)

    def stretch(self, n):
        line, _ = self.repo.signed("%s/stretches/%010d" % (self.base, n), "stretch", self.repo.certified)
        need(line["n"] == n and line["source"] == self.source, "stretch %d was moved" % n)
        need(0 < line["unit"] <= UNIT_MAX, "stretch %d has a malformed unit" % n)
        sealed = json.loads(age(self.identity, base64.b64decode(line["sealed"]), "the sealed part of stretch %d" % n))
        return {**line, "start": int(line["start"], 16), "secret": base64.b64decode(sealed["secret"]), "facts": sealed["facts"],
                "spans": self.spans(n), "histories": {}}

    def names(self, folder):
        path = os.path.join(self.repo.path, folder)
        return os.listdir(path) if os.path.isdir(path) else []

    def spans(self, n):
        """Timeline to its objects as (start, end or None, key), sorted."""
        found, folder = {}, "%s/%010d" % (self.base, n)
        for timeline in sorted(self.names(folder)):
            for name in self.names(folder + "/" + timeline):
                m = re.fullmatch(r"([0-9a-f]{16})(?:-([0-9a-f]{16}))?", name)
                if m and re.fullmatch(r"[0-9a-f]{8}", timeline):
                    span = (int(m[1], 16), int(m[2], 16) if m[2] else None, "%s/%s/%s" % (folder, timeline, name))
                    found.setdefault(int(timeline, 16), []).append(span)
        return {timeline: sorted(spans, key=lambda s: (s[0], s[1] or 0)) for timeline, spans in found.items()}

    def body(self, key, kind, limit):
        """The line of an object and its decrypted, decompressed body."""
        line, _, body = self.repo.signed_with_body(key, kind, self.repo.certified)
        need(line["source"] == self.source, key + " was moved")
        with zstd(age(self.identity, body, key), key) as stream:
            return line, stream.read(limit)

    def sound(self, s, timeline):
        """Whether an object of this timeline is whole and signed: with the last that is, it ends."""
        for start, end, key in sorted(s["spans"][timeline], key=lambda span: -(span[1] or span[0] + 1)):
            try:
                line, _, _ = self.repo.signed_with_body(key, "run" if end else "piece", self.repo.certified)
                need((line["source"], line["stretch"], line["timeline"], int(line["start"], 16)) == (self.source, s["n"], timeline, start), key + " was moved")
                return True
            except Refused as e:
                refused = e
        unusable(refused, "timeline %d in stretch %d of the log, of which nothing else verifies either," % (timeline, s["n"]))
        return False

    def readable(self, s):
        """The stretch up to its newest timeline of which anything verifies; None where nothing does."""
        newest = next((t for t in sorted(s["spans"], reverse=True) if self.sound(s, t)), None)
        upto = lambda timelines: {t: what for t, what in timelines.items() if t <= newest}
        return None if newest is None else {**s, "spans": upto(s["spans"]), "histories": upto(s["histories"])}

    def windows(self):
        """Lists of stretches that follow each other without a gap. What is there of the first begins at its `front`."""
        windows, chained = [], None
        for whole in self.stretches:
            goes_on = whole["continues"] and chained == whole["n"] - 1
            if not whole["spans"]:
                chained = whole["n"] if goes_on else None
                continue
            s, chained = self.readable(whole), None
            if not s:
                continue
            if max(s["spans"]) == max(whole["spans"]):
                chained = s["n"]  # what comes next follows the newest timeline
            if not goes_on:
                windows.append([])
            windows[-1].append({**s, "front": s["start"]})
            for timeline, spans in sorted(s["spans"].items()):
                # Prune leaves the last object of each timeline: what lies before a front that was taken does not lead into it.
                if spans[0][0] > (s["start"] if timeline == s["timeline"] else s["histories"][timeline][0]):
                    windows[-1] = [{**s, "front": spans[0][0]}]
        return windows

    def place(self, window, timeline, at):
        """The stretch that has a position, and the timeline that wrote it."""
        for s in reversed(window):
            if s["start"] <= at and s["timeline"] <= timeline:
                begun = [t for t, (start, _) in s["histories"].items() if t <= timeline and start <= at]
                return s, max(begun, default=s["timeline"])
        return None, None

    def piece(self, stretch, timeline, at):
        """The bytes from `at` on of the object that reaches furthest; None where nothing holds it. Falls back from a damaged run to its pieces."""
        here = [s for s in stretch["spans"].get(timeline, []) if at - at % stretch["unit"] <= s[0] <= at]
        runs = sorted((s for s in here if s[1] and s[1] > at), key=lambda s: -s[1])
        refused = None
        for start, end, key in runs + [s for s in here if not s[1]][-1:]:
            try:
                line, data = self.body(key, "run" if end else "piece", stretch["unit"])
                need([int(line[k], 16) for k in ("start", "end")] == [start, start + len(data)] and end in (None, start + len(data))
                     and line["stretch"] == stretch["n"] and line["timeline"] == timeline, key + " was moved, or is not whole")
                check = hashlib.sha256(stretch["secret"] + data).digest()[:16]
                need(check == base64.b64decode(line["check"]), key + " does not hold the bytes that were read")
                if start + len(data) > at:
                    return data[at - start:]
            except Refused as e:
                refused = e
        if refused:
            raise refused
        return None

    def write(self, window, timeline, start, stop, out):
        """Writes the bytes of a segment as `timeline` has it; gives how many there were."""
        at = start
        while at < stop:
            stretch, on = self.place(window, timeline, at)
            try:
                data = stretch and self.piece(stretch, on, at)
                later = [s for s in (stretch or {"spans": {}})["spans"].get(on, []) if s[0] > at]
                later += [w for w in window if w["start"] > at and w["timeline"] <= timeline]
                need(data or not later and on in (None, timeline),
                     "the log has lost what it held at %X/%X of timeline %s" % (at >> 32, at & 0xffffffff, on))
            except Refused as e:
                need(self.until_damage, "%s. With --until-damage what comes before it is written" % e)
                warn("the log is written up to %X/%X only, and what comes after that is not part of it: %s" % (at >> 32, at & 0xffffffff, e))
                break
            if not data:
                break
            borders = [s["start"] for s in window] + [h[0] for s in window for h in s["histories"].values()]
            out.write(data[:min([b for b in borders if b > at] + [stop]) - at])
            at = out.tell() + start
        return at - start


def written(repo, args):
    """Writes the newest window of a source's log."""
    target = os.path.abspath(args.dir)
    need(not os.path.lexists(target), target + " exists already. Nothing is ever overwritten: name a new directory")
    need(args.identity, "this needs --identity KEYFILE, the recovery identity (a line AGE-SECRET-KEY-1…)")
    log = Log(repo, args.source, read_identity(args.identity), args.until_damage)
    windows = log.windows()
    need(windows, "nothing of the log of %s can be read" % args.source)
    for window in windows[:-1]:
        say("NOTE: the log has a gap after stretch %d; what comes before it is not written: --stretch %d does" % (window[-1]["n"], window[-1]["n"]))
    window = windows[-1] if args.stretch is None else next((w for w in windows if args.stretch in [s["n"] for s in w]), None)
    need(window, "%s has no stretch %s" % (args.source, args.stretch))
    if window[-1]["kind"] == "redis":
        return stream(repo, args, log, window, target)
    segments(log, window, target)


def stream(repo, args, log, window, target):
    """Writes the replication stream after the newest snapshot in the window as the append-only file's increment, and its manifest."""
    commits, _ = repo.series(args.source)
    ends = [s["start"] for s in window[1:]] + [1 << 64]
    def begins(c):
        at = int(c["log"]["end"], 16)
        return at >= window[0]["front"] and any(s.get("id") == c["log"].get("id") and s["start"] <= at <= end for s, end in zip(window, ends))
    known = [c for _, c in sorted(commits.items()) if c["type"] == "snapshot" and c["outcome"] == "complete" and c.get("log") and begins(c)]
    need(known, "no snapshot of %s lies in this part of its log" % args.source)
    chosen, name = known[-1], "appendonly.aof"
    facts = json.loads(age(log.identity, base64.b64decode(chosen["sealed"]), "the sealed part of snapshot %d" % chosen["seq"]))["facts"]
    database, start = str(facts["rdb"]["replication_database"]), int(chosen["log"]["end"], 16)
    stage = tempfile.mkdtemp(prefix="." + os.path.basename(target) + ".", suffix=".restoring", dir=os.path.dirname(target))
    try:
        with open(os.path.join(stage, name + ".1.incr.aof"), "wb") as f:
            f.write(b"*2\r\n$6\r\nSELECT\r\n$%d\r\n%s\r\n" % (len(database), database.encode()))
            n = log.write(window, 1, start, 1 << 62, Offset(f, f.tell()))
        with open(os.path.join(stage, name + ".manifest"), "w") as f:
            f.write("file %s.1.base.rdb seq 1 type b\nfile %s.1.incr.aof seq 1 type i\n" % (name, name))
        os.sync()
        os.rename(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    print("%d bytes of the stream after snapshot %d written to %s, up to offset %d.\nIts base is dump.rdb of that snapshot (recover.py restore --seq %d): move it to %s"
          % (n, chosen["seq"], target, start + n, chosen["seq"], os.path.join(target, name + ".1.base.rdb")))


def segments(log, window, target):
    """Writes PostgreSQL's log as segment and history files."""
    newest = window[-1]
    size, timeline = newest["facts"]["segment_size"], max(newest["spans"])
    per_id, written = (1 << 32) // size, 0
    stage = tempfile.mkdtemp(prefix="." + os.path.basename(target) + ".", suffix=".restoring", dir=os.path.dirname(target))
    try:
        for s in window:
            for t, (_, text) in s["histories"].items():
                with open(os.path.join(stage, "%08X.history" % t), "wb") as f:
                    f.write(text)
        at = window[0]["front"] // size * size
        while True:
            stretch, on = log.place(window, timeline, at + size - 1)
            path = os.path.join(stage, "%08X%08X%08X" % (on or 0, at // size // per_id, at // size % per_id))
            with open(path, "wb") as f:
                begin = max(at, window[0]["front"])
                f.seek(begin - at)
                n = log.write(window, timeline, begin, at + size, Offset(f, begin - at))
                f.truncate(size)
            if n == 0:
                os.remove(path)
                break
            written, at = written + 1, at + size
            if begin + n < at:
                break
        need(written, "nothing of this part of the log can be read")
        os.sync()
        os.rename(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    print("%d segments of %d MB written to %s, up to %X/%X on timeline %d" % (written, size // MIB, target, (begin + n) >> 32, (begin + n) & 0xffffffff, timeline))


class Offset:
    """A file that counts from where it was."""

    def __init__(self, file, start):
        self.file, self.start, self.write = file, start, file.write

    def tell(self):
        return self.file.tell() - self.start


def parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[common_arguments()])
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("dir", metavar="DIR", help="must not exist yet")
    parser.add_argument("--stretch", type=int, metavar="N", help="the part of the log that this stretch belongs to; default: the newest")
    parser.add_argument("--until-damage", action="store_true", help="where something is damaged or lost, write what comes before it, instead of nothing")
    parser.set_defaults(run=written)
    return parser


if __name__ == "__main__":
    main(parser())
