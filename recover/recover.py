#!/usr/bin/env python3
"""Restores snapshots of a blackstart repository without blackstart.

Needs Python 3.9 and the programs age, zstd and ssh-keygen. Reads a local copy of the repository: by default the
directory in which this file lies. FORMAT.md describes what is read here; the numbers with § point into it.

  recover.py --root SHA256:… list                                        what is there; no key needed
  recover.py --root SHA256:… verify SOURCE                               hash every stored object; no key needed
  recover.py --root SHA256:… --identity KEYFILE restore SOURCE DIR       the newest complete snapshot, into a new DIR

recover-log.py beside it writes the log of a source, for points in time between snapshots.
Exit codes: 0 done, 1 refused or damaged (nothing was restored), 3 restored but not everything, 130 interrupted.
"""
import argparse, base64, contextlib, hashlib, heapq, itertools, json, os, re, shutil, signal, sqlite3, stat
import subprocess, sys, tempfile, threading
from datetime import datetime, timezone

FORMAT, MIB, LAYERS_MAX, FRAMES_MAX = 1, 1 << 20, 16, 4096
FRAME_MAX, INDEX_RAW_MAX, PACK_MAX, OBJECT_MAX = MIB, MIB, 18 * MIB, 64 * MIB
SOURCE = re.compile("[a-z0-9][a-z0-9_-]{0,62}")
TYPES = set("repository trust snapshot prune retire drill restore plan group stretch history piece run".split())
warnings = 0


class Refused(Exception):
    """Something is missing, damaged, forged or not understood. The text says what."""


def say(text):
    print(text, file=sys.stderr)


def warn(text):
    """Something is not as it should be: the exit code will say so too."""
    global warnings
    warnings += 1
    say("WARNING: " + text)


def need(condition, text):
    if not condition:
        raise Refused(text)


def show(parts):
    """A path for people: control characters escaped, so that a name cannot move the cursor."""
    return ascii(os.fsdecode(b"/".join(parts)))


# ---- the programs: ssh-keygen, age, zstd ----

def fingerprint(key):
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def signature_is_good(key, line, signature):
    if not re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/=]+", key):
        return False
    with tempfile.TemporaryDirectory() as temp:
        allowed, armoured = os.path.join(temp, "allowed"), os.path.join(temp, "signature")
        with open(allowed, "w") as f:
            f.write('blackstart namespaces="blackstart" %s\n' % key)
        with open(armoured, "wb") as f:
            f.write(b"-----BEGIN SSH SIGNATURE-----\n" + signature + b"\n-----END SSH SIGNATURE-----\n")
        command = ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "blackstart", "-n", "blackstart", "-s", armoured]
        return subprocess.run(command, input=line, capture_output=True).returncode == 0


def read_identity(path):
    with open(path, "rb") as f:
        keys = [line for line in f.read().splitlines() if line.startswith(b"AGE-SECRET-KEY-")]
    need(keys, path + " holds no line that begins with AGE-SECRET-KEY-: it is not a recovery identity")
    return b"\n".join(keys) + b"\n"


def age(identity, data, what):
    """Decrypts. The identity goes through a pipe: never onto a disk, never into an argument that `ps` shows."""
    reader, writer = os.pipe()
    with open(reader, "rb"):
        with open(writer, "wb") as f:
            f.write(identity)
        command = ["age", "-d", "-i", "/dev/fd/%d" % reader]
        done = subprocess.run(command, input=data, capture_output=True, pass_fds=[reader])
    need(done.returncode == 0, "%s cannot be decrypted. Is this the recovery identity of this repository? age says: %s"
         % (what, done.stderr.decode(errors="replace").split("\n")[0]))
    return done.stdout


