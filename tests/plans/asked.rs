//! Copies of PostgreSQL, Redis and Chroma are asked by their real engines, in plans and by `bisect`; what this machine lacks is no fault of a backup.

use super::plan;
use crate::support::binary::{Ran, configure, expect};
use crate::support::engines::{Server, make, python};
use crate::support::postgres::{Cluster, installed};
use std::fs;
use std::path::Path;

/// A repository without sources.
pub fn empty() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    expect(home.path(), &["init", "--repo", "repo"], 0);
    configure(home.path(), "scratch = \"scratch\"\n");
    home
}

pub fn add(at: &Path, name: &str, kind: &str, lines: &str) {
    configure(at, &format!("[[source]]\nname = \"{name}\"\nkind = \"{kind}\"\n{lines}\n"));
}

pub fn replace(at: &Path, from: &str, to: &str) {
    let path = at.join("blackstart.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

/// A plan that restores `sources` and makes `checks`, and what its drill says.
fn drill(at: &Path, sources: &[&str], checks: &str, code: i32) -> Ran {
    let stage = |s: &&str| format!("[[stage]]\nname = \"{s}\"\nrestore = {{ source = \"{s}\", to = \"x/{s}\" }}\n");
    let restores: String = sources.iter().map(stage).collect();
    plan(at, "p", &format!("{restores}[[stage]]\nname = \"asked\"\ntimeout = \"2m\"\ncheck = [\n{checks}\n]\n"));
    let ran = expect(at, &["drill", "--plan", "p"], code);
    assert_eq!(fs::read_dir(at.join("scratch")).unwrap().count(), 0, "scratch is not empty");
    ran
}

pub fn says(ran: &Ran, words: &[&str]) {
    words.iter().for_each(|w| assert!(ran.all().contains(w), "{w:?} is not in {}", ran.all()));
}

fn bisect(at: &Path, source: &str, check: &str) -> (Option<u64>, Option<u64>) {
    let found = expect(at, &["bisect", source, "--check", check, "--json"], 0).json()["report"].clone();
    (found["good"]["seq"].as_u64(), found["bad"]["seq"].as_u64())
}

#[test]
fn postgres_is_asked_by_sql_in_plans_and_by_bisect() {
    // A version whose programs are in no usual place.
    let cluster = Cluster::new(17);
    cluster
        .sql("create table orders (n int, at timestamptz); insert into orders values (1, now() - interval '3 hours')");
    let home = empty();
    let at = home.path();
    let (url, bin) = (cluster.url("postgres"), installed(17).display().to_string());
    add(at, "pg", "postgres", &format!("url = \"{url}\"\n[source.postgres]\nbin = \"{bin}\""));
    add(at, "dumps", "postgres", &format!("url = \"{url}\"\n[source.postgres]\nmode = \"logical\"\nbin = \"{bin}\""));
    for n in [2, -3, 4] {
        cluster.sql(&format!("insert into orders values ({n}, now() - interval '3 hours')"));
        expect(at, &["backup"], 0);
    }
    let ran = drill(
        at,
        &["pg", "dumps"],
        r#"{ name = "rows", source = "pg", sql = "select count(*) from orders", equals = "4" },
{ name = "dumped", source = "dumps", database = "postgres", sql = "select count(*) from orders", at_least = 4, at_most = 4 },
{ name = "one cluster", source = "pg", sql = "select count(*) > 0 from pg_stat_activity" },
{ name = "recent", source = "pg", newest = "select max(at) from orders", within = "4h" }"#,
        0,
    );
    says(&ran, &["ok      rows: 4", "ok      dumped: 4", "ok      one cluster: t", "ok      recent: "]);
    let ran = drill(
        at,
        &["pg", "dumps"],
        r#"{ name = "no", source = "dumps", sql = "select false" },
{ name = "stale", source = "pg", newest = "select max(at) from orders", within = "1h" },
{ name = "wrong", source = "pg", sql = "select count(*) from films" },
{ name = "harm", source = "pg", sql = "insert into orders values (9) returning n" }"#,
        4,
    );
    says(
        &ran,
        &["FAILED  no: ", "found: f", "FAILED  stale: ", "\"films\" does not exist", "FAILED  harm: ", "read-only"],
    );
    let question = "select count(*) = 0 from orders where n < 0";
    assert_eq!(bisect(at, "pg", question), (Some(1), Some(2)));
    assert_eq!(bisect(at, "dumps", question), (Some(1), Some(2)));
    assert_eq!(fs::read_dir(at.join("scratch")).unwrap().count(), 0);

    replace(at, &bin, "nowhere");
    let here = expect(at, &["bisect", "pg", "--check", question], 1);
    says(&here, &["no program `postgres` of version 17", "says nothing of the backup"]);
    assert!(!here.out.contains("is bad"), "{}", here.out);
    let here = drill(at, &["pg"], r#"{ sql = "select 1" }"#, 1);
    says(&here, &["no program `postgres` of version 17"]);
}

#[test]
fn redis_is_asked_by_command() {
    let server = Server::start("redis-server", "");
    let home = empty();
    let at = home.path();
    add(at, "cache", "redis", &format!("url = \"{}\"", server.url()));
    for (n, good) in ["yes", "yes", "", ""].into_iter().enumerate() {
        server.run(&format!("SET count {n}"));
        if good.is_empty() {
            server.run("DEL good");
        } else {
            server.run("SET good yes");
        }
        server.run(&format!("SET at {}", 1_767_225_600 + n));
        expect(at, &["backup"], 0);
    }
    let ran = drill(
        at,
        &["cache"],
        r#"{ name = "count", redis = ["GET", "count"], equals = "3" },
{ name = "size", redis = ["DBSIZE"], at_least = 2 },
{ name = "some", redis = ["MGET", "count", "at"], contains = "17672" },
{ name = "recent", redis = ["GET", "at"], within = "10000d" }"#,
        0,
    );
    says(&ran, &["ok      count: 3", "ok      size: 2", "ok      some: ", "ok      recent: "]);
    let ran = drill(
        at,
        &["cache"],
        r#"{ name = "gone", redis = ["GET", "good"] },
{ name = "other", redis = ["DBSIZE"], database = "1" },
{ name = "stale", redis = ["GET", "at"], within = "1h" },
{ name = "harm", redis = ["SET", "good", "yes"] }"#,
        4,
    );
    says(&ran, &["FAILED  gone: ", "found: null", "FAILED  other: ", "FAILED  stale: ", "no command that only reads"]);
    assert_eq!(bisect(at, "cache", "GET good"), (Some(2), Some(3)));

    configure(at, "[source.redis]\nserver = \"nowhere/redis-server\"\n");
    let here = expect(at, &["bisect", "cache", "--check", "GET good"], 1);
    says(&here, &["no server here can load the data"]);
}

#[test]
fn chroma_is_counted_and_searched() {
    let home = empty();
    let at = home.path();
    make("1.5.9", &at.join("vectors"), 16, 300);
    let python = python("1.5.9").display().to_string();
    add(at, "vectors", "chroma", &format!("path = \"vectors\"\n[source.chroma]\npython = \"{python}\""));
    expect(at, &["backup"], 0);
    let ran = drill(
        at,
        &["vectors"],
        r#"{ chroma = "alpha", at_least = 299, at_most = 299 },
{ chroma = "alpha", nearest_to = "id9" },
{ name = "near", chroma = "tiny", nearest = [1.0, 2.1], equals = "x" },
{ name = "tables", source = "vectors", sql = "select count(*) from collections", at_least = 4 }"#,
        0,
    );
    says(&ran, &["ok      ids in alpha: 299", "ok      search in alpha for id9: id9", "ok      near: x, y"]);
    let ran = drill(
        at,
        &["vectors"],
        r#"{ chroma = "gone", at_least = 1 },
{ chroma = "alpha", nearest_to = "id7" },
{ name = "far", chroma = "tiny", nearest = [3.0, 4.0], equals = "x" },
{ chroma = "empty" }"#,
        4,
    );
    says(
        &ran,
        &[
            "there is no collection gone",
            "there is no id7 in alpha",
            "FAILED  far: expected x, found: y",
            "FAILED  ids in empty",
        ],
    );
    replace(at, &python, "/usr/bin/python3");
    let here = drill(at, &["vectors"], r#"{ chroma = "alpha" }"#, 1);
    says(&here, &["chromadb cannot be asked here", "says nothing of the backup"]);
}
