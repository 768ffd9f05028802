//! One report on one page, for people: Markdown and HTML say the same.

use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use crate::cli::Form;
use crate::commands::output::span;
use crate::operations::evidence::Stored;
use crate::report::NOT_RUN;

/// A heading and its rows.
pub(super) struct Part {
    pub title: &'static str,
    pub heading: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

pub fn render(stored: &Stored, report: &Value, form: Form) -> String {
    let title = title(stored, report);
    let parts = parts(stored, report);
    match form {
        Form::Json => String::from_utf8_lossy(&stored.object).lines().next().unwrap_or_default().to_owned(),
        Form::Md => markdown(&title, &parts),
        Form::Html => page(&title, &parts),
    }
}

fn title(stored: &Stored, report: &Value) -> String {
    let verdict = if report["passed"] == true { "passed" } else { "FAILED" };
    let what = match stored.head.r#type.as_str() {
        "plan" => format!("Restore plan {} ({})", text(&report["plan"]), text(&report["mode"])),
        "restore" => format!("Restore of {}", stored.head.subject),
        _ => format!("Drill of {} ({})", stored.head.subject, text(&report["level"])),
    };
    format!("{what}: {verdict}")
}

fn parts(stored: &Stored, report: &Value) -> Vec<Part> {
    let list =
        |title, value: &Value| Part { title, heading: vec![""], rows: array(value).map(|v| vec![text(v)]).collect() };
    let mut parts = vec![
        what(stored, report),
        checks(&report["checks"]),
        Part {
            title: "Stages",
            heading: vec!["stage", "outcome", "time", "budget", "what"],
            rows: array(&report["stages"])
                .map(|s| {
                    let budget = seconds(&s["budget_seconds"]);
                    vec![text(&s["name"]), text(&s["outcome"]), seconds(&s["seconds"]), budget, text(&s["detail"])]
                })
                .collect(),
        },
        Part {
            title: "Timeline",
            heading: vec!["phase", "time"],
            rows: array(&report["timeline"]).map(|p| vec![text(&p["name"]), seconds(&p["seconds"])]).collect(),
        },
        list("Tested", &report["tested"]),
        list("Not tested", &report["not_tested"]),
        list("Deviations", &report["deviations"]),
        proof(stored, report),
        pairs("Sign-off", vec![("Reviewed by, date", "______________________".into())]),
    ];
    parts.retain(|part| !part.rows.is_empty());
    parts
}

fn pairs(title: &'static str, pairs: Vec<(&str, String)>) -> Part {
    let rows = pairs.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| vec![k.to_owned(), v]).collect();
    Part { title, heading: vec!["", ""], rows }
}

fn what(stored: &Stored, report: &Value) -> Part {
    let against = |achieved: &Value, target: &Value, met: &Value| match (achieved.as_f64(), target.as_f64()) {
        (Some(achieved), Some(target)) => {
            format!("{} of {}: {}", span(achieved), span(target), if *met == true { "met" } else { "MISSED" })
        }
        (Some(achieved), None) => format!("{} (no target)", span(achieved)),
        (None, _) => String::new(),
    };
    let rpo = against(&report["rpo_exposure_seconds"], &report["rpo_target_seconds"], &report["rpo_met"]);
    let rto = against(&report["achieved_rto_seconds"], &report["rto_target_seconds"], &report["rto_met"]);
    pairs(
        "What",
        vec![
            ("Report", format!("{} of {}", stored.head.n, stored.head.subject)),
            ("Started", text(&report["started"])),
            ("Finished", text(&report["finished"])),
            ("Started by", text(&report["trigger"])),
            ("Snapshot", text(&report["seq"])),
            ("Data of", text(&report["data_time"])),
            ("Why this point", text(&report["point"])),
            ("RPO exposure", rpo),
            ("RTO achieved", rto),
        ],
    )
}

fn checks(checks: &Value) -> Part {
    let row = |c: &Value| {
        let verdict = match (c["passed"] == true, c["expected"] == NOT_RUN) {
            (true, true) => NOT_RUN,
            (true, false) => "ok",
            (false, _) => "FAILED",
        };
        vec![text(&c["name"]), text(&c["expected"]), text(&c["actual"]), verdict.into()]
    };
    Part { title: "Checks", heading: vec!["check", "expected", "found", ""], rows: array(checks).map(row).collect() }
}

fn proof(stored: &Stored, report: &Value) -> Part {
    let (environment, keys) = (&report["environment"], &report["keys"]);
    pairs(
        "Evidence",
        vec![
            ("Commit", text(&report["commit"])),
            ("Objects", objects(&report["objects"])),
            ("Plan file", text(&report["hash"])),
            ("Configuration", text(&report["configuration"])),
            ("Host", format!("{}, {}", text(&environment["host"]), text(&environment["system"]))),
            ("Isolation", text(&environment["isolation"])),
            ("Scratch removed", text(&report["scratch_removed"])),
            ("Program", format!("{} {}", text(&report["agent"]), text(&environment["program"]))),
            ("Root key", text(&keys["root"])),
            ("Signed by", stored.signer.id()),
            ("Previous report", text(&report["previous"])),
            ("This report", stored.hash.to_string()),
        ],
    )
}

fn seconds(value: &Value) -> String {
    value.as_f64().map(span).unwrap_or_default()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn objects(value: &Value) -> String {
    if value.is_null() {
        return String::new();
    }
    format!("{} with {} bytes, digest {}", text(&value["count"]), text(&value["bytes"]), text(&value["digest"]))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn markdown(title: &str, parts: &[Part]) -> String {
    let cell = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ");
    let mut out = format!("# {title}\n");
    for part in parts {
        out.push_str(&format!("\n## {}\n\n", part.title));
        if part.heading.len() == 1 {
            part.rows.iter().for_each(|row| out.push_str(&format!("* {}\n", row[0].replace('\n', " "))));
            continue;
        }
        out.push_str(&format!("| {} |\n|{}\n", part.heading.join(" | "), " --- |".repeat(part.heading.len())));
        for row in &part.rows {
            let cells: Vec<String> = row.iter().map(|c| cell(c)).collect();
            out.push_str(&format!("| {} |\n", cells.join(" | ")));
        }
    }
    out.trim_end().to_owned()
}

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.2rem .6rem .2rem 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}\
h2{font-size:1rem;margin:1.2rem 0 .3rem}.bad{color:#b00020;font-weight:600}@media print{body{margin:0}}";

pub(super) fn page(title: &str, parts: &[Part]) -> String {
    let bad = |text: &str| text.contains("FAILED") || text.contains("MISSED");
    let row = |row: &Vec<String>| -> Markup {
        html! { tr { @for cell in row { td class=[bad(cell).then_some("bad")] { (cell) } } } }
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; title { (title) } style { (maud::PreEscaped(STYLE)) } }
            body {
                h1 class=[bad(title).then_some("bad")] { (title) }
                @for part in parts {
                    h2 { (part.title) }
                    table {
                        @if part.heading.iter().any(|h| !h.is_empty()) {
                            tr { @for heading in &part.heading { th { (heading) } } }
                        }
                        @for one in &part.rows { (row(one)) }
                    }
                }
            }
        }
    }
    .into_string()
}
