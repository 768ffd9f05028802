//! Into the restored data directory: segments, histories, settings.

use anyhow::{Context, Result, ensure};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use super::{Prepared, Recovery, Route, Target, Then, is_target, makes_no_sense};
use crate::interrupt;
use crate::operations::Open;
use crate::operations::wal::get::Files;
use crate::repository::agefile::Identity;
use crate::repository::log::Window;
use crate::source::postgres::restored;
use crate::source::postgres::wal::events::Follower;
use crate::source::postgres::wal::records::{Record, Records};
use crate::source::postgres::wal::{Lsn, WalFile};

/// Segments fetched at once; each needs up to some 50 MiB.
const AT_ONCE: u64 = 3;
/// Whoever this file of the data directory belongs to gets the new ones.
const LIKE: &str = "PG_VERSION";

/// Puts the log and the settings into the data directory at `data`, which was restored from the route's snapshot.
pub fn prepare(
    open: &Open,
    identities: &[Identity],
    route: &Route,
    recovery: &Recovery,
    data: &Path,
) -> Result<Prepared> {
    restored::forget_recovery(data)?;
    restored::hold_back(data)?;
    let (mut prepared, reached) = fill(open, identities, route, &recovery.target, data)?;
    let target = if reached { recovery.target.clone() } else { Target::Latest };
    if !reached {
        prepared.notes.push(match &recovery.target {
            Target::Time(time) => format!(
                "no transaction committed after {time} in the stored log: the server replays all of it, and that is its state at that time"
            ),
            _ => "the target is the end of the stored log: the server replays all of it".to_owned(),
        });
    }
    let like = data.join(LIKE);
    append(&data.join("postgresql.auto.conf"), &settings(&target, recovery, route.timeline), &like)?;
    append(&data.join("recovery.signal"), "", &like)?;
    Ok(prepared)
}

/// Puts the log from the route's snapshot to beyond `target` into `pg_wal`. Whether the target was found on the way.
pub fn fill(
    open: &Open,
    identities: &[Identity],
    route: &Route,
    target: &Target,
    data: &Path,
) -> Result<(Prepared, bool)> {
    let mut prepared = Prepared { segments: 0, bytes: 0, last: None, timeline: route.timeline, notes: Vec::new() };
    let wal = data.join("pg_wal");
    ensure!(wal.is_dir(), "{} is no data directory of PostgreSQL: it has no pg_wal", data.display());
    let mut reached = matches!(target, Target::Latest | Target::Immediate);
    if let (Some(window), false) = (&route.window, *target == Target::Immediate) {
        let files = Files::open(open, identities, &route.source)?.context("the log is gone")?;
        write_histories(&files, window, route.timeline, &wal)?;
        reached |= write_segments(&files, window, (route, target), &wal, &mut prepared)?;
    }
    Ok((prepared, reached))
}

