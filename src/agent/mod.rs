//! The daemon: it looks at the clock, starts what is due, and tells what stands wrong.
//!
//! One thread, the scheduler, owns everything here; runs, looks at the repository and deliveries are threads that report back through one
//! channel. Nothing that the agent keeps matters to the data: the repository does, and the catalog is made anew from it.

mod canaries;
mod daemon;
mod memory;
mod observe;
mod once;
mod options;
mod page;
mod problems;
mod receivers;
mod serve;
mod show;
mod signals;
mod tell;
mod upkeep;
mod watch;
mod work;

pub use daemon::{Agent, Signal, Stopped};
pub use observe::{Seen, observe};
pub use once::figures;
pub use options::Options;
pub use receivers::{options as receiver_options, stream_options};
pub use signals::listen;
pub use work::{open, run_id};
