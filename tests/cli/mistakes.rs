//! What people get wrong at 3 a.m.: the wrong file as a key, a name that is taken, a store that does not answer. Each is told what to do next.

use super::support::binary::{command, configure, expect, home};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

/// Lines of the page of a kit that begin with this command, as they stand there.
fn lines_of<'a>(page: &'a str, command: &'a str) -> impl Iterator<Item = &'a str> {
    page.lines().map(str::trim).filter(move |line| line.starts_with(command))
}

#[test]
fn a_file_that_is_no_key_is_a_wrong_key_and_the_data_is_well() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    let whole = fs::read_to_string(at.join("blackstart/keys/recovery.key")).unwrap();
    let cut: String = whole.lines().map(|line| format!("{}\n", &line[..line.len() - 3])).collect();
    for (name, text) in [("empty.key", ""), ("note.key", "see the safe\n"), ("cut.key", &cut)] {
        fs::write(at.join(name), text).unwrap();
        let refused = expect(at, &["restore", "app", "--to", "back", "--identity", name], 12).err;
        assert!(
            refused.contains(&format!("{name} is no key file")),
            "expected the file's name and what it is not: {refused}"
        );
        assert!(refused.contains("help: Nothing was changed"), "expected what to do next: {refused}");
        assert!(!at.join("back").exists(), "expected nothing to be written with {name}");
    }
}

#[test]
fn what_cannot_be_protected_is_a_mistake_of_usage() {
    let home = home();
    let at = home.path();
    fs::write(at.join("notes.txt"), "a file").unwrap();
    for what in ["mysql://db/shop", "notes.txt", "nowhere"] {
        let refused = expect(at, &["protect", what, "--repo", "repo"], 64).err;
        assert!(refused.contains("help: Nothing was done"), "expected what to do next for {what}: {refused}");
    }
    assert!(
        !at.join("blackstart.toml").exists() && !at.join("repo").exists(),
        "expected a mistake to leave nothing behind"
    );
    let refused = expect(at, &["protect", "app", "redis://127.0.0.1:1", "--repo", "repo"], 1);
    let told = "not protected: redis. The configuration has a [[source]] for each";
    assert!(
        refused.err.contains(told),
        "expected to hear that the source stands in the configuration: {}",
        refused.err
    );
}

#[test]
fn a_report_is_not_written_over() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    expect(at, &["report", "show", "app", "--to", "out"], 0);
    let refused = expect(at, &["report", "show", "app", "--to", "out"], 64).err;
    assert!(refused.contains("out exists already") && refused.contains("help: Nothing was written"), "{refused}");
}

#[test]
fn whoever_names_a_group_as_a_source_hears_of_the_option() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    configure(at, "\n[[group]]\nname = \"shop\"\nsources = [\"app\", \"orders\"]\n");
    let refused = expect(at, &["restore", "shop", "--to", "back"], 64).err;
    assert!(refused.contains("blackstart restore --group shop --to DIR"), "expected the command that works: {refused}");
}

/// It is what the source had: nothing is damaged, and nobody should look for damage.
#[test]
fn a_drill_of_a_suspect_snapshot_says_that_the_source_is_to_be_looked_at() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app/etc", "--repo", "repo"], 0);
    fs::remove_file(at.join("app/etc/app.toml")).unwrap();
    expect(at, &["backup"], 4);
    let drill = expect(at, &["drill", "etc"], 4);
    assert!(
        drill.out.contains("is what was read, and LOOKS WRONG"),
        "expected the verdict on the source: {}",
        drill.out
    );
    assert!(drill.err.contains("`blackstart backup etc --accept-change`"), "expected what to do next: {}", drill.err);
    assert!(!drill.all().contains("did NOT come back"), "expected no word of damage: {}", drill.all());
}

#[test]
fn check_tells_what_one_loss_would_take_together() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    let said = expect(at, &["check"], 0).out;
    assert!(said.contains("lies on the same file system as app, orders"), "expected the repository's place: {said}");
    assert!(said.contains("WARNING  recovery key"), "expected the key's place: {said}");
    fs::rename(at.join("blackstart/keys/recovery.key"), at.join("usb.key")).unwrap();
    let said = expect(at, &["check"], 0).out;
    assert!(!said.contains("WARNING  recovery key"), "expected no word of a key that is away: {said}");
}

/// Word for word, on a machine that has the kit, the repository and stock tools alone.
#[test]
fn the_commands_in_the_kit_work_as_they_stand_there() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    expect(at, &["kit", "kit", "--identity", "blackstart/keys/recovery.key"], 0);
    let page = fs::read_to_string(at.join("kit/README.txt")).unwrap();
    let shell = |line: &str| {
        let ran = Command::new("sh").args(["-c", line]).current_dir(at.join("kit")).output().unwrap();
        assert!(ran.status.success(), "expected `{line}` of the kit to work: {ran:?}");
    };
    let commands: Vec<&str> = lines_of(&page, "cp ").chain(lines_of(&page, "python3 ")).collect();
    assert_eq!(commands.len(), 3, "expected a copy, a list and a restore: {page}");
    for line in commands {
        shell(&line.replace("SOURCE", "app"));
    }
    let back = |kit: &Path| fs::read_to_string(kit.join("app-restored/etc/app.toml")).unwrap();
    assert_eq!(back(&at.join("kit")), "port = 1\n");
}

/// A store that takes connections and never answers: a minute passes before the first try is given up, and somebody watches.
#[test]
fn a_store_that_keeps_one_waiting_is_named() {
    let home = home();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = format!("s3://bucket/prefix?endpoint=http://{}&path_style=true", silent.local_addr().unwrap());
    let mut waiting = command(home.path(), &["status", "--repo", &place])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It ends in any case: after the last try, or below.
    let first = BufReader::new(waiting.stderr.take().unwrap()).lines().next();
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    let first = first.unwrap().unwrap();
    assert!(
        first.starts_with("warning: s3://bucket/prefix has not answered for"),
        "expected a word while it waits, found: {first}"
    );
}
