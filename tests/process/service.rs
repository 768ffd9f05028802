//! What stands in a service's way: paths that its unit cannot write, secrets that belong to somebody else.

use crate::support::binary::{command, configure, expect, finish, home, run};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

#[test]
fn check_says_what_the_unit_cannot_write_and_prints_a_drop_in() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    configure(at, "\n[agent]\nmetrics_file = \"/srv/metrics/blackstart.prom\"\n");
    let config = fs::read_to_string(at.join("blackstart.toml")).unwrap();
    let state = |path: &str| {
        let lines = config
            .lines()
            .map(|line| if line.starts_with("state = ") { format!("state = {path:?}") } else { line.to_owned() });
        fs::write(at.join("blackstart.toml"), lines.collect::<Vec<_>>().join("\n")).unwrap();
    };
    state("/var/lib/blackstart/state");
    let plain = run(at, &["check"]);
    assert!(!plain.all().contains("ReadWritePaths"), "nobody asked for the unit: {}", plain.all());
    let checked = run(at, &["check", "--service"]);
    let line = |path: &str| {
        checked
            .out
            .lines()
            .find(|line| line.contains(&format!("path {path}")))
            .unwrap_or_else(|| panic!("{path}: {}", checked.out))
    };
    // The repository of this test lies in /tmp, of which a service has one of its own.
    assert!(line(at.join("repo").to_str().unwrap()).contains("would be lost"), "{}", checked.out);
    assert!(line("/srv/metrics").contains("read-only to the service"), "{}", checked.out);
    assert!(
        checked.out.contains("\n[Service]\n") && checked.out.contains("\nReadWritePaths=/srv/metrics\n"),
        "{}",
        checked.out
    );
    assert!(!checked.out.contains("ReadWritePaths=/var/lib/blackstart"), "its own it may write: {}", checked.out);
}

#[test]
fn a_secret_of_another_user_is_told_with_the_cure() {
    let home = home();
    let at = home.path();
    expect(at, &["init", "--repo", "repo"], 0);
    let source = "[[source]]\nname = \"shop\"\nkind = \"postgres\"\nurl = \"postgres://nobody@127.0.0.1:1/shop\"\npassword = { file = \"secret\" }\n";
    configure(at, source);
    // As Compose mounts a file of root's into a container that is not root's.
    fs::write(at.join("secret"), "hunter2").unwrap();
    fs::set_permissions(at.join("secret"), PermissionsExt::from_mode(0o000)).unwrap();
    let mut command = command(at, &["backup", "shop"]);
    let mut uid = rustix::process::geteuid().as_raw();
    if uid == 0 {
        uid = 65532;
        let given = std::process::Command::new("chown")
            .args(["-R", "65532:65532", "blackstart", "repo", "."])
            .current_dir(at)
            .status();
        assert!(given.unwrap().success());
        assert!(
            std::process::Command::new("chown").args(["0:0", "secret"]).current_dir(at).status().unwrap().success()
        );
        command.uid(uid).gid(uid);
    }
    let refused = finish(&command.output().unwrap());
    assert_eq!(refused.code, 78, "{}", refused.all());
    let cure = format!("This runs as user {uid}, to whom it must belong: chown {uid} ");
    assert!(refused.err.contains(&cure) && refused.err.contains("chmod 0400"), "{}", refused.all());
}
