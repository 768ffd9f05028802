"""Writes small repositories as FORMAT.md has them, to test recover.py with. An independent writer: it shares no code with either side.

Sources are dicts from path (bytes, b"" the root) to Item. Needs the programs age, age-keygen, zstd and ssh-keygen.
"""
import base64, hashlib, json, os, subprocess
from dataclasses import dataclass, field, replace

ROOT_TIME = "2026-01-01T00:00:00Z"


@dataclass
class Item:
    type: str = "file"
    data: bytes = b""
    mode: int = 0o644
    mtime: tuple = (1760000000, 123456789)
    target: bytes = None
    page: int = None
    uid: int = 0
    gid: int = 0
    xattrs: dict = field(default_factory=dict)
    rdev: tuple = None


def run(*command, data=b""):
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout


def sha(data):
    return hashlib.sha256(data).hexdigest()


def b64(data):
    return base64.b64encode(data).decode()


def escape(raw):
    """FORMAT.md §2.4: bytes that are not UTF-8, and %, as %XX."""
    out, text = "", raw.decode("utf-8", "surrogateescape")
    for c in text:
        out += "%%%02X" % (ord(c) - 0xDC00) if 0xDC80 <= ord(c) <= 0xDCFF else "%25" if c == "%" else c
    return out


def zstd(data):
    return run("zstd", "-qc", "-3", "--check", "--stream-size=%d" % len(data), data=data)


def split(data, size):
    return [data[i:i + size] for i in range(0, len(data), size)]


