//! The verbs on groups: `backup --group`, `restore --group`, `drill --group`, and what `snapshots` says of them.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::backup::{exit as exit_of, say as say_backup, wanted};
use super::evidence::{by_hand, record};
use super::open::recovery_key;
use super::output::{self, Ending, Exit, Shell, span, table, time};
use super::several::{each, partly, worse};
use super::{drill as one_drill, restore as one_restore, thaw};
use crate::cli::{Backup, Drill, Restore};
use crate::config::Config;
use crate::error::{Failure, Kind, kind_of};
use crate::interrupt;
use crate::limits;
use crate::operations::drill::Point;
use crate::operations::evidence::restored::Circumstances;
use crate::operations::group::{self, Found, GroupReport, MemberRun, Pick, Standing};
use crate::operations::{Host, Open, backup, proof};
use crate::report::Outcome;
use crate::repository::group::{Group, Points};
use crate::repository::layout::{GroupName, SourceName};
use crate::repository::sealed::SealedPart;

/// Points of each group that `snapshots` shows.
const SHOWN: u64 = 20;

/// Each group named, one after the other. What is asked for is a common point: where some got theirs and some did not, the ending is partial, and
/// where none did it is a failure, whatever snapshots of members were stored on the way.
pub fn backup(shell: &Shell, args: &Backup) -> Result<Ending> {
    let config = &shell.config()?;
    let names: Vec<GroupName> = args.sources.iter().cloned().map(GroupName::from).collect();
    names.iter().try_for_each(|name| config.named_group(name).map(drop))?;
    let host = shell.host(config)?;
    let (mut worst, mut stored, mut reports) = (Exit::Done, None, Vec::new());
    for name in &names {
        interrupt::check("Nothing more was begun; what is stored stays.")?;
        let (exit, report) = match back_up(shell, config, &host, name, args) {
            Err(error) if names.len() == 1 || kind_of(&error) == Kind::Interrupted => return Err(error),
            Err(error) => {
                let error = error.context(format!("group {name} failed"));
                shell.complain(&error);
                (
                    Exit::Failed(kind_of(&error).exit_code()),
                    json!({"group": name, "error": output::error_value(&error)}),
                )
            }
            Ok(done) => done,
        };
        if !matches!(exit, Exit::Failed(_)) {
            stored = stored.max(Some(exit));
        }
        worst = worst.max(exit);
        reports.push(report);
    }
    Ending::new(partly(worst, stored), json!({"groups": reports}))
}

fn back_up(shell: &Shell, config: &Config, host: &Host, name: &GroupName, args: &Backup) -> Result<(Exit, Value)> {
    let sources = config.chosen(&config.named_group(name)?.sources)?;
    let options = wanted(config, args)?;
    let mut members = Vec::new();
    for source in &sources {
        members.push(MemberRun {
            name: source.name.clone(),
            open: Box::new(|| config.open_source(source, &shell.clock)),
            options: backup::Options { canary: config.canary_stated(source), ..options.clone() },
            tiering: config.tiering(source)?,
        });
    }
    let busy = shell.busy(format!("backing up group {name}"), &options.progress);
    let report = group::backup(host, name, members)?;
    drop(busy);
    let mut worst = Exit::Done;
    for member in &report.members {
        match &member.report {
            Ok(report) => {
                say_backup(shell, report);
                worst = worst.max(exit_of(report));
            }
            Err(error) => {
                let place =
                    config.named_source(&member.source).map(|source| config.place_of(source)).unwrap_or_default();
                shell.warn(format!("{} ({place}) failed:", member.source));
                shell.complain(error);
                worst = worst.max(Exit::Failed(kind_of(error).exit_code()));
            }
        }
    }
    match &report.point {
        Ok(point) => say_point(shell, &point.group),
        Err(why) => {
            shell.warn(format!(
                "group {name} has NO common point of now: {why}. The snapshots above are ordinary ones and stay; run the group again for a common point"
            ));
            worst = worst.max(Exit::Failed(Kind::Failed.exit_code()));
        }
    }
    Ok((worst, shown(&report)?))
}

