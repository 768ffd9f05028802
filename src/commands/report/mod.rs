//! `report`: the evidence. What was drilled and restored, whether it verifies, and how it reads for people.

use anyhow::{Context, Result};
use serde_json::json;
use std::path::Path;

use super::output::{Ending, Exit, Shell, print_raw, span, table, time};
use crate::cli::{Form, Place, Report, ReportVerb};
use crate::durable;
use crate::error::{Failure, Kind};
use crate::operations::Open;
use crate::operations::evidence::{self, Chain, Stored};

mod auditor;
mod covered;
mod page;
mod period;
mod promised;

pub fn run(shell: &Shell, args: &Report) -> Result<Ending> {
    match (&args.verb, &args.period) {
        (Some(ReportVerb::Verify { files, root }), _) => verify(shell, files, root.as_deref()),
        (Some(ReportVerb::Show { subject, number, form, to, place }), _) => {
            show(shell, (subject, *number), *form, to.as_deref(), place)
        }
        (None, Some(period)) => period::run(shell, &args.place, *period, args.form),
        (None, None) => list(shell, &args.place),
    }
}

/// Every report, and every fault in a chain.
fn list(shell: &Shell, place: &Place) -> Result<Ending> {
    let reader = shell.reader(place)?;
    let (mut rows, mut reports, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for subject in evidence::subjects(&reader.open)? {
        let chain = Chain::read(&reader.open, &subject)?;
        chain.foreign.iter().for_each(|(key, why)| shell.warn(format!("{key}: {why}")));
        faults.extend(chain.faults.iter().map(|(key, why)| format!("{key}: {why}")));
        for stored in &chain.reports {
            rows.push(row(stored)?);
            reports.push(stored.decode::<serde_json::Value>()?);
        }
    }
    faults.iter().for_each(|fault| shell.warn(fault));
    if rows.is_empty() {
        shell.say("There are no reports yet: `blackstart drill` makes one.");
    } else {
        shell.say(table(["SUBJECT", "N", "WHAT", "WHEN", "RESULT", "TIME", "DATA OF"], &rows));
    }
    let exit = if faults.is_empty() { Exit::Done } else { Exit::CheckFailed };
    Ending::new(exit, json!({"reports": reports, "faults": faults}))
}

fn row(stored: &Stored) -> Result<[String; 7]> {
    let report: serde_json::Value = stored.decode()?;
    let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
    let what = match stored.head.r#type.as_str() {
        "drill" => format!("drill ({})", text("level")),
        "plan" => format!("plan ({})", text("mode")),
        other => other.to_owned(),
    };
    let data = report["data_time"].as_str().and_then(|t| t.parse().ok()).map_or(String::new(), time);
    Ok([
        stored.head.subject.clone(),
        stored.head.n.to_string(),
        what,
        time(stored.head.started),
        if report["passed"] == true { "passed".into() } else { "FAILED".into() },
        report["achieved_rto_seconds"].as_f64().map_or(String::new(), span),
        data,
    ])
}

/// Offline: the signatures, who signed, and that files of one subject form a chain.
fn verify(shell: &Shell, files: &[std::path::PathBuf], root: Option<&str>) -> Result<Ending> {
    let config = shell.config().ok();
    let pinned = root.map(str::to_owned).or(config.as_ref().and_then(|c| c.root.clone()));
    let mut found = Vec::new();
    let mut reports: Vec<(&Path, Stored)> = Vec::new();
    for file in files {
        let body = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        match Stored::parse(&body) {
            Ok(stored) => reports.push((file, stored)),
            Err(e) => found.push(json!({"file": file, "sound": false, "why": format!("{e:#}")})),
        }
    }
    for (file, stored) in &reports {
        let signer = stored.signer.id();
        let who = match &pinned {
            Some(root) if *root == signer => Ok("the root key"),
            Some(_) => certified(shell, config.as_ref(), stored),
            None => Err("a key that nothing here vouches for: give --root FINGERPRINT".to_owned()),
        };
        let before =
            reports.iter().find(|(_, s)| s.head.subject == stored.head.subject && s.head.n + 1 == stored.head.n);
        let follows = before.is_none_or(|(_, s)| stored.follows(s));
        let sound = who.is_ok() && follows;
        let why = match (&who, follows) {
            (_, false) => "does not follow the report before it: one of the two was replaced".to_owned(),
            (Ok(who), _) => format!("signed by {who}, {signer}"),
            (Err(why), _) => format!("signed by {signer}, {why}"),
        };
        let name = format!("report {} of {}", stored.head.n, stored.head.subject);
        found.push(
            json!({"file": file, "report": name, "sound": sound, "signer": signer, "hash": stored.hash, "why": why}),
        );
    }
    for one in &found {
        let verdict = if one["sound"] == true { "ok     " } else { "FAILED " };
        let name = one["report"].as_str().unwrap_or("no report");
        shell.say(format!(
            "{verdict} {}: {name}: {}",
            one["file"].as_str().unwrap_or_default(),
            one["why"].as_str().unwrap_or_default()
        ));
    }
    let sound = found.iter().all(|one| one["sound"] == true);
    Ending::new(if sound { Exit::Done } else { Exit::CheckFailed }, json!({"files": found}))
}

