#!/usr/bin/env python3
"""Snapshots of a Qdrant collection over HTTP (https://qdrant.tech/documentation/concepts/snapshots/).

    qdrant.py dump URL COLLECTION > FILE          makes a snapshot, streams it, removes it from the server
    qdrant.py restore URL COLLECTION < FILE       replaces the collection by the snapshot, checked by its SHA-256

$QDRANT_API_KEY is sent if it is set. A snapshot is of one node: in a cluster, dump every node. Aliases are not in it.
"""

import hashlib
import http.client
import json
import os
import sys
import tempfile
import urllib.parse

PIECE = 1 << 20
# A server may need long to make or take a snapshot; the limits of [source.command] end it.
PATIENCE = 24 * 3600


class Server:
    def __init__(self, url, collection):
        parts = urllib.parse.urlsplit(url)
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
        self.connect = lambda: kind(parts.hostname, parts.port, timeout=PATIENCE)
        self.base = f"{parts.path.rstrip('/')}/collections/{urllib.parse.quote(collection, safe='')}/snapshots"

    def ask(self, method, path="", body=None, headers=None):
        headers = dict(headers or {})
        if key := os.environ.get("QDRANT_API_KEY"):
            headers["api-key"] = key
        connection = self.connect()
        connection.request(method, self.base + path, body, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            sys.exit(f"{method} {self.base + path}: {answer.status} {answer.read(2000).decode(errors='replace')}")
        return answer


def dump(server):
    made = json.load(server.ask("POST", "?wait=true"))["result"]
    name = urllib.parse.quote(made["name"], safe="")
    try:
        answer, digest, length = server.ask("GET", f"/{name}"), hashlib.sha256(), 0
        while piece := answer.read(PIECE):
            digest.update(piece)
            length += len(piece)
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        if length != made["size"]:
            sys.exit(f"the snapshot has {made['size']} bytes, and {length} came")
        # Servers before 1.8 tell none.
        if made.get("checksum") and made["checksum"] != digest.hexdigest():
            sys.exit("what came is not the snapshot: its SHA-256 differs")
    finally:
        server.ask("DELETE", f"/{name}?wait=true")


def restore(server):
    boundary = hashlib.sha256(os.urandom(32)).hexdigest()
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="snapshot"; filename="snapshot"\r\nContent-Type: application/octet-stream\r\n\r\n'
    digest = hashlib.sha256()
    # The server wants the hash and the length before the bytes.
    with tempfile.TemporaryFile() as body:
        body.write(head.encode())
        while piece := sys.stdin.buffer.read(PIECE):
            digest.update(piece)
            body.write(piece)
        body.write(f"\r\n--{boundary}--\r\n".encode())
        length = body.tell()
        body.seek(0)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(length)}
        answer = server.ask("POST", f"/upload?priority=snapshot&wait=true&checksum={digest.hexdigest()}", body, headers)
    if json.load(answer).get("result") is not True:
        sys.exit("the server did not take the snapshot")


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in ("dump", "restore"):
        sys.exit(__doc__)
    {"dump": dump, "restore": restore}[sys.argv[1]](Server(sys.argv[2], sys.argv[3]))


if __name__ == "__main__":
    main()
