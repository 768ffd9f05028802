"""Containers without an engine's daemon: buildah builds the image of the Containerfile, podman and runc run it, on a Debian that
`scripts/test-servers` has made. Only root may do so: where the tests run as somebody else, through sudo.

What is kept beside the test servers, in `containers-*`, is the layer that apt makes, so that only the first run takes minutes."""
import atexit, functools, json, os, re, subprocess, tempfile, time, unittest, uuid, zlib

from support import BINARY, PACKAGING, VENV, run

RIGHTS = [] if os.geteuid() == 0 else ["sudo", "-n"]
CACHE = VENV.parent.parent
DEBIAN, DEBIAN_IMAGE = CACHE / "debian-trixie.tar", "localhost/debian:trixie"
# Handed to the build, and to be found nowhere in the image.
CANARY = "canary-of-the-builder-7d1f"
PATIENCE = 60


class Engine:
    """A store of images."""

    def __init__(self):
        # Overlays are quick; where they cannot be mounted (a test machine that is a container itself), whole copies do.
        for driver in ("overlay", "vfs"):
            here = CACHE / ("containers-" + driver)
            # Podman takes no more than 50 characters for what it runs in, wherever the clone lies; and the same each time, as the store names it.
            running = "/run/blackstart-test-%08x" % zlib.crc32(str(here).encode())
            self.store = ["--root", here, "--runroot", running, "--storage-driver", driver]
            if self.buildah("info", ok=False).returncode == 0:
                return
        raise AssertionError("buildah can keep no images in %s:\n%s" % (CACHE, self.buildah("info", ok=False).stdout))

    def buildah(self, *arguments, **options):
        return run(*RIGHTS, "buildah", *self.store, *arguments, **options)

    def podman_command(self, *arguments):
        return [*RIGHTS, "podman", *self.store, "--runtime", "runc", "--cgroup-manager", "cgroupfs", *map(str, arguments)]

    def podman(self, *arguments, **options):
        return run(*self.podman_command(*arguments), **options)

    def build(self, stage):
        """The Containerfile as it is, with the files of `stage`; gives the image's name."""
        self.take_debian_in()
        image = "localhost/blackstart:test-%s" % uuid.uuid4().hex[:12]
        build = ["bud", "--isolation=chroot", "--layers", "--pull-never", "--build-arg", "BASE=" + DEBIAN_IMAGE, "-t", image,
                 "-f", PACKAGING / "container/Containerfile", stage]
        said = self.buildah(*build, env={**os.environ, "AWS_SECRET_ACCESS_KEY": CANARY, "PGPASSWORD": CANARY}).stdout
        # What apt has installed stays when the image goes: the first layer that is built.
        tools = re.search(r"^STEP 2/.*?^--> (?:Using cache )?([0-9a-f]+)$", said, re.M | re.S).group(1)
        self.buildah("tag", tools, "localhost/blackstart:tools")
        return image

    def take_debian_in(self):
        if self.buildah("inspect", "--type=image", DEBIAN_IMAGE, ok=False).returncode == 0:
            return
        if not DEBIAN.exists():
            raise AssertionError("%s is missing: scripts/test-servers makes it" % DEBIAN)
        container = self.buildah("from", "scratch").stdout.split()[-1]
        self.buildah("add", "-q", container, DEBIAN, "/")
        self.buildah("commit", "-q", "--rm", container, DEBIAN_IMAGE)


class Container:
    """A container that runs until the test ends."""

    def __init__(self, engine, image, options, arguments):
        self.engine, self.name = engine, "blackstart-test-%s" % uuid.uuid4().hex[:12]
        self.log = tempfile.TemporaryFile("w+")
        command = engine.podman_command("run", "--rm", "--name", self.name, *options, image, *arguments)
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def inside(self, *command, ok=True, options=()):
        return self.engine.podman("exec", *options, self.name, *command, ok=ok)

    def wait(self, what, wanted):
        """Until `wanted` gives something; gives that."""
        until = time.monotonic() + PATIENCE
        while True:
            found = wanted()
            if found:
                return found
            if self.process.poll() is not None:
                raise AssertionError("%s: the container has ended with %d:\n%s" % (what, self.process.returncode, self.said()))
            if time.monotonic() > until:
                raise AssertionError("%s: not within %d s:\n%s" % (what, PATIENCE, self.said()))
            time.sleep(0.2)

    def stop(self, grace):
        """As Kubernetes does: SIGTERM, and SIGKILL after the grace. Gives the exit code."""
        self.engine.podman("stop", "--time", grace, self.name)
        return self.process.wait(PATIENCE)

    def end(self):
        self.engine.podman("rm", "--force", "--ignore", "--time", 0, self.name, ok=False)
        self.process.wait(PATIENCE)
        self.log.close()