/// A drill key needs its certificate, which lies in the repository.
fn certified(shell: &Shell, config: Option<&crate::config::Config>, stored: &Stored) -> Result<&'static str, String> {
    let config =
        config.ok_or("which is not the root key; its certificate is in the repository, which needs a configuration")?;
    let open = shell
        .open(config)
        .map_err(|e| format!("which is not the root key, and its certificate cannot be read: {e:#}"))?;
    stored.trusted(&open).map(|()| "a certified drill key").map_err(|e| format!("{e:#}"))
}

fn show(
    shell: &Shell,
    (subject, number): (&str, Option<u64>),
    form: Form,
    to: Option<&Path>,
    place: &Place,
) -> Result<Ending> {
    let reader = shell.reader(place)?;
    let stored = one(&reader.open, subject, number)?;
    let report: serde_json::Value = stored.decode()?;
    if let Some(to) = to {
        export(&stored, to)?;
        shell.say(format!("Wrote {}: read HOW-TO-VERIFY.txt there.", to.display()));
        return Ending::new(Exit::Done, json!({"to": to}));
    }
    if !shell.json {
        print_raw(&page::render(&stored, &report, form), false);
    }
    Ending::new(Exit::Done, json!({"report": report, "hash": stored.hash, "signer": stored.signer.id()}))
}

fn one(open: &Open, subject: &str, number: Option<u64>) -> Result<Stored> {
    let chain = Chain::read(open, subject)?;
    let found = match number {
        Some(n) => chain.reports.into_iter().find(|s| s.head.n == n),
        None => chain.reports.into_iter().next_back(),
    };
    found.ok_or_else(|| {
        let help = "`blackstart report` lists what there is. A plan's subject is plan.NAME.";
        Failure::new(Kind::Usage, format!("there is no such report on {subject}"), help)
    })
}

/// Beside an exported report.
const HOW: &str = "report.signed    the report as it lies in the repository: `blackstart report verify report.signed --root FINGERPRINT`\n\
    report.json      its first line, the report itself\n\
    report.json.sig  its signature, for OpenSSH\n\
    signer           the key that signed it: compare its fingerprint with the root key in your kit, or with the certificate in trust/\n\n\
    ssh-keygen -l -f signer.pub\n\
    ssh-keygen -Y verify -f signer -I blackstart -n blackstart -s report.json.sig < report.json\n";

/// The report with everything that stock tools need to verify it.
fn export(stored: &Stored, to: &Path) -> Result<()> {
    if to.exists() {
        let help = "Nothing was written. Give a directory that does not exist yet.";
        return Err(Failure::new(Kind::Usage, format!("{} exists already", to.display()), help));
    }
    let text = std::str::from_utf8(&stored.object).context("a report is UTF-8")?;
    let (line, armour) = text.trim_end().split_once('\n').context("a report has two lines")?;
    let signature = format!("-----BEGIN SSH SIGNATURE-----\n{armour}\n-----END SSH SIGNATURE-----\n");
    let signer = format!("blackstart namespaces=\"blackstart\" {}\n", stored.signer);
    let files = [
        ("report.signed", text.to_owned()),
        ("report.json", line.to_owned()),
        ("report.json.sig", signature),
        ("signer", signer),
        ("signer.pub", format!("{}\n", stored.signer)),
        ("report.html", page::render(stored, &stored.decode()?, Form::Html)),
        ("HOW-TO-VERIFY.txt", HOW.to_owned()),
    ];
    for (name, text) in files {
        let path = to.join(name);
        durable::publish_new(&path, text.as_bytes(), 0o644).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
