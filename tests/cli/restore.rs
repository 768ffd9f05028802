//! Every way to say what to restore, and where.

use crate::support::binary::{command, configure, expect, finish, home};
use std::fs;
use std::path::Path;
use std::time::Duration;

fn names(at: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Three snapshots of `app`, of ports 1, 2 and 3; gives the times of their data.
fn three(at: &Path) -> Vec<String> {
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "[[source]]\nname = \"app\"\nkind = \"files\"\npath = \"app\"\n");
    configure(at, "[[source]]\nname = \"orders\"\nkind = \"sqlite\"\npath = \"app/orders.db\"\n");
    for port in 1..4 {
        fs::write(at.join("app/etc/app.toml"), format!("port = {port}\n")).unwrap();
        expect(at, &["backup"], 0);
        std::thread::sleep(Duration::from_millis(5));
    }
    let listed = expect(at, &["snapshots", "app", "--json"], 0).json();
    let rows = listed["report"]["snapshots"].as_array().unwrap();
    rows.iter().map(|row| row["data_time"].as_str().unwrap().to_owned()).collect()
}

fn port(tree: &Path) -> String {
    fs::read_to_string(tree.join("etc/app.toml")).unwrap()
}

#[test]
fn by_number_by_time_by_proof() {
    let home = home();
    let at = home.path();
    let times = three(at);
    let unproven = expect(at, &["restore", "app", "--latest-verified", "--to", "v"], 64);
    assert!(unproven.err.contains("no snapshot that a drill has proven"), "{}", unproven.err);
    expect(at, &["restore", "app", "--snapshot", "1", "--to", "one"], 0);
    assert_eq!(port(&at.join("one")), "port = 1\n");
    expect(at, &["restore", "app", "--at", &times[1], "--to", "two"], 0);
    assert_eq!(port(&at.join("two")), "port = 2\n");
    let early = expect(at, &["restore", "app", "--at", "1999-12-31 23:59", "--to", "x"], 64);
    assert!(early.err.contains("The oldest snapshot of app has data of"), "{}", early.err);
    // Times are told as `snapshots` tells them: in local time.
    let mut there = command(at, &["restore", "app", "--at", "1999-12-31 23:59", "--to", "x"]);
    let there = finish(&there.env("TZ", "Asia/Tokyo").output().unwrap());
    assert!(there.err.contains("1999-12-31T23:59:00+09:00 or before"), "{}", there.err);
    expect(at, &["restore", "app", "--at", "yesterday", "--to", "x"], 64);
    expect(at, &["restore", "app", "--snapshot", "7", "--to", "x"], 64);
    expect(at, &["restore", "app", "--snapshot", "1", "--at", &times[1], "--to", "x"], 64);
    expect(at, &["drill", "app"], 0);
    fs::write(at.join("app/etc/app.toml"), "port = 4\n").unwrap();
    expect(at, &["backup", "app"], 0);
    expect(at, &["restore", "app", "--latest-verified", "--to", "proven"], 0);
    assert_eq!(port(&at.join("proven")), "port = 3\n");
    expect(at, &["restore", "app", "--to", "newest"], 0);
    assert_eq!(port(&at.join("newest")), "port = 4\n");
    assert!(!at.join("x").exists() && !at.join("v").exists());
}

#[test]
fn a_time_does_not_mean_a_snapshot_that_looks_wrong() {
    let home = home();
    let at = home.path();
    for n in 0..200 {
        fs::write(at.join(format!("app/{n}")), format!("file {n}")).unwrap();
    }
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "[[source]]\nname = \"app\"\nkind = \"files\"\npath = \"app\"\n");
    expect(at, &["backup"], 0);
    (1..200).for_each(|n| fs::remove_file(at.join(format!("app/{n}"))).unwrap());
    expect(at, &["backup", "app"], 4);
    for pick in
        [&["restore", "app", "--to", "newest"][..], &["restore", "app", "--at", "2099-01-01 00:00", "--to", "timed"]]
    {
        let restored = expect(at, pick, 0);
        assert!(restored.err.contains("LOOK WRONG"), "{}", restored.all());
    }
    assert!(at.join("newest/199").exists() && at.join("timed/199").exists());
}

#[test]
fn single_paths_and_wrong_ones() {
    let home = home();
    let at = home.path();
    three(at);
    expect(at, &["restore", "app", "--path", "etc/app.toml", "--to", "some"], 0);
    assert_eq!((names(&at.join("some")), names(&at.join("some/etc"))), (vec!["etc".into()], vec!["app.toml".into()]));
    for paths in [&["--path", "etc/ap.toml"][..], &["--path", "etc", "--path", "etcetera"], &["--path", "/etc"]] {
        let arguments = [&["restore", "app", "--to", "none"], paths].concat();
        let wrong = expect(at, &arguments, 64);
        assert!(wrong.err.contains("Nothing was restored"), "{}", wrong.err);
        expect(at, &[&arguments[..], &["--dry-run"]].concat(), 64);
    }
    assert!(!names(at).iter().any(|n| n.contains("none")), "{:?}", names(at));
}

#[test]
fn a_dry_run_leaves_no_trace() {
    let home = home();
    let at = home.path();
    three(at);
    let before = names(at);
    let said = expect(at, &["restore", "app", "--to", "back", "--dry-run"], 0);
    assert!(said.out.starts_with("Would restore snapshot 3 of app"), "{}", said.out);
    expect(at, &["restore", "app", "--to", "app", "--in-place", "--confirm", "app", "--dry-run"], 0);
    let taken = expect(at, &["restore", "app", "--to", "app", "--dry-run"], 64);
    assert!(taken.err.contains("exists already"), "{}", taken.err);
    // What would stop the real one stops this.
    let nowhere = expect(at, &["restore", "app", "--to", "none/back", "--dry-run"], 64);
    assert!(nowhere.err.contains("in which the restored tree is to lie"), "{}", nowhere.err);
    assert_eq!(names(at), before);
}

#[test]
fn in_place_asks_twice_and_keeps_what_was_there() {
    let home = home();
    let at = home.path();
    three(at);
    fs::write(at.join("app/etc/app.toml"), "broken").unwrap();
    expect(at, &["restore", "app", "--to", "app"], 64);
    expect(at, &["restore", "app", "--to", "app", "--in-place"], 64);
    expect(at, &["restore", "app", "--to", "app", "--in-place", "--confirm", "orders"], 64);
    let database = expect(at, &["restore", "orders", "--to", "app", "--in-place", "--confirm", "orders"], 64);
    assert!(database.err.contains("Nothing was changed") && database.err.contains("-wal"), "{}", database.err);
    assert_eq!(port(&at.join("app")), "broken");
    let report = expect(at, &["restore", "app", "--to", "app/", "--in-place", "--confirm", "app", "--json"], 0).json();
    assert_eq!(port(&at.join("app")), "port = 3\n");
    let kept = report["report"]["kept"].as_str().unwrap();
    assert_eq!(port(Path::new(kept)), "broken");
}
