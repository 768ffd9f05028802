"""recover.py against repositories of make_repository.py: what it restores, and what it refuses. `python3 -m unittest` runs it."""
import glob, os, random, shutil, signal, stat, subprocess, sys, tempfile, time, unittest
from dataclasses import replace

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from make_repository import Item, Log, Repository, Series, b64  # noqa: E402

SCRIPTS = os.path.join(HERE, "..", "..", "recover")
DIR = Item("dir", mode=0o755)
random_bytes = random.Random(7).randbytes


def pages(*spec, page=4096):
    """A paged file: a number is a page of that content, 0 a page of zeros."""
    return b"".join(bytes(page) if n == 0 else random.Random(n).randbytes(page // 2) * 2 for n in spec)


class Case(unittest.TestCase):
    def setUp(self):
        self.temp = tempfile.TemporaryDirectory()
        self.addCleanup(self.temp.cleanup)
        self.repo = Repository(self.at("repository"), self.at("keys"))
        os.mkdir(self.at("out"))

    def at(self, *parts):
        return os.path.join(self.temp.name, *parts)

    def recover(self, *args, root=None, identity="recovery", repository=None, script="recover.py"):
        command = [sys.executable, os.path.join(SCRIPTS, script), "--repository", repository or self.repo.path]
        command += ["--root", root or self.repo.fingerprint("root")] if root != "" else []
        command += ["--identity", self.repo.key(identity)] if identity else []
        return subprocess.run(command + list(args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def restores(self, state, source="files", *args, code=0):
        target = self.at("out", "restored")
        done = self.recover("restore", source, target, *args)
        self.assertEqual(done.returncode, code, done.stderr)
        self.same(os.fsencode(target), state)
        self.assertEqual(os.listdir(self.at("out")), ["restored"])
        shutil.rmtree(target) if os.path.isdir(target) else os.remove(target)
        return done

    def refuses(self, message, *args, source="files", **options):
        done = self.recover("restore", source, self.at("out", "restored"), *args, **options)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertRegex(done.stderr, message)
        self.assertRegex(done.stderr, "nothing was restored")
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(os.listdir(self.at("out")), [], "something is visible")

    def same(self, base, state):
        found = {b""}
        for folder, dirs, files in os.walk(base):
            found |= {os.path.relpath(os.path.join(folder, n), base) for n in dirs + files}
        self.assertEqual(found, set(state))
        for path, item in state.items():
            full = os.path.join(base, path) if path else base
            if item.type == "hardlink":
                self.assertTrue(os.path.samefile(full, os.path.join(base, item.target)))
                continue
            have = os.lstat(full)
            kind = {"file": stat.S_ISREG, "dir": stat.S_ISDIR, "symlink": stat.S_ISLNK, "fifo": stat.S_ISFIFO, "char": stat.S_ISCHR}
            self.assertTrue(kind[item.type](have.st_mode), path)
            self.assertEqual(have.st_mtime_ns, item.mtime[0] * 10**9 + item.mtime[1], path)
            if os.geteuid() == 0:
                self.assertEqual((have.st_uid, have.st_gid), (item.uid, item.gid), path)
            if item.type == "symlink":
                self.assertEqual(os.readlink(full), item.target)
                continue
            self.assertEqual(stat.S_IMODE(have.st_mode), item.mode, path)
            self.assertEqual({n.encode(): os.getxattr(full, n) for n in os.listxattr(full)}, item.xattrs, path)
            if item.type == "file":
                with open(full, "rb") as f:
                    self.assertTrue(f.read() == item.data, "contents of %r differ" % path)
            if item.type == "char":
                self.assertEqual((os.major(have.st_rdev), os.minor(have.st_rdev)), item.rdev)


class Restores(Case):
    def test_every_kind_of_change_over_many_layers(self):
        s = Series(self.repo, "files")
        state = {
            b"": replace(DIR, mode=0o750, mtime=(1700000000, 5)),
            b"a": DIR, b"a/b": Item(data=b"below a"), b"a-b": Item(data=b"sorts after a/b"), b"a.txt": Item(data=b""),
            b"app.db": Item(data=pages(*range(1, 41)), page=4096),
            b"shrinks.db": Item(data=pages(*range(50, 90)), page=4096),
            b"big": Item(data=random_bytes(200_000), mode=0o600, uid=1000 * (os.geteuid() == 0)),
            b"sparse": Item(data=b"x" * 10 + bytes(3_000_000) + b"end"),
            b"empty dir": replace(DIR, mode=0o500), b"log": Item(data=random_bytes(25_000)),
            b"odd %41 \xff\xfe \xc3\xa4\n": Item(data=b"odd", mode=0o4755), b"attrs": Item(data=b"1", xattrs={b"user.\xc3\xa4": b"\0\xff", b"user.b": b""}),
            b"link": Item("symlink", target=b"../nowhere/%\xff", mode=0o777), b"fifo": Item("fifo"), b"big2": Item("hardlink", target=b"big"),
            b"old": Item(data=b"before the epoch", mtime=(-5, 7)), b"turns": Item(data=b"a file at first"),
        }
        if os.geteuid() == 0:
            state[b"null"] = Item("char", rdev=(1, 3), mode=0o666)
        s.snapshot(state)
        # Scattered pages, one of them to zero; a shorter file; only metadata; gone; appended; a file becomes a directory.
        state = {**state, b"app.db": replace(state[b"app.db"], data=pages(*range(1, 10), 100, 101, 0, *range(13, 41))),
                 b"shrinks.db": replace(state[b"shrinks.db"], data=pages(*range(50, 55))), b"big": replace(state[b"big"], mode=0o640),
                 b"log": replace(state[b"log"], data=state[b"log"].data + b"appended" * 3000), b"turns": DIR, b"turns/in": Item(data=b"in")}
        del state[b"old"], state[b"a/b"]
        s.snapshot(state)
        # Regrown: the pages beyond the cut are new or holes, never those of the first layer. Recreated. Streamed file rewritten.
        state = {**state, b"shrinks.db": replace(state[b"shrinks.db"], data=pages(*range(50, 53), 9, 54, 0, 0, 7, *[0] * 20)),
                 b"old": Item(data=b"after"), b"big": replace(state[b"big"], data=random_bytes(90_000)), b"turns": Item(data=b"again a file"),
                 b"app.db": replace(state[b"app.db"], data=pages(*range(1, 60)))}
        del state[b"turns/in"]
        s.snapshot(state)
        state = {**state, b"app.db": Item(data=pages(*range(1, 30), page=8192), page=8192)}  # another page size
        s.snapshot(state)
        for seq, expected in s.states.items():
            self.restores(expected, "files", "--seq", str(seq))
        self.restores(state)
        self.restores(s.states[2], "files", "--at", "2026-01-02T00:02:00.6Z")
        self.restores(s.states[1], "files", "--at", "2026-01-02T09:02:00+09:00")
        self.assertEqual(self.recover("list", identity=None).returncode, 0)
        self.assertEqual(self.recover("verify", "files", identity=None).returncode, 0)
        sparse = self.recover("restore", "files", self.at("out", "r"))
        self.assertEqual(sparse.returncode, 0)
        self.assertLess(os.stat(self.at("out", "r", "sparse")).st_blocks * 512, 100_000, "holes are not holes")

    def test_random_histories(self):
        for seed in range(3):
            r = random.Random(seed)
            s = Series(self.repo, "random-%d" % seed, frame=8192, pack=20_000, object_=1000)
            state = {b"": DIR, **{b"f%d" % i: Item(page=r.choice([None, 512])) for i in range(4)}}
            for _ in range(7):
                for path in [p for p in state if p]:
                    item = state[path]
                    data, unit = bytearray(item.data), item.page or 700
                    for _ in range(r.randrange(4)):
                        at = r.randrange(len(data) + 1) // unit * unit
                        what = r.choice([r.randbytes(unit), bytes(unit)]) * r.randrange(1, 9)
                        data = data[:at] if r.random() < 0.2 else data[:at] + what + data[at + len(what):]
                    state = {**state, path: replace(item, data=bytes(data))}
                victim = b"f%d" % r.randrange(4)
                state = {k: v for k, v in state.items() if k != victim} if victim in state else {**state, victim: Item(page=512)}
                s.snapshot(state)
            for seq, expected in s.states.items():
                self.restores(expected, s.source, "--seq", str(seq))

    def test_a_source_that_is_one_file(self):
        s = Series(self.repo, "one")
        s.snapshot({b"": Item(data=pages(1, 2, 3), page=4096)})
        self.recover("restore", "one", self.at("out", "db"))
        with open(self.at("out", "db"), "rb") as f:
            self.assertEqual(f.read(), pages(1, 2, 3))

    def test_prune_baseline_partial(self):
        s = Series(self.repo, "files")
        state = {b"": DIR, b"f": Item(data=random_bytes(30_000))}
        for n in range(3):
            s.snapshot({**state, b"n": Item(data=b"%d" % n)})
        s.prune(1, 2)
        s.snapshot({**state, b"n": Item(data=b"new")}, baseline=True)
        s.snapshot({**state, b"n": Item(data=b"partial")}, outcome="partial")
        s.prune(3, sweep=False)
        self.restores(s.states[5])
        self.restores(s.states[6], "files", "--seq", "6", code=3)
        done = self.recover("list", identity=None)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"(?s)4  prune record, removed 1, 2\n.*6  data of .* partial")
        self.assertRegex(done.stdout, r"3  data of .*removed by a prune record")
        self.assertEqual(self.recover("verify", "files", identity=None).returncode, 0)

    def test_a_retired_source_restores(self):
        s = Series(self.repo, "files")
        s.snapshot({b"": DIR, b"f": Item(data=b"one")})
        s.retire(key="keeper", why="moved")
        done = self.recover("list", identity=None)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"2  retired 2026-01-04T.* by 'db1': 'moved'")
        self.assertEqual(self.recover("verify", "files", identity=None).returncode, 0)
        self.restores(s.states[1])
        s.snapshot({b"": DIR, b"f": Item(data=b"taken up again")})
        s.prune(1)
        s.retire()
        self.restores(s.states[3])

    def test_a_type_of_a_later_version_is_refused_and_not_called_damaged(self):
        s = Series(self.repo, "files")
        s.snapshot({b"": DIR, b"f": Item(data=b"one")})
        s.commit({"type": "supersede", "agent": "a", "started": "2026-01-04T00:00:00Z"}, "host")
        refused = self.recover("restore", "files", self.at("out", "x"))
        self.assertEqual(refused.returncode, 1, refused.stdout)
        self.assertIn("'supersede', which this script does not know: it was written by a newer version", refused.stderr)
        self.restores(s.states[1], "files", "--seq", "1")


class Logs(Case):
    """The log of a source as segment files."""

    MIB = 1 << 20

    def setUp(self):
        super().setUp()
        self.log, self.bytes = Log(self.repo, "db"), random.Random(3).randbytes(4 << 20)

    def wal(self, *args, code=0):
        target = self.at("out", "wal")
        done = self.recover("db", target, *args, script="recover-log.py")
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(os.listdir(self.at("out")), ["wal"] if code in (0, 3) else [], "something is visible")
        files = {}
        for name in sorted(os.listdir(target) if code in (0, 3) else []):
            with open(os.path.join(target, name), "rb") as f:
                files[name] = f.read()
        shutil.rmtree(target, ignore_errors=True)
        return files if code in (0, 3) else done.stderr

    def grow(self, *ends):
        for end in ends:
            self.log.piece(self.bytes[self.log.at - self.MIB:end - self.MIB])

    def promoted(self):
        """A log whose first timeline has come to 400 bytes and whose second began at 300 and has come to 500."""
        M = self.MIB
        self.log.stretch(M)
        self.grow(M + 100, M + 400)
        self.log.switch(2, M + 300)
        self.grow(M + 500)
        return M

    def test_pieces_and_runs_become_whole_segments(self):
        M = self.MIB
        self.log.stretch(M)
        self.grow(M + 10, M + 700, 2 * M, 2 * M + 5)
        self.log.run(M, self.bytes[:700])
        files = self.wal()
        self.assertEqual(files, {"000000010000000000000001": self.bytes[:M], "000000010000000000000002": self.bytes[M:M + 5] + bytes(M - 5)})
        # The pieces that a run stands for may go; with a damaged run they may not.
        os.remove(os.path.join(self.repo.path, "wal/db", self.log.name(M)))
        self.assertEqual(self.wal(), files)
        with open(os.path.join(self.repo.path, "wal/db", self.log.name(M, M + 700)), "r+b") as f:
            f.seek(-30, 2)
            f.write(b"x" * 30)
        self.assertRegex(self.wal(code=1), "is damaged")

    def test_timelines_stretches_and_gaps(self):
        M = self.promoted()
        self.log.stretch(M + 500, timeline=2, continues=True)
        self.grow(M + 600)
        files = self.wal()
        self.assertEqual(files, {"00000002.history": b"1\t0/0\ttest\n", "000000020000000000000001": self.bytes[:600] + bytes(M - 600)})
        self.log.stretch(3 * M, timeline=2)
        self.grow(3 * M + 9)
        self.assertEqual(list(self.wal()), ["000000020000000000000003"])
        self.assertEqual(self.wal("--stretch", "1"), files)

    def test_what_prune_has_left_of_an_older_timeline_is_not_where_the_log_begins(self):
        M = self.MIB
        self.log.stretch(M)
        self.grow(M + 100, M + 300)
        self.log.switch(2, M + 300)
        self.grow(M + 500, 2 * M, 3 * M)
        for timeline, start in ((1, M), (2, M + 300), (2, M + 500)):
            os.remove(os.path.join(self.repo.path, "wal/db/%010d/%08x/%016x" % (1, timeline, start)))
        left = {"00000002.history": b"1\t0/0\ttest\n", "000000020000000000000002": self.bytes[M:2 * M]}
        self.assertEqual(self.wal(), left)
        # A stretch that went on and got no piece is no gap; one behind a gap is.
        for continues in (True, True):
            self.log.stretch(3 * M, timeline=2, continues=continues)
        self.grow(4 * M)
        self.assertEqual(self.wal(), {**left, "000000020000000000000003": self.bytes[2 * M:3 * M]})
        self.log.stretch(4 * M, timeline=2)
        self.log.stretch(4 * M, timeline=2, continues=True)
        self.grow(4 * M + 9)
        self.assertEqual(list(self.wal()), ["000000020000000000000004"])

    def damage(self, name):
        path = os.path.join(self.repo.path, "wal/db", name)
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 2)
            f.write(b"damaged!")

    def test_a_stretch_of_which_nothing_verifies_is_a_gap(self):
        """As the program has it: what goes on after it begins a part of its own."""
        M = self.MIB
        self.log.stretch(M)
        self.grow(M + 100, M + 300)
        self.log.stretch(M + 300, continues=True)
        self.grow(M + 400, M + 500)
        second = [self.log.name(M + 300), self.log.name(M + 400)]
        self.log.stretch(M + 500, continues=True)
        self.grow(2 * M, 2 * M + 9)
        self.assertEqual(self.wal()["000000010000000000000001"], self.bytes[:M])
        self.damage(second[0])
        self.assertRegex(self.wal(code=1), "--until-damage")
        # What comes before the damage is to be had; of what lies behind it nothing.
        files = self.wal("--until-damage", code=3)
        self.assertEqual(files, {"000000010000000000000001": self.bytes[:300] + bytes(M - 300)})
        self.damage(second[1])
        rest = {"000000010000000000000001": bytes(500) + self.bytes[500:M], "000000010000000000000002": self.bytes[M:M + 9] + bytes(M - 9)}
        self.assertEqual(self.wal(code=3), rest)
        self.assertEqual(self.wal("--stretch", "1", code=3), files)
        # One whose record is damaged as well.
        self.damage("stretches/0000000002")
        self.assertEqual(self.wal(code=3), rest)
        self.assertEqual(self.wal("--stretch", "1", code=3), files)

    def test_an_older_timeline_is_read_where_nothing_of_the_newest_verifies(self):
        """As the program has it: the log ends on the timeline before, and what followed the damaged one begins a part of its own."""
        M = self.promoted()
        self.damage("%010d/%08x/%016x" % (1, 2, M + 300))
        first = {"000000010000000000000001": self.bytes[:400] + bytes(M - 400)}
        self.assertEqual(self.wal(code=3), first)
        self.log.stretch(M + 500, timeline=2, continues=True)
        self.grow(M + 600)
        self.assertEqual(list(self.wal(code=3)), ["000000020000000000000001"])
        self.assertEqual(self.wal("--stretch", "1", code=3), first)

    def test_of_records_and_histories_the_sound_ones_are_used(self):
        M = self.MIB
        self.log.stretch(M)
        self.grow(M + 300)
        self.log.switch(2, M + 300)
        self.grow(M + 500)
        self.log.stretch(3 * M, timeline=2)
        self.grow(3 * M + 9)
        last = {"000000020000000000000003": self.bytes[2 * M:2 * M + 9] + bytes(M - 9)}
        self.assertEqual(self.wal(), last)
        for name in ("histories/0000000001-00000002", "stretches/0000000001"):
            self.damage(name)
            self.assertEqual(self.wal(code=3), last)
            self.assertRegex(self.wal("--stretch", "1", code=1), "has no stretch 1")
        self.damage("stretches/0000000002")
        self.assertRegex(self.wal(code=1), "stretch 2 .*is not used")

    def test_what_is_lost_forged_or_moved_is_refused(self):
        M = self.MIB
        self.log.stretch(M)
        self.grow(M + 100, M + 200, M + 300, 2 * M, 2 * M + 50)
        base = os.path.join(self.repo.path, "wal/db")
        whole = self.wal()
        for name, message in ((self.log.name(M + 100), "lost"), ("stretches/0000000001", "no log")):
            os.rename(os.path.join(base, name), self.at("aside"))
            self.assertRegex(self.wal(code=1), message)
            os.rename(self.at("aside"), os.path.join(base, name))
        first, second = (os.path.join(base, self.log.name(M + at)) for at in (100, 200))
        shutil.copy(first, self.at("aside"))
        shutil.copy(second, first)
        self.assertRegex(self.wal(code=1), "was moved")
        shutil.copy(self.at("aside"), first)
        self.assertEqual(self.wal(), whole)
        # By a key without a certificate; with bytes that are not those that were read.
        line = {**self.log.line("piece", M + 100, self.bytes[100:200]), "previous": "0" * 64}
        self.log.put(self.log.name(M + 100), line, self.bytes[100:200], host="stranger")
        self.assertRegex(self.wal(code=1), "forged")
        self.log.put(self.log.name(M + 100), line, self.bytes[101:201])
        self.assertRegex(self.wal(code=1), "does not hold the bytes")

    def test_a_history_that_is_lost_is_refused(self):
        self.log.stretch(self.MIB)
        self.grow(self.MIB + 100)
        self.log.switch(2, self.MIB + 100)
        self.grow(self.MIB + 200)
        os.remove(os.path.join(self.repo.path, "wal/db/histories/0000000001-00000002"))
        self.assertRegex(self.wal(code=1), "history of timeline 2")


class Refuses(Case):
    def setUp(self):
        super().setUp()
        self.series = Series(self.repo, "files")
        self.state = {b"": DIR, b"f": Item(data=random_bytes(150_000)), b"p": Item(data=pages(*range(1, 50)), page=4096)}
        self.series.snapshot(self.state)
        self.state = {**self.state, b"p": Item(data=pages(*range(1, 20), 90, *range(21, 50)), page=4096)}
        self.series.snapshot(self.state)

    def edit(self, key, change):
        path = os.path.join(self.repo.path, key)
        with open(path, "rb") as f:
            data = f.read()
        os.remove(path)
        changed = change(data)
        if changed is not None:
            with open(path, "wb") as f:
                f.write(changed)
        return data

    def test_every_object_flipped_cut_missing_or_swapped(self):
        flip = lambda d: d[:len(d) // 2] + bytes([d[len(d) // 2] ^ 1]) + d[len(d) // 2 + 1:]  # noqa: E731
        keys = sorted(os.path.relpath(p, self.repo.path) for p in glob.glob(self.repo.path + "/**", recursive=True) if os.path.isfile(p))
        needed = [k for k in keys if k != "snapshots/files/0000000001"]
        self.assertGreater(len(needed), 8)
        for key in needed:
            for name, change in ("flipped", flip), ("cut", lambda d: d[:-1]), ("missing", lambda d: None), ("longer", lambda d: d + b"\n"):
                if key.endswith("/0000000002") and name == "missing":
                    continue  # the loss of the newest commit alone shows only to who has seen it: §6
                with self.subTest(key=key, change=name):
                    before = self.edit(key, change)
                    self.refuses("damaged|missing|gap|no repository|forged|json")
                    if key.startswith(("packs/", "index/")):
                        done = self.recover("verify", "files", identity=None)
                        self.assertEqual(done.returncode, 1)
                        self.assertIn(key, done.stderr)
                    self.repo.put(key, before)
        packs = [k for k in needed if k.startswith("packs/")]
        first, second = (self.edit(k, lambda d: None) for k in packs[:2])
        self.repo.put(packs[0], second)
        self.repo.put(packs[1], first)
        self.refuses("damaged")
        self.repo.put(packs[0], first)
        self.repo.put(packs[1], second)
        self.restores(self.state)

    def test_damage_to_an_older_commit_hurts_only_that(self):
        self.edit("snapshots/files/0000000001", lambda d: d.replace(b'"db1"', b'"db2"'))
        done = self.restores(self.state)
        self.assertIn("0000000001 is damaged or forged", done.stderr)
        self.refuses("damaged or forged", "--seq", "1")
        self.assertEqual(self.recover("list", identity=None).returncode, 1)
        self.edit("snapshots/files/0000000001", lambda d: None)
        self.assertIn("is missing, and no prune record", self.restores(self.state).stderr)

    def test_a_damaged_head_is_not_passed_over_in_silence(self):
        self.edit("snapshots/files/0000000002", lambda d: d[:100])
        self.refuses("say --seq 1")
        self.restores(self.series.states[1], "files", "--seq", "1")
        self.refuses("say --seq 1", "--at", "2099-01-01T00:00:00Z")

    def test_a_damaged_commit_from_beyond_the_time_counts_for_nothing(self):
        self.series.snapshot(self.state)
        self.edit("snapshots/files/0000000003", lambda d: d[:100])
        self.restores(self.series.states[1], "files", "--at", self.series.times[1])

    def test_commits_that_another_key_signed(self):
        for fields, message in [({"signer": "stranger"}, "forged"), ({"key": "stranger"}, "not certified"),
                                ({"key": "keeper"}, "not certified")]:
            with self.subTest(message=message):
                self.series.snapshot(self.state, **fields)
                self.refuses(message)
                self.edit(self.series.commit_key(self.series.seq), lambda d: None)
                self.series.seq, self.series.previous = 2, self.series.hashes[2]
        self.repo.trust(keys=[self.repo.certificate("host2", "host", ["another"])])
        self.series.snapshot(self.state, key="host2")
        self.refuses("not certified")
        self.repo.trust(keys=[self.repo.certificate("host2", "host", ["files"])])
        self.restores(self.state)
        self.repo.trust(revoked=[{"key": self.repo.fingerprint("host2"), "from": "2026-01-02T00:00:00Z"}])
        self.refuses("revoked")

    def test_what_a_hostile_store_can_put_there(self):
        for rubbish in b"", b"\n\n", b"[" * 100_000 + b"\nAAAA\n", b'{"format":1}\nAAAA\n', b"[]\nAAAA\n", b"\xff\nAAAA\n":
            self.repo.put("snapshots/files/9999999999", rubbish)
            self.refuses("0000000003 to 9999999998 is missing")
            self.assertIn("9999999999 is damaged", self.recover("list", identity=None).stderr)
            self.restores(self.state, "files", "--seq", "2")
        os.remove(self.repo.path + "/snapshots/files/9999999999")
        self.repo.put("snapshots/.rubbish", b"")
        self.repo.put("snapshots/files/.partial", b"")
        self.assertEqual(self.recover("list", identity=None).returncode, 0)

    def test_a_commit_moved_replayed_or_of_another_fork(self):
        old = self.edit("snapshots/files/0000000001", lambda d: d)
        self.repo.put("snapshots/files/0000000003", old)
        self.refuses("was moved")
        os.remove(self.repo.path + "/snapshots/files/0000000003")
        self.repo.put("snapshots/other/0000000001", old)
        self.refuses("was moved", source="other")
        self.series.previous = "0" * 64
        self.series.snapshot(self.state)
        done = self.recover("list", identity=None)
        self.assertEqual(done.returncode, 1)
        self.assertIn("0000000002 is not the commit", done.stderr)

    def test_root_keys_and_identities(self):
        self.refuses("another repository, or somebody replaced", root=self.repo.fingerprint("stranger"))
        self.refuses("--root", root="")
        self.refuses("Is this the recovery identity", identity="other")
        self.refuses("it is not a recovery identity", identity="host.pub")
        self.refuses("needs --identity", identity=None)
        with open(self.repo.key("recovery"), "a") as f:  # a kit has other lines too
            f.write("\nroot key\n-----BEGIN OPENSSH PRIVATE KEY-----\n")
        self.restores(self.state)
        done = self.recover("restore", "files", self.at("out", "t"), "--trust-on-first-use", root="")
        self.assertEqual(done.returncode, 0)
        self.assertIn("NOT PROTECTED AGAINST FORGERY", done.stderr)

    def test_trust_records_of_another_key(self):
        self.repo.trust(key="stranger", keys=[self.repo.certificate("stranger", "host")])
        self.refuses("trust/0000000002 is damaged or forged")

    def test_newer_formats(self):
        for key in "repository.json", "trust/0000000001", "snapshots/files/0000000002":
            before = self.edit(key, lambda d: d.replace(b'"format":1', b'"format":2', 1))
            self.refuses("written by a newer version")
            self.repo.put(key, before)

    def hostile(self, message, lines, **fields):
        s = Series(self.repo, "bad-%d" % len(os.listdir(self.repo.path + "/snapshots")))
        s.snapshot({b"": DIR, b"f": Item(data=b"fine"), b"s": Item("symlink", target=b"/tmp")},
                   tamper=lambda good: sorted(good + [{"mode": 0o644, "uid": 0, "gid": 0, "mtime": [1, 1], "size": 0, "inherit": 0, **x} for x in lines],
                                              key=lambda x: x["path"].split("/") if x["path"] else []), **fields)
        self.refuses(message, source=s.source)

    def test_hostile_indexes(self):
        for path in "../x", "/etc/x", "a/../../x", "a//b", "./x", "x%00y", "s/x", "f/x", "nowhere/x", "%2E%2E/x", "..", "x/":
            with self.subTest(path=path):
                self.hostile("hostile path", [{"path": path, "type": "file"}])
        self.hostile("hostile hard link", [{"path": "h", "type": "hardlink", "target": "s"}])
        self.hostile("hostile path", [{"path": "h", "type": "hardlink", "target": "../../x"}])
        self.hostile("not sorted", [{"path": "f", "type": "file"}])
        self.hostile("newer version", [{"path": "g", "type": "wormhole"}])
        self.hostile("malformed", [{"path": "g", "type": "file", "size": -1}])
        self.hostile("malformed", [{"path": "g%4", "type": "file"}])
        zero = {"path": "g", "type": "file", "size": 1 << 20}
        for extents, message in [([[0, 4, 7, 0, 0]], "does not describe"), ([[0, 4, 0, 9, 0]], "does not have"), ([[0, 9999, 0, 0, 0]], "leaves its frame"),
                                 ([[0, 4, 0, 0, 0]], "not those that were read"), ([[4, 4, 0, 0, 0], [0, 4, 0, 0, 0]], "overlap")]:
            self.hostile(message, [zero, {"path": "g", "at": 0, "extents": extents, "ids": b64(bytes(64))}])
        self.hostile("more layers", [], layers=[{"packs": [], "entries": []}] * 17)
        self.hostile("not the name of an object", [], layers=[{"packs": [], "entries": [["../../x", 1]]}])
        self.hostile("trust record 9", [], epoch=9)

    def test_bombs(self):
        s = Series(self.repo, "bomb", object_=8 << 20)
        s.snapshot({b"": DIR}, tamper=lambda good: good + [{"path": "x" * (2 << 20), "gone": True}])
        self.refuses("decompresses to more", source="bomb")

    def test_nothing_is_overwritten(self):
        os.mkdir(self.at("out", "restored"))
        done = self.recover("restore", "files", self.at("out", "restored"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("exists already", done.stderr)
        self.assertEqual(os.listdir(self.at("out", "restored")), [])

    def test_plain_mistakes(self):
        self.refuses("no source nothing", source="nothing")
        self.refuses("cannot be the name", source="../x")
        self.refuses("has no snapshot 9", "--seq", "9")
        self.refuses("no complete snapshot of that time", "--at", "2020-01-01T00:00:00Z")
        self.refuses("is not a time", "--at", "yesterday")
        self.refuses("there is no repository", repository=self.at("out"))

    def instead_of_age(self, script):
        os.mkdir(self.at("bin"))
        with open(self.at("bin", "age"), "w") as f:
            f.write("#!/bin/sh\n%s\nexec %s \"$@\"\n" % (script, shutil.which("age")))
        os.chmod(self.at("bin", "age"), 0o755)
        path = os.environ["PATH"]
        os.environ["PATH"] = self.at("bin") + ":" + path
        self.addCleanup(os.environ.__setitem__, "PATH", path)

    def test_the_identity_never_shows_in_arguments(self):
        self.instead_of_age('echo "$*" >> %s' % self.at("arguments"))
        self.restores(self.state)
        with open(self.at("arguments")) as f:
            text = f.read()
        self.assertIn("-d -i /dev/fd/", text)
        self.assertNotIn("AGE-SECRET", text)

    def test_nothing_stays_behind_when_it_is_stopped(self):
        self.instead_of_age("touch %s; sleep 60" % self.at("started"))
        for number, code in (signal.SIGTERM, 143), (signal.SIGINT, 130):
            command = [sys.executable, os.path.join(SCRIPTS, "recover.py"), "--repository", self.repo.path, "--root", self.repo.fingerprint("root")]
            command += ["--identity", self.repo.key("recovery"), "restore", "files", self.at("out", "restored")]
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                                     preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # ignored where the tests run in the background
            while not os.path.exists(self.at("started")):
                self.assertIsNone(child.poll())
                time.sleep(0.01)
            os.killpg(child.pid, number)
            self.assertEqual(child.wait(), code)
            self.assertEqual(os.listdir(self.at("out")), [])
            os.remove(self.at("started"))

    def test_prune_records_need_a_key_of_their_role(self):
        self.series.prune(1, key="stranger")
        self.refuses("0000000003.*(forged|not certified)|not certified")
        self.refuses("0000000001 is missing", "--seq", "1")

    def test_retirements_need_a_key_of_their_role(self):
        self.series.retire(key="stranger")
        self.refuses("forged|not certified")


if __name__ == "__main__":
    unittest.main()
