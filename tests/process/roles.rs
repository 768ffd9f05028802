//! Who may do what in a real bucket with versions and locks: hosts that cannot delete, a keeper that can, an attacker with a host's rights.

use crate::support::binary::{Ran, command, configure, expect, finish, home, root_of, run};
use crate::support::servers::{Server, administer, seaweedfs};
use std::fs;
use std::path::Path;

/// A bucket of its own with versioning and Object Lock; the repository's address in it.
fn place(server: &'static Server, bucket: &'static str) -> String {
    administer(server, |client| async move {
        client.create_bucket().bucket(bucket).object_lock_enabled_for_bucket(true).send().await.unwrap();
    });
    format!("s3://{bucket}/some/where?endpoint={}", server.endpoint())
}

fn run_as(role: &str, at: &Path, arguments: &[&str]) -> Ran {
    let mut command = command(at, arguments);
    command.env("AWS_ACCESS_KEY_ID", format!("{role}key")).env("AWS_SECRET_ACCESS_KEY", format!("{role}secret"));
    finish(&command.output().unwrap())
}

fn expect_as(role: &str, at: &Path, arguments: &[&str], code: i32) -> Ran {
    let ran = run_as(role, at, arguments);
    assert_eq!(ran.code, code, "{role}: {arguments:?}\n{}", ran.all());
    ran
}

const SOURCE: &str = "[[source]]\nname = \"app\"\nkind = \"files\"\npath = \"app\"\nretention = { last = 1 }\n";

#[test]
fn an_attacker_without_the_right_to_delete_versions_takes_nothing() {
    let server = seaweedfs();
    let repo = place(server, "attacked");
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", &repo], 0);
    configure(at, SOURCE);
    expect(at, &["backup"], 0);
    fs::write(at.join("app/etc/app.toml"), "port = 2\n").unwrap();
    expect(at, &["backup"], 0);
    expect(at, &["drill"], 0);
    // Every object is deleted, and every second one written over before.
    administer(server, |client| async move {
        let listed = client.list_objects_v2().bucket("attacked").send().await.unwrap();
        for (n, object) in listed.contents().iter().enumerate() {
            let key = object.key().unwrap();
            if n % 2 == 0 {
                client.put_object().bucket("attacked").key(key).body(b"ha".to_vec().into()).send().await.unwrap();
            }
            client.delete_object().bucket("attacked").key(key).send().await.unwrap();
        }
        let left = client.list_objects_v2().bucket("attacked").send().await.unwrap();
        assert!(left.contents().is_empty());
    });
    let fresh = tempfile::tempdir().unwrap();
    fs::copy(at.join("blackstart/keys/recovery.key"), fresh.path().join("key")).unwrap();
    let named = ["--repo", &repo, "--root", &root_of(at)];
    expect(fresh.path(), &[&["restore", "app", "--to", "back", "--identity", "key"], &named[..]].concat(), 0);
    assert_eq!(fs::read(fresh.path().join("back/etc/app.toml")).unwrap(), b"port = 2\n");

    let verify = expect(at, &["verify"], 4);
    assert!(
        verify.err.contains("snapshots/app/0000000002 was deleted") && verify.err.contains("recover.py"),
        "{}",
        verify.all()
    );
    let backup = expect(at, &["backup"], 3);
    assert!(backup.err.contains("ALARM") && backup.out.contains("snapshot 3 (incremental)"), "{}", backup.all());
    assert!(expect(at, &["status"], 4).out.contains("deleted or written over"));
    let watch = expect(fresh.path(), &[&["watch"], &named[..]].concat(), 4);
    assert!(watch.err.contains("ALARM: app"), "{}", watch.all());
    let refused = expect(at, &["prune"], 4);
    assert!(refused.err.contains("prune refuses"), "{}", refused.all());
    expect(at, &["prune", "--uncover"], 0);
    expect(at, &["verify", "--hashes"], 0);
    expect(at, &["backup"], 0);
    expect(fresh.path(), &[&["watch"], &named[..]].concat(), 0);
}

