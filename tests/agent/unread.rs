//! A repository of which one object cannot be read: that is told, nothing is taken for lost because of it, and all else goes on.

use std::fs;
use std::os::unix::fs::symlink;

use super::daemon::{Daemon, ended, told};
use super::support::binary::{configure, expect, home, run};

#[test]
fn an_object_that_cannot_be_read_is_told_and_everything_else_goes_on() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    let other = "[[source]]\nname = \"other\"\nkind = \"files\"\npath = \"app/etc\"\n";
    configure(at, &format!("\n[agent]\nlisten = \"127.0.0.1:0\"\nobserve = \"1s\"\n{other}"));
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/etc.toml"), "source = \"etc\"\nevery = \"1h\"\nrpo = \"2h\"\n").unwrap();
    fs::write(at.join("schedules/other.toml"), "source = \"other\"\nevery = \"2s\"\n").unwrap();
    // A bad sector: opening it is no error, reading it is.
    let commit = at.join("repo/snapshots/etc/0000000001");
    fs::rename(&commit, at.join("aside")).unwrap();
    symlink("/proc/self/mem", &commit).unwrap();
    let daemon = Daemon::start(at, &[]);
    let begun = daemon.wait("the alarm", 1, told("etc/unread", "begun"));
    assert!(begun["detail"].as_str().unwrap().contains("snapshots/etc/0000000001"), "which object, and why: {begun}");
    daemon.wait("backups of the other", 2, ended("incremental"));
    assert_eq!(daemon.metric("blackstart_repository_up{}"), 1.0, "the repository itself is there");
    let observed = |source: &str| format!("blackstart_observed_timestamp_seconds{{source=\"{source}\"}}");
    daemon.wait_metric(&observed("other"), |at| at > 0.0);
    assert_eq!(daemon.metric_if_any(&observed("etc")), None, "nothing is known of it");
    for wrong in ["etc/never", "etc/rpo", "etc/overdue", "repository"] {
        assert_eq!(daemon.count(told(wrong, "begun")), 0, "{wrong} is not known");
    }
    // Whoever watches from elsewhere is told the same, and since when.
    let watch = ["watch", "--repo", "repo", "--root", &super::support::binary::root_of(at), "--state", "seen.json"];
    let first = expect(at, &watch, 4);
    assert!(
        first.err.contains("ALARM: etc: it cannot be read since") && !first.err.contains("other"),
        "{}",
        first.all()
    );
    assert_eq!(expect(at, &watch, 4).err, first.err, "the moment since when does not move");
    fs::remove_file(&commit).unwrap();
    fs::rename(at.join("aside"), &commit).unwrap();
    daemon.wait("the end of it", 1, told("etc/unread", "recovered"));
    daemon.wait_metric(&observed("etc"), |at| at > 0.0);
    daemon.wait_metric("blackstart_recovery_point_timestamp_seconds{source=\"etc\",verified=\"false\"}", |at| at > 0.0);
    assert_eq!(daemon.stop(), 0);
    assert_eq!(run(at, &watch).code, 0);
}