class Repository:
    """A new repository at `path`; the keys lie in `keys` (another directory, not in the repository)."""

    def __init__(self, path, keys):
        self.path, self.keys = path, keys
        os.makedirs(path)
        os.makedirs(keys)
        for name in ("root", "host", "host2", "keeper", "stranger"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", self.key(name))
        for name in ("recovery", "index", "other"):
            run("age-keygen", "-o", self.key(name))
        self.recipient = {n: run("age-keygen", "-y", self.key(n)).decode().strip() for n in ("recovery", "index")}
        self.id = os.urandom(16).hex()
        line = {"type": "repository", "format": 1, "id": self.id, "created": ROOT_TIME, "root": self.public("root"), "future": 1}
        self.previous_trust = self.put("repository.json", self.signed("root", line))
        self.trust_records = 0
        self.trust(recipients=[self.recipient["recovery"]], keys=[self.certificate("host", "host"), self.certificate("keeper", "keeper")])

    def key(self, name):
        return os.path.join(self.keys, name)

    def public(self, name):
        with open(self.key(name) + ".pub") as f:
            return " ".join(f.read().split()[:2])

    def fingerprint(self, name):
        return "SHA256:" + b64(hashlib.sha256(base64.b64decode(self.public(name).split()[1])).digest()).rstrip("=")

    def certificate(self, name, role, sources=("*",)):
        return {"role": role, "name": name, "key": self.public(name), "index": self.recipient["index"], "sources": list(sources)}

    def signed(self, key, line):
        text = json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode()
        armoured = run("ssh-keygen", "-q", "-Y", "sign", "-n", "blackstart", "-f", self.key(key), data=text)
        return text + b"\n" + b"".join(armoured.strip().split(b"\n")[1:-1]) + b"\n"

    def trust(self, key="root", **fields):
        self.trust_records += 1
        line = {"type": "trust", "format": 1, "repository": self.id, "n": self.trust_records, "previous": self.previous_trust,
                "issued": ROOT_TIME, **fields}
        self.previous_trust = self.put("trust/%010d" % self.trust_records, self.signed(key, line))

    def put(self, key, data):
        path = os.path.join(self.path, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)
        return sha(data)

    def put_named(self, folder, source, data):
        name = sha(data)
        self.put("%s/%s/%s/%s" % (folder, source, name[:2], name), data)
        return [name, len(data)]

    def encrypt(self, data, *names):
        return run("age", "-e", *[a for n in names for a in ("-r", self.recipient[n])], data=data)


class Series:
    """The commits of one source. Small frames, packs and index objects, so that small sources have many of each."""

    def __init__(self, repo, source, frame=32 << 10, pack=128 << 10, object_=4 << 10, host="host"):
        self.repo, self.source, self.frame, self.pack_size, self.object, self.host = repo, source, frame, pack, object_, host
        self.seq, self.previous, self.layers, self.packs, self.states, self.hashes, self.times = 0, None, [], {}, {}, {}, {}
        self.next_pack, self.basis, self.lineage = 0, {}, os.urandom(16).hex()
        self.secrets = {"page": os.urandom(64), "chunk": os.urandom(64), "gear": os.urandom(32)}
        self.minute, self.listed = 0, 0

    # -- packs --

    def begin_pack(self):
        self.frames, self.raw, self.plain, self.table = [], b"", b"", getattr(self, "table", [])

    def close_frame(self):
        if self.raw:
            stored = zstd(self.raw)
            self.frames.append([len(stored), len(self.raw), b64(hashlib.sha256(stored).digest())])
            self.plain, self.raw = self.plain + stored, b""

    def close_pack(self):
        self.close_frame()
        if self.frames:
            name, size = self.repo.put_named("packs", self.source, self.repo.encrypt(self.plain, "recovery"))
            self.packs[name], self.next_pack = size, self.next_pack + 1
            self.table.append({"pack": self.next_pack - 1, "name": name, "size": size, "frames": self.frames})
        self.begin_pack()

    def store(self, at, data):
        """An extent for `data`, which must fit in a frame."""
        if len(self.raw) + len(data) > self.frame:
            self.close_frame()
        if len(self.plain) > self.pack_size:
            self.close_pack()
        self.raw += data
        return [at, len(data), self.next_pack, len(self.frames), len(self.raw) - len(data)]

    # -- one file --

    def data_lines(self, path, item, old):
        """(inherit, data lines) of a file against its basis."""
        same = old is not None and old.type == "file" and old.page == item.page
        if item.page:
            inherit = min(len(old.data), len(item.data)) if same else 0
            lines, page = [], item.page
            for at in range(0, len(item.data), 4096 * page):
                extents, ids = [], b""
                for a in range(at, min(at + 4096 * page, len(item.data)), page):
                    new = item.data[a:a + page]
                    before = old.data[a:a + page] if a < inherit else bytes(page)
                    if new != before:
                        e = self.store(a, new)
                        ids += hashlib.sha256(self.secrets["page"] + new).digest()[:8]
                        last = extents[-1] if extents else None
                        if last and last[0] + last[1] == a and last[2:4] == e[2:4]:
                            last[1] += page
                        else:
                            extents.append(e)
                if extents:
                    lines.append({"path": escape(path), "at": at, "extents": extents, "ids": b64(ids)})
            return inherit, lines
        if same and old.data == item.data:
            return len(item.data), []
        # An appended file inherits its whole chunks; all else is stored again. Zero chunks are holes.
        inherit = 0
        if same and item.data.startswith(old.data):
            inherit = len(old.data) // 10000 * 10000
        extents = []
        for a in range(inherit, len(item.data), 10000):
            chunk = item.data[a:a + 10000]
            if chunk.strip(b"\0"):
                extents.append((self.store(a, chunk), hashlib.sha256(self.secrets["chunk"] + chunk).digest()))
        return inherit, [{"path": escape(path), "at": part[0][0][0], "extents": [e for e, _ in part], "ids": b64(b"".join(i for _, i in part))}
                         for part in split(extents, 5)]

    def entry_line(self, path, item, inherit):
        line = {"path": escape(path), "type": item.type, "mode": item.mode, "uid": item.uid, "gid": item.gid, "user": "u", "group": "g",
                "mtime": list(item.mtime), "size": len(item.data), "stat": [1, 2, 3, 4]}
        if item.type == "file":
            line["inherit"] = inherit
        for name in ("page", "rdev"):
            if getattr(item, name) is not None:
                line[name] = getattr(item, name)
        if item.target is not None:
            line["target"] = escape(item.target)
        if item.xattrs:
            line["xattrs"] = {escape(k): b64(v) for k, v in item.xattrs.items()}
        return line

    def index_objects(self, lines, who=("recovery", "index")):
        objects, text = [], b""
        for line in [json.dumps(x, ensure_ascii=False).encode() + b"\n" for x in lines] + [None]:
            if text and (line is None or len(text) + len(line) > self.object):
                objects.append(self.repo.put_named("index", self.source, self.repo.encrypt(zstd(text), *who)))
                text = b""
            text += line or b""
        return objects

    # -- commits --

    def snapshot(self, state, tamper=lambda lines: lines, key=None, baseline=False, **fields):
        """Commits `state`. `tamper` may change the entry lines, `fields` the commit: to write what a good writer never would."""
        if baseline:
            self.layers, self.packs, self.basis, self.listed = [], {}, {}, 0
        self.table = []
        self.begin_pack()
        lines = []
        for path in sorted({*state, *self.basis}, key=lambda p: p.split(b"/") if p else []):
            item, old = state.get(path), self.basis.get(path)
            if item is None:
                lines.append({"path": escape(path), "gone": True})
            elif item != old:
                inherit, data = self.data_lines(path, item, old) if item.type == "file" else (0, [])
                lines += [self.entry_line(path, item, inherit), *data]
        self.close_pack()
        layer = {"packs": self.index_objects(self.table), "entries": self.index_objects(tamper(lines))}
        self.layers = self.layers + [layer]
        sealed = {"secrets": {k: b64(v) for k, v in self.secrets.items()}, "root": "/srv", "stats": {}, "skipped": [], "facts": {}}
        known = list(self.packs.items())
        lists = []
        if len(known) > 2:  # some of the packs in a list, a dropped one among them, the rest in the commit
            text = "".join("+%s %d\n" % p for p in known[:-1]) + "+%s 5\n-%s\n" % ("0" * 64, "0" * 64)
            lists, known = [self.repo.put_named("index", self.source, text.encode())], known[-1:]
        self.minute += 1
        clock = "2026-01-02T%02d:%02d:00" % (self.minute // 60, self.minute % 60)
        commit = {"type": "snapshot", "kind": "files", "lineage": self.lineage, "epoch": 1, "agent": "make_repository.py",
                  "data_time": clock + ".5Z", "started": clock + "Z", "finished": clock + ".75Z", "outcome": "complete",
                  "mode": "incremental" if self.basis else "full", "basis": self.seq or None, "baseline": 1, "layers": self.layers,
                  "pack_lists": lists, "packs": {"add": [list(p) for p in known], "drop": []}, "lost": [],
                  "sealed": b64(self.repo.encrypt(json.dumps(sealed).encode(), "recovery", "index")), **fields}
        self.basis = {path: replace(item) for path, item in state.items()}
        self.states[self.seq + 1], self.times[self.seq + 1] = self.basis, clock + ".5Z"
        return self.commit(commit, key or self.host)

    def prune(self, *seqs, key="keeper", sweep=True):
        removed = [{"seq": s, "hash": self.hashes[s]} for s in seqs]
        clock = "2026-01-03T00:%02d:00Z" % (self.seq % 60)
        seq = self.commit({"type": "prune", "agent": "a", "started": clock, "removed": removed}, key)
        for s in seqs if sweep else ():
            os.remove(os.path.join(self.repo.path, self.commit_key(s)))
        return seq

    def retire(self, key="host", **fields):
        clock = "2026-01-04T00:%02d:00Z" % (self.seq % 60)
        return self.commit({"type": "retire", "agent": "a", "started": clock, **fields}, key)

    def commit_key(self, seq):
        return "snapshots/%s/%010d" % (self.source, seq)

    def commit(self, fields, key):
        self.seq += 1
        line = {"format": 1, "repository": self.repo.id, "source": self.source, "seq": self.seq, "previous": self.previous, "host": "db1",
                "key": self.repo.fingerprint(key), **fields}
        signer = line.pop("signer", key)
        self.previous = self.hashes[self.seq] = self.repo.put(self.commit_key(self.seq), self.repo.signed(signer, line))
        return self.seq


class Log:
    """The log of one source (§2.8): stretches, pieces, runs, histories, by whatever bytes `engine(timeline, from, to)` gives."""

    def __init__(self, repo, source, unit=1 << 20, host="host"):
        self.repo, self.source, self.unit, self.host, self.n, self.hash, self.minute = repo, source, unit, host, 0, None, 0

    def put(self, name, line, body=b"", host=None):
        self.minute += 1
        key = host or self.host
        line = {"format": 1, "repository": self.repo.id, "source": self.source, "key": self.repo.fingerprint(key), **line}
        line.setdefault("time", "2026-01-02T03:%02d:%02d.5Z" % (self.minute // 60, self.minute % 60))
        if body:
            body = self.repo.encrypt(zstd(body), "recovery")
            line["body"] = sha(body)
        return self.repo.put("wal/%s/%s" % (self.source, name), self.repo.signed(key, line) + body)

    def stretch(self, start, timeline=1, continues=False, size=1 << 20):
        self.n, self.secret, self.timeline, self.at = self.n + 1, os.urandom(64), timeline, start
        sealed = {"secret": b64(self.secret), "facts": {"system_identifier": "1", "segment_size": size}, "why": "a test"}
        line = {"type": "stretch", "n": self.n, "previous": self.hash, "continues": continues, "kind": "postgres", "epoch": 1, "unit": self.unit,
                "timeline": timeline, "start": "%016x" % start, "host": "db1", "agent": "test", "started": ROOT_TIME,
                "sealed": b64(self.repo.encrypt(json.dumps(sealed).encode(), "recovery", "index"))}
        self.hash = self.put("stretches/%010d" % self.n, line)

    def line(self, kind, start, data):
        check = b64(hashlib.sha256(self.secret + data).digest()[:16])
        return {"type": kind, "stretch": self.n, "timeline": self.timeline, "start": "%016x" % start, "end": "%016x" % (start + len(data)), "check": check}

    def name(self, start, end=None):
        return "%010d/%08x/%016x%s" % (self.n, self.timeline, start, "-%016x" % end if end else "")

    def piece(self, data, **fields):
        line = {**self.line("piece", self.at, data), "previous": self.hash, **fields}
        self.hash, self.at = self.put(self.name(self.at), line, data), self.at + len(data)

    def run(self, start, data, **fields):
        line = {**self.line("run", start, data), "previous": "0" * 64, "last": self.hash, "pieces": 2, **fields}
        self.put(self.name(start, start + len(data)), line, data)

    def switch(self, timeline, start, text=b"1\t0/0\ttest\n"):
        line = {"type": "history", "stretch": self.n, "timeline": timeline, "start": "%016x" % start}
        self.put("histories/%010d-%08x" % (self.n, timeline), line, text)
        self.timeline, self.at = timeline, start
