//! A game day: what can go wrong with a repository is done to a copy of it, one thing after the other, and this program's own verbs, as processes,
//! must refuse what is not whole, tell of it by their exit codes, and bring back the next best point.
//!
//! The copy is made through the store, of two snapshots at most and of the commits of their source; the original is read and nothing else.
//! Nothing is asked of the source. FORMAT.md §2.7: a report of level `game-day` proves no snapshot.

mod harm;

use age::secrecy::ExposeSecret;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::harm::{Harm, Harmed};
use super::mirror::mirror;
use crate::child::{Child, Output, Spec};
use crate::operations::Open;
use crate::operations::restore;
use crate::report::{Check, Outcome, Stopwatch};
use crate::repository::agefile::Identity;
use crate::repository::keys::KeyPair;
use crate::repository::layout;
use crate::repository::sealed::SealedPart;
use crate::repository::series::{self, Series};
use crate::repository::snapshot::{Named, Snapshot};
use crate::storage::Key;

/// Longest run of one verb.
const PATIENCE: Duration = Duration::from_secs(12 * 3600);
/// Of what a verb prints.
const SAID_MAX: u64 = 1 << 20;
/// Bytes of the place that is too small.
const TOO_SMALL: &str = "64k";
/// What restores what: complete, and with a remark such as an owner that only root can set.
const RESTORED: [i32; 2] = [0, 3];
const WRONG_KEY: i32 = 12;
const ALARM: i32 = 4;

/// What a game day takes: stored bytes and objects to copy, and bytes of one restore, of which there are at most [`RESTORES`].
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub objects: u64,
    pub bytes: u64,
    pub restored: u64,
}

/// Restores that get to their end: the copy as it is, the one before after each of six faults. The others are refused on the way.
pub const RESTORES: u64 = 7;

/// The snapshots of a game day: the one that is damaged, and the next best, if there is one.
struct Points {
    snapshot: Snapshot,
    before: Option<Snapshot>,
    objects: BTreeMap<Key, Named>,
    /// Objects that the next best point does not need.
    own: BTreeMap<Key, Named>,
}

impl Points {
    fn of(open: &Open, snapshot: &Snapshot) -> Result<Points> {
        let whole = Series::list(&open.store, &open.trust, &snapshot.source)?.whole();
        let mut earlier = whole.snapshots().filter(|(_, s)| s.seq < snapshot.seq && s.outcome == Outcome::Complete);
        let before = earlier.next_back().map(|(_, s)| s.clone());
        let objects_of = |snapshot: &Snapshot| series::objects_of(&open.store, snapshot);
        let newest = objects_of(snapshot)?;
        let older = before.as_ref().map(objects_of).transpose()?.unwrap_or_default();
        let own = newest.iter().filter(|(key, _)| !older.contains_key(key)).map(|(k, v)| (k.clone(), *v)).collect();
        let objects = newest.into_iter().chain(older).collect();
        Ok(Points { snapshot: snapshot.clone(), before, objects, own })
    }

    fn cost(&self, identities: &[Identity]) -> Result<Cost> {
        Ok(Cost {
            objects: self.objects.len() as u64,
            bytes: self.objects.values().map(|(_, size)| size).sum(),
            restored: SealedPart::open(&self.snapshot, identities)?.stats.bytes,
        })
    }

    /// An object of the snapshot, best one that the next best point can do without.
    fn victim(&self, area: &str) -> Option<Key> {
        let prefix = layout::content_prefix(area, &self.snapshot.source);
        let of = |all: &BTreeMap<Key, Named>| all.keys().find(|key| key.as_str().starts_with(&prefix)).cloned();
        of(&self.own).or_else(|| of(&self.objects))
    }
}

/// What a game day on `snapshot` would take.
pub fn cost(open: &Open, identities: &[Identity], snapshot: &Snapshot) -> Result<Cost> {
    Points::of(open, snapshot)?.cost(identities)
}

