//! The page for an auditor: what the schedule promised, what was done, what failed and how long it stood.

use super::asked::replace;
use super::{plan, protected};
use crate::support::binary::{configure, expect, files_below, run};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The page of this month.
fn page(at: &Path) -> Value {
    let listed = expect(at, &["report", "--json"], 0).json();
    let month = listed["report"]["reports"][0]["started"].as_str().unwrap()[..7].to_owned();
    run(at, &["report", "--period", &month, "--json"]).json()["report"].clone()
}

fn of<'a>(page: &'a Value, subject: &str) -> &'a Value {
    let subjects = page["subjects"].as_array().unwrap();
    subjects.iter().find(|s| s["source"] == subject).unwrap_or_else(|| panic!("{subject} is not in {page}"))
}

#[test]
fn an_auditor_reads_what_was_promised_and_what_became_of_it() {
    let home = protected();
    let at = home.path();
    configure(at, "[[source]]\nname = \"idle\"\nkind = \"files\"\npath = \"app/etc\"\n");
    expect(at, &["backup"], 0);
    expect(at, &["drill"], 0);
    // Without a schedule it is judged by the month, and says so.
    let before = page(at);
    assert!(before["judged_by"].as_str().unwrap().starts_with("at least one proof a month: no job"), "{before}");
    assert_eq!(of(&before, "app")["promised"].as_array().unwrap().len(), 0);
    fs::create_dir(at.join("schedules")).unwrap();
    let job = |name: &str, text: &str| fs::write(at.join(format!("schedules/{name}.toml")), text).unwrap();
    job("app", "source = \"app\"\nevery = \"1h\"\nrpo = \"2h\"\nrto = \"1h\"\ndrill = { every = \"1s\" }\n");
    job("orders", "source = \"orders\"\nevery = \"1h\"\n");
    plan(
        at,
        "shop",
        "rto = \"1h\"\ndrill = { every = \"1d\" }\n[[stage]]\nname = \"data\"\nrestore = { source = \"orders\", to = \"x\" }\n",
    );
    replace(at, "path = \"app/etc\"\n", "path = \"app/etc\"\nrpo = \"1s\"\n");
    // Three seconds in which a drill was due each second.
    std::thread::sleep(std::time::Duration::from_millis(3600));
    let scheduled = page(at);
    assert!(scheduled["judged_by"].as_str().unwrap().starts_with("what the jobs and restore plans"), "{scheduled}");
    assert_eq!(scheduled["without_job"].as_array().unwrap(), &["idle"]);
    let app = of(&scheduled, "app");
    let kept = &app["promised"][0];
    assert_eq!((kept["level"].as_str(), kept["by"].as_str()), (Some("engine"), Some("app.toml")), "{kept}");
    let missed = kept["missed"].as_array().unwrap().len() as u64;
    assert!(missed >= 2 && kept["done"] == 1 && kept["due"] == 1 + missed, "{kept}");
    assert_eq!(app["missed"].as_array().unwrap().len(), 0, "it is not judged by the month: {app}");
    assert_eq!(
        (app["rpo"]["target_seconds"].as_f64(), app["rto"]["target_seconds"].as_f64()),
        (Some(7200.0), Some(3600.0))
    );
    assert!(app["rpo"]["worst_seconds"].as_f64().unwrap() < 7200.0 && app["rto"]["worst_seconds"].is_f64(), "{app}");
    // The source is drilled by its plan, as often as that: the drill of today kept it.
    let orders = of(&scheduled, "orders");
    let by_plan = &orders["promised"][0];
    assert_eq!(
        (by_plan["by"].as_str(), by_plan["missed"].as_array().unwrap().len()),
        (Some("shop.toml"), 0),
        "{orders}"
    );
    let of_plan = of(&scheduled, "plan.shop");
    assert_eq!(
        (of_plan["promised"][0]["due"].as_u64(), of_plan["missed"].as_array().unwrap().len()),
        (Some(0), 0),
        "its first drill is not due yet: {of_plan}"
    );
    // Nothing promises to drill it: by the month.
    let idle = of(&scheduled, "idle");
    assert_eq!(
        (idle["promised"].as_array().unwrap().len(), idle["missed"].as_array().unwrap().len()),
        (0, 0),
        "{idle}"
    );
    assert!(idle["rpo"]["longest_between_snapshots_seconds"].as_f64().unwrap() > 1.0, "{idle}");
    let told = run(at, &["report", "--period", &month_of(at)]);
    assert_eq!(told.code, 4, "{}", told.all());
    for words in [
        "## Drills that were due and not done",
        "app, level engine, every 1s (app.toml): ",
        "## Not backed up by any job\n\n* idle",
        "| app | 2.0 h (met) |",
        "| idle | 1.00 s (MISSED) |",
    ] {
        assert!(told.out.contains(words), "{words:?} is not in {}", told.out);
    }
    let html = run(at, &["report", "--period", &month_of(at), "--form", "html"]).out;
    assert!(html.contains("<h2>Judged by</h2>") && html.contains("app, level engine"), "{html}");
}

