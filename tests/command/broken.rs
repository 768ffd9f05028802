//! A dump that is not whole must not become a snapshot, and what is there stays as it was.

use super::support::binary::{command, expect, finish};
use super::{home, shell, snapshots, source};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// A home with one good snapshot of a dump that holds `good`.
fn after_a_good_run() -> tempfile::TempDir {
    let home = home();
    shell(home.path(), "yes good | head -c 2000000", "");
    expect(home.path(), &["backup"], 0);
    home
}

/// Fails unless a backup fails, says `said`, and leaves the good snapshot the newest.
fn refused(at: &Path, said: &str) {
    let ran = expect(at, &["backup"], 1);
    assert!(ran.err.contains(said), "{said}: {}", ran.err);
    assert!(ran.err.contains("Nothing was committed"), "{}", ran.err);
    assert_eq!(snapshots(at), 1, "{said}");
}

#[test]
fn exit_codes_signals_and_empty_successes() {
    let home = after_a_good_run();
    let at = home.path();
    shell(at, "yes good | head -c 9000000; echo first >&2; echo disk full >&2; exit 3", "");
    refused(at, "exited with 3:\n  first\n  disk full");
    shell(at, "yes good | head -c 3000000; kill -PIPE $$", "");
    refused(at, "was ended by signal 13");
    shell(at, "yes good | head -c 3000000; kill -KILL $$", "");
    refused(at, "was ended by signal 9");
    shell(at, "true", "");
    refused(at, "has 0 bytes, and 1 is the least");
    shell(at, "echo short", "min_bytes = 100");
    refused(at, "has 6 bytes, and 100 is the least");
    shell(at, "yes bad | head -c 2000000", "magic = \"good\"");
    refused(at, "begins with \"bad\\nbad\\nbad\\nbad\\n\"");
    shell(at, "echo -- Dump completed; yes good | head -c 2000000", "end_marker = \"-- Dump completed\"");
    refused(at, "no `end_marker`");
    shell(at, "yes good | head -c 2000000", "magic = \"0x676f6f64\"\nend_marker = \"good\\n\"");
    expect(at, &["backup"], 0);
    assert_eq!(snapshots(at), 2);
}

#[test]
fn a_dump_that_shrank_asks_first() {
    let home = after_a_good_run();
    let at = home.path();
    shell(at, "yes good | head -c 900000", "");
    refused(at, "shrank from 2000000 to 900000 bytes, by more than 50% (`max_shrink`)");
    // A baseline compares as well.
    let baseline = expect(at, &["backup", "--baseline"], 1);
    assert!(baseline.err.contains("--accept-change"), "{}", baseline.err);
    expect(at, &["backup", "--accept-change"], 0);
    expect(at, &["backup"], 0);
    shell(at, "yes good | head -c 1100000", "max_shrink = \"0%\"");
    expect(at, &["backup"], 0);
    shell(at, "yes good | head -c 1099999", "max_shrink = \"0%\"");
    expect(at, &["backup"], 1);
    // The source's own bound lets it pass; that it looks wrong is said all the same.
    shell(at, "echo", "max_shrink = \"100%\"");
    expect(at, &["backup"], 4);
    assert_eq!(snapshots(at), 5);
}

#[test]
fn of_several_streams_one_that_fails_fails_all() {
    let home = after_a_good_run();
    let at = home.path();
    let stream = |file: &str, line: &str| {
        format!("[[source.command.stream]]\nfile = \"{file}\"\ndump = [\"sh\", \"-c\", '{line}']\n")
    };
    let good = "yes good | head -c 2000000";
    for streams in [[good, good, "exit 4"], ["exit 4", good, good], [good, "exit 4", good]] {
        source(at, &["a", "dump", "z"].iter().zip(streams).map(|(file, line)| stream(file, line)).collect::<String>());
        refused(at, "exited with 4");
    }
}

#[test]
fn a_dump_that_hangs_is_killed_with_all_that_it_started() {
    let home = after_a_good_run();
    let at = home.path();
    let begun = Instant::now();
    shell(
        at,
        "echo $$ > pid; yes good | head -c 2000000; echo waiting >&2; sleep 1000 & sleep 1000",
        "idle_timeout = \"1s\"",
    );
    refused(at, "wrote nothing for 1 s after 2000000 bytes, and was killed; it said:\n  waiting");
    shell(at, "yes good", "timeout = \"1s\"");
    refused(at, "took longer than 1 s");
    // Its output has ended, it has not.
    shell(at, "yes good | head -c 2000000; exec >&-; sleep 1000", "idle_timeout = \"1s\"");
    refused(at, "did not end within 1 s and was killed");
    // It has ended, but a child of it holds its output open: nobody knows whether more would come.
    shell(at, "yes good | head -c 2000000; sleep 1000 & exit 0", "idle_timeout = \"1s\"");
    refused(at, "wrote nothing for 1 s");
    assert!(begun.elapsed() < Duration::from_secs(60), "it waited too long");
    let group = fs::read_to_string(at.join("pid")).unwrap();
    assert!(!alive_in_group(group.trim()), "something of the hanging dump lives on");
}

/// Whether a process of this group runs.
fn alive_in_group(group: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        fields.len() > 3 && fields[2] == group && fields[0] != "Z"
    })
}

#[test]
fn a_flood_on_stderr_holds_nothing_up() {
    let home = home();
    let at = home.path();
    shell(
        at,
        "yes complaint | head -c 60000000 >&2; echo data; tr -d '\\n' < /dev/zero | head -c 5000000 >&2; echo >&2; echo the end >&2",
        "",
    );
    let report = expect(at, &["backup", "--json"], 0).json();
    let stream = &report["report"]["sources"][0]["facts"]["streams"][0];
    let lines = stream["stderr"].as_array().unwrap();
    assert_eq!((stream["bytes"].as_u64(), lines.len(), &lines[9]), (Some(5), 10, &"the end".into()), "{stream}");
    assert!(lines.iter().all(|line| line.as_str().unwrap().len() <= 4096));
}

#[test]
fn an_agent_that_is_killed_leaves_no_dump_running_for_long() {
    let home = after_a_good_run();
    let at = home.path();
    shell(at, "echo $$ > pid; while echo good; do sleep 0.01; done", "");
    let mut agent = command(at, &["backup"]).spawn().unwrap();
    let begun = Instant::now();
    while fs::read_to_string(at.join("pid")).map_or(true, |pid| pid.trim().is_empty()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the dump does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    let group = fs::read_to_string(at.join("pid")).unwrap();
    let ended = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        !alive_in_group(group.trim())
    });
    assert!(ended, "the dump goes on writing to nobody");
    assert_eq!(snapshots(at), 1);
    shell(at, "yes good | head -c 2000000", "");
    let next = finish(&command(at, &["backup", "--adopt"]).output().unwrap());
    assert!(next.code == 0 || next.code == 11, "{}", next.err);
}