fn write_histories(files: &Files, window: &Window, timeline: u32, wal: &Path) -> Result<()> {
    let known = files.log.stretches[window.first..=window.last].iter().flat_map(|s| s.histories.keys());
    let known: std::collections::BTreeSet<u32> = known.copied().filter(|t| *t <= timeline).collect();
    for timeline in known {
        let Some(history) = files.reader().history(&files.log, window, timeline)? else { continue };
        let path = wal.join(WalFile::History { timeline }.name(files.segment_size));
        let mut file = create(&path, &wal.with_file_name(LIKE))?;
        file.write_all(&history.bytes).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// A segment in `pg_wal`: where it begins, from where on it was written, how many bytes, and what kept more from being written.
struct Written {
    at: u64,
    from: u64,
    path: PathBuf,
    bytes: u64,
    failed: Option<anyhow::Error>,
}

/// Writes segments from the snapshot's end on until the target is passed. Whether it was.
fn write_segments(
    files: &Files,
    window: &Window,
    (route, target): (&Route, &Target),
    wal: &Path,
    prepared: &mut Prepared,
) -> Result<bool> {
    let size = files.segment_size;
    let mut at = route.start.end.0 / size * size;
    // Prune may have taken what comes before the snapshot's end; the snapshot has that in its own segment.
    let begin = at.max(window.from.1.0);
    let mut records = Records::new(size, begin);
    let mut follower = Follower::default();
    let (mut reached, mut passed) = (*target == Target::Latest, false);
    loop {
        interrupt::check("Nothing is at the target yet. The same command again begins anew.")?;
        let mut batch = write_batch(files, window, route.timeline, (at, begin), wal)?;
        let mut sink = |record: Record| {
            if let Target::Lsn(lsn) = *target {
                // The server stops at the first record that begins there or later.
                passed |= record.start >= lsn;
                reached |= passed;
            }
            let Some(happened) = follower.take(&record).filter(|_| record.start >= route.start.end.0) else { return };
            if is_target(&happened, target) {
                (reached, passed) = (true, true);
            } else if !reached || *target == Target::Latest {
                prepared.last = Some(happened);
            }
        };
        let mut failed = None;
        for written in &mut batch {
            prepared.segments += 1;
            prepared.bytes += written.bytes;
            feed(&written.path, (written.from - written.at, written.bytes), &mut records, &mut sink)?;
            failed = written.failed.take();
            if failed.is_some() {
                break;
            }
        }
        if let Some(failed) = failed {
            records.finish(&mut sink);
            // What lies beyond the target need not be sound.
            return if passed { Ok(reached) } else { Err(failed) };
        }
        at += size * AT_ONCE;
        let ended = batch.len() < AT_ONCE as usize || batch.last().is_none_or(|w| w.from + w.bytes < w.at + size);
        let broken = records.ended();
        if ended {
            records.finish(&mut sink);
        }
        if let Some(end) = broken.filter(|_| !passed) {
            return match *target {
                // There the server stops by itself.
                Target::Lsn(lsn) if lsn <= end => Ok(reached),
                _ => Err(makes_no_sense(&route.source, end)),
            };
        }
        if ended || passed {
            return Ok(reached);
        }
    }
}

/// Writes the segments from `at` on, some at once; fewer where the log ends.
fn write_batch(
    files: &Files,
    window: &Window,
    timeline: u32,
    (at, begin): (u64, u64),
    wal: &Path,
) -> Result<Vec<Written>> {
    let size = files.segment_size;
    let place = |at: u64| {
        let (_, on) = files.log.locate(window, timeline, at + size - 1)?;
        let (from, name) = (at.max(begin), WalFile::Segment { timeline: on, start: at }.name(size));
        (!files.log.is_end(window, timeline, from)).then(|| Written {
            at,
            from,
            path: wal.join(name),
            bytes: 0,
            failed: None,
        })
    };
    let write = |mut written: Written| {
        let whole = written.from == written.at;
        let mut file = if whole { create(&written.path, &wal.with_file_name(LIKE))? } else { open_own(&written.path)? };
        (written.bytes, written.failed) = files.sound_of_segment(window, timeline, written.from, &mut file)?;
        Ok(written)
    };
    let places: Vec<Written> = (0..AT_ONCE).map_while(|n| place(at + n * size)).collect();
    std::thread::scope(|scope| {
        let write = &write;
        let threads: Vec<_> = places.into_iter().map(|place| scope.spawn(move || write(place))).collect();
        let joined = threads.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
        joined.collect()
    })
}

/// The segment that the snapshot itself has, to be written on.
fn open_own(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).open(path).with_context(|| format!("write on in {}", path.display()))
}

/// Feeds `bytes` of a file from `skip` on.
fn feed(path: &Path, (skip, bytes): (u64, u64), records: &mut Records, sink: &mut dyn FnMut(Record)) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    file.seek(SeekFrom::Start(skip)).with_context(|| format!("read {}", path.display()))?;
    let mut file = file.take(bytes);
    let mut part = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut part).with_context(|| format!("read {}", path.display()))?;
        if n == 0 {
            return Ok(());
        }
        records.feed(&part[..n], sink);
    }
}

/// The settings of `recovery`, as lines of `postgresql.auto.conf`.
fn settings(target: &Target, recovery: &Recovery, timeline: u32) -> String {
    let mut lines = vec![
        "# blackstart: the log that recovery needs lies in pg_wal; there is nothing to fetch.".to_owned(),
        "restore_command = 'false'".into(),
        format!("recovery_target_timeline = '{timeline}'"),
    ];
    match target {
        Target::Latest => return lines.join("\n") + "\n",
        Target::Immediate => lines.push("recovery_target = 'immediate'".into()),
        Target::Time(time) => {
            lines.push(format!("recovery_target_time = '{}+00'", time.strftime("%Y-%m-%d %H:%M:%S%.6f")));
        }
        Target::Lsn(lsn) => lines.push(format!("recovery_target_lsn = '{}'", Lsn(*lsn))),
        Target::Xid(xid) => lines.push(format!("recovery_target_xid = '{xid}'")),
        Target::Name(name) => lines.push(format!("recovery_target_name = '{}'", name.replace('\'', "''"))),
    }
    let inclusive = if recovery.before { "off" } else { "on" };
    lines.push(format!("recovery_target_inclusive = {inclusive}"));
    let action = if recovery.then == Then::Promote { "promote" } else { "pause" };
    lines.push(format!("recovery_target_action = '{action}'"));
    lines.join("\n") + "\n"
}

/// A new or emptied file that belongs to whom `like` belongs.
fn create(path: &Path, like: &Path) -> Result<File> {
    let make = || {
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
        own(path, like)?;
        Ok::<_, std::io::Error>(file)
    };
    make().with_context(|| format!("write {}", path.display()))
}

fn append(path: &Path, text: &str, like: &Path) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        own(path, like)
    };
    write().with_context(|| format!("write {}", path.display()))
}

fn own(path: &Path, like: &Path) -> std::io::Result<()> {
    let owner = like.metadata()?;
    let is = path.metadata()?;
    if (owner.uid(), owner.gid()) != (is.uid(), is.gid()) {
        chown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}
