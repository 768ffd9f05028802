//! From what stands wrong to messages on channels: what is new is told, what must wait for the end of quiet hours is kept.

use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::observe::Seen;
use super::problems::Findings;
use super::watch;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::job::Task;
use crate::limits::NOTICES_QUEUED_MAX;
use crate::notify::{Alarms, Channel, Delivered, Deliveries, Head, Message, Notice, Phase, Pulse, Route};
use crate::repository::layout::SourceName;

/// A notice that its channel did not take is tried again after this, as long as its alarm stands.
const AGAIN: SignedDuration = SignedDuration::from_mins(5);

/// Called on a channel's thread.
pub type Report = Arc<dyn Fn(Delivered) + Send + Sync>;

/// The alarms that stand, and the channels.
pub struct Teller {
    alarms: Alarms,
    pub deliveries: Arc<Mutex<Arc<Deliveries>>>,
    /// Channel and notice, for the end of its quiet hours.
    held: Vec<(String, Notice)>,
    /// By channel and key: the newest notice that did not arrive, and when it is tried again.
    again: BTreeMap<(String, String), (Timestamp, Notice)>,
    /// By channel and key: on its way. What has not arrived when the process ends, the next one sends.
    under_way: BTreeMap<(String, String), Notice>,
    host: String,
    /// What to do with the word that a message has arrived, or was given up.
    report: Report,
    /// Channels that do not deliver, and why.
    pub mute: BTreeMap<String, String>,
    pub failed: BTreeMap<String, u64>,
    pub sent: BTreeMap<String, u64>,
}

impl Teller {
    pub fn start(config: &Config, catalog: &Catalog, report: Report) -> std::io::Result<Teller> {
        let deliveries = Arc::new(Mutex::new(Arc::new(channels(config, &report)?)));
        let alarms = catalog.alarms().unwrap_or_default();
        Ok(Teller {
            alarms: Alarms::recall(alarms),
            deliveries,
            held: catalog.held().unwrap_or_default(),
            again: again(catalog.untold().unwrap_or_default()),
            under_way: BTreeMap::new(),
            host: config.host_name(),
            report,
            mute: BTreeMap::new(),
            failed: BTreeMap::new(),
            sent: BTreeMap::new(),
        })
    }

    /// The scheduler had stalled, which was told without it, and goes on.
    pub fn stalled(&mut self, since: Timestamp) {
        self.alarms.add(watch::stall(), since);
    }

    /// Goes over to the channels of a new configuration.
    pub fn reload(&mut self, config: &Config) -> std::io::Result<()> {
        let channels = channels(config, &self.report)?;
        *self.deliveries.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(channels);
        self.mute.retain(|name, _| config.notify.iter().any(|c| c.name == *name));
        let is_there = |name: &str| config.notify.iter().any(|c| c.name == name);
        self.held.retain(|(name, _)| is_there(name));
        self.again.retain(|(name, _), _| is_there(name));
        self.under_way.retain(|(name, _), _| is_there(name));
        Ok(())
    }

