"""The container image, built and run for real: as the Kubernetes manifest and the Compose file have it, with the restore elsewhere that it is for."""
import json, os, re, signal, subprocess, tempfile, time, unittest
from pathlib import Path

from containers import APART, CANARY, RIGHTS, Contained, mounts, of_compose, of_kubernetes
from support import PACKAGING, VENV, documents, run

USER = "65532:65532"


class Image(Contained):
    def inspected(self):
        return json.loads(self.engine.podman("image", "inspect", self.image).stdout)[0]

    def test_it_says_what_it_runs_and_as_whom(self):
        config = self.inspected()["Config"]
        self.assertEqual(config["User"], USER)
        self.assertEqual(config["Entrypoint"][-1], "/usr/bin/blackstart")
        self.assertEqual(config["Cmd"], ["agent"])
        self.assertEqual(list(config["Volumes"]), ["/var/lib/blackstart"])
        names = {pair.partition("=")[0] for pair in config["Env"]}
        self.assertEqual(names, {"PATH", "BLACKSTART_CONFIG", "TMPDIR"}, "a variable that nobody has asked for")
        self.assertRegex(self.run_in(APART, "--version").stdout, r"^blackstart \d")

    def test_nothing_of_the_builder_is_in_it(self):
        with tempfile.TemporaryDirectory(prefix="blackstart-archive-") as directory:
            os.chmod(directory, 0o777)
            self.engine.buildah("push", "-q", self.image, "oci-archive:%s/image.tar" % directory)
            listed = run(*RIGHTS, "tar", "-tf", directory + "/image.tar").stdout
            self.assertIn("index.json", listed)
            self.assertEqual(listed.count("blobs/sha256/"), 1 + 2 + len(self.inspected()["RootFS"]["Layers"]), "manifest, configuration, layers: %s" % listed)
        self.assertNotIn(CANARY, json.dumps(self.inspected()))
        root = self.engine.podman("image", "mount", self.image).stdout.strip()
        self.addCleanup(self.engine.podman, "image", "unmount", self.image)
        found = run(*RIGHTS, "grep", "-rlIE", "--exclude-dir=proc", "--exclude-dir=sys", "%s|-----BEGIN [A-Z ]*PRIVATE KEY-----|AGE-SECRET-KEY-1[A-Z0-9]{20}" % CANARY,
                    *("%s/%s" % (root, top) for top in ("etc", "home", "opt", "root", "run", "srv", "tmp", "var")), ok=False).stdout
        self.assertEqual(found, "", "files with secrets")
        traces = run(*RIGHTS, "find", root, "-xdev", "(", "-name", ".*history", "-o", "-name", ".netrc", "-o", "-name", "*.deb", "-o", "-path", "*/apt/lists/*_*", ")").stdout
        self.assertEqual(traces, "", "traces of the build")

    def test_it_has_what_it_and_recover_py_start(self):
        self.assertRegex(self.run_in(APART, "--version", entrypoint="pg_dump").stdout, r"\(PostgreSQL\) 1[7-9]\.")
        for program, argument in (("pg_dumpall", "--version"), ("pg_restore", "--version"), ("psql", "--version"), ("redis-cli", "--version"), ("age", "--version"), ("zstd", "--version")):
            self.run_in(APART, argument, entrypoint=program)
        certificates = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"
        self.assertGreater(int(self.run_in(APART, "-c", certificates, entrypoint="python3").stdout), 50, "CA roots")


