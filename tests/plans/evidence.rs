//! The chain of reports: complete, signed, verified offline and by OpenSSH; and what each level of a drill notices.

use super::{plan, protected, sql};
use crate::support::binary::{expect, files_below, flip, noise, root_of, run};
use blackstart::repository::keys::KeyPair;
use blackstart::repository::layout::Hash;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn a_report_has_what_an_auditor_asks_for() {
    let home = protected();
    let at = home.path();
    expect(at, &["backup"], 0);
    expect(at, &["drill", "orders"], 0);
    let report = expect(at, &["report", "show", "orders", "--json"], 0).json()["report"]["report"].clone();
    for key in ["trigger", "point", "data_time", "commit", "started", "finished", "agent"] {
        assert!(!report[key].as_str().unwrap().is_empty(), "{key}: {report}");
    }
    assert_eq!(
        (report["n"].as_u64(), report["previous"].is_null(), report["level"].as_str()),
        (Some(1), true, Some("engine"))
    );
    for list in ["checks", "tested", "not_tested", "timeline"] {
        assert!(!report[list].as_array().unwrap().is_empty(), "{list}");
    }
    let phases: Vec<&str> =
        report["timeline"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(phases, ["locate", "fetch", "decrypt", "decode", "write", "publish", "checks"]);
    let sum: f64 = report["timeline"].as_array().unwrap().iter().map(|p| p["seconds"].as_f64().unwrap()).sum();
    let total = report["achieved_rto_seconds"].as_f64().unwrap();
    assert!(sum > 0.0 && sum <= total * 1.01, "phases of {sum} s in {total} s");
    assert!(report["objects"]["count"].as_u64().unwrap() >= 3 && report["environment"]["cpus"].as_u64().unwrap() > 0);
    assert_eq!(report["scratch_removed"], true);
    assert_eq!(fs::read_dir(at.join("scratch")).unwrap().count(), 0);
    let page = expect(at, &["report", "show", "orders", "--form", "html"], 0).out;
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("rows of t"), "{page}");
    assert!(expect(at, &["report", "show", "orders"], 0).out.starts_with("# Drill of orders (engine): passed"));
}

#[test]
fn the_chain_shows_what_was_removed_and_what_was_altered() {
    let home = protected();
    let at = home.path();
    expect(at, &["backup"], 0);
    for _ in 0..3 {
        expect(at, &["drill", "app", "--level", "existence"], 0);
    }
    expect(at, &["restore", "app", "--to", "back"], 0);
    let listed = expect(at, &["report"], 0);
    assert!(
        listed.out.contains("drill (existence)") && listed.out.lines().last().unwrap().contains("restore"),
        "{}",
        listed.out
    );
    let report = |n: u64| at.join(format!("repo/drills/app/{n:010}"));
    let second = fs::read(report(2)).unwrap();
    fs::remove_file(report(2)).unwrap();
    let gap = expect(at, &["report"], 4);
    assert!(gap.err.contains("0000000002: is missing: somebody removed evidence"), "{}", gap.err);
    assert!(expect(at, &["verify"], 4).err.contains("removed evidence"));
    // Another report of the same subject in its place.
    fs::copy(report(3), report(2)).unwrap();
    assert!(expect(at, &["report"], 4).err.contains("belongs elsewhere"));
    fs::write(report(2), &second).unwrap();
    expect(at, &["report"], 0);
    flip(&report(3));
    assert!(expect(at, &["report"], 4).err.contains("0000000003"));
}