    fn channels(&self) -> Arc<Deliveries> {
        Arc::clone(&self.deliveries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells what has changed with `findings`.
    pub fn tell(
        &mut self,
        findings: Findings,
        seen: &BTreeMap<SourceName, Seen>,
        catalog: &mut Catalog,
        now: Timestamp,
    ) {
        let deliveries = self.channels();
        let changes = self.alarms.update(findings.wrong, &findings.unknown, now);
        for change in &changes {
            let problem = change.alarm.problem.clone();
            tracing::warn!(
                key = problem.key,
                phase = change.phase.name(),
                title = problem.title,
                detail = problem.detail,
                "notice"
            );
            let head = problem.source.as_ref().and_then(|s| seen.get(s)?.head.clone());
            let notice = Notice {
                version: 1,
                phase: change.phase,
                at: now,
                since: change.alarm.since,
                host: self.host.clone(),
                problem,
                head: head.map(|(seq, commit)| Head { seq, commit }),
            };
            for channel in deliveries.channels() {
                self.route(&deliveries, &channel.name, channel.route(&notice, now), &notice);
            }
        }
        let waiting = (self.held.len(), self.again.len());
        self.release(&deliveries, now);
        if !changes.is_empty() || (self.held.len(), self.again.len()) != waiting {
            self.keep(catalog);
        }
    }

    fn keep(&self, catalog: &mut Catalog) {
        let again = self.again.iter().map(|((channel, _), (_, notice))| (channel, notice));
        let under_way = self.under_way.iter().map(|((channel, _), notice)| (channel, notice));
        let untold = again.chain(under_way).take(NOTICES_QUEUED_MAX);
        if let Err(error) = catalog.keep_alarms(self.alarms.all(), &self.held, untold) {
            tracing::warn!(
                error = format!("{error:#}"),
                "the alarms cannot be kept: after a restart they are told again"
            );
        }
    }

    fn route(&mut self, deliveries: &Deliveries, channel: &str, route: Route, notice: &Notice) {
        // What is newer takes its place.
        self.again.remove(&(channel.to_owned(), notice.problem.key.clone()));
        let is_of = |name: &str, held: &Notice| name == channel && held.problem.key == notice.problem.key;
        if notice.phase == Phase::Recovered {
            // What nobody has heard of need not be taken back: the first word of it still waits.
            let unheard = |(name, held): &(String, Notice)| {
                is_of(name, held) && held.phase == Phase::Begun && held.at == held.since
            };
            let unheard = self.held.iter().any(unheard);
            self.held.retain(|(name, held)| !is_of(name, held));
            if unheard {
                return;
            }
        }
        if route == Route::Send {
            self.held.retain(|(name, held)| !is_of(name, held));
        }
        match route {
            Route::Drop => {}
            Route::Send => self.put(deliveries, channel, Message::Notice(Box::new(notice.clone())), notice.at),
            Route::Hold(_) if self.held.len() < NOTICES_QUEUED_MAX => self.held.push((channel.into(), notice.clone())),
            Route::Hold(_) => *self.failed.entry(channel.into()).or_default() += 1,
        }
    }

    /// Sends what has waited for the end of quiet hours, or for another try.
    fn release(&mut self, deliveries: &Deliveries, now: Timestamp) {
        let quiet = |name: &str, notice: &Notice| {
            let channel = deliveries.channels().find(|c| c.name == name);
            channel.is_some_and(|c| matches!(c.route(notice, now), Route::Hold(_)))
        };
        let (held, released) =
            std::mem::take(&mut self.held).into_iter().partition(|(name, notice)| quiet(name, notice));
        self.held = held;
        // A clock that was set back must not keep it for long.
        let rests = |at: Timestamp| at > now && at.duration_since(now) <= AGAIN;
        let due = self.again.extract_if(.., |(name, _), (at, notice)| !rests(*at) && !quiet(name, notice));
        let due: Vec<(String, Notice)> = due.map(|((name, _), (_, notice))| (name, notice)).collect();
        for (name, notice) in released.into_iter().chain(due) {
            self.put(deliveries, &name, Message::Notice(Box::new(notice)), now);
        }
    }

    fn put(&mut self, deliveries: &Deliveries, channel: &str, message: Message, now: Timestamp) {
        let notice = if let Message::Notice(notice) = &message { Some((**notice).clone()) } else { None };
        let queued = deliveries.put(channel, message);
        if !queued {
            *self.failed.entry(channel.into()).or_default() += 1;
            self.mute.insert(channel.into(), "its queue is full".into());
        }
        let Some(notice) = notice else { return };
        if queued {
            self.under_way.insert((channel.into(), notice.problem.key.clone()), notice);
        } else {
            self.settle(channel, &notice, false, now);
        }
    }

    /// Pings of a run, of a group for its members too: `suffix` is `/start`, nothing for success, or `/fail`.
    pub fn ping(
        &mut self,
        of: (&SourceName, &[SourceName]),
        task: Task,
        suffix: &'static str,
        run: &str,
        now: Timestamp,
    ) {
        let (source, members) = of;
        let of = match task {
            // A cheap drill must not keep the switch from falling that tells that nothing is restored any more.
            Task::Drill(level) if level.proves() => Pulse::Drill,
            task if task.is_backup() => Pulse::Backup,
            _ => return,
        };
        let deliveries = self.channels();
        let about = |c: &&Channel| {
            c.sources.is_empty() || c.sources.contains(source) || members.iter().any(|m| c.sources.contains(m))
        };
        let wanted = deliveries.channels().filter(|c| c.ping.is_some()).filter(about);
        let names: Vec<String> = wanted.map(|c| c.name.clone()).collect();
        for name in names {
            self.put(&deliveries, &name, Message::Ping { of, suffix, run: run.into() }, now);
        }
    }

    /// Takes note of what became of a message.
    pub fn delivered(&mut self, delivered: &Delivered, catalog: &mut Catalog, now: Timestamp) {
        let channel = &delivered.channel;
        match &delivered.error {
            None => {
                *self.sent.entry(channel.clone()).or_default() += 1;
                self.mute.remove(channel);
            }
            Some(error) => {
                tracing::error!(channel, tries = delivered.tries, error, "a notice did not arrive");
                *self.failed.entry(channel.clone()).or_default() += 1;
                self.mute.insert(channel.clone(), error.clone());
            }
        }
        if let Message::Notice(notice) = &delivered.message {
            let key = (channel.clone(), notice.problem.key.clone());
            // A newer one of the same alarm is still on its way.
            if self.under_way.get(&key).is_some_and(|newest| newest.at <= notice.at) {
                self.under_way.remove(&key);
            }
            self.settle(channel, notice, delivered.error.is_none(), now);
            self.keep(catalog);
        }
        if let Message::Notice(notice) = &delivered.message
            && let Err(error) =
                catalog.told(now, channel, &notice.problem.key, notice.phase.name(), delivered.error.as_deref())
        {
            tracing::warn!(error = format!("{error:#}"), "the catalog cannot be written");
        }
    }

    /// A notice that did not arrive is kept for another try, unless a newer one is.
    fn settle(&mut self, channel: &str, notice: &Notice, arrived: bool, now: Timestamp) {
        let key = (channel.to_owned(), notice.problem.key.clone());
        let newer = |kept: &(Timestamp, Notice)| kept.1.at > notice.at;
        let there = self.channels().channels().any(|c| c.name == channel);
        if self.again.get(&key).is_some_and(newer) {
            return;
        }
        self.again.remove(&key);
        let stands = notice.phase == Phase::Recovered || self.alarms.all().any(|a| a.problem.key == notice.problem.key);
        if !arrived && there && stands && self.again.len() < NOTICES_QUEUED_MAX {
            self.again.insert(key, (now.saturating_add(AGAIN).unwrap_or(now), notice.clone()));
        }
    }

    /// Severity and number of the alarms that stand.
    pub fn standing(&self) -> BTreeMap<&'static str, u64> {
        use crate::notify::Severity::{Critical, Info, Warning};
        let count = |severity| self.alarms.all().filter(|a| a.problem.severity == severity).count() as u64;
        BTreeMap::from([("info", count(Info)), ("warning", count(Warning)), ("critical", count(Critical))])
    }
}

/// What has not arrived before this process began is due at once.
fn again(untold: Vec<(String, Notice)>) -> BTreeMap<(String, String), (Timestamp, Notice)> {
    let due = |(channel, notice): (String, Notice)| ((channel, notice.problem.key.clone()), (Timestamp::MIN, notice));
    untold.into_iter().map(due).collect()
}

fn channels(config: &Config, report: &Report) -> std::io::Result<Deliveries> {
    let report = Arc::clone(report);
    Deliveries::start(&config.notify, config.base().to_owned(), move |delivered| report(delivered))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "test files need no durability")]