/// The policies of the kit as one bucket policy, each for the identity of its name.
fn apply_policies(server: &'static Server, bucket: &'static str, kit: &Path) {
    let mut statements = Vec::new();
    for role in crate::support::servers::ROLES {
        let text = fs::read_to_string(kit.join(format!("policies/{role}.json"))).unwrap();
        let policy: serde_json::Value = serde_json::from_str(&text).unwrap();
        for statement in policy["Statement"].as_array().unwrap() {
            let mut statement = statement.clone();
            statement["Principal"] = serde_json::json!({"AWS": format!("arn:aws:iam::000000000000:user/{role}")});
            statements.push(statement);
        }
    }
    let policy = serde_json::json!({"Version": "2012-10-17", "Statement": statements}).to_string();
    administer(server, |client| async move {
        client.put_bucket_policy().bucket(bucket).policy(policy).send().await.unwrap();
    });
}

#[test]
fn each_role_can_do_its_work_and_no_more() {
    let server = seaweedfs();
    let repo = place(server, "with-roles");
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", &repo], 0);
    configure(at, SOURCE);
    configure(at, "[[source]]\nname = \"shop\"\nkind = \"postgres\"\nurl = \"postgres://nobody@127.0.0.1:1/shop\"\n");
    let kit = expect(at, &["kit", "kit"], 0);
    assert!(kit.out.contains("where app, shop lie, and nowhere else"), "{}", kit.out);
    apply_policies(server, "with-roles", &at.join("kit"));
    let create_only = fs::read_to_string(at.join("kit/policies/create-only.json")).unwrap();
    assert!(create_only.contains("s3:if-none-match") && create_only.contains("with-roles/some/where/packs/*"));

    // A host writes, and cannot delete; it leaves no litter, and says plainly what it lacks.
    expect_as("agent", at, &["backup", "app"], 0);
    fs::write(at.join("app/etc/app.toml"), "port = 2\n").unwrap();
    expect_as("agent", at, &["backup", "app"], 0);
    for _ in 0..3 {
        let check = run_as("agent", at, &["check", "--identity", "blackstart/keys/recovery.key"]);
        assert!(
            check.out.contains("the bucket keeps versions") && check.out.contains("Object Lock"),
            "{}",
            check.all()
        );
    }
    // Its log, too: a segment as `archive_command` gives it, of which only the system identifier is looked at.
    let mut segment = vec![0; 1 << 20];
    segment[2] = 2;
    segment[24] = 1;
    fs::write(at.join("000000010000000000000001"), segment).unwrap();
    expect_as("agent", at, &["wal-push", "shop", "000000010000000000000001"], 0);
    // Nor does it write where the sources of others lie; that it may read there is as it is meant.
    configure(at, &SOURCE.replace("\"app\"\nkind", "\"foreign\"\nkind"));
    let foreign = expect_as("agent", at, &["backup", "foreign"], 1);
    assert!(foreign.err.contains("denied"), "{}", foreign.all());
    expect(at, &["backup", "foreign"], 0);
    assert!(expect_as("agent", at, &["snapshots", "foreign"], 0).out.contains("1"), "it may be read");
    let foreign = run_as("agent", at, &["backup", "foreign"]);
    assert!(foreign.code == 1 && foreign.err.contains("denied"), "{}", foreign.all());
    let pruned = expect_as("agent", at, &["prune", "app"], 1);
    assert!(pruned.err.contains("may not delete") && pruned.err.contains("keeper"), "{}", pruned.all());
    assert!(expect_as("agent", at, &["snapshots", "app"], 0).out.lines().count() == 3, "no snapshot is gone");

    // A keeper on a machine of its own, with a key that writes no snapshots.
    let keeper = tempfile::tempdir().unwrap();
    fs::copy(at.join("blackstart/keys/recovery.key"), keeper.path().join("key")).unwrap();
    // The certificate is written by the owner.
    expect(keeper.path(), &["init", "--repo", &repo, "--identity", "key", "--role", "keeper"], 0);
    assert!(keeper.path().join("blackstart/keys/keeper.key").exists());
    configure(keeper.path(), &format!("grace = \"1s\"\n{SOURCE}"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    let pruned = expect_as("keeper", keeper.path(), &["prune"], 0);
    assert!(pruned.out.contains("removed 1 snapshot"), "{}", pruned.all());
    fs::create_dir(keeper.path().join("app")).unwrap();
    let checked = run_as("keeper", keeper.path(), &["check"]);
    assert!(checked.out.contains("certified as keeper: it may prune, and not back up"), "{}", checked.all());
    let refused = expect_as("keeper", keeper.path(), &["backup"], 12);
    assert!(refused.err.contains("not certified"), "{}", refused.all());

    let fresh = tempfile::tempdir().unwrap();
    fs::copy(keeper.path().join("key"), fresh.path().join("key")).unwrap();
    let named = ["--repo", &repo, "--root", &root_of(at)];
    let restore = [&["restore", "app", "--to", "back", "--identity", "key"], &named[..]].concat();
    let denied = expect_as("watcher", fresh.path(), &restore, 1);
    assert!(denied.err.contains("denied"), "{}", denied.all());
    expect_as("restorer", fresh.path(), &restore, 0);
    assert_eq!(fs::read(fresh.path().join("back/etc/app.toml")).unwrap(), b"port = 2\n");
    expect_as("watcher", fresh.path(), &[&["watch"], &named[..]].concat(), 0);
    let status = expect_as("watcher", fresh.path(), &[&["status"], &named[..]].concat(), 4);
    assert!(status.out.contains("HOST"), "{}", status.all());
    expect_as("watcher", fresh.path(), &[&["verify"], &named[..]].concat(), 0);
    administer(server, |client| async move {
        let litter =
            client.list_object_versions().bucket("with-roles").prefix("some/where/probe/").send().await.unwrap();
        let keys: std::collections::BTreeSet<_> = litter.versions().iter().filter_map(|v| v.key()).collect();
        assert!(keys.len() <= 3, "{keys:?}");
    });
}

#[test]
fn silence_and_rollback_raise_the_alarm() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    configure(at, SOURCE);
    expect(at, &["backup"], 0);
    let root = root_of(at);
    let watch = |more: &[&str]| {
        let base = ["watch", "--repo", "repo", "--root", &root, "--state", "seen.json"];
        run(at, &[&base[..], more].concat())
    };
    let well = watch(&[]);
    assert_eq!(well.code, 0, "{}", well.all());
    assert!(well.out.contains("1 source as they should be"), "{}", well.out);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let late = watch(&["--older-than", "1s"]);
    assert_eq!(late.code, 5, "{}", late.all());
    assert_eq!(watch(&["--bound", "app=1s"]).code, 5);
    assert_eq!(watch(&["--bound", "other=1h"]).code, 4, "a source that should be there is not");
    assert_eq!(watch(&["--verified-within", "1d"]).code, 5);
    expect(at, &["drill"], 0);
    assert_eq!(watch(&["--verified-within", "1d"]).code, 0);
    // One alarm each time that something changes, not one each round.
    let rounds = watch(&["--older-than", "1s", "--every", "1s", "--rounds", "3"]);
    assert_eq!((rounds.code, rounds.err.matches("ALARM").count()), (5, 1), "{}", rounds.all());
    fs::write(at.join("app/etc/app.toml"), "port = 2\n").unwrap();
    expect(at, &["backup"], 0);
    assert_eq!(watch(&[]).code, 0);
    fs::remove_file(at.join("repo/snapshots/app/0000000002")).unwrap();
    let rolled = watch(&[]);
    assert_eq!(rolled.code, 4, "{}", rolled.all());
    assert!(rolled.err.contains("older state"), "{}", rolled.all());
    assert_eq!(watch(&[]).code, 4, "and it goes on until somebody acts");
}

#[test]
fn locks_and_classes_in_a_real_bucket() {
    let server = seaweedfs();
    let repo = place(server, "with-tiers");
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", &repo], 0);
    let tiers = "retention = { daily = 7 }\n[source.tier.daily]\nstorage_class = \"GLACIER_IR\"\nlock = \"3d\"\n";
    configure(at, &SOURCE.replace("retention = { last = 1 }\n", tiers));
    expect(at, &["backup"], 0);
    fs::write(at.join("app/etc/app.toml"), "port = 2\n").unwrap();
    expect(at, &["backup"], 0);
    let check = run(at, &["check", "--identity", "blackstart/keys/recovery.key"]);
    assert!(check.out.contains("no lifecycle rule moves packs to GLACIER_IR"), "{}", check.all());
    administer(server, |client| async move {
        let listed = client.list_objects_v2().bucket("with-tiers").send().await.unwrap();
        let mut seen = 0;
        for object in listed.contents() {
            let key = object.key().unwrap();
            let head = client.head_object().bucket("with-tiers").key(key).send().await.unwrap();
            let area = key.trim_start_matches("some/where/").split('/').next().unwrap();
            let locked = ["packs", "index", "snapshots"].contains(&area);
            assert_eq!(head.object_lock_retain_until_date().is_some(), locked, "{key}");
            let class = head.storage_class().map(|class| class.as_str().to_owned());
            assert_eq!(class.as_deref() == Some("GLACIER_IR"), area == "packs", "{key}: {class:?}");
            seen += usize::from(area == "packs");
        }
        assert!(seen > 0);
    });
    let pruned = expect(at, &["prune"], 0);
    assert!(!pruned.all().contains("marked"), "{}", pruned.all());
    // Today's first has gone out of the retention, and is held by its lock.
    assert!(pruned.out.contains("snapshot 1 stays: it is locked until"), "{}", pruned.all());
    expect(at, &["verify", "--hashes"], 0);
    expect(at, &["restore", "app", "--to", "back"], 0);
    // Without Object Lock in the bucket the backup says so and commits nothing.
    let plain = format!("s3://{}/tiers?endpoint={}", crate::support::servers::BUCKET, server.endpoint());
    let other = crate::support::binary::home();
    expect(other.path(), &["init", "--repo", &plain], 0);
    configure(other.path(), &SOURCE.replace("retention = { last = 1 }\n", tiers));
    let refused = run(other.path(), &["backup"]);
    assert_eq!(refused.code, 1, "{}", refused.all());
    assert!(expect(other.path(), &["snapshots"], 0).out.contains("no snapshots"));
    assert!(run(other.path(), &["check"]).out.contains("has no Object Lock: backups will fail"));
}

#[test]
fn an_archive_is_thawed_before_it_is_restored() {
    let server = crate::support::servers::moto();
    let repo = format!("s3://{}/cold?endpoint={}", crate::support::servers::BUCKET, server.endpoint());
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", &repo], 0);
    let tiers = "retention = { daily = 7 }\n[source.tier.daily]\nstorage_class = \"GLACIER\"\n";
    configure(at, &SOURCE.replace("retention = { last = 1 }\n", tiers));
    expect(at, &["backup"], 0);
    let told = expect(at, &["restore", "app", "--to", "back"], 1);
    assert!(told.err.contains("archive class") && told.err.contains("--thaw standard: up to 5.0 h"), "{}", told.all());
    assert!(told.err.contains("--thaw expedited: up to 5 min and about $0.01"), "{}", told.all());
    assert!(!at.join("back").exists());
    let drill = expect(at, &["drill"], 1);
    assert!(
        drill.err.contains("must be thawed first") && drill.err.contains("could not be carried out"),
        "{}",
        drill.all()
    );
    // The server thaws at once.
    expect(at, &["restore", "app", "--to", "back", "--thaw", "standard", "--thaw-wait", "1m"], 0);
    assert_eq!(fs::read(at.join("back/etc/app.toml")).unwrap(), b"port = 1\n");
    expect(at, &["restore", "app", "--to", "again"], 0);
    expect(at, &["drill"], 0);
    configure(
        at,
        "[[source]]\nname = \"b\"\nkind = \"files\"\npath = \"app\"\nrto = \"1h\"\nretention = { daily = 7 }\ntier.daily.storage_class = \"GLACIER\"\n",
    );
    let wrong = expect(at, &["status"], 78);
    assert!(wrong.err.contains("longer than the RTO"), "{}", wrong.all());
}
