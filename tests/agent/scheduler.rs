//! The scheduler's core over simulated weeks: whatever the jobs, the downtimes and the clock do.

use blackstart::job::{self, Job, Task};
use blackstart::operations::drill::Level;
use blackstart::repository::layout::SourceName;
use blackstart::scheduler::{
    Decision, History, Last, Limits, Past, SourcePast, State, exclude_each_other, plan, warning,
};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

fn job(text: &str) -> Job {
    job::parse(text, Path::new("job.toml")).unwrap().job
}

/// A job that backs up sources as a group.
fn group(text: &str, members: &[&str]) -> Job {
    let members = members.iter().map(|name| SourceName::new(name).unwrap()).collect();
    Job { members, ..job(text) }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The agent has always been up.
fn limits(runs: usize) -> Limits {
    Limits { host: "db1".into(), runs, drills: 1, up_since: at("2020-01-01T00:00:00Z") }
}

/// A source with the past runs of tasks: (task, start, minutes, done).
fn past(job: &Job, runs: &[(Task, &str, i64, bool)]) -> History {
    let mut past = SourcePast { newest: runs.first().map(|r| at(r.1)), ..SourcePast::default() };
    for task in Task::ALL {
        let since = Some(at("2026-01-01T00:00:00Z"));
        past.tasks.insert(task, Past { since, ..Past::default() });
    }
    for (task, started, minutes, done) in runs {
        let started = at(started);
        let last = Last { started, finished: started + SignedDuration::from_mins(*minutes), done: *done };
        let own = past.tasks.get_mut(task).unwrap();
        (own.last, own.failures) = (Some(last), u32::from(!done));
    }
    History::from([(job.source.clone(), past)])
}

/// What becomes of a task if the agent comes up only now: all that is late was missed.
fn one(job: &Job, history: &History, now: &str, task: Task) -> Decision {
    let limits = Limits { up_since: at(now), ..limits(2) };
    let decisions = plan(std::slice::from_ref(job), history, &limits, at(now));
    decisions.into_iter().find(|d| d.task == task).unwrap()
}

#[test]
fn a_source_without_a_snapshot_is_backed_up_at_once_and_drilled_then() {
    let job = job(
        "source = \"a\"\nfull = { cron = \"0 2 * * *\" }\nincremental = { every = \"1h\" }\ndrill = { every = \"7d\" }\n",
    );
    let decisions = plan(std::slice::from_ref(&job), &History::new(), &limits(4), at("2026-06-01T12:00:00Z"));
    let starting: Vec<Task> = decisions.iter().filter(|d| d.state == State::Start).map(|d| d.task).collect();
    assert_eq!(starting, [Task::Incremental]);
    let history = past(&job, &[(Task::Full, "2026-06-01T12:00:00Z", 1, true)]);
    assert_eq!(one(&job, &history, "2026-06-01T12:02:00Z", Task::DRILL).state, State::Start);
    assert_eq!(one(&job, &history, "2026-06-01T12:02:00Z", Task::Incremental).state, State::Waiting);
}

#[test]
fn missed_runs_are_made_up_for_once_or_left_out() {
    let text = "source = \"a\"\nincremental = { every = \"1h\" }\n";
    let once = job(text);
    let history = past(&once, &[(Task::Incremental, "2026-06-01T00:00:00Z", 1, true)]);
    let decision = one(&once, &history, "2026-06-02T00:30:00Z", Task::Incremental);
    assert_eq!((decision.state, decision.missed), (State::Start, 23));
    let skip = job(&format!("catch_up = \"skip\"\n{text}"));
    let decision = one(&skip, &history, "2026-06-02T00:30:00Z", Task::Incremental);
    assert_eq!((decision.state, decision.at), (State::Waiting, at("2026-06-02T01:00:00Z")));
    // What another run, or a blackout, has held up was not missed: else a job whose slots are always taken would never run.
    let begun = |up_since, now| {
        let up = Limits { up_since: at(up_since), ..limits(2) };
        plan(std::slice::from_ref(&skip), &history, &up, at(now))[0].state
    };
    assert_eq!(begun("2026-06-01T00:00:00Z", "2026-06-01T01:30:00Z"), State::Start);
    // The slot after the missed ones stands, and is taken.
    assert_eq!(begun("2026-06-01T03:30:00Z", "2026-06-01T03:59:00Z"), State::Waiting);
    assert_eq!(begun("2026-06-01T03:30:00Z", "2026-06-01T04:00:00Z"), State::Start);
    // A little late is not missed.
    assert_eq!(one(&skip, &history, "2026-06-01T01:02:00Z", Task::Incremental).state, State::Start);
}

#[test]
fn what_overlaps_is_left_out_or_queued() {
    let text = "source = \"a\"\nincremental = { every = \"1h\" }\n";
    let runs = [(Task::Incremental, "2026-06-01T00:00:00Z", 150, true)];
    let skip = job(text);
    let decision = one(&skip, &past(&skip, &runs), "2026-06-01T02:30:00Z", Task::Incremental);
    assert_eq!((decision.state, decision.at, decision.missed), (State::Waiting, at("2026-06-01T03:00:00Z"), 2));
    let queue = job(&format!("overlap = \"queue\"\n{text}"));
    let decision = one(&queue, &past(&queue, &runs), "2026-06-01T02:30:00Z", Task::Incremental);
    assert_eq!(decision.state, State::Start);
}

#[test]
fn a_failed_run_is_tried_again_soon_and_ever_less_often() {
    let job = job("source = \"a\"\nfull = { cron = \"0 2 * * *\" }\n");
    let mut history = past(&job, &[(Task::Full, "2026-06-01T02:00:00Z", 1, false)]);
    for (failures, seconds) in [(1, 30), (2, 60), (3, 120), (10, 900), (4_000_000, 900)] {
        history.get_mut(&job.source).unwrap().tasks.get_mut(&Task::Full).unwrap().failures = failures;
        let decision = one(&job, &history, "2026-06-01T02:01:00Z", Task::Full);
        assert_eq!(decision.at, at("2026-06-01T02:01:00Z") + SignedDuration::from_secs(seconds), "{failures}");
    }
}

#[test]
fn a_drill_that_could_not_be_carried_out_waits_for_hours() {
    let job = job("source = \"a\"\nevery = \"1h\"\ndrill = { every = \"7d\" }\n");
    let mut history = past(&job, &[(Task::DRILL, "2026-06-01T02:00:00Z", 60, false)]);
    for (failures, hours) in [(1, 1), (2, 2), (3, 4), (10, 24), (4_000_000, 24)] {
        history.get_mut(&job.source).unwrap().tasks.get_mut(&Task::DRILL).unwrap().failures = failures;
        let decision = one(&job, &history, "2026-06-01T03:01:00Z", Task::DRILL);
        assert_eq!(decision.at, at("2026-06-01T03:00:00Z") + SignedDuration::from_hours(hours), "{failures}");
    }
}

#[test]
fn a_dear_drill_spares_the_cheap_ones_and_never_the_other_way_round() {
    let job = job(
        "source = \"a\"\nevery = \"1h\"\n[[drill]]\nevery = \"1d\"\nlevel = \"hashes\"\n[[drill]]\nevery = \"7d\"\n\
                   [[drill]]\nevery = \"90d\"\nlevel = \"cold-start\"\n",
    );
    let (hashes, cold) = (Task::Drill(Level::Hashes), Task::Drill(Level::ColdStart));
    let backup = (Task::Incremental, "2026-06-20T11:30:00Z", 1, true);
    let begun = |runs: &[(Task, &str, i64, bool)], now: &str| {
        let decisions = plan(std::slice::from_ref(&job), &past(&job, &[&[backup], runs].concat()), &limits(4), at(now));
        let starting = decisions.iter().filter(|d| d.state == State::Start).map(|d| d.task).collect::<Vec<_>>();
        let held = decisions.into_iter().filter(|d| d.state == State::Held).map(|d| d.task).collect::<Vec<_>>();
        (starting, held)
    };
    // Where all are due the dearest comes first, and the others wait to be spared.
    assert_eq!(begun(&[], "2026-06-20T12:00:00Z"), (vec![cold], vec![Task::DRILL, hashes]));
    let after = [(cold, "2026-06-19T12:00:01Z", 10, true)];
    assert_eq!(begun(&after, "2026-06-20T12:00:00Z"), (vec![], vec![]), "the dearest has told all");
    assert_eq!(begun(&after, "2026-06-20T12:00:01Z").0, [hashes], "a day later the cheap one is due again");
    // Cheap ones, however many and however fresh, put off none that is dearer.
    let cheap = [(hashes, "2026-06-20T11:00:00Z", 1, true), (cold, "2026-06-01T00:00:00Z", 10, true)];
    assert_eq!(begun(&cheap, "2026-06-20T12:00:00Z").0, [Task::DRILL]);
    // A dear one that could not be carried out has told nothing.
    let failed = [(cold, "2026-06-20T11:40:00Z", 10, false), (Task::DRILL, "2026-06-12T00:00:00Z", 1, true)];
    assert_eq!(begun(&failed, "2026-06-20T12:00:00Z"), (vec![Task::DRILL], vec![hashes]));
}

#[test]
fn a_drill_of_hours_holds_up_no_backup() {
    let tasks = "incremental = { every = \"1h\" }\ndrill = { every = \"7d\" }\nverify = { every = \"1d\" }\nprune = { every = \"1d\" }\n";
    let jobs = ["a", "b"].map(|n| job(&format!("source = \"{n}\"\n{tasks}")));
    let mut history = History::new();
    for job in &jobs {
        history.extend(past(job, &Task::ALL.map(|task| (task, "2026-06-01T00:00:00Z", 1, true))));
    }
    history.get_mut(&jobs[0].source).unwrap().tasks.get_mut(&Task::DRILL).unwrap().running =
        Some(at("2026-06-09T00:00:00Z"));
    let now = at("2026-06-09T04:00:00Z");
    let starting = |runs| {
        let decisions = plan(&jobs, &history, &limits(runs), now).into_iter();
        decisions.filter(|d| d.state == State::Start).map(|d| (d.source.to_string(), d.task)).collect::<Vec<_>>()
    };
    // Its own source's too; the other's waits for a free run.
    assert_eq!(starting(2), [("a".to_owned(), Task::Incremental)]);
    assert_eq!(starting(3), [("a".to_owned(), Task::Incremental), ("b".to_owned(), Task::Incremental)]);
    // However many may run: prune and verify of a source under drill wait, and drills go one by one.
    assert_eq!(starting(16), starting(3));
}

#[test]
fn a_clock_that_was_set_back_by_a_year_stops_nothing() {
    let job = job("source = \"a\"\nevery = \"1h\"\n");
    let history = past(&job, &[(Task::Incremental, "2027-06-01T00:00:00Z", 1, true)]);
    assert_eq!(one(&job, &history, "2026-06-01T00:00:00Z", Task::Incremental).state, State::Start);
}

#[test]
fn a_blackout_puts_off_what_falls_into_it() {
    let job = job("source = \"a\"\nevery = \"1h\"\nblackout = [{ from = \"09:00\", to = \"17:00\" }]\n");
    let history = past(&job, &[(Task::Incremental, "2026-06-01T08:30:00Z", 1, true)]);
    let decision = one(&job, &history, "2026-06-01T10:00:00Z", Task::Incremental);
    assert_eq!((decision.state, decision.at), (State::Held, at("2026-06-01T17:00:00Z")));
    assert_eq!(one(&job, &history, "2026-06-01T17:00:00Z", Task::Incremental).state, State::Start);
}

#[test]
fn one_task_of_a_source_at_a_time_and_few_in_all() {
    let names = ["a", "b", "c", "d"];
    let jobs: Vec<Job> =
        names.map(|n| job(&format!("source = \"{n}\"\nevery = \"1h\"\nverify = {{ every = \"1h\" }}\n"))).into();
    let mut history = History::new();
    for job in &jobs {
        let runs =
            [(Task::Incremental, "2026-06-01T00:00:00Z", 1, true), (Task::Verify, "2026-06-01T00:00:00Z", 1, true)];
        history.extend(past(job, &runs));
    }
    let decisions = plan(&jobs, &history, &limits(2), at("2026-06-02T00:00:00Z"));
    let starting: Vec<_> = decisions.iter().filter(|d| d.state == State::Start).collect();
    assert_eq!(starting.len(), 2);
    assert!(starting.iter().all(|d| d.task == Task::Incremental) && starting[0].source != starting[1].source);
}

#[test]
fn hosts_differ_in_their_jitter_and_each_keeps_its_own() {
    let job = job("source = \"a\"\njitter = \"10m\"\nfull = { cron = \"0 2 * * *\" }\n");
    let history = past(&job, &[(Task::Full, "2026-06-01T02:00:00Z", 1, true)]);
    let next = |host: &str, now: &str| {
        let limits = Limits { host: host.into(), runs: 1, ..limits(1) };
        plan(std::slice::from_ref(&job), &history, &limits, at(now))[0].at
    };
    let times: std::collections::BTreeSet<_> =
        (0..20).map(|n| next(&format!("host{n}"), "2026-06-01T12:00:00Z")).collect();
    assert!(times.len() > 15, "{times:?}");
    assert!(times.iter().all(|t| *t >= at("2026-06-02T02:00:00Z") && *t < at("2026-06-02T02:10:00Z")));
    assert_eq!(next("host1", "2026-06-01T12:00:00Z"), next("host1", "2026-06-01T20:00:00Z"));
}

#[test]
fn a_schedule_that_cannot_keep_its_rpo_is_called_so() {
    let now = at("2026-06-01T00:00:00Z");
    let minutes = SignedDuration::from_mins;
    let says = |text: &str, usual| warning(&job(text), usual, now);
    // An hourly run cannot promise an hour.
    assert!(says("source = \"a\"\nevery = \"1h\"\nrpo = \"1h\"\n", minutes(1)).is_some());
    assert!(says("source = \"a\"\nevery = \"30m\"\nrpo = \"1h\"\n", minutes(1)).is_none());
    assert!(says("source = \"a\"\nevery = \"30m\"\nrpo = \"1h\"\n", minutes(31)).is_some());
    assert!(says("source = \"a\"\nrpo = \"1h\"\n", minutes(20)).is_none());
    assert!(says("source = \"a\"\nrpo = \"1h\"\n", minutes(50)).is_some());
    let office = "source = \"a\"\nrpo = \"2h\"\nblackout = [{ from = \"09:00\", to = \"17:00\" }]\n";
    assert!(says(office, minutes(1)).unwrap().contains("blackout"));
    let cron = "source = \"a\"\nrpo = \"24h\"\nincremental = { cron = \"0 8-18 * * 1-5\" }\n";
    assert!(says(cron, minutes(1)).is_some());
}

/// What becomes of each task, by the name of its job.
fn states(jobs: &[Job], history: &History, now: &str) -> BTreeMap<(String, Task), State> {
    let decisions = plan(jobs, history, &limits(8), at(now)).into_iter();
    decisions.map(|d| ((d.source.to_string(), d.task), d.state)).collect()
}

#[test]
fn a_group_that_is_due_keeps_its_members_from_starting() {
    let every = |name: &str| job(&format!("source = \"{name}\"\nevery = \"1h\"\nprune = {{ every = \"1d\" }}\n"));
    let jobs = [group("group = \"shop\"\nevery = \"1h\"\n", &["a", "b"]), every("a"), every("b"), every("c")];
    let mut history = History::new();
    for job in &jobs {
        let runs =
            [(Task::Incremental, "2026-06-01T00:00:00Z", 1, true), (Task::Prune, "2026-06-01T00:00:00Z", 1, true)];
        history.extend(past(job, &runs));
    }
    let shop = ("group.shop".to_owned(), Task::Incremental);
    let of = |name: &str, task| (name.to_owned(), task);
    let free = states(&jobs, &history, "2026-06-01T01:30:00Z");
    assert_eq!((free[&shop], free[&of("a", Task::Incremental)]), (State::Start, State::Held), "{free:?}");
    assert_eq!(free[&of("c", Task::Incremental)], State::Start, "who is in no group waits for none: {free:?}");
    // A member's own run is under way: the group waits for it, and nothing of the other member gets in between.
    let under_way = |history: &mut History, name: &str, task| {
        let past = history.get_mut(&SourceName::new(name).unwrap()).unwrap();
        past.tasks.get_mut(&task).unwrap().running = Some(at("2026-06-02T00:20:00Z"));
    };
    let mut busy = history.clone();
    under_way(&mut busy, "a", Task::Incremental);
    let waiting = states(&jobs, &busy, "2026-06-02T00:30:00Z");
    assert_eq!(waiting[&shop], State::Held, "{waiting:?}");
    for task in [Task::Incremental, Task::Prune] {
        assert_eq!(waiting[&of("b", task)], State::Held, "the group would have to wait for this next: {waiting:?}");
    }
    // What only reads holds up no group, as it holds up no backup.
    let mut read = history.clone();
    under_way(&mut read, "a", Task::Verify);
    assert_eq!(states(&jobs, &read, "2026-06-01T01:30:00Z")[&shop], State::Start);
    // The other way about: while the group is under way its members wait; a drill of one does, too.
    let mut grouped = history.clone();
    let own = grouped.get_mut(&jobs[0].source).unwrap().tasks.get_mut(&Task::Incremental).unwrap();
    own.running = Some(at("2026-06-02T00:20:00Z"));
    let members = states(&jobs, &grouped, "2026-06-02T00:30:00Z");
    for (name, task) in [("a", Task::Incremental), ("b", Task::Incremental), ("a", Task::Prune), ("b", Task::Prune)] {
        assert_eq!(members[&of(name, task)], State::Held, "{name} {task}: {members:?}");
    }
    // A group whose time has not come, or that waits before it tries again, keeps nobody waiting.
    let mut failed = history.clone();
    let own = failed.get_mut(&jobs[0].source).unwrap().tasks.get_mut(&Task::Incremental).unwrap();
    let started = at("2026-06-01T01:00:00Z");
    own.last = Some(Last { started, finished: at("2026-06-01T01:29:45Z"), done: false });
    own.failures = 1;
    let later = states(&jobs, &failed, "2026-06-01T01:30:00Z");
    assert_eq!((later[&shop], later[&of("a", Task::Incremental)]), (State::Waiting, State::Start), "{later:?}");
}

#[test]
fn of_a_retired_source_nothing_is_due_but_whether_it_is_whole() {
    let tasks = "every = \"1h\"\ndrill = { every = \"1h\" }\nprune = { every = \"1h\" }\nverify = { every = \"1h\" }\n";
    let job = job(&format!("source = \"a\"\n{tasks}"));
    let mut history = past(&job, &Task::ALL.map(|task| (task, "2026-06-01T00:00:00Z", 1, true)));
    history.get_mut(&job.source).unwrap().retired = true;
    let of = |task| one(&job, &history, "2026-06-09T00:00:00Z", task);
    for task in [Task::Incremental, Task::DRILL, Task::Prune] {
        assert_eq!((of(task).state, of(task).why.as_str()), (State::Held, "the source is retired"), "{task}");
    }
    assert_eq!(of(Task::Verify).state, State::Start);
}

#[test]
fn groups_with_a_member_in_common_take_turns() {
    let jobs = [
        group("group = \"x\"\nfull = { every = \"10m\" }\noverlap = \"queue\"\n", &["a", "b"]),
        group("group = \"y\"\nevery = \"10m\"\noverlap = \"queue\"\n", &["b", "c"]),
    ];
    let mut world = World::new(jobs.into(), at("2026-06-01T00:00:00Z"));
    for minute in 0..300 {
        let now = at("2026-06-01T00:00:00Z") + SignedDuration::from_mins(minute);
        world.end(now);
        // Each run takes twice as long as its interval.
        world.step(now, 20, 4, at("2026-06-01T00:00:00Z"));
    }
    let runs: Vec<usize> = world.starts.values().map(Vec::len).collect();
    assert!(runs.len() == 2 && runs.iter().all(|n| *n >= 6), "both groups run, in turn: {:?}", world.starts);
}

#[test]
fn members_that_are_always_busy_do_not_starve_their_group() {
    let own = |name: &str| job(&format!("source = \"{name}\"\nevery = \"5m\"\noverlap = \"queue\"\n"));
    let jobs = [own("a"), own("b"), group("group = \"shop\"\nevery = \"1h\"\n", &["a", "b"])];
    let mut world = World::new(jobs.into(), at("2026-06-01T00:00:00Z"));
    for minute in 0..600 {
        let now = at("2026-06-01T00:00:00Z") + SignedDuration::from_mins(minute);
        world.end(now);
        // One begins five minutes after the other, and each as soon as it has ended: they are never free at the same time by themselves.
        let most = if minute < 15 { 1 } else { 4 };
        world.step(now, 10, most, at("2026-06-01T00:00:00Z"));
    }
    let shop = &world.starts[&("group.shop".to_owned(), Task::Incremental)];
    assert!(shop.len() >= 7, "the group ran {} times in ten hours: {shop:?}", shop.len());
    let a = &world.starts[&("a".to_owned(), Task::Incremental)];
    assert!(a.len() >= 20, "its members run in between: {a:?}");
}

/// A job with rhythms in minutes.
fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let rhythm = prop_oneof![
        (5_u32..300).prop_map(|m| format!("{{ every = \"{m}m\" }}")),
        Just("{ cron = \"0 2 * * *\", timezone = \"Europe/Berlin\" }".to_owned()),
        Just("{ cron = \"*/20 * * * *\" }".to_owned()),
    ];
    let one = (rhythm.clone(), proptest::option::of(rhythm.clone()), proptest::option::of(rhythm), any::<[bool; 3]>());
    let text = one.prop_map(|(incremental, full, drill, [skip, queue, blackout])| {
        let mut text = format!("incremental = {incremental}\n");
        full.iter().for_each(|r| text.push_str(&format!("full = {r}\n")));
        drill.iter().for_each(|r| text.push_str(&format!("drill = {r}\n")));
        text.push_str(if skip { "catch_up = \"skip\"\n" } else { "" });
        text.push_str(if queue { "overlap = \"queue\"\n" } else { "" });
        text.push_str(if blackout { "blackout = [{ from = \"09:00\", to = \"10:30\" }]\n" } else { "" });
        text
    });
    let of_group = prop_oneof![Just("every = \"45m\"\n"), Just("full = { cron = \"0 2 * * *\" }\nevery = \"2h\"\n")];
    let groups = proptest::collection::vec((of_group, 0_usize..3), 0..3);
    (proptest::collection::vec(text, 1..4), groups).prop_map(|(texts, groups)| {
        let own = texts.iter().enumerate().map(|(n, text)| job(&format!("source = \"s{n}\"\n{text}")));
        // A group of two; a member may have no job of its own.
        let grouped = groups.iter().enumerate().map(|(n, (text, first))| {
            let members = [format!("s{first}"), format!("s{}", first + 1)];
            group(&format!("group = \"g{n}\"\n{text}"), &members.each_ref().map(String::as_str))
        });
        own.chain(grouped).collect()
    })
}

