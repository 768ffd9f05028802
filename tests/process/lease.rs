//! A lease that was left behind: taken over where its holder is known to be dead, waited for where that cannot be known.

use crate::support::binary::{configure, expect, home, run};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

#[test]
fn a_lease_of_another_container_stands_until_its_age_says_so() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, "[[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"app/etc\"\n");
    expect(at, &["backup"], 0);
    let path = at.join("repo/leases/etc");
    // As the last run gave it back; now as if it had been killed, with a process that is gone for certain.
    let given_back: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let leave = |change: &[(&str, Value)]| {
        let mut lease = given_back.clone();
        (lease["expires"], lease["pid"], lease["holder"]) =
            (json!("2199-01-01T00:00:00Z"), json!(ended.id()), json!("left"));
        change.iter().for_each(|(key, value)| lease[*key] = value.clone());
        fs::remove_file(&path).unwrap();
        fs::write(&path, lease.to_string()).unwrap();
    };
    let here = fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(given_back["pid_namespace"].as_str(), here.to_str(), "it says where its number counts");
    for (what, change) in [
        ("another container", vec![("pid_namespace", json!("pid:[1]"))]),
        ("one that did not say", vec![("pid_namespace", Value::Null)]),
        ("another machine", vec![("host", json!("elsewhere"))]),
        // Of root, or at least of nobody that may be signalled from here: that it may not be is no sign of death.
        ("a process that is there", vec![("pid", json!(1))]),
    ] {
        leave(&change);
        let busy = run(at, &["backup"]);
        assert_eq!(busy.code, 11, "{what}: {}", busy.all());
        assert!(busy.err.contains("its lease ends at 2199-01-01"), "{what}: {}", busy.err);
    }
    leave(&[("pid_namespace", json!("pid:[1]")), ("expires", json!("2020-01-01T00:00:00Z"))]);
    expect(at, &["backup"], 0);
    leave(&[]);
    expect(at, &["backup"], 0);
}
