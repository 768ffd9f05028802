//! Canaries of files and of SQLite, from the command line: written, told, and missed.

use crate::support::binary::{Ran, configure, expect, home, run};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A home with a database and a tree, each with a canary.
fn with_canaries() -> tempfile::TempDir {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(
        at,
        "[[source]]\nname = \"orders\"\nkind = \"sqlite\"\npath = \"app/orders.db\"\ncanary = true\n\
         [[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"app/etc\"\n[source.canary]\nevery = \"5m\"\n\
         [[source]]\nname = \"other\"\nkind = \"files\"\npath = \"app/etc\"\n",
    );
    home
}

fn canary(at: &Path, source: &str, code: i32) -> (Value, Value) {
    let drill = expect(at, &["drill", source, "--json"], code).json();
    let report = drill["report"]["sources"][0].clone();
    let check = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == "canary").unwrap().clone();
    assert_eq!(check["passed"], code == 0, "{check}");
    (check["actual"].clone(), report["canary"].clone())
}

#[test]
fn each_is_written_backed_up_and_found() {
    let home = with_canaries();
    let at = home.path();
    let checked = run(at, &["check"]).out;
    assert_eq!(checked.matches("can be written").count(), 2, "{checked}");
    assert!(!at.join("app/etc/.blackstart-canary").exists(), "`check` leaves nothing behind");
    let never = expect(at, &["status"], 4).out;
    assert!(never.contains("orders: canary never written from here: OVERDUE"), "{never}");
    let written = expect(at, &["canary"], 0).out;
    assert!(written.contains("etc: ") && written.contains("orders: ") && !written.contains("other"), "{written}");
    assert!(expect(at, &["canary", "other"], 64).err.contains("`canary = true`"));
    let said = expect(at, &["backup"], 0).out;
    assert_eq!(said.matches("its canary was written").count(), 2, "{said}");
    for (source, every) in [("orders", 60), ("etc", 300)] {
        let (_, found) = canary(at, source, 0);
        assert!((-5.0..600.0).contains(&found["age_seconds"].as_f64().unwrap()), "{found}");
        assert_eq!(found["every_seconds"], every);
    }
    expect(at, &["drill", "other"], 0);
    let status: Ran = expect(at, &["status", "--json"], 0);
    let rows = status.json()["report"]["sources"].clone();
    let row = |name: &str| rows.as_array().unwrap().iter().find(|row| row["source"] == name).unwrap().clone();
    assert!(row("orders")["canary"]["drilled"]["age_seconds"].is_number(), "{rows}");
    assert!(row("other")["canary"].is_null(), "{rows}");
    // The evidence carries it, signed.
    let report = expect(at, &["report", "show", "orders", "--form", "json"], 0).out;
    assert!(report.contains("\"canary\"") && report.contains("\"age_seconds\""), "{report}");
    expect(at, &["canary", "--remove"], 0);
    assert!(!at.join("app/etc/.blackstart-canary").exists());
    let tables: i64 = rusqlite::Connection::open(at.join("app/orders.db"))
        .unwrap()
        .query_row("select count(*) from sqlite_schema", [], |row| row.get(0))
        .unwrap();
    assert_eq!(tables, 1, "what was written can be taken away");
}

#[test]
fn a_stale_copy_and_another_one_are_caught() {
    let home = with_canaries();
    let at = home.path();
    let (database, tree) = (at.join("app/orders.db"), at.join("app/etc/.blackstart-canary"));
    expect(at, &["canary"], 0);
    let (old, older) = (fs::read(&database).unwrap(), fs::read(&tree).unwrap());
    expect(at, &["canary"], 0);
    expect(at, &["backup"], 0);
    // What was backed up is whole, and the wrong thing: the file of yesterday, a tree that somebody put back.
    fs::write(&database, &old).unwrap();
    fs::write(&tree, &older).unwrap();
    expect(at, &["backup"], 0);
    for source in ["orders", "etc"] {
        let (actual, found) = canary(at, source, 4);
        assert!(actual.as_str().unwrap().contains("STALE"), "{actual}");
        assert!(found["written"].is_string(), "{found}");
    }
    rusqlite::Connection::open(&database).unwrap().execute_batch("drop table blackstart_canary").unwrap();
    fs::remove_file(&tree).unwrap();
    expect(at, &["backup"], 0);
    for source in ["orders", "etc"] {
        let (actual, found) = canary(at, source, 4);
        assert!(actual.as_str().unwrap().contains("MISSING") && found.is_null(), "{actual}");
    }
    let status = expect(at, &["status"], 4).out;
    assert!(status.contains("orders: a drill FAILED, of snapshot 3"), "{status}");
}

#[test]
fn none_is_written_where_backups_leave_it_out() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    let tree = "[[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"app/etc\"\ncanary = true\nexclude = [\".*\"]\n";
    configure(at, tree);
    let refused = expect(at, &["canary", "etc"], 78).err;
    assert!(refused.contains("leave out its canary") && refused.contains("exclude"), "{refused}");
    assert!(!at.join("app/etc/.blackstart-canary").exists());
    assert!(run(at, &["check"]).out.contains("leave out its canary"));
    // Its backups, and their drills, do not depend on it.
    expect(at, &["backup"], 0);
    expect(at, &["drill"], 0);
}