fn shown(report: &GroupReport) -> Result<Value> {
    let mut members = Vec::new();
    for member in &report.members {
        members.push(match &member.report {
            Ok(report) => serde_json::to_value(report)?,
            Err(error) => json!({"source": member.source, "error": output::error_value(error)}),
        });
    }
    let (point, why) = match &report.point {
        Ok(point) => (serde_json::to_value(point)?, Value::Null),
        Err(why) => (Value::Null, json!(why)),
    };
    Ok(json!({"group": report.name, "point": point, "no_point": why, "sources": members}))
}

fn say_point(shell: &Shell, group: &Group) {
    let members: Vec<String> = group.members.iter().map(|m| format!("{} {}", m.source, m.seq)).collect();
    shell.say(format!(
        "Group {}: point {} is {}, with data of {}. {}",
        group.group,
        group.n,
        members.join(", "),
        time(group.data_time()),
        apart(group)
    ));
}

/// The skew in words.
fn apart(group: &Group) -> String {
    let spread: Vec<&str> = group.members.iter().filter(|m| m.throughout).map(|m| m.source.as_str()).collect();
    let throughout = match (spread.as_slice(), group.skew.spread_ms) {
        ([], _) => String::new(),
        (names, ms) => format!(
            " {} has no single point and was read throughout; all together lie within {ms} ms.",
            names.join(", ")
        ),
    };
    let points = group.skew.skew_ms.map_or(String::new(), |ms| format!("Its points lie within {ms} ms."));
    format!("{points}{throughout}").trim_start().to_owned()
}

fn find(shell: &Shell, open: &Open, name: &GroupName, pick: Pick) -> Result<Found> {
    let found = group::find(open, name, pick)?;
    for (n, why) in &found.passed_over {
        shell.warn(format!(
            "the newer point {n} of group {name} is passed over: {why}. Taken is point {} with data of {}",
            found.point.group.n,
            time(found.point.group.data_time())
        ));
    }
    Ok(found)
}

/// All members below one directory.
pub fn restore(shell: &Shell, args: &Restore) -> Result<Ending> {
    let to = one_restore::to(args)?;
    let name = GroupName::from(args.source.clone());
    let reader = shell.reader(&args.place)?;
    let keys = recovery_key(reader.config.as_ref(), args.identity.as_deref())?;
    let open = &reader.open;
    let pick = match (args.at, args.snapshot, args.latest_verified) {
        (Some(time), ..) => Pick::At(time),
        (_, Some(n), _) => Pick::Number(n),
        (.., true) => Pick::LatestVerified,
        _ => Pick::Latest,
    };
    let found = find(shell, open, &name, pick)?;
    let started = open.now();
    let workers = limits::workers();
    let single = |source: &SourceName| crate::operations::restore::Request::new(to.join(source.as_str()), workers);
    if args.dry_run {
        crate::target::must_be_free(&to)?;
        say_point(shell, &found.point.group);
        let foretell =
            |snapshot| one_restore::foretell(shell, open, &keys.identities, snapshot, &single(&snapshot.source), None);
        found.members.iter().try_for_each(|(_, snapshot)| foretell(snapshot).map(drop))?;
        return Ending::new(Exit::Done, json!({"group": found.point.group}));
    }
    for (_, snapshot) in &found.members {
        thaw::thawed(shell, args, open, &keys.identities, snapshot, &single(&snapshot.source))?;
    }
    let request = group::Request { to, workers, progress: Default::default() };
    let busy = shell.busy(format!("restoring group {name}"), &request.progress);
    let done = group::restore(open, &keys.identities, &found, &request)?;
    drop(busy);
    let how = Circumstances {
        started,
        point: format!("point {} of group {name}", done.group.n),
        trigger: by_hand("restore --group"),
        plan: None,
        partial: false,
        configuration: reader.config.as_ref().and_then(|config| config.hash),
    };
    let mut partial = done.group.outcome == Outcome::Partial;
    for report in &done.members {
        one_restore::say(shell, report);
        partial |= report.notes_count > 0;
        let of_this = found.members.iter().find(|(_, snapshot)| snapshot.source == report.source);
        let (commit, snapshot) = of_this.context("a report on no member (this is a bug)")?;
        if let Ok(sealed) = SealedPart::open(snapshot, &keys.identities) {
            proof::advice(&snapshot.kind, &sealed.facts).iter().for_each(|line| shell.say(line));
        }
        record(shell, open, keys.signing.as_ref(), (commit, snapshot), report, &how);
    }
    for source in &done.there {
        shell.say(format!("{source} had been restored already, before the restore was interrupted."));
    }
    shell.say(format!("Group {name} is at {}, in {}. {}", done.to.display(), span(done.seconds), apart(&done.group)));
    Ending::new(if partial { Exit::Partial } else { Exit::Done }, done)
}

