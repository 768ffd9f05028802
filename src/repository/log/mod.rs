//! The log of a source: what its engine writes on and on, stored as it comes (FORMAT.md §2.8).
//!
//! A writer only ever appends: every object is created once, at the position where the one before ends, so that of two writers one loses.
//! Runs repeat what pieces hold, in fewer objects; nothing is deleted here.

mod end;
mod line;
mod listing;
mod lost;
mod marks;
mod near;
mod read;
mod stretch;
mod writer;

pub use line::{HistoryLine, LogLine, LogObject, PieceLine, Position, SealedStretch, StretchLine};
pub use listing::{Gone, Log, Span, Tail, Window, fetch, is_damage, is_of_store, listed_end};
pub use lost::{Lost, Survey};
pub use marks::Mark;
pub use read::{Reader, Shown, StoredHistory};
pub use stretch::Stretch;
pub use writer::{Author, Begin, Head, Writer, unit_end};
