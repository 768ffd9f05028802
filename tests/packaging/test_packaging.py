"""Units, packages and manifests, each tried with the real tool. BLACKSTART names the binary to package."""
import json, os, re, shutil, subprocess, sys, tempfile, unittest
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
BINARY = Path(os.environ["BLACKSTART"]).resolve()
VENV = Path(sys.executable).parent


def run(*command, ok=True, **options):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, **options)
    if ok and done.returncode:
        raise AssertionError("%s ended with %d:\n%s" % (" ".join(map(str, command)), done.returncode, done.stdout))
    return done


class Scratch(unittest.TestCase):
    def setUp(self):
        self.scratch = Path(tempfile.mkdtemp(prefix="blackstart-packaging-"))
        self.addCleanup(shutil.rmtree, self.scratch)


class Systemd(Scratch):
    def unit(self, change=lambda text: text):
        unit = self.scratch / "blackstart.service"
        text = (PACKAGING / "systemd/blackstart.service").read_text().replace("/usr/bin/blackstart", str(BINARY))
        unit.write_text(change(text))
        return unit

    def verify(self, unit, ok=True):
        return run("systemd-analyze", "--man=no", "--recursive-errors=no", "verify", unit, ok=ok)

    def test_the_unit_is_understood_in_every_line(self):
        self.assertEqual(self.verify(self.unit()).stdout.strip(), "")
        typo = self.verify(self.unit(lambda text: text.replace("ProtectClock", "ProtectClok")), ok=False)
        self.assertIn("ProtectClok", typo.stdout)

    def test_the_unit_is_hardened(self):
        # 0 is safe, 100 is unsafe.
        run("systemd-analyze", "security", "--offline=true", "--threshold=20", self.unit())

    def test_the_drop_in_that_is_printed_is_understood(self):
        home = self.scratch / "home"
        (home / "tree").mkdir(parents=True)
        run(BINARY, "protect", home / "tree", "--repo", home / "repo", "--config", home / "blackstart.toml")
        with open(home / "blackstart.toml", "a") as config:
            config.write('\n[agent]\nmetrics_file = "/srv/metrics/blackstart.prom"\n')
        checked = run(BINARY, "--config", home / "blackstart.toml", "check", "--service", "--json", ok=False)
        drop_in = json.loads(checked.stdout)["report"]["drop_in"]
        self.assertIn("ReadWritePaths=/srv/metrics\n", drop_in)
        unit = self.unit()
        (self.scratch / "blackstart.service.d").mkdir()
        (self.scratch / "blackstart.service.d/paths.conf").write_text(drop_in)
        self.assertEqual(self.verify(unit).stdout.strip(), "")
        (self.scratch / "blackstart.service.d/paths.conf").write_text(drop_in.replace("ReadWritePaths", "ReadWritePath"))
        self.assertIn("ReadWritePath", self.verify(unit, ok=False).stdout, "the drop-in is read at all")

    def test_the_user_can_be_made(self):
        said = run("systemd-sysusers", "--dry-run", PACKAGING / "systemd/blackstart.sysusers").stdout
        self.assertIn("blackstart", said)


class Packages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = Path(tempfile.mkdtemp(prefix="blackstart-packages-"))
        cls.addClassCleanup(shutil.rmtree, cls.scratch)
        run("scripts/package", "--binary", BINARY, "--out", cls.scratch / "out")
        cls.deb, cls.rpm = (next((cls.scratch / "out").glob("*." + kind)) for kind in ("deb", "rpm"))

    WANTED = ["usr/bin/blackstart", "usr/lib/systemd/system/blackstart.service", "usr/lib/sysusers.d/blackstart.conf",
              "usr/share/man/man1/blackstart.1.gz", "usr/share/man/man1/blackstart-restore.1.gz", "usr/share/blackstart/recover.py", "usr/share/blackstart/recover-log.py",
              "usr/share/bash-completion/completions/blackstart", "usr/share/doc/blackstart/copyright"]

    def test_the_deb_installs_and_leaves_nothing(self):
        root = self.scratch / "root"
        for folder in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "etc"):
            (root / folder).mkdir(parents=True)
        (root / "var/lib/dpkg/status").touch()
        dpkg = ["dpkg", "--root=%s" % root, "--force-depends", "--force-script-chrootless", "--log=/dev/null"]
        run(*dpkg, "-i", self.deb)
        for path in self.WANTED:
            self.assertTrue((root / path).is_file(), path)
        self.assertRegex(run(root / "usr/bin/blackstart", "--version").stdout, r"^blackstart \d")
        self.assertIn("blackstart", (root / "etc/passwd").read_text())
        self.assertEqual((root / "etc/blackstart").stat().st_mode & 0o777, 0o750)
        (root / "etc/blackstart/blackstart.toml").write_text("# the operator's own\n")
        run(*dpkg, "-r", "blackstart")
        self.assertTrue((root / "etc/blackstart/blackstart.toml").exists(), "removal took the operator's configuration")
        left = [p for p in root.rglob("*") if "blackstart" in p.name and p.is_file() and "dpkg" not in str(p.relative_to(root))]
        self.assertEqual(left, [root / "etc/blackstart/blackstart.toml"])

    def test_the_rpm_has_the_same_files(self):
        listed = run("rpm", "-qlp", "--nosignature", self.rpm).stdout.split("\n")
        for path in self.WANTED:
            self.assertIn("/" + path, listed)

    def test_what_the_job_files_name_is_there(self):
        named = {p for job in (ROOT / "schedules").glob("*.toml") for p in re.findall(r"/usr/share/blackstart/[^\s\"]+", job.read_text())}
        listed = run("rpm", "-qlp", "--nosignature", self.rpm).stdout.split("\n")
        self.assertTrue(named)
        self.assertLessEqual(named, set(listed))

    def test_the_libc_is_stated(self):
        self.assertRegex(run("dpkg-deb", "-f", self.deb, "Depends").stdout, r"libc6 \(>= 2\.\d+\)")

    def test_every_verb_has_a_page(self):
        verbs = set(re.findall(r"^  ([a-z-]+)  ", run(BINARY, "--help").stdout, re.M))
        pages = {p.name for p in (self.scratch / "out/man").iterdir()}
        self.assertGreater(len(verbs), 10)
        self.assertEqual({"blackstart-%s.1.gz" % verb for verb in verbs} | {"blackstart.1.gz"}, pages)


