//! `wal-receive`: streams a server's log into the repository until it is stopped.

use anyhow::{Context, Result};
use std::sync::atomic::AtomicBool;

use super::backup;
use super::output::{Ending, Exit, Shell, size};
use crate::agent;
use crate::cli::wal::WalReceive;
use crate::config::{Config, SourceConfig, SourceKind};
use crate::error::{Failure, Kind};
use crate::interrupt;
use crate::operations::Host;
use crate::operations::receiver::Event;
use crate::operations::wal::receive::{Options, ReceiveReport, receive};
use crate::operations::wal::recover::newest_end;
use crate::operations::wal::replicate::{self, replicate};
use crate::source::postgres;

pub fn run(shell: &Shell, args: &WalReceive) -> Result<Ending> {
    let config = shell.config()?;
    let source = config.named_source(&args.source)?;
    let report = match source.kind {
        SourceKind::Postgres => of_postgres(shell, args, &config, source)?,
        SourceKind::Redis => of_redis(shell, args, &config, source)?,
        other => {
            let help =
                "Nothing was done. Only kind = \"postgres\" and kind = \"redis\" have a log that can be received.";
            let message = format!("source {} is of kind {}", args.source, other.name());
            return Err(Failure::new(Kind::Usage, message, help));
        }
    };
    let on =
        if source.kind == SourceKind::Postgres { format!(" on timeline {}", report.timeline) } else { String::new() };
    shell.say(format!(
        "{}: the log is stored up to {}{on}: {} in {} pieces",
        report.source,
        report.position,
        size(report.bytes),
        report.pieces
    ));
    if interrupt::is_wished() {
        let help = "What had come is stored and confirmed to the server, which keeps the rest as it does. The same command again goes on.";
        return Err(Failure::new(Kind::Interrupted, "interrupted by a signal", help));
    }
    let exit = if report.gaps.is_empty() { Exit::Done } else { Exit::Partial };
    Ending::new(exit, report)
}

fn of_postgres(shell: &Shell, args: &WalReceive, config: &Config, source: &SourceConfig) -> Result<ReceiveReport> {
    let url = source.url.as_ref().with_context(|| format!("source {} has no url", source.name))?;
    let address = postgres::address(url, source.password.as_ref(), config.base())?;
    let host = shell.host(config)?;
    let options = agent::receiver_options(config, source);
    let mut options = Options { once: args.once, anew: args.anew, ..options };
    options.from = newest_end(&host.open, &args.source)?.map(|range| (range.timeline, range.end.0));
    receive(&host, &args.source, &address, &options, &AtomicBool::new(false), &|event| tell(shell, event))
}

fn of_redis(shell: &Shell, args: &WalReceive, config: &Config, source: &SourceConfig) -> Result<ReceiveReport> {
    let place = config.open_redis(source, &shell.clock)?.place();
    let host = shell.host(config)?;
    let options = agent::stream_options(config, source);
    let mut options = replicate::Options { once: args.once, anew: args.anew, ..options };
    options.from = newest_end(&host.open, &args.source)?.and_then(|range| Some((range.id?, range.end.0)));
    let base = || base(shell, config, &host, source);
    replicate(&replicate::Task {
        host: &host,
        source: &args.source,
        place: &place,
        options: &options,
        stop: &AtomicBool::new(false),
        tell: &|event| match event {
            Event::Streaming { position, .. } => shell.say(format!("following from offset {position} on")),
            other => tell(shell, other),
        },
        base: Some(&base),
    })
}

/// The snapshot that the log goes on from.
fn base(shell: &Shell, config: &Config, host: &Host, source: &SourceConfig) -> Result<()> {
    let report = backup::one(shell, config, host, source, backup::options(config)?)?;
    if report.suspicions.is_empty() {
        return Ok(());
    }
    let help = "It is kept. Look at the server; if what it has is meant: backup --accept-change.";
    Err(Failure::new(Kind::CheckFailed, format!("snapshot {} looks wrong", report.seq), help))
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
            "a gap in the log: {why}.\n  Points in time after it need a new snapshot: run `blackstart backup` now, unless this is followed by one"
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
