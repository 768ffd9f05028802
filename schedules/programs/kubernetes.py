#!/usr/bin/env python3
"""ConfigMaps and Secrets of a cluster, in the form in which they can be applied again.

    kubernetes.py [ARGUMENTS OF kubectl get …] > objects.json       for example: --all-namespaces, or --namespace shop
    kubectl apply --server-side -f objects.json

Left out is what belongs to the object's life in its cluster (resourceVersion, uid, …) and what the cluster makes by itself: tokens of
service accounts, the root certificate in each namespace, objects that another object owns. Sorted, so that equal objects give equal bytes.
"""

import json
import subprocess
import sys

LIFE = ("creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")
APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def made_by_the_cluster(item):
    if item.get("type") in ("kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token"):
        return True
    if item["kind"] == "ConfigMap" and item["metadata"]["name"] in ("kube-root-ca.crt", "openshift-service-ca.crt"):
        return True
    return bool(item["metadata"].get("ownerReferences"))


def stripped(item):
    metadata = {key: value for key, value in item["metadata"].items() if key not in LIFE}
    annotations = {key: value for key, value in metadata.pop("annotations", {}).items() if key != APPLIED}
    if annotations:
        metadata["annotations"] = annotations
    rest = {key: value for key, value in item.items() if key not in ("metadata", "status")}
    return {**rest, "metadata": metadata}


def main():
    command = ["kubectl", "get", "configmaps,secrets", "--output", "json", "--chunk-size", "500", *sys.argv[1:]]
    # Its errors go to our stderr; its exit code counts.
    listed = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if listed.get("kind") != "List" or "items" not in listed:
        sys.exit("kubectl get gave no list")
    items = [stripped(item) for item in listed["items"] if not made_by_the_cluster(item)]
    items.sort(key=lambda item: (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]))
    json.dump({"apiVersion": "v1", "kind": "List", "items": items}, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"kubectl exited with {error.returncode}")