/// All members of each group named, from one common point.
pub fn drill(shell: &Shell, args: &Drill) -> Result<Ending> {
    let pick = match args.point {
        Point::Latest => Pick::Latest,
        Point::Seq(n) => Pick::Number(n),
        Point::Random(_) | Point::Named(_) => {
            let help = "Nothing was done. --point latest, or the number of a point.";
            return Err(Failure::new(
                Kind::Usage,
                "a group has common points only: none between them, and none is drawn",
                help,
            ));
        }
    };
    let config = shell.config()?;
    let keys = recovery_key(Some(&config), args.identity.as_deref())?;
    let open = shell.open(&config)?;
    let mut worst = None;
    for name in args.sources.iter().cloned().map(GroupName::from) {
        let found = find(shell, &open, &name, pick)?;
        let sources: Result<Vec<_>> = found.members.iter().map(|(_, s)| config.named_source(&s.source)).collect();
        let ending = each(shell, sources?, |source| {
            let member = found.members.iter().find(|(_, snapshot)| snapshot.source == source.name);
            let (_, snapshot) = member.context("a source of no member (this is a bug)")?;
            let wanted = one_drill::Wanted {
                level: args.level,
                point: Point::Seq(snapshot.seq),
                keep_failed: args.keep_failed,
                by: "drill --group",
            };
            let report = one_drill::one(shell, &config, &open, &keys, source, wanted)?;
            Ok((one_drill::exit(&report), report))
        })?;
        let (group, came) = (&found.point.group, ending.exit < Exit::CheckFailed);
        let verdict = if came { "all members came back" } else { "NOT all members came back" };
        shell.say(format!("Group {name}: point {}: {verdict}. {}", group.n, apart(group)));
        worst = Some(worse(worst, ending));
    }
    worst.map_or_else(|| Ending::new(Exit::NothingToDo, json!({"sources": []})), Ok)
}

/// The newest points of all groups, or of those in which `source` is; what is wrong with them goes to `faults`.
pub fn list(shell: &Shell, open: &Open, source: Option<&SourceName>, faults: &mut Vec<String>) -> Result<Vec<Value>> {
    let (mut shown, mut rows) = (Vec::new(), Vec::new());
    let mut standing = Standing::new(open);
    for name in crate::repository::group::names(&open.store)? {
        let recent = Points::list(&open.store, &open.trust, &name)?.recent(SHOWN)?;
        for (n, why) in &recent.faults {
            let fault = format!("point {n} of group {name}: {why}");
            shell.warn(&fault);
            faults.push(fault);
        }
        for point in &recent.points {
            let group = &point.group;
            if source.is_some_and(|source| !group.members.iter().any(|member| member.source == *source)) {
                continue;
            }
            let wholeness = standing.look(group)?;
            let verified = standing.verified(group)?;
            rows.push(cells(group, &wholeness, verified));
            shown.push(json!({
                "point": group,
                "hash": point.hash,
                "whole": wholeness.missing.is_empty(),
                "standing": {"missing": wholeness.missing, "suspect": wholeness.suspect, "verified": verified},
            }));
        }
    }
    if !rows.is_empty() {
        shell.say("");
        shell.say(table(["GROUP", "POINT", "DATA OF", "SKEW", "SNAPSHOTS", "STATE"], &rows));
    }
    Ok(shown)
}

fn cells(group: &Group, wholeness: &group::Wholeness, verified: bool) -> [String; 6] {
    let members: Vec<String> = group.members.iter().map(|m| format!("{} {}", m.source, m.seq)).collect();
    let state = if !wholeness.missing.is_empty() {
        format!("NOT WHOLE: {}", wholeness.losses())
    } else if !wholeness.suspect.is_empty() {
        "SUSPECT".into()
    } else if group.outcome == Outcome::Partial {
        "PARTIAL".into()
    } else if verified {
        "verified".into()
    } else {
        "whole".into()
    };
    [
        group.group.to_string(),
        group.n.to_string(),
        time(group.data_time()),
        group.skew.skew_ms.map_or("-".into(), |ms| format!("{ms} ms")),
        members.join(", "),
        state,
    ]
}