class Kubernetes(Contained):
    """The sidecar, with a directory in place of the bucket and shorter times."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        kinds = {document["kind"]: document for document in documents("kubernetes/sidecar.yaml")}
        cls.settings = kinds["ConfigMap"]["data"]
        cls.pod = kinds["StatefulSet"]["spec"]["template"]["spec"]
        cls.sidecar = cls.pod["initContainers"][0]
        cls.group = cls.pod["securityContext"]["fsGroup"]
        cls.secrets_mode = next(v["secret"]["defaultMode"] for v in cls.pod["volumes"] if "secret" in v)

    def settle(self):
        """The volumes, owned as the kubelet leaves them: root's, and the group's of fsGroup. Gives the options of the sidecar."""
        # `init` runs elsewhere, on the operator's desk.
        self.desk, self.bucket = self.volume("desk", USER, "0700"), self.volume("bucket", USER, "0700")
        at_the_desk = mounts([("/desk", self.desk, "rw"), ("/bucket", self.bucket, "rw")])
        self.run_in([*APART, *at_the_desk], "--config", "/desk/blackstart.toml", "init", "--repo", "/bucket")
        self.root = re.search(r'^root = "(.+)"', self.read(self.desk + "/blackstart.toml"), re.M).group(1)
        config = re.sub("^repository = .*", 'repository = "/bucket"', self.settings["blackstart.toml"], flags=re.M)
        config = re.sub("^root = .*", 'root = "%s"' % self.root, config, flags=re.M)
        # A program that leaves something behind, which falls to process 1.
        config += '[[source]]\nname = "orphans"\nkind = "command"\n[source.command]\nfile = "o"\ndump = ["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo dumped"]\n'
        job = re.sub("^every = .*", 'every = "2s"', self.settings["app.toml"], flags=re.M)
        orphans = 'source = "orphans"\nevery = "2s"\n'
        files = {"blackstart.toml": config, "app.toml": job, "orphans.toml": orphans}
        shared = "root:%d" % self.group
        volumes = {
            "data": self.volume("data", "1000:%d" % self.group, "2770", {"orders": "1\n"}, "0660"),
            "blackstart-state": self.volume("state", shared, "2775"),
            "blackstart-config": self.volume("config", shared, "0755", files),
            "blackstart-secrets": self.volume("secrets", shared, "0755", {"host.key": self.read(self.desk + "/blackstart/keys/host.key"), "aws-credentials": "-"}, "%o" % self.secrets_mode),
        }
        told = [(m["mountPath"], "/".join(filter(None, (volumes[m["name"]], m.get("subPath")))), "ro" if m.get("readOnly") else "rw") for m in self.sidecar["volumeMounts"]]
        told += [("/etc/blackstart/schedules/orphans.toml", volumes["blackstart-config"] + "/orphans.toml", "ro"), ("/bucket", self.bucket, "rw")]
        return of_kubernetes(self.pod, self.sidecar) + mounts(told)

    def snapshots(self, sidecar, source="app"):
        listed = sidecar.inside("/usr/bin/blackstart", "snapshots", source, "--json", ok=False)
        return json.loads(listed.stdout)["report"]["snapshots"] if listed.returncode == 0 else []

    def test_the_sidecar_backs_up_stops_goes_on_and_is_restored_elsewhere(self):
        options = self.settle()
        sidecar = self.start(options, *self.sidecar["args"])
        sidecar.wait("two snapshots of each source", lambda: all(len(self.snapshots(sidecar, source)) >= 2 for source in ("app", "orphans")))
        self.it_has_no_rights(sidecar)
        self.it_answers_the_probe(sidecar)
        self.nobody_lies_unburied(sidecar)
        last = self.it_stops(sidecar)
        self.volume("data", "1000:%d" % self.group, "2770", {"orders": "1\n2\n"}, "0660")
        again = self.start(options, *self.sidecar["args"])
        newer = again.wait("a snapshot after the restart", lambda: [s for s in self.snapshots(again) if s["seq"] > last["seq"]])
        self.assertEqual({s["mode"] for s in newer}, {"incremental"}, "the state is on the volume: nothing begins anew")
        self.it_stops(again)
        self.it_is_restored_elsewhere()

    def it_has_no_rights(self, sidecar):
        status = dict(line.split(":\t", 1) for line in sidecar.inside("cat", "/proc/1/status").stdout.splitlines() if ":\t" in line)
        self.assertEqual(set(status["Uid"].split()), {"65532"})
        self.assertIn(str(self.group), status["Groups"].split() + status["Gid"].split())
        for rights in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.assertEqual(int(status[rights], 16), 0, rights)
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"))
        writable = sidecar.inside("find", "/", "(", "-path", "/proc", "-o", "-path", "/sys", ")", "-prune", "-o", "(", "-type", "d", "-o", "-type", "f", ")", "-writable", "-print", ok=False).stdout
        # Memory that every container has; below the volumes of the manifest, the state; the bucket of this test.
        allowed = re.compile(r"/dev/shm|/dev/mqueue|/var/lib/blackstart(/.*)?|/bucket(/.*)?|find: .*Permission denied")
        self.assertEqual([line for line in writable.splitlines() if not allowed.fullmatch(line)], [], "writable beside the volumes")
        self.assertIn("/var/lib/blackstart", writable.splitlines())

    def it_answers_the_probe(self, sidecar):
        sidecar.inside(*self.sidecar["livenessProbe"]["exec"]["command"])
        elsewhere = [*APART, *mounts([("/etc/blackstart/blackstart.toml", self.home + "/config/blackstart.toml", "ro")])]
        self.assertNotEqual(self.run_in(elsewhere, "health", ok=False).returncode, 0, "where no agent runs, the probe must fail")

    def nobody_lies_unburied(self, sidecar):
        """What a dump program leaves behind is killed, and process 1 has to bury it: else they gather until the node has no numbers left."""
        def left():
            stats = sidecar.inside("sh", "-c", "cat /proc/[0-9]*/stat", ok=False).stdout
            return re.findall(r"^(\d+) \(sleep\) Z", stats, re.M)
        had = self.snapshots(sidecar, "orphans")[-1]["seq"]
        sidecar.wait("three more dumps", lambda: self.snapshots(sidecar, "orphans")[-1]["seq"] >= had + 3)
        sidecar.wait("the dead of dumps that have ended are buried", lambda: not left())

    def it_stops(self, sidecar):
        grace = self.pod["terminationGracePeriodSeconds"]
        last = self.snapshots(sidecar)[-1]
        began = time.monotonic()
        self.assertEqual(sidecar.stop(grace), 0, sidecar.said())
        self.assertLess(time.monotonic() - began, grace, "it had to be killed")
        lease = json.loads(self.read(self.bucket + "/leases/app"))
        now = run("date", "-u", "+%Y-%m-%dT%H:%M:%SZ").stdout.strip()
        self.assertLessEqual(lease["expires"][:19], now[:19], "the lease is given back: whoever comes next need not wait")
        return last

    def it_is_restored_elsewhere(self):
        """By a machine that has the bucket and the kit alone: once by blackstart, once without it."""
        target = self.volume("target", USER, "0700")
        options = [*APART, "--read-only", "--read-only-tmpfs=false", *mounts([("/bucket", self.bucket, "rw"), ("/kit", self.desk + "/blackstart/keys", "ro"), ("/target", target, "rw")])]
        # Only root brings owners back.
        self.run_in(["--user=0", *options], "restore", "app", "--repo", "/bucket", "--root", self.root, "--identity", "/kit/recovery.key", "--to", "/target/app")
        self.assertEqual(self.read(target + "/app/orders"), "1\n2\n")
        self.assertEqual(run(*RIGHTS, "stat", "-c", "%u:%g", target + "/app/orders").stdout.strip(), "1000:%d" % self.group)
        self.run_in(options, "/bucket/recover.py", "--root", self.root, "--identity", "/kit/recovery.key", "restore", "app", "/target/without", entrypoint="python3")
        self.assertEqual(self.read(target + "/without/orders"), "1\n2\n")


class Compose(Contained):
    """The service of the Compose file."""

    def test_it_dumps_the_database_with_secrets_that_belong_to_it(self):
        text, described = (PACKAGING / "compose.yaml").read_text(), documents("compose.yaml")[0]
        service = described["services"]["blackstart"]
        server = Server(self, int(described["services"]["db"]["image"].rsplit(":", 1)[1]))
        desk = self.volume("desk", USER, "0700")
        bucket = self.volume("bucket", USER, "0700")
        self.run_in([*APART, *mounts([("/desk", desk, "rw"), ("/bucket", bucket, "rw")])], "--config", "/desk/blackstart.toml", "init", "--repo", "/bucket")
        root = re.search(r'^root = ".+"', self.read(desk + "/blackstart.toml"), re.M).group()
        config = ('repository = "/bucket"\n%s\nhost = "app"\nhost_key = "/run/secrets/host-key"\nstate = "/var/lib/blackstart/state"\n'
                  '[[source]]\nname = "shop"\nkind = "postgres"\nurl = "postgres://postgres@/shop?host=/socket"\npassword = { file = "/run/secrets/db-password" }\n'
                  '[source.postgres]\nmode = "logical"\n' % root)
        # As whoever writes them: root's, in files that only root reads.
        files = {"host.key": self.read(desk + "/blackstart/keys/host.key"), "db-password": server.password, "aws-credentials": "-"}
        secrets = self.volume("packaging/secrets", "root:root", "0755", files, "0600")
        volumes = [("/etc/blackstart", self.volume("config", "root:root", "0755", {"blackstart.toml": config}), "ro"), ("/bucket", bucket, "rw"), ("/socket", server.socket, "rw")]
        volumes += [("/var/lib/blackstart", self.volume("state", USER, "0700"), "rw")]
        volumes += [("/run/secrets/" + name, "%s/%s" % (secrets, described["secrets"][name]["file"].rsplit("/", 1)[1]), "ro") for name in service["secrets"]]
        options = of_compose(service) + mounts(volumes)
        refused = self.run_in(options, "backup", "shop", ok=False)
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("chown 65532 /run/secrets/host-key && chmod 0400 ", refused.stdout, "the cure")
        self.assertNotIn(server.password, refused.stdout)
        command = re.search(r"^#   (chown .* packaging/secrets/\*)$", text, re.M).group(1)
        run(*RIGHTS, "sh", "-c", "cd %s && %s" % (self.home, command))
        self.run_in(options, "backup", "shop")
        restored = [*mounts([("/key", desk + "/blackstart/keys", "ro")]), *options]
        self.run_in(restored, "restore", "shop", "--identity", "/key/recovery.key", "--to", "/var/lib/blackstart/shop")
        dump = self.home + "/state/shop/databases/shop.dump"
        self.assertIn("TABLE DATA public orders", run(*RIGHTS, server.bin / "pg_restore", "--list", dump).stdout)


class Server:
    """PostgreSQL of the host, on a socket alone, with a password."""

    def __init__(self, test, major):
        self.bin, self.password = VENV.parent / "postgresql" / str(major) / "bin", "pw-%s" % os.urandom(8).hex()
        self.socket = tempfile.mkdtemp(prefix="blackstart-pg-")
        os.chmod(self.socket, 0o777)
        test.addCleanup(run, *RIGHTS, "rm", "-rf", self.socket)
        # The server refuses root.
        self.drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        (Path(self.socket) / "password").write_text(self.password)
        os.chmod(self.socket + "/password", 0o644)
        self.do("initdb", "-D", self.socket + "/data", "-U", "postgres", "-A", "scram-sha-256", "--pwfile", self.socket + "/password", "--no-sync")
        with open(self.socket + "/log", "w") as log:
            server = subprocess.Popen([*self.drop, self.bin / "postgres", "-D", self.socket + "/data", "-k", self.socket, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "unix_socket_permissions=0777"],
                                      stdout=log, stderr=log, env={**os.environ, "LC_ALL": "C"})
        # A fast stop, and the end of it.
        test.addCleanup(lambda: (server.send_signal(signal.SIGINT), server.wait(60)))
        until = time.monotonic() + 60
        while self.do("pg_isready", "-h", self.socket, "-d", "postgres", "-U", "postgres", ok=False).returncode:
            assert time.monotonic() < until and server.poll() is None, "no PostgreSQL: %s" % (Path(self.socket) / "log").read_text()
            time.sleep(0.1)
        for database, sql in (("postgres", "create database shop"), ("shop", "create table orders as select generate_series(1, 100) as id")):
            self.do("psql", "-h", self.socket, "-U", "postgres", "-d", database, "-qc", sql)

    def do(self, program, *arguments, ok=True):
        return run(*self.drop, self.bin / program, *arguments, ok=ok, env={**os.environ, "LC_ALL": "C", "PGPASSWORD": self.password})


if __name__ == "__main__":
    unittest.main()