class Containers(Scratch):
    def test_the_containerfile_has_no_findings(self):
        run(VENV / "hadolint", PACKAGING / "container/Containerfile")

    def test_the_manifest_is_valid(self):
        manifest = PACKAGING / "kubernetes/sidecar.yaml"
        run(VENV / "kubernetes-validate", "--strict", manifest)
        broken = self.scratch / "broken.yaml"
        broken.write_text(manifest.read_text().replace("livenessProbe", "liveProbe"))
        self.assertNotEqual(run(VENV / "kubernetes-validate", "--strict", broken, ok=False).returncode, 0)

    def test_the_sidecar_runs_without_rights(self):
        pod = next(d for d in documents("kubernetes/sidecar.yaml") if d["kind"] == "StatefulSet")["spec"]["template"]["spec"]
        sidecar = pod["initContainers"][0]
        self.assertEqual(sidecar["restartPolicy"], "Always")
        self.assertTrue(sidecar["securityContext"]["readOnlyRootFilesystem"] and sidecar["securityContext"]["runAsNonRoot"])
        agent = next(iter(documents("compose.yaml")))["services"]["blackstart"]
        self.assertTrue(agent["read_only"] and agent["cap_drop"] == ["ALL"])

    def test_the_secrets_of_compose_belong_to_whom_it_runs_as(self):
        # Compose takes no owner for the files of secrets: what is documented must be the user that the container has.
        text = (PACKAGING / "compose.yaml").read_text()
        service = next(iter(documents("compose.yaml")))["services"]["blackstart"]
        self.assertIn("chown %s packaging/secrets/*" % service["user"], text)
        self.assertIn("USER %s" % service["user"], (PACKAGING / "container/Containerfile").read_text())

    def test_the_image_can_dump_the_database_beside_it(self):
        """Debian's client is of one version for each release; pg_dump refuses a newer server."""
        client = {"bookworm": 15, "trixie": 17}
        base = re.search(r"^ARG BASE=\S+debian:(\w+)-slim", (PACKAGING / "container/Containerfile").read_text(), re.M).group(1)
        server = next(iter(documents("compose.yaml")))["services"]["db"]["image"]
        self.assertGreaterEqual(client[base], int(server.rsplit(":", 1)[1]))

    def test_the_configurations_in_them_are_valid(self):
        settings = next(d for d in documents("kubernetes/sidecar.yaml") if d["kind"] == "ConfigMap")["data"]
        self.loads(settings["blackstart.toml"], {"app.toml": settings["app.toml"]})
        self.loads((PACKAGING / "blackstart.example.toml").read_text(), {})

    def loads(self, config, jobs):
        """Read to the end: what is missing is the repository, not a key of the configuration."""
        home = Path(tempfile.mkdtemp(dir=self.scratch))
        config = re.sub(r'^repository = .*', 'repository = "%s/none"' % home, config, flags=re.M)
        (home / "blackstart.toml").write_text(config)
        (home / "schedules").mkdir()
        for name, text in jobs.items():
            (home / "schedules" / name).write_text(text)
        done = run(BINARY, "--config", home / "blackstart.toml", "backup", ok=False)
        self.assertEqual(done.returncode, 10, done.stdout)


def documents(name):
    return yaml.safe_load_all((PACKAGING / name).read_text())


if __name__ == "__main__":
    unittest.main()
