//! What is wrong, out of what the agent knows.

use super::super::observe::{Newest, Span};
use super::*;
use crate::catalog::Run;
use crate::scheduler::{Past, SourcePast};

fn at(minutes: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
}

/// What is wrong `minutes` after the start, with the newest data of `newest`.
fn findings(
    job: &str,
    newest: Option<i64>,
    minutes: i64,
    ending: Option<(&str, u32)>,
    repository: Option<&str>,
) -> Findings {
    let job = crate::job::parse(job, std::path::Path::new("a.toml")).unwrap().job;
    let mut past = SourcePast { newest: newest.map(at), ..SourcePast::default() };
    let failures = ending.map_or(0, |e| e.1);
    for task in Task::ALL {
        past.tasks.insert(task, Past { since: Some(at(0)), failures, ..Past::default() });
    }
    let mut endings = Endings::default();
    if let Some((result, _)) = ending {
        endings.take(&run(&job.source, Task::Incremental, result));
    }
    let seen = repository.is_none().then(|| Seen::of_test(None, None, at(0)));
    look(job, past, seen, &endings, repository, minutes)
}

/// What is wrong with one job, and nothing else the matter.
fn look(
    job: Job,
    past: SourcePast,
    seen: Option<Seen>,
    endings: &Endings,
    repository: Option<&str>,
    minutes: i64,
) -> Findings {
    look_since(job, past, (seen, endings), repository, &BTreeMap::new(), minutes)
}

/// As `look`, where jobs were edited.
fn look_since(
    job: Job,
    past: SourcePast,
    (seen, endings): (Option<Seen>, &Endings),
    repository: Option<&str>,
    edited: &BTreeMap<SourceName, Timestamp>,
    minutes: i64,
) -> Findings {
    let view = View {
        history: &History::from([(job.source.clone(), past)]),
        jobs: std::slice::from_ref(&job),
        edited,
        seen: &seen.map(|seen| (job.source.clone(), seen)).into_iter().collect(),
        endings,
        standings: &BTreeMap::new(),
        canaries: (&BTreeMap::new(), at(0)),
        repository,
        configuration: None,
        drill_key: None,
        channels: &[],
        wrong_plans: &[],
        groups: &[],
        page: None,
        mute: &BTreeMap::new(),
        sent: &BTreeMap::new(),
    };
    problems(&view, at(minutes))
}

/// What is wrong with a source of which the repository shows `seen`, after a run of `task` that ended so.
fn keys_of_seen(seen: Seen, task: Task, result: &str) -> Vec<String> {
    let text =
        "source = \"a\"\nevery = \"20m\"\nrpo = \"1h\"\nfull = { every = \"7d\" }\nverify = { every = \"1d\" }\n";
    let job = crate::job::parse(text, std::path::Path::new("a.toml")).unwrap().job;
    let mut endings = Endings::default();
    endings.take(&run(&job.source, task, result));
    if task == Task::Full {
        endings.take(&run(&job.source, Task::Incremental, "done"));
    }
    let findings = look(job, SourcePast::default(), Some(seen), &endings, None, 60);
    findings.wrong.into_iter().map(|p| p.key).collect()
}

#[test]
fn damage_of_a_retired_source_is_told_and_that_a_job_still_names_it() {
    let seen = || {
        let mut seen = Seen::of_test(None, None, at(2));
        seen.retired = Some(at(1));
        seen
    };
    assert_eq!(keys_of_seen(seen(), Task::Verify, "check-failed"), ["a/retired", "a/verify"]);
    assert_eq!(keys_of_seen(seen(), Task::Incremental, "failed"), ["a/retired"], "nothing is missed of it");
}

#[test]
fn a_full_that_failed_is_made_good_by_a_full_alone() {
    let seen = |full| {
        let mut seen = Seen::of_test(Some(Newest::of_test(at(30))), None, at(40));
        seen.full = full;
        seen
    };
    let span = |minute| Some(Span { started: at(minute), finished: at(minute) });
    assert_eq!(keys_of_seen(seen(None), Task::Full, "failed"), ["a/full"]);
    assert_eq!(keys_of_seen(seen(span(0)), Task::Full, "failed"), ["a/full"], "the one that failed was later");
    assert_eq!(keys_of_seen(seen(span(30)), Task::Full, "failed"), [] as [&str; 0]);
    assert_eq!(keys_of_seen(seen(None), Task::Full, "partial"), [] as [&str; 0]);
}

fn keys(
    job: &str,
    newest: Option<i64>,
    minutes: i64,
    ending: Option<(&str, u32)>,
    repository: Option<&str>,
) -> Vec<String> {
    findings(job, newest, minutes, ending, repository).wrong.into_iter().map(|p| p.key).collect()
}

