//! `kind = "command"` from end to end, with programs that do everything a dump tool can do wrong.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and files need no durability"
)]

#[path = "../support/mod.rs"]
mod support;

mod broken;
mod into;
mod ready;

use std::fs;
use std::path::Path;
use support::binary::{configure, expect, noise};
use tempfile::TempDir;

/// A home with a repository and nothing to protect yet.
pub fn home() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    expect(home.path(), &["init", "--repo", "repo"], 0);
    home
}

/// A source `dump` whose one program is a line of shell.
pub fn shell(home: &Path, line: &str, more: &str) {
    source(home, &format!("dump = [\"sh\", \"-c\", '''{line}''']\n{more}"));
}

/// A source `dump` with these lines in its table, in place of the one that was there.
pub fn source(home: &Path, table: &str) {
    let path = home.join("blackstart.toml");
    let text = fs::read_to_string(&path).unwrap();
    let before = text.split("[[source]]").next().unwrap();
    fs::write(path, format!("{before}[[source]]\nname = \"dump\"\nkind = \"command\"\n[source.command]\n{table}\n"))
        .unwrap();
}

/// The numbers of the snapshots that there are.
pub fn snapshots(home: &Path) -> usize {
    let listed = expect(home, &["snapshots", "--json"], 0).json();
    listed["report"]["snapshots"].as_array().unwrap().len()
}

#[test]
fn streams_go_in_come_back_and_are_proven() {
    let home = home();
    let at = home.path();
    let mut numbers = noise(1, 6_000_000);
    fs::write(at.join("numbers"), &numbers).unwrap();
    configure(
        at,
        "[[source]]\nname = \"dump\"\nkind = \"command\"\n[source.command]\nenvironment = { WHAT = \"numbers\" }\n\
         [[source.command.stream]]\nfile = \"numbers.bin\"\ndump = [\"sh\", \"-c\", 'cat $WHAT; echo done >&2']\nverify = [\"cmp\", \"{file}\", \"numbers\"]\n\
         [[source.command.stream]]\nfile = \"globals.sql\"\ndump = [\"echo\", \"create role x;\"]\nverify = [\"grep\", \"-q\", \"role x\"]\nend_marker = \"x;\"\n",
    );
    let report = expect(at, &["backup", "--json"], 0).json();
    let streams = &report["report"]["sources"][0]["facts"]["streams"];
    assert_eq!((&streams[0]["file"], &streams[1]["stderr"][0]), (&"globals.sql".into(), &"done".into()), "{report}");
    assert_eq!(report["report"]["sources"][0]["stats"]["bytes"], 6_000_016 - 1);

    // A change in the middle moves what is behind it; each run reads everything, and stores little.
    numbers.splice(3_000_000..3_000_000, *b"a few bytes more");
    fs::write(at.join("numbers"), &numbers).unwrap();
    let second = expect(at, &["backup", "--json"], 0).json();
    let stats = &second["report"]["sources"][0]["stats"];
    assert!(stats["bytes_read"].as_u64().unwrap() > 6_000_000, "{stats}");
    assert!(stats["bytes_stored"].as_u64().unwrap() < 500_000, "{stats}");

    expect(at, &["restore", "dump", "--to", "back"], 0);
    assert!(fs::read(at.join("back/numbers.bin")).unwrap() == numbers);
    assert_eq!(fs::read_to_string(at.join("back/globals.sql")).unwrap(), "create role x;\n");
    let drill = expect(at, &["drill"], 0);
    for check in ["cmp on numbers.bin: sound", "grep on globals.sql: sound", "globals.sql: end marker: there"] {
        assert!(drill.out.contains(check), "{}", drill.out);
    }
    assert_eq!(expect(at, &["verify", "--read-data"], 0).code, 0);
}