mod tests {
    use super::*;
    use crate::notify::{Problem, Severity};
    use std::collections::BTreeSet;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn what_did_not_arrive_is_told_again_while_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("blackstart.toml");
        let channel_ = "[[notify]]\nname = \"c\"\ncommand = { argv = [\"cat\"] }\nquiet = [{ from = \"00:00\", to = \"06:00\", timezone = \"UTC\" }]\n";
        std::fs::write(&main, format!("repository = \"r\"\n{channel_}")).unwrap();
        let config = Config::load(Some(&main)).unwrap();
        let (mut catalog, _) = Catalog::open(&dir.path().join("state")).unwrap();
        let (sender, receiver) = channel();
        let report: Report = Arc::new(move |delivered| sender.send(delivered).unwrap());
        let mut teller = Teller::start(&config, &catalog, report).unwrap();
        let at = |minutes| Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes);
        let problem = Problem {
            key: "k".into(),
            severity: Severity::Critical,
            source: None,
            title: "t".into(),
            detail: String::new(),
        };
        // One notice is expected, or none; the test plays the network, which loses it or not.
        let mut tell = |wrong: &[&Problem], minutes, expected: Option<Phase>, arrives: bool| {
            let wrong = wrong.iter().copied().cloned().collect();
            teller.tell(Findings { wrong, unknown: BTreeSet::new() }, &BTreeMap::new(), &mut catalog, at(minutes));
            let patience = Duration::from_millis(if expected.is_some() { 30_000 } else { 300 });
            let told = receiver.recv_timeout(patience).ok().map(|delivered: Delivered| {
                let error = (!arrives).then(|| "lost".to_owned());
                teller.delivered(&Delivered { error, ..delivered.clone() }, &mut catalog, at(minutes));
                let Message::Notice(notice) = delivered.message else { panic!("nothing but notices is told") };
                notice.phase
            });
            assert_eq!(told, expected, "after {minutes} minutes");
        };
        tell(&[&problem], 0, Some(Phase::Begun), false);
        tell(&[&problem], 4, None, true);
        tell(&[&problem], 5, Some(Phase::Begun), false);
        tell(&[&problem], 10, Some(Phase::Begun), true);
        tell(&[&problem], 20, None, true);
        tell(&[], 21, Some(Phase::Recovered), false);
        tell(&[], 26, Some(Phase::Recovered), true);
        tell(&[], 40, None, true);
        // At night what is mild waits, and what gets worse does not: its end is told to whoever heard of it.
        let mild = Problem { severity: Severity::Warning, ..problem.clone() };
        tell(&[&mild], 60, None, true);
        tell(&[], 65, None, true);
        tell(&[&mild], 70, None, true);
        tell(&[&problem], 75, Some(Phase::Begun), true);
        tell(&[&mild], 80, None, true);
        tell(&[], 85, Some(Phase::Recovered), true);
    }
}