/// Plays all faults in `scratch`. Gives what was found, and the bytes fetched.
pub fn play(
    open: &Open,
    identities: &[Identity],
    snapshot: &Snapshot,
    scratch: &Path,
    times: &Stopwatch,
) -> Result<(Vec<Check>, u64)> {
    let points = Points::of(open, snapshot)?;
    let cost = points.cost(identities)?;
    let to = scratch.join("restored");
    restore::has_place(&to, &[(to.clone(), cost.bytes + cost.restored)])?;
    let copy = scratch.join("repository");
    let fetched = times.time("copy", || mirror(open, snapshot, points.objects.keys().cloned(), &copy))?;
    let day = Day {
        program: std::env::current_exe().context("find this program")?,
        root: open.trust.root.id(),
        points,
        copy,
        to,
        state: scratch.join("watch.json"),
        key: identities.first().context("there is no recovery key")?.to_string().expose_secret().to_owned().into(),
        times,
    };
    Ok((day.checks()?, fetched))
}

struct Day<'a> {
    program: PathBuf,
    root: String,
    points: Points,
    copy: PathBuf,
    /// Where restores go; nothing may lie there after one that was refused.
    to: PathBuf,
    state: PathBuf,
    key: zeroize::Zeroizing<String>,
    times: &'a Stopwatch,
}

/// How a verb ended.
struct Ran {
    code: i32,
    /// What it printed, and the last of its complaints.
    said: String,
}

