//! Job files: what is read, and what is refused with a line and a cure.

use blackstart::config::Config;
use blackstart::error::{Kind, help_of, kind_of};
use blackstart::job::{self, Rhythm, Task};
use blackstart::operations::drill::Level;
use blackstart::scheduler;
use jiff::SignedDuration;
use std::fs;
use std::path::Path;

use super::support::binary::{configure, expect, home};

const FILES: &str = "kind = \"files\"\npath = \"/srv\"\n";

/// The error of a job file, with its help.
fn error(text: &str) -> String {
    let error = job::parse(text, Path::new("/etc/schedules/a.toml")).expect_err(text);
    assert_eq!(kind_of(&error), Kind::Config, "{error:#}");
    format!("{error:#} {}", help_of(&error).unwrap_or_default())
}

#[test]
fn a_whole_job() {
    let text = format!(
        "rpo = \"1h\"\nfull = {{ cron = \"0 2 * * *\", timezone = \"Asia/Tokyo\" }}\nincremental = {{ every = \"30m\" }}\n\
         drill = {{ every = \"7d\" }}\nprune = {{ every = \"1d\" }}\njitter = \"5m\"\ncatch_up = \"skip\"\noverlap = \"queue\"\n\
         blackout = [{{ from = \"09:00\", to = \"10:00\", days = [\"mon\"] }}]\n[retention]\ndaily = 30\n[source]\nname = \"a\"\n{FILES}"
    );
    let declared = job::parse(&text, Path::new("a.toml")).unwrap();
    let tasks: Vec<Task> = declared.job.tasks.keys().copied().collect();
    assert_eq!(tasks, [Task::Full, Task::Incremental, Task::DRILL, Task::Prune]);
    assert_eq!(declared.job.tasks[&Task::Incremental], Rhythm::Every(SignedDuration::from_mins(30)));
    assert_eq!(declared.retention.unwrap().daily, 30);
    assert_eq!(declared.inline.unwrap().name.as_str(), "a");
}

#[test]
fn each_level_of_drill_has_a_rhythm_of_its_own() {
    let drills = |text: &str| {
        let job = job::parse(&format!("source = \"a\"\nevery = \"1h\"\n{text}"), Path::new("a.toml")).unwrap().job;
        job.drills().map(|(level, rhythm)| (level, rhythm.gaps().1.as_hours())).collect::<Vec<_>>()
    };
    assert_eq!(drills("drill = { every = \"7d\" }\n"), [(Level::Engine, 168)]);
    assert_eq!(drills("drill = { every = \"7d\", level = \"cold-start\" }\n"), [(Level::ColdStart, 168)]);
    let ladder = "[[drill]]\nevery = \"1d\"\nlevel = \"hashes\"\n[[drill]]\nevery = \"7d\"\n\
                  [[drill]]\ncron = \"0 3 * * *\"\ntimezone = \"Asia/Tokyo\"\nlevel = \"existence\"\n";
    assert_eq!(drills(ladder), [(Level::Existence, 24), (Level::Hashes, 24), (Level::Engine, 168)]);
    assert_eq!(drills("drill = [{ every = \"2h\", level = \"decode\" }]\n"), [(Level::Decode, 2)]);
}

#[test]
fn an_rpo_alone_is_a_schedule() {
    let job = job::parse("source = \"a\"\nrpo = \"1h\"\n", Path::new("a.toml")).unwrap().job;
    assert_eq!(job.tasks[&Task::Incremental], Rhythm::Rpo(SignedDuration::from_hours(1)));
    let text = "source = \"a\"\nrpo = \"25h\"\nfull = { cron = \"0 2 * * *\" }\n";
    assert!(!job::parse(text, Path::new("a.toml")).unwrap().job.tasks.contains_key(&Task::Incremental));
    let text = "source = \"a\"\nrpo = \"2h\"\nfull = { cron = \"0 2 * * *\" }\n";
    assert!(job::parse(text, Path::new("a.toml")).unwrap().job.tasks.contains_key(&Task::Incremental));
}