fn run(source: &SourceName, task: Task, result: &str) -> Run {
    Run {
        run: "r".into(),
        source: source.clone(),
        task,
        started: at(0),
        finished: at(0),
        seconds: 0.0,
        result: result.into(),
        why: "w".into(),
        report: "{}".into(),
        line: "line".into(),
        help: None,
    }
}

#[test]
fn silence_is_a_problem() {
    let hourly = "source = \"a\"\nevery = \"20m\"\nrpo = \"1h\"\n";
    assert_eq!(keys(hourly, None, 39, None, None), [] as [&str; 0]);
    assert_eq!(keys(hourly, None, 41, None, None), ["a/never"]);
    assert_eq!(keys(hourly, Some(0), 60, None, None), [] as [&str; 0]);
    assert_eq!(keys(hourly, Some(0), 61, None, None), ["a/rpo"]);
    let without = "source = \"a\"\nevery = \"20m\"\n";
    assert_eq!(keys(without, Some(0), 40, None, None), [] as [&str; 0]);
    assert_eq!(keys(without, Some(0), 41, None, None), ["a/overdue"]);
    let drilled = "source = \"a\"\nevery = \"20m\"\ndrill = { every = \"1h\" }\n";
    assert_eq!(keys(drilled, Some(120), 121, None, None), ["a/drill-overdue"]);
    let ladder =
        "source = \"a\"\nevery = \"20m\"\n[[drill]]\nevery = \"1h\"\nlevel = \"hashes\"\n[[drill]]\nevery = \"2h\"\n";
    assert_eq!(keys(ladder, Some(120), 121, None, None), ["a/drill-hashes-overdue"], "each level for itself");
    assert_eq!(keys(ladder, Some(240), 241, None, None), ["a/drill-hashes-overdue", "a/drill-overdue"]);
    let plan = "plan = \"p\"\ndrill = { every = \"1h\" }\n";
    assert_eq!(keys(plan, Some(120), 119, None, None), [] as [&str; 0]);
    assert_eq!(keys(plan, Some(120), 121, None, None), ["plan.p/drill-overdue"]);
    assert_eq!(keys(plan, None, 1000, None, None), [] as [&str; 0], "without data there is nothing to drill");
}

#[test]
fn a_failed_run_is_told_and_the_repository_only_once() {
    let job = "source = \"a\"\nevery = \"20m\"\n";
    assert_eq!(keys(job, Some(0), 1, Some(("failed", 1)), None), ["a/incremental"]);
    assert_eq!(keys(job, Some(0), 1, Some(("failed", 1)), Some("gone")), ["repository"]);
    assert_eq!(keys(job, Some(0), 1, Some(("busy", 1)), None), [] as [&str; 0]);
    assert_eq!(keys(job, Some(0), 1, Some(("busy", 3)), None), ["a/incremental"]);
    assert_eq!(keys(job, Some(0), 1, Some(("partial", 0)), None), ["a/incremental"]);
    assert_eq!(keys(job, Some(0), 1, Some(("done", 0)), None), [] as [&str; 0]);
}

#[test]
fn what_says_nothing_ends_no_alarm() {
    let job = "source = \"a\"\nevery = \"20m\"\nrpo = \"1h\"\n";
    let unknown =
        |ending, repository| findings(job, None, 1, ending, repository).unknown.into_iter().collect::<Vec<_>>();
    assert_eq!(unknown(Some(("done", 0)), None), [""; 0]);
    assert_eq!(unknown(Some(("failed", 1)), None), [""; 0]);
    // A run that somebody made by hand stood in the way; nothing ran since the catalog was lost.
    assert_eq!(unknown(Some(("busy", 1)), None), ["a/incremental"]);
    assert_eq!(unknown(None, None), ["a/incremental"]);
    // The repository has been away since the start: how old the data is cannot be said.
    let data = [
        "a/drill-cold-start-overdue",
        "a/drill-decode-overdue",
        "a/drill-existence-overdue",
        "a/drill-game-day-overdue",
        "a/drill-hashes-overdue",
        "a/drill-overdue",
        "a/drill-point-overdue",
        "a/edited",
        "a/evidence",
        "a/incremental",
        "a/never",
        "a/overdue",
        "a/prune",
        "a/rpo",
        "a/schedule",
        "a/unproven",
        "a/verify",
    ];
    assert_eq!(unknown(Some(("failed", 9)), Some("gone")), data);
    assert_eq!(keys(job, None, 999, Some(("check-failed", 0)), Some("gone")), ["repository", "a/incremental"]);
}