@contextlib.contextmanager
def zstd(data, what):
    """A file that reads the decompressed `data`. Whoever uses it must read it to its end; `zstd` checks the checksums."""
    child = subprocess.Popen(["zstd", "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def feed():
        with contextlib.suppress(BrokenPipeError), child.stdin:
            child.stdin.write(data)
    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield child.stdout
        need(not child.stdout.read(1), what + " decompresses to more than it should")
        need(child.wait() == 0, what + " is not sound zstd data")
    finally:
        child.kill()
        child.stdout.close()
        child.wait()
        feeder.join()


# ---- the repository: signed lines, trust, commits, objects named by their hash ----

def parse_time(text):
    """RFC 3339 as something that compares: seconds since 1970 and nine digits of fraction."""
    m = re.fullmatch(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", str(text))
    try:
        whole = datetime.fromisoformat(m[1] + "T" + m[2] + m[4].replace("Z", "+00:00"))
    except (TypeError, ValueError):
        raise Refused("%r is not a time like 2026-01-31T03:00:00Z (or with +09:00 in place of Z)" % text) from None
    return int((whole - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds()), (m[3] or "").ljust(9, "0")


class Repository:
    def __init__(self, path, pinned):
        """Reads repository.json and the trust chain (§2.2), and believes them only under the root key of `pinned`."""
        self.path, self.id = path, None
        need(os.path.isfile(os.path.join(path, "repository.json")), "there is no repository at %s (no repository.json)" % path)
        about, previous = self.signed("repository.json", "repository", lambda line: line["root"])
        root = about["root"]
        need(pinned in (None, fingerprint(root)), "the root key of this repository is %s, not %s as you gave: this is another "
             "repository, or somebody replaced its keys" % (fingerprint(root), pinned))
        if pinned is None:
            say("WARNING: NOT PROTECTED AGAINST FORGERY: trusting the root key that the repository itself brings, %s. Compare it "
                 "with your recovery kit before you rely on anything restored." % fingerprint(root))
        self.id, self.keys, self.revoked, self.epochs = about["id"], [], [], set()
        numbers = self.numbers("trust")
        need(numbers and numbers == list(range(1, numbers[-1] + 1)), "the trust chain has a gap: trust/ must hold 1, 2, 3, …")
        for n in numbers:
            record, this = self.signed("trust/%010d" % n, "trust", lambda line: root)
            need(record["n"] == n and record["previous"] == previous, "trust/%010d does not follow the record before it" % n)
            previous = this
            self.keys += [(fingerprint(k["key"]), k) for k in record.get("keys", [])]
            self.revoked += [(r["key"], parse_time(r["from"])) for r in record.get("revoked", [])]
            self.epochs |= {n} if record.get("recipients") else set()

    def numbers(self, folder):
        path = os.path.join(self.path, folder)
        names = os.listdir(path) if os.path.isdir(path) else []
        return sorted(int(name) for name in names if re.fullmatch(r"[0-9]{10}", name))

    def read(self, key, limit):
        path = os.path.join(self.path, key)
        need(os.path.isfile(path), key + " is missing")
        need(os.path.getsize(path) <= limit, key + " is larger than the format allows")
        with open(path, "rb") as f:
            return f.read()

    def signed(self, key, kind, signer):
        """The JSON of a signed line (§2.1) and the hash of the whole object. `signer` picks the key that must have signed it."""
        return self.signed_with_body(key, kind, signer, b"")[:2]

    def signed_with_body(self, key, kind, signer, empty=None):
        """The same for an object with a body behind its two lines (§2.8), and the body."""
        data = self.read(key, OBJECT_MAX)
        m = re.fullmatch(rb"([^\n]+)\n([A-Za-z0-9+/=]+)\n(.*)", data, re.DOTALL)
        m = m if m and empty in (None, m[3]) else None
        try:
            line = json.loads(m[1])
            if isinstance(line["format"], int) and line["format"] > FORMAT:
                raise Refused("%s was written by a newer version of blackstart (format %d): use its recover.py" % (key, line["format"]))
            if line["type"] not in TYPES:
                raise Refused("%s is of the type %s, which this script does not know: it was written by a newer version of blackstart, use its "
                              "recover.py" % (key, ascii(line["type"])))
            need(line["format"] == FORMAT and line["type"] in kind.split(), key + " is something else than its name says")
            need(kind == "repository" or line["repository"] == self.id, key + " belongs to another repository")
            public = signer(line)
        except (TypeError, ValueError, KeyError, RecursionError):
            raise Refused(key + " is damaged: it is not a signed line") from None
        need(signature_is_good(public, m[1], m[2]), key + " is damaged or forged: its signature is wrong")
        need("body" not in line or hashlib.sha256(m[3]).hexdigest() == line["body"], key + " is damaged: its body is not the one that was signed")
        return line, hashlib.sha256(data).hexdigest(), m[3]

    def certified(self, line):
        """The public key that may sign this commit or object of a log (§4-2)."""
        what = "commit %s" % line["seq"] if "seq" in line else "a %s of the log" % line["type"]
        roles = ["host", "keeper"] if line["type"] in ("prune", "retire") else ["host"]
        for name, key in self.keys:
            if name == line["key"] and key["role"] in roles and {"*", line["source"]} & set(key["sources"]):
                started = parse_time(line["started"] if "started" in line else line["time"])
                need(not any(r == name and started >= since for r, since in self.revoked),
                     "%s of %s is signed with a key that was revoked" % (what, line["source"]))
                return key["key"]
        raise Refused("%s of %s is forged, or its key %s is not certified for it" % (what, line["source"], line["key"]))

    def sources(self):
        path = os.path.join(self.path, "snapshots")
        names = os.listdir(path) if os.path.isdir(path) else []
        return sorted(n for n in names if SOURCE.fullmatch(n) and self.numbers("snapshots/" + n))

    def series(self, source):
        """Every commit of a source by seq: its JSON with `removed` set where a prune record lists it, or what is wrong with it."""
        need(SOURCE.fullmatch(source), "%s cannot be the name of a source" % ascii(source))
        commits, hashes, problems, pruned = {}, {}, {}, {}
        for seq in self.numbers("snapshots/" + source):
            key = "snapshots/%s/%010d" % (source, seq)
            try:
                line, this = self.signed(key, "snapshot prune retire", self.certified)
                need(line["seq"] == seq and line["source"] == source, key + " was moved: it is commit %s of %s" % (line["seq"], line["source"]))
                commits[seq], hashes[seq] = line, this
                pruned.update({r["seq"]: r["hash"] for r in line.get("removed", []) if line["type"] == "prune" and r["seq"] < seq})
            except Refused as e:
                problems[seq] = str(e)
        known = sorted({*commits, *problems, *pruned})
        for before, seq in zip([0] + known, known):  # the chain, §4-1
            if seq > before + 1:
                gone = "%010d" % (seq - 1) if seq == before + 2 else "%010d to %010d" % (before + 1, seq - 1)
                problems[seq - 1] = "snapshots/%s/%s is missing, and no prune record says that it was removed" % (source, gone)
            here, after = hashes.get(seq, pruned.get(seq)), commits.get(seq + 1)
            if here and after and after["previous"] != here or seq in pruned and seq in hashes and pruned[seq] != hashes[seq]:
                problems[seq] = "snapshots/%s/%010d is not the commit that the later ones were built on" % (source, seq)
            if seq in pruned and seq in commits:
                commits[seq]["removed"] = True
        need(commits or problems, "there is no source %s in this repository" % source)
        return {seq: line for seq, line in commits.items() if seq not in problems}, problems

    def object(self, folder, source, name, size):
        """The bytes of a pack or index object, checked against its name (§2)."""
        need(re.fullmatch(r"[0-9a-f]{64}", name), ascii(name) + " is not the name of an object")
        key = "%s/%s/%s/%s" % (folder, source, name[:2], name)
        data = self.read(key, PACK_MAX if folder == "packs" else 2 * MIB)
        need(len(data) == size, "%s is damaged: it has %d bytes, not %d" % (key, len(data), size))
        need(hashlib.sha256(data).hexdigest() == name, key + " is damaged: its SHA-256 is not its name")
        return data

    def packs(self, commit):
        """The packs that a snapshot needs, name to size (§2.5)."""
        lines = []
        for name, size in commit["pack_lists"]:
            lines += self.object("index", commit["source"], name, size).decode().splitlines()
        packs = {}
        for line in lines + ["+%s %d" % (n, s) for n, s in commit["packs"]["add"]] + ["-" + n for n in commit["packs"]["drop"]]:
            if line[0] == "+":
                name, size = line[1:].split(" ")
                packs[name] = int(size)
            else:
                need(line[0] == "-", "malformed pack list")
                packs.pop(line[1:], None)
        return packs


# ---- the index: layers, merged without loading any of them (§2.4) ----

def unescape(text):
    raw = text.encode()
    need(not re.search(rb"%(?![0-9A-Fa-f]{2})", raw), "malformed %% escape in %s" % ascii(text))
    return re.sub(rb"%(..)", lambda m: bytes([int(m[1], 16)]), raw)


def path_parts(text):
    """A path as its components, which is also what it sorts by. Refuses all that could lead out of the target."""
    raw = unescape(text)
    parts = tuple(raw.split(b"/")) if raw else ()
    need(not any(p in (b"", b".", b"..") or b"\0" in p for p in parts), "hostile path in the index: %s" % ascii(text))
    return parts


class Index:
    def __init__(self, repo, commit, identity):
        self.repo, self.commit, self.identity = repo, commit, identity
        need(len(commit["layers"]) <= LAYERS_MAX, "the snapshot has more layers than the format allows")

    def lines(self, objects):
        for name, size in objects:
            plain = age(self.identity, self.repo.object("index", self.commit["source"], name, size), "index object " + name)
            with zstd(plain, "index object " + name) as stream:
                text = stream.read(INDEX_RAW_MAX)
            yield from map(json.loads, text.splitlines())

    def pack_table(self):
        """(number, name, size, frames) of every pack that is still part of the index."""
        table, dead = {}, set()
        for layer in self.commit["layers"]:  # oldest first: the newest `live` counts
            for line in self.lines(layer["packs"]):
                if "name" in line:
                    need(line["pack"] not in table, "pack number %s stands for two packs" % line["pack"])
                    need(len(line["frames"]) <= FRAMES_MAX, "pack number %s has more frames than the format allows" % line["pack"])
                    table[line["pack"]] = True
                    yield line["pack"], line["name"], line["size"], json.dumps(line["frames"])
                if "live" in line:
                    (dead.discard if line["live"] else dead.add)(line["pack"])
        for number in dead:
            yield number, None, None, None

    def layer(self, number):
        """One layer as sorted tuples: (path, -1, layer, entry line), then (path, offset, layer, (length, pack, frame, start, page, ids))."""
        last, end, page = None, 0, None
        for line in self.lines(self.commit["layers"][number]["entries"]):
            parts = path_parts(line["path"])
            if "at" not in line:
                need(last is None or parts > last, "the index is not sorted at " + show(parts))
                last, end, page = parts, 0, line.get("page")
                yield parts, -1, number, line
                continue
            need(parts == last, "the index has bytes without an entry at " + show(parts))
            ids = base64.b64decode(line["ids"], validate=True)
            for at, length, pack, frame, start in line["extents"]:
                width = 8 * -(-length // page) if page else 32  # an id for each page, or one for the chunk
                if not (at >= end and length > 0 and start >= 0 and len(ids) >= width):
                    raise Refused("extents overlap, are not sorted or lack ids in " + show(parts))
                end = at + length
                yield parts, at, number, (length, pack, frame, start, page, ids[:width])
                ids = ids[width:]

    def entries(self):
        """Every entry of the snapshot in path order, with an iterator over the extents that are visible in it."""
        count = len(self.commit["layers"])
        merged = heapq.merge(*[self.layer(n) for n in range(count)], key=lambda item: item[:3])
        for parts, group in itertools.groupby(merged, key=lambda item: item[0]):
            heads, rest = {}, iter(())
            for item in group:
                if item[1] >= 0:
                    rest = itertools.chain([item], group)
                    break
                heads[item[2]] = item[3]
            entry, limit, limits = heads[max(heads)], entry_size(heads[max(heads)]), {}
            for n in reversed(range(count)):
                limits[n] = limit
                if n in heads:
                    limit = min(limit, heads[n].get("inherit", 0))
            if not entry.get("gone"):
                need(limits[count - 1] >= 0, "malformed size of " + show(parts))
                yield parts, entry, visible(rest, limits)


def entry_size(entry):
    return entry["size"] if entry.get("type") == "file" else 0


def visible(extents, limits):
    """Sweeps over extents sorted by offset; where several layers have bytes, the newest counts. Yields (at, length, extent, skip)."""
    active, pos = {}, 0
    for _, at, layer, extent in itertools.chain(extents, [((), float("inf"), None, None)]):
        while active and pos < at:
            newest = max(active)
            start, end, found = active[newest]
            if end <= pos:
                del active[newest]
                continue
            until = min(end, at)
            yield pos, until - pos, found, pos - start
            pos = until
        pos = at
        if extent and at < limits[layer]:
            active[layer] = at, min(at + extent[0], limits[layer]), extent


# ---- restore ----

def to_check(extent, skip, length):
    """What must be hashed to prove `length` bytes at `skip` of an extent: start in the frame, length, page size or 0, ids."""
    whole, _, _, start, page, ids = extent
    if not page:
        return start, whole, 0, ids
    first, last = skip // page, -(-(skip + length) // page)
    return start + first * page, min(last * page, whole) - first * page, page, ids[8 * first:8 * last]


class Restore:
    def __init__(self, repo, commit, identity, stage, check_ids):
        self.repo, self.commit, self.identity, self.check_ids = repo, commit, identity, check_ids
        self.index, self.base = Index(repo, commit, identity), os.fsencode(os.path.join(stage, "data"))
        sealed = json.loads(age(identity, base64.b64decode(commit["sealed"]), "the sealed part of the commit"))
        self.secrets = {name: base64.b64decode(sealed["secrets"][name]) for name in ("page", "chunk")}
        for skip in sealed.get("skipped", []):
            say("not in this snapshot: %s: %s" % (ascii(skip["path"]), ascii(skip["why"])))
        # Everything that grows with the source lies in this private database, not in memory.
        self.db = sqlite3.connect(os.path.join(stage, "plan.sqlite"), isolation_level=None)
        self.db.executescript("""pragma journal_mode = off; pragma synchronous = off;
            create table pack(number integer primary key, name text, size integer, frames text);
            create table entry(id integer primary key, path blob unique, type text, line text);
            create table piece(pack, frame, start, file, at, length, check_start, check_length, page, ids,
                primary key (pack, frame, start, file, at)) without rowid; begin;""")

    def path(self, parts):
        return os.path.join(self.base, *parts)

    def run(self):
        self.plan()
        self.write_data()
        self.link_and_dress()
        os.sync()

    def plan(self):
        """Makes directories and empty files, and notes where the bytes come from."""
        self.db.executemany("insert or replace into pack values (?,?,?,?)", self.index.pack_table())
        open_dirs, number = [], 0
        for parts, entry, pieces in self.index.entries():
            if number == 0 and parts:  # no entry for the root
                os.mkdir(self.base, 0o700)
                open_dirs = [()]
            while parts and open_dirs and open_dirs[-1] != parts[:-1]:
                open_dirs.pop()
            # A parent must be a directory that this restore made: so nothing is ever written through a symlink.
            need(not parts or open_dirs, "hostile path in the index: %s lies in no directory of the snapshot" % show(parts))
            number, kind = number + 1, entry["type"]
            need(kind in ("file", "dir", "symlink", "hardlink", "fifo", "char", "block"), "entry of unknown type %s: written by "
                 "a newer version" % ascii(kind))
            self.db.execute("insert into entry values (?,?,?,?)", (number, b"/".join(parts), kind, json.dumps(entry)))
            if kind == "dir":
                os.mkdir(self.path(parts), 0o700)
                open_dirs.append(parts)
            elif kind == "file":
                with open(os.open(self.path(parts), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600), "wb") as f:
                    f.truncate(entry["size"])  # holes stay holes
            for at, length, extent, skip in pieces:
                row = (extent[1], extent[2], extent[3] + skip, number, at, length, *to_check(extent, skip, length))
                self.db.execute("insert into piece values (?,?,?,?,?,?,?,?,?,?)", row)
        need(number, "the snapshot is empty: not even its root is in the index")

    def write_data(self):
        """Opens each pack once. No byte is written before the frame that holds it matched its SHA-256 (§3-9)."""
        lacking = self.db.execute("select pack from piece where pack not in (select number from pack where name is not null)").fetchone()
        need(lacking is None, "the index refers to pack number %s, which it does not describe" % (lacking and lacking[0]))
        needed = self.repo.packs(self.commit)
        query = "select * from pack where number in (select distinct pack from piece) order by number"
        for number, name, size, frames in self.db.execute(query):
            need(needed.get(name) == size, "the index refers to pack %s, which the commit does not name" % name)
            plain, frames, at = age(self.identity, self.repo.object("packs", self.commit["source"], name, size), "pack " + name), json.loads(frames), 0
            for f, (stored, raw, digest) in enumerate(frames):
                need(0 < raw <= FRAME_MAX and hashlib.sha256(plain[at:at + stored]).digest() == base64.b64decode(digest),
                     "frame %d of pack %s is damaged: its SHA-256 is not the one in the index" % (f, name))
                at += stored
            need(at == len(plain), "pack %s holds more than its frames" % name)
            with zstd(plain, "pack " + name) as stream:
                for f, (_, raw, _) in enumerate(frames):
                    self.write_frame(number, f, stream.read(raw), raw)
            beyond = self.db.execute("select frame from piece where pack = ? and frame not between 0 and ?", (number, len(frames) - 1)).fetchone()
            need(beyond is None, "the index refers to a frame that pack %s does not have" % name)

    def write_frame(self, number, frame, data, raw):
        need(len(data) == raw, "frame %d of pack number %d is shorter than the index says" % (frame, number))
        query = """select start, at, length, check_start, check_length, page, ids, path from piece join entry on entry.id = file
            where pack = ? and frame = ? order by start, file, at"""
        path, out = None, None
        for start, at, length, check_start, check_length, page, ids, file in self.db.execute(query, (number, frame)):
            if max(start + length, check_start + check_length) > raw:
                raise Refused("an extent leaves its frame in " + show([file]))
            if self.check_ids:
                self.check(data[check_start:check_start + check_length], page, ids, file)
            if file != path:
                out and out.close()
                path, out = file, open(self.path([file] if file else []), "r+b")
            out.seek(at)
            out.write(data[start:start + length])
        out and out.close()

    def check(self, data, page, ids, file):
        secret = self.secrets["page" if page else "chunk"]
        for i in range(0, len(data), page or len(data)):
            digest = hashlib.sha256(secret + data[i:i + (page or len(data))]).digest()
            expected = ids[8 * (i // page):][:8] if page else ids
            if digest[:len(expected)] != expected:
                raise Refused("the bytes stored for %s are not those that were read" % show([file]))

    def link_and_dress(self):
        """Hard links, special files, symlinks; then the metadata, directories last and from the leaves up."""
        for number, path, kind, line in self.db.execute("select * from entry where type not in ('file', 'dir') order by type = 'symlink', id"):
            entry, full = json.loads(line), self.path([path] if path else [])
            if kind == "hardlink":
                parts = path_parts(entry["target"])
                found = self.db.execute("select 1 from entry where path = ? and type = 'file' and id < ?", (b"/".join(parts), number)).fetchone()
                need(found, "hostile hard link in the index: %s points to no file of the snapshot" % show([path]))
                os.link(self.path(parts), full)
            elif kind == "symlink":
                os.symlink(unescape(entry["target"]), full)
            elif kind == "fifo":
                os.mkfifo(full, 0o600)
            else:
                device = os.makedev(*entry["rdev"])
                attempt(show([path]), os.mknod, full, 0o600 | (stat.S_IFCHR if kind == "char" else stat.S_IFBLK), device)
        for path, kind, line in self.db.execute("select path, type, line from entry where type != 'hardlink' order by type = 'dir', id desc"):
            full, entry = self.path([path] if path else []), json.loads(line)
            if os.path.lexists(full):
                dress(full, show([path]), entry)


def attempt(name, call, *args, **options):
    """Metadata that this system refuses is a warning and exit code 3; the contents are restored all the same."""
    try:
        call(*args, **options)
    except OSError as e:
        warn("%s: %s failed: %s" % (name, call.__name__, e.strerror))


def dress(full, name, entry):
    link = entry["type"] == "symlink"
    if os.geteuid() == 0:
        attempt(name, os.chown, full, entry["uid"], entry["gid"], follow_symlinks=False)
    for key, value in entry.get("xattrs", {}).items():
        attempt(name, os.setxattr, full, unescape(key), base64.b64decode(value), follow_symlinks=False)
    if not link:
        attempt(name, os.chmod, full, entry["mode"] & 0o7777)  # after chown, which clears setuid
    seconds, nanos = entry["mtime"]
    attempt(name, os.utime, full, ns=(seconds * 10**9 + nanos,) * 2, follow_symlinks=False)


def restore(repo, args):
    target = os.path.abspath(args.dir)
    need(not os.path.lexists(target), target + " exists already. Nothing is ever overwritten: name a new directory")
    need(os.path.isdir(os.path.dirname(target)), os.path.dirname(target) + " does not exist: create it first")
    need(args.identity, "restore needs --identity KEYFILE, the recovery identity (a line AGE-SECRET-KEY-1…)")
    identity, commit = read_identity(args.identity), choose(repo, args)
    print("restoring %s, snapshot %d of host %s: %s, data of %s" % (args.source, commit["seq"], commit["host"], commit["outcome"], commit["data_time"]))
    if os.geteuid() != 0:
        say("NOTE: not running as root: owners are not restored, and devices cannot be made")
    if commit["outcome"] != "complete":
        warn("this snapshot is partial: something was skipped when it was made")
    stage = tempfile.mkdtemp(prefix="." + os.path.basename(target) + ".", suffix=".restoring", dir=os.path.dirname(target))
    try:
        Restore(repo, commit, identity, stage, args.check_ids).run()
        need(not os.path.lexists(target), target + " has appeared meanwhile. Nothing is ever overwritten")
        os.rename(os.path.join(stage, "data"), target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    print("restored to " + target + (" but see the %d warnings above" % warnings if warnings else ": every byte was checked"))


def choose(repo, args):
    """The snapshot that the arguments mean. Never an older one in silence."""
    commits, problems = repo.series(args.source)
    if args.seq is not None:
        need(args.seq not in problems, problems.get(args.seq))
        need(commits.get(args.seq, {}).get("type") == "snapshot", "%s has no snapshot %d: see `list`" % (args.source, args.seq))
        chosen = commits[args.seq]
    else:
        before = parse_time(args.at) if args.at else (float("inf"), "")
        able = [c for c in commits.values() if c["type"] == "snapshot" and not c.get("removed") and c["outcome"] == "complete"
                and parse_time(c["data_time"]) <= before]
        newest = max([c["seq"] for c in able], default=0)
        beyond = min([c["seq"] for c in commits.values() if c["type"] == "snapshot" and c["seq"] > newest and parse_time(c["data_time"]) > before],
                     default=float("inf"))  # what comes after a snapshot from beyond the time is beyond it too
        doubtful = [problems[seq] for seq in sorted(problems) if newest < seq < beyond]
        need(not doubtful, "%s. What it held is unknown%s" % (doubtful and doubtful[0], newest and
             ". The newest sound snapshot before it is %d: say --seq %d to restore that one" % (newest, newest) or ""))
        need(able, "%s has no complete snapshot%s: see `list`" % (args.source, " of that time" if args.at else ""))
        accepted = max([c["seq"] for c in commits.values() if c.get("accepted")], default=0)
        good = [c["seq"] for c in able if not c.get("suspect") or c["seq"] <= accepted]  # §4-11
        if good and max(good) < newest:
            say("NOTE: the snapshots after %d LOOK WRONG (shrunk, empty or encrypted) and are passed over; --seq %d takes the newest" % (max(good), newest))
        chosen = commits[max(good, default=newest)]
        live = {c["key"]: c["lineage"] for _, c in sorted(commits.items()) if c["type"] == "snapshot"}
        if len(set(live.values())) > 1:
            say("NOTE: several hosts wrote snapshots of this source; this one is of %s. See `list`, choose with --seq" % chosen["host"])
    for seq in sorted(problems):
        say("NOTE: %s; the snapshot restored here does not need it" % problems[seq])
    need(chosen["epoch"] in repo.epochs, "the trust record %s that this snapshot was made under is missing" % chosen["epoch"])
    return chosen


# ---- list, verify ----

def list_snapshots(repo, args):
    for source in repo.sources():
        commits, problems = repo.series(source)
        print("%s" % source)
        for seq in sorted({*commits, *problems}):
            c = commits.get(seq)
            if c is None:
                warn(problems[seq])
            elif c["type"] == "prune":
                gone = [str(r["seq"]) for r in c["removed"]]
                print("  %4d  prune record, removed %s" % (seq, ", ".join(gone[-20:]) + (" and %d before" % (len(gone) - 20) if gone[20:] else "")))
            elif c["type"] == "retire":
                print("  %4d  retired %s by %s%s" % (seq, c["started"], ascii(c["host"]), ": " + ascii(c["why"]) if c.get("why") else ""))
            else:
                print("  %4d  data of %s  %s %s %s, host %s%s%s" % (seq, c["data_time"], c["outcome"], c["mode"], c["kind"],
                      ascii(c["host"]), "  SUSPECT" if c.get("suspect") else "", "  (removed by a prune record)" if c.get("removed") else ""))
    need(not warnings, "%d commits are missing or damaged" % warnings)


def verify(repo, args):
    """Hashes every object that any snapshot of the source names; names what is damaged and whom it hurts."""
    commits, problems = repo.series(args.source)
    bad, seen = list(problems.values()), {}
    for seq, commit in sorted(commits.items()):
        if commit["type"] != "snapshot" or commit.get("removed"):
            continue
        objects = [("index", *o) for o in commit["pack_lists"]]
        objects += [("index", *o) for layer in commit["layers"] for o in layer["packs"] + layer["entries"]]
        try:
            objects += [("packs", *o) for o in repo.packs(commit).items()]
        except Refused:
            pass  # a damaged pack list: named below
        for folder, name, size in objects:
            if (folder, name, size) not in seen:
                try:
                    seen[folder, name, size] = repo.object(folder, args.source, name, size) and None
                except Refused as e:
                    seen[folder, name, size] = str(e)
            if seen[folder, name, size]:
                bad.append("snapshot %d cannot be restored whole: %s" % (seq, seen[folder, name, size]))
    for text in bad:
        warn(text)
    need(not bad, "%s is damaged; all snapshots not named above are sound" % args.source)
    print("%s: %d snapshots, %d objects, all sound" % (args.source, sum(c["type"] == "snapshot" for c in commits.values()), len(seen)))


def common_arguments():
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--repository", metavar="DIR", help="the copy of the repository; default: where this file lies")
    common.add_argument("--root", metavar="SHA256:…", help="fingerprint of the root key, from the recovery kit")
    common.add_argument("--trust-on-first-use", action="store_true", help="believe the root key in the repository; open to forgery")
    common.add_argument("--identity", metavar="KEYFILE", help="file with the recovery identity (AGE-SECRET-KEY-1…)")
    return common


def parser():
    common = common_arguments()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[common])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", parents=[common], help="sources and snapshots").set_defaults(run=list_snapshots)
    verb = verbs.add_parser("verify", parents=[common], help="hash every object of a source")
    verb.add_argument("source", metavar="SOURCE")
    verb.set_defaults(run=verify)
    verb = verbs.add_parser("restore", parents=[common], help="restore a snapshot into a new directory")
    verb.add_argument("source", metavar="SOURCE")
    verb.add_argument("dir", metavar="DIR", help="must not exist yet")
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--seq", type=int, help="this snapshot, by its number in `list`")
    which.add_argument("--at", metavar="TIME", help="the newest complete one whose data is not younger, like 2026-01-31T03:00:00Z")
    verb.add_argument("--check-ids", action=argparse.BooleanOptionalAction, default=True, help="check each page and chunk too")
    verb.set_defaults(run=restore)
    return parser


def main(parser):
    """Runs what the arguments say, and exits. `args.dir` is set where something is restored."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stage is removed
    name, restoring = os.path.basename(sys.argv[0]), False
    try:
        defaults = {"repository": os.path.dirname(os.path.abspath(__file__)), "root": None, "trust_on_first_use": False, "identity": None}
        args = argparse.Namespace(**{**defaults, **vars(parser.parse_args())})
        restoring = hasattr(args, "dir")
        for program in ["ssh-keygen"] + ["age", "zstd"] * restoring:
            need(shutil.which(program), "the program %s is missing: apt-get install age zstd openssh-client" % program)
        need(args.root or args.trust_on_first_use, "--root SHA256:… is required: the fingerprint of the root key, from your recovery kit")
        args.run(Repository(args.repository, args.root), args)
    except KeyboardInterrupt:
        sys.exit(130)
    except Refused as e:
        say("%s: %s" % (name, e))
    except (OSError, sqlite3.Error) as e:
        say("%s: this system refused: %s" % (name, e))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as e:
        say("%s: the repository holds something malformed (%s: %s)" % (name, type(e).__name__, e))
    else:
        sys.exit(3 if warnings else 0)
    if restoring:
        say(name + ": nothing was restored")
    sys.exit(1)


if __name__ == "__main__":
    main(parser())