#[test]
fn where_a_log_keeps_the_rpo_snapshots_are_daily_unless_said_otherwise() {
    let source = "[source]\nname = \"a\"\nkind = \"postgres\"\nurl = \"postgres://h/d\"\ncontinuous = true\n";
    let tasks = |schedule: &str| {
        let job = job::parse(&format!("{schedule}{source}"), Path::new("a.toml")).unwrap().job;
        assert!(scheduler::warning(&job, SignedDuration::ZERO, jiff::Timestamp::UNIX_EPOCH).is_none());
        job.tasks
    };
    let daily = Rhythm::Every(SignedDuration::from_hours(24));
    assert_eq!(tasks("rpo = \"5s\"\n"), [(Task::Incremental, daily.clone())].into());
    assert_eq!(tasks(""), [(Task::Incremental, daily)].into());
    let weekly = tasks("rpo = \"5s\"\nfull = { every = \"7d\" }\n");
    assert_eq!(weekly.keys().collect::<Vec<_>>(), [&Task::Full]);
    // The same where the source stands in blackstart.toml.
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("blackstart.toml");
    fs::create_dir(dir.path().join("schedules")).unwrap();
    fs::write(dir.path().join("schedules/a.toml"), "source = \"a\"\nrpo = \"5s\"\n").unwrap();
    let write = |lines: &str| {
        fs::write(&main, format!("repository = \"r\"\n[{source}{lines}").replace("[[source]\n", "[[source]]\n"))
            .unwrap()
    };
    write("");
    let config = Config::load(Some(&main)).unwrap();
    assert_eq!(config.jobs[0].tasks.keys().collect::<Vec<_>>(), [&Task::Incremental]);
    assert!(matches!(config.jobs[0].tasks[&Task::Incremental], Rhythm::Every(_)));
    write("[source.postgres]\nmode = \"logical\"\n");
    assert!(format!("{:#}", Config::load(Some(&main)).unwrap_err()).contains("physical snapshots only"));
}

#[test]
fn nonsense_is_refused_with_its_line() {
    for (text, line, says) in [
        ("source = \"a\"\nevry = \"1h\"\n", 2, "`every`"),
        ("every = \"1h\"\n", 1, "is for nothing"),
        ("plan = \"p\"\nrpo = \"1h\"\n", 2, "does not belong to a job that drills a plan"),
        ("plan = \"p\"\nsource = \"a\"\n", 2, "does not belong to a job that drills a plan"),
        ("plan = \"P!\"\n", 1, "cannot name"),
        ("plan = \"p\"\ngroup = \"g\"\n", 2, "does not belong to a job that drills a plan"),
        (
            "group = \"g\"\nevery = \"1h\"\ndrill = { every = \"7d\" }\n",
            3,
            "does not belong to a job that backs up a group",
        ),
        ("group = \"g\"\nevery = \"1h\"\n[retention]\nlast = 1\n", 3, "does not belong to a job that backs up a group"),
        ("group = \"g\"\nsource = \"a\"\n", 2, "does not belong to a job that backs up a group"),
        ("group = \"group.g\"\nevery = \"1h\"\n", 1, "cannot name"),
        ("source = \"a\"\nevery = \"soon\"\n", 2, "length of time"),
        ("source = \"a\"\nevery = \"0s\"\n", 2, "length of time"),
        ("source = \"a\"\nevery = \"10ms\"\n", 2, "at least"),
        ("source = \"a\"\nevery = \"100000d\"\n", 2, "at most ten years"),
        ("source = \"a\"\nfull = \"1h\"\n", 2, "expected a rhythm such as { every"),
        ("source = \"a\"\nfull = { cron = \"0 2 * *\" }\n", 2, "minute (0-59), hour (0-23)"),
        ("source = \"a\"\n\nfull = { cron = \"0 0 30 2 *\" }\n", 3, "never fires"),
        ("source = \"a\"\nfull = { cron = \"61 * * * *\" }\n", 2, "not a cron pattern"),
        ("source = \"a\"\nfull = { cron = \"0 2 * * *\", timezone = \"Asia/Tokio\" }\n", 2, "no time zone"),
        ("source = \"a\"\nfull = { cron = \"0 2 * * *\", every = \"1d\" }\n", 2, "a rhythm is"),
        ("source = \"a\"\nfull = { corn = \"0 2 * * *\" }\n", 2, "`cron`"),
        ("source = \"a\"\nevery = \"1h\"\nincremental = { every = \"2h\" }\n", 2, "both say"),
        ("source = \"a\"\nevery = \"1h\"\nblackout = [{ from = \"00:00\", to = \"00:00\" }]\n", 3, "no time to run"),
        ("source = \"a\"\nevery = \"1h\"\nblackout = [{ from = \"25:00\", to = \"00:00\" }]\n", 3, "time of day"),
        ("source = \"a\"\njitter = \"2h\"\nfull = { cron = \"0 * * * *\" }\n", 2, "jitter"),
        ("source = \"A b\"\nevery = \"1h\"\n", 1, "name"),
        ("every = \"1h\"\n[source]\nname = \"a\"\nkind = \"files\"\npth = \"/srv\"\n", 5, "`path`"),
        ("[source]\nname = \"a\"\nkind = \"files\"\npath = \"/srv\"\n", 1, "never does anything"),
        ("rpo = \"1h\"\n[source]\nname = \"a\"\nkind = \"files\"\npath = \"/srv\"\nrpo = \"2h\"\n", 1, "twice"),
        ("every = \"1h\"\n", 1, "source"),
        ("source = \"a\"\n[[drill]]\nevery = \"1d\"\nlevel = \"deep\"\n", 4, "`hashes`"),
        ("source = \"a\"\n[[drill]]\nevery = \"1d\"\nlvl = \"hashes\"\n", 4, "`level`"),
        (
            "source = \"a\"\n[[drill]]\nevery = \"1d\"\n[[drill]]\nevery = \"7d\"\nlevel = \"engine\"\n",
            2,
            "two drills are of level engine",
        ),
        ("plan = \"p\"\n[[drill]]\nevery = \"1d\"\nlevel = \"hashes\"\n", 2, "without a `level`"),
    ] {
        let said = error(text);
        assert!(said.contains(&format!("a.toml, line {line}:")), "{text}\n{said}");
        assert!(said.contains(says), "{text}\n{said}");
    }
}

