//! Every kind of source, broken in every way that a green backup can hide: empty, truncated, stale, of another source, of another version.
//! The backup is real each time, and the drill of a plan must catch what is wrong, and name it.

use super::asked::{add, empty, replace, says};
use super::plan;
use crate::support::binary::{expect, run};
use crate::support::engines::{Server, python};
use crate::support::postgres::{Cluster, installed};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Backs up what is there now; the drill of the plan must fail, and say `words`.
fn caught(at: &Path, backup: &[&str], words: &[&str]) {
    let ran = run(at, &[&["backup"], backup].concat());
    assert!([0, 4].contains(&ran.code), "{}", ran.all());
    let drill = expect(at, &["drill", "--plan", "p"], 4);
    assert!(drill.out.contains("Plan p (drill): FAILED"), "{}", drill.all());
    says(&drill, words);
}

/// Backs up what is there now; nothing is wrong with it.
fn good(at: &Path) {
    expect(at, &["backup"], 0);
    expect(at, &["drill", "--plan", "p"], 0);
}

#[test]
fn sqlite() {
    let home = empty();
    let at = home.path();
    add(at, "orders", "sqlite", "path = \"orders.db\"");
    let sql = |text: &str| rusqlite::Connection::open(at.join("orders.db")).unwrap().execute_batch(text).unwrap();
    let fill = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 300) insert into orders select i, datetime('now') from n";
    sql(&format!(
        "create table orders (n integer, at text); {fill}; pragma application_id = 7; pragma user_version = 3"
    ));
    let text = r#"
[[stage]]
name = "orders"
restore = { source = "orders", to = "x", identity = "7" }
on_failure = "continue"
[[stage]]
name = "look"
check = [
  { name = "orders there", sql = "select count(*) from orders", at_least = 100 },
  { name = "recent", newest = "select max(at) from orders", within = "1h" },
  { name = "schema", sql = "pragma user_version", equals = "3" },
]"#;
    // A stage whose restore does not pass keeps the others from being asked, unless they do not need it.
    plan(at, "p", &text.replace("name = \"look\"", "name = \"look\"\nafter = []"));
    good(at);
    sql("delete from orders");
    caught(at, &[], &["zero rows: 0, and 300 before", "FAILED  orders there: expected at least 100, found: 0"]);
    sql(&format!("{fill}; delete from orders where n > 20"));
    caught(at, &[], &["a sudden shrink: 20 rows", "FAILED  orders there: expected at least 100, found: 20"]);
    sql(&format!("delete from orders; {fill}; update orders set at = datetime('now', '-5 hours')"));
    caught(at, &[], &["FAILED  recent: ", "5h"]);
    sql("update orders set at = datetime('now'); pragma application_id = 8");
    says(&expect(at, &["backup"], 4), &["another source: its application_id is 8, and was 7"]);
    caught(at, &["--accept-change"], &["wrong source: it is of 8, and the plan is made for 7"]);
    sql("pragma application_id = 7; pragma user_version = 4");
    caught(at, &["--accept-change"], &["FAILED  schema: expected 3, found: 4"]);
    sql("drop table orders");
    caught(at, &["--accept-change"], &["FAILED  orders there: ", "no such table: orders"]);
}

#[test]
fn a_tree() {
    let home = empty();
    let at = home.path();
    let tree = at.join("app");
    let sha256 = |text: &str| blackstart::repository::layout::Hash::of(text.as_bytes()).to_string();
    let fill = || {
        drop(fs::remove_dir_all(&tree));
        fs::create_dir(&tree).unwrap();
        (0..40).for_each(|n| fs::write(tree.join(n.to_string()), n.to_string().repeat(8000)).unwrap());
        fs::write(tree.join("name"), "shop").unwrap();
        fs::write(tree.join("version"), "3").unwrap();
    };
    fill();
    add(at, "app", "files", "path = \"app\"");
    plan(
        at,
        "p",
        &format!(
            r#"
[[stage]]
name = "app"
restore = {{ source = "app", to = "x" }}
on_failure = "continue"
[[stage]]
name = "look"
after = []
check = [
  {{ name = "files", files = "${{copy.app}}", at_least = 40 }},
  {{ name = "recent", files = "${{copy.app}}", within = "1h" }},
  {{ name = "application", file = "${{copy.app}}/name", sha256 = "{}" }},
  {{ name = "release", file = "${{copy.app}}/version", sha256 = "{}" }},
]"#,
            sha256("shop"),
            sha256("3")
        ),
    );
    good(at);
    fs::remove_dir_all(&tree).unwrap();
    fs::create_dir(&tree).unwrap();
    caught(at, &[], &["empty: 0 bytes", "FAILED  files: expected at least 40, found: 0"]);
    fill();
    (10..40).for_each(|n| fs::write(tree.join(n.to_string()), "").unwrap());
    caught(at, &[], &["a sudden shrink: ", "bytes, and"]);
    fill();
    for entry in fs::read_dir(&tree).unwrap() {
        let then = SystemTime::now() - Duration::from_secs(5 * 3600);
        let times = fs::FileTimes::new().set_modified(then);
        fs::File::options().write(true).open(entry.unwrap().path()).unwrap().set_times(times).unwrap();
    }
    caught(at, &[], &["FAILED  recent: expected not older than 1h", "5h"]);
    fill();
    fs::write(tree.join("name"), "films").unwrap();
    caught(at, &[], &["FAILED  application: expected"]);
    fill();
    fs::write(tree.join("version"), "4").unwrap();
    caught(at, &[], &["FAILED  release: expected"]);
}

