//! Several sources that fix their consistent points together: the barrier of one run of a group.
//!
//! Each member is read by a thread of its own, and says at its own place in the protocol of its engine: here my point is fixed. The barrier
//! makes it wait there until all others have come as far, and measures between which two moments the point lies.
//!
//! ```text
//! open     everybody connects and looks at what is there; nobody holds anything up
//! ready    those that read all before their point begin: physical copies of PostgreSQL
//! fix      first the points that an engine gives when it likes (a fork of Redis, the end of BASE_BACKUP), then, all at once,
//!          those that can be had within milliseconds (a read transaction, an exported snapshot, a lock)
//! read     at once where waiting costs the engine something, otherwise one after the other
//! ```
//! A member that fails leaves: the others go on, for snapshots of their own. Times are of one monotonic clock, so they can be compared.

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::interrupt;

/// How often a waiting member looks whether a signal wants it to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Who decides when a point is fixed. The earlier in this list, the earlier is its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The engine, some time after it is asked.
    Awaited,
    /// We do.
    Chosen,
}

/// Between which two moments the consistent point of a source lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: Timestamp,
    pub to: Timestamp,
    /// It has no single point: it was read throughout this time.
    pub throughout: bool,
}

/// What a run of a group waits at.
pub struct Barrier(Arc<Shared>);

struct Shared {
    began: Instant,
    began_at: Timestamp,
    seats: Mutex<Vec<Seat>>,
    changed: Condvar,
}

#[derive(Debug, Clone)]
struct Seat {
    stage: Stage,
    /// It is being read.
    reads: bool,
    span: Option<Range>,
}

/// As [`Span`], in time since the run began; a point may lie before that.
#[derive(Debug, Clone, Copy)]
struct Range {
    from: SignedDuration,
    to: SignedDuration,
    throughout: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Ready,
    Waits(Moment),
    Fixed,
    Left,
}

impl Barrier {
    pub fn new(members: usize, clock: &dyn Clock) -> Barrier {
        let seat = Seat { stage: Stage::Opening, reads: false, span: None };
        let (began, began_at) = (Instant::now(), clock.now());
        let seats = Mutex::new(vec![seat; members]);
        Barrier(Arc::new(Shared { began, began_at, seats, changed: Condvar::new() }))
    }

    /// The place of member `n`, counted from 0. Dropped, the member has left.
    pub fn member(&self, n: usize) -> Member {
        Member(Some((Arc::clone(&self.0), n)))
    }

    /// What was fixed, by member.
    pub fn spans(&self) -> Vec<Option<Span>> {
        let at = |since: SignedDuration| self.0.began_at.checked_add(since).unwrap_or(Timestamp::MAX);
        let span = |r: Range| Span { from: at(r.from), to: at(r.to), throughout: r.throughout };
        self.0.seats().iter().map(|seat| seat.span.map(span)).collect()
    }
}

/// The place of one source at a barrier. The default is that of a source that is read for itself: it waits for nobody.
#[derive(Default)]
pub struct Member(Option<(Arc<Shared>, usize)>);

impl Member {
    pub fn is_alone(&self) -> bool {
        self.0.is_none()
    }

    /// Waits until all others are open. For sources that are read before their point is fixed.
    pub fn ready(&self) -> Result<()> {
        let Some((shared, own)) = &self.0 else { return Ok(()) };
        shared.enter(*own, Stage::Ready);
        drop(shared.wait(|seats| seats.iter().all(|seat| seat.stage != Stage::Opening))?);
        Ok(())
    }

    /// Waits for the turn of `moment`, and has `act` fix the point. Once it is fixed the source is being read. A source that has to begin
    /// anew has another point: it waits no more, and the others keep theirs.
    pub fn fix<T>(&self, moment: Moment, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some((shared, own)) = &self.0 else { return act() };
        if shared.seats()[*own].stage != Stage::Fixed {
            shared.enter(*own, Stage::Waits(moment));
            drop(shared.wait(|seats| seats.iter().all(|seat| seat.lets_go(moment)))?);
        }
        let from = shared.since(Instant::now());
        let fixed = act()?;
        shared.fixed(*own, from);
        Ok(fixed)
    }

    /// For a source whose engine gave its point without being asked: it was fixed after `from`, and is by now.
    pub fn was_fixed(&self, from: Instant) {
        let Some((shared, own)) = &self.0 else { return };
        shared.fixed(*own, shared.since(from));
    }

    /// What has become known since: the point does not lie before `from`.
    pub fn not_before(&self, from: Instant) {
        self.change(|shared, range| range.from = shared.since(from).clamp(range.from, range.to));
    }

    /// What has become known since: the point may lie as early as `from`, by the clock of the host.
    pub fn may_be_as_early_as(&self, from: Timestamp) {
        self.change(|shared, range| range.from = range.from.min(from.duration_since(shared.began_at)));
    }

    /// For a source without a single point: it has been read until now.
    pub fn throughout(&self) {
        self.change(|shared, range| (range.to, range.throughout) = (shared.since(Instant::now()), true));
    }

    /// When the point was fixed; `None` of a source that is read for itself.
    pub fn fixed_at(&self) -> Option<Timestamp> {
        let (shared, own) = self.0.as_ref()?;
        let range = shared.seats()[*own].span?;
        shared.began_at.checked_add(range.from).ok()
    }

    fn change(&self, act: impl FnOnce(&Shared, &mut Range)) {
        let Some((shared, own)) = &self.0 else { return };
        if let Some(range) = &mut shared.seats()[*own].span {
            act(shared, range);
        }
    }

    /// Waits until nobody else is being read, once the point is fixed and holds: so that the memory of all does not add up.
    pub fn take_turn(&self) -> Result<()> {
        let Some((shared, own)) = &self.0 else { return Ok(()) };
        shared.seats()[*own].reads = false;
        shared.changed.notify_all();
        let mut seats = shared.wait(|seats| !seats.iter().any(|seat| seat.reads))?;
        seats[*own].reads = true;
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some((shared, own)) = &self.0 {
            shared.seats()[*own].reads = false;
            shared.enter(*own, Stage::Left);
        }
    }
}

impl Seat {
    /// Whether a point of `moment` need not wait for this member.
    fn lets_go(&self, moment: Moment) -> bool {
        match self.stage {
            Stage::Opening | Stage::Ready => false,
            Stage::Waits(of_this) => of_this >= moment,
            Stage::Fixed | Stage::Left => true,
        }
    }
}

impl Shared {
    fn seats(&self) -> MutexGuard<'_, Vec<Seat>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since(&self, moment: Instant) -> SignedDuration {
        SignedDuration::try_from(moment.saturating_duration_since(self.began)).unwrap_or(SignedDuration::MAX)
    }

    fn enter(&self, own: usize, stage: Stage) {
        self.seats()[own].stage = stage;
        self.changed.notify_all();
    }

    fn fixed(&self, own: usize, from: SignedDuration) {
        let range = Range { from, to: self.since(Instant::now()), throughout: false };
        self.seats()[own] = Seat { stage: Stage::Fixed, reads: true, span: Some(range) };
        self.changed.notify_all();
    }

    fn wait(&self, until: impl Fn(&[Seat]) -> bool) -> Result<MutexGuard<'_, Vec<Seat>>> {
        let mut seats = self.seats();
        while !until(&seats) {
            interrupt::check(
                "No snapshot was made of what waits for the others of its group; the earlier ones stand.",
            )?;
            seats = self.changed.wait_timeout(seats, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(seats)
    }
}
