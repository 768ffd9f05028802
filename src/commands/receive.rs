//! `wal-receive`: streams a PostgreSQL server's log into the repository until it is stopped.

use anyhow::Result;
use std::sync::atomic::AtomicBool;

use super::output::{Ending, Exit, Shell, size};
use crate::agent;
use crate::cli::wal::WalReceive;
use crate::config::SourceKind;
use crate::error::{Failure, Kind};
use crate::interrupt;
use crate::operations::receiver::Event;
use crate::operations::wal::receive::{Options, receive};
use crate::operations::wal::recover::newest_end;
use crate::source::postgres;

pub fn run(shell: &Shell, args: &WalReceive) -> Result<Ending> {
    let config = shell.config()?;
    let source = config.named_source(&args.source)?;
    let Some(url) = source.url.as_ref().filter(|_| source.kind == SourceKind::Postgres) else {
        let help = "Nothing was done. Only kind = \"postgres\" has a log that can be received.";
        return Err(Failure::new(
            Kind::Usage,
            format!("source {} is of kind {}", args.source, source.kind.name()),
            help,
        ));
    };
    let address = postgres::address(url, source.password.as_ref(), config.base())?;
    let host = shell.host(&config)?;
    let options = agent::receiver_options(&config, source);
    let mut options = Options { once: args.once, anew: args.anew, ..options };
    options.from = newest_end(&host.open, &args.source)?;
    let report =
        receive(&host, &args.source, &address, &options, &AtomicBool::new(false), &|event| tell(shell, event))?;
    shell.say(format!(
        "{}: the log is stored up to {} on timeline {}: {} in {} pieces",
        report.source,
        report.position,
        report.timeline,
        size(report.bytes),
        report.pieces
    ));
    if interrupt::is_wished() {
        let help = "What had come is stored and confirmed to the server, which keeps the rest in its slot. The same command again goes on.";
        return Err(Failure::new(Kind::Interrupted, "interrupted by a signal", help));
    }
    let exit = if report.gaps.is_empty() { Exit::Done } else { Exit::Partial };
    Ending::new(exit, report)
}

fn tell(shell: &Shell, event: &Event) {
    match event {
        Event::Streaming { timeline, position, .. } => {
            shell.say(format!("streaming from {position} on, timeline {timeline}"));
        }
        Event::Timeline { timeline, position } => {
            shell.say(format!("the server goes on with timeline {timeline}, from {position}"));
        }
        Event::Gap { why } => shell.warn(format!(
            "a gap in the log: {why}.\n  Points in time after it need a new snapshot: run `blackstart backup` now"
        )),
        Event::Slot { retained, status } if Event::is_endangered(status) => {
            shell.warn(format!(
                "the replication slot is {status}: the server may remove what is not stored yet ({})",
                size(*retained)
            ));
        }
        Event::Slot { retained, .. } if *retained > 1 << 30 => {
            shell.warn(format!("the server keeps {} for this receiver: it does not keep up", size(*retained)));
        }
        Event::Waiting { why, seconds } => shell.warn(format!("{why}\n  trying again in {seconds:.1} s")),
        Event::Note { text } => shell.warn(text),
        Event::Stored { .. } | Event::Slot { .. } | Event::Lag { .. } => {}
    }
}