/// Whether what is done to one of them is done to the other.
fn share(one: &Job, other: &Job) -> bool {
    one.covers(&other.source) || other.covers(&one.source) || one.members.iter().any(|member| other.covers(member))
}

/// A world with a clock: runs take time, fail now and then, and the agent is down now and then.
struct World {
    jobs: Vec<Job>,
    history: History,
    /// Source, task, start, end.
    running: Vec<(Job, Task, Timestamp, Timestamp)>,
    starts: BTreeMap<(String, Task), Vec<Timestamp>>,
    /// How the runs of each task end, in turn: whether it fails. One more that ends well follows, and so on from the beginning: what fails is told
    /// by the number of a run, never by the time, or a run that always ends at the same minute would always fail.
    fails: Vec<bool>,
    ended: BTreeMap<(String, Task), usize>,
}

impl World {
    fn new(jobs: Vec<Job>, now: Timestamp) -> World {
        let past = || {
            let tasks = Task::ALL.map(|task| (task, Past { since: Some(now), ..Past::default() }));
            SourcePast { tasks: tasks.into(), ..SourcePast::default() }
        };
        let history = jobs.iter().map(|job| (job.source.clone(), past())).collect();
        let (starts, ended) = (BTreeMap::new(), BTreeMap::new());
        World { jobs, history, running: Vec::new(), starts, fails: Vec::new(), ended }
    }

