//! Backups that came out well and are worthless: empty, truncated, stale, of another source. Each must be caught and named.

use super::{protected, sql};
use crate::support::binary::{configure, expect, noise, run};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Backs up what is wrong with the source now; the drill must fail and both must say `words`.
fn caught(at: &Path, source: &str, words: &str) {
    let backup = expect(at, &["backup", source], 4);
    assert!(backup.err.contains("SUSPECT") && backup.err.contains(words), "{}", backup.err);
    let drill = expect(at, &["drill", source], 4);
    assert!(drill.out.contains("FAILED") && drill.out.contains(words), "{}", drill.all());
    let status = expect(at, &["status"], 4);
    assert!(status.out.contains("SUSPECT"), "{}", status.out);
}

#[test]
fn zero_rows_raise_the_alarm_and_the_last_good_one_stays_the_default() {
    let home = protected();
    let at = home.path();
    configure(at, "retention = { last = 1 }\n");
    expect(at, &["backup", "orders"], 0);
    expect(at, &["drill", "orders"], 0);
    sql(at, "delete from t");
    caught(at, "orders", "zero rows: 0, and 3 before");
    sql(at, "insert into t values (1)");
    sql(at, "delete from t");
    expect(at, &["backup", "orders"], 4);
    let listed = expect(at, &["snapshots", "orders"], 0).out;
    assert_eq!(listed.matches("SUSPECT").count(), 2, "{listed}");
    // `last = 1` would have removed snapshot 1 by now.
    expect(at, &["prune"], 0);
    let restored = expect(at, &["restore", "orders", "--to", "back"], 0);
    assert!(restored.err.contains("LOOK WRONG") && restored.out.contains("Restored snapshot 1"), "{}", restored.all());
    let root = crate::support::binary::root_of(at);
    let script = at.join("repo/recover.py").display().to_string();
    let key = at.join("blackstart/keys/recovery.key").display().to_string();
    let arguments = [&script, "--root", &root, "--identity", &key, "restore", "orders", "by-hand"];
    let by_hand = std::process::Command::new("python3").args(arguments).current_dir(at).output().unwrap();
    let said = String::from_utf8_lossy(&by_hand.stderr).into_owned();
    assert!(by_hand.status.success() && said.contains("LOOK WRONG"), "{said}");
    assert_eq!(fs::read(at.join("by-hand/orders.db")).unwrap(), fs::read(at.join("back/orders.db")).unwrap());
    expect(at, &["restore", "orders", "--snapshot", "3", "--to", "newest"], 0);

    expect(at, &["backup", "orders", "--accept-change"], 0);
    expect(at, &["drill", "orders"], 0);
    let after = expect(at, &["restore", "orders", "--to", "accepted"], 0);
    assert!(!after.err.contains("LOOK WRONG") && after.out.contains("Restored snapshot 4"), "{}", after.all());
    assert!(!expect(at, &["snapshots", "orders"], 0).out.contains("SUSPECT"));
    // What was accepted is the new measure.
    expect(at, &["backup", "orders"], 0);
}

#[test]
fn an_empty_tree_and_a_truncated_one() {
    let home = protected();
    let at = home.path();
    for n in 0..40 {
        fs::write(at.join(format!("app/etc/{n}")), noise(n, 20_000)).unwrap();
    }
    expect(at, &["backup", "app"], 0);
    for n in 0..40 {
        fs::write(at.join(format!("app/etc/{n}")), b"").unwrap();
    }
    caught(at, "app", "a sudden shrink");
    fs::remove_dir_all(at.join("app/etc")).unwrap();
    caught(at, "app", "empty: 0 bytes");
}

#[test]
fn another_database_under_the_same_path() {
    let home = protected();
    let at = home.path();
    sql(at, "create table users (n integer); insert into users values (1)");
    expect(at, &["backup", "orders"], 0);
    fs::remove_file(at.join("app/orders.db")).unwrap();
    sql(
        at,
        "create table films (n integer); create table actors (n integer); insert into films values (1), (2), (3), (4)",
    );
    caught(at, "orders", "another source: none of its 2 tables");
    let other = protected();
    sql(other.path(), "pragma application_id = 7");
    expect(other.path(), &["backup", "orders"], 0);
    sql(other.path(), "pragma application_id = 8");
    caught(other.path(), "orders", "its application_id is 8, and was 7");
}

#[test]
fn data_that_was_encrypted_by_somebody_else() {
    let home = protected();
    let at = home.path();
    let line = "all work and no play makes jack a dull boy\n".repeat(40);
    for n in 0..40 {
        fs::write(at.join(format!("app/etc/{n}")), (0..60).map(|k| format!("{k} {n} {line}")).collect::<String>())
            .unwrap();
    }
    expect(at, &["backup", "app"], 0);
    for n in 0..40 {
        let length = fs::metadata(at.join(format!("app/etc/{n}"))).unwrap().len() as usize;
        fs::write(at.join(format!("app/etc/{n}")), noise(n, length)).unwrap();
    }
    caught(at, "app", "an entropy jump");
}

#[test]
fn a_stale_backup_misses_its_rpo() {
    let home = protected();
    let at = home.path();
    configure(at, "rpo = \"1s\"\n");
    expect(at, &["backup", "orders"], 0);
    std::thread::sleep(Duration::from_millis(1100));
    assert!(expect(at, &["drill", "orders"], 5).out.contains("MISSED  RPO"));
    let report = run(at, &["report", "show", "orders", "--json"]).json()["report"]["report"].clone();
    assert_eq!((report["rpo_met"].as_bool(), report["rpo_target_seconds"].as_f64()), (Some(false), Some(1.0)));
    assert!(report["rpo_exposure_seconds"].as_f64().unwrap() > 1.0);
}

#[test]
fn bisect_finds_the_last_good_point() {
    let home = protected();
    let at = home.path();
    for n in 0..7 {
        sql(at, &format!("insert into t values ({})", if n == 4 { -1 } else { 10 + n }));
        expect(at, &["backup", "orders"], 0);
    }
    let question = "select count(*) = 0 from t where n < 0";
    let found = expect(at, &["bisect", "orders", "--check", question, "--json"], 0).json()["report"].clone();
    assert_eq!((found["good"]["seq"].as_u64(), found["bad"]["seq"].as_u64()), (Some(4), Some(5)), "{found}");
    assert!(found["asked"].as_array().unwrap().len() <= 5, "{found}");
    let said = expect(at, &["bisect", "orders", "--check", question], 0).out;
    assert!(said.contains("blackstart restore orders --snapshot 4"), "{said}");
    let newest = expect(at, &["bisect", "orders", "--check", "select count(*) from t"], 0).out;
    assert!(newest.contains("The newest snapshot, 7, is good"), "{newest}");
    let never = expect(at, &["bisect", "orders", "--check", "select 0"], 4).out;
    assert!(never.contains("Even the oldest snapshot"), "{never}");
    let argv =
        ["bisect", "orders", "--", "sh", "-c", "test -s \"$BLACKSTART_COPY/orders.db\" && test -d \"$0\"", "${copy}"];
    assert!(expect(at, &argv, 0).out.contains("The newest snapshot, 7, is good"));
    let nonsense = expect(at, &["bisect", "orders", "--check", "select nonsense"], 64);
    assert!(
        nonsense.err.contains("could not be asked") && !nonsense.out.contains("Even the oldest"),
        "{}",
        nonsense.all()
    );
    expect(at, &["bisect", "orders"], 64);
    assert_eq!(fs::read_dir(at.join("scratch")).unwrap().count(), 0);
}
