//! Delivery: a thread and a bounded queue for each channel, so that one that hangs keeps no other back. Each message is tried several times.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::send::{Message, send};
use crate::limits::NOTICES_QUEUED_MAX;

/// Pauses before the second try, the third, ….
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120)];

/// What became of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivered {
    pub channel: String,
    pub message: Message,
    pub tries: u32,
    /// Why it was given up; none: it arrived.
    pub error: Option<String>,
}

/// The channels of one configuration, each with its thread. Dropping it lets each thread finish the try that it is at.
pub struct Deliveries {
    lanes: Vec<(Channel, SyncSender<Message>)>,
    stop: Arc<AtomicBool>,
}

impl Deliveries {
    /// `report` is called on a channel's thread for every message that arrived or was given up.
    pub fn start(
        channels: &[Channel],
        base: PathBuf,
        report: impl Fn(Delivered) + Clone + Send + 'static,
    ) -> std::io::Result<Deliveries> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut lanes = Vec::new();
        for channel in channels {
            let (sender, queue) = sync_channel(NOTICES_QUEUED_MAX);
            let (channel_, base, report, stop) = (channel.clone(), base.clone(), report.clone(), Arc::clone(&stop));
            std::thread::Builder::new()
                .name(format!("notify {}", channel.name))
                .spawn(move || serve(&channel_, &queue, &base, &stop, &report))?;
            lanes.push((channel.clone(), sender));
        }
        Ok(Deliveries { lanes, stop })
    }

    pub fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.lanes.iter().map(|(channel, _)| channel)
    }

    /// Queues `message` on the channel of that name. False if its queue is full: then it is lost, and must be counted.
    pub fn put(&self, channel: &str, message: Message) -> bool {
        let lane = self.lanes.iter().find(|(c, _)| c.name == channel);
        lane.is_none_or(|(_, sender)| !matches!(sender.try_send(message), Err(TrySendError::Full(_))))
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(
    channel: &Channel,
    queue: &Receiver<Message>,
    base: &std::path::Path,
    stop: &AtomicBool,
    report: &(impl Fn(Delivered) + Send),
) {
    loop {
        let message = match queue.recv_timeout(Duration::from_secs(1)) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut tries = 0;
        let error = loop {
            tries += 1;
            let Err(error) = send(channel, &message, base) else { break None };
            match PAUSES.get(tries as usize - 1) {
                Some(pause) if wait(*pause, stop) => {}
                _ => break Some(format!("{error:#}")),
            }
        };
        report(Delivered { channel: channel.name.clone(), message, tries, error });
    }
}

/// False if the agent ends meanwhile.
fn wait(pause: Duration, stop: &AtomicBool) -> bool {
    let until = Instant::now() + pause;
    while Instant::now() < until {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}
