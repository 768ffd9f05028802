//! The text of plans: strict, with the line and the cure; and the plans that are shipped.

use super::asked::{add, empty, says};
use super::{plan, protected};
use crate::support::binary::{configure, expect};
use crate::support::engines::{make, python};
use blackstart::config::Config;
use blackstart::plan::{Action, Plan};
use std::fs;
use std::path::Path;

#[test]
fn errors_name_the_line_and_the_cure() {
    let home = protected();
    let at = home.path();
    let refused = |text: &str, words: &[&str]| {
        plan(at, "p", text);
        let said = expect(at, &["drill", "--plan", "p"], 78).err;
        words.iter().for_each(|w| assert!(said.contains(w), "{w:?} is not in {said}"));
    };
    let stage = "[[stage]]\nname = \"a\"\n";
    refused("rpoo = \"1h\"\n", &["p.toml, line 1", "Did you mean `rpo`"]);
    refused(&format!("{stage}budgett = \"1h\"\nrun = [\"true\"]\n"), &["line 3", "Did you mean `budget`"]);
    refused("", &["1 to 200 [[stage]]"]);
    refused(stage, &["p.toml, line 2", "stage \"a\"", "does one thing"]);
    refused(&format!("{stage}run = [\"true\"]\nnotify = {{ text = \"x\" }}\n"), &["does one thing"]);
    refused(&format!("{stage}run = []\n"), &["no program to run"]);
    refused(&format!("{stage}after = [\"b\"]\nrun = [\"true\"]\n"), &["\"b\"", "no stage above"]);
    refused(&format!("{stage}run = [\"true\"]\n{stage}run = [\"true\"]\n"), &["another stage has this name"]);
    refused(&format!("{stage}run = [\"${{nowhere}}\"]\n"), &["${nowhere} is not known", "known are: scratch"]);
    refused(&format!("{stage}restore = {{ source = \"ordes\", to = \"x\" }}\n"), &["ordes is no source", "orders"]);
    refused(&format!("{stage}restore = {{ source = \"app\", to = \"x\" }}\ndrill = \"run\"\n"), &["never to `to`"]);
    refused(&format!("{stage}check = [{{ sql = \"select 1\" }}]\n"), &["which copy?"]);
    refused(&format!("{stage}check = [{{ sql = \"q\", htp = \"u\" }}]\n"), &["line 3", "Did you mean `http`"]);
    refused(&format!("{stage}run = [\"true\"]\nbudget = \"soon\"\n"), &["length of time"]);
    refused(&format!("{stage}run = [\"true\"]\ndrill = \"maybe\"\n"), &["line 4", "\"skip\""]);
    refused(&format!("drill = {{ cron = \"0 3 31 2 *\" }}\n{stage}run = [\"true\"]\n"), &["never fires"]);
    let unknown = expect(at, &["drill", "--plan", "q"], 64);
    assert!(unknown.err.contains("There are: p"), "{}", unknown.err);
    plan(at, "p", "rpoo = \"1h\"\n");
    let checked = expect(at, &["check"], 4);
    assert!(checked.out.contains("FAILED   plan p"), "{}", checked.out);
}

/// The sources that the shipped plans speak of.
const SOURCES: [(&str, &str); 16] = [
    ("kubernetes", "command"),
    ("postgres", "postgres"),
    ("redis", "redis"),
    ("mongodb", "command"),
    ("assistant-db", "postgres"),
    ("assistant-memory", "files"),
    ("casebook", "sqlite"),
    ("events", "sqlite"),
    ("vectors", "chroma"),
    ("notes-db", "sqlite"),
    ("notes-vectors", "chroma"),
    ("notes-config", "files"),
    ("shop-db", "postgres"),
    ("shop-uploads", "files"),
    ("shop-tree", "files"),
    ("unused", "files"),
];

#[test]
fn the_shipped_plans_hold_together() {
    let mut text = "repository = \"repo\"\n".to_owned();
    for (name, kind) in SOURCES {
        let place = match kind {
            "command" => "[source.command]\nfile = \"f\"\ndump = [\"true\"]\n",
            "postgres" => "url = \"postgres://backup@db.internal/shop\"\n",
            "redis" => "url = \"redis://redis.internal\"\n",
            _ => "path = \"p\"\n",
        };
        text.push_str(&format!("[[source]]\nname = \"{name}\"\nkind = \"{kind}\"\n{place}"));
    }
    text.push_str("[[group]]\nname = \"platform\"\nsources = [\"casebook\", \"events\", \"vectors\"]\n");
    let config = Config::parse(&text, Path::new("/etc/blackstart/blackstart.toml")).unwrap();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("restore-plans");
    let mut found = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let plan = Plan::read(&path, &config).unwrap_or_else(|e| panic!("{e:#}"));
        assert!(plan.rpo.is_some() && plan.rto.is_some() && plan.drill.is_some(), "{}", plan.name);
        let budgets: f64 = plan.stages.iter().filter_map(|s| s.budget).map(|b| b.as_secs_f64()).sum();
        assert!(budgets <= plan.rto.unwrap().as_secs_f64() + 3600.0, "{}: {budgets} s of budgets", plan.name);
        assert!(plan.stages.iter().any(|s| matches!(s.action, Action::Check(_))), "{} checks nothing", plan.name);
        found += 1;
    }
    assert_eq!(found, 5);
}

/// The shipped plan of the notes application, on real SQLite, real Chroma and files: it passes, and it notices what it is there to notice.
#[test]
fn the_shipped_plan_of_the_notes_is_rehearsed_on_real_engines() {
    let home = empty();
    let at = home.path();
    fs::create_dir_all(at.join("etc")).unwrap();
    fs::write(at.join("etc/notes.toml"), "port = 3000\n").unwrap();
    let database = rusqlite::Connection::open(at.join("notes.db")).unwrap();
    database.execute_batch("create table notes (changed_at); insert into notes values (datetime('now'))").unwrap();
    make("1.5.9", &at.join("vectors"), 16, 300);
    let python = python("1.5.9").display().to_string();
    add(at, "notes-db", "sqlite", "path = \"notes.db\"");
    add(at, "notes-vectors", "chroma", &format!("path = \"vectors\"\n[source.chroma]\npython = \"{python}\""));
    add(at, "notes-config", "files", "path = \"etc\"");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("restore-plans/notes.toml");
    let text = fs::read_to_string(shipped).unwrap().replace("chroma = \"notes\"", "chroma = \"alpha\"");
    plan(at, "notes", &text);
    expect(at, &["backup"], 0);
    let passed = expect(at, &["drill", "--plan", "notes"], 0);
    says(&passed, &["ok      ids in alpha: 299", "ok      select max(changed_at) from notes: "]);
    database.execute_batch("update notes set changed_at = datetime('now', '-40 days')").unwrap();
    expect(at, &["backup", "notes-db"], 0);
    let stale = expect(at, &["drill", "--plan", "notes"], 4);
    says(&stale, &["FAILED  select max(changed_at) from notes: "]);
}

#[test]
fn sources_that_two_plans_share_are_fine() {
    let home = protected();
    let at = home.path();
    configure(at, "");
    let text = "[[stage]]\nname = \"a\"\nrestore = { source = \"app\", to = \"x\" }\n";
    plan(at, "one", text);
    plan(at, "two", text);
    expect(at, &["backup"], 0);
    expect(at, &["drill", "--plan", "one"], 0);
    expect(at, &["drill", "--plan", "two"], 0);
}
