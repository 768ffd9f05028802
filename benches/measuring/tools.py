"""blackstart and restic as the newer benchmarks drive them: a repository in a directory, commands with everything said."""
import json, shutil

from . import measure, said, size


class Blackstart:
    """One source in a repository of its own."""

    def __init__(self, work, binary, source, name="blackstart", user=None):
        self.name, self.binary, self.source, self.user = name, binary, source, user
        self.place = work / ("repo-" + name.replace(" ", "-"))
        self.repo, self.home = self.place / "repository", self.place / "home"
        self.config, self.identity, self.said = self.home / "blackstart.toml", self.home / "blackstart/keys/recovery.key", self.home / "said.json"
        self.version = said(binary, "--version")
        self.env = {}

    def run(self, *arguments, output=None):
        return measure(self.binary, "--quiet", "--config", self.config, *arguments, env=self.env, user=self.user, output=output)

    def setup(self, repo=None):
        """A fresh repository; `source` is the text of a `[[source]]` table but for its name."""
        if self.user:
            self.user.directory(self.place)
        else:
            shutil.rmtree(self.place, ignore_errors=True)
            self.place.mkdir()
        self.run("init", "--repo", repo or self.repo)
        with self.config.open("a") as config:
            config.write('\n[[source]]\nname = "it"\n%s\n' % self.source)

    def backup(self, phase):
        """`full` is the first run, which reads everything; later runs are incremental."""
        before = size(self.repo)
        result = self.run("--json", "backup", "it", output=self.said)
        return {**result, "stored": size(self.repo) - before}

    def report(self):
        """What the last backup said of itself."""
        return json.loads(self.said.read_text())["report"]["sources"][0]

    def restore(self, to):
        """`to` is a directory that does not exist yet."""
        return self.run("restore", "it", "--to", to, "--identity", self.identity)


class Restic:
    """A directory, in a repository of its own."""
    name = "restic"

    def __init__(self, work, program, directory, name="restic"):
        self.program, self.directory, self.name = program, directory, name
        self.repo, self.cache = work / ("repo-" + name.replace(" ", "-")), work / ("cache-" + name.replace(" ", "-"))
        self.env = {"RESTIC_PASSWORD": "x", "RESTIC_CACHE_DIR": str(self.cache), "RESTIC_PROGRESS_FPS": "0"}
        self.version = said(program, "version").split(" compiled")[0]

    def run(self, *arguments):
        return measure(self.program, "-r", self.repo, "-q", *arguments, env=self.env)

    def setup(self):
        for path in self.repo, self.cache:
            shutil.rmtree(path, ignore_errors=True)
        self.run("init")

    def backup(self, phase):
        before = size(self.repo)
        result = self.run("backup", self.directory)
        return {**result, "stored": size(self.repo) - before}

    def restore(self, to):
        return self.run("restore", "latest", "--target", to)