#[test]
fn jobs_join_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("blackstart.toml");
    let source = "[[source]]\nname = \"etc\"\nkind = \"files\"\npath = \"/etc\"\nrpo = \"1d\"\n";
    fs::write(&main, format!("repository = \"repo\"\n{source}")).unwrap();
    fs::create_dir(dir.path().join("schedules")).unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join("schedules").join(name), text).unwrap();
    write("etc.toml", "source = \"etc\"\n[retention]\ndaily = 7\n");
    write("srv.toml", &format!("every = \"1h\"\nrto = \"2h\"\n[source]\nname = \"srv\"\n{FILES}"));
    write("off.toml", &format!("enabled = false\nevery = \"1h\"\n[source]\nname = \"off\"\n{FILES}"));
    write(".hidden.toml", "nonsense");
    let config = Config::load(Some(&main)).unwrap();
    let names: Vec<&str> = config.source.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["etc", "srv"]);
    assert_eq!(config.source[0].retention.as_ref().unwrap().daily, 7);
    assert_eq!(config.source[1].rto, Some(SignedDuration::from_hours(2)));
    assert_eq!(config.jobs[0].tasks[&Task::Incremental], Rhythm::Rpo(SignedDuration::from_hours(24)));
    assert!(!config.jobs[1].enabled);
    let refused = |says: &str| {
        let error = Config::load(Some(&main)).unwrap_err();
        assert_eq!(kind_of(&error), Kind::Config);
        assert!(format!("{error:#}").contains(says), "{error:#}");
    };
    write("again.toml", "source = \"etc\"\nevery = \"1h\"\n");
    refused("are both for etc");
    write("again.toml", "every = \"1h\"\nsource = \"nothing\"\n");
    refused("again.toml, line 2: it is for nothing, which is no source");
    write("again.toml", &format!("every = \"1h\"\n[source]\nname = \"srv\"\n{FILES}"));
    refused("are both for srv");
    fs::remove_file(dir.path().join("schedules/again.toml")).unwrap();
    write("etc.toml", "source = \"etc\"\nprune = { every = \"1d\" }\n");
    refused("etc.toml, line 2: prunes without a retention");
    write("etc.toml", "source = \"etc\"\n[retention]\ndaily = 0\n");
    refused("etc.toml, line 2: the retention policy keeps nothing");
    write("etc.toml", "source = \"etc\"\n[retention]\ndaily = 1\n[tier.monthly]\nlock = \"1d\"\n");
    refused("etc.toml, line 4: the retention keeps no monthly snapshots");
    write("etc.toml", "source = \"etc\"\nrpo = \"1h\"\n");
    refused("the rpo of etc");
}