#[test]
fn redis() {
    let server = Server::start("redis-server", "");
    let home = empty();
    let at = home.path();
    add(at, "cache", "redis", &format!("url = \"{}\"", server.url()));
    let seconds = |ago: u64| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        (now - ago).to_string()
    };
    let fill = |server: &Server, app: &str, ago: u64| {
        server.run("FLUSHALL");
        (0..60).for_each(|n| drop(server.run(&format!("SET session:{n} somebody"))));
        server.run(&format!("SET app {app}"));
        server.run(&format!("SET at {}", seconds(ago)));
    };
    fill(&server, "shop", 0);
    let text = r#"
[[stage]]
name = "cache"
restore = { source = "cache", to = "x", version = "7" }
on_failure = "continue"
[[stage]]
name = "look"
after = []
check = [
  { name = "sessions", redis = ["DBSIZE"], at_least = 50 },
  { name = "recent", redis = ["GET", "at"], within = "1h" },
  { name = "application", redis = ["GET", "app"], equals = "shop" },
]"#;
    plan(at, "p", text);
    good(at);
    fill(&server, "shop", 0);
    (10..60).for_each(|n| drop(server.run(&format!("DEL session:{n}"))));
    caught(at, &[], &["a sudden shrink: 12 rows", "FAILED  sessions: expected at least 50, found: 12"]);
    fill(&server, "shop", 5 * 3600);
    caught(at, &[], &["FAILED  recent: ", "5h"]);
    fill(&server, "films", 0);
    caught(at, &[], &["FAILED  application: expected shop, found: films"]);
    server.run("FLUSHALL");
    says(&expect(at, &["backup"], 1), &["it is empty, and had 62 keys"]);
    caught(at, &["--accept-change"], &["FAILED  sessions: expected at least 50, found: 0"]);
    let newer = Server::start("valkey-9", "");
    fill(&newer, "shop", 0);
    replace(at, &server.url(), &newer.url());
    caught(at, &[], &["wrong version: it was written by version 9."]);
}

