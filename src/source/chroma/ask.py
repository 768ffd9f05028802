"""Asks one collection of a persistent directory with the real chromadb, and says what it finds as JSON.

usage: ask.py DIRECTORY REQUEST.json
The request names the collection, and perhaps a vector, or an id whose vector is taken: then the ids nearest to it are found.
"""
import json
import sys


def main():
    try:
        import chromadb
        from chromadb.config import Settings
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return
    with open(sys.argv[2]) as f:
        request = json.load(f)
    client = chromadb.PersistentClient(
        sys.argv[1], Settings(anonymized_telemetry=False), request["tenant"], request["database"]
    )
    try:
        collection = client.get_collection(request["collection"], embedding_function=None)
    except Exception as error:
        print(json.dumps({"wrong": "there is no collection %s: %s" % (request["collection"], error)}))
        return
    count, vector = collection.count(), request["vector"]
    answer = {"count": count, "nearest": [], "wrong": None}
    if request["id"] is not None:
        got = collection.get(ids=[request["id"]], include=["embeddings"])
        if not got["ids"]:
            answer["wrong"] = "there is no %s in %s" % (request["id"], request["collection"])
        else:
            vector = [float(x) for x in got["embeddings"][0]]
    if vector is not None and count > 0:
        hits = collection.query(
            query_embeddings=[vector], n_results=min(request["most"], count), include=["distances"]
        )
        answer["nearest"] = hits["ids"][0]
    print(json.dumps(answer))


main()
