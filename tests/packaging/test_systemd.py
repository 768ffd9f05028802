"""The unit, its drop-ins and its user, each tried with systemd's own tools."""
import json

from support import BINARY, PACKAGING, Scratch, run


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