impl Day<'_> {
    fn checks(&self) -> Result<Vec<Check>> {
        let seq = self.points.snapshot.seq.to_string();
        let newest = ["--snapshot", &*seq];
        let mut checks = vec![self.comes_back("the copy as it is", &self.points.snapshot, &newest)?];
        if !checks.iter().all(|check| check.passed) {
            // Nothing can be told apart then.
            return Ok(checks);
        }
        let packs = [
            ("a pack is missing", Harm::Remove),
            ("a pack has flipped bits", Harm::Flip),
            ("a pack is cut short", Harm::Truncate),
        ];
        for (name, harm) in packs {
            self.object(name, "packs", harm, &mut checks)?;
        }
        self.object("an index object is missing", "index", Harm::Remove, &mut checks)?;
        self.rollback("the newest commit is missing", false, &mut checks)?;
        self.rollback("the store was set back to before the snapshot", true, &mut checks)?;
        checks.push(self.wrong_key()?);
        checks.push(self.no_room()?);
        checks.push(self.comes_back("the copy, when all is put right again", &self.points.snapshot, &newest)?);
        Ok(checks)
    }

    /// One object of the snapshot is harmed: a restore must refuse, name it, and leave nothing; the one before comes back.
    fn object(&self, name: &str, area: &str, harm: Harm, checks: &mut Vec<Check>) -> Result<()> {
        let Some(victim) = self.points.victim(area) else {
            checks.push(Check::not_run(name, "the snapshot has no such object"));
            return Ok(());
        };
        let harmed = Harmed::all(&self.copy, [&victim], harm)?;
        let seq = self.points.snapshot.seq.to_string();
        let ran = self.restore(&["--snapshot", &seq], &self.key)?;
        let hash = victim.as_str().rsplit('/').next().unwrap_or_default();
        checks.push(self.refused(
            name,
            &ran,
            |ran| !RESTORED.contains(&ran.code) && ran.said.contains(hash),
            &format!("an error that names {hash}"),
        ));
        checks.push(self.next_best(name, !self.points.own.contains_key(&victim))?);
        harmed.undo()
    }

    /// The newest commit goes, and with it what only it names: who has seen it raises the alarm, who has not gets the one before.
    fn rollback(&self, name: &str, whole: bool, checks: &mut Vec<Check>) -> Result<()> {
        // A suspect snapshot is nobody's default.
        let Some(before) = self.points.before.as_ref().filter(|before| !before.suspect) else {
            checks.push(Check::not_run(name, "there is no good snapshot before it"));
            return Ok(());
        };
        let seen = self.watch()?;
        ensure!(seen.code == 0, "a look at the copy ends with {}: {}", seen.code, seen.said);
        let commit = layout::snapshot(&self.points.snapshot.source, self.points.snapshot.seq);
        let own = self.points.own.keys().filter(|_| whole);
        let harmed = Harmed::all(&self.copy, own.chain([&commit]), Harm::Remove)?;
        let ran = self.watch()?;
        checks.push(verdict(format!("{name}: watch"), &format!("exit {ALARM}"), &ran, ran.code == ALARM));
        checks.push(self.comes_back(&format!("{name}: the newest that is left"), before, &[])?);
        harmed.undo()?;
        // What was seen is forgotten: the next fault begins anew.
        fs::remove_file(&self.state).context("forget what was seen")
    }

    fn wrong_key(&self) -> Result<Check> {
        let other = zeroize::Zeroizing::new(KeyPair::generate()?.identity.to_string().expose_secret().to_owned());
        let ran = self.restore(&[], &other)?;
        Ok(self.refused("another recovery key", &ran, |ran| ran.code == WRONG_KEY, &format!("exit {WRONG_KEY}")))
    }

    /// The target's disk is too small. Where no such disk can be made without rights, this is not played.
    fn no_room(&self) -> Result<Check> {
        let name = "no room at the target";
        let place = self.to.with_file_name("small");
        fs::create_dir(&place).context("make a place")?;
        let mount = format!("mount -t tmpfs -o size={TOO_SMALL} tmpfs \"$0\" && exec \"$@\"");
        let apart =
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount].map(std::ffi::OsString::from);
        let tried = Spec::new(apart.iter().cloned().chain([place.clone().into(), "true".into()]));
        let allowed = Child::spawn(&tried).and_then(|mut child| child.wait(Duration::from_secs(30)));
        if !allowed.is_ok_and(|ended| ended.status.success()) {
            return Ok(Check::not_run(name, "this machine does not let a user make a small disk (unshare, mount)"));
        }
        let place_in = place.join("restored");
        let bytes = restore_argv(&self.program, &self.copy, &self.root, &self.points.snapshot, &place_in);
        let ran = self.run(apart.into_iter().chain([place.clone().into()]).chain(bytes), &self.key)?;
        let said = |ran: &Ran| ran.code == 1 && ["space", "room"].iter().any(|word| ran.said.contains(word));
        // A data set that fits has nothing to refuse.
        if RESTORED.contains(&ran.code) {
            return Ok(Check::not_run(name, format!("the data set fits into {TOO_SMALL}")));
        }
        Ok(self.refused(name, &ran, said, "exit 1, for want of room"))
    }

    /// That the next best point comes back while the newest is harmed.
    fn next_best(&self, name: &str, shared: bool) -> Result<Check> {
        let name = format!("{name}: the snapshot before");
        match &self.points.before {
            None => Ok(Check::not_run(name, "there is none")),
            Some(_) if shared => Ok(Check::not_run(name, "it needs the same object")),
            Some(before) => self.comes_back(&name, before, &["--snapshot", &before.seq.to_string()]),
        }
    }

    /// A restore that must bring back just this snapshot.
    fn comes_back(&self, name: &str, snapshot: &Snapshot, more: &[&str]) -> Result<Check> {
        let ran = self.restore(more, &self.key)?;
        let which = format!("Restored snapshot {} of {} ", snapshot.seq, snapshot.source);
        let passed = RESTORED.contains(&ran.code) && ran.said.contains(&which) && self.to.exists();
        let check = verdict(name.to_owned(), &format!("snapshot {} comes back", snapshot.seq), &ran, passed);
        if self.to.exists() {
            fs::remove_dir_all(&self.to).context("remove what was restored")?;
        }
        Ok(check)
    }

    /// A run that must fail in a certain way, and leave nothing at the target.
    fn refused(&self, name: &str, ran: &Ran, how: impl FnOnce(&Ran) -> bool, expected: &str) -> Check {
        let nothing = !self.to.exists();
        let check =
            verdict(name.to_owned(), &format!("{expected}, and nothing at the target"), ran, nothing && how(ran));
        match nothing {
            true => check,
            false => Check { actual: format!("{}, and something at the target", check.actual), ..check },
        }
    }

    fn restore(&self, more: &[&str], key: &str) -> Result<Ran> {
        // What a refused restore has staged must not help the next one.
        let argv = restore_argv(&self.program, &self.copy, &self.root, &self.points.snapshot, &self.to);
        let ran = self.run(argv.chain(more.iter().map(Into::into)), key)?;
        self.clear_staging()?;
        Ok(ran)
    }

    fn clear_staging(&self) -> Result<()> {
        let name = self.to.file_name().unwrap_or_default().to_owned();
        for entry in fs::read_dir(self.to.parent().context("scratch is a directory")?).context("look into scratch")? {
            let path = entry.context("look into scratch")?.path();
            let staged =
                path.file_name().is_some_and(|n| n != name && n.to_string_lossy().contains(&*name.to_string_lossy()));
            if staged && path.is_dir() {
                fs::remove_dir_all(&path).context("remove what was staged")?;
            }
        }
        Ok(())
    }

    /// A look from outside, which remembers the newest commit.
    fn watch(&self) -> Result<Ran> {
        let words: [std::ffi::OsString; 10] = [
            self.program.clone().into(),
            "watch".into(),
            "--repo".into(),
            self.copy.clone().into(),
            "--root".into(),
            self.root.clone().into(),
            "--older-than".into(),
            "36500d".into(),
            "--state".into(),
            self.state.clone().into(),
        ];
        self.run(words, "")
    }

    /// Runs a verb to its end; the key goes through a pipe alone.
    fn run(&self, argv: impl IntoIterator<Item = std::ffi::OsString>, key: &str) -> Result<Ran> {
        let scratch = self.to.parent().map(Path::to_owned);
        let spec = Spec { input: true, output: Output::Piped, directory: scratch, ..Spec::new(argv) };
        let mut child = Child::spawn(&spec)?;
        if let Some(mut input) = child.input() {
            // Whether the verb wanted it shows in how it ends.
            drop(writeln!(input, "{key}"));
        }
        let reader = child.output().map(|pipe| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                drop(pipe.take(SAID_MAX).read_to_end(&mut text));
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        let ended = self.times.time("verbs", || child.wait(PATIENCE))?;
        let said = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        let code = ended.status.code().unwrap_or(-1);
        Ok(Ran { code, said: format!("{said}\n{}", ended.stderr.join("\n")) })
    }
}

fn restore_argv(
    program: &Path,
    copy: &Path,
    root: &str,
    snapshot: &Snapshot,
    to: &Path,
) -> impl Iterator<Item = std::ffi::OsString> {
    let words: [std::ffi::OsString; 11] = [
        program.into(),
        "restore".into(),
        snapshot.source.as_str().into(),
        "--repo".into(),
        copy.into(),
        "--root".into(),
        root.into(),
        "--identity".into(),
        "/dev/stdin".into(),
        "--to".into(),
        to.into(),
    ];
    words.into_iter()
}

/// A check on how a verb ended, which quotes what it said last.
fn verdict(name: String, expected: &str, ran: &Ran, passed: bool) -> Check {
    let last = ran.said.lines().map(str::trim).find(|line| line.contains("rror")).or(ran
        .said
        .lines()
        .map(str::trim)
        .rfind(|l| !l.is_empty()));
    Check {
        name,
        expected: expected.into(),
        actual: format!("exit {}: {}", ran.code, last.unwrap_or_default()),
        passed,
    }
}