#[test]
fn a_group_has_a_job_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("blackstart.toml");
    let source =
        |name: &str, rpo: &str| format!("[[source]]\nname = \"{name}\"\nkind = \"files\"\npath = \"/srv\"\n{rpo}\n");
    let (a, b) = (source("a", "rpo = \"1h\""), source("b", "rpo = \"2h\""));
    let group = "[[group]]\nname = \"shop\"\nsources = [\"a\", \"b\"]\n";
    fs::write(&main, format!("repository = \"repo\"\n{a}{b}{group}")).unwrap();
    fs::create_dir(dir.path().join("schedules")).unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join("schedules").join(name), text).unwrap();
    let job = |config: &Config, name: &str| config.jobs.iter().find(|j| j.source.as_str() == name).unwrap().clone();
    write("a.toml", "source = \"a\"\ndrill = { every = \"7d\" }\n");
    assert!(job(&Config::load(Some(&main)).unwrap(), "a").tasks.contains_key(&Task::Incremental));
    write("shop.toml", "group = \"shop\"\nfull = { cron = \"0 2 * * *\" }\n");
    let config = Config::load(Some(&main)).unwrap();
    let shop = job(&config, "group.shop");
    assert_eq!(shop.members.iter().map(|m| m.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    // The strictest member's target is the group's, and from that its runs follow; the member's own runs do not.
    assert_eq!(shop.rpo, Some(SignedDuration::from_hours(1)));
    assert_eq!(shop.tasks[&Task::Incremental], Rhythm::Rpo(SignedDuration::from_hours(1)));
    assert_eq!(job(&config, "a").tasks.keys().collect::<Vec<_>>(), [&Task::DRILL]);
    let refused = |says: &str| {
        let error = Config::load(Some(&main)).unwrap_err();
        assert_eq!(kind_of(&error), Kind::Config);
        let said = format!("{error:#} {}", help_of(&error).unwrap_or_default());
        assert!(said.contains(says), "{said}");
    };
    write("again.toml", "group = \"shop\"\nevery = \"1h\"\n");
    refused("are both for group.shop");
    write("again.toml", "group = \"shoo\"\nevery = \"1h\"\n");
    refused("is for the group shoo, which does not exist");
    refused("The groups of");
    fs::remove_file(dir.path().join("schedules/again.toml")).unwrap();
    fs::write(&main, format!("repository = \"repo\"\n{}{}{group}", source("a", ""), source("b", ""))).unwrap();
    write("shop.toml", "group = \"shop\"\n");
    refused("never does anything");
}

#[test]
fn a_broken_job_stops_backups_but_never_a_restore() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    configure(at, "");
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(at.join("schedules/app.toml"), "source = \"app\"\nevry = \"1h\"\n").unwrap();
    let refused = expect(at, &["backup"], 78);
    assert!(refused.err.contains("app.toml, line 2") && refused.err.contains("`every`"), "{}", refused.err);
    let restored = expect(at, &["restore", "app", "--to", "back"], 0);
    assert!(restored.err.contains("app.toml, line 2"), "{}", restored.err);
    assert!(at.join("back/etc/app.toml").exists());
    expect(at, &["snapshots"], 0);
}

#[test]
fn check_says_what_the_schedule_promises() {
    let home = home();
    let at = home.path();
    expect(at, &["protect", "app", "--repo", "repo"], 0);
    fs::create_dir(at.join("schedules")).unwrap();
    fs::write(
        at.join("schedules/app.toml"),
        "source = \"app\"\nevery = \"1h\"\nrpo = \"1h\"\ndrill = { every = \"7d\" }\n",
    )
    .unwrap();
    fs::write(at.join("schedules/off.toml"), "enabled = false\nsource = \"off\"\nevery = \"1h\"\n").unwrap();
    let said = expect(at, &["check"], 0).out;
    assert!(said.contains("WARNING  job app.toml: app: the RPO of 1h cannot be kept"), "{said}");
    assert!(said.contains("off is switched off"), "{said}");
    assert!(said.contains("up to 1h 1s of data") || said.contains("up to 1h 2s of data"), "whole seconds: {said}");
    // What `protect` found beside it, and nobody thought of.
    assert!(said.contains("WARNING  source ") && said.contains("no job backs it up"), "{said}");
    fs::write(at.join("schedules/app.toml"), "source = \"app\"\nrpo = \"1h\"\n").unwrap();
    let said = expect(at, &["check"], 0).out;
    assert!(!said.contains("WARNING  job") && said.contains("at worst 30 min"), "{said}");
}

/// The job files as they are shipped.
fn shipped() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("schedules");
    let files = job::files(&directory).unwrap();
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    files.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn the_shipped_jobs_are_switched_off_and_sound_when_switched_on() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("blackstart.toml");
    fs::write(&main, "repository = \"repo\"\n").unwrap();
    fs::create_dir(dir.path().join("schedules")).unwrap();
    let load = |edit: &dyn Fn(&str) -> String| {
        for (name, text) in shipped() {
            fs::write(dir.path().join("schedules").join(format!("{name}.toml")), edit(&text)).unwrap();
        }
        Config::load(Some(&main)).unwrap()
    };
    let off = load(&|text| text.to_owned());
    assert!(off.source.is_empty(), "a clone of this repository must protect nothing by itself");
    let on = load(&|text| text.replace("\nenabled = false\n", "\n"));
    let names: Vec<&str> = on.source.iter().map(|s| s.name.as_str()).collect();
    for seed in ["databases", "events", "vectors", "configs", "logs", "monthly"] {
        assert!(names.contains(&seed), "{seed}: {names:?}");
    }
    for job in &on.jobs {
        let promise = scheduler::warning(job, SignedDuration::from_mins(10), "2026-11-01T00:00:00Z".parse().unwrap());
        assert_eq!(promise, None);
    }
    let databases = on.jobs.iter().find(|j| j.source.as_str() == "databases").unwrap();
    let Rhythm::Cron(full) = &databases.tasks[&Task::Full] else { panic!("{databases:?}") };
    let next = full.after("2026-11-23T00:00:00Z".parse().unwrap()).unwrap();
    assert_eq!(next.to_string(), "2026-11-23T17:00:00Z", "02:00 in Tokyo");
}