#[test]
fn a_drill_tells_a_bad_dump_from_a_bad_machine() {
    let home = home();
    let at = home.path();
    shell(at, "echo data", "verify = [\"grep\", \"-q\", \"other\"]");
    expect(at, &["backup"], 0);
    let failed = expect(at, &["drill"], 4);
    assert!(failed.out.contains("grep on dump: expected sound, found: grep exited with 1"), "{}", failed.out);
    shell(at, "echo data", "verify = [\"no-such-program\", \"{file}\"]");
    let environment = expect(at, &["drill"], 1);
    assert!(environment.err.contains("says nothing of the backup"), "{}", environment.err);
    // That is seen before anything is fetched: here there would be nothing to fetch.
    fs::rename(at.join("repo/packs"), at.join("packs")).unwrap();
    let early = expect(at, &["drill"], 1);
    assert!(early.err.contains("nothing was fetched"), "{}", early.err);
    fs::rename(at.join("packs"), at.join("repo/packs")).unwrap();
    shell(at, "echo data", "verify = [\"sleep\", \"100\"]\ntimeout = \"1s\"");
    let slow = expect(at, &["drill"], 4);
    assert!(slow.out.contains("did not end within 1 s"), "{}", slow.out);
    shell(at, "echo data", "verify = [\"sh\", \"-c\", \"cat > /dev/null; exit 0\"]");
    expect(at, &["drill"], 0);
}

#[test]
fn a_secret_reaches_the_program_and_nothing_else() {
    let home = home();
    let at = home.path();
    fs::write(at.join("password"), "correct-horse\n").unwrap();
    let environment =
        "environment = { DB_PASSWORD = { file = \"password\" }, HOST = \"h\" }\npass = [\"BLACKSTART_TEST_EXTRA\"]\n";
    shell(at, "env; tr '\\0' ' ' < /proc/$$/cmdline; echo \"trying $DB_PASSWORD\" >&2; test $HOST = h", environment);
    let mut command = support::binary::command(at, &["backup", "--json"]);
    command.env("BLACKSTART_TEST_EXTRA", "passed").env("BLACKSTART_TEST_OTHER", "withheld");
    let ran = support::binary::finish(&command.output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(!ran.all().contains("correct-horse") && ran.out.contains("trying …"), "{}", ran.all());
    expect(at, &["restore", "dump", "--to", "back"], 0);
    let seen = fs::read_to_string(at.join("back/dump")).unwrap();
    let (variables, arguments) = seen.split_at(seen.rfind("sh -c").unwrap());
    assert!(
        variables.contains("DB_PASSWORD=correct-horse") && variables.contains("BLACKSTART_TEST_EXTRA=passed"),
        "{seen}"
    );
    assert!(!variables.contains("withheld") && !variables.contains("AWS_"), "{seen}");
    assert!(!arguments.contains("correct-horse"), "{seen}");

    shell(at, "echo \"login with $DB_PASSWORD failed\" >&2; exit 7", environment);
    let failed = expect(at, &["backup"], 1);
    assert!(failed.err.contains("login with … failed") && !failed.all().contains("correct-horse"), "{}", failed.err);
    fs::remove_file(at.join("password")).unwrap();
    let gone = expect(at, &["backup"], 78);
    assert!(gone.err.contains("the secret in"), "{}", gone.err);
}

#[test]
fn the_configuration_says_what_is_wrong_with_it() {
    let home = home();
    let at = home.path();
    for (table, said) in [
        ("", "no `dump`"),
        ("dump = [\"x\"]\nmin_byte = 3", "min_bytes"),
        ("dump = \"mongodump --archive\"", "sequence"),
        ("dump = [\"x\"]\nfile = \"a/b\"", "file name"),
        ("dump = [\"x\"]\nmax_shrink = 50", "string"),
    ] {
        source(at, table);
        let wrong = expect(at, &["backup"], 78);
        assert!(wrong.err.contains(said), "{table}: {}", wrong.err);
    }
    let path = at.join("blackstart.toml");
    let text = fs::read_to_string(&path).unwrap();
    let before = text.split("[[source]]").next().unwrap().to_owned();
    for lines in [
        "kind = \"command\"\n",
        "kind = \"command\"\npath = \"x\"\n[source.command]\ndump = [\"x\"]\n",
        "kind = \"files\"\npath = \"x\"\n[source.command]\ndump = [\"x\"]\n",
    ] {
        fs::write(&path, format!("{before}[[source]]\nname = \"dump\"\n{lines}")).unwrap();
        let wrong = expect(at, &["backup"], 78);
        assert!(wrong.err.contains("[source.command]"), "{lines}: {}", wrong.err);
    }
    shell(at, "echo", "");
    source(at, "dump = [\"no-such-program\"]");
    let missing = expect(at, &["backup"], 1);
    assert!(missing.err.contains("there is no program \"no-such-program\" here"), "{}", missing.err);
}
