"""The Containerfile, the Kubernetes manifest and the Compose file, read by the tools that know them. `test_container` runs them."""
import re, tempfile
from pathlib import Path

from support import BINARY, PACKAGING, VENV, Scratch, documents, run


class Manifests(Scratch):
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
        agent = documents("compose.yaml")[0]["services"]["blackstart"]
        self.assertTrue(agent["read_only"] and agent["cap_drop"] == ["ALL"])

    def test_the_secrets_of_compose_belong_to_whom_it_runs_as(self):
        # Compose takes no owner for the files of secrets: what is documented must be the user that the container has.
        text = (PACKAGING / "compose.yaml").read_text()
        service = documents("compose.yaml")[0]["services"]["blackstart"]
        self.assertIn("chown %s packaging/secrets/*" % service["user"], text)
        self.assertIn("USER %s" % service["user"], (PACKAGING / "container/Containerfile").read_text())

    def test_the_image_can_dump_the_database_beside_it(self):
        """Debian's client is of one version for each release; pg_dump refuses a newer server."""
        client = {"bookworm": 15, "trixie": 17}
        base = re.search(r"^ARG BASE=\S+debian:(\w+)-slim", (PACKAGING / "container/Containerfile").read_text(), re.M).group(1)
        server = documents("compose.yaml")[0]["services"]["db"]["image"]
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
