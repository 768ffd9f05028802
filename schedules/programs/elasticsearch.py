#!/usr/bin/env python3
"""Snapshots of Elasticsearch or OpenSearch, through a repository of type "fs" that this machine can read.

    elasticsearch.py dump URL REPOSITORY DIRECTORY > FILE.tar
    elasticsearch.py restore URL REPOSITORY DIRECTORY < FILE.tar      into an empty repository directory; then every index of it

dump makes a snapshot, waits until it is complete, streams the directory of the repository as a tar (nothing else writes to it meanwhile,
if the repository is used by this program alone), and removes the snapshots but the newest, on which the next one builds. $ES_AUTHORIZATION is
sent as the Authorization header if it is set ("ApiKey …", "Basic …").
https://www.elastic.co/guide/en/elasticsearch/reference/current/snapshot-restore.html
"""

import http.client
import json
import os
import sys
import tarfile
import time
import urllib.parse

# A server may need long for a snapshot; the limits of [source.command] end it.
PATIENCE = 24 * 3600
PREFIX = "blackstart-"


class Server:
    def __init__(self, url, repository):
        parts = urllib.parse.urlsplit(url)
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
        self.connect = lambda: kind(parts.hostname, parts.port, timeout=PATIENCE)
        self.base = f"{parts.path.rstrip('/')}/_snapshot/{urllib.parse.quote(repository, safe='')}"

    def ask(self, method, path, body=None):
        headers = {"Content-Type": "application/json"}
        if authorization := os.environ.get("ES_AUTHORIZATION"):
            headers["Authorization"] = authorization
        connection = self.connect()
        connection.request(method, self.base + path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            sys.exit(f"{method} {self.base + path}: {answer.status} {text[:2000].decode(errors='replace')}")
        return json.loads(text)

    def ours(self):
        listed = self.ask("GET", f"/{PREFIX}*")["snapshots"]
        return sorted(listed, key=lambda snapshot: snapshot["start_time_in_millis"])


def whole(snapshot):
    """Nothing else than SUCCESS is a backup: PARTIAL lacks shards."""
    state, failed = snapshot["state"], snapshot["shards"]["failed"]
    if state != "SUCCESS" or failed:
        sys.exit(f"the snapshot {snapshot['snapshot']} is {state}, {failed} shards failed")


def plain(entry):
    """The same bytes for the same file, whoever owns it."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def dump(server, directory):
    name = f"{PREFIX}{time.strftime('%Y%m%d%H%M%S', time.gmtime())}-{os.getpid()}"
    body = {"include_global_state": True, "metadata": {"taken_by": "blackstart"}}
    whole(server.ask("PUT", f"/{name}?wait_for_completion=true", body)["snapshot"])
    for old in server.ours():
        if old["snapshot"] != name:
            server.ask("DELETE", f"/{old['snapshot']}")
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for folder, folders, files in os.walk(directory, onerror=fail):
            folders.sort()
            for file in sorted(files):
                path = os.path.join(folder, file)
                tar.add(path, os.path.relpath(path, directory), recursive=False, filter=plain)
    whole(server.ask("GET", f"/{name}")["snapshots"][0])


def fail(error):
    raise error


def restore(server, directory):
    if os.listdir(directory):
        sys.exit(f"{directory} is not empty: take the directory of a new repository")
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        for entry in tar:
            path = os.path.normpath(entry.name)
            if not entry.isfile() or path.startswith(("/", "..")):
                sys.exit(f"{entry.name} does not belong into a repository")
            target = os.path.join(directory, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "xb") as out, tar.extractfile(entry) as data:
                while piece := data.read(1 << 20):
                    out.write(piece)
    while sys.stdin.buffer.read(1 << 20):  # the padding of a tar
        pass
    name = server.ours()[-1]["snapshot"]
    restored = server.ask("POST", f"/{name}/_restore?wait_for_completion=true", {"indices": "*,-.*", "include_global_state": False})
    if restored["snapshot"]["shards"]["failed"]:
        sys.exit(f"{restored['snapshot']['shards']['failed']} shards were not restored")


def main():
    if len(sys.argv) != 5 or sys.argv[1] not in ("dump", "restore"):
        sys.exit(__doc__)
    {"dump": dump, "restore": restore}[sys.argv[1]](Server(sys.argv[2], sys.argv[3]), sys.argv[4])


if __name__ == "__main__":
    main()