#[test]
fn a_wrong_key_says_nothing_of_the_backup_and_leaves_nothing_behind() {
    let (home, other) = (protected(), protected());
    let at = home.path();
    expect(at, &["backup"], 0);
    plan(at, "p", "[[stage]]\nname = \"a\"\nrestore = { source = \"app\", to = \"x\" }\n");
    for key in ["recovery.key", "host.key"] {
        let key = other.path().join("blackstart/keys").join(key).display().to_string();
        for arguments in [
            &["drill", "app"][..],
            &["drill", "app", "--level", "existence"],
            &["drill", "--plan", "p"],
            &["verify", "--read-data"],
        ] {
            let refused = expect(at, &[arguments, &["--identity", &key]].concat(), 12);
            assert!(refused.err.contains("nothing is said of the backup"), "{}", refused.all());
        }
    }
    // This host's key may not sign evidence, nor may one that reads everything and is not certified.
    let host = fs::read_to_string(at.join("blackstart/keys/host.key")).unwrap();
    let owner = fs::read_to_string(at.join("blackstart/keys/recovery.key")).unwrap();
    let line = |text: &str, start: &str| text.lines().find(|l| l.starts_with(start)).unwrap().to_owned();
    let mixed = format!("{}\n{}\n", line(&host, "# blackstart-signing-key"), line(&owner, "AGE-SECRET-KEY"));
    fs::write(at.join("mixed.key"), mixed).unwrap();
    for key in ["blackstart/keys/host.key", "mixed.key"] {
        expect(at, &["drill", "app", "--identity", key], 12);
    }
    let restored = expect(at, &["restore", "app", "--to", "back", "--identity", "mixed.key"], 0);
    assert!(restored.err.contains("its record could not be stored"), "{}", restored.all());
    assert!(files_below(&at.join("repo/drills"), |_| true).is_empty());
    expect(at, &["verify", "--read-data"], 0);
}

#[test]
fn a_report_by_a_foreign_key_is_foreign_and_no_damage() {
    let (home, other) = (protected(), protected());
    let at = home.path();
    expect(at, &["backup"], 0);
    expect(at, &["drill", "app"], 0);
    let report = |n: u64| at.join(format!("repo/drills/app/{n:010}"));
    let foreign = KeyPair::read(&other.path().join("blackstart/keys/recovery.key")).unwrap().signing;
    let forge = |n: u64| {
        let before = fs::read(report(n - 1)).unwrap();
        let text = before.split(|b| *b == b'\n').next().unwrap();
        let mut line: serde_json::Value = serde_json::from_slice(text).unwrap();
        (line["n"], line["previous"]) = (n.into(), Hash::of(&before).to_string().into());
        fs::write(report(n), foreign.sign_line(&line).unwrap()).unwrap();
    };
    forge(2);
    for verb in ["verify", "report"] {
        let said = expect(at, &[verb], 0);
        assert!(said.err.contains("may not sign") && said.err.contains("counts for nothing"), "{}", said.all());
    }
    expect(at, &["drill", "app"], 0);
    assert!(expect(at, &["verify"], 0).out.contains("app: whole"));
    // In the place of one that others name, it is evidence taken out.
    expect(at, &["drill", "app"], 0);
    forge(3);
    for verb in ["verify", "report"] {
        assert!(expect(at, &[verb], 4).err.contains("the chain is broken"));
    }
}

#[test]
fn reports_verify_offline_and_by_openssh() {
    let home = protected();
    let at = home.path();
    expect(at, &["backup"], 0);
    expect(at, &["drill", "app"], 0);
    expect(at, &["drill", "app"], 0);
    for n in ["1", "2"] {
        expect(at, &["report", "show", "app", n, "--to", &format!("out{n}")], 0);
    }
    let root = root_of(at);
    let elsewhere = tempfile::tempdir().unwrap();
    let files: Vec<String> = ["out1", "out2"].map(|d| at.join(d).join("report.signed").display().to_string()).into();
    let both = ["report", "verify", &files[0], &files[1], "--root", &root];
    expect(elsewhere.path(), &both, 0);
    let unknown = expect(elsewhere.path(), &["report", "verify", &files[0]], 4);
    assert!(unknown.out.contains("give --root"), "{}", unknown.out);
    let other = run(elsewhere.path(), &["report", "verify", &files[0], "--root", "SHA256:other"]);
    assert_eq!(other.code, 4, "{}", other.all());

    let verify = || {
        let line = fs::File::open(at.join("out1/report.json")).unwrap();
        let arguments =
            ["-Y", "verify", "-f", "signer", "-I", "blackstart", "-n", "blackstart", "-s", "report.json.sig"];
        let mut openssh = Command::new("ssh-keygen");
        openssh.args(arguments).current_dir(at.join("out1")).stdin(line).stdout(Stdio::null()).stderr(Stdio::null());
        openssh.status().expect("ssh-keygen is missing: run scripts/test-servers").success()
    };
    assert!(verify());
    let text = fs::read_to_string(at.join("out1/report.json")).unwrap();
    fs::write(at.join("out1/report.json"), text.replace("\"passed\":true", "\"passed\":false")).unwrap();
    assert!(!verify());
    let text = fs::read_to_string(&files[1]).unwrap();
    fs::write(&files[1], text.replace("engine", "enigne")).unwrap();
    assert!(expect(elsewhere.path(), &both, 4).out.contains("altered or forged"));
}

