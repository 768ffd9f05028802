//! The errors that decide an exit code. Everything else travels as `anyhow::Error` with imperative contexts.
//!
//! Every message says what happened; the `help` of a [`Failure`] says what it means for the data and what to do next.

use std::fmt;

/// Why an operation ended, as far as the caller must tell cases apart. DESIGN §7 has the exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anything not named below: exit 1.
    Failed,
    /// A check or drill found something wrong with the data: exit 4.
    CheckFailed,
    /// A drill or restore could not be carried out here, which says nothing of the backup: no server program, no room, a port that is taken: exit 1.
    Environment,
    /// No repository at that place: exit 10.
    NoRepository,
    /// Another writer holds the series: exit 11.
    Busy,
    /// The key given cannot read or sign this: exit 12.
    WrongKey,
    /// The command line asks for something that does not exist or contradicts itself: exit 64.
    Usage,
    /// The configuration is wrong: exit 78.
    Config,
    /// Interrupted by a signal: exit 130.
    Interrupted,
}

impl Kind {
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed | Kind::Environment => 1,
            Kind::CheckFailed => 4,
            Kind::NoRepository => 10,
            Kind::Busy => 11,
            Kind::WrongKey => 12,
            Kind::Usage => 64,
            Kind::Config => 78,
            Kind::Interrupted => 130,
        }
    }
}

/// An error with a kind, and help for the person who reads it.
#[derive(Debug)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
    pub help: String,
}

impl Failure {
    /// Makes an `anyhow::Error`; wrap it in further contexts freely, [`kind_of`] and [`help_of`] look through them.
    #[expect(clippy::new_ret_no_self, reason = "a failure only ever travels as an anyhow error")]
    pub fn new(kind: Kind, message: impl Into<String>, help: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Failure { kind, message: message.into(), help: help.into() })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The kind of the outermost [`Failure`] in the chain; [`Kind::Failed`] where there is none.
pub fn kind_of(error: &anyhow::Error) -> Kind {
    error.chain().find_map(|e| e.downcast_ref::<Failure>()).map_or(Kind::Failed, |f| f.kind)
}

/// The help of the outermost [`Failure`] in the chain.
pub fn help_of(error: &anyhow::Error) -> Option<&str> {
    error.chain().find_map(|e| e.downcast_ref::<Failure>()).map(|f| f.help.as_str())
}
