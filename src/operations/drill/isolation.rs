//! What keeps a drill apart from the live systems.

use crate::child;
use crate::child::watch::Bounds;
use crate::size;
use crate::source::postgres;

/// In words, for the report.
pub(super) fn isolation(bounds: Bounds) -> String {
    let network = match child::can_be_cut_off(Some(postgres::engine::server_user())) {
        true => "engines have no network, and listen on Unix sockets alone",
        false => {
            "engines listen on Unix sockets alone; this machine allows no network of their own, so nothing but their settings keeps them off it"
        }
    };
    let memory = size::in_words(bounds.memory);
    format!(
        "a new directory that only this user may enter; {network}; at most {memory} of memory and {} s",
        bounds.time.as_secs()
    )
}
