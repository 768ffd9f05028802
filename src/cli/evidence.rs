//! The verbs that prove and look back: `drill`, `report`, `bisect`.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

use super::{Period, Place, source};
use crate::operations::drill::{Level, Point};
use crate::repository::layout::SourceName;

/// Restore into scratch, check, measure, and sign the report
///
/// Levels, from the cheap to the dear: existence, hashes, decode (no restore), engine (restore, compare, start the engine: the default; proves the
/// snapshot), point (as engine, of a random point: where a log is stored, of any moment that it leads to), cold-start (as engine, but restored by
/// recover.py with stock tools alone), game-day (faults are done to a copy of the repository, and each must be noticed).
///
/// Exit codes: 0 proven, 1 it could not be carried out here (which says nothing of the backup), 4 the drill failed, 5 it passed but RPO or RTO is
/// missed, 12 wrong key.
///
/// Example: blackstart drill orders --identity /media/usb/recovery.key
#[derive(Debug, Args)]
pub struct Drill {
    /// Sources of the configuration; without any, all
    #[arg(value_parser = source)]
    pub sources: Vec<SourceName>,
    /// How deep: existence, hashes, decode, engine, point, cold-start, game-day
    #[arg(long, value_name = "LEVEL", value_parser = level, default_value = "engine")]
    pub level: Level,
    /// Which recovery point: latest, random, random:30d (of the last 30 days), a snapshot's number, a time, or a position of the stored log (0/1A2B3C of
    /// PostgreSQL, offset:1234 of Redis)
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub point: Point,
    /// Leave the restored copy for inspection if the drill fails
    #[arg(long)]
    pub keep_failed: bool,
    /// The names are those of restore plans: rehearse them in scratch
    #[arg(long, requires = "sources", conflicts_with_all = ["level", "point"])]
    pub plan: bool,
    /// The names are those of groups: all members, from one common point; --point is its number
    #[arg(long, requires = "sources", conflicts_with = "plan")]
    pub group: bool,
    /// The recovery key file
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

fn level(text: &str) -> Result<Level, String> {
    let known = || Level::ALL.map(Level::name).join(", ");
    Level::ALL.into_iter().find(|l| l.name() == text).ok_or_else(|| format!("levels are {}", known()))
}

/// The evidence: signed reports of drills, real restores and plans
///
/// Without more it lists all, and exits 4 if a chain of reports is broken. With a period it is the page for an auditor: coverage, drills done and
/// missed, failures and what followed.
///
/// Example: blackstart report --period 2026-Q4
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Report {
    #[command(subcommand)]
    pub verb: Option<ReportVerb>,
    /// 2026, 2026-Q4 or 2026-11
    #[arg(long, value_name = "PERIOD")]
    pub period: Option<Period>,
    /// With --period
    #[arg(long, value_enum, default_value = "md")]
    pub form: Form,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Debug, Subcommand)]
pub enum ReportVerb {
    /// Verify report files, offline: signature, signer, and that they follow each other
    Verify {
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Fingerprint of the root key; otherwise the configuration's
        #[arg(long, value_name = "SHA256:…")]
        root: Option<String>,
    },
    /// Show one report, or write it out with what stock tools need to verify it
    Show {
        /// A source, or plan.NAME
        subject: String,
        /// Its number; otherwise the newest
        number: Option<u64>,
        #[arg(long, value_enum, default_value = "md")]
        form: Form,
        /// Write files into this new directory instead
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
        #[command(flatten)]
        place: Place,
    },
}

/// Find the last snapshot at which a check passes, by restores into scratch in log2 steps
///
/// Example: blackstart bisect orders --check "select count(*) > 0 from orders"
#[derive(Debug, Args)]
pub struct Bisect {
    /// The source, as the configuration names it
    #[arg(value_parser = source)]
    pub source: SourceName,
    /// SQL for the restored SQLite file or PostgreSQL server (of Redis a command: 'GET key'): good if its first value is neither null, 0, false nor empty
    #[arg(long, value_name = "SQL")]
    pub check: Option<String>,
    /// The recovery key file
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    #[command(flatten)]
    pub place: Place,
    /// A program that exits with 0 if the copy at ${copy} (and in $BLACKSTART_COPY) is good
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    Md,
    Html,
    Json,
}

/// Write a heartbeat into sources, so that a restored copy tells how old it is; for cron: each minute
///
/// Only sources with `canary = true`, or a [source.canary] table, have one. The backups then say that it is due, and drills ask the copy for it.
/// What is written: the row SOURCE of the table blackstart_canary (SQLite, PostgreSQL, and Chroma's chroma.sqlite3), the key
/// blackstart:canary:SOURCE (Redis), the file .blackstart-canary (files). The agent writes them by itself.
///
/// Example: blackstart canary orders
#[derive(Debug, Args)]
pub struct Canary {
    /// Sources of the configuration; without any, all that have a canary
    #[arg(value_parser = super::source)]
    pub sources: Vec<SourceName>,
    /// Take out of the source what was written into it
    #[arg(long)]
    pub remove: bool,
}
