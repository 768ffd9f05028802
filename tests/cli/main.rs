//! The binary from end to end, as an operator runs it: real files, real SQLite, exit codes, JSON.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and files need no durability"
)]

#[path = "../support/mod.rs"]
mod support;

mod broken;
mod canary;
mod confirm;
mod groups;
mod memory;
mod mistakes;
mod pages;
mod restore;
mod retire;
mod verbs;

use std::fs;
use support::binary::{expect, files_below, home, run};

#[test]
fn protect_twice_then_restore() {
    let home = home();
    let at = home.path();
    let first = expect(at, &["protect", "app", "--repo", "repo"], 0);
    for source in ["app", "orders"] {
        assert!(first.out.contains(&format!("blackstart restore {source} --to DIR")), "{}", first.out);
    }
    let config = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    fs::write(at.join("blackstart.toml"), format!("# my comment\n{config}")).unwrap();
    fs::write(at.join("app/etc/new"), "new").unwrap();
    let second = expect(at, &["protect", "app", "--json"], 0).json();
    assert_eq!(second["report"]["sources"][0]["backup"]["mode"], "incremental", "{second}");
    assert_eq!(second["report"]["sources"].as_array().unwrap().len(), 2);
    let after = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    assert_eq!(after, format!("# my comment\n{config}"));
    assert_eq!(expect(at, &["backup", "orders", "--json"], 0).json()["report"]["sources"][0]["seq"], 3);
    let back = expect(at, &["restore", "app", "--to", "back"], 0);
    assert!(back.out.contains("Not in it, because they are sources of their own: orders (orders.db)"), "{}", back.out);
    assert!(!at.join("back/orders.db").exists());
    assert_eq!(fs::read_to_string(at.join("back/etc/new")).unwrap(), "new");
    fs::write(at.join("back/etc/new"), "mine").unwrap();
    assert_ne!(run(at, &["restore", "app", "--to", "back"]).code, 0);
    assert_eq!(fs::read_to_string(at.join("back/etc/new")).unwrap(), "mine");
    let db = expect(at, &["restore", "orders", "--to", "db"], 0);
    assert!(db.out.contains("remove the -wal and -shm of the old one"), "{}", db.out);
    let database = rusqlite::Connection::open(at.join("db/orders.db")).unwrap();
    assert_eq!(database.query_row("select sum(n) from t", [], |row| row.get::<_, i64>(0)).unwrap(), 6);
    let listed = expect(at, &["snapshots", "--json"], 0).json();
    assert_eq!(listed["report"]["snapshots"].as_array().unwrap().len(), 5);
    expect(at, &["check"], 0);
    let status = run(at, &["status", "--json"]).json();
    assert_eq!(status["report"]["sources"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_said_to_do_next_works_here() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    fs::rename(at.join("blackstart/keys/recovery.key"), at.join("usb.key")).unwrap();
    fs::rename(at.join("app/orders.db"), at.join("elsewhere")).unwrap();
    let again = run(at, &["protect"]);
    assert!(again.out.contains("blackstart restore app --identity KEY --to DIR"), "{}", again.all());
    // What has no snapshot of this run is not offered.
    assert!(!again.out.contains("blackstart restore orders"), "{}", again.all());
    let status = run(at, &["status"]);
    assert!(status.out.contains("blackstart restore orders --identity KEY --to DIR"), "{}", status.all());
    let missing = expect(at, &["protect", "nope"], 64);
    assert!(missing.err.contains("help: "), "{}", missing.err);
    // Nothing more would come of the same command.
    let pack = files_below(&at.join("repo/packs/app"), |_| true).remove(0);
    fs::remove_file(pack).unwrap();
    let gone = expect(at, &["restore", "app", "--identity", "usb.key", "--to", "back"], 1);
    assert!(gone.err.contains("that does not help") && !gone.err.contains("again resumes"), "{}", gone.err);
}

#[test]
fn a_recovery_key_that_cannot_be_read_proves_nothing_and_is_told() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    let key = at.join("blackstart/keys/recovery.key");
    let whole = fs::read_to_string(&key).unwrap();
    fs::write(&key, &whole[..whole.len() / 2]).unwrap();
    let told = run(at, &["protect"]);
    assert_ne!(told.code, 0, "nothing was proven: {}", told.all());
    assert!(told.err.contains("was not restored to prove it"), "it must say so: {}", told.all());
    fs::write(&key, whole).unwrap();
    assert_eq!(expect(at, &["snapshots", "--json"], 0).json()["report"]["snapshots"].as_array().unwrap().len(), 2);
}

#[test]
fn no_password_is_ever_repeated() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    let before = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    let source = |lines: &str| format!("{before}[[source]]\nname = \"pg\"\nkind = \"postgres\"\n{lines}\n");
    let url = "url = \"postgres://me:sEcret-1@127.0.0.1:1/d?password=sEcret-2&connect_timeout=1\"";
    fs::write(at.join("blackstart.toml"), source(url)).unwrap();
    for verb in ["backup", "check", "status"] {
        let said = run(at, &[verb]).all();
        assert!(!said.contains("sEcret"), "{said}");
    }
    let url = "url = \"postgres://me@127.0.0.1:1/d?connect_timeout=1\"";
    fs::write(at.join("blackstart.toml"), source(url)).unwrap();
    let refused = expect(at, &["backup"], 1);
    assert!(refused.err.contains("Is the server running") && refused.err.contains("127.0.0.1:1"), "{}", refused.err);
    let plain = "url = \"postgres://me@h/d\"\npassword = \"sEcret-3\"";
    fs::write(at.join("blackstart.toml"), source(plain)).unwrap();
    let said = expect(at, &["check"], 78).err;
    assert!(!said.contains("sEcret") && said.contains("{ file = "), "{said}");
}

