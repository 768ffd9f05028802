"""Servers on loopback for the benchmarks, as a user without rights; `scripts/test-servers` installs them."""
import json, os, pwd, shutil, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path

from . import ROOT


def install():
    """What the tests start, and the benchmarks with them. The directory of what is not from Debian."""
    subprocess.run([ROOT / "scripts/test-servers"], check=True, stdout=sys.stderr)
    return Path(os.environ.get("BLACKSTART_TEST_SERVERS") or ROOT / "target/test-servers/venv")


class User:
    """Who runs the servers and all that works beside them: `nobody` where this is root, since PostgreSQL refuses root."""

    def __init__(self):
        entry = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.name, self.uid, self.gid = entry.pw_name, entry.pw_uid, entry.pw_gid

    def popen(self):
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if os.geteuid() == 0 else {}

    def directory(self, path):
        """A fresh directory of this user's."""
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True, mode=0o700)
        os.chown(path, self.uid, self.gid)
        return path


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(port, what):
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    sys.exit("%s did not start" % what)


class SeaweedFs:
    """An S3 server on loopback, on free ports, with a fresh directory below `work`."""

    def __init__(self, work, weed):
        self.directory, self.buckets = work / "seaweedfs", 0
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        ports = free_ports(8)
        identity = {"name": "bench", "credentials": [{"accessKey": "benchkey", "secretKey": "benchsecret"}], "actions": ["Admin", "Read", "Write", "List"]}
        (self.directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
        command = [weed, "-logtostderr=false", "-logdir=%s" % self.directory, "server", "-dir=%s" % self.directory, "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                   "-filer", "-s3", "-s3.config=%s" % (self.directory / "s3.json"), "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=0",
                   "-master.volumeSizeLimitMB=1024", "-master.telemetry=false", "-volume.preStopSeconds=0"]
        for part, port, grpc in zip(("master", "volume", "filer", "s3"), ports[:4], ports[4:]):
            command += ["-%s.port=%d" % (part, port), "-%s.port.grpc=%d" % (part, grpc)]
        env = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        self.server = subprocess.Popen([str(c) for c in command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.endpoint = "http://127.0.0.1:%d" % ports[3]
        self.env = {"AWS_ACCESS_KEY_ID": "benchkey", "AWS_SECRET_ACCESS_KEY": "benchsecret", "AWS_REGION": "us-east-1", "AWS_CA_BUNDLE": ""}
        wait_for(ports[3], "SeaweedFS")
        time.sleep(3)  # the port answers before the first write succeeds
        bucket = "http://127.0.0.1:%d/buckets/bench/" % ports[2]
        urllib.request.urlopen(urllib.request.Request(bucket, method="POST")).close()

    def fresh(self):
        """The address of a prefix that nobody has used."""
        self.buckets += 1
        return "%s/bench/%d" % (self.endpoint, self.buckets)

    def stop(self):
        self.server.send_signal(signal.SIGTERM)
        self.server.wait()
