"""The packages: built, installed, removed, read."""
import re, shutil, tempfile, unittest
from pathlib import Path

from support import BINARY, ROOT, run


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