#[test]
fn a_fresh_machine_needs_the_address_the_fingerprint_and_the_key() {
    let home = home();
    let at = home.path();
    let made = expect(at, &["protect", "app", "--repo", "repo", "--json"], 0).json();
    let root = made["report"]["made"]["root"].as_str().unwrap().to_owned();
    expect(at, &["kit", "kit", "--identity", "blackstart/keys/recovery.key"], 0);
    assert!(fs::read_to_string(at.join("kit/README.txt")).unwrap().contains("--to ./SOURCE-restored"));
    let fresh = tempfile::tempdir().unwrap();
    let (repo, key) = (at.join("repo").display().to_string(), at.join("kit/recovery.key").display().to_string());
    let arguments = ["restore", "app", "--to", "back", "--repo", &repo, "--root", &root];
    expect(fresh.path(), &arguments, 12);
    expect(fresh.path(), &[&arguments[..], &["--identity", &key]].concat(), 0);
    assert!(fresh.path().join("back/etc/app.toml").exists());
    let unpinned = run(fresh.path(), &["snapshots", "--repo", &repo]);
    assert!(unpinned.err.contains("no root key is pinned"), "{}", unpinned.err);
    let other = expect(fresh.path(), &["init", "--repo", "other"], 0);
    assert!(other.out.contains("recovery.key"));
    let wrong = [
        &arguments[..3],
        &["elsewhere", "--repo", &repo, "--root", &root, "--identity", "blackstart/keys/recovery.key", "--json"],
    ]
    .concat();
    assert_eq!(expect(fresh.path(), &wrong, 12).json()["error"]["kind"], "wrong-key");
    assert!(!fresh.path().join("elsewhere").exists());
}

#[test]
fn exit_codes_tell_cases_apart() {
    let home = home();
    let at = home.path();
    assert_eq!(expect(at, &["snapshots", "--repo", "nowhere", "--json"], 10).json()["error"]["kind"], "no-repository");
    expect(at, &["backup"], 78);
    assert_eq!(expect(at, &["frobnicate", "--json"], 64).json()["error"]["kind"], "usage");
    expect(at, &["protect", "app"], 64);
    expect(at, &["--help"], 0);
    fs::write(at.join("blackstart.toml"), "repository = \"repo\"\n\nhost_kee = \"x\"\n").unwrap();
    let bad = expect(at, &["check"], 78);
    assert!(bad.err.contains("line 3") && bad.err.contains("`host_key`"), "{}", bad.err);
    expect(at, &["check", "--json"], 78).json();
}

#[test]
fn the_sample_protects_itself() {
    let home = tempfile::tempdir().unwrap();
    let report = expect(home.path(), &["protect", "--json"], 0).json();
    for source in report["report"]["sources"].as_array().unwrap() {
        assert_eq!(source["drill"]["passed"], true, "{source}");
    }
    assert!(home.path().join("blackstart-repository/recover.py").exists());
}
