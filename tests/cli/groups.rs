//! Common points as those see them who watch: whole and fresh, silent, expired, or robbed of a member.

use super::support::binary::{Ran, configure, expect, home, run};
use std::fs;
use std::path::Path;

/// A group of a database and a tree.
fn grouped() -> tempfile::TempDir {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(
        at,
        "\n[[source]]\nname = \"orders\"\nkind = \"sqlite\"\npath = \"app/orders.db\"\n[source.retention]\nlast = 1\n\
         [[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"app/etc\"\n\
         [[group]]\nname = \"shop\"\nsources = [\"orders\", \"etc\"]\n",
    );
    home
}

fn watch(at: &Path, most: &str, code: i32) -> Ran {
    let bounds = ["watch", "--older-than", most, "--bound", "orders=1d", "--bound", "etc=1d"];
    expect(at, &bounds, code)
}

#[test]
fn a_group_that_falls_silent_is_told_of_though_its_members_do_not() {
    let home = grouped();
    let at = home.path();
    expect(at, &["backup", "--group", "shop"], 0);
    assert!(watch(at, "1h", 0).out.contains("group shop: newest whole common point"));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    expect(at, &["backup"], 0);
    let silent = watch(at, "1s", 5);
    assert!(silent.err.contains("ALARM: group shop: the newest whole common point is"), "{}", silent.all());
    assert!(!silent.err.contains("ALARM: orders"), "{}", silent.all());
}

/// What retention removed is told and is no fault; what somebody else removed is one, also where the chain of the source does not show it.
#[test]
fn a_member_that_expired_is_told_apart_from_one_that_was_taken() {
    let home = grouped();
    let at = home.path();
    for n in 1..=2 {
        fs::write(at.join("app/etc/n"), n.to_string()).unwrap();
        expect(at, &["backup", "--group", "shop"], 0);
    }
    expect(at, &["prune", "orders"], 0);
    let verified = expect(at, &["verify"], 0);
    let said = "group shop: its newest whole point is 2";
    assert!(verified.out.contains(said), "{}", verified.out);
    assert!(verified.out.contains("retention has removed members of points 1"), "{}", verified.out);
    watch(at, "1h", 0);
    expect(at, &["restore", "--group", "shop", "--snapshot", "1", "--to", "out"], 4);
    // The newest commit of a source: no gap is left behind, and whoever has not seen it before misses nothing but the point does.
    fs::remove_file(at.join("repo/snapshots/etc/0000000002")).unwrap();
    let verified = expect(at, &["verify", "--repo", "repo", "--json"], 4).json();
    let group = &verified["report"]["groups"][0];
    assert!(group["n"].is_null() && group["expired"][0] == 1, "{group}");
    assert!(group["faults"][0].as_str().unwrap().contains("point 2 has lost etc"), "{group}");
    let sources = verified["report"]["sources"].as_array().unwrap();
    assert!(sources.iter().all(|source| source["faults"].as_array().unwrap().is_empty()), "{verified}");
    let watched = run(at, &["watch", "--repo", "repo", "--older-than", "1h", "--json"]);
    assert_eq!(watched.code, 4, "{}", watched.all());
    let causes: Vec<String> = watched.json()["report"]["group_alarms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|alarm| alarm["cause"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(causes, ["damaged", "missing"]);
    // There are points, and none is good: that is no mistake of the caller.
    expect(at, &["restore", "--group", "shop", "--to", "out"], 4);
    assert!(!at.join("out").exists());
}

/// What is asked for is a common point. Some got theirs and some did not: partial; none did: failed, whatever members were stored on the way.
#[test]
fn what_is_stored_decides_how_a_run_of_groups_ends() {
    let home = grouped();
    let at = home.path();
    configure(
        at,
        "\n[[source]]\nname = \"gone\"\nkind = \"files\"\npath = \"app/nothing\"\n[[group]]\nname = \"bad\"\nsources = [\"gone\", \"etc\"]\n",
    );
    let failed = expect(at, &["backup", "--group", "bad"], 1);
    assert!(failed.err.contains("NO common point of now: gone failed"), "{}", failed.all());
    assert!(failed.out.contains("etc: snapshot 1"), "what could be stored was: {}", failed.all());
    let both = expect(at, &["backup", "--group", "bad", "shop"], 3);
    assert!(both.out.contains("Group shop: point 1 is"), "{}", both.all());
    expect(at, &["backup", "--group", "shop"], 0);
    // As with sources.
    expect(at, &["backup", "gone", "etc"], 3);
    expect(at, &["backup", "gone"], 1);
    let status = expect(at, &["status", "--json"], 4).json();
    let groups = status["report"]["groups"].as_array().unwrap();
    let of = |name: &str| groups.iter().find(|g| g["group"] == name).unwrap();
    assert_eq!(of("shop")["n"], 2);
    assert!(of("shop")["attention"].is_null() && of("bad")["n"].is_null(), "{status}");
    fs::remove_file(at.join("repo/snapshots/orders/0000000001")).unwrap();
    let status = expect(at, &["status"], 4);
    assert!(status.out.contains("group shop: point 2 has the data of"), "{}", status.all());
    assert!(status.out.contains("point 1 has lost orders"), "{}", status.all());
}