#[test]
fn each_level_notices_what_it_can_and_only_deep_ones_prove() {
    let home = protected();
    let at = home.path();
    fs::write(at.join("app/big"), noise(3, 3 << 20)).unwrap();
    expect(at, &["backup"], 0);
    for level in ["existence", "hashes", "decode"] {
        let said = expect(at, &["drill", "app", "--level", level], 0);
        assert!(said.out.contains("app: ok: snapshot 1"), "{}", said.out);
        let status = expect(at, &["status", "--json"], 4).json();
        let row = &status["report"]["sources"][0];
        assert!(row["verified"].is_null() && row["measures"]["levels"][level].is_string(), "{row}");
        assert!(row["measures"]["levels"]["engine"].is_null());
    }
    expect(at, &["restore", "app", "--latest-verified", "--to", "v"], 64);
    let cold = expect(at, &["drill", "app", "--level", "cold-start"], 0);
    assert!(cold.out.contains("recover.py with stock tools: restored") && cold.out.contains("PROVEN"), "{}", cold.out);
    expect(at, &["restore", "app", "--latest-verified", "--to", "v"], 0);
    let packs = files_below(&at.join("repo/packs/app"), |_| true);
    let big = packs.iter().max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    flip(big);
    expect(at, &["drill", "app", "--level", "existence"], 0);
    for level in ["hashes", "decode", "engine", "cold-start"] {
        let failed = expect(at, &["drill", "app", "--level", level], 4);
        assert!(failed.out.contains("app: FAILED"), "{level}: {}", failed.all());
    }
    fs::remove_file(big).unwrap();
    let gone = expect(at, &["drill", "app", "--level", "existence"], 4);
    assert!(gone.out.contains("is missing"), "{}", gone.out);
}

#[test]
fn status_shows_each_level_that_the_schedule_promises() {
    let home = protected();
    let at = home.path();
    expect(at, &["backup"], 0);
    fs::create_dir_all(at.join("schedules")).unwrap();
    let ladder = "[[drill]]\nevery = \"1d\"\nlevel = \"hashes\"\n[[drill]]\nevery = \"7d\"\n[[drill]]\nevery = \"90d\"\nlevel = \"cold-start\"\n";
    fs::write(at.join("schedules/app.toml"), format!("source = \"app\"\nevery = \"1h\"\n{ladder}")).unwrap();
    let row = || {
        let shown = run(at, &["status", "--json"]).json();
        shown["report"]["sources"].as_array().unwrap().iter().find(|row| row["source"] == "app").unwrap().clone()
    };
    let passed = |row: &serde_json::Value| {
        row["drills"].as_array().unwrap().iter().map(|d| d["passed"].as_bool()).collect::<Vec<_>>()
    };
    assert_eq!(passed(&row()), [None, None, None]);
    expect(at, &["drill", "app"], 0);
    assert_eq!(passed(&row()), [Some(true), Some(true), None], "a dear drill counts for a cheap one");
    let packs = files_below(&at.join("repo/packs/app"), |_| true);
    packs.iter().for_each(|pack| flip(pack));
    expect(at, &["drill", "app"], 4);
    packs.iter().for_each(|pack| flip(pack));
    expect(at, &["drill", "app", "--level", "hashes"], 0);
    assert_eq!(passed(&row()), [Some(true), Some(false), None], "a cheap drill counts for no dear one");
    let said = run(at, &["status"]).all();
    assert!(said.contains("app: drills: hashes ") && said.contains("cold-start never"), "{said}");
    assert!(said.contains("a drill FAILED, of snapshot 1 (level engine)"), "{said}");
    expect(at, &["drill", "app"], 0);
    assert!(
        !run(at, &["status"]).all().contains("a drill FAILED"),
        "a drill of the same level and snapshot answers it"
    );
}