/// Runs Python with `client`, a `PersistentClient` of the directory.
fn chroma_client(directory: &Path, code: &str) {
    let begin = "import sys, chromadb\nfrom chromadb.config import Settings\n\
                 client = chromadb.PersistentClient(sys.argv[1], Settings(anonymized_telemetry=False))\n\
                 def fill(name, count):\n    c = client.get_or_create_collection(name, embedding_function=None)\n    \
                 c.upsert(ids=['id%d' % i for i in range(count)], embeddings=[[float(i), 1.0, 2.0] for i in range(count)])\n";
    let mut python = Command::new(python("1.5.9"));
    let output = python.args(["-B", "-c", &format!("{begin}{code}")]).arg(directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn chroma() {
    let home = empty();
    let at = home.path();
    let vectors = at.join("vectors");
    chroma_client(&vectors, "fill('alpha', 60)\nfill('beta', 5)\n");
    let newest = python("1.5.9").display().to_string();
    add(at, "vectors", "chroma", &format!("path = \"vectors\"\n[source.chroma]\npython = \"{newest}\""));
    let text = r#"
[[stage]]
name = "vectors"
restore = { source = "vectors", to = "x" }
on_failure = "continue"
[[stage]]
name = "look"
after = []
timeout = "2m"
check = [
  { name = "ids", chroma = "alpha", at_least = 50 },
  { name = "recent", source = "vectors", newest = "select max(created_at) from embeddings", within = "1h" },
]"#;
    plan(at, "p", text);
    good(at);
    chroma_client(
        &vectors,
        "client.get_collection('alpha', embedding_function=None).delete(ids=['id%d' % i for i in range(10, 60)])\n",
    );
    caught(at, &[], &["a sudden shrink: 15 rows, and 65 before", "FAILED  ids: expected at least 50, found: 10"]);
    chroma_client(&vectors, "fill('alpha', 60)\n");
    let sql =
        |text: &str| rusqlite::Connection::open(vectors.join("chroma.sqlite3")).unwrap().execute_batch(text).unwrap();
    sql("update embeddings set created_at = datetime('now', '-5 hours')");
    caught(at, &[], &["FAILED  recent: ", "5h"]);
    chroma_client(&vectors, "for c in client.list_collections(): client.delete_collection(c.name)\n");
    caught(at, &[], &["zero rows: 0, and 65 before", "there is no collection alpha"]);
    chroma_client(&vectors, "fill('films', 60)\nfill('actors', 5)\n");
    caught(at, &[], &["another source: none of its 2 tables", "there is no collection alpha"]);
    chroma_client(
        &vectors,
        "for c in client.list_collections(): client.delete_collection(c.name)\nfill('alpha', 60)\nfill('beta', 5)\n",
    );
    replace(at, &newest, &python("0.5.23").display().to_string());
    caught(at, &[], &["opened by chromadb"]);
}

#[test]
fn postgres_physical_and_logical() {
    let cluster = Cluster::new(15);
    let home = empty();
    let at = home.path();
    let (url, bin) = (cluster.url("postgres"), installed(17).display().to_string());
    add(at, "pg", "postgres", &format!("url = \"{url}\"\n[source.postgres]\nbin = \"{bin}\""));
    add(at, "dumps", "postgres", &format!("url = \"{url}\"\n[source.postgres]\nmode = \"logical\"\nbin = \"{bin}\""));
    let identity = |cluster: &Cluster| cluster.value("select system_identifier from pg_control_system()");
    let fill = |cluster: &Cluster| {
        cluster.sql("drop table if exists orders; create table orders (n int, at timestamptz); insert into orders select n, now() from generate_series(1, 5000) n");
    };
    fill(&cluster);
    let known = identity(&cluster);
    let stage = |s: &str| {
        format!(
            "[[stage]]\nname = \"{s}\"\nafter = []\nrestore = {{ source = \"{s}\", to = \"x/{s}\", version = \"15\", identity = \"{known}\" }}\non_failure = \"continue\"\n"
        )
    };
    let ask = |s: &str| {
        format!(
            "{{ name = \"{s} rows\", source = \"{s}\", sql = \"select count(*) from orders\", at_least = 1000 }},\n\
             {{ name = \"{s} recent\", source = \"{s}\", newest = \"select max(at) from orders\", within = \"1h\" }},\n"
        )
    };
    let asked = ask("pg") + &ask("dumps");
    let stages = stage("pg") + &stage("dumps");
    plan(at, "p", &format!("{stages}[[stage]]\nname = \"look\"\nafter = []\ncheck = [\n{asked}]\n"));
    good(at);
    cluster.sql("truncate orders");
    caught(at, &[], &["its tables are empty: 0 bytes", "zero rows: 0, and 5000 before"]);
    fill(&cluster);
    cluster.sql("delete from orders where n > 300");
    cluster.sql("vacuum full orders");
    caught(
        at,
        &[],
        &["bytes of tables, and", "a sudden shrink: 300 rows", "FAILED  pg rows: expected at least 1000, found: 300"],
    );
    fill(&cluster);
    cluster.sql("update orders set at = now() - interval '5 hours'");
    caught(at, &[], &["FAILED  pg recent: ", "FAILED  dumps recent: ", "5h"]);

    // Another cluster of a newer version behind the same address.
    let newer = Cluster::new(17);
    fill(&newer);
    replace(at, &url, &newer.url("postgres"));
    let refused = expect(at, &["backup"], 1);
    says(&refused, &["another cluster answers at this address"]);
    let wrong_source = format!("wrong source: it is of {}, and the plan is made for {known}", identity(&newer));
    caught(at, &["--accept-change"], &["wrong version: it was written by version 17.", &wrong_source]);
}
