//! The agent: jobs, the scheduler, and the daemon as a process.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and files need no durability"
)]

#[path = "../support/mod.rs"]
mod support;

mod alarms;
mod canary;
mod daemon;
mod days;
mod groups;
mod jobs;
mod listener;
mod metrics;
mod notices;
mod outage;
mod page;
mod pings;
mod process;
mod proven;
mod receivers;
mod scheduler;
mod secrets;
mod stall;
mod streams;
mod unread;
mod untold;
mod watching;