fn month_of(at: &Path) -> String {
    let listed = expect(at, &["report", "--json"], 0).json();
    listed["report"]["reports"][0]["started"].as_str().unwrap()[..7].to_owned()
}

#[test]
fn a_failure_stands_until_a_drill_answers_it_and_a_retired_source_is_left_alone() {
    let home = protected();
    let at = home.path();
    expect(at, &["backup"], 0);
    let packs = files_below(&at.join("repo/packs/app"), |_| true);
    let flip = |pack: &std::path::PathBuf| {
        let mut bytes = fs::read(pack).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(pack, bytes).unwrap();
    };
    packs.iter().for_each(flip);
    expect(at, &["drill", "app"], 4);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let standing = page(at);
    let failure = &of(&standing, "app")["failures"][0];
    assert!(failure["answered_by"].is_null() && failure["stood_seconds"].as_f64().unwrap() > 1.0, "{failure}");
    assert!(run(at, &["report", "--period", &month_of(at)]).out.contains("NOT PASSED SINCE, for "));
    packs.iter().for_each(flip);
    expect(at, &["drill"], 0);
    let answered = page(at);
    let failure = &of(&answered, "app")["failures"][0];
    assert_eq!(failure["answered_by"].as_u64(), Some(2), "{failure}");
    let stood = failure["stood_seconds"].as_f64().unwrap();
    assert!((1.0..600.0).contains(&stood), "{failure}");
    let told = expect(at, &["report", "--period", &month_of(at)], 0);
    assert!(told.out.contains("report 2 passed again ") && told.out.contains("it stood for "), "{}", told.out);
    // Given up: what was due up to then counts, and nothing since.
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/app.toml"), "source = \"app\"\nevery = \"1h\"\ndrill = { every = \"2s\" }\n").unwrap();
    expect(at, &["retire", "app", "--confirm", "app"], 0);
    let then = page(at);
    let due = |page: &Value| of(page, "app")["promised"][0]["due"].as_u64().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(4200));
    let now = page(at);
    assert_eq!(due(&then), due(&now), "{now}");
    assert!(of(&now, "app")["retired"].is_string());
    fs::remove_file(at.join("schedules/app.toml")).unwrap();
    expect(at, &["report", "--period", &month_of(at)], 0);
    // A failure that nothing answered is not made good by giving the source up.
    files_below(&at.join("repo/packs/orders"), |_| true).iter().for_each(flip);
    expect(at, &["drill", "orders"], 4);
    expect(at, &["retire", "orders", "--confirm", "orders"], 0);
    expect(at, &["report", "--period", &month_of(at)], 4);
    assert!(run(at, &["report", "--period", &month_of(at)]).out.contains("| app (retired "));
}