/// Every file below `directory` with its bytes, but for the reports on drills.
fn stored(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = files_below(directory, |_| true);
    files.retain(|path| !path.starts_with(directory.join("drills")));
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn a_game_day_harms_a_copy_and_every_fault_is_noticed() {
    let home = protected();
    let at = home.path();
    for n in 0..2 {
        fs::write(at.join(format!("app/big{n}")), noise(n, 3 << 20)).unwrap();
        expect(at, &["backup", "app"], 0);
    }
    let before = stored(&at.join("repo"));
    let played = expect(at, &["drill", "app", "--level", "game-day"], 0);
    assert!(played.out.contains("a game day copies") && played.out.contains("stood its game day"), "{}", played.all());
    assert_eq!(stored(&at.join("repo")), before, "the original is read and nothing else");
    assert_eq!(fs::read_dir(at.join("scratch")).unwrap().count(), 0, "scratch is not empty");
    let report = expect(at, &["report", "show", "app", "--json"], 0).json()["report"]["report"].clone();
    assert_eq!((&report["level"], &report["passed"]), (&"game-day".into(), &true.into()));
    let checks = report["checks"].as_array().unwrap();
    let check = |name: &str| checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{name}: {checks:#?}"));
    for (name, actual) in [
        ("the copy as it is", "exit 0"),
        ("a pack is missing", "exit 1"),
        ("a pack is missing: the snapshot before", "exit 0"),
        ("a pack has flipped bits", "exit 1"),
        ("a pack is cut short", "exit 1"),
        ("an index object is missing", "exit 1"),
        ("an index object is missing: the snapshot before", "exit 0"),
        ("the newest commit is missing: watch", "exit 4"),
        ("the newest commit is missing: the newest that is left", "exit 0"),
        ("the store was set back to before the snapshot: watch", "exit 4"),
        ("another recovery key", "exit 12"),
        ("the copy, when all is put right again", "exit 0"),
    ] {
        let found = check(name);
        assert!(found["actual"].as_str().unwrap().starts_with(actual) && found["expected"] != "not run", "{found}");
    }
    // Where a user may make a small disk here, it was played, too.
    let small = check("no room at the target");
    assert!(small["expected"] == "not run" || small["actual"].as_str().unwrap().starts_with("exit 1"), "{small}");
    let row = run(at, &["status", "--json"]).json()["report"]["sources"][0].clone();
    assert!(row["verified"].is_null(), "a game day proves no snapshot: {row}");
    // A snapshot that does not come back unharmed has no game day.
    files_below(&at.join("repo/packs/app"), |_| true).iter().for_each(|pack| flip(pack));
    let failed = expect(at, &["drill", "app", "--level", "game-day"], 4);
    assert!(failed.out.contains("FAILED  the copy as it is"), "{}", failed.all());
}

#[test]
fn the_point_is_chosen_and_scratch_is_kept_on_request() {
    let home = protected();
    let at = home.path();
    for n in 0..3 {
        fs::write(at.join("app/etc/app.toml"), format!("port = {n}\n")).unwrap();
        expect(at, &["backup", "app"], 0);
    }
    let point = |point: &str| {
        let report = expect(at, &["drill", "app", "--point", point, "--level", "existence", "--json"], 0).json();
        let one = &report["report"]["sources"][0];
        (one["seq"].as_u64().unwrap(), one["point"].as_str().unwrap().to_owned())
    };
    assert_eq!(point("latest").0, 3);
    assert_eq!(point("1"), (1, "named by number".into()));
    let (seq, why) = point("random:1d");
    assert!((1..=3).contains(&seq) && why.contains("from 3 complete snapshots"), "{why}");
    let level = |point: &str| {
        expect(at, &["drill", "app", "--point", point, "--json"], 0).json()["report"]["sources"][0]["level"].clone()
    };
    assert_eq!(level("1"), "point", "an old snapshot that comes back says nothing of the newest");
    assert_eq!(level("3"), "engine");
    expect(at, &["drill", "app", "--point", "9"], 64);
    expect(at, &["drill", "app", "--point", "newest"], 64);
    files_below(&at.join("repo/packs/app"), |_| true).iter().for_each(|pack| flip(pack));
    expect(at, &["drill", "app"], 4);
    assert_eq!(fs::read_dir(at.join("scratch")).unwrap().count(), 0);
    let kept = expect(at, &["drill", "app", "--keep-failed"], 4);
    assert!(kept.err.contains("the scratch copy is kept"), "{}", kept.err);
    assert_eq!(fs::read_dir(at.join("scratch")).unwrap().count(), 1);
}

#[test]
fn the_third_drill_predicts_the_next_restore() {
    let home = protected();
    let at = home.path();
    expect(at, &["backup"], 0);
    assert!(expect(at, &["drill", "app"], 0).out.contains("not predicted: 1 of 3"));
    expect(at, &["drill", "app"], 0);
    assert!(expect(at, &["drill", "app"], 0).out.contains("from 3 restores"));
    let status = run(at, &["status", "--json"]).json();
    let predicted = &status["report"]["sources"][0]["measures"]["predicted_rto"];
    assert!(predicted["low"].as_f64().unwrap() <= predicted["high"].as_f64().unwrap(), "{predicted}");
}

#[test]
fn a_period_for_an_auditor() {
    let home = protected();
    let at = home.path();
    expect(at, &["backup"], 0);
    expect(at, &["drill", "app"], 0);
    let year = expect(at, &["report", "--period", "2001-Q2"], 0);
    assert!(year.out.starts_with("# Restore evidence, 2001-04 to 2001-06"), "{}", year.out);
    // `orders` was never drilled: the month of its first snapshot is without a proof.
    let drilled = expect(at, &["report", "show", "app", "--json"], 0).json();
    let month = &drilled["report"]["report"]["started"].as_str().unwrap()[..7].to_owned();
    let found = expect(at, &["report", "--period", month, "--json"], 4).json();
    let subjects = found["report"]["subjects"].as_array().unwrap();
    let of = |name: &str| subjects.iter().find(|s| s["source"] == name).unwrap();
    assert_eq!((of("app")["passed"].as_u64(), of("app")["missed"].as_array().unwrap().len()), (Some(1), 0));
    assert_eq!(of("orders")["missed"][0].as_str(), Some(month.as_str()));
    expect(at, &["drill", "orders"], 0);
    expect(at, &["report", "--period", month], 0);
    expect(at, &["report", "--period", "Q4"], 64);
}

#[test]
fn answers_and_the_words_of_programs_are_shown_here_and_are_not_in_the_repository() {
    let home = protected();
    let at = home.path();
    sql(at, "create table people (mail text); insert into people values ('alice@example.com')");
    expect(at, &["backup"], 0);
    let text = r#"
[[stage]]
name = "database"
restore = { source = "orders", to = "x/orders" }
[[stage]]
name = "asked"
check = [
  { name = "first mail", sql = "select mail from people" },
  { name = "rows", sql = "select count(*) from t", at_least = 3 },
]
[[stage]]
name = "import"
run = ["sh", "-c", "echo duplicate key alice@example.com >&2; exit 1"]
drill = "run"
"#;
    plan(at, "people", text);
    let drilled = expect(at, &["drill", "--plan", "people"], 4);
    assert_eq!(drilled.all().matches("alice@example.com").count(), 2, "whoever drills sees all: {}", drilled.all());
    let stored = files_below(&at.join("repo/drills"), |_| true);
    assert_eq!(stored.len(), 2, "one report of the source, one of the plan: {stored:?}");
    for path in stored {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("alice"), "{}: {text}", path.display());
    }
    let report = expect(at, &["report", "show", "plan.people", "--json"], 0).json()["report"]["report"].clone();
    let checks: Vec<(&str, &str)> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["name"].as_str().unwrap(), c["actual"].as_str().unwrap()))
        .collect();
    assert!(checks.contains(&("asked: rows", "3")), "counts stay: {checks:?}");
    assert!(checks.contains(&("asked: first mail", "not kept here (17 bytes of text)")), "{checks:?}");
    assert!(report["stages"][2]["detail"].as_str().unwrap().starts_with("not kept here"), "{report}");
}