@functools.cache
def built():
    """The engine and the image, once for all tests; the image goes when they end."""
    engine = Engine()
    with tempfile.TemporaryDirectory(prefix="blackstart-image-") as stage:
        run("scripts/package", "--stage-only", "--binary", BINARY, "--out", stage)
        image = engine.build(stage)
    atexit.register(engine.buildah, "rmi", "--force", image)
    return engine, image


class Contained(unittest.TestCase):
    """Tests with the image."""

    @classmethod
    def setUpClass(cls):
        cls.engine, cls.image = built()

    def setUp(self):
        # Below /tmp, whose parents every user may pass.
        self.home = tempfile.mkdtemp(prefix="blackstart-volumes-")
        os.chmod(self.home, 0o755)
        self.addCleanup(run, *RIGHTS, "rm", "-rf", self.home)

    def volume(self, name, owner, mode, files={}, file_mode="0644"):
        """A directory of the host, with files of the same owner."""
        path = "%s/%s" % (self.home, name)
        run(*RIGHTS, "mkdir", "-p", path)
        for file, text in files.items():
            run(*RIGHTS, "tee", "%s/%s" % (path, file), input=text)
            run(*RIGHTS, "chmod", file_mode, "%s/%s" % (path, file))
        run(*RIGHTS, "chown", "-R", owner, path)
        run(*RIGHTS, "chmod", mode, path)
        return path

    def read(self, path):
        return run(*RIGHTS, "cat", path).stdout

    def run_in(self, options, *arguments, ok=True, entrypoint=None):
        """One command in a container of its own."""
        more = ["--entrypoint", json.dumps([entrypoint])] if entrypoint else []
        return self.engine.podman("run", "--rm", *options, *more, self.image, *arguments, ok=ok)

    def start(self, options, *arguments):
        container = Container(self.engine, self.image, options, arguments)
        self.addCleanup(container.end)
        return container


# A container of nobody's: no network but its own loopback, and no entry in /etc/passwd that podman would make where others do not.
# Limits are set because raising them, podman's default, is not everywhere allowed.
APART = ["--network=none", "--passwd=false", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]


def mounts(pairs):
    return [word for inside, outside, mode in pairs for word in ("-v", "%s:%s:%s" % (outside, inside, mode))]


def of_kubernetes(pod, container):
    """What `podman run` is told so that a container runs by its manifest's settings. A setting that is not known here is an error: it would not be tried."""
    security = dict(container["securityContext"])
    options = [*APART, "--user", str(security.pop("runAsUser")), "--group-add", str(pod["securityContext"]["fsGroup"])]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, "podman's default is tried"
    assert security.pop("runAsNonRoot") is True
    if security.pop("readOnlyRootFilesystem"):
        options += ["--read-only", "--read-only-tmpfs=false"]
    if not security.pop("allowPrivilegeEscalation"):
        options.append("--security-opt=no-new-privileges")
    options += ["--cap-drop=%s" % name for name in security.pop("capabilities")["drop"]]
    assert not security, "not tried: %s" % security
    memory = re.fullmatch(r"(\d+)Mi", container["resources"]["limits"]["memory"]).group(1)
    options.append("--memory=%sm" % memory)
    return options + ["--env=%(name)s=%(value)s" % pair for pair in container["env"]]


def of_compose(service):
    """The same for a service of a Compose file."""
    options = [*APART, "--user", service["user"]]
    if service["read_only"]:
        options += ["--read-only", "--read-only-tmpfs=false"]
    options += ["--cap-drop=%s" % name for name in service["cap_drop"]]
    options += ["--security-opt=%s" % option.replace(":true", "") for option in service["security_opt"]]
    return options + ["--env=%s=%s" % pair for pair in service["environment"].items()]