/// Keys and titles of what is wrong after these runs of `task`: how each ended, with which report.
fn after(seen: &Seen, task: Task, runs: &[(&str, &str)]) -> Vec<(String, String)> {
    let text = "source = \"a\"\nevery = \"20m\"\nverify = { every = \"1d\" }\nprune = { every = \"1d\" }\ndrill = { every = \"1d\" }\n";
    let job = crate::job::parse(text, std::path::Path::new("a.toml")).unwrap().job;
    let mut endings = Endings::default();
    for (result, report) in runs {
        endings.take(&Run { report: (*report).into(), ..run(&job.source, task, result) });
    }
    let findings = look(job, SourcePast::default(), Some(seen.clone()), &endings, None, 60);
    assert!(findings.wrong.iter().all(|p| !findings.unknown.contains(&p.key)), "{findings:?}");
    findings.wrong.into_iter().map(|p| (p.key, p.title)).collect()
}

#[test]
fn what_was_found_stands_until_it_has_been_seen_well() {
    let seen = Seen::of_test(None, None, at(2));
    let told = |task, runs: &[(&str, &str)]| after(&seen, task, runs);
    let of = |key: &str, words: &str| vec![(key.to_owned(), words.to_owned())];
    let damaged = of("a/verify", "a: the repository is damaged");
    let partial = of("a/prune", "a: the prune failed");
    let came_back = of("a/drill", "a: a drill FAILED: the newest backup does not come back");
    for later in ["failed", "environment"] {
        assert_eq!(
            told(Task::Verify, &[("check-failed", "{}"), (later, "{}")]),
            damaged,
            "{later} tells nothing of it"
        );
        assert_eq!(told(Task::DRILL, &[("check-failed", "{\"seq\":7}"), (later, "{}")]), came_back, "{later}");
    }
    assert_eq!(told(Task::Verify, &[("check-failed", "{}"), ("busy", "{}"), ("busy", "{}")]), damaged);
    assert_eq!(told(Task::Verify, &[("check-failed", "{}"), ("failed", "{}"), ("done", "{}")]), []);
    // The later failure is the news; what was refused is said beside it.
    assert_eq!(told(Task::Prune, &[("partial", "{}"), ("failed", "{}")]), partial);
    assert_eq!(told(Task::Prune, &[("partial", "{}"), ("failed", "{}"), ("done", "{}")]), []);
    let seven = ("check-failed", "{\"seq\":7}");
    assert_eq!(told(Task::DRILL, &[seven, ("done", "{\"seq\":6}")]), came_back, "an older one says nothing of it");
    assert_eq!(told(Task::DRILL, &[seven, ("done", "{\"seq\":6}"), ("done", "{\"seq\":7}")]), []);
    assert_eq!(told(Task::DRILL, &[seven, ("check-failed", "{\"seq\":6}"), ("done", "{\"seq\":6}")]), came_back);
}

#[test]
fn a_prune_by_somebody_else_does_not_end_what_was_refused() {
    let mut seen = Seen::of_test(None, None, at(2));
    let keys = |seen: &Seen, runs: &[(&str, &str)]| {
        after(seen, Task::Prune, runs).into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    seen.prune = Some(at(1));
    assert_eq!(keys(&seen, &[("failed", "{}")]), [""; 0], "it was tried again elsewhere");
    assert_eq!(keys(&seen, &[("partial", "{}"), ("failed", "{}")]), ["a/prune"], "whether it was whole nobody knows");
    seen.findings.take_prune(at(1), &[]);
    assert_eq!(keys(&seen, &[("partial", "{}"), ("failed", "{}")]), [""; 0], "one by hand, here, was whole");
    seen.findings.take_prune(at(3), &["packs/a: locked".into()]);
    assert_eq!(keys(&seen, &[]), ["a/prune"], "one by hand was not");
}

#[test]
fn nobody_is_late_with_what_was_not_promised_yet() {
    let text = "source = \"a\"\nevery = \"20m\"\ndrill = { every = \"1h\" }\n";
    let job = || crate::job::parse(text, std::path::Path::new("a.toml")).unwrap().job;
    let mut past = SourcePast { newest: Some(at(0)), ..SourcePast::default() };
    past.tasks.insert(Task::DRILL, Past { since: Some(at(0)), ..Past::default() });
    let edited = BTreeMap::from([(job().source, at(500))]);
    let late = |minutes| {
        let seen = Seen::of_test(None, None, at(0));
        let findings = look_since(job(), past.clone(), (Some(seen), &Endings::default()), None, &edited, minutes);
        let keys: Vec<String> = findings.wrong.into_iter().map(|p| p.key).collect();
        let of_late = |key: &String| key.ends_with("overdue");
        (keys.into_iter().filter(of_late).collect::<Vec<_>>(), findings.unknown)
    };
    let (begun, unknown) = late(540);
    assert_eq!(begun, [""; 0], "two slots have not passed since it was edited");
    assert!(unknown.contains("a/overdue") && unknown.contains("a/drill-overdue"), "what stood stands: {unknown:?}");
    assert_eq!(late(541).0, ["a/overdue"]);
    assert_eq!(late(621).0, ["a/overdue", "a/drill-overdue"]);
}