    fn end(&mut self, now: Timestamp) {
        let (ended, running) = self.running.drain(..).partition(|(.., end)| *end <= now);
        self.running = running;
        for (job, task, started, finished) in ended {
            let number = self.ended.entry((job.source.to_string(), task)).or_default();
            let fails = self.fails.get(*number % (self.fails.len() + 1)).copied().unwrap_or(false);
            *number += 1;
            // A group's run is one of each member.
            for name in job.members.iter().filter(|_| !fails).chain([&job.source]) {
                let Some(past) = self.history.get_mut(name) else { continue };
                let own = past.tasks.get_mut(&task).unwrap();
                own.running = None;
                own.last = Some(Last { started, finished, done: !fails });
                own.failures = if fails { own.failures + 1 } else { 0 };
                if task.is_backup() && !fails {
                    past.newest = Some(started);
                }
            }
        }
    }

    fn step(&mut self, now: Timestamp, minutes: i64, most: usize, up_since: Timestamp) {
        let decisions = plan(&self.jobs, &self.history, &Limits { up_since, ..limits(most) }, now);
        for decision in &decisions {
            match decision.state {
                State::Waiting => assert!(decision.at > now, "{decision:?} at {now}"),
                State::Start => assert!(decision.at <= now, "{decision:?} at {now}"),
                State::Held | State::Running => {}
            }
        }
        for decision in decisions.iter().filter(|d| d.state == State::Start) {
            let job = self.jobs.iter().find(|j| j.source == decision.source).unwrap().clone();
            assert!(job.blackout.iter().all(|w| w.end(now).is_none()), "{decision:?} in a blackout, at {now}");
            let excludes =
                |(j, task, ..): &(Job, Task, _, _)| share(j, &job) && exclude_each_other(*task, decision.task);
            assert!(!self.running.iter().any(excludes), "{decision:?} beside another, at {now}");
            let own = self.history.get_mut(&job.source).unwrap().tasks.get_mut(&decision.task).unwrap();
            own.running = Some(now);
            self.starts.entry((job.source.to_string(), decision.task)).or_default().push(now);
            self.running.push((job, decision.task, now, now + SignedDuration::from_mins(minutes)));
        }
        assert!(self.running.len() <= most, "{} runs at {now}", self.running.len());
        let backups = self.running.iter().filter(|(_, task, ..)| task.is_backup()).count();
        assert!(most == 1 || self.running.len() - backups < most, "no run is left for backups at {now}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn weeks_of_any_schedule(jobs in jobs(), most in 1_usize..4, downs in proptest::collection::vec((0_i64..10_000, 1_i64..2_000), 0..4), minutes in 0_i64..40, fails in proptest::collection::vec(any::<bool>(), 0..6)) {
        let begin = at("2026-03-24T00:00:00Z");
        let mut world = World { fails, ..World::new(jobs, begin) };
        let down = |minute: i64| downs.iter().any(|(from, length)| (*from..from + length).contains(&minute));
        let mut up_since = begin;
        for minute in (0..10_000).step_by(5) {
            let now = begin + SignedDuration::from_mins(minute);
            world.end(now);
            if down(minute) {
                up_since = now + SignedDuration::from_mins(5);
            } else {
                world.step(now, minutes, most, up_since);
            }
        }
        // Whatever happened, every source with room for it was backed up to the end.
        let quiet = !downs.iter().any(|(from, length)| from + length > 8_000) && minutes * world.jobs.len() as i64 * 3 < 60;
        for job in &world.jobs {
            let past = &world.history[&job.source];
            if quiet {
                let last = past.newest.unwrap();
                let age = (begin + SignedDuration::from_mins(10_000)).duration_since(last);
                prop_assert!(age < SignedDuration::from_hours(36), "{} is {age:#} old", job.source);
            }
        }
    }

    #[test]
    fn no_past_makes_it_panic(jobs in jobs(), starts in proptest::collection::vec((-4_000_000_000_i64..20_000_000_000, 0_i64..1_000_000, any::<bool>(), any::<u32>()), Task::ALL.len()), now in -1_000_000_000_i64..10_000_000_000) {
        let time = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut history = History::new();
        for job in &jobs {
            let mut past = SourcePast { newest: Some(time(starts[0].0)), ..SourcePast::default() };
            for (task, (start, length, done, failures)) in Task::ALL.into_iter().zip(&starts) {
                let last = Last { started: time(*start), finished: time(start + length), done: *done };
                past.tasks.insert(task, Past { since: Some(time(*start)), last: Some(last), failures: *failures, running: None });
            }
            history.insert(job.source.clone(), past);
        }
        let count: usize = jobs.iter().map(|j| j.tasks.len()).sum();
        prop_assert_eq!(plan(&jobs, &history, &limits(2), time(now)).len(), count);
    }
}
