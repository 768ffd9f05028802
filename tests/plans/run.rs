//! Plans run from end to end: in a drill, for real, stopped and resumed, rolled back.

use super::{plan, protected, sql};
use crate::support::binary::{expect, run};
use crate::support::servers::free_ports;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Serves `directory` on a loopback port, by Python, until it is dropped.
struct Web(Child, u16);

impl Web {
    fn start(directory: &Path) -> Web {
        let [port] = free_ports();
        let arguments = ["-m", "http.server", &port.to_string(), "--bind", "127.0.0.1"];
        let child =
            Command::new("python3").args(arguments).current_dir(directory).stderr(Stdio::null()).spawn().unwrap();
        Web(child, port)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// SQLite and configuration of one application: stop it, move the old data aside, restore, check, start, ask its health.
fn application(port: u16) -> String {
    format!(
        r#"
about = "the application"
rpo = "1h"
rto = "10m"
drill = {{ every = "1d" }}
variables = {{ live = "live" }}
[[stage]]
name = "stop"
budget = "1m"
run = ["sh", "-c", "echo stop >> log"]
undo = ["sh", "-c", "echo start again >> log"]
[[stage]]
name = "tree"
budget = "5m"
restore = {{ source = "app", to = "${{live}}/app", replace = true }}
on_failure = "rollback"
[[stage]]
name = "database"
after = ["stop"]
budget = "5m"
restore = {{ source = "orders", to = "${{live}}/db", replace = true }}
on_failure = "rollback"
[[stage]]
name = "whole"
after = ["tree", "database"]
check = [
  {{ name = "rows", source = "orders", sql = "select count(*) from t", at_least = 3 }},
  {{ source = "orders", sql = "pragma integrity_check", equals = "ok" }},
  {{ name = "files", files = "${{copy.app}}", at_least = 2 }},
]
on_failure = "rollback"
[[stage]]
name = "start"
run = ["sh", "-c", "test ! -e broken && echo start >> log"]
drill = {{ run = ["test", "-e", "${{copy.app}}/etc/app.toml"] }}
[[stage]]
name = "health"
timeout = "20s"
wait_for = {{ http = "http://127.0.0.1:{port}/" }}
[[stage]]
name = "tell"
on_failure = "continue"
notify = {{ text = "restored", run = ["sh", "-c", "echo told >> log"] }}
"#
    )
}

fn log(at: &Path) -> String {
    fs::read_to_string(at.join("log")).unwrap_or_default()
}

fn kept(at: &Path, name: &str) -> usize {
    let begin = format!("{name}.before-restore-");
    let names = fs::read_dir(at.join("live")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with(&begin)).count()
}

#[test]
fn a_plan_is_rehearsed_run_stopped_and_resumed() {
    let home = protected();
    let at = home.path();
    let web = Web::start(at);
    plan(at, "app", &application(web.1));
    expect(at, &["backup"], 0);
    let drilled = expect(at, &["drill", "--plan", "app"], 0);
    assert!(
        drilled.out.contains("Plan app (drill): PASSED") && drilled.out.contains("not tested: stop (run)"),
        "{}",
        drilled.out
    );
    assert!(drilled.out.contains("start: ok"), "{}", drilled.out);
    assert_eq!(log(at), "", "a drill touched what is live");
    assert!(!at.join("live").exists() && fs::read_dir(at.join("scratch")).unwrap().count() == 0);
    // The drill of the plan proves its sources, too.
    expect(at, &["status"], 0);

    fs::create_dir_all(at.join("live/app")).unwrap();
    fs::write(at.join("live/app/old"), "old").unwrap();
    let shown = expect(at, &["restore", "--plan", "app", "--dry-run"], 0).out;
    assert!(shown.contains("Plan app: verified") && shown.contains("1 earlier runs"), "{shown}");
    let unconfirmed = expect(at, &["restore", "--plan", "app"], 64);
    assert!(unconfirmed.err.contains("--confirm app") && log(at).is_empty(), "{}", unconfirmed.all());
    expect(at, &["restore", "--plan", "app", "--confirm", "orders"], 64);
    fs::write(at.join("broken"), "").unwrap();
    let stopped = expect(at, &["restore", "--plan", "app", "--confirm", "app"], 1);
    assert!(stopped.out.contains("start: FAILED") && stopped.err.contains("--resume"), "{}", stopped.all());
    assert_eq!((kept(at, "app"), log(at).as_str()), (1, "stop\n"));
    let again = expect(at, &["restore", "--plan", "app", "--confirm", "app"], 64);
    assert!(again.err.contains("has not come to its end"), "{}", again.err);
    fs::remove_file(at.join("broken")).unwrap();
    let done = expect(at, &["restore", "--plan", "app", "--confirm", "app", "--resume"], 0);
    assert!(done.out.contains("Plan app (real): PASSED"), "{}", done.out);
    // Nothing was restored twice, and the service was stopped once.
    assert_eq!((kept(at, "app"), log(at).as_str()), (1, "stop\nstart\ntold\n"));
    assert_eq!(fs::read_to_string(at.join("live/app/etc/app.toml")).unwrap(), "port = 1\n");
    expect(at, &["restore", "--plan", "app", "--confirm", "app", "--resume"], 64);
    let report = expect(at, &["report", "show", "plan.app", "--json"], 0).json()["report"]["report"].clone();
    assert_eq!(
        (report["n"].as_u64(), report["mode"].as_str(), report["points"].as_array().unwrap().len()),
        (Some(3), Some("real"), 2)
    );
    assert_eq!((report["rpo_met"].as_bool(), report["rto_met"].as_bool()), (Some(true), Some(true)), "{report}");
    assert!(expect(at, &["report"], 0).out.contains("plan (real)"));
    assert!(
        expect(at, &["report", "show", "plan.app", "--form", "html"], 0)
            .out
            .contains("Restore plan app (real): passed")
    );
}

#[test]
fn an_edit_drops_the_state_to_not_verified() {
    let home = protected();
    let at = home.path();
    let text = "[[stage]]\nname = \"a\"\nrestore = { source = \"app\", to = \"x\" }\n";
    plan(at, "p", text);
    expect(at, &["backup"], 0);
    let state = || expect(at, &["restore", "--plan", "p", "--dry-run"], 0).out.lines().next().unwrap().to_owned();
    assert_eq!(state(), "Plan p: NOT VERIFIED: never drilled");
    expect(at, &["drill", "--plan", "p"], 0);
    assert!(state().starts_with("Plan p: verified"), "{}", state());
    plan(at, "p", &format!("# a word\n{text}"));
    assert!(state().contains("NOT VERIFIED: edited since"), "{}", state());
    plan(at, "p", text);
    assert!(state().starts_with("Plan p: verified"));
}

#[test]
fn a_failed_check_rolls_back_what_was_done() {
    let home = protected();
    let at = home.path();
    plan(at, "app", &application(1));
    sql(at, "delete from t where n > 1");
    expect(at, &["backup"], 0);
    for name in ["app", "db"] {
        fs::create_dir_all(at.join("live").join(name)).unwrap();
        fs::write(at.join("live").join(name).join("mine"), name).unwrap();
    }
    let drilled = expect(at, &["drill", "--plan", "app"], 4);
    assert!(drilled.out.contains("FAILED  rows: expected at least 3, found: 1"), "{}", drilled.out);
    assert!(drilled.out.contains("start: not reached"), "{}", drilled.out);
    let real = expect(at, &["restore", "--plan", "app", "--confirm", "app"], 4);
    for name in ["app", "db"] {
        assert_eq!(fs::read_to_string(at.join("live").join(name).join("mine")).unwrap(), name, "{}", real.all());
        assert_eq!(kept(at, name), 1, "the restored copy is beside");
    }
    assert_eq!(log(at), "stop\nstart again\n");
    assert_eq!(real.out.matches("undone").count(), 0, "stages are told as they end: {}", real.out);
    let stages = run(at, &["report", "show", "plan.app", "--json"]).json()["report"]["report"]["stages"].clone();
    let undone = stages.as_array().unwrap().iter().filter(|s| s["outcome"] == "undone").count();
    assert_eq!(undone, 3, "{stages}");
}

#[test]
fn a_place_that_is_taken_stops_a_plan_before_it_begins() {
    let home = protected();
    let at = home.path();
    let text = "[[stage]]\nname = \"stop\"\nrun = [\"touch\", \"stopped\"]\n[[stage]]\nname = \"a\"\nrestore = { source = \"app\", to = \"app\" }\n";
    plan(at, "p", text);
    expect(at, &["backup"], 0);
    let refused = expect(at, &["restore", "--plan", "p", "--confirm", "p"], 64);
    assert!(refused.err.contains("something is there") && !at.join("stopped").exists(), "{}", refused.err);
}

#[test]
fn budgets_stale_data_and_stages_that_go_on() {
    let home = protected();
    let at = home.path();
    let text = r#"
rpo = "1s"
[[stage]]
name = "slow"
budget = "100ms"
run = ["sleep", "0.3"]
drill = "run"
[[stage]]
name = "fails"
on_failure = "continue"
run = ["sh", "-c", "echo why >&2; exit 7"]
drill = "run"
[[stage]]
name = "needs it"
run = ["true"]
drill = "run"
on_failure = "continue"
[[stage]]
name = "restore"
after = ["slow"]
restore = { source = "orders", to = "x" }
[[stage]]
name = "recent"
check = [{ newest = "select max(at) from seen", within = "1h" }]
"#;
    plan(at, "p", text);
    sql(at, "create table seen (at text); insert into seen values (datetime('now', '-3 hours'))");
    expect(at, &["backup"], 0);
    std::thread::sleep(Duration::from_millis(1100));
    let drilled = expect(at, &["drill", "--plan", "p"], 4).out;
    for words in [
        "slow: ok",
        "OVER BUDGET",
        "exited with 7",
        "why",
        "needs it: not reached",
        "MISSED  RPO",
        "recent: FAILED",
        "3h",
    ] {
        assert!(drilled.contains(words), "{words:?} is not in {drilled}");
    }
    sql(at, "insert into seen values (datetime('now', '-5 minutes'))");
    expect(at, &["backup"], 0);
    let drilled = expect(at, &["drill", "--plan", "p"], 4).out;
    assert!(drilled.contains("recent: ok"), "{drilled}");
}

#[test]
fn a_secret_reaches_the_program_alone() {
    let home = protected();
    let at = home.path();
    fs::write(at.join("password"), "hunter2\n").unwrap();
    let text = "[[stage]]\nname = \"a\"\nrun = [\"sh\", \"-c\", \"test \\\"$PW\\\" = hunter2 && echo $PW >&2 && exit 1\"]\nsecrets = { PW = { file = \"password\" } }\ndrill = \"run\"\n";
    plan(at, "p", text);
    let drilled = expect(at, &["drill", "--plan", "p"], 4);
    assert!(drilled.out.contains("a: FAILED"), "{}", drilled.out);
    assert!(!drilled.all().contains(" hunter2"), "a secret in the output: {}", drilled.all());
}

/// What a drill replaced was not done: its undo would touch the live system.
#[test]
fn a_drill_takes_nothing_back_that_it_has_not_done() {
    let home = protected();
    let at = home.path();
    expect(at, &["backup"], 0);
    let text = r#"
rpo = "1h"
rto = "10m"
[[stage]]
name = "stop"
run = ["touch", "LIVE-RUN"]
drill = { run = ["true"] }
undo = ["touch", "LIVE-UNDO"]
[[stage]]
name = "tree"
restore = { source = "app", to = "live/app" }
[[stage]]
name = "own"
run = ["touch", "DRILL-RUN"]
drill = "run"
undo = ["touch", "DRILL-UNDO"]
[[stage]]
name = "whole"
check = [{ name = "files", files = "${copy.app}", at_least = 2000 }]
undo = ["touch", "CHECK-UNDO"]
on_failure = "rollback"
"#;
    plan(at, "careful", text);
    let drilled = expect(at, &["drill", "--plan", "careful"], 4);
    for (name, there) in
        [("LIVE-RUN", false), ("LIVE-UNDO", false), ("CHECK-UNDO", false), ("DRILL-RUN", true), ("DRILL-UNDO", true)]
    {
        assert_eq!(at.join(name).exists(), there, "{name}: {}", drilled.all());
    }
    assert!(drilled.all().contains("was left out"), "{}", drilled.all());

    // A drill that only stops leaves nothing of what it has done either; a real run does, to be resumed.
    let text = text.replace("on_failure = \"rollback\"\n", "").replace("DRILL-UNDO", "STOPPED-UNDO");
    plan(at, "stops", &text);
    expect(at, &["drill", "--plan", "stops"], 4);
    assert!(at.join("STOPPED-UNDO").exists() && !at.join("CHECK-UNDO").exists() && !at.join("LIVE-UNDO").exists());
    fs::remove_file(at.join("STOPPED-UNDO")).unwrap();
    fs::create_dir(at.join("live")).unwrap();
    expect(at, &["restore", "--plan", "stops", "--confirm", "stops"], 4);
    assert!(at.join("LIVE-RUN").exists() && !at.join("STOPPED-UNDO").exists());
}

/// What a stopped run says to do next is what gets it to its end; and `--restart` does not lose what `--resume` needs.
#[test]
fn a_run_that_a_check_stopped_goes_on_by_the_command_that_it_prints() {
    let home = protected();
    let at = home.path();
    plan(
        at,
        "p",
        "[[stage]]\nname = \"database\"\nrestore = { source = \"orders\", to = \"fresh\" }\n\
         [[stage]]\nname = \"whole\"\ncheck = [{ source = \"orders\", sql = \"select count(*) from t\", at_least = 4 }]\n",
    );
    expect(at, &["backup", "orders"], 0);
    let stopped = expect(at, &["restore", "--plan", "p", "--confirm", "p"], 4);
    assert!(stopped.err.contains("blackstart restore --plan p --confirm p --resume"), "{}", stopped.err);
    let anew = expect(at, &["restore", "--plan", "p", "--confirm", "p", "--restart"], 64);
    assert!(anew.err.contains("something is there"), "{}", anew.err);
    rusqlite::Connection::open(at.join("fresh/orders.db")).unwrap().execute("insert into t values (4)", ()).unwrap();
    expect(at, &["restore", "--plan", "p", "--confirm", "p", "--resume"], 0);

    // The auditor reads of the failure, of what followed, and that none of it was a drill.
    let listed = expect(at, &["report", "--json"], 0).json();
    let report = listed["report"]["reports"].as_array().unwrap().iter().find(|r| r["type"] == "plan").unwrap();
    let month = report["started"].as_str().unwrap()[..7].to_owned();
    let found = run(at, &["report", "--period", &month, "--json"]).json();
    let subjects = found["report"]["subjects"].as_array().unwrap();
    let subject = subjects.iter().find(|s| s["source"] == "plan.p").unwrap();
    assert_eq!((subject["drills"].as_u64(), subject["restores"].as_u64()), (Some(0), Some(2)), "{subject}");
    assert!(subject["longest_rto_seconds"].is_f64() && subject["failures"][0]["passed_again"].is_string(), "{subject}");
    let told = run(at, &["report", "--period", &month]);
    assert!(told.out.contains("plan.p, report 1") && told.out.contains("stage whole"), "{}", told.out);
    let page = run(at, &["report", "--period", &month, "--form", "html"]).out;
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("stage whole"), "{page}");
}
